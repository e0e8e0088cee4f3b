//! Sixteen f32 in one register.

use std::arch::x86_64::{
    __m512, __m512i, _CMP_LT_OQ, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT, _mm_cvtsi32_si128, _mm_loadu_si128,
    _mm512_add_epi16, _mm512_add_epi32, _mm512_add_ps, _mm512_castps_si512, _mm512_cmp_ps_mask, _mm512_cvtepu8_epi32,
    _mm512_div_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_madd_epi16, _mm512_mask_blend_epi16,
    _mm512_mask_blend_ps, _mm512_max_epi16, _mm512_max_ps, _mm512_min_epi16, _mm512_min_ps, _mm512_mul_ps,
    _mm512_mulhrs_epi16, _mm512_permutexvar_ps, _mm512_roundscale_ps, _mm512_set1_epi16, _mm512_set1_ps,
    _mm512_setzero_ps, _mm512_setzero_si512, _mm512_shuffle_f32x4, _mm512_shuffle_ps, _mm512_slli_epi32,
    _mm512_sra_epi16, _mm512_storeu_ps, _mm512_storeu_si512, _mm512_sub_ps, _mm512_unpackhi_ps, _mm512_unpacklo_ps,
};

use crate::kernel::body::{
    SIGNED_ROUNDER,
    sixteen::{Coding, LANES},
};

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

#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn quotient(a: __m512, b: __m512) -> __m512 {
    _mm512_div_ps(a, b)
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

#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn where_less(a: __m512, b: __m512, one: __m512, other: __m512) -> __m512 {
    _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), other, one)
}

#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn turn(square: &mut [[f32; LANES]; LANES]) {
    let from = *square;
    // Of rows 4g to 4g + 3: register j has column 4q + j of them in its quarter q.
    let fours = |g: usize| {
        let [a, b, c, d] = [0, 1, 2, 3].map(|row| load(&from[4 * g + row]));
        let (low, high) = (_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        let (low_too, high_too) = (_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
        [
            _mm512_shuffle_ps::<0x44>(low, low_too),
            _mm512_shuffle_ps::<0xee>(low, low_too),
            _mm512_shuffle_ps::<0x44>(high, high_too),
            _mm512_shuffle_ps::<0xee>(high, high_too),
        ]
    };
    let all = [0, 1, 2, 3].map(fours);
    for j in 0..4 {
        let [a, b, c, d] = all.map(|four| four[j]);
        let (low, high) = (_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b));
        let (low_too, high_too) = (_mm512_shuffle_f32x4::<0x44>(c, d), _mm512_shuffle_f32x4::<0xee>(c, d));
        store(_mm512_shuffle_f32x4::<0x88>(low, low_too), &mut square[j]);
        store(_mm512_shuffle_f32x4::<0xdd>(low, low_too), &mut square[4 + j]);
        store(_mm512_shuffle_f32x4::<0x88>(high, high_too), &mut square[8 + j]);
        store(_mm512_shuffle_f32x4::<0xdd>(high, high_too), &mut square[12 + j]);
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub(super) fn pair(low: __m512, high: __m512) -> [u32; LANES] {
    let whole = |x| _mm512_castps_si512(_mm512_add_ps(x, _mm512_set1_ps(SIGNED_ROUNDER)));
    let mut out = [0; LANES];
    let both = _mm512_mask_blend_epi16(0xaaaa_aaaa, whole(low), _mm512_slli_epi32::<16>(whole(high)));
    // SAFETY: sixteen words are written to an array of sixteen.
    #[expect(unsafe_code, reason = "a store")]
    unsafe {
        _mm512_storeu_si512(out.as_mut_ptr().cast(), both);
    }
    out
}

#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub(super) fn squares(pairs: &[[u32; LANES]]) -> [[i32; LANES]; 2] {
    let mut sums = [_mm512_setzero_si512(); 2];
    for pair in pairs {
        let y = words(pair);
        sums[0] = _mm512_add_epi32(sums[0], _mm512_madd_epi16(y, _mm512_set1_epi16(1)));
        sums[1] = _mm512_add_epi32(sums[1], _mm512_madd_epi16(y, y));
    }
    sums.map(|sum| numbers(sum))
}

#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub(super) fn coded(pairs: &[[u32; LANES]], coding: &Coding) -> [[i32; LANES]; 3] {
    let Coding { ratio, start, least, most, shift } = coding;
    let [ratio, start, least, most] = [ratio, start, least, most].map(|each| words(each));
    let shift = _mm_cvtsi32_si128(shift.cast_signed());
    let mut codes = _mm512_setzero_si512();
    let mut sums = [_mm512_setzero_si512(); 2];
    for pair in pairs {
        let y = words(pair);
        let exact = _mm512_add_epi16(_mm512_mulhrs_epi16(y, ratio), start);
        let code = _mm512_min_epi16(_mm512_max_epi16(_mm512_sra_epi16(exact, shift), least), most);
        codes = _mm512_add_epi16(codes, code);
        sums[0] = _mm512_add_epi32(sums[0], _mm512_madd_epi16(y, code));
        sums[1] = _mm512_add_epi32(sums[1], _mm512_madd_epi16(code, code));
    }
    [_mm512_madd_epi16(codes, _mm512_set1_epi16(1)), sums[0], sums[1]].map(|sum| numbers(sum))
}

#[target_feature(enable = "avx512f")]
#[inline]
fn words(from: &[u32; LANES]) -> __m512i {
    // SAFETY: sixteen words are read from an array of sixteen.
    #[expect(unsafe_code, reason = "a load")]
    unsafe {
        _mm512_loadu_si512(from.as_ptr().cast())
    }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn numbers(values: __m512i) -> [i32; LANES] {
    let mut out = [0; LANES];
    // SAFETY: sixteen numbers are written to an array of sixteen.
    #[expect(unsafe_code, reason = "a store")]
    unsafe {
        _mm512_storeu_si512(out.as_mut_ptr().cast(), values);
    }
    out
}
