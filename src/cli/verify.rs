//! `quantfs verify`: is everything there, and is it what it should be?

use std::{io::Write, path::PathBuf};

use clap::Args;

use crate::{
    bulk::{self, Audit, Comparison},
    cli::{Failure, caches, offline, options::ViewArgs, progress::Bar},
    plan::Options,
};

/// Audit a quantized directory: every tensor present, shapes, finite scales; with a source, every byte
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  quantfs verify ./Some-Llama-4bit\n  quantfs verify /mnt/q4 --against ~/models/Some-Llama"
)]
pub struct Verify {
    /// A quantized directory: exported, mounted, or written by another tool
    pub dir: PathBuf,
    /// The full-precision source: compare every byte of the view of it
    #[arg(long, value_name = "SOURCE")]
    pub against: Option<String>,
    #[command(flatten)]
    view: ViewArgs,
    /// Worker threads [default: one for each core]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Runs the verb.
///
/// # Errors
/// A directory that cannot be read, and one in which something is wrong.
pub fn run(args: &Verify, out: &mut dyn Write) -> Result<(), Failure> {
    let bar = Bar::new("audit");
    let audit = bulk::audit(&args.dir, &bar)?;
    bar.finish();
    let comparison = args.against.as_deref().map(|source| compare(args, source)).transpose()?;
    if args.json {
        writeln!(out, "{:#}", serde_json::json!({ "audit": audit, "comparison": comparison }))?;
    } else {
        tell_audit(&audit, out)?;
        if let Some(comparison) = &comparison {
            tell_comparison(comparison, out)?;
        }
    }
    if audit.is_sound() && comparison.is_none_or(|c| c.is_equal()) {
        return Ok(());
    }
    Err(Failure::refused(format!("{}: verification failed", args.dir.display())))
}

fn compare(args: &Verify, source: &str) -> Result<Comparison, Failure> {
    let view = offline::view(source, &options(args)?, &caches(), args.threads)?;
    let bar = Bar::new("compare");
    let comparison = bulk::compare(&view, &args.dir, &bar)?;
    bar.finish();
    Ok(comparison)
}

/// What was typed; where nothing was, what the directory's manifest says it is.
fn options(args: &Verify) -> Result<Options, Failure> {
    let mut view = args.view.clone();
    if view.says_nothing() {
        let path = args.dir.join("quantization.json");
        let asked =
            std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok());
        match asked.and_then(|m| serde_json::from_value::<ViewArgs>(m.get("options")?.clone()).ok()) {
            Some(recorded) => view = recorded,
            None => {
                let why = format!(
                    "{}: does not say which view it is; give --spec and what else it was made with",
                    path.display()
                );
                return Err(Failure::refused(why));
            }
        }
    }
    Ok(view.options()?)
}

fn tell_audit(audit: &Audit, out: &mut dyn Write) -> std::io::Result<()> {
    writeln!(
        out,
        "audit: {} tensors matched, {} missing, {} extra, {} scales and biases looked at, {} faults",
        audit.matched,
        audit.missing.len(),
        audit.extra.len(),
        audit.scales,
        audit.faults.len()
    )?;
    for (what, names) in [("missing", &audit.missing), ("extra", &audit.extra)] {
        if !names.is_empty() {
            writeln!(out, "  {what}: {}", Audit::sample(names))?;
        }
    }
    if audit.quantized == 0 {
        writeln!(out, "  note: no weight of it is quantized")?;
    }
    audit.faults.iter().try_for_each(|f| writeln!(out, "  fault: {f}"))
}

fn tell_comparison(found: &Comparison, out: &mut dyn Write) -> std::io::Result<()> {
    writeln!(
        out,
        "bytes: {} files equal, {} different, {} missing, {} only in the directory",
        found.equal,
        found.different.len(),
        found.missing.len(),
        found.extra.len()
    )?;
    for path in &found.missing {
        writeln!(out, "  missing: {path}")?;
    }
    for d in &found.different {
        writeln!(
            out,
            "  different: {} from offset {} on ({} and {} bytes)",
            d.path, d.offset, d.lengths.0, d.lengths.1
        )?;
    }
    Ok(())
}
