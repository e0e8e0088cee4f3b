//! Affine codes of bf16 and f16 by AVX-512, 32 elements at a time.

use std::arch::x86_64::{
    __m512, __m512i, __mmask16, _CMP_GE_OQ, _mm512_and_si512, _mm512_castps_si512, _mm512_castsi512_ps,
    _mm512_castsi512_si256, _mm512_cmp_ps_mask, _mm512_cmpge_epu16_mask, _mm512_cvtepi32_ps, _mm512_cvtph_ps,
    _mm512_cvtps_epi32, _mm512_cvttps_epi32, _mm512_div_ps, _mm512_extracti64x4_epi64, _mm512_fmadd_ps,
    _mm512_madd_epi16, _mm512_maddubs_epi16, _mm512_mask_add_epi32, _mm512_mask_test_epi32_mask, _mm512_max_epi16,
    _mm512_max_ps, _mm512_min_epi16, _mm512_min_epu8, _mm512_min_ps, _mm512_packus_epi16, _mm512_permutex2var_epi32,
    _mm512_permutexvar_epi16, _mm512_permutexvar_epi32, _mm512_permutexvar_epi64, _mm512_set_epi32, _mm512_set_epi64,
    _mm512_set1_epi8, _mm512_set1_epi16, _mm512_set1_epi32, _mm512_set1_epi64, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_setzero_si512, _mm512_shuffle_epi8, _mm512_shuffle_i32x4, _mm512_slli_epi32, _mm512_sllv_epi32,
    _mm512_srai_epi16, _mm512_srli_epi32, _mm512_srli_epi64, _mm512_sub_ps, _mm512_ternarylogic_epi32,
    _mm512_test_epi32_mask, _mm512_unpackhi_epi16, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi16,
    _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};

use crate::kernel::{
    Affine, Flavour, QuantizeAffine,
    body::{
        affine::Fits,
        fixed::{self, Groups, Line, Steps, fraction},
        sixteen::LANES,
    },
    x86::registers::{load_512, store_some_512, store_values_512},
};
use crate::tensor::Float;

use super::{UPPER, by_shape, bytes_of_quarters};

/// `body::affine::quantize`, which is also given for what is left to it.
#[target_feature(enable = "avx512f,avx512bw")]
pub(in crate::kernel::x86) fn quantize(job: &Affine, src: &[u8], out: [&mut [u8]; 3], body: QuantizeAffine) {
    match job.float {
        Float::Bf16 => by_shape!((sixteens, false), (job, src, out, body)),
        Float::F16 => by_shape!((sixteens, true), (job, src, out, body)),
        Float::F32 => {
            let [codes, scales, biases] = out;
            body(job, src, codes, scales, biases);
        }
    }
}

/// Groups of so many lines, of f16 or of bf16.
#[target_feature(enable = "avx512f,avx512bw")]
fn sixteens<const BITS: u32, const LINES: usize, const HALF: bool>(
    job: &Affine,
    src: &[u8],
    out: [&mut [u8]; 3],
    body: QuantizeAffine,
) {
    let code = |groups: &_, fits: &_, steps: &_, out: &mut [u8]| {
        code::<BITS, LINES, HALF>(job.flavour, groups, fits, steps, out);
    };
    fixed::sixteens(job, src, out, body, |groups, fits| extremes::<LINES, HALF>(groups, fits), code);
}

/// Each group's maximum in `scale` and its minimum in `bias`; whether all elements are finite.
///
/// Of the elements' own bits, made to be in order as integers; the minimum as the maximum of complements.
/// Each step leaves the larger ones of half of two vectors' lanes, until a dword is a group.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn extremes<const LINES: usize, const HALF: bool>(groups: &Groups<LINES>, out: &mut Fits<LANES>) -> bool {
    let mut fours = [_mm512_setzero_si512(); 4];
    for (four, groups) in fours.iter_mut().zip(groups.as_chunks::<4>().0) {
        let [a, b, c, d] = groups.each_ref();
        let (a, b) = (extremes_of_pairs(a), extremes_of_pairs(b));
        let (c, d) = (extremes_of_pairs(c), extremes_of_pairs(d));
        let ab = _mm512_max_epi16(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let cd = _mm512_max_epi16(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        *four = _mm512_max_epi16(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    }
    let [a, b, c, d] = fours;
    let all = quarters(quarters(a, b), quarters(c, d));
    let bits = ordered(_mm512_ternarylogic_epi32::<0x66>(all, all, _mm512_set1_epi32(UPPER)));
    let [max, min] = values::<HALF>(bits);
    store_values_512(max, &mut out.scale);
    store_values_512(min, &mut out.bias);
    let infinite = if HALF { 0x7c00 } else { 0x7f80 };
    let magnitudes = _mm512_and_si512(bits, _mm512_set1_epi16(i16::MAX));
    _mm512_cmpge_epu16_mask(magnitudes, _mm512_set1_epi16(infinite)) == 0
}

/// In each dword a maximum, and above it the complement of a minimum.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn extremes_of_pairs<const LINES: usize>(group: &[Line; LINES]) -> __m512i {
    let mut max = ordered(load_512(&group[0]));
    let mut min = max;
    for line in &group[1..] {
        let line = ordered(load_512(line));
        max = _mm512_max_epi16(max, line);
        min = _mm512_min_epi16(min, line);
    }
    let min = _mm512_ternarylogic_epi32::<0x55>(min, min, min);
    _mm512_max_epi16(_mm512_unpacklo_epi16(max, min), _mm512_unpackhi_epi16(max, min))
}

/// The larger ones of the even and odd quarters of `a` and then of `b`.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn quarters(a: __m512i, b: __m512i) -> __m512i {
    _mm512_max_epi16(_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b))
}

/// The bits of floats as integers of the same order, and back: those of negative ones but the sign are
/// complemented.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn ordered(bits: __m512i) -> __m512i {
    let negative = _mm512_srai_epi16::<15>(bits);
    // bits ^ (negative & 0x7fff)
    _mm512_ternarylogic_epi32::<0x6a>(_mm512_set1_epi16(i16::MAX), negative, bits)
}

/// The values of the lower and of the upper halves of dwords.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn values<const HALF: bool>(bits: __m512i) -> [__m512; 2] {
    if HALF {
        let low = _mm512_cvtph_ps(_mm512_castsi512_si256(bits));
        let high = _mm512_cvtph_ps(_mm512_extracti64x4_epi64::<1>(bits));
        let (low, high) = (_mm512_castps_si512(low), _mm512_castps_si512(high));
        let even = load_512(&const { every_second(0) });
        let odd = load_512(&const { every_second(1) });
        return [even, odd].map(|places| _mm512_castsi512_ps(_mm512_permutex2var_epi32(low, places, high)));
    }
    let (low, high) = (_mm512_slli_epi32::<16>(bits), _mm512_and_si512(bits, _mm512_set1_epi32(UPPER)));
    [_mm512_castsi512_ps(low), _mm512_castsi512_ps(high)]
}

/// The dwords from one on, two vectors being taken as one.
const fn every_second(first: u8) -> [u8; 64] {
    let mut places = [0; 64];
    let mut i = 0;
    while i < 16 {
        places[4 * i as usize] = 2 * i + first;
        i += 1;
    }
    places
}

/// The packed codes of sixteen groups.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn code<const BITS: u32, const LINES: usize, const HALF: bool>(
    flavour: Flavour,
    groups: &Groups<LINES>,
    fits: &Fits<LANES>,
    steps: &Steps,
    out: &mut [u8],
) {
    let lines = groups.as_flattened().as_chunks::<4>().0;
    for (at, (lines, out)) in lines.iter().zip(out.chunks_exact_mut(16 * BITS as usize)).enumerate() {
        let mut words = [_mm512_setzero_si512(); 4];
        for i in 0..4 {
            let group = (4 * at + i) / LINES % LANES;
            let values = values::<HALF>(load_512(&lines[i]));
            let (factor, offset) = (_mm512_set1_ps(steps.reciprocal[group]), _mm512_set1_ps(steps.offset[group]));
            let mut sums = values.map(|w| _mm512_castps_si512(_mm512_fmadd_ps(w, factor, offset)));
            let bits = _mm512_set1_epi32(steps.sure[group].cast_signed());
            let sure = _mm512_test_epi32_mask(sums[0], bits);
            if _mm512_mask_test_epi32_mask(sure, sums[1], bits) != __mmask16::MAX {
                sums = values.map(|w| divided::<BITS>(w, fits.scale[group], fits.bias[group], flavour));
            }
            words[i] = whole::<BITS>(sums);
        }
        let (low, high) = (bytes::<BITS>(words[0], words[1]), bytes::<BITS>(words[2], words[3]));
        pack::<BITS>(low, high, out);
    }
}

/// Codes by the reference's own arithmetic, at the place where sums have them.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn divided<const BITS: u32>(w: __m512, scale: f32, bias: f32, flavour: Flavour) -> __m512i {
    let steps = _mm512_div_ps(_mm512_sub_ps(w, _mm512_set1_ps(bias)), _mm512_set1_ps(scale));
    let top = _mm512_set1_ps(((1u32 << BITS) - 1) as f32);
    let held = _mm512_min_ps(_mm512_max_ps(steps, _mm512_setzero_ps()), top);
    let code = if flavour == Flavour::Metal {
        let below = _mm512_cvttps_epi32(held);
        let rest = _mm512_sub_ps(held, _mm512_cvtepi32_ps(below));
        let up = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(rest, _mm512_set1_ps(0.5));
        _mm512_mask_add_epi32(below, up, below, _mm512_set1_epi32(1))
    } else {
        _mm512_cvtps_epi32(held)
    };
    shifted_left::<BITS>(code)
}

#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn shifted_left<const BITS: u32>(code: __m512i) -> __m512i {
    match BITS {
        2 => _mm512_slli_epi32::<{ fraction(2) }>(code),
        3 => _mm512_slli_epi32::<{ fraction(3) }>(code),
        4 => _mm512_slli_epi32::<{ fraction(4) }>(code),
        5 => _mm512_slli_epi32::<{ fraction(5) }>(code),
        6 => _mm512_slli_epi32::<{ fraction(6) }>(code),
        _ => _mm512_slli_epi32::<{ fraction(8) }>(code),
    }
}

/// The whole numbers of the sums of even and odd elements, in the elements' order in words.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn whole<const BITS: u32>([even, odd]: [__m512i; 2]) -> __m512i {
    let (even, odd) = match BITS {
        2 => (_mm512_srli_epi32::<{ fraction(2) }>(even), _mm512_srli_epi32::<{ fraction(2) - 16 }>(odd)),
        3 => (_mm512_srli_epi32::<{ fraction(3) }>(even), _mm512_srli_epi32::<{ fraction(3) - 16 }>(odd)),
        4 => (_mm512_srli_epi32::<{ fraction(4) }>(even), _mm512_srli_epi32::<{ fraction(4) - 16 }>(odd)),
        5 => (_mm512_srli_epi32::<{ fraction(5) }>(even), _mm512_srli_epi32::<{ fraction(5) - 16 }>(odd)),
        6 => (_mm512_srli_epi32::<{ fraction(6) }>(even), odd),
        _ => (_mm512_srli_epi32::<{ fraction(8) }>(even), _mm512_slli_epi32::<{ 16 - fraction(8) }>(odd)),
    };
    // The lower half of `even`, the upper one of `odd`.
    let words = _mm512_ternarylogic_epi32::<0xe2>(odd, _mm512_set1_epi32(UPPER), even);
    _mm512_and_si512(words, _mm512_set1_epi16((2 << BITS) - 1))
}

/// Codes held to the highest, one a byte: eight of the first line, eight of the second, and so on.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn bytes<const BITS: u32>(first: __m512i, second: __m512i) -> __m512i {
    let bytes = _mm512_packus_epi16(first, second);
    if BITS == 8 { bytes } else { _mm512_min_epu8(bytes, _mm512_set1_epi8((1 << BITS) - 1)) }
}

/// Packs the codes of two times two lines.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn pack<const BITS: u32>(low: __m512i, high: __m512i, out: &mut [u8]) {
    if BITS == 4 {
        let pairs = _mm512_set1_epi16(0x1001);
        let bytes = _mm512_packus_epi16(_mm512_maddubs_epi16(low, pairs), _mm512_maddubs_epi16(high, pairs));
        // Each quarter has four bytes of each line.
        let order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
        store_some_512(_mm512_permutexvar_epi32(order, bytes), out);
        return;
    }
    let (first, second) = out.split_at_mut(8 * BITS as usize);
    for (codes, out) in [(low, first), (high, second)] {
        let codes = _mm512_permutexvar_epi64(_mm512_set_epi64(7, 5, 3, 1, 6, 4, 2, 0), codes);
        store_some_512(if BITS == 8 { codes } else { closed_up::<BITS>(codes) }, out);
    }
}

/// 64 codes of bytes: neighbours are joined in pairs, pairs, and halves, and bytes moved together.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn closed_up<const BITS: u32>(codes: __m512i) -> __m512i {
    let pairs = _mm512_maddubs_epi16(codes, _mm512_set1_epi16(1 | 1 << (8 + BITS)));
    let fours = _mm512_madd_epi16(pairs, _mm512_set1_epi32(1 | 1 << (16 + 2 * BITS)));
    let raised = _mm512_sllv_epi32(fours, _mm512_set1_epi64(32 - 4 * i64::from(BITS)));
    let eights = match BITS {
        2 => _mm512_srli_epi64::<24>(raised),
        3 => _mm512_srli_epi64::<20>(raised),
        5 => _mm512_srli_epi64::<12>(raised),
        _ => _mm512_srli_epi64::<8>(raised),
    };
    let near = _mm512_shuffle_epi8(eights, load_512(&const { bytes_of_quarters(BITS) }));
    _mm512_permutexvar_epi16(load_512(&const { words_of_quarters(BITS) }), near)
}

/// The first `bits` words of each eight, moved together.
const fn words_of_quarters(bits: u32) -> [u8; 64] {
    let mut places = [0; 64];
    let mut i = 0;
    while i < 4 * bits {
        places[2 * i as usize] = (i / bits * 8 + i % bits).to_le_bytes()[0];
        i += 1;
    }
    places
}
