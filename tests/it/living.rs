//! Living with a mount: what service managers, shells, people and Prometheus are told.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, Read},
    os::unix::net::UnixDatagram,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use prometheus_parse::{Scrape, Value as Sample};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    daemon::{Model, quantfs, text, within},
    mount::can_mount,
};

/// A foreground mount that logs to where we read it.
fn foreground(model: &Model, more: &[&str], set: impl FnOnce(&mut Command)) -> Child {
    let mut command = quantfs(&["mount", "-f"]);
    command.arg(model.source()).arg(model.mnt()).args(more).stderr(Stdio::piped()).stdout(Stdio::null());
    set(&mut command);
    command.spawn().unwrap()
}

#[test]
fn systemd_is_told_when_the_mount_answers_and_when_it_is_gone() {
    if !can_mount() {
        return;
    }
    let model = Model::new();
    let path = model.dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let told = || {
        let mut bytes = [0; 4096];
        let len = socket.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..len].to_vec()).unwrap()
    };
    let mut child = foreground(&model, &[], |command| {
        command.env("NOTIFY_SOCKET", &path);
    });
    let ready = told();
    let pid = format!("MAINPID={}", child.id());
    assert!(ready.lines().any(|line| line == "READY=1") && ready.lines().any(|line| line == pid), "{ready}");
    assert!(ready.contains("STATUS=mlx-4bit-g64"), "{ready}");
    assert!(fs::read(model.weights()).is_ok(), "told no sooner than it answers");
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert!(told().contains("STOPPING=1"));
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_signal_asks_for_the_state() {
    if !can_mount() {
        return;
    }
    let model = Model::new();
    let mut child = foreground(&model, &[], |_| {});
    within(Duration::from_secs(30), "the mount", || model.is_mounted() && model.weights().exists());
    kill_process(Pid::from_child(&child), Signal::USR1).unwrap();
    // The log is read to here and then closed: a daemon whose log has no reader any more goes on.
    let log = BufReader::new(child.stderr.take().unwrap());
    let state = log.lines().map(Result::unwrap).find(|line| line.contains("state: ")).unwrap();
    let json = &state[state.find('{').unwrap()..];
    let state: serde_json::Value = serde_json::from_str(json).unwrap();
    assert_eq!(state["spec"], "mlx-4bit-g64");
    kill_process(Pid::from_child(&child), Signal::USR1).unwrap();
    assert!(fs::read(model.weights()).is_ok(), "and goes on");
    assert!(model.umount(&[]).status.success());
    assert!(child.wait().unwrap().success());
}

#[test]
fn every_verb_has_a_manual_and_completions() {
    let run = |args: &[&str]| {
        let out = quantfs(args).output().unwrap();
        assert!(out.status.success(), "{args:?}: {}", text(&out));
        String::from_utf8(out.stdout).unwrap()
    };
    let help = run(&["help"]);
    let commands = help.lines().skip_while(|line| !line.starts_with("Commands:")).skip(1);
    let names = commands.take_while(|line| !line.is_empty()).filter_map(|line| line.strip_prefix("  "));
    let verbs: Vec<&str> = names.filter_map(|line| line.split(' ').next()).filter(|name| !name.is_empty()).collect();
    assert!(verbs.len() > 12 && verbs.contains(&"remount"), "{verbs:?}");
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&["completions", shell]);
        for verb in &verbs {
            assert!(script.contains(verb), "{verb} in {shell}");
        }
        assert!(script.contains("any-view"), "{shell}");
    }
    let checked = Command::new("bash").args(["-n", "/dev/stdin"]).stdin(Stdio::piped()).spawn().and_then(|mut bash| {
        std::io::Write::write_all(&mut bash.stdin.take().unwrap(), run(&["completions", "bash"]).as_bytes())?;
        bash.wait()
    });
    assert!(checked.unwrap().success(), "bash takes it");
    let dir = tempfile::tempdir().unwrap();
    run(&["man", "--dir", dir.path().to_str().unwrap()]);
    for verb in verbs.iter().filter(|verb| **verb != "help") {
        let page = fs::read_to_string(dir.path().join(format!("quantfs-{verb}.1"))).unwrap();
        assert!(page.contains(".SH NAME") && page.contains(".TH"), "{verb}: {page}");
        assert!(run(&["man", verb]).contains(".TH"));
    }
    assert_eq!(quantfs(&["man", "dance"]).output().unwrap().status.code(), Some(2));
    assert_eq!(quantfs(&["completions", "dance"]).output().unwrap().status.code(), Some(2));
}

/// Samples as a parser of the format reads them: names with their kinds, once each.
fn samples(path: &Path) -> Scrape {
    let body = fs::read_to_string(path).unwrap();
    Scrape::parse(body.lines().map(|line| Ok(line.to_owned()))).unwrap()
}

#[test]
fn prometheus_reads_the_metrics() {
    if !can_mount() {
        return;
    }
    let model = Model::new();
    model.mounted(&["--view", "one=4bit", "--view", "other=8bit"]);
    let mnt = model.mnt();
    let open = fs::File::open(mnt.join("other/model.safetensors")).unwrap();
    fs::read(mnt.join("one/model.safetensors")).unwrap();
    let scrape = samples(&mnt.join(".quantfs/metrics"));
    let value = |name: &str, view: Option<&str>| {
        let of = |sample: &&prometheus_parse::Sample| sample.metric == name && sample.labels.get("view") == view;
        scrape.samples.iter().find(of).map(|sample| sample.value.clone())
    };
    assert!(matches!(value("quantfs_tiles_total", None), Some(Sample::Counter(n)) if n > 0.0));
    assert!(matches!(value("quantfs_open_files", None), Some(Sample::Gauge(n)) if n == 1.0));
    assert!(matches!(value("quantfs_resident_bytes", None), Some(Sample::Gauge(n)) if n > 1e6));
    assert!(matches!(value("quantfs_view_open_files", Some("other")), Some(Sample::Gauge(n)) if n == 1.0));
    assert!(matches!(value("quantfs_view_open_files", Some("one")), Some(Sample::Gauge(n)) if n == 0.0));
    assert!(matches!(value("quantfs_view_bytes", Some("other")), Some(Sample::Gauge(n)) if n > 1e5));
    let names: BTreeSet<_> = scrape.samples.iter().map(|sample| &sample.metric).collect();
    for name in &names {
        assert!(scrape.docs.contains_key(*name), "{name} says what it is");
    }
    assert!(names.len() > 20);
    let own = samples(&mnt.join("other/.quantfs/metrics"));
    assert_eq!(own.samples.len(), scrape.samples.len(), "a view's are the mount's");
    drop(open);
}

#[test]
fn the_status_can_be_watched() {
    if !can_mount() {
        return;
    }
    let model = Model::new();
    model.mounted(&[]);
    let mut watch = quantfs(&["status", "--watch"]).arg(model.mnt()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines().map(Result::unwrap);
    let pages = lines.by_ref().filter(|line| line.contains("mlx-4bit-g64")).take(2).count();
    assert_eq!(pages, 2, "drawn again");
    assert!(lines.by_ref().any(|line| line.contains("encodes")));
    drop(lines);
    // The reader has gone: it ends, and that is no failure.
    assert!(watch.wait().unwrap().success());
    let out = quantfs(&["status", "--watch"]).arg(model.dir.path()).output().unwrap();
    assert_eq!(out.status.code(), Some(1), "no mount of ours");
}

/// The log of a background process goes on in the file that `mount` names.
#[test]
fn a_background_process_logs_to_its_file() {
    if !can_mount() {
        return;
    }
    let model = Model::new();
    let out = model.mount(&["--json"]);
    let facts: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    kill_process(model.pid(), Signal::USR1).unwrap();
    let mut log = String::new();
    within(Duration::from_secs(10), "the state in the log", || {
        log.clear();
        fs::File::open(facts["log"].as_str().unwrap()).unwrap().read_to_string(&mut log).unwrap();
        log.contains("state: {")
    });
}
