//! Round to nearest along the input: GPTQ's and AWQ's codes, whose words hold what the rows of the weight
//! have one below the other once the weight is transposed (`quant::format::{gptq,awq}` say what it follows).
//!
//! A band of whole groups of columns comes in row by row. Rows are coded as they lie, sixteen words of
//! them are turned at a time: a line of the transposed output is written once and whole.
//!
//! A group with a NaN has a NaN for its scale and code 0 everywhere, so that all of its values are NaN, as
//! the reference's arithmetic has it; so has an infinite element whose scale is infinite.

use crate::{
    kernel::{Columns, Rule},
    tensor::Float,
};

use super::{affine::extrema, larger, narrow, pack::pack, round_to, sixteen::LANES, smaller, widen};

/// 1.5 * 2^23: added to a value of at most 2^22 in magnitude it leaves the value rounded half to even, in
/// two's complement in the low bits.
const ROUNDER: f32 = 12_582_912.0;
/// Elements of the longest group.
const LONGEST: usize = 128;
/// Rows of a word of AWQ: 4-bit codes in 32 bits.
const OCTET: usize = 8;
/// Row of an octet whose code a word of AWQ holds in its lowest bits, the next ones, ...
const ORDER: [usize; OCTET] = [0, 2, 4, 6, 1, 3, 5, 7];
/// Least step of AWQ's groups before it is divided: 1e-5 as an IEEE half.
const LEAST_SPAN: f32 = 168.0 / 16_777_216.0;
/// What the elements of a group share.
#[derive(Clone, Copy)]
struct Fit {
    scale: f32,
    zero: f32,
}

/// Room for a group of sixteen words' rows.
struct Scratch {
    values: [f32; LONGEST],
    /// Codes of the rows of one word.
    coded: [[u8; LONGEST]; OCTET],
    /// Words before they are turned.
    words: [[u32; LONGEST]; LANES],
    zeros: [u8; LANES * OCTET],
    scales: [f32; LANES * OCTET],
}

/// Codes, zero points and scales of a band; see [`Columns`] for their layout.
#[inline(always)]
pub(in crate::kernel) fn quantize(job: &Columns, src: &[u8], codes: &mut [u8], zeros: &mut [u8], scales: &mut [u8]) {
    let mut scratch = Scratch {
        values: [0.0; LONGEST],
        coded: [[0; LONGEST]; OCTET],
        words: [[0; LONGEST]; LANES],
        zeros: [0; LANES * OCTET],
        scales: [0.0; LANES * OCTET],
    };
    let (row_bytes, group_bytes) = (job.cols * job.float.size(), job.group * job.float.size());
    let (rows, groups, per_word) = (src.len() / row_bytes, job.cols / job.group, job.rows_of_word());
    let line = rows / per_word * 4;
    let (code_bytes, zero_bytes) = (codes.len() / groups, zeros.len() / groups);
    for (block, some) in src.chunks(LANES * per_word * row_bytes).enumerate() {
        let (first, count) = (block * LANES * per_word, some.len() / row_bytes);
        for group in 0..groups {
            for (lane, own) in some.chunks_exact(per_word * row_bytes).enumerate() {
                let own = own.chunks_exact(row_bytes).map(|row| &row[group * group_bytes..][..group_bytes]);
                code_rows(job, own, lane, &mut scratch);
            }
            let codes = &mut codes[group * code_bytes..][..code_bytes];
            turn(&scratch.words, count / per_word, line, &mut codes[first / per_word * 4..]);
            let zeros = &mut zeros[group * zero_bytes..][..zero_bytes];
            pack_zeros(job, &scratch.zeros[..count], &mut zeros[first * zero_bytes / rows..]);
            narrow(Float::F16, &scratch.scales[..count], &mut scales[(group * rows + first) * 2..][..count * 2]);
        }
    }
}

/// The words of one group of the rows that share them.
#[inline(always)]
fn code_rows<'a>(job: &Columns, rows: impl Iterator<Item = &'a [u8]>, lane: usize, scratch: &mut Scratch) {
    let values = &mut scratch.values[..job.group];
    for (i, row) in rows.enumerate() {
        widen(job.float, row, values);
        if job.rule == Rule::Awq && job.float != Float::F16 {
            round_to(Float::F16, values);
        }
        let fit = fit(job, values);
        let at = lane * job.rows_of_word() + i;
        (scratch.zeros[at], scratch.scales[at]) = (low_byte(fit.zero + ROUNDER), fit.scale);
        let coded = &mut scratch.coded[i][..job.group];
        match job.rule {
            Rule::Gptq { bits, .. } => code(values, fit, highest(bits), coded, |exact| exact),
            Rule::Awq => code(values, fit, highest(4), coded, eleven_bits),
        }
    }
    let words = &mut scratch.words[lane];
    match job.rule {
        Rule::Gptq { bits, .. } => {
            let mut packed = [0u8; LONGEST];
            let packed = &mut packed[..job.group / 8 * bits as usize];
            pack(bits, &scratch.coded[0][..job.group], packed);
            for (word, bytes) in words.iter_mut().zip(packed.as_chunks::<4>().0) {
                *word = u32::from_le_bytes(*bytes);
            }
        }
        Rule::Awq => {
            for (k, word) in words[..job.group].iter_mut().enumerate() {
                *word = (0..OCTET).fold(0, |word, i| word | u32::from(scratch.coded[ORDER[i]][k]) << (4 * i));
            }
        }
    }
}

/// Word k of each lane becomes line k of the output.
#[inline(always)]
fn turn(words: &[[u32; LONGEST]; LANES], lanes: usize, line: usize, out: &mut [u8]) {
    for (k, out) in out.chunks_mut(line).enumerate() {
        let mut turned = [0u8; LANES * 4];
        for (four, words) in turned.as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *four = words[k].to_le_bytes();
        }
        out[..lanes * 4].copy_from_slice(&turned[..lanes * 4]);
    }
}

/// Zero points, packed along the rows as codes are along the columns.
#[inline(always)]
fn pack_zeros(job: &Columns, zeros: &[u8], out: &mut [u8]) {
    match job.rule {
        Rule::Gptq { bits, less_one, .. } => {
            let mut stored = [0u8; LANES];
            for (stored, zero) in stored.iter_mut().zip(zeros) {
                *stored = zero - u8::from(less_one);
            }
            pack(bits, &stored, &mut out[..LANES / 8 * bits as usize]);
        }
        Rule::Awq => {
            for (eight, four) in zeros.as_chunks::<OCTET>().0.iter().zip(out.as_chunks_mut::<4>().0) {
                let word = (0..OCTET).fold(0, |word, i| word | u32::from(eight[ORDER[i]]) << (4 * i));
                *four = word.to_le_bytes();
            }
        }
    }
}

#[inline(always)]
fn highest(bits: u32) -> f32 {
    f32::from(u8::MAX >> (8 - bits))
}

/// Scale and zero point of a group.
#[inline(always)]
fn fit(job: &Columns, values: &[f32]) -> Fit {
    let mut odd = [false; LANES];
    for lanes in values.as_chunks::<LANES>().0 {
        for i in 0..LANES {
            odd[i] |= lanes[i].is_nan();
        }
    }
    let fit = match job.rule {
        Rule::Gptq { bits, symmetric, less_one } => {
            let (least, most) = extrema(values, 0.0, 0.0);
            fit_gptq(highest(bits), symmetric, less_one, least, most)
        }
        Rule::Awq => {
            let (least, most) = extrema(values, f32::INFINITY, f32::NEG_INFINITY);
            fit_awq(least, most)
        }
    };
    if odd.iter().any(|odd| *odd) { Fit { scale: f32::NAN, ..fit } } else { fit }
}

/// `find_params` of auto-gptq and gptqmodel. Where zero points are stored less one, none may be 0: such a group
/// gets one step fewer and the zero point 1.
#[inline(always)]
fn fit_gptq(top: f32, symmetric: bool, less_one: bool, mut least: f32, mut most: f32) -> Fit {
    if symmetric {
        most = larger(-least, most);
        least = if least < 0.0 { -most } else { least };
    }
    if least == 0.0 && most == 0.0 {
        (least, most) = (-1.0, 1.0);
    }
    let span = most - least;
    let scale = span / top;
    if symmetric {
        return Fit { scale, zero: f32::midpoint(top, 1.0) };
    }
    let zero = nearest(-least / scale, 0.0, top);
    if less_one && zero == 0.0 { Fit { scale: span / (top - 1.0), zero: 1.0 } } else { Fit { scale, zero } }
}

/// AutoAWQ's `pseudo_quantize_tensor`, every step rounded to an IEEE half.
#[inline(always)]
fn fit_awq(least: f32, most: f32) -> Fit {
    let half = |x: f32| {
        let mut one = [x];
        round_to(Float::F16, &mut one);
        one[0]
    };
    let span = larger(LEAST_SPAN, half(most - least));
    let scale = half(span / 15.0);
    Fit { scale, zero: nearest(-half(least / scale), 0.0, 15.0) }
}

/// Rounded half to even within bounds; 0 for NaN.
#[inline(always)]
fn nearest(exact: f32, low: f32, high: f32) -> f32 {
    let number = if exact.is_nan() { 0.0 } else { exact };
    (smaller(larger(number, low), high) + ROUNDER) - ROUNDER
}

/// Codes of a group: `w / scale` through `step`, rounded half to even, from the zero point. A whole number is
/// added, so that bounds may come first.
#[inline(always)]
fn code(values: &[f32], fit: Fit, top: f32, coded: &mut [u8], step: impl Fn(f32) -> f32) {
    let (low, high) = (-fit.zero, top - fit.zero);
    let (values, coded) = (values.as_chunks::<LANES>().0, coded.as_chunks_mut::<LANES>().0);
    for (values, coded) in values.iter().zip(coded) {
        for i in 0..LANES {
            let exact = step(values[i] / fit.scale);
            // What is no number has the lowest code.
            let bounded = smaller(larger(exact, low), high);
            coded[i] = low_byte((bounded + ROUNDER) + fit.zero);
        }
    }
}

/// A whole number below 256 that was added to [`ROUNDER`].
#[inline(always)]
fn low_byte(rounded: f32) -> u8 {
    (rounded.to_bits() & 0xff) as u8
}

/// Rounded to the eleven bits that an IEEE half has, half to even: as far as whole numbers in the range of
/// codes tell, that is rounding to a half.
#[inline(always)]
fn eleven_bits(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits(bits.wrapping_add(0xfff + ((bits >> 13) & 1)) & !0x1fff)
}
