//! The registry of formats: one file a format, one line here.
//!
//! Beside the formats lie the schemes that several of them share: [`affine`], [`microscaling`], and
//! [`cast`], which is no format of its own but what the plan gives to dense tensors.

pub mod affine;
pub mod cast;
pub mod microscaling;
pub mod mlx;
pub mod source;
pub mod zimage;

use crate::quant::{Format, Unsupported, Weight};

/// All formats, in the order of the table.
pub static FORMATS: &[&dyn Format] = &[&mlx::Mlx, &zimage::Zimage, &source::Source];

/// Revision of all encodings together: it goes up when the bytes of any scheme change.
const ENCODING: u32 = 1;

/// Refuses what no grouped packing can hold: vectors, empty weights, rows that are no whole groups.
fn check_groups(weight: &Weight, group: usize) -> Result<(), Unsupported> {
    let cols = weight.cols();
    if weight.shape.len() < 2 {
        return Err(Unsupported(format!(
            "it has shape {:?}; only matrices and stacks of them are quantized",
            weight.shape
        )));
    }
    if weight.shape.contains(&0) {
        return Err(Unsupported(format!("it has shape {:?} and no elements", weight.shape)));
    }
    if !cols.is_multiple_of(group) {
        return Err(Unsupported(format!("its rows of {cols} elements are no whole groups of {group}")));
    }
    Ok(())
}

/// A weight's shape with another last dimension.
fn with_cols(weight: &Weight, cols: usize) -> Vec<usize> {
    let mut shape = weight.shape.clone();
    if let Some(last) = shape.last_mut() {
        *last = cols;
    }
    shape
}

/// A scheme or a combination of options that a format does not have.
fn no_such(format: &str, scheme: &str, options: &[&str]) -> Unsupported {
    Unsupported(format!("{format} has no scheme {scheme} with the options {options:?}"))
}

/// The size in a group's option word, `g64`.
fn group_size(word: &str) -> Option<usize> {
    word.strip_prefix('g')?.parse().ok()
}
