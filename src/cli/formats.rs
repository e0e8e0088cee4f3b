//! `quantfs formats`: the registry as a table.

use std::io::Write;

use clap::Args;

use crate::{
    cli::{Failure, inspect::print_aligned},
    quant::{FORMATS, Format},
};

/// List the formats, their schemes and options, and who reads them
#[derive(Args, Debug)]
pub struct Formats {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Print a Markdown table, as README shows it
    #[arg(long, conflicts_with = "json")]
    pub markdown: bool,
}

/// Runs the verb.
///
/// # Errors
/// Only where the output cannot be written.
pub fn run(args: &Formats, out: &mut dyn Write) -> Result<(), Failure> {
    if args.json {
        let rows: Vec<_> = FORMATS.iter().map(|f| json(*f)).collect();
        writeln!(out, "{:#}", serde_json::Value::from(rows))?;
    } else if args.markdown {
        write!(out, "{}", markdown())?;
    } else {
        let head = ["format", "schemes (default first)", "options (default first)", "read by"].map(str::to_owned);
        let rows: Vec<[String; 4]> = std::iter::once(head).chain(FORMATS.iter().map(|f| row(*f))).collect();
        print_aligned(&rows, out)?;
        for format in FORMATS.iter().filter(|f| !f.notes().is_empty()) {
            writeln!(out, "{}: {}", format.name(), format.notes())?;
        }
    }
    Ok(())
}

/// The table of README.
#[must_use]
pub fn markdown() -> String {
    let mut text = String::from(
        "| format | schemes (default first) | options (default first) | read by |\n| --- | --- | --- | --- |\n",
    );
    for format in FORMATS {
        let [name, schemes, options, readers] = row(*format);
        let notes = if format.notes().is_empty() { String::new() } else { format!(" ({})", format.notes()) };
        text.push_str(&format!("| {name} | {schemes} | {options}{notes} | {readers} |\n"));
    }
    text
}

fn row(format: &dyn Format) -> [String; 4] {
    let name =
        std::iter::once(format.name()).chain(format.other_names().iter().copied()).collect::<Vec<_>>().join(" = ");
    [name, format.schemes().join(" "), options(format), format.readers().to_owned()]
}

/// The choices of all schemes; where schemes differ, each choice says whose it is.
fn options(format: &dyn Format) -> String {
    let mut seen: Vec<(&'static [&'static str], Vec<&str>)> = vec![];
    for scheme in format.schemes() {
        for choice in format.options(scheme) {
            match seen.iter_mut().find(|(c, _)| *c == choice) {
                Some((_, schemes)) => schemes.push(scheme),
                None => seen.push((choice, vec![scheme])),
            }
        }
    }
    let quantizing = format.schemes().iter().filter(|s| **s != "source").count();
    let show = |(choice, schemes): &(&[&str], Vec<&str>)| {
        let words = choice.join(" ");
        if schemes.len() == quantizing { words } else { format!("{}: {words}", schemes.join("/")) }
    };
    seen.iter().map(show).collect::<Vec<_>>().join("; ")
}

fn json(format: &dyn Format) -> serde_json::Value {
    let schemes: Vec<_> =
        format.schemes().iter().map(|s| serde_json::json!({ "name": s, "options": format.options(s) })).collect();
    serde_json::json!({
        "name": format.name(),
        "other_names": format.other_names(),
        "schemes": schemes,
        "readers": format.readers(),
        "notes": format.notes(),
    })
}
