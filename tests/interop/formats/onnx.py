"""ONNX models whose products are MatMulNBits nodes, as onnxruntime's quantizer makes and its session runs them."""

import logging
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

import graph
import loaders

STORE = graph
LIBRARY = ("onnxruntime", version("onnxruntime"))
MODELS = ("onnx-layers",)
# Values of a model's graph are not shown dense.
DENSE = False
# spec -> bits, block, symmetric
SCHEMES = {
    "onnx-4bit-g32": (4, 32, True),
    "onnx-4bit-g32-asym": (4, 32, False),
    "onnx-4bit-g128": (4, 128, True),
    "onnx-8bit-g32": (8, 32, True),
    "onnx-8bit-g128-asym": (8, 128, False),
}
SPECS = tuple(SCHEMES)


def write(spec, model, source, target):
    bits, block, symmetric = SCHEMES[spec]
    logging.getLogger("onnxruntime.quantization").setLevel(logging.ERROR)
    quantizer = MatMulNBitsQuantizer(graph.model(source), bits=bits, block_size=block, is_symmetric=symmetric)
    quantizer.process()
    Path(target).mkdir(parents=True)
    graph.save(quantizer.model.model, target)


def session(model):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options)


def product(node, contents):
    """The matrix that one node multiplies by: its product with the identity, which is exact."""
    k = helper.get_node_attr_value(node, "K")
    types = {torch.uint8: TensorProto.UINT8, torch.float32: TensorProto.FLOAT}
    stored = [contents[name] for name in node.input[1:]]
    initializers = [helper.make_tensor(n, types[t.dtype], t.shape, t.numpy().tobytes(), raw=True) for n, t in zip(node.input[1:], stored)]
    float_io = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in (node.input[0], node.output[0])]
    alone = helper.make_model(
        helper.make_graph([node], "one", float_io[:1], float_io[1:], initializers), ir_version=10,
        opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)],
    )
    return torch.from_numpy(session(alone.SerializeToString()).run(None, {node.input[0]: np.eye(k, dtype=np.float32)})[0])


def decode(spec, directory):
    contents = graph.tensors(directory)
    nodes = [n for n in graph.model(directory).graph.node if n.op_type == "MatMulNBits"]
    suffix = f"_Q{SCHEMES[spec][0]}"
    return {n.input[1].removesuffix(suffix): product(n, contents) for n in nodes}


def run(directory):
    inputs = torch.randn((3, 256), generator=torch.Generator().manual_seed(7)).numpy()
    return torch.from_numpy(session(str(Path(directory) / graph.FILE)).run(None, {"x": inputs})[0])


def load(spec, model, directory):
    output = run(directory)
    return loaders.Loaded(graph.tensors(directory) | decode(spec, directory), output)


def plain(directory):
    return loaders.Loaded(graph.tensors(directory), run(directory))


LOADERS = {"onnxruntime": load}


def bound(spec, label):
    """Sums of f32 in another order."""
    return 1e-5
