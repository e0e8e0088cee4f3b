//! How the next token is chosen from logits.
//!
//! Always: the same logits, temperature and seed give the same tokens.
//!
//! Knows no model.

/// The index of the largest logit; the first of equal ones, as mlx and numpy have it. NaN is never chosen.
#[must_use]
pub fn largest(logits: &[f32]) -> usize {
    let mut best = 0;
    for (i, x) in logits.iter().enumerate() {
        if *x > logits[best] || logits[best].is_nan() {
            best = i;
        }
    }
    best
}

/// The logarithms of the probabilities that logits stand for: `x - max - ln(sum of exp(x - max))`.
#[must_use]
pub fn log_probabilities(logits: &[f32]) -> Vec<f64> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let shifted = logits.iter().map(|x| f64::from(*x) - f64::from(most));
    let sum: f64 = shifted.clone().map(f64::exp).sum();
    let log_sum = sum.ln();
    shifted.map(|x| x - log_sum).collect()
}

/// Chooses tokens.
#[derive(Clone, Debug)]
pub struct Sampler {
    temperature: f32,
    state: u64,
}

impl Sampler {
    /// A sampler; a temperature of 0 always takes the likeliest token and needs no seed.
    ///
    /// # Errors
    /// A temperature that is negative or no number.
    pub fn new(temperature: f32, seed: u64) -> Result<Self, String> {
        if temperature >= 0.0 && temperature.is_finite() {
            return Ok(Self { temperature, state: seed });
        }
        Err(format!("a temperature of {temperature}: 0 (greedy) or a positive number is meant"))
    }

    /// A token of the probabilities `softmax(logits / temperature)`.
    pub fn sample(&mut self, logits: &[f32]) -> usize {
        if self.temperature == 0.0 {
            return largest(logits);
        }
        let most = f64::from(logits[largest(logits)]);
        let temperature = f64::from(self.temperature);
        let weight = |x: &f32| ((f64::from(*x) - most) / temperature).exp();
        let mut left = self.uniform() * logits.iter().map(weight).sum::<f64>();
        for (i, x) in logits.iter().enumerate() {
            left -= weight(x);
            if left < 0.0 {
                return i;
            }
        }
        largest(logits)
    }

    /// A number of [0, 1): the upper 53 bits of SplitMix64 (Steele, Lea and Flood, 2014).
    fn uniform(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}
