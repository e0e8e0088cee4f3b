"""Quantized products of onnxruntime (MatMulNBits, int8 activations), as `quantfs bench layers` measures ours.

    onnx_layers.py ROWS COLUMNS SET_BYTES TURNS THREADS INPUTS[,INPUTS...]

One input goes through a graph that holds as many matrices as no cache does (GB/s of quantized bytes); batches go
through graphs of one product, in turn (GFLOP/s). A graph holds the products and nothing else: onnxruntime runs all of
its nodes whichever outputs are asked for. A product is compared with f64 arithmetic before it is timed. One JSON
object a line.
"""
import json
import math
import sys
import time

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

TURN = 0.05  # seconds that a turn lasts at least
TOLERANCE = 0.05  # of the typical output: activations are quantized
BATCH_GRAPHS = 4  # matrices that batches go around: more than caches hold, and few enough to load fast
KINDS = [(4, 32), (4, 128), (8, 32), (8, 128)]


class Matrix:
    """Random codes and scales in the operator's layout: a weight is (code - 2^(bits-1)) * scale."""

    def __init__(self, random, rows, cols, bits, block):
        self.rows, self.cols, self.bits, self.block = rows, cols, bits, block
        self.codes = random.integers(0, 256, (rows, cols // block, block * bits // 8), dtype=np.uint8)
        self.scales = random.uniform(0.001, 0.002, (rows, cols // block)).astype(np.float32)

    def nbytes(self):
        return self.codes.nbytes + self.scales.nbytes

    def row(self, r):
        codes = self.codes[r].astype(np.int64)
        if self.bits == 4:
            codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(codes.shape[0], -1)
        return ((codes - 2 ** (self.bits - 1)) * self.scales[r].astype(np.float64)[:, None]).reshape(-1)


def session(matrices, threads):
    nodes, initializers, outputs = [], [], []
    for i, m in enumerate(matrices):
        names = [f"B{i}", f"s{i}"]
        initializers += [numpy_helper.from_array(a, n) for a, n in zip([m.codes, m.scales], names)]
        nodes.append(helper.make_node("MatMulNBits", ["A", *names], [f"Y{i}"], domain="com.microsoft", K=m.cols, N=m.rows,
                                      bits=m.bits, block_size=m.block, accuracy_level=4))
        outputs.append(helper.make_tensor_value_info(f"Y{i}", TensorProto.FLOAT, ["n", m.rows]))
    inputs = [helper.make_tensor_value_info("A", TensorProto.FLOAT, ["n", matrices[0].cols])]
    graph = helper.make_graph(nodes, "layers", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def call_of(session, x, rows):
    """A call that allocates nothing, and the first output."""
    binding, outputs = session.io_binding(), []
    binding.bind_cpu_input("A", x)
    for output in session.get_outputs():
        y = ort.OrtValue.ortvalue_from_shape_and_type([len(x), rows], np.float32)
        binding.bind_ortvalue_output(output.name, y)
        outputs.append(y)
    return lambda: session.run_with_iobinding(binding), outputs[0]


def check(case, matrix, x, y):
    last, rows = len(x) - 1, matrix.rows
    for r, i in [(0, 0), (rows // 3, last), (rows // 2, last // 2), (rows - 1, last)]:
        terms = matrix.row(r) * x[i].astype(np.float64)
        expected, size = terms.sum(), math.sqrt((terms**2).sum())
        if not abs(y[i, r] - expected) <= TOLERANCE * size:
            sys.exit(f"onnx_layers: {case}: row {r} of input {i} is {y[i, r]}, not {expected}")


def median_rate(calls, work, turns):
    """Billions of work a second. Each call is the next of the list."""
    rates, at = [], 0
    while len(rates) < turns:
        started, done, took = time.perf_counter(), 0, 0.0
        while took < TURN:
            calls[at]()
            at = (at + 1) % len(calls)
            done += work
            took = time.perf_counter() - started
        rates.append(done / took / 1e9)
    return sorted(rates)[len(rates) // 2]


def measure(matrices, turns, threads, batches, random):
    m = matrices[0]
    case = f"MatMulNBits {m.bits} bit block {m.block}"
    sessions = {True: [], False: []}
    if 1 in batches:
        sessions[True] = [session(matrices, threads)]
    if any(n > 1 for n in batches):
        sessions[False] = [session([matrix], threads) for matrix in matrices[:BATCH_GRAPHS]]
    for count in batches:
        x = random.standard_normal((count, m.cols), dtype=np.float32)
        bound = [call_of(s, x, m.rows) for s in sessions[count == 1]]
        bound[0][0]()
        check(case, m, x, bound[0][1].numpy())
        work = sum(matrix.nbytes() for matrix in matrices) if count == 1 else 2 * m.rows * m.cols * count
        value = median_rate([call for call, _ in bound], work, turns)
        unit = "GB/s" if count == 1 else "GFLOP/s"
        facts = {"peer": "onnxruntime", "case": case, "bits": m.bits, "inputs": count, "threads": threads}
        density = 8 * m.nbytes() / (m.rows * m.cols)
        print(json.dumps({**facts, "value": round(value, 3), "unit": unit, "bits_per_weight": density}), flush=True)


def main():
    rows, cols, size, turns, threads = map(int, sys.argv[1:6])
    batches = [int(n) for n in sys.argv[6].split(",")]
    random = np.random.default_rng(1)
    for bits, block in KINDS:
        first = Matrix(random, rows, cols, bits, block)
        copies = max(-(-size // first.nbytes()), 1)
        matrices = [first, *(Matrix(random, rows, cols, bits, block) for _ in range(copies - 1))]
        measure(matrices, turns, threads, batches, random)


main()
