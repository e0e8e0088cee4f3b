//! Linear layers over a matrix that computes where it lies.
//!
//! `y = x W^T + b`. Results do not depend on the thread count. Lengths are checked, and an error names
//! the layer; the arithmetic never fails.

use std::sync::Arc;

use half::bf16;
use rayon::prelude::*;

use crate::{
    quant::{
        Facts, Recognized, Scheme, Unsupported, Weight,
        operator::{Arithmetic, Bytes, Decoded, Operator},
    },
    runtime::{Error, dynamic, share},
    tensor::byte_len,
};

/// Rows that the gradient decodes at a time, and columns that a thread adds up.
const BAND: usize = 64;
const SPAN: usize = 512;

/// A module's weight: an operator, and how it is stored.
#[derive(Clone, Debug)]
pub(super) struct Matrix {
    /// The module.
    pub(super) stem: String,
    /// What multiplies.
    pub(super) operator: Arc<dyn Operator>,
    /// Bits, group and mode; `None` for full precision.
    pub(super) facts: Option<Facts>,
    /// Bytes of its parts.
    pub(super) size: usize,
}

impl Matrix {
    /// A matrix over its parts, in the scheme's order.
    pub(super) fn new(Recognized { scheme, weight }: Recognized, parts: Vec<Bytes>, quantized: bool) -> Self {
        let (stem, facts) = (weight.stem.clone(), quantized.then(|| scheme.facts()));
        let size = parts.iter().map(|part| part.len()).sum();
        let operator: Arc<dyn Operator> = match scheme.operator(&weight, &parts) {
            Some(operator) => operator,
            None => Arc::new(Decoded::new(scheme, weight, parts)),
        };
        Self { stem, operator, facts, size }
    }

    fn wrong(&self, why: String) -> Error {
        Error::Lengths { layer: self.stem.clone(), why }
    }
}

/// A linear layer, quantized or not; cloning shares the weight.
///
/// ```
/// use quantfs::{
///     quant::Weight,
///     runtime::{Arithmetic, QuantizedLinear, dynamic},
///     tensor::Float,
/// };
///
/// // Two rows of three columns, quantized in memory. `Weights::linear` gives one over a mapping.
/// let weight = Weight { stem: "up".into(), float: Float::F32, shape: vec![2, 3] };
/// let data: Vec<u8> = [127f32, 0.0, -64.0, 1.0, 2.0, 127.0].iter().flat_map(|v| v.to_le_bytes()).collect();
/// let up = QuantizedLinear::quantize(&dynamic::int8(), weight, &data)?.with_arithmetic(Arithmetic::Exact);
/// assert_eq!(up.dequantize(), [127.0, 0.0, -64.0, 1.0, 2.0, 127.0]);
///
/// // One input, or as many as the slices hold.
/// let mut y = [0.0; 2];
/// up.forward(&[1.0, 1.0, 0.0], &mut y)?;
/// assert_eq!(y, [127.0, 3.0]);
/// let mut ys = [0.0; 4];
/// up.forward_batch(&[1.0, 0.0, 0.0, 0.0, 0.0, 1.0], &mut ys)?;
/// assert_eq!(ys, [127.0, 1.0, -64.0, 127.0]);
///
/// // The gradient with respect to the input.
/// let mut gradient = [0.0; 3];
/// up.backward_input(&[1.0, 10.0], &mut gradient)?;
/// assert_eq!(gradient, [137.0, 20.0, 1206.0]);
/// # Ok::<(), quantfs::runtime::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct QuantizedLinear {
    matrix: Matrix,
    bias: Option<Arc<[f32]>>,
    arithmetic: Arithmetic,
}

impl QuantizedLinear {
    pub(super) fn new(matrix: Matrix, bias: Option<Vec<f32>>) -> Self {
        Self { matrix, bias: bias.map(Into::into), arithmetic: Arithmetic::default() }
    }

    /// A layer without bias, quantized in memory from a matrix that belongs to no directory. `data` is the
    /// weight's elements, row-major and little endian.
    ///
    /// # Errors
    /// A shape that the scheme cannot store, data of another length.
    pub fn quantize(scheme: &Arc<dyn Scheme>, weight: Weight, data: &[u8]) -> Result<Self, Error> {
        let (stem, shape) = (weight.stem.clone(), &weight.shape);
        let unsupported = |Unsupported(why)| Error::Unsupported { layer: stem.clone(), why };
        if shape.len() > 2 {
            let why =
                format!("it has shape {shape:?}, and a layer is one matrix: quantize those of a stack one by one");
            return Err(unsupported(Unsupported(why)));
        }
        let needed = byte_len(weight.float.dtype(), shape);
        if needed != Some(data.len()) {
            let takes = needed.map_or("more than can be counted".to_owned(), |n| n.to_string());
            let why = format!("{} bytes were given; its shape {shape:?} takes {takes}", data.len());
            return Err(Error::Lengths { layer: stem, why });
        }
        let parts = dynamic::encode(&**scheme, &weight, data);
        let parts = parts.map_err(unsupported)?;
        let found = Recognized { scheme: Arc::clone(scheme), weight };
        Ok(Self::new(Matrix::new(found, parts, true), None))
    }

    /// The same layer with another arithmetic of its calls.
    #[must_use]
    pub fn with_arithmetic(self, arithmetic: Arithmetic) -> Self {
        Self { arithmetic, ..self }
    }

    /// How its calls compute.
    #[must_use]
    pub fn arithmetic(&self) -> Arithmetic {
        self.arithmetic
    }

    /// The module's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.matrix.stem
    }

    /// Outputs.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.matrix.operator.rows()
    }

    /// Inputs.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.matrix.operator.cols()
    }

    /// Whether the weight is stored in codes.
    #[must_use]
    pub fn is_quantized(&self) -> bool {
        self.matrix.facts.is_some()
    }

    /// Bits, group and mode; `None` for full precision.
    #[must_use]
    pub fn facts(&self) -> Option<&Facts> {
        self.matrix.facts.as_ref()
    }

    /// Bytes of the weight as it is stored, all parts together.
    #[must_use]
    pub fn byte_len(&self) -> usize {
        self.matrix.size
    }

    /// The bias, where there is one.
    #[must_use]
    pub fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }

    /// One input of [`cols`](Self::cols) to [`rows`](Self::rows) outputs.
    ///
    /// # Errors
    /// Slices of other lengths.
    pub fn forward(&self, x: &[f32], y: &mut [f32]) -> Result<(), Error> {
        self.check(1, x.len(), y.len())?;
        self.compute(self.arithmetic, x, y);
        Ok(())
    }

    /// Any number of inputs, `x` `[inputs, cols]` and `y` `[inputs, rows]`, row-major.
    ///
    /// # Errors
    /// Slices that are not as many whole inputs and outputs.
    pub fn forward_batch(&self, x: &[f32], y: &mut [f32]) -> Result<(), Error> {
        self.forward_with(self.arithmetic, x, y)
    }

    /// The outputs of several layers of the same inputs, as [`forward_batch`](Self::forward_batch) gives them. One
    /// input is shared out to threads for all of them together, which spares waiting between them.
    ///
    /// # Errors
    /// Layers of different columns, inputs that are no whole ones of them.
    pub fn forward_together<const N: usize>(layers: [&Self; N], x: &[f32]) -> Result<[Vec<f32>; N], Error> {
        let mut outputs = layers.map(|layer| vec![0.0; layer.inputs(x.len()) * layer.rows()]);
        for (layer, y) in layers.iter().zip(&outputs) {
            layer.check(layer.inputs(x.len()), x.len(), y.len())?;
            if layer.cols() != layers[0].cols() {
                let why =
                    format!("it takes {} columns, {} beside it {}", layer.cols(), layers[0].name(), layers[0].cols());
                return Err(layer.matrix.wrong(why));
            }
        }
        if layers.iter().all(|layer| layer.cols() == x.len()) {
            let pairs = layers.into_iter().zip(outputs.iter_mut().map(Vec::as_mut_slice));
            share::multiply_together(pairs.map(|(l, y)| (&*l.matrix.operator, l.arithmetic, y)), x);
            layers.iter().zip(&mut outputs).for_each(|(layer, y)| layer.add_bias(y));
        } else {
            layers.iter().zip(&mut outputs).for_each(|(layer, y)| layer.compute(layer.arithmetic, x, y));
        }
        Ok(outputs)
    }

    /// As [`forward_batch`](Self::forward_batch), with the arithmetic of this call.
    ///
    /// # Errors
    /// As [`forward_batch`](Self::forward_batch).
    pub fn forward_with(&self, arithmetic: Arithmetic, x: &[f32], y: &mut [f32]) -> Result<(), Error> {
        self.check(self.inputs(x.len()), x.len(), y.len())?;
        self.compute(arithmetic, x, y);
        Ok(())
    }

    /// As [`forward_batch`](Self::forward_batch), with bf16 inputs and outputs; computes in f32 and
    /// rounds once, half to even.
    ///
    /// ```
    /// use quantfs::{half::bf16, runtime::Weights};
    /// # let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/mlx_lm/llama_q4_g64");
    /// let up = Weights::open(dir)?.linear("model.layers.0.mlp.up_proj")?;
    /// let (x, mut y) = (vec![bf16::ONE; 64], vec![bf16::ZERO; 128]);
    /// up.forward_bf16(&x, &mut y)?;
    /// # Ok::<(), quantfs::runtime::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`forward_batch`](Self::forward_batch).
    pub fn forward_bf16(&self, x: &[bf16], y: &mut [bf16]) -> Result<(), Error> {
        self.check(self.inputs(x.len()), x.len(), y.len())?;
        let wide: Vec<f32> = x.iter().map(|x| x.to_f32()).collect();
        let mut out = vec![0.0; y.len()];
        self.compute(self.arithmetic, &wide, &mut out);
        y.iter_mut().zip(&out).for_each(|(y, x)| *y = bf16::from_f32(*x));
        Ok(())
    }

    /// The weight's values, `[rows, cols]`, as the format's reference decoder gives them.
    #[must_use]
    pub fn dequantize(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.rows() * self.cols()];
        share::decode(&*self.matrix.operator, 0..self.rows(), &mut values);
        values
    }

    /// The gradient with respect to the input: `grad_x = grad_y W`, for any number of inputs, in f32
    /// over the decoded weight, added up in the order of the rows.
    ///
    /// # Errors
    /// Slices that are not as many whole outputs and inputs.
    pub fn backward_input(&self, grad_y: &[f32], grad_x: &mut [f32]) -> Result<(), Error> {
        let (rows, cols) = (self.rows(), self.cols());
        self.check(self.inputs(grad_x.len()), grad_x.len(), grad_y.len())?;
        grad_x.fill(0.0);
        if cols == 0 {
            return Ok(());
        }
        let mut band = vec![0.0; BAND * cols];
        for start in (0..rows).step_by(BAND) {
            let count = BAND.min(rows - start);
            let values = &mut band[..count * cols];
            share::decode(&*self.matrix.operator, start..start + count, values);
            let gradients = grad_x.par_chunks_mut(cols).zip(grad_y.par_chunks(rows));
            gradients.for_each(|(gx, gy)| add_rows(&gy[start..start + count], values, gx));
        }
        Ok(())
    }

    fn inputs(&self, x: usize) -> usize {
        x / self.cols().max(1)
    }

    fn check(&self, inputs: usize, x: usize, y: usize) -> Result<(), Error> {
        let (rows, cols) = (self.rows(), self.cols());
        if inputs.checked_mul(cols) == Some(x) && inputs.checked_mul(rows) == Some(y) {
            return Ok(());
        }
        let times = if inputs == 1 { "" } else { ", or as many times both" };
        Err(self
            .matrix
            .wrong(format!("{x} elements of inputs and {y} of outputs do not fit; it takes {cols} to {rows}{times}")))
    }

    fn compute(&self, arithmetic: Arithmetic, x: &[f32], y: &mut [f32]) {
        share::multiply(&*self.matrix.operator, x, arithmetic, y);
        self.add_bias(y);
    }

    fn add_bias(&self, y: &mut [f32]) {
        if let Some(bias) = &self.bias {
            // Of no rows there is nothing to add.
            for y in y.chunks_exact_mut(bias.len().max(1)) {
                y.iter_mut().zip(&**bias).for_each(|(y, b)| *y += b);
            }
        }
    }
}

/// Adds each row times its factor; the columns are shared out, the rows are not.
fn add_rows(factors: &[f32], rows: &[f32], out: &mut [f32]) {
    let cols = out.len();
    out.par_chunks_mut(SPAN).enumerate().for_each(|(i, out)| {
        for (factor, row) in factors.iter().zip(rows.chunks_exact(cols)) {
            let row = &row[i * SPAN..i * SPAN + out.len()];
            out.iter_mut().zip(row).for_each(|(out, w)| *out += factor * w);
        }
    });
}
