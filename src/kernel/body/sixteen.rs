//! Sixteen f32 at a time: what bodies are written over where the compiler, left to itself, keeps no
//! vectors in registers (running sums) or finds no instruction (tables).
//!
//! Always: the same bits from every implementation, but of [`Sixteen::pair`] beyond 16 bits, and so of its sums: groups with
//! such elements are not finite, and what is found for them is not taken.

use super::{ROUNDER, SIGNED_ROUNDER, larger, smaller};

/// How many: the lanes of one 512-bit register.
pub(in crate::kernel) const LANES: usize = 16;

/// Sixteen f32 in the registers of a machine. A value of the implementing type stands for the
/// features that it needs, so that it can be made only where they are.
pub(in crate::kernel) trait Sixteen: Copy {
    /// The registers.
    type Values: Copy;

    fn load(self, from: &[f32; LANES]) -> Self::Values;

    fn store(self, values: Self::Values, to: &mut [f32; LANES]);

    /// `sum + a * b`, the product rounded first.
    fn add_product(self, sum: Self::Values, a: Self::Values, b: Self::Values) -> Self::Values;

    fn add(self, a: Self::Values, b: Self::Values) -> Self::Values;

    fn subtract(self, a: Self::Values, b: Self::Values) -> Self::Values;

    fn product(self, a: Self::Values, b: Self::Values) -> Self::Values;

    fn quotient(self, a: Self::Values, b: Self::Values) -> Self::Values;

    /// Whole numbers, half to even, of what is held to `0..=top`, which is below 2^22; 0 for NaN.
    fn nearest(self, values: Self::Values, top: f32) -> Self::Values;

    /// The entries of a table by the low four bits of codes.
    fn pick(self, table: &[f32; LANES], codes: &[u8; LANES]) -> Self::Values;

    /// Each times the same.
    fn times(self, values: Self::Values, factor: f32) -> Self::Values;

    /// The sum of each sixteen by [`halves`].
    fn halves(self, sums: &[[f32; LANES]; LANES]) -> [f32; LANES];

    /// The one where `a` is less than `b`, the other elsewhere.
    fn where_less(self, a: Self::Values, b: Self::Values, one: Self::Values, other: Self::Values) -> Self::Values;

    /// Rows become columns.
    fn turn(self, square: &mut [[f32; LANES]; LANES]);

    /// The whole numbers nearest to the values of two, half to even, in the low and in the high half of words; what they are of
    /// values beyond 16 bits is left open.
    fn pair(self, low: Self::Values, high: Self::Values) -> [u32; LANES];

    /// Of the 16-bit halves of words, for each place the sum and the sum of squares, modulo 2^32.
    fn squares(self, pairs: &[[u32; LANES]]) -> [[i32; LANES]; 2];

    /// Of the codes of 16-bit halves of words, for each place their sum, that of their products with what they are the codes
    /// of, and that of their squares, modulo 2^32. 256 pairs of codes up to 127, or 64 up to 255, are not too many.
    fn coded(self, pairs: &[[u32; LANES]], coding: &Coding) -> [[i32; LANES]; 3];
}

/// How 16-bit numbers become codes: `((y * ratio / 2^15) + start) / 2^shift`, the product rounded, the quotient cut off, held
/// to a range. Each place holds the same 16 bits twice.
pub(in crate::kernel) struct Coding {
    pub(in crate::kernel) ratio: [u32; LANES],
    pub(in crate::kernel) start: [u32; LANES],
    pub(in crate::kernel) least: [u32; LANES],
    pub(in crate::kernel) most: [u32; LANES],
    pub(in crate::kernel) shift: u32,
}

impl Coding {
    /// The code of a number of a place.
    #[inline(always)]
    pub(in crate::kernel) fn of(&self, i: usize, y: i32) -> i32 {
        let [ratio, start, least, most] = [&self.ratio, &self.start, &self.least, &self.most].map(|each| low(each[i]));
        let exact = ((y * ratio + 0x4000) >> 15) + start;
        (exact >> self.shift).max(least).min(most)
    }
}

/// The low 16 bits, with their sign.
#[inline(always)]
fn low(word: u32) -> i32 {
    word.cast_signed() << 16 >> 16
}

/// The high 16 bits, with their sign.
#[inline(always)]
fn high(word: u32) -> i32 {
    word.cast_signed() >> 16
}

/// The sum of sixteen: the upper half on the lower one, until one is left.
#[inline(always)]
fn halves(mut sums: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            sums[i] += sums[i + width];
        }
        width /= 2;
    }
    sums[0]
}

/// Sixteen f32 without any register.
#[derive(Clone, Copy)]
pub(in crate::kernel) struct Plain;

impl Sixteen for Plain {
    type Values = [f32; LANES];

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> [f32; LANES] {
        *from
    }

    #[inline(always)]
    fn store(self, values: [f32; LANES], to: &mut [f32; LANES]) {
        *to = values;
    }

    #[inline(always)]
    fn add_product(self, mut sum: [f32; LANES], a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        for i in 0..LANES {
            sum[i] += a[i] * b[i];
        }
        sum
    }

    #[inline(always)]
    fn add(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        std::array::from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn subtract(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        std::array::from_fn(|i| a[i] - b[i])
    }

    #[inline(always)]
    fn product(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        std::array::from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn quotient(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        std::array::from_fn(|i| a[i] / b[i])
    }

    #[inline(always)]
    fn nearest(self, values: [f32; LANES], top: f32) -> [f32; LANES] {
        values.map(|value| (smaller(larger(value, 0.0), top) + ROUNDER) - ROUNDER)
    }

    #[inline(always)]
    fn pick(self, table: &[f32; LANES], codes: &[u8; LANES]) -> [f32; LANES] {
        codes.map(|code| table[usize::from(code & 15)])
    }

    #[inline(always)]
    fn times(self, values: [f32; LANES], factor: f32) -> [f32; LANES] {
        values.map(|value| value * factor)
    }

    #[inline(always)]
    fn halves(self, sums: &[[f32; LANES]; LANES]) -> [f32; LANES] {
        sums.map(halves)
    }

    #[inline(always)]
    fn where_less(self, a: [f32; LANES], b: [f32; LANES], one: [f32; LANES], other: [f32; LANES]) -> [f32; LANES] {
        std::array::from_fn(|i| if a[i] < b[i] { one[i] } else { other[i] })
    }

    #[inline(always)]
    fn turn(self, square: &mut [[f32; LANES]; LANES]) {
        *square = std::array::from_fn(|row| std::array::from_fn(|col| square[col][row]));
    }

    #[inline(always)]
    fn pair(self, low: [f32; LANES], high: [f32; LANES]) -> [u32; LANES] {
        let whole = |x: f32| (x + SIGNED_ROUNDER).to_bits();
        std::array::from_fn(|i| whole(low[i]) & 0xffff | whole(high[i]) << 16)
    }

    #[inline(always)]
    fn squares(self, pairs: &[[u32; LANES]]) -> [[i32; LANES]; 2] {
        let mut sums = [[0i32; LANES]; 2];
        for pair in pairs {
            for i in 0..LANES {
                let [a, b] = [low(pair[i]), high(pair[i])];
                sums[0][i] = sums[0][i].wrapping_add(a + b);
                sums[1][i] = sums[1][i].wrapping_add((a * a).wrapping_add(b * b));
            }
        }
        sums
    }

    #[inline(always)]
    fn coded(self, pairs: &[[u32; LANES]], coding: &Coding) -> [[i32; LANES]; 3] {
        let mut sums = [[0i32; LANES]; 3];
        for pair in pairs {
            for i in 0..LANES {
                for y in [low(pair[i]), high(pair[i])] {
                    let code = coding.of(i, y);
                    sums[0][i] = sums[0][i].wrapping_add(code);
                    sums[1][i] = sums[1][i].wrapping_add(y.wrapping_mul(code));
                    sums[2][i] = sums[2][i].wrapping_add(code * code);
                }
            }
        }
        sums
    }
}
