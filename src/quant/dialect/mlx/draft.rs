//! Tensors while they are arranged: strided views of source tensors, alone or stacked.
//!
//! Slices, transposes and splits only change strides, so they cost nothing and compose; at the end
//! a draft becomes the regular runs that the plan reads.

use crate::{
    quant::dialect::{Arranged, Slice},
    tensor::{Dtype, TensorInfo},
};

/// One axis of a strided view, in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Axis {
    pub(super) len: usize,
    pub(super) stride: usize,
}

/// A strided view of one source tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Strided {
    pub(super) tensor: usize,
    pub(super) start: usize,
    pub(super) axes: Vec<Axis>,
}

/// A tensor under arrangement.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    /// Views of equal shape; more than one only where `stacked`.
    pub(super) pieces: Vec<Strided>,
    /// Whether the pieces lie along a new first axis.
    pub(super) stacked: bool,
    pub(super) plus_one: bool,
}

impl Strided {
    fn whole(tensor: usize, shape: &[usize]) -> Self {
        let mut stride = 1;
        let mut axes: Vec<Axis> = shape
            .iter()
            .rev()
            .map(|&len| {
                let axis = Axis { len, stride };
                stride = stride.saturating_mul(len.max(1));
                axis
            })
            .collect();
        axes.reverse();
        Self { tensor, start: 0, axes }
    }

    /// The view as runs of rows: neighbouring axes joined where they are regular.
    fn slices(&self) -> Vec<Slice> {
        if self.axes.iter().any(|a| a.len == 0) {
            return Vec::new();
        }
        let mut axes: Vec<Axis> = Vec::new();
        for &axis in self.axes.iter().filter(|a| a.len != 1) {
            match axes.last_mut() {
                Some(outer) if outer.stride == axis.len * axis.stride => {
                    *outer = Axis { len: outer.len * axis.len, stride: axis.stride };
                }
                _ => axes.push(axis),
            }
        }
        let cols = axes.pop().unwrap_or(Axis { len: 1, stride: 1 });
        let rows = axes.pop().unwrap_or(Axis { len: 1, stride: cols.len });
        starts(self.start, &axes)
            .into_iter()
            .map(|start| Slice {
                tensor: self.tensor,
                start,
                rows: rows.len,
                row_stride: rows.stride,
                cols: cols.len,
                col_stride: cols.stride,
            })
            .collect()
    }
}

fn starts(start: usize, outer: &[Axis]) -> Vec<usize> {
    outer
        .iter()
        .fold(vec![start], |at, axis| at.iter().flat_map(|s| (0..axis.len).map(move |i| s + i * axis.stride)).collect())
}

impl Draft {
    /// A source tensor as it is.
    pub(super) fn whole(tensor: usize, info: &TensorInfo) -> Self {
        let pieces = vec![Strided::whole(tensor, &info.shape)];
        Self { name: info.name.clone(), dtype: info.dtype, pieces, stacked: false, plus_one: false }
    }

    /// The axes of each piece: without the first one where it is stacked.
    pub(super) fn axes(&self) -> &[Axis] {
        self.pieces.first().map_or(&[], |p| &p.axes)
    }

    /// Dimensions, outermost first.
    pub(super) fn shape(&self) -> Vec<usize> {
        let lead = self.stacked.then_some(self.pieces.len());
        lead.into_iter().chain(self.axes().iter().map(|a| a.len)).collect()
    }

    /// The two last axes exchanged.
    pub(super) fn swap(mut self) -> Result<Self, String> {
        let n = self.axes().len();
        if n < 2 {
            return Err(format!("{}: a transpose needs two dimensions, not shape {:?}", self.name, self.shape()));
        }
        self.pieces.iter_mut().for_each(|p| p.axes.swap(n - 2, n - 1));
        Ok(self)
    }

    /// Axes of length one left out.
    pub(super) fn squeeze(&mut self) {
        self.pieces.iter_mut().for_each(|p| p.axes.retain(|a| a.len != 1));
    }

    /// The first axis cut into `lens`, which multiply to its length.
    pub(super) fn unflatten(mut self, lens: &[usize]) -> Result<Self, String> {
        let whole = self.axes().first().copied();
        let product = lens.iter().try_fold(1usize, |n, &l| n.checked_mul(l));
        let Some(axis) = whole.filter(|a| Some(a.len) == product && !self.stacked) else {
            return Err(format!(
                "{}: shape {:?} is not what config.json implies ({lens:?} first)",
                self.name,
                self.shape()
            ));
        };
        let mut stride = axis.stride.saturating_mul(axis.len);
        let axes: Vec<Axis> = lens
            .iter()
            .map(|&len| {
                stride /= len.max(1);
                Axis { len, stride }
            })
            .collect();
        self.pieces.iter_mut().for_each(|p| drop(p.axes.splice(0..1, axes.iter().copied())));
        Ok(self)
    }

    /// Elements `from, from + step, ...` (`len` of them) of an axis counted from the last one (0).
    pub(super) fn take(&self, name: String, axis: usize, from: usize, len: usize, step: usize) -> Result<Self, String> {
        let Some(at) = self.axes().len().checked_sub(axis + 1) else {
            return Err(format!("{}: shape {:?} has too few dimensions to be split", self.name, self.shape()));
        };
        let mut out = Self { name, ..self.clone() };
        for piece in &mut out.pieces {
            let old = piece.axes[at];
            piece.start = piece.start.saturating_add(from.saturating_mul(old.stride));
            piece.axes[at] = Axis { len, stride: old.stride.saturating_mul(step) };
        }
        Ok(out)
    }

    /// What the plan reads, in dtype `shown`.
    pub(super) fn arranged(self, shown: Dtype) -> Arranged {
        let shape = self.shape();
        let from = self.pieces.iter().flat_map(Strided::slices).collect();
        Arranged { info: TensorInfo { name: self.name, dtype: shown, shape }, from, plus_one: self.plus_one }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(shape: &[usize]) -> Draft {
        Draft::whole(0, &TensorInfo { name: "x".into(), dtype: Dtype::BF16, shape: shape.to_vec() })
    }

    /// The elements by their definition, one at a time.
    fn walked(piece: &Strided) -> Vec<usize> {
        starts(piece.start, &piece.axes)
    }

    fn read(slices: &[Slice]) -> Vec<usize> {
        let rows = slices.iter().flat_map(|s| (0..s.rows).map(move |r| (s, s.start + r * s.row_stride)));
        rows.flat_map(|(s, at)| (0..s.cols).map(move |c| at + c * s.col_stride)).collect()
    }

    #[test]
    fn slices_are_the_elements_in_order() -> Result<(), String> {
        for shape in [&[][..], &[5], &[1, 1], &[3, 4], &[2, 3, 4], &[2, 1, 4], &[2, 3, 4, 5], &[3, 0, 2]] {
            let plain = draft(shape);
            assert_eq!(read(&plain.pieces[0].slices()), (0..shape.iter().product()).collect::<Vec<usize>>());
            assert!(plain.pieces[0].slices().len() <= 1, "a whole tensor is one run");
            if shape.len() < 2 {
                assert!(plain.swap().is_err());
                continue;
            }
            let half = shape[shape.len() - 2] / 2;
            let variants =
                [plain.clone().swap()?, plain.take("y".into(), 1, half, half, 1)?, plain.take("z".into(), 0, 0, 1, 2)?];
            for piece in variants.iter().flat_map(|v| &v.pieces) {
                assert_eq!(read(&piece.slices()), walked(piece), "{piece:?}");
            }
        }
        Ok(())
    }

    #[test]
    fn hostile_shapes_do_not_overflow() -> Result<(), String> {
        let huge = draft(&[0, usize::MAX / 2, 8]);
        assert!(huge.take("y".into(), 1, usize::MAX / 4, 1, 2)?.pieces[0].slices().is_empty());
        assert!(huge.clone().unflatten(&[usize::MAX, 2]).is_err());
        assert!(huge.swap()?.pieces[0].slices().is_empty());
        Ok(())
    }
}
