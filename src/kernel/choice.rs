//! How the parameters of codes are chosen, and the entries of the table for it.
//!
//! Knows which ways there are; the arithmetic is that of `body::search` (lines) and `body::grid` (zero points), and of
//! `body::{affine, columns, blocks, scaled}` to code and to pack.

use crate::tensor::Float;

use super::{
    Affine, Blocks, Coding, Columns, Kernels, Scaled, body::groups::LONGEST, check_affine, check_blocks, check_columns,
    check_elements,
};

pub(super) type ChooseAffine = fn(&Affine, &Choice<'_>, &[u8], [&mut [u8]; 3]);
pub(super) type ChooseColumns = fn(&Columns, &Choice<'_>, &[u8], [&mut [u8]; 3]);
pub(super) type ChooseBlocks = fn((&Blocks, Float), &Choice<'_>, &[f32], &mut [u8], (&mut [f32], &mut [u8]));
pub(super) type ChooseScaled = fn(&Scaled, &Choice<'_>, &[u8], [&mut [u8]; 3]);

/// A way to choose the parameters of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// From its least and its largest element, as the format's reference tool does it.
    Rtn,
    /// Of the lines that a search of twenty steps finds, the one of least squared error: never worse than [`Rtn`](Self::Rtn).
    Ls,
    /// By the legacy solver of hqq, twenty steps.
    Hqq,
}

/// A method, and what the errors of a run of elements weigh.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'a> {
    /// The method.
    pub method: Method,
    /// What the squared error in each column of a row weighs, finite and not negative; empty where all columns are alike.
    pub importance: &'a [f32],
    /// The column of the run's first element.
    pub first: usize,
}

impl<'a> Choice<'a> {
    /// What the errors of a group weigh, given its number and length; `None` where all weigh the same.
    pub(super) fn of_group(&self, number: usize, len: usize) -> Option<&'a [f32]> {
        let column = (self.first + number * len).checked_rem(self.importance.len())?;
        self.importance.get(column..self.importance.len().min(column + len))
    }

    /// # Panics
    /// If groups begin or end within a row.
    fn check(&self, group: usize) {
        let columns = [self.importance.len(), self.first];
        assert!(columns.iter().all(|n| n.is_multiple_of(group)), "columns {columns:?} are no whole groups of {group}");
    }

    /// # Panics
    /// The same, or if it is another method.
    fn check_ls(&self, group: usize) {
        assert_eq!(self.method, Method::Ls, "the only search for zero points");
        self.check(group);
    }
}

impl Kernels {
    /// Quantizes a run of whole groups by a method: elements in; packed codes, scales and biases out.
    ///
    /// Codes are chosen after scales and biases were rounded to the stored float. A group with an element that is not
    /// finite has the bytes of [`Method::Rtn`].
    ///
    /// # Panics
    /// If the job is none of those that [`Affine`] lists, the lengths do not fit together, or rows are no whole groups.
    pub fn choose_affine(&self, job: &Affine, choice: &Choice<'_>, src: &[u8], out: [&mut [u8]; 3]) {
        let [codes, scales, biases] = out;
        check_affine(job, check_elements(src.len(), job.float), codes.len(), scales.len(), biases.len());
        choice.check(job.group);
        match choice.method {
            Method::Rtn => (self.quantize_affine)(job, src, codes, scales, biases),
            Method::Ls | Method::Hqq => (self.choose_affine)(job, choice, src, [codes, scales, biases]),
        }
    }

    /// Quantizes a band of columns, given row by row, by [`Method::Ls`]; scales are rounded before codes are chosen.
    ///
    /// # Panics
    /// As [`quantize_columns`](Self::quantize_columns); if rows are no whole groups, or the method is another.
    pub fn choose_columns(&self, job: &Columns, choice: &Choice<'_>, src: &[u8], out: [&mut [u8]; 3]) {
        let [codes, zeros, scales] = out;
        choice.check_ls(job.group);
        check_columns(job, check_elements(src.len(), job.float), codes.len(), zeros.len(), scales.len());
        (self.choose_columns)(job, choice, src, [codes, zeros, scales]);
    }

    /// Quantizes the blocks of a row by [`Method::Ls`]; scales are rounded to the stored float before codes are chosen.
    ///
    /// # Panics
    /// As [`quantize_blocks`](Self::quantize_blocks), if blocks are longer than 128, or the method is another.
    pub fn choose_blocks(
        &self,
        job: (&Blocks, Float),
        choice: &Choice<'_>,
        row: &[f32],
        codes: &mut [u8],
        found: (&mut [f32], &mut [u8]),
    ) {
        choice.check_ls(1);
        check_blocks(job.0, row.len(), codes.len(), (found.0.len(), found.1.len()));
        assert!(
            job.0.block <= LONGEST,
            "blocks that are searched are of {LONGEST} elements at most, not {}",
            job.0.block
        );
        (self.choose_blocks)(job, choice, row, codes, found);
    }

    /// Quantizes a run of whole groups to whole numbers by [`Method::Ls`]; scales are rounded before codes are chosen. A group
    /// with an element that is not finite has the bytes of [`Method::Rtn`].
    ///
    /// # Panics
    /// As [`quantize_scaled`](Self::quantize_scaled), if rows are no whole groups, codes small floats, or the method is another.
    pub fn choose_scaled(&self, job: &Scaled, choice: &Choice<'_>, src: &[u8], out: [&mut [u8]; 3]) {
        let [codes, scales, zeros] = out;
        choice.check_ls(job.group);
        job.check_run(&[], src, [codes, scales, zeros]);
        let is_whole = matches!(job.coding, Coding::Signed(_) | Coding::Shifted(_) | Coding::Int8);
        assert!(is_whole, "no search for {job:?}");
        (self.choose_scaled)(job, choice, src, [codes, scales, zeros]);
    }
}
