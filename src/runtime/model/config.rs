//! What a decoder is, from its `config.json`: sizes, biases, rotary embedding, attention windows.
//!
//! Always: what is stated is either followed or refused by name. A key that is absent has the default
//! that both transformers' configuration class and mlx_lm's have; where they disagree it must be stated.
//!
//! Knows no weight. The one thing that it leaves open is whether the head is the embedding, where
//! the file does not say: then the head that the weights have decides.

use std::path::Path;

use serde::{Deserialize, Deserializer, de};
use serde_json::Value;

use crate::runtime::model::{
    Error,
    rope::{Llama3, Rope, Scaling},
};

/// The families of decoders that run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// Llama 1 to 3, and what is built alike.
    Llama,
    /// Mistral's dense models.
    Mistral,
    /// Qwen 2 and 2.5.
    Qwen2,
    /// Qwen 3, dense.
    Qwen3,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Llama, Self::Mistral, Self::Qwen2, Self::Qwen3];

    /// As `model_type` spells it.
    #[must_use]
    pub const fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }

    /// As `architectures` spells it.
    #[must_use]
    pub const fn architecture(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
        }
    }

    fn supported() -> String {
        Self::ALL.map(|f| format!("{} ({})", f.model_type(), f.architecture())).join(", ")
    }
}

/// Which projections have a bias.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Biases {
    /// Queries, keys and values.
    pub qkv: bool,
    /// The output of attention.
    pub output: bool,
    /// The three of the feed-forward part.
    pub feed_forward: bool,
}

/// A decoder, as its `config.json` describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Which family.
    pub family: Family,
    /// Tokens that there are.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward part.
    pub intermediate_size: usize,
    /// Number of decoder layers.
    pub layers: usize,
    /// Query heads of a layer.
    pub heads: usize,
    /// Key-value heads of a layer; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Width of a head, even.
    pub head_dim: usize,
    /// What is added to the mean square before the root.
    pub norm_eps: f32,
    /// Which projections have a bias.
    pub biases: Biases,
    /// Whether queries and keys are normalized, head by head.
    pub qk_norm: bool,
    /// The rotary embedding.
    pub rope: Rope,
    /// Whether the head is the embedding; `None` where the file does not say.
    pub tied: Option<bool>,
    /// Positions that the model was made for, where stated. Nothing keeps a run from going on.
    pub max_positions: Option<usize>,
    /// Tokens at which a text ends.
    pub eos: Vec<u32>,
    window: Option<usize>,
    windowed: Windowed,
}

/// Which layers look back only so far.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Windowed {
    All,
    From(usize),
    Listed(Vec<bool>),
}

impl Config {
    /// Reads `config.json` and, where there is one, `generation_config.json` of a directory.
    ///
    /// # Errors
    /// A file that cannot be read or is no such JSON; an architecture or a feature that is not supported.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, Error> {
        let dir = dir.as_ref();
        let path = dir.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(|e| match dir.is_dir() {
            true => Error::config(&path, e.to_string()),
            false => Error::config(dir, "no such directory; a model's, with config.json, is needed".to_owned()),
        })?;
        let mut config = Self::parse(&text).map_err(|why| Error::config(&path, why))?;
        let path = dir.join("generation_config.json");
        match std::fs::read_to_string(&path) {
            Ok(text) => config.end_at(&text).map_err(|why| Error::config(&path, why))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::config(&path, e.to_string())),
        }
        Ok(config)
    }

    /// A decoder from the text of its `config.json`.
    ///
    /// # Errors
    /// What is wrong with it, and what would be supported.
    pub fn parse(text: &str) -> Result<Self, String> {
        let stated = Stated::parse(text)?;
        let family = stated.family()?;
        stated.refuse()?;
        let heads = required("num_attention_heads", stated.num_attention_heads)?;
        let hidden_size = required("hidden_size", stated.hidden_size)?;
        let (window, windowed) = stated.windows(family)?;
        let config = Self {
            family,
            vocab_size: required("vocab_size", stated.vocab_size)?,
            hidden_size,
            intermediate_size: required("intermediate_size", stated.intermediate_size)?,
            layers: required("num_hidden_layers", stated.num_hidden_layers)?,
            heads,
            kv_heads: stated.kv_heads(family, heads)?,
            head_dim: stated.head_dim(family, hidden_size, heads)?,
            norm_eps: stated.rms_norm_eps.unwrap_or(1e-6),
            biases: stated.biases(family),
            qk_norm: family == Family::Qwen3,
            rope: stated.rope(family)?,
            tied: stated.tie_word_embeddings,
            max_positions: stated.max_position_embeddings,
            eos: tokens("eos_token_id", &stated.eos_token_id)?,
            window,
            windowed,
        };
        config.check()?;
        Ok(config)
    }

    /// Positions that a layer sees, the own one included; `None` for all before it.
    #[must_use]
    pub fn window(&self, layer: usize) -> Option<usize> {
        let windowed = match &self.windowed {
            Windowed::All => true,
            Windowed::From(first) => layer >= *first,
            Windowed::Listed(layers) => layers.get(layer).copied().unwrap_or(false),
        };
        self.window.filter(|_| windowed)
    }

    /// Takes the tokens that end a text from `generation_config.json`, which goes before `config.json`.
    fn end_at(&mut self, text: &str) -> Result<(), String> {
        let stated: Generation = serde_json::from_str(text).map_err(|e| e.to_string())?;
        let eos = tokens("eos_token_id", &stated.eos_token_id)?;
        if !eos.is_empty() {
            self.eos = eos;
        }
        Ok(())
    }

    fn check(&self) -> Result<(), String> {
        let Self { heads, kv_heads, head_dim, .. } = *self;
        if !heads.is_multiple_of(kv_heads) {
            return Err(format!("num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}"));
        }
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            return Err(format!("head_dim {head_dim}: rotary embedding needs an even number"));
        }
        if heads.checked_mul(head_dim).is_none() {
            return Err(format!("{heads} heads of {head_dim} are more than memory can hold"));
        }
        if !(self.norm_eps >= 0.0 && self.norm_eps.is_finite()) {
            return Err(format!("rms_norm_eps {} is no small positive number", self.norm_eps));
        }
        Ok(())
    }
}

/// The keys of `config.json` that matter here, as they are written.
#[derive(Debug, Deserialize)]
struct Stated {
    model_type: Option<String>,
    architectures: Option<Vec<String>>,
    #[serde(default, deserialize_with = "at_least::<_, 1>")]
    vocab_size: Option<usize>,
    #[serde(default, deserialize_with = "at_least::<_, 1>")]
    hidden_size: Option<usize>,
    #[serde(default, deserialize_with = "at_least::<_, 1>")]
    intermediate_size: Option<usize>,
    #[serde(default, deserialize_with = "at_least::<_, 1>")]
    num_hidden_layers: Option<usize>,
    #[serde(default, deserialize_with = "at_least::<_, 1>")]
    num_attention_heads: Option<usize>,
    #[serde(default, deserialize_with = "at_least::<_, 1>")]
    num_key_value_heads: Option<usize>,
    #[serde(default, deserialize_with = "at_least::<_, 1>")]
    head_dim: Option<usize>,
    hidden_act: Option<String>,
    rms_norm_eps: Option<f32>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    tie_word_embeddings: Option<bool>,
    #[serde(default, deserialize_with = "at_least::<_, 0>")]
    max_position_embeddings: Option<usize>,
    rope_theta: Option<f64>,
    rope_traditional: Option<bool>,
    partial_rotary_factor: Option<f64>,
    rope_scaling: Option<Value>,
    rope_parameters: Option<Value>,
    #[serde(default, deserialize_with = "at_least::<_, 0>")]
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
    #[serde(default, deserialize_with = "at_least::<_, 0>")]
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
    #[serde(default)]
    eos_token_id: Value,
}

#[derive(Debug, Deserialize)]
struct Generation {
    #[serde(default)]
    eos_token_id: Value,
}

/// `rope_scaling`, or transformers 5's `rope_parameters`, which holds `rope_theta` too.
#[derive(Debug, Default, Deserialize)]
struct StatedRope {
    rope_theta: Option<f64>,
    #[serde(rename = "type")]
    old_type: Option<String>,
    rope_type: Option<String>,
    partial_rotary_factor: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

impl Stated {
    /// serde tells what it expected, but not where: the key is the one that fails alone.
    fn parse(text: &str) -> Result<Self, String> {
        let stated: serde_json::Map<String, Value> = serde_json::from_str(text).map_err(|e| e.to_string())?;
        let alone = |key: &String, value: &Value| {
            let single = serde_json::Map::from_iter([(key.clone(), value.clone())]);
            Self::deserialize(Value::Object(single)).err().map(|e| format!("{key} is {}: {e}", shortened(value)))
        };
        let wrong = stated.iter().find_map(|(key, value)| alone(key, value));
        wrong.map_or_else(|| Self::deserialize(Value::Object(stated)).map_err(|e| e.to_string()), Err)
    }

    fn family(&self) -> Result<Family, String> {
        let supported = Family::supported();
        let model_type = self.model_type.as_deref().ok_or(format!("says no model_type; supported are {supported}"))?;
        let family = Family::ALL.into_iter().find(|f| f.model_type() == model_type);
        let family =
            family.ok_or_else(|| format!("model_type {model_type} is not supported; these are: {supported}"))?;
        match &self.architectures {
            Some(names) if !names.iter().any(|n| n == family.architecture()) => {
                Err(format!("architectures {names:?} of {model_type} are not supported; these are: {supported}"))
            }
            _ => Ok(family),
        }
    }

    /// What changes the arithmetic and is not done here.
    fn refuse(&self) -> Result<(), String> {
        if let Some(act) = self.hidden_act.as_deref().filter(|act| !matches!(*act, "silu" | "swish")) {
            return Err(format!("hidden_act {act} is not supported, silu is"));
        }
        if self.rope_traditional == Some(true) {
            return Err("rope_traditional is not supported: pairs are half a head apart".to_owned());
        }
        if let Some(part) = self.partial_rotary_factor.filter(|part| *part != 1.0) {
            return Err(format!("partial_rotary_factor {part} is not supported: whole heads are rotated"));
        }
        Ok(())
    }

    fn kv_heads(&self, family: Family, heads: usize) -> Result<usize, String> {
        match (self.num_key_value_heads, family) {
            (None, Family::Llama) => Ok(heads),
            (stated, _) => required("num_key_value_heads", stated),
        }
    }

    fn head_dim(&self, family: Family, hidden: usize, heads: usize) -> Result<usize, String> {
        match (self.head_dim, family) {
            (Some(dim), _) => Ok(dim),
            (None, Family::Qwen3) => Err(missing("head_dim")),
            (None, _) if !hidden.is_multiple_of(heads) => {
                Err(format!("hidden_size {hidden} is no multiple of num_attention_heads {heads}; state head_dim"))
            }
            (None, _) => Ok(hidden / heads),
        }
    }

    fn biases(&self, family: Family) -> Biases {
        let stated = self.attention_bias.unwrap_or(false);
        let qwen2 = family == Family::Qwen2;
        Biases { qkv: qwen2 || stated, output: !qwen2 && stated, feed_forward: self.mlp_bias.unwrap_or(false) }
    }

    fn rope(&self, family: Family) -> Result<Rope, String> {
        let read = |key: &str, value: &Option<Value>| match value {
            None | Some(Value::Null) => Ok(StatedRope::default()),
            Some(value) => serde_json::from_value(value.clone()).map_err(|e| format!("{key}: {e}")),
        };
        let (scaling, parameters) =
            (read("rope_scaling", &self.rope_scaling)?, read("rope_parameters", &self.rope_parameters)?);
        let theta = self.rope_theta.or(parameters.rope_theta).or(scaling.rope_theta);
        let theta = match (theta, family) {
            (Some(theta), _) => theta,
            (None, Family::Llama | Family::Mistral) => 10_000.0,
            // transformers' class and mlx_lm's have different defaults.
            (None, Family::Qwen2 | Family::Qwen3) => return Err(missing("rope_theta")),
        };
        if !(theta > 0.0 && theta.is_finite()) {
            return Err(format!("rope_theta {theta} is no positive number"));
        }
        let stated = if matches!(self.rope_scaling, None | Some(Value::Null)) { parameters } else { scaling };
        Ok(Rope { theta, scaling: stated.scaling()? })
    }

    /// The window and the layers that have it. Llama's are listed; Mistral's is every layer's; Qwen's
    /// begin at a layer and must be switched on.
    fn windows(&self, family: Family) -> Result<(Option<usize>, Windowed), String> {
        let qwen = matches!(family, Family::Qwen2 | Family::Qwen3);
        if qwen && self.use_sliding_window != Some(true) {
            return Ok((None, Windowed::All));
        }
        let listed = self.layer_types.as_deref().map(listed).transpose()?;
        let windowed = match (listed, family) {
            (Some(layers), _) => Windowed::Listed(layers),
            (None, Family::Llama) => return Ok((None, Windowed::All)),
            (None, Family::Mistral) => Windowed::All,
            (None, _) => Windowed::From(self.max_window_layers.ok_or_else(|| missing("max_window_layers"))?),
        };
        let none = matches!(&windowed, Windowed::Listed(layers) if !layers.contains(&true));
        match self.sliding_window {
            Some(0) => Err("sliding_window 0: a position must see itself".to_owned()),
            None if !none && family != Family::Mistral => Err(missing("sliding_window")),
            window => Ok((window, windowed)),
        }
    }
}

impl StatedRope {
    fn scaling(self) -> Result<Scaling, String> {
        if let Some(part) = self.partial_rotary_factor.filter(|part| *part != 1.0) {
            return Err(format!("partial_rotary_factor {part} is not supported: whole heads are rotated"));
        }
        let positive = |key: &str, stated: Option<f64>| match stated {
            Some(x) if x > 0.0 && x.is_finite() => Ok(x),
            Some(x) => Err(format!("rope_scaling: {key} {x} is no positive number")),
            None => Err(missing(key)),
        };
        match self.rope_type.or(self.old_type).as_deref() {
            None | Some("default") => Ok(Scaling::None),
            Some("linear") => Ok(Scaling::Linear { factor: positive("factor", self.factor)? }),
            Some("llama3") => Llama3 {
                factor: positive("factor", self.factor)?,
                low_freq_factor: positive("low_freq_factor", self.low_freq_factor)?,
                high_freq_factor: positive("high_freq_factor", self.high_freq_factor)?,
                original_positions: positive(
                    "original_max_position_embeddings",
                    self.original_max_position_embeddings,
                )?,
            }
            .checked(),
            Some(other) => {
                Err(format!("rope_scaling of type {other} is not supported; these are: default, linear, llama3"))
            }
        }
    }
}

/// A value as an error quotes it.
fn shortened(value: &Value) -> String {
    let text = value.to_string();
    let most = 60;
    if text.chars().count() <= most { text } else { format!("{}...", text.chars().take(most).collect::<String>()) }
}

fn missing(key: &str) -> String {
    format!("{key} is missing")
}

fn required(key: &str, stated: Option<usize>) -> Result<usize, String> {
    stated.ok_or_else(|| missing(key))
}

/// A whole number of at least so many, or null; the error says what was needed, not which type of Rust.
fn at_least<'de, D: Deserializer<'de>, const LEAST: usize>(deserializer: D) -> Result<Option<usize>, D::Error> {
    let stated = Value::deserialize(deserializer)?;
    let number = stated.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n >= LEAST);
    if number.is_none() && !stated.is_null() {
        return Err(de::Error::custom(format_args!("a whole number of at least {LEAST} is needed")));
    }
    Ok(number)
}

fn listed(layer_types: &[String]) -> Result<Vec<bool>, String> {
    let known = |kind: &String| match kind.as_str() {
        "full_attention" => Ok(false),
        "sliding_attention" => Ok(true),
        other => Err(format!("layer_types: {other} is not supported; these are: full_attention, sliding_attention")),
    };
    layer_types.iter().map(known).collect()
}

/// A token, a list of them, or null.
fn tokens(key: &str, stated: &Value) -> Result<Vec<u32>, String> {
    let token = |value: &Value| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| format!("{key}: {value} is no token"))
    };
    match stated {
        Value::Null => Ok(vec![]),
        Value::Array(list) => list.iter().map(token).collect(),
        one => Ok(vec![token(one)?]),
    }
}
