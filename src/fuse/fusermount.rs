//! fusermount3: how an ordinary user mounts and unmounts.
//!
//! The set-uid program opens /dev/fuse and mounts it, then passes the descriptor back over a socket.
//! It is given the socket as its standard input, which a child inherits without further ado.

use std::{
    io::{self, IoSliceMut, Read},
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
    process::{Child, Command, Stdio},
};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use super::Error;

/// The variable that names the socket's descriptor; ours is standard input.
const SOCKET_VARIABLE: &str = "_FUSE_COMMFD";

/// Where distributions install it, for a PATH that lacks the place.
const PLACES: [&str; 3] = ["fusermount3", "/usr/bin/fusermount3", "/bin/fusermount3"];

/// Mounts `path` with fstab-style options and returns the session's descriptor.
///
/// # Errors
/// Where the program is missing or refuses.
pub(super) fn mount(path: &Path, options: &str) -> Result<OwnedFd, Error> {
    let (ours, theirs) = UnixStream::pair().map_err(Error::system(path, "make a socket for fusermount3"))?;
    let mut child = start(path, |command| {
        let theirs = theirs.try_clone()?;
        command.args(["-o", options, "--"]).arg(path).env(SOCKET_VARIABLE, "0").stdin(OwnedFd::from(theirs));
        Ok(())
    })?;
    drop(theirs);
    let received = receive(&ours);
    let said = finish(&mut child, path)?;
    match received {
        Some(fd) => Ok(fd),
        None if said.contains("user_allow_other") => Err(Error::AllowOther),
        None if said.contains("open /dev/fuse: Permission denied") => Err(Error::DeviceDenied),
        None => Err(Error::Fusermount { path: path.to_owned(), said }),
    }
}

/// Detaches the mount at `path`, busy or not.
///
/// # Errors
/// Where the program is missing or refuses.
pub(super) fn unmount(path: &Path) -> Result<(), Error> {
    let mut child = start(path, |command| {
        command.args(["-u", "-z", "--"]).arg(path).stdin(Stdio::null());
        Ok(())
    })?;
    let said = finish(&mut child, path)?;
    let status = child.wait().map_err(Error::system(path, "wait for fusermount3"))?;
    if status.success() { Ok(()) } else { Err(Error::Fusermount { path: path.to_owned(), said }) }
}

fn start(path: &Path, prepare: impl Fn(&mut Command) -> io::Result<()>) -> Result<Child, Error> {
    for place in PLACES {
        let mut command = Command::new(place);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        prepare(&mut command).map_err(Error::system(path, "prepare fusermount3"))?;
        match command.spawn() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            // A PATH with a directory that we may not search says this even of a program that is nowhere.
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied && !place.contains('/') => {}
            Err(e) => return Err(Error::system(path, "run fusermount3")(e)),
            Ok(child) => return Ok(child),
        }
    }
    Err(Error::NoFusermount)
}

/// Waits for the program's end; what it said on standard error, in one line.
fn finish(child: &mut Child, path: &Path) -> Result<String, Error> {
    let mut said = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        stderr.read_to_string(&mut said).map_err(Error::system(path, "read what fusermount3 says"))?;
    }
    child.wait().map_err(Error::system(path, "wait for fusermount3"))?;
    let said = said.replace("fusermount3: ", "");
    Ok(said.lines().map(str::trim).collect::<Vec<_>>().join("; "))
}

/// The descriptor that came with the first message; `None` where the socket closed without one.
fn receive(socket: &UnixStream) -> Option<OwnedFd> {
    let mut byte = [0u8];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    });
    received.ok()?;
    ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    })
}
