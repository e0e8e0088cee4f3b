//! Finished files of views on disk: kept across mounts, shared by processes, trusted only as far as
//! their checksums.
//!
//! A [`Store`] is a directory; an [`Entry`] in it is one file of a view, cut into *pieces*. Its bytes lie
//! where the view's file has them, in a sparse file of the same length, so that a *sealed* entry (every
//! piece written out and checked) is the view's file, to be read by whoever has a descriptor of it.
//!
//! What always holds: [`Entry::load`] hands out bytes whose checksum it has just taken, or none; a piece
//! is recorded after its bytes are written, so that whatever ends the process in between leaves no
//! record; two writers of a piece write the same bytes, for its name is the digest of all that goes
//! into it. Below the directory no link is followed and no name is touched but those made here. A
//! directory that fails is written to no more, with one line in the log, and nobody else sees it.
//!
//! Knows neither plans nor formats nor FUSE: it is told digests and lengths. Its calls wait for the disk,
//! which may hang: they are no calls for a thread that answers requests.

mod entry;
mod sums;
mod trim;

use std::{
    fs::{self, DirBuilder, File},
    io::{self, ErrorKind},
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt, MetadataExt},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use rustix::fs::{Mode, OFlags};

pub use entry::{Entry, Loaded};
use trim::Usage;

/// The directory that holds what this version of the layout knows; others beside it are left alone.
const VERSION: &str = "v1";

/// Where finished files are kept, and how many bytes of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The directory. It is made where it is missing.
    pub dir: PathBuf,
    /// The most bytes to keep; `None` for half of what the file system has free beside the store.
    pub limit: Option<u64>,
}

/// Why a directory is no store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is of a kind, or of an owner, that cannot be trusted.
    #[error("{}: {why}", path.display())]
    Refused {
        /// The directory.
        path: PathBuf,
        /// What is wrong and what to do.
        why: &'static str,
    },
    /// The system refuses.
    #[error("{}: cannot keep files there: {source}", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// A file of a view, as far as the store has to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Of everything that its bytes are a function of. Two layouts with one digest are equal.
    pub digest: [u8; 32],
    /// Length in bytes.
    pub len: u64,
    /// Where its pieces start, ascending from 0; each ends where the next one starts.
    pub starts: Vec<u64>,
}

impl Layout {
    /// Number of pieces.
    #[must_use]
    pub fn pieces(&self) -> usize {
        self.starts.len()
    }

    /// The bytes of a piece.
    ///
    /// # Panics
    /// If there is no such piece.
    #[must_use]
    pub fn range(&self, piece: usize) -> std::ops::Range<u64> {
        self.starts[piece]..self.starts.get(piece + 1).copied().unwrap_or(self.len)
    }

    /// The piece that starts at `offset`.
    #[must_use]
    pub fn piece_at(&self, offset: u64) -> Option<usize> {
        self.starts.binary_search(&offset).ok()
    }

    /// What its files are called.
    fn stem(&self) -> String {
        self.digest[..16].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// A directory of finished files.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    dir: OwnedFd,
    limit: u64,
    usage: Mutex<Usage>,
    /// Of the usage, for those who may not wait for a look at the directory.
    held: AtomicU64,
    full: AtomicBool,
    stopped: AtomicBool,
    sealed: AtomicUsize,
}

impl Store {
    /// Opens a store, or makes one.
    ///
    /// # Errors
    /// A directory that cannot be made or written to, or that others than its owner could write to.
    pub fn open(options: &Options) -> Result<Arc<Self>, Error> {
        let path = options.dir.join(VERSION);
        let failed = |source: io::Error| Error::Io { path: path.clone(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(failed)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::open(&path, flags, Mode::empty()).map_err(|e| failed(e.into()))?;
        let found = File::from(dir.try_clone().map_err(failed)?).metadata().map_err(failed)?;
        if found.uid() != rustix::process::geteuid().as_raw() || found.mode() & 0o022 != 0 {
            let why = "is not a directory of yours alone: name another one, or remove it";
            return Err(Error::Refused { path, why });
        }
        let no_space = match probe(&dir) {
            // What is there can be read all the same.
            Err(e) if matches!(e.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => Some(e),
            probed => probed.map_err(failed).map(|()| None)?,
        };
        let usage = trim::scan(&dir).map_err(failed)?;
        let limit = match options.limit {
            Some(limit) => limit,
            None => half_of_free(&dir, usage.bytes()).map_err(failed)?,
        };
        let (held, usage) = (AtomicU64::new(usage.bytes()), Mutex::new(usage));
        let (full, stopped, sealed) = (AtomicBool::default(), AtomicBool::default(), AtomicUsize::default());
        let store = Self { path, dir, limit, usage, held, full, stopped, sealed };
        no_space.iter().for_each(|e| store.fail(e));
        Ok(Arc::new(store))
    }

    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes that it holds, as of the last look at it and with what this process added since.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.held.load(Relaxed)
    }

    /// The most bytes that it may hold.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Sealed entries that this process uses.
    #[must_use]
    pub fn sealed(&self) -> usize {
        self.sealed.load(Relaxed)
    }

    /// Whether nothing more is written, since the directory failed.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Relaxed)
    }

    /// Whether it is worth while to make something for it: it has not failed, and what came last found room.
    #[must_use]
    pub fn has_room(&self) -> bool {
        !self.is_stopped() && !self.full.load(Relaxed)
    }

    /// Whether there is room for so many bytes more, after entries that nobody uses were removed.
    pub(crate) fn admits(&self, len: u64) -> bool {
        if self.is_stopped() {
            return false;
        }
        let mut usage = lock(&self.usage);
        let admitted = usage.admit(&self.dir, self.limit, len);
        self.held.store(usage.bytes(), Relaxed);
        let admitted = admitted.inspect_err(|e| self.fail(e)).unwrap_or(false);
        if !self.full.swap(!admitted, Relaxed) && !admitted && !self.is_stopped() {
            tracing::info!("{}: full of files in use; others are not kept for now", self.path.display());
        }
        admitted
    }

    /// Writes no more from now on, and says so once.
    fn fail(&self, error: &io::Error) {
        if !self.stopped.swap(true, Relaxed) {
            tracing::warn!("{}: {error}; nothing more is kept there, the mount goes on", self.path.display());
        }
    }
}

/// Whether files can be made: better known at once than in the log later.
fn probe(dir: &OwnedFd) -> io::Result<()> {
    let name = format!("probe-{}", std::process::id());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    drop(rustix::fs::openat(dir, &name, flags, Mode::RUSR | Mode::WUSR)?);
    Ok(rustix::fs::unlinkat(dir, &name, rustix::fs::AtFlags::empty())?)
}

fn half_of_free(dir: &OwnedFd, used: u64) -> io::Result<u64> {
    let system = rustix::fs::fstatvfs(dir)?;
    Ok((system.f_bavail.saturating_mul(system.f_frsize) + used) / 2)
}

/// Whether `dir`, which need not be there yet, is `above` or lies below it, links resolved.
#[must_use]
pub fn lies_in(dir: &Path, above: &Path) -> bool {
    let Ok(dir) = std::path::absolute(dir) else { return false };
    let above = fs::canonicalize(above).unwrap_or_else(|_| above.to_owned());
    // The part that is there, without links, and what is to be made below it.
    let real = dir.ancestors().find_map(|there| {
        let real = fs::canonicalize(there).ok()?;
        Some(real.join(dir.strip_prefix(there).ok()?))
    });
    real.unwrap_or(dir).starts_with(above)
}

/// A panic elsewhere leaves nothing half done under these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
