//! What the machine can do at most: reading memory, multiplying in registers.

use std::{hint::black_box, io};

use rayon::{ThreadPool, prelude::*};

use super::turn;
use crate::{
    kernel::kernels,
    runtime::{self, Arithmetic},
};

/// Pieces that threads take of what they read: small enough that they end together.
const PIECE: usize = 1 << 17;

/// Steps of arithmetic between two looks at the clock.
const STEPS: usize = 1 << 16;

/// Memory to read.
pub(super) struct Memory(runtime::Memory);

impl Memory {
    /// So many bytes.
    pub(super) fn new(bytes: usize) -> io::Result<Self> {
        let mut memory = runtime::Memory::zeros(bytes.next_multiple_of(size_of::<u64>()))?;
        // Pages that nobody wrote to are all the same one.
        memory.bytes().fill(1);
        Ok(Self(memory))
    }

    /// GB/s of a plain sum, shared out to the threads of a pool.
    pub(super) fn read(&self, pool: &ThreadPool) -> f64 {
        let words: &[u64] = bytemuck::cast_slice(self.0.as_ref());
        let add = || black_box(words).par_chunks(PIECE).map(sum).reduce(|| 0, u64::wrapping_add);
        turn(|| {
            black_box(pool.install(add));
            words.len() as u64 * 8
        })
    }
}

/// Independent sums, so that only memory is waited for.
pub(crate) fn sum(run: &[u64]) -> u64 {
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
