//! `quantfs status`: the live mounts, from the mount table and their daemons' own words.

use std::{
    io::{ErrorKind, Write},
    path::PathBuf,
};

use clap::Args;
use serde_json::{Value, json};

use crate::{
    cli::{
        Failure,
        control::{self, Request},
        inspect::print_aligned,
        size, watch,
    },
    fuse::{self, mountinfo},
};

/// Show mounts: what they show, how often tiles are found ready, speed, memory, errors
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  quantfs status\n  quantfs status --watch\n  quantfs status /mnt/q4 --json | jq .counters"
)]
pub struct Status {
    /// One mount; all where none is named
    pub mountpoint: Option<PathBuf>,
    /// Print JSON: an object for one mount, a list for all
    #[arg(long, conflicts_with = "watch")]
    pub json: bool,
    /// Draw it anew every second, with all figures
    #[arg(long)]
    pub watch: bool,
}

/// Runs the verb.
///
/// # Errors
/// A path that is no mount of ours.
pub fn run(args: &Status, out: &mut dyn Write) -> Result<(), Failure> {
    if args.watch {
        return watch::watch(|| args.ask(), out);
    }
    let mut found = args.ask()?;
    if args.json {
        let shown = if args.mountpoint.is_some() { found.remove(0) } else { Value::from(found) };
        writeln!(out, "{shown:#}")?;
    } else if found.is_empty() {
        writeln!(out, "no quantfs mounts")?;
    } else {
        let head = [
            "mounted on",
            "source",
            "spec",
            "open",
            "hits",
            "served",
            "encode/thread",
            "memory",
            "on disk",
            "errors",
            "NaN/inf",
            "state",
        ];
        let rows: Vec<_> = std::iter::once(head.map(str::to_owned)).chain(found.iter().map(row)).collect();
        print_aligned(&rows, out)?;
    }
    Ok(())
}

impl Status {
    /// What is known of the mounts in question.
    fn ask(&self) -> Result<Vec<Value>, Failure> {
        let entries = match &self.mountpoint {
            Some(path) => vec![fuse::find(path)?],
            None => mountinfo::read()?.into_iter().filter(mountinfo::Entry::is_ours).collect(),
        };
        Ok(entries.iter().map(status_of).collect())
    }
}

/// What the daemon says, or what is known without it.
fn status_of(entry: &mountinfo::Entry) -> Value {
    let (state, mut status) = match control::ask(entry, Request::Status) {
        Ok(status) => ("live".to_owned(), status),
        // Nobody is asked through the mount who is not known to be dead: a stuck daemon would hold us.
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => ("dead".to_owned(), json!({})),
        Err(e) if e.kind() == ErrorKind::PermissionDenied => {
            let user = entry.user.map_or_else(|| "another user".to_owned(), |user| format!("user {user}"));
            (format!("{user}'s mount"), json!({}))
        }
        Err(_) => ("no answer".to_owned(), json!({})),
    };
    if status["mountpoint"].is_null() {
        status["mountpoint"] = entry.path.display().to_string().into();
        status["source"] = entry.source.as_str().into();
    }
    status["state"] = state.into();
    status
}

fn row(status: &Value) -> [String; 12] {
    let text = |key: &str| status[key].as_str().map_or_else(|| "-".to_owned(), shown);
    let number = |value: &Value| value.as_u64().map_or_else(|| "-".to_owned(), |n| n.to_string());
    let bytes = |value: &Value, unit| value.as_u64().map_or_else(|| "-".to_owned(), |n| size::render(n) + unit);
    [
        text("mountpoint"),
        text("source"),
        spec(status),
        number(&status["open_files"]),
        share(&status["hit_rate"]),
        bytes(&status["counters"]["recent_bytes_per_second"], "/s"),
        speed(&status["encode_gb_per_thread_second"]),
        bytes(&status["resident_bytes"], ""),
        stored(status),
        number(&status["counters"]["errors"]),
        number(&status["counters"]["not_finite"]),
        text("state"),
    ]
}

/// The spec of the view; of several their number.
fn spec(status: &Value) -> String {
    match (status["spec"].as_str(), status["views"].as_array()) {
        (Some(spec), _) if status["mixed"] == true => format!("{}, mixed", shown(spec)),
        (Some(spec), _) => shown(spec),
        (None, Some(views)) if views.len() == 1 => "1 view".to_owned(),
        (None, Some(views)) => format!("{} views", views.len()),
        (None, None) => "-".to_owned(),
    }
}

/// Another user's daemon may say anything.
pub(super) fn shown(text: &str) -> String {
    text.replace(char::is_control, "?")
}

/// A ratio in percent; `-` where there is none.
pub(super) fn share(ratio: &Value) -> String {
    ratio.as_f64().map_or_else(|| "-".to_owned(), |x| format!("{:.1}%", x * 100.0))
}

/// GB/s; `-` where nothing was measured.
pub(super) fn speed(rate: &Value) -> String {
    rate.as_f64().map_or_else(|| "-".to_owned(), |x| format!("{x:.2} GB/s"))
}

/// How much `--cache-dir` holds, and how many of the tiles that were asked for; `-` where there is none.
fn stored(status: &Value) -> String {
    let counters = &status["counters"];
    match (counters["store_limit"].as_u64(), counters["store_bytes"].as_u64()) {
        (Some(1..), Some(held)) => match status["store_hit_rate"].as_f64() {
            Some(rate) => format!("{} ({:.1}% hits)", size::render(held), rate * 100.0),
            None => size::render(held),
        },
        _ => "-".to_owned(),
    }
}
