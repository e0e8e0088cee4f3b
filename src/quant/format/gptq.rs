//! GPTQ's checkpoints, by round to nearest: what gptqmodel, auto-gptq, vLLM, SGLang and transformers read.
//!
//! Parts of a weight `[out, in]`: `.qweight` (I32 `[in * bits / 32, out]`: codes along the input, the first one
//! lowest), `.qzeros` (I32 `[groups, out * bits / 32]`: zero points along the output), `.scales` (F16
//! `[groups, out]`) and `.g_idx` (I32 `[in]`: the group of each column, in order). The arithmetic is
//! `find_params` of auto-gptq 0.7.1 and gptqmodel 7.7.0, in f32.
//!
//! `v1` stores zero points less one, which leaves no room for 0: readers add one to whole words or to fields, with
//! or without a carry, and no bytes would mean 0 to all of them. So asymmetric codes under `v1` have no zero
//! point below 1; a group that would have 0 (no element below minus half a step) gets one step fewer. `v2` stores
//! zero points as they are; gptqmodel's own loader takes asymmetric codes of others only so.
//!
//! Columns are never reordered (`desc_act` is false), and codes that others reordered are not read.

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

/// The format of GPTQ.
#[derive(Clone, Copy, Debug)]
pub struct Gptq;

impl Format for Gptq {
    fn name(&self) -> &'static str {
        "gptq"
    }

    fn schemes(&self) -> &'static [&'static str] {
        &["4bit", "8bit", "2bit", "3bit"]
    }

    fn options(&self, scheme: &str) -> Vec<&'static [&'static str]> {
        if self.schemes().contains(&scheme) {
            vec![GROUPS, &["sym", "asym"], METHODS_OF_GRIDS, &["v1", "v2"]]
        } else {
            vec![]
        }
    }

    fn bind(&self, scheme: &str, options: &[&str]) -> Result<Option<Arc<dyn Scheme>>, Unsupported> {
        let refused = || no_such(self.name(), scheme, options);
        let bits = self.schemes().iter().find(|name| **name == scheme).and_then(|name| name.strip_suffix("bit"));
        let bits = bits.and_then(|bits| bits.parse().ok()).ok_or_else(refused)?;
        let [group, symmetry @ ("sym" | "asym"), method, version @ ("v1" | "v2")] = *options else {
            return Err(refused());
        };
        let group = group_size(group).ok_or_else(refused)?;
        let rule = Rule::Gptq { bits, symmetric: symmetry == "sym", less_one: version == "v1" };
        Ok(Some(Arc::new(Columns::new(rule, group)?.by(method).ok_or_else(refused)?)))
    }

    /// A module of I32 codes with as many columns as its scales.
    fn recognize(&self, module: &Module<'_>) -> Option<Result<Recognized, Unsupported>> {
        let (codes, zeros) = (module.typed(".qweight", Dtype::I32)?, module.typed(".qzeros", Dtype::I32)?);
        let scales = module.typed(".scales", Dtype::F16)?;
        let shapes = [codes, zeros, scales].map(|part| part.shape.as_slice());
        (codes.shape.last() == scales.shape.last()).then(|| {
            let less_one = match module.stated.mode.as_deref() {
                Some("gptq") => true,
                Some("gptq_v2") => false,
                Some(other) => {
                    let why = format!("config.json or quantization.json says {other}, but its tensors are GPTQ's");
                    return Err(Unsupported(why));
                }
                None => {
                    let why = "nobody says how its zero points are stored, which quantization_config's quant_method and \
                               checkpoint_format of config.json should";
                    return Err(Unsupported(why.to_owned()));
                }
            };
            recognized(module, shapes, |bits| Ok(Rule::Gptq { bits, symmetric: false, less_one }))
        })
    }

    fn dialect(&self) -> &'static dyn Dialect {
        &dialect::gptq::GPTQ
    }

    fn readers(&self) -> &'static str {
        "vLLM, SGLang, gptqmodel, transformers"
    }

    fn notes(&self) -> &'static str {
        "no data: rtn or ls; transformers reads no experts, no mixed rules and no quantized lm_head, gptqmodel does; dense tensors keep their dtype \
         (`--dtype float16` for loaders that compute in nothing else); asym: v2 for gptqmodel, v1 has zero points from 1"
    }
}
