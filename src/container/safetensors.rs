//! Safetensors headers: parsed and rendered without the data, for files of any size.
//!
//! A header that parses describes the whole file: tensors lie behind the header without holes or
//! overlaps and end where the file ends, every name occurs once, and every range is as long as dtype
//! and shape say. All arithmetic is checked. The checks are those of the `safetensors` crate, and
//! beyond them:
//! - equal names are refused, in `__metadata__` too, where the crate keeps one of them;
//! - an entry must be an object, where the crate also takes an array of its fields;
//! - a shape has at most [`MAX_RANK`] dimensions, an object at most a million keys.
//!
//! What MLX writes parses: `"__metadata__":null`, no padding, entries in another order than the data.
//! Knows nothing about what the tensors mean.

use std::{fmt, io::Write, ops::Range};

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, SeqAccess, Visitor},
};

use crate::{
    container::{
        Malformed, quoted,
        strict::{self, Pairs, Skipped},
    },
    tensor::{Dtype, TensorInfo},
};

/// Longest header in bytes, as in the `safetensors` crate.
pub const MAX_HEADER: u64 = 100_000_000;

/// Most dimensions of a tensor: numpy and torch stop there, and without a cap a header of the
/// greatest length could ask for eight times its size in dimensions.
pub const MAX_RANK: usize = 64;

/// Bytes before the JSON: its length, little endian.
pub const PREFIX: u64 = 8;

const METADATA: &str = "__metadata__";

/// What to do about a file that is truncated.
const AGAIN: &str = "; download, copy or write it again";

/// A parsed header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// `__metadata__` in the order of the text; empty where it is absent or null.
    pub metadata: Vec<(String, String)>,
    /// In the order of the data; empty tensors at one offset in the order of the text.
    pub tensors: Vec<Tensor>,
    /// Offset of the first data byte in the file.
    pub data_start: u64,
}

/// A tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Name, dtype, shape.
    pub info: TensorInfo,
    /// Where its bytes are, as offsets in the file.
    pub range: Range<u64>,
}

/// What the name of a shard says: `model-00001-of-00003` is number 1 of 3 of `model`.
#[must_use]
pub fn shard_number(stem: &str) -> Option<(&str, usize, usize)> {
    let (rest, of) = stem.rsplit_once("-of-")?;
    let (name, number) = rest.rsplit_once('-')?;
    let digits = |s: &str| s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit());
    (digits(number) && digits(of)).then_some((name, number.parse().ok()?, of.parse().ok()?))
}

/// Length of the JSON of a header, from the file's first eight bytes.
///
/// # Errors
/// Over [`MAX_HEADER`], or past the end of a file of `file_len` bytes.
pub fn header_len(first8: [u8; 8], file_len: u64) -> Result<u64, Malformed> {
    if &first8 == b"version " {
        return Err(Malformed::new("this is a Git LFS pointer and not the file itself: run `git lfs pull`"));
    }
    let len = u64::from_le_bytes(first8);
    if len > MAX_HEADER {
        return Err(Malformed::new(format!(
            "the header would have {len} bytes, over the cap of {MAX_HEADER}: this is no safetensors file, whatever its \
             name says; get the file that belongs here"
        )));
    }
    if len == 0 {
        return Err(Malformed::new(
            "it begins with zeros and has no header: a download that never finished? Download or write it again",
        ));
    }
    if PREFIX + len > file_len {
        let what = format!(
            "the header should end at offset {}, but the file ends at {file_len}: it is truncated{AGAIN}",
            PREFIX + len
        );
        return Err(Malformed::new(what));
    }
    Ok(len)
}

/// Reads and parses the header of a file of `file_len` bytes through `read_at`, which fills a buffer
/// from an offset on.
///
/// # Errors
/// Those of `read_at`, and those of [`header_len`] and [`parse`].
pub fn read<E: From<Malformed>>(
    file_len: u64,
    mut read_at: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
) -> Result<Header, E> {
    if file_len < PREFIX {
        let what = format!("the file has {file_len} bytes, too few for a header: it is truncated{AGAIN}");
        return Err(Malformed::new(what).into());
    }
    let mut first8 = [0; 8];
    read_at(0, &mut first8)?;
    let len = usize::try_from(header_len(first8, file_len)?).map_err(|e| Malformed::new(e.to_string()))?;
    let mut json = vec![0; len];
    read_at(PREFIX, &mut json)?;
    Ok(parse(&json, file_len)?)
}

/// Parses the JSON of a header of a file of `file_len` bytes.
///
/// # Errors
/// Whatever the module's promise excludes, with the tensor and the offset.
pub fn parse(json: &[u8], file_len: u64) -> Result<Header, Malformed> {
    let data_start = PREFIX + header_len((json.len() as u64).to_le_bytes(), file_len)?;
    let Raw { metadata, mut entries } = strict::parse(json, PREFIX)?;
    if let Some(name) = strict::duplicate(entries.iter().map(|(name, _)| name.as_str())) {
        return Err(Malformed::new(format!("tensor {} is there twice", quoted(name))));
    }
    entries.sort_by_key(|(_, entry)| entry.data_offsets);
    let mut end = 0;
    let mut tensors = Vec::with_capacity(entries.len());
    for (name, entry) in entries {
        let range =
            entry.checked_range(end).map_err(|why| Malformed::new(format!("tensor {}: {why}", quoted(&name))))?;
        end = range.end;
        let range = absolute(range, data_start)
            .ok_or_else(|| Malformed::new(format!("tensor {}: its end overflows", quoted(&name))))?;
        tensors.push(Tensor { info: TensorInfo { name, dtype: entry.dtype, shape: entry.shape.0 }, range });
    }
    data_ends_with_file(tensors.last().map_or(data_start, |t| t.range.end), file_len)?;
    Ok(Header { metadata, tensors, data_start })
}

fn absolute(range: Range<u64>, data_start: u64) -> Option<Range<u64>> {
    Some(range.start.checked_add(data_start)?..range.end.checked_add(data_start)?)
}

fn data_ends_with_file(end: u64, file_len: u64) -> Result<(), Malformed> {
    match end.cmp(&file_len) {
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Greater => Err(Malformed::new(format!(
            "the data should end at offset {end}, but the file ends at {file_len}: it is truncated{AGAIN}"
        ))),
        std::cmp::Ordering::Less => Err(Malformed::new(format!(
            "the data ends at offset {end}, but the file has {} bytes more, which belong to no tensor",
            file_len - end
        ))),
    }
}

/// An entry of the header as its text states it; nothing is checked but types.
struct Entry {
    dtype: Dtype,
    shape: Shape,
    data_offsets: (u64, u64),
}

impl Entry {
    /// The range of the data, given where the tensors before it end.
    fn checked_range(&self, end: u64) -> Result<Range<u64>, String> {
        let (start, stop) = self.data_offsets;
        if stop < start {
            return Err(format!("its data ends at offset {stop} of the data section, before its start at {start}"));
        }
        if start < end {
            return Err(format!(
                "its data starts at offset {start} of the data section, within the tensor that ends at {end}"
            ));
        }
        if start > end {
            return Err(format!(
                "{} bytes before its data, at offset {end} of the data section, belong to no tensor",
                start - end
            ));
        }
        let Self { dtype, shape: Shape(shape), .. } = self;
        let len = crate::tensor::byte_len(*dtype, shape).ok_or_else(|| uncountable(*dtype, shape))?;
        if stop - start != len as u64 {
            return Err(format!(
                "{dtype} with shape {shape:?} takes {len} bytes, but data_offsets give {}",
                stop - start
            ));
        }
        Ok(start..stop)
    }
}

fn uncountable(dtype: Dtype, shape: &[usize]) -> String {
    format!("{dtype} with shape {shape:?} has no size in whole bytes that can be counted")
}

/// Dimensions, at most [`MAX_RANK`] of them.
struct Shape(Vec<usize>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ShapeVisitor)
    }
}

struct ShapeVisitor;

impl<'de> Visitor<'de> for ShapeVisitor {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of dimensions")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
        let mut shape = vec![];
        while let Some(dimension) = seq.next_element()? {
            if shape.len() == MAX_RANK {
                return Err(de::Error::custom(format_args!("the shape has over {MAX_RANK} dimensions")));
            }
            shape.push(dimension);
        }
        Ok(Shape(shape))
    }
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EntryVisitor)
    }
}

struct EntryVisitor;

impl<'de> Visitor<'de> for EntryVisitor {
    type Value = Entry;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with dtype, shape and data_offsets")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entry, A::Error> {
        let (mut dtype, mut shape, mut data_offsets) = (None, None, None);
        while let Some(key) = map.next_key::<String>()? {
            let first = match key.as_str() {
                "dtype" => dtype.replace(map.next_value()?).is_none(),
                "shape" => shape.replace(map.next_value()?).is_none(),
                "data_offsets" => data_offsets.replace(map.next_value()?).is_none(),
                _ => {
                    map.next_value::<Skipped>()?;
                    true
                }
            };
            if !first {
                return Err(de::Error::custom(format_args!("`{key}` is there twice")));
            }
        }
        Ok(Entry {
            dtype: dtype.ok_or_else(|| de::Error::missing_field("dtype"))?,
            shape: shape.ok_or_else(|| de::Error::missing_field("shape"))?,
            data_offsets: data_offsets.ok_or_else(|| de::Error::missing_field("data_offsets"))?,
        })
    }
}

/// The header as its text states it.
struct Raw {
    metadata: Vec<(String, String)>,
    entries: Vec<(String, Entry)>,
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let (mut metadata, mut entries) = (None, vec![]);
        while let Some(name) = map.next_key::<String>()? {
            if name == METADATA {
                let pairs = map.next_value::<Option<Pairs<String>>>().map_err(|e| within(METADATA, &e))?;
                if metadata.replace(pairs).is_some() {
                    return Err(de::Error::custom(format_args!("`{METADATA}` is there twice")));
                }
            } else {
                let entry = map.next_value().map_err(|e| within(&name, &e))?;
                strict::room_after(entries.len())?;
                entries.push((name, entry));
            }
        }
        let metadata = metadata.flatten().map(|Pairs(pairs)| pairs).unwrap_or_default();
        Ok(Raw { metadata, entries })
    }
}

/// The error of a value, with the name that it stands under.
fn within<E: de::Error>(name: &str, error: &E) -> E {
    let kind = if name == METADATA { "" } else { "tensor " };
    E::custom(format_args!("{kind}{}: {error}", quoted(name)))
}

/// A header and where the data of each tensor goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// The file up to its first data byte: length, JSON, spaces.
    pub preamble: Vec<u8>,
    /// Offset in the file of each tensor, in the order in which they were given.
    pub offsets: Vec<u64>,
    /// Length of the file.
    pub len: u64,
}

/// Renders the header of a file whose data lies in the order of `tensors`, without holes, and starts
/// on a multiple of `align` bytes (0 and 1 pad nothing; the `safetensors` crate writes 8).
///
/// # Errors
/// A name or metadata key given twice or reserved, a tensor without a size in whole bytes, a header
/// over [`MAX_HEADER`].
pub fn render(
    tensors: &[TensorInfo],
    metadata: Option<&[(String, String)]>,
    align: usize,
) -> Result<Rendered, Malformed> {
    refuse_duplicates(tensors, metadata)?;
    let mut json = b"{".to_vec();
    if let Some(pairs) = metadata {
        push_metadata(&mut json, pairs)?;
    }
    let mut end = 0u64;
    let mut starts = Vec::with_capacity(tensors.len());
    for info in tensors {
        let stop = info.byte_len().and_then(|len| end.checked_add(len as u64)).ok_or_else(|| {
            Malformed::new(format!("tensor {}: {}", quoted(&info.name), uncountable(info.dtype, &info.shape)))
        })?;
        push_entry(&mut json, info, end..stop)?;
        starts.push(end);
        end = stop;
    }
    json.push(b'}');
    let preamble = preamble(json, align)?;
    let data_start = preamble.len() as u64;
    let overflow = || Malformed::new("the file would be longer than can be counted");
    let len = end.checked_add(data_start).ok_or_else(overflow)?;
    Ok(Rendered { preamble, offsets: starts.into_iter().map(|start| start + data_start).collect(), len })
}

fn refuse_duplicates(tensors: &[TensorInfo], metadata: Option<&[(String, String)]>) -> Result<(), Malformed> {
    if let Some(name) = strict::duplicate(tensors.iter().map(|t| t.name.as_str()).chain([METADATA])) {
        let why = if name == METADATA { "is reserved and can name no tensor" } else { "would be there twice" };
        return Err(Malformed::new(format!("tensor {} {why}", quoted(name))));
    }
    match strict::duplicate(metadata.unwrap_or_default().iter().map(|(key, _)| key.as_str())) {
        Some(key) => Err(Malformed::new(format!("{} would be in `{METADATA}` twice", quoted(key)))),
        None => Ok(()),
    }
}

fn push_metadata(json: &mut Vec<u8>, pairs: &[(String, String)]) -> Result<(), Malformed> {
    push_string(json, METADATA)?;
    json.extend(b":{");
    for (i, (key, value)) in pairs.iter().enumerate() {
        separate(json, i == 0);
        push_string(json, key)?;
        json.push(b':');
        push_string(json, value)?;
    }
    json.push(b'}');
    Ok(())
}

fn push_entry(json: &mut Vec<u8>, info: &TensorInfo, range: Range<u64>) -> Result<(), Malformed> {
    separate(json, json.len() == 1);
    push_string(json, &info.name)?;
    write!(json, ":{{\"dtype\":\"{}\",\"shape\":[", info.dtype).map_err(unwritable)?;
    for (i, dimension) in info.shape.iter().enumerate() {
        separate(json, i == 0);
        write!(json, "{dimension}").map_err(unwritable)?;
    }
    write!(json, "],\"data_offsets\":[{},{}]}}", range.start, range.end).map_err(unwritable)
}

fn separate(json: &mut Vec<u8>, first: bool) {
    if !first {
        json.push(b',');
    }
}

fn push_string(json: &mut Vec<u8>, text: &str) -> Result<(), Malformed> {
    serde_json::to_writer(json, text).map_err(unwritable)
}

/// Writing to memory does not fail; should it ever, it is an error and no panic.
fn unwritable(error: impl fmt::Display) -> Malformed {
    Malformed::new(format!("cannot write the header: {error}"))
}

/// Length, JSON, and spaces up to a multiple of `align`.
fn preamble(json: Vec<u8>, align: usize) -> Result<Vec<u8>, Malformed> {
    let prefix = size_of::<u64>();
    let padded = (prefix + json.len()).checked_next_multiple_of(align.max(1));
    let header = padded.map(|len| (len - prefix) as u64).filter(|&len| len <= MAX_HEADER);
    let too_long =
        || Malformed::new(format!("the header would have {} bytes, over the cap of {MAX_HEADER}", json.len()));
    let len = header.ok_or_else(too_long)?;
    let mut preamble = len.to_le_bytes().to_vec();
    preamble.extend(json);
    preamble.resize(padded.unwrap_or(0), b' ');
    Ok(preamble)
}
