//! GB/s of source for each kernel and instruction set: `cargo bench --bench kernels [-- FILTER]`.
//!
//! The bytes that are timed are compared with the reference table's first: a fast wrong kernel does
//! not get a number.

use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime};
use quantfs::{
    kernel::{
        Affine, Cast, Choice, Coding, Columns, Flavour, Kernels, Method, Micro, MicroCode, Rule, ScaleRule, Scaled,
        available,
    },
    tensor::Float,
};
use std::{hint::black_box, time::Duration};

/// Elements of a run: a tile of the file system, beyond the second-level cache.
const ELEMENTS: usize = 1 << 20;

/// Bell-shaped weights of the size that models have, the same in every run.
fn weights(float: Float) -> Vec<u8> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    let wide: Vec<u8> =
        (0..ELEMENTS).flat_map(|_| (0.02 * (uniform() + uniform() + uniform() + uniform())).to_le_bytes()).collect();
    let mut out = vec![0; ELEMENTS * float.size()];
    available()[0].cast(&Cast { from: Float::F32, to: float, plus_one: false }, &wide, &mut out);
    out
}

/// Runs `kernel` of every table on `src`, into a buffer of `len` bytes.
fn case(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    src: &[u8],
    len: usize,
    kernel: impl Fn(&Kernels, &[u8], &mut [u8]),
) {
    let mut expected = vec![0; len];
    kernel(available()[0], src, &mut expected);
    group.throughput(Throughput::Bytes(src.len() as u64));
    for table in available() {
        let mut out = vec![0; len];
        kernel(table, src, &mut out);
        assert!(out == expected, "{name}: {} differs from the reference", table.isa());
        group.bench_function(format!("{name}/{}", table.isa()), |b| {
            b.iter(|| kernel(table, black_box(src), black_box(&mut out)));
        });
    }
}

fn affine(c: &mut Criterion) {
    let mut group = c.benchmark_group("affine");
    for float in [Float::Bf16, Float::F16, Float::F32] {
        let src = weights(float);
        for (bits, size, flavour) in [
            (4, 64, Flavour::Cpu),
            (8, 64, Flavour::Cpu),
            (2, 64, Flavour::Cpu),
            (3, 64, Flavour::Cpu),
            (5, 64, Flavour::Cpu),
            (6, 64, Flavour::Cpu),
            (4, 32, Flavour::Cpu),
            (4, 128, Flavour::Cpu),
            (4, 64, Flavour::Metal),
        ] {
            let job = Affine { bits, group: size, float, stored: float, flavour };
            let (codes, params) = (ELEMENTS / 8 * bits as usize, ELEMENTS / size * float.size());
            let name = format!("{}/b{bits}-g{size}-{flavour:?}", float.name());
            case(&mut group, &name, &src, codes + 2 * params, |k, src, out| {
                let (codes, rest) = out.split_at_mut(codes);
                let (scales, biases) = rest.split_at_mut(params);
                k.quantize_affine(&job, src, codes, scales, biases);
            });
        }
    }
}

/// Codes that are searched for.
fn methods(c: &mut Criterion) {
    let mut group = c.benchmark_group("methods");
    let src = weights(Float::Bf16);
    let importance: Vec<f32> = (0..1024u16).map(|k| f32::from(k % 7)).collect();
    for (name, method, importance) in
        [("ls", Method::Ls, &[][..]), ("ls-weighted", Method::Ls, &importance), ("hqq", Method::Hqq, &[])]
    {
        let choice = Choice { method, importance, first: 0 };
        for (bits, size) in [(4, 64), (4, 32), (3, 64), (2, 64), (8, 64)] {
            let job = Affine { bits, group: size, float: Float::Bf16, stored: Float::Bf16, flavour: Flavour::Cpu };
            let (codes, params) = (ELEMENTS / 8 * bits as usize, ELEMENTS / size * 2);
            case(&mut group, &format!("{name}/b{bits}-g{size}"), &src, codes + 2 * params, |k, src, out| {
                let (codes, rest) = out.split_at_mut(codes);
                let (scales, biases) = rest.split_at_mut(params);
                k.choose_affine(&job, &choice, src, [codes, scales, biases]);
            });
        }
    }
    let choice = Choice { method: Method::Ls, importance: &[], first: 0 };
    for symmetric in [true, false] {
        let rule = Rule::Gptq { bits: 4, symmetric, less_one: false };
        let job = Columns { float: Float::Bf16, cols: 1024, group: 128, rule };
        let (codes, groups) = (ELEMENTS / 2, ELEMENTS / 128);
        let name = format!("ls/gptq-b4-g128-{}", if symmetric { "sym" } else { "asym" });
        case(&mut group, &name, &src, codes + groups / 2 + groups * 2, |k, src, out| {
            let (codes, rest) = out.split_at_mut(codes);
            let (zeros, scales) = rest.split_at_mut(groups / 2);
            k.choose_columns(&job, &choice, src, [codes, zeros, scales]);
        });
        let coding = if symmetric { Coding::Signed(4) } else { Coding::Shifted(4) };
        let job = Scaled { coding, float: Float::Bf16, group: 128, is_row: false, eager: true };
        let name = format!("ls/ct-b4-g128-{}", if symmetric { "sym" } else { "asym" });
        let zeros = if symmetric { 0 } else { groups };
        case(&mut group, &name, &src, codes + groups * 2 + zeros, |k, src, out| {
            let (codes, rest) = out.split_at_mut(codes);
            let (scales, zeros) = rest.split_at_mut(groups * 2);
            k.choose_scaled(&job, &choice, src, [codes, scales, zeros]);
        });
    }
}

fn micro(c: &mut Criterion) {
    let mut group = c.benchmark_group("micro");
    for float in [Float::Bf16, Float::F16, Float::F32] {
        let src = weights(float);
        for code in [MicroCode::Mxfp4, MicroCode::Mxfp8, MicroCode::Nvfp4] {
            for flavour in [Flavour::Cpu, Flavour::Metal] {
                let job = Micro { code, float, computed: float, flavour, rule: ScaleRule::Up };
                let codes = ELEMENTS / 8 * code.bits() as usize;
                let name = format!("{}/{code:?}-{flavour:?}", float.name());
                case(&mut group, &name, &src, codes + ELEMENTS / code.group_size(), |k, src, out| {
                    let (codes, scales) = out.split_at_mut(codes);
                    k.quantize_micro(&job, src, codes, scales);
                });
            }
        }
    }
}

fn cast(c: &mut Criterion) {
    let mut group = c.benchmark_group("cast");
    for (from, to) in
        [(Float::F32, Float::Bf16), (Float::F32, Float::F16), (Float::Bf16, Float::F32), (Float::F16, Float::Bf16)]
    {
        let (src, job) = (weights(from), Cast { from, to, plus_one: false });
        let name = format!("{}-{}", from.name(), to.name());
        case(&mut group, &name, &src, ELEMENTS * to.size(), |k, src, out| k.cast(&job, src, out));
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(15).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(600));
    targets = affine, methods, micro, cast
}
criterion_main!(benches);
