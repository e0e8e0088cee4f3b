//! Affine codes without a division for each element, where that is sure to give the same codes.
//!
//! The code of w is `a = (w - bias) / scale`, rounded twice on the way and then to a whole number. A
//! group's bias is a whole number of its scales, n of them, so that `w * (1 / scale) - n` is nearly a. In
//! f32, that plus a [`origin`] between `2^(bits+1)` and its double has whole numbers and [`fraction`] bits
//! below them at fixed places: a is read off the bits.
//!
//! How near: u being the last of these bits, `2^(bits-22)`, `1 / scale`, n, `w - bias`, the reference's
//! quotient and the product are each off by at most `2^(bits-24)`, a quarter of u, and the sum by half of
//! u: 7/4 u together, and less where product and sum are rounded at once. The origin has one half and
//! 2 u in it, so that its whole numbers are `floor(a + 1/2)` wherever the fraction has reached 4 u: a is
//! not near a tie then, and all rules for ties agree. Where any bit of the fraction but the last two is
//! set, the code is therefore sure; elsewhere the element is divided.
//!
//! Always: n and a are at most `2^bits` (see [`Steps::of`]) and a at least -1/2, so that nothing leaves its
//! field; a whole number above the highest code stands for the highest.

use crate::{
    kernel::{Affine, QuantizeAffine},
    num::{bf16_from_f32, f16_from_f32},
    tensor::Float,
};

use super::{
    SIGNED_ROUNDER,
    affine::{Fits, fit, start},
    larger, narrow,
    sixteen::LANES,
    smaller,
};

/// The bytes of 32 elements of two bytes.
pub(in crate::kernel) type Line = [u8; 64];
/// Sixteen groups of so many lines.
pub(in crate::kernel) type Groups<const LINES: usize> = [[Line; LINES]; LANES];

/// The bits below the whole numbers.
pub(in crate::kernel) const fn fraction(bits: u32) -> u32 {
    22 - bits
}

/// Those of the bits of a sum one of which is set where its code is sure.
const fn sure(bits: u32) -> u32 {
    (1 << fraction(bits)) - 4
}

/// What stands for a code of zero: a power of two, a half for rounding and twice the bound.
const fn origin(bits: u32) -> f32 {
    let power = (1u32 << (bits + 1)) as f32;
    power + 0.5 + f32::from_bits((127 + 1 - fraction(bits)) << 23)
}

/// Scales below it have normal reciprocals, and room to spare.
const LARGE: f32 = 1e30;

/// Of sixteen groups: `w * reciprocal + offset` holds the code of w.
#[repr(C, align(64))]
pub(in crate::kernel) struct Steps {
    pub(in crate::kernel) reciprocal: [f32; LANES],
    pub(in crate::kernel) offset: [f32; LANES],
    /// The bits one of which is set where a code is sure: none for a group all of whose elements are divided.
    pub(in crate::kernel) sure: [u32; LANES],
}

impl Steps {
    /// Of groups whose elements are finite.
    ///
    /// A group with zero between its extremes has n of at most the highest code, and a is at most
    /// `highest * n / (n - 1/2)` with n from `highest / 2` on: `2^bits`. Groups far from zero have larger n
    /// and are not sure.
    #[inline(always)]
    fn of(job: &Affine, fits: &Fits<LANES>) -> Self {
        let mut steps = Self { reciprocal: [0.0; LANES], offset: [0.0; LANES], sure: [0; LANES] };
        let most = (1u32 << job.bits) as f32;
        for i in 0..LANES {
            let reciprocal = 1.0 / fits.scale[i];
            let edge = (fits.bias[i] * reciprocal + SIGNED_ROUNDER) - SIGNED_ROUNDER;
            steps.reciprocal[i] = reciprocal;
            steps.offset[i] = origin(job.bits) - edge;
            let bounded = (edge.abs() <= most) & (fits.scale[i].abs() < LARGE);
            steps.sure[i] = if bounded { sure(job.bits) } else { 0 };
        }
        steps
    }
}

/// `body::affine::quantize` of elements of two bytes, sixteen groups of so many lines at a time.
///
/// `extremes` leaves each group's maximum in `scale` and its minimum in `bias`, and says whether all
/// elements are finite; `code` packs the codes. What is left of sixteen groups, and sixteen groups with
/// elements that are not finite, are given to `body`.
#[inline(always)]
pub(in crate::kernel) fn sixteens<const LINES: usize>(
    job: &Affine,
    src: &[u8],
    [codes, scales, biases]: [&mut [u8]; 3],
    body: QuantizeAffine,
    extremes: impl Fn(&Groups<LINES>, &mut Fits<LANES>) -> bool,
    code: impl Fn(&Groups<LINES>, &Fits<LANES>, &Steps, &mut [u8]),
) {
    let (blocks, rest) = src.as_chunks::<64>().0.as_chunks::<LINES>().0.as_chunks::<LANES>();
    let per_block = [LANES * LINES * 4 * job.bits as usize, LANES * job.stored.size()];
    let (codes, last_codes) = codes.split_at_mut(blocks.len() * per_block[0]);
    let (scales, last_scales) = scales.split_at_mut(blocks.len() * per_block[1]);
    let (biases, last_biases) = biases.split_at_mut(blocks.len() * per_block[1]);
    let parameters = scales.chunks_exact_mut(per_block[1]).zip(biases.chunks_exact_mut(per_block[1]));
    let (lowest, highest) = start(job);
    let mut fits = Fits { scale: [0.0; LANES], bias: [0.0; LANES] };
    let blocks = blocks.iter().zip(codes.chunks_exact_mut(per_block[0]));
    for ((block, codes), (scales, biases)) in blocks.zip(parameters) {
        if !extremes(block, &mut fits) {
            body(job, block.as_flattened().as_flattened(), codes, scales, biases);
            continue;
        }
        for i in 0..LANES {
            fits.bias[i] = smaller(fits.bias[i], lowest);
            fits.scale[i] = larger(fits.scale[i], highest);
        }
        fit(job, &mut fits);
        code(block, &fits, &Steps::of(job, &fits), codes);
        store(job.stored, &fits.scale, scales);
        store(job.stored, &fits.bias, biases);
    }
    body(job, rest.as_flattened().as_flattened(), last_codes, last_scales, last_biases);
}

/// [`narrow`] of sixteen, in loops of a length that the compiler knows.
#[inline(always)]
fn store(float: Float, values: &[f32; LANES], out: &mut [u8]) {
    match float {
        Float::Bf16 => store_halves(values, out, bf16_from_f32),
        Float::F16 => store_halves(values, out, f16_from_f32),
        Float::F32 => narrow(float, values, out),
    }
}

#[inline(always)]
fn store_halves(values: &[f32; LANES], out: &mut [u8], bits: impl Fn(f32) -> u16) {
    let mut halves = [0u16; LANES];
    for i in 0..LANES {
        halves[i] = bits(values[i]);
    }
    for out in out.as_chunks_mut::<2>().0.as_chunks_mut::<LANES>().0 {
        for i in 0..LANES {
            out[i] = halves[i].to_le_bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Flavour;

    /// The group of which these are the extremes.
    fn group(bits: u32, flavour: Flavour, max: f32, min: f32) -> (Fits<LANES>, Steps) {
        let job = Affine { bits, group: 64, float: Float::F32, stored: Float::F32, flavour };
        let mut fits = Fits { scale: [max; LANES], bias: [min; LANES] };
        fit(&job, &mut fits);
        let steps = Steps::of(&job, &fits);
        (fits, steps)
    }

    /// By the definition, in numbers that hold every half.
    fn code(bits: u32, flavour: Flavour, w: f32, fits: &Fits<LANES>) -> f64 {
        let steps = (w - fits.bias[0]) / fits.scale[0];
        let held = f64::from(larger(steps, 0.0)).min(f64::from((1u32 << bits) - 1));
        if flavour == Flavour::Metal { (held + 0.5).floor() } else { held.round_ties_even() }
    }

    /// Checks both ways to compute a sum; says whether the code was sure.
    fn check(bits: u32, flavour: Flavour, w: f32, (fits, steps): &(Fits<LANES>, Steps)) -> bool {
        let (factor, offset) = (steps.reciprocal[0], steps.offset[0]);
        [w * factor + offset, w.mul_add(factor, offset)].into_iter().fold(false, |_, sum| {
            let whole = ((sum.to_bits() & 0x7f_ffff) >> fraction(bits)).min((1 << bits) - 1);
            let known = sum.to_bits() & steps.sure[0] != 0;
            let expected = code(bits, flavour, w, fits);
            assert!(!known || f64::from(whole) == expected, "{bits} bits, {flavour:?}, {w:e} in {:e}", fits.scale[0]);
            known
        })
    }

    #[test]
    fn a_sure_code_is_the_one_of_the_division() {
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u32 << 24) as f32
        };
        for bits in [2, 3, 4, 5, 6, 8] {
            let (mut known, mut all) = (0, 0);
            for i in 0..4000u32 {
                let flavour = if i % 2 == 0 { Flavour::Cpu } else { Flavour::Metal };
                let size = f32::from_bits((60 + i % 150) << 23);
                let (high, low) = (size * (1.0 + random()), -size * (1.0 + random()) * random());
                // Also groups far from zero, of one value, and with only zeros beside it.
                let low = match i % 16 {
                    13 => high * (0.5 + random() / 2.0),
                    14 => high,
                    15 => 0.0,
                    _ => low,
                };
                let (max, min) = if i % 4 < 2 { (high, low) } else { (-low, -high) };
                let group = group(bits, flavour, max, min);
                for _ in 0..64 {
                    known += u32::from(check(bits, flavour, min + (max - min) * random(), &group));
                    all += 1;
                }
                // Ties, and what lies beside them.
                for tie in 0..1u32 << bits {
                    let w = (tie as f32 + 0.5) * group.0.scale[0] + group.0.bias[0];
                    for near in [w.next_down().next_down(), w.next_down(), w, w.next_up(), w.next_up().next_up()] {
                        check(bits, flavour, near.clamp(min, max), &group);
                    }
                }
                for edge in [min, max, 0f32.clamp(min, max)] {
                    check(bits, flavour, edge, &group);
                }
            }
            assert!(known > all / 10 * 8, "{bits} bits: {known} of {all} codes are sure");
        }
    }
}
