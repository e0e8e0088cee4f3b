//! A local directory, a Hugging Face snapshot, or a single file as a source.
//!
//! The listing is made once. Every read checks afterwards, by path below a directory held open since,
//! that the file is still the one that was listed: whatever was read before the check was of that
//! version (as far as inode, size and modification time can tell). At most [`OPEN_FILES`] descriptors
//! are kept. Knows no file's content.

use std::{
    num::NonZeroUsize,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use lru::LruCache;
#[cfg(not(target_vendor = "apple"))]
use rustix::fs::Advice;
use rustix::io::{Errno, retry_on_intr};

use crate::source::{
    Entry, Error, FileId, Source, Version,
    confine::{self, Found, Root, shown},
    hub,
};

/// Descriptors kept open: readers come back to few files at a time, and a thousand is a common limit
/// of a process.
const OPEN_FILES: NonZeroUsize = NonZeroUsize::new(64).expect("is not zero");

/// Regular files below a directory.
#[derive(Debug)]
pub struct LocalDir {
    name: String,
    repo: Option<(String, String)>,
    entries: Vec<Entry>,
    places: Vec<Place>,
    roots: Vec<Root>,
    local_roots: Vec<PathBuf>,
    open: Mutex<LruCache<FileId, Arc<OwnedFd>>>,
}

/// Where a file lies: below which root, without links.
#[derive(Debug)]
struct Place {
    root: usize,
    below: PathBuf,
}

impl LocalDir {
    /// Lists a directory, or takes a single `.safetensors` file.
    ///
    /// # Errors
    /// Nothing there, no permission, a file of another kind, or a link that may not be followed.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let real = path.canonicalize().map_err(|e| Error::of(shown(path), e))?;
        if real.is_dir() {
            let roots = roots(path, &real)?;
            let found = confine::walk(&roots)?;
            return Ok(Self::of(shown(path), hub::repo_of(&real), roots, found));
        }
        let name = path.file_name().and_then(|n| n.to_str()).filter(|n| n.ends_with(".safetensors"));
        let name =
            name.ok_or_else(|| Error::refused(shown(path), "is neither a directory nor a `.safetensors` file"))?;
        let roots = vec![Root::open(real.parent().unwrap_or(Path::new("/")))?];
        let found = confine::find(&roots, &real, name.to_owned())?;
        let found = found.ok_or_else(|| Error::refused(shown(path), "is not a regular file"))?;
        let beside = std::path::absolute(path).ok().and_then(|path| path.parent()?.canonicalize().ok());
        let repo = beside.and_then(|dir| hub::repo_of(&dir));
        // Beside the file is not inside of it.
        Ok(Self { local_roots: vec![real], ..Self::of(shown(path), repo, roots, vec![found]) })
    }

    /// The same files under another name for messages.
    pub(super) fn named(self, name: String, repo: Option<(String, String)>) -> Self {
        Self { name, repo, ..self }
    }

    fn of(name: String, repo: Option<(String, String)>, roots: Vec<Root>, found: Vec<Found>) -> Self {
        let (entries, places) = found
            .into_iter()
            .map(|f| (Entry { path: f.path, version: f.version }, Place { root: f.root, below: f.below }))
            .unzip();
        let local_roots = roots.iter().map(|root| root.path().to_owned()).collect();
        Self { name, repo, entries, places, roots, local_roots, open: Mutex::new(LruCache::new(OPEN_FILES)) }
    }

    fn place(&self, id: FileId) -> (&Root, &Path) {
        let place = &self.places[id.0 as usize];
        (&self.roots[place.root], &place.below)
    }

    /// Fails where the path no longer names the file that was listed.
    fn check(&self, id: FileId) -> Result<(), Error> {
        let (root, below) = self.place(id);
        let stat = root.stat(below).map_err(|e| self.failure(id, 0, e))?;
        self.same(id, confine::version(&stat))
    }

    fn same(&self, id: FileId, now: Option<Version>) -> Result<(), Error> {
        match difference(&self.entry(id).version, now) {
            Some(what) => Err(self.changed(id, what)),
            None => Ok(()),
        }
    }

    fn changed(&self, id: FileId, what: impl Into<String>) -> Error {
        self.descriptors().pop(&id);
        Error::Changed { path: self.entry(id).path.clone(), what: what.into() }
    }

    fn failure(&self, id: FileId, offset: u64, error: Errno) -> Error {
        match error {
            Errno::NOENT | Errno::NOTDIR | Errno::STALE | Errno::LOOP | Errno::NXIO => self.changed(id, "it is gone"),
            _ => Error::at(self.entry(id).path.clone(), offset, error.into()),
        }
    }

    fn descriptors(&self) -> MutexGuard<'_, LruCache<FileId, Arc<OwnedFd>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new descriptor, of the file that was listed.
    fn open_file(&self, id: FileId) -> Result<OwnedFd, Error> {
        let (root, below) = self.place(id);
        let file = root.open_file(below).map_err(|e| self.failure(id, 0, e))?;
        let stat = rustix::fs::fstat(&file).map_err(|e| self.failure(id, 0, e))?;
        self.same(id, confine::version(&stat))?;
        Ok(file)
    }

    fn descriptor(&self, id: FileId) -> Result<Arc<OwnedFd>, Error> {
        if let Some(file) = self.descriptors().get(&id) {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(self.open_file(id)?);
        self.descriptors().put(id, Arc::clone(&file));
        Ok(file)
    }

    /// Reads until `buf` is full.
    fn fill(&self, id: FileId, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        let file = self.descriptor(id)?;
        let mut done = 0;
        while done < buf.len() {
            let at = offset.saturating_add(done as u64);
            match retry_on_intr(|| rustix::io::pread(&*file, &mut buf[done..], at)) {
                Ok(0) => return Err(self.changed(id, format!("it ends at offset {at}"))),
                Ok(n) => done += n,
                Err(e) => return Err(self.failure(id, at, e)),
            }
        }
        Ok(())
    }

    /// Tells the system about a range; advice that it does not take is no error. Apple's has no such call.
    #[cfg(not(target_vendor = "apple"))]
    fn advise(&self, id: FileId, range: std::ops::Range<u64>, advice: Advice) {
        let Some(len) = std::num::NonZeroU64::new(range.end.saturating_sub(range.start)) else { return };
        if let Ok(file) = self.descriptor(id) {
            let _advice_only = rustix::fs::fadvise(&*file, range.start, Some(len), advice);
        }
    }
}

/// The directory itself and, in a Hugging Face cache, the blobs of its repository (whose folder may
/// itself be a link, and then only `path` tells its name).
fn roots(path: &Path, real: &Path) -> Result<Vec<Root>, Error> {
    let mut roots = vec![Root::open(real)?];
    let blobs = hub::blobs_of(real).or_else(|| hub::blobs_of(path));
    if let Some(blobs) = blobs.and_then(|blobs| blobs.canonicalize().ok()) {
        roots.push(Root::open(&blobs)?);
    }
    Ok(roots)
}

/// What differs between the file that was listed and the one that is there.
fn difference(listed: &Version, now: Option<Version>) -> Option<String> {
    let Some(now) = now else { return Some("it is no regular file any more".into()) };
    if (now.inode, now.device) != (listed.inode, listed.device) {
        return Some("another file has taken its place".into());
    }
    if now.len != listed.len {
        return Some(format!("it had {} bytes and has {}", listed.len, now.len));
    }
    (now.mtime_ns != listed.mtime_ns).then(|| "it was written to".into())
}

impl Source for LocalDir {
    fn name(&self) -> &str {
        &self.name
    }

    fn repo(&self) -> Option<(&str, &str)> {
        self.repo.as_ref().map(|(repo, commit)| (repo.as_str(), commit.as_str()))
    }

    fn local_roots(&self) -> &[PathBuf] {
        &self.local_roots
    }

    fn entries(&self) -> &[Entry] {
        &self.entries
    }

    fn read_exact_at(&self, id: FileId, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        let read = self.fill(id, offset, buf);
        // A file that changed may fail in any way: that it changed is what the reader must know.
        self.check(id)?;
        read
    }

    fn local_file(&self, id: FileId) -> Option<OwnedFd> {
        self.open_file(id).ok()
    }

    #[cfg(not(target_vendor = "apple"))]
    fn hint(&self, id: FileId, range: std::ops::Range<u64>) {
        self.advise(id, range, Advice::WillNeed);
    }

    #[cfg(not(target_vendor = "apple"))]
    fn release(&self, id: FileId, range: std::ops::Range<u64>) {
        self.advise(id, range, Advice::DontNeed);
    }
}
