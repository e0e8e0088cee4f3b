//! An importance matrix and the weights of one view: which entry is for which weight, and what met nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::Arc,
};

use crate::{
    plan::{Error, Importance, Spec, decide::Decision, overrides::listed, snapshot::Set},
    quant::{
        self, Scheme, Weight,
        dialect::{Arranged, Slice},
    },
    tensor::TensorInfo,
};

/// Said of a weight in the report.
const WEIGHED: &str = "errors weighed by importance";

/// Why importance of rows that differ is not weighed.
const UNEVEN: &str = "rows differ in it, which the format packs together";

/// A weight whose errors may be weighed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    /// Its number in the plan.
    pub(crate) number: usize,
    pub(crate) weight: &'a Weight,
    pub(crate) spec: &'a Spec,
    pub(crate) scheme: &'a dyn Scheme,
}

/// Binds importance to weights as they are decided on.
#[derive(Debug)]
pub(crate) struct Binder<'a> {
    importance: Option<&'a Importance>,
    met: BTreeSet<&'a str>,
    /// Weights that weigh errors, and of which nothing is said.
    unknown: Vec<String>,
    /// Weights of which something is said, and whose method weighs no errors.
    deaf: Vec<String>,
    /// Weights whose rows differ in what is said of them, and whose packing cannot tell rows apart.
    uneven: Vec<String>,
    /// Weights whose columns all weigh the same in it: it is not applied.
    level: Vec<String>,
    weighed: usize,
    /// What is said of weights, by their numbers in the plan.
    told: BTreeMap<usize, quant::Importance>,
}

impl<'a> Binder<'a> {
    pub(crate) fn new(importance: Option<&'a Importance>) -> Self {
        let [unknown, deaf, uneven, level] = [const { vec![] }; 4];
        Self { importance, met: BTreeSet::new(), unknown, deaf, uneven, level, weighed: 0, told: BTreeMap::new() }
    }

    /// Has the scheme of a decision on a weight, which has this number in the plan, weigh errors, where that is asked for.
    ///
    /// # Errors
    /// An entry that does not fit the weight.
    pub(crate) fn weigh(
        &mut self,
        number: usize,
        set: &Set,
        tensor: &Arranged,
        decision: &mut Decision,
    ) -> Result<(), Error> {
        let Some(stored) = &mut decision.stored else { return Ok(()) };
        let asked = Asked { number, weight: &stored.weight, spec: &stored.spec, scheme: stored.scheme.as_ref() };
        let weighed = self.weighted(set, tensor, &asked)?;
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
        asked: &Asked<'_>,
    ) -> Result<Option<Arc<dyn Scheme>>, Error> {
        let Some(file) = self.importance else { return Ok(None) };
        let name = &tensor.info.name;
        let found = of_weight(file, set, tensor, asked.weight, &mut self.met);
        let found = found.map_err(|why| Error::spec(format!("--importance {}: tensor {name}: {why}", file.text())))?;
        let Some(found) = found else {
            self.unknown.push(name.clone());
            return Ok(None);
        };
        if found.is_level() {
            self.level.push(name.clone());
            return Ok(None);
        }
        let found = file.shared(found);
        let weighted = asked.scheme.weighted(&found);
        match &weighted {
            Some(_) => self.weighed += 1,
            None if asked.spec.weighs_errors() => self.uneven.push(name.clone()),
            None => self.deaf.push(name.clone()),
        }
        self.told.insert(asked.number, found);
        Ok(weighted)
    }

    /// What is said of each of so many weights of the plan.
    pub(crate) fn told(mut self, weights: usize) -> Vec<Option<quant::Importance>> {
        (0..weights).map(|number| self.told.remove(&number)).collect()
    }

    /// What the user should know.
    ///
    /// # Errors
    /// A file that changes nothing.
    pub(crate) fn check(self, warnings: &mut Vec<String>) -> Result<(), Error> {
        let Some(file) = self.importance else { return Ok(()) };
        let refuse = |why: String| Err(Error::spec(format!("--importance {}: {why}", file.text())));
        if self.weighed == 0 && !self.uneven.is_empty() {
            return refuse(format!("{UNEVEN}, and no other weight is weighed ({})", listed(&self.uneven)));
        }
        if self.weighed == 0 && !self.deaf.is_empty() {
            return refuse(format!(
                "rounding to nearest weighs no errors, and no quantized weight has another method ({}); choose one (--method ls) \
                 in a format that offers it (`quantfs formats`)",
                listed(&self.deaf)
            ));
        }
        if self.weighed == 0 && !self.level.is_empty() {
            return refuse(format!(
                "all columns weigh the same in it ({}), as they do without it",
                listed(&self.level)
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
        warn(&self.level, "weights have columns that all weigh the same in it, as without it");
        warn(&self.deaf, "weights are rounded to nearest, which weighs no errors");
        warn(&self.uneven, &format!("quantized weights have all their columns weigh the same: {UNEVEN}"));
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
        if height == 0 {
            continue;
        }
        let Some((name, values)) = find(file, set, info, cols).filter(|_| keeps_inputs(slice, info)) else {
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

/// Whether the columns of a slice are what its tensor is multiplied with: the tensor's own columns, or all of its rows where
/// it is transposed. Of a part that is transposed they are something else (`embed_q` of `kv_b_proj`).
fn keeps_inputs(slice: &Slice, info: &TensorInfo) -> bool {
    slice.col_stride == 1 || info.shape.iter().nth_back(1) == Some(&slice.cols)
}

/// Which of so many matrices, one after the other in a source tensor, a slice has elements of.
fn covered(slice: &Slice, info: &TensorInfo, matrices: usize) -> Option<Range<usize>> {
    if matrices == 1 {
        return Some(0..1);
    }
    let each = info.elements()?.checked_div(matrices)?;
    let stacked = info.shape.len() > 2 && info.shape[..info.shape.len() - 2].iter().product::<usize>() == matrices;
    let last_of = |count: usize, stride: usize| count.checked_sub(1)?.checked_mul(stride);
    let reach = last_of(slice.rows, slice.row_stride)?.checked_add(last_of(slice.cols, slice.col_stride)?)?;
    let last = slice.start.checked_add(reach)?;
    (stacked && each > 0).then(|| slice.start / each..last / each + 1)
}

/// The greatest common one; that of 0 and another is the other.
fn divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Dtype;

    #[test]
    fn what_is_transposed_in_part_has_other_inputs() {
        let info = TensorInfo { name: String::new(), dtype: Dtype::BF16, shape: vec![2 * (8 + 4), 8] };
        let of = |start, [rows, row_stride]: [usize; 2], [cols, col_stride]: [usize; 2]| {
            keeps_inputs(&Slice { tensor: 0, start, rows, row_stride, cols, col_stride }, &info)
        };
        assert!(of(0, [24, 8], [8, 1]) && of(96, [8, 8], [8, 1]), "rows, all or some");
        assert!(of(0, [8, 1], [24, 8]), "all of it transposed");
        assert!(!of(0, [8, 1], [8, 8]), "the first head's keys transposed");
    }

    /// Three matrices of 4 x 8: whole ones, shares of one, every other row, a transpose, and slices of nothing.
    #[test]
    fn a_slice_covers_the_matrices_that_its_elements_are_of() {
        let info = TensorInfo { name: String::new(), dtype: Dtype::BF16, shape: vec![3, 4, 8] };
        let of = |start, [rows, row_stride]: [usize; 2], [cols, col_stride]: [usize; 2]| {
            let slice = Slice { tensor: 0, start, rows, row_stride, cols, col_stride };
            covered(&slice, &info, 3)
        };
        assert_eq!(of(0, [1, 96], [96, 1]), Some(0..3));
        assert_eq!(of(32, [1, 16], [16, 1]), Some(1..2));
        assert_eq!(of(40, [6, 8], [8, 1]), Some(1..3));
        assert_eq!(of(8, [3, 32], [8, 1]), Some(0..3));
        assert_eq!(of(64, [8, 1], [4, 8]), Some(2..3));
        assert_eq!(of(0, [0, 8], [8, 1]), None);
        assert_eq!(of(0, [4, 8], [0, 1]), None);
        assert_eq!(of(usize::MAX, [4, 8], [8, 1]), None);
        let flat = TensorInfo { shape: vec![12, 8], ..info.clone() };
        let whole = Slice::whole(0, &flat);
        assert_eq!((covered(&whole, &flat, 3), covered(&whole, &flat, 1)), (None, Some(0..1)));
    }
}
