//! Blocks of 64 elements that share their largest magnitude, each coded by one of sixteen values: the
//! arithmetic of bitsandbytes' `quantize_4bit` (`quant::format::bnb` says what it follows).
//!
//! The code of a book's entry is found by fifteen comparisons and no look-up: going down from the largest
//! value, every bound that is not below the element changes the code by what its two neighbours differ.
//!
//! Always: a block with a NaN has the NaN that torch finds, and every element the code of the largest value.

use crate::{num::book::Book, tensor::Float};

use super::{sixteen::LANES, widen};

/// Elements of a block.
pub(in crate::kernel) const BLOCK: usize = 64;
/// Bits of infinity: greater magnitudes are NaN.
const INFINITE: u32 = 0x7f80_0000;
/// What the reference divides by at the least.
const LEAST: f32 = 1e-38;

/// Two codes a byte, the first one highest, and the largest magnitudes.
#[inline(always)]
pub(in crate::kernel) fn quantize(float: Float, book: &Book, src: &[u8], codes: &mut [u8], absmax: &mut [f32]) {
    let steps = Steps::of(book);
    let blocks = src.chunks(BLOCK * float.size()).zip(codes.chunks_mut(BLOCK / 2));
    let mut values = [0f32; BLOCK];
    for ((src, codes), absmax) in blocks.zip(absmax) {
        let count = src.len() / float.size();
        *absmax = load(float, src, &mut values);
        scale(&mut values, *absmax, count == BLOCK);
        let mut coded = [0u8; BLOCK];
        steps.code(&values, &mut coded);
        for (byte, pair) in codes.iter_mut().zip(coded.as_chunks::<2>().0) {
            let pair = u16::from_le_bytes(*pair);
            *byte = ((pair << 4 | pair >> 8) & 0xff) as u8;
        }
    }
}

/// The largest magnitude of every block.
#[inline(always)]
pub(in crate::kernel) fn maxima(float: Float, src: &[u8], absmax: &mut [f32]) {
    let mut values = [0f32; BLOCK];
    for (src, absmax) in src.chunks(BLOCK * float.size()).zip(absmax) {
        *absmax = load(float, src, &mut values);
    }
}

/// A block as f32, filled up with zeros, and its largest magnitude as it is stored.
#[inline(always)]
fn load(float: Float, src: &[u8], values: &mut [f32; BLOCK]) -> f32 {
    let count = src.len() / float.size();
    if count == BLOCK {
        widen(float, src, values);
        largest(values)
    } else {
        values.fill(0.0);
        widen(float, src, &mut values[..count]);
        last(&values[..count])
    }
}

#[inline(always)]
fn largest(values: &[f32; BLOCK]) -> f32 {
    let most = magnitude(values);
    if most > INFINITE { first_nan(values) } else { f32::from_bits(most) }
}

/// The bits of the largest magnitude; of any NaN where there is one.
#[inline(always)]
pub(in crate::kernel) fn magnitude<const N: usize>(values: &[f32; N]) -> u32 {
    let mut most = [0i32; LANES];
    for values in values.as_chunks::<LANES>().0 {
        for i in 0..LANES {
            let bits = (values[i].to_bits() & 0x7fff_ffff).cast_signed();
            most[i] = if bits > most[i] { bits } else { most[i] };
        }
    }
    most.into_iter().fold(0, i32::max).cast_unsigned()
}

/// Torch's maximum along a dimension stops at the first NaN.
#[cold]
fn first_nan(values: &[f32]) -> f32 {
    values.iter().copied().find(|w| w.is_nan()).unwrap_or(f32::NAN).abs()
}

/// The magnitude that the reference stores of the elements after the last whole block: another reduction
/// than the blocks', with [`LEAST`] for less and another NaN.
#[cold]
fn last(values: &[f32]) -> f32 {
    if values.len() == 1 && values[0].is_nan() {
        return values[0].abs();
    }
    if values.iter().any(|w| w.is_nan()) {
        return f32::from_bits(u32::MAX);
    }
    values.iter().fold(LEAST, |most, w| most.max(w.abs()))
}

/// Elements by the magnitude: whole blocks multiply with the reciprocal, the last one divides.
#[inline(always)]
fn scale(values: &mut [f32; BLOCK], absmax: f32, whole: bool) {
    if whole {
        let inverse = 1.0 / if absmax < LEAST { LEAST } else { absmax };
        values.iter_mut().for_each(|w| *w *= inverse);
    } else {
        values.iter_mut().for_each(|w| *w /= absmax);
    }
}

/// A book as what a code changes by from one bound to the next.
struct Steps {
    bounds: [f32; 15],
    steps: [u32; 15],
    last: u32,
}

impl Steps {
    #[inline(always)]
    fn of(book: &Book) -> Self {
        let code = |i: usize| u32::from(book.order[i]);
        let mut steps = [0; 15];
        for (i, step) in steps.iter_mut().enumerate() {
            *step = code(i).wrapping_sub(code(i + 1));
        }
        Self { bounds: book.bounds, steps, last: code(15) }
    }

    /// Bound by bound over the whole block: run by run, the compiler takes one of each of several runs.
    #[inline(always)]
    fn code(&self, values: &[f32; BLOCK], codes: &mut [u8; BLOCK]) {
        let mut sums = [self.last; BLOCK];
        for at in 0..self.bounds.len() {
            let (bound, step) = (self.bounds[at], self.steps[at]);
            for i in 0..BLOCK {
                let change = if bound >= values[i] { step } else { 0 };
                sums[i] = sums[i].wrapping_add(change);
            }
        }
        for i in 0..BLOCK {
            codes[i] = (sums[i] & 0xff) as u8;
        }
    }
}
