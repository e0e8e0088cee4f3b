//! Sixteen groups side by side, element k of all of them and then element k + 1, and the sums that trials of codes leave.
//!
//! Elements are counted in steps from a value on. Where all errors weigh the same, the count is in fixed point, two elements
//! of a group in a word: codes take few instructions, and sums are exact. Where each has a weight, all is in f32, and sums
//! run from the first element to the last. Knows no packing, and not which codes are worth a trial.
//!
//! Always: no sum overflows, of elements that are finite. A ratio is held to [`least_ratio`] to [`most_ratio`] and a start to
//! two steps: codes below 64 lie less than eight steps from their elements, and 128 squares of 8 * 2^9 are 2^31; larger codes
//! lie less than nine steps from theirs, with steps of 2^7.

use std::array::from_fn;

use super::{
    SIGNED_ROUNDER, larger,
    sixteen::{Coding, LANES, Sixteen},
    smaller,
};

/// Elements of a group at most.
pub(in crate::kernel) const LONGEST: usize = 128;

/// One number for each of the sixteen.
pub(super) type Each = [f32; LANES];

/// Groups side by side.
pub(super) struct Groups {
    values: [Each; LONGEST],
    weights: [Each; LONGEST],
    /// The values in steps, where they have weights.
    counted: [Each; LONGEST],
    /// The same in fixed point, where they have none: two elements a word, the first in its low half.
    pairs: [[u32; LANES]; LONGEST / 2],
    fixed: Fixed,
    len: usize,
    weighted: bool,
    /// Least elements, NaN passed over.
    pub(super) least: Each,
    /// Largest ones.
    pub(super) most: Each,
    pub(super) totals: Totals,
}

/// Sums of a count.
pub(super) struct Totals {
    /// Of the weights.
    pub(super) weight: Each,
    /// Of the elements.
    pub(super) y: Each,
    /// Of their squares, in f32.
    yy: Each,
    /// Of the elements and of their squares in fixed point, modulo 2^32.
    whole: [[i32; LANES]; 2],
}

/// How far a fixed point is from the right.
#[derive(Clone, Copy)]
struct Fixed {
    top: f32,
    /// Bits of a step.
    step: u32,
    /// Bits of a ratio.
    ratio: u32,
}

/// Codes that are tried: `y * ratio + start` as a whole number from 0 to the largest code, less `zero`, which is whole and
/// not two steps from `start`.
pub(super) struct Trial {
    pub(super) ratio: Each,
    pub(super) start: Each,
    pub(super) zero: Each,
}

/// What a trial comes to: sums over the elements, each by its weight.
pub(super) struct Sums {
    /// Elements less their codes.
    pub(super) left: Each,
    /// That times the codes.
    pub(super) crossed: Each,
    /// That squared.
    pub(super) squared: Each,
    /// Codes.
    pub(super) codes: Each,
    /// Codes squared.
    pub(super) squares: Each,
}

impl Groups {
    pub(super) const NONE: Self = Self {
        values: [[0.0; LANES]; LONGEST],
        weights: [[0.0; LANES]; LONGEST],
        counted: [[0.0; LANES]; LONGEST],
        pairs: [[0; LANES]; LONGEST / 2],
        fixed: Fixed { top: 1.0, step: 0, ratio: 0 },
        len: 0,
        weighted: false,
        least: [0.0; LANES],
        most: [0.0; LANES],
        totals: Totals { weight: [0.0; LANES], y: [0.0; LANES], yy: [0.0; LANES], whole: [[0; LANES]; 2] },
    };

    /// Takes sixteen groups or fewer of so many elements, an even number; what a last group has too few is filled up with
    /// zeros that weigh nothing. `weights` are those of a group, given its number.
    #[inline(always)]
    pub(super) fn take<'w, 'v, S: Sixteen>(
        &mut self,
        lanes: S,
        len: usize,
        groups: impl Iterator<Item = &'v [f32]>,
        weights: impl Fn(usize) -> Option<&'w [f32]>,
    ) {
        let (mut rows, mut weighing) = ([&[][..]; LANES], [&[][..]; LANES]);
        self.len = len;
        for (lane, group) in groups.enumerate().take(LANES) {
            rows[lane] = group;
            let of_group = weights(lane);
            self.weighted = of_group.is_some();
            weighing[lane] = of_group.unwrap_or_default();
        }
        turned(lanes, &rows, &mut self.values[..len]);
        if self.weighted {
            turned(lanes, &weighing, &mut self.weights[..len]);
        }
        self.find_ends(lanes);
    }

    #[inline(always)]
    fn find_ends<S: Sixteen>(&mut self, lanes: S) {
        let [mut least, mut most] = [f32::INFINITY, f32::NEG_INFINITY].map(|x| lanes.load(&[x; LANES]));
        for values in &self.values[..self.len] {
            let values = lanes.load(values);
            least = lanes.where_less(values, least, values, least);
            most = lanes.where_less(most, values, values, most);
        }
        lanes.store(least, &mut self.least);
        lanes.store(most, &mut self.most);
    }

    /// The elements, with what their errors weigh where that is told.
    #[inline(always)]
    pub(super) fn elements(&self) -> impl Iterator<Item = (&Each, Option<&Each>)> {
        let weights = self.weights.iter().map(|weights| self.weighted.then_some(weights));
        self.values[..self.len].iter().zip(weights)
    }

    /// Counts elements in steps of a length, from a value on, for codes of 0 to `top`; they are `top` steps or fewer from it.
    #[inline(always)]
    pub(super) fn count<S: Sixteen>(&mut self, lanes: S, top: f32, from: &Each, unit: &Each) {
        self.fixed = Fixed::of(top);
        if self.weighted {
            self.count_weighted(lanes, from, unit);
        } else {
            self.count_fixed(lanes, from, unit);
        }
    }

    #[inline(always)]
    fn count_fixed<S: Sixteen>(&mut self, lanes: S, from: &Each, unit: &Each) {
        let step = power(self.fixed.step);
        let per_unit = lanes.load(&from_fn(|i| step / unit[i]));
        let from = lanes.load(from);
        let counted = |values: &Each| lanes.product(lanes.subtract(lanes.load(values), from), per_unit);
        let pairs = &mut self.pairs[..self.len / 2];
        for (pair, [first, second]) in pairs.iter_mut().zip(self.values.as_chunks().0) {
            *pair = lanes.pair(counted(first), counted(second));
        }
        let whole = lanes.squares(pairs);
        self.totals.weight = [self.len as f32; LANES];
        self.totals.y = from_fn(|i| whole[0][i] as f32 / step);
        self.totals.whole = whole;
    }

    #[inline(always)]
    fn count_weighted<S: Sixteen>(&mut self, lanes: S, from: &Each, unit: &Each) {
        let (from, inverse) = (lanes.load(from), lanes.load(&unit.map(|unit| 1.0 / unit)));
        let mut sums = [lanes.load(&[0.0; LANES]); 3];
        let groups = self.counted[..self.len].iter_mut().zip(&self.values).zip(&self.weights);
        for ((counted, values), weights) in groups {
            let y = lanes.product(lanes.subtract(lanes.load(values), from), inverse);
            let weights = lanes.load(weights);
            let weighed = lanes.product(weights, y);
            sums[0] = lanes.add(sums[0], weights);
            sums[1] = lanes.add(sums[1], weighed);
            sums[2] = lanes.add_product(sums[2], weighed, y);
            lanes.store(y, counted);
        }
        let totals = [&mut self.totals.weight, &mut self.totals.y, &mut self.totals.yy];
        sums.into_iter().zip(totals).for_each(|(sum, total)| lanes.store(sum, total));
    }

    /// What a trial of the counted elements comes to.
    #[inline(always)]
    pub(super) fn tried<S: Sixteen>(&self, lanes: S, trial: &Trial) -> Sums {
        if self.weighted { self.tried_weighted(lanes, trial) } else { self.tried_fixed(lanes, trial) }
    }

    /// With `c` for codes and `u` for a step, `sum (y - u c) c = sum y c - u sum c^2`, and so on.
    #[inline(always)]
    fn tried_fixed<S: Sixteen>(&self, lanes: S, trial: &Trial) -> Sums {
        let (step, [total, squares]) = (self.fixed.step, &self.totals.whole);
        let [codes, products, code_squares] = lanes.coded(&self.pairs[..self.len / 2], &self.fixed.coding(trial));
        let (one, two) = (1.0 / power(step), 1.0 / power(2 * step));
        let mut sums = Sums {
            left: [0.0; LANES],
            crossed: [0.0; LANES],
            squared: [0.0; LANES],
            codes: codes.map(|sum| sum as f32),
            squares: code_squares.map(|sum| sum as f32),
        };
        for i in 0..LANES {
            let in_steps = products[i].wrapping_sub(code_squares[i] << step);
            let squared = squares[i].wrapping_sub((products[i].wrapping_add(in_steps)) << step);
            sums.left[i] = total[i].wrapping_sub(codes[i] << step) as f32 * one;
            sums.crossed[i] = in_steps as f32 * one;
            sums.squared[i] = squared as f32 * two;
        }
        sums
    }

    #[inline(always)]
    fn tried_weighted<S: Sixteen>(&self, lanes: S, trial: &Trial) -> Sums {
        let [ratio, start, zero] = [&trial.ratio, &trial.start, &trial.zero].map(|each| lanes.load(each));
        let mut sums = [lanes.load(&[0.0; LANES]); 3];
        for (y, weights) in self.counted[..self.len].iter().zip(&self.weights) {
            let y = lanes.load(y);
            let code = lanes.nearest(lanes.add_product(start, y, ratio), self.fixed.top);
            let code = lanes.subtract(code, zero);
            let left = lanes.subtract(y, code);
            let weighed = lanes.product(lanes.load(weights), left);
            sums[0] = lanes.add(sums[0], weighed);
            sums[1] = lanes.add_product(sums[1], weighed, code);
            sums[2] = lanes.add_product(sums[2], weighed, left);
        }
        let [mut left, mut crossed, mut squared] = [[0.0; LANES]; 3];
        sums.into_iter().zip([&mut left, &mut crossed, &mut squared]).for_each(|(sum, out)| lanes.store(sum, out));
        let Totals { y, yy, .. } = &self.totals;
        let codes = from_fn(|i| y[i] - left[i]);
        let squares = from_fn(|i| yy[i] - 2.0 * crossed[i] - squared[i]);
        Sums { left, crossed, squared, codes, squares }
    }
}

impl Fixed {
    /// As fine as 16 bits hold `top` steps, and 32 bits the squares of what is left of 128 elements.
    #[inline(always)]
    fn of(top: f32) -> Self {
        Self { top, step: if top < 64.0 { 9 } else { 7 }, ratio: if top < 7.0 { 13 } else { 14 } }
    }

    /// A trial as the instructions take it: an element times a ratio has this many fewer bits than a step.
    #[inline(always)]
    fn coding(self, trial: &Trial) -> Coding {
        let Self { top, step, ratio } = self;
        let shift = step + ratio - 15;
        let (least, most) = (least_ratio(top), most_ratio(top));
        let half = power(shift - 1);
        Coding {
            ratio: from_fn(|i| twice(smaller(larger(trial.ratio[i], least), most) * power(ratio))),
            start: from_fn(|i| {
                let start = smaller(larger(trial.start[i] - trial.zero[i], -2.0), 2.0);
                twice(start * power(shift) + half)
            }),
            least: trial.zero.map(|zero| twice(-zero)),
            most: trial.zero.map(|zero| twice(top - zero)),
            shift,
        }
    }
}

/// The least ratio of a trial in fixed point.
#[inline(always)]
fn least_ratio(top: f32) -> f32 {
    1.0 - 2.0 / top
}

/// The largest.
#[inline(always)]
fn most_ratio(top: f32) -> f32 {
    1.0 + 6.0 / top
}

/// `2^exponent`
#[inline(always)]
fn power(exponent: u32) -> f32 {
    (1u32 << exponent) as f32
}

/// The whole number nearest to a value, in 16 bits, in both halves of a word.
#[inline(always)]
fn twice(x: f32) -> u32 {
    let low = (x + SIGNED_ROUNDER).to_bits() & 0xffff;
    low | low << 16
}

/// Rows, or what there is of them, as columns.
#[inline(always)]
fn turned<S: Sixteen>(lanes: S, rows: &[&[f32]; LANES], out: &mut [Each]) {
    for (number, out) in out.chunks_mut(LANES).enumerate() {
        let mut square = [[0.0; LANES]; LANES];
        for (row, to) in rows.iter().zip(&mut square) {
            let from = row.get(number * LANES..).unwrap_or_default();
            match from.first_chunk() {
                Some(whole) => *to = *whole,
                None => to.iter_mut().zip(from).for_each(|(to, from)| *to = *from),
            }
        }
        lanes.turn(&mut square);
        out.copy_from_slice(&square[..out.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::body::sixteen::Plain;

    /// Against 64-bit sums, of groups and trials that leave as much as there can be.
    #[test]
    fn no_sum_overflows() {
        for (top, zero) in [3.0f32, 7.0, 15.0, 31.0, 63.0, 127.0, 255.0]
            .into_iter()
            .flat_map(|top| [0.0, (top + 1.0) * 0.5, top].map(|zero| (top, zero)))
        {
            let ratios = [0.0, least_ratio(top), 1.0, most_ratio(top), 100.0];
            let trials = ratios.into_iter().flat_map(|ratio| [-5.0, -2.0, 0.0, 2.0, 5.0].map(|start| (ratio, start)));
            for (ratio, start) in trials {
                // Lane i has all but one of its elements where most is left of them, or near there.
                let at = |lane: usize| top * (lane as f32 / 15.0) - zero;
                let rows: [Vec<f32>; LANES] =
                    from_fn(|lane| [vec![-zero, top - zero], vec![at(lane); LONGEST - 2]].concat());
                let mut groups = Groups::NONE;
                groups.take(Plain, LONGEST, rows.iter().map(Vec::as_slice), |_| None);
                groups.count(Plain, top, &[0.0; LANES], &[1.0; LANES]);
                let trial = Trial { ratio: [ratio; LANES], start: [zero + start; LANES], zero: [zero; LANES] };
                let (sums, coding) = (groups.tried(Plain, &trial), groups.fixed.coding(&trial));
                let step = 1i64 << groups.fixed.step;
                for (i, row) in rows.iter().enumerate() {
                    let [mut left, mut crossed, mut squared] = [0i64; 3];
                    for w in row {
                        #[expect(clippy::cast_possible_truncation, reason = "below 2^15")]
                        let y = (w * step as f32).round_ties_even() as i32;
                        let code = i64::from(coding.of(i, y));
                        let off = i64::from(y) - code * step;
                        (left, crossed, squared) = (left + off, crossed + off * code, squared + off * off);
                    }
                    let expected = [left as f32, crossed as f32, squared as f32 / step as f32].map(|x| x / step as f32);
                    let found = [sums.left[i], sums.crossed[i], sums.squared[i]];
                    assert_eq!(found, expected, "top {top}, zero {zero}, ratio {ratio}, start {start}, lane {i}");
                }
            }
        }
    }
}
