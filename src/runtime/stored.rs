//! A module's weight as it lies: one matrix, or a stack of them whose bytes follow each other.
//!
//! Always: what is handed out as a layer is one matrix. Rows of a stack that were taken for those of one
//! would multiply with every expert at once.

use crate::{
    quant::{Part, Recognized, Unsupported, Weight, operator::Bytes},
    runtime::{Error, linear::Matrix},
};

/// How a weight is stored, and its parts in the scheme's order.
pub(super) struct Stored {
    pub(super) found: Recognized,
    pub(super) parts: Vec<Bytes>,
    /// Whether it is in codes.
    pub(super) quantized: bool,
    /// What holds it, for errors.
    pub(super) file: String,
}

impl Stored {
    /// The weight as one matrix.
    ///
    /// # Errors
    /// A vector, a stack.
    pub(super) fn matrix(self) -> Result<Matrix, Error> {
        let shape = &self.found.weight.shape;
        match &shape[..] {
            [_, _] => Ok(Matrix::new(self.found, self.parts, self.quantized)),
            [lead @ .., _, _] if !lead.is_empty() => {
                let count: usize = lead.iter().product();
                Err(self.wrong(format!("it has shape {shape:?}: {count} matrices, of which `stack` gives layers")))
            }
            _ => Err(self.wrong(format!("it has shape {shape:?}, and is no matrix"))),
        }
    }

    /// The matrices of a stack.
    ///
    /// # Errors
    /// A weight that is none.
    pub(super) fn stack(self) -> Result<Vec<Matrix>, Error> {
        let Weight { stem, float, shape } = &self.found.weight;
        let [lead @ .., rows, cols] = &shape[..] else { return Err(self.no_stack()) };
        if lead.is_empty() {
            return Err(self.no_stack());
        }
        let layout = self.found.scheme.parts(&self.found.weight).map_err(|Unsupported(why)| self.wrong(why))?;
        let count = lead.iter().product();
        if rows * cols == 0 {
            return Err(self.wrong(format!("it has shape {shape:?}: matrices of no elements")));
        }
        let weight = Weight { stem: stem.clone(), float: *float, shape: vec![*rows, *cols] };
        let one = |i: usize| {
            let parts = layout.iter().zip(&self.parts).map(|(part, bytes)| cut(part, bytes, lead, count, i));
            let parts = parts.collect::<Option<_>>().ok_or_else(|| self.wrong("its parts are no whole matrices"))?;
            let found = Recognized { scheme: self.found.scheme.clone(), weight: weight.clone() };
            Ok(Matrix::new(found, parts, self.quantized))
        };
        (0..count).map(one).collect()
    }

    fn no_stack(&self) -> Error {
        self.wrong(format!("it has shape {:?}, and is no stack of matrices", self.found.weight.shape))
    }

    fn wrong(&self, why: impl Into<String>) -> Error {
        let tensor = format!("{}.weight", self.found.weight.stem);
        Error::Tensor { tensor, path: self.file.clone(), why: why.into() }
    }
}

/// What a matrix of the stack has of a part: a part without the stack's dimensions is everyone's.
fn cut(part: &Part, bytes: &Bytes, lead: &[usize], count: usize, own: usize) -> Option<Bytes> {
    if part.shape.len() <= lead.len() || !part.shape.starts_with(lead) {
        return Some(bytes.clone());
    }
    let each = bytes.len() / count;
    bytes.slice(own * each..(own + 1) * each)
}
