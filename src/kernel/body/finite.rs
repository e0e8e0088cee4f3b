//! How many elements are NaN or infinite: those whose exponent bits are all ones.

use crate::tensor::Float;

#[inline(always)]
pub(in crate::kernel) fn not_finite(float: Float, src: &[u8]) -> usize {
    match float {
        Float::Bf16 => halves(src, 0x7F80),
        Float::F16 => halves(src, 0x7C00),
        Float::F32 => {
            let odd = |b: &[u8; 4]| u32::from(u32::from_le_bytes(*b) & 0x7F80_0000 == 0x7F80_0000);
            src.chunks(4 * LANES).map(|run| run.as_chunks().0.iter().map(odd).sum::<u32>() as usize).sum()
        }
    }
}

/// Elements that are counted in 16 bits at a time, which cannot overflow.
const LANES: usize = 1 << 14;

#[inline(always)]
fn halves(src: &[u8], exponent: u16) -> usize {
    let odd = |b: &[u8; 2]| u16::from(u16::from_le_bytes(*b) & exponent == exponent);
    src.chunks(2 * LANES).map(|run| run.as_chunks().0.iter().map(odd).sum::<u16>() as usize).sum()
}
