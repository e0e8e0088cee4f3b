//! The dialect of mlx_lm: what `mlx_lm.convert` makes of a Hugging Face snapshot.
//!
//! For the families of `mlx/families` names, stacks, splits, casts, the order of modules, the choice of
//! what is quantized and `config.json` are those of mlx-lm 0.32.2. Any other set of weights (an unknown
//! `model_type`, a part of a pipeline, a lone file) keeps its names, and its matrices are quantized;
//! for an unknown `model_type` a warning says so. What a family computes rather than moves is refused.

mod config;
mod draft;
mod families;
mod glob;
mod mixed;
mod model;
mod step;
mod walk;

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::{
    quant::{
        Facts, Scheme,
        dialect::{Arranged, Arrangement, Choice, Component, Decided, Dialect, hf, index},
    },
    tensor::{Dtype, Float},
};

use draft::Draft;
pub use mixed::{Mixed, NAMES};
use model::Model;
use step::Drafts;
use walk::Kind;

/// Loaders of MLX's layout.
#[derive(Debug)]
pub struct Mlx;

/// The one instance.
pub static MLX: Mlx = Mlx;

/// The scheme and the group size that mlx_lm's own predicates ask for.
const CAREFUL: (&str, usize) = ("8bit", 64);
/// Names that a warning lists before it only counts.
const LISTED: usize = 3;

impl Mlx {
    /// Every `model_type` whose family is known, sorted; some are known to be refused.
    #[must_use]
    pub fn model_types(&self) -> Vec<&'static str> {
        families::all()
    }
}

impl Dialect for Mlx {
    fn name(&self) -> &'static str {
        "mlx"
    }

    fn arrange(&self, component: &Component<'_>) -> Result<Arrangement, String> {
        refuse_quantized(component)?;
        match Model::of(component) {
            Some(model) => arrange(&model, component),
            None => Ok(keep_names(component)),
        }
    }

    fn choose(&self, component: &Component<'_>, tensor: &Arranged, default: &dyn Scheme) -> Choice {
        let Some(module) = tensor.module() else { return Choice::Keep("no .weight".into()) };
        if Float::of(tensor.info.dtype).is_none() {
            return Choice::Keep(format!("{:?} is no floating type that can be quantized", tensor.info.dtype));
        }
        let group_size = default.facts().group_size;
        match Model::of(component) {
            Some(model) => by_family(&model, component, tensor, &default.facts()),
            None => {
                let why = hf::left_alone(component, &tensor.info.name).or_else(|| by_shape(tensor, group_size));
                let mixed = || component.mixed.map(|mixed| mixed.choose(module, &default.facts()));
                why.map_or_else(|| mixed().unwrap_or(Choice::Default), Choice::Keep)
            }
        }
    }

    fn mixed(
        &self,
        component: &Component<'_>,
        recipe: &str,
        states_group: bool,
        default: &dyn Scheme,
        tensors: &[Arranged],
    ) -> Result<Mixed, String> {
        if default.facts().mode != "affine" {
            return Err(format!("{recipe} is for affine schemes, as 4bit, and not for {}", default.facts().mode));
        }
        let mixed = Mixed::new(recipe, states_group, tensors)?;
        let asked = Component { mixed: Some(&mixed), ..*component };
        let failing = tensors.iter().find(|t| {
            t.module().is_some_and(|m| !mixed.places(m))
                && matches!(self.choose(&asked, t, default), Choice::Other { .. })
        });
        match failing {
            None => Ok(mixed),
            Some(t) => Err(format!(
                "mlx_lm's {recipe} fails on {}: its name has no number where those of the layers have theirs",
                t.info.name
            )),
        }
    }

    fn config(
        &self,
        component: &Component<'_>,
        default: Option<&dyn Scheme>,
        decided: &[Decided<'_>],
    ) -> Option<Vec<u8>> {
        let source = component.config?.as_object()?;
        if !is_model(component) {
            return None;
        }
        Some(config::render(source, component, default.map(Scheme::facts).as_ref(), decided))
    }

    fn index(&self, component: &Component<'_>, decided: &[Decided<'_>]) -> Vec<u8> {
        let model = Model::of(component);
        let counted = |d: &&Decided<'_>| {
            let place = model.as_ref().and_then(|m| m.place(&d.tensor.info.name));
            place.is_none_or(|p| p.kind != Kind::Bare)
        };
        let elements = |d: &Decided<'_>| d.tensor.info.elements().and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
        index::of_mlx(decided.iter().filter(counted).map(elements).sum(), decided)
    }

    fn metadata(&self, component: &Component<'_>, source: &[(String, String)]) -> Vec<(String, String)> {
        match Model::of(component) {
            Some(_) => vec![("format".into(), "mlx".into())],
            None => source.to_vec(),
        }
    }
}

/// Whether mlx_lm would read the set: it loads `model*.safetensors` beside a `config.json`.
fn is_model(component: &Component<'_>) -> bool {
    component.set.starts_with("model") && model_type(component).is_some()
}

fn model_type<'a>(component: &Component<'a>) -> Option<&'a str> {
    component.config?.get("model_type")?.as_str()
}

fn refuse_quantized(component: &Component<'_>) -> Result<(), String> {
    let Some(config) = component.config else { return Ok(()) };
    let text = config.get("text_config").unwrap_or(&Value::Null);
    let key = ["quantization", "quantization_config"]
        .into_iter()
        .find(|key| [config, text].iter().any(|c| c.get(key).is_some_and(|v| !v.is_null())));
    key.map_or(Ok(()), |key| {
        Err(format!("config.json has a {key:?}: the weights are quantized already; mount the full-precision snapshot"))
    })
}

/// What floating tensors are cast to first: what was asked for, or as `mlx_lm.convert` takes it from
/// `torch_dtype` (a top-level `dtype` is not read), then from `text_config`'s `dtype`.
fn cast(component: &Component<'_>) -> Option<Float> {
    let said = |c: &Value, key: &str| c.get(key).filter(|v| !v.is_null()).cloned();
    let from_config = || {
        let config = component.config?;
        let dtype = said(config, "torch_dtype").or_else(|| said(config.get("text_config")?, "dtype"))?;
        Float::from_name(dtype.as_str()?)
    };
    component.dtype.or_else(from_config)
}

fn cast_to(dtype: Dtype, float: Option<Float>) -> Dtype {
    float.filter(|_| Float::of(dtype).is_some()).map_or(dtype, Float::dtype)
}

fn arrange(model: &Model<'_>, component: &Component<'_>) -> Result<Arrangement, String> {
    let list = component.tensors.iter().enumerate().map(|(at, info)| Draft::whole(at, info)).collect();
    let drafts = model.steps(Drafts { list, dropped: Vec::new() }).map_err(|why| format!("{}: {why}", model.name))?;
    let float = cast(component);
    let (mut known, mut unknown) = (Vec::new(), Vec::new());
    for draft in drafts.list {
        let shown = cast_to(draft.dtype, float.filter(|_| !model.stored(&draft.name)));
        match model.place(&draft.name) {
            Some(place) => known.push((place.order, draft.arranged(shown))),
            None => unknown.push(draft.arranged(shown)),
        }
    }
    known.sort_by(|a, b| a.0.cmp(&b.0));
    let warnings = strangers(&model.name, &unknown);
    let tensors: Vec<Arranged> = known.into_iter().map(|(_, t)| t).chain(unknown).collect();
    let mut seen = HashSet::new();
    if let Some(t) = tensors.iter().find(|t| !seen.insert(&t.info.name)) {
        return Err(format!("{}: two tensors would be shown as {}", model.name, t.info.name));
    }
    Ok(Arrangement { tensors, dropped: drafts.dropped, warnings })
}

/// One line for the tensors that the family does not have.
fn strangers(name: &str, unknown: &[Arranged]) -> Vec<String> {
    let Some(rest) = unknown.len().checked_sub(1) else { return Vec::new() };
    let names: Vec<&str> = unknown.iter().take(LISTED).map(|t| t.info.name.as_str()).collect();
    let more = if rest < LISTED { String::new() } else { format!(" and {} more", unknown.len() - LISTED) };
    let names = names.join(", ");
    vec![format!("{name}: mlx_lm's model has no {names}{more}; shown dense, but mlx_lm refuses to load them")]
}

/// The rule for sets that no family describes.
fn keep_names(component: &Component<'_>) -> Arrangement {
    let warnings = match model_type(component).filter(|_| is_model(component)) {
        Some(unknown) => vec![format!(
            "model_type {unknown} is not among the families known here: names are kept and matrices other than norms \
             quantized; mlx_lm may not load it, or may quantize other modules"
        )],
        None => vec![
            "no config.json with a model_type of mlx_lm's beside it: names are kept and matrices other than norms \
             quantized"
                .to_owned(),
        ],
    };
    Arrangement { tensors: Arranged::all(component, cast(component)), dropped: Vec::new(), warnings }
}

fn by_shape(tensor: &Arranged, group_size: usize) -> Option<String> {
    let [_, cols] = tensor.info.shape.as_slice() else { return Some(format!("{}-D", tensor.info.shape.len())) };
    if tensor.info.name.contains("norm") {
        return Some("norm".into());
    }
    uneven(*cols, group_size)
}

fn uneven(cols: usize, group_size: usize) -> Option<String> {
    (!cols.is_multiple_of(group_size)).then(|| format!("last dimension {cols} is no multiple of {group_size}"))
}

fn by_family(model: &Model<'_>, component: &Component<'_>, tensor: &Arranged, default: &Facts) -> Choice {
    let (module, group_size) = (tensor.module().unwrap_or_default(), default.group_size);
    let cols = tensor.info.shape.last().copied().unwrap_or(1);
    match model.place(&tensor.info.name).map(|p| p.kind) {
        None => return Choice::Never("not in mlx_lm's model".into()),
        Some(Kind::Quantizable) => {}
        Some(Kind::Plain | Kind::Bare) => return Choice::Never(plain(tensor)),
    }
    if let Some(why) = uneven(cols, group_size) {
        return Choice::Keep(why);
    }
    // A recipe takes the place of the model's own predicate.
    if let Some(mixed) = component.mixed {
        return mixed.choose(module, default);
    }
    if model.dense(module) {
        return Choice::Keep("kept by the model's predicate".into());
    }
    if !model.careful(module) {
        return Choice::Default;
    }
    let (scheme, group_size) = CAREFUL;
    if let Some(why) = uneven(cols, group_size) {
        return Choice::Keep(format!("{why}, which the model's predicate asks for"));
    }
    Choice::Other { scheme, group_size, entry: json!({ "group_size": group_size, "bits": 8 }) }
}

/// Why a module that mlx cannot quantize stays dense.
fn plain(tensor: &Arranged) -> String {
    let name = &tensor.info.name;
    match tensor.info.shape.len() {
        _ if name.contains("norm") => "norm".into(),
        _ if name.contains("conv") => "convolution".into(),
        n @ 0..=1 => format!("{n}-D"),
        _ => "no module that mlx quantizes".into(),
    }
}
