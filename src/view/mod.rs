//! A view: an immutable tree of files whose bytes are made when they are read.
//!
//! What always holds: the bytes of a read are those of the fully materialized file, or the read
//! fails; a tile is encoded once however many ask; no thread waits for another's tile (but for
//! the last looks of a survey, which all who need it share out); every read
//! is answered within the deadline; no lock is held during I/O, encoding or an answer; cache, tiles
//! in the making and replies stay within one budget ([`Options::cache_bytes`] and 64 MiB).
//!
//! A [`View`] is a plan with its source; an [`Engine`] is what the views of a process share. Knows
//! no FUSE: inode numbers, time-outs of names and replies belong to who mounts it.

mod ahead;
mod counters;
mod deadline;
mod encode;
mod engine;
mod error;
mod gather;
mod merge;
mod pool;
mod read;
mod segment;
mod settle;
mod stored;
mod survey;
pub mod tree;
mod values;

use std::sync::Arc;

use crate::{
    plan::{Plan, Surveyed},
    source::Source,
};

pub use ahead::Access;
pub use counters::Snapshot;
pub use engine::{Engine, Options, SourceCache};
pub use error::{Place, ReadError};
pub use read::Done;
pub use tree::{Node, Tree};
pub use values::{Shown, Values};

/// One plan, served.
#[derive(Debug)]
pub struct View {
    plan: Arc<Plan>,
    source: Arc<dyn Source>,
    tree: Tree,
    engine: Arc<Engine>,
    ahead: ahead::Ahead,
    stored: Option<stored::Stored>,
    surveys: Vec<Arc<survey::Findings>>,
}

impl View {
    /// A view of `plan`, which was made from `source`. Reads nothing, unless the engine has a store: then
    /// its files are looked up there, by a look at the source's.
    #[must_use]
    pub fn new(plan: Arc<Plan>, source: Arc<dyn Source>, engine: Arc<Engine>) -> Arc<Self> {
        let tree = Tree::new(&plan.files);
        let stored = engine.store.as_ref().map(|store| stored::Stored::open(store, &plan, &*source));
        // The key of one of its weights says what is asked, of which weights.
        let key = |surveyed: &Surveyed| plan.weights[surveyed.members[0] as usize].key;
        let surveys = plan.surveys.iter().map(|surveyed| engine.findings(key(surveyed))).collect();
        let view = Arc::new(Self { plan, source, tree, engine, ahead: ahead::Ahead::default(), stored, surveys });
        view.start_settling();
        view
    }

    /// What it shows.
    #[must_use]
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// Where its weights come from.
    #[must_use]
    pub fn source(&self) -> &Arc<dyn Source> {
        &self.source
    }

    /// Its directories.
    #[must_use]
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// What it shares with other views.
    #[must_use]
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }
}
