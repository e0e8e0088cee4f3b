//! `quantfs bench read`: reading a view through a mount of its own, beside reading the source.
//!
//! Always: before anything is timed every byte of a mount was compared with those of an engine of one thread that
//! has no mount, and limit and case take turns. A mount is in a temporary directory, has caches of its own, and is
//! gone afterwards.

use std::{
    collections::BTreeSet,
    fs::File,
    hint::black_box,
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Args;
use rustix::fs::{Advice, fadvise};

use crate::{
    bulk::bench::{Figure, median, sum},
    cli::{
        Failure,
        args::WINDOW,
        caches,
        facts::{Facts, OfMount},
        memory, mount,
        options::ViewArgs,
    },
    fuse::{self, Access, Force, MountOptions, Session, SessionOptions, Show, Shown},
    plan::{self, Content, Options, Plan},
    runtime,
    source::{self, FileId, Source},
    view::{self, Engine, View},
};

/// As `cat` reads.
const BUFFER: usize = 128 << 10;

/// A read of the check: one request of the kernel.
const CHUNK: usize = 1 << 20;

/// Weights of the layer that is read alone, 4096 x 4096: as many of a larger one in the middle of the view.
const LAYER: u64 = 1 << 24;

/// Reading a view through a mount: cold, warm, mapped; the first layer; being ready
#[derive(Args, Clone, Debug)]
pub(super) struct ReadArgs {
    /// A model directory, a repo id of the Hugging Face cache, or a .safetensors file; a gigabyte or more
    source: String,
    /// Take the source out of the page cache before each cold read
    #[arg(long)]
    evict: bool,
}

/// A file, the first byte and the length of a run of it.
type Run<F> = (F, u64, u64);

/// Views to read, and how.
pub(super) struct Job {
    pub(super) args: ReadArgs,
    /// One view each.
    pub(super) options: Vec<Options>,
    /// Threads that encode, a mount each.
    pub(super) threads: Vec<usize>,
    /// Turns of each case.
    pub(super) rounds: usize,
}

/// What one mount of one view gave, turn by turn, with what limits it: in bytes a nanosecond, or milliseconds.
#[derive(Default)]
struct Turns {
    cold: Pairs,
    warm: Pairs,
    fresh: Pairs,
    mapped: Pairs,
    layer: Pairs,
    ready: Pairs,
}

/// Values and limits.
#[derive(Default)]
struct Pairs(Vec<f64>, Vec<f64>);

impl Pairs {
    fn push(&mut self, value: f64, limit: f64) {
        self.0.push(value);
        self.1.push(limit);
    }

    /// The median value, and the limit that stands to it as limits stood to values, in the median of the turns.
    fn medians(&mut self) -> (f64, f64) {
        let mut ratios: Vec<f64> = self.0.iter().zip(&self.1).map(|(value, limit)| limit / value).collect();
        let value = median(&mut self.0);
        (value, value * median(&mut ratios))
    }
}

/// A view for each spec, or the default one.
pub(super) fn options(specs: &[String]) -> Result<Vec<Options>, Failure> {
    let view = |spec: Option<String>| Ok(ViewArgs { spec, ..Default::default() }.options()?);
    if specs.is_empty() {
        return Ok(vec![view(None)?]);
    }
    specs.iter().map(|spec| view(Some(spec.clone()))).collect()
}

impl Job {
    /// Measures, and tells the figures of each view when all of its turns are over.
    ///
    /// # Errors
    /// A source that cannot be read or has nothing to quantize, a mount that is refused, bytes that are wrong.
    pub(super) fn run(&self, mut tell: impl FnMut(Vec<Figure>)) -> Result<(), Failure> {
        let source: Arc<dyn Source> = source::open(&self.args.source, &caches())?.into();
        for options in &self.options {
            let plan = Arc::new(plan::build(source.as_ref(), options)?);
            let bench = Bench::new(Arc::clone(&source), plan, options)?;
            bench.check()?;
            let mut turns: Vec<Turns> = self.threads.iter().map(|_| Turns::default()).collect();
            for _ in 0..self.rounds.max(1) {
                for (threads, turns) in self.threads.iter().zip(&mut turns) {
                    bench.turn(*threads, self.args.evict, turns)?;
                }
            }
            let figures = self.threads.iter().zip(turns).flat_map(|(n, turns)| bench.figures(*n, turns));
            tell(figures.collect());
        }
        Ok(())
    }
}

/// One view of a source.
struct Bench<'a> {
    source: Arc<dyn Source>,
    options: &'a Options,
    plan: Arc<Plan>,
    /// The source's files that weights come from.
    inputs: Vec<File>,
    /// The view's files with weights, and their number in the plan.
    outputs: Vec<(usize, String)>,
    /// Where a large weight in the middle lies: the file of the view, its first byte, its length.
    layer: Run<String>,
    /// As many bytes of the source as make it: file, first byte, length.
    layer_source: Run<FileId>,
}

impl<'a> Bench<'a> {
    fn new(source: Arc<dyn Source>, plan: Arc<Plan>, options: &'a Options) -> Result<Self, Failure> {
        let tiled = |file: &plan::File| file.extents.iter().any(|e| matches!(e.content, Content::Part { .. }));
        let outputs: Vec<(usize, String)> =
            plan.files.iter().enumerate().filter(|(_, f)| tiled(f)).map(|(i, f)| (i, f.path.clone())).collect();
        let inputs: BTreeSet<u32> = plan.weights.iter().flat_map(|w| w.origin.files()).map(|file| file.0).collect();
        let open = |file: u32| source.local_file(FileId(file)).map(File::from);
        let inputs: Option<Vec<File>> = inputs.into_iter().map(open).collect();
        let inputs = inputs.ok_or_else(|| Failure::refused("the source has no local files to compare with"))?;
        let (layer, layer_source) = layer(&plan).ok_or_else(|| {
            Failure::refused(format!(
                "{}: {} quantizes nothing in it; there is nothing to measure",
                plan.source, plan.spec
            ))
        })?;
        Ok(Self { source, options, plan, inputs, outputs, layer, layer_source })
    }

    /// A mount of it, fresh, and how long it took until it answered.
    fn mount(&self, threads: usize) -> Result<(Mount, Duration), Failure> {
        let place = tempfile::tempdir()?;
        let started = Instant::now();
        let plan = Arc::new(plan::build(self.source.as_ref(), self.options)?);
        let cache_bytes = usize::try_from(memory::default_cache_size()).unwrap_or(usize::MAX);
        let engine = Engine::new(view::Options { cache_bytes, threads, ..Default::default() })?;
        let view = View::new(plan, Arc::clone(&self.source), engine);
        let of_mount = OfMount::new(Arc::clone(view.engine()));
        let facts = Arc::new(Facts::new(&of_mount, view.plan()));
        let access = Access::Owner;
        let roots = self.source.local_roots().to_vec();
        let mounted =
            fuse::mount(place.path(), &MountOptions { source: self.plan.source.clone(), source_roots: roots, access })?;
        let options = SessionOptions {
            owner: fuse::Owner {
                uid: rustix::process::getuid().as_raw(),
                gid: rustix::process::getgid().as_raw(),
                umask: 0,
            },
            threads: mount::fuse_threads(),
            readahead: WINDOW,
            passthrough: false,
            epochs: true,
            released: || (),
        };
        let session = Session::start(mounted, Show::One(Shown { view: Arc::clone(&view), facts }), &options)?;
        let root = session.place().path.clone();
        std::fs::metadata(root.join(&self.outputs[0].1))?;
        Ok((Mount { root, session: Some(session), _place: place }, started.elapsed()))
    }

    /// Every byte through a mount is the view's.
    fn check(&self) -> Result<(), Failure> {
        let (mount, _) = self.mount(std::thread::available_parallelism().map_or(1, usize::from))?;
        let engine = Engine::new(view::Options { threads: 1, ..Default::default() })?;
        let alone = View::new(Arc::clone(&self.plan), Arc::clone(&self.source), engine);
        let (mut read, mut made) = (vec![0; CHUNK], vec![0; CHUNK]);
        for (number, path) in &self.outputs {
            let file = File::open(mount.root.join(path))?;
            for at in (0..self.plan.files[*number].len).step_by(CHUNK) {
                let len = usize::try_from(self.plan.files[*number].len - at).unwrap_or(CHUNK).min(CHUNK);
                file.read_exact_at(&mut read[..len], at)?;
                alone.read_at(*number, at, &mut made[..len]).map_err(|e| Failure::refused(e.to_string()))?;
                if read[..len] != made[..len] {
                    return Err(Failure::refused(format!("{path}: a read at {at} gave other bytes; nothing is timed")));
                }
            }
        }
        Ok(())
    }

    /// One turn of everything. The limits are measured beside what they limit.
    fn turn(&self, threads: usize, evict: bool, turns: &mut Turns) -> Result<(), Failure> {
        let bytes = self.source_bytes()?;
        let again = |evict: bool| if evict { self.evict() } else { self.read_source().map(drop) };
        again(evict)?;
        let limit = bytes / self.read_source()?;
        let (mount, ready) = self.mount(threads)?;
        turns.ready.push(ready.as_secs_f64() * 1e3, self.read_headers()? / 1e6);
        again(evict)?;
        turns.cold.push(bytes / nanoseconds(|| mount.read(self))?, limit);
        let view = self.view_bytes();
        let limit = bytes / self.read_source()?;
        turns.warm.push(view / nanoseconds(|| mount.read(self))?, limit);
        self.map(&mount, turns)?;
        drop(mount);
        again(false)?;
        let (mount, _) = self.mount(threads)?;
        let (path, at, len) = &self.layer;
        let took = nanoseconds(|| read_range(&File::open(mount.root.join(path))?, *at, *len))?;
        let (input, at, len) = self.layer_source;
        let input = self.source.local_file(input).map(File::from);
        let input = input.ok_or_else(|| Failure::refused("the source is gone"))?;
        let plain = nanoseconds(|| read_range(&input, at, len))?;
        turns.layer.push(took / 1e6, plain / 1e6);
        Ok(())
    }

    /// The largest file of the view and a file of the source, both in the page cache, mapped and summed up.
    fn map(&self, mount: &Mount, turns: &mut Turns) -> Result<(), Failure> {
        let longest = self.outputs.iter().max_by_key(|(number, _)| self.plan.files[*number].len);
        let Some((_, path)) = longest else { return Ok(()) };
        let [view, plain] = [&File::open(mount.root.join(path))?, &self.inputs[0]].map(sums);
        let ([fresh, mapped], [plain_fresh, plain_mapped]) = (view?, plain?);
        turns.fresh.push(fresh, plain_fresh);
        turns.mapped.push(mapped, plain_mapped);
        Ok(())
    }

    /// Reads the source's files one after the other; nanoseconds.
    fn read_source(&self) -> Result<f64, Failure> {
        nanoseconds(|| self.inputs.iter().try_for_each(read_whole))
    }

    /// Reads their headers; nanoseconds.
    fn read_headers(&self) -> Result<f64, Failure> {
        let mut len = [0; 8];
        nanoseconds(|| {
            self.inputs.iter().try_for_each(|file| {
                file.read_exact_at(&mut len, 0)?;
                read_range(file, 8, u64::from_le_bytes(len))
            })
        })
    }

    /// Takes them out of the page cache.
    fn evict(&self) -> Result<(), Failure> {
        for file in &self.inputs {
            fadvise(file, 0, None, Advice::DontNeed).map_err(std::io::Error::from)?;
        }
        Ok(())
    }

    fn source_bytes(&self) -> Result<f64, Failure> {
        let lens: std::io::Result<Vec<u64>> = self.inputs.iter().map(|file| Ok(file.metadata()?.len())).collect();
        Ok(lens?.iter().sum::<u64>() as f64)
    }

    fn view_bytes(&self) -> f64 {
        self.outputs.iter().map(|(number, _)| self.plan.files[*number].len).sum::<u64>() as f64
    }

    fn figures(&self, threads: usize, mut turns: Turns) -> Vec<Figure> {
        let figure = |case: &str, unit: &'static str, (value, limit): (f64, f64), limited_by: &'static str| Figure {
            bench: "read",
            case: format!("{} {case}", self.plan.spec),
            threads,
            value,
            unit,
            limit,
            limited_by,
            spec: self.plan.spec.clone(),
            arithmetic: None,
            inputs: None,
            bits_per_weight: None,
        };
        vec![
            figure("cold", "GB/s of source", turns.cold.medians(), "reading the source"),
            figure("warm", "GB/s", turns.warm.medians(), "reading the source"),
            figure("fresh mapping", "GB/s", turns.fresh.medians(), "the same of the source"),
            figure("existing mapping", "GB/s", turns.mapped.medians(), "the same of the source"),
            figure("first layer", "ms", turns.layer.medians(), "ms: reading as much source"),
            figure("ready", "ms", turns.ready.medians(), "ms: reading the headers"),
        ]
    }
}

/// A served view in a directory of its own.
struct Mount {
    root: PathBuf,
    session: Option<Session>,
    /// Removed last.
    _place: tempfile::TempDir,
}

impl Mount {
    fn read(&self, bench: &Bench<'_>) -> Result<(), Failure> {
        bench.outputs.iter().try_for_each(|(_, path)| read_whole(&File::open(self.root.join(path))?))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let Some(session) = self.session.take() else { return };
        if let Err(e) = session.unmount(Force::Yes) {
            tracing::warn!("{e}");
        }
    }
}

/// Nanoseconds that a job takes: bytes by them are GB/s.
fn nanoseconds(job: impl FnOnce() -> Result<(), Failure>) -> Result<f64, Failure> {
    let started = Instant::now();
    job()?;
    Ok(started.elapsed().as_nanos() as f64)
}

fn read_whole(file: &File) -> Result<(), Failure> {
    let (mut buffer, mut at) = (vec![0; BUFFER], 0);
    loop {
        let read = file.read_at(&mut buffer, at)?;
        if read == 0 {
            return Ok(());
        }
        black_box(&buffer);
        at += read as u64;
    }
}

fn read_range(file: &File, at: u64, len: u64) -> Result<(), Failure> {
    let mut buffer = vec![0; CHUNK];
    for offset in (at..at + len).step_by(CHUNK) {
        let left = usize::try_from(at + len - offset).unwrap_or(CHUNK).min(CHUNK);
        file.read_exact_at(&mut buffer[..left], offset)?;
    }
    Ok(())
}

/// GB/s of summing a file's words up, in a mapping that is new and in one that is known.
fn sums(file: &File) -> Result<[f64; 2], Failure> {
    let map = runtime::map(file)?;
    let words: &[u64] = bytemuck::cast_slice(&map[..map.len() / 8 * 8]);
    let rate = || {
        let started = Instant::now();
        black_box(sum(black_box(words)));
        map.len() as f64 / started.elapsed().as_nanos() as f64
    };
    Ok([rate(), rate()])
}

/// The codes of a weight in the middle of the view, at most [`LAYER`] of them, and as many bytes of its source.
fn layer(plan: &Plan) -> Option<(Run<String>, Run<FileId>)> {
    let mut parts = vec![];
    for file in &plan.files {
        let ends = file.extents.iter().skip(1).map(|e| e.start).chain([file.len]);
        for (extent, end) in file.extents.iter().zip(ends) {
            if let Content::Part { weight, part: 0 } = extent.content {
                let planned = &plan.weights[weight as usize];
                let (all, size) = (planned.weight.elements() as u64, planned.origin.stored.size() as u64);
                let few = all.min(LAYER);
                let len = (end - extent.start) * few / all.max(1);
                let Some(piece) = planned.origin.pieces.first() else { continue };
                let there = ((piece.rows - 1) * piece.row_stride + piece.cols * piece.col_stride) as u64;
                let source = (piece.file, piece.offset, there.min(few * size));
                parts.push((few, ((file.path.clone(), extent.start, len), source)));
            }
        }
    }
    let largest = parts.iter().map(|(few, _)| *few).max()?;
    // Of a model with small layers the embedding may be the only large one: half as many will do.
    let large: Vec<_> = parts.into_iter().filter(|(few, _)| *few >= largest / 2).map(|(_, found)| found).collect();
    large.get(large.len() / 2).cloned()
}
