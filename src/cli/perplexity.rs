//! `quantfs perplexity`: how well a model predicts a text, and how far it is from a reference.

use std::{
    io::Write,
    path::{Path, PathBuf},
    time::Instant,
};

use clap::Args;

use crate::{
    bulk::Progress,
    cli::{
        Failure,
        decode::{DecodeArgs, warn_of_length},
        progress::Bar,
    },
    runtime::{
        Arithmetic,
        model::{
            Decoder, Tokens,
            perplexity::{self, Difference, Score},
        },
    },
};

/// Measure how well a model predicts a text; against a reference, how far its predictions are from it
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  quantfs perplexity /mnt/q4 wiki.txt\n  quantfs perplexity /mnt/q4 wiki.txt --reference ~/models/Some-Llama --json\n\nThe text is one stream of tokens without special ones, cut into inputs of --context; the token after each\nposition is scored, and a last partial input is left out."
)]
pub struct Perplexity {
    /// A model directory: mounted, exported, written by mlx_lm, or in full precision
    pub dir: PathBuf,
    /// UTF-8 text
    pub textfile: PathBuf,
    /// Tokens of an input
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub context: usize,
    /// A directory with the same tokenizer to compare with, the full-precision source say; computed exactly
    #[arg(long, value_name = "DIR")]
    pub reference: Option<PathBuf>,
    #[command(flatten)]
    decode: DecodeArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// What was measured.
struct Measured {
    stream: usize,
    own: Score,
    difference: Option<Difference>,
    seconds: f64,
}

/// Runs the verb.
///
/// # Errors
/// A model that cannot be opened or run, a text that is too short.
pub fn run(args: &Perplexity, out: &mut dyn Write) -> Result<(), Failure> {
    if args.context == 0 {
        return Err(Failure::usage("--context 0: at least one token is needed"));
    }
    let path = args.textfile.display();
    let text = std::fs::read_to_string(&args.textfile).map_err(|e| Failure::refused(format!("{path}: {e}")))?;
    let stream = Tokens::open(&args.dir)?.plain(&text)?;
    if stream.len() <= args.context {
        let why = format!(
            "{path}: {} tokens, and an input of {} needs one more; give a longer text or a smaller --context",
            stream.len(),
            args.context
        );
        return Err(Failure::refused(why));
    }
    if let Some(reference) = &args.reference {
        same_tokens(reference, &text, &stream)?;
    }
    let measured = measure(args, &stream)?;
    tell(args, &measured, out)
}

/// Whether the reference reads the same tokens in the text: else its predictions are of something else.
fn same_tokens(reference: &Path, text: &str, stream: &[u32]) -> Result<(), Failure> {
    if !reference.join("tokenizer.json").exists() {
        tracing::warn!("{} has no tokenizer.json: it is taken to have the model's", reference.display());
        return Ok(());
    }
    if Tokens::open(reference)?.plain(text)? == stream {
        return Ok(());
    }
    let why = "its tokenizer reads other tokens in the text; only models of one tokenizer can be compared";
    Err(Failure::refused(format!("--reference {}: {why}", reference.display())))
}

fn measure(args: &Perplexity, stream: &[u32]) -> Result<Measured, Failure> {
    let pool = args.decode.pool()?;
    let decoder = args.decode.open(&args.dir)?;
    // A reference is what the other is measured by: its own arithmetic adds nothing.
    let reference = args.reference.as_deref().map(|dir| Decoder::open(dir, Arithmetic::Exact)).transpose()?;
    for (dir, decoder) in [(Some(&args.dir), Some(&decoder)), (args.reference.as_ref(), reference.as_ref())] {
        if let Some((dir, decoder)) = dir.zip(decoder) {
            warn_of_length(dir, decoder, args.context, "inputs have")?;
        }
    }
    let inputs = perplexity::inputs(stream, args.context);
    let bar = Bar::of_tokens("perplexity");
    bar.begin((inputs.len() * args.context) as u64);
    let started = Instant::now();
    let mut sums = (Score::default(), Difference::default());
    for input in inputs {
        pool.install(|| perplexity::score(&decoder, reference.as_ref(), input, &mut sums))?;
        bar.advance(args.context as u64);
        bar.note(&format!("{:.3}", sums.0.perplexity()));
    }
    bar.finish();
    let difference = reference.map(|_| sums.1);
    Ok(Measured { stream: stream.len(), own: sums.0, difference, seconds: started.elapsed().as_secs_f64() })
}

fn tell(args: &Perplexity, measured: &Measured, out: &mut dyn Write) -> Result<(), Failure> {
    let (tokens, perplexity) = (measured.own.tokens, measured.own.perplexity());
    let per_token = |sum: f64| sum / tokens as f64;
    if args.json {
        let reference = measured.difference.map(|d| {
            serde_json::json!({
                "perplexity": d.reference.perplexity(), "kl_divergence": per_token(d.divergence),
                "equal_top1": per_token(d.equal as f64),
            })
        });
        let facts = serde_json::json!({
            "perplexity": perplexity, "scored_tokens": tokens, "stream_tokens": measured.stream, "context": args.context,
            "reference": reference, "seconds": measured.seconds,
        });
        writeln!(out, "{facts}")?;
        return Ok(());
    }
    writeln!(out, "perplexity {perplexity:.4} over {tokens} tokens in inputs of {}", args.context)?;
    if let Some(d) = &measured.difference {
        let (other, divergence) = (d.reference.perplexity(), per_token(d.divergence));
        let equal = 100.0 * per_token(d.equal as f64);
        writeln!(out, "reference {other:.4}, mean KL divergence {divergence:.6} nats, equal top-1 {equal:.2} %")?;
    }
    Ok(())
}
