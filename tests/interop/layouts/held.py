"""What a server's model holds after it has read a checkpoint, against the tensors of that checkpoint.

Servers run queries, keys and values as one matrix, gates and up projections too, and all experts of a layer as one stack. So each of
their parameters is made here once more, by joining the checkpoint's tensors along an axis, and compared with what their own weight
loaders put there. Whatever has no tensor, or is in no parameter, is a fault.
"""

import json
import re
import sys
import traceback
from pathlib import Path

import torch
from safetensors import safe_open

FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
EXPERTS = {"w13": ("gate_proj", "up_proj"), "w2": ("down_proj",)}
# Of caches, of static activations and of reordered columns, which no checkpoint without calibration has; biases of experts, which are zero.
UNFED = re.compile(r"\.(attn\.([kvq]|prob)_(scale|zero_point)|(w13_|w2_)?(input_(global_)?scale|(weight_)?g_idx(_sort_indices)?)|w(13|2)_bias)$")
# Told by the checkpoint, and nothing that is computed with: a shape, and the groups of columns in their order.
TOLD = re.compile(r"\.((w13_|w2_)?(weight_shape|g_idx))$")


def tensors(directory):
    found = {}
    for file in sorted(Path(directory).glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys()}
    return found


def parts(name, view):
    """Names of a parameter's tensors in the checkpoint: one list for each expert, or one in all."""
    module, _, suffix = name.rpartition(".")
    experts = re.fullmatch(r"(.*\.experts)(?:\.routed_experts)?", module)
    if experts:
        which, _, suffix = suffix.partition("_")
        count = 1 + max((int(m[1]) for m in (re.match(re.escape(experts[1]) + r"\.(\d+)\.", n) for n in view) if m), default=-1)
        return [[f"{experts[1]}.{e}.{child}.{suffix}" for child in EXPERTS[which]] for e in range(count)]
    parent, _, leaf = module.rpartition(".")
    return [[f"{parent}.{child}.{suffix}".lstrip(".") for child in FUSED.get(leaf, (leaf,))]]


def joined(groups, parameter, view):
    """The ways in which a parameter may hold its tensors: joined along either axis, experts stacked, turned or not."""
    for axis in (0, 1):
        try:
            each = [torch.cat([view[name].reshape(view[name].shape or (1,)) for name in names], axis) for names in groups]
        except (RuntimeError, IndexError):
            continue
        if len(each) == 1 and parameter.ndim == each[0].ndim:
            yield each[0]
        stack = torch.stack(each)
        yield stack
        yield stack.squeeze(-1)
        yield stack.transpose(-1, -2)


FLOATS = (torch.bfloat16, torch.float16, torch.float32)


def same(parameter, made, dense):
    """Equal bits in the parameter's dtype, which loses none unless the tensor is dense, and so the dtype that the user chose; rows
    beyond the checkpoint's are padding."""
    if parameter.ndim != made.ndim or parameter.shape[0] < made.shape[0] or parameter.shape[1:] != made.shape[1:]:
        return False
    wide = made.to(parameter.dtype)
    bits = lambda t: t.contiguous().reshape(-1).view(torch.uint8)  # noqa: E731
    kept = dense and made.dtype in FLOATS or torch.equal(bits(wide.to(made.dtype)), bits(made))
    return kept and torch.equal(bits(parameter[: made.shape[0]]), bits(wide))


def shape(tensor):
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def compared(model, view):
    """Each tensor of the view with what is wrong about it, nothing where its parameter holds it; each fault of a parameter."""
    told = {name: "" if TOLD.search(name) else "in none of its parameters" for name in view}
    for name, parameter in model.named_parameters():
        groups = parts(name, view)
        names = [n for group in groups for n in group]
        missing = [n for n in names if n not in view]
        dense = name.endswith((".weight", ".bias"))
        if names and not missing:
            # Packed words in a floating parameter are never read: SGLang's zero points of symmetric experts.
            unread = parameter.is_floating_point() and view[names[0]].dtype == torch.int32
            good = TOLD.search(name) or unread or any(same(parameter.data, made, dense) for made in joined(groups, parameter, view))
            if good and name.endswith("weight_global_scale"):
                good = all(torch.equal(view[group[0]], view[n]) for group in groups for n in group)
            why = "" if good else f"not what its {name} ({shape(parameter)}) holds"
            told |= {n: why and f"{shape(view[n])}, {why}" for n in names}
        elif not UNFED.search(name):
            told[name] = f"its parameter {name} has no {', '.join(missing[:3]) or 'tensor'}"
    return told


def modules(model):
    """The checkpoint's name of each module -> the classes that its server chose for it."""
    found = {}
    for name, module in model.named_modules():
        method = getattr(module, "quant_method", None)
        if method is None or name.endswith((".attn", "embed_tokens")):
            continue
        scheme = getattr(module, "scheme", None) or method
        parent, _, leaf = name.removesuffix(".routed_experts").rpartition(".")
        for child in FUSED.get(leaf, (leaf,)):
            found[f"{parent}.{child}".lstrip(".")] = type(scheme).__name__
    return found


def answer(load):
    """Directories come in by line; what the server makes of each goes out by line, as JSON."""
    out, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        request = json.loads(line)
        try:
            model = load(request["directory"], request["dtype"])
            told = {"tensors": compared(model, tensors(request["directory"])), "modules": modules(model)}
        except Exception as error:  # whatever keeps it from loading is the answer
            traceback.print_exc()
            told = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:240]}"}
        print(json.dumps(told), file=out, flush=True)
