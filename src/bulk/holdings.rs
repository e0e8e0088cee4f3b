//! The tensors that a directory of weights holds, from its headers.

use std::{
    collections::BTreeMap,
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use crate::{
    bulk::Error,
    container::{Malformed, safetensors},
};

/// A tensor that some file holds.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) file: PathBuf,
    pub(super) tensor: safetensors::Tensor,
}

/// What the safetensors files below a directory hold.
#[derive(Debug)]
pub(super) struct Holdings {
    /// By directory and name.
    pub(super) held: BTreeMap<PathBuf, BTreeMap<String, Held>>,
    /// Files that are no safetensors, names that stand twice.
    pub(super) faults: Vec<String>,
}

impl Holdings {
    /// Reads all headers. Directories that are links are left out, so that none is walked twice.
    pub(super) fn read(directory: &Path) -> Result<Self, Error> {
        let mut all = Self { held: BTreeMap::new(), faults: vec![] };
        let mut directories = vec![directory.to_owned()];
        while let Some(at) = directories.pop() {
            let mut here = BTreeMap::new();
            for entry in std::fs::read_dir(&at).map_err(|e| Error::io(&at, e))? {
                let entry = entry.map_err(|e| Error::io(&at, e))?;
                let path = entry.path();
                if entry.file_type().map_err(|e| Error::io(&path, e))?.is_dir() {
                    directories.push(path);
                } else if path.extension().is_some_and(|x| x == "safetensors") {
                    all.hold(&path, &mut here);
                }
            }
            if !here.is_empty() {
                all.held.insert(at, here);
            }
        }
        if all.held.is_empty() && all.faults.is_empty() {
            let why = "no .safetensors file in it; a directory of weights was expected";
            return Err(Error::Refused(format!("{}: {why}", directory.display())));
        }
        Ok(all)
    }

    fn hold(&mut self, path: &Path, here: &mut BTreeMap<String, Held>) {
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
}

fn header(path: &Path) -> Result<safetensors::Header, HeaderFault> {
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
