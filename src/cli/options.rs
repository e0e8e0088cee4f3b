//! From what was typed about a view to what it means.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use clap::Args;

use crate::{
    bulk::target::Target,
    cli::{Failure, chosen, size},
    plan::{Adapter, ComponentOptions, Error, Importance, Options, Override, Parts, Predicate, Rename, Rule, Spec},
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
    /// A TOML file of these options, or one of mlx_lm's by name: mixed_2_6, mixed_3_4, mixed_3_6, mixed_4_6. It fills
    /// what flags leave open
    #[arg(long, value_name = "FILE|NAME")]
    pub recipe: Option<String>,
    /// Choose a scheme for each weight, so that an element of the view takes so many bits on average over all tensors
    #[arg(long, value_name = "BITS", conflicts_with = "target_size", value_parser = target_bpw)]
    pub target_bpw: Option<f64>,
    /// Choose a scheme for each weight, so that the weight files of the view come to this size
    #[arg(long, value_name = "SIZE")]
    pub target_size: Option<String>,
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
    /// .safetensors with a tensor of each weight's name, `[columns]` or `[experts, columns]`
    #[arg(long, value_name = "FILE")]
    pub importance: Option<String>,
    /// Show an all-in-one checkpoint (denoiser, text encoders and VAE in one file) as component directories
    #[arg(long)]
    pub split: bool,
    /// Show tensors under other names, for loaders that call them otherwise: stars of the replacement are
    /// what the pattern's stars stand for (repeatable; applied in order)
    #[arg(long = "rename", value_name = "PATTERN=REPLACEMENT")]
    pub renames: Vec<String>,
    /// A recipe of the reference tool, by name.
    #[arg(skip)]
    pub predicate: Option<String>,
    /// What components are asked to be, by their directories: recipes alone say it.
    #[arg(skip)]
    pub components: BTreeMap<String, ComponentArgs>,
}

/// What a recipe says of a component.
#[derive(Clone, Debug, Default, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ComponentArgs {
    /// What its weights become; the view's where it has rules alone.
    pub spec: Option<String>,
    /// Exceptions, `PATTERN=SPEC`, over names without the component.
    pub rules: Vec<String>,
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
        let args = self.with_recipe()?;
        args.open_filled(name, caches)
    }

    fn open_filled(&self, name: &str, caches: &Caches) -> Result<(Arc<dyn Source>, Options), Failure> {
        let (source, options) = self.open_without_target(name, caches)?;
        let Some(target) = self.target()? else { return Ok((source, options)) };
        let options = chosen::options(&source, &options, target)?;
        Ok((source, options))
    }

    /// Whether schemes are chosen by a target.
    #[must_use]
    pub fn chooses(&self) -> bool {
        self.target_bpw.is_some() || self.target_size.is_some()
    }

    /// The size that the view shall have, where one was asked for.
    ///
    /// # Errors
    /// A text that is no size.
    pub(super) fn target(&self) -> Result<Option<Target>, Error> {
        let size = self.target_size.as_deref().map(size::parse).transpose();
        let size = size.map_err(|why| Error::Spec(format!("--target-size: {why}")))?;
        Ok(self.target_bpw.map(Target::BitsPerWeight).or(size.map(Target::Bytes)))
    }

    /// As [`open`](Self::open), but for the choice of schemes that a target asks for.
    fn open_without_target(&self, name: &str, caches: &Caches) -> Result<(Arc<dyn Source>, Options), Failure> {
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
        if self.recipe.is_some() {
            return self.with_recipe()?.options();
        }
        let spec = self.view_spec()?;
        let dtype = self.dtype.as_deref().map(|text| dtype(text).map_err(|why| Error::Spec(format!("--dtype {why}"))));
        let shard_size =
            self.shard_size.as_deref().map(|t| shard_size(t).map_err(|why| Error::Spec(format!("--shard-size {why}"))));
        let renames = self.renames.iter().map(|text| Rename::parse(text)).collect::<Result<_, _>>()?;
        let predicate = self.predicate.clone().map(|name| Predicate { name, group_size: self.group_size });
        let components = self.components.iter().map(|(dir, args)| args.options(dir, &spec));
        Ok(Options {
            rules: rules(&self.rules, &spec)?,
            predicate,
            components: components.collect::<Result<_, _>>()?,
            dtype: dtype.transpose()?,
            shard_size: shard_size.transpose()?.flatten(),
            show: self.show.clone(),
            renames,
            split: self.split,
            ..Options::new(spec)
        })
    }

    /// The spec that the arguments say together.
    ///
    /// # Errors
    /// A word that is unknown or contradicts another.
    pub(super) fn view_spec(&self) -> Result<Spec, Error> {
        Spec::parse(self.spec.as_deref(), &self.parts())
    }

    /// What fills what a spec leaves open.
    #[must_use]
    pub fn parts(&self) -> Parts {
        Parts {
            format: self.format.clone(),
            bits: self.bits,
            group_size: self.group_size,
            mode: self.mode.clone(),
            method: self.method.clone(),
        }
    }

    /// The same for a process in another directory and at another time: recipes are read, files are named from the
    /// root on.
    ///
    /// # Errors
    /// A recipe that cannot be read, an adapter whose scale is no number.
    pub fn resolved(&self) -> Result<Self, Error> {
        let lora = |text: &String| {
            let (path, _) = scaled(text)?;
            Ok(format!("{}{}", absolute(path), &text[path.len()..]))
        };
        let read = self.with_recipe()?;
        let loras = read.loras.iter().map(lora).collect::<Result<_, Error>>()?;
        let overrides = read.overrides.iter().map(|path| absolute(path)).collect();
        let importance = read.importance.as_deref().map(absolute);
        Ok(Self { overrides, loras, importance, ..read })
    }
}

impl ComponentArgs {
    fn options(&self, dir: &str, view: &Spec) -> Result<ComponentOptions, Error> {
        let spec = self.spec.as_ref().map_or_else(|| Ok(view.clone()), |text| view.of_component(text))?;
        Ok(ComponentOptions { dir: dir.to_owned(), rules: rules(&self.rules, &spec)?, spec })
    }
}

fn rules(texts: &[String], spec: &Spec) -> Result<Vec<Rule>, Error> {
    texts.iter().map(|text| Rule::parse(text, spec)).collect()
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
pub(super) fn absolute(path: &str) -> String {
    let there = Path::new(path).exists().then(|| std::path::absolute(path).ok()).flatten();
    there.map_or_else(|| path.to_owned(), |path| path.to_string_lossy().into_owned())
}

/// `ADAPTER` or `ADAPTER:SCALE`: what stands behind the last colon is a scale, unless a slash does or a file has
/// that whole name.
pub(super) fn scaled(text: &str) -> Result<(&str, f32), Error> {
    let Some((adapter, scale)) = text.rsplit_once(':') else { return Ok((text, 1.0)) };
    match scale.parse::<f32>() {
        Ok(scale) if scale.is_finite() && !adapter.is_empty() => Ok((adapter, scale)),
        Err(_) if scale.contains('/') || Path::new(text).exists() => Ok((text, 1.0)),
        _ => Err(Error::Spec(format!(
            "--lora {text}: `{scale}` is no finite number, as the SCALE of ADAPTER:SCALE is, and no file has that whole name"
        ))),
    }
}

fn target_bpw(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(bits) if bits.is_finite() && bits > 0.0 => Ok(bits),
        _ => Err("a number of bits, 4.5 say".to_owned()),
    }
}

/// The type of a name, short ones included.
pub(super) fn dtype(name: &str) -> Result<Float, String> {
    let short = match name {
        "bf16" => "bfloat16",
        "f16" | "fp16" | "half" => "float16",
        "f32" | "fp32" => "float32",
        other => other,
    };
    Float::from_name(short).ok_or_else(|| format!("{name}: known are bfloat16, float16, float32"))
}

/// Bytes of a shard, `None` for `source`.
pub(super) fn shard_size(text: &str) -> Result<Option<u64>, String> {
    match text {
        "source" => Ok(None),
        text => size::parse(text).map(Some).map_err(|why| format!("{text}: {why}")),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn an_adapters_scale_is_a_number() {
        assert_eq!(scaled("a:0.5").unwrap(), ("a", 0.5));
        assert_eq!(scaled("/a:b/lora").unwrap(), ("/a:b/lora", 1.0));
        assert_eq!(scaled("/a:b/lora:-2").unwrap(), ("/a:b/lora", -2.0));
        let dir = tempfile::tempdir().unwrap();
        let named = dir.path().join("a:abc").display().to_string();
        for bad in [named.as_str(), "a:abc", "a:", "a:inf", ":1"] {
            let why = scaled(bad).unwrap_err().to_string();
            assert!(why.contains(bad) && why.contains("SCALE"), "{why}");
        }
        std::fs::write(&named, "").unwrap();
        assert_eq!(scaled(&named).unwrap(), (named.as_str(), 1.0));
    }
}
