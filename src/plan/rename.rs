//! Renames: `PATTERN=REPLACEMENT`, other names for loaders that call the tensors otherwise.

use regex::Regex;

use crate::plan::Error;

/// New names for the tensors that a pattern matches.
#[derive(Clone, Debug)]
pub struct Rename {
    /// As typed.
    pub text: String,
    pattern: Regex,
    /// What stands before, between and behind the stars of the replacement.
    pieces: Vec<String>,
}

impl Rename {
    /// Parses `PATTERN=REPLACEMENT`. A `*` of the pattern stands for any run of characters; the stars of the
    /// replacement are those runs in order.
    ///
    /// # Errors
    /// A text without `=`, an empty side, more stars in the replacement than in the pattern.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let bad = |why: &str| Error::spec(format!("--rename `{text}`: {why}"));
        let (from, to) = text.split_once('=').ok_or_else(|| bad("no `=`; a rename is PATTERN=REPLACEMENT"))?;
        if from.is_empty() {
            return Err(bad("an empty pattern matches nothing; `*` matches every name"));
        }
        if to.matches('*').count() > from.matches('*').count() {
            return Err(bad("the replacement has more stars than the pattern"));
        }
        let literal = from.split('*').map(regex::escape).collect::<Vec<_>>().join("(.*)");
        let pattern = Regex::new(&format!("^{literal}$")).map_err(|e| bad(&e.to_string()))?;
        Ok(Self { text: text.to_owned(), pattern, pieces: to.split('*').map(str::to_owned).collect() })
    }

    /// The new name of a tensor, where the pattern matches.
    #[must_use]
    pub fn apply(&self, name: &str) -> Option<String> {
        let runs = self.pattern.captures(name)?;
        let mut made = String::new();
        for (number, piece) in self.pieces.iter().enumerate() {
            if number > 0 {
                made.push_str(runs.get(number).map_or("", |run| run.as_str()));
            }
            made.push_str(piece);
        }
        Some(made)
    }
}

/// Renames that counts what it met, so that none stands for nothing.
#[derive(Debug)]
pub(crate) struct Renames<'a> {
    all: Vec<(&'a Rename, usize)>,
}

impl<'a> Renames<'a> {
    pub(crate) fn new(all: &'a [Rename]) -> Self {
        Self { all: all.iter().map(|rename| (rename, 0)).collect() }
    }

    /// The name that the view shows, one rename after the other.
    pub(crate) fn apply(&mut self, name: &str) -> String {
        self.all.iter_mut().fold(name.to_owned(), |name, (rename, met)| match rename.apply(&name) {
            Some(made) => {
                *met += 1;
                made
            }
            None => name,
        })
    }

    /// Refuses renames that met no tensor.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let idle = self.all.iter().find(|(_, met)| *met == 0);
        idle.map_or(Ok(()), |(rename, _)| {
            let why = "matches no tensor of the view; `quantfs inspect` lists their names";
            Err(Error::spec(format!("--rename `{}`: {why}", rename.text)))
        })
    }
}
