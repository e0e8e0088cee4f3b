//! The plan: headers and a spec become files, extents and weights.
//!
//! A plan is computed from headers alone: no weight byte is read to lay out the view. It is
//! immutable, printable and comparable; a file's length is exact before anything is quantized.
//!
//! Knows sources and formats; knows no cache, no FUSE, and reads nothing but headers and JSON.

mod adapters;
mod build;
mod decide;
mod dense;
mod digest;
mod error;
mod graph;
mod importance;
mod layout;
mod origin;
mod overrides;
mod rename;
mod report;
mod rules;
mod snapshot;
mod spec;
mod split;
mod survey;

use std::{sync::Arc, time::SystemTime};

use crate::{
    quant::{Axis, Banding, Part, Scheme, Survey, Unsupported, Weight},
    source::{FileId, Source},
    tensor::Float,
};

pub use adapters::Adapter;
pub use build::{build, importance_of_weights};
pub use error::Error;
pub use importance::Importance;
pub use overrides::Override;
pub use rename::Rename;
pub use report::{Row, Totals};
pub use rules::Rule;
pub use spec::{Parts, Spec};

/// What is asked of a view.
#[derive(Clone, Debug)]
pub struct Options {
    /// What weights become.
    pub spec: Spec,
    /// Exceptions, the first match wins.
    pub rules: Vec<Rule>,
    /// The reference tool's recipe that chooses schemes by names.
    pub predicate: Option<Predicate>,
    /// Components that are asked to be something else than the view.
    pub components: Vec<ComponentOptions>,
    /// What floating tensors are cast to first; `None` does as the format's reference tool.
    pub dtype: Option<Float>,
    /// Bytes of a shard where the set is laid out afresh; `None` mirrors the source's files.
    pub shard_size: Option<u64>,
    /// Globs of full-precision twins that are shown all the same.
    pub show: Vec<String>,
    /// What lies beside the source's tree and whose tensors replace the snapshot's of the same names; the last one wins.
    pub overrides: Vec<Override>,
    /// What is added to tensors, in this order.
    pub adapters: Vec<Adapter>,
    /// What the errors of weights weigh, where their method weighs them.
    pub importance: Option<Arc<Importance>>,
    /// Whether all-in-one checkpoints are shown as component directories.
    pub split: bool,
    /// New names of the view's tensors; all apply, one after the other.
    pub renames: Vec<Rename>,
}

impl Options {
    /// A spec and nothing else.
    #[must_use]
    pub fn new(spec: Spec) -> Self {
        Self {
            spec,
            rules: vec![],
            predicate: None,
            components: vec![],
            dtype: None,
            shard_size: None,
            show: vec![],
            overrides: vec![],
            adapters: vec![],
            importance: None,
            split: false,
            renames: vec![],
        }
    }

    /// Whether the method of some spec among them weighs errors.
    #[must_use]
    pub fn weigh_errors(&self) -> bool {
        let rules = self.rules.iter().chain(self.components.iter().flat_map(|component| &component.rules));
        let specs = rules.map(|rule| &rule.spec).chain(self.components.iter().map(|component| &component.spec));
        specs.chain([&self.spec]).any(Spec::weighs_errors)
    }

    /// The same without importance that no method among them weighs errors by: such a view has no use for it, and its plan
    /// would refuse it.
    #[must_use]
    pub fn without_idle_importance(&self) -> Self {
        Self { importance: self.importance.clone().filter(|_| self.weigh_errors()), ..self.clone() }
    }

    /// As the flags of the command line would say it, without what is left at its default.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        let mut json = serde_json::json!({ "spec": self.spec.to_string() });
        if !self.rules.is_empty() {
            json["rules"] = texts(&self.rules);
        }
        if let Some(predicate) = &self.predicate {
            json["predicate"] = predicate.name.as_str().into();
            if let Some(group) = predicate.group_size {
                json["group_size"] = group.into();
            }
        }
        for component in &self.components {
            let mut own = serde_json::json!({ "spec": component.spec.to_string() });
            if !component.rules.is_empty() {
                own["rules"] = texts(&component.rules);
            }
            json["components"][component.dir.as_str()] = own;
        }
        if let Some(dtype) = self.dtype {
            json["dtype"] = dtype.name().into();
        }
        if let Some(size) = self.shard_size {
            json["shard_size"] = size.to_string().into();
        }
        if !self.show.is_empty() {
            json["show"] = self.show.clone().into();
        }
        if !self.overrides.is_empty() {
            json["overrides"] = self.overrides.iter().map(|o| o.text.as_str()).collect();
        }
        if !self.adapters.is_empty() {
            json["loras"] = self.adapters.iter().map(|a| a.text.as_str()).collect();
        }
        if let Some(importance) = &self.importance {
            json["importance"] = importance.text().into();
        }
        if self.split {
            json["split"] = true.into();
        }
        if !self.renames.is_empty() {
            json["renames"] = self.renames.iter().map(|r| r.text.as_str()).collect();
        }
        json
    }
}

fn texts(rules: &[Rule]) -> serde_json::Value {
    rules.iter().map(|rule| rule.text.as_str()).collect()
}

/// A recipe of the reference tool, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Predicate {
    /// `mixed_3_6`
    pub name: String,
    /// The group size where it was asked for by itself: the tool records it then.
    pub group_size: Option<usize>,
}

/// What one component of a snapshot is asked to be.
#[derive(Clone, Debug)]
pub struct ComponentOptions {
    /// Its directory: `transformer`.
    pub dir: String,
    /// What its weights become.
    pub spec: Spec,
    /// Exceptions that go before the view's own; their patterns are over names without the component.
    pub rules: Vec<Rule>,
}

/// A view, laid out.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Canonical spelling of the view's spec.
    pub spec: String,
    /// What the source is called.
    pub source: String,
    /// What becomes of each tensor, and why.
    pub rows: Vec<Row>,
    /// What the user should know before relying on the view.
    pub warnings: Vec<String>,
    /// Full-precision twins that are not shown.
    pub hidden: Vec<String>,
    /// Regular files, sorted by path. Directories are the prefixes of their paths.
    pub files: Vec<File>,
    /// What the extents of kind [`Content::Part`] refer to.
    pub weights: Vec<Planned>,
    /// What must be known before some of them are encoded.
    pub surveys: Vec<Surveyed>,
}

impl Plan {
    fn new(source: &dyn Source, options: &Options) -> Self {
        Self {
            spec: options.spec.to_string(),
            source: source.name().to_owned(),
            rows: vec![],
            warnings: vec![],
            hidden: vec![],
            files: vec![],
            weights: vec![],
            surveys: vec![],
        }
    }

    /// The weights whose elements the bytes of one are made of: itself, and those that are surveyed with it.
    pub fn sources_of(&self, weight: u32) -> impl Iterator<Item = &Planned> {
        let own = &self.weights[weight as usize];
        let members = own.survey.map_or(&[][..], |survey| &self.surveys[survey as usize].members);
        let others = members.iter().filter(move |member| **member != weight);
        std::iter::once(own).chain(others.map(|member| &self.weights[*member as usize]))
    }
}

/// Weights that one survey is made of, before any of them is encoded.
#[derive(Clone, Debug)]
pub struct Surveyed {
    /// Indexes into [`Plan::weights`], in order.
    pub members: Vec<u32>,
    /// The question.
    pub survey: Arc<dyn Survey>,
}

/// One file of a view.
#[derive(Clone, Debug)]
pub struct File {
    /// Path below the view's root, `/` between parts.
    pub path: String,
    /// Exact length in bytes.
    pub len: u64,
    /// The newest modification time of what goes into it.
    pub modified: SystemTime,
    /// The content in order, without holes: an extent ends where the next one starts.
    pub extents: Vec<Extent>,
}

impl File {
    /// The source file that this one shows whole and untouched.
    #[must_use]
    pub fn untouched(&self) -> Option<FileId> {
        match self.extents.as_slice() {
            [Extent { content: Content::Source { file, offset: 0 }, .. }] => Some(*file),
            _ => None,
        }
    }
}

/// A run of bytes of one origin within a file.
#[derive(Clone, Debug)]
pub struct Extent {
    /// Offset in the file of the view.
    pub start: u64,
    /// Where the bytes come from.
    pub content: Content,
}

/// Where the bytes of an extent come from.
#[derive(Clone, Debug)]
pub enum Content {
    /// Known since the plan was made: headers, JSON, constants.
    Bytes(Arc<[u8]>),
    /// Source bytes as they are.
    Source {
        /// The source file.
        file: FileId,
        /// Offset of the extent's first byte in it.
        offset: u64,
    },
    /// A tiled part of a weight, from its first byte to its last.
    Part {
        /// Index into [`Plan::weights`].
        weight: u32,
        /// Index into [`Planned::parts`].
        part: u16,
    },
}

/// A weight that is computed when it is read.
#[derive(Clone, Debug)]
pub struct Planned {
    /// What is encoded.
    pub weight: Weight,
    /// Where its elements come from.
    pub origin: Origin,
    /// How it is encoded: after its survey, where there is one, by the scheme that the survey concludes.
    pub scheme: Arc<dyn Scheme>,
    /// Index into [`Plan::surveys`] of what must be known first.
    pub survey: Option<u32>,
    /// What it becomes.
    pub parts: Vec<Part>,
    /// How it may be cut.
    pub banding: Banding,
    /// Length of a tile along the banding's axis, a multiple of its granule.
    pub tile: usize,
    /// Digest of the origin (source versions included; those of the weights that are surveyed with it too), the
    /// scheme's id and the crate's encoding revision: two views that agree share tiles.
    pub key: [u8; 16],
}

impl Planned {
    /// The same elements as another scheme would store them, which is told nothing of other weights: its survey, where
    /// it has one, is of this weight alone, and [`survey`](Self::survey) is `None`.
    ///
    /// # Errors
    /// A shape that the scheme cannot hold.
    pub fn under(&self, scheme: Arc<dyn Scheme>) -> Result<Self, Unsupported> {
        let (weight, origin, parts) = (self.weight.clone(), self.origin.clone(), scheme.parts(&self.weight)?);
        let key = digest::other(&self.key, &*scheme);
        Ok(origin::cut(weight, origin, scheme, parts, key))
    }

    /// Number of tiles.
    #[must_use]
    pub fn tiles(&self) -> usize {
        self.banding.extent(&self.weight).div_ceil(self.tile)
    }

    /// How many rows of a band of columns, or a multiple, may be read and encoded alone. `None` where a tile is
    /// made in one go: what is picked out of a transpose is read once, and so is what an adapter adds.
    #[must_use]
    pub fn strip_rows(&self) -> Option<usize> {
        let dense = self.origin.pieces.iter().all(|piece| piece.col_stride == self.origin.stored.size());
        let alone = dense && self.origin.deltas.is_empty() && self.banding.axis == Axis::Columns;
        self.scheme.strip_rows().filter(|_| alone)
    }
}

/// Where the elements of a weight come from: pieces of source files, low-rank products added to them, a cast,
/// plus one.
#[derive(Clone, Debug, PartialEq)]
pub struct Origin {
    /// In element order; together they hold as many elements as the weight.
    pub pieces: Vec<Piece>,
    /// Type of the source's elements.
    pub stored: Float,
    /// Type that they are cast to, round to nearest even.
    pub float: Float,
    /// Whether one is added to every element, in the stored dtype, before the cast.
    pub plus_one: bool,
    /// What adapters add, in the order in which they add up; the sum is rounded once, to the stored dtype.
    pub deltas: Vec<Delta>,
}

impl Origin {
    /// The files that the elements are made of; some more than once.
    pub fn files(&self) -> impl Iterator<Item = FileId> {
        let factors = self.deltas.iter().flat_map(|delta| [delta.up.file, delta.down.file]);
        self.pieces.iter().map(|piece| piece.file).chain(factors)
    }
}

/// A low-rank product that is added to the tensor that a piece is of: `W[n, k] += scale * sum_r up[n, r] * down[r, k]`
/// in f32, the sum from the first r to the last, without fused steps.
#[derive(Clone, Debug, PartialEq)]
pub struct Delta {
    /// Index into [`Origin::pieces`].
    pub piece: usize,
    /// Offset of the tensor's first element in the piece's file.
    pub start: u64,
    /// First dimension of the tensor.
    pub rows: usize,
    /// Its elements of each row, all other dimensions together.
    pub cols: usize,
    /// Columns of `up`, rows of `down`.
    pub rank: usize,
    /// `[rows, rank]`
    pub up: Factor,
    /// `[rank, cols]`
    pub down: Factor,
    /// Of the product.
    pub scale: f32,
}

/// A matrix of an adapter, row by row.
#[derive(Clone, Debug, PartialEq)]
pub struct Factor {
    /// The adapter's file.
    pub file: FileId,
    /// Offset of the first element.
    pub offset: u64,
    /// Type of the elements.
    pub float: Float,
}

/// A regular run of elements of a source file. Strides are in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The source file.
    pub file: FileId,
    /// Offset of the first element.
    pub offset: u64,
    /// Number of rows.
    pub rows: usize,
    /// From one row's first element to the next one's.
    pub row_stride: usize,
    /// Elements of a row.
    pub cols: usize,
    /// From one element to the next within a row; the element size but for a transpose.
    pub col_stride: usize,
}
