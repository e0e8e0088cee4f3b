//! Products: inputs to int8, codes to panels, integer sums of both.
//!
//! Integer products work on *panels* of sixteen rows: the codes of a row are cut into quads (four
//! codes, one a byte), and the quads of sixteen rows lie side by side. A lane of a vector is a row, so
//! that the sum of a group is complete in its lane and is scaled there. A few inputs meet *rows* as they
//! lie instead, and the lanes of a row are added before they are scaled.
//!
//! Always: integer sums are exact (a group has at most 128 products below 2^15), so no table can
//! differ in them. Per row and input the groups follow each other in the order of the columns:
//! `acc = acc + sum * (scale * input_scale)`, or `acc = acc + (sum * (scale * input_scale) + bias * input_sum)`
//! where there are biases, every step rounded to f32. They do not depend on the rows or inputs beside it.
//!
//! An element that is not finite makes the scale of its group NaN, and so every product with the
//! group.

use crate::{
    kernel::{Inputs, Map, Panel, Product, Rows, Stored, Tiling},
    num::{
        bf16_to_f32, f16_to_f32,
        fp8::{e4m3_to_f32, e8m0_to_f32},
    },
    tensor::Float,
};

use super::SIGNED_ROUNDER;

/// Rows of a panel: lanes of one 512-bit register.
pub(in crate::kernel) const LANES: usize = 16;
const INFINITE: u32 = 0x7f80_0000;

/// Twice the values of e2m1 above [`Product::zero`]: what a panel holds for each code.
pub(in crate::kernel) const E2M1: [u8; 16] = [12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0];

/// One input to codes in the order of a panel's quads, and for each group its scale and the sum of its codes.
#[inline(always)]
pub(in crate::kernel) fn quantize(
    product: &Product,
    x: &[f32],
    codes: &mut [i8],
    scales: &mut [f32],
    sums: &mut [i32],
) {
    let group = product.group();
    for (((x, codes), scale), sum) in x.chunks_exact(group).zip(codes.chunks_exact_mut(group)).zip(scales).zip(sums) {
        let (inverse, step) = steps(x);
        let mut natural = [0i8; 128];
        let natural = &mut natural[..group];
        for (q, x) in natural.iter_mut().zip(x) {
            *q = ((x * inverse + SIGNED_ROUNDER).to_bits() & 0xff) as u8 as i8;
        }
        *sum = natural.iter().map(|&q| i32::from(q)).sum();
        *scale = step;
        match product.planes() {
            4 => order::<4, 16>(natural, codes),
            2 => order::<2, 8>(natural, codes),
            _ => codes.copy_from_slice(natural),
        }
    }
}

/// What elements are multiplied by, and what codes stand for: `127 / largest` and `largest / 127`.
/// Zeros, and elements so small that the scale would be subnormal, get code 0 under scale 0.
#[inline(always)]
fn steps(x: &[f32]) -> (f32, f32) {
    // Magnitudes compare as integers, NaN above all.
    let mut lanes = [0u32; LANES];
    for run in x.as_chunks::<LANES>().0 {
        for i in 0..LANES {
            lanes[i] = lanes[i].max(run[i].to_bits() & 0x7fff_ffff);
        }
    }
    let largest = lanes.into_iter().fold(0, u32::max);
    let step = f32::from_bits(largest) / 127.0;
    if largest >= INFINITE {
        (0.0, f32::NAN)
    } else if step < f32::MIN_POSITIVE {
        (0.0, 0.0)
    } else {
        (127.0 / f32::from_bits(largest), step)
    }
}

/// Codes in the order in which shifting a packed dword brings them out: every `PLANES`-th together.
#[inline(always)]
fn order<const PLANES: usize, const RUN: usize>(natural: &[i8], codes: &mut [i8]) {
    for (from, to) in natural.as_chunks::<RUN>().0.iter().zip(codes.as_chunks_mut::<RUN>().0) {
        for i in 0..RUN {
            to[i] = from[i % 4 * PLANES + i / 4];
        }
    }
}

/// A quad of an input as one lane of a vector.
#[inline(always)]
pub(in crate::kernel) fn dword(quad: [i8; 4]) -> i32 {
    i32::from_le_bytes([quad[0] as u8, quad[1] as u8, quad[2] as u8, quad[3] as u8])
}

/// The packed dwords of up to sixteen rows, side by side, cut into planes of one code a byte. Rows
/// that are not there are zeros.
#[inline(always)]
pub(in crate::kernel) fn tile(tiling: &Tiling, src: &[u8], out: &mut [[u8; 64]]) {
    for row in 0..LANES {
        let quads = out.chunks_exact_mut(tiling.planes);
        if row >= tiling.rows {
            quads.flatten().for_each(|quad| quad[row * 4..row * 4 + 4].fill(0));
            continue;
        }
        for (quads, dword) in quads.zip(src[row * tiling.stride..].as_chunks::<4>().0) {
            let mut rest = u32::from_le_bytes(*dword);
            for quad in quads {
                quad[row * 4..row * 4 + 4].copy_from_slice(&plane(tiling, rest));
                rest >>= 8 / tiling.planes;
            }
        }
    }
}

/// The lowest code of each byte, as a panel holds it.
#[inline(always)]
fn plane(tiling: &Tiling, dword: u32) -> [u8; 4] {
    let mask = u32::from(u8::MAX >> (8 - 8 / tiling.planes)) * 0x0101_0101;
    let codes = (dword & mask).to_le_bytes();
    match tiling.map {
        Map::Same => codes,
        Map::E2m1 => codes.map(|q| E2M1[usize::from(q & 15)]),
        Map::Signed => codes.map(|q| q ^ 0x80),
    }
}

/// Scales or biases to f32; those of e2m1 halved, since its codes are twice the values.
#[inline(always)]
pub(in crate::kernel) fn widen(stored: Stored, src: &[u8], out: &mut [f32]) {
    match stored {
        Stored::Float(Float::F32) => each(src, out, f32::from_le_bytes),
        Stored::Float(Float::Bf16) => each(src, out, |b| bf16_to_f32(u16::from_le_bytes(b))),
        Stored::Float(Float::F16) => each(src, out, |b| f16_to_f32(u16::from_le_bytes(b))),
        Stored::E8m0 => each(src, out, |[b]| e8m0_to_f32(b) * 0.5),
        Stored::E4m3 => each(src, out, |[b]| e4m3_to_f32(b) * 0.5),
    }
}

#[inline(always)]
fn each<const N: usize>(src: &[u8], out: &mut [f32], value: impl Fn([u8; N]) -> f32) {
    for (src, out) in src.as_chunks::<N>().0.iter().zip(out) {
        *out = value(*src);
    }
}

/// What packed zero points add to each element under scales, in rows of so many blocks.
#[inline(always)]
pub(in crate::kernel) fn zero_points(bits: u32, blocks: usize, src: &[u8], scales: &[f32], out: &mut [f32]) {
    match bits {
        2 => zeros::<2, 4>(blocks, src, scales, out),
        4 => zeros::<4, 2>(blocks, src, scales, out),
        _ => zeros::<8, 1>(blocks, src, scales, out),
    }
}

/// `N` zero points in a byte.
#[inline(always)]
fn zeros<const BITS: usize, const N: usize>(blocks: usize, src: &[u8], scales: &[f32], out: &mut [f32]) {
    let mask = u8::MAX >> (8 - BITS);
    let rows = src.chunks_exact(blocks.div_ceil(N)).zip(scales.chunks_exact(blocks));
    for ((src, scales), out) in rows.zip(out.chunks_exact_mut(blocks)) {
        let ((scales, last_scales), (out, last_out)) = (scales.as_chunks::<N>(), out.as_chunks_mut::<N>());
        for ((byte, scales), out) in src.iter().zip(scales).zip(&mut *out) {
            for i in 0..N {
                out[i] = (0.0 - f32::from(byte >> (i * BITS) & mask)) * scales[i];
            }
        }
        for (i, (scale, last)) in last_scales.iter().zip(last_out).enumerate() {
            *last = (0.0 - f32::from(src[out.len()] >> (i * BITS) & mask)) * scale;
        }
    }
}

/// Adds to `acc` (`[panel][input][row]`) what a run of whole groups contributes.
#[inline(always)]
pub(in crate::kernel) fn accumulate(
    product: &Product,
    panels: &[Panel<'_>],
    inputs: &Inputs<'_>,
    acc: &mut [[f32; LANES]],
) {
    let (quads, width) = (product.group() / 4, inputs.width);
    for (panel, acc) in panels.iter().zip(acc.chunks_exact_mut(width)) {
        for (g, codes) in panel.codes.chunks_exact(quads).enumerate() {
            for (w, acc) in acc.iter_mut().enumerate() {
                let at = g * width + w;
                let mut sums = [inputs.starts[at]; LANES];
                for (quad, x) in codes.iter().zip(inputs.codes[g * quads * width..].iter().skip(w).step_by(width)) {
                    for i in 0..LANES {
                        for b in 0..4 {
                            sums[i] += i32::from(quad[i * 4 + b]) * i32::from(x[b]);
                        }
                    }
                }
                let bias = panel.biases.get(g).zip(inputs.sums.get(at));
                combine(&sums, &panel.scales[g], inputs.scales[at], bias, acc);
            }
        }
    }
}

/// One group of sixteen rows and one input: integer sums to f32, scaled and added.
#[inline(always)]
pub(in crate::kernel) fn combine(
    sums: &[i32; LANES],
    scales: &[f32; LANES],
    input_scale: f32,
    bias: Option<(&[f32; LANES], &f32)>,
    acc: &mut [f32; LANES],
) {
    let mut terms = [0.0; LANES];
    for i in 0..LANES {
        terms[i] = sums[i] as f32 * (scales[i] * input_scale);
    }
    if let Some((biases, input_sum)) = bias {
        for i in 0..LANES {
            terms[i] += biases[i] * input_sum;
        }
    }
    for i in 0..LANES {
        acc[i] += terms[i];
    }
}

/// Adds to the sums of up to sixteen rows what a run of whole groups contributes with one input, which
/// lies in lines.
#[inline(always)]
pub(in crate::kernel) fn accumulate_rows(
    product: &Product,
    rows: &Rows<'_>,
    inputs: &Inputs<'_>,
    acc: &mut [f32; LANES],
) {
    let size = product.group_bytes();
    for (r, acc) in acc.iter_mut().enumerate().take(rows.count) {
        let codes = &rows.codes[r * rows.stride..];
        for g in 0..rows.groups {
            let mut sum = inputs.starts[g];
            for (i, bytes) in codes[g * size..][..size].as_chunks::<4>().0.iter().enumerate() {
                sum += quads(product, bytes, g * size / 4 + i, inputs.codes);
            }
            let mut term = sum as f32 * (rows.scales[r * rows.pitch + g] * inputs.scales[g]);
            if let Some(bias) = rows.biases.get(r * rows.pitch + g) {
                term += bias * inputs.sums[g];
            }
            *acc += term;
        }
    }
}

/// The products of the codes of four bytes, the `n`-th of their row.
#[inline(always)]
fn quads(product: &Product, bytes: &[u8; 4], n: usize, x: &[[i8; 4]]) -> i32 {
    let (bits, mut sum) = (8 / product.planes(), 0);
    for plane in 0..product.planes() {
        let x = &x[(n / 16 * product.planes() + plane) * 16 + n % 16];
        for b in 0..4 {
            let code = bytes[b] >> (plane * bits) & u8::MAX >> (8 - bits);
            let code = match product.map() {
                Map::Same => code,
                Map::E2m1 => E2M1[usize::from(code & 15)],
                Map::Signed => code ^ 0x80,
            };
            sum += i32::from(code) * i32::from(x[b]);
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::num::fp4::e2m1_to_f32;

    #[test]
    fn panels_hold_twice_the_values_of_e2m1() {
        for code in 0..16u8 {
            let held = i32::from(E2M1[usize::from(code)]) - Product::Mxfp4.zero();
            assert_eq!(held as f32, 2.0 * e2m1_to_f32(code), "{code}");
        }
    }
}
