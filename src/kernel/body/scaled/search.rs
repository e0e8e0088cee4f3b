//! Better scales and zero points for groups of whole numbers, where a search finds some: what [`super::super::grid`] does,
//! with codes by the steps of this arithmetic.

use crate::{
    kernel::{Choice, Scaled},
    tensor::Float,
};

use super::{
    super::{
        grid::{Code, Grid, Points, improve},
        groups::{self, Each},
        larger, round_to,
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
    fn round(self, steps: &mut Each) {
        if let Some(float) = self.float {
            round_to(float, steps);
        }
    }
}

impl Code for Steps {
    #[inline(always)]
    fn code(self, elements: &mut Each, scale: &Each, zero: &Each) {
        let (middle, (least, most)) = (middle(self.bits), ends(self.bits));
        for i in 0..LANES {
            elements[i] /= scale[i];
        }
        self.round(elements);
        if self.shifted {
            for i in 0..LANES {
                elements[i] += zero[i] - middle;
            }
            self.round(elements);
        }
        for x in elements {
            *x = (smaller(larger(*x, least), most) + SIGNED_ROUNDER) - SIGNED_ROUNDER + middle;
        }
    }
}
