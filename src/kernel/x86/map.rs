//! What panels and rows hold for codes, a register at a time.
//!
//! Always: the bytes that `body::dot` has for the same [`Map`].

use std::arch::x86_64::{
    __m128i, __m256i, __m512i, _mm_loadu_si128, _mm256_broadcastsi128_si256, _mm256_set1_epi8, _mm256_shuffle_epi8,
    _mm256_xor_si256, _mm512_broadcast_i32x4, _mm512_set1_epi8, _mm512_shuffle_epi8, _mm512_xor_si512,
};

use crate::kernel::{Map, body::dot};

/// The maps, which constant parameters cannot be themselves.
pub(super) const SAME: u8 = Map::Same as u8;
pub(super) const E2M1: u8 = Map::E2m1 as u8;
pub(super) const SIGNED: u8 = Map::Signed as u8;

/// How many times `times` sums of four products of each plane may be added in pairs before they leave 16
/// bits: an input's codes go to 127, and what stands for a code has a largest value.
pub(super) const fn narrow(planes: usize, map: u8, times: usize) -> u32 {
    let largest = if map == E2M1 { 24 } else { (1 << (8 / planes)) - 1 };
    let sum = 4 * planes * times * 127 * largest;
    if 2 * sum < 1 << 15 {
        2
    } else if sum < 1 << 15 {
        1
    } else {
        0
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub(super) fn mapped_512<const MAP: u8>(codes: __m512i) -> __m512i {
    match MAP {
        E2M1 => _mm512_shuffle_epi8(_mm512_broadcast_i32x4(e2m1_values()), codes),
        SIGNED => _mm512_xor_si512(codes, _mm512_set1_epi8(i8::MIN)),
        _ => codes,
    }
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn mapped_256<const MAP: u8>(codes: __m256i) -> __m256i {
    match MAP {
        E2M1 => _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(e2m1_values()), codes),
        SIGNED => _mm256_xor_si256(codes, _mm256_set1_epi8(i8::MIN)),
        _ => codes,
    }
}

#[inline]
fn e2m1_values() -> __m128i {
    // SAFETY: sixteen bytes are read from an array of sixteen, by an instruction that every x86-64 has.
    #[expect(unsafe_code, reason = "a load")]
    unsafe {
        _mm_loadu_si128(dot::E2M1.as_ptr().cast())
    }
}
