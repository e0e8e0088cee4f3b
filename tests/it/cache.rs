//! The cache against a naive LRU; its budget under stress; single flight.

use std::{
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
        mpsc::channel,
    },
    thread,
};

use proptest::prelude::*;
use quantfs::cache::{Abandoned, Cache, ENTRY_BYTES, Flights, Retain};

use crate::common::memory::Random;

/// What the cache should do, in the plainest way: entries from the oldest to the newest.
#[derive(Default)]
struct Naive {
    limit: usize,
    entries: Vec<Held>,
    evicted: u64,
}

struct Held {
    key: u8,
    len: usize,
    retain: Retain,
    served: usize,
}

impl Held {
    fn spent(&self) -> bool {
        self.served >= self.len
    }
}

impl Naive {
    fn touch(&mut self, key: u8, serving: usize) -> Option<usize> {
        let at = self.entries.iter().position(|held| held.key == key)?;
        let mut held = self.entries.remove(at);
        held.served += serving;
        let len = held.len;
        self.entries.push(held);
        Some(len)
    }

    fn bytes(&self, of: impl Fn(&Held) -> bool) -> usize {
        self.entries.iter().filter(|held| of(held)).map(|held| held.len + ENTRY_BYTES).sum()
    }

    fn insert(&mut self, key: u8, len: usize, retain: Retain) -> bool {
        if len + ENTRY_BYTES > self.limit {
            return false;
        }
        while self.bytes(|_| true) + len + ENTRY_BYTES > self.limit {
            let codes = self.bytes(|held| !held.spent() && held.retain == Retain::Codes);
            let parameters = self.bytes(|held| !held.spent() && held.retain == Retain::Parameters);
            let first = if parameters > codes { Retain::Parameters } else { Retain::Codes };
            let spent = self.entries.iter().position(Held::spent);
            let at = spent.or_else(|| self.entries.iter().position(|held| held.retain == first)).unwrap_or(0);
            self.entries.remove(at);
            self.evicted += 1;
        }
        self.entries.retain(|held| held.key != key);
        self.entries.push(Held { key, len, retain, served: 0 });
        true
    }
}

#[derive(Clone, Debug)]
enum Op {
    Insert(u8, usize, bool),
    Get(u8, usize),
    Peek(u8),
}

fn op() -> impl Strategy<Value = Op> {
    let key = 0u8..24;
    prop_oneof![
        3 => (key.clone(), prop_oneof![0usize..400, Just(5000usize)], any::<bool>()).prop_map(|(k, n, c)| Op::Insert(k, n, c)),
        4 => (key.clone(), 0usize..400).prop_map(|(k, n)| Op::Get(k, n)),
        1 => key.prop_map(Op::Peek),
    ]
}

proptest! {
    #[test]
    fn one_shard_is_the_naive_lru(limit in 0usize..4000, ops in prop::collection::vec(op(), 1..300)) {
        let cache = Cache::<u8>::with_shards(limit, 1);
        let mut naive = Naive { limit, ..Naive::default() };
        for op in ops {
            match op {
                Op::Insert(key, len, codes) => {
                    let retain = if codes { Retain::Codes } else { Retain::Parameters };
                    let value = vec![key; len].into();
                    prop_assert_eq!(cache.insert(key, value, retain), naive.insert(key, len, retain));
                }
                Op::Get(key, serving) => {
                    let value = cache.get(&key);
                    cache.served(&key, serving);
                    prop_assert!(value.iter().all(|v| v.iter().all(|b| *b == key)));
                    prop_assert_eq!(value.map(|v| v.len()), naive.touch(key, serving));
                }
                Op::Peek(key) => {
                    let there = naive.entries.iter().any(|held| held.key == key);
                    prop_assert_eq!(cache.peek(&key).is_some(), there);
                    prop_assert_eq!(cache.contains(&key), there);
                }
            }
            prop_assert_eq!(cache.validate(), Ok(()));
            let stats = cache.stats();
            prop_assert_eq!(stats.bytes, naive.bytes(|_| true));
            prop_assert_eq!((stats.entries, stats.evictions), (naive.entries.len(), naive.evicted));
        }
    }
}

#[test]
fn what_was_served_leaves_first_and_parameters_last() {
    let cache = Cache::<u8>::with_shards(10 * (100 + ENTRY_BYTES), 4);
    let put = |key, retain| assert!(cache.insert(key, vec![key; 100].into(), retain));
    (0..3).for_each(|key| put(key, Retain::Parameters));
    (3..10).for_each(|key| put(key, Retain::Codes));
    [60, 40].iter().for_each(|bytes| cache.served(&9, *bytes));
    put(10, Retain::Codes);
    assert!(!cache.contains(&9), "the newest, but served");
    (11..17).for_each(|key| put(key, Retain::Codes));
    assert!((0..3).all(|key| cache.contains(&key)), "the oldest, but parameters");
    assert_eq!(cache.validate(), Ok(()));
}

#[test]
fn memory_of_served_values_is_used_again() {
    let cache = Cache::<u8>::new(100 << 20);
    let put = |key, len| {
        let value: Arc<[u8]> = vec![key; len].into();
        assert!(cache.insert(key, Arc::clone(&value), Retain::Codes));
        cache.served(&key, len);
        value
    };
    let held = put(0, 1 << 20);
    (1..7).for_each(|key| drop(put(key, 1 << 20)));
    assert!(cache.reclaim(1 << 20).is_none(), "few values are kept for their last readers");
    (7..10).for_each(|key| drop(put(key, 1 << 20)));
    assert!(cache.insert(10, vec![10; 1 << 20].into(), Retain::Codes), "one that nobody read");
    let reclaimed = cache.reclaim(1 << 20).expect("there are values enough");
    assert!(reclaimed.len() == 1 << 20 && Arc::strong_count(&reclaimed) == 1);
    assert!(!cache.contains(&reclaimed[0]) && reclaimed[0] != 10);
    (11..14).for_each(|key| drop(put(key, 1 << 20)));
    let before = cache.stats().entries;
    assert!(cache.reclaim(1 << 19).is_none(), "of another length");
    assert_eq!(cache.stats().entries, before - 1, "but one left");
    while let Some(value) = cache.reclaim(1 << 20) {
        assert_ne!(value.as_ptr(), held.as_ptr(), "somebody holds it");
    }
    assert_eq!(cache.validate(), Ok(()));
}

#[test]
fn codes_that_somebody_saw_do_not_leave_unread() {
    for (seen, unread) in [(true, 0), (false, 5)] {
        let cache = Cache::<u8>::with_shards(5 * (100 + ENTRY_BYTES), 1);
        for key in 0..10 {
            assert!(cache.insert(key, vec![key; 100].into(), Retain::Codes));
            if seen {
                cache.served(&key, 0);
            }
        }
        assert_eq!((cache.stats().evictions, cache.unread_evictions()), (5, unread));
    }
}

#[test]
fn the_budget_holds_under_stress() {
    let limit = 64 << 10;
    let cache = Arc::new(Cache::<u64>::new(limit));
    let stop = Arc::new(AtomicBool::new(false));
    let watcher = {
        let (cache, stop) = (Arc::clone(&cache), Arc::clone(&stop));
        thread::spawn(move || {
            while !stop.load(SeqCst) {
                assert!(cache.stats().bytes <= limit, "over the budget");
            }
        })
    };
    let workers: Vec<_> = (0..6)
        .map(|seed| {
            let cache = Arc::clone(&cache);
            thread::spawn(move || {
                let mut random = Random::new(seed);
                for _ in 0..20_000 {
                    let key = random.word() % 200;
                    let len = random.of(0..3000);
                    match random.of(0..4) {
                        0 => drop(cache.insert(key, vec![key.to_le_bytes()[0]; len].into(), Retain::Codes)),
                        1 => drop(cache.insert(key, vec![key.to_le_bytes()[0]; len / 8].into(), Retain::Parameters)),
                        2 => cache.served(&key, len),
                        _ => {
                            let value = cache.get(&key);
                            assert!(value.iter().all(|v| v.iter().all(|b| *b == key.to_le_bytes()[0])));
                        }
                    }
                }
            })
        })
        .collect();
    workers.into_iter().for_each(|worker| worker.join().unwrap());
    stop.store(true, SeqCst);
    watcher.join().unwrap();
    assert_eq!(cache.validate(), Ok(()));
    assert!(cache.stats().evictions > 0 && cache.stats().hits > 0);
}

#[derive(Clone, Debug, PartialEq)]
enum Failed {
    Abandoned,
    Disk,
}

impl From<Abandoned> for Failed {
    fn from(_: Abandoned) -> Self {
        Self::Abandoned
    }
}

type Toy = Flights<u32, u32, Failed>;

#[test]
fn one_computes_and_all_are_told() {
    let flights = Arc::<Toy>::default();
    let (leaders, told, start) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)), Barrier::new(8));
    let ticket = Mutex::new(None);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                start.wait();
                let told = Arc::clone(&told);
                let then = move |outcome| {
                    told.fetch_add(usize::from(outcome == Ok(7)), SeqCst);
                };
                if let Some(mine) = flights.join(1, Box::new(then)) {
                    leaders.fetch_add(1, SeqCst);
                    *ticket.lock().unwrap() = Some(mine);
                }
            });
        }
    });
    assert_eq!((leaders.load(SeqCst), told.load(SeqCst), flights.len()), (1, 0, 1));
    assert!(flights.lead(1).is_none(), "somebody leads");
    ticket.into_inner().unwrap().unwrap().finish(&Ok(7));
    assert_eq!((told.load(SeqCst), flights.len()), (8, 0));
}

#[test]
fn failures_reach_everybody_and_stay_nowhere() {
    let flights = Arc::<Toy>::default();
    let (tell, told) = channel();
    let ask = || {
        let tell = tell.clone();
        flights.join(1, Box::new(move |outcome| tell.send(outcome).unwrap_or(())))
    };
    let ticket = ask().unwrap();
    assert!(ask().is_none());
    ticket.finish(&Err(Failed::Disk));
    assert_eq!([told.recv(), told.recv()], [Ok(Err(Failed::Disk)), Ok(Err(Failed::Disk))]);
    let ticket = ask().unwrap();
    let died = thread::spawn(move || {
        let _held = ticket;
        panic!("planted");
    });
    assert!(died.join().is_err());
    assert_eq!(told.recv(), Ok(Err(Failed::Abandoned)));
    assert!(flights.lead(1).unwrap().withdraw().is_none() && flights.is_empty(), "nobody waits");
    let ticket = flights.lead(1).unwrap();
    assert!(ask().is_none());
    ticket.withdraw().unwrap().finish(&Ok(4));
    assert_eq!(told.recv(), Ok(Ok(4)), "somebody waits");
    ask().unwrap().finish(&Ok(3));
    assert_eq!(told.recv(), Ok(Ok(3)), "a later one works");
    assert!(flights.is_empty());
}

#[test]
fn a_reader_that_panics_does_not_silence_the_next() {
    let flights = Arc::<Toy>::default();
    let (tell, told) = channel();
    let ticket = flights.join(1, Box::new(|_| panic!("planted"))).unwrap();
    assert!(flights.join(1, Box::new(move |outcome| tell.send(outcome).unwrap_or(()))).is_none());
    ticket.finish(&Ok(1));
    assert_eq!(told.recv(), Ok(Ok(1)));
}
