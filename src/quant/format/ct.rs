//! compressed-tensors: what llm-compressor writes without data, bit for bit as on a CPU, and what transformers,
//! vLLM and SGLang read.
//!
//! Four layouts: whole numbers packed along the rows as a stream of bits (`pack-quantized`), int8 and e4m3 as they are
//! (`int-quantized`, `float-quantized`), and small floats under scales of a byte (`mxfp4-`, `mxfp8-`, `nvfp4-`). All
//! steps are rounded to the weight's own float, as torch does it; [`crate::kernel::Scaled`] has the arithmetic.
//!
//! The words of the options: `g128` (elements of a group), `channel` (a row), `tensor`, `b128` (128 rows by 128 columns);
//! `sym` or `asym` (with zero points); `eager` or `triton` (whose quotients: torch's, rounded to the weight's float, or
//! those of the library's kernels for devices, left in f32; the latter are from the kernels' text). Whole numbers are
//! chosen by `rtn` or `ls`.

mod layout;

use std::sync::Arc;

use serde_json::{Value, json};

use crate::{
    kernel::{Choice, Coding, Method, Scaled, kernels, rounded},
    num::fp8::{e4m3_to_f32, e8m0_to_f32},
    quant::{
        Axis, Banding, Dialect, Facts, Format, Importance, Module, Part, Recognized, Scheme, Survey, Unsupported,
        Weight, dialect,
        method::{METHODS_OF_GRIDS, method, word},
    },
    tensor::{Float, Rows, byte_len},
};

use super::{ENCODING, group_size, no_such, widen};

/// Rows and columns of a block of `b128`.
const BLOCK: usize = 128;
/// Rows whose zero points fill whole words at any width.
const ZERO_ROWS: usize = 32;
const GROUPS: &[&str] = &["g128", "g64", "g32", "channel"];
const FP8_GROUPS: &[&str] = &["channel", "tensor", "b128"];
const SYMMETRIES: &[&str] = &["sym", "asym"];
const FLAVOURS: &[&str] = &["eager", "triton"];

/// What the codes are and how they lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Store {
    Packed { bits: u32, symmetric: bool },
    Int8,
    Fp8,
    Mxfp4,
    Mxfp8,
    Nvfp4,
}

/// What shares a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shared {
    Group(usize),
    Channel,
    Tensor,
    Block,
}

/// One of the library's schemes.
#[derive(Clone, Debug)]
struct Compressed {
    store: Store,
    shared: Shared,
    /// Whether quotients are torch's.
    eager: bool,
    /// What a survey found: the scale of a tensor, or the one that divides those of nvfp4.
    found: Option<f32>,
    method: Method,
    importance: Option<Importance>,
}

impl Compressed {
    fn new(store: Store, shared: Shared) -> Self {
        Self { store, shared, eager: true, found: None, method: Method::Rtn, importance: None }
    }

    fn coding(&self) -> Coding {
        match self.store {
            Store::Packed { bits, symmetric: true } => Coding::Signed(bits),
            Store::Packed { bits, symmetric: false } => Coding::Shifted(bits),
            Store::Int8 => Coding::Int8,
            Store::Fp8 => Coding::E4m3,
            Store::Mxfp4 => Coding::Mxfp4,
            Store::Mxfp8 => Coding::Mxfp8,
            Store::Nvfp4 => Coding::Nvfp4(self.found.unwrap_or(1.0)),
        }
    }

    /// The job on rows of so many columns.
    fn job(&self, float: Float, cols: usize) -> Scaled {
        let (group, is_row) = match self.shared {
            Shared::Group(size) => (size, false),
            Shared::Block => (BLOCK, false),
            Shared::Channel | Shared::Tensor => (cols, true),
        };
        Scaled { coding: self.coding(), float, group, is_row, eager: self.eager }
    }

    /// Along which bands are cut.
    fn axis(&self) -> Axis {
        if matches!(self.shared, Shared::Group(_)) && !self.is_asymmetric() { Axis::Flat } else { Axis::Rows }
    }

    fn is_asymmetric(&self) -> bool {
        self.coding().has_zeros()
    }

    /// Whether something of the whole tensor must be known.
    fn asks(&self) -> bool {
        self.store == Store::Nvfp4 || self.shared == Shared::Tensor
    }

    /// As the library names it in `format`.
    fn format(&self) -> &'static str {
        match self.store {
            Store::Packed { .. } => "pack-quantized",
            Store::Int8 => "int-quantized",
            Store::Fp8 => "float-quantized",
            Store::Mxfp4 => "mxfp4-pack-quantized",
            Store::Mxfp8 => "mxfp8-quantized",
            Store::Nvfp4 => "nvfp4-pack-quantized",
        }
    }

    fn mode(&self) -> &'static str {
        match self.store {
            Store::Packed { .. } => "int",
            Store::Int8 => "int8",
            Store::Fp8 => "fp8",
            Store::Mxfp4 => "mxfp4",
            Store::Mxfp8 => "mxfp8",
            Store::Nvfp4 => "nvfp4",
        }
    }

    /// The answer to the survey, from the largest magnitudes of bands: NaN of one with NaN.
    fn answered(&self, float: Float, largest: impl Iterator<Item = f32>) -> Self {
        let largest = largest.fold(0.0, later);
        let found =
            if self.store == Store::Nvfp4 { whole(float, largest) } else { self.job(float, 1).scale_of(largest) };
        Self { found: Some(found), ..self.clone() }
    }

    /// Codes of groups, and zero points where there are some, of elements from `first` on.
    fn encode_groups(&self, first: usize, band: Rows<'_>, codes: &mut [u8], scales: &mut [u8], packed: &mut [u8]) {
        let job = self.job(band.float, band.cols);
        let mut zeros = vec![0; if job.coding.has_zeros() { band.elements() / job.group } else { 0 }];
        if self.method == Method::Rtn {
            kernels().quantize_scaled(&job, &[], band.data, [codes, scales, &mut zeros]);
        } else {
            self.search(&job, first, band, [codes, scales, &mut zeros]);
        }
        if job.coding.has_zeros() {
            pack_zeros(job.coding.bits(), band.cols / job.group, &zeros, packed);
        }
    }

    fn search(&self, job: &Scaled, first: usize, band: Rows<'_>, [codes, scales, zeros]: [&mut [u8]; 3]) {
        let Some(importance) = &self.importance else {
            let choice = Choice { method: self.method, importance: &[], first: 0 };
            return kernels().choose_scaled(job, &choice, band.data, [codes, scales, zeros]);
        };
        for (run, choice) in importance.runs(self.method, first..first + band.elements()) {
            let of = |bytes: usize| run.start / job.group * bytes..run.end / job.group * bytes;
            let zeros = if zeros.is_empty() { &mut [][..] } else { &mut zeros[of(1)] };
            let out = [&mut codes[of(job.row_bytes(job.group))], &mut scales[of(job.scale_bytes())], zeros];
            kernels().choose_scaled(job, &choice, &band.data[of(job.group * band.float.size())], out);
        }
    }

    /// Codes of blocks of rows, each under its scale.
    fn encode_blocks(&self, band: Rows<'_>, codes: &mut [u8], scales: &mut [u8]) {
        let job = self.job(band.float, band.cols);
        let row = band.cols * band.float.size();
        let mut values = vec![0.0; band.cols];
        let stored = scales.chunks_exact_mut(band.cols / BLOCK * band.float.size());
        let blocks = band.data.chunks(BLOCK * row).zip(codes.chunks_mut(BLOCK * band.cols));
        for ((data, codes), stored) in blocks.zip(stored) {
            let mut most = vec![0f32; band.cols / BLOCK];
            for row in data.chunks_exact(row) {
                widen(band.float, row, &mut values);
                let has_nan = kernels().not_finite(band.float, row) > 0 && values.iter().any(|w| w.is_nan());
                for (most, block) in most.iter_mut().zip(values.chunks_exact(BLOCK)) {
                    let is_nan = has_nan && block.iter().any(|w| w.is_nan());
                    *most = later(*most, if is_nan { f32::NAN } else { kernels().largest(block) });
                }
            }
            let found: Vec<f32> = most.into_iter().map(|largest| job.scale_of(largest)).collect();
            for (row, codes) in data.chunks_exact(row).zip(codes.chunks_exact_mut(band.cols)) {
                kernels().quantize_scaled(&job, &found, row, [codes, &mut [], &mut []]);
            }
            let out = stored.chunks_exact_mut(band.float.size());
            out.zip(found).for_each(|(out, scale)| store(band.float, scale, out));
        }
    }

    /// The scales of groups by which codes are multiplied, from their parts.
    fn scales(&self, float: Float, stored: &[u8], rest: &[&[u8]]) -> Vec<f32> {
        match self.store {
            Store::Mxfp4 | Store::Mxfp8 => stored.iter().map(|byte| e8m0_to_f32(*byte)).collect(),
            Store::Nvfp4 => {
                let whole = rest.first().and_then(|bytes| bytes.first_chunk()).map_or(1.0, |b| f32::from_le_bytes(*b));
                stored.iter().map(|byte| e4m3_to_f32(*byte) / whole).collect()
            }
            _ => {
                let mut scales = vec![0.0; stored.len() / float.size()];
                widen(float, stored, &mut scales);
                scales
            }
        }
    }
}

/// Of two extremes the larger one; NaN is the largest of all.
fn later(one: f32, other: f32) -> f32 {
    if one.is_nan() || one > other { one } else { other }
}

/// The largest magnitude, NaN where there is one.
fn largest(float: Float, data: &[u8]) -> f32 {
    let mut values = vec![0.0; data.len() / float.size()];
    widen(float, data, &mut values);
    let has_nan = kernels().not_finite(float, data) > 0 && values.iter().any(|w| w.is_nan());
    if has_nan { f32::NAN } else { kernels().largest(&values) }
}

/// The scale that divides those of an nvfp4 tensor, so that the largest is that of e4m3: 448 * 6 by the largest magnitude,
/// which torch takes for a product with the reciprocal. One that is not finite becomes 1.
fn whole(float: Float, largest: f32) -> f32 {
    let tiny = if float == Float::F16 { f32::from_bits((127 - 14) << 23) } else { f32::MIN_POSITIVE };
    let reciprocal = rounded(float, 1.0 / if largest < tiny { tiny } else { largest });
    let found = rounded(float, reciprocal * (448.0 * 6.0));
    if found.is_finite() { found } else { 1.0 }
}

/// A value as it is stored in a float, half to even, NaN as torch writes it.
fn store(float: Float, value: f32, out: &mut [u8]) {
    let value = if value.is_nan() { f32::NAN } else { value };
    match float {
        Float::Bf16 => out.copy_from_slice(&half::bf16::from_f32(value).to_le_bytes()),
        Float::F16 => out.copy_from_slice(&half::f16::from_f32(value).to_le_bytes()),
        Float::F32 => out.copy_from_slice(&value.to_le_bytes()),
    }
}

/// Zero points `[rows, groups]`, one a byte, as words `[words, groups]`: those of a column are one stream of bits.
fn pack_zeros(bits: u32, groups: usize, zeros: &[u8], out: &mut [u8]) {
    out.fill(0);
    for (row, zeros) in zeros.chunks_exact(groups).enumerate() {
        let (byte, shift) = place(bits, groups, row);
        for (group, zero) in zeros.iter().enumerate() {
            let [low, high] = (u16::from(*zero) << shift).to_le_bytes();
            out[byte(0) + group * 4] |= low;
            if high != 0 {
                out[byte(1) + group * 4] |= high;
            }
        }
    }
}

/// The reverse of [`pack_zeros`].
fn unpack_zeros(bits: u32, groups: usize, packed: &[u8], zeros: &mut [u8]) {
    let mask = u8::MAX >> (8 - bits);
    for (row, zeros) in zeros.chunks_exact_mut(groups).enumerate() {
        let (byte, shift) = place(bits, groups, row);
        for (group, zero) in zeros.iter_mut().enumerate() {
            let high = if shift + bits as usize > 8 { packed[byte(1) + group * 4] } else { 0 };
            let both = u16::from_le_bytes([packed[byte(0) + group * 4], high]);
            *zero = ((both >> shift) & 0xff) as u8 & mask;
        }
    }
}

/// Where the zero point of a row begins in column 0: its byte and the one after it, and the bit.
fn place(bits: u32, groups: usize, row: usize) -> (impl Fn(usize) -> usize, usize) {
    let bit = row * bits as usize;
    let byte = move |more: usize| {
        let at = bit / 8 + more;
        at / 4 * groups * 4 + at % 4
    };
    (byte, bit % 8)
}

impl Scheme for Compressed {
    fn id(&self) -> String {
        let (store, shared) = (self.store, self.shared);
        let flavour = if self.eager { "eager" } else { "triton" };
        let weighed = self.importance.as_ref().map_or_else(String::new, |of| format!("-{}", of.id()));
        format!("ct-{store:?}-{shared:?}-{flavour}-{}{weighed}-{ENCODING}", word(self.method))
    }

    fn facts(&self) -> Facts {
        let group_size = match self.shared {
            Shared::Group(size) => size,
            Shared::Block => BLOCK,
            Shared::Channel | Shared::Tensor => 0,
        };
        Facts { bits: self.coding().bits(), group_size, mode: self.mode() }
    }

    fn config(&self) -> Value {
        json!({ "format": self.format(), "weights": self.weights_config(), "input_activations": self.input_config() })
    }

    fn parts(&self, weight: &Weight) -> Result<Vec<Part>, Unsupported> {
        layout::check(self, weight)?;
        let parts = layout::parts(self, weight);
        if parts.iter().any(|part| byte_len(part.dtype, &part.shape).is_none()) {
            return Err(Unsupported(format!("words of its shape {:?} are larger than any memory", weight.shape)));
        }
        Ok(parts)
    }

    fn banding(&self, _: &Weight) -> Banding {
        let granule = match self.shared {
            _ if self.is_asymmetric() => ZERO_ROWS,
            Shared::Group(size) => size,
            Shared::Block => BLOCK,
            Shared::Channel | Shared::Tensor => 1,
        };
        Banding { axis: self.axis(), granule }
    }

    fn survey(&self, weight: &Weight) -> Option<Arc<dyn Survey>> {
        self.asks().then(|| Arc::new(Largest { scheme: self.clone(), float: weight.float }) as Arc<dyn Survey>)
    }

    fn weighted(&self, importance: &Importance) -> Option<Arc<dyn Scheme>> {
        let weighted = || Arc::new(Self { importance: Some(importance.clone()), ..self.clone() }) as Arc<dyn Scheme>;
        (self.method != Method::Rtn).then(weighted)
    }

    fn encode(&self, band: Rows<'_>, out: &mut [&mut [u8]]) {
        self.encode_at(0, band, out);
    }

    fn encode_at(&self, start: usize, band: Rows<'_>, out: &mut [&mut [u8]]) {
        if self.asks() && self.found.is_none() {
            return self
                .answered(band.float, std::iter::once(largest(band.float, band.data)))
                .encode_at(start, band, out);
        }
        let job = self.job(band.float, band.cols);
        let first = if self.axis() == Axis::Flat { start } else { start * band.cols };
        match (out, self.found) {
            ([codes, scale], Some(found)) => {
                kernels().quantize_scaled(&job, &vec![found; band.rows], band.data, [codes, &mut [], &mut []]);
                if !scale.is_empty() {
                    store(band.float, found, scale);
                }
            }
            ([codes, scales, whole], Some(found)) => {
                kernels().quantize_scaled(&job, &[], band.data, [codes, scales, &mut []]);
                if !whole.is_empty() {
                    whole.copy_from_slice(&found.to_le_bytes());
                }
            }
            ([codes, scales, zeros], None) => self.encode_groups(first, band, codes, scales, zeros),
            ([codes, scales], None) if self.shared == Shared::Block => self.encode_blocks(band, codes, scales),
            ([codes, scales], None) => self.encode_groups(first, band, codes, scales, &mut []),
            (other, _) => panic!("{} has two or three parts, not {}", self.format(), other.len()),
        }
    }

    fn decode(&self, parts: &[&[u8]], float: Float, rows: usize, out: &mut [f32]) {
        let [codes, stored, rest @ ..] = parts else { panic!("{} has more parts than {}", self.format(), parts.len()) };
        let cols = out.len() / rows.max(1);
        let scales = self.scales(float, stored, rest);
        // The library multiplies small floats in bfloat16, whatever the weight was.
        let float = if layout::has_byte_scales(self.store) { Float::Bf16 } else { float };
        let job = self.job(float, cols);
        match (self.shared, rest) {
            (Shared::Block, _) => {
                let rows = out.chunks_exact_mut(cols).zip(codes.chunks_exact(cols)).enumerate();
                for (row, (out, codes)) in rows {
                    let scales = &scales[row / BLOCK * (cols / BLOCK)..][..cols / BLOCK];
                    kernels().dequantize_scaled(&job, codes, scales, &[], out);
                }
            }
            (Shared::Tensor, _) => {
                let one = scales.first().copied().unwrap_or_default();
                kernels().dequantize_scaled(&job, codes, &vec![one; rows], &[], out);
            }
            (_, [packed]) if self.is_asymmetric() => {
                let mut zeros = vec![0; scales.len()];
                unpack_zeros(job.coding.bits(), cols / job.group, packed, &mut zeros);
                kernels().dequantize_scaled(&job, codes, &scales, &zeros, out);
            }
            _ => kernels().dequantize_scaled(&job, codes, &scales, &[], out),
        }
    }
}

/// The largest magnitude of a tensor, and of those that are fused with it.
#[derive(Debug)]
struct Largest {
    scheme: Compressed,
    float: Float,
}

impl Survey for Largest {
    fn look(&self, band: Rows<'_>) -> Vec<f32> {
        vec![largest(band.float, band.data)]
    }

    /// Of fused matrices, only the scale that divides scales is one and the same.
    fn is_joint(&self) -> bool {
        self.scheme.store == Store::Nvfp4
    }

    fn conclude(&self, looks: &[Vec<f32>]) -> Arc<dyn Scheme> {
        Arc::new(self.scheme.answered(self.float, looks.iter().flatten().copied()))
    }
}

impl Compressed {
    /// `weights` of a config group.
    fn weights_config(&self) -> Value {
        let (bits, is_int) = (self.coding().bits(), matches!(self.store, Store::Packed { .. } | Store::Int8));
        let (strategy, size) = match self.shared {
            Shared::Group(size) if self.store == Store::Nvfp4 => ("tensor_group", Some(size)),
            Shared::Group(size) => ("group", Some(size)),
            Shared::Channel => ("channel", None),
            Shared::Tensor => ("tensor", None),
            Shared::Block => ("block", None),
        };
        let mut said = json!({ "dynamic": false, "group_size": size, "num_bits": bits, "strategy": strategy,
            "symmetric": !self.is_asymmetric(), "type": if is_int { "int" } else { "float" } });
        match self.store {
            Store::Mxfp4 | Store::Mxfp8 => said["scale_dtype"] = json!("torch.uint8"),
            Store::Nvfp4 => said["scale_dtype"] = json!("torch.float8_e4m3fn"),
            _ if self.shared == Shared::Block => said["block_structure"] = json!([BLOCK, BLOCK]),
            _ => {}
        }
        said
    }

    /// `input_activations` of a config group: as the weights' presets have them, always dynamic, since nothing is known of
    /// the activations. With one scale for a weight there is one for its inputs: vLLM and SGLang read no experts otherwise.
    fn input_config(&self) -> Value {
        let (kind, strategy, size) = match (self.store, self.shared) {
            (Store::Int8, _) => ("int", "token", None),
            (Store::Fp8, Shared::Block) => ("float", "group", Some(BLOCK)),
            (Store::Fp8, Shared::Tensor) => ("float", "tensor", None),
            (Store::Fp8, _) => ("float", "token", None),
            _ => return Value::Null,
        };
        json!({ "dynamic": true, "group_size": size, "num_bits": 8, "strategy": strategy, "symmetric": true, "type": kind })
    }
}

/// The format of vLLM's and transformers' compressed-tensors.
#[derive(Clone, Copy, Debug)]
pub struct CompressedTensors;

impl Format for CompressedTensors {
    fn name(&self) -> &'static str {
        "ct"
    }

    fn other_names(&self) -> &'static [&'static str] {
        &["compressed-tensors"]
    }

    fn schemes(&self) -> &'static [&'static str] {
        &["4bit", "8bit", "2bit", "3bit", "5bit", "6bit", "7bit", "int8", "fp8", "mxfp4", "mxfp8", "nvfp4"]
    }

    fn options(&self, scheme: &str) -> Vec<&'static [&'static str]> {
        match scheme {
            "fp8" => vec![FP8_GROUPS, FLAVOURS],
            "int8" => vec![METHODS_OF_GRIDS, FLAVOURS],
            "mxfp4" | "mxfp8" => vec![FLAVOURS],
            _ if bits(scheme).is_some() => vec![GROUPS, SYMMETRIES, METHODS_OF_GRIDS, FLAVOURS],
            _ => vec![],
        }
    }

    fn bind(&self, scheme: &str, options: &[&str]) -> Result<Option<Arc<dyn Scheme>>, Unsupported> {
        let [words @ .., flavour] = options else {
            let nvfp4 = scheme == "nvfp4" && options.is_empty();
            let bound: Arc<dyn Scheme> = Arc::new(Compressed::new(Store::Nvfp4, Shared::Group(16)));
            return if nvfp4 { Ok(Some(bound)) } else { Err(no_such("ct", scheme, options)) };
        };
        let plain = |store, shared| Some(Compressed::new(store, shared));
        let bound = match (scheme, words) {
            ("int8", [method]) => by(method, Compressed::new(Store::Int8, Shared::Channel)),
            ("mxfp4", []) => plain(Store::Mxfp4, Shared::Group(32)),
            ("mxfp8", []) => plain(Store::Mxfp8, Shared::Group(32)),
            ("fp8", [group]) => shared(group, FP8_GROUPS).and_then(|shared| plain(Store::Fp8, shared)),
            (_, [group, symmetry, method]) => packed(scheme, [group, symmetry, method]),
            _ => None,
        };
        let bound = bound.filter(|_| FLAVOURS.contains(flavour)).ok_or_else(|| no_such("ct", scheme, options))?;
        Ok(Some(Arc::new(Compressed { eager: *flavour == FLAVOURS[0], ..bound })))
    }

    fn recognize(&self, module: &Module<'_>) -> Option<Result<Recognized, Unsupported>> {
        layout::recognize(module)
    }

    fn dialect(&self) -> &'static dyn Dialect {
        &dialect::ct::CT
    }

    fn readers(&self) -> &'static str {
        "vLLM, SGLang, transformers"
    }

    fn notes(&self) -> &'static str {
        "triton is from the kernels' text, not verified on a device; transformers 5.23 loads asym only with \
         dequantize=True, reads no experts of int8, mxfp8 and fp8 b128, and those of nvfp4 without their global scale"
    }
}

/// A packed scheme of these words.
fn packed(scheme: &str, [group, symmetry, word]: [&str; 3]) -> Option<Compressed> {
    let shared = shared(group, GROUPS)?;
    let symmetric = SYMMETRIES.iter().position(|word| *word == symmetry)? == 0;
    by(word, Compressed::new(Store::Packed { bits: bits(scheme)?, symmetric }, shared))
}

/// A scheme with the method of a word.
fn by(word: &str, scheme: Compressed) -> Option<Compressed> {
    let method = METHODS_OF_GRIDS.contains(&word).then(|| method(word)).flatten()?;
    Some(Compressed { method, ..scheme })
}

/// What an option word shares a scale among.
fn shared(word: &str, of: &[&str]) -> Option<Shared> {
    match word {
        _ if !of.contains(&word) => None,
        "channel" => Some(Shared::Channel),
        "tensor" => Some(Shared::Tensor),
        "b128" => Some(Shared::Block),
        _ => group_size(word).map(Shared::Group),
    }
}

/// The width of a packed scheme.
fn bits(scheme: &str) -> Option<u32> {
    let bits = scheme.strip_suffix("bit")?.parse().ok()?;
    matches!(bits, 2..=8).then_some(bits)
}
