//! The view against the fully materialized file, whole and under faults.

use std::{
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
        mpsc::{Receiver, channel},
    },
    thread,
    time::{Duration, Instant},
};

use proptest::prelude::*;
use quantfs::{
    plan::{Delta, Factor, Origin, Piece, Plan, Planned},
    quant::Axis,
    source::{Entry, Error, FileId, Source, Version},
    tensor::Float,
    view::{Access, Engine, Options, ReadError, SourceCache, View},
};

use crate::common::memory::{Layout, Memory, Random, Toy, materialize, plain, planned, run};

const SOON: Duration = Duration::from_secs(30);

fn options() -> Options {
    Options { cache_bytes: 1 << 20, threads: 3, readahead_bytes: 0, deadline: SOON, source_cache: SourceCache::Keep }
}

fn serve(plan: Plan, source: &Arc<Memory>, options: Options) -> Arc<View> {
    View::new(Arc::new(plan), Arc::clone(source) as Arc<dyn Source>, Engine::new(options).unwrap())
}

fn read(view: &Arc<View>, file: usize, offset: u64, len: usize) -> Result<Vec<u8>, ReadError> {
    let mut buf = vec![0x55; len];
    let n = view.read_at(file, offset, &mut buf)?;
    assert!(buf[n..].iter().all(|b| *b == 0x55), "wrote past its answer");
    buf.truncate(n);
    Ok(buf)
}

fn ask(view: &Arc<View>, file: usize, offset: u64, len: usize) -> Receiver<Result<Vec<u8>, ReadError>> {
    let (tell, told) = channel();
    let done = move |bytes: Result<&[u8], ReadError>| tell.send(bytes.map(<[u8]>::to_vec)).unwrap_or(());
    view.read_then(file, offset, len, Access::Detect, Box::new(done));
    told
}

fn wait_until(what: &str, so: impl Fn() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < SOON, "never: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// The part of `all` that a read must give.
fn share(all: &[u8], offset: u64, len: usize) -> &[u8] {
    let start = usize::try_from(offset).unwrap().min(all.len());
    &all[start..start.saturating_add(len).min(all.len())]
}

/// A weight of any shape from anywhere: whole runs, strided rows, transposes, stacks of pieces that
/// fit neither rows nor tiles.
fn any_weight(random: &mut Random, name: &str, files: &[Vec<u8>]) -> Planned {
    let axis = random.pick(&[Axis::Flat, Axis::Rows, Axis::Columns]);
    let (rows, cols) = (random.of(1..40), random.of(1..70));
    let stored = random.pick(&Float::ALL);
    let float = random.pick(&[stored, stored, Float::Bf16, Float::F16, Float::F32]);
    let (mut left, mut pieces) = (rows * cols, Vec::new());
    while left > 0 {
        let piece = any_piece(random, left, cols, stored.size(), files);
        left -= piece.rows * piece.cols;
        pieces.push(piece);
    }
    let origin = Origin { pieces, stored, float, plus_one: random.of(0..4) == 0, deltas: vec![] };
    let scheme = Toy::new(axis, random.of(1..9));
    planned(name, vec![rows, cols], origin, scheme, random.of(1..6))
}

fn any_piece(random: &mut Random, left: usize, width: usize, size: usize, files: &[Vec<u8>]) -> Piece {
    let cols = if random.of(0..2) == 0 { width.min(left) } else { random.of(1..left.min(100) + 1) };
    let rows = random.of(1..left / cols + 1);
    let gap = random.pick(&[0, 0, 1, 30, 9000]);
    let step = random.pick(&[1, 1, 2, 700]);
    let (row_stride, col_stride) = match random.of(0..3) {
        // A transpose, with columns further apart than they are long.
        0 => (step * size, (step * rows + gap) * size),
        1 => (cols * size, size),
        _ => ((cols * step + gap) * size, step * size),
    };
    let span = (rows - 1) * row_stride + (cols - 1) * col_stride + size;
    let file = random.of(0..files.len());
    let Some(room) = files[file].len().checked_sub(span) else {
        return run(u32::try_from(file).unwrap(), 0, 1, size);
    };
    let offset = random.of(0..room + 1) as u64;
    Piece { file: FileId(u32::try_from(file).unwrap()), offset, rows, row_stride, cols, col_stride }
}

/// What an adapter might add to the tensor that a piece is of: a tensor of any width around it, factors of any float.
fn any_delta(random: &mut Random, origin: &Origin, factors: &mut Vec<u8>) -> Delta {
    let (number, size) = (random.of(0..origin.pieces.len()), origin.stored.size());
    let piece = &origin.pieces[number];
    let before = usize::try_from(piece.offset).unwrap() / size;
    let start = piece.offset - (random.of(0..before + 1) * size) as u64;
    let last = piece.offset + ((piece.rows - 1) * piece.row_stride + (piece.cols - 1) * piece.col_stride) as u64;
    let cols = random.of(1..100);
    let rows = usize::try_from(last - start).unwrap() / size / cols + 1;
    // All that is added to a piece is added to the same tensor.
    let same = origin.deltas.iter().find(|delta| delta.piece == number);
    let (start, rows, cols) = same.map_or((start, rows, cols), |delta| (delta.start, delta.rows, delta.cols));
    let rank = random.of(1..5);
    let mut factor = |elements: usize| {
        let float = random.pick(&Float::ALL);
        let offset = factors.len() as u64;
        for _ in 0..elements {
            let value = random.of(0..2000) as f32 / 1000.0 - 1.0;
            match float {
                Float::Bf16 => factors.extend(half::bf16::from_f32(value).to_le_bytes()),
                Float::F16 => factors.extend(half::f16::from_f32(value).to_le_bytes()),
                Float::F32 => factors.extend(value.to_le_bytes()),
            }
        }
        Factor { file: FileId(1), offset, float }
    };
    let (up, down) = (factor(rows * rank), factor(rank * cols));
    Delta { piece: number, start, rows, cols, rank, up, down, scale: random.of(1..9) as f32 / 4.0 }
}

/// Whatever the pieces, the bands and the tiles, an element gets what the definition says.
#[test]
fn low_rank_products_are_added_however_a_weight_is_cut() {
    for seed in 0..150 {
        let mut random = Random::new(seed);
        let elements = random.bytes(20_000);
        let mut factors = vec![];
        let mut weight = any_weight(&mut random, "w", std::slice::from_ref(&elements));
        let origin = &mut weight.origin;
        for _ in 0..random.of(1..4) {
            let delta = any_delta(&mut random, origin, &mut factors);
            origin.deltas.push(delta);
        }
        let source = Arc::new(Memory::new(vec![elements, factors]));
        let file = Layout::new("f").weight(0, &weight).file;
        let plan = Plan { files: vec![file], weights: vec![weight], ..Plan::default() };
        let expected = materialize(&plan, &source);
        let view = serve(plan, &source, options());
        assert!(read(&view, 0, 0, expected[0].len()).unwrap() == expected[0], "seed {seed}");
    }
}

fn any_plan(random: &mut Random, source: &Memory) -> Plan {
    let weights: Vec<Planned> =
        (0..random.of(1..5)).map(|i| any_weight(random, &format!("w{i}"), &source.files)).collect();
    let mut main = Layout::new("model.safetensors").bytes(&random.bytes(37));
    for (i, weight) in (0..).zip(&weights) {
        main = main.weight(i, weight).bytes(&[]).bytes(&[]).bytes(&[]).source(
            0,
            random.of(0..100) as u64,
            random.of(0..50) as u64,
        );
    }
    let other = Layout::new("sub/other.bin").source(1, 0, source.files[1].len() as u64);
    let files = vec![Layout::new("empty").file, main.file, other.file];
    Plan { files, weights, ..Plan::default() }
}

fn any_source(random: &mut Random) -> Arc<Memory> {
    Arc::new(Memory::new(vec![random.bytes(3 << 20), random.bytes(20_001)]))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn a_read_is_a_range_of_the_file(seed: u64, cache_bytes in 0usize..40_000, readahead_bytes in prop_oneof![Just(0usize), Just(8 << 20)]) {
        let mut random = Random::new(seed);
        let source = any_source(&mut random);
        let plan = any_plan(&mut random, &source);
        let want = materialize(&plan, &source);
        let view = serve(plan, &source, Options { cache_bytes, readahead_bytes, ..options() });
        for (file, want) in want.iter().enumerate() {
            prop_assert_eq!(&read(&view, file, 0, want.len() + 1).unwrap(), want);
            for _ in 0..40 {
                let (offset, len) = (random.of(0..want.len() + 10) as u64, random.of(0..4000));
                prop_assert_eq!(&read(&view, file, offset, len).unwrap()[..], share(want, offset, len));
                let told = ask(&view, file, offset, len).recv_timeout(SOON).unwrap().unwrap();
                prop_assert_eq!(&told[..], share(want, offset, len));
            }
        }
        prop_assert!(view.engine().snapshot().cache_bytes <= cache_bytes as u64);
    }
}

#[test]
fn windows_wider_than_one_read_are_cut() {
    // Lines longer than the window, and lines so far apart that few fit into one.
    let mut random = Random::new(1);
    let source = Arc::new(Memory::new(vec![random.bytes(4 << 20)]));
    for (row_stride, col_stride) in [(2, 6000), (6000, 2), (1_100_000, 2100), (2100, 1_100_000)] {
        let (rows, cols) = if row_stride > 1 << 20 {
            (3, 700)
        } else if col_stride > 1 << 20 {
            (700, 3)
        } else {
            (500, 500)
        };
        let piece = Piece { file: FileId(0), offset: 6, rows, row_stride, cols, col_stride };
        for axis in [Axis::Flat, Axis::Rows, Axis::Columns] {
            let weight = planned("w", vec![rows, cols], plain(vec![piece.clone()], Float::Bf16), Toy::new(axis, 7), 9);
            let file = Layout::new("f").weight(0, &weight).file;
            let plan = Plan { files: vec![file], weights: vec![weight], ..Plan::default() };
            let want = materialize(&plan, &source);
            let view = serve(plan, &source, options());
            assert!(read(&view, 0, 0, want[0].len()).unwrap() == want[0], "{axis:?} {row_stride} {col_stride}");
        }
    }
}

#[test]
fn tiles_are_made_in_stretches() {
    let mut random = Random::new(2);
    let source = Arc::new(Memory::new(vec![random.bytes(4 << 20)]));
    // Pieces of any length one after the other, and as one; granules that fit neither them nor a stretch.
    let whole = vec![run(0, 3, 1000 * 1021, 4)];
    let cut = vec![run(0, 3, 1021, 4), run(0, 9000, 700_000, 4), run(0, 12, 1000 * 1021 - 701_021, 4)];
    for (axis, granule) in
        [(Axis::Flat, 7), (Axis::Flat, 100_000), (Axis::Rows, 3), (Axis::Rows, 65), (Axis::Columns, 9)]
    {
        for pieces in [&whole, &cut] {
            let origin = Origin {
                pieces: pieces.clone(),
                stored: Float::F32,
                float: Float::Bf16,
                plus_one: true,
                deltas: vec![],
            };
            let extent = if axis == Axis::Flat { 1000 * 1021 } else { 1000 };
            let weight = planned("w", vec![1000, 1021], origin, Toy::new(axis, granule), extent / granule / 2 + 1);
            let file = Layout::new("f").weight(0, &weight).file;
            let plan = Plan { files: vec![file], weights: vec![weight], ..Plan::default() };
            let want = materialize(&plan, &source);
            let view = serve(plan, &source, options());
            assert!(read(&view, 0, 0, want[0].len()).unwrap() == want[0], "{axis:?} {granule}");
        }
    }
}

/// What the page cache has is not kept twice, what it does not have is.
#[test]
fn what_was_delivered_gives_its_memory_up_unless_it_was_read_past_the_page_cache() {
    let mut random = Random::new(5);
    let source = Arc::new(Memory::new(vec![random.bytes(40 << 20)]));
    for (access, again) in [(Access::Direct, false), (Access::Detect, true)] {
        let origin = plain(vec![run(0, 0, 20 << 20, 2)], Float::Bf16);
        let weight = planned("w", vec![20, 1 << 20], origin, Toy::new(Axis::Flat, 1 << 10), 512);
        let file = Layout::new("f").weight(0, &weight).file;
        let plan = Plan { files: vec![file], weights: vec![weight], ..Plan::default() };
        let want = materialize(&plan, &source);
        let view = serve(plan, &source, Options { cache_bytes: 256 << 20, ..options() });
        let mut tiles = [0, 0];
        for made in &mut tiles {
            for at in (0..want[0].len()).step_by(1 << 20) {
                let (tell, told) = channel();
                let done = move |bytes: Result<&[u8], ReadError>| tell.send(bytes.map(<[u8]>::to_vec)).unwrap();
                view.read_then(0, at as u64, 1 << 20, access, Box::new(done));
                let bytes = told.recv_timeout(SOON).unwrap().unwrap();
                assert!(bytes == share(&want[0], at as u64, 1 << 20), "{access:?} {at}");
            }
            *made = view.engine().snapshot().tiles;
        }
        assert_eq!(tiles[1] > tiles[0], again, "{access:?}: {tiles:?} tiles were made");
        let kept = view.engine().snapshot().cache_bytes;
        assert_eq!(kept < 10 << 20, again, "{access:?}: {kept} bytes are kept");
    }
}

#[test]
fn many_threads_read_the_same_bytes() {
    let mut random = Random::new(7);
    let source = any_source(&mut random);
    let plan = any_plan(&mut random, &source);
    let want = materialize(&plan, &source);
    let view = serve(plan, &source, Options { cache_bytes: 6000, readahead_bytes: 4 << 20, ..options() });
    thread::scope(|scope| {
        for seed in 0..8 {
            let (view, want) = (&view, &want);
            scope.spawn(move || {
                let mut random = Random::new(seed);
                for _ in 0..1500 {
                    let file = random.of(0..want.len());
                    let (offset, len) = (random.of(0..want[file].len() + 2) as u64, random.of(0..3000));
                    assert_eq!(read(view, file, offset, len).unwrap(), share(&want[file], offset, len));
                }
            });
        }
    });
    let snapshot = view.engine().snapshot();
    assert_eq!((snapshot.errors, snapshot.pending), (0, 0));
    assert!(snapshot.cache_evictions > 0, "the cache was too large to be tested");
}

/// One weight of 64 tiles of 4 KiB, one file.
fn simple() -> (Arc<Memory>, Plan, Arc<Toy>) {
    let source = Arc::new(Memory::new(vec![Random::new(3).bytes(1 << 19), Random::new(4).bytes(1000)]));
    let toy = Toy::new(Axis::Flat, 64);
    let weight = planned("w", vec![512, 512], plain(vec![run(0, 0, 512 * 512, 2)], Float::F16), Arc::clone(&toy), 64);
    let main = Layout::new("a").bytes(b"header").weight(0, &weight).file;
    let files = vec![main, Layout::new("b").source(1, 0, 1000).file];
    (source, Plan { files, weights: vec![weight], ..Plan::default() }, toy)
}

#[test]
fn a_tile_is_encoded_once_however_many_ask() {
    let (source, plan, toy) = simple();
    let want = materialize(&plan, &source);
    toy.encoded.store(0, SeqCst);
    let view = serve(plan, &source, options());
    source.hang(true);
    let told: Vec<_> = (0..50).map(|i| ask(&view, 0, 6 + i, 4000)).collect();
    let scales = 6 + (512 * 512) + 4;
    let others: Vec<_> = (0..50).map(|_| ask(&view, 0, scales, 64)).collect();
    assert!(told.iter().all(|t| t.try_recv().is_err()), "nothing is there yet");
    assert_eq!(view.engine().snapshot().pending, 100);
    source.hang(false);
    for (i, told) in told.iter().enumerate() {
        assert_eq!(told.recv_timeout(SOON).unwrap().unwrap(), share(&want[0], 6 + i as u64, 4000));
    }
    for told in others {
        assert_eq!(told.recv_timeout(SOON).unwrap().unwrap(), share(&want[0], scales, 64));
    }
    assert_eq!(toy.encoded.load(SeqCst), 1);
    assert_eq!(view.engine().snapshot().tiles, 1);
}

#[test]
fn what_is_at_hand_is_answered_at_once_on_the_asking_thread() {
    let (source, plan, _) = simple();
    let view = serve(plan, &source, options());
    read(&view, 0, 6, 8192).unwrap();
    source.hang(true);
    let missing = ask(&view, 0, 100_000, 10);
    let untouched = ask(&view, 1, 0, 10);
    for (offset, len) in [(0, 6), (6, 4096), (3, 100), (4000, 200)] {
        let (tell, told) = channel();
        let me = thread::current().id();
        let done = move |bytes: Result<&[u8], ReadError>| {
            tell.send(bytes.unwrap().len() == len && thread::current().id() == me).unwrap_or(());
        };
        view.read_then(0, offset, len, Access::Detect, Box::new(done));
        assert_eq!(told.try_recv(), Ok(true), "{offset} {len}");
    }
    assert!(missing.try_recv().is_err() && untouched.try_recv().is_err(), "the source hangs, the caller does not");
    source.hang(false);
    assert!(missing.recv_timeout(SOON).unwrap().is_ok() && untouched.recv_timeout(SOON).unwrap().is_ok());
}

#[test]
fn a_read_that_fails_names_its_place_and_works_later() {
    let (source, plan, _) = simple();
    let want = materialize(&plan, &source);
    let view = serve(plan, &source, options());
    *source.broken.lock().unwrap() = Some(FileId(0));
    let told: Vec<_> = (0..5).map(|_| ask(&view, 0, 5000, 10_000)).collect();
    for told in told {
        let error = told.recv_timeout(SOON).unwrap().unwrap_err();
        let ReadError::Io { place, source } = &error else { panic!("{error}") };
        assert_eq!((place.file.as_str(), place.tensor.as_deref(), place.offset), ("a", Some("w.weight"), 5000));
        assert!(source.to_string().contains("source-000"), "{source}");
    }
    assert_eq!(read(&view, 1, 0, 2000).unwrap(), want[1], "other files go on");
    source.changed.store(true, SeqCst);
    assert!(matches!(read(&view, 0, 5000, 10).unwrap_err(), ReadError::Changed { .. }));
    assert_eq!(read(&view, 0, 0, 6).unwrap(), b"header", "what needs no source goes on");
    assert!(matches!(read(&view, 2, 0, 1), Err(ReadError::NoSuchFile { file: 2 })));
    *source.broken.lock().unwrap() = Some(FileId(1));
    assert!(matches!(read(&view, 1, 0, 10).unwrap_err(), ReadError::Changed { .. }));
    assert_eq!(read(&view, 0, 0, want[0].len()).unwrap(), want[0], "errors are not kept");
    let snapshot = view.engine().snapshot();
    assert_eq!((snapshot.errors, snapshot.pending, snapshot.tiles_in_flight), (8, 0, 0));
}

#[test]
fn a_panic_is_an_error_to_its_readers_and_the_end_of_nothing() {
    let (source, plan, toy) = simple();
    let want = materialize(&plan, &source);
    let view = serve(plan, &source, Options { threads: 1, ..options() });
    for _ in 0..5 {
        toy.panic.store(true, SeqCst);
        let error = read(&view, 0, 6, 10).unwrap_err();
        assert!(matches!(&error, ReadError::Panicked { what, .. } if what.contains("planted")), "{error}");
    }
    let (tell, told) = channel::<()>();
    let done = move |_: Result<&[u8], ReadError>| {
        let _tell = tell;
        panic!("planted in the answer");
    };
    view.read_then(0, 100_000, 1, Access::Random, Box::new(done));
    assert!(told.recv_timeout(SOON).is_err(), "the answer was given, and panicked");
    assert_eq!(read(&view, 0, 0, want[0].len()).unwrap(), want[0]);
}

#[test]
fn every_read_is_answered_within_the_deadline() {
    let (source, plan, _) = simple();
    let want = materialize(&plan, &source);
    let view = serve(plan, &source, Options { deadline: Duration::from_millis(200), ..options() });
    source.hang(true);
    let start = Instant::now();
    // 1 MiB each: more than there are reply buffers for, so that some never even begin.
    let told: Vec<_> = (0..40).map(|i| ask(&view, i % 2, 0, 1 << 20)).collect();
    for told in told {
        let error = told.recv_timeout(SOON).unwrap().unwrap_err();
        assert!(matches!(error, ReadError::TimedOut { .. }), "{error}");
    }
    assert!(start.elapsed() >= Duration::from_millis(200), "too early");
    assert_eq!(view.engine().snapshot().timeouts, 40);
    source.hang(false);
    wait_until("the hung tiles are done", || view.engine().snapshot().tiles_in_flight == 0);
    for (file, want) in want.iter().enumerate() {
        assert_eq!(&read(&view, file, 0, want.len()).unwrap(), want);
    }
}

#[test]
fn a_sequential_reader_finds_its_tiles_made_once() {
    let (source, plan, toy) = simple();
    let want = materialize(&plan, &source);
    toy.encoded.store(0, SeqCst);
    // A fifth of the codes: the scales of all tiles must outlive them.
    let view = serve(plan, &source, Options { cache_bytes: 56 << 10, readahead_bytes: 12 << 10, ..options() });
    let mut got = Vec::new();
    while got.len() < want[0].len() {
        got.extend(read(&view, 0, got.len() as u64, 1024).unwrap());
    }
    assert_eq!(got, want[0]);
    let snapshot = view.engine().snapshot();
    assert_eq!(toy.encoded.load(SeqCst), 64, "{snapshot:?}");
    assert!(snapshot.tiles_ahead > 0, "{snapshot:?}");
    assert!(snapshot.cache_evictions > 0, "{snapshot:?}");
}

#[test]
fn scales_outlive_codes_that_nobody_finished() {
    let (source, plan, toy) = simple();
    let view = serve(plan, &source, Options { cache_bytes: 80 << 10, ..options() });
    for tile in 0..64 {
        read(&view, 0, 6 + tile * 4096, 100).unwrap();
    }
    assert!(view.engine().snapshot().cache_evictions > 40);
    read(&view, 0, 6 + 512 * 512, 20_000).unwrap();
    assert_eq!(toy.encoded.load(SeqCst), 64);
}

#[test]
fn sequences_are_made_ahead_and_random_access_is_not() {
    let (source, plan, _) = simple();
    let view = serve(plan, &source, Options { readahead_bytes: 1 << 20, ..options() });
    for i in 0..20 {
        let mut buf = [0; 8];
        view.read_at(0, 6 + i * 4096, &mut buf).unwrap();
    }
    let (tell, told) = channel();
    view.read_then(1, 0, 10, Access::Random, Box::new(move |_| tell.send(()).unwrap_or(())));
    told.recv_timeout(SOON).unwrap();
    wait_until("near each other is a sequence", || view.engine().snapshot().tiles_ahead > 0);
    let (source, plan, _) = simple();
    let view = serve(plan, &source, Options { readahead_bytes: 1 << 20, ..options() });
    for i in 0..20 {
        let (tell, told) = channel();
        view.read_then(0, 6 + i * 4096, 8, Access::Random, Box::new(move |_| tell.send(()).unwrap_or(())));
        told.recv_timeout(SOON).unwrap();
    }
    assert_eq!(view.engine().snapshot().tiles_ahead, 0);
}

/// Hints that hang.
#[derive(Debug)]
struct Hinted {
    inner: Arc<Memory>,
    hints: std::sync::atomic::AtomicUsize,
    hung: std::sync::Mutex<Receiver<()>>,
}

impl Source for Hinted {
    fn name(&self) -> &'static str {
        "hinted"
    }
    fn entries(&self) -> &[Entry] {
        self.inner.entries()
    }
    fn read_exact_at(&self, id: FileId, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        self.inner.read_exact_at(id, offset, buf)
    }
    fn hint(&self, _: FileId, _: std::ops::Range<u64>) {
        self.hints.fetch_add(1, SeqCst);
        self.hung.lock().unwrap().recv().ok();
    }
}

/// A hint may open a file: whoever asks for bytes must not pay for it.
#[test]
fn hints_are_given_by_workers() {
    let inner = Arc::new(Memory::new(vec![vec![7; 1 << 20]]));
    let (release, hung) = channel();
    let source = Arc::new(Hinted { inner, hints: 0.into(), hung: hung.into() });
    let file = Layout::new("model.safetensors").bytes(&[1; 64]).source(0, 0, 1 << 20).file;
    let plan = Plan {
        spec: "toy".into(),
        source: "hinted".into(),
        rows: vec![],
        warnings: vec![],
        hidden: vec![],
        files: vec![file],
        surveys: vec![],
        weights: vec![],
    };
    let engine = Engine::new(Options { readahead_bytes: 1 << 20, ..options() }).unwrap();
    let view = View::new(Arc::new(plan), Arc::clone(&source) as Arc<dyn Source>, engine);
    let (tell, told) = channel();
    let its = Arc::clone(&view);
    // Past the header: who reads no further has not begun with what follows.
    thread::spawn(move || {
        its.read_then(0, 0, 80, Access::Sequential, Box::new(|_| ()));
        tell.send(()).unwrap();
    });
    let asked = told.recv_timeout(Duration::from_secs(5));
    wait_until("a worker hints", || source.hints.load(SeqCst) > 0);
    drop(release);
    asked.unwrap();
}

#[test]
fn views_that_agree_share_tiles() {
    let (source, plan, toy) = simple();
    toy.encoded.store(0, SeqCst);
    let engine = Engine::new(options()).unwrap();
    let one = View::new(Arc::new(plan.clone()), Arc::clone(&source) as Arc<dyn Source>, Arc::clone(&engine));
    let two = View::new(Arc::new(plan), source as Arc<dyn Source>, engine);
    let len = usize::try_from(one.plan().files[0].len).unwrap();
    assert_eq!(read(&one, 0, 0, len).unwrap(), read(&two, 0, 0, len).unwrap());
    assert_eq!(toy.encoded.load(SeqCst), 64);
}

/// A file of any length whose bytes are computed, so that it takes no memory.
#[derive(Debug)]
struct Endless {
    entries: Vec<Entry>,
    released: AtomicU64,
}

impl Source for Endless {
    fn name(&self) -> &'static str {
        "endless"
    }

    fn entries(&self) -> &[Entry] {
        &self.entries
    }

    fn read_exact_at(&self, _: FileId, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        for (i, word) in (offset / 8..).zip(buf.chunks_mut(8)) {
            word.copy_from_slice(&i.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes()[..word.len()]);
        }
        Ok(())
    }

    fn release(&self, _: FileId, range: std::ops::Range<u64>) {
        self.released.fetch_add(range.end - range.start, SeqCst);
    }
}

fn peak_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Run by the next test in a process of its own, where nobody else takes memory.
#[test]
#[ignore = "a part of memory_stays_within_the_budget"]
fn streams_ten_times_the_cache() {
    const CACHE: usize = 16 << 20;
    let elements = 10 * CACHE;
    let version = Version { len: 2 * elements as u64, mtime_ns: 0, inode: 0, device: 0 };
    let entries = vec![Entry { path: "endless".to_owned(), version }];
    let source = Arc::new(Endless { entries, released: AtomicU64::new(0) });
    // Tiles of 1 Mi elements, 2 MiB of source each; the header puts every read across two of them.
    let scheme = Toy::new(Axis::Flat, 64);
    let weight =
        planned("w", vec![elements / 4096, 4096], plain(vec![run(0, 0, elements, 2)], Float::Bf16), scheme, 1 << 14);
    let plan = Plan {
        files: vec![Layout::new("f").bytes(&[0; 1 << 19]).weight(0, &weight).file],
        weights: vec![weight],
        ..Plan::default()
    };
    let len = plan.files[0].len;
    let options = Options {
        cache_bytes: CACHE,
        threads: 40,
        readahead_bytes: 64 << 20,
        source_cache: SourceCache::Drop,
        ..options()
    };
    let before = peak_kib();
    let view = View::new(Arc::new(plan), Arc::clone(&source) as Arc<dyn Source>, Engine::new(options).unwrap());
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(SeqCst) {
                assert!(view.engine().snapshot().cache_bytes <= CACHE as u64);
            }
        });
        // All at once: far more is asked for than may be in memory.
        let told: Vec<_> = (0..len.div_ceil(1 << 20))
            .map(|i| {
                let (tell, told) = channel();
                let done = move |bytes: Result<&[u8], ReadError>| tell.send(bytes.unwrap().len() as u64).unwrap_or(());
                view.read_then(0, i << 20, 1 << 20, Access::Detect, Box::new(done));
                told
            })
            .collect();
        let sum: u64 = told.iter().map(|told| told.recv_timeout(Duration::from_secs(120)).unwrap()).sum();
        assert_eq!(sum, len);
        stop.store(true, SeqCst);
    });
    let grown = (peak_kib() - before) << 10;
    assert!(grown < CACHE + (64 << 20), "{} MiB, {:?}", grown >> 20, view.engine().snapshot());
    assert_eq!(source.released.load(SeqCst), view.engine().snapshot().source_bytes);
    eprintln_peak(grown, &view);
}

#[expect(clippy::print_stderr, reason = "the figure belongs to the test's report")]
fn eprintln_peak(grown: usize, view: &Arc<View>) {
    eprintln!("grown by {} MiB: {:?}", grown >> 20, view.engine().snapshot());
}

#[test]
fn memory_stays_within_the_budget() {
    let me = std::env::current_exe().unwrap();
    let args = ["--exact", "reads::streams_ten_times_the_cache", "--ignored", "--nocapture"];
    // glibc gives every thread an arena of its own, and each keeps what was freed in it: that is the
    // allocator's, and the daemon asks for two of them as this does.
    let out = Command::new(me).args(args).env("MALLOC_ARENA_MAX", "2").output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success() && said.contains("1 passed"), "{said}");
}
