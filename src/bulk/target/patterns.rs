//! Few rules for many tensors: names that differ in the number of their layer alone share a pattern.
//!
//! Every pattern is tried on all names of the view's source: one that speaks of others, too, gives way to a rule for
//! each tensor.

use std::collections::{BTreeMap, BTreeSet};

use crate::plan::{Plan, Rule, Spec};

/// A tensor of the source: its component and its name.
pub(super) type Tensor = (String, String);

/// A rule to be.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) component: String,
    pattern: String,
    spec: Spec,
}

impl Found {
    /// `PATTERN=SPEC`, with the component before the pattern or without.
    pub(super) fn text(&self, with_component: bool) -> String {
        let dir = Some(&self.component).filter(|dir| with_component && !dir.is_empty());
        let dir = dir.map_or_else(String::new, |dir| format!("{}/", escaped(dir)));
        format!("{dir}{}={}", self.pattern, self.spec)
    }
}

/// Component, shape of the name and spec.
type Alike = (String, Shape, String);

/// The words of a name, `None` in the place of numbers.
type Shape = Vec<Option<String>>;

/// The rules that give tensors their specs, and no others.
pub(super) fn rules(plan: &Plan, wanted: Vec<(Tensor, Spec)>) -> Vec<Found> {
    let all: BTreeSet<Tensor> =
        plan.rows.iter().flat_map(|row| row.sources.iter().map(|name| (row.component.clone(), name.clone()))).collect();
    let mut shapes: BTreeMap<Alike, (Spec, BTreeSet<String>)> = BTreeMap::new();
    for ((component, name), spec) in wanted {
        let key = (component, shape(&name), spec.to_string());
        shapes.entry(key).or_insert_with(|| (spec, BTreeSet::new())).1.insert(name);
    }
    let mut found = vec![];
    for ((component, shape, _), (spec, names)) in shapes {
        let one = |pattern: String| Found { component: component.clone(), pattern, spec: spec.clone() };
        let together = one(pattern(&shape, &names));
        if speaks_of(&together, &names, &all) {
            found.push(together);
        } else {
            found.extend(names.iter().map(|name| one(escaped(stem(name)))));
        }
    }
    found
}

/// Whether a rule matches just these names of its component, among all.
fn speaks_of(found: &Found, names: &BTreeSet<String>, all: &BTreeSet<Tensor>) -> bool {
    let Ok(rule) = Rule::parse(&found.text(true), &found.spec) else { return false };
    all.iter().all(|(dir, name)| rule.matches(dir, name) == (*dir == found.component && names.contains(name)))
}

fn stem(name: &str) -> &str {
    name.strip_suffix(".weight").unwrap_or(name)
}

fn is_number(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit())
}

fn shape(name: &str) -> Shape {
    stem(name).split('.').map(|word| Some(word.to_owned()).filter(|word| !is_number(word))).collect()
}

/// A pattern for names of one shape: the first numbers listed, any later ones (of experts, which agree) open.
fn pattern(shape: &[Option<String>], names: &BTreeSet<String>) -> String {
    let mut first: Vec<&str> = names.iter().filter_map(|name| name.split('.').find(|word| is_number(word))).collect();
    first.sort_by_key(|number| (number.len(), *number));
    first.dedup();
    let listed = match first.as_slice() {
        [one] => (*one).to_owned(),
        more => format!("{{{}}}", more.join(",")),
    };
    let mut numbers = 0;
    let word = |word: &Option<String>| match word {
        Some(word) => escaped(word),
        None => {
            numbers += 1;
            if numbers == 1 { listed.clone() } else { "*".to_owned() }
        }
    };
    shape.iter().map(word).collect::<Vec<_>>().join(".")
}

/// Text that a glob takes as it is.
fn escaped(text: &str) -> String {
    let special = |c: char| "*?[]{}\\!,".contains(c);
    text.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain([c])).collect()
}
