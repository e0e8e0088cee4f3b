//! One tile: elements from the origin, cast, encoded into all its parts at once.
//!
//! What comes out is a function of the source's elements and the scheme alone. Whatever is allocated
//! here is either a part, which the caller hands on, or one of the reused [`Buffers`].

use std::{
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex},
    time::Instant,
};

use crate::{
    cache::lock,
    kernel::{Cast, kernels},
    plan::{Origin, Planned},
    quant::{Axis, Content},
    tensor::Rows,
};

use super::{
    counters::{Counters, add},
    error::Failure,
    gather::{Gather, Reader, WINDOW},
};

/// The bytes of one tile, one entry a part of the weight; empty for constants.
pub(super) type Tile = Arc<[Arc<[u8]>]>;

/// What unused buffers may keep in all; see the pool's allowances.
const IDLE_BYTES: usize = 6 << 20;

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

/// Bytes that encoding a tile takes at most: elements, their cast, the window, the parts.
pub(super) fn cost(planned: &Planned, tile: u32) -> usize {
    let (rows, cols) = dimensions(planned, &band(planned, tile));
    let origin = &planned.origin;
    let cast = if is_cast(origin) { origin.float.size() } else { 0 };
    let size = origin.stored.size();
    let window = if origin.pieces.iter().all(|p| p.col_stride == size && p.rows == 1) { 0 } else { WINDOW };
    rows * cols * (size + cast) + window + lengths(planned, tile).iter().sum::<usize>()
}

/// Bytes of each part of a tile.
fn lengths(planned: &Planned, tile: u32) -> Vec<usize> {
    shares(planned, tile).map(|share| share.len()).collect()
}

/// Where the share of a tile lies in each part; empty for constants.
pub(super) fn shares(planned: &Planned, tile: u32) -> impl Iterator<Item = Range<usize>> {
    let extent = planned.banding.extent(&planned.weight);
    planned.parts.iter().map(move |part| part.range(planned.banding, extent, band(planned, tile)))
}

/// What encoding needs of its engine and view.
pub(super) struct Encoder<'a> {
    pub(super) reader: Reader<'a>,
    pub(super) counters: &'a Counters,
    pub(super) shelf: &'a Shelf,
}

impl Encoder<'_> {
    /// Encodes one tile; a panic on the way is a failure like any other.
    pub(super) fn tile(&self, planned: &Planned, tile: u32) -> Result<Tile, Failure> {
        let mut buffers = self.shelf.take();
        let made = catch_unwind(AssertUnwindSafe(|| self.encode(planned, tile, &mut buffers)));
        self.shelf.put(buffers);
        made.unwrap_or_else(|panic| Err(Failure::of_panic(&*panic)))
    }

    fn encode(&self, planned: &Planned, tile: u32, buffers: &mut Buffers) -> Result<Tile, Failure> {
        let band = band(planned, tile);
        let (rows, cols) = dimensions(planned, &band);
        self.gather(planned, band, rows * cols, buffers)?;
        let started = Instant::now();
        self.look_for_odd(planned, tile, &buffers.stored);
        let data = prepare(&planned.origin, rows * cols, buffers);
        let mut parts: Vec<Arc<[u8]>> = lengths(planned, tile).into_iter().map(zeroed).collect();
        let mut out: Vec<&mut [u8]> = parts
            .iter_mut()
            .zip(&planned.parts)
            .filter(|(_, part)| matches!(part.content, Content::Tiled { .. }))
            .filter_map(|(bytes, _)| Arc::get_mut(bytes))
            .collect();
        planned.scheme.encode(Rows { data, float: planned.origin.float, rows, cols }, &mut out);
        add(&self.counters.encode_ns, usize::try_from(started.elapsed().as_nanos()).unwrap_or(usize::MAX));
        add(&self.counters.tiles, 1);
        Ok(parts.into())
    }

    /// NaN and infinite elements have the bytes that the reference library gives them; they are
    /// counted, since whoever reads the view should know.
    fn look_for_odd(&self, planned: &Planned, tile: u32, stored: &[u8]) {
        let count = kernels().not_finite(planned.origin.stored, stored);
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
        Ok(gather.band(planned.banding.axis, band, stored)?)
    }
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

pub(super) fn zeroed(len: usize) -> Arc<[u8]> {
    std::iter::repeat_n(0, len).collect()
}
