//! What every scheme of every format promises; a new format is tested by being registered.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use quantfs::{
    kernel::{Cast, kernels},
    quant::{
        Axis, Content, FORMATS, Format, Part, Scheme, Weight,
        format::{cast, dense::Dense},
    },
    tensor::{Float, Rows},
};

use crate::common::tables::select_kernels;

/// Every scheme that can be bound, under its full name.
pub(super) fn schemes() -> Vec<(String, Arc<dyn Scheme>)> {
    select_kernels();
    let mut found = vec![("cast".to_owned(), Arc::new(cast::Cast) as Arc<dyn Scheme>)];
    for format in FORMATS {
        for scheme in format.schemes() {
            for options in choices(&format.options(scheme)) {
                let name = format!("{}-{scheme}-{}", format.name(), options.join("-"));
                match format.bind(scheme, &options) {
                    Ok(Some(bound)) => {
                        let dense = Dense::new(Arc::clone(&bound), Float::F16);
                        found.push((format!("dense-{name}"), Arc::new(dense)));
                        found.push((name, bound));
                    }
                    Ok(None) => assert_eq!(*scheme, "source", "{name} keeps the source"),
                    Err(why) => panic!("{name} is offered and refused: {why}"),
                }
            }
        }
    }
    found
}

/// One word of each list, in every combination.
fn choices(lists: &[&'static [&'static str]]) -> Vec<Vec<&'static str>> {
    lists.iter().fold(vec![vec![]], |sofar, list| {
        let longer = |s: &Vec<&'static str>| list.iter().map(|w| [s.as_slice(), &[*w]].concat()).collect::<Vec<_>>();
        sofar.iter().flat_map(longer).collect()
    })
}

pub(super) fn weight(float: Float, shape: &[usize]) -> Weight {
    Weight { stem: "model.layers.0.mlp.up_proj".into(), float, shape: shape.to_vec() }
}

/// Bell-shaped elements, the same in every run, as f32 and in a float.
pub(super) fn elements(float: Float, count: usize) -> (Vec<f32>, Vec<u8>) {
    let mut state = 7u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    let wide: Vec<u8> =
        (0..count).flat_map(|_| (0.03 * (0..8).map(|_| uniform()).sum::<f32>()).to_le_bytes()).collect();
    let mut bytes = vec![0; count * float.size()];
    kernels().cast(&Cast { from: Float::F32, to: float, plus_one: false }, &wide, &mut bytes);
    let mut back = vec![0; count * 4];
    kernels().cast(&Cast { from: float, to: Float::F32, plus_one: false }, &bytes, &mut back);
    (back.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(), bytes)
}

/// The parts' bytes of a band of a weight.
pub(super) fn encode(
    scheme: &dyn Scheme,
    weight: &Weight,
    parts: &[Part],
    data: &[u8],
    band: Range<usize>,
) -> Vec<Vec<u8>> {
    let (banding, extent) = (scheme.banding(weight), scheme.banding(weight).extent(weight));
    let mut made: Vec<Vec<u8>> =
        parts.iter().map(|p| vec![0xa5; p.range(banding, extent, band.clone()).len()]).collect();
    let encoded = made.iter_mut().zip(parts).filter(|(_, part)| part.is_encoded());
    let mut out: Vec<&mut [u8]> = encoded.map(|(made, _)| made.as_mut_slice()).collect();
    let (rows, cols) = dimensions(banding.axis, weight, band.len());
    let data = cut(banding.axis, weight, data, band);
    scheme.encode(Rows { data: &data, float: weight.float, rows, cols }, &mut out);
    made
}

/// Rows and columns of a band so long.
fn dimensions(axis: Axis, weight: &Weight, len: usize) -> (usize, usize) {
    match axis {
        Axis::Flat => (1, len),
        Axis::Rows => (len, weight.cols()),
        Axis::Columns => (weight.rows(), len),
    }
}

/// The elements of a band.
fn cut(axis: Axis, weight: &Weight, data: &[u8], band: Range<usize>) -> Vec<u8> {
    let size = weight.float.size();
    match axis {
        Axis::Flat => data[band.start * size..band.end * size].to_vec(),
        Axis::Rows => data[band.start * weight.cols() * size..band.end * weight.cols() * size].to_vec(),
        Axis::Columns => {
            let line = |row: &[u8]| row[band.start * size..band.end * size].to_vec();
            data.chunks(weight.cols() * size).flat_map(line).collect()
        }
    }
}

/// Bands of so many granules.
fn bands(scheme: &dyn Scheme, weight: &Weight, granules: usize) -> Vec<Range<usize>> {
    let (banding, extent) = (scheme.banding(weight), scheme.banding(weight).extent(weight));
    let step = granules * banding.granule;
    (0..extent).step_by(step).map(|start| start..(start + step).min(extent)).collect()
}

/// The scheme that knows of the whole weight what it must, by looks at bands of so many granules.
fn informed(scheme: &Arc<dyn Scheme>, weight: &Weight, data: &[u8], granules: usize) -> Arc<dyn Scheme> {
    let Some(survey) = scheme.survey(weight) else { return Arc::clone(scheme) };
    let axis = scheme.banding(weight).axis;
    let look = |band: Range<usize>| {
        let (rows, cols) = dimensions(axis, weight, band.len());
        let data = cut(axis, weight, data, band);
        survey.look(Rows { data: &data, float: weight.float, rows, cols })
    };
    survey.conclude(&bands(&**scheme, weight, granules).into_iter().map(look).collect::<Vec<_>>())
}

/// Parts of a weight; `None` where the scheme holds matrices alone and this is a stack.
fn parts_of(name: &str, scheme: &dyn Scheme, weight: &Weight) -> Option<Vec<Part>> {
    match scheme.parts(weight) {
        Ok(parts) => Some(parts),
        Err(why) => {
            assert!(weight.shape.len() > 2, "{name} of {:?}: {why}", weight.shape);
            assert!(why.to_string().contains("only matrices"), "{name}: {why}");
            None
        }
    }
}

#[test]
fn ids_are_distinct() {
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    let all = schemes();
    assert!(all.len() > 60, "only {} schemes", all.len());
    for (name, scheme) in all {
        if let Some(other) = seen.insert(scheme.id(), name.clone()) {
            panic!("{name} and {other} have the id {}", scheme.id());
        }
    }
}

#[test]
fn parts_add_up() {
    for (name, scheme) in schemes() {
        for float in Float::ALL {
            for shape in [&[128, 128][..], &[256, 256], &[3, 128, 384], &[2, 1, 128, 128]] {
                let weight = weight(float, shape);
                let Some(parts) = parts_of(&name, &*scheme, &weight) else { continue };
                let (banding, extent) = (scheme.banding(&weight), scheme.banding(&weight).extent(&weight));
                let mut suffixes: Vec<&str> = parts.iter().map(|p| p.suffix).collect();
                suffixes.sort_unstable();
                suffixes.dedup();
                assert_eq!(suffixes.len(), parts.len(), "{name}: {suffixes:?}");
                for part in &parts {
                    let of = |band| part.range(banding, extent, band);
                    match &part.content {
                        Content::Constant(bytes) => assert_eq!(bytes.len(), part.len(), "{name}{}", part.suffix),
                        Content::First => {
                            assert_eq!(of(0..banding.granule), 0..part.len(), "{name}{}", part.suffix);
                            assert!(of(banding.granule..extent).is_empty(), "{name}{}", part.suffix);
                        }
                        Content::Tiled { per_granule } => {
                            assert_eq!(of(0..extent), 0..part.len(), "{name}{}", part.suffix);
                            let (whole, rest) = (extent / banding.granule, extent % banding.granule);
                            assert!(part.len() >= whole * per_granule, "{name}{}", part.suffix);
                            let most = (whole + usize::from(rest > 0)) * per_granule;
                            assert!(part.len() <= most, "{name}{}: {} of {most}", part.suffix, part.len());
                        }
                    }
                }
                let codes = [".weight", ".weight_packed", ".qweight"].contains(&parts[0].suffix);
                let dense = name == "cast" || name.starts_with("dense-");
                assert!(codes || dense, "{name}: codes come first");
                assert!(matches!(parts[0].content, Content::Tiled { .. }), "{name}: codes are tiled");
            }
        }
    }
}

#[test]
fn bands_make_the_same_bytes_as_the_whole() {
    for (name, scheme) in schemes() {
        for (float, shape) in Float::ALL.into_iter().zip([[640, 384], [384, 512], [256, 128]]) {
            let weight = weight(float, &shape);
            let parts = scheme.parts(&weight).unwrap();
            let (_, data) = elements(float, weight.elements());
            let extent = scheme.banding(&weight).extent(&weight);
            let whole = encode(&*informed(&scheme, &weight, &data, extent), &weight, &parts, &data, 0..extent);
            for granules in [1, 3, 7] {
                let informed = informed(&scheme, &weight, &data, granules);
                let mut pieces = vec![vec![]; parts.len()];
                for band in bands(&*scheme, &weight, granules) {
                    let made = encode(&*informed, &weight, &parts, &data, band);
                    pieces.iter_mut().zip(made).for_each(|(p, m)| p.extend(m));
                }
                assert!(pieces == whole, "{name} of {} in bands of {granules} granules", float.name());
            }
        }
    }
}

#[test]
fn every_band_decodes_to_its_share_of_the_whole() {
    for (name, scheme) in schemes() {
        let weight = weight(Float::Bf16, &[384, 384]);
        let parts = scheme.parts(&weight).unwrap();
        let (_, data) = elements(Float::Bf16, weight.elements());
        let (banding, extent) = (scheme.banding(&weight), scheme.banding(&weight).extent(&weight));
        let whole = encode(&*scheme, &weight, &parts, &data, 0..extent);
        let decode = |band: Range<usize>| {
            let (rows, cols) = dimensions(banding.axis, &weight, band.len());
            let of =
                |(part, bytes): (&Part, &Vec<u8>)| part.for_decoding(bytes, banding, extent, band.clone()).to_vec();
            let encoded = parts.iter().zip(&whole).filter(|(part, _)| part.is_encoded());
            let held: Vec<Vec<u8>> = encoded.map(of).collect();
            let mut out = vec![f32::NAN; rows * cols];
            scheme.decode(&held.iter().map(Vec::as_slice).collect::<Vec<_>>(), Float::Bf16, rows, &mut out);
            out.into_iter().flat_map(f32::to_le_bytes).collect::<Vec<u8>>()
        };
        let all = decode(0..extent);
        let wide = Weight { float: Float::F32, ..weight.clone() };
        for band in bands(&*scheme, &weight, 2) {
            assert!(decode(band.clone()) == cut(banding.axis, &wide, &all, band), "{name}");
        }
    }
}

/// Root mean square error over root mean square of bell-shaped weights: the least and the most that
/// a scheme of so many bits has; most are near the middle. Both, so that no decoder passes by chance.
fn expected_error(mode: &str, bits: u32) -> (f64, f64) {
    match (mode, bits) {
        ("dense", _) => (0.0, 0.0),
        ("mxfp4", _) => (0.09, 0.14),
        ("mxfp8", _) => (0.02, 0.08),
        ("nvfp4", _) => (0.08, 0.12),
        ("affine", 8) => (0.003, 0.012),
        ("int8", 8) => (0.004, 0.014),
        ("matmul_nbits", 8) => (0.002, 0.012),
        ("matmul_nbits", 4) => (0.04, 0.17),
        ("matmul_nbits", 2) => (0.2, 0.9),
        ("nf4", 4) => (0.07, 0.11),
        ("fp4", 4) => (0.10, 0.14),
        ("fp8", 8) => (0.02, 0.04),
        ("gptq" | "gptq_v2" | "awq", 8) => (0.003, 0.016),
        ("int", b) => {
            let steps = f64::from((1 << b) - 1);
            (0.9 / steps, 2.6 / steps)
        }
        // Searched codes of two bits have a quarter less than rounded ones.
        ("affine" | "gptq" | "gptq_v2" | "awq", 2) => (0.2, 0.65),
        ("affine" | "gptq" | "gptq_v2" | "awq", b) => {
            let steps = f64::from((1 << b) - 1);
            (0.8 / steps, 1.9 / steps)
        }
        other => panic!("no bound for {other:?}"),
    }
}

#[test]
fn decoding_gives_the_weights_back_within_the_schemes_error() {
    for (name, scheme) in schemes() {
        for float in Float::ALL {
            let weight = weight(float, &[128, 512]);
            let parts = scheme.parts(&weight).unwrap();
            let (values, data) = elements(float, weight.elements());
            let (banding, extent) = (scheme.banding(&weight), scheme.banding(&weight).extent(&weight));
            let made = encode(&*scheme, &weight, &parts, &data, 0..extent);
            let mut back = vec![f32::NAN; values.len()];
            let held = parts.iter().zip(&made).filter(|(part, _)| part.is_encoded());
            scheme.decode(
                &held.map(|(_, made)| made.as_slice()).collect::<Vec<_>>(),
                float,
                dimensions(banding.axis, &weight, extent).0,
                &mut back,
            );
            let square = |x: f32| f64::from(x) * f64::from(x);
            let error: f64 = values.iter().zip(&back).map(|(a, b)| square(a - b)).sum();
            let relative = (error / values.iter().map(|v| square(*v)).sum::<f64>()).sqrt();
            let facts = scheme.facts();
            let (least, most) = expected_error(facts.mode, facts.bits);
            assert!((least..=most).contains(&relative), "{name} of {}: {relative}, not {least}..{most}", float.name());
        }
    }
}

#[test]
fn what_cannot_be_stored_is_refused_with_the_reason() {
    for (name, scheme) in schemes().into_iter().filter(|(n, _)| n != "cast") {
        let group = scheme.facts().group_size;
        let cases: [(&[usize], &str); 6] = [
            (&[], "only matrices"),
            (&[256], "only matrices"),
            (&[4, group + 8], "no whole groups"),
            (&[4, group / 2], "no whole groups"),
            (&[0, 256], "no elements"),
            (&[4, 0], "no elements"),
        ];
        for (shape, reason) in cases {
            // Blocks of bitsandbytes run on from one row to the next; the last one of onnxruntime's may be shorter.
            let by_rows = group > 0 && !matches!(scheme.facts().mode, "nf4" | "fp4" | "matmul_nbits");
            if !by_rows && reason == "no whole groups" {
                continue;
            }
            let Err(why) = scheme.parts(&weight(Float::Bf16, shape)) else { panic!("{name} takes {shape:?}") };
            assert!(why.to_string().contains(reason), "{name} of {shape:?}: {why}");
        }
    }
}

#[test]
fn words_that_a_format_does_not_have_are_refused() {
    for format in FORMATS {
        for scheme in format.schemes() {
            let defaults: Vec<&str> = format.options(scheme).iter().map(|list| list[0]).collect();
            assert!(
                format.bind(scheme, &[&defaults[..], &["awq"]].concat()).is_err(),
                "{}-{scheme}-awq",
                format.name()
            );
            for i in 0..defaults.len() {
                let mut wrong = defaults.clone();
                wrong[i] = "best";
                assert!(format.bind(scheme, &wrong).is_err(), "{}-{scheme} {wrong:?}", format.name());
                assert!(
                    format.bind(scheme, &defaults[..i]).is_err(),
                    "{}-{scheme} {:?}",
                    format.name(),
                    &defaults[..i]
                );
            }
        }
        assert!(format.bind("7bit", &["g64", "rtn", "cpu"]).is_err());
        assert!(format.schemes().iter().all(|s| !s.is_empty()) && !format.readers().is_empty());
    }
}

/// zimage.swift's scales are f32 whatever the weight is, and come from the weight as f32.
#[test]
fn zimage_quantizes_what_f32_would_be() {
    let zimage: &dyn Format = *FORMATS.iter().find(|f| f.name() == "zimage").unwrap();
    for scheme in zimage.schemes() {
        let options: Vec<&str> = zimage.options(scheme).iter().map(|list| list[0]).collect();
        let bound = zimage.bind(scheme, &options).unwrap().unwrap();
        let (values, data) = elements(Float::Bf16, 8 * 512);
        let wide: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let [(ours, parts), (theirs, wide_parts)] = [(Float::Bf16, &data), (Float::F32, &wide)].map(|(float, data)| {
            let weight = weight(float, &[8, 512]);
            let parts = bound.parts(&weight).unwrap();
            (encode(&*bound, &weight, &parts, data, 0..8 * 512), parts)
        });
        assert!(ours == theirs && parts == wide_parts, "{scheme}");
    }
}
