//! The arithmetic of the schemes whose codes have no bias: symmetric int8, and onnxruntime's blocks with
//! zero points (`quant::format::sym` and `matmul_nbits` say what it follows).
//!
//! Lanes change the order of comparisons, which shows in nothing but the sign of a zero that is an extreme:
//! blocks of zeros are gone through in order.

use crate::{
    kernel::{Blocks, Choice},
    num::{codes, f16_from_f32, f16_to_f32},
    tensor::Float,
};

use super::{
    ROUNDER, SIGNED_ROUNDER,
    affine::{extrema, half_up},
    grid::{Code, Grid, Points, improve},
    groups::Groups,
    larger,
    pack::pack,
    sixteen::{LANES, Plain, Sixteen},
    smaller,
};

/// The largest symmetric code; -128 is not used, so that codes and their negatives are as many.
const LARGEST: f32 = 127.0;
/// Values that are coded together: with fewer, the compiler takes one of each of several runs.
const RUN: usize = 32;
/// Codes that are packed together: a part of a block or of a long row.
const PART: usize = 256;

/// Codes in two's complement of values that share a scale, which is the answer: the given one, or the largest
/// magnitude by 127. NaN has code 0.
#[inline(always)]
pub(in crate::kernel) fn symmetric(given: Option<f32>, values: &[f32], codes: &mut [u8]) -> f32 {
    let scale = given.unwrap_or_else(|| largest(values) / LARGEST);
    each(values, codes, |w| symmetric_code(w, scale));
    scale
}

/// The largest magnitude, 0 of none; NaN is passed over.
#[inline(always)]
pub(in crate::kernel) fn largest(values: &[f32]) -> f32 {
    let (runs, rest) = values.as_chunks::<LANES>();
    let mut lanes = [0f32; LANES];
    for run in runs {
        for i in 0..LANES {
            lanes[i] = larger(run[i].abs(), lanes[i]);
        }
    }
    lanes.iter().chain(rest).fold(0.0, |largest, w| larger(w.abs(), largest))
}

/// The codes of values, by whole runs: a last one is filled up.
#[inline(always)]
fn each(values: &[f32], codes: &mut [u8], code: impl Fn(f32) -> u8) {
    let (runs, rest) = values.as_chunks::<RUN>();
    let (out, last) = codes.as_chunks_mut::<RUN>();
    for (run, out) in runs.iter().zip(out) {
        for i in 0..RUN {
            out[i] = code(run[i]);
        }
    }
    if rest.is_empty() {
        return;
    }
    let (mut run, mut coded) = ([0f32; RUN], [0u8; RUN]);
    run[..rest.len()].copy_from_slice(rest);
    for i in 0..RUN {
        coded[i] = code(run[i]);
    }
    last.copy_from_slice(&coded[..rest.len()]);
}

#[inline(always)]
fn symmetric_code(w: f32, scale: f32) -> u8 {
    let exact = w / scale;
    let number = if exact.is_nan() { 0.0 } else { exact };
    let bounded = smaller(larger(number, -LARGEST), LARGEST);
    ((bounded + SIGNED_ROUNDER).to_bits() & 0xff) as u8
}

/// Packed codes, scales and zero points of the blocks of a row.
#[inline(always)]
pub(in crate::kernel) fn quantize(job: &Blocks, row: &[f32], codes: &mut [u8], scales: &mut [f32], zeros: &mut [u8]) {
    quantize_with(job, row, codes, (scales, zeros), None::<&mut Search<'_, Plain>>);
}

/// The same with better parameters, where a search finds some; scales are rounded to `stored`.
#[inline(always)]
pub(in crate::kernel) fn choose<S: Sixteen>(
    lanes: S,
    (job, stored): (&Blocks, Float),
    choice: &Choice<'_>,
    row: &[f32],
    codes: &mut [u8],
    found: (&mut [f32], &mut [u8]),
) {
    let search = &mut Search { lanes, job, choice, stored, groups: Groups::NONE };
    quantize_with(job, row, codes, found, Some(search));
}

/// A search for better parameters. No closure, which would be a function of its own, without the instance's features.
struct Search<'a, S> {
    lanes: S,
    job: &'a Blocks,
    choice: &'a Choice<'a>,
    /// Of scales.
    stored: Float,
    groups: Groups,
}

impl<S: Sixteen> Search<'_, S> {
    /// Changes the parameters of blocks, given the number of the first.
    #[inline(always)]
    fn improve(&mut self, first: usize, blocks: &[f32], (scale, zero): (&mut [f32; LANES], &mut [u8; LANES])) {
        let Self { lanes, job, choice, groups, .. } = self;
        let top = highest(job.bits);
        let middle = (top + 1.0) * 0.5;
        let zeros = if job.symmetric { (middle, middle) } else { (0.0, top) };
        let grid = Grid { top, zeros, signed: true, stored: self.stored };
        groups.take(*lanes, job.block, blocks.chunks(job.block), |lane| choice.of_group(first + lane, job.block));
        let mut points = zero.map(f32::from);
        improve(*lanes, &grid, groups, Points { scale, zero: &mut points }, Codes { top });
        *zero = points.map(|zero| nearest(zero, top));
    }
}

/// Codes by a reciprocal.
#[derive(Clone, Copy)]
struct Codes {
    top: f32,
}

impl Code for Codes {
    #[inline(always)]
    fn code(self, w: f32, scale: f32, zero: f32) -> f32 {
        let reciprocal = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        let held = smaller(larger(w * reciprocal + zero, 0.0), self.top);
        // As `half_up` has it.
        let even = (held + ROUNDER) - ROUNDER;
        if held - even == 0.5 { even + 1.0 } else { even }
    }
}

/// The blocks of a row, sixteen after sixteen, whose scales and zero points are changed before they are used, where there is a
/// search for better ones.
#[inline(always)]
fn quantize_with<S: Sixteen>(
    job: &Blocks,
    row: &[f32],
    codes: &mut [u8],
    (scales, zeros): (&mut [f32], &mut [u8]),
    mut search: Option<&mut Search<'_, S>>,
) {
    let mut coded = [0u8; PART];
    let outs = codes.chunks_mut(LANES * job.bytes()).zip(scales.chunks_mut(LANES)).zip(zeros.chunks_mut(LANES));
    for (number, (blocks, ((codes, scales), zeros))) in row.chunks(LANES * job.block).zip(outs).enumerate() {
        let (mut least, mut most) = ([0f32; LANES], [0f32; LANES]);
        for ((block, least), most) in blocks.chunks(job.block).zip(&mut least).zip(&mut most) {
            (*least, *most) = extremes(block);
        }
        let mut found = ([0f32; LANES], [0u8; LANES]);
        for i in 0..LANES {
            (found.0[i], found.1[i]) = parameters(job, least[i], most[i]);
        }
        if let Some(search) = &mut search {
            search.improve(number * LANES, blocks, (&mut found.0, &mut found.1));
        }
        scales.copy_from_slice(&found.0[..scales.len()]);
        zeros.copy_from_slice(&found.1[..zeros.len()]);
        let parameters = scales.iter().zip(zeros);
        for ((block, packed), (scale, zero)) in
            blocks.chunks(job.block).zip(codes.chunks_exact_mut(job.bytes())).zip(parameters)
        {
            let (used, unused) = packed.split_at_mut(block.len().div_ceil(8 / job.bits as usize));
            code(job, block, (*scale, *zero), &mut coded, used);
            unused.fill(0);
        }
    }
}

/// Scale and zero point of a block of these extremes.
#[inline(always)]
fn parameters(job: &Blocks, mut least: f32, mut most: f32) -> (f32, u8) {
    let rounded = |scale: f32| if job.rounded { f16_to_f32(f16_from_f32(scale)) } else { scale };
    let middle = 1u8 << (job.bits - 1);
    if job.symmetric {
        let farthest = if most.abs() > least.abs() { most } else { least };
        return (rounded(farthest / -f32::from(middle)), middle);
    }
    let top = highest(job.bits);
    least = if 0.0 < least { 0.0 } else { least };
    most = if most < 0.0 { 0.0 } else { most };
    let scale = (most - least) / top;
    let zero = if scale == 0.0 { least } else { 0.0 - least / scale };
    (rounded(scale), nearest(zero, top))
}

/// Minimum and maximum from left to right, NaN passed over; the sign of a zero is the first one's.
#[inline(always)]
fn extremes(block: &[f32]) -> (f32, f32) {
    let (mut low, mut high) = extrema(block, f32::MAX, f32::MIN);
    for w in block.as_chunks::<LANES>().1 {
        low = smaller(*w, low);
        high = larger(*w, high);
    }
    if low == 0.0 && high == 0.0 {
        let first = block.iter().copied().find(|w| !w.is_nan()).unwrap_or_default();
        return (first, first);
    }
    (low, high)
}

#[inline(always)]
fn highest(bits: u32) -> f32 {
    f32::from(u8::MAX >> (8 - bits))
}

/// Rounded half away from zero and clamped; 0 for NaN.
#[inline(always)]
fn nearest(exact: f32, top: f32) -> u8 {
    (half_up(smaller(larger(exact, 0.0), top)) & 0xff) as u8
}

/// The packed codes of a block; eight at a time but for the last.
#[inline(always)]
fn code(job: &Blocks, block: &[f32], (scale, zero): (f32, u8), coded: &mut [u8; PART], packed: &mut [u8]) {
    let reciprocal = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let (zero, top) = (f32::from(zero), highest(job.bits));
    for (block, packed) in block.chunks(PART).zip(packed.chunks_mut(PART / 8 * job.bits as usize)) {
        let coded = &mut coded[..block.len()];
        each(block, coded, |w| nearest(w * reciprocal + zero, top));
        let (whole, odd) = coded.split_at(block.len() / 8 * 8);
        let (first, last) = packed.split_at_mut(whole.len() / 8 * job.bits as usize);
        pack(job.bits, whole, first);
        codes::pack(job.bits, odd, last);
    }
}
