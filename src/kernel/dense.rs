//! The job of a product of dense matrices.

use super::body;

/// A product of dense matrices, row by row: `c[rows, columns] = a[rows, depth] * b[depth, columns]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Dense {
    /// Rows of `a` and `c`.
    pub rows: usize,
    /// Columns of `a`, rows of `b`.
    pub depth: usize,
    /// Columns of `b` and `c`: a multiple of [`STRIP`](Self::STRIP).
    pub columns: usize,
    /// Elements from one row of `a` to the next.
    pub a_stride: usize,
    /// Elements from one row of `c` to the next.
    pub c_stride: usize,
}

impl Dense {
    /// Columns that are computed together.
    pub const STRIP: usize = body::attention::STRIP;
}
