//! Sixteen f32 at a time: what bodies are written over where the compiler, left to itself, keeps no
//! vectors in registers (running sums) or finds no instruction (tables).
//!
//! Always: the same bits from every implementation.

use super::{ROUNDER, larger, smaller};

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

    /// Whole numbers, half to even, of what is held to `0..=top`, which is below 2^22; 0 for NaN.
    fn nearest(self, values: Self::Values, top: f32) -> Self::Values;

    /// The entries of a table by the low four bits of codes.
    fn pick(self, table: &[f32; LANES], codes: &[u8; LANES]) -> Self::Values;

    /// Each times the same.
    fn times(self, values: Self::Values, factor: f32) -> Self::Values;

    /// The sum of each sixteen by [`halves`].
    fn halves(self, sums: &[[f32; LANES]; LANES]) -> [f32; LANES];
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
}
