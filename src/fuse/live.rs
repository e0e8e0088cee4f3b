//! `.quantfs`: a hidden directory whose files say how the mount is doing.
//!
//! It is not listed and always there. Its files are computed when they are opened, are read past the
//! page cache, and keep what they said at their opening until they are closed.

use std::{ffi::OsStr, fmt::Debug};

/// Name of the directory.
pub const HIDDEN_DIR: &str = ".quantfs";

/// The files of the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Live {
    /// `status.json`
    Status,
    /// `metrics`, in Prometheus' text format.
    Metrics,
    /// `plan.json`
    Plan,
}

impl Live {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Status, Self::Metrics, Self::Plan];

    /// Its name in the directory.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Status => "status.json",
            Self::Metrics => "metrics",
            Self::Plan => "plan.json",
        }
    }

    pub(super) fn find(name: &OsStr) -> Option<Self> {
        Self::ALL.into_iter().find(|live| name == live.name())
    }
}

/// What a mount says about itself beside the view's own bytes; one for each view.
pub trait Facts: Send + Sync + Debug {
    /// Extended attributes of everything in the view: full names (`user.quantfs.spec`) and values.
    fn labels(&self) -> Vec<(&'static str, String)>;

    /// The content of a live file as it is now.
    fn live(&self, file: Live) -> Vec<u8>;
}
