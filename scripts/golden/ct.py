#!/usr/bin/env python3
"""Golden bytes of compressed-tensors that the shared vectors lack, for tests/it/ct.rs. Needs torch, compressed-tensors (CPU).

  codes.safetensors   rows of ../mlx/input_finite through widths, groups and channels: `<float>.<columns>.<spec>.<part>`.
                      Of 256 columns every third row, of 250 the rows 25..60, so that neither rows nor columns fill words
  edge.safetensors    ../mlx/input_edge through every scheme, each row as a weight of its own: NaN, infinity, magnitudes up to
                      3e38. `<float>.<row>.<spec>.<part>`
  decode.safetensors  the library's decompress of some of codes, as f32: `<float>.<columns>.<spec>`

The observer is memoryless_minmax: the library has none of its own, so minimum and maximum are taken with torch.

Usage: python scripts/golden/ct.py tests/golden/ct
"""
import sys
from importlib.metadata import version

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.format import infer_module_format
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme, preset_name_to_scheme
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam, maybe_pad_tensor_for_block_quant
from safetensors.torch import load_file, save_file

OUT = sys.argv[1]
META = {"made by": f"scripts/golden/ct.py, compressed-tensors {version('compressed-tensors')}, torch {torch.__version__}, cpu x86_64"}


def packed(spec):
    bits, group, *rest = spec.split("-")
    channel = group == "channel"
    args = QuantizationArgs(
        num_bits=int(bits.removesuffix("bit")), type="int", strategy="channel" if channel else "group",
        group_size=None if channel else int(group[1:]), symmetric=rest != ["asym"], dynamic=False,
    )
    return QuantizationScheme(targets=["Linear"], weights=args)


PRESETS = {"int8": "W8A8", "fp8-channel": "FP8_DYNAMIC", "fp8-tensor": "FP8", "fp8-b128": "FP8_BLOCK",
           "mxfp4": "MXFP4A16", "mxfp8": "MXFP8A16", "nvfp4": "NVFP4A16"}


def scheme(spec):
    return preset_name_to_scheme(PRESETS[spec], ["Linear"]) if spec in PRESETS else packed(spec)


def observed(weight, args):
    match args.strategy:
        case "tensor":
            return weight.reshape(1, 1, -1)
        case "channel":
            return weight.unsqueeze(-2).unsqueeze(0)
        case "group" | "tensor_group":
            return weight.unflatten(-1, (-1, args.group_size)).unsqueeze(0)
    high, wide = args.block_structure
    padded = maybe_pad_tensor_for_block_quant(weight, args.block_structure)
    rows, columns = padded.shape
    return padded.reshape(rows // high, high, columns // wide, wide).transpose(1, 2).flatten(-2, -1).unsqueeze(0)


def compress(weight, spec):
    made, args = scheme(spec), scheme(spec).weights
    seen = observed(weight, args)
    low, high = seen.amin(dim=(0, -1)), seen.amax(dim=(0, -1))
    whole = None
    if args.strategy == "tensor_group":
        largest = torch.max(high.max(), -low.min()).reshape(1)
        whole = generate_gparam(-largest, largest)
    scale, zero = calculate_qparams(low, high, args, global_scale=whole)
    state = {"weight": weight, "weight_scale": scale.to(weight.dtype), "weight_zero_point": zero}
    if whole is not None:
        state["weight_global_scale"] = whole
    return made, compressor(made).compress(state, made)


def compressor(made):
    return BaseCompressor.get_value_from_registry(infer_module_format(torch.nn.Linear, made).value)


def write(name, tensors):
    save_file({n: t.contiguous() for n, t in tensors.items()}, f"{OUT}/{name}.safetensors", metadata=META)


def main():
    finite, edge = load_file(f"{OUT}/../mlx/input_finite.safetensors"), load_file(f"{OUT}/../mlx/input_edge.safetensors")
    codes, decoded, edges = {}, {}, {}
    grouped = [f"{b}bit-{g}" for b in (2, 5, 6, 7) for g in ("g32",)] + ["4bit-g64", "8bit-g64-asym", "3bit-g32-asym", "5bit-g128-asym"]
    channels = ["4bit-channel", "3bit-channel-asym", "7bit-channel", "8bit-channel-asym", "int8", "fp8-channel", "fp8-tensor"]
    for float_, rows in finite.items():
        cases = [(256, spec, rows[::3]) for spec in grouped + channels] + [(250, spec, rows[25:61, :250]) for spec in channels]
        for columns, spec, weight in cases:
            made, state = compress(weight.contiguous(), spec)
            codes |= {f"{float_}.{columns}.{spec}.{part}": t for part, t in state.items()}
    for float_, rows in finite.items():
        for spec in ["4bit-g128", "4bit-g64-asym", "8bit-channel-asym", *PRESETS]:
            made, state = compress(rows[25:41].contiguous(), spec)
            codes |= {f"{float_}.decode.{spec}.{part}": t for part, t in state.items()}
            decoded[f"{float_}.decode.{spec}"] = compressor(made).decompress(state, made)["weight"].float()
    for float_, rows in edge.items():
        for row in range(len(rows)):
            for spec in ["4bit-g128", "4bit-g128-asym", "8bit-channel", *PRESETS]:
                made, state = compress(rows[row : row + 1].clone(), spec)
                edges |= {f"{float_}.{row}.{spec}.{part}": t for part, t in state.items()}
    for name, tensors in {"codes": codes, "decode": decoded, "edge": edges}.items():
        write(name, {n: t for n, t in tensors.items() if not n.endswith("weight_shape")})


main()
