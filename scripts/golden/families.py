"""Small configurations of mlx_lm's model families, and the inverse of each family's sanitize.

`hf` holds functions from (name -> shape of mlx_lm's parameters, config) to the Hugging Face names
and shapes. A case's keys are config.json's, but for those that begin with `~`.
"""

import re

BASE = dict(
    hidden_size=64, intermediate_size=96, num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=2, vocab_size=48,
    rms_norm_eps=1e-5, head_dim=32, tie_word_embeddings=False, max_position_embeddings=128, rope_theta=10000.0,
    layer_norm_eps=1e-5, norm_eps=1e-5, layer_norm_epsilon=1e-5, num_experts=4, num_local_experts=4, n_routed_experts=4,
    moe_num_experts=4, num_experts_per_tok=2, moe_intermediate_size=96, n_shared_experts=1, num_shared_experts=1,
    shared_expert_intermediate_size=96, decoder_sparse_step=1, mlp_only_layers=[], norm_topk_prob=True, first_k_dense_replace=1,
    attention_bias=False, mlp_bias=False, use_qkv_bias=True, partial_rotary_factor=0.5, rope_scaling=None, bias=False,
    sliding_window=32, n_group=1, topk_group=1, routed_scaling_factor=1.0, kv_lora_rank=64, q_lora_rank=64,
    qk_rope_head_dim=32, qk_nope_head_dim=32, v_head_dim=64, initializer_range=0.02,
)  # fmt: skip


def rename(pattern, to):
    return lambda shapes, _: {re.sub(pattern, to, k): s for k, s in shapes.items()}


def unstack(pattern, to):
    """Split the first dimension: `to` may name the expert as {e}."""

    def go(shapes, _):
        out = {}
        for k, s in shapes.items():
            if re.search(pattern, k):
                for e in range(s[0]):
                    out[re.sub(pattern, lambda m: m.expand(to).replace("{e}", str(e)), k)] = s[1:]
            else:
                out[k] = s
        return out

    return go


def transpose(pattern):
    return lambda shapes, _: {k: s[:-2] + [s[-1], s[-2]] if re.search(pattern, k) else s for k, s in shapes.items()}


def fuse(gate, up, to, axis):
    """Concatenate two tensors along an axis into one."""

    def go(shapes, _):
        out = {}
        for k, s in shapes.items():
            if re.search(up, k):
                continue
            if re.search(gate, k):
                t = list(s)
                t[axis] *= 2
                out[re.sub(gate, to, k)] = t
            else:
                out[k] = s
        return out

    return go


CONV = transpose(r"conv1d\.weight$")
MLP_EXPERTS = unstack(r"mlp\.switch_mlp\.(\w+)_proj\.weight$", r"mlp.experts.{e}.\1_proj.weight")
W123 = [
    unstack(rf"block_sparse_moe\.switch_mlp\.{m}_proj\.weight$", rf"block_sparse_moe.experts.{{e}}.{n}.weight")
    for n, m in (("w1", "gate"), ("w2", "down"), ("w3", "up"))
]
ROTARY = [("model.layers.0.self_attn.rotary_emb.inv_freq", (16,), "F32")]
HEAD = [("lm_head.weight", (48, 64), None)]
TIED = dict(tie_word_embeddings=True)


def mla(shapes, config):
    """kv_b_proj in place of the two stacks that MLA's absorbed form holds."""
    out = {}
    for k, s in shapes.items():
        if k.endswith("unembed_out.weight"):
            continue
        if k.endswith("embed_q.weight"):
            v = shapes[k.replace("embed_q", "unembed_out")]
            out[k.replace("embed_q", "kv_b_proj")] = [s[0] * (s[2] + v[1]), s[1]]
        else:
            out[k] = s
    return out


GATE_UP = fuse(r"switch_mlp\.gate_proj\.weight$", r"switch_mlp\.up_proj\.weight$", "experts.gate_up_proj", -2)
GATE_UP_DOWN = [GATE_UP, rename(r"switch_mlp\.down_proj\.weight$", "experts.down_proj")]



def under(prefix, keep=()):
    """Put a prefix before every name that has none of `keep`."""
    return lambda shapes, _: {k if k.startswith(tuple(keep)) else prefix + k: s for k, s in shapes.items()}


def without(prefix):
    return rename(rf"^{re.escape(prefix)}", "")


EXPERTS_UNDER = unstack(r"mlp\.experts\.(\w+)_proj\.weight$", r"mlp.experts.{e}.\1_proj.weight")
FFN_EXPERTS = unstack(r"feed_forward\.switch_mlp\.(\w+)_proj\.weight$", r"feed_forward.experts.{e}.\1_proj.weight")
VISION = [("visual.blocks.0.attn.qkv.weight", (12, 4), None), ("visual.patch_embed.proj.weight", (4, 3, 2, 2, 2), None)]
GATE_UP_T = [*GATE_UP_DOWN, transpose(r"experts\.(gate_up|down)_proj$")]
LINEAR = dict(linear_num_value_heads=2, linear_num_key_heads=1, linear_key_head_dim=32, linear_value_head_dim=32, linear_conv_kernel_dim=4)
MAMBA = dict(mamba_d_conv=4, mamba_d_state=16, mamba_n_heads=4, mamba_d_head=32, mamba_n_groups=1, mamba_proj_bias=False, mamba_conv_bias=True)
LAYERS = dict(layer_types=["sliding_attention", "full_attention"])
MLA_HEADS = dict(num_key_value_heads=2)
MTP_61 = [("model.layers.61.eh_proj.weight", (64, 128), None)]
MTP_2 = [("model.layers.2.eh_proj.weight", (64, 128), None)]
SCALES = dict(logits_scaling=1.0, attention_multiplier=1.0, embedding_multiplier=1.0, residual_multiplier=1.0)


def text(model_type, **keys):
    return dict(text_config=dict(model_type=model_type, dtype="bfloat16", **keys), vision_config=dict(depth=2))


FAMILIES = {
    "llama": dict(cases=[{"~extra": ROTARY, "~generation": {"eos_token_id": [1, 2]}, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}}, {**TIED, "~extra": HEAD, "attention_bias": True, "mlp_bias": True, "torch_dtype": "float16"},
        {"~few": True, "rms_norm_eps": 1e-06, "rope_theta": 500000.0, "bos_token_id": 128000, "pad_token_id": None, "use_cache": True, "note": "\u00e9 \u2028 \U0001f600 \"/\\", "large": 1e22, "small": 1.5e-7, "whole": 10**20, "minus": -0.0,
            "bound": {"__float__": "-Infinity"}, "list": [{"__float__": "NaN"}, {"__float__": "other"}, []], "empty": {}, "Zed": 1, "~generation": {"eos_token_id": 0}, "eos_token_id": 5}]),
    "mistral": dict(cases=[{"~few": True}]),
    "iquestcoder": dict(cases=[{"~few": True}]),
    "xverse": dict(cases=[{"~few": True}]),
    "ministral3": dict(config=dict(rope_parameters=dict(rope_theta=10000.0, llama_4_scaling_beta=0.1, original_max_position_embeddings=64)), cases=[{"~extra": ROTARY}, {**TIED, "~extra": HEAD, "~few": True}]),
    "mistral3": dict(text_type="llama", hf=[rename(r"^language_model\.model\.", "model.language_model."), rename(r"^language_model\.lm_head", "lm_head")],
        extra=[("model.vision_tower.x.weight", (4, 4), None), ("model.multi_modal_projector.linear_1.weight", (4, 4), None)], config=text("mistral"),
        cases=[{"~text": dict(tie_word_embeddings=False)}, {"~few": True, "~text_type": "ministral3", "~text": dict(model_type="ministral3", rope_parameters=dict(rope_theta=10000.0, llama_4_scaling_beta=0.1, original_max_position_embeddings=64))},
            {"~few": True, "~text_type": "mistral4", "~text": {**MLA_HEADS, "model_type": "mistral4", "rope_parameters": dict(rope_theta=10000.0, type="yarn", factor=2.0, mscale_all_dim=1.0, original_max_position_embeddings=64)}, "~hf": [*GATE_UP_DOWN, mla]}]),
    "llava": dict(text_type="llama", extra=[("vision_tower.x.weight", (4, 4), None), ("multi_modal_projector.linear_1.weight", (4, 4), None)], config=text("llama", tie_word_embeddings=False)),
    "pixtral": dict(text_type="llama", extra=[("vision_tower.x.weight", (4, 4), None), ("multi_modal_projector.linear_1.weight", (4, 4), None)], config=text("mistral")),
    "qwen2": dict(cases=[{**TIED, "~extra": ROTARY + HEAD}, {}]),
    "qwen2_moe": dict(hf=[MLP_EXPERTS]),
    "qwen2_vl": dict(text_type="qwen2", hf=[without("language_model.")], extra=VISION, config=text("qwen2"), cases=[{}, {"~text": TIED}]),
    "qwen2_5_vl": dict(text_type="qwen2", hf=[rename(r"^language_model\.model\.", "model.language_model."), rename(r"^language_model\.lm_head", "lm_head")],
        extra=[(f"model.{n}", s, d) for n, s, d in VISION], config=text("qwen2")),
    "qwen3": dict(cases=[{**TIED, "~extra": HEAD}, {}]),
    "qwen3_moe": dict(hf=[MLP_EXPERTS], cases=[{}, {**TIED, "mlp_only_layers": [0], "~extra": HEAD, "~few": True}]),
    "qwen3_vl": dict(text_type="qwen3", hf=[rename(r"^language_model\.model\.", "model.language_model."), rename(r"^language_model\.lm_head", "lm_head")],
        extra=[(f"model.{n}", s, d) for n, s, d in VISION], config=text("qwen3"), cases=[{}, {"~text": TIED}]),
    "qwen3_vl_moe": dict(text_type="qwen3_moe", hf=[*GATE_UP_T, rename(r"^language_model\.model\.", "model.language_model."), rename(r"^language_model\.lm_head", "lm_head")],
        extra=[(f"model.{n}", s, d) for n, s, d in VISION], config=text("qwen3_moe")),
    "qwen3_next": dict(hf=[MLP_EXPERTS, CONV], config={**LINEAR, "full_attention_interval": 2}, extra=[("mtp.fc.weight", (64, 128), None)], cases=[{}, {**TIED, "mlp_only_layers": [0], "~extra": HEAD, "~few": True}]),
    "qwen3_5": dict(text_type="qwen3_5", hf=[CONV, rename(r"^language_model\.model\.", "model.language_model."), rename(r"^language_model\.lm_head", "lm_head")],
        extra=[("mtp.fc.weight", (64, 128), None), *[(f"model.{n}", s, d) for n, s, d in VISION]],
        config=dict(text_config=dict(model_type="qwen3_5_text", dtype="bfloat16", _args="TextModelArgs", num_experts=0, full_attention_interval=2, rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.25), **LINEAR), vision_config=dict(depth=2)),
        cases=[{}, {"~text": {**TIED, "num_experts": 4}}]),
    "qwen3_5_moe": dict(text_type="qwen3_5", hf=[CONV, *GATE_UP_DOWN, rename(r"^language_model\.model\.", "model.language_model."), rename(r"^language_model\.lm_head", "lm_head")],
        extra=[("mtp.fc.weight", (64, 128), None), *[(f"model.{n}", s, d) for n, s, d in VISION]],
        config=dict(text_config=dict(model_type="qwen3_5_moe_text", dtype="bfloat16", _args="TextModelArgs", full_attention_interval=2, rope_parameters=dict(type="default", rope_theta=10000.0, partial_rotary_factor=0.25), **LINEAR), vision_config=dict(depth=2))),
    "gemma": dict(),
    "gemma2": dict(),
    "gemma3_text": dict(cases=[{}, {"~without": "lm_head"}]),
    "gemma3": dict(text_type="gemma3_text", config={**text("gemma3_text"), "vocab_size": 48}, extra=[("vision_tower.x.weight", (4, 4), None), ("multi_modal_projector.mm_input_projection_weight", (4, 4), None)], cases=[{"~without": "lm_head"}]),
    "gemma3n": dict(text_type="gemma3n", extra=[(f"model.{n}.x.weight", (4, 4), None) for n in ("vision_tower", "audio_tower", "embed_audio", "embed_vision")],
        config=dict(text_config=dict(model_type="gemma3n_text", dtype="bfloat16", _args="TextConfig", num_kv_shared_layers=1, num_hidden_layers=3, vocab_size_per_layer_input=48, rope_local_base_freq=10000.0, final_logit_softcapping=30.0,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"], activation_sparsity_pattern=[0.0, 0.0, 0.0], hidden_size_per_layer_input=32, altup_num_inputs=2, altup_coef_clip=120.0, altup_correct_scale=True, altup_active_idx=0, laurel_rank=32))),
    "gemma4_text": dict(hf=[rename(r"experts\.switch_glu\.", "switch_mlp."), GATE_UP, rename(r"experts\.gate_up_proj$", "experts.gate_up_proj"), rename(r"switch_mlp\.down_proj\.weight$", "experts.down_proj")],
        config=dict(num_kv_shared_layers=1, num_hidden_layers=3, layer_types=["sliding_attention", "full_attention", "sliding_attention"], global_head_dim=32, hidden_size_per_layer_input=32, vocab_size_per_layer_input=48, tie_word_embeddings=True),
        extra=[("model.layers.2.self_attn.k_proj.weight", (32, 64), None), ("model.layers.0.mlp.up_proj.input_max", (1,), None)],
        cases=[{"tie_word_embeddings": False}, {"enable_moe_block": True, "top_k_experts": 2, "num_experts": 4}]),
    "gemma4_unified": dict(text_type="gemma4_text", config={**text("gemma4_text", num_kv_shared_layers=0, layer_types=["sliding_attention", "full_attention"], global_head_dim=32, hidden_size_per_layer_input=0, vocab_size_per_layer_input=48, tie_word_embeddings=True), "vocab_size": 48},
        hf=[rename(r"^language_model\.model\.", "model.language_model.")], extra=[("model.vision_embedder.x.weight", (4, 4), None)]),
    "gemma4": dict(text_type="gemma4_text", hf=[rename(r"experts\.switch_glu\.", "switch_mlp."), GATE_UP, rename(r"switch_mlp\.down_proj\.weight$", "experts.down_proj"), rename(r"^language_model\.model\.", "model.language_model.")],
        config={**text("gemma4_text", num_kv_shared_layers=1, num_hidden_layers=3, layer_types=["sliding_attention", "full_attention", "sliding_attention"], global_head_dim=32, hidden_size_per_layer_input=32, vocab_size_per_layer_input=48, tie_word_embeddings=True, enable_moe_block=True, top_k_experts=2), "vocab_size": 48},
        extra=[("model.vision_tower.x.weight", (4, 4), None), ("model.embed_vision.x.weight", (4, 4), None)]),
    "mixtral": dict(hf=W123, cases=[{}, {**TIED, "~extra": HEAD, "~few": True}]),
    "phi": dict(cases=[{}]),
    "phi3": dict(cases=[{}, TIED]),
    "phi3small": dict(config=dict(dense_attention_every_n_layers=2, ff_intermediate_size=96, gegelu_limit=20.0), extra=ROTARY),
    "phimoe": dict(hf=W123),
    "phixtral": dict(hf=[unstack(r"moe\.switch_mlp\.(fc\d)\.(\w+)$", r"moe.mlp.{e}.\1.\2")], config=dict(num_vocab=48, model_dim=64, num_heads=2, num_layers=2, rotary_dim=16)),
    "starcoder2": dict(cases=[{}, TIED]),
    "stablelm": dict(cases=[{}, {"qk_layernorm": True}]),
    "olmo2": dict(cases=[{"~extra": ROTARY}, TIED]),
    "olmo3": dict(config=LAYERS),
    "olmoe": dict(hf=[MLP_EXPERTS]),
    "olmo_hybrid": dict(hf=[CONV, transpose(r"_conv1d\.weight$")], config=dict(linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=32, linear_value_head_dim=32, linear_conv_kernel_dim=4, linear_allow_neg_eigval=True, layer_types=["linear_attention", "full_attention"])),
    "gpt2": dict(hf=[transpose(r"(c_attn|c_proj|c_fc)\.weight$"), without("model.")], config=dict(n_ctx=32, n_embd=64, n_head=2, n_layer=2, n_positions=32), extra=[("h.0.attn.bias", (1, 1, 32, 32), None)]),
    "gpt_bigcode": dict(config=dict(n_embd=64, n_head=2, n_layer=2, n_positions=32, n_inner=96), cases=[{}, TIED]),
    "gpt_neox": dict(config=dict(rotary_emb_base=10000, rotary_pct=0.25), hf=[rename(r"^model\.h\.", "gpt_neox.layers."), rename(r"^model\.", "gpt_neox."), rename(r"^gpt_neox\.embed_out", "embed_out")],
        extra=[("gpt_neox.layers.0.attention.bias", (1, 1, 4, 4), "BOOL"), ("gpt_neox.layers.0.attention.rotary_emb.inv_freq", (4,), "F32")]),
    "gptj": dict(config=dict(n_embd=64, n_head=2, n_layer=2, n_positions=32, rotary_dim=16)),
    "gpt_oss": dict(hf=[fuse(r"gate_proj\.weight$", r"up_proj\.weight$", "gate_up_proj.weight", -2), fuse(r"gate_proj\.bias$", r"up_proj\.bias$", "gate_up_proj_bias", -1), rename(r"down_proj\.bias$", "down_proj_bias")]),
    "deepseek": dict(hf=[MLP_EXPERTS]),
    "deepseek_v2": dict(hf=[MLP_EXPERTS], config={**MLA_HEADS, "rope_scaling": dict(type="yarn", factor=2.0, original_max_position_embeddings=64, mscale_all_dim=1.0)}, cases=[{}, {"q_lora_rank": None}]),
    "deepseek_v3": dict(hf=[MLP_EXPERTS, mla], config=MLA_HEADS, extra=MTP_61, cases=[{}, {"q_lora_rank": None}]),
    "kimi_k2": dict(hf=[MLP_EXPERTS, mla], config=MLA_HEADS, cases=[{"~few": True}]),
    "joyai_llm_flash": dict(hf=[MLP_EXPERTS, mla], config=MLA_HEADS, cases=[{"~few": True}]),
    "glm4_moe_lite": dict(hf=[MLP_EXPERTS, mla], config=MLA_HEADS, extra=MTP_2, cases=[{}, {"q_lora_rank": None, "~few": True}]),
    "deepseek_v32": dict(hf=[MLP_EXPERTS, mla], config={**MLA_HEADS, "index_n_heads": 2, "index_head_dim": 64}, extra=MTP_2),
    "dots1": dict(hf=[EXPERTS_UNDER]),
    "glm": dict(cases=[{"~extra": ROTARY}, {**TIED, "~extra": HEAD, "~few": True}]),
    "glm4": dict(),
    "glm4_moe": dict(hf=[MLP_EXPERTS], config=dict(use_qk_norm=True), extra=MTP_2),
    "solar_open": dict(hf=[MLP_EXPERTS], extra=MTP_2),
    "granite": dict(config={**SCALES, "intermediate_size": 128}, cases=[{}, {**TIED, "~extra": HEAD, "~few": True}]),
    "granitemoe": dict(config={**SCALES, "intermediate_size": 128}, hf=[GATE_UP, rename(r"switch_mlp\.down_proj\.weight$", "output_linear.weight"), rename(r"experts\.gate_up_proj$", "input_linear.weight")], cases=[{}, {**TIED, "~extra": HEAD, "~few": True}]),
    "granitemoehybrid": dict(config={**SCALES, **MAMBA, "layer_types": ["mamba", "attention"], "shared_intermediate_size": 96},
        hf=[CONV, GATE_UP, rename(r"switch_mlp\.down_proj\.weight$", "output_linear.weight"), rename(r"experts\.gate_up_proj$", "input_linear.weight"),
            fuse(r"\.mlp\.gate_proj\.weight$", r"\.mlp\.up_proj\.weight$", ".shared_mlp.input_linear.weight", -2), rename(r"\.mlp\.down_proj", ".shared_mlp.output_linear")], cases=[{}, {"num_local_experts": 0, **TIED, "~extra": HEAD, "~few": True}]),
    "cohere": dict(cases=[{}, {"use_qk_norm": True, "layer_norm_bias": True}]),
    "cohere2": dict(),
    "internlm2": dict(config=dict(bias=False), extra=[("model.layers.0.attention.rope.inv_freq", (16,), "F32")], cases=[{}, TIED]),
    "internlm3": dict(cases=[{}, {"qkv_bias": True, **TIED}]),
    "exaone": dict(config=dict(num_layers=2), cases=[{}, TIED]),
    "exaone4": dict(config=dict(sliding_window_pattern=None), cases=[{}, TIED]),
    "smollm3": dict(cases=[{"~extra": ROTARY}, {**TIED, "~extra": HEAD, "~few": True}]),
    "nemotron": dict(config=dict(hidden_act="relu2"), cases=[{}, TIED]),
    "nemotron_h": dict(config=dict(mamba_num_heads=4, mamba_head_dim=32, mamba_proj_bias=False, ssm_state_size=16, conv_kernel=4, n_groups=1, use_bias=False, use_conv_bias=True, num_hidden_layers=4, hybrid_override_pattern="M*-E", moe_shared_expert_intermediate_size=96),
        hf=[CONV, unstack(r"switch_mlp\.fc1\.weight$", "experts.{e}.up_proj.weight"), unstack(r"switch_mlp\.fc2\.weight$", "experts.{e}.down_proj.weight")], extra=[("mtp.x.weight", (4, 4), None)], cases=[{}, {"moe_latent_size": 64, "~few": True}]),
    "helium": dict(),
    "minicpm": dict(config=dict(dim_model_base=64, scale_depth=1.4, scale_emb=12), cases=[{}, {"~without": "lm_head"}]),
    "minicpm3": dict(config={**MLA_HEADS, "rope_scaling": dict(type="longrope", original_max_position_embeddings=64, long_factor=[1.0] * 16, short_factor=[1.0] * 16), "dim_model_base": 64, "scale_depth": 1.4, "scale_emb": 12}),
    "mamba": dict(hf=[CONV], config=dict(state_size=16, conv_kernel=4, use_bias=False, use_conv_bias=True, time_step_rank=4), cases=[TIED, {}]),
    "falcon_mamba": dict(hf=[CONV], config=dict(state_size=16, conv_kernel=4, use_bias=False, use_conv_bias=True, time_step_rank=4)),
    "mamba2": dict(hf=[CONV], config=dict(num_heads=4, head_dim=32, state_size=16, conv_kernel=4, n_groups=1, use_bias=False, use_conv_bias=True, time_step_limit=[0.0, 1.0], time_step_rank=4), cases=[TIED, {}]),
    "lfm2": dict(hf=[transpose(r"conv\.conv\.weight$")], config=dict(conv_bias=False, conv_L_cache=3, block_dim=64, block_multiple_of=32, block_ffn_dim_multiplier=1.0, block_auto_adjust_ff_dim=False, block_ff_dim=96, layer_types=["conv", "full_attention"])),
    "lfm2_moe": dict(hf=[transpose(r"conv\.conv\.weight$"), FFN_EXPERTS, rename(r"gate_proj\.weight$", "w1.weight"), rename(r"down_proj\.weight$", "w2.weight"), rename(r"up_proj\.weight$", "w3.weight")],
        config=dict(use_expert_bias=True, num_dense_layers=1, conv_bias=False, conv_L_cache=3, layer_types=["conv", "full_attention"])),
    "afmoe": dict(hf=[EXPERTS_UNDER], config=dict(num_dense_layers=1, **LAYERS), cases=[{}, {**TIED, "~extra": HEAD, "~few": True}]),
    "apertus": dict(config=dict(post_norm=False, qk_norm=True), f32=r"^$"),
    "ernie4_5": dict(config=dict(use_bias=False), cases=[{}, TIED]),
    "ernie4_5_moe": dict(hf=[MLP_EXPERTS], config=dict(use_bias=False, moe_num_shared_experts=1, moe_layer_start_index=1), extra=[("model.layers.1.mlp.moe_statics.e_score_correction_bias", (1, 4), "F32"), ("model.mtp_block.0.x.weight", (4, 4), None)]),
    "hunyuan_v1_dense": dict(cases=[{}, {**TIED, "~extra": HEAD, "~few": True}]),
    "Klear": dict(hf=[unstack(r"mlp\.experts\.(\w+)_proj\.weight$", r"mlp.experts.{e}.\1_proj.weight")]),
    "bailing_moe": dict(hf=[MLP_EXPERTS, rename(r"mlp\.gate\.gate_proj", "mlp.gate")], cases=[{}, {"use_qk_norm": True, "moe_router_enable_expert_bias": True, **TIED, "~extra": HEAD, "~few": True}]),
    "jamba": dict(hf=[CONV, FFN_EXPERTS], config=dict(attn_layer_offset=1, attn_layer_period=2, expert_layer_offset=1, expert_layer_period=2, mamba_d_conv=4, mamba_d_state=16, mamba_expand=2), cases=[{}, {**TIED, "~extra": HEAD, "~few": True}]),
    "llama4": dict(text_type="llama4", hf=[fuse(r"experts\.gate_proj\.weight$", r"experts\.up_proj\.weight$", "experts.gate_up_proj", -2), rename(r"experts\.down_proj\.weight$", "experts.down_proj"), transpose(r"experts\.(gate_up|down)_proj$")], config=dict(text_config=dict(model_type="llama4_text", dtype="bfloat16", _args="TextArgs", attention_chunk_size=64, interleave_moe_layer_step=2, intermediate_size_mlp=96, num_experts_per_tok=1, use_qk_norm=True), vision_config=dict(depth=2)),
        extra=[("vision_model.x.weight", (4, 4), None), ("multi_modal_projector.linear_1.weight", (4, 4), None)]),
    "mellum": dict(hf=[MLP_EXPERTS], config={**LAYERS, "rope_parameters": dict(sliding_attention=dict(rope_theta=10000.0, rope_type="default"), full_attention=dict(rope_theta=10000.0, rope_type="default"))}, cases=[{}, {**TIED, "~extra": HEAD, "~few": True}]),
    "mimo": dict(config=dict(num_nextn_predict_layers=1), extra=[("model.mtp_layers.0.x.weight", (4, 4), None)], cases=[{}, {**TIED, "~extra": HEAD, "~few": True}]),
    "minimax": dict(hf=W123, config=dict(shared_intermediate_size=96, rotary_dim=16)),
    "minimax_m2": dict(hf=W123, config=dict(shared_intermediate_size=96, rotary_dim=16)),
    "nanbeige": dict(extra=ROTARY),
    "nanochat": dict(),
    "plamo": dict(),
    "plamo2": dict(hf=[CONV], config=dict(hidden_size_per_head=32, mamba_d_state=16, mamba_d_conv=4, mamba_num_heads=2, mamba_step=2, full_attention_idx=[])),
    "plamo3": dict(cases=[{}, {**TIED, "~extra": HEAD, "~few": True}]),
    "qwen": dict(config=dict(kv_channels=32)),
    "seed_oss": dict(cases=[{}, {**TIED, "~extra": HEAD, "~few": True}]),
    "recurrent_gemma": dict(hf=[transpose(r"conv_1d\.weight$")], config=dict(conv1d_width=4, logits_soft_cap=30.0, attention_window_size=32, block_types=["recurrent", "attention"], lru_width=64, attention_head_dim=32), cases=[{}, {"~without": "lm_head"}]),
    "telechat3": dict(),
    "youtu_llm": dict(config=MLA_HEADS, cases=[{"q_lora_rank": None}, {**TIED, "~extra": HEAD, "~few": True}]),
    "mimo_v2_flash": dict(hf=[MLP_EXPERTS], config=dict(hybrid_layer_pattern=[1, 0], moe_layer_freq=[0, 1], add_swa_attention_sink_bias=True, add_full_attention_sink_bias=False, sliding_window_size=32, topk_method="noaux_tc", scoring_func="sigmoid", layernorm_epsilon=1e-5, swa_rope_theta=10000.0, swa_num_attention_heads=2, swa_num_key_value_heads=1, swa_head_dim=32, swa_v_head_dim=32), extra=[("model.mtp.x.weight", (4, 4), None)]),
    "openelm": dict(config=dict(num_transformer_layers=2, model_dim=64, ffn_dim_divisor=32, num_query_heads=[2, 2], num_kv_heads=[1, 1], ffn_multipliers=[1.0, 1.5]), cases=[{}, {"share_input_output_layers": False, "~few": True}]),
    "lille-130m": dict(config=dict(block_size=64, n_embd=64, n_head=2, n_kv_heads=1, n_layer=2)),
    "exaone_moe": dict(hf=[MLP_EXPERTS, rename(r"mlp\.gate\.e_score", "mlp.e_score")], config=dict(is_moe_layer=[False, True], **LAYERS), extra=[("mtp.x.weight", (4, 4), None)]),
    "step3p5": dict(config=dict(num_attention_groups=1, share_expert_dim=96, moe_layers_enum="1", **LAYERS), hf=[rename(r"mlp\.switch_mlp\.", "moe."), rename(r"mlp\.gate\.gate\.", "moe.gate."), rename(r"mlp\.gate\.router_bias", "moe.router_bias"), rename(r"mlp\.share_expert\.", "share_expert.")]),
    "laguna": dict(hf=[MLP_EXPERTS, rename(r"mlp\.gate\.proj\.", "mlp.gate."), rename(r"mlp\.gate\.e_score", "mlp.experts.e_score")], config=dict(mlp_layer_types=["dense", "sparse"])),
    "spark2_5": dict(config=dict(rope_parameters=dict(sliding_attention=dict(rope_theta=10000.0, rope_type="default"), full_attention=dict(rope_theta=10000.0, rope_type="default")))),
    "glm_moe_dsa": dict(hf=[MLP_EXPERTS, mla], config={**MLA_HEADS, "index_n_heads": 2, "index_head_dim": 64, "index_topk": 4, "topk_method": "noaux_tc", "moe_layer_freq": 1, "scoring_func": "sigmoid", "rope_parameters": dict(rope_theta=10000.0, rope_type="default")}, extra=MTP_2),
    "mistral4": dict(hf=[*GATE_UP_DOWN, mla], config={**MLA_HEADS, "rope_parameters": dict(rope_theta=10000.0, type="yarn", factor=2.0, mscale_all_dim=1.0, original_max_position_embeddings=64)}, extra=ROTARY, cases=[{}, {"q_lora_rank": None, "~few": True}]),
    "longcat_flash": dict(hf=[MLP_EXPERTS, mla], config={**MLA_HEADS, "attention_method": "MLA", "zero_expert_type": "identity", "ffn_hidden_size": 96, "moe_topk": 2, "expert_ffn_hidden_size": 96, "zero_expert_num": 1, "num_layers": 1, "mla_scale_q_lora": True, "mla_scale_kv_lora": True}, extra=[("model.mtp.x.weight", (4, 4), None)]),
    "bailing_moe_linear": dict(hf=[MLP_EXPERTS, rename(r"mlp\.gate\.gate_proj", "mlp.gate")], config=dict(layer_group_size=2, group_norm_size=1), cases=[{}, {**TIED, "~extra": HEAD, "~few": True}]),
    "kimi_linear": dict(hf=[unstack(r"mlp\.switch_mlp\.gate_proj\.weight$", "block_sparse_moe.experts.{e}.w1.weight"), unstack(r"mlp\.switch_mlp\.down_proj\.weight$", "block_sparse_moe.experts.{e}.w2.weight"), unstack(r"mlp\.switch_mlp\.up_proj\.weight$", "block_sparse_moe.experts.{e}.w3.weight"),
            rename(r"mlp\.(shared_experts|gate\.)", r"block_sparse_moe.\1"), rename(r"mlp\.e_score", "block_sparse_moe.gate.e_score"), transpose(r"_conv\.conv\.weight$"), rename(r"_conv\.conv\.weight$", "_conv1d.weight"), mla],
        f32=r"A_log|dt_bias|e_score_correction_bias", config={**MLA_HEADS, "model_max_length": 128, "num_experts_per_token": 2, "linear_attn_config": dict(full_attn_layers=[2], kda_layers=[1], head_dim=32, num_heads=2, short_conv_kernel_size=4)}, cases=[{}, {**TIED, "~extra": HEAD, "~few": True}]),
    "nemotron-nas": dict(config=dict(num_hidden_layers=4, block_configs=[
        dict(attention=dict(n_heads_in_group=2, no_op=False, replace_with_linear=False), ffn=dict(ffn_mult=1.0, no_op=False, replace_with_linear=False)),
        dict(attention=dict(no_op=True), ffn=dict(ffn_mult=1.0)),
        dict(attention=dict(replace_with_linear=True), ffn=dict(replace_with_linear=True)),
        dict(attention=dict(n_heads_in_group=2), ffn=dict(no_op=True))]), cases=[{}, {**TIED, "~extra": HEAD, "~few": True}]),
    "iquestloopcoder": dict(cases=[{}, {**TIED, "~few": True}]),
    "talkie": dict(extra=[("model.rotary.cos", (4, 4), None)]),
}
