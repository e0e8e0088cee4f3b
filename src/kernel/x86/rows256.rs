//! Rows that meet one input where they lie, by `vpmaddubsw`: eight groups of a row at a time.
//!
//! Always: the bits of `body::dot::accumulate_rows`. As in `rows`: lanes are added until a lane is a group,
//! what groups contribute is transposed until a lane is a row, and what follows is asked for ahead.

use std::arch::x86_64::{
    __m256, __m256i, _mm256_add_epi16, _mm256_add_epi32, _mm256_add_ps, _mm256_and_si256, _mm256_castps_si256,
    _mm256_castsi256_ps, _mm256_cvtepi32_ps, _mm256_hadd_epi32, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_madd_epi16,
    _mm256_maddubs_epi16, _mm256_mul_ps, _mm256_packs_epi32, _mm256_permute2x128_si256, _mm256_permutevar8x32_epi32,
    _mm256_set1_epi8, _mm256_set1_epi16, _mm256_setzero_si256, _mm256_srli_epi16, _mm256_storeu_ps,
};

use super::{
    ask_for,
    maddubs::products,
    map::{E2M1, SAME, SIGNED, mapped_256, narrow},
    tile256::transposed,
};
use crate::kernel::{Ahead, Inputs, Map, Product, Rows, Terms, body::dot::LANES, product::RUN};

/// Bytes of codes that meet an input together.
const HALF: usize = 32;
/// Groups of a register.
const EIGHT: usize = 8;

/// `body::dot::accumulate_rows`.
#[target_feature(enable = "avx2")]
pub(super) fn accumulate(
    product: &Product,
    rows: &Rows<'_>,
    inputs: &Inputs<'_>,
    terms: &mut Terms,
    acc: &mut [f32; LANES],
) {
    rows.ahead.into_iter().for_each(ask_for);
    match (product.planes(), product.map(), product.bits()) {
        (4, ..) => by_group::<4, SAME, false>(product, rows, inputs, terms, acc),
        (2, Map::E2m1, _) => by_group::<2, E2M1, false>(product, rows, inputs, terms, acc),
        (2, ..) => by_group::<2, SAME, false>(product, rows, inputs, terms, acc),
        (_, Map::Signed, _) => by_group::<1, SIGNED, true>(product, rows, inputs, terms, acc),
        (_, _, 8) => by_group::<1, SAME, true>(product, rows, inputs, terms, acc),
        _ => by_group::<1, SAME, false>(product, rows, inputs, terms, acc),
    }
}

#[target_feature(enable = "avx2")]
fn by_group<const PLANES: usize, const MAP: u8, const WIDE: bool>(
    product: &Product,
    rows: &Rows<'_>,
    inputs: &Inputs<'_>,
    terms: &mut Terms,
    acc: &mut [f32; LANES],
) {
    match product.group_bytes() {
        8 => groups::<PLANES, MAP, WIDE, 1, 2>(rows, inputs, terms, acc),
        16 => groups::<PLANES, MAP, WIDE, 1, 4>(rows, inputs, terms, acc),
        32 => groups::<PLANES, MAP, WIDE, 1, 8>(rows, inputs, terms, acc),
        64 => groups::<PLANES, MAP, WIDE, 2, 8>(rows, inputs, terms, acc),
        _ => groups::<PLANES, MAP, WIDE, 4, 8>(rows, inputs, terms, acc),
    }
}

/// `SUMS` vectors of sums, each of `HALVES` times 32 bytes, hold eight groups.
#[target_feature(enable = "avx2")]
fn groups<const PLANES: usize, const MAP: u8, const WIDE: bool, const HALVES: usize, const SUMS: usize>(
    rows: &Rows<'_>,
    inputs: &Inputs<'_>,
    terms: &mut Terms,
    acc: &mut [f32; LANES],
) {
    let size = SUMS * HALVES * HALF;
    for first in (0..rows.groups).step_by(RUN * LANES) {
        let last = rows.groups.min(first + RUN * LANES);
        for (r, terms) in terms.iter_mut().enumerate().take(rows.count) {
            let codes = &rows.codes[r * rows.stride..];
            for (i, from) in (first..last).step_by(EIGHT).enumerate() {
                let at = from / EIGHT * size;
                let groups = from..last.min(from + EIGHT);
                let met = if groups.len() == EIGHT {
                    let codes = &codes[at..][..size];
                    ask_for(Ahead { like: codes, distance: rows.distance });
                    meet::<PLANES, MAP, WIDE, HALVES, SUMS>(codes.as_chunks().0, at, inputs.codes)
                } else {
                    let bytes = groups.len() * size / EIGHT;
                    meet_some::<PLANES, MAP, WIDE, HALVES, SUMS>(&codes[at..][..bytes], at, inputs.codes)
                };
                let pitch = r * rows.pitch;
                let scale = load_values(&rows.scales[pitch..][groups.clone()]);
                let bias = rows.biases.get(pitch + groups.start..pitch + groups.end);
                let bias = bias.map(|bias| [load_values(bias), load_values(&inputs.sums[groups.clone()])]);
                let start = load_integers(&inputs.starts[groups.clone()]);
                let term = term(met, start, [scale, load_values(&inputs.scales[groups])], bias);
                store_values(term, &mut terms.as_flattened_mut().as_chunks_mut().0[i]);
            }
        }
        for (i, from) in (first..last).step_by(EIGHT).enumerate() {
            add_up(terms, i, EIGHT.min(last - from), acc);
        }
    }
}

/// The integer sums of eight groups, whose codes start at a byte of their row.
#[target_feature(enable = "avx2")]
#[inline]
fn meet<const PLANES: usize, const MAP: u8, const WIDE: bool, const HALVES: usize, const SUMS: usize>(
    codes: &[[u8; HALF]],
    at: usize,
    xs: &[[i8; 4]],
) -> __m256i {
    let mut met = [_mm256_setzero_si256(); SUMS];
    for (s, codes) in codes.as_chunks::<HALVES>().0.iter().enumerate().take(SUMS) {
        for (h, codes) in codes.iter().enumerate() {
            let at = at + (s * HALVES + h) * HALF;
            met[s] = _mm256_add_epi32(met[s], four::<PLANES, MAP, WIDE>(codes, at, xs));
        }
    }
    by_lane(met, narrow(PLANES, MAP, HALVES))
}

/// Those of fewer groups, then zeros.
#[target_feature(enable = "avx2")]
#[inline(never)]
fn meet_some<const PLANES: usize, const MAP: u8, const WIDE: bool, const HALVES: usize, const SUMS: usize>(
    codes: &[u8],
    at: usize,
    xs: &[[i8; 4]],
) -> __m256i {
    let mut met = [_mm256_setzero_si256(); SUMS];
    for (i, codes) in codes.chunks(HALF).enumerate() {
        let mut half = [0; HALF];
        half[..codes.len()].copy_from_slice(codes);
        let met = &mut met[i / HALVES];
        *met = _mm256_add_epi32(*met, four::<PLANES, MAP, WIDE>(&half, at + i * HALF, xs));
    }
    by_lane(met, narrow(PLANES, MAP, HALVES))
}

/// The products of 32 bytes of codes, which start at a byte of their row, added by fours and planes.
#[target_feature(enable = "avx2")]
#[inline]
fn four<const PLANES: usize, const MAP: u8, const WIDE: bool>(
    codes: &[u8; HALF],
    at: usize,
    xs: &[[i8; 4]],
) -> __m256i {
    let mut rest = load(codes);
    let xs = &xs[at / 64 * 16 * PLANES + at % 64 / 4..];
    if PLANES == 1 {
        return products::<WIDE>(mapped_256::<MAP>(rest), load_input(xs));
    }
    let low = _mm256_set1_epi8((u8::MAX >> (8 - 8 / PLANES)) as i8);
    let mut pairs = _mm256_setzero_si256();
    for p in 0..PLANES {
        let codes = mapped_256::<MAP>(_mm256_and_si256(rest, low));
        // The planes' sums of two products fit 16 bits together: 2 * 2 * 127 * 24 < 2^15.
        pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(codes, load_input(&xs[p * 16..])));
        rest = match PLANES {
            4 => _mm256_srli_epi16::<2>(rest),
            _ => _mm256_srli_epi16::<4>(rest),
        };
    }
    _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))
}

/// Vectors that hold eight groups to the vector of their sums, in order. The first `narrow` steps may take
/// 16 bits.
#[target_feature(enable = "avx2")]
#[inline]
fn by_lane<const SUMS: usize>(mut v: [__m256i; SUMS], narrow: u32) -> __m256i {
    for i in 0..SUMS / 2 {
        v[i] = pairs(v[2 * i], v[2 * i + 1], narrow > 0);
    }
    if SUMS == 2 {
        return ordered(v[0], [0, 1, 4, 5, 2, 3, 6, 7]);
    }
    for i in 0..SUMS / 4 {
        v[i] = pairs(v[2 * i], v[2 * i + 1], narrow > 1);
    }
    if SUMS == 4 {
        return ordered(v[0], [0, 4, 1, 5, 2, 6, 3, 7]);
    }
    let (low, high) = (_mm256_permute2x128_si256::<0x20>(v[0], v[1]), _mm256_permute2x128_si256::<0x31>(v[0], v[1]));
    _mm256_add_epi32(low, high)
}

/// The sums of pairs of lanes of `a` and then of `b`, in each half; by steps of 16 bits where all fit.
#[target_feature(enable = "avx2")]
#[inline]
fn pairs(a: __m256i, b: __m256i, narrow: bool) -> __m256i {
    if narrow { _mm256_madd_epi16(_mm256_packs_epi32(a, b), _mm256_set1_epi16(1)) } else { _mm256_hadd_epi32(a, b) }
}

/// The lanes in this order.
#[target_feature(enable = "avx2")]
#[inline]
fn ordered(v: __m256i, order: [i32; EIGHT]) -> __m256i {
    _mm256_permutevar8x32_epi32(v, load_integers(&order))
}

/// What eight groups contribute to their row: `scales` are the row's and the input's, `biases` the row's
/// biases and the input's sums.
#[target_feature(enable = "avx2")]
#[inline]
fn term(met: __m256i, start: __m256i, scales: [__m256; 2], biases: Option<[__m256; 2]>) -> __m256 {
    let met = _mm256_cvtepi32_ps(_mm256_add_epi32(met, start));
    let term = _mm256_mul_ps(met, _mm256_mul_ps(scales[0], scales[1]));
    match biases {
        Some([bias, sum]) => _mm256_add_ps(term, _mm256_mul_ps(bias, sum)),
        None => term,
    }
}

/// Adds what some groups of each row contribute to the rows' totals, group by group: the first ones of the
/// `i`-th eight.
#[target_feature(enable = "avx2")]
#[inline]
fn add_up(terms: &Terms, i: usize, groups: usize, acc: &mut [f32; LANES]) {
    for (terms, acc) in terms.as_chunks::<EIGHT>().0.iter().zip(acc.as_chunks_mut::<EIGHT>().0) {
        let mut rows = [_mm256_setzero_si256(); EIGHT];
        for r in 0..EIGHT {
            rows[r] = _mm256_castps_si256(load_values(&terms[r].as_flattened()[i * EIGHT..][..EIGHT]));
        }
        let mut total = load_values(acc);
        for term in &transposed(rows)[..groups] {
            total = _mm256_add_ps(total, _mm256_castsi256_ps(*term));
        }
        store_values(total, acc);
    }
}

#[target_feature(enable = "avx2")]
#[inline]
fn load(codes: &[u8; HALF]) -> __m256i {
    // SAFETY: 32 bytes are read from an array of 32.
    #[expect(unsafe_code, reason = "a load")]
    unsafe {
        _mm256_loadu_si256(codes.as_ptr().cast())
    }
}

/// The first eight quads.
#[target_feature(enable = "avx2")]
#[inline]
fn load_input(x: &[[i8; 4]]) -> __m256i {
    let x: &[[i8; 4]; 8] = &x.as_chunks().0[0];
    // SAFETY: 32 bytes are read from an array of 32.
    #[expect(unsafe_code, reason = "a load")]
    unsafe {
        _mm256_loadu_si256(x.as_ptr().cast())
    }
}

/// Eight integers, or fewer and then zeros.
#[target_feature(enable = "avx2")]
#[inline]
fn load_integers(values: &[i32]) -> __m256i {
    let values = values.first_chunk().copied().unwrap_or_else(|| some(values));
    // SAFETY: eight integers are read from an array of eight.
    #[expect(unsafe_code, reason = "a load")]
    unsafe {
        _mm256_loadu_si256((&raw const values).cast())
    }
}

/// The same of floats.
#[target_feature(enable = "avx2")]
#[inline]
fn load_values(values: &[f32]) -> __m256 {
    let values: [f32; EIGHT] = values.first_chunk().copied().unwrap_or_else(|| some(values));
    // SAFETY: eight floats are read from an array of eight.
    #[expect(unsafe_code, reason = "a load")]
    unsafe {
        _mm256_loadu_ps(values.as_ptr())
    }
}

/// Fewer than eight values, then zeros.
#[inline(never)]
fn some<T: Copy + Default>(values: &[T]) -> [T; EIGHT] {
    let mut eight = [T::default(); EIGHT];
    eight[..values.len()].copy_from_slice(values);
    eight
}

#[target_feature(enable = "avx2")]
#[inline]
fn store_values(values: __m256, out: &mut [f32; EIGHT]) {
    // SAFETY: eight floats are written to an array of eight.
    #[expect(unsafe_code, reason = "a store")]
    unsafe {
        _mm256_storeu_ps(out.as_mut_ptr(), values);
    }
}
