//! The `mlx` dialect against mlx_lm: every family's cases in `tests/golden/dialect`, made by
//! `scripts/golden/mlx_families.py` from the reference itself.

use std::{fs, path::Path};

use quantfs::{
    container::json,
    quant::{
        Banding, Dialect, Facts, Part, Scheme, Unsupported, Weight,
        dialect::{Arranged, Arrangement, Choice, Component, Decided, Slice, mirror::MIRROR, mlx::MLX, zimage::ZIMAGE},
    },
    tensor::{Dtype, Float, Rows, TensorInfo},
};
use serde_json::{Value, json};

/// A scheme of which only the facts are asked.
#[derive(Debug)]
struct Told(Facts);

impl Scheme for Told {
    fn id(&self) -> String {
        "told".into()
    }
    fn facts(&self) -> Facts {
        self.0.clone()
    }
    fn parts(&self, _: &Weight) -> Result<Vec<Part>, Unsupported> {
        unreachable!("a dialect asks for facts only")
    }
    fn banding(&self, _: &Weight) -> Banding {
        unreachable!("a dialect asks for facts only")
    }
    fn encode(&self, _: Rows<'_>, _: &mut [&mut [u8]]) {
        unreachable!("a dialect asks for facts only")
    }
    fn decode(&self, _: &[&[u8]], _: Float, _: usize, _: &mut [f32]) {
        unreachable!("a dialect asks for facts only")
    }
}

fn facts_of(spec: &str) -> Option<Facts> {
    match spec {
        "mlx-4bit-g64" => Some(Facts { bits: 4, group_size: 64, mode: "affine" }),
        "mlx-8bit-g32" => Some(Facts { bits: 8, group_size: 32, mode: "affine" }),
        "mlx-mxfp4" => Some(Facts { bits: 4, group_size: 32, mode: "mxfp4" }),
        "source" => None,
        other => panic!("{other} is no spec of the cases"),
    }
}

fn dtype_of(name: &str) -> Dtype {
    match name {
        "BF16" => Dtype::BF16,
        "F16" => Dtype::F16,
        "F32" => Dtype::F32,
        "I32" => Dtype::I32,
        "I64" => Dtype::I64,
        "BOOL" => Dtype::BOOL,
        other => panic!("{other} is no dtype of the cases"),
    }
}

fn numbers(value: &Value) -> Vec<usize> {
    value.as_array().unwrap().iter().map(|n| usize::try_from(n.as_u64().unwrap()).unwrap()).collect()
}

fn source_tensors(case: &Value, stored: &str) -> Vec<TensorInfo> {
    let infos = case["tensors"].as_array().unwrap().iter();
    infos
        .map(|t| TensorInfo {
            name: t[0].as_str().unwrap().to_owned(),
            dtype: dtype_of(t[2].as_str().unwrap_or(stored)),
            shape: numbers(&t[1]),
        })
        .collect()
}

/// Every element of a list of slices: (tensor, element).
fn elements(slices: &[Slice]) -> Vec<(usize, usize)> {
    let rows = slices.iter().flat_map(|s| (0..s.rows).map(move |r| (s, s.start + r * s.row_stride)));
    rows.flat_map(|(s, at)| (0..s.cols).map(move |c| (s.tensor, at + c * s.col_stride))).collect()
}

fn slice_of(value: &Value) -> Slice {
    let n = numbers(value);
    Slice { tensor: n[0], start: n[1], rows: n[2], row_stride: n[3], cols: n[4], col_stride: n[5] }
}

/// Names, shapes, origins: what `sanitize` made of the same source.
fn check_arrangement(what: &str, case: &Value, sources: &[TensorInfo], got: &Arrangement) {
    assert_eq!(got.warnings, Vec::<String>::new(), "{what}");
    let expected = case["arranged"].as_array().unwrap();
    let names: Vec<&str> = expected.iter().map(|t| t[0].as_str().unwrap()).collect();
    let shown: Vec<&str> = got.tensors.iter().map(|t| t.info.name.as_str()).collect();
    assert_eq!(shown, names, "{what}: the walk");
    for (tensor, e) in got.tensors.iter().zip(expected) {
        let name = &tensor.info.name;
        assert_eq!(tensor.info.shape, numbers(&e[1]), "{what}: {name}");
        assert_eq!(tensor.plus_one, e[2].as_bool().unwrap(), "{what}: {name}: plus one");
        let slices: Vec<Slice> = e[3].as_array().unwrap().iter().map(slice_of).collect();
        assert!(
            elements(&tensor.from) == elements(&slices),
            "{what}: {name} comes from {slices:?}, not {:?}",
            tensor.from
        );
        assert_eq!(Some(elements(&tensor.from).len()), tensor.info.elements(), "{what}: {name}");
    }
    let used = got.tensors.iter().flat_map(|t| t.from.iter().map(|s| s.tensor));
    let mut told: Vec<usize> = used.chain(got.dropped.iter().map(|(t, _)| *t)).collect();
    told.sort_unstable();
    told.dedup();
    assert_eq!(told.len(), sources.len(), "{what}: every source tensor is shown or told to be dropped");
}

/// Bytes of all parts of a tensor, by the layout of MLX's formats.
fn bytes(tensor: &Arranged, facts: Option<&Facts>) -> u64 {
    let dense = tensor.info.byte_len().unwrap();
    let size = match facts {
        None => dense,
        Some(f) => {
            let n = tensor.info.elements().unwrap();
            let element = if f.mode == "affine" { 2 * dense / n } else { 1 };
            n * f.bits as usize / 8 + n / f.group_size * element
        }
    };
    u64::try_from(size).unwrap()
}

fn decide<'a>(component: &Component<'_>, default: &Told, tensor: &'a Arranged) -> Decided<'a> {
    let (facts, entry) = match MLX.choose(component, tensor, default) {
        Choice::Keep(why) | Choice::Never(why) => {
            assert!(!why.is_empty());
            (None, None)
        }
        Choice::Default => (Some(default.facts()), None),
        Choice::Other { scheme, group_size, entry } => {
            assert_eq!(scheme, "8bit");
            (Some(Facts { bits: 8, group_size, mode: "affine" }), Some(entry))
        }
    };
    let bytes = bytes(tensor, facts.as_ref());
    let shown = vec![(tensor.info.name.clone(), "model.safetensors".to_owned())];
    Decided { tensor, listed: entry.is_some(), entry, facts, config: Value::Null, bytes, shown }
}

fn dense(tensor: &Arranged) -> Decided<'_> {
    let shown = vec![(tensor.info.name.clone(), "model.safetensors".to_owned())];
    Decided { tensor, facts: None, config: Value::Null, listed: false, entry: None, bytes: bytes(tensor, None), shown }
}

fn check_variant(what: &str, case: &Value, variant: &Value) {
    let sources = source_tensors(case, variant["stored"].as_str().unwrap());
    let config = &case["config"];
    let component = Component {
        dir: "",
        set: "model",
        tensors: &sources,
        config: Some(config),
        generation_config: case.get("generation_config"),
        dtype: None,
        mixed: None,
        graph: None,
    };
    let got = MLX.arrange(&component).unwrap_or_else(|e| panic!("{what}: {e}"));
    check_arrangement(what, case, &sources, &got);
    for (at, tensor) in got.tensors.iter().enumerate() {
        let dtypes = &variant["dtypes"];
        let expected = dtypes.as_str().unwrap_or_else(|| dtypes[at].as_str().unwrap());
        assert_eq!(tensor.info.dtype, dtype_of(expected), "{what}: {}", tensor.info.name);
    }
    let default = facts_of(variant["spec"].as_str().unwrap());
    let decided: Vec<Decided<'_>> = match &default {
        None => got.tensors.iter().map(dense).collect(),
        Some(facts) => got.tensors.iter().map(|t| decide(&component, &Told(facts.clone()), t)).collect(),
    };
    let quantized: Vec<Value> = decided
        .iter()
        .filter_map(|d| d.facts.as_ref().map(|f| json!([d.tensor.module(), f.bits, f.group_size, f.mode])))
        .collect();
    assert_eq!(sorted(&quantized), sorted(variant["quantized"].as_array().unwrap()), "{what}: what is quantized");
    let text = String::from_utf8(
        MLX.config(&component, default.clone().map(Told).as_ref().map(|told| told as &dyn Scheme), &decided).unwrap(),
    )
    .unwrap();
    assert_eq!(text, variant["config"].as_str().unwrap(), "{what}: config.json");
    let index = json::parse(&MLX.index(&component, &decided)).unwrap();
    assert_eq!(index["metadata"], variant["metadata"], "{what}: the index");
    assert_eq!(MLX.metadata(&component, &[]), [("format".to_owned(), "mlx".to_owned())]);
}

fn sorted(values: &[Value]) -> Vec<String> {
    let mut out: Vec<String> = values.iter().map(Value::to_string).collect();
    out.sort();
    out
}

fn cases() -> Vec<(String, Value)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/dialect");
    let mut out: Vec<(String, Value)> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .map(|p| (p.file_stem().unwrap().to_str().unwrap().to_owned(), json::parse(&fs::read(&p).unwrap()).unwrap()))
        .collect();
    out.sort_by(|a, b| a.0.cmp(&b.0));
    out
}

/// Families whose weights mlx_lm computes.
const REFUSED: [&str; 2] = ["baichuan_m1", "falcon_h1"];

#[test]
fn families_are_arranged_as_mlx_lm_arranges_them() {
    let mut families = Vec::new();
    for (family, doc) in cases() {
        for (n, case) in doc["cases"].as_array().unwrap().iter().enumerate() {
            for variant in case["variants"].as_array().unwrap() {
                let what = format!("{family} case {n} {} of {}", variant["spec"], variant["stored"]);
                check_variant(&what, case, variant);
            }
        }
        families.push(family);
    }
    let known = MLX.model_types().into_iter().filter(|t| !REFUSED.contains(t));
    assert_eq!(known.collect::<Vec<&str>>(), families, "every family of the tables has its cases");
}

fn tensor(name: &str, shape: &[usize]) -> TensorInfo {
    TensorInfo { name: name.into(), dtype: Dtype::BF16, shape: shape.to_vec() }
}

fn component<'a>(tensors: &'a [TensorInfo], config: &'a Value) -> Component<'a> {
    Component {
        dir: "",
        set: "model",
        tensors,
        config: Some(config),
        generation_config: None,
        dtype: None,
        mixed: None,
        graph: None,
    }
}

const FOUR: Facts = Facts { bits: 4, group_size: 64, mode: "affine" };

fn kept(dialect: &dyn Dialect, component: &Component<'_>) -> Vec<Option<String>> {
    let arranged = dialect.arrange(component).unwrap();
    let choice = |t| match dialect.choose(component, t, &Told(FOUR)) {
        Choice::Keep(why) | Choice::Never(why) => Some(why),
        Choice::Default => None,
        Choice::Other { .. } => panic!("no predicate is expected"),
    };
    arranged.tensors.iter().map(choice).collect()
}

#[test]
fn what_mlx_lm_computes_is_refused_by_name() {
    let tensors = [tensor("lm_head.weight", &[4, 64])];
    for (config, why) in [
        (json!({"model_type": "falcon_h1"}), "falcon_h1: lm_head.weight: mlx_lm multiplies"),
        (json!({"model_type": "baichuan_m1"}), "baichuan_m1: lm_head.weight: mlx_lm normalizes"),
        (json!({"model_type": "bailing_moe", "norm_head": true}), "bailing_moe: lm_head.weight: mlx_lm normalizes"),
        (json!({"model_type": "llama", "quantization_config": {"bits": 4}}), "quantized already"),
        (json!({"model_type": "mistral3", "text_config": {"quantization_config": {}}}), "quantized already"),
    ] {
        let error = MLX.arrange(&component(&tensors, &config)).unwrap_err();
        assert!(error.contains(why), "{config}: {error}");
    }
}

#[test]
fn unknown_models_and_tensors_are_told() {
    let tensors = [
        tensor("a.weight", &[4, 64]),
        tensor("b.weight", &[4, 96]),
        tensor("norm.weight", &[4, 64]),
        tensor("c.weight", &[4, 4, 64]),
        tensor("a.bias", &[64]),
        TensorInfo { dtype: Dtype::I64, ..tensor("ids.weight", &[4, 64]) },
    ];
    let config = json!({"model_type": "nobody_knows", "torch_dtype": "float16"});
    let unknown = component(&tensors, &config);
    let arranged = MLX.arrange(&unknown).unwrap();
    assert!(arranged.warnings[0].contains("nobody_knows"), "{:?}", arranged.warnings);
    assert_eq!(arranged.tensors[0].info.dtype, Dtype::F16, "cast as convert does");
    assert_eq!(arranged.tensors[5].info.dtype, Dtype::I64);
    let why: Vec<Option<String>> = kept(&MLX, &unknown);
    let expected = [None, Some("last dimension 96"), Some("norm"), Some("3-D"), Some("no .weight"), Some("I64")];
    for (why, expected) in why.iter().zip(expected) {
        assert_eq!(why.is_some(), expected.is_some(), "{why:?}");
        assert!(why.as_deref().unwrap_or_default().starts_with(expected.unwrap_or_default()), "{why:?}");
    }
    let own = [("format".to_owned(), "pt".to_owned())];
    assert_eq!(MLX.metadata(&unknown, &own), own);
    assert!(MLX.metadata(&unknown, &[]).is_empty(), "a file without metadata stays one");
    let asked = Component { dtype: Some(Float::F32), ..unknown };
    assert_eq!(MLX.arrange(&asked).unwrap().tensors[0].info.dtype, Dtype::F32, "--dtype comes first");
    let custom = json!({"model_type": "llama", "model_file": "model.py", "vision_config": {}});
    let arranged = MLX.arrange(&component(&tensors, &custom)).unwrap();
    assert!(arranged.warnings[0].contains("llama"), "its own Python file may mean anything");
    let text = MLX.config(&component(&tensors, &custom), Some(&Told(FOUR)), &[]).unwrap();
    assert!(json::parse(&text).unwrap().get("vision_config").is_some(), "kept names keep their towers");

    let llama = json!({"model_type": "llama"});
    let strange = [tensor("model.extra.weight", &[4, 64]), tensor("model.norm.weight", &[64])];
    let arranged = MLX.arrange(&component(&strange, &llama)).unwrap();
    assert!(arranged.warnings[0].contains("model.extra.weight"), "{:?}", arranged.warnings);
    assert_eq!(arranged.tensors[1].info.name, "model.extra.weight", "strangers come last");
}

#[test]
fn broken_stacks_are_refused() {
    let expert = |e: usize, shape: &[usize]| tensor(&format!("model.layers.0.mlp.experts.{e}.up_proj.weight"), shape);
    let config = json!({"model_type": "qwen3_moe", "num_experts": 2});
    let refused = |tensors: &[TensorInfo]| MLX.arrange(&component(tensors, &config)).unwrap_err();
    assert!(refused(&[expert(0, &[4, 64]), expert(2, &[4, 64])]).contains("missing"));
    assert!(refused(&[expert(0, &[4, 64]), expert(1, &[4, 32])]).contains("cannot be stacked"));
    assert!(refused(&[expert(0, &[4, 64])]).contains("num_experts = 2"));
    let half = TensorInfo { dtype: Dtype::F16, ..expert(1, &[4, 64]) };
    assert!(refused(&[expert(0, &[4, 64]), half]).contains("cannot be stacked"));
    let twice = [tensor("model.norm.weight", &[4]), tensor("model.norm.weight", &[4])];
    assert!(refused(&twice).contains("two tensors"));
    let strange = [tensor("a.weight", &[4]), tensor("a.weight", &[4])];
    assert!(refused(&strange).contains("two tensors"));
    let odd = json!({"model_type": "granitemoe"});
    let fused = [tensor("model.layers.0.block_sparse_moe.input_linear.weight", &[2, 3, 4])];
    assert!(MLX.arrange(&component(&fused, &odd)).unwrap_err().contains("cannot be cut"));
    let latent = json!({"model_type": "deepseek_v3", "num_attention_heads": 2, "qk_nope_head_dim": 4, "v_head_dim": 5});
    let kv = [tensor("model.layers.0.self_attn.kv_b_proj.weight", &[17, 4])];
    assert!(MLX.arrange(&component(&kv, &latent)).unwrap_err().contains("config.json implies"));
}

#[test]
fn rules_and_dense_views_are_written_to_config() {
    let config = json!({"model_type": "llama", "vision_config": {}, "eos_token_id": 7, "x": {"__float__": "NaN"}});
    let tensors = [tensor("model.embed_tokens.weight", &[4, 64]), tensor("lm_head.weight", &[4, 64])];
    let generation = json!({"eos_token_id": 0});
    let told = Component { generation_config: Some(&generation), ..component(&tensors, &config) };
    let arranged = Arrangement { tensors: tensors.iter().enumerate().map(plain).collect(), ..Arrangement::default() };
    let mut decided: Vec<Decided<'_>> = arranged.tensors.iter().map(dense).collect();
    let text = |default: Option<&Told>, decided: &[Decided<'_>]| {
        let default = default.map(|told| told as &dyn Scheme);
        json::parse(&MLX.config(&told, default, decided).unwrap()).unwrap()
    };
    let expected = json!({"eos_token_id": 7, "model_type": "llama", "x": {"__float__": "NaN"}});
    assert_eq!(text(None, &decided), expected, "a dense view; an eos of zero is none");
    decided[1].facts = Some(Facts { bits: 8, group_size: 32, mode: "mxfp8" });
    decided[1].listed = true;
    let mixed = text(Some(&Told(FOUR)), &decided);
    let module = json!({"group_size": 32, "bits": 8, "mode": "mxfp8"});
    let quantization = json!({"group_size": 64, "bits": 4, "mode": "affine", "lm_head": module});
    assert_eq!(mixed["quantization"], quantization);
    assert_eq!(mixed["quantization_config"], quantization);
    assert_eq!(text(None, &decided)["quantization"]["bits"], 8, "loaders want a default");
}

fn plain((at, info): (usize, &TensorInfo)) -> Arranged {
    Arranged { info: info.clone(), from: vec![Slice::whole(at, info)], plus_one: false }
}

#[test]
fn zimage_takes_what_its_quantizer_takes() {
    let names = ["layers.0.attention.to_q.weight", "t_embedder.mlp.0.weight", "all_final_layer.2-1.linear.weight"];
    let tensors: Vec<TensorInfo> = names.iter().map(|n| tensor(n, &[4, 64])).collect();
    let at = |dir| {
        let set = "diffusion_pytorch_model";
        Component {
            dir,
            set,
            tensors: &tensors,
            config: None,
            generation_config: None,
            dtype: None,
            mixed: None,
            graph: None,
        }
    };
    let quantized = |dir| kept(&ZIMAGE, &at(dir)).iter().map(Option::is_none).collect::<Vec<bool>>();
    assert_eq!(quantized("transformer"), [true, false, false]);
    assert_eq!(quantized("text_encoder"), [true, false, false]);
    assert_eq!(quantized("vae"), [false, false, false]);
    assert_eq!(quantized(""), [true, false, true], "a ControlNet has no rule on prefixes");
    let others = [tensor("a.weight", &[4, 96]), tensor("k_norm.weight", &[4, 64]), tensor("b.weight", &[64])];
    let transformer = Component { tensors: &others, ..at("transformer") };
    let why: Vec<String> = kept(&ZIMAGE, &transformer).into_iter().map(Option::unwrap).collect();
    assert_eq!(why, ["last dimension 96 is no multiple of 64", "name contains norm", "1-D, not 2-D"]);
    assert!(ZIMAGE.config(&transformer, Some(&Told(FOUR)), &[]).is_none(), "config.json is not touched");
}

#[test]
fn a_mirror_changes_nothing() {
    let config = json!({"model_type": "llama", "torch_dtype": "float16"});
    let tensors = [tensor("model.layers.0.self_attn.rotary_emb.inv_freq", &[4]), tensor("lm_head.weight", &[4, 64])];
    let all = component(&tensors, &config);
    let arranged = MIRROR.arrange(&all).unwrap();
    assert_eq!(arranged.tensors, tensors.iter().enumerate().map(plain).collect::<Vec<Arranged>>());
    assert!(kept(&MIRROR, &all).iter().all(Option::is_some));
    assert!(MIRROR.config(&all, None, &[]).is_none());
    let decided: Vec<Decided<'_>> = arranged.tensors.iter().map(dense).collect();
    let index = json::parse(&MIRROR.index(&all, &decided)).unwrap();
    assert_eq!(index["metadata"], json!({"total_size": 520}));
    assert_eq!(index["weight_map"]["lm_head.weight"], "model.safetensors");
}

/// A mount of the largest models is a matter of milliseconds.
#[test]
fn ninety_thousand_tensors_are_arranged_quickly() {
    let names = (0..58).flat_map(|l| (0..256).flat_map(move |e| ["gate", "up", "down"].map(|p| (l, e, p))));
    let tensors: Vec<TensorInfo> = names
        .map(|(l, e, p)| tensor(&format!("model.layers.{l}.mlp.experts.{e}.{p}_proj.weight"), &[64, 64]))
        .collect();
    let config = json!({"model_type": "deepseek_v3", "n_routed_experts": 256});
    let all = component(&tensors, &config);
    let start = std::time::Instant::now();
    let arranged = MLX.arrange(&all).unwrap();
    assert_eq!(arranged.tensors.len(), 58 * 3);
    assert!(arranged.tensors.iter().all(|t| t.from.len() == 256));
    let unstacked = json!({"model_type": "nobody_knows"});
    assert_eq!(kept(&MLX, &component(&tensors, &unstacked)).len(), tensors.len());
    // Generous: the tests share their cores and are hardly optimized.
    assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
}
