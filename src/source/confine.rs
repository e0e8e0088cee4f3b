//! Which files belong to a directory: the walk that follows links only where they stay inside.
//!
//! A link may lead anywhere below the directory itself and, in a Hugging Face cache, to the blobs of
//! the same repository. One that leads elsewhere, nowhere, or back into itself is refused by name: a
//! file that silently went missing, or that came from somewhere else, would be a wrong model.
//! What is found is held as a path without links below an open directory. Knows no file's content.

use std::{
    fs,
    os::{fd::OwnedFd, unix::fs::FileTypeExt},
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};

use crate::source::{Error, Version};

/// Most directory entries that one source may have, links followed: real snapshots have hundreds,
/// and links to directories can multiply without end.
const MAX_ENTRIES: usize = 200_000;

/// A directory that files may lie below.
#[derive(Debug)]
pub(super) struct Root {
    path: PathBuf,
    dir: OwnedFd,
}

impl Root {
    /// Opens a directory, which keeps naming it whatever is mounted over it or moved.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| Error::of(shown(path), e))?;
        Ok(Self { path: path.to_owned(), dir })
    }

    /// Where it was opened, without links.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What the path below the root is now, links not followed.
    pub(super) fn stat(&self, below: &Path) -> rustix::io::Result<Stat> {
        rustix::fs::statat(&self.dir, below, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Opens a file below the root to read. Never waits: a pipe could have taken the file's place.
    pub(super) fn open_file(&self, below: &Path) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        rustix::fs::openat(&self.dir, below, flags, Mode::empty())
    }
}

/// A file that was found.
#[derive(Debug)]
pub(super) struct Found {
    /// Path below the source's root, `/` between parts.
    pub(super) path: String,
    /// Index of the root below which it lies.
    pub(super) root: usize,
    /// Where it lies below that root, without links.
    pub(super) below: PathBuf,
    /// What it is.
    pub(super) version: Version,
}

/// The version of a regular file, `None` for anything else.
pub(super) fn version(stat: &Stat) -> Option<Version> {
    // The fields' types differ between systems.
    #[allow(clippy::unnecessary_cast, reason = "the field is signed on some systems")]
    let device = stat.st_dev as u64;
    (FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile).then(|| Version {
        len: u64::try_from(stat.st_size).unwrap_or(0),
        mtime_ns: i128::from(stat.st_mtime) * 1_000_000_000 + i128::from(stat.st_mtime_nsec),
        inode: stat.st_ino,
        device,
    })
}

/// A path for messages.
pub(super) fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// Every regular file below the first root, sorted by path. Hidden names (a leading dot), pipes,
/// sockets and devices are left out.
pub(super) fn walk(roots: &[Root]) -> Result<Vec<Found>, Error> {
    let mut walk = Walk { roots, seen: 0, above: vec![], found: vec![] };
    walk.directory(&roots[0].path, "")?;
    let mut found = walk.found;
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

struct Walk<'a> {
    roots: &'a [Root],
    seen: usize,
    /// The directories that hold the current one, without links.
    above: Vec<PathBuf>,
    found: Vec<Found>,
}

impl Walk<'_> {
    /// `real` is the directory without links, `path` its path below the source's root.
    fn directory(&mut self, real: &Path, path: &str) -> Result<(), Error> {
        self.above.push(real.to_owned());
        for entry in fs::read_dir(real).map_err(|e| Error::of(shown(real), e))? {
            let entry = entry.map_err(|e| Error::of(shown(real), e))?;
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            self.count(real)?;
            self.entry(&entry, path)?;
        }
        self.above.pop();
        Ok(())
    }

    fn count(&mut self, real: &Path) -> Result<(), Error> {
        self.seen += 1;
        if self.seen > MAX_ENTRIES {
            let why = format!("the source has over {MAX_ENTRIES} entries here: name the model's own directory");
            return Err(Error::refused(shown(real), why));
        }
        Ok(())
    }

    fn entry(&mut self, entry: &fs::DirEntry, parent: &str) -> Result<(), Error> {
        let at = entry.path();
        let name = entry.file_name();
        let name = name.to_str().ok_or_else(|| Error::refused(shown(&at), "the name is not UTF-8: rename it"))?;
        let path = if parent.is_empty() { name.to_owned() } else { format!("{parent}/{name}") };
        let kind = entry.file_type().map_err(|e| Error::of(shown(&at), e))?;
        let (real, kind) = if kind.is_symlink() { self.resolve(&at)? } else { (at, kind) };
        if kind.is_dir() {
            return self.directory(&real, &path);
        }
        if kind.is_fifo() || kind.is_socket() || kind.is_block_device() || kind.is_char_device() {
            return Ok(());
        }
        self.file(&real, path)
    }

    /// Where a link leads, if it may be followed.
    fn resolve(&self, link: &Path) -> Result<(PathBuf, fs::FileType), Error> {
        let target = || fs::read_link(link).map(|t| shown(&t)).unwrap_or_default();
        let real = fs::canonicalize(link).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::refused(
                shown(link),
                format!("the link leads to {}, which is not there: {}", target(), self.repair()),
            ),
            std::io::ErrorKind::PermissionDenied => Error::of(shown(link), e),
            _ => Error::refused(shown(link), format!("the link to {} cannot be followed: {e}", target())),
        })?;
        if !self.roots.iter().any(|root| real.starts_with(&root.path)) {
            let why = format!(
                "the link leads out of the source, to {}: put the file itself there (or a hard link), or name the directory that holds the files",
                shown(&real)
            );
            return Err(Error::refused(shown(link), why));
        }
        if self.above.contains(&real) {
            return Err(Error::refused(
                shown(link),
                format!("the link leads back to {}, which holds it: remove it", shown(&real)),
            ));
        }
        let kind = fs::symlink_metadata(&real).map_err(|e| Error::of(shown(&real), e))?.file_type();
        Ok((real, kind))
    }

    fn repair(&self) -> &'static str {
        if self.roots.len() > 1 {
            "the snapshot is incomplete, download it again"
        } else {
            "put the file there or remove the link"
        }
    }

    fn file(&mut self, real: &Path, path: String) -> Result<(), Error> {
        if let Some(found) = find(self.roots, real, path)? {
            self.found.push(found);
        }
        Ok(())
    }
}

/// A file below one of the roots, given its path without links; `None` if it is no regular file.
pub(super) fn find(roots: &[Root], real: &Path, path: String) -> Result<Option<Found>, Error> {
    let below =
        roots.iter().enumerate().find_map(|(root, r)| Some((root, real.strip_prefix(&r.path).ok()?.to_owned())));
    let (root, below) =
        below.ok_or_else(|| Error::refused(shown(real), "moved out of the source while it was opened"))?;
    let stat = roots[root].stat(&below).map_err(|e| Error::of(shown(real), e))?;
    Ok(version(&stat).map(|version| Found { path, root, below, version }))
}
