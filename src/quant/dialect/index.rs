//! The index of a component's shards: totals, then where each tensor lies, sorted by name.

use serde_json::{Map, Value, json};

use crate::{container::json, quant::dialect::Decided};

/// As transformers writes it: indented by 2, a newline at the end; parameters are the elements of all tensors.
pub(super) fn of_transformers(decided: &[Decided<'_>]) -> Vec<u8> {
    let elements = |d: &Decided<'_>| d.tensor.info.elements().and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
    let parameters: u64 = decided.iter().map(elements).sum();
    let metadata = json!({ "total_parameters": parameters, "total_size": size(decided) });
    (json::render(&json!({ "metadata": metadata, "weight_map": places(decided) }), 2) + "\n").into_bytes()
}

/// The total of bytes alone, which every reader of shards knows: for views that follow no tool.
pub(super) fn plain(decided: &[Decided<'_>]) -> Vec<u8> {
    let metadata = json!({ "total_size": size(decided) });
    json::render(&json!({ "metadata": metadata, "weight_map": places(decided) }), 4).into_bytes()
}

/// As mlx_lm writes it, which counts the parameters itself: indented by 4, no newline at the end.
pub(super) fn of_mlx(parameters: u64, decided: &[Decided<'_>]) -> Vec<u8> {
    let metadata = json!({ "total_size": size(decided), "total_parameters": parameters });
    json::render(&json!({ "metadata": metadata, "weight_map": places(decided) }), 4).into_bytes()
}

fn size(decided: &[Decided<'_>]) -> u64 {
    decided.iter().map(|d| d.bytes).sum()
}

fn places(decided: &[Decided<'_>]) -> Map<String, Value> {
    let mut shown: Vec<&(String, String)> = decided.iter().flat_map(|d| &d.shown).collect();
    shown.sort();
    shown.into_iter().map(|(name, file)| (name.clone(), json!(file))).collect()
}
