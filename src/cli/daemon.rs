//! The background process of a mount: this program once more, in a session of its own.
//!
//! It is started with the same arguments and `--report`, says on its standard output in one line of
//! JSON whether the mount answers, and logs to a file on its standard error. Starting afresh instead
//! of forking keeps threads and locks out of it.

use std::{
    env,
    ffi::OsString,
    fs::{self, File},
    io::{self, BufRead, BufReader, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{Failure, belongings};

/// Planning reads headers only, but of thousands of files on a slow network it may take a while.
const READY_TIMEOUT: Duration = Duration::from_secs(120);

/// A log that has grown past this is begun anew with the next mount.
const MAX_LOG: u64 = 16 << 20;

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
    /// The resolved mount point.
    pub(super) mountpoint: PathBuf,
    /// The process to signal.
    pub(super) pid: u32,
    /// What the user should know of the plan.
    pub(super) warnings: Vec<String>,
}

/// Starts the background process and waits until its mount answers. Returns its log, too.
///
/// # Errors
/// What keeps the mount from being made, in the background process's own words.
pub(super) fn start(args: &[OsString], mountpoint: &Path) -> Result<(Ready, PathBuf), Failure> {
    let log = belongings::logs()?.join(log_name(mountpoint));
    let mut child = Command::new(env::current_exe()?)
        .args(args)
        .arg("--report")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(open_log(&log).map_err(|e| Failure::refused(format!("{}: cannot write the log: {e}", log.display())))?)
        .spawn()?;
    match wait(&mut child) {
        Some(Report::Ready(ready)) => Ok((ready, log)),
        Some(Report::Failed { code, line }) => Err(Failure::passed_on(code, line)),
        None => Err(Failure::refused(format!(
            "the background process ended or hung before the mount answered: see {}",
            log.display()
        ))),
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
    let report = told.recv_timeout(READY_TIMEOUT).ok().flatten();
    if report.is_none()
        && let Err(e) = child.kill()
    {
        tracing::debug!("the background process could not be ended: {e}");
    }
    report
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

/// `/mnt/q4` logs to `mnt-q4.log`.
fn log_name(mountpoint: &Path) -> OsString {
    let absolute = std::path::absolute(mountpoint).unwrap_or_else(|_| mountpoint.to_owned());
    let name = absolute.to_string_lossy().trim_matches('/').replace('/', "-");
    // A file name may have 255 bytes.
    let tail: String = name.chars().rev().take(60).collect();
    let tail: String = tail.chars().rev().collect();
    format!("{}.log", tail.trim_start_matches('-')).into()
}

fn open_log(path: &Path) -> io::Result<File> {
    let long = fs::metadata(path).is_ok_and(|m| m.len() > MAX_LOG);
    let mut options = File::options();
    options.create(true).mode(0o600);
    if long {
        options.write(true).truncate(true)
    } else {
        options.append(true)
    };
    options.open(path)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn logs_are_named_by_mount_points() {
        assert_eq!(log_name(Path::new("/mnt/q4")), "mnt-q4.log");
        assert_eq!(log_name(Path::new(&"/x".repeat(500))).len(), 63, "a name that starts with a dash is no use");
    }

    #[test]
    fn a_log_grows_and_is_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        for _ in 0..2 {
            open_log(&path).unwrap().write_all(b"line\n").unwrap();
        }
        assert_eq!(fs::read(&path).unwrap(), b"line\nline\n");
        File::options().write(true).open(&path).unwrap().set_len(MAX_LOG + 1).unwrap();
        open_log(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    }
}
