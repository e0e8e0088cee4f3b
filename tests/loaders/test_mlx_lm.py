"""A mount is what mlx_lm.convert -q writes: every tensor bit for bit, config.json, index, logits."""

import glob
import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm import generate, load

import models
from conftest import mounted, run

mx.set_default_device(mx.cpu)

# Family, how the snapshot is made, what is asked of mlx_lm and of quantfs.
AFFINE = dict(group_size=64, bits=4, mode="affine")
CASES = [(family, dict(shards=shards), AFFINE) for family in models.FAMILIES for shards in (1, 2)]
CASES += [
    ("llama", dict(shards=3), dict(group_size=32, bits=8, mode="affine")),
    ("llama", dict(), dict(group_size=128, bits=3, mode="affine")),
    ("qwen3", dict(), dict(group_size=32, bits=6, mode="affine")),
    ("qwen2", dict(), dict(group_size=64, bits=2, mode="affine")),
    ("gemma", dict(), dict(group_size=64, bits=5, mode="affine")),
    ("llama", dict(dtype="float16"), AFFINE),
    ("llama", dict(dtype="float32"), AFFINE),
    # The snapshot is float32, but config.json says bfloat16: convert casts first.
    ("qwen2", dict(dtype="float32", torch_dtype="bfloat16"), AFFINE),
    ("llama", dict(), dict(group_size=32, bits=4, mode="mxfp4")),
    ("llama", dict(), dict(group_size=32, bits=8, mode="mxfp8")),
    ("llama", dict(), dict(group_size=16, bits=4, mode="nvfp4")),
    ("qwen3_moe", dict(), dict(group_size=32, bits=4, mode="mxfp4")),
    ("mixtral", dict(shards=2), dict(group_size=32, bits=4, mode="mxfp4")),
    # 96 is no multiple of 64: the embedding, the head and most of a layer stay dense.
    ("llama", dict(hidden_size=96, intermediate_size=256), AFFINE),
    # Texts that JSON escapes, and numbers that Python writes its own way.
    ("qwen3", dict(note="naïve \U0001f600 \"quoted\"", tiny=1e-07, big=1e22, whole=3.0, id=2**70, _name_or_path="x", vision_config={}), AFFINE),
]


def tensors(directory):
    out = {}
    for path in glob.glob(f"{directory}/model*.safetensors"):
        out.update(mx.load(path))
    return out


def raw(array):
    """The bytes of an array of any dtype."""
    return np.array(array.view(mx.uint8)).tobytes() if array.size else b""


def same(ours, theirs):
    assert sorted(ours) == sorted(theirs)
    for name, array in theirs.items():
        assert (ours[name].dtype, ours[name].shape) == (array.dtype, array.shape), name
        assert raw(ours[name]) == raw(array), name


def label(value):
    return "-".join(f"{k}={v}" for k, v in value.items() if k.isascii() and str(v).isascii()) if isinstance(value, dict) else value


@pytest.mark.parametrize("family,made,asked", CASES, ids=label)
def test_mount_equals_convert(family, made, asked, snapshots, converted):
    source, reference = snapshots(family, **made), converted(family, **asked, **made)
    options = ["--bits", asked["bits"], "--group-size", asked["group_size"], "--mode", asked["mode"]]
    with mounted(source, *options) as view:
        same(tensors(view), tensors(reference))
        assert (view / "config.json").read_bytes() == (reference / "config.json").read_bytes()
        index, theirs = (json.loads((d / "model.safetensors.index.json").read_bytes()) for d in (view, reference))
        assert index["metadata"] == theirs["metadata"]
        assert list(index["weight_map"]) == list(theirs["weight_map"])
        (model, tokenizer), (other, _) = load(str(view)), load(str(reference))
        prompt = mx.array([tokenizer.encode("The file system shows")])
        logits, expected = model(prompt), other(prompt)
        assert raw(logits) == raw(expected)
        text = generate(model, tokenizer, "The file", max_tokens=8)
        assert text == generate(other, tokenizer, "The file", max_tokens=8)


def test_one_shard_is_byte_for_byte_the_index(snapshots, converted):
    """With the same shard names, the index is the same file."""
    source, reference = snapshots("llama", shards=1), converted("llama", shards=1)
    with mounted(source, "--bits", 4) as view:
        name = "model.safetensors.index.json"
        assert (view / name).read_bytes() == (reference / name).read_bytes()


def test_rules_load(snapshots):
    """A view with mixed bits loads, and each layer has the bits that the rules gave it."""
    source = snapshots("llama", shards=2)
    rules = ["--rule", "*.layers.0.*=8bit", "--rule", "lm_head=source"]
    with mounted(source, "--spec", "4bit-g32", *rules) as view:
        model, tokenizer = load(str(view))
        assert model.model.layers[0].mlp.up_proj.bits == 8
        assert model.model.layers[1].mlp.up_proj.bits == 4
        assert not hasattr(model.lm_head, "bits")
        generate(model, tokenizer, "The file", max_tokens=4)


def test_dtype_is_converts_dtype(snapshots, tmp_path):
    """--dtype casts as mlx_lm.convert --dtype does."""
    from mlx_lm import convert

    source, reference = snapshots("llama"), tmp_path / "converted"
    convert(str(source), str(reference), quantize=True, dtype="float16")
    with mounted(source, "--bits", 4, "--dtype", "float16") as view:
        same(tensors(view), tensors(reference))
        assert (view / "config.json").read_bytes() == (reference / "config.json").read_bytes()


def test_fresh_shards_load(snapshots, converted):
    """--shard-size lays the set out afresh; the tensors are the same."""
    source, reference = snapshots("qwen3", shards=2), converted("qwen3", shards=2)
    with mounted(source, "--bits", 4, "--shard-size", "100KiB") as view:
        shards = sorted(Path(view).glob("model-*.safetensors"))
        assert len(shards) > 2 and all(s.stat().st_size < 120 << 10 for s in shards)
        same(tensors(view), tensors(reference))


def test_export_loads_without_a_mount(snapshots, converted, tmp_path):
    source, reference = snapshots("mixtral", shards=2), converted("mixtral", shards=2)
    run("export", source, tmp_path / "out", "--bits", 4)
    same(tensors(tmp_path / "out"), tensors(reference))
    load(str(tmp_path / "out"))
    run("verify", tmp_path / "out")
    run("verify", tmp_path / "out", "--against", source)
    run("verify", reference, "--against", source, "--tensors", "--bits", 4)
    other = run("verify", reference, "--against", source, "--tensors", "--bits", 8, check=False)
    assert other.returncode == 1 and "different" in other.stdout
