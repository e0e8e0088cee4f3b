//! The tables of x86-64: the bodies compiled for more than the baseline.
//!
//! Always: a table is handed out only after its features were detected on the running machine. That
//! is what makes the calls in it sound.

mod avx2;
mod avx512;
mod encode;
mod maddubs;
mod map;
mod registers;
mod rows;
mod rows256;
mod sixteen;
mod spread;
mod tile;
mod tile256;
mod vnni;

use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};

use super::{Ahead, Kernels};

/// Stamps the bodies as functions with target features, and the table of them.
macro_rules! instances {
    ($isa:expr, $features:literal, $sixteen:ident, $rows:literal x $inputs:literal) => {
        use crate::{
            kernel::{
                Affine, Blocks, Cast, Choice, Columns, Dense, Inputs, Kernels, Micro, Panel, Product, Rows, Scaled,
                Stored, Tiling, body,
            },
            num::book::Book,
            tensor::Float,
        };

        #[target_feature(enable = $features)]
        fn quantize_affine(job: &Affine, src: &[u8], codes: &mut [u8], scales: &mut [u8], biases: &mut [u8]) {
            body::affine::quantize(job, src, codes, scales, biases);
        }

        #[target_feature(enable = $features)]
        fn choose_affine(job: &Affine, choice: &Choice<'_>, src: &[u8], out: [&mut [u8]; 3]) {
            body::affine::choose($sixteen::new(), job, choice, src, out);
        }

        #[target_feature(enable = $features)]
        fn choose_columns(job: &Columns, choice: &Choice<'_>, src: &[u8], out: [&mut [u8]; 3]) {
            body::columns::choose($sixteen::new(), job, choice, src, out);
        }

        #[target_feature(enable = $features)]
        fn choose_blocks(
            job: (&Blocks, Float),
            choice: &Choice<'_>,
            row: &[f32],
            codes: &mut [u8],
            found: (&mut [f32], &mut [u8]),
        ) {
            body::blocks::choose($sixteen::new(), job, choice, row, codes, found);
        }

        #[target_feature(enable = $features)]
        fn choose_scaled(job: &Scaled, choice: &Choice<'_>, src: &[u8], out: [&mut [u8]; 3]) {
            body::scaled::choose($sixteen::new(), job, choice, src, out);
        }

        #[target_feature(enable = $features)]
        fn dequantize_affine(job: &Affine, codes: &[u8], scales: &[u8], biases: &[u8], out: &mut [f32]) {
            body::affine::dequantize($sixteen::new(), job, codes, scales, biases, out);
        }

        #[target_feature(enable = $features)]
        fn quantize_micro(job: &Micro, src: &[u8], codes: &mut [u8], scales: &mut [u8]) {
            body::microscaling::quantize(job, src, codes, scales);
        }

        #[target_feature(enable = $features)]
        fn dequantize_micro(job: &Micro, codes: &[u8], scales: &[u8], out: &mut [f32]) {
            body::microscaling::dequantize($sixteen::new(), job, codes, scales, out);
        }

        #[target_feature(enable = $features)]
        fn largest(values: &[f32]) -> f32 {
            body::blocks::largest(values)
        }

        #[target_feature(enable = $features)]
        fn quantize_symmetric(given: Option<f32>, values: &[f32], codes: &mut [u8]) -> f32 {
            body::blocks::symmetric(given, values, codes)
        }

        #[target_feature(enable = $features)]
        fn quantize_blocks(job: &Blocks, row: &[f32], codes: &mut [u8], scales: &mut [f32], zeros: &mut [u8]) {
            body::blocks::quantize(job, row, codes, scales, zeros);
        }

        #[target_feature(enable = $features)]
        fn quantize_by_book(float: Float, book: &Book, src: &[u8], codes: &mut [u8], absmax: &mut [f32]) {
            body::book::quantize(float, book, src, codes, absmax);
        }

        #[target_feature(enable = $features)]
        fn block_maxima(float: Float, src: &[u8], absmax: &mut [f32]) {
            body::book::maxima(float, src, absmax);
        }

        #[target_feature(enable = $features)]
        fn quantize_vectorwise(float: Float, row: &[u8], codes: &mut [u8]) -> f32 {
            body::eight::vectorwise(float, row, codes)
        }

        #[target_feature(enable = $features)]
        fn quantize_tiles(float: Float, cols: usize, src: &[u8], codes: &mut [u8], inverses: &mut [f32]) {
            body::eight::tiles(float, cols, src, codes, inverses);
        }

        #[target_feature(enable = $features)]
        fn quantize_columns(job: &Columns, src: &[u8], codes: &mut [u8], zeros: &mut [u8], scales: &mut [u8]) {
            body::columns::quantize(job, src, codes, zeros, scales);
        }

        #[target_feature(enable = $features)]
        fn quantize_scaled(job: &Scaled, given: &[f32], src: &[u8], out: [&mut [u8]; 3]) {
            body::scaled::quantize(job, given, src, out);
        }

        #[target_feature(enable = $features)]
        fn dequantize_scaled(job: &Scaled, codes: &[u8], scales: &[f32], zeros: &[u8], out: &mut [f32]) {
            body::scaled::dequantize(job, codes, scales, zeros, out);
        }

        #[target_feature(enable = $features)]
        fn cast(job: &Cast, src: &[u8], out: &mut [u8]) {
            body::cast::cast(job, src, out);
        }

        #[target_feature(enable = $features)]
        fn not_finite(float: Float, src: &[u8]) -> usize {
            body::finite::not_finite(float, src)
        }

        #[target_feature(enable = $features)]
        fn dense(job: &Dense, a: &[f32], b: &[f32], c: &mut [f32]) {
            body::attention::dense(job, a, b, c);
        }

        #[target_feature(enable = $features)]
        fn softmax(row: &mut [f32]) {
            body::attention::softmax(row);
        }

        #[target_feature(enable = $features)]
        fn swiglu(gate: &mut [f32], up: &[f32]) {
            body::attention::swiglu(gate, up);
        }

        #[target_feature(enable = $features)]
        fn quantize_input(product: &Product, x: &[f32], codes: &mut [i8], scales: &mut [f32], sums: &mut [i32]) {
            body::dot::quantize(product, x, codes, scales, sums);
        }

        #[target_feature(enable = $features)]
        fn spread(bits: u32, src: &[u8], out: &mut [u8]) {
            body::pack::unpack(bits, src, out);
        }

        #[target_feature(enable = $features)]
        fn widen(stored: Stored, src: &[u8], out: &mut [f32]) {
            body::dot::widen(stored, src, out);
        }

        #[target_feature(enable = $features)]
        fn zero_points(bits: u32, blocks: usize, src: &[u8], scales: &[f32], out: &mut [f32]) {
            body::dot::zero_points(bits, blocks, src, scales, out);
        }

        #[target_feature(enable = $features)]
        fn multiply(cols: usize, w: &[f32], x: &[f32], y: &mut [f32]) {
            body::multiply::product::<_, $rows, $inputs>($sixteen::new(), cols, w, x, y);
        }

        #[target_feature(enable = $features)]
        fn tile(tiling: &Tiling, src: &[u8], out: &mut [[u8; 64]]) {
            body::dot::tile(tiling, src, out);
        }

        #[target_feature(enable = $features)]
        fn accumulate(product: &Product, panels: &[Panel<'_>], inputs: &Inputs<'_>, acc: &mut [[f32; 16]]) {
            body::dot::accumulate(product, panels, inputs, acc);
        }

        #[target_feature(enable = $features)]
        fn accumulate_rows(product: &Product, rows: &Rows<'_>, inputs: &Inputs<'_>, acc: &mut [f32; 16]) {
            body::dot::accumulate_rows(product, rows, inputs, acc);
        }

        /// For a table that `x86` hands out where the features were detected.
        #[expect(unsafe_code, reason = "calls from undetected to detected code")]
        const BODIES: Kernels = Kernels {
            isa: $isa,
            quantize_affine: |job, src, codes, scales, biases| {
                // SAFETY: the table is reached only through `x86::available`, which detected the features.
                unsafe { quantize_affine(job, src, codes, scales, biases) }
            },
            choose_affine: |job, choice, src, out| {
                // SAFETY: as above.
                unsafe { choose_affine(job, choice, src, out) }
            },
            choose_columns: |job, choice, src, out| {
                // SAFETY: as above.
                unsafe { choose_columns(job, choice, src, out) }
            },
            choose_blocks: |job, choice, row, codes, found| {
                // SAFETY: as above.
                unsafe { choose_blocks(job, choice, row, codes, found) }
            },
            choose_scaled: |job, choice, src, out| {
                // SAFETY: as above.
                unsafe { choose_scaled(job, choice, src, out) }
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
            largest: |values| {
                // SAFETY: as above.
                unsafe { largest(values) }
            },
            quantize_symmetric: |given, values, codes| {
                // SAFETY: as above.
                unsafe { quantize_symmetric(given, values, codes) }
            },
            quantize_blocks: |job, row, codes, scales, zeros| {
                // SAFETY: as above.
                unsafe { quantize_blocks(job, row, codes, scales, zeros) }
            },
            quantize_by_book: |float, book, src, codes, absmax| {
                // SAFETY: as above.
                unsafe { quantize_by_book(float, book, src, codes, absmax) }
            },
            block_maxima: |float, src, absmax| {
                // SAFETY: as above.
                unsafe { block_maxima(float, src, absmax) }
            },
            quantize_vectorwise: |float, row, codes| {
                // SAFETY: as above.
                unsafe { quantize_vectorwise(float, row, codes) }
            },
            quantize_tiles: |float, cols, src, codes, inverses| {
                // SAFETY: as above.
                unsafe { quantize_tiles(float, cols, src, codes, inverses) }
            },
            quantize_columns: |job, src, codes, zeros, scales| {
                // SAFETY: as above.
                unsafe { quantize_columns(job, src, codes, zeros, scales) }
            },
            quantize_scaled: |job, given, src, out| {
                // SAFETY: as above.
                unsafe { quantize_scaled(job, given, src, out) }
            },
            dequantize_scaled: |job, codes, scales, zeros, out| {
                // SAFETY: as above.
                unsafe { dequantize_scaled(job, codes, scales, zeros, out) }
            },
            cast: |job, src, out| {
                // SAFETY: as above.
                unsafe { cast(job, src, out) }
            },
            not_finite: |float, src| {
                // SAFETY: as above.
                unsafe { not_finite(float, src) }
            },
            dense: |job, a, b, c| {
                // SAFETY: as above.
                unsafe { dense(job, a, b, c) }
            },
            softmax: |row| {
                // SAFETY: as above.
                unsafe { softmax(row) }
            },
            swiglu: |gate, up| {
                // SAFETY: as above.
                unsafe { swiglu(gate, up) }
            },
            tile: |tiling, src, out| {
                // SAFETY: as above.
                unsafe { tile(tiling, src, out) }
            },
            accumulate: |product, panels, inputs, _, acc| {
                // SAFETY: as above.
                unsafe { accumulate(product, panels, inputs, acc) }
            },
            accumulate_rows: |product, rows, inputs, _, acc| {
                // SAFETY: as above.
                unsafe { accumulate_rows(product, rows, inputs, acc) }
            },
            quantize_input: |product, x, codes, scales, sums| {
                // SAFETY: as above.
                unsafe { quantize_input(product, x, codes, scales, sums) }
            },
            spread: |bits, src, _, out| {
                // SAFETY: as above.
                unsafe { spread(bits, src, out) }
            },
            widen: |stored, src, out| {
                // SAFETY: as above.
                unsafe { widen(stored, src, out) }
            },
            zero_points: |bits, blocks, src, scales, out| {
                // SAFETY: as above.
                unsafe { zero_points(bits, blocks, src, scales, out) }
            },
            multiply: |cols, w, x, y| {
                // SAFETY: as above.
                unsafe { multiply(cols, w, x, y) }
            },
        };
    };
}
use instances;

/// Has bytes brought near: into the second level, since the first has its hands full.
#[inline]
fn ask_for(ahead: Ahead<'_>) {
    for line in ahead.like.chunks(64) {
        // SAFETY: a hint; it reads nothing and may name any address. Every x86-64 has it.
        #[allow(unsafe_code, unused_unsafe, reason = "a hint, which newer compilers know to be safe")]
        unsafe {
            _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().wrapping_add(ahead.distance).cast());
        }
    }
}

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
    if avx512 && is_x86_feature_detected!("avx512vnni") {
        tables.push(&avx512::WITH_VNNI);
    }
    tables
}
