//! A component seen as one of mlx_lm's models: its family, and the family of its text tower.

use std::borrow::Cow;

use serde_json::Value;

use super::{
    draft::Draft,
    families::{self, Known},
    glob::any,
    is_model, model_type,
    step::{Drafts, Step},
    walk::Place,
};
use crate::quant::dialect::Component;

/// What mlx_lm's tables know of one family, after its renaming of model types.
#[derive(Debug)]
pub(super) struct Family {
    /// The `model_type`s of config.json.
    pub(super) types: &'static [&'static str],
    /// The modules in order; empty where all are the inner family's.
    pub(super) walk: &'static str,
    /// What `sanitize` does.
    pub(super) steps: &'static [Step],
    /// The text model inside a model of several towers.
    pub(super) inner: Option<Inner>,
    /// Modules that the model's predicate quantizes with 8 bits in groups of 64.
    pub(super) careful: &'static [&'static str],
    /// Whether the predicate applies; asked of the innermost configuration.
    pub(super) careful_if: Option<fn(&Value) -> bool>,
    /// Modules that the predicate never quantizes.
    pub(super) dense: &'static [&'static str],
    /// Parameters that keep their stored dtype.
    pub(super) stored: &'static [&'static str],
    /// What reading config.json leaves in it.
    pub(super) patches: &'static [Patch],
}

/// What the reference's reading of config.json changes in it.
#[derive(Debug)]
pub(super) enum Patch {
    /// A value of `text_config` where it has none.
    TextMissing(&'static str, Fixed),
    /// A value of `text_config`, whatever it was.
    TextAlways(&'static str, Fixed),
    /// A value of `text_config` taken from the top level, or this one where that has none.
    TextFromTop(&'static str, u64),
    /// `rope_type` of the text's `rope_parameters` is called `type`, where that is absent.
    RopeType,
}

/// A value of a table.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fixed {
    Bool(bool),
    Number(u64),
}

impl Fixed {
    fn value(self) -> Value {
        match self {
            Self::Bool(b) => b.into(),
            Self::Number(n) => n.into(),
        }
    }
}

/// A family with nothing particular, for the tables to start from.
pub(super) const PLAIN: Family = Family {
    types: &[],
    walk: "",
    steps: &[],
    inner: None,
    careful: &[],
    careful_if: None,
    dense: &[],
    stored: &[],
    patches: &[],
};

/// A text model inside another one, configured by `text_config`.
#[derive(Debug)]
pub(super) struct Inner {
    /// Where its modules lie: `language_model.`.
    pub(super) prefix: &'static str,
    /// Its family by `text_config.model_type`, the first one for any other type.
    pub(super) families: &'static [&'static str],
    /// Whether its own `sanitize` runs after the outer one.
    pub(super) steps: bool,
}

/// A component that a family describes.
#[derive(Debug)]
pub(super) struct Model<'a> {
    /// For messages: `model_type llama`.
    pub(super) name: String,
    known: &'static Known,
    config: Cow<'a, Value>,
    inner: Option<(&'static Inner, &'static Known)>,
}

impl<'a> Model<'a> {
    /// `None` where no family describes the component.
    pub(super) fn of(component: &Component<'a>) -> Option<Self> {
        let model_type = model_type(component).filter(|_| is_model(component))?;
        let (config, known) = (component.config?, families::find(model_type)?);
        // A model with its own Python file is not the one that mlx_lm knows by this name.
        if config.get("model_file").is_some_and(|file| !file.is_null()) {
            return None;
        }
        let inner = match &known.family.inner {
            None => None,
            Some(inner) => {
                let said = text(config).get("model_type").and_then(Value::as_str);
                let family = inner.families.iter().find(|f| said == Some(**f)).or(inner.families.first())?;
                Some((inner, families::find(family)?))
            }
        };
        let config = match known.family.patches {
            [] => Cow::Borrowed(config),
            patches => Cow::Owned(patches.iter().fold(config.clone(), |config, patch| patch.apply(config))),
        };
        Some(Self { name: format!("model_type {model_type}"), known, config, inner })
    }

    /// config.json as the reference's reading leaves it.
    pub(super) fn config(&self) -> &Value {
        &self.config
    }

    /// The place of a tensor in the walk.
    pub(super) fn place(&self, name: &str) -> Option<Place> {
        if let Some((inner, known)) = self.inner
            && let Some(rest) = name.strip_prefix(inner.prefix)
        {
            return known.walk.place(rest);
        }
        self.known.walk.place(name)
    }

    /// Takes the family's steps, then the inner family's below its prefix.
    pub(super) fn steps(&self, drafts: Drafts) -> Result<Drafts, String> {
        let mut drafts = drafts.run(self.known.family.steps, &self.config)?;
        let Some((Inner { prefix, steps: true, .. }, known)) = self.inner else { return Ok(drafts) };
        let (inside, outside) = drafts.list.into_iter().partition::<Vec<Draft>, _>(|d| d.name.starts_with(prefix));
        let stripped = inside.into_iter().map(|d| Draft { name: d.name[prefix.len()..].to_owned(), ..d }).collect();
        drafts.list = stripped;
        let mut done = drafts.run(known.family.steps, text(&self.config))?;
        done.list.iter_mut().for_each(|d| d.name.insert_str(0, prefix));
        done.list.extend(outside);
        Ok(done)
    }

    /// Whether a parameter keeps its stored dtype.
    pub(super) fn stored(&self, name: &str) -> bool {
        any(self.known.family.stored, name)
    }

    /// Whether the model's predicate keeps a module dense.
    pub(super) fn dense(&self, module: &str) -> bool {
        any(self.known.family.dense, module)
    }

    /// Whether the model's predicate quantizes a module with 8 bits in groups of 64.
    pub(super) fn careful(&self, module: &str) -> bool {
        any(self.known.family.careful, module)
            && self.known.family.careful_if.is_none_or(|holds| holds(text(&self.config)))
    }
}

/// The configuration of the text model: `text_config`, or the whole of a flat config.json.
fn text(config: &Value) -> &Value {
    config.get("text_config").filter(|t| t.is_object()).unwrap_or(config)
}

impl Patch {
    fn apply(&self, mut config: Value) -> Value {
        let top = |key: &str, default: u64| config.get(key).cloned().unwrap_or_else(|| default.into());
        let from_top = match self {
            Self::TextFromTop(key, default) => Some((*key, top(key, *default))),
            _ => None,
        };
        let text = config.get_mut("text_config").filter(|t| t.is_object());
        let Some(text) = text.and_then(Value::as_object_mut) else { return config };
        match self {
            Self::TextMissing(key, value) => drop(text.entry(*key).or_insert_with(|| value.value())),
            Self::TextAlways(key, value) => drop(text.insert((*key).to_owned(), value.value())),
            Self::TextFromTop(..) => text.extend(from_top.map(|(key, value)| (key.to_owned(), value))),
            Self::RopeType => {
                let rope = text.get_mut("rope_parameters").and_then(Value::as_object_mut);
                if let Some(rope) = rope.filter(|r| !r.contains_key("type"))
                    && let Some(kind) = rope.shift_remove("rope_type")
                {
                    rope.insert("type".to_owned(), kind);
                }
            }
        }
        config
    }
}
