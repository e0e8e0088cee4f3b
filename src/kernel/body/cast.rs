//! Elements from one float to another, half to even, with MLX's `astype` as the reference; and the
//! "plus one" of norms that are stored as w - 1, added in the dtype that they are stored in.
//!
//! A cast to the same float copies the bytes. A NaN that is narrowed becomes the one NaN of
//! [`crate::num`]; one that is widened keeps sign and payload and becomes quiet, but for bfloat16 to
//! f32, which is a shift.

use crate::{
    kernel::Cast,
    num::{bf16_to_f32, f16_to_f32},
    tensor::Float,
};

use super::{BLOCK, narrow, round_to, widen};

#[inline(always)]
pub(in crate::kernel) fn cast(job: &Cast, src: &[u8], out: &mut [u8]) {
    if job.from == job.to && !job.plus_one {
        out.copy_from_slice(src);
        return;
    }
    if job.to == Float::F32 && !job.plus_one {
        match job.from {
            Float::Bf16 => widen_to(src, out, bf16_to_f32),
            _ => widen_to(src, out, f16_to_f32),
        }
        return;
    }
    let mut values = [0f32; BLOCK];
    let outs = out.chunks_mut(BLOCK * job.to.size());
    for (block, out) in src.chunks(BLOCK * job.from.size()).zip(outs) {
        let values = &mut values[..block.len() / job.from.size()];
        widen(job.from, block, values);
        if job.plus_one {
            values.iter_mut().for_each(|x| *x = plus_one(*x));
            round_to(job.from, values);
        }
        narrow(job.to, values, out);
    }
}

#[inline(always)]
fn widen_to(src: &[u8], out: &mut [u8], value: impl Fn(u16) -> f32) {
    for (to, from) in out.as_chunks_mut::<4>().0.iter_mut().zip(src.as_chunks::<2>().0) {
        *to = value(u16::from_le_bytes(*from)).to_le_bytes();
    }
}

/// x + 1; a NaN keeps its bits and becomes quiet, whatever the machine's addition does.
#[inline(always)]
fn plus_one(x: f32) -> f32 {
    if x.is_nan() { f32::from_bits(x.to_bits() | 0x40_0000) } else { x + 1.0 }
}
