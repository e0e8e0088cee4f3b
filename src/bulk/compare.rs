//! A directory against a view, every byte.

use std::{
    collections::BTreeSet,
    fs::File,
    os::unix::fs::FileExt,
    path::Path,
    sync::{Arc, Mutex},
};

use rayon::prelude::*;
use serde::Serialize;

use crate::{
    bulk::{Error, Progress, chunks, fill},
    view::View,
};

/// How a directory and a view differ.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Comparison {
    /// Files that are equal in every byte.
    pub equal: usize,
    /// Files of the view that the directory lacks.
    pub missing: Vec<String>,
    /// Files of the directory that the view does not have.
    pub extra: Vec<String>,
    /// Files that differ.
    pub different: Vec<Difference>,
}

/// A file that differs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// Path below the directory.
    pub path: String,
    /// Offset of the first byte that differs, or where the shorter one ends.
    pub offset: u64,
    /// Length in the directory and in the view.
    pub lengths: (u64, u64),
}

impl Comparison {
    /// Whether nothing differs; files that only the directory has do not count.
    #[must_use]
    pub fn is_equal(&self) -> bool {
        self.missing.is_empty() && self.different.is_empty()
    }
}

/// Compares every file of a view with a directory.
///
/// # Errors
/// A file that cannot be read, on either side.
pub fn compare(view: &Arc<View>, directory: &Path, progress: &dyn Progress) -> Result<Comparison, Error> {
    let files = &view.plan().files;
    progress.begin(files.iter().map(|f| f.len).sum());
    let mut found = Comparison::default();
    for (number, file) in files.iter().enumerate() {
        progress.note(&file.path);
        let path = directory.join(&file.path);
        let other = match File::open(&path) {
            Ok(other) => other,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                found.missing.push(file.path.clone());
                continue;
            }
            Err(e) => return Err(Error::io(&path, e)),
        };
        let len = other.metadata().map_err(|e| Error::io(&path, e))?.len();
        let differs = first_difference(view, number, &other, &path, len.min(file.len), progress)?;
        let differs = differs.or_else(|| (len != file.len).then_some(len.min(file.len)));
        match differs {
            None => {
                found.equal += 1;
            }
            Some(offset) => {
                found.different.push(Difference { path: file.path.clone(), offset, lengths: (len, file.len) });
            }
        }
    }
    let expected: BTreeSet<&str> = files.iter().map(|f| f.path.as_str()).collect();
    extra(directory, "", &expected, &mut found.extra)?;
    Ok(found)
}

fn first_difference(
    view: &Arc<View>,
    number: usize,
    other: &File,
    path: &Path,
    len: u64,
    progress: &dyn Progress,
) -> Result<Option<u64>, Error> {
    let first: Mutex<Option<u64>> = Mutex::new(None);
    chunks(len).try_for_each_init(
        || (vec![], vec![]),
        |(ours, theirs): &mut (Vec<u8>, Vec<u8>), (start, n)| {
            ours.resize(n, 0);
            theirs.resize(n, 0);
            fill(view, number, start, ours)?;
            other.read_exact_at(theirs, start).map_err(|e| Error::io(path, e))?;
            if let Some(at) = ours.iter().zip(theirs.iter()).position(|(a, b)| a != b) {
                let mut first = first.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                let at = start + at as u64;
                *first = Some(first.map_or(at, |f| f.min(at)));
            }
            progress.advance(n as u64);
            Ok::<_, Error>(())
        },
    )?;
    Ok(first.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))
}

fn extra(directory: &Path, below: &str, expected: &BTreeSet<&str>, out: &mut Vec<String>) -> Result<(), Error> {
    for entry in std::fs::read_dir(directory).map_err(|e| Error::io(directory, e))? {
        let entry = entry.map_err(|e| Error::io(directory, e))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if below.is_empty() { name.clone() } else { format!("{below}/{name}") };
        if entry.file_type().map_err(|e| Error::io(directory, e))?.is_dir() {
            extra(&entry.path(), &path, expected, out)?;
        } else if !expected.contains(path.as_str()) {
            out.push(path);
        }
    }
    out.sort();
    Ok(())
}
