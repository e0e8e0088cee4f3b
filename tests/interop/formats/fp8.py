"""The 128x128 block FP8 of DeepSeek and Qwen, as transformers' FineGrainedFP8 quantizes it.

Its from_pretrained quantizes on GPUs only, and it leaves a weight that its blocks do not divide beside a scale of random memory; so its
operation is called a tensor at a time, and such a weight stays dense and is listed. Experts have a scale each, as in published checkpoints:
transformers' save_pretrained stacks the scales of experts, and cannot read them back.
"""

import json
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import torch
from transformers import FineGrainedFP8Config
from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize

import checkpoint
import loaders
from formats import pipelines

LIBRARY = ("transformers", version("transformers"))
SERVED = "bfloat16"
MODELS = ("llama", "llama-odd", "qwen2", "qwen3-moe", "sd3")
SPECS = ("fp8",)


def write(spec, model, source, target):
    quantizer = Fp8Quantize(SimpleNamespace(quantization_config=FineGrainedFP8Config()))
    if model == "sd3":
        return write_pipeline(quantizer, source, target)
    contents, dense = {}, []
    for name, tensor in checkpoint.tensors(source).items():
        made = quantizer._quantize_one(name, tensor) if name.endswith("_proj.weight") else {name: tensor}
        contents |= made
        if len(made) == 1 and tensor.ndim == 2 and "embed_tokens" not in name:
            dense.append(name.removesuffix(".weight"))
    # A list replaces the default: an output layer that shares the embedding's weight is one of the model's all the same.
    dense += ["lm_head"] * ("lm_head" not in dense)
    checkpoint.write(target, source, contents, {"": block(dense)})


def block(dense):
    return {"activation_scheme": "dynamic", "modules_to_not_convert": dense, "quant_method": "fp8", "weight_block_size": [128, 128]}


def write_pipeline(quantizer, source, target):
    whole = lambda weight: all(size % 128 == 0 for size in weight.shape)  # noqa: E731
    made = lambda name, weights: quantizer._quantize_one(f"{name}.weight", weights[name])  # noqa: E731
    for component, dense in pipelines.write(source, target, whole, made).items():
        path = Path(target) / component / "config.json"
        config = json.loads(path.read_text()) | {"quantization_config": block(dense)}
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def decode(spec, directory):
    contents = checkpoint.tensors(directory)
    decoder = Fp8Dequantize(None)
    pairs = {n: contents[f"{n}_scale_inv"] for n in contents if f"{n}_scale_inv" in contents}
    return {name: decoder._dequantize_one(contents[name], scale, torch.bfloat16) for name, scale in pairs.items()}


def load(spec, model, directory):
    """Without a GPU, transformers decodes while it loads; diffusers has no quantizer for it."""
    if model == "sd3":
        return pipelines.text_encoder(directory)
    return loaders.plain(directory)


LOADERS = {"transformers": load}


def bound(spec, label):
    return 0.0
