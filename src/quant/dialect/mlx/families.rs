//! The model families of mlx-lm 0.32.2 as data: a table for each kinship.
//!
//! Each entry was checked against the reference: `tests/golden/dialect/<model_type>.json` holds what
//! mlx_lm made of a small model of it. Families whose weights mlx_lm computes are listed as refused.

mod dense;
mod moe;
mod recurrent;
mod towers;

use std::{collections::HashMap, sync::LazyLock};

use super::{
    model::Family,
    step::Step::{self, Drop, Stack},
    walk::Walk,
};

/// A family with its walk parsed.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) family: &'static Family,
    pub(super) walk: Walk,
}

static TABLES: [&[Family]; 4] = [dense::FAMILIES, moe::FAMILIES, recurrent::FAMILIES, towers::FAMILIES];

static KNOWN: LazyLock<HashMap<&str, Known>> = LazyLock::new(|| {
    let families = TABLES.iter().copied().flatten();
    families
        .flat_map(|family| family.types.iter().map(move |t| (*t, Known { family, walk: Walk::new(family.walk) })))
        .collect()
});

/// Every `model_type` of the tables, sorted.
pub(super) fn all() -> Vec<&'static str> {
    let mut types: Vec<&str> = KNOWN.keys().copied().collect();
    types.sort_unstable();
    types
}

/// The family of a `model_type`.
pub(super) fn find(model_type: &str) -> Option<&'static Known> {
    KNOWN.get(model_type)
}

const MTP: &str = "multi-token prediction is not part of mlx_lm's model";
const TOWER: &str = "not the language model";
const ROTARY: Step = Drop(&["*self_attn.rotary_emb.inv_freq*"], "rotary frequencies are computed");
const E_SCORE: &[&str] = &["*e_score_correction_bias*"];
/// The norms that Qwen3-Next and its successors store as `w - 1`.
const NORMS: &[&str] = &[
    "*.input_layernorm.weight",
    "*.post_attention_layernorm.weight",
    "*model.norm.weight",
    "*.q_norm.weight",
    "*.k_norm.weight",
];

/// The usual experts, stacked beside their old place.
const fn experts(count: &'static str) -> Step {
    Stack("*.mlp.experts.#.*_proj.weight", "*.mlp.switch_mlp.*_proj.weight", count)
}

/// The usual experts, stacked where they were.
const fn experts_in_place(count: &'static str) -> Step {
    Stack("*.mlp.experts.#.*_proj.weight", "*.mlp.experts.*_proj.weight", count)
}

/// The gates of Mixtral's experts.
const fn w1(count: &'static str) -> Step {
    Stack("*.block_sparse_moe.experts.#.w1.weight", "*.block_sparse_moe.switch_mlp.gate_proj.weight", count)
}

/// The down projections of Mixtral's experts.
const fn w2(count: &'static str) -> Step {
    Stack("*.block_sparse_moe.experts.#.w2.weight", "*.block_sparse_moe.switch_mlp.down_proj.weight", count)
}

/// The up projections of Mixtral's experts.
const fn w3(count: &'static str) -> Step {
    Stack("*.block_sparse_moe.experts.#.w3.weight", "*.block_sparse_moe.switch_mlp.up_proj.weight", count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Step::If;

    #[test]
    fn tables_are_sound() {
        let families: Vec<&Family> = TABLES.iter().copied().flatten().collect();
        let types = families.iter().map(|f| f.types.len()).sum::<usize>();
        assert_eq!(types, KNOWN.len(), "a model_type stands in two entries");
        for family in families {
            for step in family.steps {
                let If(_, inner) = step else { continue };
                assert!(!inner.iter().any(|s| matches!(s, If(..))), "{:?}: guards do not nest", family.types);
            }
        }
    }
}
