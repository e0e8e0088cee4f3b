//! bitsandbytes: nf4 and fp4 in blocks of 64 elements, and int8 per row, as `save_pretrained` writes them.
//!
//! Blocks run over the flat tensor: a row need not be whole blocks, and the last block may be shorter. Parts of
//! the 4-bit schemes: `.weight` (U8 `[bytes, 1]`, two codes each, the first one highest), `.weight.absmax` (F32
//! `[blocks]`), the constant `.weight.quant_map`, and `.weight.quant_state.bitsandbytes__nf4`, the text of a JSON
//! object. [`nested`] is what `dq` changes, [`vectorwise`] is int8.
//!
//! Follows bitsandbytes 0.50.2 on a CPU (`backends/default/ops.py`): `code(x * (1 / absmax))` in f32 by the
//! middles between the book's values, the last, shorter block by `x / absmax` instead. A block with a NaN has
//! that NaN as its magnitude and the code of the largest value throughout; beside an infinite element all others
//! have the code of zero. On a GPU the library divides less exactly, so that some codes there are others.
//!
//! Decoding is `value * absmax` in f32; the library then rounds to the dtype of the source.

pub mod nested;
pub mod vectorwise;

use std::sync::Arc;

use serde_json::{Value, json};

use crate::{
    kernel::{Kernels, kernels},
    num::book::{self, Book},
    quant::{
        Axis, Banding, Content, Dialect, Facts, Format, Module, Part, Recognized, Scheme, Survey, Unsupported, Weight,
        dialect,
    },
    tensor::{Dtype, Float, Rows, TensorInfo},
};

use super::{ENCODING, check_groups, no_such};
use nested::{Mean, State};
use vectorwise::Vectorwise;

/// Elements of a block.
const BLOCK: usize = Kernels::BLOCK;

/// The sixteen values that codes stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Quantiles of a normal distribution.
    Nf4,
    /// A sign, two exponent bits and one of mantissa, nearly.
    Fp4,
}

impl Kind {
    const ALL: [Self; 2] = [Self::Nf4, Self::Fp4];

    /// As bitsandbytes spells it.
    const fn name(self) -> &'static str {
        match self {
            Self::Nf4 => "nf4",
            Self::Fp4 => "fp4",
        }
    }

    fn book(self) -> &'static Book {
        match self {
            Self::Nf4 => &book::NF4,
            Self::Fp4 => &book::FP4,
        }
    }

    /// The suffix of the state.
    const fn state(self) -> &'static str {
        match self {
            Self::Nf4 => ".weight.quant_state.bitsandbytes__nf4",
            Self::Fp4 => ".weight.quant_state.bitsandbytes__fp4",
        }
    }
}

/// Four-bit codes of blocks that share their largest magnitude.
#[derive(Clone, Debug, PartialEq)]
pub struct FourBit {
    kind: Kind,
    double: bool,
    /// What the survey of a doubly quantized weight found.
    state: Option<State>,
}

impl FourBit {
    /// A scheme of these values; `double` quantizes the magnitudes too.
    #[must_use]
    pub fn new(kind: Kind, double: bool) -> Self {
        Self { kind, double, state: None }
    }
}

impl Scheme for FourBit {
    fn id(&self) -> String {
        format!("bnb-{}-{}-{ENCODING}", self.kind.name(), if self.double { "dq" } else { "plain" })
    }

    fn facts(&self) -> Facts {
        Facts { bits: 4, group_size: BLOCK, mode: self.kind.name() }
    }

    fn config(&self) -> Value {
        json!({
            "load_in_4bit": true,
            "bnb_4bit_quant_type": self.kind.name(),
            "bnb_4bit_use_double_quant": self.double,
        })
    }

    fn parts(&self, weight: &Weight) -> Result<Vec<Part>, Unsupported> {
        let [rows, cols] = matrix(weight)?;
        let granule = self.banding(weight).granule;
        let (bytes, blocks) = ((rows * cols).div_ceil(2), (rows * cols).div_ceil(BLOCK));
        let tiled =
            |suffix, dtype, shape, per_granule| Part { suffix, dtype, shape, content: Content::Tiled { per_granule } };
        let mut parts = vec![tiled(".weight", Dtype::U8, vec![bytes, 1], granule / 2)];
        if self.double {
            parts.push(tiled(".weight.absmax", Dtype::U8, vec![blocks], granule / BLOCK));
            parts.extend(nested::parts(blocks, granule / BLOCK));
        } else {
            parts.push(tiled(".weight.absmax", Dtype::F32, vec![blocks], granule / BLOCK * 4));
        }
        parts.push(constant(".weight.quant_map", &self.kind.book().values));
        let (suffix, dtype) = (self.kind.state(), Dtype::U8);
        parts.push(if self.double {
            Part { suffix, dtype, shape: vec![nested::STATE_LEN], content: Content::First }
        } else {
            let text = State::new(weight, None).render(self.kind);
            Part { suffix, dtype, shape: vec![text.len()], content: Content::Constant(text.into_bytes().into()) }
        });
        Ok(parts)
    }

    fn banding(&self, weight: &Weight) -> Banding {
        let granule = if self.double { Mean::of(weight).granule() } else { BLOCK };
        Banding { axis: Axis::Flat, granule }
    }

    fn survey(&self, weight: &Weight) -> Option<Arc<dyn Survey>> {
        self.double.then(|| Arc::new(nested::Offset::new(self.clone(), weight)) as Arc<dyn Survey>)
    }

    fn encode(&self, band: Rows<'_>, out: &mut [&mut [u8]]) {
        let mut absmax = vec![0.0; band.elements().div_ceil(BLOCK)];
        kernels().quantize_by_book(band.float, self.kind.book(), band.data, out[0], &mut absmax);
        match out {
            [_, magnitudes] => store(&absmax, magnitudes),
            [_, codes, scales, state] => {
                let found = self.state.clone().unwrap_or_else(|| nested::alone(band, &absmax));
                nested::encode(found.offset(), &absmax, codes, scales);
                // The text lies with the first band.
                state.copy_from_slice(&found.padded(self.kind)[..state.len()]);
            }
            _ => panic!("bitsandbytes has two or four encoded parts, not {}", out.len()),
        }
    }

    fn decode(&self, parts: &[&[u8]], _: Float, _: usize, out: &mut [f32]) {
        let absmax = match parts {
            [_, magnitudes] => load(magnitudes),
            [_, codes, scales, state] => {
                let offset = self.state.as_ref().map(State::offset).or_else(|| nested::offset_of(state));
                // What states no offset has no values.
                nested::decode(offset.unwrap_or(f32::NAN), codes, scales)
            }
            _ => panic!("bitsandbytes has two or four encoded parts, not {}", parts.len()),
        };
        let values = &self.kind.book().values;
        for ((out, codes), absmax) in out.chunks_mut(BLOCK).zip(parts[0].chunks(BLOCK / 2)).zip(absmax) {
            for (out, byte) in out.chunks_mut(2).zip(codes) {
                let pair = [byte >> 4, byte & 15].map(|code| values[usize::from(code)] * absmax);
                out.copy_from_slice(&pair[..out.len()]);
            }
        }
    }
}

/// Rows and columns of what bitsandbytes' loaders have a quantized form of: matrices alone.
fn matrix(weight: &Weight) -> Result<[usize; 2], Unsupported> {
    check_groups(weight, 1)?;
    let [rows, cols] = weight.shape[..] else {
        return Err(Unsupported(format!("it has shape {:?}; only matrices are quantized", weight.shape)));
    };
    Ok([rows, cols])
}

/// A code table.
fn constant(suffix: &'static str, values: &[f32]) -> Part {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    Part { suffix, dtype: Dtype::F32, shape: vec![values.len()], content: Content::Constant(bytes.into()) }
}

fn store(values: &[f32], out: &mut [u8]) {
    out.as_chunks_mut().0.iter_mut().zip(values).for_each(|(bytes, value)| *bytes = value.to_le_bytes());
}

fn load(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// A module of 4-bit codes with a state, or of int8 codes with `.SCB`.
fn recognize(module: &Module<'_>) -> Option<Result<Recognized, Unsupported>> {
    if module.typed(".weight", Dtype::I8).is_some() && module.get(".SCB").is_some() {
        return Some(vectorwise::recognize(module));
    }
    let codes = module.typed(".weight", Dtype::U8)?;
    let kind = Kind::ALL.into_iter().find(|kind| module.get(kind.state()).is_some())?;
    Some(four_bit(module, kind, codes))
}

fn four_bit(module: &Module<'_>, kind: Kind, codes: &TensorInfo) -> Result<Recognized, Unsupported> {
    module.agree(kind.name())?;
    if let Some(other) = module.stated.group_size.filter(|size| *size != BLOCK) {
        return Err(Unsupported(format!("it has blocks of {other} elements; those of {BLOCK} are read")));
    }
    let cols = module.stated.cols.filter(|cols| *cols > 0).ok_or_else(|| {
        let state = format!("{}{}", module.stem, kind.state());
        Unsupported(format!("nobody says its shape, which {state} or quantization.json should"))
    })?;
    let most = codes.elements().and_then(|bytes| bytes.checked_mul(2)).unwrap_or(0);
    // An odd number of elements leaves half a byte.
    let mut rows = [most, most.saturating_sub(1)].into_iter().filter(|n| *n > 0 && n % cols == 0).map(|n| n / cols);
    let Some(rows) = rows.find(|rows| module.stated.rows.is_none_or(|said| said == *rows)) else {
        return Err(Unsupported(format!("{most} codes do not make the rows of {cols} that are said")));
    };
    let double = module.get(".weight.nested_absmax").is_some();
    let float = module.stated.float.unwrap_or(Float::F32);
    let weight = Weight { stem: module.stem.to_owned(), float, shape: vec![rows, cols] };
    Ok(Recognized { scheme: Arc::new(FourBit::new(kind, double)), weight })
}

/// The format of bitsandbytes.
#[derive(Clone, Copy, Debug)]
pub struct BitsAndBytes;

impl Format for BitsAndBytes {
    fn name(&self) -> &'static str {
        "bnb"
    }

    fn other_names(&self) -> &'static [&'static str] {
        &["bitsandbytes"]
    }

    fn schemes(&self) -> &'static [&'static str] {
        &["nf4", "fp4", "int8"]
    }

    fn options(&self, scheme: &str) -> Vec<&'static [&'static str]> {
        if matches!(scheme, "nf4" | "fp4") { vec![&["plain", "dq"]] } else { vec![] }
    }

    fn bind(&self, scheme: &str, options: &[&str]) -> Result<Option<Arc<dyn Scheme>>, Unsupported> {
        let kind = Kind::ALL.into_iter().find(|kind| kind.name() == scheme);
        match (kind, options) {
            (Some(kind), ["plain"]) => Ok(Some(Arc::new(FourBit::new(kind, false)))),
            (Some(kind), ["dq"]) => Ok(Some(Arc::new(FourBit::new(kind, true)))),
            (None, []) if scheme == "int8" => Ok(Some(Arc::new(Vectorwise))),
            _ => Err(no_such("bnb", scheme, options)),
        }
    }

    fn recognize(&self, module: &Module<'_>) -> Option<Result<Recognized, Unsupported>> {
        recognize(module)
    }

    fn dialect(&self) -> &'static dyn Dialect {
        &dialect::bnb::BITS_AND_BYTES
    }

    fn readers(&self) -> &'static str {
        "transformers, diffusers"
    }

    fn notes(&self) -> &'static str {
        "experts of mixtures stay dense, as the loaders want them; dq needs a pass over a weight before its first byte"
    }
}
