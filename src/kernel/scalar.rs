//! The bodies at the target's baseline: the reference that every other table must equal.

use super::{Isa, Kernels, body};

pub(super) static KERNELS: Kernels = Kernels {
    isa: Isa::Scalar,
    quantize_affine: |job, src, codes, scales, biases| body::affine::quantize(job, src, codes, scales, biases),
    dequantize_affine: |job, codes, scales, biases, out| body::affine::dequantize(job, codes, scales, biases, out),
    quantize_micro: |job, src, codes, scales| body::microscaling::quantize(job, src, codes, scales),
    dequantize_micro: |job, codes, scales, out| body::microscaling::dequantize(job, codes, scales, out),
    cast: |job, src, out| body::cast::cast(job, src, out),
    not_finite: |float, src| body::finite::not_finite(float, src),
};
