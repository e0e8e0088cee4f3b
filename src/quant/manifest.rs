//! `quantization.json`: the manifest at the root of every view, in zimage.swift's schema.
//!
//! Top level: `bits`, `group_size`, `mode`, `layers`, and `model_id` and `revision` where they are
//! known; a layer: `name`, `shape`, `in_dim`, `out_dim`, `file`, `quant_file` and its own `bits`,
//! `group_size`, `mode`. Ours has `format` and `spec` in each layer and `options` at the top level;
//! the reader takes no notice of keys that it does not know.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use crate::quant::Facts;

/// One quantized weight of a view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Directory of its component, empty at the root.
    pub component: String,
    /// Name of the module within the component.
    pub base: String,
    /// `[out, in]`, or `[experts, out, in]` for a stack.
    pub shape: Vec<usize>,
    /// The source file that its first element comes from.
    pub file: String,
    /// The file of the view that holds it.
    pub quant_file: String,
    /// Its bits, group and mode.
    pub facts: Facts,
    /// Name of its format.
    pub format: &'static str,
    /// Canonical spelling of its spec.
    pub spec: String,
}

/// What the manifest says of the whole view.
#[derive(Clone, Debug)]
pub struct Head<'a> {
    /// Parameters of the view's own scheme.
    pub default: &'a Facts,
    /// `org/name` and commit of the source, where they are known.
    pub repo: Option<(&'a str, &'a str)>,
    /// What the view was asked to be, enough to make it again.
    pub options: Value,
}

/// The manifest's bytes, in the style of Swift's `JSONEncoder` with `prettyPrinted` and `sortedKeys`.
///
/// The reader looks a layer up by its name without the component and takes the top level's parameters
/// where it finds none. So a view that mixes parameters lists its layers under their short names, too;
/// each name once, since the first entry of a name is the one that is found.
#[must_use]
pub fn render(head: &Head<'_>, layers: &[Layer]) -> Vec<u8> {
    let mixed = layers.iter().any(|l| l.facts != *head.default);
    let full = layers.iter().map(|l| (l.full_name(), l));
    let short = layers.iter().filter(|_| mixed).map(|l| (l.base.clone(), l));
    let mut seen = HashSet::new();
    let named = full.chain(short).filter(|(name, _)| seen.insert(name.clone()));
    let listed: Vec<Value> = named.map(|(name, layer)| entry(layer, &name)).collect();
    let mut manifest = json!({
        "bits": head.default.bits,
        "group_size": head.default.group_size,
        "mode": head.default.mode,
        "layers": listed,
        "options": head.options,
    });
    if let (Some((id, revision)), Some(top)) = (head.repo, manifest.as_object_mut()) {
        top.insert("model_id".to_owned(), id.into());
        top.insert("revision".to_owned(), revision.into());
    }
    let mut text = String::new();
    write(&manifest, 0, &mut text);
    text.into_bytes()
}

impl Layer {
    /// `<component>.<base>`, as zimage.swift's quantizer names it.
    fn full_name(&self) -> String {
        if self.component.is_empty() {
            self.base.clone()
        } else {
            format!("{}.{}", self.component.replace('/', "."), self.base)
        }
    }
}

fn entry(layer: &Layer, name: &str) -> Value {
    let dim = |back: usize| layer.shape.iter().rev().nth(back).copied().unwrap_or(1);
    json!({
        "name": name,
        "shape": layer.shape,
        "in_dim": dim(0),
        "out_dim": dim(1),
        "file": layer.file,
        "quant_file": layer.quant_file,
        "bits": layer.facts.bits,
        "group_size": layer.facts.group_size,
        "mode": layer.facts.mode,
        "format": layer.format,
        "spec": layer.spec,
    })
}

/// Swift's style: two spaces, sorted keys, a space on both sides of a colon, `/` escaped.
fn write(value: &Value, depth: usize, out: &mut String) {
    match value {
        Value::Object(map) => block(out, depth, ['{', '}'], sorted(map), |(key, value), out| {
            write(&Value::from(key.as_str()), depth, out);
            out.push_str(" : ");
            write(value, depth + 1, out);
        }),
        Value::Array(items) => {
            block(out, depth, ['[', ']'], items.iter().collect(), |item, out| write(item, depth + 1, out));
        }
        Value::String(text) => out.push_str(&Value::from(text.as_str()).to_string().replace('/', "\\/")),
        other => out.push_str(&other.to_string()),
    }
}

fn sorted(map: &Map<String, Value>) -> Vec<(&String, &Value)> {
    let mut entries: Vec<_> = map.iter().filter(|(_, v)| !v.is_null()).collect();
    entries.sort_by_key(|(name, _)| *name);
    entries
}

fn block<T>(
    out: &mut String,
    depth: usize,
    [open, close]: [char; 2],
    items: Vec<T>,
    mut each: impl FnMut(T, &mut String),
) {
    let line = |out: &mut String, depth: usize| {
        out.push('\n');
        out.push_str(&"  ".repeat(depth));
    };
    out.push(open);
    let empty = items.is_empty();
    for (i, item) in items.into_iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        line(out, depth + 1);
        each(item, out);
    }
    if empty {
        out.push('\n');
    }
    line(out, depth);
    out.push(close);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn style_is_swifts() {
        let mut text = String::new();
        write(&json!({"b": [1, 2], "a": "x/y", "none": null, "e": [], "o": {"k": 1.5}}), 0, &mut text);
        assert_eq!(
            text,
            "{\n  \"a\" : \"x\\/y\",\n  \"b\" : [\n    1,\n    2\n  ],\n  \"e\" : [\n\n  ],\n  \"o\" : {\n    \"k\" : 1.5\n  }\n}"
        );
    }

    fn layer(component: &str, base: &str, bits: u32) -> Layer {
        Layer {
            component: component.into(),
            base: base.into(),
            shape: vec![8, 64],
            file: "transformer/model.safetensors".into(),
            quant_file: "transformer/model.safetensors".into(),
            facts: Facts { bits, group_size: 32, mode: "affine" },
            format: "zimage",
            spec: format!("zimage-{bits}bit-g32"),
        }
    }

    fn manifest(layers: &[Layer]) -> Value {
        let default = Facts { bits: 8, group_size: 32, mode: "affine" };
        let head = Head { default: &default, repo: Some(("org/name", "abc")), options: Value::Null };
        serde_json::from_slice(&render(&head, layers)).unwrap_or_default()
    }

    fn names(manifest: &Value) -> Vec<(&str, u64)> {
        let layers = manifest["layers"].as_array().into_iter().flatten();
        layers.filter_map(|l| Some((l["name"].as_str()?, l["bits"].as_u64()?))).collect()
    }

    #[test]
    fn views_that_mix_list_short_names() {
        let plain = manifest(&[layer("transformer", "a", 8), layer("", "b", 8)]);
        assert_eq!(names(&plain), [("transformer.a", 8), ("b", 8)]);
        let mixed = manifest(&[layer("transformer", "a", 4), layer("text/encoder", "a", 8), layer("", "b", 8)]);
        assert_eq!(names(&mixed), [("transformer.a", 4), ("text.encoder.a", 8), ("b", 8), ("a", 4)]);
    }

    #[test]
    fn the_schema_is_the_readers() {
        let made = manifest(&[layer("transformer", "a \"\u{e9}/", 4)]);
        assert_eq!(
            (made["model_id"].as_str(), made["revision"].as_str(), made.get("options")),
            (Some("org/name"), Some("abc"), None)
        );
        let first = &made["layers"][0];
        assert_eq!(first["name"], "transformer.a \"\u{e9}/");
        assert_eq!(
            (first["in_dim"].as_u64(), first["out_dim"].as_u64(), first["shape"].to_string()),
            (Some(64), Some(8), "[8,64]".into())
        );
    }
}
