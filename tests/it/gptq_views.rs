//! Views in GPTQ's and AWQ's formats: what configs say, what is read of the source, and exported directories read
//! back.

use std::{fs, path::Path, sync::Arc};

use quantfs::{
    bulk::{self, Silent},
    kernel::Rule,
    plan::{self, Origin, Piece, Plan, Planned},
    quant::{Scheme, Weight, format::columns::Columns},
    runtime::Weights,
    source::{FileId, Source},
    tensor::{Dtype, Float},
    view::{self, Engine, View},
};
use serde_json::{Value, json};

use crate::common::{
    memory::{Layout, Memory, Random, materialize, run},
    views,
    written::{bf16, write},
};

const LLAMA: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16"}"#;

/// A block with a projection that fits every group, one that fits none, a router, and the output layer.
fn model(dir: &Path) {
    let tensors = [
        bf16("lm_head.weight", &[64, 128]),
        bf16("model.embed_tokens.weight", &[64, 128]),
        bf16("model.layers.0.input_layernorm.weight", &[128]),
        bf16("model.layers.0.mlp.down_proj.weight", &[128, 96]),
        bf16("model.layers.0.mlp.up_proj.weight", &[96, 128]),
        bf16("model.layers.0.self_attn.q_proj.bias", &[128]),
        bf16("model.layers.0.self_attn.q_proj.weight", &[128, 128]),
    ];
    write(&dir.join("model.safetensors"), &tensors, 8);
    fs::write(dir.join("config.json"), LLAMA).unwrap();
}

fn view(dir: &Path, spec: &str, rules: &[&str]) -> Arc<View> {
    views::view_of(dir, spec, rules).unwrap()
}

fn block(view: &Arc<View>) -> Value {
    serde_json::from_slice::<Value>(&views::files(view)["config.json"]).unwrap()["quantization_config"].clone()
}

#[test]
fn configs_say_what_is_quantized_and_how() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path());
    let said = |spec, rules: &[&str]| block(&view(dir.path(), spec, rules));
    let mut plain = json!({"bits": 4, "group_size": 32, "desc_act": false, "sym": true, "lm_head": false,
        "quant_method": "gptq", "checkpoint_format": "gptq"});
    assert_eq!(said("gptq-4bit-g32", &[]), plain);
    plain["checkpoint_format"] = json!("gptq_v2");
    plain["sym"] = json!(false);
    assert_eq!(said("gptq-4bit-g32-asym-v2", &[]), plain);

    // What does not fit, and what rules ask for.
    let up = "model.layers.0.mlp.up_proj";
    let mixed = said("gptq", &["*up_proj=8bit-g64-asym", "lm_head=gptq"]);
    assert_eq!(mixed["modules_in_block_to_quantize"], json!([[up, "model.layers.0.self_attn.q_proj"]]));
    assert_eq!(mixed["lm_head"], json!(true));
    let patterns = json!({r"-:^model\.layers\.0\.mlp\.down_proj$": {},
        r"+:^model\.layers\.0\.mlp\.up_proj$": {"bits": 8, "group_size": 64, "sym": false}});
    assert_eq!(mixed["dynamic"], patterns);

    let awq = json!({"bits": 4, "group_size": 32, "quant_method": "awq", "version": "gemm", "zero_point": true,
        "modules_to_not_convert": null});
    assert_eq!(said("awq-4bit-g32", &[]), awq);
    let kept = json!(["model.layers.0.mlp.down_proj", "lm_head"]);
    assert_eq!(said("awq", &[])["modules_to_not_convert"], kept);
}

#[test]
fn what_configs_cannot_say_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path());
    let refused = |spec, rule| views::view_of(dir.path(), spec, &[rule]).unwrap_err().to_string();
    let versions = refused("gptq", "*up_proj=4bit-g128-v2");
    assert!(versions.contains("up_proj") && versions.contains("checkpoint_format"), "{versions}");
    let groups = refused("awq", "*up_proj=4bit-g32");
    assert!(groups.contains("up_proj") && groups.contains("one size"), "{groups}");
    let head = refused("awq", "lm_head=awq");
    assert!(head.contains("lm_head") && head.contains("take dense"), "{head}");
}

/// transformers takes a quantized output layer for a dense one, and every layer for one of the first lines' parameters.
#[test]
fn what_transformers_misreads_is_said() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path());
    let told = |rules: &[&str]| view(dir.path(), "gptq-4bit-g32", rules).plan().warnings.clone();
    assert!(told(&["*up_proj=source"]).is_empty());
    for (rule, name) in
        [("lm_head=4bit", "lm_head is quantized"), ("*up_proj=8bit", "up_proj.weight has other parameters")]
    {
        let warnings = told(&[rule]);
        assert!(
            warnings.len() == 1 && warnings[0].contains(name) && warnings[0].contains("transformers"),
            "{warnings:?}"
        );
    }
}

#[test]
fn exported_directories_are_read_back() {
    for spec in ["gptq-4bit-g32", "gptq-3bit-g64-asym", "gptq-8bit-asym-v2", "gptq-2bit-g32", "awq", "awq-4bit-g64"] {
        let (dir, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        model(dir.path());
        let view = view(dir.path(), spec, &[]);
        let at = out.path().join("view");
        bulk::export(&view, &at, &Silent).unwrap();
        let weights = Weights::open(&at).unwrap();
        let (source, q) = (Weights::open(dir.path()).unwrap(), "model.layers.0.self_attn.q_proj");
        let layer = weights.linear(q).unwrap();
        let (values, back) = (source.linear(q).unwrap().dequantize(), layer.dequantize());
        let square = |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>();
        let off = square(&mut values.iter().zip(&back).map(|(a, b)| a - b)) / square(&mut values.iter().copied());
        assert!(off < 0.3 && off > 0.0, "{spec}: {off}");
        // Rows by themselves, with the bias that lies beside the codes.
        let (x, mut y) = (vec![1.0; 128], vec![0.0; 128]);
        layer.forward(&x, &mut y).unwrap();
        let bias = source.tensor(&format!("{q}.bias")).unwrap().to_f32().unwrap();
        for (row, (y, bias)) in y.iter().zip(&bias).enumerate() {
            let sum: f32 = back[row * 128..][..128].iter().sum::<f32>() + bias;
            assert!((y - sum).abs() < 1e-3, "{spec} row {row}: {y}, not {sum}");
        }
        let audit = bulk::audit(&at, &Silent).unwrap();
        assert!(audit.is_sound() && audit.quantized >= 2, "{spec}: {audit:?}");
        let rows = bulk::describe(&at).unwrap();
        let row = rows.iter().find(|row| row.name == format!("{q}.qweight")).unwrap();
        assert_eq!((&row.shape[..], row.bytes_after < 128 * 128 * 2), (&[128, 128][..], true), "{spec}");
    }
}

#[test]
fn reordered_columns_are_refused() {
    let (dir, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    model(dir.path());
    let at = out.path().join("view");
    bulk::export(&view(dir.path(), "gptq-4bit-g32", &[]), &at, &Silent).unwrap();
    let file = at.join("model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let header = crate::common::headers::header(&bytes).unwrap();
    let index = header.tensors.iter().find(|t| t.info.name.ends_with("q_proj.g_idx")).unwrap();
    bytes[usize::try_from(index.range.start).unwrap()] = 3;
    fs::write(&file, bytes).unwrap();
    let why = Weights::open(&at).unwrap().linear("model.layers.0.self_attn.q_proj").unwrap_err().to_string();
    assert!(why.contains("q_proj.g_idx") && why.contains("act-order"), "{why}");
    let audit = bulk::audit(&at, &Silent).unwrap();
    assert!(audit.faults.iter().any(|fault| fault.contains("q_proj.g_idx")), "{audit:?}");
}

/// A weight in bands of `tile` columns.
fn banded(shape: [usize; 2], origin: Origin, rule: Rule, tile: usize) -> Planned {
    let scheme = Columns::new(rule, 32).unwrap();
    let weight = Weight { stem: "w".into(), float: origin.float, shape: shape.to_vec() };
    let (parts, banding) = (scheme.parts(&weight).unwrap(), scheme.banding(&weight));
    Planned { weight, origin, scheme: Arc::new(scheme), survey: None, parts, banding, tile, key: [7; 16] }
}

/// The whole view, from its beginning to its end.
fn sequential(plan: Plan, source: Arc<dyn Source>, file: usize) -> (Vec<u8>, view::Snapshot) {
    let len = usize::try_from(plan.files[file].len).unwrap();
    let options = view::Options { readahead_bytes: 0, ..view::Options::default() };
    let view = View::new(Arc::new(plan), source, Engine::new(options).unwrap());
    let mut bytes = vec![0; len];
    for (i, chunk) in bytes.chunks_mut(1 << 20).enumerate() {
        assert_eq!(view.read_at(file, (i as u64) << 20, chunk).unwrap(), chunk.len());
    }
    (bytes, view.engine().snapshot())
}

#[test]
fn strips_of_bands_make_the_same_bytes_as_the_whole() {
    let mut random = Random::new(11);
    let source = Arc::new(Memory::new(vec![random.bytes(6 << 20)]));
    let (rows, cols) = (1120, 256);
    // One run; pieces that end within rows; rows further apart than they are long; a transpose.
    let strided = Piece { file: FileId(0), offset: 6, rows, row_stride: 5000, cols, col_stride: 4 };
    let turned = Piece { file: FileId(0), offset: 6, rows, row_stride: 4, cols, col_stride: rows * 4 };
    let cut = vec![run(0, 3, 1000, 4), run(0, 9000, 201_000, 4), run(0, 12, rows * cols - 202_000, 4)];
    let gptq = Rule::Gptq { bits: 3, symmetric: false, less_one: true };
    for pieces in [vec![run(0, 3, rows * cols, 4)], cut, vec![strided], vec![turned]] {
        for (float, rule) in [(Float::F32, gptq), (Float::F32, Rule::Awq), (Float::Bf16, Rule::Awq)] {
            let origin = Origin { pieces: pieces.clone(), stored: Float::F32, float, plus_one: false, deltas: vec![] };
            let weight = banded([rows, cols], origin, rule, 96);
            let file = Layout::new("f").weight(0, &weight).file;
            let plan = Plan { files: vec![file], weights: vec![weight], ..Plan::default() };
            let want = materialize(&plan, &source);
            let (bytes, _) = sequential(plan, Arc::clone(&source) as Arc<dyn Source>, 0);
            assert!(bytes == want[0], "{rule:?} of {float:?} from {} pieces", pieces.len());
        }
    }
}

/// Gaps of more than a page are not read, and tiles are small, whatever the shape.
#[test]
fn little_more_of_the_source_is_read_than_is_encoded() {
    // Sides in elements; what is read at most for each byte that is encoded. Gaps of the last are shorter.
    for ([rows, cols], most) in [([4096, 8192], 1.0), ([4096, 12288], 1.0), ([512, 1024], 1.0), ([8192, 2560], 3.0)] {
        let dir = tempfile::tempdir().unwrap();
        let info = |name: &str, shape: &[usize]| quantfs::tensor::TensorInfo {
            name: name.into(),
            dtype: Dtype::BF16,
            shape: shape.to_vec(),
        };
        let infos = [info("model.layers.0.mlp.up_proj.weight", &[rows, cols])];
        let rendered = quantfs::container::safetensors::render(&infos, None, 8).unwrap();
        let path = dir.path().join("model.safetensors");
        fs::write(&path, &rendered.preamble).unwrap();
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(rendered.len).unwrap();
        fs::write(dir.path().join("config.json"), LLAMA).unwrap();
        let source: Arc<dyn Source> = views::open(dir.path()).into();
        let plan = plan::build(source.as_ref(), &views::options("gptq", &[]).unwrap());
        let plan = plan.unwrap();
        let weight = &plan.weights[0];
        let made = weight.parts[0].len() / weight.tiles().max(1);
        assert!(made <= 4 << 20, "[{rows}, {cols}]: tiles of {made} bytes");
        let file = plan.files.iter().position(|f| f.path == "model.safetensors").unwrap();
        let (_, counted) = sequential(plan, source, file);
        let (read, encoded) = (counted.source_bytes as f64, counted.tile_bytes as f64);
        assert_eq!(counted.tile_bytes, (rows * cols * 2) as u64, "[{rows}, {cols}]: every element once");
        assert!(read <= most * encoded, "[{rows}, {cols}]: {read} bytes were read for {encoded}");
    }
}
