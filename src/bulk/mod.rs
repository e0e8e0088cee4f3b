//! What reads whole views: export, verify, errors, report, target sizes; and what measures the machine: bench.
//!
//! Library code that takes long tells a [`Progress`]; the bar is the command line's. Knows no FUSE
//! and prints nothing.

pub mod allocate;
mod audit;
pub mod bench;
mod compare;
mod describe;
pub mod errors;
mod export;
mod holdings;
mod models;
mod recognized;
pub mod report;
mod stated;
pub mod target;
mod tensors;

pub use audit::{Audit, audit};
pub use compare::{Comparison, Difference, compare};
pub use describe::describe;
pub use export::export;
pub use tensors::{TensorComparison, compare_tensors};

/// What a long job tells while it runs. Called from several threads.
pub trait Progress: Sync {
    /// The job is `total` bytes long.
    fn begin(&self, total: u64);
    /// So many bytes more are done.
    fn advance(&self, bytes: u64);
    /// What is being worked on.
    fn note(&self, what: &str);
}

/// Nobody listens.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _: u64) {}
    fn advance(&self, _: u64) {}
    fn note(&self, _: &str) {}
}

/// Why a whole view could not be read, written or compared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The target cannot be used.
    #[error("{0}")]
    Refused(String),
    /// A view that is needed on the way cannot be planned.
    #[error(transparent)]
    Plan(#[from] crate::plan::Error),
    /// A file of the target failed.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The view failed.
    #[error(transparent)]
    Read(#[from] crate::view::ReadError),
}

impl Error {
    pub(crate) fn io(path: &std::path::Path, source: std::io::Error) -> Self {
        Self::Io { path: path.display().to_string(), source }
    }
}

/// Bytes that a worker reads at once: a few tiles, so that encoding runs ahead of writing.
const CHUNK: u64 = 4 << 20;

/// The chunks of a file: offset and length.
fn chunks(len: u64) -> impl rayon::iter::IndexedParallelIterator<Item = (u64, usize)> {
    use rayon::prelude::*;
    let count = usize::try_from(len.div_ceil(CHUNK)).unwrap_or(usize::MAX);
    (0..count).into_par_iter().map(move |i| {
        let start = i as u64 * CHUNK;
        (start, usize::try_from(CHUNK.min(len - start)).unwrap_or(0))
    })
}

/// Fills a buffer from a file of a view. The plan's lengths are exact, so that fewer bytes are a
/// failure.
fn fill(view: &std::sync::Arc<crate::view::View>, file: usize, start: u64, buffer: &mut [u8]) -> Result<(), Error> {
    let got = view.read_at(file, start, buffer)?;
    if got == buffer.len() {
        return Ok(());
    }
    let path = &view.plan().files[file].path;
    Err(Error::Refused(format!("{path}: ends at offset {}, before its length", start + got as u64)))
}
