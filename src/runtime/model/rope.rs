//! Rotary position embedding: pairs half a head apart are turned by an angle that grows with the position.
//!
//! Always: frequencies and angles are rounded to f32, as where the models were trained; the turn itself is
//! `x1 cos - x2 sin, x2 cos + x1 sin` in f32. The angles of a run of positions are made once for all layers.
//!
//! Knows no head and no layer.

/// What a model does to the frequencies to see further than it was first trained for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scaling {
    /// Nothing.
    None,
    /// Positions are divided by the factor.
    Linear {
        /// Above 1: positions move closer together.
        factor: f64,
    },
    /// Low frequencies are divided, high ones kept, those between blended.
    Llama3(Llama3),
}

/// Llama 3's scaling (transformers' `_compute_llama3_parameters`, mlx_lm's `Llama3RoPE`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Llama3 {
    /// What low frequencies are divided by.
    pub factor: f64,
    /// Wavelengths above `original_positions / low_freq_factor` are scaled wholly.
    pub low_freq_factor: f64,
    /// Wavelengths below `original_positions / high_freq_factor` are kept.
    pub high_freq_factor: f64,
    /// Positions that the model was first trained for.
    pub original_positions: f64,
}

impl Llama3 {
    /// A scaling whose band of blended frequencies is not empty.
    pub(super) fn checked(self) -> Result<Scaling, String> {
        if self.high_freq_factor > self.low_freq_factor {
            return Ok(Scaling::Llama3(self));
        }
        let Self { low_freq_factor, high_freq_factor, .. } = self;
        Err(format!("rope_scaling: high_freq_factor {high_freq_factor} is not above low_freq_factor {low_freq_factor}"))
    }

    fn scale(&self, frequency: f64) -> f64 {
        let wavelength = 2.0 * std::f64::consts::PI / frequency;
        let turns = self.original_positions / wavelength;
        let smooth = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor);
        let kept = smooth.clamp(0.0, 1.0);
        (1.0 - kept) * frequency / self.factor + kept * frequency
    }
}

/// A rotary embedding.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// What is done to them.
    pub scaling: Scaling,
}

impl Rope {
    /// The angle that each pair turns by from one position to the next; `head_dim / 2` of them, the
    /// fastest first.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the models' frequencies are f32")]
    pub fn frequencies(&self, head_dim: usize) -> Vec<f32> {
        let scaled = |frequency: f64| match self.scaling {
            Scaling::None => frequency,
            Scaling::Linear { factor } => frequency / factor,
            Scaling::Llama3(scaling) => scaling.scale(frequency),
        };
        let exponent = |pair: usize| (2 * pair) as f64 / head_dim as f64;
        (0..head_dim / 2).map(|pair| scaled(self.theta.powf(-exponent(pair))) as f32).collect()
    }
}

/// Cosines and sines of a run of positions.
#[derive(Debug)]
pub struct Angles {
    half: usize,
    /// `[positions, half]`, cosine and sine.
    turns: Vec<(f32, f32)>,
}

impl Angles {
    /// The angles of `count` positions from `first` on.
    #[must_use]
    pub fn new(frequencies: &[f32], first: usize, count: usize) -> Self {
        let turn = |position: usize, frequency: f32| {
            let angle = position as f32 * frequency;
            (angle.cos(), angle.sin())
        };
        let turns = (first..first + count).flat_map(|p| frequencies.iter().map(move |&f| turn(p, f))).collect();
        Self { half: frequencies.len(), turns }
    }

    /// Turns the heads of one row in place; `at` counts positions from the first.
    pub fn turn(&self, at: usize, heads: &mut [f32]) {
        let turns = &self.turns[at * self.half..(at + 1) * self.half];
        for head in heads.chunks_exact_mut(2 * self.half) {
            let (low, high) = head.split_at_mut(self.half);
            for ((x1, x2), (cos, sin)) in low.iter_mut().zip(high).zip(turns) {
                (*x1, *x2) = (*x1 * cos - *x2 * sin, *x2 * cos + *x1 * sin);
            }
        }
    }
}
