//! Codes by vectors: affine ones, sixteen groups at a time, each of whole registers; and small floats ([`micro`]).
//!
//! Always: the bytes of `body::affine::quantize`. The two bytes of an element are enough to find extremes;
//! scales and biases are the body's own, for sixteen groups together; codes come from fixed-point sums
//! (`body::fixed`), and from divisions where these are not sure.

pub(super) mod avx2;
pub(super) mod avx512;
pub(super) mod micro;

/// The upper halves of dwords.
const UPPER: i32 = 0xffff_0000u32.cast_signed();

/// Calls the instance for a job's bits and the lines of a group.
macro_rules! by_shape {
    (($instance:ident $(, $half:literal)?), ($job:expr, $src:expr, $out:expr, $body:expr)) => {
        match ($job.bits, $job.group) {
            (2, 32) => $instance::<2, 1 $(, $half)?>($job, $src, $out, $body),
            (2, 64) => $instance::<2, 2 $(, $half)?>($job, $src, $out, $body),
            (2, _) => $instance::<2, 4 $(, $half)?>($job, $src, $out, $body),
            (3, 32) => $instance::<3, 1 $(, $half)?>($job, $src, $out, $body),
            (3, 64) => $instance::<3, 2 $(, $half)?>($job, $src, $out, $body),
            (3, _) => $instance::<3, 4 $(, $half)?>($job, $src, $out, $body),
            (4, 32) => $instance::<4, 1 $(, $half)?>($job, $src, $out, $body),
            (4, 64) => $instance::<4, 2 $(, $half)?>($job, $src, $out, $body),
            (4, _) => $instance::<4, 4 $(, $half)?>($job, $src, $out, $body),
            (5, 32) => $instance::<5, 1 $(, $half)?>($job, $src, $out, $body),
            (5, 64) => $instance::<5, 2 $(, $half)?>($job, $src, $out, $body),
            (5, _) => $instance::<5, 4 $(, $half)?>($job, $src, $out, $body),
            (6, 32) => $instance::<6, 1 $(, $half)?>($job, $src, $out, $body),
            (6, 64) => $instance::<6, 2 $(, $half)?>($job, $src, $out, $body),
            (6, _) => $instance::<6, 4 $(, $half)?>($job, $src, $out, $body),
            (_, 32) => $instance::<8, 1 $(, $half)?>($job, $src, $out, $body),
            (_, 64) => $instance::<8, 2 $(, $half)?>($job, $src, $out, $body),
            _ => $instance::<8, 4 $(, $half)?>($job, $src, $out, $body),
        }
    };
}
use by_shape;

/// The first `bits` bytes of each eight, moved together in each sixteen.
const fn bytes_of_quarters(bits: u32) -> [u8; 64] {
    let mut places = [0; 64];
    let mut i = 0;
    while i < 64 {
        let at = i % 16;
        places[i as usize] = if at < bits { at } else { 8 + at % bits }.to_le_bytes()[0];
        i += 1;
    }
    places
}
