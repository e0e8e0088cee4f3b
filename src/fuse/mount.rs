//! Mounting and unmounting: who may, where, and how.
//!
//! The mount is made here and not by fuser, whose own unmounting can be refused as busy, can take
//! down a later mount of the same place, and drops the subtype. As root it is mount(2) of an opened
//! /dev/fuse; as an ordinary user it is fusermount3. A mount point `/dev/fd/N` is a descriptor that
//! somebody else has opened and mounted.
//!
//! What always holds: nothing is mounted over anything but an empty directory or a dead mount of
//! ours; what [`mount`] made is gone when its [`Mounted`] is dropped.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    io::Errno,
    mount::{MountFlags, UnmountFlags},
    process::{PidfdFlags, PidfdGetfdFlags, getgid, getpid, getuid, pidfd_getfd, pidfd_open},
};

use super::{Error, fusermount, mountinfo};

const DEVICE: &str = "/dev/fuse";

/// Dead mounts of ours that may lie on top of each other before we give up.
const MAX_STALE: usize = 8;

/// Who may use a mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// The user who mounts, and nobody else (not even root).
    #[default]
    Owner,
    /// That user and root.
    OwnerAndRoot,
    /// Everyone.
    Everyone,
}

/// What to mount.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// The source's name, shown by `mount` and `df` after `quantfs:`.
    pub source: String,
    /// Where a local source lies ([`Source::local_roots`](crate::source::Source::local_roots)): the mount
    /// point must be outside.
    pub source_roots: Vec<PathBuf>,
    /// Who may use it.
    pub access: Access,
}

/// Where a session is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The resolved mount point, or `/dev/fd/N`.
    pub path: PathBuf,
    /// Device number of the mount; unknown where the descriptor was handed to us.
    pub device: Option<(u32, u32)>,
}

/// A mount that nobody serves yet. Unmounts when dropped.
#[derive(Debug)]
pub struct Mounted {
    pub(super) fd: Option<OwnedFd>,
    pub(super) place: Place,
    pub(super) access: Access,
}

impl Mounted {
    /// Where it is.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// A duplicate of the descriptor; the mount stays ours to take down.
    pub(super) fn descriptor(&self) -> io::Result<OwnedFd> {
        self.fd.as_ref().ok_or_else(|| Errno::BADF.into()).and_then(OwnedFd::try_clone)
    }

    /// Gives the mount up to a session.
    pub(super) fn keep(mut self) -> Place {
        self.fd = None;
        self.place.clone()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.fd.take().is_none() {
            return;
        }
        if let Err(e) = unmount(&self.place, Force::No) {
            tracing::warn!("{e}");
        }
    }
}

/// Mounts at `path`, an empty directory or `/dev/fd/N`.
///
/// # Errors
/// A mount point that cannot be used, no /dev/fuse, no right to mount: see [`Error`].
pub fn mount(path: &Path, options: &MountOptions) -> Result<Mounted, Error> {
    if let Some(number) = descriptor_number(path) {
        let fd = handed(path, number)?;
        return Ok(Mounted {
            fd: Some(fd),
            place: Place { path: path.to_owned(), device: None },
            access: options.access,
        });
    }
    let path = check(path, &options.source_roots)?;
    let fd = make(&path, options)?;
    let device = mountinfo::at(&path).map_err(Error::system(&path, "read the mount table"))?.map(|e| e.device);
    Ok(Mounted { fd: Some(fd), place: Place { path, device }, access: options.access })
}

/// Whether readers are thrown out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Force {
    /// The name is gone at once, open files work until they are closed.
    No,
    /// Every request that waits and every later one fails. Needs root; otherwise as `No`.
    Yes,
}

/// Takes a mount down. Where the place is no longer (or not) the mount in question, nothing is done.
///
/// # Errors
/// Where the kernel or fusermount3 refuses.
pub fn unmount(place: &Place, force: Force) -> Result<(), Error> {
    let path = &place.path;
    let top = mountinfo::at(path).map_err(Error::system(path, "read the mount table"))?;
    if place.device.is_none() || top.map(|e| e.device) != place.device {
        return Ok(());
    }
    let flags = match force {
        Force::No => UnmountFlags::DETACH,
        Force::Yes => UnmountFlags::DETACH | UnmountFlags::FORCE,
    };
    match rustix::mount::unmount(path, flags | UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(Errno::PERM) => fusermount::unmount(path),
        Err(e) => Err(Error::system(path, "unmount")(e)),
    }
}

/// The mount of ours at a path that a user typed, dead or alive.
///
/// # Errors
/// Where there is none.
pub fn find(path: &Path) -> Result<mountinfo::Entry, Error> {
    let resolved = resolve(path).map_err(|e| match e {
        Error::NotFound(path) | Error::NotADirectory(path) => Error::NotOurs(path),
        e => e,
    })?;
    let top = mountinfo::at(&resolved).map_err(Error::system(path, "read the mount table"))?;
    top.filter(mountinfo::Entry::is_ours).ok_or_else(|| Error::NotOurs(path.to_owned()))
}

/// Whether nobody serves a mount any more. Asks for its statistics, which the kernel never caches
/// (attributes of the root it may answer from its cache long after the daemon is dead).
#[must_use]
pub fn is_stale(path: &Path) -> bool {
    matches!(rustix::fs::statfs(path), Err(Errno::NOTCONN | Errno::CONNABORTED))
}

/// An absolute path without links; the last part is not looked at, since a dead mount cannot be.
fn resolve(path: &Path) -> Result<PathBuf, Error> {
    let missing = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound => Error::NotFound(path.to_owned()),
        io::ErrorKind::NotADirectory => Error::NotADirectory(path.to_owned()),
        _ => Error::system(path, "resolve the mount point")(e),
    };
    match fs::canonicalize(path) {
        Err(e) if e.raw_os_error() == Some(Errno::NOTCONN.raw_os_error()) => {}
        other => return other.map_err(missing),
    }
    let absolute = std::path::absolute(path).map_err(missing)?;
    let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else { return Ok(absolute) };
    Ok(fs::canonicalize(parent).map_err(missing)?.join(name))
}

/// The resolved mount point, after dead mounts of ours were cleared away and everything else that
/// speaks against mounting there was refused.
fn check(path: &Path, source_roots: &[PathBuf]) -> Result<PathBuf, Error> {
    let resolved = resolve(path)?;
    clear_stale(&resolved)?;
    let kind = fs::metadata(&resolved).map_err(Error::system(path, "look at the mount point"))?;
    if !kind.is_dir() {
        return Err(Error::NotADirectory(path.to_owned()));
    }
    for root in source_roots {
        check_apart(&resolved, root)?;
    }
    let mut inside = fs::read_dir(&resolved).map_err(Error::system(path, "list the mount point"))?;
    if inside.next().is_some() { Err(Error::NotEmpty(path.to_owned())) } else { Ok(resolved) }
}

fn clear_stale(path: &Path) -> Result<(), Error> {
    for _ in 0..MAX_STALE {
        let Some(top) = mountinfo::at(path).map_err(Error::system(path, "read the mount table"))? else {
            return Ok(());
        };
        let (ours, stale) = (top.is_ours(), is_stale(path));
        if !(ours && stale) {
            return Err(busy(path, &top, stale));
        }
        tracing::info!(path = %path.display(), source = %top.source, "replacing a dead mount");
        unmount(&Place { path: path.to_owned(), device: Some(top.device) }, Force::No)?;
    }
    Err(Error::System { path: path.to_owned(), doing: "clear dead mounts away", source: Errno::BUSY.into() })
}

fn busy(path: &Path, top: &mountinfo::Entry, stale: bool) -> Error {
    let at = path.display();
    let advice = match (top.is_ours(), stale) {
        (true, _) => format!("`quantfs umount {at}` takes it down"),
        (false, true) => format!("its daemon is dead, `umount -l {at}` takes it down"),
        (false, false) => "name an empty directory".to_owned(),
    };
    let what = if top.is_ours() { top.source.clone() } else { format!("{} ({})", top.source, top.fstype) };
    Error::Busy { path: path.to_owned(), what, advice }
}

fn check_apart(mountpoint: &Path, source: &Path) -> Result<(), Error> {
    let source = fs::canonicalize(source).map_err(Error::system(source, "resolve the source"))?;
    let (mountpoint, source_dir) = (mountpoint.to_owned(), source);
    if mountpoint.starts_with(&source_dir) {
        Err(Error::InsideSource { mountpoint, source_dir })
    } else if source_dir.starts_with(&mountpoint) {
        Err(Error::AroundSource { mountpoint, source_dir })
    } else {
        Ok(())
    }
}

/// mount(2) where we may, else fusermount3.
fn make(path: &Path, options: &MountOptions) -> Result<OwnedFd, Error> {
    let device = match File::options().read(true).write(true).open(DEVICE) {
        Ok(device) => Some(device),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied && !getuid().is_root() => None,
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return Err(Error::NotPermitted),
        // ENODEV and ENXIO: the node is there and the module is not.
        Err(e) if e.kind() == io::ErrorKind::NotFound || matches!(e.raw_os_error(), Some(6 | 19)) => {
            return Err(Error::NoDevice);
        }
        Err(e) => return Err(Error::system(Path::new(DEVICE), "open")(e)),
    };
    if let Some(device) = device {
        match mount_directly(&device, path, options) {
            Ok(()) => return Ok(device.into()),
            Err(Errno::PERM) if getuid().is_root() => return Err(Error::NotPermitted),
            Err(Errno::PERM) => {}
            Err(Errno::NODEV) => return Err(Error::NoDevice),
            Err(e) => return Err(Error::system(path, "mount")(e)),
        }
    }
    if options.access != Access::Owner && !user_allow_other() {
        return Err(Error::AllowOther);
    }
    fusermount::mount(path, &fusermount_options(options))
}

fn mount_directly(device: &File, path: &Path, options: &MountOptions) -> Result<(), Errno> {
    let data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions{},subtype=quantfs",
        device.as_raw_fd(),
        getuid().as_raw(),
        getgid().as_raw(),
        allow_other(options.access, ",allow_other"),
    );
    let data = std::ffi::CString::new(data).map_err(|_| Errno::INVAL)?;
    let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NOATIME;
    rustix::mount::mount(source_name(&options.source), path, "fuse", flags, data.as_c_str())
}

fn fusermount_options(options: &MountOptions) -> String {
    // Commas part the options, and fusermount3 takes a backslash before one (and before itself).
    let name = source_name(&options.source).replace('\\', "\\\\").replace(',', "\\,");
    let access = allow_other(options.access, ",allow_other");
    format!("ro,nosuid,nodev,noexec,noatime,default_permissions{access},subtype=quantfs,fsname={name}")
}

fn allow_other(access: Access, option: &'static str) -> &'static str {
    // The kernel knows no allow_root: it lets everyone in, and the session turns the others away.
    if access == Access::Owner { "" } else { option }
}

/// What the mount table shows: the source as it is, so that `mount -a` finds its own line in fstab
/// again; the type says that it is ours. No control character may reach it: scripts read it line by line.
fn source_name(source: &str) -> String {
    source.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Whether /etc/fuse.conf lets ordinary users open their mounts to others. Where it cannot be read,
/// fusermount3 decides.
fn user_allow_other() -> bool {
    match fs::read_to_string("/etc/fuse.conf") {
        Ok(text) => text.lines().any(|line| line.trim() == "user_allow_other"),
        Err(e) => e.kind() != io::ErrorKind::NotFound,
    }
}

fn descriptor_number(path: &Path) -> Option<i32> {
    path.to_str()?.strip_prefix("/dev/fd/")?.parse().ok()
}

/// A duplicate of descriptor `number` of this process, through a handle on ourselves: that way no
/// descriptor is made up from a number.
fn handed(path: &Path, number: i32) -> Result<OwnedFd, Error> {
    let wrong = |e: Errno| Error::Descriptor { path: path.to_owned(), source: e.into() };
    let myself = pidfd_open(getpid(), PidfdFlags::empty()).map_err(wrong)?;
    let fd = pidfd_getfd(myself, number, PidfdGetfdFlags::empty()).map_err(wrong)?;
    let link = fs::read_link(format!("/proc/self/fd/{number}")).unwrap_or_default();
    if link == Path::new(DEVICE) { Ok(fd) } else { Err(wrong(Errno::BADF)) }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn options(source: &str) -> MountOptions {
        MountOptions { source: source.to_owned(), source_roots: vec![], access: Access::Owner }
    }

    #[test]
    fn a_source_cannot_smuggle_options_or_lines() {
        assert_eq!(source_name("/a\nb\tc"), "/a?b?c");
        assert!(fusermount_options(&options("/m,allow_other\\")).ends_with("fsname=/m\\,allow_other\\\\"));
    }

    #[test]
    fn bad_mount_points_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("file"), "x").unwrap();
        fs::create_dir_all(path("full/inner")).unwrap();
        fs::create_dir(path("empty")).unwrap();
        assert!(matches!(check(&path("none"), &[]), Err(Error::NotFound(_))));
        assert!(matches!(check(&path("file"), &[]), Err(Error::NotADirectory(_))));
        assert!(matches!(check(&path("full"), &[]), Err(Error::NotEmpty(_))));
        assert!(matches!(check(&path("full/inner"), &[path("full")]), Err(Error::InsideSource { .. })));
        assert!(matches!(check(&path("full"), &[path("full/inner")]), Err(Error::AroundSource { .. })));
        assert!(matches!(check(&path("full"), &[path("full")]), Err(Error::InsideSource { .. })));
        assert!(matches!(check(Path::new("/proc"), &[]), Err(Error::Busy { .. })));
        assert_eq!(check(&path("empty"), &[path("full")]).unwrap(), path("empty").canonicalize().unwrap());
    }

    #[test]
    fn a_descriptor_must_be_one_of_fuse() {
        let file = File::open("/dev/null").unwrap();
        let path = PathBuf::from(format!("/dev/fd/{}", file.as_raw_fd()));
        assert!(matches!(mount(&path, &options("x")), Err(Error::Descriptor { .. })));
        assert!(matches!(mount(Path::new("/dev/fd/9999"), &options("x")), Err(Error::Descriptor { .. })));
        assert_eq!(descriptor_number(Path::new("/dev/fd/x")), None);
    }
}
