//! Recipes: a view's options as a TOML file.
//!
//! A recipe fills what flags leave open; flags that contradict it are refused. What is typed goes before
//! what the recipe lists: first among rules, of which the first match wins, and last among files that replace or are added,
//! of which the last one does. Paths are looked for beside the recipe first. [`render`] writes the recipe of a view,
//! which asks for the same view when it is read.

use std::{
    collections::BTreeMap,
    fmt::Display,
    fs, io,
    ops::Range,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use toml::Spanned;

use crate::{
    cli::{
        Failure,
        options::{ComponentArgs, ViewArgs, dtype, scaled, shard_size},
    },
    plan::{Error, Options, Rename, Rule, Spec},
    quant::dialect::mlx,
};

/// Far more than any recipe has: a weight file that is named by mistake is not read whole.
const MAX_LEN: u64 = 16 << 20;

/// The text as TOML has it.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
struct Document {
    #[serde(skip_serializing_if = "Option::is_none")]
    spec: Option<Spanned<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    predicate: Option<Spanned<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    format: Option<Spanned<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bits: Option<Spanned<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group_size: Option<Spanned<usize>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<Spanned<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<Spanned<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dtype: Option<Spanned<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shard_size: Option<Spanned<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    split: Option<Spanned<bool>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    show: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    overrides: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    loras: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    importance: Option<Spanned<String>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    renames: Vec<Spanned<String>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    rules: Vec<Exception>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    components: BTreeMap<Spanned<String>, Part>,
}

/// A rule.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Exception {
    pattern: Spanned<String>,
    spec: Spanned<String>,
}

/// A component.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
struct Part {
    #[serde(skip_serializing_if = "Option::is_none")]
    spec: Option<Spanned<String>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    rules: Vec<Exception>,
}

impl Exception {
    fn text(&self) -> String {
        format!("{}={}", self.pattern.get_ref(), self.spec.get_ref())
    }

    fn of(rule: &str) -> Self {
        let (pattern, spec) = rule.rsplit_once('=').unwrap_or((rule, ""));
        Self { pattern: unplaced(pattern.to_owned()), spec: unplaced(spec.to_owned()) }
    }
}

/// A recipe file, read.
#[derive(Debug)]
struct Recipe {
    path: PathBuf,
    text: String,
    document: Document,
}

/// What a recipe file asks for.
///
/// # Errors
/// A file that cannot be read; what it says that has no meaning, with its line.
pub fn load(path: &Path) -> Result<ViewArgs, Error> {
    Recipe::read(path)?.fill(&ViewArgs::default())
}

impl ViewArgs {
    /// These arguments with what their recipe adds, and no recipe any more.
    ///
    /// # Errors
    /// As [`load`], and a flag that contradicts the recipe.
    pub fn with_recipe(&self) -> Result<Self, Error> {
        match &self.recipe {
            None => Ok(self.clone()),
            Some(name) if mlx::NAMES.contains(&name.as_str()) => {
                Ok(Self { recipe: None, predicate: Some(name.clone()), ..self.clone() })
            }
            Some(path) => Recipe::read(Path::new(path))?.fill(self),
        }
    }
}

impl Recipe {
    fn read(path: &Path) -> Result<Self, Error> {
        let refused = |why: String| Error::Refused(format!("recipe {}: {why}", path.display()));
        let text = read(path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => refused(format!(
                "there is no such file; a recipe is a TOML file, or one of mlx_lm's by name: {}",
                mlx::NAMES.join(", ")
            )),
            _ => refused(e.to_string()),
        })?;
        let mut recipe = Self { path: path.to_owned(), text, document: Document::default() };
        recipe.document = toml::from_str(&recipe.text)
            .map_err(|e| recipe.at(&e.span().unwrap_or_default(), e.message().trim_end()))?;
        Ok(recipe)
    }

    /// A mistake and its line.
    fn at(&self, span: &Range<usize>, why: impl Display) -> Error {
        let before = self.text.as_bytes().iter().take(span.start);
        let line = 1 + before.filter(|byte| **byte == b'\n').count();
        Error::Spec(format!("recipe {}: line {line}: {why}", self.path.display()))
    }

    /// What was typed, and what the recipe adds to it.
    fn fill(&self, typed: &ViewArgs) -> Result<ViewArgs, Error> {
        let of = &self.document;
        let same_spec = |a: &String, b: &String| match (parsed(a), parsed(b)) {
            (Ok(a), Ok(b)) => a == b,
            _ => a == b,
        };
        let rules = typed.rules.iter().cloned().chain(of.rules.iter().map(Exception::text));
        let beside = |text: &Spanned<String>| Spanned::new(text.span(), self.path_of(text.get_ref()));
        let filled = ViewArgs {
            recipe: None,
            target_bpw: typed.target_bpw,
            target_size: typed.target_size.clone(),
            spec: self.one("spec", typed.spec.as_ref(), of.spec.as_ref(), same_spec)?,
            predicate: of.predicate.as_ref().map(|name| name.get_ref().clone()),
            format: self.one("format", typed.format.as_ref(), of.format.as_ref(), String::eq)?,
            bits: self.one("bits", typed.bits.as_ref(), of.bits.as_ref(), u32::eq)?,
            group_size: self.one("group-size", typed.group_size.as_ref(), of.group_size.as_ref(), usize::eq)?,
            mode: self.one("mode", typed.mode.as_ref(), of.mode.as_ref(), String::eq)?,
            method: self.one("method", typed.method.as_ref(), of.method.as_ref(), String::eq)?,
            dtype: self.one("dtype", typed.dtype.as_ref(), of.dtype.as_ref(), |a, b| dtype(a) == dtype(b))?,
            shard_size: self.one("shard-size", typed.shard_size.as_ref(), of.shard_size.as_ref(), |a, b| {
                shard_size(a) == shard_size(b)
            })?,
            split: self
                .one("split", Some(&typed.split).filter(|split| **split), of.split.as_ref(), bool::eq)?
                .unwrap_or(false),
            rules: rules.collect(),
            show: both(&of.show, &typed.show),
            overrides: both(&self.paths(&of.overrides), &typed.overrides),
            loras: both(&self.paths(&of.loras), &typed.loras),
            importance: self.one(
                "importance",
                typed.importance.as_ref(),
                of.importance.as_ref().map(beside).as_ref(),
                String::eq,
            )?,
            renames: of.renames.iter().map(|r| r.get_ref()).chain(&typed.renames).cloned().collect(),
            components: of.components.iter().map(|(dir, part)| (dir.get_ref().clone(), part.args())).collect(),
        };
        self.check(&filled)?;
        Ok(filled)
    }

    /// The value that a flag and the recipe agree on.
    fn one<T: Clone + Display>(
        &self,
        flag: &str,
        typed: Option<&T>,
        said: Option<&Spanned<T>>,
        same: impl Fn(&T, &T) -> bool,
    ) -> Result<Option<T>, Error> {
        match (typed, said) {
            (Some(typed), Some(said)) if !same(typed, said.get_ref()) => Err(self.at(
                &said.span(),
                format!("{} contradicts --{flag} {typed}; a recipe fills what flags leave open", said.get_ref()),
            )),
            (Some(typed), _) => Ok(Some(typed.clone())),
            (None, said) => Ok(said.map(|said| said.get_ref().clone())),
        }
    }

    /// Paths where they lie beside the recipe; others, and repo ids, as they are.
    fn paths(&self, texts: &[String]) -> Vec<String> {
        texts.iter().map(|text| self.path_of(text)).collect()
    }

    fn path_of(&self, text: &str) -> String {
        let dir = self.path.parent().unwrap_or(Path::new(""));
        let path = scaled(text).map_or(text, |(path, _)| path);
        let there = dir.join(path).exists().then(|| dir.join(text).to_string_lossy().into_owned());
        there.unwrap_or_else(|| text.to_owned())
    }

    /// Finds the lines of what has no meaning, which the arguments alone could not name.
    fn check(&self, filled: &ViewArgs) -> Result<(), Error> {
        let of = &self.document;
        let placed = |span: Range<usize>| move |why: String| self.at(&span, why);
        if let Some(name) = of.predicate.as_ref().filter(|name| !mlx::NAMES.contains(&name.get_ref().as_str())) {
            let why = format!("unknown predicate {}; mlx_lm's are {}", name.get_ref(), mlx::NAMES.join(", "));
            return Err(self.at(&name.span(), why));
        }
        if let Some(text) = &of.dtype {
            dtype(text.get_ref()).map_err(placed(text.span()))?;
        }
        if let Some(text) = &of.shard_size {
            shard_size(text.get_ref()).map_err(placed(text.span()))?;
        }
        for text in &of.renames {
            Rename::parse(text.get_ref()).map_err(|e| self.at(&text.span(), e))?;
        }
        let spec = filled.view_spec().map_err(|e| match &of.spec {
            Some(said) => self.at(&said.span(), e),
            None => e,
        })?;
        self.check_rules(&of.rules, &spec)?;
        for (dir, part) in &of.components {
            let own = match &part.spec {
                Some(text) => spec.of_component(text.get_ref()).map_err(|e| self.at(&text.span(), e))?,
                None if part.rules.is_empty() => {
                    return Err(self.at(&dir.span(), format!("component {}: neither a spec nor rules", dir.get_ref())));
                }
                None => spec.clone(),
            };
            self.check_rules(&part.rules, &own)?;
        }
        Ok(())
    }

    fn check_rules(&self, rules: &[Exception], spec: &Spec) -> Result<(), Error> {
        for rule in rules {
            spec.inherit(rule.spec.get_ref()).map_err(|e| self.at(&rule.spec.span(), e))?;
            Rule::parse(&rule.text(), spec).map_err(|e| self.at(&rule.pattern.span(), e))?;
        }
        Ok(())
    }
}

impl Part {
    fn args(&self) -> ComponentArgs {
        let spec = self.spec.as_ref().map(|spec| spec.get_ref().clone());
        ComponentArgs { spec, rules: self.rules.iter().map(Exception::text).collect() }
    }
}

/// The recipe of a view, as TOML.
///
/// # Errors
/// Options that no recipe can say.
pub fn render(options: &Options) -> Result<String, Failure> {
    let args: ViewArgs = serde_json::from_value(options.to_json())?;
    let rules = |rules: &[String]| rules.iter().map(|rule| Exception::of(rule)).collect::<Vec<_>>();
    let component = |(dir, of): (&String, &ComponentArgs)| {
        (unplaced(dir.clone()), Part { spec: of.spec.clone().map(unplaced), rules: rules(&of.rules) })
    };
    let document = Document {
        spec: args.spec.map(unplaced),
        predicate: args.predicate.map(unplaced),
        group_size: args.group_size.map(unplaced),
        dtype: args.dtype.map(unplaced),
        shard_size: args.shard_size.map(unplaced),
        split: Some(args.split).filter(|split| *split).map(unplaced),
        show: args.show,
        overrides: args.overrides,
        loras: args.loras,
        importance: args.importance.map(unplaced),
        renames: args.renames.into_iter().map(unplaced).collect(),
        rules: rules(&args.rules),
        components: args.components.iter().map(component).collect(),
        ..Document::default()
    };
    Ok(toml::to_string(&document)?)
}

/// A value that is in no file.
fn unplaced<T>(value: T) -> Spanned<T> {
    Spanned::new(0..0, value)
}

fn parsed(spec: &str) -> Result<Spec, Error> {
    Spec::parse(Some(spec), &crate::plan::Parts::default())
}

fn both(first: &[String], then: &[String]) -> Vec<String> {
    [first, then].concat()
}

fn read(path: &Path) -> io::Result<String> {
    if fs::metadata(path)?.len() > MAX_LEN {
        return Err(io::Error::other("too long for a recipe"));
    }
    fs::read_to_string(path)
}
