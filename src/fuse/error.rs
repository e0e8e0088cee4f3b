//! Why a mount was refused, failed, or could not be taken down.

use std::{io, path::PathBuf};

/// Each message names the thing and says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A view of many, with the reason.
    #[error("{0}")]
    View(String),
    /// The kernel has no FUSE.
    #[error("/dev/fuse is missing: load the module with `modprobe fuse`; a container needs `--device /dev/fuse`")]
    NoDevice,
    /// Root without the right to mount.
    #[error("this process may not mount: a container needs `--cap-add SYS_ADMIN --device /dev/fuse`")]
    NotPermitted,
    /// An ordinary user without the set-uid program.
    #[error("fusermount3 is missing, through which ordinary users mount: install the package fuse3, or mount as root")]
    NoFusermount,
    /// /dev/fuse is root's alone.
    #[error(
        "/dev/fuse may be opened by root only: `sudo chmod 666 /dev/fuse`, as most systems have it, or mount as root"
    )]
    DeviceDenied,
    /// What fusermount3 answered.
    #[error("{path}: fusermount3 refused: {said}", path = path.display())]
    Fusermount {
        /// The mount point.
        path: PathBuf,
        /// Its words.
        said: String,
    },
    /// An ordinary user asked for `allow_other`.
    #[error(
        "--allow-other and --allow-root need the line `user_allow_other` in /etc/fuse.conf: add it, or mount as root"
    )]
    AllowOther,
    /// No such mount point.
    #[error("{path}: the mount point does not exist: create it with `mkdir`", path = .0.display())]
    NotFound(PathBuf),
    /// A file where a directory is needed.
    #[error("{path}: the mount point is not a directory", path = .0.display())]
    NotADirectory(PathBuf),
    /// There is something in it.
    #[error("{path}: the mount point is not empty: name an empty directory", path = .0.display())]
    NotEmpty(PathBuf),
    /// Something is mounted there.
    #[error("{path}: {what} is already mounted there: {advice}", path = path.display())]
    Busy {
        /// The mount point.
        path: PathBuf,
        /// What is mounted.
        what: String,
        /// What to do.
        advice: String,
    },
    /// The mount would hide itself in what it shows.
    #[error("{mountpoint}: the mount point lies inside the source {source_dir}: choose one outside of it",
        mountpoint = mountpoint.display(), source_dir = source_dir.display())]
    InsideSource {
        /// The mount point.
        mountpoint: PathBuf,
        /// The source.
        source_dir: PathBuf,
    },
    /// The mount would cover its own source.
    #[error("{mountpoint}: the source {source_dir} lies inside the mount point: choose another mount point",
        mountpoint = mountpoint.display(), source_dir = source_dir.display())]
    AroundSource {
        /// The mount point.
        mountpoint: PathBuf,
        /// The source.
        source_dir: PathBuf,
    },
    /// `/dev/fd/N` that is not an open FUSE descriptor.
    #[error("{path}: is not an open descriptor of /dev/fuse ({source})", path = path.display())]
    Descriptor {
        /// As it was named.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Nothing of ours to unmount.
    #[error("{path}: is not a quantfs mount", path = .0.display())]
    NotOurs(PathBuf),
    /// A system call about a path failed.
    #[error("{path}: cannot {doing}: {source}", path = path.display())]
    System {
        /// The path.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// The kernel and the daemon could not agree, or the session could not start.
    #[error("the FUSE session could not start: {0}")]
    Session(io::Error),
}

impl Error {
    /// Wraps a failed call, for `map_err`.
    pub(super) fn system<E: Into<io::Error>>(path: &std::path::Path, doing: &'static str) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |e| Self::System { path, doing, source: e.into() }
    }
}
