//! compressed-tensors' own bytes (`tests/golden/ct`; its PROVENANCE says how they were made).

use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use quantfs::{
    bulk::{self, Silent},
    quant::{
        Axis, Banding, Content, FORMATS, Format, Module, Part, Scheme, Weight, recognize::recognize, stated::Stated,
    },
    runtime::Weights,
    tensor::{Dtype, Float, Rows, TensorInfo},
    view::View,
};
use serde_json::{Value, json};

use crate::common::views::{self, Tensors, golden as read};

/// `4bit-g64-asym` as a scheme of ct; options that are not said are the first ones.
fn scheme(spec: &str) -> Arc<dyn Scheme> {
    let format: &dyn Format = *FORMATS.iter().find(|f| f.name() == "ct").unwrap();
    let (scheme, said) = spec.split_once('-').unwrap_or((spec, ""));
    let said: Vec<&str> = said.split('-').collect();
    let word = |list: &&'static [&'static str]| list.iter().find(|w| said.contains(*w)).copied().unwrap_or(list[0]);
    let options: Vec<&str> = format.options(scheme).iter().map(word).collect();
    format.bind(scheme, &options).unwrap().unwrap()
}

fn float(word: &str) -> Float {
    match word {
        "bf16" => Float::Bf16,
        "f16" => Float::F16,
        "f32" => Float::F32,
        _ => panic!("{word} is no float"),
    }
}

/// Some rows of a matrix of 256 columns, as a weight of so many.
fn rows(input: &Tensors, word: &str, rows: impl Iterator<Item = usize>, cols: usize) -> (Weight, Vec<u8>) {
    let (_, shape, data) = &input[word];
    let size = float(word).size();
    let data: Vec<u8> = rows.flat_map(|r| data[r * shape[1] * size..][..cols * size].to_vec()).collect();
    let shape = vec![data.len() / size / cols, cols];
    (Weight { stem: "w".into(), float: float(word), shape }, data)
}

/// All parts of a weight, made in bands of one granule after a survey of them where there is one.
fn made(scheme: &Arc<dyn Scheme>, weight: &Weight, data: &[u8]) -> Vec<(Part, Vec<u8>)> {
    let parts = scheme.parts(weight).unwrap();
    let Banding { axis, granule } = scheme.banding(weight);
    let (extent, unit) = (scheme.banding(weight).extent(weight), data.len() / scheme.banding(weight).extent(weight));
    let band = |start: usize| -> (usize, Rows<'_>) {
        let end = (start + granule).min(extent);
        let rows = if axis == Axis::Rows { end - start } else { 1 };
        let cols = (end - start) * unit / weight.float.size() / rows;
        (end, Rows { data: &data[start * unit..end * unit], float: weight.float, rows, cols })
    };
    let starts = || (0..extent).step_by(granule);
    let known = scheme.survey(weight).map(|s| s.conclude(&starts().map(|at| s.look(band(at).1)).collect::<Vec<_>>()));
    let mut all: Vec<Vec<u8>> = vec![vec![]; parts.len()];
    for start in starts() {
        let (end, rows) = band(start);
        let len = |part: &Part| part.range(scheme.banding(weight), extent, start..end).len();
        let mut pieces: Vec<Vec<u8>> = parts.iter().filter(|p| p.is_encoded()).map(|p| vec![0xa5; len(p)]).collect();
        known
            .as_ref()
            .unwrap_or(scheme)
            .encode(rows, &mut pieces.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>());
        all.iter_mut().zip(pieces).for_each(|(all, piece)| all.extend(piece));
    }
    for (part, bytes) in parts.iter().zip(&mut all) {
        if let Content::Constant(constant) = &part.content {
            bytes.extend_from_slice(constant);
        }
    }
    parts.into_iter().zip(all).collect()
}

/// Compares the parts of a weight with the tensors `stem.weight_packed`, ...; how many there were.
fn compare(spec: &str, weight: &Weight, data: &[u8], expected: &Tensors, stem: &str) -> usize {
    let made = made(&scheme(spec), weight, data);
    let mut seen = 0;
    for (part, ours) in &made {
        let name = format!("{stem}{}", part.suffix);
        let Some((dtype, shape, theirs)) = expected.get(&name) else {
            assert_eq!(part.suffix, ".weight_shape", "no vector {name}");
            continue;
        };
        assert_eq!((part.dtype, &part.shape), (*dtype, shape), "{name}");
        let row = (theirs.len() / shape[0]).max(1);
        for (r, (ours, theirs)) in ours.chunks(row).zip(theirs.chunks(row)).enumerate() {
            assert_eq!(ours, theirs, "{name} row {r}");
        }
        assert_eq!(ours.len(), theirs.len(), "{name}");
        seen += 1;
    }
    seen
}

const PRESETS: [(&str, &str); 11] = [
    ("W4A16", "4bit-g128"),
    ("W4A16_ASYM", "4bit-g128-asym"),
    ("W8A16", "8bit-g128"),
    ("W3A16", "3bit-g128"),
    ("W8A8", "int8"),
    ("FP8", "fp8-tensor"),
    ("FP8_DYNAMIC", "fp8-channel"),
    ("FP8_BLOCK", "fp8-b128"),
    ("MXFP4A16", "mxfp4"),
    ("MXFP8A16", "mxfp8"),
    ("NVFP4A16", "nvfp4"),
];

#[test]
fn presets_are_the_librarys() {
    let input = read("mlx/input_finite");
    for (preset, spec) in PRESETS {
        let expected = read(&format!("ct/{preset}"));
        let all = ["bf16", "f16", "f32"].map(|word| {
            let (weight, data) = rows(&input, word, 0..64, 256);
            compare(spec, &weight, &data, &expected, word)
        });
        assert_eq!(all.iter().sum::<usize>(), expected.len(), "{preset} has tensors that were not compared");
    }
}

/// The stems of a file of `<float>.<case>.<spec>.<part>`.
fn stems(expected: &Tensors) -> Vec<[&str; 3]> {
    let mut stems: Vec<[&str; 3]> =
        expected.keys().map(|name| name.split('.').collect::<Vec<_>>()[..3].try_into().unwrap()).collect();
    stems.dedup();
    stems
}

#[test]
fn widths_groups_and_rows_that_fill_no_words() {
    let (input, expected) = (read("mlx/input_finite"), read("ct/codes"));
    let mut seen = 0;
    for stem in stems(&expected) {
        let [word, case, spec] = stem;
        let (weight, data) = match case {
            "256" => rows(&input, word, (0..64).step_by(3), 256),
            "250" => rows(&input, word, 25..61, 250),
            "decode" => rows(&input, word, 25..41, 256),
            _ => panic!("{case}"),
        };
        seen += compare(spec, &weight, &data, &expected, &stem.join("."));
    }
    assert_eq!(seen, expected.len());
}

#[test]
fn nan_infinity_and_magnitudes_beyond_the_floats() {
    let (input, expected) = (read("mlx/input_edge"), read("ct/edge"));
    let mut seen = 0;
    for stem in stems(&expected) {
        let [word, row, spec] = stem;
        let row: usize = row.parse().unwrap();
        let (weight, data) = rows(&input, word, row..row + 1, 256);
        seen += compare(spec, &weight, &data, &expected, &stem.join("."));
    }
    assert_eq!(seen, expected.len());
}

#[test]
fn decoding_is_the_librarys() {
    let (coded, expected) = (read("ct/codes"), read("ct/decode"));
    for (stem, (_, shape, values)) in &expected {
        let [word, _, spec] = stem.split('.').collect::<Vec<_>>()[..] else { panic!("{stem}") };
        let scheme = scheme(spec);
        let weight = Weight { stem: "w".into(), float: float(word), shape: shape.clone() };
        let (parts, banding) = (scheme.parts(&weight).unwrap(), scheme.banding(&weight));
        let encoded = parts.iter().filter(|part| part.is_encoded());
        let parts: Vec<&[u8]> = encoded.map(|part| coded[&format!("{stem}{}", part.suffix)].2.as_slice()).collect();
        let mut ours = vec![f32::NAN; values.len() / 4];
        let rows = if banding.axis == Axis::Rows { shape[0] } else { 1 };
        scheme.decode(&parts, weight.float, rows, &mut ours);
        for (i, (ours, theirs)) in ours.iter().zip(values.chunks(4)).enumerate() {
            assert_eq!(ours.to_le_bytes(), theirs, "{stem} element {i}");
        }
    }
}

/// A view of a small Llama whose rows of 64 and 128 columns fit some groups and not others.
fn view(spec: &str, rules: &[&str]) -> Arc<View> {
    let path = format!("{}/tests/golden/mlx_lm/llama_src", env!("CARGO_MANIFEST_DIR"));
    views::view_of(Path::new(&path), spec, rules).unwrap()
}

fn exported(spec: &str, rules: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    bulk::export(&view(spec, rules), &dir.path().join("out"), &Silent).unwrap();
    dir
}

/// `quantization_config` of an exported directory.
fn block(dir: &Path) -> Value {
    let config: Value = serde_json::from_slice(&fs::read(dir.join("out/config.json")).unwrap()).unwrap();
    config["quantization_config"].clone()
}

const PROJECTIONS: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];

#[test]
fn configs_are_the_librarys() {
    let path = format!("{}/tests/golden/ct/configs.json", env!("CARGO_MANIFEST_DIR"));
    let expected: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let mut seen = 0;
    for (preset, spec) in PRESETS.iter().filter(|(preset, _)| expected.get(preset).is_some()) {
        let dir = exported(&format!("ct-{spec}"), &[]);
        let (mut ours, mut theirs) = (block(dir.path()), expected[preset].clone());
        // Rows of 64 columns are no groups of 128: all but the wider `down_proj` are dense there.
        let grouped = spec.contains("128");
        let all: Vec<String> =
            (0..2).flat_map(|layer| PROJECTIONS.map(|name| format!("model.layers.{layer}.{name}"))).collect();
        let dense = all.into_iter().filter(|name| grouped && !name.ends_with("down_proj"));
        let mut listed: Vec<&str> = ours["ignore"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        assert_eq!(listed.pop(), Some("lm_head"), "{preset}");
        listed.sort_unstable();
        let mut dense: Vec<String> = dense.collect();
        dense.sort_unstable();
        assert_eq!(listed, dense, "{preset}");
        ours["ignore"].take();
        theirs["ignore"].take();
        assert_eq!(serde_json::to_string(&ours).unwrap(), serde_json::to_string(&theirs).unwrap(), "{preset}");
        seen += 1;
    }
    assert_eq!(seen, 7);
}

#[test]
fn schemes_that_rules_mix_are_groups_of_named_modules() {
    let dir = exported("ct-4bit-g32", &["*.layers.1.mlp.*=int8", "lm_head=8bit-channel", "*.v_proj=source"]);
    let said = block(dir.path());
    assert_eq!(said["format"], "mixed-precision");
    assert_eq!(said["ignore"], json!(["model.layers.0.self_attn.v_proj", "model.layers.1.self_attn.v_proj"]));
    let groups = said["config_groups"].as_object().unwrap();
    let of = |name: &str| {
        let group = groups.values().find(|g| g["targets"].as_array().unwrap().iter().any(|t| t == name));
        (group.unwrap()["format"].clone(), group.unwrap()["weights"]["num_bits"].clone())
    };
    assert_eq!(groups.len(), 3);
    assert_eq!(of("model.layers.0.mlp.up_proj"), (json!("pack-quantized"), json!(4)));
    assert_eq!(of("model.layers.1.mlp.up_proj"), (json!("int-quantized"), json!(8)));
    assert_eq!(of("lm_head"), (json!("pack-quantized"), json!(8)));
    let weights = Weights::open(dir.path().join("out")).unwrap();
    let bits = |name: &str| weights.linear(name).unwrap().facts().map(|facts| (facts.bits, facts.group_size));
    assert_eq!(bits("model.layers.0.mlp.up_proj"), Some((4, 32)));
    assert_eq!(bits("model.layers.1.mlp.up_proj"), Some((8, 0)));
    assert_eq!(bits("lm_head"), Some((8, 0)));
    assert_eq!(bits("model.layers.0.self_attn.v_proj"), None);
}

/// As the presets have them, but dynamic. vLLM and SGLang read experts of one scale with activations of one scale alone.
#[test]
fn activations_share_scales_as_weights_do() {
    for (spec, strategy) in [("int8", "token"), ("fp8", "token"), ("fp8-tensor", "tensor"), ("fp8-b128", "group")] {
        let said = block(exported(&format!("ct-{spec}"), &[]).path());
        let inputs = &said["config_groups"]["group_0"]["input_activations"];
        assert_eq!((&inputs["strategy"], &inputs["dynamic"]), (&json!(strategy), &json!(true)), "{spec}");
    }
}

/// What is written is recognized, by the manifest and by `config.json` alone, and decodes to something near.
#[test]
fn directories_are_read_again() {
    let dense = Weights::open(format!("{}/tests/golden/mlx_lm/llama_src", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let specs =
        ["4bit-g32", "4bit-g64-asym", "3bit-channel", "7bit-channel-asym", "8bit-g128", "int8", "fp8", "fp8-tensor"];
    for spec in specs.iter().chain(&["fp8-b128", "mxfp4", "mxfp8", "nvfp4"]) {
        let dir = exported(&format!("ct-{spec}"), &[]);
        let out = dir.path().join("out");
        let audit = bulk::audit(&out, &Silent).unwrap();
        assert!(audit.is_sound() && audit.quantized >= 2 && audit.scales >= 2, "{spec}: {audit:?}");
        let described = bulk::describe(&out).unwrap();
        let row = described.iter().find(|row| row.name.starts_with("model.layers.0.mlp.down_proj.")).unwrap();
        assert!(row.becomes.contains("bit") && row.why.is_empty() && row.shape == [64, 128], "{spec}: {row:?}");
        for with_manifest in [true, false] {
            if !with_manifest {
                fs::remove_file(out.join("quantization.json")).unwrap();
            }
            let ours = Weights::open(&out).unwrap().linear("model.layers.0.mlp.down_proj").unwrap().dequantize();
            let theirs = dense.linear("model.layers.0.mlp.down_proj").unwrap().dequantize();
            let square =
                |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v) * f64::from(v)).sum::<f64>();
            let off = square(&mut ours.iter().zip(&theirs).map(|(a, b)| a - b)) / square(&mut theirs.iter().copied());
            assert!(off < 0.12 && ours.len() == theirs.len(), "{spec}: {off}");
        }
    }
}

#[test]
fn columns_that_are_told_otherwise_are_no_columns() {
    let dir = exported("ct-4bit-channel", &[]);
    let path = dir.path().join("out/model.safetensors");
    let mut file = fs::read(&path).unwrap();
    let name = "model.layers.0.mlp.down_proj.weight_shape";
    let header = crate::common::headers::header(&file).unwrap();
    let at = header.tensors.iter().find(|t| t.info.name == name).unwrap().range.start;
    file[usize::try_from(at).unwrap() + 8] = 127;
    fs::write(&path, file).unwrap();
    let weights = Weights::open(dir.path().join("out")).unwrap();
    let error = weights.linear("model.layers.0.mlp.down_proj").unwrap_err().to_string();
    assert!(error.contains(name) && error.contains("[64, 128]"), "{error}");
}

/// Queries, keys and values have one scale in nvfp4, and each its own in fp8.
#[test]
fn fused_modules_share_a_global_scale() {
    let one_of = |spec: &str, suffix: &str| {
        let dir = exported(spec, &[]);
        let weights = Weights::open(dir.path().join("out")).unwrap();
        let value =
            |name: &str| weights.tensor(&format!("model.layers.0.{name}.{suffix}")).unwrap().to_f32().unwrap()[0];
        PROJECTIONS.map(value)
    };
    let [q, k, v, o, gate, up, down] = one_of("ct-nvfp4", "weight_global_scale");
    assert!(q == k && k == v && gate == up && o != q && down != up, "{q} {o} {gate} {down}");
    let [q, k, v, _, gate, up, _] = one_of("ct-fp8-tensor", "weight_scale");
    assert!(q != k && k != v && gate != up, "{q} {k} {v} {gate} {up}");
}

#[test]
fn what_is_not_said_or_not_known_is_refused() {
    let info = |suffix: &str, dtype, shape: &[usize]| {
        let name = format!("w{suffix}");
        (name.clone(), TensorInfo { name, dtype, shape: shape.into() })
    };
    let why = |tensors: &[(String, TensorInfo)], stated: Stated| {
        let tensors: BTreeMap<String, TensorInfo> = tensors.iter().cloned().collect();
        recognize(&Module::of("w", &tensors, |i| i, stated))
            .unwrap()
            .map(|f| f.scheme.facts())
            .map_err(|e| e.to_string())
    };
    let (words, scales) = (info(".weight_packed", Dtype::I32, &[4, 64]), info(".weight_scale", Dtype::BF16, &[4, 4]));
    let open = why(&[words.clone(), scales.clone()], Stated::default()).unwrap_err();
    assert!(open.contains("does not say its bits"), "{open}");
    let four = Stated { bits: Some(4), ..Stated::default() };
    assert!(why(&[words.clone(), scales.clone()], four.clone()).unwrap_err().contains("weight_shape is missing"));
    let shape = info(".weight_shape", Dtype::I64, &[2]);
    let found = why(&[words.clone(), scales.clone(), shape], four.clone()).unwrap();
    assert_eq!(found.group_size, 128, "512 columns");
    let wrong = why(&[words.clone(), scales.clone()], Stated { group_size: Some(32), ..four.clone() }).unwrap_err();
    assert!(wrong.contains("64 words and 4 scales"), "{wrong}");
    let ordered = info(".weight_g_idx", Dtype::I32, &[512]);
    assert!(why(&[words.clone(), scales.clone(), ordered], four).unwrap_err().contains("g_idx"));
    assert!(why(&[words], Stated::default()).unwrap_err().contains("weight_scale is missing"));
    let (codes, zeros) = (info(".weight", Dtype::I8, &[4, 64]), info(".weight_zero_point", Dtype::I8, &[4, 1]));
    let row = info(".weight_scale", Dtype::F16, &[4, 1]);
    assert_eq!(why(&[codes.clone(), row.clone()], Stated::default()).unwrap().mode, "int8");
    assert!(why(&[codes.clone(), row, zeros], Stated::default()).unwrap_err().contains("zero points"));
    let odd = info(".weight_scale", Dtype::I32, &[4, 1]);
    assert!(why(&[codes, odd], Stated::default()).unwrap_err().contains("no layout"));
}
