//! The block formats of small floats: mxfp4 and mxfp8 (a power of two for 32 elements) and nvfp4 (an
//! e4m3 scale for 16).
//!
//! As [`Flavour::Cpu`] the arithmetic of MLX's fallback graph (`fast.cpp`, `Quantize::eval` on the
//! CPU): each operation is done in the dtype of the weight. Divisions by powers of two are exact
//! where it matters; the others are rounded by choosing thresholds (`num::fp4`). As [`Flavour::Metal`]
//! the arithmetic of the kernel text `metal/kernels/fp_quantized.h`: f32 throughout, negative zeros
//! keep their sign, ties go to even.
//!
//! Groups with NaN, infinity, or (nvfp4 on the CPU) magnitudes so large that the reference's table
//! search loses its distances to rounding take `unusual`: one element at a time, as the reference
//! computes.

use crate::{
    kernel::{Flavour, Micro, MicroCode, ScaleRule},
    num::{
        bf16_from_f32, bf16_to_f32, f16_from_f32, f16_to_f32,
        fp4::{self, MAGNITUDES, TIES_DOWN, TIES_EVEN, before_rounding},
        fp8::{e4m3_from_f32, e4m3_to_f32, e8m0_to_f32},
    },
    tensor::Float,
};

use super::{
    BLOCK, exponent, larger,
    pack::{pack, unpack},
    round_to,
    sixteen::{LANES, Sixteen},
    widen,
};

/// Groups of a block at most.
const GROUPS: usize = BLOCK / 16;
pub(in crate::kernel) const INFINITE: u32 = 0x7f80_0000;
/// 2^28: with nvfp4's largest scale, 448, elements below it stay below 2^20, where f32 still tells
/// their distances to the table apart.
pub(in crate::kernel) const SEARCHABLE: u32 = (127 + 28) << 23;

/// What a group's elements are divided by (CPU) or multiplied by (Metal), and its stored byte.
#[repr(C, align(64))]
pub(in crate::kernel) struct Scales<const N: usize> {
    pub(in crate::kernel) factor: [f32; N],
    pub(in crate::kernel) byte: [u8; N],
}

#[inline(always)]
pub(in crate::kernel) fn quantize(job: &Micro, src: &[u8], codes: &mut [u8], scales: &mut [u8]) {
    let (group, bits) = (job.code.group_size(), job.code.bits());
    let mut values = [0f32; BLOCK];
    let mut coded = [0u8; BLOCK];
    let mut largest = [0f32; GROUPS];
    let mut found = Scales { factor: [0.0; GROUPS], byte: [0; GROUPS] };
    let blocks = src.chunks(BLOCK * job.float.size());
    let outs = codes.chunks_mut(BLOCK / 8 * bits as usize).zip(scales.chunks_mut(BLOCK / group));
    for (block, (codes, scales)) in blocks.zip(outs) {
        let values = &mut values[..block.len() / job.float.size()];
        let coded = &mut coded[..values.len()];
        widen(job.float, block, values);
        magnitudes(group, values, &mut largest);
        scale(job, &largest, &mut found);
        code(job, values, &found.factor, coded);
        if any_unusual(job, values) {
            unusual_groups(job, values, &mut found.byte, coded);
        }
        pack(bits, coded, codes);
        scales.copy_from_slice(&found.byte[..scales.len()]);
    }
}

/// The largest magnitude of each group, NaN passed over: groups with NaN are done again.
///
/// The group size is a variable and the maximum a compare-and-select on purpose: with a constant, or
/// with a maximum that the compiler knows as a reduction, it works across groups with gathers on
/// AVX-512, at a third of the speed.
#[inline(always)]
fn magnitudes(group: usize, values: &[f32], largest: &mut [f32; GROUPS]) {
    for (group, out) in values.chunks_exact(group).zip(largest) {
        let mut lanes = [0f32; 16];
        for run in group.as_chunks::<16>().0 {
            for i in 0..16 {
                lanes[i] = larger(run[i].abs(), lanes[i]);
            }
        }
        let mut width = 8;
        while width > 0 {
            for i in 0..width {
                lanes[i] = larger(lanes[i + width], lanes[i]);
            }
            width /= 2;
        }
        *out = lanes[0];
    }
}

/// Whether any element is unusual.
#[inline(always)]
fn any_unusual(job: &Micro, values: &[f32]) -> bool {
    let limit = unusual_from(job);
    values.iter().fold(false, |any, x| any | (x.to_bits() & 0x7fff_ffff >= limit))
}

#[inline(always)]
fn unusual_from(job: &Micro) -> u32 {
    match (job.code, job.flavour) {
        (MicroCode::Nvfp4, Flavour::Cpu) => SEARCHABLE,
        _ => INFINITE,
    }
}

/// The largest magnitudes become scales.
#[inline(always)]
pub(in crate::kernel) fn scale<const N: usize>(job: &Micro, largest: &[f32; N], found: &mut Scales<N>) {
    let mut wanted = [0f32; N];
    let top = job.code.largest();
    for (x, largest) in wanted.iter_mut().zip(largest) {
        *x = largest / top;
    }
    if job.flavour == Flavour::Cpu {
        round_to(job.computed, &mut wanted);
    }
    let float = job.computed;
    match (job.code, job.flavour, job.rule) {
        (MicroCode::Nvfp4, Flavour::Cpu, _) => nv_scales(&wanted, found, |v| if v == 0.0 { f32::INFINITY } else { v }),
        (MicroCode::Nvfp4, Flavour::Metal, _) => nv_scales(&wanted, found, |v| if v == 0.0 { 0.0 } else { 1.0 / v }),
        (_, Flavour::Cpu, ScaleRule::Up) => mx_scales_cpu(&wanted, found, exponent::up),
        (_, Flavour::Cpu, ScaleRule::Nearest) => {
            mx_scales_cpu(&wanted, found, |x| exponent::nearest(x, float, Flavour::Cpu));
        }
        (_, Flavour::Metal, ScaleRule::Up) => mx_scales_metal(&wanted, found, exponent::up),
        (_, Flavour::Metal, ScaleRule::Nearest) => {
            mx_scales_metal(&wanted, found, |x| exponent::nearest(x, Float::F32, Flavour::Metal));
        }
    }
}

/// A scale of zero becomes a factor under which every element gets code 0.
#[inline(always)]
fn nv_scales<const N: usize>(wanted: &[f32; N], found: &mut Scales<N>, factor: impl Fn(f32) -> f32) {
    for ((x, byte), out) in wanted.iter().zip(&mut found.byte).zip(&mut found.factor) {
        *byte = e4m3_from_f32(*x);
        *out = factor(e4m3_to_f32(*byte));
    }
}

/// No clamp: the byte of an exponent below -127 wraps, as the reference's cast does on x86.
#[inline(always)]
fn mx_scales_cpu<const N: usize>(wanted: &[f32; N], found: &mut Scales<N>, exponent: impl Fn(f32) -> i32) {
    for ((x, byte), factor) in wanted.iter().zip(&mut found.byte).zip(&mut found.factor) {
        let e = if *x > 0.0 && *x < f32::INFINITY { exponent(*x) } else { 0 };
        *byte = ((e + 127) & 0xff) as u8;
        *factor = exponent::power_of_two(e);
    }
}

#[inline(always)]
fn mx_scales_metal<const N: usize>(wanted: &[f32; N], found: &mut Scales<N>, exponent: impl Fn(f32) -> i32) {
    for ((x, byte), factor) in wanted.iter().zip(&mut found.byte).zip(&mut found.factor) {
        let e = if *x > 0.0 { exponent(*x).clamp(-127, 127) } else { -127 };
        *byte = ((e + 127) & 0xff) as u8;
        *factor = exponent::power_of_two(-e);
    }
}

/// The codes of a block, one a byte.
#[inline(always)]
fn code(job: &Micro, values: &[f32], factors: &[f32; GROUPS], coded: &mut [u8]) {
    let cpu = job.flavour == Flavour::Cpu;
    let even = &TIES_EVEN;
    match (job.code, cpu) {
        (MicroCode::Nvfp4, true) => {
            let down = &thresholds_before(job.computed);
            code_groups::<16>(values, factors, coded, |w, f| e2m1(w / f, down, false));
        }
        (MicroCode::Nvfp4, false) => code_groups::<16>(values, factors, coded, |w, f| e2m1(w * f, even, true)),
        (MicroCode::Mxfp4, true) => code_groups::<32>(values, factors, coded, |w, f| e2m1(w / f, &TIES_DOWN, false)),
        (MicroCode::Mxfp4, false) => code_groups::<32>(values, factors, coded, |w, f| e2m1(w * f, even, true)),
        (MicroCode::Mxfp8, true) => code_groups::<32>(values, factors, coded, |w, f| e4m3_from_f32(w / f)),
        (MicroCode::Mxfp8, false) => code_groups::<32>(values, factors, coded, |w, f| e4m3_from_f32(w * f)),
    }
}

/// Thresholds for a quotient that the reference rounds to the weight's dtype first.
pub(in crate::kernel) fn thresholds_before(float: Float) -> [f32; 7] {
    match float {
        Float::Bf16 => before_rounding(TIES_DOWN, 8),
        Float::F16 => before_rounding(TIES_DOWN, 11),
        Float::F32 => TIES_DOWN,
    }
}

#[inline(always)]
fn code_groups<const GROUP: usize>(
    values: &[f32],
    factors: &[f32; GROUPS],
    coded: &mut [u8],
    code: impl Fn(f32, f32) -> u8,
) {
    let groups = values.as_chunks::<GROUP>().0.iter().zip(coded.as_chunks_mut::<GROUP>().0);
    for ((group, coded), &factor) in groups.zip(factors) {
        for i in 0..GROUP {
            coded[i] = code(group[i], factor);
        }
    }
}

#[inline(always)]
fn e2m1(x: f32, thresholds: &[f32; 7], signed_zero: bool) -> u8 {
    let index = fp4::index(x.abs(), thresholds);
    let sign = (x.to_bits() >> 28) & 8;
    let sign = if signed_zero || index != 0 { sign } else { 0 };
    ((index | sign) & 15) as u8
}

#[cold]
fn unusual_groups(job: &Micro, values: &[f32], bytes: &mut [u8; GROUPS], coded: &mut [u8]) {
    let size = job.code.group_size();
    let groups = values.chunks_exact(size).zip(coded.chunks_exact_mut(size));
    for ((group, coded), byte) in groups.zip(bytes) {
        if any_unusual(job, group) {
            *byte = match job.flavour {
                Flavour::Cpu => unusual_cpu(job, group, coded),
                Flavour::Metal => unusual_metal(job, group, coded),
            };
        }
    }
}

/// MLX on x86. The MX exponent of NaN and infinity is the integer conversion's -2^31: the power is
/// zero, every element becomes an infinity or NaN, and the byte is what is left of -2^31 + 127 in
/// the weight's dtype. nvfp4 saturates its scale and goes on.
fn unusual_cpu(job: &Micro, group: &[f32], coded: &mut [u8]) -> u8 {
    match job.code {
        MicroCode::Mxfp4 => coded.fill(0),
        MicroCode::Mxfp8 => group.iter().zip(coded).for_each(|(w, q)| *q = divided_by_zero(job.computed, *w)),
        MicroCode::Nvfp4 => {
            let all = group.iter().map(|w| w.abs());
            let largest = all.fold(0.0, |a: f32, w| if a.is_nan() || w.is_nan() { f32::NAN } else { a.max(w) });
            let byte = e4m3_from_f32(rounded(job.computed, largest / job.code.largest()));
            let value = e4m3_to_f32(byte);
            group.iter().zip(coded).for_each(|(w, q)| *q = first_nearest(rounded(job.computed, w / value)));
            return byte;
        }
    }
    if job.computed == Float::F32 { 128 } else { 0 }
}

/// ±448 of `w / 0`. The NaN of 0 / 0 is negative on x86, and bfloat16 drops the sign of a NaN.
fn divided_by_zero(float: Float, w: f32) -> u8 {
    let no_sign = float == Float::Bf16 && (w == 0.0 || w.is_nan());
    let negative = w == 0.0 || w.is_sign_negative();
    if negative && !no_sign { 0xfe } else { 0x7e }
}

fn rounded(float: Float, x: f32) -> f32 {
    match float {
        Float::Bf16 => bf16_to_f32(bf16_from_f32(x)),
        Float::F16 => f16_to_f32(f16_from_f32(x)),
        Float::F32 => x,
    }
}

/// The first of the sixteen table entries at the least distance, NaN being at none.
fn first_nearest(x: f32) -> u8 {
    let mut best = (x - MAGNITUDES[0]).abs();
    let mut code = 0;
    for candidate in 1..16u8 {
        let distance = (x - fp4::e2m1_to_f32(candidate)).abs();
        if distance < best {
            (best, code) = (distance, candidate);
        }
    }
    code
}

/// The kernel text: the maximum passes NaN over, an infinite maximum has byte 255 and factor 0, and
/// the code of a NaN is the largest magnitude.
fn unusual_metal(job: &Micro, group: &[f32], coded: &mut [u8]) -> u8 {
    let largest = group.iter().map(|w| w.abs()).fold(f32::NAN, f32::max);
    let mut one = Scales { factor: [0.0; GROUPS], byte: [0; GROUPS] };
    scale(job, &[largest; GROUPS], &mut one);
    let endless = !largest.is_finite() && job.code != MicroCode::Nvfp4;
    let factor = if endless { 0.0 } else { one.factor[0] };
    for (w, q) in group.iter().zip(coded) {
        let x = w * factor;
        *q = match job.code {
            MicroCode::Mxfp8 => e4m3_from_f32(if x.is_nan() { f32::NAN.copysign(*w) } else { x }),
            _ if x.is_nan() => 7,
            _ => e2m1(x, &TIES_EVEN, true),
        };
    }
    if endless { 255 } else { one.byte[0] }
}

/// `value(code) * value(scale)`, a product that f32 holds exactly in its normal range.
#[inline(always)]
pub(in crate::kernel) fn dequantize<S: Sixteen>(lanes: S, job: &Micro, codes: &[u8], scales: &[u8], out: &mut [f32]) {
    let (group, bits) = (job.code.group_size(), job.code.bits());
    let mut coded = [0u8; BLOCK];
    let mut factors = [0f32; GROUPS];
    let blocks = out.chunks_mut(BLOCK).zip(codes.chunks(BLOCK / 8 * bits as usize));
    for ((values, codes), scales) in blocks.zip(scales.chunks(BLOCK / group)) {
        let coded = &mut coded[..values.len()];
        unpack(bits, codes, coded);
        match job.code {
            MicroCode::Nvfp4 => each(scales, &mut factors, e4m3_to_f32),
            MicroCode::Mxfp4 | MicroCode::Mxfp8 => each(scales, &mut factors, e8m0_to_f32),
        }
        match job.code {
            MicroCode::Mxfp4 => decode::<S, 2>(lanes, coded, &factors, values),
            MicroCode::Nvfp4 => decode::<S, 1>(lanes, coded, &factors, values),
            MicroCode::Mxfp8 => {
                each(coded, values, e4m3_to_f32);
                multiply(lanes, &factors, values);
            }
        }
    }
}

#[inline(always)]
fn each(codes: &[u8], values: &mut [f32], value: impl Fn(u8) -> f32) {
    for (v, &code) in values.iter_mut().zip(codes) {
        *v = value(code);
    }
}

/// Groups of e2m1, each of so many sixteens.
#[inline(always)]
fn decode<S: Sixteen, const SIXTEENS: usize>(lanes: S, coded: &[u8], factors: &[f32], values: &mut [f32]) {
    let groups = values.as_chunks_mut::<LANES>().0.as_chunks_mut::<SIXTEENS>().0;
    let coded = coded.as_chunks::<LANES>().0.as_chunks::<SIXTEENS>().0;
    for ((values, coded), &factor) in groups.iter_mut().zip(coded).zip(factors) {
        for (values, coded) in values.iter_mut().zip(coded) {
            lanes.store(lanes.times(lanes.pick(&E2M1, coded), factor), values);
        }
    }
}

/// The value of each code of e2m1.
const E2M1: [f32; LANES] = {
    let mut all = [0.0; LANES];
    let mut code = 0;
    while code < 16 {
        all[code as usize] = fp4::e2m1_to_f32(code);
        code += 1;
    }
    all
};

/// Multiplies groups of two sixteens, each by its factor.
#[inline(always)]
fn multiply<S: Sixteen>(lanes: S, factors: &[f32], values: &mut [f32]) {
    let groups = values.as_chunks_mut::<LANES>().0.as_chunks_mut::<2>().0;
    for (values, &factor) in groups.iter_mut().zip(factors) {
        for values in values {
            lanes.store(lanes.times(lanes.load(values), factor), values);
        }
    }
}
