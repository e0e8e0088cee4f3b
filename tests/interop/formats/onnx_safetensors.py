"""Weights of a safetensors checkpoint in MatMulNBits' layout: what onnxruntime's quantizer makes of each, and its node reads.

Its quantizer has no bf16: it is given f32, and the scales are rounded after it.
"""

import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

import checkpoint
from formats import onnx, projections

LIBRARY = onnx.LIBRARY
MODELS = ("llama", "llama-odd", "qwen2", "qwen3-moe")
SCHEMES = onnx.SCHEMES
SPECS = tuple(SCHEMES)
LOADERS = {}
PARTS = (("weight", "_Q{}"), ("scales", "_scales"), ("zero_points", "_zero_points"))


def quantized(weight, bits, block, symmetric):
    stored = numpy_helper.from_array(weight.T.contiguous().numpy(), "w")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy"]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"], name="n")], "one", ends[:1], ends[1:], [stored])
    made = MatMulNBitsQuantizer(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), bits=bits, block_size=block, is_symmetric=symmetric)
    made.process()
    found = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in made.model.model.graph.initializer}
    return {part: found["w" + suffix.format(bits)] for part, suffix in PARTS if "w" + suffix.format(bits) in found}


def write(spec, model, source, target):
    contents = checkpoint.tensors(source)
    for name in projections(contents):
        weight = contents.pop(name)
        made = quantized(weight.float(), *SCHEMES[spec])
        made["scales"] = made["scales"].to(weight.dtype)
        contents |= {name.removesuffix("weight") + part: tensor for part, tensor in made.items()}
    checkpoint.write(target, source, contents, {})


def decode(spec, directory):
    """By the node, in f32: its scales are those of the file, which f32 holds exactly."""
    bits, block, _ = SCHEMES[spec]
    contents = checkpoint.tensors(directory)
    decoded = {}
    for module in (name.removesuffix(".scales") for name in contents if name.endswith(".scales")):
        inputs = {part: contents[f"{module}.{part}"] for part, _ in PARTS if f"{module}.{part}" in contents}
        inputs["scales"] = inputs["scales"].float()
        n, blocks, _ = inputs["weight"].shape
        inner = columns(module, directory, blocks * block)
        node = helper.make_node("MatMulNBits", ["x", *inputs], ["y"], domain="com.microsoft", K=inner, N=n, bits=bits, block_size=block)
        inputs["scales"] = inputs["scales"].reshape(-1)
        decoded[f"{module}.weight"] = onnx.product(node, inputs).T.contiguous()
    return decoded


def columns(module, directory, most):
    """K of a layer, which the codes have rounded up to whole blocks: the models' sizes say it."""
    config = checkpoint.configs(directory)["config.json"]
    if module.endswith("down_proj"):
        return config["moe_intermediate_size"] if ".experts." in module else config["intermediate_size"]
    return most


def same_values(name, left, right):
    """The node's sums lose the sign of a zero."""
    return left.dtype == right.dtype and torch.equal(left, right)
