//! Codes under scales, computed in the weight's own float: compressed-tensors' `calculate_qparams` and
//! `quantize` on a CPU, torch's operations one after the other, each rounded to that float.
//!
//! A group is a fixed run of elements, whole ones to a block, or a row of any length.
//!
//! Groups with elements that are not finite take `unusual`: one element at a time. Torch's minimum and maximum pass NaN on,
//! its conversion of NaN to a whole number is 0 on x86, and the signs of NaN are those of its vector code there.

mod search;

pub(in crate::kernel) use search::choose;

use crate::{
    kernel::{Coding, Scaled, scaled::epsilon},
    num::{
        fp4::{self, TIES_EVEN},
        fp8::{e4m3_from_f32, e4m3_to_f32},
    },
    tensor::Float,
};

use super::{
    BLOCK, SIGNED_ROUNDER,
    affine::extrema,
    blocks::largest,
    larger, narrow,
    pack::{pack, unpack},
    round_to,
    sixteen::{LANES, Plain, Sixteen},
    smaller, widen,
};
use search::Search;

/// Groups of a block at most.
const GROUPS: usize = BLOCK / 16;
const INFINITE: u32 = 0x7f80_0000;
/// The scale of an nvfp4 group whose own is zero: 2^-3, "eps" of e4m3 to torch.
const NVFP4_LEAST: f32 = 0.125;

/// What is known of the groups of a block.
#[repr(C, align(64))]
struct Groups {
    /// Least and largest element, zero among them.
    low: [f32; GROUPS],
    high: [f32; GROUPS],
    /// The bits of the largest magnitude where a block has elements that are not finite, else 0.
    top: [u32; GROUPS],
    /// What is stored.
    scale: [f32; GROUPS],
    /// What elements are divided by.
    divisor: [f32; GROUPS],
    /// Zero points, added to quotients.
    zero: [f32; GROUPS],
}

impl Groups {
    const NONE: Self = Self {
        low: [0.0; GROUPS],
        high: [0.0; GROUPS],
        top: [0; GROUPS],
        scale: [1.0; GROUPS],
        divisor: [1.0; GROUPS],
        zero: [0.0; GROUPS],
    };
}

/// Packed codes; stored scales and zero points (one byte each), one a group, unless scales are `given`.
#[inline(always)]
pub(in crate::kernel) fn quantize(job: &Scaled, given: &[f32], src: &[u8], out: [&mut [u8]; 3]) {
    quantize_with(job, given, src, out, None::<&mut Search<'_, Plain>>);
}

#[inline(always)]
fn quantize_with<S: Sixteen>(
    job: &Scaled,
    given: &[f32],
    src: &[u8],
    out: [&mut [u8]; 3],
    search: Option<&mut Search<'_, S>>,
) {
    if job.is_row {
        rows(job, given, src, out, search);
    } else {
        blocks(job, given, src, out, search);
    }
}

/// Groups that are rows, whose scales are given or found, and then changed where there is a search for better ones.
#[inline(always)]
fn rows<S: Sixteen>(
    job: &Scaled,
    given: &[f32],
    src: &[u8],
    [codes, scales, zeros]: [&mut [u8]; 3],
    mut search: Option<&mut Search<'_, S>>,
) {
    let mut scales = scales.chunks_exact_mut(job.scale_bytes());
    let mut zeros = zeros.iter_mut();
    let rows = src.chunks_exact(job.group * job.float.size()).zip(codes.chunks_exact_mut(job.row_bytes(job.group)));
    for (number, (row, codes)) in rows.enumerate() {
        let (scale, zero) = long(job, given.get(number).copied(), row, codes, search.as_deref_mut());
        if let Some(out) = scales.next() {
            store_scales(job, &[scale], out);
        }
        if let Some(out) = zeros.next() {
            *out = stored_zero(job, zero);
        }
    }
}

/// Groups that make up blocks, whose scales are given or found, and then changed where there is a search for better ones.
#[inline(always)]
fn blocks<S: Sixteen>(
    job: &Scaled,
    given: &[f32],
    src: &[u8],
    [codes, scales, zeros]: [&mut [u8]; 3],
    mut search: Option<&mut Search<'_, S>>,
) {
    let (bits, count) = (job.coding.bits() as usize, BLOCK / job.group);
    let mut values = [0f32; BLOCK];
    let mut coded = [0u8; BLOCK];
    let mut groups = Groups::NONE;
    let mut scales = scales.chunks_mut(count * job.scale_bytes());
    let mut zeros = zeros.chunks_mut(count);
    let is_given = !given.is_empty();
    let mut given = given.chunks(count);
    for (block, codes) in src.chunks(BLOCK * job.float.size()).zip(codes.chunks_mut(BLOCK / 8 * bits)) {
        let values = &mut values[..block.len() / job.float.size()];
        let (coded, used) = (&mut coded[..values.len()], values.len() / job.group);
        widen(job.float, block, values);
        spans(job, values, &mut groups);
        match given.next() {
            Some(given) => take(given, &mut groups),
            None => fit(job, used, &mut groups),
        }
        if let Some(search) = &mut search {
            search.improve(job, values, &mut groups);
        }
        code(job, values, &groups, coded);
        if groups.top[..used].iter().fold(false, |odd, top| odd | (*top >= INFINITE)) {
            widen(job.float, block, values);
            unusual(job, is_given, values, &mut groups, coded);
        }
        pack(job.coding.bits(), coded, codes);
        if let Some(scales) = scales.next() {
            store_scales(job, &groups.scale[..used], scales);
        }
        if let Some(zeros) = zeros.next() {
            zeros.iter_mut().zip(&groups.zero).for_each(|(out, zero)| *out = stored_zero(job, *zero));
        }
    }
}

/// Has scales that are known divide; groups of one that is not finite are unusual.
#[inline(always)]
fn take(given: &[f32], groups: &mut Groups) {
    for ((scale, divisor), top) in given.iter().zip(&mut groups.divisor).zip(&mut groups.top) {
        *divisor = *scale;
        *top = (*top).max(scale.to_bits() & 0x7fff_ffff);
    }
}

/// A row that is one group: gone through twice. Its scale and zero point.
#[inline(always)]
fn long<S: Sixteen>(
    job: &Scaled,
    given: Option<f32>,
    row: &[u8],
    codes: &mut [u8],
    search: Option<&mut Search<'_, S>>,
) -> (f32, f32) {
    let mut values = [0f32; BLOCK];
    let mut coded = [0u8; BLOCK];
    let mut all = Groups::NONE;
    let size = job.float.size();
    for block in row.chunks(BLOCK * size) {
        let values = &mut values[..block.len() / size];
        widen(job.float, block, values);
        let (low, high) = span(job, values);
        all.low[0] = smaller(low, all.low[0]);
        all.high[0] = larger(high, all.high[0]);
        if has_odd(values) {
            tops(job.group, values, &mut all.top);
        }
    }
    match given {
        Some(scale) => take(&[scale], &mut all),
        None if all.top[0] >= INFINITE => fit_unusual(job, 0, &mut all),
        None => fit(job, 1, &mut all),
    }
    let odd = all.top[0] >= INFINITE;
    if let (Some(search), false) = (search, odd) {
        search.improve_row(job, row, &mut all);
    }
    for (block, codes) in row.chunks(BLOCK * size).zip(codes.chunks_mut(BLOCK / 8 * job.coding.bits() as usize)) {
        let values = &mut values[..block.len() / size];
        let coded = &mut coded[..values.len()];
        widen(job.float, block, values);
        if odd {
            values.iter().zip(&mut *coded).for_each(|(w, code)| *code = code_unusual(job, *w, 0, &all));
        } else {
            code(job, values, &all, coded);
        }
        pack_end(job.coding.bits(), coded, codes);
    }
    (all.scale[0], all.zero[0])
}

/// Packs the codes of a row's block, of which the last may be no whole eights. Bits that no code fills are zero.
#[inline(always)]
fn pack_end(bits: u32, coded: &[u8], out: &mut [u8]) {
    let (whole, rest) = coded.split_at(coded.len() / 8 * 8);
    let (first, last) = out.split_at_mut(whole.len() / 8 * bits as usize);
    pack(bits, whole, first);
    if rest.is_empty() {
        return last.fill(0);
    }
    let (mut eight, mut bytes) = ([0u8; 8], [0u8; 8]);
    eight[..rest.len()].copy_from_slice(rest);
    pack(bits, &eight, &mut bytes[..bits as usize]);
    last.fill(0);
    let filled = last.len().min(bits as usize);
    last[..filled].copy_from_slice(&bytes[..filled]);
}

#[inline(always)]
fn spans(job: &Scaled, values: &[f32], groups: &mut Groups) {
    for (group, (low, high)) in values.chunks_exact(job.group).zip(groups.low.iter_mut().zip(&mut groups.high)) {
        (*low, *high) = span(job, group);
    }
    groups.top.fill(0);
    if has_odd(values) {
        tops(job.group, values, &mut groups.top);
    }
}

/// Least and largest element with zero among them, NaN passed over; only the largest magnitude where there are no zero
/// points.
#[inline(always)]
fn span(job: &Scaled, group: &[f32]) -> (f32, f32) {
    if !job.coding.has_zeros() {
        return (0.0, largest(group));
    }
    let (low, high) = extrema(group, 0.0, 0.0);
    let rest = group.as_chunks::<LANES>().1;
    rest.iter().fold((low, high), |(low, high), w| (smaller(*w, low), larger(*w, high)))
}

/// Whether any element is not finite.
#[inline(always)]
fn has_odd(values: &[f32]) -> bool {
    values.iter().fold(false, |odd, w| odd | (w.to_bits() & 0x7fff_ffff >= INFINITE))
}

/// The bits of the largest magnitude of each group: those of NaN are above all others.
#[cold]
fn tops(group: usize, values: &[f32], tops: &mut [u32; GROUPS]) {
    for (group, top) in values.chunks(group).zip(tops) {
        *top = group.iter().fold(*top, |top, w| top.max(w.to_bits() & 0x7fff_ffff));
    }
}

/// Scales, divisors and zero points of the first groups, sixteen at a time.
#[inline(always)]
fn fit(job: &Scaled, used: usize, groups: &mut Groups) {
    let Groups { low, high, scale, divisor, zero, .. } = groups;
    let spans = low.as_chunks::<LANES>().0.iter().zip(high.as_chunks::<LANES>().0);
    let found = scale.as_chunks_mut::<LANES>().0.iter_mut().zip(divisor.as_chunks_mut::<LANES>().0);
    let all = spans.zip(found.zip(zero.as_chunks_mut::<LANES>().0)).take(used.div_ceil(LANES));
    for ((low, high), ((scale, divisor), zero)) in all {
        match job.coding {
            Coding::Shifted(bits) => shifted(job.float, bits, (low, high), scale, zero),
            Coding::Mxfp4 | Coding::Mxfp8 => {
                for i in 0..LANES {
                    scale[i] = power(job, high[i]);
                }
            }
            _ => {
                for i in 0..LANES {
                    scale[i] = high[i] / job.coding.reach();
                }
                round_to(job.float, scale);
                settle(job, scale);
            }
        }
        *divisor = *scale;
        if let Coding::Nvfp4(whole) = job.coding {
            divisor.iter_mut().for_each(|s| *s /= whole);
        }
    }
}

/// What scales become that were rounded: nothing is divided by zero, and those of nvfp4 are e4m3.
#[inline(always)]
fn settle(job: &Scaled, scale: &mut [f32; LANES]) {
    if let Coding::Nvfp4(whole) = job.coding {
        for s in scale {
            let stored = e4m3_to_f32(e4m3_from_f32(whole * *s));
            *s = if stored == 0.0 { NVFP4_LEAST } else { stored };
        }
    } else {
        let least = epsilon(job.float);
        scale.iter_mut().for_each(|s| *s = if *s == 0.0 { least } else { *s });
    }
}

/// Scales and zero points of codes that are not symmetric.
#[inline(always)]
fn shifted(
    float: Float,
    bits: u32,
    (low, high): (&[f32; LANES], &[f32; LANES]),
    scale: &mut [f32; LANES],
    zero: &mut [f32; LANES],
) {
    let steps = ((1u32 << bits) - 1) as f32;
    let (least, most) = ends(bits);
    for i in 0..LANES {
        scale[i] = high[i] - low[i];
    }
    round_to(float, scale);
    scale.iter_mut().for_each(|s| *s /= steps);
    round_to(float, scale);
    for i in 0..LANES {
        zero[i] = low[i] / scale[i];
    }
    round_to(float, zero);
    zero.iter_mut().for_each(|z| *z = least - *z);
    round_to(float, zero);
    for i in 0..LANES {
        let whole = (smaller(larger(zero[i], least), most) + SIGNED_ROUNDER) - SIGNED_ROUNDER;
        zero[i] = if zero[i].is_nan() { 0.0 } else { whole };
        scale[i] = if scale[i] == 0.0 { epsilon(float) } else { scale[i] };
    }
}

/// The power of two of an MX group: its largest magnitude with the mantissa cut off from 1.75 upwards, divided by the
/// largest power of two of the code. One that the float cannot hold is infinite, as in the library; in half, where the
/// least of them is zero, the scale of a group of zeros is 1.
#[inline(always)]
fn power(job: &Scaled, most: f32) -> f32 {
    const CUT: u32 = 1 << 21;
    const HALF_LEAST: u32 = 127 - 14;
    const HALF_INFINITE: u32 = 127 + 16;
    let offset = if job.coding == Coding::Mxfp8 { 8 } else { 2 };
    let exponent = (most.to_bits() + CUT) >> 23;
    let (finite, zero) = if job.float == Float::F16 {
        // Subnormal halves are rounded where they lie: three quarters of the least normal one go up to it.
        let risen = if most >= 0.75 * f32::from_bits(HALF_LEAST << 23) { exponent.max(HALF_LEAST) } else { 0 };
        (if risen < HALF_INFINITE { risen } else { 255 }, 1.0)
    } else {
        (exponent, f32::from_bits(1 << 22))
    };
    let placed = finite.saturating_sub(offset);
    let normal = f32::from_bits(placed << 23);
    let held = if placed == 0 { zero } else { normal };
    if finite >= 255 { f32::INFINITY } else { held }
}

/// The least and the largest code.
#[inline(always)]
fn ends(bits: u32) -> (f32, f32) {
    let half = (1u32 << (bits - 1)) as f32;
    (-half, half - 1.0)
}

/// The codes of finite elements, one a byte; the elements are used up.
#[inline(always)]
fn code(job: &Scaled, values: &mut [f32], groups: &Groups, coded: &mut [u8]) {
    by_group(job.group, values, &groups.divisor, |w, divisor| w / divisor);
    if job.is_rounded() {
        round_to(job.float, values);
    }
    if job.coding.has_zeros() {
        by_group(job.group, values, &groups.zero, |w, zero| w + zero);
        if job.is_rounded() {
            round_to(job.float, values);
        }
    }
    let each = values.iter().zip(coded);
    match job.coding {
        Coding::Int8 => whole(8, 0.0, each),
        Coding::Signed(bits) | Coding::Shifted(bits) => whole(bits, middle(bits), each),
        Coding::E4m3 | Coding::Mxfp8 => each.for_each(|(x, code)| *code = e4m3_from_f32(x + 0.0)),
        Coding::Mxfp4 | Coding::Nvfp4(_) => each.for_each(|(x, code)| *code = e2m1(*x)),
    }
}

/// Changes elements with their group's parameter, by whole vectors.
#[inline(always)]
fn by_group(group: usize, values: &mut [f32], parameters: &[f32; GROUPS], change: impl Fn(f32, f32) -> f32) {
    for (group, &parameter) in values.chunks_mut(group).zip(parameters) {
        let (runs, rest) = group.as_chunks_mut::<LANES>();
        for run in runs {
            for w in run {
                *w = change(*w, parameter);
            }
        }
        rest.iter_mut().for_each(|w| *w = change(*w, parameter));
    }
}

#[inline(always)]
fn whole<'v>(bits: u32, middle: f32, each: impl Iterator<Item = (&'v f32, &'v mut u8)>) {
    let (least, most) = ends(bits);
    // The middle is even: it takes part in no tie.
    let rounder = SIGNED_ROUNDER + middle;
    each.for_each(|(x, code)| *code = ((smaller(larger(*x, least), most) + rounder).to_bits() & 0xff) as u8);
}

/// What is added to codes that are stored without a sign.
#[inline(always)]
fn middle(bits: u32) -> f32 {
    (1u32 << (bits - 1)) as f32
}

/// The sign is the number's, also where it is rounded to zero; a zero has none.
#[inline(always)]
fn e2m1(x: f32) -> u8 {
    let sign = if x < 0.0 { 8 } else { 0 };
    ((fp4::index(x.abs(), &TIES_EVEN) | sign) & 15) as u8
}

/// Zero points as their codes.
#[inline(always)]
fn stored_zero(job: &Scaled, zero: f32) -> u8 {
    ((zero + SIGNED_ROUNDER + middle(job.coding.bits())).to_bits() & 0xff) as u8
}

/// Scales as they are stored: in the weight's float, as exponents, as e4m3.
#[inline(always)]
fn store_scales(job: &Scaled, scales: &[f32], out: &mut [u8]) {
    match job.coding {
        // Of infinity, the library's conversion leaves the bias alone.
        Coding::Mxfp4 | Coding::Mxfp8 => out.iter_mut().zip(scales).for_each(|(out, s)| {
            let exponent = (s.to_bits() >> 23) & 0xff;
            *out = if *s == f32::INFINITY { 127 } else { (exponent & 0xff) as u8 };
        }),
        Coding::Nvfp4(_) => out.iter_mut().zip(scales).for_each(|(out, s)| {
            let sign = if s.is_sign_negative() { 0xff } else { 0x7f };
            *out = if s.is_nan() { sign } else { e4m3_from_f32(*s) };
        }),
        _ => {
            narrow(job.float, scales, out);
            let size = job.float.size();
            let odd = scales.iter().zip(out.chunks_exact_mut(size)).filter(|(s, _)| s.is_nan());
            odd.for_each(|(_, out)| out.copy_from_slice(nan(job.float)));
        }
    }
}

/// Torch's own NaN.
fn nan(float: Float) -> &'static [u8] {
    match float {
        Float::Bf16 => &[0xc0, 0x7f],
        Float::F16 => &[0x00, 0x7e],
        Float::F32 => &[0x00, 0x00, 0xc0, 0x7f],
    }
}

/// Groups with elements that are not finite, done again.
#[cold]
fn unusual(job: &Scaled, is_given: bool, values: &[f32], groups: &mut Groups, coded: &mut [u8]) {
    for (number, (group, coded)) in values.chunks_exact(job.group).zip(coded.chunks_exact_mut(job.group)).enumerate() {
        if groups.top[number] < INFINITE {
            continue;
        }
        if !is_given {
            fit_unusual(job, number, groups);
        }
        group.iter().zip(coded).for_each(|(w, code)| *code = code_unusual(job, *w, number, groups));
    }
}

/// As [`fit`], of one group; NaN is the extreme of whatever it is in.
#[cold]
fn fit_unusual(job: &Scaled, number: usize, groups: &mut Groups) {
    let has_nan = groups.top[number] > INFINITE;
    let mut one = Groups::NONE;
    one.low[0] = if has_nan { f32::NAN } else { groups.low[number] };
    one.high[0] = if has_nan { f32::NAN } else { groups.high[number] };
    match job.coding {
        Coding::Mxfp4 | Coding::Mxfp8 => (one.scale[0], one.divisor[0]) = (f32::INFINITY, f32::INFINITY),
        Coding::Nvfp4(_) => {
            // Infinity makes the whole tensor's scale zero: the product is the NaN of x86, which has a sign; that of a NaN
            // has one but in half.
            let sign = if has_nan && job.float == Float::F16 { 1.0 } else { -1.0 };
            (one.scale[0], one.divisor[0]) = (f32::NAN.copysign(sign), f32::NAN);
        }
        _ => fit(job, 1, &mut one),
    }
    groups.scale[number] = one.scale[0];
    groups.divisor[number] = one.divisor[0];
    groups.zero[number] = one.zero[0];
}

/// The code of one element of a group with NaN or infinity.
#[cold]
fn code_unusual(job: &Scaled, w: f32, number: usize, groups: &Groups) -> u8 {
    let divisor = groups.divisor[number];
    let mut x = [w / divisor];
    let (bf16, bits) = (job.float == Float::Bf16, job.coding.bits());
    if x[0].is_nan() {
        // The sign of a NaN: of the first operand that is one, set where neither is; vectors of bfloat16 drop it.
        let negative = if w.is_nan() { w.is_sign_negative() } else { !divisor.is_nan() };
        return match job.coding {
            Coding::Int8 => 0,
            Coding::Signed(_) | Coding::Shifted(_) => 1 << (bits - 1),
            Coding::E4m3 | Coding::Mxfp8 => 0x7f | if negative && !bf16 { 0x80 } else { 0 },
            Coding::Mxfp4 | Coding::Nvfp4(_) => u8::from(bf16) << 3,
        };
    }
    let one = Groups { divisor: [1.0; GROUPS], zero: [groups.zero[number]; GROUPS], ..Groups::NONE };
    let mut coded = [0];
    code(&Scaled { group: 1, ..*job }, &mut x, &one, &mut coded);
    coded[0]
}

/// The values of codes: differences from the zero points, and their products with the scales, rounded to `float`. Zero
/// points are given as they are stored, none where there are none.
#[inline(always)]
pub(in crate::kernel) fn dequantize(job: &Scaled, codes: &[u8], scales: &[f32], zeros: &[u8], out: &mut [f32]) {
    let bits = job.coding.bits();
    let mut coded = [0u8; BLOCK];
    let run = if job.is_row { job.group } else { BLOCK };
    let (per, count) =
        if job.is_row { (job.row_bytes(job.group), 1) } else { (BLOCK / 8 * bits as usize, BLOCK / job.group) };
    let runs = out.chunks_mut(run).zip(codes.chunks(per)).zip(scales.chunks(count)).enumerate();
    for (number, ((values, codes), scales)) in runs {
        let zeros = zeros.get(number * count..).unwrap_or_default();
        for (values, codes) in values.chunks_mut(BLOCK).zip(codes.chunks(BLOCK / 8 * bits as usize)) {
            let coded = &mut coded[..values.len()];
            unpack_end(bits, codes, coded);
            number_each(job.coding, coded, values);
            for (i, (group, scale)) in values.chunks_mut(job.group).zip(scales).enumerate() {
                let zero = zeros.get(i).map_or(0.0, |zero| f32::from(*zero) - middle(bits));
                group.iter_mut().for_each(|x| *x = (*x - zero) * scale);
            }
            round_to(job.float, values);
        }
    }
}

/// The reverse of [`pack_end`].
#[inline(always)]
fn unpack_end(bits: u32, packed: &[u8], coded: &mut [u8]) {
    let (whole, rest) = coded.split_at_mut(coded.len() / 8 * 8);
    let (first, last) = packed.split_at(whole.len() / 8 * bits as usize);
    unpack(bits, first, whole);
    if !rest.is_empty() {
        let (mut eight, mut bytes) = ([0u8; 8], [0u8; 8]);
        let held = last.len().min(bits as usize);
        bytes[..held].copy_from_slice(&last[..held]);
        unpack(bits, &bytes[..bits as usize], &mut eight);
        rest.copy_from_slice(&eight[..rest.len()]);
    }
}

/// The number that each code is.
#[inline(always)]
fn number_each(coding: Coding, coded: &[u8], values: &mut [f32]) {
    let each = values.iter_mut().zip(coded);
    match coding {
        Coding::Int8 => each.for_each(|(x, code)| *x = f32::from(code.cast_signed())),
        Coding::Signed(bits) | Coding::Shifted(bits) => {
            let middle = middle(bits);
            each.for_each(|(x, code)| *x = f32::from(*code) - middle);
        }
        Coding::E4m3 | Coding::Mxfp8 => each.for_each(|(x, code)| *x = e4m3_to_f32(*code)),
        Coding::Mxfp4 | Coding::Nvfp4(_) => each.for_each(|(x, code)| *x = fp4::e2m1_to_f32(*code)),
    }
}
