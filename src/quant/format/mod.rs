//! The registry of formats: one file a format, one line here.

use crate::quant::Format;

/// All formats, in the order of the table.
pub static FORMATS: &[&dyn Format] = &[];
