//! The views of a mount by their numbers, for as long as somebody keeps them.

use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError, RwLock, Weak,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use super::{generation::Generation, show::Shown};

#[derive(Debug)]
pub(super) struct Registry {
    /// Called after plans were given up.
    pub(super) released: fn(),
    /// The last one that was given; none is given twice.
    number: AtomicU32,
    views: RwLock<HashMap<u32, Weak<Generation>>>,
}

impl Registry {
    pub(super) fn new(released: fn()) -> Self {
        Self { released, number: AtomicU32::new(0), views: RwLock::default() }
    }

    /// From 1 on: the first node of view 0 would have the root's inode number.
    pub(super) fn next_number(&self) -> u32 {
        self.number.fetch_add(1, Relaxed) + 1
    }

    /// From now on the view is found by its number.
    pub(super) fn add(&self, number: u32, is_root: bool, shown: Shown) -> Arc<Generation> {
        let generation = Arc::new(Generation::new(number, is_root, shown));
        let mut views = self.views.write().unwrap_or_else(PoisonError::into_inner);
        views.retain(|_, view| view.strong_count() > 0);
        views.insert(number, Arc::downgrade(&generation));
        generation
    }

    pub(super) fn get(&self, number: u32) -> Option<Arc<Generation>> {
        self.views.read().unwrap_or_else(PoisonError::into_inner).get(&number)?.upgrade()
    }

    /// Every view in memory: shown ones, and earlier ones that somebody still uses.
    pub(super) fn all(&self) -> Vec<Arc<Generation>> {
        let views = self.views.read().unwrap_or_else(PoisonError::into_inner);
        views.values().filter_map(Weak::upgrade).collect()
    }
}
