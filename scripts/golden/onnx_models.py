#!/usr/bin/env python3
"""ONNX models with external data, and what onnxruntime's MatMulNBitsQuantizer makes of them, for tests/it/onnx.rs.
Needs onnxruntime, onnx, onnx_ir, ml_dtypes, numpy.

  <case>/model.onnx and its data files                                   the source
  <case>/<bits>-<block>-<sym|asym>/model.onnx and files of the same names  the quantizer's model; what was inline still is

Usage: python scripts/golden/onnx_models.py tests/golden/onnx/models
"""
import logging
import shutil
import sys
from pathlib import Path
import ml_dtypes, numpy as np, onnx, onnxruntime
from onnx import TensorProto, external_data_helper as external, helper, numpy_helper
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

logging.disable(logging.INFO)
TYPES = {"f32": (np.float32, TensorProto.FLOAT), "f16": (np.float16, TensorProto.FLOAT16), "bf16": (ml_dtypes.bfloat16, TensorProto.BFLOAT16)}
META = f"scripts/golden/onnx_models.py, onnxruntime {onnxruntime.__version__}, onnx {onnx.__version__}, cpu x86_64"


def tensor(name, values, location=None):
    made = numpy_helper.from_array(np.ascontiguousarray(values), name)
    if location:
        external.set_external_data(made, location)
    return made


def plain(dtype, onnx_type, rng, width=1):
    """A few layers as exporters write them, so many times as wide: all products are quantized."""
    data = "model.onnx_data"
    w = lambda k, n: (rng.standard_normal((k, n)) * 0.05).astype(dtype)
    n, m = 64 * width, 80 * width
    initializers = [
        tensor("embed", w(16, n), data),
        tensor("model.layers.0.up_proj.weight", w(n, m), data),
        tensor("small", np.array([2], np.int64)),
        tensor("model.layers.0.norm", w(1, m)[0], data),
        tensor("onnx::MatMul_77", w(m, n), data),
        tensor("square", w(n, n), data),
    ]
    node = helper.make_node
    nodes = [
        node("Gather", ["embed", "ids"], ["h0"], name="/embed"),
        node("MatMul", ["h0", "model.layers.0.up_proj.weight"], ["h1"], name="/up/MatMul"),
        node("Mul", ["h1", "model.layers.0.norm"], ["h2"], name="/norm"),
        node("MatMul", ["h2", "onnx::MatMul_77"], ["square_in"], name="/down/MatMul"),
        node("MatMul", ["square_in", "square"], ["h4"], doc_string="without a name"),
        node("Unsqueeze", ["h4", "small"], ["h5"], name="/unsqueeze"),
        node("Squeeze", ["h5", "small"], ["logits"], name="/squeeze"),
    ]
    inputs = [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "sequence"])]
    outputs = [helper.make_tensor_value_info("logits", onnx_type, ["batch", "sequence", n])]
    return nodes, inputs, outputs, initializers, {"ids": np.array([[1, 5, 15], [0, 2, 7]])}


def odd(dtype, onnx_type, rng):
    """What is not a plain product, in two data files of which one is below the model's directory."""
    w = lambda *shape: (rng.standard_normal(shape) * 0.05).astype(dtype)
    one, two = "one.data", "sub/two.data"
    initializers = [
        tensor("tail", w(40, 24), one),  # K is no multiple of a block
        tensor("left", w(8, 8), two),  # a first factor
        tensor("kept", w(24, 24), two),  # a factor, also in a body
        tensor("both", w(24, 24), one),  # a factor that something else needs, too
        tensor("listed", w(24, 32), one),  # declared as an input, as old models do
        tensor("gemm", w(16, 32), one),
        tensor("bias", w(16), two),
        tensor("stack", w(2, 16, 16), one),  # 3-D
        tensor("inline", w(16, 8)),  # a factor that lies in the model
        tensor("codes", rng.integers(-5, 5, (3, 5), dtype=np.int8), two),
    ]
    node = helper.make_node
    body = lambda name, extra: helper.make_graph(
        [node("MatMul", ["h1", "kept" if extra is None else f"{name}_own"], [f"{name}_out"], name=f"/{name}/MatMul")],
        name, [], [helper.make_tensor_value_info(f"{name}_out", onnx_type, None)], [] if extra is None else [extra])
    constant = tensor("", w(8, 24), two)
    nodes = [
        node("Constant", [], ["constant"], value=constant, name="/constant"),
        node("MatMul", ["x", "tail"], ["h0"], name="/tail/MatMul"),
        node("MatMul", ["h0", "kept"], ["h1"], name="/kept/MatMul"),
        node("If", ["flag"], ["h2"], name="/if", then_branch=body("then", None), else_branch=body("else", tensor("else_own", w(24, 24), one))),
        node("MatMul", ["h2", "both"], ["h2b"], name="/both/MatMul"),
        node("ReduceMean", ["both"], ["both_row"], name="/both/ReduceMean", axes=[0], keepdims=0),
        node("Add", ["h2b", "both_row"], ["h2c"], name="/both/Add"),
        node("MatMul", ["left", "h2c"], ["h3"], name="/left/MatMul"),
        node("Add", ["h3", "constant"], ["h4"], name="/add"),
        node("MatMul", ["h4", "listed"], ["h5"], name="/listed/MatMul"),
        node("Gemm", ["h5", "gemm", "bias"], ["h6"], name="/gemm", transB=1),
        node("MatMul", ["h6", "stack"], ["h7"], name="/stack/MatMul"),
        node("MatMul", ["h7", "inline"], ["y"], name="/inline/MatMul"),
        node("Cast", ["codes"], ["z"], name="/codes", to=onnx_type),
    ]
    value = lambda name, shape: helper.make_tensor_value_info(name, onnx_type, shape)
    inputs = [value("x", [8, 40]), helper.make_tensor_value_info("flag", TensorProto.BOOL, []), value("listed", [24, 32])]
    outputs = [value("y", [2, 8, 8]), value("z", [3, 5])]
    return nodes, inputs, outputs, initializers, {"x": rng.standard_normal((8, 40)).astype(dtype), "flag": np.array(True)}


def every_tensor(model):
    """Initializers and constants of the graph and of the bodies in it."""
    def within(graph):
        yield from graph.initializer
        for attribute in (a for n in graph.node for a in n.attribute):
            yield from [attribute.t] if attribute.type == attribute.TENSOR else []
            yield from within(attribute.g) if attribute.type == attribute.GRAPH else []
    return list(within(model.graph))


def save(model, directory):
    shutil.rmtree(directory, ignore_errors=True)
    for t in every_tensor(model):
        if external.uses_external_data(t):
            (directory / external.ExternalDataInfo(t).location).parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, directory / "model.onnx")


def source(directory, float_name, make, seed, **options):
    """Writes a model; the feeds of a run, and where its tensors lie by name, `None` for those in the model itself."""
    dtype, onnx_type = TYPES[float_name]
    nodes, inputs, outputs, initializers, feeds = make(dtype, onnx_type, np.random.default_rng(seed), **options)
    graph = helper.make_graph(nodes, "graph", inputs, outputs, initializers, doc_string="a test")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], producer_name="quantfs golden", ir_version=8)
    save(model, directory)
    stored = every_tensor(onnx.load(directory / "model.onnx", load_external_data=False))
    return feeds, {t.name: external.ExternalDataInfo(t).location if external.uses_external_data(t) else None for t in stored}


def quantize(directory, target, files, bits, block, symmetric):
    """What the quantizer makes of a model; what is new lies beside the weight that it was made of."""
    quantizer = MatMulNBitsQuantizer(
        onnx.load(directory / "model.onnx"), bits=bits, block_size=block, is_symmetric=symmetric, nodes_to_exclude=["/inline/MatMul"])
    quantizer.process()
    made = quantizer.model.model
    for t in every_tensor(made):
        names = [t.name, *(t.name.removesuffix(suffix) for suffix in (f"_Q{bits}", "_scales", "_zero_points"))]
        location = files[next(name for name in names if name in files)]
        if location:
            external.set_external_data(t, location)
    save(made, target)


if __name__ == "__main__":
    OUT = Path(sys.argv[1])
    PLAIN = {"f32": [(4, 32, True), (8, 16, True), (2, 64, False)], "f16": [(4, 32, False)], "bf16": [(4, 32, True), (4, 128, False)]}
    CASES = {f"plain-{name}": (name, plain, schemes) for name, schemes in PLAIN.items()}
    CASES["odd-f32"] = ("f32", odd, [(4, 32, True), (8, 16, False)])
    for case, (float_name, make, schemes) in CASES.items():
        _, files = source(OUT / case, float_name, make, 5)
        for bits, block, symmetric in schemes:
            quantize(OUT / case, OUT / case / f"{bits}-{block}-{'sym' if symmetric else 'asym'}", files, bits, block, symmetric)
    OUT.joinpath("PROVENANCE").write_text(f"Written by {META}. Nothing here was written by quantfs.\n")
