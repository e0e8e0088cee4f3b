//! `quantfs verify`: is everything there, and is it what it should be?

use std::{io::Write, path::PathBuf};

use clap::Args;

use crate::{
    bulk::{self, Audit, Comparison, TensorComparison},
    cli::{Failure, caches, offline, options::ViewArgs, progress::Bar},
};

/// Audit a quantized directory: every tensor present, shapes, finite scales; with a source, every byte
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  quantfs verify ./Some-Llama-4bit\n  \
    quantfs verify ./Some-Llama-4bit --against ~/models/Some-Llama\n  \
    quantfs verify ./mlx-converted --against ~/models/Some-Llama --tensors --bits 4\n  \
    quantfs verify ./rounded --against ~/models/Some-Llama --spec dense-4bit\n\n\
    Without view options, --against compares with the view that quantization.json names. A view of dense-SPEC has no \
    such\nfile, being the source's files with other values: say its spec again.")]
pub struct Verify {
    /// A quantized directory: exported, mounted, or written by another tool
    pub dir: PathBuf,
    /// The full-precision source: compare every byte of the view of it
    #[arg(long, value_name = "SOURCE")]
    pub against: Option<String>,
    /// Compare tensor by tensor, wherever they lie: for a directory that another tool wrote, whose
    /// files are laid out otherwise
    #[arg(long, requires = "against")]
    pub tensors: bool,
    #[command(flatten)]
    view: ViewArgs,
    /// Worker threads [default: one for each core]
    #[arg(long, value_name = "N", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
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
    let (mut comparison, mut tensors) = (None, None);
    if let Some(source) = &args.against {
        let view = offline::view(source, &asked(args)?, &caches(), args.threads)?;
        let bar = Bar::new("compare");
        if args.tensors {
            tensors = Some(bulk::compare_tensors(&view, &args.dir, &bar)?);
        } else {
            comparison = Some(bulk::compare(&view, &args.dir, &bar)?);
        }
        bar.finish();
    }
    if args.json {
        writeln!(out, "{:#}", serde_json::json!({ "audit": audit, "comparison": comparison, "tensors": tensors }))?;
    } else {
        tell_audit(&audit, out)?;
        if let Some(comparison) = &comparison {
            tell_comparison(comparison, out)?;
        }
        if let Some(tensors) = &tensors {
            tell_tensors(tensors, out)?;
        }
    }
    if audit.is_sound() && comparison.is_none_or(|c| c.is_equal()) && tensors.is_none_or(|t| t.is_equal()) {
        return Ok(());
    }
    Err(Failure::refused(format!("{}: verification failed", args.dir.display())))
}

/// What was typed; where nothing was, what the directory's manifest says it is.
fn asked(args: &Verify) -> Result<ViewArgs, Failure> {
    let mut view = args.view.clone();
    if view.says_nothing() {
        let path = args.dir.join("quantization.json");
        let asked =
            std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok());
        match asked.and_then(|m| serde_json::from_value::<ViewArgs>(m.get("options")?.clone()).ok()) {
            Some(recorded) => view = recorded,
            None => {
                let says = if path.exists() { "does not say which view this is" } else { "is not there" };
                let why = format!("{}: {says}; give --spec and what else it was made with", path.display());
                return Err(Failure::refused(why));
            }
        }
    }
    Ok(view)
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
    for (what, paths) in [("missing", &found.missing), ("only in the directory", &found.extra)] {
        if !paths.is_empty() {
            writeln!(out, "  {what}: {}", Audit::sample(paths))?;
        }
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

fn tell_tensors(found: &TensorComparison, out: &mut dyn Write) -> std::io::Result<()> {
    let TensorComparison { equal, missing, extra, different } = found;
    let [m, e, d] = [missing, extra, different].map(Vec::len);
    writeln!(out, "tensors: {equal} equal bit for bit, {d} different, {m} missing, {e} only in the directory")?;
    for (what, names) in [("missing", missing), ("only in the directory", extra), ("different", different)] {
        if !names.is_empty() {
            writeln!(out, "  {what}: {}", Audit::sample(names))?;
        }
    }
    Ok(())
}
