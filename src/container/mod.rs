//! File kinds: pure parse and render, with caps on everything read.
//!
//! Nothing here does I/O. Every parser takes bytes that may be hostile and answers with a value or
//! with [`Malformed`], never with a panic, a hang, or an allocation past its caps.

/// What is wrong with bytes that were to be parsed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct Malformed {
    /// Names the tensor and the offset where they are known, and says what is wrong.
    pub what: String,
}
