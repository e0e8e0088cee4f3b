//! Rows that meet one input where they lie, by `vpmaddubsw`: 32 bytes of each of eight rows at a time.
//!
//! Always: the bits of `body::dot::accumulate_rows`. As in `rows`, lanes of a row are added crosswise with
//! those of the other rows until a lane is a row; and what follows is asked for ahead.

use std::arch::x86_64::{
    __m256, __m256i, _mm256_add_epi32, _mm256_add_ps, _mm256_and_si256, _mm256_castps_si256, _mm256_castsi256_ps,
    _mm256_cvtepi32_ps, _mm256_hadd_epi32, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_mul_ps,
    _mm256_permute2x128_si256, _mm256_set1_epi8, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_si256,
    _mm256_shuffle_ps, _mm256_srli_epi16, _mm256_storeu_ps,
};

use super::{
    ask_for,
    maddubs::products,
    map::{E2M1, SAME, SIGNED, mapped_256},
};
use crate::kernel::{Ahead, Inputs, Map, Product, Rows, body::dot::LANES};

/// Bytes of codes that meet an input together.
const HALF: usize = 32;
/// Rows of a register.
const EIGHT: usize = 8;

/// `body::dot::accumulate_rows`.
#[target_feature(enable = "avx2")]
pub(super) fn accumulate(product: &Product, rows: &Rows<'_>, inputs: &Inputs<'_>, acc: &mut [f32; LANES]) {
    rows.ahead.into_iter().for_each(ask_for);
    match (product.planes(), product.map(), product.bits()) {
        (4, ..) => by_group::<4, 2, SAME, false>(product, rows, inputs, acc),
        (2, Map::E2m1, _) => by_group::<2, 4, E2M1, false>(product, rows, inputs, acc),
        (2, ..) => by_group::<2, 4, SAME, false>(product, rows, inputs, acc),
        (_, Map::Signed, _) => by_group::<1, 8, SIGNED, true>(product, rows, inputs, acc),
        (_, _, 8) => by_group::<1, 8, SAME, true>(product, rows, inputs, acc),
        _ => by_group::<1, 8, SAME, false>(product, rows, inputs, acc),
    }
}

#[target_feature(enable = "avx2")]
fn by_group<const PLANES: usize, const BITS: i32, const MAP: u8, const WIDE: bool>(
    product: &Product,
    rows: &Rows<'_>,
    inputs: &Inputs<'_>,
    acc: &mut [f32; LANES],
) {
    for (half, acc) in acc.as_chunks_mut().0.iter_mut().enumerate() {
        let first = half * EIGHT;
        match product.group_bytes() {
            8 => steps::<PLANES, BITS, MAP, WIDE, 4, 1>(rows, first, inputs, acc),
            16 => steps::<PLANES, BITS, MAP, WIDE, 2, 1>(rows, first, inputs, acc),
            32 => steps::<PLANES, BITS, MAP, WIDE, 1, 1>(rows, first, inputs, acc),
            64 => steps::<PLANES, BITS, MAP, WIDE, 1, 2>(rows, first, inputs, acc),
            _ => steps::<PLANES, BITS, MAP, WIDE, 1, 4>(rows, first, inputs, acc),
        }
    }
}

/// Steps of `HALVES` times 32 bytes, which hold `GROUPS` groups, of the rows from `first` on.
#[target_feature(enable = "avx2")]
fn steps<
    const PLANES: usize,
    const BITS: i32,
    const MAP: u8,
    const WIDE: bool,
    const GROUPS: usize,
    const HALVES: usize,
>(
    rows: &Rows<'_>,
    first: usize,
    inputs: &Inputs<'_>,
    acc: &mut [f32; EIGHT],
) {
    let mut total = load_values(acc);
    let groups = rows.scales.len();
    let bytes = HALF * HALVES;
    let width = groups * bytes / GROUPS;
    let mut ours: [&[u8]; EIGHT] = [&[]; EIGHT];
    for (r, row) in ours.iter_mut().enumerate() {
        *row = &rows.codes[(first + r).min(rows.count - 1) * rows.stride..][..width];
    }
    for (step, start) in (0..groups).step_by(GROUPS).enumerate() {
        let at = step * bytes;
        let mut v = [_mm256_setzero_si256(); EIGHT];
        for (v, row) in v.iter_mut().zip(&ours) {
            let Some(codes) = row.get(at..at + bytes) else {
                let mut last = [0; HALF];
                last[..width - at].copy_from_slice(&row[at..]);
                *v = add::<PLANES, BITS, MAP, WIDE>(*v, &last, at, inputs.codes);
                continue;
            };
            for (h, codes) in codes.as_chunks().0.iter().enumerate() {
                *v = add::<PLANES, BITS, MAP, WIDE>(*v, codes, at + h * HALF, inputs.codes);
            }
        }
        // A sixteenth of the rows that follow each time: their bytes in the order of memory.
        ask_for(Ahead { like: &ours[0][at..width.min(at + bytes)], distance: rows.stride * LANES });
        let sums = gather::<GROUPS>(&v);
        for (sums, g) in sums.into_iter().zip(start..groups) {
            let sums = _mm256_cvtepi32_ps(_mm256_add_epi32(sums, _mm256_set1_epi32(inputs.starts[g])));
            let factor = _mm256_mul_ps(load_parameters(&rows.scales[g], first), _mm256_set1_ps(inputs.scales[g]));
            let mut term = _mm256_mul_ps(sums, factor);
            if let Some(bias) = rows.biases.get(g) {
                let bias = load_parameters(bias, first);
                term = _mm256_add_ps(term, _mm256_mul_ps(bias, _mm256_set1_ps(inputs.sums[g])));
            }
            total = _mm256_add_ps(total, term);
        }
    }
    store_values(total, acc);
}

/// Adds the products of 32 bytes of codes, which start at a byte of their row, to eight sums.
#[target_feature(enable = "avx2")]
#[inline]
fn add<const PLANES: usize, const BITS: i32, const MAP: u8, const WIDE: bool>(
    mut sums: __m256i,
    codes: &[u8; HALF],
    at: usize,
    x: &[[i8; 4]],
) -> __m256i {
    let low = _mm256_set1_epi8((u8::MAX >> (8 - BITS)) as i8);
    let mut rest = load(codes);
    let x = &x[at / 64 * 16 * PLANES + at % 64 / 4..];
    for p in 0..PLANES {
        let codes = if PLANES == 1 { rest } else { _mm256_and_si256(rest, low) };
        sums = _mm256_add_epi32(sums, products::<WIDE>(mapped_256::<MAP>(codes), load_input(&x[p * 16..])));
        rest = _mm256_srli_epi16::<BITS>(rest);
    }
    sums
}

/// From a vector of each row to a vector of each of `GROUPS` groups, whose lanes are the rows.
#[target_feature(enable = "avx2")]
#[inline]
fn gather<const GROUPS: usize>(v: &[__m256i; EIGHT]) -> [__m256i; GROUPS] {
    let mut out = [_mm256_setzero_si256(); GROUPS];
    let [ab, cd, ef, gh] = [
        _mm256_hadd_epi32(v[0], v[1]),
        _mm256_hadd_epi32(v[2], v[3]),
        _mm256_hadd_epi32(v[4], v[5]),
        _mm256_hadd_epi32(v[6], v[7]),
    ];
    if GROUPS == 4 {
        let (even, odd) = (evens(ab, cd), odds(ab, cd));
        let (even_high, odd_high) = (evens(ef, gh), odds(ef, gh));
        let all = [
            _mm256_permute2x128_si256::<0x20>(even, even_high),
            _mm256_permute2x128_si256::<0x20>(odd, odd_high),
            _mm256_permute2x128_si256::<0x31>(even, even_high),
            _mm256_permute2x128_si256::<0x31>(odd, odd_high),
        ];
        out.copy_from_slice(&all[..GROUPS]);
        return out;
    }
    let (low, high) = (_mm256_hadd_epi32(ab, cd), _mm256_hadd_epi32(ef, gh));
    let first = _mm256_permute2x128_si256::<0x20>(low, high);
    let second = _mm256_permute2x128_si256::<0x31>(low, high);
    if GROUPS == 2 {
        out[0] = first;
        out[GROUPS - 1] = second;
    } else {
        out[0] = _mm256_add_epi32(first, second);
    }
    out
}

/// The even lanes of `a` and then of `b`, in each half of a register.
#[target_feature(enable = "avx2")]
#[inline]
fn evens(a: __m256i, b: __m256i) -> __m256i {
    _mm256_castps_si256(_mm256_shuffle_ps::<0x88>(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b)))
}

/// The odd ones.
#[target_feature(enable = "avx2")]
#[inline]
fn odds(a: __m256i, b: __m256i) -> __m256i {
    _mm256_castps_si256(_mm256_shuffle_ps::<0xdd>(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b)))
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

/// The parameters of eight rows, from `first` on.
#[target_feature(enable = "avx2")]
#[inline]
fn load_parameters(values: &[u8; 64], first: usize) -> __m256 {
    let values: &[u8; 32] = &values[first * 4..].as_chunks().0[0];
    // SAFETY: 32 bytes are read from an array of 32.
    #[expect(unsafe_code, reason = "a load")]
    unsafe {
        _mm256_loadu_ps(values.as_ptr().cast())
    }
}

#[target_feature(enable = "avx2")]
#[inline]
fn load_values(values: &[f32; EIGHT]) -> __m256 {
    // SAFETY: eight floats are read from an array of eight.
    #[expect(unsafe_code, reason = "a load")]
    unsafe {
        _mm256_loadu_ps(values.as_ptr())
    }
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
