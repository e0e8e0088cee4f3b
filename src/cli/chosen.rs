//! What was chosen for a target size, remembered: it takes a pass over the weights, and the same source, options and
//! target lead to the same choice.
//!
//! What is remembered lies in the user's cache directory, a small file a choice. Where there is none, or it cannot be
//! written, the choice is made each time.

use std::{
    fs, io,
    io::Write,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use serde::{Deserialize, Serialize};

use crate::{
    bulk::target::{self, Target},
    cli::{
        Failure,
        places::{home, variable},
        progress::Bar,
    },
    plan::{Error, Options, Rule, Spec},
    source::Source,
};

/// Goes up when the same question would be answered otherwise.
const REVISION: u32 = 3;

/// The rules that were added, the view's and those of its components.
#[derive(Debug, Deserialize, Serialize)]
struct Remembered {
    rules: Vec<String>,
    components: Vec<Vec<String>>,
}

/// Options with the schemes that a target asks for.
///
/// # Errors
/// As [`target::choose`]; importance of another model.
pub(super) fn options(source: &Arc<dyn Source>, options: &Options, target: Target) -> Result<Options, Failure> {
    let path = place(source.as_ref(), options, target);
    let known = path.as_ref().and_then(|path| fs::read(path).ok()).and_then(|text| serde_json::from_slice(&text).ok());
    if let Some(options) = known.and_then(|known: Remembered| known.added(&of_view(options)).ok()) {
        return Ok(options);
    }
    let chosen = chosen(source, options, target)?;
    if let Some(path) = path
        && let Err(e) = Remembered::of(options, &chosen).write(&path)
    {
        tracing::debug!("{}: {e}; the choice is not remembered", path.display());
    }
    Ok(chosen)
}

fn chosen(source: &Arc<dyn Source>, options: &Options, target: Target) -> Result<Options, Failure> {
    let met = AtomicBool::new(false);
    let importance = |name: &str| {
        let values = options.importance.as_ref()?.of(name)?;
        met.store(true, Ordering::Relaxed);
        Some(values.to_vec())
    };
    let bar = Bar::new("choose");
    let chosen = target::choose(source, &of_view(options), target, &importance, &bar)?;
    bar.finish();
    if let Some(file) = options.importance.as_ref().filter(|_| !met.into_inner()) {
        let why = "nothing of it belongs to a weight that is free to be chosen for; is it for another model?";
        return Err(Failure::usage(format!("--importance {}: {why}", file.text())));
    }
    Ok(chosen.options)
}

/// Importance that no weight's method weighs errors by is for the choice alone: the view has no use for it.
fn of_view(options: &Options) -> Options {
    let rules = options.rules.iter().chain(options.components.iter().flat_map(|component| &component.rules));
    let specs = rules.map(|rule| &rule.spec).chain(options.components.iter().map(|component| &component.spec));
    let weighs = specs.chain([&options.spec]).any(Spec::weighs_errors);
    Options { importance: options.importance.clone().filter(|_| weighs), ..options.clone() }
}

impl Remembered {
    /// What a choice added to options.
    fn of(before: &Options, after: &Options) -> Self {
        let new = |before: &[Rule], after: &[Rule]| {
            after.iter().skip(before.len()).map(|rule| rule.text.clone()).collect::<Vec<_>>()
        };
        let components = before.components.iter().zip(&after.components);
        Self {
            rules: new(&before.rules, &after.rules),
            components: components.map(|(before, after)| new(&before.rules, &after.rules)).collect(),
        }
    }

    fn added(&self, options: &Options) -> Result<Options, Error> {
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

    fn write(&self, path: &std::path::Path) -> io::Result<()> {
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
