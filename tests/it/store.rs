//! Finished files on disk: whatever is planted there, a piece comes back as it was stored or not at all.

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use proptest::prelude::*;
use quantfs::{
    plan::{Plan, Planned},
    quant::Axis,
    source::{Source, Version},
    store::{Entry, Error, Layout, Loaded, Options, Store, lies_in},
    tensor::Float,
    view::{self, Engine, SourceCache, View},
};
use tempfile::TempDir;

use crate::common::memory::{self, Memory, Random, Toy, materialize, plain, planned, run};

/// A file of pieces of several lengths, and its bytes.
fn file(seed: u64) -> (Layout, Vec<u8>) {
    let mut random = Random::new(seed);
    let starts: Vec<u64> = vec![0, 100, 5000, 5001, 70_000];
    let bytes = random.bytes(200_123);
    let mut digest = [0; 32];
    digest.copy_from_slice(&random.bytes(32));
    (Layout { digest, len: bytes.len() as u64, starts }, bytes)
}

fn open(dir: &Path) -> Arc<Store> {
    Store::open(&Options { dir: dir.to_owned(), limit: Some(1 << 30) }).unwrap()
}

fn piece<'a>(layout: &Layout, bytes: &'a [u8], piece: usize) -> &'a [u8] {
    let range = layout.range(piece);
    &bytes[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()]
}

fn load(entry: &Entry, number: usize) -> (Loaded, Vec<u8>) {
    let range = entry.layout().range(number);
    let mut buf = vec![0; usize::try_from(range.end - range.start).unwrap()];
    (entry.load(number, &mut buf), buf)
}

/// Stores what is missing.
fn fill(entry: &Entry, bytes: &[u8]) {
    for number in entry.missing() {
        assert!(entry.keep(number, piece(entry.layout(), bytes, number)));
    }
}

/// What every piece is now; whole ones are compared.
fn states(entry: &Entry, bytes: &[u8]) -> Vec<Loaded> {
    let check = |number| {
        let (loaded, found) = load(entry, number);
        assert!(loaded != Loaded::Whole || found == piece(entry.layout(), bytes, number), "piece {number}");
        loaded
    };
    (0..entry.layout().pieces()).map(check).collect()
}

/// A store with one sealed entry, closed.
fn sealed(seed: u64) -> (TempDir, Layout, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let (layout, bytes) = file(seed);
    let store = open(dir.path());
    let entry = store.entry(layout.clone()).unwrap();
    fill(&entry, &bytes);
    assert!(entry.seal());
    (dir, layout, bytes)
}

fn paths(dir: &Path, kind: &str) -> Vec<PathBuf> {
    let all = fs::read_dir(dir.join("v1")).unwrap().map(|entry| entry.unwrap().path());
    all.filter(|path| path.extension().is_some_and(|found| found == kind)).collect()
}

fn only(dir: &Path, kind: &str) -> PathBuf {
    let mut found = paths(dir, kind);
    assert_eq!(found.len(), 1);
    found.remove(0)
}

fn contents(file: impl Into<File>) -> Vec<u8> {
    let mut file: File = file.into();
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

const WHOLE: [Loaded; 5] = [Loaded::Whole; 5];
const ABSENT: [Loaded; 5] = [Loaded::Absent; 5];

#[test]
fn pieces_come_back_and_a_whole_file_is_sealed() {
    let dir = tempfile::tempdir().unwrap();
    let (layout, bytes) = file(1);
    let store = open(&dir.path().join("made/for/it"));
    let entry = store.entry(layout.clone()).unwrap();
    assert_eq!(states(&entry, &bytes), ABSENT);
    assert!(entry.keep(2, piece(&layout, &bytes, 2)));
    assert_eq!(entry.missing(), [0, 1, 3, 4]);
    assert!(!entry.seal(), "pieces are missing");
    assert!(entry.finished().is_none());
    fill(&entry, &bytes);
    assert!(entry.finished().is_none(), "not sealed");
    assert!(entry.seal() && entry.is_sealed());
    assert!(contents(entry.finished().unwrap()) == bytes);
    drop(entry);
    let again = store.entry(layout).unwrap();
    assert!(again.is_sealed() && store.sealed() == 1);
    assert!(contents(again.finished().unwrap()) == bytes, "and in the next mount");
    assert_eq!(states(&again, &bytes), WHOLE);
    for path in fs::read_dir(store.path()).unwrap().map(|entry| entry.unwrap().path()) {
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600, "{path:?}");
    }
    assert_eq!(fs::metadata(store.path()).unwrap().mode() & 0o777, 0o700);
}

#[test]
fn another_digest_is_another_file() {
    let (dir, layout, bytes) = sealed(2);
    let other = Layout { digest: [7; 32], ..layout.clone() };
    let store = open(dir.path());
    assert_eq!(states(&store.entry(other.clone()).unwrap(), &bytes), ABSENT);
    // Not even where somebody renames one to the other.
    let name = |digest: &[u8]| digest[..16].iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    for kind in ["data", "sums"] {
        let path = |layout: &Layout| store.path().join(format!("{}.{kind}", name(&layout.digest)));
        fs::rename(path(&layout), path(&other)).unwrap();
    }
    let entry = store.entry(other).unwrap();
    assert!(!entry.is_sealed() && states(&entry, &bytes) == ABSENT);
    // Nor where bytes and checksums of the one lie in the files of the other.
    fill(&store.entry(layout.clone()).unwrap(), &bytes);
    let (from, to) = (name(&layout.digest), name(&entry.layout().digest));
    for (kind, start) in [("data", 0), ("sums", 128)] {
        let bytes = fs::read(store.path().join(format!("{from}.{kind}"))).unwrap();
        let file = File::options().write(true).open(store.path().join(format!("{to}.{kind}"))).unwrap();
        file.write_all_at(&bytes[start..], start as u64).unwrap();
    }
    assert_eq!(states(&entry, &bytes), [Loaded::Corrupt; 5]);
}

/// Every byte of every piece, one at a time in a few places, while nobody looks and while somebody does.
#[test]
fn a_flipped_byte_is_a_miss_and_heals() {
    let (dir, layout, bytes) = sealed(3);
    for (number, at) in [(0, 0), (1, 100), (2, 5000), (3, 5001), (3, 69_999), (4, 200_122)] {
        for while_open in [false, true] {
            let store = open(dir.path());
            let early = while_open.then(|| store.entry(layout.clone()).unwrap());
            flip(&only(dir.path(), "data"), at);
            let entry = early.unwrap_or_else(|| store.entry(layout.clone()).unwrap());
            assert!(entry.finished().is_none(), "touched since it was sealed");
            let mut expected = WHOLE;
            expected[number] = Loaded::Corrupt;
            assert_eq!(states(&entry, &bytes), expected, "byte {at}");
            assert_eq!(entry.missing(), [number], "struck out");
            fill(&entry, &bytes);
            assert_eq!(states(&entry, &bytes), WHOLE);
            assert!(entry.seal(), "and is sealed again");
            assert!(contents(entry.finished().unwrap()) == bytes);
        }
    }
}

fn flip(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

#[test]
fn a_file_that_was_cut_is_encoded_anew() {
    for (kind, while_open) in [("data", false), ("sums", false), ("data", true), ("sums", true)] {
        let (dir, layout, bytes) = sealed(4);
        let store = open(dir.path());
        let early = while_open.then(|| store.entry(layout.clone()).unwrap());
        File::options().write(true).open(only(dir.path(), kind)).unwrap().set_len(80).unwrap();
        let entry = early.unwrap_or_else(|| store.entry(layout.clone()).unwrap());
        assert!(entry.finished().is_none());
        assert!(!states(&entry, &bytes).contains(&Loaded::Whole), "{kind}, {while_open}");
        if !while_open {
            fill(&entry, &bytes);
            assert!(entry.seal() && contents(entry.finished().unwrap()) == bytes);
        }
    }
}

#[test]
fn a_record_of_garbage_is_believed_in_nothing() {
    let mut random = Random::new(5);
    for from in [0u64, 64, 128, 136] {
        let (dir, layout, bytes) = sealed(6);
        let path = only(dir.path(), "sums");
        let garbage = random.bytes(usize::try_from(fs::metadata(&path).unwrap().len() - from).unwrap());
        File::options().write(true).open(&path).unwrap().write_all_at(&garbage, from).unwrap();
        let entry = open(dir.path()).entry(layout).unwrap();
        assert!(entry.finished().is_none(), "garbage from {from} on");
        // Compared there: what is whole is right.
        states(&entry, &bytes);
        fill(&entry, &bytes);
        assert_eq!(states(&entry, &bytes), WHOLE);
        assert!(entry.seal() && contents(entry.finished().unwrap()) == bytes);
    }
}

#[test]
fn what_is_no_file_of_ours_is_left_alone() {
    let pipe = rustix::fs::FileType::Fifo;
    let plant = |what, at: &Path, victim: &Path| match what {
        "link" => symlink(victim, at).unwrap(),
        "directory" => fs::create_dir(at).unwrap(),
        "pipe" => rustix::fs::mknodat(rustix::fs::CWD, at, pipe, 0o600.into(), 0).unwrap(),
        _ => fs::write(at, "foreign").unwrap(),
    };
    for what in ["link", "directory", "pipe", "file"] {
        for kind in ["data", "sums"] {
            let (dir, layout, bytes) = sealed(7);
            let (path, victim) = (only(dir.path(), kind), dir.path().join("victim"));
            fs::write(&victim, "untouched").unwrap();
            fs::remove_file(&path).unwrap();
            plant(what, &path, &victim);
            let entry = open(dir.path()).entry(layout);
            assert_eq!(entry.is_ok(), what == "file", "a {what} as {kind}");
            if let Ok(entry) = entry {
                states(&entry, &bytes);
                fill(&entry, &bytes);
                assert_eq!(states(&entry, &bytes), WHOLE);
            }
            assert_eq!(fs::read(&victim).unwrap(), b"untouched");
        }
    }
}

#[test]
fn a_directory_of_others_is_no_store() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { dir: dir.path().to_owned(), limit: None };
    drop(Store::open(&options).unwrap());
    let version = dir.path().join("v1");
    fs::set_permissions(&version, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(Store::open(&options), Err(Error::Refused { .. })), "others could write");
    fs::remove_dir_all(&version).unwrap();
    fs::create_dir(dir.path().join("elsewhere")).unwrap();
    symlink(dir.path().join("elsewhere"), &version).unwrap();
    assert!(matches!(Store::open(&options), Err(Error::Io { .. })), "a link");
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(matches!(Store::open(&Options { dir: file, limit: None }), Err(Error::Io { .. })));
}

#[test]
fn two_writers_of_an_entry_agree() {
    let dir = tempfile::tempdir().unwrap();
    let (layout, bytes) = file(8);
    let (one, two) = (open(dir.path()).entry(layout.clone()).unwrap(), open(dir.path()).entry(layout).unwrap());
    std::thread::scope(|scope| {
        for entry in [&one, &two, &one, &two] {
            scope.spawn(|| fill(entry, &bytes));
        }
    });
    assert_eq!(states(&one, &bytes), WHOLE);
    assert_eq!(states(&two, &bytes), WHOLE);
    while let Some(number) = one.unchecked() {
        assert_eq!(load(&one, number).0, Loaded::Whole);
    }
    assert!(one.seal(), "what the other wrote was checked");
    assert!(contents(two.finished().unwrap()) == bytes);
}

#[test]
fn what_another_wrote_is_sealed_only_when_it_was_checked() {
    let dir = tempfile::tempdir().unwrap();
    let (layout, bytes) = file(9);
    let (one, two) = (open(dir.path()).entry(layout.clone()).unwrap(), open(dir.path()).entry(layout).unwrap());
    fill(&one, &bytes);
    assert!(!two.seal());
    while let Some(number) = two.unchecked() {
        assert_eq!(load(&two, number).0, Loaded::Whole);
    }
    flip(&only(dir.path(), "data"), 6000);
    assert!(!two.seal() && !one.seal(), "touched after it was checked");
    assert_eq!(states(&two, &bytes)[3], Loaded::Corrupt);
}

#[test]
fn entries_used_longest_ago_go_first_and_those_in_use_stay() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&Options { dir: dir.path().to_owned(), limit: Some(700 << 10) }).unwrap();
    let files: Vec<_> = (10..14).map(file).collect();
    let stored = |number: usize| {
        let (layout, bytes) = &files[number];
        let entry = store.entry(layout.clone()).unwrap();
        entry.missing().into_iter().all(|n| entry.keep(n, piece(layout, bytes, n))).then_some(entry)
    };
    let has = |number: usize| {
        let name: String = files[number].0.digest[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        store.path().join(name + ".data").exists()
    };
    drop((stored(0).unwrap(), stored(1).unwrap(), stored(2).unwrap()));
    // Used again: now the second is the oldest.
    drop(stored(0).unwrap());
    let last = stored(3).unwrap();
    assert_eq!((0..4).map(has).collect::<Vec<_>>(), [true, false, true, true]);
    assert!(store.bytes() <= 700 << 10);
    let (used, also) = (stored(0).unwrap(), stored(2).unwrap());
    assert!(stored(1).is_none(), "all others are in use");
    assert_eq!(states(&used, &files[0].1), WHOLE);
    assert_eq!(states(&also, &files[2].1), WHOLE);
    assert_eq!(states(&last, &files[3].1), WHOLE);
}

#[test]
fn a_directory_that_vanishes_or_fails_is_nobodys_error() {
    let (dir, layout, bytes) = sealed(15);
    let store = open(dir.path());
    let entry = store.entry(layout).unwrap();
    fs::remove_dir_all(store.path()).unwrap();
    assert_eq!(states(&entry, &bytes), WHOLE, "open files live on");
    assert!(entry.finished().is_none(), "it has no name to be opened by");
    assert!(store.entry(file(16).0).is_err());
}

#[test]
fn a_place_below_another_is_seen_through_links_and_before_it_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    symlink(&source, dir.path().join("link")).unwrap();
    for below in ["source", "source/not/made", "link/x", "source/../source/x"] {
        assert!(lies_in(&dir.path().join(below), &source), "{below}");
    }
    for beside in ["sourc", "source2", "not/made", "."] {
        assert!(!lies_in(&dir.path().join(beside), &source), "{beside}");
    }
}

/// A file system of its own, unmounted at the end.
struct Small(TempDir);

impl Small {
    /// `None` where it cannot be made.
    fn new(bytes: usize) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let options = std::ffi::CString::new(format!("size={bytes}")).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", dir.path(), "tmpfs", flags, options.as_c_str()).ok()?;
        Some(Self(dir))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH).ok();
    }
}

#[test]
fn a_full_disk_stops_the_store_and_nothing_else() {
    let Some(small) = Small::new(256 << 10) else {
        writeln!(std::io::stderr(), "SKIPPED: only root can mount a small file system").unwrap();
        return;
    };
    let store = open(small.0.path());
    let (one, two) = (file(17), file(18));
    let entry = store.entry(one.0).unwrap();
    fill(&entry, &one.1);
    let full = store.entry(two.0.clone()).unwrap();
    let kept = full.missing().into_iter().filter(|n| full.keep(*n, piece(&two.0, &two.1, *n))).count();
    assert!(kept < 5 && store.is_stopped());
    assert_eq!(states(&entry, &one.1), WHOLE);
    assert!(states(&full, &two.1).contains(&Loaded::Absent));
    assert!(!full.seal());
}

/// Of the weights of a [`Model`].
const TILES: usize = 11 + 7 + 5;

const SOON: Duration = Duration::from_secs(30);

/// A plan of two files that share a weight's parts, and its schemes.
struct Model {
    plan: Plan,
    source: Arc<Memory>,
    toys: Vec<Arc<Toy>>,
    want: Vec<Vec<u8>>,
}

impl Model {
    fn new(seed: u64) -> Self {
        Self::of(Random::new(seed).bytes(400_000))
    }

    fn of(source: Vec<u8>) -> Self {
        let source = Arc::new(Memory::new(vec![source]));
        let toys: Vec<_> = [Axis::Flat, Axis::Rows, Axis::Columns].map(|axis| Toy::new(axis, 4)).into();
        let weight = |(i, toy): (usize, &Arc<Toy>)| -> Planned {
            let origin = plain(vec![run(0, i as u64 * 100_000, 50 * 600, 2)], Float::Bf16);
            planned(&format!("w{i}"), vec![50, 600], origin, Arc::clone(toy), [700, 2, 30][i])
        };
        let weights: Vec<Planned> = toys.iter().enumerate().map(weight).collect();
        let one = memory::Layout::new("one").bytes(b"header").weight(0, &weights[0]).source(0, 5, 100_000);
        let two = memory::Layout::new("two").weight(1, &weights[1]).bytes(b"").weight(2, &weights[2]);
        let none = memory::Layout::new("untouched").source(0, 0, 400_000);
        let plan = Plan { files: vec![one.file, two.file, none.file], weights, ..Plan::default() };
        let want = materialize(&plan, &source);
        let model = Self { plan, source, toys, want };
        model.encoded();
        model
    }

    fn view(&self, store: Option<Arc<Store>>) -> Arc<View> {
        let options = view::Options {
            cache_bytes: 0,
            threads: 3,
            readahead_bytes: 0,
            deadline: SOON,
            source_cache: SourceCache::Keep,
        };
        let engine = Engine::with_store(options, store).unwrap();
        View::new(Arc::new(self.plan.clone()), Arc::clone(&self.source) as Arc<dyn Source>, engine)
    }

    /// A view that has read everything and stored it.
    fn stored(&self, dir: &Path) {
        let view = self.view(Some(open(dir)));
        self.check(&view);
        assert!(view.settle(SOON));
    }

    /// Reads every file and compares it.
    fn check(&self, view: &Arc<View>) {
        for (file, want) in self.want.iter().enumerate() {
            let mut buf = vec![0; want.len()];
            assert_eq!(view.read_at(file, 0, &mut buf).unwrap(), want.len());
            assert!(buf == *want, "file {file}");
        }
    }

    /// Tiles encoded since the last call.
    fn encoded(&self) -> usize {
        self.toys.iter().map(|toy| toy.encoded.swap(0, SeqCst)).sum()
    }
}

#[test]
fn a_second_mount_encodes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let model = Model::new(20);
    let view = model.view(Some(open(dir.path())));
    assert!(view.local_file(0).is_none() && view.may_be_local(0) && view.may_be_local(2));
    model.check(&view);
    assert!(view.settle(SOON));
    assert!(model.encoded() >= TILES);
    for (file, want) in model.want[..2].iter().enumerate() {
        assert!(contents(view.local_file(file).unwrap()) == *want, "finished while it is mounted");
    }
    drop(view);
    let view = model.view(Some(open(dir.path())));
    for (file, want) in model.want[..2].iter().enumerate() {
        assert!(contents(view.local_file(file).unwrap()) == *want);
    }
    model.check(&view);
    assert_eq!(model.encoded(), 0);
    let figures = view.engine().snapshot();
    assert_eq!((figures.store_sealed, figures.store_misses, figures.tiles), (2, 0, 0));
    assert!(figures.store_hits >= TILES as u64 && figures.store_bytes > 0 && figures.store_limit == 1 << 30);
    assert_eq!(paths(dir.path(), "data").len(), 2, "the untouched file lies in the source");
}

#[test]
fn a_file_is_finished_when_all_of_it_was_read_by_somebody() {
    let dir = tempfile::tempdir().unwrap();
    let model = Model::new(21);
    let len = model.want[1].len() as u64;
    for (from, to) in [(0, len / 2), (len / 2, len)] {
        let view = model.view(Some(open(dir.path())));
        assert!(view.local_file(1).is_none());
        let mut buf = vec![0; usize::try_from(to - from).unwrap()];
        view.read_at(1, from, &mut buf).unwrap();
        assert!(view.settle(SOON));
    }
    let view = model.view(Some(open(dir.path())));
    assert!(contents(view.local_file(1).unwrap()) == model.want[1]);
    assert!(view.local_file(0).is_none(), "nobody has read it");
}

#[test]
fn what_is_corrupt_is_encoded_anew_and_heals() {
    let dir = tempfile::tempdir().unwrap();
    let model = Model::new(22);
    model.stored(dir.path());
    assert!(model.encoded() >= TILES);
    for path in paths(dir.path(), "data") {
        flip(&path, 20_000);
    }
    let view = model.view(Some(open(dir.path())));
    assert!((0..2).all(|file| view.local_file(file).is_none()));
    model.check(&view);
    assert!(view.settle(SOON));
    // Once for each of its parts, where no cache keeps the others.
    assert!((2..=4).contains(&model.encoded()), "one tile of each file");
    assert_eq!(view.engine().snapshot().store_corrupt, 2);
    assert!(view.settle(SOON));
    for (file, want) in model.want[..2].iter().enumerate() {
        assert!(contents(view.local_file(file).unwrap()) == *want);
    }
}

#[test]
fn another_source_finds_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let model = Model::new(23);
    model.stored(dir.path());
    model.encoded();
    // Same length, times and inode; an element that is sampled is another.
    let mut bytes = model.source.files[0].clone();
    bytes[100] ^= 1;
    let changed = Model::of(bytes);
    changed.check(&changed.view(Some(open(dir.path()))));
    assert!(changed.encoded() >= TILES);
    // The same bytes in a file that was written anew.
    let mut newer = Model::new(23);
    newer.source = Arc::new(newer.source.with_version(Version { len: 400_000, mtime_ns: 1, inode: 0, device: 0 }));
    newer.check(&newer.view(Some(open(dir.path()))));
    assert!(newer.encoded() >= TILES);
    let same = Model::new(23);
    same.check(&same.view(Some(open(dir.path()))));
    assert_eq!(same.encoded(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Whatever happens to the directory's files, every read is right, now and after it healed.
    #[test]
    fn no_damage_shows(seed: u64) {
        let mut random = Random::new(seed);
        let dir = tempfile::tempdir().unwrap();
        let model = Model::new(seed);
        model.stored(dir.path());
        for _ in 0..random.of(1..6) {
            let kind = random.pick(&["data", "sums"]);
            let found = paths(dir.path(), kind);
            let path = &found[random.of(0..found.len())];
            let len = usize::try_from(fs::metadata(path).unwrap().len()).unwrap();
            if len == 0 {
                continue;
            }
            let at = random.of(0..len);
            match random.of(0..4) {
                0 => flip(path, at as u64),
                1 => File::options().write(true).open(path).unwrap().set_len(at as u64).unwrap(),
                2 => {
                    let garbage = random.bytes(len - at);
                    File::options().write(true).open(path).unwrap().write_all_at(&garbage, at as u64).unwrap();
                }
                _ => drop(fs::copy(&found[0], path)),
            }
        }
        for _ in 0..2 {
            let view = model.view(Some(open(dir.path())));
            for (file, want) in model.want.iter().enumerate().take(2) {
                let local = view.local_file(file).map(contents);
                prop_assert!(local.is_none_or(|local| local == *want));
            }
            model.check(&view);
            prop_assert!(view.settle(SOON));
        }
        let view = model.view(Some(open(dir.path())));
        for (file, want) in model.want.iter().enumerate().take(2) {
            prop_assert!(contents(view.local_file(file).unwrap()) == *want);
        }
    }
}

#[test]
fn a_full_disk_shows_to_no_reader() {
    let Some(small) = Small::new(96 << 10) else { return };
    let model = Model::new(24);
    let store = open(small.0.path());
    let view = model.view(Some(Arc::clone(&store)));
    model.check(&view);
    assert!(view.settle(SOON) && store.is_stopped());
    model.check(&view);
    drop(view);
    let again = model.view(Some(open(small.0.path())));
    model.encoded();
    model.check(&again);
    assert!(again.engine().snapshot().store_hits > 0, "what found room is used");
}

#[test]
fn two_engines_share_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let model = Model::new(25);
    let views = [model.view(Some(open(dir.path()))), model.view(Some(open(dir.path())))];
    std::thread::scope(|scope| {
        for view in [&views[0], &views[1], &views[0], &views[1]] {
            scope.spawn(|| model.check(view));
        }
    });
    assert!(views.iter().all(|view| view.settle(SOON)));
    for (view, file) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        assert!(contents(views[view].local_file(file).unwrap()) == model.want[file]);
    }
}

#[test]
fn a_store_that_is_too_small_keeps_what_fits() {
    let dir = tempfile::tempdir().unwrap();
    let model = Model::new(26);
    let small = || Store::open(&Options { dir: dir.path().to_owned(), limit: Some(120 << 10) }).unwrap();
    for _ in 0..2 {
        let view = model.view(Some(small()));
        model.check(&view);
        assert!(view.settle(SOON));
        // Give or take some blocks of the file system.
        assert!(view.engine().snapshot().store_bytes <= 136 << 10);
    }
    model.encoded();
    let view = model.view(Some(small()));
    model.check(&view);
    let figures = view.engine().snapshot();
    assert!(figures.store_hits > 0 && figures.store_misses > 0, "{figures:?}");
}

#[test]
fn a_source_that_fails_is_an_error_and_nothing_is_stored_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let model = Model::new(27);
    let view = model.view(Some(open(dir.path())));
    *model.source.broken.lock().unwrap() = Some(quantfs::source::FileId(0));
    assert!(view.read_at(1, 0, &mut [0; 100]).is_err());
    assert!(view.settle(SOON));
    *model.source.broken.lock().unwrap() = None;
    model.check(&view);
    assert!(view.settle(SOON));
    assert!(contents(view.local_file(1).unwrap()) == model.want[1]);
}
