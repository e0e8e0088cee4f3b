//! What becomes of each tensor, and why: rules first, then the dialect's choice.

use std::sync::Arc;

use serde_json::Value;

use crate::{
    plan::{Error, rules::Rule, spec::Spec},
    quant::{
        Part, Scheme, Weight,
        dialect::{Arranged, Choice, Component, Dialect},
    },
    tensor::Float,
};

/// What becomes of a tensor.
#[derive(Debug)]
pub(crate) struct Decision {
    /// How it is stored, `None` where it stays dense.
    pub(crate) stored: Option<Stored>,
    /// Why, for the report.
    pub(crate) why: String,
}

/// How a tensor is quantized.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) spec: Spec,
    pub(crate) scheme: Arc<dyn Scheme>,
    pub(crate) weight: Weight,
    pub(crate) parts: Vec<Part>,
    /// What the model's own predicate wants recorded.
    pub(crate) entry: Option<Value>,
}

/// Decides for one view: its spec, its rules, its dialect.
#[derive(Debug)]
pub(crate) struct Decider<'a> {
    spec: &'a Spec,
    default: Option<Arc<dyn Scheme>>,
    dialect: &'static dyn Dialect,
    rules: Vec<Tally<'a>>,
}

/// A rule and what it met.
#[derive(Debug)]
struct Tally<'a> {
    rule: &'a Rule,
    matched: usize,
    obeyed: usize,
    /// Why the first one that matched does not do as the rule says.
    refusal: Option<String>,
}

impl<'a> Decider<'a> {
    pub(crate) fn new(spec: &'a Spec, rules: &'a [Rule]) -> Result<Self, Error> {
        let rules = rules.iter().map(|rule| Tally { rule, matched: 0, obeyed: 0, refusal: None }).collect();
        Ok(Self { spec, default: spec.bind()?, dialect: spec.format().dialect(), rules })
    }

    pub(crate) fn default_scheme(&self) -> Option<&dyn Scheme> {
        self.default.as_deref()
    }

    /// Decides on one tensor of a component.
    pub(crate) fn decide(&mut self, component: &Component<'_>, tensor: &Arranged) -> Result<Decision, Error> {
        match self.rule_of(component, tensor)? {
            Some(number) => self.by_rule(number, component, tensor),
            None => self.by_dialect(component, tensor),
        }
    }

    /// The first rule that matches; all members of a stack must have the same one in effect.
    fn rule_of(&mut self, component: &Component<'_>, tensor: &Arranged) -> Result<Option<usize>, Error> {
        let mut members: Vec<usize> = tensor.from.iter().map(|s| s.tensor).collect();
        members.dedup();
        let mut first: Option<(usize, Option<usize>)> = None;
        for member in members {
            let name = &component.tensors[member].name;
            let mut found = None;
            for (number, tally) in self.rules.iter_mut().enumerate() {
                if tally.rule.matches(component.dir, name) {
                    tally.matched += 1;
                    found = found.or(Some(number));
                }
            }
            let effect = |n: Option<usize>| n.map(|n| &self.rules[n].rule.spec);
            match first {
                Some((other, rule)) if effect(rule) != effect(found) => {
                    let (a, b) = (&component.tensors[other].name, name);
                    let shown = &tensor.info.name;
                    return Err(Error::spec(format!(
                        "{a} and {b} are one tensor of the view ({shown}), but rules treat them differently"
                    )));
                }
                Some(_) => {}
                None => first = Some((member, found)),
            }
        }
        Ok(first.and_then(|(_, rule)| rule))
    }

    fn by_rule(&mut self, number: usize, component: &Component<'_>, tensor: &Arranged) -> Result<Decision, Error> {
        let rule = self.rules[number].rule;
        let Some(scheme) = rule.spec.bind()? else {
            self.rules[number].obeyed += 1;
            return Ok(Decision { stored: None, why: format!("kept by rule {}", rule.text) });
        };
        let never = match self.dialect.choose(component, tensor, scheme.as_ref()) {
            Choice::Never(why) => Some(why),
            _ => None,
        };
        match never.map_or_else(|| store(&rule.spec, scheme, tensor, self.dialect.stem(component, tensor), None), Err) {
            Ok(stored) => {
                self.rules[number].obeyed += 1;
                Ok(Decision { stored: Some(stored), why: format!("rule {}", rule.text) })
            }
            Err(why) => {
                let tally = &mut self.rules[number];
                tally.refusal.get_or_insert_with(|| format!("{}: {why}", tensor.info.name));
                Ok(Decision { stored: None, why: format!("{why} (though rule {} matches)", rule.text) })
            }
        }
    }

    fn by_dialect(&self, component: &Component<'_>, tensor: &Arranged) -> Result<Decision, Error> {
        let Some(default) = &self.default else {
            return Ok(Decision { stored: None, why: format!("{} keeps the source's precision", self.spec) });
        };
        let kept = |why: String| Ok(Decision { stored: None, why });
        let (spec, entry, why) = match self.dialect.choose(component, tensor, default.as_ref()) {
            Choice::Keep(why) | Choice::Never(why) => return kept(why),
            Choice::Default => (self.spec.clone(), None, String::new()),
            Choice::Other { scheme, group_size, entry } => {
                (self.spec.with_scheme(scheme, group_size)?, Some(entry), "the model's own predicate".to_owned())
            }
        };
        let scheme = if spec == *self.spec { default.clone() } else { bound(&spec)? };
        match store(&spec, scheme, tensor, self.dialect.stem(component, tensor), entry) {
            Ok(stored) => Ok(Decision { stored: Some(stored), why }),
            Err(why) => kept(why),
        }
    }

    /// Remembers which rules speak of a source tensor that the view does not show.
    pub(crate) fn dropped(&mut self, component: &Component<'_>, tensor: usize, why: &str) {
        let name = &component.tensors[tensor].name;
        for tally in self.rules.iter_mut().filter(|t| t.rule.matches(component.dir, name)) {
            tally.refusal.get_or_insert_with(|| format!("{name} is not shown: {why}"));
        }
    }

    /// Refuses rules that changed nothing: a typing error in a pattern must not pass for a setting.
    pub(crate) fn check_rules(&self) -> Result<(), Error> {
        for tally in &self.rules {
            let text = &tally.rule.text;
            if tally.matched == 0 {
                let why = tally.refusal.as_deref().unwrap_or("`quantfs inspect` lists their names");
                return Err(Error::spec(format!("rule `{text}` matches no tensor of the view; {why}")));
            }
            if let (0, Some(why)) = (tally.obeyed, &tally.refusal) {
                return Err(Error::spec(format!(
                    "rule `{text}`: none of the tensors that it matches can be stored so ({why})"
                )));
            }
            if tally.obeyed == 0 {
                return Err(Error::spec(format!(
                    "rule `{text}` never takes effect: rules before it match all its tensors, and the first match wins; \
                     put it before them"
                )));
            }
        }
        Ok(())
    }
}

fn bound(spec: &Spec) -> Result<Arc<dyn Scheme>, Error> {
    spec.bind()?.ok_or_else(|| Error::spec(format!("{spec} quantizes nothing")))
}

/// Whether a scheme can hold a tensor, from its header alone.
fn store(
    spec: &Spec,
    scheme: Arc<dyn Scheme>,
    tensor: &Arranged,
    stem: Option<&str>,
    entry: Option<Value>,
) -> Result<Stored, String> {
    let info = &tensor.info;
    let stem = stem.ok_or("not a module's weight")?;
    let float = Float::of(info.dtype).ok_or_else(|| format!("dtype {}", info.dtype))?;
    if info.shape.len() < 2 {
        return Err(format!("{}-D", info.shape.len()));
    }
    if info.elements() == Some(0) {
        return Err("no elements".to_owned());
    }
    let weight = Weight { stem: stem.to_owned(), float, shape: info.shape.clone() };
    let parts = scheme.parts(&weight).map_err(|e| e.0)?;
    Ok(Stored { spec: spec.clone(), scheme, weight, parts, entry })
}
