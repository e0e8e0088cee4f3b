//! Quantization: rows in, bytes out.
//!
//! A [`Format`] is how quantized weights are stored; bound to parameters it is a [`Scheme`], which
//! does the arithmetic of one weight. A [`Dialect`] is everything a family of loaders wants that is
//! not arithmetic: names, stacks, what is eligible, the patched `config.json`. Both are reached
//! through [`FORMATS`], one file each.
//!
//! Knows no file, no offset and no cache. What a scheme cannot do it says in [`Scheme::parts`], from
//! the header alone; after that encoding cannot fail.

pub mod dialect;
pub mod format;
pub mod manifest;
pub mod method;
pub mod operator;
pub mod recognize;
pub mod stated;

use std::{fmt::Debug, ops::Range, sync::Arc};

use serde_json::Value;

use crate::tensor::{Dtype, Float, Rows};

pub use dialect::Dialect;
pub use format::FORMATS;
pub use method::Importance;
pub use recognize::{Module, Recognized};

/// A logical matrix, or a stack of matrices, that is encoded as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weight {
    /// Name without its `.weight`, as the view shows it.
    pub stem: String,
    /// Type of the elements that the scheme is given.
    pub float: Float,
    /// Dimensions; groups run along the last one.
    pub shape: Vec<usize>,
}

impl Weight {
    /// Elements of a row: the last dimension, 1 for a scalar.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Rows of all matrices of the stack.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.shape.split_last().map_or(1, |(_, lead)| lead.iter().product())
    }

    /// Number of elements.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.rows() * self.cols()
    }
}

/// The direction in which a weight is cut into tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Axis {
    /// Runs of elements in flat row-major order: formats whose groups never straddle a row, or that
    /// take no notice of rows.
    Flat,
    /// Bands of whole rows.
    Rows,
    /// Bands of whole columns: packings along the input (GPTQ, AWQ).
    Columns,
}

/// How a weight may be cut: along `axis`, at multiples of `granule`.
///
/// A band `a..b` (in units of the axis, both multiples of the granule or the end) is encoded alone,
/// and its bytes are one contiguous range of every part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Banding {
    /// Direction.
    pub axis: Axis,
    /// Smallest band, in elements, rows or columns.
    pub granule: usize,
}

impl Banding {
    /// Length of the weight along the axis.
    #[must_use]
    pub fn extent(&self, weight: &Weight) -> usize {
        match self.axis {
            Axis::Flat => weight.elements(),
            Axis::Rows => weight.rows(),
            Axis::Columns => weight.cols(),
        }
    }
}

/// Where the bytes of a part come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Encoded with the tiles; so many bytes for each granule of the banding (the last granule may
    /// have fewer).
    Tiled {
        /// Bytes of one whole granule.
        per_granule: usize,
    },
    /// Written with the first band, whole: what a [`Survey`] found.
    First,
    /// Known from the header alone (shapes, group indexes, code tables).
    Constant(Arc<[u8]>),
}

/// One output tensor of a quantized weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Appended to the weight's stem: `.weight`, `.scales`.
    pub suffix: &'static str,
    /// Element type in the view's header.
    pub dtype: Dtype,
    /// Shape in the view's header.
    pub shape: Vec<usize>,
    /// Where its bytes come from.
    pub content: Content,
}

impl Part {
    /// Bytes of the whole part.
    #[must_use]
    pub fn len(&self) -> usize {
        crate::tensor::byte_len(self.dtype, &self.shape).unwrap_or(0)
    }

    /// Whether the part has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether its bytes are written by [`Scheme::encode`].
    #[must_use]
    pub fn is_encoded(&self) -> bool {
        !matches!(self.content, Content::Constant(_))
    }

    /// The bytes of this part that a band `a..b` of a weight of `extent` makes. Empty for constants.
    #[must_use]
    pub fn range(&self, banding: Banding, extent: usize, band: Range<usize>) -> Range<usize> {
        match self.content {
            Content::Tiled { per_granule } => {
                let at = |x: usize| if x >= extent { self.len() } else { x / banding.granule * per_granule };
                at(band.start)..at(band.end)
            }
            Content::First if band.start == 0 => 0..self.len(),
            Content::First => self.len()..self.len(),
            Content::Constant(_) => 0..0,
        }
    }

    /// The bytes of this part, given whole, that [`Scheme::decode`] is given for a band: the band's, and all
    /// of what was written with the first one.
    #[must_use]
    pub fn for_decoding<'a>(&self, bytes: &'a [u8], banding: Banding, extent: usize, band: Range<usize>) -> &'a [u8] {
        match self.content {
            Content::Tiled { .. } => &bytes[self.range(banding, extent, band)],
            Content::First | Content::Constant(_) => bytes,
        }
    }
}

/// A weight or a combination that a scheme cannot store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unsupported(pub String);

/// What manifests and configs say of a scheme.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Bits of a code.
    pub bits: u32,
    /// Elements that share their parameters; 0 where they are a whole row or tensor.
    pub group_size: usize,
    /// `affine`, `mxfp4`, ...: the word that readers of the format use.
    pub mode: &'static str,
}

/// A format bound to its parameters: the arithmetic of one weight.
///
/// The bytes that [`encode`](Self::encode) writes are a function of the elements alone: not of the
/// CPU, nor of where the band lies.
pub trait Scheme: Send + Sync + Debug {
    /// Names the bytes: scheme, parameters and the revision of its encoding. Two schemes with the
    /// same id write the same bytes for the same elements (it is part of the cache key).
    fn id(&self) -> String;

    /// Bits, group size and mode.
    fn facts(&self) -> Facts;

    /// What the format's own configs say of weights stored so, beyond [`facts`](Self::facts): null where
    /// that is all.
    fn config(&self) -> Value {
        Value::Null
    }

    /// The tensors that a weight becomes; codes first. They lie in the file in this order.
    ///
    /// # Errors
    /// A shape that the packing cannot hold, with the reason.
    fn parts(&self, weight: &Weight) -> Result<Vec<Part>, Unsupported>;

    /// How a weight may be cut.
    fn banding(&self, weight: &Weight) -> Banding;

    /// For bands of columns: how many rows of a band, or a multiple, may be encoded alone, as if the weight had no
    /// others. Their bytes are then a share, in proportion, of each line of every part, which is as long as its
    /// last dimension. `None` where a band is encoded whole.
    fn strip_rows(&self) -> Option<usize> {
        None
    }

    /// What must be known of the whole weight before any of it is encoded; mostly nothing. Where there is
    /// something, the scheme that [`Survey::conclude`] gives encodes the bands, and this one takes
    /// each band for the whole weight.
    fn survey(&self, weight: &Weight) -> Option<Arc<dyn Survey>> {
        let _ = weight;
        None
    }

    /// Encodes one band; `out` has one slice for each part that is no constant, of the length that
    /// [`Part::range`] gives.
    fn encode(&self, band: Rows<'_>, out: &mut [&mut [u8]]);

    /// The same for a band that starts at `start`, along the axis of the [`banding`](Self::banding). Only schemes that
    /// [weigh errors](Self::weighted) want to know.
    fn encode_at(&self, start: usize, band: Rows<'_>, out: &mut [&mut [u8]]) {
        let _ = start;
        self.encode(band, out);
    }

    /// The scheme for weights whose errors weigh so, which an importance [fits](Importance::fits). `None` where its method
    /// weighs no errors, or where rows differ in what their columns matter and it cannot tell rows apart.
    fn weighted(&self, importance: &Importance) -> Option<Arc<dyn Scheme>> {
        let _ = importance;
        None
    }

    /// Bytes that encoding so many elements takes beside them and the parts; nearly none but for schemes that store
    /// and decode.
    fn scratch(&self, elements: usize) -> usize {
        let _ = elements;
        0
    }

    /// The reference decoder: the values of a band, `out.len()` of them, from the parts that are no
    /// constants, as [`Part::for_decoding`] cuts them. `rows` is
    /// the band's, as [`encode`](Self::encode) was given it: 1 where it is a run in flat order.
    fn decode(&self, parts: &[&[u8]], float: Float, rows: usize, out: &mut [f32]);

    /// An operator with kernels of its own over the parts of a weight, in the order of
    /// [`parts`](Self::parts); `None` leaves it to [`operator::Decoded`].
    fn operator(&self, weight: &Weight, parts: &[operator::Bytes]) -> Option<Arc<dyn operator::Operator>> {
        let _ = (weight, parts);
        None
    }
}

/// A question about whole weights: the largest element, say. One answer may be for several weights
/// together ([`Dialect::siblings`]).
///
/// What it concludes is a function of the elements alone: not of how they were cut into bands.
pub trait Survey: Send + Sync + Debug {
    /// What one band tells.
    fn look(&self, band: Rows<'_>) -> Vec<f32>;

    /// Whether weights that loaders fuse ([`Dialect::siblings`]) have one answer together.
    fn is_joint(&self) -> bool {
        true
    }

    /// The scheme that encodes, from what all bands of all weights told, in order.
    fn conclude(&self, looks: &[Vec<f32>]) -> Arc<dyn Scheme>;
}

/// How quantized weights are stored. One static instance, one file.
pub trait Format: Sync + Debug {
    /// As specs spell it: `mlx`.
    fn name(&self) -> &'static str;

    /// Longer spellings that specs may use: `compressed-tensors` for `ct`.
    fn other_names(&self) -> &'static [&'static str] {
        &[]
    }

    /// Names of its schemes, the default first. `source` keeps every weight as it is.
    fn schemes(&self) -> &'static [&'static str];

    /// The choices that a scheme offers, in the order of the canonical spelling; in each the default
    /// is first. A choice of groups (`g64`, `channel`, ...) comes first where there is one.
    fn options(&self, scheme: &str) -> Vec<&'static [&'static str]>;

    /// The scheme of a name with one chosen word for each of [`options`](Self::options). `None`
    /// where the scheme keeps the source's precision.
    ///
    /// # Errors
    /// A combination that the format does not have.
    fn bind(&self, scheme: &str, options: &[&str]) -> Result<Option<Arc<dyn Scheme>>, Unsupported>;

    /// The scheme that stored a module, where its tensors have this format's layout. Which of several
    /// schemes wrote the same layout (another rounding, say) does not matter to a reader: the first
    /// one that decodes it is the answer.
    ///
    /// # Errors
    /// A module of the layout that cannot be read, with the reason.
    fn recognize(&self, module: &Module<'_>) -> Option<Result<Recognized, Unsupported>>;

    /// The loaders' side of it.
    fn dialect(&self) -> &'static dyn Dialect;

    /// Who reads it, for the table.
    fn readers(&self) -> &'static str;

    /// What a reader of the table must know (what is unverified, say); often nothing.
    fn notes(&self) -> &'static str {
        ""
    }
}
