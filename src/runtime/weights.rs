//! A directory of weights, opened: tensors by name, layers by module.
//!
//! Opening reads headers and JSON files and no weight; a layer shares the mapping and copies nothing
//! but its bias. Who wrote the directory does not matter: how a module is stored is read from its
//! tensors, from `config.json` and from `quantization.json`.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    container::json,
    quant::{
        Module, Recognized, Unsupported, Weight,
        format::cast::Cast,
        operator::Bytes,
        recognize::recognize,
        stated::{Statements, is_state},
    },
    runtime::{
        Embedding, Error, QuantizedLinear, Tensor,
        dynamic::Replacement,
        linear::Matrix,
        shards::{self, Loading},
        stored::Stored,
    },
    tensor::Float,
};

/// The tensors of a directory, and what is said of them. Layers that were made of it outlive it.
///
/// ```
/// use quantfs::runtime::Weights;
/// # let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/mlx_lm/llama_q4_g64");
/// let mapped = Weights::open(dir)?; // an I/O error later on is a SIGBUS
/// let loaded = Weights::read(dir)?; // takes the memory, and gives such an error here
/// assert_eq!(mapped.names().count(), loaded.names().count());
///
/// // Tensors by name, layers by module.
/// let norm = mapped.tensor("model.norm.weight")?;
/// assert_eq!((norm.to_f32()?.len(), norm.info.shape.as_slice()), (64, &[64][..]));
/// let up = mapped.linear("model.layers.0.mlp.up_proj")?;
/// assert_eq!(up.dequantize(), loaded.linear("model.layers.0.mlp.up_proj")?.dequantize());
/// assert_eq!(mapped.weight_shape("model.layers.0.mlp.up_proj"), Some(vec![128, 64]));
///
/// // What is not there is an error that says what is.
/// let error = mapped.linear("model.layers.0.mlp.up_proj.weight").unwrap_err().to_string();
/// assert!(error.contains("named without its `.weight`"), "{error}");
/// # Ok::<(), quantfs::runtime::Error>(())
/// ```
#[derive(Debug)]
pub struct Weights {
    path: PathBuf,
    tensors: BTreeMap<String, Tensor>,
    statements: Statements,
    replaced: BTreeMap<String, Replacement>,
}

impl Weights {
    /// Opens a directory (or a single `.safetensors` file) and maps its files.
    ///
    /// An I/O error under a mapping ends the process with SIGBUS: a failing disk, a mount that goes
    /// away, a file that somebody shortens. [`Weights::read`] is for those who prefer an error.
    ///
    /// # Errors
    /// A directory without weights, a file that is missing, truncated or malformed, a tensor that an
    /// index promises and its file has not.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::load(path.as_ref(), Loading::Map)
    }

    /// As [`open`](Self::open), but reads all files into memory.
    ///
    /// # Errors
    /// Those of [`open`](Self::open), and those of reading.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::load(path.as_ref(), Loading::Read)
    }

    fn load(path: &Path, loading: Loading) -> Result<Self, Error> {
        let tensors = shards::open(path, loading)?;
        let directory = if path.is_file() { path.parent().unwrap_or(path) } else { path };
        let mut statements = statements(directory)?;
        for (name, tensor) in tensors.iter().filter(|(_, tensor)| is_state(&tensor.info)) {
            statements.add_state(name, &tensor.bytes).map_err(|why| tensor.wrong(why))?;
        }
        Ok(Self { path: path.to_owned(), tensors, statements, replaced: BTreeMap::new() })
    }

    /// What was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// A tensor by its name; of a quantized weight, one of its parts.
    ///
    /// # Errors
    /// A name that no file has.
    pub fn tensor(&self, name: &str) -> Result<&Tensor, Error> {
        self.tensors.get(name).ok_or_else(|| self.missing(name))
    }

    /// The layer of a module: its weight, however it is stored, and its bias where it has one.
    ///
    /// # Errors
    /// A module without a weight, a weight that no format reads or that is no matrix, a bias of another length.
    pub fn linear(&self, stem: &str) -> Result<QuantizedLinear, Error> {
        let matrix = self.stored(stem)?.matrix()?;
        let bias = self.bias(stem, matrix.operator.rows())?;
        Ok(QuantizedLinear::new(matrix, bias))
    }

    /// The layers of a module that is a stack of matrices, `[experts, out, in]`: one for each.
    ///
    /// ```
    /// use quantfs::runtime::Weights;
    /// # let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/mlx_lm/qwen3_moe_q4_g64");
    /// let experts = Weights::open(dir)?.stack("model.layers.0.mlp.switch_mlp.up_proj")?;
    /// let (x, mut y) = (vec![1.0; experts[1].cols()], vec![0.0; experts[1].rows()]);
    /// experts[1].forward(&x, &mut y)?;
    /// # Ok::<(), quantfs::runtime::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`linear`](Self::linear), and a weight that is no stack.
    pub fn stack(&self, stem: &str) -> Result<Vec<QuantizedLinear>, Error> {
        let matrices = self.stored(stem)?.stack()?;
        let rows: usize = matrices.iter().map(|matrix| matrix.operator.rows()).sum();
        let bias = self.bias(stem, rows)?;
        let own = |i: usize, rows: usize| bias.as_ref().map(|all| all[i * rows..(i + 1) * rows].to_vec());
        let layer = |(i, matrix): (usize, Matrix)| {
            let bias = own(i, matrix.operator.rows());
            QuantizedLinear::new(matrix, bias)
        };
        Ok(matrices.into_iter().enumerate().map(layer).collect())
    }

    /// The embedding of a module: a table whose rows are looked up.
    ///
    /// # Errors
    /// As [`linear`](Self::linear).
    pub fn embedding(&self, stem: &str) -> Result<Embedding, Error> {
        self.stored(stem)?.matrix().map(Embedding::new)
    }

    /// The shape of a module's weight, `[out, in]` or `[experts, out, in]`, however it is stored.
    /// `None` where there is none, or none that can be read.
    #[must_use]
    pub fn weight_shape(&self, stem: &str) -> Option<Vec<usize>> {
        match recognize(&self.module(stem)) {
            Some(found) => found.ok().map(|found| found.weight.shape),
            None => self.shape_of(&format!("{stem}.weight")),
        }
    }

    /// The shape of a tensor.
    pub(super) fn shape_of(&self, name: &str) -> Option<Vec<usize>> {
        self.tensors.get(name).map(|t| t.info.shape.clone())
    }

    /// The names of the parts of a module's quantized weight.
    pub(super) fn weight_parts(&self, stem: &str) -> Vec<String> {
        let found = recognize(&self.module(stem)).and_then(Result::ok);
        let parts = found.and_then(|found| found.scheme.parts(&found.weight).ok());
        parts.into_iter().flatten().map(|part| format!("{stem}{}", part.suffix)).collect()
    }

    /// The weight of a module, however it is stored.
    fn stored(&self, stem: &str) -> Result<Stored, Error> {
        if let Some(Replacement { found, parts }) = self.replaced.get(stem) {
            let file = self.path.display().to_string();
            return Ok(Stored { found: found.clone(), parts: parts.clone(), quantized: true, file });
        }
        match recognize(&self.module(stem)) {
            Some(found) => {
                let weight = self.tensor(&format!("{stem}.weight"))?;
                let found = found.map_err(|Unsupported(why)| weight.wrong(why))?;
                self.quantized(stem, found)
            }
            None => self.dense(stem),
        }
    }

    fn quantized(&self, stem: &str, found: Recognized) -> Result<Stored, Error> {
        let Recognized { scheme, weight } = found;
        let unreadable = |Unsupported(why)| Error::refused(&self.path, format!("{stem}: {why}"));
        let parts = scheme.parts(&weight).map_err(unreadable)?;
        let bytes = parts.iter().map(|part| Ok(self.tensor(&format!("{stem}{}", part.suffix))?.bytes.clone()));
        let parts: Vec<Bytes> = bytes.collect::<Result<_, Error>>()?;
        let file = self.tensor(&format!("{stem}.weight"))?.file().display().to_string();
        Ok(Stored { found: Recognized { scheme, weight }, parts, quantized: true, file })
    }

    /// Floating tensors that are weights by their name, of modules that no format stores.
    pub(super) fn dense_weights(&self) -> impl Iterator<Item = (&str, &Tensor, Float)> {
        self.tensors.iter().filter_map(|(name, tensor)| {
            let (stem, float) = (name.strip_suffix(".weight")?, Float::of(tensor.info.dtype)?);
            recognize(&self.module(stem)).is_none().then_some((stem, tensor, float))
        })
    }

    pub(super) fn replace(&mut self, layers: BTreeMap<String, Replacement>) {
        self.replaced.extend(layers);
    }

    fn dense(&self, stem: &str) -> Result<Stored, Error> {
        let weight = self.tensor(&format!("{stem}.weight"))?;
        let dtype = weight.info.dtype;
        let Some(float) = Float::of(dtype) else {
            return Err(weight.wrong(format!(
                "it is {dtype}, and no format that is known stores weights like this beside {}",
                self.suffixes(stem)
            )));
        };
        let (parts, file) = (vec![weight.bytes.clone()], weight.file().display().to_string());
        let weight = Weight { stem: stem.to_owned(), float, shape: weight.info.shape.clone() };
        Ok(Stored { found: Recognized { scheme: Arc::new(Cast), weight }, parts, quantized: false, file })
    }

    /// The bias of a module, where it has one, for so many rows.
    fn bias(&self, stem: &str, rows: usize) -> Result<Option<Vec<f32>>, Error> {
        let Some(bias) = self.tensors.get(&format!("{stem}.bias")) else { return Ok(None) };
        let values = bias.to_f32()?;
        if values.len() != rows {
            return Err(bias.wrong(format!("it has {} elements, but its weight has {rows} rows", values.len())));
        }
        Ok(Some(values))
    }

    /// The tensors of a module, and what is said of it.
    fn module<'a>(&'a self, stem: &'a str) -> Module<'a> {
        Module::of(stem, &self.tensors, |tensor| &tensor.info, self.statements.of(stem))
    }

    fn suffixes(&self, stem: &str) -> String {
        let module = self.module(stem);
        let others: Vec<&str> = module.tensors.iter().map(|(suffix, _)| *suffix).filter(|s| *s != ".weight").collect();
        if others.is_empty() { "no other tensor".to_owned() } else { others.join(", ") }
    }

    fn missing(&self, name: &str) -> Error {
        let hint = match name.strip_suffix(".weight").filter(|module| self.tensors.contains_key(*module)) {
            Some(tensor) => format!(", but {tensor} is: a module is named without its `.weight`"),
            None => {
                let longer = self.tensors.keys().find(|held| held.ends_with(&format!(".{name}")));
                longer.map_or(String::new(), |held| format!(", but {held} is"))
            }
        };
        Error::Missing { tensor: name.to_owned(), path: self.path.display().to_string(), hint }
    }
}

/// What the JSON files of a directory say: its config, its manifest, and the manifest above it where
/// it is a component of a larger snapshot.
fn statements(directory: &Path) -> Result<Statements, Error> {
    let mut all = Statements::default();
    if let Some(config) = parsed(&directory.join("config.json"))? {
        all.add_config(&config);
    }
    if let Some(manifest) = parsed(&directory.join("quantization.json"))? {
        all.add_manifest(&manifest, "");
    }
    let above = directory.canonicalize().ok();
    let component = above.as_ref().and_then(|d| Some((d.parent()?, d.file_name()?.to_str()?)));
    if let Some((root, component)) = component
        && let Some(manifest) = parsed(&root.join("quantization.json"))?
    {
        all.add_manifest(&manifest, component);
    }
    Ok(all)
}

/// A JSON file, where it is there.
fn parsed(path: &Path) -> Result<Option<serde_json::Value>, Error> {
    match shards::read_capped(path, json::MAX_JSON) {
        Ok(bytes) => json::parse(&bytes).map(Some).map_err(|e| Error::malformed(path, e)),
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(other) => Err(other),
    }
}
