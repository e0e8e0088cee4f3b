//! Where an inode leads, and what is said of it.

use std::{
    ffi::OsStr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use fuser::{Errno, FileAttr, INodeNo};

use super::{
    attr::Shape,
    directory::{Directory, Found, Seen, Slot},
    generation::Generation,
    inode::{Inode, OF_ROOT},
    live::{Facts, HIDDEN_DIR, Live},
    shared::{Root, Shared},
};

/// How long the kernel may believe names and attributes: they do not change for as long as their
/// generation lives.
pub(super) const FOREVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Where an inode leads.
pub(super) enum Target {
    /// A file or a directory of a view.
    Node(Arc<Generation>, u32),
    /// The root of many views.
    Views(Arc<Directory>),
    /// A view among many, as far as it is remembered.
    Asleep(Arc<Slot>, Seen),
    /// Another spelling of a view's name.
    Link(Arc<Slot>),
    /// `.quantfs` in the root of this generation.
    Hidden(u32),
    /// A file of it.
    Live(u32, Live),
}

/// What a look-up found.
pub(super) enum Lookup {
    Absent,
    Here(Target),
    /// A view that nobody has used yet.
    Unmade(Arc<Directory>, Arc<Slot>),
}

impl Shared {
    /// Calls `then` with where an inode leads: now, or from another thread where its view is not in memory.
    ///
    /// ESTALE for a node of a view that is gone.
    pub(super) fn with_target(&self, number: INodeNo, then: impl FnOnce(Result<Target, Errno>) + Send + 'static) {
        let Some(inode) = Inode::of(number) else { return then(Err(Errno::ENOENT)) };
        match inode {
            Inode::Root => then(Ok(self.at_root())),
            Inode::Hidden(generation) => then(Ok(Target::Hidden(generation))),
            Inode::Live(generation, live) => then(Ok(Target::Live(generation, live))),
            Inode::Link(generation) => then(self.link(generation)),
            Inode::Node { generation, index } => self.with_view(generation, move |view| {
                let node = |view: Arc<Generation>| {
                    if view.contains(index) { Ok(Target::Node(view, index)) } else { Err(Errno::ESTALE) }
                };
                then(view.and_then(node));
            }),
        }
    }

    fn at_root(&self) -> Target {
        match self.root() {
            Root::One(generation) => Target::Node(generation, 0),
            Root::Many(directory) => Target::Views(directory),
        }
    }

    fn link(&self, generation: u32) -> Result<Target, Errno> {
        let Root::Many(directory) = self.root() else { return Err(Errno::ESTALE) };
        directory.numbered(generation).map(Target::Link).ok_or(Errno::ESTALE)
    }

    /// What a name in a target leads to.
    pub(super) fn find(&self, parent: Target, name: &OsStr) -> Result<Lookup, Errno> {
        let here = |target: Option<Target>| target.map_or(Lookup::Absent, Lookup::Here);
        Ok(match parent {
            Target::Node(generation, 0) if name == HIDDEN_DIR => {
                let its = if generation.inode(0) == Inode::Root { OF_ROOT } else { generation.number };
                Lookup::Here(Target::Hidden(its))
            }
            Target::Node(generation, node) => {
                let found = name.to_str().and_then(|name| generation.lookup(node, name));
                here(found.map(|child| Target::Node(generation, child)))
            }
            Target::Views(_) if name == HIDDEN_DIR => Lookup::Here(Target::Hidden(OF_ROOT)),
            Target::Views(directory) => match name.to_str().and_then(|name| directory.find(name)) {
                None => Lookup::Absent,
                Some(Found::Link(slot)) => Lookup::Here(Target::Link(slot)),
                Some(Found::View(slot)) => match slot.seen() {
                    Some(seen) => Lookup::Here(Target::Asleep(slot, seen)),
                    None => Lookup::Unmade(directory, slot),
                },
            },
            Target::Hidden(generation) => here(Live::find(name).map(|live| Target::Live(generation, live))),
            Target::Live(..) | Target::Link(_) | Target::Asleep(..) => return Err(Errno::ENOTDIR),
        })
    }

    /// Attributes with their life time.
    pub(super) fn attr_of(&self, target: &Target) -> (FileAttr, Duration) {
        let (owner, started) = (&self.owner, self.started);
        match target {
            Target::Node(view, node) => {
                (owner.attr(view.inode(*node), view.shape(*node), view.modified(*node)), FOREVER)
            }
            Target::Asleep(slot, seen) => {
                let inode = Inode::Node { generation: slot.number, index: 0 };
                (owner.attr(inode, Shape::Directory { directories: seen.directories }, seen.modified), FOREVER)
            }
            // Others are listed as they are used.
            Target::Views(directory) => {
                let directories = u32::try_from(directory.listed().len()).unwrap_or(u32::MAX);
                (owner.attr(Inode::Root, Shape::Directory { directories }, started), Duration::ZERO)
            }
            Target::Link(slot) => {
                (owner.attr(Inode::Link(slot.number), Shape::Link { len: slot.name.len() as u64 }, started), FOREVER)
            }
            Target::Hidden(generation) => {
                (owner.attr(Inode::Hidden(*generation), Shape::Directory { directories: 0 }, started), FOREVER)
            }
            // Nobody knows its length before it is opened; reads past the page cache need none.
            Target::Live(generation, live) => {
                let shape = Shape::File { len: 0 };
                (owner.attr(Inode::Live(*generation, *live), shape, SystemTime::now()), Duration::ZERO)
            }
        }
    }

    /// Calls `then` with what the mount, or a view of it, says of itself.
    pub(super) fn with_facts(
        &self,
        generation: u32,
        then: impl FnOnce(Result<Arc<dyn Facts>, Errno>) + Send + 'static,
    ) {
        match generation {
            OF_ROOT => then(Ok(self.root().facts())),
            _ => self.with_view(generation, move |view| then(view.map(|view| Arc::clone(&view.facts)))),
        }
    }
}
