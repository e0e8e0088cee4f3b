//! bitsandbytes and blockwise fp8 against their own quantizers (`tests/golden/{bnb,fp8}`).

use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use quantfs::{
    kernel::{Cast, kernels},
    num::book::DYNAMIC,
    quant::{Axis, Content, FORMATS, Format, Module, Part, Scheme, Weight, recognize::recognize, stated::Statements},
    tensor::{Dtype, Float, Rows, TensorInfo},
};
use safetensors::SafeTensors;
use serde_json::{Value, json};

use crate::common::views;

type Tensors = BTreeMap<String, (TensorInfo, Vec<u8>)>;

fn read(path: &str) -> Tensors {
    let bytes = fs::read(format!("{}/tests/golden/{path}.safetensors", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let info = |name: &str, dtype, shape: &[usize]| TensorInfo { name: name.into(), dtype, shape: shape.to_vec() };
    let all = file.tensors().into_iter();
    all.map(|(n, t)| (n.clone(), (info(&n, t.dtype(), t.shape()), t.data().to_vec()))).collect()
}

fn bound(format: &str, scheme: &str, options: &[&str]) -> Arc<dyn Scheme> {
    let format: &dyn Format = *FORMATS.iter().find(|f| f.name() == format).unwrap();
    format.bind(scheme, options).unwrap().unwrap()
}

fn float(name: &str) -> Float {
    match name {
        "bf16" => Float::Bf16,
        "f16" => Float::F16,
        "f32" => Float::F32,
        other => panic!("{other}"),
    }
}

/// All parts of a weight, constants too, encoded in two bands where there are two granules.
fn encode(scheme: &Arc<dyn Scheme>, weight: &Weight, data: &[u8]) -> Vec<(Part, Vec<u8>)> {
    let (parts, banding) = (scheme.parts(weight).unwrap(), scheme.banding(weight));
    let rows = |start: usize, end: usize| {
        let unit = if banding.axis == Axis::Rows { weight.cols() } else { 1 };
        let data = &data[start * unit * weight.float.size()..end * unit * weight.float.size()];
        let (rows, cols) = if banding.axis == Axis::Rows { (end - start, unit) } else { (1, end - start) };
        Rows { data, float: weight.float, rows, cols }
    };
    let extent = banding.extent(weight);
    let middle = if extent > banding.granule { extent / 2 / banding.granule * banding.granule } else { 0 };
    let bands = [0..middle, middle..extent].into_iter().filter(|band| !band.is_empty());
    let survey = scheme.survey(weight);
    let informed = survey.map_or(scheme.clone(), |survey| {
        survey.conclude(&bands.clone().map(|band| survey.look(rows(band.start, band.end))).collect::<Vec<_>>())
    });
    let mut made: Vec<Vec<u8>> = parts.iter().map(|_| vec![]).collect();
    for band in bands {
        let mut pieces: Vec<Vec<u8>> =
            parts.iter().map(|p| vec![0xa5; p.range(banding, extent, band.clone()).len()]).collect();
        let encoded = pieces.iter_mut().zip(&parts).filter(|(_, part)| part.is_encoded());
        let mut out: Vec<&mut [u8]> = encoded.map(|(made, _)| made.as_mut_slice()).collect();
        informed.encode(rows(band.start, band.end), &mut out);
        made.iter_mut().zip(pieces).for_each(|(all, piece)| all.extend(piece));
    }
    let whole = parts.into_iter().zip(made).map(|(part, bytes)| match &part.content {
        Content::Constant(bytes) => (part.clone(), bytes.to_vec()),
        _ => (part, bytes),
    });
    whole.collect()
}

/// A state: its text without the spaces after it, with Python's words for what JSON cannot say.
fn state(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap().trim_end_matches(' ').to_owned()
}

/// Of a magnitude that is NaN, that it is one: which one is torch's affair.
fn one_nan(bytes: &[u8]) -> Vec<u8> {
    let one = |b: &[u8; 4]| if f32::from_le_bytes(*b).is_nan() { f32::NAN.to_le_bytes() } else { *b };
    bytes.as_chunks().0.iter().flat_map(one).collect()
}

fn compare(stem: &str, scheme: &Arc<dyn Scheme>, weight: &Weight, data: &[u8], expected: &Tensors) -> usize {
    let mut seen = 0;
    for (part, made) in encode(scheme, weight, data) {
        let name = format!("{stem}{}", part.suffix);
        if part.suffix == ".weight_format" {
            assert_eq!((part.shape.len(), &made[..]), (0, &[0u8][..]), "{name}");
            continue;
        }
        let (info, bytes) = expected.get(&name).unwrap_or_else(|| panic!("no vector {name}"));
        if part.suffix.contains("quant_state") && part.content == Content::First {
            assert_eq!((made.len(), state(&made)), (192, state(bytes)), "{name}");
        } else {
            assert_eq!((part.dtype, &part.shape), (info.dtype, &info.shape), "{name}");
            let (made, bytes) =
                if part.suffix == ".SCB" { (one_nan(&made), one_nan(bytes)) } else { (made, bytes.clone()) };
            let at = made.iter().zip(&bytes).position(|(a, b)| a != b);
            assert!(made == bytes, "{name} from byte {at:?}");
        }
        seen += 1;
    }
    seen
}

/// The elements of an input, as `scripts/golden/bnb_fp8.py` names them.
fn input(name: &str, float: &str, finite: &Tensors, edge: &Tensors) -> (Vec<usize>, Vec<u8>) {
    let (info, bytes) = if name.starts_with('f') { &finite[float] } else { &edge[float] };
    let Some((rows, cols)) = name.get(1..).and_then(|shape| shape.split_once('x')) else {
        return (info.shape.clone(), bytes.clone());
    };
    let Ok([rows, cols]) =
        [rows, cols].map(str::parse::<usize>).into_iter().collect::<Result<Vec<_>, _>>().map(|v| [v[0], v[1]])
    else {
        return (info.shape.clone(), bytes.clone());
    };
    (vec![rows, cols], bytes[..rows * cols * self::float(float).size()].to_vec())
}

#[test]
fn codes_are_those_of_bitsandbytes() {
    let (expected, finite, edge) = (read("bnb/codes"), read("mlx/input_finite"), read("mlx/input_edge"));
    let mut seen = 0;
    for stem in expected.keys().filter_map(|name| name.strip_suffix(".weight")) {
        let [name, dtype, scheme] = stem.split('.').collect::<Vec<_>>()[..] else { panic!("{stem}") };
        let (shape, data) = input(name, dtype, &finite, &edge);
        let weight = Weight { stem: "up".into(), float: float(dtype), shape };
        let scheme = match scheme.split_once('-') {
            Some((kind, dq)) => bound("bnb", kind, &[dq]),
            None if scheme == "int8" => bound("bnb", scheme, &[]),
            None => bound("bnb", scheme, &["plain"]),
        };
        seen += compare(stem, &scheme, &weight, &data, &expected);
    }
    assert_eq!(seen, expected.len());
}

#[test]
fn codes_are_those_of_the_shared_vectors() {
    let (expected, finite) = (read("bnb/bnb"), read("mlx/input_finite"));
    let mut seen = 0;
    for (dtype, kind) in ["bf16", "f16", "f32"].into_iter().flat_map(|d| ["nf4", "fp4"].map(|k| (d, k))) {
        let (info, data) = &finite[dtype];
        let weight = Weight { stem: "up".into(), float: float(dtype), shape: info.shape.clone() };
        let made = encode(&bound("bnb", kind, &["plain"]), &weight, data);
        for (part, made) in
            made.into_iter().filter(|(part, _)| expected.contains_key(&format!("{dtype}.{kind}{}", part.suffix)))
        {
            assert!(made == expected[&format!("{dtype}.{kind}{}", part.suffix)].1, "{dtype}.{kind}{}", part.suffix);
            seen += 1;
        }
    }
    let rest = |dtype: &str| (vec![38, 256], finite[dtype].1[26 * 256 * 2..].to_vec());
    for (stem, dtype, scheme) in [
        ("state_dict_dq0", "bf16", bound("bnb", "nf4", &["plain"])),
        ("state_dict_dq1", "bf16", bound("bnb", "nf4", &["dq"])),
        ("int8", "f16", bound("bnb", "int8", &[])),
    ] {
        let (shape, data) = rest(dtype);
        let weight = Weight { stem: "up".into(), float: float(dtype), shape };
        seen += compare(stem, &scheme, &weight, &data, &expected);
    }
    let map: Vec<u8> = DYNAMIC.iter().flat_map(|v| v.to_le_bytes()).collect();
    assert!(map == expected["dynamic_map"].1);
    assert_eq!(seen + 1, expected.len());
}

#[test]
fn fp8_is_that_of_transformers() {
    let (expected, finite, edge) = (read("fp8/fp8"), read("mlx/input_finite"), read("mlx/input_edge"));
    let mut seen = 0;
    for stem in expected.keys().filter_map(|name| name.strip_suffix(".weight")) {
        let (name, dtype) = stem.split_once('.').unwrap();
        let size = float(dtype).size();
        let row = |tensors: &Tensors, row: usize| tensors[dtype].1[row * 256 * size..][..256 * size].to_vec();
        let (shape, data) = match name.strip_prefix("edge") {
            None => {
                let rows = (0..64).chain((0..64).rev());
                (vec![128, 256], rows.flat_map(|r| row(&finite, r)).collect::<Vec<u8>>())
            }
            Some(number) => {
                let first = row(&edge, number.parse().unwrap());
                let odd = kernels().not_finite(float(dtype), &first[..128 * size]) > 0;
                let start = if odd { 0 } else { 128 * size };
                let second = row(&finite, 30);
                let mut data = [&first[start..][..128 * size], &second[..128 * size]].concat();
                data.resize(128 * 128 * size, 0);
                (vec![128, 128], data)
            }
        };
        let weight = Weight { stem: "up".into(), float: float(dtype), shape };
        seen += compare(stem, &bound("fp8", "b128", &[]), &weight, &data, &expected);
    }
    assert_eq!(seen, expected.len());
}

/// Every module of the vectors is recognized, from its tensors and what its state says.
#[test]
fn modules_are_recognized_by_their_states() {
    let expected = read("bnb/codes");
    let mut seen = 0;
    for stem in expected.keys().filter_map(|name| name.strip_suffix(".weight")) {
        // States of weights that are not finite say NaN, which is no JSON: they have a test of their own.
        if stem.starts_with('e') {
            continue;
        }
        let mut tensors: Tensors =
            expected.clone().into_iter().filter(|(n, _)| n.starts_with(&format!("{stem}."))).collect();
        let kind = stem.rsplit('.').next().unwrap();
        if kind == "int8" {
            let name = format!("{stem}.weight_format");
            tensors.insert(name.clone(), (TensorInfo { name, dtype: Dtype::U8, shape: vec![] }, vec![0]));
        } else {
            let name = format!("{stem}.weight.quant_state.bitsandbytes__{}", &kind[..3]);
            if kind.ends_with("-dq") {
                let (info, bytes) = tensors.get_mut(&name).unwrap();
                bytes.resize(192, b' ');
                info.shape = vec![192];
            }
        }
        let mut said = Statements::default();
        for (name, (_, bytes)) in tensors.iter().filter(|(name, _)| name.contains("quant_state")) {
            said.add_state(name, bytes).unwrap();
        }
        let module = Module::of(stem, &tensors, |(info, _)| info, said.of(stem));
        let found = recognize(&module).unwrap().unwrap_or_else(|why| panic!("{stem}: {why}"));
        if let Some((_, text)) = tensors.iter().find(|(name, _)| name.contains("quant_state")) {
            let value: Value = serde_json::from_slice(&text.1).unwrap();
            let shape: Vec<usize> = serde_json::from_value(value["shape"].clone()).unwrap();
            assert_eq!(found.weight.shape, shape, "{stem}");
            assert_eq!(value["dtype"], found.weight.float.name(), "{stem}");
        }
        seen += 1;
    }
    assert!(seen > 60, "{seen}");
}

#[test]
fn states_that_say_too_little_are_refused() {
    let name = "up.weight.quant_state.bitsandbytes__nf4";
    let cases = [
        ("", "no JSON"),
        ("{}", "no shape"),
        (r#"{"shape": [4]}"#, "no shape"),
        (r#"{"shape": [4, 64], "nested_blocksize": 256}"#, "no nested_offset"),
    ];
    for (text, why) in cases {
        let error = Statements::default().add_state(name, text.as_bytes()).unwrap_err();
        assert!(error.contains(why), "{text}: {error}");
    }
    // Python writes what JSON cannot say.
    for word in ["NaN", "Infinity", "-Infinity"] {
        let text =
            format!(r#"{{"shape": [4, 64], "blocksize": 64, "nested_blocksize": 256, "nested_offset": {word}}}"#);
        let mut said = Statements::default();
        said.add_state(name, text.as_bytes()).unwrap();
        assert_eq!(said.of("up").cols, Some(64), "{word}");
    }
    // Without a state or a manifest nobody knows the shape.
    let info = |suffix: &str, dtype, shape: &[usize]| {
        let name = format!("up{suffix}");
        (name.clone(), (TensorInfo { name, dtype, shape: shape.to_vec() }, vec![]))
    };
    let tensors: Tensors = [
        info(".weight", Dtype::U8, &[128, 1]),
        info(".weight.absmax", Dtype::F32, &[4]),
        info(".weight.quant_state.bitsandbytes__nf4", Dtype::U8, &[79]),
    ]
    .into();
    let recognized = |text: &str| {
        let mut said = Statements::default();
        if !text.is_empty() {
            said.add_state(name, text.as_bytes()).unwrap();
        }
        let module = Module::of("up", &tensors, |(info, _)| info, said.of("up"));
        recognize(&module).unwrap().unwrap_err().to_string()
    };
    for (text, why) in [
        ("", "nobody says its shape"),
        (r#"{"shape": [3, 65], "blocksize": 64}"#, "do not make the rows of 65"),
        (r#"{"shape": [4, 64], "blocksize": 128}"#, "blocks of 128"),
        (r#"{"shape": [4, 64], "blocksize": 64}"#, "quant_map is missing"),
    ] {
        let error = recognized(text);
        assert!(error.contains(why), "{text}: {error}");
    }
}

/// Every scheme decodes what it encoded to what the reference's decoder gives: the book's value by the magnitude.
#[test]
fn decoding_is_the_references() {
    let (expected, finite) = (read("bnb/codes"), read("mlx/input_finite"));
    let wide = |bytes: &[u8]| -> Vec<f32> { bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect() };
    let of = |suffix: &str| expected[&format!("finite.bf16.{suffix}")].1.clone();
    let weight = Weight { stem: "up".into(), float: Float::Bf16, shape: finite["bf16"].0.shape.clone() };
    let count = weight.elements();
    for kind in ["nf4", "fp4"] {
        let (codes, absmax) = (of(&format!("{kind}.weight")), wide(&of(&format!("{kind}.weight.absmax"))));
        let map = wide(&of(&format!("{kind}.weight.quant_map")));
        let mut out = vec![f32::NAN; count];
        let magnitudes = of(&format!("{kind}.weight.absmax"));
        bound("bnb", kind, &["plain"]).decode(&[&codes, &magnitudes], Float::Bf16, 1, &mut out);
        for (i, w) in out.iter().enumerate() {
            let code = codes[i / 2] >> if i % 2 == 0 { 4 } else { 0 } & 15;
            assert_eq!(*w, map[usize::from(code)] * absmax[i / 64], "{kind} {i}");
        }
    }
    // The doubly quantized magnitudes differ from the plain ones by their own error.
    let parts = ["weight", "weight.absmax", "weight.nested_absmax", "weight.quant_state.bitsandbytes__nf4"];
    let parts = parts.map(|part| of(&format!("nf4-dq.{part}")));
    let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
    let mut out = vec![f32::NAN; count];
    bound("bnb", "nf4", &["dq"]).decode(&parts, Float::Bf16, 1, &mut out);
    let text = serde_json::from_slice::<Value>(parts[3]).unwrap()["nested_offset"].to_string();
    let offset: f32 = text.parse().unwrap();
    let scales = wide(parts[2]);
    let map = wide(&of("nf4.weight.quant_map"));
    for (i, w) in out.iter().enumerate() {
        let block = i / 64;
        let absmax = DYNAMIC[usize::from(parts[1][block])] * scales[block / 256] + offset;
        assert_eq!(*w, map[usize::from(parts[0][i / 2] >> if i % 2 == 0 { 4 } else { 0 } & 15)] * absmax, "{i}");
    }
    let mut rounded = vec![0; count * 2];
    let bytes: Vec<u8> = out.iter().flat_map(|w| w.to_le_bytes()).collect();
    kernels().cast(&Cast { from: Float::F32, to: Float::Bf16, plus_one: false }, &bytes, &mut rounded);
    assert!(rounded == read("bnb/decoded")["nf4-dq"].1, "the values that dequantize_4bit gives");
}

/// What transformers leaves dense by itself need not be listed; a list, be it empty, takes the place of that.
#[test]
fn layers_to_leave_are_listed_where_the_loader_would_not_know() {
    let model = format!("{}/tests/golden/mlx_lm/llama_src", env!("CARGO_MANIFEST_DIR"));
    let skipped = |spec: &str, rules: &[&str]| {
        let view = views::view_of(Path::new(&model), spec, rules).unwrap();
        let config: Value = serde_json::from_slice(&views::files(&view)["config.json"]).unwrap();
        config["quantization_config"]["llm_int8_skip_modules"].clone()
    };
    let up = "model.layers.0.mlp.up_proj";
    for (spec, scheme) in [("bnb-nf4", "nf4"), ("bnb-nf4-dq", "nf4-dq"), ("bnb-int8", "int8")] {
        assert_eq!(skipped(spec, &[]), Value::Null, "{spec}");
        assert_eq!(skipped(spec, &[&format!("lm_head={scheme}")]), json!([]), "{spec}");
        assert_eq!(skipped(spec, &[&format!("{up}=source")]), json!([up, "lm_head"]), "{spec}");
    }
}
