//! `--cache-dir`: mounts that find on disk what earlier ones have encoded.

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::{Signal, kill_process};

use crate::{
    daemon::{Model, quantfs, refused, text, within},
    mount::{can_mount, can_mount_as_root},
};

/// A model, and a directory beside it.
struct Cached {
    model: Model,
}

impl Cached {
    fn new() -> Self {
        Self { model: Model::new() }
    }

    fn dir(&self) -> PathBuf {
        self.model.dir.path().canonicalize().unwrap().join("cache")
    }

    /// The flag, with a size behind the directory.
    fn flag(&self, size: &str) -> String {
        format!("--cache-dir={}{size}", self.dir().display())
    }

    /// Mounts, reads the weights, and unmounts: what was read, and the last status.
    fn run(&self, more: &[&str]) -> (Vec<u8>, serde_json::Value) {
        self.model.mounted(more);
        let read = fs::read(self.model.weights()).unwrap();
        let status = self.model.status();
        let out = self.model.umount(&[]);
        assert!(out.status.success(), "{}", text(&out));
        (read, status)
    }

    /// The data files.
    fn data(&self) -> Vec<PathBuf> {
        let all = fs::read_dir(self.dir().join("v1")).unwrap().map(|entry| entry.unwrap().path());
        all.filter(|path| path.extension().is_some_and(|kind| kind == "data")).collect()
    }
}

fn count(status: &serde_json::Value, name: &str) -> u64 {
    status["counters"][name].as_u64().unwrap_or_else(|| panic!("no {name} in {status}"))
}

#[test]
fn a_finished_file_is_passed_through_by_the_next_mount() {
    if !can_mount_as_root() {
        return;
    }
    let cached = Cached::new();
    let (want, _) = cached.run(&[]);
    let (first, status) = cached.run(&[&cached.flag("")]);
    assert!(first == want && count(&status, "tiles") > 0 && status["passed_through"] == 0);
    cached.model.mounted(&[&cached.flag("")]);
    let open = File::open(cached.model.weights()).unwrap();
    let status = cached.model.status();
    assert_eq!((&status["passed_through"], count(&status, "store_sealed")), (&1.into(), 1), "{status}");
    assert!(fs::read(cached.model.weights()).unwrap() == want);
    // The proof that it is the kernel who reads: a change in place shows.
    File::options().write(true).open(&cached.data()[0]).unwrap().write_all_at(b"PLANTED", 100).unwrap();
    let mut buf = [0; 7];
    open.read_exact_at(&mut buf, 100).unwrap();
    assert_eq!(&buf, b"PLANTED");
    let status = cached.model.status();
    assert_eq!((count(&status, "tiles"), count(&status, "reads")), (0, 0));
    drop(open);
    let text = String::from_utf8(quantfs(&["status"]).arg(cached.model.mnt()).output().unwrap().stdout).unwrap();
    assert!(text.contains("on disk"), "{text}");
    assert!(cached.model.umount(&[]).status.success());
    // What was planted is seen by the next mount, which reads the piece again.
    let (healed, status) = cached.run(&[&cached.flag("")]);
    assert!(healed == want && status["passed_through"] == 0, "{status}");
    assert!(cached.run(&[&cached.flag("")]).1["passed_through"] == 1, "and whole again");
}

#[test]
fn without_passthrough_tiles_are_read_and_not_encoded() {
    if !can_mount() {
        return;
    }
    let cached = Cached::new();
    let (want, _) = cached.run(&["--bits", "8"]);
    let options = format!("cache_dir={}:64MiB,bits=8,passthrough=off", cached.dir().display());
    for (mount, encodes) in [(0, true), (1, false)] {
        let (read, status) = cached.run(&["-o", &options]);
        assert!(read == want, "mount {mount}");
        assert_eq!(status["passed_through"], 0);
        assert_eq!(count(&status, "tiles") > 0, encodes, "{status}");
        assert_eq!(count(&status, "store_hits") > 0, !encodes, "{status}");
        assert_eq!(count(&status, "store_limit"), 64 << 20);
    }
    for path in cached.data() {
        let file = File::options().read(true).write(true).open(path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, 200_000).unwrap();
        file.write_all_at(&[!byte[0]], 200_000).unwrap();
    }
    let (read, status) = cached.run(&["-o", &options]);
    assert!(read == want && count(&status, "store_corrupt") == 1, "{status}");
}

#[test]
fn a_source_that_was_rewritten_is_encoded_anew() {
    if !can_mount() {
        return;
    }
    let cached = Cached::new();
    let (before, _) = cached.run(&[&cached.flag("")]);
    let path = cached.model.source().join("model.safetensors");
    let found = fs::metadata(&path).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    let len = bytes.len();
    bytes[len / 2..len / 2 + 4096].rotate_left(1);
    // In place, as long, and a moment later.
    File::options().write(true).open(&path).unwrap().write_all(&bytes).unwrap();
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_modified(found.modified().unwrap() + Duration::from_nanos(1))
        .unwrap();
    let (read, status) = cached.run(&[&cached.flag("")]);
    let (want, _) = cached.run(&[]);
    assert!(want != before && read == want && count(&status, "store_hits") == 0, "{status}");
}

#[test]
fn two_daemons_share_a_directory() {
    if !can_mount() {
        return;
    }
    let cached = Cached::new();
    let (want, _) = cached.run(&[]);
    let second = cached.model.dir.path().canonicalize().unwrap().join("second");
    fs::create_dir(&second).unwrap();
    let guard = Second(&second);
    for _ in 0..2 {
        let out = quantfs(&["mount", &cached.flag("")]).arg(cached.model.source()).arg(&second).output().unwrap();
        assert!(out.status.success(), "{}", text(&out));
        cached.model.mounted(&[&cached.flag("")]);
        std::thread::scope(|scope| {
            for root in [cached.model.mnt(), second.clone(), cached.model.mnt(), second.clone()] {
                let want = &want;
                scope.spawn(move || assert!(fs::read(root.join("model.safetensors")).unwrap() == *want));
            }
        });
        for mnt in [&cached.model.mnt(), &second] {
            assert!(quantfs(&["umount"]).arg(mnt).output().unwrap().status.success());
        }
    }
    drop(guard);
    assert_eq!(cached.data().len(), 1);
}

/// Nothing may be left mounted.
struct Second<'a>(&'a Path);

impl Drop for Second<'_> {
    fn drop(&mut self) {
        quantfs(&["umount", "--force"]).arg(self.0).output().ok();
    }
}

#[test]
fn a_daemon_that_is_killed_while_it_writes_leaves_nothing_wrong() {
    if !can_mount() {
        return;
    }
    let cached = Cached::new();
    let (want, _) = cached.run(&["--bits", "8"]);
    for wait in [0, 1, 2, 5, 10, 20, 40, 100] {
        cached.model.mounted(&["--bits", "8", &cached.flag("")]);
        let pid = cached.model.pid();
        let mut part = vec![0; want.len() / 2];
        File::open(cached.model.weights()).unwrap().read_exact(&mut part).unwrap();
        assert!(part == want[..part.len()]);
        std::thread::sleep(Duration::from_millis(wait));
        kill_process(pid, Signal::KILL).unwrap();
        within(Duration::from_secs(10), "the daemon's end", || fs::read_dir(cached.model.mnt()).is_err());
    }
    let (read, _) = cached.run(&["--bits", "8", &cached.flag("")]);
    assert!(read == want);
    let (again, status) = cached.run(&["--bits", "8", &cached.flag("")]);
    assert!(again == want && count(&status, "store_sealed") == 1, "{status}");
}

/// 1 MiB, give or take some blocks of the file system.
const MOST: u64 = (1 << 20) + (32 << 10);

#[test]
fn a_small_size_lets_the_oldest_go() {
    if !can_mount() {
        return;
    }
    let cached = Cached::new();
    let specs = ["4bit", "8bit", "8bit-g32", "4bit-g32"];
    let want: Vec<_> = specs.iter().map(|spec| cached.run(&["--spec", spec]).0).collect();
    for round in 0..2 {
        for (spec, want) in specs.iter().zip(&want) {
            let (read, status) = cached.run(&["--spec", spec, &cached.flag(":1MiB")]);
            assert!(read == *want, "{spec}");
            assert!(count(&status, "store_bytes") <= MOST, "round {round}, {spec}: {status}");
        }
    }
    let held: u64 = cached.data().iter().map(|path| fs::metadata(path).unwrap().blocks() * 512).sum();
    assert!(held <= MOST && cached.data().len() < specs.len(), "{held}");
    let (read, status) = cached.run(&["--spec", specs[3], &cached.flag(":1MiB"), "--passthrough", "off"]);
    assert!(read == want[3] && count(&status, "tiles") == 0, "the last one is there: {status}");
}

#[test]
fn a_directory_that_cannot_be_one_is_refused() {
    if !can_mount() {
        return;
    }
    let cached = Cached::new();
    let model = &cached.model;
    let inside = format!("--cache-dir={}", model.source().join("cache").display());
    refused(&model.mount(&[&inside]), 1, &["--cache-dir", "lies in the source"]);
    let over = format!("--cache-dir={}", model.mnt().display());
    refused(&model.mount(&[&over]), 1, &["--cache-dir", "mount point"]);
    fs::write(cached.dir(), "a file").unwrap();
    refused(&model.mount(&[&cached.flag("")]), 1, &["cache/v1", "cannot keep files there"]);
    refused(&model.mount(&[&cached.flag(":5XB")]), 2, &["--cache-dir", "5XB"]);
    assert!(!model.is_mounted() && !model.source().join("cache").exists());
}

#[test]
fn a_directory_that_goes_away_is_no_readers_error() {
    if !can_mount() {
        return;
    }
    let cached = Cached::new();
    let (want, _) = cached.run(&[]);
    cached.model.mounted(&[&cached.flag("")]);
    fs::remove_dir_all(cached.dir()).unwrap();
    assert!(fs::read(cached.model.weights()).unwrap() == want);
    assert_eq!(count(&cached.model.status(), "errors"), 0);
}

/// A small ext4 of its own, thawed and unmounted at the end.
struct Disk<'a>(&'a Path);

impl Disk<'_> {
    fn run(program: &str, args: &[&str]) -> bool {
        std::process::Command::new(program).args(args).output().is_ok_and(|out| out.status.success())
    }
}

impl<'a> Disk<'a> {
    /// `None` where it cannot be made.
    fn new(at: &'a Path, image: &str) -> Option<Self> {
        File::create(image).unwrap().set_len(64 << 20).unwrap();
        fs::create_dir(at).unwrap();
        let made = Self::run("mkfs.ext4", &["-q", "-F", image]);
        (made && Self::run("mount", &["-o", "loop", image, at.to_str().unwrap()])).then_some(Self(at))
    }

    fn freeze(&self, flag: &str) -> bool {
        Self::run("fsfreeze", &[flag, self.0.to_str().unwrap()])
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        self.freeze("-u");
        Self::run("umount", &["--lazy", self.0.to_str().unwrap()]);
    }
}

#[test]
fn a_disk_that_hangs_in_writing_hangs_no_reader() {
    if !can_mount_as_root() {
        return;
    }
    let cached = Cached::new();
    let (at, image) = (cached.dir(), cached.model.dir.path().join("image"));
    let Some(disk) = Disk::new(&at, image.to_str().unwrap()) else {
        writeln!(std::io::stderr(), "SKIPPED: no loop device, or no mkfs.ext4").unwrap();
        return;
    };
    let (want, _) = cached.run(&[]);
    cached.model.mounted(&[&cached.flag("")]);
    assert!(disk.freeze("-f"));
    let path = cached.model.weights();
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || tell.send(fs::read(path).unwrap()).ok());
    let read = told.recv_timeout(Duration::from_secs(20));
    let status = cached.model.status();
    assert!(disk.freeze("-u"));
    assert!(read.expect("an answer in time") == want);
    assert_eq!((count(&status, "errors"), count(&status, "store_sealed")), (0, 0), "{status}");
    assert!(cached.model.umount(&[]).status.success());
    let (again, status) = cached.run(&[&cached.flag("")]);
    assert!(again == want && count(&status, "store_sealed") == 1, "what waited was stored: {status}");
}
