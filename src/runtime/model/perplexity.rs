//! How well a decoder predicts a text, and how far its predictions are from another's.
//!
//! A text is one stream of tokens, cut into inputs of a fixed length; the token after each position of an
//! input is scored, the first of the next input after the last. A last partial input is left out.
//!
//! Always: sums are f64, in the order of the text.
//!
//! Knows no text and no tokenizer.

use rayon::prelude::*;

use crate::runtime::model::{
    Decoder, Error,
    sampling::{largest, log_probabilities},
};

/// Logits that are held at a time, 16 MiB of them: the head is read once for each such slab.
const SLAB: usize = 1 << 22;
/// Positions of a slab at least: with a very large vocabulary, some tens of megabytes.
const POSITIONS: usize = 32;

/// The inputs of a stream, each with the tokens to predict: both have `context` tokens.
pub fn inputs(stream: &[u32], context: usize) -> impl ExactSizeIterator<Item = (&[u32], &[u32])> {
    let targets = stream.get(1..).unwrap_or_default();
    stream.chunks_exact(context).zip(targets.chunks_exact(context))
}

/// Sums over the positions that were scored.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Score {
    /// Positions.
    pub tokens: usize,
    /// Sum of `-ln p(token)`.
    pub surprise: f64,
}

impl Score {
    /// `exp` of the mean surprise.
    #[must_use]
    pub fn perplexity(&self) -> f64 {
        (self.surprise / self.tokens as f64).exp()
    }
}

/// Sums over the positions at which two decoders were compared.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Difference {
    /// The other decoder's score.
    pub reference: Score,
    /// Sum of the Kullback-Leibler divergences of the decoder's distribution from the reference's, in nats.
    pub divergence: f64,
    /// Positions at which the likeliest token is the same.
    pub equal: usize,
}

/// What one position adds.
struct Position {
    surprise: f64,
    compared: Option<(f64, f64, bool)>,
}

/// Scores one input, and compares with a reference that has as many tokens.
///
/// ```
/// use quantfs::runtime::{Arithmetic, model::{Decoder, perplexity}};
/// # let (dir, source) = (concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/mlx_lm/llama_q4_g64"), concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/mlx_lm/llama_src"));
/// let decoder = Decoder::open(dir, Arithmetic::default())?;
/// let reference = Decoder::open(source, Arithmetic::Exact)?;
/// let mut sums = Default::default();
/// for input in perplexity::inputs(&[5, 6, 7, 8, 9, 10, 11], 3) {
///     perplexity::score(&decoder, Some(&reference), input, &mut sums)?;
/// }
/// let (score, difference) = sums;
/// assert_eq!((score.tokens, difference.reference.tokens), (6, 6));
/// let (mean, equal) = (difference.divergence / 6.0, difference.equal as f64 / 6.0);
/// println!("perplexity {}, KL {mean} nats from the reference's, top-1 equal {equal}", score.perplexity());
/// # assert!(score.perplexity() > 1.0 && mean > 0.0);
/// # Ok::<(), quantfs::runtime::model::Error>(())
/// ```
///
/// # Errors
/// A reference of another vocabulary, tokens that a decoder does not have, or logits that are no numbers.
pub fn score(
    decoder: &Decoder,
    reference: Option<&Decoder>,
    (input, targets): (&[u32], &[u32]),
    sums: &mut (Score, Difference),
) -> Result<(), Error> {
    let vocab = decoder.config().vocab_size;
    if let Some(other) = reference.map(|r| r.config().vocab_size).filter(|other| *other != vocab) {
        return Err(Error::Vocabulary { own: vocab, other });
    }
    let states = decoder.states(input, &mut decoder.cache())?;
    let others = reference.map(|r| r.states(input, &mut r.cache())).transpose()?;
    let slab = (SLAB / vocab).max(POSITIONS);
    let width = |decoder: &Decoder| slab * decoder.config().hidden_size;
    let mut others = others.as_deref().zip(reference).map(|(states, r)| (states.chunks(width(r)), r));
    for (states, targets) in states.chunks(width(decoder)).zip(targets.chunks(slab)) {
        let logits = decoder.logits(states)?;
        let reference = match &mut others {
            Some((slabs, r)) => Some(r.logits(slabs.next().unwrap_or_default())?),
            None => None,
        };
        for position in positions(&logits, reference.as_deref(), targets)? {
            sums.0.add(position.surprise);
            if let Some((surprise, divergence, equal)) = position.compared {
                sums.1.reference.add(surprise);
                sums.1.divergence += divergence;
                sums.1.equal += usize::from(equal);
            }
        }
    }
    Ok(())
}

impl Score {
    fn add(&mut self, surprise: f64) {
        self.tokens += 1;
        self.surprise += surprise;
    }
}

fn positions(logits: &[f32], reference: Option<&[f32]>, targets: &[u32]) -> Result<Vec<Position>, Error> {
    let vocab = logits.len() / targets.len();
    let rows = targets.par_iter().enumerate().map(|(at, target)| {
        let row = at * vocab..(at + 1) * vocab;
        position(&logits[row.clone()], reference.map(|r| &r[row]), *target as usize)
    });
    rows.collect()
}

fn position(logits: &[f32], reference: Option<&[f32]>, target: usize) -> Result<Position, Error> {
    let own = log_probabilities(logits);
    let surprise = |all: &[f64]| -> Result<f64, Error> {
        let Some(p) = all.get(target) else {
            return Err(Error::Token { token: u32::try_from(target).unwrap_or(u32::MAX), vocab: all.len() });
        };
        if p.is_nan() { Err(Error::NotFinite) } else { Ok(-p) }
    };
    let compare = |reference: &[f32]| {
        let other = log_probabilities(reference);
        let divergence =
            other.iter().zip(&own).map(|(q, p)| if *q > f64::NEG_INFINITY { q.exp() * (q - p) } else { 0.0 });
        Ok::<_, Error>((surprise(&other)?, divergence.sum(), largest(reference) == largest(logits)))
    };
    Ok(Position { surprise: surprise(&own)?, compared: reference.map(compare).transpose()? })
}
