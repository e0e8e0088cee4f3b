//! A quantized directory as a table: which tensor is stored how.
//!
//! Bits and groups come from shapes where these leave no doubt, and from `config.json` or
//! `quantization.json` where they do (affine codes). Knows the layout `weight`, `scales`, `biases`.

use std::{collections::BTreeMap, path::Path};

use crate::{
    bulk::{
        Error,
        holdings::{Held, Here, Holdings},
        stated::{self, Document},
    },
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
    let manifest = stated::manifest(directory)?;
    let mut rows = vec![];
    for (at, here) in &held {
        let component = at.strip_prefix(directory).unwrap_or(at).display().to_string();
        let groups = Groups::read(at, &component, manifest.as_ref())?;
        let shown = here.iter().filter(|(name, _)| !is_parameter(name, here));
        rows.extend(shown.map(|(name, held)| row(&component, name, held, here, &groups)));
    }
    Ok(rows)
}

/// The group size of a module, from `config.json` or else from `quantization.json`.
struct Groups {
    config: Option<Document>,
    listed: BTreeMap<String, usize>,
}

impl Groups {
    fn read(at: &Path, component: &str, manifest: Option<&Document>) -> Result<Self, Error> {
        let group = |(_, group): (u64, u64)| usize::try_from(group).ok();
        let layers = manifest.into_iter().flat_map(Document::layers).filter(|l| l.dir == component);
        let listed = layers.filter_map(|l| Some((l.stem.to_owned(), group(l.parameters?)?))).collect();
        Ok(Self { config: stated::config(at)?, listed })
    }

    fn of(&self, stem: &str) -> Option<usize> {
        let stated = self.config.as_ref().and_then(|c| c.of_config(stem));
        stated.and_then(|(_, group)| usize::try_from(group).ok()).or_else(|| self.listed.get(stem).copied())
    }
}

/// Whether a tensor belongs to the weight of its module.
fn is_parameter(name: &str, here: &Here) -> bool {
    let stem = name.strip_suffix(".scales").or_else(|| name.strip_suffix(".biases"));
    stem.is_some_and(|stem| here.contains_key(&format!("{stem}.weight")))
}

fn row(component: &str, name: &str, held: &Held, here: &Here, groups: &Groups) -> Row {
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
    let found = recognize(held, scales, groups.of(stem));
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
