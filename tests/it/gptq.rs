//! GPTQ's and AWQ's bytes, from `tests/golden/gptq` (its PROVENANCE says who made them), and their reading.

use std::{collections::BTreeMap, fs};

use quantfs::{
    kernel::Rule,
    num::f16_to_f32,
    quant::{
        FORMATS, Module, Recognized, Scheme, Unsupported, Weight, format::columns::Columns, recognize::recognize,
        stated::Stated,
    },
    tensor::{Dtype, Float, Rows, TensorInfo},
};
use safetensors::SafeTensors;

use crate::common::tables::select_kernels;

type Tensor = (Dtype, Vec<usize>, Vec<u8>);
type Tensors = BTreeMap<String, Tensor>;

fn read(name: &str) -> (Tensors, Vec<String>) {
    select_kernels();
    let path = format!("{}/tests/golden/{name}.safetensors", env!("CARGO_MANIFEST_DIR"));
    let bytes = fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.tensors().into_iter().map(|(n, t)| (n, (t.dtype(), t.shape().to_vec(), t.data().to_vec())));
    let (_, meta) = SafeTensors::read_metadata(&bytes).unwrap();
    let rows = meta.metadata().as_ref().and_then(|m| m.get("rows")).map(|rows| serde_json::from_str(rows).unwrap());
    (tensors.collect(), rows.unwrap_or_default())
}

fn bind(format: &str, scheme: &str, options: &[&str]) -> std::sync::Arc<dyn Scheme> {
    let format = FORMATS.iter().find(|f| f.name() == format).unwrap();
    format.bind(scheme, options).unwrap().unwrap()
}

/// The encoded parts of a weight, by suffix.
fn encode(scheme: &dyn Scheme, (dtype, shape, data): &Tensor) -> BTreeMap<&'static str, Tensor> {
    let weight = Weight { stem: "w".into(), float: Float::of(*dtype).unwrap(), shape: shape.clone() };
    let parts: Vec<_> = scheme.parts(&weight).unwrap().into_iter().filter(|part| part.is_encoded()).collect();
    let mut made: Vec<Vec<u8>> = parts.iter().map(|p| vec![0xa5; p.len()]).collect();
    let mut out: Vec<&mut [u8]> = made.iter_mut().map(Vec::as_mut_slice).collect();
    scheme.encode(Rows { data, float: weight.float, rows: shape[0], cols: shape[1] }, &mut out);
    parts.into_iter().zip(made).map(|(part, made)| (part.suffix, (part.dtype, part.shape, made))).collect()
}

fn assert_same(name: &str, ours: &Tensor, theirs: &Tensor) {
    assert_eq!((ours.0, &ours.1), (theirs.0, &theirs.1), "{name}");
    let size = ours.0.bitsize() / 8;
    if let Some(at) = (0..ours.2.len() / size).find(|i| ours.2[i * size..][..size] != theirs.2[i * size..][..size]) {
        let (line, column) = (at / ours.1[1], at % ours.1[1]);
        panic!(
            "{name} [{line}, {column}]: {:x?}, not {:x?}",
            &ours.2[at * size..][..size],
            &theirs.2[at * size..][..size]
        );
    }
}

#[test]
fn bytes_are_the_packers() {
    let ((inputs, names), (packed, rows)) = (read("mlx/input_finite"), read("gptq/packers"));
    let mut seen = 0;
    for stem in packed.keys().filter_map(|name| name.strip_suffix(".qweight")) {
        let (dtype, word) = stem.split_once('.').unwrap();
        let (float, shape, data) = &inputs[dtype];
        let line = data.len() / shape[0];
        let chosen = rows.iter().map(|row| names.iter().position(|name| name == row).unwrap());
        let data: Vec<u8> = chosen.flat_map(|row| data[row * line..][..line].to_vec()).collect();
        let input = (*float, vec![rows.len(), shape[1]], data);
        let scheme = match word.strip_prefix("gptq_b").map(|word| word.split('_').collect::<Vec<_>>()) {
            Some(words) => {
                // The packer lets zero points of 0 into their neighbours where it stores them less one.
                let version = if words[2] == "asym" { "v2" } else { "v1" };
                bind("gptq", &format!("{}bit", words[0]), &[words[1], words[2], "rtn", version])
            }
            None => bind("awq", "4bit", &["g64", "rtn"]),
        };
        let ours = encode(&*scheme, &input);
        let asymmetric = word.ends_with("asym");
        for (suffix, ours) in ours.iter().filter(|(suffix, _)| !asymmetric || **suffix != ".qzeros") {
            assert_same(&format!("{stem}{suffix}"), ours, &packed[&format!("{stem}{suffix}")]);
        }
        if asymmetric {
            assert_same(stem, &nibbles(&ours[".qzeros"]), &packed[&format!("{stem}.zero_ints")]);
        }
        seen += if word.starts_with("gptq") { 4 } else { 3 };
    }
    assert_eq!(seen, packed.len());
}

/// 4-bit fields as words of their own.
fn nibbles((_, shape, bytes): &Tensor) -> Tensor {
    let fields = bytes.iter().flat_map(|byte| [byte & 15, byte >> 4]).flat_map(|field| [field, 0, 0, 0]);
    (Dtype::I32, vec![shape[0], shape[1] * 8], fields.collect())
}

#[test]
fn bytes_are_the_specifications() {
    let ((inputs, _), (expected, _)) = (read("mlx/input_finite"), read("gptq/spec"));
    let mut seen = 0;
    for stem in expected.keys().filter_map(|name| name.strip_suffix(".qweight")) {
        let [dtype, format, word] = stem.split('.').collect::<Vec<_>>()[..] else { panic!("{stem}") };
        let mut words: Vec<&str> = word.split('-').collect();
        words.insert(if format == "gptq" { 3 } else { 2 }, "rtn");
        for (suffix, ours) in encode(&*bind(format, words[0], &words[1..]), &inputs[dtype]) {
            assert_same(&format!("{stem}{suffix}"), &ours, &expected[&format!("{stem}{suffix}")]);
            seen += 1;
        }
    }
    assert_eq!(seen, expected.len());
}

/// No field of zero points is what zero point 0 would be, and no word carries into its neighbour.
#[test]
fn zero_points_stored_less_one_start_at_one() {
    let values = [0.25f32, 0.5, 0.75, 1.0].repeat(8 * 32);
    let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let input = (Dtype::F32, vec![32, 32], data);
    let parts = encode(&*bind("gptq", "4bit", &["g32", "asym", "rtn", "v1"]), &input);
    assert!(parts[".qzeros"].2.iter().all(|byte| *byte == 0), "zero point 1 is stored as 0");
    let scale = f16_to_f32(u16::from_le_bytes(parts[".scales"].2[..2].try_into().unwrap()));
    assert!((scale - 1.0 / 14.0).abs() < 1e-4, "{scale}");
    let parts = encode(&*bind("gptq", "4bit", &["g32", "asym", "rtn", "v2"]), &input);
    assert!(parts[".qzeros"].2.iter().all(|byte| *byte == 0), "zero point 0 is stored as it is");
    let scale = f16_to_f32(u16::from_le_bytes(parts[".scales"].2[..2].try_into().unwrap()));
    assert!((scale - 1.0 / 15.0).abs() < 1e-4, "{scale}");
}

#[test]
fn a_group_with_a_nan_is_nan_and_its_neighbours_are_not() {
    for format in ["gptq", "awq"] {
        let scheme = if format == "gptq" {
            bind(format, "4bit", &["g32", "sym", "rtn", "v1"])
        } else {
            bind(format, "4bit", &["g32", "rtn"])
        };
        for (odd, column) in [(f32::NAN, 3), (f32::INFINITY, 40), (f32::NEG_INFINITY, 63)] {
            let mut values: Vec<f32> = (0..32 * 64u16).map(|i| (f32::from(i) * 0.7).sin()).collect();
            values[5 * 64 + column] = odd;
            let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            let parts = encode(&*scheme, &(Dtype::F32, vec![32, 64], data));
            let held = [".qweight", ".qzeros", ".scales"].map(|suffix| parts[suffix].2.as_slice());
            let mut back = vec![0.0; values.len()];
            scheme.decode(&held, Float::F32, 32, &mut back);
            for (i, value) in back.iter().enumerate() {
                let (row, group) = (i / 64, i % 64 / 32);
                assert_eq!(value.is_finite(), (row, group) != (5, column / 32), "{format} {odd} element {i}: {value}");
            }
        }
    }
}

#[test]
fn shapes_that_loaders_refuse_are_refused() {
    for (format, options) in [("gptq", vec!["g32", "sym", "rtn", "v1"]), ("awq", vec!["g32", "rtn"])] {
        let scheme = bind(format, "4bit", &options);
        let refused = |shape: &[usize]| {
            let weight = Weight { stem: "w".into(), float: Float::Bf16, shape: shape.to_vec() };
            scheme.parts(&weight).unwrap_err().to_string()
        };
        assert!(refused(&[48, 64]).contains("multiples of 32"), "{}", refused(&[48, 64]));
        assert!(refused(&[2, 32, 64]).contains("only matrices"), "{}", refused(&[2, 32, 64]));
        assert!(refused(&[32, 48]).contains("no whole groups"), "{}", refused(&[32, 48]));
    }
    let rule = Rule::Gptq { bits: 5, symmetric: true, less_one: true };
    assert!(Columns::new(rule, 32).is_err() && Columns::new(Rule::Awq, 48).is_err());
}

/// The tensors of a module, and what recognition makes of them.
fn recognized(parts: &[(&str, Dtype, &[usize])], mode: Option<&str>) -> Option<Result<Recognized, Unsupported>> {
    let info = |(suffix, dtype, shape): &(&str, Dtype, &[usize])| {
        let name = format!("w{suffix}");
        (name.clone(), TensorInfo { name, dtype: *dtype, shape: shape.to_vec() })
    };
    let tensors: BTreeMap<String, TensorInfo> = parts.iter().map(info).collect();
    recognize(&Module::of("w", &tensors, |i| i, Stated { mode: mode.map(str::to_owned), ..Stated::default() }))
}

#[test]
fn layouts_are_recognized_from_their_shapes() {
    for format in ["gptq", "awq"] {
        let format = FORMATS.iter().find(|f| f.name() == format).unwrap();
        for scheme in format.schemes() {
            for group in format.options(scheme)[0] {
                let words = format.options(scheme);
                let rest = words[1..].iter().map(|words| words[words.len() - 1]);
                let options: Vec<&str> = std::iter::once(*group).chain(rest).collect();
                let bound = format.bind(scheme, &options).unwrap().unwrap();
                let weight = Weight { stem: "w".into(), float: Float::Bf16, shape: vec![96, 256] };
                let parts = bound.parts(&weight).unwrap();
                let parts: Vec<_> = parts.iter().map(|p| (p.suffix, p.dtype, p.shape.as_slice())).collect();
                let facts = bound.facts();
                let found = recognized(&parts, Some(facts.mode)).unwrap().unwrap();
                assert_eq!((found.scheme.facts(), found.weight.shape), (facts, vec![96, 256]), "{scheme} {options:?}");
                let wrong = recognized(&parts, Some("affine")).unwrap().unwrap_err().to_string();
                assert!(wrong.contains("affine"), "{wrong}");
                let fewer = recognized(&parts[..3.min(parts.len() - 1)], Some("gptq"));
                assert!(!matches!(fewer, Some(Ok(_))), "a part is missing");
            }
        }
    }
    let unsaid = recognized(
        &[(".qweight", Dtype::I32, &[16, 32]), (".qzeros", Dtype::I32, &[1, 4]), (".scales", Dtype::F16, &[1, 32])],
        None,
    );
    let unsaid = unsaid.unwrap().unwrap_err().to_string();
    assert!(unsaid.contains("checkpoint_format"), "{unsaid}");
}
