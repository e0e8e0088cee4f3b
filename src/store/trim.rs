//! How much the store holds, and what goes when it is too much: the entries used longest ago.
//!
//! Entries in use, by this process or another, are locked and stay. Where only such are left nothing
//! more is stored for a while: who reads a view larger than the limit keeps its first files instead of
//! forgetting each before it is read again. Names that are not the store's are nobody's business here.

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::fd::OwnedFd,
    time::{Duration, Instant, SystemTime},
};

use rustix::fs::{AtFlags, Dir, Mode, OFlags};

/// Bytes of a block in `st_blocks`, whatever the file system's own are.
const BLOCK: u64 = 512;

/// What a file system hands out at least; a piece counts as whole ones until the next look.
const UNIT: u64 = 4096;

/// The directory is looked at again after this many bytes of ours, for others write to it, too.
const LOOK_AGAIN: u64 = 256 << 20;

/// Where everything is in use, how long until it may not be.
const FULL: Duration = Duration::from_secs(30);

/// What a store holds.
#[derive(Debug)]
pub(super) struct Usage {
    /// At the last look.
    found: u64,
    /// Written by us since.
    added: u64,
    full_until: Option<Instant>,
}

impl Usage {
    pub(super) fn bytes(&self) -> u64 {
        self.found + self.added
    }

    /// Whether `len` bytes more may be written; they count from now on.
    pub(super) fn admit(&mut self, dir: &OwnedFd, limit: u64, len: u64) -> io::Result<bool> {
        let len = len.next_multiple_of(UNIT);
        let over = self.bytes().saturating_add(len) > limit;
        if over && self.full_until.is_some_and(|until| Instant::now() < until) {
            return Ok(false);
        }
        if over || self.added > LOOK_AGAIN.min(limit / 4) {
            // Some room beyond what is asked for: not every piece should need a look.
            let wanted = limit.saturating_sub(len).saturating_sub(limit / 16);
            *self = Self { found: trim(dir, limit.saturating_sub(len), wanted)?, added: 0, full_until: None };
            if self.bytes().saturating_add(len) > limit {
                self.full_until = Some(Instant::now() + FULL);
                return Ok(false);
            }
        }
        self.added += len;
        Ok(true)
    }
}

/// An entry, as a look at the directory finds it.
#[derive(Debug, Default)]
struct Found {
    bytes: u64,
    used: Option<SystemTime>,
}

/// Looks at a directory.
pub(super) fn scan(dir: &OwnedFd) -> io::Result<Usage> {
    let found = entries(dir)?.values().map(|entry| entry.bytes).sum();
    Ok(Usage { found, added: 0, full_until: None })
}

fn entries(dir: &OwnedFd) -> io::Result<HashMap<String, Found>> {
    let mut entries: HashMap<String, Found> = HashMap::new();
    for file in Dir::read_from(dir)? {
        let name = file?.file_name().to_string_lossy().into_owned();
        let Some((stem, kind)) = split(&name) else { continue };
        // Another process may just have removed it.
        let Ok(stat) = rustix::fs::statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        let entry = entries.entry(stem.to_owned()).or_default();
        entry.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * BLOCK;
        if kind == "sums" {
            let seconds = u64::try_from(stat.st_mtime).unwrap_or(0);
            let nanoseconds = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
            entry.used = Some(SystemTime::UNIX_EPOCH + Duration::new(seconds, nanoseconds));
        }
    }
    Ok(entries)
}

/// The stem and the kind of one of our names.
fn split(name: &str) -> Option<(&str, &str)> {
    let (stem, kind) = name.split_once('.')?;
    let ours = stem.len() == 32 && stem.bytes().all(|byte| byte.is_ascii_hexdigit());
    (ours && matches!(kind, "data" | "sums")).then_some((stem, kind))
}

/// Removes entries that nobody uses, oldest first, until `wanted` bytes are left, if there are more
/// than `most`. How many are left.
fn trim(dir: &OwnedFd, most: u64, wanted: u64) -> io::Result<u64> {
    let entries = entries(dir)?;
    let mut left: u64 = entries.values().map(|entry| entry.bytes).sum();
    if left <= most {
        return Ok(left);
    }
    let mut oldest: Vec<_> = entries.into_iter().collect();
    oldest.sort_by_key(|(_, entry)| entry.used);
    for (stem, entry) in oldest {
        if left <= wanted {
            break;
        }
        if remove(dir, &stem)? {
            tracing::info!("the cache directory is full: {stem} was not used for longest and goes");
            left = left.saturating_sub(entry.bytes);
        }
    }
    Ok(left)
}

/// Removes an entry, unless it is in use.
fn remove(dir: &OwnedFd, stem: &str) -> io::Result<bool> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let unlink = |kind| match rustix::fs::unlinkat(dir, format!("{stem}.{kind}"), AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(e) => Err(io::Error::from(e)),
    };
    match rustix::fs::openat(dir, format!("{stem}.sums"), flags, Mode::empty()) {
        Ok(sums) => {
            let sums = File::from(sums);
            if sums.try_lock().is_err() {
                return Ok(false);
            }
            unlink("data")?;
            unlink("sums")?;
        }
        // Who uses an entry makes its record first: without one it is what somebody left behind.
        Err(rustix::io::Errno::NOENT) => unlink("data")?,
        Err(_) => return Ok(false),
    }
    Ok(true)
}
