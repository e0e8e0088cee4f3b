//! Memory for weights: it starts with a cache line, and lies in large pages where it is large.
//!
//! Vectors that cross lines take twice as long to load, and a core that reads weights one page of 4 KiB
//! after the other spends a third of its time on finding the pages.

use std::{io, ops::Range};

use memmap2::MmapMut;

/// Bytes from which on large pages are asked for: two of them.
const LARGE: usize = 4 << 20;

/// Bytes, at first zeros.
pub(crate) enum Memory {
    Small { bytes: Vec<u8>, range: Range<usize> },
    Large(MmapMut),
}

impl Memory {
    const LINE: usize = 64;

    /// # Errors
    /// So much memory is not to be had.
    pub(crate) fn zeros(len: usize) -> io::Result<Self> {
        if len < LARGE {
            let bytes = vec![0; len + Self::LINE];
            let start = bytes.as_ptr().align_offset(Self::LINE).min(Self::LINE);
            return Ok(Self::Small { bytes, range: start..start + len });
        }
        let map = MmapMut::map_anon(len)?;
        #[cfg(target_os = "linux")]
        // Small pages do as well, a little slower.
        let _refused = map.advise(memmap2::Advice::HugePage);
        Ok(Self::Large(map))
    }

    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        match self {
            Self::Small { bytes, range } => &mut bytes[range.clone()],
            Self::Large(map) => map,
        }
    }
}

impl AsRef<[u8]> for Memory {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Small { bytes, range } => &bytes[range.clone()],
            Self::Large(map) => map,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_zeros_from_a_line_on() -> io::Result<()> {
        for len in [0, 1, 63, 4096, LARGE - 1, LARGE, LARGE + 1] {
            let mut memory = Memory::zeros(len)?;
            assert!(memory.as_ref().len() == len && memory.as_ref().iter().all(|byte| *byte == 0), "{len}");
            assert_eq!(memory.bytes().as_ptr().align_offset(Memory::LINE), 0, "{len}");
            memory.bytes().fill(7);
            assert!(memory.as_ref().iter().all(|byte| *byte == 7), "{len}");
        }
        assert!(Memory::zeros(usize::MAX / 2).is_err(), "more than any machine has");
        Ok(())
    }
}
