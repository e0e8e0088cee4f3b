//! The elements of a weight beside what is shown in their place: for whoever measures what a scheme costs.
//!
//! A band is gathered once, encoded and decoded again, in stretches that stay in a core's own cache. What comes out is a
//! function of the source's elements, the scheme and the band; nothing of it is kept, in no cache and no store. Memory is the asking thread's, a few times a tile, and not of the engine's
//! allowances: this is for jobs of their own, not beside readers.

use std::{borrow::Cow, ops::Range, sync::Arc};

use crate::{
    plan::{Content, Planned, Surveyed},
    quant::{Axis, Content as PartContent, Part, Scheme, format::widen},
    tensor::Rows,
};

use super::{
    View,
    encode::{Buffers, Encoder, dimensions, places, prepare, stretches, strip},
    error::{Failure, Place, ReadError},
    survey::Findings,
};

/// Some elements of a weight, and the values that are shown in their place.
#[derive(Clone, Copy, Debug)]
pub struct Values<'a> {
    /// As the scheme was given them: with what adapters add, plus one, cast.
    pub given: &'a [f32],
    /// As the scheme's reference decoder gives them back, as many.
    pub shown: &'a [f32],
    /// Index of the first in the weight, in flat order.
    pub start: usize,
    /// Elements that follow each other in flat order; as many of the next row come then, from the same column on.
    pub line: usize,
}

/// A weight under a scheme that knows all it must, to be looked at band by band from any thread.
#[derive(Debug)]
pub struct Shown<'a> {
    view: &'a View,
    planned: Cow<'a, Planned>,
    scheme: Arc<dyn Scheme>,
    /// For each part that is encoded what is written with the first band, whole; empty for the others.
    first: Vec<Vec<u8>>,
}

impl View {
    /// A weight as the view shows it. Where its survey was not made yet, that is made now.
    ///
    /// # Errors
    /// A source that cannot be read, for a survey.
    ///
    /// # Panics
    /// If the plan has no such weight.
    pub fn shown(&self, weight: u32) -> Result<Shown<'_>, ReadError> {
        let planned = &self.plan().weights[weight as usize];
        let scheme = match planned.survey {
            None => Ok(Arc::clone(&planned.scheme)),
            Some(survey) => self.informed(survey),
        };
        let scheme = scheme.map_err(|failure| failure.at(self.place_of(planned)))?;
        Shown::new(self, Cow::Borrowed(planned), scheme)
    }

    /// A weight as it would be shown under another scheme, of one that [`Planned::under`] gives. A survey is of this
    /// weight alone, and read now.
    ///
    /// # Errors
    /// A source that cannot be read.
    pub fn shown_as(&self, planned: Planned) -> Result<Shown<'_>, ReadError> {
        let scheme = self.informed_alone(&planned).map_err(|failure| failure.at(self.place_of(&planned)))?;
        Shown::new(self, Cow::Owned(planned), scheme)
    }

    fn informed_alone(&self, planned: &Planned) -> Result<Arc<dyn Scheme>, Failure> {
        let Some(survey) = planned.scheme.survey(&planned.weight) else { return Ok(Arc::clone(&planned.scheme)) };
        let alone = Surveyed { members: vec![0], survey: Arc::clone(&survey) };
        let look = |_, tile| self.encoder().look(planned, &*survey, tile);
        Findings::default().conclude(&alone, |_| planned.tiles(), look)
    }

    /// Where a weight begins, for messages.
    fn place_of(&self, planned: &Planned) -> Place {
        let same = |index: u32| {
            let other = &self.plan().weights[index as usize];
            other.weight.stem == planned.weight.stem && other.origin.pieces == planned.origin.pieces
        };
        let mut extents = self.plan().files.iter().flat_map(|file| file.extents.iter().map(move |e| (file, e)));
        let found = extents.find(|(_, e)| matches!(e.content, Content::Part { weight, .. } if same(weight)));
        let (file, offset) = found.map_or((String::new(), 0), |(file, extent)| (file.path.clone(), extent.start));
        Place { file, tensor: Some(planned.weight.stem.clone()), offset }
    }
}

impl<'a> Shown<'a> {
    fn new(view: &'a View, planned: Cow<'a, Planned>, scheme: Arc<dyn Scheme>) -> Result<Self, ReadError> {
        let mut shown = Self { view, planned, scheme, first: vec![] };
        shown.first = shown.first_parts().map_err(|failure| shown.failed(failure))?;
        Ok(shown)
    }

    /// The weight and how it may be cut.
    #[must_use]
    pub fn planned(&self) -> &Planned {
        &self.planned
    }

    /// Hands the elements of a band of [`Planned::banding`] on, in the order in which they lie in it, in portions that
    /// depend on nothing but the weight, the scheme and the band.
    ///
    /// # Errors
    /// A source that cannot be read.
    pub fn values(&self, band: Range<usize>, mut take: impl FnMut(Values<'_>)) -> Result<(), ReadError> {
        let encoder = self.view.encoder();
        let told = encoder.guarded(|buffers| {
            let mut round = Round { shown: self, given: vec![], back: vec![], made: vec![] };
            match strip(&self.planned, &band) {
                Some(step) => round.strips(&encoder, (band, step), buffers, &mut take),
                None => stretches(&self.planned, band)
                    .try_for_each(|stretch| round.stretch(&encoder, stretch, buffers, &mut take)),
            }
        });
        told.map_err(|failure| self.failed(failure))
    }

    fn failed(&self, failure: Failure) -> ReadError {
        failure.at(self.view.place_of(&self.planned))
    }

    fn encoded(&self) -> impl Iterator<Item = &Part> {
        self.planned.parts.iter().filter(|part| part.is_encoded())
    }

    /// What is written with the first band: the smallest one writes it as well.
    fn first_parts(&self) -> Result<Vec<Vec<u8>>, Failure> {
        let is_first = |part: &Part| part.content == PartContent::First;
        if !self.encoded().any(is_first) {
            return Ok(self.encoded().map(|_| vec![]).collect());
        }
        let planned = &*self.planned;
        let band = 0..planned.banding.granule.min(planned.banding.extent(&planned.weight));
        let (rows, cols) = dimensions(planned, &band);
        let encoder = self.view.encoder();
        encoder.guarded(|buffers| {
            let shares = places(planned, &band).zip(&planned.parts).filter(|(_, part)| part.is_encoded());
            let mut made: Vec<Vec<u8>> = shares.map(|(share, _)| vec![0; share.len()]).collect();
            encoder.gather(planned, band.clone(), rows * cols, buffers)?;
            let data = prepare(&planned.origin, rows * cols, buffers);
            let mut out: Vec<&mut [u8]> = made.iter_mut().map(Vec::as_mut_slice).collect();
            self.scheme.encode(Rows { data, float: planned.origin.float, rows, cols }, &mut out);
            made.iter_mut().zip(self.encoded()).filter(|(_, part)| !is_first(part)).for_each(|(made, _)| made.clear());
            Ok(made)
        })
    }
}

/// Room for the way there and back, used from portion to portion.
struct Round<'s> {
    shown: &'s Shown<'s>,
    given: Vec<f32>,
    back: Vec<f32>,
    made: Vec<u8>,
}

impl Round<'_> {
    fn stretch(
        &mut self,
        encoder: &Encoder<'_>,
        stretch: Range<usize>,
        buffers: &mut Buffers,
        take: &mut impl FnMut(Values<'_>),
    ) -> Result<(), Failure> {
        let planned = &*self.shown.planned;
        let (rows, cols) = dimensions(planned, &stretch);
        let shares = places(planned, &stretch).zip(&planned.parts).filter(|(_, part)| part.is_encoded());
        let shares: Vec<usize> = shares.map(|(share, _)| share.len()).collect();
        encoder.gather(planned, stretch.clone(), rows * cols, buffers)?;
        self.there_and_back(stretch.start, [rows, cols], &shares, buffers);
        let (start, line) = match planned.banding.axis {
            Axis::Flat => (stretch.start, rows * cols),
            Axis::Rows => (stretch.start * cols, rows * cols),
            Axis::Columns => (stretch.start, cols),
        };
        take(Values { given: &self.given, shown: &self.back, start, line });
        Ok(())
    }

    /// A band of columns, so many rows after the other.
    fn strips(
        &mut self,
        encoder: &Encoder<'_>,
        (band, step): (Range<usize>, usize),
        buffers: &mut Buffers,
        take: &mut impl FnMut(Values<'_>),
    ) -> Result<(), Failure> {
        let planned = &*self.shown.planned;
        let (height, cols) = (planned.weight.rows(), planned.weight.cols());
        let whole = places(planned, &band).zip(&planned.parts).filter(|(_, part)| part.is_encoded());
        let whole: Vec<usize> = whole.map(|(share, _)| share.len()).collect();
        for first in (0..height).step_by(step) {
            let rows = first..(first + step).min(height);
            let Buffers { stored, window, .. } = &mut *buffers;
            stored.resize(rows.len() * band.len() * planned.origin.stored.size(), 0);
            encoder.gathering(planned, window).strip(rows.clone(), band.clone(), stored)?;
            let shares: Vec<usize> = whole.iter().map(|len| len * rows.len() / height).collect();
            self.there_and_back(band.start, [rows.len(), band.len()], &shares, buffers);
            let start = first * cols + band.start;
            take(Values { given: &self.given, shown: &self.back, start, line: band.len() });
        }
        Ok(())
    }

    /// Encodes what was gathered, from a place along the banding on, into parts of these lengths, and decodes them.
    fn there_and_back(&mut self, at: usize, [rows, cols]: [usize; 2], shares: &[usize], buffers: &mut Buffers) {
        let Self { shown, given, back, made } = self;
        let (planned, float) = (&*shown.planned, shown.planned.origin.float);
        let data = prepare(&planned.origin, rows * cols, buffers);
        given.resize(rows * cols, 0.0);
        back.resize(rows * cols, 0.0);
        widen(float, data, given);
        made.resize(shares.iter().sum(), 0);
        let mut rest = made.as_mut_slice();
        let mut out: Vec<&mut [u8]> = shares.iter().map(|len| rest.split_off_mut(..*len).unwrap_or_default()).collect();
        shown.scheme.encode_at(at, Rows { data, float, rows, cols }, &mut out);
        let whole = out.iter().zip(&shown.first).map(|(own, first)| if first.is_empty() { &**own } else { first });
        let parts: Vec<&[u8]> = whole.collect();
        shown.scheme.decode(&parts, float, rows, back);
    }
}
