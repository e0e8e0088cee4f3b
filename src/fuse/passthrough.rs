//! Passthrough: files that the kernel reads by itself, untouched ones of the source and finished ones
//! of the store.
//!
//! Which way an inode goes is decided at its first opening and for life, since the kernel refuses to
//! mix the two (a file that is finished later goes the other way in the next mount); the decisions go
//! with their view. What always holds: source and store are touched only by threads of their own and with no lock held, and whoever waits for a decision is answered after
//! [`PATIENCE`]. A disk that hangs or fails, and a file that has changed by then, is served by us, where a read
//! has a deadline and an error of its own.

use std::{
    collections::HashMap,
    io,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
        mpsc,
    },
    thread,
    time::Duration,
};

use fuser::{BackingId, ReplyOpen};

use crate::view::View;

use super::{generation::Generation, shared::Shared};

/// A disk opens a file in milliseconds; past this the kernel's help is not worth the wait.
const PATIENCE: Duration = Duration::from_secs(1);

/// Files being opened at once. Where a disk hangs their threads stay; no more are added.
const MAX_OPENINGS: usize = 64;

/// The decisions of one view.
#[derive(Debug, Default)]
pub(super) struct Routes {
    routes: Mutex<HashMap<u32, Route>>,
    passed: AtomicUsize,
    openings: Arc<AtomicUsize>,
}

/// How the reads of a file reach its bytes.
#[derive(Debug)]
enum Route {
    /// Not yet known; these wait to hear.
    Asked(Vec<ReplyOpen>),
    /// From the daemon.
    Served,
    /// From this file, by the kernel alone.
    Passed(Arc<BackingId>),
}

/// What is known of a file that is being opened.
enum Known {
    /// How it goes: from the daemon where there is no backing file.
    Decided(ReplyOpen, Option<Arc<BackingId>>),
    /// Somebody else is finding out, and takes the reply along.
    Pending,
    /// Nothing: find out. The reply waits.
    Nothing,
}

impl Routes {
    /// Number of files that the kernel reads by itself.
    pub(super) fn passed(&self) -> usize {
        self.passed.load(Relaxed)
    }

    fn ask(&self, node: u32, reply: ReplyOpen) -> Known {
        let mut routes = self.lock();
        match routes.get_mut(&node) {
            Some(Route::Served) => Known::Decided(reply, None),
            Some(Route::Passed(backing)) => Known::Decided(reply, Some(Arc::clone(backing))),
            Some(Route::Asked(waiting)) => {
                waiting.push(reply);
                Known::Pending
            }
            None => {
                routes.insert(node, Route::Asked(vec![reply]));
                Known::Nothing
            }
        }
    }

    /// Those who wait so far; others may follow until the decision.
    fn waiting(&self, node: u32) -> Vec<ReplyOpen> {
        match self.lock().get_mut(&node) {
            Some(Route::Asked(waiting)) => std::mem::take(waiting),
            _ => Vec::new(),
        }
    }

    /// Decides; those who have come to wait since.
    fn decide(&self, node: u32, backing: Option<Arc<BackingId>>) -> Vec<ReplyOpen> {
        self.passed.fetch_add(usize::from(backing.is_some()), Relaxed);
        let route = backing.map_or(Route::Served, Route::Passed);
        match self.lock().insert(node, route) {
            Some(Route::Asked(waiting)) => waiting,
            _ => Vec::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Route>> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers the opening of a file of the view that may lie in a local one whole, now or later.
pub(super) fn open(shared: &Arc<Shared>, generation: Arc<Generation>, node: u32, file: usize, reply: ReplyOpen) {
    match generation.routes.ask(node, reply) {
        Known::Decided(reply, backing) => shared.opened(generation, node, backing.as_deref(), reply),
        Known::Pending => {}
        Known::Nothing => {
            let (its, of) = (Arc::clone(shared), Arc::clone(&generation));
            let find_out = move || {
                let file = local_file(&of.routes, Arc::clone(of.view()), file);
                settle(&its, &of, node, file.as_ref());
            };
            if let Err(e) = thread::Builder::new().name("passthrough".into()).spawn(find_out) {
                tracing::debug!("no passthrough: {e}");
                settle(shared, &generation, node, None);
            }
        }
    }
}

/// Decides, and answers everybody who waits.
fn settle(shared: &Shared, generation: &Arc<Generation>, node: u32, file: Option<&OwnedFd>) {
    let waiting = generation.routes.waiting(node);
    let backing = file.zip(waiting.first()).and_then(|(file, reply)| {
        let backing = reply.open_backing(file);
        backing.inspect_err(|e| tracing::debug!("no passthrough: {e}")).ok().map(Arc::new)
    });
    let late = generation.routes.decide(node, backing.clone());
    for reply in waiting.into_iter().chain(late) {
        shared.opened(Arc::clone(generation), node, backing.as_deref(), reply);
    }
}

/// The local file behind a file of the view, where there is one and it opens in time.
fn local_file(routes: &Routes, view: Arc<View>, file: usize) -> Option<OwnedFd> {
    let openings = Opening::begin(&routes.openings)?;
    let path = view.plan().files[file].path.clone();
    let (tell, told) = mpsc::channel();
    let open = move || {
        let opened = view.local_file(file);
        drop(openings);
        // Nobody listens after the wait is over.
        drop(tell.send(opened));
    };
    let started: io::Result<_> = thread::Builder::new().name("local-open".into()).spawn(open);
    started.inspect_err(|e| tracing::debug!("no passthrough: {e}")).ok()?;
    match told.recv_timeout(PATIENCE) {
        Ok(opened) => opened,
        Err(_) => {
            tracing::warn!("{path}: did not open within {} s; not passed through", PATIENCE.as_secs());
            None
        }
    }
}

/// One of the openings that are under way.
struct Opening(Arc<AtomicUsize>);

impl Opening {
    /// `None` where there are too many.
    fn begin(openings: &Arc<AtomicUsize>) -> Option<Self> {
        let this = Self(Arc::clone(openings));
        (openings.fetch_add(1, Relaxed) < MAX_OPENINGS).then_some(this)
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
