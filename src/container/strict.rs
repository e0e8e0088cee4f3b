//! JSON objects read strictly: in order, every key once, nesting bounded.
//!
//! `serde_json` alone keeps the last of two equal keys and skips unknown values to any depth; a
//! header that says two things about one tensor must be refused. Knows no container.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, SeqAccess, Visitor},
};

use crate::container::{Malformed, quoted};

/// Most keys of one object: the largest models have a hundred thousand tensors, and without a cap a
/// text of the greatest length could ask for ten times its size.
pub(super) const MAX_KEYS: usize = 1_000_000;

/// Refuses one key more than [`MAX_KEYS`].
pub(super) fn room_after<E: de::Error>(keys: usize) -> Result<(), E> {
    if keys < MAX_KEYS { Ok(()) } else { Err(E::custom(format_args!("there are over {MAX_KEYS} keys in one object"))) }
}

/// The entries of an object in the order of the text, every key once.
#[derive(Debug)]
pub(super) struct Pairs<T>(pub(super) Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Pairs<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(PairsVisitor(PhantomData))
    }
}

struct PairsVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for PairsVisitor<T> {
    type Value = Pairs<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs<T>, A::Error> {
        let mut pairs = vec![];
        while let Some(key) = map.next_key::<String>()? {
            let value = map.next_value().map_err(|e| de::Error::custom(format_args!("{}: {e}", quoted(&key))))?;
            room_after(pairs.len())?;
            pairs.push((key, value));
        }
        match duplicate(pairs.iter().map(|(key, _)| key.as_str())) {
            Some(name) => Err(de::Error::custom(format_args!("{} is there twice", quoted(name)))),
            None => Ok(Pairs(pairs)),
        }
    }
}

/// A name that occurs more than once.
pub(super) fn duplicate<'a>(names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let mut sorted: Vec<&str> = names.collect();
    sorted.sort_unstable();
    sorted.windows(2).find(|w| w[0] == w[1]).map(|w| w[0])
}

/// Any value, read and dropped. Unlike `IgnoredAny` it keeps to the parser's nesting limit and
/// checks strings, so that what is skipped is as well-formed as what is kept.
pub(super) struct Skipped;

impl<'de> Deserialize<'de> for Skipped {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for Skipped {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }
    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }
    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }
    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }
    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }
    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }
    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self, A::Error> {
        while seq.next_element::<Self>()?.is_some() {}
        Ok(self)
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self, A::Error> {
        while map.next_entry::<Self, Self>()?.is_some() {}
        Ok(self)
    }
}

/// Parses a whole text; errors name the offset in the file, of which the text starts at `base`.
pub(super) fn parse<'de, T: Deserialize<'de>>(text: &'de [u8], base: u64) -> Result<T, Malformed> {
    let text = std::str::from_utf8(text)
        .map_err(|e| Malformed::new(format!("not UTF-8 at offset {}", base + e.valid_up_to() as u64)))?;
    serde_json::from_str(text).map_err(|e| placed(&e, text, base))
}

/// The parser's message with an offset in the file for its line and column.
fn placed(error: &serde_json::Error, text: &str, base: u64) -> Malformed {
    let message = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    let Some(what) = message.strip_suffix(&place) else { return Malformed::new(message) };
    let lines_before: usize = text.split_inclusive('\n').take(error.line().saturating_sub(1)).map(str::len).sum();
    let offset = base + (lines_before + error.column().saturating_sub(1)) as u64;
    Malformed::new(format!("{what} at offset {offset}"))
}
