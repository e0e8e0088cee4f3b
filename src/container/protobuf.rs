//! The wire format of Protocol Buffers: a message is a run of numbered fields.
//!
//! Messages are walked where they lie: a field keeps its bytes, so that what nobody asked for goes
//! on unchanged and in its place. (A derived parser would be shorter, but `prost` and its like lose
//! the fields that they do not know.) Every length is checked against the message around it.
//!
//! Groups, which no schema has used for ten years, are refused. Knows no schema.

use std::str;

use crate::container::Malformed;

/// A message, and where in the file it starts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message<'a> {
    pub(super) bytes: &'a [u8],
    at: usize,
}

/// A field of a message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field<'a> {
    pub(super) number: u32,
    pub(super) value: Value<'a>,
    /// Tag, length and value as they lie.
    pub(super) raw: &'a [u8],
}

/// The value of a field.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value<'a> {
    /// A varint.
    Number(u64),
    /// A message, a string, bytes or packed numbers.
    Bytes(Message<'a>),
    /// Four or eight bytes.
    Fixed,
}

impl<'a> Message<'a> {
    /// A whole file.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Its fields in order; after an error there are no more.
    pub(super) fn fields(self) -> Fields<'a> {
        Fields { rest: self }
    }

    /// The last string of a field, empty where it is absent, as the format asks.
    pub(super) fn string(self, number: u32) -> Result<&'a str, Malformed> {
        self.last(number, |value| if let Value::Bytes(m) = value { Some(m) } else { None })?.map_or(Ok(""), Self::text)
    }

    /// The last number of a field, 0 where it is absent.
    pub(super) fn number(self, number: u32) -> Result<u64, Malformed> {
        let found = self.last(number, |value| if let Value::Number(n) = value { Some(n) } else { None })?;
        Ok(found.unwrap_or(0))
    }

    fn last<T>(self, number: u32, of: impl Fn(Value<'a>) -> Option<T>) -> Result<Option<T>, Malformed> {
        let mut found = None;
        for field in self.fields() {
            let field = field?;
            if field.number == number {
                found = of(field.value).or(found);
            }
        }
        Ok(found)
    }

    /// The bytes as text.
    pub(super) fn text(self) -> Result<&'a str, Malformed> {
        str::from_utf8(self.bytes).map_err(|e| self.malformed(format!("a name that is no UTF-8: {e}")))
    }

    /// The varints that lie packed in the bytes.
    pub(super) fn packed(self) -> impl Iterator<Item = Result<u64, Malformed>> {
        let mut rest = self;
        std::iter::from_fn(move || (!rest.bytes.is_empty()).then(|| rest.varint()))
    }

    /// An error at the start of the message.
    pub(super) fn malformed(self, why: impl AsRef<str>) -> Malformed {
        Malformed::new(format!("offset {}: {}", self.at, why.as_ref()))
    }

    fn take(&mut self, len: u64) -> Result<Self, Malformed> {
        let left = self.bytes.len();
        let Some(len) = usize::try_from(len).ok().filter(|len| *len <= left) else {
            return Err(
                self.malformed(format!("{len} bytes should follow, but {left} are left: is the file truncated?"))
            );
        };
        let (head, rest) = self.bytes.split_at(len);
        let taken = Self { bytes: head, at: self.at };
        *self = Self { bytes: rest, at: self.at + len };
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut number = 0u64;
        for (i, byte) in self.bytes.iter().take(10).enumerate() {
            // The tenth byte has room for one bit.
            if i == 9 && *byte > 1 {
                break;
            }
            number |= u64::from(byte & 0x7f) << (7 * i);
            if byte & 0x80 == 0 {
                self.take(i as u64 + 1)?;
                return Ok(number);
            }
        }
        Err(self.malformed("a number that does not end"))
    }
}

/// The fields of a message.
pub(super) struct Fields<'a> {
    rest: Message<'a>,
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Result<Field<'a>, Malformed> {
        let start = self.rest;
        let tag = self.rest.varint()?;
        let number = u32::try_from(tag >> 3).ok().filter(|n| *n > 0);
        let number = number.ok_or_else(|| start.malformed(format!("no field has the tag {tag}")))?;
        let value = match tag & 7 {
            0 => Value::Number(self.rest.varint()?),
            1 => self.rest.take(8).map(|_| Value::Fixed)?,
            2 => {
                let len = self.rest.varint()?;
                Value::Bytes(self.rest.take(len)?)
            }
            5 => self.rest.take(4).map(|_| Value::Fixed)?,
            kind => return Err(start.malformed(format!("field {number} is of kind {kind}, which is not read"))),
        };
        let raw = &start.bytes[..start.bytes.len() - self.rest.bytes.len()];
        Ok(Field { number, value, raw })
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.bytes.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.rest.bytes = &[];
        }
        Some(field)
    }
}

fn push_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    out.push(number.to_le_bytes()[0]);
}

/// Appends a field of a number.
pub(super) fn push_number(out: &mut Vec<u8>, field: u32, number: u64) {
    push_varint(out, u64::from(field) << 3);
    push_varint(out, number);
}

/// Appends a field of a message, a string or bytes.
pub(super) fn push_bytes(out: &mut Vec<u8>, field: u32, bytes: &[u8]) {
    push_varint(out, u64::from(field) << 3 | 2);
    push_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_pushed_is_read() {
        let mut out = vec![];
        for number in [0, 1, 127, 128, u64::from(u32::MAX), u64::MAX] {
            push_number(&mut out, 1, number);
            push_bytes(&mut out, 536_870_911, &number.to_le_bytes());
        }
        let fields: Vec<_> = Message::new(&out).fields().map(|f| f.map(|f| (f.number, f.value))).collect();
        assert_eq!(fields.len(), 12);
        assert!(matches!(fields[10], Ok((1, Value::Number(u64::MAX)))));
        assert!(matches!(fields[11], Ok((536_870_911, Value::Bytes(m))) if m.bytes == [0xff; 8]));
        assert_eq!(Message::new(&out).number(1), Ok(u64::MAX), "the last one counts");
    }

    #[test]
    fn lies_are_refused() {
        let lies: [&[u8]; 7] = [
            &[0x0a, 2, 0],                                                    // longer than what is there
            &[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1], // than any memory
            &[8, 0x80],                                                       // a number cut short
            &[8, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 2],    // a number over 64 bits
            &[0, 0],                                                          // field 0
            &[0x0b, 0x0c],                                                    // a group
            &[0x80, 0x80, 0x80, 0x80, 0x80, 1, 0],                            // a tag over 32 bits
        ];
        for lie in lies {
            let mut fields = Message::new(lie).fields();
            assert!(matches!(fields.next(), Some(Err(_))), "{lie:?}");
            assert!(fields.next().is_none(), "{lie:?}");
        }
    }
}
