//! Products with quantized matrices beside the memory's own speed: `cargo bench --bench operators [-- FILTER]`.
//!
//! `decode` is one input against over 512 MB of weights, in GB/s of quantized bytes; `read` is a plain
//! sum over as many bytes. `batch` is one 14336 x 4096 matrix and many inputs, in operations per second.
//! What is timed is compared with arithmetic in f64 first: a fast wrong kernel does not get a number.

#![expect(clippy::unwrap_used, reason = "a benchmark may panic")]

use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime};
use quantfs::{
    kernel::{self, Flavour, Micro, MicroCode, ScaleRule, kernels},
    quant::{
        Scheme, Weight,
        format::{
            matmul_nbits::{Block, MatMulNBits},
            sym::{Per, Sym},
        },
        operator::{self, Arithmetic, Bytes, Operator},
    },
    tensor::{Float, Rows},
};
use rayon::{ThreadPoolBuilder, prelude::*};
use std::{cell::LazyCell, hint::black_box, sync::Arc, time::Duration};

const ROWS: usize = 14336;
const COLS: usize = 4096;
/// Rows that are encoded; a matrix repeats them, in memory of its own.
const PATTERN: usize = 64;
/// More than any cache.
const SET: usize = 512 << 20;
/// Rows of a piece of work: a multiple of all panels.
const CHUNK: usize = 512;

/// Bell-shaped values, the same in every run.
fn values(count: usize, size: f32) -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..count).map(|_| size * (uniform() + uniform() + uniform() + uniform())).collect()
}

fn weights() -> Vec<u8> {
    let wide: Vec<u8> = values(PATTERN * COLS, 0.02).iter().flat_map(|x| x.to_le_bytes()).collect();
    let mut out = vec![0; PATTERN * COLS * 2];
    kernels().cast(&kernel::Cast { from: Float::F32, to: Float::Bf16, plus_one: false }, &wide, &mut out);
    out
}

fn repeated(pattern: &[u8]) -> Bytes {
    Bytes::from(pattern.repeat(ROWS / PATTERN))
}

fn affine(bits: u32, group: usize) -> Arc<dyn Operator> {
    let job = kernel::Affine { bits, group, float: Float::Bf16, stored: Float::Bf16, flavour: Flavour::Cpu };
    let parameters = PATTERN * COLS / group * 2;
    let mut parts = [vec![0; PATTERN * COLS / 8 * bits as usize], vec![0; parameters], vec![0; parameters]];
    let [codes, scales, biases] = &mut parts;
    kernels().quantize_affine(&job, &weights(), codes, scales, biases);
    let parts = parts.map(|p| repeated(&p));
    Arc::new(operator::Affine::new(job, ROWS, COLS, &parts).unwrap())
}

fn micro(code: MicroCode) -> Arc<dyn Operator> {
    let job = Micro { code, float: Float::Bf16, computed: Float::Bf16, flavour: Flavour::Cpu, rule: ScaleRule::Up };
    let mut parts = [vec![0; PATTERN * COLS / 8 * code.bits() as usize], vec![0; PATTERN * COLS / code.group_size()]];
    let [codes, scales] = &mut parts;
    kernels().quantize_micro(&job, &weights(), codes, scales);
    let parts = parts.map(|p| repeated(&p));
    Arc::new(operator::Micro::new(job, ROWS, COLS, &parts).unwrap())
}

/// Of a scheme that is no kernel's.
fn blocks(scheme: &dyn Scheme) -> Arc<dyn Operator> {
    let weight = |rows| Weight { stem: "w".into(), float: Float::Bf16, shape: vec![rows, COLS] };
    let mut parts: Vec<Vec<u8>> = scheme.parts(&weight(PATTERN)).unwrap().iter().map(|p| vec![0; p.len()]).collect();
    let data = Rows { data: &weights(), float: Float::Bf16, rows: PATTERN, cols: COLS };
    scheme.encode(data, &mut parts.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>());
    let parts: Vec<Bytes> = parts.iter().map(|p| repeated(p)).collect();
    scheme.operator(&weight(ROWS), &parts).unwrap()
}

/// All rows, shared out in chunks; each chunk's outputs follow each other.
fn multiply(operator: &dyn Operator, x: &[f32], arithmetic: Arithmetic, y: &mut [f32]) {
    let inputs = operator.prepare(x, arithmetic);
    let count = x.len() / COLS;
    y.par_chunks_mut(CHUNK * count).enumerate().for_each(|(n, y)| {
        operator.multiply_prepared(n * CHUNK..(n + 1) * CHUNK, &inputs, y);
    });
}

/// A few outputs against f64 arithmetic: int8 activations leave about a percent of the typical output.
fn check(name: &str, operator: &dyn Operator, x: &[f32], y: &[f32]) {
    let count = x.len() / COLS;
    let mut row = vec![0.0; COLS];
    for (r, b) in [(0, 0), (17, count - 1), (PATTERN - 1, count / 2), (ROWS - 1, count - 1)] {
        operator.decode(r..r + 1, &mut row);
        let terms = row.iter().zip(&x[b * COLS..]).map(|(w, x)| f64::from(*w) * f64::from(*x));
        let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t * t));
        let ours = f64::from(y[r / CHUNK * CHUNK * count + b * CHUNK + r % CHUNK]);
        assert!((ours - sum).abs() <= 0.05 * f64::sqrt(size), "{name}: row {r} of input {b} is {ours}, not {sum}");
    }
}

fn threads() -> Vec<usize> {
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    if all > 1 { vec![1, all] } else { vec![1] }
}

fn read(group: &mut BenchmarkGroup<'_, WallTime>, set: &[u64], threads: usize) {
    let pool = ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    group.throughput(Throughput::Bytes(SET as u64));
    group.bench_function(format!("read/t{threads}"), |b| {
        b.iter(|| pool.install(|| black_box(set).par_chunks(SET / 8 / 64).map(sum).reduce(|| 0, u64::wrapping_add)));
    });
}

/// Independent sums, so that only memory is waited for.
fn sum(run: &[u64]) -> u64 {
    let mut sums = [0u64; 32];
    for lanes in run.as_chunks::<32>().0 {
        for i in 0..32 {
            sums[i] = sums[i].wrapping_add(lanes[i]);
        }
    }
    sums.iter().fold(0, |a, b| a.wrapping_add(*b))
}

/// A name, bytes of a matrix, and how to make one.
type Kind = (String, usize, Box<dyn Fn() -> Arc<dyn Operator>>);

fn kinds() -> Vec<Kind> {
    let mut kinds: Vec<Kind> = vec![];
    for (bits, size) in [(4, 64), (8, 64), (4, 32), (4, 128), (2, 64), (3, 64), (5, 64), (6, 64)] {
        let bytes = ROWS * (COLS / 8 * bits as usize + COLS / size * 4);
        kinds.push((format!("b{bits}-g{size}"), bytes, Box::new(move || affine(bits, size))));
    }
    for code in [MicroCode::Mxfp4, MicroCode::Nvfp4, MicroCode::Mxfp8] {
        let bytes = ROWS * (COLS / 8 * code.bits() as usize + COLS / code.group_size());
        kinds.push((format!("{code:?}"), bytes, Box::new(move || micro(code))));
    }
    kinds.push(("sym".to_owned(), ROWS * (COLS + 4), Box::new(|| blocks(&Sym { per: Per::Row }))));
    for (bits, block, symmetric) in [(4, 32, true), (4, 32, false), (4, 128, false), (8, 128, true)] {
        let scheme = MatMulNBits::new(bits, Block::Of(block), symmetric).unwrap();
        let zeros = if symmetric { 0 } else { (COLS / block) * bits as usize / 8 };
        let bytes = ROWS * (COLS / 8 * bits as usize + COLS / block * 2 + zeros);
        let kind = if symmetric { "" } else { "-zeros" };
        kinds.push((format!("nbits{bits}-b{block}{kind}"), bytes, Box::new(move || blocks(&scheme))));
    }
    kinds
}

/// Matrices of one kind, made when one is first timed.
type Set = LazyCell<Vec<Arc<dyn Operator>>, Box<dyn FnOnce() -> Vec<Arc<dyn Operator>>>>;

fn decode(c: &mut Criterion) {
    let mut group = c.benchmark_group("decode");
    let set = vec![1u64; SET / 8];
    threads().into_iter().for_each(|n| read(&mut group, &set, n));
    drop(set);
    for (name, bytes, make) in kinds() {
        let count = SET.div_ceil(bytes);
        let set: Set = LazyCell::new(Box::new(move || (0..count).map(|_| make()).collect()));
        let (x, mut y) = (values(COLS, 1.0), vec![0.0; ROWS]);
        group.throughput(Throughput::Bytes((bytes * count) as u64));
        for arithmetic in [Arithmetic::Int8, Arithmetic::Exact] {
            for n in threads() {
                group.bench_function(format!("{name}/{arithmetic:?}/t{n}"), |b| {
                    let set: &[Arc<dyn Operator>] = &set;
                    multiply(&*set[0], &x, arithmetic, &mut y);
                    check(&name, &*set[0], &x, &y);
                    let pool = ThreadPoolBuilder::new().num_threads(n).build().unwrap();
                    b.iter(|| {
                        pool.install(|| set.iter().for_each(|o| multiply(&**o, black_box(&x), arithmetic, &mut y)));
                    });
                });
            }
        }
    }
}

fn batch(c: &mut Criterion) {
    let mut group = c.benchmark_group("batch");
    for (name, _, make) in kinds() {
        let set: Set = LazyCell::new(Box::new(move || vec![make()]));
        for count in [2, 4, 8, 32, 128, 512] {
            let (x, mut y) = (values(count * COLS, 1.0), vec![0.0; count * ROWS]);
            group.throughput(Throughput::Elements((2 * ROWS * COLS * count) as u64));
            for arithmetic in [Arithmetic::Int8, Arithmetic::Exact] {
                for n in threads() {
                    group.bench_function(format!("{name}/{arithmetic:?}/x{count}/t{n}"), |b| {
                        let operator = &*set[0];
                        multiply(operator, &x, arithmetic, &mut y);
                        check(&name, operator, &x, &y);
                        let pool = ThreadPoolBuilder::new().num_threads(n).build().unwrap();
                        b.iter(|| pool.install(|| multiply(operator, black_box(&x), arithmetic, &mut y)));
                    });
                }
            }
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(800));
    targets = decode, batch
}
criterion_main!(benches);
