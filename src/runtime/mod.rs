//! The runtime: quantized layers that compute where they lie, and decoder models that run on them.
//!
//! Opens a directory of weights, whoever wrote it: mounted, exported, or mlx_lm's. Knows containers,
//! schemes and operators; knows no plan, no view and no mount.
//!
//! A whole program, which README shows, too:
//!
//! ```
//! # #[cfg(not(feature = "tokens"))]
//! # fn main() {}
//! # #[cfg(feature = "tokens")]
//! use quantfs::runtime::{
//!     Arithmetic, Weights,
//!     model::{Decoder, Sampler, Tokens},
//! };
//!
//! # #[cfg(feature = "tokens")]
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let dir = std::env::args().nth(1).unwrap_or_else(|| "/tmp/q4".to_owned());
//! #   let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/mlx_lm/llama_q4_g64");
//!
//!     // A layer computes where it lies: opening maps the files and reads no weight.
//!     let weights = Weights::open(&dir)?;
//!     let up = weights.linear("model.layers.0.mlp.up_proj")?;
//!     let (x, mut y) = (vec![1.0; up.cols()], vec![0.0; up.rows()]);
//!     up.forward(&x, &mut y)?; // one input; forward_batch for many
//!     println!("{} takes {} to {}, stored as {:?}; {}", up.name(), up.cols(), up.rows(), up.facts(), y[0]);
//!
//!     // A decoder on such layers writes on from a prompt.
//!     let (decoder, tokens) = (Decoder::open(&dir, Arithmetic::default())?, Tokens::open(&dir)?);
//!     let (mut cache, mut text) = (decoder.cache(), tokens.stream());
//!     let mut sampler = Sampler::new(0.0, 0)?; // temperature 0: the likeliest token
//!     let mut logits = decoder.next(&tokens.prompt("the file system")?, &mut cache)?;
//!     for _ in 0..32 {
//!         let token = u32::try_from(sampler.sample(&logits))?;
//!         if decoder.config().eos.contains(&token) {
//!             break;
//!         }
//!         print!("{}", text.push(token)?);
//!         logits = decoder.next(&[token], &mut cache)?;
//!     }
//!     println!("{}", text.finish()?);
//! #   assert_eq!((cache.positions(), up.facts().map(|facts| facts.bits)), (35, Some(4)));
//! #   assert!(y[0] != 0.0);
//!     Ok(())
//! }
//! ```
//!
//! What else there is, on a dense directory:
//!
//! ```
//! use quantfs::runtime::{Arithmetic, Weights, dynamic, quantize_dynamic};
//! # let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/mlx_lm/llama_src");
//! let mut weights = Weights::open(dir)?;
//! let audit = weights.audit([("model.layers.0.mlp.up_proj.weight", &[128, 64][..])]);
//! assert!(audit.is_sound(), "{audit}");
//!
//! // A layer over the mapping, quantized or dense: nothing is copied.
//! let up = weights.linear("model.layers.0.mlp.up_proj")?.with_arithmetic(Arithmetic::Exact);
//! let (x, mut y) = (vec![1.0; up.cols()], vec![0.0; up.rows()]);
//! up.forward(&x, &mut y)?;
//! assert!((y[0] - up.dequantize()[..64].iter().sum::<f32>()).abs() < 1e-5);
//!
//! // A dense directory's linears quantized in memory.
//! let replaced = quantize_dynamic(&weights, &dynamic::int8(), dynamic::is_linear);
//! weights.apply(replaced)?;
//! assert!(weights.linear("model.layers.0.mlp.up_proj")?.is_quantized());
//!
//! // Rows of a table by id, and one's own tensors.
//! let table = weights.embedding("model.embed_tokens")?;
//! table.forward(&[3], &mut vec![0.0; table.cols()])?;
//! assert_eq!(weights.tensor("model.norm.weight")?.to_f32()?.len(), 64);
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
mod stored;
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
#[cfg(all(feature = "cli", feature = "fuse"))]
pub(crate) use mmap::map;
pub use tensor::Tensor;
pub use weights::Weights;
pub(crate) use {awake::keep_awake, memory::Memory};
