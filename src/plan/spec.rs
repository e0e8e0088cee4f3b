//! Specs: the small language that names a configuration, `mlx-4bit-g64`.
//!
//! `SPEC = ["dense-"] ( FORMAT | [FORMAT "-"] SCHEME ) ("-" OPTION)*`. A spec always has a canonical spelling:
//! format, scheme, the group wherever it can be chosen, other options where they differ from the
//! default; parsing it gives the same spec. The words come from [`FORMATS`] alone.

use std::{fmt, sync::Arc};

use crate::{
    plan::Error,
    quant::{FORMATS, Format, Scheme},
};

/// What starts the spec of a view that shows values, and stores nothing otherwise.
const DENSE: &str = "dense-";

/// The way to choose codes that every format has.
const ROUNDING: &str = "rtn";

/// The format where a spec names none.
const DEFAULT_FORMAT: &str = "mlx";

/// A configuration: a format, one of its schemes, and one word for each of the scheme's options.
#[derive(Clone, Debug)]
pub struct Spec {
    format: &'static dyn Format,
    scheme: &'static str,
    words: Vec<&'static str>,
    dense: bool,
}

/// What a spec leaves open may be filled by parts (`--bits`, `--group-size`, ...); they never
/// contradict it.
#[derive(Clone, Debug, Default)]
pub struct Parts {
    /// Name of a format.
    pub format: Option<String>,
    /// Bits of a code.
    pub bits: Option<u32>,
    /// Elements of a group.
    pub group_size: Option<usize>,
    /// `affine`, `mxfp4`, ...
    pub mode: Option<String>,
    /// How codes are chosen.
    pub method: Option<String>,
}

/// A method that a scheme does not offer, with those that it does.
fn unknown_method(format: &dyn Format, scheme: &str, method: &str) -> Error {
    let name = format.name();
    Error::spec(match format.options(scheme).into_iter().find(|option| is_method(option)) {
        Some(methods) => format!("--method {method}: {name}-{scheme} has {}", methods.join(", ")),
        None => format!(
            "--method {method}: {name}-{scheme} has no methods, and rounds to nearest; `quantfs formats` lists those that have"
        ),
    })
}

/// A spec as typed: what it says and nothing else.
#[derive(Clone, Debug, Default)]
struct Typed {
    format: Option<&'static dyn Format>,
    scheme: Option<&'static str>,
    words: Vec<String>,
}

impl Spec {
    /// The spec of a text, with parts for what it leaves open.
    ///
    /// # Errors
    /// An unknown word, with the words that there are; parts that contradict the text.
    pub fn parse(text: Option<&str>, parts: &Parts) -> Result<Self, Error> {
        let mut typed = Typed::default();
        let (dense, text) = split_dense(text);
        if let Some(text) = text {
            typed = Typed::parse(text)?;
        }
        let format = chosen_format(&typed, parts)?;
        let scheme = chosen_scheme(format, &typed, parts)?;
        let mut words = typed.words;
        words.extend(parts.method.clone());
        if let Some(group) = parts.group_size {
            words.extend(group_word(format, scheme, group)?);
        }
        let known = |w: &String| format.options(scheme).iter().any(|o| o.contains(&w.as_str()));
        let offers = |word: &&String| format.options(scheme).iter().any(|o| is_method(o) && o.contains(&word.as_str()));
        if let Some(method) = parts.method.as_ref().filter(|word| !offers(word)) {
            return Err(unknown_method(format, scheme, method));
        }
        if let Some(first) = words.first().filter(|w| typed.scheme.is_none() && !known(w)) {
            let schemes = format.schemes().join(", ");
            return Err(Error::spec(format!(
                "{} has no scheme or option `{first}`; its schemes are {schemes}",
                format.name()
            )));
        }
        let spec = Self { dense, ..Self::assemble(format, scheme, &words, None)? };
        if dense && spec.bind()?.is_none() {
            return Err(Error::spec(format!("{spec} rounds nothing; `source` shows the source as it is")));
        }
        Ok(spec)
    }

    /// The spec of a rule's right-hand side: what it does not say is this view's.
    ///
    /// # Errors
    /// Another format than the view's, an unknown word.
    pub fn inherit(&self, text: &str) -> Result<Self, Error> {
        let (dense, text) = match split_dense(Some(text)) {
            (true, Some(text)) => (true, text),
            _ => (false, text),
        };
        if dense && !self.dense {
            return Err(Error::spec(format!(
                "{DENSE}{text}: this view stores weights quantized; mount a dense one for that"
            )));
        }
        let typed = Typed::parse_with(text, Some(self))?;
        if let Some(format) = typed.format.filter(|f| f.name() != self.format.name()) {
            if format.name() == "source" {
                return self.kept();
            }
            return Err(Error::spec(format!(
                "{text}: a rule cannot change the format from {} to {}; mount a second view for that",
                self.format.name(),
                format.name()
            )));
        }
        Self::assemble(self.format, typed.scheme.unwrap_or(self.scheme), &typed.words, Some(self))
    }

    /// The spec of one component of a view of this spec: a text that names a format stands for itself, any other one is
    /// read as a rule's right-hand side.
    ///
    /// # Errors
    /// An unknown word.
    pub fn of_component(&self, text: &str) -> Result<Self, Error> {
        let (_, rest) = split_dense(Some(text));
        match rest.map(split_format) {
            Some((Some(_), _)) => Self::parse(Some(text), &Parts::default()),
            _ => self.inherit(text),
        }
    }

    /// This spec with another scheme and group of the same format; flavours stay.
    ///
    /// # Errors
    /// A scheme or group that the format does not have.
    pub fn with_scheme(&self, scheme: &str, group_size: usize) -> Result<Self, Error> {
        let scheme = named_scheme(self.format, scheme)?;
        let words: Vec<String> = group_word(self.format, scheme, group_size)?.into_iter().collect();
        Self::assemble(self.format, scheme, &words, Some(self))
    }

    /// What one might choose instead: every scheme of this format with every group and every method, stored and not
    /// shown dense. Other options are this spec's where the scheme has them.
    #[must_use]
    pub fn alternatives(&self) -> Vec<Self> {
        let mut found = vec![];
        for scheme in self.format.schemes() {
            let mut choices: Vec<Vec<String>> = vec![vec![]];
            for option in self.format.options(scheme) {
                if is_group(option) || is_method(option) {
                    let longer = |words: &Vec<String>| {
                        option.iter().map(|word| [words.as_slice(), &[(*word).to_owned()]].concat()).collect::<Vec<_>>()
                    };
                    choices = choices.iter().flat_map(longer).collect();
                }
            }
            let specs = choices.iter().filter_map(|words| Self::assemble(self.format, scheme, words, Some(self)).ok());
            found.extend(specs.map(|spec| Self { dense: false, ..spec }));
        }
        found.retain(|spec| matches!(spec.bind(), Ok(Some(_))));
        found
    }

    /// The alternatives that choose codes in the same way, by rounding where this scheme offers no other, as far as theirs
    /// offer ways.
    #[must_use]
    pub fn alternative_schemes(&self) -> Vec<Self> {
        let mine = self.method().unwrap_or(ROUNDING);
        let alike = |other: &Self| other.method().is_none_or(|method| method == mine);
        self.alternatives().into_iter().filter(alike).collect()
    }

    /// Whether its method weighs errors by importance.
    #[must_use]
    pub fn weighs_errors(&self) -> bool {
        self.method().is_some_and(|method| method != ROUNDING)
    }

    /// How codes are chosen, where the scheme offers several ways.
    fn method(&self) -> Option<&'static str> {
        let options = self.format.options(self.scheme);
        self.words.iter().zip(options).find(|(_, option)| is_method(option)).map(|(word, _)| *word)
    }

    /// The spec that keeps the source's precision within this format.
    fn kept(&self) -> Result<Self, Error> {
        let source: &'static dyn Format = named_format("source")?;
        let format = if self.format.schemes().contains(&"source") { self.format } else { source };
        let scheme = format.schemes().iter().find(|s| **s == "source").copied().unwrap_or("source");
        Ok(Self { format, scheme, words: vec![], dense: self.dense })
    }

    fn assemble(
        format: &'static dyn Format,
        scheme: &'static str,
        said: &[String],
        inherited: Option<&Self>,
    ) -> Result<Self, Error> {
        let options = format.options(scheme);
        let mut words: Vec<Option<&'static str>> = vec![None; options.len()];
        for word in said {
            let found = options.iter().enumerate().find_map(|(i, o)| Some((i, *o.iter().find(|w| *w == word)?)));
            let (slot, known) = found.ok_or_else(|| unknown_option(format, scheme, word))?;
            if words[slot].is_some_and(|w| w != known) {
                let other = words[slot].unwrap_or_default();
                return Err(Error::spec(format!(
                    "{format}-{scheme}: `{known}` contradicts `{other}`",
                    format = format.name()
                )));
            }
            words[slot] = Some(known);
        }
        let inherit = |o: &&'static [&'static str]| {
            inherited.and_then(|from| o.iter().find(|w| from.words.contains(*w)).copied())
        };
        let words = words.into_iter().zip(&options).map(|(w, o)| w.or_else(|| inherit(o)).unwrap_or(o[0])).collect();
        let spec = Self { format, scheme, words, dense: inherited.is_some_and(|from| from.dense) };
        spec.bind()?;
        Ok(spec)
    }

    /// The format.
    #[must_use]
    pub fn format(&self) -> &'static dyn Format {
        self.format
    }

    /// Whether values are shown in the source's own dtypes, names and sizes, rounded as the spec rounds them.
    #[must_use]
    pub fn is_dense(&self) -> bool {
        self.dense
    }

    /// The scheme's name: `4bit`.
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        self.scheme
    }

    /// The arithmetic, `None` where the source's precision is kept.
    ///
    /// # Errors
    /// A combination of options that the format does not have.
    pub fn bind(&self) -> Result<Option<Arc<dyn Scheme>>, Error> {
        self.format.bind(self.scheme, &self.words).map_err(|e| Error::spec(format!("{self}: {e}")))
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.dense { DENSE } else { "" })?;
        f.write_str(self.format.name())?;
        if self.format.name() != self.scheme {
            write!(f, "-{}", self.scheme)?;
        }
        let options = self.format.options(self.scheme);
        for (word, option) in self.words.iter().zip(options) {
            if *word != option[0] || is_group(option) {
                write!(f, "-{word}")?;
            }
        }
        Ok(())
    }
}

impl PartialEq for Spec {
    fn eq(&self, other: &Self) -> bool {
        self.dense == other.dense
            && self.format.name() == other.format.name()
            && self.scheme == other.scheme
            && self.words == other.words
    }
}

impl Eq for Spec {}

impl Typed {
    fn parse(text: &str) -> Result<Self, Error> {
        Self::parse_with(text, None)
    }

    /// With a view's spec, scheme and format may be left out altogether (`g32` in a rule).
    fn parse_with(text: &str, view: Option<&Spec>) -> Result<Self, Error> {
        if text.is_empty() {
            return Err(Error::spec(format!("an empty spec; a spec is one of {}", all_schemes())));
        }
        let (format, rest) = split_format(text);
        let rest = rest.unwrap_or_default();
        let mut words: Vec<&str> = rest.split('-').filter(|w| !w.is_empty()).collect();
        if rest.split('-').any(str::is_empty) && (!rest.is_empty() || text.ends_with('-')) {
            return Err(Error::spec(format!("`{text}`: an empty word between dashes")));
        }
        if let Some(twice) = words.iter().enumerate().find_map(|(i, word)| words[..i].contains(word).then_some(word)) {
            return Err(Error::spec(format!("`{text}` says `{twice}` twice")));
        }
        let within = match (format, view) {
            (Some(format), _) => format,
            (None, Some(view)) => view.format,
            (None, None) => named_format(DEFAULT_FORMAT)?,
        };
        let scheme = words.first().and_then(|first| within.schemes().iter().find(|s| *s == first).copied());
        if scheme.is_some() {
            words.remove(0);
        } else if format.is_none() && view.is_none() {
            let first = words.first().copied().unwrap_or(text);
            return Err(Error::spec(format!(
                "unknown spec `{text}`: `{first}` is neither a format nor a scheme; known are {}",
                all_schemes()
            )));
        }
        Ok(Self { format, scheme, words: words.into_iter().map(str::to_owned).collect() })
    }
}

/// Whether a spec is of values, and the rest of it.
fn split_dense(text: Option<&str>) -> (bool, Option<&str>) {
    match text.map(|text| (text, text.strip_prefix(DENSE))) {
        Some((_, Some(rest))) => (true, Some(rest)),
        Some((text, None)) => (false, Some(text)),
        None => (false, None),
    }
}

/// The longest format name that starts a spec, and what follows its dash.
fn split_format(text: &str) -> (Option<&'static dyn Format>, Option<&str>) {
    let names = FORMATS
        .iter()
        .flat_map(|f| std::iter::once(f.name()).chain(f.other_names().iter().copied()).map(move |n| (n, *f)));
    let fits = names.filter(|(n, _)| text == *n || text.strip_prefix(n).is_some_and(|r| r.starts_with('-')));
    match fits.max_by_key(|(n, _)| n.len()) {
        Some((name, format)) => (Some(format), text.get(name.len() + 1..)),
        None => (None, Some(text)),
    }
}

fn named_format(name: &str) -> Result<&'static dyn Format, Error> {
    FORMATS.iter().find(|f| f.name() == name || f.other_names().contains(&name)).copied().ok_or_else(|| {
        let known: Vec<&str> = FORMATS.iter().map(|f| f.name()).collect();
        Error::spec(format!("unknown format `{name}`; known are {}", known.join(", ")))
    })
}

fn named_scheme(format: &'static dyn Format, name: &str) -> Result<&'static str, Error> {
    format.schemes().iter().find(|s| **s == name).copied().ok_or_else(|| {
        Error::spec(format!("{} has no scheme `{name}`; it has {}", format.name(), format.schemes().join(", ")))
    })
}

fn chosen_format(typed: &Typed, parts: &Parts) -> Result<&'static dyn Format, Error> {
    let part = parts.format.as_deref().map(named_format).transpose()?;
    match (typed.format, part) {
        (Some(said), Some(part)) if said.name() != part.name() => {
            Err(Error::spec(format!("--format {} contradicts the spec's format {}", part.name(), said.name())))
        }
        (Some(format), _) | (None, Some(format)) => Ok(format),
        (None, None) => named_format(DEFAULT_FORMAT),
    }
}

/// The named scheme, or the first one of the format that has the bits, mode and group asked for.
fn chosen_scheme(format: &'static dyn Format, typed: &Typed, parts: &Parts) -> Result<&'static str, Error> {
    if let Some(scheme) = typed.scheme {
        let scheme = named_scheme(format, scheme)?;
        if !fits(format, scheme, parts) {
            return Err(Error::spec(format!("{} contradicts the spec's {}-{scheme}", said(parts), format.name())));
        }
        return Ok(scheme);
    }
    if parts.bits.is_none() && parts.mode.is_none() {
        return Ok(format.schemes()[0]);
    }
    format.schemes().iter().find(|s| fits(format, s, parts)).copied().ok_or_else(|| {
        Error::spec(format!(
            "no scheme of {} has {}; it has {}",
            format.name(),
            said(parts),
            format.schemes().join(", ")
        ))
    })
}

fn fits(format: &'static dyn Format, scheme: &str, parts: &Parts) -> bool {
    let defaults: Vec<&str> = format.options(scheme).iter().map(|o| o[0]).collect();
    match format.bind(scheme, &defaults) {
        Ok(Some(bound)) => {
            let facts = bound.facts();
            parts.bits.is_none_or(|b| b == facts.bits) && parts.mode.as_deref().is_none_or(|m| m == facts.mode)
        }
        _ => parts.bits.is_none() && parts.mode.is_none(),
    }
}

fn said(parts: &Parts) -> String {
    let bits = parts.bits.map(|b| format!("--bits {b}"));
    let mode = parts.mode.as_ref().map(|m| format!("--mode {m}"));
    bits.into_iter().chain(mode).collect::<Vec<_>>().join(" and ")
}

/// The option word of a group size, none where the scheme's only group is that size.
fn group_word(format: &'static dyn Format, scheme: &str, group: usize) -> Result<Option<String>, Error> {
    let options = format.options(scheme);
    let word = format!("g{group}");
    if let Some(choice) = options.iter().find(|o| is_group(o)) {
        if choice.contains(&word.as_str()) {
            return Ok(Some(word));
        }
        return Err(Error::spec(format!(
            "{}-{scheme} has no group size {group}; it has {}",
            format.name(),
            choice.join(", ")
        )));
    }
    let defaults: Vec<&str> = options.iter().map(|o| o[0]).collect();
    match format.bind(scheme, &defaults) {
        Ok(Some(bound)) if bound.facts().group_size == group => Ok(None),
        Ok(Some(bound)) => Err(Error::spec(format!(
            "{}-{scheme} has groups of {} only, not {group}",
            format.name(),
            bound.facts().group_size
        ))),
        _ => Err(Error::spec(format!("{}-{scheme} has no groups", format.name()))),
    }
}

/// Whether an option chooses the group: its words are `g32`, `channel`, `tensor`, `row`, `b128`.
fn is_group(option: &[&str]) -> bool {
    let sized =
        |w: &str| w.strip_prefix(['g', 'b']).is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
    option.iter().all(|w| sized(w) || matches!(*w, "channel" | "tensor" | "row"))
}

/// Whether an option chooses how codes are found.
fn is_method(option: &[&str]) -> bool {
    option.contains(&ROUNDING)
}

fn unknown_option(format: &'static dyn Format, scheme: &str, word: &str) -> Error {
    let options: Vec<String> = format.options(scheme).iter().map(|o| o.join("|")).collect();
    let has = if options.is_empty() { "no options".to_owned() } else { options.join(", ") };
    Error::spec(format!("{}-{scheme} has no option `{word}`; it has {has}", format.name()))
}

fn all_schemes() -> String {
    let all = FORMATS.iter().map(|f| format!("{} ({})", f.name(), f.schemes().join(" ")));
    all.collect::<Vec<_>>().join(", ")
}
