//! mlx_lm's mixed recipes: more bits for the outer and for every third layer's values and down projections, and for
//! the output layer.
//!
//! The choice of modules is `mixed_quant_predicate_builder` of mlx-lm 0.32.2. Module names are taken as strings
//! there, and so they are here: `qkv_proj` contains `v_proj`.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::quant::{
    Facts,
    dialect::{Arranged, Choice},
};

/// Name, scheme of most modules, scheme of the modules that get more bits.
const RECIPES: [(&str, &str, &str); 4] = [
    ("mixed_2_6", "2bit", "6bit"),
    ("mixed_3_4", "3bit", "4bit"),
    ("mixed_3_6", "3bit", "6bit"),
    ("mixed_4_6", "4bit", "6bit"),
];

/// Their names.
pub const NAMES: &[&str] = &[RECIPES[0].0, RECIPES[1].0, RECIPES[2].0, RECIPES[3].0];

/// The group that mlx takes where its config says `null`.
const UNSAID_GROUP: usize = 64;

/// Parts of names whose modules get more bits in some of the layers.
const SOMETIMES: [&str; 4] = ["v_proj", "v_a_proj", "v_b_proj", DOWN];
/// By which the numbered layers are found.
const DOWN: &str = "down_proj";
/// The output layer gets more bits always.
const ALWAYS: &str = "lm_head";

/// A mixed recipe, for the modules of one model.
#[derive(Clone, Debug)]
pub struct Mixed {
    low: &'static str,
    high: &'static str,
    /// Where the number of a layer stands among the words of a name.
    at: usize,
    layers: usize,
    /// Whether config.json has the group size, or null.
    states_group: bool,
}

impl Mixed {
    /// The recipe of a name for the model of these tensors. `states_group` is whether the group size was asked for:
    /// otherwise mlx_lm leaves it open in config.json.
    ///
    /// # Errors
    /// An unknown name; modules of which the predicate cannot tell a layer.
    pub(super) fn new(name: &str, states_group: bool, tensors: &[Arranged]) -> Result<Self, String> {
        let known = RECIPES.iter().find(|(known, ..)| *known == name);
        let &(_, low, high) =
            known.ok_or_else(|| format!("unknown recipe {name}; mlx_lm's are {}", NAMES.join(", ")))?;
        let modules = || tensors.iter().filter_map(Arranged::module);
        // mlx walks modules from the last to the first, and the predicate goes by the first that it meets.
        let down = modules().rev().find(|module| module.contains(DOWN));
        let down = down.ok_or_else(|| format!("{name} is for models whose layers have a {DOWN}, and here is none"))?;
        let words: Vec<&str> = down.split('.').collect();
        let numbered = words.iter().position(|word| is_number(word));
        let at = numbered.ok_or_else(|| format!("{name} goes by the layers' numbers, and {down} has none"))?;
        let list = words[..at].iter().map(|word| format!("{word}.")).collect::<String>();
        let within = tensors.iter().filter_map(|t| t.info.name.strip_prefix(&list)?.split('.').next());
        let layers = within.filter(|word| is_number(word)).collect::<HashSet<_>>().len();
        Ok(Self { low, high, at, layers, states_group })
    }

    /// What becomes of a module that can be quantized, under a view's own parameters.
    pub(super) fn choose(&self, module: &str, default: &Facts) -> Choice {
        let favoured = || self.favours(self.layer(module).unwrap_or(0));
        let more = module.contains(ALWAYS) || (SOMETIMES.iter().any(|part| module.contains(part)) && favoured());
        let scheme = if more { self.high } else { self.low };
        let bits: u32 = scheme.trim_end_matches("bit").parse().unwrap_or_default();
        let stated = self.states_group || default.group_size != UNSAID_GROUP;
        let group = if stated { json!(default.group_size) } else { Value::Null };
        let entry = json!({ "group_size": group, "bits": bits, "mode": default.mode });
        Choice::Other { scheme, group_size: default.group_size, entry }
    }

    /// Whether a module's name has a number where those of the layers have theirs, or is too short to have one.
    pub(super) fn places(&self, module: &str) -> bool {
        self.layer(module).is_some()
    }

    /// The number of a module's layer, 0 where its name is too short to have one.
    fn layer(&self, module: &str) -> Option<usize> {
        module.split('.').nth(self.at).map_or(Some(0), |word| word.parse().ok())
    }

    fn favours(&self, layer: usize) -> bool {
        let eighth = self.layers / 8;
        layer < eighth || layer >= 7 * self.layers / 8 || (layer - eighth) % 3 == 2
    }
}

fn is_number(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit())
}
