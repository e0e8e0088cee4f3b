//! The search for better parameters of codes with zero points, `(code - zero) * scale`, sixteen groups side by side: as
//! [`super::search`] does it for lines, through zero. Knows no packing; what the code of an element is, the caller says.
//!
//! The scale is that of least squared error for codes that steps a little shorter and longer than the span's give; a zero
//! point that may be chosen is the whole number on either side of where zero comes to lie. What is found is taken where the
//! values have less error than those of the parameters that were there.

use std::array::from_fn;

use crate::{kernel::rounded, tensor::Float};

use super::{
    ROUNDER,
    groups::{Each, Groups, Sums, Trial},
    is_better, larger, round_to,
    search::LEAST_UNIT,
    sixteen::{LANES, Sixteen},
    smaller,
};

/// Trials of another length of steps, and in them of another zero point where there is a choice.
const TRIALS: u8 = 14;
/// With the trials, twenty steps.
const REFINEMENTS: usize = 6;

/// Codes with zero points.
#[derive(Clone, Copy)]
pub(super) struct Grid {
    /// The largest code; the least is 0.
    pub(super) top: f32,
    /// Least and largest zero point; the same where there is one.
    pub(super) zeros: (f32, f32),
    /// Whether scales may be negative, where there is one zero point: the side with one code more is the farther one's then.
    pub(super) signed: bool,
    /// Of scales as they are stored.
    pub(super) stored: Float,
}

/// Scales and zero points of sixteen groups.
pub(super) struct Points<'a> {
    pub(super) scale: &'a mut Each,
    pub(super) zero: &'a mut Each,
}

/// How a format codes an element, and what the code's value is. No closures, which would be functions of their own, without
/// the instance's features; and types without a choice in them, which would be made anew for each element.
pub(super) trait Code: Copy {
    /// The code, 0 to the largest one, given a scale as it is stored and a zero point.
    fn code(self, w: f32, scale: f32, zero: f32) -> f32;

    /// A value as it is decoded.
    #[inline(always)]
    fn value(self, exact: f32) -> f32 {
        exact
    }
}

/// Elements whose codes are tried, in sixteen places: those of a group each, or of a row all together.
pub(super) trait Elements {
    /// The least and the largest of a place, or zero beyond them.
    fn ends(&self) -> (Each, Each);

    /// As [`Groups::count`], from zero on.
    fn count<S: Sixteen>(&mut self, lanes: S, top: f32, unit: &Each);

    /// As [`Groups::tried`].
    fn tried<S: Sixteen>(&self, lanes: S, trial: &Trial) -> Sums;

    /// The squared errors of decoded values; `inverse` is what differences are multiplied by, `stored` scales as they are
    /// stored.
    fn errors(&self, inverse: &Each, stored: &Each, points: (&Each, &Each), code: impl Code) -> Each;
}

impl Elements for Groups {
    #[inline(always)]
    fn ends(&self) -> (Each, Each) {
        (self.least.map(|least| smaller(least, 0.0)), self.most.map(|most| larger(most, 0.0)))
    }

    #[inline(always)]
    fn count<S: Sixteen>(&mut self, lanes: S, top: f32, unit: &Each) {
        self.count(lanes, top, &[0.0; LANES], unit);
    }

    #[inline(always)]
    fn tried<S: Sixteen>(&self, lanes: S, trial: &Trial) -> Sums {
        self.tried(lanes, trial)
    }

    #[inline(always)]
    fn errors(&self, inverse: &Each, stored: &Each, (scale, zero): (&Each, &Each), code: impl Code) -> Each {
        let mut sums = [0.0; LANES];
        for (values, weights) in self.elements() {
            for i in 0..LANES {
                let value = code.value((code.code(values[i], scale[i], zero[i]) - zero[i]) * stored[i]);
                let off = (values[i] - value) * inverse[i];
                sums[i] += weights.map_or(1.0, |weights| weights[i]) * (off * off);
            }
        }
        sums
    }
}

/// Replaces parameters by better ones, where the search finds some.
#[inline(always)]
pub(super) fn improve<S: Sixteen>(lanes: S, grid: &Grid, groups: &mut Groups, points: Points<'_>, code: impl Code) {
    let found = search(lanes, grid, groups);
    take_better(grid, groups, points, &found, code);
}

/// Replaces parameters by scales and zero points that were found, where the values have less error with them, or are numbers
/// only with them.
#[inline(always)]
pub(super) fn take_better(
    grid: &Grid,
    elements: &impl Elements,
    points: Points<'_>,
    (scale, zero): &(Each, Each),
    code: impl Code,
) {
    let before = error(grid, elements, points.scale, points.zero, code);
    let after = error(grid, elements, scale, zero, code);
    for i in 0..LANES {
        let better = is_better(after[i], before[i]);
        points.scale[i] = if better { scale[i] } else { points.scale[i] };
        points.zero[i] = if better { zero[i] } else { points.zero[i] };
    }
}

/// The squared errors of decoded values, in parts of their spans with zero.
#[inline(always)]
fn error(grid: &Grid, elements: &impl Elements, scale: &Each, zero: &Each, code: impl Code) -> Each {
    let mut stored = *scale;
    round_to(grid.stored, &mut stored);
    let (least, most) = elements.ends();
    let inverse: Each = from_fn(|i| 1.0 / larger(most[i] - least[i], f32::MIN_POSITIVE));
    elements.errors(&inverse, &stored, (scale, zero), code)
}

/// The best so far, in steps of the span.
struct Best<S: Sixteen> {
    error: S::Values,
    slope: S::Values,
    zero: S::Values,
}

impl<S: Sixteen> Best<S> {
    /// Fits a slope to the codes of a trial and keeps it where it is better.
    #[inline(always)]
    fn meet(&mut self, lanes: S, Sums { crossed, squared, squares, .. }: &Sums, zero: &Each) {
        let [crossed, squared, squares] = [crossed, squared, squares].map(|each| lanes.load(each));
        let (none, one) = (lanes.load(&[0.0; LANES]), lanes.load(&[1.0; LANES]));
        let steeper = lanes.where_less(none, squares, lanes.quotient(crossed, squares), none);
        let error = lanes.subtract(squared, lanes.product(steeper, crossed));
        let better = |new, old| lanes.where_less(error, self.error, new, old);
        *self = Self {
            slope: better(lanes.add(one, steeper), self.slope),
            zero: better(lanes.load(zero), self.zero),
            error: better(error, self.error),
        };
    }
}

/// Scales as they are stored, and zero points, of the least squared error that some steps find.
#[inline(always)]
pub(super) fn search<S: Sixteen>(lanes: S, grid: &Grid, elements: &mut impl Elements) -> (Each, Each) {
    let Grid { top, zeros: (first, last), .. } = *grid;
    let (least, most) = elements.ends();
    let fixed = first == last;
    let unit: Each = from_fn(|i| {
        let turned = fixed && grid.signed && most[i] > -least[i];
        let (below, above) = if turned { (most[i], -least[i]) } else { (-least[i], most[i]) };
        let sides = larger(below / larger(first, 0.5), above / larger(top - first, 0.5));
        let unit = larger(if fixed { sides } else { (most[i] - least[i]) / top }, LEAST_UNIT);
        if turned { -unit } else { unit }
    });
    elements.count(lanes, top, &unit);
    let [error, slope, zero] = [f32::INFINITY, 1.0, first].map(|x| lanes.load(&[x; LANES]));
    let mut best = Best::<S> { error, slope, zero };
    for trial in 0..TRIALS {
        let step = f32::from(trial);
        // Half a range has more to gain from what it leaves out.
        let longer = if fixed { (step - 2.0) / (2.0 * top) } else { (f32::from(trial / 2) - 3.0) / (3.0 * top) };
        let ratio = [1.0 + longer; LANES];
        let zero: Each = from_fn(|i| {
            let exact = smaller(larger(-least[i] / unit[i] * ratio[i], first), last);
            let nearest = (exact + ROUNDER) - ROUNDER;
            let other = if exact < nearest { nearest - 1.0 } else { nearest + 1.0 };
            smaller(larger(if trial % 2 == 0 { nearest } else { other }, first), last)
        });
        best.meet(lanes, &elements.tried(lanes, &Trial { ratio, start: zero, zero }), &zero);
    }
    let [mut slope, mut zero] = [[0.0; LANES]; 2];
    for _ in 0..REFINEMENTS {
        lanes.store(best.slope, &mut slope);
        lanes.store(best.zero, &mut zero);
        let trial = Trial { ratio: slope.map(|slope| 1.0 / slope), start: zero, zero };
        best.meet(lanes, &elements.tried(lanes, &trial), &zero);
    }
    lanes.store(lanes.product(best.slope, lanes.load(&unit)), &mut slope);
    lanes.store(best.zero, &mut zero);
    (slope.map(|scale| rounded(grid.stored, scale)), zero)
}
