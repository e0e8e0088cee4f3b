//! Affine codes in groups along the rows, as MLX stores them: `.weight` (codes, a little-endian bit
//! stream in u32 words), `.scales` and `.biases` (one each for a group).
//!
//! Knows the arithmetic only by its name in [`crate::kernel`].

use std::sync::Arc;

use crate::{
    kernel::{self, Choice, Flavour, Method, kernels},
    quant::{
        Axis, Banding, Content, Facts, Importance, Part, Scheme, Unsupported, Weight, method,
        operator::{self, Bytes, Operator},
    },
    tensor::{Dtype, Float, Rows},
};

use super::{ENCODING, check_groups, with_cols};

/// Affine codes of one width, group, method and rounding.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Affine {
    /// 2, 3, 4, 5, 6 or 8.
    pub(super) bits: u32,
    /// 32, 64 or 128.
    pub(super) group: usize,
    /// How scales, biases and codes are chosen.
    pub(super) method: Method,
    /// Whose rounding.
    pub(super) flavour: Flavour,
    /// The dtype of scales and biases; `None` is the weight's own.
    pub(super) stored: Option<Float>,
    /// What errors weigh.
    pub(super) importance: Option<Importance>,
}

impl Affine {
    /// Codes whose errors weigh the same everywhere.
    pub(super) fn new(bits: u32, group: usize, method: Method, flavour: Flavour, stored: Option<Float>) -> Self {
        Self { bits, group, method, flavour, stored, importance: None }
    }

    fn job(&self, float: Float) -> kernel::Affine {
        let stored = self.stored.unwrap_or(float);
        kernel::Affine { bits: self.bits, group: self.group, float, stored, flavour: self.flavour }
    }
}

impl Scheme for Affine {
    fn id(&self) -> String {
        let stored = self.stored.map_or("own", Float::name);
        let Self { bits, group, flavour, .. } = self;
        let weighed = self.importance.as_ref().map_or_else(String::new, |of| format!("-{}", of.id()));
        let method = method::word(self.method);
        format!("affine-{bits}bit-g{group}-{stored}-{flavour:?}-{method}{weighed}-{ENCODING}")
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
        self.encode_at(0, band, out);
    }

    fn encode_at(&self, start: usize, band: Rows<'_>, out: &mut [&mut [u8]]) {
        let [codes, scales, biases] = out else { panic!("affine has three parts, not {}", out.len()) };
        let job = self.job(band.float);
        let Some(importance) = &self.importance else {
            let choice = Choice { method: self.method, importance: &[], first: 0 };
            return kernels().choose_affine(&job, &choice, band.data, [codes, scales, biases]);
        };
        for (run, choice) in importance.runs(self.method, start..start + band.elements()) {
            let of = |bytes: usize, per: usize| run.start / per * bytes..run.end / per * bytes;
            let parameters = of(job.stored.size(), self.group);
            let part =
                [&mut codes[of(self.bits as usize, 8)], &mut scales[parameters.clone()], &mut biases[parameters]];
            kernels().choose_affine(&job, &choice, &band.data[of(band.float.size(), 1)], part);
        }
    }

    fn weighted(&self, importance: &Importance) -> Option<Arc<dyn Scheme>> {
        let weighted = || Arc::new(Self { importance: Some(importance.clone()), ..self.clone() }) as Arc<dyn Scheme>;
        (self.method != Method::Rtn).then(weighted)
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
