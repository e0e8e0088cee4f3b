//! A sharded LRU of byte strings under one byte budget, and single flight.
//!
//! What always holds: the bytes held never exceed the limit, not even for a moment (room is reserved
//! before a value goes in); a value that leaves is dropped outside every lock; no lock is held while
//! anything is computed. The policy is in `shard`, single-threaded; this file picks a shard and
//! locks it.
//!
//! The order of leaving is LRU within a shard; between shards a hand goes round. Values that were
//! served whole leave first (the kernel's page cache has them), then codes, and parameters (scales,
//! biases) last: a sequential reader comes back for those half a gigabyte later. See `Cache::order`.
//!
//! Knows no tile, no file and no thread pool: keys are any small `Copy` type.

mod flight;
mod shard;

use std::{
    fmt::Debug,
    hash::{BuildHasher, Hash, RandomState},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

pub use flight::{Abandoned, Flights, Then, Ticket};
pub use shard::{ENTRY_BYTES, Retain};
use shard::{Entry, Rank, Shard};

/// Enough that threads rarely meet in one, few enough that a pass over all of them costs nothing
/// beside the milliseconds of a miss.
const SHARDS: usize = 16;

/// Values that were served whole and are kept all the same: those whose last bytes may still be on their way to
/// a reader. More would hold twice what the system's cache has, and cost new pages, which memory that is used
/// again does not.
const SPENT_BYTES: usize = 8 << 20;

/// A lock whose holder panicked is taken as it is: every structure behind one is whole between any
/// two statements that could panic.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The cache; shared by reference, all methods take `&self`.
#[derive(Debug)]
pub struct Cache<K: Hash + Eq> {
    shards: Box<[Mutex<Shard<K>>]>,
    hasher: RandomState,
    limit: usize,
    used: AtomicUsize,
    hand: AtomicUsize,
    hits: AtomicU64,
    misses: AtomicU64,
    evictions: AtomicU64,
    unread: AtomicU64,
}

/// What the cache holds and did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Bytes held, [`ENTRY_BYTES`] for each entry included.
    pub bytes: usize,
    /// Values held.
    pub entries: usize,
    /// Calls of [`Cache::get`] that found their value.
    pub hits: u64,
    /// Calls of [`Cache::get`] that did not.
    pub misses: u64,
    /// Values that left for want of room.
    pub evictions: u64,
    /// Codes that left before a byte of them was served: a sign that more is made than fits.
    pub unread_evictions: u64,
}

impl<K: Copy + Eq + Hash + Debug> Cache<K> {
    /// A cache of at most `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self::with_shards(limit, SHARDS)
    }

    /// The same with a chosen number of shards (at least one); with one the order is exact LRU.
    #[must_use]
    pub fn with_shards(limit: usize, shards: usize) -> Self {
        Self {
            shards: (0..shards.max(1)).map(|_| Mutex::new(Shard::default())).collect(),
            hasher: RandomState::new(),
            limit,
            used: AtomicUsize::new(0),
            hand: AtomicUsize::new(0),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            evictions: AtomicU64::new(0),
            unread: AtomicU64::new(0),
        }
    }

    fn shard(&self, key: &K) -> &Mutex<Shard<K>> {
        #[expect(clippy::cast_possible_truncation, reason = "any bits of a hash will do")]
        let hash = self.hasher.hash_one(key) as usize;
        &self.shards[hash % self.shards.len()]
    }

    /// The value of a key, which leaves later for it.
    pub fn get(&self, key: &K) -> Option<Arc<[u8]>> {
        let found = lock(self.shard(key)).get(key);
        let counter = if found.is_some() { &self.hits } else { &self.misses };
        counter.fetch_add(1, Relaxed);
        found
    }

    /// The value of a key, without a trace in order or counters.
    #[must_use]
    pub fn peek(&self, key: &K) -> Option<Arc<[u8]>> {
        lock(self.shard(key)).peek(key)
    }

    /// Whether the value is here.
    #[must_use]
    pub fn contains(&self, key: &K) -> bool {
        lock(self.shard(key)).contains(key)
    }

    /// Records that so many bytes of a value were served. One that was served whole leaves first; 0 records only that
    /// somebody had something of it.
    pub fn served(&self, key: &K, bytes: usize) {
        lock(self.shard(key)).served(key, bytes);
    }

    /// Puts a value in, and out what it displaces. `false` where it does not fit: it is larger than
    /// the limit, or others hold all the room at this moment.
    pub fn insert(&self, key: K, value: Arc<[u8]>, retain: Retain) -> bool {
        let entry = Entry::new(value, retain);
        if !self.reserve(entry.size()) {
            return false;
        }
        let displaced = lock(self.shard(&key)).insert(key, entry);
        if let Some(old) = displaced {
            self.used.fetch_sub(old.size(), Relaxed);
        }
        true
    }

    /// The memory of a value of this length that was served whole, to make another value in: the system's cache
    /// has what it held. Nobody else holds it. `None` while few such values are here, and where none of the oldest
    /// fits; one of them leaves all the same.
    #[must_use]
    pub fn reclaim(&self, len: usize) -> Option<Arc<[u8]>> {
        if len == 0 {
            return None;
        }
        let spent: usize = self.shards.iter().map(|s| lock(s).bytes()[Rank::Spent as usize]).sum();
        if spent <= SPENT_BYTES {
            return None;
        }
        let start = self.hand.fetch_add(1, Relaxed);
        let mut shards = (0..self.shards.len()).map(|i| &self.shards[start.wrapping_add(i) % self.shards.len()]);
        let fitting = shards.find_map(|shard| lock(shard).reclaim(len));
        let fits = fitting.is_some();
        let entry = fitting.or_else(|| self.pop(Rank::Spent))?;
        self.used.fetch_sub(entry.size(), Relaxed);
        fits.then(|| entry.into_value())
    }

    /// Takes `size` bytes of the budget, evicting until they are free.
    fn reserve(&self, size: usize) -> bool {
        let take = |used: usize| used.checked_add(size).filter(|&sum| sum <= self.limit);
        loop {
            if self.used.fetch_update(Relaxed, Relaxed, take).is_ok() {
                return true;
            }
            if size > self.limit || !self.evict() {
                return false;
            }
        }
    }

    /// Lets one value go.
    fn evict(&self) -> bool {
        let Some(entry) = self.pop(Rank::Spent).or_else(|| self.order().into_iter().find_map(|rank| self.pop(rank)))
        else {
            return false;
        };
        self.used.fetch_sub(entry.size(), Relaxed);
        self.evictions.fetch_add(1, Relaxed);
        self.unread.fetch_add(u64::from(entry.is_unread_codes()), Relaxed);
        true
    }

    /// Codes before parameters; but the other way round where parameters fill more than half, or
    /// those that nobody came back for would crowd out what is being read.
    fn order(&self) -> [Rank; 2] {
        let (mut codes, mut parameters) = (0, 0);
        for [_, c, p] in self.shards.iter().map(|s| lock(s).bytes()) {
            (codes, parameters) = (codes + c, parameters + p);
        }
        if parameters > codes { [Rank::Parameters, Rank::Codes] } else { [Rank::Codes, Rank::Parameters] }
    }

    /// Takes the oldest value of a rank out of the first shard that has one, from the hand on.
    fn pop(&self, rank: Rank) -> Option<Entry> {
        let start = self.hand.fetch_add(1, Relaxed);
        (0..self.shards.len()).find_map(|i| lock(&self.shards[start.wrapping_add(i) % self.shards.len()]).pop(rank))
    }

    /// The byte limit.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Codes that left unread so far; see [`Stats::unread_evictions`].
    #[must_use]
    pub fn unread_evictions(&self) -> u64 {
        self.unread.load(Relaxed)
    }

    /// Figures of this moment.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats {
            bytes: self.used.load(Relaxed),
            entries: self.shards.iter().map(|s| lock(s).len()).sum(),
            hits: self.hits.load(Relaxed),
            misses: self.misses.load(Relaxed),
            evictions: self.evictions.load(Relaxed),
            unread_evictions: self.unread.load(Relaxed),
        }
    }

    /// Recounts everything; for tests, with no other caller at work.
    ///
    /// # Errors
    /// The first figure that is wrong.
    pub fn validate(&self) -> Result<(), String> {
        let mut total = 0;
        for (i, shard) in self.shards.iter().enumerate() {
            total += lock(shard).validate().map_err(|e| format!("shard {i}: {e}"))?;
        }
        let used = self.used.load(Relaxed);
        if total != used {
            return Err(format!("the shards hold {total} bytes, the budget says {used}"));
        }
        if used > self.limit {
            return Err(format!("{used} bytes are over the limit of {}", self.limit));
        }
        Ok(())
    }
}
