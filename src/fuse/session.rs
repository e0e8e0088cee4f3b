//! A served mount: from the handshake to the last reader's end.
//!
//! The session ends when the kernel says so: the mount is gone and no file of it is open. Taking the
//! mount down is [`Session::unmount`]; dropping a session takes it down too and waits a little for
//! its readers. fuser is given a descriptor that is already mounted and never mounts or unmounts.

use std::{
    ffi::OsStr,
    io,
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
    time::Duration,
};

use fuser::{Config, INodeNo, Notifier, SessionACL};
use rustix::io::Errno;

use crate::view::View;

use super::{
    Access, Error, Force, Mounted, Owner, Place,
    directory::{Seen, Slot},
    epoch::Epoch,
    filesystem::Adapter,
    readahead,
    shared::{Root, Shared},
    show::Show,
    unmount,
};

/// How long a dropped session waits for its readers.
const DROP_GRACE: Duration = Duration::from_secs(5);

/// How a mount is served.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// Owner and permissions of what is shown; nothing to others where they have no access.
    pub owner: Owner,
    /// Threads that take requests. They never encode, so a few are enough.
    pub threads: usize,
    /// The kernel's read-ahead window in bytes; 0 leaves it as it is.
    pub readahead: u64,
    /// Whether the kernel may read untouched files by itself.
    pub passthrough: bool,
    /// Whether names are expired all at once where the kernel can. For tests of the other way.
    pub epochs: bool,
}

/// A mount that is being served.
#[derive(Debug)]
pub struct Session {
    place: Place,
    shared: Arc<Shared>,
    epoch: Epoch,
    notifier: Notifier,
    end: Arc<End>,
}

/// A view among many, as a session sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ViewState {
    /// Its directory.
    pub name: String,
    /// Bytes of all its files.
    pub bytes: u64,
    /// How many they are.
    pub files: u64,
    /// How many of them are open, once for each opening.
    pub open_files: usize,
    /// Whether its plan is in memory; it is made anew when it is needed.
    pub is_awake: bool,
}

/// The end of the session's threads, to wait for.
#[derive(Debug, Default)]
struct End {
    result: Mutex<Option<io::Result<()>>>,
    came: Condvar,
}

impl Session {
    /// Serves a mount. When this returns, the mount answers.
    ///
    /// # Errors
    /// A view that cannot be made; where the handshake with the kernel fails. The mount is taken down then.
    pub fn start(mounted: Mounted, show: Show, options: &SessionOptions) -> Result<Self, Error> {
        let owner = options.owner.fenced(mounted.access, rustix::process::getuid().as_raw());
        let shared = Arc::new(Shared::new(show, owner, options.passthrough).map_err(Error::View)?);
        let device = mounted.descriptor().map_err(Error::Session)?;
        let (acl, config) = fuser_options(mounted.access, options.threads);
        let session = fuser::Session::from_fd(Adapter(Arc::clone(&shared)), device, acl, config);
        let session = session.map_err(Error::Session)?;
        let epoch = Epoch::new(&session).map_err(Error::Session)?;
        let notifier = session.notifier();
        let end = Arc::new(End::default());
        let ends = Arc::clone(&end);
        let run = move || ends.comes(session.run());
        thread::Builder::new().name("fuse-session".into()).spawn(run).map_err(Error::Session)?;
        shared.set_epochs(options.epochs && knows_epochs(&epoch));
        let place = mounted.keep();
        if let Some(device) = place.device.filter(|_| options.readahead > 0) {
            readahead::raise(device, options.readahead);
        }
        Ok(Self { place, shared, epoch, notifier, end })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Number of open files.
    #[must_use]
    pub fn open_files(&self) -> usize {
        self.shared.handles.files().len()
    }

    /// Number of files of what is shown that the kernel reads by itself.
    #[must_use]
    pub fn passed_through(&self) -> usize {
        match self.shared.root() {
            Root::One(view) => view.routes.passed(),
            Root::Many(directory) => directory.awake().map(|view| view.routes.passed()).sum(),
        }
    }

    /// The views that are listed at the root; none where a view is the root.
    #[must_use]
    pub fn views(&self) -> Vec<ViewState> {
        let Root::Many(directory) = self.shared.root() else { return Vec::new() };
        let open = self.shared.handles.files();
        let state = |(slot, seen): (Arc<Slot>, Seen)| ViewState {
            name: slot.name.clone(),
            bytes: seen.bytes,
            files: seen.files,
            open_files: open.iter().filter(|number| **number == slot.number).count(),
            is_awake: slot.awake().is_some(),
        };
        directory.listed().into_iter().map(state).collect()
    }

    /// The views in memory, earlier ones that are still read included.
    #[must_use]
    pub fn awake(&self) -> Vec<Arc<View>> {
        self.shared.views.all().iter().map(|generation| Arc::clone(generation.view())).collect()
    }

    /// Shows something else from now on. Names follow at once; open files keep what they were opened
    /// on.
    ///
    /// # Errors
    /// A view that cannot be made, and all stays as it was; where the kernel refuses to forget the old names.
    pub fn swap(&self, show: Show) -> Result<(), Error> {
        let last = self.shared.replace(show).map_err(Error::View)?;
        if self.shared.has_epochs() {
            self.epoch.advance().map_err(Error::Session)?;
        }
        let names = if self.shared.has_epochs() { Vec::new() } else { last.names() };
        drop(last);
        // A notice can wait for requests that are being answered, so it is never sent from a thread
        // that somebody waits for.
        let notifier = self.notifier.clone();
        let forget = move || expire(&notifier, &names);
        thread::Builder::new().name("fuse-expire".into()).spawn(forget).map_err(Error::Session)?;
        Ok(())
    }

    /// Takes the mount down: its name is gone when this returns, its open files work until they are
    /// closed (or fail from now on, if forced).
    ///
    /// # Errors
    /// Where the kernel or fusermount3 refuses.
    pub fn unmount(&self, force: Force) -> Result<(), Error> {
        // After the end its device number may be another mount's.
        if self.wait(Some(Duration::ZERO)) { Ok(()) } else { unmount(&self.place, force) }
    }

    /// Waits for the end of the session: the mount is gone and all files are closed. Whether it has
    /// come in time.
    #[must_use]
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        self.end.wait(timeout)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.wait(Some(Duration::ZERO)) {
            return;
        }
        if let Err(e) = self.unmount(Force::No) {
            tracing::warn!("{e}");
        }
        if !self.wait(Some(DROP_GRACE)) {
            tracing::warn!(path = %self.place.path.display(), "unmounted; files of it are still open");
        }
    }
}

impl End {
    fn comes(&self, result: io::Result<()>) {
        if let Err(e) = &result {
            tracing::error!("the FUSE session ended: {e}");
        }
        *self.result.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
        self.came.notify_all();
    }

    fn wait(&self, timeout: Option<Duration>) -> bool {
        let result = self.result.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = |result: &mut Option<io::Result<()>>| result.is_none();
        let result = match timeout {
            None => self.came.wait_while(result, waiting).unwrap_or_else(PoisonError::into_inner),
            Some(timeout) => {
                let waited = self.came.wait_timeout_while(result, timeout, waiting);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        };
        result.is_some()
    }
}

fn fuser_options(access: Access, threads: usize) -> (SessionACL, Config) {
    let acl = match access {
        Access::Owner => SessionACL::Owner,
        Access::OwnerAndRoot => SessionACL::RootAndOwner,
        Access::Everyone => SessionACL::All,
    };
    let mut config = Config::default();
    config.acl = acl;
    config.n_threads = Some(threads.max(1));
    (acl, config)
}

/// Asks by sending the notice once: nothing is cached yet that it could expire.
fn knows_epochs(epoch: &Epoch) -> bool {
    let answer = epoch.advance();
    if let Err(e) = &answer
        && e.raw_os_error() != Some(Errno::INVAL.raw_os_error())
    {
        tracing::warn!("the notice that expires names failed: {e}");
    }
    answer.is_ok()
}

/// Forgets names in the root, and the root's attributes. An offset below zero leaves data alone.
fn expire(notifier: &Notifier, names: &[String]) {
    for name in names {
        if let Err(e) = notifier.inval_entry(INodeNo::ROOT, OsStr::new(name)) {
            tracing::warn!(?name, "the kernel did not forget a name: {e}");
        }
    }
    if let Err(e) = notifier.inval_inode(INodeNo::ROOT, -1, 0) {
        tracing::warn!("the kernel did not forget the root's attributes: {e}");
    }
}
