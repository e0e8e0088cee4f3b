//! GB/s of source of reading a view without a mount: `cargo bench --bench reads [-- FILTER]`.
//!
//! `source` is a plain read of the source, `cold` a view whose tiles are made as they are read, `again` one that its
//! cache answers. The bytes that are timed are compared with those of reads of another
//! size by another number of threads.

use std::{fs, os::unix::fs::FileExt, path::Path, sync::Arc, time::Duration};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use quantfs::{
    container::safetensors,
    plan::{self, Options, Parts, Spec},
    source::{self, Source},
    tensor::{Dtype, TensorInfo},
    view::{self, Access, Engine, View},
};

/// Rows and columns of the two weights.
const SHAPE: [usize; 2] = [4096, 4096];
/// A request of the kernel.
const READ: usize = 1 << 20;

/// A model of two bell-shaped bf16 weights.
fn write_model(dir: &Path) {
    let name = |layer: usize| format!("model.layers.{layer}.mlp.up_proj.weight");
    let infos = [0, 1].map(|i| TensorInfo { name: name(i), dtype: Dtype::BF16, shape: SHAPE.to_vec() });
    let mut bytes = safetensors::render(&infos, None, 64).expect("two names").preamble;
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    for _ in 0..2 * SHAPE[0] * SHAPE[1] {
        let weight = 0.02 * (uniform() + uniform() + uniform() + uniform());
        bytes.extend(half::bf16::from_f32(weight).to_le_bytes());
    }
    fs::write(dir.join("model.safetensors"), bytes).expect("room for a small model");
}

fn serve(source: &Arc<dyn Source>, spec: &str, threads: usize) -> Arc<View> {
    let spec = Spec::parse(Some(spec), &Parts::default()).expect("a known spec");
    let plan = plan::build(source.as_ref(), &Options::new(spec)).expect("a plan");
    let engine = Engine::new(view::Options { threads, ..Default::default() }).expect("threads start");
    View::new(Arc::new(plan), Arc::clone(source), engine)
}

/// The number of the file with the weights, and its length.
fn weights(view: &View) -> (usize, usize) {
    let files = view.plan().files.iter().enumerate();
    let (number, file) = files.max_by_key(|(_, file)| file.len).expect("a file");
    (number, usize::try_from(file.len).expect("a small file"))
}

fn read(view: &Arc<View>, step: usize) -> Vec<u8> {
    let (file, len) = weights(view);
    let mut bytes = vec![0; len];
    for (i, chunk) in bytes.chunks_mut(step).enumerate() {
        view.read_at(file, (i * step) as u64, chunk).expect("a read");
    }
    bytes
}

/// Every request once, past the system's cache, so that ours keeps what it made.
fn ask(view: &Arc<View>) {
    let (file, len) = weights(view);
    let (tell, told) = std::sync::mpsc::channel();
    let requests = (0..len).step_by(READ);
    for at in requests.clone() {
        let tell = tell.clone();
        let done = move |bytes: Result<&[u8], view::ReadError>| tell.send(bytes.map(<[u8]>::len)).unwrap_or(());
        view.read_then(file, at as u64, READ, Access::Direct, Box::new(done));
    }
    let read: usize = told.iter().take(requests.count()).map(|len| len.expect("a read")).sum();
    assert_eq!(read, len, "bytes were lost");
}

fn reads(c: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    write_model(dir.path());
    let source: Arc<dyn Source> =
        source::open(&dir.path().to_string_lossy(), &source::Caches::default()).expect("a model").into();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut group = c.benchmark_group("read");
    group.throughput(Throughput::Bytes(4 * (SHAPE[0] * SHAPE[1]) as u64));
    let plain = fs::File::open(dir.path().join("model.safetensors")).expect("what was written");
    let (len, mut buffer) = (plain.metadata().expect("a length").len(), vec![0; READ]);
    group.bench_function("source", |b| {
        b.iter(|| {
            for at in (0..len).step_by(READ) {
                let left = usize::try_from(len - at).unwrap_or(READ).min(READ);
                plain.read_exact_at(&mut buffer[..left], at).expect("a read");
            }
        });
    });
    for spec in ["4bit", "8bit", "mxfp4"] {
        assert!(read(&serve(&source, spec, threads), READ) == read(&serve(&source, spec, 1), 77_777), "{spec}");
        group.bench_function(format!("cold/{spec}"), |b| {
            let ask_first = |view: Arc<View>| {
                ask(&view);
                // Dropped outside of the time: its threads end.
                view
            };
            b.iter_batched(|| serve(&source, spec, threads), ask_first, criterion::BatchSize::PerIteration);
        });
        let view = serve(&source, spec, threads);
        ask(&view);
        group.bench_function(format!("again/{spec}"), |b| b.iter(|| ask(&view)));
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(15).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(2));
    targets = reads
}
criterion_main!(benches);
