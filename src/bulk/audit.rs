//! A quantized directory by itself: every tensor present, shapes that fit, finite scales.
//!
//! Whoever wrote the directory: `quantization.json`, `config.json`, the indexes, the numbers in the
//! names of shards and the headers say which tensors there must be and of what shape. Where they
//! contradict each other, that is a fault.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    os::unix::fs::FileExt,
    path::Path,
};

use half::{bf16, f16};
use serde::Serialize;

use crate::{
    bulk::{
        Error, Progress,
        holdings::{Held, Here, Holdings},
        models, recognized,
        stated::{self, Document, Layer},
    },
    container::index,
    quant::stated::Statements,
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
    /// Weights that are quantized: codes with scales beside them.
    pub quantized: usize,
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
    let all = Holdings::walk(directory)?;
    let Holdings { held, faults, models } = if all.models.is_empty() { all.of_weights(directory)? } else { all };
    let mut found = Audit { faults, ..Audit::default() };
    let mut statements: BTreeMap<&Path, Statements> = BTreeMap::new();
    models.iter().for_each(|model| models::check(model, &mut found));
    let manifest = or_fault(stated::manifest(directory), &mut found);
    for (at, here) in &held {
        check_indexes(at, here, &mut found)?;
        let config = or_fault(stated::config(at), &mut found).map(|config| (config.statements(), config));
        let mut said = config.as_ref().map_or_else(Statements::default, |(said, _)| said.clone());
        if let Some(manifest) = &manifest {
            manifest.tell(&at.strip_prefix(directory).unwrap_or(at).to_string_lossy(), &mut said);
        }
        found.faults.extend(stated::add_states(here, &mut said)?);
        recognized::check(here, &said, &mut found)?;
        statements.insert(at, said);
        for (stem, weight, scales) in quantized(here) {
            found.quantized += 1;
            check_parts(stem, weight, scales, here, &mut found);
            check_stated(stem, weight, scales, config.as_ref(), &mut found);
        }
        if found.quantized == 0 && config.as_ref().is_some_and(|(_, c)| c.is_quantized()) {
            found.faults.push(format!("{}/config.json: says quantized, but no tensor has scales", at.display()));
        }
    }
    if let Some(manifest) = &manifest {
        for layer in manifest.layers() {
            let at = directory.join(layer.dir);
            match held.get(&at) {
                Some(here) if recognized::check_layer(&layer, here, &statements[&*at], &mut found) => {}
                Some(here) => check_layer(&layer, here, &mut found),
                None => found.missing.push(format!("{} (no weights in {}/)", layer.name, layer.dir)),
            }
        }
    }
    let parameters = held.values().flat_map(parameters).collect();
    check_values(parameters, &mut found, progress)?;
    found.missing.sort();
    found.missing.dedup();
    Ok(found)
}

/// What a broken file says, as a fault of the directory.
fn or_fault(read: Result<Option<Document>, Error>, found: &mut Audit) -> Option<Document> {
    read.unwrap_or_else(|e| {
        found.faults.push(e.to_string());
        None
    })
}

/// The weights of a directory that have codes and scales.
fn quantized(here: &Here) -> impl Iterator<Item = (&str, &Held, &Held)> {
    here.iter().filter_map(|(name, held)| {
        let stem = name.strip_suffix(".weight").filter(|_| held.tensor.info.dtype == Dtype::U32)?;
        Some((stem, held, here.get(&format!("{stem}.scales"))?))
    })
}

fn read_index(path: &Path) -> Result<index::Index, String> {
    let bytes = File::open(path).and_then(|file| {
        let len = file.metadata()?.len().min(index::MAX_INDEX + 1);
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    });
    index::parse(&bytes.map_err(|e| e.to_string())?).map_err(|e| e.to_string())
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
        match read_index(&path) {
            Ok(index) => {
                for (tensor, shard) in index.weight_map {
                    match here.get(&tensor) {
                        Some(held) if held.file.file_name().is_some_and(|n| n.to_string_lossy() == shard) => {
                            found.matched += 1;
                        }
                        Some(held) => found
                            .faults
                            .push(format!("tensor {tensor}: the index says {shard}, it is in {}", held.file.display())),
                        None => found.missing.push(tensor.clone()),
                    }
                    expected.insert(tensor);
                }
            }
            Err(why) => found.faults.push(format!("{}: {why}", path.display())),
        }
    }
    if indexed {
        found.extra.extend(here.keys().filter(|n| !expected.contains(*n)).cloned());
    } else {
        found.matched += here.len();
    }
    Ok(())
}

/// Codes, scales and biases have the same rows; affine codes have biases of the shape of the scales.
fn check_parts(stem: &str, weight: &Held, scales: &Held, here: &Here, found: &mut Audit) {
    let rows = |held: &Held| held.tensor.info.shape.split_last().map(|(_, rows)| rows.to_vec());
    if rows(weight) != rows(scales) {
        let (a, b) = (&weight.tensor.info.shape, &scales.tensor.info.shape);
        found.faults.push(format!("{stem}: codes {a:?} and scales {b:?} differ in rows"));
    }
    let biases = here.get(&format!("{stem}.biases"));
    match (scales.tensor.info.dtype, biases) {
        (Dtype::U8, _) => {}
        (_, None) => found.missing.push(format!("{stem}.biases")),
        (_, Some(biases)) if biases.tensor.info.shape != scales.tensor.info.shape => {
            let (a, b) = (&biases.tensor.info.shape, &scales.tensor.info.shape);
            found.faults.push(format!("{stem}: biases {a:?} and scales {b:?} differ in shape"));
        }
        _ => {}
    }
}

/// Bits that the codes of a group take, as the shapes say it.
fn code_bits(weight: &Held, scales: &Held) -> Option<u64> {
    let last = |held: &Held| held.tensor.info.shape.last().map(|n| *n as u64);
    let (codes, groups) = (last(weight)?.checked_mul(32)?, last(scales)?);
    (groups > 0 && codes.is_multiple_of(groups)).then(|| codes / groups)
}

fn check_stated(stem: &str, weight: &Held, scales: &Held, config: Option<&(Statements, Document)>, found: &mut Audit) {
    let Some(taken) = code_bits(weight, scales) else {
        found.faults.push(format!("{stem}: its codes cannot be shared out to its scales"));
        return;
    };
    let stated = config.map(|(all, config)| (config, all.of(stem)));
    let stated = stated.and_then(|(c, s)| Some((c, (u64::from(s.bits?), s.group_size? as u64))));
    if let Some((config, (bits, group))) = stated.filter(|(_, (b, g))| b.checked_mul(*g) != Some(taken)) {
        let path = config.path.display();
        found
            .faults
            .push(format!("{path}: says {bits} bits in groups of {group}, but a group of {stem} has {taken} bits"));
    }
}

fn check_layer(layer: &Layer<'_>, here: &Here, found: &mut Audit) {
    let part = |suffix: &str| here.get(&format!("{}.{suffix}", layer.stem));
    let (Some(weight), Some(scales)) = (part("weight"), part("scales")) else {
        let missing = ["weight", "scales"].into_iter().filter(|s| part(s).is_none());
        found.missing.extend(missing.map(|s| format!("{}.{s}", layer.stem)));
        return;
    };
    let dim = |held: &Held, back: usize| held.tensor.info.shape.iter().rev().nth(back).map(|n| *n as u64);
    let (stem, Some((bits, group))) = (layer.stem, layer.parameters) else { return };
    let (words, groups) = (dim(weight, 0).unwrap_or(0), dim(scales, 0).unwrap_or(0));
    if let Some(cols) = layer.in_dim {
        if words.checked_mul(32) != cols.checked_mul(bits) {
            found.faults.push(format!("{stem}.weight: {words} words a row do not hold {cols} codes of {bits} bits"));
        }
        if groups.checked_mul(group) != Some(cols) {
            found.faults.push(format!("{stem}.scales: {groups} groups of {group} do not make {cols} columns"));
        }
    }
    if let Some(rows) = layer.out_dim.filter(|rows| dim(weight, 1) != Some(*rows)) {
        found
            .faults
            .push(format!("{stem}.weight: {:?} has not the {rows} rows of the manifest", weight.tensor.info.shape));
    }
}

/// Every scale and bias, and what counts its values that are not finite.
fn parameters(here: &Here) -> Vec<(&Held, Count)> {
    let mut parts: Vec<(&Held, Count)> = vec![];
    for (stem, weight, scales) in quantized(here) {
        let count: Count =
            if code_bits(weight, scales) == Some(NVFP4_CODE_BITS) { not_finite_e4m3 } else { not_finite };
        parts.push((scales, count));
        parts.extend(here.get(&format!("{stem}.biases")).map(|b| (b, not_finite as Count)));
    }
    let scales = |stem: &str| here.get(&format!("{stem}.scales")).or_else(|| here.get(&format!("{stem}.weight_scale")));
    let count =
        |held: &Held| if held.tensor.info.dtype == Dtype::F8_E4M3 { not_finite_e4m3 } else { not_finite as Count };
    parts.extend(recognized::modules(here).filter_map(scales).map(|scales| (scales, count(scales))));
    parts
}

/// Looks at every value of them.
fn check_values(parts: Vec<(&Held, Count)>, found: &mut Audit, progress: &dyn Progress) -> Result<(), Error> {
    progress.begin(parts.iter().map(|(p, _)| p.tensor.range.end - p.tensor.range.start).sum());
    let mut buffer = vec![];
    for (part, count) in parts {
        let (range, info) = (&part.tensor.range, &part.tensor.info);
        let file = File::open(&part.file).map_err(|e| Error::io(&part.file, e))?;
        buffer.resize(usize::try_from(range.end - range.start).unwrap_or(0), 0);
        file.read_exact_at(&mut buffer, range.start).map_err(|e| Error::io(&part.file, e))?;
        let bad = count(&buffer, info.dtype);
        if bad > 0 {
            found.faults.push(format!("tensor {} of {}: {bad} values are not finite", info.name, part.file.display()));
        }
        found.scales += 1;
        progress.advance(buffer.len() as u64);
    }
    Ok(())
}

/// Counts the values of a dtype that are not finite.
type Count = fn(&[u8], Dtype) -> usize;

/// 16 codes of 4 bits share a scale in e4m3; other scales of a byte are e8m0.
const NVFP4_CODE_BITS: u64 = 64;

fn not_finite_e4m3(bytes: &[u8], dtype: Dtype) -> usize {
    if matches!(dtype, Dtype::U8 | Dtype::F8_E4M3) {
        bytes.iter().filter(|b| **b & 0x7F == 0x7F).count()
    } else {
        not_finite(bytes, dtype)
    }
}

fn not_finite(bytes: &[u8], dtype: Dtype) -> usize {
    match dtype {
        Dtype::BF16 => bytes.chunks_exact(2).filter(|b| !bf16::from_le_bytes([b[0], b[1]]).is_finite()).count(),
        Dtype::F16 => bytes.chunks_exact(2).filter(|b| !f16::from_le_bytes([b[0], b[1]]).is_finite()).count(),
        Dtype::F32 => {
            bytes.chunks_exact(4).filter(|b| !f32::from_le_bytes([b[0], b[1], b[2], b[3]]).is_finite()).count()
        }
        Dtype::U8 => bytes.iter().filter(|b| **b == u8::MAX).count(),
        _ => 0,
    }
}
