//! What the threads of a mount share: the views, the open handles, and how names expire.

use std::{
    sync::{
        Arc, PoisonError, RwLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use fuser::{BackingId, FopenFlags, ReplyOpen};

use crate::view::View;

use super::{
    attr::Owner,
    generation::Generation,
    handles::{Handle, Handles},
    live::Facts,
};

/// How long the kernel remembers that a name is absent, where all names can be expired at once.
const ABSENT_LONG: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The same where they cannot.
const ABSENT_SHORT: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) owner: Owner,
    pub(super) started: SystemTime,
    pub(super) handles: Handles,
    views: RwLock<Views>,
    passthrough: AtomicBool,
    epochs: AtomicBool,
}

#[derive(Debug)]
struct Views {
    current: Arc<Generation>,
    /// Of earlier views only those that somebody still uses.
    earlier: Vec<Weak<Generation>>,
}

impl Shared {
    pub(super) fn new(view: Arc<View>, facts: Arc<dyn Facts>, owner: Owner, passthrough: bool) -> Self {
        let current = Arc::new(Generation::new(0, view, facts));
        Self {
            owner,
            started: SystemTime::now(),
            handles: Handles::default(),
            views: RwLock::new(Views { current, earlier: Vec::new() }),
            passthrough: AtomicBool::new(passthrough),
            epochs: AtomicBool::new(false),
        }
    }

    pub(super) fn current(&self) -> Arc<Generation> {
        Arc::clone(&self.views.read().unwrap_or_else(PoisonError::into_inner).current)
    }

    pub(super) fn generation(&self, number: u32) -> Option<Arc<Generation>> {
        let views = self.views.read().unwrap_or_else(PoisonError::into_inner);
        if views.current.number == number {
            return Some(Arc::clone(&views.current));
        }
        views.earlier.iter().filter_map(Weak::upgrade).find(|generation| generation.number == number)
    }

    /// Shows another view from now on and returns the one that was shown.
    pub(super) fn replace(&self, view: Arc<View>, facts: Arc<dyn Facts>) -> Arc<Generation> {
        let mut views = self.views.write().unwrap_or_else(PoisonError::into_inner);
        let next = Arc::new(Generation::new(views.current.number + 1, view, facts));
        let last = std::mem::replace(&mut views.current, next);
        views.earlier.retain(|generation| generation.strong_count() > 0);
        views.earlier.push(Arc::downgrade(&last));
        last
    }

    /// Answers the opening of a file: the kernel reads its backing file by itself, or asks us where there
    /// is none.
    pub(super) fn opened(&self, generation: Arc<Generation>, node: u32, backing: Option<&BackingId>, reply: ReplyOpen) {
        let handle = self.handles.add(Handle::File { generation, node });
        match backing {
            None => reply.opened(handle, FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH),
            Some(backing) => reply.opened_passthrough(handle, FopenFlags::FOPEN_NOFLUSH, backing),
        }
    }

    /// Whether files are handed to the kernel.
    pub(super) fn passes(&self) -> bool {
        self.passthrough.load(Ordering::Relaxed)
    }

    pub(super) fn pass_nothing(&self) {
        self.passthrough.store(false, Ordering::Relaxed);
    }

    /// Whether the kernel can expire all names at once.
    pub(super) fn has_epochs(&self) -> bool {
        self.epochs.load(Ordering::Relaxed)
    }

    pub(super) fn set_epochs(&self, known: bool) {
        self.epochs.store(known, Ordering::Relaxed);
    }

    pub(super) fn absent_ttl(&self) -> Duration {
        if self.has_epochs() { ABSENT_LONG } else { ABSENT_SHORT }
    }
}
