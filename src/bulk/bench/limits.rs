//! What the machine can do at most: reading memory, multiplying in registers.

use std::{hint::black_box, io};

use memmap2::MmapMut;
use rayon::{ThreadPool, prelude::*};

use super::turn;
use crate::{kernel::kernels, runtime::Arithmetic};

/// Pieces that threads take of what they read: small enough that they end together.
const PIECE: usize = 1 << 17;

/// Steps of arithmetic between two looks at the clock.
const STEPS: usize = 1 << 16;

/// Memory to read, in large pages where the system has them: reading can be no faster.
#[derive(Debug)]
pub(super) struct Memory(MmapMut);

impl Memory {
    /// So many bytes.
    pub(super) fn new(bytes: usize) -> io::Result<Self> {
        let mut map = MmapMut::map_anon(bytes.next_multiple_of(size_of::<u64>()).max(size_of::<u64>()))?;
        #[cfg(target_os = "linux")]
        // Small pages do as well, a little slower.
        let _refused = map.advise(memmap2::Advice::HugePage);
        // Pages that nobody wrote to are all the same one.
        map.fill(1);
        Ok(Self(map))
    }

    /// GB/s of a plain sum, shared out to the threads of a pool.
    pub(super) fn read(&self, pool: &ThreadPool) -> f64 {
        let words: &[u64] = bytemuck::cast_slice(&self.0);
        let add = || black_box(words).par_chunks(PIECE).map(sum).reduce(|| 0, u64::wrapping_add);
        turn(|| {
            black_box(pool.install(add));
            self.0.len() as u64
        })
    }
}

/// Independent sums, so that only memory is waited for.
fn sum(run: &[u64]) -> u64 {
    let (chunks, rest) = run.as_chunks::<32>();
    let mut sums = [0u64; 32];
    for lanes in chunks {
        for i in 0..32 {
            sums[i] = sums[i].wrapping_add(lanes[i]);
        }
    }
    sums.iter().chain(rest).fold(0, |a, b| a.wrapping_add(*b))
}

/// GFLOP/s of the instruction set in use, on every thread of a pool.
pub(super) fn arithmetic(pool: &ThreadPool, arithmetic: Arithmetic) -> f64 {
    let spin = || match arithmetic {
        Arithmetic::Int8 => kernels().spin_int8(STEPS),
        Arithmetic::Exact => kernels().spin_f32(STEPS),
    };
    turn(|| pool.broadcast(|_| spin()).into_iter().sum())
}
