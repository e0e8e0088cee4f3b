//! The tensors of compressed-tensors, written and recognized.
//!
//! Packed words say the product of bits and columns alone, and the columns of a row stand in the values of
//! `weight_shape`, which is no header's: config and manifest say them, or the shapes leave one reading.

use std::sync::Arc;

use crate::{
    kernel::Scaled,
    quant::{Content, Module, Part, Recognized, Unsupported, Weight, format::check_groups},
    tensor::{Dtype, Float, TensorInfo},
};

use super::{BLOCK, Compressed, Shared, Store, ZERO_ROWS};

/// Whether scales are one byte each.
pub(super) fn has_byte_scales(store: Store) -> bool {
    matches!(store, Store::Mxfp4 | Store::Mxfp8 | Store::Nvfp4)
}

/// Refuses what the layout cannot hold.
pub(super) fn check(scheme: &Compressed, weight: &Weight) -> Result<(), Unsupported> {
    if weight.shape.len() > 2 {
        return Err(Unsupported(format!("it has shape {:?}; only matrices are quantized", weight.shape)));
    }
    let group = match scheme.shared {
        Shared::Group(size) => size,
        // Activations come in groups as wide as a block, so that loaders want whole blocks along a row.
        Shared::Block => BLOCK,
        Shared::Channel | Shared::Tensor => 1,
    };
    check_groups(weight, group)
}

/// The tensors of a weight that was checked.
pub(super) fn parts(scheme: &Compressed, weight: &Weight) -> Vec<Part> {
    let (rows, cols) = (weight.rows(), weight.cols());
    let job = scheme.job(weight.float, cols);
    let granule = Granule::of(scheme, &job, cols);
    let tiled =
        |suffix, dtype, shape, per_granule| Part { suffix, dtype, shape, content: Content::Tiled { per_granule } };
    let codes = |suffix, dtype: Dtype| {
        let width = job.row_bytes(cols) * 8 / dtype.bitsize();
        tiled(suffix, dtype, vec![rows, width], granule.codes)
    };
    let scales = |dtype, shape| tiled(".weight_scale", dtype, shape, granule.scales);
    let float = weight.float.dtype();
    let grouped = |dtype| scales(dtype, vec![rows, cols / job.group]);
    match (scheme.store, scheme.shared) {
        (Store::Packed { .. }, _) => {
            let mut parts = vec![codes(".weight_packed", Dtype::I32), grouped(float)];
            if scheme.is_asymmetric() {
                let words = (rows * job.coding.bits() as usize).div_ceil(32);
                parts.push(tiled(".weight_zero_point", Dtype::I32, vec![words, cols / job.group], granule.zeros));
            }
            parts.push(shape(rows, cols));
            parts
        }
        (Store::Fp8, Shared::Tensor) => {
            let scale = Part { content: Content::First, ..scales(float, vec![1]) };
            vec![codes(".weight", Dtype::F8_E4M3), scale]
        }
        (Store::Fp8, Shared::Block) => {
            vec![codes(".weight", Dtype::F8_E4M3), scales(float, vec![rows.div_ceil(BLOCK), cols / BLOCK])]
        }
        (Store::Fp8, _) => vec![codes(".weight", Dtype::F8_E4M3), grouped(float)],
        (Store::Int8, _) => vec![codes(".weight", Dtype::I8), grouped(float)],
        (Store::Mxfp8, _) => vec![codes(".weight", Dtype::F8_E4M3), grouped(Dtype::U8)],
        (Store::Mxfp4, _) => vec![codes(".weight_packed", Dtype::U8), grouped(Dtype::U8)],
        (Store::Nvfp4, _) => {
            let whole =
                Part { suffix: ".weight_global_scale", dtype: Dtype::F32, shape: vec![1], content: Content::First };
            vec![codes(".weight_packed", Dtype::U8), grouped(Dtype::F8_E4M3), whole]
        }
    }
}

/// Bytes of each part that a granule of the banding has.
struct Granule {
    codes: usize,
    scales: usize,
    zeros: usize,
}

impl Granule {
    fn of(scheme: &Compressed, job: &Scaled, cols: usize) -> Self {
        let (row, groups) = (job.row_bytes(cols), cols / job.group);
        match scheme.shared {
            _ if scheme.is_asymmetric() => Self {
                codes: ZERO_ROWS * row,
                scales: ZERO_ROWS * groups * job.scale_bytes(),
                zeros: ZERO_ROWS * job.coding.bits() as usize / 8 * groups,
            },
            Shared::Block => Self { codes: BLOCK * row, scales: groups * job.scale_bytes(), zeros: 0 },
            Shared::Group(size) => Self { codes: job.row_bytes(size), scales: job.scale_bytes(), zeros: 0 },
            Shared::Channel | Shared::Tensor => Self { codes: row, scales: job.scale_bytes(), zeros: 0 },
        }
    }
}

/// `[rows, columns]` as two I64.
fn shape(rows: usize, cols: usize) -> Part {
    let bytes: Vec<u8> = [rows, cols].into_iter().flat_map(|n| (n as u64).to_le_bytes()).collect();
    Part { suffix: ".weight_shape", dtype: Dtype::I64, shape: vec![2], content: Content::Constant(bytes.into()) }
}

/// The scheme of a module that has `weight_scale` beside its codes.
pub(super) fn recognize(module: &Module<'_>) -> Option<Result<Recognized, Unsupported>> {
    let packed = module.get(".weight_packed");
    let codes =
        packed.or_else(|| module.get(".weight").filter(|info| matches!(info.dtype, Dtype::I8 | Dtype::F8_E4M3)))?;
    let Some(scales) = module.get(".weight_scale") else {
        let missing = || Unsupported(format!("it holds codes, and {}.weight_scale is missing", module.stem));
        return packed.map(|_| Err(missing()));
    };
    Some(read(module, codes, scales))
}

fn read(module: &Module<'_>, codes: &TensorInfo, scales: &TensorInfo) -> Result<Recognized, Unsupported> {
    if module.get(".weight_g_idx").is_some() {
        return Err(Unsupported("its columns are ordered by activations (weight_g_idx), which is not read".to_owned()));
    }
    let [rows, width] = codes.shape[..] else {
        return Err(Unsupported(format!("{} is {:?}; only matrices are read", codes.name, codes.shape)));
    };
    let has_zeros = module.get(".weight_zero_point").is_some();
    let float = Float::of(scales.dtype);
    let is_packed = codes.name.ends_with("_packed");
    let (scheme, float, cols) = match (is_packed, codes.dtype, scales.dtype, float) {
        (true, Dtype::I32, _, Some(float)) => {
            let (bits, shared, cols) = packed(module, width, scales)?;
            (Compressed::new(Store::Packed { bits, symmetric: !has_zeros }, shared), float, cols)
        }
        (true, Dtype::U8, Dtype::F8_E4M3, _) => (of_bytes(Store::Nvfp4, 16), Float::Bf16, width.saturating_mul(2)),
        (true, Dtype::U8, Dtype::U8, _) => (of_bytes(Store::Mxfp4, 32), Float::Bf16, width.saturating_mul(2)),
        (false, Dtype::F8_E4M3, Dtype::U8, _) => (of_bytes(Store::Mxfp8, 32), Float::Bf16, width),
        (false, Dtype::I8, _, Some(float)) => (Compressed::new(Store::Int8, Shared::Channel), float, width),
        (false, Dtype::F8_E4M3, _, Some(float)) => {
            (Compressed::new(Store::Fp8, fp8(module, rows, scales)), float, width)
        }
        _ => {
            let (codes, scales) = (codes.dtype, scales.dtype);
            return Err(Unsupported(format!(
                "{codes} codes under {scales} scales are no layout of compressed-tensors"
            )));
        }
    };
    if has_zeros && !scheme.is_asymmetric() {
        return Err(Unsupported(format!("zero points beside {} codes are not read", scheme.mode())));
    }
    module.agree(scheme.mode())?;
    let weight = Weight { stem: module.stem.to_owned(), float, shape: vec![rows, cols] };
    Ok(Recognized { scheme: Arc::new(scheme), weight })
}

fn of_bytes(store: Store, group: usize) -> Compressed {
    Compressed::new(store, Shared::Group(group))
}

/// What shares the scales of e4m3 codes, as their shape tells; of a matrix so small that it is one block, what is said.
fn fp8(module: &Module<'_>, rows: usize, scales: &TensorInfo) -> Shared {
    let said_block = module.stated.group_size == Some(BLOCK);
    match scales.shape[..] {
        [_] => Shared::Tensor,
        [n, 1] if n == rows && !said_block => Shared::Channel,
        _ => Shared::Block,
    }
}

/// Bits, groups and columns of packed words: as they are said, else as the shapes have one reading alone.
fn packed(module: &Module<'_>, words: usize, scales: &TensorInfo) -> Result<(u32, Shared, usize), Unsupported> {
    let wrong = || Unsupported(format!("scales {:?} belong to no groups of packed codes", scales.shape));
    let [_, groups] = scales.shape[..] else { return Err(wrong()) };
    let stated = &module.stated;
    let mut readings = vec![];
    for bits in (2..=8).filter(|bits| stated.bits.is_none_or(|said| said == *bits)) {
        let sized = |size: &usize| stated.group_size.is_none_or(|said| said == *size);
        let columns = |size: usize| groups.checked_mul(size).filter(|cols| fills(*cols, bits, words));
        let found = [32, 64, 128].into_iter().filter(sized).filter_map(|g| Some((bits, Shared::Group(g), columns(g)?)));
        readings.extend(found);
        if groups == 1 && sized(&0) {
            // Where nobody says the columns, rows fill their words: `weight_shape` must agree when it is read.
            let full = words.checked_mul(32).map(|all| all / bits as usize);
            let cols = stated.cols.or(full).filter(|cols| fills(*cols, bits, words));
            readings.extend(cols.map(|cols| (bits, Shared::Channel, cols)));
        }
    }
    let fits = readings.iter().filter(|(_, _, cols)| stated.cols.is_none_or(|said| said == *cols)).collect::<Vec<_>>();
    match fits[..] {
        [one] => Ok(*one),
        [] => Err(Unsupported(format!(
            "its {words} words and {groups} scales a row are no codes in groups of 32, 64 or 128 or whole rows{}",
            said(module)
        ))),
        _ => Err(Unsupported(format!(
            "config.json does not say its bits and group size, and its shapes fit {} readings{}",
            fits.len(),
            said(module)
        ))),
    }
}

/// Whether a row of so many columns takes just these words.
fn fills(cols: usize, bits: u32, words: usize) -> bool {
    cols.checked_mul(bits as usize).is_some_and(|all| all > 0 && all.div_ceil(32) == words)
}

/// What is said of a module, for messages.
fn said(module: &Module<'_>) -> String {
    let word = |n: Option<usize>| n.map_or("nothing".to_owned(), |n| n.to_string());
    let bits = module.stated.bits.map(|bits| bits as usize);
    format!(" (said of bits: {}, of groups: {})", word(bits), word(module.stated.group_size))
}
