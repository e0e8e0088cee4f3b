//! A source with files beside it: what overrides its tensors, and adapters. They are read as its own are, and
//! are no part of its tree.

use std::{ops::Range, os::fd::OwnedFd, path::PathBuf};

use crate::source::{Entry, Error, FileId, Source};

/// A source and what lies beside it.
#[derive(Debug)]
pub struct Joined {
    parts: Vec<Box<dyn Source>>,
    /// Number of the first entry of each part.
    starts: Vec<usize>,
    entries: Vec<Entry>,
    local_roots: Vec<PathBuf>,
}

impl Joined {
    /// Joins sources to `base`. Also says which files each of them holds, sorted by name; not those of directories
    /// below, which are other versions (checkpoints of a training run, say).
    ///
    /// # Errors
    /// More files than can be numbered.
    pub fn new(base: Box<dyn Source>, beside: Vec<Box<dyn Source>>) -> Result<(Self, Vec<Vec<FileId>>), Error> {
        let mut joined = Self { parts: vec![], starts: vec![], entries: vec![], local_roots: vec![] };
        joined.add(base, |_, path| path.to_owned())?;
        // A single file is called by its own path already.
        let named = |name: &str, path: &str| {
            if name.ends_with(path) { name.to_owned() } else { format!("{name}/{path}") }
        };
        let files = beside.into_iter().map(|part| joined.add(part, named)).collect::<Result<_, _>>()?;
        Ok((joined, files))
    }

    fn add(&mut self, part: Box<dyn Source>, name: impl Fn(&str, &str) -> String) -> Result<Vec<FileId>, Error> {
        let start = self.entries.len();
        let named = |entry: &Entry| Entry { path: name(part.name(), &entry.path), version: entry.version };
        self.entries.extend(part.entries().iter().map(named));
        self.local_roots.extend_from_slice(part.local_roots());
        let number = |at| u32::try_from(at).map(FileId);
        let top = part.entries().iter().zip(start..).filter(|(entry, _)| !entry.path.contains('/'));
        let all = top.map(|(_, at)| number(at)).collect::<Result<Vec<_>, _>>();
        let files = all.map_err(|_| Error::refused(part.name(), "more than 4 billion files"))?;
        self.parts.push(part);
        self.starts.push(start);
        Ok(files)
    }

    /// The part of a file, and its number there.
    fn part(&self, id: FileId) -> (&dyn Source, FileId) {
        let at = self.starts.partition_point(|start| *start <= id.0 as usize).saturating_sub(1);
        let below = id.0 - u32::try_from(self.starts[at]).unwrap_or(0);
        (&*self.parts[at], FileId(below))
    }
}

impl Source for Joined {
    fn name(&self) -> &str {
        self.parts[0].name()
    }

    fn repo(&self) -> Option<(&str, &str)> {
        self.parts[0].repo()
    }

    fn local_roots(&self) -> &[PathBuf] {
        &self.local_roots
    }

    fn entries(&self) -> &[Entry] {
        &self.entries
    }

    fn tree(&self) -> usize {
        self.parts[0].tree()
    }

    fn read_exact_at(&self, id: FileId, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        let (part, id) = self.part(id);
        part.read_exact_at(id, offset, buf)
    }

    fn local_file(&self, id: FileId) -> Option<OwnedFd> {
        let (part, id) = self.part(id);
        part.local_file(id)
    }

    fn hint(&self, id: FileId, range: Range<u64>) {
        let (part, id) = self.part(id);
        part.hint(id, range);
    }

    fn release(&self, id: FileId, range: Range<u64>) {
        let (part, id) = self.part(id);
        part.release(id, range);
    }
}
