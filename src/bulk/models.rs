//! ONNX models of a directory: whether every tensor lies where its model says.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::Read,
    path::Path,
};

use crate::{bulk::Audit, container::onnx};

/// Adds what a model says to an audit. Models too long to be a graph hold their weights themselves, and
/// are nobody's promise of others.
pub(super) fn check(path: &Path, found: &mut Audit) {
    let bytes = match read(path) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return,
        Err(e) => return found.faults.push(format!("{}: {e}", path.display())),
    };
    let model = match onnx::parse(&bytes) {
        Ok(model) => model,
        Err(e) => return found.faults.push(format!("{}: {e}", path.display())),
    };
    let mut absent = BTreeSet::new();
    for tensor in &model.tensors {
        let data = path.with_file_name(&tensor.location);
        match fs::metadata(&data) {
            Ok(data) if data.is_file() => match tensor.range(data.len()) {
                Ok(_) => found.matched += 1,
                Err(e) => found.faults.push(format!("{}: {e}", path.display())),
            },
            _ => {
                absent.insert(format!("{} (the data of {})", data.display(), path.display()));
            }
        }
    }
    found.missing.extend(absent);
    found.quantized += model.nbits;
}

fn read(path: &Path) -> std::io::Result<Option<Vec<u8>>> {
    // Opening a pipe would wait for its writer.
    if !fs::metadata(path)?.is_file() {
        return Err(std::io::Error::other("is no regular file"));
    }
    let mut bytes = vec![];
    File::open(path)?.take(onnx::MAX_MODEL + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= onnx::MAX_MODEL).then_some(bytes))
}
