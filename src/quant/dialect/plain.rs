//! The dialect of loaders that know no config: names as they are, linear layers quantized, the manifest and
//! the tensors tell how.

use crate::quant::{
    Scheme,
    dialect::{Arranged, Choice, Component, Dialect, hf},
};

/// Readers that look at tensors alone.
#[derive(Debug)]
pub struct Plain;

/// The one instance.
pub static PLAIN: Plain = Plain;

impl Dialect for Plain {
    fn name(&self) -> &'static str {
        "plain"
    }

    fn choose(&self, component: &Component<'_>, tensor: &Arranged, _: &dyn Scheme) -> Choice {
        hf::choose(component, tensor)
    }
}
