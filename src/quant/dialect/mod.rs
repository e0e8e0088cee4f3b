//! Dialects: everything a family of loaders wants that is not arithmetic.
//!
//! A dialect sees a component (one set of weights with its `config.json`) and says which tensors the
//! view shows, from which source elements, which of them may be quantized, and what the JSON files
//! say. It knows no bytes and no offsets.

pub mod awq;
pub mod bnb;
pub mod ct;
pub mod fp8;
pub mod gptq;
pub mod mirror;
pub mod mlx;
pub mod onnx;
pub mod plain;
pub mod zimage;

mod experts;
mod hf;
mod index;

use std::{fmt::Debug, ops::Range};

use serde_json::Value;

use crate::{
    container,
    quant::{Facts, Scheme},
    tensor::{Float, TensorInfo},
};

/// One set of weights of a snapshot: the shards of one index, or the files of one stem.
#[derive(Clone, Copy, Debug)]
pub struct Component<'a> {
    /// Directory below the snapshot's root: empty, or `transformer`.
    pub dir: &'a str,
    /// Stem of its files: `model`, `diffusion_pytorch_model`, `diffusion_pytorch_model.fp16`.
    pub set: &'a str,
    /// Its tensors in file order.
    pub tensors: &'a [TensorInfo],
    /// `config.json` of the directory.
    pub config: Option<&'a Value>,
    /// `generation_config.json` of the directory.
    pub generation_config: Option<&'a Value>,
    /// What `--dtype` asks floating tensors to be cast to; `None` leaves it to the dialect.
    pub dtype: Option<Float>,
    /// The reference tool's recipe that chooses schemes by names, where one is asked for ([`Dialect::mixed`]).
    pub mixed: Option<&'a mlx::Mixed>,
    /// The ONNX model whose [external tensors](container::onnx::Model::tensors) these are; `None` for tensors of safetensors files.
    pub graph: Option<&'a container::onnx::Model>,
}

/// A regular run of elements of one source tensor, in elements: `rows` rows of `cols` elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Index into [`Component::tensors`].
    pub tensor: usize,
    /// First element.
    pub start: usize,
    /// Number of rows.
    pub rows: usize,
    /// Elements from one row's start to the next one's.
    pub row_stride: usize,
    /// Elements of a row.
    pub cols: usize,
    /// Elements from one to the next within a row: 1 but for a transpose.
    pub col_stride: usize,
}

/// A tensor as the view would show it dense, and where its elements come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arranged {
    /// Name in the view, dtype after casts, shape.
    pub info: TensorInfo,
    /// The elements, in order; together they fill `info.shape`.
    pub from: Vec<Slice>,
    /// One is added to every element, in the source's dtype (norms stored as w - 1).
    pub plus_one: bool,
}

impl Arranged {
    /// The module of a tensor `X.weight`: `X`.
    #[must_use]
    pub fn module(&self) -> Option<&str> {
        self.info.name.strip_suffix(".weight")
    }
}

/// What a dialect makes of a component.
#[derive(Clone, Debug, Default)]
pub struct Arrangement {
    /// The tensors of the view in the order in which the reference tool walks them.
    pub tensors: Vec<Arranged>,
    /// Source tensors that the view does not show, with the reason.
    pub dropped: Vec<(usize, String)>,
    /// What the user should know (an unknown architecture, say).
    pub warnings: Vec<String>,
}

/// What the dialect would do with a tensor under a default scheme.
#[derive(Clone, Debug, PartialEq)]
pub enum Choice {
    /// Quantize it with the default scheme.
    Default,
    /// Quantize it with another scheme of the same format, as the model's own predicate asks.
    Other {
        /// Name of the scheme: `8bit`.
        scheme: &'static str,
        /// Its group size.
        group_size: usize,
        /// What the reference tool records in `config.json` for the module.
        entry: Value,
    },
    /// Show it dense, with the reason; a rule may ask otherwise.
    Keep(String),
    /// Show it dense whatever a rule says: the loaders have no quantized form of it.
    Never(String),
}

/// A tensor of the arrangement after everything was decided.
#[derive(Clone, Debug)]
pub struct Decided<'a> {
    /// The tensor.
    pub tensor: &'a Arranged,
    /// How it is quantized, `None` where it is dense.
    pub facts: Option<Facts>,
    /// What its scheme's [`config`](Scheme::config) says.
    pub config: Value,
    /// Whether it is quantized other than by the view's default, and must be listed.
    pub listed: bool,
    /// What a [`Choice::Other`] asked to be recorded.
    pub entry: Option<Value>,
    /// Bytes it takes in the view, all parts together.
    pub bytes: u64,
    /// Shown tensors: name and the file that holds it, in the order of its parts.
    pub shown: Vec<(String, String)>,
}

/// Names, stacks, eligibility and JSON of a family of loaders. One static instance, one file. What a
/// dialect does not say stays as it is in the source.
pub trait Dialect: Sync + Debug {
    /// One word for messages.
    fn name(&self) -> &'static str;

    /// The tensors of the view, from the header alone.
    ///
    /// # Errors
    /// A component that the loaders could not load, with the reason.
    fn arrange(&self, component: &Component<'_>) -> Result<Arrangement, String> {
        Ok(Arrangement { tensors: Arranged::all(component, component.dtype), ..Arrangement::default() })
    }

    /// Whether its loaders read ONNX models, whose weights are quantized within the model then.
    fn reads_graphs(&self) -> bool {
        false
    }

    /// The module of a tensor that may be quantized: the name of what its parts belong to.
    fn stem<'t>(&self, component: &Component<'_>, tensor: &'t Arranged) -> Option<&'t str> {
        let _ = component;
        tensor.module()
    }

    /// What becomes of a tensor where no rule says otherwise.
    fn choose(&self, component: &Component<'_>, tensor: &Arranged, default: &dyn Scheme) -> Choice;

    /// The reference tool's recipe of this name ([`mlx::NAMES`]) for a component of these tensors, which
    /// [`choose`](Self::choose) then goes by. `states_group` is whether the group size was asked for.
    ///
    /// # Errors
    /// A recipe that these loaders, this scheme or this model cannot have, with the reason.
    fn mixed(
        &self,
        component: &Component<'_>,
        recipe: &str,
        states_group: bool,
        default: &dyn Scheme,
        tensors: &[Arranged],
    ) -> Result<mlx::Mixed, String> {
        let _ = (component, states_group, default, tensors);
        Err(format!("{recipe} is a recipe of mlx_lm; a view of {} has none by name", self.name()))
    }

    /// The name of the group of modules that are surveyed together with this one, as loaders fuse them (queries,
    /// keys and values); `None` where it is surveyed alone.
    fn siblings(&self, stem: &str) -> Option<String> {
        let _ = stem;
        None
    }

    /// Whether weights of one component may be stored so beside others that are as the view's own scheme says, which
    /// loaders can be told and which changes nothing but the weights.
    fn mixes(&self, view: &dyn Scheme, other: &dyn Scheme) -> bool {
        let _ = (view, other);
        true
    }

    /// Whether the loaders can be told of all that was decided.
    ///
    /// # Errors
    /// What their config has no words for, with the modules' names and what to do.
    fn check(&self, default: Option<&dyn Scheme>, decided: &[Decided<'_>]) -> Result<(), String> {
        let _ = (default, decided);
        Ok(())
    }

    /// What was decided that some of the loaders misread, which their config has words for all the same.
    fn misread(&self, default: Option<&dyn Scheme>, decided: &[Decided<'_>]) -> Vec<String> {
        let _ = (default, decided);
        vec![]
    }

    /// `config.json` as the view shows it; `None` leaves the source's bytes. `default` is
    /// the view's own scheme, `None` for a dense view.
    fn config(
        &self,
        component: &Component<'_>,
        default: Option<&dyn Scheme>,
        decided: &[Decided<'_>],
    ) -> Option<Vec<u8>> {
        let _ = (component, default, decided);
        None
    }

    /// Names of the manifest at the view's root, given the directories of all components with quantized weights.
    fn manifests(&self, components: &[&str]) -> Vec<&'static str> {
        let _ = components;
        vec!["quantization.json"]
    }

    /// The index of the component's shards, `<set>.safetensors.index.json`.
    fn index(&self, component: &Component<'_>, decided: &[Decided<'_>]) -> Vec<u8> {
        let _ = component;
        index::of_transformers(decided)
    }

    /// `__metadata__` of the shards that are written anew, given the source's own.
    fn metadata(&self, component: &Component<'_>, source: &[(String, String)]) -> Vec<(String, String)> {
        let _ = component;
        source.to_vec()
    }
}

impl Slice {
    /// A whole tensor in its own order.
    #[must_use]
    pub fn whole(tensor: usize, info: &TensorInfo) -> Self {
        let n = info.elements().unwrap_or(0);
        Self { tensor, start: 0, rows: 1, row_stride: n, cols: n, col_stride: 1 }
    }

    /// Number of elements.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.rows * self.cols
    }

    /// A contiguous run of elements of a tensor.
    #[must_use]
    pub fn run(tensor: usize, elements: Range<usize>) -> Self {
        let n = elements.len();
        Self { tensor, start: elements.start, rows: 1, row_stride: n, cols: n, col_stride: 1 }
    }
}
