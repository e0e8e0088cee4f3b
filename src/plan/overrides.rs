//! Tensors that replace the snapshot's: fine-tuned ones, from files beside its tree.

use std::collections::HashMap;

use crate::{
    plan::{
        Error,
        snapshot::{self, Snapshot},
    },
    source::{FileId, Source},
    tensor::Float,
};

/// What `--override FILE` asks for.
#[derive(Clone, Debug)]
pub struct Override {
    /// As typed.
    pub text: String,
    /// Its files.
    pub files: Vec<FileId>,
}

/// Names that a warning lists before it only counts.
const LISTED: usize = 5;

/// Puts the tensors of some files in the place of those of the same names; of several the last file's.
///
/// # Errors
/// A file of which no tensor is the snapshot's, a tensor of another shape, or one that several components have.
pub(crate) fn apply(
    source: &dyn Source,
    snapshot: &mut Snapshot,
    overrides: &[Override],
    warnings: &mut Vec<String>,
) -> Result<(), Error> {
    let names = Names::of(snapshot);
    let weights = |file: &&FileId| source.entry(**file).path.ends_with(".safetensors");
    for &file in overrides.iter().flat_map(|one| &one.files).filter(weights) {
        let parsed = snapshot::read_header(source, file)?;
        let path = &source.entry(file).path;
        let refuse = |why: String| Error::refused(format!("--override {path}: {why}"));
        if snapshot.sets.iter().all(|set| set.graph.is_some()) {
            return Err(refuse("ONNX models take no overrides".to_owned()));
        }
        let (mut matched, mut missing) = (0usize, vec![]);
        for tensor in parsed.header.tensors {
            let name = &tensor.info.name;
            let Some((set, number)) = names.find(name).map_err(refuse)? else {
                missing.push(name.clone());
                continue;
            };
            let set = &mut snapshot.sets[set];
            let before = &set.tensors[number];
            if before.shape != tensor.info.shape {
                let (there, here) = (&before.shape, &tensor.info.shape);
                return Err(refuse(format!("tensor {name} has shape {here:?}, and {there:?} in the snapshot")));
            }
            let (there, here) = (before.dtype, tensor.info.dtype);
            if there != here && (Float::of(there).is_none() || Float::of(here).is_none()) {
                let what = "one can take the other's place only where both can be quantized";
                return Err(refuse(format!("tensor {name} is {here}, and {there} in the snapshot: {what}")));
            }
            set.tensors[number].dtype = tensor.info.dtype;
            let place = &mut set.places[number];
            (place.file, place.offset) = (file, tensor.range.start);
            matched += 1;
        }
        if matched == 0 {
            return Err(refuse(format!("no tensor of it is one of the snapshot ({})", listed(&missing))));
        }
        if !missing.is_empty() {
            warnings.push(format!(
                "--override {path}: {matched} tensors replace the snapshot's; {} match nothing: {}",
                missing.len(),
                listed(&missing)
            ));
        }
    }
    Ok(())
}

/// The first of some names, and how many more there are.
pub(crate) fn listed(names: &[String]) -> String {
    let first = names.iter().take(LISTED).cloned().collect::<Vec<_>>().join(", ");
    let rest = names.len().saturating_sub(LISTED);
    if rest == 0 { first } else { format!("{first} and {rest} more") }
}

/// Where the tensors of a snapshot are, by all names that files beside it may call them.
#[derive(Debug)]
pub(crate) struct Names {
    found: HashMap<String, Vec<(usize, usize)>>,
}

impl Names {
    /// Every tensor by its name, and by `component.name` and `component/name`.
    pub(crate) fn of(snapshot: &Snapshot) -> Self {
        let mut found: HashMap<String, Vec<(usize, usize)>> = HashMap::new();
        // Models call tensors by names of their own, and hold them transposed.
        for (s, set) in snapshot.sets.iter().enumerate().filter(|(_, set)| set.graph.is_none()) {
            for (t, info) in set.tensors.iter().enumerate() {
                found.entry(info.name.clone()).or_default().push((s, t));
                if !set.dir.is_empty() {
                    found.entry(format!("{}.{}", set.dir.replace('/', "."), info.name)).or_default().push((s, t));
                    found.entry(format!("{}/{}", set.dir, info.name)).or_default().push((s, t));
                }
            }
        }
        Self { found }
    }

    /// Set and number of the tensor of a name.
    ///
    /// # Errors
    /// Where several components have one of that name.
    pub(crate) fn find(&self, name: &str) -> Result<Option<(usize, usize)>, String> {
        match self.found.get(name).map(Vec::as_slice) {
            None => Ok(None),
            Some([one]) => Ok(Some(*one)),
            Some(_) => Err(format!("tensor {name} is in several components; name one, as in transformer.{name}")),
        }
    }

    /// All names.
    pub(crate) fn all(&self) -> impl Iterator<Item = &str> {
        self.found.keys().map(String::as_str)
    }
}
