//! Root-mean-square normalization: `x / sqrt(mean(x^2) + eps) * weight`, in f32.
//!
//! Knows no layer; a row is normalized alone, so that heads are rows too.

use crate::kernel::kernels;

/// A normalization with its weights.
#[derive(Clone, Debug)]
pub struct RmsNorm {
    weight: Vec<f32>,
    eps: f32,
}

impl RmsNorm {
    /// A normalization of rows as long as `weight`.
    #[must_use]
    pub fn new(weight: Vec<f32>, eps: f32) -> Self {
        Self { weight, eps }
    }

    /// Normalizes rows in place; `rows` holds whole ones.
    pub fn normalize(&self, rows: &mut [f32]) {
        for row in rows.chunks_exact_mut(self.weight.len()) {
            let mut sum = [0.0];
            kernels().multiply(row.len(), row, row, &mut sum);
            let scale = 1.0 / (sum[0] / row.len() as f32 + self.eps).sqrt();
            row.iter_mut().zip(&self.weight).for_each(|(x, w)| *x = *x * scale * w);
        }
    }

    /// The normalized rows.
    #[must_use]
    pub fn forward(&self, rows: &[f32]) -> Vec<f32> {
        let mut out = rows.to_vec();
        self.normalize(&mut out);
        out
    }
}
