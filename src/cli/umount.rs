//! `quantfs umount`: mounts taken down, dead ones too.

use std::{
    io::{self, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use clap::Args;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};
use serde_json::{Value, json};

use crate::{
    cli::{
        Failure,
        control::{self, Request},
    },
    fuse::{self, Force, Place, mountinfo},
};

/// How long a daemon that has no readers may take to end.
const PATIENCE: Duration = Duration::from_secs(5);

/// Between two looks at a daemon.
const STEP: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// Take mounts down; files that are open work until they are closed
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  quantfs umount /mnt/q4\n  quantfs umount --all")]
pub struct Umount {
    /// Where they are mounted
    #[arg(required_unless_present = "all")]
    pub mountpoints: Vec<PathBuf>,
    /// All quantfs mounts of this user; root's are everybody's
    #[arg(long, conflicts_with = "mountpoints")]
    pub all: bool,
    /// End their readers: whoever reads gets errors
    #[arg(long)]
    pub force: bool,
    /// Print JSON: a list with an object for each mount
    #[arg(long)]
    pub json: bool,
}

/// Runs the verb: every mount is tried, the first failure is told.
///
/// # Errors
/// A path that is no mount of ours, or a mount that cannot be taken down.
pub fn run(args: &Umount, out: &mut dyn Write) -> Result<(), Failure> {
    let entries: Vec<(PathBuf, Result<mountinfo::Entry, Failure>)> = if args.all {
        all()?.into_iter().map(|entry| (entry.path.clone(), Ok(entry))).collect()
    } else {
        args.mountpoints.iter().map(|path| (path.clone(), fuse::find(path).map_err(Failure::from))).collect()
    };
    let (mut failed, mut facts) = (None, Vec::new());
    for (path, entry) in entries {
        let path = entry.as_ref().map_or(path, |entry| entry.path.clone());
        let outcome = entry.and_then(|entry| take_down(&entry, args.force));
        if args.json {
            facts.push(fact(&path, &outcome));
        } else {
            tell(&path, &outcome, args.all, out)?;
        }
        failed = failed.or(outcome.err());
    }
    if args.json {
        writeln!(out, "{:#}", Value::from(facts))?;
    }
    failed.map_or(Ok(()), Err)
}

fn tell(path: &Path, outcome: &Result<Option<u64>, Failure>, all: bool, out: &mut dyn Write) -> io::Result<()> {
    let at = path.display();
    match outcome {
        Ok(Some(open)) => {
            writeln!(out, "{at}: unmounted; files still open: {open}; the daemon ends when they are closed")
        }
        // Who named a mount knows which one it was.
        Ok(None) if all => writeln!(out, "{at}: unmounted"),
        _ => Ok(()),
    }
}

fn fact(path: &Path, outcome: &Result<Option<u64>, Failure>) -> Value {
    let mut fact = json!({ "mountpoint": path.display().to_string(), "unmounted": outcome.is_ok() });
    match outcome {
        Ok(open) => fact["open_files"] = open.unwrap_or(0).into(),
        Err(failure) => fact["error"] = failure.line().into(),
    }
    fact
}

/// The mounts of this user, the latest first: they may lie in each other.
fn all() -> Result<Vec<mountinfo::Entry>, Failure> {
    let me = rustix::process::getuid();
    let mut ours = mountinfo::read()?;
    ours.retain(|entry| entry.is_ours() && (me.is_root() || entry.user == Some(me.as_raw())));
    ours.reverse();
    Ok(ours)
}

/// Takes a mount down; where its daemon stays because of its readers, the number of files they have open.
fn take_down(entry: &mountinfo::Entry, force: bool) -> Result<Option<u64>, Failure> {
    let place = Place { path: entry.path.clone(), device: Some(entry.device) };
    let daemon = Daemon::of(entry);
    if force
        && let Some(daemon) = &daemon
        && control::ask(entry, Request::Unmount { force }).is_ok()
    {
        daemon.wait();
    }
    fuse::unmount(&place, if force { Force::Yes } else { Force::No })?;
    Ok(daemon.and_then(|daemon| daemon.wait()))
}

/// A daemon, to wait for. Held by descriptor, since its number may soon be another's.
struct Daemon<'a> {
    entry: &'a mountinfo::Entry,
    process: OwnedFd,
}

impl<'a> Daemon<'a> {
    fn of(entry: &'a mountinfo::Entry) -> Option<Self> {
        let status = control::ask(entry, Request::Status).ok()?;
        let pid = Pid::from_raw(i32::try_from(status["pid"].as_i64()?).ok()?)?;
        let process = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        Some(Self { entry, process })
    }

    /// Waits for its end; where it stays because of its readers, the number of files they have open.
    fn wait(&self) -> Option<u64> {
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            let mut end = [PollFd::new(&self.process, PollFlags::IN)];
            if poll(&mut end, Some(&STEP)).is_ok_and(|ended| ended > 0) {
                return None;
            }
            let status = control::ask(self.entry, Request::Status).ok();
            let open = status.and_then(|status| status["open_files"].as_u64()).filter(|open| *open > 0);
            if open.is_some() {
                return open;
            }
        }
        None
    }
}
