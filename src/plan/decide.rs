//! What becomes of each tensor, and why: rules first, then the dialect's choice.

use std::sync::Arc;

use serde_json::Value;

use crate::{
    plan::{Error, Options, rules::Rule, spec::Spec},
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
    /// Whether the view's spec alone decided how it is stored: no rule, no predicate.
    pub(crate) by_spec: bool,
}

impl Decision {
    /// Dense, for a reason.
    pub(crate) fn dense(why: String) -> Self {
        Self { stored: None, why, by_spec: false }
    }
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

/// Decides for one view: its specs, its rules, their dialects.
#[derive(Debug)]
pub(crate) struct Decider<'a> {
    /// The view's own, then one a component that is asked to be something else.
    scopes: Vec<Scope<'a>>,
    rules: Vec<Tally<'a>>,
}

/// What a part of the snapshot becomes where nothing else is said.
#[derive(Clone, Debug)]
pub(crate) struct Scope<'a> {
    /// Among those of the decider.
    number: usize,
    /// Directory of the component; `None` for all that have no scope of their own.
    dir: Option<&'a str>,
    pub(crate) spec: &'a Spec,
    pub(crate) default: Option<Arc<dyn Scheme>>,
    pub(crate) dialect: &'static dyn Dialect,
}

/// A rule and what it met.
#[derive(Debug)]
struct Tally<'a> {
    rule: &'a Rule,
    /// The scope whose own rule it is; the view's rules hold in all.
    scope: usize,
    /// What it asks for in each scope, or why it cannot be there.
    specs: Vec<Result<Spec, String>>,
    matched: usize,
    obeyed: usize,
    /// Why the first one that matched does not do as the rule says.
    refusal: Option<String>,
}

impl<'a> Scope<'a> {
    fn new(number: usize, dir: Option<&'a str>, spec: &'a Spec) -> Result<Self, Error> {
        Ok(Self { number, dir, spec, default: spec.bind()?, dialect: spec.format().dialect() })
    }
}

impl<'a> Tally<'a> {
    fn new(rule: &'a Rule, scope: usize, scopes: &[Scope<'a>]) -> Self {
        let within = |of: &Scope<'_>| match scope == of.number {
            true => Ok(rule.spec.clone()),
            false => rule.within(of.spec).map_err(|e| e.to_string()),
        };
        Self { rule, scope, specs: scopes.iter().map(within).collect(), matched: 0, obeyed: 0, refusal: None }
    }

    /// Whether the rule speaks of a source tensor of a component in a scope.
    fn matches(&self, scope: usize, dir: &str, name: &str) -> bool {
        match self.scope {
            0 => self.rule.matches(dir, name),
            own => own == scope && self.rule.matches("", name),
        }
    }
}

impl<'a> Decider<'a> {
    pub(crate) fn new(options: &'a Options) -> Result<Self, Error> {
        let mut scopes = vec![Scope::new(0, None, &options.spec)?];
        for (number, component) in (1..).zip(&options.components) {
            scopes.push(Scope::new(number, Some(&component.dir), &component.spec)?);
        }
        let own = (1..).zip(&options.components).flat_map(|(number, c)| c.rules.iter().map(move |rule| (rule, number)));
        let all = own.chain(options.rules.iter().map(|rule| (rule, 0)));
        let rules = all.map(|(rule, scope)| Tally::new(rule, scope, &scopes)).collect();
        Ok(Self { scopes, rules })
    }

    /// The view's own scope.
    pub(crate) fn of_view(&self) -> &Scope<'a> {
        &self.scopes[0]
    }

    /// The scope of a component.
    pub(crate) fn scope(&self, dir: &str) -> &Scope<'a> {
        self.scopes.iter().find(|scope| scope.dir == Some(dir)).unwrap_or(&self.scopes[0])
    }

    /// Whether some weight is to be quantized.
    pub(crate) fn quantizes(&self) -> bool {
        self.scopes.iter().any(|scope| scope.default.is_some())
    }

    /// Decides on one tensor of a component.
    pub(crate) fn decide(&mut self, component: &Component<'_>, tensor: &Arranged) -> Result<Decision, Error> {
        let scope = self.scope(component.dir).clone();
        match self.rule_of(scope.number, component, tensor)? {
            Some(number) => self.by_rule(number, &scope, component, tensor),
            None => by_dialect(&scope, component, tensor),
        }
    }

    /// The first rule that matches; all members of a stack must have the same one in effect.
    fn rule_of(&mut self, scope: usize, component: &Component<'_>, tensor: &Arranged) -> Result<Option<usize>, Error> {
        let mut members: Vec<usize> = tensor.from.iter().map(|s| s.tensor).collect();
        members.dedup();
        let mut first: Option<(usize, Option<usize>)> = None;
        for member in members {
            let name = &component.tensors[member].name;
            let mut found = None;
            for (number, tally) in self.rules.iter_mut().enumerate() {
                if tally.matches(scope, component.dir, name) {
                    tally.matched += 1;
                    found = found.or(Some(number));
                }
            }
            let effect = |n: Option<usize>| n.map(|n| &self.rules[n].specs[scope]);
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

    fn by_rule(
        &mut self,
        number: usize,
        scope: &Scope<'_>,
        component: &Component<'_>,
        tensor: &Arranged,
    ) -> Result<Decision, Error> {
        let Tally { rule, specs, .. } = &self.rules[number];
        let spec = specs[scope.number].clone().map_err(|why| Error::spec(format!("rule `{}`: {why}", rule.text)))?;
        let Some(scheme) = spec.bind()? else {
            let why = format!("kept by rule {}", rule.text);
            self.rules[number].obeyed += 1;
            return Ok(Decision::dense(why));
        };
        let never = match scope.dialect.choose(component, tensor, scheme.as_ref()) {
            Choice::Never(why) => Some(why),
            _ => None,
        };
        let rule = &rule.text;
        let said = never.map_or_else(|| store(&spec, scheme, tensor, scope.dialect.stem(component, tensor), None), Err);
        let tally = &mut self.rules[number];
        match said {
            Ok(stored) => {
                tally.obeyed += 1;
                Ok(Decision { stored: Some(stored), why: format!("rule {rule}"), by_spec: false })
            }
            Err(why) => {
                tally.refusal.get_or_insert_with(|| format!("{}: {why}", tensor.info.name));
                Ok(Decision::dense(format!("{why} (though rule {rule} matches)")))
            }
        }
    }

    /// Remembers which rules speak of a source tensor that the view does not show.
    pub(crate) fn dropped(&mut self, component: &Component<'_>, tensor: usize, why: &str) {
        let name = &component.tensors[tensor].name;
        let scope = self.scope(component.dir).number;
        for tally in self.rules.iter_mut().filter(|t| t.matches(scope, component.dir, name)) {
            tally.refusal.get_or_insert_with(|| format!("{name} is not shown: {why}"));
        }
    }

    /// Refuses components that the snapshot does not have.
    pub(crate) fn check_components(&self, dirs: &[&str]) -> Result<(), Error> {
        let Some(missing) = self.scopes.iter().filter_map(|s| s.dir).find(|dir| !dirs.contains(dir)) else {
            return Ok(());
        };
        let mut there: Vec<&str> = dirs.iter().filter(|dir| !dir.is_empty()).copied().collect();
        there.sort_unstable();
        there.dedup();
        let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
        Err(Error::spec(format!("no component {missing} has weights; those with weights: {there}")))
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

fn by_dialect(scope: &Scope<'_>, component: &Component<'_>, tensor: &Arranged) -> Result<Decision, Error> {
    let Some(default) = &scope.default else {
        return Ok(Decision::dense(format!("{} keeps the source's precision", scope.spec)));
    };
    let kept = |why: String| Ok(Decision::dense(why));
    let (spec, entry, why) = match scope.dialect.choose(component, tensor, default.as_ref()) {
        Choice::Keep(why) | Choice::Never(why) => return kept(why),
        Choice::Default => (scope.spec.clone(), None, String::new()),
        Choice::Other { scheme, group_size, entry } => {
            let why = if component.mixed.is_some() { "the recipe" } else { "the model's own predicate" };
            (scope.spec.with_scheme(scheme, group_size)?, Some(entry), why.to_owned())
        }
    };
    let scheme = if spec == *scope.spec { default.clone() } else { bound(&spec)? };
    let by_spec = entry.is_none();
    match store(&spec, scheme, tensor, scope.dialect.stem(component, tensor), entry) {
        Ok(stored) => Ok(Decision { stored: Some(stored), why, by_spec }),
        Err(why) => kept(why),
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
