"""AWQ checkpoints (gemm) by round-to-nearest: autoawq's formula for scale and zero, gptqmodel's packing and decoding.

autoawq itself ended before this torch; its `pseudo_quantize_tensor` is spelled out here.
"""

from importlib.metadata import version

import torch
from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear
from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm
from transformers import AwqConfig

import checkpoint
import loaders
from formats.gptq import split

LIBRARY = ("gptqmodel", version("gptqmodel"))
SERVED = "float16"
MODELS = ("llama", "llama-odd", "qwen2", "qwen3-moe")
GROUPS = {"awq-4bit": 128, "awq-4bit-g64": 64, "awq-4bit-g32": 32}
SPECS = tuple(GROUPS)


def quantized(weight, group):
    half = weight.half().reshape(-1, group)
    high, low = half.amax(1, keepdim=True), half.amin(1, keepdim=True)
    scale = (high - low).clamp(min=1e-5) / 15
    zero = (-torch.round(low / scale)).clamp_(0, 15)
    rounded = (torch.clamp(torch.round(half / scale) + zero, 0, 15) - zero) * scale
    rows, columns = weight.shape
    linear = torch.nn.Linear(columns, rows, bias=False)
    linear.weight.data = rounded.reshape(rows, columns)
    made = AwqTorchLinear(bits=4, group_size=group, sym=False, desc_act=False, in_features=columns, out_features=rows, bias=False)
    made.pack(linear, scale.reshape(rows, -1), zero.reshape(rows, -1))
    return {part: getattr(made, part) for part in ("qweight", "qzeros", "scales")}


def write(spec, model, source, target):
    group = GROUPS[spec]
    contents, _, dense = split(source, lambda w: w.shape[1] % group == 0 and w.shape[0] % 8 == 0, lambda w: quantized(w, group))
    listed = [module for module in dense if ".layers." in module]
    block = {
        "bits": 4, "group_size": group, "modules_to_not_convert": [*listed, "lm_head"] if listed else None, "quant_method": "awq",
        "version": "gemm", "zero_point": True,
    }
    checkpoint.write(target, source, contents, {"": block})


def decode(spec, directory):
    """In f32, where the product of a code and an f16 scale is exact."""
    contents = checkpoint.tensors(directory)
    decoded = {}
    for module in (n.removesuffix(".qweight") for n in contents if n.endswith(".qweight")):
        weight, zeros, scales = (contents[f"{module}.{part}"] for part in ("qweight", "qzeros", "scales"))
        decoded[f"{module}.weight"] = dequantize_gemm(weight, zeros, scales.float(), 4, GROUPS[spec]).T.contiguous()
    return decoded


def load(spec, model, directory):
    """The kernel that is plain torch keeps the packed words, so that they can be decoded."""
    loaded = loaders.causal(directory, dtype=torch.float16, quantization_config=AwqConfig(bits=4, backend="torch_awq"))
    packed = {name: part for name, part in loaded.named_modules() if hasattr(part, "qweight")}
    weights = {n: t for n, t in loaded.state_dict().items() if n.rpartition(".")[0] not in packed or n.endswith(".bias")}
    for name, part in packed.items():
        weights[f"{name}.weight"] = dequantize_gemm(part.qweight, part.qzeros, part.scales, 4, GROUPS[spec]).T
    return loaders.Loaded(weights, loaders.logits(loaded))


LOADERS = {"transformers": load}


def bound(spec, label):
    """Weights and activations are f16 here and bf16 in the dense view."""
    return 0.05
