//! Open files and directories.
//!
//! A handle keeps the view that it was opened on, and with it the backing files of passthrough: after
//! another view took over, its reads go on as if nothing had happened.

use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use fuser::FileHandle;

use super::{
    directory::{Seen, Slot},
    generation::Generation,
};

/// What is open.
#[derive(Debug)]
pub(super) enum Handle {
    /// A directory of a view.
    Directory { generation: Arc<Generation>, node: u32 },
    /// The root of many views, as it was when it was opened.
    Views(Vec<(Arc<Slot>, Seen)>),
    /// The hidden directory in the root of this generation.
    Hidden(u32),
    /// A file of a view.
    File { generation: Arc<Generation>, node: u32 },
    /// What a live file said when it was opened.
    Live(Vec<u8>),
}

/// All open handles of a mount.
#[derive(Debug, Default)]
pub(super) struct Handles {
    last: AtomicU64,
    open: RwLock<HashMap<u64, Arc<Handle>>>,
}

impl Handles {
    pub(super) fn add(&self, handle: Handle) -> FileHandle {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        self.open.write().unwrap_or_else(PoisonError::into_inner).insert(number, Arc::new(handle));
        FileHandle(number)
    }

    pub(super) fn get(&self, number: FileHandle) -> Option<Arc<Handle>> {
        self.open.read().unwrap_or_else(PoisonError::into_inner).get(&number.0).cloned()
    }

    pub(super) fn remove(&self, number: FileHandle) {
        let removed = self.open.write().unwrap_or_else(PoisonError::into_inner).remove(&number.0);
        // Dropped here, outside of the lock: with the last handle of an old view its backing files are
        // closed, by system calls.
        drop(removed);
    }

    /// Numbers of the views that files are open of, once for each file; live ones and directories do not count.
    pub(super) fn files(&self) -> Vec<u32> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let of = |handle: &Arc<Handle>| match handle.as_ref() {
            Handle::File { generation, .. } => Some(generation.number),
            _ => None,
        };
        open.values().filter_map(of).collect()
    }
}
