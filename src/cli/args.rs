//! What was typed about caches and mounts.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::PathBuf,
};

use clap::{
    Args, ValueEnum,
    builder::{OsStringValueParser, TypedValueParser},
};

use crate::{
    cli::{memory, size},
    fuse::{Access, Owner},
    store,
    view::{self, SourceCache},
};

/// The kernel's window where `--readahead` does not say: from here on a larger one gains little.
pub(super) const WINDOW: u64 = 4 << 20;

/// What a mount may use of the machine.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Cache options")]
pub struct CacheArgs {
    /// Memory for finished tiles [default: a quarter of what is free, between 64MiB and 4GiB]
    #[arg(long, value_name = "SIZE", value_parser = cache_size)]
    pub cache_size: Option<u64>,
    /// Threads that encode [default: one for each core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
    /// How far to compute ahead of a reader, and the kernel's window (raising that one needs root); 0
    /// computes nothing ahead and leaves the window as it is [default: 32MiB, and a window of 4MiB]
    #[arg(long, value_name = "SIZE", value_parser = readahead)]
    pub readahead: Option<u64>,
    /// Whether the system may keep source bytes in memory that were turned into tiles
    #[arg(long, value_name = "keep|drop", value_enum, default_value_t = Keeping::Keep, hide_default_value = true,
        hide_possible_values = true)]
    pub source_cache: Keeping,
    /// Keep finished tiles in this directory across mounts, of this and other views, up to SIZE in all: what
    /// lies there is read instead of encoded, and files that are whole are read by the kernel alone at their next
    /// mount, where it may (needs root) [default SIZE: half of what the disk has free]
    #[arg(long, value_name = "DIR[:SIZE]", value_parser = OsStringValueParser::new().try_map(cache_dir))]
    pub cache_dir: Option<store::Options>,
    /// Let the kernel read untouched and finished files by itself, where it may (needs root)
    #[arg(long, value_name = "auto|off", value_enum, default_value_t = Passthrough::Auto, hide_default_value = true,
        hide_possible_values = true)]
    pub passthrough: Passthrough,
}

/// `--source-cache`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Keeping {
    /// Leave it to the system.
    Keep,
    /// Give them up at once.
    Drop,
}

/// `--passthrough`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Passthrough {
    /// Where it is possible.
    Auto,
    /// Never.
    Off,
}

impl CacheArgs {
    /// What the engine of a mount may use.
    #[must_use]
    pub fn engine(&self) -> view::Options {
        let bytes = self.cache_size.unwrap_or_else(memory::default_cache_size);
        let mut options =
            view::Options { cache_bytes: usize::try_from(bytes).unwrap_or(usize::MAX), ..Default::default() };
        if let Some(threads) = self.threads {
            options.threads = usize::from(threads);
        }
        if let Some(bytes) = self.readahead {
            options.readahead_bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        }
        if self.source_cache == Keeping::Drop {
            options.source_cache = SourceCache::Drop;
        }
        options
    }

    /// The kernel's window in bytes; 0 leaves it as it is.
    #[must_use]
    pub fn window(&self) -> u64 {
        self.readahead.unwrap_or(WINDOW)
    }
}

/// How a mount is made and who sees it.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Mount options")]
pub struct MountArgs {
    /// Stay in the foreground and log to standard error
    #[arg(short, long)]
    pub foreground: bool,
    /// Let all users in (ordinary users need user_allow_other in /etc/fuse.conf)
    #[arg(long, conflicts_with = "allow_root")]
    pub allow_other: bool,
    /// Let root in
    #[arg(long)]
    pub allow_root: bool,
    /// Owner of the files [default: who mounts]
    #[arg(long)]
    pub uid: Option<u32>,
    /// Group of the files [default: who mounts]
    #[arg(long)]
    pub gid: Option<u32>,
    /// Permission bits to take away, in octal
    #[arg(long, value_parser = octal, default_value = "0", hide_default_value = true)]
    pub umask: u16,
    /// All of these flags by name, the way fstab writes them: `spec=4bit,allow_other`
    // Turned into flags before clap sees them; what still comes here is refused.
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub options: Vec<String>,
    /// Print what was mounted as JSON
    #[arg(long)]
    pub json: bool,
    /// Tell standard output when the mount answers; how the background process is started
    #[arg(long, hide = true)]
    pub report: bool,
}

impl MountArgs {
    /// Who may use the mount.
    #[must_use]
    pub fn access(&self) -> Access {
        match (self.allow_other, self.allow_root) {
            (true, _) => Access::Everyone,
            (false, true) => Access::OwnerAndRoot,
            (false, false) => Access::Owner,
        }
    }

    /// Owner and permissions of what is shown.
    #[must_use]
    pub fn owner(&self) -> Owner {
        Owner {
            uid: self.uid.unwrap_or_else(|| rustix::process::getuid().as_raw()),
            gid: self.gid.unwrap_or_else(|| rustix::process::getgid().as_raw()),
            umask: self.umask,
        }
    }
}

/// The largest tiles must fit several times, or every read would encode anew.
const LEAST_CACHE: u64 = 4 << 20;

fn cache_size(text: &str) -> Result<u64, String> {
    match size::parse(text)? {
        bytes if bytes < LEAST_CACHE => Err("at least 4MiB, room for a few tiles".to_owned()),
        bytes => Ok(bytes),
    }
}

/// Less would hold no tensor of any use.
const LEAST_STORE: u64 = 1 << 20;

/// `DIR` or `DIR:SIZE`. What stands behind the last colon is a size, unless a slash does: a directory
/// whose own name has a colon is written with a slash at its end.
fn cache_dir(text: OsString) -> Result<store::Options, String> {
    let bytes = text.as_bytes();
    let cut = bytes.iter().rposition(|byte| *byte == b':').filter(|at| !bytes[*at..].contains(&b'/'));
    let Some(at) = cut else { return Ok(store::Options { dir: named(text)?, limit: None }) };
    let tail = OsStr::from_bytes(&bytes[at + 1..]).to_string_lossy();
    let limit = size::parse(&tail).map_err(|why| format!("`{tail}` is no size: {why}"))?;
    if limit < LEAST_STORE {
        return Err("SIZE is at least 1MiB".to_owned());
    }
    Ok(store::Options { dir: named(OsString::from_vec(bytes[..at].to_vec()))?, limit: Some(limit) })
}

fn named(dir: OsString) -> Result<PathBuf, String> {
    if dir.is_empty() { Err("name a directory".to_owned()) } else { Ok(PathBuf::from(dir)) }
}

fn readahead(text: &str) -> Result<u64, String> {
    if text == "0" { Ok(0) } else { size::parse(text) }
}

fn octal(text: &str) -> Result<u16, String> {
    match u16::from_str_radix(text, 8) {
        Ok(bits @ 0..=0o777) => Ok(bits),
        _ => Err("a umask is three octal digits, 077 say".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Typed {
        #[command(flatten)]
        cache: CacheArgs,
    }

    #[test]
    fn a_cache_directory_has_a_size_behind_its_last_colon() {
        let typed = |text: &str| Typed::try_parse_from(["x", "--cache-dir", text]).map(|typed| typed.cache.cache_dir);
        let of = |dir: &str, limit| Some(store::Options { dir: dir.into(), limit });
        assert_eq!(typed("/a/b").unwrap(), of("/a/b", None));
        assert_eq!(typed("/a/b:10GB").unwrap(), of("/a/b", Some(10_000_000_000)));
        assert_eq!(typed("/a:b/c").unwrap(), of("/a:b/c", None));
        assert_eq!(typed("a:b/").unwrap(), of("a:b/", None));
        assert_eq!(typed("/a:b/:2MiB").unwrap(), of("/a:b/", Some(2 << 20)));
        for bad in ["", ":1GB", "/a:5XB", "/a:", "/a:0", "/a:1"] {
            assert!(typed(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn read_ahead_is_ours_and_the_kernels() {
        let typed = |args: &[&str]| Typed::try_parse_from([&["x"], args].concat()).map(|typed| typed.cache);
        let unsaid = typed(&[]).unwrap();
        assert_eq!((unsaid.engine().readahead_bytes, unsaid.window()), (32 << 20, 4 << 20));
        let less = typed(&["--readahead", "1MiB"]).unwrap();
        assert_eq!((less.engine().readahead_bytes, less.window()), (1 << 20, 1 << 20));
        let none = typed(&["--readahead", "0"]).unwrap();
        assert_eq!((none.engine().readahead_bytes, none.window()), (0, 0));
        assert!(typed(&["--readahead", "x"]).is_err());
    }
}
