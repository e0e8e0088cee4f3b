//! What layers compute, against f64 on the decoded weights.

use std::{fs, path::Path};

use half::bf16;
use quantfs::{
    quant::{
        Scheme, Weight,
        format::sym::{Per, Sym},
    },
    runtime::{Arithmetic, Embedding, QuantizedLinear, Weights, dynamic, quantize_dynamic},
    tensor::{Dtype, Float, TensorInfo},
};
use tempfile::TempDir;

use crate::common::written::{Written, f32s, fitting, quantized, scheme, schemes, tensor, values, write};

/// A directory with one file of tensors and a manifest of one layer.
fn directory(tensors: &[Written], scheme: Option<(&dyn Scheme, &str, usize)>) -> TempDir {
    let dir = TempDir::new().unwrap();
    write(&dir.path().join("model.safetensors"), tensors, 1);
    if let Some((scheme, stem, cols)) = scheme {
        let facts = scheme.facts();
        let layer = serde_json::json!({"name": stem, "in_dim": cols, "bits": facts.bits, "group_size": facts.group_size,
            "mode": facts.mode});
        fs::write(dir.path().join("quantization.json"), serde_json::json!({"layers": [layer]}).to_string()).unwrap();
    }
    dir
}

fn layer(dir: &Path, stem: &str) -> QuantizedLinear {
    Weights::open(dir).unwrap().linear(stem).unwrap()
}

/// Each output in f64 and the sum of the magnitudes of its terms.
fn exact(weights: &[f32], cols: usize, bias: Option<&[f32]>, x: &[f32]) -> Vec<(f64, f64)> {
    let wide = |v: f32| f64::from(v);
    x.chunks(cols)
        .flat_map(|x| {
            weights.chunks(cols).enumerate().map(move |(r, row)| {
                let bias = bias.map_or(0.0, |b| wide(b[r]));
                let terms = row.iter().zip(x).map(|(w, x)| wide(*w) * wide(*x));
                terms.fold((bias, bias.abs()), |(sum, size), t| (sum + t, size + t.abs()))
            })
        })
        .collect()
}

/// The bound that `Arithmetic::Exact` states, and one rounding for the bias.
fn check(what: &str, cols: usize, ours: &[f32], expected: &[(f64, f64)]) {
    assert_eq!(ours.len(), expected.len());
    let bound = (cols as f64 / 8.0 + 9.0) * 2f64.powi(-24);
    for (i, (ours, (sum, size))) in ours.iter().zip(expected).enumerate() {
        assert!(
            (f64::from(*ours) - sum).abs() <= bound * size,
            "{what} output {i}: {ours}, not {sum} +- {}",
            bound * size
        );
    }
}

#[test]
fn layers_of_every_scheme_agree_with_f64() {
    let all = schemes();
    assert!(all.len() > 45, "only {} schemes", all.len());
    for (name, scheme) in &all {
        for (rows, cols) in [(1, 128), (7, 256), (67, 384), (1300, 256)] {
            let rows = fitting(&**scheme, rows, cols);
            let stem = "model.layers.0.mlp.up_proj";
            let (weights, bias) = (values(1, rows * cols), values(2, rows));
            let mut tensors = quantized(&**scheme, stem, &[rows, cols], &weights);
            tensors.push(f32s(&format!("{stem}.bias"), &[rows], &bias));
            let dir = directory(&tensors, Some((&**scheme, stem, cols)));
            let layer = layer(dir.path(), stem);
            assert_eq!((layer.rows(), layer.cols(), layer.is_quantized()), (rows, cols, true), "{name}");
            assert_eq!(layer.facts().unwrap().bits, scheme.facts().bits, "{name}");
            let decoded = layer.dequantize();
            let square = |v: f32| f64::from(v) * f64::from(v);
            let off: f64 = weights.iter().zip(&decoded).map(|(a, b)| square(a - b)).sum();
            let most = [0.6, 0.15].get(scheme.facts().bits as usize - 2).unwrap_or(&0.05);
            assert!(off < most * weights.iter().map(|v| square(*v)).sum::<f64>(), "{name}: decoded to something else");
            for inputs in [1, 3] {
                let x = values(3, inputs * cols);
                let mut y = vec![f32::NAN; inputs * rows];
                layer.forward_with(Arithmetic::Exact, &x, &mut y).unwrap();
                let expected = exact(&decoded, cols, Some(&bias), &x);
                check(&format!("{name} {rows}x{cols}, {inputs} inputs"), cols, &y, &expected);
            }
        }
    }
}

/// Whether rows need not be whole groups: they are groups themselves, or a last one may be shorter.
fn takes_any_row(name: &str, scheme: &dyn Scheme) -> bool {
    name.starts_with("nbits") || scheme.facts().group_size == 0
}

/// Rows of lengths that no group divides, where the layout allows them.
#[test]
fn odd_rows_agree_with_f64() {
    for (name, scheme) in schemes().iter().filter(|(name, scheme)| takes_any_row(name, &**scheme)) {
        for (rows, cols) in [(3, 1), (5, 33), (2, 129), (9, 1001)] {
            let weights = values(4, rows * cols);
            let dir = directory(&quantized(&**scheme, "a", &[rows, cols], &weights), Some((&**scheme, "a", cols)));
            let layer = layer(dir.path(), "a").with_arithmetic(Arithmetic::Exact);
            let (x, mut y) = (values(5, 2 * cols), vec![f32::NAN; 2 * rows]);
            layer.forward_batch(&x, &mut y).unwrap();
            check(&format!("{name} {rows}x{cols}"), cols, &y, &exact(&layer.dequantize(), cols, None, &x));
        }
    }
}

fn bytes_of(float: Dtype, values: &[f32]) -> Vec<u8> {
    let half = |v: &f32| match float {
        Dtype::BF16 => bf16::from_f32(*v).to_le_bytes().to_vec(),
        Dtype::F16 => half::f16::from_f32(*v).to_le_bytes().to_vec(),
        _ => v.to_le_bytes().to_vec(),
    };
    values.iter().flat_map(half).collect()
}

#[test]
fn dense_layers_compute_too() {
    for float in [Dtype::BF16, Dtype::F16, Dtype::F32] {
        for (rows, cols) in [(1, 1), (5, 33), (300, 1000)] {
            let weights = values(6, rows * cols);
            let dir = directory(
                &[
                    tensor("a.weight", float, &[rows, cols], bytes_of(float, &weights)),
                    tensor("a.bias", float, &[rows], bytes_of(float, &values(7, rows))),
                ],
                None,
            );
            let layer = layer(dir.path(), "a");
            assert!(!layer.is_quantized() && layer.facts().is_none());
            let decoded = layer.dequantize();
            assert_eq!(bytes_of(float, &decoded), bytes_of(float, &weights), "{float}");
            let (x, mut y) = (values(8, 3 * cols), vec![f32::NAN; 3 * rows]);
            layer.forward_batch(&x, &mut y).unwrap();
            check(&format!("{float} {rows}x{cols}"), cols, &y, &exact(&decoded, cols, layer.bias(), &x));
        }
    }
}

fn sample(rows: usize, cols: usize) -> (TempDir, QuantizedLinear) {
    let four = scheme("mlx", "4bit");
    let dir = directory(&quantized(&*four, "a", &[rows, cols], &values(9, rows * cols)), Some((&*four, "a", cols)));
    let layer = layer(dir.path(), "a");
    (dir, layer)
}

#[test]
fn threads_do_not_change_a_bit() {
    let (rows, cols) = (2500, 512);
    let (_dir, layer) = sample(rows, cols);
    let x = values(10, 5 * cols);
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut all: Vec<Vec<f32>> = vec![layer.dequantize()];
            for arithmetic in [Arithmetic::Exact, Arithmetic::Int8] {
                for inputs in [1, 5] {
                    let mut y = vec![f32::NAN; inputs * rows];
                    layer.forward_with(arithmetic, &x[..inputs * cols], &mut y).unwrap();
                    all.push(y);
                }
            }
            let mut gradient = vec![f32::NAN; 2 * cols];
            layer.backward_input(&values(11, 2 * rows), &mut gradient).unwrap();
            all.push(gradient);
            all.into_iter().flatten().map(f32::to_bits).collect::<Vec<_>>()
        })
    };
    let one = run(1);
    assert!([2, 3, 7].into_iter().all(|threads| run(threads) == one));
}

#[test]
fn one_input_is_a_batch_of_one() {
    let (_dir, layer) = sample(1100, 256);
    let x = values(12, 4 * 256);
    let mut batch = vec![f32::NAN; 4 * 1100];
    layer.forward_with(Arithmetic::Exact, &x, &mut batch).unwrap();
    let expected = exact(&layer.dequantize(), 256, None, &x);
    check("batch", 256, &batch, &expected);
    let layer = layer.with_arithmetic(Arithmetic::Exact);
    for (x, expected) in x.chunks(256).zip(expected.chunks(1100)) {
        let mut y = vec![f32::NAN; 1100];
        layer.forward(x, &mut y).unwrap();
        check("one", 256, &y, expected);
    }
}

/// Layers that share their inputs give what each gives alone, whatever the number of inputs.
#[test]
fn layers_together_are_layers_alone() {
    let made = |stem: &str, rows: usize, spec: &str| {
        let weight = Weight { stem: stem.into(), float: Float::F32, shape: vec![rows, 512] };
        let data: Vec<u8> = values(27, rows * 512).iter().flat_map(|v| v.to_le_bytes()).collect();
        QuantizedLinear::quantize(&scheme("mlx", spec), weight, &data).unwrap()
    };
    let layers = [made("wide", 1500, "4bit"), made("narrow", 33, "8bit")];
    for inputs in [1, 2, 5] {
        let x = values(28, inputs * 512);
        let together = QuantizedLinear::forward_together([&layers[0], &layers[1]], &x).unwrap();
        for (layer, together) in layers.iter().zip::<[Vec<f32>; 2]>(together) {
            let mut alone = vec![0.0; inputs * layer.rows()];
            layer.forward_batch(&x, &mut alone).unwrap();
            assert!(alone == together && together.iter().any(|y| *y != 0.0), "{inputs} inputs of {}", layer.name());
        }
    }
    let error = QuantizedLinear::forward_together([&layers[0]], &[0.0; 511]).unwrap_err().to_string();
    assert!(error.contains("wide") && error.contains("511 elements of inputs"), "{error}");
    let odd = Weight { stem: "odd".into(), float: Float::F32, shape: vec![2, 128] };
    let odd = QuantizedLinear::quantize(&dynamic::int8(), odd, &[0; 1024]).unwrap();
    let error = QuantizedLinear::forward_together([&layers[0], &odd], &[0.0; 512]).unwrap_err().to_string();
    assert!(error.contains("odd") && error.contains("128 columns") && error.contains("wide"), "{error}");
}

#[test]
fn bf16_activations_are_rounded_once() {
    let (_dir, layer) = sample(70, 128);
    let x: Vec<bf16> = values(13, 2 * 128).into_iter().map(bf16::from_f32).collect();
    let wide: Vec<f32> = x.iter().map(|v| v.to_f32()).collect();
    let (mut y, mut half) = (vec![0.0; 140], vec![bf16::ZERO; 140]);
    layer.forward_batch(&wide, &mut y).unwrap();
    layer.forward_bf16(&x, &mut half).unwrap();
    assert!(y.iter().zip(&half).all(|(y, half)| bf16::from_f32(*y) == *half));
}

#[test]
fn the_gradient_is_the_transposed_product() {
    for (rows, cols) in [(1, 64), (130, 576), (64, 1088)] {
        let (_dir, layer) = sample(rows, cols);
        let decoded = layer.dequantize();
        let transposed: Vec<f32> =
            (0..cols).flat_map(|c| (0..rows).map(move |r| (r, c))).map(|(r, c)| decoded[r * cols + c]).collect();
        let gradient = values(14, 3 * rows);
        let mut ours = vec![f32::NAN; 3 * cols];
        layer.backward_input(&gradient, &mut ours).unwrap();
        // Added up one after the other, which f32 does with twice the roundings of partial sums and more.
        check("gradient", rows * 8, &ours, &exact(&transposed, rows, None, &gradient));
    }
}

#[test]
fn embeddings_are_rows() {
    let (dir, layer) = sample(50, 192);
    let table: Embedding = Weights::open(dir.path()).unwrap().embedding("a").unwrap();
    let decoded = layer.dequantize();
    let ids = [49, 0, 7, 7];
    let mut out = vec![f32::NAN; 4 * 192];
    table.forward(&ids, &mut out).unwrap();
    for (id, row) in ids.iter().zip(out.chunks(192)) {
        assert_eq!(row, &decoded[*id as usize * 192..][..192]);
    }
    assert_eq!((table.rows(), table.cols(), table.as_linear().rows()), (50, 192, 50));
    let past = table.forward(&[50], &mut out[..192]).unwrap_err().to_string();
    assert!(past.contains("layer a") && past.contains("id 50"), "{past}");
    assert!(table.forward(&ids, &mut out[1..]).is_err());
}

#[test]
fn lengths_that_do_not_fit_are_errors() {
    let (_dir, layer) = sample(4, 64);
    let (x, mut y) = (vec![0.0; 128], vec![0.0; 9]);
    for (inputs, outputs) in [(64, 3), (63, 4), (128, 8), (0, 0)] {
        let error = layer.forward(&x[..inputs], &mut y[..outputs]).unwrap_err().to_string();
        assert!(error.contains("layer a") && error.contains("64 to 4"), "{error}");
    }
    assert!(layer.forward_batch(&x, &mut y).is_err() && layer.forward_batch(&x[..65], &mut y[..4]).is_err());
    assert!(layer.forward_bf16(&[bf16::ZERO; 64], &mut [bf16::ZERO; 5]).is_err());
    assert!(layer.backward_input(&y[..5], &mut vec![0.0; 64]).is_err());
    layer.forward_batch(&[], &mut []).unwrap();
}

#[test]
fn dense_linears_are_replaced_in_memory() {
    let dir = directory(
        &[
            f32s("model.embed_tokens.weight", &[40, 128], &values(20, 40 * 128)),
            f32s("model.up.weight", &[30, 128], &values(21, 30 * 128)),
            f32s("model.up.bias", &[30], &values(22, 30)),
            f32s("model.odd.weight", &[6, 65], &values(23, 6 * 65)),
            f32s("model.norm.weight", &[128], &values(24, 128)),
        ],
        None,
    );
    for (name, scheme) in schemes().into_iter().chain([("int8".into(), dynamic::int8())]) {
        let mut weights = Weights::open(dir.path()).unwrap();
        let replaced = quantize_dynamic(&weights, &scheme, dynamic::is_linear);
        let takes = |shape: &[usize]| {
            let weight = Weight { stem: String::new(), float: Float::F32, shape: shape.to_vec() };
            scheme.parts(&weight).is_ok()
        };
        let both = [("model.odd", takes(&[6, 65])), ("model.up", takes(&[30, 128]))];
        let expected: Vec<&str> = both.into_iter().filter(|(_, taken)| *taken).map(|(stem, _)| stem).collect();
        assert_eq!(replaced.modules().collect::<Vec<_>>(), expected, "{name}");
        let kept: Vec<&str> = replaced.kept().iter().map(|(stem, _)| stem.as_str()).collect();
        assert_eq!(kept, both.map(|(stem, taken)| (!taken).then_some(stem)).into_iter().flatten().collect::<Vec<_>>());
        assert!(
            replaced.kept().iter().all(|(_, why)| ["65", "30", "6 rows"].iter().any(|n| why.contains(n))),
            "{name}"
        );
        if !expected.contains(&"model.up") {
            continue;
        }
        weights.apply(replaced).unwrap();
        let layer = weights.linear("model.up").unwrap();
        assert!(layer.is_quantized() && layer.bias().is_some(), "{name}");
        assert!(!weights.linear("model.embed_tokens").unwrap().is_quantized());
        let alone = directory(&quantized(&*scheme, "a", &[30, 128], &values(21, 30 * 128)), Some((&*scheme, "a", 128)));
        assert_eq!(
            layer.dequantize(),
            self::layer(alone.path(), "a").dequantize(),
            "{name}: other bytes than the scheme's"
        );
    }
}

#[test]
fn bands_of_dynamic_quantization_are_the_whole() {
    for (name, scheme) in schemes() {
        let cols = 384;
        let rows = fitting(&*scheme, 700, cols);
        let dense = values(25, rows * cols);
        let dir = directory(&[f32s("a.weight", &[rows, cols], &dense)], None);
        let mut weights = Weights::open(dir.path()).unwrap();
        weights.apply(quantize_dynamic(&weights, &scheme, |_: &str, _: &TensorInfo| true)).unwrap();
        let alone = directory(&quantized(&*scheme, "a", &[rows, cols], &dense), Some((&*scheme, "a", cols)));
        assert_eq!(weights.linear("a").unwrap().dequantize(), layer(alone.path(), "a").dequantize(), "{name}");
    }
}

#[test]
fn a_matrix_of_no_directory_is_quantized() {
    let weight = |rows, cols| Weight { stem: "a".into(), float: Float::F32, shape: vec![rows, cols] };
    for (name, scheme) in schemes() {
        let cols = 256;
        let rows = fitting(&*scheme, 24, cols);
        let dense = values(26, rows * cols);
        let data: Vec<u8> = dense.iter().flat_map(|x| x.to_le_bytes()).collect();
        let alone = directory(&quantized(&*scheme, "a", &[rows, cols], &dense), Some((&*scheme, "a", cols)));
        let (expected, made) =
            (layer(alone.path(), "a"), QuantizedLinear::quantize(&scheme, weight(rows, cols), &data).unwrap());
        assert_eq!(made.dequantize(), expected.dequantize(), "{name}");
        assert_eq!(
            (made.name(), made.byte_len(), made.facts()),
            ("a", expected.byte_len(), Some(&scheme.facts())),
            "{name}"
        );
        let error = QuantizedLinear::quantize(&scheme, weight(rows, cols), &data[4..]).unwrap_err().to_string();
        assert!(error.contains("layer a") && error.contains(&data.len().to_string()), "{error}");
    }
    let (_, mlx) = schemes().swap_remove(0);
    let error = QuantizedLinear::quantize(&mlx, weight(24, 3), &[0; 24 * 3 * 4]).unwrap_err().to_string();
    assert!(error.contains("layer a") && error.contains("no whole groups"), "{error}");
}

/// The formula of the module, written out again in f64 where that is exact.
#[test]
fn symmetric_int8_is_its_formula() {
    let rows: [[f32; 4]; 4] =
        [[1.0, -2.0, 127.0, 0.5], [0.0, -0.0, 0.0, 0.0], [-254.0, 3.0, 5.0, 1.0], [f32::NAN, 1.0, 0.0, -1.0]];
    let all: Vec<f32> = rows.concat();
    let parts = quantized(&Sym::new(Per::Row), "a", &[4, 4], &all);
    let codes: Vec<i8> = parts[0].3.iter().map(|b| b.cast_signed()).collect();
    // 0.5, 1.5 and 2.5 go to the even neighbour; NaN has code 0.
    assert_eq!(codes, [1, -2, 127, 0, 0, 0, 0, 0, -127, 2, 2, 0, 0, 127, 0, -127]);
    let scale = |i: usize| f32::from_le_bytes(parts[1].3[i * 4..][..4].try_into().unwrap());
    assert_eq!([scale(0), scale(1), scale(2), scale(3)], [1.0, 0.0, 2.0, 1.0 / 127.0]);
    let whole = quantized(&Sym::new(Per::Tensor), "a", &[4, 4], &all);
    assert_eq!(
        (whole[1].0.as_str(), &whole[1].2, f32::from_le_bytes(whole[1].3[..4].try_into().unwrap())),
        ("a.scale", &vec![1], 2.0)
    );
    assert_eq!(whole[0].3[..4], [0, 255, 64, 0], "1/2, -1, 63.5 and 1/4");
}
