//! The dialect of onnxruntime: which weights of a model its quantizer takes, and what it calls them.
//!
//! In an ONNX model these are the second factors of `MatMul` nodes, `[in, out]`, whose transpose is
//! quantized; the rules and names are those of `MatMulNBitsQuantizer` of onnxruntime 1.31.1, which
//! leaves Gemm as it is. (It also takes stacks `[1, in, out]`, in a chain of seven nodes; here they stay.)
//! In safetensors files they are those of linear layers, and keep their names.

use crate::{
    container::onnx::External,
    quant::{
        Facts, Part, Scheme,
        dialect::{Arranged, Arrangement, Choice, Component, Dialect, Slice, hf},
    },
    tensor::{Float, TensorInfo},
};

/// Loaders of the `onnx` format.
#[derive(Debug)]
pub struct Onnx;

/// The one instance.
pub static ONNX: Onnx = Onnx;

impl Dialect for Onnx {
    fn name(&self) -> &'static str {
        "onnx"
    }

    fn reads_graphs(&self) -> bool {
        true
    }

    fn stem<'t>(&self, component: &Component<'_>, tensor: &'t Arranged) -> Option<&'t str> {
        if component.graph.is_some() { Some(&tensor.info.name) } else { tensor.module() }
    }

    fn arrange(&self, component: &Component<'_>) -> Result<Arrangement, String> {
        let Some(graph) = component.graph else {
            return Ok(Arrangement { tensors: Arranged::all(component, component.dtype), ..Arrangement::default() });
        };
        let all = graph.tensors.iter().zip(component.tensors).enumerate();
        let tensors = all.map(|(at, (tensor, info))| arranged(at, tensor, info)).collect();
        let warnings = component.dtype.map(|_| "--dtype changes no types within a model".to_owned());
        Ok(Arrangement { tensors, dropped: vec![], warnings: warnings.into_iter().collect() })
    }

    fn choose(&self, component: &Component<'_>, tensor: &Arranged, default: &dyn Scheme) -> Choice {
        match component.graph {
            Some(graph) => {
                let factor = tensor.from.first().map(|slice| &graph.tensors[slice.tensor]);
                let taken = |name: &str| graph.is_taken(name);
                let why = factor.map_or(Some("it has no source".to_owned()), |f| why_dense(f, default, taken));
                why.map_or(Choice::Default, Choice::Never)
            }
            None => hf::choose(component, tensor),
        }
    }
}

/// A factor as its transpose, anything else as it lies.
fn arranged(at: usize, tensor: &External, info: &TensorInfo) -> Arranged {
    let [k, n] = tensor.shape[..] else { return Arranged::same(at, info, None) };
    if tensor.products == 0 || Float::of(info.dtype).is_none() {
        return Arranged::same(at, info, None);
    }
    let from = vec![Slice { tensor: at, start: 0, rows: n, row_stride: 1, cols: k, col_stride: n }];
    Arranged { info: TensorInfo { shape: vec![n, k], ..info.clone() }, from, plus_one: false }
}

/// Why the quantizer leaves a tensor of a model as it is, or would write a model that nobody can load.
fn why_dense(tensor: &External, scheme: &dyn Scheme, taken: impl Fn(&str) -> bool) -> Option<String> {
    if tensor.products == 0 {
        return Some("not the second factor of a MatMul".to_owned());
    }
    let Some(float) = tensor.dtype().and_then(Float::of) else {
        return Some(format!("ONNX's type {} is not quantized", tensor.element));
    };
    let [k, n] = &tensor.shape[..] else { return Some(format!("{}-D, not 2-D", tensor.shape.len())) };
    let weight = crate::quant::Weight { stem: tensor.name.clone(), float, shape: vec![*n, *k] };
    let parts = scheme.parts(&weight).unwrap_or_default();
    let mut names = parts.iter().map(|part| part_name(&tensor.name, part, &scheme.facts()));
    names.find(|name| taken(name)).map(|name| format!("the model has a {name} already"))
}

/// What the quantizer calls a part of a factor.
#[must_use]
pub fn part_name(factor: &str, part: &Part, facts: &Facts) -> String {
    match part.suffix {
        ".weight" => format!("{factor}_Q{}", facts.bits),
        other => format!("{factor}_{}", other.trim_start_matches('.')),
    }
}
