//! The plain mirror: every byte as it is.

use std::sync::Arc;

use crate::quant::{Dialect, Format, Module, Recognized, Scheme, Unsupported, dialect};

use super::no_such;

/// No quantization and no renaming.
#[derive(Clone, Copy, Debug)]
pub struct Source;

impl Format for Source {
    fn name(&self) -> &'static str {
        "source"
    }

    fn schemes(&self) -> &'static [&'static str] {
        &["source"]
    }

    fn options(&self, _: &str) -> Vec<&'static [&'static str]> {
        vec![]
    }

    fn bind(&self, scheme: &str, options: &[&str]) -> Result<Option<Arc<dyn Scheme>>, Unsupported> {
        match (scheme, options) {
            ("source", []) => Ok(None),
            _ => Err(no_such("source", scheme, options)),
        }
    }

    fn recognize(&self, _: &Module<'_>) -> Option<Result<Recognized, Unsupported>> {
        None
    }

    fn dialect(&self) -> &'static dyn Dialect {
        &dialect::mirror::MIRROR
    }

    fn readers(&self) -> &'static str {
        "whatever reads the source"
    }
}
