//! One file of a view in the store.
//!
//! The bytes lie in `NAME.data`, their record in `NAME.sums`. Whoever uses an entry holds a shared lock
//! of its record for as long, so that nobody removes it.

use std::{
    fs::{File, TryLockError},
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{FileExt, MetadataExt},
    },
    sync::{
        Arc, Mutex,
        atomic::{
            AtomicBool, AtomicU8, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
    thread,
    time::{Duration, SystemTime},
};

use rustix::fs::{Mode, OFlags};

use super::{
    Layout, Store, lock,
    sums::{Mark, Sums},
};

/// Who removes an entry holds its lock for two calls of the system: so often we try again, and so long apart.
const TRIES: usize = 100;
const BETWEEN: Duration = Duration::from_millis(10);

/// What became of a piece that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loaded {
    /// The buffer holds it, checked.
    Whole,
    /// Nobody has stored it.
    Absent,
    /// What is there is not it, and is not believed again before it is stored anew.
    Corrupt,
}

/// A file of a view in the store, in use.
#[derive(Debug)]
pub struct Entry {
    store: Arc<Store>,
    layout: Layout,
    data: File,
    sums: Sums,
    trust: Trust,
    /// The file as it was after our last write, for those who write: if somebody else has touched it since,
    /// nothing is vouched for.
    mark: Mutex<Mark>,
    told: AtomicBool,
    sealed: AtomicBool,
}

/// What this process knows of the pieces. Who reads one waits for nobody who writes.
#[derive(Debug)]
struct Trust {
    pieces: Vec<AtomicU8>,
    /// Counts how often everything was forgotten.
    age: AtomicUsize,
}

/// Nothing is known of a piece.
const UNKNOWN: u8 = 0;
/// It was written or checked by us.
const VOUCHED: u8 = 1;
/// It was found wrong.
const STRUCK: u8 = 2;

impl Trust {
    fn new(pieces: usize) -> Self {
        let pieces = std::iter::repeat_with(|| AtomicU8::new(UNKNOWN)).take(pieces).collect();
        Self { pieces, age: AtomicUsize::new(0) }
    }

    fn get(&self, piece: usize) -> u8 {
        self.pieces[piece].load(SeqCst)
    }

    fn set(&self, piece: usize, state: u8) {
        self.pieces[piece].store(state, SeqCst);
    }

    /// Vouches for a piece that was read when everything known was so old.
    fn vouch(&self, piece: usize, age: usize) {
        self.set(piece, VOUCHED);
        // Forgotten in between: what was read may have been from before.
        if self.age.load(SeqCst) != age {
            self.set(piece, UNKNOWN);
        }
    }

    fn forget(&self) {
        self.age.fetch_add(1, SeqCst);
        self.pieces.iter().for_each(|piece| piece.store(UNKNOWN, SeqCst));
    }

    fn has_struck(&self) -> bool {
        self.pieces.iter().any(|piece| piece.load(SeqCst) == STRUCK)
    }
}

impl Store {
    /// Opens the entry of a layout, or makes an empty one.
    ///
    /// # Errors
    /// What the system refuses, and what lies there that is no regular file.
    pub fn entry(self: &Arc<Self>, layout: Layout) -> io::Result<Arc<Entry>> {
        let stem = layout.stem();
        let sums = Sums::new(self.locked(&format!("{stem}.sums"))?, &layout);
        let data = self.file(&format!("{stem}.data"))?;
        let len = data.metadata()?.len();
        if len != layout.len || !sums.is_ours()? {
            if len != 0 {
                tracing::warn!("{}/{stem}: was cut or is not ours; encoding it anew", self.path.display());
            }
            sums.reset()?;
            data.set_len(layout.len)?;
        }
        // Least recently used is least recently written here: the other file's times are in the seal.
        sums.file().set_modified(SystemTime::now())?;
        let mark = Mark::of(&data.metadata()?);
        let sealed = sums.seals(&mark)?;
        self.sealed.fetch_add(usize::from(sealed), Relaxed);
        let trust = Trust::new(layout.pieces());
        let (store, told, sealed) = (Arc::clone(self), AtomicBool::new(false), AtomicBool::new(sealed));
        Ok(Arc::new(Entry { store, layout, data, sums, trust, mark: Mutex::new(mark), told, sealed }))
    }

    /// The record of an entry, locked against its removal.
    fn locked(&self, name: &str) -> io::Result<File> {
        for _ in 0..TRIES {
            let file = self.file(name)?;
            match file.try_lock_shared() {
                Ok(()) if file.metadata()?.nlink() > 0 => return Ok(file),
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => thread::sleep(BETWEEN),
                Err(TryLockError::Error(e)) => return Err(e),
            }
        }
        Err(io::Error::other(format!("{name} is locked by somebody else")))
    }

    /// Opens a regular file of the directory, or makes it. Never waits and follows no link: something
    /// else could have taken its place.
    fn file(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(&self.dir, name, flags, Mode::RUSR | Mode::WUSR)?);
        let found = file.metadata()?;
        if !found.is_file() || found.uid() != rustix::process::geteuid().as_raw() {
            return Err(io::Error::other(format!("{name} is not a file of ours; remove it")));
        }
        Ok(file)
    }
}

impl Entry {
    /// What it is made of.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Fills `buf`, which is as long as the piece. What is in it means nothing unless it is
    /// [`Whole`](Loaded::Whole).
    pub fn load(&self, piece: usize, buf: &mut [u8]) -> Loaded {
        if self.trust.get(piece) == STRUCK {
            return Loaded::Absent;
        }
        let age = self.trust.age.load(SeqCst);
        let sum = match self.sums.get(piece) {
            Ok(0) => return Loaded::Absent,
            Ok(sum) => sum,
            Err(e) => return self.doubt(piece, &format!("its record cannot be read: {e}")),
        };
        match self.data.read_exact_at(buf, self.layout.starts[piece]) {
            Err(e) => self.doubt(piece, &format!("cannot be read: {e}")),
            Ok(()) if self.sums.sum(piece, buf) != sum => self.doubt(piece, "the checksum is another"),
            Ok(()) => {
                self.trust.vouch(piece, age);
                Loaded::Whole
            }
        }
    }

    /// Whether a piece is recorded, and not known to be wrong. Its bytes are not looked at.
    #[must_use]
    pub fn has(&self, piece: usize) -> bool {
        self.trust.get(piece) != STRUCK && self.sums.get(piece).is_ok_and(|sum| sum != 0)
    }

    /// Strikes a piece out, and tells the log of the first one. Writes nothing: a reader waits.
    fn doubt(&self, piece: usize, what: &str) -> Loaded {
        let offset = self.layout.starts[piece];
        if self.told.swap(true, Relaxed) {
            tracing::debug!("{}: at offset {offset}: {what}", self.name());
        } else {
            tracing::warn!("{}: at offset {offset}: {what}; encoding anew what is corrupt here", self.name());
        }
        self.trust.set(piece, STRUCK);
        self.unseal();
        Loaded::Corrupt
    }

    fn unseal(&self) {
        if self.sealed.swap(false, Relaxed) {
            self.store.sealed.fetch_sub(1, Relaxed);
        }
    }

    fn name(&self) -> String {
        format!("{}/{}", self.store.path.display(), self.layout.stem())
    }

    /// Stores a piece, unless it is there. Whether it is afterwards: there may be no room, and the disk
    /// may fail.
    pub fn keep(&self, piece: usize, bytes: &[u8]) -> bool {
        let sum = self.sums.sum(piece, bytes);
        if self.trust.get(piece) != STRUCK && self.sums.get(piece).is_ok_and(|found| found == sum) {
            return true;
        }
        if !self.store.admits(bytes.len() as u64) {
            return false;
        }
        let written = self.write(piece, bytes, sum);
        if let Err(e) = &written {
            self.store.fail(e);
        }
        written.is_ok()
    }

    fn write(&self, piece: usize, bytes: &[u8], sum: u64) -> io::Result<()> {
        let mut mark = lock(&self.mark);
        self.check(&mut mark)?;
        self.data.write_all_at(bytes, self.layout.starts[piece])?;
        self.sums.set(piece, sum)?;
        self.trust.set(piece, VOUCHED);
        *mark = Mark::of(&self.data.metadata()?);
        Ok(())
    }

    /// Forgets what is known where somebody else has touched the file.
    fn check(&self, mark: &mut Mark) -> io::Result<()> {
        let now = Mark::of(&self.data.metadata()?);
        if *mark != now {
            self.trust.forget();
            *mark = now;
        }
        Ok(())
    }

    /// The pieces that nobody has stored, or that are wrong; all where that cannot be known.
    #[must_use]
    pub fn missing(&self) -> Vec<usize> {
        let pieces = 0..self.layout.pieces();
        let Ok(missing) = self.sums.missing() else { return pieces.collect() };
        pieces.filter(|piece| missing.binary_search(piece).is_ok() || self.trust.get(*piece) == STRUCK).collect()
    }

    /// A piece that this process has neither written nor checked.
    #[must_use]
    pub fn unchecked(&self) -> Option<usize> {
        // Where it cannot be looked at, sealing it fails, too.
        self.check(&mut lock(&self.mark)).ok();
        (0..self.layout.pieces()).find(|piece| self.trust.get(*piece) != VOUCHED)
    }

    /// Whether it is sealed, as of the last look.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        self.sealed.load(Relaxed)
    }

    /// Writes everything out and seals the entry, where every piece is there, checked by this process,
    /// and untouched since. Whether it did.
    pub fn seal(&self) -> bool {
        let sealed = self.try_seal();
        if let Err(e) = &sealed {
            self.store.fail(e);
        }
        let sealed = sealed.unwrap_or(false);
        if sealed && !self.sealed.swap(true, Relaxed) {
            self.store.sealed.fetch_add(1, Relaxed);
        }
        sealed
    }

    fn try_seal(&self) -> io::Result<bool> {
        if self.store.is_stopped() || !self.missing().is_empty() || self.unchecked().is_some() {
            return Ok(false);
        }
        self.data.sync_all()?;
        let mark = Mark::of(&self.data.metadata()?);
        if self.unchecked().is_some() || mark.len() != self.layout.len {
            return Ok(false);
        }
        self.sums.seal(&mark)?;
        Ok(true)
    }

    /// A fresh read-only descriptor of the whole file, where it is sealed and untouched since.
    #[must_use]
    pub fn finished(&self) -> Option<OwnedFd> {
        if self.trust.has_struck() {
            return None;
        }
        let name = format!("{}.data", self.layout.stem());
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(&self.store.dir, &name, flags, Mode::empty()).ok()?);
        let mark = Mark::of(&file.metadata().ok()?);
        (mark.len() == self.layout.len && self.sums.seals(&mark).ok()?).then(|| file.into())
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.unseal();
        // It was in use until now. Where that cannot be said it goes a little early.
        self.sums.file().set_modified(SystemTime::now()).ok();
    }
}
