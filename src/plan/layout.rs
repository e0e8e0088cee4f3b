//! Where tensors lie: units into files, files into extents.
//!
//! By default a file of the view mirrors its source file. Parts of one weight lie next to each
//! other; the data starts with a page; units whose lengths are multiples of 8 come
//! first and constants of other lengths last, so that every code word and scale is aligned.

use std::time::SystemTime;

use crate::{
    container::safetensors,
    plan::{
        Content, Error, Extent, File,
        snapshot::{Set, Shard},
    },
    source::{FileId, Source},
    tensor::TensorInfo,
};

/// Alignment of the data section: a page. The kernel asks for whole pages, and who reads a header must not make it
/// ask for weights.
const ALIGN: usize = 4096;

/// `__metadata__` of a header, in order.
type Metadata = [(String, String)];

/// The tensors that one tensor of the arrangement becomes; they stay together.
#[derive(Debug)]
pub(crate) struct Unit {
    /// Shard of the set that its first member lies in.
    pub(crate) home: usize,
    /// Where in that shard.
    pub(crate) offset: u64,
    /// Whether it is a tensor of that shard just as it lies there.
    pub(crate) as_is: bool,
    /// Whether nothing of it comes from another shard.
    pub(crate) at_home: bool,
    /// In file order.
    pub(crate) outputs: Vec<Output>,
}

impl Output {
    /// Whether it may lie anywhere, and would shift what comes after it: constants are made of no source.
    fn is_loose(&self) -> bool {
        !self.len.is_multiple_of(8) && self.contents.iter().all(|(content, _)| matches!(content, Content::Bytes(_)))
    }
}

/// One tensor of the view.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) info: TensorInfo,
    pub(crate) len: u64,
    /// Contents in order, each with its length.
    pub(crate) contents: Vec<(Content, u64)>,
}

impl Unit {
    pub(crate) fn len(&self) -> u64 {
        self.outputs.iter().map(|o| o.len).sum()
    }

    /// Units of whole 8-byte words first, then by falling element size.
    fn rank(&self) -> usize {
        let bound = || self.outputs.iter().filter(|o| !o.is_loose());
        if bound().all(|o| o.len % 8 == 0) {
            return 0;
        }
        let size = bound().map(|o| o.info.dtype.bitsize() / 8).max().unwrap_or(1);
        9usize.saturating_sub(size)
    }
}

/// The files of a set, and for each unit the name of its file (below the set's directory).
pub(crate) struct Laid {
    pub(crate) files: Vec<File>,
    pub(crate) names: Vec<String>,
    /// Whether any file was written anew.
    pub(crate) rewritten: bool,
}

/// Lays a set out: mirrored, or in fresh shards of at most `shard_size` bytes. `metadata` makes the
/// view's header metadata of the source's.
pub(crate) fn lay(
    source: &dyn Source,
    set: &Set,
    metadata: &dyn Fn(&Metadata) -> Vec<(String, String)>,
    units: &[Unit],
    shard_size: Option<u64>,
) -> Result<Laid, Error> {
    let groups = match shard_size {
        Some(limit) => fresh(set, units, limit),
        None => mirrored(source, set, units),
    };
    let newest = newest(source, set.files());
    let mut laid = Laid { files: vec![], names: vec![String::new(); units.len()], rewritten: false };
    for group in groups {
        for &unit in &group.units {
            laid.names[unit].clone_from(&group.name);
        }
        let own = group.shard.filter(|_| !set.is_part).map(|s| &set.shards[s]);
        let metadata = metadata(own.map_or(set.shards[0].metadata.as_slice(), |s| &s.metadata));
        let members: Vec<&Unit> = group.units.iter().map(|u| &units[*u]).collect();
        let as_is =
            |s: &&Shard| s.metadata == metadata && members.len() == s.tensors && members.iter().all(|u| u.as_is);
        let untouched = own.filter(as_is);
        let path = set.path(&group.name);
        laid.files.push(match untouched {
            Some(shard) => whole(source, shard.file, path),
            None => {
                laid.rewritten = true;
                let alone = own.filter(|_| members.iter().all(|u| u.at_home));
                let modified = alone.map_or(newest, |s| source.entry(s.file).modified());
                render(path, modified, &metadata, members)?
            }
        });
    }
    Ok(laid)
}

/// The units of one file.
struct Group {
    name: String,
    /// The source shard that it mirrors.
    shard: Option<usize>,
    units: Vec<usize>,
}

fn mirrored(source: &dyn Source, set: &Set, units: &[Unit]) -> Vec<Group> {
    let name = |s: usize| {
        if set.is_part {
            return shard_name(&set.stem, s + 1, set.shards.len());
        }
        let path = &source.entry(set.shards[s].file).path;
        path.rsplit('/').next().unwrap_or(path).to_owned()
    };
    let mut groups: Vec<Group> =
        (0..set.shards.len()).map(|s| Group { name: name(s), shard: Some(s), units: vec![] }).collect();
    for (number, unit) in units.iter().enumerate() {
        groups[unit.home].units.push(number);
    }
    for group in &mut groups {
        group.units.sort_by_key(|u| (units[*u].rank(), units[*u].offset));
    }
    groups.retain(|g| !g.units.is_empty());
    groups
}

/// Greedy in the arrangement's order: a new shard where the next unit would go past the limit.
fn fresh(set: &Set, units: &[Unit], limit: u64) -> Vec<Group> {
    let mut shards: Vec<Vec<usize>> = vec![];
    let mut size = 0;
    for (number, unit) in units.iter().enumerate() {
        match shards.last_mut() {
            Some(last) if size + unit.len() <= limit => last.push(number),
            _ => {
                shards.push(vec![number]);
                size = 0;
            }
        }
        size += unit.len();
    }
    let of = shards.len();
    let group = |(i, mut members): (usize, Vec<usize>)| {
        members.sort_by_key(|u| units[*u].rank());
        Group { name: shard_name(&set.stem, i + 1, of), shard: None, units: members }
    };
    shards.into_iter().enumerate().map(group).collect()
}

/// As every writer of the field names shards.
fn shard_name(stem: &str, number: usize, of: usize) -> String {
    if of == 1 { format!("{stem}.safetensors") } else { format!("{stem}-{number:05}-of-{of:05}.safetensors") }
}

/// The newest modification time of some files.
pub(crate) fn newest(source: &dyn Source, files: impl Iterator<Item = FileId>) -> SystemTime {
    files.map(|f| source.entry(f).modified()).max().unwrap_or(SystemTime::UNIX_EPOCH)
}

/// A source file as it is.
pub(crate) fn whole(source: &dyn Source, file: FileId, path: String) -> File {
    let entry = source.entry(file);
    let extents =
        if entry.is_empty() { vec![] } else { vec![Extent { start: 0, content: Content::Source { file, offset: 0 } }] };
    File { path, len: entry.len(), modified: entry.modified(), extents }
}

/// A file whose bytes are known now.
pub(crate) fn known(path: String, modified: SystemTime, bytes: Vec<u8>) -> File {
    File {
        path,
        len: bytes.len() as u64,
        modified,
        extents: vec![Extent { start: 0, content: Content::Bytes(bytes.into()) }],
    }
}

fn render(path: String, modified: SystemTime, metadata: &[(String, String)], units: Vec<&Unit>) -> Result<File, Error> {
    let (loose, mut outputs): (Vec<&Output>, Vec<&Output>) =
        units.into_iter().flat_map(|u| &u.outputs).partition(|output| output.is_loose());
    outputs.extend(loose);
    let infos: Vec<TensorInfo> = outputs.iter().map(|o| o.info.clone()).collect();
    let metadata = Some(metadata).filter(|m| !m.is_empty());
    let rendered =
        safetensors::render(&infos, metadata, ALIGN).map_err(|what| Error::Malformed { file: path.clone(), what })?;
    let mut extents = vec![Extent { start: 0, content: Content::Bytes(rendered.preamble.into()) }];
    for (output, start) in outputs.iter().zip(&rendered.offsets) {
        let mut at = *start;
        for (content, len) in &output.contents {
            if *len > 0 {
                extents.push(Extent { start: at, content: content.clone() });
            }
            at += len;
        }
    }
    Ok(File { path, len: rendered.len, modified, extents })
}
