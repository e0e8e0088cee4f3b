//! Rows that meet one input where they lie, by `vpdpbusd`: 64 bytes of each of sixteen rows at a time.
//!
//! Always: the bits of `body::dot::accumulate_rows`. The lanes of a row that belong to one group are
//! added crosswise with those of the other rows, until a lane is a row. The bytes that follow are asked
//! for ahead: few machines see sixteen streams, and the sums leave no room to run ahead.

use std::arch::x86_64::{
    __m512, __m512i, _MM_HINT_T1, _mm_prefetch, _mm512_add_epi32, _mm512_add_ps, _mm512_and_si512, _mm512_castps_si512,
    _mm512_castsi512_ps, _mm512_cvtepi32_ps, _mm512_dpbusd_epi32, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_maskz_loadu_epi8, _mm512_mul_ps, _mm512_set1_epi8, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_si512,
    _mm512_shuffle_i32x4, _mm512_shuffle_ps, _mm512_srli_epi16, _mm512_storeu_ps, _mm512_unpackhi_epi32,
    _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};

use super::{
    ask_for,
    map::{E2M1, SAME, SIGNED, mapped_512},
};
use crate::kernel::{Inputs, Map, Product, Rows, body::dot::LANES};

/// Bytes of codes that meet an input together.
const LINE: usize = 64;
/// Steps of a row that are taken together.
const RUN: usize = 4;

/// `body::dot::accumulate_rows`.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn accumulate(product: &Product, rows: &Rows<'_>, inputs: &Inputs<'_>, acc: &mut [f32; LANES]) {
    match (product.planes(), product.map()) {
        (4, _) => by_group::<4, 2, SAME>(product, rows, inputs, acc),
        (2, Map::E2m1) => by_group::<2, 4, E2M1>(product, rows, inputs, acc),
        (2, _) => by_group::<2, 4, SAME>(product, rows, inputs, acc),
        (_, Map::Signed) => by_group::<1, 8, SIGNED>(product, rows, inputs, acc),
        _ => by_group::<1, 8, SAME>(product, rows, inputs, acc),
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn by_group<const PLANES: usize, const BITS: u32, const MAP: u8>(
    product: &Product,
    rows: &Rows<'_>,
    inputs: &Inputs<'_>,
    acc: &mut [f32; LANES],
) {
    match product.group_bytes() {
        8 => lines::<PLANES, BITS, MAP, 8, 2, 1>(rows, inputs, acc),
        16 => lines::<PLANES, BITS, MAP, 4, 1, 1>(rows, inputs, acc),
        32 => lines::<PLANES, BITS, MAP, 2, 1, 1>(rows, inputs, acc),
        64 => lines::<PLANES, BITS, MAP, 1, 1, 1>(rows, inputs, acc),
        _ => lines::<PLANES, BITS, MAP, 1, 1, 2>(rows, inputs, acc),
    }
}

/// Steps of `LINES` lines, which hold `GROUPS` groups; several of one row before those of the next, since
/// rows at a distance of a power of two push each other out of the first-level cache.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn lines<
    const PLANES: usize,
    const BITS: u32,
    const MAP: u8,
    const GROUPS: usize,
    const HALVES: usize,
    const LINES: usize,
>(
    rows: &Rows<'_>,
    inputs: &Inputs<'_>,
    acc: &mut [f32; LANES],
) {
    rows.ahead.into_iter().for_each(ask_for);
    let mut total = load_values(acc);
    let groups = rows.scales.len();
    let width = groups * (LINE * LINES / GROUPS);
    let mut whole: [&[[[u8; LINE]; LINES]]; LANES] = [&[]; LANES];
    for (r, lines) in whole.iter_mut().enumerate() {
        *lines = rows.codes[r.min(rows.count - 1) * rows.stride..][..width].as_chunks().0.as_chunks().0;
    }
    let steps = whole[0].len();
    let xs = inputs.codes.as_chunks::<LANES>().0.as_chunks::<PLANES>().0.as_chunks::<LINES>().0;
    let mut fours = [[[_mm512_setzero_si512(); HALVES]; 4]; RUN];
    let mut step = 0;
    while step < steps {
        let run = RUN.min(steps - step);
        let next = rows.codes.as_ptr().wrapping_add(rows.stride * LANES + step * LINES * LINE * LANES);
        for i in 0..4 {
            let of = |r: usize| &whole[4 * i + r][step..step + run];
            let (a, b, c, d) = (of(0), of(1), of(2), of(3));
            let mut ahead = next.wrapping_add(4 * i * run * LINES * LINE);
            for ((((fours, xs), a), (b, c)), d) in
                fours.iter_mut().zip(&xs[step..step + run]).zip(a).zip(b.iter().zip(c)).zip(d)
            {
                fours[i] = four([
                    add::<PLANES, BITS, MAP, LINES>(a, ahead, xs),
                    add::<PLANES, BITS, MAP, LINES>(b, ahead.wrapping_add(LINES * LINE), xs),
                    add::<PLANES, BITS, MAP, LINES>(c, ahead.wrapping_add(2 * LINES * LINE), xs),
                    add::<PLANES, BITS, MAP, LINES>(d, ahead.wrapping_add(3 * LINES * LINE), xs),
                ]);
                ahead = ahead.wrapping_add(4 * LINES * LINE);
            }
        }
        for (s, fours) in fours.iter().enumerate().take(run) {
            let sums = gather::<GROUPS, HALVES>(fours);
            for (i, sums) in sums.into_iter().enumerate() {
                total = scale(sums, (step + s) * GROUPS + i, rows, inputs, total);
            }
        }
        step += run;
    }
    if steps * GROUPS < groups {
        let at = steps * LINES * LINE;
        let xs = &inputs.codes.as_chunks::<LANES>().0.as_chunks::<PLANES>().0[steps * LINES..];
        let sums = gather::<GROUPS, HALVES>(&last::<PLANES, BITS, MAP, HALVES>(rows, at, width - at, xs));
        for (sums, g) in sums.into_iter().zip(steps * GROUPS..groups) {
            total = scale(sums, g, rows, inputs, total);
        }
    }
    store_values(total, acc);
}

/// Adds a group to the rows' totals.
#[target_feature(enable = "avx512f")]
#[inline]
fn scale(sums: __m512i, g: usize, rows: &Rows<'_>, inputs: &Inputs<'_>, total: __m512) -> __m512 {
    let sums = _mm512_cvtepi32_ps(_mm512_add_epi32(sums, _mm512_set1_epi32(inputs.starts[g])));
    let factor = _mm512_mul_ps(load_parameters(&rows.scales[g]), _mm512_set1_ps(inputs.scales[g]));
    let mut term = _mm512_mul_ps(sums, factor);
    if let Some(bias) = rows.biases.get(g) {
        term = _mm512_add_ps(term, _mm512_mul_ps(load_parameters(bias), _mm512_set1_ps(inputs.sums[g])));
    }
    _mm512_add_ps(total, term)
}

/// The last bytes of the rows, less than a step, as `four` gives them.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline(never)]
fn last<const PLANES: usize, const BITS: u32, const MAP: u8, const HALVES: usize>(
    rows: &Rows<'_>,
    at: usize,
    bytes: usize,
    xs: &[[[[i8; 4]; LANES]; PLANES]],
) -> [[__m512i; HALVES]; 4] {
    let mut v = [_mm512_setzero_si512(); LANES];
    for (r, v) in v.iter_mut().enumerate().take(rows.count) {
        for (line, x) in rows.codes[r * rows.stride + at..][..bytes].chunks(LINE).zip(xs) {
            *v = products::<PLANES, BITS, MAP>(*v, load_some(line), x);
        }
    }
    let mut fours = [[_mm512_setzero_si512(); HALVES]; 4];
    for (fours, v) in fours.iter_mut().zip(v.as_chunks().0) {
        *fours = four(*v);
    }
    fours
}

/// The sums of the products of some lines, by lanes.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn add<const PLANES: usize, const BITS: u32, const MAP: u8, const LINES: usize>(
    lines: &[[u8; LINE]; LINES],
    ahead: *const u8,
    xs: &[[[[i8; 4]; LANES]; PLANES]; LINES],
) -> __m512i {
    let mut sums = _mm512_setzero_si512();
    for l in 0..LINES {
        sums = products::<PLANES, BITS, MAP>(sums, load(&lines[l], ahead.wrapping_add(l * LINE)), &xs[l]);
    }
    sums
}

/// Adds the products of a line of codes to sixteen sums.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn products<const PLANES: usize, const BITS: u32, const MAP: u8>(
    mut sums: __m512i,
    line: __m512i,
    x: &[[[i8; 4]; LANES]; PLANES],
) -> __m512i {
    let low = _mm512_set1_epi8((u8::MAX >> (8 - BITS)) as i8);
    let mut rest = line;
    for x in x {
        let codes = if PLANES == 1 { rest } else { _mm512_and_si512(rest, low) };
        sums = _mm512_dpbusd_epi32(sums, mapped_512::<MAP>(codes), load_input(x));
        rest = _mm512_srli_epi16::<BITS>(rest);
    }
    sums
}

/// The vectors of four rows to sums of four lanes, or in two halves of two: of the even groups and of the
/// odd ones; side by side in each quarter of a register.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn four<const HALVES: usize>([a, b, c, d]: [__m512i; 4]) -> [__m512i; HALVES] {
    let mut out = [_mm512_setzero_si512(); HALVES];
    if HALVES == 2 {
        let (ab, cd) = (pairs(a, b), pairs(c, d));
        out[0] = evens(ab, cd);
        out[HALVES - 1] = odds(ab, cd);
    } else {
        let ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        out[0] = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    }
    out
}

/// What `four` gives for sixteen rows to a vector of each group, whose lanes are the rows.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn gather<const GROUPS: usize, const HALVES: usize>(fours: &[[__m512i; HALVES]; 4]) -> [__m512i; GROUPS] {
    let mut out = [_mm512_setzero_si512(); GROUPS];
    let [a, b, c, d] = [fours[0][0], fours[1][0], fours[2][0], fours[3][0]];
    if GROUPS <= 2 {
        let (ab, cd) = (halves(a, b), halves(c, d));
        if GROUPS == 1 {
            out[0] = halves(ab, cd);
        } else {
            out[0] = _mm512_shuffle_i32x4::<0x88>(ab, cd);
            out[GROUPS - 1] = _mm512_shuffle_i32x4::<0xdd>(ab, cd);
        }
        return out;
    }
    for h in 0..HALVES {
        let quarters = quarters([fours[0][h], fours[1][h], fours[2][h], fours[3][h]]);
        for q in 0..4 {
            out[q * HALVES + h] = quarters[q];
        }
    }
    out
}

/// The even lanes of `a` and then of `b`, in each quarter of a register.
#[target_feature(enable = "avx512f")]
#[inline]
fn evens(a: __m512i, b: __m512i) -> __m512i {
    _mm512_castps_si512(_mm512_shuffle_ps::<0x88>(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b)))
}

/// The odd ones.
#[target_feature(enable = "avx512f")]
#[inline]
fn odds(a: __m512i, b: __m512i) -> __m512i {
    _mm512_castps_si512(_mm512_shuffle_ps::<0xdd>(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b)))
}

/// The sums of pairs of lanes of `a` and then of `b`, in each quarter.
#[target_feature(enable = "avx512f")]
#[inline]
fn pairs(a: __m512i, b: __m512i) -> __m512i {
    _mm512_add_epi32(evens(a, b), odds(a, b))
}

/// The sums of pairs of quarters of `a` and then of `b`.
#[target_feature(enable = "avx512f")]
#[inline]
fn halves(a: __m512i, b: __m512i) -> __m512i {
    _mm512_add_epi32(_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b))
}

/// Quarter q of each vector, side by side in the q-th.
#[target_feature(enable = "avx512f")]
#[inline]
fn quarters([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    let (ab, cd) = (_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0x44>(c, d));
    let (ab_high, cd_high) = (_mm512_shuffle_i32x4::<0xee>(a, b), _mm512_shuffle_i32x4::<0xee>(c, d));
    [
        _mm512_shuffle_i32x4::<0x88>(ab, cd),
        _mm512_shuffle_i32x4::<0xdd>(ab, cd),
        _mm512_shuffle_i32x4::<0x88>(ab_high, cd_high),
        _mm512_shuffle_i32x4::<0xdd>(ab_high, cd_high),
    ]
}

/// 64 bytes; those at a distance are asked for.
#[target_feature(enable = "avx512f")]
#[inline]
fn load(line: &[u8; LINE], ahead: *const u8) -> __m512i {
    // SAFETY: a hint; it reads nothing and may name any address.
    #[allow(unsafe_code, unused_unsafe, reason = "a hint, which newer compilers know to be safe")]
    unsafe {
        _mm_prefetch::<_MM_HINT_T1>(ahead.cast());
    }
    // SAFETY: 64 bytes are read from an array of 64.
    #[expect(unsafe_code, reason = "a load")]
    unsafe {
        _mm512_loadu_si512(line.as_ptr().cast())
    }
}

/// Fewer bytes, then zeros.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn load_some(line: &[u8]) -> __m512i {
    let mask = u64::MAX >> (LINE - line.len());
    // SAFETY: the mask reads only the bytes of the slice.
    #[expect(unsafe_code, reason = "a load")]
    unsafe {
        _mm512_maskz_loadu_epi8(mask, line.as_ptr().cast())
    }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn load_input(x: &[[i8; 4]; LANES]) -> __m512i {
    // SAFETY: 64 bytes are read from an array of 64.
    #[expect(unsafe_code, reason = "a load")]
    unsafe {
        _mm512_loadu_si512(x.as_ptr().cast())
    }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn load_parameters(values: &[u8; 64]) -> __m512 {
    // SAFETY: 64 bytes are read from an array of 64.
    #[expect(unsafe_code, reason = "a load")]
    unsafe {
        _mm512_loadu_ps(values.as_ptr().cast())
    }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn load_values(values: &[f32; LANES]) -> __m512 {
    // SAFETY: sixteen floats are read from an array of sixteen.
    #[expect(unsafe_code, reason = "a load")]
    unsafe {
        _mm512_loadu_ps(values.as_ptr())
    }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn store_values(values: __m512, out: &mut [f32; LANES]) {
    // SAFETY: sixteen floats are written to an array of sixteen.
    #[expect(unsafe_code, reason = "a store")]
    unsafe {
        _mm512_storeu_ps(out.as_mut_ptr(), values);
    }
}
