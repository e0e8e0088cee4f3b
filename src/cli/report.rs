//! `quantfs report`: a page about what a source may become, for a browser.

use std::{io::Write, path::PathBuf, sync::Arc};

use clap::Args;

use crate::{
    bulk::report::{self, Asked},
    cli::{
        Failure, caches,
        inspect::{Sample, sample},
        offline,
        options::ViewArgs,
        output::Output,
        progress::Bar,
        size,
    },
    plan::{Parts, Spec},
};

/// Write a page about a source: size against error for the specs that might be chosen, layer by layer, and the plan
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  quantfs report ~/models/Some-Llama -o report.html\n  quantfs report org/name -o report.html --spec ct-4bit-g128 --rule 'lm_head=8bit'\n  quantfs report . -o r.html --candidate 4bit --candidate mlx-mxfp4 --candidate gptq-4bit"
)]
pub struct Report {
    /// A model directory, a repo id of the Hugging Face cache, or a .safetensors file
    pub source: String,
    /// The page: one file that needs no other and no network
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// A spec to compare, for all that the view quantizes: what rules and recipes keep is kept (repeatable) [default: every scheme of the view's format, with every group and method]
    #[arg(long = "candidate", value_name = "SPEC")]
    pub candidates: Vec<String>,
    /// Of each tensor look at so many elements alone, in runs spread evenly over it [default: all, where the
    /// quantized tensors have no more than 2^28 elements together; 2^20 of each otherwise]
    #[arg(long, value_name = "N|all", value_parser = sample)]
    pub sample: Option<Sample>,
    #[command(flatten)]
    view: ViewArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Runs the verb.
///
/// # Errors
/// What keeps the view from being planned or read, or the page from being written.
pub fn run(args: &Report, out: &mut dyn Write) -> Result<(), Failure> {
    let output = Output::at(&args.output)?;
    let (view, options) = offline::view_with_options(&args.source, &args.view, &caches())?;
    let parse = |text: &String| Spec::parse(Some(text), &Parts::default());
    let mut candidates = args.candidates.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    if candidates.is_empty() {
        candidates = options.spec.alternatives();
    }
    let sample = args.sample.map_or_else(|| report::default_sample(view.plan()), |sample| sample.0);
    let bar = Bar::new("report");
    let facts = report::measure(&view, &options, &Asked { candidates, sample }, &bar)?;
    bar.finish();
    let page = report::page(&facts);
    output.write(page.as_bytes())?;
    let count = |key: &str| facts[key].as_array().map_or(0, Vec::len);
    let plan = Arc::clone(view.plan());
    if args.json {
        let told = serde_json::json!({
            "output": args.output, "bytes": page.len(), "source": plan.source, "spec": plan.spec,
            "candidates": count("candidates"), "tensors": count("tensors"), "sample": sample, "warnings": plan.warnings,
        });
        writeln!(out, "{told}")?;
    } else {
        let (path, size) = (args.output.display(), size::render(page.len() as u64));
        writeln!(out, "{path}: {} specs, {} tensors, {size}", count("candidates"), count("tensors"))?;
    }
    Ok(())
}
