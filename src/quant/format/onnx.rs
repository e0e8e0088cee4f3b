//! onnxruntime's `MatMulNBits`: weights in the layout of its operator, and models whose products are
//! that operator. The arithmetic is [`super::matmul_nbits`].

use std::sync::Arc;

use crate::quant::{Dialect, Format, Module, Recognized, Scheme, Unsupported, dialect, method::METHODS_OF_GRIDS};

use super::{
    group_size,
    matmul_nbits::{self, Block, MatMulNBits},
    no_such,
};

const GROUPS: &[&str] = &["g32", "g16", "g64", "g128"];
const SYMMETRY: &[&str] = &["sym", "asym"];

/// The format of onnxruntime.
#[derive(Clone, Copy, Debug)]
pub struct Onnx;

impl Format for Onnx {
    fn name(&self) -> &'static str {
        "onnx"
    }

    fn schemes(&self) -> &'static [&'static str] {
        &["4bit", "8bit", "2bit"]
    }

    fn options(&self, scheme: &str) -> Vec<&'static [&'static str]> {
        if bits(scheme).is_some() { vec![GROUPS, SYMMETRY, METHODS_OF_GRIDS] } else { vec![] }
    }

    fn bind(&self, scheme: &str, options: &[&str]) -> Result<Option<Arc<dyn Scheme>>, Unsupported> {
        let refused = || no_such("onnx", scheme, options);
        let &[group, symmetry, method] = options else { return Err(refused()) };
        let known = GROUPS.contains(&group) && SYMMETRY.contains(&symmetry);
        let (Some(bits), Some(group), true) = (bits(scheme), group_size(group), known) else { return Err(refused()) };
        let scheme = MatMulNBits::new(bits, Block::Of(group), symmetry == "sym")?;
        Ok(Some(Arc::new(scheme.by(method).ok_or_else(refused)?)))
    }

    fn recognize(&self, module: &Module<'_>) -> Option<Result<Recognized, Unsupported>> {
        matmul_nbits::recognize(module)
    }

    fn dialect(&self) -> &'static dyn Dialect {
        &dialect::onnx::ONNX
    }

    fn readers(&self) -> &'static str {
        "onnxruntime (ONNX models with external data), the runtime"
    }
}

fn bits(scheme: &str) -> Option<u32> {
    match scheme {
        "4bit" => Some(4),
        "8bit" => Some(8),
        "2bit" => Some(2),
        _ => None,
    }
}
