//! A file that a verb leaves for its user: looked for before the work, written whole or not at all.

use std::{
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use crate::cli::Failure;

/// Where it goes.
#[derive(Debug)]
pub(super) struct Output {
    path: PathBuf,
    /// The directory that it is made in; `None` where it goes into what is no file: a pipe, a terminal.
    directory: Option<PathBuf>,
}

impl Output {
    /// # Errors
    /// A directory, or a file of none.
    pub(super) fn at(path: &Path) -> Result<Self, Failure> {
        let shown = path.display();
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if path.is_dir() || path.file_name().is_none() {
            return Err(Failure::refused(format!("{shown}: is a directory; name a file")));
        }
        if !directory.is_dir() {
            let directory = directory.display();
            return Err(Failure::refused(format!("{shown}: there is no directory {directory}; make it first")));
        }
        let special = fs::metadata(path).is_ok_and(|there| !there.is_file());
        Ok(Self { path: path.to_owned(), directory: (!special).then(|| directory.to_owned()) })
    }

    /// # Errors
    /// What keeps it from being written; what was there is there still, then.
    pub(super) fn write(&self, bytes: &[u8]) -> Result<(), Failure> {
        self.put(bytes).map_err(|e| Failure::refused(format!("{}: {e}", self.path.display())))
    }

    fn put(&self, bytes: &[u8]) -> std::io::Result<()> {
        let Some(directory) = &self.directory else {
            return fs::OpenOptions::new().write(true).open(&self.path)?.write_all(bytes);
        };
        let mut partial = tempfile::NamedTempFile::new_in(directory)?;
        partial.write_all(bytes)?;
        partial.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
        partial.as_file().sync_all()?;
        partial.persist(&self.path).map_err(|e| e.error)?;
        Ok(())
    }
}
