//! Grouped-query attention with a cache of keys and values.
//!
//! Always: a position sees itself and what lies before it, as far as the window goes. Results do not
//! depend on how a text was cut into chunks, nor on the number of threads.
//!
//! Knows neither projections nor rotary embedding: queries and keys come turned, queries scaled too.

use std::ops::Range;

use rayon::prelude::*;

use crate::kernel::{Dense, kernels};

/// Rows that share one pass over the keys: few enough that their scores stay in the cache.
const ROWS: usize = 32;

/// Multiplications below which sharing out among threads costs more than it gains.
const WORTH_SHARING: usize = 1 << 16;

/// The shape of a layer's attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key-value heads; a divisor of `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Positions that are seen, the own one included; `None` for all.
    pub window: Option<usize>,
}

/// The keys and values of one key-value head.
#[derive(Clone, Debug, Default)]
struct Head {
    /// `[blocks, head_dim, STRIP]`: a block holds the keys of sixteen positions side by side.
    keys: Vec<f32>,
    /// `[positions, head_dim rounded up to whole strips]`.
    values: Vec<f32>,
}

/// The keys and values of one layer, of every position so far.
#[derive(Clone, Debug)]
pub struct KeyValues {
    head_dim: usize,
    positions: usize,
    heads: Vec<Head>,
}

impl KeyValues {
    /// An empty cache.
    #[must_use]
    pub fn new(kv_heads: usize, head_dim: usize) -> Self {
        Self { head_dim, positions: 0, heads: vec![Head::default(); kv_heads] }
    }

    /// Whether an attention of that shape can have made it.
    #[must_use]
    pub fn fits(&self, attention: &Attention) -> bool {
        (self.heads.len(), self.head_dim) == (attention.kv_heads, attention.head_dim)
    }

    /// Positions in it.
    #[must_use]
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Appends positions: `keys` and `values` are `[positions, kv_heads * head_dim]`.
    pub fn append(&mut self, keys: &[f32], values: &[f32]) {
        let width = self.heads.len() * self.head_dim;
        for (keys, values) in keys.chunks_exact(width).zip(values.chunks_exact(width)) {
            let rows = keys.chunks_exact(self.head_dim).zip(values.chunks_exact(self.head_dim));
            for (head, (key, value)) in self.heads.iter_mut().zip(rows) {
                head.push(self.positions, key, value);
            }
            self.positions += 1;
        }
    }

    /// Forgets the positions from `positions` on.
    pub fn truncate(&mut self, positions: usize) {
        self.positions = self.positions.min(positions);
        for head in &mut self.heads {
            head.keys.truncate(self.positions.div_ceil(Dense::STRIP) * self.head_dim * Dense::STRIP);
            head.values.truncate(self.positions * self.head_dim.next_multiple_of(Dense::STRIP));
        }
    }
}

impl Head {
    fn push(&mut self, position: usize, key: &[f32], value: &[f32]) {
        let (block, lane) = (position / Dense::STRIP, position % Dense::STRIP);
        if lane == 0 {
            self.keys.resize((block + 1) * key.len() * Dense::STRIP, 0.0);
        }
        let block = &mut self.keys[block * key.len() * Dense::STRIP..];
        block.iter_mut().skip(lane).step_by(Dense::STRIP).zip(key).for_each(|(k, x)| *k = *x);
        self.values.extend_from_slice(value);
        let width = value.len().next_multiple_of(Dense::STRIP);
        self.values.resize((position + 1) * width, 0.0);
    }
}

impl Attention {
    /// What the last positions of the cache see. `queries` are `[positions, heads * head_dim]`, scaled by
    /// `1 / sqrt(head_dim)`; so is the result.
    ///
    /// # Panics
    /// If the cache holds fewer positions than there are queries.
    #[must_use]
    pub fn forward(&self, queries: &[f32], cache: &KeyValues) -> Vec<f32> {
        let width = self.heads * self.head_dim;
        let count = queries.len() / width;
        let first = cache.positions.checked_sub(count).expect("queries of positions that were appended");
        let step = (ROWS / self.group()).max(1);
        let tasks = || (0..count).step_by(step).flat_map(|at| (0..self.kv_heads).map(move |head| (at, head)));
        let task = |(at, head): (usize, usize)| {
            let queries = self.gather(queries, at..count.min(at + step), head);
            (at, head, self.attend(&queries, first + at, &cache.heads[head]))
        };
        let shared = count * cache.positions * width >= WORTH_SHARING;
        let done: Vec<_> = if shared {
            tasks().collect::<Vec<_>>().into_par_iter().map(task).collect()
        } else {
            tasks().map(task).collect()
        };
        let mut out = vec![0.0; queries.len()];
        done.iter().for_each(|(at, head, rows)| self.scatter(rows, *at, *head, &mut out));
        out
    }

    /// Query heads that share a key-value head.
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// The query rows of some positions that share a key-value head: `[positions * group, head_dim]`.
    fn gather(&self, queries: &[f32], positions: Range<usize>, head: usize) -> Vec<f32> {
        let shared = self.group() * self.head_dim;
        let rows = queries.chunks_exact(self.heads * self.head_dim).skip(positions.start).take(positions.len());
        rows.flat_map(|row| row[head * shared..(head + 1) * shared].iter().copied()).collect()
    }

    /// The reverse, of rows rounded up to whole strips.
    fn scatter(&self, rows: &[f32], at: usize, head: usize, out: &mut [f32]) {
        let padded = self.head_dim.next_multiple_of(Dense::STRIP);
        for (i, row) in rows.chunks_exact(padded).enumerate() {
            let (position, query) = (at + i / self.group(), i % self.group());
            let to = position * self.heads + head * self.group() + query;
            out[to * self.head_dim..][..self.head_dim].copy_from_slice(&row[..self.head_dim]);
        }
    }

    /// Softmax of scores times values, for rows of which `group` each stand at one position.
    fn attend(&self, queries: &[f32], first: usize, head: &Head) -> Vec<f32> {
        let (dim, padded) = (self.head_dim, self.head_dim.next_multiple_of(Dense::STRIP));
        let rows = queries.len() / dim;
        let end = first + rows / self.group();
        let start = self.sees(first).start / Dense::STRIP * Dense::STRIP;
        let stride = (end - start).next_multiple_of(Dense::STRIP);
        let mut scores = vec![0.0; rows * stride];
        let job = Dense { rows, depth: dim, columns: Dense::STRIP, a_stride: dim, c_stride: stride };
        for at in (0..stride).step_by(Dense::STRIP) {
            kernels().dense(&job, queries, &head.keys[(start + at) * dim..], &mut scores[at..]);
        }
        for (row, scores) in scores.chunks_exact_mut(stride).enumerate() {
            let seen = self.sees(first + row / self.group());
            let (before, rest) = scores.split_at_mut(seen.start - start);
            let (seen, after) = rest.split_at_mut(seen.len());
            kernels().softmax(seen);
            before.fill(0.0);
            after.fill(0.0);
        }
        let mut out = vec![0.0; rows * padded];
        let job = Dense { rows, depth: end - start, columns: padded, a_stride: stride, c_stride: padded };
        kernels().dense(&job, &scores, &head.values[start * padded..], &mut out);
        out
    }

    /// The positions that a position sees.
    fn sees(&self, position: usize) -> Range<usize> {
        let start = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
        start..position + 1
    }
}
