//! One tile: elements from the origin, cast, encoded into all its parts at once.
//!
//! What comes out is a function of the source's elements and the scheme alone. A tile is encoded in
//! stretches that stay in a core's own cache from the read on. Parts, which the caller hands on, are made in
//! the memory of parts that were delivered, the rest in reused [`Buffers`]: pages that are new to the process
//! would cost more than the arithmetic.

use std::{
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use crate::{
    cache::{Cache, lock},
    kernel::{Cast, kernels},
    plan::{Origin, Planned},
    quant::{Axis, Banding, Scheme, Survey},
    tensor::Rows,
};

use super::{
    counters::{Counters, add},
    engine::PartKey,
    error::Failure,
    gather::{Gather, Reader, WINDOW},
    merge,
};

/// The bytes of one tile, one entry a part of the weight; empty for constants.
pub(super) type Tile = Arc<[Arc<[u8]>]>;

/// What unused buffers may keep in all; see the pool's allowances.
const IDLE_BYTES: usize = 6 << 20;

/// Source bytes of a stretch: with their cast and what becomes of them within a second-level cache of 1 MiB, and
/// long enough that reads cost no more for it.
const STRETCH_BYTES: usize = 256 << 10;

/// Buffers that tiles are made in, reused from tile to tile.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    pub(super) stored: Vec<u8>,
    cast: Vec<u8>,
    pub(super) window: Vec<u8>,
    /// What becomes of a strip, part by part.
    strip: Vec<u8>,
}

impl Buffers {
    fn capacity(&self) -> usize {
        [&self.stored, &self.cast, &self.window, &self.strip].map(Vec::capacity).iter().sum()
    }
}

/// Buffers that nobody uses at the moment, [`IDLE_BYTES`] at most.
#[derive(Debug, Default)]
pub(super) struct Shelf(Mutex<Vec<Buffers>>);

impl Shelf {
    fn take(&self) -> Buffers {
        lock(&self.0).pop().unwrap_or_default()
    }

    fn put(&self, buffers: Buffers) {
        let mut shelf = lock(&self.0);
        let kept: usize = shelf.iter().map(Buffers::capacity).sum();
        if kept + buffers.capacity() <= IDLE_BYTES {
            shelf.push(buffers);
        }
    }
}

/// Where a tile lies in its weight.
fn band(planned: &Planned, tile: u32) -> Range<usize> {
    let extent = planned.banding.extent(&planned.weight);
    let start = (tile as usize * planned.tile).min(extent);
    start..start.saturating_add(planned.tile).min(extent)
}

/// Rows and columns of a band, as its scheme is given them.
pub(super) fn dimensions(planned: &Planned, band: &Range<usize>) -> (usize, usize) {
    match planned.banding.axis {
        Axis::Flat => (1, band.len()),
        Axis::Rows => (band.len(), planned.weight.cols()),
        Axis::Columns => (planned.weight.rows(), band.len()),
    }
}

/// Whether elements are read as they lie, in long runs, and neither picked out of a window nor added to.
fn is_straight(origin: &Origin) -> bool {
    origin.deltas.is_empty() && origin.pieces.iter().all(|p| p.col_stride == origin.stored.size() && p.rows == 1)
}

/// Length of a stretch along the axis. Elements that are picked are read once a tile.
fn stretch(planned: &Planned) -> usize {
    let Banding { axis, granule } = planned.banding;
    let line = match axis {
        Axis::Flat => 1,
        Axis::Rows => planned.weight.cols(),
        Axis::Columns => return planned.tile,
    };
    let bytes = granule * line * planned.origin.stored.size();
    if is_straight(&planned.origin) { granule * (STRETCH_BYTES / bytes.max(1)).max(1) } else { planned.tile }
}

/// The stretches of a band, in order.
pub(super) fn stretches(planned: &Planned, band: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let step = stretch(planned);
    band.clone().step_by(step).map(move |start| start..start.saturating_add(step).min(band.end))
}

/// Rows of a strip of a band of columns, where that is made strip by strip. What is added to is made as a whole.
pub(super) fn strip(planned: &Planned, band: &Range<usize>) -> Option<usize> {
    let granule = planned.strip_rows()?;
    let bytes = granule * band.len() * planned.origin.stored.size();
    Some(granule * (STRETCH_BYTES / bytes.max(1)).max(1))
}

/// Bytes that encoding a tile takes at most: elements of a stretch, their cast, the window, the parts.
pub(super) fn cost(planned: &Planned, tile: u32) -> usize {
    let band = band(planned, tile);
    let made = places(planned, &band).map(|part| part.len()).sum::<usize>();
    let first = stretches(planned, band.clone()).next().unwrap_or(0..0);
    let (height, cols) = dimensions(planned, &first);
    let rows = strip(planned, &band).map_or(height, |rows| rows.min(height));
    let origin = &planned.origin;
    let cast = if is_cast(origin) { origin.float.size() } else { 0 };
    let window = if is_straight(origin) && planned.banding.axis != Axis::Columns { 0 } else { WINDOW };
    let of_strip = if rows < height { made * rows / height } else { 0 };
    let added = merge::cost(origin, &planned.weight, planned.banding.axis, &first);
    let scratch = planned.scheme.scratch(rows * cols);
    rows * cols * (origin.stored.size() + cast) + window + added + scratch + of_strip + made
}

/// The bytes of each part that a band makes.
pub(super) fn places(planned: &Planned, band: &Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let extent = planned.banding.extent(&planned.weight);
    planned.parts.iter().map(move |part| part.range(planned.banding, extent, band.clone()))
}

/// The bytes of the encoded parts that a stretch makes, cut off from what is left of all parts.
fn cut<'a>(planned: &Planned, stretch: &Range<usize>, rest: &mut [&'a mut [u8]]) -> Vec<&'a mut [u8]> {
    let cut = rest.iter_mut().zip(places(planned, stretch)).map(|(rest, part)| rest.split_off_mut(..part.len()));
    cut.zip(&planned.parts).filter(|(_, part)| part.is_encoded()).filter_map(|(out, _)| out).collect()
}

/// Where the share of a tile lies in each part; empty for constants.
pub(super) fn shares(planned: &Planned, tile: u32) -> Vec<Range<usize>> {
    places(planned, &band(planned, tile)).collect()
}

/// What encoding needs of its engine and view.
pub(super) struct Encoder<'a> {
    pub(super) reader: Reader<'a>,
    pub(super) counters: &'a Counters,
    pub(super) shelf: &'a Shelf,
    /// Where parts that were delivered give their memory up.
    pub(super) cache: &'a Cache<PartKey>,
}

impl Encoder<'_> {
    /// Encodes one tile with a scheme that knows what it must; a panic on the way is a failure like any other.
    pub(super) fn tile(&self, planned: &Planned, scheme: &dyn Scheme, tile: u32) -> Result<Tile, Failure> {
        self.guarded(|buffers| self.encode(planned, scheme, tile, buffers))
    }

    /// What a tile tells a survey, a stretch after the other.
    pub(super) fn look(&self, planned: &Planned, survey: &dyn Survey, tile: u32) -> Result<Vec<Vec<f32>>, Failure> {
        self.guarded(|buffers| {
            let looks = stretches(planned, band(planned, tile)).map(|stretch| {
                let (rows, cols) = dimensions(planned, &stretch);
                self.gather(planned, stretch, rows * cols, buffers)?;
                let data = prepare(&planned.origin, rows * cols, buffers);
                Ok(survey.look(Rows { data, float: planned.origin.float, rows, cols }))
            });
            looks.collect()
        })
    }

    pub(super) fn guarded<T>(&self, work: impl FnOnce(&mut Buffers) -> Result<T, Failure>) -> Result<T, Failure> {
        let mut buffers = self.shelf.take();
        let made = catch_unwind(AssertUnwindSafe(|| work(&mut buffers)));
        self.shelf.put(buffers);
        made.unwrap_or_else(|panic| Err(Failure::of_panic(&*panic)))
    }

    fn encode(
        &self,
        planned: &Planned,
        scheme: &dyn Scheme,
        tile: u32,
        buffers: &mut Buffers,
    ) -> Result<Tile, Failure> {
        let band = band(planned, tile);
        let mut parts: Vec<Arc<[u8]>> = places(planned, &band).map(|part| memory(self.cache, part.len())).collect();
        let own = |part| Arc::get_mut(part).expect("nobody has heard of it yet");
        let mut rest: Vec<&mut [u8]> = parts.iter_mut().map(own).collect();
        let mut tally = Tally::default();
        if let Some(step) = strip(planned, &band) {
            let out = cut(planned, &band, &mut rest);
            self.strips(planned, scheme, (band, step), out, buffers, &mut tally)?;
        } else {
            for stretch in stretches(planned, band) {
                let (start, (rows, cols)) = (stretch.start, dimensions(planned, &stretch));
                let mut out = cut(planned, &stretch, &mut rest);
                self.gather(planned, stretch, rows * cols, buffers)?;
                tally.encode(planned, (scheme, start), [rows, cols], buffers, &mut out);
            }
        }
        self.tell_odd(planned, tile, tally.odd);
        add(&self.counters.encode_ns, usize::try_from(tally.busy.as_nanos()).unwrap_or(usize::MAX));
        add(&self.counters.tiles, 1);
        Ok(parts.into())
    }

    /// A band of columns, so many rows after the other: what becomes of them is a share of each line of the parts.
    fn strips(
        &self,
        planned: &Planned,
        scheme: &dyn Scheme,
        (band, step): (Range<usize>, usize),
        mut out: Vec<&mut [u8]>,
        buffers: &mut Buffers,
        tally: &mut Tally,
    ) -> Result<(), Failure> {
        let (height, size) = (planned.weight.rows(), planned.origin.stored.size());
        let mut made = std::mem::take(&mut buffers.strip);
        for first in (0..height).step_by(step) {
            let rows = first..(first + step).min(height);
            buffers.stored.resize(rows.len() * band.len() * size, 0);
            let Buffers { stored, window, .. } = &mut *buffers;
            self.gathering(planned, window).strip(rows.clone(), band.clone(), stored)?;
            let shares: Vec<usize> = out.iter().map(|part| part.len() * rows.len() / height).collect();
            made.resize(shares.iter().sum(), 0);
            let mut rest = made.as_mut_slice();
            let mut split = |len: &usize| rest.split_off_mut(..*len).unwrap_or_default();
            let mut strip: Vec<&mut [u8]> = shares.iter().map(&mut split).collect();
            tally.encode(planned, (scheme, band.start), [rows.len(), band.len()], buffers, &mut strip);
            let encoded = planned.parts.iter().filter(|part| part.is_encoded());
            for ((part, whole), strip) in encoded.zip(&mut out).zip(&strip) {
                let line = part.shape.last().map_or(0, |n| n * part.dtype.bitsize() / 8);
                let (at, own) = (line * first / height, line * rows.len() / height);
                for (line, own) in whole.chunks_exact_mut(line.max(1)).zip(strip.chunks_exact(own.max(1))) {
                    line[at..at + own.len()].copy_from_slice(own);
                }
            }
        }
        buffers.strip = made;
        Ok(())
    }

    /// NaN and infinite elements have the bytes that the reference library gives them; they are
    /// counted, since whoever reads the view should know.
    fn tell_odd(&self, planned: &Planned, tile: u32, count: usize) {
        if count == 0 {
            return;
        }
        let mut weights = lock(&self.counters.not_finite);
        let tiles = weights.entry(planned.key).or_default();
        let first = tiles.is_empty();
        tiles.insert(tile, count);
        drop(weights);
        if first {
            tracing::warn!("tensor {}: has elements that are NaN or infinite; status counts them", planned.weight.stem);
        }
    }

    pub(super) fn gather(
        &self,
        planned: &Planned,
        band: Range<usize>,
        count: usize,
        buffers: &mut Buffers,
    ) -> Result<(), Failure> {
        let Buffers { stored, window, .. } = buffers;
        stored.resize(count * planned.origin.stored.size(), 0);
        self.gathering(planned, window).band(planned.banding.axis, band.clone(), stored)?;
        Ok(merge::merge(&self.reader, &planned.origin, &planned.weight, (planned.banding.axis, band), stored)?)
    }

    pub(super) fn gathering<'a>(&'a self, planned: &'a Planned, window: &'a mut Vec<u8>) -> Gather<'a> {
        Gather { reader: &self.reader, origin: &planned.origin, weight: &planned.weight, window }
    }
}

/// What a tile takes beside reading.
#[derive(Default)]
struct Tally {
    /// Elements that are NaN or infinite.
    odd: usize,
    busy: Duration,
}

impl Tally {
    /// Encodes what was gathered, from a place on: so many rows and columns.
    fn encode(
        &mut self,
        planned: &Planned,
        (scheme, start): (&dyn Scheme, usize),
        [rows, cols]: [usize; 2],
        buffers: &mut Buffers,
        out: &mut [&mut [u8]],
    ) {
        let started = Instant::now();
        self.odd += kernels().not_finite(planned.origin.stored, &buffers.stored);
        let data = prepare(&planned.origin, rows * cols, buffers);
        scheme.encode_at(start, Rows { data, float: planned.origin.float, rows, cols }, out);
        self.busy += started.elapsed();
    }
}

/// Room for a part, with anything in it.
pub(super) fn memory(cache: &Cache<PartKey>, len: usize) -> Arc<[u8]> {
    cache.reclaim(len).unwrap_or_else(|| std::iter::repeat_n(0, len).collect())
}

/// The gathered elements as the scheme wants them: plus one, cast.
pub(super) fn prepare<'a>(origin: &Origin, count: usize, buffers: &'a mut Buffers) -> &'a [u8] {
    if !is_cast(origin) {
        return &buffers.stored;
    }
    let job = Cast { from: origin.stored, to: origin.float, plus_one: origin.plus_one };
    buffers.cast.resize(count * origin.float.size(), 0);
    kernels().cast(&job, &buffers.stored, &mut buffers.cast);
    &buffers.cast
}

fn is_cast(origin: &Origin) -> bool {
    origin.plus_one || origin.stored != origin.float
}
