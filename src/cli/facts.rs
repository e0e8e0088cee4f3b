//! What a mount says about itself: extended attributes, `.quantfs`, and the answer to `status`.

use std::{
    fs,
    sync::{Arc, OnceLock, Weak},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use serde_json::{Map, Value, json};

use crate::{
    fuse::{self, Live, Session},
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

/// The facts of one view of a mount.
#[derive(Debug)]
pub(super) struct Facts {
    plan: Arc<Plan>,
    engine: Arc<Engine>,
    started: Instant,
    since: SystemTime,
    /// Known once the mount answers, and not kept alive from here.
    session: OnceLock<Weak<Session>>,
}

impl Facts {
    pub(super) fn new(plan: Arc<Plan>, engine: Arc<Engine>) -> Self {
        Self { plan, engine, started: Instant::now(), since: SystemTime::now(), session: OnceLock::new() }
    }

    /// From now on the session is asked, too.
    pub(super) fn attach(&self, session: &Arc<Session>) {
        // A session is attached once, when it starts.
        let _attached_before = self.session.set(Arc::downgrade(session));
    }

    fn counters(&self) -> Map<String, Value> {
        match serde_json::to_value(self.engine.snapshot()) {
            Ok(Value::Object(map)) => map,
            _ => Map::new(),
        }
    }

    /// What `quantfs status --json` prints of a mount.
    pub(super) fn status(&self) -> Value {
        let session = self.session.get().and_then(Weak::upgrade);
        let counters = self.engine.snapshot();
        let since = self.since.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        json!({
            "mountpoint": session.as_ref().map(|s| s.place().path.display().to_string()),
            "source": self.plan.source,
            "spec": self.plan.spec,
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "since": since,
            "uptime_seconds": self.started.elapsed().as_secs(),
            "files": self.plan.files.len(),
            "bytes": self.plan.files.iter().map(|f| f.len).sum::<u64>(),
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

    fn metrics(&self) -> String {
        let mut lines = String::new();
        let mut add = |name: &str, value: &Value| {
            let kind = if GAUGES.contains(&name) { "gauge" } else { "counter" };
            let name = if kind == "counter" { format!("quantfs_{name}_total") } else { format!("quantfs_{name}") };
            lines.push_str(&format!("# TYPE {name} {kind}\n{name} {value}\n"));
        };
        self.counters().iter().for_each(|(name, value)| add(name, value));
        let open = self.session.get().and_then(Weak::upgrade).map_or(0, |s| s.open_files());
        let resident = resident_bytes().unwrap_or(0);
        for (name, value) in [("open_files", open as u64), ("resident_bytes", resident)] {
            lines.push_str(&format!("# TYPE quantfs_{name} gauge\nquantfs_{name} {value}\n"));
        }
        lines
    }
}

impl fuse::Facts for Facts {
    fn labels(&self) -> Vec<(&'static str, String)> {
        vec![
            ("user.quantfs.spec", self.plan.spec.clone()),
            ("user.quantfs.source", self.plan.source.clone()),
            ("user.quantfs.version", env!("CARGO_PKG_VERSION").to_owned()),
        ]
    }

    fn live(&self, file: Live) -> Vec<u8> {
        match file {
            Live::Status => format!("{:#}\n", self.status()),
            Live::Metrics => self.metrics(),
            Live::Plan => format!("{:#}\n", self.plan.to_json()),
        }
        .into_bytes()
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
