//! Products of a few inputs: sixteen rows at a time are read once, where they lie, as memory delivers them.

use super::{Activations, Ahead, Coded, Kernels, LANES, Product, Rows};

/// Columns whose codes are spread to bytes at a time, where codes cross bytes: a multiple of every group.
const STRETCH: usize = 512;

/// Room for a panel, used again and again.
struct Scratch {
    scales: Vec<[u8; 64]>,
    biases: Vec<[u8; 64]>,
    spread: Vec<u8>,
    /// Of each input.
    sums: Vec<[f32; LANES]>,
}

impl Scratch {
    fn new(product: &Product, inputs: &Activations) -> Self {
        let groups = inputs.cols / product.group();
        let biases = if product.has_biases() { groups } else { 0 };
        Self {
            scales: vec![[0; 64]; groups],
            biases: vec![[0; 64]; biases],
            spread: vec![0; LANES * STRETCH],
            sums: vec![[0.0; LANES]; inputs.count],
        }
    }
}

/// `y` is `[inputs, rows]`.
pub(super) fn multiply(kernels: &Kernels, product: &Product, matrix: &Coded<'_>, inputs: &Activations, y: &mut [f32]) {
    let rows = y.len() / inputs.count;
    let mut scratch = Scratch::new(product, inputs);
    for first in (0..rows).step_by(LANES) {
        let count = LANES.min(rows - first);
        let coded = matrix.rows(product, inputs.cols, first..first + count);
        kernels.parameters(product, &coded, [&mut scratch.scales, &mut scratch.biases]);
        scratch.sums.fill([0.0; LANES]);
        add(kernels, product, &coded, count, inputs, &mut scratch);
        for (n, sums) in scratch.sums.iter().enumerate() {
            y[n * rows + first..][..count].copy_from_slice(&sums[..count]);
        }
    }
}

/// The sums of some rows with each input, left in the scratch.
fn add(
    kernels: &Kernels,
    product: &Product,
    matrix: &Coded<'_>,
    count: usize,
    inputs: &Activations,
    scratch: &mut Scratch,
) {
    let (cols, group, stride) = (inputs.cols, product.group(), product.row_bytes(inputs.cols));
    let whole = matches!(product.bits(), 2 | 4 | 8);
    for start in (0..cols).step_by(if whole { cols } else { STRETCH }) {
        let width = if whole { cols } else { STRETCH.min(cols - start) };
        let (from, to) = (start / group, (start + width) / group);
        let (codes, stride) = if whole {
            (matrix.codes, stride)
        } else {
            for (row, out) in matrix.codes.chunks_exact(stride).zip(scratch.spread.chunks_exact_mut(width)) {
                let row = &row[product.row_bytes(start)..][..product.row_bytes(width)];
                (kernels.spread)(product.bits(), row, out);
            }
            (&scratch.spread[..count * width], width)
        };
        let rows = Rows {
            count,
            stride,
            codes,
            ahead: [matrix.scales, matrix.biases]
                .map(|part| if start == 0 { Ahead::after(part) } else { Ahead::default() }),
            scales: &scratch.scales[from..to],
            biases: scratch.biases.get(from..to).unwrap_or_default(),
        };
        for (block, sums) in inputs.blocks(from, to).zip(&mut scratch.sums) {
            (kernels.accumulate_rows)(product, &rows, &block, sums);
        }
    }
}
