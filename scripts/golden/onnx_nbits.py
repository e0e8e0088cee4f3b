#!/usr/bin/env python3
"""Golden bytes and products of onnxruntime's MatMulNBits, for tests/it/nbits.rs. Needs onnxruntime, onnx, numpy, safetensors.

  codes.safetensors   what its quantizer makes of rows of tests/golden/mlx/input_finite.safetensors:
                      whole bytes of codes only: its quantizer leaves the rest of a byte to chance.
                      <f32|f16>.k<columns>.b<bits>_bs<block>_<sym|asym>.<weight|scales|zero_points>
  layers.safetensors  random layers and what its operator computes: the same names, with `x` and `y` ([inputs, N], f32).
                      `row` is one block a row, [N, 1, bytes] of random codes, which it has not: its operator is given
                      the same codes in blocks of 128 that share scale and zero point.

Usage: python scripts/golden/onnx_nbits.py tests/golden [directory for other layers, and no codes; its seed]
"""
import sys
import numpy as np, onnx, onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi import _pybind_state as native
from safetensors import safe_open
from safetensors.numpy import save_file

ROOT, OUT, SEED = sys.argv[1], sys.argv[2] if sys.argv[2:] else f"{sys.argv[1]}/onnx", int(sys.argv[3]) if sys.argv[3:] else 11
META = {"made by": f"scripts/golden/onnx_nbits.py, onnxruntime {onnxruntime.__version__}, cpu x86_64"}


def quantize(w, bits, block, symmetric):
    """w [N, K] -> weight [N, blocks, bytes], scales [N, blocks], zero points packed."""
    (n, k), blocks = w.shape, -(-w.shape[1] // block)
    padded = np.zeros((blocks * block, n), w.dtype)
    padded[:k] = w.T
    weight, scales = np.zeros((n, blocks, block * bits // 8), np.uint8), np.zeros((n, blocks), w.dtype)
    zeros = np.zeros((n, -(-blocks * bits // 8)), np.uint8)
    getattr(native, f"quantize_matmul_{bits}bits")(weight, padded, scales, zeros, block, n, k, symmetric)
    return {"weight": weight, "scales": scales, **({} if symmetric else {"zero_points": zeros})}


def multiply(x, parts, bits, block):
    """onnxruntime's own operator."""
    names = {"weight": "B", "scales": "scales", "zero_points": "zero_points"}
    n, k = parts["weight"].shape[0], x.shape[1]
    node = helper.make_node("MatMulNBits", ["A", *(names[p] for p in parts)], ["Y"], domain="com.microsoft", K=k, N=n, bits=bits, block_size=block)
    value = lambda name, last: helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, last])
    graph = helper.make_graph([node], "layer", [value("A", k)], [value("Y", n)], [numpy_helper.from_array(v, names[p]) for p, v in parts.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)])
    model.ir_version = 8
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"A": x})[0]


def random_rows(n, k, bits, symmetric):
    """Codes with one scale a row, and the same in blocks of 128."""
    blocks, codes = k // 128, rng.integers(0, 256, (n, 1, k * bits // 8), dtype=np.uint8)
    scales, zeros = rng.random((n, 1), dtype=np.float32), rng.integers(0, 2**bits, (n, 1), dtype=np.uint8)
    rows, same = {"weight": codes, "scales": scales}, {"weight": codes.reshape(n, blocks, -1), "scales": np.repeat(scales, blocks, 1)}
    if not symmetric:
        spread = np.pad(np.repeat(zeros, blocks, 1), ((0, 0), (0, -blocks % (8 // bits)))).reshape(n, -1, 8 // bits)
        rows["zero_points"] = zeros
        same["zero_points"] = sum(spread[..., i] << (i * bits) for i in range(8 // bits)).astype(np.uint8)
    return rows, same


codes, rng = {}, np.random.default_rng(SEED)
with safe_open(f"{ROOT}/mlx/input_finite.safetensors", "np") as rows:
    inputs = {dtype: rows.get_tensor(dtype) for dtype in ("f32", "f16")}
for dtype, rows in inputs.items():
    for k, some in ((256, (16, 64, 256)), (100, (32, 128)), (36, (16, 32))):
        for bits in (2, 4, 8):
            for block in some:
                for kind in ("sym", "asym"):
                    made = quantize(np.ascontiguousarray(rows[::3, :k]), bits, block, kind == "sym")
                    codes |= {f"{dtype}.k{k}.b{bits}_bs{block}_{kind}.{part}": v for part, v in made.items()}
if OUT == f"{ROOT}/onnx":
    save_file(codes, f"{OUT}/codes.safetensors", META)

layers = {}
for bits in (2, 4, 8):
    for block, k in ((16, 80), (32, 100), (64, 130), (128, 128), (256, 300), (0, 384)):
        for kind in ("sym", "asym"):
            n, name = 9, f"f32.k{k}.b{bits}_{f'bs{block}' if block else 'row'}_{kind}"
            x = rng.standard_normal((3, k)).astype(np.float32)
            if block:
                parts = quantize((rng.standard_normal((n, k)) * 0.05).astype(np.float32), bits, block, kind == "sym")
            else:
                parts, same = random_rows(n, k, bits, kind == "sym")
            y = multiply(x, parts if block else same, bits, block or 128)
            layers |= {f"{name}.{part}": v for part, v in (parts | {"x": x, "y": y}).items()}
save_file(layers, f"{OUT}/layers.safetensors", META)
