//! A directory against a view, tensor by tensor: for directories that another tool laid out.

use std::{fs::File, os::unix::fs::FileExt, path::Path, sync::Arc};

use serde::Serialize;

use crate::{
    bulk::{
        CHUNK, Error, Progress, fill,
        holdings::{Held, Holdings},
    },
    container::safetensors::{self, Tensor},
    view::View,
};

/// How the tensors of a directory and of a view differ.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TensorComparison {
    /// Tensors that are equal in dtype, shape and every byte.
    pub equal: usize,
    /// Tensors of the view that the directory lacks.
    pub missing: Vec<String>,
    /// Tensors that the directory has beyond the view's.
    pub extra: Vec<String>,
    /// Tensors that differ, and in what.
    pub different: Vec<String>,
}

impl TensorComparison {
    /// Whether the directory has just the tensors of the view.
    #[must_use]
    pub fn is_equal(&self) -> bool {
        self.missing.is_empty() && self.extra.is_empty() && self.different.is_empty()
    }
}

/// Compares the tensors of every directory of weights, wherever in its files they lie.
///
/// # Errors
/// A file that cannot be read, on either side.
pub fn compare_tensors(view: &Arc<View>, directory: &Path, progress: &dyn Progress) -> Result<TensorComparison, Error> {
    let Holdings { mut held, faults, .. } = Holdings::read(directory)?;
    if let Some(fault) = faults.into_iter().next() {
        return Err(Error::Refused(fault));
    }
    let mut found = TensorComparison::default();
    let files: Vec<usize> =
        (0..view.plan().files.len()).filter(|i| view.plan().files[*i].path.ends_with(".safetensors")).collect();
    progress.begin(files.iter().map(|i| view.plan().files[*i].len).sum());
    for number in files {
        let path = &view.plan().files[number].path;
        progress.note(path);
        let at = directory.join(path);
        let mut none = Default::default();
        let here = at.parent().and_then(|d| held.get_mut(d)).unwrap_or(&mut none);
        for ours in header(view, number)?.tensors {
            let name = ours.info.name.clone();
            match here.remove(&name) {
                None => found.missing.push(name),
                Some(theirs) => match difference(view, number, &ours, &theirs)? {
                    Some(what) => found.different.push(format!("{name}: {what}")),
                    None => found.equal += 1,
                },
            }
            progress.advance(ours.range.end - ours.range.start);
        }
    }
    found.extra = held.into_values().flat_map(|here| here.into_keys()).collect();
    Ok(found)
}

fn header(view: &Arc<View>, number: usize) -> Result<safetensors::Header, Error> {
    let file = &view.plan().files[number];
    let read = |at, buf: &mut [u8]| fill(view, number, at, buf).map_err(Fault::Failed);
    safetensors::read(file.len, read).map_err(|fault| match fault {
        Fault::Failed(e) => e,
        Fault::Malformed(what) => Error::Refused(format!("{}: {what}", file.path)),
    })
}

enum Fault {
    Failed(Error),
    Malformed(crate::container::Malformed),
}

impl From<crate::container::Malformed> for Fault {
    fn from(what: crate::container::Malformed) -> Self {
        Self::Malformed(what)
    }
}

/// In what two tensors of a name differ.
fn difference(view: &Arc<View>, number: usize, ours: &Tensor, theirs: &Held) -> Result<Option<String>, Error> {
    let (a, b) = (&ours.info, &theirs.tensor.info);
    if (a.dtype, &a.shape) != (b.dtype, &b.shape) {
        return Ok(Some(format!("{} {:?} in the directory, {} {:?} in the view", b.dtype, b.shape, a.dtype, a.shape)));
    }
    let file = File::open(&theirs.file).map_err(|e| Error::io(&theirs.file, e))?;
    let (mut left, mut right) = (vec![], vec![]);
    let len = ours.range.end - ours.range.start;
    for start in (0..len).step_by(usize::try_from(CHUNK).unwrap_or(usize::MAX)) {
        let n = usize::try_from(CHUNK.min(len - start)).unwrap_or(0);
        left.resize(n, 0);
        right.resize(n, 0);
        fill(view, number, ours.range.start + start, &mut left)?;
        file.read_exact_at(&mut right, theirs.tensor.range.start + start).map_err(|e| Error::io(&theirs.file, e))?;
        if let Some(at) = left.iter().zip(&right).position(|(a, b)| a != b) {
            return Ok(Some(format!("byte {} of its data", start + at as u64)));
        }
    }
    Ok(None)
}
