//! Symmetric int8: `w = code * scale`, one scale for a whole tensor or for each row.
//!
//! `scale = max|w| / 127`, `code = w / scale` rounded half to even and clamped to -127..=127: what
//! dynamic quantization does on the fly. Computed in f32 from the weight's own float. Parts: `.weight`
//! (I8, the weight's shape) and `.scales` (F32, `[.., rows, 1]`) or `.scale` (F32, `[1]`).
//!
//! NaN has code 0 and counts for no maximum. A weight of zeros has scale 0 and codes 0; one
//! so small that its scale underflows has scale 0 too, whatever its codes. An infinite weight makes the scale infinite and the values NaN.
//!
//! Products take a row as groups of up to 128 columns; rows that are no multiple of 16 multiply exactly.
//!
//! A tensor's one scale needs the whole tensor before the first code, so that such a weight is a single
//! band: the runtime makes them, no format of the table does.

use std::sync::Arc;

use crate::{
    kernel::{Zero, kernels},
    quant::{
        Axis, Banding, Content, Facts, Module, Part, Recognized, Scheme, Unsupported, Weight,
        operator::{Blocks, Bytes, Form, Operator},
    },
    tensor::{Dtype, Float, Rows},
};

use super::{ENCODING, check_groups, with_cols};

/// What shares a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Per {
    /// Each row has its own.
    Row,
    /// All rows have one.
    Tensor,
}

/// Symmetric int8 codes.
///
/// ```
/// use std::sync::Arc;
/// use quantfs::{
///     quant::{Scheme, Weight, format::sym::{Per, Sym}},
///     runtime::QuantizedLinear,
///     tensor::Float,
/// };
///
/// let weight = Weight { stem: "up".into(), float: Float::F32, shape: vec![2, 2] };
/// let data: Vec<u8> = [127f32, 1.0, 2.0, -254.0].iter().flat_map(|w| w.to_le_bytes()).collect();
/// let of = |per| {
///     let scheme: Arc<dyn Scheme> = Arc::new(Sym { per });
///     QuantizedLinear::quantize(&scheme, weight.clone(), &data).map(|up| up.dequantize())
/// };
/// assert_eq!(of(Per::Row)?, [127.0, 1.0, 2.0, -254.0]);
/// assert_eq!(of(Per::Tensor)?, [128.0, 0.0, 2.0, -254.0], "one scale, 2: half a step goes to the even code");
/// # Ok::<(), quantfs::runtime::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sym {
    /// What shares a scale.
    pub per: Per,
}

impl Scheme for Sym {
    fn id(&self) -> String {
        format!("sym-int8-{:?}-{ENCODING}", self.per)
    }

    fn facts(&self) -> Facts {
        Facts { bits: 8, group_size: 0, mode: "int8" }
    }

    fn parts(&self, weight: &Weight) -> Result<Vec<Part>, Unsupported> {
        check_groups(weight, 1)?;
        let rows = if self.per == Per::Row { 1 } else { weight.rows() };
        let (suffix, shape) = match self.per {
            Per::Row => (".scales", with_cols(weight, 1)),
            Per::Tensor => (".scale", vec![1]),
        };
        let codes = Content::Tiled { per_granule: rows * weight.cols() };
        Ok(vec![
            Part { suffix: ".weight", dtype: Dtype::I8, shape: weight.shape.clone(), content: codes },
            Part { suffix, dtype: Dtype::F32, shape, content: Content::Tiled { per_granule: 4 } },
        ])
    }

    fn banding(&self, weight: &Weight) -> Banding {
        Banding { axis: Axis::Rows, granule: if self.per == Per::Row { 1 } else { weight.rows() } }
    }

    fn encode(&self, band: Rows<'_>, out: &mut [&mut [u8]]) {
        let [codes, scales] = out else { panic!("symmetric int8 has two parts, not {}", out.len()) };
        let run = if self.per == Per::Row { band.cols } else { band.elements() };
        let elements = band.data.chunks_exact(run * band.float.size());
        let mut values = vec![0.0; run];
        for ((data, codes), scale) in elements.zip(codes.chunks_exact_mut(run)).zip(scales.chunks_exact_mut(4)) {
            super::widen(band.float, data, &mut values);
            scale.copy_from_slice(&kernels().quantize_symmetric(&values, codes).to_le_bytes());
        }
    }

    fn decode(&self, parts: &[&[u8]], _: Float, _: usize, out: &mut [f32]) {
        let [codes, scales] = parts else { panic!("symmetric int8 has two parts, not {}", parts.len()) };
        let scales = scales.as_chunks::<4>().0;
        let run = out.len() / scales.len().max(1);
        for ((out, codes), scale) in out.chunks_exact_mut(run.max(1)).zip(codes.chunks_exact(run.max(1))).zip(scales) {
            dequantize(codes, f32::from_le_bytes(*scale), out);
        }
    }

    fn operator(&self, weight: &Weight, parts: &[Bytes]) -> Option<Arc<dyn Operator>> {
        let shared = self.per == Per::Tensor;
        let form = Form { bits: 8, block: weight.cols(), zero: Zero::Signed, stored: Float::F32, shared };
        Some(Arc::new(Blocks::new(Arc::new(*self), weight, form, parts)?))
    }
}

fn dequantize(codes: &[u8], scale: f32, out: &mut [f32]) {
    for (w, code) in out.iter_mut().zip(codes) {
        *w = f32::from(code.cast_signed()) * scale;
    }
}

/// A module of I8 codes and F32 scales.
pub(super) fn recognize(module: &Module<'_>) -> Option<Result<Recognized, Unsupported>> {
    let codes = module.typed(".weight", Dtype::I8)?;
    let per = match (module.typed(".scales", Dtype::F32), module.typed(".scale", Dtype::F32)) {
        (Some(_), None) => Per::Row,
        (None, Some(_)) => Per::Tensor,
        _ => return None,
    };
    let weight = Weight { stem: module.stem.to_owned(), float: Float::F32, shape: codes.shape.clone() };
    Some(module.agree("int8").map(|()| Recognized { scheme: Arc::new(Sym { per }), weight }))
}
