//! No quantization: a dense tensor whose elements are computed (stacked, cast, plus one) rather than
//! copied from one place of the source. The plan gives it to such tensors; no spec names it.

use crate::{
    quant::{Axis, Banding, Content, Facts, Part, Scheme, Unsupported, Weight},
    tensor::{Float, Rows, byte_len},
};

use super::{ENCODING, widen};

/// Elements that are cut together: enough that a granule is a cache line or more in every float.
const GRANULE: usize = 64;

/// The elements as the origin gives them, in the weight's float.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cast;

impl Scheme for Cast {
    fn id(&self) -> String {
        format!("cast-{ENCODING}")
    }

    fn facts(&self) -> Facts {
        Facts { bits: 0, group_size: 1, mode: "dense" }
    }

    fn parts(&self, weight: &Weight) -> Result<Vec<Part>, Unsupported> {
        let dtype = weight.float.dtype();
        let shape = weight.shape.clone();
        if byte_len(dtype, &shape).is_none() {
            return Err(Unsupported(format!("its shape {shape:?} is larger than any memory")));
        }
        Ok(vec![Part {
            suffix: "",
            dtype,
            shape,
            content: Content::Tiled { per_granule: GRANULE * weight.float.size() },
        }])
    }

    fn banding(&self, _: &Weight) -> Banding {
        Banding { axis: Axis::Flat, granule: GRANULE }
    }

    fn encode(&self, band: Rows<'_>, out: &mut [&mut [u8]]) {
        let [elements] = out else { panic!("a dense tensor has one part, not {}", out.len()) };
        elements.copy_from_slice(band.data);
    }

    fn decode(&self, parts: &[&[u8]], float: Float, _: usize, out: &mut [f32]) {
        let [elements] = parts else { panic!("a dense tensor has one part, not {}", parts.len()) };
        widen(float, elements, out);
    }
}
