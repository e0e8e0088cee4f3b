//! Sixteen f32 in one register.

use std::arch::x86_64::{
    __m512, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT, _mm_loadu_si128, _mm512_add_ps, _mm512_cvtepu8_epi32,
    _mm512_loadu_ps, _mm512_max_ps, _mm512_min_ps, _mm512_mul_ps, _mm512_permutexvar_ps, _mm512_roundscale_ps,
    _mm512_set1_ps, _mm512_setzero_ps, _mm512_shuffle_f32x4, _mm512_shuffle_ps, _mm512_storeu_ps, _mm512_sub_ps,
};

use crate::kernel::body::sixteen::LANES;

#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn load(from: &[f32; LANES]) -> __m512 {
    // SAFETY: sixteen values are read from an array of sixteen.
    #[expect(unsafe_code, reason = "a load")]
    unsafe {
        _mm512_loadu_ps(from.as_ptr())
    }
}

#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn store(values: __m512, to: &mut [f32; LANES]) {
    // SAFETY: sixteen values are written to an array of sixteen.
    #[expect(unsafe_code, reason = "a store")]
    unsafe {
        _mm512_storeu_ps(to.as_mut_ptr(), values);
    }
}

#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn add_product(sum: __m512, a: __m512, b: __m512) -> __m512 {
    _mm512_add_ps(sum, _mm512_mul_ps(a, b))
}

#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn add(a: __m512, b: __m512) -> __m512 {
    _mm512_add_ps(a, b)
}

#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn subtract(a: __m512, b: __m512) -> __m512 {
    _mm512_sub_ps(a, b)
}

#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn product(a: __m512, b: __m512) -> __m512 {
    _mm512_mul_ps(a, b)
}

/// Of a NaN, the instruction for the larger one takes the second.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn nearest(values: __m512, top: f32) -> __m512 {
    let held = _mm512_min_ps(_mm512_max_ps(values, _mm512_setzero_ps()), _mm512_set1_ps(top));
    _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(held)
}

/// The instruction looks at the low four bits of an index alone.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn pick(table: &[f32; LANES], codes: &[u8; LANES]) -> __m512 {
    // SAFETY: sixteen bytes are read from an array of sixteen.
    #[expect(unsafe_code, reason = "a load")]
    let codes = unsafe { _mm_loadu_si128(codes.as_ptr().cast()) };
    _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(codes), load(table))
}

#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn times(values: __m512, factor: f32) -> __m512 {
    _mm512_mul_ps(values, _mm512_set1_ps(factor))
}

/// Two and two are merged at each step, so that every addition is of full registers.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn halves(sums: &[[f32; LANES]; LANES]) -> [f32; LANES] {
    // The quarters of the result: eights of a and of b, fours of four, and so on. The sums are taken
    // in the order that comes out natural.
    let eights = |a: usize| {
        let (a, b) = (load(&sums[a]), load(&sums[a + 4]));
        _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b))
    };
    let fours = |a: usize| {
        let (a, b) = (eights(a), eights(a + 8));
        _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b))
    };
    let twos = |a: usize| {
        let (a, b) = (fours(a), fours(a + 1));
        _mm512_add_ps(_mm512_shuffle_ps::<0x44>(a, b), _mm512_shuffle_ps::<0xee>(a, b))
    };
    let (a, b) = (twos(0), twos(2));
    let ones = _mm512_add_ps(_mm512_shuffle_ps::<0x88>(a, b), _mm512_shuffle_ps::<0xdd>(a, b));
    let mut out = [0.0; LANES];
    store(ones, &mut out);
    out
}
