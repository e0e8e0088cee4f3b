//! Rows shared out to threads.
//!
//! A matrix is cut into the same chunks whatever the thread count, so that the same calls are made of
//! its operator, and results have the same bits. A matrix of one chunk stays on the calling thread.
//! Inputs are prepared once for all chunks.

use std::ops::Range;

use rayon::prelude::*;

use crate::quant::operator::{Arithmetic, Inputs, Operator};

/// Elements of a chunk at least: some ten microseconds of work, so that handing it out costs a few percent.
const CHUNK: usize = 1 << 18;

/// Chunks at most, as many as keep the threads of a large machine busy to the end: what a kernel asks for
/// ahead is in vain where a chunk ends.
const CHUNKS: usize = 64;

/// Chunks are multiples of so many rows, which kernels like to take together.
const STRIDE: usize = 32;

/// Rows of a chunk of a matrix.
pub(super) fn chunk_rows(rows: usize, cols: usize) -> usize {
    (CHUNK / cols.max(1)).max(rows / CHUNKS).next_multiple_of(STRIDE).max(STRIDE)
}

/// `y = x W^T` for `x.len() / cols` inputs; `y` is `[inputs, rows]`.
pub(super) fn multiply(operator: &dyn Operator, x: &[f32], arithmetic: Arithmetic, y: &mut [f32]) {
    let (rows, chunk) = (operator.rows(), chunk_rows(operator.rows(), operator.cols()));
    if rows == 0 || x.is_empty() {
        y.fill(0.0);
    } else if rows <= chunk {
        operator.multiply(0..rows, x, arithmetic, y);
    } else if x.len() == operator.cols() {
        multiply_together([(operator, arithmetic, y)], x);
    } else {
        batch(operator, &operator.prepare(x, arithmetic), y, chunk);
    }
}

/// One input of several matrices, whose chunks are shared out together: threads meet at the end of the last
/// one only.
pub(super) fn multiply_together<'a>(
    jobs: impl IntoIterator<Item = (&'a dyn Operator, Arithmetic, &'a mut [f32])>,
    x: &[f32],
) {
    let mut jobs: Vec<_> = jobs.into_iter().map(|(operator, a, y)| (operator, operator.prepare(x, a), y)).collect();
    let mut chunks = vec![];
    for (operator, inputs, y) in &mut jobs {
        if x.is_empty() {
            y.fill(0.0);
            continue;
        }
        let (operator, chunk) = (*operator, chunk_rows(operator.rows(), operator.cols()));
        chunks.extend(y.chunks_mut(chunk).enumerate().map(|(i, y)| (operator, &*inputs, i * chunk, y)));
    }
    chunks.into_par_iter().for_each(|(operator, inputs, start, y)| {
        operator.multiply_prepared(start..start + y.len(), inputs, y);
    });
}

/// Many inputs: a chunk's outputs are computed together and copied to each input's row.
fn batch(operator: &dyn Operator, inputs: &Inputs<'_>, y: &mut [f32], chunk: usize) {
    let rows = operator.rows();
    let mut columns: Vec<Vec<&mut [f32]>> = (0..rows.div_ceil(chunk)).map(|_| vec![]).collect();
    for outputs in y.chunks_exact_mut(rows) {
        columns.iter_mut().zip(outputs.chunks_mut(chunk)).for_each(|(column, piece)| column.push(piece));
    }
    columns.into_par_iter().enumerate().for_each(|(i, mut column)| {
        let band = i * chunk..rows.min((i + 1) * chunk);
        let mut made = vec![0.0; column.len() * band.len()];
        operator.multiply_prepared(band.clone(), inputs, &mut made);
        column.iter_mut().zip(made.chunks_exact(band.len())).for_each(|(y, made)| y.copy_from_slice(made));
    });
}

/// The values of a range of rows.
pub(super) fn decode(operator: &dyn Operator, rows: Range<usize>, out: &mut [f32]) {
    let (cols, chunk) = (operator.cols(), chunk_rows(rows.len(), operator.cols()));
    if rows.len() <= chunk {
        return operator.decode(rows, out);
    }
    out.par_chunks_mut(chunk * cols.max(1)).enumerate().for_each(|(i, out)| {
        let start = rows.start + i * chunk;
        operator.decode(start..rows.end.min(start + chunk), out);
    });
}
