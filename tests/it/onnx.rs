//! Views of ONNX models against what onnxruntime's quantizer makes of them (`tests/golden/onnx/models`).

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use quantfs::{
    bulk::{self, Silent},
    container::onnx::{self, Edit, Model},
    plan::{self, Content, Options, Parts, Plan, Rule, Spec},
    source::{self, Caches, Source},
    view::{self, Engine, View},
};

fn golden(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/onnx/models").join(case)
}

fn open(path: &Path) -> Arc<dyn Source> {
    source::open(path.to_str().unwrap(), &Caches { hub: vec![] }).unwrap().into()
}

fn options(spec: &str, rules: &[&str]) -> Options {
    let spec = Spec::parse(Some(spec), &Parts::default()).unwrap();
    let rules = rules.iter().map(|rule| Rule::parse(rule, &spec).unwrap()).collect();
    Options { rules, ..Options::new(spec) }
}

fn plan(path: &Path, spec: &str) -> Result<Plan, plan::Error> {
    plan::build(open(path).as_ref(), &options(spec, &[]))
}

fn view(path: &Path, options: &Options) -> Arc<View> {
    crate::common::tables::select_kernels();
    let source = open(path);
    let plan = plan::build(source.as_ref(), options).unwrap();
    View::new(Arc::new(plan), source, Engine::new(view::Options::default()).unwrap())
}

fn read(view: &Arc<View>, path: &str) -> Vec<u8> {
    let number = view.plan().files.iter().position(|f| f.path == path).unwrap_or_else(|| panic!("no file {path}"));
    let mut bytes = vec![0xa5; usize::try_from(view.plan().files[number].len).unwrap()];
    assert_eq!(view.read_at(number, 0, &mut bytes).unwrap(), bytes.len());
    bytes
}

/// A copy of a golden source without what the quantizer made of it, to be spoilt.
fn copy(case: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    copy_files(&golden(case), dir.path());
    dir
}

/// The files of a source; the directories of what was made of it hold models of their own.
fn copy_files(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (path, target) = entry.map(|e| (e.path(), to.join(e.file_name()))).unwrap();
        if path.is_file() {
            fs::copy(path, target).unwrap();
        } else if !path.join("model.onnx").exists() {
            copy_files(&path, &target);
        }
    }
}

/// The model without the places of its tensors.
fn placeless(bytes: &[u8], model: &Model) -> Vec<u8> {
    let nowhere = Edit { range: Some(0..0), product: None };
    onnx::render(bytes, model, &vec![nowhere; model.tensors.len()]).unwrap()
}

/// The bytes of each tensor of a model that lies outside.
fn tensors(model: &Model, file: impl Fn(&str) -> Vec<u8>) -> Vec<Vec<u8>> {
    let bytes = |tensor: &onnx::External| {
        let data = file(&tensor.location);
        let range = tensor.range(data.len() as u64).unwrap();
        data[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()].to_vec()
    };
    model.tensors.iter().map(bytes).collect()
}

/// Compares the model of a view with one that onnxruntime's quantizer wrote: every byte of the graph and of
/// every tensor.
fn compare(view: &Arc<View>, dir: &str, expected: &Path) {
    let what = expected.display();
    let at = |name: &str| if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") };
    let (ours, theirs) = (read(view, &at("model.onnx")), fs::read(expected.join("model.onnx")).unwrap());
    let (our_model, their_model) = (onnx::parse(&ours).unwrap(), onnx::parse(&theirs).unwrap());
    assert!(our_model.tensors.len() > 5, "{what}");
    let names = |model: &Model| model.tensors.iter().map(|t| t.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&our_model), names(&their_model), "{what}");
    assert!(placeless(&ours, &our_model) == placeless(&theirs, &their_model), "graph of {what}");
    let ours = tensors(&our_model, |location| read(view, &at(location)));
    let theirs = tensors(&their_model, |location| fs::read(expected.join(location)).unwrap());
    for ((ours, theirs), tensor) in ours.iter().zip(&theirs).zip(&our_model.tensors) {
        assert!(ours == theirs, "{} of {what}", tensor.name);
    }
}

#[test]
fn models_are_those_of_onnxruntimes_quantizer() {
    let cases = [
        ("plain-f32", "onnx", "4-32-sym"),
        ("plain-f32", "onnx-8bit-g16", "8-16-sym"),
        ("plain-f32", "onnx-2bit-g64-asym", "2-64-asym"),
        ("plain-f16", "onnx-4bit-asym", "4-32-asym"),
        ("plain-bf16", "onnx-4bit-g32", "4-32-sym"),
        ("plain-bf16", "onnx-g128-asym", "4-128-asym"),
        ("odd-f32", "onnx", "4-32-sym"),
        ("odd-f32", "onnx-8bit-g16-asym", "8-16-asym"),
    ];
    for (case, spec, made) in cases {
        let source = copy(case);
        compare(&view(source.path(), &options(spec, &[])), "", &golden(case).join(made));
    }
}

/// Beside a model in safetensors files, in a directory of its own, as repositories have it.
#[test]
fn models_lie_beside_other_weights() {
    let dir = tempfile::tempdir().unwrap();
    copy_files(&golden("odd-f32"), &dir.path().join("onnx"));
    let values = crate::common::written::values(3, 64 * 64);
    let up = crate::common::written::f32s("model.up_proj.weight", &[64, 64], &values);
    crate::common::written::write(&dir.path().join("model.safetensors"), &[up], 8);
    let view = view(dir.path(), &options("onnx", &[]));
    compare(&view, "onnx", &golden("odd-f32/4-32-sym"));
    let header = crate::common::headers::header(&read(&view, "model.safetensors")).unwrap();
    let names: Vec<&str> = header.tensors.iter().map(|t| t.info.name.as_str()).collect();
    assert_eq!(names, ["model.up_proj.weight", "model.up_proj.scales"]);
    // Every other format shows a model as it is.
    let plain = self::view(dir.path(), &options("mlx-4bit-g64", &[]));
    for name in ["onnx/model.onnx", "onnx/one.data", "onnx/sub/two.data"] {
        assert!(read(&plain, name) == fs::read(dir.path().join(name)).unwrap(), "{name}");
    }
}

/// Rules speak of initializers by their names; what a rule keeps lies in the view as in the source.
#[test]
fn rules_hold_within_models() {
    let source = copy("plain-f32");
    let rules = ["square=8bit-g16", "onnx::*=source"];
    let view = view(source.path(), &options("onnx-4bit-g32", &rules));
    let bytes = read(&view, "model.onnx");
    let model = onnx::parse(&bytes).unwrap();
    let find = |name: &str| model.tensors.iter().position(|t| t.name == name).unwrap_or_else(|| panic!("{name}"));
    let data = tensors(&model, |location| read(&view, location));
    let expected = fs::read(golden("plain-f32/8-16-sym/model.onnx")).unwrap();
    let expected = onnx::parse(&expected).unwrap();
    let golden_data = tensors(&expected, |l| fs::read(golden("plain-f32/8-16-sym").join(l)).unwrap());
    let square = expected.tensors.iter().position(|t| t.name == "square_Q8").unwrap();
    assert!(data[find("square_Q8")] == golden_data[square]);
    assert_eq!(model.tensors[find("onnx::MatMul_77")].shape, [80, 64], "kept as it lies, not transposed");
    find("model.layers.0.up_proj.weight_Q4");
    let never = plan::build(open(source.path()).as_ref(), &options("onnx", &["embed=8bit"])).unwrap_err().to_string();
    assert!(never.contains("not the second factor of a MatMul"), "{never}");
}

/// Two models over one data file: both are written anew, what both need lies there once.
#[test]
fn models_may_share_their_data() {
    let source = copy("plain-f32");
    let alone = plan(source.path(), "onnx").unwrap();
    fs::copy(source.path().join("model.onnx"), source.path().join("again.onnx")).unwrap();
    let both = view(source.path(), &options("onnx", &[]));
    compare(&both, "", &golden("plain-f32/4-32-sym"));
    assert_eq!(read(&both, "again.onnx"), read(&both, "model.onnx"));
    let len = |plan: &Plan| plan.files.iter().find(|f| f.path == "model.onnx_data").unwrap().len;
    assert_eq!(len(both.plan()), len(&alone));
    // A rule for one weight is one for both models.
    let rules = options("onnx", &["*=source", "square=4bit"]);
    assert!(plan::build(open(source.path()).as_ref(), &rules).is_err(), "the second rule never takes effect");
}

#[test]
fn models_without_products_are_shown_as_they_are() {
    let source = copy("odd-f32");
    fs::create_dir(source.path().join("done")).unwrap();
    copy_files(&golden("plain-f32/4-32-sym"), &source.path().join("done"));
    let plan = plan(source.path(), "onnx").unwrap();
    let file = |name: &str| plan.files.iter().find(|f| f.path == name).unwrap();
    assert!(file("done/model.onnx").untouched().is_some() && file("done/model.onnx_data").untouched().is_some());
    assert!(file("model.onnx").untouched().is_none());
    assert!(
        plan.warnings.iter().any(|w| w.contains("model.onnx: products whose weight lies in the model")),
        "{:?}",
        plan.warnings
    );
    let done = self::plan(&golden("plain-f32/4-32-sym"), "onnx").unwrap_err().to_string();
    assert!(done.contains("not one weight would be quantized"), "{done}");
}

/// The graph is known when the view is planned, and tensors lie where they can be mapped.
#[test]
fn data_is_aligned_and_graphs_are_constants() {
    let (plain, odd) = (copy("plain-f32"), copy("odd-f32"));
    let (plan, other) = (plan(plain.path(), "onnx-8bit-g16").unwrap(), plan(odd.path(), "onnx").unwrap());
    for file in plan.files.iter().chain(&other.files) {
        let mut at = 0;
        for (i, extent) in file.extents.iter().enumerate() {
            let end = file.extents.get(i + 1).map_or(file.len, |next| next.start);
            assert_eq!(extent.start, at, "{} has no holes", file.path);
            if !matches!(extent.content, Content::Bytes(_)) {
                let align = if end - extent.start >= 4096 { 4096 } else { 64 };
                assert_eq!(extent.start % align, 0, "{}", file.path);
            }
            at = end;
        }
    }
    let graph = plan.files.iter().find(|f| f.path == "model.onnx").unwrap();
    assert!(matches!(&graph.extents[..], [one] if matches!(one.content, Content::Bytes(_))));
}

/// Replaces every occurrence of some bytes by as many others.
fn replace(path: &Path, from: &str, to: &str) {
    assert_eq!(from.len(), to.len());
    let mut bytes = fs::read(path).unwrap();
    let found: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(from.as_bytes())).collect();
    assert!(!found.is_empty(), "no {from}");
    found.into_iter().for_each(|at| bytes[at..at + to.len()].copy_from_slice(to.as_bytes()));
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_name_that_is_taken_keeps_the_weight() {
    let source = copy("plain-f32");
    replace(&source.path().join("model.onnx"), "square_in", "square_Q4");
    let plan = plan(source.path(), "onnx-4bit").unwrap();
    let row = plan.rows.iter().find(|row| row.name == "square").unwrap();
    assert_eq!((row.becomes.as_str(), row.why.as_str()), ("kept", "the model has a square_Q4 already"));
    assert!(
        self::plan(source.path(), "onnx-8bit").unwrap().rows.iter().any(|r| r.name == "square" && r.why.is_empty())
    );
}

/// Data files may have names that weights in other containers have, which are hidden.
#[test]
fn data_files_are_no_twins() {
    let source = copy("plain-f32");
    let done = source.path().join("done");
    copy_files(&golden("plain-f32/4-32-sym"), &done);
    for dir in [source.path(), &done] {
        replace(&dir.join("model.onnx"), "model.onnx_data", "modelweight.bin");
        fs::rename(dir.join("model.onnx_data"), dir.join("modelweight.bin")).unwrap();
    }
    fs::write(source.path().join("pytorch_model.bin"), "a twin").unwrap();
    let plan = plan(source.path(), "onnx").unwrap();
    for path in ["modelweight.bin", "done/modelweight.bin"] {
        assert!(plan.files.iter().any(|f| f.path == path), "{path}");
    }
    assert_eq!(plan.hidden, ["pytorch_model.bin"]);
}

#[test]
fn what_is_wrong_with_a_model_is_said() {
    let broken = |spoil: &dyn Fn(&Path)| {
        let source = copy("plain-f32");
        spoil(source.path());
        plan(source.path(), "onnx").unwrap_err().to_string()
    };
    let location = |to: &'static str| move |dir: &Path| replace(&dir.join("model.onnx"), "model.onnx_data", to);
    type Spoil<'a> = &'a dyn Fn(&Path);
    let cases: [(Spoil<'_>, &str); 7] = [
        (&location("../x/model_data"), "not below the model's directory"),
        (&location("/etc/model_data"), "not below the model's directory"),
        (&location("mod.safetensors"), "a data file of its own"),
        (&location("nowhere_to_find"), "which is not there; download it again"),
        (&|dir| fs::write(dir.join("model.onnx_data"), [0; 1000]).unwrap(), "it is truncated"),
        (
            &|dir| fs::write(dir.join("model.onnx"), "version https://git-lfs.github.com/spec/v1\n").unwrap(),
            "git lfs pull",
        ),
        (&|dir| fs::write(dir.join("model.onnx"), [10; 1]).unwrap(), "offset 1: a number that does not end"),
    ];
    for (spoil, why) in cases {
        let error = broken(spoil);
        assert!(error.contains(why) && error.contains("model.onnx"), "{error}");
    }
}

/// A model too long to be a graph is no reason to show nothing else.
#[test]
fn a_model_that_is_too_long_is_shown_as_it_is() {
    let source = copy("plain-f32");
    let long = fs::File::create(source.path().join("long.onnx")).unwrap();
    long.set_len(onnx::MAX_MODEL + 1).unwrap();
    let plan = plan(source.path(), "onnx").unwrap();
    assert!(plan.files.iter().any(|f| f.path == "long.onnx" && f.untouched().is_some()));
    assert!(
        plan.warnings.iter().any(|w| w.contains("long.onnx: shown as it is: 67108865 bytes")),
        "{:?}",
        plan.warnings
    );
}

/// What was exported is sound and equal to the view; a spoilt model is not.
#[test]
fn exported_models_are_audited() {
    let (source, target) = (copy("odd-f32"), tempfile::tempdir().unwrap());
    let (view, target) = (view(source.path(), &options("onnx", &[])), target.path().join("out"));
    bulk::export(&view, &target, &Silent).unwrap();
    let sound = bulk::audit(&target, &Silent).unwrap();
    assert!(sound.is_sound() && sound.quantized == 6, "{sound:?}");
    assert!(sound.matched > 15, "{sound:?}");
    assert!(bulk::compare(&view, &target, &Silent).unwrap().is_equal());
    let data = target.join("sub/two.data");
    let bytes = fs::read(&data).unwrap();
    fs::write(&data, &bytes[..bytes.len() - 20]).unwrap();
    let cut = bulk::audit(&target, &Silent).unwrap();
    assert!(cut.faults.iter().any(|f| f.contains("model.onnx") && f.contains("it is truncated")), "{cut:?}");
    fs::remove_file(&data).unwrap();
    let gone = bulk::audit(&target, &Silent).unwrap();
    assert!(gone.missing.iter().any(|name| name.contains("sub/two.data")), "{gone:?}");
}
