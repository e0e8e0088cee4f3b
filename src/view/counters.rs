//! What a process's views did so far: plain atomics, no globals.

use std::{
    collections::HashMap,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use serde::Serialize;

use crate::cache::lock;

/// The live counters of an engine.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) reads: AtomicU64,
    pub(super) served_bytes: AtomicU64,
    pub(super) waits: AtomicU64,
    pub(super) pending: AtomicU64,
    pub(super) errors: AtomicU64,
    pub(super) timeouts: AtomicU64,
    pub(super) source_bytes: AtomicU64,
    pub(super) tiles: AtomicU64,
    pub(super) tiles_ahead: AtomicU64,
    pub(super) encode_ns: AtomicU64,
    /// Tiles of weights that hold elements that are NaN or infinite, and how many; a tile that is
    /// made again counts once.
    pub(super) not_finite: Mutex<HashMap<[u8; 16], HashMap<u32, usize>>>,
}

/// Adds to a counter.
pub(super) fn add(counter: &AtomicU64, n: usize) {
    counter.fetch_add(n as u64, Relaxed);
}

/// Figures of one moment. Totals count from the start of the engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// Reads asked for.
    pub reads: u64,
    /// Bytes handed out to readers.
    pub served_bytes: u64,
    /// Reads that could not be answered at once.
    pub waits: u64,
    /// Reads waiting at this moment.
    pub pending: u64,
    /// Reads answered with an error, timeouts included.
    pub errors: u64,
    /// Reads answered with [`TimedOut`](super::ReadError::TimedOut).
    pub timeouts: u64,
    /// Bytes read from sources, for tiles and as they are.
    pub source_bytes: u64,
    /// Tiles encoded.
    pub tiles: u64,
    /// Of these, tiles encoded before anybody asked.
    pub tiles_ahead: u64,
    /// Tiles being encoded at this moment.
    pub tiles_in_flight: u64,
    /// Nanoseconds spent in encoding alone (casts included, source reads not), over all threads.
    pub encode_ns: u64,
    /// Source elements met so far that are NaN or infinite.
    pub not_finite: u64,
    /// Tile parts found in the cache by readers.
    pub cache_hits: u64,
    /// Tile parts that were not.
    pub cache_misses: u64,
    /// Tile parts that left the cache for want of room.
    pub cache_evictions: u64,
    /// Tile parts held.
    pub cache_entries: u64,
    /// Bytes held by the cache.
    pub cache_bytes: u64,
    /// The cache's limit in bytes.
    pub cache_limit: u64,
}

impl Counters {
    /// The counters' share of a snapshot.
    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot {
            reads: self.reads.load(Relaxed),
            served_bytes: self.served_bytes.load(Relaxed),
            waits: self.waits.load(Relaxed),
            pending: self.pending.load(Relaxed),
            errors: self.errors.load(Relaxed),
            timeouts: self.timeouts.load(Relaxed),
            source_bytes: self.source_bytes.load(Relaxed),
            tiles: self.tiles.load(Relaxed),
            tiles_ahead: self.tiles_ahead.load(Relaxed),
            encode_ns: self.encode_ns.load(Relaxed),
            not_finite: lock(&self.not_finite).values().flat_map(HashMap::values).sum::<usize>() as u64,
            ..Snapshot::default()
        }
    }
}
