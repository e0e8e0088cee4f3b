//! Products with quantized matrices: how the steps of a table follow each other.
//!
//! Inputs are quantized to int8 once ([`Kernels::quantize_inputs`]). A few of them meet each row where
//! it lies (`rows`), at the memory's pace; more meet panels of sixteen rows that are unpacked once for
//! all (`panels`). Nothing is repacked ahead of time, and codes may lie at any alignment.
//!
//! Always: an output is the same bits whatever the table, the other rows and the other inputs
//! (`body::dot` says in which order it is summed).

mod panels;
mod rows;

use std::ops::Range;

use crate::tensor::Float;

use super::{Kernels, MicroCode, body::dot::LANES};

/// Inputs that meet rows one by one. With more, unpacking panels costs less than reading rows again.
const FEW: usize = 3;
/// Inputs of a block: as many as share the load of a panel's codes.
const BLOCK: usize = 8;

/// Codes that multiply with int8 in integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Product {
    /// `code * scale + bias`, with parameters in a float.
    Affine {
        /// Bits of a code: 2, 3, 4, 5, 6 or 8.
        bits: u32,
        /// Elements of a group: 16, 32, 64 or 128, whose codes fill eight bytes or more.
        group: usize,
        /// The scales and biases.
        stored: Float,
    },
    /// `(code - zero) * scale`, with a scale for each block in a float.
    Blocks {
        /// Bits of a code: 2, 4 or 8.
        bits: u32,
        /// Elements of a group of inputs, as of affine codes.
        group: usize,
        /// Elements of a block: one or more groups.
        block: usize,
        /// The scales.
        stored: Float,
        /// The code of the value zero.
        zero: Zero,
    },
    /// e2m1 elements, an e8m0 scale for 32 of them.
    Mxfp4,
    /// e2m1 elements, an e4m3 scale for 16 of them.
    Nvfp4,
}

/// The code of the value zero in blocks of codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Zero {
    /// 0: codes are signed bytes.
    Signed,
    /// The middle: 8 of 4 bits.
    Middle,
    /// Each block has its own, which stand where others have biases: packed as codes are, each row from a
    /// byte on.
    Points,
}

impl Product {
    /// The product of a small-float code; `None` for mxfp8, whose elements are no small integers.
    #[must_use]
    pub const fn of(code: MicroCode) -> Option<Self> {
        match code {
            MicroCode::Mxfp4 => Some(Self::Mxfp4),
            MicroCode::Nvfp4 => Some(Self::Nvfp4),
            MicroCode::Mxfp8 => None,
        }
    }

    /// Bits of a code.
    #[must_use]
    pub const fn bits(&self) -> u32 {
        match self {
            Self::Affine { bits, .. } | Self::Blocks { bits, .. } => *bits,
            Self::Mxfp4 | Self::Nvfp4 => 4,
        }
    }

    /// Elements of a group.
    #[must_use]
    pub const fn group(&self) -> usize {
        match self {
            Self::Affine { group, .. } | Self::Blocks { group, .. } => *group,
            Self::Mxfp4 => 32,
            Self::Nvfp4 => 16,
        }
    }

    /// Codes of a byte, where whole codes fill it; otherwise 1, and they are spread to bytes first.
    pub(super) const fn planes(&self) -> usize {
        match self.bits() {
            2 => 4,
            4 => 2,
            _ => 1,
        }
    }

    /// What a panel holds for the value zero.
    pub(super) const fn zero(&self) -> i32 {
        match self {
            Self::Affine { .. } | Self::Blocks { zero: Zero::Points, .. } => 0,
            Self::Blocks { bits, .. } => 1 << (*bits - 1),
            Self::Mxfp4 | Self::Nvfp4 => 12,
        }
    }

    /// What stands for a code in a panel.
    pub(super) const fn map(&self) -> Map {
        match self {
            Self::Blocks { zero: Zero::Signed, .. } => Map::Signed,
            Self::Affine { .. } | Self::Blocks { .. } => Map::Same,
            Self::Mxfp4 | Self::Nvfp4 => Map::E2m1,
        }
    }

    const fn has_biases(&self) -> bool {
        matches!(self, Self::Affine { .. } | Self::Blocks { zero: Zero::Points, .. })
    }

    /// Elements that share a scale.
    const fn block(&self) -> usize {
        if let Self::Blocks { block, .. } = self { *block } else { self.group() }
    }

    /// Bytes of a group's codes, where whole codes fill a byte.
    pub(super) const fn group_bytes(&self) -> usize {
        self.group() / self.planes()
    }

    /// How scales and biases are stored.
    pub(super) const fn stored(&self) -> Stored {
        match self {
            Self::Affine { stored, .. } | Self::Blocks { stored, .. } => Stored::Float(*stored),
            Self::Mxfp4 => Stored::E8m0,
            Self::Nvfp4 => Stored::E4m3,
        }
    }

    /// Bytes of the scales of a row.
    fn scale_bytes(&self, cols: usize) -> usize {
        cols / self.block() * self.stored().size()
    }

    /// Bytes of the biases of a row, or of what stands for them.
    fn bias_bytes(&self, cols: usize) -> usize {
        match self {
            Self::Affine { .. } => self.scale_bytes(cols),
            Self::Blocks { zero: Zero::Points, bits, block, .. } => (cols / block * *bits as usize).div_ceil(8),
            _ => 0,
        }
    }

    const fn row_bytes(&self, cols: usize) -> usize {
        cols / 8 * self.bits() as usize
    }
}

/// What a panel holds for a code; the value zero is [`Product::zero`] in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Map {
    /// The code.
    Same,
    /// `body::dot::E2M1`.
    E2m1,
    /// A signed byte and 128: its highest bit the other way round.
    Signed,
}

/// How a scale is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stored {
    /// As it is.
    Float(Float),
    /// In a byte, for values of which codes are twice.
    E8m0,
    /// As well.
    E4m3,
}

impl Stored {
    /// Bytes of one.
    pub(super) fn size(self) -> usize {
        match self {
            Self::Float(float) => float.size(),
            Self::E8m0 | Self::E4m3 => 1,
        }
    }
}

/// The parts of whole rows of a matrix, each row after the other.
#[derive(Clone, Copy, Debug)]
pub struct Coded<'a> {
    /// Packed codes.
    pub codes: &'a [u8],
    /// A scale for each group, or each block.
    pub scales: &'a [u8],
    /// A bias for each group or zero points, empty where the code has neither.
    pub biases: &'a [u8],
}

impl<'a> Coded<'a> {
    /// The parts of some rows of `cols`.
    fn rows(&self, product: &Product, cols: usize, rows: Range<usize>) -> Self {
        let of = |part: &'a [u8], row: usize| part.get(rows.start * row..rows.end * row).unwrap_or_default();
        Self {
            codes: of(self.codes, product.row_bytes(cols)),
            scales: of(self.scales, product.scale_bytes(cols)),
            biases: of(self.biases, product.bias_bytes(cols)),
        }
    }
}

/// Inputs quantized to int8, symmetrically, in the groups of a matrix's columns.
#[derive(Clone, Debug)]
pub struct Activations {
    product: Product,
    cols: usize,
    count: usize,
    /// Of few inputs `[input][line][plane][quad]`, as 64 bytes of a row meet them, with zeros up to the
    /// end of the last line; of more, blocks of them, in each `[quad][input]`.
    codes: Vec<[i8; 4]>,
    /// In each block `[group][input]`.
    scales: Vec<f32>,
    /// Scale times the sum of the codes, as `scales`.
    sums: Vec<f32>,
    /// What a running sum starts from, as `scales`: it takes the matrix's zero out.
    starts: Vec<i32>,
}

impl Activations {
    /// Number of inputs.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Whether these were quantized for such a product of so many columns.
    #[must_use]
    pub fn fits(&self, product: &Product, cols: usize) -> bool {
        (self.product.group(), self.product.planes(), self.product.zero(), self.cols)
            == (product.group(), product.planes(), product.zero(), cols)
    }

    const fn few(&self) -> bool {
        self.count <= FEW
    }

    /// Inputs that share a block.
    const fn block(&self) -> usize {
        if self.few() { 1 } else { BLOCK }
    }

    /// The place of one input's first parameter, and how far they lie apart.
    fn places(&self, n: usize) -> (usize, usize) {
        let (first, groups) = (n / self.block() * self.block(), self.cols / self.product.group());
        (first * groups + n - first, self.block().min(self.count - first))
    }

    /// Takes in one input: its codes in the order of a panel's quads, and for each group its scale and
    /// the sum of its codes.
    fn set(&mut self, n: usize, codes: &[i8], scales: &[f32], sums: &[i32]) {
        let (mut at, step) = self.places(n);
        for (&scale, &sum) in scales.iter().zip(sums) {
            self.scales[at] = scale;
            self.sums[at] = scale * sum as f32;
            self.starts[at] = -self.product.zero() * sum;
            at += step;
        }
        let quads = codes.as_chunks::<4>().0;
        if self.few() {
            let (planes, size) = (self.product.planes(), quads_of_lines(&self.product, self.cols));
            let mine = &mut self.codes[n * size..][..size];
            for (q, quad) in quads.iter().enumerate() {
                let (dword, plane) = (q / planes, q % planes);
                mine[(dword / 16 * planes + plane) * 16 + dword % 16] = *quad;
            }
        } else {
            let first = n / BLOCK * BLOCK;
            let places = self.codes[first * quads.len()..].iter_mut().skip(n - first).step_by(step);
            places.zip(quads).for_each(|(place, quad)| *place = *quad);
        }
    }

    /// The groups `from..to` of each block of inputs. Those of few inputs start with a line.
    fn blocks(&self, from: usize, to: usize) -> impl Iterator<Item = Inputs<'_>> {
        let (group, block) = (self.product.group(), self.block());
        let groups = self.cols / group;
        (0..self.count).step_by(block).enumerate().map(move |(n, first)| {
            let width = block.min(self.count - first);
            let at = first * groups + from * width..first * groups + to * width;
            let codes = if self.few() {
                let size = quads_of_lines(&self.product, self.cols);
                &self.codes[n * size..][from * group / 4..quads_of_lines(&self.product, to * group)]
            } else {
                &self.codes[at.start * group / 4..at.end * group / 4]
            };
            Inputs {
                width,
                codes,
                scales: &self.scales[at.clone()],
                sums: &self.sums[at.clone()],
                starts: &self.starts[at],
            }
        })
    }
}

/// Quads of an input in lines.
const fn quads_of_lines(product: &Product, cols: usize) -> usize {
    cols.next_multiple_of(64 * product.planes()) / 4
}

/// A run of groups of a block of inputs, as in [`Activations`].
pub(super) struct Inputs<'a> {
    /// Inputs of the block: 1 to 8.
    pub(super) width: usize,
    pub(super) codes: &'a [[i8; 4]],
    pub(super) scales: &'a [f32],
    pub(super) sums: &'a [f32],
    pub(super) starts: &'a [i32],
}

/// A run of groups of sixteen rows, the lanes.
#[derive(Clone, Copy)]
pub(super) struct Panel<'a> {
    /// Four codes of each row.
    pub(super) codes: &'a [[u8; 64]],
    /// For each group.
    pub(super) scales: &'a [[f32; LANES]],
    /// For each group, or none at all.
    pub(super) biases: &'a [[f32; LANES]],
}

/// A run of groups of up to sixteen rows as they lie.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    /// Rows that there are: one or more.
    pub(super) count: usize,
    /// Groups of the run.
    pub(super) groups: usize,
    /// Bytes from a row to the next.
    pub(super) stride: usize,
    /// The codes of the run in the first row, and on to the end of the last row's.
    pub(super) codes: &'a [u8],
    /// Bytes from the codes that are read to those that are wanted soon, whether there are any or not.
    pub(super) distance: usize,
    /// What else is wanted soon.
    pub(super) ahead: [Ahead<'a>; 2],
    /// Parameters from a row to the next.
    pub(super) pitch: usize,
    /// Those of the run in the first row, and on to the end of the last row's.
    pub(super) scales: &'a [f32],
    /// The same, or none at all.
    pub(super) biases: &'a [f32],
}

/// Room for what groups contribute to sixteen rows, sixteen groups at a time, before it is added in order.
pub(super) type Terms = [[[f32; LANES]; RUN]; LANES];

/// Times sixteen groups that are taken of a row before those of the next row: what a row has in store for
/// them stays in the first-level cache.
pub(super) const RUN: usize = 16;

/// A hint: the bytes at a distance from these are wanted soon, whether there are any or not. Sums leave a
/// machine little room to run ahead by itself.
#[derive(Clone, Copy, Default)]
pub(super) struct Ahead<'a> {
    pub(super) like: &'a [u8],
    pub(super) distance: usize,
}

impl<'a> Ahead<'a> {
    /// As many bytes as these, following them.
    fn after(like: &'a [u8]) -> Self {
        Self { like, distance: like.len() }
    }

    /// The hint in `count` parts.
    pub(super) fn parts(self, count: usize) -> impl Iterator<Item = Self> {
        let parts = self.like.chunks(self.like.len().div_ceil(count).max(1));
        parts.map(move |like| Self { like, ..self }).chain(std::iter::repeat(Self::default()))
    }
}

/// How packed rows become a panel.
pub(super) struct Tiling {
    /// Bytes from a row to the next.
    pub(super) stride: usize,
    /// Rows that there are, sixteen at most.
    pub(super) rows: usize,
    /// Codes of a byte: 1, 2 or 4.
    pub(super) planes: usize,
    /// What stands for the codes.
    pub(super) map: Map,
}

impl Kernels {
    /// Quantizes inputs of `cols` columns for products with such a matrix: per group, scale =
    /// largest magnitude / 127, codes rounded half to even. Groups with elements that are not finite
    /// make every product NaN.
    ///
    /// # Panics
    /// If `x` is no whole inputs, or these no whole groups.
    #[must_use]
    pub fn quantize_inputs(&self, product: &Product, cols: usize, x: &[f32]) -> Activations {
        check_product(product, cols);
        assert!(cols > 0 && x.len().is_multiple_of(cols), "{} elements are no whole inputs of {cols}", x.len());
        let (count, groups) = (x.len() / cols, cols / product.group());
        let quads = if count <= FEW { quads_of_lines(product, cols) } else { cols / 4 };
        let mut made = Activations {
            product: *product,
            cols,
            count,
            codes: vec![[0; 4]; count * quads],
            scales: vec![0.0; count * groups],
            sums: vec![0.0; count * groups],
            starts: vec![0; count * groups],
        };
        let (mut codes, mut scales, mut sums) = (vec![0; cols], vec![0.0; groups], vec![0; groups]);
        for (n, x) in x.chunks_exact(cols).enumerate() {
            (self.quantize_input)(product, x, &mut codes, &mut scales, &mut sums);
            made.set(n, &codes, &scales, &sums);
        }
        made
    }

    /// Products in integers of rows with quantized inputs, scaled and added per group; `y` is
    /// `[inputs, rows]`.
    ///
    /// # Panics
    /// If the inputs were quantized for another matrix, or the lengths do not fit together.
    pub fn multiply_coded(&self, product: &Product, matrix: &Coded<'_>, inputs: &Activations, y: &mut [f32]) {
        let cols = inputs.cols;
        assert!(inputs.fits(product, cols), "inputs for {:?} do not fit {product:?}", inputs.product);
        if inputs.count == 0 {
            return;
        }
        let rows = y.len() / inputs.count;
        check_coded(product, matrix, rows, cols);
        assert_eq!(y.len(), rows * inputs.count, "room for {rows} outputs of each input");
        if inputs.few() {
            rows::multiply(self, product, matrix, inputs, y);
        } else {
            panels::multiply(self, product, matrix, inputs, y);
        }
    }

    /// Scales and biases of whole rows as f32, `[row][group]`.
    fn parameters(&self, product: &Product, cols: usize, rows: &Coded<'_>, [scales, biases]: [&mut [f32]; 2]) {
        let blocks = cols / product.block();
        let count = rows.scales.len() / product.stored().size();
        (self.widen)(product.stored(), rows.scales, &mut scales[..count]);
        if let Product::Blocks { bits, zero: Zero::Points, .. } = product {
            (self.zero_points)(*bits, blocks, rows.biases, &scales[..count], &mut biases[..count]);
        } else if product.has_biases() {
            (self.widen)(product.stored(), rows.biases, &mut biases[..count]);
        }
        let times = product.block() / product.group();
        repeat(count, times, scales);
        repeat(count, times, biases);
    }
}

/// The first `count` values, each `times` times.
fn repeat(count: usize, times: usize, values: &mut [f32]) {
    if times > 1 && !values.is_empty() {
        for at in (0..count * times).rev() {
            values[at] = values[at / times];
        }
    }
}

fn check_product(product: &Product, cols: usize) {
    let bits = match product {
        Product::Blocks { bits, zero: Zero::Signed, .. } => *bits == 8,
        Product::Blocks { bits, .. } => matches!(bits, 2 | 4 | 8),
        _ => matches!(product.bits(), 2..=6 | 8),
    };
    let group = matches!(product.group(), 16 | 32 | 64 | 128) && product.group_bytes() >= 8;
    let block = product.block() > 0 && product.block().is_multiple_of(product.group());
    assert!(bits && group && block, "no such code: {product:?}");
    assert!(cols.is_multiple_of(product.block()), "{cols} columns are no whole groups of {}", product.block());
}

fn check_coded(product: &Product, matrix: &Coded<'_>, rows: usize, cols: usize) {
    let lengths = [matrix.codes.len(), matrix.scales.len(), matrix.biases.len()];
    let row = [product.row_bytes(cols), product.scale_bytes(cols), product.bias_bytes(cols)];
    assert_eq!(lengths, row.map(|bytes| rows * bytes), "{product:?}, {rows} rows of {cols}");
}
