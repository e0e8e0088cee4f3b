//! A decoder: embedding, layers of attention and gated feed-forward, head.
//!
//! Always: every weight is there and has the shape that the configuration says before a decoder is
//! handed out, and no projection has a bias that the configuration does not know.
//!
//! Knows no text and no sampling.

use std::{cell::RefCell, collections::BTreeSet, path::Path};

use crate::{
    kernel::kernels,
    runtime::{
        Arithmetic, Embedding, QuantizedLinear, Weights, keep_awake,
        model::{
            Config, Error,
            attention::{Attention, KeyValues},
            rms_norm::RmsNorm,
            rope::Angles,
        },
    },
};

/// Tokens of a prompt that pass the layers together: enough that weights are read seldom, few enough that
/// activations stay small beside them.
const CHUNK: usize = 512;

/// One decoder layer.
#[derive(Debug)]
struct Layer {
    attention: Attention,
    input_norm: RmsNorm,
    query: QuantizedLinear,
    key: QuantizedLinear,
    value: QuantizedLinear,
    output: QuantizedLinear,
    /// Of query and key heads, where the family has them.
    head_norms: Option<(RmsNorm, RmsNorm)>,
    feed_forward_norm: RmsNorm,
    gate: QuantizedLinear,
    up: QuantizedLinear,
    down: QuantizedLinear,
}

/// A decoder on the weights of a directory.
#[derive(Debug)]
pub struct Decoder {
    config: Config,
    embedding: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
    head: QuantizedLinear,
    frequencies: Vec<f32>,
}

/// The keys and values of a text so far; of one decoder.
#[derive(Clone, Debug)]
pub struct Cache {
    layers: Vec<KeyValues>,
}

impl Cache {
    /// Tokens of the text so far.
    #[must_use]
    pub fn positions(&self) -> usize {
        self.layers.first().map_or(0, KeyValues::positions)
    }

    /// Forgets the text from a position on.
    pub fn truncate(&mut self, positions: usize) {
        self.layers.iter_mut().for_each(|layer| layer.truncate(positions));
    }
}

impl Decoder {
    /// Opens the decoder of a directory: `config.json` and mapped weights, none of which is read yet
    /// but norms and biases.
    ///
    /// # Errors
    /// A configuration that is not supported, weights that are missing or do not fit it.
    pub fn open(dir: impl AsRef<Path>, arithmetic: Arithmetic) -> Result<Self, Error> {
        let config = Config::open(dir.as_ref())?;
        Self::new(config, &Weights::open(dir)?, arithmetic)
    }

    /// A decoder of a configuration and weights.
    ///
    /// # Errors
    /// Weights that are missing or do not fit the configuration.
    pub fn new(config: Config, weights: &Weights, arithmetic: Arithmetic) -> Result<Self, Error> {
        let room = Room { config: &config, weights, arithmetic, taken: RefCell::default() };
        let embedding = room.embedding()?;
        let layers = (0..config.layers).map(|i| room.layer(i)).collect::<Result<_, _>>()?;
        let norm = room.norm("model.norm", config.hidden_size)?;
        let head = room.head(&embedding)?;
        room.nothing_is_left()?;
        let frequencies = config.rope.frequencies(config.head_dim);
        Ok(Self { config, embedding, layers, norm, head, frequencies })
    }

    /// What it is.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Bytes of the matrices that a token passes, as they are stored: what decoding one token reads.
    #[must_use]
    pub fn byte_len(&self) -> usize {
        let layer = |l: &Layer| -> usize {
            [&l.query, &l.key, &l.value, &l.output, &l.gate, &l.up, &l.down].map(QuantizedLinear::byte_len).iter().sum()
        };
        self.layers.iter().map(layer).sum::<usize>() + self.head.byte_len()
    }

    /// The cache of an empty text.
    #[must_use]
    pub fn cache(&self) -> Cache {
        let layer = || KeyValues::new(self.config.kv_heads, self.config.head_dim);
        Cache { layers: self.layers.iter().map(|_| layer()).collect() }
    }

    /// Appends tokens to a text and returns the logits, `vocab_size` of them, of the token after the
    /// last. Long prompts pass in chunks.
    ///
    /// # Errors
    /// No token at all, or one that the model does not have, or a cache of another decoder: nothing is appended
    /// then. Logits that are no numbers.
    pub fn next(&self, tokens: &[u32], cache: &mut Cache) -> Result<Vec<f32>, Error> {
        self.check(tokens)?;
        let logits = keep_awake(|| {
            let mut last = vec![];
            for chunk in tokens.chunks(CHUNK) {
                last = self.states(chunk, cache)?.split_off((chunk.len() - 1) * self.config.hidden_size);
            }
            self.logits(&last)
        })?;
        if logits.iter().all(|x| x.is_finite()) { Ok(logits) } else { Err(Error::NotFinite) }
    }

    /// Appends tokens to a text, all at once, and returns the normalized states that [`logits`](Self::logits)
    /// takes, `[tokens, hidden_size]`.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub fn states(&self, tokens: &[u32], cache: &mut Cache) -> Result<Vec<f32>, Error> {
        self.check(tokens)?;
        let fits = |(layer, cache): (&Layer, &KeyValues)| cache.fits(&layer.attention);
        if cache.layers.len() != self.layers.len() || !self.layers.iter().zip(&cache.layers).all(fits) {
            return Err(Error::Cache);
        }
        let mut stream = vec![0.0; tokens.len() * self.config.hidden_size];
        self.embedding.forward(tokens, &mut stream)?;
        let angles = Angles::new(&self.frequencies, cache.positions(), tokens.len());
        for (layer, cache) in self.layers.iter().zip(&mut cache.layers) {
            layer.attend(&angles, cache, &mut stream)?;
            layer.feed_forward(&mut stream)?;
        }
        self.norm.normalize(&mut stream);
        Ok(stream)
    }

    /// The logits of normalized states: `[states, vocab_size]`.
    ///
    /// # Errors
    /// States that are no whole rows.
    pub fn logits(&self, states: &[f32]) -> Result<Vec<f32>, Error> {
        let [logits] = QuantizedLinear::forward_together([&self.head], states)?;
        Ok(logits)
    }

    fn check(&self, tokens: &[u32]) -> Result<(), Error> {
        let vocab = self.config.vocab_size;
        match tokens.iter().find(|token| **token as usize >= vocab) {
            Some(token) => Err(Error::Token { token: *token, vocab }),
            None if tokens.is_empty() => Err(Error::Empty),
            None => Ok(()),
        }
    }
}

impl Layer {
    /// `stream += output(attention(norm(stream)))`.
    fn attend(&self, angles: &Angles, cache: &mut KeyValues, stream: &mut [f32]) -> Result<(), Error> {
        let x = self.input_norm.forward(stream);
        let [mut queries, mut keys, values] =
            QuantizedLinear::forward_together([&self.query, &self.key, &self.value], &x)?;
        if let Some((query_norm, key_norm)) = &self.head_norms {
            query_norm.normalize(&mut queries);
            key_norm.normalize(&mut keys);
        }
        let Attention { heads, kv_heads, head_dim, .. } = self.attention;
        queries.chunks_exact_mut(heads * head_dim).enumerate().for_each(|(at, row)| angles.turn(at, row));
        keys.chunks_exact_mut(kv_heads * head_dim).enumerate().for_each(|(at, row)| angles.turn(at, row));
        let scale = 1.0 / (head_dim as f32).sqrt();
        queries.iter_mut().for_each(|q| *q *= scale);
        cache.append(&keys, &values);
        let seen = self.attention.forward(&queries, cache);
        let [seen] = QuantizedLinear::forward_together([&self.output], &seen)?;
        add(stream, &seen);
        Ok(())
    }

    /// `stream += down(silu(gate(norm(stream))) * up(norm(stream)))`.
    fn feed_forward(&self, stream: &mut [f32]) -> Result<(), Error> {
        let x = self.feed_forward_norm.forward(stream);
        let [mut gate, up] = QuantizedLinear::forward_together([&self.gate, &self.up], &x)?;
        kernels().swiglu(&mut gate, &up);
        let [down] = QuantizedLinear::forward_together([&self.down], &gate)?;
        add(stream, &down);
        Ok(())
    }
}

fn add(stream: &mut [f32], x: &[f32]) {
    stream.iter_mut().zip(x).for_each(|(s, x)| *s += x);
}

/// Where layers are taken from, and how they must look.
struct Room<'a> {
    config: &'a Config,
    weights: &'a Weights,
    arithmetic: Arithmetic,
    /// Modules so far.
    taken: RefCell<BTreeSet<String>>,
}

impl Room<'_> {
    fn layer(&self, index: usize) -> Result<Layer, Error> {
        let Config { hidden_size: hidden, intermediate_size: wide, heads, kv_heads, head_dim, .. } = *self.config;
        let biases = self.config.biases;
        let (attention, mlp) = (format!("model.layers.{index}.self_attn"), format!("model.layers.{index}.mlp"));
        let linear = |room: &str, name: &str, shape, bias| self.linear(&format!("{room}.{name}"), shape, bias);
        let norm = |name: &str| self.norm(&format!("model.layers.{index}.{name}"), hidden);
        let head_norm = |name: &str| self.norm(&format!("{attention}.{name}"), head_dim);
        let head_norms = || Ok::<_, Error>((head_norm("q_norm")?, head_norm("k_norm")?));
        Ok(Layer {
            attention: Attention { heads, kv_heads, head_dim, window: self.config.window(index) },
            input_norm: norm("input_layernorm")?,
            query: linear(&attention, "q_proj", [heads * head_dim, hidden], biases.qkv)?,
            key: linear(&attention, "k_proj", [kv_heads * head_dim, hidden], biases.qkv)?,
            value: linear(&attention, "v_proj", [kv_heads * head_dim, hidden], biases.qkv)?,
            output: linear(&attention, "o_proj", [hidden, heads * head_dim], biases.output)?,
            head_norms: self.config.qk_norm.then(head_norms).transpose()?,
            feed_forward_norm: norm("post_attention_layernorm")?,
            gate: linear(&mlp, "gate_proj", [wide, hidden], biases.feed_forward)?,
            up: linear(&mlp, "up_proj", [wide, hidden], biases.feed_forward)?,
            down: linear(&mlp, "down_proj", [hidden, wide], biases.feed_forward)?,
        })
    }

    fn linear(&self, name: &str, shape: [usize; 2], bias: bool) -> Result<QuantizedLinear, Error> {
        let layer = self.weights.linear(self.take(name))?.with_arithmetic(self.arithmetic);
        self.fits(name, [layer.rows(), layer.cols()], shape)?;
        match (layer.bias().is_some(), bias) {
            (true, false) => Err(self.wrong(name, "has a bias, and config.json says that it has none")),
            (false, true) => Err(self.wrong(name, "has no bias, and config.json says that it has one")),
            _ => Ok(layer),
        }
    }

    fn embedding(&self) -> Result<Embedding, Error> {
        let name = "model.embed_tokens";
        let embedding = self.weights.embedding(self.take(name))?;
        self.fits(name, [embedding.rows(), embedding.cols()], [self.config.vocab_size, self.config.hidden_size])?;
        Ok(embedding)
    }

    /// Where the configuration does not say whether the two are tied, a head that is there is used:
    /// writers that tie by default leave it out.
    fn head(&self, embedding: &Embedding) -> Result<QuantizedLinear, Error> {
        let tied = self.config.tied.unwrap_or_else(|| self.weights.tensor("lm_head.weight").is_err());
        if tied {
            // Some writers store the tied head as well; loaders leave it out.
            self.take("lm_head");
            return Ok(embedding.as_linear().with_arithmetic(self.arithmetic));
        }
        self.linear("lm_head", [self.config.vocab_size, self.config.hidden_size], false)
    }

    fn norm(&self, name: &str, width: usize) -> Result<RmsNorm, Error> {
        let weight = self.weights.tensor(&format!("{}.weight", self.take(name)))?;
        if weight.info.shape != [width] {
            let why = format!("has shape {:?}, and config.json makes it [{width}]", weight.info.shape);
            return Err(self.wrong(name, why));
        }
        Ok(RmsNorm::new(weight.to_f32()?, self.config.norm_eps))
    }

    fn take<'n>(&self, name: &'n str) -> &'n str {
        self.taken.borrow_mut().insert(name.to_owned());
        name
    }

    /// Weights that the model would not use are another model's: its tokens would be wrong, silently.
    fn nothing_is_left(&self) -> Result<(), Error> {
        let taken = self.taken.borrow();
        let module = |name: &str| name.rsplit_once('.').map_or("", |(module, _)| module).to_owned();
        let is_left = |name: &&str| !taken.contains(&module(name)) && !name.ends_with(".rotary_emb.inv_freq");
        let left: Vec<&str> = self.weights.names().filter(is_left).collect();
        let Some(first) = left.first() else { return Ok(()) };
        let (others, layers) = (left.len() - 1, self.config.layers);
        let family = self.config.family.model_type();
        let why =
            format!("and {others} more are no weights of the {family} of {layers} layers that config.json describes");
        Err(self.wrong(first, why))
    }

    fn fits(&self, name: &str, shape: [usize; 2], expected: [usize; 2]) -> Result<(), Error> {
        if shape == expected {
            return Ok(());
        }
        Err(self.wrong(name, format!("has shape {shape:?}, and config.json makes it {expected:?}")))
    }

    fn wrong(&self, name: &str, why: impl Into<String>) -> Error {
        Error::Weight { name: format!("{name} of {}", self.weights.path().display()), why: why.into() }
    }
}
