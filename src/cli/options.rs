//! From what was typed about a view to what it means.

use clap::Args;

use crate::{
    cli::size,
    plan::{Error, Options, Parts, Rule, Spec},
    tensor::Float,
};

/// What a view shows: the options that `mount`, `inspect` and `export` share.
#[derive(Args, Clone, Debug, Default, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(default, deny_unknown_fields)]
#[command(next_help_heading = "View options")]
pub struct ViewArgs {
    /// What weights become: `4bit`, `mlx-8bit-g32`, `mlx-mxfp4` (see `quantfs formats`) [default: mlx-4bit-g64]
    #[arg(long, value_name = "SPEC")]
    pub spec: Option<String>,
    /// Format, where the spec leaves it open
    #[arg(long)]
    pub format: Option<String>,
    /// Bits of a code
    #[arg(long)]
    pub bits: Option<u32>,
    /// Elements that share a scale
    #[arg(long, value_name = "N")]
    pub group_size: Option<usize>,
    /// affine, mxfp4, mxfp8 or nvfp4
    #[arg(long)]
    pub mode: Option<String>,
    /// How codes are chosen, where the format offers methods
    #[arg(long)]
    pub method: Option<String>,
    /// Exceptions, the first match wins: a glob over source tensor names and a spec; `source` keeps
    /// a tensor (repeatable)
    #[arg(long = "rule", value_name = "PATTERN=SPEC")]
    pub rules: Vec<String>,
    /// What floating tensors are cast to first: bfloat16, float16 or float32 [default: what the format's
    /// reference tool does]
    #[arg(long)]
    pub dtype: Option<String>,
    /// Lay the weights out in fresh shards of at most this size; `source` mirrors the source's files
    /// [default: source]
    #[arg(long, value_name = "SIZE|source")]
    pub shard_size: Option<String>,
    /// Show full-precision twins that are hidden otherwise, `*.bin` say (repeatable)
    #[arg(long, value_name = "PATTERN")]
    pub show: Vec<String>,
}

impl ViewArgs {
    /// Whether nothing was typed.
    #[must_use]
    pub fn says_nothing(&self) -> bool {
        *self == Self::default()
    }

    /// What the arguments mean.
    ///
    /// # Errors
    /// A word that is unknown or contradicts another.
    pub fn options(&self) -> Result<Options, Error> {
        let parts = Parts {
            format: self.format.clone(),
            bits: self.bits,
            group_size: self.group_size,
            mode: self.mode.clone(),
            method: self.method.clone(),
        };
        let spec = Spec::parse(self.spec.as_deref(), &parts)?;
        let rules = self.rules.iter().map(|r| Rule::parse(r, &spec)).collect::<Result<_, _>>()?;
        let dtype = self.dtype.as_deref().map(dtype).transpose()?;
        let shard_size = match self.shard_size.as_deref() {
            None | Some("source") => None,
            Some(text) => Some(size::parse(text).map_err(|why| Error::Spec(format!("--shard-size {text}: {why}")))?),
        };
        Ok(Options { spec, rules, dtype, shard_size, show: self.show.clone() })
    }
}

fn dtype(name: &str) -> Result<Float, Error> {
    let short = match name {
        "bf16" => "bfloat16",
        "f16" | "fp16" | "half" => "float16",
        "f32" | "fp32" => "float32",
        other => other,
    };
    Float::from_name(short).ok_or_else(|| Error::Spec(format!("--dtype {name}: known are bfloat16, float16, float32")))
}
