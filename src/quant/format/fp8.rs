//! e4m3 in blocks of 128 rows and columns with `weight_scale_inv`: the layout that DeepSeek published, and that
//! transformers, vLLM and SGLang read as `quant_method: fp8`.
//!
//! Parts: `.weight` (F8_E4M3, the weight's shape) and `.weight_scale_inv` (F32 `[rows / 128, columns / 128]`): what a
//! block's values are multiplied with. Weights that are no whole blocks are refused: loaders disagree about them.
//!
//! Follows transformers 5.23 (`integrations/finegrained_fp8.py`, `Fp8Quantize`), in f32: `scale = 1 / amax * 448`, codes
//! are `w * scale` clamped and rounded half to even, `weight_scale_inv = 1 / scale`. Blocks of zeros, and those with a
//! NaN, have scale 1; in a block with an infinite element that one is NaN and all others are 0.

use std::sync::Arc;

use crate::{
    kernel::{Kernels, kernels},
    num::fp8::e4m3_to_f32,
    quant::{
        Axis, Banding, Content, Dialect, Facts, Format, Module, Part, Recognized, Scheme, Unsupported, Weight, dialect,
    },
    tensor::{Dtype, Float, Rows},
};

use super::{ENCODING, check_groups, no_such};

/// Rows and columns of a block.
const BLOCK: usize = Kernels::TILE;

/// Blocks of e4m3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks;

impl Scheme for Blocks {
    fn id(&self) -> String {
        format!("fp8-b128-{ENCODING}")
    }

    fn facts(&self) -> Facts {
        Facts { bits: 8, group_size: BLOCK, mode: "fp8" }
    }

    fn parts(&self, weight: &Weight) -> Result<Vec<Part>, Unsupported> {
        check_groups(weight, BLOCK)?;
        let [rows, cols] = weight.shape[..] else {
            return Err(Unsupported(format!("it has shape {:?}; only matrices are quantized", weight.shape)));
        };
        if !rows.is_multiple_of(BLOCK) {
            return Err(Unsupported(format!("its {rows} rows are no whole groups of {BLOCK}")));
        }
        let part =
            |suffix, dtype, shape, per_granule| Part { suffix, dtype, shape, content: Content::Tiled { per_granule } };
        Ok(vec![
            part(".weight", Dtype::F8_E4M3, vec![rows, cols], BLOCK * cols),
            part(".weight_scale_inv", Dtype::F32, vec![rows / BLOCK, cols / BLOCK], cols / BLOCK * 4),
        ])
    }

    fn banding(&self, _: &Weight) -> Banding {
        Banding { axis: Axis::Rows, granule: BLOCK }
    }

    fn encode(&self, band: Rows<'_>, out: &mut [&mut [u8]]) {
        let [codes, scales] = out else { panic!("fp8 has two parts, not {}", out.len()) };
        let mut found = vec![0.0; band.cols / BLOCK];
        let bands = band.data.chunks_exact(BLOCK * band.cols * band.float.size());
        let bands = bands.zip(codes.chunks_exact_mut(BLOCK * band.cols)).zip(scales.chunks_exact_mut(4 * found.len()));
        for ((data, codes), scales) in bands {
            kernels().quantize_tiles(band.float, band.cols, data, codes, &mut found);
            scales.as_chunks_mut().0.iter_mut().zip(&found).for_each(|(out, scale)| *out = scale.to_le_bytes());
        }
    }

    fn decode(&self, parts: &[&[u8]], _: Float, rows: usize, out: &mut [f32]) {
        let [codes, scales] = parts else { panic!("fp8 has two parts, not {}", parts.len()) };
        let cols = (out.len() / rows.max(1)).max(1);
        let scales = scales.as_chunks().0;
        for (row, (out, codes)) in out.chunks_mut(cols).zip(codes.chunks(cols)).enumerate() {
            let scales = scales[row / BLOCK * (cols / BLOCK)..].iter().map(|s| f32::from_le_bytes(*s));
            for ((out, codes), scale) in out.chunks_mut(BLOCK).zip(codes.chunks(BLOCK)).zip(scales) {
                out.iter_mut().zip(codes).for_each(|(w, code)| *w = e4m3_to_f32(*code) * scale);
            }
        }
    }
}

/// The format of blocks of e4m3.
#[derive(Clone, Copy, Debug)]
pub struct Fp8;

impl Format for Fp8 {
    fn name(&self) -> &'static str {
        "fp8"
    }

    fn schemes(&self) -> &'static [&'static str] {
        &["b128"]
    }

    fn options(&self, _: &str) -> Vec<&'static [&'static str]> {
        vec![]
    }

    fn bind(&self, scheme: &str, options: &[&str]) -> Result<Option<Arc<dyn Scheme>>, Unsupported> {
        match (scheme, options) {
            ("b128", []) => Ok(Some(Arc::new(Blocks))),
            _ => Err(no_such("fp8", scheme, options)),
        }
    }

    /// A module of e4m3 codes and inverse scales.
    fn recognize(&self, module: &Module<'_>) -> Option<Result<Recognized, Unsupported>> {
        let codes = module.typed(".weight", Dtype::F8_E4M3)?;
        module.typed(".weight_scale_inv", Dtype::F32)?;
        let weight = Weight { stem: module.stem.to_owned(), float: Float::F32, shape: codes.shape.clone() };
        Some(module.agree("fp8").map(|()| Recognized { scheme: Arc::new(Blocks), weight }))
    }

    fn dialect(&self) -> &'static dyn Dialect {
        &dialect::fp8::FP8
    }

    fn readers(&self) -> &'static str {
        "vLLM, SGLang, transformers"
    }

    fn notes(&self) -> &'static str {
        "vLLM fuses queries, keys and values, and gates with up projections: all of them must be whole blocks there"
    }
}
