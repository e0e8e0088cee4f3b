//! Directories of weights for tests of the runtime.

use std::{fs, path::Path, sync::Arc};

use quantfs::{
    container::safetensors,
    quant::{
        Axis, Content, FORMATS, Scheme, Weight,
        format::{
            matmul_nbits::{Block, MatMulNBits},
            sym::{Per, Sym},
        },
    },
    tensor::{Dtype, Float, Rows, TensorInfo},
};

/// A tensor to be written.
pub(crate) type Written = (String, Dtype, Vec<usize>, Vec<u8>);

pub(crate) fn tensor(name: &str, dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> Written {
    (name.to_owned(), dtype, shape.to_vec(), bytes)
}

pub(crate) fn f32s(name: &str, shape: &[usize], values: &[f32]) -> Written {
    tensor(name, Dtype::F32, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

/// Writes a file, its data at a multiple of `align` bytes.
pub(crate) fn write(path: &Path, tensors: &[Written], align: usize) {
    let infos: Vec<TensorInfo> = tensors
        .iter()
        .map(|(name, dtype, shape, _)| TensorInfo { name: name.clone(), dtype: *dtype, shape: shape.clone() })
        .collect();
    let mut bytes = safetensors::render(&infos, None, align).unwrap().preamble;
    tensors.iter().for_each(|(_, _, _, data)| bytes.extend(data));
    fs::write(path, bytes).unwrap();
}

/// A tensor of [`values`], its name's length their seed.
pub(crate) fn bf16(name: &str, shape: &[usize]) -> Written {
    let count = shape.iter().product();
    let data = values(name.len() as u64, count).into_iter().flat_map(|v| half::bf16::from_f32(v).to_le_bytes());
    tensor(name, Dtype::BF16, shape, data.collect())
}

/// Values between -1 and 1, the same for the same seed.
pub(crate) fn values(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// The parts of a weight of some values, as a scheme makes them.
pub(crate) fn quantized(scheme: &dyn Scheme, stem: &str, shape: &[usize], values: &[f32]) -> Vec<Written> {
    let weight = Weight { stem: stem.to_owned(), float: Float::F32, shape: shape.to_vec() };
    let parts = scheme.parts(&weight).unwrap();
    let mut made: Vec<Vec<u8>> = parts.iter().map(|p| vec![0; p.len()]).collect();
    for (part, bytes) in parts.iter().zip(&mut made) {
        if let Content::Constant(constant) = &part.content {
            bytes.copy_from_slice(constant);
        }
    }
    let encoded = made.iter_mut().zip(&parts).filter(|(_, part)| part.is_encoded());
    let mut out: Vec<&mut [u8]> = encoded.map(|(made, _)| made.as_mut_slice()).collect();
    let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let flat = scheme.banding(&weight).axis == Axis::Flat;
    let (rows, cols) = if flat { (1, weight.elements()) } else { (weight.rows(), weight.cols()) };
    let all = Rows { data: &data, float: Float::F32, rows, cols };
    // A run in flat order does not say how many rows it is: the survey is told.
    let informed = scheme.survey(&weight).map(|survey| survey.conclude(&[survey.look(all)]));
    informed.as_deref().unwrap_or(scheme).encode(all, &mut out);
    parts.iter().zip(made).map(|(p, bytes)| tensor(&format!("{stem}{}", p.suffix), p.dtype, &p.shape, bytes)).collect()
}

/// The least number of rows, so many or more, of which a scheme stores a matrix: some pack rows together.
pub(crate) fn fitting(scheme: &dyn Scheme, rows: usize, cols: usize) -> usize {
    let takes = |rows: &usize| {
        let weight = Weight { stem: String::new(), float: Float::F32, shape: vec![*rows, cols] };
        scheme.parts(&weight).is_ok()
    };
    let tries = [1, 32, 128].map(|unit| rows.next_multiple_of(unit));
    tries.into_iter().find(takes).unwrap_or(rows)
}

/// A scheme of the table, `mlx`, `4bit`, its first options.
pub(crate) fn scheme(format: &str, name: &str) -> Arc<dyn Scheme> {
    let format = FORMATS.iter().find(|f| f.name() == format).unwrap();
    let options: Vec<&str> = format.options(name).iter().map(|list| list[0]).collect();
    format.bind(name, &options).unwrap().unwrap()
}

/// Every scheme of the table under its default choices and each group, and those beside the table.
pub(crate) fn schemes() -> Vec<(String, Arc<dyn Scheme>)> {
    let mut found: Vec<(String, Arc<dyn Scheme>)> = vec![];
    for format in FORMATS {
        for name in format.schemes() {
            let lists = format.options(name);
            for first in lists.first().copied().unwrap_or(&[""]) {
                let words: Vec<&str> = lists.iter().skip(1).map(|list| list[0]).collect();
                let options = if lists.is_empty() { vec![] } else { [&[*first][..], &words].concat() };
                if let Some(bound) = format.bind(name, &options).unwrap() {
                    found.push((format!("{}-{name}-{}", format.name(), options.join("-")), bound));
                }
            }
        }
    }
    for per in [Per::Row, Per::Tensor] {
        found.push((format!("sym-{per:?}"), Arc::new(Sym::new(per))));
    }
    for bits in [2, 4, 8] {
        for block in [Block::Of(16), Block::Of(128), Block::Row] {
            for symmetric in [true, false] {
                let bound = MatMulNBits::new(bits, block, symmetric).unwrap();
                found.push((format!("nbits-{bits}-{block:?}-{symmetric}"), Arc::new(bound)));
            }
        }
    }
    found
}
