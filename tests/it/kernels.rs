//! Every table of kernels against the scalar one, bit for bit: sizes, alignments, special values.

use quantfs::{
    kernel::{Affine, Cast, Flavour, Isa, Kernels, Micro, MicroCode, ScaleRule, available, kernels},
    tensor::Float,
};

/// splitmix64: the same stream in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn index(&mut self, n: u64) -> usize {
        usize::try_from(self.below(n)).unwrap()
    }
}

/// One value of a group: raw bits, weights of a common size, ties, or special values.
fn value(random: &mut Random, kind: u64, scale: f32) -> f32 {
    let unit = (random.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
    let special = [0.0, -0.0, f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, 1e-45, -1e-40, 65504.0];
    match kind {
        0 => f32::from_bits((random.next() >> 32) as u32),
        1 => (unit * 16.0).round() / 4.0,
        2 if random.below(16) == 0 => special[random.index(10)],
        3 => scale,
        4 => -unit.abs() * scale,
        _ => unit * scale,
    }
}

/// So many elements, of another kind in each run of 32; `start` bytes of padding before them.
fn elements(random: &mut Random, float: Float, count: usize, start: usize) -> Vec<u8> {
    let mut wide = vec![];
    for _ in 0..count.div_ceil(32) {
        let (kind, scale) = (random.below(8), 2f32.powi(i32::try_from(random.below(250)).unwrap() - 140));
        let scale = if random.below(2) == 0 { 0.02 } else { scale };
        (0..32).for_each(|_| wide.extend(value(random, kind, scale).to_le_bytes()));
    }
    let mut out = vec![0; start + count * float.size()];
    available()[0].cast(&Cast { from: Float::F32, to: float, plus_one: false }, &wide[..count * 4], &mut out[start..]);
    out
}

/// Runs `kernel` of every table into buffers that start at odd addresses, and compares them.
fn differential(what: &str, len: usize, start: usize, kernel: impl Fn(&Kernels, &mut [u8])) {
    let run = |table| {
        let mut out = vec![0xa5; start + len + 1];
        kernel(table, &mut out[start..start + len]);
        out
    };
    let expected = run(available()[0]);
    for table in &available()[1..] {
        let ours = run(table);
        if let Some(at) = (0..ours.len()).find(|&i| ours[i] != expected[i]) {
            panic!("{} differs from scalar at byte {} of {len}: {what}", table.isa(), at - start);
        }
    }
}

const FLAVOURS: [Flavour; 2] = [Flavour::Cpu, Flavour::Metal];
/// Numbers of groups: one, a few, around the ends of a block of 2048 elements, several blocks.
const GROUPS: [usize; 8] = [1, 2, 3, 15, 17, 33, 65, 200];

#[test]
fn affine_is_the_same_from_every_table() {
    let mut random = Random(1);
    for (i, groups) in GROUPS.into_iter().enumerate() {
        for bits in [2, 3, 4, 5, 6, 8] {
            for (group, float, flavour) in combinations([32, 64, 128]) {
                let start = random.index(8);
                let src = elements(&mut random, float, groups * group, start);
                let stored = if i % 2 == 0 { float } else { Float::F32 };
                let job = Affine { bits, group, float, stored, flavour };
                let (codes, params) = (groups * group / 8 * bits as usize, groups * stored.size());
                let split = |out: &mut [u8], k: &Kernels| {
                    let (codes, rest) = out.split_at_mut(codes);
                    let (scales, biases) = rest.split_at_mut(params);
                    k.quantize_affine(&job, &src[start..], codes, scales, biases);
                };
                let what = format!("{job:?}, {groups} groups, start {start}");
                differential(&what, codes + 2 * params, start, |k, out| split(out, k));
                let mut parts = vec![0; codes + 2 * params];
                split(&mut parts, available()[0]);
                differential(&format!("decoding {what}"), groups * group * 4, start, |k, out| {
                    let mut values = vec![0f32; groups * group];
                    k.dequantize_affine(
                        &job,
                        &parts[..codes],
                        &parts[codes..codes + params],
                        &parts[codes + params..],
                        &mut values,
                    );
                    store(&values, out);
                });
            }
        }
    }
}

fn combinations(sizes: [usize; 3]) -> impl Iterator<Item = (usize, Float, Flavour)> {
    let floats = move |size| Float::ALL.into_iter().map(move |f| (size, f));
    sizes.into_iter().flat_map(floats).flat_map(|(s, f)| FLAVOURS.into_iter().map(move |v| (s, f, v)))
}

/// NaN as one pattern: which of its bits an addition keeps is the machine's affair, and nobody reads it.
fn store(values: &[f32], out: &mut [u8]) {
    for (b, v) in out.chunks_mut(4).zip(values) {
        b.copy_from_slice(&if v.is_nan() { f32::NAN } else { *v }.to_le_bytes());
    }
}

#[test]
fn microscaling_is_the_same_from_every_table() {
    let mut random = Random(2);
    let codes = [MicroCode::Mxfp4, MicroCode::Mxfp8, MicroCode::Nvfp4];
    for groups in GROUPS {
        for (code, (_, float, flavour)) in codes.into_iter().flat_map(|c| combinations([0; 3]).map(move |x| (c, x))) {
            for rule in [ScaleRule::Up, ScaleRule::Nearest] {
                let start = random.index(8);
                let count = groups * code.group_size();
                let src = elements(&mut random, float, count, start);
                let computed = if random.below(3) == 0 { Float::F32 } else { float };
                let job = Micro { code, float, computed, flavour, rule };
                let packed = count / 8 * code.bits() as usize;
                let what = format!("{job:?}, {groups} groups, start {start}");
                let mut parts = vec![0; packed + groups];
                let quantize = |k: &Kernels, out: &mut [u8]| {
                    let (codes, scales) = out.split_at_mut(packed);
                    k.quantize_micro(&job, &src[start..], codes, scales);
                };
                differential(&what, packed + groups, start, quantize);
                quantize(available()[0], &mut parts);
                differential(&format!("decoding {what}"), count * 4, start, |k, out| {
                    let mut values = vec![0f32; count];
                    k.dequantize_micro(&job, &parts[..packed], &parts[packed..], &mut values);
                    store(&values, out);
                });
            }
        }
    }
}

#[test]
fn casts_are_the_same_from_every_table() {
    let mut random = Random(3);
    for count in (0..300).chain([2047, 2048, 2049, 5000]) {
        for from in Float::ALL {
            let start = random.index(8);
            let src = elements(&mut random, from, count, start);
            for to in Float::ALL {
                let plus_one = random.below(2) == 0;
                let job = Cast { from, to, plus_one };
                let what = format!("{job:?}, {count} elements, start {start}");
                differential(&what, count * to.size(), start, |k, out| k.cast(&job, &src[start..], out));
            }
        }
    }
}

/// A run on a lesser machine must not pass for a test of what it cannot run.
#[test]
fn the_required_tables_were_tested() {
    let tested: Vec<&str> = available().iter().map(|k| k.isa().name()).collect();
    assert_eq!(tested[0], Isa::Scalar.name());
    let required = std::env::var("QUANTFS_REQUIRE_ISA").unwrap_or_default();
    for name in required.split(',').filter(|n| !n.is_empty()) {
        assert!(tested.contains(&name), "{name} is required and this machine has {tested:?}");
    }
}

#[test]
#[should_panic(expected = "no whole groups")]
fn a_run_that_is_no_whole_groups_is_refused() {
    let job = Affine { bits: 4, group: 64, float: Float::Bf16, stored: Float::Bf16, flavour: Flavour::Cpu };
    available()[0].quantize_affine(&job, &[0; 96], &mut [0; 24], &mut [0; 2], &mut [0; 2]);
}

#[test]
fn the_table_that_is_named_is_used() {
    crate::common::tables::select_kernels();
    if let Ok(name) = std::env::var("QUANTFS_ISA") {
        assert_eq!(kernels().isa().name(), name);
    }
}

#[test]
fn what_is_not_finite_is_counted() {
    for float in Float::ALL {
        let exponent: u32 = match float {
            Float::Bf16 => 0x7F80,
            Float::F16 => 0x7C00,
            Float::F32 => 0x7F80_0000,
        };
        let sign = 1u32 << (float.size() * 8 - 1);
        let bits = (0..100_000u32).map(|i| match i % 7 {
            0 => exponent,
            3 => sign | exponent | 1 | (i % 5),
            4 => exponent - 1,
            _ => i % 0x7000,
        });
        let bytes: Vec<u8> = bits.clone().flat_map(|b| b.to_le_bytes()[..float.size()].to_vec()).collect();
        let expected = bits.filter(|b| b & exponent == exponent).count();
        for table in available() {
            assert_eq!(table.not_finite(float, &bytes), expected, "{} {float:?}", table.isa());
            assert_eq!(
                table.not_finite(float, &vec![0xFF; 40_000 * float.size()]),
                40_000,
                "{} {float:?}",
                table.isa()
            );
        }
    }
}
