//! MLX: what `mlx_lm.convert -q` writes, bit for bit as on a CPU.
//!
//! The words of the options: `g64` (elements of a group), `rtn`, `ls` or `hqq` (how codes are chosen: [`method`]; `rtn` is
//! what the tool does), `cpu` or `metal` (whose rounding; `metal`
//! is emulated from the kernels' text), `up` or `nearest` (the scales of mxfp4 and mxfp8 as mlx 0.32.2
//! and later, or 0.31.2 and earlier, choose them).

mod layout;

use std::sync::Arc;

use crate::{
    kernel::{Flavour, MicroCode, ScaleRule},
    quant::{
        Dialect, Format, Module, Recognized, Scheme, Unsupported, dialect,
        method::{METHODS, method},
    },
};

use super::{affine::Affine, group_size, microscaling::Microscaling, no_such};

const GROUPS: &[&str] = &["g64", "g32", "g128"];
const FLAVOURS: &[&str] = &["cpu", "metal"];
const RULES: &[&str] = &["up", "nearest"];

/// The format of mlx-lm.
#[derive(Clone, Copy, Debug)]
pub struct Mlx;

impl Format for Mlx {
    fn name(&self) -> &'static str {
        "mlx"
    }

    fn schemes(&self) -> &'static [&'static str] {
        &["4bit", "8bit", "2bit", "3bit", "5bit", "6bit", "mxfp4", "mxfp8", "nvfp4", "source"]
    }

    fn options(&self, scheme: &str) -> Vec<&'static [&'static str]> {
        match scheme {
            "mxfp4" | "mxfp8" => vec![FLAVOURS, RULES],
            "nvfp4" => vec![FLAVOURS],
            _ if bits(scheme).is_some() => vec![GROUPS, METHODS, FLAVOURS],
            _ => vec![],
        }
    }

    fn bind(&self, scheme: &str, options: &[&str]) -> Result<Option<Arc<dyn Scheme>>, Unsupported> {
        let bound = match (scheme, options) {
            ("source", []) => return Ok(None),
            ("nvfp4", [f]) => flavour(f).map(|f| micro(MicroCode::Nvfp4, f, ScaleRule::Up)),
            ("mxfp4", [f, r]) => flavour(f).zip(rule(r)).map(|(f, r)| micro(MicroCode::Mxfp4, f, r)),
            ("mxfp8", [f, r]) => flavour(f).zip(rule(r)).map(|(f, r)| micro(MicroCode::Mxfp8, f, r)),
            (_, [g, m, f]) => affine(scheme, g, m, f),
            _ => None,
        };
        bound.map(Some).ok_or_else(|| no_such("mlx", scheme, options))
    }

    fn recognize(&self, module: &Module<'_>) -> Option<Result<Recognized, Unsupported>> {
        layout::recognize(module)
    }

    fn dialect(&self) -> &'static dyn Dialect {
        &dialect::mlx::MLX
    }

    fn readers(&self) -> &'static str {
        "mlx-lm, mlx-vlm, mlx-swift, mistral.rs"
    }

    fn notes(&self) -> &'static str {
        "metal is emulated from the kernels' text, not verified on a device"
    }
}

fn affine(scheme: &str, group: &str, method_word: &str, flavour_word: &str) -> Option<Arc<dyn Scheme>> {
    let group = group_size(group).filter(|_| GROUPS.contains(&group))?;
    Some(Arc::new(Affine::new(bits(scheme)?, group, method(method_word)?, flavour(flavour_word)?, None)))
}

fn micro(code: MicroCode, flavour: Flavour, rule: ScaleRule) -> Arc<dyn Scheme> {
    Arc::new(Microscaling { code, flavour, rule, computed: None })
}

/// The width of an affine scheme.
fn bits(scheme: &str) -> Option<u32> {
    match scheme {
        "2bit" => Some(2),
        "3bit" => Some(3),
        "4bit" => Some(4),
        "5bit" => Some(5),
        "6bit" => Some(6),
        "8bit" => Some(8),
        _ => None,
    }
}

/// The rounding of an option word.
pub(super) fn flavour(word: &str) -> Option<Flavour> {
    match word {
        "cpu" => Some(Flavour::Cpu),
        "metal" => Some(Flavour::Metal),
        _ => None,
    }
}

/// The rule of an option word.
pub(super) fn rule(word: &str) -> Option<ScaleRule> {
    match word {
        "up" => Some(ScaleRule::Up),
        "nearest" => Some(ScaleRule::Nearest),
        _ => None,
    }
}
