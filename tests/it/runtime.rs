//! Directories of weights, opened: what mlx_lm wrote, what is recognized, and what is wrong and said to be.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use quantfs::{
    quant::{
        Part, Weight,
        format::sym::{Per, Sym},
    },
    runtime::{QuantizedLinear, Weights, quantize_dynamic},
    tensor::{Dtype, Float, byte_len},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::written::{Written, f32s, fitting, quantized, scheme, schemes, tensor, values, write};

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// The sum that scripts/golden/mlx_lm_decoded.py takes.
fn digest(values: &[f32]) -> String {
    let terms = values.iter().enumerate().map(|(i, v)| u64::from(v.to_bits()).wrapping_mul(2 * i as u64 + 1));
    terms.fold(0, u64::wrapping_add).to_string()
}

#[test]
fn what_mlx_lm_wrote_decodes_to_mlx_values() {
    let decoded: Value = serde_json::from_slice(&fs::read(golden("mlx_lm/decoded.json")).unwrap()).unwrap();
    let directories = decoded["directories"].as_object().unwrap();
    assert_eq!(directories.len(), 6);
    for (directory, modules) in directories {
        let weights = Weights::open(golden("mlx_lm").join(directory)).unwrap();
        let memory = Weights::read(golden("mlx_lm").join(directory)).unwrap();
        let modules: BTreeMap<String, Value> = serde_json::from_value(modules.clone()).unwrap();
        for (stem, expected) in modules {
            let shape: Vec<usize> = serde_json::from_value(expected["shape"].clone()).unwrap();
            assert_eq!(weights.weight_shape(&stem).as_ref(), Some(&shape), "{directory} {stem}");
            for weights in [&weights, &memory] {
                let layers = match shape[..] {
                    [_, _] => vec![weights.linear(&stem).unwrap()],
                    _ => weights.stack(&stem).unwrap(),
                };
                assert!(layers.iter().all(QuantizedLinear::is_quantized));
                assert_eq!(layers.len() * layers[0].rows() * layers[0].cols(), shape.iter().product::<usize>());
                let decoded: Vec<f32> = layers.iter().flat_map(QuantizedLinear::dequantize).collect();
                assert_eq!(digest(&decoded), expected["sum"].as_str().unwrap(), "{directory} {stem}");
            }
        }
    }
}

/// A layer outlives the weights that it was made of, and the files.
#[test]
fn layers_own_their_mapping() {
    let dir = TempDir::new().unwrap();
    write(&dir.path().join("model.safetensors"), &[f32s("a.weight", &[2, 2], &[1.0, 2.0, 3.0, 4.0])], 8);
    let layer = Weights::open(dir.path()).unwrap().linear("a").unwrap();
    drop(dir);
    let mut y = [0.0; 2];
    layer.forward(&[1.0, 10.0], &mut y).unwrap();
    assert_eq!(y, [21.0, 43.0]);
}

#[test]
fn typed_slices_are_given_where_aligned() {
    let dir = TempDir::new().unwrap();
    let tensors = [f32s("a", &[3], &[1.0, 2.0, 3.0]), tensor("b", Dtype::U8, &[1], vec![7]), f32s("c", &[1], &[4.0])];
    write(&dir.path().join("one.safetensors"), &tensors, 64);
    let weights = Weights::open(dir.path()).unwrap();
    assert_eq!(weights.tensor("a").unwrap().as_slice::<f32>(), Some(&[1.0, 2.0, 3.0][..]));
    let c = weights.tensor("c").unwrap();
    assert_eq!((c.as_slice::<f32>(), c.as_slice::<u8>().map(<[u8]>::len)), (None, Some(4)), "it lies at an odd offset");
    assert_eq!(c.to_f32().unwrap(), [4.0]);
    assert_eq!(c.file(), dir.path().join("one.safetensors"));
    let error = weights.tensor("b").unwrap().to_f32().unwrap_err().to_string();
    assert!(error.contains("tensor b of") && error.contains("one.safetensors") && error.contains("U8"), "{error}");
}

/// Thirty gigabytes of weights that no disk holds: only a hole is mapped.
#[test]
fn opening_reads_no_weight() {
    let dir = TempDir::new().unwrap();
    let (rows, cols) = (1 << 18, 1 << 15);
    let json = format!(
        "{{\"a.weight\":{{\"dtype\":\"F32\",\"shape\":[{rows},{cols}],\"data_offsets\":[0,{}]}}}}",
        rows * cols * 4
    );
    let path = dir.path().join("model.safetensors");
    fs::write(&path, [&(json.len() as u64).to_le_bytes()[..], json.as_bytes()].concat()).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(8 + json.len() as u64 + rows * cols * 4).unwrap();
    let start = Instant::now();
    let layer = Weights::open(dir.path()).unwrap().linear("a").unwrap();
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert_eq!((layer.rows() as u64, layer.byte_len() as u64), (rows, rows * cols * 4));
    let table = Weights::open(dir.path()).unwrap().embedding("a").unwrap();
    let mut row = vec![1.0; 1 << 15];
    table.forward(&[200_000], &mut row).unwrap();
    assert!(row.iter().all(|v| *v == 0.0));
}

/// A directory of one file, `a` quantized by a scheme of mlx, with other files beside it.
fn with(tensors: &[Written], beside: &[(&str, String)]) -> TempDir {
    let dir = TempDir::new().unwrap();
    write(&dir.path().join("model.safetensors"), tensors, 8);
    beside.iter().for_each(|(name, text)| fs::write(dir.path().join(name), text).unwrap());
    dir
}

fn parts(name: &str) -> Vec<Written> {
    quantized(&*scheme("mlx", name), "a", &[4, 128], &values(1, 512))
}

fn facts(dir: &Path) -> Result<(u32, usize, &'static str), String> {
    let weights = Weights::open(dir).map_err(|e| e.to_string())?;
    weights.linear("a").map(|l| l.facts().map(|f| (f.bits, f.group_size, f.mode)).unwrap()).map_err(|e| e.to_string())
}

#[test]
fn parameters_come_from_config_manifest_or_shapes() {
    let config = |entries: Value| vec![("config.json", json!({ "quantization": entries }).to_string())];
    let manifest = |layers: Value| vec![("quantization.json", layers.to_string())];
    let four = parts("4bit");
    assert_eq!(facts(with(&four, &config(json!({"group_size": 64, "bits": 4}))).path()), Ok((4, 64, "affine")));
    let own = json!({"group_size": 32, "bits": 8, "mode": "mxfp8", "a": {"group_size": 64}});
    assert_eq!(facts(with(&four, &config(own)).path()), Ok((4, 64, "affine")), "an entry without mode is affine");
    let layers =
        json!({"bits": 8, "group_size": 32, "mode": "affine", "layers": [{"name": "a", "bits": 4, "group_size": 64}]});
    assert_eq!(facts(with(&four, &manifest(layers)).path()), Ok((4, 64, "affine")));
    for (name, expected) in [
        ("mxfp4", (4, 32, "mxfp4")),
        ("mxfp8", (8, 32, "mxfp8")),
        ("nvfp4", (4, 16, "nvfp4")),
        ("5bit", (5, 64, "affine")),
    ] {
        assert_eq!(facts(with(&parts(name), &[]).path()), Ok(expected), "from shapes alone");
    }
}

#[test]
fn a_manifest_above_a_component_speaks_for_it() {
    let root = TempDir::new().unwrap();
    let dir = root.path().join("transformer");
    fs::create_dir(&dir).unwrap();
    write(&dir.join("model.safetensors"), &parts("4bit"), 8);
    let open = facts(&dir).unwrap_err();
    assert!(open.contains("neither config.json nor quantization.json says"), "{open}");
    let layers = json!({"bits": 4, "group_size": 64, "mode": "affine", "layers": [{"name": "transformer.a"}]});
    fs::write(root.path().join("quantization.json"), layers.to_string()).unwrap();
    assert_eq!(facts(&dir), Ok((4, 64, "affine")));
    let hint = Weights::open(root.path()).unwrap_err().to_string();
    assert!(hint.contains("transformer"), "{hint}");
}

#[test]
fn what_does_not_fit_is_refused_and_named() {
    let said = |entries: Value| vec![("config.json", json!({ "quantization": entries }).to_string())];
    let without =
        |name: &str, suffix: &str| parts(name).into_iter().filter(|p| !p.0.ends_with(suffix)).collect::<Vec<_>>();
    let mut narrow = parts("4bit");
    narrow[2] = tensor("a.biases", Dtype::F32, &[4, 1], vec![0; 16]);
    let mut global = parts("nvfp4");
    global.push(f32s("a.global_scale", &[1], &[1.0]));
    let mut bias = parts("mxfp4");
    bias.push(f32s("a.bias", &[3], &[0.0; 3]));
    let fits = json!({"group_size": 64, "bits": 4});
    let cases = [
        (
            parts("4bit"),
            vec![],
            "its shapes fit 8 bits in groups of 32, or 4 bits in groups of 64, or 2 bits in groups of 128",
        ),
        (
            parts("4bit"),
            said(json!({"group_size": 32, "bits": 4})),
            "says 4 bits in groups of 32, but its shapes, with 256 bits to a group, fit 8 bits in groups of 32, or 4 bits in \
             groups of 64, or 2 bits in groups of 128",
        ),
        (
            parts("4bit"),
            vec![("quantization.json", json!({"group_size": 128, "bits": 8}).to_string())],
            "says 8 bits in groups of 128, but its shapes, with 256 bits to a group, fit 8 bits in groups of 32",
        ),
        (parts("4bit"), said(json!({"group_size": 64, "bits": 4, "mode": "mxfp4"})), "says mxfp4"),
        (parts("mxfp4"), said(fits.clone()), "says affine"),
        (without("4bit", ".biases"), said(fits.clone()), "without biases"),
        (without("4bit", ".scales"), said(fits.clone()), "a.scales is missing"),
        (narrow, said(fits), "a.biases is F32 [4, 1]"),
        (global, vec![], "global_scale"),
        (bias, vec![], "its weight has 4 rows"),
        (vec![tensor("a.weight", Dtype::I16, &[2, 2], vec![0; 8])], vec![], "no format that is known"),
        (vec![f32s("a.weight", &[4], &[0.0; 4])], vec![], "is no matrix"),
        (vec![f32s("a.weight", &[2, 1, 1], &[0.0; 2])], vec![], "shape [2, 1, 1]: 2 matrices, of which `stack`"),
        (vec![f32s("x.a.weight", &[1, 1], &[0.0])], vec![], "x.a.weight is"),
    ];
    for (tensors, beside, expected) in cases {
        let error = facts(with(&tensors, &beside).path()).unwrap_err();
        assert!(error.contains(expected), "{error}: not {expected}");
        assert!(
            error.contains("tensor a.")
                && error.contains(if expected.contains("x.a") { "/" } else { "model.safetensors" }),
            "{error}"
        );
    }
}

#[test]
fn broken_directories_are_errors_that_name_the_file() {
    let index = |map: Value| ("model.safetensors.index.json", json!({ "weight_map": map }).to_string());
    let one = [f32s("a.weight", &[2, 2], &[0.0; 4])];
    let refused = |dir: &TempDir, words: &[&str]| {
        for error in [Weights::open(dir.path()), Weights::read(dir.path())].map(|w| w.unwrap_err().to_string()) {
            assert!(words.iter().all(|w| error.contains(w)), "{error}: not {words:?}");
        }
    };
    refused(&TempDir::new().unwrap(), &["no .safetensors file"]);
    refused(&with(&one, &[index(json!({"a.weight": "other.safetensors"}))]), &["other.safetensors", "No such file"]);
    refused(&with(&one, &[index(json!({"b": "model.safetensors"}))]), &["tensor b", "model.safetensors", "incomplete"]);
    refused(&with(&one, &[index(json!({"a.weight": "../x"}))]), &["index.json", "a.weight"]);
    refused(&with(&one, &[("config.json", "{".into())]), &["config.json"]);
    refused(&with(&one, &[("quantization.json", "nonsense".into())]), &["quantization.json"]);
    let twice = with(&one, &[]);
    write(&twice.path().join("other.safetensors"), &one, 8);
    refused(&twice, &["tensor a.weight", "model.safetensors", "other.safetensors"]);
    let file = "model.safetensors";
    let again = "truncated; download, copy or write it again";
    for (cut, words) in [(Some(3), ["too few", file]), (Some(20), [again, file]), (None, [again, file])] {
        let dir = with(&one, &[]);
        let bytes = fs::read(dir.path().join(file)).unwrap();
        fs::write(dir.path().join(file), &bytes[..cut.unwrap_or(bytes.len() - 1)]).unwrap();
        refused(&dir, &words);
    }
    let garbage = with(&one, &[("model.safetensors", "\u{8}\0\0\0\0\0\0\0{\"a\":17}".into())]);
    refused(&garbage, &[file, "`a`"]);
    for (content, words) in [
        ("<!DOCTYPE html><html>", ["no safetensors file, whatever its name says", file]),
        ("GGUF\u{3}\0\0\0\0\0\0\0", ["no safetensors file, whatever its name says", file]),
        ("PK\u{3}\u{4}\0\0\u{8}\u{8}archive/data.pkl", ["no safetensors file, whatever its name says", file]),
        ("version https://git-lfs.github.com/spec/v1\n", ["git lfs pull", file]),
        ("\0\0\0\0\0\0\0\0\0\0\0\0", ["begins with zeros", file]),
        ("", ["truncated", file]),
    ] {
        refused(&with(&one, &[(file, content.into())]), &words);
    }
    let gone = Weights::open("/nonexistent/model").unwrap_err().to_string();
    assert!(gone.contains("/nonexistent/model"), "{gone}");
}

#[test]
fn files_beside_the_index_are_not_opened() {
    let index = json!({"weight_map": {"a.weight": "model.safetensors"}}).to_string();
    let dir = with(
        &[f32s("a.weight", &[1, 1], &[1.0])],
        &[("model.safetensors.index.json", index), ("adapter.safetensors", "no".into())],
    );
    assert_eq!(Weights::open(dir.path()).unwrap().names().collect::<Vec<_>>(), ["a.weight"]);
    let one = Weights::open(dir.path().join("model.safetensors")).unwrap();
    assert_eq!(one.tensor("a.weight").unwrap().to_f32().unwrap(), [1.0]);
}

#[test]
fn audits_compare_names_and_shapes() {
    let weights = Weights::open(golden("mlx_lm/llama_q4_g64")).unwrap();
    let expected: Vec<(String, Vec<usize>)> = Weights::open(golden("mlx_lm/llama_src"))
        .map(|dense| {
            dense
                .names()
                .filter(|n| !n.ends_with("inv_freq"))
                .map(|n| (n.to_owned(), dense.tensor(n).unwrap().info.shape.clone()))
                .collect()
        })
        .unwrap();
    let audit =
        |expected: &[(String, Vec<usize>)]| weights.audit(expected.iter().map(|(n, s)| (n.as_str(), s.as_slice())));
    let sound = audit(&expected);
    assert_eq!((sound.matched, sound.is_sound(), sound.extra.len()), (expected.len(), true, 0), "{sound}");
    let mut wrong = expected.clone();
    let norm = wrong.iter().position(|(n, _)| n == "model.norm.weight").unwrap();
    wrong.remove(norm);
    wrong[0].1[0] += 1;
    wrong.push(("model.layers.9.mlp.up_proj.weight".into(), vec![1, 1]));
    let found = audit(&wrong);
    assert_eq!((found.matched, found.is_sound()), (expected.len() - 2, false));
    assert_eq!(found.missing, ["model.layers.9.mlp.up_proj.weight"]);
    assert_eq!(found.extra, ["model.norm.weight"]);
    assert_eq!(found.mismatched[0].name, wrong[0].0);
    let text = found.to_string();
    assert!(
        text.contains("1 missing: model.layers.9")
            && text.contains("1 of another shape: lm_head.weight [64, 64], not [65, 64]"),
        "{text}"
    );
}

#[test]
fn a_module_is_named_without_its_weight() {
    for tensors in [parts("4bit"), vec![f32s("a.weight", &[2, 2], &[0.0; 4])]] {
        let error = Weights::open(with(&tensors, &[]).path()).unwrap().linear("a.weight").unwrap_err().to_string();
        let expected = "a.weight is: a module is named without its `.weight`";
        assert!(error.contains("tensor a.weight.weight is not in") && error.contains(expected), "{error}");
    }
}

/// Each matrix of a stack, its bias with it, multiplies alone, however the stack is stored.
#[test]
fn stacks_are_layers_one_by_one() {
    let (dense, bias) = (values(3, 3 * 4 * 128), values(4, 12));
    let beside = [("quantization.json", json!({"layers": [{"name": "a", "bits": 4, "group_size": 64}]}).to_string())];
    let four = quantized(&*scheme("mlx", "4bit"), "a", &[3, 4, 128], &dense);
    let plain = vec![f32s("a.weight", &[3, 4, 128], &dense)];
    let mut cases = vec![];
    for (tensors, beside) in [(four, &beside[..]), (plain, &[])] {
        let dir = with(&[tensors, vec![f32s("a.bias", &[3, 4], &bias)]].concat(), beside);
        cases.push(Weights::open(dir.path()).unwrap());
    }
    let dir = with(&[f32s("a.weight", &[3, 4, 128], &dense)], &[]);
    for per in [Per::Row, Per::Tensor] {
        let mut weights = Weights::open(dir.path()).unwrap();
        weights.apply(quantize_dynamic(&weights, &(Arc::new(Sym::new(per)) as _), |_, _| true)).unwrap();
        assert!(weights.linear("a").unwrap_err().to_string().contains("`stack`"), "a stack that was replaced");
        cases.push(weights);
    }
    for weights in cases {
        let layers = weights.stack("a").unwrap();
        assert_eq!(layers.iter().map(|l| (l.rows(), l.cols())).collect::<Vec<_>>(), [(4, 128); 3]);
        for (i, layer) in layers.iter().enumerate() {
            let own = &dense[i * 512..(i + 1) * 512];
            let most = own.iter().zip(layer.dequantize()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(most < 0.2, "matrix {i} of {:?} is another's: off by {most}", layer.facts());
            assert!(layer.bias().is_none_or(|own| *own == bias[i * 4..(i + 1) * 4]));
        }
    }
    let error = Weights::open(with(&parts("4bit"), &beside).path()).unwrap().stack("a").unwrap_err().to_string();
    assert!(error.contains("tensor a.weight of") && error.contains("no stack"), "{error}");
}

/// Layers without rows, columns or inputs: an empty result or an error, under every scheme.
#[test]
fn nothing_is_computed_of_nothing() {
    for shape in [[0, 64], [64, 0], [0, 0]] {
        let dir = with(&[f32s("a.weight", &shape, &[]), f32s("a.bias", &shape[..1], &vec![1.0; shape[0]])], &[]);
        let mut weights = Weights::open(dir.path()).unwrap();
        let layer = weights.linear("a").unwrap();
        assert!(layer.dequantize().is_empty());
        let (x, mut y) = (vec![1.0; shape[1]], vec![f32::NAN; shape[0]]);
        layer.forward(&x, &mut y).unwrap();
        assert_eq!(y, vec![1.0; shape[0]], "the bias of each row there is");
        layer.forward_batch(&[], &mut []).unwrap();
        QuantizedLinear::forward_together([&layer, &layer], &x).unwrap();
        layer.forward_bf16(&[], &mut []).unwrap();
        layer.backward_input(&[], &mut []).unwrap();
        weights.embedding("a").unwrap().forward(&[], &mut []).unwrap();
        for (name, scheme) in schemes() {
            let weight = Weight { stem: "a".into(), float: Float::F32, shape: shape.to_vec() };
            let error = QuantizedLinear::quantize(&scheme, weight, &[]).expect_err(&name).to_string();
            assert!(error.contains("layer a") && error.contains("no elements"), "{name}: {error}");
            let replaced = quantize_dynamic(&weights, &scheme, |_, _| true);
            assert_eq!((replaced.modules().count(), replaced.kept().len()), (0, 1), "{name}");
            weights.apply(replaced).unwrap();
        }
    }
    for (name, scheme) in schemes() {
        let rows = fitting(&*scheme, 3, 128);
        let weight = Weight { stem: "a".into(), float: Float::F32, shape: vec![rows, 128] };
        let layer = QuantizedLinear::quantize(&scheme, weight, &vec![0; rows * 128 * 4]).expect(&name);
        layer.forward_batch(&[], &mut []).unwrap();
        let [empty] = QuantizedLinear::forward_together([&layer], &[]).unwrap();
        assert!(empty.is_empty(), "{name}");
        layer.backward_input(&[], &mut []).unwrap();
    }
}

#[test]
fn shapes_that_cannot_be_counted_or_are_no_matrix_are_errors() {
    let huge = 1usize << (usize::BITS - 2);
    for (name, scheme) in schemes() {
        let shapes = [
            vec![huge, 128],
            vec![128, huge],
            vec![huge, 1 << 8],
            vec![huge >> 4, 1],
            vec![3, 2, 128],
            vec![128],
            vec![],
        ];
        for shape in shapes.into_iter().chain([vec![huge, huge, 0], vec![1, 2, 3, 4]]) {
            let weight = Weight { stem: "a".into(), float: Float::F32, shape: shape.clone() };
            let data = if shape.len() == 3 { vec![0; 3 * 2 * 128 * 4] } else { vec![0; 512] };
            let error = QuantizedLinear::quantize(&scheme, weight.clone(), &data).expect_err(&name).to_string();
            assert!(error.contains("layer a: ") && error.contains(&format!("{shape:?}")), "{name}: {error}");
            let refused = scheme.parts(&weight);
            let counted = |parts: &[Part]| parts.iter().all(|p| byte_len(p.dtype, &p.shape).is_some());
            assert!(refused.as_ref().is_err() || counted(&refused.unwrap()), "{name} {shape:?}");
        }
    }
}
