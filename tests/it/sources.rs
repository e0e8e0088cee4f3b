//! Sources: what they list, what they refuse, and what they say when a file changes.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::Duration,
};

use quantfs::source::{self, Caches, Error, LocalDir, Source};
use tempfile::TempDir;

use crate::common::{
    faults::{Fault, Faulty},
    promises,
};

/// A directory with these files; each holds its own path, times a few.
fn tree(files: &[&str]) -> TempDir {
    let dir = TempDir::new().unwrap();
    files.iter().for_each(|file| put(dir.path(), file));
    dir
}

fn put(dir: &Path, file: &str) {
    let path = dir.join(file);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, file.repeat(300)).unwrap();
}

fn paths(source: &dyn Source) -> Vec<&str> {
    source.entries().iter().map(|e| e.path.as_str()).collect()
}

fn refusal(result: Result<impl Sized, Error>) -> String {
    let error = result.err().expect("should be refused");
    error.to_string()
}

#[track_caller]
fn says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{message:?} should say {part:?}");
    }
}

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const OTHER: &str = "0123999999abcdef0123456789abcdef01234567";

/// A cache with one snapshot of `org/name`, laid out as the Hub's client does it.
fn cache() -> (TempDir, PathBuf) {
    let hub = TempDir::new().unwrap();
    let folder = hub.path().join("models--org--name");
    snapshot(&folder, COMMIT);
    (hub, folder)
}

fn snapshot(folder: &Path, commit: &str) {
    put(folder, "blobs/aaaa");
    put(folder, "blobs/bbbb");
    let dir = folder.join("snapshots").join(commit);
    fs::create_dir_all(dir.join("transformer")).unwrap();
    symlink("../../blobs/aaaa", dir.join("config.json")).unwrap();
    symlink("../../../blobs/bbbb", dir.join("transformer/model.safetensors")).unwrap();
}

fn set_ref(folder: &Path, name: &str, commit: &str) {
    let path = folder.join("refs").join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, commit).unwrap();
}

fn caches(hub: &TempDir) -> Caches {
    Caches { hub: vec![hub.path().join("absent"), hub.path().to_owned()] }
}

#[test]
fn a_directory_is_listed_with_what_is_below() {
    let dir = tree(&["b.txt", "a/z.json", "a.txt", "a/b/c.bin", ".git/config", ".DS_Store", "a/.cache/x", "empty"]);
    fs::write(dir.path().join("empty"), "").unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
    let source = LocalDir::open(dir.path()).unwrap();
    assert_eq!(paths(&source), ["a.txt", "a/b/c.bin", "a/z.json", "b.txt", "empty"]);
    assert!(source.entries()[4].is_empty());
    assert_eq!(source.repo(), None);
    promises::hold(&source);
}

#[test]
fn many_more_files_than_descriptors_are_read() {
    let names: Vec<_> = (0..200).map(|n| format!("f{n:03}")).collect();
    let dir = tree(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let source = LocalDir::open(dir.path()).unwrap();
    promises::hold(&source);
    let open = fs::read_dir("/proc/self/fd").unwrap().filter_map(|e| fs::read_link(e.unwrap().path()).ok());
    let ours = open.filter(|target| target.starts_with(dir.path())).count();
    assert!(ours <= 65, "64 files and the directory, not {ours}");
}

#[test]
fn a_single_file_is_a_source() {
    let dir = tree(&["x.safetensors", "y.bin"]);
    let source = source::open(dir.path().join("x.safetensors").to_str().unwrap(), &Caches::default()).unwrap();
    assert_eq!(paths(&*source), ["x.safetensors"]);
    promises::hold(&*source);
    says(&refusal(LocalDir::open(&dir.path().join("y.bin"))), &["y.bin", "neither a directory nor"]);

    let (_hub, folder) = cache();
    let source = LocalDir::open(&folder.join(format!("snapshots/{COMMIT}/transformer/model.safetensors"))).unwrap();
    assert_eq!(paths(&source), ["model.safetensors"]);
    assert_eq!(source.repo(), Some(("org/name", COMMIT)));
    promises::hold(&source);
}

#[test]
fn links_inside_are_followed() {
    let dir = tree(&["real/a", "real/b"]);
    symlink("real", dir.path().join("also")).unwrap();
    symlink("real/a", dir.path().join("a")).unwrap();
    let source = LocalDir::open(dir.path()).unwrap();
    assert_eq!(paths(&source), ["a", "also/a", "also/b", "real/a", "real/b"]);
    promises::hold(&source);
}

#[test]
fn links_that_lead_elsewhere_are_refused_by_name() {
    let outside = tree(&["secret"]);
    type Target<'a> = &'a dyn Fn(&Path) -> PathBuf;
    let cases: [(&str, Target<'_>, &str); 6] = [
        ("file", &|_| outside.path().join("secret"), "leads out of the source"),
        ("directory", &|_| outside.path().into(), "leads out of the source"),
        ("device", &|_| "/dev/null".into(), "leads out of the source"),
        ("dangling", &|_| "no-such".into(), "leads to no-such, which is not there"),
        ("self", &|_| "self".into(), "cannot be followed"),
        ("up", &|_| ".".into(), "leads back to"),
    ];
    for (name, target, what) in cases {
        let dir = tree(&["real/a"]);
        symlink(target(dir.path()), dir.path().join(name)).unwrap();
        says(&refusal(LocalDir::open(dir.path())), &[name, what]);
    }
    let dir = tree(&["real/a"]);
    symlink("..", dir.path().join("real/loop")).unwrap();
    says(&refusal(LocalDir::open(dir.path())), &["real/loop", "leads back to"]);
    let name = dir.path().file_name().unwrap().to_str().unwrap();
    fs::remove_file(dir.path().join("real/loop")).unwrap();
    fs::create_dir(dir.path().with_file_name(format!("{name}-twin"))).unwrap();
    symlink(format!("../{name}-twin"), dir.path().join("twin")).unwrap();
    let refused = refusal(LocalDir::open(dir.path()));
    fs::remove_dir(dir.path().with_file_name(format!("{name}-twin"))).unwrap();
    says(&refused, &["twin", "leads out of the source"]);
}

#[test]
fn links_that_multiply_are_refused_in_time() {
    let dir = tree(&["d0/a"]);
    for n in 1..40 {
        let here = dir.path().join(format!("d{n}"));
        fs::create_dir(&here).unwrap();
        symlink(format!("../d{}", n - 1), here.join("x")).unwrap();
        symlink(format!("../d{}", n - 1), here.join("y")).unwrap();
    }
    says(&refusal(LocalDir::open(dir.path())), &["over 200000 entries"]);
}

#[test]
fn names_that_are_no_text_are_refused() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tree(&["a"]);
    fs::write(dir.path().join(std::ffi::OsStr::from_bytes(b"b\xff")), "").unwrap();
    says(&refusal(LocalDir::open(dir.path())), &["not UTF-8"]);
}

#[test]
fn a_snapshot_is_found_by_name_and_revision() {
    let (hub, folder) = cache();
    let open = |what: &str| source::open(what, &caches(&hub));
    let only = open("org/name").unwrap();
    assert_eq!(paths(&*only), ["config.json", "transformer/model.safetensors"]);
    assert_eq!(only.repo(), Some(("org/name", COMMIT)));
    assert_eq!(only.name(), "org/name@0123456789ab");
    promises::hold(&*only);
    for revision in [COMMIT, "0123456"] {
        assert_eq!(open(&format!("org/name@{revision}")).unwrap().repo(), Some(("org/name", COMMIT)));
    }
    says(&refusal(open("org/name@main")), &["org/name@main", "no revision `main`", COMMIT]);

    snapshot(&folder, OTHER);
    says(&refusal(open("org/name")), &["several snapshots", COMMIT, OTHER]);
    says(&refusal(open("org/name@0123")), &["start of several commits"]);
    set_ref(&folder, "main", OTHER);
    set_ref(&folder, "refs/pr/1", COMMIT);
    assert_eq!(open("org/name").unwrap().repo(), Some(("org/name", OTHER)));
    assert_eq!(open("org/name@refs/pr/1").unwrap().repo(), Some(("org/name", COMMIT)));
    says(&refusal(open("org/name@v2")), &["no revision `v2`", "main", "refs/pr/1", COMMIT]);
    says(&refusal(open("org/name@")), &["no revision ``"]);
    set_ref(&folder, "main", "fedcba");
    says(&refusal(open("org/name")), &["`main` is commit fedcba, which is not downloaded"]);
}

#[test]
fn revisions_lead_nowhere_else() {
    let (hub, folder) = cache();
    fs::write(folder.join("planted"), COMMIT).unwrap();
    set_ref(&folder, "v1", COMMIT);
    says(&refusal(source::open("org/name@../planted", &caches(&hub))), &["no revision"]);
    set_ref(&folder, "up", "../../../elsewhere");
    says(&refusal(source::open("org/name@up", &caches(&hub))), &["no revision"]);
}

#[test]
fn what_is_not_found_says_where_it_was_looked_for() {
    let (hub, _) = cache();
    let missing = refusal(source::open("org/other", &caches(&hub)));
    says(
        &missing,
        &["org/other", "models--org--other", hub.path().to_str().unwrap(), "absent", "hf download org/other"],
    );
    says(&refusal(source::open("/no/such/dir", &caches(&hub))), &["/no/such/dir: no such file or directory"]);
    says(&refusal(source::open("x.safetensors", &caches(&hub))), &["x.safetensors: no such file or directory"]);
    says(&refusal(source::open("gpt2", &Caches::default())), &["gpt2", "no cache is known"]);
}

#[test]
fn single_names_and_moved_caches_work() {
    let hub = TempDir::new().unwrap();
    let elsewhere = TempDir::new().unwrap();
    snapshot(&elsewhere.path().join("moved"), COMMIT);
    symlink(elsewhere.path().join("moved"), hub.path().join("models--gpt2")).unwrap();
    let source = source::open("gpt2", &caches(&hub)).unwrap();
    assert_eq!(source.repo(), Some(("gpt2", COMMIT)));
    promises::hold(&*source);
}

#[test]
fn an_incomplete_snapshot_names_the_file() {
    let (hub, folder) = cache();
    fs::remove_file(folder.join("blobs/bbbb")).unwrap();
    says(
        &refusal(source::open("org/name", &caches(&hub))),
        &["transformer/model.safetensors", "snapshot is incomplete"],
    );
}

#[test]
fn snapshots_are_confined_to_their_own_blobs() {
    let (hub, folder) = cache();
    put(hub.path(), "models--org--other/blobs/cccc");
    symlink("../../../models--org--other/blobs/cccc", folder.join(format!("snapshots/{COMMIT}/stolen"))).unwrap();
    says(&refusal(source::open("org/name", &caches(&hub))), &["stolen", "leads out of the source"]);
}

/// Opens a source of one file, reads it, does something to the file, reads again.
fn after(change: impl Fn(&Path)) -> Result<(), Error> {
    let dir = tree(&["sub/f"]);
    let source = LocalDir::open(dir.path()).unwrap();
    let id = source.find("sub/f").unwrap();
    let mut buf = [0; 100];
    source.read_exact_at(id, 0, &mut buf).unwrap();
    change(&dir.path().join("sub/f"));
    let again = source.read_exact_at(id, 50, &mut buf);
    assert_eq!(again.is_ok(), source.local_file(id).is_some(), "a descriptor is given only of what was listed");
    again
}

#[test]
fn a_change_is_reported_whatever_it_was() {
    // Longer than any tick of the clock that file systems stamp with.
    let tick = || std::thread::sleep(Duration::from_millis(50));
    type Change<'a> = &'a dyn Fn(&Path);
    let changes: [(&str, Change<'_>, &str); 8] = [
        ("grows", &|f| fs::write(f, "x".repeat(9000)).unwrap(), "bytes and has"),
        ("shrinks", &|f| fs::write(f, "x").unwrap(), "bytes and has 1"),
        (
            "same length",
            &|f| {
                tick();
                fs::write(f, "y".repeat(1500)).unwrap();
            },
            "written to",
        ),
        ("vanishes", &|f| fs::remove_file(f).unwrap(), "gone"),
        ("directory vanishes", &|f| fs::remove_dir_all(f.parent().unwrap()).unwrap(), "gone"),
        (
            "replaced",
            &|f| {
                fs::rename(f, f.with_extension("old")).unwrap();
                fs::copy(f.with_extension("old"), f).unwrap();
            },
            "another file",
        ),
        (
            "becomes a link",
            &|f| {
                fs::rename(f, f.with_extension("old")).unwrap();
                symlink("f.old", f).unwrap();
            },
            "no regular file",
        ),
        (
            "becomes a directory",
            &|f| {
                fs::remove_file(f).unwrap();
                fs::create_dir(f).unwrap();
            },
            "no regular file",
        ),
    ];
    for (name, change, what) in changes {
        let error = after(change).expect_err(name);
        assert!(matches!(error, Error::Changed { .. }), "{name}: {error}");
        says(&error.to_string(), &["sub/f: changed", what, "start again"]);
    }
    after(|_| {}).unwrap();
}

#[test]
fn other_files_go_on_when_one_changes() {
    let dir = tree(&["a", "b"]);
    let source = LocalDir::open(dir.path()).unwrap();
    fs::remove_file(dir.path().join("a")).unwrap();
    assert!(source.read_exact_at(source.find("a").unwrap(), 0, &mut [0]).is_err());
    promises::content(&source, source.find("b").unwrap());
}

#[test]
fn a_moved_directory_is_still_the_one_that_was_opened() {
    let dir = tree(&["model/sub/f"]);
    let source = LocalDir::open(&dir.path().join("model")).unwrap();
    fs::rename(dir.path().join("model"), dir.path().join("moved")).unwrap();
    put(dir.path(), "model/sub/f");
    promises::hold(&source);
}

#[test]
fn planted_faults_strike_where_they_should() {
    let dir = tree(&["a"]);
    let open = |fault| Faulty::new(LocalDir::open(dir.path()).unwrap(), fault);
    let read = |source: &dyn Source| source.read_exact_at(source.find("a").unwrap(), 3, &mut [0; 10]);
    let counting = open(Fault::Nothing);
    promises::hold(&counting);
    assert!(counting.reads() > 0 && counting.bytes() > 0);
    let failing = open(Fault::Fails(1));
    assert!(read(&failing).is_ok());
    says(&read(&failing).unwrap_err().to_string(), &["a: cannot read at offset 3"]);
    assert!(read(&failing).is_ok());
    let changing = open(Fault::Changes(1));
    assert!(read(&changing).is_ok());
    assert!((0..2).all(|_| matches!(read(&changing), Err(Error::Changed { .. }))));
    let start = std::time::Instant::now();
    read(&open(Fault::Slow(Duration::from_millis(20)))).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(20));
    let panicking = open(Fault::Panics(0));
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| read(&panicking))).is_err());
}
