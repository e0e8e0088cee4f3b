//! Threads that stay awake between short jobs.
//!
//! A thread that sleeps takes tens of microseconds to wake, on a virtual machine more: as long as a small
//! matrix takes. Knows no layer.

use std::{
    hint::spin_loop,
    num::NonZero,
    sync::{
        Arc, OnceLock,
        atomic::{
            AtomicBool, AtomicUsize,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    time::{Duration, Instant},
};

use rayon::Yield;

/// Whether threads are kept awake already: those of one job suffice.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// Looks for a job between two offers to other programs, and two looks at the clock.
const LOOKS: usize = 64;

/// How long threads may take to come before the work begins. One that sleeps comes within tens of microseconds.
const GATHER: Duration = Duration::from_micros(50);

/// How long a thread looks for a job in vain before it sleeps as others do.
const PATIENCE: Duration = Duration::from_micros(500);

/// Runs `work` and keeps the threads of the current rayon pool awake meanwhile: they look for jobs without
/// pause. It pays where many short jobs follow each other, as layers do, and takes the processor's time of
/// every thread of the pool. While it runs somewhere, further calls just run their work, as do all where
/// there are more threads than cores.
///
/// Waits for nobody: a thread that is busy elsewhere in the pool is left alone.
pub(crate) fn keep_awake<R>(work: impl FnOnce() -> R) -> R {
    if rayon::current_num_threads() > cores() { work() } else { keep_threads_awake(work) }
}

/// [`keep_awake`] on any number of cores.
fn keep_threads_awake<R>(work: impl FnOnce() -> R) -> R {
    let threads = rayon::current_num_threads();
    if threads == 1 || TAKEN.swap(true, Acquire) {
        return work();
    }
    let (watch, caller) = (Arc::new(Watch::default()), rayon::current_thread_index());
    let its = Arc::clone(&watch);
    rayon::spawn_broadcast(move |thread| {
        if caller != Some(thread.index()) && its.come() {
            its.look_for_jobs();
        }
    });
    let _over = Over(&watch);
    watch.gather(threads - usize::from(caller.is_some()));
    work()
}

/// Cores that there are for this program: threads beyond them would take each other's time.
fn cores() -> usize {
    static CORES: OnceLock<usize> = OnceLock::new();
    *CORES.get_or_init(|| std::thread::available_parallelism().map_or(1, NonZero::get))
}

/// What the threads of one job know of it.
#[derive(Default)]
struct Watch {
    /// Threads that have come.
    awake: AtomicUsize,
    /// The work has begun, and nobody may come any more: a thread that waits inside one of the work's own jobs
    /// would look for jobs on top of it, and the work would wait for ever for that job.
    begun: AtomicBool,
    over: AtomicBool,
}

impl Watch {
    /// Waits until the other threads have come, or for a moment.
    fn gather(&self, others: usize) {
        let start = Instant::now();
        while self.awake.load(Relaxed) < others && start.elapsed() < GATHER {
            spin_loop();
        }
        self.begun.store(true, Release);
    }

    /// Whether the thread that comes may stay.
    fn come(&self) -> bool {
        self.awake.fetch_add(1, Relaxed);
        !self.begun.load(Acquire)
    }

    /// Runs what jobs there are until it is over, or for a while there were none.
    fn look_for_jobs(&self) {
        let (mut looks, mut idle_since) = (0, Instant::now());
        while !self.over.load(Relaxed) {
            if rayon::yield_now() == Some(Yield::Executed) {
                (looks, idle_since) = (0, Instant::now());
                continue;
            }
            looks += 1;
            if looks % LOOKS == 0 {
                if idle_since.elapsed() > PATIENCE {
                    return;
                }
                std::thread::yield_now();
            }
            spin_loop();
        }
    }
}

/// It is over even where the work panics.
struct Over<'a>(&'a Watch);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Relaxed);
        TAKEN.store(false, Release);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        panic::AssertUnwindSafe,
        sync::{Mutex, MutexGuard, PoisonError, mpsc},
        thread,
    };

    use rayon::{ThreadPool, ThreadPoolBuilder, prelude::*};

    use super::*;

    /// One test at a time: beside another, threads would not be kept awake.
    fn alone() -> MutexGuard<'static, ()> {
        static ONE: Mutex<()> = Mutex::new(());
        ONE.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pool(threads: usize) -> ThreadPool {
        ThreadPoolBuilder::new().num_threads(threads).build().expect("threads start")
    }

    /// Short jobs of a few microseconds that are stolen and waited for, several times.
    fn short_jobs() {
        let job = |_| {
            let start = Instant::now();
            while start.elapsed() < Duration::from_micros(3) {
                spin_loop();
            }
        };
        keep_threads_awake(|| (0..3).for_each(|_| (0..64).into_par_iter().for_each(job)));
    }

    #[test]
    fn who_comes_late_goes_again() {
        let watch = Watch::default();
        assert!(watch.come());
        watch.gather(1);
        assert!(!watch.come());
    }

    #[test]
    fn work_goes_on_and_threads_come_back() {
        let _alone = alone();
        let (done, end) = mpsc::channel();
        // Nobody joins this thread: where the work hangs, the test fails.
        thread::spawn(move || {
            for threads in [1, 2, 4, 8] {
                let pool = pool(threads);
                pool.install(|| (0..500).for_each(|_| short_jobs()));
                thread::scope(|scope| {
                    scope.spawn(|| pool.install(|| (0..100).for_each(|_| short_jobs())));
                    scope.spawn(|| (0..100).for_each(|_| short_jobs()));
                });
            }
            done.send(()).expect("the test waits");
        });
        end.recv_timeout(Duration::from_secs(100)).expect("the work ends");
    }

    /// A thread of the pool that waits for the outcome, by other means than the pool's.
    #[test]
    fn nobody_is_waited_for() {
        let _alone = alone();
        let (done, end) = mpsc::channel();
        thread::spawn(move || {
            let pool = pool(2);
            for _ in 0..100 {
                let (tell, told) = mpsc::channel();
                // Long enough for the other thread to begin its wait.
                let work = || keep_threads_awake(|| thread::sleep(Duration::from_millis(1)));
                pool.install(|| {
                    rayon::join(
                        || tell.send((work(), 7).1).expect("somebody waits"),
                        move || assert_eq!(told.recv(), Ok(7)),
                    );
                });
            }
            done.send(()).expect("the test waits");
        });
        end.recv_timeout(Duration::from_secs(100)).expect("the work ends");
    }

    #[test]
    fn a_panic_ends_it_too() {
        let _alone = alone();
        let pool = pool(2);
        let work = || pool.install(|| keep_threads_awake(|| panic!("meant")));
        assert!(std::panic::catch_unwind(AssertUnwindSafe(work)).is_err());
        assert_eq!(pool.install(|| keep_threads_awake(|| 7)), 7);
    }
}
