//! Products of many inputs: rows in pairs of panels, a stretch of columns at a time that stays in the
//! first-level cache; its codes are unpacked once and meet every input.

use std::ops::Range;

use super::{Activations, Ahead, BLOCK, Coded, Kernels, LANES, Map, Panel, Product, Tiling};

/// Columns that are unpacked at a time: a multiple of every group, and with 32 rows 16 KiB of codes.
const STRETCH: usize = 512;
/// Panels that meet an input together: with eight inputs, sixteen running sums.
const PANELS: usize = 2;

/// Room for a pair of panels, used again and again.
struct Scratch {
    codes: Vec<[u8; 64]>,
    /// Parameters of a panel, `[row][group]`.
    rows: [Vec<f32>; 2],
    /// `[panel][group][row]`
    scales: Vec<[f32; LANES]>,
    /// The same, or empty.
    biases: Vec<[f32; LANES]>,
    spread: Vec<u8>,
    /// `[block of inputs][panel][input][row]`
    sums: Vec<[f32; LANES]>,
}

impl Scratch {
    fn new(product: &Product, cols: usize, count: usize) -> Self {
        let groups = cols / product.group();
        let biases = if product.has_biases() { groups } else { 0 };
        Self {
            codes: vec![[0; 64]; PANELS * STRETCH / 4],
            rows: [groups, biases].map(|groups| vec![0.0; LANES * groups]),
            scales: vec![[0.0; LANES]; PANELS * groups],
            biases: vec![[0.0; LANES]; PANELS * biases],
            spread: vec![0; LANES * STRETCH],
            sums: vec![[0.0; LANES]; count * PANELS],
        }
    }

    /// Hands out the sums of the first `rows` rows, up to sixteen at a time: of an input, from a row on.
    fn store(&self, count: usize, rows: usize, mut out: impl FnMut(usize, usize, &[f32])) {
        let panels = rows.div_ceil(LANES);
        for first in (0..count).step_by(BLOCK) {
            let width = BLOCK.min(count - first);
            for w in 0..width {
                for p in 0..panels {
                    let sums = &self.sums[first * PANELS + p * width + w];
                    out(first + w, p * LANES, &sums[..LANES.min(rows - p * LANES)]);
                }
            }
        }
    }
}

/// `y` is `[inputs, rows]`.
pub(super) fn multiply(kernels: &Kernels, product: &Product, matrix: &Coded<'_>, inputs: &Activations, y: &mut [f32]) {
    let rows = y.len() / inputs.count;
    let mut scratch = Scratch::new(product, inputs.cols, inputs.count);
    for first in (0..rows).step_by(PANELS * LANES) {
        let count = (rows - first).min(PANELS * LANES);
        let band = matrix.rows(product, inputs.cols, first..first + count);
        add(kernels, product, &band, count, inputs, &mut scratch);
        scratch.store(inputs.count, count, |input, row, sums| {
            y[input * rows + first + row..][..sums.len()].copy_from_slice(sums);
        });
    }
}

/// The sums of up to a pair of panels of rows with every input, left in the scratch.
fn add(
    kernels: &Kernels,
    product: &Product,
    band: &Coded<'_>,
    rows: usize,
    inputs: &Activations,
    scratch: &mut Scratch,
) {
    let (group, cols) = (product.group(), inputs.cols);
    let groups = cols / group;
    let panels = rows.div_ceil(LANES);
    for p in 0..panels {
        let of = p * LANES..rows.min((p + 1) * LANES);
        let coded = band.rows(product, cols, of.clone());
        let [scales, biases] = &mut scratch.rows;
        kernels.parameters(product, cols, &coded, [scales, biases]);
        let tiling = Tiling { stride: groups * size_of::<f32>(), rows: of.len(), planes: 1, map: Map::Same };
        for (values, panels) in [(scales, &mut scratch.scales), (biases, &mut scratch.biases)] {
            if let Some(panel) = panels.get_mut(p * groups..(p + 1) * groups) {
                (kernels.tile)(&tiling, bytemuck::cast_slice(values), bytemuck::cast_slice_mut(panel));
            }
        }
    }
    scratch.sums.fill([0.0; LANES]);
    let calls = cols.div_ceil(STRETCH) * inputs.count.div_ceil(BLOCK);
    let mut ahead = Ahead::after(band.codes).parts(calls);
    for start in (0..cols).step_by(STRETCH) {
        let width = STRETCH.min(cols - start);
        let (from, to) = (start / group, (start + width) / group);
        unpack(kernels, product, band.codes, rows, cols, start..start + width, scratch);
        let panel = |p: usize| Panel {
            codes: &scratch.codes[p * STRETCH / 4..][..width / 4],
            scales: &scratch.scales[p * groups..][from..to],
            biases: scratch.biases.get(p * groups..).and_then(|b| b.get(from..to)).unwrap_or_default(),
        };
        let both = [panel(0), panel(panels - 1)];
        let mut sums = scratch.sums.as_mut_slice();
        for block in inputs.blocks(from, to) {
            let (ours, rest) = sums.split_at_mut(block.width * PANELS);
            let ahead = ahead.next().unwrap_or_default();
            (kernels.accumulate)(product, &both[..panels], &block, ahead, &mut ours[..block.width * panels]);
            sums = rest;
        }
    }
}

/// The codes of some columns as panels.
fn unpack(
    kernels: &Kernels,
    product: &Product,
    src: &[u8],
    rows: usize,
    cols: usize,
    stretch: Range<usize>,
    scratch: &mut Scratch,
) {
    let (stride, width) = (product.row_bytes(cols), stretch.len());
    for (p, out) in scratch.codes.chunks_exact_mut(STRETCH / 4).enumerate().take(rows.div_ceil(LANES)) {
        let first = p * LANES;
        let rows = LANES.min(rows - first);
        let src = &src[first * stride + product.row_bytes(stretch.start)..];
        let out = &mut out[..width / 4];
        let map = product.map();
        if matches!(product.bits(), 2 | 4 | 8) {
            (kernels.tile)(&Tiling { stride, rows, planes: product.planes(), map }, src, out);
        } else {
            let spread = &mut scratch.spread[..rows * width];
            for (row, out) in spread.chunks_exact_mut(width).enumerate() {
                (kernels.spread)(product.bits(), &src[row * stride..][..product.row_bytes(width)], 0, out);
            }
            (kernels.tile)(&Tiling { stride: width, rows, planes: 1, map }, spread, out);
        }
    }
}
