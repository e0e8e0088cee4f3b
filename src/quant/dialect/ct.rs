//! The dialect of compressed-tensors' loaders: names as they are, one group of `config_groups` a scheme, and `ignore`
//! with every linear layer that is left dense.

use serde_json::{Map, Value, json};

use crate::quant::{
    Scheme,
    dialect::{Arranged, Arrangement, Choice, Component, Decided, Dialect, experts, hf},
};

/// What `version` says: the release whose files these are.
const VERSION: &str = "0.20.0";

/// vLLM, SGLang and transformers, as llm-compressor serves them.
#[derive(Debug)]
pub struct CompressedTensors;

/// The one instance.
pub static CT: CompressedTensors = CompressedTensors;

impl Dialect for CompressedTensors {
    fn name(&self) -> &'static str {
        "compressed-tensors"
    }

    fn arrange(&self, component: &Component<'_>) -> Result<Arrangement, String> {
        Ok(experts::apart(component))
    }

    fn choose(&self, component: &Component<'_>, tensor: &Arranged, _: &dyn Scheme) -> Choice {
        hf::choose(component, tensor)
    }

    fn siblings(&self, stem: &str) -> Option<String> {
        hf::siblings(stem)
    }

    fn mixes(&self, view: &dyn Scheme, other: &dyn Scheme) -> bool {
        // What a loader makes of activations is no matter of weights.
        view.config()["input_activations"] == other.config()["input_activations"]
    }

    fn config(&self, component: &Component<'_>, _: Option<&dyn Scheme>, decided: &[Decided<'_>]) -> Option<Vec<u8>> {
        let mut text = hf::config(component, block(component, decided)?)?;
        // The library writes the file anew, without a newline at the end.
        text.truncate(text.trim_ascii_end().len());
        Some(text)
    }

    fn metadata(&self, _: &Component<'_>, source: &[(String, String)]) -> Vec<(String, String)> {
        hf::metadata(source)
    }
}

/// `quantization_config`; `None` where nothing is quantized.
fn block(component: &Component<'_>, decided: &[Decided<'_>]) -> Option<Value> {
    let mut kinds: Vec<(&Value, Vec<&str>)> = vec![];
    for (said, module) in
        decided.iter().filter(|d| d.facts.is_some()).filter_map(|d| Some((&d.config, d.tensor.module()?)))
    {
        match kinds.iter_mut().find(|(other, _)| *other == said) {
            Some((_, modules)) => modules.push(module),
            None => kinds.push((said, vec![module])),
        }
    }
    let first = &kinds.first()?.0["format"];
    let format =
        if kinds.iter().all(|(said, _)| said["format"] == *first) { first.clone() } else { json!("mixed-precision") };
    let alone = kinds.len() == 1;
    let groups: Map<String, Value> = kinds
        .iter()
        .enumerate()
        .map(|(i, (said, modules))| (format!("group_{i}"), group(said, modules, alone)))
        .collect();
    Some(json!({
        "config_groups": groups,
        "format": format,
        "global_compression_ratio": null,
        "ignore": hf::dense_layers(component, decided),
        "kv_cache_scheme": null,
        "moe_sparsity_config": null,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "sparsity_config": {},
        "transform_config": {},
        "version": VERSION,
    }))
}

/// One scheme and the modules that have it: all linear layers that are not ignored, or these.
fn group(said: &Value, modules: &[&str], alone: bool) -> Value {
    json!({
        "format": said["format"],
        "input_activations": said["input_activations"],
        "output_activations": null,
        "targets": if alone { vec!["Linear"] } else { modules.to_vec() },
        "weights": said["weights"],
    })
}
