//! Many views under one root: which are listed, and which are in memory.
//!
//! A view that nobody has open costs its name and a few figures: its plan is given up after a while ([`AWAKE`]) and
//! made again, the same, when somebody comes back. What always holds: plans are made by threads of their own, once however
//! many ask, and whoever waits is answered after [`PATIENCE`]; a view keeps the number that its inodes carry.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, Weak,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use fuser::Errno;

use super::{
    generation::Generation,
    registry::Registry,
    show::{Catalog, Named, Shown},
};

/// Views that stay in memory without an open file. Their plans are a few megabytes each where the model is large.
const AWAKE: usize = 8;

/// When a request that waits for a plan is answered with an error. Plans take milliseconds; a source that hangs takes
/// longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Requests that may wait for plans at once, each in a thread.
const MAX_WAITING: usize = 256;

#[derive(Debug)]
pub(super) struct Directory {
    catalog: Arc<dyn Catalog>,
    views: Arc<Registry>,
    slots: RwLock<BTreeMap<String, Arc<Slot>>>,
    /// Kept in memory, the last one used in front.
    recent: Mutex<VecDeque<Arc<Generation>>>,
    waiting: AtomicUsize,
}

/// The place of one view.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) name: String,
    pub(super) number: u32,
    seen: OnceLock<Seen>,
    state: Mutex<State>,
    changed: Condvar,
}

/// What is remembered of a view that was made once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub(super) directories: u32,
    pub(super) modified: SystemTime,
    pub(super) bytes: u64,
    pub(super) files: u64,
}

#[derive(Debug, Default)]
struct State {
    generation: Weak<Generation>,
    /// Whether a thread is making it.
    is_made: bool,
    /// Tries that failed so far.
    failures: u64,
}

/// What a name leads to.
pub(super) enum Found {
    View(Arc<Slot>),
    Link(Arc<Slot>),
}

impl Directory {
    /// A directory whose first views are in memory at once.
    ///
    /// # Errors
    /// Why one of them cannot be made.
    pub(super) fn new(catalog: Arc<dyn Catalog>, views: &Arc<Registry>) -> Result<Arc<Self>, String> {
        let (slots, recent, waiting) = (RwLock::default(), Mutex::default(), AtomicUsize::new(0));
        let this = Self { catalog, views: Arc::clone(views), slots, recent, waiting };
        for name in this.catalog.names() {
            let shown = this.catalog.open(&name).map_err(|why| format!("{name}: {why}"))?;
            this.take(&this.slot(&name), shown);
        }
        Ok(Arc::new(this))
    }

    pub(super) fn catalog(&self) -> &Arc<dyn Catalog> {
        &self.catalog
    }

    /// The views that are listed: those that were made once, in the order of their names.
    pub(super) fn listed(&self) -> Vec<(Arc<Slot>, Seen)> {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        slots.values().filter_map(|slot| Some((Arc::clone(slot), slot.seen()?))).collect()
    }

    /// The listed views that are in memory.
    pub(super) fn awake(&self) -> impl Iterator<Item = Arc<Generation>> {
        self.listed().into_iter().filter_map(|(slot, _)| slot.awake())
    }

    pub(super) fn find(&self, name: &str) -> Option<Found> {
        Some(match self.catalog.find(name)? {
            Named::View => Found::View(self.slot(name)),
            Named::Link(to) => Found::Link(self.slot(&to)),
        })
    }

    pub(super) fn numbered(&self, number: u32) -> Option<Arc<Slot>> {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        slots.values().find(|slot| slot.number == number).cloned()
    }

    fn slot(&self, name: &str) -> Arc<Slot> {
        let known = self.slots.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        known.unwrap_or_else(|| {
            let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
            let new = || Arc::new(Slot::new(name, self.views.next_number()));
            Arc::clone(slots.entry(name.to_owned()).or_insert_with(new))
        })
    }

    /// Calls `then` with the view of a place: now where it is in memory, else from another thread.
    pub(super) fn wake(
        self: &Arc<Self>,
        slot: &Arc<Slot>,
        then: impl FnOnce(Result<Arc<Generation>, Errno>) + Send + 'static,
    ) {
        if let Some(generation) = slot.awake() {
            self.touch(&generation);
            return then(Ok(generation));
        }
        let Some(waiter) = Waiter::begin(self) else { return then(Err(Errno::EAGAIN)) };
        let slot = Arc::clone(slot);
        // Where no thread can be had `then` is dropped, and with it the reply: that answers EIO.
        let wait = move || {
            let generation = slot.wait(&waiter.0);
            then(generation);
        };
        if let Err(e) = thread::Builder::new().name("view-wait".into()).spawn(wait) {
            tracing::error!("a reader of a view could not wait for it: {e}");
        }
    }

    /// Keeps a view in memory for longer than those that were used before it.
    fn touch(&self, generation: &Arc<Generation>) {
        let mut recent = lock(&self.recent);
        if recent.front().is_some_and(|first| Arc::ptr_eq(first, generation)) {
            return;
        }
        recent.retain(|other| !Arc::ptr_eq(other, generation));
        recent.push_front(Arc::clone(generation));
        let kept = recent.len().min(AWAKE);
        let gone = recent.split_off(kept);
        drop(recent);
        // Outside of the lock: a plan of a large model is many pieces.
        drop(gone);
    }

    fn make(&self, slot: &Slot) {
        let made = catch_unwind(AssertUnwindSafe(|| self.catalog.open(&slot.name)));
        match made.unwrap_or_else(|_| Err("planning it panicked".to_owned())) {
            Ok(shown) => self.take(slot, shown),
            Err(why) => {
                tracing::warn!("no view {}: {why}", slot.name);
                let mut state = lock(&slot.state);
                (state.is_made, state.failures) = (false, state.failures + 1);
            }
        }
        slot.changed.notify_all();
    }

    fn take(&self, slot: &Slot, shown: Shown) {
        let generation = self.views.add(slot.number, false, shown);
        slot.seen.get_or_init(|| generation.seen());
        self.touch(&generation);
        let mut state = lock(&slot.state);
        (state.is_made, state.generation) = (false, Arc::downgrade(&generation));
    }
}

impl Slot {
    fn new(name: &str, number: u32) -> Self {
        let (seen, state, changed) = (OnceLock::new(), Mutex::default(), Condvar::new());
        Self { name: name.to_owned(), number, seen, state, changed }
    }

    pub(super) fn seen(&self) -> Option<Seen> {
        self.seen.get().copied()
    }

    pub(super) fn awake(&self) -> Option<Arc<Generation>> {
        lock(&self.state).generation.upgrade()
    }

    /// Waits for the view, which is made unless somebody is at it.
    fn wait(self: &Arc<Self>, directory: &Arc<Directory>) -> Result<Arc<Generation>, Errno> {
        // A name that never led to a view means nothing; one that did leads to a source that has changed.
        let refused = || if self.seen.get().is_some() { Errno::ESTALE } else { Errno::ENOENT };
        let (begun, mut state) = (Instant::now(), lock(&self.state));
        let failures = state.failures;
        loop {
            if let Some(generation) = state.generation.upgrade() {
                return Ok(generation);
            }
            if state.failures != failures {
                return Err(refused());
            }
            let Some(left) = PATIENCE.checked_sub(begun.elapsed()) else {
                tracing::error!("{}: no plan within {} s", self.name, PATIENCE.as_secs());
                return Err(Errno::EIO);
            };
            if !state.is_made {
                self.start(directory).map_err(|e| Errno::from_i32(e.raw_os_error().unwrap_or(libc::EIO)))?;
                state.is_made = true;
            }
            let waited = self.changed.wait_timeout_while(state, left, |state| state.is_made);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Has a thread make the view.
    fn start(self: &Arc<Self>, directory: &Arc<Directory>) -> io::Result<()> {
        let (slot, directory) = (Arc::clone(self), Arc::clone(directory));
        let make = move || directory.make(&slot);
        thread::Builder::new().name("view-plan".into()).spawn(make).map(drop)
    }
}

impl Generation {
    fn seen(&self) -> Seen {
        let (bytes, files) = self.totals();
        Seen { directories: self.directories(0), modified: self.modified(0), bytes, files }
    }
}

/// One of the requests that wait for a plan.
struct Waiter(Arc<Directory>);

impl Waiter {
    /// `None` where there are too many.
    fn begin(directory: &Arc<Directory>) -> Option<Self> {
        let this = Self(Arc::clone(directory));
        (directory.waiting.fetch_add(1, Relaxed) < MAX_WAITING).then_some(this)
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
