//! Every table of kernels against the scalar one, bit for bit: sizes, alignments, special values.

use quantfs::{
    kernel::{
        Affine, Blocks, Cast, Choice, Coding, Columns, Flavour, Isa, Kernels, Method, Micro, MicroCode, Rule,
        ScaleRule, Scaled, available, kernels,
    },
    num::book::{FP4, NF4},
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

/// Kinds of values from here on are finite.
const FINITE: u64 = 2;

/// One value of a group: raw bits, special values, ties, weights of a common size, or such far from zero.
fn value(random: &mut Random, kind: u64, scale: f32) -> f32 {
    let unit = (random.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
    let special = [0.0, -0.0, f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, 1e-45, -1e-40, 65504.0];
    match kind {
        0 => f32::from_bits((random.next() >> 32) as u32),
        1 if random.below(16) == 0 => special[random.index(10)],
        2 => (unit * 16.0).round() / 4.0,
        3 => scale,
        4 => -unit.abs() * scale,
        5 => (unit * 64.0).round() * scale,
        6 => (unit + 9.0) * scale,
        7 => 0.0,
        _ => unit * scale,
    }
}

/// So many elements, of another kind in each run of 32; `start` bytes of padding before them. Every second
/// time all are finite: kernels take another way where one is not.
fn elements(random: &mut Random, float: Float, count: usize, start: usize) -> Vec<u8> {
    let mut wide = vec![];
    let first = random.below(2) * FINITE;
    for _ in 0..count.div_ceil(32) {
        // Beyond the range of halves most are infinite.
        let (least, span) = if float == Float::F16 { (-30, 36) } else { (-140, 250) };
        let (kind, scale) = (first + random.below(10), 2f32.powi(i32::try_from(random.below(span)).unwrap() + least));
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

/// Every method, weighted and not; rows of eleven groups, so that bands begin within one.
#[test]
fn methods_choose_the_same_from_every_table() {
    let mut random = Random(11);
    for (i, groups) in GROUPS.into_iter().enumerate() {
        for (n, (group, float, flavour)) in combinations([32, 64, 128]).enumerate() {
            let bits = [2, 3, 4, 5, 6, 8][(i + n) % 6];
            for method in [Method::Rtn, Method::Ls, Method::Hqq] {
                let start = random.index(8);
                let src = elements(&mut random, float, groups * group, start);
                let stored = if i % 2 == 0 { float } else { Float::F32 };
                let job = Affine { bits, group, float, stored, flavour };
                let weights: Vec<f32> = (0..11 * group).map(|_| random.below(1000) as f32 / 500.0).collect();
                let importance = if random.below(2) == 0 { &[] } else { &weights[..] };
                let choice = Choice { method, importance, first: random.index(11) * group };
                let (codes, params) = (groups * group / 8 * bits as usize, groups * stored.size());
                let what = format!("{method:?} {job:?}, {groups} groups from {}", choice.first);
                differential(&what, codes + 2 * params, start, |k, out| {
                    let (codes, rest) = out.split_at_mut(codes);
                    let (scales, biases) = rest.split_at_mut(params);
                    k.choose_affine(&job, &choice, &src[start..], [codes, scales, biases]);
                });
            }
        }
    }
}

#[test]
fn searched_zero_points_are_the_same_from_every_table() {
    let mut random = Random(12);
    for _ in 0..150 {
        let (group, float) = ([32, 64, 128][random.index(3)], Float::ALL[random.index(3)]);
        let [weighted, symmetric, flag, other] = [(); 4].map(|()| random.index(2) == 0);
        let weights: Vec<f32> = (0..4 * group).map(|_| random.below(1000) as f32 / 500.0).collect();
        let importance = if weighted { &weights[..] } else { &[] };
        let choice = Choice { method: Method::Ls, importance, first: random.index(3) * group };
        let (rows, cols) = (32 * (1 + random.index(3)), group * (1 + random.index(2)));
        let bits = [2, 3, 4, 8][random.index(4)];
        let rule = if flag && other { Rule::Awq } else { Rule::Gptq { bits, symmetric, less_one: flag } };
        let job = Columns { float, cols, group, rule };
        let src = elements(&mut random, float, rows * cols, 0);
        let (codes, groups) = (rows * cols / 8 * job.bits() as usize, cols / group);
        let zeros = groups * rows / 8 * job.bits() as usize;
        differential(&format!("{job:?} {choice:?}"), codes + zeros + groups * rows * 2, 1, |k, out| {
            let (codes, rest) = out.split_at_mut(codes);
            let (zeros, scales) = rest.split_at_mut(zeros);
            k.choose_columns(&job, &choice, &src, [codes, zeros, scales]);
        });
        let job = Blocks {
            bits: [2, 4, 8][random.index(3)],
            block: [16, 32, 64, 128][random.index(4)],
            symmetric,
            rounded: flag,
        };
        let len = 1 + random.index(500);
        let weights: Vec<f32> = (0..len).map(|_| random.below(1000) as f32 / 500.0).collect();
        let choice = Choice { importance: if weighted { &weights } else { &[] }, first: 0, ..choice };
        let wide = elements(&mut random, Float::F32, len, 0);
        let row: Vec<f32> = wide.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let blocks = len.div_ceil(job.block);
        differential(&format!("{job:?} {choice:?}"), blocks * (job.bytes() + 5), 0, |k, out| {
            let (codes, rest) = out.split_at_mut(blocks * job.bytes());
            let (zeros, stored) = rest.split_at_mut(blocks);
            let mut scales = vec![0.0; blocks];
            k.choose_blocks((&job, float), &choice, &row, codes, (&mut scales, zeros));
            store(&scales, stored);
        });
        let bits = [2, 3, 4, 5, 6, 7, 8][random.index(7)];
        let coding = if symmetric { Coding::Signed(bits) } else { Coding::Shifted(bits) };
        let coding = if symmetric && flag { Coding::Int8 } else { coding };
        // Rows of any length, longer than a part of a search too.
        let is_row = other && !flag;
        let (group, cols) = if is_row { (32 * (1 + random.index(150)), 0) } else { (group, cols) };
        let (cols, groups) = if is_row { (group, 1) } else { (cols, cols / group) };
        let job = Scaled { coding, float, group, is_row, eager: other };
        let weights: Vec<f32> = (0..cols).map(|_| random.below(1000) as f32 / 500.0).collect();
        let choice = Choice { importance: if weighted { &weights } else { &[] }, first: 0, ..choice };
        let src = elements(&mut random, float, rows * cols, 0);
        let codes = rows * groups * job.row_bytes(group);
        differential(&format!("{job:?} {choice:?}"), codes + groups * rows * (job.scale_bytes() + 1), 0, |k, out| {
            let (codes, rest) = out.split_at_mut(codes);
            let (scales, zeros) = rest.split_at_mut(groups * rows * job.scale_bytes());
            let zeros = if job.coding.has_zeros() { zeros } else { &mut [] };
            k.choose_scaled(&job, &choice, &src, [codes, scales, zeros]);
        });
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

/// Groups of 32 that begin with the largest magnitude, and all bf16 of up to 20 powers of two below it.
fn below(largest: u16) -> Vec<u8> {
    let rest: Vec<u16> =
        (largest.saturating_sub(20 << 7)..=largest).chain(0..4).flat_map(|bits| [bits, bits | 0x8000]).collect();
    let groups = rest.chunks_exact(31).map(|rest| [&[largest], rest].concat());
    groups.flatten().flat_map(u16::to_le_bytes).collect()
}

#[test]
fn every_bf16_is_the_same_beside_every_power() {
    let powers = (0..255u16).map(|power| power << 7 | ((power * 37) & 0x7f));
    for largest in powers.chain([1, 0x7f, 0x80, 0x7f7f, 0x4d7f, 0x4d80, 0xd7f, 0xd80]) {
        let src = below(largest);
        let count = src.len() / 2;
        let flavour = FLAVOURS[usize::from(largest & 1)];
        for (code, rule) in [MicroCode::Mxfp4, MicroCode::Mxfp8, MicroCode::Nvfp4]
            .into_iter()
            .flat_map(|code| [ScaleRule::Up, ScaleRule::Nearest].map(|rule| (code, rule)))
        {
            for (flavour, computed) in [(flavour, Float::Bf16), (Flavour::Cpu, Float::F32)] {
                let job = Micro { code, float: Float::Bf16, computed, flavour, rule };
                let packed = count / 8 * code.bits() as usize;
                let what = format!("{job:?} below {largest:04x}");
                differential(&what, packed + count / code.group_size(), 0, |k, out| {
                    let (codes, scales) = out.split_at_mut(packed);
                    k.quantize_micro(&job, &src, codes, scales);
                });
            }
        }
        for bits in [2, 3, 4, 5, 6, 8] {
            let job = Affine { bits, group: 32, float: Float::Bf16, stored: Float::Bf16, flavour };
            let (packed, params) = (count / 8 * bits as usize, count / 32 * 2);
            differential(&format!("{job:?} below {largest:04x}"), packed + 2 * params, 0, |k, out| {
                let (codes, rest) = out.split_at_mut(packed);
                let (scales, biases) = rest.split_at_mut(params);
                k.quantize_affine(&job, &src, codes, scales, biases);
            });
        }
    }
}

/// Groups of 16 that have this largest magnitude: the middles of e2m1 under it, its neighbours and theirs, and any
/// elements below it.
fn under(random: &mut Random, largest: u16) -> Vec<u8> {
    let top = f32::from_bits(u32::from(largest) << 16);
    let middles = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0].map(|middle| ((top / 6.0 * middle).to_bits() >> 16) as u16);
    let near = middles.into_iter().flat_map(|m| [m.saturating_sub(1), m, m + 1, m + 2]);
    let other = (0..32).map(|_| u16::try_from(random.below(u64::from(largest) + 1)).unwrap());
    let all: Vec<u16> = near.chain(other).map(|bits| bits.min(largest)).collect();
    let groups = all.chunks_exact(15).map(|rest| [&[largest], rest].concat());
    groups.flatten().flat_map(|bits| (bits ^ if random.below(2) == 0 { 0x8000 } else { 0 }).to_le_bytes()).collect()
}

#[test]
fn small_floats_are_the_same_under_every_largest_magnitude() {
    let mut random = Random(5);
    let all: Vec<Vec<u8>> = (0..0x7f80).map(|largest| under(&mut random, largest)).collect();
    let src = all.concat();
    let count = src.len() / 2;
    for code in [MicroCode::Mxfp4, MicroCode::Mxfp8, MicroCode::Nvfp4] {
        for (rule, flavour) in [ScaleRule::Up, ScaleRule::Nearest].into_iter().flat_map(|r| FLAVOURS.map(|f| (r, f))) {
            for computed in [Float::Bf16, Float::F32] {
                let job = Micro { code, float: Float::Bf16, computed, flavour, rule };
                let packed = count / 8 * code.bits() as usize;
                differential(&format!("{job:?}"), packed + count / code.group_size(), 0, |k, out| {
                    let (codes, scales) = out.split_at_mut(packed);
                    k.quantize_micro(&job, &src, codes, scales);
                });
            }
        }
    }
}

#[test]
fn symmetric_codes_and_blocks_are_the_same_from_every_table() {
    let mut random = Random(4);
    for (i, count) in (0..200).chain([255, 256, 257, 2048, 5001]).enumerate() {
        let values: Vec<f32> = elements(&mut random, Float::F32, count, 0)
            .chunks(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect();
        differential(&format!("symmetric codes of {count}"), count + 4, 0, |k, out| {
            let (codes, scale) = out.split_at_mut(count);
            let found = k.quantize_symmetric(None, &values, codes);
            scale.copy_from_slice(&if found.is_nan() { f32::NAN } else { found }.to_le_bytes());
        });
        for (bits, block) in [2, 4, 8].into_iter().flat_map(|bits| [16, 32, 64, 256, count.max(1)].map(|b| (bits, b))) {
            let job = Blocks { bits, block, symmetric: i % 2 == 0, rounded: i % 3 == 0 };
            let blocks = count.div_ceil(block);
            let packed = blocks * job.bytes();
            differential(&format!("{job:?} of {count}"), packed + 5 * blocks, 0, |k, out| {
                let (codes, rest) = out.split_at_mut(packed);
                let (zeros, scales) = rest.split_at_mut(blocks);
                let mut found = vec![0.0; blocks];
                k.quantize_blocks(&job, &values, codes, &mut found, zeros);
                store(&found, scales);
            });
        }
    }
}

/// Jobs of codes under scales with so many groups each: groups around the ends of blocks, rows of any length.
fn scaled_jobs() -> impl Iterator<Item = (Scaled, usize)> {
    let packed = (2..=8).flat_map(|bits| [Coding::Signed(bits), Coding::Shifted(bits)]);
    let bytes = [Coding::Int8, Coding::E4m3, Coding::Mxfp4, Coding::Mxfp8, Coding::Nvfp4(1000.0), Coding::Nvfp4(0.0)];
    packed.chain(bytes).flat_map(|coding| {
        let shapes = [(16, 200), (32, 70), (64, 33), (128, 17), (1, 9), (250, 5), (4100, 3)];
        let of = move |(group, groups): (usize, usize)| {
            let is_row = !matches!(group, 16 | 32 | 64 | 128);
            Float::ALL.map(|float| (Scaled { coding, float, group, is_row, eager: groups != 33 }, groups))
        };
        shapes.into_iter().flat_map(of)
    })
}

#[test]
fn codes_under_scales_are_the_same_from_every_table() {
    let mut random = Random(6);
    for (job, groups) in scaled_jobs() {
        let (count, start) = (job.group * groups, random.index(8));
        let src = elements(&mut random, job.float, count, start);
        let (codes, zeros) = (groups * job.row_bytes(job.group), if job.coding.has_zeros() { groups } else { 0 });
        let scales = groups * job.scale_bytes();
        let what = format!("{job:?} of {groups} groups");
        let quantize = |k: &Kernels, out: &mut [u8]| {
            let (coded, rest) = out.split_at_mut(codes);
            let (scales, zeros) = rest.split_at_mut(scales);
            k.quantize_scaled(&job, &[], &src[start..], [coded, scales, zeros]);
        };
        differential(&what, codes + scales + zeros, start, quantize);
        let given: Vec<f32> = (0..groups).map(|_| value(&mut random, 8, 3.0)).collect();
        differential(&format!("{what} with given scales"), codes + zeros, start, |k, out| {
            let (codes, zeros) = out.split_at_mut(codes);
            k.quantize_scaled(&job, &given, &src[start..], [codes, &mut [], zeros]);
        });
        let mut made = vec![0; codes + scales + zeros];
        quantize(available()[0], &mut made);
        differential(&format!("decoding {what}"), count * 4, start, |k, out| {
            let mut values = vec![0f32; count];
            k.dequantize_scaled(&job, &made[..codes], &given, &made[codes + scales..], &mut values);
            store(&values, out);
        });
    }
}

#[test]
fn columns_are_the_same_from_every_table() {
    let mut random = Random(23);
    let gptq = |bits, symmetric, less_one| Rule::Gptq { bits, symmetric, less_one };
    let widths =
        [2, 3, 4, 8].into_iter().flat_map(|b| [gptq(b, true, true), gptq(b, false, true), gptq(b, false, false)]);
    for rule in widths.chain([Rule::Awq]) {
        for (i, float) in Float::ALL.into_iter().cycle().take(9).enumerate() {
            let (group, rows) = ([32, 64, 128][i / 3], [32, 64, 160, 288][random.index(4)]);
            let job = Columns { float, cols: group * (1 + random.index(3)), group, rule };
            let (count, start) = (rows * job.cols, random.index(8));
            let src = elements(&mut random, float, count, start);
            let (codes, zeros) = (count / 8 * job.bits() as usize, count / group / 8 * job.bits() as usize);
            let what = format!("{job:?}, {rows} rows, start {start}");
            differential(&what, codes + zeros + count / group * 2, start, |k, out| {
                let (codes, out) = out.split_at_mut(codes);
                let (zeros, scales) = out.split_at_mut(zeros);
                k.quantize_columns(&job, &src[start..], codes, zeros, scales);
            });
        }
    }
}

#[test]
fn codes_of_books_rows_and_tiles_are_the_same_from_every_table() {
    let mut random = Random(5);
    for count in (0..150).chain([255, 256, 257, 2048, 5001]) {
        for (float, book) in Float::ALL.into_iter().flat_map(|float| [&NF4, &FP4].map(|book| (float, book))) {
            let start = random.index(8);
            let src = elements(&mut random, float, count, start);
            let (codes, blocks) = (count.div_ceil(2), count.div_ceil(64));
            let what = format!("{count} elements of {}, start {start}", float.name());
            differential(&format!("codes of a book: {what}"), codes + 8 * blocks, start, |k, out| {
                let (codes, rest) = out.split_at_mut(codes);
                let (absmax, again) = rest.split_at_mut(4 * blocks);
                let mut found = vec![0.0; blocks];
                k.quantize_by_book(float, book, &src[start..], codes, &mut found);
                absmax.copy_from_slice(&found.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<_>>());
                k.block_maxima(float, &src[start..], &mut found);
                again.copy_from_slice(&found.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<_>>());
                assert_eq!(absmax, again, "{what}");
            });
            differential(&format!("codes of a row: {what}"), count + 4, start, |k, out| {
                let (codes, most) = out.split_at_mut(count);
                most.copy_from_slice(&k.quantize_vectorwise(float, &src[start..], codes).to_le_bytes());
            });
        }
    }
    for (float, cols) in Float::ALL.into_iter().flat_map(|float| [128, 384, 1024].map(|cols| (float, cols))) {
        let src = elements(&mut random, float, 128 * cols, 3);
        differential(&format!("tiles of {}", float.name()), 128 * cols + cols / 32, 3, |k, out| {
            let (codes, scales) = out.split_at_mut(128 * cols);
            let mut found = vec![0.0; cols / 128];
            k.quantize_tiles(float, cols, &src[3..], codes, &mut found);
            scales.copy_from_slice(&found.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<_>>());
        });
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
