//! Packed rows into panels by AVX-512: sixteen dwords of sixteen rows are transposed in registers.
//!
//! Always: the bytes of `body::dot::tile`.

use std::{
    arch::x86_64::{
        __m512i, _mm512_and_si512, _mm512_loadu_si512, _mm512_maskz_loadu_epi32, _mm512_set1_epi8,
        _mm512_setzero_si512, _mm512_shuffle_i32x4, _mm512_srli_epi32, _mm512_storeu_si512, _mm512_unpackhi_epi32,
        _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
    },
    mem::MaybeUninit,
};

use super::map::{E2M1, SAME, SIGNED, mapped_512};
use crate::kernel::{Map, Tiling, body::dot::LANES};

/// Runs of 64 bytes of a row that are brought together, before the next row: rows at a distance of a power
/// of two push each other out of the first-level cache.
const NEAR: usize = 4;
/// The same, with a run of room: so many lines lie between two rows in the scratch, an odd number, so that the
/// scratch does not fall into the trap that it is there for.
const PITCH: usize = NEAR + 1;

/// `body::dot::tile`.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn tile(tiling: &Tiling, src: &[u8], out: &mut [[u8; 64]]) {
    match (tiling.planes, tiling.map) {
        (4, _) => planes::<4, 2, SAME>(tiling, src, out),
        (2, Map::E2m1) => planes::<2, 4, E2M1>(tiling, src, out),
        (2, _) => planes::<2, 4, SAME>(tiling, src, out),
        (_, Map::Signed) => planes::<1, 8, SIGNED>(tiling, src, out),
        _ => planes::<1, 8, SAME>(tiling, src, out),
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn planes<const PLANES: usize, const BITS: u32, const MAP: u8>(tiling: &Tiling, src: &[u8], out: &mut [[u8; 64]]) {
    let (blocks, tail) = out.as_chunks_mut::<PLANES>().0.as_chunks_mut::<LANES>();
    let (near, blocks) = blocks.as_chunks_mut::<NEAR>();
    let mut at = 0;
    for blocks in near {
        let mut bytes = [const { MaybeUninit::<[[u8; 64]; PITCH]>::uninit() }; LANES];
        for row in 0..LANES {
            bytes[row].write(if row < tiling.rows {
                let lines: &[[u8; 64]; NEAR] = &src[row * tiling.stride + at..].as_chunks().0.as_chunks().0[0];
                [lines[0], lines[1], lines[2], lines[3], lines[3]]
            } else {
                [[0; 64]; PITCH]
            });
        }
        // SAFETY: every row was written.
        #[expect(unsafe_code, reason = "zeros first would cost as much as the rest")]
        let bytes = bytes.each_ref().map(|row| unsafe { row.assume_init_ref() });
        for i in 0..NEAR {
            let mut rows = [_mm512_setzero_si512(); LANES];
            for row in 0..LANES {
                rows[row] = load(&bytes[row][i]);
            }
            let dwords = transposed(rows);
            for d in 0..LANES {
                split::<PLANES, BITS, MAP>(dwords[d], &mut blocks[i][d]);
            }
        }
        at += 64 * NEAR;
    }
    for block in blocks {
        let dwords = transposed(partial(tiling, src, at, LANES));
        for d in 0..LANES {
            split::<PLANES, BITS, MAP>(dwords[d], &mut block[d]);
        }
        at += 64;
    }
    if !tail.is_empty() {
        let dwords = transposed(partial(tiling, src, at, tail.len()));
        for d in 0..tail.len() {
            split::<PLANES, BITS, MAP>(dwords[d], &mut tail[d]);
        }
    }
}

/// The codes of a dword of each row, one a byte.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn split<const PLANES: usize, const BITS: u32, const MAP: u8>(dword: __m512i, out: &mut [[u8; 64]; PLANES]) {
    let low = _mm512_set1_epi8((u8::MAX >> (8 - BITS)) as i8);
    let mut rest = dword;
    for quad in out {
        let codes = if PLANES == 1 { rest } else { _mm512_and_si512(rest, low) };
        store(mapped_512::<MAP>(codes), quad);
        rest = _mm512_srli_epi32::<BITS>(rest);
    }
}

/// Up to sixteen dwords of each row, from a byte of it on, zeros in the place of the others.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline(never)]
fn partial(tiling: &Tiling, src: &[u8], at: usize, dwords: usize) -> [__m512i; LANES] {
    let mut rows = [_mm512_setzero_si512(); LANES];
    let mask = u16::MAX >> (LANES - dwords);
    for row in 0..tiling.rows {
        let bytes = &src[row * tiling.stride + at..][..4 * dwords];
        // SAFETY: the mask reads only the dwords of the slice.
        #[expect(unsafe_code, reason = "a load")]
        let loaded = unsafe { _mm512_maskz_loadu_epi32(mask, bytes.as_ptr().cast()) };
        rows[row] = loaded;
    }
    rows
}

#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn load(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: 64 bytes are read from an array of 64.
    #[expect(unsafe_code, reason = "a load")]
    unsafe {
        _mm512_loadu_si512(bytes.as_ptr().cast())
    }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn store(value: __m512i, out: &mut [u8; 64]) {
    // SAFETY: 64 bytes are written to an array of 64.
    #[expect(unsafe_code, reason = "a store")]
    unsafe {
        _mm512_storeu_si512(out.as_mut_ptr().cast(), value);
    }
}

/// Dword i of row r becomes dword r of vector i: in pairs, in fours, then by quarters of registers.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn transposed(rows: [__m512i; LANES]) -> [__m512i; LANES] {
    let mut fours = [_mm512_setzero_si512(); LANES];
    for i in (0..LANES).step_by(4) {
        let [a, b, c, d] = [rows[i], rows[i + 1], rows[i + 2], rows[i + 3]];
        let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
        let (ab_high, cd_high) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
        fours[i] = _mm512_unpacklo_epi64(ab, cd);
        fours[i + 1] = _mm512_unpackhi_epi64(ab, cd);
        fours[i + 2] = _mm512_unpacklo_epi64(ab_high, cd_high);
        fours[i + 3] = _mm512_unpackhi_epi64(ab_high, cd_high);
    }
    let mut out = [_mm512_setzero_si512(); LANES];
    for i in 0..4 {
        // Quarter q of `fours[4 r + i]` holds dword 4 q + i of the rows 4 r .. 4 r + 4.
        let [a, b, c, d] = [fours[i], fours[i + 4], fours[i + 8], fours[i + 12]];
        let (ab, cd) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0x88>(c, d));
        let (ab_odd, cd_odd) = (_mm512_shuffle_i32x4::<0xdd>(a, b), _mm512_shuffle_i32x4::<0xdd>(c, d));
        out[i] = _mm512_shuffle_i32x4::<0x88>(ab, cd);
        out[i + 8] = _mm512_shuffle_i32x4::<0xdd>(ab, cd);
        out[i + 4] = _mm512_shuffle_i32x4::<0x88>(ab_odd, cd_odd);
        out[i + 12] = _mm512_shuffle_i32x4::<0xdd>(ab_odd, cd_odd);
    }
    out
}
