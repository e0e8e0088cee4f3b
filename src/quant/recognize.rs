//! Recognition: from the tensors of a module, and what is said of it, to the scheme that stored it.
//!
//! Every format looks at its own layout; a scheme that is found fits the tensors in dtype and shape,
//! all parts of them. Nothing is guessed: where shapes leave two readings and nobody says which, that
//! is an error. Knows no file.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    quant::{Scheme, Unsupported, Weight, format, stated::Stated},
    tensor::{Dtype, TensorInfo},
};

/// What a weight's first part is called after its module, where it is not the weight itself.
const CODES: [&str; 2] = [".qweight", ".weight_packed"];

/// The module whose weight a tensor of this name is, or begins.
#[must_use]
pub fn stem(name: &str) -> Option<&str> {
    name.strip_suffix(".weight").or_else(|| CODES.iter().find_map(|suffix| name.strip_suffix(suffix)))
}

/// A module of a directory: the tensors whose names start with its stem.
#[derive(Clone, Debug)]
pub struct Module<'a> {
    /// Name without the suffixes, `model.layers.0.mlp.up_proj`.
    pub stem: &'a str,
    /// Suffix (`.weight`, `.scales`, ...) and tensor.
    pub tensors: Vec<(&'a str, &'a TensorInfo)>,
    /// What config and manifest say of it.
    pub stated: Stated,
}

impl<'a> Module<'a> {
    /// The module of a stem: of tensors sorted by name, those right below the stem, and those below its weight.
    #[must_use]
    pub fn of<T>(
        stem: &'a str,
        sorted: &'a BTreeMap<String, T>,
        info: impl Fn(&'a T) -> &'a TensorInfo,
        stated: Stated,
    ) -> Self {
        let prefix = format!("{stem}.");
        let below = sorted.range(prefix.clone()..).take_while(|(name, _)| name.starts_with(&prefix));
        let own = below.filter(|(name, _)| {
            let rest = &name[prefix.len()..];
            !rest.contains('.') || rest.starts_with("weight.")
        });
        Self { stem, tensors: own.map(|(name, held)| (&name[stem.len()..], info(held))).collect(), stated }
    }

    /// The tensor of a suffix.
    #[must_use]
    pub fn get(&self, suffix: &str) -> Option<&'a TensorInfo> {
        self.tensors.iter().find(|(s, _)| *s == suffix).map(|(_, info)| *info)
    }

    /// Whether what is said of the mode, if anything, is what the tensors are.
    pub(super) fn agree(&self, mode: &str) -> Result<(), Unsupported> {
        match self.stated.mode.as_deref() {
            Some(said) if said != mode => Err(Unsupported(format!(
                "config.json or quantization.json says {said}, but its tensors are those of {mode}"
            ))),
            _ => Ok(()),
        }
    }

    /// The tensor of a suffix, where it has the dtype.
    pub(super) fn typed(&self, suffix: &str, dtype: Dtype) -> Option<&'a TensorInfo> {
        self.get(suffix).filter(|info| info.dtype == dtype)
    }
}

/// How a module is stored.
#[derive(Clone, Debug)]
pub struct Recognized {
    /// The scheme; its parts are the module's tensors.
    pub scheme: Arc<dyn Scheme>,
    /// The weight that they hold.
    pub weight: Weight,
}

/// The scheme of a module; `None` where no format stores weights like this.
///
/// # Errors
/// A module that has a format's layout and cannot be read: parts missing, shapes that do not fit,
/// parameters that nobody states and the shapes leave open.
#[must_use]
pub fn recognize(module: &Module<'_>) -> Option<Result<Recognized, Unsupported>> {
    let found = format::recognize(module)?;
    Some(found.and_then(|found| check(module, &found).map(|()| found)))
}

/// Whether the tensors are the scheme's parts.
fn check(module: &Module<'_>, found: &Recognized) -> Result<(), Unsupported> {
    for part in found.scheme.parts(&found.weight)? {
        let Some(info) = module.get(part.suffix) else {
            return Err(Unsupported(format!("its {}{} is missing", module.stem, part.suffix)));
        };
        if (info.dtype, &info.shape) != (part.dtype, &part.shape) {
            return Err(Unsupported(format!(
                "{} is {} {:?}, but weights of shape {:?} in {} bits have {} {:?} there",
                info.name,
                info.dtype,
                info.shape,
                found.weight.shape,
                found.scheme.facts().bits,
                part.dtype,
                part.shape,
            )));
        }
    }
    Ok(())
}
