//! What was chosen for a target size, remembered: it takes a pass over the weights, and the same source, options and
//! target lead to the same choice.
//!
//! What is remembered lies in the user's cache directory, a small file a choice. Where there is none, or it cannot be
//! written, the choice is made each time.

use std::{
    fs, io,
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::{
    bulk::target::{self, Chosen, Target},
    cli::{
        Failure,
        places::{home, variable},
        progress::Bar,
    },
    plan::{self, Error, Options, Rule},
    source::Source,
};

/// Goes up when the same question would be answered otherwise.
const REVISION: u32 = 5;

/// The rules that were added, the view's and those of its components, and what the view then comes to.
#[derive(Debug, Deserialize, Serialize)]
struct Remembered {
    rules: Vec<String>,
    components: Vec<Vec<String>>,
    reached: f64,
}

/// Options with the schemes that a target asks for.
///
/// # Errors
/// As [`target::choose`].
pub(super) fn options(source: &Arc<dyn Source>, options: &Options, target: Target) -> Result<Options, Failure> {
    let path = place(source.as_ref(), options, target);
    if let Some(path) = &path
        && let Some(known) = Remembered::read(path)
    {
        match known.checked(source.as_ref(), &options.without_idle_importance(), target) {
            Ok(options) => return Ok(options),
            Err(why) => tracing::warn!("{}: {why}; the schemes are chosen anew", path.display()),
        }
    }
    let bar = Bar::new("choose");
    let chosen = target::choose(source, options, target, &bar)?;
    bar.finish();
    if let Some(path) = path
        && let Err(e) = Remembered::of(options, &chosen).write(&path)
    {
        tracing::debug!("{}: {e}; the choice is not remembered", path.display());
    }
    Ok(chosen.options)
}

impl Remembered {
    /// What a file remembers; `None` where there is none, or no such thing in it.
    fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    /// What a choice added to options.
    fn of(before: &Options, Chosen { options: after, reached, .. }: &Chosen) -> Self {
        let new = |before: &[Rule], after: &[Rule]| {
            after.iter().skip(before.len()).map(|rule| rule.text.clone()).collect::<Vec<_>>()
        };
        let components = before.components.iter().zip(&after.components);
        Self {
            rules: new(&before.rules, &after.rules),
            components: components.map(|(before, after)| new(&before.rules, &after.rules)).collect(),
            reached: *reached,
        }
    }

    /// The options with what is remembered.
    ///
    /// # Errors
    /// What was not remembered of these options and this target, since their plan is not of the size that it says, or
    /// of more than was asked for.
    fn checked(&self, source: &dyn Source, options: &Options, target: Target) -> Result<Options, Error> {
        let options = self.added(options)?;
        let reached = target.of(&plan::build(source, &options)?);
        let (said, most) = (self.reached, target.value());
        if reached != said || reached > most {
            return Err(Error::Spec(format!(
                "its view comes to {reached}, where it says {said} and {most} are asked for"
            )));
        }
        Ok(options)
    }

    fn added(&self, options: &Options) -> Result<Options, Error> {
        let (here, there) = (options.components.len(), self.components.len());
        if here != there {
            return Err(Error::Spec(format!("it speaks of {there} components, and not of {here}")));
        }
        let mut options = options.clone();
        for text in &self.rules {
            options.rules.push(Rule::parse(text, &options.spec)?);
        }
        for (component, rules) in options.components.iter_mut().zip(&self.components) {
            for text in rules {
                component.rules.push(Rule::parse(text, &component.spec)?);
            }
        }
        Ok(options)
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        let dir = path.parent().ok_or(io::ErrorKind::NotFound)?;
        fs::create_dir_all(dir)?;
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.persist(path)?;
        Ok(())
    }
}

/// Where the answer to a question lies: a name that digests all of it.
fn place(source: &dyn Source, options: &Options, target: Target) -> Option<PathBuf> {
    let cache = variable("XDG_CACHE_HOME").or_else(|| Some(home()?.join(".cache")))?;
    let mut hash = blake3::Hasher::new();
    let asked = format!("{REVISION} {} {target:?} {} ", env!("CARGO_PKG_VERSION"), options.to_json());
    hash.update(asked.as_bytes());
    if let Some(importance) = &options.importance {
        hash.update(importance.digest());
    }
    for entry in source.entries() {
        hash.update(format!("{:?} {:?}\n", entry.path, entry.version).as_bytes());
    }
    Some(cache.join("quantfs/targets").join(format!("{}.json", &hash.finalize().to_hex()[..32])))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;
    use crate::plan::{Parts, Spec};

    /// By serde_json's `float_roundtrip`.
    #[test]
    fn a_size_is_remembered_to_the_last_digit() {
        for reached in [3.646_622_123_236_822_8_f64, 2.922_048_997_772_828_6, 3.998_166_399_266_559_7, 1e17] {
            let options = Options::new(Spec::parse(None, &Parts::default()).unwrap());
            let chosen = Chosen { options: options.clone(), reached, groups: 0 };
            let text = serde_json::to_vec(&Remembered::of(&options, &chosen)).unwrap();
            let read: Remembered = serde_json::from_slice(&text).unwrap();
            assert_eq!(read.reached.to_bits(), reached.to_bits());
        }
    }
}
