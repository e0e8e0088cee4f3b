//! The operator of codes in blocks that share a scale, and a zero point where that is not fixed: symmetric
//! int8, whose block is a row, and the layout of MatMulNBits.
//!
//! Inputs are quantized in groups, of which a block is one or more: the largest that make it up. A row's
//! last block that is not full meets zeros. Blocks that no groups make up (rows of odd lengths, or 16
//! codes of 2 bits) multiply exactly under either arithmetic.

use std::{borrow::Cow, ops::Range, sync::Arc};

use crate::{
    kernel::{Activations, Coded, Product, Zero, kernels},
    quant::{Part, Scheme, Weight},
    tensor::Float,
};

use super::{Arithmetic, Bytes, Inputs, Operator, exact};

/// Bytes of codes that a group must fill for the kernels.
const LEAST: usize = 8;

/// How blocks are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// Bits of a code: 2, 4 or 8.
    pub bits: u32,
    /// Elements of a block, whose codes fill whole bytes. The last one of a row may have fewer elements,
    /// not fewer codes.
    pub block: usize,
    /// The code of the value zero; a third part has the points.
    pub zero: Zero,
    /// The scales.
    pub stored: Float,
    /// Whether all rows share one scale.
    pub shared: bool,
}

impl Form {
    /// What multiplies such blocks; `None` where no groups make them up.
    fn product(self) -> Option<Product> {
        let Self { bits, block, zero, stored, .. } = self;
        let fits = |group: &usize| block.is_multiple_of(*group) && group * bits as usize / 8 >= LEAST;
        let group = [128, 64, 32, 16].into_iter().find(fits)?;
        Some(Product::Blocks { bits, group, block, stored, zero })
    }
}

/// A matrix of blocks.
#[derive(Debug)]
pub struct Blocks {
    scheme: Arc<dyn Scheme>,
    weight: Weight,
    form: Form,
    product: Option<Product>,
    /// Codes, scales and perhaps zero points.
    parts: Vec<Bytes>,
}

impl Blocks {
    /// An operator over the parts of a weight; `None` where they do not make up such a matrix.
    #[must_use]
    pub fn new(scheme: Arc<dyn Scheme>, weight: &Weight, form: Form, parts: &[Bytes]) -> Option<Self> {
        let layout = scheme.parts(weight).ok()?;
        let expected = if form.zero == Zero::Points { 3 } else { 2 };
        if layout.len() != expected || !layout.iter().map(Part::len).eq(parts.iter().map(|part| part.len())) {
            return None;
        }
        Some(Self { scheme, weight: weight.clone(), form, product: form.product(), parts: parts.to_vec() })
    }

    /// Columns of whole blocks.
    fn width(&self) -> usize {
        self.cols().next_multiple_of(self.form.block.max(1))
    }

    /// What some rows have of a part.
    fn of(&self, part: usize, rows: &Range<usize>) -> &[u8] {
        let bytes = &self.parts[part];
        if part == 1 && self.form.shared {
            return bytes;
        }
        let each = bytes.len() / self.rows().max(1);
        &bytes[rows.start * each..rows.end * each]
    }

    /// Products in integers.
    fn integers(&self, product: &Product, rows: &Range<usize>, inputs: &Activations, y: &mut [f32]) {
        let mut scales = Cow::Borrowed(self.of(1, rows));
        if self.form.shared {
            scales = Cow::Owned(scales.repeat(rows.len()));
        }
        let biases = if self.parts.len() == 3 { self.of(2, rows) } else { &[] };
        let matrix = Coded { codes: self.of(0, rows), scales: &scales, biases };
        kernels().multiply_coded(product, &matrix, inputs, y);
    }
}

impl Operator for Blocks {
    fn rows(&self) -> usize {
        self.weight.rows()
    }

    fn cols(&self) -> usize {
        self.weight.cols()
    }

    fn decode(&self, rows: Range<usize>, out: &mut [f32]) {
        assert_eq!(out.len(), rows.len() * self.cols(), "room for {} rows of {}", rows.len(), self.cols());
        let parts: Vec<&[u8]> = (0..self.parts.len()).map(|part| self.of(part, &rows)).collect();
        self.scheme.decode(&parts, self.weight.float, rows.len(), out);
    }

    fn multiply(&self, rows: Range<usize>, x: &[f32], arithmetic: Arithmetic, y: &mut [f32]) {
        self.multiply_prepared(rows, &self.prepare(x, arithmetic), y);
    }

    fn prepare<'x>(&self, x: &'x [f32], arithmetic: Arithmetic) -> Inputs<'x> {
        match &self.product {
            Some(product) => Inputs::quantized(product, self.cols(), self.width(), x, arithmetic),
            None => Inputs::plain(x, arithmetic),
        }
    }

    fn multiply_prepared(&self, rows: Range<usize>, inputs: &Inputs<'_>, y: &mut [f32]) {
        let product = self.product.as_ref();
        match product.and_then(|p| Some((p, inputs.codes_for(p, self.cols(), self.width())?))) {
            Some((product, codes)) => self.integers(product, &rows, &codes, y),
            None => exact(self, rows, inputs.x, y),
        }
    }
}
