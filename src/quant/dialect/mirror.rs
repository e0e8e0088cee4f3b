//! The dialect of views that change nothing: every tensor dense, under its own name.

use crate::{
    quant::{
        Scheme,
        dialect::{Arranged, Choice, Component, Decided, Dialect, index},
    },
    tensor::{Float, TensorInfo},
};

/// Shows what is there.
#[derive(Debug)]
pub struct Mirror;

/// The one instance.
pub static MIRROR: Mirror = Mirror;

impl Dialect for Mirror {
    fn name(&self) -> &'static str {
        "mirror"
    }

    fn choose(&self, _: &Component<'_>, _: &Arranged, _: &dyn Scheme) -> Choice {
        Choice::Keep("shown as it is".into())
    }

    fn index(&self, _: &Component<'_>, decided: &[Decided<'_>]) -> Vec<u8> {
        index::plain(decided)
    }
}

impl Arranged {
    /// All tensors of a component under their own names, floating ones cast to `cast`.
    pub(super) fn all(component: &Component<'_>, cast: Option<Float>) -> Vec<Self> {
        component.tensors.iter().enumerate().map(|(at, info)| Self::same(at, info, cast)).collect()
    }

    /// A tensor under its own name, cast where it is a floating one.
    pub(crate) fn same(at: usize, info: &TensorInfo, cast: Option<Float>) -> Self {
        let dtype = cast.filter(|_| Float::of(info.dtype).is_some()).map_or(info.dtype, Float::dtype);
        let from = vec![super::Slice::whole(at, info)];
        Self { info: TensorInfo { dtype, ..info.clone() }, from, plus_one: false }
    }
}
