//! A row that is one group of any length, cut into sixteen places after sixteen: what trials leave of it is summed over all.

use super::{
    grid::{Code, Elements},
    groups::{Each, Groups, LONGEST, Sums, Trial},
    larger,
    sixteen::{LANES, Sixteen},
    smaller,
};

/// Elements of a part.
pub(super) const PART: usize = LANES * LONGEST;

/// The parts of a row, and of longer ones before it.
#[derive(Default)]
pub(super) struct Row {
    parts: Vec<Groups>,
    used: usize,
}

impl Row {
    /// Forgets the elements.
    #[inline(always)]
    pub(super) fn clear(&mut self) {
        self.used = 0;
    }

    /// Takes up to [`PART`] more elements, with what their errors weigh; none where all weigh the same.
    #[inline(always)]
    pub(super) fn take<S: Sixteen>(&mut self, lanes: S, values: &[f32], weights: &[f32]) {
        if self.used == self.parts.len() {
            self.parts.push(Groups::NONE);
        }
        if let Some(part) = self.parts.get_mut(self.used) {
            part.take(lanes, LONGEST, values.chunks(LONGEST), |lane| weights.chunks(LONGEST).nth(lane));
        }
        self.used += 1;
    }

    fn parts(&self) -> &[Groups] {
        &self.parts[..self.used]
    }
}

/// All of them added up, in all places.
#[inline(always)]
fn total(each: &Each) -> Each {
    [each.iter().sum(); LANES]
}

impl Elements for Row {
    #[inline(always)]
    fn ends(&self) -> (Each, Each) {
        let (mut least, mut most) = (0.0, 0.0);
        for part in self.parts() {
            least = part.least.iter().fold(least, |least, one| smaller(*one, least));
            most = part.most.iter().fold(most, |most, one| larger(*one, most));
        }
        ([least; LANES], [most; LANES])
    }

    #[inline(always)]
    fn count<S: Sixteen>(&mut self, lanes: S, top: f32, unit: &Each) {
        for part in &mut self.parts[..self.used] {
            part.count(lanes, top, &[0.0; LANES], unit);
        }
    }

    #[inline(always)]
    fn tried<S: Sixteen>(&self, lanes: S, trial: &Trial) -> Sums {
        let none = [0.0; LANES];
        let mut all = Sums { left: none, crossed: none, squared: none, codes: none, squares: none };
        for part in self.parts() {
            let sums = part.tried(lanes, trial);
            for i in 0..LANES {
                all.left[i] += sums.left[i];
                all.crossed[i] += sums.crossed[i];
                all.squared[i] += sums.squared[i];
                all.codes[i] += sums.codes[i];
                all.squares[i] += sums.squares[i];
            }
        }
        let Sums { left, crossed, squared, codes, squares } = &all;
        let [left, crossed, squared, codes, squares] = [left, crossed, squared, codes, squares].map(total);
        Sums { left, crossed, squared, codes, squares }
    }

    #[inline(always)]
    fn errors(&self, inverse: &Each, stored: &Each, points: (&Each, &Each), code: impl Code) -> Each {
        let mut all = [0.0; LANES];
        for part in self.parts() {
            let errors = part.errors(inverse, stored, points, code);
            for i in 0..LANES {
                all[i] += errors[i];
            }
        }
        total(&all)
    }
}
