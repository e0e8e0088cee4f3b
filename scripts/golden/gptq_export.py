"""Compares every tensor of an exported gptq or awq directory with what gptq_awq.py makes of the source.

    quantfs export SOURCE DIR --spec gptq-4bit-g64-asym-v2
    python scripts/golden/gptq_export.py SOURCE DIR gptq-4bit-g64-asym-v2

The spec is needed in full but for the defaults (`gptq` and `awq` alone will do). No rule may have been given.
"""

import os
import sys

import numpy as np

import gptq_awq


def tensors(directory):
    out = {}
    for file in sorted(os.listdir(directory)):
        if file.endswith(".safetensors"):
            out |= gptq_awq.read(f"{directory}/{file}")[0]
    return out


def parts(spec, weight):
    words = spec.split("-")
    group = next((int(word[1:]) for word in words if word[0] == "g" and word[1:].isdigit()), 128)
    if words[0] == "awq":
        return gptq_awq.awq(weight, group)
    bits = next((int(word[0]) for word in words if word.endswith("bit")), 4)
    made, _ = gptq_awq.gptq(weight, bits, group, "asym" not in words, "v2" not in words)
    return made | {"g_idx": (np.arange(weight.shape[1]) // group).astype(np.int32)}


def main(source, directory, spec):
    source, left = tensors(source), tensors(directory)
    quantized = 0
    for name, weight in source.items():
        stem = name.removesuffix(".weight")
        if f"{stem}.qweight" in left:
            quantized += 1
            for part, expected in parts(spec, weight).items():
                gptq_awq.same(f"{stem}.{part}", left.pop(f"{stem}.{part}"), expected)
        else:
            gptq_awq.same(name, left.pop(name), weight)
    assert quantized and not left, f"{quantized} weights are quantized, and nobody asked for {sorted(left)}"
    print(f"{directory}: {quantized} quantized weights and {len(source) - quantized} dense tensors are the same")


if __name__ == "__main__":
    main(*sys.argv[1:])
