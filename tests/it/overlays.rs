//! Overrides, adapters and renames: a view of a merged model, without the merged model.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use quantfs::{
    plan::{Adapter, Error, Override, Rename},
    source::Joined,
    view::View,
};
use safetensors::{Dtype, tensor::TensorView};

use crate::common::{
    memory::Random,
    views::{self, Tensors, files, open, tensors},
};

const MODEL: &str = "llama_src";
const UP: &str = "model.layers.1.mlp.up_proj";

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/mlx_lm").join(name)
}

/// What is asked for beside a spec.
#[derive(Default)]
struct Beside<'a> {
    overrides: &'a [&'a Path],
    adapters: &'a [(&'a Path, f32)],
    renames: &'a [&'a str],
}

fn view(model: &Path, spec: &str, beside: &Beside<'_>) -> Result<Arc<View>, Error> {
    let paths = beside.overrides.iter().copied().chain(beside.adapters.iter().map(|(path, _)| *path));
    let (joined, mut files) = Joined::new(open(model), paths.map(open).collect()).unwrap();
    let mut options = views::options(spec, &[])?;
    for (path, files) in beside.overrides.iter().zip(files.drain(..beside.overrides.len())) {
        options.overrides.push(Override { text: path.display().to_string(), files });
    }
    for ((path, scale), files) in beside.adapters.iter().zip(files) {
        options.adapters.push(Adapter { text: path.display().to_string(), files, scale: *scale });
    }
    options.renames = beside.renames.iter().map(|text| Rename::parse(text)).collect::<Result<_, _>>()?;
    views::view(Arc::new(joined), &options)
}

fn write(path: &Path, tensors: &Tensors) {
    let view = |(name, (dtype, shape, bytes)): (&String, &(Dtype, Vec<usize>, Vec<u8>))| {
        (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap().data().to_vec())
    };
    let kept: Vec<(String, Vec<u8>)> = tensors.iter().map(view).collect();
    let views = kept.iter().map(|(name, bytes)| {
        let (dtype, shape, _) = &tensors[name];
        (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

fn source_tensors() -> Tensors {
    tensors(&fs::read(golden(MODEL).join("model.safetensors")).unwrap())
}

/// A copy of the model with other tensors.
fn model(change: impl FnOnce(&mut Tensors)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(golden(MODEL).join("config.json"), dir.path().join("config.json")).unwrap();
    let mut all = source_tensors();
    change(&mut all);
    write(&dir.path().join("model.safetensors"), &all);
    dir
}

fn bf16(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
}

fn matrix(random: &mut Random, rows: usize, cols: usize) -> Vec<f32> {
    (0..rows * cols).map(|_| random.of(0..2001) as f32 / 10_000.0 - 0.1).collect()
}

fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Adds `scale * up down` to a tensor of the model, step by step in f32, rounded once.
fn merge(all: &mut Tensors, name: &str, sums: &[(&[f32], &[f32], f32)]) {
    let (_, shape, bytes) = all.get_mut(name).unwrap();
    let (rows, cols) = (shape[0], shape[1]);
    let mut values = bf16(bytes);
    for (up, down, scale) in sums {
        let rank = up.len() / rows;
        for (n, k) in (0..rows).flat_map(|n| (0..cols).map(move |k| (n, k))) {
            let mut product = 0f32;
            for r in 0..rank {
                product += up[n * rank + r] * down[r * cols + k];
            }
            values[n * cols + k] += scale * product;
        }
    }
    *bytes = values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect();
}

/// A PEFT adapter of one module: directory, up and down.
fn peft(random: &mut Random, module: &str, rank: usize, config: &str) -> (tempfile::TempDir, Vec<f32>, Vec<f32>) {
    let shape = &source_tensors()[&format!("{module}.weight")].1;
    let (up, down) = (matrix(random, shape[0], rank), matrix(random, rank, shape[1]));
    let name = |factor: &str| format!("base_model.model.{module}.lora_{factor}.weight");
    let made = Tensors::from([
        (name("A"), (Dtype::F32, vec![rank, shape[1]], f32_bytes(&down))),
        (name("B"), (Dtype::F32, vec![shape[0], rank], f32_bytes(&up))),
    ]);
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("adapter_model.safetensors"), &made);
    fs::write(dir.path().join("adapter_config.json"), config).unwrap();
    (dir, up, down)
}

#[test]
fn adapters_are_merged_before_anything_is_quantized() {
    let mut random = Random::new(1);
    let config =
        r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "alpha_pattern": {"layers\\.[0-9]\\.mlp\\.d.*": 2}}"#;
    let (first, up, down) = peft(&mut random, UP, 4, config);
    let (second, more_up, more_down) = peft(&mut random, UP, 3, config);
    let (third, third_up, third_down) = peft(&mut random, "model.layers.0.mlp.down_proj", 4, config);
    // What a trainer leaves beside its last word.
    let (earlier, ..) = peft(&mut random, UP, 4, config);
    fs::rename(earlier.path(), first.path().join("checkpoint-1")).unwrap();
    let merged = model(|all| {
        merge(all, &format!("{UP}.weight"), &[(&up, &down, 0.5 * 2.0), (&more_up, &more_down, 8.0 / 3.0)]);
        merge(all, "model.layers.0.mlp.down_proj.weight", &[(&third_up, &third_down, 0.5)]);
    });
    let adapters = [(first.path(), 0.5), (second.path(), 1.0), (third.path(), 1.0)];
    let beside = Beside { adapters: &adapters, ..Beside::default() };
    let untouched = tensors(&files(&view(&golden(MODEL), "4bit", &Beside::default()).unwrap())["model.safetensors"]);
    for spec in ["4bit", "source", "dense-8bit", "sym-int8"] {
        let ours = tensors(&files(&view(&golden(MODEL), spec, &beside).unwrap())["model.safetensors"]);
        let theirs = tensors(&files(&view(merged.path(), spec, &Beside::default()).unwrap())["model.safetensors"]);
        assert!(ours == theirs, "{spec}");
        assert!(ours != untouched);
    }
}

/// A directory with `lora.safetensors`, of tensors of zeros.
fn dir_of(all: &[(&str, &[usize])]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let zeros = |(name, shape): &(&str, &[usize])| {
        ((*name).to_owned(), (Dtype::F32, shape.to_vec(), vec![0; 4 * shape.iter().product::<usize>()]))
    };
    write(&dir.path().join("lora.safetensors"), &all.iter().map(zeros).collect());
    dir
}

#[test]
fn kohya_and_diffusers_name_modules_otherwise() {
    let mut random = Random::new(2);
    let shape = source_tensors()[&format!("{UP}.weight")].1.clone();
    let (up, down) = (matrix(&mut random, shape[0], 2), matrix(&mut random, 2, shape[1]));
    let merged = |scale: f32| model(|all| merge(all, &format!("{UP}.weight"), &[(&up, &down, scale)]));
    let of = |down_name: &str, up_name: &str, alpha: Option<(&str, f32)>| {
        let mut made = Tensors::from([
            (down_name.to_owned(), (Dtype::F32, vec![2, shape[1]], f32_bytes(&down))),
            (up_name.to_owned(), (Dtype::F32, vec![shape[0], 2], f32_bytes(&up))),
        ]);
        made.extend(alpha.map(|(name, alpha)| (name.to_owned(), (Dtype::F32, vec![], f32_bytes(&[alpha])))));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lora.safetensors");
        write(&path, &made);
        let beside = Beside { adapters: &[(&path, 1.0)], ..Beside::default() };
        tensors(&files(&view(&golden(MODEL), "8bit", &beside).unwrap())["model.safetensors"])
    };
    let expected =
        |scale| tensors(&files(&view(merged(scale).path(), "8bit", &Beside::default()).unwrap())["model.safetensors"]);
    let flat = "lora_unet_model_layers_1_mlp_up_proj";
    let kohya = |part: &str| format!("{flat}.lora_{part}.weight");
    let alpha = format!("{flat}.alpha");
    assert!(of(&kohya("down"), &kohya("up"), Some((&alpha, 1.0))) == expected(0.5));
    let diffusers = |part: &str| format!("{UP}.lora_{part}.weight");
    assert!(of(&diffusers("A"), &diffusers("B"), None) == expected(1.0));
    let silent = dir_of(&[(&diffusers("A"), &[2, shape[1]]), (&diffusers("B"), &[shape[0], 2])]);
    let path = silent.path().join("lora.safetensors");
    let unsaid = view(&golden(MODEL), "8bit", &Beside { adapters: &[(&path, 1.0)], ..Beside::default() }).unwrap();
    let warnings = unsaid.plan().warnings.join("\n");
    assert!(warnings.contains("nobody says its alpha") && warnings.contains("lora.safetensors"), "{warnings}");
    // diffusers says alpha in the header, after the component's name.
    let parts = [("A", vec![2, shape[1]], f32_bytes(&down)), ("B", vec![shape[0], 2], f32_bytes(&up))];
    let named = parts.iter().map(|(part, shape, bytes)| {
        (format!("transformer.{UP}.lora_{part}.weight"), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
    });
    let said = r#"{"transformer.lora_alpha": 1, "transformer.r": 2}"#.to_owned();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pytorch_lora_weights.safetensors");
    safetensors::serialize_to_file(named, Some([("lora_adapter_metadata".to_owned(), said)].into()), &path).unwrap();
    let beside = Beside { adapters: &[(&path, 1.0)], ..Beside::default() };
    let ours = tensors(&files(&view(&golden(MODEL), "8bit", &beside).unwrap())["model.safetensors"]);
    assert!(ours == expected(0.5));
}

#[test]
fn overrides_take_the_place_of_tensors() {
    let mut random = Random::new(3);
    let norm = "model.norm.weight";
    let all = source_tensors();
    let values = |random: &mut Random, count: usize| f32_bytes(&matrix(random, 1, count));
    let [up, norms] = [&format!("{UP}.weight"), norm].map(|name| all[name].1.clone());
    let tuned = Tensors::from([
        (format!("{UP}.weight"), (Dtype::F32, up.clone(), values(&mut random, up.iter().product()))),
        (norm.to_owned(), (Dtype::F32, norms.clone(), values(&mut random, norms[0]))),
    ]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tuned.safetensors");
    write(&path, &tuned);
    let merged = model(|all| all.extend(tuned));
    let beside = Beside { overrides: &[&path], ..Beside::default() };
    for spec in ["4bit", "source", "sym-int8-row"] {
        let ours = tensors(&files(&view(&golden(MODEL), spec, &beside).unwrap())["model.safetensors"]);
        let theirs = tensors(&files(&view(merged.path(), spec, &Beside::default()).unwrap())["model.safetensors"]);
        assert!(ours == theirs, "{spec}");
    }
    let half = dir.path().join("half.safetensors");
    let bytes = vec![0; all[norm].2.len()];
    write(&half, &Tensors::from([(norm.to_owned(), (Dtype::F16, norms, bytes))]));
    for other in [&path, &half] {
        let beside = Beside { overrides: &[other], ..Beside::default() };
        let refused = view(&golden(MODEL), "dense-4bit", &beside).unwrap_err().to_string();
        assert!(refused.contains("keeps the snapshot's dtypes"), "{refused}");
    }
}

/// Queries, keys and values share a scale, whatever they are called.
#[test]
fn renames_part_no_siblings() {
    let plain = view(&golden(MODEL), "ct-nvfp4", &Beside::default()).unwrap();
    let beside = Beside { renames: &["*.q_proj.weight=*.query.weight"], ..Beside::default() };
    let renamed = view(&golden(MODEL), "ct-nvfp4", &beside).unwrap();
    let [plain, renamed] = [plain, renamed].map(|view| tensors(&files(&view)["model.safetensors"]));
    let mut met = 0;
    for (name, tensor) in &plain {
        met += usize::from(name.contains(".q_proj."));
        assert!(renamed[&name.replace(".q_proj.", ".query.")] == *tensor, "{name}");
    }
    assert!(met > 3);
}

#[test]
fn renames_reach_tensors_index_and_config() {
    let renames = ["model.layers.*.mlp.*=blocks.*.ff.*", "lm_head.*=head.*"];
    let beside = Beside { renames: &renames, ..Beside::default() };
    let plain = files(&view(&golden(MODEL), "4bit", &Beside::default()).unwrap());
    let renamed = files(&view(&golden(MODEL), "4bit", &beside).unwrap());
    let expected: Tensors = tensors(&plain["model.safetensors"])
        .into_iter()
        .map(|(name, tensor)| {
            let name = match name.strip_prefix("model.layers.").and_then(|rest| rest.split_once(".mlp.")) {
                Some((layer, rest)) => format!("blocks.{layer}.ff.{rest}"),
                None => name.replace("lm_head.", "head."),
            };
            (name, tensor)
        })
        .collect();
    assert!(tensors(&renamed["model.safetensors"]) == expected);
    let index = String::from_utf8(renamed["model.safetensors.index.json"].clone()).unwrap();
    assert!(index.contains("blocks.0.ff.up_proj.scales") && !index.contains(".mlp."));
    let manifest = String::from_utf8(renamed["quantization.json"].clone()).unwrap();
    assert!(manifest.contains("\"head\"") && !manifest.contains("lm_head\""), "{manifest}");
}

#[test]
fn what_does_nothing_or_does_not_fit_is_refused() {
    let refused = |beside: &Beside<'_>, why: &str| {
        let error = view(&golden(MODEL), "4bit", beside).unwrap_err().to_string();
        assert!(error.contains(why), "{error}: not {why}");
    };
    let adapter = |config: &str, why: &str| {
        let (dir, ..) = peft(&mut Random::new(5), UP, 4, config);
        refused(&Beside { adapters: &[(dir.path(), 1.0)], ..Beside::default() }, why);
    };
    adapter(r#"{"peft_type": "LOHA"}"#, "LORA alone");
    adapter(r#"{"use_dora": true}"#, "DoRA");
    adapter(r#"{"fan_in_fan_out": true}"#, "fan_in_fan_out");
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, all: &[(&str, &[usize])]| {
        let path = dir.path().join(name);
        let made = all.iter().map(|(name, shape)| {
            let count: usize = shape.iter().product();
            ((*name).to_owned(), (Dtype::F32, shape.to_vec(), f32_bytes(&matrix(&mut Random::new(6), 1, count))))
        });
        write(&path, &made.collect());
        path
    };
    let stranger = file("a.safetensors", &[("x.lora_A.weight", &[2, 64]), ("x.lora_B.weight", &[64, 2])]);
    refused(&Beside { adapters: &[(&stranger, 1.0)], ..Beside::default() }, "for another model");
    let half = format!("{UP}.lora_A.weight");
    let half = file("b.safetensors", &[(&half, &[2, 64])]);
    refused(&Beside { adapters: &[(&half, 1.0)], ..Beside::default() }, "one of its two factors is missing");
    let names = [format!("{UP}.lora_A.weight"), format!("{UP}.lora_B.weight")];
    let whole = file("whole.safetensors", &[("model.norm.weight", &[64])]);
    refused(&Beside { adapters: &[(&whole, 1.0)], ..Beside::default() }, "--override takes whole tensors");
    let wrong = file("c.safetensors", &[(&names[0], &[2, 63]), (&names[1], &[128, 2])]);
    refused(&Beside { adapters: &[(&wrong, 1.0)], ..Beside::default() }, "do not make a product of shape");
    let hada = format!("{UP}.hada_w1_a");
    let hada = file("d.safetensors", &[(&hada, &[2, 2])]);
    refused(&Beside { adapters: &[(&hada, 1.0)], ..Beside::default() }, "LoHa");
    let up = format!("{UP}.weight");
    let shape = file("e.safetensors", &[(&up, &[2, 2])]);
    refused(&Beside { overrides: &[&shape], ..Beside::default() }, "has shape [2, 2]");
    let none = file("f.safetensors", &[("nobody.weight", &[2, 2])]);
    refused(&Beside { overrides: &[&none], ..Beside::default() }, "nobody.weight");
    refused(&Beside { renames: &["ghost*=x*"], ..Beside::default() }, "matches no tensor");
    refused(&Beside { renames: &["a*=b*c*"], ..Beside::default() }, "more stars");
    refused(&Beside { renames: &["*.mlp.*_proj.weight=*.mlp.x.weight"], ..Beside::default() }, "same name");
}
