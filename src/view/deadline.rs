//! The watchdog: whoever waits too long is told so.
//!
//! Knows only that something can expire. It is told outside its lock, on the watchdog's own thread.

use std::{
    collections::BTreeMap,
    fmt::{self, Debug},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, PoisonError, Weak},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::cache::lock;

/// What has a deadline.
pub(super) trait Expire: Send + Sync {
    /// The deadline has passed.
    fn expire(&self, after: Duration);
}

/// When it expires, and a number that makes it unique.
pub(super) type Due = (Instant, u64);

#[derive(Default)]
struct State {
    pending: BTreeMap<Due, Weak<dyn Expire>>,
    count: u64,
    stop: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

/// The thread and what it watches.
pub(super) struct Watchdog {
    shared: Arc<Shared>,
    after: Duration,
    thread: Option<JoinHandle<()>>,
}

impl Debug for Watchdog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Watchdog({:?})", self.after)
    }
}

impl Watchdog {
    pub(super) fn new(after: Duration) -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let its = Arc::clone(&shared);
        let thread = thread::Builder::new().name("deadline".to_owned()).spawn(move || watch(&its, after))?;
        Ok(Self { shared, after, thread: Some(thread) })
    }

    /// Watches from now on, until the deadline or [`forget`](Self::forget).
    pub(super) fn watch(&self, what: Weak<dyn Expire>) -> Due {
        let mut state = lock(&self.shared.state);
        state.count += 1;
        let due = (Instant::now() + self.after, state.count);
        state.pending.insert(due, what);
        let first = state.pending.len() == 1;
        drop(state);
        if first {
            self.shared.wake.notify_one();
        }
        due
    }

    pub(super) fn forget(&self, due: Due) {
        let gone = lock(&self.shared.state).pending.remove(&due);
        drop(gone);
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        lock(&self.shared.state).stop = true;
        self.shared.wake.notify_one();
        if let Some(handle) = self.thread.take()
            && handle.thread().id() != thread::current().id()
            && handle.join().is_err()
        {
            tracing::error!("the watchdog panicked");
        }
    }
}

fn watch(shared: &Shared, after: Duration) {
    while let Some(what) = next(shared) {
        let Some(what) = what.upgrade() else { continue };
        if catch_unwind(AssertUnwindSafe(move || what.expire(after))).is_err() {
            tracing::error!("a reader panicked on being told that its read timed out");
        }
    }
}

/// Waits for the next deadline to pass; `None` at the end.
fn next(shared: &Shared) -> Option<Weak<dyn Expire>> {
    let mut state = lock(&shared.state);
    loop {
        if state.stop {
            return None;
        }
        let now = Instant::now();
        state = match state.pending.first_key_value().map(|(due, _)| *due) {
            Some((at, _)) if at <= now => return state.pending.pop_first().map(|(_, what)| what),
            Some((at, _)) => shared.wake.wait_timeout(state, at - now).unwrap_or_else(PoisonError::into_inner).0,
            None => shared.wake.wait(state).unwrap_or_else(PoisonError::into_inner),
        };
    }
}
