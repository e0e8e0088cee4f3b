//! Codes of 3, 5 and 6 bits, which cross bytes, one a byte.
//!
//! Always: the bytes of `body::pack::unpack`. Eight codes of `BITS` bits fill `BITS` bytes.

use std::arch::x86_64::{
    __m256i, _mm256_and_si256, _mm256_packus_epi16, _mm256_packus_epi32, _mm256_permutevar8x32_epi32,
    _mm256_set1_epi32, _mm256_set1_epi64x, _mm256_setr_epi32, _mm256_shuffle_epi8, _mm256_srlv_epi32, _mm512_add_epi8,
    _mm512_and_si512, _mm512_multishift_epi64_epi8, _mm512_permutexvar_epi8, _mm512_set1_epi8,
};

use super::{
    ask_for,
    registers::{load_256, load_512, store_256, store_512},
};
use crate::kernel::{Ahead, body::pack};

/// `body::pack::unpack`, 64 codes at a time. What lies `distance` bytes further is asked for.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
pub(super) fn spread_512(bits: u32, src: &[u8], distance: usize, out: &mut [u8]) {
    match bits {
        3 => sixty_fours::<3>(src, distance, out),
        5 => sixty_fours::<5>(src, distance, out),
        6 => sixty_fours::<6>(src, distance, out),
        _ => pack::unpack(bits, src, out),
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn sixty_fours<const BITS: u8>(src: &[u8], distance: usize, out: &mut [u8]) {
    // Eight bytes for each eight codes, from their first on; of these, eight bits from each code on.
    let places = load_512(&const { places_512::<BITS>() });
    let shifts = load_512(&const { shifts_512::<BITS>() });
    let low = _mm512_set1_epi8((1 << BITS) - 1);
    let step = 8 * usize::from(BITS);
    // Whole registers are read: the last ones end with the source, and their codes begin further on.
    let whole = if src.len() < 64 { 0 } else { (src.len() / step).min(out.len() / 64) };
    let (first, last) = out.split_at_mut(64 * whole);
    for (i, out) in first.as_chunks_mut().0.iter_mut().enumerate() {
        let at = (i * step).min(src.len() - 64);
        let bytes = &src[at..].as_chunks().0[0];
        ask_for(Ahead { like: &bytes[..1], distance });
        #[expect(clippy::cast_possible_truncation, reason = "less than 64")]
        let further = _mm512_set1_epi8((i * step - at) as i8);
        let places = _mm512_add_epi8(places, further);
        let codes = _mm512_multishift_epi64_epi8(shifts, _mm512_permutexvar_epi8(places, load_512(bytes)));
        store_512(_mm512_and_si512(codes, low), out);
    }
    pack::unpack(BITS.into(), &src[step * whole..], last);
}

/// `body::pack::unpack`, 32 codes at a time.
#[target_feature(enable = "avx2")]
pub(super) fn spread_256(bits: u32, src: &[u8], distance: usize, out: &mut [u8]) {
    match bits {
        3 => thirty_twos::<3>(src, distance, out),
        5 => thirty_twos::<5>(src, distance, out),
        6 => thirty_twos::<6>(src, distance, out),
        _ => pack::unpack(bits, src, out),
    }
}

#[target_feature(enable = "avx2")]
fn thirty_twos<const BITS: u8>(src: &[u8], distance: usize, out: &mut [u8]) {
    let step = usize::from(BITS);
    // Eight bytes are read for eight codes: the last ones are not there for the last codes.
    let whole = (src.len().saturating_sub(8 - step) / (4 * step)).min(out.len() / 32);
    let (first, last) = out.split_at_mut(32 * whole);
    for (i, out) in first.as_chunks_mut().0.iter_mut().enumerate() {
        let src = &src[i * 4 * step..][..3 * step + 8];
        ask_for(Ahead { like: src, distance });
        let mut four = [[0; 8]; 4];
        for (k, eight) in four.iter_mut().enumerate() {
            eight.copy_from_slice(&src[k * step..][..8]);
        }
        let [a, b, c, d] = four;
        let (ab, cd) = (
            _mm256_packus_epi32(eight::<BITS>(a), eight::<BITS>(b)),
            _mm256_packus_epi32(eight::<BITS>(c), eight::<BITS>(d)),
        );
        // Packing goes by halves of registers.
        let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        store_256(_mm256_permutevar8x32_epi32(_mm256_packus_epi16(ab, cd), order), out);
    }
    pack::unpack(BITS.into(), &src[4 * step * whole..], last);
}

/// Eight codes, a dword each.
#[target_feature(enable = "avx2")]
#[inline]
fn eight<const BITS: u8>(bytes: [u8; 8]) -> __m256i {
    let places = load_256(&const { places_256::<BITS>() });
    let shifts = load_256(&const { shifts_256::<BITS>() });
    let dwords = _mm256_shuffle_epi8(_mm256_set1_epi64x(i64::from_le_bytes(bytes)), places);
    _mm256_and_si256(_mm256_srlv_epi32(dwords, shifts), _mm256_set1_epi32((1 << BITS) - 1))
}

/// Byte j of the eight from the first of each eight codes on.
const fn places_512<const BITS: u8>() -> [u8; 64] {
    let mut places = [0; 64];
    let mut i = 0;
    while i < 64 {
        places[i as usize] = i / 8 * BITS + i % 8;
        i += 1;
    }
    places
}

/// The first bit of each code in its eight bytes.
const fn shifts_512<const BITS: u8>() -> [u8; 64] {
    let mut shifts = [0; 64];
    let mut i = 0;
    while i < 64 {
        shifts[i as usize] = i % 8 * BITS;
        i += 1;
    }
    shifts
}

/// The four bytes from the first of each code on.
const fn places_256<const BITS: u8>() -> [u8; 32] {
    let mut places = [0; 32];
    let mut i = 0;
    while i < 32 {
        places[i as usize] = i / 4 * BITS / 8 + i % 4;
        i += 1;
    }
    places
}

/// The first bit of each code in its bytes.
const fn shifts_256<const BITS: u8>() -> [u8; 32] {
    let mut shifts = [0; 32];
    let mut i = 0;
    while i < 8 {
        shifts[4 * i as usize] = i * BITS % 8;
        i += 1;
    }
    shifts
}
