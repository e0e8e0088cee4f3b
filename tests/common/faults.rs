//! A source around another one that fails, waits, and counts.

use std::{
    ops::Range,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use quantfs::source::{Entry, Error, FileId, Source};

/// What happens to reads, counted from 0 over all files.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// None: reads are only counted.
    Nothing,
    /// The n-th read fails as the medium would; others succeed.
    Fails(u64),
    /// From the n-th read on, files are reported as changed.
    Changes(u64),
    /// Every read waits.
    Slow(Duration),
    /// The n-th read panics, as a defect would.
    Panics(u64),
}

/// A source with a fault.
#[derive(Debug)]
pub(crate) struct Faulty<S> {
    inner: S,
    fault: Fault,
    reads: AtomicU64,
    bytes: AtomicU64,
}

impl<S: Source> Faulty<S> {
    pub(crate) fn new(inner: S, fault: Fault) -> Self {
        Self { inner, fault, reads: AtomicU64::new(0), bytes: AtomicU64::new(0) }
    }

    /// Reads that were asked for.
    pub(crate) fn reads(&self) -> u64 {
        self.reads.load(Relaxed)
    }

    /// Bytes that were delivered.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    fn strike(&self, id: FileId, offset: u64) -> Result<(), Error> {
        let n = self.reads.fetch_add(1, Relaxed);
        let path = || self.entry(id).path.clone();
        match self.fault {
            Fault::Fails(at) if n == at => {
                // EIO, which has no kind of its own.
                Err(Error::Io { path: path(), offset, source: std::io::Error::from_raw_os_error(5) })
            }
            Fault::Changes(from) if n >= from => Err(Error::Changed { path: path(), what: "planted".into() }),
            Fault::Panics(at) if n == at => panic!("planted"),
            Fault::Slow(wait) => {
                std::thread::sleep(wait);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

impl<S: Source> Source for Faulty<S> {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn repo(&self) -> Option<(&str, &str)> {
        self.inner.repo()
    }

    fn local_roots(&self) -> &[PathBuf] {
        self.inner.local_roots()
    }

    fn entries(&self) -> &[Entry] {
        self.inner.entries()
    }

    fn read_exact_at(&self, id: FileId, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        self.strike(id, offset)?;
        self.inner.read_exact_at(id, offset, buf)?;
        self.bytes.fetch_add(buf.len() as u64, Relaxed);
        Ok(())
    }

    /// None: what goes around `read_exact_at` would go around the fault.
    fn local_file(&self, _: FileId) -> Option<OwnedFd> {
        None
    }

    fn hint(&self, id: FileId, range: Range<u64>) {
        self.inner.hint(id, range);
    }

    fn release(&self, id: FileId, range: Range<u64>) {
        self.inner.release(id, range);
    }
}
