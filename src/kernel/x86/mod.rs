//! The tables of x86-64: the bodies compiled for more than the baseline.
//!
//! Always: a table is handed out only after its features were detected on the running machine. That
//! is what makes the calls in it sound.

mod avx2;
mod avx512;

use super::Kernels;

/// Stamps the bodies as functions with target features, and the table of them.
macro_rules! instances {
    ($isa:expr, $features:literal) => {
        use crate::{
            kernel::{Affine, Cast, Kernels, Micro, body},
            tensor::Float,
        };

        #[target_feature(enable = $features)]
        fn quantize_affine(job: &Affine, src: &[u8], codes: &mut [u8], scales: &mut [u8], biases: &mut [u8]) {
            body::affine::quantize(job, src, codes, scales, biases);
        }

        #[target_feature(enable = $features)]
        fn dequantize_affine(job: &Affine, codes: &[u8], scales: &[u8], biases: &[u8], out: &mut [f32]) {
            body::affine::dequantize(job, codes, scales, biases, out);
        }

        #[target_feature(enable = $features)]
        fn quantize_micro(job: &Micro, src: &[u8], codes: &mut [u8], scales: &mut [u8]) {
            body::microscaling::quantize(job, src, codes, scales);
        }

        #[target_feature(enable = $features)]
        fn dequantize_micro(job: &Micro, codes: &[u8], scales: &[u8], out: &mut [f32]) {
            body::microscaling::dequantize(job, codes, scales, out);
        }

        #[target_feature(enable = $features)]
        fn cast(job: &Cast, src: &[u8], out: &mut [u8]) {
            body::cast::cast(job, src, out);
        }

        #[target_feature(enable = $features)]
        fn not_finite(float: Float, src: &[u8]) -> usize {
            body::finite::not_finite(float, src)
        }

        /// Private to `x86`, which hands it out where the features were detected.
        #[expect(unsafe_code, reason = "calls from undetected to detected code")]
        pub(super) static KERNELS: Kernels = Kernels {
            isa: $isa,
            quantize_affine: |job, src, codes, scales, biases| {
                // SAFETY: the table is reached only through `x86::available`, which detected the features.
                unsafe { quantize_affine(job, src, codes, scales, biases) }
            },
            dequantize_affine: |job, codes, scales, biases, out| {
                // SAFETY: as above.
                unsafe { dequantize_affine(job, codes, scales, biases, out) }
            },
            quantize_micro: |job, src, codes, scales| {
                // SAFETY: as above.
                unsafe { quantize_micro(job, src, codes, scales) }
            },
            dequantize_micro: |job, codes, scales, out| {
                // SAFETY: as above.
                unsafe { dequantize_micro(job, codes, scales, out) }
            },
            cast: |job, src, out| {
                // SAFETY: as above.
                unsafe { cast(job, src, out) }
            },
            not_finite: |float, src| {
                // SAFETY: as above.
                unsafe { not_finite(float, src) }
            },
        };
    };
}
use instances;

/// The tables that the running machine has the features for, the best last.
pub(super) fn available() -> Vec<&'static Kernels> {
    let mut tables = vec![];
    if is_x86_feature_detected!("avx2") {
        tables.push(&avx2::KERNELS);
    }
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    if avx512 {
        tables.push(&avx512::KERNELS);
    }
    tables
}
