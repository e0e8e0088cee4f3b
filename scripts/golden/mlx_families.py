"""What mlx_lm makes of each model family, as small JSON cases for tests/it/dialects.rs.

    python scripts/golden/mlx_families.py OUT_DIR [model_type ...]   write the cases
    python scripts/golden/mlx_families.py --walk [model_type ...]    print the module order

For a family, a small model is built from mlx_lm's own classes; its parameters are given the names
and shapes of the Hugging Face layout (`families.py` holds the inverse of each sanitize); then
load_model, the cast of convert, quantize_model and save run as they are. Every source element has
a value of its own, so that the origin of every element of the result can be read off.
Needs mlx-lm 0.32.2 and mlx 0.32.4.
"""

import importlib
import inspect
import json
import re
import sys
import tempfile
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
from mlx.utils import tree_flatten, tree_map_with_path
from mlx_lm import utils
from mlx_lm.convert import MODEL_CONVERSION_DTYPES

sys.path.insert(0, str(Path(__file__).parent))
from families import BASE, FAMILIES

mx.set_default_device(mx.cpu)
NAMES = {mx.bfloat16: "BF16", mx.float16: "F16", mx.float32: "F32", mx.int32: "I32", mx.int64: "I64", mx.bool_: "BOOL"}
DTYPES = {v: k for k, v in NAMES.items()}
# name, stored dtype of the source, --q-mode, --q-bits, --q-group-size
VARIANTS = [
    ("mlx-4bit-g64", "BF16", "affine", None, None),
    ("mlx-mxfp4", "BF16", "mxfp4", None, None),
    ("mlx-8bit-g32", "BF16", "affine", 8, 32),
    ("mlx-4bit-g64", "F32", "affine", None, None),
    ("source", "BF16", None, None, None),
]


def config_of(model_type, family, case):
    """A config.json with the keys that the model's own arguments name."""

    def known(kind, given):
        module = importlib.import_module(f"mlx_lm.models.{kind}")
        args = given.pop("_args", "ModelArgs")
        keys = inspect.signature(getattr(module, args)).parameters
        return {**{k: v for k, v in BASE.items() if k in keys}, **given}

    given = {**family.get("config", {}), **case}
    given = {k: v for k, v in given.items() if not k.startswith("~")}
    if text := given.get("text_config"):
        kind = case.get("~text_type", family.get("text_type", text.get("model_type")))
        given["text_config"] = known(kind, {**text, **case.get("~text", {})})
        base = {}
        config = {**base, **given}
    else:
        config = known(utils.MODEL_REMAPPING.get(model_type, model_type), given)
        config.setdefault("torch_dtype", "bfloat16")
    return {"architectures": ["X"], "_name_or_path": "somewhere", **config, "model_type": model_type}


def build(config):
    config = json.loads(json.dumps(config))
    cls, args = utils._get_classes(config)
    return cls(args.from_dict(config))


def source_tensors(model, config, family, case):
    """Name, shape and stored dtype of each tensor of the Hugging Face layout, in file order."""
    shapes = {k: list(v.shape) for k, v in tree_flatten(model.parameters())}
    for invert in case.get("~hf", []) + family.get("hf", []):
        shapes = invert(shapes, config)
    wide = re.compile(family.get("f32", r"A_log|e_score_correction_bias|expert_bias|router_bias$"))
    out = [(k, s, "F32" if wide.search(k) else None) for k, s in shapes.items()]
    for name, shape, dtype in family.get("extra", []) + case.get("~extra", []):
        out = [t for t in out if t[0] != name]
        out.append((name, list(shape), dtype))
    drop = re.compile(case.get("~without", r"^$"))
    return sorted(t for t in out if not drop.search(t[0]))


def write_source(path, config, tensors, stored, coded):
    """The snapshot; element i of the concatenation of all tensors has the value 2 i where `coded`."""
    arrays, at, rng = {}, 0, np.random.default_rng(1)
    for name, shape, dtype in tensors:
        n = int(np.prod(shape))
        if coded:
            a = mx.array((2 * np.arange(at, at + n)).astype(np.float32).reshape(shape))
        else:
            a = mx.array(rng.standard_normal(shape).astype(np.float32)).astype(DTYPES[dtype or stored])
        arrays[name], at = a, at + n
    assert at < 2**23, "codes must be exact in single precision, plus one included"
    mx.save_safetensors(str(path / "model.safetensors"), arrays, metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(config, indent=2))
    return arrays


def cast(model, config):
    """The step of mlx_lm.convert between loading and quantizing, in its own words."""
    dtype = config.get("torch_dtype", None)
    if dtype is None and (text_config := config.get("text_config", None)):
        dtype = text_config.get("dtype", None)
    if dtype in MODEL_CONVERSION_DTYPES:
        dtype = getattr(mx, dtype)
        exempt = getattr(model, "cast_predicate", lambda _: True)
        model.update(
            tree_map_with_path(
                lambda k, v: v.astype(dtype) if exempt(k) and mx.issubdtype(v.dtype, mx.floating) else v,
                model.parameters(),
            )
        )


def runs(ids, bounds):
    """A sequence of element numbers as regular slices: tensor, start, rows, row stride, cols, col stride."""
    owner = np.searchsorted(bounds, ids, side="right") - 1
    out, i, n = [], 0, len(ids)
    while i < n:
        step = int(ids[i + 1] - ids[i]) if i + 1 < n and owner[i + 1] == owner[i] else 1
        j = i + 1
        while j < n and ids[j] - ids[j - 1] == step and owner[j] == owner[i]:
            j += 1
        tensor = int(owner[i])
        out.append((tensor, int(ids[i]) - int(bounds[tensor]), j - i, step))
        i = j
    slices = []
    for tensor, start, count, step in out:
        last = slices[-1] if slices else None
        same = last and last[0] == tensor and last[4] == count and last[5] == step
        if same and (last[2] == 1 or start - last[1] == last[2] * last[3]):
            last[3] = start - last[1] if last[2] == 1 else last[3]
            last[2] += 1
        else:
            slices.append([tensor, start, 1, count, count, step])
    return slices


def origins(path, tensors):
    """Of each parameter after sanitize: shape, slices, whether one was added."""
    bounds = np.cumsum([0] + [int(np.prod(s)) for _, s, _ in tensors])[:-1]
    model, _ = utils.load_model(path, lazy=True)
    out = []
    for name, v in tree_flatten(model.parameters()):
        values = np.array(v.astype(mx.float32)).reshape(-1).astype(np.int64)
        odd = values % 2
        assert (odd == odd[0]).all(), name
        out.append([name, list(v.shape), bool(odd[0]), runs(values // 2, bounds)])
    return out


def variant(path, name, stored, mode, bits, group):
    model, config = utils.load_model(path, lazy=True)
    cast(model, config)
    dtypes = [NAMES[v.dtype] for _, v in tree_flatten(model.parameters())]
    if mode:
        model, config = utils.quantize_model(model, config, group, bits, mode=mode)
    quantized = [[p, m.bits, m.group_size, m.mode] for p, m in model.named_modules() if hasattr(m, "bits") and "scales" in m]
    with tempfile.TemporaryDirectory() as out:
        keep = "vision_tower" in getattr(model, "model", {})
        utils.save_model(out, model)
        utils.save_config(config, Path(out) / "config.json", keep_vision_config=keep)
        index = json.loads((Path(out) / "model.safetensors.index.json").read_text())
        text = (Path(out) / "config.json").read_text()
    short = dtypes[0] if len(set(dtypes)) == 1 else dtypes
    return dict(spec=name, stored=stored, dtypes=short, quantized=quantized, config=text, metadata=index["metadata"], names=len(index["weight_map"]))


def case_of(model_type, family, case):
    config = config_of(model_type, family, case)
    model = build(config)
    tensors = source_tensors(model, config, family, case)
    out = {"config": config, "tensors": [[n, s, d] for n, s, d in tensors]}
    if g := case.get("~generation"):
        out["generation_config"] = g
    with tempfile.TemporaryDirectory() as d:
        path = Path(d)
        if g:
            (path / "generation_config.json").write_text(json.dumps(g))
        write_source(path, config, tensors, "F32", True)
        out["arranged"] = origins(path, tensors)
        out["variants"] = []
        for v in VARIANTS if not case.get("~few") else VARIANTS[:1]:
            write_source(path, config, tensors, v[1], False)
            out["variants"].append(variant(path, *v))
    return out


# ---- the module order, for the tables of src/quant/dialect/mlx/families


def tree(m):
    """Ordered children of a module: (name, kind or subtree)."""
    out = []
    for k, v in m.items():
        if k.startswith("_"):
            continue
        if isinstance(v, nn.Module):
            if not v.children():
                names = [n for n, a in v.items() if isinstance(a, mx.array) and not n.startswith("_")]
                if names:
                    out.append((k, ("leaf", hasattr(v, "to_quantized"), names)))
            elif sub := tree(v):
                out.append((k, ("group", sub)))
        elif isinstance(v, mx.array):
            out.append((k, ("bare",)))
        elif isinstance(v, list) and v:
            subs = []
            for x in v:
                if isinstance(x, nn.Module):
                    s = tree({"*": x})
                    subs = merge(subs, s)
            if subs:
                out.append((k, ("group", subs)))
        elif isinstance(v, dict):
            if sub := tree(v):
                out.append((k, ("group", sub)))
    return out


def merge(a, b):
    """The union of two ordered lists of children, both orders kept."""
    out, names, at = [], {n for n, _ in a}, 0
    b_names = {n for n, _ in b}
    bd = dict(b)
    pending = list(b)
    for n, x in a:
        if n in b_names:
            while pending and pending[0][0] != n:
                m, y = pending.pop(0)
                if m not in names:
                    out.append((m, y))
                else:
                    raise SystemExit(f"orders disagree: {n} {m}")
            pending.pop(0)
            y = bd[n]
            if x[0] == "group" and y[0] == "group":
                x = ("group", merge(x[1], y[1]))
            elif x[0] == "leaf" and y[0] == "leaf":
                x = ("leaf", x[1], x[2] + [p for p in y[2] if p not in x[2]])
            elif x[0] != y[0]:
                raise SystemExit(f"{n} is a {x[0]} and a {y[0]}")
        out.append((n, x))
    return out + [(m, y) for m, y in pending]


def text(nodes):
    words = []
    for name, node in nodes:
        if node[0] == "bare":
            words.append(f"{name}=")
        elif node[0] == "leaf":
            odd = [p for p in node[2] if p not in ("weight", "bias")]
            params = f"({','.join(node[2])})" if odd else ""
            words.append(f"{name}{'' if node[1] else '!'}{params}")
        elif len(node[1]) == 1:
            words.append(f"{name}.{text(node[1])}")
        else:
            words.append(f"{name}{{{text(node[1])}}}")
    return " ".join(words)


def walk_of(model_type, family):
    nodes = []
    for case in family.get("cases", [{}]):
        nodes = merge(nodes, tree(build(config_of(model_type, family, case))))
    return text(nodes)


def main(argv):
    walk = "--walk" in argv
    argv = [a for a in argv if a != "--walk"]
    out = None if walk else Path(argv.pop(0))
    for model_type in argv or FAMILIES:
        family = FAMILIES[model_type]
        try:
            if walk:
                print(f"{model_type}: {walk_of(model_type, family)}")
                continue
            cases = [case_of(model_type, family, c) for c in family.get("cases", [{}])]
            doc = {"provenance": f"mlx_lm {mlx_lm.__version__}, mlx {mx.__version__}, CPU; scripts/golden/mlx_families.py", "cases": cases}
            body = json.dumps(doc, separators=(",", ":"))
            (out / f"{model_type}.json").write_text(body + "\n")
            print(f"{model_type}: {len(cases)} cases, {len(body)} bytes", flush=True)
        except (Exception, SystemExit) as e:
            print(f"{model_type}: FAILED {type(e).__name__} {str(e)[:600]}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
