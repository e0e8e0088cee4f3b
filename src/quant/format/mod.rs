//! The registry of formats: one file a format, one line here.
//!
//! Beside the formats lie the schemes that several of them share: [`affine`], [`microscaling`], [`columns`], and
//! [`cast`], which is no format of its own but what the plan gives to dense tensors; [`dense`], which shows
//! another scheme's values; and [`matmul_nbits`], which is [`onnx`]'s, and which the runtime makes, too.

pub mod affine;
pub mod awq;
pub mod bnb;
pub mod cast;
pub mod columns;
pub mod ct;
pub mod dense;
pub mod fp8;
pub mod gptq;
pub mod matmul_nbits;
pub mod microscaling;
pub mod mlx;
pub mod onnx;
pub mod source;
pub mod sym;
pub mod zimage;

use crate::{
    kernel::{self, kernels},
    quant::{Format, Module, Recognized, Unsupported, Weight},
    tensor::{Float, byte_len},
};

/// All formats, in the order of the table.
pub static FORMATS: &[&dyn Format] = &[
    &mlx::Mlx,
    &zimage::Zimage,
    &ct::CompressedTensors,
    &fp8::Fp8,
    &gptq::Gptq,
    &awq::Awq,
    &bnb::BitsAndBytes,
    &sym::Symmetric,
    &onnx::Onnx,
    &source::Source,
];

/// How a format of the table recognizes a module.
pub(super) fn recognize(module: &Module<'_>) -> Option<Result<Recognized, Unsupported>> {
    FORMATS.iter().find_map(|format| format.recognize(module))
}

/// Revision of all encodings together: it goes up when the bytes of any scheme change.
const ENCODING: u32 = 2;

/// Refuses what no grouped packing can hold: vectors, empty weights, rows that are no whole groups.
fn check_groups(weight: &Weight, group: usize) -> Result<(), Unsupported> {
    let cols = weight.cols();
    if weight.shape.len() < 2 {
        return Err(Unsupported(format!(
            "it has shape {:?}; only matrices and stacks of them are quantized",
            weight.shape
        )));
    }
    if weight.shape.contains(&0) {
        return Err(Unsupported(format!("it has shape {:?} and no elements", weight.shape)));
    }
    if byte_len(weight.float.dtype(), &weight.shape).is_none() {
        return Err(Unsupported(format!("its shape {:?} is larger than any memory", weight.shape)));
    }
    if !cols.is_multiple_of(group) {
        return Err(Unsupported(format!("its rows of {cols} elements are no whole groups of {group}")));
    }
    Ok(())
}

/// A weight's shape with another last dimension.
fn with_cols(weight: &Weight, cols: usize) -> Vec<usize> {
    let mut shape = weight.shape.clone();
    if let Some(last) = shape.last_mut() {
        *last = cols;
    }
    shape
}

/// The values of little-endian elements, exactly.
///
/// # Panics
/// If `out` has room for another number of them.
pub(crate) fn widen(from: Float, bytes: &[u8], out: &mut [f32]) {
    let job = kernel::Cast { from, to: Float::F32, plus_one: false };
    kernels().cast(&job, bytes, bytemuck::cast_slice_mut(out));
    if cfg!(target_endian = "big") {
        out.iter_mut().for_each(|x| *x = f32::from_bits(x.to_bits().swap_bytes()));
    }
}

/// Values rounded half to even to little-endian elements.
fn narrow(to: Float, values: &[f32], out: &mut [u8]) {
    let wide: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    kernels().cast(&kernel::Cast { from: Float::F32, to, plus_one: false }, &wide, out);
}

/// A scheme or a combination of options that a format does not have.
fn no_such(format: &str, scheme: &str, options: &[&str]) -> Unsupported {
    Unsupported(format!("{format} has no scheme {scheme} with the options {options:?}"))
}

/// The size in a group's option word, `g64`.
fn group_size(word: &str) -> Option<usize> {
    word.strip_prefix('g')?.parse().ok()
}
