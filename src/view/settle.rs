//! Settling: tiles that were delivered go to the store, and files that became whole are finished.
//!
//! One thread a view does it, and it alone waits for the store's disk to write. Readers come first: tiles
//! wait on a desk of bounded size; what finds no room there is only noted, and made again when nobody
//! reads. Nothing is encoded that no reader has asked for: a file is finished (header and source bytes
//! added, every piece checked, sealed) once all its tiles were read by somebody, in this mount or an
//! earlier one.

use std::{
    collections::{BTreeSet, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, PoisonError, Weak, atomic::Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use crate::{
    cache::lock,
    store::{Entry, Loaded},
};

use super::{
    View,
    counters::add,
    encode::{self, Tile},
    pool::Lane,
    segment::{From, Segments},
};

/// Bytes of tiles that wait for the disk. With the pool's allowances and a tile made here it stays under
/// the 64 MiB beside the cache.
const DESK_BYTES: usize = 6 << 20;

/// So long nobody must have read before what was put off is done; and while somebody does, one piece of it
/// each time.
const PAUSE: Duration = Duration::from_millis(50);

/// What is to be done.
#[derive(Debug, Default)]
struct Work {
    fresh: VecDeque<(u32, u32, Tile)>,
    /// Bytes of these, and of the one being written.
    bytes: usize,
    /// Tiles that found no room.
    again: BTreeSet<(u32, u32)>,
    /// Files that may have become whole.
    files: BTreeSet<usize>,
    busy: bool,
    hurry: bool,
    stop: bool,
}

impl Work {
    fn is_done(&self) -> bool {
        !self.busy && self.fresh.is_empty() && self.again.is_empty() && self.files.is_empty()
    }
}

/// What waits to be stored.
#[derive(Debug)]
pub(super) struct Desk {
    work: Mutex<Work>,
    /// Something came, or the end did.
    wake: Condvar,
    /// Everything is done.
    done: Condvar,
}

/// What to do next.
enum Turn {
    Store(u32, u32, Tile),
    /// Something that was put off.
    Tidy,
}

fn bytes_of(tile: &Tile) -> usize {
    tile.iter().map(|part| part.len()).sum()
}

impl Desk {
    /// A desk with files to look at.
    pub(super) fn new(files: impl Iterator<Item = usize>) -> Self {
        let work = Work { files: files.collect(), ..Work::default() };
        Self { work: Mutex::new(work), wake: Condvar::new(), done: Condvar::new() }
    }

    /// Takes a tile, or a note of it. Whether there was room.
    pub(super) fn offer(&self, weight: u32, tile: u32, parts: &Tile) -> bool {
        let mut work = lock(&self.work);
        if work.stop {
            return true;
        }
        let bytes = bytes_of(parts);
        let fits = work.bytes == 0 || work.bytes + bytes <= DESK_BYTES;
        if fits {
            work.bytes += bytes;
            work.fresh.push_back((weight, tile, Arc::clone(parts)));
        } else {
            work.again.insert((weight, tile));
        }
        drop(work);
        self.wake.notify_one();
        fits
    }

    pub(super) fn stop(&self) {
        lock(&self.work).stop = true;
        self.wake.notify_all();
        self.done.notify_all();
    }

    /// Waits for something to do; `None` at the end.
    fn next(&self) -> Option<Turn> {
        let mut work = lock(&self.work);
        work.busy = false;
        let mut rested = false;
        loop {
            if work.stop {
                return None;
            }
            if let Some((weight, tile, parts)) = work.fresh.pop_front() {
                work.busy = true;
                return Some(Turn::Store(weight, tile, parts));
            }
            if work.is_done() {
                self.done.notify_all();
                work = self.wake.wait(work).unwrap_or_else(PoisonError::into_inner);
            } else if rested || work.hurry {
                work.busy = true;
                return Some(Turn::Tidy);
            } else {
                let (guard, waited) = self.wake.wait_timeout(work, PAUSE).unwrap_or_else(PoisonError::into_inner);
                (work, rested) = (guard, waited.timed_out());
            }
        }
    }

    /// A tile was written, or not: its room is free.
    fn written(&self, tile: &Tile, files: impl Iterator<Item = usize>) {
        let mut work = lock(&self.work);
        work.bytes -= bytes_of(tile);
        work.files.extend(files);
    }

    fn wait_until_done(&self, within: Duration) -> bool {
        let until = Instant::now() + within;
        let mut work = lock(&self.work);
        work.hurry = true;
        self.wake.notify_all();
        while !work.is_done() && !work.stop {
            let Some(left) = until.checked_duration_since(Instant::now()) else { break };
            work = self.done.wait_timeout(work, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        work.hurry = false;
        work.is_done()
    }
}

impl View {
    /// Starts the thread, where there is a store. It ends with the view.
    pub(super) fn start_settling(self: &Arc<Self>) {
        let Some(stored) = &self.stored else { return };
        let (view, desk) = (Arc::downgrade(self), Arc::clone(&stored.desk));
        let started = thread::Builder::new().name("store".to_owned()).spawn(move || tend(&view, &desk));
        if let Err(e) = started {
            stored.desk.stop();
            tracing::warn!("no thread for the cache directory, nothing is kept there: {e}");
        }
    }

    /// Waits until all that was read is stored and all files that became whole are sealed, readers or not.
    /// Whether it was done in time; at once where there is no store.
    pub fn settle(&self, within: Duration) -> bool {
        self.stored.as_ref().is_none_or(|stored| stored.desk.wait_until_done(within))
    }

    fn store_tile(&self, weight: u32, tile: u32, parts: &Tile) {
        let (Some(stored), planned) = (&self.stored, &self.plan.weights[weight as usize]) else { return };
        let kept = stored.keep(planned, weight, tile, parts);
        add(&self.engine.counters.store_written_bytes, kept);
    }

    /// Does something that was put off: all of it while nobody reads, otherwise one piece.
    fn tidy(&self) {
        let Some(stored) = &self.stored else { return };
        let counters = &self.engine.counters;
        let seen = counters.reads.load(Relaxed);
        loop {
            let work = lock(&stored.desk.work);
            let (again, file) = (work.again.first().copied(), work.files.first().copied());
            drop(work);
            if let Some((weight, tile)) = again {
                let Some(remade) = self.remake(weight, tile) else { return thread::sleep(PAUSE) };
                let mut work = lock(&stored.desk.work);
                work.again.remove(&(weight, tile));
                if remade {
                    work.files.extend(stored.files_of(&self.plan.weights[weight as usize], weight));
                }
            } else if let Some(file) = file {
                let entry = stored.entries[file].as_deref();
                if entry.is_none_or(|entry| !self.finish(file, entry)) {
                    lock(&stored.desk.work).files.remove(&file);
                }
            } else {
                return;
            }
            let work = lock(&stored.desk.work);
            let read = counters.reads.load(Relaxed) != seen || counters.pending.load(Relaxed) > 0;
            if work.stop || !work.fresh.is_empty() || (read && !work.hurry) {
                return;
            }
        }
    }

    /// Makes a tile for the store that found no room when it was delivered. Whether it is there now; `None` while
    /// readers need the memory.
    fn remake(&self, weight: u32, tile: u32) -> Option<bool> {
        let (Some(stored), planned) = (&self.stored, &self.plan.weights[weight as usize]) else { return Some(false) };
        if self.engine.store.as_ref().is_none_or(|store| !store.has_room()) {
            return Some(false);
        }
        if stored.has(planned, weight, tile) {
            return Some(true);
        }
        let _permit = self.engine.pool.try_permit(Lane::Ahead, encode::cost(planned, tile))?;
        let parts =
            self.engine.kept(planned, self.key(weight, tile)).map_or_else(|| self.encode_only(weight, tile), Ok);
        match parts {
            Ok(parts) => self.store_tile(weight, tile, &parts),
            // Whoever reads it is told, and the log with him.
            Err(failure) => tracing::debug!(?failure, "a tile could not be made for the store"),
        }
        Some(true)
    }

    /// One step towards a whole file. Whether there is another.
    fn finish(&self, file: usize, entry: &Entry) -> bool {
        if entry.is_sealed() || self.engine.store.as_ref().is_none_or(|store| store.is_stopped()) {
            return false;
        }
        let missing = entry.missing();
        if missing.iter().any(|piece| self.is_computed(file, entry.layout().starts[*piece])) {
            return false;
        }
        if let Some(piece) = missing.first() {
            let bytes = self.run(file, entry.layout().range(*piece));
            return bytes.is_some_and(|bytes| entry.keep(*piece, &bytes));
        }
        if let Some(piece) = entry.unchecked() {
            let range = entry.layout().range(piece);
            let mut buf = vec![0; usize::try_from(range.end - range.start).unwrap_or(0)];
            // What is not computed is read anew at once, a tile when somebody asks for it.
            return entry.load(piece, &mut buf) == Loaded::Whole || !self.is_computed(file, range.start);
        }
        if entry.seal() {
            tracing::info!("{}: whole in the cache directory", self.plan.files[file].path);
        }
        false
    }

    fn is_computed(&self, file: usize, at: u64) -> bool {
        let mut segments = Segments::new(&self.plan, &self.plan.files[file], at..at + 1);
        segments.next().is_some_and(|segment| matches!(segment.from, From::Tile { .. }))
    }

    /// Bytes of a range that nothing has to be computed for.
    fn run(&self, file: usize, range: std::ops::Range<u64>) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        for segment in Segments::new(&self.plan, &self.plan.files[file], range) {
            match segment.from {
                From::Bytes { bytes: known, at } => bytes.extend_from_slice(&known[at..at + segment.len]),
                From::Source { file, offset } => {
                    let start = bytes.len();
                    bytes.resize(start + segment.len, 0);
                    let read = self.reader().read(file, offset, &mut bytes[start..]);
                    read.inspect_err(|e| tracing::debug!("not stored: {e}")).ok()?;
                }
                From::Tile { .. } => return None,
            }
        }
        Some(bytes)
    }
}

fn tend(view: &Weak<View>, desk: &Desk) {
    while let Some(turn) = desk.next() {
        let Some(view) = view.upgrade() else { return };
        let work = || match turn {
            Turn::Tidy => view.tidy(),
            Turn::Store(weight, tile, parts) => {
                let stored = catch_unwind(AssertUnwindSafe(|| view.store_tile(weight, tile, &parts)));
                let files = view.stored.iter().flat_map(|s| s.files_of(&view.plan.weights[weight as usize], weight));
                desk.written(&parts, files);
                stored.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            }
        };
        if catch_unwind(AssertUnwindSafe(work)).is_err() {
            tracing::error!("a panic in the thread that stores; nothing more is stored");
            desk.stop();
        }
    }
}
