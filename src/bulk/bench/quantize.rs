//! Quantizing: GB/s of bf16 source on each thread's own source, which lies in its caches.
//!
//! Without a mount: what the kernels of a scheme can do, beside what memory could feed them.

use rayon::ThreadPool;

use super::{Contender, Error, Figure, limits::Memory, median, pools, turn, weights};
use crate::{
    kernel::{self, Isa, kernels},
    quant::{Part, Unsupported, Weight},
    tensor::{Float, Rows},
};

/// Rows and columns of the source: 2 MiB, a tile of the file system, beyond the second-level cache.
const SHAPE: [usize; 2] = [256, 4096];

/// What to measure.
#[derive(Clone, Debug)]
pub struct Quantize {
    /// The schemes.
    pub contenders: Vec<Contender>,
    /// Threads, a case each.
    pub threads: Vec<usize>,
    /// Bytes that are read for the limit: more than caches hold.
    pub set: usize,
    /// Turns of each case.
    pub rounds: usize,
}

/// A source and room for what becomes of it.
struct Job<'a> {
    contender: &'a Contender,
    source: Vec<u8>,
    parts: Vec<Part>,
    weight: Weight,
}

impl Quantize {
    /// Measures, and tells each figure of a contender when all of its turns are over.
    ///
    /// # Errors
    /// A contender that cannot store the shape, and one whose bytes are not the reference kernels'.
    pub fn run(&self, mut tell: impl FnMut(Vec<Figure>)) -> Result<(), Error> {
        let (pools, memory) = (pools(&self.threads)?, Memory::new(self.set)?);
        for contender in &self.contenders {
            let job = Job::new(contender)?;
            job.check()?;
            let mut turns = vec![(vec![], vec![]); pools.len()];
            for _ in 0..self.rounds.max(1) {
                for (pool, (values, limits)) in pools.iter().zip(&mut turns) {
                    limits.push(memory.read(pool));
                    values.push(job.turn(pool));
                }
            }
            tell(self.threads.iter().zip(turns).map(|(n, (v, l))| figure(contender, *n, v, l)).collect());
        }
        Ok(())
    }
}

fn figure(contender: &Contender, threads: usize, mut values: Vec<f64>, mut limits: Vec<f64>) -> Figure {
    Figure {
        bench: "quantize",
        case: contender.spec.clone(),
        threads,
        value: median(&mut values),
        unit: "GB/s",
        limit: median(&mut limits),
        limited_by: "memory read",
        spec: contender.spec.clone(),
        arithmetic: None,
        inputs: None,
        bits_per_weight: None,
    }
}

impl<'a> Job<'a> {
    fn new(contender: &'a Contender) -> Result<Self, Error> {
        let weight = Weight { stem: contender.spec.clone(), float: Float::Bf16, shape: SHAPE.to_vec() };
        let refused = |Unsupported(why)| Error::Unsupported { spec: contender.spec.clone(), why };
        let parts = contender.scheme.parts(&weight).map_err(refused)?;
        Ok(Self { contender, source: weights(weight.elements()), parts, weight })
    }

    fn room(&self) -> Vec<Vec<u8>> {
        let encoded = self.parts.iter().filter(|part| part.is_encoded());
        encoded.map(|part| vec![0; part.len()]).collect()
    }

    fn encode(&self, room: &mut [Vec<u8>]) {
        let [rows, cols] = SHAPE;
        let mut outs: Vec<&mut [u8]> = room.iter_mut().map(Vec::as_mut_slice).collect();
        self.contender.scheme.encode(Rows { data: &self.source, float: self.weight.float, rows, cols }, &mut outs);
    }

    /// The bytes against those of the reference kernels, which stay in use no longer than that.
    fn check(&self) -> Result<(), Error> {
        let (mut ours, mut expected, chosen) = (self.room(), self.room(), kernels().isa());
        self.encode(&mut ours);
        kernel::select(Some(Isa::Scalar.name()))?;
        self.encode(&mut expected);
        kernel::select(Some(chosen.name()))?;
        if ours == expected {
            return Ok(());
        }
        let why = format!("the bytes of {chosen} differ from those of {}", Isa::Scalar);
        Err(Error::Wrong { case: self.contender.spec.clone(), why })
    }

    fn turn(&self, pool: &ThreadPool) -> f64 {
        let rates = pool.broadcast(|_| {
            let mut room = self.room();
            turn(|| {
                self.encode(&mut room);
                self.source.len() as u64
            })
        });
        rates.iter().sum()
    }
}
