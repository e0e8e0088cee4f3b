//! Views of a given size: how near, who agrees, what stays, what is refused.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use quantfs::{
    bulk::{
        Silent,
        target::{Chosen, Target, choose},
    },
    plan::{self, Importance, Options, Plan},
    quant,
    source::Source,
    tensor::Dtype,
};
use tempfile::TempDir;

use crate::common::{
    views,
    written::{Written, f32s, tensor, values, write},
};

/// Layers of the model of these tests.
const LAYERS: usize = 4;

fn bf16(name: &str, shape: &[usize], values: &[f32]) -> Written {
    tensor(name, Dtype::BF16, shape, values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect())
}

/// The names and shapes of a small Llama; `experts` give its layers mixtures.
fn shapes(experts: usize) -> Vec<(String, [usize; 2])> {
    let mut all = vec![("model.embed_tokens".to_owned(), [512, 128]), ("lm_head".to_owned(), [512, 128])];
    for layer in 0..LAYERS {
        for (name, shape) in
            [("q_proj", [128, 128]), ("k_proj", [64, 128]), ("v_proj", [64, 128]), ("o_proj", [128, 128])]
        {
            all.push((format!("model.layers.{layer}.self_attn.{name}"), shape));
        }
        let places: Vec<String> = match experts {
            0 => vec!["mlp".to_owned()],
            n => (0..n).map(|expert| format!("mlp.experts.{expert}")).collect(),
        };
        for place in places {
            for (name, shape) in [("gate_proj", [256, 128]), ("up_proj", [256, 128]), ("down_proj", [128, 256])] {
                all.push((format!("model.layers.{layer}.{place}.{name}"), shape));
            }
        }
    }
    all
}

/// A model in which weights differ in how hard they are to round: some have outliers.
fn model(config: &str, experts: usize) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut tensors = vec![bf16("model.norm.weight", &[128], &[1.0; 128])];
    for (seed, (name, shape)) in (1..).zip(shapes(experts)) {
        let mut values = values(seed, shape.iter().product());
        values.iter_mut().step_by(37 + usize::try_from(seed).unwrap()).for_each(|v| *v *= (seed % 5 + 1) as f32);
        tensors.push(bf16(&format!("{name}.weight"), &shape, &values));
    }
    write(&dir.path().join("model.safetensors"), &tensors, 8);
    fs::write(dir.path().join("config.json"), config).unwrap();
    dir
}

/// A model type that no family describes: names are kept.
const PLAIN: &str = r#"{"model_type": "of these tests", "torch_dtype": "bfloat16"}"#;

fn source(path: &Path) -> Arc<dyn Source> {
    views::open(path).into()
}

fn chosen(path: &Path, options: &Options, target: Target) -> Result<(Chosen, Plan), String> {
    let source = source(path);
    let chosen = choose(&source, options, target, &Silent).map_err(|e| e.to_string())?;
    let plan = plan::build(source.as_ref(), &chosen.options).unwrap();
    Ok((chosen, plan))
}

fn asked(spec: &str, rules: &[&str]) -> Options {
    views::options(spec, rules).unwrap()
}

fn becomes(plan: &Plan) -> BTreeMap<&str, &str> {
    plan.rows.iter().map(|row| (row.name.as_str(), row.becomes.as_str())).collect()
}

fn texts(options: &Options) -> Vec<&str> {
    options.rules.iter().map(|rule| rule.text.as_str()).collect()
}

#[test]
fn views_are_as_large_as_asked() {
    let dir = model(PLAIN, 0);
    // The others leave embeddings and output layers dense, which are a fifth of this model.
    for (spec, sizes) in [
        ("mlx-4bit-g64", [3.1, 4.5, 5.0, 6.7, 8.0]),
        ("ct-4bit-g128", [4.8, 5.2, 6.0, 7.5, 8.8]),
        ("gptq-4bit-g64", [4.9, 5.2, 6.0, 7.5, 8.8]),
    ] {
        for bits in sizes {
            let (chosen, plan) = chosen(dir.path(), &asked(spec, &[]), Target::BitsPerWeight(bits)).unwrap();
            let reached = plan.totals().bits_per_weight;
            assert!(reached <= bits && reached >= bits * 0.99, "{spec}: {reached} for {bits}");
            assert_eq!(reached, chosen.reached);
        }
    }
    for bytes in [300_000, 350_000, 500_000] {
        let (_, plan) = chosen(dir.path(), &asked("4bit", &[]), Target::Bytes(bytes)).unwrap();
        let files = plan.files.iter().filter(|file| file.path.ends_with(".safetensors"));
        let length: u64 = files.map(|file| file.len).sum();
        assert!(length <= bytes && length >= bytes / 100 * 99, "{length} for {bytes}");
    }
}

#[test]
fn what_is_out_of_reach_is_refused_with_what_is_in_it() {
    let dir = model(PLAIN, 0);
    for bits in [1.0, 12.0] {
        let why = chosen(dir.path(), &asked("4bit", &[]), Target::BitsPerWeight(bits)).unwrap_err();
        // All of 2 bits in groups of 128, beside one norm; at the other end what loses least, mostly 8 bits in groups of 32.
        let all = 128.0 + shapes(0).iter().map(|(_, [n, k])| (n * k) as f64).sum::<f64>();
        let least = (2.25 * (all - 128.0) + 16.0 * 128.0) / all;
        let from = format!("range from {least:.3} bits per weight to 8.");
        assert!(why.contains(&from) && why.contains(&format!("{bits:.3} bits per weight are out")), "{from}: {why}");
    }
    let why = chosen(dir.path(), &asked("4bit", &[]), Target::Bytes(1000)).unwrap_err();
    assert!(why.contains("1000 bytes") && why.contains("range from"), "{why}");
    // One scheme speaks for all layers there.
    let why = chosen(dir.path(), &asked("awq-4bit-g64", &[]), Target::BitsPerWeight(3.0)).unwrap_err();
    assert!(why.contains("out of reach"), "{why}");
    for contrary in ["dense-4bit", "source"] {
        assert!(chosen(dir.path(), &asked(contrary, &[]), Target::BitsPerWeight(4.5)).is_err(), "{contrary}");
    }
}

#[test]
fn rules_of_the_user_and_dense_tensors_stand() {
    let dir = model(PLAIN, 0);
    let options = asked("4bit", &["lm_head=8bit-g32", "*.0.mlp.down_proj=source"]);
    let (chosen, plan) = chosen(dir.path(), &options, Target::BitsPerWeight(5.5)).unwrap();
    let becomes = becomes(&plan);
    assert_eq!(becomes["lm_head.weight"], "mlx-8bit-g32");
    assert_eq!(becomes["model.layers.0.mlp.down_proj.weight"], "kept");
    assert_eq!(becomes["model.norm.weight"], "kept");
    assert_eq!(texts(&chosen.options)[..2], texts(&options)[..]);
    let reached = plan.totals().bits_per_weight;
    assert!((5.445..=5.5).contains(&reached), "what stands counts in the size: {reached}");
}

/// What loaders run as one matrix, and the experts of a layer, by the names that a test's model has.
fn together(name: &str) -> String {
    let stem = name.strip_suffix(".weight").unwrap_or(name);
    let words = stem.split('.').enumerate().map(|(at, word)| match (at, word) {
        (5, number) if number.bytes().all(|b| b.is_ascii_digit()) => "*",
        (_, "k_proj" | "v_proj") => "q_proj",
        (_, "up_proj") => "gate_proj",
        (_, word) => word,
    });
    words.collect::<Vec<_>>().join(".")
}

#[test]
fn what_must_agree_agrees() {
    let dir = model(PLAIN, 4);
    for bits in [4.3, 5.0] {
        let (chosen, plan) = chosen(dir.path(), &asked("ct-4bit-g128", &[]), Target::BitsPerWeight(bits)).unwrap();
        let mut groups: BTreeMap<String, &str> = BTreeMap::new();
        let mut specs = vec![];
        for (name, becomes) in becomes(&plan) {
            let of = *groups.entry(together(name)).or_insert(becomes);
            assert_eq!(of, becomes, "{name}");
            specs.push(becomes);
        }
        specs.sort_unstable();
        specs.dedup();
        assert!(specs.len() > 2, "it chose something: {specs:?}");
        let rules = texts(&chosen.options);
        assert!(rules.len() < 40, "experts share their rules: {rules:?}");
        assert!(
            specs.iter().all(|spec| !spec.contains("int8") && !spec.contains("fp8")),
            "activations stay: {specs:?}"
        );
    }
}

#[test]
fn stacks_are_chosen_for_as_one() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/mlx_lm/qwen3_moe_src");
    let mut seen = 0;
    for bits in [4.0, 5.0, 6.0] {
        // Two members of a stack that rules treat differently would be refused.
        let (_, plan) = chosen(&path, &asked("mlx-4bit-g32", &[]), Target::BitsPerWeight(bits)).unwrap();
        seen += plan.rows.iter().filter(|row| row.name.contains("switch_mlp") && row.sources.len() > 1).count();
        let careful = plan.rows.iter().find(|row| row.name.ends_with("mlp.gate.weight")).unwrap();
        assert!(careful.why.contains("predicate"), "the model's own wish stands: {} {}", careful.becomes, careful.why);
    }
    assert!(seen > 0);
}

#[test]
fn the_choice_depends_on_the_question_alone() {
    let dir = model(PLAIN, 0);
    let made = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| chosen(dir.path(), &asked("4bit", &[]), Target::BitsPerWeight(4.7)).unwrap().0)
    };
    let (one, many) = (made(1), made(5));
    assert_eq!(texts(&one.options), texts(&many.options));
    assert!(!one.options.rules.is_empty());
}

#[test]
fn what_loses_nothing_gets_the_least() {
    let dir = tempfile::tempdir().unwrap();
    let tensors = [
        bf16("blocks.0.a.weight", &[128, 128], &[0.0; 128 * 128]),
        bf16("blocks.0.b.weight", &[128, 128], &values(3, 128 * 128)),
        bf16("blocks.1.a.weight", &[128, 128], &[0.0; 128 * 128]),
        bf16("blocks.1.b.weight", &[128, 128], &values(4, 128 * 128)),
    ];
    write(&dir.path().join("model.safetensors"), &tensors, 8);
    let (chosen, plan) = chosen(dir.path(), &asked("4bit", &[]), Target::BitsPerWeight(4.26)).unwrap();
    let becomes = becomes(&plan);
    assert_eq!([becomes["blocks.0.a.weight"], becomes["blocks.1.a.weight"]], ["mlx-2bit-g128"; 2]);
    assert_eq!([becomes["blocks.0.b.weight"], becomes["blocks.1.b.weight"]], ["mlx-6bit-g128"; 2]);
    assert_eq!(texts(&chosen.options), ["blocks.{0,1}.a=mlx-2bit-g128", "blocks.{0,1}.b=mlx-6bit-g128"]);
}

#[test]
fn columns_that_do_not_matter_spoil_nothing() {
    let dir = tempfile::tempdir().unwrap();
    // Rounding loses nothing of the first half of each row.
    let mut halves = values(5, 128 * 256);
    halves.chunks_mut(256).for_each(|row| row[..128].fill(-1.0));
    let tensors = [
        bf16("blocks.0.a.weight", &[128, 256], &halves),
        bf16("blocks.0.b.weight", &[128, 256], &values(6, 128 * 256)),
    ];
    write(&dir.path().join("model.safetensors"), &tensors, 8);
    let (options, target) = (asked("4bit", &[]), Target::BitsPerWeight(4.3));
    let first_half: Vec<f32> = (0..256).map(|column| f32::from(u8::from(column < 128))).collect();
    let told = |shape: &[usize], values: &[f32]| Options {
        importance: Some(matrix(&[("blocks.0.a", shape, values.to_vec())])),
        ..options.clone()
    };
    let (weighed, plan) = chosen(dir.path(), &told(&[256], &first_half), target).unwrap();
    assert_eq!(becomes(&plan)["blocks.0.a.weight"], "mlx-2bit-g128");
    assert!(weighed.options.importance.is_none(), "the view rounds, and has no use for it");
    let (_, alike) = chosen(dir.path(), &options, target).unwrap();
    assert_ne!(becomes(&alike)["blocks.0.a.weight"], "mlx-2bit-g128");
    for (shape, count) in [(&[100][..], 100), (&[2, 256], 512)] {
        let why = chosen(dir.path(), &told(shape, &vec![1.0; count]), target).unwrap_err();
        assert!(why.contains("--importance") && why.contains("blocks.0.a"), "{why}");
    }
}

/// Our own form: a tensor for each weight.
fn matrix(tensors: &[(&str, &[usize], Vec<f32>)]) -> Arc<Importance> {
    let file = tempfile::NamedTempFile::new().unwrap();
    let tensors: Vec<_> = tensors.iter().map(|(name, shape, values)| f32s(name, shape, values)).collect();
    write(file.path(), &tensors, 8);
    Arc::new(Importance::open(file.path()).unwrap())
}

/// As llama.cpp wrote it at first, without a word on how many matrices an entry is of.
fn dat(entries: &[(String, Vec<f32>)]) -> Arc<Importance> {
    let number = |n: usize| i32::try_from(n).unwrap().to_le_bytes();
    let mut out = number(entries.len()).to_vec();
    for (name, values) in entries {
        out.extend([&number(name.len())[..], name.as_bytes(), &number(1), &number(values.len())].concat());
        out.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    }
    Arc::new(Importance::parse("old", &out).unwrap())
}

/// A mixture of two layers, whose experts lie fused or one by one, and what its columns matter, another in each expert.
mod mixture {
    use super::*;

    pub(super) const EXPERTS: usize = 3;
    const HIDDEN: usize = 128;
    const INNER: usize = 64;

    /// What the fused tensors of a layer hold, and how it is called in llama.cpp's files.
    pub(super) const FUSED: [(&str, [usize; 2], [&str; 2]); 2] = [
        ("gate_up_proj", [2 * INNER, HIDDEN], ["gate_proj", "up_proj"]),
        ("down_proj", [HIDDEN, INNER], ["down_proj", ""]),
    ];

    /// Columns that matter: of each expert other ones.
    pub(super) fn columns(layer: usize, cols: usize, expert: usize) -> Vec<f32> {
        let matters = |k: usize| (k / 32 + expert + layer).is_multiple_of(cols / 32);
        (0..cols).map(|k| if matters(k) { 40.0 + k as f32 } else { 0.01 }).collect()
    }

    /// Elements of an expert: in the first layer those that matter are easily rounded.
    fn elements(layer: usize, [rows, cols]: [usize; 2], expert: usize) -> Vec<f32> {
        let mut all = values((layer * 7 + expert * 3 + rows) as u64, rows * cols);
        let of = columns(layer, cols, expert);
        if layer == 0 {
            all.iter_mut().enumerate().filter(|(i, _)| of[i % cols] > 1.0).for_each(|(_, v)| *v = v.signum());
        }
        all
    }

    /// The names of experts' layers with the rows that they have of what may be fused.
    pub(super) fn apart(layer: usize, expert: usize) -> Vec<(String, [usize; 2], usize)> {
        let of = |(_, [rows, cols], layers): &(&str, [usize; 2], [&str; 2])| {
            let count = layers.iter().filter(|name| !name.is_empty()).count();
            let name = |(at, name): (usize, &&str)| {
                (format!("model.layers.{layer}.mlp.experts.{expert}.{name}"), [rows / count, *cols], at)
            };
            layers.iter().take(count).enumerate().map(name).collect::<Vec<_>>()
        };
        FUSED.iter().flat_map(of).collect()
    }

    pub(super) fn fused(layer: usize, name: &str) -> String {
        format!("model.layers.{layer}.mlp.experts.{name}")
    }

    pub(super) fn written(is_fused: bool) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        let mut tensors = vec![];
        for layer in 0..2 {
            for (name, shape, layers) in FUSED {
                let each: Vec<_> = (0..EXPERTS).map(|expert| elements(layer, shape, expert)).collect();
                if is_fused {
                    tensors.push(bf16(&fused(layer, name), &[EXPERTS, shape[0], shape[1]], &each.concat()));
                    continue;
                }
                for (expert, values) in each.iter().enumerate() {
                    let of = apart(layer, expert)
                        .into_iter()
                        .filter(|(own, ..)| layers.iter().any(|l| own.ends_with(&format!(".{l}"))));
                    for (own, [rows, cols], at) in of {
                        let part = &values[at * rows * cols..][..rows * cols];
                        tensors.push(bf16(&format!("{own}.weight"), &[rows, cols], part));
                    }
                }
            }
        }
        write(&dir.path().join("model.safetensors"), &tensors, 8);
        let config = format!(
            r#"{{"model_type": "qwen3_moe", "torch_dtype": "bfloat16", "hidden_size": {HIDDEN}, "num_experts": {EXPERTS}, "num_hidden_layers": 2}}"#
        );
        fs::write(dir.path().join("config.json"), config).unwrap();
        dir
    }

    /// Files that say the same of it: of fused tensors, of each expert, and two of llama.cpp's.
    pub(super) fn importances() -> [(&'static str, Arc<Importance>); 3] {
        let stack = |layer, cols| (0..EXPERTS).flat_map(|expert| columns(layer, cols, expert)).collect::<Vec<f32>>();
        let (mut of_fused, mut of_each, mut of_llama) = (vec![], vec![], vec![]);
        for layer in 0..2 {
            for (name, [_, cols], _) in FUSED {
                of_fused.push((fused(layer, name), vec![EXPERTS, cols], stack(layer, cols)));
            }
            for expert in 0..EXPERTS {
                let each = apart(layer, expert).into_iter();
                of_each.extend(each.map(|(name, [_, cols], _)| (name, vec![cols], columns(layer, cols, expert))));
            }
            for (word, cols) in [("gate", HIDDEN), ("up", HIDDEN), ("down", INNER)] {
                of_llama.push((format!("blk.{layer}.ffn_{word}_exps.weight"), stack(layer, cols)));
            }
        }
        let told = |all: &[(String, Vec<usize>, Vec<f32>)]| {
            matrix(&all.iter().map(|(name, shape, v)| (name.as_str(), &shape[..], v.clone())).collect::<Vec<_>>())
        };
        [("fused", told(&of_fused)), ("each", told(&of_each)), ("llama", dat(&of_llama))]
    }
}

/// What the columns of each weight matter is found as its elements are: in whatever way experts lie, and are told of.
#[test]
fn experts_are_weighed_by_their_own_columns() {
    use mixture::{EXPERTS, columns, importances, written};
    let scaled = |row: Vec<f32>| {
        let mean = row.iter().map(|w| f64::from(*w)).sum::<f64>() / row.len() as f64;
        row.into_iter().map(|w| f64::from(w) / mean).collect::<Vec<f64>>()
    };
    let mut seen = 0;
    for (is_fused, told, spec) in [
        (true, &["fused", "llama"][..], "ct-4bit-g32"),
        (true, &["fused", "llama"], "gptq-4bit-g32"),
        (false, &["each", "llama"], "ct-4bit-g32"),
        (false, &["each", "llama"], "mlx-4bit-g32"),
        (false, &["each", "llama"], "mlx-4bit-g32-ls"),
    ] {
        let dir = written(is_fused);
        let source = source(dir.path());
        for (name, file) in importances().into_iter().filter(|(name, _)| told.contains(name)) {
            let options = Options { importance: Some(file), ..asked(spec, &[]) };
            let found = plan::importance_of_weights(source.as_ref(), &options).unwrap();
            let plan = plan::build(source.as_ref(), &options.without_idle_importance()).unwrap();
            assert_eq!(found.len(), plan.weights.len());
            for (planned, found) in plan.weights.iter().zip(&found) {
                let words: Vec<&str> = planned.weight.stem.split('.').collect();
                let (layer, cols) = (words[2].parse().unwrap(), planned.weight.cols());
                let of = |expert| scaled(columns(layer, cols, expert));
                let expected = match words[5].parse() {
                    Ok(expert) => of(expert),
                    Err(_) => (0..EXPERTS).flat_map(of).collect(),
                };
                let what = format!("{spec}, {name}: {}", planned.weight.stem);
                let found = found.as_ref().map(quant::Importance::values).unwrap_or_default();
                assert_eq!(found.len(), expected.len(), "{what}");
                assert!(found.iter().zip(&expected).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-6 * b), "{what}");
                seen += 1;
            }
        }
    }
    assert_eq!(seen, 2 * (3 * 2 * 3 * EXPERTS + 2 * 2 * 3));
}

/// Fused experts are chosen for as those that lie one by one.
#[test]
fn fused_experts_are_chosen_for_as_others() {
    let [fused, apart] = [true, false].map(mixture::written);
    let [of_fused, of_each, of_llama] = mixture::importances().map(|(_, file)| Some(file));
    for spec in ["ct-4bit-g32", "gptq-4bit-g32", "gptq-4bit-g32-ls"] {
        let mut matters = false;
        for bits in [5.0, 5.5, 6.0, 7.0] {
            let specs_of = |dir: &TempDir, importance: &Option<Arc<Importance>>| {
                let options = Options { importance: importance.clone(), ..asked(spec, &[]) };
                let (_, plan) = chosen(dir.path(), &options, Target::BitsPerWeight(bits)).unwrap();
                let of = |row: &plan::Row| (row.name.clone(), row.becomes.clone());
                plan.rows.iter().map(of).collect::<BTreeMap<_, _>>()
            };
            let expected = specs_of(&apart, &of_each);
            assert_eq!(specs_of(&fused, &of_fused), expected, "{spec}");
            assert_eq!(specs_of(&fused, &of_llama), expected, "{spec}");
            assert_eq!(specs_of(&apart, &of_llama), expected, "{spec}");
            matters |= specs_of(&apart, &None) != expected;
        }
        assert!(matters, "{spec}");
    }
}

/// `quantfs VERB MODEL ...`, which remembers in a directory of this test.
#[cfg(feature = "cli")]
fn quantfs(model: &Path, cache: &Path, args: &[&str]) -> std::process::Output {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_quantfs"));
    command.arg(args[0]).arg(model).args(&args[1..]).env("XDG_CACHE_HOME", cache).output().unwrap()
}

#[cfg(feature = "cli")]
#[test]
fn an_importance_file_is_for_the_choice_where_the_method_rounds() {
    let (dir, scratch) = (model(PLAIN, 0), tempfile::tempdir().unwrap());
    let columns: Vec<u8> = (0..128u16).flat_map(|column| f32::from(column % 7).to_le_bytes()).collect();
    let file = |name: &str, weight: &str| {
        let path = scratch.path().join(name);
        write(&path, &[tensor(weight, Dtype::F32, &[128], columns.clone())], 8);
        path.to_str().unwrap().to_owned()
    };
    let known = file("known.safetensors", "model.layers.1.self_attn.q_proj");
    let recipe = |spec: &str, importance: &str| {
        let asked = ["recipe", "--target-bpw", "4.7", "--spec", spec, "--importance", importance];
        let out = quantfs(dir.path(), scratch.path(), &asked);
        let [said, failed] = [out.stdout, out.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        if out.status.success() { Ok(said) } else { Err(failed) }
    };
    let rounded = recipe("4bit", &known).unwrap();
    assert!(rounded.contains("[[rules]]") && !rounded.contains("importance"), "{rounded}");
    let searched = recipe("4bit-g64-ls", &known).unwrap();
    assert!(searched.contains(&format!("importance = \"{known}\"")), "{searched}");
    let affine = searched.lines().filter(|line| line.starts_with("spec = ") && line.contains("bit"));
    let mut count = 0;
    for line in affine {
        assert!(line.ends_with("-ls\""), "candidates choose codes as the view does: {line}");
        count += 1;
    }
    assert!(count > 2, "{searched}");
    let why = recipe("4bit", &file("other.safetensors", "somebody.else")).unwrap_err();
    assert!(why.contains("another model"), "{why}");
}

/// Importance that is zero throughout says nothing of a weight, and not that nothing is lost of it.
#[cfg(feature = "cli")]
#[test]
fn importance_of_zero_is_none() {
    let (dir, scratch) = (model(PLAIN, 0), tempfile::tempdir().unwrap());
    let some: Vec<u8> = (0..128u16).flat_map(|k| f32::from(1 + k % 5).to_le_bytes()).collect();
    let known = |name: &str, others: &[&str]| {
        let zeros = others.iter().map(|name| tensor(name, Dtype::F32, &[128], vec![0; 512]));
        let all: Vec<_> = [tensor("model.layers.0.self_attn.q_proj", Dtype::F32, &[128], some.clone())]
            .into_iter()
            .chain(zeros)
            .collect();
        let path = scratch.path().join(name);
        write(&path, &all, 8);
        path.to_str().unwrap().to_owned()
    };
    let recipe = |more: &[&str]| {
        let out =
            quantfs(dir.path(), scratch.path(), &[&["recipe", "--target-bpw", "4.7", "--spec", "4bit"], more].concat());
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    };
    let [one, more] = [known("one", &[]), known("more", &["model.layers.1.self_attn.q_proj"])];
    let text = |file: &str| recipe(&["--importance", file]).replace(file, "");
    assert_eq!(text(&more), text(&one));
}

#[cfg(feature = "cli")]
#[test]
fn a_choice_is_printed_as_a_recipe_and_remembered() {
    let dir = model(PLAIN, 0);
    let scratch = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| quantfs(dir.path(), scratch.path(), args);
    let text = |out: &std::process::Output| String::from_utf8(out.stdout.clone()).unwrap();
    let printed = run(&["recipe", "--target-bpw", "4.8"]);
    assert!(printed.status.success(), "{printed:?}");
    let recipe = scratch.path().join("r.toml");
    fs::write(&recipe, text(&printed)).unwrap();
    let json = |args: &[&str]| serde_json::from_str::<serde_json::Value>(&text(&run(args))).unwrap();
    let by_recipe = json(&["inspect", "--json", "--recipe", recipe.to_str().unwrap()]);
    assert_eq!(by_recipe, json(&["inspect", "--json", "--target-bpw", "4.8"]));
    let bits = by_recipe["totals"]["bits_per_weight"].as_f64().unwrap();
    assert!((4.75..=4.8).contains(&bits), "{bits}");
    let remembered: Vec<_> = fs::read_dir(scratch.path().join("quantfs/targets")).unwrap().collect();
    assert_eq!(remembered.len(), 1, "asked twice, chosen once");
    let file = remembered[0].as_ref().unwrap().path();
    let right = fs::read_to_string(&file).unwrap();
    // What was not remembered of this question is not believed, and is chosen anew: no JSON, nothing of a size, another
    // size than it says, more than asked for, other components, no rules, rules that mean nothing.
    let remembers = |rules: &str, components: &str, reached: &str| {
        format!(r#"{{"rules": [{rules}], "components": [{components}], "reached": {reached}}}"#)
    };
    let reached = |of: &str| json(&["inspect", "--json", "--spec", of])["totals"]["bits_per_weight"].to_string();
    for spoiled in [
        "no JSON".to_owned(),
        r#"{"rules": ["*=8bit"], "components": []}"#.to_owned(),
        remembers(r#""*=3bit""#, "", "4.79"),
        remembers(r#""*=8bit""#, "", &reached("8bit")),
        remembers(r#""*=2bit""#, "[]", &reached("2bit")),
        remembers(r#""*=9bit""#, "", "4.79"),
        remembers(r#""*nothing*=8bit""#, "", &reached("4bit")),
        right[..right.len() / 2].to_owned(),
    ] {
        fs::write(&file, &spoiled).unwrap();
        assert_eq!(json(&["inspect", "--json", "--target-bpw", "4.8"]), by_recipe, "{spoiled}");
        assert_eq!(fs::read_to_string(&file).unwrap(), right, "{spoiled}");
    }
    // What is remembered is what is taken, where it keeps to the target.
    fs::write(&file, remembers(r#""*=3bit-g128""#, "", &reached("3bit-g128"))).unwrap();
    assert!(text(&run(&["inspect", "--target-bpw", "4.8"])).contains("mlx-3bit-g128"));
    let nowhere = run(&["recipe", "--spec", "4bit", "-o", "/nonexistent/r.toml"]);
    let said = String::from_utf8_lossy(&nowhere.stderr).into_owned();
    assert!(!nowhere.status.success() && said.contains("there is no directory /nonexistent"), "{said}");
    for wrong in [
        &["inspect", "--target-bpw", "x"][..],
        &["inspect", "--target-bpw", "4", "--target-size", "1MB"],
        &["inspect", "--target-size", "1 parsec"],
    ] {
        assert_eq!(run(wrong).status.code(), Some(2), "{wrong:?}");
    }
    assert_eq!(run(&["inspect", "--target-bpw", "30"]).status.code(), Some(1));
}
