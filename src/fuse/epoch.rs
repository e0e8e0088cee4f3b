//! The notice that expires every name at once.
//!
//! fuser has no call for `FUSE_NOTIFY_INC_EPOCH` (Linux 6.16), so its sixteen bytes are written to a
//! duplicate of the session's descriptor. Cached names, present and absent, are asked for again;
//! open files and cached attributes stay. A kernel without it answers EINVAL.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

/// `enum fuse_notify_code` of the kernel's `include/uapi/linux/fuse.h`.
const FUSE_NOTIFY_INC_EPOCH: i32 = 8;

/// A header without a body: length, code, and 0 where a reply has its request's number.
const HEADER_LEN: u32 = 16;

#[derive(Debug)]
pub(super) struct Epoch(OwnedFd);

impl Epoch {
    pub(super) fn new(session: &impl AsFd) -> io::Result<Self> {
        Ok(Self(session.as_fd().try_clone_to_owned()?))
    }

    /// Expires all names of the mount.
    ///
    /// # Errors
    /// EINVAL where the kernel does not know the notice.
    pub(super) fn advance(&self) -> io::Result<()> {
        let mut header = [0u8; HEADER_LEN as usize];
        header[..4].copy_from_slice(&HEADER_LEN.to_ne_bytes());
        header[4..8].copy_from_slice(&FUSE_NOTIFY_INC_EPOCH.to_ne_bytes());
        rustix::io::write(&self.0, &header)?;
        Ok(())
    }
}
