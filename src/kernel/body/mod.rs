//! Every kernel once, as safe code: the specification that the instances under `scalar` and `x86`
//! compile for their instruction sets.
//!
//! A body walks its run in blocks that fit the first-level cache and does one thing to a whole block
//! at a time (widen, reduce, fit, code, pack): each step is a plain loop that the compiler turns into
//! vectors, and no step is repeated for each combination of dtype, width and group.
//!
//! Always: `#[inline(always)]`, so that a body takes the features of the instance around it; fixed
//! lane counts and no fused multiply-add, so that all instances compute the same bits; comparisons
//! by compare-and-select in the order written, which is what decides NaN. Roundings are done by
//! adding 2^23, never by a library call.

pub(super) mod affine;
pub(super) mod attention;
pub(super) mod blocks;
pub(super) mod book;
pub(super) mod cast;
pub(super) mod columns;
pub(super) mod dot;
pub(super) mod eight;
pub(super) mod exponent;
pub(super) mod finite;
pub(super) mod fixed;
pub(super) mod grid;
pub(super) mod groups;
pub(super) mod microscaling;
pub(super) mod multiply;
pub(super) mod pack;
mod row;
pub(super) mod scaled;
pub(super) mod search;
pub(super) mod sixteen;

use crate::{
    num::{bf16_from_f32, bf16_to_f32, f16_from_f32, f16_to_f32},
    tensor::Float,
};

/// Elements of a block: a multiple of every group size; 8 KiB as f32.
pub(super) const BLOCK: usize = 2048;

/// 2^23: added to a value in 0..2^23 it leaves the value rounded half to even in the low bits.
pub(super) const ROUNDER: f32 = 8_388_608.0;

/// 1.5 * 2^23: added to a value of at most 2^22 in magnitude it leaves the value rounded half to even, in two's complement in
/// the low bits.
pub(super) const SIGNED_ROUNDER: f32 = 12_582_912.0;

/// The values of little-endian elements, exactly. As many as `out` holds.
#[inline(always)]
pub(super) fn widen(float: Float, src: &[u8], out: &mut [f32]) {
    match float {
        Float::Bf16 => widen_halves(src, out, bf16_to_f32),
        Float::F16 => widen_halves(src, out, f16_to_f32),
        Float::F32 => {
            for (x, b) in out.iter_mut().zip(src.as_chunks::<4>().0) {
                *x = f32::from_le_bytes(*b);
            }
        }
    }
}

#[inline(always)]
fn widen_halves(src: &[u8], out: &mut [f32], value: impl Fn(u16) -> f32) {
    for (x, b) in out.iter_mut().zip(src.as_chunks::<2>().0) {
        *x = value(u16::from_le_bytes(*b));
    }
}

/// Values rounded to a float and written little endian.
#[inline(always)]
pub(super) fn narrow(float: Float, src: &[f32], out: &mut [u8]) {
    match float {
        Float::Bf16 => narrow_halves(src, out, bf16_from_f32),
        Float::F16 => narrow_halves(src, out, f16_from_f32),
        Float::F32 => {
            for (b, x) in out.as_chunks_mut::<4>().0.iter_mut().zip(src) {
                *b = x.to_le_bytes();
            }
        }
    }
}

#[inline(always)]
fn narrow_halves(src: &[f32], out: &mut [u8], bits: impl Fn(f32) -> u16) {
    for (b, x) in out.as_chunks_mut::<2>().0.iter_mut().zip(src) {
        *b = bits(*x).to_le_bytes();
    }
}

/// Rounds every value to a float and back: a step of arithmetic in that float.
#[inline(always)]
pub(super) fn round_to(float: Float, values: &mut [f32]) {
    match float {
        Float::Bf16 => values.iter_mut().for_each(|x| *x = bf16_to_f32(bf16_from_f32(*x))),
        Float::F16 => values.iter_mut().for_each(|x| *x = f16_to_f32(f16_from_f32(*x))),
        Float::F32 => {}
    }
}

/// The smaller of two, the second where they do not compare: a NaN in the first is passed over.
#[inline(always)]
pub(super) fn smaller(x: f32, or: f32) -> f32 {
    if x < or { x } else { or }
}

/// The larger of two, the second where they do not compare.
#[inline(always)]
pub(super) fn larger(x: f32, or: f32) -> f32 {
    if x > or { x } else { or }
}

/// Whether an error is less than another, or a number where the other is none.
#[inline(always)]
fn is_better(after: f32, before: f32) -> bool {
    after < before || (before.is_nan() && after < f32::INFINITY)
}
