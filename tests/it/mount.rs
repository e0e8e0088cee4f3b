//! Real mounts of small plans: what readers see, what they may not do, and how mounts end.
//!
//! Without /dev/fuse each test says that it was skipped; with `QUANTFS_REQUIRE_FUSE=1` it fails.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, OnceLock, mpsc},
    time::{Duration, Instant, SystemTime},
};

use quantfs::{
    fuse::{self, Access, Facts, Force, Live, MountOptions, Owner, Session, SessionOptions, Show, Shown, mountinfo},
    plan::{self, Content, Extent, Plan},
    source::{self, Entry, FileId, Source, Version},
    view::{self, Engine, View},
};
use rustix::{fs::OFlags, io::Errno};
use tempfile::TempDir;

/// Whether mounts can be made here. Loud where they cannot.
pub(crate) fn can_mount() -> bool {
    if Path::new("/dev/fuse").exists() {
        return true;
    }
    assert!(!required(), "QUANTFS_REQUIRE_FUSE=1 and there is no /dev/fuse");
    skip("there is no /dev/fuse");
    false
}

/// Whether a test that cannot be made is a failure.
fn required() -> bool {
    std::env::var_os("QUANTFS_REQUIRE_FUSE").is_some_and(|v| v == "1")
}

/// Whether root's mounts can be made here. Loud where they cannot.
pub(crate) fn can_mount_as_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    assert!(root || !required(), "QUANTFS_REQUIRE_FUSE=1 and this is not root, who alone can do this");
    if !root {
        skip("only root can do this");
    }
    root && can_mount()
}

/// Whether ordinary users could mount here. Loud where they could not.
pub(crate) fn has_fusermount() -> bool {
    let has = Path::new("/usr/bin/fusermount3").exists();
    assert!(has || !required(), "QUANTFS_REQUIRE_FUSE=1 and there is no fusermount3 (package fuse3)");
    if !has {
        skip("fusermount3 is not installed (package fuse3)");
    }
    has
}

fn skip(why: &str) {
    let mut to = io::stderr();
    writeln!(to, "SKIPPED: {why}").unwrap();
}

/// A directory of files, read as they are.
#[derive(Debug)]
struct Folder {
    root: PathBuf,
    entries: Vec<Entry>,
    gate: Gate,
}

/// What can be shut: whoever comes to it waits until it is opened.
#[derive(Debug, Default)]
struct Gate {
    shut: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    fn set(&self, shut: bool) {
        *self.shut.lock().unwrap() = shut;
        self.opened.notify_all();
    }

    fn pass(&self) {
        drop(self.opened.wait_while(self.shut.lock().unwrap(), |shut| *shut).unwrap());
    }
}

impl Folder {
    fn open(root: &Path) -> Self {
        let mut entries: Vec<Entry> = fs::read_dir(root).unwrap().map(|e| entry(&e.unwrap())).collect();
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        Self { root: root.to_owned(), entries, gate: Gate::default() }
    }
}

fn entry(e: &fs::DirEntry) -> Entry {
    let m = e.metadata().unwrap();
    let version = Version { len: m.len(), mtime_ns: i128::from(m.mtime()), inode: m.ino(), device: m.dev() };
    Entry { path: e.file_name().into_string().unwrap(), version }
}

impl Source for Folder {
    fn name(&self) -> &str {
        "folder"
    }
    fn entries(&self) -> &[Entry] {
        &self.entries
    }
    fn read_exact_at(&self, id: FileId, offset: u64, buf: &mut [u8]) -> Result<(), source::Error> {
        let path = &self.entry(id).path;
        let file = File::open(self.root.join(path)).map_err(|_| source::Error::NotFound { path: path.clone() })?;
        file.read_exact_at(buf, offset).map_err(|e| source::Error::Changed { path: path.clone(), what: e.to_string() })
    }
    fn local_file(&self, id: FileId) -> Option<OwnedFd> {
        self.gate.pass();
        File::open(self.root.join(&self.entry(id).path)).ok().map(Into::into)
    }
}

#[derive(Debug)]
struct Words(&'static str);

impl Facts for Words {
    fn labels(&self) -> Vec<(&'static str, String)> {
        vec![("user.quantfs.spec", self.0.to_owned()), ("user.quantfs.version", "1".to_owned())]
    }
    fn live(&self, file: Live) -> Vec<u8> {
        format!("{} of {}\n", file.name(), self.0).into_bytes()
    }
}

fn one(view: Arc<View>, word: &'static str) -> Show {
    Show::One(Shown { view, facts: Arc::new(Words(word)) })
}

/// Bytes that repeat nowhere near.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut x = seed;
    std::iter::repeat_with(|| {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (x >> 56) as u8
    })
    .take(len)
    .collect()
}

const WHOLE: usize = 300_001;
const WEIGHTS: usize = (5 << 20) + 123;

/// A scratch directory with a source and a mount point.
struct Scratch {
    dir: TempDir,
}

impl Scratch {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Others look at it in some tests.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(dir.path().join("source")).unwrap();
        fs::create_dir(dir.path().join("mnt")).unwrap();
        fs::write(dir.path().join("source/whole.bin"), noise(WHOLE, 1)).unwrap();
        fs::write(dir.path().join("source/weights.bin"), noise(WEIGHTS, 2)).unwrap();
        Self { dir }
    }

    fn source(&self) -> PathBuf {
        self.dir.path().join("source")
    }

    fn mnt(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    /// `config.json`, `sub/deep/notes.txt`, `weights` (a header and source bytes), `whole.bin` (untouched).
    fn view(&self, word: &str) -> Arc<View> {
        Self::view_of(Arc::new(Folder::open(&self.source())), word)
    }

    fn view_of(source: Arc<dyn Source>, word: &str) -> Arc<View> {
        let id = |name: &str| source.find(name).unwrap();
        let bytes = |text: &str| Content::Bytes(text.as_bytes().into());
        let (weights, whole) = (id("weights.bin"), id("whole.bin"));
        let files = vec![
            file("config.json", &[(bytes(word), word.len())]),
            file("sub/deep/notes.txt", &[(bytes("notes"), 5)]),
            file("weights", &[(bytes("head"), 4), (Content::Source { file: weights, offset: 0 }, WEIGHTS)]),
            file("whole.bin", &[(Content::Source { file: whole, offset: 0 }, WHOLE)]),
        ];
        serve_plan(plan_of(files), source)
    }

    fn options(&self) -> MountOptions {
        MountOptions { source: "a,b c".into(), source_roots: vec![self.source()], access: Access::Owner }
    }

    fn serve(&self, options: &SessionOptions) -> Session {
        self.serve_view(self.view("one"), options)
    }

    fn serve_view(&self, view: Arc<View>, options: &SessionOptions) -> Session {
        let mounted = fuse::mount(&self.mnt(), &self.options()).unwrap();
        Session::start(mounted, one(view, "one"), options).unwrap()
    }

    fn at(&self, path: &str) -> PathBuf {
        self.mnt().join(path)
    }
}

impl Drop for Scratch {
    /// Nothing may be left mounted, not even by a test that failed.
    fn drop(&mut self) {
        let mnt = self.mnt();
        while mountinfo::at(&mnt).is_ok_and(|entry| entry.is_some()) {
            if rustix::mount::unmount(&mnt, rustix::mount::UnmountFlags::DETACH).is_err() {
                break;
            }
        }
    }
}

/// One for all tests, as all views of a process share one.
fn engine() -> Arc<Engine> {
    static ENGINE: OnceLock<Arc<Engine>> = OnceLock::new();
    let options = view::Options { threads: 2, ..Default::default() };
    Arc::clone(ENGINE.get_or_init(|| Engine::new(options).unwrap()))
}

fn serve_plan(plan: Plan, source: Arc<dyn Source>) -> Arc<View> {
    View::new(Arc::new(plan), source, engine())
}

fn plan_of(files: Vec<plan::File>) -> Plan {
    Plan {
        spec: "source".into(),
        source: "folder".into(),
        rows: vec![],
        warnings: vec![],
        hidden: vec![],
        files,
        weights: vec![],
        surveys: vec![],
    }
}

fn file(path: &str, content: &[(Content, usize)]) -> plan::File {
    let mut len = 0u64;
    let mut extents = vec![];
    for (content, bytes) in content {
        extents.push(Extent { start: len, content: content.clone() });
        len += *bytes as u64;
    }
    let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    plan::File { path: path.to_owned(), len, modified, extents }
}

fn plain() -> SessionOptions {
    SessionOptions {
        owner: Owner { uid: 0, gid: 0, umask: 0 },
        threads: 2,
        readahead: 1 << 20,
        passthrough: false,
        epochs: true,
        released: || (),
    }
}

fn weights() -> Vec<u8> {
    [b"head".to_vec(), noise(WEIGHTS, 2)].concat()
}

#[test]
fn every_way_of_reading_gives_the_same_bytes() {
    if !can_mount() {
        return;
    }
    let scratch = Scratch::new();
    let _session = scratch.serve(&plain());
    let (path, expected) = (scratch.at("weights"), weights());
    // Past the page cache first, while nothing is in it.
    let direct = File::options().read(true).custom_flags(OFlags::DIRECT.bits() as i32).open(&path).unwrap();
    let mut block = vec![0; 1 << 20];
    for at in [0usize, 4096, 1 << 20, 5 << 20] {
        let n = direct.read_at(&mut block, at as u64).unwrap();
        assert_eq!(n, block.len().min(expected.len() - at));
        assert!(block[..n] == expected[at..at + n], "O_DIRECT at {at}");
    }
    assert!(fs::read(&path).unwrap() == expected, "read");
    let opened = File::open(&path).unwrap();
    for (at, len) in [(0, 1), (3, 2), (4095, 4098), (expected.len() - 1, 1), (1_048_575, 2)] {
        let mut buf = vec![0; len];
        opened.read_exact_at(&mut buf, at as u64).unwrap();
        assert_eq!(buf, &expected[at..at + len], "pread of {len} at {at}");
    }
    assert_eq!(opened.read_at(&mut [0; 8], expected.len() as u64).unwrap(), 0, "at the end");
    assert_eq!(opened.read_at(&mut [0; 8], 1 << 40).unwrap(), 0, "past the end");
    assert!(map(&opened)[..] == expected, "mmap");
    assert!(sent(&opened) == expected, "sendfile");
    assert!(spliced(&opened) == expected, "splice");
}

/// # Panics
/// Where the file cannot be mapped.
#[expect(unsafe_code, reason = "the file is a view's, which does not change")]
pub(crate) fn map(file: &File) -> memmap2::Mmap {
    // SAFETY: nobody writes to the file or truncates it: the mount is read-only.
    unsafe { memmap2::Mmap::map(file) }.unwrap()
}

fn sent(from: &File) -> Vec<u8> {
    let mut to = tempfile::tempfile().unwrap();
    let mut offset = 0;
    while rustix::fs::sendfile(&to, from, Some(&mut offset), 1 << 30).unwrap() > 0 {}
    contents(&mut to)
}

fn spliced(from: &File) -> Vec<u8> {
    let (out, into) = rustix::pipe::pipe().unwrap();
    let (mut to, mut offset) = (tempfile::tempfile().unwrap(), 0);
    let flags = rustix::pipe::SpliceFlags::empty();
    loop {
        let n = rustix::pipe::splice(from, Some(&mut offset), &into, None, 1 << 16, flags).unwrap();
        if n == 0 {
            return contents(&mut to);
        }
        let mut left = n;
        while left > 0 {
            left -= rustix::pipe::splice(&out, None, &to, None, left, flags).unwrap();
        }
    }
}

fn contents(file: &mut File) -> Vec<u8> {
    let mut bytes = vec![];
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn two_readers_at_once() {
    if !can_mount() {
        return;
    }
    let scratch = Scratch::new();
    let session = scratch.serve(&plain());
    let expected = weights();
    std::thread::scope(|scope| {
        for seed in 0..2 {
            let (path, expected) = (scratch.at("weights"), &expected);
            scope.spawn(move || {
                let file = File::open(path).unwrap();
                let offsets = noise(400, seed);
                for pair in offsets.chunks(2) {
                    let at = usize::from(pair[0]) * usize::from(pair[1]) * 80;
                    let mut buf = vec![0; 50_000];
                    file.read_exact_at(&mut buf, at as u64).unwrap();
                    assert!(buf == expected[at..at + buf.len()], "at {at}");
                }
            });
        }
    });
    let open = File::open(scratch.at("weights")).unwrap();
    // The kernel tells of a closed file after the close returned.
    let started = Instant::now();
    while session.open_files() != 1 {
        assert!(started.elapsed().as_secs() < 10, "{} files are still open", session.open_files());
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(open);
}

#[test]
fn listings_attributes_and_statistics() {
    if !can_mount() {
        return;
    }
    let scratch = Scratch::new();
    let _session = scratch.serve(&SessionOptions { owner: Owner { uid: 12, gid: 34, umask: 0o022 }, ..plain() });
    let names =
        |dir: &Path| fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    let listed: BTreeSet<String> = names(&scratch.mnt());
    assert_eq!(listed, ["config.json", "sub", "weights", "whole.bin"].map(String::from).into());
    let below: BTreeSet<String> = names(&scratch.at("sub/deep"));
    assert_eq!(below, ["notes.txt".to_owned()].into());
    for entry in fs::read_dir(scratch.mnt()).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().ino(), fs::metadata(entry.path()).unwrap().ino(), "readdirplus and stat");
    }
    let stat = fs::metadata(scratch.at("weights")).unwrap();
    assert_eq!((stat.len(), stat.mode(), stat.nlink()), (WEIGHTS as u64 + 4, 0o100_444, 1));
    assert_eq!((stat.uid(), stat.gid(), stat.mtime()), (12, 34, 1_700_000_000));
    assert_eq!(stat.blocks(), stat.len().div_ceil(512));
    let dir = fs::metadata(scratch.at("sub")).unwrap();
    assert_eq!((dir.mode(), dir.nlink()), (0o040_555, 3));
    let total = rustix::fs::statvfs(scratch.mnt().as_path()).unwrap();
    let bytes = (WEIGHTS + 4 + WHOLE + 5 + 3) as u64;
    assert_eq!((total.f_blocks, total.f_bfree, total.f_files), (bytes.div_ceil(4096), 0, 4));
    assert!(total.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY));
    let entry = mountinfo::at(&scratch.mnt().canonicalize().unwrap()).unwrap().unwrap();
    assert_eq!((entry.fstype.as_str(), entry.source.as_str()), ("fuse.quantfs", "a,b c"));
}

#[test]
fn the_mount_is_fenced() {
    if !can_mount() {
        return;
    }
    let scratch = Scratch::new();
    let _session = scratch.serve(&plain());
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    let mnt = scratch.mnt().canonicalize().unwrap();
    let line = table.lines().find(|l| l.split(' ').nth(1) == mnt.to_str()).unwrap();
    let options: BTreeSet<&str> = line.split(' ').nth(3).unwrap().split(',').collect();
    for option in ["ro", "nodev", "nosuid", "noexec", "noatime", "default_permissions"] {
        assert!(options.contains(option), "{option} is missing in {line}");
    }
    assert!(!options.contains("allow_other"), "{line}");
}

#[test]
fn every_write_is_refused() {
    if !can_mount() {
        return;
    }
    let scratch = Scratch::new();
    let _session = scratch.serve(&plain());
    refuses_writes(&scratch);
}

/// Where somebody else mounted it, without `ro`, the kernel lets everything through to us.
#[test]
fn every_write_is_refused_without_the_kernels_help() {
    if !can_mount_as_root() {
        return;
    }
    let scratch = Scratch::new();
    let device = File::options().read(true).write(true).open("/dev/fuse").unwrap();
    mount_by_hand(&device, &scratch.mnt(), "quantfs", rustix::mount::MountFlags::empty());
    let path = PathBuf::from(format!("/dev/fd/{}", device.as_raw_fd()));
    let mounted = fuse::mount(&path, &scratch.options()).unwrap();
    let session = Session::start(mounted, one(scratch.view("one"), "one"), &plain()).unwrap();
    refuses_writes(&scratch);
    unmount_by_hand(&scratch.mnt());
    assert!(session.wait(Some(Duration::from_secs(10))));
}

fn refuses_writes(scratch: &Scratch) {
    let (file, new) = (scratch.at("config.json"), scratch.at("new"));
    let refused = |what: &str, result: io::Result<()>| {
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EROFS), "{what}");
    };
    refused("write", File::options().write(true).open(&file).map(drop));
    refused("read and write", File::options().read(true).write(true).open(&file).map(drop));
    refused("append", File::options().append(true).open(&file).map(drop));
    refused("truncate", File::options().write(true).truncate(true).open(&file).map(drop));
    refused("create", File::create(&new).map(drop));
    refused("mkdir", fs::create_dir(&new));
    refused("unlink", fs::remove_file(&file));
    refused("rmdir", fs::remove_dir(scratch.at("sub/deep")));
    refused("rename", fs::rename(&file, &new));
    refused("link", fs::hard_link(&file, &new));
    refused("symlink", std::os::unix::fs::symlink("x", &new));
    refused("chmod", fs::set_permissions(&file, fs::Permissions::from_mode(0o777)));
    refused("chown", std::os::unix::fs::chown(&file, Some(1), None));
    let set = rustix::fs::setxattr(&file, "user.x", b"y", rustix::fs::XattrFlags::empty());
    refused("setxattr", set.map_err(Into::into));
    refused("removexattr", rustix::fs::removexattr(&file, "user.quantfs.spec").map_err(Into::into));
    let opened = File::open(&file).unwrap();
    assert!(opened.set_len(0).is_err() && opened.set_modified(SystemTime::now()).is_err());
    assert_eq!(fs::read(&file).unwrap(), b"one");
}

#[test]
fn labels_are_extended_attributes() {
    if !can_mount() {
        return;
    }
    let scratch = Scratch::new();
    let _session = scratch.serve(&plain());
    let mut buf = [0u8; 256];
    for path in ["weights", "sub", ""] {
        let path = scratch.at(path);
        let n = rustix::fs::getxattr(&path, "user.quantfs.spec", &mut buf).unwrap();
        assert_eq!(&buf[..n], b"one");
        let n = rustix::fs::listxattr(&path, &mut buf).unwrap();
        assert_eq!(&buf[..n], b"user.quantfs.spec\0user.quantfs.version\0".as_slice());
    }
    let weights = scratch.at("weights");
    assert_eq!(rustix::fs::getxattr(&weights, "user.quantfs.spec", &mut buf[..2]), Err(Errno::RANGE));
    assert_eq!(rustix::fs::getxattr(&weights, "user.other", &mut buf), Err(Errno::NODATA));
}

/// Facts with a bug.
#[derive(Debug)]
struct Broken;

impl Facts for Broken {
    fn labels(&self) -> Vec<(&'static str, String)> {
        panic!("planted")
    }
    fn live(&self, _: Live) -> Vec<u8> {
        panic!("planted")
    }
}

#[test]
fn a_panic_ends_its_request_and_nothing_else() {
    if !can_mount() {
        return;
    }
    let scratch = Scratch::new();
    let mounted = fuse::mount(&scratch.mnt(), &scratch.options()).unwrap();
    let show = Show::One(Shown { view: scratch.view("one"), facts: Arc::new(Broken) });
    let _session = Session::start(mounted, show, &plain()).unwrap();
    // More of them than there are threads.
    for _ in 0..5 {
        let live = File::open(scratch.at(".quantfs/metrics")).map(drop);
        assert_eq!(live.unwrap_err().raw_os_error(), Some(libc::EIO));
        let label = rustix::fs::getxattr(scratch.at("weights"), "user.quantfs.spec", &mut [0u8; 9]);
        assert_eq!(label, Err(Errno::IO));
    }
    assert!(fs::read(scratch.at("weights")).unwrap() == weights());
}

#[test]
fn the_hidden_directory_is_live() {
    if !can_mount() {
        return;
    }
    let scratch = Scratch::new();
    let session = scratch.serve(&plain());
    let read = |name: &str| fs::read_to_string(scratch.at(".quantfs").join(name)).unwrap();
    assert_eq!(read("status.json"), "status.json of one\n");
    assert_eq!(read("metrics"), "metrics of one\n");
    let mut open = File::open(scratch.at(".quantfs/plan.json")).unwrap();
    session.swap(one(scratch.view("two"), "two")).unwrap();
    assert_eq!(contents(&mut open), b"plan.json of one\n", "an open file keeps what it said");
    assert_eq!(read("plan.json"), "plan.json of two\n");
    assert_eq!(fs::read_dir(scratch.at(".quantfs")).unwrap().count(), 3);
    assert!(!scratch.at(".quantfs/none").exists() && !scratch.at("sub/.quantfs").exists());
}

/// After the daemon is gone only the kernel can answer.
#[test]
fn names_present_and_absent_are_remembered() {
    if !can_mount_as_root() {
        return;
    }
    let scratch = Scratch::new();
    let session = scratch.serve(&plain());
    let errno = |name: &str| fs::metadata(scratch.at(name)).map(|m| m.len()).map_err(|e| e.raw_os_error().unwrap());
    assert_eq!(errno("sub/model.safetensors.index.json"), Err(libc::ENOENT));
    assert_eq!(errno("config.json"), Ok(3));
    let busy = File::open(scratch.mnt()).unwrap();
    let abort = rustix::mount::unmount(scratch.mnt(), rustix::mount::UnmountFlags::FORCE);
    assert_eq!(abort, Err(Errno::BUSY), "the connection is cut, the mount stays");
    assert!(session.wait(Some(Duration::from_secs(10))));
    assert_eq!(errno("sub/model.safetensors.index.json"), Err(libc::ENOENT));
    assert_eq!(errno("config.json"), Ok(3));
    assert_eq!(errno("sub/never-asked"), Err(libc::ENOTCONN));
    drop(busy);
}

/// Runs a program as nobody, with nobody's groups.
pub(crate) fn as_nobody(program: &Path) -> std::process::Command {
    let mut command = std::process::Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(program);
    command
}

#[test]
fn others_see_nothing_unless_allowed() {
    if !can_mount_as_root() {
        return;
    }
    for (access, expected) in [(Access::Owner, false), (Access::OwnerAndRoot, false), (Access::Everyone, true)] {
        let scratch = Scratch::new();
        let mounted = fuse::mount(&scratch.mnt(), &MountOptions { access, ..scratch.options() }).unwrap();
        let _session = Session::start(mounted, one(scratch.view("one"), "one"), &plain()).unwrap();
        let cat = as_nobody(Path::new("cat")).arg(scratch.at("config.json")).output().unwrap();
        assert_eq!(cat.status.success(), expected, "{access:?}: {}", String::from_utf8_lossy(&cat.stderr));
        assert_eq!(cat.stdout == b"one", expected);
    }
}

/// The kernel answers from its cache, without asking whoever turns others away.
#[test]
fn others_see_no_attributes_that_the_kernel_remembers() {
    if !can_mount_as_root() {
        return;
    }
    for access in [Access::Owner, Access::OwnerAndRoot] {
        let scratch = Scratch::new();
        let mounted = fuse::mount(&scratch.mnt(), &MountOptions { access, ..scratch.options() }).unwrap();
        let _session = Session::start(mounted, one(scratch.view("one"), "one"), &plain()).unwrap();
        for path in ["config.json", "sub", "sub/deep", "sub/deep/notes.txt"] {
            assert_eq!(fs::metadata(scratch.at(path)).unwrap().mode() & 0o077, 0, "{access:?}: {path}");
            let stat = as_nobody(Path::new("stat")).arg(scratch.at(path)).output().unwrap();
            assert!(!stat.status.success(), "{access:?}: {}", String::from_utf8_lossy(&stat.stdout));
        }
    }
}

/// A script that lets everybody open /dev/fuse, as most systems do, in a mount namespace of its own, and
/// then becomes nobody.
const AS_NOBODY: &str = r#"set -e
mknod "$1/fuse" c 10 229
chmod 666 "$1/fuse"
mount --bind "$1/fuse" /dev/fuse
shift
exec setpriv --reuid=65534 --regid=65534 --clear-groups -- "$@""#;

/// Runs a program as nobody where /dev/fuse is open to all; `scratch` is for the node.
pub(crate) fn let_nobody_mount(scratch: &Path, program: &Path) -> std::process::Command {
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "sh", "-c", AS_NOBODY, "sh"]).args([scratch, program]).current_dir("/");
    command
}

/// As root this runs itself again as nobody.
#[test]
fn an_ordinary_user_mounts_through_fusermount3() {
    if !can_mount() || !has_fusermount() {
        return;
    }
    if rustix::process::geteuid().is_root() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let exe = dir.path().join("it");
        fs::copy(std::env::current_exe().unwrap(), &exe).unwrap();
        let test = "mount::an_ordinary_user_mounts_through_fusermount3";
        let out = let_nobody_mount(dir.path(), &exe).args(["--exact", test, "--nocapture"]).output().unwrap();
        let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    let scratch = Scratch::new();
    let session = scratch.serve(&SessionOptions { passthrough: true, ..plain() });
    assert!(fs::read(scratch.at("weights")).unwrap() == weights());
    assert!(fs::read(scratch.at("whole.bin")).unwrap() == noise(WHOLE, 1), "no right to pass through");
    let mnt = scratch.mnt().canonicalize().unwrap();
    let entry = mountinfo::at(&mnt).unwrap().unwrap();
    assert_eq!((entry.fstype.as_str(), entry.source.as_str()), ("fuse.quantfs", "a,b c"));
    assert_eq!(entry.user, Some(rustix::process::getuid().as_raw()));
    let everyone = MountOptions { access: Access::Everyone, ..scratch.options() };
    let busy = fuse::mount(&scratch.mnt(), &everyone).unwrap_err();
    assert!(matches!(busy, fuse::Error::Busy { .. }), "{busy}");
    session.unmount(Force::No).unwrap();
    assert!(session.wait(Some(Duration::from_secs(10))));
    let denied = fuse::mount(&scratch.mnt(), &everyone).unwrap_err();
    assert!(matches!(denied, fuse::Error::AllowOther), "{denied}");
    assert_eq!(mountinfo::at(&mnt).unwrap(), None);
}

/// A view whose `late` exists and whose `sub` does not.
fn other_view(scratch: &Scratch) -> Arc<View> {
    let source: Arc<dyn Source> = Arc::new(Folder::open(&scratch.source()));
    let text = |t: &str| Content::Bytes(t.as_bytes().into());
    let files = vec![file("config.json", &[(text("two!"), 4)]), file("late", &[(text("late"), 4)])];
    serve_plan(plan_of(files), source)
}

fn swaps(epochs: bool) {
    let scratch = Scratch::new();
    let session = scratch.serve(&SessionOptions { epochs, ..plain() });
    let mut open = File::open(scratch.at("config.json")).unwrap();
    let weights_file = File::open(scratch.at("weights")).unwrap();
    assert!(!scratch.at("late").exists());
    let ino = fs::metadata(scratch.at("config.json")).unwrap().ino();
    assert_eq!(fs::read(scratch.at("sub/deep/notes.txt")).unwrap(), b"notes");
    session.swap(one(other_view(&scratch), "two")).unwrap();
    if !epochs {
        // Absent names live for a second, present ones until the thread has told the kernel.
        std::thread::sleep(Duration::from_millis(1200));
    }
    assert_eq!(fs::read(scratch.at("late")).unwrap(), b"late");
    assert_eq!(fs::read(scratch.at("config.json")).unwrap(), b"two!");
    assert_ne!(fs::metadata(scratch.at("config.json")).unwrap().ino(), ino);
    assert!(!scratch.at("sub/deep/notes.txt").exists());
    assert_eq!(fs::read_dir(scratch.mnt()).unwrap().count(), 2);
    assert_eq!(contents(&mut open), b"one", "an open file keeps its view");
    assert_eq!(open.metadata().unwrap().ino(), ino);
    let mut buf = vec![0; 70_000];
    weights_file.read_exact_at(&mut buf, 3_000_000).unwrap();
    assert!(buf == weights()[3_000_000..3_070_000], "bytes that were never read before the swap");
    session.swap(one(scratch.view("three"), "three")).unwrap();
    if !epochs {
        std::thread::sleep(Duration::from_millis(1200));
    }
    assert_eq!(fs::read(scratch.at("config.json")).unwrap(), b"three");
    assert!(!scratch.at("late").exists());
}

#[test]
fn a_swap_is_seen_at_once() {
    if can_mount() {
        swaps(true);
    }
}

#[test]
fn a_swap_is_seen_by_older_kernels_within_a_second() {
    if can_mount() {
        swaps(false);
    }
}

#[test]
fn untouched_files_are_passed_through() {
    if !can_mount_as_root() {
        return;
    }
    let scratch = Scratch::new();
    let session = scratch.serve(&SessionOptions { passthrough: true, ..plain() });
    let open = [File::open(scratch.at("whole.bin")).unwrap(), File::open(scratch.at("whole.bin")).unwrap()];
    assert_eq!(session.passed_through(), 1, "two openings share a backing file");
    assert!(map(&open[0])[..] == noise(WHOLE, 1));
    // The proof that it is the kernel who reads: a change in place shows.
    File::options().write(true).open(scratch.source().join("whole.bin")).unwrap().write_all(b"CHANGED").unwrap();
    let mut buf = [0; 7];
    open[1].read_exact_at(&mut buf, 0).unwrap();
    assert_eq!(&buf, b"CHANGED");
    drop(open);
    assert!(fs::read(scratch.at("whole.bin")).unwrap()[7..] == noise(WHOLE, 1)[7..], "and opens again");
    assert!(fs::read(scratch.at("weights")).unwrap() == weights(), "beside files that are served");
}

/// What `work` gives within ten seconds, on a thread that may hang for longer.
fn in_time<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || tell.send(work()).ok());
    told.recv_timeout(Duration::from_secs(10)).ok()
}

#[test]
fn a_source_that_hangs_holds_up_no_opening() {
    if !can_mount_as_root() {
        return;
    }
    let scratch = Scratch::new();
    let folder = Arc::new(Folder::open(&scratch.source()));
    folder.gate.set(true);
    let view = Scratch::view_of(Arc::clone(&folder) as _, "one");
    let session = Arc::new(scratch.serve_view(view, &SessionOptions { passthrough: true, ..plain() }));
    // More of them than there are threads.
    let hung: Vec<_> = (0..4)
        .map(|_| {
            let path = scratch.at("whole.bin");
            std::thread::spawn(move || in_time(move || fs::read(path).unwrap()))
        })
        .collect();
    std::thread::sleep(Duration::from_millis(50));
    let (config, weights_file) = (scratch.at("config.json"), scratch.at("weights"));
    let known = in_time(move || (fs::read(config).unwrap(), fs::read(weights_file).unwrap().len()));
    let asked = Arc::clone(&session);
    let passed = in_time(move || asked.passed_through());
    let hung: Vec<_> = hung.into_iter().map(|thread| thread.join().unwrap()).collect();
    folder.gate.set(false);
    assert_eq!(known, Some((b"one".to_vec(), WEIGHTS + 4)), "files that need no source file at their opening");
    assert_eq!(passed, Some(0), "the status");
    assert!(hung.iter().all(|read| *read == Some(noise(WHOLE, 1))), "we serve it ourselves");
    drop(File::open(scratch.at("whole.bin")).unwrap());
    assert_eq!(session.passed_through(), 0, "decided for life");
    session.swap(one(scratch.view("two"), "two")).unwrap();
    assert!(fs::read(scratch.at("whole.bin")).unwrap() == noise(WHOLE, 1));
    assert_eq!(session.passed_through(), 1, "another view decides anew");
    session.swap(one(scratch.view("three"), "three")).unwrap();
    assert_eq!(session.passed_through(), 0, "decisions go with their view");
}

#[test]
fn a_busy_mount_goes_and_its_readers_finish() {
    if !can_mount() {
        return;
    }
    let scratch = Scratch::new();
    let session = scratch.serve(&plain());
    let open = File::open(scratch.at("weights")).unwrap();
    session.unmount(Force::No).unwrap();
    assert_eq!(fs::read_dir(scratch.mnt()).unwrap().count(), 0, "the name is gone");
    assert!(!session.wait(Some(Duration::from_millis(50))), "the reader keeps the session");
    let mut buf = vec![0; 1000];
    open.read_exact_at(&mut buf, 4_000_000).unwrap();
    assert!(buf == weights()[4_000_000..4_001_000]);
    drop(open);
    assert!(session.wait(Some(Duration::from_secs(10))), "and its end ends the session");
}

#[test]
fn a_forced_unmount_ends_readers() {
    if !can_mount_as_root() {
        return;
    }
    let scratch = Scratch::new();
    let session = scratch.serve(&plain());
    let open = File::open(scratch.at("weights")).unwrap();
    session.unmount(Force::Yes).unwrap();
    assert!(session.wait(Some(Duration::from_secs(10))));
    assert!(open.read_at(&mut [0; 10], 4_000_000).is_err());
}

#[test]
fn an_unmount_from_outside_ends_the_session_and_spares_the_next_mount() {
    if !can_mount_as_root() {
        return;
    }
    let scratch = Scratch::new();
    let first = scratch.serve(&plain());
    unmount_by_hand(&scratch.mnt());
    assert!(first.wait(Some(Duration::from_secs(10))));
    let second = scratch.serve(&plain());
    first.unmount(Force::No).unwrap();
    drop(first);
    assert_eq!(fs::read(scratch.at("config.json")).unwrap(), b"one", "the next mount stays");
    drop(second);
    assert_eq!(fs::read_dir(scratch.mnt()).unwrap().count(), 0);
}

/// Mounts as a daemon of ours would that was then killed.
fn leave_a_dead_mount(path: &Path, subtype: &str) {
    let device = File::options().read(true).write(true).open("/dev/fuse").unwrap();
    mount_by_hand(&device, path, subtype, rustix::mount::MountFlags::RDONLY);
}

/// Unmounts as root. A child that another test is just starting holds our open files until it has
/// become its program, so a mount may be busy for a moment.
pub(crate) fn unmount_by_hand(path: &Path) {
    for _ in 0..500 {
        match rustix::mount::unmount(path, rustix::mount::UnmountFlags::empty()) {
            Err(Errno::BUSY) => std::thread::sleep(Duration::from_millis(10)),
            other => return other.unwrap(),
        }
    }
    panic!("{} stays busy", path.display());
}

/// Mounts an opened /dev/fuse as root.
pub(crate) fn mount_by_hand(device: &File, path: &Path, subtype: &str, flags: rustix::mount::MountFlags) {
    let data = format!("fd={},rootmode=40000,user_id=0,group_id=0,subtype={subtype}", device.as_raw_fd());
    let data = std::ffi::CString::new(data).unwrap();
    rustix::mount::mount("by-hand", path, "fuse", flags, data.as_c_str()).unwrap();
}

#[test]
fn a_dead_mount_of_ours_is_replaced_and_no_other() {
    if !can_mount_as_root() {
        return;
    }
    let scratch = Scratch::new();
    leave_a_dead_mount(&scratch.mnt(), "quantfs");
    leave_a_dead_mount(&scratch.mnt(), "quantfs");
    assert!(fuse::is_stale(&scratch.mnt()));
    let session = scratch.serve(&plain());
    assert_eq!(fs::read(scratch.at("config.json")).unwrap(), b"one");
    let again = fuse::mount(&scratch.mnt(), &scratch.options()).unwrap_err();
    assert!(matches!(again, fuse::Error::Busy { .. }), "{again}");
    assert!(again.to_string().contains("quantfs umount"), "{again}");
    drop(session);
    leave_a_dead_mount(&scratch.mnt(), "other");
    let refused = fuse::mount(&scratch.mnt(), &scratch.options()).unwrap_err();
    assert!(matches!(refused, fuse::Error::Busy { .. }), "{refused}");
    assert!(refused.to_string().contains("umount -l"), "{refused}");
}

#[test]
fn a_session_that_never_starts_leaves_nothing() {
    if !can_mount() {
        return;
    }
    let scratch = Scratch::new();
    drop(fuse::mount(&scratch.mnt(), &scratch.options()).unwrap());
    assert_eq!(mountinfo::at(&scratch.mnt().canonicalize().unwrap()).unwrap(), None);
}

#[test]
fn a_descriptor_that_somebody_mounted_is_served() {
    if !can_mount_as_root() {
        return;
    }
    let scratch = Scratch::new();
    let device = File::options().read(true).write(true).open("/dev/fuse").unwrap();
    mount_by_hand(&device, &scratch.mnt(), "quantfs", rustix::mount::MountFlags::RDONLY);
    let path = PathBuf::from(format!("/dev/fd/{}", device.as_raw_fd()));
    let mounted = fuse::mount(&path, &scratch.options()).unwrap();
    let session = Session::start(mounted, one(scratch.view("one"), "one"), &plain()).unwrap();
    assert_eq!(fs::read(scratch.at("config.json")).unwrap(), b"one");
    session.unmount(Force::Yes).unwrap();
    assert_eq!(fs::read(scratch.at("config.json")).unwrap(), b"one", "whoever mounted it unmounts it");
    unmount_by_hand(&scratch.mnt());
    assert!(session.wait(Some(Duration::from_secs(10))));
}
