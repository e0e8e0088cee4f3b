//! Errno of a failed read: the one place where meanings become numbers.

use rustix::io::Errno;

use crate::{source, view::ReadError};

/// What `read` answers.
pub(super) fn errno(error: &ReadError) -> i32 {
    match error {
        // The file that was promised is no longer there to be read.
        ReadError::Changed { .. } => Errno::STALE,
        ReadError::TimedOut { .. } => Errno::TIMEDOUT,
        ReadError::Io { source, .. } => return source_errno(source),
        ReadError::NoSuchFile { .. } | ReadError::Panicked { .. } | ReadError::Stopped { .. } => Errno::IO,
    }
    .raw_os_error()
}

fn source_errno(error: &source::Error) -> i32 {
    match error {
        source::Error::NotFound { .. } | source::Error::Changed { .. } => Errno::STALE.raw_os_error(),
        source::Error::Denied { .. } => Errno::ACCESS.raw_os_error(),
        source::Error::Refused { .. } => Errno::IO.raw_os_error(),
        source::Error::Io { source, .. } => source.raw_os_error().unwrap_or(Errno::IO.raw_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::{io, sync::Arc, time::Duration};

    use super::*;
    use crate::view::Place;

    fn place() -> Place {
        Place { file: "model.safetensors".into(), tensor: None, offset: 7 }
    }

    fn io_error(source: source::Error) -> ReadError {
        ReadError::Io { place: place(), source: Arc::new(source) }
    }

    fn failed(source: io::Error) -> ReadError {
        io_error(source::Error::Io { path: "x".into(), offset: 0, source })
    }

    #[test]
    fn every_meaning_has_its_number() {
        let (path, why) = (|| "x".to_owned(), || "y".to_owned());
        let changed = Arc::new(source::Error::Changed { path: path(), what: why() });
        let table = [
            (ReadError::Changed { place: place(), source: changed }, libc::ESTALE),
            (ReadError::TimedOut { place: place(), after: Duration::from_secs(30) }, libc::ETIMEDOUT),
            (ReadError::NoSuchFile { file: 1 }, libc::EIO),
            (ReadError::Panicked { place: place(), what: "x".into() }, libc::EIO),
            (ReadError::Stopped { place: place() }, libc::EIO),
            (io_error(source::Error::NotFound { path: path() }), libc::ESTALE),
            (io_error(source::Error::Denied { path: path() }), libc::EACCES),
            (io_error(source::Error::Refused { path: path(), why: why() }), libc::EIO),
            (failed(io::Error::from_raw_os_error(libc::ENOMEM)), libc::ENOMEM),
            (failed(io::Error::other("no number")), libc::EIO),
        ];
        for (error, expected) in table {
            assert_eq!(errno(&error), expected, "{error:?}");
        }
    }
}
