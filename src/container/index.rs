//! `*.safetensors.index.json`: which file of a directory holds which tensor.
//!
//! File names are plain names in the index's own directory and every tensor is named once. Knows
//! neither the files nor what they hold; writing an index is the dialect's.

use std::fmt;

use serde::de::{self, MapAccess, Visitor};
use serde_json::{Map, Value, value::RawValue};

use crate::container::{
    Malformed, quoted,
    strict::{self, Pairs, Skipped},
};

/// Longest index that is read: ten times the largest known (90,000 tensors take 9 MB).
pub const MAX_INDEX: u64 = 100_000_000;

/// Longest `metadata` that is read: a tree of values takes up to thirty times its text.
const MAX_METADATA: usize = 1 << 20;

/// An index as its file states it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Index {
    /// Free-form: `total_size` and the like.
    pub metadata: Map<String, Value>,
    /// Tensor name and file name, in the order of the file.
    pub weight_map: Vec<(String, String)>,
}

/// Parses the bytes of an index.
///
/// # Errors
/// Over [`MAX_INDEX`], no JSON, no `weight_map`, a tensor named twice, or a file name that is none.
pub fn parse(json: &[u8]) -> Result<Index, Malformed> {
    if json.len() as u64 > MAX_INDEX {
        return Err(Malformed::new(format!("the index has {} bytes, over the cap of {MAX_INDEX}", json.len())));
    }
    let Raw { metadata, weight_map } = strict::parse(json, 0)?;
    let Pairs(weight_map) = weight_map
        .ok_or_else(|| Malformed::new("the index has no `weight_map` that says which file holds which tensor"))?;
    for (tensor, file) in &weight_map {
        plain_name(file).map_err(|why| Malformed::new(format!("tensor {}: {} {why}", quoted(tensor), quoted(file))))?;
    }
    Ok(Index { metadata: metadata.map_or(Ok(Map::new()), parse_metadata)?, weight_map })
}

fn parse_metadata(text: &RawValue) -> Result<Map<String, Value>, Malformed> {
    let text = text.get();
    if text.len() > MAX_METADATA {
        return Err(Malformed::new(format!("`metadata` has {} bytes, over the cap of {MAX_METADATA}", text.len())));
    }
    let Pairs(pairs) =
        strict::parse(text.as_bytes(), 0).map_err(|e| Malformed::new(format!("`metadata`: {e} of it")))?;
    Ok(pairs.into_iter().collect())
}

/// Refuses what could lead out of the directory.
fn plain_name(file: &str) -> Result<(), &'static str> {
    match file {
        "" | "." | ".." => Err("is no file name"),
        _ if file.contains(['/', '\\']) => Err("is no plain file name: shards lie in the directory of their index"),
        _ if file.chars().any(char::is_control) => Err("has control characters in it"),
        _ => Ok(()),
    }
}

struct Raw<'a> {
    metadata: Option<&'a RawValue>,
    weight_map: Option<Pairs<String>>,
}

impl<'de> serde::Deserialize<'de> for Raw<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with `weight_map`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw<'de>, A::Error> {
        let (mut metadata, mut weight_map) = (None, None);
        while let Some(key) = map.next_key::<String>()? {
            let first = match key.as_str() {
                "metadata" => metadata.replace(map.next_value::<Option<&'de RawValue>>()?).is_none(),
                "weight_map" => weight_map.replace(map.next_value()?).is_none(),
                _ => {
                    map.next_value::<Skipped>()?;
                    true
                }
            };
            if !first {
                return Err(de::Error::custom(format_args!("`{key}` is there twice")));
            }
        }
        Ok(Raw { metadata: metadata.flatten(), weight_map })
    }
}
