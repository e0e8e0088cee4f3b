//! Words for tensors: dtype, shape, info, rows; with checked size arithmetic.
//!
//! Knows no file and no format. Every size that comes from a header goes through the checked
//! functions here, so that no arithmetic on hostile input can overflow.

pub use safetensors::Dtype;

/// Bytes: scales of small floats, codes of `MatMulNBits`.
pub const UINT8: Dtype = Dtype::U8;
/// Words: MLX's codes.
pub const UINT32: Dtype = Dtype::U32;
/// Symmetric int8 codes.
pub const INT8: Dtype = Dtype::I8;

/// Name, dtype and shape of a tensor, as a header states them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Full name, `model.layers.0.mlp.up_proj.weight`.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// Number of elements, `None` on overflow.
    #[must_use]
    pub fn elements(&self) -> Option<usize> {
        element_count(&self.shape)
    }

    /// Bytes of the data, `None` on overflow or where the bits do not fill whole bytes.
    #[must_use]
    pub fn byte_len(&self) -> Option<usize> {
        byte_len(self.dtype, &self.shape)
    }
}

/// Product of the dimensions, `None` on overflow. A scalar has one element.
#[must_use]
pub fn element_count(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
}

/// Bytes of a dense tensor, `None` on overflow or where the bits do not fill whole bytes (F4, F6).
#[must_use]
pub fn byte_len(dtype: Dtype, shape: &[usize]) -> Option<usize> {
    let bits = element_count(shape)?.checked_mul(dtype.bitsize())?;
    (bits % 8 == 0).then_some(bits / 8)
}

/// The dtypes whose values can be quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Float {
    /// bfloat16
    Bf16,
    /// IEEE half
    F16,
    /// IEEE single
    F32,
}

impl Float {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Bf16, Self::F16, Self::F32];

    /// The float of a dtype, `None` for any other dtype.
    #[must_use]
    pub fn of(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::BF16 => Some(Self::Bf16),
            Dtype::F16 => Some(Self::F16),
            Dtype::F32 => Some(Self::F32),
            _ => None,
        }
    }

    /// The container's dtype.
    #[must_use]
    pub fn dtype(self) -> Dtype {
        match self {
            Self::Bf16 => Dtype::BF16,
            Self::F16 => Dtype::F16,
            Self::F32 => Dtype::F32,
        }
    }

    /// Bytes of one element.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            Self::Bf16 | Self::F16 => 2,
            Self::F32 => 4,
        }
    }

    /// As Python and config.json write it: `bfloat16`, `float16`, `float32`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bfloat16",
            Self::F16 => "float16",
            Self::F32 => "float32",
        }
    }

    /// The float of a name as config.json's `torch_dtype` writes it.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|f| f.name() == name)
    }
}

/// A dense row-major block of elements: `rows * cols` of them, little endian, at any alignment.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// The elements, `rows * cols * float.size()` bytes.
    pub data: &'a [u8],
    /// Their type.
    pub float: Float,
    /// Number of rows; 1 where the block is a run of elements in flat order.
    pub rows: usize,
    /// Elements of a row.
    pub cols: usize,
}

impl Rows<'_> {
    /// Number of elements.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.rows * self.cols
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_checked() {
        assert_eq!(element_count(&[]), Some(1));
        assert_eq!(element_count(&[usize::MAX, 2]), None);
        assert_eq!(byte_len(Dtype::BF16, &[3, 5]), Some(30));
        assert_eq!(byte_len(Dtype::F4, &[3]), None, "12 bits are no whole bytes");
        assert_eq!(byte_len(Dtype::F32, &[usize::MAX / 2]), None);
    }

    #[test]
    fn floats_name_themselves() {
        for f in Float::ALL {
            assert_eq!(Float::from_name(f.name()), Some(f));
            assert_eq!(Float::of(f.dtype()), Some(f));
            assert_eq!(f.size() * 8, f.dtype().bitsize());
        }
        assert_eq!(Float::of(Dtype::I8), None);
    }
}
