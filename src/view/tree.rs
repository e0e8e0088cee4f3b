//! The directories of a plan: an immutable tree with stable numbers.
//!
//! Node 0 is the root; the children of a directory are consecutive and sorted by name, so that a
//! look-up is a binary search and a listing a slice. Equal plans have equal numbers. Inode
//! arithmetic (generation + number) is not done here.

use std::{collections::BTreeMap, ops::Range, time::SystemTime};

use crate::plan::File;

/// A directory or a file of a view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its own number.
    pub index: usize,
    /// Number of the directory that holds it; the root is its own parent.
    pub parent: usize,
    /// Name in that directory; empty for the root.
    pub name: String,
    /// Modification time: a directory has the newest of what is in it.
    pub modified: SystemTime,
    /// What it is.
    pub kind: Kind,
}

/// What a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory; the numbers of its children.
    Dir(Range<usize>),
    /// A file; its index in [`Plan::files`](crate::plan::Plan::files).
    File(usize),
}

/// All nodes of a view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    nodes: Vec<Node>,
}

/// What a path part leads to while the tree is built.
enum Entry<'a> {
    Dir(BTreeMap<&'a str, Self>),
    File(usize),
}

impl Tree {
    /// The tree of a plan's files. Paths are unique, and none goes through another one's file: a
    /// plan that breaks this loses the file that is in the way, and the log says so.
    #[must_use]
    pub fn new(files: &[File]) -> Self {
        let mut root = BTreeMap::new();
        for (index, file) in files.iter().enumerate() {
            insert(&mut root, file, index);
        }
        let mut tree = Self { nodes: vec![Node::new(0, "", Kind::Dir(1..1))] };
        tree.fill(0, root, files);
        tree.date(0);
        tree
    }

    /// Appends the children of `dir`, all of them before any grandchild.
    fn fill(&mut self, dir: usize, children: BTreeMap<&str, Entry<'_>>, files: &[File]) {
        let first = self.nodes.len();
        let mut below = Vec::new();
        for (name, entry) in children {
            let index = self.nodes.len();
            let mut node = Node::new(dir, name, Kind::Dir(0..0));
            node.index = index;
            match entry {
                Entry::File(file) => (node.kind, node.modified) = (Kind::File(file), files[file].modified),
                Entry::Dir(entries) => below.push((index, entries)),
            }
            self.nodes.push(node);
        }
        self.nodes[dir].kind = Kind::Dir(first..self.nodes.len());
        for (index, entries) in below {
            self.fill(index, entries, files);
        }
    }

    /// Gives directories their modification time.
    fn date(&mut self, index: usize) -> SystemTime {
        if let Kind::Dir(children) = self.nodes[index].kind.clone() {
            let newest = children.map(|child| self.date(child)).max();
            self.nodes[index].modified = newest.unwrap_or(SystemTime::UNIX_EPOCH);
        }
        self.nodes[index].modified
    }

    /// Number of nodes, the root included.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "there is always a root")]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// The node of a number.
    #[must_use]
    pub fn node(&self, index: usize) -> Option<&Node> {
        self.nodes.get(index)
    }

    /// The children of a directory, sorted by name (as bytes); empty for a file.
    #[must_use]
    pub fn children(&self, dir: usize) -> &[Node] {
        match self.nodes.get(dir).map(|node| &node.kind) {
            Some(Kind::Dir(children)) => &self.nodes[children.clone()],
            _ => &[],
        }
    }

    /// The child of a name.
    #[must_use]
    pub fn lookup(&self, dir: usize, name: &str) -> Option<&Node> {
        let children = self.children(dir);
        children.binary_search_by(|node| node.name.as_str().cmp(name)).ok().map(|i| &children[i])
    }

    /// The node of a path below the root, `/` between parts; the root for an empty one.
    #[must_use]
    pub fn find(&self, path: &str) -> Option<&Node> {
        let parts = path.split('/').filter(|part| !part.is_empty());
        parts.into_iter().try_fold(&self.nodes[0], |dir, name| self.lookup(dir.index, name))
    }
}

impl Node {
    fn new(parent: usize, name: &str, kind: Kind) -> Self {
        Self { index: 0, parent, name: name.to_owned(), modified: SystemTime::UNIX_EPOCH, kind }
    }

    /// The index of a file in the plan, `None` for a directory.
    #[must_use]
    pub fn file(&self) -> Option<usize> {
        match self.kind {
            Kind::File(file) => Some(file),
            Kind::Dir(_) => None,
        }
    }
}

fn insert<'a>(mut dir: &mut BTreeMap<&'a str, Entry<'a>>, file: &'a File, index: usize) {
    let (parents, name) = file.path.rsplit_once('/').unwrap_or(("", &file.path));
    for part in parents.split('/').filter(|part| !part.is_empty()) {
        let entry = dir.entry(part).or_insert_with(|| Entry::Dir(BTreeMap::new()));
        if let Entry::File(_) = entry {
            tracing::error!(path = file.path, "a directory of this path is a file too; the file is not shown");
            *entry = Entry::Dir(BTreeMap::new());
        }
        let Entry::Dir(next) = entry else { return };
        dir = next;
    }
    if dir.contains_key(name) {
        tracing::error!(path = file.path, "is there twice; the first is shown");
        return;
    }
    dir.insert(name, Entry::File(index));
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn file(path: &str, seconds: u64) -> File {
        let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        File { path: path.to_owned(), len: 0, modified, extents: Vec::new() }
    }

    #[test]
    fn nodes_are_found_by_name_and_number() {
        let files = [file("a", 5), file("b/x/1", 7), file("b/x/2", 9), file("b/y", 3), file("c-", 1)];
        let tree = Tree::new(&files);
        assert_eq!(tree.len(), 8);
        let names = |dir: usize| tree.children(dir).iter().map(|n| n.name.as_str()).collect::<Vec<_>>();
        assert_eq!(names(0), ["a", "b", "c-"]);
        for (i, file) in files.iter().enumerate() {
            let node = tree.find(&file.path).expect("every file has a node");
            assert_eq!(node.file(), Some(i));
            assert_eq!(tree.node(node.index), Some(node));
            assert!(tree.children(node.parent).contains(node));
        }
        let b = tree.find("b").expect("a directory");
        assert_eq!(names(b.index), ["x", "y"]);
        assert_eq!(b.modified, SystemTime::UNIX_EPOCH + Duration::from_secs(9), "the newest below");
        assert_eq!(tree.lookup(b.index, "z"), None);
        assert_eq!(tree.lookup(tree.find("a").expect("a file").index, "z"), None);
        assert_eq!(Tree::new(&files), tree, "numbers are stable");
        assert_eq!(Tree::new(&[]).children(0), &[]);
    }

    #[test]
    fn a_path_that_is_file_and_directory_is_a_directory() {
        let tree = Tree::new(&[file("a", 0), file("a/b", 0), file("a/b", 0)]);
        assert_eq!(tree.find("a/b").and_then(Node::file), Some(1));
        assert_eq!(tree.len(), 3);
    }
}
