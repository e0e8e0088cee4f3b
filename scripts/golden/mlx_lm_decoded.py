#!/usr/bin/env python3
"""Decoded weights of tests/golden/mlx_lm, for tests/it/runtime.rs: what mlx.dequantize makes of every quantized module of
the directories that mlx_lm wrote. Needs mlx (CPU), numpy.

Of each module: shape, the first values, and the sum over i of (2i + 1) * bits(value i) mod 2^64, values as f32 in row order.

Usage: python scripts/golden/mlx_lm_decoded.py tests/golden/mlx_lm
"""
import json, sys
from pathlib import Path
import mlx.core as mx, numpy as np

mx.set_default_device(mx.cpu)
ROOT = Path(sys.argv[1])


def decoded(directory):
    block = json.loads((directory / "config.json").read_text())["quantization"]
    top = {k: block[k] for k in ("group_size", "bits", "mode")}
    tensors = mx.load(str(directory / "model.safetensors"))
    for stem in sorted(n.removesuffix(".scales") for n in tensors if n.endswith(".scales")):
        parts = [tensors[f"{stem}.weight"], tensors[f"{stem}.scales"], tensors.get(f"{stem}.biases")]
        values = np.array(mx.dequantize(*parts, **block.get(stem, top)).astype(mx.float32)).reshape(-1)
        bits = values.view(np.uint32).astype(np.uint64)
        total = int(np.sum(bits * (2 * np.arange(len(bits), dtype=np.uint64) + 1), dtype=np.uint64))
        shape = list(mx.dequantize(*parts, **block.get(stem, top)).shape)
        yield stem, {"shape": shape, "first": [float(v) for v in values[:4]], "sum": str(total)}


made = {d.name: dict(decoded(d)) for d in sorted(ROOT.iterdir()) if (d / "model.safetensors.index.json").exists()}
lines = [f"  {json.dumps(d)}: {{\n" + ",\n".join(f"   {json.dumps(s)}: {json.dumps(v)}" for s, v in m.items()) + "\n  }" for d, m in made.items()]
(ROOT / "decoded.json").write_text(f'{{\n "mlx": "{mx.__version__}",\n "directories": {{\n' + ",\n".join(lines) + "\n }\n}\n")
