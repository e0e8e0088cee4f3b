//! Decoder models: rotary embedding against its formula, attention against f64, caches against
//! recomputation, configurations, sampling.

use std::path::PathBuf;

use proptest::prelude::*;
use quantfs::{
    kernel::{Dense, available},
    runtime::{
        Arithmetic,
        model::{
            Config, Decoder, Error, Family, Sampler,
            attention::{Attention, KeyValues},
            perplexity::{self, Difference, Score, inputs},
            rope::{Angles, Llama3, Rope, Scaling},
            sampling::{largest, log_probabilities},
        },
    },
};

use crate::common::written::{f32s, write};

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/mlx_lm").join(name)
}

/// Reproducible values of about unit size.
fn values(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn close(ours: &[f32], theirs: &[f64], bound: f64, what: &str) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    for (i, (x, y)) in ours.iter().zip(theirs).enumerate() {
        assert!((f64::from(*x) - y).abs() <= bound, "{what}: element {i} is {x}, not {y}");
    }
}

#[test]
fn dense_kernels_agree_with_f64_on_every_table() {
    for (kernels, (rows, depth, columns)) in
        available().into_iter().flat_map(|k| [(1, 1, 16), (3, 7, 32), (9, 65, 16), (29, 33, 48)].map(|s| (k, s)))
    {
        let (a_stride, c_stride) = (depth + 3, columns + 5);
        let (a, b) = (values(rows * a_stride, 1), values(depth * columns, 2));
        let mut c = vec![9.0; rows * c_stride];
        kernels.dense(&Dense { rows, depth, columns, a_stride, c_stride }, &a, &b, &mut c);
        for (row, c) in c.chunks_exact(c_stride).enumerate() {
            let sum = |column: usize| -> f64 {
                (0..depth).map(|k| f64::from(a[row * a_stride + k]) * f64::from(b[k * columns + column])).sum()
            };
            close(&c[..columns], &(0..columns).map(sum).collect::<Vec<_>>(), 1e-4, kernels.isa().name());
            assert!(c[columns..].iter().all(|x| *x == 9.0), "{}: wrote between the rows", kernels.isa());
        }
    }
}

#[test]
fn softmax_and_gates_agree_with_f64_on_every_table() {
    for kernels in available() {
        for count in [1, 2, 15, 16, 17, 300] {
            let x: Vec<f32> = values(count, 3).iter().map(|x| x * 40.0).collect();
            let most = x.iter().copied().fold(f32::MIN, f32::max);
            let powers: Vec<f64> = x.iter().map(|x| (f64::from(*x) - f64::from(most)).exp()).collect();
            let sum: f64 = powers.iter().sum();
            let mut ours = x.clone();
            kernels.softmax(&mut ours);
            close(&ours, &powers.iter().map(|p| p / sum).collect::<Vec<_>>(), 1e-6, kernels.isa().name());

            let up = values(count, 4);
            let mut gate = x.clone();
            kernels.swiglu(&mut gate, &up);
            for ((g, x), u) in gate.iter().zip(&x).zip(&up) {
                let (x, u) = (f64::from(*x), f64::from(*u));
                let exact = x / (1.0 + (-x).exp()) * u;
                assert!((f64::from(*g) - exact).abs() <= 1e-6 * exact.abs() + 1e-12, "{}: silu({x})", kernels.isa());
            }
        }
        let mut hostile = [f32::NAN, 1000.0, -1000.0];
        kernels.swiglu(&mut hostile, &[1.0; 3]);
        assert!(hostile[0].is_nan() && hostile[1] == 1000.0 && hostile[2].abs() < 1e-30, "{hostile:?}");
        let mut all = [f32::NAN, 0.0];
        kernels.softmax(&mut all);
        assert!(all[1].is_nan(), "a NaN score must not vanish: {all:?}");
    }
}

/// The formulas of the papers and of transformers' `modeling_rope_utils`, in f64.
#[test]
fn rotary_variants_follow_their_formulas() {
    let (dim, theta) = (64usize, 500_000.0f64);
    let plain = |pair: usize| theta.powf(-2.0 * pair as f64 / dim as f64);
    let frequencies = |scaling| Rope { theta, scaling }.frequencies(dim);
    let agree = |ours: Vec<f32>, theirs: &dyn Fn(usize) -> f64| {
        assert_eq!(ours.len(), dim / 2);
        for (pair, ours) in ours.iter().enumerate() {
            let theirs = theirs(pair);
            assert!((f64::from(*ours) - theirs).abs() <= theirs * 1e-7, "pair {pair}: {ours}, not {theirs}");
        }
    };
    agree(frequencies(Scaling::None), &plain);
    agree(frequencies(Scaling::Linear { factor: 4.0 }), &|pair| plain(pair) / 4.0);
    let llama3 = Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_positions: 8192.0 };
    let expected = |pair: usize| {
        let wavelength = 2.0 * std::f64::consts::PI / plain(pair);
        if wavelength < 8192.0 / 4.0 {
            return plain(pair);
        }
        if wavelength > 8192.0 / 1.0 {
            return plain(pair) / 8.0;
        }
        let smooth = (8192.0 / wavelength - 1.0) / (4.0 - 1.0);
        (1.0 - smooth) * plain(pair) / 8.0 + smooth * plain(pair)
    };
    let blended = (0..dim / 2).filter(|p| (2048.0..8192.0).contains(&(2.0 * std::f64::consts::PI / plain(*p))));
    assert!(blended.count() > 1, "the case must have frequencies of all three kinds");
    agree(frequencies(Scaling::Llama3(llama3)), &expected);
}

#[test]
fn pairs_half_a_head_apart_turn() {
    let frequencies = [1.0, 0.25];
    let angles = Angles::new(&frequencies, 5, 3);
    let mut heads = values(8, 7);
    let before = heads.clone();
    angles.turn(2, &mut heads);
    for (head, before) in heads.chunks(4).zip(before.chunks(4)) {
        for (pair, frequency) in frequencies.iter().enumerate() {
            let (sin, cos) = (7.0 * f64::from(*frequency)).sin_cos();
            let (x, y) = (f64::from(before[pair]), f64::from(before[pair + 2]));
            close(&[head[pair], head[pair + 2]], &[x * cos - y * sin, y * cos + x * sin], 1e-6, "turned");
        }
    }
}

/// Attention as the formula has it: every query over every key it sees, in f64.
fn naive(shape: &Attention, queries: &[f32], keys: &[f32], values: &[f32]) -> Vec<f64> {
    let (dim, group) = (shape.head_dim, shape.heads / shape.kv_heads);
    let (count, all) = (queries.len() / (shape.heads * dim), keys.len() / (shape.kv_heads * dim));
    let mut out = vec![0.0; queries.len()];
    for (i, head) in (0..count).flat_map(|i| (0..shape.heads).map(move |h| (i, h))) {
        let position = all - count + i;
        let first = shape.window.map_or(0, |w| (position + 1).saturating_sub(w));
        let row = |x: &[f32], p: usize| -> Vec<f64> {
            x[(p * shape.kv_heads + head / group) * dim..][..dim].iter().map(|x| f64::from(*x)).collect()
        };
        let query = &queries[(i * shape.heads + head) * dim..][..dim];
        let score = |p: usize| -> f64 { row(keys, p).iter().zip(query).map(|(k, q)| k * f64::from(*q)).sum() };
        let powers: Vec<f64> = (first..=position).map(|p| score(p).exp()).collect();
        let sum: f64 = powers.iter().sum();
        for (p, power) in (first..=position).zip(&powers) {
            for (out, v) in out[(i * shape.heads + head) * dim..].iter_mut().zip(row(values, p)) {
                *out += power / sum * v;
            }
        }
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn attention_agrees_with_f64(
        kv_heads in 1usize..4, group in 1usize..5, half in 1usize..12, before in 0usize..70, count in 1usize..40,
        window in proptest::option::of(1usize..50), seed in any::<u64>(),
    ) {
        let shape = Attention { heads: kv_heads * group, kv_heads, head_dim: 2 * half, window };
        let width = kv_heads * shape.head_dim;
        let (keys, seen) = (values((before + count) * width, seed), values((before + count) * width, seed ^ 1));
        let queries = values(count * shape.heads * shape.head_dim, seed ^ 2);
        let mut cache = KeyValues::new(kv_heads, shape.head_dim);
        cache.append(&keys[..before * width], &seen[..before * width]);
        cache.append(&keys[before * width..], &seen[before * width..]);
        close(&shape.forward(&queries, &cache), &naive(&shape, &queries, &keys, &seen), 2e-6, "attention");
    }
}

#[test]
fn a_shortened_cache_is_the_shorter_text() {
    let shape = Attention { heads: 2, kv_heads: 1, head_dim: 6, window: None };
    let (keys, seen, queries) = (values(40 * 6, 1), values(40 * 6, 2), values(12, 3));
    let (mut long, mut short) = (KeyValues::new(1, 6), KeyValues::new(1, 6));
    long.append(&keys, &values(40 * 6, 9));
    long.truncate(0);
    long.append(&keys, &seen);
    long.truncate(19);
    short.append(&keys[..19 * 6], &seen[..19 * 6]);
    assert_eq!((long.positions(), shape.forward(&queries, &long)), (19, shape.forward(&queries, &short)));
}

fn open(name: &str) -> Decoder {
    Decoder::open(golden(name), Arithmetic::Exact).unwrap()
}

fn text(decoder: &Decoder, count: u32) -> Vec<u32> {
    let vocab = u32::try_from(decoder.config().vocab_size).unwrap();
    (0..count).map(|i| (i * i * 7 + i) % vocab).collect()
}

#[test]
fn a_text_in_chunks_gives_the_logits_of_the_whole() {
    for name in ["llama_src", "llama_q4_g64", "llama_mxfp4"] {
        let decoder = open(name);
        let text = text(&decoder, 45);
        let mut cache = decoder.cache();
        let states = decoder.states(&text, &mut cache).unwrap();
        let whole = decoder.logits(&states).unwrap();
        let mut by_token = decoder.cache();
        let mut uneven = decoder.cache();
        for (at, row) in whole.chunks(decoder.config().vocab_size).enumerate() {
            let row: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
            close(&decoder.next(&text[at..=at], &mut by_token).unwrap(), &row, 2e-5, name);
            if matches!(at, 0 | 6 | 39) {
                let from = uneven.positions();
                close(&decoder.next(&text[from..=at], &mut uneven).unwrap(), &row, 2e-5, name);
            }
        }
        by_token.truncate(20);
        let again = decoder.next(&text[20..21], &mut by_token).unwrap();
        let row: Vec<f64> = whole[20 * 64..21 * 64].iter().map(|x| f64::from(*x)).collect();
        close(&again, &row, 2e-5, "after going back");
    }
}

#[test]
fn results_do_not_depend_on_threads() {
    let decoder = open("llama_q4_g64");
    let text = text(&decoder, 60);
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| decoder.next(&text, &mut decoder.cache()).unwrap())
    };
    assert_eq!(on(1), on(4));
}

#[test]
fn wrong_tokens_are_refused_and_leave_the_text() {
    let decoder = open("llama_src");
    let mut cache = decoder.cache();
    assert!(matches!(decoder.next(&[1, 64], &mut cache), Err(Error::Token { token: 64, vocab: 64 })));
    assert!(matches!(decoder.next(&[], &mut cache), Err(Error::Empty)));
    assert_eq!(cache.positions(), 0);
    let mut short = Llama { layers: 1, kv_heads: 1 }.decoder().cache();
    let other = Llama { layers: 2, kv_heads: 1 }.decoder();
    assert!(matches!(other.next(&[1], &mut short), Err(Error::Cache)), "a cache of fewer layers");
    assert!(matches!(Llama { layers: 1, kv_heads: 2 }.decoder().next(&[1], &mut short), Err(Error::Cache)));
    assert_eq!(short.positions(), 0);
}

/// A model of sixteen tokens.
struct Llama {
    layers: usize,
    kv_heads: usize,
}

impl Llama {
    /// In a directory, with a configuration of so many layers.
    fn write(&self, stated: usize) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let config = serde_json::json!({
            "model_type": "llama", "hidden_size": 32, "num_hidden_layers": stated, "intermediate_size": 32,
            "num_attention_heads": 2, "num_key_value_heads": self.kv_heads, "head_dim": 16, "vocab_size": 16,
            "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
        });
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let mut shapes = vec![("embed_tokens".to_owned(), vec![16, 32]), ("norm".to_owned(), vec![32])];
        for layer in 0..self.layers {
            let wide = self.kv_heads * 16;
            let attention = [("q", 32), ("k", wide), ("v", wide), ("o", 32)];
            shapes.extend(attention.map(|(n, rows)| (format!("layers.{layer}.self_attn.{n}_proj"), vec![rows, 32])));
            shapes.extend(["gate", "up", "down"].map(|n| (format!("layers.{layer}.mlp.{n}_proj"), vec![32, 32])));
            let norms = ["input_layernorm", "post_attention_layernorm"];
            shapes.extend(norms.map(|n| (format!("layers.{layer}.{n}"), vec![32])));
        }
        let tensors: Vec<_> = shapes
            .iter()
            .map(|(name, shape)| f32s(&format!("model.{name}.weight"), shape, &values(shape.iter().product(), 7)))
            .collect();
        write(&dir.path().join("model.safetensors"), &tensors, 0);
        dir
    }

    fn decoder(&self) -> Decoder {
        Decoder::open(self.write(self.layers).path(), Arithmetic::Exact).unwrap()
    }
}

/// Weights that nobody would use belong to another model, whose text this is not.
#[test]
fn weights_that_are_left_are_refused_by_name() {
    let two = Llama { layers: 2, kv_heads: 1 };
    let dir = two.write(1);
    let error = Decoder::open(dir.path(), Arithmetic::Exact).unwrap_err().to_string();
    assert!(error.contains("model.layers.1.") && error.contains("and 8 more"), "{error}");
    assert!(error.contains(&dir.path().display().to_string()) && error.contains("llama of 1 layers"), "{error}");
}

#[test]
fn a_text_is_cut_into_inputs_and_what_follows() {
    let stream: Vec<u32> = (0..10).collect();
    let cut: Vec<_> = inputs(&stream, 3).collect();
    assert_eq!(cut, [(&stream[0..3], &stream[1..4]), (&stream[3..6], &stream[4..7]), (&stream[6..9], &stream[7..10])]);
    assert_eq!(inputs(&stream[..9], 3).len(), 2, "nothing follows the ninth token");
    assert_eq!(inputs(&[], 3).len(), 0);
}

#[test]
fn perplexity_is_the_mean_surprise_of_what_follows() {
    let (decoder, other) = (open("llama_q4_g64"), open("llama_src"));
    let stream = text(&decoder, 97);
    let mut sums = (Score::default(), Difference::default());
    for input in inputs(&stream, 48) {
        perplexity::score(&decoder, Some(&other), input, &mut sums).unwrap();
    }
    let (mut surprise, mut divergence, mut equal) = (0.0, 0.0, 0);
    for input in 0..2 {
        let (mut own, mut reference) = (decoder.cache(), other.cache());
        for at in input * 48..(input + 1) * 48 {
            let own = decoder.next(&stream[at..=at], &mut own).unwrap();
            let reference = other.next(&stream[at..=at], &mut reference).unwrap();
            let (p, q) = (log_probabilities(&own), log_probabilities(&reference));
            assert!((p.iter().map(|p| p.exp()).sum::<f64>() - 1.0).abs() < 1e-12);
            surprise -= p[stream[at + 1] as usize];
            divergence += q.iter().zip(&p).map(|(q, p)| q.exp() * (q - p)).sum::<f64>();
            equal += usize::from(largest(&own) == largest(&reference));
        }
    }
    assert_eq!((sums.0.tokens, sums.1.equal), (96, equal));
    assert!((sums.0.surprise - surprise).abs() < 1e-3 && (sums.1.divergence - divergence).abs() < 1e-4, "{sums:?}");
    assert!(divergence > 1e-3, "the two must differ for this to mean something");
    assert!((sums.0.perplexity() - (surprise / 96.0).exp()).abs() < 1e-2);
    let mut alone = (Score::default(), Difference::default());
    perplexity::score(&other, Some(&other), (&stream[..48], &stream[1..49]), &mut alone).unwrap();
    assert_eq!((alone.1.divergence, alone.1.equal), (0.0, 48), "a model does not differ from itself");
}

#[test]
fn samples_follow_the_seed_and_the_probabilities() {
    let logits = [1.0, 3.0, 2.0, 3.0, f32::NEG_INFINITY];
    let draw = |temperature, seed, count| -> Vec<usize> {
        let mut sampler = Sampler::new(temperature, seed).unwrap();
        (0..count).map(|_| sampler.sample(&logits)).collect()
    };
    assert_eq!(draw(0.0, 5, 3), [1, 1, 1], "the first of the largest");
    assert_eq!(draw(0.8, 5, 200), draw(0.8, 5, 200));
    assert_ne!(draw(0.8, 5, 200), draw(0.8, 6, 200));
    let drawn = draw(0.5, 1, 40_000);
    let weights = logits.map(|x| (f64::from(x) / 0.5).exp());
    for (token, weight) in weights.iter().enumerate() {
        let expected = weight / weights.iter().sum::<f64>();
        let share = drawn.iter().filter(|t| **t == token).count() as f64 / 40_000.0;
        assert!((share - expected).abs() < 0.01, "token {token}: {share}, not {expected}");
    }
    for wrong in [-1.0, f32::NAN, f32::INFINITY] {
        assert!(Sampler::new(wrong, 0).is_err());
    }
    assert_eq!(largest(&[f32::NAN, 1.0, f32::NAN, 2.0]), 3);
}

/// A Llama's configuration with some keys changed; `null` takes a key away.
fn config(changes: serde_json::Value) -> Result<Config, String> {
    let mut whole = serde_json::json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 64, "hidden_size": 64,
        "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
        "rope_theta": 10000.0, "eos_token_id": 2,
    });
    for (key, value) in changes.as_object().unwrap() {
        whole[key] = value.clone();
    }
    whole.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    Config::parse(&whole.to_string())
}

#[test]
fn configurations_mean_what_their_classes_make_of_them() {
    use serde_json::json;
    let plain = config(json!({})).unwrap();
    assert_eq!(
        (plain.family, plain.head_dim, plain.tied, plain.eos.as_slice()),
        (Family::Llama, 16, None, &[2u32][..])
    );
    assert_eq!(
        (plain.rope, plain.norm_eps, plain.window(0)),
        (Rope { theta: 1e4, scaling: Scaling::None }, 1e-6, None)
    );
    assert_eq!(config(json!({"num_key_value_heads": null})).unwrap().kv_heads, 4);
    assert_eq!(config(json!({"eos_token_id": [7, 9]})).unwrap().eos, [7, 9]);
    let nested =
        json!({"rope_theta": null, "rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}});
    assert_eq!(config(nested).unwrap().rope, Rope { theta: 5e5, scaling: Scaling::Linear { factor: 2.0 } });
    let qwen2 = config(json!({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]})).unwrap();
    assert!(qwen2.biases.qkv && !qwen2.biases.output && !qwen2.qk_norm);
    let qwen3 = config(json!({"model_type": "qwen3", "architectures": null, "head_dim": 32})).unwrap();
    assert!(qwen3.qk_norm && !qwen3.biases.qkv && qwen3.head_dim == 32);
}

#[test]
fn windows_are_those_of_their_layers() {
    use serde_json::json;
    let windows = |changes| {
        let config = config(changes).unwrap();
        [0, 1, 2, 3].map(|layer| config.window(layer))
    };
    let mistral = json!({"model_type": "mistral", "architectures": null, "sliding_window": 9});
    assert_eq!(windows(mistral), [Some(9); 4]);
    let qwen = json!({"model_type": "qwen2", "architectures": null, "sliding_window": 9, "max_window_layers": 3});
    assert_eq!(windows(qwen.clone()), [None; 4], "not switched on");
    let mut on = qwen;
    on["use_sliding_window"] = true.into();
    assert_eq!(windows(on), [None, None, None, Some(9)]);
    let kinds = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"];
    assert_eq!(windows(json!({"sliding_window": 9, "layer_types": kinds})), [Some(9), None, None, Some(9)]);
    assert_eq!(windows(json!({"sliding_window": 9})), [None; 4], "Llama's windows are listed or none");
}

#[test]
fn configurations_that_cannot_run_are_refused_by_name() {
    use serde_json::json;
    let supported =
        "llama (LlamaForCausalLM), mistral (MistralForCausalLM), qwen2 (Qwen2ForCausalLM), qwen3 (Qwen3ForCausalLM)";
    for (changes, why) in [
        (json!({"model_type": "gemma"}), supported),
        (json!({"model_type": null}), supported),
        (json!({"architectures": ["LlamaForSequenceClassification"]}), supported),
        (json!({"hidden_act": "gelu"}), "hidden_act gelu"),
        (json!({"rope_scaling": {"type": "yarn", "factor": 4.0}}), "default, linear, llama3"),
        (json!({"rope_scaling": {"type": "linear"}}), "factor is missing"),
        (json!({"rope_scaling": {"rope_type": "linear", "factor": 0.0}}), "factor 0"),
        (
            json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}),
            "high_freq_factor 4 is not above",
        ),
        (json!({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}), "partial_rotary_factor 0.5"),
        (json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor 0.5"),
        (json!({"rope_traditional": true}), "rope_traditional"),
        (json!({"rope_theta": -1.0}), "rope_theta -1"),
        (json!({"model_type": "qwen3", "architectures": null}), "head_dim is missing"),
        (json!({"model_type": "qwen2", "architectures": null, "rope_theta": null}), "rope_theta is missing"),
        (json!({"num_key_value_heads": 3}), "no multiple of num_key_value_heads 3"),
        (json!({"num_key_value_heads": 0}), "num_key_value_heads is 0: a whole number of at least 1 is needed"),
        (json!({"num_hidden_layers": -2}), "num_hidden_layers is -2: a whole number of at least 1 is needed"),
        (json!({"vocab_size": 64.5}), "vocab_size is 64.5: a whole number of at least 1 is needed"),
        (json!({"vocab_size": "many"}), "vocab_size is \"many\": a whole number of at least 1 is needed"),
        (json!({"max_window_layers": -1}), "max_window_layers is -1: a whole number of at least 0 is needed"),
        (json!({"attention_bias": "no"}), "attention_bias is \"no\": "),
        (json!({"num_hidden_layers": null}), "num_hidden_layers is missing"),
        (json!({"head_dim": 7}), "head_dim 7"),
        (json!({"head_dim": 1usize << 62}), "more than memory can hold"),
        (json!({"hidden_size": 66}), "state head_dim"),
        (json!({"eos_token_id": "x"}), "eos_token_id"),
        (json!({"eos_token_id": -2}), "eos_token_id"),
        (json!({"layer_types": ["chunked_attention"]}), "chunked_attention"),
        (json!({"layer_types": ["sliding_attention"]}), "sliding_window is missing"),
        (json!({"rms_norm_eps": -1.0}), "rms_norm_eps"),
    ] {
        let refused = config(changes.clone()).expect_err(&changes.to_string());
        assert!(refused.contains(why), "{changes}: {refused}");
    }
}

/// A copy of a golden model with another configuration.
fn changed(change: impl Fn(&mut serde_json::Value)) -> Result<Decoder, Error> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(golden("llama_src/model.safetensors"), dir.path().join("model.safetensors")).unwrap();
    let text = std::fs::read_to_string(golden("llama_src/config.json")).unwrap();
    let mut config = serde_json::from_str(&text).unwrap();
    change(&mut config);
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    Decoder::open(dir.path(), Arithmetic::Exact)
}

#[test]
fn weights_that_do_not_fit_are_refused_by_name() {
    assert!(changed(|_| {}).is_ok());
    let refused = |key: &'static str, value: serde_json::Value| {
        changed(|config| config[key] = value.clone()).expect_err(key).to_string()
    };
    assert!(refused("vocab_size", 65.into()).contains("model.embed_tokens"));
    assert!(refused("num_hidden_layers", 3.into()).contains("model.layers.2."));
    assert!(refused("num_hidden_layers", (1u64 << 60).into()).contains("model.layers.2."));
    assert!(refused("intermediate_size", 64.into()).contains("mlp.gate_proj"));
    assert!(refused("attention_bias", true.into()).contains("has no bias"));
    assert!(refused("head_dim", 16.into()).contains("self_attn.q_proj"));
    assert!(changed(|config| config["model_type"] = "qwen3".into()).is_err());
    let nothing = Decoder::open("/nonexistent", Arithmetic::Exact).unwrap_err().to_string();
    assert!(nothing.contains("/nonexistent: no such directory"), "{nothing}");
}

#[cfg(feature = "tokens")]
mod tokens {
    use proptest::prelude::*;
    use quantfs::runtime::model::Tokens;

    /// A byte-level tokenizer: 256 byte tokens in GPT-2's alphabet, two merges and two special tokens.
    fn directory() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let printable = |b: u32| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let mut shift = 255;
        let letters: Vec<char> = (0..256u32)
            .map(|b| {
                shift += u32::from(!printable(b));
                char::from_u32(if printable(b) { b } else { shift }).unwrap()
            })
            .collect();
        let mut vocab: serde_json::Map<_, _> =
            letters.iter().enumerate().map(|(i, c)| (c.to_string(), i.into())).collect();
        vocab.insert("th".into(), 256.into());
        vocab.insert("the".into(), 257.into());
        let special = |id: u32, content: &str| {
            serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        };
        let bytes = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        let one = |id: &str| serde_json::json!({"id": id, "ids": [258], "tokens": [id]});
        let whole = serde_json::json!({
            "version": "1.0",
            "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
            "padding": {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "!"},
            "added_tokens": [special(258, "<s>"), special(259, "</s>")],
            "normalizer": null, "pre_tokenizer": bytes, "decoder": bytes,
            "post_processor": {"type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
                "special_tokens": {"<s>": one("<s>")}},
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                "vocab": vocab, "merges": [["t", "h"], ["th", "e"]]},
        });
        std::fs::write(dir.path().join("tokenizer.json"), whole.to_string()).unwrap();
        dir
    }

    #[test]
    fn a_prompt_begins_once_and_is_never_cut() {
        let dir = directory();
        let tokens = Tokens::open(dir.path()).unwrap();
        assert_eq!(tokens.plain("the thing").unwrap().len(), 6, "neither cut to 3 nor padded to 8");
        assert_eq!(tokens.prompt("the").unwrap(), [258, 257]);
        assert_eq!(tokens.prompt("<s>the").unwrap(), [258, 257], "a template wrote it already");
        assert_eq!(tokens.plain("the").unwrap(), [257]);
        assert_eq!(tokens.prompt("").unwrap(), [258]);
        assert_eq!(tokens.text(&[258, 257, 259]).unwrap(), "the");
    }

    #[test]
    fn a_directory_without_one_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let missing = Tokens::open(dir.path()).unwrap_err().to_string();
        assert!(missing.contains("tokenizer.json") && missing.contains("save_pretrained"), "{missing}");
        std::fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
        assert!(Tokens::open(dir.path()).unwrap_err().to_string().contains("tokenizer.json"));
    }

    fn streamed(tokens: &Tokens, ids: &[u32]) -> Vec<String> {
        let mut stream = tokens.stream();
        let mut pieces: Vec<String> = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
        pieces.push(stream.finish().unwrap());
        pieces
    }

    #[test]
    fn streamed_characters_are_whole() {
        let dir = directory();
        let tokens = Tokens::open(dir.path()).unwrap();
        let ids = tokens.plain("né\u{1f600}!").unwrap();
        let pieces = streamed(&tokens, &ids);
        assert_eq!(pieces, ["n", "", "é", "", "", "", "\u{1f600}", "!", ""]);
        let cut = streamed(&tokens, &ids[..5]);
        assert_eq!(cut.concat(), tokens.text(&ids[..5]).unwrap(), "an unfinished character is shown at the end");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

        /// Any bytes at all, most of them no UTF-8.
        #[test]
        fn streamed_pieces_are_the_text(ids in proptest::collection::vec(0u32..260, 0..200)) {
            let dir = directory();
            let tokens = Tokens::open(dir.path()).unwrap();
            prop_assert_eq!(streamed(&tokens, &ids).concat(), tokens.text(&ids).unwrap());
        }
    }
}
