//! The background process of a mount: this program once more, in a session of its own.
//!
//! It is started with the same verb, `--report` and the same arguments, says on its standard output in one line of
//! JSON whether the mount answers, and logs to a file on its standard error. Starting afresh instead
//! of forking keeps threads and locks out of it.

use std::{
    env,
    ffi::OsString,
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use serde::{Deserialize, Serialize};

use crate::fuse::{self, Force, Place, mountinfo};

use super::{Failure, belongings, log};

/// Planning reads headers only, but of thousands of files on a slow network it may take a while.
const READY_TIMEOUT: Duration = Duration::from_secs(120);

/// How long a background process that is given up may take to clean up after itself.
const END_GRACE: Duration = Duration::from_secs(5);

/// The end of a log in which its last line is looked for.
const LOG_TAIL: u64 = 16 << 10;

/// What a background process reports.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Report {
    /// The mount answers.
    Ready(Ready),
    /// It never will.
    Failed {
        /// For the parent to exit with.
        code: u8,
        /// For the parent to print.
        line: String,
    },
}

/// A mount that answers.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Ready {
    /// The source's name.
    pub(super) source: String,
    /// The canonical spec.
    pub(super) spec: String,
    /// The resolved mount point, for people: a path need not be UTF-8.
    pub(super) mountpoint: String,
    /// The process to signal.
    pub(super) pid: u32,
    /// What the user should know of the plan.
    pub(super) warnings: Vec<String>,
}

/// Starts the background process of a verb and waits until its mount answers. Returns its log, too.
///
/// # Errors
/// What keeps the mount from being made, in the background process's own words.
pub(super) fn start(typed: &[OsString], mountpoint: &Path) -> Result<(Ready, PathBuf), Failure> {
    let path = log_of(mountpoint)?;
    let cannot = |e| Failure::refused(format!("{}: cannot write the log: {e}", path.display()));
    let log = log::open(&path).map_err(cannot)?;
    let begin = log.metadata()?.len();
    let before = ours()?;
    // Behind the verb: `--` may end the options anywhere after it.
    let (verb, args) = typed.split_at(typed.len().min(1));
    let mut command = Command::new(env::current_exe()?);
    command.args(verb).arg("--report").args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    let mut child = command.spawn()?;
    match wait(&mut child) {
        Some(Report::Ready(ready)) => Ok((ready, path)),
        Some(Report::Failed { code, line }) => Err(Failure::passed_on(code, line)),
        None => {
            end(&mut child, END_GRACE);
            clear(mountpoint, &before);
            let last = last_line(&path, begin).map_or_else(String::new, |line| format!(": {line}"));
            Err(Failure::refused(format!(
                "the background process ended or hung before the mount answered{last}; its log is {}",
                path.display()
            )))
        }
    }
}

/// The first line that the child says; `None` where it ends or hangs without one.
fn wait(child: &mut Child) -> Option<Report> {
    let stdout = child.stdout.take()?;
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let mut line = String::new();
        let read = BufReader::new(stdout).read_line(&mut line);
        // Nobody listens after the timeout.
        let _nobody = tell.send(read.ok().and_then(|_| serde_json::from_str(&line).ok()));
    });
    told.recv_timeout(READY_TIMEOUT).ok().flatten()
}

/// Ends the child: it is asked first, since it may have a mount to take down.
fn end(child: &mut Child, grace: Duration) {
    let asked = kill_process(Pid::from_child(child), Signal::TERM);
    let started = Instant::now();
    while asked.is_ok() && started.elapsed() < grace {
        if child.try_wait().is_ok_and(|ended| ended.is_some()) {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
    if let Err(e) = child.kill().and_then(|()| child.wait()) {
        tracing::debug!("the background process could not be ended: {e}");
    }
}

/// Our mounts, by the numbers of their devices.
fn ours() -> io::Result<Vec<(u32, u32)>> {
    Ok(mountinfo::read()?.iter().filter(|entry| entry.is_ours()).map(|entry| entry.device).collect())
}

/// Takes down what a child that is gone has left: a dead mount that was not there before.
fn clear(mountpoint: &Path, before: &[(u32, u32)]) {
    let Ok(left) = fuse::find(mountpoint) else { return };
    if before.contains(&left.device) || !fuse::is_stale(&left.path) {
        return;
    }
    if let Err(e) = fuse::unmount(&Place { path: left.path, device: Some(left.device) }, Force::No) {
        tracing::warn!("{e}");
    }
}

/// The last line of a log that says something, of those that were written from `begin` on.
fn last_line(log: &Path, begin: u64) -> Option<String> {
    let mut file = File::open(log).ok()?;
    let tail = file.metadata().ok()?.len().saturating_sub(LOG_TAIL);
    file.seek(SeekFrom::Start(begin.max(tail))).ok()?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    text.lines().map(str::trim).rfind(|line| !line.is_empty()).map(str::to_owned)
}

/// Keeps the allocator from giving each thread an arena of its own, which no budget would see: with
/// sixteen threads glibc's arenas take 30 MiB that two arenas do not.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "the allocator's settings are a C call")]
pub(super) fn limit_arenas() {
    // SAFETY: called once at start, before there are threads; it only sets a number.
    let set = unsafe { libc::mallopt(libc::M_ARENA_MAX, 2) };
    if set == 0 {
        tracing::debug!("the number of malloc arenas could not be limited");
    }
}

/// Other allocators are left as they are.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(super) fn limit_arenas() {}

/// Gives memory that is free back to the system: plans are many small pieces, which the allocator keeps otherwise.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "the allocator's memory is a C call")]
pub(super) fn release_memory() {
    // SAFETY: the call may be made at any time, by any thread.
    let _any_released = unsafe { libc::malloc_trim(0) };
}

/// Other allocators do as they do.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(super) fn release_memory() {}

/// In the background process: leaves the parent's terminal and process group.
pub(super) fn detach() {
    // Refused only to the leader of a group, who has no terminal to lose.
    if let Err(e) = rustix::process::setsid() {
        tracing::debug!("no session of our own: {e}");
    }
}

/// In the background process: tells the parent, and lets go of what it gave.
///
/// # Errors
/// Where the parent is gone.
pub(super) fn report(report: &Report) -> io::Result<()> {
    let mut line = serde_json::to_vec(report)?;
    line.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&line)?;
    out.flush()?;
    rustix::stdio::dup2_stdout(File::options().write(true).open("/dev/null")?)?;
    // The directory that the user stood in must not be held by us.
    env::set_current_dir("/")
}

/// The log of the background process of a mount.
///
/// # Errors
/// Where the directory of logs cannot be had.
pub(super) fn log_of(mountpoint: &Path) -> io::Result<PathBuf> {
    Ok(belongings::logs()?.join(log_name(mountpoint)))
}

/// `/mnt/q4` logs to `mnt-q4.log`.
fn log_name(mountpoint: &Path) -> OsString {
    let absolute = std::path::absolute(mountpoint).unwrap_or_else(|_| mountpoint.to_owned());
    let name = absolute.to_string_lossy().trim_matches('/').replace('/', "-");
    // A file name may have 255 bytes.
    let tail: String = name.chars().rev().take(60).collect();
    let tail: String = tail.chars().rev().collect();
    format!("{}.log", tail.trim_start_matches('-')).into()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use std::fs;

    use super::*;

    #[test]
    fn logs_are_named_by_mount_points() {
        assert_eq!(log_name(Path::new("/mnt/q4")), "mnt-q4.log");
        assert_eq!(log_name(Path::new(&"/x".repeat(500))).len(), 63, "a name that starts with a dash is no use");
    }

    #[test]
    fn the_last_word_of_a_log_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        fs::write(&path, "an earlier mount\n").unwrap();
        let begin = fs::metadata(&path).unwrap().len();
        assert_eq!(last_line(&path, begin), None);
        log::open(&path).unwrap().write_all(b"first\nthread panicked\n\n").unwrap();
        assert_eq!(last_line(&path, begin).as_deref(), Some("thread panicked"));
        log::open(&path).unwrap().write_all("x".repeat(100_000).as_bytes()).unwrap();
        assert_eq!(last_line(&path, begin).unwrap().len(), 16 << 10);
    }

    fn shell(script: &str) -> Child {
        let mut child = Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
        // Once it has said something its traps are set.
        let mut byte = [0];
        child.stdout.take().unwrap().read_exact(&mut byte).unwrap();
        child
    }

    #[test]
    fn a_child_is_asked_before_it_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let cleaned = dir.path().join("cleaned");
        let script = format!("trap 'touch {}; exit' TERM; echo x; while :; do sleep 0.05; done", cleaned.display());
        let mut child = shell(&script);
        end(&mut child, Duration::from_secs(20));
        assert!(cleaned.exists(), "it could clean up");
        let mut deaf = shell("trap '' TERM; echo x; while :; do sleep 0.05; done");
        end(&mut deaf, Duration::from_millis(100));
        assert!(deaf.try_wait().unwrap().is_some(), "and is killed where it does not listen");
    }

    #[test]
    fn a_dead_mount_that_was_not_there_is_cleared() {
        if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
            return writeln!(io::stderr(), "SKIPPED: only root can do this, with /dev/fuse").unwrap();
        }
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().canonicalize().unwrap();
        let before = ours().unwrap();
        let device = File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let number = std::os::fd::AsRawFd::as_raw_fd(&device);
        let data = format!("fd={number},rootmode=40000,user_id=0,group_id=0,subtype=quantfs");
        let data = std::ffi::CString::new(data).unwrap();
        rustix::mount::mount("dead", &at, "fuse", rustix::mount::MountFlags::RDONLY, data.as_c_str()).unwrap();
        drop(device);
        clear(&at, &ours().unwrap());
        assert!(mountinfo::at(&at).unwrap().is_some(), "it was there before");
        clear(&at, &before);
        assert_eq!(mountinfo::at(&at).unwrap(), None);
    }
}
