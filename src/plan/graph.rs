//! ONNX models: sets of weights whose header is a graph.
//!
//! Every tensor of a model that lies in another file is a tensor of its set, and the data files are the
//! set's shards. A view shows model and data files under their own names; the data is laid out anew,
//! kept tensors as they are and the parts of quantized ones in the place of their weight, and the
//! model says where. Models that share a data file are written together; those with nothing to
//! quantize are shown as they are.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    container::{Malformed, onnx},
    plan::{
        Content, Error, Extent, File,
        decide::{Decision, Stored},
        layout::{self, Unit},
        snapshot::{Place, Set, Shard, full, join, path_of, split},
    },
    quant::dialect::onnx::part_name,
    source::{FileId, Source},
    tensor::{Dtype, TensorInfo},
};

const SUFFIX: &str = ".onnx";

/// Files that are something else than the data of a model.
const NO_DATA: [&str; 3] = [SUFFIX, ".safetensors", ".json"];

/// Tensors of at least a page start on one, as ONNX asks of what is mapped.
const PAGE: u64 = 4096;

/// Smaller tensors are aligned for any element type and a cache line.
const LINE: u64 = 64;

/// A model whose tensors are a set.
#[derive(Debug)]
pub(crate) struct Graph {
    pub(crate) file: FileId,
    bytes: Vec<u8>,
    pub(crate) model: onnx::Model,
}

/// The models among some files, each a set, and what is to be said of those that are none.
pub(crate) fn read(source: &dyn Source, files: &[FileId]) -> Result<(Vec<Set>, Vec<String>), Error> {
    let (mut sets, mut warnings) = (vec![], vec![]);
    for &file in files.iter().filter(|f| path_of(source, **f).ends_with(SUFFIX)) {
        let (path, len) = (full(source, path_of(source, file)), source.entry(file).len());
        if len > onnx::MAX_MODEL {
            let cap = onnx::MAX_MODEL;
            warnings.push(format!(
                "{path}: shown as it is: {len} bytes are too long for a graph ({cap} at most); save it with external data"
            ));
            continue;
        }
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        source.read_exact_at(file, 0, &mut bytes)?;
        let model = onnx::parse(&bytes).map_err(|what| Error::Malformed { file: path.clone(), what })?;
        if model.inline > 0 {
            warnings.push(format!(
                "{path}: products whose weight lies in the model itself stay as they are ({} of them); save it with external data",
                model.inline
            ));
        }
        if !model.tensors.is_empty() {
            sets.push(set(source, Graph { file, bytes, model })?);
        }
    }
    Ok((sets, warnings))
}

fn set(source: &dyn Source, graph: Graph) -> Result<Set, Error> {
    let path = path_of(source, graph.file);
    let (dir, name) = split(path);
    let malformed = |what| Error::Malformed { file: full(source, path), what };
    let mut shards: Vec<Shard> = vec![];
    let (mut tensors, mut places) = (vec![], vec![]);
    for tensor in &graph.model.tensors {
        let file = data_file(source, dir, &tensor.location).map_err(malformed)?;
        let shard = shards.iter().position(|s| s.file == file).unwrap_or_else(|| {
            shards.push(Shard { file, metadata: vec![], tensors: 0 });
            shards.len() - 1
        });
        shards[shard].tensors += 1;
        let range = tensor.range(source.entry(file).len()).map_err(malformed)?;
        tensors.push(info(tensor, range.end - range.start));
        let (file, offset) = (shards[shard].file, range.start);
        let dtype = tensors.last().map_or(Dtype::U8, |info: &TensorInfo| info.dtype);
        places.push(Place { shard, range, dtype, file, offset, deltas: vec![] });
    }
    Ok(Set {
        dir: dir.to_owned(),
        stem: name.strip_suffix(SUFFIX).unwrap_or(name).to_owned(),
        shards,
        tensors,
        places,
        index: None,
        config: None,
        generation_config: None,
        is_part: false,
        graph: Some(graph),
    })
}

/// Types that the other containers have no word for are shown as bytes; tensors without a name lie in attributes.
fn info(tensor: &onnx::External, len: u64) -> TensorInfo {
    let bytes = || (Dtype::U8, vec![usize::try_from(len).unwrap_or(usize::MAX)]);
    let (dtype, shape) = tensor.dtype().map_or_else(bytes, |dtype| (dtype, tensor.shape.clone()));
    let name =
        if tensor.name.is_empty() { format!("{}@{}", tensor.location, tensor.offset) } else { tensor.name.clone() };
    TensorInfo { name, dtype, shape }
}

/// The file of a location, which is a path below the model's directory.
fn data_file(source: &dyn Source, dir: &str, location: &str) -> Result<FileId, Malformed> {
    let parts: Vec<&str> = location.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    let refuse = |why: &str| Malformed::new(format!("its weights should lie in `{location}`, {why}"));
    if location.starts_with('/') || parts.contains(&"..") {
        return Err(refuse("which is not below the model's directory"));
    }
    if NO_DATA.iter().any(|suffix| location.ends_with(suffix)) {
        return Err(refuse("which a view cannot lay out anew; save the model with a data file of its own"));
    }
    source.find(&join(dir, &parts.join("/"))).ok_or_else(|| refuse("which is not there; download it again"))
}

/// A model of which everything is decided but where its tensors lie.
pub(crate) struct Drafted<'a> {
    pub(crate) set: &'a Set,
    pub(crate) graph: &'a Graph,
    /// One a tensor.
    pub(crate) units: Vec<Unit>,
    /// One a tensor.
    pub(crate) decisions: Vec<Decision>,
}

impl Drafted<'_> {
    fn is_quantized(&self) -> bool {
        self.decisions.iter().any(|decision| decision.stored.is_some())
    }

    fn files(&self) -> impl Iterator<Item = FileId> {
        self.set.shards.iter().map(|s| s.file)
    }

    /// What the view needs of a tensor: its parts, its own bytes, or both.
    fn wants(&self, tensor: usize) -> [Option<Key>; 2] {
        let place = &self.set.places[tensor];
        let (file, start, end) = (self.set.shards[place.shard].file, place.range.start, place.range.end);
        let key = |parts| Key { file, start, end, parts };
        let stored = self.decisions[tensor].stored.as_ref();
        let parts = stored.map(|s| key(Some(format!("{} {:?}", s.scheme.id(), s.weight))));
        let kept = stored.is_none() || self.graph.model.tensors[tensor].needed;
        [parts, kept.then(|| key(None))]
    }
}

/// What is laid out once, however many tensors of however many models ask for it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    file: FileId,
    start: u64,
    end: u64,
    /// What the parts are a function of; `None` for the bytes as they are.
    parts: Option<String>,
}

/// Contents of one key in order, with their lengths.
type Contents = Vec<(Content, u64)>;

/// Models and data files as the view shows them; nothing of those that do not change.
pub(crate) fn lay(source: &dyn Source, drafted: &[Drafted<'_>]) -> Result<Vec<File>, Error> {
    let changed = changed(drafted);
    let models: Vec<&Drafted<'_>> = drafted.iter().filter(|d| d.files().any(|f| changed.contains(&f))).collect();
    let mut wanted: BTreeMap<Key, Contents> = BTreeMap::new();
    for model in &models {
        for tensor in 0..model.units.len() {
            let [parts, kept] = model.wants(tensor);
            if let Some(key) = parts {
                let contents = model.units[tensor].outputs.iter().flat_map(|output| output.contents.clone()).collect();
                wanted.insert(key, contents);
            }
            if let Some(key) = kept {
                let contents = vec![(Content::Source { file: key.file, offset: key.start }, key.end - key.start)];
                wanted.insert(key, contents);
            }
        }
    }
    let inputs = |file: FileId| {
        let readers = models.iter().filter(move |m| m.files().any(|f| f == file));
        layout::newest(source, readers.map(|m| m.graph.file).chain([file]))
    };
    let mut laid = Laid { files: BTreeMap::new(), ranges: BTreeMap::new() };
    for (key, contents) in wanted {
        let new =
            || File { path: path_of(source, key.file).to_owned(), len: 0, modified: inputs(key.file), extents: vec![] };
        let file = laid.files.entry(key.file).or_insert_with(new);
        let ranges = contents.into_iter().map(|(content, len)| append(file, content, len)).collect::<Option<_>>();
        let ranges = ranges.ok_or_else(|| Error::refused(format!("{}: longer than can be counted", file.path)))?;
        laid.ranges.insert(key, ranges);
    }
    let mut files = models.iter().map(|model| rendered(source, model, &laid)).collect::<Result<Vec<_>, _>>()?;
    files.extend(laid.files.into_values());
    Ok(files)
}

/// Data files laid out, and where each key lies in its own.
struct Laid {
    files: BTreeMap<FileId, File>,
    ranges: BTreeMap<Key, Vec<std::ops::Range<u64>>>,
}

/// The data files that cannot stay as they are: a weight in one of the model's is quantized, or the
/// model shares one with such a model.
fn changed(drafted: &[Drafted<'_>]) -> BTreeSet<FileId> {
    let quantized = drafted.iter().filter(|d| d.is_quantized());
    let mut changed: BTreeSet<FileId> = quantized.flat_map(Drafted::files).collect();
    loop {
        let sharing = drafted.iter().filter(|d| d.files().any(|f| changed.contains(&f)));
        let more: BTreeSet<FileId> = sharing.flat_map(Drafted::files).collect();
        if more.len() == changed.len() {
            return changed;
        }
        changed = more;
    }
}

/// Adds bytes at the end of a file, aligned; `None` where that is further than can be counted.
fn append(file: &mut File, content: Content, len: u64) -> Option<std::ops::Range<u64>> {
    let start = file.len.checked_next_multiple_of(if len >= PAGE { PAGE } else { LINE })?;
    let end = start.checked_add(len)?;
    if len > 0 {
        if start > file.len {
            let padding = vec![0; usize::try_from(start - file.len).ok()?];
            file.extents.push(Extent { start: file.len, content: Content::Bytes(padding.into()) });
        }
        file.extents.push(Extent { start, content });
        file.len = end;
    }
    Some(start..end)
}

fn rendered(source: &dyn Source, model: &Drafted<'_>, laid: &Laid) -> Result<File, Error> {
    let graph = model.graph;
    let edit = |tensor: usize| {
        let [parts, kept] = model.wants(tensor);
        let ranges = |key: Option<Key>| key.and_then(|key| laid.ranges.get(&key));
        let stored = model.decisions[tensor].stored.as_ref();
        onnx::Edit {
            range: ranges(kept).and_then(|r| r.first()).cloned(),
            product: stored.zip(ranges(parts)).map(|(stored, ranges)| nbits(stored, ranges)),
        }
    };
    let edits: Vec<onnx::Edit> = (0..model.units.len()).map(edit).collect();
    let path = path_of(source, graph.file).to_owned();
    let bytes = onnx::render(&graph.bytes, &graph.model, &edits)
        .map_err(|what| Error::Malformed { file: path.clone(), what })?;
    let modified = layout::newest(source, model.files().chain([graph.file]));
    Ok(layout::known(path, modified, bytes))
}

fn nbits(stored: &Stored, ranges: &[std::ops::Range<u64>]) -> onnx::NBits {
    let facts = stored.scheme.facts();
    let parts = stored.parts.iter().zip(ranges).map(|(part, range)| onnx::Part {
        name: part_name(&stored.weight.stem, part, &facts),
        bytes: part.dtype == Dtype::U8,
        shape: part.shape.clone(),
        range: range.clone(),
    });
    onnx::NBits { bits: facts.bits, block: facts.group_size, parts: parts.collect() }
}
