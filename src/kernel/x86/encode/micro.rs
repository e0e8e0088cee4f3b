//! Codes of small floats from bf16 by AVX-512: sixteen lines at a time, two bytes of an element.
//!
//! Always: the bytes of `body::microscaling::quantize`, whose scales these are. A bf16 over a power of two is
//! a subtraction from its bits, and every middle between codes is a bf16 of few bits: a code is a matter of
//! the difference of two bit patterns. nvfp4's scales are no powers of two: there a product with the
//! reciprocal is rounded to a bf16 first.
//!
//! How near that product p has to be: the reference compares `w / scale` with thresholds of at most 9 bits
//! for bf16. A threshold times a scale has at most 13 bits, so that w is that product or 2^-14 of it away;
//! p is off by 2^-22. A threshold that is raised by [`SLACK`] of its last places, 2^-20 to 2^-19 of it,
//! parts the same elements. With f32 arithmetic thresholds have 3 bits and lie yet farther off.
//!
//! Left to the body: other sources, f16 arithmetic, nvfp4's Metal rounding, what is left of sixteen lines,
//! and sixteen lines with elements that are not finite, or with groups so small (nvfp4: so large) that
//! patterns are no measure.

use std::arch::x86_64::{
    __m512i, _mm512_add_epi16, _mm512_add_epi32, _mm512_and_si512, _mm512_castps_si512, _mm512_castsi512_ps,
    _mm512_castsi512_si256, _mm512_cmpge_epu16_mask, _mm512_cvtepu16_epi32, _mm512_extracti64x4_epi64,
    _mm512_mask_blend_ps, _mm512_mask_cmplt_epu16_mask, _mm512_max_epi16, _mm512_min_epu16, _mm512_mul_ps,
    _mm512_packus_epi16, _mm512_permutex2var_epi16, _mm512_permutexvar_epi16, _mm512_set1_epi16, _mm512_set1_epi32,
    _mm512_set1_ps, _mm512_setzero_si512, _mm512_slli_epi16, _mm512_slli_epi32, _mm512_sllv_epi16, _mm512_srli_epi16,
    _mm512_srli_epi32, _mm512_subs_epu16, _mm512_ternarylogic_epi32, _mm512_test_epi16_mask, _mm512_unpackhi_epi16,
    _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi16, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};

use crate::{
    kernel::{
        Flavour, Micro, MicroCode, QuantizeMicro,
        body::{
            fixed::Line,
            microscaling::{SEARCHABLE, Scales, scale, thresholds_before},
        },
        x86::registers::{load_512, load_words_512, store_values_512},
    },
    num::fp4::TIES_DOWN,
    tensor::Float,
};

use super::{
    UPPER,
    avx512::{pack, quarters, values},
};

/// Lines that are coded together, of 32 elements.
const LINES: usize = 16;
/// Last places by which nvfp4's thresholds are raised.
const SLACK: u32 = 16;
/// bf16 patterns: infinity, and a magnitude from which on those of all quotients are patterns of normal
/// numbers, or of so small ones that their code is 0.
const INFINITE: i16 = 0x7f80;
const SMALL: i16 = (127 - 100) << 7;
/// The pattern of `SEARCHABLE`, from which on nvfp4's elements are searched for one by one.
const LOST: i16 = (127 + 28) << 7;
const _: () = assert!(LOST as u32 == SEARCHABLE >> 16);
/// Magnitudes up to these have code 0: a half of the least one of e2m1 and of e4m3.
const NONE_E2M1: u16 = (127 - 2) << 7;
const NONE_E4M3: u16 = (127 - 10) << 7;

/// The largest magnitude of each group.
#[repr(C, align(64))]
struct Largest<const N: usize>([f32; N]);

/// `body::microscaling::quantize`, which is also given for what is left to it.
#[target_feature(enable = "avx512f,avx512bw")]
pub(in crate::kernel::x86) fn quantize(job: &Micro, src: &[u8], out: [&mut [u8]; 2], body: QuantizeMicro) {
    match (job.code, job.flavour) {
        _ if job.float != Float::Bf16 || job.computed == Float::F16 => body_alone(job, src, out, body),
        (MicroCode::Mxfp4, Flavour::Cpu) => sixteens::<16>(job, src, out, body, |lines, largest, scales, out| {
            mxfp4::<false>(lines, &patterns(largest, scales, NONE_E2M1 - BELOW), out);
        }),
        (MicroCode::Mxfp4, Flavour::Metal) => sixteens::<16>(job, src, out, body, |lines, largest, scales, out| {
            mxfp4::<true>(lines, &patterns(largest, scales, NONE_E2M1), out);
        }),
        (MicroCode::Mxfp8, _) => sixteens::<16>(job, src, out, body, |lines, largest, scales, out| {
            mxfp8(lines, &patterns(largest, scales, NONE_E4M3), out);
        }),
        (MicroCode::Nvfp4, Flavour::Cpu) => {
            let rounding = thresholds_before(job.computed)[0].to_bits() - TIES_DOWN[0].to_bits();
            let up = 0xffff - rounding - SLACK;
            sixteens::<32>(job, src, out, body, |lines, _, scales, out| nvfp4(up, lines, scales, out));
        }
        (MicroCode::Nvfp4, Flavour::Metal) => body_alone(job, src, out, body),
    }
}

fn body_alone(job: &Micro, src: &[u8], [codes, scales]: [&mut [u8]; 2], body: QuantizeMicro) {
    body(job, src, codes, scales);
}

/// Sixteen lines at a time, which are so many groups.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn sixteens<const N: usize>(
    job: &Micro,
    src: &[u8],
    [codes, scales]: [&mut [u8]; 2],
    body: QuantizeMicro,
    code: impl Fn(&[Line; LINES], &Largest<N>, &Scales<N>, &mut [u8]),
) {
    let blocks = src.as_chunks::<64>().0.as_chunks::<LINES>().0;
    // It may end with half a line.
    let rest = &src[blocks.as_flattened().as_flattened().len()..];
    let per_block = LINES * 4 * job.code.bits() as usize;
    let (codes, last_codes) = codes.split_at_mut(blocks.len() * per_block);
    let (scales, last_scales) = scales.split_at_mut(blocks.len() * N);
    let mut largest = Largest([0.0; N]);
    let mut found = Scales { factor: [0.0; N], byte: [0; N] };
    let outs = codes.chunks_exact_mut(per_block).zip(scales.as_chunks_mut().0);
    for (lines, (codes, scales)) in blocks.iter().zip(outs) {
        if magnitudes(lines, &mut largest) {
            scale(job, &largest.0, &mut found);
            code(lines, &largest, &found, codes);
            *scales = found.byte;
        } else {
            body(job, lines.as_flattened(), codes, scales);
        }
    }
    body(job, rest, last_codes, last_scales);
}

/// The largest magnitude of each line, or of each half of a line; whether patterns tell all codes.
///
/// Each step leaves the larger ones of half of two vectors' lanes.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn magnitudes<const N: usize>(lines: &[Line; LINES], largest: &mut Largest<N>) -> bool {
    let mut eights = [_mm512_setzero_si512(); 2];
    for (eight, lines) in eights.iter_mut().zip(lines.as_chunks::<8>().0) {
        let mut fours = [_mm512_setzero_si512(); 2];
        for (four, lines) in fours.iter_mut().zip(lines.as_chunks::<4>().0) {
            let [a, b, c, d] = lines.each_ref();
            let (a, b) = (magnitude(load_512(a)), magnitude(load_512(b)));
            let (c, d) = (magnitude(load_512(c)), magnitude(load_512(d)));
            let ab = _mm512_max_epi16(_mm512_unpacklo_epi16(a, b), _mm512_unpackhi_epi16(a, b));
            let cd = _mm512_max_epi16(_mm512_unpacklo_epi16(c, d), _mm512_unpackhi_epi16(c, d));
            *four = _mm512_max_epi16(_mm512_unpacklo_epi32(ab, cd), _mm512_unpackhi_epi32(ab, cd));
        }
        let [a, b] = fours;
        *eight = _mm512_max_epi16(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    }
    // By quarters: the first halves of eight lines, their second halves, then those of the other eight.
    let halves = quarters(eights[0], eights[1]);
    if N == LINES {
        let all = quarters(halves, halves);
        let some = _mm512_test_epi16_mask(all, all);
        let small = _mm512_mask_cmplt_epu16_mask(some, all, _mm512_set1_epi16(SMALL));
        store_magnitudes(all, &mut largest.0);
        return _mm512_cmpge_epu16_mask(all, _mm512_set1_epi16(INFINITE)) == 0 && small == 0;
    }
    let all = _mm512_permutexvar_epi16(load_words_512(&const { halves_in_order() }), halves);
    store_magnitudes(all, &mut largest.0);
    let searchable = _mm512_set1_epi16(LOST);
    _mm512_cmpge_epu16_mask(all, searchable) == 0
}

/// The words of the first and second halves of lines by turns.
const fn halves_in_order() -> [u16; 32] {
    let mut places = [0; 32];
    let mut line = 0;
    while line < 16 {
        places[2 * line as usize] = line / 8 * 16 + line % 8;
        places[2 * line as usize + 1] = line / 8 * 16 + 8 + line % 8;
        line += 1;
    }
    places
}

#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn magnitude(bits: __m512i) -> __m512i {
    _mm512_and_si512(bits, _mm512_set1_epi16(i16::MAX))
}

/// As many bf16 as there is room for, of sixteen or 32.
#[target_feature(enable = "avx512f")]
#[inline]
fn store_magnitudes(bits: __m512i, out: &mut [f32]) {
    let parts = [_mm512_castsi512_si256(bits), _mm512_extracti64x4_epi64::<1>(bits)];
    for (part, out) in parts.into_iter().zip(out.as_chunks_mut().0) {
        store_values_512(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(part))), out);
    }
}

/// The pattern, twice in a dword, of a group's scale times the quotient that has this one.
#[inline(always)]
fn patterns(largest: &Largest<LINES>, scales: &Scales<LINES>, quotient: u16) -> [u32; LINES] {
    let mut patterns = [0; LINES];
    for ((out, largest), byte) in patterns.iter_mut().zip(&largest.0).zip(&scales.byte) {
        // Any power serves for a group of zeros; Metal's least one has no pattern.
        let exponent = if *largest > 0.0 { i32::from(*byte) - 127 } else { 0 };
        let pattern = ((exponent << 7) + i32::from(quotient)).cast_unsigned() & 0xffff;
        *out = pattern << 16 | pattern;
    }
    patterns
}

/// From one middle of e2m1 to the next is a whole number of steps of 32 bf16, from 1/4 on: 0, 6, 9, 11, 13, 15
/// and 17. A magnitude above a middle is counted to the step above.
const STEPS: [u16; 7] = [0, 6, 9, 11, 13, 15, 17];
/// What a pattern is raised by to be counted to the step above, unless it is a middle.
const BELOW: u16 = 31;
/// Set in a word of a table where the code takes the sign.
const SIGNED: u16 = 0x8000;

/// The codes of sixteen groups; with `EVEN`, ties go to even codes and zeros keep their sign.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn mxfp4<const EVEN: bool>(lines: &[Line; LINES], patterns: &[u32; LINES], out: &mut [u8]) {
    let lines = lines.as_chunks::<4>().0.iter().zip(patterns.as_chunks::<4>().0);
    for ((lines, patterns), out) in lines.zip(out.as_chunks_mut::<64>().0) {
        let mut codes = [_mm512_setzero_si512(); 4];
        for i in 0..4 {
            let bits = load_512(&lines[i]);
            let above = _mm512_subs_epu16(magnitude(bits), _mm512_set1_epi32(patterns[i].cast_signed()));
            let found = if EVEN {
                // Whole steps and those begun: middles have their own number.
                let begun = _mm512_srli_epi16::<5>(_mm512_add_epi16(above, _mm512_set1_epi16(BELOW.cast_signed())));
                let step = _mm512_add_epi16(_mm512_srli_epi16::<5>(above), begun);
                let [low, high] = const { even_codes() };
                _mm512_permutex2var_epi16(load_words_512(&low), step, load_words_512(&high))
            } else {
                let step = _mm512_srli_epi16::<5>(above);
                _mm512_permutexvar_epi16(step, load_words_512(&const { codes_of_steps() }))
            };
            codes[i] = with_sign(found, bits);
        }
        pack::<4>(_mm512_packus_epi16(codes[0], codes[1]), _mm512_packus_epi16(codes[2], codes[3]), out);
    }
}

/// The codes of steps, ties going down.
const fn codes_of_steps() -> [u16; 32] {
    let mut codes = [0; 32];
    let mut step = 1;
    while step < 32 {
        let mut code = 1;
        while code < 8 {
            if step > STEPS[code as usize - 1] {
                codes[step as usize] = SIGNED | code;
            }
            code += 1;
        }
        step += 1;
    }
    codes
}

/// The codes of twice a step where it is a middle, and one more above it; ties going to even codes.
const fn even_codes() -> [[u16; 32]; 2] {
    let mut codes = [[SIGNED; 32]; 2];
    let mut step = 0;
    while step < 64 {
        let mut code = 1;
        while code < 8 {
            let middle = 2 * STEPS[code as usize - 1];
            if step > middle || (step == middle && code % 2 == 0) {
                codes[step as usize / 32][step as usize % 32] = SIGNED | code;
            }
            code += 1;
        }
        step += 1;
    }
    codes
}

/// The code of a table's word, with the sign of an element where it takes one.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn with_sign(found: __m512i, bits: __m512i) -> __m512i {
    let sign = _mm512_srli_epi16::<12>(_mm512_and_si512(found, bits));
    // (found & 7) | sign
    _mm512_ternarylogic_epi32::<0xf8>(sign, found, _mm512_set1_epi16(7))
}

/// The codes of 32 groups; `up` rounds products, as patterns of f32, to the upper halves.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn nvfp4(up: u32, lines: &[Line; LINES], scales: &Scales<32>, out: &mut [u8]) {
    let mut factors = [0f32; 32];
    for (factor, scale) in factors.iter_mut().zip(&scales.factor) {
        *factor = 1.0 / scale;
    }
    let lines = lines.as_chunks::<4>().0.iter().zip(factors.as_chunks::<2>().0.as_chunks::<4>().0);
    for ((lines, factors), out) in lines.zip(out.as_chunks_mut::<64>().0) {
        let mut codes = [_mm512_setzero_si512(); 4];
        for i in 0..4 {
            let bits = load_512(&lines[i]);
            let [first, second] = factors[i];
            let factor = _mm512_mask_blend_ps(0xff00, _mm512_set1_ps(first), _mm512_set1_ps(second));
            let [even, odd] = values::<false>(magnitude(bits)).map(|w| {
                let product = _mm512_castps_si512(_mm512_mul_ps(w, factor));
                _mm512_add_epi32(product, _mm512_set1_epi32(up.cast_signed()))
            });
            // The upper half of `odd`, that of `even` below it.
            let even = _mm512_srli_epi32::<16>(even);
            let rounded = _mm512_ternarylogic_epi32::<0xe2>(odd, _mm512_set1_epi32(UPPER), even);
            let none = const { (NONE_E2M1 - BELOW).cast_signed() };
            let step = _mm512_srli_epi16::<5>(_mm512_subs_epu16(rounded, _mm512_set1_epi16(none)));
            let step = _mm512_min_epu16(step, _mm512_set1_epi16(31));
            let found = _mm512_permutexvar_epi16(step, load_words_512(&const { codes_of_steps() }));
            codes[i] = with_sign(found, bits);
        }
        pack::<4>(_mm512_packus_epi16(codes[0], codes[1]), _mm512_packus_epi16(codes[2], codes[3]), out);
    }
}

/// The codes of sixteen groups.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn mxfp8(lines: &[Line; LINES], patterns: &[u32; LINES], out: &mut [u8]) {
    let lines = lines.as_chunks::<4>().0.iter().zip(patterns.as_chunks::<4>().0);
    for ((lines, patterns), out) in lines.zip(out.as_chunks_mut::<128>().0) {
        let mut codes = [_mm512_setzero_si512(); 4];
        for i in 0..4 {
            let bits = load_512(&lines[i]);
            let above = _mm512_subs_epu16(magnitude(bits), _mm512_set1_epi32(patterns[i].cast_signed()));
            let code = e4m3(above);
            // code | (bits >> 8 & 0x80)
            codes[i] = _mm512_ternarylogic_epi32::<0xf8>(code, _mm512_srli_epi16::<8>(bits), _mm512_set1_epi16(0x80));
        }
        pack::<8>(_mm512_packus_epi16(codes[0], codes[1]), _mm512_packus_epi16(codes[2], codes[3]), out);
    }
}

/// The code of a magnitude by the patterns that it is above 2^-10, half to even and saturated.
///
/// e4m3 has 2^-9 as its unit below 2^-6, and an eighth of a power from there on: codes are even in the first
/// four powers above 2^-10 as they would be in fixed point, and then in the logarithm.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn e4m3(above: __m512i) -> __m512i {
    let power = _mm512_srli_epi16::<7>(above);
    // (above & 0x7f) | 0x80
    let significand = _mm512_ternarylogic_epi32::<0xf8>(_mm512_set1_epi16(0x80), above, _mm512_set1_epi16(0x7f));
    let four = _mm512_set1_epi16(4);
    let fixed = _mm512_sllv_epi16(significand, _mm512_min_epu16(power, four));
    let powers = _mm512_slli_epi16::<11>(_mm512_subs_epu16(power, four));
    let exact = _mm512_add_epi16(fixed, powers);
    // In units of 1/256.
    let odd = _mm512_and_si512(_mm512_srli_epi16::<8>(exact), _mm512_set1_epi16(1));
    let rounded = _mm512_add_epi16(exact, _mm512_add_epi16(odd, _mm512_set1_epi16(127)));
    _mm512_min_epu16(_mm512_srli_epi16::<8>(rounded), _mm512_set1_epi16(0x7e))
}
