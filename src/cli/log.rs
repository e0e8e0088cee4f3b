//! The log: standard error, which in the background is a file that is kept short.
//!
//! A file that has grown past [`MAX`] becomes `NAME.1`, and the log goes on in a new one; what writes to standard error
//! beside the log (a panic's last words) follows. journald and logrotate see nothing of it: they have the descriptor.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, IsTerminal, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

use super::Failure;

/// The log filter, as `tracing` reads it: `debug`, `quantfs::view=trace,warn`.
const VARIABLE: &str = "QUANTFS_LOG";

/// Bytes after which a log is begun anew: some days of a busy daemon.
const MAX: u64 = 16 << 20;

/// Logs go to standard error: of a daemon what it does, of other verbs warnings alone.
///
/// # Errors
/// A filter that means nothing.
pub(super) fn start(daemon: bool, file: Option<PathBuf>) -> Result<(), Failure> {
    let filter = match std::env::var(VARIABLE) {
        Ok(text) => EnvFilter::try_new(text).map_err(|e| Failure::usage(format!("{VARIABLE}: {e}")))?,
        // fuser's errors on replies say that a reader has gone meanwhile.
        Err(_) => EnvFilter::new(if daemon { "info,fuser::reply=off" } else { "warn,fuser::reply=off" }),
    };
    // A log that nobody reads any more is no reason to panic, as telling of it on standard error would.
    let builder = tracing_subscriber::fmt().log_internal_errors(false);
    let builder = builder.with_env_filter(filter).with_ansi(io::stderr().is_terminal());
    let started = match file {
        None => builder.with_writer(io::stderr).try_init(),
        Some(path) => builder.with_writer(Kept::new(path, MAX)).try_init(),
    };
    started.map_err(|e| Failure::refused(e.to_string()))
}

/// Opens a log to append to.
///
/// # Errors
/// Where it cannot be written.
pub(super) fn open(path: &Path) -> io::Result<File> {
    File::options().create(true).append(true).mode(0o600).open(path)
}

/// Standard error, and the file that it is.
struct Kept {
    path: PathBuf,
    max: u64,
    len: Mutex<u64>,
}

impl Kept {
    fn new(path: PathBuf, max: u64) -> Self {
        let len = fs::metadata(&path).map_or(0, |file| file.len());
        Self { path, max, len: Mutex::new(len) }
    }

    /// Writes a line to what `out` is by now.
    fn write_line(
        &self,
        line: &[u8],
        out: &mut impl Write,
        turn: impl FnOnce(&Path) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut len = self.len.lock().unwrap_or_else(PoisonError::into_inner);
        if *len > self.max {
            // Where no new file can be had the old one grows: a line is worth more than a limit.
            if turn(&self.path).is_ok() {
                *len = 0;
            }
        }
        out.write_all(line)?;
        *len += line.len() as u64;
        Ok(())
    }
}

/// Puts the file aside, one earlier one is kept, and leads standard error to a new one. Where another daemon of the same
/// place did so before, its new one is ours, too.
fn turn(path: &Path) -> io::Result<()> {
    let ours = rustix::fs::fstat(io::stderr())?;
    let is_ours = rustix::fs::stat(path).is_ok_and(|there| (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino));
    rustix::stdio::dup2_stderr(if is_ours { aside(path)? } else { open(path)? })?;
    Ok(())
}

fn aside(path: &Path) -> io::Result<File> {
    let mut old = OsString::from(path);
    old.push(".1");
    fs::rename(path, old)?;
    open(path)
}

impl<'a> MakeWriter<'a> for Kept {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(self)
    }
}

/// One event of the log, which is written at once.
struct Line<'a>(&'a Kept);

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.write_line(line, &mut io::stderr(), turn)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use std::cell::RefCell;

    use super::*;

    /// What a process would do whose standard error is the file.
    struct Stderr(RefCell<File>);

    impl Write for &Stderr {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.borrow_mut().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_long_log_is_put_aside_and_no_line_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        open(&path).unwrap().write_all(b"earlier\n").unwrap();
        let (kept, stderr) = (Kept::new(path.clone(), 30), Stderr(RefCell::new(open(&path).unwrap())));
        let turn = |path: &Path| aside(path).map(|file| drop(stderr.0.replace(file)));
        for n in 0..8 {
            kept.write_line(format!("line {n}...\n").as_bytes(), &mut &stderr, turn).unwrap();
        }
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(read("log.1"), "line 3...\nline 4...\nline 5...\nline 6...\n", "and the one before it is gone");
        assert_eq!(read("log"), "line 7...\n");
    }

    #[test]
    fn a_log_that_cannot_be_put_aside_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut file = open(&path).unwrap();
        let kept = Kept::new(path.clone(), 0);
        for _ in 0..3 {
            kept.write_line(b"x\n", &mut file, |_| Err(io::ErrorKind::StorageFull.into())).unwrap();
        }
        assert_eq!(fs::read(&path).unwrap(), b"x\nx\nx\n");
    }
}
