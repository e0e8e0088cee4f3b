//! The bytes of the reference libraries, from `tests/golden/mlx` (its PROVENANCE says who made them).

use std::collections::BTreeMap;

use quantfs::{
    kernel::{Cast, kernels},
    quant::{FORMATS, Format, Scheme, Weight},
    tensor::{Dtype, Float, Rows},
};

use crate::common::views::{self, Tensors};

fn read(name: &str) -> Tensors {
    views::golden(&format!("mlx/{name}"))
}

fn format(name: &str) -> &'static dyn Format {
    *FORMATS.iter().find(|f| f.name() == name).unwrap()
}

fn mlx(scheme: &str, options: &[&str]) -> std::sync::Arc<dyn Scheme> {
    format("mlx").bind(scheme, options).unwrap().unwrap()
}

/// Compares what a scheme makes of `rows` with the tensors `stem.weight`, `stem.scales`, ...
/// Returns how many were compared.
fn compare(scheme: &dyn Scheme, rows: &(Dtype, Vec<usize>, Vec<u8>), expected: &Tensors, stem: &str) -> usize {
    let (dtype, shape, data) = rows;
    let weight = Weight { stem: stem.into(), float: Float::of(*dtype).unwrap(), shape: shape.clone() };
    let parts = scheme.parts(&weight).unwrap();
    let mut made: Vec<Vec<u8>> = parts.iter().map(|p| vec![0; p.len()]).collect();
    let mut out: Vec<&mut [u8]> = made.iter_mut().map(Vec::as_mut_slice).collect();
    scheme.encode(Rows { data, float: weight.float, rows: weight.rows(), cols: weight.cols() }, &mut out);
    for (part, made) in parts.iter().zip(&made) {
        let name = format!("{stem}{}", part.suffix);
        let (dtype, shape, bytes) = expected.get(&name).unwrap_or_else(|| panic!("no vector {name}"));
        assert_eq!((part.dtype, &part.shape), (*dtype, shape), "{name}");
        let row = bytes.len() / shape[0];
        for (r, (ours, theirs)) in made.chunks(row).zip(bytes.chunks(row)).enumerate() {
            assert_eq!(ours, theirs, "{name} row {r}");
        }
    }
    parts.len()
}

/// `affine_b4_g64` or `mxfp4` as a scheme of mlx.
fn scheme(word: &str, flavour: &str, rule: &str) -> std::sync::Arc<dyn Scheme> {
    let Some(affine) = word.strip_prefix("affine_b") else {
        return if word == "nvfp4" { mlx(word, &[flavour]) } else { mlx(word, &[flavour, rule]) };
    };
    let (bits, group) = affine.split_once('_').unwrap();
    mlx(&format!("{bits}bit"), &[group, "rtn", flavour])
}

/// Walks every `.weight` of a file of `<rows>.<float>.<scheme>.<part>`; all tensors must be met.
fn library(file: &str, rule: &str) {
    let expected = read(file);
    let inputs = BTreeMap::from([("fin", read("input_finite")), ("edge", read("input_edge"))]);
    let mut seen = 0;
    for stem in expected.keys().filter_map(|n| n.strip_suffix(".weight")) {
        let [rows, dtype, word] = stem.split('.').collect::<Vec<_>>()[..] else { panic!("{stem}") };
        seen += compare(&*scheme(word, "cpu", rule), &inputs[rows][dtype], &expected, stem);
    }
    assert_eq!(seen, expected.len(), "{file} has tensors that were not compared");
}

#[test]
fn mlx_0_32_4() {
    library("mlx_0.32.4", "up");
}

#[test]
fn mlx_0_31_2_chooses_the_nearest_scale() {
    library("mlx_0.31.2", "nearest");
}

/// An emulation in numpy of the Metal kernels' text: a second reading of it, not a device's bytes.
#[test]
fn metal_as_emulated() {
    let (expected, rows) = (read("metal_emulated"), read("input_finite"));
    let mut seen = 0;
    for stem in expected.keys().filter_map(|n| n.strip_suffix(".weight")) {
        let (dtype, word) = stem.split_once('.').unwrap();
        let (word, rule) = match word.rsplit_once('_') {
            Some((word, rule @ ("up" | "nearest"))) => (word, rule),
            _ => (word, "up"),
        };
        seen += compare(&*scheme(word, "metal", rule), &rows[dtype], &expected, stem);
    }
    assert_eq!(seen, expected.len());
}

#[test]
fn nan_infinity_and_magnitudes_beyond_the_formats() {
    let expected = read("edge");
    let mut seen = 3;
    for stem in expected.keys().filter_map(|n| n.strip_suffix(".weight")) {
        let [_, dtype, word] = stem.split('.').collect::<Vec<_>>()[..] else { panic!("{stem}") };
        seen += compare(&*scheme(word, "cpu", "up"), &expected[dtype], &expected, stem);
    }
    assert_eq!(seen, expected.len());
}

fn float(word: &str) -> Float {
    match word {
        "bf16" => Float::Bf16,
        "f16" => Float::F16,
        "f32" => Float::F32,
        _ => panic!("{word} is no float"),
    }
}

/// The group maxima of a test: those of the file, or every positive finite 16-bit pattern.
fn maxima(expected: &Tensors, float: Float, mode: &str) -> Vec<u8> {
    let bits = match float {
        Float::Bf16 => 1..0x7f80u16,
        Float::F16 => 1..0x7c00,
        Float::F32 => return expected[&format!("f32.{mode}.maxima")].2.clone(),
    };
    bits.flat_map(u16::to_le_bytes).collect()
}

#[test]
fn the_scale_of_every_group_maximum() {
    let expected = read("group_max");
    for (name, (_, shape, bytes)) in expected.iter().filter(|(n, _)| !n.ends_with(".maxima")) {
        let [dtype, mode, rule] = name.split('.').collect::<Vec<_>>()[..] else { panic!("{name}") };
        let float = float(dtype);
        let scheme = scheme(mode, "cpu", rule);
        let group = scheme.facts().group_size;
        let maxima = maxima(&expected, float, mode);
        let mut rows = vec![0; maxima.len() * group];
        for (row, max) in rows.chunks_mut(group * float.size()).zip(maxima.chunks(float.size())) {
            row[..max.len()].copy_from_slice(max);
        }
        let mut codes = vec![0; shape[0] * group / 8 * scheme.facts().bits as usize];
        let mut scales = vec![0; shape[0]];
        scheme.encode(Rows { data: &rows, float, rows: shape[0], cols: group }, &mut [&mut codes, &mut scales]);
        for (i, max) in maxima.chunks(float.size()).enumerate() {
            assert_eq!(scales[i], bytes[i], "{name}: scale of the maximum {max:02x?}");
        }
    }
}

#[test]
fn casts_and_plus_one() {
    let expected = read("cast");
    let all = [("bf16", Float::Bf16), ("f16", Float::F16), ("f32", Float::F32)];
    let mut seen = 0;
    for (name, from) in all {
        let src = &expected[name].2;
        let targets = all.iter().filter(|(_, to)| *to != from).map(|(n, to)| (*n, *to, false));
        for (word, to, plus_one) in targets.chain([("plus_one", from, true)]) {
            let theirs = &expected[&format!("{name}.{word}")].2;
            let mut ours = vec![0; theirs.len()];
            kernels().cast(&Cast { from, to, plus_one }, src, &mut ours);
            for (i, x) in src.chunks(from.size()).enumerate() {
                let at = i * to.size()..(i + 1) * to.size();
                assert_eq!(ours[at.clone()], theirs[at], "{name}.{word} of {x:02x?}");
            }
            seen += 1;
        }
    }
    assert_eq!(seen + 3, expected.len());
}

#[test]
fn decoding_is_the_librarys() {
    let expected = read("decode");
    for stem in expected.keys().filter_map(|n| n.strip_suffix(".values")) {
        let (dtype, word) = stem.split_once('.').unwrap();
        let values = &expected[&format!("{stem}.values")].2;
        let part = |suffix| expected.get(&format!("{stem}.{suffix}")).map(|(_, _, bytes)| bytes.as_slice());
        let parts: Vec<&[u8]> = ["weight", "scales", "biases"].into_iter().filter_map(part).collect();
        let mut ours = vec![f32::NAN; values.len() / 4];
        scheme(word, "cpu", "up").decode(&parts, float(dtype), 1, &mut ours);
        for (i, (ours, theirs)) in ours.iter().zip(values.chunks(4)).enumerate() {
            assert_eq!(ours.to_le_bytes(), theirs, "{stem} element {i}");
        }
    }
}
