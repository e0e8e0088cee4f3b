//! The search for the parameters of affine codes, sixteen groups side by side: element k of all of them, then
//! element k + 1. Knows no packing, and proposes only: who packs says what a code's value is, and takes a proposal or
//! leaves it.
//!
//! [`least_squares`] is the idea of ggml's search for `Q4_K`: elements are divided by steps a little smaller and a little
//! larger than those of the whole span, and the line through the codes that come out is the one of least squared error.
//! Here the span is changed from both of its ends in turn, and the best line is refined by codes of its own.
//!
//! [`half_quadratic`] is the legacy solver of hqq 0.2.8, `optimize_weights_proximal_legacy`, for a fixed number of steps: the
//! library stops all groups of a tensor together. The library's guards for f16 (steps of at least 5e-5, and of 1 where a
//! span is below 1e-4) are left out.
//!
//! Sums run from the first element to the last. What an error weighs is given for each element, or is 1 for all.

use std::array::from_fn;

use crate::tensor::Float;

use super::{
    ROUNDER,
    attention::exp,
    larger, round_to,
    sixteen::{LANES, Sixteen},
    smaller,
};

/// Elements of a group at most.
const LONGEST: usize = 128;
/// What is divided by at least: a group without a span has one.
pub(super) const LEAST_UNIT: f32 = 1e-30;
/// Pairs of trials, from the lower and from the upper end. From a step less than there are codes to a step more: beyond, the
/// error of no group falls.
const PAIRS: u8 = 7;
/// With the trials, twenty steps: later ones change errors by less than a thousandth.
const REFINEMENTS: usize = 6;
/// Steps of the library at most.
const HQQ_STEPS: usize = 20;

/// One number for each of the sixteen.
pub(super) type Each = [f32; LANES];

/// Groups side by side.
pub(super) struct Groups {
    values: [Each; LONGEST],
    /// The values in steps of the span.
    counted: [Each; LONGEST],
    weights: [Each; LONGEST],
    len: usize,
    weighted: bool,
    pub(super) least: Each,
    pub(super) span: Each,
}

/// Parameters of affine codes: `code * scale + bias`, in the stored float.
pub(super) struct Line {
    pub(super) scale: Each,
    pub(super) bias: Each,
}

impl Groups {
    pub(super) const NONE: Self = Self {
        values: [[0.0; LANES]; LONGEST],
        counted: [[0.0; LANES]; LONGEST],
        weights: [[0.0; LANES]; LONGEST],
        len: 0,
        weighted: false,
        least: [0.0; LANES],
        span: [0.0; LANES],
    };

    /// Takes sixteen groups or fewer of so many elements; the places of missing ones keep what they had, and what a last
    /// group has too few is filled up with zeros that weigh nothing. `spans` are the groups' least and largest elements,
    /// `weights` those of a group, given its number.
    #[inline(always)]
    pub(super) fn take<'w, 'v>(
        &mut self,
        len: usize,
        groups: impl Iterator<Item = &'v [f32]>,
        spans: impl Iterator<Item = (f32, f32)>,
        weights: impl Fn(usize) -> Option<&'w [f32]>,
    ) {
        self.len = len;
        for (lane, (group, (least, most))) in groups.zip(spans).enumerate() {
            (self.least[lane], self.span[lane]) = (least, most - least);
            fill(&mut self.values[..len], lane, group);
            let of_group = weights(lane);
            self.weighted = of_group.is_some();
            if let Some(of_group) = of_group {
                fill(&mut self.weights[..len], lane, of_group);
            }
        }
    }

    /// Counts elements in steps of a length, from a value on.
    #[inline(always)]
    pub(super) fn count(&mut self, from: &Each, unit: &Each) {
        let inverse: Each = from_fn(|i| 1.0 / unit[i]);
        for (counted, values) in self.counted[..self.len].iter_mut().zip(&self.values) {
            for i in 0..LANES {
                counted[i] = (values[i] - from[i]) * inverse[i];
            }
        }
    }

    /// Sums of the weights, of the elements, and of their squares.
    #[inline(always)]
    pub(super) fn totals<S: Sixteen>(&self, lanes: S) -> [Each; 3] {
        if self.weighted { self.weighted_totals(lanes) } else { self.plain_totals(lanes) }
    }

    #[inline(always)]
    fn plain_totals<S: Sixteen>(&self, lanes: S) -> [Each; 3] {
        let [mut y, mut yy] = [lanes.load(&[0.0; LANES]); 2];
        for values in &self.counted[..self.len] {
            let values = lanes.load(values);
            y = lanes.add(y, values);
            yy = lanes.add_product(yy, values, values);
        }
        let mut totals = [[self.len as f32; LANES]; 3];
        lanes.store(y, &mut totals[1]);
        lanes.store(yy, &mut totals[2]);
        totals
    }

    #[inline(always)]
    fn weighted_totals<S: Sixteen>(&self, lanes: S) -> [Each; 3] {
        let mut sums = [lanes.load(&[0.0; LANES]); 3];
        for (values, weights) in self.counted[..self.len].iter().zip(&self.weights) {
            let (values, weights) = (lanes.load(values), lanes.load(weights));
            let weighed = lanes.product(weights, values);
            sums[0] = lanes.add(sums[0], weights);
            sums[1] = lanes.add(sums[1], weighed);
            sums[2] = lanes.add_product(sums[2], weighed, values);
        }
        stored(lanes, sums)
    }

    /// The elements, with what their errors weigh where that is told.
    #[inline(always)]
    pub(super) fn elements(&self) -> impl Iterator<Item = (&Each, Option<&Each>)> {
        let weights = self.weights.iter().map(|weights| self.weighted.then_some(weights));
        self.values[..self.len].iter().zip(weights)
    }

    /// Of the codes `y * inverse` from zero points on, as [`residues`](Self::residues) has them of codes from zero on.
    #[inline(always)]
    pub(super) fn steps<S: Sixteen>(&self, lanes: S, top: f32, zero: &Each, inverse: &Each) -> [Each; 3] {
        let (zero, inverse) = (lanes.load(zero), lanes.load(inverse));
        let mut sums = [lanes.load(&[0.0; LANES]); 3];
        for (y, weights) in self.counted[..self.len].iter().zip(&self.weights) {
            let y = lanes.load(y);
            let code = lanes.nearest(lanes.add(lanes.product(y, inverse), zero), top);
            let code = lanes.subtract(code, zero);
            let left = lanes.subtract(y, code);
            let weighed = if self.weighted { lanes.product(lanes.load(weights), left) } else { left };
            sums[1] = lanes.add_product(sums[1], weighed, code);
            sums[2] = lanes.add_product(sums[2], weighed, left);
        }
        stored(lanes, sums)
    }

    /// Of the codes `(y - low) * inverse`, the sums of what is left of elements: itself, times the code, squared.
    #[inline(always)]
    fn residues<S: Sixteen>(&self, lanes: S, top: f32, low: &Each, inverse: &Each) -> [Each; 3] {
        let (low, inverse) = (lanes.load(low), lanes.load(inverse));
        let mut sums = [lanes.load(&[0.0; LANES]); 3];
        let code = |y| lanes.nearest(lanes.product(lanes.subtract(y, low), inverse), top);
        let values = &self.counted[..self.len];
        if self.weighted {
            for (y, weights) in values.iter().zip(&self.weights) {
                let y = lanes.load(y);
                let code = code(y);
                let left = lanes.subtract(y, code);
                let weighed = lanes.product(lanes.load(weights), left);
                sums[0] = lanes.add(sums[0], weighed);
                sums[1] = lanes.add_product(sums[1], weighed, code);
                sums[2] = lanes.add_product(sums[2], weighed, left);
            }
        } else {
            for y in values {
                let y = lanes.load(y);
                let code = code(y);
                let left = lanes.subtract(y, code);
                sums[0] = lanes.add(sums[0], left);
                sums[1] = lanes.add_product(sums[1], left, code);
                sums[2] = lanes.add_product(sums[2], left, left);
            }
        }
        stored(lanes, sums)
    }
}

/// Puts a group into its lane.
#[inline(always)]
fn fill(lanes: &mut [Each], lane: usize, group: &[f32]) {
    let (own, missing) = lanes.split_at_mut(group.len().min(lanes.len()));
    for (values, w) in own.iter_mut().zip(group) {
        values[lane % LANES] = *w;
    }
    missing.iter_mut().for_each(|values| values[lane % LANES] = 0.0);
}

#[inline(always)]
fn stored<S: Sixteen>(lanes: S, sums: [S::Values; 3]) -> [Each; 3] {
    let mut out = [[0.0; LANES]; 3];
    for (sum, out) in sums.into_iter().zip(&mut out) {
        lanes.store(sum, out);
    }
    out
}

/// The best lines so far, in steps of the span.
struct Best {
    error: Each,
    slope: Each,
    offset: Each,
    /// Sum of the codes.
    codes: Each,
}

impl Best {
    const NONE: Self =
        Self { error: [f32::INFINITY; LANES], slope: [1.0; LANES], offset: [0.0; LANES], codes: [0.0; LANES] };

    /// Fits a line to the codes of a trial, from the sums of residues and of all, and keeps it where it is better.
    /// Residues are small, so that no sum of squares is lost in the difference of larger ones.
    #[inline(always)]
    fn meet(&mut self, [left, crossed, squared]: &[Each; 3], [weight, y, yy]: &[Each; 3]) {
        for i in 0..LANES {
            let codes = y[i] - left[i];
            let spread = yy[i] - 2.0 * crossed[i] - squared[i] - codes * codes / weight[i];
            let shared = crossed[i] - left[i] * codes / weight[i];
            let steeper = if spread > 0.0 { shared / spread } else { 0.0 };
            let error = squared[i] - left[i] * left[i] / weight[i] - steeper * shared;
            let better = error < self.error[i];
            self.error[i] = if better { error } else { self.error[i] };
            self.slope[i] = if better { 1.0 + steeper } else { self.slope[i] };
            self.offset[i] = if better { (left[i] - steeper * codes) / weight[i] } else { self.offset[i] };
            self.codes[i] = if better { codes } else { self.codes[i] };
        }
    }
}

/// The lines of least squared error that some steps find.
#[inline(always)]
pub(super) fn least_squares<S: Sixteen>(lanes: S, top: f32, float: Float, groups: &mut Groups) -> Line {
    let unit: Each = from_fn(|i| larger(groups.span[i] / top, LEAST_UNIT));
    let least = groups.least;
    groups.count(&least, &unit);
    let totals = groups.totals(lanes);
    let mut best = Best::NONE;
    for pair in 0..PAIRS {
        let steps = top + (f32::from(pair) - 3.0) / 3.0;
        let from_below = from_fn(|i| steps / (top - best.offset[i]));
        best.meet(&groups.residues(lanes, top, &best.offset, &from_below), &totals);
        let lowest = [top - top * top / steps; LANES];
        best.meet(&groups.residues(lanes, top, &lowest, &[steps / top; LANES]), &totals);
    }
    for _ in 0..REFINEMENTS {
        let inverse = from_fn(|i| 1.0 / best.slope[i]);
        best.meet(&groups.residues(lanes, top, &best.offset, &inverse), &totals);
    }
    let mut scale: Each = from_fn(|i| best.slope[i] * unit[i]);
    round_to(float, &mut scale);
    // Of the scale as it is stored.
    let [weight, y, _] = &totals;
    let offset = |i: usize| (y[i] - scale[i] / unit[i] * best.codes[i]) / weight[i];
    let mut bias: Each = from_fn(|i| groups.least[i] + offset(i) * unit[i]);
    round_to(float, &mut bias);
    Line { scale, bias }
}

/// The lines of hqq's solver.
#[inline(always)]
pub(super) fn half_quadratic<S: Sixteen>(lanes: S, top: f32, float: Float, groups: &Groups) -> Line {
    let inverse: Each = from_fn(|i| top / larger(groups.span[i], LEAST_UNIT));
    let mut zero: Each = from_fn(|i| -groups.least[i] * inverse[i]);
    for _ in 0..HQQ_STEPS {
        let [sum, squared, weight] = hqq_step(lanes, top, &inverse, &zero, groups);
        // Where the errors together are below what is shrunk to zero, none is above.
        let quiet =
            (0..LANES).fold(true, |quiet, i| quiet & (squared[i] <= HQQ_QUIET * HQQ_QUIET * inverse[i] * inverse[i]));
        let sum = if quiet { sum } else { hqq_shrunk(top, &inverse, &zero, groups) };
        zero = from_fn(|i| sum[i] / weight[i]);
    }
    let mut line = Line { scale: from_fn(|i| 1.0 / inverse[i]), bias: from_fn(|i| -zero[i] / inverse[i]) };
    round_to(float, &mut line.scale);
    round_to(float, &mut line.bias);
    line
}

/// An error `e` with `|e| <= |e|^-0.3 / 10` is shrunk to zero: below `0.1^(1 / 1.3) = 0.17013`.
const HQQ_QUIET: f32 = 0.17;

/// Of the codes `w * inverse + zero`, the sums of what is above `w * inverse`, if errors are shrunk to zero; of squared
/// errors, in codes; and of the weights.
#[inline(always)]
fn hqq_step<S: Sixteen>(lanes: S, top: f32, inverse: &Each, zero: &Each, groups: &Groups) -> [Each; 3] {
    let (inverse, zero) = (lanes.load(inverse), lanes.load(zero));
    let mut sums = [lanes.load(&[0.0; LANES]); 3];
    let one = lanes.load(&[1.0; LANES]);
    for (values, weights) in groups.values[..groups.len].iter().zip(&groups.weights) {
        let steps = lanes.product(lanes.load(values), inverse);
        let exact = lanes.add(steps, zero);
        let code = lanes.nearest(exact, top);
        let error = lanes.subtract(exact, code);
        let weights = if groups.weighted { lanes.load(weights) } else { one };
        sums[0] = lanes.add_product(sums[0], weights, lanes.subtract(code, steps));
        sums[1] = lanes.add_product(sums[1], error, error);
        sums[2] = lanes.add(sums[2], weights);
    }
    stored(lanes, sums)
}

/// The first of these sums where errors are shrunk.
#[inline(always)]
fn hqq_shrunk(top: f32, inverse: &Each, zero: &Each, groups: &Groups) -> Each {
    let mut sum = [0.0; LANES];
    for (values, weights) in groups.values[..groups.len].iter().zip(&groups.weights) {
        for i in 0..LANES {
            let exact = values[i] * inverse[i] + zero[i];
            let code = (smaller(larger(exact, 0.0), top) + ROUNDER) - ROUNDER;
            let left = shrunk(values[i] - (code - zero[i]) / inverse[i]);
            let above = code - (values[i] - left) * inverse[i];
            sum[i] += if groups.weighted { weights[i] * above } else { above };
        }
    }
    sum
}

/// `sign(e) * max(|e| - |e|^-0.3 / 10, 0)`
#[inline(always)]
fn shrunk(error: f32) -> f32 {
    let size = error.abs();
    let shrunk = if size > HQQ_QUIET { larger(size - 0.1 * exp(-0.3 * ln(size)), 0.0) } else { 0.0 };
    shrunk.copysign(error)
}

/// The logarithm of a positive normal number to seven digits, by the series of `artanh((m - 1) / (m + 1))` for the
/// significand m, 0.7 to 1.4.
#[inline(always)]
fn ln(x: f32) -> f32 {
    const HALF_ROOT: u32 = 0x3f35_04f3;
    let above = x.to_bits().wrapping_sub(HALF_ROOT);
    let exponent = (above.cast_signed() >> 23) as f32;
    let significand = f32::from_bits((above & 0x7f_ffff) + HALF_ROOT);
    let s = (significand - 1.0) / (significand + 1.0);
    let squared = s * s;
    let series = ((((squared / 9.0 + 1.0 / 7.0) * squared + 1.0 / 5.0) * squared + 1.0 / 3.0) * squared + 1.0) * s;
    exponent * std::f32::consts::LN_2 + (series + series)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_shrunk_as_by_the_library() {
        for e in [0.1f64, 0.17, 0.18, 0.25, 0.7, 1.0, 1.5, 30.0, 12345.0, 1e20] {
            let expected = (e - e.powf(-0.3) / 10.0).max(0.0);
            #[expect(clippy::cast_possible_truncation, reason = "rounded")]
            let e = e as f32;
            assert!((f64::from(shrunk(e)) - expected).abs() <= 3e-7 * f64::from(e), "{e}: {}", shrunk(e));
            assert_eq!(shrunk(-e), -shrunk(e));
        }
        assert_eq!(shrunk(0.0), 0.0);
    }
}
