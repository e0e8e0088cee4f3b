//! Views of a given size: how near, who agrees, what stays, what is refused.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use quantfs::{
    bulk::{
        Silent,
        target::{Chosen, Target, choose},
    },
    plan::{self, Options, Plan},
    source::Source,
    tensor::Dtype,
};
use tempfile::TempDir;

use crate::common::{
    views,
    written::{Written, tensor, values, write},
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
    let chosen = choose(&source, options, target, &|_| None, &Silent).map_err(|e| e.to_string())?;
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
    let (source, options) = (source(dir.path()), asked("4bit", &[]));
    let target = Target::BitsPerWeight(4.3);
    let first_half: Vec<f32> = (0..256).map(|column| f32::from(u8::from(column < 128))).collect();
    let told = |name: &str| (name == "blocks.0.a.weight").then(|| first_half.clone());
    let weighed = choose(&source, &options, target, &told, &Silent).unwrap();
    let plan = plan::build(source.as_ref(), &weighed.options).unwrap();
    assert_eq!(becomes(&plan)["blocks.0.a.weight"], "mlx-2bit-g128");
    let (_, alike) = chosen(dir.path(), &options, target).unwrap();
    assert_ne!(becomes(&alike)["blocks.0.a.weight"], "mlx-2bit-g128");
    let wide = |name: &str| told(name).map(|values| [values.clone(), values].concat());
    assert!(choose(&source, &options, target, &wide, &Silent).is_ok(), "a row for each half of the rows");
    let narrow = |_: &str| Some(vec![1.0; 100]);
    let why = choose(&source, &options, target, &narrow, &Silent).unwrap_err().to_string();
    assert!(why.contains("importance of 100 columns"), "{why}");
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
#[test]
fn importance_of_zero_is_none() {
    let (dir, scratch) = (model(PLAIN, 0), tempfile::tempdir().unwrap());
    let path = scratch.path().join("zeros.safetensors");
    write(&path, &[tensor("model.layers.1.self_attn.q_proj", Dtype::F32, &[128], vec![0; 512])], 8);
    let recipe = |more: &[&str]| {
        let out =
            quantfs(dir.path(), scratch.path(), &[&["recipe", "--target-bpw", "4.7", "--spec", "4bit"], more].concat());
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    };
    assert_eq!(recipe(&["--importance", path.to_str().unwrap()]), recipe(&[]));
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
    // What is remembered is what is taken: a source that has changed is another question.
    let file = remembered[0].as_ref().unwrap().path();
    fs::write(&file, r#"{"rules": ["*=8bit"], "components": []}"#).unwrap();
    assert!(text(&run(&["inspect", "--target-bpw", "4.8"])).contains("mlx-8bit-g64"));
    fs::write(&file, "no JSON").unwrap();
    assert_eq!(json(&["inspect", "--json", "--target-bpw", "4.8"]), by_recipe);
    for wrong in [
        &["inspect", "--target-bpw", "x"][..],
        &["inspect", "--target-bpw", "4", "--target-size", "1MB"],
        &["inspect", "--target-size", "1 parsec"],
    ] {
        assert_eq!(run(wrong).status.code(), Some(2), "{wrong:?}");
    }
    assert_eq!(run(&["inspect", "--target-bpw", "30"]).status.code(), Some(1));
}
