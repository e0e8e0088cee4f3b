//! Products of dense matrices whose rows lie along the sum: `y = x w^T` in f32.
//!
//! Always: sixteen partial sums, column c in the sum c mod 16, from the first column to the last and
//! without fused steps; these are added by halves. An output does not depend on the rows or inputs
//! beside it.

use super::dot::LANES;

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
            for i in 0..LANES {
                sums[n][i] += row[i] * runs[n][at][i];
            }
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
