//! Low-rank products added to the elements that were gathered.
//!
//! A sum is made in f32: the element, then each product times its scale, in order; it is rounded once, to the stored
//! dtype. A product is summed from the first rank to the last, without fused steps, so that its bits do not depend on
//! how a weight is cut.

use std::ops::Range;

use crate::{
    kernel::{Cast, Dense, kernels},
    plan::{Delta, Factor, Origin, Piece},
    quant::{Axis, Weight},
    source::Error,
    tensor::Float,
};

use super::gather::Reader;

/// Elements that are summed up together.
const CHUNK: usize = 1 << 16;

/// Bytes that merging a band takes beside its elements, at most.
pub(super) fn cost(origin: &Origin, weight: &Weight, axis: Axis, band: &Range<usize>) -> usize {
    let mut floats = 0;
    for (number, elements) in places(origin) {
        let run = match axis {
            Axis::Columns => elements.clone(),
            Axis::Flat => overlap(&elements, band),
            Axis::Rows => overlap(&elements, &(band.start * weight.cols()..band.end * weight.cols())),
        };
        for delta in of_piece(origin, number).filter(|_| !run.is_empty()) {
            let straight = axis != Axis::Columns && origin.pieces[number].col_stride == origin.stored.size();
            let rows = if straight { (run.len() / delta.cols.max(1) + 2).min(delta.rows) } else { delta.rows };
            floats += delta.rank * (rows + 2 * padded(delta.cols));
        }
    }
    // Factors are there as they are stored, too, while they are widened.
    if floats == 0 { 0 } else { (2 * floats + 3 * CHUNK) * size_of::<f32>() }
}

/// The pieces, and which elements of the weight they hold.
fn places(origin: &Origin) -> impl Iterator<Item = (usize, Range<usize>)> {
    let mut first = 0;
    origin.pieces.iter().enumerate().map(move |(number, piece)| {
        let start = first;
        first += piece.rows * piece.cols;
        (number, start..first)
    })
}

fn of_piece(origin: &Origin, number: usize) -> impl Iterator<Item = &Delta> {
    origin.deltas.iter().filter(move |delta| delta.piece == number)
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    let start = a.start.max(b.start);
    start..a.end.min(b.end).max(start)
}

/// Adds what adapters add to a band's elements, in the stored dtype.
pub(super) fn merge(
    reader: &Reader<'_>,
    origin: &Origin,
    weight: &Weight,
    (axis, band): (Axis, Range<usize>),
    out: &mut [u8],
) -> Result<(), Error> {
    for (number, elements) in places(origin) {
        let Some(of) = of_piece(origin, number).next() else { continue };
        let tensor = Tensor { start: of.start, cols: of.cols.max(1), size: origin.stored.size() };
        let each = |take: &mut dyn FnMut(Block)| {
            for line in lines(axis, &band, weight) {
                let part = overlap(&line.elements, &elements);
                if !part.is_empty() {
                    let at = line.at + part.start - line.elements.start;
                    let run = part.start - elements.start..part.end - elements.start;
                    tensor.blocks(&origin.pieces[number], run, at, take);
                }
            }
        };
        let mut rows: Option<Range<usize>> = None;
        each(&mut |Block { row, rows: height, .. }| {
            let sofar = rows.take().unwrap_or(row..row);
            rows = Some(sofar.start.min(row)..sofar.end.max(row + height));
        });
        let Some(rows) = rows else { continue };
        let read = |delta| Product::read(reader, delta, rows.clone());
        let mut products = of_piece(origin, number).map(read).collect::<Result<Vec<_>, _>>()?;
        each(&mut |block| add(origin.stored, &mut products, &block, out));
    }
    Ok(())
}

/// A run of a weight's elements in flat order, and where it lies in the band.
struct Line {
    elements: Range<usize>,
    at: usize,
}

fn lines(axis: Axis, band: &Range<usize>, weight: &Weight) -> Vec<Line> {
    let cols = weight.cols();
    match axis {
        Axis::Flat => vec![Line { elements: band.clone(), at: 0 }],
        Axis::Rows => vec![Line { elements: band.start * cols..band.end * cols, at: 0 }],
        Axis::Columns => {
            let line = |row| Line { elements: row * cols + band.start..row * cols + band.end, at: row * band.len() };
            (0..weight.rows()).map(line).collect()
        }
    }
}

/// The tensor that a product is added to, as a matrix.
struct Tensor {
    start: u64,
    cols: usize,
    size: usize,
}

/// Some columns of some rows of the tensor, one after the other in the band.
struct Block {
    row: usize,
    rows: usize,
    col: usize,
    cols: usize,
    /// First element of the band.
    at: usize,
}

impl Tensor {
    /// The blocks that a run of a piece's elements is made of.
    fn blocks(&self, piece: &Piece, run: Range<usize>, mut at: usize, take: &mut dyn FnMut(Block)) {
        let mut element = run.start;
        while element < run.end {
            let (row, col) = (element / piece.cols, element % piece.cols);
            let linear = piece.rows == 1 || piece.row_stride == piece.cols * piece.col_stride;
            let count = if linear { run.end - element } else { (piece.cols - col).min(run.end - element) };
            let byte = piece.offset + (row * piece.row_stride + col * piece.col_stride) as u64 - self.start;
            let first = usize::try_from(byte).unwrap_or(usize::MAX) / self.size;
            let step = piece.col_stride / self.size;
            if step == 1 {
                self.contiguous(first, count, at, take);
            } else {
                for i in 0..count {
                    self.contiguous(first + i * step, 1, at + i, take);
                }
            }
            (element, at) = (element + count, at + count);
        }
    }

    /// A run that lies together: the rest of a row, whole rows, the start of a row.
    fn contiguous(&self, mut first: usize, mut count: usize, mut at: usize, take: &mut dyn FnMut(Block)) {
        while count > 0 {
            let (row, col) = (first / self.cols, first % self.cols);
            let most = (CHUNK / self.cols).max(1);
            let (rows, cols) = if col == 0 && count >= self.cols {
                ((count / self.cols).min(most), self.cols)
            } else {
                (1, count.min(self.cols - col))
            };
            take(Block { row, rows, col, cols, at });
            let done = rows * cols;
            (first, count, at) = (first + done, count - done, at + done);
        }
    }
}

/// A product's factors in f32.
struct Product {
    rank: usize,
    scale: f32,
    cols: usize,
    /// Row of the product that the first row of `up` makes.
    first: usize,
    up: Vec<f32>,
    down: Vec<f32>,
    /// The columns of `down` that are wanted, each row filled up to whole strips.
    panel: (Range<usize>, Vec<f32>),
}

fn padded(cols: usize) -> usize {
    cols.next_multiple_of(Dense::STRIP)
}

impl Product {
    /// What the product needs for some of its rows.
    fn read(reader: &Reader<'_>, delta: &Delta, rows: Range<usize>) -> Result<Self, Error> {
        let matrix = |factor: &Factor, elements: Range<usize>| -> Result<Vec<f32>, Error> {
            let mut stored = vec![0; elements.len() * factor.float.size()];
            let offset = factor.offset + (elements.start * factor.float.size()) as u64;
            reader.read_kept(factor.file, offset, &mut stored)?;
            let mut values = vec![0.0; elements.len()];
            widen(factor.float, &stored, &mut values);
            Ok(values)
        };
        let up = matrix(&delta.up, rows.start * delta.rank..rows.end * delta.rank)?;
        let down = matrix(&delta.down, 0..delta.rank * delta.cols)?;
        let Delta { rank, scale, cols, .. } = *delta;
        Ok(Self { rank, scale, cols, first: rows.start, up, down, panel: (0..0, Vec::new()) })
    }

    /// Adds the scaled product to a block's values.
    fn add(&mut self, block: &Block, values: &mut [f32]) {
        let wanted = block.col..block.col + block.cols;
        let columns = padded(block.cols);
        if self.panel.0 != wanted {
            let mut panel = vec![0.0; self.rank * columns];
            for (row, out) in self.down.chunks_exact(self.cols).zip(panel.chunks_exact_mut(columns)) {
                out[..block.cols].copy_from_slice(&row[wanted.clone()]);
            }
            self.panel = (wanted, panel);
        }
        let job = Dense { rows: block.rows, depth: self.rank, columns, a_stride: self.rank, c_stride: columns };
        let mut made = vec![0.0; block.rows * columns];
        kernels().dense(&job, &self.up[(block.row - self.first) * self.rank..], &self.panel.1, &mut made);
        for (values, made) in values.chunks_exact_mut(block.cols).zip(made.chunks_exact(columns)) {
            values.iter_mut().zip(made).for_each(|(w, d)| *w += self.scale * d);
        }
    }
}

fn add(stored: Float, products: &mut [Product], block: &Block, out: &mut [u8]) {
    let count = block.rows * block.cols;
    let bytes = &mut out[block.at * stored.size()..][..count * stored.size()];
    let mut values = vec![0.0; count];
    widen(stored, bytes, &mut values);
    products.iter_mut().for_each(|product| product.add(block, &mut values));
    let wide: &[u8] = bytemuck::cast_slice(&values);
    kernels().cast(&Cast { from: Float::F32, to: stored, plus_one: false }, wide, bytes);
}

fn widen(from: Float, bytes: &[u8], out: &mut [f32]) {
    kernels().cast(&Cast { from, to: Float::F32, plus_one: false }, bytes, bytemuck::cast_slice_mut(out));
}
