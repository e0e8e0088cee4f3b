//! What the verbs that run a decoder share: how it computes, and on how many threads.

use std::{
    io::{self, Write},
    num::NonZero,
    path::Path,
    thread,
};

use clap::Args;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::{
    cli::Failure,
    runtime::{
        Arithmetic, Weights,
        model::{Config, Decoder},
    },
};

/// Threads for each core at most.
const OVER: usize = 8;

/// How a decoder computes.
#[derive(Args, Clone, Debug)]
pub struct DecodeArgs {
    /// int8 quantizes activations too, where the format has such a kernel; exact keeps them in f32
    #[arg(long, value_name = "int8|exact", default_value = "int8", value_parser = arithmetic)]
    pub arithmetic: Arithmetic,
    /// Threads [default: one for each core]
    #[arg(long, value_name = "N", value_parser = threads)]
    pub threads: Option<usize>,
    /// Read the weights into memory (in large pages, which are faster to find) instead of mapping the files
    #[arg(long)]
    pub no_mmap: bool,
}

impl DecodeArgs {
    /// Opens the decoder of a directory.
    pub(super) fn open(&self, dir: &Path) -> Result<Decoder, Failure> {
        if !self.no_mmap {
            return Ok(Decoder::open(dir, self.arithmetic)?);
        }
        let config = Config::open(dir)?;
        Ok(Decoder::new(config, &Weights::read(dir)?, self.arithmetic)?)
    }

    /// The threads that it computes on.
    pub(super) fn pool(&self) -> Result<ThreadPool, Failure> {
        Ok(ThreadPoolBuilder::new().num_threads(self.threads.unwrap_or(0)).build()?)
    }
}

/// Warns of texts that are longer than a model was made for. Whoever asked sees it whatever the log shows: such
/// a model's answers are often nonsense.
pub(super) fn warn_of_length(dir: &Path, decoder: &Decoder, wanted: usize, what: &str) -> io::Result<()> {
    let Some(most) = decoder.config().max_positions.filter(|most| wanted > *most) else { return Ok(()) };
    let path = dir.display();
    writeln!(
        io::stderr(),
        "quantfs: warning: {path}: the model was made for {most} tokens (max_position_embeddings), and {what} {wanted}"
    )
}

/// `--threads`: more than cores never help, and a few times as many still end.
pub(super) fn threads(text: &str) -> Result<usize, String> {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let most = OVER * cores;
    let given = text.parse().ok().filter(|n| (1..=most).contains(n));
    given.ok_or_else(|| format!("a number from 1 to {most} is needed; one for each core is {cores}"))
}

/// `--arithmetic`
pub(super) fn arithmetic(text: &str) -> Result<Arithmetic, String> {
    let named = Arithmetic::ALL.into_iter().find(|arithmetic| arithmetic.name() == text);
    named.ok_or_else(|| format!("known are {}", Arithmetic::ALL.map(Arithmetic::name).join(" and ")))
}
