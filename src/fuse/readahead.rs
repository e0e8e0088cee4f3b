//! The kernel's read-ahead window for a mount.
//!
//! The kernel asks for 128 KiB at a time, whatever the handshake says, until somebody raises the
//! window of the mount's device in sysfs. A large window is also what lets one reader keep all
//! encoding threads busy.

use std::{fs, path::PathBuf};

/// Raises the window to `bytes` where we may, and says in the log how to where we may not.
pub(super) fn raise((major, minor): (u32, u32), bytes: u64) {
    let file = PathBuf::from(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"));
    let kib = bytes / 1024;
    match fs::write(&file, kib.to_string()) {
        Ok(()) => tracing::debug!(kib, "read-ahead window raised"),
        Err(e) => tracing::info!(
            "the kernel reads ahead by 128 KiB only ({e}); `echo {kib} | sudo tee {}` makes cold reads faster",
            file.display()
        ),
    }
}
