//! Where full-precision bytes come from.
//!
//! A [`Source`] is a fixed listing of files and positioned reads of them. The listing is made once,
//! at open; every read checks that the file is still the one that was listed, and fails as
//! [`Error::Changed`] if it is not. Reads go into the caller's buffer, never through a mapping: a
//! mapped file that shrinks would kill the daemon.
//!
//! Knows no format, no plan and no FUSE. Reads no environment: it is told where caches lie.

mod confine;
mod hub;
mod joined;
mod local;

use std::{
    fmt::Debug,
    ops::Range,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::SystemTime,
};

pub use hub::Caches;
pub use joined::Joined;
pub use local::LocalDir;

/// Index of a file in [`Source::entries`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId(pub u32);

/// What must stay equal for a file to be the one that was listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Version {
    /// Length in bytes.
    pub len: u64,
    /// Modification time in nanoseconds since the epoch.
    pub mtime_ns: i128,
    /// Inode number; for other sources whatever identifies the content.
    pub inode: u64,
    /// Device number of the file system.
    pub device: u64,
}

/// One regular file of a source.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Path below the source's root, `/` between parts, no `.` or `..`.
    pub path: String,
    /// What the file was when it was listed.
    pub version: Version,
}

impl Entry {
    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.version.len
    }

    /// Whether the file has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.version.len == 0
    }

    /// Modification time.
    #[must_use]
    pub fn modified(&self) -> SystemTime {
        let ns = self.version.mtime_ns.unsigned_abs().min(u128::from(u64::MAX));
        let d = std::time::Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX));
        if self.version.mtime_ns < 0 { SystemTime::UNIX_EPOCH - d } else { SystemTime::UNIX_EPOCH + d }
    }
}

/// Why a source could not be opened or read, by meaning.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such file or directory.
    #[error("{path}: no such file or directory")]
    NotFound {
        /// What was asked for.
        path: String,
    },
    /// The file is no longer the one that was listed.
    #[error(
        "{path}: changed since it was opened ({what}); start again to read the new content (a mount: `quantfs remount`)"
    )]
    Changed {
        /// The file.
        path: String,
        /// What differs.
        what: String,
    },
    /// Permission denied.
    #[error("{path}: permission denied")]
    Denied {
        /// The file.
        path: String,
    },
    /// The source has a form that cannot be served.
    #[error("{path}: {why}")]
    Refused {
        /// The file or directory.
        path: String,
        /// What is wrong and what to do.
        why: String,
    },
    /// Any other failure of the system below.
    #[error("{path}: cannot read at offset {offset}: {source}")]
    Io {
        /// The file.
        path: String,
        /// Offset of the read, 0 outside of reads.
        offset: u64,
        /// The system's error.
        source: std::io::Error,
    },
}

/// A fixed set of files with positioned reads.
pub trait Source: Send + Sync + Debug {
    /// What to call it in messages: a path, or `org/name@revision`.
    fn name(&self) -> &str;

    /// `org/name` and the commit, where the source knows them.
    fn repo(&self) -> Option<(&str, &str)> {
        None
    }

    /// The local directories and files that all of its bytes lie in, without links. Nothing may be
    /// mounted inside of them: it would hide itself in what it shows.
    fn local_roots(&self) -> &[PathBuf] {
        &[]
    }

    /// All regular files: those of its tree sorted by path, then what lies beside it. Fixed for the life of the
    /// source.
    fn entries(&self) -> &[Entry];

    /// How many of the entries are its tree.
    fn tree(&self) -> usize {
        self.entries().len()
    }

    /// The entry of a file.
    ///
    /// # Panics
    /// If `id` is of another source.
    fn entry(&self, id: FileId) -> &Entry {
        &self.entries()[id.0 as usize]
    }

    /// The file of a path of the tree.
    fn find(&self, path: &str) -> Option<FileId> {
        let at = self.entries()[..self.tree()].binary_search_by(|e| e.path.as_str().cmp(path)).ok()?;
        u32::try_from(at).ok().map(FileId)
    }

    /// Fills `buf` from `offset` on.
    ///
    /// # Errors
    /// `Changed` where the file is not what was listed, or ends before the buffer is full.
    fn read_exact_at(&self, id: FileId, offset: u64, buf: &mut [u8]) -> Result<(), Error>;

    /// A fresh read-only descriptor of the file, where it is a local one and still what was listed.
    fn local_file(&self, id: FileId) -> Option<OwnedFd> {
        let _ = id;
        None
    }

    /// The range will be read soon.
    fn hint(&self, id: FileId, range: Range<u64>) {
        let _ = (id, range);
    }

    /// The range will not be read again soon.
    fn release(&self, id: FileId, range: Range<u64>) {
        let _ = (id, range);
    }
}

/// Opens what a user names: a path that exists, or else `org/name[@revision]` in one of the caches.
///
/// # Errors
/// Where nothing of that name is found, what was looked for and where; otherwise [`LocalDir::open`]'s.
pub fn open(what: &str, caches: &Caches) -> Result<Box<dyn Source>, Error> {
    // Whatever is there, or may not be looked at, is the user's path and no name of the hub.
    let there = !matches!(Path::new(what).symlink_metadata(), Err(e) if e.kind() == std::io::ErrorKind::NotFound);
    if there || hub::is_path(what) {
        return Ok(Box::new(LocalDir::open(Path::new(what))?));
    }
    let found = hub::find(what, caches)?;
    Ok(Box::new(LocalDir::open(&found.dir)?.named(found.name, Some((found.repo, found.commit)))))
}

impl Error {
    /// The error of a call on `path` outside of reads.
    fn of(path: impl Into<String>, error: impl Into<std::io::Error>) -> Self {
        Self::at(path, 0, error.into())
    }

    fn at(path: impl Into<String>, offset: u64, source: std::io::Error) -> Self {
        let path = path.into();
        match source.kind() {
            std::io::ErrorKind::NotFound => Self::NotFound { path },
            std::io::ErrorKind::PermissionDenied => Self::Denied { path },
            _ => Self::Io { path, offset, source },
        }
    }

    fn refused(path: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Refused { path: path.into(), why: why.into() }
    }
}
