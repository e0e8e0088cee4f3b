"""Faults planted in what stands in for the mounts, to see each check fail."""

import json

import torch
from safetensors.torch import load_file, save_file

KINDS = ("byte", "name", "shape", "config", "ignore", "dense")


def spoil(directory, change):
    file = sorted(directory.rglob("*.safetensors"))[0]
    contents = load_file(file)
    change(contents)
    save_file(contents, file, metadata={"format": "pt"})


def flip(contents, byte=0, bit=0):
    """One bit of one byte of the largest projection: of a code, or of a dense value, whose exponent is in byte 1."""
    name = max((n for n in contents if "_proj." in n), key=lambda n: contents[n].nbytes)
    spoiled = contents[name].contiguous().clone()
    spoiled.reshape(-1).view(torch.uint8)[byte] ^= 1 << bit
    contents[name] = spoiled


def rename(contents):
    name = sorted(n for n in contents if "_proj." in n)[0]
    contents[f"{name}_"] = contents.pop(name)


def turn(contents):
    """The largest projection's codes as if their axes were swapped."""
    name = max((n for n in contents if "_proj." in n), key=lambda n: contents[n].nbytes)
    contents[name] = contents[name].reshape(*reversed(contents[name].shape))


# Where configs list what is dense: the output layer, and what does not fit.
LISTS = ("ignore", "modules_to_not_convert", "dynamic")


def listed(directory):
    """A layer that is quantized, listed as dense."""
    path = directory / "config.json"
    made = json.loads(path.read_text())
    block = made["quantization_config"]
    key = next((key for key in LISTS if block.get(key) is not None), "dynamic")
    layer = "model.layers.0.self_attn.o_proj"
    block[key] = block.get(key, {}) | {f"-:^{layer}$": {}} if key == "dynamic" else [*block[key], layer]
    path.write_text(json.dumps(made))


def config(directory):
    path = directory / "config.json"
    made = json.loads(path.read_text())
    made["quantization_config"]["quant_method"] += "-"
    path.write_text(json.dumps(made))


def plant(fault, packed, unpacked):
    match fault:
        case "byte":
            spoil(packed, flip)
        case "name":
            spoil(packed, rename)
        case "shape":
            spoil(packed, turn)
        case "ignore":
            listed(packed)
        case "config":
            config(packed)
        case "dense":
            spoil(unpacked, lambda contents: flip(contents, byte=1, bit=3))
