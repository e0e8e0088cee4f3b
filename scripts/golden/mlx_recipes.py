#!/usr/bin/env python3
"""Which module gets what under mlx_lm's mixed recipes, for tests/it/recipes.rs. Needs mlx-lm 0.32.2 and mlx 0.32.4 (CPU).

families.json: for every case of tests/golden/dialect what quantize_model does under mixed_3_6 in groups of 32: the modules
of 6 bits, those of 3 bits, or the error that it ends with. deep.json: models of 12 and 18 layers, and "quantization" of config.json
as mlx_lm leaves it under each recipe, with --q-group-size and without.

Usage: python scripts/golden/mlx_recipes.py tests/golden/dialect tests/golden/recipes
"""
import json, sys, tempfile
from pathlib import Path

import mlx.core as mx
import mlx_lm
from mlx_lm import utils
from mlx_lm.convert import QUANT_RECIPES, mixed_quant_predicate_builder

sys.path.insert(0, str(Path(__file__).parent))
from families import FAMILIES, HEAD, TIED
from mlx_families import cast, config_of, build, source_tensors, write_source

CASES, OUT = Path(sys.argv[1]), Path(sys.argv[2])
PROVENANCE = f"mlx_lm {mlx_lm.__version__}, mlx {mx.__version__}, CPU; scripts/golden/mlx_recipes.py"


def converted(path, recipe, group):
    """The steps of mlx_lm.convert up to the saved config.json."""
    model, config = utils.load_model(path, lazy=True)
    predicate = mixed_quant_predicate_builder(recipe, model, group)
    cast(model, config)
    model, config = utils.quantize_model(model, config, group, None, mode="affine", quant_predicate=predicate)
    with tempfile.TemporaryDirectory() as out:
        utils.save_config(config, Path(out) / "config.json")
        return (Path(out) / "config.json").read_text()


def split(text):
    modules = {k: v for k, v in json.loads(text)["quantization"].items() if isinstance(v, dict)}
    return {"high": [k for k, v in modules.items() if v["bits"] == 6], "low": [k for k, v in modules.items() if v["bits"] == 3]}


def of_family(case):
    with tempfile.TemporaryDirectory() as d:
        write_source(Path(d), case["config"], case["tensors"], "BF16", False)
        try:
            return split(converted(Path(d), "mixed_3_6", 32))
        except ValueError as e:
            return {"error": str(e)}


def deep(model_type, layers, more):
    family = FAMILIES[model_type]
    config = config_of(model_type, family, {**more, "num_hidden_layers": layers, "hidden_size": 64, "intermediate_size": 128})
    tensors = source_tensors(build(config), config, family, more)
    with tempfile.TemporaryDirectory() as d:
        write_source(Path(d), config, tensors, "BF16", False)
        runs = [[r, g, json.loads(converted(Path(d), r, g))["quantization"]] for r in QUANT_RECIPES for g in ((None, 64) if r == "mixed_3_6" else (None,))]
    return {"config": config, "tensors": [[n, s, t] for n, s, t in tensors], "runs": runs}


families = {}
for file in sorted(CASES.glob("*.json")):
    families[file.stem] = [of_family(case) for case in json.loads(file.read_text())["cases"]]
    print(file.stem, [c.get("error") or (len(c["high"]), len(c["low"])) for c in families[file.stem]], flush=True)
lines = [f"{json.dumps(k)}:{json.dumps(v, separators=(',', ':'))}" for k, v in families.items()]
(OUT / "families.json").write_text(f'{{"provenance":"{PROVENANCE}","families":{{\n' + ",\n".join(lines) + "\n}}\n")
MODELS = [("llama", 12, {}), ("llama", 18, {**TIED, "~extra": HEAD}), ("qwen3_moe", 12, {}), ("mixtral", 12, {}), ("phi3", 12, {})]
cases = [deep(*m) for m in MODELS]
lines = [json.dumps(c, separators=(",", ":")) for c in cases]
(OUT / "deep.json").write_text(f'{{"provenance":"{PROVENANCE}","cases":[\n' + ",\n".join(lines) + "\n]}\n")
