//! A quantized directory as a table: which tensor is stored how.
//!
//! Bits and groups come from shapes where these leave no doubt, and from `config.json` or
//! `quantization.json` where they do (affine codes). Knows the layout `weight`, `scales`, `biases`.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::{
    bulk::{
        Error,
        holdings::{Held, Holdings},
    },
    container::json,
    plan::Row,
    tensor::Dtype,
};

/// The tensors of a quantized directory, a row for each weight with all its parts.
///
/// # Errors
/// A directory without weights, a file that is broken.
pub fn describe(directory: &Path) -> Result<Vec<Row>, Error> {
    let Holdings { held, faults } = Holdings::read(directory)?;
    if let Some(fault) = faults.into_iter().next() {
        return Err(Error::Refused(fault));
    }
    let mut rows = vec![];
    for (at, here) in &held {
        let component = at.strip_prefix(directory).unwrap_or(at).display().to_string();
        let parameters = Parameters::read(at, directory);
        let shown = here.iter().filter(|(name, _)| !is_parameter(name, here));
        rows.extend(shown.map(|(name, held)| row(&component, name, held, here, &parameters)));
    }
    Ok(rows)
}

/// What `config.json` and `quantization.json` say of groups.
struct Parameters {
    documents: Vec<Value>,
}

impl Parameters {
    fn read(at: &Path, root: &Path) -> Self {
        let paths: [PathBuf; 2] = [at.join("config.json"), root.join("quantization.json")];
        let parsed = paths.iter().filter_map(|p| json::parse(&std::fs::read(p).ok()?).ok());
        Self { documents: parsed.collect() }
    }

    /// The group size of a module: its own entry, else the default.
    fn group(&self, stem: &str) -> Option<usize> {
        let size = |v: &Value| v.get("group_size").and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
        self.documents.iter().find_map(|document| {
            let top = document.get("quantization").unwrap_or(document);
            let layers = document.get("layers").and_then(Value::as_array);
            let listed =
                layers.and_then(|all| all.iter().find(|l| l.get("name").and_then(Value::as_str) == Some(stem)));
            top.get(stem).or(listed).and_then(size).or_else(|| size(top))
        })
    }
}

/// Whether a tensor belongs to the weight of its module.
fn is_parameter(name: &str, here: &BTreeMap<String, Held>) -> bool {
    let stem = name.strip_suffix(".scales").or_else(|| name.strip_suffix(".biases"));
    stem.is_some_and(|stem| here.contains_key(&format!("{stem}.weight")))
}

fn row(component: &str, name: &str, held: &Held, here: &BTreeMap<String, Held>, parameters: &Parameters) -> Row {
    let bytes = |held: &Held| held.tensor.range.end - held.tensor.range.start;
    let info = &held.tensor.info;
    let mut row = Row {
        component: component.to_owned(),
        name: name.to_owned(),
        dtype: info.dtype,
        shape: info.shape.clone(),
        becomes: "dense".to_owned(),
        why: String::new(),
        bytes_before: bytes(held),
        bytes_after: bytes(held),
        sources: vec![],
    };
    let Some(stem) = name.strip_suffix(".weight") else { return row };
    let part = |suffix: &str| here.get(&format!("{stem}.{suffix}"));
    let Some(scales) = part("scales").filter(|_| info.dtype == Dtype::U32) else { return row };
    let found = recognize(held, scales, parameters.group(stem));
    row.bytes_after += bytes(scales) + part("biases").map_or(0, bytes);
    row.bytes_before = row.bytes_after;
    (row.becomes, row.why) = match found {
        Some((mode, bits, group)) => {
            if let Some(last) = row.shape.last_mut() {
                *last = last.saturating_mul(32) / bits;
            }
            (format!("{mode} {bits}bit g{group}"), String::new())
        }
        None => ("quantized".to_owned(), "neither config.json nor quantization.json says its group size".to_owned()),
    };
    row
}

/// Mode, bits and group of a weight. The bits that a row's codes take for each of its groups are
/// 128, 256 and 64 for mxfp4, mxfp8 and nvfp4, whose scales are bytes.
fn recognize(weight: &Held, scales: &Held, group: Option<usize>) -> Option<(&'static str, usize, usize)> {
    let last = |held: &Held| held.tensor.info.shape.last().copied();
    let code_bits = last(weight)?.checked_mul(32)?.checked_div(last(scales)?)?;
    match (scales.tensor.info.dtype, code_bits) {
        (Dtype::U8, 128) => Some(("mxfp4", 4, 32)),
        (Dtype::U8, 256) => Some(("mxfp8", 8, 32)),
        (Dtype::U8, 64) => Some(("nvfp4", 4, 16)),
        (Dtype::U8, _) => None,
        _ => {
            let group = group.filter(|g| *g > 0 && code_bits.is_multiple_of(*g))?;
            Some(("affine", code_bits / group, group)).filter(|(_, bits, _)| (1..=8).contains(bits))
        }
    }
}
