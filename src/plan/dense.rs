//! Views that show the values of another spec in the source's own names, dtypes and sizes.
//!
//! What is quantized, and how, is decided as for the spec itself, on the tensors that its dialect arranges; each
//! source tensor then becomes what its elements became there. A file of such a view is the source's file
//! with the bytes of some tensors replaced: header, order and length stay.

use std::sync::Arc;

use crate::{
    plan::{
        Content, Extent, File,
        decide::Decision,
        layout,
        snapshot::{Place, Set},
        spec::Spec,
    },
    quant::{
        Axis, Part, Scheme, Weight,
        dialect::{Arranged, Slice},
        format::dense::Dense,
    },
    source::{FileId, Source},
    tensor::Float,
};

/// What becomes of a source tensor.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(crate) spec: Spec,
    pub(crate) scheme: Arc<dyn Scheme>,
    pub(crate) weight: Weight,
    pub(crate) parts: Vec<Part>,
    pub(crate) why: String,
}

/// What becomes of each source tensor of a set: its values under the spec, or itself, with the reason.
pub(crate) fn shown(set: &Set, arranged: &[Arranged], decisions: &[Decision]) -> Vec<Result<Shown, String>> {
    let mut found: Vec<Option<Result<Shown, String>>> = set.tensors.iter().map(|_| None).collect();
    for (tensor, decision) in arranged.iter().zip(decisions) {
        for slice in &tensor.from {
            let one = of(set, tensor, slice, decision);
            let before = found[slice.tensor].take();
            found[slice.tensor] = Some(match before {
                None => one,
                Some(before) => agreed(before, one),
            });
        }
    }
    found.into_iter().map(|one| one.unwrap_or_else(|| Err("not in the view of this spec".to_owned()))).collect()
}

/// Two shares of one source tensor: what becomes of the first, where the second becomes the same.
fn agreed(before: Result<Shown, String>, one: Result<Shown, String>) -> Result<Shown, String> {
    match (before, one) {
        (Ok(a), Ok(b)) if a.scheme.id() == b.scheme.id() => Ok(a),
        (Ok(_), Ok(_)) => Err("its parts are quantized differently".to_owned()),
        (Err(why), _) | (_, Err(why)) => Err(why),
    }
}

fn of(set: &Set, tensor: &Arranged, slice: &Slice, decision: &Decision) -> Result<Shown, String> {
    let stored = decision.stored.as_ref().ok_or_else(|| decision.why.clone())?;
    let info = &set.tensors[slice.tensor];
    let float = Float::of(info.dtype).ok_or_else(|| format!("dtype {}", info.dtype))?;
    if !is_same(set, tensor, slice) && !goes_by_rows(&*stored.scheme, &stored.weight, set, slice) {
        return Err("its elements are rearranged before they are quantized".to_owned());
    }
    let scheme: Arc<dyn Scheme> = Arc::new(Dense::new(stored.scheme.clone(), stored.weight.float));
    let weight = Weight { stem: info.name.clone(), float, shape: info.shape.clone() };
    let parts = scheme.parts(&weight).map_err(|e| e.0)?;
    let first = (stored.weight.float != float).then(|| format!("cast to {} first", stored.weight.float.name()));
    let said = Some(decision.why.clone()).filter(|why| !why.is_empty());
    let why = said.into_iter().chain(first).collect::<Vec<_>>().join("; ");
    Ok(Shown { spec: stored.spec.clone(), scheme, weight, parts, why })
}

/// Whether a tensor is a source tensor as it lies there.
fn is_same(set: &Set, tensor: &Arranged, slice: &Slice) -> bool {
    let info = &set.tensors[slice.tensor];
    tensor.from.len() == 1 && *slice == Slice::whole(slice.tensor, info) && tensor.info.shape == info.shape
}

/// Whether whole rows become whole rows under a scheme to which every row is alone.
fn goes_by_rows(scheme: &dyn Scheme, weight: &Weight, set: &Set, slice: &Slice) -> bool {
    let banding = scheme.banding(weight);
    let cols = set.tensors[slice.tensor].shape.last().copied().unwrap_or(1);
    let whole_rows = slice.col_stride == 1
        && slice.start.is_multiple_of(cols)
        && (slice.rows == 1 || slice.row_stride.is_multiple_of(cols))
        && slice.cols.is_multiple_of(cols);
    let by_itself = match banding.axis {
        Axis::Flat => cols.is_multiple_of(banding.granule),
        Axis::Rows => banding.granule == 1,
        Axis::Columns => false,
    };
    let alone = by_itself && scheme.survey(weight).is_none();
    weight.cols() == cols && whole_rows && alone
}

/// The files of a set in which some tensors have another content.
pub(crate) fn lay(source: &dyn Source, set: &Set, replaced: &[(usize, Content)]) -> Vec<File> {
    let file = |(number, shard): (usize, &super::snapshot::Shard)| {
        let mut cuts: Vec<(&Place, &Content)> =
            replaced.iter().map(|(t, content)| (&set.places[*t], content)).collect();
        cuts.retain(|(place, _)| place.shard == number && !place.range.is_empty());
        cuts.sort_by_key(|(place, _)| place.range.start);
        let mut file = patched(source, shard.file, &cuts);
        file.modified = if cuts.is_empty() { file.modified } else { layout::newest(source, set.files()) };
        file
    };
    set.shards.iter().enumerate().map(file).collect()
}

fn patched(source: &dyn Source, file: FileId, cuts: &[(&Place, &Content)]) -> File {
    let entry = source.entry(file);
    let mut whole = layout::whole(source, file, entry.path.clone());
    if cuts.is_empty() {
        return whole;
    }
    whole.extents.clear();
    let mut at = 0;
    let as_it_is = |from: u64, to: u64, extents: &mut Vec<Extent>| {
        if from < to {
            extents.push(Extent { start: from, content: Content::Source { file, offset: from } });
        }
    };
    for (place, content) in cuts {
        as_it_is(at, place.range.start, &mut whole.extents);
        whole.extents.push(Extent { start: place.range.start, content: (*content).clone() });
        at = place.range.end;
    }
    as_it_is(at, whole.len, &mut whole.extents);
    whole
}
