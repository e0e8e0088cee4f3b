//! Which weights get one scheme: what one rule speaks of, the experts of a layer, and what loaders run as one matrix.

use std::collections::{BTreeMap, HashMap};

use crate::plan::{Parts, Plan, Row, Spec};

/// Rows of a plan that are free to be chosen for, in groups that must agree; in the order of the plan.
pub(super) fn of(plan: &Plan) -> Vec<Vec<usize>> {
    let mut leaders: Vec<usize> = (0..plan.rows.len()).collect();
    let mut seen: HashMap<(&str, String), usize> = HashMap::new();
    for (number, row) in plan.rows.iter().enumerate().filter(|(_, row)| row.by_spec) {
        for key in keys(row) {
            let first = *seen.entry((row.component.as_str(), key)).or_insert(number);
            let (a, b) = (leader(&leaders, first), leader(&leaders, number));
            leaders[a.max(b)] = a.min(b);
        }
    }
    let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for number in (0..plan.rows.len()).filter(|number| plan.rows[*number].by_spec) {
        groups.entry(leader(&leaders, number)).or_default().push(number);
    }
    // A weight that is fixed holds those fast that must agree with it.
    let fixed: Vec<(&str, String)> =
        plan.rows.iter().filter(|row| row.weight.is_some() && !row.by_spec).flat_map(fixed_keys).collect();
    let free = |rows: &Vec<usize>| {
        let mut all = rows.iter().flat_map(|row| keys(&plan.rows[*row]).into_iter().map(|key| (&plan.rows[*row], key)));
        !all.any(|(row, key)| fixed.iter().any(|(dir, other)| *dir == row.component && *other == key))
    };
    groups.into_values().filter(free).collect()
}

fn fixed_keys(row: &Row) -> Vec<(&str, String)> {
    keys(row).into_iter().map(|key| (row.component.as_str(), key)).collect()
}

fn leader(leaders: &[usize], mut at: usize) -> usize {
    while leaders[at] != at {
        at = leaders[at];
    }
    at
}

/// What a row has in common with those that it agrees with.
fn keys(row: &Row) -> Vec<String> {
    let dialect = Spec::parse(Some(&row.becomes), &Parts::default()).map(|spec| spec.format().dialect());
    let together = |name: &String| {
        let stem = alike(name.strip_suffix(".weight").unwrap_or(name));
        dialect.as_ref().ok().and_then(|dialect| dialect.siblings(&stem)).unwrap_or(stem)
    };
    // A source tensor's own name ends in nothing that a module's does.
    row.sources.iter().flat_map(|name| [format!("{name}..tensor"), together(name)]).collect()
}

/// A name without the numbers of experts.
fn alike(stem: &str) -> String {
    let mut of_experts = false;
    let word = |word: &str| {
        let number = of_experts && !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit());
        of_experts = word == "experts";
        if number { "*".to_owned() } else { word.to_owned() }
    };
    stem.split('.').map(word).collect::<Vec<_>>().join(".")
}
