//! Files mapped read-only: the runtime's one room of unsafe code.
//!
//! Under a mapping a failed read has no return value. Where the file system cannot deliver a page (a
//! disk error, a mount whose daemon died, a file that somebody shortens), the process that touches it
//! gets SIGBUS, which ends it. [`Weights::read`](super::Weights::read) loads into memory instead and
//! gives an error.
#![expect(unsafe_code, reason = "a mapping is only as immutable as its file")]

use std::{fs::File, io, ops::Range};

use memmap2::Mmap;

/// Maps a whole file, shared with every process that maps it. Reads none of it.
pub(crate) fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: the mapping is read-only, and its bytes are only ever copied out or read as integers and
    // floats, for which every bit pattern is a value. What remains is the contract of every mapped
    // model: nobody writes to the file while it is mapped. Mounts and finished exports keep it.
    unsafe { Mmap::map(file) }
}

/// Asks for the pages of a range, and for them alone. Where a page is touched that nobody asked for, the kernel
/// reads megabytes around it: weights, which a mount computes.
pub(super) fn fetch(map: &Mmap, range: Range<usize>) {
    // Without this advice the pages come all the same, with their neighbours.
    let _refused = map.advise_range(memmap2::Advice::WillNeed, range.start, range.len());
}
