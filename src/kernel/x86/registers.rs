//! Loads and stores of whole registers, and of as much as a slice holds.
//!
//! Always: the length of what is read or written is in the type, or a mask made of it.

use std::arch::x86_64::{
    __m256, __m256i, __m512, __m512i, _mm256_loadu_si256, _mm256_storeu_ps, _mm256_storeu_si256, _mm512_loadu_si512,
    _mm512_mask_storeu_epi8, _mm512_storeu_ps, _mm512_storeu_si512,
};

#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn load_512(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: 64 bytes are read from an array of 64.
    #[expect(unsafe_code, reason = "a load")]
    unsafe {
        _mm512_loadu_si512(bytes.as_ptr().cast())
    }
}

#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn store_512(values: __m512i, out: &mut [u8; 64]) {
    // SAFETY: 64 bytes are written to an array of 64.
    #[expect(unsafe_code, reason = "a store")]
    unsafe {
        _mm512_storeu_si512(out.as_mut_ptr().cast(), values);
    }
}

/// The first bytes, as many as there is room for up to 64.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub(super) fn store_some_512(values: __m512i, out: &mut [u8]) {
    let mask = if out.is_empty() { 0 } else { u64::MAX >> (64 - out.len().min(64)) };
    // SAFETY: the mask writes only the bytes of the slice.
    #[expect(unsafe_code, reason = "a store")]
    unsafe {
        _mm512_mask_storeu_epi8(out.as_mut_ptr().cast(), mask, values);
    }
}

#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn store_values_512(values: __m512, out: &mut [f32; 16]) {
    // SAFETY: sixteen floats are written to an array of sixteen.
    #[expect(unsafe_code, reason = "a store")]
    unsafe {
        _mm512_storeu_ps(out.as_mut_ptr(), values);
    }
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn load_256(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: 32 bytes are read from an array of 32.
    #[expect(unsafe_code, reason = "a load")]
    unsafe {
        _mm256_loadu_si256(bytes.as_ptr().cast())
    }
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn store_256(values: __m256i, out: &mut [u8; 32]) {
    // SAFETY: 32 bytes are written to an array of 32.
    #[expect(unsafe_code, reason = "a store")]
    unsafe {
        _mm256_storeu_si256(out.as_mut_ptr().cast(), values);
    }
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn store_values_256(values: __m256, out: &mut [f32; 8]) {
    // SAFETY: eight floats are written to an array of eight.
    #[expect(unsafe_code, reason = "a store")]
    unsafe {
        _mm256_storeu_ps(out.as_mut_ptr(), values);
    }
}
