//! `quantfs export`: the view written to disk.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use clap::Args;

use crate::{
    bulk,
    cli::{Failure, caches, offline, options::ViewArgs, progress::Bar, size},
};

/// Write a view to disk: in parallel, atomic per file; the same command goes on where a killed one stopped
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  quantfs export ~/models/Some-Llama ./Some-Llama-4bit --bits 4\n  quantfs export org/name ./out --spec mlx-mxfp4 --shard-size 5GB"
)]
pub struct Export {
    /// A model directory, a repo id of the Hugging Face cache, or a .safetensors file
    pub source: String,
    /// A directory that is new, empty, or holds an unfinished export of the same view
    pub dir: PathBuf,
    #[command(flatten)]
    view: ViewArgs,
    /// Worker threads [default: one for each core]
    #[arg(long, value_name = "N", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    pub threads: Option<usize>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// An export inside its source would be taken for a part of it.
fn apart(source: &Path, dir: &Path) -> Result<(), Failure> {
    let (Ok(source), Ok(dir)) = (source.canonicalize(), std::path::absolute(dir)) else { return Ok(()) };
    let real = dir.ancestors().find_map(|a| a.canonicalize().ok());
    if source.is_dir() && real.is_some_and(|real| real.starts_with(&source)) {
        let (dir, source) = (dir.display(), source.display());
        return Err(Failure::refused(format!("{dir}: lies inside the source {source}; choose a directory elsewhere")));
    }
    Ok(())
}

/// Runs the verb.
///
/// # Errors
/// What keeps the view from being planned, read or written.
pub fn run(args: &Export, out: &mut dyn Write) -> Result<(), Failure> {
    apart(Path::new(&args.source), &args.dir)?;
    let view = offline::view(&args.source, &args.view, &caches(), args.threads)?;
    let started = std::time::Instant::now();
    let bar = Bar::new("export");
    let written = bulk::export(&view, &args.dir, &bar)?;
    bar.finish();
    let seconds = started.elapsed().as_secs_f64();
    let plan = view.plan();
    if args.json {
        let facts = serde_json::json!({
            "spec": plan.spec, "source": plan.source, "dir": args.dir, "files": plan.files.len(), "bytes_written": written, "seconds": seconds,
            "warnings": plan.warnings,
        });
        writeln!(out, "{facts}")?;
    } else {
        for warning in &plan.warnings {
            writeln!(out, "warning: {warning}")?;
        }
        let dir = args.dir.display();
        let done = match written {
            0 => "all there already".to_owned(),
            bytes => format!("{} written in {seconds:.1} s", size::render(bytes)),
        };
        writeln!(out, "{dir}: {} files, {done}, {}", plan.files.len(), plan.spec)?;
    }
    Ok(())
}
