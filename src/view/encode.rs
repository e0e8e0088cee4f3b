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
    stored: Vec<u8>,
    cast: Vec<u8>,
    window: Vec<u8>,
}

impl Buffers {
    fn capacity(&self) -> usize {
        self.stored.capacity() + self.cast.capacity() + self.window.capacity()
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
fn dimensions(planned: &Planned, band: &Range<usize>) -> (usize, usize) {
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
fn stretches(planned: &Planned, band: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let step = stretch(planned);
    band.clone().step_by(step).map(move |start| start..start.saturating_add(step).min(band.end))
}

/// Bytes that encoding a tile takes at most: elements of a stretch, their cast, the window, the parts.
pub(super) fn cost(planned: &Planned, tile: u32) -> usize {
    let band = band(planned, tile);
    let first = stretches(planned, band.clone()).next().unwrap_or(0..0);
    let (rows, cols) = dimensions(planned, &first);
    let origin = &planned.origin;
    let cast = if is_cast(origin) { origin.float.size() } else { 0 };
    let window = if is_straight(origin) { 0 } else { WINDOW };
    rows * cols * (origin.stored.size() + cast)
        + window
        + merge::cost(origin)
        + places(planned, &band).map(|part| part.len()).sum::<usize>()
}

/// The bytes of each part that a band makes.
fn places(planned: &Planned, band: &Range<usize>) -> impl Iterator<Item = Range<usize>> {
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

    fn guarded<T>(&self, work: impl FnOnce(&mut Buffers) -> Result<T, Failure>) -> Result<T, Failure> {
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
        let (mut odd, mut busy) = (0, Duration::ZERO);
        for stretch in stretches(planned, band) {
            let (rows, cols) = dimensions(planned, &stretch);
            let mut out = cut(planned, &stretch, &mut rest);
            self.gather(planned, stretch, rows * cols, buffers)?;
            let started = Instant::now();
            odd += kernels().not_finite(planned.origin.stored, &buffers.stored);
            let data = prepare(&planned.origin, rows * cols, buffers);
            scheme.encode(Rows { data, float: planned.origin.float, rows, cols }, &mut out);
            busy += started.elapsed();
        }
        self.tell_odd(planned, tile, odd);
        add(&self.counters.encode_ns, usize::try_from(busy.as_nanos()).unwrap_or(usize::MAX));
        add(&self.counters.tiles, 1);
        Ok(parts.into())
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

    fn gather(
        &self,
        planned: &Planned,
        band: Range<usize>,
        count: usize,
        buffers: &mut Buffers,
    ) -> Result<(), Failure> {
        let Buffers { stored, window, .. } = buffers;
        stored.resize(count * planned.origin.stored.size(), 0);
        let mut gather = Gather { reader: &self.reader, origin: &planned.origin, weight: &planned.weight, window };
        gather.band(planned.banding.axis, band.clone(), stored)?;
        Ok(merge::merge(&self.reader, &planned.origin, &planned.weight, (planned.banding.axis, band), stored)?)
    }
}

/// Room for a part, with anything in it.
pub(super) fn memory(cache: &Cache<PartKey>, len: usize) -> Arc<[u8]> {
    cache.reclaim(len).unwrap_or_else(|| std::iter::repeat_n(0, len).collect())
}

/// The gathered elements as the scheme wants them: plus one, cast.
fn prepare<'a>(origin: &Origin, count: usize, buffers: &'a mut Buffers) -> &'a [u8] {
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
