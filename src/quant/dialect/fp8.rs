//! The dialect of `quant_method: fp8`: every linear layer but the output layer and routers, experts included.
//!
//! `modules_to_not_convert` names every linear layer that the view shows dense: a list replaces what loaders leave
//! by themselves.

use serde_json::json;

use crate::quant::{
    Scheme,
    dialect::{Arranged, Arrangement, Choice, Component, Decided, Dialect, experts, hf},
};

/// Loaders of the published block layout.
#[derive(Debug)]
pub struct Fp8;

/// The one instance.
pub static FP8: Fp8 = Fp8;

impl Dialect for Fp8 {
    fn name(&self) -> &'static str {
        "fp8"
    }

    fn arrange(&self, component: &Component<'_>) -> Result<Arrangement, String> {
        Ok(experts::apart(component))
    }

    fn choose(&self, component: &Component<'_>, tensor: &Arranged, _: &dyn Scheme) -> Choice {
        hf::choose(component, tensor)
    }

    fn siblings(&self, stem: &str) -> Option<String> {
        hf::siblings(stem)
    }

    fn config(
        &self,
        component: &Component<'_>,
        default: Option<&dyn Scheme>,
        decided: &[Decided<'_>],
    ) -> Option<Vec<u8>> {
        let size = default?.facts().group_size;
        let block = json!({
            "activation_scheme": "dynamic",
            "modules_to_not_convert": hf::dense_layers(component, decided),
            "quant_method": "fp8",
            "weight_block_size": [size, size],
        });
        decided.iter().any(|d| d.facts.is_some()).then(|| hf::config(component, block))?
    }

    fn metadata(&self, _: &Component<'_>, source: &[(String, String)]) -> Vec<(String, String)> {
        hf::metadata(source)
    }
}
