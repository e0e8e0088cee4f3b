//! `quantfs bench`: the machine's figures beside its limits.

#[cfg(feature = "fuse")]
mod read;

use std::{io::Write, thread};

use clap::{Args, Subcommand, builder::RangedU64ValueParser};

#[cfg(feature = "fuse")]
use read::ReadArgs;

use crate::{
    bulk::bench::{Contender, Figure, Layers, Quantize},
    cli::{
        Failure,
        decode::{arithmetic, threads},
        inspect::print_aligned,
        size,
    },
    plan::{Parts, Spec},
    quant::FORMATS,
    runtime::Arithmetic,
};

/// Less than this is read too fast to be measured.
const LEAST_SET: u64 = 1 << 20;

/// One that generates, several that are served together, a prompt.
const INPUTS: [usize; 5] = [1, 8, 32, 128, 512];

/// The largest layers of a model of 7 or 8 billion weights.
const SHAPE: [usize; 2] = [14336, 4096];

/// Measure this machine: each figure beside its limit, which is measured in turn with it
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  quantfs bench\n  quantfs bench layers --spec 4bit --spec 8bit --inputs 1,128 --threads 1\n  quantfs bench quantize --json | jq .value\n  quantfs bench read ~/models/Some-Llama --spec 4bit\n\nWithout a subject it measures layers and quantizing. What is timed is checked first."
)]
pub struct Bench {
    #[command(subcommand)]
    subject: Option<Subject>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Subcommand, Debug)]
enum Subject {
    /// Encoding on its own: bf16 source in the caches, GB/s of source beside reading memory
    Quantize,
    Layers(LayerArgs),
    #[cfg(feature = "fuse")]
    Read(ReadArgs),
}

#[derive(Args, Clone, Debug)]
struct RunArgs {
    /// What to measure (repeatable) [default: every scheme of `quantfs formats`, and each group of a format's
    /// default scheme; for `read` mlx-4bit-g64]
    #[arg(long = "spec", value_name = "SPEC", global = true)]
    specs: Vec<String>,
    /// Threads [default: one, and then one for each core]
    #[arg(long, value_name = "N", value_parser = threads, global = true)]
    threads: Option<usize>,
    /// Turns of each case, of which the median counts
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..), default_value_t = 5,
        global = true)]
    rounds: usize,
    /// Memory that is read for the limit, and weights that products go around: more than caches hold
    #[arg(long, value_name = "SIZE", value_parser = set, default_value = "512MiB", global = true)]
    set: usize,
    /// Print one JSON object a line
    #[arg(long, global = true)]
    json: bool,
}

/// Products with quantized layers: one input in GB/s of quantized bytes, several in GFLOP/s
#[derive(Args, Clone, Debug)]
struct LayerArgs {
    /// Inputs that are multiplied together
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_values_t = INPUTS,
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=4096))]
    inputs: Vec<usize>,
    /// Activations in int8 or f32
    #[arg(long, value_name = "int8|exact,...", value_delimiter = ',', default_value = "int8", value_parser = arithmetic)]
    arithmetic: Vec<Arithmetic>,
    /// Outputs and inputs of a layer
    #[arg(long, value_name = "ROWSxCOLUMNS", value_parser = shape, default_value = "14336x4096")]
    shape: [usize; 2],
}

impl Default for LayerArgs {
    fn default() -> Self {
        Self { inputs: INPUTS.to_vec(), arithmetic: vec![Arithmetic::default()], shape: SHAPE }
    }
}

/// Runs the verb.
///
/// # Errors
/// A spec that is unknown, quantizes nothing or does not fit the shape; results that are wrong.
pub fn run(args: &Bench, out: &mut dyn Write) -> Result<(), Failure> {
    let contenders = contenders(&args.run.specs)?;
    match &args.subject {
        Some(Subject::Quantize) => quantize(&args.run, contenders, out),
        Some(Subject::Layers(layers)) => layers.measure(&args.run, contenders, out),
        #[cfg(feature = "fuse")]
        Some(Subject::Read(read)) => args.run.read(read, out),
        None => {
            quantize(&args.run, contenders.clone(), out)?;
            LayerArgs::default().measure(&args.run, contenders, out)
        }
    }
}

fn quantize(args: &RunArgs, contenders: Vec<Contender>, out: &mut dyn Write) -> Result<(), Failure> {
    let job = Quantize { contenders, threads: args.threads(), set: args.set, rounds: args.rounds };
    args.report(|tell| Ok(job.run(tell)?), out)
}

impl LayerArgs {
    fn measure(&self, args: &RunArgs, contenders: Vec<Contender>, out: &mut dyn Write) -> Result<(), Failure> {
        let job = Layers {
            contenders,
            shape: self.shape,
            arithmetics: self.arithmetic.clone(),
            inputs: self.inputs.clone(),
            threads: args.threads(),
            set: args.set,
            rounds: args.rounds,
        };
        args.report(|tell| Ok(job.run(tell)?), out)
    }
}

impl RunArgs {
    fn threads(&self) -> Vec<usize> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        self.threads.map_or_else(|| if cores > 1 { vec![1, cores] } else { vec![1] }, |n| vec![n])
    }

    #[cfg(feature = "fuse")]
    fn read(&self, args: &ReadArgs, out: &mut dyn Write) -> Result<(), Failure> {
        let options = read::options(&self.specs)?;
        let job = read::Job { args: args.clone(), options, threads: self.threads(), rounds: self.rounds };
        self.report(|tell| job.run(tell), out)
    }

    /// Prints what a job tells when it tells it: a run takes minutes.
    fn report(
        &self,
        job: impl FnOnce(&mut dyn FnMut(Vec<Figure>)) -> Result<(), Failure>,
        out: &mut dyn Write,
    ) -> Result<(), Failure> {
        let mut printed = Ok(());
        job(&mut |figures| {
            if printed.is_ok() {
                printed = if self.json { lines(&figures, out) } else { table(&figures, out) };
            }
        })?;
        printed
    }
}

fn lines(figures: &[Figure], out: &mut dyn Write) -> Result<(), Failure> {
    for figure in figures {
        writeln!(out, "{}", serde_json::to_string(figure)?)?;
    }
    Ok(out.flush()?)
}

fn table(figures: &[Figure], out: &mut dyn Write) -> Result<(), Failure> {
    let line = |f: &Figure| {
        let threads = format!("{} thread{}", f.threads, if f.threads == 1 { "" } else { "s" });
        let part = match f.unit {
            // Times, of which less is better.
            "ms" => format!("{:.1} x {:.2} {}", f.value / f.limit, f.limit, f.limited_by),
            _ => format!("{:.0} % of {:.1}, {}", 100.0 * f.value / f.limit, f.limit, f.limited_by),
        };
        [f.bench.to_owned(), f.case.clone(), threads, format!("{:.2} {}", f.value, f.unit), part]
    };
    print_aligned(&figures.iter().map(line).collect::<Vec<_>>(), out)?;
    Ok(out.flush()?)
}

/// What was asked for, or the registry.
fn contenders(specs: &[String]) -> Result<Vec<Contender>, Failure> {
    if specs.is_empty() {
        return Ok(registry()?.iter().map(contender).collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect());
    }
    let named = |text: &String| {
        let spec = Spec::parse(Some(text), &Parts::default())?;
        let nothing =
            || Failure::usage(format!("--spec {text}: it quantizes nothing, so that there is nothing to measure"));
        contender(&spec)?.ok_or_else(nothing)
    };
    specs.iter().map(named).collect()
}

fn contender(spec: &Spec) -> Result<Option<Contender>, Failure> {
    Ok(spec.bind()?.map(|scheme| Contender { spec: spec.to_string(), scheme }))
}

/// Every scheme, and each word of the first choice (the group, where there is one) of a format's default scheme.
fn registry() -> Result<Vec<Spec>, Failure> {
    let mut specs: Vec<Spec> = vec![];
    for format in FORMATS {
        for scheme in format.schemes() {
            let words: &[&str] = format.options(scheme).first().copied().unwrap_or_default();
            let words = if *scheme == format.schemes()[0] { words } else { &[] };
            let texts = words.iter().map(|word| format!("{}-{scheme}-{word}", format.name()));
            let texts = texts.chain(words.is_empty().then(|| format!("{}-{scheme}", format.name())));
            for text in texts {
                specs.push(Spec::parse(Some(&text), &Parts::default())?);
            }
        }
    }
    Ok(specs)
}

fn set(text: &str) -> Result<usize, String> {
    let bytes = size::parse(text)?;
    if bytes < LEAST_SET {
        return Err(format!("at least {}MiB, and more than the caches hold for figures of memory", LEAST_SET >> 20));
    }
    usize::try_from(bytes).map_err(|_| "more than this machine can address".to_owned())
}

fn shape(text: &str) -> Result<[usize; 2], String> {
    let sides = text.split_once('x').and_then(|(rows, cols)| Some([rows.parse().ok()?, cols.parse().ok()?]));
    let sides: [usize; 2] = sides.ok_or("two numbers are needed, 14336x4096 say")?;
    // A matrix of which a set and its outputs fit in memory.
    let fits = sides.iter().all(|n| (1..=1 << 20).contains(n)) && sides[0] * sides[1] <= 1 << 30;
    fits.then_some(sides).ok_or_else(|| "from 1x1 to a billion weights".to_owned())
}
