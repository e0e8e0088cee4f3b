//! Products of dense matrices whose rows lie along the sum: `y = x w^T` in f32.
//!
//! Always: sixteen partial sums, column c in the sum c mod 16, from the first column to the last and
//! without fused steps; these are added by halves. An output does not depend on the rows or inputs
//! beside it.
//!
//! The compiler does not keep a tile of such sums in vector registers by itself, so that the body is
//! written over [`Sixteen`], which each architecture gives its registers for.

use std::array;

use super::sixteen::{LANES, Sixteen};

/// Columns that meet at a time: those of a tile's rows and inputs stay in the first-level cache.
const STRETCH: usize = 1024;
/// Inputs of a panel, which every row meets before the next ones: they stay in the second-level cache.
const PANEL: usize = LANES;

/// The partial sums of `ROWS` rows with a panel of inputs, in whole sixteens for their last sums.
type Sums<const ROWS: usize> = [[[f32; LANES]; ROWS]; PANEL];

/// `y[b, r] = w[r] . x[b]` in f32; `y` is `[inputs, rows]`. Tiles of `ROWS` rows and `INPUTS` inputs share
/// their loads.
#[inline(always)]
pub(in crate::kernel) fn product<S: Sixteen, const ROWS: usize, const INPUTS: usize>(
    lanes: S,
    cols: usize,
    w: &[f32],
    x: &[f32],
    y: &mut [f32],
) {
    let rows = w.len() / cols;
    let (most, rest) = w.split_at(rows / ROWS * ROWS * cols);
    let (mut sums, mut single) = ([[[0.0; LANES]; ROWS]; PANEL], [[[0.0; LANES]; 1]; PANEL]);
    for (x, y) in x.chunks(PANEL * cols).zip(y.chunks_mut((PANEL * rows).max(1))) {
        let inputs = x.len() / cols;
        for (at, w) in most.chunks_exact(ROWS * cols).enumerate() {
            band::<S, ROWS, INPUTS>(lanes, cols, w, x, &mut sums);
            last(lanes, &sums, inputs, |b, outputs| y[b * rows + at * ROWS..][..ROWS].copy_from_slice(outputs));
        }
        for (at, w) in rest.chunks_exact(cols).enumerate() {
            band::<S, 1, INPUTS>(lanes, cols, w, x, &mut single);
            last(lanes, &single, inputs, |b, output| y[b * rows + most.len() / cols + at] = output[0]);
        }
    }
}

/// The partial sums of `ROWS` rows with the inputs of a panel.
#[inline(always)]
fn band<S: Sixteen, const ROWS: usize, const INPUTS: usize>(
    lanes: S,
    cols: usize,
    w: &[f32],
    x: &[f32],
    sums: &mut Sums<ROWS>,
) {
    let sums = &mut sums[..x.len() / cols];
    for start in (0..cols).step_by(STRETCH) {
        let width = STRETCH.min(cols - start);
        let rows: [&[f32]; ROWS] = array::from_fn(|r| &w[r * cols + start..][..width]);
        let input = |b: usize| &x[b * cols + start..][..width];
        let (tiles, rest) = sums.as_chunks_mut::<INPUTS>();
        for (at, sums) in tiles.iter_mut().enumerate() {
            tile(lanes, rows, array::from_fn(|b| input(at * INPUTS + b)), start == 0, sums);
        }
        for (at, sums) in rest.iter_mut().enumerate() {
            tile(lanes, rows, [input(tiles.len() * INPUTS + at)], start == 0, array::from_mut(sums));
        }
    }
}

/// Adds up partial sums, and hands out those of each input.
#[inline(always)]
fn last<S: Sixteen, const ROWS: usize>(
    lanes: S,
    sums: &Sums<ROWS>,
    inputs: usize,
    mut out: impl FnMut(usize, &[f32; ROWS]),
) {
    let per = LANES / ROWS;
    for (at, sums) in sums.as_flattened().as_chunks::<LANES>().0[..inputs.div_ceil(per)].iter().enumerate() {
        let outputs = lanes.halves(sums);
        for (b, outputs) in outputs.as_chunks::<ROWS>().0.iter().enumerate().take(inputs - at * per) {
            out(at * per + b, outputs);
        }
    }
}

/// Adds what a stretch of columns contributes to the partial sums of some rows with some inputs.
#[inline(always)]
fn tile<S: Sixteen, const ROWS: usize, const INPUTS: usize>(
    lanes: S,
    w: [&[f32]; ROWS],
    x: [&[f32]; INPUTS],
    first: bool,
    out: &mut [[[f32; LANES]; ROWS]; INPUTS],
) {
    let zero = lanes.load(&[0.0; LANES]);
    let mut sums = out.map(|out| out.map(|sum| if first { zero } else { lanes.load(&sum) }));
    let (whole, rest) = (w[0].len() / LANES, w[0].len() % LANES);
    let (w, x) = (w.map(|w| w.as_chunks::<LANES>()), x.map(|x| x.as_chunks::<LANES>()));
    let (ws, xs) = (w.map(|w| &w.0[..whole]), x.map(|x| &x.0[..whole]));
    for at in 0..whole {
        meet(lanes, ws.map(|w| w[at]), xs.map(|x| x[at]), &mut sums);
    }
    if rest > 0 {
        meet(lanes, w.map(|w| padded(w.1)), x.map(|x| padded(x.1)), &mut sums);
    }
    for b in 0..INPUTS {
        for r in 0..ROWS {
            lanes.store(sums[b][r], &mut out[b][r]);
        }
    }
}

/// Sixteen columns of some rows and some inputs.
#[inline(always)]
fn meet<S: Sixteen, const ROWS: usize, const INPUTS: usize>(
    lanes: S,
    w: [[f32; LANES]; ROWS],
    x: [[f32; LANES]; INPUTS],
    sums: &mut [[S::Values; ROWS]; INPUTS],
) {
    let w = w.map(|w| lanes.load(&w));
    for b in 0..INPUTS {
        let x = lanes.load(&x[b]);
        for r in 0..ROWS {
            sums[b][r] = lanes.add_product(sums[b][r], w[r], x);
        }
    }
}

/// Zeros after the last columns: a sum, which is never -0, stays what it is when 0 * 0 is added.
#[inline(always)]
fn padded(rest: &[f32]) -> [f32; LANES] {
    let mut values = [0.0; LANES];
    values[..rest.len()].copy_from_slice(rest);
    values
}
