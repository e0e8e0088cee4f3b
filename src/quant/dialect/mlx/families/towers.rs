//! Text towers of models that also see or hear; the other towers are not shown.

use serde_json::Value;

use super::super::{
    model::{
        Family, Fixed, Inner, PLAIN,
        Patch::{RopeType, TextAlways, TextFromTop, TextMissing},
    },
    step::{
        Guard::{Has, Unswapped},
        Step,
        Step::{Channels, Drop, Halves, If, PlusOne, Rename, SharedKeys, Swap, Under},
    },
};
use super::{MTP, NORMS, TOWER};

/// What is beside the language model once it was moved out of `model.`.
const TOWERS: Step = Drop(&["model.*"], TOWER);

/// The towers of Gemma 4, with and without the outer prefix.
const GEMMA4_TOWERS: &[&str] = &[
    "vision_tower*",
    "multi_modal_projector*",
    "audio_tower*",
    "embed_audio*",
    "embed_vision*",
    "vision_embedder*",
    "model.vision_tower*",
    "model.multi_modal_projector*",
    "model.audio_tower*",
    "model.embed_audio*",
    "model.embed_vision*",
    "model.vision_embedder*",
];

/// Whether the text model has experts.
fn text_experts(text: &Value) -> bool {
    text.get("num_experts").and_then(Value::as_u64).is_some_and(|n| n > 0)
}

pub(super) static FAMILIES: &[Family] = &[
    Family {
        types: &["qwen3_5"],
        walk: "language_model{model{embed_tokens layers.*{linear_attn{conv1d! in_proj_qkv in_proj_z in_proj_b
            in_proj_a dt_bias= A_log= norm! out_proj} self_attn{q_proj k_proj v_proj o_proj q_norm! k_norm!}
            input_layernorm! post_attention_layernorm! mlp{gate_proj down_proj up_proj gate switch_mlp{gate_proj
            up_proj down_proj} shared_expert{gate_proj down_proj up_proj} shared_expert_gate}} norm!} lm_head}",
        steps: &[
            Drop(&["vision_tower*", "model.visual*"], TOWER),
            Rename("model.language_model*", "language_model.model*"),
            Under("language_model."),
            Drop(&["*mtp.*"], MTP),
            If(Unswapped("*conv1d.weight*"), &[Channels("*conv1d.weight*"), PlusOne(NORMS)]),
        ],
        careful: &["*mlp.gate", "*shared_expert_gate"],
        careful_if: Some(text_experts),
        stored: &["*A_log"],
        patches: &[RopeType],
        ..PLAIN
    },
    Family {
        types: &["qwen3_5_moe"],
        walk: "language_model{model{embed_tokens layers.*{linear_attn{conv1d! in_proj_qkv in_proj_z in_proj_b
            in_proj_a dt_bias= A_log= norm! out_proj} self_attn{q_proj k_proj v_proj o_proj q_norm! k_norm!}
            input_layernorm! post_attention_layernorm! mlp{gate switch_mlp{gate_proj up_proj down_proj}
            shared_expert{gate_proj down_proj up_proj} shared_expert_gate}} norm!} lm_head}",
        steps: &[
            Drop(&["vision_tower*", "model.visual*"], TOWER),
            Rename("model.language_model*", "language_model.model*"),
            Under("language_model."),
            Halves(
                "*.mlp.experts.gate_up_proj",
                ["*.mlp.switch_mlp.gate_proj.weight", "*.mlp.switch_mlp.up_proj.weight"],
            ),
            Rename("*.mlp.experts.down_proj", "*.mlp.switch_mlp.down_proj.weight"),
            Drop(&["*mtp.*"], MTP),
            If(Unswapped("*conv1d.weight*"), &[Channels("*conv1d.weight*"), PlusOne(NORMS)]),
        ],
        careful: &["*mlp.gate", "*shared_expert_gate"],
        careful_if: Some(text_experts),
        stored: &["*A_log"],
        patches: &[RopeType],
        ..PLAIN
    },
    Family {
        types: &["mistral3", "llava"],
        steps: &[
            Drop(&["*vision_tower*", "*multi_modal_projector*"], TOWER),
            Rename("model.language_model.*", "model.*"),
            Under("language_model."),
        ],
        inner: Some(Inner { prefix: "language_model.", families: &["llama", "ministral3", "mistral4"], steps: true }),
        patches: &[TextMissing("tie_word_embeddings", Fixed::Bool(false))],
        ..PLAIN
    },
    Family {
        types: &["pixtral"],
        steps: &[Drop(&["vision_tower.*", "multi_modal_projector.*"], TOWER)],
        inner: Some(Inner { prefix: "language_model.", families: &["llama"], steps: false }),
        patches: &[
            TextAlways("tie_word_embeddings", Fixed::Bool(false)),
            TextMissing("num_attention_heads", Fixed::Number(32)),
        ],
        ..PLAIN
    },
    Family {
        types: &["qwen2_vl", "qwen2_5_vl"],
        steps: &[
            Drop(&["visual.*", "vision_tower.*"], TOWER),
            If(Has("model.language_model.*"), &[Rename("model.language_model.*", "language_model.model.*"), TOWERS]),
            Under("language_model."),
        ],
        inner: Some(Inner { prefix: "language_model.", families: &["qwen2"], steps: false }),
        ..PLAIN
    },
    Family {
        types: &["qwen3_vl"],
        steps: &[
            Drop(&["visual.*", "vision_tower.*"], TOWER),
            If(Has("model.language_model.*"), &[Rename("model.language_model.*", "language_model.model.*"), TOWERS]),
            Under("language_model."),
        ],
        inner: Some(Inner { prefix: "language_model.", families: &["qwen3"], steps: false }),
        ..PLAIN
    },
    Family {
        types: &["qwen3_vl_moe"],
        steps: &[
            Drop(&["visual.*"], TOWER),
            If(Has("model.language_model.*"), &[Rename("model.language_model.*", "language_model.model.*"), TOWERS]),
            Under("language_model."),
            Swap("*.mlp.experts.gate_up_proj"),
            Swap("*.mlp.experts.down_proj"),
            Halves(
                "*.mlp.experts.gate_up_proj",
                ["*.mlp.switch_mlp.gate_proj.weight", "*.mlp.switch_mlp.up_proj.weight"],
            ),
            Rename("*.mlp.experts.down_proj", "*.mlp.switch_mlp.down_proj.weight"),
        ],
        inner: Some(Inner { prefix: "language_model.", families: &["qwen3_moe"], steps: false }),
        careful: &["*mlp.gate"],
        ..PLAIN
    },
    Family {
        types: &["gemma3"],
        steps: &[Drop(&["vision_tower.*", "multi_modal_projector.*"], TOWER)],
        inner: Some(Inner { prefix: "language_model.", families: &["gemma3_text"], steps: true }),
        patches: &[
            TextFromTop("vocab_size", 262_208),
            TextMissing("num_attention_heads", Fixed::Number(8)),
            TextMissing("num_key_value_heads", Fixed::Number(4)),
        ],
        ..PLAIN
    },
    Family {
        types: &["gemma3n"],
        walk: "model.language_model{embed_tokens layers.*{self_attn{q_proj k_proj v_proj o_proj q_norm! k_norm!}
            mlp{gate_proj up_proj down_proj} input_layernorm! post_attention_layernorm!
            pre_feedforward_layernorm! post_feedforward_layernorm! altup{correct_output_scale= correction_coefs
            prediction_coefs modality_router router_norm!} laurel{linear_left linear_right post_laurel_norm!}
            per_layer_input_gate per_layer_projection post_per_layer_input_norm!} embed_tokens_per_layer
            per_layer_model_projection per_layer_projection_norm! altup_projections.*
            altup_unembed_projections.* norm!}",
        steps: &[Drop(
            &["model.vision_tower.*", "model.audio_tower.*", "model.embed_audio.*", "model.embed_vision.*"],
            TOWER,
        )],
        ..PLAIN
    },
    Family {
        types: &["gemma4_text"],
        walk: "model{embed_tokens layers.*{self_attn{q_proj k_proj v_proj o_proj q_norm! k_norm!} mlp{gate_proj
            down_proj up_proj} input_layernorm! post_attention_layernorm! pre_feedforward_layernorm!
            post_feedforward_layernorm! router{proj scale= per_expert_scale=} experts.switch_glu{gate_proj
            up_proj down_proj} post_feedforward_layernorm_1! post_feedforward_layernorm_2!
            pre_feedforward_layernorm_2! per_layer_input_gate per_layer_projection post_per_layer_input_norm!
            layer_scalar=} norm! embed_tokens_per_layer per_layer_model_projection per_layer_projection_norm!}
            lm_head",
        steps: &[
            Drop(
                &["*self_attn.rotary_emb*", "*input_max*", "*input_min*", "*output_max*", "*output_min*"],
                "not part of the model",
            ),
            SharedKeys,
            Halves(
                "*.experts.gate_up_proj",
                ["*.experts.switch_glu.gate_proj.weight", "*.experts.switch_glu.up_proj.weight"],
            ),
            Rename("*.experts.down_proj", "*.experts.switch_glu.down_proj.weight"),
        ],
        careful: &["*router.proj"],
        ..PLAIN
    },
    Family {
        types: &["gemma4", "gemma4_unified"],
        steps: &[
            Drop(GEMMA4_TOWERS, TOWER),
            Rename("model.language_model.*", "language_model.model.*"),
            Rename("model.*", "*"),
        ],
        inner: Some(Inner { prefix: "language_model.", families: &["gemma4_text"], steps: true }),
        careful: &["*router.proj"],
        patches: &[
            TextFromTop("vocab_size", 262_144),
            TextMissing("num_attention_heads", Fixed::Number(8)),
            TextMissing("num_key_value_heads", Fixed::Number(1)),
        ],
        ..PLAIN
    },
    Family {
        types: &["llama4"],
        walk: "language_model{model{embed_tokens layers.*{self_attn{q_proj k_proj v_proj o_proj}
            feed_forward{gate_proj down_proj up_proj experts{gate_proj up_proj down_proj} router
            shared_expert{gate_proj down_proj up_proj}} input_layernorm! post_attention_layernorm!} norm!}
            lm_head}",
        steps: &[
            Drop(&["*vision_model*", "*multi_modal_projector*"], TOWER),
            Swap("*.feed_forward.experts.gate_up_proj"),
            Swap("*.feed_forward.experts.down_proj"),
            Halves(
                "*.feed_forward.experts.gate_up_proj",
                ["*.feed_forward.experts.gate_proj.weight", "*.feed_forward.experts.up_proj.weight"],
            ),
            Rename("*.feed_forward.experts.down_proj", "*.feed_forward.experts.down_proj.weight"),
        ],
        ..PLAIN
    },
];
