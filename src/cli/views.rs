//! What a mount shows: one view of its source, or several, each a directory: `--view NAME=SPEC`, `--any-view`.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use clap::Args;
use serde::{Deserialize, Serialize};

use crate::{
    cli::{
        Failure, caches,
        facts::{AllFacts, Facts, OfMount},
        options::ViewArgs,
    },
    fuse::{self, Catalog, HIDDEN_DIR, Named, Show, Shown},
    plan::{self, Plan, Spec},
    source::Source,
    view::View,
};

/// Longest name of a directory.
const NAME_MAX: usize = 255;

/// Several views of one source.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
#[command(next_help_heading = "Several views")]
pub struct ManyArgs {
    /// Show a directory of this name with a view of its own (repeatable); the view options hold for all of them
    #[arg(long = "view", value_name = "NAME=SPEC")]
    pub views: Vec<String>,
    /// Show a directory for any spec that somebody looks up, `mlx-4bit-g64` say; other spellings are links to it
    #[arg(long)]
    pub any_view: bool,
}

impl ManyArgs {
    /// Whether the mount's root is a directory of views.
    fn are_said(&self) -> bool {
        self.any_view || !self.views.is_empty()
    }
}

/// What a mount was asked to show, in words that hold in any directory.
#[derive(Clone, Debug)]
pub(super) struct Config {
    /// A path from the root on, or a repo id.
    source: String,
    view: ViewArgs,
    many: ManyArgs,
}

/// What is shown, and what to say of it.
#[derive(Debug)]
pub(super) struct Prospect {
    pub(super) show: Show,
    pub(super) spec: String,
    pub(super) warnings: Vec<String>,
}

impl Config {
    /// # Errors
    /// Arguments that contradict each other.
    pub(super) fn new(source: &str, view: &ViewArgs, many: &ManyArgs) -> Result<Self, Failure> {
        let path = Path::new(source);
        let source =
            if path.exists() { std::path::absolute(path)?.to_string_lossy().into_owned() } else { source.to_owned() };
        Self { source, view: ViewArgs::default(), many: ManyArgs::default() }.with(view, many)
    }

    /// The same source, shown otherwise.
    ///
    /// # Errors
    /// Arguments that contradict each other.
    pub(super) fn with(&self, view: &ViewArgs, many: &ManyArgs) -> Result<Self, Failure> {
        if many.are_said() && view.spec.is_some() {
            let why = "--spec: each of several views says its own; write it as --view NAME=SPEC";
            return Err(Failure::usage(why));
        }
        Ok(Self { source: self.source.clone(), view: view.absolute()?, many: many.clone() })
    }

    /// Opens the source with what lies beside it.
    ///
    /// # Errors
    /// Where it is not there.
    pub(super) fn open(&self) -> Result<Opened, Failure> {
        let (source, options) = self.view.open(&self.source, &caches())?;
        Ok(Opened { source, options })
    }
}

/// A source, and what all views of it share.
#[derive(Clone, Debug)]
pub(super) struct Opened {
    pub(super) source: Arc<dyn Source>,
    options: plan::Options,
}

impl Opened {
    /// The source's name.
    pub(super) fn name(&self) -> &str {
        self.source.name()
    }

    /// Plans what is to be shown.
    ///
    /// # Errors
    /// A name that cannot be one, a view that cannot be planned.
    pub(super) fn prospect(self, config: &Config, mount: &Arc<OfMount>) -> Result<Prospect, Failure> {
        if !config.many.are_said() {
            let plan = Arc::new(plan::build(&*self.source, &self.options)?);
            let (spec, warnings) = (plan.spec.clone(), plan.warnings.clone());
            return Ok(Prospect { show: Show::One(shown(plan, self.source, mount)), spec, warnings });
        }
        let views = Views::new(self, config, mount)?;
        let (mut specs, mut warnings) = (vec![], vec![]);
        for name in views.specs.keys() {
            let plan = Arc::new(views.plan(name).map_err(|e| Failure::from(e).of(&format!("--view {name}")))?);
            specs.push(format!("{name}={}", plan.spec));
            warnings.extend(plan.warnings.iter().map(|warning| format!("{name}: {warning}")));
            let made = shown(plan, Arc::clone(&views.opened.source), mount);
            views.made.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone(), made);
        }
        specs.extend(config.many.any_view.then(|| "any spec".to_owned()));
        Ok(Prospect { show: Show::Many(Arc::new(views)), spec: specs.join(", "), warnings })
    }
}

fn shown(plan: Arc<Plan>, source: Arc<dyn Source>, mount: &Arc<OfMount>) -> Shown {
    let facts = Arc::new(Facts::new(mount, &plan));
    Shown { view: View::new(plan, source, Arc::clone(mount.engine())), facts }
}

/// The views of one source by name.
#[derive(Debug)]
struct Views {
    opened: Opened,
    args: ViewArgs,
    /// Of the names that were given.
    specs: Arc<BTreeMap<String, String>>,
    any: bool,
    mount: Arc<OfMount>,
    /// Views that were made to see whether they can be, for their first user.
    made: Mutex<HashMap<String, Shown>>,
}

impl Views {
    fn new(opened: Opened, config: &Config, mount: &Arc<OfMount>) -> Result<Self, Failure> {
        let mut specs = BTreeMap::new();
        for text in &config.many.views {
            let (name, spec) = named(text).map_err(|why| Failure::usage(format!("--view {text}: {why}")))?;
            if specs.insert(name.to_owned(), spec.to_owned()).is_some() {
                return Err(Failure::usage(format!("--view {text}: there is a view of this name already")));
            }
        }
        let (args, any, made) = (config.view.clone(), config.many.any_view, Mutex::default());
        Ok(Self { opened, args, specs: Arc::new(specs), any, mount: Arc::clone(mount), made })
    }

    fn plan(&self, name: &str) -> Result<Plan, plan::Error> {
        let spec = self.specs.get(name).map_or(name, String::as_str);
        let asked = ViewArgs { spec: Some(spec.to_owned()), ..self.args.clone() }.options()?;
        let shared = &self.opened.options;
        let options = plan::Options { overrides: shared.overrides.clone(), adapters: shared.adapters.clone(), ..asked };
        plan::build(&*self.opened.source, &options)
    }
}

impl Catalog for Views {
    fn names(&self) -> Vec<String> {
        self.specs.keys().cloned().collect()
    }

    fn find(&self, name: &str) -> Option<Named> {
        if self.specs.contains_key(name) {
            return Some(Named::View);
        }
        let spec = self.any.then(|| Spec::parse(Some(name), &self.args.parts()).ok()).flatten()?.to_string();
        Some(if spec == name { Named::View } else { Named::Link(spec) })
    }

    fn open(&self, name: &str) -> Result<Shown, String> {
        if let Some(made) = self.made.lock().unwrap_or_else(PoisonError::into_inner).remove(name) {
            return Ok(made);
        }
        let plan = self.plan(name).map_err(|e| e.to_string())?;
        Ok(shown(Arc::new(plan), Arc::clone(&self.opened.source), &self.mount))
    }

    fn facts(&self) -> Arc<dyn fuse::Facts> {
        Arc::new(AllFacts { mount: Arc::clone(&self.mount), specs: Arc::clone(&self.specs) })
    }
}

/// `NAME=SPEC`
fn named(text: &str) -> Result<(&str, &str), String> {
    let (name, spec) = text.split_once('=').ok_or("a view is NAME=SPEC")?;
    let why = match name {
        "" => "a view needs a name",
        "." | ".." | HIDDEN_DIR => "this name is taken",
        _ if name.contains('/') => "a name is one directory, without `/`",
        _ if name.len() > NAME_MAX => "the name is longer than 255 bytes",
        _ if spec.is_empty() => "a view needs a spec",
        _ => return Ok((name, spec)),
    };
    Err(why.to_owned())
}
