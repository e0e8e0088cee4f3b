//! The kernel's protocol: convert, call the view, reply.
//!
//! The only module that names fuser. [`mount()`] makes a mount, a [`Session`] serves a view there,
//! [`unmount`] takes it down. Many views are shown as a directory each. Everything shown is fixed for the life of a view: names and attributes
//! are cached by the kernel for a year, contents for as long as memory lasts, and a change of view
//! gives every node a new inode number and expires all names at once.
//!
//! Knows no format, no tensor and no command line.

mod attr;
mod directory;
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
mod registry;
mod session;
mod shared;
mod show;
mod target;

pub use attr::Owner;
pub use error::Error;
pub use live::{Facts, HIDDEN_DIR, Live};
pub use mount::{Access, Force, MountOptions, Mounted, Place, find, is_stale, mount, unmount};
pub use session::{Session, SessionOptions, ViewState};
pub use show::{Catalog, Named, NoView, Show, Shown};
