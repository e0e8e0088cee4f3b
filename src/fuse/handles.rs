//! Open files and directories.
//!
//! A handle keeps the view that it was opened on: after another view took over, its reads go on as if
//! nothing had happened. Backing files of passthrough are kept here too, one for each inode, for as
//! long as some handle uses it.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use fuser::{BackingId, FileHandle, INodeNo};

use super::generation::Generation;

/// What is open.
#[derive(Debug)]
pub(super) enum Handle {
    /// A directory of a view.
    Directory { generation: Arc<Generation>, node: u32 },
    /// The hidden directory.
    Hidden,
    /// A file of a view; `backing` is its passthrough, where it has one.
    File { generation: Arc<Generation>, node: u32, _backing: Option<Arc<BackingId>> },
    /// What a live file said when it was opened.
    Live(Vec<u8>),
}

/// All open handles of a mount.
#[derive(Debug, Default)]
pub(super) struct Handles {
    last: AtomicU64,
    open: RwLock<HashMap<u64, Arc<Handle>>>,
    backings: Mutex<HashMap<INodeNo, Backing>>,
}

/// How the reads of an inode reach its bytes, decided at its first opening and for life: the kernel
/// refuses to mix the two.
#[derive(Debug)]
enum Backing {
    /// From the daemon.
    Served,
    /// From this file, by the kernel alone.
    Passed(Weak<BackingId>),
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
        // Dropped here, outside of the lock: a backing file is closed by a system call.
        drop(removed);
    }

    /// Number of open files, live ones and directories not counted.
    pub(super) fn files(&self) -> usize {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.values().filter(|handle| matches!(handle.as_ref(), Handle::File { .. })).count()
    }

    /// The backing file of an inode; `open` makes one where none is in use. `Ok(None)` where the
    /// inode is served by the daemon.
    ///
    /// # Errors
    /// Where an inode that was passed through has lost its file.
    pub(super) fn backing(
        &self,
        inode: INodeNo,
        open: impl FnOnce() -> Option<BackingId>,
    ) -> Result<Option<Arc<BackingId>>, LostBacking> {
        let mut backings = self.backings();
        let known = match backings.get(&inode) {
            Some(Backing::Served) => return Ok(None),
            Some(Backing::Passed(backing)) => Some(backing.upgrade()),
            None => None,
        };
        if let Some(Some(backing)) = known {
            return Ok(Some(backing));
        }
        match (open().map(Arc::new), known) {
            (Some(backing), _) => {
                backings.insert(inode, Backing::Passed(Arc::downgrade(&backing)));
                Ok(Some(backing))
            }
            (None, None) => {
                backings.insert(inode, Backing::Served);
                Ok(None)
            }
            (None, Some(_)) => Err(LostBacking),
        }
    }

    /// Number of inodes that are passed through.
    pub(super) fn passed(&self) -> usize {
        self.backings().values().filter(|b| matches!(b, Backing::Passed(_))).count()
    }

    fn backings(&self) -> MutexGuard<'_, HashMap<INodeNo, Backing>> {
        self.backings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The source file is no longer the one that was passed through.
#[derive(Clone, Copy, Debug)]
pub(super) struct LostBacking;
