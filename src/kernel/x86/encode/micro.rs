//! Codes of small floats from bf16 by vectors: sixteen lines at a time, two bytes of an element.
//!
//! Always: the bytes of `body::microscaling::quantize`, whose scales these are. A bf16 over a power of two is
//! a subtraction from its bits, and every middle between codes is a bf16 of few bits: a code is a matter of
//! the difference of two bit patterns. nvfp4's scales are no powers of two: there a product with the
//! reciprocal is made in f32 first.
//!
//! On the CPU the reference divides and rounds to its own float. How near the product p has to be to that: it
//! compares `w / scale` with thresholds of at most 9 bits for bf16. A threshold times a scale has at most 13
//! bits, so that w is that product or 2^-14 of it away; p is off by 2^-22. A threshold that is raised by
//! [`SLACK`] of its last places, 2^-20 to 2^-19 of it, parts the same elements. With f32 arithmetic thresholds
//! have 3 bits and lie yet farther off. On Metal p is what the reference has.
//!
//! Half a line a register, also for the tables of AVX-512: registers of whole lines gained nothing measurable.
//!
//! Left to the body: other sources, f16 arithmetic, what is left of sixteen lines, and sixteen lines with
//! elements that are not finite, or with groups so small (nvfp4: so large) that patterns are no measure.

use std::arch::x86_64::{
    __m256i, _mm256_add_epi16, _mm256_add_epi32, _mm256_and_si256, _mm256_blend_epi16, _mm256_castps_si256,
    _mm256_castsi256_ps, _mm256_castsi256_si128, _mm256_cmpgt_epi8, _mm256_cvtepu16_epi32, _mm256_extracti128_si256,
    _mm256_max_epi16, _mm256_max_epu16, _mm256_min_epi8, _mm256_min_epu8, _mm256_min_epu16, _mm256_mul_ps,
    _mm256_mullo_epi16, _mm256_or_si256, _mm256_packs_epi16, _mm256_packus_epi16, _mm256_permute2x128_si256,
    _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_si256, _mm256_shuffle_epi8,
    _mm256_slli_epi16, _mm256_slli_epi32, _mm256_srli_epi16, _mm256_srli_epi32, _mm256_sub_epi8, _mm256_subs_epu16,
    _mm256_unpackhi_epi16, _mm256_unpackhi_epi32, _mm256_unpackhi_epi64, _mm256_unpacklo_epi16, _mm256_unpacklo_epi32,
    _mm256_unpacklo_epi64,
};

use crate::{
    kernel::{
        Flavour, Micro, MicroCode, QuantizeMicro,
        body::{
            fixed::Line,
            microscaling::{INFINITE, SEARCHABLE, Scales, scale, thresholds_before},
        },
        x86::registers::{load_256, store_values_256},
    },
    num::fp4::TIES_DOWN,
    tensor::Float,
};

use super::avx2::{pack, values};

/// Lines of 32 elements that are coded together.
type Block = [Line; TOGETHER];
const TOGETHER: usize = 16;
/// Last places by which nvfp4's thresholds are raised.
const SLACK: u32 = 16;
/// 2^-100: a largest magnitude from which on the patterns of all quotients are those of normal numbers, or of
/// so small ones that their code is 0.
const SMALL: u32 = (127 - 100) << 23;
/// bf16 patterns of magnitudes up to which the code is 0: a half of the least one of e2m1, a quarter of e4m3's.
const NONE_E2M1: u16 = (127 - 2) << 7;
const NONE_E4M3: u16 = (127 - 11) << 7;

/// From one middle of e2m1 to the next is a whole number of steps of 32 bf16, from 1/4 on. A magnitude above a
/// middle is counted to the step above.
///
/// Where ties go to even codes, the second, fourth and sixth middle are counted to the step above too: those
/// whose number has a 2 in it. Others that have one lie between two steps of the same code.
const STEPS: [u8; 7] = [0, 6, 9, 11, 13, 15, 17];
/// What a pattern is raised by to be counted to the step above, unless it is a middle.
const BELOW: u16 = 31;

/// The largest magnitude of each group.
#[repr(C, align(64))]
struct Largest<const N: usize>([f32; N]);

/// `body::microscaling::quantize`, which is also given for what is left to it.
#[target_feature(enable = "avx2")]
pub(in crate::kernel::x86) fn quantize(job: &Micro, src: &[u8], out: [&mut [u8]; 2], body: QuantizeMicro) {
    if job.float != Float::Bf16 || job.computed == Float::F16 {
        let [codes, scales] = out;
        return body(job, src, codes, scales);
    }
    let none = NONE_E2M1 - BELOW;
    let lines = |lines: &_, largest: &mut Largest<16>| magnitudes::<2>(lines, &mut largest.0);
    let halves = |lines: &_, largest: &mut Largest<32>| magnitudes::<1>(lines, &mut largest.0);
    match (job.code, job.flavour) {
        (MicroCode::Mxfp4, Flavour::Cpu) => blocks(job, src, out, body, lines, |lines, largest, scales, out| {
            mxfp4::<false>(lines, &patterns(largest, scales, none), out);
        }),
        (MicroCode::Mxfp4, Flavour::Metal) => blocks(job, src, out, body, lines, |lines, largest, scales, out| {
            mxfp4::<true>(lines, &patterns(largest, scales, none), out);
        }),
        (MicroCode::Mxfp8, _) => blocks(job, src, out, body, lines, |lines, largest, scales, out| {
            mxfp8(lines, &patterns(largest, scales, NONE_E4M3), out);
        }),
        (MicroCode::Nvfp4, Flavour::Cpu) => {
            let up = raised(job.computed);
            let code = |lines: &_, _: &_, scales: &Scales<32>, out: &mut [u8]| {
                nvfp4::<false>(up, lines, &reciprocals(scales), out);
            };
            blocks(job, src, out, body, halves, code);
        }
        (MicroCode::Nvfp4, Flavour::Metal) => {
            let code = |lines: &_, _: &_, scales: &Scales<32>, out: &mut [u8]| {
                nvfp4::<true>(0, lines, &scales.factor, out);
            };
            blocks(job, src, out, body, halves, code);
        }
    }
}

/// A block at a time, of N groups: `magnitudes` finds the largest ones and `code` packs the codes.
#[inline(always)]
fn blocks<const N: usize>(
    job: &Micro,
    src: &[u8],
    [codes, scales]: [&mut [u8]; 2],
    body: QuantizeMicro,
    magnitudes: impl Fn(&Block, &mut Largest<N>),
    code: impl Fn(&Block, &Largest<N>, &Scales<N>, &mut [u8]),
) {
    let blocks = src.as_chunks::<64>().0.as_chunks::<TOGETHER>().0;
    // It may end with half a line.
    let rest = &src[blocks.as_flattened().as_flattened().len()..];
    let per_block = TOGETHER * 4 * job.code.bits() as usize;
    let (codes, last_codes) = codes.split_at_mut(blocks.len() * per_block);
    let (scales, last_scales) = scales.split_at_mut(blocks.len() * N);
    let mut largest = Largest([0.0; N]);
    let mut found = Scales { factor: [0.0; N], byte: [0; N] };
    let outs = codes.chunks_exact_mut(per_block).zip(scales.as_chunks_mut().0);
    for (lines, (codes, scales)) in blocks.iter().zip(outs) {
        magnitudes(lines, &mut largest);
        if measurable(job, &largest) {
            scale(job, &largest.0, &mut found);
            code(lines, &largest, &found, codes);
            *scales = found.byte;
        } else {
            body(job, lines.as_flattened(), codes, scales);
        }
    }
    body(job, rest, last_codes, last_scales);
}

/// Whether patterns tell all codes of groups.
#[inline(always)]
fn measurable<const N: usize>(job: &Micro, largest: &Largest<N>) -> bool {
    let (least, limit) = match (job.code, job.flavour) {
        (MicroCode::Nvfp4, Flavour::Cpu) => (0, SEARCHABLE),
        (MicroCode::Nvfp4, Flavour::Metal) => (0, INFINITE),
        (MicroCode::Mxfp4 | MicroCode::Mxfp8, _) => (SMALL, INFINITE),
    };
    let mut all = true;
    for x in &largest.0 {
        let bits = x.to_bits();
        all &= (bits < limit) & ((bits >= least) | (bits == 0));
    }
    all
}

/// The largest magnitude of each group of so many halves of lines.
///
/// Each step leaves the larger ones of half of two vectors' lanes, until a word is a group.
#[target_feature(enable = "avx2")]
#[inline]
fn magnitudes<const HALVES: usize>(lines: &Block, largest: &mut [f32]) {
    let groups: &[[[u8; 32]; HALVES]] = lines.as_flattened().as_chunks().0.as_chunks().0;
    for (groups, largest) in groups.as_chunks::<16>().0.iter().zip(largest.as_chunks_mut::<16>().0) {
        let mut eights = [_mm256_setzero_si256(); 2];
        for (eight, groups) in eights.iter_mut().zip(groups.as_chunks::<8>().0) {
            let mut fours = [_mm256_setzero_si256(); 2];
            for (four, groups) in fours.iter_mut().zip(groups.as_chunks::<4>().0) {
                let [a, b, c, d] = groups.each_ref();
                let (a, b) = (largest_words(a), largest_words(b));
                let (c, d) = (largest_words(c), largest_words(d));
                let ab = _mm256_max_epi16(_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b));
                let cd = _mm256_max_epi16(_mm256_unpacklo_epi16(c, d), _mm256_unpackhi_epi16(c, d));
                *four = _mm256_max_epi16(_mm256_unpacklo_epi32(ab, cd), _mm256_unpackhi_epi32(ab, cd));
            }
            let [a, b] = fours;
            *eight = _mm256_max_epi16(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
        }
        let [a, b] = eights;
        let halves = (_mm256_permute2x128_si256::<0x20>(a, b), _mm256_permute2x128_si256::<0x31>(a, b));
        let all = _mm256_max_epi16(halves.0, halves.1);
        let parts = [_mm256_castsi256_si128(all), _mm256_extracti128_si256::<1>(all)];
        for (part, out) in parts.into_iter().zip(largest.as_chunks_mut().0) {
            store_values_256(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(part))), out);
        }
    }
}

/// The larger ones of magnitudes at the same place.
#[target_feature(enable = "avx2")]
#[inline]
fn largest_words<const HALVES: usize>(halves: &[[u8; 32]; HALVES]) -> __m256i {
    let mut words = magnitude(load_256(&halves[0]));
    for half in &halves[1..] {
        words = _mm256_max_epi16(words, magnitude(load_256(half)));
    }
    words
}

#[target_feature(enable = "avx2")]
#[inline]
fn magnitude(bits: __m256i) -> __m256i {
    _mm256_and_si256(bits, _mm256_set1_epi16(i16::MAX))
}

#[target_feature(enable = "avx2")]
#[inline]
fn load_halves(line: &[u8; 64]) -> [__m256i; 2] {
    let halves: &[[u8; 32]] = line.as_chunks().0;
    [load_256(&halves[0]), load_256(&halves[1])]
}

/// The pattern, twice in a dword, of a group's scale times the quotient that has this one.
#[inline(always)]
fn patterns(largest: &Largest<TOGETHER>, scales: &Scales<TOGETHER>, quotient: u16) -> [u32; TOGETHER] {
    let mut patterns = [0; TOGETHER];
    for ((out, largest), byte) in patterns.iter_mut().zip(&largest.0).zip(&scales.byte) {
        // Any power serves for a group of zeros; Metal's least one has no pattern.
        let exponent = if *largest > 0.0 { i32::from(*byte) - 127 } else { 0 };
        let pattern = ((exponent << 7) + i32::from(quotient)).cast_unsigned() & 0xffff;
        *out = pattern << 16 | pattern;
    }
    patterns
}

/// The codes of sixteen groups; with `EVEN`, ties go to even codes and zeros keep their sign.
#[target_feature(enable = "avx2")]
#[inline]
fn mxfp4<const EVEN: bool>(lines: &Block, patterns: &[u32; TOGETHER], out: &mut [u8]) {
    let lines = lines.as_chunks::<2>().0.iter().zip(patterns.as_chunks::<2>().0);
    for ((lines, patterns), out) in lines.zip(out.as_chunks_mut::<32>().0) {
        let mut codes = [_mm256_setzero_si256(); 2];
        for i in 0..2 {
            let (bits, none) = (load_halves(&lines[i]), _mm256_set1_epi32(patterns[i].cast_signed()));
            codes[i] = e2m1::<EVEN>(bits.map(|bits| _mm256_subs_epu16(magnitude(bits), none)), bits);
        }
        pack::<4>(codes, out);
    }
}

/// What rounds products, as patterns of f32, to the upper halves: those above a threshold of nvfp4 on the CPU
/// to the next one.
fn raised(computed: Float) -> u32 {
    let rounding = thresholds_before(computed)[0].to_bits() - TIES_DOWN[0].to_bits();
    0xffff - rounding - SLACK
}

/// By what elements are multiplied for nvfp4.
#[inline(always)]
fn reciprocals(scales: &Scales<32>) -> [f32; 32] {
    let mut factors = [0f32; 32];
    for (factor, scale) in factors.iter_mut().zip(&scales.factor) {
        *factor = 1.0 / scale;
    }
    factors
}

/// The codes of 32 groups; with `EVEN`, products are the reference's own, ties go to even codes and zeros keep
/// their sign. Else `up` rounds products, as patterns of f32, to the upper halves.
#[target_feature(enable = "avx2")]
#[inline]
fn nvfp4<const EVEN: bool>(up: u32, lines: &Block, factors: &[f32; 32], out: &mut [u8]) {
    let none = _mm256_set1_epi16((NONE_E2M1 - BELOW).cast_signed());
    let lines = lines.as_chunks::<2>().0.iter().zip(factors.as_chunks::<2>().0.as_chunks::<2>().0);
    for ((lines, factors), out) in lines.zip(out.as_chunks_mut::<32>().0) {
        let mut codes = [_mm256_setzero_si256(); 2];
        for i in 0..2 {
            let bits = load_halves(&lines[i]);
            let mut above = bits;
            for (half, factor) in above.iter_mut().zip(factors[i]) {
                let factor = _mm256_set1_ps(factor);
                let products = values(magnitude(*half)).map(|w| _mm256_castps_si256(_mm256_mul_ps(w, factor)));
                let product = if EVEN {
                    marked(products)
                } else {
                    upper(products.map(|p| _mm256_add_epi32(p, _mm256_set1_epi32(up.cast_signed()))))
                };
                *half = _mm256_subs_epu16(product, none);
            }
            codes[i] = e2m1::<EVEN>(above, bits);
        }
        pack::<4>(codes, out);
    }
}

/// The upper halves of dwords, by turns.
#[target_feature(enable = "avx2")]
#[inline]
fn upper([even, odd]: [__m256i; 2]) -> __m256i {
    _mm256_blend_epi16::<0xaa>(_mm256_srli_epi32::<16>(even), odd)
}

/// The same, with the last bit set where any bit of the lower half is: on which side of a middle that was.
#[target_feature(enable = "avx2")]
#[inline]
fn marked([even, odd]: [__m256i; 2]) -> __m256i {
    let lower = _mm256_blend_epi16::<0xaa>(even, _mm256_slli_epi32::<16>(odd));
    _mm256_or_si256(upper([even, odd]), _mm256_min_epu16(lower, _mm256_set1_epi16(1)))
}

/// The codes, with the signs of `bits`, of magnitudes by the patterns that they are above [`NONE_E2M1`] less
/// [`BELOW`]: bytes, eight of the first half, eight of the second, and so on.
#[target_feature(enable = "avx2")]
#[inline]
fn e2m1<const EVEN: bool>(above: [__m256i; 2], bits: [__m256i; 2]) -> __m256i {
    let [first, second] = above.map(|above| {
        let up = _mm256_and_si256(_mm256_srli_epi16::<6>(above), _mm256_set1_epi16(1));
        _mm256_srli_epi16::<5>(if EVEN { _mm256_add_epi16(above, up) } else { above })
    });
    let step = _mm256_packs_epi16(first, second);
    // A table has sixteen places, for step 0 there is none: the last code, whose middle is the 17th, is added.
    let place = _mm256_sub_epi8(_mm256_min_epi8(step, _mm256_set1_epi8(16)), _mm256_set1_epi8(1));
    let found = _mm256_shuffle_epi8(load_256(&const { codes_of_steps(EVEN) }), place);
    let found = _mm256_sub_epi8(found, _mm256_cmpgt_epi8(step, _mm256_set1_epi8(STEPS[6].cast_signed())));
    // The signs of words stay those of bytes.
    let sign = _mm256_srli_epi16::<4>(_mm256_packs_epi16(bits[0], bits[1]));
    if EVEN {
        _mm256_or_si256(found, _mm256_and_si256(sign, _mm256_set1_epi8(8)))
    } else {
        _mm256_and_si256(found, _mm256_or_si256(sign, _mm256_set1_epi8(!8)))
    }
}

/// The codes of steps 1 to 16, twice; where zeros have no sign, with room for one.
const fn codes_of_steps(even: bool) -> [u8; 32] {
    let mut codes = [if even { 0 } else { 8 }; 32];
    let mut i = 0u8;
    while i < 32 {
        let mut middle = 0;
        while middle < 7 {
            codes[i as usize] += (1 + i % 16 > STEPS[middle]) as u8;
            middle += 1;
        }
        i += 1;
    }
    codes
}

/// The codes of sixteen groups.
#[target_feature(enable = "avx2")]
#[inline]
fn mxfp8(lines: &Block, patterns: &[u32; TOGETHER], out: &mut [u8]) {
    let lines = lines.as_chunks::<2>().0.iter().zip(patterns.as_chunks::<2>().0);
    for ((lines, patterns), out) in lines.zip(out.as_chunks_mut::<64>().0) {
        let mut codes = [_mm256_setzero_si256(); 2];
        for i in 0..2 {
            let (bits, none) = (load_halves(&lines[i]), _mm256_set1_epi32(patterns[i].cast_signed()));
            let [first, second] = bits.map(|bits| e4m3(_mm256_subs_epu16(magnitude(bits), none)));
            let code = _mm256_min_epu8(_mm256_packus_epi16(first, second), _mm256_set1_epi8(0x7e));
            let sign = _mm256_and_si256(_mm256_packs_epi16(bits[0], bits[1]), _mm256_set1_epi8(i8::MIN));
            codes[i] = _mm256_or_si256(code, sign);
        }
        pack::<8>(codes, out);
    }
}

/// The code of a magnitude by the patterns that it is above 2^-11, half to even, not yet saturated.
///
/// e4m3 has 2^-9 as its unit below 2^-6, and an eighth of a power from there on: codes are even in fixed point
/// at first, and then in the logarithm, which is the higher one from there on.
#[target_feature(enable = "avx2")]
#[inline]
fn e4m3(above: __m256i) -> __m256i {
    let times = _mm256_shuffle_epi8(load_256(&POWERS), _mm256_srli_epi16::<7>(above));
    let significand = _mm256_or_si256(_mm256_and_si256(above, _mm256_set1_epi16(0x7f)), _mm256_set1_epi16(0x80));
    let fixed = _mm256_mullo_epi16(significand, times);
    let exact = _mm256_max_epu16(fixed, _mm256_slli_epi16::<4>(_mm256_subs_epu16(above, _mm256_set1_epi16(4 * 128))));
    // In units of 1/256.
    let odd = _mm256_and_si256(_mm256_srli_epi16::<8>(exact), _mm256_set1_epi16(1));
    let rounded = _mm256_add_epi16(exact, _mm256_add_epi16(odd, _mm256_set1_epi16(127)));
    _mm256_srli_epi16::<8>(rounded)
}

/// By what a significand is multiplied in the first powers: nothing below 2^-10. Later ones, which look up any
/// of these, are far higher in the logarithm. Byte 0 is also what the upper half of a word looks up.
const POWERS: [u8; 32] = {
    let mut powers = [0; 32];
    let mut power = 1;
    while power <= 4 {
        powers[power] = 1 << (power - 1);
        powers[16 + power] = powers[power];
        power += 1;
    }
    powers
};
