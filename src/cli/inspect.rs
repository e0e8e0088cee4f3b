//! `quantfs inspect`: the plan as a table, without reading a weight.

use std::{collections::BTreeMap, io::Write, path::Path};

use clap::Args;
use serde_json::Value;

use crate::{
    bulk,
    cli::{Failure, caches, options::ViewArgs, recipe, size},
    container::json,
    plan::{self, Plan, Row},
};

/// Print what a view would show: per tensor what becomes of it and why, bytes before and after
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  quantfs inspect ~/models/Some-Llama --bits 4\n  quantfs inspect org/name --spec mlx-mxfp4 --all\n  quantfs inspect . --json | jq .totals\n  quantfs inspect . --bits 4 --rule lm_head=8bit --print-recipe > recipe.toml"
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
    /// Print the view's recipe instead: TOML that asks for the same view with --recipe
    #[arg(long, conflicts_with = "json")]
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
    if args.view.says_nothing() && !args.print_recipe && path.is_dir() && is_quantized(path) {
        return quantized(args, path, out);
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
    table(&plan, args.all, out)?;
    Ok(())
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
    for (name, rows) in grouped(&rows, args.all) {
        let [tensor, shape, dtype, becomes, bits, bytes, _, why] = line(&name, &rows);
        lines.push([tensor, shape, dtype, becomes, bits, bytes, why, String::new()]);
    }
    print_aligned(&lines, out)?;
    let dense = rows.iter().filter(|r| r.becomes == "dense").count();
    let bytes = rows.iter().map(|r| r.bytes_after).sum();
    writeln!(out, "{} tensors quantized, {dense} dense, {}", rows.len() - dense, size::render(bytes))?;
    Ok(())
}

fn table(plan: &Plan, all: bool, out: &mut dyn Write) -> std::io::Result<()> {
    writeln!(out, "{} as {}", plan.source, plan.spec)?;
    let mut lines = vec![["tensor", "shape", "dtype", "becomes", "bits", "before", "after", "why"].map(str::to_owned)];
    for (name, rows) in grouped(&plan.rows, all) {
        lines.push(line(&name, &rows));
    }
    print_aligned(&lines, out)?;
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
    )?;
    if !plan.hidden.is_empty() {
        writeln!(out, "hidden twins: {} (--show PATTERN shows them)", plan.hidden.join(", "))?;
    }
    for warning in &plan.warnings {
        writeln!(out, "warning: {warning}")?;
    }
    Ok(())
}

/// Rows that agree in all but the numbers of their names, in order of first appearance.
fn grouped(rows: &[Row], all: bool) -> Vec<(String, Vec<&Row>)> {
    let mut groups: Vec<(String, Vec<&Row>)> = vec![];
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    for row in rows {
        let name = if row.component.is_empty() { row.name.clone() } else { format!("{}/{}", row.component, row.name) };
        let key = if all {
            name.clone()
        } else {
            format!("{} {:?} {} {} {}", numberless(&name), row.shape, row.dtype, row.becomes, row.why)
        };
        let place = *places.entry(key).or_insert(groups.len());
        if place == groups.len() {
            groups.push((name, vec![]));
        } else if !all {
            // Only a group of several hides a number.
            groups[place].0 = numberless(&name);
        }
        groups[place].1.push(row);
    }
    groups
}

/// `model.layers.17.mlp` becomes `model.layers.#.mlp`.
fn numberless(name: &str) -> String {
    let part =
        |p: &str| if !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()) { "#".to_owned() } else { p.to_owned() };
    name.split('.').map(part).collect::<Vec<_>>().join(".")
}

fn line(name: &str, rows: &[&Row]) -> [String; 8] {
    let first = rows[0];
    let sum = |of: fn(&Row) -> u64| size::render(rows.iter().map(|r| of(r)).sum());
    let times = if rows.len() > 1 { format!(" x{}", rows.len()) } else { String::new() };
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
