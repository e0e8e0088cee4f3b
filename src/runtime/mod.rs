//! The runtime: quantized layers that compute where they lie, and decoder models that run on them.
//!
//! Opens a directory of weights, whoever wrote it: mounted, exported, or mlx_lm's. Knows containers,
//! schemes and operators; knows no plan, no view and no mount.
//!
//! ```
//! use quantfs::runtime::{Arithmetic, Weights, dynamic, quantize_dynamic};
//! # use safetensors::{Dtype, tensor::TensorView};
//! # let dir = tempfile::tempdir()?;
//! # let values: Vec<u8> = (0..4 * 64u16).flat_map(|i| (f32::from(i % 7) - 3.0).to_le_bytes()).collect();
//! # let up = TensorView::new(Dtype::F32, vec![4, 64], &values)?;
//! # safetensors::serialize_to_file([("mlp.up_proj.weight", up)], None, &dir.path().join("model.safetensors"))?;
//! let mut weights = Weights::open(dir.path())?; // maps every file, reads no weight
//! let audit = weights.audit([("mlp.up_proj.weight", &[4, 64][..])]);
//! assert!(audit.is_sound(), "{audit}");
//!
//! // A layer over the mapping, quantized or dense: nothing is copied.
//! let up = weights.linear("mlp.up_proj")?.with_arithmetic(Arithmetic::Exact);
//! let (x, mut y) = (vec![1.0; up.cols()], vec![0.0; up.rows()]);
//! up.forward(&x, &mut y)?;
//! assert_eq!(y[0], up.dequantize()[..64].iter().sum::<f32>());
//!
//! // A dense directory's linears quantized in memory.
//! let replaced = quantize_dynamic(&weights, &dynamic::int8(), dynamic::is_linear);
//! weights.apply(replaced)?;
//! assert!(weights.linear("mlp.up_proj")?.is_quantized());
//!
//! // Rows of a table by id, and one's own tensors.
//! let table = weights.embedding("mlp.up_proj")?;
//! table.forward(&[3], &mut vec![0.0; table.cols()])?;
//! assert_eq!(weights.tensor("mlp.up_proj.weight")?.to_f32()?.len(), 4 * 64);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod audit;
mod awake;
pub mod dynamic;
mod embedding;
mod error;
mod linear;
mod memory;
mod mmap;
pub mod model;
mod shards;
mod share;
mod tensor;
mod weights;

pub use crate::num::codes::{pack, unpack};
pub use crate::quant::operator::Arithmetic;
pub use crate::tensor::{INT8, UINT8, UINT32};
pub use audit::{Audit, Mismatch};
pub use dynamic::quantize_dynamic;
pub use embedding::Embedding;
pub use error::Error;
pub use linear::QuantizedLinear;
pub use tensor::Tensor;
pub use weights::Weights;
pub(crate) use {awake::keep_awake, memory::Memory, mmap::map};
