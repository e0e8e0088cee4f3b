//! Dense decoders.

use super::super::{
    model::{Family, PLAIN},
    step::Step::{Copy, Drop, Refuse, Rename, Squeeze, Swap, Tied, Under},
};
use super::{MTP, ROTARY};

pub(super) static FAMILIES: &[Family] = &[
    Family {
        types: &["llama", "mistral", "iquestcoder", "xverse", "ministral3", "smollm3"],
        walk: "model{embed_tokens layers.*{self_attn{q_proj k_proj v_proj o_proj} mlp{gate_proj down_proj up_proj}
            input_layernorm! post_attention_layernorm!} norm!} lm_head",
        steps: &[ROTARY, Tied(true)],
        ..PLAIN
    },
    Family {
        types: &["qwen2"],
        walk: "model{embed_tokens layers.*{self_attn{q_proj k_proj v_proj o_proj} mlp{gate_proj down_proj up_proj}
            input_layernorm! post_attention_layernorm!} norm!} lm_head",
        steps: &[Tied(true), ROTARY],
        ..PLAIN
    },
    Family {
        types: &["qwen3"],
        walk: "model{embed_tokens layers.*{self_attn{q_proj k_proj v_proj o_proj q_norm! k_norm!} mlp{gate_proj
            down_proj up_proj} input_layernorm! post_attention_layernorm!} norm!} lm_head",
        steps: &[Tied(false)],
        ..PLAIN
    },
    Family {
        types: &["hunyuan_v1_dense"],
        walk: "model{embed_tokens layers.*{self_attn{q_proj k_proj v_proj o_proj query_layernorm! key_layernorm!}
            mlp{gate_proj down_proj up_proj} input_layernorm! post_attention_layernorm!} norm!} lm_head",
        steps: &[Tied(false)],
        ..PLAIN
    },
    Family {
        types: &["gemma"],
        walk: "model{embed_tokens layers.*{self_attn{q_proj k_proj v_proj o_proj} mlp{gate_proj down_proj up_proj}
            input_layernorm! post_attention_layernorm!} norm!}",
        ..PLAIN
    },
    Family {
        types: &["gemma2"],
        walk: "model{embed_tokens layers.*{self_attn{q_proj k_proj v_proj o_proj} mlp{gate_proj down_proj up_proj}
            input_layernorm! pre_feedforward_layernorm! post_feedforward_layernorm! post_attention_layernorm!}
            norm!}",
        ..PLAIN
    },
    Family {
        types: &["gemma3_text"],
        walk: "model{embed_tokens layers.*{self_attn{q_proj k_proj v_proj o_proj q_norm! k_norm!} mlp{gate_proj
            down_proj up_proj} input_layernorm! post_attention_layernorm! pre_feedforward_layernorm!
            post_feedforward_layernorm!} norm!} lm_head",
        ..PLAIN
    },
    Family {
        types: &["phi"],
        walk: "model{embed_tokens layers.*{self_attn{q_proj k_proj v_proj dense} input_layernorm! mlp{fc1 fc2}}
            final_layernorm!} lm_head",
        ..PLAIN
    },
    Family {
        types: &["phi3"],
        walk: "model{embed_tokens layers.*{self_attn{qkv_proj o_proj} mlp{gate_up_proj down_proj} input_layernorm!
            post_attention_layernorm!} norm!} lm_head",
        ..PLAIN
    },
    Family {
        types: &["starcoder2"],
        walk: "model{embed_tokens layers.*{self_attn{q_proj k_proj v_proj o_proj} mlp{c_fc c_proj} input_layernorm!
            post_attention_layernorm!} norm!} lm_head",
        ..PLAIN
    },
    Family {
        types: &["stablelm"],
        walk: "model{embed_tokens layers.*{self_attn{q_proj k_proj v_proj o_proj q_layernorm.norms.*!
            k_layernorm.norms.*!} mlp{gate_proj down_proj up_proj} input_layernorm! post_attention_layernorm!}
            norm!} lm_head",
        ..PLAIN
    },
    Family {
        types: &["olmo3", "exaone4"],
        walk: "model{embed_tokens layers.*{self_attn{q_proj k_proj v_proj o_proj q_norm! k_norm!} mlp{gate_proj
            down_proj up_proj} post_attention_layernorm! post_feedforward_layernorm!} norm!} lm_head",
        ..PLAIN
    },
    Family {
        types: &["gpt_bigcode"],
        walk: "transformer{wte wpe h.*{attn{c_attn c_proj} mlp{c_fc c_proj} ln_1! ln_2!} ln_f!} lm_head",
        ..PLAIN
    },
    Family {
        types: &["glm4"],
        walk: "model{embed_tokens layers.*{self_attn{q_proj k_proj v_proj o_proj} mlp{gate_up_proj down_proj}
            input_layernorm! post_attention_layernorm! post_self_attn_layernorm! post_mlp_layernorm!} norm!}
            lm_head",
        ..PLAIN
    },
    Family {
        types: &["cohere"],
        walk: "model{embed_tokens layers.*{self_attn{q_proj k_proj v_proj o_proj q_norm! k_norm!} mlp{gate_proj
            up_proj down_proj} input_layernorm!} norm!}",
        ..PLAIN
    },
    Family {
        types: &["cohere2"],
        walk: "model{embed_tokens layers.*{self_attn{q_proj k_proj v_proj o_proj} mlp{gate_proj up_proj down_proj}
            input_layernorm!} norm!}",
        ..PLAIN
    },
    Family {
        types: &["exaone"],
        walk: "transformer{wte h.*{ln_1! attn.attention{q_proj k_proj v_proj out_proj} ln_2! mlp{c_fc_0 c_fc_1
            c_proj}} ln_f!} lm_head",
        ..PLAIN
    },
    Family {
        types: &["nemotron"],
        walk: "model{embed_tokens layers.*{self_attn{q_proj k_proj v_proj o_proj} mlp{down_proj up_proj}
            input_layernorm! post_attention_layernorm!} norm!} lm_head",
        ..PLAIN
    },
    Family {
        types: &["helium"],
        walk: "model{embed_tokens layers.*{self_attn{q_proj k_proj v_proj o_proj} mlp{gate_proj up_proj down_proj}
            input_layernorm! post_attention_layernorm!} norm!} lm_head",
        ..PLAIN
    },
    Family {
        types: &["minicpm3"],
        walk: "model{embed_tokens layers.*{self_attn{q_a_proj q_a_layernorm! q_b_proj kv_a_proj_with_mqa
            kv_a_layernorm! kv_b_proj o_proj} mlp{gate_proj up_proj down_proj} input_layernorm!
            post_attention_layernorm!} norm!} lm_head",
        ..PLAIN
    },
    Family {
        types: &["ernie4_5", "telechat3"],
        walk: "model{embed_tokens layers.*{self_attn{q_proj k_proj v_proj o_proj} mlp{gate_proj down_proj up_proj}
            input_layernorm! post_attention_layernorm!} norm!} lm_head",
        ..PLAIN
    },
    Family {
        types: &["nanochat"],
        walk: "transformer{wte h.*{attn{c_q c_k c_v c_proj} mlp{c_fc c_proj}}} lm_head",
        ..PLAIN
    },
    Family {
        types: &["plamo"],
        walk: "model{embed_tokens layers.layers.*{self_attn{q_proj k_proj v_proj o_proj} mlp{gate_proj up_proj
            down_proj} norm!} norm!} lm_head",
        ..PLAIN
    },
    Family {
        types: &["qwen"],
        walk: "transformer{wte h.*{ln_1! attn{c_attn c_proj} ln_2! mlp{w1 w2 c_proj}} ln_f!} lm_head",
        ..PLAIN
    },
    Family {
        types: &["openelm"],
        walk: "transformer{token_embeddings layers.*{attn{qkv_proj out_proj q_norm! k_norm!} ffn{proj_1 proj_2}
            ffn_norm! attn_norm!} norm!} lm_head",
        ..PLAIN
    },
    Family {
        types: &["phi3small"],
        walk: "model{embed_tokens layers.*{self_attn{query_key_value dense} mlp{up_proj down_proj} input_layernorm!
            post_attention_layernorm!} final_layernorm!}",
        steps: &[ROTARY],
        ..PLAIN
    },
    Family {
        types: &["olmo2"],
        walk: "model{embed_tokens layers.*{self_attn{q_proj k_proj v_proj o_proj q_norm! k_norm!} mlp{gate_proj
            down_proj up_proj} post_attention_layernorm! post_feedforward_layernorm!} norm!} lm_head",
        steps: &[ROTARY],
        ..PLAIN
    },
    Family {
        types: &["nanbeige"],
        walk: "model{embed_tokens layers.*{self_attn{q_proj k_proj v_proj o_proj} mlp{gate_proj down_proj up_proj}
            input_layernorm! post_attention_layernorm!} norm!} lm_head",
        steps: &[ROTARY],
        ..PLAIN
    },
    Family {
        types: &["glm"],
        walk: "model{embed_tokens layers.*{self_attn{q_proj k_proj v_proj o_proj} mlp{gate_up_proj down_proj}
            input_layernorm! post_attention_layernorm!} norm!} lm_head",
        steps: &[ROTARY, Tied(true)],
        ..PLAIN
    },
    Family {
        types: &["granite"],
        walk: "model{embed_tokens layers.*{self_attn{q_proj k_proj v_proj o_proj} mlp{gate_proj down_proj up_proj}
            input_layernorm! post_attention_layernorm!} norm!} lm_head",
        steps: &[Tied(true)],
        careful: &["*self_attn.o_proj", "*mlp.down_proj", "lm_head"],
        ..PLAIN
    },
    Family {
        types: &["seed_oss"],
        walk: "model{embed_tokens layers.*{self_attn{q_proj k_proj v_proj o_proj} mlp{gate_proj down_proj up_proj}
            input_layernorm! post_attention_layernorm!} norm!} lm_head",
        steps: &[Tied(true)],
        ..PLAIN
    },
    Family {
        types: &["plamo3"],
        walk: "model{embed_tokens layers.layers.*{mixer{qkv_proj o_proj q_norm! k_norm!} mlp{gate_up_proj
            down_proj} pre_mixer_norm! post_mixer_norm! pre_mlp_norm! post_mlp_norm!} norm!} lm_head",
        steps: &[Tied(true)],
        ..PLAIN
    },
    Family {
        types: &["youtu_llm"],
        walk: "model{embed_tokens layers.*{self_attn{q_proj q_a_proj q_a_layernorm! q_b_proj kv_a_proj_with_mqa
            kv_a_layernorm! kv_b_proj o_proj} mlp{gate_proj up_proj down_proj} input_layernorm!
            post_attention_layernorm!} norm!} lm_head",
        steps: &[Tied(true)],
        ..PLAIN
    },
    Family {
        types: &["gpt2"],
        walk: "model{wte wpe h.*{attn{c_attn c_proj} mlp{c_fc c_proj} ln_1! ln_2!} ln_f!}",
        steps: &[
            Drop(&["h.#.attn.bias"], "a mask that is computed"),
            Swap("h.#.attn.c_attn.weight"),
            Swap("h.#.attn.c_proj.weight"),
            Swap("h.#.mlp.c_fc.weight"),
            Swap("h.#.mlp.c_proj.weight"),
            Under("model."),
        ],
        ..PLAIN
    },
    Family {
        types: &["gpt_neox"],
        walk: "model{embed_in embed_out h.*{attention{query_key_value dense} mlp{dense_h_to_4h dense_4h_to_h}
            input_layernorm! post_attention_layernorm!} final_layer_norm!}",
        steps: &[
            Drop(&["*.attention.bias", "*.attention.masked_bias", "*.attention.rotary_emb.inv_freq"], "computed"),
            Under("model."),
            Rename("model.gpt_neox.layers.*", "model.h.*"),
            Rename("model.gpt_neox.*", "model.*"),
        ],
        ..PLAIN
    },
    Family {
        types: &["gptj"],
        walk: "model{wte h.*{ln_1! attn{k_proj v_proj q_proj out_proj} mlp{fc_in fc_out}} ln_f!} lm_head",
        steps: &[
            Drop(&["transformer.h.#.attn.bias", "transformer.h.#.attn.masked_bias"], "a mask that is computed"),
            Rename("transformer.*", "model.*"),
        ],
        ..PLAIN
    },
    Family {
        types: &["internlm2"],
        walk: "model{tok_embeddings layers.*{attention{wqkv wo} feed_forward{w1 w2 w3} attention_norm! ffn_norm!}
            norm!} output",
        steps: &[Drop(&["*attention.rope.inv_freq*"], "rotary frequencies are computed")],
        ..PLAIN
    },
    Family {
        types: &["internlm3"],
        walk: "model{embed_tokens layers.*{self_attn{q_proj k_proj v_proj o_proj} mlp{gate_proj down_proj up_proj}
            input_layernorm! post_attention_layernorm!} norm!} lm_head",
        steps: &[Drop(&["*attention.rope.inv_freq*"], "rotary frequencies are computed")],
        ..PLAIN
    },
    Family {
        types: &["minicpm"],
        walk: "model{embed_tokens layers.*{self_attn{q_proj k_proj v_proj o_proj} mlp{gate_proj up_proj down_proj}
            input_layernorm! post_attention_layernorm!} norm!} lm_head",
        steps: &[Copy("model.embed_tokens.weight", "lm_head.weight")],
        ..PLAIN
    },
    Family {
        types: &["apertus"],
        walk: "model{embed_tokens layers.*{self_attn{q_proj k_proj v_proj o_proj q_norm! k_norm!} mlp{up_proj
            down_proj act_fn!(alpha_p,alpha_n,beta,eps)} attention_layernorm! feedforward_layernorm!} norm!}
            lm_head",
        steps: &[Squeeze(&["*alpha_p", "*alpha_n"]), Tied(false)],
        ..PLAIN
    },
    Family {
        types: &["mimo"],
        walk: "model{embed_tokens layers.*{self_attn{q_proj k_proj v_proj o_proj} mlp{gate_proj down_proj up_proj}
            input_layernorm! post_attention_layernorm!} norm!} lm_head",
        steps: &[Tied(false), ROTARY, Drop(&["model.mtp_layers.*"], MTP)],
        ..PLAIN
    },
    Family {
        types: &["lille-130m"],
        walk: "transformer{tok_embeddings layers.*{attention{qkv_proj out_proj norm!} feed_forward{norm! gate_proj
            up_proj down_proj}} norm!}",
        steps: &[Drop(&["*rotary_emb*"], "rotary frequencies are computed")],
        ..PLAIN
    },
    Family {
        types: &["spark2_5"],
        walk: "model{embedding layers.*{self_attn{q_k_v_proj g_proj out_proj} mlp{gate_proj up_proj down_proj}
            input_layernorm! post_attention_layernorm!} norm!} lm_head",
        steps: &[
            Rename("model.embed_tokens.weight", "model.embedding.weight"),
            Tied(true),
            Drop(&["*rotary_emb.inv_freq*"], "rotary frequencies are computed"),
        ],
        dense: &["*self_attn.g_proj"],
        ..PLAIN
    },
    Family {
        types: &["nemotron-nas"],
        walk: "model{embed_tokens layers.*{input_layernorm! self_attn{q_proj k_proj v_proj o_proj linear}
            post_attention_layernorm! mlp{gate_proj down_proj up_proj linear}} norm!} lm_head",
        steps: &[Tied(false)],
        ..PLAIN
    },
    Family {
        types: &["iquestloopcoder"],
        walk: "model{embed_tokens layers.*{self_attn{q_proj k_proj v_proj o_proj} mlp{gate_proj down_proj up_proj}
            input_layernorm! post_attention_layernorm!} norm! gate_projections.*!} lm_head",
        ..PLAIN
    },
    Family {
        types: &["talkie"],
        walk: "model{embed blocks.*{attn{attn_query attn_key attn_value attn_resid head_gain!(head_g)}
            attn_gain!(a_g) mlp{mlp_gate mlp_linear mlp_resid} mlp_gain!(a_g) embed_skip!(a_g)}} lm_head=
            lm_head_gain!(w_g)",
        steps: &[Drop(&["*rotary*", "*cos", "*sin"], "rotary frequencies are computed")],
        ..PLAIN
    },
    Family {
        types: &["falcon_h1"],
        steps: &[Refuse(
            &["*"],
            "mlx_lm multiplies its weights by the multipliers of config.json, which cannot be shown without computing",
        )],
        ..PLAIN
    },
    Family {
        types: &["baichuan_m1"],
        steps: &[Refuse(&["*"], "mlx_lm normalizes lm_head.weight, which cannot be shown without computing")],
        ..PLAIN
    },
];
