//! Embeddings: rows of a table by id. Decodes the rows that are asked for, never the table.

use crate::{
    quant::Facts,
    runtime::{Error, QuantizedLinear, linear::Matrix},
};

/// A table of `rows` vectors of `cols` elements, quantized or not; cloning shares it.
///
/// ```
/// use quantfs::runtime::Weights;
/// # let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/mlx_lm/llama_q4_g64");
/// let table = Weights::open(dir)?.embedding("model.embed_tokens")?; // 64 vectors of 64 elements, in 4 bits
///
/// // Only the rows that are asked for are decoded.
/// let mut vectors = vec![0.0; 2 * table.cols()];
/// table.forward(&[7, 9], &mut vectors)?;
/// assert_eq!(vectors[..table.cols()], table.as_linear().dequantize()[7 * table.cols()..][..table.cols()]);
/// assert!(table.forward(&[64], &mut vec![0.0; table.cols()]).is_err(), "ids are below 64");
/// # Ok::<(), quantfs::runtime::Error>(())
/// ```
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
