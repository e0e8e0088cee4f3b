//! Groups of small floats under a one-byte scale, as MLX stores them: `.weight` (codes in u32 words,
//! the first element lowest) and `.scales` (one byte a group: e8m0, nvfp4: e4m3).
//!
//! Knows the arithmetic only by its name in [`crate::kernel`].

use std::sync::Arc;

use crate::{
    kernel::{Flavour, Micro, MicroCode, ScaleRule, kernels},
    quant::{
        Axis, Banding, Content, Facts, Part, Scheme, Unsupported, Weight,
        operator::{self, Bytes, Operator},
    },
    tensor::{Dtype, Float, Rows},
};

use super::{ENCODING, check_groups, with_cols};

/// One of the small-float codes with its rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Microscaling {
    /// mxfp4, mxfp8 or nvfp4.
    pub(super) code: MicroCode,
    /// Whose rounding.
    pub(super) flavour: Flavour,
    /// How an MX scale is chosen.
    pub(super) rule: ScaleRule,
    /// What weights are cast to before anything else; `None` is the weight's own dtype.
    pub(super) computed: Option<Float>,
}

impl Microscaling {
    fn job(&self, float: Float) -> Micro {
        let computed = self.computed.unwrap_or(float);
        Micro { code: self.code, float, computed, flavour: self.flavour, rule: self.rule }
    }

    fn mode(&self) -> &'static str {
        match self.code {
            MicroCode::Mxfp4 => "mxfp4",
            MicroCode::Mxfp8 => "mxfp8",
            MicroCode::Nvfp4 => "nvfp4",
        }
    }
}

impl Scheme for Microscaling {
    fn id(&self) -> String {
        let computed = self.computed.map_or("own", Float::name);
        let Self { flavour, rule, .. } = self;
        let rule = if self.code == MicroCode::Nvfp4 { String::new() } else { format!("-{rule:?}") };
        format!("{}-{computed}-{flavour:?}{rule}-rtn-{ENCODING}", self.mode())
    }

    fn facts(&self) -> Facts {
        Facts { bits: self.code.bits(), group_size: self.code.group_size(), mode: self.mode() }
    }

    fn parts(&self, weight: &Weight) -> Result<Vec<Part>, Unsupported> {
        let (group, bits) = (self.code.group_size(), self.code.bits() as usize);
        check_groups(weight, group)?;
        let codes = Part {
            suffix: ".weight",
            dtype: Dtype::U32,
            shape: with_cols(weight, weight.cols() / 8 * bits / 4),
            content: Content::Tiled { per_granule: group / 8 * bits },
        };
        let scales = Part {
            suffix: ".scales",
            dtype: Dtype::U8,
            shape: with_cols(weight, weight.cols() / group),
            content: Content::Tiled { per_granule: 1 },
        };
        Ok(vec![codes, scales])
    }

    fn banding(&self, _: &Weight) -> Banding {
        Banding { axis: Axis::Flat, granule: self.code.group_size() }
    }

    fn encode(&self, band: Rows<'_>, out: &mut [&mut [u8]]) {
        let [codes, scales] = out else { panic!("{} has two parts, not {}", self.mode(), out.len()) };
        kernels().quantize_micro(&self.job(band.float), band.data, codes, scales);
    }

    fn decode(&self, parts: &[&[u8]], float: Float, _: usize, out: &mut [f32]) {
        let [codes, scales] = parts else { panic!("{} has two parts, not {}", self.mode(), parts.len()) };
        kernels().dequantize_micro(&self.job(float), codes, scales, out);
    }

    fn operator(&self, weight: &Weight, parts: &[Bytes]) -> Option<Arc<dyn Operator>> {
        let found = operator::Micro::new(self.job(weight.float), weight.rows(), weight.cols(), parts)?;
        Some(Arc::new(found))
    }
}
