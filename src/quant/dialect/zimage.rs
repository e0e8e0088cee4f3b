//! The dialect of zimage.swift: which weights of a Z-Image pipeline its quantizer takes.
//!
//! Names, dtypes and `config.json` stay as they are; what is quantized is told by the manifest and by
//! the `.scales` beside a weight. The rules are `ZImageQuantizer.quantizeAndSave` and
//! `quantize-controlnet` of zimage.swift 868fbeb.

use crate::{
    quant::{
        Scheme,
        dialect::{Arranged, Choice, Component, Decided, Dialect, index},
    },
    tensor::Float,
};

/// The directories whose weights the quantizer reads.
const COMPONENTS: [&str; 2] = ["transformer", "text_encoder"];
/// Modules that stay dense in a pipeline's components, by the beginning of their name.
const DENSE_PREFIXES: [&str; 2] = ["all_x_embedder", "all_final_layer"];

/// Loaders of the `zimage` format.
#[derive(Debug)]
pub struct Zimage;

/// The one instance.
pub static ZIMAGE: Zimage = Zimage;

impl Dialect for Zimage {
    fn name(&self) -> &'static str {
        "zimage"
    }

    fn choose(&self, component: &Component<'_>, tensor: &Arranged, default: &dyn Scheme) -> Choice {
        why_dense(component.dir, tensor, default.facts().group_size).map_or(Choice::Default, Choice::Keep)
    }

    fn manifests(&self, components: &[&str]) -> Vec<&'static str> {
        let alone = components.iter().all(|dir| dir.is_empty());
        if alone { vec!["quantization.json", CONTROLNET] } else { vec!["quantization.json"] }
    }

    fn index(&self, _: &Component<'_>, decided: &[Decided<'_>]) -> Vec<u8> {
        index::plain(decided)
    }
}

/// The manifest of a ControlNet, which lies beside its weights.
const CONTROLNET: &str = "controlnet_quantization.json";

/// Why the quantizer leaves a tensor dense. A lone set at the root is a ControlNet: it has no
/// component, and only the rule on prefixes does not apply to it.
fn why_dense(dir: &str, tensor: &Arranged, group_size: usize) -> Option<String> {
    let (name, shape) = (&tensor.info.name, &tensor.info.shape);
    if !dir.is_empty() && !COMPONENTS.contains(&dir) {
        return Some(format!("zimage quantizes transformer and text_encoder only, not {dir}"));
    }
    if tensor.module().is_none() {
        return Some("no .weight".into());
    }
    if Float::of(tensor.info.dtype).is_none() {
        return Some(format!("{:?} is no floating type that can be quantized", tensor.info.dtype));
    }
    let [_, cols] = shape.as_slice() else { return Some(format!("{}-D, not 2-D", shape.len())) };
    if let Some(word) = ["embed", "norm"].into_iter().find(|w| name.contains(w)) {
        return Some(format!("name contains {word}"));
    }
    if let Some(prefix) = DENSE_PREFIXES.into_iter().find(|p| !dir.is_empty() && name.starts_with(p)) {
        return Some(format!("{prefix} stays dense"));
    }
    (!cols.is_multiple_of(group_size)).then(|| format!("last dimension {cols} is no multiple of {group_size}"))
}
