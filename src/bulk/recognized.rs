//! An audit's look at weights whose codes are no `.weight`: recognized as the runtime recognizes them.

use std::{fs::File, os::unix::fs::FileExt};

use crate::{
    bulk::{
        Audit, Error,
        holdings::{Held, Here},
        stated::Layer,
    },
    quant::{
        Content, Module, Recognized, Unsupported,
        recognize::{recognize, stem},
        stated::Statements,
    },
};

/// The modules of a directory whose codes, or the scales of these, have a name of their own.
pub(super) fn modules(here: &Here) -> impl Iterator<Item = &str> {
    let own = |name: &str| !name.ends_with(".weight") || here.contains_key(&format!("{name}_scale"));
    here.keys().filter(move |name| own(name)).filter_map(|name| stem(name))
}

/// Looks at each: that a format knows it, that its parts fit, that its constants are what they must be.
///
/// # Errors
/// A file that cannot be read.
pub(super) fn check(here: &Here, statements: &Statements, audit: &mut Audit) -> Result<(), Error> {
    for stem in modules(here) {
        audit.quantized += 1;
        match of(stem, here, statements) {
            Some(Ok(found)) => check_constants(stem, &found, here, audit)?,
            Some(Err(Unsupported(why))) => audit.faults.push(format!("{stem}: {why}")),
            None => audit.faults.push(format!("{stem}: no format that is known stores weights like this")),
        }
    }
    Ok(())
}

/// What the manifest says of such a layer; `false` where it is no such layer.
pub(super) fn check_layer(layer: &Layer<'_>, here: &Here, statements: &Statements, audit: &mut Audit) -> bool {
    if !modules(here).any(|stem| stem == layer.stem) {
        return false;
    }
    if let Some(Ok(found)) = of(layer.stem, here, statements) {
        let (rows, cols) = (found.weight.rows() as u64, found.weight.cols() as u64);
        if layer.out_dim.is_some_and(|said| said != rows) || layer.in_dim.is_some_and(|said| said != cols) {
            audit.faults.push(format!("{}: {rows} x {cols} is not what the manifest says", layer.stem));
        }
    }
    true
}

fn of(stem: &str, here: &Here, statements: &Statements) -> Option<Result<Recognized, Unsupported>> {
    recognize(&Module::of(stem, here, |held| &held.tensor.info, statements.of(stem)))
}

fn check_constants(stem: &str, found: &Recognized, here: &Here, audit: &mut Audit) -> Result<(), Error> {
    for part in found.scheme.parts(&found.weight).unwrap_or_default() {
        let (Content::Constant(expected), Some(held)) = (&part.content, here.get(&format!("{stem}{}", part.suffix)))
        else {
            continue;
        };
        if read(held)?[..] != expected[..] {
            let (name, mode) = (&held.tensor.info.name, found.scheme.facts().mode);
            audit.faults.push(format!("tensor {name}: it is not what {mode} weights of this shape have there"));
        }
    }
    Ok(())
}

fn read(held: &Held) -> Result<Vec<u8>, Error> {
    let range = &held.tensor.range;
    let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap_or(0)];
    let file = File::open(&held.file).map_err(|e| Error::io(&held.file, e))?;
    file.read_exact_at(&mut bytes, range.start).map_err(|e| Error::io(&held.file, e))?;
    Ok(bytes)
}
