//! Rows that meet one input where they lie, by `vpdpbusd`: sixteen groups of a row at a time.
//!
//! Always: the bits of `body::dot::accumulate_rows`. The lanes that belong to one group are added until a
//! lane is a group, and scaled there; what sixteen groups of sixteen rows contribute is transposed, and
//! added group by group, a lane being a row then. The bytes that follow are asked for ahead: sums leave a
//! machine little room to run ahead by itself.

use std::arch::x86_64::{
    __m512, __m512i, _MM_HINT_T1, _mm_prefetch, _mm512_add_epi32, _mm512_add_ps, _mm512_and_si512, _mm512_castps_si512,
    _mm512_castsi512_ps, _mm512_cvtepi32_ps, _mm512_dpbusd_epi32, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_madd_epi16, _mm512_maskz_loadu_epi8, _mm512_maskz_loadu_epi32, _mm512_maskz_loadu_ps, _mm512_mul_ps,
    _mm512_packs_epi32, _mm512_permutexvar_epi32, _mm512_set1_epi8, _mm512_set1_epi16, _mm512_setzero_si512,
    _mm512_shuffle_i32x4, _mm512_shuffle_ps, _mm512_srli_epi16, _mm512_storeu_ps,
};

use super::{
    ask_for,
    map::{E2M1, SAME, SIGNED, mapped_512, narrow},
    tile::transposed,
};
use crate::kernel::{Inputs, Map, Product, Rows, Terms, body::dot::LANES, product::RUN};

/// Bytes of codes that meet an input together.
const LINE: usize = 64;

/// `LINES` lines of an input in each of `SUMS` sums, which hold sixteen groups.
type Met<const PLANES: usize, const LINES: usize, const SUMS: usize> = [[[[[i8; 4]; LANES]; PLANES]; LINES]; SUMS];

/// `body::dot::accumulate_rows`.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn accumulate(
    product: &Product,
    rows: &Rows<'_>,
    inputs: &Inputs<'_>,
    terms: &mut Terms,
    acc: &mut [f32; LANES],
) {
    rows.ahead.into_iter().for_each(ask_for);
    match (product.planes(), product.map()) {
        (4, _) => by_group::<4, SAME>(product, rows, inputs, terms, acc),
        (2, Map::E2m1) => by_group::<2, E2M1>(product, rows, inputs, terms, acc),
        (2, _) => by_group::<2, SAME>(product, rows, inputs, terms, acc),
        (_, Map::Signed) => by_group::<1, SIGNED>(product, rows, inputs, terms, acc),
        _ => by_group::<1, SAME>(product, rows, inputs, terms, acc),
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn by_group<const PLANES: usize, const MAP: u8>(
    product: &Product,
    rows: &Rows<'_>,
    inputs: &Inputs<'_>,
    terms: &mut Terms,
    acc: &mut [f32; LANES],
) {
    match product.group_bytes() {
        8 => groups::<PLANES, MAP, 1, 2>(rows, inputs, terms, acc),
        16 => groups::<PLANES, MAP, 1, 4>(rows, inputs, terms, acc),
        32 => groups::<PLANES, MAP, 1, 8>(rows, inputs, terms, acc),
        64 => groups::<PLANES, MAP, 1, 16>(rows, inputs, terms, acc),
        _ => groups::<PLANES, MAP, 2, 16>(rows, inputs, terms, acc),
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn groups<const PLANES: usize, const MAP: u8, const LINES: usize, const SUMS: usize>(
    rows: &Rows<'_>,
    inputs: &Inputs<'_>,
    terms: &mut Terms,
    acc: &mut [f32; LANES],
) {
    let mut total = load_values(acc);
    let whole = rows.groups / LANES;
    let xs: &[Met<PLANES, LINES, SUMS>] = inputs.codes.as_chunks().0.as_chunks().0.as_chunks().0.as_chunks().0;
    let (starts, scales, sums) = (sixteens(inputs.starts), sixteens(inputs.scales), sixteens(inputs.sums));
    for first in (0..whole).step_by(RUN) {
        let run = first..whole.min(first + RUN);
        let of_input =
            xs[run.clone()].iter().zip(&starts[run.clone()]).zip(&scales[run.clone()]).zip(&sums[run.clone()]);
        for (r, terms) in terms.iter_mut().enumerate().take(rows.count) {
            let codes: &[[[[u8; LINE]; LINES]; SUMS]] =
                rows.codes[r * rows.stride..].as_chunks().0.as_chunks().0.as_chunks().0;
            let of_row = &sixteens(&rows.scales[r * rows.pitch..])[run.clone()];
            let biased = !rows.biases.is_empty();
            let biases = if biased { &sixteens(&rows.biases[r * rows.pitch..])[run.clone()] } else { of_row };
            let of_row = codes[run.clone()].iter().zip(of_row).zip(biases);
            for (((((xs, start), scale), sum), ((codes, of_row), bias)), out) in of_input.clone().zip(of_row).zip(terms)
            {
                let met = meet::<PLANES, MAP, LINES, SUMS>(codes, rows.distance, xs);
                let bias = if biased { Some([load_values(bias), load_values(sum)]) } else { None };
                store_values(term(met, load_integers(start), [load_values(of_row), load_values(scale)], bias), out);
            }
        }
        for i in 0..run.len() {
            total = add_up(terms, i, LANES, total);
        }
    }
    let from = whole * LANES;
    if from < rows.groups {
        last::<PLANES, MAP, LINES, SUMS>(rows, inputs, from, terms);
        total = add_up(terms, 0, rows.groups - from, total);
    }
    store_values(total, acc);
}

/// What fewer than sixteen groups of each row contribute, those from `from` on.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline(never)]
fn last<const PLANES: usize, const MAP: u8, const LINES: usize, const SUMS: usize>(
    rows: &Rows<'_>,
    inputs: &Inputs<'_>,
    from: usize,
    terms: &mut Terms,
) {
    let size = SUMS * LINES * LINE / LANES;
    let groups = from..rows.groups;
    let xs: &[[[[[i8; 4]; LANES]; PLANES]; LINES]] = inputs.codes.as_chunks().0.as_chunks().0.as_chunks().0;
    let xs = &xs[from / LANES * SUMS..];
    let start = load_some_integers(&inputs.starts[groups.clone()]);
    let (scale, sum) =
        (load_some_values(&inputs.scales[groups.clone()]), load_some_values(&inputs.sums[groups.clone()]));
    for (r, terms) in terms.iter_mut().enumerate().take(rows.count) {
        let codes = &rows.codes[r * rows.stride..][from * size..rows.groups * size];
        let mut met = [_mm512_setzero_si512(); SUMS];
        for ((met, codes), xs) in met.iter_mut().zip(codes.chunks(LINE * LINES)).zip(xs) {
            for (line, xs) in codes.chunks(LINE).zip(xs) {
                *met = products::<PLANES, MAP>(*met, load_some(line), xs);
            }
        }
        let at = r * rows.pitch;
        let of_row = load_some_values(&rows.scales[at..][groups.clone()]);
        let biases = rows.biases.get(at + groups.start..at + groups.end);
        let biases = biases.map(|biases| [load_some_values(biases), sum]);
        let narrow = narrow(PLANES, MAP, LINES);
        for i in 0..SUMS / 2 {
            met[i] = pairs(met[2 * i], met[2 * i + 1], narrow > 0);
        }
        for i in 0..SUMS / 4 {
            met[i] = pairs(met[2 * i], met[2 * i + 1], narrow > 1);
        }
        store_values(term(by_lane(met), start, [of_row, scale], biases), &mut terms[0]);
    }
}

/// The integer sums of sixteen groups. As soon as there are sums to add they are: the fewer are in flight,
/// the further the machine sees.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn meet<const PLANES: usize, const MAP: u8, const LINES: usize, const SUMS: usize>(
    codes: &[[[u8; LINE]; LINES]; SUMS],
    distance: usize,
    xs: &Met<PLANES, LINES, SUMS>,
) -> __m512i {
    let narrow = narrow(PLANES, MAP, LINES);
    let mut fours = [_mm512_setzero_si512(); SUMS];
    for (i, (codes, xs)) in codes.chunks(4).zip(xs.chunks(4)).enumerate() {
        let mut v = [_mm512_setzero_si512(); 4];
        for s in 0..codes.len() {
            for l in 0..LINES {
                v[s] = products::<PLANES, MAP>(v[s], load(&codes[s][l], distance), &xs[s][l]);
            }
            if s == 1 {
                v[0] = pairs(v[0], v[1], narrow > 0);
            }
        }
        fours[i] = if SUMS == 2 { v[0] } else { pairs(v[0], pairs(v[2], v[3], narrow > 0), narrow > 1) };
    }
    by_lane(fours)
}

/// Adds the products of a line of codes to sixteen sums.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn products<const PLANES: usize, const MAP: u8>(
    mut sums: __m512i,
    line: __m512i,
    xs: &[[[i8; 4]; LANES]; PLANES],
) -> __m512i {
    let low = _mm512_set1_epi8((u8::MAX >> (8 - 8 / PLANES)) as i8);
    let mut rest = line;
    for x in xs {
        let codes = if PLANES == 1 { rest } else { _mm512_and_si512(rest, low) };
        sums = _mm512_dpbusd_epi32(sums, mapped_512::<MAP>(codes), load_input(x));
        rest = match PLANES {
            4 => _mm512_srli_epi16::<2>(rest),
            _ => _mm512_srli_epi16::<4>(rest),
        };
    }
    sums
}

/// Sums of four vectors, or two, by lanes to the vector of sixteen groups, in order.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn by_lane<const SUMS: usize>(v: [__m512i; SUMS]) -> __m512i {
    match SUMS {
        2 => ordered(v[0], [0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15]),
        4 => ordered(v[0], [0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15]),
        8 => ordered(halves(v[0], v[1]), [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]),
        _ => halves(halves(v[0], v[1]), halves(v[2], v[3])),
    }
}

/// The sums of pairs of lanes of `a` and then of `b`, in each quarter; by steps of 16 bits where all fit.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn pairs(a: __m512i, b: __m512i, narrow: bool) -> __m512i {
    if narrow {
        return _mm512_madd_epi16(_mm512_packs_epi32(a, b), _mm512_set1_epi16(1));
    }
    let (a, b) = (_mm512_castsi512_ps(a), _mm512_castsi512_ps(b));
    let (even, odd) = (_mm512_shuffle_ps::<0x88>(a, b), _mm512_shuffle_ps::<0xdd>(a, b));
    _mm512_add_epi32(_mm512_castps_si512(even), _mm512_castps_si512(odd))
}

/// The sums of pairs of quarters of `a` and then of `b`.
#[target_feature(enable = "avx512f")]
#[inline]
fn halves(a: __m512i, b: __m512i) -> __m512i {
    _mm512_add_epi32(_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b))
}

/// The lanes in this order.
#[target_feature(enable = "avx512f")]
#[inline]
fn ordered(v: __m512i, order: [i32; LANES]) -> __m512i {
    _mm512_permutexvar_epi32(load_integers(&order), v)
}

/// What sixteen groups contribute to their row: `scales` are the row's and the input's, `biases` the row's
/// biases and the input's sums.
#[target_feature(enable = "avx512f")]
#[inline]
fn term(met: __m512i, start: __m512i, scales: [__m512; 2], biases: Option<[__m512; 2]>) -> __m512 {
    let met = _mm512_cvtepi32_ps(_mm512_add_epi32(met, start));
    let term = _mm512_mul_ps(met, _mm512_mul_ps(scales[0], scales[1]));
    match biases {
        Some([bias, sum]) => _mm512_add_ps(term, _mm512_mul_ps(bias, sum)),
        None => term,
    }
}

/// Adds what some groups of each row contribute to the rows' totals, group by group: the first ones of the
/// `i`-th sixteen.
#[target_feature(enable = "avx512f")]
#[inline]
fn add_up(terms: &Terms, i: usize, groups: usize, mut total: __m512) -> __m512 {
    let mut rows = [_mm512_setzero_si512(); LANES];
    for r in 0..LANES {
        rows[r] = _mm512_castps_si512(load_values(&terms[r][i]));
    }
    for term in &transposed(rows)[..groups] {
        total = _mm512_add_ps(total, _mm512_castsi512_ps(*term));
    }
    total
}

fn sixteens<T>(values: &[T]) -> &[[T; LANES]] {
    values.as_chunks().0
}

/// 64 bytes; those at a distance are asked for.
#[target_feature(enable = "avx512f")]
#[inline]
fn load(line: &[u8; LINE], distance: usize) -> __m512i {
    // SAFETY: a hint; it reads nothing and may name any address.
    #[allow(unsafe_code, unused_unsafe, reason = "a hint, which newer compilers know to be safe")]
    unsafe {
        _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().wrapping_add(distance).cast());
    }
    // SAFETY: 64 bytes are read from an array of 64.
    #[expect(unsafe_code, reason = "a load")]
    unsafe {
        _mm512_loadu_si512(line.as_ptr().cast())
    }
}

/// 64 bytes or fewer, then zeros.
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
fn load_integers(values: &[i32; LANES]) -> __m512i {
    // SAFETY: sixteen integers are read from an array of sixteen.
    #[expect(unsafe_code, reason = "a load")]
    unsafe {
        _mm512_loadu_si512(values.as_ptr().cast())
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

/// Sixteen or fewer, then zeros.
#[target_feature(enable = "avx512f")]
#[inline]
fn load_some_integers(values: &[i32]) -> __m512i {
    let mask = u16::MAX >> (LANES - values.len());
    // SAFETY: the mask reads only the integers of the slice.
    #[expect(unsafe_code, reason = "a load")]
    unsafe {
        _mm512_maskz_loadu_epi32(mask, values.as_ptr())
    }
}

/// The same of floats.
#[target_feature(enable = "avx512f")]
#[inline]
fn load_some_values(values: &[f32]) -> __m512 {
    let mask = u16::MAX >> (LANES - values.len());
    // SAFETY: the mask reads only the floats of the slice.
    #[expect(unsafe_code, reason = "a load")]
    unsafe {
        _mm512_maskz_loadu_ps(mask, values.as_ptr())
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
