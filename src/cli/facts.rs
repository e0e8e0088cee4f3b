//! What a mount says about itself: extended attributes, `.quantfs`, and the answer to `status`.

use std::{
    collections::BTreeMap,
    fs,
    sync::{Arc, OnceLock, Weak},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use serde_json::{Map, Value, json};

use crate::{
    fuse::{self, Live, Session, ViewState},
    plan::Plan,
    view::Engine,
};

/// Figures that go up and down; all others only grow.
const GAUGES: &[&str] = &[
    "cache_bytes",
    "cache_entries",
    "cache_limit",
    "pending",
    "recent_bytes_per_second",
    "store_bytes",
    "store_limit",
    "store_sealed",
    "tiles_in_flight",
];

/// What holds for all views of a mount.
#[derive(Debug)]
pub(super) struct OfMount {
    engine: Arc<Engine>,
    started: Instant,
    since: SystemTime,
    /// Known once the mount answers, and not kept alive from here.
    session: OnceLock<Weak<Session>>,
}

/// The facts of one view.
#[derive(Debug)]
pub(super) struct Facts {
    mount: Arc<OfMount>,
    plan: Arc<Plan>,
}

/// The facts of all views of a mount that shows many.
#[derive(Debug)]
pub(super) struct AllFacts {
    pub(super) mount: Arc<OfMount>,
    pub(super) source: String,
    /// What views are whose names do not say it.
    pub(super) specs: Arc<BTreeMap<String, String>>,
}

impl OfMount {
    pub(super) fn new(engine: Arc<Engine>) -> Arc<Self> {
        Arc::new(Self { engine, started: Instant::now(), since: SystemTime::now(), session: OnceLock::new() })
    }

    pub(super) fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// From now on the session is asked, too.
    pub(super) fn attach(&self, session: &Arc<Session>) {
        // A session is attached once, when it starts.
        let _attached_before = self.session.set(Arc::downgrade(session));
    }

    fn session(&self) -> Option<Arc<Session>> {
        self.session.get().and_then(Weak::upgrade)
    }

    fn counters(&self) -> Map<String, Value> {
        match serde_json::to_value(self.engine.snapshot()) {
            Ok(Value::Object(map)) => map,
            _ => Map::new(),
        }
    }

    /// What `quantfs status --json` prints of a mount, but for what it shows.
    fn status(&self, source: &str) -> Value {
        let session = self.session();
        let counters = self.engine.snapshot();
        let since = self.since.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        json!({
            "mountpoint": session.as_ref().map(|s| s.place().path.display().to_string()),
            "source": source,
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "since": since,
            "uptime_seconds": self.started.elapsed().as_secs(),
            "open_files": session.as_ref().map_or(0, |s| s.open_files()),
            "passed_through": session.as_ref().map_or(0, |s| s.passed_through()),
            "resident_bytes": resident_bytes(),
            "hit_rate": ratio(counters.cache_hits, counters.cache_hits + counters.cache_misses),
            "store_hit_rate": ratio(counters.store_hits, counters.store_hits + counters.store_misses),
            // Bytes of the source a nanosecond are gigabytes a second; of one thread, since threads add their
            // times up, and without the reading.
            "encode_gb_per_thread_second": ratio(counters.tile_bytes, counters.encode_ns),
            "counters": self.counters(),
        })
    }

    /// In Prometheus' text format; of a mount with several views some figures for each.
    fn metrics(&self) -> String {
        let mut page = Page::default();
        for (name, value) in self.counters() {
            let (kind, name) = match GAUGES.contains(&name.as_str()) {
                true => ("gauge", name),
                false => ("counter", format!("{name}_total")),
            };
            page.family(&name, kind, &name.replace('_', " "));
            page.sample(&name, "", &value);
        }
        let session = self.session();
        let figures = [
            ("open_files", "files that are open", session.as_ref().map_or(0, |s| s.open_files() as u64)),
            (
                "passed_through",
                "files that the kernel reads by itself",
                session.as_ref().map_or(0, |s| s.passed_through() as u64),
            ),
            ("resident_bytes", "memory of the process", resident_bytes().unwrap_or(0)),
            ("uptime_seconds", "since the mount began", self.started.elapsed().as_secs()),
        ];
        for (name, help, value) in figures {
            page.family(name, "gauge", help);
            page.sample(name, "", &value.into());
        }
        let views = session.map(|session| session.views()).unwrap_or_default();
        if !views.is_empty() {
            page.family("view_open_files", "gauge", "files of a view that are open");
            views.iter().for_each(|view| page.sample("view_open_files", &view.name, &view.open_files.into()));
            page.family("view_bytes", "gauge", "bytes of all files of a view");
            views.iter().for_each(|view| page.sample("view_bytes", &view.name, &view.bytes.into()));
        }
        page.0
    }
}

fn labels_of(source: &str) -> Vec<(&'static str, String)> {
    vec![("user.quantfs.source", source.to_owned()), ("user.quantfs.version", env!("CARGO_PKG_VERSION").to_owned())]
}

impl Facts {
    pub(super) fn new(mount: &Arc<OfMount>, plan: &Arc<Plan>) -> Self {
        Self { mount: Arc::clone(mount), plan: Arc::clone(plan) }
    }

    fn status(&self) -> Value {
        let mut status = self.mount.status(&self.plan.source);
        status["spec"] = self.plan.spec.as_str().into();
        let mut stored = self.plan.rows.iter().filter(|row| row.weight.is_some()).map(|row| &row.becomes);
        let first = stored.next();
        status["mixed"] = stored.any(|becomes| Some(becomes) != first).into();
        status["files"] = self.plan.files.len().into();
        status["bytes"] = self.plan.files.iter().map(|f| f.len).sum::<u64>().into();
        status
    }
}

impl fuse::Facts for Facts {
    fn labels(&self) -> Vec<(&'static str, String)> {
        let mut labels = labels_of(&self.plan.source);
        labels.insert(0, ("user.quantfs.spec", self.plan.spec.clone()));
        labels
    }

    fn live(&self, file: Live) -> Vec<u8> {
        match file {
            Live::Status => format!("{:#}\n", self.status()),
            Live::Metrics => self.mount.metrics(),
            Live::Plan => format!("{:#}\n", self.plan.to_json()),
        }
        .into_bytes()
    }
}

impl AllFacts {
    fn views(&self) -> Vec<Value> {
        let session = self.mount.session();
        let views = session.map(|session| session.views()).unwrap_or_default();
        let of = |view: &ViewState| {
            json!({
                "name": view.name,
                "spec": self.specs.get(&view.name).unwrap_or(&view.name),
                "files": view.files,
                "bytes": view.bytes,
                "open_files": view.open_files,
                "in_memory": view.is_awake,
            })
        };
        views.iter().map(of).collect()
    }

    fn status(&self) -> Value {
        let (mut status, views) = (self.mount.status(&self.source), self.views());
        let sum = |key: &str| views.iter().filter_map(|view| view[key].as_u64()).sum::<u64>();
        (status["files"], status["bytes"]) = (sum("files").into(), sum("bytes").into());
        status["spec"] = Value::Null;
        status["views"] = views.into();
        status
    }
}

impl fuse::Facts for AllFacts {
    fn labels(&self) -> Vec<(&'static str, String)> {
        labels_of(&self.source)
    }

    fn live(&self, file: Live) -> Vec<u8> {
        match file {
            Live::Status => format!("{:#}\n", self.status()),
            Live::Metrics => self.mount.metrics(),
            // Each view has its own, in its `.quantfs`.
            Live::Plan => format!("{:#}\n", json!({ "views": self.views() })),
        }
        .into_bytes()
    }
}

/// Metrics as text.
#[derive(Default)]
struct Page(String);

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.0.push_str(&format!("# HELP quantfs_{name} {help}\n# TYPE quantfs_{name} {kind}\n"));
    }

    /// `view` is empty where the figure is the mount's.
    fn sample(&mut self, name: &str, view: &str, value: &Value) {
        let label = match view {
            "" => String::new(),
            view => format!("{{view=\"{}\"}}", view.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")),
        };
        self.0.push_str(&format!("quantfs_{name}{label} {value}\n"));
    }
}

fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// Memory of this process that is in use, as the kernel counts it in pages.
fn resident_bytes() -> Option<u64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_views_are_escaped() {
        let mut page = Page::default();
        page.sample("x", "a\"b\\c\nd", &1.into());
        page.sample("y", "", &2.into());
        assert_eq!(page.0, "quantfs_x{view=\"a\\\"b\\\\c\\nd\"} 1\nquantfs_y 2\n");
    }
}
