//! What was typed about caches and mounts.

use clap::{Args, ValueEnum};

use crate::{
    cli::{memory, size},
    fuse::{Access, Owner},
    view::{self, SourceCache},
};

/// Default of `--readahead`: from here on a larger window gains little.
const READAHEAD: u64 = 4 << 20;

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
    /// How far the kernel reads ahead (raising it needs root) [default: 4MiB]
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub readahead: Option<u64>,
    /// Whether the system may keep source bytes in memory that were turned into tiles
    #[arg(long, value_name = "keep|drop", value_enum, default_value_t = Keeping::Keep, hide_default_value = true,
        hide_possible_values = true)]
    pub source_cache: Keeping,
    /// Let the kernel read untouched files by itself, where it may (needs root)
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
        if self.source_cache == Keeping::Drop {
            options.source_cache = SourceCache::Drop;
        }
        options
    }

    /// The kernel's window in bytes.
    #[must_use]
    pub fn window(&self) -> u64 {
        self.readahead.unwrap_or(READAHEAD)
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
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub options: Vec<String>,
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

fn octal(text: &str) -> Result<u16, String> {
    match u16::from_str_radix(text, 8) {
        Ok(bits @ 0..=0o777) => Ok(bits),
        _ => Err("a umask is three octal digits, 077 say".to_owned()),
    }
}
