//! Scales and biases of sixteen rows to f32, a register at a time.
//!
//! Always: the bits of `body::dot::parameters`. The compiler makes byte shuffles of that body.

use std::arch::x86_64::{
    __m512, __m512i, _mm512_and_si512, _mm512_castps_si512, _mm512_castsi512_ps, _mm512_cmpeq_epi32_mask,
    _mm512_cvtepi32_epi16, _mm512_cvtepi32_ps, _mm512_cvtph_ps, _mm512_loadu_si512, _mm512_mask_mov_epi32,
    _mm512_maskz_loadu_epi8, _mm512_mul_ps, _mm512_or_si512, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_si512,
    _mm512_slli_epi32, _mm512_srli_epi32, _mm512_storeu_ps, _mm512_sub_epi32,
};

use super::tile::transposed;
use crate::{
    kernel::{Stored, body::dot::LANES},
    tensor::Float,
};

/// `body::dot::parameters`.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn parameters(stored: Stored, src: &[u8], out: &mut [[u8; 64]]) {
    let stride = out.len() * stored.size();
    for (at, out) in (0..stride).step_by(64).zip(out.chunks_mut(64 / stored.size())) {
        let dwords = dwords(src, stride, at);
        match stored {
            Stored::Float(Float::F32) => {
                for (dword, out) in dwords.into_iter().zip(out) {
                    store(_mm512_castsi512_ps(dword), out);
                }
            }
            Stored::Float(Float::Bf16) => {
                for (dword, out) in dwords.into_iter().zip(out.chunks_mut(2)) {
                    store(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(dword)), &mut out[0]);
                    if let Some(out) = out.get_mut(1) {
                        let high = _mm512_and_si512(dword, _mm512_set1_epi32(0xffff_0000_u32.cast_signed()));
                        store(_mm512_castsi512_ps(high), out);
                    }
                }
            }
            Stored::Float(Float::F16) => {
                for (mut rest, out) in dwords.into_iter().zip(out.chunks_mut(2)) {
                    for out in out {
                        store(_mm512_cvtph_ps(_mm512_cvtepi32_epi16(rest)), out);
                        rest = _mm512_srli_epi32::<16>(rest);
                    }
                }
            }
            Stored::E8m0 => {
                for (mut rest, out) in dwords.into_iter().zip(out.chunks_mut(4)) {
                    for out in out {
                        store(_mm512_mul_ps(e8m0(rest), _mm512_set1_ps(0.5)), out);
                        rest = _mm512_srli_epi32::<8>(rest);
                    }
                }
            }
            Stored::E4m3 => {
                for (mut rest, out) in dwords.into_iter().zip(out.chunks_mut(4)) {
                    for out in out {
                        store(_mm512_mul_ps(e4m3(rest), _mm512_set1_ps(0.5)), out);
                        rest = _mm512_srli_epi32::<8>(rest);
                    }
                }
            }
        }
    }
}

/// `body::dot::zero_points`.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn zero_points(bits: u32, src: &[u8], scales: &[[u8; 64]], out: &mut [[u8; 64]]) {
    match bits {
        2 => zeros::<2, 16>(src, scales, out),
        4 => zeros::<4, 8>(src, scales, out),
        _ => zeros::<8, 4>(src, scales, out),
    }
}

/// `N` zero points in a dword.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn zeros<const BITS: u32, const N: usize>(src: &[u8], scales: &[[u8; 64]], out: &mut [[u8; 64]]) {
    let low = _mm512_set1_epi32((1 << BITS) - 1);
    let stride = (out.len() * BITS as usize).div_ceil(8);
    let blocks = scales.chunks(LANES * N).zip(out.chunks_mut(LANES * N));
    for (at, (scales, out)) in (0..stride).step_by(64).zip(blocks) {
        for ((mut rest, scales), out) in
            dwords(src, stride, at).into_iter().zip(scales.chunks(N)).zip(out.chunks_mut(N))
        {
            for (scale, out) in scales.iter().zip(out) {
                let negative = _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_and_si512(rest, low));
                store(_mm512_mul_ps(_mm512_cvtepi32_ps(negative), _mm512_castsi512_ps(load(scale))), out);
                rest = _mm512_srli_epi32::<BITS>(rest);
            }
        }
    }
}

/// Up to 64 bytes of each row, from a byte of it on: dword i of every row in vector i.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn dwords(src: &[u8], stride: usize, at: usize) -> [__m512i; LANES] {
    let mut rows = [_mm512_setzero_si512(); LANES];
    for (src, row) in src.chunks_exact(stride).zip(&mut rows) {
        let bytes = &src[at..];
        *row = if let Some(line) = bytes.first_chunk() { load(line) } else { load_some(bytes) };
    }
    transposed(rows)
}

/// The values of the low bytes: `num::fp8::e8m0_to_f32`.
#[target_feature(enable = "avx512f")]
#[inline]
fn e8m0(dwords: __m512i) -> __m512 {
    let bytes = _mm512_and_si512(dwords, _mm512_set1_epi32(0xff));
    let least = _mm512_cmpeq_epi32_mask(bytes, _mm512_setzero_si512());
    _mm512_castsi512_ps(_mm512_mask_mov_epi32(_mm512_slli_epi32::<23>(bytes), least, _mm512_set1_epi32(1 << 22)))
}

/// The values of the low bytes: `num::fp8::e4m3_to_f32`.
#[target_feature(enable = "avx512f")]
#[inline]
fn e4m3(dwords: __m512i) -> __m512 {
    let magnitudes = _mm512_and_si512(dwords, _mm512_set1_epi32(0x7f));
    let sign = _mm512_slli_epi32::<24>(_mm512_and_si512(dwords, _mm512_set1_epi32(0x80)));
    // Exponents of eight bits have a bias larger by 120.
    let rebias = _mm512_castsi512_ps(_mm512_set1_epi32((120 + 127) << 23));
    let values = _mm512_mul_ps(_mm512_castsi512_ps(_mm512_slli_epi32::<20>(magnitudes)), rebias);
    let nan = _mm512_cmpeq_epi32_mask(magnitudes, _mm512_set1_epi32(0x7f));
    let values = _mm512_mask_mov_epi32(_mm512_castps_si512(values), nan, _mm512_set1_epi32(0x7fc0_0000));
    _mm512_castsi512_ps(_mm512_or_si512(values, sign))
}

#[target_feature(enable = "avx512f")]
#[inline]
fn load(src: &[u8; 64]) -> __m512i {
    // SAFETY: 64 bytes are read from an array of 64.
    #[expect(unsafe_code, reason = "a load")]
    unsafe {
        _mm512_loadu_si512(src.as_ptr().cast())
    }
}

/// Fewer bytes, then zeros.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn load_some(src: &[u8]) -> __m512i {
    let mask = u64::MAX >> (64 - src.len());
    // SAFETY: the mask reads only the bytes of the slice.
    #[expect(unsafe_code, reason = "a load")]
    unsafe {
        _mm512_maskz_loadu_epi8(mask, src.as_ptr().cast())
    }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn store(values: __m512, out: &mut [u8; 64]) {
    // SAFETY: 64 bytes are written to an array of 64.
    #[expect(unsafe_code, reason = "a store")]
    unsafe {
        _mm512_storeu_ps(out.as_mut_ptr().cast(), values);
    }
}
