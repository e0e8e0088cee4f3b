//! A source read as a snapshot: headers, indexes and JSON, no weight byte.
//!
//! Weights come in *sets*: the shards that one index names, or the files of one stem. Tensor names
//! are unique within a set. A source that is quantized already is refused here.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Range,
};

use rayon::prelude::*;
use serde_json::Value;

use crate::{
    container::{Malformed, index, json, safetensors},
    plan::{
        Error, Factor,
        graph::{self, Graph},
    },
    source::{self, FileId, Source},
    tensor::{Dtype, TensorInfo},
};

/// JSON files larger than this are neither configuration nor an index.
const MAX_JSON: u64 = index::MAX_INDEX;

const INDEX_SUFFIX: &str = ".safetensors.index.json";
const SHARD_SUFFIX: &str = ".safetensors";

/// Full-precision twins of the weights: hidden unless shown.
const TWINS: &[&str] = &[
    "*.bin",
    "*.pth",
    "*.pt",
    "*.ckpt",
    "*.h5",
    "*.msgpack",
    "*.gguf",
    "*.ot",
    "original/*",
    "*/original/*",
    "consolidated.*",
    "*/consolidated.*",
];

/// What planning needs to know of a source.
#[derive(Debug)]
pub(crate) struct Snapshot {
    /// The weights.
    pub(crate) sets: Vec<Set>,
    /// Files that are shown as they are, unless a set's JSON is patched.
    pub(crate) others: Vec<FileId>,
    /// Twins that are not shown, by path.
    pub(crate) hidden: Vec<String>,
    /// What the user should know of files that no set was made of.
    pub(crate) warnings: Vec<String>,
}

/// One set of weights.
#[derive(Debug)]
pub(crate) struct Set {
    /// Directory below the root, empty for the root.
    pub(crate) dir: String,
    /// Stem of the files: `model`.
    pub(crate) stem: String,
    /// The shards in the order of their names.
    pub(crate) shards: Vec<Shard>,
    /// All tensors, shard after shard, in data order.
    pub(crate) tensors: Vec<TensorInfo>,
    /// Where they lie.
    pub(crate) places: Vec<Place>,
    /// The index file, where there is one.
    pub(crate) index: Option<FileId>,
    /// `config.json` beside the shards.
    pub(crate) config: Option<Document>,
    /// `generation_config.json` beside the shards.
    pub(crate) generation_config: Option<Document>,
    /// Whether its tensors are only some of what its shards hold.
    pub(crate) is_part: bool,
    /// The ONNX model that the tensors are of; `None` for safetensors files.
    pub(crate) graph: Option<Graph>,
}

/// A JSON file of the snapshot.
#[derive(Clone, Debug)]
pub(crate) struct Document {
    pub(crate) file: FileId,
    pub(crate) value: Value,
}

/// One safetensors file of a set.
#[derive(Clone, Debug)]
pub(crate) struct Shard {
    pub(crate) file: FileId,
    pub(crate) metadata: Vec<(String, String)>,
    pub(crate) tensors: usize,
}

/// Where a tensor lies: the shard's number in its set, the byte range there, and where its bytes come from.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) shard: usize,
    pub(crate) range: Range<u64>,
    /// Element type in the shard.
    pub(crate) dtype: Dtype,
    /// The shard's file, or one that overrides it.
    pub(crate) file: FileId,
    /// Offset of the first byte in that file.
    pub(crate) offset: u64,
    /// What adapters add.
    pub(crate) deltas: Vec<LowRank>,
}

/// A low-rank product that is added to a tensor.
#[derive(Clone, Debug)]
pub(crate) struct LowRank {
    pub(crate) rank: usize,
    pub(crate) up: Factor,
    pub(crate) down: Factor,
    pub(crate) scale: f32,
}

/// Sets in the making, by directory and stem: the index, where there is one, and the shards.
type Sets = BTreeMap<(String, String), (Option<FileId>, Vec<Parsed>)>;

/// A header as read, before it belongs to a set.
pub(crate) struct Parsed {
    pub(crate) file: FileId,
    pub(crate) header: safetensors::Header,
}

impl Place {
    /// Whether its bytes are those of the shard.
    pub(crate) fn is_own(&self, set: &Set) -> bool {
        self.deltas.is_empty() && self.file == set.shards[self.shard].file
    }
}

impl Set {
    /// The files that its tensors are made of; some more than once.
    pub(crate) fn files(&self) -> impl Iterator<Item = FileId> {
        let factors = |place: &Place| place.deltas.iter().flat_map(|d| [d.up.file, d.down.file]).collect::<Vec<_>>();
        let places = self.places.iter().flat_map(move |place| std::iter::once(place.file).chain(factors(place)));
        self.shards.iter().map(|shard| shard.file).chain(places)
    }

    /// `dir/name`, or the name alone at the root.
    pub(crate) fn path(&self, name: &str) -> String {
        join(&self.dir, name)
    }
}

pub(crate) fn join(dir: &str, name: &str) -> String {
    if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") }
}

pub(crate) fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// Reads headers, indexes and configs, and ONNX models where `graphs` are asked for. `show` lists globs
/// of twins that are shown all the same.
pub(crate) fn read(source: &dyn Source, show: &[String], graphs: bool) -> Result<Snapshot, Error> {
    let (mut visible, mut hidden) = visible_files(source, show)?;
    if source.tree() == 0 {
        return Err(Error::refused(format!(
            "{}: the directory is empty; a model directory with .safetensors files was expected",
            source.name()
        )));
    }
    let shards: Vec<FileId> = visible.iter().copied().filter(|f| path_of(source, *f).ends_with(SHARD_SUFFIX)).collect();
    let (models, warnings) = if graphs { graph::read(source, &visible)? } else { Default::default() };
    // Where a model keeps its weights is no twin of them, whatever its name.
    let data: BTreeSet<FileId> = models.iter().flat_map(|set| set.shards.iter().map(|s| s.file)).collect();
    let of_models: BTreeSet<&str> = data.iter().map(|f| path_of(source, *f)).collect();
    visible.extend(data.iter().filter(|f| hidden.iter().any(|path| path == path_of(source, **f))));
    hidden.retain(|path| !of_models.contains(path.as_str()));
    if shards.is_empty() && models.is_empty() {
        return Err(Error::refused(no_weights(source, &hidden)));
    }
    refuse_manifest(source)?;
    let parsed: Vec<Parsed> = shards.par_iter().map(|f| read_header(source, *f)).collect::<Result<_, _>>()?;
    let (mut sets, twins) = gather(source, &visible, parsed)?;
    let shown = globs(show.iter().map(String::as_str))?;
    let (shown, twins): (Vec<FileId>, Vec<FileId>) =
        twins.into_iter().partition(|f| shown.is_match(path_of(source, *f)));
    let others =
        visible.iter().copied().filter(|f| !path_of(source, *f).ends_with(SHARD_SUFFIX)).chain(shown).collect();
    hidden.extend(twins.into_iter().map(|f| path_of(source, f).to_owned()));
    for set in &sets {
        refuse_quantized(source, set)?;
    }
    sets.extend(models);
    Ok(Snapshot { sets, others, hidden, warnings })
}

pub(crate) fn path_of(source: &dyn Source, file: FileId) -> &str {
    &source.entry(file).path
}

/// A path below the source's root as messages show it: with the root. A source that is a single file
/// is called by that file's path already.
pub(crate) fn full(source: &dyn Source, path: &str) -> String {
    let name = source.name();
    let own = path.is_empty() || name.strip_suffix(path).is_some_and(|rest| rest.is_empty() || rest.ends_with('/'));
    if own { name.to_owned() } else { format!("{name}/{path}") }
}

fn visible_files(source: &dyn Source, show: &[String]) -> Result<(Vec<FileId>, Vec<String>), Error> {
    let twins = globs(TWINS.iter().copied())?;
    let shown = globs(show.iter().map(String::as_str))?;
    let (mut visible, mut hidden) = (vec![], vec![]);
    for (i, entry) in source.entries()[..source.tree()].iter().enumerate() {
        let id = FileId(
            u32::try_from(i).map_err(|_| Error::refused(format!("{}: more than 4 billion files", source.name())))?,
        );
        if twins.is_match(&entry.path) && !shown.is_match(&entry.path) {
            hidden.push(entry.path.clone());
        } else {
            visible.push(id);
        }
    }
    for pattern in show {
        let one = globs([pattern.as_str()])?;
        if !source.entries()[..source.tree()].iter().any(|e| one.is_match(&e.path)) {
            return Err(Error::spec(format!("--show {pattern}: no file of {} matches", source.name())));
        }
    }
    Ok((visible, hidden))
}

fn globs<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<globset::GlobSet, Error> {
    let mut set = globset::GlobSetBuilder::new();
    for pattern in patterns {
        set.add(globset::Glob::new(pattern).map_err(|e| Error::spec(format!("--show {pattern}: {}", e.kind())))?);
    }
    set.build().map_err(|e| Error::spec(format!("--show: {e}")))
}

fn no_weights(source: &dyn Source, hidden: &[String]) -> String {
    let twin = hidden.iter().find(|p| [".bin", ".pth", ".pt", ".gguf", ".ckpt"].iter().any(|s| p.ends_with(s)));
    let graph = source.entries()[..source.tree()].iter().find(|entry| entry.path.ends_with(".onnx"));
    let hint = match twin {
        None if graph.is_some() => {
            "; it has ONNX models, which `--spec onnx-4bit` shows quantized where their weights are \
                                    external data"
                .to_owned()
        }
        Some(twin) => format!("; it has {twin}, which is no safetensors: convert it first"),
        None => "; a model directory in the Hugging Face layout was expected".to_owned(),
    };
    format!("{}: no .safetensors file in it{hint}", source.name())
}

fn refuse_manifest(source: &dyn Source) -> Result<(), Error> {
    if source.find("quantization.json").is_some() {
        return Err(Error::refused(format!(
            "{}: quantized already (it has a quantization.json); mount the full-precision model instead",
            source.name()
        )));
    }
    Ok(())
}

fn malformed(source: &dyn Source, file: FileId, what: Malformed) -> Error {
    let path = path_of(source, file);
    // What lies beside the tree is called by its own path.
    let beside = file.0 as usize >= source.tree();
    Error::Malformed { file: if beside { path.to_owned() } else { full(source, path) }, what }
}

/// Why a header could not be had.
enum HeaderFault {
    Read(source::Error),
    Malformed(Malformed),
}

impl From<Malformed> for HeaderFault {
    fn from(what: Malformed) -> Self {
        Self::Malformed(what)
    }
}

pub(crate) fn read_header(source: &dyn Source, file: FileId) -> Result<Parsed, Error> {
    let read_at = |offset, buf: &mut [u8]| source.read_exact_at(file, offset, buf).map_err(HeaderFault::Read);
    match safetensors::read(source.entry(file).len(), read_at) {
        Ok(header) => Ok(Parsed { file, header }),
        Err(HeaderFault::Read(e)) => Err(e.into()),
        Err(HeaderFault::Malformed(what)) => Err(malformed(source, file, what)),
    }
}

pub(crate) fn read_json(source: &dyn Source, file: FileId) -> Result<Value, Error> {
    let bytes = read_small(source, file)?;
    json::parse(&bytes).map_err(|e| malformed(source, file, e))
}

fn read_small(source: &dyn Source, file: FileId) -> Result<Vec<u8>, Error> {
    let len = source.entry(file).len();
    if len > MAX_JSON {
        let what = format!("{len} bytes are too long for a JSON file of a model ({MAX_JSON} at most)");
        return Err(malformed(source, file, Malformed { what }));
    }
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    source.read_exact_at(file, 0, &mut bytes)?;
    Ok(bytes)
}

/// Puts headers into sets: first those that an index names, then the rest by stem.
/// The second list holds the files that repeat an indexed set as a whole.
fn gather(source: &dyn Source, visible: &[FileId], parsed: Vec<Parsed>) -> Result<(Vec<Set>, Vec<FileId>), Error> {
    let mut twins = vec![];
    let mut free: BTreeMap<String, Parsed> =
        parsed.into_iter().map(|p| (path_of(source, p.file).to_owned(), p)).collect();
    let mut sets = Sets::new();
    for &file in visible {
        let (dir, name) = split(path_of(source, file));
        let Some(stem) = name.strip_suffix(INDEX_SUFFIX) else { continue };
        let members = indexed(source, file, &mut free)?;
        sets.insert((dir.to_owned(), stem.to_owned()), (Some(file), members));
    }
    let mut numbered: BTreeMap<(String, String), (usize, BTreeSet<usize>)> = BTreeMap::new();
    for (path, parsed) in free {
        let (dir, name) = split(&path);
        let stem = name.strip_suffix(SHARD_SUFFIX).unwrap_or(name);
        let key = |s: &str| (dir.to_owned(), s.to_owned());
        if let Some((stem, number, of)) = safetensors::shard_number(stem) {
            let seen = numbered.entry(key(stem)).or_insert((of, BTreeSet::new()));
            seen.1.insert(number);
            sets.entry(key(stem)).or_default().1.push(parsed);
        } else if is_twin(&sets, &key(stem), &parsed) {
            twins.push(parsed.file);
        } else {
            sets.entry(key(stem)).or_default().1.push(parsed);
        }
    }
    for ((dir, stem), (of, seen)) in numbered {
        if sets.get(&(dir.clone(), stem.clone())).is_some_and(|s| s.0.is_some()) {
            continue;
        }
        if let Some(missing) = (1..=of).find(|n| !seen.contains(n)) {
            let name = join(&dir, &format!("{stem}-{missing:05}-of-{of:05}{SHARD_SUFFIX}"));
            return Err(Error::refused(format!(
                "{name}: this shard is missing from {}; download it again",
                source.name()
            )));
        }
    }
    let finished = sets.into_iter().map(|((dir, stem), (index, members))| finish(source, dir, stem, index, members));
    Ok((finished.collect::<Result<_, _>>()?, twins))
}

/// Whether an unnumbered file repeats the tensors of the indexed set of its stem.
fn is_twin(sets: &Sets, key: &(String, String), parsed: &Parsed) -> bool {
    let Some((Some(_), members)) = sets.get(key) else { return false };
    let names: BTreeSet<&str> = members.iter().flat_map(|p| &p.header.tensors).map(|t| t.info.name.as_str()).collect();
    parsed.header.tensors.iter().all(|t| names.contains(t.info.name.as_str()))
}

/// The shards that an index names; every tensor that it names must be where it says.
fn indexed(source: &dyn Source, file: FileId, free: &mut BTreeMap<String, Parsed>) -> Result<Vec<Parsed>, Error> {
    let index = index::parse(&read_small(source, file)?).map_err(|e| malformed(source, file, e))?;
    let (dir, _) = split(path_of(source, file));
    let refuse = |text: String| Error::refused(format!("{}: {text}", full(source, path_of(source, file))));
    let mut members: BTreeMap<&str, Parsed> = BTreeMap::new();
    for (tensor, shard) in &index.weight_map {
        if !members.contains_key(shard.as_str()) {
            let parsed = free.remove(&join(dir, shard));
            let parsed = parsed.ok_or_else(|| {
                refuse(format!("tensor {tensor} is said to be in {shard}, which is not there; download it again"))
            })?;
            members.insert(shard, parsed);
        }
    }
    let held: HashMap<&str, &str> =
        members.iter().flat_map(|(s, p)| p.header.tensors.iter().map(|t| (t.info.name.as_str(), *s))).collect();
    for (tensor, shard) in &index.weight_map {
        match held.get(tensor.as_str()) {
            Some(holder) if holder == shard => {}
            Some(other) => return Err(refuse(format!("tensor {tensor} is said to be in {shard}, but is in {other}"))),
            None => return Err(refuse(format!("tensor {tensor} is said to be in {shard}, which does not have it"))),
        }
    }
    Ok(members.into_values().collect())
}

fn finish(
    source: &dyn Source,
    dir: String,
    stem: String,
    index: Option<FileId>,
    members: Vec<Parsed>,
) -> Result<Set, Error> {
    let document = |name: &str| -> Result<Option<Document>, Error> {
        let Some(file) = source.find(&join(&dir, name)) else { return Ok(None) };
        Ok(Some(Document { file, value: read_json(source, file)? }))
    };
    let config = document("config.json")?;
    // mlx_lm goes on without a generation config that it cannot parse.
    let generation_config = document("generation_config.json").unwrap_or_default();
    let (mut shards, mut tensors, mut places) = (vec![], vec![], vec![]);
    let mut seen: HashMap<String, usize> = HashMap::new();
    for (number, parsed) in members.into_iter().enumerate() {
        shards.push(Shard {
            file: parsed.file,
            metadata: parsed.header.metadata,
            tensors: parsed.header.tensors.len(),
        });
        for tensor in parsed.header.tensors {
            if let Some(first) = seen.insert(tensor.info.name.clone(), number) {
                let (a, b) = (path_of(source, shards[first].file), path_of(source, parsed.file));
                return Err(Error::refused(format!(
                    "tensor {} is in {a} and again in {b}; keep one of them",
                    tensor.info.name
                )));
            }
            let (file, offset, dtype) = (parsed.file, tensor.range.start, tensor.info.dtype);
            tensors.push(tensor.info);
            places.push(Place { shard: number, range: tensor.range, dtype, file, offset, deltas: vec![] });
        }
    }
    Ok(Set { dir, stem, shards, tensors, places, index, config, generation_config, is_part: false, graph: None })
}

/// Integer or FP8 weights with scales beside them are somebody's quantization.
fn refuse_quantized(source: &dyn Source, set: &Set) -> Result<(), Error> {
    let names: BTreeSet<&str> = set.tensors.iter().map(|t| t.name.as_str()).collect();
    for tensor in &set.tensors {
        if let Some(scale) = scale_of(tensor, &names) {
            return Err(Error::refused(format!(
                "{}: quantized already (tensor {} of dtype {} has {scale}); mount the full-precision model instead",
                full(source, &set.dir),
                tensor.name,
                tensor.dtype
            )));
        }
    }
    Ok(())
}

/// The tensor that holds the scales of a quantized one, by the names that the field's formats use.
fn scale_of(tensor: &TensorInfo, names: &BTreeSet<&str>) -> Option<String> {
    let coded = matches!(
        tensor.dtype,
        Dtype::U32
            | Dtype::I32
            | Dtype::U8
            | Dtype::I8
            | Dtype::F8_E4M3
            | Dtype::F8_E5M2
            | Dtype::F4
            | Dtype::F8_E4M3FNUZ
            | Dtype::F8_E5M2FNUZ
    );
    if !coded {
        return None;
    }
    let (stem, last) = tensor.name.rsplit_once('.').unwrap_or(("", tensor.name.as_str()));
    let scales: &[&str] = match last {
        "weight" => &[
            "scales",
            "weight_scale",
            "weight_scale_inv",
            "weight.absmax",
            "SCB",
            "weight_scale_2",
            "scale",
            "weight.scale",
            "scale_weight",
        ],
        "weight_packed" => &["weight_scale"],
        "qweight" => &["scales", "qzeros"],
        "weight_quantized" => &["weight_scale"],
        _ => &[],
    };
    let blocks = tensor.name.strip_suffix("_blocks").map(|stem| format!("{stem}_scales"));
    let experts = Some(format!("{}_scale_inv", tensor.name));
    let dotted = scales.iter().map(|s| if stem.is_empty() { (*s).to_owned() } else { format!("{stem}.{s}") });
    dotted.chain(blocks).chain(experts).find(|name| names.contains(name.as_str()))
}
