"""Golden bytes of bitsandbytes 0.50.2 and of transformers 5.23's fp8 quantizer, on a CPU.

    python scripts/golden/bnb_fp8.py tests/golden      with torch 2.15, bitsandbytes, transformers, safetensors

codes   for every dtype, `<input>.<dtype>.<scheme><suffix>`: the 4-bit schemes (dq: with double quantization) as
        `QuantState.as_dict(packed=True)` gives them, int8 as `Int8Params` does. Inputs: finite and edge (the rows of
        ../mlx/input_*), and `f<R>x<C>` and `e<R>x<C>`, the first R * C elements of them as a matrix
decoded `nf4-dq`: what `dequantize_4bit` makes of finite.bf16.nf4-dq
fp8     `<input>.<dtype>.weight` and `.weight_scale_inv`: finite (its rows, then its rows backwards), and
        `edge<row>` (128 rows of zeros but for the first one, which is that row of edge, and the second one, which
        is row 30 of finite; 128 columns of each, those in which the odd elements are)
means   JSON: how many numbers, and the bits of torch's mean of them on one thread; number i is the i-th state of the
        generator x' = x * 6364136223846793005 + 1442695040888963407 from 7 on, `(x' >> 40) / 2^24`
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import bitsandbytes.functional as F
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.finegrained_fp8 import Fp8Quantize

MLX = Path(__file__).resolve().parents[2] / "tests" / "golden" / "mlx"
COUNTS = [*range(1, 70), 127, 128, 255, 511, 512, 513, 1000, 1023, 1024, 4095, 4099, 8192, 32767, 32768, 100003, 524288,
          786437, 16777216, 16777219, 33554432, 33800037]


def four_bit(weight, kind, double):
    codes, state = F.quantize_4bit(weight, blocksize=64, quant_type=kind, compress_statistics=double)
    parts = {f".weight.{name}": part for name, part in state.as_dict(packed=True).items()}
    return {".weight": codes, **parts}


def int8(weight):
    codes, magnitudes, _ = F.int8_vectorwise_quant(weight.to(torch.float16))
    return {".weight": codes, ".SCB": magnitudes}


def codes(inputs):
    made = {}
    for name, weight in inputs.items():
        for kind in ("nf4", "fp4"):
            for double in (False, True):
                parts = four_bit(weight, kind, double)
                made |= {f"{name}.{kind}{'-dq' if double else ''}{suffix}": p for suffix, p in parts.items()}
        made |= {f"{name}.int8{suffix}": part for suffix, part in int8(weight).items()}
    return {name: part.clone().contiguous() for name, part in made.items()}


def fp8(inputs):
    config = SimpleNamespace(weight_block_size=[128, 128], scale_fmt="float")
    quantizer = Fp8Quantize(SimpleNamespace(quantization_config=config))
    return {n: p.contiguous() for name, w in inputs.items() for n, p in quantizer.convert({f"{name}.weight": w}).items()}


def tile(finite, row):
    start = 128 if row[:128].isfinite().all() else 0
    zeros = torch.zeros(126, 128, dtype=row.dtype)
    return torch.cat([row[None, start : start + 128], finite[30:31, :128], zeros])


def means():
    state, n = np.uint64(7), max(COUNTS)
    states = np.empty(n, np.uint64)
    for i in range(4096):
        state = np.uint64((int(state) * 6364136223846793005 + 1442695040888963407) % 2**64)
        states[i] = state
    # From 4096 steps at once: x -> a x + c composed with itself.
    a, c = 6364136223846793005, 1442695040888963407
    for _ in range(12):
        a, c = a * a % 2**64, (a * c + c) % 2**64
    for i in range(4096, n, 4096):
        end = min(i + 4096, n)
        states[i:end] = states[i - 4096 : end - 4096] * np.uint64(a) + np.uint64(c)
    numbers = torch.tensor((states >> np.uint64(40)).astype(np.float32) / np.float32(2**24))
    torch.set_num_threads(1)
    return [[n, int(numbers[:n].mean().numpy().view(np.uint32))] for n in COUNTS]


def main(out):
    finite, edge = (load_file(MLX / f"input_{name}.safetensors") for name in ("finite", "edge"))
    small = [("f", finite, 1, 1), ("f", finite, 1, 63), ("f", finite, 7, 33), ("f", finite, 5, 13), ("f", finite, 3, 2),
             ("e", edge, 3, 1), ("e", edge, 1, 65), ("e", edge, 5, 103), ("e", edge, 9, 113)]
    inputs, tiles = {}, {}
    for dtype in finite:
        inputs |= {f"finite.{dtype}": finite[dtype], f"edge.{dtype}": edge[dtype]}
        inputs |= {f"{n}{r}x{c}.{dtype}": t[dtype].flatten()[: r * c].reshape(r, c) for n, t, r, c in small}
        tiles[f"finite.{dtype}"] = torch.cat([finite[dtype], finite[dtype].flip(0)])
        tiles |= {f"edge{i}.{dtype}": tile(finite[dtype], row) for i, row in enumerate(edge[dtype])}
    save_file(codes(inputs), out / "bnb" / "codes.safetensors")
    save_file(fp8(tiles), out / "fp8" / "fp8.safetensors")
    decoded = F.dequantize_4bit(*F.quantize_4bit(finite["bf16"], blocksize=64, quant_type="nf4", compress_statistics=True))
    save_file({"nf4-dq": decoded}, out / "bnb" / "decoded.safetensors")
    (out / "bnb" / "means.json").write_text(json.dumps(means()) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
