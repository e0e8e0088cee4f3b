//! What several test modules share: headers to parse, sources that fail, the promises of a source, the table of kernels, views read whole.

pub(crate) mod faults;
pub(crate) mod headers;
pub(crate) mod memory;
pub(crate) mod promises;
pub(crate) mod tables;
pub(crate) mod views;
pub(crate) mod written;
