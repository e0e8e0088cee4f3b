"""Symmetric int8 by torch: one scale, max|w| / 127, for a tensor or for each of its rows. quantfs's own runtime reads it and no other loader does."""

from importlib.metadata import version

import torch

import checkpoint
from formats import projections

LIBRARY = ("torch", version("torch"))
MODELS = ("llama", "llama-odd", "qwen2", "qwen3-moe")
SPECS = ("sym-int8-tensor", "sym-int8-row")
LOADERS = {}


def write(spec, model, source, target):
    contents = checkpoint.tensors(source)
    for name in projections(contents):
        weight = contents.pop(name).float()
        by_row = spec.endswith("row")
        scale = (weight.abs().amax(1, keepdim=True) if by_row else weight.abs().max().reshape(1)) / 127
        contents[name] = torch.round(weight / scale).clamp(-127, 127).to(torch.int8)
        contents[name.removesuffix("weight") + ("scales" if by_row else "scale")] = scale
    checkpoint.write(target, source, contents, {})


def decode(spec, directory):
    contents = checkpoint.tensors(directory)
    scale = {name: contents.get(name.removesuffix("weight") + "scales", contents.get(name.removesuffix("weight") + "scale")) for name in contents}
    return {name: tensor.float() * scale[name] for name, tensor in contents.items() if tensor.dtype == torch.int8}
