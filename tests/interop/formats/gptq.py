"""GPTQ checkpoints by round-to-nearest: parameters, packing and decoding are gptqmodel's.

The config block is what its loaders need and no more: gptqmodel itself would add its version and the options of a calibration.
"""

from importlib.metadata import version

import torch
from gptqmodel import BACKEND, GPTQModel
from gptqmodel.nn_modules.qlinear.torch import TorchLinear
from gptqmodel.quantization.config import FORMAT, QuantizeConfig
from gptqmodel.quantization.quantizer import Quantizer
from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module, convert_gptq_v2_to_v1_format_module

import alone
import checkpoint
import loaders
from formats.gptq_transformers import held

LIBRARY = ("gptqmodel", version("gptqmodel"))
SERVED = "float16"
MODELS = ("llama", "llama-odd", "qwen2", "qwen3-moe")
# spec -> bits, group, symmetric, whether zero points are stored less one
SCHEMES = {
    f"gptq-{bits}bit{'' if symmetric else '-asym'}{'' if less_one else '-v2'}": (bits, 128, symmetric, less_one)
    for bits in (4, 8, 3, 2)
    for symmetric in (True, False)
    for less_one in (True, False)
} | {"gptq-4bit-g64": (4, 64, True, True), "gptq-4bit-g32": (4, 32, True, True), "gptq-3bit-g32-asym": (3, 32, False, True)}
SPECS = tuple(SCHEMES)
PARTS = ("qweight", "qzeros", "scales", "g_idx")


def settings(spec):
    bits, group, symmetric, less_one = SCHEMES[spec]
    form = FORMAT.GPTQ if less_one else FORMAT.GPTQ_V2
    return QuantizeConfig(bits=bits, group_size=group, sym=symmetric, desc_act=False, mse=0.0, format=form)


def layer(config, rows, columns):
    return TorchLinear(
        bits=config.bits, group_size=config.group_size, sym=config.sym, desc_act=False, in_features=columns, out_features=rows, bias=False,
    )


def holds(weight, config):
    """Whole groups along K; whole words along both."""
    return weight.shape[1] % config.group_size == 0 and weight.shape[0] % 32 == 0


def quantized(weight, config):
    """What gptqmodel stores for one matrix."""
    quantizer = Quantizer(config)
    quantizer.configure(perchannel=True)
    scales, zeros, rounded = [], [], []
    for group in weight.float().split(config.group_size, dim=1):
        quantizer.find_params(group, weight=True)
        scales.append(quantizer.scale.clone())
        zeros.append(quantizer.zero.clone())
        rounded.append(quantizer.quantize(group))
    made = layer(config, *weight.shape)
    linear = torch.nn.Linear(*reversed(weight.shape), bias=False)
    linear.weight.data = torch.cat(rounded, 1)
    made.pack_original(linear, torch.cat(scales, 1), torch.cat(zeros, 1), torch.arange(weight.shape[1], dtype=torch.int32) // config.group_size)
    if config.format == FORMAT.GPTQ:
        convert_gptq_v2_to_v1_format_module(made, config)
    return {part: getattr(made, part) for part in PARTS}


def split(source, holding, make):
    """The tensors of a checkpoint whose fitting projections `make` quantizes; the modules quantized, and the matrices left dense."""
    contents, done, dense = {}, [], []
    for name, tensor in checkpoint.tensors(source).items():
        module = name.removesuffix(".weight")
        if name.endswith("_proj.weight") and holding(tensor):
            contents |= {f"{module}.{part}": value for part, value in make(tensor).items()}
            done.append(module)
        else:
            contents[name] = tensor
            if tensor.ndim == 2 and "embed_tokens" not in name:
                dense.append(module)
    return contents, done, dense


def write(spec, model, source, target):
    config = settings(spec)
    contents, done, dense = split(source, lambda w: holds(w, config), lambda w: quantized(w, config))
    block = {
        "bits": config.bits, "group_size": config.group_size, "desc_act": False, "sym": config.sym, "lm_head": False,
        "quant_method": "gptq", "checkpoint_format": config.format.value,
    }
    inside = [module for module in dense if ".layers." in module]
    if inside:
        block["modules_in_block_to_quantize"] = [done]
        block["dynamic"] = {f"-:^{module.replace('.', chr(92) + '.')}$": {} for module in inside}
    checkpoint.write(target, source, contents, {"": block})


def decode(spec, directory):
    """In f32, where the product of a code and an f16 scale is exact."""
    config, contents = settings(spec), checkpoint.tensors(directory)
    decoded = {}
    for module in (n.removesuffix(".qweight") for n in contents if n.endswith(".qweight")):
        parts = {part: contents[f"{module}.{part}"] for part in PARTS}
        made = layer(config, parts["scales"].shape[1], parts["g_idx"].shape[0])
        made.load_state_dict(parts)
        if config.format == FORMAT.GPTQ:
            convert_gptq_v1_to_v2_format_module(made, config.bits, torch.int32)
        made.scales = made.scales.float()
        decoded[f"{module}.weight"] = made.dequantize_weight().T.contiguous()
    return decoded


def by_transformers(spec, model, directory):
    """In a process of its own, since gptqmodel patches transformers; where it is asked for experts, each time in a new one."""
    return alone.call("formats.gptq_transformers", "load", SCHEMES[spec][0], directory, fresh="moe" in model)


def by_gptqmodel(spec, model, directory):
    loaded = GPTQModel.load(str(directory), backend=BACKEND.GPTQ_TORCH, device="cpu", dtype=torch.float16).model
    return loaders.Loaded(held(loaded), loaders.logits(loaded))


LOADERS = {"transformers": by_transformers, "gptqmodel": by_gptqmodel}


def bound(spec, label):
    """Weights and activations are f16 here and bf16 in the dense view."""
    return 0.05
