//! A model written anew: tensors moved, products replaced, everything else copied as it lies.
//!
//! Walks the model in the order in which it was parsed, so that what was counted then is found by its
//! number. Does not know whether a new name is taken.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
};

use crate::container::{
    Malformed,
    protobuf::{Field, Message, Value, push_bytes, push_number},
};

use super::{At, EXTERNAL, External, Kind, MICROSOFT, Model, domains, entry, is_external};

/// `TensorProto.UINT8`.
const UINT8: u64 = 2;

/// What becomes of an external tensor.
#[derive(Clone, Debug, Default)]
pub struct Edit {
    /// Where its bytes lie now, in the same file; `None` where nobody needs it any more.
    pub range: Option<Range<u64>>,
    /// What its products become.
    pub product: Option<NBits>,
}

/// A quantized second factor.
#[derive(Clone, Debug)]
pub struct NBits {
    /// Bits of a code.
    pub bits: u32,
    /// Elements of a block.
    pub block: usize,
    /// Codes, scales and, where there are any, zero points.
    pub parts: Vec<Part>,
}

/// A tensor of a quantized factor; it lies in the file of the factor.
#[derive(Clone, Debug)]
pub struct Part {
    /// Name of the initializer.
    pub name: String,
    /// Whether it holds bytes; otherwise its elements are of the factor's type.
    pub bytes: bool,
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Its bytes in the file.
    pub range: Range<u64>,
}

/// Renders a model anew: `edits` says what becomes of each of its [external tensors](Model::tensors).
///
/// Nodes, attributes and initializers are written as onnxruntime's `MatMulNBitsQuantizer` does: the new
/// initializers follow the old ones, attributes are sorted, the operators' domain is imported.
///
/// # Errors
/// Those of [`parse`](super::parse); none for bytes that were parsed.
///
/// # Panics
/// If `model` or `edits` are another model's.
pub fn render(bytes: &[u8], model: &Model, edits: &[Edit]) -> Result<Vec<u8>, Malformed> {
    let mut editor = Editor { model, edits, factors: factors(model, edits), tensors: 0, products: 0, graphs: 0 };
    editor.rewritten(At::MODEL, Message::new(bytes))
}

/// Quantized factors by the number of the graph that they are initializers of.
type Factors<'a> = HashMap<usize, Vec<(&'a External, &'a NBits)>>;

/// Writes a model anew; the numbers count what was met so far, in the order in which it was parsed.
struct Editor<'a> {
    model: &'a Model,
    edits: &'a [Edit],
    factors: Factors<'a>,
    tensors: usize,
    products: usize,
    graphs: usize,
}

impl Editor<'_> {
    fn rewritten(&mut self, at: At, message: Message<'_>) -> Result<Vec<u8>, Malformed> {
        let mut out = vec![];
        let mut quantized = HashSet::new();
        // What is added follows the last field of its kind.
        let (number, added) = match at.kind {
            Kind::Graph => {
                let factors = self.factors.remove(&self.graphs).unwrap_or_default();
                self.graphs += 1;
                quantized.extend(factors.iter().map(|(factor, _)| factor.name.as_str()));
                (5, initializers(&factors))
            }
            Kind::Model => (8, self.import(message)?),
            _ => (0, vec![]),
        };
        let count = message.fields().filter_map(Result::ok).filter(|field| field.number == number).count();
        let mut seen = 0;
        for field in at.fields(message) {
            let (field, inner) = field?;
            match inner {
                Some((at, inner)) => self.inner(at, &field, inner, &mut out)?,
                None if at.kind == Kind::Graph && is_input(&field, &quantized)? => {}
                None => out.extend_from_slice(field.raw),
            }
            seen += usize::from(field.number == number);
            if field.number == number && seen == count {
                out.extend_from_slice(&added);
            }
        }
        if count == 0 {
            out.extend_from_slice(&added);
        }
        Ok(out)
    }

    fn inner(&mut self, at: At, field: &Field<'_>, inner: Message<'_>, out: &mut Vec<u8>) -> Result<(), Malformed> {
        if at.kind == Kind::Tensor {
            return self.tensor(field, inner, out);
        }
        if at.factor(inner)?.is_some() {
            self.products += 1;
            let factor = self.model.factors[self.products - 1];
            if let Some((number, nbits)) = factor.and_then(|n| Some((n, self.edits[n].product.as_ref()?))) {
                push_bytes(out, field.number, &product(inner, &self.model.tensors[number], nbits)?);
                return Ok(());
            }
        }
        push_bytes(out, field.number, &self.rewritten(at, inner)?);
        Ok(())
    }

    fn tensor(&mut self, field: &Field<'_>, tensor: Message<'_>, out: &mut Vec<u8>) -> Result<(), Malformed> {
        if !is_external(tensor)? {
            out.extend_from_slice(field.raw);
            return Ok(());
        }
        self.tensors += 1;
        if let Some(range) = &self.edits[self.tensors - 1].range {
            push_bytes(out, field.number, &moved(tensor, range)?);
        }
        Ok(())
    }

    /// The import of the domain of `MatMulNBits`, where it is needed and not there.
    fn import(&self, model: Message<'_>) -> Result<Vec<u8>, Malformed> {
        let mut out = vec![];
        if self.edits.iter().all(|edit| edit.product.is_none()) {
            return Ok(out);
        }
        for domain in domains(model) {
            if domain? == MICROSOFT {
                return Ok(out);
            }
        }
        let mut import = vec![];
        push_bytes(&mut import, 1, MICROSOFT.as_bytes());
        push_number(&mut import, 2, 1);
        push_bytes(&mut out, 8, &import);
        Ok(out)
    }
}

/// The quantized factors of each graph, in the order of their products.
fn factors<'a>(model: &'a Model, edits: &'a [Edit]) -> Factors<'a> {
    let (mut factors, mut seen) = (Factors::new(), HashSet::new());
    for &number in model.factors.iter().flatten().filter(|n| seen.insert(**n)) {
        let (factor, edit) = (&model.tensors[number], &edits[number]);
        if let (Some(graph), Some(nbits)) = (factor.graph, &edit.product) {
            factors.entry(graph).or_default().push((factor, nbits));
        }
    }
    factors
}

/// Whether a field declares one of these as an input of the graph, as old models do of every initializer.
fn is_input(field: &Field<'_>, names: &HashSet<&str>) -> Result<bool, Malformed> {
    match field {
        Field { number: 11, value: Value::Bytes(value), .. } => Ok(names.contains(value.string(1)?)),
        _ => Ok(false),
    }
}

/// The initializers of quantized factors.
fn initializers(factors: &[(&External, &NBits)]) -> Vec<u8> {
    let mut out = vec![];
    for (factor, nbits) in factors {
        nbits.parts.iter().for_each(|part| push_bytes(&mut out, 5, &initializer(part, factor)));
    }
    out
}

/// The node `MatMulNBits` of a `MatMul`.
fn product(node: Message<'_>, factor: &External, nbits: &NBits) -> Result<Vec<u8>, Malformed> {
    let [k, n] = factor.shape[..] else { panic!("a factor of shape {:?} has no columns to quantize", factor.shape) };
    let mut inputs = node.fields().filter_map(Result::ok).filter(|field| field.number == 1);
    let mut out = inputs.next().map_or(vec![], |first| first.raw.to_vec());
    nbits.parts.iter().for_each(|part| push_bytes(&mut out, 1, part.name.as_bytes()));
    push_bytes(&mut out, 2, node.string(2)?.as_bytes());
    let name = node.string(3)?;
    if !name.is_empty() {
        push_bytes(&mut out, 3, format!("{name}_Q{}", nbits.bits).as_bytes());
    }
    push_bytes(&mut out, 4, b"MatMulNBits");
    for (name, number) in [("K", k), ("N", n), ("bits", nbits.bits as usize), ("block_size", nbits.block)] {
        const INT: u64 = 2;
        let mut attribute = vec![];
        push_bytes(&mut attribute, 1, name.as_bytes());
        push_number(&mut attribute, 3, number as u64);
        push_number(&mut attribute, 20, INT);
        push_bytes(&mut out, 5, &attribute);
    }
    push_bytes(&mut out, 7, MICROSOFT.as_bytes());
    Ok(out)
}

/// An initializer that lies in the file of `factor`.
fn initializer(part: &Part, factor: &External) -> Vec<u8> {
    let mut out = vec![];
    part.shape.iter().for_each(|dim| push_number(&mut out, 1, *dim as u64));
    push_number(&mut out, 2, if part.bytes { UINT8 } else { factor.element });
    push_bytes(&mut out, 8, part.name.as_bytes());
    push_entry(&mut out, "location", &factor.location);
    push_entry(&mut out, "offset", &part.range.start.to_string());
    push_entry(&mut out, "length", &(part.range.end - part.range.start).to_string());
    push_number(&mut out, 14, EXTERNAL);
    out
}

fn push_entry(out: &mut Vec<u8>, key: &str, value: &str) {
    let mut entry = vec![];
    push_bytes(&mut entry, 1, key.as_bytes());
    push_bytes(&mut entry, 2, value.as_bytes());
    push_bytes(out, 13, &entry);
}

/// An external tensor with its bytes elsewhere in the same file.
fn moved(tensor: Message<'_>, range: &Range<u64>) -> Result<Vec<u8>, Malformed> {
    let mut out = vec![];
    let (offset, len) = (range.start.to_string(), (range.end - range.start).to_string());
    let mut missing = vec![("offset", &offset), ("length", &len)];
    for field in tensor.fields() {
        let field = field?;
        let key = entry(&field)?.map(|(key, _)| key);
        match key.as_deref() {
            Some("offset") => push_entry(&mut out, "offset", &offset),
            Some("length") => push_entry(&mut out, "length", &len),
            // That of the whole file, which is another now.
            Some("checksum") => {}
            _ => out.extend_from_slice(field.raw),
        }
        missing.retain(|(name, _)| key.as_deref() != Some(name));
    }
    missing.into_iter().for_each(|(key, value)| push_entry(&mut out, key, value));
    Ok(out)
}
