//! The dialect of GPTQ's loaders: `quantization_config` as gptqmodel writes it.
//!
//! What differs from the view's scheme is told in `dynamic`, by one pattern for each module: `-:` for what is
//! dense, `+:` for what has other parameters (gptqmodel, vLLM and SGLang read it). transformers reads
//! `modules_in_block_to_quantize` instead, which is written where any layer but the output layer is dense; it has no word for other parameters.

use serde_json::{Map, Value, json};

use crate::quant::{
    Scheme,
    dialect::{Arranged, Arrangement, Choice, Component, Decided, Dialect, experts, hf},
};

/// Loaders of the `gptq` format.
#[derive(Debug)]
pub struct Gptq;

/// The one instance.
pub static GPTQ: Gptq = Gptq;

/// The key that speaks for all layers of a checkpoint.
const FORMAT: &str = "checkpoint_format";
/// What a pattern of `dynamic` begins with: its modules are dense, or have other parameters.
const DENSE: &str = "-:";
const OTHER: &str = "+:";
/// The one output layer that a config can say is quantized.
const HEAD: &str = "lm_head";

impl Dialect for Gptq {
    fn name(&self) -> &'static str {
        "gptq"
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

    fn mixes(&self, view: &dyn Scheme, other: &dyn Scheme) -> bool {
        view.config()[FORMAT] == other.config()[FORMAT]
    }

    fn check(&self, default: Option<&dyn Scheme>, decided: &[Decided<'_>]) -> Result<(), String> {
        match hf::odd_one(default, decided, |own, top| own[FORMAT] == top[FORMAT]) {
            None => Ok(()),
            Some(other) => Err(format!(
                "{} would have its zero points stored as {}, but one {FORMAT} speaks for all layers; give rules the \
                 view's version",
                other.tensor.info.name, other.config[FORMAT]
            )),
        }
    }

    fn misread(&self, default: Option<&dyn Scheme>, decided: &[Decided<'_>]) -> Vec<String> {
        let head = quantized(decided).any(|name| name == HEAD).then(|| format!("{HEAD} is quantized"));
        let other = hf::odd_one(default, decided, |own, top| own == top)
            .map(|d| format!("{} has other parameters than the view's", d.tensor.info.name));
        let told = |what| format!("{what}, which transformers misreads; gptqmodel, vLLM and SGLang read it");
        head.into_iter().chain(other).map(told).collect()
    }

    fn config(
        &self,
        component: &Component<'_>,
        default: Option<&dyn Scheme>,
        decided: &[Decided<'_>],
    ) -> Option<Vec<u8>> {
        let mut block = hf::top(default, decided)?;
        let dynamic = dynamic(component, &block, decided);
        block["quant_method"] = json!("gptq");
        block["desc_act"] = json!(false);
        block[HEAD] = json!(quantized(decided).any(|name| name == HEAD));
        if dynamic.keys().any(|key| key.starts_with(DENSE)) {
            let names: Vec<&str> = quantized(decided).filter(|name| *name != HEAD).collect();
            block["modules_in_block_to_quantize"] = json!([names]);
        }
        if !dynamic.is_empty() {
            block["dynamic"] = Value::Object(dynamic);
        }
        hf::config(component, block)
    }

    fn metadata(&self, _: &Component<'_>, source: &[(String, String)]) -> Vec<(String, String)> {
        hf::metadata(source)
    }
}

fn quantized<'a>(decided: &'a [Decided<'_>]) -> impl Iterator<Item = &'a str> {
    decided.iter().filter(|d| d.facts.is_some()).filter_map(|d| d.tensor.module())
}

/// A pattern for each layer that is not as the config's first lines say.
fn dynamic(component: &Component<'_>, top: &Value, decided: &[Decided<'_>]) -> Map<String, Value> {
    let dense = hf::dense_layers(component, decided).into_iter().filter(|name| name != HEAD);
    let mut all: Map<String, Value> = dense.map(|name| (format!("{DENSE}{}", pattern(&name)), json!({}))).collect();
    for d in decided.iter().filter(|d| d.facts.is_some() && d.config != *top) {
        let own = ["bits", "group_size", "sym"].into_iter().map(|key| (key.to_owned(), d.config[key].clone()));
        all.extend(d.tensor.module().map(|name| (format!("{OTHER}{}", pattern(name)), Value::Object(own.collect()))));
    }
    all
}

/// The regular expression of one name.
fn pattern(name: &str) -> String {
    let mut out = "^".to_owned();
    for c in name.chars() {
        if r".^$*+?{}[]\|()".contains(c) {
            out.push('\\');
        }
        out.push(c);
    }
    out + "$"
}
