//! What all views of a process share: the cache, the workers, the deadline, the counters.

use std::{
    io,
    num::NonZero,
    ops::Range,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use lru::LruCache;

use crate::{
    cache::{Cache, Flights, Retain, Ticket, lock},
    plan::Planned,
    quant::Scheme,
    store::Store,
};

use super::{
    View,
    counters::{Counters, Snapshot, add},
    deadline::Watchdog,
    encode::{self, Encoder, Shelf, Tile},
    error::{Failure, Journal, Place},
    gather::Reader,
    pool::{Lane, Pool},
    survey::Findings,
};

/// Names a tile: of which weight (origin, scheme, revision) and which of its tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct TileKey {
    pub(super) weight: [u8; 16],
    pub(super) tile: u32,
}

impl TileKey {
    pub(super) fn part(self, part: u16) -> PartKey {
        PartKey { tile: self, part }
    }
}

/// Names one part of a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct PartKey {
    tile: TileKey,
    part: u16,
}

/// Whether the system's cache should keep source bytes that were turned into tiles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SourceCache {
    /// Leave it to the system.
    #[default]
    Keep,
    /// Give them up at once: the mount's own pages are worth more.
    Drop,
}

/// What an engine may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Bytes of encoded tiles to keep. What is in the making comes on top, 64 MiB at most.
    pub cache_bytes: usize,
    /// Threads that read sources and encode.
    pub threads: usize,
    /// How far to encode ahead of a sequential reader, in bytes; 0 for not at all.
    pub readahead_bytes: usize,
    /// When a read that waits is answered with an error.
    pub deadline: Duration,
    /// What becomes of source bytes in the system's cache.
    pub source_cache: SourceCache,
}

impl Default for Options {
    /// 256 MiB, a thread for every processor, 32 MiB ahead, one minute, keep.
    fn default() -> Self {
        Self {
            cache_bytes: 256 << 20,
            threads: thread::available_parallelism().map_or(2, NonZero::get),
            readahead_bytes: 32 << 20,
            deadline: Duration::from_secs(60),
            source_cache: SourceCache::Keep,
        }
    }
}

/// Shared by the views of a process. Its threads end when the last view and the last handle are
/// gone.
#[derive(Debug)]
pub struct Engine {
    pub(super) cache: Cache<PartKey>,
    pub(super) flights: Arc<Flights<TileKey, Tile, Failure>>,
    pub(super) counters: Counters,
    pub(super) journal: Journal,
    pub(super) options: Options,
    pub(super) watchdog: Watchdog,
    pub(super) pool: Pool,
    pub(super) store: Option<Arc<Store>>,
    shelf: Shelf,
    /// What surveys found, by the key of their first weight.
    findings: Mutex<LruCache<[u8; 16], Arc<Findings>>>,
}

/// Surveys whose findings outlive their view, a few hundred bytes each.
const MAX_FINDINGS: NonZero<usize> = NonZero::new(16 << 10).unwrap();

impl Engine {
    /// Starts the threads.
    ///
    /// # Errors
    /// Where the system refuses a thread.
    pub fn new(options: Options) -> io::Result<Arc<Self>> {
        Self::with_store(options, None)
    }

    /// Starts the threads; the views keep finished files in a store.
    ///
    /// # Errors
    /// Where the system refuses a thread.
    pub fn with_store(options: Options, store: Option<Arc<Store>>) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            cache: Cache::new(options.cache_bytes),
            flights: Arc::default(),
            counters: Counters::default(),
            journal: Journal::default(),
            options,
            watchdog: Watchdog::new(options.deadline)?,
            pool: Pool::new(options.threads)?,
            store,
            shelf: Shelf::default(),
            findings: Mutex::new(LruCache::new(MAX_FINDINGS)),
        }))
    }

    /// Figures of this moment.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let cache = self.cache.stats();
        Snapshot {
            tiles_in_flight: self.flights.len() as u64,
            cache_hits: cache.hits,
            cache_misses: cache.misses,
            cache_evictions: cache.evictions,
            cache_entries: cache.entries as u64,
            cache_bytes: cache.bytes as u64,
            cache_limit: self.cache.limit() as u64,
            store_bytes: self.store.as_ref().map_or(0, |store| store.bytes()),
            store_limit: self.store.as_ref().map_or(0, |store| store.limit()),
            store_sealed: self.store.as_ref().map_or(0, |store| store.sealed() as u64),
            ..self.counters.snapshot()
        }
    }

    /// What a survey found so far, in this view or another one that asks the same.
    pub(super) fn findings(&self, key: [u8; 16]) -> Arc<Findings> {
        Arc::clone(lock(&self.findings).get_or_insert(key, Arc::default))
    }

    /// All parts of a tile, where all are in the cache.
    pub(super) fn kept(&self, planned: &Planned, key: TileKey) -> Option<Tile> {
        let value = |(number, share): (u16, Range<usize>)| {
            if share.is_empty() { Some(Arc::from([])) } else { self.cache.peek(&key.part(number)) }
        };
        (0..=u16::MAX).zip(encode::shares(planned, key.tile)).map(value).collect()
    }

    /// Puts the parts of a tile into the cache, each alone. The codes come first in every scheme.
    fn keep(&self, key: TileKey, parts: &Tile) {
        for (number, value) in (0..=u16::MAX).zip(parts.iter()).filter(|(_, value)| !value.is_empty()) {
            let retain = if number == 0 { Retain::Codes } else { Retain::Parameters };
            self.cache.insert(key.part(number), Arc::clone(value), retain);
        }
    }
}

impl View {
    pub(super) fn reader(&self) -> Reader<'_> {
        let release = self.engine.options.source_cache == SourceCache::Drop;
        let counters = &self.engine.counters;
        Reader { source: &*self.source, release, bytes: &counters.source_bytes, tile_bytes: &counters.tile_bytes }
    }

    /// Has a worker make the tile of a ticket, now that a reader waits for it.
    pub(super) fn make(self: &Arc<Self>, ticket: Ticket<TileKey, Tile, Failure>, weight: u32, tile: u32, place: Place) {
        let planned = &self.plan.weights[weight as usize];
        // Between the reader's look and its ticket another flight may have landed.
        if let Some(parts) = self.engine.kept(planned, self.key(weight, tile)) {
            return ticket.finish(&Ok(parts));
        }
        let view = Arc::clone(self);
        let run = move |permit| {
            let made = view.encode(weight, tile, &place);
            drop(permit);
            ticket.finish(&made);
        };
        self.engine.pool.push(Lane::Demand, encode::cost(planned, tile), Box::new(run));
    }

    /// Queues a tile that nobody asked for yet, unless `stale` says that it is too late when its turn
    /// comes. Whether there was room in the queue.
    pub(super) fn make_ahead(
        self: &Arc<Self>,
        (weight, tile, part): (u32, u32, u16),
        place: Place,
        stale: impl Fn() -> bool + Send + 'static,
    ) -> bool {
        let view = Arc::clone(self);
        let run = move |permit| {
            let key = view.key(weight, tile);
            let Some(mut ticket) = view.engine.flights.lead(key) else { return };
            // Asked with the ticket in hand: no other flight can land in between.
            if stale() || view.engine.cache.contains(&key.part(part)) {
                let Some(again) = ticket.withdraw() else { return };
                ticket = again;
            }
            let made = view.encode(weight, tile, &place);
            add(&view.engine.counters.tiles_ahead, usize::from(made.is_ok()));
            drop(permit);
            ticket.finish(&made);
        };
        self.engine.pool.push(Lane::Ahead, encode::cost(&self.plan.weights[weight as usize], tile), Box::new(run))
    }

    /// Makes a tile and keeps it, unless the store has it; logs a failure.
    fn encode(&self, weight: u32, tile: u32, place: &Place) -> Result<Tile, Failure> {
        let engine = &*self.engine;
        if let Some(parts) = self.load_stored(weight, tile) {
            engine.keep(self.key(weight, tile), &parts);
            return Ok(parts);
        }
        let made = self.encode_only(weight, tile);
        match &made {
            Ok(parts) => {
                engine.keep(self.key(weight, tile), parts);
                self.offer_to_store(weight, tile, parts);
            }
            Err(failure) => engine.journal.failed(failure, place),
        }
        made
    }

    /// Makes a tile, wherever it may be kept already.
    pub(super) fn encode_only(&self, weight: u32, tile: u32) -> Result<Tile, Failure> {
        let (planned, encoder) = (&self.plan.weights[weight as usize], self.encoder());
        match planned.survey {
            None => encoder.tile(planned, &*planned.scheme, tile),
            Some(survey) => encoder.tile(planned, &*self.informed(survey)?, tile),
        }
    }

    /// The scheme that a survey concludes, which is made now where it was not yet.
    pub(super) fn informed(&self, survey: u32) -> Result<Arc<dyn Scheme>, Failure> {
        let (surveyed, encoder) = (&self.plan.surveys[survey as usize], self.encoder());
        let planned = |weight: u32| &self.plan.weights[weight as usize];
        let look = |weight, tile| encoder.look(planned(weight), &*surveyed.survey, tile);
        self.surveys[survey as usize].conclude(surveyed, |weight| planned(weight).tiles(), look)
    }

    pub(super) fn encoder(&self) -> Encoder<'_> {
        let engine = &*self.engine;
        let (reader, counters) = (self.reader(), &engine.counters);
        Encoder { reader, counters, shelf: &engine.shelf, cache: &engine.cache }
    }
}
