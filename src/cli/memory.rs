//! How much memory a mount takes when nobody says: a share of what is free.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A cache smaller than this encodes everything twice.
const LEAST: u64 = 64 << 20;

/// The page cache holds the rest better: it is shared with the readers.
const MOST: u64 = 4 << 30;

/// Of what is free, one part in so many.
const SHARE: u64 = 4;

/// Default of `--cache-size`: a quarter of what the machine or the cgroup has free, 4 GiB at most,
/// 64 MiB at least.
#[must_use]
pub fn default_cache_size() -> u64 {
    share(available())
}

fn share(free: Option<u64>) -> u64 {
    (free.unwrap_or(0) / SHARE).clamp(LEAST, MOST)
}

/// Bytes that can be had: the machine's, or less where a cgroup says so.
#[must_use]
pub fn available() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| meminfo(&text));
    let cgroups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = directories(&cgroups).into_iter().filter_map(|dir| room(&dir));
    limits.chain(machine).min()
}

fn meminfo(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The memory directories of our cgroup and all above it, of version 2 (`0::/path`) and version 1
/// (`4:memory:/path`).
fn directories(cgroups: &str) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for line in cgroups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let root = match controllers {
            "" => "/sys/fs/cgroup",
            _ if controllers.split(',').any(|c| c == "memory") => "/sys/fs/cgroup/memory",
            _ => continue,
        };
        let path = Path::new(path.trim_start_matches('/'));
        all.extend(path.ancestors().map(|part| Path::new(root).join(part)));
    }
    all
}

/// What a cgroup leaves free. `max` and the huge number that stands for it in version 1 are no limit.
fn room(dir: &Path) -> Option<u64> {
    let number = |names: [&str; 2]| {
        names.iter().find_map(|name| fs::read_to_string(dir.join(name)).ok()?.trim().parse::<u64>().ok())
    };
    let limit = number(["memory.max", "memory.limit_in_bytes"])?;
    let used = number(["memory.current", "memory.usage_in_bytes"])?;
    Some(limit.saturating_sub(used))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn a_quarter_within_bounds() {
        assert_eq!(share(None), LEAST);
        assert_eq!(share(Some(1 << 30)), 256 << 20);
        assert_eq!(share(Some(1 << 40)), MOST);
        assert!((LEAST..=MOST).contains(&default_cache_size()));
    }

    #[test]
    fn what_the_kernel_writes() {
        assert_eq!(meminfo("MemTotal: 9 kB\nMemAvailable:   12 kB\n"), Some(12 << 10));
        let dirs = directories("4:cpu,memory:/a/b\n3:pids:/x\n0::/c\n");
        let expected = ["memory/a/b", "memory/a", "memory", "c", ""].map(|d| Path::new("/sys/fs/cgroup").join(d));
        assert_eq!(dirs, expected);
    }

    #[test]
    fn a_cgroup_without_limit_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        assert_eq!(room(dir.path()), None);
        write("memory.max", "max\n");
        write("memory.current", "300\n");
        assert_eq!(room(dir.path()), None);
        write("memory.max", "1000\n");
        assert_eq!(room(dir.path()), Some(700));
    }
}
