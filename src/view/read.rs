//! Reads: at hand they are answered at once, otherwise parked on what they miss.
//!
//! No thread waits for a tile that another one makes: a parked read is finished by whoever brings
//! its last piece. It is answered exactly once, whatever happens: with its bytes, with the first
//! failure, with the deadline, or when it is dropped. The answer is given with no lock held.

use std::{
    collections::VecDeque,
    fmt::{self, Debug},
    ops::{Deref, Range},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::Ordering::Relaxed,
        mpsc::{Receiver, channel},
    },
    time::Duration,
};

use crate::cache::lock;

use super::{
    View,
    ahead::Access,
    counters::add,
    deadline::{Due, Expire},
    engine::{PartKey, TileKey},
    error::{Failure, Place, ReadError},
    pool::{Lane, Permit},
    segment::{From, Segment, Segments},
};

/// What becomes of a read's bytes. They are as many as were asked for, fewer only at the end of the
/// file.
pub type Done = Box<dyn FnOnce(Result<&[u8], ReadError>) + Send>;

/// A blocking read is done in reads of this length, so that its size does not decide what memory it
/// takes.
const CHUNK: usize = 1 << 20;
/// So many of them are under way at once.
const CHUNKS: usize = 4;

/// A run of bytes: a share of a cached value, or a buffer.
#[derive(Debug)]
pub(super) enum Bytes {
    Shared(Arc<[u8]>, Range<usize>),
    Own(Vec<u8>),
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Shared(bytes, range) => &bytes[range.clone()],
            Self::Own(bytes) => bytes,
        }
    }
}

type Finish = Box<dyn FnOnce(Result<Bytes, ReadError>) + Send>;

impl View {
    /// Reads up to `len` bytes at `offset` of the file of this index and hands them to `done`: on this thread
    /// where all are at hand, otherwise later on another. Never blocks. Past the end there are none.
    pub fn read_then(self: &Arc<Self>, file: usize, offset: u64, len: usize, access: Access, done: Done) {
        self.start(
            file,
            offset,
            len,
            access,
            Box::new(move |bytes| match bytes {
                Ok(bytes) => done(Ok(&bytes)),
                Err(e) => done(Err(e)),
            }),
        );
    }

    /// Fills `buf` from `offset` on and says how many bytes there were: fewer than asked for only at
    /// the end of the file. Blocks; not for the threads of the engine itself (inside a `done`). What was
    /// delivered is soon given up, as after a read of a mount: who reads twice keeps it, or asks
    /// [`read_then`](Self::read_then) with [`Access::Direct`].
    ///
    /// # Errors
    /// As [`ReadError`] lists them; what is in `buf` then means nothing.
    pub fn read_at(self: &Arc<Self>, file: usize, offset: u64, buf: &mut [u8]) -> Result<usize, ReadError> {
        let len = self.clip(file, offset, buf.len())?;
        let mut chunks = buf[..len].chunks_mut(CHUNK).enumerate();
        let mut under_way: VecDeque<(&mut [u8], Receiver<_>)> = VecDeque::new();
        loop {
            while under_way.len() < CHUNKS
                && let Some((i, chunk)) = chunks.next()
            {
                let (tell, told) = channel();
                let at = offset + (i * CHUNK) as u64;
                // Nobody listens where an earlier chunk failed.
                let finish: Finish = Box::new(move |bytes| drop(tell.send(bytes)));
                self.start(file, at, chunk.len(), Access::Detect, finish);
                under_way.push_back((chunk, told));
            }
            let Some((chunk, told)) = under_way.pop_front() else { return Ok(len) };
            let stopped = |_| Err(Failure::Stopped.at(self.place(file, offset)));
            chunk.copy_from_slice(&told.recv().unwrap_or_else(stopped)?);
        }
    }

    /// How many of `len` bytes at `offset` the file has.
    fn clip(&self, file: usize, offset: u64, len: usize) -> Result<usize, ReadError> {
        let Some(all) = self.plan.files.get(file).map(|f| f.len) else {
            add(&self.engine.counters.errors, 1);
            return Err(ReadError::NoSuchFile { file });
        };
        Ok(usize::try_from(all.saturating_sub(offset)).unwrap_or(usize::MAX).min(len))
    }

    fn start(self: &Arc<Self>, file: usize, offset: u64, len: usize, access: Access, finish: Finish) {
        let counters = &self.engine.counters;
        add(&counters.reads, 1);
        let len = match self.clip(file, offset, len) {
            Ok(0) => return finish(Ok(Bytes::Own(Vec::new()))),
            Ok(len) => len,
            Err(e) => return finish(Err(e)),
        };
        if let Some(bytes) = self.at_hand(file, offset, len, access) {
            counters.served(len);
            finish(Ok(bytes));
        } else {
            self.park((file, offset, len), access, finish);
        }
        self.look_ahead(file, offset, len, access);
    }

    fn segments(&self, file: usize, offset: u64, len: usize) -> Segments<'_> {
        Segments::new(&self.plan, &self.plan.files[file], offset..offset.saturating_add(len as u64))
    }

    /// The bytes of a read that misses nothing.
    fn at_hand(&self, file: usize, offset: u64, len: usize, access: Access) -> Option<Bytes> {
        let mut found = Vec::new();
        for segment in self.segments(file, offset, len) {
            found.push(match segment.from {
                From::Bytes { bytes, at } => (Bytes::Shared(Arc::clone(bytes), at..at + segment.len), None),
                From::Source { .. } => return None,
                From::Tile { weight, part, tile, at } => {
                    let key = self.key(weight, tile).part(part);
                    (Bytes::Shared(self.engine.cache.get(&key)?, at..at + segment.len), Some(key))
                }
            });
        }
        for (bytes, key) in &found {
            key.iter().for_each(|key| self.served(key, bytes.len(), access));
        }
        if found.len() == 1 {
            return found.pop().map(|(bytes, _)| bytes);
        }
        let mut whole = Vec::with_capacity(len);
        found.iter().for_each(|(bytes, _)| whole.extend_from_slice(bytes));
        (whole.len() == len).then_some(Bytes::Own(whole))
    }

    /// Tells the cache what was read, and need not be kept where the system's has it.
    fn served(&self, key: &PartKey, bytes: usize, access: Access) {
        self.engine.cache.served(key, if access == Access::Direct { 0 } else { bytes });
    }

    fn park(self: &Arc<Self>, (file, offset, len): (usize, u64, usize), access: Access, finish: Finish) {
        let counters = &self.engine.counters;
        add(&counters.waits, 1);
        add(&counters.pending, 1);
        let parked = Arc::new(Parked::new(self, (file, offset, len), access, finish));
        let weak = Arc::downgrade(&parked);
        let _ = parked.due.set(self.engine.watchdog.watch(weak));
        if let Some(permit) = self.engine.pool.try_permit(Lane::Reply, len) {
            return self.begin(&parked, permit);
        }
        let view = Arc::clone(self);
        self.engine.pool.push(Lane::Reply, len, Box::new(move |permit| view.begin(&parked, permit)));
    }

    /// Sets everything in motion that a parked read misses.
    fn begin(self: &Arc<Self>, parked: &Arc<Parked>, permit: Permit) {
        if !parked.open(permit, self.segments(parked.file, parked.offset, parked.len).count()) {
            return;
        }
        for segment in self.segments(parked.file, parked.offset, parked.len) {
            let slot = Slot { parked: Arc::clone(parked), offset: segment.offset };
            match segment.from {
                From::Bytes { bytes, at } => slot.fill(Bytes::Shared(Arc::clone(bytes), at..at + segment.len)),
                From::Source { .. } => self.fetch_source(slot, &segment),
                From::Tile { .. } => self.fetch_tile(slot, &segment),
            }
        }
    }

    /// Source bytes are read by a worker: a hung disk must not hold the thread that asks.
    fn fetch_source(self: &Arc<Self>, slot: Slot, segment: &Segment<'_>) {
        let From::Source { file, offset } = segment.from else { return };
        let (view, len) = (Arc::clone(self), segment.len);
        let run = move |_permit| {
            let mut bytes = vec![0; len];
            match view.reader().read(file, offset, &mut bytes) {
                Ok(()) => slot.fill(Bytes::Own(bytes)),
                Err(e) => slot.fail_first(e.into()),
            }
        };
        self.engine.pool.push(Lane::Demand, segment.len, Box::new(run));
    }

    fn fetch_tile(self: &Arc<Self>, slot: Slot, segment: &Segment<'_>) {
        let From::Tile { weight, part, tile, at } = segment.from else { return };
        let key = self.key(weight, tile);
        let range = at..at + segment.len;
        if let Some(value) = self.engine.cache.peek(&key.part(part)) {
            self.served(&key.part(part), range.len(), slot.parked.access);
            return slot.fill(Bytes::Shared(value, range));
        }
        let view = Arc::clone(self);
        let place = slot.place();
        let then = move |outcome: Result<super::encode::Tile, Failure>| match outcome {
            Ok(parts) => {
                view.served(&key.part(part), range.len(), slot.parked.access);
                slot.fill(Bytes::Shared(Arc::clone(&parts[usize::from(part)]), range));
            }
            Err(failure) => slot.fail(failure),
        };
        if let Some(ticket) = self.engine.flights.join(key, Box::new(then)) {
            self.make(ticket, weight, tile, place);
        }
    }

    pub(super) fn key(&self, weight: u32, tile: u32) -> TileKey {
        TileKey { weight: self.plan.weights[weight as usize].key, tile }
    }

    /// What an offset of a file is called in messages.
    pub(super) fn place(&self, file: usize, offset: u64) -> Place {
        let path = self.plan.files.get(file).map_or_else(String::new, |f| f.path.clone());
        let tensor = self.plan.files.get(file).and_then(|_| self.segments(file, offset, 1).next());
        let tensor = tensor.and_then(|segment| match segment.from {
            From::Tile { weight, part, .. } => {
                let planned = &self.plan.weights[weight as usize];
                Some(format!("{}{}", planned.weight.stem, planned.parts[usize::from(part)].suffix))
            }
            _ => None,
        });
        Place { file: path, tensor, offset }
    }
}

/// A read that waits.
struct Parked {
    view: Arc<View>,
    file: usize,
    offset: u64,
    len: usize,
    access: Access,
    due: OnceLock<Due>,
    state: Mutex<State>,
}

struct State {
    /// `None` once it was answered.
    finish: Option<Finish>,
    /// Segments still missing.
    missing: usize,
    /// Empty until a piece arrives that is not the whole.
    buffer: Vec<u8>,
    /// For the buffer; given back with the answer.
    permit: Option<Permit>,
}

impl Debug for Parked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Parked({} bytes of file {} at {})", self.len, self.file, self.offset)
    }
}

impl Parked {
    fn new(view: &Arc<View>, (file, offset, len): (usize, u64, usize), access: Access, finish: Finish) -> Self {
        let state = State { finish: Some(finish), missing: usize::MAX, buffer: Vec::new(), permit: None };
        Self { view: Arc::clone(view), file, offset, len, access, due: OnceLock::new(), state: Mutex::new(state) }
    }

    /// Whether the read is still to be answered; if so it now waits for so many segments.
    fn open(&self, permit: Permit, segments: usize) -> bool {
        let mut state = lock(&self.state);
        if state.finish.is_none() {
            return false;
        }
        (state.permit, state.missing) = (Some(permit), segments);
        true
    }

    fn fill(&self, offset: u64, bytes: Bytes) {
        let mut state = lock(&self.state);
        if state.finish.is_none() {
            return;
        }
        state.missing -= 1;
        let whole = if bytes.len() == self.len {
            bytes
        } else {
            let at = usize::try_from(offset - self.offset).unwrap_or(usize::MAX);
            put(&mut state.buffer, self.len, at, &bytes);
            if state.missing > 0 {
                return;
            }
            Bytes::Own(std::mem::take(&mut state.buffer))
        };
        drop(state);
        self.answer(Ok(whole));
    }

    /// Answers once; later answers are nobody's.
    fn answer(&self, outcome: Result<Bytes, Failure>) {
        let mut state = lock(&self.state);
        let Some(finish) = state.finish.take() else { return };
        let (buffer, permit) = (std::mem::take(&mut state.buffer), state.permit.take());
        drop(state);
        drop(buffer);
        let engine = &self.view.engine;
        if let Some(due) = self.due.get() {
            engine.watchdog.forget(*due);
        }
        engine.counters.pending.fetch_sub(1, Relaxed);
        match outcome {
            Ok(bytes) => {
                engine.counters.served(bytes.len());
                finish(Ok(bytes));
            }
            Err(failure) => {
                add(&engine.counters.errors, 1);
                finish(Err(failure.at(self.view.place(self.file, self.offset))));
            }
        }
        drop(permit);
    }
}

impl Expire for Parked {
    fn expire(&self, after: Duration) {
        let failure = Failure::TimedOut(after);
        add(&self.view.engine.counters.timeouts, 1);
        self.view.engine.journal.failed(&failure, &self.view.place(self.file, self.offset));
        self.answer(Err(failure));
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        self.answer(Err(Failure::Stopped));
    }
}

/// Puts a piece where it belongs. Pieces come in order nearly always: then no byte is written twice.
fn put(buffer: &mut Vec<u8>, len: usize, at: usize, piece: &[u8]) {
    buffer.reserve_exact(len - buffer.len());
    if buffer.len() <= at {
        buffer.resize(at, 0);
        buffer.extend_from_slice(piece);
    } else {
        buffer[at..at + piece.len()].copy_from_slice(piece);
    }
}

/// The place in a parked read that a segment fills.
struct Slot {
    parked: Arc<Parked>,
    offset: u64,
}

impl Slot {
    fn fill(&self, bytes: Bytes) {
        self.parked.fill(self.offset, bytes);
    }

    fn fail(&self, failure: Failure) {
        self.parked.answer(Err(failure));
    }

    /// Fails, and logs it: this read is the first to know.
    fn fail_first(&self, failure: Failure) {
        self.parked.view.engine.journal.failed(&failure, &self.place());
        self.fail(failure);
    }

    fn place(&self) -> Place {
        self.parked.view.place(self.parked.file, self.offset)
    }
}
