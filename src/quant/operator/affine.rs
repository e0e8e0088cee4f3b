//! The operator of affine codes in groups along the rows.
//!
//! Int8 products use `code * scale + bias` as it is, where the decoder rounds the product and the sum
//! to the stored dtype, as the reference does.

use std::ops::Range;

use crate::kernel::{self, Coded, Product, kernels};

use super::{Arithmetic, Bytes, Inputs, Operator, exact};

/// A matrix of affine codes.
#[derive(Debug)]
pub struct Affine {
    job: kernel::Affine,
    product: Product,
    rows: usize,
    cols: usize,
    codes: Bytes,
    scales: Bytes,
    biases: Bytes,
}

impl Affine {
    /// An operator over codes, scales and biases; `None` where they do not make up such a matrix.
    #[must_use]
    pub fn new(job: kernel::Affine, rows: usize, cols: usize, parts: &[Bytes]) -> Option<Self> {
        let [codes, scales, biases] = parts else { return None };
        let parameters = rows * (cols / job.group) * job.stored.size();
        let lengths = [rows * (cols / 8) * job.bits as usize, parameters, parameters];
        if !cols.is_multiple_of(job.group) || [codes, scales, biases].map(|b| b.len()) != lengths {
            return None;
        }
        let product = Product::Affine { bits: job.bits, group: job.group, stored: job.stored };
        let [codes, scales, biases] = [codes, scales, biases].map(Bytes::clone);
        Some(Self { job, product, rows, cols, codes, scales, biases })
    }

    fn coded(&self, rows: &Range<usize>) -> Coded<'_> {
        let of = |part: usize| rows.start * part..rows.end * part;
        let parameters = self.cols / self.job.group * self.job.stored.size();
        Coded {
            codes: &self.codes[of(self.cols / 8 * self.job.bits as usize)],
            scales: &self.scales[of(parameters)],
            biases: &self.biases[of(parameters)],
        }
    }
}

impl Operator for Affine {
    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn decode(&self, rows: Range<usize>, out: &mut [f32]) {
        let Coded { codes, scales, biases } = self.coded(&rows);
        kernels().dequantize_affine(&self.job, codes, scales, biases, out);
    }

    fn multiply(&self, rows: Range<usize>, x: &[f32], arithmetic: Arithmetic, y: &mut [f32]) {
        self.multiply_prepared(rows, &self.prepare(x, arithmetic), y);
    }

    fn prepare<'x>(&self, x: &'x [f32], arithmetic: Arithmetic) -> Inputs<'x> {
        Inputs::quantized(&self.product, self.cols, self.cols, x, arithmetic)
    }

    fn multiply_prepared(&self, rows: Range<usize>, inputs: &Inputs<'_>, y: &mut [f32]) {
        match inputs.codes_for(&self.product, self.cols, self.cols) {
            Some(codes) => kernels().multiply_coded(&self.product, &self.coded(&rows), &codes, y),
            None => exact(self, rows, inputs.x, y),
        }
    }
}
