//! Better scales and zero points for groups of whole numbers, where a search finds some: what [`super::super::grid`] does,
//! with codes by the steps of this arithmetic.

use std::marker::PhantomData;

use crate::{
    kernel::{Choice, Scaled},
    num::{bf16_from_f32, bf16_to_f32, f16_from_f32, f16_to_f32},
    tensor::Float,
};

use super::{
    super::{
        grid::{Code, Grid, Points, search, take_better},
        groups, larger,
        sixteen::Sixteen,
        smaller,
    },
    Groups, LANES, SIGNED_ROUNDER, blocks, ends, middle,
};

/// Packed codes, stored scales and zero points of groups that make up blocks; see [`super::quantize`].
#[inline(always)]
pub(in crate::kernel) fn choose<S: Sixteen>(
    lanes: S,
    job: &Scaled,
    choice: &Choice<'_>,
    src: &[u8],
    out: [&mut [u8]; 3],
) {
    blocks(job, &[], src, out, Some(&mut Search { lanes, choice, first: 0, groups: groups::Groups::NONE }));
}

/// A search, block after block.
pub(super) struct Search<'a, S> {
    lanes: S,
    choice: &'a Choice<'a>,
    /// Number of the next block's first group.
    first: usize,
    groups: groups::Groups,
}

impl<S: Sixteen> Search<'_, S> {
    /// Changes the scales and zero points of a block.
    #[inline(always)]
    pub(super) fn improve(&mut self, job: &Scaled, values: &[f32], found: &mut Groups) {
        let bits = job.coding.bits();
        let (top, middle) = (((1u32 << bits) - 1) as f32, middle(bits));
        let zeros = if job.coding.has_zeros() { (0.0, top) } else { (middle, middle) };
        let grid = Grid { top, zeros, signed: false, stored: job.float };
        let parameters = found.scale.as_chunks_mut::<LANES>().0.iter_mut().zip(found.zero.as_chunks_mut::<LANES>().0);
        let parameters = parameters.zip(found.divisor.as_chunks_mut::<LANES>().0);
        for (sixteen, ((scale, zero), divisor)) in values.chunks(LANES * job.group).zip(parameters) {
            let weights = |lane| self.choice.of_group(self.first + lane, job.group);
            self.groups.take(self.lanes, job.group, sixteen.chunks_exact(job.group), weights);
            self.first += sixteen.len() / job.group;
            zero.iter_mut().for_each(|zero| *zero += middle);
            self.improve_sixteen(job, &grid, Points { scale, zero });
            zero.iter_mut().for_each(|zero| *zero -= middle);
            *divisor = *scale;
        }
    }

    #[inline(always)]
    fn improve_sixteen(&mut self, job: &Scaled, grid: &Grid, points: Points<'_>) {
        let bits = job.coding.bits();
        let (found, groups) = (search(self.lanes, grid, &mut self.groups), &self.groups);
        match (job.float, job.is_rounded()) {
            (Float::F32, _) => take_better(grid, groups, points, &found, Steps::<Exact, Exact>::new(bits)),
            (Float::Bf16, true) => take_better(grid, groups, points, &found, Steps::<ToBf16, ToBf16>::new(bits)),
            (Float::Bf16, false) => take_better(grid, groups, points, &found, Steps::<Exact, ToBf16>::new(bits)),
            (Float::F16, true) => take_better(grid, groups, points, &found, Steps::<ToF16, ToF16>::new(bits)),
            (Float::F16, false) => take_better(grid, groups, points, &found, Steps::<Exact, ToF16>::new(bits)),
        }
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
