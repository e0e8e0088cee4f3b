//! `quantfs status --watch`: the same, drawn anew every second.
//!
//! On a terminal the page is drawn in place until somebody stops it; elsewhere each drawing follows the one before,
//! so that it can be written to a file.

use std::{io::Write, thread, time::Duration};

use console::Term;
use serde_json::Value;

use crate::cli::{
    Failure, size,
    status::{share, shown, speed},
};

/// Between two drawings; the daemons count bytes by the second.
const PAUSE: Duration = Duration::from_secs(1);

/// Draws what `ask` says until the output is closed.
///
/// # Errors
/// What `ask` fails with; where the output is closed.
pub(super) fn watch(mut ask: impl FnMut() -> Result<Vec<Value>, Failure>, out: &mut dyn Write) -> Result<(), Failure> {
    let term = Term::stdout();
    loop {
        let (height, width) = term.size_checked().filter(|_| term.is_term()).unwrap_or((u16::MAX, u16::MAX));
        let page = page(&ask()?);
        let lines = page.iter().take(usize::from(height.saturating_sub(1)));
        if term.is_term() {
            term.clear_screen()?;
        }
        for line in lines {
            let shown: String = line.chars().take(usize::from(width)).collect();
            writeln!(out, "{shown}")?;
        }
        out.flush()?;
        thread::sleep(PAUSE);
    }
}

/// A block of lines for each mount.
fn page(mounts: &[Value]) -> Vec<String> {
    if mounts.is_empty() {
        return vec!["no quantfs mounts".to_owned()];
    }
    mounts.iter().flat_map(|mount| block(mount).into_iter().chain([String::new()])).collect()
}

fn block(mount: &Value) -> Vec<String> {
    let text = |value: &Value| shown(value.as_str().unwrap_or("-"));
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let bytes = |value: &Value| size::render(number(value));
    let c = &mount["counters"];
    let mut lines =
        vec![format!("{}  {}  {}", text(&mount["mountpoint"]), text(&mount["source"]), text(&mount["state"]))];
    if mount["state"] != "live" {
        return lines;
    }
    let views = mount["views"].as_array().map(Vec::as_slice).unwrap_or_default();
    if views.is_empty() {
        lines.push(format!(
            "  shows   {}, {} in {} files",
            text(&mount["spec"]),
            bytes(&mount["bytes"]),
            number(&mount["files"])
        ));
    }
    for view in views {
        let (open, asleep) = (number(&view["open_files"]), if view["in_memory"] == true { "" } else { ", asleep" });
        let (name, spec) = (text(&view["name"]), text(&view["spec"]));
        let spec = if spec == name { String::new() } else { format!(" = {spec}") };
        lines.push(format!("  shows   {name}{spec}, {}, {open} open{asleep}", bytes(&view["bytes"])));
    }
    let n = |key: &str| number(&c[key]);
    lines.extend([
        format!(
            "  serves  {}/s, {} files open, {} reads so far",
            bytes(&c["recent_bytes_per_second"]),
            number(&mount["open_files"]),
            n("reads")
        ),
        format!(
            "  encodes {} a thread, {} tiles, {} of them ahead",
            speed(&mount["encode_gb_per_thread_second"]),
            n("tiles"),
            n("tiles_ahead")
        ),
        format!(
            "  cache   {} of {}, {} hits",
            bytes(&c["cache_bytes"]),
            bytes(&c["cache_limit"]),
            share(&mount["hit_rate"])
        ),
        format!("  queue   {} tiles in the making, {} reads waiting", n("tiles_in_flight"), n("pending")),
        format!("  memory  {}", bytes(&mount["resident_bytes"])),
        format!("  errors  {}, {} timeouts, {} elements NaN or infinite", n("errors"), n("timeouts"), n("not_finite")),
    ]);
    if number(&c["store_limit"]) > 0 {
        let (held, limit, rate) = (bytes(&c["store_bytes"]), bytes(&c["store_limit"]), share(&mount["store_hit_rate"]));
        lines.push(format!("  disk    {held} of {limit}, {rate} hits"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_page_tells_of_each_mount() {
        let counters = json!({ "reads": 7, "tiles": 3, "tiles_ahead": 1, "cache_bytes": 1 << 20, "cache_limit": 1 << 22,
            "recent_bytes_per_second": 5_000_000, "tiles_in_flight": 2, "pending": 4, "errors": 0, "timeouts": 0,
            "not_finite": 0, "store_limit": 0 });
        let live = json!({ "mountpoint": "/mnt/q", "source": "/m\u{1b}[2J", "spec": null, "state": "live", "files": 3,
            "views": [{ "name": "a", "spec": "mlx-4bit-g64", "bytes": 1000, "open_files": 1, "in_memory": false }],
            "bytes": 1000, "open_files": 1, "hit_rate": 0.5, "resident_bytes": 1 << 20, "counters": counters });
        let lines = page(&[live, json!({ "mountpoint": "/mnt/d", "source": "x", "state": "dead" })]);
        let text = lines.join("\n");
        assert!(!text.contains('\u{1b}'), "{text}");
        for word in [
            "/mnt/q  /m?[2J  live",
            "a = mlx-4bit-g64",
            "1 open, asleep",
            "5.00 MB/s",
            "50.0% hits",
            "2 tiles in the making, 4 reads",
            "/mnt/d  x  dead",
        ] {
            assert!(text.contains(word), "{word} in {text}");
        }
        assert_eq!(page(&[]), ["no quantfs mounts"]);
    }
}
