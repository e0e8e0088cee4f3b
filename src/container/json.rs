//! JSON read and written as Python's `json` module does: what a Python tool would have written from
//! the same values is what [`render`] gives, byte for byte.
//!
//! Python differs from the standard, and real `config.json` files depend on it: `NaN`, `Infinity` and
//! `-Infinity` are numbers; the last of equal keys wins and keeps the first one's place; integers have
//! any size; floats are written as `repr` writes them. One thing Python reads is refused here: half a
//! surrogate pair (`"\ud800"`), which no Rust string can hold. Nesting is bounded, as Python's is.

use std::fmt::Write;

use serde_json::{Map, Number, Value};

use crate::container::Malformed;

/// Deepest nesting that is read; Python's own limit is about a thousand, real files stay under ten.
const MAX_DEPTH: usize = 128;

/// Longest text that is read: configurations have kilobytes, one with an entry for every module of a
/// large model a megabyte, and a tree of values takes up to thirty times its text.
pub const MAX_JSON: u64 = 8 << 20;

/// Parses a whole text.
///
/// # Errors
/// What Python's `json.load` refuses, with the offset; a lone surrogate, nesting deeper than 128, and a
/// text over [`MAX_JSON`].
pub fn parse(text: &[u8]) -> Result<Value, Malformed> {
    if text.len() as u64 > MAX_JSON {
        return Err(Malformed::new(format!("the file has {} bytes, over the cap of {MAX_JSON}", text.len())));
    }
    let text =
        std::str::from_utf8(text).map_err(|e| Malformed::new(format!("not UTF-8 at offset {}", e.valid_up_to())))?;
    if text.starts_with('\u{feff}') {
        return Err(Malformed::new("starts with a byte order mark, which JSON does not allow: save it without"));
    }
    let mut parser = Parser { text, at: 0 };
    let value = parser.value(0)?;
    parser.space();
    if parser.at < text.len() {
        return Err(parser.wrong("there is more text behind the value"));
    }
    Ok(value)
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn wrong(&self, what: &str) -> Malformed {
        Malformed::new(format!("{what} at offset {}", self.at))
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// Takes `token` if it is next.
    fn takes(&mut self, token: &str) -> bool {
        let is_next = self.text.as_bytes()[self.at..].starts_with(token.as_bytes());
        self.at += if is_next { token.len() } else { 0 };
        is_next
    }

    fn value(&mut self, depth: usize) -> Result<Value, Malformed> {
        if depth > MAX_DEPTH {
            return Err(self.wrong("nested too deep"));
        }
        self.space();
        match self.peek() {
            Some(b'{') => self.object(depth),
            Some(b'[') => self.array(depth),
            Some(b'"') => self.string().map(Value::String),
            _ => self.literal(),
        }
    }

    fn literal(&mut self) -> Result<Value, Malformed> {
        for (token, value) in [("null", Value::Null), ("true", Value::Bool(true)), ("false", Value::Bool(false))] {
            if self.takes(token) {
                return Ok(value);
            }
        }
        for token in ["NaN", "Infinity", "-Infinity"] {
            if self.takes(token) {
                return Ok(Value::Number(non_finite(token)));
            }
        }
        self.number()
    }

    fn number(&mut self) -> Result<Value, Malformed> {
        let rest = &self.text[self.at..];
        let len = rest.bytes().take_while(|b| matches!(b, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E')).count();
        let number = rest[..len].parse::<Number>().map_err(|_| self.wrong("no JSON value"))?;
        self.at += len;
        Ok(Value::Number(number))
    }

    fn string(&mut self) -> Result<String, Malformed> {
        let rest = &self.text[self.at..];
        let mut escaped = false;
        let end = rest.bytes().skip(1).position(|b| {
            let ends = b == b'"' && !escaped;
            escaped = b == b'\\' && !escaped;
            ends
        });
        let len = end.ok_or_else(|| self.wrong("a string without an end"))? + 2;
        let string = serde_json::from_str(&rest[..len]).map_err(|_| self.wrong("a malformed string"))?;
        self.at += len;
        Ok(string)
    }

    fn array(&mut self, depth: usize) -> Result<Value, Malformed> {
        let mut items = vec![];
        self.members("]", |parser| {
            items.push(parser.value(depth + 1)?);
            Ok(())
        })?;
        Ok(Value::Array(items))
    }

    fn object(&mut self, depth: usize) -> Result<Value, Malformed> {
        let mut map = Map::new();
        self.members("}", |parser| {
            if parser.peek() != Some(b'"') {
                return Err(parser.wrong("a key must be a string"));
            }
            let key = parser.string()?;
            parser.space();
            if !parser.takes(":") {
                return Err(parser.wrong("no `:` behind a key"));
            }
            map.insert(key, parser.value(depth + 1)?);
            Ok(())
        })?;
        Ok(Value::Object(map))
    }

    /// What stands between the bracket that is next and `close`.
    fn members(
        &mut self,
        close: &str,
        mut member: impl FnMut(&mut Self) -> Result<(), Malformed>,
    ) -> Result<(), Malformed> {
        self.at += 1;
        self.space();
        if self.takes(close) {
            return Ok(());
        }
        loop {
            self.space();
            member(self)?;
            self.space();
            if self.takes(close) {
                return Ok(());
            }
            if !self.takes(",") {
                return Err(self.wrong(&format!("neither `,` nor `{close}`")));
            }
        }
    }
}

/// A number that JSON has no word for. The constructor is public but undocumented; there is no other,
/// and `serde_json` never looks into the text of a number.
fn non_finite(token: &str) -> Number {
    Number::from_string_unchecked(token.to_owned())
}

/// What `json.dumps(value, indent=indent)` gives.
#[must_use]
pub fn render(value: &Value, indent: usize) -> String {
    let mut out = String::new();
    push_value(&mut out, value, indent, 0);
    out
}

fn push_value(out: &mut String, value: &Value, indent: usize, depth: usize) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
        Value::Number(n) => push_number(out, n),
        Value::String(s) => push_string(out, s),
        Value::Array(items) => push_members(out, ['[', ']'], items, indent, depth, |out, item| {
            push_value(out, item, indent, depth + 1);
        }),
        Value::Object(map) => push_members(out, ['{', '}'], map, indent, depth, |out, (key, item)| {
            push_string(out, key);
            out.push_str(": ");
            push_value(out, item, indent, depth + 1);
        }),
    }
}

fn push_members<T>(
    out: &mut String,
    [open, close]: [char; 2],
    members: impl IntoIterator<Item = T>,
    indent: usize,
    depth: usize,
    mut push: impl FnMut(&mut String, T),
) {
    let line = |out: &mut String, depth: usize| {
        out.push('\n');
        out.extend(std::iter::repeat_n(' ', indent * depth));
    };
    out.push(open);
    let mut empty = true;
    for member in members {
        if !empty {
            out.push(',');
        }
        empty = false;
        line(out, depth + 1);
        push(out, member);
    }
    if !empty {
        line(out, depth);
    }
    out.push(close);
}

fn push_string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            ' '..='~' => out.push(c),
            _ => push_escaped(out, c),
        }
    }
    out.push('"');
}

/// `\uXXXX`, two of them beyond the basic plane.
fn push_escaped(out: &mut String, c: char) {
    for unit in c.encode_utf16(&mut [0; 2]) {
        // Writing to a String cannot fail.
        let _ = write!(out, "\\u{unit:04x}");
    }
}

/// Integers as they stand (Python knows no negative zero among them), floats as `repr` writes them.
fn push_number(out: &mut String, number: &Number) {
    let text = number.as_str();
    match text {
        "-0" => out.push('0'),
        "NaN" | "Infinity" | "-Infinity" => out.push_str(text),
        _ if text.contains(['.', 'e', 'E']) => push_float(out, text),
        _ => out.push_str(text),
    }
}

fn push_float(out: &mut String, text: &str) {
    match text.parse::<f64>() {
        Ok(float) if float == f64::INFINITY => out.push_str("Infinity"),
        Ok(float) if float == f64::NEG_INFINITY => out.push_str("-Infinity"),
        Ok(float) => out.push_str(&float_repr(float)),
        Err(_) => out.push_str(text),
    }
}

/// Python's `repr` of a finite float: the shortest digits that read back as the same value, with an
/// exponent below 1e-4 and from 1e16 on.
fn float_repr(float: f64) -> String {
    let scientific = shortest(float);
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        return positional(mantissa, exponent);
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.unsigned_abs())
}

/// The shortest digits, and of equally short ones the nearest, to even where two are equally near.
/// Rust's own choice is the upper one there.
fn shortest(float: f64) -> String {
    let upper = format!("{float:e}");
    let digits = upper.bytes().take_while(|&b| b != b'e').filter(u8::is_ascii_digit).count();
    let nearest = format!("{float:.*e}", digits - 1);
    if nearest.parse() == Ok(float) { nearest } else { upper }
}

/// `d.ddd` times a power of ten without an exponent, with at least one digit behind the point.
fn positional(mantissa: &str, exponent: i32) -> String {
    let (sign, digits) = if let Some(rest) = mantissa.strip_prefix('-') { ("-", rest) } else { ("", mantissa) };
    let digits = digits.replace('.', "");
    let Ok(last_whole) = usize::try_from(exponent) else {
        return format!("{sign}0.{}{digits}", "0".repeat(exponent.unsigned_abs() as usize - 1));
    };
    let whole = last_whole + 1;
    let padded = format!("{digits:0<width$}", width = whole + 1);
    format!("{sign}{}.{}", &padded[..whole], &padded[whole..])
}
