//! Read-ahead: sequential readers are seen by their offsets, and the next tiles made before they ask.
//!
//! A file has several streams at once, told apart by where they read and by nothing else: loaders
//! read from several threads and share descriptors between processes. What is made ahead waits
//! behind every demand, is forgotten where its reader has passed it, and gets less when the cache
//! throws out codes that nobody has read yet.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use crate::cache::lock;

use super::{
    View,
    pool::Lane,
    segment::{From, Segments},
};

/// What is known of how a read was meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// Nothing: the offsets tell.
    #[default]
    Detect,
    /// The next read follows this one: no need to see a second one first.
    Sequential,
    /// Nothing follows.
    Random,
    /// As [`Detect`](Self::Detect), past the system's cache: it will not have what was read.
    Direct,
}

/// A read belongs to a stream if it starts at most this far before or behind where the stream is:
/// the kernel's own read-ahead arrives out of order by a few requests of 1 MiB at most.
const SLACK: u64 = 4 << 20;
/// Streams of one file; a loader has one a thread.
const STREAMS: usize = 16;
/// Files with streams; beyond this the least recently read is forgotten.
const FILES: usize = 256;
/// Where a window starts; it doubles with every read that follows.
const FIRST_WINDOW: u64 = 1 << 20;
/// So many times the way that a stream has come is made ahead of it at most: many readers look at the start of a file
/// only.
const TRUST: u64 = 4;
/// Work of one call: a reader pays for a short look only, the next one continues.
const STEP: u64 = 8 << 20;

#[derive(Debug, Default)]
pub(super) struct Ahead(Mutex<Files>);

#[derive(Debug, Default)]
struct Files {
    clock: u64,
    streams: HashMap<usize, Vec<Stream>>,
}

#[derive(Debug)]
struct Stream {
    progress: Arc<Progress>,
    window: u64,
    /// Where it began.
    start: u64,
    /// The next read was announced.
    announced: bool,
    /// Codes thrown out unread when this stream last looked.
    unread: u64,
    last: u64,
}

/// How far a stream is, in bytes of its file.
#[derive(Debug)]
struct Progress {
    read: AtomicU64,
    made: AtomicU64,
}

/// What is to be made now.
struct Order {
    progress: Arc<Progress>,
    /// What is not yet made of it.
    range: Range<u64>,
}

impl Ahead {
    /// Takes note of a read; the range to make ahead of it, empty for none.
    fn note(&self, file: usize, read: &Range<u64>, access: Access, limit: u64, unread: u64) -> Option<Order> {
        let mut files = lock(&self.0);
        files.clock += 1;
        let clock = files.clock;
        files.forget(file);
        let streams = files.streams.entry(file).or_default();
        let near = |s: &&mut Stream| s.progress.read.load(Relaxed).abs_diff(read.start) <= SLACK;
        let Some(stream) =
            streams.iter_mut().filter(near).min_by_key(|s| s.progress.read.load(Relaxed).abs_diff(read.start))
        else {
            let stream = Stream::new(read, access, unread, clock);
            let order = (access == Access::Sequential).then(|| stream.order(limit));
            admit(streams, stream);
            return order;
        };
        let forward = stream.progress.read.load(Relaxed) < read.end;
        stream.follow(read, limit, unread, clock);
        forward.then(|| stream.order(limit))
    }
}

impl Files {
    /// Makes room for the streams of `file`.
    fn forget(&mut self, file: usize) {
        if self.streams.len() < FILES || self.streams.contains_key(&file) {
            return;
        }
        let last = |streams: &[Stream]| streams.iter().map(|s| s.last).max();
        let oldest = self.streams.iter().min_by_key(|(_, streams)| last(streams)).map(|(file, _)| *file);
        oldest.map(|file| self.streams.remove(&file));
    }
}

/// Adds a stream, in the place of the one that rested longest where there are too many.
fn admit(streams: &mut Vec<Stream>, stream: Stream) {
    if streams.len() >= STREAMS
        && let Some(oldest) = streams.iter_mut().min_by_key(|s| s.last)
    {
        *oldest = stream;
    } else {
        streams.push(stream);
    }
}

impl Stream {
    fn new(read: &Range<u64>, access: Access, unread: u64, clock: u64) -> Self {
        let progress = Arc::new(Progress { read: AtomicU64::new(read.end), made: AtomicU64::new(read.end) });
        let announced = access == Access::Sequential;
        Self { progress, window: FIRST_WINDOW, start: read.start, announced, unread, last: clock }
    }

    fn follow(&mut self, read: &Range<u64>, limit: u64, unread: u64, clock: u64) {
        self.progress.read.fetch_max(read.end, Relaxed);
        self.progress.made.fetch_max(read.end, Relaxed);
        self.last = clock;
        self.window = if unread > self.unread { self.window / 2 } else { self.window * 2 };
        self.window = self.window.max(FIRST_WINDOW).min(limit);
        self.unread = unread;
    }

    fn order(&self, limit: u64) -> Order {
        let made = self.progress.made.load(Relaxed);
        let read = self.progress.read.load(Relaxed);
        let trusted = if self.announced { u64::MAX } else { TRUST.saturating_mul(read.saturating_sub(self.start)) };
        let end = read.saturating_add(self.window.min(limit).min(trusted));
        Order { progress: Arc::clone(&self.progress), range: made..end.min(made + STEP) }
    }
}

impl View {
    /// After a read: makes what follows it, where it is one of a sequence.
    pub(super) fn look_ahead(self: &Arc<Self>, file: usize, offset: u64, len: usize, access: Access) {
        // A quarter of the cache: what is made ahead must still be there when its reader comes.
        let limit = self.engine.options.readahead_bytes.min(self.engine.cache.limit() / 4) as u64;
        if access == Access::Random || limit == 0 {
            return;
        }
        let read = offset..offset.saturating_add(len as u64);
        // Who reads a header has not begun with the weights behind it.
        if Segments::new(&self.plan, &self.plan.files[file], read.clone()).all(|s| matches!(s.from, From::Bytes { .. }))
        {
            return;
        }
        if let Some(order) = self.ahead.note(file, &read, access, limit, self.engine.cache.unread_evictions()) {
            let made = self.make_range(file, &order);
            order.progress.made.fetch_max(made, Relaxed);
        }
    }

    /// Queues the tiles of a range; how far it came.
    fn make_range(self: &Arc<Self>, file: usize, order: &Order) -> u64 {
        let mut made = order.range.start;
        for segment in Segments::new(&self.plan, &self.plan.files[file], order.range.clone()) {
            let end = segment.offset + segment.len as u64;
            match segment.from {
                From::Bytes { .. } => {}
                From::Source { file, offset } => {
                    let view = Arc::clone(self);
                    // A hint may open a file, which may hang: a worker gives it.
                    let hint = move |_permit| view.source.hint(file, offset..offset + segment.len as u64);
                    if !self.engine.pool.push(Lane::Ahead, 0, Box::new(hint)) {
                        return made;
                    }
                }
                From::Tile { weight, part, tile, .. } => {
                    let progress = Arc::clone(&order.progress);
                    let stale = move || progress.read.load(Relaxed) >= end;
                    if !self.engine.cache.contains(&self.key(weight, tile).part(part))
                        && !self.make_ahead((weight, tile, part), self.place(file, segment.offset), stale)
                    {
                        return made;
                    }
                }
            }
            made = end;
        }
        made
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 64 << 20;

    /// The window that a read of 1000 bytes opens, 0 for none.
    fn note(ahead: &Ahead, at: u64, unread: u64) -> u64 {
        let Some(order) = ahead.note(0, &(at..at + 1000), Access::Detect, LIMIT, unread) else { return 0 };
        let files = lock(&ahead.0);
        let stream = files.streams[&0].iter().find(|s| Arc::ptr_eq(&s.progress, &order.progress));
        stream.map_or(0, |s| s.window)
    }

    #[test]
    fn windows_grow_with_a_sequence_and_shrink_under_pressure() {
        let ahead = Ahead::default();
        assert_eq!(note(&ahead, 0, 0), 0, "one read is no sequence");
        let grown: Vec<u64> = (1..10).map(|i| note(&ahead, i * 1000, 0) >> 20).collect();
        assert_eq!(grown, [2, 4, 8, 16, 32, 64, 64, 64, 64]);
        let shrunk: Vec<u64> = (1..8).map(|i| note(&ahead, (9 + i) * 1000, i) >> 20).collect();
        assert_eq!(shrunk, [32, 16, 8, 4, 2, 1, 1]);
        assert_eq!(note(&ahead, 5000, 8), 0, "a read behind the stream");
    }

    #[test]
    fn who_takes_little_gets_little_ahead() {
        let ahead = Ahead::default();
        let order =
            |range: Range<u64>| ahead.note(0, &range, Access::Detect, LIMIT, 0).map(|o| o.range.end - range.end);
        let kib = |n: u64| n << 10;
        assert_eq!(order(0..kib(16)), None);
        assert_eq!(order(kib(16)..kib(48)), Some(kib(4 * 48)));
        assert_eq!(order(kib(48)..kib(560)), Some(kib(4 * 560)));
        assert_eq!(ahead.note(1, &(0..10), Access::Sequential, LIMIT, 0).map(|o| o.range), Some(10..10 + FIRST_WINDOW));
    }

    #[test]
    fn streams_of_one_file_are_told_apart_and_few() {
        let ahead = Ahead::default();
        let far = |stream: u64, i: u64| note(&ahead, stream * (1 << 30) + i * 1000, 0);
        assert!((0..10).all(|stream| far(stream, 0) == 0));
        assert!((0..10).all(|stream| far(stream, 1) == 2 << 20), "each follows itself");
        (10..1000).for_each(|stream| assert_eq!(far(stream, 0), 0));
        assert_eq!(lock(&ahead.0).streams[&0].len(), STREAMS);
        (0..1000).for_each(|file| drop(ahead.note(file, &(0..1), Access::Sequential, LIMIT, 0)));
        assert_eq!(lock(&ahead.0).streams.len(), FILES);
    }
}
