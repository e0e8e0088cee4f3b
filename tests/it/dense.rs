//! Views that show the values of a spec in the source's own names, dtypes and sizes.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use quantfs::{
    plan::{self, Options, Parts, Spec},
    runtime::Weights,
    tensor::Float,
};

use crate::common::views::{self, tensors};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/mlx_lm").join(name)
}

/// The files of a view by path.
fn files(path: &Path, spec: &str, rules: &[&str]) -> BTreeMap<String, Vec<u8>> {
    views::files(&views::view_of(path, spec, rules).unwrap())
}

/// Values as bf16, in which MLX computes them: they are exact.
fn to_bf16(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect()
}

/// What mlx_lm wrote, decoded, is what the view shows under the source's names.
fn check(source: &str, quantized: &str, spec: &str) -> usize {
    let weights = Weights::open(golden(quantized)).unwrap();
    let shown = files(&golden(source), spec, &[]);
    let original = fs::read(golden(source).join("model.safetensors")).unwrap();
    assert_eq!(shown.keys().collect::<Vec<_>>(), ["config.json", "model.safetensors"], "nothing is added");
    assert_eq!(shown["config.json"], fs::read(golden(source).join("config.json")).unwrap());
    let (before, after) = (tensors(&original), tensors(&shown["model.safetensors"]));
    assert_eq!(original.len(), shown["model.safetensors"].len());
    let mut rounded = 0;
    for (name, (dtype, shape, bytes)) in &after {
        let module = name.strip_suffix(".weight").unwrap_or(name);
        let values = match module.split_once(".experts.") {
            Some((layer, expert)) => {
                let (number, projection) = expert.split_once('.').unwrap();
                let stack = weights.stack(&format!("{layer}.switch_mlp.{projection}")).unwrap();
                Some(stack[number.parse::<usize>().unwrap()].dequantize())
            }
            None => weights.linear(module).ok().filter(|l| l.is_quantized()).map(|layer| layer.dequantize()),
        };
        assert_eq!((dtype, shape), (&before[name].0, &before[name].1));
        if let Some(values) = values {
            assert!(*bytes == to_bf16(&values), "{name}");
            rounded += usize::from(*bytes != before[name].2);
        } else {
            assert!(*bytes == before[name].2, "{name} stays what it is");
        }
    }
    rounded
}

#[test]
fn values_are_those_of_what_mlx_lm_wrote() {
    assert!(check("llama_src", "llama_q4_g64", "dense-4bit") > 10);
    assert!(check("llama_src", "llama_mxfp4", "dense-mlx-mxfp4") > 10);
    assert!(check("qwen3_moe_src", "qwen3_moe_q4_g64", "dense-mlx-4bit-g64") > 10, "experts one by one");
}

#[test]
fn rules_hold_in_dense_views() {
    let plain = files(&golden("llama_src"), "source", &[]);
    let eight = files(&golden("llama_src"), "dense-8bit", &[]);
    let mixed = files(&golden("llama_src"), "dense-4bit", &["lm_head=8bit", "*.layers.0.*=source"]);
    let [plain, eight, mixed] = [plain, eight, mixed].map(|files| tensors(&files["model.safetensors"]));
    assert_eq!(mixed["lm_head.weight"], eight["lm_head.weight"]);
    let kept = "model.layers.0.mlp.up_proj.weight";
    assert_eq!(mixed[kept], plain[kept]);
    let other = "model.layers.1.mlp.up_proj.weight";
    assert!(mixed[other] != plain[other] && mixed[other] != eight[other]);
}

#[test]
fn specs_of_values_are_spelt_and_refused() {
    let spell = |text: &str| Spec::parse(Some(text), &Parts::default()).map(|spec| spec.to_string());
    assert_eq!(spell("dense-4bit").unwrap(), "dense-mlx-4bit-g64");
    assert_eq!(spell(&spell("dense-sym-int8").unwrap()).unwrap(), "dense-sym-int8-tensor");
    for (text, why) in [
        ("dense-", "empty spec"),
        ("dense-source", "rounds nothing"),
        ("dense-mlx-source", "rounds nothing"),
        ("dense-dense-4bit", "neither a format nor a scheme"),
        ("bnb-nf4-dq-dq", "says `dq` twice"),
    ] {
        let error = spell(text).unwrap_err().to_string();
        assert!(error.contains(why), "{text}: {error}");
    }
    let source = views::open(&golden("llama_src"));
    let error = views::options("4bit", &["lm_head=dense-8bit"]).unwrap_err().to_string();
    assert!(error.contains("stores weights quantized"), "{error}");
    let spec = Spec::parse(Some("dense-4bit"), &Parts::default()).unwrap();
    let options = Options { shard_size: Some(1 << 20), ..Options::new(spec) };
    let error = plan::build(source.as_ref(), &options).unwrap_err().to_string();
    assert!(error.contains("--shard-size"), "{error}");
}

/// What values are cast to before they are rounded is said of each tensor: the dtype that is shown does not tell.
#[test]
fn casts_before_rounding_are_said() {
    let source = views::open(&golden("llama_src"));
    let why = |dtype| {
        let options = Options { dtype, ..views::options("dense-4bit", &["lm_head=8bit"]).unwrap() };
        let plan = plan::build(source.as_ref(), &options).unwrap();
        let of = |name: &str| plan.rows.iter().find(|row| row.name == name).unwrap().why.clone();
        [of("model.layers.0.mlp.up_proj.weight"), of("lm_head.weight"), of("model.norm.weight")]
    };
    let [plain, ruled, norm] = why(None);
    assert_eq!((plain.as_str(), ruled.as_str()), ("", "rule lm_head=8bit"));
    let cast = [String::from("cast to float16 first"), ruled + "; cast to float16 first", norm];
    assert_eq!(why(Some(Float::F16)), cast);
}

/// A survey over the whole tensor, through the engine: every tensor's values are multiples of one scale.
#[test]
fn a_tensors_one_scale_is_found_before_it_is_shown() {
    let shown = files(&golden("llama_src"), "dense-sym-int8-tensor", &[]);
    let original = tensors(&fs::read(golden("llama_src").join("model.safetensors")).unwrap());
    let mut checked = 0;
    for (name, (_, _, bytes)) in tensors(&shown["model.safetensors"]) {
        let wide = |bytes: &[u8]| -> Vec<f32> {
            bytes.chunks(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
        };
        let (before, after) = (wide(&original[&name].2), wide(&bytes));
        if before == after {
            continue;
        }
        let scale = before.iter().fold(0f32, |most, w| most.max(w.abs())) / 127.0;
        for (w, v) in before.iter().zip(&after) {
            let exact = (w / scale).round_ties_even() * scale;
            assert_eq!(*v, half::bf16::from_f32(exact).to_f32(), "{name}: {w}");
        }
        checked += 1;
    }
    assert!(checked > 10, "{checked}");
}
