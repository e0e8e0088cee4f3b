//! Rules: `PATTERN=SPEC`, the first match wins, `source` keeps a tensor.

use globset::{GlobBuilder, GlobMatcher};

use crate::plan::{Error, spec::Spec};

/// One rule of a view.
#[derive(Clone, Debug)]
pub struct Rule {
    /// As typed.
    pub text: String,
    /// What the tensors that match become.
    pub spec: Spec,
    pattern: GlobMatcher,
}

impl Rule {
    /// Parses `PATTERN=SPEC`, split at the last `=`. What the right-hand side does not say it
    /// inherits from the view's spec.
    ///
    /// # Errors
    /// A text without `=`, a bad glob, a spec of another format.
    pub fn parse(text: &str, view: &Spec) -> Result<Self, Error> {
        let bad = |why: String| Error::spec(format!("rule `{text}`: {why}"));
        let (pattern, right) = text.rsplit_once('=').ok_or_else(|| bad("no `=`; a rule is PATTERN=SPEC".into()))?;
        if pattern.is_empty() {
            return Err(bad("an empty pattern matches nothing; `*` matches every tensor".into()));
        }
        let glob = GlobBuilder::new(pattern).literal_separator(false).backslash_escape(true).build();
        let pattern = glob.map_err(|e| bad(format!("bad pattern: {}", e.kind())))?.compile_matcher();
        let spec = view.inherit(right).map_err(|e| bad(e.to_string()))?;
        Ok(Self { text: text.to_owned(), spec, pattern })
    }

    /// What it asks for in a component of another spec.
    pub(crate) fn within(&self, component: &Spec) -> Result<Spec, Error> {
        component.inherit(self.text.rsplit_once('=').map_or("", |(_, right)| right))
    }

    /// Whether the rule speaks of a source tensor. The pattern may name the component before the
    /// tensor, as `transformer/NAME` or `transformer.NAME`, and may leave a last `.weight` out.
    #[must_use]
    pub fn matches(&self, dir: &str, name: &str) -> bool {
        let stem = name.strip_suffix(".weight");
        let named = |n: &str| {
            if dir.is_empty() {
                return self.pattern.is_match(n);
            }
            self.pattern.is_match(format!("{dir}/{n}"))
                || self.pattern.is_match(format!("{}.{n}", dir.replace('/', ".")))
        };
        named(name) || stem.is_some_and(named)
    }
}
