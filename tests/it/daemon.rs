//! The command line's mounts: the background process from its start to its end, however it comes.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    os::{
        fd::AsRawFd,
        unix::{
            fs::{FileExt, MetadataExt, PermissionsExt},
            net::UnixStream,
        },
    },
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use quantfs::fuse::mountinfo;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::mount::{
    as_nobody, can_mount, can_mount_as_root, has_fusermount, let_nobody_mount, mount_by_hand, unmount_by_hand,
};

/// A model of one layer's worth of weights, and a mount point.
pub(crate) struct Model {
    pub(crate) dir: TempDir,
}

impl Model {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let model = Self { dir };
        fs::create_dir(model.source()).unwrap();
        fs::create_dir(model.mnt()).unwrap();
        write_model(&model.source());
        model
    }

    pub(crate) fn source(&self) -> PathBuf {
        self.dir.path().join("model")
    }

    pub(crate) fn mnt(&self) -> PathBuf {
        // Not `canonicalize`: the mount may be dead.
        self.dir.path().canonicalize().unwrap().join("mnt")
    }

    pub(crate) fn weights(&self) -> PathBuf {
        self.mnt().join("model.safetensors")
    }

    /// `quantfs mount MODEL MNT ...`
    pub(crate) fn mount(&self, more: &[&str]) -> Output {
        quantfs(&["mount"]).arg(self.source()).arg(self.mnt()).args(more).output().unwrap()
    }

    pub(crate) fn mounted(&self, more: &[&str]) {
        let out = self.mount(more);
        assert!(out.status.success(), "{}", text(&out));
        assert!(self.is_mounted());
    }

    pub(crate) fn is_mounted(&self) -> bool {
        mountinfo::at(&self.mnt()).unwrap().is_some()
    }

    pub(crate) fn status(&self) -> Value {
        let out = quantfs(&["status", "--json"]).arg(self.mnt()).output().unwrap();
        assert!(out.status.success(), "{}", text(&out));
        serde_json::from_slice(&out.stdout).unwrap()
    }

    pub(crate) fn pid(&self) -> Pid {
        let pid = self.status()["pid"].as_i64().unwrap();
        Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()
    }

    pub(crate) fn umount(&self, more: &[&str]) -> Output {
        quantfs(&["umount"]).arg(self.mnt()).args(more).output().unwrap()
    }
}

impl Drop for Model {
    /// Nothing may be left, not even by a test that failed.
    fn drop(&mut self) {
        while mountinfo::at(&self.mnt()).is_ok_and(|entry| entry.is_some()) {
            let out = quantfs(&["umount", "--force"]).arg(self.mnt()).output();
            if !out.is_ok_and(|out| out.status.success()) {
                break;
            }
        }
        // Root's logs lie outside of the scratch directory.
        let name = self.mnt().to_str().unwrap().trim_matches('/').replace('/', "-");
        drop(fs::remove_file(format!("/var/log/quantfs/{name}.log")));
    }
}

pub(crate) fn write_model(dir: &Path) {
    let (rows, cols) = (512usize, 1024usize);
    write_tensors(dir, &[("model.embed_tokens.weight", &[rows, cols]), ("model.norm.weight", &[cols])]);
    let config = serde_json::json!({
        "model_type": "llama", "hidden_size": cols, "vocab_size": rows, "num_hidden_layers": 0,
        "torch_dtype": "bfloat16", "tie_word_embeddings": true,
    });
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    fs::write(dir.join("tokenizer.json"), "{}").unwrap();
}

/// `model.safetensors` with tensors of bf16 between 1 and 2, all different enough.
pub(crate) fn write_tensors(dir: &Path, tensors: &[(&str, &[usize])]) {
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, shape) in tensors {
        let start = end;
        end += shape.iter().product::<usize>() * 2;
        let entry = serde_json::json!({ "dtype": "BF16", "shape": shape, "data_offsets": [start, end] });
        header.insert((*name).to_owned(), entry);
    }
    let header = serde_json::to_vec(&header).unwrap();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(&header);
    file.extend((0..end / 2).flat_map(|i| [u8::try_from(i * 37 % 251).unwrap(), 0x3f]));
    fs::write(dir.join("model.safetensors"), file).unwrap();
}

pub(crate) fn quantfs(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quantfs"));
    command.args(args).stdin(Stdio::null());
    command
}

pub(crate) fn text(out: &Output) -> String {
    format!("{}: {}{}", out.status, String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

pub(crate) fn within(time: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < time, "not within {time:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether the process runs; one that ended and was not yet waited for does not.
pub(crate) fn is_alive(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

#[test]
fn mount_returns_when_the_mount_answers_and_says_how_to_end_it() {
    if !can_mount() {
        return;
    }
    let model = Model::new();
    let out = model.mount(&["--bits", "4"]);
    let said = text(&out);
    assert!(out.status.success(), "{said}");
    let config = fs::read_to_string(model.mnt().join("config.json")).unwrap();
    assert!(config.contains("quantization"), "{config}");
    assert!(
        said.contains("mlx-4bit-g64") && said.contains(&format!("quantfs umount {}", model.mnt().display())),
        "{said}"
    );
    let log = said.split_once("log ").unwrap().1.lines().next().unwrap();
    assert!(Path::new(log).exists() && fs::metadata(log).unwrap().mode() & 0o077 == 0, "{log}");
    let status = model.status();
    assert_eq!(status["state"], "live");
    assert_eq!(status["spec"], "mlx-4bit-g64");
    let live: Value = serde_json::from_slice(&fs::read(model.mnt().join(".quantfs/status.json")).unwrap()).unwrap();
    assert_eq!(live["pid"], status["pid"]);
    let metrics = fs::read_to_string(model.mnt().join(".quantfs/metrics")).unwrap();
    assert!(metrics.contains("# TYPE quantfs_reads_total counter\nquantfs_reads_total "), "{metrics}");
    let plan: Value = serde_json::from_slice(&fs::read(model.mnt().join(".quantfs/plan.json")).unwrap()).unwrap();
    assert!(plan.to_string().contains("model.embed_tokens"), "{plan}");
    let pid = model.pid();
    let out = model.umount(&[]);
    assert!(out.status.success() && out.stdout.is_empty(), "{}", text(&out));
    assert!(!model.is_mounted() && !is_alive(pid), "umount waits for the daemon's end");
}

#[test]
fn each_signal_unmounts() {
    if !can_mount() {
        return;
    }
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let model = Model::new();
        model.mounted(&[]);
        let pid = model.pid();
        kill_process(pid, signal).unwrap();
        within(Duration::from_secs(10), "the daemon's end", || !is_alive(pid));
        assert!(!model.is_mounted(), "{signal:?}");
    }
}

#[test]
fn a_busy_mount_goes_at_once_and_its_readers_finish() {
    if !can_mount() {
        return;
    }
    let model = Model::new();
    model.mounted(&[]);
    let pid = model.pid();
    let open = File::open(model.weights()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    within(Duration::from_secs(10), "the unmount", || !model.is_mounted());
    let mut buf = vec![0; 100_000];
    open.read_exact_at(&mut buf, 50_000).unwrap();
    assert!(is_alive(pid));
    // A second signal gives the reader up.
    kill_process(pid, Signal::TERM).unwrap();
    within(Duration::from_secs(10), "the daemon's end", || !is_alive(pid));
    assert!(open.read_at(&mut buf, 200_000).is_err());
}

#[test]
fn umount_tells_of_readers_and_force_ends_them() {
    if !can_mount() {
        return;
    }
    for force in [false, true] {
        let model = Model::new();
        model.mounted(&[]);
        let pid = model.pid();
        let open = File::open(model.weights()).unwrap();
        let out = model.umount(if force { &["--force"] } else { &[] });
        assert!(out.status.success() && !model.is_mounted(), "{}", text(&out));
        assert_eq!(text(&out).contains("files still open: 1"), !force, "{}", text(&out));
        assert_eq!(open.read_at(&mut [0; 1000], 90_000).is_err(), force);
        drop(open);
        within(Duration::from_secs(10), "the daemon's end", || !is_alive(pid));
    }
}

#[test]
fn a_killed_daemon_leaves_a_mount_that_is_replaced_or_taken_down() {
    if !can_mount() {
        return;
    }
    let model = Model::new();
    for replace in [true, false] {
        model.mounted(&[]);
        let pid = model.pid();
        kill_process(pid, Signal::KILL).unwrap();
        within(Duration::from_secs(10), "the daemon's end", || fs::read_dir(model.mnt()).is_err());
        assert!(model.is_mounted());
        // A process that is being ended may have closed the mount and not yet its socket.
        within(Duration::from_secs(10), "the dead mount to be known for one", || model.status()["state"] == "dead");
        if replace {
            model.mounted(&["--bits", "8"]);
            assert_eq!(model.status()["spec"], "mlx-8bit-g64");
        }
        let out = model.umount(&[]);
        assert!(out.status.success() && !model.is_mounted(), "{}", text(&out));
    }
}

#[test]
fn a_live_mount_is_not_covered() {
    if !can_mount() {
        return;
    }
    let model = Model::new();
    model.mounted(&[]);
    refused(&model.mount(&[]), 1, &["already mounted", "quantfs umount"]);
    assert_eq!(model.status()["state"], "live");
}

/// One line, that exit code, these words.
pub(crate) fn refused(out: &Output, code: i32, words: &[&str]) {
    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(code), "{said}");
    assert!(code == 2 || said.lines().count() == 1, "{said}");
    for word in words {
        assert!(said.contains(word), "`{word}` is not in: {said}");
    }
}

#[test]
fn bad_mounts_are_refused_in_one_line_and_leave_nothing() {
    if !can_mount() {
        return;
    }
    let model = Model::new();
    let (source, mnt) = (model.source(), model.mnt());
    let (source, mnt) = (source.to_str().unwrap(), mnt.to_str().unwrap());
    let inside = format!("{source}/inside");
    fs::create_dir(&inside).unwrap();
    let try_mount = |args: &[&str]| quantfs(&["mount"]).args(args).output().unwrap();
    refused(&try_mount(&[source, "/nowhere/at/all"]), 1, &["/nowhere/at/all", "does not exist"]);
    refused(&try_mount(&[source, &format!("{source}/config.json")]), 1, &["not a directory"]);
    refused(&try_mount(&[source, model.dir.path().to_str().unwrap()]), 1, &["lies inside the mount point"]);
    refused(&try_mount(&[source, &inside]), 1, &[&inside, "inside the source"]);
    refused(&try_mount(&[source, "/usr"]), 1, &["/usr", "not empty"]);
    refused(&try_mount(&[source, "/proc"]), 1, &["/proc", "already mounted"]);
    refused(&try_mount(&[source, "/dev/fd/987"]), 1, &["/dev/fd/987"]);
    refused(&try_mount(&["/no/such/model", mnt]), 1, &["/no/such/model"]);
    refused(&try_mount(&[source, mnt, "--spec", "9bit"]), 2, &["9bit"]);
    refused(&try_mount(&[source, mnt, "-o", "ro,bogus=1"]), 2, &["-o bogus"]);
    refused(&try_mount(&[source, mnt, "--cache-size", "1X"]), 2, &["--cache-size"]);
    refused(&try_mount(&[source, mnt, "--umask", "9"]), 2, &["--umask"]);
    refused(&quantfs(&["umount", mnt]).output().unwrap(), 1, &[mnt, "not a quantfs mount"]);
    refused(&quantfs(&["status", mnt]).output().unwrap(), 1, &[mnt, "not a quantfs mount"]);
    refused(&quantfs(&["warm", mnt]).output().unwrap(), 1, &[mnt, "not a quantfs mount"]);
    assert!(!model.is_mounted());
}

#[test]
fn options_come_the_way_fstab_writes_them() {
    if !can_mount() {
        return;
    }
    let model = Model::new();
    // As mount.fuse3 calls us: no verb, and options of its own.
    let mut command = quantfs(&[]);
    command.arg(model.source()).arg(model.mnt()).args(["-o", "rw,spec=8bit-g32,umask=077,dev,suid"]);
    let out = command.output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    assert_eq!(model.status()["spec"], "mlx-8bit-g32");
    assert_eq!(fs::metadata(model.weights()).unwrap().mode() & 0o777, 0o400);
    assert_eq!(File::create(model.mnt().join("x")).unwrap_err().raw_os_error(), Some(libc::EROFS));
}

#[test]
fn options_may_end_with_two_dashes() {
    if !can_mount() {
        return;
    }
    let model = Model::new();
    let out = quantfs(&["mount", "--bits", "8", "--"]).arg(model.source()).arg(model.mnt()).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    assert_eq!(model.status()["spec"], "mlx-8bit-g64");
}

#[test]
fn options_behind_other_letters_count() {
    if !can_mount() {
        return;
    }
    let model = Model::new();
    let mut command = quantfs(&["mount"]);
    let mut child = command.arg(model.source()).arg(model.mnt()).args(["-fo", "spec=8bit"]).spawn().unwrap();
    within(Duration::from_secs(20), "the mount", || model.is_mounted() && model.weights().exists());
    let spec = model.status()["spec"].clone();
    assert!(model.umount(&[]).status.success() && child.wait().unwrap().success());
    assert_eq!(spec, "mlx-8bit-g64");
    refused(&model.mount(&["-o", "report"]), 2, &["-o report"]);
}

#[test]
fn a_mount_point_inside_any_source_is_refused() {
    if !can_mount() {
        return;
    }
    let model = Model::new();
    let folder = model.dir.path().join("hub/models--org--name");
    let (snapshot, blobs) = (folder.join("snapshots/abcdef"), folder.join("blobs"));
    fs::create_dir_all(snapshot.join("inside")).unwrap();
    fs::create_dir_all(blobs.join("inside")).unwrap();
    fs::create_dir_all(folder.join("refs")).unwrap();
    fs::write(folder.join("refs/main"), "abcdef").unwrap();
    write_model(&snapshot);
    fs::rename(snapshot.join("model.safetensors"), blobs.join("0123")).unwrap();
    std::os::unix::fs::symlink("../../blobs/0123", snapshot.join("model.safetensors")).unwrap();
    let mount = |source: &str, at: &Path| {
        let mut command = quantfs(&["mount", source]);
        command.arg(at).env("HF_HUB_CACHE", model.dir.path().join("hub")).output().unwrap()
    };
    for inside in [&snapshot, &blobs] {
        let out = mount("org/name", &inside.join("inside"));
        drop(quantfs(&["umount"]).arg(inside.join("inside")).output());
        refused(&out, 1, &["inside the source"]);
    }
    let file = model.source().join("model.safetensors");
    refused(&mount(file.to_str().unwrap(), &model.source()), 1, &["model.safetensors lies inside the mount point"]);
    let beside = model.source().join("beside");
    fs::create_dir(&beside).unwrap();
    let out = mount(file.to_str().unwrap(), &beside);
    let gone = quantfs(&["umount"]).arg(&beside).output().unwrap();
    assert!(out.status.success() && gone.status.success(), "beside a single file: {}{}", text(&out), text(&gone));
}

#[test]
fn facts_come_as_json() {
    if !can_mount() {
        return;
    }
    let model = Model::new();
    let json = |out: Output| -> Value {
        assert!(out.status.success(), "{}", text(&out));
        serde_json::from_slice(&out.stdout).unwrap()
    };
    let mounted = json(model.mount(&["--json"]));
    assert_eq!(
        (mounted["spec"].as_str(), mounted["mountpoint"].as_str()),
        (Some("mlx-4bit-g64"), model.mnt().to_str())
    );
    assert_eq!(mounted["pid"], model.status()["pid"]);
    assert!(Path::new(mounted["log"].as_str().unwrap()).exists() && mounted["warnings"].is_array());
    let warmed = json(quantfs(&["warm", "--json"]).arg(model.mnt()).arg("*.safetensors").output().unwrap());
    assert_eq!(
        (warmed["files"].as_u64(), warmed["bytes"].as_u64()),
        (Some(1), Some(fs::metadata(model.weights()).unwrap().len()))
    );
    let open = File::open(model.weights()).unwrap();
    let gone = json(model.umount(&["--json"]));
    assert_eq!(gone[0]["mountpoint"].as_str(), model.mnt().to_str());
    assert_eq!((&gone[0]["unmounted"], gone[0]["open_files"].as_u64()), (&Value::Bool(true), Some(1)));
    drop(open);
    let missing = model.umount(&["--json"]);
    assert_eq!(missing.status.code(), Some(1));
    let told: Value = serde_json::from_slice(&missing.stdout).unwrap();
    assert!(told[0]["error"].as_str().unwrap().contains("not a quantfs mount"), "{told}");
}

#[test]
fn rates_count_what_they_name() {
    if !can_mount() {
        return;
    }
    let model = Model::new();
    model.mounted(&["--passthrough", "off"]);
    fs::read(model.mnt().join("tokenizer.json")).unwrap();
    let status = model.status();
    assert_eq!((&status["counters"]["tile_bytes"], &status["encode_gb_per_thread_second"]), (&0.into(), &Value::Null));
    fs::read(model.weights()).unwrap();
    std::thread::sleep(Duration::from_millis(1100));
    let status = model.status();
    let counters = &status["counters"];
    assert_eq!(counters["tile_bytes"], 512 * 1024 * 2, "the weight alone: {counters}");
    assert!(counters["source_bytes"].as_u64() > counters["tile_bytes"].as_u64(), "{counters}");
    assert!(status["encode_gb_per_thread_second"].as_f64().unwrap() > 0.0 && status["encode_gb_per_second"].is_null());
    let recent = counters["recent_bytes_per_second"].as_u64().unwrap();
    assert!(recent > 0 && recent <= counters["served_bytes"].as_u64().unwrap(), "{counters}");
    let table = quantfs(&["status"]).arg(model.mnt()).output().unwrap();
    assert!(text(&table).contains("encode/thread") && text(&table).contains("served"), "{}", text(&table));
}

/// A daemon without descriptors to spare must wait for one, not spin.
#[test]
fn a_socket_that_cannot_be_accepted_costs_nothing() {
    if !can_mount_as_root() {
        return;
    }
    let model = Model::new();
    model.mounted(&[]);
    let pid = model.pid();
    let (major, minor) = mountinfo::at(&model.mnt()).unwrap().unwrap().device;
    let limit = |current| rustix::process::Rlimit { current: Some(current), maximum: Some(1024) };
    rustix::process::prlimit(Some(pid), rustix::process::Resource::Nofile, limit(3)).unwrap();
    let ticks = || -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let before = ticks();
    let mut socket = UnixStream::connect(format!("/run/quantfs/{major}-{minor}.sock")).unwrap();
    socket.write_all(b"{\"version\":1,\"request\":\"status\"}\n").unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let spent = ticks() - before;
    rustix::process::prlimit(Some(pid), rustix::process::Resource::Nofile, limit(1024)).unwrap();
    let mut answer = String::new();
    BufReader::new(&socket).read_line(&mut answer).unwrap();
    assert!(answer.contains("\"done\""), "{answer}");
    assert!(spent < 30, "{spent} hundredths of a second were spent in one");
}

#[test]
fn root_is_answered_by_the_mounts_of_users() {
    if !can_mount_as_root() || !has_fusermount() {
        return;
    }
    let model = Model::new();
    std::os::unix::fs::chown(model.mnt(), Some(65534), Some(65534)).unwrap();
    // In a temporary directory that root shares, as a user without a session has it; then in one that
    // root cannot know.
    let script = "set -e; mknod \"$4/fuse\" c 10 229; chmod 666 \"$4/fuse\"; mount --bind \"$4/fuse\" /dev/fuse
        mkdir \"$4/home\" \"$4/tmp\"; chown 65534 \"$4/home\"; chmod 1777 \"$4/tmp\"
        export TMPDIR=\"$4/tmp\" HOME=\"$4/home\"; unset XDG_RUNTIME_DIR XDG_STATE_HOME
        user() { setpriv --reuid=65534 --regid=65534 --clear-groups -- \"$@\"; }
        user \"$1\" mount \"$2\" \"$3\"; \"$1\" status \"$3\"; \"$1\" umount \"$3\"
        XDG_RUNTIME_DIR=\"$4/home\" user \"$1\" mount \"$2\" \"$3\"; \"$1\" status \"$3\"; \"$1\" umount --all";
    let out = in_a_namespace(&model, script);
    let said = text(&out);
    assert!(out.status.success(), "{said}");
    assert!(said.contains("live") && said.contains("user 65534's") && !said.contains("no answer"), "{said}");
}

#[test]
fn the_foreground_logs_to_standard_error() {
    if !can_mount() {
        return;
    }
    let model = Model::new();
    let mut command = quantfs(&["mount", "-f"]);
    let mut child = command.arg(model.source()).arg(model.mnt()).stderr(Stdio::piped()).spawn().unwrap();
    within(Duration::from_secs(20), "the mount", || model.is_mounted() && model.weights().exists());
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::INT).unwrap();
    let mut log = String::new();
    child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert!(child.wait().unwrap().success(), "{log}");
    assert!(log.contains("mlx-4bit-g64") && log.contains("told to stop"), "{log}");
    assert!(!model.is_mounted());
}

#[test]
fn warm_leaves_nothing_to_compute() {
    if !can_mount() {
        return;
    }
    let model = Model::new();
    model.mounted(&[]);
    let out = quantfs(&["warm"]).arg(model.mnt()).arg("*.safetensors").output().unwrap();
    assert!(out.status.success() && text(&out).contains("1 files"), "{}", text(&out));
    let reads = model.status()["counters"]["reads"].clone();
    assert!(reads.as_u64().unwrap() > 0);
    fs::read(model.weights()).unwrap();
    assert_eq!(model.status()["counters"]["reads"], reads, "the page cache answers");
    refused(&quantfs(&["warm"]).arg(model.mnt()).arg("nix*").output().unwrap(), 1, &["nix*"]);
}

#[test]
fn the_socket_is_the_users_alone_and_stays_with_its_protocol() {
    if !can_mount_as_root() {
        return;
    }
    let model = Model::new();
    model.mounted(&[]);
    let (major, minor) = mountinfo::at(&model.mnt()).unwrap().unwrap().device;
    let path = PathBuf::from(format!("/run/quantfs/{major}-{minor}.sock"));
    assert_eq!(fs::metadata("/run/quantfs").unwrap().mode() & 0o777, 0o700);
    let mut socket = UnixStream::connect(&path).unwrap();
    socket.write_all(b"{\"version\":99,\"request\":\"status\"}\n{\"version\":1,\"request\":\"status\"}\n").unwrap();
    let mut lines = BufReader::new(&socket).lines();
    assert!(lines.next().unwrap().unwrap().contains("version 1"));
    assert!(lines.next().unwrap().unwrap().contains("\"done\""));
    // A new file may have the number of one that is gone, but not its time.
    let file =
        |path: &Path| fs::symlink_metadata(path).map(|found| (found.ino(), found.ctime(), found.ctime_nsec())).ok();
    let ours = file(&path);
    assert!(model.umount(&[]).status.success());
    // The next mount may have its number, and its socket there, by now.
    assert!(ours.is_some() && file(&path) != ours, "the socket goes with the mount");
}

#[test]
fn a_descriptor_is_inherited_by_the_background_process() {
    if !can_mount_as_root() {
        return;
    }
    let model = Model::new();
    let device = File::options().read(true).write(true).open("/dev/fuse").unwrap();
    // Without close-on-exec the background process of the background process has it, too.
    rustix::io::fcntl_setfd(&device, rustix::io::FdFlags::empty()).unwrap();
    mount_by_hand(&device, &model.mnt(), "quantfs", rustix::mount::MountFlags::RDONLY);
    let out = quantfs(&["mount"]).arg(model.source()).arg(format!("/dev/fd/{}", device.as_raw_fd())).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    drop(device);
    assert!(fs::read(model.weights()).unwrap().len() > 100_000);
    let pid: i32 = text(&out).split_once("process ").unwrap().1.split(',').next().unwrap().parse().unwrap();
    unmount_by_hand(&model.mnt());
    within(Duration::from_secs(10), "the daemon's end", || !is_alive(Pid::from_raw(pid).unwrap()));
}

#[test]
fn an_ordinary_user_has_the_whole_life_of_a_mount() {
    if !can_mount_as_root() || !has_fusermount() {
        return;
    }
    let model = Model::new();
    let home = model.dir.path().join("home");
    fs::create_dir(&home).unwrap();
    let exe = model.dir.path().join("quantfs");
    fs::copy(env!("CARGO_BIN_EXE_quantfs"), &exe).unwrap();
    for path in [&home, &model.mnt(), &model.source()] {
        std::os::unix::fs::chown(path, Some(65534), Some(65534)).unwrap();
    }
    let script = format!(
        "set -e; export HOME={home} XDG_RUNTIME_DIR={home}\n{exe} mount {source} {mnt}\n\
         touch {home}/mounted; while [ -d {home} -a ! -e {home}/go ]; do sleep 0.02; done\n\
         {exe} status {mnt} --json | grep -q '\"state\": \"live\"'\n{exe} umount {mnt}\n\
         ! grep -q {mnt} /proc/self/mountinfo\n{exe} mount {source} {mnt} --allow-other 2>&1 | grep user_allow_other\n",
        home = home.display(),
        exe = exe.display(),
        source = model.source().display(),
        mnt = model.mnt().display()
    );
    let mut shell = let_nobody_mount(model.dir.path(), Path::new("sh"));
    shell.args(["-c", &script]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let shell = shell.spawn().unwrap();
    within(Duration::from_secs(20), "the mount", || home.join("mounted").exists());
    let socket = fs::read_dir(home.join("quantfs")).unwrap().map(|e| e.unwrap().path());
    let socket = socket.into_iter().find(|path| path.extension().is_some_and(|x| x == "sock")).unwrap();
    let (mut answer, mut socket) = (String::new(), UnixStream::connect(socket).unwrap());
    socket.write_all(b"{\"version\":1,\"request\":\"status\"}\n").unwrap();
    BufReader::new(socket).read_line(&mut answer).unwrap();
    assert!(answer.contains("\"done\""), "root is answered: {answer}");
    fs::write(home.join("go"), "").unwrap();
    let out = shell.wait_with_output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    let out = as_nobody(&exe).args(["umount", "--all"]).current_dir("/").output().unwrap();
    assert!(out.status.success(), "nothing to do is no failure: {}", text(&out));
}

/// Runs a script as root in a mount namespace of its own: `$1` the program, `$2` the model, `$3` the
/// mount point, `$4` a scratch directory.
fn in_a_namespace(model: &Model, script: &str) -> Output {
    let exe = model.dir.path().join("quantfs");
    fs::copy(env!("CARGO_BIN_EXE_quantfs"), &exe).unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]).args([&exe, &model.source(), &model.mnt()]);
    command.arg(model.dir.path()).current_dir("/").output().unwrap()
}

#[test]
fn a_missing_device_is_told() {
    if !can_mount_as_root() {
        return;
    }
    let model = Model::new();
    let out = in_a_namespace(&model, "mount -t tmpfs x /dev; mknod /dev/null c 1 3; exec \"$1\" mount \"$2\" \"$3\"");
    refused(&out, 1, &["/dev/fuse is missing", "modprobe fuse", "--device /dev/fuse"]);
}

#[test]
fn a_missing_fusermount3_is_told() {
    if !can_mount_as_root() {
        return;
    }
    let model = Model::new();
    let script = "cp \"$(command -v setpriv)\" \"$4/setpriv\"; mkdir \"$4/empty\" \"$4/home\"; chmod 777 \"$4/home\"
        export HOME=\"$4/home\"; mount --bind \"$4/empty\" /usr/bin
        exec \"$4/setpriv\" --reuid=65534 --regid=65534 --clear-groups -- \"$1\" mount \"$2\" \"$3\"";
    refused(&in_a_namespace(&model, script), 1, &["fusermount3", "install the package fuse3"]);
}

/// A background process whose parent is gone has told nobody that it mounted: it must not stay, and
/// must not leave a dead mount.
#[test]
fn a_mount_that_nobody_hears_of_is_taken_down() {
    if !can_mount() {
        return;
    }
    let model = Model::new();
    let mut child = quantfs(&["mount", "--report"])
        .arg(model.source())
        .arg(model.mnt())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // The parent's end of the report is closed before anything can be said.
    drop(child.stdout.take());
    child.wait().unwrap();
    assert!(!model.is_mounted());
    assert_eq!(fs::read_dir(model.mnt()).unwrap().count(), 0, "an empty directory, no dead mount");
}

#[test]
fn a_mount_point_need_not_be_utf8() {
    if !can_mount() {
        return;
    }
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
    let model = Model::new();
    let mnt = model.dir.path().canonicalize().unwrap().join(OsStr::from_bytes(b"b\xff"));
    fs::create_dir(&mnt).unwrap();
    let out = quantfs(&["mount"]).arg(model.source()).arg(&mnt).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    assert!(fs::read(mnt.join("model.safetensors")).is_ok());
    assert!(quantfs(&["umount"]).arg(&mnt).output().unwrap().status.success());
}
