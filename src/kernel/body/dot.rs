//! Products: inputs to int8, codes to panels, integer sums of both; and sums in f32.
//!
//! Integer products work on *panels* of sixteen rows: the codes of a row are cut into quads (four
//! codes, one a byte), and the quads of sixteen rows lie side by side. A lane of a vector is a row, so
//! that the sum of a group is complete in its lane and is scaled there; sums of several lanes never meet.
//!
//! Always: integer sums are exact (a group has at most 128 products below 2^15), so no table can
//! differ in them. Per row and input the groups follow each other in the order of the columns:
//! `acc = acc + sum * (scale * input_scale)`, or `acc = acc + (sum * (scale * input_scale) + bias * input_sum)`
//! where there are biases, every step rounded to f32. Sums in f32 have sixteen partial sums, column c in the sum c mod 16, and add these
//! in halves. Neither depends on the rows or inputs beside it.
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

/// Rows of a panel: lanes of one 512-bit register.
pub(in crate::kernel) const LANES: usize = 16;
/// 1.5 * 2^23: added to a value of small magnitude it leaves the value rounded half to even in the
/// low bits, in two's complement.
const SIGNED_ROUNDER: f32 = 12_582_912.0;
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

/// Scales or biases of sixteen rows as they are stored, four bytes of each row after the other, to
/// little-endian f32, `[group][row]`; those of e2m1 halved, since its codes are twice the values.
#[inline(always)]
pub(in crate::kernel) fn parameters(product: &Product, src: &[[u8; 64]], out: &mut [[u8; 64]]) {
    match product.stored() {
        Stored::Float(Float::F32) => out.copy_from_slice(src),
        Stored::Float(Float::Bf16) => each::<2>(src, out, low_bf16),
        Stored::Float(Float::F16) => each::<2>(src, out, low_f16),
        Stored::E8m0 => each::<4>(src, out, half_low_e8m0),
        Stored::E4m3 => each::<4>(src, out, half_low_e4m3),
    }
}

// Functions, not closures: these would be compiled for the baseline.

#[inline(always)]
fn low_bf16(dword: u32) -> f32 {
    bf16_to_f32((dword & 0xffff) as u16)
}

#[inline(always)]
fn low_f16(dword: u32) -> f32 {
    f16_to_f32((dword & 0xffff) as u16)
}

#[inline(always)]
fn half_low_e8m0(dword: u32) -> f32 {
    e8m0_to_f32((dword & 0xff) as u8) * 0.5
}

#[inline(always)]
fn half_low_e4m3(dword: u32) -> f32 {
    e4m3_to_f32((dword & 0xff) as u8) * 0.5
}

/// What packed zero points of sixteen rows, four bytes of each row after the other, add to each element
/// under scales, `[group][row]`.
#[inline(always)]
pub(in crate::kernel) fn zero_points(bits: u32, src: &[[u8; 64]], scales: &[[u8; 64]], out: &mut [[u8; 64]]) {
    match bits {
        2 => each::<16>(src, out, minus_low_2),
        4 => each::<8>(src, out, minus_low_4),
        _ => each::<4>(src, out, minus_low_8),
    }
    let scales = scales.as_flattened().as_chunks::<4>().0;
    for (out, scale) in out.as_flattened_mut().as_chunks_mut::<4>().0.iter_mut().zip(scales) {
        *out = (f32::from_le_bytes(*out) * f32::from_le_bytes(*scale)).to_le_bytes();
    }
}

#[inline(always)]
fn minus_low_2(dword: u32) -> f32 {
    -((dword & 3) as i32) as f32
}

#[inline(always)]
fn minus_low_4(dword: u32) -> f32 {
    -((dword & 15) as i32) as f32
}

#[inline(always)]
fn minus_low_8(dword: u32) -> f32 {
    -((dword & 0xff) as i32) as f32
}

/// The `N` values of each dword, each to a group of its own; `value` looks at the low bits only.
#[inline(always)]
fn each<const N: usize>(src: &[[u8; 64]], out: &mut [[u8; 64]], value: impl Fn(u32) -> f32 + Copy) {
    let (whole, rest) = out.as_chunks_mut::<N>();
    for (src, out) in src.iter().zip(&mut *whole) {
        values(src, out, value);
    }
    if !rest.is_empty() {
        let mut last = [[0; 64]; N];
        values(&src[whole.len()], &mut last, value);
        rest.copy_from_slice(&last[..rest.len()]);
    }
}

#[inline(always)]
fn values<const N: usize>(src: &[u8; 64], out: &mut [[u8; 64]; N], value: impl Fn(u32) -> f32) {
    let mut dwords = [0; LANES];
    for (dword, bytes) in dwords.iter_mut().zip(src.as_chunks::<4>().0) {
        *dword = u32::from_le_bytes(*bytes);
    }
    for n in 0..N {
        let mut values = [0.0; LANES];
        for lane in 0..LANES {
            values[lane] = value(dwords[lane] >> (32 / N * n));
        }
        for (out, value) in out[n].as_chunks_mut::<4>().0.iter_mut().zip(values) {
            *out = value.to_le_bytes();
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
    scales: &[u8; 64],
    input_scale: f32,
    bias: Option<(&[u8; 64], &f32)>,
    acc: &mut [f32; LANES],
) {
    let scales = scales.as_chunks::<4>().0;
    let mut terms = [0.0; LANES];
    for i in 0..LANES {
        terms[i] = sums[i] as f32 * (f32::from_le_bytes(scales[i]) * input_scale);
    }
    if let Some((biases, input_sum)) = bias {
        let biases = biases.as_chunks::<4>().0;
        for i in 0..LANES {
            terms[i] += f32::from_le_bytes(biases[i]) * input_sum;
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
    for g in 0..rows.scales.len() {
        let mut sums = [inputs.starts[g]; LANES];
        for (sum, row) in sums.iter_mut().zip(rows.codes.chunks(rows.stride)).take(rows.count) {
            for (i, bytes) in row[g * size..][..size].as_chunks::<4>().0.iter().enumerate() {
                *sum += quads(product, bytes, g * size / 4 + i, inputs.codes);
            }
        }
        let bias = rows.biases.get(g).zip(inputs.sums.get(g));
        combine(&sums, &rows.scales[g], inputs.scales[g], bias, acc);
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

/// `y[b, r] = w[r] . x[b]` in f32; `y` is `[inputs, rows]`.
#[inline(always)]
pub(in crate::kernel) fn product(cols: usize, w: &[f32], x: &[f32], y: &mut [f32]) {
    let rows = w.len() / cols;
    for (n, x) in x.chunks(4 * cols).enumerate() {
        for (r, row) in w.chunks_exact(cols).enumerate() {
            let at = |b: usize| (n * 4 + b) * rows + r;
            if x.len() == 4 * cols {
                let (ab, cd) = x.split_at(2 * cols);
                let (a, b) = ab.split_at(cols);
                let (c, d) = cd.split_at(cols);
                for (b, sum) in dots(row, [a, b, c, d]).into_iter().enumerate() {
                    y[at(b)] = sum;
                }
            } else {
                for (b, x) in x.chunks_exact(cols).enumerate() {
                    [y[at(b)]] = dots(row, [x]);
                }
            }
        }
    }
}

/// The dot products of a row with some inputs, which share its loads.
#[inline(always)]
fn dots<const N: usize>(row: &[f32], inputs: [&[f32]; N]) -> [f32; N] {
    let mut sums = [[0f32; LANES]; N];
    let runs = inputs.map(|x| &x.as_chunks::<LANES>().0[..row.len() / LANES]);
    for (at, row) in row.as_chunks::<LANES>().0.iter().enumerate() {
        for n in 0..N {
            sums[n] = add_products(sums[n], row, &runs[n][at]);
        }
    }
    let whole = row.len() / LANES * LANES;
    let mut out = [0.0; N];
    for n in 0..N {
        let rest = row[whole..].iter().zip(&inputs[n][whole..]);
        rest.enumerate().for_each(|(i, (a, b))| sums[n][i] += a * b);
        out[n] = halves(sums[n]);
    }
    out
}

/// By value, so that the compiler keeps the sums in registers.
#[inline(always)]
fn add_products(mut sums: [f32; LANES], a: &[f32; LANES], b: &[f32; LANES]) -> [f32; LANES] {
    for i in 0..LANES {
        sums[i] += a[i] * b[i];
    }
    sums
}

/// The sum of sixteen, by halves.
#[inline(always)]
fn halves(mut sums: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            sums[i] += sums[i + width];
        }
        width /= 2;
    }
    sums[0]
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
