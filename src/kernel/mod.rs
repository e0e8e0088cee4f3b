//! The arithmetic: elements to codes and back, bit-exact with the reference libraries.
//!
//! Each kernel has one body (`body`), compiled several times: `scalar` at the target's
//! baseline, which is the reference, and the rooms of each architecture under their target features. A
//! [`Kernels`] is a table of plain function pointers; the one that the machine runs best is chosen
//! once, at run time; [`select`] takes another one by its name, for bug reports.
//!
//! Always: quantizing, decoding, casting and multiplying give the same bytes from every table,
//! whatever the machine (of a NaN, that it is one). So does
//! what attention and gates need of f32. A kernel takes a whole run of groups at any alignment: one indirect call for kilobytes of work.
//!
//! Knows no format, tensor name or file, and reads no environment. What MLX calls its "Metal" results are emulated here from
//! the kernels' text and were never compared with a device.

mod body;
mod choice;
mod dense;
mod peak;
mod product;
mod scalar;
mod scaled;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::{
    fmt,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use crate::{num::book::Book, tensor::Float};

pub use choice::{Choice, Method};
use choice::{ChooseAffine, ChooseBlocks, ChooseColumns, ChooseScaled};
pub use dense::Dense;
pub use product::{Activations, Coded, Product, Zero};
use product::{Ahead, Inputs, Map, Panel, Rows, Stored, Terms, Tiling};
pub use scaled::{Coding, Scaled, rounded};

/// The instruction sets for which there is a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// The target's baseline: the reference.
    Scalar,
    /// x86-64 with AVX2.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512,
    /// The same with VNNI.
    Avx512Vnni,
}

impl Isa {
    /// All of them, also those of other machines.
    pub const ALL: [Self; 4] = [Self::Scalar, Self::Avx2, Self::Avx512, Self::Avx512Vnni];

    /// As [`select`] takes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Vnni => "avx512vnni",
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which device's rounding is reproduced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flavour {
    /// MLX on a CPU (x86 where the C++ leaves it open).
    Cpu,
    /// MLX's Metal kernels, from their text.
    Metal,
}

/// How the power of two of an MX group is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScaleRule {
    /// The least one under which no element is out of range: mlx from 0.32.2 on.
    Up,
    /// The nearest in the logarithm: mlx up to 0.31.2.
    Nearest,
}

/// An affine quantization: `w = code * scale + bias`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Affine {
    /// Bits of a code: 2, 3, 4, 5, 6 or 8.
    pub bits: u32,
    /// Elements of a group: 32, 64 or 128.
    pub group: usize,
    /// The elements.
    pub float: Float,
    /// The scales and biases.
    pub stored: Float,
    /// Whose rounding.
    pub flavour: Flavour,
}

/// The element and scale formats of a group of small floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MicroCode {
    /// e2m1 elements, an e8m0 scale for 32 of them.
    Mxfp4,
    /// e4m3 elements, an e8m0 scale for 32 of them.
    Mxfp8,
    /// e2m1 elements, an e4m3 scale for 16 of them.
    Nvfp4,
}

impl MicroCode {
    /// Elements of a group.
    #[must_use]
    pub const fn group_size(self) -> usize {
        if matches!(self, Self::Nvfp4) { 16 } else { 32 }
    }

    /// Bits of a code.
    #[must_use]
    pub const fn bits(self) -> u32 {
        if matches!(self, Self::Mxfp8) { 8 } else { 4 }
    }

    /// The largest element.
    #[must_use]
    pub const fn largest(self) -> f32 {
        if matches!(self, Self::Mxfp8) { 448.0 } else { 6.0 }
    }
}

/// A quantization to groups of small floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Micro {
    /// Which one.
    pub code: MicroCode,
    /// The elements.
    pub float: Float,
    /// What they are cast to first, exactly: the dtype in which the CPU flavour computes.
    pub computed: Float,
    /// Whose rounding.
    pub flavour: Flavour,
    /// How an MX scale is chosen; nvfp4 takes no notice.
    pub rule: ScaleRule,
}

/// A quantization of a row to blocks with zero points: `w = (code - zero) * scale`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Blocks {
    /// Bits of a code: 2, 4 or 8.
    pub bits: u32,
    /// Elements of a block; the last one of a row may have fewer.
    pub block: usize,
    /// Whether zero points are fixed at the middle.
    pub symmetric: bool,
    /// Whether scales are rounded to f16 before they divide.
    pub rounded: bool,
}

impl Blocks {
    /// Bytes of the codes of a block.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.block.div_ceil(8 / self.bits as usize)
    }
}

/// A quantization of a band of columns to codes that are packed along the input: what GPTQ and AWQ store of
/// the transposed weight.
///
/// Codes are 32-bit words, `[words_of_group, rows / rows_of_word]` for each group; zero points are packed so
/// along the rows; scales are IEEE halves, one a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Columns {
    /// The elements.
    pub float: Float,
    /// Columns of the band, whole groups.
    pub cols: usize,
    /// Columns of a group: 32, 64 or 128.
    pub group: usize,
    /// Whose arithmetic and packing.
    pub rule: Rule,
}

/// Whose arithmetic and packing along the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// A word holds codes of one row.
    Gptq {
        /// Bits of a code: 2, 3, 4 or 8.
        bits: u32,
        /// Whether zero points are fixed at the middle.
        symmetric: bool,
        /// Whether zero points are stored less one, so that none may be 0.
        less_one: bool,
    },
    /// A word holds the 4-bit codes that eight rows have in one column.
    Awq,
}

impl Columns {
    /// Rows that share words.
    #[must_use]
    pub const fn rows_of_word(&self) -> usize {
        if matches!(self.rule, Rule::Awq) { 8 } else { 1 }
    }

    /// Words of a group, for each row or each eight of them.
    #[must_use]
    pub const fn words_of_group(&self) -> usize {
        match self.rule {
            Rule::Gptq { bits, .. } => self.group / 32 * bits as usize,
            Rule::Awq => self.group,
        }
    }

    /// Bits of a code.
    #[must_use]
    pub const fn bits(&self) -> u32 {
        if let Rule::Gptq { bits, .. } = self.rule { bits } else { 4 }
    }
}

/// A cast of elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cast {
    /// The elements as they are.
    pub from: Float,
    /// What they become, half to even.
    pub to: Float,
    /// Whether one is added first, in the dtype `from`.
    pub plus_one: bool,
}

type QuantizeAffine = fn(&Affine, &[u8], &mut [u8], &mut [u8], &mut [u8]);
type DequantizeAffine = fn(&Affine, &[u8], &[u8], &[u8], &mut [f32]);
type QuantizeMicro = fn(&Micro, &[u8], &mut [u8], &mut [u8]);
type DequantizeMicro = fn(&Micro, &[u8], &[u8], &mut [f32]);
type Largest = fn(&[f32]) -> f32;
type QuantizeSymmetric = fn(Option<f32>, &[f32], &mut [u8]) -> f32;
type QuantizeBlocks = fn(&Blocks, &[f32], &mut [u8], &mut [f32], &mut [u8]);
type QuantizeByBook = fn(Float, &Book, &[u8], &mut [u8], &mut [f32]);
type BlockMaxima = fn(Float, &[u8], &mut [f32]);
type QuantizeVectorwise = fn(Float, &[u8], &mut [u8]) -> f32;
type QuantizeTiles = fn(Float, usize, &[u8], &mut [u8], &mut [f32]);
type QuantizeColumns = fn(&Columns, &[u8], &mut [u8], &mut [u8], &mut [u8]);
type QuantizeScaled = fn(&Scaled, &[f32], &[u8], [&mut [u8]; 3]);
type DequantizeScaled = fn(&Scaled, &[u8], &[f32], &[u8], &mut [f32]);
type CastRun = fn(&Cast, &[u8], &mut [u8]);
type Count = fn(Float, &[u8]) -> usize;
type MultiplyDense = fn(&Dense, &[f32], &[f32], &mut [f32]);
type Softmax = fn(&mut [f32]);
type Swiglu = fn(&mut [f32], &[f32]);
type QuantizeInput = fn(&Product, &[f32], &mut [i8], &mut [f32], &mut [i32]);
type Spread = fn(u32, &[u8], usize, &mut [u8]);
type Tile = fn(&Tiling, &[u8], &mut [[u8; 64]]);
type Widen = fn(Stored, &[u8], &mut [f32]);
type ZeroPoints = fn(u32, usize, &[u8], &[f32], &mut [f32]);
type Accumulate = fn(&Product, &[Panel<'_>], &Inputs<'_>, Ahead<'_>, &mut [[f32; 16]]);
type AccumulateRows = fn(&Product, &Rows<'_>, &Inputs<'_>, &mut Terms, &mut [f32; 16]);
type Multiply = fn(usize, &[f32], &[f32], &mut [f32]);

/// The kernels of one instruction set.
#[derive(Debug)]
pub struct Kernels {
    isa: Isa,
    quantize_affine: QuantizeAffine,
    choose_affine: ChooseAffine,
    choose_columns: ChooseColumns,
    choose_blocks: ChooseBlocks,
    choose_scaled: ChooseScaled,
    dequantize_affine: DequantizeAffine,
    quantize_micro: QuantizeMicro,
    dequantize_micro: DequantizeMicro,
    largest: Largest,
    quantize_symmetric: QuantizeSymmetric,
    quantize_blocks: QuantizeBlocks,
    quantize_by_book: QuantizeByBook,
    block_maxima: BlockMaxima,
    quantize_vectorwise: QuantizeVectorwise,
    quantize_tiles: QuantizeTiles,
    quantize_columns: QuantizeColumns,
    quantize_scaled: QuantizeScaled,
    dequantize_scaled: DequantizeScaled,
    cast: CastRun,
    not_finite: Count,
    dense: MultiplyDense,
    softmax: Softmax,
    swiglu: Swiglu,
    quantize_input: QuantizeInput,
    spread: Spread,
    tile: Tile,
    widen: Widen,
    zero_points: ZeroPoints,
    accumulate: Accumulate,
    accumulate_rows: AccumulateRows,
    multiply: Multiply,
}

impl Kernels {
    /// What the table was compiled for.
    #[must_use]
    pub const fn isa(&self) -> Isa {
        self.isa
    }

    /// Quantizes a run of whole groups: elements in; packed codes, scales and biases out.
    ///
    /// # Panics
    /// If the job is none of those that [`Affine`] lists, or the lengths do not fit together.
    pub fn quantize_affine(&self, job: &Affine, src: &[u8], codes: &mut [u8], scales: &mut [u8], biases: &mut [u8]) {
        let elements = check_elements(src.len(), job.float);
        check_affine(job, elements, codes.len(), scales.len(), biases.len());
        (self.quantize_affine)(job, src, codes, scales, biases);
    }

    /// The values of a run of whole groups, computed in the stored dtype.
    ///
    /// # Panics
    /// As [`quantize_affine`](Self::quantize_affine).
    pub fn dequantize_affine(&self, job: &Affine, codes: &[u8], scales: &[u8], biases: &[u8], out: &mut [f32]) {
        check_affine(job, out.len(), codes.len(), scales.len(), biases.len());
        (self.dequantize_affine)(job, codes, scales, biases, out);
    }

    /// Quantizes a run of whole groups: elements in; packed codes and scale bytes out.
    ///
    /// # Panics
    /// If the lengths do not fit together.
    pub fn quantize_micro(&self, job: &Micro, src: &[u8], codes: &mut [u8], scales: &mut [u8]) {
        let elements = check_elements(src.len(), job.float);
        check_micro(job, elements, codes.len(), scales.len());
        (self.quantize_micro)(job, src, codes, scales);
    }

    /// The values of a run of whole groups.
    ///
    /// # Panics
    /// As [`quantize_micro`](Self::quantize_micro).
    pub fn dequantize_micro(&self, job: &Micro, codes: &[u8], scales: &[u8], out: &mut [f32]) {
        check_micro(job, out.len(), codes.len(), scales.len());
        (self.dequantize_micro)(job, codes, scales, out);
    }

    /// The largest magnitude, 0 of none; NaN is passed over.
    #[must_use]
    pub fn largest(&self, values: &[f32]) -> f32 {
        (self.largest)(values)
    }

    /// Codes of -127..=127, in two's complement, of values that share a scale, which is the answer: the given
    /// one, or else the largest magnitude by 127. NaN has code 0.
    ///
    /// # Panics
    /// If there are not as many codes as values.
    #[must_use]
    pub fn quantize_symmetric(&self, given: Option<f32>, values: &[f32], codes: &mut [u8]) -> f32 {
        assert_eq!(values.len(), codes.len(), "as many codes as values");
        (self.quantize_symmetric)(given, values, codes)
    }

    /// Quantizes the blocks of a row: packed codes, a scale and a zero point each.
    ///
    /// # Panics
    /// If the bits are not 2, 4 or 8, the block is empty, or the lengths do not fit together.
    pub fn quantize_blocks(&self, job: &Blocks, row: &[f32], codes: &mut [u8], scales: &mut [f32], zeros: &mut [u8]) {
        check_blocks(job, row.len(), codes.len(), (scales.len(), zeros.len()));
        (self.quantize_blocks)(job, row, codes, scales, zeros);
    }

    /// Elements that share a magnitude where a book's entries are their codes.
    pub const BLOCK: usize = body::book::BLOCK;

    /// Rows and columns of a tile of e4m3.
    pub const TILE: usize = body::eight::TILE;

    /// Quantizes a run of [`BLOCK`](Self::BLOCK)s, of which the last may be shorter: two codes a byte, the first one highest, and
    /// the largest magnitude of each block.
    ///
    /// # Panics
    /// If the lengths do not fit together.
    pub fn quantize_by_book(&self, float: Float, book: &Book, src: &[u8], codes: &mut [u8], absmax: &mut [f32]) {
        let elements = check_elements(src.len(), float);
        assert_eq!((codes.len(), absmax.len()), (elements.div_ceil(2), elements.div_ceil(Self::BLOCK)), "blocks");
        (self.quantize_by_book)(float, book, src, codes, absmax);
    }

    /// The largest magnitude of each block, as [`quantize_by_book`](Self::quantize_by_book) finds it.
    ///
    /// # Panics
    /// If there is not room for just as many.
    pub fn block_maxima(&self, float: Float, src: &[u8], absmax: &mut [f32]) {
        let elements = check_elements(src.len(), float);
        assert_eq!(absmax.len(), elements.div_ceil(Self::BLOCK), "a magnitude for each block");
        (self.block_maxima)(float, src, absmax);
    }

    /// Codes of -127..=127, in two's complement, of a row that is rounded to f16 first: its elements by its largest
    /// magnitude, which is the answer, times 127.
    ///
    /// # Panics
    /// If there are not as many codes as elements.
    #[must_use]
    pub fn quantize_vectorwise(&self, float: Float, row: &[u8], codes: &mut [u8]) -> f32 {
        assert_eq!(check_elements(row.len(), float), codes.len(), "as many codes as elements");
        (self.quantize_vectorwise)(float, row, codes)
    }

    /// Codes in e4m3 of [`TILE`](Self::TILE) rows, and for each tile of as many columns what its codes are multiplied
    /// with.
    ///
    /// # Panics
    /// If the lengths do not fit together.
    pub fn quantize_tiles(&self, float: Float, cols: usize, src: &[u8], codes: &mut [u8], inverses: &mut [f32]) {
        assert!(cols > 0 && cols.is_multiple_of(Self::TILE), "{cols} columns are no whole tiles");
        let elements = check_elements(src.len(), float);
        assert_eq!((elements, codes.len(), inverses.len()), (Self::TILE * cols, elements, cols / Self::TILE), "tiles");
        (self.quantize_tiles)(float, cols, src, codes, inverses);
    }

    /// Quantizes a band of columns, given row by row.
    ///
    /// # Panics
    /// If the job is none of those that [`Columns`] lists, the rows are no multiple of 32, or the lengths do not
    /// fit together.
    pub fn quantize_columns(&self, job: &Columns, src: &[u8], codes: &mut [u8], zeros: &mut [u8], scales: &mut [u8]) {
        check_columns(job, check_elements(src.len(), job.float), codes.len(), zeros.len(), scales.len());
        (self.quantize_columns)(job, src, codes, zeros, scales);
    }

    /// Casts a run of elements.
    ///
    /// # Panics
    /// If `out` does not hold as many elements as `src`.
    pub fn cast(&self, job: &Cast, src: &[u8], out: &mut [u8]) {
        let elements = check_elements(src.len(), job.from);
        assert_eq!(elements * job.to.size(), out.len(), "room for {elements} elements of {}", job.to.name());
        (self.cast)(job, src, out);
    }

    /// How many elements of a run are NaN or infinite.
    #[must_use]
    pub fn not_finite(&self, float: Float, src: &[u8]) -> usize {
        (self.not_finite)(float, src)
    }

    /// A dense product; each sum runs from the first of `depth` to the last, without fused steps.
    ///
    /// # Panics
    /// If the lengths do not fit together.
    pub fn dense(&self, job: &Dense, a: &[f32], b: &[f32], c: &mut [f32]) {
        let Dense { rows, depth, columns, .. } = *job;
        let spanned = |stride: usize, width: usize| rows.checked_sub(1).map_or(0, |last| last * stride + width);
        assert!(columns.is_multiple_of(Dense::STRIP), "{columns} columns are no whole strips");
        assert!(depth.checked_mul(columns).is_some_and(|needed| b.len() >= needed), "{job:?}");
        assert!(a.len() >= spanned(job.a_stride, depth) && c.len() >= spanned(job.c_stride, columns), "{job:?}");
        (self.dense)(job, a, b, c);
    }

    /// `y[b, r] = w[r] . x[b]` in f32, `[inputs, rows]`: sixteen partial sums, column c in the sum
    /// c mod 16, added by halves.
    ///
    /// # Panics
    /// If the lengths do not fit together.
    pub fn multiply(&self, cols: usize, w: &[f32], x: &[f32], y: &mut [f32]) {
        assert!(cols > 0 && w.len().is_multiple_of(cols), "{} elements are no whole rows of {cols}", w.len());
        assert!(x.len().is_multiple_of(cols), "{} elements are no whole inputs of {cols}", x.len());
        assert_eq!(y.len(), w.len() / cols * (x.len() / cols), "room for the outputs of every input");
        (self.multiply)(cols, w, x, y);
    }

    /// `exp(x - max) / sum of them`, in place.
    pub fn softmax(&self, row: &mut [f32]) {
        (self.softmax)(row);
    }

    /// `gate = silu(gate) * up`, where `silu(x) = x / (1 + exp(-x))`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn swiglu(&self, gate: &mut [f32], up: &[f32]) {
        assert_eq!(gate.len(), up.len(), "as many gates as values");
        (self.swiglu)(gate, up);
    }
}

fn check_elements(bytes: usize, float: Float) -> usize {
    assert!(bytes.is_multiple_of(float.size()), "{bytes} bytes are no whole elements of {}", float.name());
    bytes / float.size()
}

fn check_affine(job: &Affine, elements: usize, codes: usize, scales: usize, biases: usize) {
    assert!(matches!(job.bits, 2..=6 | 8) && matches!(job.group, 32 | 64 | 128), "no such affine code: {job:?}");
    assert!(elements.is_multiple_of(job.group), "{elements} elements are no whole groups of {}", job.group);
    let parameters = elements / job.group * job.stored.size();
    assert_eq!((codes, scales, biases), (elements / 8 * job.bits as usize, parameters, parameters), "{job:?}");
}

fn check_blocks(job: &Blocks, elements: usize, codes: usize, parameters: (usize, usize)) {
    assert!(matches!(job.bits, 2 | 4 | 8) && job.block > 0, "no such blocks: {job:?}");
    let blocks = elements.div_ceil(job.block);
    assert_eq!((codes, parameters), (blocks * job.bytes(), (blocks, blocks)), "{job:?}");
}

fn check_columns(job: &Columns, elements: usize, codes: usize, zeros: usize, scales: usize) {
    assert!(matches!(job.bits(), 2 | 3 | 4 | 8) && matches!(job.group, 32 | 64 | 128), "no such columns: {job:?}");
    let (rows, rest) = (elements / job.cols.max(1), elements % job.cols.max(1));
    assert!(job.cols.is_multiple_of(job.group) && job.cols > 0 && rest == 0, "{elements} elements: {job:?}");
    assert!(rows.is_multiple_of(32), "{rows} rows are no whole words");
    let (groups, bits) = (job.cols / job.group, job.bits() as usize);
    let expected = (elements / 8 * bits, groups * rows / 8 * bits, groups * rows * 2);
    assert_eq!((codes, zeros, scales), expected, "{job:?}");
}

fn check_micro(job: &Micro, elements: usize, codes: usize, scales: usize) {
    let group = job.code.group_size();
    assert!(elements.is_multiple_of(group), "{elements} elements are no whole groups of {group}");
    assert_eq!((codes, scales), (elements / 8 * job.code.bits() as usize, elements / group), "{job:?}");
}

/// An instruction set that this machine has not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{wanted}` is no instruction set of this machine, which has {available}")]
pub struct UnknownIsa {
    wanted: String,
    available: String,
}

/// The tables that this machine can run, the reference first, the best last.
#[must_use]
pub fn available() -> Vec<&'static Kernels> {
    tables().to_vec()
}

/// The same, detected once.
fn tables() -> &'static [&'static Kernels] {
    static TABLES: OnceLock<Vec<&'static Kernels>> = OnceLock::new();
    TABLES.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        let more = x86::available();
        #[cfg(not(target_arch = "x86_64"))]
        let more = vec![];
        std::iter::once(&scalar::KERNELS).chain(more).collect()
    })
}

/// Which of [`tables`] is in use; past their end for the best one.
static CHOSEN: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Has [`kernels`] give the table of this name from now on, or the best one where none is named. To be
/// called at start; later it changes no byte, since all tables give the same.
///
/// # Errors
/// An unknown instruction set, or one that this machine has not.
pub fn select(name: Option<&str>) -> Result<&'static Kernels, UnknownIsa> {
    CHOSEN.store(name.map_or(Ok(usize::MAX), position)?, Relaxed);
    Ok(kernels())
}

fn position(name: &str) -> Result<usize, UnknownIsa> {
    tables().iter().position(|k| k.isa.name() == name).ok_or_else(|| UnknownIsa {
        wanted: name.to_owned(),
        available: tables().iter().map(|k| k.isa.name()).collect::<Vec<_>>().join(", "),
    })
}

/// The table in use: [`select`]'s, or the best one where nothing was selected.
#[must_use]
pub fn kernels() -> &'static Kernels {
    let tables = tables();
    tables.get(CHOSEN.load(Relaxed)).or(tables.last()).copied().unwrap_or(&scalar::KERNELS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_chosen_by_name_or_refused() {
        assert_eq!(select(Some("scalar")).map(Kernels::isa), Ok(Isa::Scalar));
        assert_eq!(kernels().isa(), Isa::Scalar);
        for wrong in ["", "AVX2", "sse9"] {
            let Err(error) = select(Some(wrong)) else { panic!("{wrong:?} was taken for a table") };
            assert!(error.to_string().contains(&format!("`{wrong}`")), "{error}");
            assert!(error.to_string().contains("scalar"), "{error}");
            assert_eq!(kernels().isa(), Isa::Scalar, "a refusal changes nothing");
        }
        assert_eq!(select(None).map(Kernels::isa).ok(), available().last().map(|k| k.isa()));
    }
}
