//! What a process's views did so far: plain atomics, no globals.

use std::{
    collections::HashMap,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use serde::Serialize;

use crate::cache::lock;

/// The live counters of an engine.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) reads: AtomicU64,
    served_bytes: AtomicU64,
    recent: Recent,
    pub(super) waits: AtomicU64,
    pub(super) pending: AtomicU64,
    pub(super) errors: AtomicU64,
    pub(super) timeouts: AtomicU64,
    pub(super) source_bytes: AtomicU64,
    pub(super) tile_bytes: AtomicU64,
    pub(super) tiles: AtomicU64,
    pub(super) tiles_ahead: AtomicU64,
    pub(super) encode_ns: AtomicU64,
    pub(super) store_hits: AtomicU64,
    pub(super) store_misses: AtomicU64,
    pub(super) store_corrupt: AtomicU64,
    pub(super) store_read_bytes: AtomicU64,
    pub(super) store_written_bytes: AtomicU64,
    pub(super) store_behind: AtomicU64,
    /// Tiles of weights that hold elements that are NaN or infinite, and how many; a tile that is
    /// made again counts once.
    pub(super) not_finite: Mutex<HashMap<[u8; 16], HashMap<u32, usize>>>,
}

/// Seconds that the recent rate is taken over, and the running one.
const SECONDS: usize = 6;

/// Bytes of each of the last seconds and of the running one.
#[derive(Debug)]
struct Recent {
    started: Instant,
    seconds: [Second; SECONDS],
}

/// The bytes of the second of this number.
#[derive(Debug, Default)]
struct Second {
    number: AtomicU64,
    bytes: AtomicU64,
}

impl Default for Recent {
    fn default() -> Self {
        Self { started: Instant::now(), seconds: Default::default() }
    }
}

impl Recent {
    fn second(&self, number: u64) -> &Second {
        // What is left of a division by six fits.
        &self.seconds[usize::try_from(number % SECONDS as u64).unwrap_or(0)]
    }

    /// Counts bytes in the second `now`. Two threads at the turn of a second may lose one read of it.
    fn add(&self, now: u64, bytes: u64) {
        let second = self.second(now);
        if second.number.swap(now, Relaxed) == now {
            second.bytes.fetch_add(bytes, Relaxed);
        } else {
            second.bytes.store(bytes, Relaxed);
        }
    }

    /// Bytes a second, over the seconds before `now`.
    fn rate(&self, now: u64) -> u64 {
        let over = (SECONDS as u64 - 1).min(now);
        let of = |number| {
            let second = self.second(number);
            if second.number.load(Relaxed) == number { second.bytes.load(Relaxed) } else { 0 }
        };
        (now - over..now).map(of).sum::<u64>() / over.max(1)
    }
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
    /// The same in one second, over the last five.
    pub recent_bytes_per_second: u64,
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
    /// Of these, bytes of the elements that tiles were made of.
    pub tile_bytes: u64,
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
    /// Tiles found in the store, checked.
    pub store_hits: u64,
    /// Tiles that were not.
    pub store_misses: u64,
    /// Of these, tiles that were there with other checksums.
    pub store_corrupt: u64,
    /// Bytes of tiles read from the store.
    pub store_read_bytes: u64,
    /// Bytes of tiles handed to the store that are there now.
    pub store_written_bytes: u64,
    /// Tiles put off since the disk was behind; they are made again when nobody reads.
    pub store_behind: u64,
    /// Bytes that the store's directory holds.
    pub store_bytes: u64,
    /// The most that it may hold; 0 where there is no store.
    pub store_limit: u64,
    /// Files of the view that lie there whole, checked and sealed.
    pub store_sealed: u64,
}

impl Counters {
    /// Counts bytes that were handed out.
    pub(super) fn served(&self, bytes: usize) {
        add(&self.served_bytes, bytes);
        self.recent.add(self.recent.started.elapsed().as_secs(), bytes as u64);
    }

    /// The counters' share of a snapshot.
    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot {
            reads: self.reads.load(Relaxed),
            served_bytes: self.served_bytes.load(Relaxed),
            recent_bytes_per_second: self.recent.rate(self.recent.started.elapsed().as_secs()),
            waits: self.waits.load(Relaxed),
            pending: self.pending.load(Relaxed),
            errors: self.errors.load(Relaxed),
            timeouts: self.timeouts.load(Relaxed),
            source_bytes: self.source_bytes.load(Relaxed),
            tile_bytes: self.tile_bytes.load(Relaxed),
            tiles: self.tiles.load(Relaxed),
            tiles_ahead: self.tiles_ahead.load(Relaxed),
            encode_ns: self.encode_ns.load(Relaxed),
            store_hits: self.store_hits.load(Relaxed),
            store_misses: self.store_misses.load(Relaxed),
            store_corrupt: self.store_corrupt.load(Relaxed),
            store_read_bytes: self.store_read_bytes.load(Relaxed),
            store_written_bytes: self.store_written_bytes.load(Relaxed),
            store_behind: self.store_behind.load(Relaxed),
            not_finite: lock(&self.not_finite).values().flat_map(HashMap::values).sum::<usize>() as u64,
            ..Snapshot::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recent_rate_forgets() {
        let recent = Recent::default();
        assert_eq!(recent.rate(0), 0);
        recent.add(0, 60);
        recent.add(0, 40);
        assert_eq!((recent.rate(1), recent.rate(2), recent.rate(5), recent.rate(6)), (100, 50, 20, 0));
        recent.add(6, 5);
        assert_eq!((recent.rate(6), recent.rate(7), recent.rate(12)), (0, 1, 0), "the place of the first second");
    }
}
