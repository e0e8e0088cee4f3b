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
//! A tensor's one scale needs the whole tensor before the first code: a survey.

use std::sync::Arc;

use crate::{
    kernel::{Zero, kernels},
    quant::{
        Axis, Banding, Content, Dialect, Facts, Format, Module, Part, Recognized, Scheme, Survey, Unsupported, Weight,
        dialect,
        operator::{Blocks, Bytes, Form, Operator},
    },
    tensor::{Dtype, Float, Rows},
};

use super::{ENCODING, check_groups, no_such, widen, with_cols};

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
///     let scheme: Arc<dyn Scheme> = Arc::new(Sym::new(per));
///     QuantizedLinear::quantize(&scheme, weight.clone(), &data).map(|up| up.dequantize())
/// };
/// assert_eq!(of(Per::Row)?, [127.0, 1.0, 2.0, -254.0]);
/// assert_eq!(of(Per::Tensor)?, [128.0, 0.0, 2.0, -254.0], "one scale, 2: half a step goes to the even code");
/// # Ok::<(), quantfs::runtime::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sym {
    per: Per,
    /// What the survey of a tensor found.
    scale: Option<f32>,
}

/// The largest code.
const LARGEST: f32 = 127.0;

impl Sym {
    /// A scheme whose scales are shared so; a tensor's one is found by a survey.
    #[must_use]
    pub fn new(per: Per) -> Self {
        Self { per, scale: None }
    }
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
        let (suffix, shape, content) = match self.per {
            Per::Row => (".scales", with_cols(weight, 1), Content::Tiled { per_granule: 4 }),
            Per::Tensor => (".scale", vec![1], Content::First),
        };
        let codes = Content::Tiled { per_granule: weight.cols() };
        Ok(vec![
            Part { suffix: ".weight", dtype: Dtype::I8, shape: weight.shape.clone(), content: codes },
            Part { suffix, dtype: Dtype::F32, shape, content },
        ])
    }

    fn banding(&self, _: &Weight) -> Banding {
        Banding { axis: Axis::Rows, granule: 1 }
    }

    fn survey(&self, _: &Weight) -> Option<Arc<dyn Survey>> {
        (self.per == Per::Tensor).then(|| Arc::new(*self) as Arc<dyn Survey>)
    }

    fn encode(&self, band: Rows<'_>, out: &mut [&mut [u8]]) {
        let [codes, scales] = out else { panic!("symmetric int8 has two parts, not {}", out.len()) };
        let given = (self.per == Per::Tensor).then(|| self.scale.unwrap_or_else(|| scale(&[self.look(band)])));
        let mut scales = scales.as_chunks_mut::<4>().0.iter_mut();
        each_row(band, |row, values| {
            let codes = &mut codes[row * band.cols..][..band.cols];
            let scale = kernels().quantize_symmetric(given, values, codes);
            if let Some(stored) = scales.next() {
                *stored = scale.to_le_bytes();
            }
        });
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

impl Survey for Sym {
    fn look(&self, band: Rows<'_>) -> Vec<f32> {
        let mut largest = 0f32;
        each_row(band, |_, values| largest = largest.max(kernels().largest(values)));
        vec![largest]
    }

    fn conclude(&self, looks: &[Vec<f32>]) -> Arc<dyn Scheme> {
        Arc::new(Self { scale: Some(scale(looks)), ..*self })
    }
}

/// The scale of a tensor of these largest elements.
fn scale(looks: &[Vec<f32>]) -> f32 {
    looks.iter().flatten().fold(0f32, |most, w| most.max(*w)) / LARGEST
}

/// Rows one after the other, as f32.
fn each_row(band: Rows<'_>, mut take: impl FnMut(usize, &[f32])) {
    let mut values = vec![0.0; band.cols];
    for (row, data) in band.data.chunks_exact(band.cols * band.float.size()).enumerate() {
        widen(band.float, data, &mut values);
        take(row, &values);
    }
}

fn dequantize(codes: &[u8], scale: f32, out: &mut [f32]) {
    for (w, code) in out.iter_mut().zip(codes) {
        *w = f32::from(code.cast_signed()) * scale;
    }
}

/// The format of symmetric int8.
#[derive(Clone, Copy, Debug)]
pub struct Symmetric;

impl Format for Symmetric {
    fn name(&self) -> &'static str {
        "sym"
    }

    fn schemes(&self) -> &'static [&'static str] {
        &["int8"]
    }

    fn options(&self, scheme: &str) -> Vec<&'static [&'static str]> {
        if scheme == "int8" { vec![&["tensor", "row"]] } else { vec![] }
    }

    fn bind(&self, scheme: &str, options: &[&str]) -> Result<Option<Arc<dyn Scheme>>, Unsupported> {
        match (scheme, options) {
            ("int8", ["tensor"]) => Ok(Some(Arc::new(Sym::new(Per::Tensor)))),
            ("int8", ["row"]) => Ok(Some(Arc::new(Sym::new(Per::Row)))),
            _ => Err(no_such("sym", scheme, options)),
        }
    }

    /// A module of I8 codes and F32 scales.
    fn recognize(&self, module: &Module<'_>) -> Option<Result<Recognized, Unsupported>> {
        let codes = module.typed(".weight", Dtype::I8)?;
        let per = match (module.typed(".scales", Dtype::F32), module.typed(".scale", Dtype::F32)) {
            (Some(_), None) => Per::Row,
            (None, Some(_)) => Per::Tensor,
            _ => return None,
        };
        let weight = Weight { stem: module.stem.to_owned(), float: Float::F32, shape: codes.shape.clone() };
        Some(module.agree("int8").map(|()| Recognized { scheme: Arc::new(Sym::new(per)), weight }))
    }

    fn dialect(&self) -> &'static dyn Dialect {
        &dialect::plain::PLAIN
    }

    fn readers(&self) -> &'static str {
        "the runtime"
    }
}
