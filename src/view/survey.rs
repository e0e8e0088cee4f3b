//! What a survey found, kept by the views that asked and for those that will ask the same.
//!
//! A survey is made when the first tile needs it, by all threads that do, each looking at the next tile. What
//! a thread could not read is left for whoever comes next: errors are never kept.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, OnceLock},
};

use crate::{cache::lock, plan::Surveyed, quant::Scheme};

use super::error::Failure;

/// The findings of one survey.
#[derive(Debug, Default)]
pub(super) struct Findings {
    scheme: OnceLock<Arc<dyn Scheme>>,
    course: Mutex<Course>,
    turn: Condvar,
}

/// A survey under way.
#[derive(Debug, Default)]
struct Course {
    begun: bool,
    /// Tiles that nobody looks at: weight, tile, place among the looks.
    left: Vec<(u32, u32, usize)>,
    /// Threads that look at one.
    looking: usize,
    /// What the tiles told, in order.
    looks: Vec<Vec<Vec<f32>>>,
}

impl Findings {
    /// The scheme that encodes. `tiles` counts those of a weight, `look` looks at one.
    pub(super) fn conclude(
        &self,
        surveyed: &Surveyed,
        tiles: impl Fn(u32) -> usize,
        look: impl Fn(u32, u32) -> Result<Vec<Vec<f32>>, Failure>,
    ) -> Result<Arc<dyn Scheme>, Failure> {
        if let Some(scheme) = self.scheme.get() {
            return Ok(Arc::clone(scheme));
        }
        loop {
            let mut course = lock(&self.course);
            if let Some(scheme) = self.scheme.get() {
                return Ok(Arc::clone(scheme));
            }
            course.begin(surveyed, &tiles);
            if let Some((weight, tile, place)) = course.left.pop() {
                course.looking += 1;
                drop(course);
                let told = look(weight, tile);
                self.record((weight, tile, place), told)?;
            } else if course.looking > 0 {
                drop(self.turn.wait(course));
            } else {
                let looks: Vec<Vec<f32>> = course.looks.iter().flatten().cloned().collect();
                let concluded = catch_unwind(AssertUnwindSafe(|| surveyed.survey.conclude(&looks)));
                let concluded = concluded.map_err(|panic| Failure::of_panic(&*panic))?;
                course.looks = Vec::new();
                return Ok(Arc::clone(self.scheme.get_or_init(|| concluded)));
            }
        }
    }

    fn record(&self, at: (u32, u32, usize), told: Result<Vec<Vec<f32>>, Failure>) -> Result<(), Failure> {
        let mut course = lock(&self.course);
        course.looking -= 1;
        let told = match told {
            Ok(told) => {
                course.looks[at.2] = told;
                Ok(())
            }
            Err(failure) => {
                course.left.push(at);
                Err(failure)
            }
        };
        drop(course);
        self.turn.notify_all();
        told
    }
}

impl Course {
    fn begin(&mut self, surveyed: &Surveyed, tiles: impl Fn(u32) -> usize) {
        if std::mem::replace(&mut self.begun, true) {
            return;
        }
        for &weight in &surveyed.members {
            for tile in (0..=u32::MAX).take(tiles(weight)) {
                self.left.push((weight, tile, self.left.len()));
            }
        }
        self.looks = vec![Vec::new(); self.left.len()];
        self.left.reverse();
    }
}
