//! `quantfs generate`: a decoder writes on from a prompt.

use std::{
    io::{self, Write},
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::Args;
use rayon::ThreadPool;

use crate::{
    cli::{
        Failure,
        decode::{DecodeArgs, warn_of_length},
    },
    runtime::model::{Cache, Decoder, Sampler, Tokens},
};

/// Write on from a prompt with the decoder of a directory (Llama, Mistral, Qwen2, Qwen3 families)
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  quantfs generate /mnt/q4 --prompt 'The file system' --max-tokens 64\n  quantfs generate ./Some-Llama-4bit --prompt 'Once' --temperature 0.7 --seed 1 --json\n\nThe prompt is taken as it is: a chat model wants its template applied."
)]
pub struct Generate {
    /// A model directory: mounted, exported, written by mlx_lm, or in full precision
    pub dir: PathBuf,
    /// What to write on from
    #[arg(long, value_name = "TEXT")]
    pub prompt: String,
    /// Tokens at most
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub max_tokens: usize,
    /// 0 always takes the likeliest token; 1 draws from the model's own distribution
    #[arg(long, value_name = "T", default_value_t = 0.0, allow_negative_numbers = true)]
    pub temperature: f32,
    /// What the draws begin with
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    #[command(flatten)]
    decode: DecodeArgs,
    /// Print JSON facts as the last line, after the text; `stop` in them is `end` (an end token, which is not
    /// among the tokens) or `length`
    #[arg(long)]
    pub json: bool,
}

/// What came out.
struct Written {
    tokens: Vec<u32>,
    /// The prompt's time and the tokens' own.
    took: (Duration, Duration),
}

/// Runs the verb.
///
/// # Errors
/// A model that cannot be opened or run.
pub fn run(args: &Generate, out: &mut dyn Write) -> Result<(), Failure> {
    let mut sampler =
        Sampler::new(args.temperature, args.seed).map_err(|why| Failure::usage(format!("--temperature: {why}")))?;
    let pool = args.decode.pool()?;
    let decoder = args.decode.open(&args.dir)?;
    let tokens = Tokens::open(&args.dir)?;
    let prompt = tokens.prompt(&args.prompt)?;
    if prompt.is_empty() {
        return Err(Failure::usage("--prompt: the text has no token, and the tokenizer adds none"));
    }
    let wanted = prompt.len().saturating_add(args.max_tokens);
    warn_of_length(&args.dir, &decoder, wanted, "prompt and answer may have")?;
    let mut writer = Writer { decoder: &decoder, pool: &pool, cache: decoder.cache(), tokens: &tokens };
    let written = writer.write(&prompt, args.max_tokens, &mut sampler, out)?;
    tell(args, &tokens, prompt.len(), &written, out)
}

struct Writer<'a> {
    decoder: &'a Decoder,
    pool: &'a ThreadPool,
    cache: Cache,
    tokens: &'a Tokens,
}

impl Writer<'_> {
    /// Streams text until an end token or the limit. An end token is not part of what is written.
    fn write(
        &mut self,
        prompt: &[u32],
        most: usize,
        sampler: &mut Sampler,
        out: &mut dyn Write,
    ) -> Result<Written, Failure> {
        let mut stream = self.tokens.stream();
        let started = Instant::now();
        let mut logits = self.next(prompt)?;
        let prompted = started.elapsed();
        let mut tokens = vec![];
        while tokens.len() < most {
            let token = u32::try_from(sampler.sample(&logits))?;
            if self.decoder.config().eos.contains(&token) {
                break;
            }
            tokens.push(token);
            out.write_all(stream.push(token)?.as_bytes())?;
            out.flush()?;
            if tokens.len() < most {
                logits = self.next(&[token])?;
            }
        }
        writeln!(out, "{}", stream.finish()?)?;
        Ok(Written { tokens, took: (prompted, started.elapsed().saturating_sub(prompted)) })
    }

    fn next(&mut self, tokens: &[u32]) -> Result<Vec<f32>, Failure> {
        Ok(self.pool.install(|| self.decoder.next(tokens, &mut self.cache))?)
    }
}

fn tell(
    args: &Generate,
    tokens: &Tokens,
    prompted: usize,
    written: &Written,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    // The first token is the prompt's: the others took a step each.
    let steps = written.tokens.len().saturating_sub(1);
    let rate = |tokens: usize, took: Duration| tokens as f64 / took.as_secs_f64().max(f64::MIN_POSITIVE);
    let (reading, writing) = (rate(prompted, written.took.0), rate(steps, written.took.1));
    let count = written.tokens.len();
    writeln!(
        io::stderr(),
        "{count} tokens, {writing:.2} tokens/s; prompt of {prompted} tokens, {reading:.2} tokens/s"
    )?;
    if args.json {
        let facts = serde_json::json!({
            "tokens": written.tokens, "text": tokens.text(&written.tokens)?, "prompt_tokens": prompted,
            "stop": if count < args.max_tokens { "end" } else { "length" },
            "tokens_per_second": writing, "prompt_tokens_per_second": reading,
        });
        writeln!(out, "{facts}")?;
    }
    Ok(())
}
