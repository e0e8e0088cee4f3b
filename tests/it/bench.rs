//! `quantfs bench`: figures with their limits, and what it refuses to measure.

use std::process::{Command, Output};

use serde_json::Value;

use crate::common::written::{f32s, values, write};

fn bench(words: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_quantfs")).arg("bench").args(words.split_whitespace()).output().unwrap()
}

/// The lines, of which each has the keys and figures of the contract.
fn figures(words: &str) -> Vec<Value> {
    let done = bench(words);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let lines: Vec<Value> = done
        .stdout
        .split(|b| *b == b'\n')
        .filter(|l| !l.is_empty())
        .map(|l| serde_json::from_slice(l).unwrap())
        .collect();
    for line in &lines {
        let number = |key: &str| line[key].as_f64().unwrap_or_else(|| panic!("{key} in {line}"));
        for key in ["value", "limit", "threads"] {
            assert!(number(key).is_finite() && number(key) > 0.0, "{key} in {line}");
        }
        for key in ["bench", "case", "unit", "limited_by"] {
            assert!(line[key].as_str().is_some_and(|text| !text.is_empty()), "{key} in {line}");
        }
    }
    lines
}

const SMALL: &str = "--rounds 1 --set 1MiB --shape 40x256";

#[test]
fn layers_have_figures_beside_their_limits() {
    let lines = figures(&format!(
        "layers --json --threads 1 --inputs 1,3 --arithmetic int8,exact --spec 4bit --spec mxfp4 {SMALL}"
    ));
    let cases: Vec<_> = lines.iter().map(|l| (l["case"].as_str().unwrap(), l["unit"].as_str().unwrap())).collect();
    let expected = ["mlx-4bit-g64", "mlx-mxfp4"].into_iter().flat_map(|spec| {
        ["int8", "exact"].map(|arithmetic| {
            [("x1", "GB/s"), ("x3", "GFLOP/s")].map(|(n, unit)| (format!("{spec} {arithmetic} {n}"), unit))
        })
    });
    let expected: Vec<_> = expected.flatten().collect();
    assert_eq!(cases, expected.iter().map(|(case, unit)| (case.as_str(), *unit)).collect::<Vec<_>>());
    assert_eq!(lines[0]["bits_per_weight"].as_f64(), Some(4.5));
}

#[test]
fn quantizing_has_figures_on_one_thread_and_on_all() {
    let lines = figures("quantize --json --rounds 1 --set 1MiB --spec 8bit-g32");
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let threads: Vec<u64> = lines.iter().map(|l| l["threads"].as_u64().unwrap()).collect();
    assert_eq!(threads, if cores > 1 { vec![1, cores] } else { vec![1] });
    assert!(lines.iter().all(|l| l["case"] == "mlx-8bit-g32" && l["unit"] == "GB/s"), "{lines:?}");
}

#[test]
#[cfg(feature = "fuse")]
fn reading_has_figures_beside_the_source() {
    if !crate::mount::can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (
        f32s("model.layers.0.mlp.up_proj.weight", &[512, 512], &values(1, 512 * 512)),
        f32s("model.layers.0.mlp.down_proj.weight", &[8, 64], &values(2, 512)),
    );
    write(&dir.path().join("model.safetensors"), &[a, b], 8);
    std::fs::write(dir.path().join("config.json"), r#"{"model_type":"llama"}"#).unwrap();
    let words = format!("read {} --json --rounds 2 --threads 1 --spec 4bit --spec 8bit", dir.path().display());
    let lines = figures(&words);
    let cases: Vec<_> = lines.iter().map(|l| (l["case"].as_str().unwrap(), l["unit"].as_str().unwrap())).collect();
    let each = [
        ("cold", "GB/s of source"),
        ("warm", "GB/s"),
        ("fresh mapping", "GB/s"),
        ("existing mapping", "GB/s"),
        ("first layer", "ms"),
        ("ready", "ms"),
    ];
    let expected =
        ["mlx-4bit-g64", "mlx-8bit-g64"].iter().flat_map(|spec| each.map(|(c, unit)| (format!("{spec} {c}"), unit)));
    let expected: Vec<_> = expected.collect();
    assert_eq!(cases, expected.iter().map(|(case, unit)| (case.as_str(), *unit)).collect::<Vec<_>>());
}

#[test]
fn a_table_is_printed_where_nobody_asks_for_json() {
    let done = bench(&format!("layers --threads 1 --inputs 1 --spec 4bit {SMALL}"));
    let text = String::from_utf8_lossy(&done.stdout);
    assert!(text.starts_with("layers  mlx-4bit-g64 int8 x1  1 thread") && text.contains(" % of "), "{text}");
}

#[test]
fn what_cannot_be_measured_is_refused() {
    for (words, code, why) in [
        ("read /nowhere/at/all --spec 4bit", 1, "/nowhere/at/all"),
        ("layers --spec source", 2, "it quantizes nothing"),
        ("layers --spec 9bit", 2, "unknown spec"),
        ("layers --shape 64", 2, "two numbers are needed"),
        ("layers --shape 9999999x2", 2, "from 1x1 to a billion weights"),
        ("layers --inputs 0", 2, "0 is not in"),
        ("layers --arithmetic f16", 2, "known are int8 and exact"),
        ("quantize --threads 0", 2, "a number from 1 to"),
        ("layers --threads 99999", 2, "a number from 1 to"),
        ("layers --set 1KiB", 2, "at least 1MiB"),
        ("layers --spec 4bit --shape 4x100 --set 1MiB", 1, "no whole groups of 64"),
    ] {
        let done = bench(words);
        let error = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(code), "{words}: {error}");
        assert!(error.contains(why), "{words}: {error}");
    }
}
