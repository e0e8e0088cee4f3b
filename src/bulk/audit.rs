//! A quantized directory by itself: every tensor present, shapes that fit, finite scales.
//!
//! Whoever wrote the directory, `quantization.json`, the indexes and the headers say which tensors
//! there must be and of what shape.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use half::{bf16, f16};
use serde::Serialize;
use serde_json::Value;

use crate::{
    bulk::{
        Error, Progress,
        holdings::{Held, Holdings},
    },
    container::{index, json},
    tensor::Dtype,
};

/// How many names a list of the report shows.
const SAMPLES: usize = 5;

/// What an audit found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Audit {
    /// Tensors that were expected and are there.
    pub matched: usize,
    /// Tensors that an index or the manifest promises and no file has.
    pub missing: Vec<String>,
    /// Tensors that no index mentions, where there is one.
    pub extra: Vec<String>,
    /// Everything else that is wrong: shapes, scales, broken files.
    pub faults: Vec<String>,
    /// Scales and biases whose values were looked at.
    pub scales: usize,
}

impl Audit {
    /// Whether nothing is wrong; tensors beyond the index do not count.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.missing.is_empty() && self.faults.is_empty()
    }

    /// The first names of a list and how many there are.
    #[must_use]
    pub fn sample(names: &[String]) -> String {
        let shown = names.iter().take(SAMPLES).cloned().collect::<Vec<_>>().join(", ");
        if names.len() > SAMPLES { format!("{shown}, ... ({} in all)", names.len()) } else { shown }
    }
}

/// Audits a directory.
///
/// # Errors
/// A directory without weights, or one that cannot be read; what is wrong inside is in the audit.
pub fn audit(directory: &Path, progress: &dyn Progress) -> Result<Audit, Error> {
    let Holdings { held, faults } = Holdings::read(directory)?;
    let mut found = Audit { faults, ..Audit::default() };
    for (at, here) in &held {
        check_indexes(at, here, &mut found)?;
    }
    check_manifest(directory, &held, &mut found)?;
    check_scales(&held, &mut found, progress)?;
    Ok(found)
}

fn check_indexes(at: &Path, here: &BTreeMap<String, Held>, found: &mut Audit) -> Result<(), Error> {
    let mut expected: BTreeSet<String> = BTreeSet::new();
    let mut indexed = false;
    for entry in std::fs::read_dir(at).map_err(|e| Error::io(at, e))? {
        let path = entry.map_err(|e| Error::io(at, e))?.path();
        if !path.to_string_lossy().ends_with(".safetensors.index.json") {
            continue;
        }
        indexed = true;
        let bytes = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
        match index::parse(&bytes) {
            Ok(index) => {
                for (tensor, shard) in index.weight_map {
                    match here.get(&tensor) {
                        Some(held) if held.file.file_name().is_some_and(|n| n.to_string_lossy() == shard) => {
                            found.matched += 1;
                        }
                        Some(held) => found
                            .faults
                            .push(format!("tensor {tensor}: the index says {shard}, it is in {}", held.file.display())),
                        None => found.missing.push(format!("{tensor} ({shard})")),
                    }
                    expected.insert(tensor);
                }
            }
            Err(e) => found.faults.push(format!("{}: {e}", path.display())),
        }
    }
    if indexed {
        found.extra.extend(here.keys().filter(|n| !expected.contains(*n)).cloned());
    } else {
        found.matched += here.len();
    }
    Ok(())
}

/// The layers of `quantization.json`: present, and of the shapes that their bits and groups make.
fn check_manifest(
    root: &Path,
    held: &BTreeMap<PathBuf, BTreeMap<String, Held>>,
    found: &mut Audit,
) -> Result<(), Error> {
    let path = root.join("quantization.json");
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io(&path, e)),
    };
    let manifest = match json::parse(&bytes) {
        Ok(manifest) => manifest,
        Err(e) => {
            found.faults.push(format!("{}: {e}", path.display()));
            return Ok(());
        }
    };
    let number = |layer: &Value, key: &str| layer.get(key).or_else(|| manifest.get(key)).and_then(Value::as_u64);
    for layer in manifest.get("layers").and_then(Value::as_array).into_iter().flatten() {
        let text = |key: &str| layer.get(key).and_then(Value::as_str).unwrap_or_default();
        let (name, in_dim) = (text("name"), number(layer, "in_dim").unwrap_or(0));
        let (Some(bits), Some(group)) = (number(layer, "bits"), number(layer, "group_size")) else { continue };
        let file = root.join(text("quant_file"));
        let Some(here) = file.parent().and_then(|d| held.get(d)) else {
            found.missing.push(format!("{name} ({})", text("quant_file")));
            continue;
        };
        check_layer(name, here, [bits, group, in_dim], found);
    }
    Ok(())
}

fn check_layer(name: &str, here: &BTreeMap<String, Held>, [bits, group, in_dim]: [u64; 3], found: &mut Audit) {
    // A manifest may list a layer under `component.base` and under `base`.
    let candidates = [Some(name), name.split_once('.').map(|(_, rest)| rest)];
    let weight = candidates.into_iter().flatten().find_map(|stem| Some((stem, here.get(&format!("{stem}.weight"))?)));
    let Some((stem, weight)) = weight else {
        found.missing.push(format!("{name}.weight"));
        return;
    };
    let words = weight.tensor.info.shape.last().copied().unwrap_or(0) as u64;
    if weight.tensor.info.dtype == Dtype::U32 && words.checked_mul(32) != in_dim.checked_mul(bits) {
        found.faults.push(format!("{stem}.weight: {words} words a row do not hold {in_dim} codes of {bits} bits"));
    }
    let Some(scales) = here.get(&format!("{stem}.scales")) else {
        found.missing.push(format!("{stem}.scales"));
        return;
    };
    let groups = scales.tensor.info.shape.last().copied().unwrap_or(0) as u64;
    if groups.checked_mul(group) != Some(in_dim) {
        found.faults.push(format!("{stem}.scales: {groups} groups of {group} do not make {in_dim} columns"));
    }
}

fn check_scales(
    held: &BTreeMap<PathBuf, BTreeMap<String, Held>>,
    found: &mut Audit,
    progress: &dyn Progress,
) -> Result<(), Error> {
    let is_scale =
        |name: &str| name.ends_with(".scales") || name.ends_with(".biases") || name.ends_with("weight_scale");
    let scales: Vec<&Held> =
        held.values().flat_map(BTreeMap::values).filter(|h| is_scale(&h.tensor.info.name)).collect();
    progress.begin(scales.iter().map(|h| h.tensor.range.end - h.tensor.range.start).sum());
    for scale in scales {
        let range = &scale.tensor.range;
        let file = File::open(&scale.file).map_err(|e| Error::io(&scale.file, e))?;
        let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap_or(0)];
        file.read_exact_at(&mut bytes, range.start).map_err(|e| Error::io(&scale.file, e))?;
        let bad = not_finite(&bytes, scale.tensor.info.dtype);
        if bad > 0 {
            found.faults.push(format!(
                "tensor {} of {}: {bad} values are not finite",
                scale.tensor.info.name,
                scale.file.display()
            ));
        }
        found.scales += 1;
        progress.advance(bytes.len() as u64);
    }
    Ok(())
}

fn not_finite(bytes: &[u8], dtype: Dtype) -> usize {
    match dtype {
        Dtype::BF16 => bytes.chunks_exact(2).filter(|b| !bf16::from_le_bytes([b[0], b[1]]).is_finite()).count(),
        Dtype::F16 => bytes.chunks_exact(2).filter(|b| !f16::from_le_bytes([b[0], b[1]]).is_finite()).count(),
        Dtype::F32 => {
            bytes.chunks_exact(4).filter(|b| !f32::from_le_bytes([b[0], b[1], b[2], b[3]]).is_finite()).count()
        }
        _ => 0,
    }
}
