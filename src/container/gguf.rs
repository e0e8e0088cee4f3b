//! GGUF: what its header says, and where its tensors lie. Enough for the small files that go with models (importance
//! matrices); models themselves are not read.
//!
//! Versions 2 and 3, little endian. Nothing is believed before the bytes for it are seen: every length is checked against
//! what is left of the file. Names and texts stay where they are in the file, and what is made of it is a list of its
//! tensors: less than twice as large as the file, whatever it says. Names are unique, tensors lie within the file.

use std::{ops::Range, str};

use crate::container::{Malformed, quoted};

/// The first four bytes.
pub const MAGIC: [u8; 4] = *b"GGUF";

/// The type of a tensor of f32.
pub const F32: u32 = 0;

/// Most dimensions of a tensor, as in ggml.
const MAX_RANK: u32 = 4;
/// Longest name of a tensor; ggml has 64 bytes.
const MAX_NAME: usize = 1024;
/// What tensors are aligned to where the file does not say.
const ALIGNMENT: u64 = 32;
/// The largest alignment that makes sense: a huge page.
const MAX_ALIGNMENT: u64 = 1 << 21;

/// Bytes of a tensor without name and dimensions: the lengths of these, its type, its offset.
const MIN_TENSOR: usize = 24;
const _: () = assert!(size_of::<Tensor<'_>>() < 2 * MIN_TENSOR);

/// A parsed file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gguf<'a> {
    /// The entry `general.type`: what the file is, where that is not a model.
    pub kind: Option<&'a str>,
    /// By their names.
    tensors: Vec<Tensor<'a>>,
}

/// A tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tensor<'a> {
    /// `blk.0.attn_q.weight`
    pub name: &'a str,
    /// The product of its dimensions.
    pub elements: u64,
    /// ggml's number of its type.
    pub kind: u32,
    /// Offset of the first byte in the file.
    pub start: u64,
}

impl<'a> Gguf<'a> {
    /// The tensors in the order of their names.
    #[must_use]
    pub fn tensors(&self) -> &[Tensor<'a>] {
        &self.tensors
    }

    /// The tensor of a name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&Tensor<'a>> {
        self.tensors.binary_search_by(|tensor| tensor.name.cmp(name)).ok().map(|at| &self.tensors[at])
    }
}

impl Tensor<'_> {
    /// Where its bytes are, if it is of f32.
    ///
    /// # Errors
    /// Another type, or an end past that of the file.
    pub fn floats(&self, file_len: u64) -> Result<Range<u64>, Malformed> {
        let wrong = |why: String| Malformed::new(format!("tensor {}: {why}", quoted(self.name)));
        if self.kind != F32 {
            return Err(wrong(format!("it is of ggml's type {}, and F32 ({F32}) is read", self.kind)));
        }
        let end =
            self.elements.checked_mul(4).and_then(|len| self.start.checked_add(len)).filter(|end| *end <= file_len);
        let end = end.ok_or_else(|| {
            let (count, at) = (self.elements, self.start);
            wrong(format!("{count} elements at offset {at} end past the file's {file_len} bytes: is it truncated?"))
        })?;
        Ok(self.start..end)
    }
}

/// Parses a file.
///
/// # Errors
/// Whatever the module's promise excludes, with the offset.
pub fn parse(file: &[u8]) -> Result<Gguf<'_>, Malformed> {
    let mut reader = Reader { file, at: 0 };
    if reader.take(4)? != MAGIC {
        return Err(Malformed::new("it does not begin with `GGUF`"));
    }
    let version = reader.u32()?;
    if !(2..=3).contains(&version) {
        let why = if version.swap_bytes() <= 3 { "big endian" } else { "of another version" };
        return Err(Malformed::new(format!("it is {why} (version {version}); 2 and 3, little endian, are read")));
    }
    let (tensors, entries) = (reader.u64()?, reader.u64()?);
    let (mut of_type, mut alignment) = (None, ALIGNMENT);
    for _ in 0..entries {
        match (reader.string()?, reader.u32()?) {
            ("general.type", STRING) if of_type.is_none() => of_type = Some(reader.string()?),
            ("general.alignment", U32) => alignment = u64::from(reader.u32()?),
            (_, kind) => reader.skip(kind)?,
        }
    }
    if !alignment.is_power_of_two() || alignment > MAX_ALIGNMENT {
        return Err(Malformed::new(format!(
            "its general.alignment is {alignment}, no power of two up to {MAX_ALIGNMENT}"
        )));
    }
    let most = (file.len() - reader.at) / MIN_TENSOR;
    let mut found = Vec::with_capacity(usize::try_from(tensors).unwrap_or(usize::MAX).min(most));
    for _ in 0..tensors {
        found.push(reader.tensor()?);
    }
    found.sort_unstable_by_key(|tensor| tensor.name);
    if let Some([twice, ..]) = found.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(Malformed::new(format!("tensor {} is there twice", quoted(twice.name))));
    }
    let data = (reader.at as u64).next_multiple_of(alignment);
    for tensor in &mut found {
        let start = tensor.start.checked_add(data).filter(|start| *start <= file.len() as u64);
        tensor.start = start
            .ok_or_else(|| Malformed::new(format!("tensor {} starts past the end of the file", quoted(tensor.name))))?;
    }
    Ok(Gguf { kind: of_type, tensors: found })
}

const U32: u32 = 4;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// Bytes of a value of a type that has a fixed size.
fn size(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        U32 | 5 | 6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

/// What is left of a file.
struct Reader<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: u64) -> Result<&'a [u8], Malformed> {
        let left = self.file.len() - self.at;
        let len = usize::try_from(len).ok().filter(|len| *len <= left);
        let Some(len) = len else {
            return Err(
                self.malformed(format!("more should follow than the {left} bytes that are left: is it truncated?"))
            );
        };
        let taken = &self.file[self.at..self.at + len];
        self.at += len;
        Ok(taken)
    }

    fn malformed(&self, why: impl AsRef<str>) -> Malformed {
        Malformed::new(format!("offset {}: {}", self.at, why.as_ref()))
    }

    fn number<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let bytes = self.take(N as u64)?;
        bytes.first_chunk().copied().ok_or_else(|| self.malformed("a number is cut short"))
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.number().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.number().map(u64::from_le_bytes)
    }

    fn string(&mut self) -> Result<&'a str, Malformed> {
        let len = self.u64()?;
        let bytes = self.take(len)?;
        str::from_utf8(bytes).map_err(|e| self.malformed(format!("a string that is no UTF-8: {e}")))
    }

    /// Passes over a value.
    fn skip(&mut self, kind: u32) -> Result<(), Malformed> {
        match (kind, size(kind)) {
            (_, Some(size)) => self.take(size).map(drop),
            (STRING, None) => self.string().map(drop),
            (ARRAY, None) => self.skip_array(),
            _ => Err(self.malformed(format!("an entry of the unknown type {kind}"))),
        }
    }

    fn skip_array(&mut self) -> Result<(), Malformed> {
        let (kind, count) = (self.u32()?, self.u64()?);
        match (kind, size(kind)) {
            (_, Some(size)) => {
                let len = size.checked_mul(count).ok_or_else(|| self.malformed(format!("an array of {count}")))?;
                self.take(len).map(drop)
            }
            // Each takes eight bytes at least, so that the file ends before any count is reached that is a lie.
            (STRING, None) => (0..count).try_for_each(|_| self.string().map(drop)),
            _ => Err(self.malformed(format!("an array of the type {kind}, which is not read"))),
        }
    }

    fn tensor(&mut self) -> Result<Tensor<'a>, Malformed> {
        let name = self.string()?;
        if name.len() > MAX_NAME {
            return Err(self.malformed(format!("a tensor's name of {} bytes", name.len())));
        }
        let rank = self.u32()?;
        if rank > MAX_RANK {
            return Err(self.malformed(format!("tensor {} has {rank} dimensions, over {MAX_RANK}", quoted(name))));
        }
        let mut elements = Some(1u64);
        for _ in 0..rank {
            let dimension = self.u64()?;
            elements = elements.and_then(|n| n.checked_mul(dimension));
        }
        let elements = elements.ok_or_else(|| self.malformed(format!("tensor {} is too large", quoted(name))))?;
        Ok(Tensor { name, elements, kind: self.u32()?, start: self.u64()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn string(text: &str) -> Vec<u8> {
        [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
    }

    /// One entry of each kind, and a tensor of two floats.
    fn sample() -> Vec<u8> {
        let mut out = [&MAGIC[..], &3u32.to_le_bytes(), &1u64.to_le_bytes(), &4u64.to_le_bytes()].concat();
        for (key, kind, value) in [
            ("general.type", STRING, string("imatrix")),
            ("a", U32, 7u32.to_le_bytes().to_vec()),
            ("b", ARRAY, [&STRING.to_le_bytes()[..], &2u64.to_le_bytes(), &string("x"), &string("")].concat()),
            ("c", ARRAY, [&5u32.to_le_bytes()[..], &3u64.to_le_bytes(), &[0; 12]].concat()),
        ] {
            out.extend([string(key), kind.to_le_bytes().to_vec(), value].concat());
        }
        out.extend(string("t"));
        out.extend([&1u32.to_le_bytes()[..], &2u64.to_le_bytes(), &F32.to_le_bytes(), &0u64.to_le_bytes()].concat());
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend([1f32, 2.0].iter().flat_map(|x| x.to_le_bytes()));
        out
    }

    #[test]
    fn a_file_is_read() {
        let file = sample();
        let parsed = parse(&file).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(parsed.kind, Some("imatrix"));
        let [tensor] = parsed.tensors() else { panic!("{parsed:?}") };
        assert_eq!((tensor.name, tensor.elements, parsed.tensor("t")), ("t", 2, Some(tensor)));
        assert_eq!(parsed.tensor("u"), None);
        let len = file.len() as u64;
        assert_eq!(tensor.floats(len), Ok(len - 8..len));
        assert!(tensor.floats(len - 1).is_err());
    }

    fn head(tensors: u64, entries: u64) -> Vec<u8> {
        [&MAGIC[..], &3u32.to_le_bytes(), &tensors.to_le_bytes(), &entries.to_le_bytes()].concat()
    }

    /// Of entries nothing is kept, of tensors less than twice their bytes.
    #[test]
    fn little_is_made_of_much() {
        let entries = 1 << 20;
        let mut file = head(0, entries);
        let entry = [string("k"), STRING.to_le_bytes().to_vec(), string("")].concat();
        file.extend((0..entries).flat_map(|_| &entry));
        assert_eq!(parse(&file).map(|parsed| (parsed.kind, parsed.tensors.capacity())), Ok((None, 0)));
        let count = 1 << 16;
        let mut file = head(count, 0);
        for number in 0..count {
            file.extend(string(&format!("{number:x}")));
            file.extend([&[0; 4], &F32.to_le_bytes(), &[0; 8][..]].concat());
        }
        file.resize(file.len().next_multiple_of(32), 0);
        let parsed = parse(&file).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(parsed.tensors.len() as u64, count);
        assert!(parsed.tensors.capacity() * size_of::<Tensor<'_>>() < 2 * file.len());
        // Nothing is made for what is announced alone.
        file[8..16].fill(0xff);
        assert!(parse(&file).is_err_and(|e| e.what.contains("truncated")));
    }

    /// Cut anywhere, and with any byte changed: an answer, or an error, and nothing else.
    #[test]
    fn lies_are_refused() {
        let file = sample();
        for cut in 0..file.len() - 8 {
            assert!(parse(&file[..cut]).is_err_and(|e| !e.what.is_empty()) || cut >= file.len() - 40, "{cut}");
        }
        for at in 0..file.len() {
            for byte in [0, 1, 9, 0x7f, 0xff] {
                let mut wrong = file.clone();
                wrong[at] = byte;
                let len = wrong.len() as u64;
                let Ok(parsed) = parse(&wrong) else { continue };
                for range in parsed.tensors.iter().filter_map(|t| t.floats(len).ok()) {
                    assert!(range.end <= len);
                }
            }
        }
        for (at, why) in [(8usize, "truncated"), (16, "unknown type"), (24, "truncated")] {
            let mut wrong = file.clone();
            wrong[at..at + 8].fill(0xff);
            let error = parse(&wrong).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(error.contains(why), "{at}: {error}");
        }
    }
}
