//! Elements of a weight out of the pieces of its origin.
//!
//! Whatever the pieces look like (whole tensors, slices of a fused one, a stack, a transpose), the
//! elements come out dense and row-major. Runs that lie together are read straight into the output
//! with one large read; elements that lie apart are picked out of a window.
//!
//! Knows no scheme and no cast. The pieces were checked when the plan was made.

use std::{
    ops::Range,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use crate::{
    plan::{Origin, Piece},
    quant::{Axis, Weight},
    source::{Error, FileId, Source},
};

/// The most that is read at once to pick elements out of it.
pub(super) const WINDOW: usize = 1 << 20;
/// A gap up to this long is read through. Beside 0.65 us for another system call, copying out of the page cache
/// at 8 GB/s takes as long for 5 KB.
const GAP: usize = 4 << 10;

/// Counted reads of a source.
pub(super) struct Reader<'a> {
    pub(super) source: &'a dyn Source,
    /// Whether what was read may leave the system's cache.
    pub(super) release: bool,
    pub(super) bytes: &'a AtomicU64,
    /// Of these, elements that were asked for.
    pub(super) tile_bytes: &'a AtomicU64,
}

impl Reader<'_> {
    pub(super) fn read(&self, file: FileId, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        self.read_kept(file, offset, buf)?;
        if self.release {
            self.source.release(file, offset..offset + buf.len() as u64);
        }
        Ok(())
    }

    /// Without a word on the system's cache: a part of a page tells nothing of the rest of it.
    pub(super) fn read_kept(&self, file: FileId, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        self.source.read_exact_at(file, offset, buf)?;
        self.bytes.fetch_add(buf.len() as u64, Relaxed);
        Ok(())
    }
}

/// A rectangle of elements of a source file; strides in bytes.
struct Block {
    file: FileId,
    offset: u64,
    rows: usize,
    row_stride: usize,
    cols: usize,
    col_stride: usize,
}

/// Reads bands of one weight.
pub(super) struct Gather<'a> {
    pub(super) reader: &'a Reader<'a>,
    pub(super) origin: &'a Origin,
    pub(super) weight: &'a Weight,
    /// Reused between tiles.
    pub(super) window: &'a mut Vec<u8>,
}

impl Gather<'_> {
    /// Fills `out` with the elements of a band, in the stored dtype; as many as it has room for.
    pub(super) fn band(&mut self, axis: Axis, band: Range<usize>, out: &mut [u8]) -> Result<(), Error> {
        let cols = self.weight.cols();
        match axis {
            Axis::Flat => self.run(band, out)?,
            Axis::Rows => self.run(band.start * cols..band.end * cols, out)?,
            Axis::Columns => self.columns(0..self.weight.rows(), band, out)?,
        }
        self.reader.tile_bytes.fetch_add(out.len() as u64, Relaxed);
        Ok(())
    }

    /// Fills `out` with what some rows have in a band of columns.
    pub(super) fn strip(&mut self, rows: Range<usize>, band: Range<usize>, out: &mut [u8]) -> Result<(), Error> {
        self.columns(rows, band, out)?;
        self.reader.tile_bytes.fetch_add(out.len() as u64, Relaxed);
        Ok(())
    }

    fn size(&self) -> usize {
        self.origin.stored.size()
    }

    /// A run of elements in flat order.
    fn run(&mut self, run: Range<usize>, mut out: &mut [u8]) -> Result<(), Error> {
        let mut first = 0;
        for piece in &self.origin.pieces {
            let next = first + piece.rows * piece.cols;
            let (start, end) = (run.start.max(first), run.end.min(next));
            if start < end {
                let (head, rest) = out.split_at_mut((end - start) * self.size());
                self.piece_run(piece, start - first..end - first, head)?;
                out = rest;
            }
            first = next;
        }
        assert!(out.is_empty(), "the origin of {} holds too few elements", self.weight.stem);
        Ok(())
    }

    /// A run within a piece: the rest of a row, whole rows, the start of a row.
    fn piece_run(&mut self, piece: &Piece, run: Range<usize>, mut out: &mut [u8]) -> Result<(), Error> {
        let mut at = run.start;
        while at < run.end {
            let left = run.end - at;
            let (row, col) = (at / piece.cols, at % piece.cols);
            let (rows, cols) = match (is_linear(piece), col) {
                (true, _) => (1, left),
                (false, 0) if left >= piece.cols => (left / piece.cols, piece.cols),
                (false, _) => (1, left.min(piece.cols - col)),
            };
            let (head, rest) = out.split_at_mut(rows * cols * self.size());
            self.block(&cut(piece, row, rows, col, cols), head)?;
            (out, at) = (rest, at + rows * cols);
        }
        Ok(())
    }

    /// A range of columns of some rows.
    fn columns(&mut self, rows: Range<usize>, band: Range<usize>, out: &mut [u8]) -> Result<(), Error> {
        let width = self.weight.cols();
        let line = band.len() * self.size();
        let mut first = 0;
        for piece in &self.origin.pieces {
            let elements = piece.rows * piece.cols;
            let whole_rows = first % width == 0 && elements % width == 0;
            if let Some(piece) = whole_rows.then(|| reshaped(piece, width)).flatten() {
                let above = first / width;
                let some = rows.start.max(above)..rows.end.min(above + piece.rows);
                if some.start < some.end {
                    let lines = &mut out[(some.start - rows.start) * line..][..some.len() * line];
                    self.lines(&piece, some.start - above..some.end - above, &band, lines)?;
                }
            } else {
                self.ragged_columns(piece, first, &rows, &band, out)?;
            }
            first += elements;
        }
        assert_eq!(first, self.weight.elements(), "elements in the origin of {}", self.weight.stem);
        Ok(())
    }

    /// A range of columns of rows of a piece that has the weight's. The other bands come for the other columns of
    /// the same pages: the first band asks for them all in one go, and they are given up after the last one.
    fn lines(&mut self, piece: &Piece, rows: Range<usize>, band: &Range<usize>, out: &mut [u8]) -> Result<(), Error> {
        let block = cut(piece, rows.start, rows.len(), band.start, band.len());
        if !self.is_apart(&block) {
            return self.block(&block, out);
        }
        let start = piece.offset + (rows.start * piece.row_stride) as u64;
        let span = start..start + ((rows.len() - 1) * piece.row_stride + piece.cols * piece.col_stride) as u64;
        if band.start == 0 {
            self.reader.source.hint(piece.file, span.clone());
        }
        self.apart(&block, out)?;
        if self.reader.release && band.end == piece.cols {
            self.reader.source.release(piece.file, span);
        }
        Ok(())
    }

    /// The same of a piece whose rows are not the weight's: line by line.
    fn ragged_columns(
        &mut self,
        piece: &Piece,
        first: usize,
        rows: &Range<usize>,
        band: &Range<usize>,
        out: &mut [u8],
    ) -> Result<(), Error> {
        let (width, size, end) = (self.weight.cols(), self.size(), first + piece.rows * piece.cols);
        for row in rows.start.max(first / width)..rows.end.min(end.div_ceil(width)) {
            let line = row * width + band.start..row * width + band.end;
            let part = line.start.max(first)..line.end.min(end);
            if part.start < part.end {
                let at = ((row - rows.start) * band.len() + part.start - line.start) * size;
                self.piece_run(piece, part.start - first..part.end - first, &mut out[at..][..part.len() * size])?;
            }
        }
        Ok(())
    }

    /// A rectangle, dense and row-major into `out`.
    fn block(&mut self, block: &Block, out: &mut [u8]) -> Result<(), Error> {
        if self.is_apart(block) {
            return self.apart(block, out);
        }
        let dense = block.rows == 1 || block.row_stride == block.cols * self.size();
        if dense && block.col_stride == self.size() {
            return self.reader.read(block.file, block.offset, out);
        }
        self.picked(block, out)
    }

    /// Whether the rows of a rectangle are runs so far from each other that each is read by itself.
    fn is_apart(&self, block: &Block) -> bool {
        let line = block.cols * self.size();
        block.rows > 1 && block.col_stride == self.size() && block.row_stride > line + GAP
    }

    /// A rectangle row by row.
    fn apart(&self, block: &Block, out: &mut [u8]) -> Result<(), Error> {
        for (row, line) in out.chunks_exact_mut(block.cols * self.size()).enumerate() {
            self.reader.read_kept(block.file, block.offset + (row * block.row_stride) as u64, line)?;
        }
        Ok(())
    }

    /// A rectangle through the window: lines along the smaller stride, several at once where the
    /// gaps between them are short.
    fn picked(&mut self, block: &Block, out: &mut [u8]) -> Result<(), Error> {
        let size = self.size();
        let by_rows = block.row_stride >= block.col_stride;
        let rows = Line { count: block.rows, stride: block.row_stride, out: block.cols * size };
        let cols = Line { count: block.cols, stride: block.col_stride, out: size };
        let (outer, inner) = if by_rows { (rows, cols) } else { (cols, rows) };
        let chunk = inner.count.min((WINDOW - size) / inner.stride.max(1) + 1);
        for from in (0..inner.count).step_by(chunk) {
            let inner = Line { count: chunk.min(inner.count - from), ..inner };
            let span = (inner.count - 1) * inner.stride + size;
            let together =
                if outer.stride.saturating_sub(span) > GAP { 1 } else { (WINDOW - span) / outer.stride.max(1) + 1 };
            for first in (0..outer.count).step_by(together) {
                let outer = Line { count: together.min(outer.count - first), ..outer };
                self.window.resize((outer.count - 1) * outer.stride + span, 0);
                let offset = first * outer.stride + from * inner.stride;
                self.reader.read(block.file, block.offset + offset as u64, self.window)?;
                scatter(self.window, outer, inner, size, &mut out[first * outer.out + from * inner.out..]);
            }
        }
        Ok(())
    }
}

/// A direction of a rectangle: how many elements, how far apart in the source and in the output.
#[derive(Clone, Copy)]
struct Line {
    count: usize,
    stride: usize,
    out: usize,
}

fn scatter(window: &[u8], outer: Line, inner: Line, size: usize, out: &mut [u8]) {
    let contiguous = inner.stride == size && inner.out == size;
    let (count, len) = if contiguous { (1, inner.count * size) } else { (inner.count, size) };
    for o in 0..outer.count {
        for i in 0..count {
            let from = &window[o * outer.stride + i * inner.stride..][..len];
            out[o * outer.out + i * inner.out..][..len].copy_from_slice(from);
        }
    }
}

/// Whether one stride leads from every element to the next.
fn is_linear(piece: &Piece) -> bool {
    piece.rows == 1 || piece.row_stride == piece.cols * piece.col_stride
}

/// The piece as rows of `width`, where it can be seen so.
fn reshaped(piece: &Piece, width: usize) -> Option<Piece> {
    if piece.cols == width {
        return Some(piece.clone());
    }
    is_linear(piece).then(|| Piece {
        rows: piece.rows * piece.cols / width,
        cols: width,
        row_stride: width * piece.col_stride,
        ..piece.clone()
    })
}

fn cut(piece: &Piece, row: usize, rows: usize, col: usize, cols: usize) -> Block {
    Block {
        file: piece.file,
        offset: piece.offset + (row * piece.row_stride + col * piece.col_stride) as u64,
        rows,
        row_stride: piece.row_stride,
        cols,
        col_stride: piece.col_stride,
    }
}
