//! The tensors that a directory of weights holds, from its headers.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use crate::{
    bulk::{
        Error,
        export::{MARK, PARTIAL},
    },
    container::{Malformed, safetensors},
};

/// A directory of weights has no more entries than this; more would be a walk of a whole disk.
const MAX_ENTRIES: usize = 200_000;

/// A tensor that some file holds.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) file: PathBuf,
    pub(super) tensor: safetensors::Tensor,
}

impl Held {
    /// The tensor's bytes: of small ones.
    pub(super) fn read(&self) -> Result<Vec<u8>, Error> {
        let range = &self.tensor.range;
        let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap_or(0)];
        let read = File::open(&self.file).and_then(|file| file.read_exact_at(&mut bytes, range.start));
        read.map_err(|e| Error::io(&self.file, e))?;
        Ok(bytes)
    }
}

/// The tensors of one directory by name.
pub(super) type Here = BTreeMap<String, Held>;

/// What the safetensors files below a directory hold.
#[derive(Debug)]
pub(super) struct Holdings {
    /// By directory and name.
    pub(super) held: BTreeMap<PathBuf, Here>,
    /// Files that are no safetensors, names that stand twice, shards that are missing, what an
    /// unfinished export leaves.
    pub(super) faults: Vec<String>,
    /// ONNX models.
    pub(super) models: Vec<PathBuf>,
}

impl Holdings {
    /// Reads all headers; there must be one.
    pub(super) fn read(directory: &Path) -> Result<Self, Error> {
        Self::walk(directory)?.of_weights(directory)
    }

    /// Refuses a directory without one safetensors file.
    pub(super) fn of_weights(self, directory: &Path) -> Result<Self, Error> {
        if self.held.is_empty() && self.faults.is_empty() {
            let why = "no .safetensors file in it; a directory of weights was expected";
            return Err(Error::Refused(format!("{}: {why}", directory.display())));
        }
        Ok(self)
    }

    /// Reads all headers and finds the models. Directories that are links are left out, so that none is walked twice.
    pub(super) fn walk(directory: &Path) -> Result<Self, Error> {
        let mut all = Self { held: BTreeMap::new(), faults: vec![], models: vec![] };
        let mut entries = 0;
        let mut directories = vec![directory.to_owned()];
        while let Some(at) = directories.pop() {
            let mut here = Here::new();
            let mut shards = vec![];
            for entry in fs::read_dir(&at).map_err(|e| Error::io(&at, e))? {
                let entry = entry.map_err(|e| Error::io(&at, e))?;
                let path = entry.path();
                entries += 1;
                if entries > MAX_ENTRIES {
                    let why = format!("more than {MAX_ENTRIES} files: this is no directory of weights");
                    return Err(Error::Refused(format!("{}: {why}", directory.display())));
                }
                if entry.file_type().map_err(|e| Error::io(&path, e))?.is_dir() {
                    directories.push(path);
                } else {
                    all.file(&path, &mut here, &mut shards);
                }
            }
            all.missing_shards(&at, &shards);
            if !here.is_empty() {
                all.held.insert(at, here);
            }
        }
        Ok(all)
    }

    fn file(&mut self, path: &Path, here: &mut Here, shards: &mut Vec<String>) {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if name == MARK || name.ends_with(PARTIAL) {
            self.faults.push(format!("{}: an export into this directory was not finished", path.display()));
        } else if let Some(stem) = name.strip_suffix(".safetensors") {
            shards.push(stem.to_owned());
            self.hold(path, here);
        } else if name.ends_with(".onnx") {
            self.models.push(path.to_owned());
        }
    }

    fn hold(&mut self, path: &Path, here: &mut Here) {
        let header = match header(path) {
            Ok(header) => header,
            Err(why) => return self.faults.push(format!("{}: {why}", path.display())),
        };
        for tensor in header.tensors {
            let name = tensor.info.name.clone();
            if let Some(other) = here.insert(name.clone(), Held { file: path.to_owned(), tensor }) {
                let (a, b) = (other.file.display(), path.display());
                self.faults.push(format!("tensor {name} is in {a} and in {b}"));
            }
        }
    }

    /// Shards whose numbers say that there are more than lie here.
    fn missing_shards(&mut self, at: &Path, stems: &[String]) {
        let mut sets: BTreeMap<(&str, usize), BTreeSet<usize>> = BTreeMap::new();
        for (stem, number, of) in stems.iter().filter_map(|s| safetensors::shard_number(s)) {
            sets.entry((stem, of)).or_default().insert(number);
        }
        for ((stem, of), seen) in sets {
            for missing in (1..=of).filter(|n| !seen.contains(n)) {
                self.faults.push(format!("{}/{stem}-{missing:05}-of-{of:05}.safetensors: is missing", at.display()));
            }
        }
    }
}

fn header(path: &Path) -> Result<safetensors::Header, HeaderFault> {
    // Opening a pipe would wait for its writer.
    if !fs::metadata(path)?.is_file() {
        return Err(Malformed { what: "is no regular file".to_owned() }.into());
    }
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    safetensors::read(len, |offset, buf| Ok(file.read_exact_at(buf, offset)?))
}

/// Why a header could not be had.
#[derive(Debug, thiserror::Error)]
enum HeaderFault {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Malformed(#[from] Malformed),
}
