//! The dialect of AWQ's loaders: `quantization_config` as AutoAWQ writes it.
//!
//! One group size speaks for all layers, and what is dense is listed by its full name: a list replaces the
//! loaders' default, but for the output layer, which they never quantize.

use serde_json::json;

use crate::quant::{
    Scheme,
    dialect::{Arranged, Arrangement, Choice, Component, Decided, Dialect, experts, hf},
};

/// Loaders of the `awq` format.
#[derive(Debug)]
pub struct Awq;

/// The one instance.
pub static AWQ: Awq = Awq;

impl Dialect for Awq {
    fn name(&self) -> &'static str {
        "awq"
    }

    fn arrange(&self, component: &Component<'_>) -> Result<Arrangement, String> {
        Ok(experts::apart(component))
    }

    fn choose(&self, component: &Component<'_>, tensor: &Arranged, _: &dyn Scheme) -> Choice {
        match hf::choose(component, tensor) {
            Choice::Keep(why) if tensor.module() == Some("lm_head") => {
                Choice::Never(format!("{why}, which AWQ's loaders take dense"))
            }
            choice => choice,
        }
    }

    fn siblings(&self, stem: &str) -> Option<String> {
        hf::siblings(stem)
    }

    fn mixes(&self, view: &dyn Scheme, other: &dyn Scheme) -> bool {
        view.config() == other.config()
    }

    fn check(&self, default: Option<&dyn Scheme>, decided: &[Decided<'_>]) -> Result<(), String> {
        match hf::odd_one(default, decided, |own, top| own == top) {
            None => Ok(()),
            Some(other) => Err(format!(
                "{} would have other groups than the view; AWQ's config has one size for all layers, so give rules no other",
                other.tensor.info.name
            )),
        }
    }

    fn config(
        &self,
        component: &Component<'_>,
        default: Option<&dyn Scheme>,
        decided: &[Decided<'_>],
    ) -> Option<Vec<u8>> {
        let mut block = hf::top(default, decided)?;
        let dense = hf::dense_layers(component, decided);
        let only_head = dense.iter().all(|name| name == "lm_head");
        block["quant_method"] = json!("awq");
        block["modules_to_not_convert"] = if only_head { json!(null) } else { json!(dense) };
        hf::config(component, block)
    }

    fn metadata(&self, _: &Component<'_>, source: &[(String, String)]) -> Vec<(String, String)> {
        hf::metadata(source)
    }
}
