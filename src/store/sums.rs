//! The record of an entry: which pieces it has, their checksums, and its seal.
//!
//! A header that names the entry, a seal, and one word a piece, 0 for absent. Every word is written
//! alone and believed by nobody before the bytes agree with it, so that it needs no lock and no
//! journal: a torn or foreign record is one that does not fit.

use std::{
    fs::{File, Metadata},
    io,
    os::unix::fs::{FileExt, MetadataExt},
};

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::Layout;

/// First word of the header.
const MAGIC: &[u8; 8] = b"quantfs1";

/// Header: magic, digest, length, number of pieces, checksum.
const HEADER: usize = 64;

/// Seal: six words of a [`Mark`], the checksum of all pieces' words, checksum.
const SEAL: usize = 64;

/// Where the words of the pieces start.
const WORDS: u64 = (HEADER + SEAL) as u64;

/// Spreads the numbers of pieces over the seeds.
const ODD: u64 = 0x9E37_79B9_7F4A_7C15;

/// What tells whether anybody has touched a file since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark([u64; 6]);

impl Mark {
    pub(super) fn of(found: &Metadata) -> Self {
        let times = [found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec()].map(i64::cast_unsigned);
        Self([found.ino(), found.len(), times[0], times[1], times[2], times[3]])
    }

    /// Length of the file.
    pub(super) fn len(&self) -> u64 {
        self.0[1]
    }
}

#[derive(Debug)]
pub(super) struct Sums {
    file: File,
    header: [u8; HEADER],
    seed: u64,
    pieces: usize,
}

impl Sums {
    pub(super) fn new(file: File, layout: &Layout) -> Self {
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(MAGIC);
        header[8..40].copy_from_slice(&layout.digest);
        header[40..48].copy_from_slice(&layout.len.to_le_bytes());
        header[48..56].copy_from_slice(&(layout.pieces() as u64).to_le_bytes());
        let sum = xxh3_64(&header[..56]);
        header[56..].copy_from_slice(&sum.to_le_bytes());
        let seed = word(&layout.digest[..8]);
        Self { file, header, seed, pieces: layout.pieces() }
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Whether this is the record of its entry. What is not is [`reset`](Self::reset).
    pub(super) fn is_ours(&self) -> io::Result<bool> {
        let mut found = [0; HEADER];
        let whole = self.file.metadata()?.len() == WORDS + self.pieces as u64 * 8;
        Ok(whole && self.file.read_exact_at(&mut found, 0).is_ok() && found == self.header)
    }

    /// Forgets everything.
    pub(super) fn reset(&self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.set_len(WORDS + self.pieces as u64 * 8)?;
        self.file.write_all_at(&self.header, 0)
    }

    /// The checksum that a piece of these bytes has. It depends on the entry and the piece, so that
    /// whole records in the wrong place do not fit either.
    pub(super) fn sum(&self, piece: usize, bytes: &[u8]) -> u64 {
        xxh3_64_with_seed(bytes, self.seed ^ (piece as u64).wrapping_mul(ODD)).max(1)
    }

    /// The word of a piece, 0 for absent.
    pub(super) fn get(&self, piece: usize) -> io::Result<u64> {
        let mut found = [0; 8];
        self.file.read_exact_at(&mut found, WORDS + piece as u64 * 8)?;
        Ok(u64::from_le_bytes(found))
    }

    pub(super) fn set(&self, piece: usize, sum: u64) -> io::Result<()> {
        self.file.write_all_at(&sum.to_le_bytes(), WORDS + piece as u64 * 8)
    }

    /// The words of all pieces, as bytes.
    fn words(&self) -> io::Result<Vec<u8>> {
        let mut all = vec![0; self.pieces * 8];
        self.file.read_exact_at(&mut all, WORDS)?;
        Ok(all)
    }

    /// The pieces that are absent.
    pub(super) fn missing(&self) -> io::Result<Vec<usize>> {
        let words = self.words()?;
        Ok((0..).zip(words.chunks_exact(8)).filter(|(_, sum)| word(sum) == 0).map(|(piece, _)| piece).collect())
    }

    /// Whether the record is sealed for a file of this mark.
    pub(super) fn seals(&self, mark: &Mark) -> io::Result<bool> {
        let mut found = [0; SEAL];
        self.file.read_exact_at(&mut found, HEADER as u64)?;
        Ok(self.is_ours()? && self.missing()?.is_empty() && found == self.seal_of(mark)?)
    }

    /// Seals it, and sees to it that it lasts.
    pub(super) fn seal(&self, mark: &Mark) -> io::Result<()> {
        self.file.write_all_at(&self.seal_of(mark)?, HEADER as u64)?;
        self.file.sync_all()
    }

    fn seal_of(&self, mark: &Mark) -> io::Result<[u8; SEAL]> {
        let words = mark.0.into_iter().chain([xxh3_64_with_seed(&self.words()?, self.seed)]);
        let mut seal = [0; SEAL];
        for (place, word) in seal.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        let sum = xxh3_64_with_seed(&seal[..SEAL - 8], self.seed);
        seal[SEAL - 8..].copy_from_slice(&sum.to_le_bytes());
        Ok(seal)
    }
}

fn word(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}
