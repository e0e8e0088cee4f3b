//! A page about a source: what each candidate spec would cost and lose, and what a view of it becomes.
//!
//! [`measure`] gathers the facts, [`page`] makes one self-contained HTML file of them: no network, no other file. All
//! facts lie in it as JSON, as [`errors::to_json`] gives them and more; what the page shows
//! is drawn from that by its own script.
//!
//! Names of tensors and files are anybody's: they are in the JSON alone, in which no character can end a script, and the
//! script shows them as text.

mod candidates;
mod histograms;

use std::{num::NonZero, sync::Arc};

use serde_json::{Value, json};

use crate::{
    bulk::{Error, Progress, errors},
    plan::{Options, Plan, Spec},
    view::View,
};

/// What a report is asked to look at.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// Specs to compare, for all that the view quantizes. The view itself is always among them.
    pub candidates: Vec<Spec>,
    /// Elements of each tensor to look at; all where this is `None`.
    pub sample: Option<NonZero<u64>>,
}

/// Elements up to which all are looked at where nobody says how many: a minute or two of work for dozens of candidates.
const WHOLE: u64 = 1 << 28;
/// Elements of each tensor otherwise: the root mean square of a million differences is off by a part in a thousand.
const SAMPLE: NonZero<u64> = NonZero::<u64>::MIN.saturating_add((1 << 20) - 1);

/// How many elements of each tensor to look at where nobody says it.
#[must_use]
pub fn default_sample(plan: &Plan) -> Option<NonZero<u64>> {
    let weights = plan.rows.iter().filter_map(|row| row.weight);
    let elements: u64 = weights.map(|weight| plan.weights[weight as usize].weight.elements() as u64).sum();
    (elements > WHOLE).then_some(SAMPLE)
}

/// Measures a view of these options, and the candidates in its place.
///
/// # Errors
/// A source that cannot be read. A candidate that the source cannot be shown as is listed with the reason.
pub fn measure(view: &Arc<View>, options: &Options, asked: &Asked, progress: &dyn Progress) -> Result<Value, Error> {
    let mixed = candidates::is_mixed(options);
    let others: Vec<&Spec> = asked.candidates.iter().filter(|spec| mixed || **spec != options.spec).collect();
    // Candidates take about as long as the view itself, and so do the histograms.
    let each = errors::work(view.plan(), asked.sample);
    progress.begin(each * (others.len() as u64 + 2));
    let found = errors::measured(view, asked.sample, progress)?;
    let mut json = errors::to_json(view.plan(), &found, asked.sample);
    for (row, of) in json["tensors"].as_array_mut().into_iter().flatten().zip(&view.plan().rows) {
        row["bits_per_weight"] = json!(of.bits_per_weight());
    }
    json["histograms"] = histograms::of(view, &found, asked.sample, progress)?;
    candidates::add(&mut json, (view, &found), options, &others, asked.sample, &Step { progress, each })?;
    json["options"] = options.to_json();
    json["version"] = json!(env!("CARGO_PKG_VERSION"));
    Ok(json)
}

/// A step of a job: how long it may be at most is known, not how long it is.
struct Step<'a> {
    progress: &'a dyn Progress,
    each: u64,
}

impl Step<'_> {
    /// A step of so many bytes is done; the rest of its share is skipped.
    fn done(&self, bytes: u64) {
        self.progress.advance(self.each.saturating_sub(bytes));
    }
}

/// Where the facts go in the page.
const SLOT: &str = "{{facts}}";

/// The page that shows such facts.
#[must_use]
pub fn page(facts: &Value) -> String {
    let page = include_str!("page.html");
    let page = page.replacen("{{style}}", include_str!("page.css"), 1);
    let page = page.replacen("{{script}}", include_str!("page.js"), 1);
    // Last, so that nothing in the facts is taken for a slot.
    page.replacen(SLOT, &embedded(facts), 1)
}

/// JSON that neither ends the element that it lies in nor begins another.
fn embedded(facts: &Value) -> String {
    let text = facts.to_string();
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => safe.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_text_and_no_markup() {
        let hostile = json!({"name": "</script><script>alert(1)</script><!-- {{facts}} & \u{2028}"});
        let page = page(&hostile);
        assert_eq!(page.matches("<script").count(), 2, "the facts and the program");
        assert_eq!(page.matches("</script").count(), 2);
        let (_, after) = page.split_once(r#"type="application/json">"#).unwrap_or_default();
        let (facts, _) = after.split_once("</script>").unwrap_or_default();
        assert_eq!(serde_json::from_str::<Value>(facts).ok(), Some(hostile));
        assert!(!page.contains("{{style}}") && !page.contains("{{script}}"));
    }
}
