//! One shard: which value leaves first.
//!
//! Three LRU lists by rank. A key is in one list at most. Single-threaded: knows no lock and no
//! budget.

use std::{fmt::Debug, hash::Hash, sync::Arc};

use lru::LruCache;

/// Charged for every entry beside its bytes: the key and entry in the map, the list's pointers, the
/// header of the `Arc` and the allocator's rounding, all of them rounded up.
pub const ENTRY_BYTES: usize = 192;

/// What a value is to its readers until it was served whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Retain {
    /// Large and read at once: leaves before parameters do.
    Codes,
    /// Small, and made long before a sequential reader asks for it.
    Parameters,
}

#[derive(Debug)]
pub(super) struct Entry {
    value: Arc<[u8]>,
    retain: Retain,
    served: usize,
    /// Somebody had something of it.
    seen: bool,
}

impl Entry {
    pub(super) fn new(value: Arc<[u8]>, retain: Retain) -> Self {
        Self { value, retain, served: 0, seen: false }
    }

    pub(super) fn size(&self) -> usize {
        self.value.len() + ENTRY_BYTES
    }

    pub(super) fn into_value(self) -> Arc<[u8]> {
        self.value
    }

    pub(super) fn is_unread_codes(&self) -> bool {
        self.retain == Retain::Codes && !self.seen
    }

    /// Every byte was served, or as many: ranges are not told apart, for this is a hint.
    fn is_spent(&self) -> bool {
        self.served >= self.value.len()
    }
}

/// The lists of a shard, in the order in which they are emptied.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rank {
    /// Served whole.
    Spent,
    Codes,
    Parameters,
}

/// An LRU list that knows its bytes.
#[derive(Debug)]
struct List<K: Hash + Eq> {
    entries: LruCache<K, Entry>,
    bytes: usize,
}

impl<K: Hash + Eq> Default for List<K> {
    fn default() -> Self {
        Self { entries: LruCache::unbounded(), bytes: 0 }
    }
}

impl<K: Hash + Eq> List<K> {
    fn put(&mut self, key: K, entry: Entry) {
        self.bytes += entry.size();
        self.entries.put(key, entry);
    }

    fn take(&mut self, key: &K) -> Option<Entry> {
        let entry = self.entries.pop(key)?;
        self.bytes -= entry.size();
        Some(entry)
    }

    fn pop(&mut self) -> Option<Entry> {
        let (_, entry) = self.entries.pop_lru()?;
        self.bytes -= entry.size();
        Some(entry)
    }
}

#[derive(Debug)]
pub(super) struct Shard<K: Hash + Eq> {
    spent: List<K>,
    codes: List<K>,
    parameters: List<K>,
}

impl<K: Hash + Eq> Default for Shard<K> {
    fn default() -> Self {
        Self { spent: List::default(), codes: List::default(), parameters: List::default() }
    }
}

impl<K: Copy + Eq + Hash + Debug> Shard<K> {
    fn lists(&self) -> [&List<K>; 3] {
        [&self.spent, &self.codes, &self.parameters]
    }

    fn list_of(&mut self, entry: &Entry) -> &mut List<K> {
        match entry.retain {
            _ if entry.is_spent() => &mut self.spent,
            Retain::Codes => &mut self.codes,
            Retain::Parameters => &mut self.parameters,
        }
    }

    fn take(&mut self, key: &K) -> Option<Entry> {
        self.spent.take(key).or_else(|| self.codes.take(key)).or_else(|| self.parameters.take(key))
    }

    /// The value, which becomes the newest of its list.
    pub(super) fn get(&mut self, key: &K) -> Option<Arc<[u8]>> {
        self.served(key, 0).map(|entry| Arc::clone(&entry.value))
    }

    /// Counts bytes of a value as served (none where the reader's system does not keep them), and moves it to the list where it belongs since.
    pub(super) fn served(&mut self, key: &K, bytes: usize) -> Option<&Entry> {
        let mut entry = self.take(key)?;
        entry.served = entry.served.saturating_add(bytes);
        entry.seen = true;
        let list = self.list_of(&entry);
        list.put(*key, entry);
        list.entries.peek(key)
    }

    pub(super) fn peek(&self, key: &K) -> Option<Arc<[u8]>> {
        self.lists().iter().find_map(|list| list.entries.peek(key)).map(|entry| Arc::clone(&entry.value))
    }

    pub(super) fn contains(&self, key: &K) -> bool {
        self.lists().iter().any(|list| list.entries.contains(key))
    }

    /// Puts an entry in and gives back the one it replaces.
    pub(super) fn insert(&mut self, key: K, entry: Entry) -> Option<Entry> {
        let old = self.take(&key);
        self.list_of(&entry).put(key, entry);
        old
    }

    /// Bytes in each list, in the order of [`Rank`].
    pub(super) fn bytes(&self) -> [usize; 3] {
        self.lists().map(|list| list.bytes)
    }

    /// The oldest entry that was served whole, where it has this length and nobody holds its value.
    pub(super) fn reclaim(&mut self, len: usize) -> Option<Entry> {
        let (_, oldest) = self.spent.entries.peek_lru()?;
        let fits = oldest.value.len() == len && Arc::strong_count(&oldest.value) == 1;
        if fits { self.spent.pop() } else { None }
    }

    /// The oldest entry of a rank.
    pub(super) fn pop(&mut self, rank: Rank) -> Option<Entry> {
        match rank {
            Rank::Spent => self.spent.pop(),
            Rank::Codes => self.codes.pop(),
            Rank::Parameters => self.parameters.pop(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.lists().iter().map(|list| list.entries.len()).sum()
    }

    /// Recounts all lists; the bytes of all entries.
    pub(super) fn validate(&self) -> Result<usize, String> {
        for list in self.lists() {
            let sum: usize = list.entries.iter().map(|(_, entry)| entry.size()).sum();
            if sum != list.bytes {
                return Err(format!("a list of {sum} bytes says {}", list.bytes));
            }
            for (key, _) in &list.entries {
                if self.lists().iter().filter(|l| l.entries.contains(key)).count() != 1 {
                    return Err(format!("{key:?} is in several lists"));
                }
            }
        }
        if self.spent.entries.iter().any(|(_, e)| !e.is_spent()) {
            return Err("an entry is among the served that was not".to_owned());
        }
        Ok(self.lists().iter().map(|list| list.bytes).sum())
    }
}
