//! The machine's figures beside its limits: products with quantized layers, and quantizing.
//!
//! Always: what is timed was checked first; limit and case take turns in the same run, and each figure is
//! the median of its turns. Prints nothing.

mod layers;
mod limits;
mod quantize;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::{
    kernel::{self, kernels},
    quant::Scheme,
    tensor::Float,
};

pub use layers::Layers;
#[cfg(all(feature = "cli", feature = "fuse"))]
pub(crate) use limits::sum;
pub use quantize::Quantize;

/// A scheme and the spec that names it.
#[derive(Clone, Debug)]
pub struct Contender {
    /// As it is reported.
    pub spec: String,
    /// What is timed.
    pub scheme: Arc<dyn Scheme>,
}

/// One figure.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Figure {
    /// What was measured: `layers`, `quantize`, `read`.
    pub bench: &'static str,
    /// The spec, and what else tells cases of one bench apart.
    pub case: String,
    /// Threads that computed.
    pub threads: usize,
    /// The median of the turns.
    pub value: f64,
    /// Of value and limit: `GB/s` (decimal), `GFLOP/s`, `ms`.
    pub unit: &'static str,
    /// What the machine can do at most, measured between the turns.
    pub limit: f64,
    /// The machine's part that sets the limit.
    pub limited_by: &'static str,
    /// As it was asked for.
    pub spec: String,
    /// How products were computed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arithmetic: Option<&'static str>,
    /// Inputs that a product took together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inputs: Option<usize>,
    /// Bits that a weight takes with its share of scales.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bits_per_weight: Option<f64>,
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A layer could not be made or run.
    #[error(transparent)]
    Layer(#[from] crate::runtime::Error),
    /// A scheme cannot store the matrix.
    #[error("{spec}: {why}")]
    Unsupported {
        /// The spec.
        spec: String,
        /// Why not.
        why: String,
    },
    /// What would be timed is wrong.
    #[error("{case}: {why}; it is not timed")]
    Wrong {
        /// What was computed.
        case: String,
        /// How it differs.
        why: String,
    },
    /// The reference kernels could not be chosen.
    #[error(transparent)]
    Kernels(#[from] kernel::UnknownIsa),
    /// There is no memory to read.
    #[error("memory to read (a smaller set takes less): {0}")]
    Memory(#[from] std::io::Error),
    /// Threads could not be started.
    #[error(transparent)]
    Threads(#[from] rayon::ThreadPoolBuildError),
}

/// How long a turn lasts at least: a hundred times what a clock or a waking thread is off by.
const TURN: Duration = Duration::from_millis(50);

/// Calls a job as often as a turn lasts; units of work per nanosecond, which is billions a second.
fn turn(mut job: impl FnMut() -> u64) -> f64 {
    let (started, mut work) = (Instant::now(), 0);
    loop {
        work += job();
        let took = started.elapsed();
        if took >= TURN {
            return work as f64 / took.as_nanos() as f64;
        }
    }
}

/// The middle of at least one value.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    if values.len().is_multiple_of(2) && half > 0 {
        f64::midpoint(values[half - 1], values[half])
    } else {
        values[half]
    }
}

fn pools(threads: &[usize]) -> Result<Vec<ThreadPool>, Error> {
    threads.iter().map(|n| Ok(ThreadPoolBuilder::new().num_threads(*n).build()?)).collect()
}

/// Bell-shaped values, the same in every run.
fn values(count: usize, size: f32) -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..count).map(|_| size * (uniform() + uniform() + uniform() + uniform())).collect()
}

/// Elements that are drawn; a matrix repeats them.
const PATTERN: usize = 1 << 18;

/// So many bf16 weights of the size that models have.
fn weights(count: usize) -> Vec<u8> {
    let wide: Vec<u8> = values(PATTERN.min(count), 0.02).iter().flat_map(|x| x.to_le_bytes()).collect();
    let mut drawn = vec![0; wide.len() / 2];
    kernels().cast(&kernel::Cast { from: Float::F32, to: Float::Bf16, plus_one: false }, &wide, &mut drawn);
    drawn.iter().copied().cycle().take(count * 2).collect()
}
