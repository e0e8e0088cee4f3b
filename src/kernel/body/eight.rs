//! Codes of eight bits by a multiplication: bitsandbytes' `int8_vectorwise_quant` of rows, and e4m3 in tiles of
//! 128 rows and columns as transformers' `Fp8Quantize` makes them (`quant::format::{bnb, fp8}` say what they
//! follow).

use crate::{
    num::{f16_from_f32, f16_to_f32, fp8::e4m3_from_f32},
    tensor::Float,
};

use super::{SIGNED_ROUNDER, blocks::largest, book::magnitude, widen};

/// Rows and columns of a tile.
pub(in crate::kernel) const TILE: usize = 128;
/// The largest e4m3.
const MOST: f32 = 448.0;
/// Bits of infinity.
const INFINITE: u32 = 0x7f80_0000;
/// Elements that are widened together.
const RUN: usize = 256;

/// Codes in two's complement of a row, which is rounded to f16 first, and its largest magnitude. A row with a
/// NaN has codes 0; beside an infinite element all codes are 0 too.
#[inline(always)]
pub(in crate::kernel) fn vectorwise(float: Float, row: &[u8], codes: &mut [u8]) -> f32 {
    let mut values = [0f32; RUN];
    let (mut most, mut odd) = (0f32, false);
    for src in row.chunks(RUN * float.size()) {
        let values = &mut values[..src.len() / float.size()];
        halves(float, src, values);
        most = most.max(largest(values));
        odd |= values.iter().fold(0u32, |nans, w| nans | u32::from(w.is_nan())) != 0;
    }
    if odd {
        codes.fill(0);
        return f32::NAN;
    }
    // A scalar by a tensor is a reciprocal in torch.
    let factor = 1.0 / most * 127.0;
    for (src, codes) in row.chunks(RUN * float.size()).zip(codes.chunks_mut(RUN)) {
        let values = &mut values[..codes.len()];
        halves(float, src, values);
        for (code, w) in codes.iter_mut().zip(values) {
            let exact = *w * factor;
            let exact = if exact.is_nan() { 0.0 } else { exact };
            *code = ((exact + SIGNED_ROUNDER).to_bits() & 0xff) as u8;
        }
    }
    most
}

#[inline(always)]
fn halves(float: Float, src: &[u8], values: &mut [f32]) {
    widen(float, src, values);
    if float != Float::F16 {
        values.iter_mut().for_each(|w| *w = f16_to_f32(f16_from_f32(*w)));
    }
}

/// Codes of 128 rows, and what the codes of each tile are multiplied with.
#[inline(always)]
pub(in crate::kernel) fn tiles(float: Float, cols: usize, src: &[u8], codes: &mut [u8], inverses: &mut [f32]) {
    let (size, mut values) = (float.size(), [0f32; TILE]);
    for (tile, inverse) in inverses.iter_mut().enumerate() {
        let mut most = 0;
        for row in src.chunks_exact(cols * size) {
            widen(float, &row[tile * TILE * size..][..TILE * size], &mut values);
            most = most.max(magnitude(&values));
        }
        // Neither zeros nor NaN are greater than zero: such tiles are not scaled.
        let plain = most == 0 || most > INFINITE;
        let scale = if plain { 1.0 } else { 1.0 / f32::from_bits(most) * MOST };
        *inverse = 1.0 / scale;
        for (row, codes) in src.chunks_exact(cols * size).zip(codes.chunks_exact_mut(cols)) {
            widen(float, &row[tile * TILE * size..][..TILE * size], &mut values);
            for (code, w) in codes[tile * TILE..][..TILE].iter_mut().zip(&values) {
                *code = saturated(*w, scale);
            }
        }
    }
}

/// `w * scale` as e4m3. NaN keeps its sign; the NaN of zero times infinity is negative, as it is on x86.
#[inline(always)]
fn saturated(w: f32, scale: f32) -> u8 {
    let scaled = w * scale;
    let sign = if w.is_nan() { (w.to_bits() >> 24 & 0x80) as u8 } else { 0x80 };
    if scaled.is_nan() { 0x7f | sign } else { e4m3_from_f32(scaled) }
}
