//! MLX's affine quantization: `w = code * scale + bias` for groups of 32, 64 or 128 elements.
//!
//! The arithmetic of `mlx/backend/cpu/quantized.cpp` and, as [`Flavour::Metal`], of the kernel text
//! `metal/kernels/quantized.h`. Everything is f32; codes come from the scale and bias before these
//! are rounded to the stored dtype. The edge rule: the group's edge of larger magnitude is a multiple
//! of the scale, so that it and zero are represented exactly.
//!
//! NaN elements are passed over by minimum and maximum and get code 0. Where infinities make the
//! scale NaN, its sign is that of x86's own NaN (MLX's CPU arithmetic runs there): negative, but
//! positive where maximum and minimum are the same infinity.

use std::array::from_fn;

use crate::{
    kernel::{Affine, Choice, Flavour, Method},
    tensor::Float,
};

use super::{
    BLOCK, ROUNDER,
    groups::{Each, Groups},
    is_better, larger, narrow,
    pack::{pack, unpack},
    round_to,
    search::{half_quadratic, least_squares},
    sixteen::{LANES, Sixteen},
    smaller, widen,
};

/// Groups of a block at most.
const GROUPS: usize = BLOCK / 32;
/// Smallest scale of a group, from the reference.
const EPSILON: f32 = 1e-7;

/// A scale and a bias for every group of so many.
#[repr(C, align(64))]
pub(in crate::kernel) struct Fits<const N: usize> {
    pub(in crate::kernel) scale: [f32; N],
    pub(in crate::kernel) bias: [f32; N],
}

#[inline(always)]
pub(in crate::kernel) fn quantize(job: &Affine, src: &[u8], codes: &mut [u8], scales: &mut [u8], biases: &mut [u8]) {
    let mut values = [0f32; BLOCK];
    let mut coded = [0u8; BLOCK];
    let mut fits = Fits { scale: [0.0; GROUPS], bias: [0.0; GROUPS] };
    let blocks = src.chunks(BLOCK * job.float.size());
    let code_blocks = codes.chunks_mut(BLOCK / 8 * job.bits as usize);
    let per_block = BLOCK / job.group * job.stored.size();
    let fit_blocks = scales.chunks_mut(per_block).zip(biases.chunks_mut(per_block));
    for ((block, codes), (scales, biases)) in blocks.zip(code_blocks).zip(fit_blocks) {
        let values = &mut values[..block.len() / job.float.size()];
        let coded = &mut coded[..values.len()];
        widen(job.float, block, values);
        extrema_of_groups(job, values, &mut fits);
        fit(job, &mut fits);
        match job.flavour {
            Flavour::Cpu => code(job, values, &fits, coded, half_to_even),
            Flavour::Metal => code(job, values, &fits, coded, half_up),
        }
        pack(job.bits, coded, codes);
        narrow(job.stored, &fits.scale, scales);
        narrow(job.stored, &fits.bias, biases);
    }
}

/// The same with the parameters that a method chooses; codes come from these as they are stored. A proposal is taken for
/// groups of finite elements, and of least squares where the values that a reader decodes have less error for it.
#[inline(always)]
pub(in crate::kernel) fn choose<S: Sixteen>(
    lanes: S,
    job: &Affine,
    choice: &Choice<'_>,
    src: &[u8],
    [codes, scales, biases]: [&mut [u8]; 3],
) {
    let mut values = [0f32; BLOCK];
    let mut coded = [[0u8; BLOCK]; 2];
    let none = || Fits { scale: [0.0; GROUPS], bias: [0.0; GROUPS] };
    let (mut fits, mut spans, mut groups) = ([none(), none()], none(), Groups::NONE);
    let blocks = src.chunks(BLOCK * job.float.size());
    let code_blocks = codes.chunks_mut(BLOCK / 8 * job.bits as usize);
    let per_block = BLOCK / job.group * job.stored.size();
    let fit_blocks = scales.chunks_mut(per_block).zip(biases.chunks_mut(per_block));
    for (number, ((block, codes), (scales, biases))) in blocks.zip(code_blocks).zip(fit_blocks).enumerate() {
        let values = &mut values[..block.len() / job.float.size()];
        let [plain, better] = &mut coded;
        let (plain, better) = (&mut plain[..values.len()], &mut better[..values.len()]);
        widen(job.float, block, values);
        let choice = Choice { first: choice.first + number * BLOCK, ..*choice };
        propose(lanes, job, &choice, values, &mut groups, (&mut spans, &mut fits[1]));
        begin(job, &spans, &mut fits[0]);
        fit(job, &mut fits[0]);
        for (fits, coded) in fits.iter().zip([&mut *plain, &mut *better]) {
            match job.flavour {
                Flavour::Cpu => code(job, values, fits, coded, half_to_even),
                Flavour::Metal => code(job, values, fits, coded, half_up),
            }
        }
        round_to(job.stored, &mut fits[0].scale);
        round_to(job.stored, &mut fits[0].bias);
        take(lanes, job, &choice, (values, &spans), &mut fits, [plain, better]);
        pack(job.bits, plain, codes);
        narrow(job.stored, &fits[0].scale, scales);
        narrow(job.stored, &fits[0].bias, biases);
    }
}

/// Leaves each group's maximum and minimum in `spans`, and what a method proposes for it in `fits`.
#[inline(always)]
fn propose<S: Sixteen>(
    lanes: S,
    job: &Affine,
    choice: &Choice<'_>,
    values: &[f32],
    groups: &mut Groups,
    (spans, fits): (&mut Fits<GROUPS>, &mut Fits<GROUPS>),
) {
    let top = highest_code(job.bits);
    for (number, sixteen) in values.chunks(LANES * job.group).enumerate() {
        let first = number * LANES;
        groups.take(lanes, job.group, sixteen.chunks_exact(job.group), |lane| choice.of_group(first + lane, job.group));
        let line = match choice.method {
            Method::Hqq => half_quadratic(lanes, top, job.stored, groups),
            Method::Rtn | Method::Ls => least_squares(lanes, top, job.stored, groups),
        };
        spans.bias[first..][..LANES].copy_from_slice(&groups.least);
        spans.scale[first..][..LANES].copy_from_slice(&groups.most);
        fits.bias[first..][..LANES].copy_from_slice(&line.bias);
        fits.scale[first..][..LANES].copy_from_slice(&line.scale);
    }
}

/// Takes the second fits and codes of a block's groups, where they are better, for the first ones.
#[inline(always)]
fn take<S: Sixteen>(
    lanes: S,
    job: &Affine,
    choice: &Choice<'_>,
    (values, spans): (&[f32], &Fits<GROUPS>),
    [fits, proposed]: &mut [Fits<GROUPS>; 2],
    [plain, better]: [&mut [u8]; 2],
) {
    let taken: [bool; GROUPS] = match choice.method {
        Method::Hqq => from_fn(|i| proposed.scale[i].is_finite() && proposed.bias[i].is_finite()),
        Method::Rtn | Method::Ls => {
            let mut errors = [[0f32; GROUPS]; 2];
            for (errors, (fits, coded)) in errors.iter_mut().zip([(&*fits, &*plain), (&*proposed, &*better)]) {
                errors_of_groups(lanes, job, choice, (values, spans), (fits, coded), errors);
            }
            from_fn(|i| is_better(errors[1][i], errors[0][i]))
        }
    };
    let coded = plain.chunks_exact_mut(job.group).zip(better.chunks_exact(job.group));
    for (number, (plain, better)) in coded.enumerate().filter(|(number, _)| taken[*number]) {
        plain.copy_from_slice(better);
        (fits.scale[number], fits.bias[number]) = (proposed.scale[number], proposed.bias[number]);
    }
}

/// The squared errors of the groups' decoded values, in parts of their spans, that neither huge nor tiny elements leave the
/// range of floats.
#[inline(always)]
fn errors_of_groups<S: Sixteen>(
    lanes: S,
    job: &Affine,
    choice: &Choice<'_>,
    (values, spans): (&[f32], &Fits<GROUPS>),
    (fits, coded): (&Fits<GROUPS>, &[u8]),
    errors: &mut [f32; GROUPS],
) {
    let mut decoded = [0f32; BLOCK];
    let decoded = &mut decoded[..values.len()];
    decode_as(lanes, job, coded, fits, decoded);
    let groups = values.chunks_exact(job.group).zip(decoded.chunks_exact(job.group));
    let mut sums = [[0f32; LANES]; GROUPS];
    for (number, (sums, (values, decoded))) in sums.iter_mut().zip(groups).enumerate() {
        let inverse = 1.0 / larger(spans.scale[number] - spans.bias[number], f32::MIN_POSITIVE);
        *sums = error(lanes, values, decoded, choice.of_group(number, job.group), inverse);
    }
    for (sums, errors) in sums.as_chunks::<LANES>().0.iter().zip(errors.as_chunks_mut::<LANES>().0) {
        *errors = lanes.halves(sums);
    }
}

/// The squared errors of a group's values, each sixteenth of them summed.
#[inline(always)]
fn error<S: Sixteen>(lanes: S, values: &[f32], decoded: &[f32], weights: Option<&[f32]>, inverse: f32) -> Each {
    let mut sum = lanes.load(&[0.0; LANES]);
    let pairs = values.as_chunks::<LANES>().0.iter().zip(decoded.as_chunks::<LANES>().0);
    for (run, (values, decoded)) in pairs.enumerate() {
        let off = lanes.times(lanes.subtract(lanes.load(values), lanes.load(decoded)), inverse);
        let weights = weights.and_then(|all| all.as_chunks::<LANES>().0.get(run));
        let weighed = weights.map_or(off, |weights| lanes.product(lanes.load(weights), off));
        sum = lanes.add_product(sum, weighed, off);
    }
    let mut out = [0.0; LANES];
    lanes.store(sum, &mut out);
    out
}

/// Leaves each group's maximum in `scale` and its minimum in `bias`.
#[inline(always)]
fn extrema_of_groups(job: &Affine, values: &[f32], fits: &mut Fits<GROUPS>) {
    let (lowest, highest) = start(job);
    for ((group, min), max) in values.chunks_exact(job.group).zip(&mut fits.bias).zip(&mut fits.scale) {
        (*min, *max) = extrema(group, lowest, highest);
    }
}

/// The same, given what they are by themselves.
#[inline(always)]
fn begin(job: &Affine, spans: &Fits<GROUPS>, fits: &mut Fits<GROUPS>) {
    let (lowest, highest) = start(job);
    for i in 0..GROUPS {
        fits.bias[i] = smaller(spans.bias[i], lowest);
        fits.scale[i] = larger(spans.scale[i], highest);
    }
}

/// What minimum and maximum start from.
#[inline(always)]
pub(in crate::kernel) fn start(job: &Affine) -> (f32, f32) {
    match job.flavour {
        Flavour::Cpu => (f32::INFINITY, f32::NEG_INFINITY),
        // The kernel starts from 0 and from the largest finite value of the dtype that it is given.
        Flavour::Metal => (largest(job.stored), 0.0),
    }
}

fn largest(float: Float) -> f32 {
    match float {
        Float::Bf16 => f32::from_bits(0x7f7f_0000),
        Float::F16 => 65504.0,
        Float::F32 => f32::MAX,
    }
}

/// Minimum and maximum, NaN passed over. The sign of a zero is that of any zero in the group, and
/// nothing after depends on it. What is left of whole sixteens is not looked at.
#[inline(always)]
pub(super) fn extrema(group: &[f32], lowest: f32, highest: f32) -> (f32, f32) {
    let (mut low, mut high) = ([lowest; LANES], [highest; LANES]);
    for lanes in group.as_chunks::<LANES>().0 {
        for i in 0..LANES {
            low[i] = smaller(lanes[i], low[i]);
            high[i] = larger(lanes[i], high[i]);
        }
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            low[i] = smaller(low[i + width], low[i]);
            high[i] = larger(high[i + width], high[i]);
        }
        width /= 2;
    }
    (low[0], high[0])
}

/// Maximum and minimum become scale and bias.
#[inline(always)]
pub(in crate::kernel) fn fit<const N: usize>(job: &Affine, fits: &mut Fits<N>) {
    match job.flavour {
        Flavour::Cpu => fit_by(job.bits, fits, nearest_even),
        Flavour::Metal => fit_by(job.bits, fits, nearest_away),
    }
}

#[inline(always)]
fn fit_by<const N: usize>(bits: u32, fits: &mut Fits<N>, round: impl Fn(f32) -> f32) {
    let steps = highest_code(bits);
    for (scale, bias) in fits.scale.iter_mut().zip(&mut fits.bias) {
        let (max, min) = (*scale, *bias);
        let spread = (max - min) / steps;
        let size = if spread < EPSILON { EPSILON } else { spread };
        let low_edge = min.abs() > max.abs();
        let first = if low_edge { size } else { -size };
        let edge = if low_edge { min } else { max };
        let steps_to_edge = round(edge / first);
        let exact = edge / steps_to_edge;
        let at_zero = steps_to_edge == 0.0;
        let chosen = if at_zero { first } else { exact };
        let nan = f32::from_bits(if spread.is_nan() { 0x7fc0_0000 } else { 0xffc0_0000 });
        *scale = if chosen.is_nan() { nan } else { chosen };
        *bias = if at_zero { 0.0 } else { edge };
    }
}

#[inline(always)]
fn highest_code(bits: u32) -> f32 {
    ((1u32 << bits) - 1) as f32
}

/// Rounds half to even, at any magnitude.
#[inline(always)]
fn nearest_even(x: f32) -> f32 {
    let abs = x.abs();
    let rounded = if abs < ROUNDER { (abs + ROUNDER) - ROUNDER } else { abs };
    rounded.copysign(x)
}

/// Rounds half away from zero, at any magnitude.
#[inline(always)]
fn nearest_away(x: f32) -> f32 {
    let abs = x.abs();
    let even = nearest_even(abs);
    let rounded = if abs - even == 0.5 { even + 1.0 } else { even };
    rounded.copysign(x)
}

/// The codes of a block, one a byte: `round((w - bias) / scale)` held to 0..=2^bits-1, NaN as 0.
#[inline(always)]
fn code(job: &Affine, values: &[f32], fits: &Fits<GROUPS>, coded: &mut [u8], round: impl Fn(f32) -> u32) {
    let top = highest_code(job.bits);
    let groups = values.chunks_exact(job.group).zip(coded.chunks_exact_mut(job.group));
    for ((group, coded), (&scale, &bias)) in groups.zip(fits.scale.iter().zip(&fits.bias)) {
        for (run, out) in group.as_chunks::<32>().0.iter().zip(coded.as_chunks_mut::<32>().0) {
            for i in 0..32 {
                let steps = (run[i] - bias) / scale;
                let held = smaller(larger(steps, 0.0), top);
                out[i] = (round(held) & 0xff) as u8;
            }
        }
    }
}

/// The integer nearest to a value in 0..=255 in the low byte, half to even.
#[inline(always)]
fn half_to_even(x: f32) -> u32 {
    (x + ROUNDER).to_bits()
}

/// The same with halves rounded up.
#[inline(always)]
pub(super) fn half_up(x: f32) -> u32 {
    let even = x + ROUNDER;
    even.to_bits() + u32::from(x - (even - ROUNDER) == 0.5)
}

/// `code * scale + bias` in the stored dtype: the product is rounded before the sum.
#[inline(always)]
pub(in crate::kernel) fn dequantize<S: Sixteen>(
    lanes: S,
    job: &Affine,
    codes: &[u8],
    scales: &[u8],
    biases: &[u8],
    out: &mut [f32],
) {
    let mut coded = [0u8; BLOCK];
    let mut fits = Fits { scale: [0.0; GROUPS], bias: [0.0; GROUPS] };
    let per_block = BLOCK / job.group * job.stored.size();
    let blocks = out.chunks_mut(BLOCK).zip(codes.chunks(BLOCK / 8 * job.bits as usize));
    for ((values, codes), (scales, biases)) in blocks.zip(scales.chunks(per_block).zip(biases.chunks(per_block))) {
        let coded = &mut coded[..values.len()];
        unpack(job.bits, codes, coded);
        widen(job.stored, scales, &mut fits.scale);
        widen(job.stored, biases, &mut fits.bias);
        decode_as(lanes, job, coded, &fits, values);
    }
}

/// The values of codes, computed in the stored dtype.
#[inline(always)]
fn decode_as<S: Sixteen, const N: usize>(lanes: S, job: &Affine, coded: &[u8], fits: &Fits<N>, values: &mut [f32]) {
    match job.stored {
        Float::Bf16 => decode(lanes, job, coded, fits, values, to_bf16),
        Float::F16 => decode(lanes, job, coded, fits, values, to_f16),
        Float::F32 => decode(lanes, job, coded, fits, values, |x| x),
    }
}

/// The values of a block's codes. Those of a narrow code are computed once for a group.
#[inline(always)]
fn decode<S: Sixteen, const N: usize>(
    lanes: S,
    job: &Affine,
    coded: &[u8],
    fits: &Fits<N>,
    values: &mut [f32],
    round: impl Fn(f32) -> f32,
) {
    let groups = values.chunks_exact_mut(job.group).zip(coded.chunks_exact(job.group));
    for ((values, coded), (&scale, &bias)) in groups.zip(fits.scale.iter().zip(&fits.bias)) {
        if job.bits <= 4 {
            let mut table = [0f32; LANES];
            for i in 0..LANES {
                table[i] = round(round(CODES[i] * scale) + bias);
            }
            for (run, coded) in values.as_chunks_mut::<LANES>().0.iter_mut().zip(coded.as_chunks::<LANES>().0) {
                lanes.store(lanes.pick(&table, coded), run);
            }
        } else {
            for (value, &code) in values.iter_mut().zip(coded) {
                *value = round(round(f32::from(code) * scale) + bias);
            }
        }
    }
}

/// The narrow codes as numbers.
const CODES: [f32; LANES] = [0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.];

/// Rounds to bfloat16. That a NaN is one holds for those of bfloat16 parameters, whose low bits are zeros.
#[inline(always)]
fn to_bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits(bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000)
}

/// Rounds to half.
#[inline(always)]
fn to_f16(x: f32) -> f32 {
    let bits = x.to_bits();
    let abs = bits & 0x7fff_ffff;
    let normal = f32::from_bits(abs.wrapping_add(0xfff + ((abs >> 13) & 1)) & !0x1fff);
    let subnormal = (f32::from_bits(abs) + 0.5) - 0.5;
    let finite = if abs < (127 - 14) << 23 { subnormal } else { normal };
    let magnitude = if abs >= 0x477f_f000 { f32::from_bits(abs) + f32::INFINITY } else { finite };
    f32::from_bits(magnitude.to_bits() | bits & 0x8000_0000)
}
