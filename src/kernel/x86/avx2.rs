//! The bodies with AVX2, but for codes of bf16, the products of quantized inputs and codes that cross bytes,
//! which are written by hand (`encode`, `rows256`, `tile256`, `maddubs`, `spread`). `fma` is left out on purpose:
//! nothing may contract.

use super::{encode, maddubs, rows256, sixteen::Avx2, spread, tile256};

super::instances!(crate::kernel::Isa::Avx2, "avx2", Avx2, 2 x 2);

/// Private to `x86`, which hands it out where the features were detected.
#[expect(unsafe_code, reason = "calls from undetected to detected code")]
pub(super) static KERNELS: Kernels = Kernels {
    quantize_affine: |job, src, codes, scales, biases| {
        // SAFETY: the table is reached only through `x86::available`, which detected the features.
        unsafe { encode::avx2::quantize(job, src, [codes, scales, biases], BODIES.quantize_affine) }
    },
    quantize_micro: |job, src, codes, scales| {
        // SAFETY: as above.
        unsafe { encode::micro::quantize(job, src, [codes, scales], BODIES.quantize_micro) }
    },
    spread: |bits, src, distance, out| {
        // SAFETY: as above.
        unsafe { spread::spread_256(bits, src, distance, out) }
    },
    tile: |tiling, src, out| {
        // SAFETY: as above.
        unsafe { tile256::tile(tiling, src, out) }
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
