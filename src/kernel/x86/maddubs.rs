//! Integer sums by `vpmaddubsw`: products of bytes, added in pairs to 16 bits.
//!
//! Always: the bits of `body::dot::accumulate`. The pair sums saturate, so codes must stay below 128
//! (127 * 127 * 2 < 2^15); eight-bit codes are cut into their low seven bits and the top one, whose
//! pair sums stay below 128 * 127 * 2 < 2^15 too.

use std::arch::x86_64::{
    __m256i, _mm256_add_epi32, _mm256_and_si256, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_maddubs_epi16,
    _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_storeu_si256,
};

use crate::kernel::{
    Inputs, Panel, Product,
    body::dot::{LANES, combine, dword},
};

/// Inputs that share the load of a panel's codes: two registers of sums each.
const SHARE: usize = 4;

/// `body::dot::accumulate`.
#[target_feature(enable = "avx2")]
pub(super) fn accumulate(product: &Product, panels: &[Panel<'_>], inputs: &Inputs<'_>, acc: &mut [[f32; LANES]]) {
    let wide = product.bits() == 8;
    let (quads, width) = (product.group() / 4, inputs.width);
    for (panel, acc) in panels.iter().zip(acc.chunks_exact_mut(width)) {
        for (g, codes) in panel.codes.chunks_exact(quads).enumerate() {
            let xs = &inputs.codes[g * quads * width..][..quads * width];
            for (n, acc) in acc.chunks_mut(SHARE).enumerate() {
                let at = g * width + n * SHARE;
                let mut sums = [[0; LANES]; SHARE];
                for (sums, start) in sums.iter_mut().zip(&inputs.starts[at..]) {
                    sums.fill(*start);
                }
                let sums = &mut sums[..acc.len()];
                if wide {
                    by_width::<true>(codes, xs, n * SHARE, sums);
                } else {
                    by_width::<false>(codes, xs, n * SHARE, sums);
                }
                for (w, (sums, acc)) in sums.iter().zip(acc).enumerate() {
                    let bias = panel.biases.get(g).zip(inputs.sums.get(at + w));
                    combine(sums, &panel.scales[g], inputs.scales[at + w], bias, acc);
                }
            }
        }
    }
}

#[target_feature(enable = "avx2")]
#[inline]
fn by_width<const WIDE: bool>(codes: &[[u8; 64]], xs: &[[i8; 4]], first: usize, sums: &mut [[i32; LANES]]) {
    match sums.len() {
        1 => integers::<1, WIDE>(codes, xs, first, sums),
        2 => integers::<2, WIDE>(codes, xs, first, sums),
        3 => integers::<3, WIDE>(codes, xs, first, sums),
        _ => integers::<SHARE, WIDE>(codes, xs, first, sums),
    }
}

/// Adds the products of one group with `W` inputs of a block, from the input `first` on.
#[target_feature(enable = "avx2")]
#[inline]
fn integers<const W: usize, const WIDE: bool>(
    codes: &[[u8; 64]],
    xs: &[[i8; 4]],
    first: usize,
    sums: &mut [[i32; LANES]],
) {
    let mut held = [[_mm256_set1_epi32(0); 2]; W];
    for (quad, xs) in codes.iter().zip(xs.chunks_exact(xs.len() / codes.len())) {
        let codes = load(quad);
        for (held, x) in held.iter_mut().zip(&xs[first..]) {
            let x = _mm256_set1_epi32(dword(*x));
            for h in 0..2 {
                held[h] = _mm256_add_epi32(held[h], products::<WIDE>(codes[h], x));
            }
        }
    }
    for (held, sums) in held.iter().zip(sums) {
        let mut ours = [0; LANES];
        store(held, &mut ours);
        for i in 0..LANES {
            sums[i] += ours[i];
        }
    }
}

/// Four products of each lane, added.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn products<const WIDE: bool>(codes: __m256i, x: __m256i) -> __m256i {
    let ones = _mm256_set1_epi16(1);
    if !WIDE {
        return _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), ones);
    }
    let low = _mm256_maddubs_epi16(_mm256_and_si256(codes, _mm256_set1_epi8(0x7f)), x);
    let top = _mm256_maddubs_epi16(_mm256_and_si256(codes, _mm256_set1_epi8(i8::MIN)), x);
    _mm256_add_epi32(_mm256_madd_epi16(low, ones), _mm256_madd_epi16(top, ones))
}

#[target_feature(enable = "avx2")]
#[inline]
fn load(codes: &[u8; 64]) -> [__m256i; 2] {
    let (low, high) = (codes.as_ptr(), codes.as_ptr().wrapping_add(32));
    // SAFETY: the lower 32 bytes of 64.
    #[expect(unsafe_code, reason = "a load")]
    let low = unsafe { _mm256_loadu_si256(low.cast()) };
    // SAFETY: the upper 32.
    #[expect(unsafe_code, reason = "a load")]
    let high = unsafe { _mm256_loadu_si256(high.cast()) };
    [low, high]
}

#[target_feature(enable = "avx2")]
#[inline]
fn store(values: &[__m256i; 2], out: &mut [i32; LANES]) {
    for (value, out) in values.iter().zip(out.as_chunks_mut::<8>().0) {
        // SAFETY: 32 bytes are written to an array of 32.
        #[expect(unsafe_code, reason = "a store")]
        unsafe {
            _mm256_storeu_si256(out.as_mut_ptr().cast(), *value);
        }
    }
}
