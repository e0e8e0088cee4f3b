//! Sixteen f32 in two registers.

use std::arch::x86_64::{
    __m256, __m256i, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT, _mm_loadu_si128, _mm_unpackhi_epi64, _mm256_add_ps,
    _mm256_blendv_ps, _mm256_castsi256_ps, _mm256_cvtepu8_epi32, _mm256_loadu_ps, _mm256_max_ps, _mm256_min_ps,
    _mm256_mul_ps, _mm256_permute2f128_ps, _mm256_permutevar8x32_ps, _mm256_round_ps, _mm256_set1_ps,
    _mm256_setzero_ps, _mm256_shuffle_ps, _mm256_slli_epi32, _mm256_storeu_ps, _mm256_sub_ps,
};

use crate::kernel::body::sixteen::LANES;

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn load(from: &[f32; LANES]) -> [__m256; 2] {
    let [low, high] = from.as_chunks::<8>().0 else { unreachable!("two eights are sixteen") };
    [eight(low), eight(high)]
}

#[target_feature(enable = "avx2")]
#[inline]
fn eight(from: &[f32; 8]) -> __m256 {
    // SAFETY: eight values are read from an array of eight.
    #[expect(unsafe_code, reason = "a load")]
    unsafe {
        _mm256_loadu_ps(from.as_ptr())
    }
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn store(values: [__m256; 2], to: &mut [f32; LANES]) {
    for (eight, values) in to.as_chunks_mut::<8>().0.iter_mut().zip(values) {
        // SAFETY: eight values are written to an array of eight.
        #[expect(unsafe_code, reason = "a store")]
        unsafe {
            _mm256_storeu_ps(eight.as_mut_ptr(), values);
        }
    }
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn add_product(sum: [__m256; 2], a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
    [_mm256_add_ps(sum[0], _mm256_mul_ps(a[0], b[0])), _mm256_add_ps(sum[1], _mm256_mul_ps(a[1], b[1]))]
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn add(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
    [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])]
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn subtract(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
    [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])]
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn product(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
    [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])]
}

/// Of a NaN, the instruction for the larger one takes the second.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn nearest(values: [__m256; 2], top: f32) -> [__m256; 2] {
    let (zero, top) = (_mm256_setzero_ps(), _mm256_set1_ps(top));
    values.map(|eight| {
        let held = _mm256_min_ps(_mm256_max_ps(eight, zero), top);
        _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(held)
    })
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn pick(table: &[f32; LANES], codes: &[u8; LANES]) -> [__m256; 2] {
    // SAFETY: sixteen bytes are read from an array of sixteen.
    #[expect(unsafe_code, reason = "a load")]
    let codes = unsafe { _mm_loadu_si128(codes.as_ptr().cast()) };
    let (low, high) = (_mm256_cvtepu8_epi32(codes), _mm256_cvtepu8_epi32(_mm_unpackhi_epi64(codes, codes)));
    let table = load(table);
    [pick_eight(table, low), pick_eight(table, high)]
}

/// The instruction looks at the low three bits of an index alone; the fourth chooses the half.
#[target_feature(enable = "avx2")]
#[inline]
fn pick_eight([low, high]: [__m256; 2], at: __m256i) -> __m256 {
    let upper = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(at));
    _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, at), _mm256_permutevar8x32_ps(high, at), upper)
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn times([low, high]: [__m256; 2], factor: f32) -> [__m256; 2] {
    let factor = _mm256_set1_ps(factor);
    [_mm256_mul_ps(low, factor), _mm256_mul_ps(high, factor)]
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn halves(sums: &[[f32; LANES]; LANES]) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    store([halves_of_eight(sums, 0), halves_of_eight(sums, 8)], &mut out);
    out
}

/// Two and two are merged at each step, so that every addition is of full registers.
#[target_feature(enable = "avx2")]
#[inline]
fn halves_of_eight(sums: &[[f32; LANES]; LANES], first: usize) -> __m256 {
    let eights = |a: usize| {
        let [low, high] = load(&sums[first + a]);
        _mm256_add_ps(low, high)
    };
    // In the order that the halves of registers come out in at the end.
    let fours = |a: usize| {
        let (a, b) = (eights(a), eights(a + 4));
        _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b))
    };
    let twos = |a: usize| {
        let (a, b) = (fours(a), fours(a + 1));
        _mm256_add_ps(_mm256_shuffle_ps::<0x44>(a, b), _mm256_shuffle_ps::<0xee>(a, b))
    };
    let (a, b) = (twos(0), twos(2));
    _mm256_add_ps(_mm256_shuffle_ps::<0x88>(a, b), _mm256_shuffle_ps::<0xdd>(a, b))
}
