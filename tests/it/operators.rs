//! Products with quantized matrices: against f64 arithmetic on the decoded weights within the stated
//! bounds, every table against the scalar one, and what must not change a bit.

use std::{ops::Range, sync::Arc};

use quantfs::{
    kernel::{Coded, Kernels, Product, Zero, available},
    quant::{
        Scheme, Weight,
        format::{
            matmul_nbits::{Block, MatMulNBits},
            sym::{Per, Sym},
        },
        operator::{Arithmetic, Bytes, Decoded, Operator},
    },
    tensor::Float,
};

use super::formats::{elements, encode, schemes, weight};
use crate::common::written::fitting;

/// splitmix64: the same stream in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn index(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap()
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| (self.next() >> 56) as u8).collect()
    }

    /// In -1..1, every group of another size.
    fn activations(&mut self, count: usize) -> Vec<f32> {
        let mut size = 1.0;
        (0..count)
            .map(|i| {
                if i % 16 == 0 {
                    size = 2f32.powi(i32::try_from(self.index(12)).unwrap() - 6);
                }
                ((self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * size
            })
            .collect()
    }
}

const INPUTS: [usize; 6] = [1, 2, 3, 7, 8, 33];
const BOTH: [Arithmetic; 2] = [Arithmetic::Exact, Arithmetic::Int8];

/// An encoded matrix: what an operator is made of, and what a test needs to know of it.
struct Matrix {
    scheme: Arc<dyn Scheme>,
    weight: Weight,
    parts: Vec<Vec<u8>>,
    values: Vec<f32>,
    /// The biases of elements, zeros for codes that have none.
    biases: Vec<f32>,
}

impl Matrix {
    fn new(scheme: &Arc<dyn Scheme>, float: Float, rows: usize, cols: usize) -> Self {
        let rows = fitting(&**scheme, rows, cols);
        let weight = weight(float, &[rows, cols]);
        let layout = scheme.parts(&weight).unwrap();
        let (_, data) = elements(float, weight.elements());
        let extent = scheme.banding(&weight).extent(&weight);
        let parts = encode(&**scheme, &weight, &layout, &data, 0..extent);
        let decode = |parts: &[Vec<u8>]| {
            let mut values = vec![0.0; weight.elements()];
            let encoded = parts.iter().zip(&layout).filter(|(_, part)| part.is_encoded());
            let encoded: Vec<&[u8]> = encoded.map(|(bytes, _)| bytes.as_slice()).collect();
            scheme.decode(&encoded, float, rows, &mut values);
            values
        };
        let values = decode(&parts);
        let biases = if layout.iter().filter(|part| part.is_encoded()).count() == 3 {
            // The value of code 0 is the bias.
            decode(&[vec![0; parts[0].len()], parts[1].clone(), parts[2].clone()])
        } else {
            vec![0.0; values.len()]
        };
        Self { scheme: Arc::clone(scheme), weight, parts, values, biases }
    }

    /// The operator over parts that lie at an odd address.
    fn operator(&self) -> Arc<dyn Operator> {
        let odd = |part: &Vec<u8>| {
            let bytes = Bytes::from([&[0xa5; 3], part.as_slice()].concat());
            bytes.slice(3..3 + part.len()).unwrap()
        };
        let parts: Vec<Bytes> = self.parts.iter().map(odd).collect();
        let own = self.scheme.operator(&self.weight, &parts);
        own.unwrap_or_else(|| Arc::new(Decoded::new(Arc::clone(&self.scheme), self.weight.clone(), parts)))
    }

    /// Whether the codes are in blocks, of which a group is a part or the whole.
    fn in_blocks(&self) -> bool {
        self.scheme.id().starts_with("sym-") || self.scheme.facts().mode == "matmul_nbits"
    }

    /// Elements of a group; `None` where products are exact.
    fn group(&self) -> Option<usize> {
        let (facts, cols) = (self.scheme.facts(), self.weight.cols());
        if !self.in_blocks() {
            return Some(facts.group_size).filter(|group| *group > 0 && facts.mode != "mxfp8");
        }
        let block = if facts.group_size == 0 { cols } else { facts.group_size };
        let fits = |group: &usize| block.is_multiple_of(*group) && group * facts.bits as usize >= 64;
        [128, 64, 32, 16].into_iter().find(fits)
    }

    /// The relative error of a step of the stored dtype.
    fn unit(&self) -> f64 {
        let layout = self.scheme.parts(&self.weight).unwrap();
        match layout.get(2).and_then(|part| Float::of(part.dtype)) {
            Some(Float::Bf16) => 2f64.powi(-8),
            Some(Float::F16) => 2f64.powi(-11),
            Some(Float::F32) => 2f64.powi(-24),
            None if self.in_blocks() => 2f64.powi(-24),
            None => 0.0,
        }
    }

    /// The exact product of a row and an input, and how far each arithmetic may be from it.
    fn product(&self, row: usize, x: &[f32]) -> (f64, [f64; 2]) {
        let (cols, unit) = (self.weight.cols(), self.unit());
        let group = self.group().unwrap_or(cols);
        let (mut sum, mut magnitude, mut int8) = (0.0, 0.0, 0.0);
        let f32s = (2.0 * cols.div_ceil(group) as f64 + 4.0) * 2f64.powi(-24) * 128.0;
        for (g, x) in x.chunks(group).enumerate() {
            let scale = x.iter().fold(0.0, |m: f64, x| m.max(f64::from(*x).abs())) / 127.0;
            for (i, x) in x.iter().enumerate() {
                let at = row * cols + g * group + i;
                let (w, bias, x) = (f64::from(self.values[at]), f64::from(self.biases[at]).abs(), f64::from(*x));
                sum += w * x;
                magnitude += (w * x).abs();
                let code = (w.abs() + bias) * (1.0 + 2.0 * unit);
                int8 += 0.5001 * scale * w.abs() + f32s * scale * (code + bias);
                int8 += unit * (x.abs() + scale) * (2.0 * code + bias);
            }
        }
        let exact = (cols as f64 / 16.0 + 6.0) * 2f64.powi(-24) * magnitude;
        (sum, [exact, if self.group().is_some() { int8 } else { exact }])
    }

    fn name(&self) -> String {
        format!("{} of {:?} {:?}", self.scheme.id(), self.weight.float, self.weight.shape)
    }
}

fn multiply(operator: &dyn Operator, rows: Range<usize>, x: &[f32], arithmetic: Arithmetic) -> Vec<f32> {
    let mut y = vec![f32::NAN; rows.len() * (x.len() / operator.cols())];
    operator.multiply(rows, x, arithmetic, &mut y);
    y
}

/// Every scheme of the table, and those that only the runtime has.
fn all_schemes() -> Vec<Arc<dyn Scheme>> {
    // Values that are shown dense are no codes to multiply with.
    let stored = schemes().into_iter().filter(|(name, _)| !name.starts_with("dense-"));
    let mut all: Vec<Arc<dyn Scheme>> = stored.map(|(_, scheme)| scheme).collect();
    all.extend([Per::Row, Per::Tensor].map(|per| Arc::new(Sym::new(per)) as Arc<dyn Scheme>));
    for bits in [2, 4, 8] {
        for block in [16, 32, 64, 128, 256].map(Block::Of).into_iter().chain([Block::Row]) {
            let both = [true, false].map(|symmetric| MatMulNBits::new(bits, block, symmetric).unwrap());
            all.extend(both.map(|scheme| Arc::new(scheme) as Arc<dyn Scheme>));
        }
    }
    all
}

/// Matrices of odd sizes of every scheme.
fn matrices(random: &mut Random, of_each: usize) -> impl Iterator<Item = Matrix> {
    all_schemes().into_iter().flat_map(move |scheme| {
        let unit = scheme.facts().group_size.clamp(16, 128);
        let mut sizes = vec![];
        for at in 0..of_each {
            let groups = 1 + random.index(5);
            sizes.push((Float::ALL[at % 3], 1 + random.index(70), unit * groups));
        }
        // More columns than are unpacked at a time.
        sizes.push((Float::Bf16, 3 + random.index(40), 512 + unit * (1 + random.index(5))));
        if matches!(scheme.facts().mode, "int8" | "matmul_nbits") {
            // A last block that is not full; a row that is many groups, and one that is none.
            let some = 1 + random.index(unit - 1);
            sizes.push((Float::ALL[random.index(3)], 1 + random.index(70), unit * (1 + random.index(5)) - some));
            sizes.push((Float::ALL[random.index(3)], 1 + random.index(70), 128 * (1 + random.index(7))));
        }
        sizes.into_iter().map(move |(float, rows, cols)| Matrix::new(&scheme, float, rows, cols)).collect::<Vec<_>>()
    })
}

#[test]
fn products_are_within_the_stated_bounds() {
    let mut random = Random(11);
    let mut loosest = [0f64; 2];
    for (n, matrix) in matrices(&mut Random(1), 2).enumerate() {
        let (operator, cols) = (matrix.operator(), matrix.weight.cols());
        let mut decoded = vec![0.0; matrix.values.len()];
        operator.decode(0..operator.rows(), &mut decoded);
        assert_eq!(decoded, matrix.values, "{}", matrix.name());
        let inputs = INPUTS[n % INPUTS.len()];
        let x = random.activations(inputs * cols);
        let results = BOTH.map(|arithmetic| multiply(&*operator, 0..operator.rows(), &x, arithmetic));
        for (b, x) in x.chunks_exact(cols).enumerate() {
            for row in 0..operator.rows() {
                let (expected, bounds) = matrix.product(row, x);
                for (at, (ours, bound)) in results.iter().zip(bounds).enumerate() {
                    let error = (f64::from(ours[b * operator.rows() + row]) - expected).abs();
                    let what = format!("{}: input {b} row {row}", matrix.name());
                    assert!(error <= bound, "{what}: {:?} is off by {error:e}, bound {bound:e}", BOTH[at]);
                    loosest[at] = loosest[at].max(error / bound);
                }
            }
        }
    }
    assert!(
        loosest.iter().all(|&share| share > 0.05),
        "the bounds say nothing: at most {loosest:?} of them is reached"
    );
}

#[test]
fn ranges_inputs_and_preparation_change_no_bit() {
    let mut random = Random(12);
    for matrix in matrices(&mut Random(2), 1) {
        let (operator, cols) = (matrix.operator(), matrix.weight.cols());
        let rows = operator.rows();
        let x = random.activations(11 * cols);
        for arithmetic in BOTH {
            let whole = multiply(&*operator, 0..rows, &x, arithmetic);
            let (a, b) = (random.index(rows), random.index(rows));
            let some = a.min(b)..a.max(b) + 1;
            let part = multiply(&*operator, some.clone(), &x, arithmetic);
            let mut prepared = vec![f32::NAN; part.len()];
            operator.multiply_prepared(some.clone(), &operator.prepare(&x, arithmetic), &mut prepared);
            for (b, x) in x.chunks_exact(cols).enumerate() {
                let alone = multiply(&*operator, 0..rows, x, arithmetic);
                assert_eq!(whole[b * rows..][..rows], alone, "input {b} alone: {}", matrix.name());
                let ours = b * some.len()..(b + 1) * some.len();
                assert_eq!(part[ours.clone()], alone[some.clone()], "rows {some:?}: {}", matrix.name());
                assert_eq!(prepared[ours], alone[some.clone()], "prepared: {}", matrix.name());
            }
        }
    }
}

/// Inputs that were prepared for a matrix of other groups are quantized again, not misread.
#[test]
fn inputs_prepared_for_another_matrix_still_multiply() {
    let all: Vec<Matrix> = all_schemes().iter().map(|scheme| Matrix::new(scheme, Float::Bf16, 5, 256)).collect();
    let x = Random(13).activations(3 * 256);
    for (matrix, other) in all.iter().zip(all.iter().cycle().skip(7)) {
        let (ours, theirs) = (matrix.operator(), other.operator());
        let expected = multiply(&*ours, 0..5, &x, Arithmetic::Int8);
        let mut y = vec![f32::NAN; 15];
        ours.multiply_prepared(0..5, &theirs.prepare(&x, Arithmetic::Int8), &mut y);
        assert_eq!(y, expected, "{} with inputs for {}", matrix.name(), other.name());
    }
}

#[test]
fn special_activations_do_not_panic_nor_pass_for_numbers() {
    for matrix in matrices(&mut Random(3), 1) {
        let (operator, cols) = (matrix.operator(), matrix.weight.cols());
        let run = |x: &[f32], arithmetic| multiply(&*operator, 0..operator.rows(), x, arithmetic);
        for arithmetic in BOTH {
            for zero in [0.0, -0.0] {
                assert!(run(&vec![zero; cols], arithmetic).iter().all(|y| *y == 0.0), "{}", matrix.name());
            }
            for odd in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = vec![0.25; 2 * cols];
                x[cols / 2] = odd;
                let y = run(&x, arithmetic);
                let (with, without) = y.split_at(operator.rows());
                assert!(with.iter().all(|y| !y.is_finite()), "{odd}: {}", matrix.name());
                assert!(without.iter().all(|y| y.is_finite()), "{odd} reaches another input: {}", matrix.name());
            }
            for tiny in [1e-45, f32::MIN_POSITIVE, 1e-36, 3e38] {
                let x: Vec<f32> = (0..cols).map(|c| if c % 3 == 0 { tiny } else { -tiny / 2.0 }).collect();
                let y = run(&x, arithmetic);
                assert!(tiny > 1.0 || y.iter().all(|y| y.is_finite()), "{tiny}: {}", matrix.name());
            }
            let mut x = vec![0.01; cols];
            x[0] = 1e6;
            for (row, y) in run(&x, arithmetic).iter().enumerate() {
                let (expected, bounds) = matrix.product(row, &x);
                let bound = bounds[usize::from(arithmetic == Arithmetic::Int8)];
                assert!((f64::from(*y) - expected).abs() <= bound, "one huge: {}", matrix.name());
            }
        }
    }
}

/// Every kind of codes that multiplies in integers.
fn products() -> Vec<Product> {
    let mut all = vec![Product::Mxfp4, Product::Nvfp4];
    for group in [16, 32, 64, 128] {
        for bits in [2, 3, 4, 5, 6, 8] {
            let whole = matches!(bits, 2 | 4 | 8);
            if whole && group * (bits as usize) < 64 {
                continue;
            }
            for stored in Float::ALL {
                all.push(Product::Affine { bits, group, stored });
                let zeros = [Zero::Points, Zero::Middle, Zero::Signed];
                for zero in zeros.into_iter().take(if bits == 8 { 3 } else { 2 }).filter(|_| whole) {
                    all.extend([1, 2, 5].map(|n| Product::Blocks { bits, group, block: n * group, stored, zero }));
                }
            }
        }
    }
    all
}

/// Elements of a block, and bytes of the scales and the biases of a row of so many.
fn layout(product: &Product, blocks: usize) -> (usize, usize, usize) {
    match *product {
        Product::Affine { group, stored, .. } => (group, blocks * stored.size(), blocks * stored.size()),
        Product::Blocks { block, stored, zero, bits, .. } => {
            let zeros = if zero == Zero::Points { (blocks * bits as usize).div_ceil(8) } else { 0 };
            (block, blocks * stored.size(), zeros)
        }
        Product::Mxfp4 | Product::Nvfp4 => (product.group(), blocks, 0),
    }
}

/// The bits of results, every NaN the same: which of its bits an operation keeps is the machine's affair.
fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| if v.is_nan() { f32::NAN } else { *v }.to_bits()).collect()
}

#[test]
fn integer_products_are_the_same_from_every_table() {
    let mut random = Random(21);
    for product in products() {
        for inputs in [1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 33] {
            let (block, ..) = layout(&product, 1);
            let (rows, blocks) = (1 + random.index(70), 1 + random.index(5 + 768 / block));
            let (cols, start) = (blocks * block, random.index(8));
            let (_, scales, biases) = layout(&product, blocks);
            // Any bytes are codes, and most are parameters: NaN and infinity among them.
            let codes = random.bytes(start + rows * cols / 8 * product.bits() as usize);
            let [scales, biases] = [scales, biases].map(|row| random.bytes(start + rows * row));
            let matrix = Coded { codes: &codes[start..], scales: &scales[start..], biases: &biases[start..] };
            let mut x = random.activations(inputs * cols);
            // The ends of the range together: what sums of sixteen bits would not hold.
            x[..cols].iter_mut().enumerate().for_each(|(i, x)| *x = if i % 97 == 0 { 0.5 } else { 1.0 });
            let run = |k: &Kernels| {
                let mut y = vec![0.0; rows * inputs];
                k.multiply_coded(&product, &matrix, &k.quantize_inputs(&product, cols, &x), &mut y);
                bits(&y)
            };
            let expected = run(available()[0]);
            for table in &available()[1..] {
                let what = format!("{}: {product:?}, {rows} x {cols}, {inputs} inputs, start {start}", table.isa());
                assert!(run(table) == expected, "{what}");
            }
        }
    }
}

/// The largest codes and activations: sums that saturate would be smaller.
#[test]
fn the_largest_sums_are_exact() {
    let (group, stored) = (128, Float::F32);
    let affine = Product::Affine { bits: 8, group, stored };
    let blocks = |zero| Product::Blocks { bits: 8, group, block: group, stored, zero };
    let (middle, signed) = (blocks(Zero::Middle), blocks(Zero::Signed));
    let ends = [(affine, 255, 255.0), (middle, 255, 127.0), (middle, 0, -128.0), (signed, 127, 127.0)];
    for (product, code, value) in ends.into_iter().chain([(signed, 128, -128.0), (signed, 0, 0.0)]) {
        for (sign, inputs) in [(1.0, 3), (-1.0, 3), (1.0, 9), (-1.0, 9)] {
            let x = vec![sign * 127.0; inputs * 128];
            let (codes, scale, bias) = (vec![code; 128], 1f32.to_le_bytes(), 0f32.to_le_bytes());
            let biases = if product == affine { bias.as_slice() } else { &[] };
            let matrix = Coded { codes: &codes, scales: &scale, biases };
            for table in available() {
                let mut y = vec![f32::NAN; inputs];
                table.multiply_coded(&product, &matrix, &table.quantize_inputs(&product, 128, &x), &mut y);
                assert_eq!(y, vec![sign * 127.0 * value * 128.0; inputs], "{}: {product:?}", table.isa());
            }
        }
    }
}

/// The same of narrow codes, whose sums may take 16 bits on the way: every code the largest, or the smallest.
#[test]
fn the_largest_sums_of_narrow_codes_are_exact() {
    let affine = |(bits, group)| Product::Affine { bits, group, stored: Float::F32 };
    let of_bits = |bits| [32, 64, 128].map(|group| (bits, group));
    // 7 and 15 are 6 and -6, the ends of e2m1; a scale of 1 is 127 in e8m0, and 56 in e4m3.
    let ends = [(Product::Mxfp4, 127), (Product::Nvfp4, 56)];
    let micro =
        ends.into_iter().flat_map(|(product, one)| [(0x77, 6.0), (0xff, -6.0)].map(|(c, v)| (product, one, c, v)));
    let of_affine =
        [2, 3, 4, 5, 6].into_iter().flat_map(of_bits).map(|size| (affine(size), 0, 0xff, (1 << size.0) as f32 - 1.0));
    for (product, one, code, value) in of_affine.chain(micro) {
        let groups = 17;
        let cols = groups * layout(&product, 1).0;
        let is_affine = matches!(product, Product::Affine { .. });
        let scales = if is_affine { 1f32.to_le_bytes().repeat(groups) } else { vec![one; groups] };
        let codes = vec![code; cols / 8 * product.bits() as usize];
        let biases = if is_affine { vec![0; 4 * groups] } else { vec![] };
        let matrix = Coded { codes: &codes, scales: &scales, biases: &biases };
        for (sign, inputs) in [(1.0, 1), (-1.0, 1), (1.0, 8), (-1.0, 8)] {
            let x = vec![sign * 127.0; inputs * cols];
            for table in available() {
                let mut y = vec![f32::NAN; inputs];
                table.multiply_coded(&product, &matrix, &table.quantize_inputs(&product, cols, &x), &mut y);
                assert_eq!(y, vec![sign * 127.0 * value * cols as f32; inputs], "{}: {product:?}", table.isa());
            }
        }
    }
}

/// Where the documents promise a kernel there is one, and where they say exact it is exact.
#[test]
fn blocks_multiply_in_integers_where_groups_make_them_up() {
    let mut random = Random(14);
    let (mut integers, mut exact) = (0, 0);
    for matrix in matrices(&mut Random(4), 1).filter(Matrix::in_blocks) {
        let operator = matrix.operator();
        let x = random.activations(operator.cols());
        let [precise, int8] = BOTH.map(|arithmetic| multiply(&*operator, 0..operator.rows(), &x, arithmetic));
        assert_eq!(precise != int8, matrix.group().is_some(), "{}", matrix.name());
        *(if matrix.group().is_some() { &mut integers } else { &mut exact }) += 1;
    }
    assert!(integers > 50 && exact > 5, "{integers} in integers, {exact} exact");
}

/// The sum of products as it is defined: column c in the partial sum c mod 16, these added by halves.
fn product(w: &[f32], x: &[f32]) -> f32 {
    let mut sums = [0f32; 16];
    w.iter().zip(x).enumerate().for_each(|(c, (w, x))| sums[c % 16] += w * x);
    for half in [8, 4, 2, 1] {
        (0..half).for_each(|i| sums[i] += sums[i + half]);
    }
    sums[0]
}

#[test]
fn products_in_f32_are_the_defined_ones_from_every_table() {
    let mut random = Random(22);
    // Around tiles, panels of inputs and stretches of columns.
    for cols in (1..70).chain([128, 1000, 1024, 1025, 1040, 2500]) {
        let (rows, inputs) = (random.index(10), random.index(36));
        let (w, mut x) = (random.activations(rows * cols), random.activations(inputs * cols));
        if let Some(x) = x.get_mut(cols / 2) {
            *x = [f32::INFINITY, f32::NAN, -0.0][cols % 3];
        }
        let each = x.chunks_exact(cols).flat_map(|x| w.chunks_exact(cols).map(|w| product(w, x)));
        let expected: Vec<f32> = each.collect();
        for table in available() {
            let mut y = vec![f32::NAN; rows * inputs];
            table.multiply(cols, &w, &x, &mut y);
            assert_eq!(bits(&y), bits(&expected), "{}: {rows} x {cols}, {inputs} inputs", table.isa());
        }
    }
}
