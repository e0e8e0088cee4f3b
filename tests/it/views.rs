//! Several views in one mount, and another configuration in place of the old one.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    process::Output,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Signal, kill_process};
use serde_json::Value;

use crate::{
    common::written,
    daemon::{Model, quantfs, text, write_tensors},
    mount::can_mount,
};

const SPECS: [&str; 8] = [
    "mlx-4bit-g64",
    "mlx-8bit-g32",
    "mlx-mxfp4",
    "ct-4bit-g128",
    "ct-nvfp4",
    "gptq-4bit-g128",
    "bnb-nf4",
    "dense-mlx-3bit-g64",
];

impl Model {
    /// A model with a linear layer, which every format stores.
    fn with_a_layer() -> Self {
        let model = Self::new();
        let (rows, cols) = (512, 1024);
        let layer = ("model.layers.0.self_attn.q_proj.weight", &[cols, cols][..]);
        write_tensors(
            &model.source(),
            &[("model.embed_tokens.weight", &[rows, cols]), layer, ("model.norm.weight", &[cols])],
        );
        model
    }

    fn remount(&self, more: &[&str]) -> Output {
        quantfs(&["remount"]).arg(self.mnt()).args(more).output().unwrap()
    }

    fn remounted(&self, more: &[&str]) {
        let out = self.remount(more);
        assert!(out.status.success(), "{}", text(&out));
    }

    /// What `quantfs export` writes of the model.
    fn exported(&self, spec: &str) -> BTreeMap<PathBuf, Vec<u8>> {
        let dir = self.dir.path().join(format!("export-{spec}"));
        let out = quantfs(&["export"]).arg(self.source()).arg(&dir).args(["--spec", spec]).output().unwrap();
        assert!(out.status.success(), "{}", text(&out));
        files(&dir)
    }
}

/// The bytes of all files below a directory, by their path in it.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut left = vec![dir.to_owned()];
    while let Some(next) = left.pop() {
        for entry in fs::read_dir(next).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                left.push(entry.path());
            } else {
                let name = entry.path().strip_prefix(dir).unwrap().to_owned();
                found.insert(name, fs::read(entry.path()).unwrap());
            }
        }
    }
    found
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn eight_views_at_once_have_the_bytes_of_eight_exports() {
    if !can_mount() {
        return;
    }
    let model = Model::with_a_layer();
    let views: Vec<String> = SPECS.iter().enumerate().map(|(i, spec)| format!("--view=v{i}={spec}")).collect();
    let views: Vec<&str> = views.iter().map(String::as_str).collect();
    model.mounted(&[&views[..], &["--cache-size", "8MiB"]].concat());
    assert_eq!(names(&model.mnt()), ["v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7"]);
    let expected: Vec<_> = SPECS.iter().map(|spec| model.exported(spec)).collect();
    thread::scope(|scope| {
        for (i, expected) in expected.iter().enumerate() {
            let dir = model.mnt().join(format!("v{i}"));
            scope.spawn(move || assert!(files(&dir) == *expected, "{}", SPECS[i]));
        }
    });
    for (i, spec) in SPECS.iter().enumerate() {
        let plan: Value =
            serde_json::from_slice(&fs::read(model.mnt().join(format!("v{i}/.quantfs/plan.json"))).unwrap()).unwrap();
        assert_eq!(plan["spec"], *spec, "each view tells of itself");
    }
    let status = model.status();
    assert_eq!(status["views"].as_array().map(Vec::len), Some(8));
    assert_eq!(status["views"][3]["spec"], "ct-4bit-g128");
    let row = quantfs(&["status"]).arg(model.mnt()).output().unwrap();
    assert!(text(&row).contains("8 views"), "{}", text(&row));
}

#[test]
fn any_spec_is_a_directory_once_it_is_looked_up() {
    if !can_mount() {
        return;
    }
    let model = Model::with_a_layer();
    model.mounted(&["--any-view", "--view", "mine=3bit"]);
    let mnt = model.mnt();
    assert_eq!(names(&mnt), ["mine"]);
    for bad in ["9bit", "4bit-", "mlx-4bit-g63", "sub", "model.safetensors", "4bit-g64-g32", "mlx--4bit", "MLX-4BIT"] {
        let error = fs::metadata(mnt.join(bad)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound, "{bad}");
    }
    // Another spelling is a link, and leads on before anybody used the view.
    assert_eq!(fs::read_link(mnt.join("4bit")).unwrap(), Path::new("mlx-4bit-g64"));
    let link = fs::symlink_metadata(mnt.join("4bit-g64")).unwrap();
    assert!(link.file_type().is_symlink() && link.len() == 12, "{link:?}");
    assert_eq!(names(&mnt), ["mine"], "nothing was used so far");
    assert!(files(&mnt.join("4bit")) == model.exported("4bit"));
    assert!(files(&mnt.join("ct-4bit-g128")) == model.exported("ct"));
    assert_eq!(names(&mnt), ["ct-4bit-g128", "mine", "mlx-4bit-g64"]);
    let inode = |path: &str| fs::metadata(mnt.join(path)).unwrap().ino();
    assert_eq!(inode("4bit/config.json"), inode("mlx-4bit-g64/config.json"), "one view, whatever it is called");
    assert_ne!(inode("4bit/config.json"), inode("mine/config.json"));
    // `..` of a view is the root.
    assert_eq!(inode("4bit/.."), fs::metadata(&mnt).unwrap().ino());
}

/// Views beyond those that stay in memory are given up, and made anew as they were.
#[test]
fn views_that_nobody_reads_are_given_up_and_come_back() {
    if !can_mount() {
        return;
    }
    let model = Model::new();
    model.mounted(&["--any-view"]);
    let specs: Vec<String> = [2, 3, 4, 5, 6, 8]
        .iter()
        .flat_map(|bits| [32, 64, 128].map(|group| format!("mlx-{bits}bit-g{group}")))
        .collect();
    let at = |spec: &String| model.mnt().join(spec).join("model.safetensors");
    let open = File::open(at(&specs[0])).unwrap();
    let first: Vec<_> =
        specs.iter().map(|spec| (fs::read(at(spec)).unwrap(), fs::metadata(at(spec)).unwrap().ino())).collect();
    let in_memory = |status: &Value| {
        let views = status["views"].as_array().unwrap();
        assert_eq!(views.len(), specs.len());
        views.iter().filter(|view| view["in_memory"] == true).count()
    };
    // Eight, and the one with an open file.
    let count = in_memory(&model.status());
    assert!((8..=9).contains(&count), "{count}");
    let again: Vec<_> =
        specs.iter().map(|spec| (fs::read(at(spec)).unwrap(), fs::metadata(at(spec)).unwrap().ino())).collect();
    assert!(first == again, "the same bytes under the same numbers");
    let mut bytes = vec![0; first[0].0.len()];
    open.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == first[0].0);
    let bare = fs::read_dir(model.mnt().join(&specs[1])).unwrap().count();
    assert_eq!(bare, names(&model.mnt().join(&specs[17])).len());
}

#[test]
fn views_that_cannot_be_are_refused_before_anything_is_mounted() {
    let model = Model::new();
    let refused = |args: &[&str], code: i32, says: &[&str]| {
        let out = model.mount(args);
        assert_eq!(out.status.code(), Some(code), "{args:?}: {}", text(&out));
        for word in says {
            assert!(text(&out).contains(word), "{args:?}: {}", text(&out));
        }
        assert!(!model.is_mounted());
    };
    refused(&["--view", "a"], 2, &["--view a", "NAME=SPEC"]);
    refused(&["--view", "a/b=4bit"], 2, &["--view a/b=4bit", "`/`"]);
    refused(&["--view", "=4bit"], 2, &["needs a name"]);
    refused(&["--view", "a="], 2, &["needs a spec"]);
    refused(&["--view", ".quantfs=4bit"], 2, &["taken"]);
    refused(&["--view", "a=4bit", "--view", "a=8bit"], 2, &["already"]);
    refused(&["--view", "a=4bit", "--view", "b=9bit"], 2, &["--view b", "9bit"]);
    refused(&["--view", "a=4bit", "--spec", "8bit"], 2, &["--spec", "--view NAME=SPEC"]);
    refused(&["--any-view", "--spec", "8bit"], 2, &["--spec"]);
    refused(&["--any-view", "--view", "mlx-4bit-g64=8bit"], 2, &["--view mlx-4bit-g64=8bit", "another name"]);
    refused(&["--view", "a\u{1b}b=4bit"], 2, &["control"]);
    refused(&["--view", "a=4bit", "--rule", "*nothing*=8bit"], 2, &["--view a", "matches no tensor"]);
}

#[test]
fn a_remount_is_seen_by_names_and_not_by_open_files() {
    if !can_mount() {
        return;
    }
    let model = Model::new();
    model.mounted(&["--spec", "4bit"]);
    let (pid, four, eight) = (model.pid(), model.exported("4bit"), model.exported("8bit"));
    let mut open = File::open(model.weights()).unwrap();
    let mut head = vec![0; 4096];
    open.read_exact(&mut head).unwrap();
    let map = crate::mount::map(&open);
    assert!(!model.mnt().join("also").exists());
    model.remounted(&["--spec", "8bit"]);
    assert!(files(&model.mnt()) == eight);
    let whole = &four[Path::new("model.safetensors")];
    let mut rest = vec![];
    open.read_to_end(&mut rest).unwrap();
    assert!([head, rest].concat() == *whole, "an open file keeps its view");
    assert!(map[..] == whole[..], "and so does a mapping");
    // From one view to several, and back.
    model.remounted(&["--view", "also=4bit", "--any-view"]);
    assert!(files(&model.mnt().join("also")) == four);
    assert!(files(&model.mnt().join("8bit")) == eight);
    assert!(!model.weights().exists());
    let inside = File::open(model.mnt().join("also/model.safetensors")).unwrap();
    model.remounted(&["--spec", "4bit"]);
    assert!(files(&model.mnt()) == four && !model.mnt().join("also").exists());
    let mut bytes = vec![0; whole.len()];
    inside.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == *whole, "a file of a view that is gone altogether");
    assert_eq!(model.pid(), pid, "one daemon all along");
}

#[test]
fn a_remount_that_fails_changes_nothing() {
    if !can_mount() {
        return;
    }
    let model = Model::new();
    model.mounted(&["--spec", "4bit"]);
    let four = files(&model.mnt());
    for (args, says) in
        [(["--spec", "9bit"], "9bit"), (["--rule", "*none*=8bit"], "matches no tensor"), (["--lora", "/none"], "/none")]
    {
        let out = model.remount(&args);
        assert!(!out.status.success() && text(&out).contains(says), "{}", text(&out));
        assert!(text(&out).contains(model.mnt().to_str().unwrap()), "{}", text(&out));
    }
    assert!(files(&model.mnt()) == four);
    let out = quantfs(&["remount"]).arg(model.dir.path()).output().unwrap();
    assert!(!out.status.success(), "no mount of ours");
}

/// A spec alone would not tell that some weights are stored otherwise.
#[test]
fn a_mixed_view_is_told_apart() {
    if !can_mount() {
        return;
    }
    let model = Model::with_a_layer();
    model.mounted(&["--spec", "8bit"]);
    assert_eq!(model.status()["mixed"], false);
    model.remounted(&["--spec", "8bit", "--rule", "*q_proj*=4bit-g32"]);
    assert_eq!(model.status()["mixed"], true);
    let table = quantfs(&["status"]).arg(model.mnt()).output().unwrap();
    assert!(text(&table).contains("mlx-8bit-g64, mixed"), "{}", text(&table));
}

/// A daemon that is stopped is told apart from one that plans for long.
#[test]
fn a_daemon_that_does_not_answer_is_not_waited_for() {
    if !can_mount() {
        return;
    }
    let model = Model::new();
    model.mounted(&["--spec", "4bit"]);
    let pid = model.pid();
    kill_process(pid, Signal::STOP).unwrap();
    let begun = Instant::now();
    let out = model.remount(&["--spec", "8bit"]);
    kill_process(pid, Signal::CONT).unwrap();
    assert!(!out.status.success() && text(&out).contains("does not answer"), "{}", text(&out));
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert_eq!(model.status()["spec"], "mlx-4bit-g64", "nor does it once it goes on");
}

/// With no words the same is planned anew: that is how a source that changed is shown again.
#[test]
fn a_remount_without_words_follows_the_source() {
    if !can_mount() {
        return;
    }
    let model = Model::new();
    model.mounted(&["--spec", "8bit"]);
    let before = fs::read(model.weights()).unwrap();
    let path = model.source().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 3000;
    bytes[last..].iter_mut().step_by(2).for_each(|byte| *byte = byte.wrapping_add(13));
    fs::write(&path, bytes).unwrap();
    model.remounted(&[]);
    let after = fs::read(model.weights()).unwrap();
    assert!(before != after);
    assert!(after == model.exported("8bit")[Path::new("model.safetensors")]);
}

/// Readers check every byte of what they opened while the mount changes under them.
#[test]
fn no_open_file_mixes_generations() {
    if !can_mount() {
        return;
    }
    let model = Model::with_a_layer();
    model.mounted(&["--spec", "4bit", "--cache-size", "4MiB"]);
    let specs = ["4bit", "8bit", "mxfp4", "ct-int8"];
    let expected: Vec<_> = specs.iter().map(|spec| model.exported(spec)).collect();
    let rounds = 60;
    let done = AtomicBool::new(false);
    let reader = || {
        let mut checked = 0;
        while !done.load(Relaxed) {
            let mut bytes = vec![];
            File::open(model.weights()).unwrap().read_to_end(&mut bytes).unwrap();
            let known = expected.iter().any(|files| files[Path::new("model.safetensors")] == bytes);
            assert!(known, "bytes of no view");
            checked += 1;
        }
        checked
    };
    let checked: usize = thread::scope(|scope| {
        let readers = [(); 2].map(|()| scope.spawn(reader));
        for round in 1..=rounds {
            let spec = specs[round % specs.len()];
            model.remounted(&["--spec", spec]);
            let status: Value =
                serde_json::from_slice(&fs::read(model.mnt().join(".quantfs/status.json")).unwrap()).unwrap();
            assert!(status["spec"].as_str().unwrap().contains(spec), "names follow at once");
            let len = expected[round % specs.len()][Path::new("model.safetensors")].len();
            assert_eq!(fs::metadata(model.weights()).unwrap().len(), len as u64);
        }
        done.store(true, Relaxed);
        readers.into_iter().map(|reader| reader.join().unwrap()).sum()
    });
    assert!(checked > 0);
}

/// Importance is for the views whose methods weigh errors, and refused where none does or may.
#[test]
fn importance_is_for_the_views_that_have_a_use_for_it() {
    if !can_mount() {
        return;
    }
    let model = Model::with_a_layer();
    let file = model.dir.path().join("importance.safetensors");
    let columns: Vec<f32> = (0..1024u16).map(|column| f32::from(column % 9)).collect();
    written::write(&file, &[written::f32s("model.layers.0.self_attn.q_proj", &[1024], &columns)], 8);
    let recipe = model.dir.path().join("plain.toml");
    fs::write(&recipe, "spec = \"3bit\"\n").unwrap();
    let (file, of_recipe) = (file.to_str().unwrap(), format!("c=@{}", recipe.display()));
    let with = |views: &[&str]| {
        let words =
            views.iter().flat_map(|view| if *view == "any" { vec!["--any-view"] } else { vec!["--view", view] });
        words.map(str::to_owned).chain(["--importance".to_owned(), file.to_owned()]).collect::<Vec<_>>()
    };
    let weighed = model.dir.path().join("weighed");
    let args = ["--spec", "4bit-ls", "--importance", file];
    let out = quantfs(&["export"]).arg(model.source()).arg(&weighed).args(args).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    let weights = |dir: &Path| fs::read(dir.join("model.safetensors")).unwrap();
    let (weighed, unweighed) = (weights(&weighed), model.exported("4bit-ls"));
    assert!(weighed != unweighed[Path::new("model.safetensors")]);
    let refused = |out: &Output| {
        assert!(!out.status.success());
        assert!(text(out).contains("--importance") && text(out).contains("4bit-ls"), "{}", text(out));
    };
    let none = with(&["a=4bit", "b=8bit", &of_recipe]);
    let none: Vec<&str> = none.iter().map(String::as_str).collect();
    refused(&model.mount(&none));
    assert!(!model.is_mounted());
    let some = with(&["a=4bit", "b=4bit-ls", &of_recipe]);
    model.mounted(&some.iter().map(String::as_str).collect::<Vec<_>>());
    let mnt = model.mnt();
    assert!(weights(&mnt.join("b")) == weighed);
    assert!(files(&mnt.join("a")) == model.exported("4bit") && files(&mnt.join("c")) == model.exported("3bit"));
    refused(&model.remount(&none));
    assert!(weights(&mnt.join("b")) == weighed, "what was shown stays");
    let any = with(&["any", "a=8bit"]);
    model.remounted(&any.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(weights(&mnt.join("mlx-4bit-g64-ls")) == weighed, "a view that came to exist later");
    assert!(files(&mnt.join("mlx-4bit-g64")) == model.exported("4bit"));
}

/// A view may be a recipe file, which is read once: what it says by then holds, wherever the file is later.
#[test]
fn a_view_may_be_a_recipe() {
    if !can_mount() {
        return;
    }
    let model = Model::with_a_layer();
    let recipe = model.dir.path().join("mine.toml");
    fs::write(&recipe, "spec = \"8bit\"\n[[rules]]\npattern = \"*q_proj*\"\nspec = \"4bit-g32\"\n").unwrap();
    let view = format!("mine=@{}", recipe.display());
    model.mounted(&["--view", &view, "--view", "plain=8bit"]);
    fs::write(&recipe, "spec = \"2bit\"\n").unwrap();
    let asked = ["--spec", "8bit", "--rule", "*q_proj*=4bit-g32"];
    let dir = model.dir.path().join("out");
    let out = quantfs(&["export"]).arg(model.source()).arg(&dir).args(asked).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    assert!(files(&model.mnt().join("mine")) == files(&dir));
    assert!(files(&model.mnt().join("plain")) == model.exported("8bit"));
    // From another directory than the daemon's.
    let mut command = quantfs(&["remount"]);
    let done =
        command.arg(model.mnt()).args(["--view", "mine=@mine.toml"]).current_dir(model.dir.path()).output().unwrap();
    assert!(done.status.success(), "{}", text(&done));
    assert!(files(&model.mnt().join("mine")) == model.exported("2bit"));
}

/// A listing of the old root that comes after a remount must not bring its names back.
#[test]
fn a_listing_that_was_under_way_brings_no_old_names_back() {
    if !can_mount() {
        return;
    }
    let model = Model::new();
    model.mounted(&["--spec", "4bit"]);
    let len = |spec: &str| model.exported(spec)[Path::new("model.safetensors")].len() as u64;
    let lens = [len("8bit"), len("4bit")];
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let list = || {
            while !done.load(Relaxed) {
                names(&model.mnt());
            }
        };
        let listers = [(); 2].map(|()| scope.spawn(list));
        for round in 0..40 {
            let listing = fs::read_dir(model.mnt()).unwrap();
            model.remounted(&["--spec", ["8bit", "4bit"][round % 2]]);
            assert!(listing.count() > 2);
            assert_eq!(fs::metadata(model.weights()).unwrap().len(), lens[round % 2], "round {round}");
        }
        done.store(true, Relaxed);
        listers.into_iter().for_each(|lister| lister.join().unwrap());
    });
}

/// Many who come at once for a view that is not there wait for one plan, and none is turned away.
#[test]
fn a_crowd_waits_for_one_plan() {
    if !can_mount() {
        return;
    }
    let model = Model::new();
    model.mounted(&["--any-view"]);
    let path = model.mnt().join("mlx-5bit-g32/model.safetensors");
    let expected = model.exported("mlx-5bit-g32");
    thread::scope(|scope| {
        let readers: Vec<_> = (0..300).map(|_| scope.spawn(|| fs::read(&path).map(|bytes| bytes.len()))).collect();
        for reader in readers {
            assert_eq!(reader.join().unwrap().unwrap(), expected[Path::new("model.safetensors")].len());
        }
    });
}

/// A spec that the model cannot be is planned once, and absent from then on.
#[test]
fn a_view_that_cannot_be_made_is_absent() {
    if !can_mount() {
        return;
    }
    let model = Model::new();
    model.mounted(&["--any-view"]);
    // Nothing but an embedding, which these leave dense.
    for _ in 0..3 {
        let error = fs::metadata(model.mnt().join("ct-4bit-g128")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
    assert!(names(&model.mnt()).is_empty());
    assert!(fs::metadata(model.mnt().join("4bit")).is_ok());
}
