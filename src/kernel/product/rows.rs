//! Products of a few inputs: rows are read once, where they lie, one after the other, as memory delivers
//! them; sixteen of them share what is done per row.

use std::cell::RefCell;

use super::{Activations, Ahead, Coded, FEW, Kernels, LANES, Product, RUN, Rows, Terms};

/// Groups whose codes are spread to bytes at a time, where codes cross bytes: as many as fill a register.
const STRETCH: usize = 16;

/// Bytes of codes from those that are read to those that are asked for. Measured: less than 8 KiB comes
/// too late, and from there on the distance hardly matters.
const AHEAD: usize = 16 << 10;

/// Room for some rows, which a thread uses again and again: to clear it each time would take a tenth of what a
/// small matrix takes.
struct Scratch {
    /// `[row][group]`
    scales: Vec<f32>,
    /// The same, or empty.
    biases: Vec<f32>,
    spread: Vec<u8>,
    terms: Box<Terms>,
    /// Of each input.
    sums: [[f32; LANES]; FEW],
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch {
        scales: vec![],
        biases: vec![],
        spread: vec![],
        terms: Box::new([[[0.0; LANES]; RUN]; LANES]),
        sums: [[0.0; LANES]; FEW],
    });
}

/// `y` is `[inputs, rows]`.
pub(super) fn multiply(kernels: &Kernels, product: &Product, matrix: &Coded<'_>, inputs: &Activations, y: &mut [f32]) {
    let rows = y.len() / inputs.count;
    let parameters = LANES * inputs.cols / product.group();
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.scales.resize(parameters, 0.0);
        scratch.biases.resize(if product.has_biases() { parameters } else { 0 }, 0.0);
        for first in (0..rows).step_by(LANES) {
            let count = LANES.min(rows - first);
            let coded = matrix.rows(product, inputs.cols, first..first + count);
            kernels.parameters(product, inputs.cols, &coded, [&mut scratch.scales, &mut scratch.biases]);
            scratch.sums.fill([0.0; LANES]);
            add(kernels, product, &coded, count, inputs, scratch);
            for (n, sums) in scratch.sums.iter().enumerate().take(inputs.count) {
                y[n * rows + first..][..count].copy_from_slice(&sums[..count]);
            }
        }
    });
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
    let step = if whole { cols } else { STRETCH * group };
    for start in (0..cols).step_by(step) {
        let width = step.min(cols - start);
        let (from, to) = (start / group, (start + width) / group);
        let (codes, stride, distance) = if whole {
            (matrix.codes, stride, AHEAD)
        } else {
            scratch.spread.resize(LANES * step, 0);
            // Next come the same rows, further on; at their end the next rows, from their start.
            let next = start + step;
            let distance =
                if next < cols { product.row_bytes(step) } else { count * stride - product.row_bytes(start) };
            for (row, out) in matrix.codes.chunks_exact(stride).zip(scratch.spread.chunks_exact_mut(width)) {
                let row = &row[product.row_bytes(start)..][..product.row_bytes(width)];
                (kernels.spread)(product.bits(), row, distance, out);
            }
            (&scratch.spread[..count * width], width, 0)
        };
        let rows = Rows {
            count,
            groups: to - from,
            stride,
            codes,
            distance,
            ahead: [matrix.scales, matrix.biases]
                .map(|part| if start == 0 { Ahead::after(part) } else { Ahead::default() }),
            pitch: cols / group,
            scales: &scratch.scales[from..],
            biases: scratch.biases.get(from..).unwrap_or_default(),
        };
        for (block, sums) in inputs.blocks(from, to).zip(&mut scratch.sums) {
            (kernels.accumulate_rows)(product, &rows, &block, &mut scratch.terms, sums);
        }
    }
}
