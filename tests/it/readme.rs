//! README's tables are the registry's, and its command lines are understood.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use quantfs::{cli::formats, quant::dialect::mlx::MLX};

fn readme() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap()
}

/// What stands between the comments `<!-- NAME: ... -->` and `<!-- /NAME -->`.
fn between(name: &str) -> String {
    let text = readme();
    let start = text.find(&format!("<!-- {name}")).unwrap();
    let start = start + text[start..].find("-->\n").unwrap() + 4;
    let end = start + text[start..].find(&format!("<!-- /{name} -->")).unwrap();
    text[start..end].trim().to_owned()
}

#[test]
fn the_formats_are_the_registrys() {
    assert_eq!(between("formats"), formats::markdown().trim(), "put the output of `quantfs formats --markdown` there");
}

#[test]
fn the_families_are_those_with_a_case() {
    let cases = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/dialect")).unwrap();
    let names = cases.map(|c| c.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned());
    let checked: BTreeSet<String> = names.collect();
    let listed: Vec<String> = between("families").split_whitespace().map(|w| w.trim_matches('`').to_owned()).collect();
    assert_eq!(listed, checked.iter().cloned().collect::<Vec<_>>(), "put the names of tests/golden/dialect there");
    for name in MLX.model_types() {
        let said = checked.contains(name) || readme().contains(&format!("`{name}`"));
        assert!(said, "{name} has a family, but no case that mlx-lm wrote, and README does not say that it is refused");
    }
}

/// The program of the runtime's documentation, which the doctests run, without the lines that they hide.
fn documented_program() -> String {
    let source = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/runtime/mod.rs")).unwrap();
    let doc: Vec<&str> = source.lines().map_while(|line| line.strip_prefix("//!")).collect();
    let mut blocks = doc.split(|line| line.trim() == "```").skip(1).step_by(2);
    let program = blocks.find(|block| block.iter().any(|line| line.contains("fn main() -> "))).unwrap();
    let shown = program.iter().map(|line| line.strip_prefix(' ').unwrap_or(line)).filter(|line| !line.starts_with('#'));
    shown.map(|line| format!("{line}\n")).collect()
}

#[test]
fn the_worked_example_is_the_one_that_runs() {
    let example = between("example");
    let program = example.strip_prefix("```rust\n").unwrap().strip_suffix("```").unwrap();
    assert!(program.lines().count() > 20, "{program}");
    assert_eq!(program, documented_program(), "put the program of src/runtime/mod.rs there");
}

/// The unit's commands are understood, and its start is one that tells when it is ready.
#[test]
fn the_unit_starts_what_there_is() {
    let unit = between("unit");
    let value = |key: &str| unit.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('=')).unwrap();
    assert_eq!(value("Type"), "notify");
    for key in ["ExecStart", "ExecStop"] {
        let words = value(key).strip_prefix("/usr/local/bin/quantfs ").unwrap().split_whitespace();
        let nowhere = tempfile::tempdir().unwrap();
        let words = words.map(|word| word.replace("/models/", "nowhere/").replace("/mnt/", "nowhere/"));
        let done =
            Command::new(env!("CARGO_BIN_EXE_quantfs")).args(words).current_dir(nowhere.path()).output().unwrap();
        assert_eq!(done.status.code(), Some(1), "{key}: {}", String::from_utf8_lossy(&done.stderr));
    }
}

/// Every indented line of README that starts with `quantfs` is no usage error. The paths in it do
/// not exist here, so that nothing is mounted.
#[test]
fn its_commands_are_understood() {
    let text = readme();
    let commands: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix("    quantfs ")).collect();
    assert!(commands.len() > 5, "found only {} command lines", commands.len());
    let nowhere = tempfile::tempdir().unwrap();
    for command in commands {
        let command = command.split(" #").next().unwrap_or_default().replace('\'', "");
        let words = command.split_whitespace().map(|w| w.replace("~/", "nowhere/").replace("/tmp/", "nowhere/"));
        let done =
            Command::new(env!("CARGO_BIN_EXE_quantfs")).args(words).current_dir(nowhere.path()).output().unwrap();
        let error = String::from_utf8_lossy(&done.stderr);
        assert_ne!(done.status.code(), Some(2), "quantfs {command}: {error}");
    }
}
