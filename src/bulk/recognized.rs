//! An audit's look at weights that are not MLX's: recognized as the runtime recognizes them.

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
    tensor::{Dtype, Float},
};

/// The modules of a directory whose codes have a name of their own, or are neither floats nor MLX's words.
pub(super) fn modules(here: &Here) -> impl Iterator<Item = &str> {
    let is_other = |held: &Held| held.tensor.info.dtype != Dtype::U32 && Float::of(held.tensor.info.dtype).is_none();
    let codes = here.iter().filter(move |(name, held)| !name.ends_with(".weight") || is_other(held));
    codes.filter_map(|(name, _)| stem(name))
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
        if held.read()?[..] != expected[..] {
            let (name, mode) = (&held.tensor.info.name, found.scheme.facts().mode);
            audit.faults.push(format!("tensor {name}: it is not what {mode} weights of this shape have there"));
        }
    }
    Ok(())
}
