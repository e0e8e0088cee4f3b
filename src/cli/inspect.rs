//! `quantfs inspect`: the plan as a table, without reading a weight; with `--errors` what it loses.

use std::{collections::BTreeMap, io::Write, num::NonZero, path::Path};

use clap::Args;
use serde_json::Value;

use crate::{
    bulk::{
        self,
        errors::{self, Figures, Sums},
    },
    cli::{Failure, caches, offline, options::ViewArgs, progress::Bar, recipe, size},
    container::json,
    plan::{self, Plan, Row},
};

/// Print what a view would show: per tensor what becomes of it and why, bytes before and after
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  quantfs inspect ~/models/Some-Llama --bits 4\n  quantfs inspect org/name --spec mlx-mxfp4 --all\n  quantfs inspect . --json | jq .totals\n  quantfs inspect ~/models/Some-Llama --bits 4 --errors\n  quantfs inspect . --bits 4 --rule lm_head=8bit --print-recipe > recipe.toml"
)]
pub struct Inspect {
    /// A model directory, a repo id of the Hugging Face cache, a .safetensors file; or a quantized
    /// directory, of which it prints what it holds
    pub path: String,
    #[command(flatten)]
    view: ViewArgs,
    /// One line for each tensor; otherwise tensors that differ in a number alone share a line
    #[arg(long)]
    pub all: bool,
    /// Read the weights, and add what is lost: root mean square of the differences, relative to the weights, as a
    /// signal-to-noise ratio in dB, and the largest one
    #[arg(long)]
    pub errors: bool,
    /// Of each tensor look at so many elements alone, in runs spread evenly over it [default: all]
    #[arg(long, value_name = "N|all", value_parser = sample, requires = "errors")]
    pub sample: Option<Sample>,
    /// Print the view's recipe instead: TOML that asks for the same view with --recipe
    #[arg(long, conflicts_with_all = ["json", "errors"])]
    pub print_recipe: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Runs the verb.
///
/// # Errors
/// What keeps the view from being planned.
pub fn run(args: &Inspect, out: &mut dyn Write) -> Result<(), Failure> {
    let path = Path::new(&args.path);
    if !args.print_recipe && path.is_dir() && is_quantized(path) && (args.view.says_nothing() || args.errors) {
        return if args.errors { Err(nothing_to_compare(path)) } else { quantized(args, path, out) };
    }
    if args.errors {
        return with_errors(args, out);
    }
    let (source, options) = args.view.open(&args.path, &caches())?;
    let plan = plan::build(source.as_ref(), &options)?;
    if args.print_recipe {
        out.write_all(recipe::render(&options)?.as_bytes())?;
        return Ok(());
    }
    if args.json {
        writeln!(out, "{:#}", plan.to_json())?;
        return Ok(());
    }
    table(&plan, None, args.all, out)?;
    Ok(())
}

fn with_errors(args: &Inspect, out: &mut dyn Write) -> Result<(), Failure> {
    let view = offline::view(&args.path, &args.view, &caches(), None)?;
    let bar = Bar::new("errors");
    let sample = args.sample.and_then(|sample| sample.0);
    let found = errors::errors(&view, sample, &bar)?;
    bar.finish();
    if args.json {
        writeln!(out, "{:#}", errors::to_json(view.plan(), &found, sample))?;
        return Ok(());
    }
    table(view.plan(), Some(&found), args.all, out)?;
    Ok(())
}

fn nothing_to_compare(path: &Path) -> Failure {
    let path = path.display();
    Failure::refused(format!(
        "{path}: is quantized already, and what it was made from is not here; `quantfs inspect SOURCE --spec SPEC --errors` \
         measures the source under the same spec, and `quantfs verify {path} --against SOURCE` tells whether this is it"
    ))
}

/// How many elements of a tensor are looked at; all where there is no number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample(pub Option<NonZero<u64>>);

/// `all`, or a number of elements, `1M` say.
pub(super) fn sample(text: &str) -> Result<Sample, String> {
    if text == "all" {
        return Ok(Sample(None));
    }
    let number = size::parse(text).map_err(|_| "`all`, or a number of elements: 65536, 1M".to_owned())?;
    Ok(Sample(NonZero::new(number)))
}

/// Whether a directory says of itself that its weights are quantized.
fn is_quantized(path: &Path) -> bool {
    let config = std::fs::read(path.join("config.json")).ok().and_then(|bytes| json::parse(&bytes).ok());
    let says = |c: &Value| c.get("quantization").is_some() || c["quantization_config"].get("quant_method").is_some();
    path.join("quantization.json").exists() || config.as_ref().is_some_and(says)
}

fn quantized(args: &Inspect, path: &Path, out: &mut dyn Write) -> Result<(), Failure> {
    let rows = bulk::describe(path)?;
    if args.json {
        writeln!(out, "{:#}", serde_json::json!({ "path": args.path, "tensors": rows }))?;
        return Ok(());
    }
    let mut lines = vec![["tensor", "shape", "dtype", "stored", "bits", "bytes", "", ""].map(str::to_owned)];
    for group in grouped(&rows, args.all) {
        let [tensor, shape, dtype, becomes, bits, bytes, _, why] = line(&group, &rows);
        lines.push([tensor, shape, dtype, becomes, bits, bytes, why, String::new()]);
    }
    print_aligned(&lines, out)?;
    let dense = rows.iter().filter(|r| r.becomes == "dense").count();
    let bytes = rows.iter().map(|r| r.bytes_after).sum();
    writeln!(out, "{} tensors quantized, {dense} dense, {}", rows.len() - dense, size::render(bytes))?;
    Ok(())
}

fn table(plan: &Plan, found: Option<&[Option<Sums>]>, all: bool, out: &mut dyn Write) -> std::io::Result<()> {
    writeln!(out, "{} as {}", plan.source, plan.spec)?;
    let mut lines = vec![["tensor", "shape", "dtype", "becomes", "bits", "before", "after", "why"].map(str::to_owned)];
    let groups = grouped(&plan.rows, all);
    lines.extend(groups.iter().map(|group| line(group, &plan.rows)));
    match found {
        None => print_aligned(&lines, out)?,
        Some(found) => {
            let of = |group: &Group| lost(group.members.iter().filter_map(|row| found[*row]));
            let columns = std::iter::once(ERRORS.map(str::to_owned)).chain(groups.iter().map(of));
            let lines: Vec<[String; 12]> = lines.into_iter().zip(columns).map(beside).collect();
            print_aligned(&lines, out)?;
        }
    }
    totals(plan, out)?;
    found.map_or(Ok(()), |found| total_errors(found, out))?;
    if !plan.hidden.is_empty() {
        writeln!(out, "hidden twins: {} (--show PATTERN shows them)", plan.hidden.join(", "))?;
    }
    for warning in &plan.warnings {
        writeln!(out, "warning: {warning}")?;
    }
    Ok(())
}

fn totals(plan: &Plan, out: &mut dyn Write) -> std::io::Result<()> {
    let t = plan.totals();
    writeln!(
        out,
        "{} tensors quantized, {} dense, {} dropped; {} -> {}, {:.3} bits per weight",
        t.quantized,
        t.dense,
        t.dropped,
        size::render(t.bytes_before),
        size::render(t.bytes_after),
        t.bits_per_weight
    )
}

/// What is lost, as columns.
const ERRORS: [&str; 4] = ["rms", "rel %", "sqnr dB", "max"];

fn lost(members: impl Iterator<Item = Sums>) -> [String; 4] {
    let sums = errors::total(members);
    if sums.elements == 0 {
        return Default::default();
    }
    let Figures { rms, relative, sqnr_db, max, .. } = sums.figures();
    let relative = relative.map_or("-".to_owned(), |r| format!("{:.3}", r * 100.0));
    let sqnr = sqnr_db.map_or("-".to_owned(), |db| format!("{db:.2}"));
    [format!("{rms:.3e}"), relative, sqnr, format!("{max:.3e}")]
}

/// A line with what is lost before the reason.
fn beside((line, [rms, relative, sqnr, max]): ([String; 8], [String; 4])) -> [String; 12] {
    let [tensor, shape, dtype, becomes, bits, before, after, why] = line;
    [tensor, shape, dtype, becomes, bits, before, after, rms, relative, sqnr, max, why]
}

fn total_errors(found: &[Option<Sums>], out: &mut dyn Write) -> std::io::Result<()> {
    let sums = errors::total(found.iter().copied().flatten());
    let [rms, relative, sqnr, max] = lost(std::iter::once(sums));
    writeln!(out, "errors over {} elements: rms {rms}, {relative} %, {sqnr} dB, max {max}", sums.elements)?;
    let Figures { nan, infinite, lost, .. } = sums.figures();
    if nan + infinite + lost > 0 {
        writeln!(out, "left out: {nan} NaN, {infinite} infinite, {lost} finite that are shown as one of these")?;
    }
    Ok(())
}

/// Rows that share a line.
struct Group {
    name: String,
    members: Vec<usize>,
}

/// Rows that agree in all but the numbers of their names, in order of first appearance.
fn grouped(rows: &[Row], all: bool) -> Vec<Group> {
    let mut groups: Vec<Group> = vec![];
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    for (number, row) in rows.iter().enumerate() {
        let name = if row.component.is_empty() { row.name.clone() } else { format!("{}/{}", row.component, row.name) };
        let key = if all {
            name.clone()
        } else {
            format!("{} {:?} {} {} {}", numberless(&name), row.shape, row.dtype, row.becomes, row.why)
        };
        let place = *places.entry(key).or_insert(groups.len());
        if place == groups.len() {
            groups.push(Group { name, members: vec![] });
        } else if !all {
            // Only a group of several hides a number.
            groups[place].name = numberless(&name);
        }
        groups[place].members.push(number);
    }
    groups
}

/// `model.layers.17.mlp` becomes `model.layers.#.mlp`.
fn numberless(name: &str) -> String {
    let part =
        |p: &str| if !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()) { "#".to_owned() } else { p.to_owned() };
    name.split('.').map(part).collect::<Vec<_>>().join(".")
}

fn line(Group { name, members }: &Group, rows: &[Row]) -> [String; 8] {
    let first = &rows[members[0]];
    let sum = |of: fn(&Row) -> u64| size::render(members.iter().map(|row| of(&rows[*row])).sum());
    let times = if members.len() > 1 { format!(" x{}", members.len()) } else { String::new() };
    let shape = first.shape.iter().map(ToString::to_string).collect::<Vec<_>>().join("x");
    let bits = if first.becomes == "dropped" { String::new() } else { format!("{:.2}", first.bits_per_weight()) };
    [
        format!("{name}{times}"),
        shape,
        first.dtype.to_string(),
        first.becomes.clone(),
        bits,
        sum(|r| r.bytes_before),
        sum(|r| r.bytes_after),
        first.why.clone(),
    ]
}

/// Columns as wide as their widest cell.
pub(super) fn print_aligned<const N: usize>(lines: &[[String; N]], out: &mut dyn Write) -> std::io::Result<()> {
    let widths: Vec<usize> = (0..N).map(|i| lines.iter().map(|l| l[i].chars().count()).max().unwrap_or(0)).collect();
    for cells in lines {
        let padded: Vec<String> = cells.iter().zip(&widths).map(|(c, w)| format!("{c:<w$}")).collect();
        writeln!(out, "{}", padded.join("  ").trim_end())?;
    }
    Ok(())
}
