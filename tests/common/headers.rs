//! Safetensors files as bytes, from their parts.

use quantfs::container::{Malformed, safetensors};

/// A file: the length of `json`, `json`, and `data` zero bytes.
pub(crate) fn file(json: &str, data: usize) -> Vec<u8> {
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

/// The header of a file in memory, as our parser reads it.
pub(crate) fn header(file: &[u8]) -> Result<safetensors::Header, Malformed> {
    safetensors::read(file.len() as u64, |at, buf: &mut [u8]| {
        let at = usize::try_from(at).unwrap();
        buf.copy_from_slice(&file[at..at + buf.len()]);
        Ok(())
    })
}
