//! The verbs that run a decoder: what they tell whoever typed them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// A small model with a tokenizer, made for so many positions.
fn model(positions: usize) -> tempfile::TempDir {
    let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/mlx_lm/llama_q4_g64");
    let dir = tempfile::tempdir().unwrap();
    for file in fs::read_dir(golden).unwrap().map(|entry| entry.unwrap().path()) {
        fs::copy(&file, dir.path().join(file.file_name().unwrap())).unwrap();
    }
    let path = dir.path().join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["max_position_embeddings"] = positions.into();
    fs::write(path, config.to_string()).unwrap();
    fs::write(dir.path().join("text"), "the file system shows every weight as it is read ".repeat(8)).unwrap();
    dir
}

fn quantfs(args: &[&str], dir: &Path, log: &str) -> (Output, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quantfs"));
    let out = command.args(args).env("QUANTFS_LOG", log).current_dir(dir).output().unwrap();
    let error = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{args:?}: {error}");
    (out, error)
}

/// Whatever the log shows, and never among the tokens.
#[test]
fn texts_longer_than_a_model_was_made_for_are_warned_of() {
    let (short, long) = (model(16), model(64));
    let generate = ["generate", ".", "--prompt", "the file system", "--max-tokens", "14"];
    let perplexity = ["perplexity", ".", "text", "--context", "20"];
    for log in ["off", "error", "warn"] {
        let (out, error) = quantfs(&generate, short.path(), log);
        assert!(error.contains("made for 16 tokens") && error.contains("prompt and answer may have 17"), "{error}");
        assert!(!String::from_utf8_lossy(&out.stdout).contains("made for"));
        let (_, error) = quantfs(&perplexity, short.path(), log);
        assert!(error.contains("made for 16 tokens") && error.contains("inputs have 20"), "{error}");
        for verb in [&generate[..], &perplexity] {
            let (_, error) = quantfs(verb, long.path(), log);
            assert!(!error.contains("made for"), "{error}");
        }
    }
    let reference = [&perplexity[..], &["--reference", short.path().to_str().unwrap()]].concat();
    let (_, error) = quantfs(&reference, long.path(), "off");
    let of_reference = format!("{}: the model was made for 16", short.path().display());
    assert!(error.contains(&of_reference) && error.matches("made for").count() == 1, "{error}");
}
