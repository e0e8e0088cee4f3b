//! Number formats that no crate rounds as the quantizers of the field do.
//!
//! Always: every function here is a total function of bits, branch-free enough for the compiler to
//! run it on vectors, and says what becomes of NaN. The same bits go in and out on every CPU.
//! Knows no group, no scale and no tensor. Where the `half` crate agrees it is the test's oracle;
//! it differs in the NaN that it writes.

pub mod book;
pub mod codes;
pub mod fp4;
pub mod fp8;

/// Rounds to bfloat16, half to even. Every NaN becomes `0x7FC0`, the sign dropped, as MLX stores it.
#[inline(always)]
#[must_use]
pub const fn bf16_from_f32(x: f32) -> u16 {
    let bits = x.to_bits();
    let odd = (bits >> 16) & 1;
    let rounded = (bits.wrapping_add(0x7fff + odd) >> 16) as u16;
    if bits & 0x7fff_ffff > 0x7f80_0000 { 0x7fc0 } else { rounded }
}

/// The value of a bfloat16, exactly; the bits of a NaN are kept.
#[inline(always)]
#[must_use]
pub const fn bf16_to_f32(x: u16) -> f32 {
    f32::from_bits((x as u32) << 16)
}

/// Rounds to IEEE half, half to even, overflow to infinity. Every NaN becomes `0x7D00` with the
/// sign kept, as MLX stores it on x86.
#[inline(always)]
#[must_use]
pub const fn f16_from_f32(x: f32) -> u16 {
    const MIN_NORMAL: u32 = (127 - 14) << 23;
    const OVERFLOW: u32 = 0x477f_f000; // 65520, halfway from the largest half to the next power of two
    let bits = x.to_bits();
    let abs = bits & 0x7fff_ffff;
    let odd = (abs >> 13) & 1;
    let normal = abs.wrapping_sub(112 << 23).wrapping_add(0xfff + odd) >> 13;
    // 0.5 has the units of the smallest half as its last place: the addition rounds.
    let subnormal = (f32::from_bits(abs) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let finite = if abs < MIN_NORMAL { subnormal } else { normal };
    let infinite = if abs > 0x7f80_0000 { 0x7d00 } else { 0x7c00 };
    let magnitude = if abs >= OVERFLOW { infinite } else { finite };
    (((magnitude & 0x7fff) | ((bits >> 16) & 0x8000)) & 0xffff) as u16
}

/// The value of an IEEE half, exactly; a NaN keeps sign and payload and becomes quiet.
#[inline(always)]
#[must_use]
pub const fn f16_to_f32(x: u16) -> f32 {
    let sign = ((x & 0x8000) as u32) << 16;
    let abs = (x & 0x7fff) as u32;
    let normal = (abs << 13) + (112 << 23);
    let subnormal = (abs as f32 * f32::from_bits((127 - 24) << 23)).to_bits();
    let quiet = if abs > 0x7c00 { 0x40_0000 } else { 0 };
    let finite = if abs < 0x400 { subnormal } else { normal };
    let magnitude = if abs >= 0x7c00 { (abs << 13) | 0x7f80_0000 | quiet } else { finite };
    f32::from_bits(sign | magnitude)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_widen_as_the_half_crate_does() {
        for bits in 0..=u16::MAX {
            let (b, h) = (half::bf16::from_bits(bits).to_f32(), half::f16::from_bits(bits).to_f32());
            assert!(bf16_to_f32(bits).to_bits() == b.to_bits() || b.is_nan(), "bf16 {bits:04x}");
            assert_eq!(bf16_to_f32(bits).is_nan(), b.is_nan());
            assert!(f16_to_f32(bits).to_bits() == h.to_bits() || h.is_nan(), "f16 {bits:04x}");
            assert_eq!(f16_to_f32(bits).is_nan(), h.is_nan());
        }
        assert_eq!(f16_to_f32(0x7c01).to_bits(), 0x7fc0_2000, "mlx quiets and keeps the payload");
        assert_eq!(f16_to_f32(0xffff).to_bits(), 0xffff_e000);
    }

    /// Around every half and every boundary between two halves: the value, the middle, and their
    /// neighbours.
    #[test]
    fn f32_narrows_as_the_half_crate_does() {
        for hi in 0..=u16::MAX {
            for lo in [0, 1, 0x0fff, 0x1000, 0x1001, 0x2fff, 0x3000, 0x7fff, 0x8000, 0x8001, 0xd000, 0xffff] {
                let x = f32::from_bits(u32::from(hi) << 16 | lo);
                let (b, h) = (half::bf16::from_f32(x).to_bits(), half::f16::from_f32(x).to_bits());
                let sign = if x.is_sign_negative() { 0x8000 } else { 0 };
                assert_eq!(bf16_from_f32(x), if x.is_nan() { 0x7fc0 } else { b }, "bf16 of {x:e}");
                assert_eq!(f16_from_f32(x), if x.is_nan() { sign | 0x7d00 } else { h }, "f16 of {x:e}");
            }
        }
    }
}
