//! What the arithmetic of an instruction set can do at most: the limit beside which products are measured.
//!
//! Multiplies and adds from registers, with sums enough in flight that none is waited for. The steps are
//! the ones that products may use: whole bytes for int8, and for f32 no fused ones. Knows no matrix.

use std::hint::black_box;

#[cfg(target_arch = "x86_64")]
use crate::kernel::Isa;
use crate::kernel::Kernels;

/// Sums in flight: a step of them is four to eight times as long as an instruction takes.
const SUMS: usize = 12;

impl Kernels {
    /// Multiplies and adds bytes `steps` times; how many operations that were (a product and its sum are two).
    #[must_use]
    #[cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "calls from undetected to detected code"))]
    pub fn spin_int8(&self, steps: usize) -> u64 {
        let lanes = match self.isa() {
            // SAFETY: a table is reached only where its features were detected.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => unsafe { x86::bytes_vnni(steps) },
            // SAFETY: as above; AVX-512 has AVX2 in it, and products use that where VNNI is missing.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::Avx512 => unsafe { x86::bytes_avx2(steps) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: every machine of this architecture has SSE2.
            Isa::Scalar => unsafe { x86::shorts_sse2(steps) },
            #[cfg(not(target_arch = "x86_64"))]
            _ => floats(steps),
        };
        operations(lanes, steps)
    }

    /// As [`spin_int8`](Self::spin_int8), in f32.
    #[must_use]
    #[cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "calls from undetected to detected code"))]
    pub fn spin_f32(&self, steps: usize) -> u64 {
        let lanes = match self.isa() {
            // SAFETY: a table is reached only where its features were detected.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Vnni => unsafe { x86::floats_avx512(steps) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { x86::floats_avx2(steps) },
            _ => floats(steps),
        };
        operations(lanes, steps)
    }
}

/// Of so many products in each sum of each step.
fn operations(lanes: usize, steps: usize) -> u64 {
    2 * SUMS as u64 * lanes as u64 * steps as u64
}

/// The baseline, whatever the machine.
fn floats(steps: usize) -> usize {
    let (a, b) = black_box(([0.5f32; 4], [1f32; 4]));
    let mut sums = [[0f32; 4]; SUMS];
    for _ in 0..steps {
        for sum in &mut sums {
            for i in 0..4 {
                sum[i] = sum[i] * a[i] + b[i];
            }
        }
    }
    black_box(sums);
    4
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::{
        arch::x86_64::{
            __m256i, __m512i, _mm_add_epi32, _mm_madd_epi16, _mm_set1_epi16, _mm256_add_epi32, _mm256_add_ps,
            _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_mul_ps, _mm256_set1_epi8, _mm256_set1_epi16,
            _mm256_set1_ps, _mm512_add_ps, _mm512_dpbusd_epi32, _mm512_mul_ps, _mm512_set1_epi8, _mm512_set1_ps,
            _mm512_setzero_si512,
        },
        hint::black_box,
    };

    use super::SUMS;

    /// The baseline of this architecture multiplies integers of 16 bits.
    #[target_feature(enable = "sse2")]
    pub(super) fn shorts_sse2(steps: usize) -> usize {
        let b = black_box(_mm_set1_epi16(5));
        let mut sums = [b; SUMS];
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm_add_epi32(*sum, _mm_madd_epi16(*sum, b));
            }
        }
        black_box(sums);
        8
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    pub(super) fn bytes_vnni(steps: usize) -> usize {
        let (a, b): (__m512i, __m512i) = black_box((_mm512_set1_epi8(3), _mm512_set1_epi8(5)));
        let mut sums = [_mm512_setzero_si512(); SUMS];
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, a, b);
            }
        }
        black_box(sums);
        64
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn bytes_avx2(steps: usize) -> usize {
        let (b, ones): (__m256i, __m256i) = black_box((_mm256_set1_epi8(5), _mm256_set1_epi16(1)));
        let mut sums = [b; SUMS];
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(_mm256_maddubs_epi16(*sum, b), ones));
            }
        }
        black_box(sums);
        32
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn floats_avx512(steps: usize) -> usize {
        let (a, b) = black_box((_mm512_set1_ps(0.5), _mm512_set1_ps(1.0)));
        let mut sums = [b; SUMS];
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm512_add_ps(_mm512_mul_ps(*sum, a), b);
            }
        }
        black_box(sums);
        16
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn floats_avx2(steps: usize) -> usize {
        let (a, b) = black_box((_mm256_set1_ps(0.5), _mm256_set1_ps(1.0)));
        let mut sums = [b; SUMS];
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm256_add_ps(_mm256_mul_ps(*sum, a), b);
            }
        }
        black_box(sums);
        8
    }
}
