"""Servers that need a GPU to run, by what they make of a checkpoint before that: which scheme they choose for each module, and the
parameters that their weight loaders fill.

Each server runs in a Python environment of its own, beside this one, in one process for all directories.
"""

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

# Server -> the spec, and the classes that it is to choose for linear layers and for stacks of experts (`|` stands between several:
# which of them is a question of sizes).
CHOSEN = {
    "vLLM": (
        (r"ct-\dbit.*", "CompressedTensorsWNA16", "CompressedTensorsWNA16MoEMethod"),
        (r"ct-int8", "CompressedTensorsW8A8Int8", "CompressedTensorsW8A8Int8MoEMethod"),
        (r"ct-fp8.*", "CompressedTensorsW8A8Fp8", "CompressedTensorsW8A8Fp8MoEMethod"),
        (r"ct-mxfp4", "CompressedTensorsW4A4Mxfp4", "CompressedTensorsW4A4Mxfp4MoEMethod"),
        (r"ct-mxfp8", "CompressedTensorsW8A8Mxfp8", "CompressedTensorsW8A8Mxfp8MoEMethod"),
        (r"ct-nvfp4", "CompressedTensorsW4A4Fp4", "CompressedTensorsW4A4Nvfp4MoEMethod"),
        (r"fp8", "Fp8LinearMethod", "Fp8MoEMethod"),
        (r"gptq-.*", "AutoGPTQLinearMethod", "AutoGPTQMoEMethod"),
        (r"awq-.*", "AutoAWQMarlinLinearMethod", "AutoAWQMoEMethod"),
    ),
    "SGLang": (
        (r"ct-\dbit.*", "CompressedTensorsWNA16", "CompressedTensorsWNA16MoE"),
        (r"ct-int8", "CompressedTensorsW8A8Int8", "CompressedTensorsW8A8Int8MoE"),
        (r"ct-fp8.*", "CompressedTensorsW8A8Fp8", "CompressedTensorsW8A8Fp8MoE"),
        (r"ct-nvfp4", "CompressedTensorsW4A16Fp4", "CompressedTensorsW4A16Nvfp4MoE"),
        (r"fp8", "Fp8LinearMethod", "Fp8MoEMethod"),
        (r"gptq-.*", "GPTQMarlinLinearScheme", "GPTQMarlinMoEScheme"),
        (r"awq-.*", "AWQMarlinLinearScheme|AWQLinearScheme", "AWQMoEScheme"),
    ),
}
DENSE = ("UnquantizedLinearMethod", "UnquantizedFusedMoEMethod", "UnquantizedEmbeddingMethod")
# A module is quantized if it has one of these.
MARKS = (".weight_scale", ".weight_scale_inv", ".qweight")


@cache
def server(label):
    """The process of a server, nothing where its environment is not there."""
    name = label.lower()
    python = Path(sys.prefix).with_name(name) / "bin/python"
    script = Path(__file__).with_name(f"in_{name}.py")
    if not python.exists():
        return None
    return subprocess.Popen([python, "-B", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def version(label):
    """Of the server's package, as it is installed."""
    found = Path(sys.prefix).with_name(label.lower()).glob(f"lib/python*/site-packages/{label.lower()}*.dist-info")
    return next((path.stem.partition("-")[2] for path in found), "")


def ask(label, directory, dtype):
    process = server(label)
    if process is None:
        return {"error": "is not installed"}
    process.stdin.write(json.dumps({"directory": str(directory), "dtype": dtype}) + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    return json.loads(answer) if answer else {"error": "ended"}


def checked(told):
    """Names of all that is compared: tensors, and the modules that schemes are chosen for."""
    return [*told["tensors"], *(f"scheme of {module}" for module in told["modules"])]


def faults(label, spec, told):
    """What is wrong of it, by name, and why."""
    if "error" in told:
        return {}
    linear, experts = next((classes for pattern, *classes in CHOSEN[label] if re.fullmatch(pattern, spec)), ("", ""))
    quantized = {name[: -len(mark)] for name in told["tensors"] for mark in MARKS if name.endswith(mark)}
    wrong = {name: why for name, why in told["tensors"].items() if why}
    for module, scheme in told["modules"].items():
        stack = module.endswith(".experts")
        is_quantized = any(name.startswith(f"{module}.") for name in quantized) if stack else module in quantized
        wanted = (experts if stack else linear).split("|") if is_quantized else DENSE
        if scheme not in wanted:
            wrong[f"scheme of {module}"] = f"{scheme}, not {' or '.join(wanted)}"
    return wrong
