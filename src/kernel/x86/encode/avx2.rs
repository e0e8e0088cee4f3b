//! Affine codes of bf16 by AVX2, 16 elements at a time. f16, which it cannot widen, is left to the body.

use std::arch::x86_64::{
    __m256, __m256i, _CMP_GE_OQ, _mm256_add_ps, _mm256_and_si256, _mm256_blend_epi16, _mm256_castps_si256,
    _mm256_castsi256_ps, _mm256_cmp_ps, _mm256_cmpeq_epi32, _mm256_cmpgt_epi16, _mm256_cvtepi32_ps, _mm256_cvtps_epi32,
    _mm256_cvttps_epi32, _mm256_div_ps, _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_max_epi16, _mm256_max_ps,
    _mm256_min_epi16, _mm256_min_epu8, _mm256_min_epu32, _mm256_min_ps, _mm256_movemask_epi8, _mm256_mul_ps,
    _mm256_packus_epi16, _mm256_permute2x128_si256, _mm256_permute4x64_epi64, _mm256_permutevar8x32_epi32,
    _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_epi64x, _mm256_set1_ps, _mm256_setr_epi32,
    _mm256_setzero_ps, _mm256_setzero_si256, _mm256_shuffle_epi8, _mm256_slli_epi32, _mm256_sllv_epi32,
    _mm256_srai_epi16, _mm256_srli_epi32, _mm256_srli_epi64, _mm256_sub_epi32, _mm256_sub_ps, _mm256_unpackhi_epi16,
    _mm256_unpackhi_epi32, _mm256_unpackhi_epi64, _mm256_unpacklo_epi16, _mm256_unpacklo_epi32, _mm256_unpacklo_epi64,
    _mm256_xor_si256,
};

use crate::{
    kernel::{
        Affine, Flavour, QuantizeAffine,
        body::{
            affine::Fits,
            fixed::{self, Groups, Line, Steps, fraction},
            sixteen::LANES,
        },
        x86::registers::{load_256, store_256, store_values_256},
    },
    tensor::Float,
};

use super::{UPPER, by_shape, bytes_of_quarters};

/// `body::affine::quantize`, which is also given for what is left to it.
#[target_feature(enable = "avx2")]
pub(in crate::kernel::x86) fn quantize(job: &Affine, src: &[u8], out: [&mut [u8]; 3], body: QuantizeAffine) {
    if job.float == Float::Bf16 {
        by_shape!((sixteens), (job, src, out, body));
    } else {
        let [codes, scales, biases] = out;
        body(job, src, codes, scales, biases);
    }
}

/// Groups of so many lines.
#[target_feature(enable = "avx2")]
fn sixteens<const BITS: u32, const LINES: usize>(job: &Affine, src: &[u8], out: [&mut [u8]; 3], body: QuantizeAffine) {
    let code = |groups: &_, fits: &_, steps: &_, out: &mut [u8]| {
        code::<BITS, LINES>(job.flavour, groups, fits, steps, out);
    };
    fixed::sixteens(job, src, out, body, |groups, fits| extremes::<LINES>(groups, fits), code);
}

/// Each group's maximum in `scale` and its minimum in `bias`; whether all elements are finite.
///
/// As with AVX-512, but that a dword is a group when halves are brought together.
#[target_feature(enable = "avx2")]
#[inline]
fn extremes<const LINES: usize>(groups: &Groups<LINES>, out: &mut Fits<LANES>) -> bool {
    let mut fours = [_mm256_setzero_si256(); 4];
    for (four, groups) in fours.iter_mut().zip(groups.as_chunks::<4>().0) {
        let [a, b, c, d] = groups.each_ref();
        let (a, b) = (extremes_of_pairs(a), extremes_of_pairs(b));
        let (c, d) = (extremes_of_pairs(c), extremes_of_pairs(d));
        let ab = _mm256_max_epi16(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
        let cd = _mm256_max_epi16(_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
        *four = _mm256_max_epi16(_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd));
    }
    let mut finite = true;
    let parts = fours.as_chunks::<2>().0.iter().zip(out.scale.as_chunks_mut().0).zip(out.bias.as_chunks_mut().0);
    for (([a, b], maxima), minima) in parts {
        let halves = (_mm256_permute2x128_si256::<0x20>(*a, *b), _mm256_permute2x128_si256::<0x31>(*a, *b));
        let all = _mm256_max_epi16(halves.0, halves.1);
        let bits = ordered(_mm256_xor_si256(all, _mm256_set1_epi32(UPPER)));
        let [max, min] = values(bits);
        store_values_256(max, maxima);
        store_values_256(min, minima);
        let magnitudes = _mm256_and_si256(bits, _mm256_set1_epi16(i16::MAX));
        finite &= _mm256_movemask_epi8(_mm256_cmpgt_epi16(magnitudes, _mm256_set1_epi16(0x7f7f))) == 0;
    }
    finite
}

/// In each dword a maximum, and above it the complement of a minimum.
#[target_feature(enable = "avx2")]
#[inline]
fn extremes_of_pairs<const LINES: usize>(group: &[Line; LINES]) -> __m256i {
    let halves: &[[u8; 32]] = group.as_flattened().as_chunks().0;
    let mut max = ordered(load_256(&halves[0]));
    let mut min = max;
    for half in &halves[1..] {
        let half = ordered(load_256(half));
        max = _mm256_max_epi16(max, half);
        min = _mm256_min_epi16(min, half);
    }
    let min = _mm256_xor_si256(min, _mm256_set1_epi32(-1));
    _mm256_max_epi16(_mm256_unpacklo_epi16(max, min), _mm256_unpackhi_epi16(max, min))
}

/// The bits of floats as integers of the same order, and back: those of negative ones but the sign are
/// complemented.
#[target_feature(enable = "avx2")]
#[inline]
fn ordered(bits: __m256i) -> __m256i {
    let negative = _mm256_srai_epi16::<15>(bits);
    _mm256_xor_si256(bits, _mm256_and_si256(negative, _mm256_set1_epi16(i16::MAX)))
}

/// The values of the lower and of the upper halves of dwords.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn values(bits: __m256i) -> [__m256; 2] {
    let (low, high) = (_mm256_slli_epi32::<16>(bits), _mm256_and_si256(bits, _mm256_set1_epi32(UPPER)));
    [_mm256_castsi256_ps(low), _mm256_castsi256_ps(high)]
}

/// The packed codes of sixteen groups.
#[target_feature(enable = "avx2")]
#[inline]
fn code<const BITS: u32, const LINES: usize>(
    flavour: Flavour,
    groups: &Groups<LINES>,
    fits: &Fits<LANES>,
    steps: &Steps,
    out: &mut [u8],
) {
    let lines = groups.as_flattened().as_chunks::<2>().0;
    for (at, (lines, out)) in lines.iter().zip(out.chunks_exact_mut(8 * BITS as usize)).enumerate() {
        let mut codes = [_mm256_setzero_si256(); 2];
        for i in 0..2 {
            let group = (2 * at + i) / LINES % LANES;
            let (factor, offset) = (_mm256_set1_ps(steps.reciprocal[group]), _mm256_set1_ps(steps.offset[group]));
            let bits = _mm256_set1_epi32(steps.sure[group].cast_signed());
            let halves: &[[u8; 32]; 2] = &lines[i].as_chunks().0.as_chunks().0[0];
            let values = [values(load_256(&halves[0])), values(load_256(&halves[1]))];
            let sum = |w| _mm256_castps_si256(_mm256_add_ps(_mm256_mul_ps(w, factor), offset));
            let mut sums = values.map(|pair| pair.map(sum));
            let [a, b] =
                sums.map(|[even, odd]| _mm256_min_epu32(_mm256_and_si256(even, bits), _mm256_and_si256(odd, bits)));
            let unsure = _mm256_cmpeq_epi32(_mm256_min_epu32(a, b), _mm256_setzero_si256());
            if _mm256_movemask_epi8(unsure) != 0 {
                let (scale, bias) = (fits.scale[group], fits.bias[group]);
                sums = values.map(|pair| pair.map(|w| divided::<BITS>(w, scale, bias, flavour)));
            }
            codes[i] = bytes::<BITS>(whole::<BITS>(sums[0]), whole::<BITS>(sums[1]));
        }
        pack::<BITS>(codes, out);
    }
}

/// Codes by the reference's own arithmetic, at the place where sums have them.
#[target_feature(enable = "avx2")]
#[inline]
fn divided<const BITS: u32>(w: __m256, scale: f32, bias: f32, flavour: Flavour) -> __m256i {
    let steps = _mm256_div_ps(_mm256_sub_ps(w, _mm256_set1_ps(bias)), _mm256_set1_ps(scale));
    let top = _mm256_set1_ps(((1u32 << BITS) - 1) as f32);
    let held = _mm256_min_ps(_mm256_max_ps(steps, _mm256_setzero_ps()), top);
    let code = if flavour == Flavour::Metal {
        let below = _mm256_cvttps_epi32(held);
        let rest = _mm256_sub_ps(held, _mm256_cvtepi32_ps(below));
        let up = _mm256_cmp_ps::<_CMP_GE_OQ>(rest, _mm256_set1_ps(0.5));
        _mm256_sub_epi32(below, _mm256_castps_si256(up))
    } else {
        _mm256_cvtps_epi32(held)
    };
    match BITS {
        2 => _mm256_slli_epi32::<{ fraction(2).cast_signed() }>(code),
        3 => _mm256_slli_epi32::<{ fraction(3).cast_signed() }>(code),
        4 => _mm256_slli_epi32::<{ fraction(4).cast_signed() }>(code),
        5 => _mm256_slli_epi32::<{ fraction(5).cast_signed() }>(code),
        6 => _mm256_slli_epi32::<{ fraction(6).cast_signed() }>(code),
        _ => _mm256_slli_epi32::<{ fraction(8).cast_signed() }>(code),
    }
}

/// The whole numbers of the sums of even and odd elements, in the elements' order in words.
#[target_feature(enable = "avx2")]
#[inline]
fn whole<const BITS: u32>([even, odd]: [__m256i; 2]) -> __m256i {
    const fn down(bits: u32) -> i32 {
        fraction(bits).cast_signed()
    }
    let (even, odd) = match BITS {
        2 => (_mm256_srli_epi32::<{ down(2) }>(even), _mm256_srli_epi32::<{ down(2) - 16 }>(odd)),
        3 => (_mm256_srli_epi32::<{ down(3) }>(even), _mm256_srli_epi32::<{ down(3) - 16 }>(odd)),
        4 => (_mm256_srli_epi32::<{ down(4) }>(even), _mm256_srli_epi32::<{ down(4) - 16 }>(odd)),
        5 => (_mm256_srli_epi32::<{ down(5) }>(even), _mm256_srli_epi32::<{ down(5) - 16 }>(odd)),
        6 => (_mm256_srli_epi32::<{ down(6) }>(even), odd),
        _ => (_mm256_srli_epi32::<{ down(8) }>(even), _mm256_slli_epi32::<{ 16 - down(8) }>(odd)),
    };
    _mm256_and_si256(_mm256_blend_epi16::<0xaa>(even, odd), _mm256_set1_epi16((2 << BITS) - 1))
}

/// Codes held to the highest, one a byte: eight of the first half, eight of the second, and so on.
#[target_feature(enable = "avx2")]
#[inline]
fn bytes<const BITS: u32>(first: __m256i, second: __m256i) -> __m256i {
    let bytes = _mm256_packus_epi16(first, second);
    if BITS == 8 { bytes } else { _mm256_min_epu8(bytes, _mm256_set1_epi8((1 << BITS) - 1)) }
}

/// Packs the codes of two lines.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn pack<const BITS: u32>(codes: [__m256i; 2], out: &mut [u8]) {
    if BITS == 4 {
        let [low, high] = codes.map(|codes| _mm256_maddubs_epi16(codes, _mm256_set1_epi16(0x1001)));
        // Each half has four bytes of each half line.
        let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        let bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(low, high), order);
        out.as_chunks_mut().0.iter_mut().for_each(|out| store_256(bytes, out));
        return;
    }
    for (codes, out) in codes.into_iter().zip(out.chunks_exact_mut(4 * BITS as usize)) {
        let codes = _mm256_permute4x64_epi64::<0b11_01_10_00>(codes);
        let mut bytes = [0; 32];
        store_256(if BITS == 8 { codes } else { closed_up::<BITS>(codes) }, &mut bytes);
        for (out, bytes) in out.chunks_exact_mut(2 * BITS as usize).zip(bytes.as_chunks::<16>().0) {
            out.copy_from_slice(&bytes[..2 * BITS as usize]);
        }
    }
}

/// 32 codes of bytes: neighbours are joined in pairs, pairs, and halves; in each half of the register, bytes
/// are moved together.
#[target_feature(enable = "avx2")]
#[inline]
fn closed_up<const BITS: u32>(codes: __m256i) -> __m256i {
    let pairs = _mm256_maddubs_epi16(codes, _mm256_set1_epi16(1 | 1 << (8 + BITS)));
    let fours = _mm256_madd_epi16(pairs, _mm256_set1_epi32(1 | 1 << (16 + 2 * BITS)));
    let raised = _mm256_sllv_epi32(fours, _mm256_set1_epi64x(32 - 4 * i64::from(BITS)));
    let eights = match BITS {
        2 => _mm256_srli_epi64::<24>(raised),
        3 => _mm256_srli_epi64::<20>(raised),
        5 => _mm256_srli_epi64::<12>(raised),
        _ => _mm256_srli_epi64::<8>(raised),
    };
    let places: &[[u8; 32]] = const { &bytes_of_quarters(BITS) }.as_chunks().0;
    _mm256_shuffle_epi8(eights, load_256(&places[0]))
}
