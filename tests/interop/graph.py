"""A directory with an ONNX model as tensors and configs, in checkpoint.py's terms: initializers, and what the graph says beside them."""

import shutil
from pathlib import Path

import onnx
import torch
from onnx import helper, numpy_helper

FILE = "model.onnx"


def model(directory):
    return onnx.load(Path(directory) / FILE)


def tensors(directory):
    return {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in model(directory).graph.initializer}


def node(made):
    attributes = {a.name: helper.get_attribute_value(a) for a in made.attribute}
    return {"type": [made.domain, made.op_type], "name": made.name, "inputs": dict(enumerate(made.input)), "attributes": attributes}


def configs(directory):
    """Nodes by their output, and the versions of operators."""
    made = model(directory)
    nodes = {f"node of {n.output[0]}": node(n) for n in made.graph.node}
    return {FILE: nodes | {"opsets": sorted([o.domain, o.version] for o in made.opset_import), "ir_version": made.ir_version}}


def write(target, source, contents, blocks):
    """A copy of `source` with other values in its initializers; `blocks` is for checkpoints."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    made = model(target)
    for initializer in made.graph.initializer:
        initializer.CopyFrom(numpy_helper.from_array(contents[initializer.name].numpy(), initializer.name))
    save(made, target)


def save(made, directory):
    """With external data, in a file beside the model."""
    for file in Path(directory).glob("model.onnx*"):
        file.unlink()
    onnx.save(made, Path(directory) / FILE, save_as_external_data=True, all_tensors_to_one_file=True, location=f"{FILE}_data", size_threshold=256)
