"""Codes of the methods `ls` and `hqq` in MLX's affine container, by a second implementation.

Written from the description in README.md ("Better codes in the same container"), in numpy with one IEEE f32 operation
after the other, apart from the Rust code: it shares no line, no table and no kernel with it. It needs numpy and
ml_dtypes, and writes `affine.safetensors` beside itself: `python tests/golden/methods/make.py`.
"""

import json
import struct
from pathlib import Path

import ml_dtypes
import numpy as np

f32 = np.float32
DTYPES = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32}
np.seterr(all="ignore")


def rounded(x, dtype):
    return np.asarray(x, f32).astype(dtype).astype(f32)


def clamp_round(x, top):
    """NaN is 0; half to even."""
    held = np.where(x > 0, x, f32(0))
    return np.rint(np.where(held < top, held, top)).astype(f32)


def in_order(terms):
    """Sum over the last axis, first element first, in f32."""
    total = np.zeros(terms.shape[0], f32)
    for k in range(terms.shape[1]):
        total = (total + terms[:, k]).astype(f32)
    return total


def ends(w):
    with_nan = np.where(np.isnan(w), f32(np.inf), w)
    low = with_nan.min(1)
    high = np.where(np.isnan(w), f32(-np.inf), w).max(1)
    return low, high


def rtn(w, bits):
    """MLX's own rule on a CPU: unrounded scale and bias, and the codes they give."""
    top = f32(2**bits - 1)
    low, high = ends(w)
    step = np.maximum((high - low) / top, f32(1e-7))
    below = np.abs(low) > np.abs(high)
    step = np.where(below, step, -step)
    edge = np.where(below, low, high)
    count = np.rint(edge / step)
    scale = np.where(count != 0, edge / count, step).astype(f32)
    bias = np.where(count != 0, edge, f32(0)).astype(f32)
    return scale, bias, clamp_round((w - bias[:, None]) / scale[:, None], top)


def weighted_trials(w, low, unit, top, weights):
    """Sums of a trial, all in f32, and what is asked of the elements."""
    y = ((w - low[:, None]) * (f32(1) / unit)[:, None]).astype(f32)
    wy = (weights * y).astype(f32)
    total_w, total_y, total_yy = in_order(weights), in_order(wy), in_order((wy * y).astype(f32))

    def sums(ratio, start):
        q = clamp_round(((y * ratio[:, None]).astype(f32) + start[:, None]).astype(f32), top)
        left = (y - q).astype(f32)
        weighed = (weights * left).astype(f32)
        d, dq, dd = in_order(weighed), in_order((weighed * q).astype(f32)), in_order((weighed * left).astype(f32))
        return d, dq, dd, total_y - d, total_yy - f32(2) * dq - dd

    return total_w, total_y, sums


def plain_trials(w, low, unit, top):
    """The same in fixed point: steps of 2^9 (of 2^7 for codes of 8 bits), sums exact."""
    step = 9 if top < 64 else 7
    ratio_bits = 13 if top < 7 else 14
    shift = step + ratio_bits - 15
    y = np.rint(((w - low[:, None]) * (f32(2**step) / unit)[:, None]).astype(f32))
    y = np.where(np.isfinite(y), y, 0).astype(np.int64)

    def sums(ratio, start):
        ratio = np.clip(np.nan_to_num(ratio), f32(1) - f32(2) / top, f32(1) + f32(6) / top)
        ratio = np.rint((ratio * f32(2**ratio_bits)).astype(f32)).astype(np.int64)
        start = np.clip(np.nan_to_num(start), f32(-2), f32(2))
        start = np.rint((start * f32(2**shift) + f32(2 ** (shift - 1))).astype(f32)).astype(np.int64)
        q = (((y * ratio[:, None] + 2**14) >> 15) + start[:, None]) >> shift
        q = np.clip(q, 0, int(top))
        left = y - (q << step)
        exact = [left.sum(1), (left * q).sum(1), (left * left).sum(1)]
        one = f32(2.0**-step)
        d, dq, dd = [sum.astype(f32) * factor for sum, factor in zip(exact, [one, one, one * one])]
        return d, dq, dd, q.sum(1).astype(f32), (q * q).sum(1).astype(f32)

    return np.full(len(w), w.shape[1], f32), y.sum(1).astype(f32) / f32(2**step), sums


def ls(w, bits, dtype, weights):
    top = f32(2**bits - 1)
    low, high = ends(w)
    unit = np.maximum((high - low) / top, f32(1e-30)).astype(f32)
    if weights is None:
        total_w, total_y, sums = plain_trials(w, low, unit, top)
    else:
        total_w, total_y, sums = weighted_trials(w, low, unit, top, weights)
    share = f32(1) / total_w
    n = len(w)
    error = np.full(n, np.inf, f32)
    slope, offset, codes = np.ones(n, f32), np.zeros(n, f32), np.zeros(n, f32)

    def trial(ratio, start):
        d, dq, dd, sum_q, sum_qq = sums(ratio, start)
        mean = sum_q * share
        spread = sum_qq - sum_q * mean
        shared = dq - d * mean
        steeper = np.where(spread > 0, shared / spread, f32(0)).astype(f32)
        mean_left = d * share
        e = dd - d * mean_left - steeper * shared
        better = e < error
        error[better] = e[better]
        slope[better] = (f32(1) + steeper)[better]
        offset[better] = (mean_left - steeper * mean)[better]
        codes[better] = sum_q[better]

    for pair in range(7):
        steps = f32(top + f32(pair - 3) / f32(3))
        ratio = steps / (top - offset)
        trial(ratio, -(offset * ratio))
        trial(np.full(n, steps / top, f32), np.full(n, top - steps, f32))
    for _ in range(6):
        ratio = f32(1) / slope
        trial(ratio, -(offset * ratio))
    scale = rounded(slope * unit, dtype)
    moved = (total_y - scale / unit * codes) * share
    return scale, rounded(low + moved * unit, dtype)


def hqq(w, bits, dtype, weights):
    """For groups whose errors stay below 0.17: what is larger is shrunk, which this leaves out."""
    top = f32(2**bits - 1)
    low, high = ends(w)
    inverse = (top / np.maximum(high - low, f32(1e-30))).astype(f32)
    zero = (-low * inverse).astype(f32)
    weights = np.ones_like(w) if weights is None else weights
    total_w = in_order(weights)
    steps = (w * inverse[:, None]).astype(f32)
    for _ in range(20):
        q = clamp_round((steps + zero[:, None]).astype(f32), top)
        zero = in_order((weights * (q - steps)).astype(f32)) / total_w
    return rounded(f32(1) / inverse, dtype), rounded(-zero / inverse, dtype)


def decoded(q, scale, bias, dtype):
    return rounded(rounded(q * scale[:, None], dtype) + bias[:, None], dtype)


def lanes_error(w, v, weights):
    low, high = ends(w)
    off = ((w - v) * (f32(1) / np.maximum(high - low, np.finfo(f32).tiny))[:, None]).astype(f32)
    weighed = off if weights is None else (weights * off).astype(f32)
    terms = (weighed * off).astype(f32)
    sums = np.stack([in_order(terms[:, lane::16]) for lane in range(16)], 1)
    while sums.shape[1] > 1:
        half = sums.shape[1] // 2
        sums = (sums[:, :half] + sums[:, half:]).astype(f32)
    return sums[:, 0]


def quantize(w, bits, method, dtype, weights):
    top = f32(2**bits - 1)
    scale, bias, q = rtn(w, bits)
    scale, bias = rounded(scale, dtype), rounded(bias, dtype)
    new_scale, new_bias = {"ls": ls, "hqq": hqq}[method](w, bits, dtype, weights)
    new_q = clamp_round((w - new_bias[:, None]) / new_scale[:, None], top)
    if method == "ls":
        old = lanes_error(w, decoded(q, scale, bias, dtype), weights)
        taken = lanes_error(w, decoded(new_q, new_scale, new_bias, dtype), weights) < old
    else:
        taken = np.isfinite(new_scale) & np.isfinite(new_bias)
    pick = lambda a, b: np.where(taken if a.ndim == 1 else taken[:, None], a, b)
    return pick(new_q, q), pick(new_scale, scale), pick(new_bias, bias)


def packed(q, bits):
    """Element i in the bits i * b and on of a row, little endian."""
    each = (q.astype(np.uint32)[:, :, None] >> np.arange(bits, dtype=np.uint32)) & 1
    return np.packbits(each.reshape(len(q), -1).astype(np.uint8), axis=1, bitorder="little")


def inputs():
    rng = np.random.default_rng(20260606)
    rows = [rng.standard_normal(256) * 0.02 for _ in range(10)]
    rows += [rng.standard_t(3, 256) * 0.01, rng.laplace(size=256) * 0.03, rng.random(256) * 0.01 + 0.3]
    rows += [rng.random(256) * 0.01 - 0.3, rng.standard_normal(256) * 1e-6]
    edge = rng.standard_normal(256) * 0.02
    edge[:64], edge[64:128], edge[130], edge[200] = 0.0, 0.125, 0.14, np.nan
    far = rng.standard_normal(256) * 0.02
    far[5], far[100], far[150:200] = 0.16, -0.15, -0.0
    return np.stack([*rows, edge, far]).astype(f32), rng.gamma(0.5, size=256).astype(f32)


def write(path, tensors):
    header, blobs, at = {}, [], 0
    for name, (tag, array) in tensors.items():
        data = np.ascontiguousarray(array).tobytes()
        shape = list(array.shape)
        if tag == "U32":
            shape[-1] //= 4
        header[name] = {"dtype": tag, "shape": shape, "data_offsets": [at, at + len(data)]}
        blobs.append(data)
        at += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def main():
    rows, importance = inputs()
    tensors = {"importance": ("F32", importance)}
    for tag, dtype in DTYPES.items():
        w = rounded(rows, dtype)
        tensors[f"{tag}.input"] = (tag, w.astype(dtype))
        cases = [(4, 64), (2, 64), (3, 32), (8, 128)] if tag == "BF16" else [(4, 64), (5, 32)]
        for bits, group in cases:
            for method in ("ls", "hqq"):
                for weighted in (False, True):
                    mean = sum(float(one) for one in importance) / len(importance)
                    scaled = (importance.astype(np.float64) / mean).astype(f32)
                    weights = np.tile(scaled, len(w)).reshape(-1, group) if weighted else None
                    q, scale, bias = quantize(w.reshape(-1, group), bits, method, dtype, weights)
                    name = f"{tag}.{bits}bit-g{group}-{method}{'.weighted' if weighted else ''}"
                    shape = (len(w), -1)
                    tensors[f"{name}.weight"] = ("U32", packed(q, bits).reshape(shape))
                    tensors[f"{name}.scales"] = (tag, scale.reshape(shape).astype(dtype))
                    tensors[f"{name}.biases"] = (tag, bias.reshape(shape).astype(dtype))
    write(Path(__file__).with_name("affine.safetensors"), tensors)


main()
