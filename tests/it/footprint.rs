//! What opening a model reads, how long that takes, and what memory a run has beside the mapping.

use std::{
    fs,
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    thread,
    time::Duration,
};

use quantfs::{
    container::safetensors,
    runtime::{Arithmetic, QuantizedLinear, Weights},
    tensor::{Dtype, TensorInfo},
};

fn info(name: &str, dtype: Dtype, shape: &[usize]) -> TensorInfo {
    TensorInfo { name: name.to_owned(), dtype, shape: shape.to_vec() }
}

/// A file of any size whose data is a hole.
fn write_hole(path: &Path, tensors: &[TensorInfo]) {
    let rendered = safetensors::render(tensors, None, 8).unwrap();
    fs::write(path, &rendered.preamble).unwrap();
    fs::OpenOptions::new().write(true).open(path).unwrap().set_len(rendered.len).unwrap();
}

const LAYERS: usize = 9;
const ROWS: usize = 4096;
const COLS: usize = 16384;

/// 324 MiB of 4-bit weights.
fn write_layers(dir: &Path) {
    let layer = |i: usize| {
        let part = |suffix: &str, dtype, cols| info(&format!("layers.{i}.{suffix}"), dtype, &[ROWS, cols]);
        [
            part("weight", Dtype::U32, COLS / 8),
            part("scales", Dtype::BF16, COLS / 64),
            part("biases", Dtype::BF16, COLS / 64),
        ]
    };
    write_hole(&dir.join("model.safetensors"), &(0..LAYERS).flat_map(layer).collect::<Vec<_>>());
    fs::write(dir.join("config.json"), r#"{"quantization": {"group_size": 64, "bits": 4, "mode": "affine"}}"#).unwrap();
}

/// A line of `/proc/self/status`, in bytes.
fn status(key: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
}

/// The most memory that is no file's while something runs, looked at every millisecond.
fn most_anonymous(run: impl FnOnce()) -> u64 {
    let (most, done) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(SeqCst) {
                most.fetch_max(status("RssAnon"), SeqCst);
                thread::sleep(Duration::from_millis(1));
            }
        });
        run();
        most.fetch_max(status("RssAnon"), SeqCst);
        done.store(true, SeqCst);
    });
    most.into_inner()
}

/// Runs every layer of weights: one input and eight, in both arithmetics.
fn run(layers: &[QuantizedLinear]) {
    let (x, mut y) = (vec![1.0; 8 * COLS], vec![0.0; 8 * ROWS]);
    for arithmetic in Arithmetic::ALL {
        for layer in layers {
            layer.forward_with(arithmetic, &x[..COLS], &mut y[..ROWS]).unwrap();
            layer.forward_with(arithmetic, &x, &mut y).unwrap();
        }
    }
}

fn layers(weights: &Weights) -> Vec<QuantizedLinear> {
    (0..LAYERS).map(|i| weights.linear(&format!("layers.{i}")).unwrap()).collect()
}

/// Run by the next test in a process of its own, where nobody else takes memory.
#[test]
#[ignore = "a part of a_run_has_the_mapping_and_activations"]
fn runs_three_hundred_megabytes() {
    const BESIDE: u64 = 32 << 20;
    let dir = tempfile::tempdir().unwrap();
    write_layers(dir.path());
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    let most = most_anonymous(|| pool.install(|| run(&layers(&Weights::open(dir.path()).unwrap()))));
    assert!(most < BESIDE, "{} MiB beside the mapping", most >> 20);
    // The gauge sees weights: mapped ones as a file's, loaded ones as memory.
    let mapped = layers(&Weights::open(dir.path()).unwrap());
    let total: u64 = mapped.iter().map(|layer| layer.byte_len() as u64).sum();
    run(&mapped);
    assert!(status("RssFile") > total, "{} of {total} bytes were touched", status("RssFile"));
    drop(mapped);
    let loaded = most_anonymous(|| drop(Weights::read(dir.path()).unwrap()));
    assert!(loaded > total, "{loaded} of {total} bytes are seen");
    tell(&format!("{} MiB beside {} MiB of mapped weights", most >> 20, total >> 20));
}

#[expect(clippy::print_stderr, reason = "the figure belongs to the test's report")]
fn tell(figures: &str) {
    eprintln!("{figures}");
}

#[test]
fn a_run_has_the_mapping_and_activations() {
    let args = ["--exact", "footprint::runs_three_hundred_megabytes", "--ignored", "--nocapture"];
    let out = Command::new(std::env::current_exe().unwrap()).args(args).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success() && said.contains("1 passed"), "{said}");
}

#[cfg(all(feature = "cli", feature = "fuse"))]
mod mounted {
    use std::{
        fs,
        path::{Path, PathBuf},
        process::Command,
        time::{Duration, Instant},
    };

    use quantfs::{
        runtime::{Arithmetic, QuantizedLinear, Weights, model::Decoder},
        tensor::{Dtype, TensorInfo},
    };
    use tempfile::TempDir;

    use super::{info, tell, write_hole};
    use crate::mount::can_mount;

    /// Milliseconds here; a busy machine may take longer, and one that reads weights much longer.
    const SOON: Duration = Duration::from_secs(2);
    const SHARDS: usize = 3;

    /// Names and shapes of a Llama of 7 billion weights.
    fn tensors() -> Vec<TensorInfo> {
        let (hidden, wide, vocab) = (4096, 11008, 32000);
        let bf16 = |name: &str, shape: &[usize]| info(name, Dtype::BF16, shape);
        let mut all = vec![bf16("model.embed_tokens.weight", &[vocab, hidden])];
        for layer in 0..32 {
            let mut add =
                |name: &str, shape: &[usize]| all.push(bf16(&format!("model.layers.{layer}.{name}.weight"), shape));
            ["q", "k", "v", "o"].iter().for_each(|p| add(&format!("self_attn.{p}_proj"), &[hidden, hidden]));
            ["gate", "up"].iter().for_each(|p| add(&format!("mlp.{p}_proj"), &[wide, hidden]));
            add("mlp.down_proj", &[hidden, wide]);
            ["input", "post_attention"].iter().for_each(|norm| add(&format!("{norm}_layernorm"), &[hidden]));
        }
        all.extend([bf16("model.norm.weight", &[hidden]), bf16("lm_head.weight", &[vocab, hidden])]);
        // As transformers writes them.
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// A snapshot in shards with an index, of 13 gigabytes that no disk holds.
    fn write_snapshot(dir: &Path) -> Vec<TensorInfo> {
        let all = tensors();
        let mut map = serde_json::Map::new();
        for (i, shard) in all.chunks(all.len().div_ceil(SHARDS)).enumerate() {
            let file = format!("model-{:05}-of-{SHARDS:05}.safetensors", i + 1);
            write_hole(&dir.join(&file), shard);
            map.extend(shard.iter().map(|tensor| (tensor.name.clone(), file.clone().into())));
        }
        let index = serde_json::json!({ "metadata": {}, "weight_map": map });
        fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
        let config = serde_json::json!({
            "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000, "rms_norm_eps": 1e-5,
            "torch_dtype": "bfloat16", "tie_word_embeddings": false,
        });
        fs::write(dir.join("config.json"), config.to_string()).unwrap();
        all
    }

    /// A mount that ends with the test.
    struct Mount(PathBuf);

    impl Mount {
        fn of(dir: &TempDir) -> Self {
            let mnt = dir.path().canonicalize().unwrap().join("mnt");
            fs::create_dir(&mnt).unwrap();
            let mount = Self(mnt);
            mount.quantfs(&["mount", "--bits", "4", dir.path().join("model").to_str().unwrap()]);
            mount
        }

        fn quantfs(&self, args: &[&str]) {
            let out = Command::new(env!("CARGO_BIN_EXE_quantfs")).args(args).arg(&self.0).output().unwrap();
            assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        }

        fn counter(&self, name: &str) -> u64 {
            let metrics = fs::read_to_string(self.0.join(".quantfs/metrics")).unwrap();
            let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).unwrap();
            value.parse().unwrap()
        }

        /// Tiles of weights that were encoded because somebody read them: those that were encoded ahead of
        /// readers, in case they go on, are no reading.
        fn tiles_asked_for(&self) -> u64 {
            let asked = || self.counter("quantfs_tiles_total") - self.counter("quantfs_tiles_ahead_total");
            let started = Instant::now();
            // A tile that is being made ahead is counted as such when it is done.
            while asked() != 0 && started.elapsed() < Duration::from_secs(5) {
                std::thread::sleep(Duration::from_millis(10));
            }
            asked()
        }
    }

    impl Drop for Mount {
        fn drop(&mut self) {
            let umount = Command::new(env!("CARGO_BIN_EXE_quantfs")).args(["umount", "--force"]).arg(&self.0).output();
            drop(umount);
            let name = self.0.to_str().unwrap().trim_matches('/').replace('/', "-");
            drop(fs::remove_file(format!("/var/log/quantfs/{name}.log")));
        }
    }

    /// Opening reads no weight; a decoder reads its norms, 65 vectors of 8 KiB.
    #[test]
    fn a_mounted_model_of_seven_billion_weights_opens_at_once() {
        if !can_mount() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("model")).unwrap();
        let tensors = write_snapshot(&dir.path().join("model"));
        let mount = Mount::of(&dir);
        let started = Instant::now();
        let weights = Weights::open(&mount.0).unwrap();
        let matrices = tensors.iter().filter(|tensor| tensor.shape.len() == 2);
        let layers: Vec<QuantizedLinear> =
            matrices.map(|t| weights.linear(t.name.strip_suffix(".weight").unwrap()).unwrap()).collect();
        let took = started.elapsed();
        let read = mount.counter("quantfs_source_bytes_total");
        assert_eq!((layers.len(), read), (2 + 7 * 32, 0), "opening read weights");
        let bytes: usize = layers.iter().map(QuantizedLinear::byte_len).sum();
        assert!(bytes > 3_700_000_000 && layers.iter().all(QuantizedLinear::is_quantized), "{bytes}");
        assert!(took < SOON, "{took:?}");
        let started = Instant::now();
        let decoder = Decoder::open(&mount.0, Arithmetic::Int8).unwrap();
        let decoding = started.elapsed();
        assert_eq!(mount.tiles_asked_for(), 0, "a decoder's norms were not read alone");
        assert!(decoder.byte_len() > 3_500_000_000 && decoding < SOON, "{decoding:?}");
        let norms = mount.counter("quantfs_source_bytes_total");
        tell(&format!(
            "{bytes} bytes: layers opened in {took:?}; a decoder in {decoding:?}, {norms} bytes of the source"
        ));
    }
}
