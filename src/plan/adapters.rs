//! Adapters: low-rank products that are added to the snapshot's tensors, in the layouts of PEFT, diffusers and kohya.
//!
//! An adapter is a `.safetensors` file, or a directory that has one and PEFT's `adapter_config.json`. A module's factors are
//! `lora_A` and `lora_B` (PEFT, diffusers) or `lora_down` and `lora_up` (kohya), its product is scaled by
//! `alpha / rank` and by what the user asks for. Whole tensors that PEFT saved beside them (`modules_to_save`) replace
//! the snapshot's. Only headers, the config and one-element `alpha` tensors are read.

use std::{borrow::Cow, collections::BTreeMap};

use regex::Regex;
use serde_json::Value;

use crate::{
    container::{json, safetensors::Tensor},
    kernel::{Cast, kernels},
    plan::{
        Error, Factor,
        overrides::{Names, listed},
        snapshot::{self, LowRank, Snapshot},
    },
    source::{FileId, Source},
    tensor::Float,
};

/// What `--lora ADAPTER[:SCALE]` asks for.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// As typed.
    pub text: String,
    /// The files of the adapter.
    pub files: Vec<FileId>,
    /// Factor of the user's.
    pub scale: f32,
}

/// Prefixes that trainers put before the names of modules, and that are no part of them.
const PREFIXES: [&str; 5] =
    ["base_model.model.", "base_model.", "diffusion_model.", "model.diffusion_model.", "lora_unet_"];

/// Prefixes of kohya's that stand for a component's directory.
const COMPONENTS: [(&str, &str); 3] =
    [("lora_te1_", "text_encoder_"), ("lora_te2_", "text_encoder_2_"), ("lora_te_", "text_encoder_")];

/// Components by whose names diffusers starts those of modules.
const PARTS: [&str; 4] = ["transformer.", "unet.", "text_encoder.", "text_encoder_2."];

/// Names of the two factors, as suffixes of a module's name: down and up.
const FACTORS: [(&str, &str); 4] = [
    (".lora_A.weight", ".lora_B.weight"),
    (".lora_A.default.weight", ".lora_B.default.weight"),
    (".lora_down.weight", ".lora_up.weight"),
    (".lora.down.weight", ".lora.up.weight"),
];

/// Parts of names of what no product of two factors is.
const UNKNOWN: [(&str, &str); 7] = [
    ("lora_magnitude_vector", "DoRA rescales the rows of what it adds to"),
    ("dora_scale", "DoRA rescales the rows of what it adds to"),
    ("lora_embedding_", "embeddings are adapted by a transposed product"),
    ("lora_mid", "a product of three factors"),
    ("hada_w", "LoHa is an elementwise product"),
    ("lokr_w", "LoKr is a Kronecker product"),
    ("oft_", "OFT multiplies"),
];

/// Ranks of adapters are powers of two up to 256; factors of a tile are held in memory.
const MAX_RANK: usize = 1024;

/// One module of an adapter.
#[derive(Debug, Default)]
struct Module {
    down: Option<(FileId, Tensor)>,
    up: Option<(FileId, Tensor)>,
    alpha: Option<f32>,
}

/// Adds what some adapters say to the tensors of a snapshot, in their order.
///
/// # Errors
/// An adapter that adds to nothing, of another kind, or whose shapes do not fit.
pub(crate) fn apply(
    source: &dyn Source,
    snapshot: &mut Snapshot,
    adapters: &[Adapter],
    warnings: &mut Vec<String>,
) -> Result<(), Error> {
    if adapters.is_empty() {
        return Ok(());
    }
    let names = Names::of(snapshot);
    let mut all: Vec<&str> = names.all().collect();
    all.sort_unstable();
    let flatten = |name: &&str| Some((name.strip_suffix(".weight")?.replace(['.', '/'], "_"), (*name).to_owned()));
    let flat: BTreeMap<String, String> = all.iter().filter_map(flatten).collect();
    for adapter in adapters {
        let refuse = |why: String| Error::refused(format!("--lora {}: {why}", adapter.text));
        let config = config(source, adapter)?;
        let (modules, whole) = modules(source, adapter)?;
        let (mut matched, mut missing) = (0usize, vec![]);
        for (name, module) in &modules {
            let Some((set, number)) = place(&names, &flat, name).map_err(refuse)? else {
                missing.push(name.clone());
                continue;
            };
            let set = &mut snapshot.sets[set];
            let low_rank =
                low_rank(name, module, &set.tensors[number].shape, &config, adapter.scale).map_err(refuse)?;
            if Float::of(set.tensors[number].dtype).is_none() {
                return Err(refuse(format!("{name}: nothing can be added to {}", set.tensors[number].dtype)));
            }
            set.places[number].deltas.push(low_rank);
            matched += 1;
        }
        for (file, tensor) in whole {
            let name =
                strip(&tensor.info.name).replace(".modules_to_save.default.", ".").replace(".modules_to_save.", ".");
            let Some((set, number)) = names.find(&name).map_err(refuse)? else {
                missing.push(tensor.info.name);
                continue;
            };
            let set = &mut snapshot.sets[set];
            let (there, here) = (&set.tensors[number], &tensor.info);
            if there.shape != here.shape || Float::of(here.dtype).is_none() {
                return Err(refuse(format!(
                    "tensor {} is {} {:?}, and {} {:?} in the snapshot",
                    here.name, here.dtype, here.shape, there.dtype, there.shape
                )));
            }
            set.tensors[number].dtype = tensor.info.dtype;
            let place = &mut set.places[number];
            // What was added to the tensor is gone with it.
            place.deltas.clear();
            (place.file, place.offset) = (file, tensor.range.start);
            matched += 1;
        }
        if modules.is_empty() {
            return Err(refuse("no low-rank factors are in it; --override takes whole tensors".to_owned()));
        }
        if config.is_null() && modules.values().any(|module| module.alpha.is_none()) {
            warnings.push(format!(
                "--lora {}: nobody says its alpha (adapter_config.json does, where there is one): it is merged as if that \
                 were its rank",
                adapter.text
            ));
        }
        if matched == 0 {
            let why = "nothing of it belongs to a tensor of the snapshot";
            return Err(refuse(format!("{why} ({}); is it for another model?", listed(&missing))));
        }
        if !missing.is_empty() {
            warnings.push(format!(
                "--lora {}: {matched} tensors are adapted; {} match nothing: {}",
                adapter.text,
                missing.len(),
                listed(&missing)
            ));
        }
    }
    Ok(())
}

/// The key of a header's metadata under which diffusers keeps what PEFT keeps in `adapter_config.json`.
const METADATA: &str = "lora_adapter_metadata";

/// `adapter_config.json`, or what a file's own header says in its place; null where there is neither.
fn config(source: &dyn Source, adapter: &Adapter) -> Result<Value, Error> {
    let ends = |suffix: &'static str| move |file: &&FileId| source.entry(**file).path.ends_with(suffix);
    let config = match adapter.files.iter().find(ends("adapter_config.json")) {
        Some(file) => snapshot::read_json(source, *file)?,
        None => {
            let mut kept = Value::Null;
            for file in adapter.files.iter().filter(ends(".safetensors")) {
                let header = snapshot::read_header(source, *file)?.header;
                let text = header.metadata.iter().find(|(key, _)| key == METADATA).map(|(_, text)| text.as_bytes());
                let parsed = text
                    .map(json::parse)
                    .transpose()
                    .map_err(|e| Error::refused(format!("--lora {}: {METADATA} of its header: {e}", adapter.text)))?;
                kept = parsed.unwrap_or(kept);
            }
            kept
        }
    };
    let refuse = |why: &str| Err(Error::refused(format!("--lora {}: {why}", adapter.text)));
    let says = |key: &str| config.get(key).and_then(Value::as_bool).unwrap_or_default();
    match config.get("peft_type").and_then(Value::as_str) {
        Some(kind) if kind != "LORA" => refuse(&format!("adapter_config.json says {kind}; LORA alone is merged")),
        _ if says("use_dora") => refuse("it is a DoRA, which rescales the rows of what it adds to"),
        _ if says("fan_in_fan_out") => refuse("it is for transposed weights (fan_in_fan_out), which are not merged"),
        _ => Ok(config),
    }
}

/// Modules by name, and the tensors that are no factors.
type Found = (BTreeMap<String, Module>, Vec<(FileId, Tensor)>);

fn modules(source: &dyn Source, adapter: &Adapter) -> Result<Found, Error> {
    let (mut found, mut whole) = (BTreeMap::<String, Module>::new(), vec![]);
    let refuse = |why: String| Error::refused(format!("--lora {}: {why}", adapter.text));
    let weights = adapter.files.iter().filter(|file| source.entry(**file).path.ends_with(".safetensors"));
    for &file in weights {
        for tensor in snapshot::read_header(source, file)?.header.tensors {
            let name = tensor.info.name.clone();
            if let Some((_, why)) = UNKNOWN.iter().find(|(part, _)| name.contains(part)) {
                return Err(refuse(format!("tensor {name}: {why}, which is not merged")));
            }
            if let Some(module) = name.strip_suffix(".alpha") {
                found.entry(strip(module).into_owned()).or_default().alpha = Some(alpha(source, file, &tensor)?);
                continue;
            }
            let factor = FACTORS.iter().find_map(|(down, up)| {
                let down = name.strip_suffix(down).map(|module| (module, true));
                down.or_else(|| name.strip_suffix(up).map(|module| (module, false)))
            });
            let Some((module, is_down)) = factor else {
                whole.push((file, tensor));
                continue;
            };
            let module = found.entry(strip(module).into_owned()).or_default();
            let place = if is_down { &mut module.down } else { &mut module.up };
            if place.replace((file, tensor)).is_some() {
                return Err(refuse(format!("tensor {name}: its factor is there twice")));
            }
        }
    }
    if found.is_empty() && whole.is_empty() {
        return Err(refuse("no .safetensors file with tensors in it".to_owned()));
    }
    Ok((found, whole))
}

/// The one element of an `alpha`.
fn alpha(source: &dyn Source, file: FileId, tensor: &Tensor) -> Result<f32, Error> {
    let name = &tensor.info.name;
    let float = Float::of(tensor.info.dtype).filter(|_| tensor.info.elements() == Some(1));
    let Some(float) = float else {
        return Err(Error::refused(format!("{}: tensor {name} is no single number", source.entry(file).path)));
    };
    let (mut stored, mut wide) = (vec![0; float.size()], [0; 4]);
    source.read_exact_at(file, tensor.range.start, &mut stored)?;
    kernels().cast(&Cast { from: float, to: Float::F32, plus_one: false }, &stored, &mut wide);
    Ok(f32::from_le_bytes(wide))
}

/// A name without what trainers put before it.
fn strip(mut name: &str) -> Cow<'_, str> {
    while let Some(rest) = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)) {
        name = rest;
    }
    let component = COMPONENTS.iter().find_map(|(prefix, dir)| Some(format!("{dir}{}", name.strip_prefix(prefix)?)));
    component.map_or(Cow::Borrowed(name), Cow::Owned)
}

/// The tensor that a module's product is added to. kohya writes all dots as underscores; a component that is the
/// whole snapshot has no name of its own.
fn place(names: &Names, flat: &BTreeMap<String, String>, module: &str) -> Result<Option<(usize, usize)>, String> {
    let alone = PARTS.iter().find_map(|part| module.strip_prefix(part));
    for module in [Some(module), alone].into_iter().flatten() {
        let whole = format!("{module}.weight");
        for prefix in ["", "model.", "transformer.", "unet.", "model.diffusion_model.", "diffusion_model."] {
            if let Some(at) = names.find(&format!("{prefix}{whole}"))? {
                return Ok(Some(at));
            }
        }
    }
    let flattened = module.replace('.', "_");
    let prefixes = ["", "model_", "unet_", "transformer_", "model_diffusion_model_"];
    let alone = ["text_encoder_2_", "text_encoder_"].iter().find_map(|part| flattened.strip_prefix(part));
    let tries = prefixes.map(|prefix| format!("{prefix}{flattened}")).into_iter().chain(alone.map(str::to_owned));
    match tries.into_iter().find_map(|name| flat.get(&name)) {
        Some(name) => names.find(name),
        None => Ok(None),
    }
}

/// The product of a module, for a tensor of this shape.
fn low_rank(name: &str, module: &Module, shape: &[usize], config: &Value, user: f32) -> Result<LowRank, String> {
    let Module { down: Some((down_file, down)), up: Some((up_file, up)), alpha } = module else {
        return Err(format!("{name}: one of its two factors is missing"));
    };
    let rank = down.info.shape.first().copied().unwrap_or(0);
    let [Some(down_elements), Some(up_elements)] = [down, up].map(|t| t.info.elements()) else {
        return Err(format!("{name}: its factors are larger than any memory"));
    };
    let rows = shape.first().copied().unwrap_or(1);
    let cols = shape.iter().skip(1).try_fold(1usize, |n, dim| n.checked_mul(*dim)).unwrap_or(0);
    let fits = rank > 0
        && rank <= MAX_RANK
        && rank.checked_mul(cols) == Some(down_elements)
        && rank.checked_mul(rows) == Some(up_elements);
    let last = up.info.shape.get(1).copied() == Some(rank) && up.info.shape.first() == Some(&rows);
    if !fits || !last {
        let (a, b) = (&down.info.shape, &up.info.shape);
        return Err(format!(
            "{name}: factors {a:?} and {b:?} do not make a product of shape {shape:?} and a rank of {MAX_RANK} at most"
        ));
    }
    let float =
        |t: &Tensor| Float::of(t.info.dtype).ok_or_else(|| format!("{name}: a factor of dtype {}", t.info.dtype));
    let scale = user * scaling(name, *alpha, rank, config)?;
    Ok(LowRank {
        rank,
        up: Factor { file: *up_file, offset: up.range.start, float: float(up)? },
        down: Factor { file: *down_file, offset: down.range.start, float: float(down)? },
        scale,
    })
}

/// `alpha / rank`, or `alpha / sqrt(rank)` where the config says so; 1 where nobody says alpha.
fn scaling(name: &str, alpha: Option<f32>, rank: usize, config: &Value) -> Result<f32, String> {
    // diffusers puts the component's name before keys and modules alike.
    let (component, module) = name.split_once('.').unwrap_or(("", name));
    let own = |key: &str| config.get(format!("{component}.{key}"));
    let says = |key: &str| own(key).or_else(|| config.get(key));
    let module = if own("lora_alpha").is_some() { module } else { name };
    let mut of_module = None;
    for (pattern, value) in says("alpha_pattern").and_then(Value::as_object).into_iter().flatten() {
        // As PEFT matches its patterns.
        let regex = Regex::new(&format!(r"^(?:.*\.)?(?:{pattern})$"));
        let regex = regex.map_err(|e| format!("alpha_pattern {pattern} of its config is no pattern: {e}"))?;
        if of_module.is_none() && regex.is_match(module) {
            of_module = value.as_f64();
        }
    }
    let stated = of_module.or_else(|| says("lora_alpha")?.as_f64());
    let Some(alpha) = alpha.map(f64::from).or(stated) else { return Ok(1.0) };
    let root = says("use_rslora").and_then(Value::as_bool).unwrap_or_default();
    let rank = rank as f64;
    let scaling = alpha / if root { rank.sqrt() } else { rank };
    #[expect(clippy::cast_possible_truncation, reason = "a factor of f32 sums")]
    let scaling = scaling as f32;
    Ok(scaling)
}
