//! Few rules for many tensors: names that differ in the number of their layer alone share a pattern.
//!
//! Every pattern is tried on all names of the view's source: one that speaks of others, too, gives way to a rule for
//! each tensor, and that to its whole name.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    bulk::Error,
    plan::{Plan, Rule, Spec},
};

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
///
/// # Errors
/// A tensor that no rule can tell from another.
pub(super) fn rules(plan: &Plan, wanted: Vec<(Tensor, Spec)>) -> Result<Vec<Found>, Error> {
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
            for name in &names {
                let alone = BTreeSet::from([name.clone()]);
                let spellings = [stem(name), name].map(|spelling| one(escaped(spelling)));
                let its_own = spellings.into_iter().find(|rule| speaks_of(rule, &alone, &all));
                found.push(its_own.ok_or_else(|| {
                    let why = "no rule can speak of it alone, as names of other tensors of the source are its own; rename one";
                    Error::Refused(format!("tensor {name}: {why}"))
                })?);
            }
        }
    }
    Ok(found)
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

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;
    use crate::{
        plan::{Parts, Row},
        tensor::Dtype,
    };

    fn plan(tensors: &[(&str, &str)]) -> Plan {
        let row = |(component, name): &(&str, &str)| Row {
            component: (*component).to_owned(),
            name: (*name).to_owned(),
            dtype: Dtype::BF16,
            shape: vec![],
            becomes: String::new(),
            why: String::new(),
            bytes_before: 0,
            bytes_after: 0,
            sources: vec![(*name).to_owned()],
            weight: None,
            by_spec: true,
        };
        Plan { rows: tensors.iter().map(row).collect(), ..Plan::default() }
    }

    /// What rules for some of the tensors say.
    fn texts(all: &[(&str, &str)], wanted: &[(&str, &str)]) -> Result<Vec<String>, String> {
        let spec = Spec::parse(Some("mlx-4bit-g64"), &Parts::default()).unwrap();
        let wanted = wanted.iter().map(|(dir, name)| (((*dir).to_owned(), (*name).to_owned()), spec.clone())).collect();
        let found = rules(&plan(all), wanted).map_err(|e| e.to_string())?;
        Ok(found.iter().map(|rule| rule.text(true).strip_suffix("=mlx-4bit-g64").unwrap().to_owned()).collect())
    }

    #[test]
    fn no_rule_speaks_of_more_than_is_wanted() {
        let layers = [("", "l.0.up.weight"), ("", "l.1.up.weight"), ("", "l.2.up.weight")];
        assert_eq!(texts(&layers, &layers[..2]).unwrap(), ["l.{0,1}.up"]);
        // The open second number would speak of an expert too many: each has a rule of its own.
        let experts = [("", "l.0.e.0.weight"), ("", "l.0.e.1.weight"), ("", "l.0.e.2.weight")];
        assert_eq!(texts(&experts, &experts[1..]).unwrap(), ["l.0.e.1", "l.0.e.2"]);
        // A pattern may leave `.weight` out, and would speak of the tensor that has none.
        assert_eq!(texts(&[("", "up.weight"), ("", "up")], &[("", "up.weight")]).unwrap(), ["up.weight"]);
        let both = [("", "transformer.up.weight"), ("transformer", "up.weight")];
        assert_eq!(texts(&both, &both[1..]).unwrap(), ["transformer/up"]);
        let why = texts(&both, &both[..1]).unwrap_err();
        assert!(why.contains("transformer.up.weight") && why.contains("alone"), "{why}");
    }
}
