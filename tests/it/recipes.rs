//! Recipes: files that are read and printed, components with specs of their own, mlx_lm's recipes by name.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use quantfs::{
    cli::{Failure, options::ViewArgs, recipe},
    container::json,
    plan::{self, Options, Plan},
    quant::{
        Dialect,
        dialect::{Choice, Component, mlx::MLX},
    },
    source::{Caches, Source},
    tensor::TensorInfo,
    view::View,
};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::common::{
    views::{self, files, tensors},
    written::{tensor, values, write},
};

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(path)
}

/// The value of a golden JSON file.
fn document(path: &str) -> Value {
    json::parse(&fs::read(golden(path)).unwrap()).unwrap()
}

fn open(args: &ViewArgs, source: &Path) -> Result<(Arc<dyn Source>, Options), Failure> {
    args.open(source.to_str().unwrap(), &Caches { hub: vec![] })
}

fn planned(args: &ViewArgs, source: &Path) -> Result<(Plan, Options), Failure> {
    let (source, options) = open(args, source)?;
    Ok((plan::build(source.as_ref(), &options)?, options))
}

fn shown(args: &ViewArgs, source: &Path) -> Arc<View> {
    let (source, options) = open(args, source).unwrap();
    views::view(source, &options).unwrap()
}

fn why(result: Result<impl Sized, Failure>) -> String {
    result.err().expect("it is refused").line().unwrap().to_owned()
}

/// Everything that the bytes of a view are a function of.
fn digests(plan: &Plan) -> BTreeMap<String, [u8; 32]> {
    let identify = |file: quantfs::source::FileId| *blake3::hash(&file.0.to_le_bytes()).as_bytes();
    plan.files.iter().map(|file| (file.path.clone(), plan.digest(file, &identify))).collect()
}

/// Writes a set of bf16 weights.
fn set(path: &Path, shapes: &[(&str, &[usize])]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let bytes = |n: usize| values(n as u64, n).iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect();
    let made: Vec<_> = shapes
        .iter()
        .map(|(name, shape)| tensor(name, quantfs::tensor::Dtype::BF16, shape, bytes(shape.iter().product())))
        .collect();
    write(path, &made, 8);
}

/// A pipeline of three components.
fn pipeline() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let at = |path: &str| dir.path().join(path);
    set(
        &at("transformer/diffusion_pytorch_model.safetensors"),
        &[
            ("blocks.0.attn.to_q.weight", &[128, 128]),
            ("blocks.0.attn.to_k.weight", &[128, 128]),
            ("blocks.1.attn.to_q.weight", &[128, 128]),
            ("norm.weight", &[128]),
        ],
    );
    fs::write(at("transformer/config.json"), r#"{"_class_name": "SomeTransformer"}"#).unwrap();
    set(
        &at("text_encoder/model.safetensors"),
        &[("model.embed_tokens.weight", &[64, 128]), ("model.layers.0.mlp.up_proj.weight", &[256, 128])],
    );
    fs::write(at("text_encoder/config.json"), r#"{"model_type": "strange"}"#).unwrap();
    set(&at("vae/diffusion_pytorch_model.safetensors"), &[("decoder.mid.attn.q.weight", &[64, 64])]);
    fs::write(at("model_index.json"), "{}").unwrap();
    fs::write(at("vae/diffusion_pytorch_model.bin"), "a twin").unwrap();
    dir
}

/// A file of a recipe beside nothing.
fn recipe_of(text: &str) -> (TempDir, ViewArgs) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.toml");
    fs::write(&path, text).unwrap();
    let args = ViewArgs { recipe: Some(path.to_str().unwrap().to_owned()), ..Default::default() };
    (dir, args)
}

fn row<'p>(plan: &'p Plan, component: &str, name: &str) -> &'p plan::Row {
    plan.rows.iter().find(|row| row.component == component && row.name == name).unwrap()
}

#[test]
fn mistakes_are_named_with_their_lines() {
    let cases = [
        ("spec = \"4bit\"\nspek = 1\n", 2, "spek"),
        ("\n\nspec = \"9bit\"\n", 3, "9bit"),
        ("spec = 4\n", 1, "invalid type"),
        ("spec = \"4bit\"\n[[rules]]\npattern = \"a\"\nspec = \"9bit\"\n", 4, "9bit"),
        ("[[rules]]\npattern = \"a{\"\nspec = \"8bit\"\n", 2, "a{"),
        ("[[rules]]\npattern = \"a\"\n", 1, "spec"),
        ("[[rules]]\npattern = \"a\"\nspec = \"8bit\"\nwhy = \"x\"\n", 4, "why"),
        ("[components.t]\nspec = \"mlx-99\"\n", 2, "99"),
        ("[components.t]\n", 1, "neither a spec nor rules"),
        ("[components.t]\nspec = \"8bit\"\nformat = \"ct\"\n", 3, "format"),
        ("dtype = \"int8\"\n", 1, "int8"),
        ("shard_size = \"5 parsecs\"\n", 1, "parsecs"),
        ("predicate = \"mixed_9\"\n", 1, "mixed_9"),
        ("renames = [\n  \"a\",\n]\n", 2, "a"),
        ("spec = \"4bit\"\nbits = 8\n", 1, "contradicts"),
        ("spec = \"4bit\n", 1, ""),
        ("bits = 4\nbits = 8\n", 2, "duplicate"),
    ];
    for (text, line, word) in cases {
        let (dir, args) = recipe_of(text);
        let said = why(args.with_recipe().map_err(Failure::from));
        let path = dir.path().join("r.toml");
        let start = format!("recipe {}: line {line}: ", path.display());
        assert!(said.starts_with(&start) && said[start.len()..].contains(word), "{text:?}: {said}");
        assert!(!said.contains('\n'), "{said}");
    }
    let nowhere = ViewArgs { recipe: Some("/nowhere/x.toml".into()), ..Default::default() };
    let said = why(nowhere.with_recipe().map_err(Failure::from));
    assert!(said.contains("/nowhere/x.toml") && said.contains("mixed_3_6"), "{said}");
}

#[test]
fn flags_that_contradict_a_recipe_are_refused() {
    let text = "spec = \"mlx-8bit-g32\"\ndtype = \"bf16\"\nshard_size = \"1GB\"\nsplit = false\n";
    let (_dir, args) = recipe_of(text);
    let agreeing = ViewArgs {
        spec: Some("8bit-g32".into()),
        dtype: Some("bfloat16".into()),
        shard_size: Some("1000MB".into()),
        bits: Some(8),
        ..args.clone()
    };
    let options = agreeing.options().unwrap();
    assert_eq!((options.spec.to_string(), options.shard_size), ("mlx-8bit-g32".to_owned(), Some(1_000_000_000)));
    for (contrary, line) in [
        (ViewArgs { spec: Some("4bit".into()), ..args.clone() }, 1),
        (ViewArgs { bits: Some(4), ..args.clone() }, 1),
        (ViewArgs { dtype: Some("float32".into()), ..args.clone() }, 2),
        (ViewArgs { shard_size: Some("source".into()), ..args.clone() }, 3),
        (ViewArgs { split: true, ..args.clone() }, 4),
    ] {
        let said = why(contrary.options().map_err(Failure::from));
        assert!(said.contains(&format!("line {line}: ")) && said.contains("contradicts"), "{said}");
    }
    let (_open, open) = recipe_of("format = \"ct\"\n");
    let filled = ViewArgs { bits: Some(8), ..open }.options().unwrap();
    assert_eq!(filled.spec.to_string(), "ct-8bit-g128");
}

#[test]
fn typed_rules_go_before_those_of_a_recipe() {
    let dir = pipeline();
    let text = "[[rules]]\npattern = \"transformer/*to_q\"\nspec = \"8bit\"\n";
    let (_dir, args) = recipe_of(text);
    let one = ViewArgs { rules: vec!["*blocks.0.attn.to_q=2bit".into()], ..args.clone() };
    let (plan, _) = planned(&one, dir.path()).unwrap();
    assert_eq!(row(&plan, "transformer", "blocks.0.attn.to_q.weight").becomes, "mlx-2bit-g64");
    assert_eq!(row(&plan, "transformer", "blocks.1.attn.to_q.weight").becomes, "mlx-8bit-g64");
    let all = ViewArgs { rules: vec!["*to_q=2bit".into()], ..args };
    let said = why(planned(&all, dir.path()));
    assert!(said.contains("never takes effect"), "a recipe's rule does not vanish in silence: {said}");
}

#[test]
fn a_printed_recipe_asks_for_the_same_view() {
    let dir = pipeline();
    let (_recipe, components) = recipe_of(
        "spec = \"mlx-8bit-g32\"\nshow = [\"*.bin\"]\n[[rules]]\npattern = \"text_encoder/*\"\nspec = \"g64\"\n\
         [components.transformer]\nspec = \"bnb-nf4\"\n[[components.transformer.rules]]\npattern = \"*to_k\"\nspec = \"source\"\n\
         [components.vae]\nspec = \"source\"\n",
    );
    let args = |spec: &str| ViewArgs { spec: Some(spec.into()), ..Default::default() };
    let with_more = ViewArgs {
        rules: vec!["*{embed,x}_tokens=2bit".into(), "*.0.attn.to_q=source".into()],
        dtype: Some("f16".into()),
        shard_size: Some("40kB".into()),
        renames: vec!["blocks.*=layers.*".into()],
        ..args("4bit-g128")
    };
    for asked in [args("4bit"), args("dense-ct-4bit"), args("ct-3bit-g32-asym"), with_more, components] {
        let (plan, options) = planned(&asked, dir.path()).unwrap();
        let text = recipe::render(&options).unwrap();
        let (_again, read) = recipe_of(&text);
        let (same, read) = planned(&read, dir.path()).unwrap();
        assert_eq!(digests(&plan), digests(&same), "{text}");
        assert_eq!(recipe::render(&read).unwrap(), text, "printed twice");
    }
}

#[test]
fn components_have_specs_and_formats_of_their_own() {
    let dir = pipeline();
    let (_recipe, args) = recipe_of(
        "spec = \"mlx-4bit-g64\"\n[components.transformer]\nspec = \"bnb-nf4\"\n\
         [components.text_encoder]\nspec = \"8bit-g32\"\n[[components.text_encoder.rules]]\npattern = \"*up_proj\"\nspec = \"3bit\"\n\
         [components.vae]\nspec = \"source\"\n",
    );
    let view = shown(&args, dir.path());
    let becomes = |component, name| row(view.plan(), component, name).becomes.clone();
    assert_eq!(becomes("transformer", "blocks.0.attn.to_q.weight"), "bnb-nf4");
    assert_eq!(becomes("text_encoder", "model.embed_tokens.weight"), "mlx-8bit-g32");
    assert_eq!(becomes("text_encoder", "model.layers.0.mlp.up_proj.weight"), "mlx-3bit-g32", "rules inherit");
    assert_eq!(becomes("vae", "decoder.mid.attn.q.weight"), "kept");
    // Each component is what a view of its own spec shows of it.
    let all = files(&view);
    let own = [("transformer/", "bnb-nf4"), ("vae/", "source")];
    for (prefix, spec) in own {
        let alone = files(&views::view_of(dir.path(), spec, &[]).unwrap());
        let mut count = 0;
        for (path, bytes) in alone.iter().filter(|(path, _)| path.starts_with(prefix)) {
            assert!(all[path] == *bytes, "{path}");
            count += 1;
        }
        assert!(count > 0, "{prefix}");
    }
    let manifest: Value = serde_json::from_slice(&all["quantization.json"]).unwrap();
    let formats: Vec<&Value> = manifest["layers"].as_array().unwrap().iter().map(|layer| &layer["format"]).collect();
    assert!(formats.contains(&&json!("bnb")) && formats.contains(&&json!("mlx")), "{formats:?}");
    let again: ViewArgs = serde_json::from_value(manifest["options"].clone()).unwrap();
    assert_eq!(digests(shown(&again, dir.path()).plan()), digests(view.plan()), "the manifest says it all");
}

#[test]
fn a_component_that_is_not_there_is_an_error() {
    let dir = pipeline();
    let (_a, args) = recipe_of("[components.unet]\nspec = \"8bit\"\n");
    let said = why(planned(&args, dir.path()));
    assert!(said.contains("unet") && said.contains("text_encoder, transformer, vae"), "{said}");
    let (_b, args) = recipe_of("[components.transformer]\nspec = \"onnx-4bit\"\n");
    assert!(why(planned(&args, dir.path())).contains("component transformer: onnx"));
    let (_c, args) =
        recipe_of("[[rules]]\npattern = \"*\"\nspec = \"6bit\"\n[components.transformer]\nspec = \"bnb-nf4\"\n");
    let said = why(planned(&args, dir.path()));
    assert!(said.contains("rule `*=6bit`") && said.contains("bnb"), "a rule that a component's format has not: {said}");
    let (_d, args) = recipe_of(
        "[components.vae]\nspec = \"source\"\n[[components.vae.rules]]\npattern = \"nothing\"\nspec = \"source\"\n",
    );
    assert!(why(planned(&args, dir.path())).contains("matches no tensor"));
}

/// The tensors of a case, as their headers state them.
fn tensors_of(case: &Value) -> Vec<TensorInfo> {
    let of = |t: &Value| {
        let shape = t[1].as_array().unwrap().iter().map(|n| usize::try_from(n.as_u64().unwrap()).unwrap());
        let dtype = serde_json::from_value(json!(t[2].as_str().unwrap_or("BF16"))).unwrap();
        TensorInfo { name: t[0].as_str().unwrap().to_owned(), dtype, shape: shape.collect() }
    };
    case["tensors"].as_array().unwrap().iter().map(of).collect()
}

/// What a recipe makes of the modules of a case: name and bits, in the order of the walk.
fn mixed(case: &Value, name: &str, spec: &str) -> Result<Vec<(String, u64)>, String> {
    let infos = tensors_of(case);
    let component = Component {
        dir: "",
        set: "model",
        tensors: &infos,
        config: Some(&case["config"]),
        generation_config: None,
        dtype: None,
        mixed: None,
        graph: None,
    };
    let scheme = views::options(spec, &[]).unwrap().spec.bind().unwrap().unwrap();
    let arranged = MLX.arrange(&component).unwrap();
    let recipe = MLX.mixed(&component, name, true, scheme.as_ref(), &arranged.tensors)?;
    let component = Component { mixed: Some(&recipe), ..component };
    let mut out = vec![];
    for tensor in &arranged.tensors {
        match MLX.choose(&component, tensor, scheme.as_ref()) {
            Choice::Other { entry, .. } => {
                out.push((tensor.module().unwrap().to_owned(), entry["bits"].as_u64().unwrap()));
            }
            Choice::Default => panic!("{} is left to the view", tensor.info.name),
            Choice::Keep(_) | Choice::Never(_) => {}
        }
    }
    Ok(out)
}

#[test]
fn every_family_gets_what_mlx_lm_gives_it() {
    let told = document("recipes/families.json");
    let mut cases = 0;
    for (family, told) in told["families"].as_object().unwrap() {
        let models = document(&format!("dialect/{family}.json"));
        for (model, told) in models["cases"].as_array().unwrap().iter().zip(told.as_array().unwrap()) {
            cases += 1;
            let got = mixed(model, "mixed_3_6", "4bit-g32");
            if let Some(error) = told.get("error") {
                assert!(error.as_str().unwrap().contains("expected keys"));
                assert!(got.as_ref().is_err_and(|why| why.contains("down_proj")), "{family}: {got:?}");
                continue;
            }
            let got = got.unwrap_or_else(|why| panic!("{family}: {why}"));
            for (bits, key) in [(6, "high"), (3, "low")] {
                let mut names: Vec<&str> = got.iter().filter(|m| m.1 == bits).map(|m| m.0.as_str()).collect();
                let mut expected: Vec<&str> =
                    told[key].as_array().unwrap().iter().map(|n| n.as_str().unwrap()).collect();
                names.sort_unstable();
                expected.sort_unstable();
                assert_eq!(names, expected, "{family}: {bits} bits");
            }
        }
    }
    assert!(cases > 100, "{cases}");
}

#[test]
fn deep_models_are_recorded_as_mlx_lm_records_them() {
    for case in document("recipes/deep.json")["cases"].as_array().unwrap() {
        let dir = tempfile::tempdir().unwrap();
        let infos = tensors_of(case);
        let shapes: Vec<(&str, &[usize])> = infos.iter().map(|i| (i.name.as_str(), i.shape.as_slice())).collect();
        set(&dir.path().join("model.safetensors"), &shapes);
        fs::write(dir.path().join("config.json"), case["config"].to_string()).unwrap();
        for run in case["runs"].as_array().unwrap() {
            let (name, group) = (run[0].as_str().unwrap(), run[1].as_u64());
            let group_size = group.map(|g| usize::try_from(g).unwrap());
            let args = ViewArgs { recipe: Some(name.to_owned()), group_size, ..Default::default() };
            let (plan, options) = planned(&args, dir.path()).unwrap();
            let config = config_of(&plan);
            // As text: the order of modules counts, too.
            assert_eq!(
                config["quantization"].to_string(),
                run[2].to_string(),
                "{name} {}",
                case["config"]["model_type"]
            );
            let (_again, read) = recipe_of(&recipe::render(&options).unwrap());
            assert_eq!(digests(&planned(&read, dir.path()).unwrap().0), digests(&plan), "{name}");
        }
    }
}

fn config_of(plan: &Plan) -> Map<String, Value> {
    let file = plan.files.iter().find(|f| f.path == "config.json").unwrap();
    let [plan::Extent { content: plan::Content::Bytes(bytes), .. }] = file.extents.as_slice() else {
        panic!("config.json is known when the plan is made")
    };
    json::parse(bytes).unwrap().as_object().unwrap().clone()
}

#[test]
fn a_recipe_by_name_gives_the_bytes_that_mlx_lm_wrote() {
    let args = ViewArgs { recipe: Some("mixed_3_6".into()), group_size: Some(64), ..Default::default() };
    let got = files(&shown(&args, &golden("mlx_lm/llama_src")));
    let wrote = |name: &str| fs::read(golden("mlx_lm/llama_mixed_3_6").join(name)).unwrap();
    assert_eq!(String::from_utf8_lossy(&got["config.json"]), String::from_utf8_lossy(&wrote("config.json")));
    let weights = "model.safetensors";
    assert_eq!(tensors(&got[weights]), tensors(&wrote(weights)));
}

#[test]
fn recipes_by_name_are_for_what_mlx_lm_has_them() {
    let named =
        |name: &str, spec: &str| ViewArgs { recipe: Some(name.into()), spec: Some(spec.into()), ..Default::default() };
    let llama = golden("mlx_lm/llama_src");
    assert!(why(planned(&named("mixed_3_6", "mxfp4"), &llama)).contains("affine"));
    assert!(why(planned(&named("mixed_3_6", "ct-4bit"), &llama)).contains("mlx_lm"));
    assert!(why(planned(&named("mixed_3_6", "4bit"), pipeline().path())).contains("down_proj"));
    let kept = ViewArgs { rules: vec!["lm_head=source".into()], ..named("mixed_3_6", "4bit") };
    let (plan, _) = planned(&kept, &llama).unwrap();
    assert_eq!(row(&plan, "", "lm_head.weight").becomes, "kept", "rules go before");
    assert_eq!(row(&plan, "", "model.embed_tokens.weight").becomes, "mlx-3bit-g64");
}
