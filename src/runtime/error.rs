//! Why weights could not be opened, or a layer could not compute.

use std::path::Path;

use crate::container::Malformed;

/// Names the file, and the tensor where there is one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused a file or directory.
    #[error("{path}: {source}")]
    Io {
        /// The file or directory.
        path: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// A file is not what its name says.
    #[error("{path}: {source}")]
    Malformed {
        /// The file.
        path: String,
        /// What is wrong.
        source: Malformed,
    },
    /// The directory as a whole cannot be used.
    #[error("{path}: {why}")]
    Refused {
        /// The directory or file.
        path: String,
        /// What is wrong and what to do.
        why: String,
    },
    /// No file holds a tensor.
    #[error("tensor {tensor} is not in {path}{hint}")]
    Missing {
        /// The tensor.
        tensor: String,
        /// The directory, or the file that should hold it.
        path: String,
        /// What there is instead; often empty.
        hint: String,
    },
    /// A tensor cannot be used for what was asked.
    #[error("tensor {tensor} of {path}: {why}")]
    Tensor {
        /// The tensor.
        tensor: String,
        /// The file that holds it.
        path: String,
        /// What is wrong and what to do.
        why: String,
    },
    /// A layer was given slices that do not fit it.
    #[error("layer {layer}: {why}")]
    Lengths {
        /// The module.
        layer: String,
        /// Which lengths were given and which are right.
        why: String,
    },
    /// A scheme cannot store a matrix.
    #[error("layer {layer}: {why}")]
    Unsupported {
        /// The module.
        layer: String,
        /// Why not.
        why: String,
    },
}

impl Error {
    pub(super) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.display().to_string(), source }
    }

    pub(super) fn malformed(path: &Path, source: Malformed) -> Self {
        Self::Malformed { path: path.display().to_string(), source }
    }

    pub(super) fn refused(path: &Path, why: impl Into<String>) -> Self {
        Self::Refused { path: path.display().to_string(), why: why.into() }
    }
}
