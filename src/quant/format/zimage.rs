//! zimage.swift: MLX's packings made on a Mac, from weights that were cast to f32 first. Scales and
//! biases are f32 whatever the source is.
//!
//! Its rounding is that of mlx-swift 0.30.6 on Metal, so `metal` and `nearest` are the defaults; both
//! are emulated from the kernels' text.

use std::sync::Arc;

use crate::{
    kernel::MicroCode,
    quant::{
        Dialect, Format, Module, Recognized, Scheme, Unsupported, dialect,
        method::{METHODS, method},
    },
    tensor::Float,
};

use super::{
    affine::Affine,
    group_size,
    microscaling::Microscaling,
    mlx::{flavour, rule},
    no_such,
};

const GROUPS: &[&str] = &["g32", "g64", "g128"];
const FLAVOURS: &[&str] = &["metal", "cpu"];
const RULES: &[&str] = &["nearest", "up"];

/// The format of zimage.swift.
#[derive(Clone, Copy, Debug)]
pub struct Zimage;

impl Format for Zimage {
    fn name(&self) -> &'static str {
        "zimage"
    }

    fn schemes(&self) -> &'static [&'static str] {
        &["8bit", "4bit", "mxfp4"]
    }

    fn options(&self, scheme: &str) -> Vec<&'static [&'static str]> {
        match scheme {
            "8bit" | "4bit" => vec![GROUPS, METHODS, FLAVOURS],
            "mxfp4" => vec![FLAVOURS, RULES],
            _ => vec![],
        }
    }

    fn bind(&self, scheme: &str, options: &[&str]) -> Result<Option<Arc<dyn Scheme>>, Unsupported> {
        let bound = match (scheme, options) {
            ("8bit", [g, m, f]) => affine(8, g, m, f),
            ("4bit", [g, m, f]) => affine(4, g, m, f),
            ("mxfp4", [f, r]) => mxfp4(f, r),
            _ => None,
        };
        bound.map(Some).ok_or_else(|| no_such("zimage", scheme, options))
    }

    /// Its layout is MLX's, and recognized there.
    fn recognize(&self, _: &Module<'_>) -> Option<Result<Recognized, Unsupported>> {
        None
    }

    fn dialect(&self) -> &'static dyn Dialect {
        &dialect::zimage::ZIMAGE
    }

    fn readers(&self) -> &'static str {
        "zimage.swift"
    }

    fn notes(&self) -> &'static str {
        "metal (the default, as zimage.swift runs on Macs) is emulated from the kernels' text, not verified on a device"
    }
}

fn affine(bits: u32, group: &str, method_word: &str, flavour_word: &str) -> Option<Arc<dyn Scheme>> {
    let group = group_size(group).filter(|_| GROUPS.contains(&group))?;
    Some(Arc::new(Affine::new(bits, group, method(method_word)?, flavour(flavour_word)?, Some(Float::F32))))
}

fn mxfp4(flavour_word: &str, rule_word: &str) -> Option<Arc<dyn Scheme>> {
    let (flavour, rule) = (flavour(flavour_word)?, rule(rule_word)?);
    Some(Arc::new(Microscaling { code: MicroCode::Mxfp4, flavour, rule, computed: Some(Float::F32) }))
}
