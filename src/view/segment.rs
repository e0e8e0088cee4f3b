//! A range of a file as the runs of bytes that it is made of.
//!
//! Pure: looks at the plan alone, allocates nothing, reads nothing.

use std::{ops::Range, sync::Arc};

use crate::{
    plan::{Content, File, Plan, Planned},
    source::FileId,
};

/// A run of bytes of one origin within a range.
#[derive(Clone, Debug)]
pub(super) struct Segment<'a> {
    /// Offset in the file.
    pub(super) offset: u64,
    /// Length in bytes, never 0.
    pub(super) len: usize,
    pub(super) from: From<'a>,
}

/// Where a segment's bytes lie.
#[derive(Clone, Debug)]
pub(super) enum From<'a> {
    /// From `at` on in bytes known since the plan.
    Bytes { bytes: &'a Arc<[u8]>, at: usize },
    /// From `offset` on in a source file.
    Source { file: FileId, offset: u64 },
    /// From `at` on in the part that a tile makes.
    Tile { weight: u32, part: u16, tile: u32, at: usize },
}

/// The segments of a range, in order and without holes.
pub(super) struct Segments<'a> {
    plan: &'a Plan,
    file: &'a File,
    extent: usize,
    range: Range<u64>,
}

impl<'a> Segments<'a> {
    /// `range` is cut off at the end of the file.
    pub(super) fn new(plan: &'a Plan, file: &'a File, range: Range<u64>) -> Self {
        let extent = file.extents.partition_point(|e| e.start <= range.start).saturating_sub(1);
        Self { plan, file, extent, range: range.start..range.end.min(file.len) }
    }
}

impl<'a> Iterator for Segments<'a> {
    type Item = Segment<'a>;

    fn next(&mut self) -> Option<Segment<'a>> {
        let offset = self.range.start;
        if offset >= self.range.end {
            return None;
        }
        let extents = &self.file.extents;
        // Extents without bytes start where the next one does.
        while extents.get(self.extent + 1).is_some_and(|next| next.start <= offset) {
            self.extent += 1;
        }
        let extent = extents.get(self.extent)?;
        let end = extents.get(self.extent + 1).map_or(self.file.len, |next| next.start).min(self.range.end);
        let within = offset - extent.start;
        let (from, len) = match &extent.content {
            Content::Bytes(bytes) => (From::Bytes { bytes, at: to_usize(within) }, end - offset),
            Content::Source { file, offset: start } => {
                (From::Source { file: *file, offset: start + within }, end - offset)
            }
            Content::Part { weight, part, .. } => {
                let planned = &self.plan.weights[*weight as usize];
                let (tile, at, left) = locate(planned, *part, to_usize(within));
                let from = From::Tile { weight: *weight, part: *part, tile, at };
                (from, (left as u64).min(end - offset))
            }
        };
        self.range.start += len;
        Some(Segment { offset, len: to_usize(len), from })
    }
}

/// The tile that makes byte `at` of a part, the offset in the tile's share, and how much of that
/// share is left.
fn locate(planned: &Planned, part: u16, at: usize) -> (u32, usize, usize) {
    let part = &planned.parts[usize::from(part)];
    let extent = planned.banding.extent(&planned.weight);
    let share = |tile: usize| {
        let start = tile * planned.tile;
        part.range(planned.banding, extent, start..start.saturating_add(planned.tile).min(extent))
    };
    // All tiles but the last have shares of one length.
    let tile = (at / share(0).len().max(1)).min(planned.tiles().saturating_sub(1));
    let share = share(tile);
    (u32::try_from(tile).unwrap_or(u32::MAX), at - share.start, share.end.saturating_sub(at).max(1))
}

/// Offsets within a file of the view; usize has 64 bits wherever this runs on files that need it.
fn to_usize(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}
