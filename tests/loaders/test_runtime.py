"""The runtime's decoders, through real mounts: mlx_lm's greedy tokens, a float reference, perplexity by torch."""

import json
import os
import re
import subprocess
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map
from mlx_lm import load
from mlx_lm.generate import generate_step
from mlx_lm.utils import dequantize_model

import models
from conftest import QUANTFS, mounted, run

mx.set_default_device(mx.cpu)

PROMPT = "The file system shows"
TOKENS = 200
# No token ends a text, so that all are compared.
ENDLESS = dict(eos_token_id=None)
LLAMA3 = dict(type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
CASES = [
    ("llama", {}),
    ("llama", dict(rope_scaling=LLAMA3, max_position_embeddings=1024)),
    ("llama", dict(rope_scaling=dict(type="linear", factor=4.0), num_key_value_heads=1, head_dim=20)),
    ("llama", dict(tie_word_embeddings=True)),
    ("mistral", {}),
    ("qwen2", {}),
    ("qwen3", {}),
]


def generate(view, *options, count=TOKENS):
    """Tokens, text and speed, as the last line of --json tells them; the text before it must be the same."""
    command = [QUANTFS, "generate", view, "--prompt", PROMPT, "--max-tokens", count, "--json", *options]
    # As bytes: a random model writes carriage returns, which text mode would turn into newlines.
    done = subprocess.run(list(map(str, command)), capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    streamed, last = done.stdout[:-1].rsplit(b"\n", 1)
    told = json.loads(last)
    assert streamed.decode() == told["text"]
    assert re.fullmatch(rb"\d+ tokens, [\d.]+ tokens/s; prompt of \d+ tokens, [\d.]+ tokens/s\n", done.stderr), done.stderr
    return told


def greedy(model, tokenizer, count=TOKENS):
    prompt = mx.array(tokenizer.encode(PROMPT))
    steps = generate_step(prompt, model, max_tokens=count, sampler=lambda logits: mx.argmax(logits, axis=-1))
    return [int(token) for token, _ in steps]


def snapshot(directory, family, **changes):
    """With small matrices, the residual stream is the embedding and a random model repeats one token."""
    models.make(family, directory, spread=0.15, **ENDLESS, **changes)
    (directory / "generation_config.json").unlink()
    return directory


@pytest.mark.parametrize("spec", ["source", "4bit-g64", "8bit-g32", "mxfp4"])
@pytest.mark.parametrize("family,changes", CASES)
def test_greedy_tokens_are_mlx_lms(family, changes, spec, tmp_path):
    source = snapshot(tmp_path / "model", family, dtype="float32", **changes)
    with mounted(source, "--spec", spec) as view:
        model, tokenizer = load(str(view))
        expected = greedy(model, tokenizer)
        told = generate(view, "--arithmetic", "exact")
    assert told["prompt_tokens"] == len(tokenizer.encode(PROMPT))
    assert len(expected) == TOKENS and len(set(expected)) > 3, "a text of one token would show nothing"
    assert told["tokens"] == expected
    assert told["tokens_per_second"] > 0


def perplexity(view, text, *options, **how):
    return json.loads(run("perplexity", view, text, "--json", *options, **how).stdout)


def surprise(model, stream, context):
    """Mean of -ln p of what follows, in f64 from f32 logits, of the inputs that have a token after them."""
    total, count = 0.0, (len(stream) - 1) // context
    for start in range(0, count * context, context):
        logits = np.array(model(mx.array([stream[start : start + context]])).astype(mx.float32), np.float64)[0]
        logits -= logits.max(-1, keepdims=True)
        logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        total -= logp[np.arange(context), stream[start + 1 : start + context + 1]].sum()
    return total / (count * context), count * context


@pytest.mark.parametrize("spec", ["source", "4bit-g64", "nvfp4"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_bf16_is_near_a_float_reference(family, spec, tmp_path):
    """Of bf16 weights both round differently: mlx is the reference, its weights dequantized and cast to f32."""
    source = snapshot(tmp_path / "model", family)
    text = tmp_path / "text"
    text.write_text(models.TEXT)
    with mounted(source, "--spec", spec) as view:
        model, tokenizer = load(str(view))
        model = dequantize_model(model)
        wide = lambda x: x.astype(mx.float32) if x.dtype == mx.bfloat16 else x
        model.update(tree_map(wide, model.parameters()))
        stream = tokenizer.encode(models.TEXT, add_special_tokens=False)
        expected, scored = surprise(model, stream, 32)
        told = perplexity(view, text, "--context", 32, "--arithmetic", "exact", "--reference", view)
        fast = perplexity(view, text, "--context", 32)
    assert (told["stream_tokens"], told["scored_tokens"]) == (len(stream), scored)
    assert abs(np.log(told["perplexity"]) - expected) < 2e-5
    assert told["reference"]["kl_divergence"] < 1e-9 and told["reference"]["equal_top1"] == 1
    assert abs(np.log(fast["perplexity"]) - expected) < 5e-3, "int8 activations cost little"


def test_an_end_token_ends(tmp_path):
    source = snapshot(tmp_path / "model", "llama", dtype="float32")
    with mounted(source, "--spec", "source") as view:
        whole = generate(view, count=20)["tokens"]
    end = next(i for i in range(1, 20) if whole[i] not in whole[:i])
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, whole[end]]}))
    assert generate(source, count=20)["tokens"] == whole[:end]


def test_draws_follow_the_seed(snapshots):
    source = snapshots("qwen3")
    draw = lambda seed, *more: generate(source, "--temperature", 1, "--seed", seed, *more, count=30)["tokens"]
    assert draw(1) == draw(1, "--threads", 1)
    assert draw(1) != draw(2)


def test_what_cannot_run_is_refused(snapshots, tmp_path):
    done = run("generate", snapshots("gemma"), "--prompt", "x", check=False)
    assert done.returncode == 1 and "gemma is not supported" in done.stderr and "llama" in done.stderr
    short = tmp_path / "short"
    short.write_text("The file")
    done = run("perplexity", snapshots("llama"), short, check=False)
    assert done.returncode == 1 and "smaller --context" in done.stderr
    assert run("generate", tmp_path, "--prompt", "x", "--temperature", "-1", check=False).returncode == 2


TRAINED = os.environ.get("QUANTFS_TRAINED_MODEL")


@pytest.mark.skipif(not TRAINED, reason="QUANTFS_TRAINED_MODEL names no trained model: perplexity is not compared with torch's")
def test_perplexity_is_torchs():
    """A trained model (model files, eval.txt) and the figure that torch computed (reference.json); wants an optimized QUANTFS_BIN."""
    trained = Path(TRAINED)
    reference = json.loads((trained / "reference.json").read_text())
    with mounted(trained, "--spec", "source") as view:
        told = perplexity(view, trained / "eval.txt", timeout=600)
    assert (told["stream_tokens"], told["scored_tokens"]) == (reference["stream_tokens"], reference["scored_tokens"])
    assert abs(told["perplexity"] / reference["perplexity"] - 1) < 1e-3
