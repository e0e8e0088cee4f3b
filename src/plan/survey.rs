//! Which weights are surveyed, and which of them together.
//!
//! The key of a weight then digests all whose elements its bytes are made of.

use std::collections::BTreeMap;

use crate::{
    plan::{Plan, Surveyed},
    quant::Dialect,
};

/// Adds the surveys of the weights from `first` on, which are those of one set. `modules` are their names before any
/// rename.
pub(crate) fn plan(plan: &mut Plan, first: usize, modules: &BTreeMap<usize, String>, dialect: &dyn Dialect) {
    let mut groups: BTreeMap<(String, String), Vec<usize>> = BTreeMap::new();
    for (number, planned) in plan.weights.iter().enumerate().skip(first) {
        if let Some(survey) = planned.scheme.survey(&planned.weight) {
            let stem = modules.get(&number).unwrap_or(&planned.weight.stem);
            let stem = stem.strip_suffix(".weight").unwrap_or(stem);
            let shared = if survey.is_joint() { dialect.siblings(stem) } else { None };
            // A name of its own: no group has two dots in a row.
            let group = shared.unwrap_or_else(|| format!("{stem}.."));
            groups.entry((group, planned.scheme.id())).or_default().push(number);
        }
    }
    for members in groups.into_values() {
        add(plan, &members);
    }
}

fn add(plan: &mut Plan, members: &[usize]) {
    let of = &plan.weights[members[0]];
    let Some(survey) = of.scheme.survey(&of.weight) else { return };
    let number = u32::try_from(plan.surveys.len()).ok();
    let keys: Vec<[u8; 16]> = members.iter().map(|m| plan.weights[*m].key).collect();
    for member in members {
        let planned = &mut plan.weights[*member];
        planned.survey = number;
        if members.len() > 1 {
            let mut hash = blake3::Hasher::new();
            hash.update(&planned.key);
            hash.update(&keys.concat());
            planned.key.copy_from_slice(&hash.finalize().as_bytes()[..16]);
        }
    }
    let members = members.iter().filter_map(|m| u32::try_from(*m).ok()).collect();
    plan.surveys.push(Surveyed { members, survey });
}
