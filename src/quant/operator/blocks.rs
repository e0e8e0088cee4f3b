//! The operator of codes in blocks that share a scale, and a zero point where that is not fixed: symmetric
//! int8, whose block is a row, and the layout of MatMulNBits.
//!
//! The kernels know groups, of which a block is one or more. They get the parameters of the rows at hand
//! group by group, with biases in the place of zero points. A row's last block that is not full meets
//! zeros. Blocks that are no whole groups multiply exactly under either arithmetic.

use std::{borrow::Cow, ops::Range, sync::Arc};

use crate::{
    kernel::{Activations, Cast, Coded, Product, kernels},
    num::codes::unpack,
    quant::{Part, Scheme, Weight},
    tensor::Float,
};

use super::{Arithmetic, Bytes, Inputs, Operator, exact, in_steps};

/// Groups whose parameters are made at a time: with biases, 64 KiB of a second-level cache.
const GROUPS: usize = 1 << 13;
/// Rows that the kernels take together: parameters are made for so many at least.
const TOGETHER: usize = 32;
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
    /// Whether codes are signed bytes. Others have a zero point: that of the third part, or the middle.
    pub signed: bool,
    /// The scales.
    pub stored: Float,
    /// Whether all rows share one scale.
    pub shared: bool,
}

impl Form {
    /// What multiplies such blocks: the largest groups that they are made of. `None` where there are none.
    fn product(self, zero_points: bool) -> Option<Product> {
        let Self { bits, block, stored, .. } = self;
        let fits = |group: &usize| block.is_multiple_of(*group) && group * bits as usize / 8 >= LEAST;
        let group = [128, 64, 32, 16].into_iter().find(fits)?;
        Some(match (self.signed, zero_points) {
            (true, _) => Product::Signed { group },
            (false, true) => Product::Affine { bits, group, stored: Float::F32 },
            (false, false) => Product::Middle { bits, group, stored },
        })
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
        let lengths = layout.iter().map(Part::len);
        if !matches!(parts.len(), 2 | 3) || !lengths.eq(parts.iter().map(|part| part.len())) {
            return None;
        }
        let product = form.product(parts.len() == 3);
        Some(Self { scheme, weight: weight.clone(), form, product, parts: parts.to_vec() })
    }

    /// Blocks of a row.
    fn blocks(&self) -> usize {
        self.cols().div_ceil(self.form.block)
    }

    /// Columns of whole blocks.
    fn width(&self) -> usize {
        self.blocks() * self.form.block
    }

    /// What some rows have of a part.
    fn of(&self, part: usize, rows: &Range<usize>) -> &[u8] {
        let bytes = &self.parts[part];
        if part == 1 && self.form.shared {
            return bytes;
        }
        let each = bytes.len() / self.rows();
        &bytes[rows.start * each..rows.end * each]
    }

    /// Groups of a block.
    fn groups(&self, product: &Product) -> usize {
        self.form.block / product.group()
    }

    /// Whether scales are already as the kernels take them, and all that they take.
    fn ready(&self, product: &Product) -> bool {
        self.groups(product) == 1 && self.parts.len() == 2 && !self.form.shared
    }

    /// Scales and biases of the groups of some rows.
    fn parameters(&self, product: &Product, rows: &Range<usize>) -> (Cow<'_, [u8]>, Vec<u8>) {
        let stored = self.of(1, rows);
        let groups = self.groups(product);
        if self.ready(product) {
            (Cow::Borrowed(stored), vec![])
        } else if self.form.shared {
            (Cow::Owned(stored.repeat(rows.len() * groups)), vec![])
        } else if self.parts.len() == 2 {
            (Cow::Owned(repeated(stored, self.form.stored.size(), groups)), vec![])
        } else {
            let mut scales = vec![0; rows.len() * self.blocks() * 4];
            let cast = Cast { from: self.form.stored, to: Float::F32, plus_one: false };
            kernels().cast(&cast, stored, &mut scales);
            let biases = self.biases(rows, &scales);
            (Cow::Owned(repeated(&scales, 4, groups)), repeated(&biases, 4, groups))
        }
    }

    /// What zero points of some rows add to each of their elements, in f32 as the scales.
    fn biases(&self, rows: &Range<usize>, scales: &[u8]) -> Vec<u8> {
        let (mut biases, mut zeros) = (vec![0; scales.len()], vec![0; self.blocks()]);
        let row = self.blocks() * 4;
        let packed = self.of(2, rows).chunks_exact(self.parts[2].len() / self.rows());
        for ((packed, scales), biases) in packed.zip(scales.chunks_exact(row)).zip(biases.chunks_exact_mut(row)) {
            unpack(self.form.bits, packed, &mut zeros);
            let scales = scales.as_chunks::<4>().0;
            for ((bias, scale), zero) in biases.as_chunks_mut::<4>().0.iter_mut().zip(scales).zip(&zeros) {
                *bias = (-f32::from(*zero) * f32::from_le_bytes(*scale)).to_le_bytes();
            }
        }
        biases
    }

    /// Products in integers, with the parameters of some rows at a time where they must be made.
    fn integers(&self, product: &Product, rows: &Range<usize>, inputs: &Activations, y: &mut [f32]) {
        let some = (GROUPS * product.group() / self.width()).next_multiple_of(TOGETHER).max(TOGETHER);
        let step = if self.ready(product) { rows.len() } else { some };
        in_steps(rows, step, inputs.count(), y, |some, y| {
            let (scales, biases) = self.parameters(product, &some);
            let matrix = Coded { codes: self.of(0, &some), scales: &scales, biases: &biases };
            kernels().multiply_coded(product, &matrix, inputs, y);
        });
    }
}

/// Each value of so many bytes, `times` times.
fn repeated(values: &[u8], size: usize, times: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(values.len() * times);
    for value in values.chunks_exact(size) {
        (0..times).for_each(|_| out.extend_from_slice(value));
    }
    out
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
