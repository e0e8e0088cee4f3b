//! What the JSON files of a quantized directory say of its weights: bits, groups, layers.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::{
    bulk::{Error, holdings::Here},
    quant::stated::{Statements, is_state},
};

/// A JSON file longer than this is not about a model: the manifest of a mixture with 50,000 listed
/// experts takes 20 MB.
const MAX_BYTES: u64 = 256 << 20;

/// A JSON file that says something of weights.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) path: PathBuf,
    value: Value,
}

/// Bits and group size of a weight.
pub(super) type Parameters = (u64, u64);

/// One entry of a manifest's `layers`.
pub(super) struct Layer<'a> {
    pub(super) name: &'a str,
    /// Name without the component, as the headers have it.
    pub(super) stem: &'a str,
    /// Directory of its file below the root.
    pub(super) dir: &'a str,
    pub(super) in_dim: Option<u64>,
    pub(super) out_dim: Option<u64>,
    pub(super) parameters: Option<Parameters>,
}

impl Document {
    /// Reads a file; `None` where there is none.
    ///
    /// # Errors
    /// What is wrong with it, with its path.
    pub(super) fn read(path: PathBuf) -> Result<Option<Self>, Error> {
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(&path, e)),
        };
        let refuse = |why: String| Error::Refused(format!("{}: {why}", path.display()));
        if !file.metadata().is_ok_and(|m| m.is_file() && m.len() <= MAX_BYTES) {
            return Err(refuse(format!("is no regular file of at most {MAX_BYTES} bytes")));
        }
        let mut bytes = vec![];
        file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(|e| Error::io(&path, e))?;
        // Python's NaN and Infinity stand in some config.json; they say nothing of weights.
        let value = crate::container::json::parse(&bytes).or_else(|e| serde_json::from_slice(&bytes).map_err(|_| e));
        match value {
            Ok(value) => Ok(Some(Self { path, value })),
            Err(e) => Err(refuse(e.to_string())),
        }
    }

    /// What a `config.json` says of modules, as the runtime reads it.
    pub(super) fn statements(&self) -> Statements {
        let mut all = Statements::default();
        all.add_config(&self.value);
        all
    }

    /// Adds what a manifest says of the modules of a component.
    pub(super) fn tell(&self, component: &str, all: &mut Statements) {
        all.add_manifest(&self.value, component);
    }

    /// Whether `config.json` says that its weights are quantized.
    pub(super) fn is_quantized(&self) -> bool {
        self.value.get("quantization").is_some_and(Value::is_object)
    }

    /// The layers of a manifest.
    pub(super) fn layers(&self) -> impl Iterator<Item = Layer<'_>> {
        let top = parameters(&self.value);
        let listed = self.value.get("layers").and_then(Value::as_array).into_iter().flatten();
        listed.map(move |layer| {
            let text = |key: &str| layer.get(key).and_then(Value::as_str).unwrap_or_default();
            let number = |key: &str| layer.get(key).and_then(Value::as_u64);
            let name = text("name");
            let dir = text("quant_file").rsplit_once('/').map_or("", |(dir, _)| dir);
            let prefix = format!("{}.", dir.replace('/', "."));
            Layer {
                name,
                stem: name.strip_prefix(&prefix).unwrap_or(name),
                dir,
                in_dim: number("in_dim"),
                out_dim: number("out_dim"),
                parameters: parameters(layer).or(top),
            }
        })
    }
}

fn parameters(value: &Value) -> Option<Parameters> {
    Some((value.get("bits")?.as_u64()?, value.get("group_size")?.as_u64()?))
}

/// `config.json` beside the weights of a directory.
pub(super) fn config(at: &Path) -> Result<Option<Document>, Error> {
    Document::read(at.join("config.json"))
}

/// `quantization.json` at the root.
pub(super) fn manifest(root: &Path) -> Result<Option<Document>, Error> {
    Document::read(root.join("quantization.json"))
}

/// Adds what tensors say in words of the weights beside them; those that say nothing that can be read.
pub(super) fn add_states(here: &Here, all: &mut Statements) -> Result<Vec<String>, Error> {
    let mut faults = vec![];
    for (name, held) in here.iter().filter(|(_, held)| is_state(&held.tensor.info)) {
        if let Err(why) = all.add_state(name, &held.read()?) {
            faults.push(format!("{}: tensor {name} {why}", held.file.display()));
        }
    }
    Ok(faults)
}
