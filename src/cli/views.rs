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
        options::{ViewArgs, absolute},
    },
    fuse::{self, Catalog, HIDDEN_DIR, Named, NoView, Show, Shown},
    plan::{self, Plan, Spec},
    source::{self, Source},
    view::View,
};

/// Views that are made when they are planned first; others are planned again when they are listed.
const KEPT: usize = 2;

/// Longest name of a directory.
const NAME_MAX: usize = 255;

/// Several views of one source.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
#[command(next_help_heading = "Several views")]
pub struct ManyArgs {
    /// Show a directory of this name with a view of its own, by a spec or a recipe file (repeatable); the view options
    /// hold for all of them
    #[arg(long = "view", value_name = "NAME=SPEC|NAME=@FILE")]
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

    /// The same for a process in another directory.
    pub(super) fn resolved(&self) -> Self {
        let view = |text: &String| match text.split_once("=@") {
            Some((name, recipe)) => format!("{name}=@{}", absolute(recipe)),
            None => text.clone(),
        };
        Self { views: self.views.iter().map(view).collect(), any_view: self.any_view }
    }
}

/// What a mount was asked to show, in words that hold in any directory.
#[derive(Clone, Debug)]
pub(super) struct Config {
    /// A path from the root on, or a repo id.
    source: String,
    view: ViewArgs,
    /// Views by name; a view at the root where there are none and any is not shown.
    named: BTreeMap<String, ViewArgs>,
    any: bool,
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
    /// Arguments that contradict each other, a name that cannot be one.
    pub(super) fn new(source: &str, view: &ViewArgs, many: &ManyArgs) -> Result<Self, Failure> {
        let path = Path::new(source);
        let source =
            if path.exists() { std::path::absolute(path)?.to_string_lossy().into_owned() } else { source.to_owned() };
        Self { source, view: ViewArgs::default(), named: BTreeMap::new(), any: false }.with(view, many)
    }

    /// The same source, shown otherwise.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub(super) fn with(&self, view: &ViewArgs, many: &ManyArgs) -> Result<Self, Failure> {
        let view = view.resolved()?;
        if many.are_said() && view.spec.is_some() {
            let why = "--spec (or a recipe's): each of several views says its own; write it as --view NAME=SPEC";
            return Err(Failure::usage(why));
        }
        if many.are_said() && view.target()?.is_some() {
            let why =
                "of several views each says its own; write recipes (`quantfs recipe`) and name them: --view NAME=@FILE";
            return Err(Failure::usage(format!("--target-bpw, --target-size: {why}")));
        }
        if many.any_view && view.chooses() {
            let why = "--any-view: a directory's name is its spec, which a target size would not keep to";
            return Err(Failure::usage(why));
        }
        let mut named = BTreeMap::new();
        for text in &many.views {
            let (name, said) = name_and_spec(text).map_err(|why| Failure::usage(format!("--view {text}: {why}")))?;
            if many.any_view && Spec::parse(Some(name), &view.parts()).is_ok() {
                let why = "with --any-view this name is a spec, and would lead to another view; choose another name";
                return Err(Failure::usage(format!("--view {text}: {why}")));
            }
            let own = match said.strip_prefix('@') {
                Some(recipe) => ViewArgs { recipe: Some(recipe.to_owned()), ..view.clone() },
                None => ViewArgs { spec: Some(said.to_owned()), ..view.clone() },
            };
            let own = own.resolved().map_err(|e| Failure::from(e).of(&format!("--view {name}")))?;
            if named.insert(name.to_owned(), own).is_some() {
                return Err(Failure::usage(format!("--view {text}: there is a view of this name already")));
            }
        }
        Ok(Self { source: self.source.clone(), view, named, any: many.any_view })
    }

    fn shows_many(&self) -> bool {
        self.any || !self.named.is_empty()
    }

    /// Opens the source with what lies beside it.
    ///
    /// # Errors
    /// Where it is not there.
    pub(super) fn open(&self) -> Result<Opened, Failure> {
        if !self.shows_many() {
            return Opened::new(&self.source, &self.view);
        }
        // What else is said may have no meaning but for a view's own spec.
        let (overrides, loras, importance) =
            (self.view.overrides.clone(), self.view.loras.clone(), self.view.importance.clone());
        Opened::new(&self.source, &ViewArgs { overrides, loras, importance, ..ViewArgs::default() })
    }
}

/// A source with what lies beside it, and what is asked of a view.
#[derive(Clone, Debug)]
pub(super) struct Opened {
    pub(super) source: Arc<dyn Source>,
    options: plan::Options,
}

impl Opened {
    fn new(source: &str, args: &ViewArgs) -> Result<Self, Failure> {
        let (source, options) = args.open(source, &caches())?;
        Ok(Self { source, options })
    }

    /// The source's name.
    pub(super) fn name(&self) -> &str {
        self.source.name()
    }

    /// The same source, another view: one of several, which has importance where it has a use for it.
    fn with(&self, args: &ViewArgs) -> Result<Self, plan::Error> {
        let Self { source, options } = self;
        let (overrides, adapters) = (options.overrides.clone(), options.adapters.clone());
        let importance = options.importance.clone();
        let options = plan::Options { overrides, adapters, importance, ..args.options()? };
        Ok(Self { source: Arc::clone(source), options: options.without_idle_importance() })
    }

    /// A view of its own files beside the source, which has importance of the same content only once in memory.
    fn with_own(&self, source: &str, args: &ViewArgs, is_shared: bool) -> Result<Self, Failure> {
        let mut own = Self::new(source, args)?;
        if let (Some(theirs), Some(ours)) = (&mut own.options.importance, &self.options.importance)
            && theirs.digest() == ours.digest()
        {
            *theirs = Arc::clone(ours);
        }
        if is_shared {
            own.options = own.options.without_idle_importance();
        }
        Ok(own)
    }

    fn plan(&self) -> Result<Plan, plan::Error> {
        plan::build(&*self.source, &self.options)
    }

    /// Plans what is to be shown.
    ///
    /// # Errors
    /// A view that cannot be planned.
    pub(super) fn prospect(self, config: &Config, mount: &Arc<OfMount>) -> Result<Prospect, Failure> {
        if !config.shows_many() {
            let plan = Arc::new(self.plan()?);
            let (spec, warnings) = (plan.spec.clone(), plan.warnings.clone());
            return Ok(Prospect { show: Show::One(shown(plan, self.source, mount)), spec, warnings });
        }
        let importance = self.options.importance.clone();
        let (mut views, mut specs, mut warnings) = (Views::new(self, config, mount), vec![], vec![]);
        for (name, args) in &config.named {
            let of = |failure: Failure| failure.of(&format!("--view {name}"));
            let plan = views.name(config, name, args).map_err(of)?;
            specs.push(format!("{name}={}", plan.spec));
            warnings.extend(plan.warnings.iter().map(|warning| format!("{name}: {warning}")));
        }
        if let Some(file) = importance.filter(|_| !views.has_use_for_importance(config)) {
            let why =
                "no view has a use for it: each rounds to nearest, which weighs no errors; give one a method: 4bit-ls";
            return Err(Failure::usage(format!("--importance {}: {why}", file.text())));
        }
        specs.extend(config.any.then(|| "any spec".to_owned()));
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
    /// What unnamed ones are of.
    opened: Opened,
    args: ViewArgs,
    any: bool,
    named: BTreeMap<String, Opened>,
    /// What the named ones are.
    specs: Arc<BTreeMap<String, String>>,
    mount: Arc<OfMount>,
    /// Views that were made to see whether they can be, for their first user.
    made: Mutex<HashMap<String, Shown>>,
}

impl Views {
    fn new(opened: Opened, config: &Config, mount: &Arc<OfMount>) -> Self {
        let (args, any, mount) = (config.view.clone(), config.any, Arc::clone(mount));
        Self { opened, args, any, named: BTreeMap::new(), specs: Arc::default(), mount, made: Mutex::default() }
    }

    /// Adds a view that is there from the start.
    fn name(&mut self, config: &Config, name: &str, args: &ViewArgs) -> Result<Arc<Plan>, Failure> {
        // A recipe may lay files of its own beside the source.
        let beside = |args: &ViewArgs| (args.overrides.clone(), args.loras.clone(), args.importance.clone());
        let shares = beside(args) == beside(&config.view);
        let opened = if shares {
            self.opened.with(args)?
        } else {
            self.opened.with_own(&config.source, args, args.importance == config.view.importance)?
        };
        let plan = Arc::new(opened.plan()?);
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        // Some are kept; that the others can be made is known.
        if made.len() < KEPT {
            let shown = shown(Arc::clone(&plan), Arc::clone(&opened.source), &self.mount);
            made.insert(name.to_owned(), shown);
        }
        drop(made);
        Arc::make_mut(&mut self.specs).insert(name.to_owned(), plan.spec.clone());
        self.named.insert(name.to_owned(), opened);
        Ok(plan)
    }

    /// Whether a view weighs errors by the importance that is given to all, or may come to exist and do so.
    fn has_use_for_importance(&self, config: &Config) -> bool {
        let given = |name: &String| config.named[name].importance == config.view.importance;
        let uses = |(name, opened): (&String, &Opened)| given(name) && opened.options.importance.is_some();
        self.any || self.named.iter().any(uses)
    }

    fn opened(&self, name: &str) -> Result<Opened, plan::Error> {
        match self.named.get(name) {
            Some(opened) => Ok(opened.clone()),
            None => self.opened.with(&ViewArgs { spec: Some(name.to_owned()), ..self.args.clone() }),
        }
    }
}

impl Catalog for Views {
    fn names(&self) -> Vec<String> {
        self.named.keys().cloned().collect()
    }

    fn find(&self, name: &str) -> Option<Named> {
        if self.named.contains_key(name) {
            return Some(Named::View);
        }
        let spec = self.any.then(|| Spec::parse(Some(name), &self.args.parts()).ok()).flatten()?.to_string();
        Some(if spec == name { Named::View } else { Named::Link(spec) })
    }

    fn open(&self, name: &str) -> Result<Shown, NoView> {
        if let Some(made) = self.made.lock().unwrap_or_else(PoisonError::into_inner).remove(name) {
            return Ok(made);
        }
        let opened = self.opened(name).map_err(no_view)?;
        let plan = opened.plan().map_err(no_view)?;
        Ok(shown(Arc::new(plan), opened.source, &self.mount))
    }

    fn facts(&self) -> Arc<dyn fuse::Facts> {
        let (mount, source) = (Arc::clone(&self.mount), self.opened.name().to_owned());
        Arc::new(AllFacts { mount, source, specs: Arc::clone(&self.specs) })
    }
}

fn no_view(error: plan::Error) -> NoView {
    let why = error.to_string();
    match error {
        plan::Error::Source(source::Error::Changed { .. } | source::Error::NotFound { .. }) => NoView::Stale(why),
        plan::Error::Source(_) => NoView::Failed(why),
        plan::Error::Spec(_) | plan::Error::Refused(_) | plan::Error::Malformed { .. } => NoView::Refused(why),
    }
}

/// `NAME=SPEC` or `NAME=@RECIPE`
fn name_and_spec(text: &str) -> Result<(&str, &str), String> {
    let (name, spec) = text.split_once('=').ok_or("a view is NAME=SPEC")?;
    let why = match name {
        "" => "a view needs a name",
        "." | ".." | HIDDEN_DIR => "this name is taken",
        _ if name.contains('/') => "a name is one directory, without `/`",
        _ if name.contains(char::is_control) => "a name has no control characters",
        _ if name.len() > NAME_MAX => "the name is longer than 255 bytes",
        _ if spec.is_empty() => "a view needs a spec",
        _ => return Ok((name, spec)),
    };
    Err(why.to_owned())
}
