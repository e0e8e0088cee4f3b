//! How codes are chosen: `ls` and `hqq` against a second implementation, against hqq itself, and against round to
//! nearest.

use std::sync::Arc;

use quantfs::{
    half::{bf16, f16},
    quant::{Axis, FORMATS, Format, Importance, Scheme, Weight},
    tensor::{Dtype, Float, Rows},
};

use crate::{
    common::{tables::select_kernels, views},
    formats::{elements, encode, weight},
};

fn format(name: &str) -> &'static dyn Format {
    *FORMATS.iter().find(|f| f.name() == name).unwrap()
}

fn mlx(scheme: &str, group: &str, method: &str) -> Arc<dyn Scheme> {
    format("mlx").bind(scheme, &[group, method, "cpu"]).unwrap().unwrap()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// What a scheme makes of a whole weight, part by part.
fn whole(scheme: &dyn Scheme, weight: &Weight, data: &[u8]) -> Vec<Vec<u8>> {
    let extent = scheme.banding(weight).extent(weight);
    encode(scheme, weight, &scheme.parts(weight).unwrap(), data, 0..extent)
}

/// The values of a weight after it was stored and read back.
fn read_back(scheme: &dyn Scheme, weight: &Weight, data: &[u8]) -> Vec<f32> {
    let made = whole(scheme, weight, data);
    let mut out = vec![f32::NAN; weight.elements()];
    let encoded = scheme.parts(weight).unwrap().into_iter().zip(&made).filter(|(part, _)| part.is_encoded());
    let parts: Vec<&[u8]> = encoded.map(|(_, made)| made.as_slice()).collect();
    let rows = if scheme.banding(weight).axis == Axis::Flat { 1 } else { weight.rows() };
    scheme.decode(&parts, weight.float, rows, &mut out);
    out
}

/// Weighted squared errors of the groups.
fn errors(values: &[f32], back: &[f32], group: usize, importance: &[f32]) -> Vec<f64> {
    let square = |(a, b): (&f32, &f32)| (f64::from(*a) - f64::from(*b)).powi(2);
    let each: Vec<f64> = values.iter().zip(back).map(square).collect();
    let weighed = each.iter().enumerate().map(|(i, e)| match importance.len() {
        0 => *e,
        cols => e * f64::from(importance[i % cols]),
    });
    weighed.collect::<Vec<_>>().chunks(group).map(|group| group.iter().sum()).collect()
}

fn relative(values: &[f32], back: &[f32]) -> f64 {
    let of: f64 = values.iter().map(|v| f64::from(*v).powi(2)).sum();
    100.0 * (errors(values, back, 1, &[]).iter().sum::<f64>() / of).sqrt()
}

/// `tests/golden/methods/affine`, which `make.py` beside it describes.
#[test]
fn bytes_are_those_of_a_second_implementation() {
    let golden = views::golden("methods/affine");
    let importance = floats(&golden["importance"].2);
    let mut seen = 0;
    for stem in golden.keys().filter_map(|name| name.strip_suffix(".weight")) {
        let (plain, weighted) = stem.strip_suffix(".weighted").map_or((stem, false), |plain| (plain, true));
        let (float, spec) = plain.split_once('.').unwrap();
        let [scheme, group, method] = spec.split('-').collect::<Vec<_>>()[..] else { panic!("{spec}") };
        let (dtype, shape, data) = &golden[&format!("{float}.input")];
        let weight = weight(Float::of(*dtype).unwrap(), shape);
        let mut scheme = mlx(scheme, group, method);
        if weighted {
            scheme = scheme.weighted(&Importance::new(256, shape[0], &importance).unwrap()).unwrap();
        }
        for (part, made) in [".weight", ".scales", ".biases"].into_iter().zip(whole(&*scheme, &weight, data)) {
            let theirs = &golden[&format!("{stem}{part}")].2;
            let row = theirs.len() / shape[0];
            for (r, (ours, theirs)) in made.chunks(row).zip(theirs.chunks(row)).enumerate() {
                assert_eq!(ours, theirs, "{stem}{part} row {r}");
            }
        }
        seen += 1;
    }
    assert_eq!(seen, 32, "every case is met");
}

/// hqq's library stops earlier and sums in another order: its codes and parameters nearly.
#[test]
fn hqq_is_what_its_library_finds() {
    let library = views::golden("methods/hqq");
    let (_, shape, data) = &views::golden("mlx/input_finite")["f32"];
    let data = &data[26 * shape[1] * 4..];
    let weight = weight(Float::F32, &[shape[0] - 26, shape[1]]);
    let values = floats(data);
    for (bits, name) in [(4, "b4_g64_opt"), (3, "b3_g64_opt")] {
        let read = |part: &str| &library[&format!("{name}.{part}")].2;
        let (codes, scales, zeros) = (read("codes"), floats(read("scale")), floats(read("zero")));
        let theirs: Vec<f32> =
            codes.iter().enumerate().map(|(i, c)| (f32::from(*c) - zeros[i / 64]) * scales[i / 64]).collect();
        let ours = read_back(&*mlx(&format!("{bits}bit"), "g64", "hqq"), &weight, data);
        let groups = values.chunks(64).zip(ours.chunks(64)).zip(theirs.chunks(64));
        let same = groups.filter(|((values, ours), theirs)| {
            let span = values.iter().fold(0f32, |most, w| most.max(w.abs()));
            ours.iter().zip(*theirs).all(|(a, b)| (a - b).abs() <= 0.01 * span)
        });
        let (same, all) = (same.count(), scales.len());
        assert!(same * 100 >= all * 97, "{name}: {same} of {all} groups");
        let (of_ours, of_theirs) = (relative(&values, &ours), relative(&values, &theirs));
        assert!((of_ours / of_theirs - 1.0).abs() < 0.01, "{name}: {of_ours} % and {of_theirs} %");
    }
}

/// Gaussian numbers, the same in every run, as bf16.
fn gaussian(count: usize) -> (Vec<f32>, Vec<u8>) {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    };
    let mut one = || 0.02 * (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos();
    let bytes: Vec<u8> = (0..count).flat_map(|_| bf16::from_f64(one()).to_le_bytes()).collect();
    (bytes.chunks(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(), bytes)
}

/// Relative errors in per cent, to one in 200 of them: round to nearest, half-quadratic, least squares.
#[test]
fn a_search_finds_better_codes() {
    select_kernels();
    let (values, data) = gaussian(256 * 2048);
    let weight = weight(Float::Bf16, &[256, 2048]);
    for (bits, group, expected) in [
        (4, 64, [9.10, 8.62, 8.13]),
        (4, 32, [8.10, 7.40, 6.92]),
        (3, 64, [19.06, 18.50, 16.54]),
        (2, 64, [39.5, 43.1, 32.3]),
        (8, 64, [0.674, 0.533, 0.527]),
    ] {
        for (method, expected) in ["rtn", "hqq", "ls"].into_iter().zip(expected) {
            let scheme = mlx(&format!("{bits}bit"), &format!("g{group}"), method);
            let made = whole(&*scheme, &weight, &data);
            let mut back = vec![f32::NAN; values.len()];
            // In f32: what rounding each value to bf16 adds is no method's.
            decoded_exactly(&made, bits, group, &mut back);
            let found = relative(&values, &back);
            assert!((found / expected - 1.0).abs() < 0.006, "{bits} bits g{group} {method}: {found} %");
        }
    }
}

/// `code * scale + bias` of bf16 parameters, without rounding in between.
fn decoded_exactly(parts: &[Vec<u8>], bits: usize, group: usize, out: &mut [f32]) {
    let parameter = |part: &[u8], at: usize| bf16::from_le_bytes([part[2 * at], part[2 * at + 1]]).to_f32();
    for (i, out) in out.iter_mut().enumerate() {
        let code: u32 =
            (0..bits).map(|b| (i * bits + b, b)).map(|(at, b)| u32::from(parts[0][at / 8] >> (at % 8) & 1) << b).sum();
        *out = code as f32 * parameter(&parts[1], i / group) + parameter(&parts[2], i / group);
    }
}

/// In the values that a reader decodes; of every format that offers the method, with and without importance.
#[test]
fn least_squares_is_never_worse_than_rounding() {
    select_kernels();
    let cols = 512;
    for (name, scheme, options) in offered("ls") {
        let bind = |method: &str| {
            let words: Vec<&str> = options.iter().map(|w| if *w == "ls" { method } else { *w }).collect();
            format(name).bind(scheme, &words).unwrap().unwrap()
        };
        let (plain, searched) = (bind("rtn"), bind("ls"));
        // 0 for rows.
        let group = match plain.facts().group_size {
            0 => cols,
            size => size,
        };
        for float in Float::ALL {
            let weight = weight(float, &[32, cols]);
            let (mut values, data) = elements(float, weight.elements());
            if name == "awq" {
                // It computes in halves: what a cast takes is no code's.
                values.iter_mut().for_each(|w| *w = f16::from_f32(*w).to_f32());
            }
            let importance: Vec<f32> = (0..cols).map(|k| [0.1, 1.0, 0.0, 7.0, 2.0][k * k % 5]).collect();
            let weighed = searched.weighted(&Importance::new(cols, 32, &importance).unwrap()).unwrap();
            for (searched, importance) in [(&searched, &[][..]), (&weighed, &importance)] {
                let of = |scheme: &dyn Scheme| errors(&values, &read_back(scheme, &weight, &data), group, importance);
                let (rounded, searched) = (of(&*plain), of(&**searched));
                let worse = rounded.iter().zip(&searched).filter(|(a, b)| **b > **a * (1.0 + 1e-5)).count();
                assert_eq!(worse, 0, "{name}-{scheme} {options:?} {float:?}: worse groups");
                let (before, after) = (rounded.iter().sum::<f64>(), searched.iter().sum::<f64>());
                let most = match plain.facts().bits {
                    7.. => 1.0,
                    _ if group == cols => 0.99,
                    _ => 0.97,
                };
                assert!(after < most * before, "{name}-{scheme} {options:?} {float:?}: {before} to {after}");
            }
        }
    }
}

/// Formats, schemes and all of their options with a method, where there is such a scheme.
fn offered(method: &'static str) -> Vec<(&'static str, &'static str, Vec<&'static str>)> {
    let mut found = vec![];
    for format in FORMATS {
        for scheme in format.schemes() {
            let mut combinations = vec![vec![]];
            for list in format.options(scheme) {
                let words = if list.contains(&method) { vec![method] } else { list.to_vec() };
                let longer = |one: &Vec<&'static str>| {
                    words.iter().map(|word| [&one[..], &[*word]].concat()).collect::<Vec<_>>()
                };
                combinations = combinations.iter().flat_map(longer).collect();
            }
            let is_scheme = |words: &Vec<&str>| words.contains(&method) && format.bind(scheme, words).is_ok();
            found.extend(combinations.into_iter().filter(is_scheme).map(|words| (format.name(), *scheme, words)));
        }
    }
    found
}

/// Codes with zero points: relative errors in per cent of bf16 weights, before and after, to one in a hundred.
#[test]
fn a_search_finds_better_zero_points() {
    select_kernels();
    let (values, data) = gaussian(256 * 2048);
    let weight = weight(Float::Bf16, &[256, 2048]);
    for (name, scheme, options, expected) in [
        ("gptq", "4bit", &["g128", "sym", "", "v1"][..], [11.07, 10.07]),
        ("gptq", "4bit", &["g128", "asym", "", "v2"], [10.05, 9.52]),
        ("awq", "4bit", &["g128", ""], [10.05, 9.52]),
        ("onnx", "4bit", &["g32", "sym", ""], [8.59, 8.10]),
        ("onnx", "2bit", &["g32", "asym", ""], [40.6, 33.2]),
        ("ct", "4bit", &["g128", "sym", "", "eager"], [11.11, 10.10]),
        ("ct", "4bit", &["g128", "asym", "", "eager"], [10.08, 9.55]),
        ("ct", "4bit", &["channel", "sym", "", "eager"], [14.08, 11.07]),
        ("ct", "3bit", &["channel", "asym", "", "eager"], [28.55, 20.50]),
        ("ct", "int8", &["", "eager"], [0.892, 0.877]),
    ] {
        for (method, expected) in ["rtn", "ls"].into_iter().zip(expected) {
            let words: Vec<&str> = options.iter().map(|w| if w.is_empty() { method } else { w }).collect();
            let bound = format(name).bind(scheme, &words).unwrap().unwrap();
            let found = relative(&values, &read_back(&*bound, &weight, &data));
            assert!((found / expected - 1.0).abs() < 0.01, "{name}-{scheme} {options:?} {method}: {found} %");
        }
    }
}

#[test]
fn importance_moves_the_error_to_where_it_matters_less() {
    select_kernels();
    let (values, data) = gaussian(64 * 1024);
    let weight = weight(Float::Bf16, &[2, 32, 1024]);
    // Two experts of 32 rows, which other columns matter to.
    let importance: Vec<f32> = (0..2048).map(|k| if (k + k / 1024) % 8 == 0 { 50.0 } else { 1.0 }).collect();
    let of_rows: Vec<f32> = importance.chunks(1024).flat_map(|row| row.repeat(32)).collect();
    for method in ["ls", "hqq"] {
        for bits in [2, 3, 4] {
            let plain = mlx(&format!("{bits}bit"), "g64", method);
            let weighed = plain.weighted(&Importance::new(1024, 32, &importance).unwrap()).unwrap();
            assert_ne!(plain.id(), weighed.id(), "other bytes have another name");
            let error = |scheme: &dyn Scheme, of: &[f32]| {
                errors(&values, &read_back(scheme, &weight, &data), values.len(), of)[0]
            };
            let (before, after) = (error(&*plain, &of_rows), error(&*weighed, &of_rows));
            assert!(after < 0.97 * before, "{method} {bits} bits: {before} to {after}");
            let (before, after) = (error(&*plain, &[]), error(&*weighed, &[]));
            assert!(after > before, "{method} {bits} bits: nothing is for nothing");
            // Bands begin anywhere: their bytes are those of the whole.
            let all = whole(&*weighed, &weight, &data);
            for band in [0..64, 64..1024 * 33, 1024 * 31 + 64..1024 * 40, 1024 * 63..1024 * 64] {
                let mut made: Vec<Vec<u8>> =
                    [band.len() * bits / 8, band.len() / 32, band.len() / 32].map(|len| vec![0; len]).into();
                let mut out: Vec<&mut [u8]> = made.iter_mut().map(Vec::as_mut_slice).collect();
                let rows =
                    Rows { data: &data[band.start * 2..band.end * 2], float: Float::Bf16, rows: 1, cols: band.len() };
                weighed.encode_at(band.start, rows, &mut out);
                assert!(
                    made[0] == all[0][band.start * bits / 8..band.end * bits / 8],
                    "{method} {bits} codes {band:?}"
                );
                for part in [1, 2] {
                    assert!(made[part] == all[part][band.start / 32..band.end / 32], "{method} {bits} {part} {band:?}");
                }
            }
        }
        assert!(mlx("4bit", "g64", "rtn").weighted(&Importance::new(1024, 64, &[1.0; 1024]).unwrap()).is_none());
    }
}

/// Constants, zeros, a large part of the range of floats: finite in, finite out; what is not finite has the bytes of rtn.
#[test]
fn edge_groups_are_finite_or_rounded() {
    select_kernels();
    for float in Float::ALL {
        // A code times a scale must be in range, too.
        let largest = if float == Float::F16 { 20_000.0 } else { 1e38 };
        let tiny = if float == Float::F16 { 6e-8 } else { 1e-40 };
        let rows: [[f32; 3]; 10] = [
            [0.0, 0.0, 0.0],
            [0.125, 0.125, 0.125],
            [-3.0, -3.0, -3.0],
            [0.0, 1.0, 0.0],
            [tiny, -tiny, 3.0 * tiny],
            [largest, -largest, 0.0],
            [largest, largest, largest],
            [1e-7, 2e-7, -1e-7],
            [f32::NAN, 1.0, -1.0],
            [1.0, f32::INFINITY, -2.0],
        ];
        let values: Vec<f32> = rows.iter().flat_map(|row| (0..64).map(|i| row[i * i % 3])).collect();
        let mut data = vec![0; values.len() * float.size()];
        let wide: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let job = quantfs::kernel::Cast { from: Float::F32, to: float, plus_one: false };
        quantfs::kernel::kernels().cast(&job, &wide, &mut data);
        let weight = weight(float, &[rows.len(), 64]);
        for (method, bits) in [("ls", 2), ("ls", 4), ("ls", 8), ("hqq", 2), ("hqq", 4), ("hqq", 8)] {
            let of = |method: &str| whole(&*mlx(&format!("{bits}bit"), "g64", method), &weight, &data);
            let (made, rounded) = (of(method), of("rtn"));
            for row in 0..rows.len() {
                let part = |parts: &[Vec<u8>], n: usize| {
                    let len = parts[n].len() / rows.len();
                    parts[n][row * len..][..len].to_vec()
                };
                if rows[row].iter().any(|w| !w.is_finite()) {
                    (0..3)
                        .for_each(|n| assert_eq!(part(&made, n), part(&rounded, n), "{method} {bits} {:?}", rows[row]));
                }
            }
            let back = read_back(&*mlx(&format!("{bits}bit"), "g64", method), &weight, &data);
            for (row, back) in rows.iter().zip(back.chunks(64)).take(8) {
                assert!(back.iter().all(|w| w.is_finite()), "{method} {bits} bits of {row:?}: {back:?}");
            }
            let exact = |row: usize| {
                back[row * 64..][..64].iter().zip(&values[row * 64..]).all(|(a, b)| (a - b).abs() <= 1e-6 * b.abs())
            };
            assert!((0..3).all(exact), "{method} {bits} {float:?}: constants are themselves: {:?}", &back[..192]);
        }
    }
}

/// A spec says its method where it is not the default; `--method` fills it in.
#[test]
fn specs_name_their_method() {
    use quantfs::plan::{Parts, Spec};
    let canonical = |text: &str| Spec::parse(Some(text), &Parts::default()).map(|spec| spec.to_string());
    for (typed, shown) in [
        ("mlx-4bit-g64-ls", "mlx-4bit-g64-ls"),
        ("4bit-ls", "mlx-4bit-g64-ls"),
        ("4bit-rtn", "mlx-4bit-g64"),
        ("2bit-metal-hqq-g32", "mlx-2bit-g32-hqq-metal"),
        ("zimage-4bit-ls", "zimage-4bit-g32-ls"),
        ("dense-3bit-ls", "dense-mlx-3bit-g64-ls"),
    ] {
        assert_eq!(canonical(typed).unwrap(), shown);
    }
    for (spec, method, says) in [
        ("4bit", "lss", "--method lss: mlx-4bit has rtn, ls, hqq"),
        ("bnb-nf4", "ls", "--method ls: bnb-nf4 has no methods"),
    ] {
        let parts = Parts { method: Some(method.into()), ..Parts::default() };
        let error = Spec::parse(Some(spec), &parts).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    let parts = Parts { method: Some("ls".into()), ..Parts::default() };
    assert_eq!(Spec::parse(Some("4bit"), &parts).unwrap().to_string(), "mlx-4bit-g64-ls");
    for wrong in ["mxfp4-ls", "4bit-ls-hqq", "bnb-nf4-ls", "4bit-best"] {
        assert!(canonical(wrong).is_err(), "{wrong}");
    }
    let view = Spec::parse(Some("4bit-ls"), &Parts::default()).unwrap();
    assert_eq!(view.inherit("8bit").unwrap().to_string(), "mlx-8bit-g64-ls");
    assert_eq!(view.inherit("8bit-rtn").unwrap().to_string(), "mlx-8bit-g64");
}

#[test]
fn dtypes_of_vectors_are_known() {
    let golden = views::golden("methods/affine");
    let count = |dtype| golden.values().filter(|(d, ..)| *d == dtype).count();
    assert_eq!((count(Dtype::U32), count(Dtype::F32)), (32, 1 + 1 + 16), "nothing is left out of the file");
}
