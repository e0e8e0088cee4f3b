//! What a mount shows: one view, or a directory of views by name.
//!
//! Whoever mounts knows what names mean; this floor knows when a view is needed. Knows no spec.

use std::{fmt::Debug, sync::Arc};

use crate::view::View;

use super::Facts;

/// A view and what it says of itself.
#[derive(Clone, Debug)]
pub struct Shown {
    /// Its files.
    pub view: Arc<View>,
    /// Its labels and live files.
    pub facts: Arc<dyn Facts>,
}

/// What is at the root of a mount.
#[derive(Clone, Debug)]
pub enum Show {
    /// The files of a view.
    One(Shown),
    /// A directory for each view.
    Many(Arc<dyn Catalog>),
}

/// What a name at the root of many views leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named {
    /// A view.
    View,
    /// Another spelling of this name, which leads to a view.
    Link(String),
}

/// Why there is no view of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoView {
    /// There never will be.
    Refused(String),
    /// The source is not what it was.
    Stale(String),
    /// Reading failed; it may not fail again.
    Failed(String),
}

/// Views by name. Answers are always the same: of a name, and of the view behind it.
pub trait Catalog: Send + Sync + Debug {
    /// The views that are listed from the start; the others are once they were used.
    fn names(&self) -> Vec<String>;

    /// What a name means, from the name alone; `None` where it means nothing.
    fn find(&self, name: &str) -> Option<Named>;

    /// The view of a name, made anew; it may be given up and asked for again. Takes as long as reading headers takes.
    ///
    /// # Errors
    /// Why there is none.
    fn open(&self, name: &str) -> Result<Shown, NoView>;

    /// What the mount says of all of them.
    fn facts(&self) -> Arc<dyn Facts>;
}
