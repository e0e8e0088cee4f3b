//! Export, audit, comparison and description of whole directories.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use quantfs::{
    bulk::{self, Silent},
    container::safetensors,
    tensor::{Dtype, TensorInfo},
    view::View,
};

use crate::common::views;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/mlx_lm").join(name)
}

fn view(path: &Path, spec: &str) -> Arc<View> {
    views::view_of(path, spec, &[]).unwrap()
}

/// A copy of what mlx_lm wrote, to be spoilt.
fn copy(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(golden(name)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    dir
}

/// Overwrites the first bytes of a tensor.
fn overwrite(dir: &Path, tensor: &str, bytes: &[u8]) {
    let path = dir.join("model.safetensors");
    let mut file = fs::read(&path).unwrap();
    let header = crate::common::headers::header(&file).unwrap();
    let at = header.tensors.iter().find(|t| t.info.name == tensor).unwrap().range.start;
    let at = usize::try_from(at).unwrap();
    file[at..at + bytes.len()].copy_from_slice(bytes);
    fs::write(path, file).unwrap();
}

#[test]
fn what_mlx_lm_wrote_is_sound() {
    for name in ["llama_q4_g64", "llama_mxfp4", "qwen3_moe_q4_g64", "gemma2_q4_g64"] {
        let audit = bulk::audit(&golden(name), &Silent).unwrap();
        assert!(audit.is_sound() && audit.matched > 10 && audit.scales > 0, "{name}: {audit:?}");
        assert!(audit.extra.is_empty());
    }
}

#[test]
fn an_audit_sees_what_is_wrong() {
    let index = "model.safetensors.index.json";
    let edited = |dir: &Path, from: &str, to: &str| {
        let text = fs::read_to_string(dir.join(index)).unwrap();
        assert!(text.contains(from));
        fs::write(dir.join(index), text.replace(from, to)).unwrap();
    };
    let found = |spoil: &dyn Fn(&Path)| {
        let dir = copy("llama_q4_g64");
        spoil(dir.path());
        let audit = bulk::audit(dir.path(), &Silent).unwrap();
        assert!(!audit.is_sound(), "{audit:?}");
        [audit.missing, audit.faults].concat().join("; ")
    };
    let missing = found(&|d| edited(d, "\"lm_head.scales\"", "\"lm_head.ghost\""));
    assert!(missing.contains("lm_head.ghost"), "{missing}");
    let nan = found(&|d| overwrite(d, "model.layers.1.mlp.up_proj.scales", &[0xC0, 0x7F]));
    assert!(nan.contains("model.layers.1.mlp.up_proj.scales") && nan.contains("not finite"), "{nan}");
    let cut = found(&|d| {
        let file = fs::File::options().write(true).open(d.join("model.safetensors")).unwrap();
        file.set_len(9000).unwrap();
    });
    assert!(cut.contains("model.safetensors"), "{cut}");
    let moved =
        found(&|d| edited(d, "\"lm_head.scales\": \"model.safetensors\"", "\"lm_head.scales\": \"other.safetensors\""));
    assert!(moved.contains("lm_head.scales") && moved.contains("other.safetensors"), "{moved}");
    let bits = found(&|d| {
        let path = d.join("config.json");
        fs::write(&path, fs::read_to_string(&path).unwrap().replace("\"bits\": 4", "\"bits\": 8")).unwrap();
    });
    assert!(bits.contains("config.json: says 8 bits in groups of 64"), "{bits}");
    let entry = |d: &Path, entry: &str| {
        let path = d.join("config.json");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(
            &path,
            text.replacen("\"mode\": \"affine\"", &format!("\"mode\": \"affine\", \"lm_head\": {entry}"), 1),
        )
        .unwrap();
    };
    let own = found(&|d| entry(d, r#"{"group_size": null, "bits": 8}"#));
    assert!(own.contains("says 8 bits in groups of 64, but a group of lm_head"), "{own}");
    let fits = copy("llama_q4_g64");
    entry(fits.path(), r#"{"group_size": null, "bits": 4}"#);
    assert!(bulk::audit(fits.path(), &Silent).unwrap().is_sound(), "a size that a recipe leaves null is the default's");
    let broken = found(&|d| fs::write(d.join("config.json"), "{").unwrap());
    assert!(broken.contains("config.json"), "{broken}");
    let unfinished = found(&|d| fs::write(d.join("model.safetensors.quantfs-partial"), "").unwrap());
    assert!(unfinished.contains("was not finished"), "{unfinished}");
    let shard = found(&|d| {
        fs::remove_file(d.join(index)).unwrap();
        fs::rename(d.join("model.safetensors"), d.join("model-00001-of-00002.safetensors")).unwrap();
    });
    assert!(shard.contains("model-00002-of-00002.safetensors: is missing"), "{shard}");
    let empty = tempfile::tempdir().unwrap();
    assert!(bulk::audit(empty.path(), &Silent).unwrap_err().to_string().contains("no .safetensors"));
}

#[test]
fn an_audit_looks_at_every_kind_of_scale_and_at_all_parts() {
    let dir = tempfile::tempdir().unwrap();
    for (spec, nan) in
        [("4bit", vec![0xC0u8, 0x7F]), ("mxfp4", vec![0xFF]), ("mxfp8", vec![0xFF]), ("nvfp4", vec![0x7F])]
    {
        let out = dir.path().join(spec);
        bulk::export(&view(&golden("llama_src"), spec), &out, &Silent).unwrap();
        let audit = bulk::audit(&out, &Silent).unwrap();
        assert!(audit.is_sound() && audit.quantized > 10, "{spec}: {audit:?}");
        overwrite(&out, "model.layers.0.mlp.up_proj.scales", &nan);
        let audit = bulk::audit(&out, &Silent).unwrap();
        assert!(
            audit.faults.iter().any(|f| f.contains("up_proj.scales") && f.contains("not finite")),
            "{spec}: {audit:?}"
        );
    }
    // Scales with fewer rows than the codes, and no biases.
    let shapes = |scales: &[usize]| {
        let at = tempfile::tempdir().unwrap();
        let info = |name: &str, dtype, shape: &[usize]| TensorInfo { name: name.into(), dtype, shape: shape.to_vec() };
        let infos = [info("a.weight", Dtype::U32, &[4, 8]), info("a.scales", Dtype::BF16, scales)];
        let made = safetensors::render(&infos, None, 8).unwrap();
        let mut bytes = made.preamble;
        bytes.resize(usize::try_from(made.len).unwrap(), 0);
        fs::write(at.path().join("model.safetensors"), bytes).unwrap();
        bulk::audit(at.path(), &Silent).unwrap()
    };
    assert!(shapes(&[2, 1]).faults.iter().any(|f| f.contains("differ in rows")));
    assert_eq!(shapes(&[4, 1]).missing, ["a.biases"]);
}

#[test]
fn an_audit_ends() {
    let dir = copy("llama_q4_g64");
    for name in ["one", "two"] {
        std::os::unix::fs::symlink(".", dir.path().join(name)).unwrap();
    }
    rustix::fs::mknodat(
        rustix::fs::CWD,
        dir.path().join("pipe.safetensors"),
        rustix::fs::FileType::Fifo,
        0o600.into(),
        0,
    )
    .unwrap();
    let audit = bulk::audit(dir.path(), &Silent).unwrap();
    assert!(audit.faults.iter().any(|f| f.contains("pipe.safetensors")), "{audit:?}");
}

#[test]
fn components_may_be_nested() {
    let dir = tempfile::tempdir().unwrap();
    let nested = dir.path().join("source/a.b/c");
    fs::create_dir_all(&nested).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(golden("llama_src").join(name), nested.join(name)).unwrap();
    }
    let out = dir.path().join("out");
    bulk::export(&view(&dir.path().join("source"), "4bit"), &out, &Silent).unwrap();
    let audit = bulk::audit(&out, &Silent).unwrap();
    assert!(audit.is_sound() && audit.quantized > 10, "{audit:?}");
}

#[test]
fn an_audit_holds_the_manifest_against_the_shapes() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    bulk::export(&view(&golden("llama_src"), "4bit"), &out, &Silent).unwrap();
    assert!(bulk::audit(&out, &Silent).unwrap().is_sound());
    let path = out.join("quantization.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replacen("\"bits\" : 4", "\"bits\" : 8", 2)).unwrap();
    let audit = bulk::audit(&out, &Silent).unwrap();
    assert!(audit.faults.iter().any(|f| f.contains("codes of 8 bits")), "{audit:?}");
}

#[test]
fn a_comparison_finds_every_difference() {
    let dir = tempfile::tempdir().unwrap();
    let (out, view) = (dir.path().join("out"), view(&golden("llama_src"), "4bit"));
    bulk::export(&view, &out, &Silent).unwrap();
    assert!(bulk::compare(&view, &out, &Silent).unwrap().is_equal());
    let shard = out.join("model.safetensors");
    let mut bytes = fs::read(&shard).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&shard, &bytes).unwrap();
    fs::remove_file(out.join("config.json")).unwrap();
    fs::write(out.join("more.txt"), "x").unwrap();
    let found = bulk::compare(&view, &out, &Silent).unwrap();
    assert!(!found.is_equal());
    assert_eq!((found.missing, found.extra), (vec!["config.json".to_owned()], vec!["more.txt".to_owned()]));
    assert_eq!(
        found.different.iter().map(|d| (d.path.as_str(), d.offset)).collect::<Vec<_>>(),
        [("model.safetensors", last as u64)]
    );
    fs::write(&shard, &bytes[..last]).unwrap();
    let found = bulk::compare(&view, &out, &Silent).unwrap();
    assert_eq!(found.different[0].lengths, (last as u64, last as u64 + 1));
}

#[test]
fn tensors_are_compared_wherever_they_lie() {
    let view = view(&golden("llama_src"), "4bit");
    let theirs = bulk::compare_tensors(&view, &golden("llama_q4_g64"), &Silent).unwrap();
    assert!(theirs.is_equal() && theirs.equal > 40, "{theirs:?}");
    let dir = copy("llama_q4_g64");
    overwrite(dir.path(), "lm_head.weight", &[0; 8]);
    let spoilt = bulk::compare_tensors(&view, dir.path(), &Silent).unwrap();
    assert!(!spoilt.is_equal() && spoilt.different.len() == 1, "{spoilt:?}");
    assert!(spoilt.different[0].starts_with("lm_head.weight: byte"), "{spoilt:?}");
    let other = bulk::compare_tensors(&view, &golden("llama_mxfp4"), &Silent).unwrap();
    assert!(other.missing.iter().any(|n| n == "lm_head.biases") && !other.different.is_empty(), "{other:?}");
}

#[test]
fn an_export_is_taken_up_where_it_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let (out, view4) = (dir.path().join("out"), view(&golden("llama_src"), "4bit"));
    let total: u64 = view4.plan().files.iter().map(|f| f.len).sum();
    assert_eq!(bulk::export(&view4, &out, &Silent).unwrap(), total);
    assert_eq!(bulk::export(&view4, &out, &Silent).unwrap(), 0, "it is there already");
    let other = bulk::export(&view(&golden("llama_src"), "8bit"), &out, &Silent).unwrap_err().to_string();
    assert!(other.contains("not empty"), "{other}");
    // As a kill leaves it: the mark is there, one file is partial and one is whole.
    let again = dir.path().join("again");
    struct Stops(PathBuf);
    impl bulk::Progress for Stops {
        fn begin(&self, _: u64) {}
        fn advance(&self, _: u64) {}
        fn note(&self, what: &str) {
            // The directory cannot be written to from the second file on.
            if what != "config.json" {
                fs::create_dir_all(self.0.join(format!("{what}.quantfs-partial"))).unwrap();
            }
        }
    }
    assert!(bulk::export(&view4, &again, &Stops(again.clone())).is_err());
    assert!(again.join("config.json").exists() && !again.join("model.safetensors").exists());
    fs::remove_dir(again.join("model.safetensors.quantfs-partial")).unwrap();
    let refused = bulk::export(&view(&golden("llama_src"), "8bit"), &again, &Silent).unwrap_err().to_string();
    assert!(refused.contains("another view") && refused.contains("mlx-4bit-g64"), "{refused}");
    let config = fs::metadata(again.join("config.json")).unwrap().len();
    assert_eq!(bulk::export(&view4, &again, &Silent).unwrap(), total - config);
    assert!(bulk::compare(&view4, &again, &Silent).unwrap().is_equal());
    assert!(bulk::compare(&view4, &again, &Silent).unwrap().extra.is_empty(), "no mark and no partial file is left");
}

#[test]
fn a_quantized_directory_is_described() {
    let described = |name: &str| -> BTreeMap<String, (String, Vec<usize>)> {
        bulk::describe(&golden(name)).unwrap().into_iter().map(|r| (r.name, (r.becomes, r.shape))).collect()
    };
    let moe = described("qwen3_moe_mxfp4");
    assert_eq!(
        moe["model.layers.0.mlp.gate.weight"],
        ("affine 8bit g64".into(), vec![4, 64]),
        "the router's own entry"
    );
    assert_eq!(moe["model.layers.0.mlp.switch_mlp.up_proj.weight"], ("mxfp4 4bit g32".into(), vec![4, 64, 64]));
    assert_eq!(moe["model.norm.weight"].0, "dense");
    assert!(!moe.keys().any(|name| name.ends_with(".scales") || name.ends_with(".biases")));
    assert_eq!(described("llama_q4_g64")["lm_head.weight"].0, "affine 4bit g64");
}

/// Names, lengths and times of two dense views are the same; their bytes are not.
#[test]
fn an_export_of_another_view_is_not_taken_for_this_one() {
    let dir = tempfile::tempdir().unwrap();
    let source = golden("llama_src");
    let target = dir.path().join("out");
    assert!(bulk::export(&view(&source, "dense-4bit"), &target, &Silent).unwrap() > 0);
    assert_eq!(bulk::export(&view(&source, "dense-4bit"), &target, &Silent).unwrap(), 0, "all there already");
    let refused = bulk::export(&view(&source, "dense-8bit"), &target, &Silent).unwrap_err().to_string();
    assert!(refused.contains("not empty"), "{refused}");
}

/// Codes in bytes have two readings; the manifest tells, wherever no config does.
#[test]
fn what_a_manifest_alone_says_is_believed_by_an_audit() {
    let dir = tempfile::tempdir().unwrap();
    for spec in ["onnx-4bit", "onnx-8bit-g16-asym", "sym-int8"] {
        let target = dir.path().join(spec);
        bulk::export(&view(&golden("llama_src"), spec), &target, &Silent).unwrap();
        let audit = bulk::audit(&target, &Silent).unwrap();
        assert!(audit.is_sound() && audit.quantized > 10, "{spec}: {audit:?}");
    }
}
