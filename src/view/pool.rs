//! The worker threads of an engine, what they do first, and how much memory their work may take.
//!
//! Jobs wait in three lanes: reads that wait for a reply buffer, tiles and source bytes that a reader
//! waits for, and read-ahead, which runs only when nothing else is waiting. Every job says how many
//! bytes it needs and gets a [`Permit`] for them; what does not fit waits, and a job larger than the
//! whole allowance runs alone. Replies and work have allowances of their own: a read holds its
//! buffer while it waits for tiles, and tiles wait for nobody, so that neither can lock the other out.
//!
//! A job that panics is logged; the thread goes on.

use std::{
    collections::VecDeque,
    fmt::{self, Debug},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread::{self, JoinHandle},
};

use crate::cache::lock;

/// Reply buffers of reads that wait. With [`WORK_BYTES`] and what idle buffers keep, under the
/// 64 MiB that a process may take beside its cache.
const REPLY_BYTES: usize = 12 << 20;
/// Elements and parts of the tiles in the making, and source bytes on their way to a reader.
const WORK_BYTES: usize = 32 << 20;

/// Read-ahead that may queue up; more would be stale before its turn.
const AHEAD_JOBS: usize = 256;

/// What a job is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// Beginning a read; the permit is for its reply buffer.
    Reply,
    /// Work that a reader waits for.
    Demand,
    /// Work ahead of all readers.
    Ahead,
}

impl Lane {
    /// First come first.
    const ALL: [Self; 3] = [Self::Reply, Self::Demand, Self::Ahead];

    fn allowance(self) -> Allowance {
        match self {
            Self::Reply => Allowance::Replies,
            Self::Demand | Self::Ahead => Allowance::Work,
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Allowance {
    Replies,
    Work,
}

impl Allowance {
    fn limit(self) -> usize {
        match self {
            Self::Replies => REPLY_BYTES,
            Self::Work => WORK_BYTES,
        }
    }
}

/// What a job does. It may keep its permit longer than it runs.
pub(super) type Run = Box<dyn FnOnce(Permit) + Send>;

struct Job {
    cost: usize,
    run: Run,
}

#[derive(Default)]
struct State {
    lanes: [VecDeque<Job>; 3],
    in_use: [usize; 2],
    stop: bool,
}

impl State {
    fn admit(&mut self, allowance: Allowance, cost: usize) -> bool {
        let in_use = &mut self.in_use[allowance as usize];
        let fits = *in_use == 0 || in_use.saturating_add(cost) <= allowance.limit();
        if fits {
            *in_use += cost;
        }
        fits
    }

    /// The next job that fits. Nothing overtakes a demand that does not.
    fn next(&mut self) -> Option<(Lane, Job)> {
        for lane in Lane::ALL {
            let Some(cost) = self.lanes[lane as usize].front().map(|job| job.cost) else { continue };
            if self.admit(lane.allowance(), cost) {
                return self.lanes[lane as usize].pop_front().map(|job| (lane, job));
            }
            if lane == Lane::Demand {
                break;
            }
        }
        None
    }
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

/// The threads. Dropping it ends them after their present job.
pub(super) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({} threads)", self.threads.len())
    }
}

/// Bytes that its holder may use.
pub(super) struct Permit {
    shared: Arc<Shared>,
    allowance: Allowance,
    cost: usize,
}

impl Drop for Permit {
    fn drop(&mut self) {
        lock(&self.shared.state).in_use[self.allowance as usize] -= self.cost;
        // All of them: several small jobs may fit where a large one was.
        self.shared.wake.notify_all();
    }
}

impl Pool {
    /// Starts `threads` threads, at least one.
    pub(super) fn new(threads: usize) -> io::Result<Self> {
        let mut pool = Self { shared: Arc::default(), threads: Vec::new() };
        for i in 0..threads.max(1) {
            let shared = Arc::clone(&pool.shared);
            pool.threads.push(thread::Builder::new().name(format!("tiles-{i}")).spawn(move || work(&shared))?);
        }
        Ok(pool)
    }

    /// Queues a job. Only read-ahead is ever refused.
    pub(super) fn push(&self, lane: Lane, cost: usize, run: Run) -> bool {
        let mut state = lock(&self.shared.state);
        if lane == Lane::Ahead && state.lanes[lane as usize].len() >= AHEAD_JOBS {
            return false;
        }
        state.lanes[lane as usize].push_back(Job { cost, run });
        drop(state);
        self.shared.wake.notify_one();
        true
    }

    /// A permit without waiting, where one is free and nobody waits for it.
    pub(super) fn try_permit(&self, lane: Lane, cost: usize) -> Option<Permit> {
        let mut state = lock(&self.shared.state);
        let free = state.lanes[lane as usize].is_empty() && state.admit(lane.allowance(), cost);
        drop(state);
        free.then(|| self.shared.permit(lane, cost))
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        lock(&self.shared.state).stop = true;
        self.shared.wake.notify_all();
        for handle in self.threads.drain(..) {
            // The last owner may be a job, on one of the threads: it cannot wait for itself.
            if handle.thread().id() != thread::current().id() && handle.join().is_err() {
                tracing::error!("a worker thread panicked");
            }
        }
    }
}

impl Shared {
    fn permit(self: &Arc<Self>, lane: Lane, cost: usize) -> Permit {
        Permit { shared: Arc::clone(self), allowance: lane.allowance(), cost }
    }
}

fn work(shared: &Arc<Shared>) {
    while let Some((lane, job)) = next(shared) {
        let permit = shared.permit(lane, job.cost);
        if catch_unwind(AssertUnwindSafe(move || (job.run)(permit))).is_err() {
            tracing::error!("a job panicked; its thread goes on");
        }
    }
}

/// Waits for a job; `None` when the pool is to end.
fn next(shared: &Shared) -> Option<(Lane, Job)> {
    let mut state = lock(&shared.state);
    loop {
        if state.stop {
            return None;
        }
        if let Some(found) = state.next() {
            return Some(found);
        }
        state = shared.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn demand_goes_first_and_a_panic_ends_no_thread() {
        let pool = Pool::new(1).expect("a thread starts");
        let (started, is_started) = channel();
        let (release, released) = channel::<()>();
        pool.push(
            Lane::Demand,
            1,
            Box::new(move |_| {
                started.send(()).ok();
                released.recv().ok();
                panic!("planted");
            }),
        );
        is_started.recv().expect("the first job runs");
        let (done, order) = channel();
        for (lane, name) in [(Lane::Ahead, "ahead"), (Lane::Demand, "demand"), (Lane::Reply, "reply")] {
            let done = done.clone();
            assert!(pool.push(lane, 60, Box::new(move |_| done.send(name).unwrap_or(()))));
        }
        assert!((1..AHEAD_JOBS).all(|_| pool.push(Lane::Ahead, 60, Box::new(|_| ()))));
        assert!(!pool.push(Lane::Ahead, 60, Box::new(|_| ())), "read-ahead is bounded");
        release.send(()).expect("the first job waits");
        let order: Vec<_> = (0..3).map(|_| order.recv().expect("the thread lives")).collect();
        assert_eq!(order, ["reply", "demand", "ahead"]);
    }

    #[test]
    fn permits_bound_what_is_under_way() {
        let pool = Pool::new(2).expect("threads start");
        let first = pool.try_permit(Lane::Reply, REPLY_BYTES * 2).expect("the largest runs alone");
        assert!(pool.try_permit(Lane::Reply, 1).is_none());
        let (done, is_done) = channel();
        pool.push(Lane::Reply, 1, Box::new(move |_| done.send(()).unwrap_or(())));
        assert!(is_done.recv_timeout(std::time::Duration::from_millis(50)).is_err(), "waits for the first");
        drop(first);
        is_done.recv_timeout(std::time::Duration::from_secs(20)).expect("runs then");
    }
}
