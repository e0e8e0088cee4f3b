//! Eight-bit floats: e4m3 (values and NV scales) and e8m0 (the scales of the MX formats).
//!
//! Always: conversions to e4m3 saturate, as those of the quantizers do; the byte 0x7F is read as
//! NaN and never written. Knows no group.

/// Rounds to e4m3 (`F8_E4M3FN`), half to even. Magnitudes from 448 on, infinities and NaN become
/// 448 with the sign kept: the rule of MLX on every device (`mlx/types/fp8` there).
#[inline(always)]
#[must_use]
pub const fn e4m3_from_f32(x: f32) -> u8 {
    const MAX: u32 = 543 << 21; // 448
    const MIN_NORMAL: u32 = 121 << 23; // 2^-6
    const UNIT: u32 = 141 << 23; // 2^14, whose last place is e4m3's subnormal step 2^-9
    let bits = x.to_bits();
    let abs = bits & 0x7fff_ffff;
    let subnormal = (f32::from_bits(abs) + f32::from_bits(UNIT)).to_bits().wrapping_sub(UNIT);
    let odd = (abs >> 20) & 1;
    let normal = abs.wrapping_sub(120 << 23).wrapping_add(0x7ffff + odd) >> 20;
    let finite = if abs < MIN_NORMAL { subnormal } else { normal };
    let magnitude = if abs >= MAX { 0x7e } else { finite };
    (((magnitude & 0x7f) | ((bits >> 24) & 0x80)) & 0xff) as u8
}

/// The value of an e4m3, exactly; 0x7F and 0xFF are NaN.
#[inline(always)]
#[must_use]
pub const fn e4m3_to_f32(x: u8) -> f32 {
    // The sign is the highest bit, exponent and mantissa stand in the place of f32's.
    let placed = ((x.cast_signed() as i32) << 20).cast_unsigned() & 0x87f0_0000;
    let sign = placed & 0x8000_0000;
    let value = f32::from_bits(placed) * f32::from_bits((120 + 127) << 23);
    if placed == sign | 0x07f0_0000 { f32::from_bits(sign | 0x7fc0_0000) } else { value }
}

/// The value of an e8m0 scale, `2^(x - 127)`: 0 is the subnormal 2^-127, and 255 is infinity, as
/// MLX reads it (the OCP specification calls it NaN).
#[inline(always)]
#[must_use]
pub const fn e8m0_to_f32(x: u8) -> f32 {
    f32::from_bits(if x == 0 { 1 << 22 } else { (x as u32) << 23 })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By the definition: sign, four exponent bits with bias 7, three of mantissa.
    fn defined(x: u8) -> f64 {
        let (e, m) = (i32::from(x >> 3 & 15), f64::from(x & 7));
        let v = if e == 0 { m * 2f64.powi(-9) } else { (8.0 + m) * 2f64.powi(e - 10) };
        if x & 0x80 != 0 { -v } else { v }
    }

    #[test]
    fn e4m3_values_are_the_defined_ones_and_come_back() {
        for x in 0..=u8::MAX {
            if x & 0x7f == 0x7f {
                assert!(e4m3_to_f32(x).is_nan());
                continue;
            }
            assert_eq!(f64::from(e4m3_to_f32(x)), defined(x), "{x:02x}");
            assert_eq!(e4m3_from_f32(e4m3_to_f32(x)), x, "{x:02x}");
        }
    }

    #[test]
    fn e4m3_rounds_half_to_even_between_all_neighbours() {
        for x in 0..0x7eu8 {
            let (low, high) = (e4m3_to_f32(x), e4m3_to_f32(x + 1));
            let middle = (low + high) / 2.0;
            let even = if x % 2 == 0 { x } else { x + 1 };
            assert_eq!(e4m3_from_f32(middle), even, "middle above {x:02x}");
            assert_eq!(e4m3_from_f32(middle.next_down()), x);
            assert_eq!(e4m3_from_f32(middle.next_up()), x + 1);
            assert_eq!(e4m3_from_f32(-middle), even | 0x80);
        }
    }

    #[test]
    fn e4m3_saturates() {
        for x in [448.0, 464.0, 1e30, f32::INFINITY, f32::from_bits(0x7fc0_0000)] {
            assert_eq!(e4m3_from_f32(x), 0x7e, "{x}");
            assert_eq!(e4m3_from_f32(-x), 0xfe, "-{x}");
        }
    }

    #[test]
    fn e8m0_is_a_power_of_two() {
        for x in 0..255u8 {
            assert_eq!(f64::from(e8m0_to_f32(x)), 2f64.powi(i32::from(x) - 127));
        }
        assert_eq!(e8m0_to_f32(255), f32::INFINITY);
    }
}
