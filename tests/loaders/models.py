"""Small random models in the Hugging Face layout, a tokenizer included; no download, no torch.

python models.py FAMILY DIRECTORY [--shards N] [--dtype bfloat16|float16|float32] [--layers N] [--hidden N]
"""

import argparse
import json
import struct
from pathlib import Path

import ml_dtypes
import numpy as np

DTYPES = {"bfloat16": ("BF16", ml_dtypes.bfloat16), "float16": ("F16", np.float16), "float32": ("F32", np.float32)}

BASE = dict(
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    max_position_embeddings=512,
    hidden_act="silu",
    bos_token_id=1,
    eos_token_id=2,
)

FAMILIES = {
    "llama": dict(BASE, architectures=["LlamaForCausalLM"], model_type="llama", tie_word_embeddings=False),
    "qwen2": dict(BASE, architectures=["Qwen2ForCausalLM"], model_type="qwen2", tie_word_embeddings=True),
    "mistral": dict(
        BASE, architectures=["MistralForCausalLM"], model_type="mistral", tie_word_embeddings=False, sliding_window=None,
    ),
    "qwen3": dict(BASE, architectures=["Qwen3ForCausalLM"], model_type="qwen3", tie_word_embeddings=False, head_dim=32),
    "gemma": dict(BASE, architectures=["GemmaForCausalLM"], model_type="gemma", head_dim=32, hidden_act="gelu"),
    "gemma2": dict(BASE, architectures=["Gemma2ForCausalLM"], model_type="gemma2", head_dim=32, hidden_act="gelu_pytorch_tanh"),
    "mixtral": dict(
        BASE, architectures=["MixtralForCausalLM"], model_type="mixtral", tie_word_embeddings=False,
        num_local_experts=4, num_experts_per_tok=2,
    ),
    "qwen3_moe": dict(
        BASE, architectures=["Qwen3MoeForCausalLM"], model_type="qwen3_moe", tie_word_embeddings=False, head_dim=32,
        num_experts=4, num_experts_per_tok=2, moe_intermediate_size=128, decoder_sparse_step=1, mlp_only_layers=[],
        norm_topk_prob=True,
    ),
}

TEXT = (
    "The file system shows a model as if it had been quantized. The file is computed when it is read, and the bytes are the "
    "ones that the offline tool would have written. A reader that asks twice gets the same answer from the page cache. "
) * 4


def tokenizer(directory):
    """A byte-level BPE trained on a few sentences, in the layout of transformers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([TEXT], trainer)
    made.save(str(directory / "tokenizer.json"))
    config = dict(tokenizer_class="PreTrainedTokenizerFast", bos_token="<s>", eos_token="</s>", unk_token="<unk>", clean_up_tokenization_spaces=False)
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    return made.get_vocab_size()


def attention(config, prefix):
    heads, kv, hidden = config["num_attention_heads"], config["num_key_value_heads"], config["hidden_size"]
    dim = config.get("head_dim", hidden // heads)
    for name, rows, cols in (("q", heads * dim, hidden), ("k", kv * dim, hidden), ("v", kv * dim, hidden), ("o", hidden, heads * dim)):
        yield f"{prefix}.{name}_proj.weight", (rows, cols)
        if config["model_type"] == "qwen2" and name != "o":
            yield f"{prefix}.{name}_proj.bias", (rows,)
    if config["model_type"].startswith("qwen3"):
        yield f"{prefix}.q_norm.weight", (dim,)
        yield f"{prefix}.k_norm.weight", (dim,)


def feed_forward(config, prefix):
    hidden, wide, kind = config["hidden_size"], config["intermediate_size"], config["model_type"]
    if kind == "mixtral":
        yield f"{prefix}.block_sparse_moe.gate.weight", (config["num_local_experts"], hidden)
        for e in range(config["num_local_experts"]):
            for name, shape in (("w1", (wide, hidden)), ("w2", (hidden, wide)), ("w3", (wide, hidden))):
                yield f"{prefix}.block_sparse_moe.experts.{e}.{name}.weight", shape
        return
    experts = [f"{prefix}.mlp"]
    if kind == "qwen3_moe":
        wide = config["moe_intermediate_size"]
        yield f"{prefix}.mlp.gate.weight", (config["num_experts"], hidden)
        experts = [f"{prefix}.mlp.experts.{e}" for e in range(config["num_experts"])]
    for expert in experts:
        for name, shape in (("gate", (wide, hidden)), ("up", (wide, hidden)), ("down", (hidden, wide))):
            yield f"{expert}.{name}_proj.weight", shape


def shapes(config):
    """Names and shapes of a model's tensors."""
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    yield "model.embed_tokens.weight", (vocab, hidden)
    norms = ["input_layernorm", "post_attention_layernorm"]
    if config["model_type"] == "gemma2":
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        yield from attention(config, f"{prefix}.self_attn")
        yield from feed_forward(config, prefix)
        for norm in norms:
            yield f"{prefix}.{norm}.weight", (hidden,)
        if config["model_type"] == "llama":
            dim = config.get("head_dim", hidden // config["num_attention_heads"])
            yield f"{prefix}.self_attn.rotary_emb.inv_freq", (dim // 2,)
    yield "model.norm.weight", (hidden,)
    if not config.get("tie_word_embeddings", True):
        yield "lm_head.weight", (vocab, hidden)


def save(path, tensors, metadata):
    """Writes safetensors: name -> (dtype tag, array)."""
    header, offset = {"__metadata__": metadata}, 0
    for name, (tag, array) in tensors.items():
        header[name] = {"dtype": tag, "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for _, array in tensors.values():
            out.write(array.tobytes())


def make(family, directory, shards=1, dtype="bfloat16", seed=1, spread=0.02, **changes):
    """Writes a model directory and returns its config; `spread` is the deviation of the layers' matrices."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config = dict(FAMILIES[family], vocab_size=tokenizer(directory), torch_dtype=dtype)
    config.update(changes)
    if config["vocab_size"] % 64:
        config["vocab_size"] += 64 - config["vocab_size"] % 64
    rng = np.random.default_rng(seed)
    tag, kind = DTYPES[dtype]
    tensors = {}
    for name, shape in shapes(config):
        deviation = spread if ".layers." in name else 0.02
        values = rng.standard_normal(shape, np.float32) * deviation if len(shape) > 1 else 1 + 0.1 * rng.standard_normal(shape, np.float32)
        tensors[name] = ("F32", values) if "inv_freq" in name else (tag, values.astype(kind))
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    (directory / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": [2, 0], "do_sample": False}, indent=2))
    names = list(tensors)
    if shards == 1:
        save(directory / "model.safetensors", tensors, {"format": "pt"})
        return config
    weight_map = {}
    for number in range(shards):
        shard = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = {n: tensors[n] for n in names[number * len(names) // shards : (number + 1) * len(names) // shards]}
        save(directory / shard, part, {"format": "pt"})
        weight_map.update(dict.fromkeys(part, shard))
    total = sum(a.nbytes for _, a in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return config


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=sorted(FAMILIES))
    parser.add_argument("directory")
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bfloat16")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=128)
    args = parser.parse_args()
    make(
        args.family, args.directory, args.shards, args.dtype, num_hidden_layers=args.layers, hidden_size=args.hidden,
        intermediate_size=2 * args.hidden,
    )


if __name__ == "__main__":
    main()
