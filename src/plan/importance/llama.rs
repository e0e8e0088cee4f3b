//! GGUF's names of the weights of llama-family models, from those of Hugging Face's.
//!
//! Queries and keys are permuted in GGUF along their rows, which importance is not of.

/// Where the layers of a decoder are.
const PREFIXES: [&str; 5] = [
    "model.layers.",
    "layers.",
    "language_model.model.layers.",
    "model.language_model.layers.",
    "language_model.layers.",
];

/// Modules outside of layers, by the end of their names.
const OUTSIDE: [(&str, &str); 2] = [("lm_head", "output"), ("embed_tokens", "token_embd")];

/// Modules of a layer.
const MODULES: [(&str, &str); 26] = [
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.qkv_proj", "attn_qkv"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_a_proj", "attn_q_a"),
    ("self_attn.q_b_proj", "attn_q_b"),
    ("self_attn.kv_a_proj_with_mqa", "attn_kv_a_mqa"),
    ("self_attn.kv_b_proj", "attn_kv_b"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.gate_up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("feed_forward.gate_proj", "ffn_gate"),
    ("feed_forward.up_proj", "ffn_up"),
    ("feed_forward.down_proj", "ffn_down"),
    ("mlp.gate", "ffn_gate_inp"),
    ("block_sparse_moe.gate", "ffn_gate_inp"),
    ("feed_forward.router", "ffn_gate_inp"),
    ("mlp.shared_expert_gate", "ffn_gate_inp_shexp"),
    ("mlp.shared_expert.gate_proj", "ffn_gate_shexp"),
    ("mlp.shared_expert.up_proj", "ffn_up_shexp"),
    ("mlp.shared_expert.down_proj", "ffn_down_shexp"),
    ("mlp.shared_experts.gate_proj", "ffn_gate_shexp"),
    ("mlp.shared_experts.up_proj", "ffn_up_shexp"),
    ("mlp.shared_experts.down_proj", "ffn_down_shexp"),
];

/// Products of an expert, or of a stack of them. Gates and up projections have the same input.
const EXPERTS: [(&str, &str); 7] = [
    ("gate_proj", "ffn_gate_exps"),
    ("up_proj", "ffn_up_exps"),
    ("gate_up_proj", "ffn_gate_exps"),
    ("down_proj", "ffn_down_exps"),
    ("w1", "ffn_gate_exps"),
    ("w3", "ffn_up_exps"),
    ("w2", "ffn_down_exps"),
];

/// The name of a module, without `.weight`, and which of a stack of experts it is.
pub(super) fn name(module: &str) -> Option<(String, Option<usize>)> {
    let Some(rest) = PREFIXES.iter().find_map(|prefix| module.strip_prefix(prefix)) else {
        let last = module.rsplit('.').next()?;
        return Some((found(&OUTSIDE, last)?.to_owned(), None));
    };
    let (layer, rest) = rest.split_once('.')?;
    let layer: u32 = layer.parse().ok()?;
    let (word, expert) = match rest.split_once(".experts.") {
        None => (found(&MODULES, rest)?, None),
        Some((_, rest)) => match rest.split_once('.') {
            None => (found(&EXPERTS, rest)?, None),
            Some((expert, rest)) => (found(&EXPERTS, rest)?, Some(expert.parse().ok()?)),
        },
    };
    Some((format!("blk.{layer}.{word}"), expert))
}

fn found(words: &[(&str, &'static str)], module: &str) -> Option<&'static str> {
    words.iter().find(|(theirs, _)| *theirs == module).map(|(_, word)| *word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_gguf() {
        for (module, expected) in [
            ("model.layers.3.self_attn.q_proj", Some(("blk.3.attn_q", None))),
            ("model.language_model.layers.0.mlp.down_proj", Some(("blk.0.ffn_down", None))),
            ("model.layers.11.mlp.experts.5.gate_proj", Some(("blk.11.ffn_gate_exps", Some(5)))),
            ("model.layers.1.block_sparse_moe.experts.7.w2", Some(("blk.1.ffn_down_exps", Some(7)))),
            ("model.layers.1.mlp.experts.gate_up_proj", Some(("blk.1.ffn_gate_exps", None))),
            ("model.layers.1.mlp.gate", Some(("blk.1.ffn_gate_inp", None))),
            ("lm_head", Some(("output", None))),
            ("model.embed_tokens", Some(("token_embd", None))),
            // Another tower has layers of its own.
            ("vision_tower.vision_model.encoder.layers.3.self_attn.q_proj", None),
            ("model.layers.x.self_attn.q_proj", None),
            ("model.layers.0.mlp.experts.x.up_proj", None),
            ("model.layers.0.input_layernorm", None),
        ] {
            assert_eq!(name(module), expected.map(|(word, expert)| (word.to_owned(), expert)), "{module}");
        }
    }
}
