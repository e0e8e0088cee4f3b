//! The kernel's protocol: convert, call the view, reply.
//!
//! The only module that names fuser. [`mount()`] makes a mount, a [`Session`] serves a view there,
//! [`unmount`] takes it down. Everything shown is fixed for the life of a view: names and attributes
//! are cached by the kernel for a year, contents for as long as memory lasts, and a change of view
//! gives every node a new inode number and expires all names at once.
//!
//! Knows no format, no tensor and no command line.

mod attr;
mod epoch;
mod errno;
mod error;
mod filesystem;
mod fusermount;
mod generation;
mod handles;
mod inode;
mod live;
mod mount;
pub mod mountinfo;
mod negotiate;
mod passthrough;
mod readahead;
mod session;
mod shared;

pub use attr::Owner;
pub use error::Error;
pub use live::{Facts, Live};
pub use mount::{Access, Force, MountOptions, Mounted, Place, find, is_stale, mount, unmount};
pub use session::{Session, SessionOptions};
