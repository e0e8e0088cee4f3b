//! The files of a directory of weights: which there are, and what each holds.
//!
//! The indexes name the files where there are indexes; else every `*.safetensors` of the directory is
//! one. Headers are read, tensors are not. A tensor lies in one file, the one that the index names.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use memmap2::Mmap;

use crate::{
    container::{Malformed, index, safetensors},
    quant::operator::Bytes,
    runtime::{Error, Tensor, memory::Memory, mmap},
};

/// Where the bytes of files go.
#[derive(Clone, Copy, Debug)]
pub(super) enum Loading {
    /// Mapped, read when they are touched.
    Map,
    /// Read into memory at once.
    Read,
}

/// All tensors of a directory, or of one file, by name.
pub(super) fn open(path: &Path, loading: Loading) -> Result<BTreeMap<String, Tensor>, Error> {
    if fs::metadata(path).map_err(|e| Error::io(path, e))?.is_file() {
        return collect(&[path.to_owned()], loading);
    }
    let listing = Listing::read(path)?;
    let indexed = listing.indexed()?;
    if indexed.is_empty() {
        if listing.files.is_empty() {
            return Err(listing.without_weights());
        }
        return collect(&listing.files, loading);
    }
    let files: BTreeSet<PathBuf> = indexed.iter().map(|(_, file)| path.join(file)).collect();
    let tensors = collect(&files.into_iter().collect::<Vec<_>>(), loading)?;
    for (tensor, file) in indexed {
        check_promise(&tensors, tensor, &path.join(file))?;
    }
    Ok(tensors)
}

/// Whether the file holds the tensor that the index promises there.
fn check_promise(tensors: &BTreeMap<String, Tensor>, tensor: String, file: &Path) -> Result<(), Error> {
    let hint = match tensors.get(&tensor) {
        Some(held) if held.file() == file => return Ok(()),
        Some(held) => format!(", where the index has it, but in {}", held.file().display()),
        None => ", where the index has it: the download or export is incomplete".to_owned(),
    };
    Err(Error::Missing { tensor, path: file.display().to_string(), hint })
}

/// What a directory has in it.
struct Listing<'a> {
    directory: &'a Path,
    files: Vec<PathBuf>,
    indexes: Vec<PathBuf>,
    directories: Vec<PathBuf>,
}

impl<'a> Listing<'a> {
    fn read(directory: &'a Path) -> Result<Self, Error> {
        let mut all = Self { directory, files: vec![], indexes: vec![], directories: vec![] };
        for entry in fs::read_dir(directory).map_err(|e| Error::io(directory, e))? {
            let path = entry.map_err(|e| Error::io(directory, e))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with('.') {
                continue;
            } else if name.ends_with(".safetensors.index.json") {
                all.indexes.push(path);
            } else if name.ends_with(".safetensors") {
                all.files.push(path);
            } else if path.is_dir() {
                all.directories.push(path);
            }
        }
        all.files.sort();
        all.indexes.sort();
        all.directories.sort();
        Ok(all)
    }

    /// Tensor and file name of everything that the indexes list.
    fn indexed(&self) -> Result<Vec<(String, String)>, Error> {
        let mut all = vec![];
        for path in &self.indexes {
            let bytes = read_capped(path, index::MAX_INDEX)?;
            all.extend(index::parse(&bytes).map_err(|e| Error::malformed(path, e))?.weight_map);
        }
        Ok(all)
    }

    /// The error of a directory without weights, with where they are where that is seen.
    fn without_weights(&self) -> Error {
        let holds = |d: &Path| Listing::read(d).is_ok_and(|l| !l.files.is_empty());
        let below: Vec<_> = self.directories.iter().filter(|d| holds(d)).map(|d| d.display().to_string()).collect();
        let mut why = "no .safetensors file in it; a directory of weights was expected".to_owned();
        if !below.is_empty() {
            why = format!("no .safetensors file in it itself; open one of its components: {}", below.join(", "));
        }
        Error::refused(self.directory, why)
    }
}

/// A whole file of at most `cap` bytes.
pub(super) fn read_capped(path: &Path, cap: u64) -> Result<Vec<u8>, Error> {
    let len = fs::metadata(path).map_err(|e| Error::io(path, e))?.len();
    if len > cap {
        return Err(Error::refused(path, format!("it has {len} bytes, over the cap of {cap}")));
    }
    fs::read(path).map_err(|e| Error::io(path, e))
}

fn collect(files: &[PathBuf], loading: Loading) -> Result<BTreeMap<String, Tensor>, Error> {
    let mut all: BTreeMap<String, Tensor> = BTreeMap::new();
    for path in files {
        for tensor in tensors(path, loading)? {
            let (name, file) = (tensor.info.name.clone(), path.display());
            if let Some(other) = all.insert(name, tensor.clone()) {
                return Err(other.wrong(format!("it is in {file}, too; one of the two files does not belong here")));
            }
        }
    }
    Ok(all)
}

/// The tensors of one file.
fn tensors(path: &Path, loading: Loading) -> Result<Vec<Tensor>, Error> {
    let io = |e| Error::io(path, e);
    let file = File::open(path).map_err(io)?;
    let len = file.metadata().map_err(io)?.len();
    let header =
        expecting_little(&file, || safetensors::read(len, |at, buf| file.read_exact_at(buf, at).map_err(Fault::Io)));
    let header = header.map_err(|fault| fault.at(path))?;
    let map = match loading {
        Loading::Map => Some(Arc::new(mmap::map(&file).map_err(io)?)),
        Loading::Read => None,
    };
    let owner: Arc<dyn AsRef<[u8]> + Send + Sync> = match &map {
        Some(map) => Arc::<Mmap>::clone(map),
        None => Arc::new(load(&file, len).map_err(io)?),
    };
    let shared: Arc<Path> = path.into();
    let mut all = Vec::with_capacity(header.tensors.len());
    for safetensors::Tensor { info, range } in header.tensors {
        let bytes = usize::try_from(range.start).ok().zip(usize::try_from(range.end).ok());
        let bytes = bytes.and_then(|(start, end)| Bytes::new(Arc::clone(&owner), start..end));
        let bytes = bytes.ok_or_else(|| Error::Tensor {
            tensor: info.name.clone(),
            path: path.display().to_string(),
            why: "the file became shorter while it was opened".to_owned(),
        })?;
        let mapped = map.clone().zip(usize::try_from(range.start).ok());
        all.push(Tensor::new(info, bytes, Arc::clone(&shared), mapped));
    }
    Ok(all)
}

/// Reads without what the kernel would read ahead: behind a header lie weights, which a mount computes.
fn expecting_little<T>(file: &File, read: impl FnOnce() -> T) -> T {
    #[cfg(target_os = "linux")]
    let advise = |advice| {
        // Where the file system takes no advice, opening is slower and nothing else.
        let _refused = rustix::fs::fadvise(file, 0, None, advice);
    };
    #[cfg(target_os = "linux")]
    advise(rustix::fs::Advice::Random);
    let done = read();
    #[cfg(target_os = "linux")]
    advise(rustix::fs::Advice::Normal);
    done
}

fn load(file: &File, len: u64) -> std::io::Result<Memory> {
    let len = usize::try_from(len).map_err(|_| std::io::ErrorKind::FileTooLarge)?;
    let mut memory = Memory::zeros(len)?;
    file.read_exact_at(memory.bytes(), 0)?;
    Ok(memory)
}

/// Why a header could not be had.
enum Fault {
    Io(std::io::Error),
    Malformed(Malformed),
}

impl From<Malformed> for Fault {
    fn from(source: Malformed) -> Self {
        Self::Malformed(source)
    }
}

impl Fault {
    fn at(self, path: &Path) -> Error {
        match self {
            Self::Io(source) => Error::io(path, source),
            Self::Malformed(source) => Error::malformed(path, source),
        }
    }
}
