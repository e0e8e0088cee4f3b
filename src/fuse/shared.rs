//! What the threads of a mount share: what is shown, the open handles, and how names expire.

use std::{
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use fuser::{BackingId, Errno, FopenFlags, ReplyOpen};

use super::{
    attr::Owner,
    directory::Directory,
    generation::Generation,
    handles::{Handle, Handles},
    live::Facts,
    registry::Registry,
    show::Show,
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
    pub(super) views: Arc<Registry>,
    root: RwLock<Root>,
    passthrough: AtomicBool,
    epochs: AtomicBool,
}

/// What is at the root.
#[derive(Clone, Debug)]
pub(super) enum Root {
    One(Arc<Generation>),
    Many(Arc<Directory>),
}

impl Root {
    pub(super) fn facts(&self) -> Arc<dyn Facts> {
        match self {
            Self::One(generation) => Arc::clone(&generation.facts),
            Self::Many(directory) => directory.catalog().facts(),
        }
    }

    /// The names in it that the kernel may have been told.
    pub(super) fn names(&self) -> Vec<String> {
        match self {
            Self::One(generation) => generation.children(0).map(|node| generation.name(node).to_owned()).collect(),
            Self::Many(directory) => directory.listed().iter().map(|(slot, _)| slot.name.clone()).collect(),
        }
    }
}

impl Root {
    fn new(show: Show, views: &Arc<Registry>) -> Result<Self, String> {
        Ok(match show {
            Show::One(shown) => Self::One(views.add(views.next_number(), true, shown)),
            Show::Many(catalog) => Self::Many(Directory::new(catalog, views)?),
        })
    }
}

impl Shared {
    /// Shows something for the first time.
    ///
    /// # Errors
    /// Why a view of many cannot be made.
    pub(super) fn new(show: Show, owner: Owner, passthrough: bool, released: fn()) -> Result<Self, String> {
        let views = Arc::new(Registry::new(released));
        let root = RwLock::new(Root::new(show, &views)?);
        Ok(Self {
            owner,
            started: SystemTime::now(),
            handles: Handles::default(),
            views,
            root,
            passthrough: AtomicBool::new(passthrough),
            epochs: AtomicBool::new(false),
        })
    }

    pub(super) fn root(&self) -> Root {
        self.root.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Shows something else from now on and returns what was shown.
    ///
    /// # Errors
    /// Why a view of many cannot be made; everything stays as it was then.
    pub(super) fn replace(&self, show: Show) -> Result<Root, String> {
        let next = Root::new(show, &self.views)?;
        let mut root = self.root.write().unwrap_or_else(PoisonError::into_inner);
        Ok(std::mem::replace(&mut *root, next))
    }

    /// Calls `then` with the view of a number: now where it is in memory, else from another thread.
    pub(super) fn with_view(&self, number: u32, then: impl FnOnce(Result<Arc<Generation>, Errno>) + Send + 'static) {
        let root = self.root();
        let slot = match &root {
            Root::Many(directory) => directory.numbered(number).map(|slot| (directory, slot)),
            Root::One(_) => None,
        };
        match (slot, self.views.get(number)) {
            (Some((directory, slot)), _) => directory.wake(&slot, then),
            (None, Some(generation)) => then(Ok(generation)),
            (None, None) => then(Err(Errno::ESTALE)),
        }
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
