//! Integration tests, one binary: a module for each subject.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[cfg(feature = "cli")]
mod bench;
mod bnb;
mod bulk;
mod cache;
#[cfg(all(feature = "cli", feature = "fuse"))]
mod cache_dir;
#[path = "../common/mod.rs"]
mod common;
mod containers;
mod ct;
#[cfg(all(feature = "cli", feature = "fuse"))]
mod daemon;
#[cfg(feature = "cli")]
mod decode;
mod dense;
mod dialects;
mod errors;
#[cfg(target_os = "linux")]
mod footprint;
mod formats;
mod golden;
mod gptq;
mod gptq_views;
mod hostile;
mod importance;
mod kernels;
mod layers;
mod living;
mod methods;
mod models;
#[cfg(feature = "fuse")]
mod mount;
mod nbits;
mod onnx;
mod onnx_hostile;
mod operators;
mod overlays;
mod pipelines;
mod plan;
#[cfg(feature = "cli")]
mod readme;
mod reads;
#[cfg(feature = "cli")]
mod recipes;
mod report;
mod runtime;
mod sources;
mod store;
mod targets;
mod views;
