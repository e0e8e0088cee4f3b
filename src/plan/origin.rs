//! From a dialect's slices to places in source files, and to the tiles of a weight.

use std::sync::Arc;

use crate::{
    plan::{
        Delta, Error, Origin, Piece, Planned, digest,
        snapshot::{LowRank, Place, Set},
    },
    quant::{Axis, Banding, Part, Scheme, Weight, dialect::Arranged},
    source::{FileId, Source, Version},
    tensor::{Float, TensorInfo},
};

/// Elements of a tile: 2 MiB of bf16 source. Large enough for few and sequential reads, small enough
/// that a first read waits a millisecond and that tiles in flight stay a small part of the budget.
const TILE_ELEMENTS: usize = 1 << 20;

/// Source bytes that are a dense tensor as they lie: file, offset, length of each run.
pub(crate) fn runs(set: &Set, tensor: &Arranged) -> Option<Vec<(FileId, u64, u64)>> {
    if tensor.plus_one {
        return None;
    }
    let mut runs: Vec<(FileId, u64, u64)> = vec![];
    for slice in &tensor.from {
        let info = &set.tensors[slice.tensor];
        let place = &set.places[slice.tensor];
        if !place.deltas.is_empty() {
            return None;
        }
        let contiguous = slice.col_stride == 1 && (slice.rows == 1 || slice.row_stride == slice.cols);
        if info.dtype != tensor.info.dtype || !contiguous {
            return None;
        }
        let bits = info.dtype.bitsize();
        let (start, len) = (slice.start.checked_mul(bits)?, slice.elements().checked_mul(bits)?);
        if start % 8 != 0 || len % 8 != 0 {
            return None;
        }
        let (start, len) = (place.offset + u64::try_from(start / 8).ok()?, u64::try_from(len / 8).ok()?);
        let file = place.file;
        match runs.last_mut() {
            Some((f, at, n)) if *f == file && *at + *n == start => *n += len,
            _ => runs.push((file, start, len)),
        }
    }
    Some(runs)
}

/// Where the elements of a tensor come from.
///
/// # Errors
/// Members of other dtypes than the first, or of one that cannot be computed with.
pub(crate) fn origin(set: &Set, tensor: &Arranged) -> Result<Origin, Error> {
    let name = &tensor.info.name;
    let refuse = |why: String| Error::refused(format!("tensor {name} of the view: {why}"));
    let target = tensor.info.dtype;
    let float =
        Float::of(target).ok_or_else(|| refuse(format!("{target} can be shown only as it lies in the source")))?;
    let mut stored = None;
    let mut pieces = Vec::with_capacity(tensor.from.len());
    let mut deltas = vec![];
    for slice in &tensor.from {
        let info = &set.tensors[slice.tensor];
        let this = Float::of(info.dtype);
        let this = this.ok_or_else(|| {
            refuse(format!("source tensor {} has dtype {}, which is not computed with", info.name, info.dtype))
        })?;
        if *stored.get_or_insert(this) != this {
            let first = &set.tensors[tensor.from[0].tensor];
            return Err(refuse(format!("its members {} and {} differ in dtype", first.name, info.name)));
        }
        let place = &set.places[slice.tensor];
        let size = this.size();
        deltas.extend(place.deltas.iter().map(|low_rank| delta(pieces.len(), place, info, low_rank)));
        pieces.push(Piece {
            file: place.file,
            offset: place.offset + (slice.start * size) as u64,
            rows: slice.rows,
            row_stride: slice.row_stride * size,
            cols: slice.cols,
            col_stride: slice.col_stride * size,
        });
    }
    let stored = stored.ok_or_else(|| refuse("it has no source".to_owned()))?;
    Ok(Origin { pieces, stored, float, plus_one: tensor.plus_one, deltas })
}

/// What an adapter adds to the tensor that a piece is of.
fn delta(piece: usize, place: &Place, info: &TensorInfo, of: &LowRank) -> Delta {
    let rows = info.shape.first().copied().unwrap_or(1);
    let cols = info.shape.iter().skip(1).product();
    let (up, down) = (of.up.clone(), of.down.clone());
    Delta { piece, start: place.offset, rows, cols, rank: of.rank, up, down, scale: of.scale }
}

/// A weight with its tiles and its cache key.
pub(crate) fn planned(
    source: &dyn Source,
    weight: Weight,
    origin: Origin,
    scheme: Arc<dyn Scheme>,
    parts: Vec<Part>,
) -> Planned {
    let key = key(source, &weight, &origin, scheme.as_ref());
    cut(weight, origin, scheme, parts, key)
}

/// A weight with its tiles.
pub(crate) fn cut(weight: Weight, origin: Origin, scheme: Arc<dyn Scheme>, parts: Vec<Part>, key: [u8; 16]) -> Planned {
    let banding = scheme.banding(&weight);
    let mut planned = Planned { weight, origin, scheme, survey: None, parts, banding, tile: banding.granule, key };
    planned.tile = match planned.strip_rows() {
        Some(_) => tile_cols(&planned),
        None => tile_len(banding, &planned.weight),
    };
    planned
}

/// The multiple of the granule that comes nearest to [`TILE_ELEMENTS`] from below, one granule at
/// the least.
fn tile_len(banding: Banding, weight: &Weight) -> usize {
    let unit = match banding.axis {
        Axis::Flat => 1,
        Axis::Rows => weight.cols(),
        Axis::Columns => weight.rows(),
    };
    let granules = TILE_ELEMENTS / unit.max(1) / banding.granule;
    granules.max(1) * banding.granule
}

/// Bytes of a row that one read brings: it takes 1 us out of the page cache, of which the call is the larger half.
const LINE_BYTES: usize = 4 << 10;
/// The most that a tile of columns has of a part; its source is never in memory as a whole.
const PART_BYTES: usize = 4 << 20;

/// Columns of a tile that is made strip by strip: rows long enough to be read one by one, while what
/// becomes of them stays small. The last tile is about as wide as the others.
fn tile_cols(planned: &Planned) -> usize {
    let Planned { weight, banding, parts, .. } = planned;
    let line = LINE_BYTES / planned.origin.stored.size();
    let wanted = line.max(TILE_ELEMENTS / weight.rows().max(1)).div_ceil(banding.granule);
    let extent = banding.extent(weight);
    let made = parts.iter().map(|part| part.range(*banding, extent, 0..banding.granule).len()).max();
    let most = wanted.min(PART_BYTES / made.unwrap_or(1).max(1)).max(1);
    let granules = extent.div_ceil(banding.granule).max(1);
    granules.div_ceil(granules.div_ceil(most)) * banding.granule
}

fn key(source: &dyn Source, weight: &Weight, origin: &Origin, scheme: &dyn Scheme) -> [u8; 16] {
    let mut hash = blake3::Hasher::new();
    digest::weight(&mut hash, weight, origin, scheme, &mut |hash, file| {
        let Version { len, mtime_ns, inode, device } = source.entry(file).version;
        for number in [len, inode, device] {
            hash.update(&number.to_le_bytes());
        }
        hash.update(&mtime_ns.to_le_bytes());
    });
    let mut key = [0; 16];
    key.copy_from_slice(&hash.finalize().as_bytes()[..16]);
    key
}
