//! `quantfs recipe`: a view's options as a file, those that a target size asks for among them.

mod file;

use std::{io::Write, path::PathBuf};

use clap::Args;

use crate::{
    cli::{Failure, caches, options::ViewArgs, output::Output, size},
    plan::{self, Plan},
};

pub use file::{load, render};

/// Print the recipe of a view: TOML that asks for the same view with --recipe
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  quantfs recipe ~/models/Some-Llama --target-bpw 4.5 -o small.toml\n  quantfs recipe org/name --spec ct-4bit-g128 --target-size 5.5GiB\n  quantfs mount ~/models/Some-Llama /mnt/small --recipe small.toml"
)]
pub struct Recipe {
    /// A model directory, a repo id of the Hugging Face cache, or a .safetensors file
    pub source: String,
    /// Write it to this file
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    #[command(flatten)]
    view: ViewArgs,
}

/// Runs the verb.
///
/// # Errors
/// What keeps the view from being planned, or the file from being written.
pub fn run(args: &Recipe, out: &mut dyn Write) -> Result<(), Failure> {
    let output = args.output.as_deref().map(Output::at).transpose()?;
    let (source, options) = args.view.open(&args.source, &caches())?;
    let plan = plan::build(source.as_ref(), &options)?;
    let text = format!("# {}\n{}", summary(&plan), render(&options)?);
    match (output, &args.output) {
        (Some(output), Some(path)) => {
            output.write(text.as_bytes())?;
            writeln!(out, "{}: {}", path.display(), summary(&plan))?;
        }
        _ => out.write_all(text.as_bytes())?,
    }
    Ok(())
}

/// What a view comes to, in a line.
fn summary(plan: &Plan) -> String {
    let (totals, bytes) = (plan.totals(), plan.weight_bytes());
    let source = plan.source.replace(char::is_control, " ");
    format!(
        "{source} as {}: {:.3} bits per weight, weight files of {} ({bytes} bytes)",
        plan.spec,
        totals.bits_per_weight,
        size::render(bytes)
    )
}
