//! `config.json` as mlx_lm's `load_config`, `quantize_model` and `save_config` leave it.

use std::collections::BTreeMap;

use serde_json::{Map, Number, Value, json};

use super::model::Model;
use crate::{
    container::json,
    quant::{
        Facts,
        dialect::{Component, Decided},
    },
};

/// The bytes: top-level keys sorted, nested ones in their own order, indented by 4, no newline.
pub(super) fn render(
    source: &Map<String, Value>,
    component: &Component<'_>,
    default: Option<&Facts>,
    decided: &[Decided<'_>],
) -> Vec<u8> {
    let model = Model::of(component);
    let source = model.as_ref().and_then(|m| m.config().as_object()).unwrap_or(source);
    let mut config: BTreeMap<&str, Value> = source.iter().map(|(k, v)| (k.as_str(), tagged(v))).collect();
    if let Some(eos) = component.generation_config.and_then(|g| g.get("eos_token_id")).filter(|v| truthy(v)) {
        config.insert("eos_token_id", tagged(eos));
    }
    config.remove("_name_or_path");
    // No family of the tables keeps a vision tower; where names are kept, so is the tower.
    if model.is_some() {
        config.remove("vision_config");
    }
    if let Some(quantization) = quantization(default, decided) {
        config.insert("quantization", quantization.clone());
        config.insert("quantization_config", quantization);
    }
    let sorted: Map<String, Value> = config.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
    json::render(&Value::Object(sorted), 4).into_bytes()
}

/// The view's default, then each module that differs, in walk order. A dense view in which rules
/// quantize some modules takes the first one's parameters as the default, since loaders want one.
fn quantization(default: Option<&Facts>, decided: &[Decided<'_>]) -> Option<Value> {
    let top = default.or_else(|| decided.iter().find_map(|d| d.facts.as_ref()))?;
    let mut out = parameters(top);
    for d in decided {
        let (Some(facts), Some(module)) = (&d.facts, d.tensor.module()) else { continue };
        if let Some(entry) = &d.entry {
            out.insert(module.to_owned(), entry.clone());
        } else if d.listed {
            out.insert(module.to_owned(), Value::Object(parameters(facts)));
        }
    }
    Some(Value::Object(out))
}

fn parameters(facts: &Facts) -> Map<String, Value> {
    let pairs = [("group_size", json!(facts.group_size)), ("bits", json!(facts.bits)), ("mode", json!(facts.mode))];
    pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
}

/// What Python's `if value` takes for true.
fn truthy(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(b) => *b,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::String(s) => !s.is_empty(),
        Value::Array(a) => !a.is_empty(),
        Value::Object(o) => !o.is_empty(),
    }
}

/// Numbers that JSON cannot hold, tagged as transformers tags them: `{"__float__": "Infinity"}`.
fn tagged(value: &Value) -> Value {
    match value {
        Value::Number(n) => non_finite(n).map_or_else(|| value.clone(), |tag| json!({ "__float__": tag })),
        Value::Array(a) => a.iter().map(tagged).collect(),
        Value::Object(o) => o.iter().map(|(k, v)| (k.clone(), tagged(v))).collect::<Map<String, Value>>().into(),
        other => other.clone(),
    }
}

fn non_finite(number: &Number) -> Option<&'static str> {
    let text = number.as_str();
    let integer = text.bytes().all(|b| b.is_ascii_digit() || b == b'-');
    let value: f64 = text.parse().ok().filter(|_| !integer)?;
    match value {
        v if v.is_nan() => Some("NaN"),
        f64::INFINITY => Some("Infinity"),
        f64::NEG_INFINITY => Some("-Infinity"),
        _ => None,
    }
}
