"""Layers in the layout of MatMulNBits, made anew in each run: the runtime computes what onnxruntime's operator does."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
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
