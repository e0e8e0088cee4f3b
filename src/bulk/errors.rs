//! What a view's weights lose: how far the values that it shows lie from the elements that its schemes were given
//! (after cast, adapters and overrides).
//!
//! - [`errors`]`(view, sample, progress)`: the [`Sums`] of every quantized tensor of a view, one entry a row of the plan.
//! - [`of_weight`]`(view, weight, asked)`: of one weight of a view, as the view stores it.
//! - [`of_candidate`]`(view, weight, scheme, asked)`: of one weight of a view as another scheme would store it, without a
//!   plan of that: the view says only where the elements come from, and its own scheme for the weight does not matter
//!   (weights that a view leaves dense are not in its plan: take one that quantizes them). A survey (nvfp4's
//!   scale, say) is then of this weight alone, where a plan may make it of several together.
//!
//! All three work in parallel, on the threads of the rayon pool that they are called in, and take some megabytes a
//! thread. [`Asked::importance`] weighs the squares of columns: [`Sums::weighted`] is then what an allocation minimizes.
//!
//! The figures do not depend on the number of threads, nor on the processor: sums are in f64, in lanes of a fixed number,
//! band after band.

use std::{num::NonZero, ops::Range, sync::Arc};

use rayon::prelude::*;
use serde::Serialize;
use serde_json::Value;

use crate::{
    bulk::{Error, Progress, Silent},
    plan::{Plan, Planned},
    quant::{Axis, Scheme},
    view::{Shown, Values, View},
};

/// Sums over elements of a weight and the values shown in their place. Sums of several weights add up.
///
/// Squares and maxima are over the elements that are finite and are shown as finite values.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sums {
    /// Elements that were looked at.
    pub elements: u64,
    /// Of these, elements that are NaN.
    pub nan: u64,
    /// Of these, elements that are infinite.
    pub infinite: u64,
    /// Of these, finite elements that are shown as NaN or infinity (neighbours of such in a group, mostly).
    pub lost: u64,
    /// Sum of the squares of the elements.
    pub energy: f64,
    /// Sum of the squares of the differences.
    pub error: f64,
    /// The same, each square times the importance of its column; all are 1 where none was given.
    pub weighted: f64,
    /// Sum of the squares of the elements, each times the importance of its column.
    pub weighted_energy: f64,
    /// The largest magnitude of an element.
    pub largest: f64,
    /// The largest magnitude of a difference.
    pub worst: f64,
}

/// What [`Sums`] say.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// Elements that were looked at.
    pub elements: u64,
    /// Root of the mean square of the differences.
    pub rms: f64,
    /// `||w - q|| / ||w||`; `None` where all elements are zero and not all are shown so.
    pub relative: Option<f64>,
    /// Signal to quantization noise, `20 log10(||w|| / ||w - q||)` in dB; `None` where nothing is lost, or there is no
    /// signal.
    pub sqnr_db: Option<f64>,
    /// The largest difference.
    pub max: f64,
    /// Elements that are NaN.
    pub nan: u64,
    /// Elements that are infinite.
    pub infinite: u64,
    /// Finite elements that are shown as NaN or infinity.
    pub lost: u64,
}

/// Sums side by side: enough that the processor adds several at once, in an order that is always the same.
const LANES: usize = 8;

impl Sums {
    /// Adds those of other elements.
    pub fn add(&mut self, other: &Self) {
        self.elements += other.elements;
        self.nan += other.nan;
        self.infinite += other.infinite;
        self.lost += other.lost;
        self.energy += other.energy;
        self.error += other.error;
        self.weighted += other.weighted;
        self.weighted_energy += other.weighted_energy;
        self.largest = self.largest.max(other.largest);
        self.worst = self.worst.max(other.worst);
    }

    /// What is lost, as a share of the energy, each square times the importance of its column: finite elements that are shown
    /// as NaN or infinity are lost altogether. 0 where nothing is lost, 1 where zeros are shown as something else.
    #[must_use]
    pub fn loss(&self) -> f64 {
        let lost = self.lost as f64 / (self.elements as f64).max(1.0);
        // Importance that is zero wherever there is something says nothing: all columns weigh the same.
        let pairs = [(self.weighted, self.weighted_energy), (self.error, self.energy)];
        let relative = pairs.into_iter().find(|(_, energy)| *energy > 0.0);
        lost + relative.map_or_else(|| f64::from(u8::from(self.error > 0.0)), |(error, energy)| error / energy)
    }

    /// What they say.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let counted = self.elements - self.nan - self.infinite - self.lost;
        let rms = if counted == 0 { 0.0 } else { (self.error / counted as f64).sqrt() };
        let relative = match (self.error == 0.0, self.energy == 0.0) {
            (true, _) => Some(0.0),
            (false, true) => None,
            (false, false) => Some((self.error / self.energy).sqrt()),
        };
        let both = self.error > 0.0 && self.energy > 0.0;
        let sqnr_db = both.then(|| 10.0 * (self.energy / self.error).log10());
        let Self { elements, nan, infinite, lost, worst: max, .. } = *self;
        Figures { elements, rms, relative, sqnr_db, max, nan, infinite, lost }
    }

    /// Of a portion of a weight of so many rows and columns.
    fn of(values: &Values<'_>, [rows, cols]: [usize; 2], importance: Option<&[f32]>) -> Self {
        let mut sums = Self::unweighted(values.given, values.shown);
        (sums.weighted, sums.weighted_energy) =
            importance.map_or((sums.error, sums.energy), |h| weighted(values, [rows, cols], h));
        sums
    }

    fn unweighted(given: &[f32], shown: &[f32]) -> Self {
        let (given, shown) = (given.as_chunks::<LANES>(), shown.as_chunks::<LANES>());
        let mut lanes = Lanes::default();
        given.0.iter().zip(shown.0).for_each(|(given, shown)| lanes.add(given, shown));
        // The rest meets zeros, which add nothing.
        let [mut last_given, mut last_shown] = [[0.0; LANES]; 2];
        last_given[..given.1.len()].copy_from_slice(given.1);
        last_shown[..shown.1.len()].copy_from_slice(shown.1);
        lanes.add(&last_given, &last_shown);
        let mut sums = lanes.sum();
        sums.elements = (given.0.len() * LANES + given.1.len()) as u64;
        if lanes.odd.iter().any(|odd| *odd > 0) {
            let all = given.0.iter().flatten().chain(given.1);
            sums.count(all.zip(shown.0.iter().flatten().chain(shown.1)));
        }
        sums
    }

    /// Counts what is not finite.
    fn count<'a>(&mut self, pairs: impl Iterator<Item = (&'a f32, &'a f32)>) {
        for (given, shown) in pairs {
            self.nan += u64::from(given.is_nan());
            self.infinite += u64::from(given.is_infinite());
            self.lost += u64::from(given.is_finite() && !shown.is_finite());
        }
    }
}

/// Sums of every eighth pair.
#[derive(Default)]
struct Lanes {
    energy: [f64; LANES],
    error: [f64; LANES],
    largest: [f64; LANES],
    worst: [f64; LANES],
    odd: [u64; LANES],
}

impl Lanes {
    #[inline(always)]
    fn add(&mut self, given: &[f32; LANES], shown: &[f32; LANES]) {
        for i in 0..LANES {
            let (w, q) = (f64::from(given[i]), f64::from(shown[i]));
            // Of finite f32s it is finite.
            let d = w - q;
            let fine = d.is_finite();
            let (w, d) = if fine { (w, d) } else { (0.0, 0.0) };
            self.energy[i] += w * w;
            self.error[i] += d * d;
            self.largest[i] = if w.abs() > self.largest[i] { w.abs() } else { self.largest[i] };
            self.worst[i] = if d.abs() > self.worst[i] { d.abs() } else { self.worst[i] };
            self.odd[i] += u64::from(!fine);
        }
    }

    fn sum(&self) -> Sums {
        let most = |lanes: &[f64; LANES]| lanes.iter().fold(0.0, |most: f64, x| most.max(*x));
        Sums {
            energy: self.energy.iter().sum(),
            error: self.error.iter().sum(),
            largest: most(&self.largest),
            worst: most(&self.worst),
            ..Sums::default()
        }
    }
}

/// Squares of differences, and of elements, times the importance of their columns. Where there is more importance than columns, the
/// matrices of a stack have their own, one after the other.
fn weighted(values: &Values<'_>, [rows, cols]: [usize; 2], importance: &[f32]) -> (f64, f64) {
    let matrices = (importance.len() / cols.max(1)).max(1);
    let height = (rows / matrices).max(1);
    let (mut sum, mut energy) = (0.0, 0.0);
    for (line, (given, shown)) in values.given.chunks(values.line).zip(values.shown.chunks(values.line)).enumerate() {
        let first = values.start + line * cols;
        for (i, (w, q)) in given.iter().zip(shown).enumerate() {
            let (row, col) = ((first + i) / cols, (first + i) % cols);
            let matrix = (row / height).min(matrices - 1);
            let d = f64::from(*w) - f64::from(*q);
            if d.is_finite() {
                let weight = f64::from(importance[matrix * cols + col]);
                sum += d * d * weight;
                energy += f64::from(*w) * f64::from(*w) * weight;
            }
        }
    }
    (sum, energy)
}

/// How a weight is looked at.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked<'a> {
    /// Elements to look at, in runs spread evenly over the weight; all where it has no more, or this is `None`.
    pub sample: Option<NonZero<u64>>,
    /// Of each column, or of each column of each matrix of a stack.
    pub importance: Option<&'a [f32]>,
}

impl Asked<'_> {
    /// A sample, and all columns alike.
    #[must_use]
    pub fn sampled(sample: Option<NonZero<u64>>) -> Self {
        Self { sample, importance: None }
    }
}

/// The errors of a view's quantized tensors: one entry for each row of the plan, `None` where that is not quantized.
///
/// # Errors
/// A source that cannot be read.
pub fn errors(view: &View, sample: Option<NonZero<u64>>, progress: &dyn Progress) -> Result<Vec<Option<Sums>>, Error> {
    progress.begin(work(view.plan(), sample));
    measured(view, sample, progress)
}

/// As [`errors`], as a step of a longer job.
pub(super) fn measured(
    view: &View,
    sample: Option<NonZero<u64>>,
    progress: &dyn Progress,
) -> Result<Vec<Option<Sums>>, Error> {
    let each = view.plan().rows.par_iter().map(|row| {
        let Some(weight) = row.weight else { return Ok(None) };
        progress.note(&row.name);
        let shown = view.shown(weight)?;
        sums(&shown, &Asked::sampled(sample), progress).map(Some)
    });
    each.collect()
}

/// Sums over several weights.
#[must_use]
pub fn total(found: impl Iterator<Item = Sums>) -> Sums {
    found.fold(Sums::default(), |mut all, sums| {
        all.add(&sums);
        all
    })
}

/// A plan as JSON with the errors of its tensors, as [`errors`] gives them for a sample, and of all together.
#[must_use]
pub fn to_json(plan: &Plan, found: &[Option<Sums>], sample: Option<NonZero<u64>>) -> Value {
    let mut json = plan.to_json();
    let rows = json["tensors"].as_array_mut().into_iter().flatten();
    for (row, sums) in rows.zip(found).filter_map(|(row, sums)| Some((row, (*sums)?))) {
        row["errors"] = serde_json::json!(sums.figures());
    }
    json["totals"]["errors"] = serde_json::json!(total(found.iter().copied().flatten()).figures());
    json["sample"] = serde_json::json!(sample);
    json
}

/// Source bytes that [`errors`] looks at: what it tells its progress.
#[must_use]
pub(super) fn work(plan: &Plan, sample: Option<NonZero<u64>>) -> u64 {
    let weights = plan.rows.iter().filter_map(|row| row.weight).map(|weight| &plan.weights[weight as usize]);
    weights.map(|planned| bands(planned, sample).iter().map(|band| bytes(planned, band)).sum::<u64>()).sum()
}

/// The errors of one weight as a view stores it.
///
/// # Errors
/// A weight that the plan does not have, importance of another number of columns, a source that cannot be read.
pub fn of_weight(view: &View, weight: u32, asked: &Asked<'_>) -> Result<Sums, Error> {
    known(view, weight)?;
    sums(&view.shown(weight)?, asked, &Silent)
}

/// The errors of one weight as another scheme would store it.
///
/// # Errors
/// A weight that the plan does not have or whose shape the scheme cannot hold, importance of another number of columns, a
/// source that cannot be read.
pub fn of_candidate(view: &View, weight: u32, scheme: &Arc<dyn Scheme>, asked: &Asked<'_>) -> Result<Sums, Error> {
    let planned = known(view, weight)?;
    let under = planned.under(Arc::clone(scheme));
    let under = under.map_err(|why| Error::Refused(format!("{}: {why}", planned.weight.stem)))?;
    sums(&view.shown_as(under)?, asked, &Silent)
}

fn known(view: &View, weight: u32) -> Result<&Planned, Error> {
    let planned = view.plan().weights.get(weight as usize);
    planned.ok_or_else(|| Error::Refused(format!("the plan has no weight number {weight}")))
}

/// Sums over the bands of a weight, in their order.
fn sums(shown: &Shown<'_>, asked: &Asked<'_>, progress: &dyn Progress) -> Result<Sums, Error> {
    let planned = shown.planned();
    let dimensions = [planned.weight.rows(), planned.weight.cols()];
    check(planned, asked.importance)?;
    let add = |mut sums: Sums, values: &Values<'_>| {
        sums.add(&Sums::of(values, dimensions, asked.importance));
        sums
    };
    let of_bands = over(shown, asked.sample, progress, add)?;
    Ok(total(of_bands.into_iter()))
}

/// What becomes of the bands of a weight, in order, each folded portion by portion and in parallel to the others.
pub(super) fn over<T: Default + Send>(
    shown: &Shown<'_>,
    sample: Option<NonZero<u64>>,
    progress: &dyn Progress,
    add: impl Fn(T, &Values<'_>) -> T + Sync,
) -> Result<Vec<T>, Error> {
    let of_band = |band: Range<usize>| {
        let bytes = bytes(shown.planned(), &band);
        let mut sofar = T::default();
        shown.values(band, |values| sofar = add(std::mem::take(&mut sofar), &values))?;
        progress.advance(bytes);
        Ok(sofar)
    };
    bands(shown.planned(), sample).into_par_iter().map(of_band).collect()
}

fn check(planned: &Planned, importance: Option<&[f32]>) -> Result<(), Error> {
    let (rows, cols) = (planned.weight.rows(), planned.weight.cols().max(1));
    let fits = |h: &[f32]| h.len() == cols || (h.len().is_multiple_of(cols) && rows.is_multiple_of(h.len() / cols));
    match importance {
        Some(h) if h.is_empty() || !fits(h) => Err(Error::Refused(format!(
            "{}: importance of {} columns for a weight of {cols}",
            planned.weight.stem,
            h.len()
        ))),
        _ => Ok(()),
    }
}

/// Source bytes of a band.
fn bytes(planned: &Planned, band: &Range<usize>) -> u64 {
    (band.len() * line(planned) * planned.origin.stored.size()) as u64
}

/// Elements of one step along the axis.
fn line(planned: &Planned) -> usize {
    match planned.banding.axis {
        Axis::Flat => 1,
        Axis::Rows => planned.weight.cols(),
        Axis::Columns => planned.weight.rows(),
    }
}

/// Elements of a run of a sample, or as many as make a granule: long enough that reads cost little, short
/// enough for many runs.
const RUN: usize = 1 << 16;

/// The bands that are looked at: all tiles, or runs at even distances.
fn bands(planned: &Planned, sample: Option<NonZero<u64>>) -> Vec<Range<usize>> {
    let extent = planned.banding.extent(&planned.weight);
    let granule = planned.banding.granule;
    let per_granule = granule * line(planned);
    let wanted = sample.map_or(usize::MAX, |n| usize::try_from(n.get()).unwrap_or(usize::MAX));
    let cut = |start: usize, len: usize| start..start.saturating_add(len).min(extent);
    if wanted >= planned.weight.elements() {
        return (0..extent).step_by(planned.tile).map(|start| cut(start, planned.tile)).collect();
    }
    let granules = extent.div_ceil(granule);
    let run = (RUN / per_granule.max(1)).max(1);
    let wanted = (wanted / per_granule.max(1)).max(1);
    let (run, runs) = (run.min(wanted), (wanted / run).max(1));
    (0..runs).map(|i| cut(i * granules / runs * granule, run * granule)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values<'a>(given: &'a [f32], shown: &'a [f32], start: usize, line: usize) -> Values<'a> {
        Values { given, shown, start, line }
    }

    #[test]
    fn what_is_not_finite_is_counted_and_adds_nothing() {
        let mut given = vec![1.0f32; 19];
        let mut shown = vec![0.5f32; 19];
        (given[3], given[17], given[18]) = (f32::NAN, f32::INFINITY, f32::NEG_INFINITY);
        (shown[4], shown[18]) = (f32::NAN, f32::NEG_INFINITY);
        let sums = Sums::of(&values(&given, &shown, 0, 19), [1, 19], None);
        assert_eq!((sums.elements, sums.nan, sums.infinite, sums.lost), (19, 1, 2, 1));
        assert_eq!((sums.energy, sums.error, sums.largest, sums.worst), (15.0, 3.75, 1.0, 0.5));
        let figures = sums.figures();
        assert_eq!((figures.rms, figures.relative), (0.5, Some(0.5)));
        assert!((figures.sqnr_db.unwrap_or_default() - 20.0 * 2f64.log10()).abs() < 1e-12);
    }

    #[test]
    fn nothing_lost_and_nothing_there_are_no_numbers() {
        let same = Sums::of(&values(&[1.0; 3], &[1.0; 3], 0, 3), [1, 3], None).figures();
        assert_eq!((same.relative, same.sqnr_db, same.rms), (Some(0.0), None, 0.0));
        let risen = Sums::of(&values(&[0.0; 3], &[1.0; 3], 0, 3), [1, 3], None).figures();
        assert_eq!((risen.relative, risen.sqnr_db, risen.max), (None, None, 1.0));
        assert_eq!(Sums::default().figures().rms, 0.0);
    }

    /// Columns 1 and 2 of a stack of two matrices of 2 x 4.
    #[test]
    fn importance_is_of_columns_and_of_matrices() {
        let (given, shown) = ([1.0; 8], [0.0; 8]);
        let of = |h: &[f32]| {
            let sums = Sums::of(&values(&given, &shown, 1, 2), [4, 4], Some(h));
            assert_eq!(sums.weighted_energy, sums.weighted, "all of it is lost");
            sums.weighted
        };
        assert_eq!(of(&[100.0, 1.0, 2.0, 100.0]), 4.0 * 3.0);
        assert_eq!(of(&[100.0, 1.0, 2.0, 100.0, 100.0, 10.0, 20.0, 100.0]), 2.0 * 3.0 + 2.0 * 30.0);
        let run = Sums::of(&values(&given, &shown, 4, 8), [4, 4], Some(&[1.0, 2.0, 3.0, 4.0])).weighted;
        assert_eq!(run, 20.0);
    }
}
