//! An importance matrix and the weights of one view: which entry is for which weight, and what met nothing.

use std::{collections::BTreeSet, ops::Range, sync::Arc};

use crate::{
    plan::{Error, Importance, decide::Decision, overrides::listed, snapshot::Set},
    quant::{
        self, Scheme, Weight,
        dialect::{Arranged, Slice},
    },
    tensor::TensorInfo,
};

/// Said of a weight in the report.
const WEIGHED: &str = "errors weighed by importance";

/// Binds importance to weights as they are decided on.
#[derive(Debug)]
pub(crate) struct Binder<'a> {
    importance: Option<&'a Importance>,
    met: BTreeSet<&'a str>,
    /// Weights that weigh errors, and of which nothing is said.
    unknown: Vec<String>,
    /// Weights of which something is said, and whose method weighs no errors.
    deaf: Vec<String>,
    weighed: usize,
}

impl<'a> Binder<'a> {
    pub(crate) fn new(importance: Option<&'a Importance>) -> Self {
        Self { importance, met: BTreeSet::new(), unknown: vec![], deaf: vec![], weighed: 0 }
    }

    /// Has a decision's scheme weigh errors, where that is asked for.
    ///
    /// # Errors
    /// An entry that does not fit the weight.
    pub(crate) fn weigh(&mut self, set: &Set, tensor: &Arranged, decision: &mut Decision) -> Result<(), Error> {
        let Some(stored) = &mut decision.stored else { return Ok(()) };
        let weighed = self.weighted(set, tensor, &stored.weight, stored.scheme.as_ref())?;
        if let Some(scheme) = weighed {
            stored.scheme = scheme;
            decision.why = with_note(&decision.why);
        }
        Ok(())
    }

    /// A scheme that weighs the errors of a weight; `None` where it stays as it is.
    ///
    /// # Errors
    /// An entry that does not fit the weight.
    pub(crate) fn weighted(
        &mut self,
        set: &Set,
        tensor: &Arranged,
        weight: &Weight,
        scheme: &dyn Scheme,
    ) -> Result<Option<Arc<dyn Scheme>>, Error> {
        let Some(file) = self.importance else { return Ok(None) };
        let name = &tensor.info.name;
        let found = of_weight(file, set, tensor, weight, &mut self.met);
        let found = found.map_err(|why| Error::spec(format!("--importance {}: tensor {name}: {why}", file.text())))?;
        let Some(found) = found else {
            self.unknown.push(name.clone());
            return Ok(None);
        };
        let weighted = scheme.weighted(&found);
        if weighted.is_some() {
            self.weighed += 1;
        } else {
            self.deaf.push(name.clone());
        }
        Ok(weighted)
    }

    /// What the user should know.
    ///
    /// # Errors
    /// A file that changes nothing.
    pub(crate) fn check(self, warnings: &mut Vec<String>) -> Result<(), Error> {
        let Some(file) = self.importance else { return Ok(()) };
        let refuse = |why: String| Err(Error::spec(format!("--importance {}: {why}", file.text())));
        if self.weighed == 0 && !self.deaf.is_empty() {
            return refuse(format!(
                "rounding to nearest weighs no errors, and no quantized weight has another method ({}); choose one: --method ls",
                listed(&self.deaf)
            ));
        }
        let idle: Vec<String> = file.names().filter(|name| !self.met.contains(name)).map(str::to_owned).collect();
        if self.weighed == 0 {
            return refuse(format!(
                "nothing of it belongs to a quantized weight ({}); is it for another model?",
                listed(&idle)
            ));
        }
        let mut warn = |names: &[String], what: &str| {
            if !names.is_empty() {
                let (text, count) = (file.text(), names.len());
                warnings.push(format!("--importance {text}: {count} {what}: {}", listed(names)));
            }
        };
        warn(&idle, "entries belong to no quantized weight");
        warn(&self.unknown, "quantized weights are not in it, and have all their columns weigh the same");
        warn(&self.deaf, "weights are rounded to nearest, which weighs no errors");
        Ok(())
    }
}

/// Why, with a note that errors are weighed.
pub(crate) fn with_note(why: &str) -> String {
    if why.is_empty() { WEIGHED.to_owned() } else { format!("{why}; {WEIGHED}") }
}

/// What a file says of a weight: a row for each run of rows that have the same.
fn of_weight<'a>(
    file: &'a Importance,
    set: &Set,
    tensor: &Arranged,
    weight: &Weight,
    met: &mut BTreeSet<&'a str>,
) -> Result<Option<quant::Importance>, String> {
    let cols = weight.cols();
    let same = vec![1.0; cols];
    let (mut rows, mut any) = (vec![], false);
    for slice in &tensor.from {
        let info = &set.tensors[slice.tensor];
        let height = slice.elements() / cols.max(1);
        let Some((name, values)) = find(file, set, info, cols) else {
            rows.push((height, &same[..]));
            continue;
        };
        (any, _) = (true, met.insert(name));
        if values.is_empty() || !values.len().is_multiple_of(cols) {
            return Err(format!("entry {name} has {} values, and a row {cols} columns", values.len()));
        }
        let matrices = values.len() / cols;
        let covered = covered(slice, info, matrices).filter(|range| height.is_multiple_of(range.len()));
        let covered = covered.ok_or_else(|| {
            format!("entry {name} is of {matrices} matrices, which the shape {:?} does not have", info.shape)
        })?;
        let each = height / covered.len();
        rows.extend(values.chunks_exact(cols).skip(covered.start).take(covered.len()).map(|row| (each, row)));
    }
    if !any {
        return Ok(None);
    }
    let shared = rows.iter().fold(0, |shared, (count, _)| divisor(shared, *count));
    let repeated = |(count, row): (usize, &[f32])| row.repeat(count / shared.max(1));
    let values: Vec<f32> = rows.into_iter().flat_map(repeated).collect();
    quant::Importance::new(cols, shared, &values).map(Some).map_err(|e| e.to_string())
}

/// The entry of a source tensor, which a component may be named before.
fn find<'a>(file: &'a Importance, set: &Set, info: &TensorInfo, cols: usize) -> Option<(&'a str, &'a [f32])> {
    let named = || file.find(&format!("{}.{}", set.dir.replace('/', "."), info.name), Some(cols));
    file.find(&info.name, Some(cols)).or_else(|| if set.dir.is_empty() { None } else { named() })
}

/// Which of so many matrices, one after the other in a source tensor, a slice has elements of.
fn covered(slice: &Slice, info: &TensorInfo, matrices: usize) -> Option<Range<usize>> {
    if matrices == 1 {
        return Some(0..1);
    }
    let each = info.elements()?.checked_div(matrices)?;
    let stacked = info.shape.len() > 2 && info.shape[..info.shape.len() - 2].iter().product::<usize>() == matrices;
    let last = slice.start + (slice.rows - 1) * slice.row_stride + (slice.cols - 1) * slice.col_stride;
    (stacked && each > 0).then(|| slice.start / each..last / each + 1)
}

fn divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { divisor(b, a % b) }
}
