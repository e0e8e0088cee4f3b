//! Four-bit floats: e2m1, and the two ways in which quantizers round to it.
//!
//! A code is a sign bit (8) and an index into [`MAGNITUDES`]. The index of a magnitude is the number
//! of thresholds below it, so that a rounding rule is seven numbers, and rounding the argument to a
//! shorter float first is seven other numbers. Knows no scale and no packing.

/// The magnitudes of e2m1 by index.
pub const MAGNITUDES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

/// The middles between neighbouring magnitudes. A magnitude that *exceeds* the i-th is rounded to
/// index i+1 at least: a tie goes to the smaller magnitude. MLX's CPU rule, where the code is the
/// first of the nearest table entries.
pub const TIES_DOWN: [f32; 7] = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0];

/// [`TIES_DOWN`] with every second middle one step lower: a tie goes to the even index. The rule of
/// MLX on Metal and CUDA, and of compressed-tensors.
pub const TIES_EVEN: [f32; 7] = [0.25, 0.75f32.next_down(), 1.25, 1.75f32.next_down(), 2.5, 3.5f32.next_down(), 5.0];

/// The thresholds that tell of an exact `x` what `thresholds` tell of `x` rounded to a float of
/// `precision` significant bits, half to even.
///
/// Holds for thresholds that are even in that precision, as the middles are (they have at most three
/// significant bits): the value halfway to their successor still rounds down to them.
#[must_use]
pub const fn before_rounding(thresholds: [f32; 7], precision: u32) -> [f32; 7] {
    let mut out = thresholds;
    let mut i = 0;
    while i < 7 {
        out[i] = f32::from_bits(thresholds[i].to_bits() + (1 << (23 - precision)));
        i += 1;
    }
    out
}

/// Index of a magnitude: how many thresholds it exceeds. NaN has index 0.
#[inline(always)]
#[must_use]
pub fn index(magnitude: f32, thresholds: &[f32; 7]) -> u32 {
    thresholds.iter().map(|&t| u32::from(magnitude > t)).sum()
}

/// The value of a code; bits above the fourth are not looked at.
#[inline(always)]
#[must_use]
pub const fn e2m1_to_f32(code: u8) -> f32 {
    let magnitude = MAGNITUDES[(code & 7) as usize];
    if code & 8 == 0 { magnitude } else { -magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::num::{bf16_from_f32, bf16_to_f32};

    #[test]
    fn values_come_back_under_both_rules() {
        for code in 0..16u8 {
            let x = e2m1_to_f32(code);
            assert_eq!(x.is_sign_negative(), code >= 8);
            for t in [&TIES_DOWN, &TIES_EVEN] {
                assert_eq!(index(x.abs(), t), u32::from(code & 7));
            }
        }
    }

    #[test]
    fn middles_go_down_or_to_even() {
        for (i, m) in (0u32..).zip(TIES_DOWN) {
            assert_eq!(index(m, &TIES_DOWN), i);
            assert_eq!(index(m.next_up(), &TIES_DOWN), i + 1);
            assert_eq!(index(m, &TIES_EVEN), i + i % 2);
            assert_eq!(index(m.next_down(), &TIES_EVEN), i);
        }
    }

    /// MLX's own procedure on every non-negative bfloat16 up to 16: the first nearest entry, with
    /// the distance rounded to bfloat16.
    #[test]
    fn thresholds_are_the_first_minimum() {
        for bits in 0..=0x4180u16 {
            let x = bf16_to_f32(bits);
            let distance = |m: &f32| bf16_to_f32(bf16_from_f32((x - m).abs()));
            let nearest = MAGNITUDES.iter().map(distance).fold(f32::INFINITY, f32::min);
            let first = MAGNITUDES.iter().position(|m| distance(m) == nearest);
            assert_eq!(Some(index(x, &TIES_DOWN) as usize), first, "{x}");
        }
    }

    #[test]
    fn thresholds_before_rounding_agree_with_rounding() {
        let early = before_rounding(TIES_DOWN, 8);
        for bits in (0x3e00_0000u32..0x40e0_0000).step_by(0x100) {
            for x in [bits, bits + 1, bits + 0xff].map(f32::from_bits) {
                assert_eq!(index(x, &early), index(bf16_to_f32(bf16_from_f32(x)), &TIES_DOWN), "{x}");
            }
        }
    }
}
