//! How the elements of a tensor and what is lost of them are distributed.

use std::num::NonZero;

use serde_json::{Value, json};

use crate::{
    bulk::{
        Error, Progress,
        errors::{Sums, over},
    },
    view::{Values, View},
};

/// Columns of a histogram; an odd number has one in the middle for zero.
const BINS: usize = 65;
/// Tensors that have one: 600 bytes each in the page.
const MOST: usize = 512;

/// Counts of elements between `-limit` and `limit`.
#[derive(Clone, Default)]
struct Counts {
    elements: Vec<u64>,
    errors: Vec<u64>,
}

impl Counts {
    fn with(mut self, values: &Values<'_>, largest: f64, worst: f64) -> Self {
        self.elements.resize(BINS, 0);
        self.errors.resize(BINS, 0);
        for (given, shown) in values.given.iter().zip(values.shown) {
            let (w, d) = (f64::from(*given), f64::from(*given) - f64::from(*shown));
            if d.is_finite() {
                self.elements[bin(w, largest)] += 1;
                self.errors[bin(d, worst)] += 1;
            }
        }
        self
    }
}

fn bin(x: f64, limit: f64) -> usize {
    if limit == 0.0 {
        return BINS / 2;
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and the number of bins")]
    let place = ((x / limit + 1.0) / 2.0 * BINS as f64).max(0.0) as usize;
    place.min(BINS - 1)
}

/// The histograms of the tensors that lose most, the worst first.
pub(super) fn of(
    view: &View,
    found: &[Option<Sums>],
    sample: Option<NonZero<u64>>,
    progress: &dyn Progress,
) -> Result<Value, Error> {
    let mut order: Vec<(usize, u32, Sums, f64)> = vec![];
    for (number, (row, sums)) in view.plan().rows.iter().zip(found).enumerate() {
        let Some((weight, sums)) = row.weight.zip(*sums) else { continue };
        order.push((number, weight, sums, sums.loss()));
    }
    order.sort_by(|a, b| b.3.total_cmp(&a.3));
    let each = order.iter().take(MOST).map(|(number, weight, sums, _)| {
        let shown = view.shown(*weight)?;
        let add = |counts: Counts, values: &Values<'_>| counts.with(values, sums.largest, sums.worst);
        let bands = over(&shown, sample, progress, add)?;
        let of = |pick: fn(&Counts) -> &Vec<u64>| (0..BINS).map(|i| bands.iter().map(|b| pick(b)[i]).sum()).collect();
        let (elements, errors): (Vec<u64>, Vec<u64>) = (of(|c| &c.elements), of(|c| &c.errors));
        Ok(json!({
            "tensor": number, "largest": sums.largest, "worst": sums.worst, "elements": elements, "errors": errors,
        }))
    });
    Ok(Value::Array(each.collect::<Result<_, Error>>()?))
}
