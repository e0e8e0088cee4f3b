//! Codes of 2, 4 and 8 bits in bytes, the first one lowest: 1, 2, 3, 4 in 4 bits are 0x21, 0x43.

/// Packs codes; bits of a last byte that no code fills are zero. Bits of a code above its width are
/// cut off.
///
/// ```
/// let mut bytes = [0; 2];
/// quantfs::num::codes::pack(4, &[1, 2, 3, 4], &mut bytes);
/// assert_eq!(bytes, [0x21, 0x43]);
/// ```
///
/// # Panics
/// If `bits` is not 2, 4 or 8, or `out` has another length than the codes take.
pub fn pack(bits: u32, codes: &[u8], out: &mut [u8]) {
    let per = per_byte(bits);
    assert_eq!(out.len(), codes.len().div_ceil(per), "bytes of {} codes of {bits} bits", codes.len());
    let mask = u8::MAX >> (8 - bits);
    for (byte, codes) in out.iter_mut().zip(codes.chunks(per)) {
        *byte = (0u32..).zip(codes).fold(0, |byte, (i, code)| byte | (code & mask) << (i * bits));
    }
}

/// The first `out.len()` codes.
///
/// # Panics
/// If `bits` is not 2, 4 or 8, or there are fewer.
pub fn unpack(bits: u32, packed: &[u8], out: &mut [u8]) {
    let per = per_byte(bits);
    assert!(out.len() <= packed.len() * per, "{} codes of {bits} bits in {} bytes", out.len(), packed.len());
    let mask = u8::MAX >> (8 - bits);
    for (codes, byte) in out.chunks_mut(per).zip(packed) {
        (0u32..).zip(codes).for_each(|(i, code)| *code = byte >> (i * bits) & mask);
    }
}

/// Codes of a byte.
fn per_byte(bits: u32) -> usize {
    assert!(matches!(bits, 2 | 4 | 8), "codes of {bits} bits are not packed in bytes");
    8 / bits as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_code_is_lowest() {
        let mut bytes = [0; 2];
        pack(4, &[1, 2, 3, 4], &mut bytes);
        assert_eq!(bytes, [0x21, 0x43]);
        pack(2, &[1, 2, 3, 0, 3], &mut bytes);
        assert_eq!(bytes, [0b0011_1001, 3]);
    }

    #[test]
    fn codes_come_back() {
        for bits in [2, 4, 8] {
            for count in 0..20u8 {
                let codes: Vec<u8> = (0..count).map(|i| i.wrapping_mul(37) & (u8::MAX >> (8 - bits))).collect();
                let mut packed = vec![0xff; codes.len().div_ceil(8 / bits as usize)];
                pack(bits, &codes, &mut packed);
                let mut back = vec![0xff; codes.len()];
                unpack(bits, &packed, &mut back);
                assert_eq!(back, codes, "{bits} bits");
            }
        }
    }
}
