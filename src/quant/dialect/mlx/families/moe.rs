//! Decoders with mixtures of experts.

use super::super::{
    model::{Family, PLAIN},
    step::{
        Guard::{Flag, Has, Lacks},
        Step::{Absorb, Deal, Drop, Halves, If, PastLayers, PlusOne, Refuse, Rename, Stack, Tied},
    },
};
use super::{E_SCORE, MTP, experts, experts_in_place, w1, w2, w3};

pub(super) static FAMILIES: &[Family] = &[
    Family {
        types: &["mixtral"],
        walk: "model{embed_tokens layers.*{self_attn{q_proj k_proj v_proj o_proj} block_sparse_moe{gate
            switch_mlp{gate_proj up_proj down_proj}} input_layernorm! post_attention_layernorm!} norm!} lm_head",
        steps: &[Tied(false), w1("num_local_experts"), w2("num_local_experts"), w3("num_local_experts")],
        ..PLAIN
    },
    Family {
        types: &["phimoe"],
        walk: "model{embed_tokens layers.*{self_attn{q_proj k_proj v_proj o_proj} block_sparse_moe{gate
            switch_mlp{gate_proj up_proj down_proj}} input_layernorm! post_attention_layernorm!} norm!} lm_head",
        steps: &[w1("num_local_experts"), w2("num_local_experts"), w3("num_local_experts")],
        ..PLAIN
    },
    Family {
        types: &["minimax", "minimax_m2"],
        walk: "model{embed_tokens layers.*{self_attn{q_proj k_proj v_proj o_proj q_norm! k_norm!}
            block_sparse_moe{gate switch_mlp{gate_proj up_proj down_proj} e_score_correction_bias=}
            input_layernorm! post_attention_layernorm!} norm!} lm_head",
        steps: &[w1("num_local_experts"), w2("num_local_experts"), w3("num_local_experts")],
        careful: &["*block_sparse_moe.gate"],
        stored: E_SCORE,
        ..PLAIN
    },
    Family {
        types: &["qwen2_moe"],
        walk: "model{embed_tokens layers.*{self_attn{q_proj k_proj v_proj o_proj} mlp{gate switch_mlp{gate_proj
            up_proj down_proj} shared_expert{gate_proj down_proj up_proj} shared_expert_gate} input_layernorm!
            post_attention_layernorm!} norm!} lm_head",
        steps: &[experts("num_experts")],
        ..PLAIN
    },
    Family {
        types: &["olmoe"],
        walk: "model{embed_tokens layers.*{self_attn{q_proj k_proj v_proj o_proj q_norm! k_norm!} mlp{gate
            switch_mlp{gate_proj up_proj down_proj}} input_layernorm! post_attention_layernorm!} norm!} lm_head",
        steps: &[experts("num_experts")],
        ..PLAIN
    },
    Family {
        types: &["qwen3_moe"],
        walk: "model{embed_tokens layers.*{self_attn{q_proj k_proj v_proj o_proj q_norm! k_norm!} input_layernorm!
            post_attention_layernorm! mlp{gate_proj down_proj up_proj gate switch_mlp{gate_proj up_proj
            down_proj}}} norm!} lm_head",
        steps: &[Tied(false), experts("num_experts")],
        careful: &["*mlp.gate"],
        ..PLAIN
    },
    Family {
        types: &["mellum"],
        walk: "model{embed_tokens layers.*{self_attn{q_proj k_proj v_proj o_proj q_norm! k_norm!} mlp{gate
            switch_mlp{gate_proj up_proj down_proj}} input_layernorm! post_attention_layernorm!} norm!} lm_head",
        steps: &[Tied(false), experts("num_experts")],
        careful: &["*mlp.gate"],
        ..PLAIN
    },
    Family {
        types: &["deepseek"],
        walk: "model{embed_tokens layers.*{self_attn{q_proj k_proj v_proj o_proj} mlp{gate_proj up_proj down_proj
            switch_mlp{gate_proj up_proj down_proj} gate! shared_experts{gate_proj up_proj down_proj}}
            input_layernorm! post_attention_layernorm!} norm!} lm_head",
        steps: &[experts("n_routed_experts")],
        ..PLAIN
    },
    Family {
        types: &["deepseek_v2"],
        walk: "model{embed_tokens layers.*{self_attn{q_a_proj q_a_layernorm! q_b_proj q_proj kv_a_proj_with_mqa
            kv_a_layernorm! kv_b_proj o_proj} mlp{gate_proj up_proj down_proj switch_mlp{gate_proj up_proj
            down_proj} gate! shared_experts{gate_proj up_proj down_proj}} input_layernorm!
            post_attention_layernorm!} norm!} lm_head",
        steps: &[experts("n_routed_experts")],
        ..PLAIN
    },
    Family {
        types: &["deepseek_v3", "kimi_k2", "joyai_llm_flash"],
        walk: "model{embed_tokens layers.*{self_attn{q_a_proj q_a_layernorm! q_b_proj q_proj kv_a_proj_with_mqa
            kv_a_layernorm! embed_q unembed_out o_proj} mlp{gate_proj up_proj down_proj switch_mlp{gate_proj
            up_proj down_proj} gate!(weight,e_score_correction_bias) shared_experts{gate_proj up_proj
            down_proj}} input_layernorm! post_attention_layernorm!} norm!} lm_head",
        steps: &[
            Drop(&["model.layers.61*", "*rotary_emb.inv_freq*"], "a multi-token prediction layer, or computed"),
            experts("n_routed_experts"),
            Absorb,
        ],
        stored: E_SCORE,
        ..PLAIN
    },
    Family {
        types: &["deepseek_v32", "glm_moe_dsa"],
        walk: "model{embed_tokens layers.*{self_attn{q_a_proj q_a_layernorm! q_b_proj kv_a_proj_with_mqa
            kv_a_layernorm! embed_q unembed_out o_proj indexer{wq_b wk k_norm! weights_proj}} mlp{gate_proj
            up_proj down_proj switch_mlp{gate_proj up_proj down_proj} gate!(weight,e_score_correction_bias)
            shared_experts{gate_proj up_proj down_proj}} input_layernorm! post_attention_layernorm!} norm!}
            lm_head",
        steps: &[PastLayers("model.layers."), experts("n_routed_experts"), Absorb],
        stored: E_SCORE,
        ..PLAIN
    },
    Family {
        types: &["glm4_moe_lite"],
        walk: "model{embed_tokens layers.*{self_attn{q_a_proj q_a_layernorm! q_b_proj q_proj kv_a_proj_with_mqa
            kv_a_layernorm! embed_q unembed_out o_proj} mlp{gate_proj up_proj down_proj switch_mlp{gate_proj
            up_proj down_proj} gate!(weight,e_score_correction_bias) shared_experts{gate_proj up_proj
            down_proj}} input_layernorm! post_attention_layernorm!} norm!} lm_head",
        steps: &[PastLayers("model.layers."), experts("n_routed_experts"), Absorb],
        stored: E_SCORE,
        ..PLAIN
    },
    Family {
        types: &["glm4_moe"],
        walk: "model{embed_tokens layers.*{self_attn{q_proj k_proj v_proj o_proj q_norm! k_norm!} mlp{gate_proj
            up_proj down_proj switch_mlp{gate_proj up_proj down_proj} gate!(weight,e_score_correction_bias)
            shared_experts{gate_proj up_proj down_proj}} input_layernorm! post_attention_layernorm!} norm!}
            lm_head",
        steps: &[PastLayers("model.layers."), experts("n_routed_experts")],
        stored: E_SCORE,
        ..PLAIN
    },
    Family {
        types: &["solar_open"],
        walk: "model{embed_tokens layers.*{self_attn{q_proj k_proj v_proj o_proj} mlp{gate_proj up_proj down_proj
            switch_mlp{gate_proj up_proj down_proj} gate!(weight,e_score_correction_bias)
            shared_experts{gate_proj up_proj down_proj}} input_layernorm! post_attention_layernorm!} norm!}
            lm_head",
        steps: &[PastLayers("model.layers."), experts("n_routed_experts")],
        stored: E_SCORE,
        ..PLAIN
    },
    Family {
        types: &["dots1"],
        walk: "model{embed_tokens layers.*{self_attn{q_proj k_proj v_proj o_proj q_norm! k_norm!} mlp{gate_proj
            up_proj down_proj experts{gate_proj up_proj down_proj} gate!(weight,e_score_correction_bias)
            shared_experts{gate_proj up_proj down_proj}} input_layernorm! post_attention_layernorm!} norm!}
            lm_head",
        steps: &[
            Tied(false),
            experts_in_place("n_routed_experts"),
            Drop(&["*rotary_emb.inv_freq*"], "rotary frequencies are computed"),
        ],
        ..PLAIN
    },
    Family {
        types: &["mimo_v2_flash"],
        walk: "model{embed_tokens layers.*{self_attn{q_proj k_proj v_proj o_proj attention_sink_bias=}
            mlp{gate_proj up_proj down_proj switch_mlp{gate_proj up_proj down_proj}
            gate!(weight,e_score_correction_bias) shared_experts{gate_proj up_proj down_proj}} input_layernorm!
            post_attention_layernorm!} norm!} lm_head",
        steps: &[experts("n_routed_experts"), Drop(&["model.mtp*"], MTP)],
        stored: E_SCORE,
        ..PLAIN
    },
    Family {
        types: &["exaone_moe"],
        walk: "model{embed_tokens layers.*{self_attn{q_proj k_proj v_proj o_proj q_norm! k_norm!} mlp{gate_proj
            up_proj down_proj switch_mlp{gate_proj up_proj down_proj} gate!(weight,e_score_correction_bias)
            shared_experts{gate_proj up_proj down_proj}} input_layernorm! post_attention_layernorm!} norm!}
            lm_head",
        steps: &[
            Drop(&["mtp.*"], MTP),
            Rename("*.mlp.e_score_correction_bias", "*.mlp.gate.e_score_correction_bias"),
            experts("num_experts"),
            Tied(false),
        ],
        stored: E_SCORE,
        ..PLAIN
    },
    Family {
        types: &["granitemoe"],
        walk: "model{embed_tokens layers.*{self_attn{q_proj k_proj v_proj o_proj}
            block_sparse_moe{switch_mlp{gate_proj up_proj down_proj} router.layer} input_layernorm!
            post_attention_layernorm!} norm!} lm_head",
        steps: &[
            Halves(
                "*.block_sparse_moe.input_linear.weight",
                ["*.block_sparse_moe.switch_mlp.gate_proj.weight", "*.block_sparse_moe.switch_mlp.up_proj.weight"],
            ),
            Rename("*.block_sparse_moe.output_linear.weight", "*.block_sparse_moe.switch_mlp.down_proj.weight"),
            Tied(true),
        ],
        careful: &["*block_sparse_moe.router.layer", "*self_attn.o_proj", "*mlp.down_proj", "lm_head"],
        ..PLAIN
    },
    Family {
        types: &["afmoe"],
        walk: "model{embed_tokens layers.*{self_attn{q_proj k_proj v_proj o_proj q_norm! k_norm! gate_proj}
            mlp{gate_proj down_proj up_proj router.gate expert_bias= experts{gate_proj up_proj down_proj}
            shared_experts{gate_proj down_proj up_proj}} input_layernorm! post_attention_layernorm!
            pre_mlp_layernorm! post_mlp_layernorm!} norm!} lm_head",
        steps: &[
            Drop(&["*rotary_emb.inv_freq*"], "rotary frequencies are computed"),
            Tied(false),
            experts_in_place("num_experts"),
        ],
        careful: &["*router.gate*"],
        stored: &["*expert_bias*"],
        ..PLAIN
    },
    Family {
        types: &["Klear"],
        walk: "model{embed_tokens layers.*{self_attn{q_proj k_proj v_proj o_proj q_norm! k_norm!} mlp{gate
            experts{gate_proj up_proj down_proj} shared_experts{gate_proj down_proj up_proj} coefficient
            expert_bias=} input_layernorm! post_attention_layernorm!} norm!} lm_head",
        steps: &[experts_in_place("num_experts")],
        careful: &["*mlp.gate"],
        stored: &["*expert_bias*"],
        ..PLAIN
    },
    Family {
        types: &["ernie4_5_moe"],
        walk: "model{embed_tokens layers.*{self_attn{q_proj k_proj v_proj o_proj} mlp{gate_proj down_proj up_proj
            gate switch_mlp{gate_proj up_proj down_proj} shared_experts{gate_proj down_proj up_proj}}
            input_layernorm! post_attention_layernorm!} norm!} lm_head",
        steps: &[
            Drop(
                &[
                    "*mtp_block.*",
                    "*mtp_linear_proj.*",
                    "*mtp_hidden_norm.*",
                    "*mtp_emb_norm.*",
                    "*e_score_correction_bias*",
                ],
                "not part of the model",
            ),
            experts("moe_num_experts"),
        ],
        ..PLAIN
    },
    Family {
        types: &["bailing_moe"],
        walk: "model{word_embeddings layers.*{attention{query_key_value dense key_layernorm! query_layernorm!}
            mlp{gate_proj down_proj up_proj switch_mlp{gate_proj up_proj down_proj} gate{gate_proj expert_bias=}
            shared_experts{gate_proj down_proj up_proj}} input_layernorm! post_attention_layernorm!} norm!}
            lm_head",
        steps: &[
            Tied(false),
            If(
                Flag("norm_head", false),
                &[Refuse(
                    &["lm_head.weight"],
                    "mlx_lm normalizes its columns, which cannot be shown without computing",
                )],
            ),
            experts("num_experts"),
            Rename("*.mlp.gate.weight", "*.mlp.gate.gate_proj.weight"),
            Rename("*.mlp.gate.bias", "*.mlp.gate.gate_proj.bias"),
        ],
        careful: &["*mlp.gate.gate_proj"],
        stored: &["*expert_bias*"],
        ..PLAIN
    },
    Family {
        types: &["gpt_oss"],
        walk: "model{embed_tokens norm! layers.*{self_attn{sinks= q_proj k_proj v_proj o_proj}
            mlp{experts{gate_proj up_proj down_proj} router} input_layernorm! post_attention_layernorm!}}
            lm_head",
        steps: &[
            If(
                Lacks("*gate_proj.weight*"),
                &[Refuse(
                    &["*.experts.gate_up_proj", "*.experts.down_proj"],
                    "mlx_lm loads experts named gate_up_proj.weight only, not this layout",
                )],
            ),
            Deal("*.gate_up_proj.weight", 1, ["*.gate_proj.weight", "*.up_proj.weight"]),
            Deal("*.gate_up_proj_bias", 0, ["*.gate_proj.bias", "*.up_proj.bias"]),
            Rename("*.down_proj_bias", "*.down_proj.bias"),
        ],
        careful: &["*router"],
        ..PLAIN
    },
    Family {
        types: &["step3p5"],
        walk: "model{embed_tokens layers.*{self_attn{q_proj k_proj v_proj o_proj q_norm! k_norm! g_proj}
            mlp{gate_proj up_proj down_proj gate{gate router_bias=} switch_mlp{gate_proj up_proj down_proj}
            share_expert{gate_proj up_proj down_proj}} input_layernorm! post_attention_layernorm!} norm!}
            lm_head",
        steps: &[
            Drop(&["*.mtp*"], MTP),
            PastLayers("model.layers."),
            If(Has("*.moe.*"), &[PlusOne(&["*norm*.weight"])]),
            Rename("*.moe.gate_proj.*", "*.mlp.switch_mlp.gate_proj.*"),
            Rename("*.moe.up_proj.*", "*.mlp.switch_mlp.up_proj.*"),
            Rename("*.moe.down_proj.*", "*.mlp.switch_mlp.down_proj.*"),
            Rename("*.moe.gate.*", "*.mlp.gate.gate.*"),
            Rename("*.moe.router_bias", "*.mlp.gate.router_bias"),
            If(Lacks("*.mlp.share_expert.*"), &[Rename("*.share_expert.*", "*.mlp.share_expert.*")]),
        ],
        careful: &["*mlp.gate.gate*"],
        stored: &["*router_bias*"],
        ..PLAIN
    },
    Family {
        types: &["laguna"],
        walk: "model{embed_tokens layers.*{self_attn{q_proj k_proj v_proj o_proj q_norm! k_norm! g_proj}
            mlp{gate_proj down_proj up_proj gate{proj e_score_correction_bias=} switch_mlp{gate_proj up_proj
            down_proj} shared_expert{gate_proj down_proj up_proj}} input_layernorm! post_attention_layernorm!}
            norm!} lm_head",
        steps: &[
            Rename("language_model.*", "*"),
            Tied(false),
            Rename("*.mlp.gate.weight", "*.mlp.gate.proj.weight"),
            Rename("*.mlp.experts.e_score_correction_bias", "*.mlp.gate.e_score_correction_bias"),
            experts("num_experts"),
        ],
        careful: &["*mlp.gate.proj"],
        stored: E_SCORE,
        ..PLAIN
    },
    Family {
        types: &["phixtral"],
        walk: "transformer{embd.wte h.*{mixer{Wqkv out_proj} ln! moe{switch_mlp{fc1 fc2} gate}}} lm_head{ln!
            linear}",
        steps: &[
            Stack("*.moe.mlp.#.fc1.*", "*.moe.switch_mlp.fc1.*", "num_local_experts"),
            Stack("*.moe.mlp.#.fc2.*", "*.moe.switch_mlp.fc2.*", "num_local_experts"),
        ],
        ..PLAIN
    },
    Family {
        types: &["mistral4"],
        walk: "model{embed_tokens layers.*{self_attn{q_a_proj q_a_layernorm! q_b_proj q_proj kv_a_proj_with_mqa
            kv_a_layernorm! embed_q unembed_out o_proj} mlp{gate_proj up_proj down_proj switch_mlp{gate_proj
            up_proj down_proj} gate shared_experts{gate_proj up_proj down_proj}} input_layernorm!
            post_attention_layernorm!} norm!} lm_head",
        steps: &[
            Halves(
                "*.mlp.experts.gate_up_proj",
                ["*.mlp.switch_mlp.gate_proj.weight", "*.mlp.switch_mlp.up_proj.weight"],
            ),
            Rename("*.mlp.experts.down_proj", "*.mlp.switch_mlp.down_proj.weight"),
            experts("n_routed_experts"),
            Absorb,
            Drop(&["*rotary_emb.inv_freq*"], "rotary frequencies are computed"),
        ],
        ..PLAIN
    },
    Family {
        types: &["longcat_flash"],
        walk: "model{embed_tokens layers.*{mlp{switch_mlp{gate_proj up_proj down_proj} router{classifier
            e_score_correction_bias=}} self_attn.*{q_a_proj q_a_layernorm! q_b_proj kv_a_proj_with_mqa
            kv_a_layernorm! embed_q unembed_out o_proj} mlps.*{gate_proj up_proj down_proj} input_layernorm.*!
            post_attention_layernorm.*!} norm!} lm_head",
        steps: &[experts("n_routed_experts"), Absorb, Drop(&["model.mtp*"], MTP)],
        careful: &["*classifier"],
        stored: E_SCORE,
        ..PLAIN
    },
    Family {
        types: &["bailing_moe_linear"],
        walk: "model{word_embeddings layers.*{attention{query_key_value dense g_proj g_norm!} mlp{gate_proj
            down_proj up_proj switch_mlp{gate_proj up_proj down_proj} gate.gate_proj shared_experts{gate_proj
            down_proj up_proj}} input_layernorm! post_attention_layernorm!} norm!} lm_head",
        steps: &[
            Tied(false),
            If(
                Flag("norm_head", false),
                &[Refuse(
                    &["lm_head.weight"],
                    "mlx_lm normalizes its columns, which cannot be shown without computing",
                )],
            ),
            experts("num_experts"),
            Rename("*.mlp.gate.weight", "*.mlp.gate.gate_proj.weight"),
            Rename("*.mlp.gate.bias", "*.mlp.gate.gate_proj.bias"),
        ],
        careful: &["*mlp.gate.gate_proj"],
        stored: &["*expert_bias*"],
        ..PLAIN
    },
];
