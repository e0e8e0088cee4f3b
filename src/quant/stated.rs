//! What a directory says of its quantization: `config.json`, `quantization.json`, and the states that
//! bitsandbytes keeps as text in tensors.
//!
//! A config's block names a default and single modules; a module's entry inherits nothing from the
//! default, as in mlx_lm: where it names no mode it is affine, and where it names no size it has
//! MLX's own defaults. A manifest's layers do inherit. compressed-tensors' block has groups of modules instead.
//!
//! Knows no tensor: whether what is said fits the tensors is [`recognize`](super::recognize)'s.

use std::collections::HashMap;

use serde_json::{Map, Value};

use crate::tensor::{Dtype, Float, TensorInfo};

/// What is said of one module; what is not said is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stated {
    /// `affine`, `mxfp4`, ...
    pub mode: Option<String>,
    /// Bits of a code.
    pub bits: Option<u32>,
    /// Elements of a group.
    pub group_size: Option<usize>,
    /// Rows of a matrix.
    pub rows: Option<usize>,
    /// Elements of a row.
    pub cols: Option<usize>,
    /// The dtype of the source.
    pub float: Option<Float>,
}

/// One document: a default and what it says of modules.
#[derive(Clone, Debug)]
struct Document {
    default: Option<Stated>,
    modules: HashMap<String, Stated>,
    /// Whether it is made of the states of tensors.
    of_states: bool,
}

/// What stands between the module and the kind in the name of a tensor that holds a state.
const STATE: &str = ".weight.quant_state.bitsandbytes__";
/// A state is shorter than this.
const LONGEST_STATE: usize = 4096;

/// Whether a tensor holds the text of a state, which [`Statements::add_state`] wants.
#[must_use]
pub fn is_state(info: &TensorInfo) -> bool {
    info.dtype == Dtype::U8 && info.name.contains(STATE) && info.elements().is_some_and(|n| n <= LONGEST_STATE)
}

/// What all documents of a directory say, the first one first.
#[derive(Clone, Debug, Default)]
pub struct Statements {
    documents: Vec<Document>,
}

impl Statements {
    /// Adds a `config.json`: its `quantization`, else its `quantization_config`, which Hugging Face
    /// readers look at. A config without either says nothing.
    pub fn add_config(&mut self, config: &Value) {
        let block = |key: &str| config.get(key).and_then(Value::as_object);
        let Some(block) = block("quantization").or_else(|| block("quantization_config")) else { return };
        if matches!(block.get("quant_method").and_then(Value::as_str), Some("bitsandbytes" | "fp8")) {
            // Their tensors tell.
            return;
        }
        if let Some(groups) = block.get("config_groups").and_then(Value::as_object) {
            self.documents.push(of_groups(block.get("format"), groups));
            return;
        }
        let modules = block.iter().filter(|(_, entry)| entry.is_object());
        let modules = modules.map(|(stem, entry)| (stem.clone(), entry_of_config(entry))).collect();
        let mut default = read(&Value::Object(block.clone()));
        let method = method(block);
        default.mode.get_or_insert_with(|| method.unwrap_or("affine").to_owned());
        self.documents.push(Document { default: Some(default), modules, of_states: false });
    }

    /// Adds a `quantization.json` that lies at the root of the component `component` (`transformer`),
    /// or in the directory itself where that is empty. A manifest of a root that lists no layer of
    /// the component says nothing of it.
    pub fn add_manifest(&mut self, manifest: &Value, component: &str) {
        let default = read(manifest);
        let prefix = component.replace('/', ".");
        let listed = manifest.get("layers").and_then(Value::as_array).into_iter().flatten();
        let mut modules = HashMap::new();
        for layer in listed {
            let Some(stem) = layer.get("name").and_then(Value::as_str).and_then(|name| below(name, &prefix)) else {
                continue;
            };
            let own = read(layer);
            let stated = Stated {
                mode: own.mode.or_else(|| default.mode.clone()),
                bits: own.bits.or(default.bits),
                group_size: own.group_size.or(default.group_size),
                rows: own.rows,
                cols: own.cols,
                float: None,
            };
            modules.entry(stem.to_owned()).or_insert(stated);
        }
        if component.is_empty() || !modules.is_empty() {
            self.documents.push(Document { default: Some(default), modules, of_states: false });
        }
    }

    /// Adds a tensor that holds what bitsandbytes says of a weight (see [`is_state`]).
    ///
    /// # Errors
    /// A text that says nothing of a matrix, or lacks what its parts need.
    pub fn add_state(&mut self, tensor: &str, text: &[u8]) -> Result<(), String> {
        let Some((stem, kind)) = tensor.split_once(STATE) else { return Ok(()) };
        // Python writes offsets that are not finite as words that JSON has not.
        let text = String::from_utf8_lossy(text).replace("-Infinity", "0").replace("Infinity", "0").replace("NaN", "0");
        let value: Value = serde_json::from_str(&text).map_err(|e| format!("is no JSON: {e}"))?;
        let number = |key: &str| value.get(key).and_then(Value::as_u64);
        let shape = value.get("shape").and_then(Value::as_array).map(Vec::as_slice);
        let Some([rows, cols]) = shape else { return Err("says no shape of a matrix".to_owned()) };
        if value.get("nested_blocksize").is_some() && value.get("nested_offset").and_then(Value::as_f64).is_none() {
            return Err("says no nested_offset".to_owned());
        }
        let size = |n: Option<u64>| n.and_then(|n| usize::try_from(n).ok());
        let stated = Stated {
            mode: Some(kind.to_owned()),
            bits: Some(4),
            group_size: size(number("blocksize")),
            rows: size(rows.as_u64()),
            cols: size(cols.as_u64()),
            float: value.get("dtype").and_then(Value::as_str).and_then(Float::from_name),
        };
        if !self.documents.last().is_some_and(|document| document.of_states) {
            self.documents.push(Document { default: None, modules: HashMap::new(), of_states: true });
        }
        if let Some(document) = self.documents.last_mut() {
            document.modules.insert(stem.to_owned(), stated);
        }
        Ok(())
    }

    /// What is said of a module: its entry in the first document, else that document's default.
    /// What the first document leaves open, a later one may say in an entry.
    #[must_use]
    pub fn of(&self, stem: &str) -> Stated {
        let mut documents = self.documents.iter();
        let first = documents.next();
        let said = |d: &Document| d.modules.get(stem).cloned().or_else(|| d.default.clone());
        let mut stated = first.and_then(said).unwrap_or_default();
        for entry in documents.filter_map(|d| d.modules.get(stem)) {
            stated.mode = stated.mode.or_else(|| entry.mode.clone());
            stated.bits = stated.bits.or(entry.bits);
            stated.group_size = stated.group_size.or(entry.group_size);
            stated.rows = stated.rows.or(entry.rows);
            stated.cols = stated.cols.or(entry.cols);
            stated.float = stated.float.or(entry.float);
        }
        stated
    }
}

/// The mode that a Hugging Face block's `quant_method` stands for. GPTQ's zero points are stored in two ways; of
/// AWQ's packings one is known here, and another keeps its name.
fn method(block: &Map<String, Value>) -> Option<&str> {
    let text = |key: &str| block.get(key).and_then(Value::as_str);
    match text("quant_method")? {
        "gptq" => Some(text("checkpoint_format").unwrap_or("gptq")),
        "awq" => Some(text("version").filter(|version| !version.eq_ignore_ascii_case("gemm")).unwrap_or("awq")),
        _ => None,
    }
}

/// A config of compressed-tensors: each group names its modules, or classes of them (`Linear`), which makes it the
/// default. Where the only group names them by a pattern, it is the default too; patterns of several groups say nothing.
fn of_groups(format: Option<&Value>, groups: &Map<String, Value>) -> Document {
    let mut document = Document { default: None, modules: HashMap::new(), of_states: false };
    for group in groups.values() {
        let stated = entry_of_group(format, group);
        for target in group.get("targets").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
            let (is_pattern, is_class) = (target.starts_with(PATTERN), target.starts_with(char::is_uppercase));
            if is_class || is_pattern && groups.len() == 1 {
                document.default.get_or_insert_with(|| stated.clone());
            } else if !is_pattern {
                document.modules.insert(target.to_owned(), stated.clone());
            }
        }
    }
    document
}

/// What starts a target that is a regular expression.
const PATTERN: &str = "re:";

fn entry_of_group(format: Option<&Value>, group: &Value) -> Stated {
    let weights = group.get("weights").unwrap_or(&Value::Null);
    let number = |value: &Value| value.as_u64().and_then(|n| usize::try_from(n).ok());
    let mode = match group.get("format").filter(|f| f.is_string()).or(format).and_then(Value::as_str) {
        Some("pack-quantized") => Some("int"),
        Some("int-quantized") => Some("int8"),
        Some("float-quantized") => Some("fp8"),
        Some("mxfp4-pack-quantized") => Some("mxfp4"),
        Some("mxfp8-quantized") => Some("mxfp8"),
        Some("nvfp4-pack-quantized") => Some("nvfp4"),
        _ => None,
    };
    let group_size = match weights.get("strategy").and_then(Value::as_str) {
        Some("channel" | "tensor") => Some(0),
        Some("block") => weights.get("block_structure").and_then(|sizes| number(sizes.get(0)?)),
        _ => weights.get("group_size").and_then(number),
    };
    let bits = weights.get("num_bits").and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
    Stated { mode: mode.map(str::to_owned), bits, group_size, ..Stated::default() }
}

/// The module of a layer's name within a component.
fn below<'a>(name: &'a str, prefix: &str) -> Option<&'a str> {
    if prefix.is_empty() { Some(name) } else { name.strip_prefix(prefix)?.strip_prefix('.') }
}

/// A module's entry of a config, with MLX's defaults for what it leaves open or null.
fn entry_of_config(entry: &Value) -> Stated {
    let mut stated = read(entry);
    if stated.mode.get_or_insert_with(|| "affine".to_owned()) == "affine" {
        stated.bits = stated.bits.or(Some(4));
        stated.group_size = stated.group_size.or(Some(64));
    }
    stated
}

fn read(entry: &Value) -> Stated {
    let number = |key: &str| entry.get(key).and_then(Value::as_u64);
    let size = |key: &str| number(key).and_then(|n| usize::try_from(n).ok());
    Stated {
        mode: entry.get("mode").and_then(Value::as_str).map(str::to_owned),
        bits: number("bits").and_then(|n| u32::try_from(n).ok()),
        group_size: size("group_size"),
        rows: size("out_dim"),
        cols: size("in_dim"),
        float: None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn stated(mode: &str, bits: u32, group_size: usize) -> Stated {
        Stated { mode: Some(mode.into()), bits: Some(bits), group_size: Some(group_size), ..Stated::default() }
    }

    #[test]
    fn entries_of_a_config_inherit_nothing() {
        let mut all = Statements::default();
        let entries = json!({"group_size": 32, "bits": 4, "mode": "mxfp4", "a": {"bits": 8}, "b": {"group_size": null},
            "c": {"mode": "nvfp4"}, "d": false});
        all.add_config(&json!({ "quantization": entries }));
        assert_eq!(all.of("x"), stated("mxfp4", 4, 32));
        assert_eq!(all.of("a"), stated("affine", 8, 64));
        assert_eq!(all.of("b"), stated("affine", 4, 64));
        assert_eq!(all.of("c"), Stated { mode: Some("nvfp4".into()), ..Stated::default() });
        assert_eq!(all.of("d"), all.of("x"));
    }

    #[test]
    fn a_config_without_a_mode_is_affine_and_one_without_a_block_is_silent() {
        let mut all = Statements::default();
        all.add_config(&json!({"group_size": 7, "hidden_size": 8}));
        assert_eq!(all.of("x"), Stated::default());
        all.add_config(&json!({"quantization_config": {"group_size": 64, "bits": 4}}));
        assert_eq!(all.of("x"), stated("affine", 4, 64));
    }

    #[test]
    fn groups_of_compressed_tensors_name_modules_or_all() {
        let group = |targets: &[&str], format: &str, weights: Value| json!({"targets": targets, "format": format, "weights": weights});
        let grouped = json!({"num_bits": 4, "group_size": 128, "strategy": "group"});
        let channel = json!({"num_bits": 8, "group_size": null, "strategy": "channel"});
        let block = json!({"num_bits": 8, "strategy": "block", "block_structure": [128, 128]});
        let config = |groups: Value| json!({"quantization_config": {"quant_method": "compressed-tensors", "config_groups": groups}});
        let mut all = Statements::default();
        all.add_config(&config(json!({"group_0": group(&["Linear"], "pack-quantized", grouped.clone()),
            "group_1": group(&["a.b", "lm_head"], "int-quantized", channel), "group_2": group(&["re:.*c$"], "x", json!({})),
            "group_3": group(&["d.e"], "float-quantized", block)})));
        assert_eq!(all.of("x"), stated("int", 4, 128));
        assert_eq!((all.of("a.b"), all.of("lm_head")), (stated("int8", 8, 0), stated("int8", 8, 0)));
        assert_eq!(all.of("d.e"), stated("fp8", 8, 128));
        let mut one = Statements::default();
        one.add_config(&config(json!({"group_0": group(&["re:.*proj$"], "pack-quantized", grouped)})));
        assert_eq!(one.of("x"), stated("int", 4, 128));
    }

    #[test]
    fn layers_of_a_manifest_inherit_and_belong_to_a_component() {
        let manifest = json!({"bits": 8, "group_size": 32, "mode": "affine", "layers": [
            {"name": "transformer.a", "bits": 4, "in_dim": 96}, {"name": "vae.a", "group_size": 64}, {"name": "a"}]});
        let mut all = Statements::default();
        all.add_manifest(&manifest, "transformer");
        assert_eq!(all.of("a"), Stated { cols: Some(96), ..stated("affine", 4, 32) });
        let mut other = Statements::default();
        other.add_manifest(&manifest, "text_encoder");
        assert_eq!(other.of("a"), Stated::default(), "the manifest of some other directory");
        other.add_manifest(&manifest, "");
        assert_eq!(other.of("vae.a"), stated("affine", 8, 64));
    }
}
