//! Why a read failed, by meaning, and the log of it.
//!
//! Errors are never kept: the next read of the same bytes tries again.

use std::{
    collections::HashMap,
    fmt::{self, Display},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use crate::{
    cache::{Abandoned, lock},
    source,
};

/// What was being read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Path of the file in the view.
    pub file: String,
    /// Name of the tensor, where the bytes belong to a quantized one.
    pub tensor: Option<String>,
    /// Offset in the file of the view.
    pub offset: u64,
}

impl Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at offset {}", self.file, self.offset)?;
        self.tensor.iter().try_for_each(|tensor| write!(f, " ({tensor})"))
    }
}

/// Why a read of a view failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// The view has no such file.
    #[error("the view has no file number {file}")]
    NoSuchFile {
        /// Index into the plan's files.
        file: usize,
    },
    /// The source is no longer what the plan was made from.
    #[error("{place}: {source}")]
    Changed {
        /// What was being read.
        place: Place,
        /// What differs.
        source: Arc<source::Error>,
    },
    /// The source could not be read.
    #[error("{place}: {source}")]
    Io {
        /// What was being read.
        place: Place,
        /// Why not.
        source: Arc<source::Error>,
    },
    /// There was no answer in time. A later read may succeed.
    #[error("{place}: no answer within {} s; is the source's disk or network hung?", after.as_secs_f32())]
    TimedOut {
        /// What was being read.
        place: Place,
        /// The deadline.
        after: Duration,
    },
    /// A bug: the computation panicked. Other reads go on.
    #[error("{place}: a panic while encoding: {what}; please report this")]
    Panicked {
        /// What was being read.
        place: Place,
        /// The panic's message.
        what: Arc<str>,
    },
    /// The engine was shut down before the read was answered.
    #[error("{place}: given up, the view is shutting down")]
    Stopped {
        /// What was being read.
        place: Place,
    },
}

/// A failed computation, before it is known which read it fails.
#[derive(Clone, Debug)]
pub(super) enum Failure {
    Source(Arc<source::Error>),
    Panicked(Arc<str>),
    TimedOut(Duration),
    Stopped,
}

impl From<source::Error> for Failure {
    fn from(e: source::Error) -> Self {
        Self::Source(Arc::new(e))
    }
}

impl From<Abandoned> for Failure {
    fn from(Abandoned: Abandoned) -> Self {
        Self::Stopped
    }
}

impl Failure {
    /// The failure of a caught panic.
    pub(super) fn of_panic(payload: &(dyn std::any::Any + Send)) -> Self {
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        Self::Panicked(text.unwrap_or("no message").into())
    }

    /// The error of a read that it fails.
    pub(super) fn at(self, place: Place) -> ReadError {
        match self {
            // A file that vanished is not the one that was listed.
            Self::Source(source) => match *source {
                source::Error::Changed { .. } | source::Error::NotFound { .. } => ReadError::Changed { place, source },
                _ => ReadError::Io { place, source },
            },
            Self::Panicked(what) => ReadError::Panicked { place, what },
            Self::TimedOut(after) => ReadError::TimedOut { place, after },
            Self::Stopped => ReadError::Stopped { place },
        }
    }
}

/// The shortest time between two lines about the same file: a loader that retries must not fill the
/// disk with its log.
const QUIET: Duration = Duration::from_secs(1);
/// Files remembered for that; more than fail at once in any real accident.
const REMEMBERED: usize = 1024;

/// Logs failures: one line an event, at most one each [`QUIET`] for a file, with a count of those
/// left out.
#[derive(Debug, Default)]
pub(super) struct Journal {
    last: Mutex<HashMap<String, (Instant, u64)>>,
}

impl Journal {
    pub(super) fn failed(&self, failure: &Failure, place: &Place) {
        if let Some(left_out) = self.pass(&place.file) {
            let error = failure.clone().at(place.clone());
            if left_out > 0 {
                tracing::warn!(file = place.file, tensor = place.tensor, offset = place.offset, left_out, "{error}");
            } else {
                tracing::warn!(file = place.file, tensor = place.tensor, offset = place.offset, "{error}");
            }
        }
    }

    /// Whether a line about `file` may be written now, and how many were not since the last.
    fn pass(&self, file: &str) -> Option<u64> {
        let now = Instant::now();
        let mut last = lock(&self.last);
        if let Some((at, left_out)) = last.get_mut(file) {
            if now.duration_since(*at) < QUIET {
                *left_out += 1;
                return None;
            }
            *at = now;
            return Some(std::mem::take(left_out));
        }
        if last.len() >= REMEMBERED {
            last.clear();
        }
        last.insert(file.to_owned(), (now, 0));
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_logged_once_a_while_and_others_are_not_hidden() {
        let journal = Journal::default();
        assert_eq!(journal.pass("a"), Some(0));
        assert_eq!(journal.pass("a"), None);
        assert_eq!(journal.pass("b"), Some(0));
        if let Some((at, _)) = lock(&journal.last).get_mut("a") {
            *at -= QUIET;
        }
        assert_eq!(journal.pass("a"), Some(1), "and says how many were left out");
    }
    #[cfg(feature = "cli")]
    #[test]
    fn a_line_names_file_tensor_offset_and_cause() {
        #[derive(Clone, Default)]
        struct Lines(Arc<Mutex<Vec<u8>>>);
        impl std::io::Write for Lines {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                lock(&self.0).write(bytes)
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        let place = Place { file: "model.safetensors".to_owned(), tensor: Some("up.weight".to_owned()), offset: 4711 };
        let gone = Failure::from(source::Error::NotFound { path: "/models/shard-1".to_owned() });
        tracing::subscriber::with_default(subscriber, || {
            (0..3).for_each(|_| Journal::default().failed(&gone, &place));
        });
        let text = String::from_utf8_lossy(&lock(&lines.0)).into_owned();
        assert_eq!(text.matches("WARN").count(), 3, "{text}");
        for word in ["model.safetensors", "up.weight", "4711", "/models/shard-1"] {
            assert_eq!(text.matches(word).count() % 3, 0, "{word} is in every line: {text}");
            assert!(text.contains(word), "{word}: {text}");
        }
    }
}
