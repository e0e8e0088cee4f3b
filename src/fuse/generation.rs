//! One view of a mount, under the number that its inodes carry.
//!
//! A view that takes over has another number; earlier ones live for as long as somebody has a file of
//! theirs open.

use std::{ops::Range, sync::Arc, time::SystemTime};

use crate::view::{Access, Done, Node, View, tree::Kind};

use super::{attr::Shape, inode::Inode, live::Facts, passthrough::Routes, show::Shown};

#[derive(Debug)]
pub(super) struct Generation {
    pub(super) number: u32,
    pub(super) facts: Arc<dyn Facts>,
    pub(super) routes: Routes,
    /// Whether its root is the mount's.
    is_root: bool,
    view: Arc<View>,
    totals: (u64, u64),
}

impl Generation {
    pub(super) fn new(number: u32, is_root: bool, shown: Shown) -> Self {
        let Shown { view, facts } = shown;
        let files = &view.plan().files;
        let totals = (files.iter().map(|file| file.len).sum(), files.len() as u64);
        Self { number, facts, routes: Routes::default(), is_root, view, totals }
    }

    fn node(&self, index: u32) -> Option<&Node> {
        self.view.tree().node(index as usize)
    }

    pub(super) fn contains(&self, index: u32) -> bool {
        self.node(index).is_some()
    }

    pub(super) fn inode(&self, index: u32) -> Inode {
        match index {
            0 if self.is_root => Inode::Root,
            _ => Inode::Node { generation: self.number, index },
        }
    }

    pub(super) fn lookup(&self, dir: u32, name: &str) -> Option<u32> {
        self.view.tree().lookup(dir as usize, name).map(narrow)
    }

    pub(super) fn children(&self, dir: u32) -> Range<u32> {
        match self.view.tree().children(dir as usize) {
            [] => 0..0,
            [first, .., last] => narrow(first)..narrow(last) + 1,
            [only] => narrow(only)..narrow(only) + 1,
        }
    }

    /// The directory above; the mount's root above a view's.
    pub(super) fn parent(&self, index: u32) -> Inode {
        match index {
            0 => Inode::Root,
            _ => self.inode(self.node(index).and_then(|node| u32::try_from(node.parent).ok()).unwrap_or(0)),
        }
    }

    pub(super) fn name(&self, index: u32) -> &str {
        self.node(index).map_or("", |node| &node.name)
    }

    pub(super) fn modified(&self, index: u32) -> SystemTime {
        self.node(index).map_or(SystemTime::UNIX_EPOCH, |node| node.modified)
    }

    /// Number in the plan, `None` for a directory.
    fn file(&self, index: u32) -> Option<usize> {
        self.node(index)?.file()
    }

    pub(super) fn is_file(&self, index: u32) -> bool {
        self.file(index).is_some()
    }

    pub(super) fn shape(&self, index: u32) -> Shape {
        match self.file(index) {
            Some(file) => Shape::File { len: self.view.plan().files[file].len },
            None => Shape::Directory { directories: self.directories(index) },
        }
    }

    /// How many directories a directory has.
    pub(super) fn directories(&self, index: u32) -> u32 {
        let children = self.view.tree().children(index as usize);
        let directories = children.iter().filter(|child| matches!(child.kind, Kind::Dir(_))).count();
        u32::try_from(directories).unwrap_or(u32::MAX)
    }

    /// About what its plan takes in memory, by what plans of large models were seen to take.
    pub(super) fn plan_bytes(&self) -> usize {
        const ROW: usize = 2048;
        self.view.plan().rows.len() * ROW
    }

    /// Bytes and number of all files.
    pub(super) fn totals(&self) -> (u64, u64) {
        self.totals
    }

    /// The number in the plan of a file that may lie in a local one whole.
    pub(super) fn may_pass(&self, index: u32) -> Option<usize> {
        self.file(index).filter(|file| self.view.may_be_local(*file))
    }

    pub(super) fn view(&self) -> &Arc<View> {
        &self.view
    }

    /// Answers a read of a file of the view, now or later; at its end with fewer bytes.
    pub(super) fn read_then(&self, index: u32, offset: u64, len: u32, access: Access, done: Done) {
        // A handle of kind file is only made of files.
        let file = self.file(index).unwrap_or(usize::MAX);
        self.view.read_then(file, offset, len as usize, access, done);
    }
}

/// Node numbers fit: a plan is made of fewer files than there are inode numbers.
fn narrow(node: &Node) -> u32 {
    u32::try_from(node.index).unwrap_or(u32::MAX)
}
