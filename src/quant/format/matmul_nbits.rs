//! The layout of onnxruntime's `MatMulNBits`: unsigned codes of 2, 4 or 8 bits in blocks along the
//! row, each with a scale and a zero point: `w = (code - zero) * scale`.
//!
//! Parts, for a weight `[out, in]`: `.weight` (U8 `[out, blocks, bytes of a block]`, the first element
//! lowest), `.scales` (`[out, blocks]`, in the weight's float) and, where zero points are not fixed at
//! the middle, `.zero_points` (U8, packed as codes are, `[out, bytes]`). The last block of a row is
//! filled up with code 0, and the last byte of zero points with the middle.
//!
//! Codes are those of onnxruntime 1.31's own quantizer (`q4_dq.cpp`), bit for bit for f32 and f16: the
//! extremes are taken from left to right, codes are rounded half away from zero, and f16 scales are
//! rounded before they divide. It has no quantizer for bf16: there the scales are rounded last.
//! Where a row ends within a byte, it leaves the rest of the byte to chance; here the rest is 0.
//!
//! Every block multiplies in integers but for those of 16 codes of 2 bits, and for whole rows that are no
//! multiple of 16 (of 32 for 2 bits): these multiply exactly.
//!
//! A whole row may be one block, which onnxruntime's operator has only up to 256 elements: it is given
//! the same codes in blocks that share a scale.

use std::sync::Arc;

use crate::{
    kernel::{self, Choice, Method, Zero, kernels},
    num::codes::{pack, unpack},
    quant::{
        Axis, Banding, Content, Facts, Importance, Module, Part, Recognized, Scheme, Unsupported, Weight,
        method::{METHODS_OF_GRIDS, method, word},
        operator::{Blocks, Bytes, Form, Operator},
    },
    tensor::{Dtype, Float, Rows, TensorInfo, byte_len},
};

use super::{ENCODING, check_groups, narrow, widen, with_cols};

/// Elements of a block that is no whole row.
const BLOCKS: [usize; 5] = [16, 32, 64, 128, 256];

/// Elements that share a scale and a zero point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block {
    /// So many: 16, 32, 64, 128 or 256.
    Of(usize),
    /// The whole row.
    Row,
}

/// Blocks of codes with zero points.
///
/// ```
/// use std::sync::Arc;
/// use quantfs::{
///     quant::{Scheme, Weight, format::matmul_nbits::{Block, MatMulNBits}},
///     runtime::QuantizedLinear,
///     tensor::Float,
/// };
///
/// let scheme: Arc<dyn Scheme> = Arc::new(MatMulNBits::new(4, Block::Of(32), false)?); // with zero points
/// let weight = Weight { stem: "up".into(), float: Float::F32, shape: vec![2, 32] };
/// let data: Vec<u8> = (0..64u8).flat_map(|i| f32::from(i % 16).to_le_bytes()).collect();
/// let up = QuantizedLinear::quantize(&scheme, weight, &data)?;
/// assert_eq!(up.dequantize()[..16], [0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.]);
/// assert_eq!(up.byte_len(), 2 * (16 + 4 + 1), "codes, a scale and a zero point for each row");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct MatMulNBits {
    bits: u32,
    block: Block,
    symmetric: bool,
    method: Method,
    importance: Option<Importance>,
}

impl MatMulNBits {
    /// Codes of so many bits.
    ///
    /// # Errors
    /// Other widths than 2, 4 and 8, other blocks than 16, 32, 64, 128 and 256.
    pub fn new(bits: u32, block: Block, symmetric: bool) -> Result<Self, Unsupported> {
        if !matches!(bits, 2 | 4 | 8) {
            return Err(Unsupported(format!("MatMulNBits has codes of 2, 4 and 8 bits, not {bits}")));
        }
        match block {
            Block::Of(n) if !BLOCKS.contains(&n) => {
                Err(Unsupported(format!("MatMulNBits has blocks of 16, 32, 64, 128 and 256 elements, not {n}")))
            }
            _ => Ok(Self { bits, block, symmetric, method: Method::Rtn, importance: None }),
        }
    }

    /// The same by another method, which is that of a word of [`METHODS_OF_GRIDS`].
    pub(super) fn by(self, word: &str) -> Option<Self> {
        let method = METHODS_OF_GRIDS.contains(&word).then(|| method(word)).flatten()?;
        Some(Self { method, ..self })
    }

    /// The zero point of symmetric codes, which also fills up zero points.
    fn middle(&self) -> u8 {
        1 << (self.bits - 1)
    }

    fn bytes(&self, codes: usize) -> usize {
        codes.div_ceil(8 / self.bits as usize)
    }

    /// Elements of a block, blocks of a row, bytes of a block.
    fn layout(&self, cols: usize) -> (usize, usize, usize) {
        let block = if let Block::Of(n) = self.block { n } else { cols };
        (block, cols.div_ceil(block.max(1)), self.bytes(block))
    }
}

impl Scheme for MatMulNBits {
    fn id(&self) -> String {
        let Self { bits, block, symmetric, .. } = self;
        let method = match (self.method, &self.importance) {
            (Method::Rtn, _) => String::new(),
            (method, None) => format!("-{}", word(method)),
            (method, Some(importance)) => format!("-{}-{}", word(method), importance.id()),
        };
        format!("matmul_nbits-{bits}bit-{block:?}-{}{method}-{ENCODING}", if *symmetric { "sym" } else { "asym" })
    }

    fn facts(&self) -> Facts {
        let group_size = if let Block::Of(n) = self.block { n } else { 0 };
        Facts { bits: self.bits, group_size, mode: "matmul_nbits" }
    }

    fn parts(&self, weight: &Weight) -> Result<Vec<Part>, Unsupported> {
        check_groups(weight, 1)?;
        let (_, blocks, bytes) = self.layout(weight.cols());
        let part = |suffix, dtype: Dtype, shape: Vec<usize>, per_row: usize| Part {
            suffix,
            dtype,
            shape,
            content: Content::Tiled { per_granule: per_row },
        };
        let mut packed = with_cols(weight, blocks);
        packed.push(bytes);
        let float = weight.float;
        let mut parts = vec![
            part(".weight", Dtype::U8, packed, blocks * bytes),
            part(".scales", float.dtype(), with_cols(weight, blocks), blocks * float.size()),
        ];
        if !self.symmetric {
            let bytes = self.bytes(blocks);
            parts.push(part(".zero_points", Dtype::U8, with_cols(weight, bytes), bytes));
        }
        // A row that is shorter than a block takes more than it had.
        if parts.iter().any(|part| byte_len(part.dtype, &part.shape).is_none()) {
            return Err(Unsupported(format!("blocks of its shape {:?} are larger than any memory", weight.shape)));
        }
        Ok(parts)
    }

    fn banding(&self, _: &Weight) -> Banding {
        Banding { axis: Axis::Rows, granule: 1 }
    }

    fn encode(&self, band: Rows<'_>, out: &mut [&mut [u8]]) {
        self.encode_at(0, band, out);
    }

    fn weighted(&self, importance: &Importance) -> Option<Arc<dyn Scheme>> {
        let weighted = || Arc::new(Self { importance: Some(importance.clone()), ..self.clone() }) as Arc<dyn Scheme>;
        (self.method != Method::Rtn).then(weighted)
    }

    fn encode_at(&self, start: usize, band: Rows<'_>, out: &mut [&mut [u8]]) {
        let (codes, scales, mut zero_points) = match out {
            [codes, scales] => (codes, scales, None),
            [codes, scales, zeros] => (codes, scales, Some(zeros)),
            _ => panic!("MatMulNBits has two or three parts, not {}", out.len()),
        };
        let (float, cols) = (band.float, band.cols);
        let (block, blocks, bytes) = self.layout(cols);
        let job = kernel::Blocks { bits: self.bits, block, symmetric: self.symmetric, rounded: float == Float::F16 };
        let (mut values, mut stored) = (vec![0.0; cols], vec![0.0; blocks]);
        let mut zeros = vec![self.middle(); blocks];
        for row in 0..band.rows {
            widen(float, &band.data[row * cols * float.size()..][..cols * float.size()], &mut values);
            let codes = &mut codes[row * blocks * bytes..][..blocks * bytes];
            if self.method == Method::Rtn {
                kernels().quantize_blocks(&job, &values, codes, &mut stored, &mut zeros);
            } else {
                let importance = self.importance.as_ref().map_or(&[][..], |of| of.row(start + row));
                let choice = Choice { method: self.method, importance, first: 0 };
                kernels().choose_blocks((&job, float), &choice, &values, codes, (&mut stored, &mut zeros));
            }
            narrow(float, &stored, &mut scales[row * blocks * float.size()..][..blocks * float.size()]);
            if let Some(packed) = &mut zero_points {
                let width = self.bytes(blocks);
                let mut filled = zeros.clone();
                filled.resize(width * 8 / self.bits as usize, self.middle());
                pack(self.bits, &filled, &mut packed[row * width..][..width]);
            }
        }
    }

    fn decode(&self, parts: &[&[u8]], float: Float, rows: usize, out: &mut [f32]) {
        let (codes, scales, zero_points) = match parts {
            [codes, scales] => (codes, scales, None),
            [codes, scales, zeros] => (codes, scales, Some(zeros)),
            _ => panic!("MatMulNBits has two or three parts, not {}", parts.len()),
        };
        let cols = out.len() / rows.max(1);
        let (block, blocks, bytes) = self.layout(cols);
        let mut stored = vec![0.0; blocks * rows];
        widen(float, scales, &mut stored);
        let width = self.bytes(blocks);
        let (mut zeros, mut unpacked) = (vec![self.middle(); blocks], vec![0; block]);
        for (row, values) in out.chunks_mut(cols.max(1)).enumerate() {
            if let Some(packed) = zero_points {
                unpack(self.bits, &packed[row * width..][..width], &mut zeros);
            }
            let scaled = stored[row * blocks..].iter().zip(&zeros);
            let packed = codes[row * blocks * bytes..].chunks(bytes);
            for ((values, packed), (scale, zero)) in values.chunks_mut(block).zip(packed).zip(scaled) {
                unpack(self.bits, packed, &mut unpacked);
                let codes = values.iter_mut().zip(&unpacked);
                codes.for_each(|(w, code)| *w = (f32::from(*code) - f32::from(*zero)) * scale);
            }
        }
    }

    fn operator(&self, weight: &Weight, parts: &[Bytes]) -> Option<Arc<dyn Operator>> {
        let (block, ..) = self.layout(weight.cols());
        let zero = if self.symmetric { Zero::Middle } else { Zero::Points };
        let form = Form { bits: self.bits, block, zero, stored: weight.float, shared: false };
        Some(Arc::new(Blocks::new(Arc::new(self.clone()), weight, form, parts)?))
    }
}

/// A module of U8 codes one dimension deeper than its scales.
pub(super) fn recognize(module: &Module<'_>) -> Option<Result<Recognized, Unsupported>> {
    let codes = module.typed(".weight", Dtype::U8)?;
    let scales = module.get(".scales")?;
    let float = Float::of(scales.dtype)?;
    let [lead @ .., blocks, bytes] = &codes.shape[..] else { return None };
    let deeper = scales.shape.split_last().is_some_and(|(last, same)| (last, same) == (blocks, lead));
    if !deeper || lead.is_empty() || *blocks == 0 || *bytes == 0 {
        return None;
    }
    let zeros = module.get(".zero_points");
    Some(layout(module, [*blocks, *bytes], zeros).map(|(scheme, cols)| {
        let shape = [lead, &[cols]].concat();
        Recognized { scheme: Arc::new(scheme), weight: Weight { stem: module.stem.to_owned(), float, shape } }
    }))
}

/// Why no width fits.
fn none_fits(module: &Module<'_>, zeros: Option<&TensorInfo>) -> String {
    let zeros = zeros.map_or(String::new(), |z| format!(", and zero points {:?} must fit them", z.shape));
    match module.stated.bits {
        Some(said) => format!(
            "config.json or quantization.json says {said} bits, but blocks of bytes hold codes of 2, 4 or 8 bits{zeros}"
        ),
        None => format!("blocks of bytes hold codes of 2, 4 or 8 bits{zeros}"),
    }
}

/// The scheme and the elements of a row, from blocks of so many bytes.
fn layout(
    module: &Module<'_>,
    [blocks, bytes]: [usize; 2],
    zeros: Option<&TensorInfo>,
) -> Result<(MatMulNBits, usize), Unsupported> {
    module.agree("matmul_nbits")?;
    let fits = |bits: &u32| {
        let width = zeros.and_then(|z| z.shape.last().copied());
        let said = module.stated.bits.is_none_or(|said| said == *bits);
        said && width.is_none_or(|width| width == blocks.div_ceil(8 / *bits as usize))
    };
    let bits = match [2, 4, 8].into_iter().filter(fits).collect::<Vec<u32>>()[..] {
        [one] => one,
        [] => return Err(Unsupported(none_fits(module, zeros))),
        _ => return Err(Unsupported("nobody says its bits, which quantization.json or config.json should".to_owned())),
    };
    let elements = |bytes: usize| bytes.checked_mul(8 / bits as usize);
    let block = elements(bytes).ok_or_else(|| Unsupported(format!("blocks of {bytes} bytes are too long")))?;
    let full = block.checked_mul(blocks).ok_or_else(|| Unsupported("its rows are too long".to_owned()))?;
    let cols = module.stated.cols.unwrap_or(full);
    if cols > full || cols <= full - block {
        return Err(Unsupported(format!("{blocks} blocks of {block} elements do not make rows of {cols}")));
    }
    let whole = blocks == 1 && !BLOCKS.contains(&block);
    let block = if whole { Block::Row } else { Block::Of(block) };
    MatMulNBits::new(bits, block, zeros.is_none()).map(|scheme| (scheme, cols))
}
