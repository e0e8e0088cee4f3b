//! A view of a given size: which scheme each of its weights gets, so that the model loses little.
//!
//! Candidates are the schemes of the view's format, in all their groups, that its loaders can be told of side by side. What a
//! weight costs is the bytes of its parts, from headers; what it spoils is its error relative to the weight
//! ([`errors`], of a sample of it; columns weighed by their importance where it is known, which is resolved as the plan of a view
//! resolves it) times its share in what the model says. Weights that must agree (`groups`) count as one. Weights that a rule names, that the model's predicate speaks of or
//! that stay dense are left as they are, and count in the size.
//!
//! The outcome is rules, so that the plan of the view is computed from headers alone, as any other. It is a function of the
//! source, the options and the target.

mod groups;
mod patterns;
mod share;

use std::{num::NonZero, sync::Arc};

use rayon::prelude::*;

use crate::{
    bulk::{
        Error, Progress,
        allocate::{self, Candidate},
        errors::{self, Asked},
    },
    plan::{self, Options, Plan, Row, Rule, Spec},
    quant::{self, Scheme},
    source::Source,
    view::{Engine, View},
};

/// How large a view shall be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// Bits that an element takes on average over all tensors of the view, scales and what stays dense included: the figure
    /// of [`Totals`](plan::Totals).
    BitsPerWeight(f64),
    /// Bytes of all files of the view that hold tensors, headers included.
    Bytes(u64),
}

/// Elements of a weight that are looked at: enough that its relative error is known to a hundredth.
const SAMPLE: NonZero<u64> = NonZero::new(1 << 20).unwrap();

/// How far from the target the outcome may be, where candidates allow it.
const TOLERANCE: f64 = 0.01;

/// How often an outcome whose headers made it too long is tried anew with less, each time with twice as much less.
const TRIES: u32 = 16;

/// A view of the size that was asked for.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// The options that were given, with rules, and without importance that no method among them weighs errors by.
    pub options: Options,
    /// What the view comes to, in the target's unit.
    pub reached: f64,
    /// Weights, or groups of such that agree, which got a scheme.
    pub groups: usize,
}

impl Target {
    /// What is asked for, in its unit; nothing that is chosen comes to more.
    #[must_use]
    pub fn value(self) -> f64 {
        match self {
            Self::BitsPerWeight(bits) => bits,
            Self::Bytes(bytes) => bytes as f64,
        }
    }

    /// What a plan comes to, in the target's unit.
    #[must_use]
    pub fn of(self, plan: &Plan) -> f64 {
        match self {
            Self::BitsPerWeight(_) => plan.totals().bits_per_weight,
            Self::Bytes(_) => plan.weight_bytes() as f64,
        }
    }

    /// Bytes of a difference in the target's unit.
    fn bytes(self, difference: f64, plan: &Plan) -> f64 {
        match self {
            Self::BitsPerWeight(_) => {
                let totals = plan.totals();
                difference * totals.bytes_after as f64 / totals.bits_per_weight.max(f64::MIN_POSITIVE)
            }
            Self::Bytes(_) => difference,
        }
    }

    fn tell(self, value: f64) -> String {
        match self {
            Self::BitsPerWeight(_) => format!("{value:.3} bits per weight"),
            Self::Bytes(_) => format!("{value:.0} bytes"),
        }
    }
}

/// What the weights of a group may become, each candidate for all of them.
struct Choices {
    /// Rows of the plan.
    rows: Vec<usize>,
    specs: Vec<Spec>,
    candidates: Vec<Candidate>,
}

/// Chooses a scheme for each weight of a view, so that it is as large as asked, or by less than a hundredth smaller. Columns
/// matter as the importance of the options says, whether the view's method weighs errors by it or not.
///
/// # Errors
/// A target out of reach, with what is in reach; a view that has no choice; importance that does not fit its weight or
/// is of none that is chosen for; a source that cannot be read.
pub fn choose(
    source: &Arc<dyn Source>,
    options: &Options,
    target: Target,
    progress: &dyn Progress,
) -> Result<Chosen, Error> {
    if options.spec.is_dense() || options.predicate.is_some() {
        let why = "a target chooses the schemes of stored weights; leave out the other";
        let what = options.predicate.as_ref().map_or_else(|| options.spec.to_string(), |p| p.name.clone());
        return Err(Error::Refused(format!("{what} and a target size contradict each other: {why}")));
    }
    let of_view = options.without_idle_importance();
    let plan = Arc::new(planned(source, &of_view)?);
    let groups = groups::of(&plan);
    if groups.is_empty() {
        let why = "rules, the model's predicate or their shapes decide about all of them";
        return Err(Error::Refused(format!("{}: no weight is free to be chosen for: {why}", plan.source)));
    }
    let importance = importance(source, options, &plan, &groups)?;
    let engine = Engine::new(crate::view::Options::default()).map_err(|e| Error::Refused(e.to_string()))?;
    let view = View::new(Arc::clone(&plan), Arc::clone(source), engine);
    let choices = measured(&view, groups, &importance, progress)?;
    let search = Search { source, options: &of_view, plan: &plan, choices: &choices, target };
    let (chosen, reached) = search.run()?;
    Ok(Chosen { options: chosen, reached, groups: choices.len() })
}

fn planned(source: &Arc<dyn Source>, options: &Options) -> Result<Plan, Error> {
    Ok(plan::build(source.as_ref(), options)?)
}

/// What the columns of each weight of a plan matter, where that is known.
///
/// # Errors
/// Importance that is of no weight of the groups.
fn importance(
    source: &Arc<dyn Source>,
    options: &Options,
    plan: &Plan,
    groups: &[Vec<usize>],
) -> Result<Vec<Option<quant::Importance>>, Error> {
    let Some(file) = &options.importance else { return Ok(vec![None; plan.weights.len()]) };
    let known = plan::importance_of_weights(source.as_ref(), options)?;
    let of = |row: &usize| known.get(plan.rows[*row].weight? as usize)?.as_ref();
    if groups.iter().flatten().all(|row| of(row).is_none()) {
        let why =
            "nothing of it tells the columns of a weight apart that is free to be chosen for; is it for another model?";
        return Err(plan::Error::Spec(format!("--importance {}: {why}", file.text())).into());
    }
    Ok(known)
}

/// The candidates of each group, with what they cost and spoil.
fn measured(
    view: &View,
    groups: Vec<Vec<usize>>,
    importance: &[Option<quant::Importance>],
    progress: &dyn Progress,
) -> Result<Vec<Choices>, Error> {
    let plan = view.plan();
    let shares = share::shares(plan);
    let possible: Vec<(Vec<usize>, Vec<Spec>)> =
        groups.into_iter().map(|rows| possible(plan, &rows).map(|specs| (rows, specs))).collect::<Result<_, _>>()?;
    let looks = |(rows, specs): &(Vec<usize>, Vec<Spec>)| {
        rows.iter().map(|row| looked_at(plan, &plan.rows[*row])).sum::<u64>() * specs.len() as u64
    };
    progress.begin(possible.iter().map(looks).sum());
    let each = possible.into_par_iter().map(|(rows, specs)| {
        progress.note(&plan.rows[rows[0]].name);
        let candidates = specs.iter().map(|spec| {
            let scheme = bound(spec)?;
            let mut sum = Candidate { cost: 0, error: 0.0 };
            for row in &rows {
                let (cost, error) = looked(view, &plan.rows[*row], &scheme, importance)?;
                sum = Candidate { cost: sum.cost + cost, error: sum.error + error * shares[*row] };
                progress.advance(looked_at(plan, &plan.rows[*row]));
            }
            Ok(sum)
        });
        let candidates = candidates.collect::<Result<_, Error>>()?;
        Ok(Choices { rows, specs, candidates })
    });
    each.collect()
}

/// Source bytes that one look takes.
fn looked_at(plan: &Plan, row: &Row) -> u64 {
    let planned = row.weight.map(|weight| &plan.weights[weight as usize]);
    planned.map_or(0, |p| (p.weight.elements() as u64).min(SAMPLE.get()) * p.origin.stored.size() as u64)
}

/// Bytes of a weight under a scheme, and its relative error.
fn looked(
    view: &View,
    row: &Row,
    scheme: &Arc<dyn Scheme>,
    importance: &[Option<quant::Importance>],
) -> Result<(u64, f64), Error> {
    let Some(weight) = row.weight else { return Ok((0, 0.0)) };
    let parts = scheme.parts(&view.plan().weights[weight as usize].weight);
    let parts = parts.map_err(|e| Error::Refused(format!("{}: {e}", row.name)))?;
    let importance = importance[weight as usize].as_ref();
    let weighted = importance.and_then(|known| scheme.weighted(known));
    let asked = Asked { sample: Some(SAMPLE), importance: importance.map(quant::Importance::values) };
    let sums = errors::of_candidate(view, weight, weighted.as_ref().unwrap_or(scheme), &asked)?;
    Ok((parts.iter().map(|part| part.len() as u64).sum(), sums.loss()))
}

fn bound(spec: &Spec) -> Result<Arc<dyn Scheme>, Error> {
    let scheme = spec.bind().map_err(|e| Error::Refused(e.to_string()))?;
    scheme.ok_or_else(|| Error::Refused(format!("{spec} quantizes nothing")))
}

/// The specs that all of some rows can be stored as, the view's own among them.
fn possible(plan: &Plan, rows: &[usize]) -> Result<Vec<Spec>, Error> {
    let now = spec_of(&plan.rows[rows[0]])?;
    let scheme = bound(&now)?;
    let weights: Vec<_> = rows.iter().filter_map(|row| plan.rows[*row].weight).collect();
    let holds = |other: &dyn Scheme| weights.iter().all(|w| other.parts(&plan.weights[*w as usize].weight).is_ok());
    let fits =
        |spec: &Spec| bound(spec).is_ok_and(|other| now.format().dialect().mixes(&*scheme, &*other) && holds(&*other));
    Ok(now.alternative_schemes().into_iter().filter(fits).collect())
}

/// What a row becomes.
fn spec_of(row: &Row) -> Result<Spec, Error> {
    Spec::parse(Some(&row.becomes), &plan::Parts::default()).map_err(|e| Error::Refused(e.to_string()))
}

/// The way from choices to options.
struct Search<'a> {
    source: &'a Arc<dyn Source>,
    options: &'a Options,
    plan: &'a Plan,
    choices: &'a [Choices],
    target: Target,
}

impl Search<'_> {
    fn run(&self) -> Result<(Options, f64), Error> {
        let (least, most) = allocate::range(&self.candidates());
        let (low, high) = (self.made(least)?, self.made(most)?);
        let asked = self.target.value();
        if asked < low.1 || asked * (1.0 - TOLERANCE) > high.1 {
            let tell = |value| self.target.tell(value);
            return Err(Error::Refused(format!(
                "{} are out of reach: views of {} as {} range from {} to {}; rules can keep weights dense, another format has \
                 other schemes",
                tell(asked),
                self.plan.source,
                self.options.spec.format().name(),
                tell(low.1),
                tell(high.1),
            )));
        }
        if asked >= high.1 {
            return Ok(high);
        }
        let mut budget = shifted(least, self.target.bytes(asked - low.1, self.plan)).clamp(least, most);
        // Exact where nothing but the parts changes; headers differ by some bytes a weight.
        let mut made = self.made(budget)?;
        for tried in 0..TRIES {
            if made.1 <= asked {
                break;
            }
            let above = self.target.bytes(made.1 - asked, self.plan).max(1.0);
            budget = shifted(budget, -above * f64::from(1u32 << tried)).clamp(least, most);
            made = self.made(budget)?;
        }
        if made.1 > asked {
            made = low;
        }
        if made.1 < asked * (1.0 - TOLERANCE) {
            let [asked, made] = [asked, made.1].map(|value| self.target.tell(value));
            tracing::warn!(
                "{}: asked for {asked}; the nearest below that its schemes allow is {made}",
                self.plan.source
            );
        }
        Ok(made)
    }

    fn candidates(&self) -> Vec<Vec<Candidate>> {
        self.choices.iter().map(|choices| choices.candidates.clone()).collect()
    }

    /// The options that spend a budget, and what their view comes to.
    fn made(&self, budget: u64) -> Result<(Options, f64), Error> {
        let chosen = allocate::allocate(&self.candidates(), budget);
        let chosen = chosen.ok_or_else(|| Error::Refused("the cheapest schemes cost more than they do".to_owned()))?;
        let mut wanted = vec![];
        for (choices, at) in self.choices.iter().zip(chosen) {
            let spec = &choices.specs[at];
            for row in choices.rows.iter().map(|row| &self.plan.rows[*row]) {
                if row.becomes != spec.to_string() {
                    let names = row.sources.iter().map(|name| (row.component.clone(), name.clone()));
                    wanted.extend(names.map(|name| (name, spec.clone())));
                }
            }
        }
        let options = with_rules(self.options, patterns::rules(self.plan, wanted)?)?;
        let plan = planned(self.source, &options)?;
        let reached = self.target.of(&plan);
        Ok((options, reached))
    }
}

/// So many bytes more, or less.
fn shifted(from: u64, bytes: f64) -> u64 {
    #[expect(clippy::cast_possible_truncation, reason = "far below 2^63, or saturated")]
    from.saturating_add_signed(bytes.floor() as i64)
}

/// Options with more rules, which go after their own.
fn with_rules(options: &Options, rules: Vec<patterns::Found>) -> Result<Options, Error> {
    let mut options = options.clone();
    let refused = |e: plan::Error| Error::Refused(e.to_string());
    for found in rules {
        match options.components.iter_mut().find(|c| c.dir == found.component) {
            Some(own) => own.rules.push(Rule::parse(&found.text(false), &own.spec).map_err(refused)?),
            None => options.rules.push(Rule::parse(&found.text(true), &options.spec).map_err(refused)?),
        }
    }
    Ok(options)
}
