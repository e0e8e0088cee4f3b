//! The files of a view in a store: where a tile lies there, and what of it is right.
//!
//! A view's file is kept where any of it is computed; files that show source bytes alone are as near
//! in the source. A tile is found when all its parts are, each checked. What identifies a source file
//! across mounts is where it lies, its version, and a few samples of its bytes: times can be set back
//! and file systems can be swapped under one path, and a store outlives both.

use std::{
    cell::RefCell,
    collections::HashMap,
    fmt::{self, Debug},
    os::fd::OwnedFd,
    sync::Arc,
};

use crate::{
    cache::Cache,
    plan::{Content, File, Plan, Planned},
    source::{self, FileId, Source},
    store::{Entry, Layout, Loaded, Store},
};

use super::{
    View,
    counters::add,
    encode::{Tile, memory, shares},
    engine::PartKey,
    segment::{From, Segment, Segments},
    settle::Desk,
};

/// Longest piece of what is not computed: as long as a tile's codes.
pub(super) const RUN: u64 = 1 << 20;

/// Samples of a source file, from its first byte to its last.
const SAMPLES: u64 = 16;

/// Length of a sample: what a disk reads at least.
const SAMPLE: u64 = 4096;

/// The entries of a view's files.
pub(super) struct Stored {
    pub(super) entries: Vec<Option<Arc<Entry>>>,
    /// Where the parts of weights lie in the view: file and offset, mostly one.
    spots: HashMap<(u32, u16), Vec<(usize, u64)>>,
    pub(super) desk: Arc<Desk>,
}

impl Debug for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stored({} files)", self.entries.iter().flatten().count())
    }
}

impl Drop for Stored {
    fn drop(&mut self) {
        self.desk.stop();
    }
}

/// One part of a tile: how long it is, and which pieces it is.
struct Share<'a> {
    part: usize,
    len: usize,
    pieces: Vec<(&'a Entry, usize)>,
}

impl Stored {
    /// Opens the entries of a plan's files. One that cannot be opened is done without, with a line in the log.
    pub(super) fn open(store: &Arc<Store>, plan: &Plan, source: &dyn Source) -> Self {
        let identities = Identities { source, known: RefCell::default() };
        let entry = |file: &File| {
            let opened = identities.layout(plan, file)?.map(|layout| store.entry(layout)).transpose();
            opened.map_err(|e| format!("{}: {e}", store.path().display()))
        };
        let entry = |file| {
            let opened: Result<_, String> = entry(file);
            opened.unwrap_or_else(|e| {
                tracing::warn!("{}: not kept in the cache directory: {e}", file.path);
                None
            })
        };
        let entries: Vec<_> = plan.files.iter().map(entry).collect();
        let mut spots: HashMap<_, Vec<_>> = HashMap::new();
        for (number, file) in plan.files.iter().enumerate() {
            for extent in &file.extents {
                if let Content::Part { weight, part } = extent.content {
                    spots.entry((weight, part)).or_default().push((number, extent.start));
                }
            }
        }
        let unsealed = |(number, entry): (usize, &Option<Arc<Entry>>)| {
            entry.as_ref().is_some_and(|entry| !entry.is_sealed()).then_some(number)
        };
        let desk = Arc::new(Desk::new(entries.iter().enumerate().filter_map(unsealed)));
        Self { entries, spots, desk }
    }

    /// The parts of a tile that have bytes; `None` where one of them has no place in the store.
    fn shares(&self, planned: &Planned, weight: u32, tile: u32) -> Option<Vec<Share<'_>>> {
        let mut found = Vec::new();
        for ((part, number), share) in (0..).zip(0u16..).zip(shares(planned, tile)) {
            if share.is_empty() {
                continue;
            }
            let piece = |(file, start): &(usize, u64)| {
                let entry = self.entries[*file].as_deref()?;
                Some((entry, entry.layout().piece_at(start + share.start as u64)?))
            };
            let pieces = self.spots.get(&(weight, number))?.iter().map(piece).collect::<Option<_>>()?;
            found.push(Share { part, len: share.len(), pieces });
        }
        Some(found)
    }

    /// The parts of a tile, if all are there and right; whether one was wrong.
    fn load(&self, cache: &Cache<PartKey>, planned: &Planned, weight: u32, tile: u32) -> Result<Tile, Loaded> {
        let shares = self.shares(planned, weight, tile).ok_or(Loaded::Absent)?;
        let recorded = |share: &Share<'_>| share.pieces.first().is_some_and(|(entry, piece)| entry.has(*piece));
        if !shares.iter().all(recorded) {
            return Err(Loaded::Absent);
        }
        let mut parts: Vec<Arc<[u8]>> = vec![Arc::from([]); planned.parts.len()];
        for share in shares {
            let mut bytes = memory(cache, share.len);
            let (entry, piece) = share.pieces.first().ok_or(Loaded::Absent)?;
            match entry.load(*piece, Arc::get_mut(&mut bytes).unwrap_or_default()) {
                Loaded::Whole => parts[share.part] = bytes,
                other => return Err(other),
            }
        }
        Ok(parts.into())
    }

    /// Whether every part of a tile is recorded; their bytes are not looked at.
    pub(super) fn has(&self, planned: &Planned, weight: u32, tile: u32) -> bool {
        let recorded = |share: &Share<'_>| share.pieces.iter().all(|(entry, piece)| entry.has(*piece));
        self.shares(planned, weight, tile).is_some_and(|shares| shares.iter().all(recorded))
    }

    /// Stores a tile. How many bytes of it are there now.
    pub(super) fn keep(&self, planned: &Planned, weight: u32, tile: u32, parts: &Tile) -> usize {
        let mut kept = 0;
        for share in self.shares(planned, weight, tile).unwrap_or_default() {
            for (entry, piece) in share.pieces {
                kept += if entry.keep(piece, &parts[share.part]) { share.len } else { 0 };
            }
        }
        kept
    }

    /// The files that a weight's parts lie in.
    pub(super) fn files_of(&self, planned: &Planned, weight: u32) -> impl Iterator<Item = usize> {
        let parts = (0u16..).zip(&planned.parts);
        parts.flat_map(move |(part, _)| self.spots.get(&(weight, part)).into_iter().flatten().map(|(file, _)| *file))
    }
}

impl View {
    /// A tile from the store. Waits for the disk.
    pub(super) fn load_stored(&self, weight: u32, tile: u32) -> Option<Tile> {
        let counters = &self.engine.counters;
        let planned = &self.plan.weights[weight as usize];
        let loaded = self.stored.as_ref()?.load(&self.engine.cache, planned, weight, tile);
        match &loaded {
            Ok(parts) => {
                add(&counters.store_hits, 1);
                add(&counters.store_read_bytes, parts.iter().map(|part| part.len()).sum());
            }
            Err(why) => {
                add(&counters.store_misses, 1);
                add(&counters.store_corrupt, usize::from(*why == Loaded::Corrupt));
            }
        }
        loaded.ok()
    }

    /// Hands a tile to the thread that stores them. Never waits.
    pub(super) fn offer_to_store(&self, weight: u32, tile: u32, parts: &Tile) {
        let Some(stored) = &self.stored else { return };
        let stopped = self.engine.store.as_ref().is_none_or(|store| store.is_stopped());
        let mut files = stored.files_of(&self.plan.weights[weight as usize], weight);
        if stopped || !files.any(|file| stored.entries[file].is_some()) {
            return;
        }
        if !stored.desk.offer(weight, tile, parts) {
            add(&self.engine.counters.store_behind, 1);
        }
    }

    /// Whether a local file may hold the very bytes of a file of the view, for the kernel to read by
    /// itself: an untouched file of the source, or one that the store keeps. Reads nothing.
    #[must_use]
    pub fn may_be_local(&self, file: usize) -> bool {
        let entry = || self.stored.as_ref().is_some_and(|stored| stored.entries.get(file).is_some_and(Option::is_some));
        self.plan.files.get(file).is_some_and(|f| f.untouched().is_some()) || entry()
    }

    /// A fresh descriptor of that file, where it is one and whole. Waits for the disk.
    #[must_use]
    pub fn local_file(&self, file: usize) -> Option<OwnedFd> {
        match self.plan.files.get(file)?.untouched() {
            Some(untouched) => self.source.local_file(untouched),
            None => self.stored.as_ref()?.entries.get(file)?.as_ref()?.finished(),
        }
    }
}

/// What the files of a source are, across mounts.
struct Identities<'a> {
    source: &'a dyn Source,
    known: RefCell<HashMap<FileId, [u8; 32]>>,
}

impl Identities<'_> {
    /// What the store has to know of a file; `None` for one that is not kept.
    fn layout(&self, plan: &Plan, file: &File) -> Result<Option<Layout>, String> {
        if !file.extents.iter().any(|extent| matches!(extent.content, Content::Part { .. })) {
            return Ok(None);
        }
        for id in sources(plan, file) {
            self.learn(id).map_err(|e| e.to_string())?;
        }
        let digest = plan.digest(file, &|id| self.known.borrow().get(&id).copied().unwrap_or_default());
        let starts = Segments::new(plan, file, 0..file.len).flat_map(|segment| pieces(&segment)).collect();
        Ok(Some(Layout { digest, len: file.len, starts }))
    }

    fn learn(&self, id: FileId) -> Result<(), source::Error> {
        if self.known.borrow().contains_key(&id) {
            return Ok(());
        }
        let entry = self.source.entry(id);
        let mut hash = blake3::Hasher::new();
        let mut add = |bytes: &[u8]| {
            hash.update(&(bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        self.source.local_roots().iter().for_each(|root| add(root.as_os_str().as_encoded_bytes()));
        let (repo, commit) = self.source.repo().unwrap_or_default();
        [repo, commit, &entry.path].iter().for_each(|text| add(text.as_bytes()));
        let version = &entry.version;
        [version.len, version.inode].iter().for_each(|number| add(&number.to_le_bytes()));
        add(&version.mtime_ns.to_le_bytes());
        for at in samples(version.len) {
            let len = SAMPLE.min(version.len - at);
            let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
            self.source.read_exact_at(id, at, &mut bytes)?;
            add(&bytes);
        }
        self.known.borrow_mut().insert(id, hash.finalize().into());
        Ok(())
    }
}

/// Where the samples of a file of this length start.
fn samples(len: u64) -> impl Iterator<Item = u64> {
    let last = len.saturating_sub(SAMPLE);
    let mut at: Vec<u64> = (0..SAMPLES).map(|i| last / (SAMPLES - 1) * i).chain([last]).collect();
    at.dedup();
    at.into_iter().filter(move |at| *at < len)
}

/// The source files that a file of the view is made of.
fn sources(plan: &Plan, file: &File) -> Vec<FileId> {
    let mut all = Vec::new();
    for extent in &file.extents {
        match &extent.content {
            Content::Bytes(_) => {}
            Content::Source { file, .. } => all.push(*file),
            Content::Part { weight, .. } => {
                all.extend(plan.sources_of(*weight).flat_map(|of| of.origin.files()));
            }
        }
    }
    all.sort_unstable();
    all.dedup();
    all
}

/// Where the pieces of a segment start: a tile's share is one, other runs are cut.
fn pieces(segment: &Segment<'_>) -> impl Iterator<Item = u64> + use<> {
    let len = segment.len as u64;
    let step = if matches!(segment.from, From::Tile { .. }) { len } else { RUN };
    let start = segment.offset;
    (0..len.div_ceil(step)).map(move |i| start + i * step)
}
