//! Better scales and zero points for groups and rows of whole numbers, where a search finds some: what [`super::super::grid`] does,
//! with codes by the steps of this arithmetic.

use std::marker::PhantomData;

use crate::{
    kernel::{Choice, Scaled},
    num::{bf16_from_f32, bf16_to_f32, f16_from_f32, f16_to_f32},
    tensor::Float,
};

use super::{
    super::{
        grid::{Code, Elements, Grid, Points, search, take_better},
        groups, larger,
        row::{PART, Row},
        sixteen::Sixteen,
        smaller, widen,
    },
    Groups, LANES, SIGNED_ROUNDER, ends, middle, quantize_with,
};

/// Packed codes, stored scales and zero points; see [`super::quantize`].
#[inline(always)]
pub(in crate::kernel) fn choose<S: Sixteen>(
    lanes: S,
    job: &Scaled,
    choice: &Choice<'_>,
    src: &[u8],
    out: [&mut [u8]; 3],
) {
    let search = &mut Search { lanes, choice, first: 0, groups: groups::Groups::NONE, row: Row::default() };
    quantize_with(job, &[], src, out, Some(search));
}

/// A search, block after block or row after row.
pub(super) struct Search<'a, S> {
    lanes: S,
    choice: &'a Choice<'a>,
    /// Number of the next block's first group.
    first: usize,
    groups: groups::Groups,
    row: Row,
}

impl<S: Sixteen> Search<'_, S> {
    /// Changes the scales and zero points of a block.
    #[inline(always)]
    pub(super) fn improve(&mut self, job: &Scaled, values: &[f32], found: &mut Groups) {
        let (grid, middle) = (grid(job), middle(job.coding.bits()));
        let parameters = found.scale.as_chunks_mut::<LANES>().0.iter_mut().zip(found.zero.as_chunks_mut::<LANES>().0);
        let parameters = parameters.zip(found.divisor.as_chunks_mut::<LANES>().0);
        for (sixteen, ((scale, zero), divisor)) in values.chunks(LANES * job.group).zip(parameters) {
            let weights = |lane| self.choice.of_group(self.first + lane, job.group);
            self.groups.take(self.lanes, job.group, sixteen.chunks_exact(job.group), weights);
            self.first += sixteen.len() / job.group;
            zero.iter_mut().for_each(|zero| *zero += middle);
            improve(self.lanes, job, &grid, &mut self.groups, Points { scale, zero });
            zero.iter_mut().for_each(|zero| *zero -= middle);
            *divisor = *scale;
        }
    }

    /// Changes the scale and the zero point of a row.
    #[inline(always)]
    pub(super) fn improve_row(&mut self, job: &Scaled, row: &[u8], found: &mut Groups) {
        let (grid, middle) = (grid(job), middle(job.coding.bits()));
        let mut values = [0f32; PART];
        self.row.clear();
        for (number, part) in row.chunks(PART * job.float.size()).enumerate() {
            let values = &mut values[..part.len() / job.float.size()];
            widen(job.float, part, values);
            let weights = self.choice.importance.get(number * PART..).unwrap_or_default();
            self.row.take(self.lanes, values, &weights[..weights.len().min(values.len())]);
        }
        let (mut scale, mut zero) = ([found.scale[0]; LANES], [found.zero[0] + middle; LANES]);
        improve(self.lanes, job, &grid, &mut self.row, Points { scale: &mut scale, zero: &mut zero });
        (found.scale[0], found.zero[0], found.divisor[0]) = (scale[0], zero[0] - middle, scale[0]);
    }
}

#[inline(always)]
fn grid(job: &Scaled) -> Grid {
    let bits = job.coding.bits();
    let (top, middle) = (((1u32 << bits) - 1) as f32, middle(bits));
    let zeros = if job.coding.has_zeros() { (0.0, top) } else { (middle, middle) };
    Grid { top, zeros, signed: false, stored: job.float }
}

#[inline(always)]
fn improve<S: Sixteen>(lanes: S, job: &Scaled, grid: &Grid, elements: &mut impl Elements, points: Points<'_>) {
    let bits = job.coding.bits();
    let found = search(lanes, grid, elements);
    match (job.float, job.is_rounded()) {
        (Float::F32, _) => take_better(grid, elements, points, &found, Steps::<Exact, Exact>::new(bits)),
        (Float::Bf16, true) => take_better(grid, elements, points, &found, Steps::<ToBf16, ToBf16>::new(bits)),
        (Float::Bf16, false) => take_better(grid, elements, points, &found, Steps::<Exact, ToBf16>::new(bits)),
        (Float::F16, true) => take_better(grid, elements, points, &found, Steps::<ToF16, ToF16>::new(bits)),
        (Float::F16, false) => take_better(grid, elements, points, &found, Steps::<Exact, ToF16>::new(bits)),
    }
}

/// What a step of arithmetic is rounded to.
trait Rounding: Copy {
    fn rounded(x: f32) -> f32;
}

#[derive(Clone, Copy)]
struct ToBf16;
#[derive(Clone, Copy)]
struct ToF16;
#[derive(Clone, Copy)]
struct Exact;

impl Rounding for ToBf16 {
    #[inline(always)]
    fn rounded(x: f32) -> f32 {
        bf16_to_f32(bf16_from_f32(x))
    }
}

impl Rounding for ToF16 {
    #[inline(always)]
    fn rounded(x: f32) -> f32 {
        f16_to_f32(f16_from_f32(x))
    }
}

impl Rounding for Exact {
    #[inline(always)]
    fn rounded(x: f32) -> f32 {
        x
    }
}

/// The steps of [`super::code`]: of quotients and sums, and of values.
#[derive(Clone, Copy)]
struct Steps<Q, V> {
    bits: u32,
    of: PhantomData<(Q, V)>,
}

impl<Q, V> Steps<Q, V> {
    #[inline(always)]
    fn new(bits: u32) -> Self {
        Self { bits, of: PhantomData }
    }
}

impl<Q: Rounding, V: Rounding> Code for Steps<Q, V> {
    /// A zero point in the middle adds nothing.
    #[inline(always)]
    fn code(self, w: f32, scale: f32, zero: f32) -> f32 {
        let (middle, (least, most)) = (middle(self.bits), ends(self.bits));
        let exact = Q::rounded(Q::rounded(w / scale) + (zero - middle));
        (smaller(larger(exact, least), most) + SIGNED_ROUNDER) - SIGNED_ROUNDER + middle
    }

    #[inline(always)]
    fn value(self, exact: f32) -> f32 {
        V::rounded(exact)
    }
}
