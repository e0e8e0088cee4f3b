//! Threads that stay awake between short jobs.
//!
//! A thread that sleeps takes tens of microseconds to wake, on a virtual machine more: as long as a small
//! matrix takes. Knows no layer.

use std::{
    hint::spin_loop,
    sync::atomic::{
        AtomicBool,
        Ordering::{Acquire, Relaxed, Release},
    },
};

use rayon::Yield;

/// Whether threads are kept awake already: those of one job suffice.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// Looks for a job between two offers to other programs.
const LOOKS: usize = 64;

/// Runs `work` and keeps the threads of the current rayon pool awake meanwhile: they look for jobs without
/// pause. It pays where many short jobs follow each other, as layers do, and takes the processor's time of
/// every thread of the pool. While it runs somewhere, further calls just run their work.
///
/// ```
/// let sums = quantfs::runtime::keep_awake(|| (0..8).map(|n| (0..n).sum()).collect::<Vec<u64>>());
/// assert_eq!(sums[7], 21);
/// ```
pub fn keep_awake<R>(work: impl FnOnce() -> R) -> R {
    if rayon::current_num_threads() == 1 || TAKEN.swap(true, Acquire) {
        return work();
    }
    let (over, caller) = (AtomicBool::new(false), rayon::current_thread_index());
    rayon::in_place_scope(|scope| {
        scope.spawn_broadcast(|_, thread| {
            // The caller meets its own copy where it waits for others.
            if caller != Some(thread.index()) {
                look_for_jobs(&over);
            }
        });
        let _over = Over(&over);
        work()
    })
}

/// Runs what jobs there are until it is over.
fn look_for_jobs(over: &AtomicBool) {
    let mut looks = 0;
    while !over.load(Relaxed) {
        match rayon::yield_now() {
            Some(Yield::Executed) => looks = 0,
            _ => looks += 1,
        }
        if looks % LOOKS == LOOKS - 1 {
            std::thread::yield_now();
        }
        spin_loop();
    }
}

/// It is over even where the work panics.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
        TAKEN.store(false, Release);
    }
}

#[cfg(test)]
mod tests {
    use rayon::prelude::*;

    use super::*;

    /// Sums that need every thread of the pool, inside and outside of it, side by side, and one in the other.
    #[test]
    fn work_goes_on_and_threads_come_back() {
        let sum = || keep_awake(|| (0..10_000u64).into_par_iter().map(|n| keep_awake(|| n)).sum::<u64>());
        for threads in [1, 2, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads start");
            for _ in 0..50 {
                assert_eq!(pool.install(sum), 49_995_000);
            }
            std::thread::scope(|scope| {
                let both = [scope.spawn(|| pool.install(sum)), scope.spawn(sum)];
                both.into_iter().for_each(|one| assert_eq!(one.join().expect("no panic"), 49_995_000));
            });
        }
    }

    #[test]
    fn a_panic_ends_it_too() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("threads start");
        let work = || pool.install(|| keep_awake(|| panic!("meant")));
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err());
        assert_eq!(pool.install(|| keep_awake(|| 7)), 7);
    }
}
