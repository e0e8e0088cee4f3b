"""A random Llama of 1.1 billion weights (TinyLlama's shape), once as Hugging Face lays it out and once as GGUF.

    llama_1b.py DIR GGUF_PY

DIR/hf gets config.json, model.safetensors in bf16 and a tokenizer whose words are `w0`, `w1`, ...; DIR/bf16.gguf the
same shapes. GGUF_PY is the folder of llama.cpp's Python package. Speed does not depend on the values, so that the
tensors repeat a few million random ones.
"""
import json
import sys
from pathlib import Path

import numpy as np

LAYERS, HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, VOCAB, CONTEXT = 22, 2048, 5632, 32, 4, 32000, 2048
KV = HIDDEN // HEADS * KV_HEADS
DRAWN = (1 << 22) + 1  # odd: rows do not repeat each other


def tensors():
    """Hugging Face name, GGUF name, shape."""
    yield "model.embed_tokens.weight", "token_embd.weight", (VOCAB, HIDDEN)
    for i in range(LAYERS):
        hf, gguf = f"model.layers.{i}.", f"blk.{i}."
        for name, short, rows, cols in [
            ("self_attn.q_proj", "attn_q", HIDDEN, HIDDEN),
            ("self_attn.k_proj", "attn_k", KV, HIDDEN),
            ("self_attn.v_proj", "attn_v", KV, HIDDEN),
            ("self_attn.o_proj", "attn_output", HIDDEN, HIDDEN),
            ("mlp.gate_proj", "ffn_gate", INTERMEDIATE, HIDDEN),
            ("mlp.up_proj", "ffn_up", INTERMEDIATE, HIDDEN),
            ("mlp.down_proj", "ffn_down", HIDDEN, INTERMEDIATE),
        ]:
            yield f"{hf}{name}.weight", f"{gguf}{short}.weight", (rows, cols)
        yield f"{hf}input_layernorm.weight", f"{gguf}attn_norm.weight", (HIDDEN,)
        yield f"{hf}post_attention_layernorm.weight", f"{gguf}ffn_norm.weight", (HIDDEN,)
    yield "model.norm.weight", "output_norm.weight", (HIDDEN,)
    yield "lm_head.weight", "output.weight", (VOCAB, HIDDEN)


def bf16(values):
    """The upper halves of f32 values."""
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def values(drawn, shape):
    """Bits of bf16: weights that repeat what was drawn, norms of one."""
    if len(shape) == 1:
        return bf16(np.ones(shape, np.float32))
    return np.resize(drawn, shape)


def write_config(out):
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16", "hidden_act": "silu",
        "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS, "vocab_size": VOCAB,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
    }
    (out / "config.json").write_text(json.dumps(config, indent=2))
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "unk_token": "w0", "vocab": {f"w{i}": i for i in range(VOCAB)}},
    }
    (out / "tokenizer.json").write_text(json.dumps(tokenizer))


def write_safetensors(path, drawn):
    header, end = {}, 0
    for name, _, shape in tensors():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, _, shape in tensors():
            values(drawn, shape).tofile(file)


def write_gguf(path, drawn):
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("none")
    for _, name, shape in tensors():
        if len(shape) == 1:
            writer.add_tensor(name, np.ones(shape, np.float32))
        else:
            writer.add_tensor(name, values(drawn, shape).view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    out = Path(sys.argv[1])
    (out / "hf").mkdir(parents=True, exist_ok=True)
    drawn = bf16(np.random.default_rng(1).standard_normal(DRAWN, dtype=np.float32) * np.float32(0.02))
    write_config(out / "hf")
    write_safetensors(out / "hf" / "model.safetensors", drawn)
    if len(sys.argv) > 2:
        sys.path.insert(0, sys.argv[2])
        write_gguf(out / "bf16.gguf", drawn)


main()
