"""MatMulNBits, made anew in each run: the runtime computes what onnxruntime's operator does, and onnxruntime opens a mounted
model as the one that its own quantizer wrote."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conftest import mounted

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts/golden"))
# The executable of the integration tests, where the caller has built it; cargo takes a while to see that it is there.
BUILT = os.environ.get("QUANTFS_IT")
TESTS = [BUILT] if BUILT else ["cargo", "test", "--quiet", "--test", "it", "--"]


def test_products_are_onnxruntimes(tmp_path):
    """The script that made the golden layers makes others, from a seed of today; the same test compares them."""
    seed = str(int.from_bytes(os.urandom(4), "little"))
    made = subprocess.run([sys.executable, ROOT / "scripts/golden/onnx_nbits.py", ROOT / "tests/golden", tmp_path, seed], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    test = [*TESTS, "nbits::products_are_the_operators", "--exact"]
    environment = os.environ | {"QUANTFS_ONNX_LAYERS": str(tmp_path / "layers.safetensors")}
    run = subprocess.run(test, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, f"seed {seed}\n{run.stdout}{run.stderr}"
    assert "1 passed" in run.stdout


def outputs(directory, feeds):
    """What an ordinary session computes; one thread, so that sums have one order."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(directory / "model.onnx", options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


# Wide enough for several tiles of a weight; sizes that are no multiples of anything.
@pytest.mark.parametrize(
    "make, float_name, spec, scheme",
    [
        ("plain", "f32", "onnx", (4, 32, True)),
        ("plain", "f32", "onnx-8bit-g128-asym", (8, 128, False)),
        ("plain", "f16", "onnx-4bit-g64-asym", (4, 64, False)),
        ("odd", "f32", "onnx-4bit-g16", (4, 16, True)),
    ],
)
def test_a_mounted_model_is_the_quantizers(tmp_path, make, float_name, spec, scheme):
    import onnx
    import onnx_models

    seed = int.from_bytes(os.urandom(4), "little")
    options = {"width": 21} if make == "plain" else {}
    feeds, files = onnx_models.source(tmp_path / "model", float_name, getattr(onnx_models, make), seed, **options)
    onnx_models.quantize(tmp_path / "model", tmp_path / "expected", files, *scheme)
    with mounted(tmp_path / "model", "--spec", spec) as mount:
        ours, theirs = (
            {t.name: (t.data_type, list(t.dims), t.raw_data) for t in onnx_models.every_tensor(onnx.load(d / "model.onnx"))}
            for d in (mount, tmp_path / "expected")
        )
        assert sorted(ours) == sorted(theirs), f"seed {seed}"
        for name in theirs:
            assert ours[name] == theirs[name], f"seed {seed}: {name}"
        for ours, theirs in zip(outputs(mount, feeds), outputs(tmp_path / "expected", feeds), strict=True):
            assert np.isfinite(ours).all() and np.array_equal(ours, theirs), f"seed {seed}"
