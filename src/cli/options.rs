//! From what was typed about a view to what it means.

use std::{path::Path, sync::Arc};

use clap::Args;

use crate::{
    cli::{Failure, size},
    plan::{Adapter, Error, Importance, Options, Override, Parts, Rename, Rule, Spec},
    source::{self, Caches, Joined, Source},
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
    /// Replace tensors by those of the same names in this file (or directory) of .safetensors (repeatable; the last
    /// one wins)
    #[arg(long = "override", value_name = "FILE")]
    pub overrides: Vec<String>,
    /// Merge an adapter on read, before anything is quantized: a PEFT directory, or a LoRA in one .safetensors file,
    /// times SCALE (repeatable; they add up) [default SCALE: 1]
    #[arg(long = "lora", value_name = "ADAPTER[:SCALE]")]
    pub loras: Vec<String>,
    /// What errors weigh, for methods that weigh them (`ls`, `hqq`): llama.cpp's importance matrix (GGUF or .dat), or
    /// .safetensors with a tensor of each weight's name, [columns] or [experts, columns]
    #[arg(long, value_name = "FILE")]
    pub importance: Option<String>,
    /// Show an all-in-one checkpoint (denoiser, text encoders and VAE in one file) as component directories
    #[arg(long)]
    pub split: bool,
    /// Show tensors under other names, for loaders that call them otherwise: stars of the replacement are
    /// what the pattern's stars stand for (repeatable; applied in order)
    #[arg(long = "rename", value_name = "PATTERN=REPLACEMENT")]
    pub renames: Vec<String>,
}

impl ViewArgs {
    /// Whether nothing was typed.
    #[must_use]
    pub fn says_nothing(&self) -> bool {
        *self == Self::default()
    }

    /// Opens a source with what lies beside it, and says what the arguments mean.
    ///
    /// # Errors
    /// A word that is unknown or contradicts another; a source, override or adapter that is not there.
    pub fn open(&self, name: &str, caches: &Caches) -> Result<(Arc<dyn Source>, Options), Failure> {
        let mut options = self.options()?;
        let importance = self.importance.as_deref().map(|path| Importance::open(Path::new(path)));
        options.importance = importance.transpose()?.map(Arc::new);
        let base = source::open(name, caches)?;
        if self.overrides.is_empty() && self.loras.is_empty() {
            return Ok((base.into(), options));
        }
        let adapters: Vec<(&str, f32)> = self.loras.iter().map(|text| scaled(text)).collect::<Result<_, _>>()?;
        let overrides = self.overrides.iter().map(|path| ("--override", path.clone()));
        let paths = overrides.chain(adapters.iter().map(|(path, _)| ("--lora", with_config(path))));
        let open = |(flag, path): (&str, String)| {
            source::open(&path, caches).map_err(|e| Error::Spec(format!("{flag} {path}: {e}")))
        };
        let beside = paths.map(open).collect::<Result<Vec<_>, _>>()?;
        let (joined, mut files) = Joined::new(base, beside)?;
        let files_of_adapters = files.split_off(self.overrides.len());
        let overrides = self.overrides.iter().zip(files);
        options.overrides = overrides.map(|(path, files)| Override { text: absolute(path), files }).collect();
        let text = |path: &str, scale: f32| {
            let path = absolute(path);
            if scale == 1.0 { path } else { format!("{path}:{scale}") }
        };
        let of = adapters.into_iter().zip(files_of_adapters);
        options.adapters = of.map(|((path, scale), files)| Adapter { text: text(path, scale), files, scale }).collect();
        Ok((Arc::new(joined), options))
    }

    /// What the arguments mean, but for what lies beside a source.
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
        let renames = self.renames.iter().map(|text| Rename::parse(text)).collect::<Result<_, _>>()?;
        Ok(Options {
            rules,
            dtype,
            shard_size,
            show: self.show.clone(),
            renames,
            split: self.split,
            ..Options::new(spec)
        })
    }
}

/// The directory of PEFT's weights where these are named and their config lies beside them.
fn with_config(path: &str) -> String {
    let file = Path::new(path);
    let dir = file.parent().filter(|_| file.file_name().is_some_and(|name| name == "adapter_model.safetensors"));
    let dir = dir.map(|dir| if dir.as_os_str().is_empty() { Path::new(".") } else { dir });
    match dir.filter(|dir| dir.join("adapter_config.json").is_file()) {
        Some(dir) => dir.to_string_lossy().into_owned(),
        None => path.to_owned(),
    }
}

/// A path from the root on, so that a manifest tells what it names wherever it is read; a repo id as it is.
fn absolute(path: &str) -> String {
    let there = Path::new(path).exists().then(|| std::path::absolute(path).ok()).flatten();
    there.map_or_else(|| path.to_owned(), |path| path.to_string_lossy().into_owned())
}

/// `ADAPTER` or `ADAPTER:SCALE`: what stands behind the last colon is a scale where it is a number.
fn scaled(text: &str) -> Result<(&str, f32), Error> {
    let Some((adapter, scale)) = text.rsplit_once(':') else { return Ok((text, 1.0)) };
    match scale.parse::<f32>() {
        Ok(scale) if scale.is_finite() && !adapter.is_empty() => Ok((adapter, scale)),
        Ok(_) => Err(Error::Spec(format!("--lora {text}: ADAPTER:SCALE has a name and a finite number"))),
        Err(_) => Ok((text, 1.0)),
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
