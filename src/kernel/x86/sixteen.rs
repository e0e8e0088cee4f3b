//! Sixteen f32 in the registers of AVX2 and of AVX-512, for the bodies that are written over them.
//!
//! Always: a value of [`Avx2`] or [`Avx512`] is made only in a function with the features, so that
//! who holds one may call functions with them.

mod avx2;
mod avx512;

use std::arch::x86_64::{__m256, __m512};

use crate::kernel::body::sixteen::{Coding, LANES, Sixteen};

/// A type that stands for features, and the functions of a room as its methods.
macro_rules! registers {
    ($name:ident, $room:ident, $features:literal, $values:ty) => {
        #[doc = concat!("The features ", $features, ".")]
        #[derive(Clone, Copy)]
        pub(super) struct $name(());

        impl $name {
            #[target_feature(enable = $features)]
            pub(super) fn new() -> Self {
                Self(())
            }
        }

        #[expect(unsafe_code, reason = "calls from undetected to detected code")]
        impl Sixteen for $name {
            type Values = $values;

            #[inline(always)]
            fn load(self, from: &[f32; LANES]) -> $values {
                // SAFETY: who made the value `self` had the features.
                unsafe { $room::load(from) }
            }

            #[inline(always)]
            fn store(self, values: $values, to: &mut [f32; LANES]) {
                // SAFETY: as above.
                unsafe { $room::store(values, to) }
            }

            #[inline(always)]
            fn add_product(self, sum: $values, a: $values, b: $values) -> $values {
                // SAFETY: as above.
                unsafe { $room::add_product(sum, a, b) }
            }

            #[inline(always)]
            fn add(self, a: $values, b: $values) -> $values {
                // SAFETY: as above.
                unsafe { $room::add(a, b) }
            }

            #[inline(always)]
            fn subtract(self, a: $values, b: $values) -> $values {
                // SAFETY: as above.
                unsafe { $room::subtract(a, b) }
            }

            #[inline(always)]
            fn product(self, a: $values, b: $values) -> $values {
                // SAFETY: as above.
                unsafe { $room::product(a, b) }
            }

            #[inline(always)]
            fn quotient(self, a: $values, b: $values) -> $values {
                // SAFETY: as above.
                unsafe { $room::quotient(a, b) }
            }

            #[inline(always)]
            fn nearest(self, values: $values, top: f32) -> $values {
                // SAFETY: as above.
                unsafe { $room::nearest(values, top) }
            }

            #[inline(always)]
            fn pick(self, table: &[f32; LANES], codes: &[u8; LANES]) -> $values {
                // SAFETY: as above.
                unsafe { $room::pick(table, codes) }
            }

            #[inline(always)]
            fn times(self, values: $values, factor: f32) -> $values {
                // SAFETY: as above.
                unsafe { $room::times(values, factor) }
            }

            #[inline(always)]
            fn halves(self, sums: &[[f32; LANES]; LANES]) -> [f32; LANES] {
                // SAFETY: as above.
                unsafe { $room::halves(sums) }
            }

            #[inline(always)]
            fn where_less(self, a: $values, b: $values, one: $values, other: $values) -> $values {
                // SAFETY: as above.
                unsafe { $room::where_less(a, b, one, other) }
            }

            #[inline(always)]
            fn turn(self, square: &mut [[f32; LANES]; LANES]) {
                // SAFETY: as above.
                unsafe { $room::turn(square) }
            }

            #[inline(always)]
            fn pair(self, low: $values, high: $values) -> [u32; LANES] {
                // SAFETY: as above.
                unsafe { $room::pair(low, high) }
            }

            #[inline(always)]
            fn squares(self, pairs: &[[u32; LANES]]) -> [[i32; LANES]; 2] {
                // SAFETY: as above.
                unsafe { $room::squares(pairs) }
            }

            #[inline(always)]
            fn coded(self, pairs: &[[u32; LANES]], coding: &Coding) -> [[i32; LANES]; 3] {
                // SAFETY: as above.
                unsafe { $room::coded(pairs, coding) }
            }
        }
    };
}

registers!(Avx2, avx2, "avx2", [__m256; 2]);
registers!(Avx512, avx512, "avx512f,avx512bw", __m512);
