//! What attention and gates need of dense f32: products with sixteen columns at a time, softmax, SiLU.
//!
//! Always: every sum runs in one order, whatever the number of rows; a NaN stays one. The exponential
//! is the one of the Cephes library (`expf`: two-step reduction, polynomial of degree 5), within two
//! units in the last place; below -87 it is the smallest normal number instead of a subnormal one.

use super::{SIGNED_ROUNDER, larger};
use crate::kernel::Dense;

/// Columns of a strip: the lanes of the widest vectors.
pub(in crate::kernel) const STRIP: usize = 16;

/// `c[m, n] = sum over k of a[m, k] * b[k, n]`, the sum from the first k to the last.
#[inline(always)]
pub(in crate::kernel) fn dense(job: &Dense, a: &[f32], b: &[f32], c: &mut [f32]) {
    for strip in (0..job.columns).step_by(STRIP) {
        let mut row = 0;
        while row < job.rows {
            row += match job.rows - row {
                8.. => tile::<8>(job, a, b, c, row, strip),
                4.. => tile::<4>(job, a, b, c, row, strip),
                _ => tile::<1>(job, a, b, c, row, strip),
            };
        }
    }
}

/// One strip of some rows: their sums stay in registers.
#[inline(always)]
fn tile<const ROWS: usize>(job: &Dense, a: &[f32], b: &[f32], c: &mut [f32], row: usize, strip: usize) -> usize {
    let a: [&[f32]; ROWS] = std::array::from_fn(|i| &a[(row + i) * job.a_stride..][..job.depth]);
    let mut sums = [[0f32; STRIP]; ROWS];
    for (k, b) in b.chunks(job.columns).take(job.depth).enumerate() {
        let Some((b, _)) = b[strip..].split_first_chunk::<STRIP>() else { continue };
        for (sums, a) in sums.iter_mut().zip(&a) {
            let x = a[k];
            for (sum, y) in sums.iter_mut().zip(b) {
                *sum += x * y;
            }
        }
    }
    for (i, sums) in sums.iter().enumerate() {
        c[(row + i) * job.c_stride + strip..][..STRIP].copy_from_slice(sums);
    }
    ROWS
}

/// `exp(x - max) / sum`, in place.
#[inline(always)]
pub(in crate::kernel) fn softmax(row: &mut [f32]) {
    let largest = lanes(row, f32::NEG_INFINITY, |most, x| larger(x, most));
    row.iter_mut().for_each(|x| *x = exp(*x - largest));
    let sum = lanes(row, 0.0, |sum, x| sum + x);
    row.iter_mut().for_each(|x| *x /= sum);
}

/// Folds a row in sixteen lanes, then the lanes, then what is left over.
#[inline(always)]
fn lanes(row: &[f32], start: f32, fold: impl Fn(f32, f32) -> f32) -> f32 {
    let (whole, rest) = row.as_chunks::<STRIP>();
    let mut lanes = [start; STRIP];
    for chunk in whole {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = fold(*lane, *x);
        }
    }
    let folded = lanes.into_iter().fold(start, &fold);
    rest.iter().fold(folded, |folded, x| fold(folded, *x))
}

/// `gate = gate / (1 + exp(-gate)) * up`.
#[inline(always)]
pub(in crate::kernel) fn swiglu(gate: &mut [f32], up: &[f32]) {
    for (g, u) in gate.iter_mut().zip(up) {
        *g = *g / (1.0 + exp(-*g)) * u;
    }
}

#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    const LEAST: f32 = -87.336_54;
    const MOST: f32 = 88.376_26;
    // ln 2 in two parts, the first with zeros at its end, so that its product with n is exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    const POLYNOMIAL: [f32; 6] = [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5];
    let x = if x < LEAST { LEAST } else { x };
    let x = if x > MOST { MOST } else { x };
    let rounded = x * std::f32::consts::LOG2_E + SIGNED_ROUNDER;
    let n = rounded - SIGNED_ROUNDER;
    let r = x - n * LN_2[0] - n * LN_2[1];
    let fraction = POLYNOMIAL.iter().fold(0.0, |sum, c| sum * r + c) * r * r + r + 1.0;
    fraction * f32::from_bits(rounded.to_bits().wrapping_add(127) << 23)
}
