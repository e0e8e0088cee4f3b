//! Another scheme's values in the weight's own float: what a weight is after it was stored so and read
//! back. No format of its own: the plan wraps the schemes of `dense-SPEC` views with it.
//!
//! A weight is cast to the float that the scheme computes in, encoded, decoded by the scheme's reference decoder and
//! rounded half to even to its own float. Bands are the scheme's, but for packings along the
//! input, whose values are a function of each row alone.

use std::sync::Arc;

use crate::{
    kernel::{Cast, kernels},
    quant::{Axis, Banding, Content, Facts, Importance, Part, Scheme, Survey, Unsupported, Weight},
    tensor::{Float, Rows},
};

use super::narrow;

/// Rows of the smallest band of a packing along the input: all of them pack so many outputs together, or fewer.
const PACKED_ROWS: usize = 32;

/// The values of a scheme, shown dense.
#[derive(Clone, Debug)]
pub struct Dense {
    inner: Arc<dyn Scheme>,
    computed: Float,
}

impl Dense {
    /// The values of weights that are cast to `computed` and stored by `inner`.
    #[must_use]
    pub fn new(inner: Arc<dyn Scheme>, computed: Float) -> Self {
        Self { inner, computed }
    }

    /// The weight as the scheme is given it.
    fn inside(&self, weight: &Weight) -> Weight {
        Weight { float: self.computed, ..weight.clone() }
    }

    /// Elements in the float that the scheme computes in.
    fn cast(&self, band: Rows<'_>) -> Vec<u8> {
        let mut data = vec![0; band.elements() * self.computed.size()];
        let job = Cast { from: band.float, to: self.computed, plus_one: false };
        kernels().cast(&job, band.data, &mut data);
        data
    }

    /// The values of a band from `start` on, which the scheme takes for a weight of its own.
    fn values(&self, start: usize, band: Rows<'_>) -> Result<Vec<f32>, Unsupported> {
        let alone = Weight { stem: String::new(), float: self.computed, shape: vec![band.rows, band.cols] };
        let encoded = self.inner.parts(&alone)?.into_iter().filter(Part::is_encoded);
        let mut made: Vec<Vec<u8>> = encoded.map(|part| vec![0; part.len()]).collect();
        let mut out: Vec<&mut [u8]> = made.iter_mut().map(Vec::as_mut_slice).collect();
        let data = self.cast(band);
        self.inner.encode_at(start, Rows { data: &data, float: self.computed, ..band }, &mut out);
        let mut values = vec![0.0; band.elements()];
        let parts: Vec<&[u8]> = made.iter().map(Vec::as_slice).collect();
        self.inner.decode(&parts, self.computed, band.rows, &mut values);
        Ok(values)
    }
}

impl Scheme for Dense {
    fn id(&self) -> String {
        format!("dense-{}-{}", self.computed.name(), self.inner.id())
    }

    fn facts(&self) -> Facts {
        self.inner.facts()
    }

    fn parts(&self, weight: &Weight) -> Result<Vec<Part>, Unsupported> {
        self.inner.parts(&self.inside(weight))?;
        let Banding { axis, granule } = self.banding(weight);
        let line = if axis == Axis::Flat { 1 } else { weight.cols() };
        // A band is stored as if it were all: what the scheme holds of the whole it must hold of that.
        let shape = if axis == Axis::Flat { vec![1, granule] } else { vec![granule, weight.cols()] };
        self.inner.parts(&Weight { stem: String::new(), float: self.computed, shape })?;
        let content = Content::Tiled { per_granule: granule * line * weight.float.size() };
        Ok(vec![Part { suffix: "", dtype: weight.float.dtype(), shape: weight.shape.clone(), content }])
    }

    fn banding(&self, weight: &Weight) -> Banding {
        let banding = self.inner.banding(&self.inside(weight));
        match banding.axis {
            Axis::Flat | Axis::Rows => banding,
            Axis::Columns => Banding { axis: Axis::Rows, granule: PACKED_ROWS },
        }
    }

    fn survey(&self, weight: &Weight) -> Option<Arc<dyn Survey>> {
        let inner = self.inner.survey(&self.inside(weight))?;
        Some(Arc::new(Asked { dense: self.clone(), inner }))
    }

    fn encode(&self, band: Rows<'_>, out: &mut [&mut [u8]]) {
        self.encode_at(0, band, out);
    }

    fn weighted(&self, importance: &Importance) -> Option<Arc<dyn Scheme>> {
        Some(Arc::new(Self { inner: self.inner.weighted(importance)?, ..*self }))
    }

    fn encode_at(&self, start: usize, band: Rows<'_>, out: &mut [&mut [u8]]) {
        let [shown] = out else { panic!("a dense weight has one part, not {}", out.len()) };
        // Bands of rows are whole to a scheme that is cut into columns.
        let weight = Weight { stem: String::new(), float: self.computed, shape: vec![band.rows, band.cols] };
        let start = if self.inner.banding(&weight).axis == Axis::Columns { 0 } else { start };
        let values = self.values(start, band).expect("a band of a shape that parts() was asked about");
        narrow(band.float, &values, shown);
    }

    /// The cast elements, parts that are no longer than these, the values, and their bytes once more.
    fn scratch(&self, elements: usize) -> usize {
        elements * (2 * self.computed.size() + 2 * size_of::<f32>())
    }

    fn decode(&self, parts: &[&[u8]], float: Float, _: usize, out: &mut [f32]) {
        let [shown] = parts else { panic!("a dense weight has one part, not {}", parts.len()) };
        super::widen(float, shown, out);
    }
}

/// The question of a scheme whose values are shown dense.
#[derive(Debug)]
struct Asked {
    dense: Dense,
    inner: Arc<dyn Survey>,
}

impl Survey for Asked {
    fn look(&self, band: Rows<'_>) -> Vec<f32> {
        let data = self.dense.cast(band);
        self.inner.look(Rows { data: &data, float: self.dense.computed, ..band })
    }

    fn is_joint(&self) -> bool {
        self.inner.is_joint()
    }

    fn conclude(&self, looks: &[Vec<f32>]) -> Arc<dyn Scheme> {
        Arc::new(Dense { inner: self.inner.conclude(looks), ..self.dense })
    }
}
