//! Sixteen f32 in two registers.

use std::arch::x86_64::{
    __m256, __m256i, _CMP_LT_OQ, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT, _mm_cvtsi32_si128, _mm_loadu_si128,
    _mm_unpackhi_epi64, _mm256_add_epi16, _mm256_add_epi32, _mm256_add_ps, _mm256_blend_epi16, _mm256_blendv_ps,
    _mm256_castps_si256, _mm256_castsi256_ps, _mm256_cmp_ps, _mm256_cvtepu8_epi32, _mm256_div_ps, _mm256_loadu_ps,
    _mm256_loadu_si256, _mm256_madd_epi16, _mm256_max_epi16, _mm256_max_ps, _mm256_min_epi16, _mm256_min_ps,
    _mm256_mul_ps, _mm256_mulhrs_epi16, _mm256_permute2f128_ps, _mm256_permutevar8x32_ps, _mm256_round_ps,
    _mm256_set1_epi16, _mm256_set1_ps, _mm256_setzero_ps, _mm256_setzero_si256, _mm256_shuffle_ps, _mm256_slli_epi32,
    _mm256_sra_epi16, _mm256_storeu_ps, _mm256_storeu_si256, _mm256_sub_ps, _mm256_unpackhi_ps, _mm256_unpacklo_ps,
};

use crate::kernel::body::{
    SIGNED_ROUNDER,
    sixteen::{Coding, LANES},
};

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

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn quotient(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
    [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])]
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

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn where_less(a: [__m256; 2], b: [__m256; 2], one: [__m256; 2], other: [__m256; 2]) -> [__m256; 2] {
    let half = |i: usize| _mm256_blendv_ps(other[i], one[i], _mm256_cmp_ps::<_CMP_LT_OQ>(a[i], b[i]));
    [half(0), half(1)]
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn turn(square: &mut [[f32; LANES]; LANES]) {
    let from = *square;
    for (row, col) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        turn_eight(&from[8 * row..], col, &mut square[8 * col..], row);
    }
}

/// Eight rows of one half become eight columns of another.
#[target_feature(enable = "avx2")]
#[inline]
fn turn_eight(from: &[[f32; LANES]], half: usize, to: &mut [[f32; LANES]], other: usize) {
    // Of four rows: register j has columns j and 4 + j of them in its halves.
    let fours = |first: usize| {
        let [a, b, c, d] = [0, 1, 2, 3].map(|row| eight(&from[first + row].as_chunks().0[half]));
        let (low, high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
        let (low_too, high_too) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
        [
            _mm256_shuffle_ps::<0x44>(low, low_too),
            _mm256_shuffle_ps::<0xee>(low, low_too),
            _mm256_shuffle_ps::<0x44>(high, high_too),
            _mm256_shuffle_ps::<0xee>(high, high_too),
        ]
    };
    let (upper, lower) = (fours(0), fours(4));
    for j in 0..4 {
        for (row, column) in [
            (j, _mm256_permute2f128_ps::<0x20>(upper[j], lower[j])),
            (4 + j, _mm256_permute2f128_ps::<0x31>(upper[j], lower[j])),
        ] {
            // SAFETY: eight values are written to an array of eight.
            #[expect(unsafe_code, reason = "a store")]
            unsafe {
                _mm256_storeu_ps(to[row].as_chunks_mut::<8>().0[other].as_mut_ptr(), column);
            }
        }
    }
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn pair(low: [__m256; 2], high: [__m256; 2]) -> [u32; LANES] {
    let whole = |x| _mm256_castps_si256(_mm256_add_ps(x, _mm256_set1_ps(SIGNED_ROUNDER)));
    let both = |i: usize| _mm256_blend_epi16::<0xaa>(whole(low[i]), _mm256_slli_epi32::<16>(whole(high[i])));
    numbers([both(0), both(1)]).map(i32::cast_unsigned)
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn squares(pairs: &[[u32; LANES]]) -> [[i32; LANES]; 2] {
    let mut sums = [[_mm256_setzero_si256(); 2]; 2];
    for pair in pairs {
        for (half, y) in words(pair).into_iter().enumerate() {
            sums[0][half] = _mm256_add_epi32(sums[0][half], _mm256_madd_epi16(y, _mm256_set1_epi16(1)));
            sums[1][half] = _mm256_add_epi32(sums[1][half], _mm256_madd_epi16(y, y));
        }
    }
    sums.map(|sum| numbers(sum))
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn coded(pairs: &[[u32; LANES]], coding: &Coding) -> [[i32; LANES]; 3] {
    let Coding { ratio, start, least, most, shift } = coding;
    let [ratio, start, least, most] = [ratio, start, least, most].map(|each| words(each));
    let shift = _mm_cvtsi32_si128(shift.cast_signed());
    let mut codes = [_mm256_setzero_si256(); 2];
    let mut sums = [[_mm256_setzero_si256(); 2]; 2];
    for pair in pairs {
        for (half, y) in words(pair).into_iter().enumerate() {
            let exact = _mm256_add_epi16(_mm256_mulhrs_epi16(y, ratio[half]), start[half]);
            let whole = _mm256_sra_epi16(exact, shift);
            let code = _mm256_min_epi16(_mm256_max_epi16(whole, least[half]), most[half]);
            codes[half] = _mm256_add_epi16(codes[half], code);
            sums[0][half] = _mm256_add_epi32(sums[0][half], _mm256_madd_epi16(y, code));
            sums[1][half] = _mm256_add_epi32(sums[1][half], _mm256_madd_epi16(code, code));
        }
    }
    [codes.map(|half| _mm256_madd_epi16(half, _mm256_set1_epi16(1))), sums[0], sums[1]].map(|sum| numbers(sum))
}

#[target_feature(enable = "avx2")]
#[inline]
fn words(from: &[u32; LANES]) -> [__m256i; 2] {
    let [low, high] = from.as_chunks::<8>().0 else { unreachable!("two eights are sixteen") };
    // SAFETY: eight words are read from an array of eight.
    #[expect(unsafe_code, reason = "a load")]
    [low, high].map(|eight| unsafe { _mm256_loadu_si256(eight.as_ptr().cast()) })
}

#[target_feature(enable = "avx2")]
#[inline]
fn numbers(values: [__m256i; 2]) -> [i32; LANES] {
    let mut out = [0; LANES];
    for (eight, values) in out.as_chunks_mut::<8>().0.iter_mut().zip(values) {
        // SAFETY: eight numbers are written to an array of eight.
        #[expect(unsafe_code, reason = "a store")]
        unsafe {
            _mm256_storeu_si256(eight.as_mut_ptr().cast(), values);
        }
    }
    out
}
