//! File kinds: pure parse and render, with caps on everything read.
//!
//! Nothing here does I/O. Every parser takes bytes that may be hostile and answers with a value or
//! with [`Malformed`], never with a panic, a hang, or an allocation past its caps.

pub mod gguf;
pub mod index;
pub mod json;
pub mod onnx;
mod protobuf;
pub mod safetensors;
mod strict;

/// What is wrong with bytes that were to be parsed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct Malformed {
    /// Names the tensor and the offset where they are known, and says what is wrong.
    pub what: String,
}

impl Malformed {
    /// Longest message in characters: messages quote what they refuse, which may be megabytes.
    const MAX_CHARS: usize = 500;

    /// A message, cut where it is too long to read, without control characters.
    pub(crate) fn new(what: impl AsRef<str>) -> Self {
        let what = what.as_ref();
        let mut clean: String =
            what.chars().take(Self::MAX_CHARS).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
        if clean.len() < what.len() {
            clean.push_str(" ...");
        }
        Self { what: clean }
    }
}

/// A name as messages quote it, cut where it is too long to read.
pub(crate) fn quoted(name: &str) -> String {
    const MAX: usize = 200;
    match name.char_indices().nth(MAX) {
        Some((cut, _)) => format!("`{}...`", &name[..cut]),
        None => format!("`{name}`"),
    }
}
