//! The bodies with AVX-512, on 512-bit registers where the compiler chooses them, but for codes of two-byte
//! floats, the products of quantized inputs and codes that cross bytes, which are written by hand; and the same
//! with VNNI.

use crate::kernel::Isa;

use super::{avx2, encode, maddubs, rows, rows256, sixteen::Avx512, spread, tile, vnni};

super::instances!(Isa::Avx512, "avx512f,avx512bw,avx512dq,avx512vl", Avx512, 4 x 4);

/// Groups that are longer than this are found in narrower registers.
const LONG: usize = 32;

/// Private to `x86`, which hands it out where the features were detected.
#[expect(unsafe_code, reason = "calls from undetected to detected code")]
const TABLE: Kernels = Kernels {
    quantize_affine: |job, src, codes, scales, biases| {
        // SAFETY: the table is reached only through `x86::available`, which detected the features.
        unsafe { encode::avx512::quantize(job, src, [codes, scales, biases], BODIES.quantize_affine) }
    },
    quantize_micro: |job, src, codes, scales| {
        // SAFETY: as above.
        unsafe { encode::micro::quantize(job, src, [codes, scales], BODIES.quantize_micro) }
    },
    // Long groups, and blocks, run faster as the compiler makes them for narrower registers.
    quantize_blocks: |job, row, codes, scales, zeros| {
        (avx2::KERNELS.quantize_blocks)(job, row, codes, scales, zeros);
    },
    quantize_scaled: |job, given, src, out| {
        let table = if job.group > LONG { &avx2::KERNELS } else { &BODIES };
        (table.quantize_scaled)(job, given, src, out);
    },
    spread: |bits, src, distance, out| {
        if is_x86_feature_detected!("avx512vbmi") {
            // SAFETY: the table is reached only through `x86::available`, which detected the other features.
            unsafe { spread::spread_512(bits, src, distance, out) }
        } else {
            // SAFETY: as above; AVX-512 has AVX2 in it.
            unsafe { spread::spread_256(bits, src, distance, out) }
        }
    },
    tile: |tiling, src, out| {
        // SAFETY: as above.
        unsafe { tile::tile(tiling, src, out) }
    },
    accumulate: |product, panels, inputs, _, acc| {
        // SAFETY: as above.
        unsafe { maddubs::accumulate(product, panels, inputs, acc) }
    },
    accumulate_rows: |product, rows, inputs, terms, acc| {
        // SAFETY: as above.
        unsafe { rows256::accumulate(product, rows, inputs, terms, acc) }
    },
    ..BODIES
};

pub(super) static KERNELS: Kernels = TABLE;

/// For machines that have VNNI too.
#[expect(unsafe_code, reason = "calls from undetected to detected code")]
pub(super) static WITH_VNNI: Kernels = Kernels {
    isa: Isa::Avx512Vnni,
    accumulate: |product, panels, inputs, ahead, acc| {
        // SAFETY: as above, VNNI being detected as well.
        unsafe { vnni::accumulate(product, panels, inputs, ahead, acc) }
    },
    accumulate_rows: |product, rows, inputs, terms, acc| {
        // SAFETY: as above.
        unsafe { rows::accumulate(product, rows, inputs, terms, acc) }
    },
    ..TABLE
};
