//! The view written to disk: in parallel, atomic per file, resumable.
//!
//! A file appears under its name only when it is whole and synced. Until the export is finished the
//! target holds a mark that names the view; a second run with the same view goes on where the first
//! was stopped, any other is refused.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use rayon::prelude::*;

use crate::{
    bulk::{Error, Progress, chunks, fill},
    plan::{Content, Plan},
    view::View,
};

/// Marks a directory that an export has begun and not finished.
pub(super) const MARK: &str = ".quantfs-export";

/// Appended to the name of a file that is being written.
pub(super) const PARTIAL: &str = ".quantfs-partial";

/// Writes every file of a view below `target`. Returns the bytes written by this run.
///
/// # Errors
/// A target that holds something else, a failed read of the view, a failed write.
pub fn export(view: &Arc<View>, target: &Path, progress: &dyn Progress) -> Result<u64, Error> {
    let plan = view.plan();
    let Some(_lock) = claim(target, plan)? else {
        return Ok(0);
    };
    let todo: Vec<usize> = (0..plan.files.len()).filter(|i| !is_done(plan, *i, target)).collect();
    let total: u64 = todo.iter().map(|i| plan.files[*i].len).sum();
    progress.begin(total);
    todo.iter().try_for_each(|i| write_file(view, *i, target, progress))?;
    sync_directories(plan, target)?;
    remember(target, &identity(plan));
    let mark = target.join(MARK);
    fs::remove_file(&mark).map_err(|e| Error::io(&mark, e))?;
    sync(target)?;
    Ok(total)
}

/// What makes two exports the same: names, lengths, times, what is known of the bytes, and the keys of all weights.
fn identity(plan: &Plan) -> String {
    let mut hash = blake3::Hasher::new();
    hash.update(plan.spec.as_bytes());
    for file in &plan.files {
        hash.update(file.path.as_bytes());
        hash.update(&file.len.to_le_bytes());
        let since = file.modified.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        hash.update(&since.as_nanos().to_le_bytes());
        for extent in &file.extents {
            hash.update(&extent.start.to_le_bytes());
            match &extent.content {
                Content::Bytes(bytes) => {
                    hash.update(bytes);
                }
                Content::Source { file, offset } => {
                    hash.update(&file.0.to_le_bytes());
                    hash.update(&offset.to_le_bytes());
                }
                Content::Part { weight, part } => {
                    hash.update(&weight.to_le_bytes());
                    hash.update(&part.to_le_bytes());
                }
            }
        }
    }
    for weight in &plan.weights {
        hash.update(&weight.key);
    }
    format!("{}\n{}\n", plan.spec, hash.finalize().to_hex())
}

/// The attribute of a finished export's directory that says of which view it is: files of two views may have the same
/// names, lengths and times.
const FINISHED: &str = "user.quantfs.export";

/// Notes of which view a directory is. Where the file system keeps no attributes, a second export into it is refused.
fn remember(target: &Path, identity: &str) {
    if let Err(e) = rustix::fs::setxattr(target, FINISHED, identity.as_bytes(), rustix::fs::XattrFlags::empty()) {
        tracing::debug!("{}: keeps no attributes ({e})", target.display());
    }
}

/// Whether a directory was noted to be of this view.
fn is_of(target: &Path, identity: &str) -> bool {
    let mut kept = vec![0; identity.len() + 1];
    let len = rustix::fs::getxattr(target, FINISHED, &mut kept[..]).unwrap_or(0);
    kept.get(..len).is_some_and(|kept| kept == identity.as_bytes())
}

/// Makes the target ours: new, empty, or begun by an export of the same view. The mark is locked as
/// long as the answer lives; `None` where the view is there already, whole.
fn claim(target: &Path, plan: &Plan) -> Result<Option<File>, Error> {
    fs::create_dir_all(target).map_err(|e| Error::io(target, e))?;
    let mark = target.join(MARK);
    if !mark.exists() && fs::read_dir(target).map_err(|e| Error::io(target, e))?.next().is_some() {
        if is_of(target, &identity(plan)) && (0..plan.files.len()).all(|i| is_done(plan, i, target)) {
            return Ok(None);
        }
        let why = "is not empty; choose a directory that is new or empty";
        return Err(Error::Refused(format!("{}: {why}", target.display())));
    }
    let file = File::options().read(true).append(true).create(true).open(&mark).map_err(|e| Error::io(&mark, e))?;
    if rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
        return Err(Error::Refused(format!("{}: another export into it is running", target.display())));
    }
    begin(target, &mark, &file, &identity(plan))?;
    Ok(Some(file))
}

/// Writes the mark, or finds in it that this view's export was begun.
fn begin(target: &Path, mark: &Path, mut file: &File, identity: &str) -> Result<(), Error> {
    match fs::read_to_string(mark) {
        Ok(begun) if begun == identity => return Ok(()),
        Ok(begun) if begun.is_empty() => {}
        Ok(begun) => {
            let spec = begun.lines().next().unwrap_or_default().to_owned();
            return Err(Error::Refused(format!(
                "{}: holds an unfinished export of another view ({spec}, or the source changed since); remove it or choose another directory",
                target.display()
            )));
        }
        Err(e) => return Err(Error::io(mark, e)),
    }
    file.write_all(identity.as_bytes()).and_then(|()| file.sync_all()).map_err(|e| Error::io(mark, e))?;
    sync(target)
}

/// A file under its final name is whole, since it was renamed only then; its time tells whose it is.
fn is_done(plan: &Plan, file: usize, target: &Path) -> bool {
    let file = &plan.files[file];
    let same = |m: fs::Metadata| m.is_file() && m.len() == file.len && m.modified().is_ok_and(|at| at == file.modified);
    fs::symlink_metadata(target.join(&file.path)).is_ok_and(same)
}

fn write_file(view: &Arc<View>, number: usize, target: &Path, progress: &dyn Progress) -> Result<(), Error> {
    let file = &view.plan().files[number];
    progress.note(&file.path);
    let path = target.join(&file.path);
    let directory = path.parent().unwrap_or(target);
    fs::create_dir_all(directory).map_err(|e| Error::io(directory, e))?;
    let partial = partial(&path);
    let out = File::create(&partial).map_err(|e| Error::io(&partial, e))?;
    out.set_len(file.len).map_err(|e| Error::io(&partial, e))?;
    chunks(file.len).try_for_each_init(Vec::new, |buffer, (start, len)| {
        buffer.resize(len, 0);
        fill(view, number, start, buffer)?;
        out.write_all_at(buffer, start).map_err(|e| Error::io(&partial, e))?;
        progress.advance(len as u64);
        Ok::<_, Error>(())
    })?;
    out.set_modified(file.modified).and_then(|()| out.sync_all()).map_err(|e| Error::io(&partial, e))?;
    fs::rename(&partial, &path).map_err(|e| Error::io(&path, e))
}

fn partial(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(PARTIAL);
    PathBuf::from(name)
}

fn sync_directories(plan: &Plan, target: &Path) -> Result<(), Error> {
    let mut directories: Vec<PathBuf> =
        plan.files.iter().filter_map(|f| Some(target.join(&f.path).parent()?.to_owned())).collect();
    directories.sort();
    directories.dedup();
    directories.iter().try_for_each(|d| sync(d))
}

fn sync(directory: &Path) -> Result<(), Error> {
    File::open(directory).and_then(|d| d.sync_all()).map_err(|e| Error::io(directory, e))
}
