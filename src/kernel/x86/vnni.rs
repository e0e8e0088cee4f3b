//! Integer sums by `vpdpbusd`: four products of a row and their sum in one step of each lane.
//!
//! Always: the bits of `body::dot::accumulate`; the instruction neither saturates nor rounds. No closures in
//! the loops: those passed to the standard library's functions, which lack the features, stay calls.

use std::arch::x86_64::{
    __m512, __m512i, _mm512_add_epi32, _mm512_add_ps, _mm512_cvtepi32_ps, _mm512_dpbusd_epi32, _mm512_loadu_ps,
    _mm512_loadu_si512, _mm512_mul_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512,
    _mm512_storeu_ps,
};

use super::ask_for;
use crate::kernel::{
    Ahead, Inputs, Panel, Product,
    body::dot::{LANES, dword},
};

/// `body::dot::accumulate`.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn accumulate(
    product: &Product,
    panels: &[Panel<'_>],
    inputs: &Inputs<'_>,
    ahead: Ahead<'_>,
    acc: &mut [[f32; LANES]],
) {
    match panels {
        [a, b] => by_width(product, [a, b], inputs, ahead, acc),
        _ => {
            for (p, acc) in panels.iter().zip(acc.chunks_mut(inputs.width)) {
                by_width(product, [p], inputs, Ahead::default(), acc);
            }
        }
    }
}

/// With few inputs, several running sums of each keep the instruction's latency hidden.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn by_width<const P: usize>(
    product: &Product,
    panels: [&Panel<'_>; P],
    inputs: &Inputs<'_>,
    ahead: Ahead<'_>,
    acc: &mut [[f32; LANES]],
) {
    let quads = product.group() / 4;
    match inputs.width {
        1 => groups::<P, 1, 4>(quads, panels, inputs, ahead, acc),
        2 => groups::<P, 2, 4>(quads, panels, inputs, ahead, acc),
        3 => groups::<P, 3, 2>(quads, panels, inputs, ahead, acc),
        4 => groups::<P, 4, 2>(quads, panels, inputs, ahead, acc),
        5 => groups::<P, 5, 1>(quads, panels, inputs, ahead, acc),
        6 => groups::<P, 6, 1>(quads, panels, inputs, ahead, acc),
        7 => groups::<P, 7, 1>(quads, panels, inputs, ahead, acc),
        _ => groups::<P, 8, 1>(quads, panels, inputs, ahead, acc),
    }
}

/// A run of groups of `P` panels and `W` inputs, by `U` running sums of each pair.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn groups<const P: usize, const W: usize, const U: usize>(
    quads: usize,
    panels: [&Panel<'_>; P],
    inputs: &Inputs<'_>,
    ahead: Ahead<'_>,
    acc: &mut [[f32; LANES]],
) {
    let mut totals = [[_mm512_setzero_ps(); W]; P];
    for p in 0..P {
        for w in 0..W {
            totals[p][w] = load_values(&acc[p * W + w]);
        }
    }
    let xs = inputs.codes.as_chunks::<W>().0.chunks_exact(quads);
    let scales = inputs.scales.as_chunks::<W>().0.iter().zip(inputs.sums.as_chunks::<W>().0);
    let starts = inputs.starts.as_chunks::<W>().0;
    let mut wanted = ahead.parts(starts.len());
    for (g, ((xs, starts), (scales, sums))) in xs.zip(starts).zip(scales).enumerate() {
        let mut codes = [panels[0].codes; P];
        for p in 0..P {
            codes[p] = &panels[p].codes[g * quads..][..quads];
        }
        ask_for(wanted.next().unwrap_or_default());
        let products = integers::<P, W, U>(codes, xs, starts);
        for p in 0..P {
            let scale = load_values(&panels[p].scales[g]);
            let mut terms = [_mm512_setzero_ps(); W];
            for w in 0..W {
                let factor = _mm512_mul_ps(scale, _mm512_set1_ps(scales[w]));
                terms[w] = _mm512_mul_ps(_mm512_cvtepi32_ps(products[p][w]), factor);
            }
            if let Some(bias) = panels[p].biases.get(g) {
                let bias = load_values(bias);
                for w in 0..W {
                    terms[w] = _mm512_add_ps(terms[w], _mm512_mul_ps(bias, _mm512_set1_ps(sums[w])));
                }
            }
            for w in 0..W {
                totals[p][w] = _mm512_add_ps(totals[p][w], terms[w]);
            }
        }
    }
    for p in 0..P {
        for w in 0..W {
            store_values(totals[p][w], &mut acc[p * W + w]);
        }
    }
}

/// The integer sums of one group.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn integers<const P: usize, const W: usize, const U: usize>(
    codes: [&[[u8; 64]]; P],
    xs: &[[[i8; 4]; W]],
    starts: &[i32; W],
) -> [[__m512i; W]; P] {
    let mut sums = [[[_mm512_setzero_si512(); W]; P]; U];
    for sums in &mut sums[0] {
        for w in 0..W {
            sums[w] = _mm512_set1_epi32(starts[w]);
        }
    }
    for (at, xs) in xs.as_chunks::<U>().0.iter().enumerate() {
        for u in 0..U {
            for p in 0..P {
                let quad = load_codes(&codes[p][at * U + u]);
                for w in 0..W {
                    let x = _mm512_set1_epi32(dword(xs[u][w]));
                    sums[u][p][w] = _mm512_dpbusd_epi32(sums[u][p][w], quad, x);
                }
            }
        }
    }
    let mut total = sums[0];
    for more in &sums[1..] {
        for p in 0..P {
            for w in 0..W {
                total[p][w] = _mm512_add_epi32(total[p][w], more[p][w]);
            }
        }
    }
    total
}

#[target_feature(enable = "avx512f")]
#[inline]
fn load_codes(codes: &[u8; 64]) -> __m512i {
    // SAFETY: 64 bytes are read from an array of 64.
    #[expect(unsafe_code, reason = "a load")]
    unsafe {
        _mm512_loadu_si512(codes.as_ptr().cast())
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
