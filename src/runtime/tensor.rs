//! One tensor of a directory: its info and its bytes, where they lie.

use std::{path::Path, sync::Arc};

use memmap2::Mmap;

use crate::{
    quant::{format::widen, operator::Bytes},
    runtime::{Error, mmap},
    tensor::{Float, TensorInfo},
};

/// A tensor; cloning shares the bytes and keeps the mapping alive.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Name, dtype, shape.
    pub info: TensorInfo,
    /// The elements, little endian, at any alignment: files that others wrote pad nothing.
    pub bytes: Bytes,
    file: Arc<Path>,
    /// The mapping that it lies in, and where.
    mapped: Option<(Arc<Mmap>, usize)>,
}

/// Bytes of a tensor that is fetched alone: norms and biases, which lie between weights.
const LITTLE: usize = 1 << 20;

impl Tensor {
    pub(super) fn new(info: TensorInfo, bytes: Bytes, file: Arc<Path>, mapped: Option<(Arc<Mmap>, usize)>) -> Self {
        Self { info, bytes, file, mapped }
    }

    /// The file that holds it.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The elements as a typed slice; `None` where they do not lie at a multiple of the type's
    /// alignment, or do not fill a whole number of it. The dtype is the caller's to know.
    #[must_use]
    pub fn as_slice<T: bytemuck::AnyBitPattern>(&self) -> Option<&[T]> {
        bytemuck::try_cast_slice(&self.bytes).ok()
    }

    /// The values of a floating tensor.
    ///
    /// # Errors
    /// A tensor whose dtype is not bf16, f16 or f32.
    pub fn to_f32(&self) -> Result<Vec<f32>, Error> {
        let from = self.float()?;
        if let Some((map, start)) = self.mapped.as_ref().filter(|_| self.bytes.len() <= LITTLE) {
            mmap::fetch(map, *start..start + self.bytes.len());
        }
        let mut values = vec![0.0; self.bytes.len() / from.size()];
        widen(from, &self.bytes, &mut values);
        Ok(values)
    }

    /// The float of its elements.
    pub(super) fn float(&self) -> Result<Float, Error> {
        let dtype = self.info.dtype;
        Float::of(dtype).ok_or_else(|| self.wrong(format!("it is {dtype}; BF16, F16 or F32 was expected")))
    }

    /// An error about this tensor.
    pub(super) fn wrong(&self, why: impl Into<String>) -> Error {
        Error::Tensor { tensor: self.info.name.clone(), path: self.file.display().to_string(), why: why.into() }
    }
}
