//! The search for better parameters of codes with zero points, `(code - zero) * scale`, sixteen groups side by side: as
//! [`super::search`] does it for lines, through zero. Knows no packing; what the code of an element is, the caller says.
//!
//! The scale is that of least squared error for codes that steps a little shorter and longer than the span's give; a zero
//! point that may be chosen is the whole number on either side of where zero comes to lie. What is found is taken where the
//! values have less error than those of the parameters that were there.

use std::array::from_fn;

use crate::{kernel::rounded, tensor::Float};

use super::{
    ROUNDER, larger,
    search::{Each, Groups, LEAST_UNIT},
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
    /// Of values as they are decoded.
    pub(super) decoded: Float,
}

/// Scales and zero points of sixteen groups.
pub(super) struct Points<'a> {
    pub(super) scale: &'a mut Each,
    pub(super) zero: &'a mut Each,
}

/// Replaces parameters by better ones. `code` is the code of an element, given scale and zero point.
#[inline(always)]
pub(super) fn improve<S: Sixteen>(
    lanes: S,
    grid: &Grid,
    groups: &mut Groups,
    points: Points<'_>,
    code: impl Fn(f32, f32, f32) -> f32,
) {
    let (scale, zero) = search(lanes, grid, groups);
    let before = error(grid, groups, points.scale, points.zero, &code);
    let after = error(grid, groups, &scale, &zero, &code);
    for i in 0..LANES {
        let better = after[i] < before[i];
        points.scale[i] = if better { scale[i] } else { points.scale[i] };
        points.zero[i] = if better { zero[i] } else { points.zero[i] };
    }
}

/// The squared errors of the groups' decoded values, in parts of their spans.
#[inline(always)]
fn error(grid: &Grid, groups: &Groups, scale: &Each, zero: &Each, code: impl Fn(f32, f32, f32) -> f32) -> Each {
    let stored: Each = from_fn(|i| rounded(grid.stored, scale[i]));
    let inverse: Each = from_fn(|i| 1.0 / larger(groups.span[i], f32::MIN_POSITIVE));
    let mut sums = [0.0; LANES];
    for (values, weights) in groups.elements() {
        for i in 0..LANES {
            let value = rounded(grid.decoded, (code(values[i], scale[i], zero[i]) - zero[i]) * stored[i]);
            let off = (values[i] - value) * inverse[i];
            sums[i] += weights.map_or(1.0, |weights| weights[i]) * (off * off);
        }
    }
    sums
}

/// The best so far, in steps of the span.
struct Best {
    error: Each,
    slope: Each,
    zero: Each,
}

impl Best {
    /// Fits a slope to the codes of a trial and keeps it where it is better.
    #[inline(always)]
    fn meet(&mut self, [_, crossed, squared]: &[Each; 3], yy: &Each, zero: &Each) {
        for i in 0..LANES {
            let codes = yy[i] - 2.0 * crossed[i] - squared[i];
            let steeper = if codes > 0.0 { crossed[i] / codes } else { 0.0 };
            let error = squared[i] - steeper * crossed[i];
            let better = error < self.error[i];
            self.error[i] = if better { error } else { self.error[i] };
            self.slope[i] = if better { 1.0 + steeper } else { self.slope[i] };
            self.zero[i] = if better { zero[i] } else { self.zero[i] };
        }
    }
}

/// Scales as they are stored, and zero points, of the least squared error that some steps find.
#[inline(always)]
fn search<S: Sixteen>(lanes: S, grid: &Grid, groups: &mut Groups) -> (Each, Each) {
    let Grid { top, zeros: (first, last), .. } = *grid;
    let least: Each = from_fn(|i| smaller(groups.least[i], 0.0));
    let most: Each = from_fn(|i| larger(groups.least[i] + groups.span[i], 0.0));
    let fixed = first == last;
    let unit: Each = from_fn(|i| {
        let turned = fixed && grid.signed && most[i] > -least[i];
        let (below, above) = if turned { (most[i], -least[i]) } else { (-least[i], most[i]) };
        let sides = larger(below / larger(first, 0.5), above / larger(top - first, 0.5));
        let unit = larger(if fixed { sides } else { (most[i] - least[i]) / top }, LEAST_UNIT);
        if turned { -unit } else { unit }
    });
    groups.count(&[0.0; LANES], &unit);
    let [_, _, yy] = groups.totals(lanes);
    let mut best = Best { error: [f32::INFINITY; LANES], slope: [1.0; LANES], zero: [first; LANES] };
    for trial in 0..TRIALS {
        let step = f32::from(trial);
        // Half a range has more to gain from what it leaves out.
        let longer = if fixed { (step - 2.0) / (2.0 * top) } else { (f32::from(trial / 2) - 3.0) / (3.0 * top) };
        let inverse = [1.0 + longer; LANES];
        let zero: Each = from_fn(|i| {
            let exact = smaller(larger(-least[i] / unit[i] * inverse[i], first), last);
            let nearest = (exact + ROUNDER) - ROUNDER;
            let other = if exact < nearest { nearest - 1.0 } else { nearest + 1.0 };
            smaller(larger(if trial % 2 == 0 { nearest } else { other }, first), last)
        });
        best.meet(&groups.steps(lanes, top, &zero, &inverse), &yy, &zero);
    }
    for _ in 0..REFINEMENTS {
        let (inverse, zero) = (from_fn(|i| 1.0 / best.slope[i]), best.zero);
        best.meet(&groups.steps(lanes, top, &zero, &inverse), &yy, &zero);
    }
    (from_fn(|i| rounded(grid.stored, best.slope[i] * unit[i])), best.zero)
}
