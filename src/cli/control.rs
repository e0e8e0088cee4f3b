//! The control channel: a Unix socket beside each mount, JSON lines with a version.
//!
//! `<major>-<minor>.sock` in a directory of the user's alone, named by the mount's device number. It
//! never goes through the mount, so that a mount that hangs can still be asked. Only the user who
//! mounted is answered, and root, who finds the sockets of users where they usually are.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::{
        fs::{FileTypeExt, MetadataExt},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::fuse::mountinfo;

use super::{belongings, options::ViewArgs, views::ManyArgs};

/// Of the protocol. A daemon refuses requests of another version, by name.
const VERSION: u32 = 1;

/// A request is a line, with the rules of whole recipes in it; whoever sends more is not a client of ours.
const MAX_REQUEST: u64 = 16 << 20;

/// An answer is a few kilobytes; who sends more is no daemon of ours.
const MAX_ANSWER: u64 = 1 << 20;

/// Between two tries to accept a client, where the process has no descriptor left for one.
const PAUSE: Duration = Duration::from_millis(100);

/// A live daemon answers in milliseconds; a stuck one must not hold `status` up.
const PATIENCE: Duration = Duration::from_secs(3);

/// The headers of thousands of files on a slow network may take a while, and a target size reads all weights.
const PATIENCE_WITH_PLANS: Duration = Duration::from_secs(1800);

/// What a client may ask.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "lowercase")]
pub(super) enum Request {
    /// How the mount is doing.
    Status,
    /// Show something else.
    Remount {
        /// What; the same, planned anew, where nothing is said.
        asked: Option<Box<(ViewArgs, ManyArgs)>>,
    },
    /// Take the mount down.
    Unmount {
        /// End its readers, too.
        force: bool,
    },
}

#[derive(Debug, Serialize, Deserialize)]
struct Envelope {
    version: u32,
    #[serde(flatten)]
    request: Request,
}

/// What a daemon answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Answer {
    Done(Value),
    Error(String),
}

/// What answers requests.
pub(super) trait Answers: Send + Sync {
    /// The answer, or why there is none.
    fn answer(&self, request: Request) -> Result<Value, String>;
}

/// A daemon's end of the channel. The socket is gone when this is dropped.
#[derive(Debug)]
pub(super) struct Control {
    path: PathBuf,
    inode: u64,
}

/// What the socket of a mount is called.
fn name((major, minor): (u32, u32)) -> String {
    format!("{major}-{minor}.sock")
}

/// Where the socket of a mount is.
///
/// # Errors
/// Where its directory cannot be had; `PermissionDenied` where it is another user's and cannot be found.
fn socket(entry: &mountinfo::Entry) -> io::Result<PathBuf> {
    let me = rustix::process::getuid();
    let name = name(entry.device);
    match entry.user.filter(|user| *user != me.as_raw()) {
        None => Ok(belongings::sockets()?.join(name)),
        Some(user) => {
            let mut dirs = if me.is_root() { belongings::sockets_of(user) } else { vec![] };
            dirs.iter_mut().for_each(|dir| dir.push(&name));
            // Nobody else may pass for the daemon.
            let theirs = |path: &PathBuf| {
                fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket() && found.uid() == user)
            };
            dirs.into_iter().find(theirs).ok_or_else(|| io::ErrorKind::PermissionDenied.into())
        }
    }
}

impl Control {
    /// Answers requests for a mount from now on. A socket that an earlier daemon left is replaced: its
    /// device number would not be ours if it were alive.
    ///
    /// # Errors
    /// Where the socket cannot be made.
    pub(super) fn listen(device: (u32, u32), answers: Arc<dyn Answers>) -> io::Result<Self> {
        let path = belongings::sockets()?.join(name(device));
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        let inode = fs::symlink_metadata(&path)?.ino();
        let control = Self { path, inode };
        thread::Builder::new().name("control".into()).spawn(move || serve(&listener, &answers))?;
        Ok(control)
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // The kernel gives device numbers out again: the next mount's socket may be there by now.
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode);
        if ours && let Err(e) = fs::remove_file(&self.path) {
            tracing::debug!("{}: {e}", self.path.display());
        }
    }
}

fn serve(listener: &UnixListener, answers: &Arc<dyn Answers>) {
    for stream in listener.incoming() {
        let answers = Arc::clone(answers);
        let stream = match stream {
            Ok(stream) => stream,
            Err(e) => {
                tracing::debug!("a client of the control socket has to wait: {e}");
                thread::sleep(PAUSE);
                continue;
            }
        };
        let spawned = thread::Builder::new().name("control-client".into()).spawn(move || {
            if let Err(e) = converse(&stream, answers.as_ref()) {
                tracing::debug!("a client of the control socket went away: {e}");
            }
        });
        if let Err(e) = spawned {
            tracing::warn!("a client of the control socket was turned away: {e}");
        }
    }
}

fn converse(mut stream: &UnixStream, answers: &dyn Answers) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let peer = rustix::net::sockopt::socket_peercred(stream)?;
    if peer.uid != rustix::process::geteuid() && !peer.uid.is_root() {
        return write_line(&mut stream, &Answer::Error("only the user who mounted is answered, and root".to_owned()));
    }
    let mut lines = BufReader::new(stream);
    let mut line = String::new();
    while lines.by_ref().take(MAX_REQUEST).read_line(&mut line)? > 0 {
        let answer = match parse(&line) {
            Ok(request) => answers.answer(request).map_or_else(Answer::Error, Answer::Done),
            Err(why) => Answer::Error(why),
        };
        write_line(&mut stream, &answer)?;
        line.clear();
    }
    Ok(())
}

fn parse(line: &str) -> Result<Request, String> {
    let value: Value = serde_json::from_str(line).map_err(|e| format!("a request is a line of JSON: {e}"))?;
    if value.get("version").and_then(Value::as_u64) != Some(u64::from(VERSION)) {
        return Err(format!("this daemon speaks version {VERSION} of the protocol"));
    }
    serde_json::from_value::<Envelope>(value).map(|e| e.request).map_err(|e| format!("no such request: {e}"))
}

fn write_line(to: &mut impl Write, what: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    to.write_all(&line)
}

/// Asks the daemon of a mount.
///
/// # Errors
/// Where there is no daemon, it does not answer, or says no; `PermissionDenied` where the mount is
/// another user's, whose socket we may not use or cannot find.
pub(super) fn ask(entry: &mountinfo::Entry, request: Request) -> io::Result<Value> {
    ask_at(&socket(entry)?, request)
}

fn ask_at(path: &Path, request: Request) -> io::Result<Value> {
    let mut stream = UnixStream::connect(path)?;
    let patience = if matches!(request, Request::Remount { .. }) { PATIENCE_WITH_PLANS } else { PATIENCE };
    stream.set_read_timeout(Some(patience))?;
    write_line(&mut stream, &Envelope { version: VERSION, request })?;
    let mut line = String::new();
    BufReader::new(stream).take(MAX_ANSWER).read_line(&mut line)?;
    match serde_json::from_str(&line)? {
        Answer::Done(value) => Ok(value),
        Answer::Error(why) => Err(io::Error::other(why)),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    struct Echo;

    impl Answers for Echo {
        fn answer(&self, request: Request) -> Result<Value, String> {
            match request {
                Request::Status => Ok(Value::from("fine")),
                Request::Remount { asked } => Ok(Value::from(asked.is_some())),
                Request::Unmount { force } => Err(format!("force {force}")),
            }
        }
    }

    #[test]
    fn requests_are_answered_one_by_one() {
        let (client, server) = UnixStream::pair().unwrap();
        let server = thread::spawn(move || converse(&server, &Echo).unwrap());
        let mut lines = BufReader::new(client.try_clone().unwrap()).lines();
        let mut said = |line: &str| {
            (&client).write_all(line.as_bytes()).unwrap();
            lines.next().unwrap().unwrap()
        };
        assert_eq!(said("{\"version\":1,\"request\":\"status\"}\n"), "{\"done\":\"fine\"}");
        assert_eq!(said("{\"version\":1,\"request\":\"unmount\",\"force\":true}\n"), "{\"error\":\"force true\"}");
        assert_eq!(said("{\"version\":1,\"request\":\"remount\",\"asked\":[{},{}]}\n"), "{\"done\":true}");
        assert!(said("{\"version\":1,\"request\":\"remount\",\"asked\":[{\"no\":1},{}]}\n").contains("unknown field"));
        assert!(said("{\"version\":2,\"request\":\"status\"}\n").contains("version 1"));
        assert!(said("{\"version\":1,\"request\":\"dance\"}\n").contains("no such request"));
        assert!(said("nonsense\n").contains("JSON"));
        drop((client, lines));
        server.join().unwrap();
    }

    #[test]
    fn a_daemon_is_asked_by_its_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        assert!(ask_at(&path, Request::Status).is_err());
        let listener = UnixListener::bind(&path).unwrap();
        thread::spawn(move || serve(&listener, &(Arc::new(Echo) as Arc<dyn Answers>)));
        assert_eq!(ask_at(&path, Request::Status).unwrap(), "fine");
        assert_eq!(ask_at(&path, Request::Unmount { force: false }).unwrap_err().to_string(), "force false");
    }
}
