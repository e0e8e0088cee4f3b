//! AWQ's checkpoints (`gemm`), by round to nearest: what AutoAWQ, vLLM, SGLang and transformers read.
//!
//! Parts of a weight `[out, in]`: `.qweight` (I32 `[in, out / 8]`: 4-bit codes along the output, in the order
//! 0 2 4 6 1 3 5 7 from the lowest bits up), `.qzeros` (I32 `[groups, out / 8]`: zero points in the same order) and
//! `.scales` (F16 `[groups, out]`). The arithmetic is `pseudo_quantize_tensor` of AutoAWQ 0.2.9 with zero points:
//! weights are cast to f16 and every step is rounded to f16. A group whose elements all lie on one side of zero
//! loses what is out of reach from zero point 0 or 15, as it does there.
//!
//! No channel is scaled: that is a method's to do.

use std::sync::Arc;

use crate::{
    kernel::Rule,
    quant::{Dialect, Format, Module, Recognized, Scheme, Unsupported, dialect, method::METHODS_OF_GRIDS},
    tensor::Dtype,
};

use super::{
    columns::{Columns, GROUPS, recognized},
    group_size, no_such,
};

/// The format of AWQ.
#[derive(Clone, Copy, Debug)]
pub struct Awq;

impl Format for Awq {
    fn name(&self) -> &'static str {
        "awq"
    }

    fn schemes(&self) -> &'static [&'static str] {
        &["4bit"]
    }

    fn options(&self, scheme: &str) -> Vec<&'static [&'static str]> {
        if scheme == "4bit" { vec![GROUPS, METHODS_OF_GRIDS] } else { vec![] }
    }

    fn bind(&self, scheme: &str, options: &[&str]) -> Result<Option<Arc<dyn Scheme>>, Unsupported> {
        let refused = || no_such(self.name(), scheme, options);
        let ("4bit", [group, method]) = (scheme, options) else { return Err(refused()) };
        let scheme = Columns::new(Rule::Awq, group_size(group).ok_or_else(refused)?)?;
        Ok(Some(Arc::new(scheme.by(method).ok_or_else(refused)?)))
    }

    /// A module of I32 codes with an eighth of the columns of its scales.
    fn recognize(&self, module: &Module<'_>) -> Option<Result<Recognized, Unsupported>> {
        let (codes, zeros) = (module.typed(".qweight", Dtype::I32)?, module.typed(".qzeros", Dtype::I32)?);
        let scales = module.typed(".scales", Dtype::F16)?;
        let shapes = [codes, zeros, scales].map(|part| part.shape.as_slice());
        let eighth = codes.shape.last()?.checked_mul(8)? == *scales.shape.last()?;
        eighth.then(|| {
            module.agree("awq")?;
            recognized(module, shapes, |bits| match bits {
                4 => Ok(Rule::Awq),
                _ => Err(Unsupported(format!("AWQ has codes of 4 bits, and its zero points are of {bits}"))),
            })
        })
    }

    fn dialect(&self) -> &'static dyn Dialect {
        &dialect::awq::AWQ
    }

    fn readers(&self) -> &'static str {
        "vLLM, SGLang, AutoAWQ, transformers"
    }

    fn notes(&self) -> &'static str {
        "no data, no channel is scaled; transformers reads no experts; dense tensors keep their dtype \
         (`--dtype float16` for loaders that compute in nothing else)"
    }
}
