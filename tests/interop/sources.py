"""Small random snapshots as their own libraries save them: language models, a diffusers pipeline and an ONNX model.

Dimensions are such that every packing can hold most tensors; in each, some tensors have a K that no group divides (the
Llama's and Qwen2's `intermediate_size` 480, the transformer's 192 text inputs), so that skipping is seen.
"""

from pathlib import Path

import torch
import transformers

HIDDEN = dict(
    hidden_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    vocab_size=512,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)


def llama():
    config = transformers.LlamaConfig(**HIDDEN, intermediate_size=512, tie_word_embeddings=False)
    return transformers.LlamaForCausalLM(config)


def llama_odd():
    """`down_proj` has K = 480: 32 divides it, 64 and 128 do not; its `gate_proj` has N = 480."""
    config = transformers.LlamaConfig(**HIDDEN, intermediate_size=480, tie_word_embeddings=False)
    return transformers.LlamaForCausalLM(config)


def qwen2():
    """Biases in the attention, and an embedding that is also the head."""
    config = transformers.Qwen2Config(**HIDDEN, intermediate_size=512, tie_word_embeddings=True)
    return transformers.Qwen2ForCausalLM(config)


def qwen3_moe():
    """Eight experts, saved as one tensor each."""
    config = transformers.Qwen3MoeConfig(
        **HIDDEN, intermediate_size=512, moe_intermediate_size=256, num_experts=8, num_experts_per_tok=2, head_dim=64,
        decoder_sparse_step=1, norm_topk_prob=True, tie_word_embeddings=False,
    )
    return transformers.Qwen3MoeForCausalLM(config)


LANGUAGE = {"llama": llama, "llama-odd": llama_odd, "qwen2": qwen2, "qwen3-moe": qwen3_moe}


def tokenizer(directory):
    """One token for each id: gptqmodel opens no model without a tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({f"w{i}": i for i in range(HIDDEN["vocab_size"])}, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="w0", bos_token="w1", eos_token="w2", pad_token="w0").save_pretrained(directory)


def widen(model, generator):
    """Random values of the size that trained weights have; the initial ones make every bias zero and every norm one."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.1 * noise if "norm" in name and parameter.ndim == 1 else 0.05 * noise)
    return model


def pipeline(directory, generator):
    """A Stable Diffusion 3 pipeline without tokenizers: a transformer, a text encoder, a VAE and a scheduler."""
    import diffusers

    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=32,
        num_attention_heads=4, caption_projection_dim=128, joint_attention_dim=192, pooled_projection_dim=128,
        pos_embed_max_size=16,
    )
    text_config = transformers.CLIPTextConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, vocab_size=256, projection_dim=128,
        max_position_embeddings=77, pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )
    text_encoder = transformers.CLIPTextModelWithProjection(text_config)
    vae = diffusers.AutoencoderKL(
        in_channels=3, out_channels=3, block_out_channels=(32, 32), layers_per_block=1, latent_channels=4, norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, sample_size=16,
    )
    for part in (transformer, text_encoder, vae):
        widen(part, generator).to(torch.bfloat16)
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=transformer, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=vae, text_encoder=text_encoder,
        tokenizer=None, text_encoder_2=None, tokenizer_2=None, text_encoder_3=None, tokenizer_3=None,
    )
    pipe.save_pretrained(directory)


def layers(directory):
    """An ONNX model with external data: three products, the last with a K that no block divides, the second with an odd N."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    import graph

    generator = torch.Generator().manual_seed(20261121)
    sizes = ((256, 512), (512, 250), (250, 64))
    weights = [torch.randn(size, generator=generator).numpy() * 0.05 for size in sizes]
    stored = [numpy_helper.from_array(w, f"layers.{i}.weight") for i, w in enumerate(weights)]
    stored.append(numpy_helper.from_array(torch.randn(512, generator=generator).numpy(), "layers.0.bias"))
    nodes = [
        helper.make_node("MatMul", ["x", "layers.0.weight"], ["a"], name="/layers.0/MatMul"),
        helper.make_node("Add", ["a", "layers.0.bias"], ["b"], name="/layers.0/Add"),
        helper.make_node("Relu", ["b"], ["c"], name="/Relu"),
        helper.make_node("MatMul", ["c", "layers.1.weight"], ["d"], name="/layers.1/MatMul"),
        helper.make_node("MatMul", ["d", "layers.2.weight"], ["y"], name="/layers.2/MatMul"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", size]) for name, size in (("x", 256), ("y", 64))]
    made = helper.make_model(
        helper.make_graph(nodes, "layers", ends[:1], ends[1:], stored), ir_version=10, opset_imports=[helper.make_opsetid("", 21)],
    )
    onnx.checker.check_model(made)
    directory.mkdir(parents=True)
    graph.save(made, directory)


def make(name, directory):
    """The snapshot `name` below `directory`, made where it is not there."""
    target = Path(directory) / name
    if target.exists():
        return target
    generator = torch.Generator().manual_seed(20261121)
    torch.manual_seed(20261121)
    if name == "sd3":
        pipeline(target, generator)
    elif name == "onnx-layers":
        layers(target)
    else:
        widen(LANGUAGE[name](), generator).to(torch.bfloat16).save_pretrained(target)
        tokenizer(target)
    return target


NAMES = (*LANGUAGE, "sd3", "onnx-layers")
