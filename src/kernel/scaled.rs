//! The job of codes under scales in the weight's own float, and the entries of the table for it.
//!
//! Knows which codes there are and how long their bytes; the arithmetic is `body::scaled`'s.

use crate::{
    num::{bf16_from_f32, bf16_to_f32, f16_from_f32, f16_to_f32},
    tensor::Float,
};

use super::Kernels;

/// What the codes of a weight are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Coding {
    /// Whole numbers of so many bits around zero, stored counted from the least one.
    Signed(u32),
    /// The same with a zero point for each group.
    Shifted(u32),
    /// Whole numbers of 8 bits in two's complement.
    Int8,
    /// e4m3 under a scale of the weight's float.
    E4m3,
    /// e2m1 under a power of two.
    Mxfp4,
    /// e4m3 under a power of two.
    Mxfp8,
    /// e2m1 under an e4m3 scale, which is divided by this one of the whole tensor.
    Nvfp4(f32),
}

impl Coding {
    /// Bits of a code.
    #[must_use]
    pub const fn bits(self) -> u32 {
        match self {
            Self::Signed(bits) | Self::Shifted(bits) => bits,
            Self::Int8 | Self::E4m3 | Self::Mxfp8 => 8,
            Self::Mxfp4 | Self::Nvfp4(_) => 4,
        }
    }

    /// Whether groups have zero points.
    #[must_use]
    pub const fn has_zeros(self) -> bool {
        matches!(self, Self::Shifted(_))
    }

    /// What the largest magnitude of a group is divided by for its scale: the largest code, or half of the steps between
    /// whole numbers.
    pub(super) fn reach(self) -> f32 {
        match self {
            Self::E4m3 | Self::Mxfp8 => 448.0,
            Self::Mxfp4 | Self::Nvfp4(_) => 6.0,
            Self::Signed(_) | Self::Shifted(_) | Self::Int8 => ((1u32 << self.bits()) - 1) as f32 / 2.0,
        }
    }
}

/// A quantization of groups to codes under scales, computed in the weight's float.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scaled {
    /// What the codes are.
    pub coding: Coding,
    /// The elements, and what each step is rounded to.
    pub float: Float,
    /// Elements of a group: 16, 32, 64 or 128, or those of a whole row.
    pub group: usize,
    /// Whether a group is a whole row; codes that are packed then end on a word of 32 bits.
    pub is_row: bool,
    /// Whether quotients are rounded to the float before they become codes (nvfp4 takes no notice: its never are).
    pub eager: bool,
}

impl Scaled {
    /// Bytes of a stored scale.
    #[must_use]
    pub const fn scale_bytes(&self) -> usize {
        match self.coding {
            Coding::Mxfp4 | Coding::Mxfp8 | Coding::Nvfp4(_) => 1,
            Coding::Signed(_) | Coding::Shifted(_) | Coding::Int8 | Coding::E4m3 => match self.float {
                Float::Bf16 | Float::F16 => 2,
                Float::F32 => 4,
            },
        }
    }

    /// Bytes of the codes of so many elements that stand in a row.
    #[must_use]
    pub const fn row_bytes(&self, cols: usize) -> usize {
        match self.coding {
            Coding::Signed(bits) | Coding::Shifted(bits) => (cols * bits as usize).div_ceil(32) * 4,
            Coding::Int8 | Coding::E4m3 | Coding::Mxfp8 => cols,
            Coding::Mxfp4 | Coding::Nvfp4(_) => cols.div_ceil(2),
        }
    }

    /// The scale of elements whose largest magnitude is this one, where it is rounded to the weight's float: never zero.
    #[must_use]
    pub fn scale_of(&self, largest: f32) -> f32 {
        let scale = rounded(self.float, largest / self.coding.reach());
        if scale == 0.0 { epsilon(self.float) } else { scale }
    }

    pub(super) const fn is_rounded(&self) -> bool {
        self.eager && !matches!(self.coding, Coding::Nvfp4(_))
    }

    /// # Panics
    /// If the lengths of a run do not fit together.
    pub(super) fn check_run(&self, given: &[f32], src: &[u8], [codes, scales, zeros]: [&[u8]; 3]) {
        assert!(src.len().is_multiple_of(self.float.size()), "{} bytes of {}", src.len(), self.float.name());
        let elements = src.len() / self.float.size();
        let stored = if given.is_empty() { scales.len() / self.scale_bytes() } else { given.len() };
        self.check(elements, codes.len(), stored);
        assert!(given.is_empty() || scales.is_empty(), "scales that are given are not stored");
        assert_eq!(zeros.len(), if self.coding.has_zeros() { stored } else { 0 }, "{self:?}");
    }

    /// # Panics
    /// If no run of `elements` has codes and groups of these lengths.
    fn check(&self, elements: usize, codes: usize, groups: usize) {
        let Self { coding, group, .. } = *self;
        assert!(matches!(coding.bits(), 2..=8) && group > 0, "no such codes: {self:?}");
        assert!(elements.is_multiple_of(group), "{elements} elements are no whole groups of {group}");
        assert!(self.is_row || matches!(group, 16 | 32 | 64 | 128), "no such groups: {self:?}");
        assert_eq!((codes, groups), (elements / group * self.row_bytes(group), elements / group), "{self:?}");
    }
}

/// A step of arithmetic in a float.
#[must_use]
pub fn rounded(float: Float, x: f32) -> f32 {
    match float {
        Float::Bf16 => bf16_to_f32(bf16_from_f32(x)),
        Float::F16 => f16_to_f32(f16_from_f32(x)),
        Float::F32 => x,
    }
}

/// Torch's `finfo(dtype).eps`.
#[inline(always)]
pub(super) const fn epsilon(float: Float) -> f32 {
    match float {
        Float::Bf16 => 1.0 / 128.0,
        Float::F16 => 1.0 / 1024.0,
        Float::F32 => f32::EPSILON,
    }
}

impl Kernels {
    /// Quantizes a run of whole groups: elements in; packed codes, scales as they are stored and zero points out, one
    /// byte each, counted from the least code. Where scales are `given`, one a group, none are stored.
    ///
    /// # Panics
    /// If the lengths do not fit together.
    pub fn quantize_scaled(&self, job: &Scaled, given: &[f32], src: &[u8], out: [&mut [u8]; 3]) {
        let [codes, scales, zeros] = out;
        job.check_run(given, src, [codes, scales, zeros]);
        (self.quantize_scaled)(job, given, src, [codes, scales, zeros]);
    }

    /// The values of a run of whole groups, rounded to the job's float, from codes, scales and zero points as
    /// [`quantize_scaled`](Self::quantize_scaled) stores them; no zero points where there are none.
    ///
    /// # Panics
    /// If the lengths do not fit together.
    pub fn dequantize_scaled(&self, job: &Scaled, codes: &[u8], scales: &[f32], zeros: &[u8], out: &mut [f32]) {
        job.check(out.len(), codes.len(), scales.len());
        assert_eq!(zeros.len(), if job.coding.has_zeros() { scales.len() } else { 0 }, "{job:?}");
        (self.dequantize_scaled)(job, codes, scales, zeros, out);
    }
}
