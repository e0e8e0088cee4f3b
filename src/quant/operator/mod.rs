//! Operators: a quantized matrix that computes where it lies.
//!
//! An [`Operator`] owns shares of the bytes of a weight's parts and multiplies with them; nothing is
//! decoded ahead of time. Every scheme has one: [`Decoded`] decodes rows and multiplies them, and a scheme
//! with a kernel of its own overrides [`Scheme::operator`].
//!
//! Knows no file. Results do not depend on how rows are shared out among threads.

mod affine;
mod blocks;
mod micro;

use std::{
    borrow::Cow,
    fmt::{self, Debug},
    ops::{Deref, Range},
    sync::Arc,
};

use crate::{
    kernel::{Activations, Product, kernels},
    quant::{Axis, Scheme, Weight},
};

pub use affine::Affine;
pub use blocks::{Blocks, Form};
pub use micro::Micro;

/// A range of bytes of an owner that lives as long as they are used: a mapping, or memory.
#[derive(Clone)]
pub struct Bytes {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
}

impl Bytes {
    /// The bytes `range` of `owner`; `None` where it has not so many.
    #[must_use]
    pub fn new(owner: Arc<dyn AsRef<[u8]> + Send + Sync>, range: Range<usize>) -> Option<Self> {
        (*owner).as_ref().get(range.clone())?;
        Some(Self { owner, range })
    }

    /// All bytes of `owner`.
    #[must_use]
    pub fn all(owner: Arc<dyn AsRef<[u8]> + Send + Sync>) -> Self {
        let range = 0..(*owner).as_ref().len();
        Self { owner, range }
    }

    /// A part of these bytes; `None` where they are not so many.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        self.get(range.clone())?;
        let start = self.range.start;
        Some(Self { owner: Arc::clone(&self.owner), range: start + range.start..start + range.end })
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self::all(Arc::new(bytes))
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &(*self.owner).as_ref()[self.range.clone()]
    }
}

impl Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({:?})", self.range)
    }
}

/// How products are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Arithmetic {
    /// With the activations in f32 and the weights as the decoder gives them. Sixteen partial sums in a
    /// fixed order: with n columns, the error against exact arithmetic is at most
    /// `(n / 16 + 6) * 2^-24 * sum |w x|`.
    ///
    /// The dot product of bf16 pairs that some processors have (`VDPBF16PS`) is not used, not for bf16 weights
    /// either: it takes inputs that were rounded to bf16, rounds at other places and makes zeros of subnormals,
    /// so that neither this bound nor equal results on every processor would hold.
    Exact,
    /// With the activations quantized to int8 per group, where the operator has such a kernel; exact
    /// otherwise. Products of codes are integers; their sums are scaled and added per group in f32.
    ///
    /// Groups are those of affine codes, mxfp4 and nvfp4. Of symmetric int8 and MatMulNBits a group is
    /// the largest of 128, 64, 32 and 16 elements that makes up a block (which may be a row) and whose
    /// codes fill 8 bytes; where there is none, and for mxfp8, compressed-tensors and full precision, products are
    /// exact.
    ///
    /// With `s` = largest |x| of a group / 127, each activation is off by at most `s / 2` (and its
    /// own rounding). Against exact arithmetic on the decoded weights the error of an output is at
    /// most the sum, over its groups (G of them) and their elements, of
    /// - `0.5001 s |w|`: the activations,
    /// - `(2 G + 4) 2^-24 * 128 s (|code * scale| + |bias|)`: the sums in f32,
    /// - `u (|x| + s) (2 |code * scale| + |bias|)`: the decoder of affine codes rounds twice to the
    ///   stored dtype, and this arithmetic does not (`u` is 2^-8 for bfloat16, 2^-11 for half, 2^-24
    ///   for f32; values that the dtype holds as subnormals aside). For symmetric int8 and MatMulNBits
    ///   `u` is 2^-24; zero points make `bias = -zero * scale`, and where zero is the same for all,
    ///   `code` counts from it and there is no bias.
    ///
    /// A group whose scale would be subnormal (magnitudes below 2^-119) counts as zeros. A group with
    /// an activation that is not finite makes its outputs NaN.
    #[default]
    Int8,
}

impl Arithmetic {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Int8, Self::Exact];

    /// As flags spell it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Int8 => "int8",
            Self::Exact => "exact",
        }
    }
}

/// Inputs in the form that an operator multiplies, made once for all ranges of its rows.
#[derive(Debug)]
pub struct Inputs<'x> {
    x: &'x [f32],
    arithmetic: Arithmetic,
    codes: Option<Activations>,
}

impl<'x> Inputs<'x> {
    /// The inputs as they are.
    #[must_use]
    pub fn plain(x: &'x [f32], arithmetic: Arithmetic) -> Self {
        Self { x, arithmetic, codes: None }
    }

    /// The inputs of `cols` columns quantized for a product of `width`, with zeros in the columns that they
    /// lack, where the arithmetic is int8.
    #[must_use]
    pub fn quantized(product: &Product, cols: usize, width: usize, x: &'x [f32], arithmetic: Arithmetic) -> Self {
        let codes = (arithmetic == Arithmetic::Int8).then(|| quantize(product, cols, width, x));
        Self { x, arithmetic, codes }
    }

    /// The codes for a product; quantized here if these inputs were prepared for another. `None`
    /// where the arithmetic is exact.
    fn codes_for(&self, product: &Product, cols: usize, width: usize) -> Option<Cow<'_, Activations>> {
        if self.arithmetic == Arithmetic::Exact {
            return None;
        }
        let ours = self.codes.as_ref().filter(|codes| codes.fits(product, width));
        Some(ours.map_or_else(|| Cow::Owned(quantize(product, cols, width, self.x)), Cow::Borrowed))
    }
}

/// As [`Inputs::quantized`].
fn quantize(product: &Product, cols: usize, width: usize, x: &[f32]) -> Activations {
    if cols == width {
        return kernels().quantize_inputs(product, cols, x);
    }
    let mut filled = vec![0.0; x.len() / cols * width];
    filled.chunks_exact_mut(width).zip(x.chunks_exact(cols)).for_each(|(to, from)| to[..cols].copy_from_slice(from));
    kernels().quantize_inputs(product, width, &filled)
}

/// A matrix `[out, in]` (or a stack of them, whose rows follow each other) that multiplies.
///
/// Lengths are the caller's to check; an operator panics where they do not fit.
pub trait Operator: Send + Sync + Debug {
    /// Rows of the matrix: outputs.
    fn rows(&self) -> usize;

    /// Columns of the matrix: inputs.
    fn cols(&self) -> usize;

    /// The values of some rows, `rows.len() * cols` of them, as the reference decoder gives them.
    fn decode(&self, rows: Range<usize>, out: &mut [f32]);

    /// `y[b, r] = sum over c of w[rows.start + r, c] * x[b, c]` for every row of `rows` and every one
    /// of the `x.len() / cols` inputs. `y` is `[inputs, rows.len()]`. Runs on the calling thread.
    fn multiply(&self, rows: Range<usize>, x: &[f32], arithmetic: Arithmetic, y: &mut [f32]);

    /// What [`multiply_prepared`](Self::multiply_prepared) takes: the inputs, quantized where the
    /// arithmetic has them so.
    fn prepare<'x>(&self, x: &'x [f32], arithmetic: Arithmetic) -> Inputs<'x> {
        Inputs::plain(x, arithmetic)
    }

    /// [`multiply`](Self::multiply) of inputs that were prepared once for several ranges of rows.
    fn multiply_prepared(&self, rows: Range<usize>, inputs: &Inputs<'_>, y: &mut [f32]) {
        self.multiply(rows, inputs.x, inputs.arithmetic, y);
    }
}

/// Elements that are decoded before they meet the inputs: half of a second-level cache.
const DECODED: usize = 1 << 16;

/// Products in f32 with rows as the decoder gives them, some at a time: all that an operator without a
/// kernel of its own needs.
pub(in crate::quant) fn exact(operator: &dyn Operator, rows: Range<usize>, x: &[f32], y: &mut [f32]) {
    let (cols, count) = (operator.cols(), rows.len());
    if cols == 0 || y.is_empty() {
        return y.fill(0.0);
    }
    let inputs = x.len() / cols;
    assert_eq!(y.len(), inputs * count, "room for {count} outputs of each input");
    let step = (DECODED / cols).clamp(1, count);
    let (mut values, mut products) = (vec![0.0; step * cols], vec![0.0; step * inputs]);
    for first in rows.clone().step_by(step) {
        let some = step.min(rows.end - first);
        let (values, products) = (&mut values[..some * cols], &mut products[..some * inputs]);
        operator.decode(first..first + some, values);
        kernels().multiply(cols, values, x, products);
        for (from, to) in products.chunks_exact(some).zip(y.chunks_exact_mut(count)) {
            to[first - rows.start..][..some].copy_from_slice(from);
        }
    }
}

/// The operator of any scheme: multiplies rows as the scheme decodes them, exactly under either arithmetic.
#[derive(Debug)]
pub struct Decoded {
    scheme: Arc<dyn Scheme>,
    weight: Weight,
    parts: Vec<Bytes>,
}

impl Decoded {
    /// An operator over the parts of a weight, in the order of [`Scheme::parts`].
    #[must_use]
    pub fn new(scheme: Arc<dyn Scheme>, weight: Weight, parts: Vec<Bytes>) -> Self {
        Self { scheme, weight, parts }
    }
}

impl Decoded {
    /// The values of a band along the scheme's axis.
    fn band(&self, band: Range<usize>, out: &mut [f32]) {
        let banding = self.scheme.banding(&self.weight);
        let extent = banding.extent(&self.weight);
        let layout = self.scheme.parts(&self.weight).unwrap_or_default();
        let encoded = layout.iter().zip(&self.parts).filter(|(part, _)| part.is_encoded());
        let parts: Vec<&[u8]> =
            encoded.map(|(part, bytes)| part.for_decoding(bytes, banding, extent, band.clone())).collect();
        let rows = match banding.axis {
            Axis::Flat => 1,
            Axis::Rows => band.len(),
            Axis::Columns => self.weight.rows(),
        };
        self.scheme.decode(&parts, self.weight.float, rows, out);
    }

    /// Rows whose elements are a run of the axis: a band that holds them is decoded, and cut.
    fn along(&self, unit: usize, rows: &Range<usize>, out: &mut [f32]) {
        let banding = self.scheme.banding(&self.weight);
        let per = if banding.axis == Axis::Flat { unit } else { 1 };
        let start = rows.start * per / banding.granule * banding.granule;
        let end = ((rows.end * per).div_ceil(banding.granule) * banding.granule).min(banding.extent(&self.weight));
        let size = unit / per;
        let skip = (rows.start * per - start) * size;
        if skip == 0 && (end - start) * size == out.len() {
            return self.band(start..end, out);
        }
        let mut values = vec![0.0; (end - start) * size];
        self.band(start..end, &mut values);
        out.copy_from_slice(&values[skip..skip + out.len()]);
    }

    /// Rows that cross all bands.
    fn across(&self, cols: usize, rows: &Range<usize>, out: &mut [f32]) {
        let banding = self.scheme.banding(&self.weight);
        let height = self.weight.rows();
        for start in (0..cols).step_by(banding.granule) {
            let width = banding.granule.min(cols - start);
            let mut values = vec![0.0; height * width];
            self.band(start..start + width, &mut values);
            for (row, out) in rows.clone().zip(out.chunks_mut(cols)) {
                out[start..start + width].copy_from_slice(&values[row * width..(row + 1) * width]);
            }
        }
    }
}

impl Operator for Decoded {
    fn rows(&self) -> usize {
        self.weight.rows()
    }

    fn cols(&self) -> usize {
        self.weight.cols()
    }

    fn decode(&self, rows: Range<usize>, out: &mut [f32]) {
        let cols = self.weight.cols();
        assert_eq!(out.len(), rows.len() * cols, "room for {} rows of {cols}", rows.len());
        if out.is_empty() {
            return;
        }
        match self.scheme.banding(&self.weight).axis {
            Axis::Flat | Axis::Rows => self.along(cols, &rows, out),
            Axis::Columns => self.across(cols, &rows, out),
        }
    }

    fn multiply(&self, rows: Range<usize>, x: &[f32], _: Arithmetic, y: &mut [f32]) {
        exact(self, rows, x, y);
    }
}
