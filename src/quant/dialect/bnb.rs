//! The dialect of bitsandbytes in transformers 5 and diffusers: every linear layer but the output layer, and a
//! block in each component's `config.json`.
//!
//! The loaders find quantized layers by replacing all linear ones of the model that
//! `llm_int8_skip_modules` does not name, so that every linear layer which the view shows dense must be named
//! there, but for those that transformers skips by itself. A list replaces what it skips.

use serde_json::{Map, Value, json};

use crate::{
    quant::{
        Scheme,
        dialect::{Arranged, Choice, Component, Decided, Dialect, hf},
    },
    tensor::Float,
};

/// Loaders of bitsandbytes' checkpoints.
#[derive(Debug)]
pub struct BitsAndBytes;

/// The one instance.
pub static BITS_AND_BYTES: BitsAndBytes = BitsAndBytes;

/// Models of transformers that keep some linear layers in f32 (`_keep_in_fp32_modules`), which its bitsandbytes
/// quantizers then leave dense, by the beginning of `model_type`, and what these layers' names end with.
const IN_FULL: [(&str, &str); 6] = [
    ("t5", "wo"),
    ("mt5", "wo"),
    ("umt5", "wo"),
    ("udop", "wo"),
    ("pop2piano", "wo"),
    ("deepseek_v32", "indexer.weights_proj"),
];

impl Dialect for BitsAndBytes {
    fn name(&self) -> &'static str {
        "bitsandbytes"
    }

    fn choose(&self, component: &Component<'_>, tensor: &Arranged, _: &dyn Scheme) -> Choice {
        if tensor.info.name.split('.').any(|part| part == "experts") {
            return Choice::Never("bitsandbytes' loaders have experts of mixtures dense".into());
        }
        if let Some(model) = kept_in_full(component, tensor) {
            return Choice::Never(format!("transformers keeps it in f32 in models of {model}"));
        }
        hf::choose(component, tensor)
    }

    fn mixes(&self, view: &dyn Scheme, other: &dyn Scheme) -> bool {
        view.config() == other.config()
    }

    fn check(&self, default: Option<&dyn Scheme>, decided: &[Decided<'_>]) -> Result<(), String> {
        match hf::odd_one(default, decided, |own, top| own == top) {
            None => Ok(()),
            Some(other) => Err(format!(
                "{} would be stored by another scheme than the view's, but bitsandbytes' config names one scheme for all \
                 layers; rules can keep layers dense (`source`)",
                other.tensor.info.name
            )),
        }
    }

    fn config(
        &self,
        component: &Component<'_>,
        default: Option<&dyn Scheme>,
        decided: &[Decided<'_>],
    ) -> Option<Vec<u8>> {
        let quantized = decided.iter().find(|d| d.facts.is_some())?;
        let computed = Float::of(quantized.tensor.info.dtype).unwrap_or(Float::F32);
        hf::config(component, block(&default?.config(), computed, skipped(component, decided)))
    }

    fn metadata(&self, _: &Component<'_>, source: &[(String, String)]) -> Vec<(String, String)> {
        hf::metadata(source)
    }
}

/// The model whose class keeps a layer in f32.
fn kept_in_full<'c>(component: &Component<'c>, tensor: &Arranged) -> Option<&'c str> {
    let model = component.config?.get("model_type")?.as_str()?;
    let module = tensor.module()?;
    let ends = |last: &str| module == last || module.strip_suffix(last).is_some_and(|rest| rest.ends_with('.'));
    IN_FULL.iter().any(|(name, last)| model == *name && ends(last)).then_some(model)
}

/// `quantization_config` as `BitsAndBytesConfig` writes it, with all its keys.
fn block(scheme: &Value, computed: Float, skipped: Option<Vec<String>>) -> Value {
    let four = scheme.get("load_in_4bit").is_some();
    let said = |key: &str, default: Value| scheme.get(key).cloned().unwrap_or(default);
    let pairs = [
        ("_load_in_4bit", json!(four)),
        ("_load_in_8bit", json!(!four)),
        ("bnb_4bit_compute_dtype", json!(if four { computed.name() } else { Float::F32.name() })),
        ("bnb_4bit_quant_storage", json!("uint8")),
        ("bnb_4bit_quant_type", said("bnb_4bit_quant_type", json!("fp4"))),
        ("bnb_4bit_use_double_quant", said("bnb_4bit_use_double_quant", json!(false))),
        ("llm_int8_enable_fp32_cpu_offload", json!(false)),
        ("llm_int8_has_fp16_weight", json!(false)),
        ("llm_int8_skip_modules", json!(skipped)),
        ("llm_int8_threshold", json!(6.0)),
        ("load_in_4bit", json!(four)),
        ("load_in_8bit", json!(!four)),
        ("quant_method", json!("bitsandbytes")),
    ];
    Value::Object(pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect::<Map<_, _>>())
}

/// Layers that the loader must be told to leave; `None` where it leaves just these by itself.
fn skipped(component: &Component<'_>, decided: &[Decided<'_>]) -> Option<Vec<String>> {
    let dense: Vec<String> = hf::dense_layers(component, decided)
        .into_iter()
        .filter(|module| !module.split('.').any(|part| part == "experts"))
        .collect();
    // Diffusers skips nothing by itself.
    let of_diffusers = component.config.is_some_and(|config| config.get("_class_name").is_some());
    let known = |module: &String| !of_diffusers && (is_output(module) || is_router(module, decided));
    // What it would leave by itself, and must not: a list, be it empty, takes the place of its own.
    let taken = decided.iter().filter(|d| d.facts.is_some()).filter_map(|d| d.tensor.module());
    let usual = dense.iter().all(known) && !taken.into_iter().any(is_output);
    (!usual).then_some(dense)
}

/// The output layers that transformers finds: a language model's, and that of a text encoder with a projection.
fn is_output(module: &str) -> bool {
    matches!(module, "lm_head" | "embed_out" | "output_layer" | "text_projection")
}

/// A router beside the experts, which is no linear layer in transformers 5 but a class of its own.
fn is_router(module: &str, decided: &[Decided<'_>]) -> bool {
    let Some(mixture) = module.strip_suffix("gate") else { return false };
    let experts = format!("{mixture}experts.");
    mixture.ends_with('.') && decided.iter().any(|d| d.tensor.info.name.starts_with(&experts))
}
