//! Codes of 2 to 8 bits, one a byte, into the little-endian bit stream of the packed formats:
//! element i takes the bits `[i * bits, (i + 1) * bits)`. Eight codes fill whole bytes at any width.
//!
//! Knows no group. Runs are multiples of eight codes.

/// Byte lanes that are even: the ones that keep their place in the first merge.
const EVEN_BYTES: u64 = 0x00ff_00ff_00ff_00ff;
const EVEN_PAIRS: u64 = 0x0000_ffff_0000_ffff;
const EVEN_QUADS: u64 = 0x0000_0000_ffff_ffff;

/// Packs codes below `2^bits`. Widths other than 2 to 7 are bytes as they are.
#[inline(always)]
pub(in crate::kernel) fn pack(bits: u32, codes: &[u8], out: &mut [u8]) {
    match bits {
        2 => pack_narrow::<2>(codes, out),
        3 => pack_narrow::<3>(codes, out),
        4 => pack_narrow::<4>(codes, out),
        5 => pack_narrow::<5>(codes, out),
        6 => pack_narrow::<6>(codes, out),
        7 => pack_narrow::<7>(codes, out),
        _ => out.copy_from_slice(codes),
    }
}

#[inline(always)]
fn pack_narrow<const BITS: usize>(codes: &[u8], out: &mut [u8]) {
    let words = out.as_chunks_mut::<BITS>().0;
    for (word, eight) in words.iter_mut().zip(codes.as_chunks::<8>().0) {
        *word = first(merge::<BITS>(u64::from_le_bytes(*eight)).to_le_bytes());
    }
}

/// The first bytes of eight. A loop, because the slice copy of the standard library is a call where
/// the build does not inline across crates, once for eight codes.
#[inline(always)]
fn first<const N: usize>(bytes: [u8; 8]) -> [u8; N] {
    let mut out = [0; N];
    for (to, from) in out.iter_mut().zip(bytes) {
        *to = from;
    }
    out
}

/// Eight byte lanes closed up to `8 * BITS` adjoining bits: neighbours in pairs, pairs, halves.
#[inline(always)]
fn merge<const BITS: usize>(x: u64) -> u64 {
    let x = (x & EVEN_BYTES) | ((x & !EVEN_BYTES) >> (8 - BITS));
    let x = (x & EVEN_PAIRS) | ((x & !EVEN_PAIRS) >> (16 - 2 * BITS));
    (x & EVEN_QUADS) | ((x & !EVEN_QUADS) >> (32 - 4 * BITS))
}

/// The reverse of [`pack`].
#[inline(always)]
pub(in crate::kernel) fn unpack(bits: u32, packed: &[u8], codes: &mut [u8]) {
    match bits {
        2 => unpack_narrow::<2>(packed, codes),
        3 => unpack_narrow::<3>(packed, codes),
        4 => unpack_narrow::<4>(packed, codes),
        5 => unpack_narrow::<5>(packed, codes),
        6 => unpack_narrow::<6>(packed, codes),
        7 => unpack_narrow::<7>(packed, codes),
        _ => codes.copy_from_slice(packed),
    }
}

#[inline(always)]
fn unpack_narrow<const BITS: usize>(packed: &[u8], codes: &mut [u8]) {
    let words = packed.as_chunks::<BITS>().0;
    for (eight, word) in codes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
        let mut bytes = [0; 8];
        for (to, from) in bytes.iter_mut().zip(word) {
            *to = *from;
        }
        *eight = spread::<BITS>(u64::from_le_bytes(bytes)).to_le_bytes();
    }
}

/// The reverse of [`merge`].
#[inline(always)]
fn spread<const BITS: usize>(x: u64) -> u64 {
    let low = |bits: usize| (1u64 << bits) - 1;
    let x = (x & low(4 * BITS)) | ((x & !low(4 * BITS)) << (32 - 4 * BITS));
    let pairs = low(2 * BITS) * 0x1_0000_0001;
    let x = (x & pairs) | ((x & !pairs) << (16 - 2 * BITS));
    let bytes = low(BITS) * 0x0001_0001_0001_0001;
    (x & bytes) | ((x & !bytes) << (8 - BITS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_is_the_defined_one_and_comes_back() {
        for bits in [2u32, 3, 4, 5, 6, 7, 8] {
            let codes: Vec<u8> = (0..64u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8 & low(bits)).collect();
            let mut packed = vec![0; 8 * bits as usize];
            pack(bits, &codes, &mut packed);
            for (i, &code) in codes.iter().enumerate() {
                for b in 0..bits as usize {
                    let at = i * bits as usize + b;
                    assert_eq!(packed[at / 8] >> (at % 8) & 1, code >> b & 1, "bits {bits} code {i}");
                }
            }
            let mut back = vec![0; 64];
            unpack(bits, &packed, &mut back);
            assert_eq!(back, codes, "bits {bits}");
        }
    }

    fn low(bits: u32) -> u8 {
        u8::MAX >> (8 - bits)
    }
}
