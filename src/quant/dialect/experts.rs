//! Fused experts as the linear layers they are.
//!
//! Some snapshots hold all experts of a layer in one tensor: `X.experts.gate_up_proj` `[experts, 2 * inner, hidden]` or, for models
//! that multiply from the left, `[experts, hidden, 2 * inner]`, and `X.experts.down_proj` likewise. Loaders of quantized
//! checkpoints know experts one by one: `X.experts.3.gate_proj.weight`. Which way round a tensor lies is told by the
//! config's `hidden_size`; where that fits both ways, by the model's name.

use serde_json::Value;

use crate::{
    quant::dialect::{Arranged, Arrangement, Component, Slice},
    tensor::{Float, TensorInfo},
};

/// Models whose experts multiply from the left: their matrices are `[in, out]`.
const FROM_THE_LEFT: [&str; 6] =
    ["llama4", "llama4_text", "qwen3_vl_moe", "qwen3_vl_moe_text", "qwen3_omni_moe", "gpt_oss"];

/// Models that store the rows of gate and up in turn: no loader has experts of theirs one by one.
const IN_TURN: [&str; 1] = ["gpt_oss"];

/// The tensors of a component under their own names, fused experts taken apart.
pub(super) fn apart(component: &Component<'_>) -> Arrangement {
    let mut tensors = vec![];
    for (at, info) in component.tensors.iter().enumerate() {
        match fused(component, info) {
            Some(fused) => tensors.extend(fused.layers(at, info, component.dtype)),
            None => tensors.push(Arranged::same(at, info, component.dtype)),
        }
    }
    Arrangement { tensors, ..Arrangement::default() }
}

/// How the experts of one tensor lie.
struct Fused<'a> {
    prefix: &'a str,
    /// The layers whose outputs lie one after the other.
    layers: &'static [&'static str],
    experts: usize,
    outputs: usize,
    inputs: usize,
    from_the_left: bool,
}

fn fused<'a>(component: &Component<'_>, info: &'a TensorInfo) -> Option<Fused<'a>> {
    let (prefix, last) = info.name.rsplit_once('.')?;
    let layers: &[&str] = match last {
        "gate_up_proj" => &["gate_proj", "up_proj"],
        "down_proj" => &["down_proj"],
        _ => return None,
    };
    let [experts, a, b] = info.shape[..] else { return None };
    Float::of(info.dtype)?;
    let config = component.config?;
    let text = config.get("text_config").unwrap_or(config);
    let says = |key: &str| text.get(key).or_else(|| config.get(key));
    let hidden = usize::try_from(says("hidden_size")?.as_u64()?).ok()?;
    let names = [config, text].map(|c| c.get("model_type").and_then(Value::as_str).unwrap_or_default());
    if !prefix.ends_with("experts") || names.iter().any(|name| IN_TURN.contains(name)) {
        return None;
    }
    // Of a layer into `hidden` the inputs are the inner size; of one out of it they are `hidden`.
    let (upright, left) = if last == "down_proj" { (a == hidden, b == hidden) } else { (b == hidden, a == hidden) };
    let from_the_left = match (upright, left) {
        (true, true) => names.iter().any(|name| FROM_THE_LEFT.contains(name)),
        (false, false) => return None,
        (_, left) => left,
    };
    let (outputs, inputs) = if from_the_left { (b, a) } else { (a, b) };
    let whole = outputs.is_multiple_of(layers.len()) && info.elements().is_some_and(|n| n > 0);
    whole.then_some(Fused { prefix, layers, experts, outputs, inputs, from_the_left })
}

impl Fused<'_> {
    fn layers(&self, at: usize, info: &TensorInfo, cast: Option<Float>) -> Vec<Arranged> {
        let rows = self.outputs / self.layers.len();
        let dtype = cast.map_or(info.dtype, Float::dtype);
        let layer = |expert: usize, number: usize| {
            let start = expert * self.outputs * self.inputs;
            let slice = if self.from_the_left {
                let (row_stride, col_stride) = (1, self.outputs);
                Slice { tensor: at, start: start + number * rows, rows, row_stride, cols: self.inputs, col_stride }
            } else {
                let first = start + number * rows * self.inputs;
                Slice::run(at, first..first + rows * self.inputs)
            };
            let name = format!("{}.{expert}.{}.weight", self.prefix, self.layers[number]);
            let info = TensorInfo { name, dtype, shape: vec![rows, self.inputs] };
            Arranged { info, from: vec![slice], plus_one: false }
        };
        let all = (0..self.experts).flat_map(|expert| (0..self.layers.len()).map(move |number| (expert, number)));
        all.map(|(expert, number)| layer(expert, number)).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::tensor::Dtype;

    fn info(name: &str, shape: &[usize]) -> TensorInfo {
        TensorInfo { name: name.into(), dtype: Dtype::BF16, shape: shape.to_vec() }
    }

    fn arranged(config: &Value, tensors: &[TensorInfo]) -> Vec<Arranged> {
        let component = Component {
            dir: "",
            set: "model",
            tensors,
            config: Some(config),
            generation_config: None,
            dtype: None,
            mixed: None,
            graph: None,
        };
        apart(&component).tensors
    }

    /// The source elements of a tensor, by the definition of a slice.
    fn elements(tensor: &Arranged) -> Vec<usize> {
        let of = |s: &Slice| {
            let at = |r: usize, c: usize| s.start + r * s.row_stride + c * s.col_stride;
            (0..s.rows).flat_map(|r| (0..s.cols).map(move |c| at(r, c))).collect::<Vec<_>>()
        };
        tensor.from.iter().flat_map(of).collect()
    }

    #[test]
    fn experts_are_taken_apart_whichever_way_they_lie() {
        let config = json!({"model_type": "qwen3_5_moe", "text_config": {"hidden_size": 4}});
        let (up, down) = ("l.mlp.experts.gate_up_proj", "l.mlp.experts.down_proj");
        let all =
            arranged(&config, &[info(up, &[2, 6, 4]), info(down, &[2, 4, 3]), info("l.mlp.gate.weight", &[2, 4])]);
        let names: Vec<&str> = all.iter().map(|t| t.info.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "l.mlp.experts.0.gate_proj.weight",
                "l.mlp.experts.0.up_proj.weight",
                "l.mlp.experts.1.gate_proj.weight",
                "l.mlp.experts.1.up_proj.weight",
                "l.mlp.experts.0.down_proj.weight",
                "l.mlp.experts.1.down_proj.weight",
                "l.mlp.gate.weight"
            ]
        );
        assert_eq!((all[3].info.shape.as_slice(), elements(&all[3])), (&[3, 4][..], (36..48).collect()));
        assert_eq!((all[5].info.shape.as_slice(), elements(&all[5])), (&[4, 3][..], (12..24).collect()));
        let left = arranged(&config, &[info(up, &[2, 4, 6]), info(down, &[2, 3, 4])]);
        assert_eq!(left[1].info.shape, [3, 4]);
        assert_eq!(elements(&left[1]), [3, 9, 15, 21, 4, 10, 16, 22, 5, 11, 17, 23], "up of expert 0");
        assert_eq!((left[4].info.shape.as_slice(), elements(&left[4])[..3].to_vec()), (&[4, 3][..], vec![0, 4, 8]));
    }

    #[test]
    fn what_fits_both_ways_is_told_by_the_models_name() {
        let square = [info("experts.gate_up_proj", &[2, 4, 4])];
        let of = |model: &str| arranged(&json!({"model_type": model, "hidden_size": 4}), &square);
        assert_eq!(elements(&of("qwen3_5_moe")[0]), (0..8).collect::<Vec<_>>());
        assert_eq!(elements(&of("llama4")[0])[..4], [0, 4, 8, 12]);
        assert_eq!(of("gpt_oss").len(), 1, "rows in turn stay fused");
        assert_eq!(arranged(&json!({"hidden_size": 5}), &square).len(), 1, "a shape that nobody explains stays");
        assert_eq!(arranged(&json!({}), &square).len(), 1);
    }
}
