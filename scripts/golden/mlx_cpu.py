#!/usr/bin/env python3
"""Golden bytes of MLX that the shared vectors lack, for tests/it/golden.rs. Needs mlx (CPU), numpy, ml_dtypes.

  edge.safetensors       rows with NaN, infinities, both zeros, saturating and subnormal weights through mxfp4, mxfp8, nvfp4
  group_max.safetensors  the scale byte for every positive finite group maximum of bf16 and f16, and for f32 maxima near
                         sqrt(2) * 2^k: as mx.quantize gives it (up), and by the operations of mlx 0.31.2's graph,
                         round(log2(max / largest)), done with the library's own divide, log2 and round (nearest)
  cast.safetensors       astype between the floats, and x + 1, for every 13th bit pattern and the special ones
  decode.safetensors     mx.dequantize of what mx.quantize makes of bell-shaped rows, as f32: affine in the dtype of its
                         scales, the others with dtype=float32

Usage: python scripts/golden/mlx_cpu.py tests/golden/mlx
"""
import sys, warnings
import ml_dtypes, mlx.core as mx, numpy as np
from safetensors.numpy import save_file

warnings.filterwarnings("ignore")
mx.set_default_device(mx.cpu)
OUT = sys.argv[1]
DTYPES = {"bf16": mx.bfloat16, "f16": mx.float16, "f32": mx.float32}
NUMPY = {mx.bfloat16: ml_dtypes.bfloat16, mx.float16: np.float16, mx.float32: np.float32}
MODES = {"mxfp4": (32, 6.0), "mxfp8": (32, 448.0), "nvfp4": (16, 6.0)}
INFINITY = {"bf16": 0x7F80, "f16": 0x7C00}
# One entry: several are written in an order that changes from run to run.
META = {"made by": f"scripts/golden/mlx_cpu.py, mlx {mx.__version__}, cpu x86_64"}


def of_bits(bits, name):
    return mx.array(bits).view(DTYPES[name])


def to_numpy(a):
    """The array with its bits kept; numpy has no bfloat16 of its own."""
    if a.dtype in NUMPY:
        return np.array(a.view(mx.uint32 if a.dtype == mx.float32 else mx.uint16)).view(NUMPY[a.dtype])
    return np.array(a)


def write(name, tensors):
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, f"{OUT}/{name}.safetensors", metadata=META)


def edge_rows():
    rng = np.random.default_rng(20260102)
    rows = []
    for scale in (1.0, 1e3, 1e9, 1e12, 1e30, 1e-6, 1e-40):
        for special in ((), (np.nan,), (-np.nan,), (np.inf,), (-np.inf,), (np.inf, np.nan)):
            row = (rng.standard_normal(64) * scale).astype(np.float32)
            row[:4] = [0.0, -0.0, 0.5 * scale, -0.5 * scale]
            for at, x in zip((5, 40), special):
                row[at] = x
            rows.append(row)
    return np.stack(rows)


def edge():
    out, rows = {}, edge_rows()
    for name, dtype in DTYPES.items():
        w = mx.array(rows).astype(dtype)
        if name == "f32":
            w = mx.array(rows.view(np.uint32)).view(mx.float32)
        if name == "f16":  # bits, so that a NaN keeps its sign
            w = of_bits(rows.astype(np.float16).view(np.uint16), name)
        out[name] = to_numpy(w)
        for mode in MODES:
            for part, t in zip(("weight", "scales"), mx.quantize(w, mode=mode)):
                out[f"edge.{name}.{mode}.{part}"] = to_numpy(t)
    write("edge", out)


def maxima(name, largest):
    if name != "f32":
        return of_bits(np.arange(1, INFINITY[name], dtype=np.uint16), name)
    near = np.concatenate([np.float64(2.0) ** k * np.sqrt(2.0) * (1 + np.arange(-40, 41, 5) * 2.0**-23) for k in range(-149, 125)])
    x = (near * largest).astype(np.float32)
    return mx.array(x[(x > 0) & np.isfinite(x)])


def group_max():
    out = {}
    for name in DTYPES:
        for mode, (size, largest) in MODES.items():
            if mode == "nvfp4" and name == "f32":
                continue
            a = maxima(name, largest)
            if name == "f32":
                out[f"{name}.{mode}.maxima"] = to_numpy(a)
            w = mx.concatenate([a[:, None], mx.zeros((a.size, size - 1), a.dtype)], axis=1)
            if a.size % 2:  # the library wants rows of 32 for nvfp4: two groups to a row, a zero group at the end
                w = mx.concatenate([w, mx.zeros((1, size), a.dtype)])
            w = w.reshape(-1, 2 * size)
            out[f"{name}.{mode}.up"] = np.array(mx.quantize(w, mode=mode)[1]).ravel()[: a.size]
            if mode != "nvfp4":
                sc = a / mx.array(largest, a.dtype)
                e = mx.where(sc == 0, mx.array(0, mx.int32), mx.round(mx.log2(sc)).astype(mx.int32))
                out[f"{name}.{mode}.nearest"] = np.array(e + 127).astype(np.uint8)
    write("group_max", out)


def cast():
    bits16 = np.unique(np.concatenate([np.arange(0, 65536, 13), [0x8000, 0x7C00, 0x7C01, 0x7D00, 0x7E00, 0x7F80, 0x7F81, 0x7FC0, 0xFC00, 0xFF80, 0xFFFF]])).astype(np.uint16)
    rng = np.random.default_rng(20260103)
    bits32 = rng.integers(0, 1 << 32, 6000, dtype=np.uint64).astype(np.uint32)
    bits32[:4000] = (bits32[:4000] & 0x8FFFFFFF) | 0x30000000  # within the range of f16
    bits32[4000:4400] &= 0xFFFF8000  # halfway cases of bf16
    special = [0, 0x80000000, 0x7F800000, 0xFF800000, 0x7F800001, 0xFFC12345, 0x477FEFFF, 0x477FF000, 0x33000000, 0x33000001, 0x7F7FFFFF]
    bits32 = np.concatenate([bits32, np.array(special, np.uint32)])
    out = {}
    for name in DTYPES:
        x = of_bits(bits32 if name == "f32" else bits16, name)
        out[name] = to_numpy(x)
        out[f"{name}.plus_one"] = to_numpy(x + 1.0)
        for other, dtype in DTYPES.items():
            if other != name:
                out[f"{name}.{other}"] = to_numpy(x.astype(dtype))
    write("cast", out)


def decode():
    rows = (np.random.default_rng(20260104).standard_normal((4, 128)) * 0.05).astype(np.float32)
    rows[0, :64], rows[1, 64:] = 0.0, 1e-6
    out = {}
    for name, dtype in DTYPES.items():
        w = mx.array(rows).astype(dtype)
        for bits in (2, 3, 4, 5, 6, 8):
            parts = mx.quantize(w, 64, bits)
            put(out, f"{name}.affine_b{bits}_g64", parts, mx.dequantize(*parts, 64, bits).astype(mx.float32))
        for mode in MODES:
            parts = mx.quantize(w, mode=mode)
            put(out, f"{name}.{mode}", parts, mx.dequantize(*parts, mode=mode, dtype=mx.float32))
    write("decode", out)


def put(out, stem, parts, values):
    for part, t in zip(("weight", "scales", "biases"), parts):
        out[f"{stem}.{part}"] = to_numpy(t)
    out[f"{stem}.values"] = to_numpy(values)


edge()
decode()
group_max()
cast()
