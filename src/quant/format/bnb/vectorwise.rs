//! int8 of bitsandbytes (`LLM.int8()`): codes of a row that share its largest magnitude.
//!
//! Parts: `.weight` (I8, the weight's shape), `.SCB` (F32 `[rows]`, the magnitudes) and the constant
//! `.weight_format` (U8, 0: row-major). Elements are rounded to f16 first, whatever the source is, then `code =
//! w * (1 / magnitude * 127)` in f32, half to even (`int8_vectorwise_quant`). Rows of zeros, and those with a NaN
//! or an infinite element, have codes 0. The bits of a magnitude that is NaN depend, in torch, on the row's number;
//! here they are always the same.
//!
//! Decoding is `code * SCB * (1 / 127)` in f32.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::{
    kernel::kernels,
    quant::{Axis, Banding, Content, Facts, Module, Part, Recognized, Scheme, Unsupported, Weight, format::ENCODING},
    tensor::{Dtype, Float, Rows},
};

use super::{load, matrix, store};

/// What the library multiplies with to divide by 127.
const STEP: f32 = 7.874_016e-3;

/// Codes of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vectorwise;

impl Scheme for Vectorwise {
    fn id(&self) -> String {
        format!("bnb-int8-{ENCODING}")
    }

    fn facts(&self) -> Facts {
        Facts { bits: 8, group_size: 0, mode: "int8" }
    }

    fn config(&self) -> Value {
        json!({ "load_in_8bit": true })
    }

    fn parts(&self, weight: &Weight) -> Result<Vec<Part>, Unsupported> {
        let [rows, cols] = matrix(weight)?;
        let tiled = |per_granule| Content::Tiled { per_granule };
        Ok(vec![
            Part { suffix: ".weight", dtype: Dtype::I8, shape: vec![rows, cols], content: tiled(cols) },
            Part { suffix: ".SCB", dtype: Dtype::F32, shape: vec![rows], content: tiled(4) },
            Part {
                suffix: ".weight_format",
                dtype: Dtype::U8,
                shape: vec![],
                content: Content::Constant(Arc::from([0])),
            },
        ])
    }

    fn banding(&self, _: &Weight) -> Banding {
        Banding { axis: Axis::Rows, granule: 1 }
    }

    fn encode(&self, band: Rows<'_>, out: &mut [&mut [u8]]) {
        let [codes, magnitudes] = out else { panic!("int8 has two encoded parts, not {}", out.len()) };
        let rows = band.data.chunks_exact(band.cols * band.float.size()).zip(codes.chunks_exact_mut(band.cols));
        let found: Vec<f32> = rows.map(|(row, codes)| kernels().quantize_vectorwise(band.float, row, codes)).collect();
        store(&found, magnitudes);
    }

    fn decode(&self, parts: &[&[u8]], _: Float, rows: usize, out: &mut [f32]) {
        let [codes, magnitudes] = parts else { panic!("int8 has two encoded parts, not {}", parts.len()) };
        let cols = (out.len() / rows.max(1)).max(1);
        for ((out, codes), most) in out.chunks_mut(cols).zip(codes.chunks(cols)).zip(load(magnitudes)) {
            out.iter_mut().zip(codes).for_each(|(w, code)| *w = f32::from(code.cast_signed()) * most * STEP);
        }
    }
}

/// A module of I8 codes and their magnitudes.
pub(super) fn recognize(module: &Module<'_>) -> Result<Recognized, Unsupported> {
    module.agree("int8")?;
    let shape = module.get(".weight").map(|codes| codes.shape.clone()).unwrap_or_default();
    let float = module.stated.float.unwrap_or(Float::F32);
    Ok(Recognized { scheme: Arc::new(Vectorwise), weight: Weight { stem: module.stem.to_owned(), float, shape } })
}
