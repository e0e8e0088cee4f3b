"""GPTQ by transformers' `from_pretrained`, which imports gptqmodel itself when it needs it: nothing here does."""

import torch
from transformers import GPTQConfig

import loaders


def held(model):
    """The weights of a loaded model, decoded by the layers that hold them."""
    packed = {name: part for name, part in model.named_modules() if hasattr(part, "qweight")}
    weights = {n: t for n, t in model.state_dict().items() if n.rpartition(".")[0] not in packed or n.endswith(".bias")}
    return weights | {f"{name}.weight": part.dequantize_weight().T.contiguous() for name, part in packed.items()}


def load(bits, directory):
    loaded = loaders.causal(directory, dtype=torch.float16, quantization_config=GPTQConfig(bits=int(bits), backend="gptq_torch"))
    return loaders.Loaded(held(loaded), loaders.logits(loaded))
