//! Importance matrices: for each weight, how much the error in each of its columns matters, as the mean square of what
//! the column is multiplied with.
//!
//! Three kinds of files are read: llama.cpp's as GGUF (`general.type` is `imatrix`; `X.in_sum2` and `X.counts`) and as it
//! was before (`.dat`), whose names are GGUF's; and safetensors, where the tensor of a weight's name, with or
//! without `.weight`, holds `[columns]` or `[experts, columns]`. A file is held in memory as it was read: it is a few
//! megabytes for a dense model.

mod bind;
mod llama;

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::Read,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    container::{Malformed, gguf, safetensors},
    kernel::{Cast, kernels},
    plan::Error,
    quant,
    tensor::Float,
};

pub(crate) use bind::{Asked, Binder, with_note};

/// The longest file that is read: that of the largest mixtures takes a gigabyte.
const MAX_BYTES: u64 = 1 << 30;

/// Most entries of a file of the older form: many times what the largest mixtures have, and some hundred megabytes.
const MAX_ENTRIES: usize = 1 << 20;

/// Suffixes of what a GGUF says of a tensor: sums of squares, and how many were summed.
const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";

/// An importance matrix.
///
/// ```
/// use quantfs::plan::Importance;
///
/// let json = br#"{"model.layers.0.mlp.up_proj":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
/// let mut file = (json.len() as u64).to_le_bytes().to_vec();
/// file.extend_from_slice(json);
/// file.extend([1f32, 3.0].iter().flat_map(|x| x.to_le_bytes()));
/// let importance = Importance::parse("example", &file)?;
/// assert_eq!(importance.of("model.layers.0.mlp.up_proj.weight"), Some(&[1.0, 3.0][..]));
/// assert_eq!(importance.of("model.layers.0.mlp.down_proj"), None);
/// # Ok::<(), quantfs::plan::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Importance {
    text: String,
    /// Whether names are GGUF's.
    llama: bool,
    entries: BTreeMap<String, Entry>,
    digest: [u8; 32],
    /// What weights were given of it, by content: the views of one file hold it once.
    given: Arc<Mutex<HashMap<String, quant::Importance>>>,
}

/// What is said of one weight.
#[derive(Clone, Debug, PartialEq)]
struct Entry {
    values: Vec<f32>,
    /// How many matrices it is of, where that is told.
    matrices: Option<usize>,
}

impl Importance {
    /// Reads a file.
    ///
    /// # Errors
    /// One that is not there, too long, or of none of the kinds.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let text = std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string();
        let refuse = |why: String| Error::spec(format!("--importance {text}: {why}"));
        let file = File::open(path).map_err(|e| refuse(e.to_string()))?;
        let about = file.metadata().map_err(|e| refuse(e.to_string()))?;
        if !about.is_file() || about.len() > MAX_BYTES {
            return Err(refuse(format!("it is no regular file of at most {MAX_BYTES} bytes")));
        }
        let mut bytes = vec![];
        file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(|e| refuse(e.to_string()))?;
        Self::parse(&text, &bytes)
    }

    /// Parses a file; `text` is what messages call it.
    ///
    /// # Errors
    /// One of none of the kinds, a broken one, or values that are not finite or negative.
    pub fn parse(text: &str, file: &[u8]) -> Result<Self, Error> {
        let llama = !is_safetensors(file);
        let parsed = match file {
            file if file.starts_with(&gguf::MAGIC) => of_gguf(file),
            file if !llama => of_safetensors(file),
            file => of_dat(file),
        };
        let refuse = |why: &str| Error::spec(format!("--importance {text}: {why}"));
        let entries = parsed.map_err(|e| refuse(&e.what))?;
        let odd = |entry: &Entry| entry.values.iter().any(|w| !w.is_finite() || *w < 0.0);
        if let Some((name, _)) = entries.iter().find(|(_, entry)| odd(entry)) {
            return Err(refuse(&format!("{name}: a value is negative or not finite; make the matrix again")));
        }
        if entries.values().all(|entry| entry.values.is_empty()) {
            return Err(refuse("it says nothing of any weight"));
        }
        Ok(Self {
            text: text.to_owned(),
            llama,
            entries,
            digest: *blake3::hash(file).as_bytes(),
            given: Arc::default(),
        })
    }

    /// What messages call it: the path.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What it says of a source's weight, given by its name with or without `.weight`: a value for each column, or for each column
    /// of each of a stack's experts, one expert after the other. Means of squares, not scaled: they compare between weights.
    #[must_use]
    pub fn of(&self, weight: &str) -> Option<&[f32]> {
        self.find(weight, None).map(|(_, values)| values)
    }

    /// The same with the entry's own name; the columns of a row tell of how many matrices an entry is that does not.
    fn find(&self, weight: &str, cols: Option<usize>) -> Option<(&str, &[f32])> {
        let stem = weight.strip_suffix(".weight").unwrap_or(weight);
        if !self.llama {
            let whole = || self.entries.get_key_value(&format!("{stem}.weight"));
            let (name, entry) = self.entries.get_key_value(stem).or_else(whole)?;
            return Some((name, &entry.values));
        }
        let (name, expert) = llama::name(stem)?;
        let (name, entry) = self.entries.get_key_value(&format!("{name}.weight"))?;
        let Some(expert) = expert else { return Some((name, &entry.values)) };
        let told = entry.matrices.map(|matrices| entry.values.len() / matrices.max(1));
        let each = told.or(cols)?;
        let first = expert.checked_mul(each)?;
        Some((name, entry.values.get(first..first.checked_add(each)?)?))
    }

    /// What a weight is given, as it was given to another before.
    fn shared(&self, given: quant::Importance) -> quant::Importance {
        let mut known = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        known.entry(given.id()).or_insert(given).clone()
    }

    /// Of the file's content.
    #[must_use]
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// Names of all entries.
    fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }
}

/// Whether a file begins with the length of a header that it has room for, and that header's brace.
fn is_safetensors(file: &[u8]) -> bool {
    let Some((len, rest)) = file.split_first_chunk::<8>() else { return false };
    u64::from_le_bytes(*len) <= rest.len() as u64 && rest.first() == Some(&b'{')
}

type Entries = BTreeMap<String, Entry>;

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn of_gguf(file: &[u8]) -> Result<Entries, Malformed> {
    let parsed = gguf::parse(file)?;
    match parsed.kind {
        Some("imatrix") => {}
        other => {
            let is = other.map_or("a model".to_owned(), |of| format!("of type `{of}`"));
            return Err(Malformed::new(format!("this GGUF is {is}, and not an importance matrix")));
        }
    }
    let mut left = file.len() as u64;
    let mut read = |tensor: &gguf::Tensor<'_>| {
        let range = tensor.floats(file.len() as u64)?;
        // What lies apart is no longer than the file: values take no more memory than it.
        let less = left.checked_sub(range.end - range.start);
        left = less.ok_or_else(|| Malformed::new("its tensors lie over each other"))?;
        let at = |n| usize::try_from(n).unwrap_or(usize::MAX);
        Ok(floats(file.get(at(range.start)..at(range.end)).unwrap_or_default()))
    };
    let mut entries = Entries::new();
    for tensor in parsed.tensors() {
        let name = tensor.name;
        let Some(weight) = name.strip_suffix(SUMS) else { continue };
        let counts = parsed.tensor(&format!("{weight}{COUNTS}"));
        let counts = counts.ok_or_else(|| Malformed::new(format!("{weight}{COUNTS} is missing")))?;
        let (mut values, counts): (Vec<f32>, Vec<f32>) = (read(tensor)?, read(counts)?);
        if counts.is_empty() || !values.len().is_multiple_of(counts.len()) {
            let why = format!("{name}: {} sums do not go with {} counts", values.len(), counts.len());
            return Err(Malformed::new(why));
        }
        let each = (values.len() / counts.len()).max(1);
        for (values, count) in values.chunks_mut(each).zip(&counts) {
            // What was never used is not known, and weighs the same in all columns.
            values.iter_mut().for_each(|sum| *sum = if *count > 0.0 { *sum / count } else { 1.0 });
        }
        entries.insert(weight.to_owned(), Entry { values, matrices: Some(counts.len()) });
    }
    Ok(entries)
}

fn of_safetensors(file: &[u8]) -> Result<Entries, Malformed> {
    let read = |offset: u64, buf: &mut [u8]| {
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        let from = file.get(at..).and_then(|rest| rest.get(..buf.len()));
        buf.copy_from_slice(from.ok_or_else(|| Malformed::new("it is truncated"))?);
        Ok::<(), Malformed>(())
    };
    let header = safetensors::read(file.len() as u64, read)?;
    let mut entries = Entries::new();
    for tensor in header.tensors {
        let wrong = |why: String| Malformed::new(format!("tensor {}: {why}", tensor.info.name));
        let shape = &tensor.info.shape;
        let float = Float::of(tensor.info.dtype).filter(|_| matches!(shape.len(), 1 | 2));
        let float = float.ok_or_else(|| {
            let is = format!("it is {} {shape:?}", tensor.info.dtype);
            wrong(format!("{is}; floats of shape [columns] or [experts, columns] are read"))
        })?;
        let at = |n| usize::try_from(n).unwrap_or(usize::MAX);
        let stored = file.get(at(tensor.range.start)..at(tensor.range.end)).unwrap_or_default();
        let mut wide = vec![0; stored.len() / float.size() * 4];
        kernels().cast(&Cast { from: float, to: Float::F32, plus_one: false }, stored, &mut wide);
        let matrices = if let [experts, _] = shape[..] { experts } else { 1 };
        let entry = Entry { values: floats(&wide), matrices: Some(matrices) };
        entries.insert(tensor.info.name, entry);
    }
    Ok(entries)
}

/// llama.cpp's own form before GGUF: means times the number of calls, each with its name and length.
fn of_dat(file: &[u8]) -> Result<Entries, Malformed> {
    let wrong = |why: &str| Malformed::new(format!("it is no importance matrix of llama.cpp, nor safetensors: {why}"));
    let mut rest = file;
    let mut take = |len: Option<usize>| {
        let taken = len.and_then(|len| rest.split_off(..len));
        taken.ok_or_else(|| wrong("it ends before what it announces"))
    };
    let length = |bytes: &[u8]| {
        let number = i32::from_le_bytes(*bytes.first_chunk()?);
        usize::try_from(number).ok()
    };
    let mut entries = Entries::new();
    let count = length(take(Some(4))?).filter(|count| *count <= MAX_ENTRIES);
    for _ in 0..count.ok_or_else(|| wrong(&format!("a negative number of entries, or over {MAX_ENTRIES}")))? {
        let len = length(take(Some(4))?);
        let name = std::str::from_utf8(take(len)?).map_err(|_| wrong("a name that is no UTF-8"))?.to_owned();
        let calls = length(take(Some(4))?).ok_or_else(|| wrong("a negative number of calls"))?;
        let len = length(take(Some(4))?);
        let mut values = floats(take(len.and_then(|n| n.checked_mul(4)))?);
        let calls = calls.max(1) as f32;
        values.iter_mut().for_each(|sum| *sum /= calls);
        entries.insert(name, Entry { values, matrices: None });
    }
    Ok(entries)
}
