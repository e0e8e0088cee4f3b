//! The index of a component's shards.

use serde_json::{Map, Value, json};

use crate::{container::json, quant::dialect::Decided};

/// `<set>.safetensors.index.json` as `json.dump(indent=4)` writes it: the totals, then where each
/// tensor lies, sorted by name. No newline at the end.
pub(super) fn render(parameters: Option<u64>, decided: &[Decided<'_>]) -> Vec<u8> {
    let size: u64 = decided.iter().map(|d| d.bytes).sum();
    let mut metadata = Map::new();
    metadata.insert("total_size".into(), json!(size));
    if let Some(parameters) = parameters {
        metadata.insert("total_parameters".into(), json!(parameters));
    }
    let mut shown: Vec<&(String, String)> = decided.iter().flat_map(|d| &d.shown).collect();
    shown.sort();
    let map: Map<String, Value> = shown.into_iter().map(|(name, file)| (name.clone(), json!(file))).collect();
    json::render(&json!({ "metadata": metadata, "weight_map": map }), 4).into_bytes()
}
