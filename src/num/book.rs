//! Code books of bitsandbytes: the sixteen values of nf4 and of fp4, and the 256 of its dynamic map.
//!
//! The code of a value is found by its place among the middles between neighbours: their number below it. A
//! tie goes to the smaller value, NaN to the largest. Knows no block and no scale.

/// Sixteen values and their codes.
#[derive(Clone, Debug, PartialEq)]
pub struct Book {
    /// Values by code.
    pub values: [f32; 16],
    /// Codes by rising value.
    pub order: [u8; 16],
    /// Middles between neighbours, rising.
    pub bounds: [f32; 15],
}

impl Book {
    const fn new(values: [f32; 16], order: [u8; 16]) -> Self {
        let mut bounds = [0.0; 15];
        let mut i = 0;
        while i < 15 {
            bounds[i] = (values[order[i] as usize] + values[order[i + 1] as usize]) / 2.0;
            i += 1;
        }
        Self { values, order, bounds }
    }
}

/// The 4-bit normal float (`get_4bit_type("nf4")`): quantiles of a normal distribution.
pub static NF4: Book = Book::new(
    [
        -1.0,
        -0.696_192_8,
        -0.525_073_05,
        -0.394_917_5,
        -0.284_441_38,
        -0.184_773_43,
        -0.091_050_036,
        0.0,
        0.079_580_3,
        0.160_930_2,
        0.246_112_3,
        0.337_915_24,
        0.440_709_83,
        0.562_617,
        0.722_956_84,
        1.0,
    ],
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
);

/// The 4-bit float (`get_4bit_type("fp4")`): a sign bit (8), and magnitudes by twelfths of f32. Both zeros are
/// positive; what is greater than zero and nearest to it has the code of the second.
pub static FP4: Book = Book::new(
    [
        0.0,
        0.005_208_333_5,
        0.666_666_7,
        1.0,
        0.333_333_34,
        0.5,
        0.166_666_67,
        0.25,
        0.0,
        -0.005_208_333_5,
        -0.666_666_7,
        -1.0,
        -0.333_333_34,
        -0.5,
        -0.166_666_67,
        -0.25,
    ],
    [11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3],
);

/// Powers of ten that the dynamic map scales its fractions by.
const DECADES: [f32; 7] = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0];
/// Values above zero but for the one at the end.
const POSITIVE: usize = 127;

/// The dynamic map (`create_dynamic_map()`), rising: in each decade twice as many values as in the one below
/// it, the middles of equal steps from 0.1 to 1; their negatives; 0 and 1.
pub static DYNAMIC: [f32; 256] = dynamic();

const fn dynamic() -> [f32; 256] {
    let mut map = [0.0; 256];
    let (mut decade, mut at) = (0, 0);
    while decade < DECADES.len() {
        let steps = 1usize << decade;
        let mut i = 0;
        while i < steps {
            let value = DECADES[decade] * ((boundary(steps, i) + boundary(steps, i + 1)) / 2.0);
            map[POSITIVE + 1 + at] = value;
            map[POSITIVE - 1 - at] = -value;
            at += 1;
            i += 1;
        }
        decade += 1;
    }
    map[255] = 1.0;
    map
}

/// The i-th of the ends of so many steps from 0.1 to 1, as torch's `linspace` computes it: from the nearer end,
/// with a product and a sum that are rounded together (both are exact in f64).
const fn boundary(steps: usize, i: usize) -> f32 {
    let step = ((1.0f32 - 0.1) / steps as f32) as f64;
    let exact = if i < steps.div_ceil(2) { 0.1f32 as f64 + step * i as f64 } else { 1.0 - step * (steps - i) as f64 };
    rounded(exact)
}

/// To the nearest f32.
#[expect(clippy::cast_possible_truncation, reason = "rounding is what is wanted")]
const fn rounded(exact: f64) -> f32 {
    exact as f32
}

/// Code of a value of at most 1 in magnitude in [`DYNAMIC`], as bitsandbytes' library for CPUs finds it: it
/// looks at the nearest of 65536 equidistant points instead of the value (`build_quantize_lut` there), so that
/// values near zero have a code of their neighbourhood. NaN has code 0, larger magnitudes those of the ends.
#[must_use]
pub fn dynamic_code(x: f32) -> u8 {
    const LAST: f32 = 65535.0;
    if x.is_nan() {
        return 0;
    }
    let place = (x.clamp(-1.0, 1.0) + 1.0) * 0.5;
    // Product and sum are exact in f64, so that this is the fused step of the library.
    let point = rounded(f64::from(place) * f64::from(LAST) + 0.5);
    let near = 2.0 * point.trunc() / LAST - 1.0;
    let below = |i: usize| (DYNAMIC[i] + DYNAMIC[i + 1]) / 2.0 < near;
    let (mut low, mut high) = (0, 255);
    while low < high {
        let middle = usize::midpoint(low, high);
        if below(middle) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    u8::try_from(low).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn books_rise() {
        for book in [&NF4, &FP4] {
            let rising: Vec<f32> = book.order.iter().map(|code| book.values[usize::from(*code)]).collect();
            assert!(rising.is_sorted() && book.bounds.is_sorted(), "{rising:?}");
            let mut codes = book.order;
            codes.sort_unstable();
            assert!(codes.iter().zip(0..).all(|(code, i)| *code == i));
        }
        assert!(DYNAMIC.is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn dynamic_values_away_from_zero_come_back() {
        for (code, value) in (0u8..=255).zip(DYNAMIC).filter(|(_, value)| value.abs() > 1e-4) {
            assert_eq!(dynamic_code(value), code, "{value}");
        }
        // What is nearest to zero has the codes of the points beside it.
        assert_eq!([0.0, -0.0, 1e-45, -3e-7, f32::NAN, 7.0, -7.0].map(dynamic_code), [131, 131, 131, 123, 0, 255, 0]);
    }
}
