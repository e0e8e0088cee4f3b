//! Products with quantized layers: one input in GB/s of quantized bytes, batches in GFLOP/s.
//!
//! As a program calls them, through [`QuantizedLinear`]. Calls go around a set of equal layers that no
//! cache holds, so that weights come from memory, as they do in a model.

use rayon::ThreadPool;

use super::{Contender, Error, Figure, limits, limits::Memory, median, pools, turn, values, weights};
use crate::{
    quant::Weight,
    runtime::{Arithmetic, QuantizedLinear, keep_awake},
    tensor::Float,
};

/// What to measure.
#[derive(Clone, Debug)]
pub struct Layers {
    /// How the layers are stored.
    pub contenders: Vec<Contender>,
    /// Outputs and inputs of a layer.
    pub shape: [usize; 2],
    /// How products are computed.
    pub arithmetics: Vec<Arithmetic>,
    /// Inputs that are multiplied together, a case each.
    pub inputs: Vec<usize>,
    /// Threads, a case each.
    pub threads: Vec<usize>,
    /// Bytes of weights that calls go around at least.
    pub set: usize,
    /// Turns of each case.
    pub rounds: usize,
}

/// Equal layers, and the one that is called next.
struct Set {
    layers: Vec<QuantizedLinear>,
    next: usize,
}

/// A case, and its turns so far.
struct Case {
    arithmetic: Arithmetic,
    inputs: usize,
    x: Vec<f32>,
    y: Vec<f32>,
    /// Of each pool.
    turns: Vec<Turns>,
}

/// What was measured side by side: products, memory in GB/s, arithmetic in GFLOP/s.
#[derive(Clone, Default)]
struct Turns {
    products: Vec<f64>,
    memory: Vec<f64>,
    arithmetic: Vec<f64>,
}

impl Layers {
    /// Measures, and tells each figure of a contender when all of its turns are over.
    ///
    /// # Errors
    /// A contender that cannot store the shape, and one that computes something else.
    pub fn run(&self, mut tell: impl FnMut(Vec<Figure>)) -> Result<(), Error> {
        let (pools, memory) = (pools(&self.threads)?, Memory::new(self.set)?);
        for contender in &self.contenders {
            let mut set = self.set_of(contender)?;
            let mut cases = self.cases();
            self.check(contender, &set, &mut cases)?;
            for _ in 0..self.rounds.max(1) {
                round(&pools, &memory, &mut set, &mut cases)?;
            }
            let bytes = set.layers[0].byte_len();
            tell(cases.into_iter().flat_map(|case| self.figures(contender, bytes, case)).collect());
        }
        Ok(())
    }

    fn set_of(&self, contender: &Contender) -> Result<Set, Error> {
        let weight = Weight { stem: contender.spec.clone(), float: Float::Bf16, shape: self.shape.to_vec() };
        let data = weights(weight.elements());
        let make = || QuantizedLinear::quantize(&contender.scheme, weight.clone(), &data);
        let first = make()?;
        let more = self.set.div_ceil(first.byte_len().max(1));
        let others = (1..more).map(|_| make());
        let layers = std::iter::once(Ok(first)).chain(others).collect::<Result<_, _>>()?;
        Ok(Set { layers, next: 0 })
    }

    fn cases(&self) -> Vec<Case> {
        let [rows, cols] = self.shape;
        let pairs = self.arithmetics.iter().flat_map(|a| self.inputs.iter().map(|n| (*a, *n)));
        let case = |(arithmetic, inputs)| Case {
            arithmetic,
            inputs,
            x: values(inputs * cols, 1.0),
            y: vec![0.0; inputs * rows],
            turns: vec![Turns::default(); self.threads.len()],
        };
        pairs.map(case).collect()
    }

    /// Every case against f64 arithmetic, every layer of the set against the first.
    fn check(&self, contender: &Contender, set: &Set, cases: &mut [Case]) -> Result<(), Error> {
        let decoded = set.layers[0].dequantize();
        for case in cases {
            set.layers[0].forward_with(case.arithmetic, &case.x, &mut case.y)?;
            let wrong = |why| Error::Wrong { case: name(contender, case), why };
            far_off(self.shape, &decoded, case).map_or(Ok(()), |why| Err(wrong(why)))?;
        }
        let [rows, cols] = self.shape;
        let (x, mut first) = (values(cols, 1.0), vec![0.0; rows]);
        set.layers[0].forward(&x, &mut first)?;
        for layer in &set.layers {
            let mut y = vec![0.0; rows];
            layer.forward(&x, &mut y)?;
            if y != first {
                let why = "two layers of the same bytes gave different outputs".to_owned();
                return Err(Error::Wrong { case: contender.spec.clone(), why });
            }
        }
        Ok(())
    }

    fn figures(&self, contender: &Contender, bytes: usize, case: Case) -> Vec<Figure> {
        let label = name(contender, &case);
        // Operations for each byte of weights.
        let density = 2.0 * (self.shape[0] * self.shape[1] * case.inputs) as f64 / bytes as f64;
        let in_bytes = case.inputs == 1;
        let figure = |(threads, mut turns): (&usize, Turns)| {
            let (memory, arithmetic) = (density * median(&mut turns.memory), median(&mut turns.arithmetic));
            Figure {
                bench: "layers",
                case: label.clone(),
                threads: *threads,
                value: median(&mut turns.products),
                unit: if in_bytes { "GB/s" } else { "GFLOP/s" },
                limit: memory.min(arithmetic) / if in_bytes { density } else { 1.0 },
                limited_by: if memory < arithmetic { "memory read" } else { "arithmetic" },
                spec: contender.spec.clone(),
                arithmetic: Some(case.arithmetic.name()),
                inputs: Some(case.inputs),
                bits_per_weight: Some(8.0 * bytes as f64 / (self.shape[0] * self.shape[1]) as f64),
            }
        };
        self.threads.iter().zip(case.turns).map(figure).collect()
    }
}

fn name(contender: &Contender, case: &Case) -> String {
    format!("{} {} x{}", contender.spec, case.arithmetic.name(), case.inputs)
}

/// One turn of every limit and case, each on every pool.
fn round(pools: &[ThreadPool], memory: &Memory, set: &mut Set, cases: &mut [Case]) -> Result<(), Error> {
    for (at, pool) in pools.iter().enumerate() {
        for case in &mut *cases {
            let turns = &mut case.turns[at];
            turns.memory.push(memory.read(pool));
            turns.arithmetic.push(limits::arithmetic(pool, case.arithmetic));
            let product = pool.install(|| keep_awake(|| set.turn(case)))?;
            case.turns[at].products.push(product);
        }
    }
    Ok(())
}

impl Set {
    /// Calls the layers one after the other: GB/s of their bytes for one input, GFLOP/s for several.
    fn turn(&mut self, case: &mut Case) -> Result<f64, Error> {
        let mut failed = None;
        let rate = turn(|| {
            let layer = &self.layers[self.next];
            self.next = (self.next + 1) % self.layers.len();
            failed = layer.forward_with(case.arithmetic, &case.x, &mut case.y).err().or(failed.take());
            let work = if case.inputs == 1 { layer.byte_len() } else { 2 * layer.rows() * case.x.len() };
            work as u64
        });
        failed.map_or(Ok(rate), |e| Err(e.into()))
    }
}

/// A few outputs against f64 arithmetic on the decoded weights; how one differs, if one does.
fn far_off([rows, cols]: [usize; 2], decoded: &[f32], case: &Case) -> Option<String> {
    let last = case.inputs - 1;
    [(0, 0), (rows / 3, last), (rows / 2, last / 2), (rows - 1, last)].into_iter().find_map(|(row, input)| {
        let terms = decoded[row * cols..].iter().zip(&case.x[input * cols..][..cols]);
        let terms = terms.map(|(w, x)| f64::from(*w) * f64::from(*x));
        let (sum, size, square) =
            terms.fold((0.0, 0.0, 0.0), |(sum, size, square), t| (sum + t, size + t.abs(), square + t * t));
        let allowed = match case.arithmetic {
            // What `Arithmetic::Exact` promises.
            Arithmetic::Exact => (cols as f64 / 16.0 + 6.0) * f64::from(f32::EPSILON) / 2.0 * size,
            // Quantized inputs leave about a percent of the typical output.
            Arithmetic::Int8 => 0.05 * square.sqrt(),
        };
        let got = f64::from(case.y[input * rows + row]);
        ((got - sum).abs() > allowed || got.is_nan()).then(|| format!("row {row} of input {input} is {got}, not {sum}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_product_is_found() {
        let x = values(64, 1.0);
        let mut case = Case { arithmetic: Arithmetic::Exact, inputs: 1, x: x.clone(), y: vec![0.0], turns: vec![] };
        let weights = values(64, 0.02);
        case.y[0] = weights.iter().zip(&x).map(|(w, x)| w * x).sum();
        assert_eq!(far_off([1, 64], &weights, &case), None);
        for wrong in [0.0, f32::NAN, case.y[0] * 1.001] {
            case.y[0] = wrong;
            assert!(far_off([1, 64], &weights, &case).is_some(), "{wrong}");
        }
    }
}
