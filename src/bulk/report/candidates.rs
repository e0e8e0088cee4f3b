//! The specs that might be chosen: what each makes of the source, as a whole, layer by layer and kind by kind.
//!
//! A candidate quantizes what the view's rules and recipe do, all of it as one spec says: what these keep is kept, and where
//! they choose a scheme it is the candidate's.
//!
//! Finite elements that a candidate shows as NaN or infinity are in no relative error. Where candidates, layers and kinds are
//! compared they count as lost altogether ([`Sums::loss`]), as where schemes are chosen for a target size.

use std::{collections::BTreeMap, num::NonZero, sync::Arc};

use serde_json::{Value, json};

use crate::{
    bulk::{
        Error,
        errors::{self, Sums, total},
    },
    plan::{self, ComponentOptions, Options, Plan, Row, Rule, Spec},
    view::View,
};

use super::Step;

/// Where a tensor stands: layers in their order.
type Place = (String, String, u64);

/// A candidate that the source can be shown as.
struct Candidate {
    spec: String,
    plan: Value,
    sums: Sums,
    size: u64,
    layers: BTreeMap<Place, Sums>,
    kinds: BTreeMap<String, Sums>,
}

/// Adds the candidates and the names of layers and kinds of tensors: the view first, then the others.
pub(super) fn add(
    json: &mut Value,
    (view, found): (&Arc<View>, &[Option<Sums>]),
    options: &Options,
    others: &[&Spec],
    sample: Option<NonZero<u64>>,
    step: &Step<'_>,
) -> Result<(), Error> {
    let mut measured = vec![Ok(Candidate::new(view.plan(), found))];
    for spec in others {
        step.progress.note(&spec.to_string());
        measured.push(match instead(view, options, spec) {
            Ok(other) => Ok(Candidate::new(other.plan(), &looked_at(&other, sample, step)?)),
            Err(why) => {
                step.done(0);
                Err(json!({ "spec": spec.to_string(), "refused": why.to_string() }))
            }
        });
    }
    let known = || measured.iter().filter_map(|one| one.as_ref().ok());
    let layers: BTreeMap<&Place, ()> = known().flat_map(|c| c.layers.keys()).map(|place| (place, ())).collect();
    let kinds: BTreeMap<&String, ()> = known().flat_map(|c| c.kinds.keys()).map(|kind| (kind, ())).collect();
    let front = front(&known().map(|c| (c.size, c.sums.loss())).collect::<Vec<_>>());
    let mut front = front.into_iter();
    let tell = |one: &Result<Candidate, Value>| match one {
        Err(refused) => refused.clone(),
        Ok(one) => json!({
            "spec": one.spec,
            "totals": one.plan,
            "errors": one.sums.figures(),
            "loss": one.sums.loss().sqrt(),
            "front": front.next(),
            "layers": layers.keys().map(|place| relative(one.layers.get(*place))).collect::<Vec<_>>(),
            "kinds": kinds.keys().map(|kind| relative(one.kinds.get(*kind))).collect::<Vec<_>>(),
        }),
    };
    json["candidates"] = measured.iter().map(tell).collect();
    json["candidates"][0]["mixed"] = is_mixed(options).into();
    json["layers"] = layers.keys().map(|place| name(place)).collect();
    json["kinds"] = kinds.keys().map(|kind| kind.as_str()).collect();
    Ok(())
}

/// Whether the view is more than its spec: exceptions that choose another scheme.
pub(super) fn is_mixed(options: &Options) -> bool {
    options.predicate.is_some() || !options.components.is_empty() || options.rules.iter().any(|rule| !keeps(&rule.spec))
}

/// Whether a spec leaves tensors as they are.
fn keeps(spec: &Spec) -> bool {
    matches!(spec.bind(), Ok(None))
}

/// The view with one spec for all that it quantizes.
fn instead(view: &Arc<View>, options: &Options, spec: &Spec) -> Result<Arc<View>, plan::Error> {
    let components = options.components.iter().map(|component| {
        let own = if keeps(&component.spec) { &component.spec } else { spec };
        let (dir, rules) = (component.dir.clone(), alike(&component.rules, spec)?);
        Ok(ComponentOptions { dir, spec: own.clone(), rules })
    });
    let components = components.collect::<Result<_, plan::Error>>()?;
    let rules = alike(&options.rules, spec)?;
    // A candidate that only rounds has no use for it.
    let importance = options.importance.clone().filter(|_| spec.weighs_errors());
    let options = Options { spec: spec.clone(), rules, components, predicate: None, importance, ..options.clone() };
    let plan = plan::build(view.source().as_ref(), &options)?;
    Ok(View::new(Arc::new(plan), Arc::clone(view.source()), Arc::clone(view.engine())))
}

/// The rules with this spec wherever they choose one; what they keep is kept.
fn alike(rules: &[Rule], spec: &Spec) -> Result<Vec<Rule>, plan::Error> {
    let alike = |rule: &Rule| match rule.text.rsplit_once('=') {
        Some((pattern, _)) if !keeps(&rule.spec) => Rule::parse(&format!("{pattern}={spec}"), spec),
        _ => Rule::parse(&rule.text, spec),
    };
    rules.iter().map(alike).collect()
}

fn looked_at(view: &View, sample: Option<NonZero<u64>>, step: &Step<'_>) -> Result<Vec<Option<Sums>>, Error> {
    let found = errors::measured(view, sample, step.progress)?;
    step.done(errors::work(view.plan(), sample));
    Ok(found)
}

impl Candidate {
    fn new(plan: &Plan, found: &[Option<Sums>]) -> Self {
        let (mut layers, mut kinds) = (BTreeMap::new(), BTreeMap::new());
        for (row, sums) in plan.rows.iter().zip(found).filter_map(|(row, sums)| Some((row, (*sums)?))) {
            let (layer, kind) = stands(row);
            layers.entry(layer).or_insert_with(Sums::default).add(&sums);
            kinds.entry(kind).or_insert_with(Sums::default).add(&sums);
        }
        let totals = plan.totals();
        Self {
            spec: plan.spec.clone(),
            plan: json!(totals),
            sums: total(found.iter().copied().flatten()),
            size: totals.bytes_after,
            layers,
            kinds,
        }
    }
}

/// The root of what is lost, where there is a signal: the relative error, what is shown as NaN or infinity included.
fn relative(sums: Option<&Sums>) -> Option<f64> {
    sums.and_then(|sums| sums.figures().relative.map(|_| sums.loss().sqrt()))
}

/// The layer of a tensor: its name up to the first number; and its kind: what comes after that.
fn stands(row: &Row) -> (Place, String) {
    let stem = row.name.strip_suffix(".weight").unwrap_or(&row.name);
    let parts: Vec<&str> = stem.split('.').collect();
    let number = |part: &&str| part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse::<u64>().ok()).flatten();
    let Some((at, layer)) = parts.iter().enumerate().find_map(|(at, part)| Some((at, number(part)?))) else {
        return ((row.component.clone(), stem.to_owned(), u64::MAX), stem.to_owned());
    };
    let kind: Vec<&str> = parts[at + 1..].iter().map(|part| number(part).map_or(*part, |_| "#")).collect();
    let kind = if kind.is_empty() { parts[..at].join(".") } else { kind.join(".") };
    ((row.component.clone(), parts[..at].join("."), layer), kind)
}

fn name((component, prefix, number): &Place) -> String {
    let number = if *number == u64::MAX { String::new() } else { format!(".{number}") };
    let component = if component.is_empty() { String::new() } else { format!("{component}/") };
    format!("{component}{prefix}{number}")
}

/// Which of them no other beats: none is smaller and as good, or better and as small.
fn front(all: &[(u64, f64)]) -> Vec<bool> {
    let beats = |(a, lost): &(u64, f64), (b, than): &(u64, f64)| a <= b && lost <= than && (a < b || lost < than);
    all.iter().map(|one| !all.iter().any(|other| beats(other, one))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_front_is_what_nothing_beats() {
        let all = [(10, 0.5), (20, 0.2), (20, 0.3), (30, 0.2), (40, 0.1), (10, 0.5), (5, f64::INFINITY)];
        assert_eq!(front(&all), [true, true, false, false, true, true, true]);
    }

    #[test]
    fn tensors_stand_in_layers() {
        let row = |name: &str| Row {
            component: String::new(),
            name: name.to_owned(),
            dtype: crate::tensor::Dtype::BF16,
            shape: vec![],
            becomes: String::new(),
            why: String::new(),
            bytes_before: 0,
            bytes_after: 0,
            sources: vec![],
            weight: None,
            by_spec: true,
        };
        let of = |text: &str| {
            let (place, kind) = stands(&row(text));
            (name(&place), kind)
        };
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(of("model.layers.12.mlp.experts.3.up.weight"), pair("model.layers.12", "mlp.experts.#.up"));
        assert_eq!(of("lm_head.weight"), pair("lm_head", "lm_head"));
        assert_eq!(of("blocks.3.weight"), pair("blocks.3", "blocks"));
        assert_eq!(of("99999999999999999999999.x"), pair("99999999999999999999999.x", "99999999999999999999999.x"));
    }
}
