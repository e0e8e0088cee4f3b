//! Dense linears quantized in memory, for programs that start from a dense directory.
//!
//! [`quantize_dynamic`] makes the quantized weights, [`Weights::apply`] puts them in the place of the
//! dense ones: from then on [`Weights::linear`] gives quantized layers. The tensors stay as they are.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use rayon::prelude::*;

use crate::{
    quant::{
        Axis, Banding, Content, Part, Recognized, Scheme, Unsupported, Weight,
        format::sym::{Per, Sym},
        operator::Bytes,
    },
    runtime::{Error, Tensor, Weights, memory::Memory},
    tensor::{Float, Rows, TensorInfo},
};

/// Elements that a worker encodes at a time.
const BAND: usize = 1 << 16;

/// Quantized weights by module, ready to be applied.
#[derive(Clone, Debug, Default)]
pub struct Replaced {
    pub(super) layers: BTreeMap<String, Replacement>,
    kept: Vec<(String, String)>,
}

/// A weight as a scheme made it.
#[derive(Clone, Debug)]
pub(super) struct Replacement {
    pub(super) found: Recognized,
    /// Its parts, in the scheme's order.
    pub(super) parts: Vec<Bytes>,
}

impl Replaced {
    /// The modules that were quantized, sorted.
    pub fn modules(&self) -> impl Iterator<Item = &str> {
        self.layers.keys().map(String::as_str)
    }

    /// The modules that the filter took and the scheme cannot store, with the reason.
    #[must_use]
    pub fn kept(&self) -> &[(String, String)] {
        &self.kept
    }
}

/// The default: symmetric int8, a scale for each row.
#[must_use]
pub fn int8() -> Arc<dyn Scheme> {
    Arc::new(Sym::new(Per::Row))
}

/// The default filter: matrices that are not tables of embeddings by their name.
#[must_use]
pub fn is_linear(stem: &str, weight: &TensorInfo) -> bool {
    let last = stem.rsplit('.').next().unwrap_or(stem);
    weight.shape.len() == 2 && !last.contains("embed") && !matches!(last, "wte" | "wpe")
}

/// Quantizes in memory, with a scheme, the floating weights that the filter takes (module, info).
///
/// ```
/// use std::sync::Arc;
/// use quantfs::{quant::format::matmul_nbits::{Block, MatMulNBits}, runtime::{Weights, quantize_dynamic}};
/// # use quantfs::quant::{FORMATS, Scheme};
/// # use safetensors::{Dtype, tensor::TensorView};
/// # let dir = tempfile::tempdir()?;
/// # let up = TensorView::new(Dtype::BF16, vec![2, 64], &[0; 256])?;
/// # safetensors::serialize_to_file([("up.weight", up)], None, &dir.path().join("model.safetensors"))?;
/// let mut weights = Weights::open(dir.path())?;
/// let scheme: Arc<dyn Scheme> = Arc::new(MatMulNBits::new(4, Block::Of(32), true)?);
/// let replaced = quantize_dynamic(&weights, &scheme, |stem, _| !stem.ends_with("lm_head"));
/// assert_eq!(replaced.modules().collect::<Vec<_>>(), ["up"]);
/// weights.apply(replaced)?;
///
/// // Any scheme of the table will do.
/// let mlx = FORMATS.iter().find(|format| format.name() == "mlx").ok_or("no mlx")?;
/// let eight = mlx.bind("8bit", &["g32", "rtn", "cpu"])?.ok_or("no scheme")?;
/// let replaced = quantize_dynamic(&weights, &eight, |_, _| true);
/// # assert_eq!(replaced.kept().len(), 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// A weight that the scheme cannot store (rows that are no whole groups) is kept, and listed. Reads the
/// weights; those of modules that are quantized already are not asked about.
#[must_use]
pub fn quantize_dynamic(
    weights: &Weights,
    scheme: &Arc<dyn Scheme>,
    filter: impl Fn(&str, &TensorInfo) -> bool,
) -> Replaced {
    let mut replaced = Replaced::default();
    for (stem, tensor, float) in weights.dense_weights() {
        if !filter(stem, &tensor.info) {
            continue;
        }
        match replacement(scheme, stem, tensor, float) {
            Ok(made) => drop(replaced.layers.insert(stem.to_owned(), made)),
            Err(Unsupported(why)) => replaced.kept.push((stem.to_owned(), why)),
        }
    }
    replaced
}

fn replacement(
    scheme: &Arc<dyn Scheme>,
    stem: &str,
    tensor: &Tensor,
    float: Float,
) -> Result<Replacement, Unsupported> {
    let weight = Weight { stem: stem.to_owned(), float, shape: tensor.info.shape.clone() };
    let parts = encode(&**scheme, &weight, &tensor.bytes)?;
    Ok(Replacement { found: Recognized { scheme: Arc::clone(scheme), weight }, parts })
}

/// All parts of a weight, its bands shared out to threads.
pub(super) fn encode(scheme: &dyn Scheme, weight: &Weight, data: &[u8]) -> Result<Vec<Bytes>, Unsupported> {
    let parts = scheme.parts(weight)?;
    let bands = bands(scheme.banding(weight), weight);
    let mut made = parts.iter().map(memory).collect::<Result<Vec<_>, _>>()?;
    let mut outs: Vec<Vec<&mut [u8]>> = bands.iter().map(|_| vec![]).collect();
    let (banding, extent) = (scheme.banding(weight), scheme.banding(weight).extent(weight));
    for (part, mut rest) in parts.iter().zip(made.iter_mut().map(Memory::bytes)) {
        if part.is_encoded() {
            for (band, out) in bands.iter().zip(&mut outs) {
                let len = part.range(banding, extent, band.clone()).len();
                out.extend(rest.split_off_mut(..len));
            }
        }
    }
    let informed = scheme.survey(weight).map(|survey| {
        let looks: Vec<_> =
            bands.par_iter().map(|band| survey.look(rows(banding, weight, data, band.clone()))).collect();
        survey.conclude(&looks)
    });
    let scheme = informed.as_deref().unwrap_or(scheme);
    bands
        .into_par_iter()
        .zip(outs)
        .for_each(|(band, mut out)| scheme.encode(rows(banding, weight, data, band), &mut out));
    Ok(made.into_iter().map(|memory| Bytes::all(Arc::new(memory))).collect())
}

/// Memory for a part, with the bytes of a constant in it.
fn memory(part: &Part) -> Result<Memory, Unsupported> {
    let mut memory = Memory::zeros(part.len()).map_err(|e| Unsupported(format!("no memory for it: {e}")))?;
    if let Content::Constant(bytes) = &part.content {
        memory.bytes().copy_from_slice(bytes);
    }
    Ok(memory)
}

/// Bands of whole granules. A band of columns is no run of the elements: there, one band is all.
fn bands(banding: Banding, weight: &Weight) -> Vec<Range<usize>> {
    let extent = banding.extent(weight);
    let step = match banding.axis {
        Axis::Flat => BAND.next_multiple_of(banding.granule),
        Axis::Rows => (BAND / weight.cols().max(1)).max(1).next_multiple_of(banding.granule),
        Axis::Columns => extent.max(1),
    };
    (0..extent).step_by(step).map(|start| start..extent.min(start + step)).collect()
}

/// The elements of a band.
fn rows<'a>(banding: Banding, weight: &Weight, data: &'a [u8], band: Range<usize>) -> Rows<'a> {
    let (rows, cols, start) = match banding.axis {
        Axis::Flat => (1, band.len(), band.start),
        Axis::Rows => (band.len(), weight.cols(), band.start * weight.cols()),
        Axis::Columns => (weight.rows(), weight.cols(), 0),
    };
    let size = weight.float.size();
    Rows { data: &data[start * size..][..rows * cols * size], float: weight.float, rows, cols }
}

impl Weights {
    /// Puts quantized weights in the place of dense ones, for layers that are made from now on.
    ///
    /// ```
    /// use quantfs::runtime::{Weights, dynamic, quantize_dynamic};
    /// # let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/mlx_lm/llama_src");
    /// let mut weights = Weights::open(dir)?;
    /// let dense = weights.linear("lm_head")?;
    /// weights.apply(quantize_dynamic(&weights, &dynamic::int8(), |module, _| module == "lm_head"))?;
    /// let quantized = weights.linear("lm_head")?;
    /// assert!(quantized.is_quantized() && !dense.is_quantized(), "a layer that was made before stays what it is");
    /// assert!(quantized.byte_len() < dense.byte_len());
    /// # Ok::<(), quantfs::runtime::Error>(())
    /// ```
    ///
    /// # Errors
    /// A module that these weights have not, or have with another shape; nothing is applied then.
    pub fn apply(&mut self, replaced: Replaced) -> Result<(), Error> {
        for (stem, made) in &replaced.layers {
            let dense = self.tensor(&format!("{stem}.weight"))?;
            if dense.info.shape != made.found.weight.shape {
                let (here, there) = (&dense.info.shape, &made.found.weight.shape);
                return Err(dense.wrong(format!("its shape is {here:?}, what replaces it has {there:?}")));
            }
        }
        self.replace(replaced.layers);
        Ok(())
    }
}
