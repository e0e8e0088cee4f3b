//! Methods: how the codes of a weight are chosen, whatever stores them; and what may weigh their errors.
//!
//! A method is an option of a scheme, by its word. It changes codes and parameters, never how they lie: who reads a
//! format reads it whatever the method was.

use std::{ops::Range, sync::Arc};

use crate::{
    kernel::{Choice, Method},
    quant::{Unsupported, Weight},
};

/// The words of the option, the default first: round to nearest, least squares, half-quadratic.
pub const METHODS: &[&str] = &["rtn", "ls", "hqq"];

/// The same of codes whose zero points are codes: hqq's are not.
pub const METHODS_OF_GRIDS: &[&str] = &["rtn", "ls"];

/// The method of a word.
#[must_use]
pub fn method(word: &str) -> Option<Method> {
    match word {
        "rtn" => Some(Method::Rtn),
        "ls" => Some(Method::Ls),
        "hqq" => Some(Method::Hqq),
        _ => None,
    }
}

/// The word of a method.
#[must_use]
pub const fn word(method: Method) -> &'static str {
    match method {
        Method::Rtn => "rtn",
        Method::Ls => "ls",
        Method::Hqq => "hqq",
    }
}

/// What squared errors in the columns of a weight weigh: the mean square of what each column is multiplied with.
#[derive(Clone, PartialEq)]
pub struct Importance {
    cols: usize,
    /// Rows of the weight that share a row of it.
    rows: usize,
    values: Arc<[f32]>,
    digest: [u8; 16],
}

impl Importance {
    /// One row for every `rows` rows of a weight of `cols` columns: `[experts, cols]`. Each is brought to a mean of one, since
    /// only how its columns compare has a meaning within a row; a row of zeros says nothing and weighs all columns the same.
    ///
    /// # Errors
    /// Values that are not finite, or negative; of another number than `cols` or a multiple of it.
    pub fn new(cols: usize, rows: usize, values: &[f32]) -> Result<Self, Unsupported> {
        if cols == 0 || rows == 0 || values.is_empty() || !values.len().is_multiple_of(cols) {
            return Err(Unsupported(format!("{} values are no importance of {cols} columns", values.len())));
        }
        if let Some(wrong) = values.iter().find(|w| !w.is_finite() || **w < 0.0) {
            return Err(Unsupported(format!("it has the importance {wrong}; one is finite and not negative")));
        }
        let scaled: Arc<[f32]> = values.chunks_exact(cols).flat_map(to_mean_one).collect();
        let mut hash = blake3::Hasher::new();
        [cols, rows].iter().for_each(|n| _ = hash.update(&(*n as u64).to_le_bytes()));
        scaled.iter().for_each(|w| _ = hash.update(&w.to_le_bytes()));
        let mut digest = [0; 16];
        digest.copy_from_slice(&hash.finalize().as_bytes()[..16]);
        Ok(Self { cols, rows, values: scaled, digest })
    }

    /// Whether it has a row for each row of the weight, and as many columns.
    #[must_use]
    pub fn fits(&self, weight: &Weight) -> bool {
        weight.cols() == self.cols && weight.rows() == self.values.len() / self.cols * self.rows
    }

    /// `[matrices, columns]`: a row for every run of rows of the weight, each of a mean of one.
    #[must_use]
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Whether all rows of the weight have the same.
    pub(crate) fn is_alike(&self) -> bool {
        self.values.chunks_exact(self.cols).all(|row| *row == self.values[..self.cols])
    }

    /// Whether it says nothing: all columns of a row weigh the same.
    pub(crate) fn is_level(&self) -> bool {
        self.values.chunks_exact(self.cols).all(|row| row.iter().all(|w| *w == row[0]))
    }

    /// Names the values, in hexadecimal.
    #[must_use]
    pub fn id(&self) -> String {
        self.digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// What is for a row of the weight.
    pub(crate) fn row(&self, number: usize) -> &[f32] {
        self.values.chunks_exact(self.cols).nth(number / self.rows).unwrap_or_default()
    }

    /// The runs of some elements, in flat order, that one row of it is for: where they lie in the band, and how they are
    /// chosen.
    pub(crate) fn runs(&self, method: Method, band: Range<usize>) -> impl Iterator<Item = (Range<usize>, Choice<'_>)> {
        let each = self.rows * self.cols;
        let first = band.start / each;
        (first..band.end.div_ceil(each)).filter_map(move |row| {
            let part = band.start.max(row * each)..band.end.min((row + 1) * each);
            let importance = self.values.chunks_exact(self.cols).nth(row)?;
            let choice = Choice { method, importance, first: part.start % self.cols };
            Some((part.start - band.start..part.end - band.start, choice))
        })
    }
}

impl std::fmt::Debug for Importance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Importance({} columns, {})", self.cols, self.id())
    }
}

/// A row with its mean brought to one.
fn to_mean_one(row: &[f32]) -> Vec<f32> {
    let mean = row.iter().map(|w| f64::from(*w)).sum::<f64>() / row.len() as f64;
    #[expect(clippy::cast_possible_truncation, reason = "rounded")]
    let scaled = |w: &f32| if mean > 0.0 { (f64::from(*w) / mean) as f32 } else { 1.0 };
    row.iter().map(scaled).collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;
    use crate::tensor::Float;

    #[test]
    fn a_band_is_cut_where_experts_change() {
        let of = Importance::new(4, 2, &[1., 1., 1., 1., 0., 4., 0., 0., 0., 0., 0., 0.]).unwrap();
        let fits = |shape: &[usize]| of.fits(&Weight { stem: "x".into(), float: Float::F32, shape: shape.to_vec() });
        assert!(fits(&[3, 2, 4]) && fits(&[6, 4]) && !fits(&[2, 4]) && !fits(&[6, 2, 2]));
        let runs: Vec<_> = of.runs(Method::Ls, 6..22).collect();
        assert_eq!(runs.iter().map(|(run, _)| run.clone()).collect::<Vec<_>>(), [0..2, 2..10, 10..16]);
        assert_eq!(runs.iter().map(|(_, choice)| choice.first).collect::<Vec<_>>(), [2, 0, 0]);
        assert_eq!(runs[1].1.importance, [0., 4., 0., 0.]);
        assert_eq!(runs[2].1.importance, [1.; 4], "zeros say nothing");
        assert_eq!(of.runs(Method::Ls, 8..8).count(), 0);
    }

    #[test]
    fn what_is_no_importance_is_refused() {
        for (values, why) in
            [(&[1.0, f32::NAN][..], "NaN"), (&[1.0, -1.0], "-1"), (&[1.0], "no importance"), (&[], "no")]
        {
            let error = Importance::new(2, 1, values).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        let id = |values: &[f32]| Importance::new(2, 1, values).unwrap().id();
        assert_eq!(id(&[1.0, 3.0]), id(&[2.0, 6.0]), "only how columns compare");
        assert_ne!(id(&[1.0, 3.0]), id(&[3.0, 1.0]));
    }
}
