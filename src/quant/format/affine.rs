//! Affine codes in groups along the rows, as MLX stores them: `.weight` (codes, a little-endian bit
//! stream in u32 words), `.scales` and `.biases` (one each for a group).
//!
//! Knows the arithmetic only by its name in [`crate::kernel`].

use std::sync::Arc;

use crate::{
    kernel::{self, Flavour, kernels},
    quant::{
        Axis, Banding, Content, Facts, Part, Scheme, Unsupported, Weight,
        operator::{self, Bytes, Operator},
    },
    tensor::{Dtype, Float, Rows},
};

use super::{ENCODING, check_groups, with_cols};

/// Affine codes of one width, group and rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Affine {
    /// 2, 3, 4, 5, 6 or 8.
    pub(super) bits: u32,
    /// 32, 64 or 128.
    pub(super) group: usize,
    /// Whose rounding.
    pub(super) flavour: Flavour,
    /// The dtype of scales and biases; `None` is the weight's own.
    pub(super) stored: Option<Float>,
}

impl Affine {
    fn job(&self, float: Float) -> kernel::Affine {
        let stored = self.stored.unwrap_or(float);
        kernel::Affine { bits: self.bits, group: self.group, float, stored, flavour: self.flavour }
    }
}

impl Scheme for Affine {
    fn id(&self) -> String {
        let stored = self.stored.map_or("own", Float::name);
        let Self { bits, group, flavour, .. } = self;
        format!("affine-{bits}bit-g{group}-{stored}-{flavour:?}-rtn-{ENCODING}")
    }

    fn facts(&self) -> Facts {
        Facts { bits: self.bits, group_size: self.group, mode: "affine" }
    }

    fn parts(&self, weight: &Weight) -> Result<Vec<Part>, Unsupported> {
        check_groups(weight, self.group)?;
        let stored = self.stored.unwrap_or(weight.float);
        let parameters = |suffix| Part {
            suffix,
            dtype: stored.dtype(),
            shape: with_cols(weight, weight.cols() / self.group),
            content: Content::Tiled { per_granule: stored.size() },
        };
        let codes = Part {
            suffix: ".weight",
            dtype: Dtype::U32,
            shape: with_cols(weight, weight.cols() / 32 * self.bits as usize),
            content: Content::Tiled { per_granule: self.group / 8 * self.bits as usize },
        };
        Ok(vec![codes, parameters(".scales"), parameters(".biases")])
    }

    fn banding(&self, _: &Weight) -> Banding {
        Banding { axis: Axis::Flat, granule: self.group }
    }

    fn encode(&self, band: Rows<'_>, out: &mut [&mut [u8]]) {
        let [codes, scales, biases] = out else { panic!("affine has three parts, not {}", out.len()) };
        kernels().quantize_affine(&self.job(band.float), band.data, codes, scales, biases);
    }

    fn decode(&self, parts: &[&[u8]], float: Float, _: usize, out: &mut [f32]) {
        let [codes, scales, biases] = parts else { panic!("affine has three parts, not {}", parts.len()) };
        kernels().dequantize_affine(&self.job(float), codes, scales, biases, out);
    }

    fn operator(&self, weight: &Weight, parts: &[Bytes]) -> Option<Arc<dyn Operator>> {
        let found = operator::Affine::new(self.job(weight.float), weight.rows(), weight.cols(), parts)?;
        Some(Arc::new(found))
    }
}
