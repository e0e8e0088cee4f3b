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

use super::generation::Generation;

/// What is open.
#[derive(Debug)]
pub(super) enum Handle {
    /// A directory of a view.
    Directory { generation: Arc<Generation>, node: u32 },
    /// The hidden directory.
    Hidden,
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

    /// Number of open files, live ones and directories not counted.
    pub(super) fn files(&self) -> usize {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.values().filter(|handle| matches!(handle.as_ref(), Handle::File { .. })).count()
    }
}
