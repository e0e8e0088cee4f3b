//! The `MatMulNBits` layout against onnxruntime's own quantizer and operator (`tests/golden/onnx`).

use std::{collections::BTreeMap, fs, sync::Arc};

use quantfs::{
    num::codes::unpack,
    quant::{
        Module, Scheme, Weight,
        format::matmul_nbits::{Block, MatMulNBits},
        operator::{Arithmetic, Bytes, Decoded, Operator},
        recognize::recognize,
        stated::Stated,
    },
    tensor::{Dtype, Float, Rows, TensorInfo},
};
use safetensors::SafeTensors;

type Tensors = BTreeMap<String, (TensorInfo, Vec<u8>)>;

fn read(path: &str) -> Tensors {
    read_file(&format!("{}/tests/golden/{path}.safetensors", env!("CARGO_MANIFEST_DIR")))
}

fn read_file(path: &str) -> Tensors {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let info = |name: &str, dtype, shape: &[usize]| TensorInfo { name: name.into(), dtype, shape: shape.to_vec() };
    let all = file.tensors().into_iter();
    all.map(|(n, t)| (n.clone(), (info(&n, t.dtype(), t.shape()), t.data().to_vec()))).collect()
}

/// Columns, bits, block and symmetry of `<float>.k<columns>.b<bits>_<block>_<sym>`.
fn parse(stem: &str) -> (Float, usize, u32, Block, bool) {
    let [float, cols, word] = stem.split('.').collect::<Vec<_>>()[..] else { panic!("{stem}") };
    let [bits, block, kind] = word.split('_').collect::<Vec<_>>()[..] else { panic!("{stem}") };
    let block = block.strip_prefix("bs").map_or(Block::Row, |n| Block::Of(n.parse().unwrap()));
    let float = if float == "f16" { Float::F16 } else { Float::F32 };
    (float, cols[1..].parse().unwrap(), bits[1..].parse().unwrap(), block, kind == "sym")
}

/// The first columns of some rows.
fn cut((info, data): &(TensorInfo, Vec<u8>), rows: impl Iterator<Item = usize>, cols: usize) -> Vec<u8> {
    let size = info.dtype.bitsize() / 8;
    rows.flat_map(|r| data[r * info.shape[1] * size..][..cols * size].to_vec()).collect()
}

/// Compares what the scheme makes of rows with what onnxruntime made, and returns the parts compared.
fn compare(stem: &str, float: Float, cols: usize, scheme: MatMulNBits, data: &[u8], expected: &Tensors) -> usize {
    let rows = data.len() / cols / float.size();
    let weight = Weight { stem: stem.into(), float, shape: vec![rows, cols] };
    let parts = scheme.parts(&weight).unwrap();
    let mut made: Vec<Vec<u8>> = parts.iter().map(|p| vec![0xa5; p.len()]).collect();
    let mut out: Vec<&mut [u8]> = made.iter_mut().map(Vec::as_mut_slice).collect();
    scheme.encode(Rows { data, float, rows, cols }, &mut out);
    for (part, made) in parts.iter().zip(&made) {
        let name = format!("{stem}{}", part.suffix);
        // The shared vectors call the codes by the operator's name for them.
        let found = expected.get(&name).or_else(|| expected.get(&name.replace(".weight", ".B")));
        let (info, bytes) = found.unwrap_or_else(|| panic!("no vector {name}"));
        assert_eq!((part.dtype, &part.shape), (info.dtype, &info.shape), "{name}");
        let row = bytes.len() / rows;
        for (r, (ours, theirs)) in made.chunks(row).zip(bytes.chunks(row)).enumerate() {
            assert_eq!(ours, theirs, "{name} row {r}");
        }
    }
    parts.len()
}

#[test]
fn codes_are_the_quantizers() {
    let (expected, inputs) = (read("onnx/codes"), read("mlx/input_finite"));
    let mut seen = 0;
    for stem in expected.keys().filter_map(|n| n.strip_suffix(".weight")) {
        let (float, cols, bits, block, symmetric) = parse(stem);
        let input = &inputs[if float == Float::F16 { "f16" } else { "f32" }];
        let data = cut(input, (0..input.0.shape[0]).step_by(3), cols);
        let scheme = MatMulNBits::new(bits, block, symmetric).unwrap();
        seen += compare(stem, float, cols, scheme, &data, &expected);
    }
    assert_eq!(seen, expected.len());
}

#[test]
fn codes_are_those_of_the_shared_vectors() {
    let (expected, inputs) = (read("onnx/onnx_nbits"), read("mlx/input_finite"));
    let mut seen = 0;
    for stem in expected.keys().filter_map(|n| n.strip_suffix(".B")) {
        let (head, word) = stem.split_once('.').unwrap();
        let (float, cols) = head.split_once("_k").unwrap_or((head, "256"));
        let (float, cols, bits, block, symmetric) = parse(&format!("{float}.k{cols}.{word}"));
        let input = &inputs[if float == Float::F16 { "f16" } else { "f32" }];
        let rows = if cols == 256 { 0..input.0.shape[0] } else { 26..34 };
        let scheme = MatMulNBits::new(bits, block, symmetric).unwrap();
        seen += compare(stem, float, cols, scheme, &cut(input, rows, cols), &expected);
    }
    assert_eq!(seen, expected.len());
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// Recognized from names and shapes, multiplied where they lie: onnxruntime's products. The variable
/// names another file of layers, which `tests/loaders/test_onnx.py` has onnxruntime make.
#[test]
fn products_are_the_operators() {
    let expected = std::env::var("QUANTFS_ONNX_LAYERS").map_or_else(|_| read("onnx/layers"), |path| read_file(&path));
    let mut seen = 0;
    for stem in expected.keys().filter_map(|n| n.strip_suffix(".weight")) {
        let (_, cols, bits, _, _) = parse(stem);
        let stated = Stated { bits: Some(bits), cols: Some(cols), ..Stated::default() };
        let found = recognize(&Module::of(stem, &expected, |(info, _)| info, stated)).unwrap().unwrap();
        let parts = found.scheme.parts(&found.weight).unwrap();
        let bytes: Vec<Bytes> =
            parts.iter().map(|p| Bytes::from(expected[&format!("{stem}{}", p.suffix)].1.clone())).collect();
        let operator = found.scheme.operator(&found.weight, &bytes);
        let operator = operator.unwrap_or_else(|| {
            Arc::new(Decoded::new(found.scheme.clone(), found.weight.clone(), bytes)) as Arc<dyn Operator>
        });
        let (x, y) = (floats(&expected[&format!("{stem}.x")].1), floats(&expected[&format!("{stem}.y")].1));
        let mut ours = vec![f32::NAN; y.len()];
        operator.multiply(0..operator.rows(), &x, Arithmetic::Exact, &mut ours);
        let mut int8 = vec![f32::NAN; y.len()];
        operator.multiply(0..operator.rows(), &x, Arithmetic::Int8, &mut int8);
        let mut row = vec![0.0; cols];
        for (i, ((ours, int8), theirs)) in ours.iter().zip(&int8).zip(&y).enumerate() {
            let (b, r) = (i / operator.rows(), i % operator.rows());
            operator.decode(r..r + 1, &mut row);
            let size: f32 = row.iter().zip(&x[b * cols..]).map(|(w, x)| (w * x).abs()).sum();
            assert!((ours - theirs).abs() <= 1e-6 * size, "{stem} [{b}, {r}]: {ours}, not {theirs}");
            // Half a step of the activations; that of a group is no larger than the input's.
            let step = x[b * cols..(b + 1) * cols].iter().fold(0f32, |m, x| m.max(x.abs())) / 127.0;
            let bound = 0.51 * step * row.iter().map(|w| w.abs()).sum::<f32>();
            assert!((int8 - theirs).abs() <= bound, "{stem} [{b}, {r}]: {int8} in int8, not {theirs}");
        }
        seen += 1;
    }
    assert_eq!(seen, 36);
}

/// Rows of odd lengths, and a band of several of them.
#[test]
fn odd_rows_come_back() {
    for (bits, cols) in [(2, 33), (4, 17), (4, 1), (8, 99), (2, 515)] {
        for block in [Block::Of(16), Block::Row] {
            for symmetric in [true, false] {
                let scheme = MatMulNBits::new(bits, block, symmetric).unwrap();
                let weight = Weight { stem: "w".into(), float: Float::F32, shape: vec![5, cols] };
                let values: Vec<f32> = (0..5 * cols).map(|i| ((i * 37 % 101) as f32 - 50.0) / 70.0).collect();
                let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                let parts = scheme.parts(&weight).unwrap();
                let mut made: Vec<Vec<u8>> = parts.iter().map(|p| vec![0; p.len()]).collect();
                let mut out: Vec<&mut [u8]> = made.iter_mut().map(Vec::as_mut_slice).collect();
                scheme.encode(Rows { data: &data, float: Float::F32, rows: 5, cols }, &mut out);
                let mut back = vec![f32::NAN; values.len()];
                scheme.decode(&made.iter().map(Vec::as_slice).collect::<Vec<_>>(), Float::F32, 5, &mut back);
                let step = 1.5 / f32::from(u8::MAX >> (8 - bits));
                for (i, (a, b)) in values.iter().zip(&back).enumerate() {
                    assert!((a - b).abs() <= step, "{bits} bits, {block:?}, row of {cols}, element {i}: {b}, not {a}");
                }
                let mut codes = vec![0; parts[0].shape[2] * 8 / bits as usize];
                unpack(bits, &made[0][..parts[0].shape[2]], &mut codes);
                assert!(codes.iter().skip(cols).all(|c| *c == 0), "what no element fills is code 0");
            }
        }
    }
}

#[test]
fn what_is_not_said_is_asked_for() {
    let info = |name: &str, dtype, shape: &[usize]| {
        (name.to_owned(), TensorInfo { name: name.into(), dtype, shape: shape.into() })
    };
    let mut tensors = BTreeMap::from([info("w.weight", Dtype::U8, &[4, 3, 16]), info("w.scales", Dtype::F32, &[4, 3])]);
    let said = |tensors: &BTreeMap<String, TensorInfo>, stated| {
        recognize(&Module::of("w", tensors, |i| i, stated)).unwrap().map(|f| (f.scheme.facts(), f.weight.shape))
    };
    let open = said(&tensors, Stated::default()).unwrap_err().to_string();
    assert!(open.contains("nobody says its bits"), "{open}");
    tensors.extend([info("w.zero_points", Dtype::U8, &[4, 2])]);
    let (facts, shape) = said(&tensors, Stated::default()).unwrap();
    assert_eq!((facts.bits, facts.group_size, shape), (4, 32, vec![4, 96]), "the zero points tell");
    let stated = Stated { cols: Some(64), ..Stated::default() };
    let wrong = said(&tensors, stated).unwrap_err().to_string();
    assert!(wrong.contains("do not make rows of 64"), "{wrong}");
    assert!(MatMulNBits::new(4, Block::Of(48), true).is_err() && MatMulNBits::new(3, Block::Row, true).is_err());
}
