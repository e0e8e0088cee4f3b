//! The bodies at the target's baseline: the reference that every other table must equal.

use super::{
    Isa, Kernels,
    body::{self, sixteen::Plain},
};

pub(super) static KERNELS: Kernels = Kernels {
    isa: Isa::Scalar,
    quantize_affine: |job, src, codes, scales, biases| body::affine::quantize(job, src, codes, scales, biases),
    choose_affine: |job, choice, src, out| body::affine::choose(Plain, job, choice, src, out),
    choose_columns: |job, choice, src, out| body::columns::choose(Plain, job, choice, src, out),
    choose_blocks: |job, choice, row, codes, found| body::blocks::choose(Plain, job, choice, row, codes, found),
    choose_scaled: |job, choice, src, out| body::scaled::choose(Plain, job, choice, src, out),
    dequantize_affine: |job, codes, scales, biases, out| {
        body::affine::dequantize(Plain, job, codes, scales, biases, out);
    },
    quantize_micro: |job, src, codes, scales| body::microscaling::quantize(job, src, codes, scales),
    dequantize_micro: |job, codes, scales, out| body::microscaling::dequantize(Plain, job, codes, scales, out),
    largest: |values| body::blocks::largest(values),
    quantize_symmetric: |given, values, codes| body::blocks::symmetric(given, values, codes),
    quantize_blocks: |job, row, codes, scales, zeros| body::blocks::quantize(job, row, codes, scales, zeros),
    quantize_by_book: |float, book, src, codes, absmax| body::book::quantize(float, book, src, codes, absmax),
    block_maxima: |float, src, absmax| body::book::maxima(float, src, absmax),
    quantize_vectorwise: |float, row, codes| body::eight::vectorwise(float, row, codes),
    quantize_tiles: |float, cols, src, codes, inverses| body::eight::tiles(float, cols, src, codes, inverses),
    quantize_columns: |job, src, codes, zeros, scales| body::columns::quantize(job, src, codes, zeros, scales),
    quantize_scaled: |job, given, src, out| body::scaled::quantize(job, given, src, out),
    dequantize_scaled: |job, codes, scales, zeros, out| body::scaled::dequantize(job, codes, scales, zeros, out),
    cast: |job, src, out| body::cast::cast(job, src, out),
    not_finite: |float, src| body::finite::not_finite(float, src),
    dense: |job, a, b, c| body::attention::dense(job, a, b, c),
    softmax: |row| body::attention::softmax(row),
    swiglu: |gate, up| body::attention::swiglu(gate, up),
    quantize_input: |product, x, codes, scales, sums| body::dot::quantize(product, x, codes, scales, sums),
    spread: |bits, src, _, out| body::pack::unpack(bits, src, out),
    tile: |tiling, src, out| body::dot::tile(tiling, src, out),
    widen: |stored, src, out| body::dot::widen(stored, src, out),
    zero_points: |bits, blocks, src, scales, out| body::dot::zero_points(bits, blocks, src, scales, out),
    accumulate: |product, panels, inputs, _, acc| body::dot::accumulate(product, panels, inputs, acc),
    accumulate_rows: |product, rows, inputs, _, acc| body::dot::accumulate_rows(product, rows, inputs, acc),
    multiply: |cols, w, x, y| body::multiply::product::<_, 1, 1>(Plain, cols, w, x, y),
};
