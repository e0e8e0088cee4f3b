//! Round to nearest along the input: GPTQ's and AWQ's codes, whose words hold what the rows of the weight
//! have one below the other once the weight is transposed (`quant::format::{gptq,awq}` say what it follows).
//!
//! A band of whole groups of columns comes in row by row. Rows are coded as they lie, sixteen words of
//! them are turned at a time: a line of the transposed output is written once and whole.
//!
//! A group with a NaN has a NaN for its scale and code 0 everywhere, so that all of its values are NaN, as
//! the reference's arithmetic has it; so has an infinite element whose scale is infinite.

use crate::{
    kernel::{Choice, Columns, Rule},
    tensor::Float,
};

use super::{
    SIGNED_ROUNDER,
    affine::extrema,
    grid::{Code, Grid, Points, improve},
    groups::{Groups, LONGEST},
    larger, narrow,
    pack::pack,
    round_to,
    sixteen::{LANES, Plain, Sixteen},
    smaller, widen,
};

/// Values that are coded together: with fewer, the compiler takes one of each of several runs.
const RUN: usize = 32;
/// Rows of a word of AWQ: 4-bit codes in 32 bits.
const OCTET: usize = 8;
/// Row of an octet whose code a word of AWQ holds in its lowest bits, the next ones, ...
const ORDER: [usize; OCTET] = [0, 2, 4, 6, 1, 3, 5, 7];
/// Least step of AWQ's groups before it is divided: 1e-5 as an IEEE half.
const LEAST_SPAN: f32 = 168.0 / 16_777_216.0;
/// What the elements of a group share, for each of sixteen rows.
struct Fits {
    scale: [f32; LANES],
    zero: [f32; LANES],
}

/// Room for one group of the rows of a line of the output.
struct Scratch {
    values: [[f32; LONGEST]; LANES],
    coded: [[u8; LONGEST]; LANES],
    /// Words before they are turned.
    words: [[u32; LONGEST]; LANES],
    zeros: [u8; LANES * OCTET],
    scales: [f32; LANES * OCTET],
}

/// Codes, zero points and scales of a band; see [`Columns`] for their layout.
#[inline(always)]
pub(in crate::kernel) fn quantize(job: &Columns, src: &[u8], codes: &mut [u8], zeros: &mut [u8], scales: &mut [u8]) {
    quantize_with(job, src, [codes, zeros, scales], None::<&mut Search<'_, Plain>>);
}

/// The same with better parameters, where a search finds some.
#[inline(always)]
pub(in crate::kernel) fn choose<S: Sixteen>(
    lanes: S,
    job: &Columns,
    choice: &Choice<'_>,
    src: &[u8],
    out: [&mut [u8]; 3],
) {
    quantize_with(job, src, out, Some(&mut Search { lanes, job, choice, groups: Groups::NONE }));
}

/// A search for better fits. No closure, which would be a function of its own, without the instance's features.
struct Search<'a, S> {
    lanes: S,
    job: &'a Columns,
    choice: &'a Choice<'a>,
    groups: Groups,
}

impl<S: Sixteen> Search<'_, S> {
    /// Changes the fits of groups of this number.
    #[inline(always)]
    fn improve(&mut self, number: usize, values: &[[f32; LONGEST]; LANES], fits: &mut Fits) {
        let Self { lanes, job, choice, groups } = self;
        let top = highest(job.bits());
        let zeros = match job.rule {
            Rule::Gptq { symmetric: true, .. } => ((top + 1.0) * 0.5, (top + 1.0) * 0.5),
            Rule::Gptq { less_one, .. } => (f32::from(u8::from(less_one)), top),
            Rule::Awq => (0.0, top),
        };
        let grid = Grid { top, zeros, signed: false, stored: Float::F16 };
        let rows = values.iter().map(|values| &values[..job.group]);
        groups.take(*lanes, job.group, rows, |_| choice.of_group(number, job.group));
        let points = Points { scale: &mut fits.scale, zero: &mut fits.zero };
        match job.rule {
            Rule::Gptq { .. } => improve(*lanes, &grid, groups, points, Whole { top }),
            Rule::Awq => improve(*lanes, &grid, groups, points, Half { top }),
        }
    }
}

/// Codes as [`code`] has them for GPTQ.
#[derive(Clone, Copy)]
struct Whole {
    top: f32,
}

impl Code for Whole {
    #[inline(always)]
    fn code(self, w: f32, scale: f32, zero: f32) -> f32 {
        held(w / scale, zero, self.top)
    }
}

/// The same for AWQ, which divides halves.
#[derive(Clone, Copy)]
struct Half {
    top: f32,
}

impl Code for Half {
    #[inline(always)]
    fn code(self, w: f32, scale: f32, zero: f32) -> f32 {
        held(eleven_bits(w / scale), zero, self.top)
    }
}

/// The code of so many steps from a zero point.
#[inline(always)]
fn held(exact: f32, zero: f32, top: f32) -> f32 {
    (smaller(larger(exact, -zero), top - zero) + SIGNED_ROUNDER) - SIGNED_ROUNDER + zero
}

/// A band whose fits are changed before they are used, where there is a search for better ones.
#[inline(always)]
fn quantize_with<S: Sixteen>(
    job: &Columns,
    src: &[u8],
    [codes, zeros, scales]: [&mut [u8]; 3],
    mut search: Option<&mut Search<'_, S>>,
) {
    let mut scratch = Scratch {
        values: [[0.0; LONGEST]; LANES],
        coded: [[0; LONGEST]; LANES],
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
            for (number, sixteen) in some.chunks_exact(LANES * row_bytes).enumerate() {
                let rows = sixteen.chunks_exact(row_bytes).map(|row| &row[group * group_bytes..][..group_bytes]);
                let mut fits = widen_rows(job, rows, &mut scratch.values);
                if let Some(search) = &mut search {
                    search.improve(group, &scratch.values, &mut fits);
                }
                code_rows(job, &fits, number, &mut scratch);
            }
            let codes = &mut codes[group * code_bytes..][..code_bytes];
            turn(&scratch.words, count / per_word, line, &mut codes[first / per_word * 4..]);
            let zeros = &mut zeros[group * zero_bytes..][..zero_bytes];
            pack_zeros(job, &scratch.zeros[..count], &mut zeros[first * zero_bytes / rows..]);
            narrow(Float::F16, &scratch.scales[..count], &mut scales[(group * rows + first) * 2..][..count * 2]);
        }
    }
}

/// The values of one group of sixteen rows, and their fits.
#[inline(always)]
fn widen_rows<'a>(job: &Columns, rows: impl Iterator<Item = &'a [u8]>, values: &mut [[f32; LONGEST]; LANES]) -> Fits {
    for (row, values) in rows.zip(values.iter_mut()) {
        let values = &mut values[..job.group];
        widen(job.float, row, values);
        if job.rule == Rule::Awq && job.float != Float::F16 {
            round_to(Float::F16, values);
        }
    }
    fit(job, values)
}

/// The words of one group of the sixteen rows of this number.
#[inline(always)]
fn code_rows(job: &Columns, fits: &Fits, number: usize, scratch: &mut Scratch) {
    let Scratch { values, coded, words, zeros, scales } = scratch;
    let own = number * LANES..(number + 1) * LANES;
    scales[own.clone()].copy_from_slice(&fits.scale);
    zeros[own].iter_mut().zip(fits.zero).for_each(|(stored, zero)| *stored = low_byte(zero + SIGNED_ROUNDER));
    for (i, (values, coded)) in values.iter().zip(coded.iter_mut()).enumerate() {
        let (values, coded) = (&values[..job.group], &mut coded[..job.group]);
        match job.rule {
            Rule::Gptq { bits, .. } => code(values, fits.scale[i], fits.zero[i], highest(bits), coded, |exact| exact),
            Rule::Awq => code(values, fits.scale[i], fits.zero[i], highest(4), coded, eleven_bits),
        }
    }
    match job.rule {
        Rule::Gptq { bits, .. } => {
            for (coded, words) in coded.iter().zip(words) {
                let mut packed = [0u8; LONGEST];
                let packed = &mut packed[..job.group / 8 * bits as usize];
                pack(bits, &coded[..job.group], packed);
                for (word, bytes) in words.iter_mut().zip(packed.as_chunks::<4>().0) {
                    *word = u32::from_le_bytes(*bytes);
                }
            }
        }
        Rule::Awq => {
            let eights = coded.as_chunks::<OCTET>().0;
            for (coded, words) in eights.iter().zip(&mut words[number * (LANES / OCTET)..]) {
                for (k, word) in words[..job.group].iter_mut().enumerate() {
                    *word = (0..OCTET).fold(0, |word, i| word | u32::from(coded[ORDER[i]][k]) << (4 * i));
                }
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

/// Scales and zero points of the groups of sixteen rows.
#[inline(always)]
fn fit(job: &Columns, values: &[[f32; LONGEST]; LANES]) -> Fits {
    let mut fits = Fits { scale: [0.0; LANES], zero: [0.0; LANES] };
    let bound = if job.rule == Rule::Awq { f32::INFINITY } else { 0.0 };
    let (mut least, mut most) = ([0f32; LANES], [0f32; LANES]);
    for (i, values) in values.iter().enumerate() {
        (least[i], most[i]) = extrema(&values[..job.group], bound, -bound);
    }
    match job.rule {
        Rule::Gptq { bits, symmetric: true, .. } => {
            for i in 0..LANES {
                (fits.scale[i], fits.zero[i]) = fit_symmetric(highest(bits), least[i], most[i]);
            }
        }
        Rule::Gptq { bits, less_one, .. } => {
            // No zero point is below it.
            let first = f32::from(u8::from(less_one));
            for i in 0..LANES {
                (fits.scale[i], fits.zero[i]) = fit_asymmetric(highest(bits), first, least[i], most[i]);
            }
        }
        Rule::Awq => {
            for i in 0..LANES {
                (fits.scale[i], fits.zero[i]) = fit_awq(least[i], most[i]);
            }
        }
    }
    if has_nan(job.group, values) {
        for (scale, values) in fits.scale.iter_mut().zip(values) {
            *scale = if values[..job.group].iter().any(|w| w.is_nan()) { f32::NAN } else { *scale };
        }
    }
    fits
}

/// Whether an element of sixteen rows is no number.
#[inline(always)]
fn has_nan(group: usize, values: &[[f32; LONGEST]; LANES]) -> bool {
    let mut odd = [0f32; LANES];
    for values in values {
        for lanes in values[..group].as_chunks::<LANES>().0 {
            for i in 0..LANES {
                odd[i] = if lanes[i].is_nan() { 1.0 } else { odd[i] };
            }
        }
    }
    odd.iter().sum::<f32>() > 0.0
}

/// `find_params` of auto-gptq and gptqmodel, where zero points are at the middle.
#[inline(always)]
fn fit_symmetric(top: f32, least: f32, most: f32) -> (f32, f32) {
    let farthest = larger(-least, most);
    let span = if least < 0.0 { farthest + farthest } else { farthest };
    let span = if span == 0.0 { 2.0 } else { span };
    (span / top, (top + 1.0) * 0.5)
}

/// The same where they are not. A group whose zero point would be below the first one that can be stored has one
/// step fewer.
#[inline(always)]
fn fit_asymmetric(top: f32, first: f32, least: f32, most: f32) -> (f32, f32) {
    let nothing = least == 0.0 && most == 0.0;
    let (least, most) = if nothing { (-1.0, 1.0) } else { (least, most) };
    let span = most - least;
    let scale = span / top;
    let zero = nearest(-least / scale, 0.0, top);
    let fewer = span / (top - first);
    if zero < first { (fewer, first) } else { (scale, zero) }
}

/// AutoAWQ's `pseudo_quantize_tensor`, every step rounded to an IEEE half.
#[inline(always)]
fn fit_awq(least: f32, most: f32) -> (f32, f32) {
    let half = |x: f32| {
        let mut one = [x];
        round_to(Float::F16, &mut one);
        one[0]
    };
    let span = larger(LEAST_SPAN, half(most - least));
    let scale = half(span / 15.0);
    (scale, nearest(-half(least / scale), 0.0, 15.0))
}

/// Rounded half to even within bounds; 0 for NaN.
#[inline(always)]
fn nearest(exact: f32, low: f32, high: f32) -> f32 {
    let number = if exact.is_nan() { 0.0 } else { exact };
    (smaller(larger(number, low), high) + SIGNED_ROUNDER) - SIGNED_ROUNDER
}

/// Codes of a group: `w / scale` through `step`, rounded half to even, from the zero point. A whole number is
/// added, so that bounds may come first; what is no number has the lowest code.
#[inline(always)]
fn code(values: &[f32], scale: f32, zero: f32, top: f32, coded: &mut [u8], step: impl Fn(f32) -> f32) {
    let (low, high) = (-zero, top - zero);
    for (values, coded) in values.as_chunks::<RUN>().0.iter().zip(coded.as_chunks_mut::<RUN>().0) {
        for i in 0..RUN {
            let bounded = smaller(larger(step(values[i] / scale), low), high);
            coded[i] = low_byte((bounded + SIGNED_ROUNDER) + zero);
        }
    }
}

/// A whole number below 256 that was added to [`SIGNED_ROUNDER`].
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
