"""Writes tests/golden/gptq/spec.safetensors: GPTQ's and AWQ's codes by round to nearest, in numpy.

The formulas are those of auto-gptq 0.7.1 (`find_params`, `pack`) and AutoAWQ 0.2.9 (`pseudo_quantize_tensor`,
`WQLinear_GEMM.from_linear`). `check` holds them against what those packers wrote (packers.safetensors there) before
anything is written. Needs numpy, ml_dtypes and safetensors.

    python scripts/golden/gptq_awq.py
"""

import json
import os

import ml_dtypes
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

np.seterr(all="ignore")
GOLDEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tests", "golden")
F32, F16 = np.float32, np.float16
ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def stream(codes, bits):
    """Rows of codes as rows of 32-bit words, the first code lowest, without gaps."""
    spread = (codes[..., None] >> np.arange(bits)) & 1
    return np.packbits(spread.reshape(len(codes), -1).astype(np.uint8), axis=1, bitorder="little").view("<i4")


def gptq(weight, bits, group, symmetric, less_one):
    """`qweight`, `qzeros`, `scales`; and the zero points as they are."""
    rows, cols = weight.shape
    groups = weight.astype(F32).reshape(rows, cols // group, group)
    top = F32(2**bits - 1)
    low, high = np.minimum(groups.min(-1), F32(0)), np.maximum(groups.max(-1), F32(0))
    if symmetric:
        high = np.maximum(np.abs(low), high)
        low = np.where(low < 0, -high, low)
    nothing = (low == 0) & (high == 0)
    low, high = np.where(nothing, F32(-1), low), np.where(nothing, F32(1), high)
    scale = (high - low) / top
    if symmetric:
        zero = np.full_like(scale, (top + 1) / 2)
    else:
        # Only scales that are subnormal make zero points beyond the codes, which no field holds.
        zero = np.clip(np.nan_to_num(np.rint(-low / scale), nan=0.0), 0, top)
        if less_one:
            # Zero point 0 has no field: one step fewer, from zero point 1.
            scale = np.where(zero == 0, (high - low) / (top - F32(1)), scale)
            zero = np.maximum(zero, F32(1))
    exact = np.rint(groups / scale[..., None]) + zero[..., None]
    codes = np.clip(np.nan_to_num(exact, nan=0.0, posinf=np.inf, neginf=-np.inf), 0, top)
    codes = codes.reshape(rows, cols).astype(np.uint32)
    zeros = zero.astype(np.uint32)
    return {
        "qweight": np.ascontiguousarray(stream(codes, bits).T),
        "qzeros": stream(np.ascontiguousarray(zeros.T) - np.uint32(less_one), bits),
        "scales": np.ascontiguousarray(scale.T).astype(F16),
    }, np.ascontiguousarray(zeros.T).astype(np.int32)


def awq(weight, group):
    rows, cols = weight.shape
    half = lambda x: np.asarray(x, F32).astype(F16).astype(F32)
    groups = half(weight.astype(F32)).reshape(rows, cols // group, group)
    low, high = groups.min(-1), groups.max(-1)
    scale = half(np.maximum(half(high - low), F32(F16(1e-5))) / F32(15))
    zero = np.clip(-np.rint(half(low / scale)), 0, 15)
    codes = np.clip(half(np.rint(half(groups / scale[..., None])) + zero[..., None]), 0, 15).reshape(rows, cols)

    def words(codes):
        eights = codes.astype(np.uint32).reshape(len(codes), -1, 8)[:, :, ORDER]
        return np.bitwise_or.reduce(eights << (4 * np.arange(8, dtype=np.uint32)), axis=2).view(np.int32)

    return {
        "qweight": words(np.ascontiguousarray(codes.T)),
        "qzeros": words(np.ascontiguousarray(zero.T)),
        "scales": np.ascontiguousarray(scale.T).astype(F16),
    }


def read(path):
    """Tensors of a file as numpy arrays (bfloat16 through ml_dtypes), and its metadata."""
    with open(path, "rb") as f:
        data = f.read()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    types = {"BF16": ml_dtypes.bfloat16, "F16": F16, "F32": F32, "I32": np.int32, "I64": np.int64, "U8": np.uint8}
    out = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = (8 + size + at for at in entry["data_offsets"])
            out[name] = np.frombuffer(data[start:end], types[entry["dtype"]]).reshape(entry["shape"])
    return out, header.get("__metadata__", {})


def same(name, ours, theirs):
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape and ours.tobytes() == theirs.tobytes(), name


def check(inputs, names):
    packed, meta = read(f"{GOLDEN}/gptq/packers.safetensors")
    rows = [names.index(row) for row in json.loads(meta["rows"])]
    for dtype in ("bf16", "f16"):
        for bits, symmetric in ((4, True), (4, False), (8, True), (3, True)):
            stem = f"{dtype}.gptq_b{bits}_g64_{'sym' if symmetric else 'asym'}"
            # Zero points of 0 went into their neighbours there, so that asymmetric ones are compared as they were.
            parts, zeros = gptq(inputs[dtype][rows], bits, 64, symmetric, symmetric)
            same(stem, zeros, packed[f"{stem}.zero_ints"])
            for part in ("qweight", "qzeros", "scales")[:: 1 if symmetric else 2]:
                same(f"{stem}.{part}", parts[part], packed[f"{stem}.{part}"])
        for part, ours in awq(inputs[dtype][rows], 64).items():
            same(f"{dtype}.awq_g64.{part}", ours, packed[f"{dtype}.awq_g64.{part}"])


def main():
    inputs, meta = read(f"{GOLDEN}/mlx/input_finite.safetensors")
    check(inputs, json.loads(meta["rows"]))
    out = {}
    for dtype, weight in inputs.items():
        for bits, group in ((4, 128), (4, 64), (4, 32), (8, 128), (2, 32), (3, 64)):
            for word, symmetric, less_one in (("sym-v1", True, True), ("asym-v1", False, True), ("asym-v2", False, False)):
                parts, _ = gptq(weight, bits, group, symmetric, less_one)
                out |= {f"{dtype}.gptq.{bits}bit-g{group}-{word}.{part}": a for part, a in parts.items()}
        for group in (128, 64, 32):
            out |= {f"{dtype}.awq.4bit-g{group}.{part}": a for part, a in awq(weight, group).items()}
    save_file(out, f"{GOLDEN}/gptq/spec.safetensors")


if __name__ == "__main__":
    main()
