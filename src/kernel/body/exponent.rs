//! The exponent of an MX scale: which power of two stands for a group.
//!
//! The reference takes a logarithm, rounds it, and (since mlx 0.32.2) goes up where the power is too
//! small. Here it is integer arithmetic on the bits of the argument, so that no mathematics library
//! decides a byte:
//!
//! - *up*: the least power of two that is not below x. The rounded logarithm always lies between
//!   floor and ceiling, and the correction leaves the ceiling.
//! - *nearest*: the logarithm rounds to k + 1 from some significand on, near the square root of two.
//!   Where the computed logarithm, a float of few bits, *is* k + 1/2, the tie rule decides: that
//!   moves the significand by half a step of the logarithm to one side or the other. `STEPS` holds
//!   these significands by the magnitude of the logarithm and the precision it was rounded to.

use crate::{kernel::Flavour, tensor::Float};

/// Significands (fraction fields) from which the logarithm rounds up: if its computed value k + 1/2
/// rounds up, if it rounds down. Row i: |k + 1/2| in [2^(i-2), 2^(i-1)); `ceil((2^y - 1) * 2^23)` for
/// y = 1/2 -+ half a unit in the last place of such a number.
type Steps = [(u32, u32); 10];

/// For logarithms rounded to 8 bits. The last row is as precise as the f32 logarithm: from 128 on, a
/// bfloat16 cannot hold k + 1/2, and rounds it to even itself.
const STEPS_BF16: Steps = [
    (0x34_e598, 0x35_2455),
    (0x34_c642, 0x35_43bb),
    (0x34_87a6, 0x35_8298),
    (0x34_0aaf, 0x36_0094),
    (0x33_11c5, 0x36_fd92),
    (0x31_23f6, 0x38_fbb0),
    (0x2d_583f, 0x3d_08a4),
    (0x25_fed7, 0x45_672b),
    (0x18_37f1, 0x57_44fd),
    (0x35_04b5, 0x35_0532),
];

/// For logarithms rounded to 11 bits.
const STEPS_F16: Steps = [
    (0x35_0108, 0x35_08e0),
    (0x34_fd1c, 0x35_0ccb),
    (0x34_f545, 0x35_14a4),
    (0x34_e598, 0x35_2455),
    (0x34_c642, 0x35_43bb),
    (0x34_87a6, 0x35_8298),
    (0x34_0aaf, 0x36_0094),
    (0x33_11c5, 0x36_fd92),
    (0x31_23f6, 0x38_fbb0),
    (0x2d_583f, 0x3d_08a4),
];

/// For logarithms rounded to 24 bits.
const STEPS_F32: Steps = [
    (0x35_04f4, 0x35_04f4),
    (0x35_04f3, 0x35_04f4),
    (0x35_04f3, 0x35_04f4),
    (0x35_04f3, 0x35_04f5),
    (0x35_04f2, 0x35_04f6),
    (0x35_04f0, 0x35_04f8),
    (0x35_04ec, 0x35_04fc),
    (0x35_04e4, 0x35_0503),
    (0x35_04d4, 0x35_0513),
    (0x35_04b5, 0x35_0532),
];

/// Exponent and fraction field of a positive finite value, subnormals normalized.
#[inline(always)]
fn split(x: f32) -> (i32, u32) {
    let tiny = x < f32::MIN_POSITIVE;
    // 2^24 brings the smallest subnormal into the normal range.
    let normal = if tiny { x * 16_777_216.0 } else { x };
    let bits = normal.to_bits();
    let bias = if tiny { 127 + 24 } else { 127 };
    ((bits >> 23).cast_signed() - bias, bits & 0x7f_ffff)
}

/// The least e with `2^e >= x`, for positive finite x.
#[inline(always)]
pub(super) fn up(x: f32) -> i32 {
    let (exponent, fraction) = split(x);
    exponent + i32::from(fraction != 0)
}

/// The rounded logarithm of a positive finite x: computed in `float`; half to even on the CPU, half
/// away from zero on Metal.
#[inline(always)]
pub(super) fn nearest(x: f32, float: Float, flavour: Flavour) -> i32 {
    let (exponent, fraction) = split(x);
    let steps = match float {
        Float::Bf16 => &STEPS_BF16,
        Float::F16 => &STEPS_F16,
        Float::F32 => &STEPS_F32,
    };
    let tie_goes_up = match flavour {
        Flavour::Cpu => exponent & 1 != 0,
        Flavour::Metal => exponent >= 0,
    };
    let (if_up, if_down) = steps[row(exponent, tie_goes_up)];
    exponent + i32::from(fraction >= if tie_goes_up { if_up } else { if_down })
}

/// The row of [`Steps`] that says where logarithms near `exponent + 1/2` round.
#[inline(always)]
fn row(exponent: i32, below: bool) -> usize {
    // 2 * |k + 1/2|, at least 1: its bit length is the row, but for the narrower steps on that side
    // of one half that lies towards zero.
    let doubled = (2 * exponent + 1).unsigned_abs();
    let toward_zero = (exponent == 0 && below) || (exponent == -1 && !below);
    if toward_zero { 0 } else { (32 - doubled.leading_zeros()) as usize }
}

/// `2^e` for -149 <= e <= 127, subnormals included.
#[inline(always)]
pub(super) fn power_of_two(e: i32) -> f32 {
    let normal = (e + 127).cast_unsigned() << 23;
    let subnormal = 1u32 << ((e + 149).cast_unsigned() & 31);
    f32::from_bits(if e < -126 { subnormal } else { normal })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn up_is_the_least_power_not_below() {
        for e in -149..=127 {
            let p = power_of_two(e);
            assert_eq!(f64::from(p), 2f64.powi(e));
            assert_eq!(up(p), e);
            if e < 127 {
                assert_eq!(up(p.next_up()), e + 1);
            }
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "rounding is what it is for")]
    fn rounded(x: f64) -> f32 {
        x as f32
    }

    /// Against the definition with a logarithm in f64: away from the steps by more than its error.
    #[test]
    fn nearest_is_the_rounded_logarithm() {
        for e in -149..=126 {
            for i in 0..512u32 {
                let wanted = f64::from(power_of_two(e)) * (1.0 + f64::from(i) / 512.0);
                let x = rounded(wanted);
                if f64::from(x) != wanted {
                    continue; // not a subnormal f32
                }
                let log = rounded(wanted.log2());
                let found = |float, flavour| f64::from(nearest(x, float, flavour));
                assert_eq!(found(Float::F32, Flavour::Cpu), f64::from(log.round_ties_even()), "{x:e}");
                assert_eq!(found(Float::F32, Flavour::Metal), f64::from(log.round()), "{x:e}");
                let log = half::bf16::from_f32(log).to_f32();
                assert_eq!(found(Float::Bf16, Flavour::Cpu), f64::from(log.round_ties_even()), "{x:e}");
            }
        }
    }
}
