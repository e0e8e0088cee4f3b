//! Why a view cannot be planned.

use crate::{container::Malformed, source};

/// Why there is no plan; every message names the file, tensor or flag and says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is wrong: a spec, a rule, an option.
    #[error("{0}")]
    Spec(String),
    /// The snapshot cannot be shown this way.
    #[error("{0}")]
    Refused(String),
    /// A file of the snapshot is broken.
    #[error("{file}: {what}")]
    Malformed {
        /// The file below the source's root.
        file: String,
        /// What is wrong with it, with tensor and offset where they are known.
        what: Malformed,
    },
    /// The source could not be read.
    #[error(transparent)]
    Source(#[from] source::Error),
}

impl Error {
    pub(crate) fn spec(text: String) -> Self {
        Self::Spec(text)
    }

    pub(crate) fn refused(text: String) -> Self {
        Self::Refused(text)
    }

    /// Whether the fault is in what was asked for, not in the snapshot.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Spec(_))
    }
}
