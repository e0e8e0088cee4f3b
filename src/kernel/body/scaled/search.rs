//! Better scales and zero points for groups of whole numbers, where a search finds some: what [`super::super::grid`] does,
//! with codes by the steps of this arithmetic.

use crate::{
    kernel::{Choice, Scaled, rounded},
    tensor::Float,
};

use super::{
    super::{
        grid::{Code, Grid, Points, improve},
        groups, larger,
        sixteen::Sixteen,
        smaller,
    },
    Groups, LANES, ROUNDER, blocks, ends, middle,
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
        let (bits, shifted) = (job.coding.bits(), job.coding.has_zeros());
        let (top, middle) = (((1u32 << bits) - 1) as f32, middle(bits));
        let zeros = if shifted { (0.0, top) } else { (middle, middle) };
        let grid = Grid { top, zeros, signed: false, stored: job.float, decoded: job.float };
        let code = Steps { float: job.is_rounded().then_some(job.float), shifted, bits };
        let parameters = found.scale.as_chunks_mut::<LANES>().0.iter_mut().zip(found.zero.as_chunks_mut::<LANES>().0);
        let parameters = parameters.zip(found.divisor.as_chunks_mut::<LANES>().0);
        for (sixteen, ((scale, zero), divisor)) in values.chunks(LANES * job.group).zip(parameters) {
            let weights = |lane| self.choice.of_group(self.first + lane, job.group);
            self.groups.take(self.lanes, job.group, sixteen.chunks_exact(job.group), weights);
            self.first += sixteen.len() / job.group;
            zero.iter_mut().for_each(|zero| *zero += middle);
            improve(self.lanes, &grid, &mut self.groups, Points { scale, zero }, code);
            zero.iter_mut().for_each(|zero| *zero -= middle);
            *divisor = *scale;
        }
    }
}

/// The steps of [`super::code`].
#[derive(Clone, Copy)]
struct Steps {
    /// What they are rounded to.
    float: Option<Float>,
    shifted: bool,
    bits: u32,
}

impl Steps {
    #[inline(always)]
    fn step(self, x: f32) -> f32 {
        self.float.map_or(x, |float| rounded(float, x))
    }
}

impl Code for Steps {
    #[inline(always)]
    fn code(self, w: f32, scale: f32, zero: f32) -> f32 {
        let (middle, (least, most)) = (middle(self.bits), ends(self.bits));
        let exact = self.step(w / scale);
        let exact = if self.shifted { self.step(exact + (zero - middle)) } else { exact };
        (smaller(larger(exact, least), most) + ROUNDER) - ROUNDER + middle
    }
}
