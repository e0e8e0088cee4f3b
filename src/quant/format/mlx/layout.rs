//! MLX's layout recognized: u32 words in `.weight`, one scale for each group in `.scales`, and
//! `.biases` where the codes are affine.
//!
//! Bytes as scales are microscaling, and the words that a group takes tell which; for affine codes
//! they give only the product of bits and group, which often has several readings.

use std::sync::Arc;

use crate::{
    kernel::{Flavour, Method, MicroCode, ScaleRule},
    quant::{Module, Recognized, Scheme, Unsupported, Weight},
    tensor::{Dtype, Float, TensorInfo},
};

use super::{Affine, micro};

/// Widths of affine codes.
const BITS: [usize; 6] = [2, 3, 4, 5, 6, 8];
/// Elements of an affine group.
const GROUPS: [usize; 3] = [32, 64, 128];

/// The scheme of a module whose `.weight` is of u32 words.
pub(super) fn recognize(module: &Module<'_>) -> Option<Result<Recognized, Unsupported>> {
    let codes = module.typed(".weight", Dtype::U32)?;
    Some(scheme(module, codes).map(|(scheme, float, bits)| {
        let mut shape = codes.shape.clone();
        if let Some(last) = shape.last_mut() {
            *last = *last * 32 / bits;
        }
        Recognized { scheme, weight: Weight { stem: module.stem.to_owned(), float, shape } }
    }))
}

/// The scheme, the float of its values and the bits of a code.
fn scheme(module: &Module<'_>, codes: &TensorInfo) -> Result<(Arc<dyn Scheme>, Float, usize), Unsupported> {
    if module.get(".global_scale").is_some() {
        return Err(Unsupported("its scales have a global_scale, which is not read".to_owned()));
    }
    let Some(scales) = module.get(".scales") else {
        return Err(Unsupported(format!("it holds codes, and {}.scales is missing", module.stem)));
    };
    let per_group = group_bits(codes, scales)?;
    match (scales.dtype, module.get(".biases")) {
        (Dtype::U8, None) => {
            let code = micro_code(per_group)
                .ok_or_else(|| Unsupported(format!("{per_group} bits to a scale byte are no code of mlx")))?;
            let scheme = micro(code, Flavour::Cpu, ScaleRule::Up);
            module.agree(scheme.facts().mode)?;
            // Its values are exact in every float but for their range.
            Ok((scheme, Float::F32, code.bits() as usize))
        }
        (dtype, Some(_)) if Float::of(dtype).is_some() => {
            module.agree("affine")?;
            let (bits, group) = affine(module, per_group)?;
            let float = Float::of(dtype).unwrap_or(Float::F32);
            let width = u32::try_from(bits).unwrap_or(u32::MAX);
            Ok((Arc::new(Affine::new(width, group, Method::Rtn, Flavour::Cpu, None)), float, bits))
        }
        (dtype, biases) => Err(Unsupported(format!(
            "scales of {dtype} {} biases are no layout of mlx",
            if biases.is_some() { "with" } else { "without" }
        ))),
    }
}

/// Bits of the codes of one group.
fn group_bits(codes: &TensorInfo, scales: &TensorInfo) -> Result<usize, Unsupported> {
    let wrong = || {
        Unsupported(format!("codes {:?} and scales {:?} do not belong to the same groups", codes.shape, scales.shape))
    };
    let (Some((words, lead)), Some((groups, same))) = (codes.shape.split_last(), scales.shape.split_last()) else {
        return Err(wrong());
    };
    let bits = words.checked_mul(32).ok_or_else(wrong)?;
    let whole = *groups > 0 && bits.is_multiple_of(*groups) && lead == same && !lead.is_empty();
    if whole { Ok(bits / groups) } else { Err(wrong()) }
}

fn micro_code(per_group: usize) -> Option<MicroCode> {
    [MicroCode::Mxfp4, MicroCode::Mxfp8, MicroCode::Nvfp4]
        .into_iter()
        .find(|code| code.group_size() * code.bits() as usize == per_group)
}

/// Bits and group of affine codes, whose product is known.
fn affine(module: &Module<'_>, per_group: usize) -> Result<(usize, usize), Unsupported> {
    let fits = |&(bits, group): &(usize, usize)| bits * group == per_group;
    let all: Vec<_> = GROUPS.into_iter().flat_map(|g| BITS.map(|b| (b, g))).filter(fits).collect();
    let bits = module.stated.bits.map(|b| b as usize);
    let said = |&&(b, g): &&(usize, usize)| {
        bits.is_none_or(|bits| bits == b) && module.stated.group_size.is_none_or(|group| group == g)
    };
    match all.iter().filter(said).collect::<Vec<_>>()[..] {
        [one] => Ok(*one),
        [] => Err(Unsupported(format!(
            "config.json or quantization.json says {} bits in groups of {}, but its shapes, with {per_group} bits to a \
             group, fit {}",
            bits.map_or("?".to_owned(), |b| b.to_string()),
            module.stated.group_size.map_or("?".to_owned(), |g| g.to_string()),
            readings(&all),
        ))),
        _ => Err(Unsupported(format!(
            "neither config.json nor quantization.json says its group size, and its shapes fit {}",
            readings(&all)
        ))),
    }
}

fn readings(pairs: &[(usize, usize)]) -> String {
    if pairs.is_empty() {
        return "no width and group of mlx".to_owned();
    }
    pairs.iter().map(|(b, g)| format!("{b} bits in groups of {g}")).collect::<Vec<_>>().join(", or ")
}
