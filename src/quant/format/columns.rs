//! Codes packed along the input, of the transposed weight: what GPTQ and AWQ store.
//!
//! A weight `[out, in]` is a band of whole groups of columns after the other, each with its codes, a zero point
//! and an f16 scale for every row: `w = (code - zero) * scale`, which is exact in f32; loaders round it to the
//! dtype that they compute in. `kernel::body::columns` has the arithmetic.
//!
//! Loaders take matrices whose sides are multiples of 32 and nothing else; so do these schemes.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};

use crate::{
    cache::lock,
    kernel::{self, Choice, Method, Rule, kernels},
    quant::{
        Axis, Banding, Content, Facts, Importance, Module, Part, Recognized, Scheme, Unsupported, Weight,
        method::{METHODS_OF_GRIDS, method, word},
        operator::{Arithmetic, Bytes, Operator, exact},
    },
    tensor::{Dtype, Float, Rows},
};

use super::{ENCODING, check_groups, widen};

/// What both sides of a matrix must be multiples of, for transformers and vLLM.
const SIDE: usize = 32;

/// Rows that are encoded together: a cache line of AWQ's words, sixteen of eight rows each.
const STRIP: usize = 128;

/// The sizes of a group, as specs spell them.
pub(super) const GROUPS: &[&str] = &["g128", "g64", "g32"];

/// Row of eight whose code AWQ's words hold in their lowest bits, the next ones, ...
const ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

/// GPTQ's or AWQ's codes in groups of so many.
///
/// ```
/// use std::sync::Arc;
/// use quantfs::{
///     kernel::Rule,
///     quant::{Scheme, Weight, format::columns::Columns},
///     runtime::QuantizedLinear,
///     tensor::Float,
/// };
///
/// let rule = Rule::Gptq { bits: 4, symmetric: true, less_one: true };
/// let scheme: Arc<dyn Scheme> = Arc::new(Columns::new(rule, 32)?);
/// let weight = Weight { stem: "up".into(), float: Float::F32, shape: vec![32, 32] };
/// // Scales are 1: the zero point is 8, and 7.5 is as far as codes go on either side.
/// let row: Vec<f32> = (0..32u8).map(|i| if i == 0 { -7.5 } else { f32::from(i % 8) }).collect();
/// let data: Vec<u8> = row.repeat(32).iter().flat_map(|w| w.to_le_bytes()).collect();
/// let up = QuantizedLinear::quantize(&scheme, weight, &data)?;
/// assert_eq!(up.dequantize()[..9], [-8., 1., 2., 3., 4., 5., 6., 7., 0.]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Columns {
    rule: Rule,
    group: usize,
    method: Method,
    /// The same for all rows: a band is cut into strips that do not know which rows they are of.
    importance: Option<Importance>,
    /// Group indexes by number of columns: every weight so wide has the same.
    indexes: Mutex<HashMap<usize, Arc<[u8]>>>,
}

impl Columns {
    /// Codes by a rule in groups of so many columns.
    ///
    /// # Errors
    /// Other widths than 2, 3, 4 and 8 bits, other groups than 32, 64 and 128.
    pub fn new(rule: Rule, group: usize) -> Result<Self, Unsupported> {
        if let Rule::Gptq { bits, .. } = rule
            && !matches!(bits, 2 | 3 | 4 | 8)
        {
            return Err(Unsupported(format!("GPTQ has codes of 2, 3, 4 and 8 bits, not {bits}")));
        }
        if !matches!(group, 32 | 64 | 128) {
            return Err(Unsupported(format!("it has groups of {group} columns; groups of 32, 64 and 128 are known")));
        }
        Ok(Self { rule, group, method: Method::Rtn, importance: None, indexes: Mutex::default() })
    }

    /// The same by another method, which is that of a word of [`METHODS_OF_GRIDS`].
    pub(super) fn by(self, word: &str) -> Option<Self> {
        let method = METHODS_OF_GRIDS.contains(&word).then(|| method(word)).flatten()?;
        Some(Self { method, ..self })
    }

    fn job(&self, float: Float, cols: usize) -> kernel::Columns {
        kernel::Columns { float, cols, group: self.group, rule: self.rule }
    }

    /// `.g_idx`: the group of each column.
    fn index(&self, cols: usize) -> Arc<[u8]> {
        let make = || (0..cols).map(|k| u32::try_from(k / self.group).unwrap_or(u32::MAX)).flat_map(u32::to_le_bytes);
        lock(&self.indexes).entry(cols).or_insert_with(|| make().collect()).clone()
    }

    /// The values of some of the `height` rows of a band.
    fn values(&self, parts: [&[u8]; 3], height: usize, rows: Range<usize>, out: &mut [f32]) {
        let [codes, zeros, scales] = parts;
        let cols = out.len() / rows.len().max(1);
        for (row, out) in rows.zip(out.chunks_exact_mut(cols.max(1))) {
            for (group, out) in out.chunks_exact_mut(self.group).enumerate() {
                let at = group * height + row;
                let mut scale = [0.0];
                widen(Float::F16, &scales[at * 2..][..2], &mut scale);
                let zero = self.zero(zeros, at);
                for (k, out) in (group * self.group..).zip(out) {
                    *out = (self.code(codes, height, k, row) - zero) * scale[0];
                }
            }
        }
    }

    /// The code of a column of a row.
    fn code(&self, codes: &[u8], height: usize, col: usize, row: usize) -> f32 {
        match self.rule {
            Rule::Gptq { bits, .. } => field(bits, col, |w| word_at(codes, w * height + row)),
            Rule::Awq => nibble(word_at(codes, (col * height + row) / 8), row),
        }
    }

    /// The zero point number `at`.
    fn zero(&self, zeros: &[u8], at: usize) -> f32 {
        match self.rule {
            Rule::Gptq { bits, less_one, .. } => field(bits, at, |w| word_at(zeros, w)) + f32::from(u8::from(less_one)),
            Rule::Awq => nibble(word_at(zeros, at / 8), at),
        }
    }
}

fn word_at(bytes: &[u8], at: usize) -> u32 {
    bytes.as_chunks().0.get(at).map_or(0, |word| u32::from_le_bytes(*word))
}

/// Number `at` of a stream of fields of so many bits in words.
fn field(bits: u32, at: usize, word: impl Fn(usize) -> u32) -> f32 {
    let (width, start) = (bits as usize, at * bits as usize);
    let (first, shift) = (start / 32, start % 32);
    let low = word(first) >> shift;
    let high = if shift + width > 32 { word(first + 1) << (32 - shift) } else { 0 };
    f32::from((((low | high) & 0xff) as u8) & (u8::MAX >> (8 - bits)))
}

/// What a word of AWQ holds of a row.
fn nibble(word: u32, row: usize) -> f32 {
    let place = ORDER.iter().position(|of| *of == row % 8).unwrap_or(0);
    f32::from((word >> (4 * place) & 15) as u8)
}

impl Scheme for Columns {
    fn id(&self) -> String {
        let method = match (self.method, &self.importance) {
            (Method::Rtn, _) => String::new(),
            (method, None) => format!("-{}", word(method)),
            (method, Some(importance)) => format!("-{}-{}", word(method), importance.id()),
        };
        format!("columns-{:?}-g{}{method}-{ENCODING}", self.rule, self.group)
    }

    fn facts(&self) -> Facts {
        let mode = match self.rule {
            Rule::Gptq { less_one: true, .. } => "gptq",
            Rule::Gptq { .. } => "gptq_v2",
            Rule::Awq => "awq",
        };
        Facts { bits: self.job(Float::F16, 0).bits(), group_size: self.group, mode }
    }

    fn config(&self) -> Value {
        let Facts { bits, group_size, mode } = self.facts();
        match self.rule {
            Rule::Gptq { symmetric, .. } => {
                json!({ "bits": bits, "group_size": group_size, "sym": symmetric, "checkpoint_format": mode })
            }
            Rule::Awq => json!({ "bits": bits, "group_size": group_size, "zero_point": true, "version": "gemm" }),
        }
    }

    fn parts(&self, weight: &Weight) -> Result<Vec<Part>, Unsupported> {
        check_groups(weight, self.group)?;
        let [rows, cols] = weight.shape[..] else {
            return Err(Unsupported(format!(
                "it has shape {:?}; only matrices are packed along the input",
                weight.shape
            )));
        };
        if !rows.is_multiple_of(SIDE) || !cols.is_multiple_of(SIDE) {
            return Err(Unsupported(format!(
                "its shape {rows} x {cols} is not in multiples of {SIDE}, which loaders need"
            )));
        }
        let (job, groups) = (self.job(weight.float, cols), cols / self.group);
        let (lines, width) = (job.words_of_group(), rows / job.rows_of_word());
        let zeros = rows / 32 * job.bits() as usize;
        let part = |suffix, dtype, shape: [usize; 2], per_granule| Part {
            suffix,
            dtype,
            shape: shape.to_vec(),
            content: Content::Tiled { per_granule },
        };
        let mut parts = vec![
            part(".qweight", Dtype::I32, [groups * lines, width], lines * width * 4),
            part(".qzeros", Dtype::I32, [groups, zeros], zeros * 4),
            part(".scales", Dtype::F16, [groups, rows], rows * 2),
        ];
        if self.rule != Rule::Awq {
            let content = Content::Constant(self.index(cols));
            parts.push(Part { suffix: ".g_idx", dtype: Dtype::I32, shape: vec![cols], content });
        }
        Ok(parts)
    }

    fn banding(&self, _: &Weight) -> Banding {
        Banding { axis: Axis::Columns, granule: self.group }
    }

    fn strip_rows(&self) -> Option<usize> {
        Some(STRIP)
    }

    fn encode(&self, band: Rows<'_>, out: &mut [&mut [u8]]) {
        self.encode_at(0, band, out);
    }

    fn encode_at(&self, start: usize, band: Rows<'_>, out: &mut [&mut [u8]]) {
        let [codes, zeros, scales] = out else { panic!("codes, zero points and scales are three, not {}", out.len()) };
        let job = self.job(band.float, band.cols);
        if self.method == Method::Rtn {
            return kernels().quantize_columns(&job, band.data, codes, zeros, scales);
        }
        let importance = self.importance.as_ref().map_or(&[][..], |of| of.row(0));
        let choice = Choice { method: self.method, importance, first: start };
        kernels().choose_columns(&job, &choice, band.data, [codes, zeros, scales]);
    }

    fn weighted(&self, importance: &Importance) -> Option<Arc<dyn Scheme>> {
        let Self { rule, group, method, .. } = *self;
        let importance = Some(importance.clone()).filter(|of| method != Method::Rtn && of.is_alike())?;
        Some(Arc::new(Self { rule, group, method, importance: Some(importance), indexes: Mutex::default() }))
    }

    fn decode(&self, parts: &[&[u8]], _: Float, rows: usize, out: &mut [f32]) {
        let [codes, zeros, scales] = *parts else {
            panic!("codes, zero points and scales are three, not {}", parts.len())
        };
        self.values([codes, zeros, scales], rows, 0..rows, out);
    }

    fn operator(&self, weight: &Weight, parts: &[Bytes]) -> Option<Arc<dyn Operator>> {
        let [codes, zeros, scales, ..] = parts else { return None };
        let parts = [codes, zeros, scales].map(Clone::clone);
        let scheme = Self::new(self.rule, self.group).ok()?;
        Some(Arc::new(Packed { scheme, rows: weight.rows(), cols: weight.cols(), parts }))
    }
}

/// Rows are taken out of the columns and multiplied exactly.
#[derive(Debug)]
struct Packed {
    scheme: Columns,
    rows: usize,
    cols: usize,
    parts: [Bytes; 3],
}

impl Operator for Packed {
    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn decode(&self, rows: Range<usize>, out: &mut [f32]) {
        let [codes, zeros, scales] = &self.parts;
        self.scheme.values([codes, zeros, scales], self.rows, rows, out);
    }

    fn multiply(&self, rows: Range<usize>, x: &[f32], _: Arithmetic, y: &mut [f32]) {
        exact(self, rows, x, y);
    }
}

/// The scheme and the weight of a module's codes, zero points and scales; `rule` is given the bits.
///
/// # Errors
/// Shapes that do not fit together.
pub(super) fn recognized(
    module: &Module<'_>,
    [codes, zeros, scales]: [&[usize]; 3],
    rule: impl Fn(u32) -> Result<Rule, Unsupported>,
) -> Result<Recognized, Unsupported> {
    let misfit =
        || Unsupported(format!("codes {codes:?}, zero points {zeros:?} and scales {scales:?} do not fit together"));
    let ([lines, _], [_, points], [groups, rows]) = (codes, zeros, scales) else { return Err(misfit()) };
    let words = points.checked_mul(32).filter(|_| *rows > 0 && *groups > 0).ok_or_else(misfit)?;
    let bits = u32::try_from(words / rows).ok().filter(|bits| (2..=8).contains(bits)).ok_or_else(misfit)?;
    let rule = rule(bits)?;
    let per_line = if rule == Rule::Awq { 1 } else { 32 };
    let elements = lines.checked_mul(per_line).ok_or_else(misfit)?;
    let cols = if rule == Rule::Awq { elements } else { elements / bits as usize };
    let scheme = Columns::new(rule, cols / groups)?;
    // Which float the weight had is not told; what its values are does not depend on it.
    let weight = Weight { stem: module.stem.to_owned(), float: Float::F16, shape: vec![*rows, cols] };
    Ok(Recognized { scheme: Arc::new(scheme), weight })
}
