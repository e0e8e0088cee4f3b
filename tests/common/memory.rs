//! Sources in memory that fail on request, toy schemes for every axis, hand-made plans, and the
//! fully materialized file to compare a view with.

use std::{
    ops::Range,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::SystemTime,
};

use quantfs::{
    kernel::{Cast, available},
    plan::{Content, Delta, Extent, Factor, File, Origin, Piece, Plan, Planned},
    quant::{self, Axis, Banding, Facts, Part, Scheme, Unsupported, Weight},
    source::{Entry, Error, FileId, Source, Version},
    tensor::{Dtype, Float, Rows},
};

use super::tables::select_kernels;

/// Numbers that look random and are the same in every run.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// splitmix64.
    pub(crate) fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number of the range, which is not empty.
    pub(crate) fn of(&mut self, range: Range<usize>) -> usize {
        range.start + usize::try_from(self.word() % (range.len() as u64)).unwrap()
    }

    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.of(0..of.len())]
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len.div_ceil(8)).flat_map(|_| self.word().to_le_bytes()).take(len).collect()
    }
}

/// Files in memory.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    entries: Vec<Entry>,
    pub(crate) files: Vec<Vec<u8>>,
    /// Reads of this file fail.
    pub(crate) broken: Mutex<Option<FileId>>,
    /// They say that it changed.
    pub(crate) changed: AtomicBool,
    hung: Mutex<bool>,
    release: Condvar,
    /// Reads that hang at the moment.
    pub(crate) hanging: AtomicUsize,
    pub(crate) read_bytes: AtomicU64,
}

impl Memory {
    pub(crate) fn new(files: Vec<Vec<u8>>) -> Self {
        select_kernels();
        let version = |f: &Vec<u8>| Version { len: f.len() as u64, mtime_ns: 0, inode: 0, device: 0 };
        let entry = |(i, f)| Entry { path: format!("source-{i:03}"), version: version(f) };
        Self { entries: files.iter().enumerate().map(entry).collect(), files, ..Self::default() }
    }

    /// The same bytes in files of this version.
    pub(crate) fn with_version(&self, version: Version) -> Self {
        let entries = self.entries.iter().map(|entry| Entry { version, ..entry.clone() }).collect();
        Self { entries, files: self.files.clone(), ..Self::default() }
    }

    /// Lets all reads hang, or go on.
    pub(crate) fn hang(&self, hung: bool) {
        *self.hung.lock().unwrap() = hung;
        self.release.notify_all();
    }
}

impl Source for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn entries(&self) -> &[Entry] {
        &self.entries
    }

    fn read_exact_at(&self, id: FileId, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        self.hanging.fetch_add(1, SeqCst);
        drop(self.release.wait_while(self.hung.lock().unwrap(), |hung| *hung).unwrap());
        self.hanging.fetch_sub(1, SeqCst);
        let path = self.entry(id).path.clone();
        if *self.broken.lock().unwrap() == Some(id) {
            buf.fill(0xAA);
            return Err(if self.changed.load(SeqCst) {
                Error::Changed { path, what: "its length".to_owned() }
            } else {
                Error::Io { path, offset, source: std::io::Error::from_raw_os_error(5) }
            });
        }
        let start = usize::try_from(offset).unwrap();
        buf.copy_from_slice(&self.files[id.0 as usize][start..start + buf.len()]);
        self.read_bytes.fetch_add(buf.len() as u64, SeqCst);
        Ok(())
    }
}

/// A scheme of one byte an element (a mix of its bits) and one word a granule (their sum). Columns
/// are stored column by column, so that a band of them is contiguous.
#[derive(Debug)]
pub(crate) struct Toy {
    pub(crate) banding: Banding,
    /// Tiles encoded.
    pub(crate) encoded: AtomicUsize,
    /// The next tile panics.
    pub(crate) panic: AtomicBool,
}

impl Toy {
    pub(crate) fn new(axis: Axis, granule: usize) -> Arc<Self> {
        let banding = Banding { axis, granule };
        Arc::new(Self { banding, encoded: AtomicUsize::new(0), panic: AtomicBool::new(false) })
    }
}

fn mix(element: &[u8]) -> u32 {
    let bits = element.iter().rev().fold(0u32, |n, b| n << 8 | u32::from(*b));
    (bits ^ (bits >> 15)).wrapping_mul(0x2C1B_3C6D)
}

impl Scheme for Toy {
    fn id(&self) -> String {
        format!("toy {:?}", self.banding)
    }

    fn facts(&self) -> Facts {
        Facts { bits: 8, group_size: self.banding.granule, mode: "toy" }
    }

    fn parts(&self, weight: &Weight) -> Result<Vec<Part>, Unsupported> {
        let granule = self.banding.granule;
        let across = match self.banding.axis {
            Axis::Flat => 1,
            Axis::Rows => weight.cols(),
            Axis::Columns => weight.rows(),
        };
        let granules = self.banding.extent(weight).div_ceil(granule);
        let tiled = |per_granule| quant::Content::Tiled { per_granule };
        let constant = quant::Content::Constant(Arc::from(*b"toy."));
        Ok(vec![
            Part {
                suffix: ".weight",
                dtype: Dtype::U8,
                shape: vec![weight.elements()],
                content: tiled(granule * across),
            },
            Part { suffix: ".shape", dtype: Dtype::U8, shape: vec![4], content: constant },
            Part { suffix: ".scales", dtype: Dtype::U32, shape: vec![granules], content: tiled(4) },
        ])
    }

    fn banding(&self, _: &Weight) -> Banding {
        self.banding
    }

    fn encode(&self, band: Rows<'_>, out: &mut [&mut [u8]]) {
        assert!(!self.panic.swap(false, SeqCst), "planted");
        self.encoded.fetch_add(1, SeqCst);
        let [codes, sums] = out else { panic!("two tiled parts") };
        let by_column = self.banding.axis == Axis::Columns;
        let element = |k: usize| {
            let at = if by_column { k % band.rows * band.cols + k / band.rows } else { k };
            mix(&band.data[at * band.float.size()..][..band.float.size()])
        };
        let per_granule = match self.banding.axis {
            Axis::Flat => self.banding.granule,
            Axis::Rows => self.banding.granule * band.cols,
            Axis::Columns => self.banding.granule * band.rows,
        };
        assert_eq!(codes.len(), band.elements(), "bytes of the codes");
        assert_eq!(sums.len(), codes.len().div_ceil(per_granule) * 4, "bytes of the sums");
        for (g, (sum, codes)) in sums.chunks_exact_mut(4).zip(codes.chunks_mut(per_granule)).enumerate() {
            let mut total = 0u32;
            for (i, code) in codes.iter_mut().enumerate() {
                let x = element(g * per_granule + i);
                *code = x.to_le_bytes()[3];
                total = total.wrapping_add(x);
            }
            sum.copy_from_slice(&total.to_le_bytes());
        }
    }

    fn decode(&self, _: &[&[u8]], _: Float, _: usize, _: &mut [f32]) {
        unreachable!("toys are not decoded");
    }
}

/// A weight as a plan holds it. `tile` in granules.
pub(crate) fn planned(name: &str, shape: Vec<usize>, origin: Origin, scheme: Arc<Toy>, tile: usize) -> Planned {
    let weight = Weight { stem: name.to_owned(), float: origin.float, shape };
    let parts = scheme.parts(&weight).unwrap();
    let banding = scheme.banding;
    let mut key = [0; 16];
    key[..name.len().min(16)].copy_from_slice(&name.as_bytes()[..name.len().min(16)]);
    Planned { weight, origin, scheme, survey: None, parts, banding, tile: tile * banding.granule, key }
}

/// Elements of a source file from `offset` on, one after the other.
pub(crate) fn run(file: u32, offset: u64, count: usize, size: usize) -> Piece {
    Piece { file: FileId(file), offset, rows: 1, row_stride: count * size, cols: count, col_stride: size }
}

/// An origin without cast.
pub(crate) fn plain(pieces: Vec<Piece>, float: Float) -> Origin {
    Origin { pieces, stored: float, float, plus_one: false, deltas: vec![] }
}

/// Appends to a file of a plan.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) file: File,
}

impl Layout {
    pub(crate) fn new(path: &str) -> Self {
        let modified = SystemTime::UNIX_EPOCH;
        Self { file: File { path: path.to_owned(), len: 0, modified, extents: Vec::new() } }
    }

    fn push(mut self, content: Content, len: u64) -> Self {
        self.file.extents.push(Extent { start: self.file.len, content });
        self.file.len += len;
        self
    }

    pub(crate) fn bytes(self, bytes: &[u8]) -> Self {
        self.push(Content::Bytes(Arc::from(bytes)), bytes.len() as u64)
    }

    pub(crate) fn source(self, file: u32, offset: u64, len: u64) -> Self {
        self.push(Content::Source { file: FileId(file), offset }, len)
    }

    /// All parts of a weight, in order.
    pub(crate) fn weight(mut self, index: u32, planned: &Planned) -> Self {
        for (number, part) in (0..).zip(&planned.parts) {
            self = match &part.content {
                quant::Content::Constant(bytes) => self.bytes(bytes),
                quant::Content::Tiled { .. } | quant::Content::First => {
                    self.push(Content::Part { weight: index, part: number }, part.len() as u64)
                }
            };
        }
        self
    }
}

/// The elements of a weight, one by one, by the definition of a piece.
fn elements(source: &Memory, origin: &Origin) -> Vec<u8> {
    let size = origin.stored.size();
    let mut out = Vec::new();
    // The reference table, which tests of its own compare with MLX.
    let scalar = available()[0];
    let job = Cast { from: origin.stored, to: origin.float, plus_one: origin.plus_one };
    for (number, piece) in origin.pieces.iter().enumerate() {
        let deltas: Vec<&Delta> = origin.deltas.iter().filter(|delta| delta.piece == number).collect();
        for (row, col) in (0..piece.rows).flat_map(|r| (0..piece.cols).map(move |c| (r, c))) {
            let at = usize::try_from(piece.offset).unwrap() + row * piece.row_stride + col * piece.col_stride;
            let own = &source.files[piece.file.0 as usize][at..at + size];
            let merged = merged(source, origin.stored, &deltas, at, own);
            let raw = if deltas.is_empty() { own } else { &merged };
            let start = out.len();
            out.resize(start + origin.float.size(), 0);
            scalar.cast(&job, raw, &mut out[start..]);
        }
    }
    out
}

/// One number of a file.
fn number(source: &Memory, float: Float, file: FileId, at: usize) -> f32 {
    let mut wide = [0; 4];
    let bytes = &source.files[file.0 as usize][at..at + float.size()];
    available()[0].cast(&Cast { from: float, to: Float::F32, plus_one: false }, bytes, &mut wide);
    f32::from_le_bytes(wide)
}

/// An element, which lies at `at` in its file, and what is added to it, by the definition of a delta.
fn merged(source: &Memory, stored: Float, deltas: &[&Delta], at: usize, own: &[u8]) -> Vec<u8> {
    let mut wide = [0; 4];
    available()[0].cast(&Cast { from: stored, to: Float::F32, plus_one: false }, own, &mut wide);
    let mut sum = f32::from_le_bytes(wide);
    for delta in deltas {
        let element = (at - usize::try_from(delta.start).unwrap()) / stored.size();
        let (n, k) = (element / delta.cols, element % delta.cols);
        assert!(n < delta.rows);
        let of = |factor: &Factor, element: usize| {
            let at = usize::try_from(factor.offset).unwrap() + element * factor.float.size();
            number(source, factor.float, factor.file, at)
        };
        let mut product = 0f32;
        for r in 0..delta.rank {
            product += of(&delta.up, n * delta.rank + r) * of(&delta.down, r * delta.cols + k);
        }
        sum += delta.scale * product;
    }
    let mut out = vec![0; stored.size()];
    available()[0].cast(&Cast { from: Float::F32, to: stored, plus_one: false }, &sum.to_le_bytes(), &mut out);
    out
}

/// All parts of a weight, encoded in one band; empty for constants.
fn encoded(source: &Memory, planned: &Planned) -> Vec<Vec<u8>> {
    let weight = &planned.weight;
    let data = elements(source, &planned.origin);
    let mut parts: Vec<Vec<u8>> =
        planned.parts.iter().map(|p| vec![0; if p.is_encoded() { p.len() } else { 0 }]).collect();
    let mut out: Vec<&mut [u8]> = parts.iter_mut().filter(|p| !p.is_empty()).map(Vec::as_mut_slice).collect();
    let (rows, cols) = match planned.banding.axis {
        Axis::Flat => (1, weight.elements()),
        _ => (weight.rows(), weight.cols()),
    };
    planned.scheme.encode(Rows { data: &data, float: planned.origin.float, rows, cols }, &mut out);
    parts
}

/// Every file of the plan, whole.
pub(crate) fn materialize(plan: &Plan, source: &Memory) -> Vec<Vec<u8>> {
    let weights: Vec<Vec<Vec<u8>>> = plan.weights.iter().map(|w| encoded(source, w)).collect();
    let mut files = Vec::new();
    for file in &plan.files {
        let mut bytes = Vec::new();
        for (i, extent) in file.extents.iter().enumerate() {
            assert_eq!(extent.start, bytes.len() as u64, "extents have no holes");
            let end = file.extents.get(i + 1).map_or(file.len, |next| next.start);
            let len = usize::try_from(end - extent.start).unwrap();
            match &extent.content {
                Content::Bytes(known) => bytes.extend_from_slice(known),
                Content::Source { file, offset } => {
                    let start = usize::try_from(*offset).unwrap();
                    bytes.extend_from_slice(&source.files[file.0 as usize][start..start + len]);
                }
                Content::Part { weight, part } => {
                    bytes.extend_from_slice(&weights[*weight as usize][usize::from(*part)]);
                }
            }
        }
        assert_eq!(bytes.len() as u64, file.len);
        files.push(bytes);
    }
    files
}
