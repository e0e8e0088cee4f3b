//! The report's page: its figures, what is asked of it, and names that would break out of it.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use quantfs::{bulk::report, plan::Spec, tensor::Dtype};
use serde_json::Value;

use crate::common::{
    views,
    written::{bf16, tensor, values, write},
};

const LLAMA: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16"}"#;
const HOSTILE: &str =
    "model.layers.1.mlp.</script><script>document.title='broken out'</script><!--\u{2028}\"'&{{facts}}";

fn model(dir: &Path) {
    let tensors = [
        bf16("lm_head.weight", &[64, 128]),
        bf16("model.embed_tokens.weight", &[64, 128]),
        bf16("model.layers.0.input_layernorm.weight", &[128]),
        bf16("model.layers.0.mlp.up_proj.weight", &[256, 128]),
        bf16("model.layers.10.mlp.up_proj.weight", &[128, 96]),
        bf16(&format!("{HOSTILE}.weight"), &[128, 128]),
    ];
    write(&dir.join("model.safetensors"), &tensors, 8);
    fs::write(dir.join("config.json"), LLAMA).unwrap();
}

fn quantfs(args: &[&str], dir: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_quantfs")).args(args).current_dir(dir).output().unwrap()
}

fn told(args: &[&str], dir: &Path) -> Value {
    let out = quantfs(args, dir);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

/// The facts of a page, where a browser finds them.
fn facts(page: &str) -> Value {
    let (_, after) = page.split_once(r#"<script id="facts" type="application/json">"#).unwrap();
    serde_json::from_str(after.split_once("</script>").unwrap().0).unwrap()
}

#[test]
fn figures_are_those_of_inspect() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path());
    let page = tempfile::tempdir().unwrap();
    let page = page.path().join("r.html");
    let view = ["--spec", "ct-4bit-g32", "--rule", "*.layers.0.*=8bit"];
    let others = ["ct-8bit", "gptq-4bit-g32", "mlx-3bit-g32"];
    for sample in ["all", "4096"] {
        let wanted = others.iter().flat_map(|other| ["--candidate", other]);
        let args: Vec<&str> = ["report", ".", "-o", page.to_str().unwrap(), "--sample", sample, "--json"]
            .into_iter()
            .chain(view)
            .chain(wanted)
            .collect();
        let said = told(&args, dir.path());
        let facts = facts(&fs::read_to_string(&page).unwrap());
        assert_eq!((&said["candidates"], &said["spec"]), (&Value::from(4), &Value::from("ct-4bit-g32")));
        let inspect = |spec: &[&str]| {
            told(&[&["inspect", ".", "--errors", "--json", "--sample", sample], spec].concat(), dir.path())
        };
        let own = inspect(&view);
        for key in ["spec", "source", "sample", "totals", "warnings", "hidden", "files"] {
            assert_eq!(facts[key], own[key], "{key}");
        }
        let tensors = facts["tensors"].as_array().unwrap();
        assert_eq!(tensors.len(), own["tensors"].as_array().unwrap().len());
        for (ours, theirs) in tensors.iter().zip(own["tensors"].as_array().unwrap()) {
            for (key, value) in theirs.as_object().unwrap() {
                assert_eq!(&ours[key], value, "{key} of {}", theirs["name"]);
            }
        }
        let measured =
            |name: &str| tensors.iter().any(|t| t["name"] == *name && t["errors"]["rms"].as_f64() > Some(0.0));
        assert!(measured("model.layers.0.mlp.up_proj.weight") && measured(&format!("{HOSTILE}.weight")));
        for (candidate, spec) in facts["candidates"].as_array().unwrap()[1..].iter().zip(["ct-8bit", "gptq-4bit-g32"]) {
            // What the rule chooses is the candidate's, too.
            let own = inspect(&["--spec", spec]);
            assert_eq!(candidate["spec"], own["spec"]);
            assert_eq!(candidate["errors"], own["totals"]["errors"], "{spec}");
            assert_eq!(candidate["totals"]["bytes_after"], own["totals"]["bytes_after"], "{spec}");
        }
        let histogram = &facts["histograms"][0];
        let sum = |key: &str| histogram[key].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum::<u64>();
        let of = &tensors[usize::try_from(histogram["tensor"].as_u64().unwrap()).unwrap()];
        assert_eq!((sum("elements"), sum("errors")), (of["errors"]["elements"].as_u64().unwrap(), sum("elements")));
        let worst = |t: &Value| t["errors"]["relative"].as_f64().unwrap_or_default();
        assert!(tensors.iter().all(|t| worst(t) <= worst(of)), "the first one is the worst");
    }
}

#[test]
fn names_cannot_break_out_of_the_page() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path());
    let out = quantfs(&["report", ".", "-o", "r.html", "--spec", "ct-4bit-g32", "--candidate", "ct-8bit"], dir.path());
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let page = fs::read_to_string(dir.path().join("r.html")).unwrap();
    assert_eq!((page.matches("<script").count(), page.matches("</script").count()), (2, 2));
    assert_eq!(page.matches("<!--").count() + page.matches("broken out'<").count(), 0);
    let names: Vec<Value> = facts(&page)["tensors"].as_array().unwrap().iter().map(|t| t["name"].clone()).collect();
    assert!(names.contains(&format!("{HOSTILE}.weight").into()), "as text it is there");
    let links: Vec<&str> = page.split("://").skip(1).map(|rest| rest.split(['"', '\'', ' ']).next().unwrap()).collect();
    assert!(links.iter().all(|link| *link == "www.w3.org/2000/svg"), "nothing is loaded: {links:?}");
    assert!(page.contains("default-src 'none'"));
}

#[test]
fn what_cannot_be_written_or_compared_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path());
    let refused = |args: &[&str], code: i32, why: &str| {
        let out = quantfs(&[&["report", "."], args].concat(), dir.path());
        let error = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.code() == Some(code) && error.contains(why), "{args:?}: {error}");
    };
    refused(&["-o", "."], 1, "is a directory");
    refused(&["-o", "nowhere/r.html"], 1, "no directory nowhere");
    refused(&["-o", "r.html", "--candidate", "9bit"], 2, "9bit");
    refused(&["-o", "r.html", "--sample", "some"], 2, "a number of elements");
    refused(&[], 2, "--output");
    assert!(!dir.path().join("r.html").exists());
    // One that the source cannot be shown as is listed with the reason, and the others are compared.
    let candidates = ["--rule", "lm_head=8bit", "--candidate", "awq", "--candidate", "ct-2bit-g32"];
    let args = [&["report", ".", "-o", "r.html", "--spec", "ct-4bit-g32"], &candidates[..]].concat();
    assert!(quantfs(&args, dir.path()).status.success());
    let facts = facts(&fs::read_to_string(dir.path().join("r.html")).unwrap());
    let [_, awq, two] = &facts["candidates"].as_array().unwrap()[..] else { panic!("three candidates") };
    assert!(awq["refused"].as_str().is_some_and(|why| why.contains("lm_head")), "{awq}");
    assert!(two["errors"]["relative"].as_f64() > Some(0.0), "{two}");
    // What is quantized has nothing to be compared with.
    let quantized = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/mlx_lm/llama_q4_g64");
    let out = quantfs(&["inspect", quantized.to_str().unwrap(), "--errors"], dir.path());
    let error = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.code() == Some(1) && error.contains("verify") && error.contains("SOURCE"), "{error}");
}

/// A view of several schemes beside uniform specs of the same tensors: its recipe, its rules and what they keep.
#[test]
fn candidates_quantize_what_the_view_does() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path());
    let page = dir.path().with_extension("html");
    let candidates = |view: &[&str]| -> Vec<Value> {
        let args = ["report", ".", "-o", page.to_str().unwrap(), "--json", "--candidate", "mlx-4bit-g32"];
        told(&[&args[..], &["--candidate", "mlx-8bit-g32"], view].concat(), dir.path());
        facts(&fs::read_to_string(&page).unwrap())["candidates"].as_array().unwrap().clone()
    };
    let inspect = |spec: &str| {
        told(&["inspect", ".", "--errors", "--json", "--spec", spec, "--rule", "*embed*=source"], dir.path())
    };
    let plain = candidates(&["--spec", "mlx-4bit-g32"]);
    assert_eq!((plain.len(), &plain[0]["mixed"]), (2, &Value::from(false)), "the view is the candidate");
    let mixed = candidates(&["--spec", "mlx-4bit-g32", "--rule", "*.layers.0.*=8bit", "--rule", "*embed*=source"]);
    assert_eq!((mixed.len(), &mixed[0]["mixed"]), (3, &Value::from(true)));
    for (candidate, spec) in mixed[1..].iter().zip(["mlx-4bit-g32", "mlx-8bit-g32"]) {
        let own = inspect(spec);
        assert_eq!((&candidate["spec"], &candidate["errors"]), (&own["spec"], &own["totals"]["errors"]));
    }
    let kept = mixed[1]["totals"]["bytes_after"].as_u64() > plain[0]["totals"]["bytes_after"].as_u64();
    assert!(kept && mixed[0]["totals"]["bytes_after"].as_u64() > mixed[1]["totals"]["bytes_after"].as_u64());
    fs::remove_file(page).unwrap();
}

/// What a candidate shows as NaN is lost: where that is everything it is neither small and good nor drawn as such.
#[test]
fn what_is_lost_altogether_is_no_virtue() {
    let dir = tempfile::tempdir().unwrap();
    let mut elements = values(1, 256 * 128);
    elements.chunks_mut(128).for_each(|row| row[5] = f32::INFINITY);
    let data = elements.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect();
    let tensors = [tensor("model.layers.0.mlp.up_proj.weight", Dtype::BF16, &[256, 128], data)];
    write(&dir.path().join("model.safetensors"), &tensors, 8);
    fs::write(dir.path().join("config.json"), LLAMA).unwrap();
    let page = dir.path().join("r.html");
    let specs = ["mlx-4bit-g32", "mlx-2bit-g32", "mlx-2bit-g128"];
    let compared = specs.iter().flat_map(|spec| ["--candidate", spec]).chain(["--spec", specs[0], "--json"]);
    let args: Vec<&str> = ["report", ".", "-o", page.to_str().unwrap()].into_iter().chain(compared).collect();
    told(&args, dir.path());
    let facts = facts(&fs::read_to_string(&page).unwrap());
    let all = facts["candidates"].as_array().unwrap();
    let of = |key: &str| all.iter().map(|one| one[key].clone()).collect::<Vec<_>>();
    assert_eq!(of("spec"), specs);
    assert_eq!(all[2]["errors"]["lost"], 256 * 127, "groups are lost whole");
    assert_eq!(of("front"), [true, true, true], "the smallest, the best, and one between");
    let loss: Vec<f64> = of("loss").iter().map(|loss| loss.as_f64().unwrap()).collect();
    let lost = |count: f64| (count / 128.0).sqrt();
    assert!(loss[0] > lost(31.0) && loss[0] < loss[1] && loss[1] < 0.9 && loss[2] == lost(127.0), "{loss:?}");
    assert_eq!(of("layers"), loss.iter().map(|loss| serde_json::json!([loss])).collect::<Vec<_>>());
}

/// Every scheme with every group; flavours as asked.
#[test]
fn alternatives_are_those_of_the_format() {
    let of = |text: &str| -> Vec<String> {
        let spec = Spec::parse(Some(text), &Default::default()).unwrap();
        spec.alternatives().iter().map(Spec::to_string).collect()
    };
    let mlx = of("mlx-4bit-metal");
    for spec in ["mlx-4bit-g64-metal", "mlx-2bit-g128-metal", "mlx-mxfp4-metal"] {
        assert!(mlx.contains(&spec.to_owned()), "{spec} in {mlx:?}");
    }
    assert!(mlx.iter().all(|spec| !spec.contains("source")), "{mlx:?}");
    assert!(of("dense-bnb-nf4").iter().all(|spec| spec.starts_with("bnb-")));
    assert!(of("ct").contains(&"ct-4bit-channel".to_owned()));
    assert_eq!(report::default_sample(views::view_of(&tiny().path().join(""), "mlx-4bit", &[]).unwrap().plan()), None);
}

fn tiny() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path());
    dir
}
