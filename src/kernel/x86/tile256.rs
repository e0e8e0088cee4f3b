//! Packed rows into panels by AVX2: eight dwords of eight rows are transposed in registers.
//!
//! Always: the bytes of `body::dot::tile`.

use std::arch::x86_64::{
    __m256i, _mm256_and_si256, _mm256_castpd_si256, _mm256_castsi256_pd, _mm256_loadu_si256, _mm256_maskload_epi32,
    _mm256_permute2x128_si256, _mm256_set1_epi8, _mm256_setzero_si256, _mm256_srli_epi32, _mm256_storeu_si256,
    _mm256_unpackhi_epi32, _mm256_unpackhi_pd, _mm256_unpacklo_epi32, _mm256_unpacklo_pd,
};

use super::map::{E2M1, SAME, SIGNED, mapped_256};
use crate::kernel::{Map, Tiling};

/// Dwords of a register, and rows that are transposed together.
const EIGHT: usize = 8;

/// `body::dot::tile`.
#[target_feature(enable = "avx2")]
pub(super) fn tile(tiling: &Tiling, src: &[u8], out: &mut [[u8; 64]]) {
    match (tiling.planes, tiling.map) {
        (4, _) => planes::<4, SAME>(tiling, src, out),
        (2, Map::E2m1) => planes::<2, E2M1>(tiling, src, out),
        (2, _) => planes::<2, SAME>(tiling, src, out),
        (_, Map::Signed) => planes::<1, SIGNED>(tiling, src, out),
        _ => planes::<1, SAME>(tiling, src, out),
    }
}

#[target_feature(enable = "avx2")]
fn planes<const PLANES: usize, const MAP: u8>(tiling: &Tiling, src: &[u8], out: &mut [[u8; 64]]) {
    let quads = out.as_chunks_mut::<PLANES>().0;
    for (at, quads) in quads.chunks_mut(EIGHT).enumerate() {
        for half in 0..2 {
            let mut rows = [_mm256_setzero_si256(); EIGHT];
            let first = half * EIGHT;
            for r in first..tiling.rows.min(first + EIGHT) {
                rows[r - first] = load(&src[r * tiling.stride + at * 32..], quads.len());
            }
            for (dword, quads) in transposed(rows).into_iter().zip(&mut *quads) {
                split::<PLANES, MAP>(dword, half, quads);
            }
        }
    }
}

/// The codes of a dword of each of eight rows, one a byte, into a half of each quad.
#[target_feature(enable = "avx2")]
#[inline]
fn split<const PLANES: usize, const MAP: u8>(dword: __m256i, half: usize, out: &mut [[u8; 64]; PLANES]) {
    let low = _mm256_set1_epi8((u8::MAX >> (8 - 8 / PLANES)) as i8);
    let mut rest = dword;
    for quad in out {
        let codes = if PLANES == 1 { rest } else { _mm256_and_si256(rest, low) };
        store(mapped_256::<MAP>(codes), &mut quad.as_chunks_mut().0[half]);
        rest = match PLANES {
            4 => _mm256_srli_epi32::<2>(rest),
            _ => _mm256_srli_epi32::<4>(rest),
        };
    }
}

/// Dword i of row r becomes dword r of vector i: in pairs, in fours, then by halves of registers.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn transposed(rows: [__m256i; EIGHT]) -> [__m256i; EIGHT] {
    let mut fours = [_mm256_setzero_si256(); EIGHT];
    for i in [0, 4] {
        let [a, b, c, d] = [rows[i], rows[i + 1], rows[i + 2], rows[i + 3]];
        let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
        let (ab_high, cd_high) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
        [fours[i], fours[i + 1]] = quads(ab, cd);
        [fours[i + 2], fours[i + 3]] = quads(ab_high, cd_high);
    }
    let mut out = [_mm256_setzero_si256(); EIGHT];
    for i in 0..4 {
        out[i] = _mm256_permute2x128_si256::<0x20>(fours[i], fours[i + 4]);
        out[i + 4] = _mm256_permute2x128_si256::<0x31>(fours[i], fours[i + 4]);
    }
    out
}

/// The low quads of `a` and `b` side by side in each half, and the high ones.
#[target_feature(enable = "avx2")]
#[inline]
fn quads(a: __m256i, b: __m256i) -> [__m256i; 2] {
    let (a, b) = (_mm256_castsi256_pd(a), _mm256_castsi256_pd(b));
    [_mm256_castpd_si256(_mm256_unpacklo_pd(a, b)), _mm256_castpd_si256(_mm256_unpackhi_pd(a, b))]
}

/// Up to eight dwords, then zeros.
#[target_feature(enable = "avx2")]
#[inline]
fn load(src: &[u8], dwords: usize) -> __m256i {
    if dwords == EIGHT {
        let src: &[u8; 32] = &src.as_chunks().0[0];
        // SAFETY: 32 bytes are read from an array of 32.
        #[expect(unsafe_code, reason = "a load")]
        return unsafe { _mm256_loadu_si256(src.as_ptr().cast()) };
    }
    let src = &src[..4 * dwords];
    let mut mask = [0i32; EIGHT];
    mask[..dwords].fill(-1);
    // SAFETY: 32 bytes are read from an array of eight integers.
    #[expect(unsafe_code, reason = "a load")]
    let mask = unsafe { _mm256_loadu_si256(mask.as_ptr().cast()) };
    // SAFETY: the mask reads only the dwords of the slice.
    #[expect(unsafe_code, reason = "a load")]
    unsafe {
        _mm256_maskload_epi32(src.as_ptr().cast(), mask)
    }
}

#[target_feature(enable = "avx2")]
#[inline]
fn store(value: __m256i, out: &mut [u8; 32]) {
    // SAFETY: 32 bytes are written to an array of 32.
    #[expect(unsafe_code, reason = "a store")]
    unsafe {
        _mm256_storeu_si256(out.as_mut_ptr().cast(), value);
    }
}
