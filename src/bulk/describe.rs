//! A quantized directory as a table: which tensor is stored how.
//!
//! How a weight is stored is recognized as the runtime recognizes it: from shapes, `config.json` and
//! `quantization.json`.

use std::{collections::BTreeMap, path::Path};

use crate::{
    bulk::{
        Error,
        holdings::{Held, Holdings},
        stated,
    },
    container::json,
    plan::Row,
    quant::{
        Facts, Module, Recognized, Unsupported,
        recognize::{recognize, stem},
        stated::Statements,
    },
};

/// The tensors of a quantized directory, a row for each weight with all its parts.
///
/// # Errors
/// A directory without weights, a file that is broken.
pub fn describe(directory: &Path) -> Result<Vec<Row>, Error> {
    let Holdings { held, faults, .. } = Holdings::read(directory)?;
    if let Some(fault) = faults.into_iter().next() {
        return Err(Error::Refused(fault));
    }
    let mut rows = vec![];
    for (at, here) in &held {
        let component = at.strip_prefix(directory).unwrap_or(at).display().to_string();
        let mut statements = statements(at, directory, &component);
        if let Some(fault) = stated::add_states(here, &mut statements)?.into_iter().next() {
            return Err(Error::Refused(fault));
        }
        rows.extend(component_rows(&component, here, &statements));
    }
    Ok(rows)
}

/// What the component's config and the root's manifest say; one that cannot be parsed says nothing.
fn statements(at: &Path, root: &Path, component: &str) -> Statements {
    let parsed = |path: &Path| json::parse(&std::fs::read(path).ok()?).ok();
    let mut all = Statements::default();
    if let Some(config) = parsed(&at.join("config.json")) {
        all.add_config(&config);
    }
    if let Some(manifest) = parsed(&root.join("quantization.json")) {
        all.add_manifest(&manifest, component);
    }
    all
}

fn component_rows(component: &str, here: &BTreeMap<String, Held>, statements: &Statements) -> Vec<Row> {
    let mut rows: BTreeMap<&str, Row> = here.iter().map(|(name, held)| (&**name, dense(component, held))).collect();
    for (codes, stem) in here.keys().filter_map(|name| Some((name, stem(name)?))) {
        let module = Module::of(stem, here, |held| &held.tensor.info, statements.of(stem));
        let Some(found) = recognize(&module) else { continue };
        let others = parameters(codes, stem, &found);
        let bytes: u64 = others.iter().filter_map(|part| rows.remove(&**part)).map(|row| row.bytes_after).sum();
        if let Some(row) = rows.get_mut(&**codes) {
            row.bytes_after += bytes;
            row.bytes_before = row.bytes_after;
            say(row, found);
        }
    }
    rows.into_values().collect()
}

/// The names of the parts beside the codes; of a weight that cannot be read, the usual ones.
fn parameters(codes: &str, stem: &str, found: &Result<Recognized, Unsupported>) -> Vec<String> {
    let parts = found.as_ref().ok().and_then(|found| found.scheme.parts(&found.weight).ok());
    let suffixes = parts.map_or(vec![".scales", ".biases"], |parts| parts.iter().map(|part| part.suffix).collect());
    suffixes.into_iter().map(|suffix| format!("{stem}{suffix}")).filter(|name| name != codes).collect()
}

fn dense(component: &str, held: &Held) -> Row {
    let (info, bytes) = (&held.tensor.info, held.tensor.range.end - held.tensor.range.start);
    Row {
        component: component.to_owned(),
        name: info.name.clone(),
        dtype: info.dtype,
        shape: info.shape.clone(),
        becomes: "dense".to_owned(),
        why: String::new(),
        bytes_before: bytes,
        bytes_after: bytes,
        sources: vec![],
        weight: None,
        by_spec: false,
    }
}

/// How a weight is stored, or why that is not known.
fn say(row: &mut Row, found: Result<Recognized, Unsupported>) {
    match found {
        Ok(found) => {
            let Facts { bits, group_size, mode } = found.scheme.facts();
            let group = if group_size == 0 { String::new() } else { format!(" g{group_size}") };
            row.shape = found.weight.shape;
            row.becomes = format!("{mode} {bits}bit{group}");
        }
        Err(Unsupported(why)) => {
            row.becomes = "quantized".to_owned();
            row.why = why;
        }
    }
}
