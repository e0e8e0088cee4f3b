//! What the loaders of Hugging Face layouts have in common: names as they are, linear layers quantized,
//! one block in `config.json` that says how.
//!
//! Which modules are linear layers is read from names and shapes, since a header has no classes: a matrix
//! `X.weight` is one unless its name is that of an embedding, a router, an output layer or a tower that the
//! field's quantizers leave alone. The rules are those of transformers 5.23, compressed-tensors 0.20 and
//! diffusers 0.42, gathered from their own lists.

use serde_json::Value;

use crate::{
    container::json,
    quant::{
        Scheme,
        dialect::{Arranged, Choice, Component, Decided},
    },
    tensor::Float,
};

/// The key of `config.json` that transformers, diffusers, vLLM and SGLang look at.
pub(super) const BLOCK: &str = "quantization_config";

/// Names of modules that turn the last activations into scores: every quantizer leaves them alone.
const HEADS: [&str; 10] = [
    "lm_head",
    "embed_out",
    "output_layer",
    "text_projection",
    "score",
    "classifier",
    "qa_outputs",
    "cls",
    "codec_head",
    "output",
];

/// Parts of names of what chooses experts: small, and what it decides is all or nothing.
const ROUTERS: [&str; 6] = ["gate", "router", "shared_expert_gate", "wg", "gate_network", "router_proj"];

/// Parts of names of towers beside a language model.
const TOWERS: [&str; 14] = [
    "visual",
    "vision_tower",
    "vision_model",
    "vision_encoder",
    "vision_embed_tokens",
    "vision_backbone",
    "embed_vision",
    "multi_modal_projector",
    "mm_projector",
    "multimodal_projector",
    "audio_tower",
    "embed_audio",
    "audio_encoder",
    "image_newline",
];

/// Last parts of names of look-up tables: embeddings of tokens, positions and relations.
const TABLES: [&str; 8] =
    ["wte", "wpe", "shared", "relative_attention_bias", "tokens_embed", "positions_embed", "class_embedding", "wse"];

/// Models whose projections are stored transposed (`Conv1D`), by `model_type`, and what these are called.
const TRANSPOSED: ([&str; 5], [&str; 4]) =
    (["gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp"], ["c_attn", "c_proj", "c_fc", "q_attn"]);

/// Directories of a pipeline whose models are not quantized: what they make of latents shows every error.
const LEFT_ALONE: [&str; 8] =
    ["vae", "vqvae", "vqgan", "movq", "vocoder", "safety_checker", "image_encoder", "feature_extractor"];

/// Modules that loaders run as one matrix, by their last names: they share what is one number a tensor, and their scheme.
const FUSED: [&[&str]; 4] =
    [&["q_proj", "k_proj", "v_proj"], &["gate_proj", "up_proj"], &["w1", "w3"], &["q_a_proj", "kv_a_proj_with_mqa"]];

/// The name of the matrix that loaders make of a module and others.
pub(super) fn siblings(stem: &str) -> Option<String> {
    let (parent, last) = stem.rsplit_once('.').unwrap_or(("", stem));
    let fused = FUSED.iter().find(|names| names.contains(&last))?;
    Some(format!("{parent}.{}", fused[0]))
}

/// What a tensor is to a loader that replaces linear layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The weight of a linear layer, which its quantizers take.
    Linear,
    /// The weight of a linear layer that is left dense, with the reason; configs list it.
    Kept(String),
    /// Nothing that could be replaced, with the reason.
    Other(String),
}

/// What a tensor of a component is.
pub(super) fn kind(component: &Component<'_>, tensor: &Arranged) -> Kind {
    let Some(module) = tensor.module() else { return Kind::Other("no .weight".into()) };
    if Float::of(tensor.info.dtype).is_none() {
        return Kind::Other(format!("{} is no floating type that can be quantized", tensor.info.dtype));
    }
    if tensor.info.shape.len() != 2 {
        return Kind::Other(format!("{}-D, no linear layer", tensor.info.shape.len()));
    }
    let last = module.rsplit('.').next().unwrap_or(module);
    if is_table(last) {
        return Kind::Other("embedding".into());
    }
    if last.contains("norm") {
        return Kind::Other("norm".into());
    }
    if let Some(why) = left_alone(component, &tensor.info.name) {
        return Kind::Kept(why);
    }
    match kept(component, module, last) {
        Some(why) => Kind::Kept(why),
        None => Kind::Linear,
    }
}

/// Beginnings of names of such models where all lie in one file.
const LEFT_ALONE_PREFIXES: [&str; 2] = ["vae.", "first_stage_model."];

/// Why the models of a pipeline's directory are not quantized, or those of a part of an all-in-one checkpoint,
/// where they are not.
pub(super) fn left_alone(component: &Component<'_>, name: &str) -> Option<String> {
    if let Some(prefix) = LEFT_ALONE_PREFIXES.iter().find(|prefix| name.starts_with(*prefix)) {
        return Some(format!("{prefix} is left alone"));
    }
    let dir = component.dir.rsplit('/').next().unwrap_or_default();
    let class = component.config.and_then(|c| c.get("_class_name")).and_then(Value::as_str).unwrap_or_default();
    let is_coder = class.contains("Autoencoder") || class.contains("VAE") || class.starts_with("VQ");
    let named = LEFT_ALONE.iter().any(|name| dir == *name || dir.strip_suffix(['_', '2', '3']) == Some(name));
    if is_coder { Some(format!("{class} is left alone")) } else { named.then(|| format!("{dir} is left alone")) }
}

fn kept(component: &Component<'_>, module: &str, last: &str) -> Option<String> {
    if HEADS.contains(&last) && !has_layer_number(module) {
        return Some("output layer".into());
    }
    let parts = || module.split('.');
    if let Some(tower) = parts().find(|part| TOWERS.contains(part)) {
        return Some(format!("{tower} is left dense"));
    }
    if parts().any(|part| ROUTERS.contains(&part)) {
        return Some("router".into());
    }
    let model_type = component.config.and_then(|c| c.get("model_type")).and_then(Value::as_str)?;
    let transposed = TRANSPOSED.0.contains(&model_type) && TRANSPOSED.1.contains(&last);
    transposed.then(|| "stored transposed (Conv1D)".into())
}

/// Whether a module lies in a numbered layer, where an `output` is a projection.
fn has_layer_number(module: &str) -> bool {
    module.split('.').any(|part| part.bytes().all(|b| b.is_ascii_digit()))
}

/// `embed_tokens`, `word_embeddings`, `tok_embeddings`; `time_embedder` and `embedder.linear_1` are layers.
fn is_table(last: &str) -> bool {
    TABLES.contains(&last) || last.starts_with("embed_") && last != "embed_out" || last == "embed" || {
        last.contains("embedding") && !last.contains("embedding_proj")
    }
}

/// What a dialect without exceptions of its own chooses.
pub(super) fn choose(component: &Component<'_>, tensor: &Arranged) -> Choice {
    match kind(component, tensor) {
        Kind::Linear => Choice::Default,
        Kind::Kept(why) => Choice::Keep(why),
        Kind::Other(why) => Choice::Never(why),
    }
}

/// Modules that a loader would take for linear layers and that the view shows dense, in the view's order, output
/// layers last. The output layer of a language model is among them even where its weight is the embedding's.
pub(super) fn dense_layers(component: &Component<'_>, decided: &[Decided<'_>]) -> Vec<String> {
    let dense = decided.iter().filter(|d| d.facts.is_none());
    let dense = dense.filter(|d| !matches!(kind(component, d.tensor), Kind::Other(_)));
    let names: Vec<&str> = dense.filter_map(|d| d.tensor.module()).collect();
    let (heads, mut all): (Vec<&str>, Vec<&str>) =
        names.into_iter().partition(|name| HEADS.contains(&name.rsplit('.').next().unwrap_or_default()));
    all.extend(&heads);
    let quantized = decided.iter().any(|d| d.facts.is_some() && d.tensor.module() == Some("lm_head"));
    if is_language_model(component) && !quantized && !heads.iter().any(|name| name.ends_with("lm_head")) {
        all.push("lm_head");
    }
    all.into_iter().map(str::to_owned).collect()
}

fn is_language_model(component: &Component<'_>) -> bool {
    let classes = component.config.and_then(|c| c.get("architectures")).and_then(Value::as_array);
    let mut names = classes.into_iter().flatten().filter_map(Value::as_str);
    names.any(|name| name.ends_with("ForCausalLM") || name.ends_with("ForConditionalGeneration"))
}

/// What a config's first lines say: the view's own scheme, or the first layer's where the view is dense but for
/// some rules.
pub(super) fn top(default: Option<&dyn Scheme>, decided: &[Decided<'_>]) -> Option<Value> {
    let first = || decided.iter().find(|d| d.facts.is_some()).map(|d| d.config.clone());
    default.map(Scheme::config).or_else(first)
}

/// A weight that is stored otherwise than the view's scheme, as `same` compares what their configs say.
pub(super) fn odd_one<'d>(
    default: Option<&dyn Scheme>,
    decided: &'d [Decided<'_>],
    same: impl Fn(&Value, &Value) -> bool,
) -> Option<&'d Decided<'d>> {
    let top = top(default, decided)?;
    decided.iter().find(|d| d.facts.is_some() && !same(&d.config, &top))
}

/// `config.json` with a block that says how the weights are quantized: keys sorted, indented by 2, as
/// `PreTrainedConfig.to_json_file` writes it. `None` where the component has no config.
pub(super) fn config(component: &Component<'_>, block: Value) -> Option<Vec<u8>> {
    let mut config = component.config?.as_object()?.clone();
    config.insert(BLOCK.to_owned(), block);
    let text = json::render(&sorted(Value::Object(config)), 2) + "\n";
    Some(text.into_bytes())
}

/// A value whose objects have their keys sorted, as `json.dumps(sort_keys=True)` does.
pub(super) fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut pairs: Vec<(String, Value)> = map.into_iter().map(|(k, v)| (k, sorted(v))).collect();
            pairs.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(pairs.into_iter().collect())
        }
        Value::Array(items) => items.into_iter().map(sorted).collect(),
        other => other,
    }
}

/// `__metadata__` of the shards: who reads them expects torch's layout to be named.
pub(super) fn metadata(source: &[(String, String)]) -> Vec<(String, String)> {
    let mut all = source.to_vec();
    if !all.iter().any(|(key, _)| key == "format") {
        all.push(("format".into(), "pt".into()));
    }
    all
}
