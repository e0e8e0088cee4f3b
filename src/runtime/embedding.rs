//! Embeddings: rows of a table by id. Decodes the rows that are asked for, never the table.

use crate::{
    quant::Facts,
    runtime::{Error, QuantizedLinear, linear::Matrix},
};

/// A table of `rows` vectors of `cols` elements, quantized or not; cloning shares it.
#[derive(Clone, Debug)]
pub struct Embedding {
    matrix: Matrix,
}

impl Embedding {
    pub(super) fn new(matrix: Matrix) -> Self {
        Self { matrix }
    }

    /// Number of vectors: ids are below it.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.matrix.operator.rows()
    }

    /// Elements of a vector.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.matrix.operator.cols()
    }

    /// Bits, group and mode; `None` for full precision.
    #[must_use]
    pub fn facts(&self) -> Option<&Facts> {
        self.matrix.facts.as_ref()
    }

    /// The vectors of some ids, `[ids, cols]`.
    ///
    /// # Errors
    /// An id past the table, room for another number of vectors.
    pub fn forward(&self, ids: &[u32], out: &mut [f32]) -> Result<(), Error> {
        let cols = self.cols();
        let wrong = |why| Error::Lengths { layer: self.matrix.stem.clone(), why };
        if ids.len().checked_mul(cols) != Some(out.len()) {
            return Err(wrong(format!("{} ids have vectors of {cols}, not room for {}", ids.len(), out.len())));
        }
        let rows = self.rows();
        if let Some(id) = ids.iter().find(|id| **id as usize >= rows) {
            return Err(wrong(format!("id {id} is past its {rows} rows")));
        }
        for (id, out) in ids.iter().zip(out.chunks_exact_mut(cols.max(1))) {
            let row = *id as usize;
            self.matrix.operator.decode(row..row + 1, out);
        }
        Ok(())
    }

    /// The table as a linear layer without bias: the head of models that tie the two.
    #[must_use]
    pub fn as_linear(&self) -> QuantizedLinear {
        QuantizedLinear::new(self.matrix.clone(), None)
    }
}
