//! The search for the parameters of affine codes, sixteen groups side by side. Knows no packing, and proposes only: who packs
//! says what a code's value is, and takes a proposal or leaves it.
//!
//! [`least_squares`] is the idea of ggml's search for `Q4_K`: elements are divided by steps a little smaller and a little
//! larger than those of the whole span, and the line through the codes that come out is the one of least squared error.
//! Here the span is changed from both of its ends in turn, and the best line is refined by codes of its own.
//!
//! [`half_quadratic`] is the legacy solver of hqq 0.2.8, `optimize_weights_proximal_legacy`, for a fixed number of steps: the
//! library stops all groups of a tensor together. The library's guards for f16 (steps of at least 5e-5, and of 1 where a
//! span is below 1e-4) are left out.

use std::array::from_fn;

use crate::tensor::Float;

use super::{
    ROUNDER,
    attention::exp,
    groups::{Each, Groups, Sums, Trial},
    larger, round_to,
    sixteen::{LANES, Sixteen},
    smaller,
};

/// What is divided by at least: a group without a span has one.
pub(super) const LEAST_UNIT: f32 = 1e-30;
/// Pairs of trials, from the lower and from the upper end. From a step less than there are codes to a step more: beyond, the
/// error of no group falls.
const PAIRS: u8 = 7;
/// With the trials, twenty steps: later ones change errors by less than a thousandth.
const REFINEMENTS: usize = 6;
/// Steps of the library at most.
const HQQ_STEPS: usize = 20;

/// Parameters of affine codes: `code * scale + bias`, in the stored float.
pub(super) struct Line {
    pub(super) scale: Each,
    pub(super) bias: Each,
}

/// The best lines so far, in steps of the span.
struct Best<S: Sixteen> {
    error: S::Values,
    slope: S::Values,
    offset: S::Values,
    /// Sum of the codes.
    codes: S::Values,
}

impl<S: Sixteen> Best<S> {
    #[inline(always)]
    fn none(lanes: S) -> Self {
        let [error, slope, zero] = [f32::INFINITY, 1.0, 0.0].map(|x| lanes.load(&[x; LANES]));
        Self { error, slope, offset: zero, codes: zero }
    }

    /// Fits a line to the codes of a trial and keeps it where it is better. What is left of elements is small, so that no sum
    /// of squares is lost in the difference of larger ones. `share` is one by the sum of the weights.
    #[inline(always)]
    fn meet(&mut self, lanes: S, sums: &Sums, share: &Each) {
        let Sums { left, crossed, squared, codes, squares } = sums;
        let [left, crossed, squared] = [left, crossed, squared].map(|each| lanes.load(each));
        let [codes, squares, share] = [codes, squares, share].map(|each| lanes.load(each));
        let (zero, one) = (lanes.load(&[0.0; LANES]), lanes.load(&[1.0; LANES]));
        let mean = lanes.product(codes, share);
        let spread = lanes.subtract(squares, lanes.product(codes, mean));
        let shared = lanes.subtract(crossed, lanes.product(left, mean));
        let steeper = lanes.where_less(zero, spread, lanes.quotient(shared, spread), zero);
        let mean_left = lanes.product(left, share);
        let error = lanes.subtract(squared, lanes.product(left, mean_left));
        let error = lanes.subtract(error, lanes.product(steeper, shared));
        let offset = lanes.subtract(mean_left, lanes.product(steeper, mean));
        let better = |new, old| lanes.where_less(error, self.error, new, old);
        *self = Self {
            slope: better(lanes.add(one, steeper), self.slope),
            offset: better(offset, self.offset),
            codes: better(codes, self.codes),
            error: better(error, self.error),
        };
    }

    /// Codes of a line that begins here.
    #[inline(always)]
    fn trial(&self, lanes: S, ratio: S::Values) -> Trial {
        let mut trial = Trial { ratio: [0.0; LANES], start: [0.0; LANES], zero: [0.0; LANES] };
        lanes.store(ratio, &mut trial.ratio);
        lanes.store(lanes.subtract(lanes.load(&trial.zero), lanes.product(self.offset, ratio)), &mut trial.start);
        trial
    }
}

/// The lines of least squared error that some steps find.
#[inline(always)]
pub(super) fn least_squares<S: Sixteen>(lanes: S, top: f32, float: Float, groups: &mut Groups) -> Line {
    let unit: Each = from_fn(|i| larger((groups.most[i] - groups.least[i]) / top, LEAST_UNIT));
    let least = groups.least;
    groups.count(lanes, top, &least, &unit);
    let share = groups.totals.weight.map(|weight| 1.0 / weight);
    let mut best = Best::none(lanes);
    let all = |x: f32| lanes.load(&[x; LANES]);
    for pair in 0..PAIRS {
        let steps = top + (f32::from(pair) - 3.0) / 3.0;
        let ratio = lanes.quotient(all(steps), lanes.subtract(all(top), best.offset));
        best.meet(lanes, &groups.tried(lanes, &best.trial(lanes, ratio)), &share);
        // The last code is the last element's.
        let from_above = Trial { ratio: [steps / top; LANES], start: [top - steps; LANES], zero: [0.0; LANES] };
        best.meet(lanes, &groups.tried(lanes, &from_above), &share);
    }
    for _ in 0..REFINEMENTS {
        let ratio = lanes.quotient(all(1.0), best.slope);
        best.meet(lanes, &groups.tried(lanes, &best.trial(lanes, ratio)), &share);
    }
    let (mut scale, mut codes) = ([0.0; LANES], [0.0; LANES]);
    lanes.store(lanes.product(best.slope, lanes.load(&unit)), &mut scale);
    lanes.store(best.codes, &mut codes);
    round_to(float, &mut scale);
    // Of the scale as it is stored.
    let offset = |i: usize| (groups.totals.y[i] - scale[i] / unit[i] * codes[i]) * share[i];
    let mut bias: Each = from_fn(|i| least[i] + offset(i) * unit[i]);
    round_to(float, &mut bias);
    Line { scale, bias }
}

/// The lines of hqq's solver.
#[inline(always)]
pub(super) fn half_quadratic<S: Sixteen>(lanes: S, top: f32, float: Float, groups: &Groups) -> Line {
    let inverse: Each = from_fn(|i| top / larger(groups.most[i] - groups.least[i], LEAST_UNIT));
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
    for (values, weights) in groups.elements() {
        let steps = lanes.product(lanes.load(values), inverse);
        let exact = lanes.add(steps, zero);
        let code = lanes.nearest(exact, top);
        let error = lanes.subtract(exact, code);
        let weights = weights.map_or(one, |weights| lanes.load(weights));
        sums[0] = lanes.add_product(sums[0], weights, lanes.subtract(code, steps));
        sums[1] = lanes.add_product(sums[1], error, error);
        sums[2] = lanes.add(sums[2], weights);
    }
    let mut out = [[0.0; LANES]; 3];
    sums.into_iter().zip(&mut out).for_each(|(sum, out)| lanes.store(sum, out));
    out
}

/// The first of these sums where errors are shrunk.
#[inline(always)]
fn hqq_shrunk(top: f32, inverse: &Each, zero: &Each, groups: &Groups) -> Each {
    let mut sum = [0.0; LANES];
    for (values, weights) in groups.elements() {
        for i in 0..LANES {
            let exact = values[i] * inverse[i] + zero[i];
            let code = (smaller(larger(exact, 0.0), top) + ROUNDER) - ROUNDER;
            let left = shrunk(values[i] - (code - zero[i]) / inverse[i]);
            let above = code - (values[i] - left) * inverse[i];
            sum[i] += weights.map_or(above, |weights| weights[i] * above);
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
