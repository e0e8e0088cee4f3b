//! The operator of groups of small floats under a one-byte scale.
//!
//! The elements of mxfp4 and nvfp4 are halves of small integers and multiply as these; those of mxfp8
//! are not, and its products are exact under either arithmetic.

use std::ops::Range;

use crate::kernel::{Coded, Micro as Job, Product, kernels};

use super::{Arithmetic, Bytes, Inputs, Operator, exact};

/// A matrix of small floats.
#[derive(Debug)]
pub struct Micro {
    job: Job,
    rows: usize,
    cols: usize,
    codes: Bytes,
    scales: Bytes,
}

impl Micro {
    /// An operator over codes and scales; `None` where they do not make up such a matrix.
    #[must_use]
    pub fn new(job: Job, rows: usize, cols: usize, parts: &[Bytes]) -> Option<Self> {
        let [codes, scales] = parts else { return None };
        let group = job.code.group_size();
        let lengths = [rows * (cols / 8) * job.code.bits() as usize, rows * (cols / group)];
        if !cols.is_multiple_of(group) || [codes, scales].map(|b| b.len()) != lengths {
            return None;
        }
        Some(Self { job, rows, cols, codes: codes.clone(), scales: scales.clone() })
    }

    fn coded(&self, rows: &Range<usize>) -> Coded<'_> {
        let of = |part: usize| rows.start * part..rows.end * part;
        Coded {
            codes: &self.codes[of(self.cols / 8 * self.job.code.bits() as usize)],
            scales: &self.scales[of(self.cols / self.job.code.group_size())],
            biases: &[],
        }
    }
}

impl Operator for Micro {
    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn decode(&self, rows: Range<usize>, out: &mut [f32]) {
        let Coded { codes, scales, .. } = self.coded(&rows);
        kernels().dequantize_micro(&self.job, codes, scales, out);
    }

    fn multiply(&self, rows: Range<usize>, x: &[f32], arithmetic: Arithmetic, y: &mut [f32]) {
        self.multiply_prepared(rows, &self.prepare(x, arithmetic), y);
    }

    fn prepare<'x>(&self, x: &'x [f32], arithmetic: Arithmetic) -> Inputs<'x> {
        match Product::of(self.job.code) {
            Some(product) => Inputs::quantized(&product, self.cols, self.cols, x, arithmetic),
            None => Inputs::plain(x, arithmetic),
        }
    }

    fn multiply_prepared(&self, rows: Range<usize>, inputs: &Inputs<'_>, y: &mut [f32]) {
        let product = Product::of(self.job.code);
        let codes = product.and_then(|product| Some((product, inputs.codes_for(&product, self.cols, self.cols)?)));
        match codes {
            Some((product, codes)) => kernels().multiply_coded(&product, &self.coded(&rows), &codes, y),
            None => exact(self, rows, inputs.x, y),
        }
    }
}
