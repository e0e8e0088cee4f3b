"""A checkpoint directory as tensors and configs: what is in its files, whatever made them."""

import json
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file


def tensors(directory):
    """Every tensor by name; below a component of a pipeline the name begins with `component/`."""
    found = {}
    for file in sorted(Path(directory).rglob("*.safetensors")):
        component = file.parent.relative_to(directory).as_posix()
        prefix = "" if component == "." else f"{component}/"
        with safe_open(file, "pt") as opened:
            for name in opened.keys():
                assert prefix + name not in found, f"{prefix + name} is in two files of {directory}"
                found[prefix + name] = opened.get_tensor(name)
    return found


def configs(directory):
    """Every config.json and model_index.json by path."""
    files = [f for f in Path(directory).rglob("*.json") if f.name in ("config.json", "model_index.json")]
    return {f.relative_to(directory).as_posix(): json.loads(f.read_text()) for f in sorted(files)}


def write(target, source, contents, blocks):
    """A copy of `source` with other tensors, and `blocks`: component -> its quantization_config."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    for file in sorted(Path(target).rglob("*.safetensors")):
        component = file.parent.relative_to(target).as_posix()
        prefix = "" if component == "." else f"{component}/"
        own = {n.removeprefix(prefix): t.contiguous() for n, t in contents.items() if n.rpartition("/")[0] == prefix.rstrip("/")}
        save_file(own, file, metadata={"format": "pt"})
    for component, block in blocks.items():
        path = Path(target) / component / "config.json"
        config = json.loads(path.read_text())
        config["quantization_config"] = block
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def same_bits(left, right):
    """Equal dtype, shape and bytes; NaN equals itself, -0 differs from +0."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    return torch.equal(left.contiguous().reshape(-1).view(torch.uint8), right.contiguous().reshape(-1).view(torch.uint8))


def describe(tensor):
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
