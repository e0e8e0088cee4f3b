//! What views lose, against plain sums over exported bytes that the reference decoders decode.

use std::{fs, num::NonZero, path::Path, sync::Arc};

use quantfs::{
    bulk::{
        self, Silent,
        errors::{self, Asked, Sums},
    },
    plan::{self, Plan, Planned, Surveyed},
    quant::{
        Scheme, Weight,
        operator::{Bytes, Decoded, Operator},
    },
    runtime::Weights,
    source::Source,
    tensor::{Dtype, Float},
    view::{self, Engine, View},
};

use crate::common::{
    views,
    written::{bf16, quantized, schemes, tensor, values, write},
};

const LLAMA: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16"}"#;

/// Projections that loaders fuse, one of several tiles, one that fits few groups, and what stays dense.
fn model(dir: &Path) {
    let tensors = [
        bf16("lm_head.weight", &[128, 256]),
        bf16("model.embed_tokens.weight", &[128, 256]),
        bf16("model.layers.0.input_layernorm.weight", &[256]),
        bf16("model.layers.0.mlp.down_proj.weight", &[256, 96]),
        bf16("model.layers.0.mlp.up_proj.weight", &[5120, 256]),
        bf16("model.layers.0.self_attn.k_proj.weight", &[128, 256]),
        bf16("model.layers.0.self_attn.q_proj.weight", &[256, 256]),
        bf16("model.layers.0.self_attn.v_proj.weight", &[128, 256]),
    ];
    write(&dir.join("model.safetensors"), &tensors, 8);
    fs::write(dir.join("config.json"), LLAMA).unwrap();
}

/// Sums as one would write them down.
fn plain(given: &[f32], shown: &[f32]) -> Sums {
    assert_eq!(given.len(), shown.len());
    let mut sums = Sums { elements: given.len() as u64, ..Sums::default() };
    for (w, q) in given.iter().zip(shown) {
        sums.nan += u64::from(w.is_nan());
        sums.infinite += u64::from(w.is_infinite());
        sums.lost += u64::from(w.is_finite() && !q.is_finite());
        if w.is_finite() && q.is_finite() {
            let (w, d) = (f64::from(*w), f64::from(*w) - f64::from(*q));
            sums.energy += w * w;
            sums.error += d * d;
            sums.largest = sums.largest.max(w.abs());
            sums.worst = sums.worst.max(d.abs());
        }
    }
    Sums { weighted: sums.error, ..sums }
}

/// The same but for the order of additions.
fn check(found: &Sums, expected: &Sums, what: &str) {
    let near = |a: f64, b: f64| (a - b).abs() <= 1e-11 * b.abs();
    let counts = |s: &Sums| (s.elements, s.nan, s.infinite, s.lost, s.largest.to_bits(), s.worst.to_bits());
    assert_eq!(counts(found), counts(expected), "{what}");
    let sums = |s: &Sums| [s.energy, s.error, s.weighted];
    assert!(sums(found).iter().zip(sums(expected)).all(|(a, b)| near(*a, b)), "{what}: {found:?}, not {expected:?}");
}

fn of(view: &View) -> Vec<Option<Sums>> {
    errors::errors(view, None, &Silent).unwrap()
}

/// Every spec of which a directory can be written that the runtime decodes.
#[test]
fn errors_are_those_of_the_exported_bytes() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path());
    let source = Weights::open(dir.path()).unwrap();
    for spec in [
        "mlx-4bit",
        "mlx-3bit-g32",
        "mlx-8bit-g128-metal",
        "mlx-mxfp4",
        "mlx-mxfp8",
        "mlx-nvfp4",
        "zimage-8bit",
        "ct-4bit",
        "ct-4bit-g32-asym",
        "ct-8bit-channel",
        "ct-int8",
        "ct-fp8",
        "ct-fp8-tensor",
        "ct-fp8-b128",
        "ct-nvfp4",
        "fp8",
        "gptq-4bit",
        "gptq-3bit-asym",
        "awq",
        "bnb-nf4",
        "bnb-fp4-dq",
        "bnb-int8",
        "sym-int8-row",
        "sym-int8-tensor",
    ] {
        let view = views::view_of(dir.path(), spec, &[]).unwrap_or_else(|e| panic!("{spec}: {e}"));
        let out = tempfile::tempdir().unwrap();
        let at = out.path().join("view");
        bulk::export(&view, &at, &Silent).unwrap();
        let weights = Weights::open(&at).unwrap();
        let mut seen = 0;
        for (row, found) in view.plan().rows.iter().zip(of(&view)) {
            let Some(found) = found else { continue };
            let stem = row.name.strip_suffix(".weight").unwrap();
            let (given, shown) = (source.linear(stem).unwrap(), weights.linear(stem).unwrap());
            assert!(shown.is_quantized(), "{spec}: {stem}");
            check(&found, &plain(&given.dequantize(), &shown.dequantize()), &format!("{spec}: {stem}"));
            assert!(found.error > 0.0, "{spec}: {stem}");
            seen += 1;
        }
        let weights = view.plan().weights.iter().filter(|w| w.scheme.facts().mode != "dense").count();
        assert!(seen == weights && seen >= 4, "{spec}: {seen} of {weights}");
    }
}

/// The same figures of views that show the values themselves.
#[test]
fn dense_views_have_errors_too() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path());
    let source = Weights::open(dir.path()).unwrap();
    for spec in ["dense-4bit", "dense-gptq-4bit", "dense-ct-fp8-tensor"] {
        let view = views::view_of(dir.path(), spec, &[]).unwrap();
        let files = views::files(&view);
        let shown = views::tensors(&files["model.safetensors"]);
        let mut seen = 0;
        for (row, found) in view.plan().rows.iter().zip(of(&view)) {
            let Some(found) = found else { continue };
            let values: Vec<f32> =
                shown[&row.name].2.chunks(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect();
            let given = source.linear(row.name.strip_suffix(".weight").unwrap()).unwrap().dequantize();
            check(&found, &plain(&given, &values), &format!("{spec}: {}", row.name));
            seen += 1;
        }
        assert!(seen >= 4, "{spec}: {seen}");
    }
}

const ROWS: usize = 256;
const COLS: usize = 512;

/// One weight of the base view under a scheme, in the smallest tiles; its elements are these.
fn alone(base: &View, scheme: &Arc<dyn Scheme>) -> Plan {
    let mut planned = base.plan().weights[0].under(Arc::clone(scheme)).unwrap();
    planned.tile = planned.banding.granule;
    let survey = scheme.survey(&planned.weight).map(|survey| Surveyed { members: vec![0], survey });
    planned.survey = survey.as_ref().map(|_| 0);
    Plan { weights: vec![planned], surveys: survey.into_iter().collect(), ..Plan::default() }
}

/// The values of parts that were made of the whole weight in one go.
fn decoded(scheme: &Arc<dyn Scheme>, values: &[f32]) -> Vec<f32> {
    let weight = Weight { stem: "up".into(), float: Float::F32, shape: vec![ROWS, COLS] };
    let parts = quantized(scheme.as_ref(), "up", &[ROWS, COLS], values);
    let parts = parts.into_iter().map(|(_, _, _, bytes)| Bytes::from(bytes)).collect();
    let mut back = vec![0.0; values.len()];
    Decoded::new(Arc::clone(scheme), weight, parts).decode(0..ROWS, &mut back);
    back
}

fn base(dir: &Path, elements: &[f32]) -> Arc<View> {
    let data = elements.iter().flat_map(|v| v.to_le_bytes()).collect();
    write(
        &dir.join("model.safetensors"),
        &[tensor("model.layers.0.mlp.up_proj.weight", Dtype::F32, &[ROWS, COLS], data)],
        8,
    );
    fs::write(dir.join("config.json"), LLAMA.replace("bfloat16", "float32")).unwrap();
    views::view_of(dir, "mlx-4bit", &[]).unwrap()
}

/// Candidates and weights in small tiles, of every scheme that can be bound.
#[test]
fn every_scheme_has_errors() {
    let dir = tempfile::tempdir().unwrap();
    let elements = values(5, ROWS * COLS);
    let base = base(dir.path(), &elements);
    let mut seen = 0;
    for (name, scheme) in schemes() {
        let expected = plain(&elements, &decoded(&scheme, &elements));
        assert!(expected.error > 0.0, "{name}");
        let candidate = errors::of_candidate(&base, 0, &scheme, &Asked::default()).unwrap();
        check(&candidate, &expected, &name);
        let plan = Arc::new(alone(&base, &scheme));
        let engine = Engine::new(view::Options { threads: 1, ..view::Options::default() }).unwrap();
        let view = View::new(plan, Arc::clone(base.source()), engine);
        check(&errors::of_weight(&view, 0, &Asked::default()).unwrap(), &expected, &format!("{name} in small tiles"));
        let sample = Asked::sampled(NonZero::new((ROWS * COLS / 4) as u64));
        let some = errors::of_candidate(&base, 0, &scheme, &sample).unwrap();
        let share = some.elements as f64 / (ROWS * COLS) as f64;
        assert!(share > 0.1 && share <= 0.5, "{name}: {share} of the elements");
        let (all, some) = (candidate.figures().relative.unwrap(), some.figures().relative.unwrap());
        assert!((some / all - 1.0).abs() < 0.1, "{name}: {some} in a sample, {all} in all");
        seen += 1;
    }
    assert!(seen > 60, "{seen}");
}

/// A scheme that weighs columns is told where a portion lies: stretches that end within rows, and bands of columns.
#[test]
fn weighted_codes_are_those_of_the_exported_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (stem, cols) = ("model.layers.0.mlp.up_proj", 3072);
    write(&dir.path().join("model.safetensors"), &[bf16(&format!("{stem}.weight"), &[1024, cols])], 8);
    fs::write(dir.path().join("config.json"), LLAMA).unwrap();
    let entry = serde_json::json!({ stem: { "dtype": "F32", "shape": [cols], "data_offsets": [0, cols * 4] } });
    let header = serde_json::to_vec(&entry).unwrap();
    let mut file = [&(header.len() as u64).to_le_bytes()[..], &header].concat();
    file.extend((0..cols).flat_map(|i| (if i % 7 == 0 { 100f32 } else { 0.1 }).to_le_bytes()));
    let importance = Some(Arc::new(plan::Importance::parse("made", &file).unwrap()));
    let source = Weights::open(dir.path()).unwrap().linear(stem).unwrap().dequantize();
    for spec in ["mlx-3bit-g64-ls", "gptq-3bit-g128-ls"] {
        let options = plan::Options { importance: importance.clone(), ..views::options(spec, &[]).unwrap() };
        let view = views::view(views::open(dir.path()).into(), &options).unwrap();
        assert!(view.plan().weights[0].tiles() > 1, "{spec}");
        let out = tempfile::tempdir().unwrap();
        bulk::export(&view, &out.path().join("view"), &Silent).unwrap();
        let shown = Weights::open(out.path().join("view")).unwrap().linear(stem).unwrap().dequantize();
        let found = of(&view).into_iter().flatten().next().unwrap();
        check(&found, &plain(&source, &shown), spec);
    }
}

/// A weight of so many tiles that the order in which they are added up shows.
#[test]
fn figures_do_not_depend_on_threads() {
    let dir = tempfile::tempdir().unwrap();
    let tensors = [bf16("model.layers.0.mlp.up_proj.weight", &[1024, 6144]), bf16("lm_head.weight", &[128, 256])];
    write(&dir.path().join("model.safetensors"), &tensors, 8);
    fs::write(dir.path().join("config.json"), LLAMA).unwrap();
    for spec in ["mlx-4bit", "ct-nvfp4", "gptq-4bit", "bnb-nf4-dq"] {
        let view = views::view_of(dir.path(), spec, &[]).unwrap();
        let on = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| of(&view));
        let one = on(1);
        let tiles = view.plan().weights.iter().map(Planned::tiles).max();
        assert!(
            tiles > Some(1) && one.iter().flatten().any(|sums| sums.elements > 6_000_000),
            "{spec}: {tiles:?} tiles"
        );
        (0..3).for_each(|_| assert!(on(4) == one, "{spec}"));
    }
}

/// What is not finite is counted; what is beside it in a group is lost, and said to be.
#[test]
fn what_is_not_finite_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let mut elements = values(9, ROWS * COLS);
    elements[0] = f32::NAN;
    elements[COLS * 3 + 70] = f32::INFINITY;
    elements[ROWS * COLS - 1] = f32::NEG_INFINITY;
    let base = base(dir.path(), &elements);
    let mut lost = 0;
    for (name, scheme) in schemes() {
        let found = errors::of_candidate(&base, 0, &scheme, &Asked::default()).unwrap();
        check(&found, &plain(&elements, &decoded(&scheme, &elements)), &name);
        assert_eq!((found.nan, found.infinite), (1, 2), "{name}");
        assert!(found.figures().rms.is_finite() && found.error.is_finite(), "{name}");
        lost += found.lost;
    }
    assert!(lost > 0, "some scheme spreads them over a group");
}

#[test]
fn importance_weighs_columns() {
    let dir = tempfile::tempdir().unwrap();
    let elements = values(3, ROWS * COLS);
    let base = base(dir.path(), &elements);
    let importance: Vec<f32> = (0..COLS).map(|col| if col % 7 == 0 { 3.0 } else { 0.5 }).collect();
    for (name, scheme) in schemes() {
        let shown = decoded(&scheme, &elements);
        let squares = elements.iter().zip(&shown).map(|(w, q)| (f64::from(*w) - f64::from(*q)).powi(2));
        let expected: f64 = squares.enumerate().map(|(i, d)| d * f64::from(importance[i % COLS])).sum();
        let asked = Asked { importance: Some(&importance), ..Asked::default() };
        let found = errors::of_candidate(&base, 0, &scheme, &asked).unwrap().weighted;
        assert!((found / expected - 1.0).abs() < 1e-11, "{name}: {found}, not {expected}");
    }
    // A matrix for each quarter of the rows, which have other columns that matter, in whatever way bands are cut.
    let of_matrices: Vec<f32> = (0..4 * COLS).map(|i| ((i * 37) % 11) as f32 * (1 + i / COLS) as f32).collect();
    let of = |i: usize| f64::from(of_matrices[i / COLS / (ROWS / 4) * COLS + i % COLS]);
    for (name, scheme) in schemes() {
        let shown = decoded(&scheme, &elements);
        let lost = |(i, (w, q)): (usize, (&f32, &f32))| (f64::from(*w) - f64::from(*q)).powi(2) * of(i);
        let expected: f64 = elements.iter().zip(&shown).enumerate().map(lost).sum();
        let energy: f64 = elements.iter().enumerate().map(|(i, w)| f64::from(*w).powi(2) * of(i)).sum();
        let asked = Asked { importance: Some(&of_matrices), ..Asked::default() };
        let found = errors::of_candidate(&base, 0, &scheme, &asked).unwrap();
        assert!((found.weighted / expected - 1.0).abs() < 1e-11, "{name}: {}, not {expected}", found.weighted);
        let counted = found.lost == 0 && found.nan == 0;
        assert!(counted && (found.loss() / (expected / energy) - 1.0).abs() < 1e-11, "{name}: {}", found.loss());
    }
    let (_, scheme) = schemes().remove(0);
    for wrong in [0, COLS - 1, COLS * 3] {
        let asked = Asked { importance: Some(&vec![1.0; wrong]), ..Asked::default() };
        let error = errors::of_candidate(&base, 0, &scheme, &asked).unwrap_err().to_string();
        assert!(error.contains("importance of") && error.contains("up_proj"), "{error}");
    }
}

/// A source that is gone is an error that names file and tensor.
#[test]
fn a_source_that_cannot_be_read_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path());
    let view = views::view_of(dir.path(), "ct-nvfp4", &[]).unwrap();
    fs::OpenOptions::new().write(true).open(dir.path().join("model.safetensors")).unwrap().set_len(4096).unwrap();
    let error = errors::errors(&view, None, &Silent).unwrap_err().to_string();
    assert!(error.contains("model.safetensors") && error.contains("model."), "{error}");
    let source: Arc<dyn Source> =
        views::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/mlx_lm/llama_src").as_path()).into();
    let plan = plan::build(source.as_ref(), &views::options("4bit", &[]).unwrap()).unwrap();
    assert!(plan.rows.iter().any(|row| row.weight.is_none()) && plan.rows.iter().any(|row| row.weight.is_some()));
}
