//! Importance matrices: the files that hold them, and the views whose errors they weigh.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use quantfs::{
    plan::{self, Error, Importance, Options},
    quant::{self, FORMATS, Weight},
    tensor::{Dtype, Float},
    view::View,
};

use crate::{
    common::{
        views::{self, Tensors},
        written,
    },
    formats::encode,
};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// Written by the `gguf` package; the expected means are numpy's.
#[test]
fn a_matrix_of_llama_cpp_is_read() {
    let matrix = Importance::open(&golden("methods/imatrix_tiny.gguf")).unwrap();
    let queries = matrix.of("model.layers.0.self_attn.q_proj.weight").unwrap();
    assert_eq!((queries.len(), &queries[..3]), (64, &[0.786_135_7, 0.789_004_7, 0.503_247_6][..]));
    assert_eq!(matrix.of("language_model.model.layers.0.self_attn.q_proj"), Some(queries));
    let expert = |n: usize| matrix.of(&format!("model.layers.0.mlp.experts.{n}.gate_proj.weight"));
    assert_eq!(expert(0).unwrap()[..2], [0.209_159_17, 1.351_996_7]);
    assert_eq!(expert(1).unwrap()[..2], [2.723_880_8, 0.022_315_195]);
    assert_eq!(expert(2), Some(&[1.0; 64][..]), "an expert that was never asked tells nothing");
    assert_eq!(expert(3).unwrap()[63], 2.282_760_6);
    assert_eq!(expert(4), None);
    let stack = matrix.of("model.layers.0.mlp.experts.gate_up_proj").unwrap();
    assert_eq!((stack.len(), &stack[64..66]), (256, &expert(1).unwrap()[..2]));
    for none in ["model.layers.1.self_attn.q_proj", "model.layers.0.self_attn.k_proj", "blk.0.attn_q", "lm_head"] {
        assert_eq!(matrix.of(none), None, "{none}");
    }
}

/// As llama.cpp wrote it before: means times calls.
fn dat(entries: &[(&str, i32, &[f32])]) -> Vec<u8> {
    let number = |n: usize| i32::try_from(n).unwrap().to_le_bytes();
    let mut out = number(entries.len()).to_vec();
    for (name, calls, values) in entries {
        out.extend([&number(name.len())[..], name.as_bytes(), &calls.to_le_bytes(), &number(values.len())].concat());
        out.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    }
    out.extend([&number(7)[..], &number(5), b"calib"].concat());
    out
}

#[test]
fn a_matrix_of_the_older_form_is_read() {
    let file = dat(&[("blk.2.ffn_down.weight", 4, &[8.0, 2.0]), ("output.weight", 0, &[3.0])]);
    let matrix = Importance::parse("old", &file).unwrap();
    assert_eq!(matrix.of("model.layers.2.mlp.down_proj.weight"), Some(&[2.0, 0.5][..]));
    assert_eq!(matrix.of("lm_head"), Some(&[3.0][..]));
    for cut in 0..file.len() - 13 {
        assert!(Importance::parse("cut", &file[..cut]).is_err(), "{cut}");
    }
}

#[test]
fn what_is_no_matrix_is_refused() {
    let fails = |file: &[u8], why: &str| {
        let error = Importance::parse("it", file).unwrap_err().to_string();
        assert!(error.starts_with("--importance it: ") && error.contains(why), "{error}");
    };
    fails(b"", "no importance matrix");
    fails(b"hello world, this is text", "no importance matrix");
    fails(&[0xff; 40], "negative");
    fails(&dat(&[("output.weight", 1, &[f32::NAN])]), "not finite");
    fails(&dat(&[("output.weight", 1, &[-1.0])]), "negative");
    fails(&dat(&[]), "says nothing");
    fails(&(1i32 << 21).to_le_bytes(), "number of entries, or over");
    fails(&(-1i32).to_le_bytes(), "number of entries, or over");
    let file = std::fs::read(golden("methods/imatrix_tiny.gguf")).unwrap();
    let at = |word: &[u8]| file.windows(word.len()).position(|w| w == word).unwrap();
    let changed = |word: &[u8], to: &[u8]| {
        let mut other = file.clone();
        other[at(word)..][..to.len()].copy_from_slice(to);
        other
    };
    fails(&changed(b"imatrix", b"adapter"), "of type `adapter`");
    fails(&changed(b"counts", b"mounts"), "counts is missing");
    // Tensors are padded: the last sixteen bytes are nobody's.
    fails(&file[..file.len() - 20], "truncated");
    // Whatever byte is another: an answer or an error.
    for at in 0..file.len() {
        for byte in [0, 0x80, 0xff] {
            let mut other = file.clone();
            other[at] = byte;
            if let Err(error) = Importance::parse("it", &other) {
                assert!(error.to_string().len() > 20, "{error}");
            }
        }
    }
    let missing = Importance::open(Path::new("/nowhere/of.gguf")).unwrap_err().to_string();
    assert!(missing.contains("/nowhere/of.gguf"), "{missing}");
}

/// Many tensors that are all the same bytes would take many times the file.
#[test]
fn tensors_that_lie_over_each_other_are_refused() {
    let string = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let made = |names: &[&str], offset: u64| {
        let mut out =
            [&b"GGUF"[..], &3u32.to_le_bytes(), &(names.len() as u64).to_le_bytes(), &1u64.to_le_bytes()].concat();
        out.extend([string("general.type"), 8u32.to_le_bytes().to_vec(), string("imatrix")].concat());
        for (name, at) in names.iter().zip(0u64..) {
            let (count, start) = if name.ends_with("counts") { (1u64, 0) } else { (256, 32 + at * offset) };
            out.extend(string(name));
            out.extend(
                [&1u32.to_le_bytes()[..], &count.to_le_bytes(), &0u32.to_le_bytes(), &start.to_le_bytes()].concat(),
            );
        }
        out.resize(out.len().next_multiple_of(32) + 32 + 3 * 1024, 0x3f);
        Importance::parse("it", &out)
    };
    let names = ["output.weight.in_sum2", "output.weight.counts"];
    assert_eq!(made(&names, 0).unwrap().of("lm_head"), Some(&[1.0; 256][..]));
    let weights: Vec<String> = (0..4).map(|layer| format!("blk.{layer}.attn_q.weight")).collect();
    let all: Vec<String> = weights.iter().flat_map(|w| [format!("{w}.in_sum2"), format!("{w}.counts")]).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let error = made(&all, 0).unwrap_err().to_string();
    assert!(error.contains("over each other"), "{error}");
    assert!(made(&all[..4], 512).is_ok());
}

/// Our own form: a tensor for each weight.
fn matrix(tensors: &[(&str, &[usize], Vec<f32>)]) -> Arc<Importance> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("importance.safetensors");
    let tensors: Vec<_> = tensors.iter().map(|(name, shape, values)| written::f32s(name, shape, values)).collect();
    written::write(&path, &tensors, 8);
    Arc::new(Importance::open(&path).unwrap())
}

/// Another value in each column, and of each seed.
fn spread(seed: u64, count: usize) -> Vec<f32> {
    written::values(seed, count).into_iter().map(|v| (4.0 * v).exp()).collect()
}

fn view(model: &str, spec: &str, rules: &[&str], importance: &Arc<Importance>) -> Result<Arc<View>, Error> {
    let options = Options { importance: Some(Arc::clone(importance)), ..views::options(spec, rules)? };
    views::view(views::open(&golden(&format!("mlx_lm/{model}"))).into(), &options)
}

fn tensors(view: &Arc<View>) -> Tensors {
    views::tensors(&views::files(view)["model.safetensors"])
}

/// The parts of a weight as the scheme of a spec makes them, given its importance.
fn expected(weight: &Weight, data: &[u8], importance: &quant::Importance) -> Vec<Vec<u8>> {
    let mlx = FORMATS.iter().find(|f| f.name() == "mlx").unwrap();
    let scheme = mlx.bind("3bit", &["g32", "ls", "cpu"]).unwrap().unwrap().weighted(importance).unwrap();
    encode(&*scheme, weight, &scheme.parts(weight).unwrap(), data, 0..weight.elements())
}

fn source(model: &str) -> Tensors {
    views::golden(&format!("mlx_lm/{model}/model"))
}

#[test]
fn a_views_errors_are_weighed() {
    let name = "model.layers.0.mlp.down_proj";
    let (dtype, shape, data) = source("llama_src")[&format!("{name}.weight")].clone();
    let of_columns = spread(1, shape[1]);
    let own =
        matrix(&[(name, &[shape[1]], of_columns.clone()), ("model.layers.9.mlp.up_proj.weight", &[2], vec![1.0; 2])]);
    let shown = view("llama_src", "3bit-g32-ls", &[], &own).unwrap();
    let weight = Weight { stem: name.into(), float: Float::of(dtype).unwrap(), shape: shape.clone() };
    let importance = quant::Importance::new(shape[1], shape[0], &of_columns).unwrap();
    let made = tensors(&shown);
    for (part, bytes) in [".weight", ".scales", ".biases"].iter().zip(expected(&weight, &data, &importance)) {
        assert!(made[&format!("{name}{part}")].2 == bytes, "{part}");
    }
    let plain = views::view_of(&golden("mlx_lm/llama_src"), "3bit-g32-ls", &[]).unwrap();
    let differ: Vec<_> =
        tensors(&plain).into_iter().filter(|(name, held)| made[name] != *held).map(|(n, _)| n).collect();
    assert!(differ.iter().all(|n| n.starts_with(name)) && !differ.is_empty(), "no other weight: {differ:?}");
    // Dense views show the same values.
    let dense = view("llama_src", "dense-3bit-g32-ls", &[], &own).unwrap();
    let dense_plain = views::view_of(&golden("mlx_lm/llama_src"), "dense-3bit-g32-ls", &[]).unwrap();
    let (a, b) = (tensors(&dense), tensors(&dense_plain));
    assert!(a.iter().all(|(n, held)| (*held == b[n]) != n.starts_with(name)), "the same weight, dense");
    // What is told: entries without a weight, weights without an entry, and which ones are weighed.
    let plan = shown.plan();
    let told = |what: &str| plan.warnings.iter().any(|w| w.starts_with("--importance") && w.contains(what));
    assert!(told("model.layers.9.mlp.up_proj.weight") && told("are not in it"), "{:?}", plan.warnings);
    let weighed: Vec<_> = plan.rows.iter().filter(|row| row.why.contains("weighed by importance")).collect();
    assert_eq!(weighed.iter().map(|row| row.name.as_str()).collect::<Vec<_>>(), [format!("{name}.weight")]);
    let keys = |view: &Arc<View>| {
        view.plan().weights.iter().map(|w| (w.weight.stem.clone(), w.key)).collect::<BTreeMap<_, _>>()
    };
    let (with, without) = (keys(&shown), keys(&plain));
    assert!(with.iter().all(|(stem, key)| (without[stem] == *key) == (stem != name)), "other bytes, another key");
    assert_eq!(
        Options::to_json(&Options { importance: Some(own.clone()), ..views::options("4bit", &[]).unwrap() })["importance"],
        own.text()
    );
}

/// A stack of experts that lie one by one in the source: each has its own row.
#[test]
fn experts_have_rows_of_their_own() {
    let tensors_of = source("qwen3_moe_src");
    let stem = |n: usize| format!("model.layers.0.mlp.experts.{n}.down_proj");
    let experts = (0..).take_while(|n| tensors_of.contains_key(&format!("{}.weight", stem(*n)))).count();
    let (_, shape, _) = &tensors_of[&format!("{}.weight", stem(0))];
    let all: Vec<f32> = (0..experts).flat_map(|n| spread(n as u64 + 5, shape[1])).collect();
    let data: Vec<u8> = (0..experts).flat_map(|n| tensors_of[&format!("{}.weight", stem(n))].2.clone()).collect();
    let importance = quant::Importance::new(shape[1], shape[0], &all).unwrap();
    let weight = Weight { stem: String::new(), float: Float::Bf16, shape: vec![experts, shape[0], shape[1]] };
    let expected = expected(&weight, &data, &importance);
    let names: Vec<String> = (0..experts).map(stem).collect();
    let rows = names.iter().zip(all.chunks(shape[1])).map(|(name, row)| (name.as_str(), &shape[1..], row.to_vec()));
    let made = tensors(&view("qwen3_moe_src", "3bit-g32-ls", &[], &matrix(&rows.collect::<Vec<_>>())).unwrap());
    for (part, bytes) in ["weight", "scales", "biases"].iter().zip(&expected) {
        assert!(made[&format!("model.layers.0.mlp.switch_mlp.down_proj.{part}")].2 == *bytes, "{part}");
    }
    // The same from llama.cpp's names, where they are one entry, which the older form does not say the experts of.
    let twice = all.iter().map(|v| 2.0 * v).collect::<Vec<_>>();
    let old = Arc::new(Importance::parse("old", &dat(&[("blk.0.ffn_down_exps.weight", 2, &twice)])).unwrap());
    let made = tensors(&view("qwen3_moe_src", "3bit-g32-ls", &[], &old).unwrap());
    for (part, bytes) in ["weight", "scales", "biases"].iter().zip(&expected) {
        assert!(made[&format!("model.layers.0.mlp.switch_mlp.down_proj.{part}")].2 == *bytes, "{part}, older form");
    }
    assert_eq!(Dtype::BF16, tensors_of[&format!("{}.weight", stem(0))].0);
}

#[test]
fn what_would_be_ignored_is_refused() {
    let name = "model.layers.0.mlp.down_proj";
    let (_, shape, _) = source("llama_src")[&format!("{name}.weight")].clone();
    let fits = matrix(&[(name, &[shape[1]], spread(1, shape[1]))]);
    let fails = |spec: &str, rules: &[&str], own: &Arc<Importance>, why: &str| {
        let error = view("llama_src", spec, rules, own).err().map_or_else(|| "nothing".to_owned(), |e| e.to_string());
        assert!(error.contains("--importance") && error.contains(why), "{spec}: {error}");
    };
    fails("4bit", &[], &fits, "--method ls");
    fails("mxfp4", &[], &fits, "--method ls");
    fails("4bit-ls", &["*down_proj=source"], &fits, "nothing of it belongs");
    fails("4bit-ls", &[], &matrix(&[("other", &[4], vec![1.0; 4])]), "another model");
    fails("4bit-ls", &[], &matrix(&[(name, &[32], vec![1.0; 32])]), "has 32 values");
    fails("4bit-ls", &[], &matrix(&[(name, &[2, shape[1]], spread(1, 2 * shape[1]))]), "2 matrices");
    let some = view(
        "llama_src",
        "4bit-ls",
        &["*down_proj=rtn", "*up_proj=8bit"],
        &matrix(&[(name, &[shape[1]], spread(1, shape[1])), ("model.layers.0.mlp.gate_proj", &[64], spread(2, 64))]),
    );
    let told = some.unwrap().plan().warnings.join("\n");
    assert!(told.contains("rounded to nearest") && told.contains(name), "{told}");
}

/// Packings along the input are made strip by strip: what their columns matter is the same for all rows, or not weighed.
#[test]
fn rows_that_differ_are_not_weighed_where_they_are_packed_together() {
    let [first, second] = [1, 2].map(|seed| spread(seed, 64));
    let of = |rows: usize, values: &[f32]| quant::Importance::new(64, rows, values).unwrap();
    let (one, twice) = (of(64, &first), of(32, &first.repeat(2)));
    let differing = of(32, &[first, second].concat());
    let weight = Weight { stem: String::new(), float: Float::Bf16, shape: vec![64, 64] };
    let data: Vec<u8> =
        written::values(3, 64 * 64).into_iter().flat_map(|v| half::bf16::from_f32(v).to_le_bytes()).collect();
    for name in ["gptq", "awq", "mlx"] {
        let format = FORMATS.iter().find(|format| format.name() == name).unwrap();
        let word =
            |option: &&[&'static str]| ["g32", "ls"].into_iter().find(|w| option.contains(w)).unwrap_or(option[0]);
        let words: Vec<&str> = format.options("4bit").iter().map(word).collect();
        let scheme = format.bind("4bit", &words).unwrap().unwrap();
        let packed = name != "mlx";
        let made = |importance: &quant::Importance| {
            let scheme = scheme.weighted(importance)?;
            let extent = scheme.banding(&weight).extent(&weight);
            Some(encode(&*scheme, &weight, &scheme.parts(&weight).unwrap(), &data, 0..extent))
        };
        assert!(made(&one).is_some() && made(&one) == made(&twice), "{name}: rows that say the same");
        assert_eq!(made(&differing).is_none(), packed, "{name}");
        assert!(made(&differing) != made(&one), "{name}");
    }
}

/// What the weights of one view are given of a file, those of the next one share.
#[test]
fn views_of_one_file_hold_it_once() {
    let from = views::open(&golden("mlx_lm/llama_src"));
    let tensors = source("llama_src");
    let weights: Vec<_> = tensors.iter().filter(|(_, (_, shape, _))| shape.len() == 2).collect();
    let entries = weights
        .iter()
        .zip(1..)
        .map(|((name, (_, shape, _)), seed)| (name.as_str(), &shape[1..], spread(seed, shape[1])));
    let file = matrix(&entries.collect::<Vec<_>>());
    let (mut held, mut given) = (BTreeMap::new(), 0);
    for spec in ["4bit-g32-ls", "3bit-g64-ls", "ct-4bit-g32", "gptq-4bit-g32-ls", "4bit"] {
        let options = Options { importance: Some(Arc::clone(&file)), ..views::options(spec, &[]).unwrap() };
        let found = plan::importance_of_weights(&*from, &options).unwrap();
        for values in found.iter().flatten().map(quant::Importance::values) {
            held.insert(values.as_ptr(), size_of_val(values));
            given += size_of_val(values);
        }
    }
    let all: usize = weights.iter().map(|(_, (_, shape, _))| 4 * shape[1]).sum();
    assert_eq!(held.values().sum::<usize>(), all);
    assert!(given > 4 * all, "five views were given {given} bytes");
}

/// Columns that all weigh the same are columns without importance.
#[test]
fn what_weighs_all_columns_the_same_is_not_applied() {
    let (level, name) = ("model.layers.0.mlp.down_proj", "model.layers.0.mlp.up_proj");
    let shapes = source("llama_src");
    let cols = |stem: &str| shapes[&format!("{stem}.weight")].1[1];
    let ones = |stem: &'static str| (stem, vec![cols(stem)], vec![3.0; cols(stem)]);
    let (stem, shape, values) = ones(level);
    let error = view("llama_src", "4bit-ls", &[], &matrix(&[(stem, &shape, values.clone())])).unwrap_err().to_string();
    assert!(error.contains("weigh the same") && error.contains(level), "{error}");
    let both = matrix(&[(stem, &shape, values), (name, &[cols(name)], spread(1, cols(name)))]);
    let (shown, plain) = (
        view("llama_src", "4bit-ls", &[], &both).unwrap(),
        views::view_of(&golden("mlx_lm/llama_src"), "4bit-ls", &[]).unwrap(),
    );
    let told = |warning: &String| warning.contains("all weigh the same in it") && warning.contains(level);
    assert!(shown.plan().warnings.iter().any(told), "{:?}", shown.plan().warnings);
    let (shown, plain) = (tensors(&shown), tensors(&plain));
    let differ: Vec<_> = shown.iter().filter(|(n, held)| plain[*n] != **held).map(|(n, _)| n.clone()).collect();
    assert!(!differ.is_empty() && differ.iter().all(|n| n.starts_with(name)), "{differ:?}");
}
