//! Decoders with convolutions or recurrent states.

use super::super::{
    model::{Family, PLAIN},
    step::{
        Guard::{Has, Lacks},
        Step::{Absorb, Channels, Drop, Halves, If, PlusOne, Rename, Stack, Tied},
    },
};
use super::{MTP, NORMS, experts};

pub(super) static FAMILIES: &[Family] = &[
    Family {
        types: &["mamba", "falcon_mamba"],
        walk: "backbone{embeddings layers.*{mixer{in_proj conv1d! x_proj dt_proj A_log= D= out_proj} norm!}
            norm_f!} lm_head",
        steps: &[Channels("*conv1d.weight*")],
        ..PLAIN
    },
    Family {
        types: &["mamba2"],
        walk: "backbone{embeddings layers.*{mixer{conv1d! in_proj dt_bias= A_log= D= norm! out_proj} norm!}
            norm_f!} lm_head",
        steps: &[Channels("*conv1d.weight*")],
        ..PLAIN
    },
    Family {
        types: &["plamo2"],
        walk: "model{embed_tokens layers.layers.*{mixer{in_proj conv1d! bcdt_proj dt_proj dt_bias= A_log= D=
            dt_norm_weight= B_norm_weight= C_norm_weight= out_proj qkv_proj o_proj q_weight= k_weight=}
            mlp{gate_up_proj down_proj} pre_mixer_norm! post_mixer_norm! pre_mlp_norm! post_mlp_norm!} norm!}
            lm_head",
        steps: &[Channels("*conv1d.weight*")],
        ..PLAIN
    },
    Family {
        types: &["olmo_hybrid"],
        walk: "model{embed_tokens layers.*{linear_attn{q_proj k_proj v_proj a_proj b_proj g_proj o_proj q_conv1d!
            k_conv1d! v_conv1d! A_log= dt_bias= o_norm!} self_attn{q_proj k_proj v_proj o_proj q_norm! k_norm!}
            mlp{gate_proj up_proj down_proj} input_layernorm! post_attention_layernorm!
            post_feedforward_layernorm!} norm!} lm_head",
        steps: &[Tied(false), Channels("*conv1d.weight*")],
        ..PLAIN
    },
    Family {
        types: &["recurrent_gemma"],
        walk: "model{embed_tokens layers.*{temporal_pre_norm! temporal_block{linear_y linear_x linear_out conv_1d!
            rg_lru!(recurrent_param,input_gate_weight,input_gate_bias,recurrent_gate_weight,recurrent_gate_bias)
            q_proj k_proj v_proj o_proj} channel_pre_norm! mlp_block{up_proj gate_proj down_proj}} final_norm!}
            lm_head",
        steps: &[Channels("*conv_1d.weight*")],
        ..PLAIN
    },
    Family {
        types: &["lfm2"],
        walk: "model{embed_tokens layers.*{conv{conv! in_proj out_proj} self_attn{q_layernorm! k_layernorm! q_proj
            k_proj v_proj out_proj} feed_forward{w1 w3 w2} operator_norm! ffn_norm!} embedding_norm!}",
        steps: &[Channels("*conv.weight*")],
        ..PLAIN
    },
    Family {
        types: &["lfm2_moe"],
        walk: "model{embed_tokens layers.*{conv{conv! in_proj out_proj} self_attn{q_layernorm! k_layernorm! q_proj
            k_proj v_proj out_proj} feed_forward{gate_proj up_proj down_proj gate switch_mlp{gate_proj up_proj
            down_proj} expert_bias=} operator_norm! ffn_norm!} embedding_norm!}",
        steps: &[
            Channels("*conv.weight*"),
            Rename("*w1.weight", "*gate_proj.weight"),
            Rename("*w2.weight", "*down_proj.weight"),
            Rename("*w3.weight", "*up_proj.weight"),
            Stack("*.feed_forward.experts.#.*_proj.weight", "*.feed_forward.switch_mlp.*_proj.weight", "num_experts"),
        ],
        careful: &["*feed_forward.gate"],
        stored: &["*expert_bias*"],
        ..PLAIN
    },
    Family {
        types: &["jamba"],
        walk: "model{embed_tokens layers.*{mamba{in_proj conv1d! x_proj dt_proj A_log= D= out_proj dt_layernorm!
            b_layernorm! c_layernorm!} self_attn{q_proj k_proj v_proj o_proj} feed_forward{gate_proj up_proj
            down_proj router switch_mlp{gate_proj up_proj down_proj}} input_layernorm! pre_ff_layernorm!}
            final_layernorm!} lm_head",
        steps: &[
            Channels("*conv1d.weight*"),
            Tied(true),
            Stack("*.feed_forward.experts.#.*_proj.*", "*.feed_forward.switch_mlp.*_proj.*", "num_experts"),
        ],
        careful: &["*router"],
        ..PLAIN
    },
    Family {
        types: &["nemotron_h"],
        walk: "backbone{embeddings layers.*{norm! mixer{conv1d! in_proj dt_bias= A_log= D= norm! out_proj q_proj
            k_proj v_proj o_proj up_proj down_proj switch_mlp{fc1 fc2} gate!(weight,e_score_correction_bias)
            shared_experts{up_proj down_proj} fc1_latent_proj fc2_latent_proj}} norm_f!} lm_head",
        steps: &[
            Drop(&["mtp.*"], MTP),
            Channels("*conv1d.weight*"),
            Stack("*.mixer.experts.#.up_proj.weight", "*.mixer.switch_mlp.fc1.weight", "n_routed_experts"),
            Stack("*.mixer.experts.#.down_proj.weight", "*.mixer.switch_mlp.fc2.weight", "n_routed_experts"),
        ],
        stored: &["*e_score_correction_bias*", "*A_log*"],
        ..PLAIN
    },
    Family {
        types: &["granitemoehybrid"],
        walk: "model{embed_tokens layers.*{input_layernorm! mamba{conv1d! in_proj dt_bias= A_log= D= norm!
            out_proj} self_attn{q_proj k_proj v_proj o_proj} shared_mlp{input_linear output_linear}
            block_sparse_moe{switch_mlp{gate_proj up_proj down_proj} router.layer} mlp{gate_proj down_proj
            up_proj} post_attention_layernorm!} norm!} lm_head",
        steps: &[
            Channels("*conv1d.weight*"),
            Halves(
                "*.block_sparse_moe.input_linear.weight",
                ["*.block_sparse_moe.switch_mlp.gate_proj.weight", "*.block_sparse_moe.switch_mlp.up_proj.weight"],
            ),
            Rename("*.block_sparse_moe.output_linear.weight", "*.block_sparse_moe.switch_mlp.down_proj.weight"),
            If(
                Lacks("*.block_sparse_moe.*"),
                &[
                    Halves("*.shared_mlp.input_linear.weight", ["*.mlp.gate_proj.weight", "*.mlp.up_proj.weight"]),
                    Rename("*.shared_mlp.output_linear.weight", "*.mlp.down_proj.weight"),
                ],
            ),
            Tied(true),
        ],
        careful: &["*router.layer"],
        ..PLAIN
    },
    Family {
        types: &["qwen3_next"],
        walk: "model{embed_tokens layers.*{linear_attn{conv1d! in_proj_qkvz in_proj_ba dt_bias= A_log= norm!
            out_proj} self_attn{q_proj k_proj v_proj o_proj q_norm! k_norm!} input_layernorm!
            post_attention_layernorm! mlp{gate_proj down_proj up_proj gate switch_mlp{gate_proj up_proj
            down_proj} shared_expert{gate_proj down_proj up_proj} shared_expert_gate}} norm!} lm_head",
        steps: &[If(
            Has("model.layers.#.mlp.experts.0.up_proj.weight"),
            &[Drop(&["*mtp.*"], MTP), Tied(false), experts("num_experts"), Channels("*conv1d.weight*"), PlusOne(NORMS)],
        )],
        careful: &["*mlp.gate", "*shared_expert_gate"],
        ..PLAIN
    },
    Family {
        types: &["kimi_linear"],
        walk: "model{embed_tokens layers.*{self_attn{q_proj k_proj v_proj q_conv.conv! k_conv.conv! v_conv.conv!
            f_a_proj f_b_proj b_proj g_a_proj g_b_proj A_log= dt_bias= o_norm! kv_a_proj_with_mqa
            kv_a_layernorm! embed_q unembed_out o_proj} mlp{gate_proj up_proj down_proj gate
            switch_mlp{gate_proj up_proj down_proj} e_score_correction_bias= shared_experts{gate_proj up_proj
            down_proj}} input_layernorm! post_attention_layernorm!} norm!} lm_head",
        steps: &[
            Drop(&["model.mtp*"], MTP),
            Tied(false),
            Stack("*.block_sparse_moe.experts.#.w1.weight", "*.mlp.switch_mlp.gate_proj.weight", "num_experts"),
            Stack("*.block_sparse_moe.experts.#.w2.weight", "*.mlp.switch_mlp.down_proj.weight", "num_experts"),
            Stack("*.block_sparse_moe.experts.#.w3.weight", "*.mlp.switch_mlp.up_proj.weight", "num_experts"),
            Rename("*.block_sparse_moe.shared_experts.*", "*.mlp.shared_experts.*"),
            Rename("*.block_sparse_moe.gate.weight", "*.mlp.gate.weight"),
            Rename("*.block_sparse_moe.gate.e_score_correction_bias", "*.mlp.e_score_correction_bias"),
            Channels("*_conv1d.weight"),
            Rename("*_conv1d.weight", "*_conv.conv.weight"),
            Absorb,
        ],
        careful: &["*mlp.gate"],
        stored: &["*e_score_correction_bias*", "*A_log", "*dt_bias"],
        ..PLAIN
    },
];
