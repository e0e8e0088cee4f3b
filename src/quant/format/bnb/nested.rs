//! Double quantization: the magnitudes of blocks, less their mean, as codes of 8 bits in blocks of 256.
//!
//! Parts: `.weight.absmax` (U8 `[blocks]`), `.weight.nested_absmax` (F32, one for 256 of them), the constant
//! `.weight.nested_quant_map`, and the state, which holds the mean (`nested_offset`): what depends on all of the
//! weight and has no fixed length, so that spaces fill the text up to `STATE_LEN` bytes. Loaders parse it as JSON.
//!
//! The mean is torch's on one thread, bit for bit: sums of 8 lanes in 4 rows, cascaded over 4 levels
//! (`aten/src/ATen/native/cpu/SumKernel.cpp`). From 32768 magnitudes on (2 Mi elements) torch shares a sum among
//! its threads, and the mean that it finds depends on their number by a last place or so.
//!
//! Codes are those of the library for CPUs ([`dynamic_code`]): NaN is passed over in a maximum and has code 0, as
//! has every element of a block of zeros.

use std::sync::Arc;

use crate::{
    kernel::kernels,
    num::book::{DYNAMIC, dynamic_code},
    quant::{Content, Part, Scheme, Survey, Weight},
    tensor::{Dtype, Float, Rows},
};

use super::{BLOCK, FourBit, Kind, constant, load, store};

/// Magnitudes that share a scale.
const NESTED: usize = 256;
/// Bytes of the padded state: the longest one (names, two dimensions whose product is a number of elements, and a
/// mean of 23 characters) has 186.
pub(super) const STATE_LEN: usize = 192;

/// Lanes of torch's vectors; its sums are never compiled for wider ones.
const LANES: usize = 8;
/// Vectors that are summed side by side.
const SIDE: usize = 4;
/// Magnitudes of a row: what is added at once.
const ROW: usize = LANES * SIDE;
/// Levels of sums of sums.
const LEVELS: usize = 4;

/// What the state says of a weight.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct State {
    shape: Vec<usize>,
    float: Float,
    offset: Option<f32>,
}

impl State {
    pub(super) fn new(weight: &Weight, offset: Option<f32>) -> Self {
        Self { shape: weight.shape.clone(), float: weight.float, offset }
    }

    pub(super) fn offset(&self) -> f32 {
        self.offset.unwrap_or_default()
    }

    /// The text, as Python's `json.dumps` writes it.
    pub(super) fn render(&self, kind: Kind) -> String {
        let (name, dtype, shape) = (kind.name(), self.float.name(), &self.shape);
        let nested = self.offset.map_or(String::new(), |offset| {
            let offset = python(f64::from(offset));
            format!(r#", "nested_blocksize": {NESTED}, "nested_dtype": "float32", "nested_offset": {offset}"#)
        });
        format!(r#"{{"quant_type": "{name}", "blocksize": {BLOCK}, "dtype": "{dtype}", "shape": {shape:?}{nested}}}"#)
    }

    /// The text, filled up with spaces.
    pub(super) fn padded(&self, kind: Kind) -> Vec<u8> {
        let mut text = self.render(kind).into_bytes();
        text.resize(STATE_LEN, b' ');
        text
    }
}

/// A number as Python writes it.
fn python(x: f64) -> String {
    if x.is_nan() {
        return "NaN".to_owned();
    }
    if x.is_infinite() {
        return if x > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    let text = format!("{x:?}");
    match text.split_once('e').and_then(|(digits, power)| Some((digits, power.parse::<i32>().ok()?))) {
        Some((digits, power)) => format!("{digits}e{power:+03}"),
        None => {
            // Of two shortest texts that are equally near, Python takes the even one.
            let decimals = text.split_once('.').map_or(0, |(_, decimals)| decimals.len());
            let even = format!("{x:.decimals$}");
            if even.parse() == Ok(x) { even } else { text }
        }
    }
}

/// The offset that a state's text holds; Python's words for what is not finite are no JSON.
pub(super) fn offset_of(state: &[u8]) -> Option<f32> {
    let (_, after) = std::str::from_utf8(state).ok()?.split_once(r#""nested_offset""#)?;
    let number = after.trim_start().strip_prefix(':')?.split([',', '}']).next()?.trim();
    #[expect(clippy::cast_possible_truncation, reason = "loaders round it to f32 too")]
    number.parse::<f64>().ok().map(|offset| offset as f32)
}

/// The parts that come between the magnitudes and the first code table, and the table; `granule` magnitudes are made
/// together.
pub(super) fn parts(blocks: usize, granule: usize) -> [Part; 2] {
    let scales = Part {
        suffix: ".weight.nested_absmax",
        dtype: Dtype::F32,
        shape: vec![blocks.div_ceil(NESTED)],
        content: Content::Tiled { per_granule: granule / NESTED * 4 },
    };
    [scales, constant(".weight.nested_quant_map", &DYNAMIC)]
}

/// Codes of magnitudes and their scales.
pub(super) fn encode(offset: f32, absmax: &[f32], codes: &mut [u8], scales: &mut [u8]) {
    let blocks = absmax.chunks(NESTED).zip(codes.chunks_mut(NESTED));
    let mut found = vec![];
    for (absmax, codes) in blocks {
        let rest: Vec<f32> = absmax.iter().map(|most| most - offset).collect();
        let scale = kernels().largest(&rest);
        let inverse = 1.0 / scale;
        for (code, rest) in codes.iter_mut().zip(rest) {
            *code = if scale == 0.0 { 0 } else { dynamic_code(rest * inverse) };
        }
        found.push(scale);
    }
    store(&found, scales);
}

/// The magnitudes of codes.
pub(super) fn decode(offset: f32, codes: &[u8], scales: &[u8]) -> Vec<f32> {
    let scales = load(scales);
    let blocks = codes.chunks(NESTED).zip(scales);
    blocks.flat_map(|(codes, scale)| codes.iter().map(move |c| DYNAMIC[usize::from(*c)] * scale + offset)).collect()
}

/// What a band is as a weight of its own.
pub(super) fn alone(band: Rows<'_>, absmax: &[f32]) -> State {
    let weight = Weight { stem: String::new(), float: band.float, shape: vec![band.rows, band.cols] };
    let mean = Mean::of(&weight);
    State::new(&weight, Some(mean.conclude(&mean.look(absmax))))
}

/// The question for the mean of a weight's magnitudes.
#[derive(Debug)]
pub(super) struct Offset {
    scheme: FourBit,
    weight: Weight,
}

impl Offset {
    pub(super) fn new(scheme: FourBit, weight: &Weight) -> Self {
        Self { scheme, weight: weight.clone() }
    }
}

impl Survey for Offset {
    fn look(&self, band: Rows<'_>) -> Vec<f32> {
        let mut absmax = vec![0.0; band.elements().div_ceil(BLOCK)];
        kernels().block_maxima(band.float, band.data, &mut absmax);
        Mean::of(&self.weight).look(&absmax)
    }

    fn conclude(&self, looks: &[Vec<f32>]) -> Arc<dyn Scheme> {
        let offset = Mean::of(&self.weight).conclude(&looks.concat());
        Arc::new(FourBit { state: Some(State::new(&self.weight, Some(offset))), ..self.scheme.clone() })
    }
}

/// Torch's mean of so many numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mean {
    count: usize,
    /// Rows of a first-level sum, as a power of two.
    power: u32,
}

impl Mean {
    /// Of the magnitudes of a weight.
    pub(super) fn of(weight: &Weight) -> Self {
        Self::of_count(weight.elements().div_ceil(BLOCK))
    }

    fn of_count(count: usize) -> Self {
        let rows = count / ROW;
        let log = if rows <= 2 { 1 } else { usize::BITS - (rows - 1).leading_zeros() };
        Self { count, power: (log / 4).max(4) }
    }

    /// Numbers of a first-level sum.
    fn chunk(self) -> usize {
        ROW << self.power
    }

    /// Elements whose magnitudes make whole first-level sums.
    pub(super) fn granule(self) -> usize {
        self.chunk() * BLOCK
    }

    /// What a run of the numbers tells: first-level sums, and what is left as it is.
    fn look(self, numbers: &[f32]) -> Vec<f32> {
        let chunks = numbers.chunks_exact(self.chunk());
        let rest = chunks.remainder();
        let mut told = vec![];
        for chunk in chunks {
            let mut sums = [0f32; ROW];
            chunk.as_chunks().0.iter().for_each(|row| add(&mut sums, row));
            told.extend(sums);
        }
        told.extend(rest);
        told
    }

    /// The mean, from what all runs told.
    fn conclude(self, told: &[f32]) -> f32 {
        let sums = self.count / self.chunk();
        let (sums, rest) = told.split_at((sums * ROW).min(told.len()));
        let mut levels = [[0f32; ROW]; LEVELS];
        for (number, sum) in sums.as_chunks().0.iter().enumerate() {
            add(&mut levels[0], sum);
            self.cascade(&mut levels, number + 1);
        }
        let sum = if self.count < LANES { rest_of::<SIDE>(rest, [0.0; SIDE]) } else { self.total(levels, rest) };
        sum / self.count as f32
    }

    /// Hands sums up: to the next level after every sum, to the one above after `2^power` of those, and so on.
    fn cascade(self, levels: &mut [[f32; ROW]; LEVELS], sums: usize) {
        for level in 1..LEVELS {
            let below = std::mem::replace(&mut levels[level - 1], [0.0; ROW]);
            add(&mut levels[level], &below);
            let place = (level - 1) * self.power as usize;
            if sums >> place & ((1 << self.power) - 1) != 0 {
                break;
            }
        }
    }

    /// The sum of all levels and of the numbers after the last first-level sum.
    fn total(self, mut levels: [[f32; ROW]; LEVELS], rest: &[f32]) -> f32 {
        let (rows, rest) = rest.as_chunks();
        rows.iter().for_each(|row| add(&mut levels[0], row));
        let [mut all, higher @ ..] = levels;
        higher.iter().for_each(|level| add(&mut all, level));
        rest_of::<ROW>(rest, all)
    }
}

/// The sum of lanes and of the numbers after the last row: whole vectors to the first of those side by side,
/// these together, then single numbers, then lane after lane. Numbers that make no vector are vectors of one lane.
fn rest_of<const N: usize>(rest: &[f32], mut sums: [f32; N]) -> f32 {
    let lanes = N / SIDE;
    let mut rows = rest.chunks_exact(N);
    rows.by_ref().for_each(|row| sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x));
    let mut vectors = rows.remainder().chunks_exact(lanes);
    for vector in vectors.by_ref() {
        sums.iter_mut().zip(vector).for_each(|(sum, x)| *sum += x);
    }
    let (first, others) = sums.split_at_mut(lanes);
    for other in others.chunks_exact(lanes) {
        first.iter_mut().zip(other).for_each(|(sum, x)| *sum += x);
    }
    let single: f32 = vectors.remainder().iter().fold(0.0, |sum, x| sum + x);
    first.iter().fold(single, |sum, x| sum + x)
}

fn add(sums: &mut [f32; ROW], row: &[f32; ROW]) {
    for i in 0..ROW {
        sums[i] += row[i];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Torch's own means of the first so many numbers, from `tests/golden/bnb`.
    #[test]
    fn the_mean_is_torchs() -> Result<(), Box<dyn std::error::Error>> {
        let means: Vec<(usize, u32)> = serde_json::from_str(include_str!("../../../../tests/golden/bnb/means.json"))?;
        let mut state = 7u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u32 << 24) as f32
        };
        let most = means.iter().map(|(count, _)| *count).max().unwrap_or_default();
        let numbers: Vec<f32> = (0..most).map(|_| next()).collect();
        for (count, bits) in means {
            let mean = Mean::of_count(count);
            // Runs of several first-level sums, as bands are.
            let told: Vec<f32> = numbers[..count].chunks(mean.chunk() * 3).flat_map(|run| mean.look(run)).collect();
            assert_eq!(mean.conclude(&told).to_bits(), bits, "{count} numbers");
        }
        Ok(())
    }

    #[test]
    fn offsets_are_read_as_python_writes_them() {
        let cases = [0.129_845_14, 1e-5, 2.5e-7, 1e16, 3e38, 0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
        for offset in cases {
            let weight = Weight { stem: "up".into(), float: Float::Bf16, shape: vec![usize::MAX >> 32, 1 << 30] };
            let text = State::new(&weight, Some(offset)).padded(Kind::Nf4);
            assert_eq!(text.len(), STATE_LEN);
            assert_eq!(text.last(), Some(&b' '), "it has room");
            assert_eq!(offset_of(&text).map(f32::to_bits), Some(offset.to_bits()), "{offset}");
        }
        assert_eq!(python(1e-5), "1e-05");
        assert_eq!(python(1.5e16), "1.5e+16");
        assert_eq!(python(0.0001), "0.0001");
        assert_eq!(python(f64::from(820.678_3f32)), "820.6782836914062");
        assert_eq!(offset_of(b"{}"), None);
    }
}
