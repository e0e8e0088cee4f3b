//! Which of its candidates each item gets, so that costs stay within a budget and the sum of errors is small.
//!
//! Knows costs and errors alone. Of each item the candidates on the lower convex hull of error over cost are its steps; all
//! steps together, those that save most error a unit of cost first, are the Lagrangian's solution for the budget that they
//! use up: no other choice of that cost has less error. What is left of the budget is then given out greedily, to
//! any candidates. The result is a function of the items in their order.

use std::cmp::Ordering;

/// One of the things that an item may become.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// What it takes of the budget.
    pub cost: u64,
    /// What it spoils; finite.
    pub error: f64,
}

/// The costs that items may have together: of their cheapest candidates, and of the cheapest among those of least error.
///
/// # Panics
/// If an item has no candidate.
#[must_use]
pub fn range(items: &[Vec<Candidate>]) -> (u64, u64) {
    let ends = items.iter().map(|item| {
        let hull = hull(item);
        (item[hull[0]].cost, item[hull[hull.len() - 1]].cost)
    });
    ends.fold((0, 0), |(least, most), (low, high)| (least + low, most + high))
}

/// A candidate for each item, together no more costly than the budget. `None` where even the cheapest are.
///
/// # Panics
/// If an item has no candidate.
#[must_use]
pub fn allocate(items: &[Vec<Candidate>], budget: u64) -> Option<Vec<usize>> {
    let hulls: Vec<Vec<usize>> = items.iter().map(|item| hull(item)).collect();
    let mut chosen: Vec<usize> = hulls.iter().map(|hull| hull[0]).collect();
    let cost: u64 = items.iter().zip(&chosen).map(|(item, at)| item[*at].cost).sum();
    let mut left = budget.checked_sub(cost)?;
    for step in steps(items, &hulls) {
        let hull = &hulls[step.item];
        // The steps of an item come in their order, so that one that did not fit ends them.
        if chosen[step.item] == hull[step.from] && step.cost <= left {
            chosen[step.item] = hull[step.from + 1];
            left -= step.cost;
        }
    }
    fill(items, &mut chosen, left);
    Some(chosen)
}

/// From one candidate of an item's hull to the next one.
struct Step {
    item: usize,
    from: usize,
    cost: u64,
    /// Error that a unit of cost saves.
    worth: f64,
}

fn steps(items: &[Vec<Candidate>], hulls: &[Vec<usize>]) -> Vec<Step> {
    let of_item = |(item, hull): (usize, &Vec<usize>)| {
        let pairs = hull.windows(2).enumerate();
        let step = |(from, pair): (usize, &[usize])| {
            let (a, b) = (items[item][pair[0]], items[item][pair[1]]);
            Step { item, from, cost: b.cost - a.cost, worth: worth(a, b) }
        };
        pairs.map(step).collect::<Vec<_>>()
    };
    let mut steps: Vec<Step> = hulls.iter().enumerate().flat_map(of_item).collect();
    let order = |a: &Step, b: &Step| b.worth.total_cmp(&a.worth).then((a.item, a.from).cmp(&(b.item, b.from)));
    steps.sort_by(order);
    steps
}

/// Error saved for each unit of cost by taking a dearer candidate.
fn worth(from: Candidate, to: Candidate) -> f64 {
    (from.error - to.error) / (to.cost - from.cost) as f64
}

/// Spends what is left on whatever saves most error for its cost.
fn fill(items: &[Vec<Candidate>], chosen: &mut [usize], mut left: u64) {
    loop {
        let mut best: Option<(f64, usize, usize)> = None;
        for (item, candidates) in items.iter().enumerate() {
            let now = candidates[chosen[item]];
            for (at, other) in candidates.iter().enumerate() {
                let fits = other.cost > now.cost && other.cost - now.cost <= left && other.error < now.error;
                if fits && best.is_none_or(|(most, ..)| worth(now, *other) > most) {
                    best = Some((worth(now, *other), item, at));
                }
            }
        }
        let Some((_, item, at)) = best else { return };
        left -= items[item][at].cost - items[item][chosen[item]].cost;
        chosen[item] = at;
    }
}

/// The candidates on the lower convex hull, from the cheapest to the cheapest one of least error.
fn hull(item: &[Candidate]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..item.len()).collect();
    let by_cost = |a: &usize, b: &usize| {
        let (a, b) = (item[*a], item[*b]);
        a.cost.cmp(&b.cost).then(a.error.total_cmp(&b.error))
    };
    order.sort_by(by_cost);
    let mut hull: Vec<usize> = vec![];
    for at in order {
        if hull.last().is_some_and(|last| item[at].error >= item[*last].error) {
            continue;
        }
        while let [.., a, b] = hull.as_slice() {
            if worth(item[*a], item[*b]).partial_cmp(&worth(item[*b], item[at])) == Some(Ordering::Greater) {
                break;
            }
            hull.pop();
        }
        hull.push(at);
    }
    hull
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn total(items: &[Vec<Candidate>], chosen: &[usize]) -> (u64, f64) {
        let picked = items.iter().zip(chosen).map(|(item, at)| item[*at]);
        picked.fold((0, 0.0), |(cost, error), c| (cost + c.cost, error + c.error))
    }

    /// The least error of any choice within a budget.
    fn brute(items: &[Vec<Candidate>], budget: u64) -> Option<f64> {
        let Some((first, rest)) = items.split_first() else { return Some(0.0) };
        let each = first.iter().filter(|c| c.cost <= budget);
        each.filter_map(|c| Some(c.error + brute(rest, budget - c.cost)?)).min_by(f64::total_cmp)
    }

    fn items() -> impl Strategy<Value = Vec<Vec<Candidate>>> {
        let candidate = (1u64..40, 0u32..1000).prop_map(|(cost, error)| Candidate { cost, error: f64::from(error) });
        vec(vec(candidate, 1..5), 1..6)
    }

    proptest! {
        #[test]
        fn a_budget_is_kept_and_nearly_well_spent(items in items(), budget in 0u64..200) {
            let (least, most) = range(&items);
            let got = allocate(&items, budget);
            prop_assert_eq!(got.is_none(), budget < least);
            let Some(chosen) = got else { return Ok(()) };
            let (cost, error) = total(&items, &chosen);
            let optimum = brute(&items, budget).unwrap();
            prop_assert!(cost <= budget && error >= optimum);
            // No step of a hull that did not fit saves more than the largest one does.
            let hulls: Vec<Vec<usize>> = items.iter().map(|item| hull(item)).collect();
            let saved = |s: Step| s.worth * s.cost as f64;
            let largest = steps(&items, &hulls).into_iter().map(saved).fold(0.0, f64::max);
            prop_assert!(error <= optimum + largest + 1e-9, "{} against {}", error, optimum);
            if budget >= most {
                prop_assert!((error - optimum).abs() < 1e-9);
            }
        }

        #[test]
        fn nothing_of_the_cost_of_some_steps_has_less_error(items in items(), taken in 0usize..12) {
            let hulls: Vec<Vec<usize>> = items.iter().map(|item| hull(item)).collect();
            let steps = steps(&items, &hulls);
            let spent: u64 = steps.iter().take(taken).map(|s| s.cost).sum();
            let budget = range(&items).0 + spent;
            let (cost, error) = total(&items, &allocate(&items, budget).unwrap());
            prop_assert_eq!(cost, budget);
            prop_assert!((error - brute(&items, budget).unwrap()).abs() < 1e-9);
        }
    }

    #[test]
    fn what_is_left_is_given_to_whoever_it_fits() {
        let c = |cost, error| Candidate { cost, error };
        // The step of the first item does not fit; a candidate off its hull may.
        let items = [vec![c(10, 9.0), c(14, 8.0), c(20, 1.0)], vec![c(5, 2.0), c(6, 1.9)]];
        assert_eq!(allocate(&items, 19), Some(vec![0, 1]));
        assert_eq!(allocate(&items, 25), Some(vec![2, 0]));
        assert_eq!(allocate(&items, 20), Some(vec![1, 1]));
        assert_eq!(allocate(&items, 14), None);
        assert_eq!(range(&items), (15, 26));
    }
}
