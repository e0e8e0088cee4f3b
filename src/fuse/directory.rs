//! Many views under one root: which are listed, and which are in memory.
//!
//! A view that nobody has open costs its name and a few figures: its plan is given up after a while ([`KEPT`],
//! [`KEPT_BYTES`]) and made again, the same, when somebody comes back. What always holds: plans are made one at a time,
//! by threads of their own and with no lock that a request needs; whoever waits for one is answered after [`PATIENCE`]; a
//! view keeps the number that its inodes carry.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt, io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, Weak},
    thread,
    time::{Duration, Instant, SystemTime},
};

use fuser::Errno;

use super::{
    generation::Generation,
    registry::Registry,
    show::{Catalog, Named, NoView, Shown},
};

/// Views that stay in memory without an open file.
const KEPT: usize = 8;

/// Bytes that the plans of these may take together, about; one is kept whatever it takes.
const KEPT_BYTES: usize = 24 << 20;

/// When a request that waits for a plan is answered with an error. Plans take milliseconds; a source that hangs takes
/// longer.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Directory {
    catalog: Arc<dyn Catalog>,
    views: Arc<Registry>,
    slots: RwLock<BTreeMap<String, Arc<Slot>>>,
    /// Kept in memory, the last one used in front.
    recent: Mutex<VecDeque<Arc<Generation>>>,
    /// Held by who makes a plan: many at once would take the memory of many.
    planning: Mutex<()>,
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

/// What becomes of a request that needs a view.
type Then = Box<dyn FnOnce(Result<Arc<Generation>, Errno>) + Send>;

#[derive(Default)]
struct State {
    generation: Weak<Generation>,
    /// Whether a thread is making it.
    is_being_made: bool,
    /// Whether a thread looks at the time that it takes.
    is_timed: bool,
    /// Whether there never will be a view.
    is_refused: bool,
    waiting: Vec<Then>,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("waiting", &self.waiting.len()).finish_non_exhaustive()
    }
}

/// What a name leads to.
pub(super) enum Found {
    View(Arc<Slot>),
    Link(Arc<Slot>),
}

impl Directory {
    /// A directory whose first views were made once.
    ///
    /// # Errors
    /// Why one of them cannot be made.
    pub(super) fn new(catalog: Arc<dyn Catalog>, views: &Arc<Registry>) -> Result<Arc<Self>, String> {
        let (slots, recent, planning) = (RwLock::default(), Mutex::default(), Mutex::default());
        let this = Self { catalog, views: Arc::clone(views), slots, recent, planning };
        for name in this.catalog.names() {
            let (NoView::Refused(why) | NoView::Stale(why) | NoView::Failed(why)) = match this.catalog.open(&name) {
                Ok(shown) => {
                    this.take(&this.slot(&name), shown);
                    continue;
                }
                Err(none) => none,
            };
            return Err(format!("{name}: {why}"));
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
        let (named, slot) = match self.catalog.find(name)? {
            Named::View => (Found::View as fn(Arc<Slot>) -> Found, self.slot(name)),
            Named::Link(to) => (Found::Link as fn(Arc<Slot>) -> Found, self.slot(&to)),
        };
        let is_refused = lock(&slot.state).is_refused;
        (!is_refused).then(|| named(slot))
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
        let mut state = lock(&slot.state);
        if let Some(generation) = state.generation.upgrade() {
            drop(state);
            self.touch(&generation);
            return then(Ok(generation));
        }
        state.waiting.push(Box::new(then));
        let started = slot.start(self, &mut state);
        drop(state);
        if let Err(e) = started {
            tracing::error!("{}: no thread to plan it: {e}", slot.name);
            slot.answer(Err(Errno::EIO));
        }
    }

    /// Keeps a view in memory for longer than those that were used before it.
    pub(super) fn touch(&self, generation: &Arc<Generation>) {
        let mut recent = lock(&self.recent);
        if recent.front().is_some_and(|first| Arc::ptr_eq(first, generation)) {
            return;
        }
        recent.retain(|other| !Arc::ptr_eq(other, generation));
        recent.push_front(Arc::clone(generation));
        let mut bytes = 0;
        let fits = recent.iter().take(KEPT).take_while(|view| {
            bytes += view.plan_bytes();
            bytes <= KEPT_BYTES
        });
        let kept = fits.count().max(1);
        let gone = recent.split_off(kept);
        drop(recent);
        // Outside of the lock: a plan of a large model is many pieces.
        if !gone.is_empty() {
            drop(gone);
            (self.views.released)();
        }
    }

    fn make(&self, slot: &Slot) {
        let planning = lock(&self.planning);
        let made = catch_unwind(AssertUnwindSafe(|| Ok(self.take(slot, self.catalog.open(&slot.name)?))));
        drop(planning);
        let made = made.unwrap_or_else(|_| Err(NoView::Failed("planning it panicked".to_owned())));
        let answer = made.map_err(|none| {
            let (why, errno) = match none {
                NoView::Refused(why) => (why, Errno::ENOENT),
                NoView::Stale(why) => (why, Errno::ESTALE),
                NoView::Failed(why) => (why, Errno::EIO),
            };
            tracing::warn!("no view {}: {why}", slot.name);
            lock(&slot.state).is_refused = errno.code() == libc::ENOENT;
            errno
        });
        slot.answer(answer);
    }

    fn take(&self, slot: &Slot, shown: Shown) -> Arc<Generation> {
        let generation = self.views.add(slot.number, false, shown);
        slot.seen.get_or_init(|| generation.seen());
        lock(&slot.state).generation = Arc::downgrade(&generation);
        self.touch(&generation);
        generation
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

    /// Has a thread make the view and another one look at the clock, unless there are such.
    fn start(self: &Arc<Self>, directory: &Arc<Directory>, state: &mut State) -> io::Result<()> {
        if !state.is_timed {
            let slot = Arc::clone(self);
            thread::Builder::new().name("view-wait".into()).spawn(move || slot.watch())?;
            state.is_timed = true;
        }
        if !state.is_being_made {
            let (slot, directory) = (Arc::clone(self), Arc::clone(directory));
            thread::Builder::new().name("view-plan".into()).spawn(move || directory.make(&slot))?;
            state.is_being_made = true;
        }
        Ok(())
    }

    /// Answers everybody who waits.
    fn answer(&self, answer: Result<Arc<Generation>, Errno>) {
        let mut state = lock(&self.state);
        let waiting = std::mem::take(&mut state.waiting);
        state.is_being_made = false;
        drop(state);
        self.changed.notify_all();
        for then in waiting {
            then(answer.clone());
        }
    }

    /// Gives up those who wait when the time is over; the plan may come yet, for others.
    fn watch(&self) {
        let begun = Instant::now();
        let mut state = lock(&self.state);
        while let Some(left) = PATIENCE.checked_sub(begun.elapsed()).filter(|_| state.is_being_made) {
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.is_timed = false;
        // A plan that has come answers its own.
        let late = if state.is_being_made { std::mem::take(&mut state.waiting) } else { Vec::new() };
        drop(state);
        if !late.is_empty() {
            tracing::error!("{}: no plan within {} s", self.name, PATIENCE.as_secs());
        }
        for then in late {
            then(Err(Errno::EIO));
        }
    }
}

impl Generation {
    fn seen(&self) -> Seen {
        let (bytes, files) = self.totals();
        Seen { directories: self.directories(0), modified: self.modified(0), bytes, files }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
