//! The mount table, as `/proc/self/mountinfo` states it.
//!
//! The table is read instead of asking the mounts themselves: it answers at once even where a mount's
//! daemon is dead or stuck. Knows nothing of sessions.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

/// What the kernel calls our mounts: `fuse` and the subtype that we mount with.
pub const FSTYPE: &str = "fuse.quantfs";

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Major and minor number of the device.
    pub device: (u32, u32),
    /// Where it is mounted.
    pub path: PathBuf,
    /// Type with subtype: `ext4`, `fuse.quantfs`.
    pub fstype: String,
    /// What is mounted: for ours `quantfs:` and the source.
    pub source: String,
    /// The owner, for FUSE mounts.
    pub user: Option<u32>,
}

impl Entry {
    /// Whether it is one of ours, dead or alive.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.fstype == FSTYPE
    }
}

/// The mounts of this process's namespace, in the order in which they were made.
///
/// # Errors
/// Where `/proc` cannot be read.
pub fn read() -> io::Result<Vec<Entry>> {
    Ok(parse(&fs::read("/proc/self/mountinfo")?))
}

/// The topmost mount at exactly this (resolved) path.
///
/// # Errors
/// Where `/proc` cannot be read.
pub fn at(path: &Path) -> io::Result<Option<Entry>> {
    Ok(read()?.into_iter().rfind(|e| e.path == path))
}

fn parse(table: &[u8]) -> Vec<Entry> {
    table.split(|&b| b == b'\n').filter_map(parse_line).collect()
}

/// `36 35 98:0 /root /mnt rw,noatime shared:1 - ext3 /dev/root rw,user_id=0`: any number of tags may
/// stand before the lone dash.
fn parse_line(line: &[u8]) -> Option<Entry> {
    let mut fields = line.split(|&b| b == b' ');
    let device = std::str::from_utf8(fields.nth(2)?).ok()?.split_once(':')?;
    let path = PathBuf::from(OsString::from_vec(unescape(fields.nth(1)?)));
    fields.by_ref().find(|f| f == b"-")?;
    let fstype = text(fields.next()?);
    let source = text(fields.next()?);
    let user = text(fields.next().unwrap_or_default())
        .split(',')
        .find_map(|option| option.strip_prefix("user_id=")?.parse().ok());
    Some(Entry { device: (device.0.parse().ok()?, device.1.parse().ok()?), path, fstype, source, user })
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(&unescape(field)).into_owned()
}

/// Blanks, tabs, newlines and backslashes are written as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| first == b'\\').and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 8).ok()
        });
        (rest, _) = match octal {
            Some(byte) => (&after[3..], out.push(byte)),
            None => (after, out.push(first)),
        };
    }
    out
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn lines_with_any_number_of_tags() {
        let table = b"22 1 254:0 / / rw,relatime shared:1 master:2 - ext4 /dev/root rw\n\
            90 22 0:45 / /mnt/a\\040b\\134c ro,nosuid - fuse.quantfs quantfs:/m\\040x ro,user_id=1000,group_id=5\n\
            garbage\n";
        let entries = parse(table);
        assert_eq!(entries.len(), 2);
        assert_eq!((entries[0].device, entries[0].fstype.as_str(), entries[0].user), ((254, 0), "ext4", None));
        assert_eq!(entries[1].path, Path::new("/mnt/a b\\c"));
        assert_eq!(entries[1].source, "quantfs:/m x");
        assert_eq!(entries[1].user, Some(1000));
        assert!(entries[1].is_ours() && !entries[0].is_ours());
    }

    #[test]
    fn escapes_that_are_cut_short_stay() {
        assert_eq!(unescape(b"a\\04"), b"a\\04");
        assert_eq!(unescape(b"\\999x"), b"\\999x");
        assert_eq!(unescape(b"\\011"), b"\t");
    }

    #[test]
    fn the_root_is_mounted() {
        assert!(at(Path::new("/")).unwrap().is_some());
        assert!(at(Path::new("/proc/self")).unwrap().is_none());
    }
}
