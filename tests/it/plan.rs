//! Plans: specs, rules, layouts, refusals; and whole views against what mlx_lm wrote.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::common::faults::{Fault, Faulty};
use quantfs::{
    container::safetensors,
    plan::{self, Options, Parts, Plan, Rule, Spec},
    quant::FORMATS,
    source::{self, Caches, Source},
    tensor::Dtype,
    view::{self, Engine, View},
};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/mlx_lm").join(name)
}

fn open(path: &Path) -> Arc<dyn Source> {
    source::open(path.to_str().unwrap(), &Caches { hub: vec![] }).unwrap().into()
}

fn spec(text: &str) -> Spec {
    Spec::parse(Some(text), &Parts::default()).unwrap()
}

fn options(text: &str, rules: &[&str]) -> Options {
    let spec = spec(text);
    let rules = rules.iter().map(|r| Rule::parse(r, &spec).unwrap()).collect();
    Options { rules, ..Options::new(spec) }
}

fn plan(path: &Path, options: &Options) -> Result<Plan, plan::Error> {
    plan::build(open(path).as_ref(), options)
}

fn view(path: &Path, options: &Options) -> Arc<View> {
    let source = open(path);
    let plan = plan::build(source.as_ref(), options).unwrap();
    View::new(Arc::new(plan), source, Engine::new(view::Options::default()).unwrap())
}

fn read(view: &Arc<View>, path: &str) -> Vec<u8> {
    let number = view.plan().files.iter().position(|f| f.path == path).unwrap_or_else(|| panic!("no file {path}"));
    let mut bytes = vec![0; usize::try_from(view.plan().files[number].len).unwrap()];
    assert_eq!(view.read_at(number, 0, &mut bytes).unwrap(), bytes.len());
    bytes
}

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn tensors(file: &[u8]) -> Tensors {
    let header = crate::common::headers::header(file).unwrap();
    let at = |o: u64| usize::try_from(o).unwrap();
    header
        .tensors
        .into_iter()
        .map(|t| {
            let bytes = file[at(t.range.start)..at(t.range.end)].to_vec();
            (t.info.name, (t.info.dtype, t.info.shape, bytes))
        })
        .collect()
}

/// Writes a model directory of bf16 tensors, `(file, name, shape)`, all elements distinct enough.
fn model(dir: &Path, config: &str, listed: &[(&str, &str, &[usize])]) {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("config.json"), config).unwrap();
    let mut files: BTreeMap<&str, Vec<(String, &[usize])>> = BTreeMap::new();
    for (file, name, shape) in listed {
        files.entry(file).or_default().push(((*name).to_owned(), shape));
    }
    for (file, members) in files {
        let infos: Vec<_> = members
            .iter()
            .map(|(name, shape)| quantfs::tensor::TensorInfo {
                name: name.clone(),
                dtype: Dtype::BF16,
                shape: shape.to_vec(),
            })
            .collect();
        let rendered = safetensors::render(&infos, Some(&[("format".into(), "pt".into())]), 8).unwrap();
        let mut bytes = rendered.preamble;
        while (bytes.len() as u64) < rendered.len {
            let n = bytes.len();
            let value = half::bf16::from_f32(((n * 2_654_435_761) % 1009) as f32 / 1009.0 - 0.5);
            bytes.extend(value.to_le_bytes());
        }
        let path = dir.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

const LLAMA: &str =
    r#"{"model_type": "llama", "torch_dtype": "bfloat16", "num_hidden_layers": 1, "tie_word_embeddings": false}"#;

fn llama(dir: &Path) {
    let file = "model.safetensors";
    model(
        dir,
        LLAMA,
        &[
            (file, "model.embed_tokens.weight", &[32, 64]),
            (file, "model.layers.0.self_attn.q_proj.weight", &[64, 64]),
            (file, "model.layers.0.mlp.up_proj.weight", &[96, 64]),
            (file, "model.layers.0.mlp.down_proj.weight", &[64, 96]),
            (file, "model.layers.0.input_layernorm.weight", &[64]),
            (file, "model.norm.weight", &[64]),
            (file, "lm_head.weight", &[32, 64]),
        ],
    );
}

#[test]
fn views_equal_what_mlx_lm_wrote() {
    for (source, reference, text) in [
        ("llama_src", "llama_q4_g64", "mlx-4bit-g64"),
        ("llama_src", "llama_mxfp4", "mlx-mxfp4"),
        ("gemma2_src", "gemma2_q4_g64", "4bit"),
        ("qwen3_moe_src", "qwen3_moe_q4_g64", "4bit"),
        ("qwen3_moe_src", "qwen3_moe_mxfp4", "mxfp4"),
    ] {
        let view = view(&golden(source), &options(text, &[]));
        let theirs = |name: &str| fs::read(golden(reference).join(name)).unwrap();
        let (ours, expected) = (tensors(&read(&view, "model.safetensors")), tensors(&theirs("model.safetensors")));
        assert_eq!(ours.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{reference}");
        for (name, tensor) in &expected {
            assert!(ours[name] == *tensor, "{reference}: {name}");
        }
        for json in ["config.json", "model.safetensors.index.json"] {
            let (ours, theirs) = (read(&view, json), theirs(json));
            assert_eq!(String::from_utf8(ours).unwrap(), String::from_utf8(theirs).unwrap(), "{reference}: {json}");
        }
    }
}

#[test]
fn specs_have_one_canonical_spelling() {
    for (typed, canonical) in [
        ("4bit", "mlx-4bit-g64"),
        ("mlx", "mlx-4bit-g64"),
        ("8bit-g32", "mlx-8bit-g32"),
        ("mlx-4bit-metal-g128", "mlx-4bit-g128-metal"),
        ("mxfp4", "mlx-mxfp4"),
        ("mlx-mxfp4-nearest", "mlx-mxfp4-nearest"),
        ("mlx-source", "mlx-source"),
        ("source", "source"),
        ("zimage", "zimage-8bit-g32"),
        ("zimage-4bit-g64-cpu", "zimage-4bit-g64-cpu"),
    ] {
        assert_eq!(spec(typed).to_string(), canonical, "{typed}");
    }
    for format in FORMATS {
        for scheme in format.schemes() {
            let text =
                if *scheme == format.name() { (*scheme).to_owned() } else { format!("{}-{scheme}", format.name()) };
            let once = spec(&text);
            assert_eq!(spec(&once.to_string()), once, "{text}");
            for (i, choice) in format.options(scheme).iter().enumerate() {
                for word in choice.iter() {
                    let with = spec(&format!("{text}-{word}"));
                    assert_eq!(spec(&with.to_string()), with, "{text}-{word}");
                    assert_eq!(with == once, *word == format.options(scheme)[i][0], "{text}-{word}");
                }
            }
        }
    }
}

#[test]
fn parts_fill_what_a_spec_leaves_open() {
    let parse =
        |text: Option<&str>, parts: Parts| Spec::parse(text, &parts).map(|s| s.to_string()).map_err(|e| e.to_string());
    let parts = |bits, group_size, mode: Option<&str>| Parts {
        bits,
        group_size,
        mode: mode.map(str::to_owned),
        ..Parts::default()
    };
    assert_eq!(parse(None, parts(Some(8), Some(32), None)).unwrap(), "mlx-8bit-g32");
    assert_eq!(parse(None, parts(Some(4), Some(32), Some("mxfp4"))).unwrap(), "mlx-mxfp4");
    assert_eq!(parse(None, parts(None, None, Some("nvfp4"))).unwrap(), "mlx-nvfp4");
    assert_eq!(parse(Some("4bit"), parts(Some(4), Some(128), Some("affine"))).unwrap(), "mlx-4bit-g128");
    assert_eq!(parse(Some("zimage"), parts(Some(4), None, None)).unwrap(), "zimage-4bit-g32");
    for (text, bad, word) in [
        (Some("4bit"), parts(Some(8), None, None), "--bits 8"),
        (Some("4bit-g32"), parts(None, Some(64), None), "g64"),
        (None, parts(Some(7), None, None), "--bits 7"),
        (None, parts(Some(8), None, Some("mxfp4")), "--mode mxfp4"),
        (None, parts(None, Some(48), None), "48"),
        (Some("mxfp4"), parts(None, Some(64), None), "64"),
    ] {
        let error = parse(text, bad).unwrap_err();
        assert!(error.contains(word), "{error}");
    }
    for bad in ["", "4bit--g64", "9bit", "mlx-4bit-g64-g32", "mlx-4bit-gptq", "mlx-x", "-", "mlx-"] {
        assert!(parse(Some(bad), Parts::default()).is_err(), "{bad}");
    }
}

#[test]
fn the_first_rule_that_matches_wins() {
    let dir = tempfile::tempdir().unwrap();
    llama(dir.path());
    let made = plan(dir.path(), &options("4bit-g32", &["lm_head=source", "*.mlp.*=8bit", "*=6bit-g64"])).unwrap();
    let becomes: BTreeMap<_, _> = made.rows.iter().map(|r| (r.name.as_str(), r.becomes.as_str())).collect();
    assert_eq!(becomes["lm_head.weight"], "kept");
    assert_eq!(becomes["model.layers.0.mlp.up_proj.weight"], "mlx-8bit-g32", "the group is the view's");
    assert_eq!(becomes["model.layers.0.self_attn.q_proj.weight"], "mlx-6bit-g64");
    assert_eq!(becomes["model.norm.weight"], "kept", "a norm cannot be stored so");
}

#[test]
fn rules_that_change_nothing_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    llama(dir.path());
    let tied = LLAMA.replace("false", "true");
    fs::write(dir.path().join("config.json"), tied).unwrap();
    let error = plan(dir.path(), &options("4bit", &["lm_head=8bit"])).unwrap_err().to_string();
    assert!(error.contains("lm_head.weight is not shown"), "{error}");
    for (rules, word) in [
        (["nobody=8bit"], "matches no tensor"),
        (["*layernorm*=8bit"], "none of the tensors"),
        (["*=source"], "not one weight"),
    ] {
        let error = plan(dir.path(), &options("4bit", &rules)).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    fs::write(dir.path().join("config.json"), LLAMA).unwrap();
    let error = plan(dir.path(), &options("4bit", &["*.mlp.*=8bit", "*.layers.0.mlp.*=source"])).unwrap_err();
    assert!(error.is_usage() && error.to_string().contains("never takes effect"), "{error}");
    let view = spec("4bit");
    for (bad, word) in [
        ("x", "PATTERN=SPEC"),
        ("=4bit", "empty pattern"),
        ("x=9bit", "9bit"),
        ("x=zimage-4bit", "cannot change the format"),
        ("[=4bit", "bad pattern"),
    ] {
        let error = Rule::parse(bad, &view).unwrap_err();
        assert!(error.is_usage() && error.to_string().contains(word), "{error}");
    }
}

#[test]
fn files_have_no_holes_and_words_are_aligned() {
    let dir = tempfile::tempdir().unwrap();
    llama(dir.path());
    for text in ["4bit", "3bit-g32", "mxfp4", "nvfp4", "mlx-source", "zimage-4bit"] {
        for shard_size in [None, Some(5000)] {
            let view = view(dir.path(), &Options { shard_size, ..options(text, &[]) });
            for file in view.plan().files.iter().filter(|f| f.path.ends_with(".safetensors")) {
                let bytes = read(&view, &file.path);
                let header = crate::common::headers::header(&bytes).unwrap();
                assert_eq!(header.data_start % 4096, 0, "{}", file.path);
                for tensor in &header.tensors {
                    let size = (tensor.info.dtype.bitsize() / 8) as u64;
                    assert_eq!(tensor.range.start % size, 0, "{text}: {}", tensor.info.name);
                }
                // The crate that everybody reads with takes it, too.
                ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
            }
        }
    }
}

#[test]
fn fresh_shards_hold_the_same_tensors() {
    let dir = tempfile::tempdir().unwrap();
    llama(dir.path());
    let all = |view: &Arc<View>| -> Tensors {
        let shards = view.plan().files.iter().filter(|f| f.path.ends_with(".safetensors"));
        shards.flat_map(|f| tensors(&read(view, &f.path))).collect()
    };
    let whole = view(dir.path(), &options("4bit", &[]));
    let cut = view(dir.path(), &Options { shard_size: Some(3000), ..options("4bit", &[]) });
    assert!(cut.plan().files.iter().any(|f| f.path == "model-00001-of-00005.safetensors"), "{:?}", cut.plan().files);
    assert!(all(&whole) == all(&cut));
    let index: serde_json::Value = serde_json::from_slice(&read(&cut, "model.safetensors.index.json")).unwrap();
    for (tensor, shard) in index["weight_map"].as_object().unwrap() {
        assert!(tensors(&read(&cut, shard.as_str().unwrap())).contains_key(tensor));
    }
}

#[test]
fn a_plain_mirror_is_the_source() {
    let dir = tempfile::tempdir().unwrap();
    llama(dir.path());
    fs::write(dir.path().join("pytorch_model.bin"), "twin").unwrap();
    fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    let view = view(dir.path(), &options("source", &[]));
    let names: Vec<_> = view.plan().files.iter().map(|f| f.path.as_str()).collect();
    assert_eq!(names, ["config.json", "model.safetensors", "tokenizer.json"]);
    for name in names {
        assert_eq!(read(&view, name), fs::read(dir.path().join(name)).unwrap());
    }
    assert_eq!(view.plan().hidden, ["pytorch_model.bin"]);
    let shown = plan(dir.path(), &Options { show: vec!["*.bin".into()], ..options("4bit", &[]) }).unwrap();
    assert!(shown.files.iter().any(|f| f.path == "pytorch_model.bin"));
    assert!(plan(dir.path(), &Options { show: vec!["*.xyz".into()], ..options("4bit", &[]) }).unwrap_err().is_usage());
}

#[test]
fn a_mirror_changes_nothing_that_it_does_not_know() {
    let dir = tempfile::tempdir().unwrap();
    let json = r#"{"a.weight":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}"#;
    fs::write(dir.path().join("model.safetensors"), crate::common::headers::file(json, 4)).unwrap();
    let view = view(dir.path(), &options("source", &[]));
    assert_eq!(view.plan().files.len(), 1, "no index, no manifest: {:?}", view.plan().files);
    assert_eq!(read(&view, "model.safetensors"), fs::read(dir.path().join("model.safetensors")).unwrap());
}

#[test]
fn a_dense_view_with_rules_has_a_manifest() {
    let dir = tempfile::tempdir().unwrap();
    llama(dir.path());
    let ruled = view(dir.path(), &options("mlx-source", &["*q_proj=8bit-g32"]));
    let manifest: serde_json::Value = serde_json::from_slice(&read(&ruled, "quantization.json")).unwrap();
    assert_eq!((manifest["bits"].as_u64(), manifest["group_size"].as_u64()), (Some(8), Some(32)));
    assert_eq!(manifest["layers"].as_array().unwrap().len(), 1);
    let dense = plan(dir.path(), &options("mlx-source", &[])).unwrap();
    assert!(!dense.files.iter().any(|f| f.path == "quantization.json"), "nothing of it is quantized");
}

#[test]
fn twins_of_an_indexed_set_are_hidden_unless_shown() {
    let dir = tempfile::tempdir().unwrap();
    llama(dir.path());
    let shard = "model-00001-of-00001.safetensors";
    fs::copy(dir.path().join("model.safetensors"), dir.path().join(shard)).unwrap();
    let names = tensors(&fs::read(dir.path().join(shard)).unwrap()).into_keys();
    let map: serde_json::Map<_, _> = names.map(|n| (n, shard.into())).collect();
    let index = serde_json::json!({"metadata": {}, "weight_map": map}).to_string();
    fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
    let made = plan(dir.path(), &options("4bit", &[])).unwrap();
    assert_eq!(made.hidden, ["model.safetensors"]);
    assert!(!made.files.iter().any(|f| f.path == "model.safetensors"));
    let shown = plan(dir.path(), &Options { show: vec!["model.safetensors".into()], ..options("4bit", &[]) }).unwrap();
    let twin = shown.files.iter().find(|f| f.path == "model.safetensors").unwrap();
    assert!(twin.untouched().is_some(), "shown as it is");
}

#[test]
fn tensors_without_elements_are_shown() {
    let dir = tempfile::tempdir().unwrap();
    model(
        dir.path(),
        LLAMA,
        &[
            ("model.safetensors", "model.embed_tokens.weight", &[32, 64]),
            ("model.safetensors", "model.layers.0.mlp.up_proj.weight", &[0, 64]),
            ("model.safetensors", "model.extra.weight", &[0]),
        ],
    );
    for spec in ["4bit", "mlx-source", "source"] {
        let view = view(dir.path(), &options(spec, &[]));
        let shown = tensors(&read(&view, "model.safetensors"));
        assert_eq!(shown["model.extra.weight"].1, [0], "{spec}");
        assert_eq!(shown["model.layers.0.mlp.up_proj.weight"].1, [0, 64], "{spec}");
    }
}

#[test]
fn rules_do_not_ask_loaders_for_what_they_have_not() {
    let dir = tempfile::tempdir().unwrap();
    let file = "model.safetensors";
    let config =
        r#"{"model_type": "llama", "torch_dtype": "bfloat16", "num_hidden_layers": 1, "tie_word_embeddings": true}"#;
    model(
        dir.path(),
        config,
        &[(file, "model.embed_tokens.weight", &[32, 64]), (file, "model.stranger.weight", &[64, 64])],
    );
    let made = plan(dir.path(), &options("4bit", &["*=8bit"])).unwrap();
    let becomes: BTreeMap<_, _> = made.rows.iter().map(|r| (r.name.as_str(), r.becomes.as_str())).collect();
    assert_eq!((becomes["model.embed_tokens.weight"], becomes["model.stranger.weight"]), ("mlx-8bit-g64", "kept"));
    let error = plan(dir.path(), &options("4bit", &["*stranger*=8bit"])).unwrap_err().to_string();
    assert!(error.contains("not in mlx_lm's model"), "{error}");
}

#[test]
fn pipelines_keep_their_directories() {
    let dir = tempfile::tempdir().unwrap();
    model(
        &dir.path().join("transformer"),
        "{}",
        &[("diffusion_pytorch_model.safetensors", "layers.0.attention.to_q.weight", &[64, 64])],
    );
    model(&dir.path().join("vae"), "{}", &[("diffusion_pytorch_model.safetensors", "decoder.conv.weight", &[64, 64])]);
    fs::write(dir.path().join("model_index.json"), "{}").unwrap();
    let made = plan(dir.path(), &options("zimage-4bit", &[])).unwrap();
    let by_path: BTreeMap<_, _> = made.files.iter().map(|f| (f.path.as_str(), f)).collect();
    assert!(by_path["vae/diffusion_pytorch_model.safetensors"].untouched().is_some());
    assert!(by_path["transformer/diffusion_pytorch_model.safetensors"].untouched().is_none());
    let ruled = plan(dir.path(), &options("zimage-4bit", &["transformer.layers.0.*=8bit"])).unwrap();
    assert!(ruled.rows.iter().any(|r| r.becomes == "zimage-8bit-g32"));
    let ruled = plan(dir.path(), &options("zimage-4bit", &["transformer/layers.0.attention.to_q=8bit"])).unwrap();
    assert!(ruled.rows.iter().any(|r| r.becomes == "zimage-8bit-g32"));
}

#[test]
fn what_is_quantized_already_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for reference in ["llama_q4_g64", "llama_mxfp4"] {
        let error = plan(&golden(reference), &options("4bit", &[])).unwrap_err().to_string();
        assert!(error.contains("quantized already") && error.contains(".scales"), "{error}");
    }
    llama(dir.path());
    fs::write(dir.path().join("quantization.json"), "{}").unwrap();
    assert!(plan(dir.path(), &options("4bit", &[])).unwrap_err().to_string().contains("quantized already"));
}

#[test]
fn keys_change_with_the_source_and_the_scheme() {
    let dir = tempfile::tempdir().unwrap();
    llama(dir.path());
    let keys = |text: &str| -> Vec<[u8; 16]> {
        plan(dir.path(), &options(text, &[])).unwrap().weights.iter().map(|w| w.key).collect()
    };
    let (a, again, b) = (keys("4bit"), keys("4bit"), keys("4bit-metal"));
    assert_eq!(a, again);
    assert!(a.iter().zip(&b).all(|(a, b)| a != b));
    let mixed = plan(dir.path(), &options("8bit", &["*.mlp.*=4bit"])).unwrap();
    let shared = mixed.weights.iter().filter(|w| a.contains(&w.key)).count();
    assert_eq!(shared, 1, "two views that agree on a weight share its tiles");
    let file = fs::File::options().write(true).open(dir.path().join("model.safetensors")).unwrap();
    file.set_modified(std::time::UNIX_EPOCH).unwrap();
    assert!(keys("4bit").iter().zip(&a).all(|(x, y)| x != y));
}

#[test]
fn the_manifest_says_how_to_make_the_view_again() {
    let dir = tempfile::tempdir().unwrap();
    llama(dir.path());
    let view = view(dir.path(), &options("4bit-g32", &["lm_head=8bit"]));
    let manifest: serde_json::Value = serde_json::from_slice(&read(&view, "quantization.json")).unwrap();
    assert_eq!(manifest["options"], serde_json::json!({"spec": "mlx-4bit-g32", "rules": ["lm_head=8bit"]}));
    let head = manifest["layers"].as_array().unwrap().iter().find(|l| l["name"] == "lm_head").unwrap();
    assert_eq!((head["bits"].as_u64(), head["spec"].as_str()), (Some(8), Some("mlx-8bit-g32")));
    assert_eq!((manifest["bits"].as_u64(), manifest["mode"].as_str()), (Some(4), Some("affine")));
}

#[test]
fn planning_reads_headers_and_json_alone() {
    let dir = tempfile::tempdir().unwrap();
    llama(dir.path());
    let local = source::LocalDir::open(dir.path()).unwrap();
    let source = Faulty::new(local, Fault::Nothing);
    plan::build(&source, &options("4bit", &[])).unwrap();
    let header =
        crate::common::headers::header(&fs::read(dir.path().join("model.safetensors")).unwrap()).unwrap().data_start;
    assert_eq!(source.bytes(), header + LLAMA.len() as u64);
}
