//! What a mount leaves on the machine: the directories of logs and control sockets, its owner's alone.

use std::{
    env, fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::PathBuf,
};

use super::places::{home, variable};

/// The directory of logs, made where it is missing: `/var/log/quantfs` for root,
/// `$XDG_STATE_HOME/quantfs` for others.
///
/// # Errors
/// Where it cannot be made, or belongs to somebody else.
pub(super) fn logs() -> io::Result<PathBuf> {
    if is_root() {
        return private(PathBuf::from("/var/log/quantfs"));
    }
    let state = variable("XDG_STATE_HOME").or_else(|| Some(home()?.join(".local/state")));
    own_or_scratch(state)
}

/// The directory of sockets, made where it is missing: `/run/quantfs` for root,
/// `$XDG_RUNTIME_DIR/quantfs` for others.
///
/// # Errors
/// Where it cannot be made, or belongs to somebody else.
pub(super) fn sockets() -> io::Result<PathBuf> {
    if is_root() {
        return private(PathBuf::from("/run/quantfs"));
    }
    own_or_scratch(variable("XDG_RUNTIME_DIR"))
}

/// A directory of ours below one of the user's; service users often have none that they may write to.
fn own_or_scratch(users: Option<PathBuf>) -> io::Result<PathBuf> {
    match users.map(|dir| private(dir.join("quantfs"))) {
        Some(Ok(dir)) => Ok(dir),
        _ => private(scratch()),
    }
}

/// Where the sockets of another user may be: as [`sockets`] has it, with what systems usually set.
pub(super) fn sockets_of(user: u32) -> Vec<PathBuf> {
    vec![PathBuf::from(format!("/run/user/{user}/quantfs")), scratch_of(user)]
}

/// A user without a home or a runtime directory gets one in the temporary directory. The name is
/// predictable, so [`private`] makes sure whose it is.
fn scratch() -> PathBuf {
    scratch_of(rustix::process::getuid().as_raw())
}

fn scratch_of(user: u32) -> PathBuf {
    env::temp_dir().join(format!("quantfs-{user}"))
}

/// Makes a directory for its owner alone, or checks that an existing one is that.
fn private(dir: PathBuf) -> io::Result<PathBuf> {
    let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: cannot be made: {e}", dir.display()));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(named)?;
    let found = fs::symlink_metadata(&dir)?;
    let ours = found.is_dir() && found.uid() == rustix::process::geteuid().as_raw();
    if !ours || found.mode() & 0o022 != 0 {
        let why = format!("{}: is not a directory of ours alone; remove it", dir.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    Ok(dir)
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_private_directory_is_ours_alone() {
        let dir = tempfile::tempdir().unwrap();
        let made = private(dir.path().join("a/b")).unwrap();
        assert_eq!(fs::metadata(&made).unwrap().mode() & 0o777, 0o700);
        assert!(private(made.clone()).is_ok());
        fs::set_permissions(&made, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(private(made.clone()).is_err(), "others could write");
        symlink(dir.path(), dir.path().join("link")).unwrap();
        assert!(private(dir.path().join("link")).is_err(), "somebody else's link");
    }
}
