//! Single flight: of all who ask for a missing value one computes it, the others are told.
//!
//! Nobody waits: who asks leaves a continuation. A flight ends when its [`Ticket`] is finished or
//! dropped; either way everybody is told, outside the lock, and nothing of it stays behind.
//!
//! Knows neither the cache nor how a value is computed.

use std::{
    collections::HashMap,
    fmt::{self, Debug},
    hash::Hash,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex},
};

use super::lock;

/// What to do with the outcome.
pub type Then<V, E> = Box<dyn FnOnce(Result<V, E>) + Send>;

/// A flight's ticket was dropped before it had an outcome: its computation panicked or was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abandoned;

/// The values that are being computed, and who waits for each.
pub struct Flights<K, V, E> {
    waiting: Mutex<HashMap<K, Vec<Then<V, E>>>>,
}

impl<K, V, E> Debug for Flights<K, V, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Flights({})", lock(&self.waiting).len())
    }
}

impl<K, V, E> Default for Flights<K, V, E> {
    fn default() -> Self {
        Self { waiting: Mutex::default() }
    }
}

impl<K, V, E> Flights<K, V, E>
where
    K: Copy + Eq + Hash,
    V: Clone,
    E: Clone + From<Abandoned>,
{
    /// Asks for the outcome of `key`. With a ticket the caller is the one who computes it.
    #[must_use = "who gets the ticket computes the value"]
    pub fn join(self: &Arc<Self>, key: K, then: Then<V, E>) -> Option<Ticket<K, V, E>> {
        let mut waiting = lock(&self.waiting);
        let first = !waiting.contains_key(&key);
        waiting.entry(key).or_default().push(then);
        first.then(|| self.ticket(key))
    }

    /// The ticket for `key` where nobody has it, for who computes ahead of any reader.
    #[must_use]
    pub fn lead(self: &Arc<Self>, key: K) -> Option<Ticket<K, V, E>> {
        let mut waiting = lock(&self.waiting);
        if waiting.contains_key(&key) {
            return None;
        }
        waiting.insert(key, Vec::new());
        Some(self.ticket(key))
    }

    fn ticket(self: &Arc<Self>, key: K) -> Ticket<K, V, E> {
        Ticket { flights: Arc::clone(self), key, open: true }
    }

    /// Number of flights under way.
    #[must_use]
    pub fn len(&self) -> usize {
        lock(&self.waiting).len()
    }

    /// Whether nothing is under way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn land(&self, key: &K, outcome: &Result<V, E>) {
        let waiting = lock(&self.waiting).remove(key).unwrap_or_default();
        for then in waiting {
            let outcome = outcome.clone();
            // One that panics must not keep the others from being told.
            if catch_unwind(AssertUnwindSafe(move || then(outcome))).is_err() {
                tracing::error!("a reader panicked on being told the outcome of a computation");
            }
        }
    }
}

/// The right and the duty to compute one value.
#[must_use = "dropping it fails everybody who waits"]
pub struct Ticket<K, V, E>
where
    K: Copy + Eq + Hash,
    V: Clone,
    E: Clone + From<Abandoned>,
{
    flights: Arc<Flights<K, V, E>>,
    key: K,
    open: bool,
}

impl<K, V, E> Debug for Ticket<K, V, E>
where
    K: Copy + Eq + Hash,
    V: Clone,
    E: Clone + From<Abandoned>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ticket")
    }
}

impl<K, V, E> Ticket<K, V, E>
where
    K: Copy + Eq + Hash,
    V: Clone,
    E: Clone + From<Abandoned>,
{
    /// Gives the ticket up where nobody waits; otherwise it comes back, for the duty stays.
    pub fn withdraw(mut self) -> Option<Self> {
        let mut waiting = lock(&self.flights.waiting);
        if waiting.get(&self.key).is_some_and(|all| !all.is_empty()) {
            drop(waiting);
            return Some(self);
        }
        waiting.remove(&self.key);
        drop(waiting);
        self.open = false;
        None
    }

    /// Tells everybody, on this thread, in the order in which they asked.
    pub fn finish(mut self, outcome: &Result<V, E>) {
        self.open = false;
        self.flights.land(&self.key, outcome);
    }
}

impl<K, V, E> Drop for Ticket<K, V, E>
where
    K: Copy + Eq + Hash,
    V: Clone,
    E: Clone + From<Abandoned>,
{
    fn drop(&mut self) {
        if self.open {
            self.flights.land(&self.key, &Err(E::from(Abandoned)));
        }
    }
}
