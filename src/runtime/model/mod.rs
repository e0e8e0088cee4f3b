//! Decoder models on quantized layers: the Llama, Mistral, Qwen2 and Qwen3 families.
//!
//! A [`Decoder`] is opened from a directory that holds `config.json` and weights; it turns tokens into
//! logits. Text and tokens are a tokenizer's matter (`tokens`, with the feature of that name), chat
//! templates the caller's.
//!
//! Always: activations, normalization, softmax and the cache of keys and values are f32; products with
//! weights are as [`Arithmetic`](crate::quant::operator::Arithmetic) says. Results do not depend on the
//! number of threads.
//!
//! ```
//! use quantfs::runtime::{
//!     Arithmetic,
//!     model::{Decoder, Sampler, perplexity},
//! };
//! # let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/mlx_lm/llama_q4_g64");
//! let decoder = Decoder::open(dir, Arithmetic::Exact)?; // `config.json` and mapped weights
//! let (mut cache, mut sampler) = (decoder.cache(), Sampler::new(0.0, 0)?); // temperature 0: the likeliest token
//! let mut logits = decoder.next(&[1, 2, 3], &mut cache)?; // a prompt
//! for _ in 0..4 {
//!     let token = sampler.sample(&logits) as u32;
//!     logits = decoder.next(&[token], &mut cache)?;
//! }
//! assert_eq!((cache.positions(), logits.len()), (7, 64));
//!
//! // How well it predicts a text, in inputs of two tokens.
//! let mut sums = Default::default();
//! for input in perplexity::inputs(&[5, 6, 7, 8, 9], 2) {
//!     perplexity::score(&decoder, None, input, &mut sums)?;
//! }
//! assert!(sums.0.tokens == 4 && sums.0.perplexity() > 1.0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod attention;
pub mod config;
pub mod decoder;
pub mod perplexity;
pub mod rms_norm;
pub mod rope;
pub mod sampling;
#[cfg(feature = "tokens")]
pub mod tokens;

use std::path::Path;

pub use config::{Config, Family};
pub use decoder::{Cache, Decoder};
pub use sampling::Sampler;
#[cfg(feature = "tokens")]
pub use tokens::Tokens;

/// Why a model cannot be opened or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is unreadable, or asks for what is not supported.
    #[error("{path}: {why}")]
    Config {
        /// The file.
        path: String,
        /// What is wrong, and what is supported.
        why: String,
    },
    /// The tokenizer is unreadable or failed.
    #[error("{path}: {why}")]
    Tokenizer {
        /// The file.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// A weight does not fit the configuration.
    #[error("{name}: {why}")]
    Weight {
        /// Its name.
        name: String,
        /// How it differs.
        why: String,
    },
    /// A token that the model does not have.
    #[error("token {token}: the model has {vocab} (vocab_size of its config.json; is the tokenizer its own?)")]
    Token {
        /// The token.
        token: u32,
        /// Tokens that there are.
        vocab: usize,
    },
    /// Keys and values that another decoder made.
    #[error("the cache is of another decoder: each makes its own")]
    Cache,
    /// No token was given, so that none can follow.
    #[error("no token: a text needs at least one")]
    Empty,
    /// Weights that are no numbers, or too large ones, made logits that are none.
    #[error("the logits are not finite: `quantfs verify` tells which weights are not")]
    NotFinite,
    /// Two decoders cannot be compared.
    #[error("the model has {own} tokens, the reference {other}: only models of one tokenizer can be compared")]
    Vocabulary {
        /// Tokens of the decoder.
        own: usize,
        /// Tokens of the reference.
        other: usize,
    },
    /// A layer could not be opened or run.
    #[error(transparent)]
    Runtime(#[from] crate::runtime::Error),
}

impl Error {
    fn config(path: &Path, why: String) -> Self {
        Self::Config { path: path.display().to_string(), why }
    }
}
