//! Pipelines, ControlNets, all-in-one checkpoints and fused experts: what is shown where.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::Arc,
};

use quantfs::{
    plan::{Error, Options},
    view::View,
};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};

use crate::common::{
    memory::Random,
    views::{self, files, tensors},
};

/// Writes a file of random bf16 tensors.
fn write(path: &Path, tensors: &[(&str, &[usize])]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut random = Random::new(tensors.len() as u64);
    let of = |(name, shape): &(&str, &[usize])| {
        let count = shape.iter().product::<usize>();
        let data: Vec<u8> = (0..count)
            .flat_map(|_| half::bf16::from_f32(random.of(0..2000) as f32 / 1e4 - 0.1).to_le_bytes())
            .collect();
        ((*name).to_owned(), shape.to_vec(), data)
    };
    let made: Vec<_> = tensors.iter().map(of).collect();
    let views =
        made.iter().map(|(name, shape, data)| (name, TensorView::new(Dtype::BF16, shape.clone(), data).unwrap()));
    safetensors::serialize_to_file(views, None, path).unwrap();
}

fn config(path: &Path, value: &Value) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, value.to_string()).unwrap();
}

fn view(path: &Path, spec: &str, split: bool) -> Result<Arc<View>, Error> {
    views::view(views::open(path).into(), &Options { split, ..views::options(spec, &[])? })
}

fn names(file: &[u8]) -> BTreeSet<String> {
    tensors(file).into_keys().collect()
}

fn tensor(file: &[u8], name: &str) -> Vec<u8> {
    tensors(file).remove(name).unwrap().2
}

const DENOISER: &[(&str, &[usize])] = &[
    ("blocks.0.attn.to_q.weight", &[128, 128]),
    ("blocks.0.norm1.linear.weight", &[256, 128]),
    ("pos_embed.proj.weight", &[128, 4, 2, 2]),
    ("context_embedder.weight", &[128, 128]),
];

fn pipeline(dir: &Path) {
    config(
        &dir.join("model_index.json"),
        &json!({"_class_name": "SomePipeline", "vae": ["diffusers", "AutoencoderKL"]}),
    );
    config(&dir.join("transformer/config.json"), &json!({"_class_name": "SomeTransformer2DModel"}));
    write(&dir.join("transformer/diffusion_pytorch_model.safetensors"), DENOISER);
    config(&dir.join("vae/config.json"), &json!({"_class_name": "AutoencoderKL"}));
    write(&dir.join("vae/diffusion_pytorch_model.safetensors"), &[("decoder.mid.to_q.weight", &[128, 128])]);
    config(&dir.join("text_encoder/config.json"), &json!({"architectures": ["CLIPTextModelWithProjection"]}));
    let encoder: &[(&str, &[usize])] = &[
        ("text_model.embeddings.token_embedding.weight", &[64, 128]),
        ("text_model.encoder.layers.0.mlp.fc1.weight", &[256, 128]),
    ];
    write(&dir.join("text_encoder/model.safetensors"), encoder);
}

#[test]
fn a_pipelines_vae_is_left_alone_under_every_format() {
    let dir = tempfile::tempdir().unwrap();
    pipeline(dir.path());
    for spec in ["4bit", "fp8", "bnb-nf4", "sym-int8", "onnx-4bit-g32", "gptq-4bit-g128", "zimage-8bit"] {
        let view = view(dir.path(), spec, false).unwrap();
        let untouched = |path: &str| {
            let file = view.plan().files.iter().find(|file| file.path == path).unwrap();
            file.untouched().is_some()
        };
        for path in ["vae/diffusion_pytorch_model.safetensors", "vae/config.json", "model_index.json"] {
            assert!(untouched(path), "{spec}: {path}");
        }
        let becomes: BTreeMap<&str, &str> =
            view.plan().rows.iter().map(|row| (row.name.as_str(), row.becomes.as_str())).collect();
        for name in ["blocks.0.attn.to_q.weight", "text_model.encoder.layers.0.mlp.fc1.weight"] {
            assert_eq!(becomes[name], view.plan().spec, "{spec}");
        }
        assert_eq!(becomes["decoder.mid.to_q.weight"], "kept", "{spec}");
    }
}

#[test]
fn a_controlnet_has_its_manifest_beside_its_weights() {
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("control.safetensors"), &[("control_layers.0.attention.to_q.weight", &[64, 64])]);
    let shown = files(&view(dir.path(), "zimage-8bit-g32", false).unwrap());
    let manifest: Value = serde_json::from_slice(&shown["controlnet_quantization.json"]).unwrap();
    let layer = &manifest["layers"][0];
    assert_eq!(layer["name"], "control_layers.0.attention.to_q");
    assert_eq!(layer["quant_file"], "control.safetensors");
    let other = tempfile::tempdir().unwrap();
    pipeline(other.path());
    assert!(
        !files(&view(other.path(), "zimage-8bit-g32", false).unwrap()).contains_key("controlnet_quantization.json")
    );
    assert!(!files(&view(dir.path(), "8bit", false).unwrap()).contains_key("controlnet_quantization.json"));
}

/// An all-in-one checkpoint, with a tensor of nobody's.
fn checkpoint(path: &Path, prefixes: [&str; 3]) {
    let [denoiser, encoder, vae] = prefixes;
    let mut all: Vec<(String, Vec<usize>)> =
        DENOISER.iter().map(|(name, shape)| (format!("{denoiser}{name}"), shape.to_vec())).collect();
    all.push((format!("{encoder}model.embed_tokens.weight"), vec![64, 128]));
    all.push((format!("{encoder}model.layers.0.mlp.up_proj.weight"), vec![256, 128]));
    all.push((format!("{vae}decoder.conv_in.weight"), vec![16, 4, 3, 3]));
    all.push((format!("{vae}decoder.mid.attn_1.q.weight"), vec![64, 64]));
    all.push(("alphas_cumprod".to_owned(), vec![8]));
    all.push(("text_encoders.clip_l.logit_scale".to_owned(), vec![1]));
    let all: Vec<(&str, &[usize])> = all.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())).collect();
    write(path, &all);
}

#[test]
fn an_all_in_one_checkpoint_is_shown_whole_or_as_components() {
    for prefixes in [
        ["model.diffusion_model.", "text_encoders.qwen3_4b.transformer.", "vae."],
        ["diffusion_model.", "cond_stage_model.transformer.", "first_stage_model."],
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("all.safetensors");
        checkpoint(&path, prefixes);
        let whole = view(&path, "4bit", false).unwrap();
        assert!(whole.plan().warnings.iter().any(|w| w.contains("--split")), "{:?}", whole.plan().warnings);
        let kept = format!("{}decoder.mid.attn_1.q.weight", prefixes[2]);
        assert_eq!(
            whole.plan().rows.iter().find(|row| row.name == kept).unwrap().becomes,
            "kept",
            "a VAE is left alone"
        );
        let split = view(&path, "4bit", true).unwrap();
        let (one, shown) = (files(&whole), files(&split));
        let paths: Vec<&str> = shown.keys().map(String::as_str).filter(|p| p.ends_with(".safetensors")).collect();
        let expected = [
            "text_encoder/model.safetensors",
            "transformer/diffusion_pytorch_model.safetensors",
            "vae/diffusion_pytorch_model.safetensors",
        ];
        assert_eq!(paths, expected);
        let stem = "blocks.0.attn.to_q";
        let parts = names(&shown[expected[1]]);
        assert!(parts.contains(&format!("{stem}.scales")) && parts.contains("pos_embed.proj.weight"), "{parts:?}");
        for part in [".weight", ".scales", ".biases"] {
            let (a, b) = (format!("{stem}{part}"), format!("{}{stem}{part}", prefixes[0]));
            assert!(tensor(&shown[expected[1]], &a) == tensor(&one["all.safetensors"], &b), "{a}");
        }
        assert!(names(&shown[expected[0]]).contains("model.layers.0.mlp.up_proj.scales"));
        assert_eq!(names(&shown[expected[2]]).len(), 2);
        let report = split.plan().warnings.join("\n");
        for said in ["alphas_cumprod", "logit_scale", "no decoder.conv_out.weight", "model_index.json"] {
            assert!(report.contains(said), "{report}");
        }
    }
}

#[test]
fn experts_that_are_there_twice_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    config(&dir.path().join("config.json"), &json!({"model_type": "x", "hidden_size": 128}));
    let twice: &[(&str, &[usize])] =
        &[("a.experts.down_proj", &[2, 128, 128]), ("a.experts.1.down_proj.weight", &[128, 128])];
    write(&dir.path().join("model.safetensors"), twice);
    let refused = view(dir.path(), "fp8", false).unwrap_err().to_string();
    assert!(refused.contains("same name, a.experts.1.down_proj.weight") && !refused.contains("--rename"), "{refused}");
}

#[test]
fn what_is_no_checkpoint_is_not_split() {
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("a.safetensors"), &[("model.diffusion_model.x.weight", &[64, 64])]);
    let refused = view(dir.path(), "4bit", true).unwrap_err().to_string();
    assert!(refused.contains("no all-in-one checkpoint"), "{refused}");
}

/// Experts in one tensor, either way round, become the linear layers that loaders know.
#[test]
fn fused_experts_are_quantized_one_by_one() {
    let dir = tempfile::tempdir().unwrap();
    let model = |name: &str, tensors: &[(&str, &[usize])]| {
        let dir = dir.path().join(name);
        config(
            &dir.join("config.json"),
            &json!({"model_type": name, "hidden_size": 128, "architectures": ["XForCausalLM"]}),
        );
        write(&dir.join("model.safetensors"), tensors);
        dir
    };
    let up = "model.layers.0.mlp.experts.gate_up_proj";
    let fused = model("upright", &[(up, &[2, 512, 128])]);
    let turned = model("turned", &[(up, &[2, 128, 512])]);
    for (path, from_the_left) in [(&fused, false), (&turned, true)] {
        for spec in ["fp8", "gptq-4bit-g128"] {
            let shown = files(&view(path, spec, false).unwrap());
            let source = tensor(&fs::read(path.join("model.safetensors")).unwrap(), up);
            // Expert 1's up: rows 256..512 of its outputs, as a model of its own.
            let rows: Vec<u8> = (256..512)
                .flat_map(|row| {
                    (0..128).flat_map(move |col| {
                        let at = if from_the_left { (128 + col) * 512 + row } else { (512 + row) * 128 + col };
                        [at * 2, at * 2 + 1]
                    })
                })
                .map(|at| source[at])
                .collect();
            let alone = dir.path().join("alone");
            fs::create_dir_all(&alone).unwrap();
            let name = "model.layers.0.mlp.experts.1.up_proj";
            let weight = TensorView::new(Dtype::BF16, vec![256, 128], &rows).unwrap();
            let all = [(format!("{name}.weight"), weight)];
            safetensors::serialize_to_file(all, None, &alone.join("model.safetensors")).unwrap();
            let expected = files(&view(&alone, spec, false).unwrap());
            for name in names(&expected["model.safetensors"]) {
                let (ours, theirs) = (&shown["model.safetensors"], &expected["model.safetensors"]);
                assert!(tensor(ours, &name) == tensor(theirs, &name), "{spec}: {name}");
            }
        }
    }
}
