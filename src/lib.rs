//! quantfs mounts a full-precision model directory and shows it quantized.
//!
//! The crate is a house of floors; a module imports only from lower floors, never from a sibling
//! (`tests/tidy.rs` checks it):
//!
//! | floor | modules | what they know |
//! | --- | --- | --- |
//! | 0 | [`num`], [`tensor`] | words: no verbs, no I/O |
//! | 1 | [`cache`], [`container`], [`kernel`], [`source`], [`store`] | leaves: floor 0 and nothing beside them |
//! | 2 | [`quant`] | quantization: rows in, bytes out |
//! | 3 | [`plan`], [`runtime`] | headers and a spec become files, extents and weights; quantized layers that compute where they lie |
//! | 4 | [`view`] | an immutable tree, read at an offset |
//! | 5 | `fuse`, [`bulk`] | the kernel's protocol; what reads whole views |
//! | 6 | `cli` | one file a verb |

/// `bf16` and `f16`, of the version that is in signatures here.
pub use half;

pub mod num;
pub mod tensor;

pub mod cache;
pub mod container;
pub mod kernel;
pub mod source;
pub mod store;

pub mod quant;

pub mod plan;
pub mod runtime;

pub mod view;

pub mod bulk;
#[cfg(feature = "fuse")]
pub mod fuse;

#[cfg(feature = "cli")]
pub mod cli;
