//! Products with quantized matrices: how the steps of a table follow each other.
//!
//! Inputs are quantized to int8 once ([`Kernels::quantize_inputs`]); rows are then taken in pairs of
//! panels, a stretch of columns at a time that stays in the first-level cache: its codes are unpacked
//! once and meet every input. Nothing is repacked ahead of time, and codes may lie at any alignment.
//!
//! Always: an output is the same bits whatever the table, the other rows and the other inputs
//! (`body::dot` says in which order it is summed).

use crate::tensor::Float;

use super::{Kernels, MicroCode, body::dot::LANES};

/// Columns that are unpacked at a time: a multiple of every group, and with 32 rows 16 KiB of codes.
const STRETCH: usize = 512;
/// Panels that meet an input together: with eight inputs, sixteen running sums.
const PANELS: usize = 2;
/// Inputs of a block: as many as share the load of a panel's codes.
const BLOCK: usize = 8;

/// Codes that multiply with int8 in integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Product {
    /// `code * scale + bias`, with parameters in a float.
    Affine {
        /// Bits of a code: 2, 3, 4, 5, 6 or 8.
        bits: u32,
        /// Elements of a group: 32, 64 or 128.
        group: usize,
        /// The scales and biases.
        stored: Float,
    },
    /// e2m1 elements, an e8m0 scale for 32 of them.
    Mxfp4,
    /// e2m1 elements, an e4m3 scale for 16 of them.
    Nvfp4,
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
        if let Self::Affine { bits, .. } = self { *bits } else { 4 }
    }

    /// Elements of a group.
    #[must_use]
    pub const fn group(&self) -> usize {
        match self {
            Self::Affine { group, .. } => *group,
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
        if matches!(self, Self::Affine { .. }) { 0 } else { 12 }
    }

    const fn parameter(&self) -> usize {
        match self {
            Self::Affine { stored: Float::F32, .. } => 4,
            Self::Affine { .. } => 2,
            Self::Mxfp4 | Self::Nvfp4 => 1,
        }
    }

    const fn row_bytes(&self, cols: usize) -> usize {
        cols / 8 * self.bits() as usize
    }
}

/// The parts of whole rows of a matrix, each row after the other.
#[derive(Clone, Copy, Debug)]
pub struct Coded<'a> {
    /// Packed codes.
    pub codes: &'a [u8],
    /// A scale for each group.
    pub scales: &'a [u8],
    /// A bias for each group, empty where the code has none.
    pub biases: &'a [u8],
}

/// Inputs quantized to int8, symmetrically, in the groups of a matrix's columns.
#[derive(Clone, Debug)]
pub struct Activations {
    product: Product,
    cols: usize,
    count: usize,
    /// Blocks of inputs; in each `[quad][input][4]`.
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

    /// The groups `from..to` of each block of inputs.
    fn blocks(&self, from: usize, to: usize) -> impl Iterator<Item = Inputs<'_>> {
        let group = self.product.group();
        let (groups, quads) = (self.cols / group, group / 4);
        (0..self.count).step_by(BLOCK).map(move |first| {
            let width = BLOCK.min(self.count - first);
            let at = first * groups + from * width..first * groups + to * width;
            Inputs {
                width,
                codes: &self.codes[at.start * quads..at.end * quads],
                scales: &self.scales[at.clone()],
                sums: &self.sums[at.clone()],
                starts: &self.starts[at],
            }
        })
    }
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

/// A run of groups of sixteen rows, the lanes. Parameters are little-endian f32.
#[derive(Clone, Copy)]
pub(super) struct Panel<'a> {
    /// Four codes of each row.
    pub(super) codes: &'a [[u8; 64]],
    /// For each group.
    pub(super) scales: &'a [[u8; 64]],
    /// For each group, or none at all.
    pub(super) biases: &'a [[u8; 64]],
}

/// How packed rows become a panel.
pub(super) struct Tiling {
    /// Bytes from a row to the next.
    pub(super) stride: usize,
    /// Rows that there are, sixteen at most.
    pub(super) rows: usize,
    /// Codes of a byte: 1, 2 or 4.
    pub(super) planes: usize,
    /// Whether the codes are e2m1.
    pub(super) e2m1: bool,
}

/// Room for a pair of panels, used again and again.
struct Scratch {
    codes: Vec<[u8; 64]>,
    scales: Vec<[u8; 64]>,
    biases: Vec<[u8; 64]>,
    spread: Vec<u8>,
    /// `[block of inputs][panel][input][row]`
    sums: Vec<[f32; LANES]>,
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
        let (count, groups, quads) = (x.len() / cols, cols / product.group(), cols / 4);
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
            let (first, lane) = (n / BLOCK * BLOCK, n % BLOCK);
            let width = BLOCK.min(count - first);
            let places = made.codes[first * quads..].iter_mut().skip(lane).step_by(width);
            places.zip(codes.as_chunks::<4>().0).for_each(|(place, quad)| *place = *quad);
            for (g, (&scale, &sum)) in scales.iter().zip(&sums).enumerate() {
                let at = first * groups + g * width + lane;
                made.scales[at] = scale;
                made.sums[at] = scale * sum as f32;
                made.starts[at] = -product.zero() * sum;
            }
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
        let (row_bytes, parameters) = (product.row_bytes(cols), cols / product.group() * product.parameter());
        let mut scratch = Scratch::new(product, cols, inputs.count);
        for first in (0..rows).step_by(PANELS * LANES) {
            let band = Coded {
                codes: &matrix.codes[first * row_bytes..],
                scales: &matrix.scales[first * parameters..],
                biases: matrix.biases.get(first * parameters..).unwrap_or_default(),
            };
            let count = (rows - first).min(PANELS * LANES);
            self.band(product, &band, count, inputs, &mut scratch);
            scratch.store(inputs.count, count, |input, row, sum| y[input * rows + first + row] = sum);
        }
    }

    /// The sums of up to a pair of panels of rows with every input, left in the scratch.
    fn band(&self, product: &Product, band: &Coded<'_>, rows: usize, inputs: &Activations, scratch: &mut Scratch) {
        let (group, cols) = (product.group(), inputs.cols);
        let groups = cols / group;
        let panels = rows.div_ceil(LANES);
        self.parameters(product, band.scales, rows, groups, &mut scratch.spread, &mut scratch.scales);
        if !band.biases.is_empty() {
            self.parameters(product, band.biases, rows, groups, &mut scratch.spread, &mut scratch.biases);
        }
        scratch.sums.fill([0.0; LANES]);
        for start in (0..cols).step_by(STRETCH) {
            let width = STRETCH.min(cols - start);
            let (from, to) = (start / group, (start + width) / group);
            self.unpack(product, band.codes, rows, cols, start..start + width, scratch);
            let panel = |p: usize| Panel {
                codes: &scratch.codes[p * STRETCH / 4..][..width / 4],
                scales: &scratch.scales[p * groups..][from..to],
                biases: scratch.biases.get(p * groups..).and_then(|b| b.get(from..to)).unwrap_or_default(),
            };
            let both = [panel(0), panel(panels - 1)];
            let mut sums = scratch.sums.as_mut_slice();
            for block in inputs.blocks(from, to) {
                let (ours, rest) = sums.split_at_mut(block.width * PANELS);
                (self.accumulate)(product, &both[..panels], &block, &mut ours[..block.width * panels]);
                sums = rest;
            }
        }
    }

    /// Parameters of a pair of panels as f32, lane by lane: `[panel][group][row]`.
    fn parameters(
        &self,
        product: &Product,
        src: &[u8],
        rows: usize,
        groups: usize,
        wide: &mut [u8],
        out: &mut [[u8; 64]],
    ) {
        let bytes = groups * product.parameter();
        for (p, out) in out.chunks_exact_mut(groups).enumerate().take(rows.div_ceil(LANES)) {
            let first = p * LANES;
            let rows = LANES.min(rows - first);
            let wide = &mut wide[..rows * groups * 4];
            (self.parameters)(product, &src[first * bytes..(first + rows) * bytes], wide);
            (self.tile)(&Tiling { stride: groups * 4, rows, planes: 1, e2m1: false }, wide, out);
        }
    }

    /// The codes of some columns as panels.
    fn unpack(
        &self,
        product: &Product,
        src: &[u8],
        rows: usize,
        cols: usize,
        stretch: std::ops::Range<usize>,
        scratch: &mut Scratch,
    ) {
        let (stride, width) = (product.row_bytes(cols), stretch.len());
        for (p, out) in scratch.codes.chunks_exact_mut(STRETCH / 4).enumerate().take(rows.div_ceil(LANES)) {
            let first = p * LANES;
            let rows = LANES.min(rows - first);
            let src = &src[first * stride + product.row_bytes(stretch.start)..];
            let out = &mut out[..width / 4];
            let e2m1 = product.zero() != 0;
            if matches!(product.bits(), 2 | 4 | 8) {
                (self.tile)(&Tiling { stride, rows, planes: product.planes(), e2m1 }, src, out);
            } else {
                let spread = &mut scratch.spread[..rows * width];
                for (row, out) in spread.chunks_exact_mut(width).enumerate() {
                    (self.spread)(product.bits(), &src[row * stride..][..product.row_bytes(width)], out);
                }
                (self.tile)(&Tiling { stride: width, rows, planes: 1, e2m1 }, spread, out);
            }
        }
    }
}

impl Scratch {
    fn new(product: &Product, cols: usize, count: usize) -> Self {
        let groups = cols / product.group();
        let biases = if matches!(product, Product::Affine { .. }) { PANELS * groups } else { 0 };
        Self {
            codes: vec![[0; 64]; PANELS * STRETCH / 4],
            scales: vec![[0; 64]; PANELS * groups],
            biases: vec![[0; 64]; biases],
            spread: vec![0; LANES * STRETCH.max(groups * 4)],
            sums: vec![[0.0; LANES]; count * PANELS],
        }
    }

    /// Hands out the sums of the first `rows` rows.
    fn store(&self, count: usize, rows: usize, mut out: impl FnMut(usize, usize, f32)) {
        for first in (0..count).step_by(BLOCK) {
            let width = BLOCK.min(count - first);
            for row in 0..rows {
                for w in 0..width {
                    out(first + w, row, self.sums[first * PANELS + row / LANES * width + w][row % LANES]);
                }
            }
        }
    }
}

fn check_product(product: &Product, cols: usize) {
    if let Product::Affine { bits, group, .. } = product {
        assert!(matches!(bits, 2..=6 | 8) && matches!(group, 32 | 64 | 128), "no such affine code: {product:?}");
    }
    assert!(cols.is_multiple_of(product.group()), "{cols} columns are no whole groups of {}", product.group());
}

fn check_coded(product: &Product, matrix: &Coded<'_>, rows: usize, cols: usize) {
    let parameters = rows * (cols / product.group()) * product.parameter();
    let biases = if matches!(product, Product::Affine { .. }) { parameters } else { 0 };
    let lengths = (matrix.codes.len(), matrix.scales.len(), matrix.biases.len());
    assert_eq!(lengths, (rows * product.row_bytes(cols), parameters, biases), "{product:?}, {rows} rows of {cols}");
}
