//! Digests: what the bytes of a weight, and of a file of the view, are a function of.
//!
//! Within a process a source file is its version; for what outlasts it the caller says what
//! identifies one.

use blake3::Hasher;

use crate::{
    plan::{Content, File, Origin, Plan},
    quant::{Axis, Scheme, Weight},
    source::FileId,
};

/// Changes whenever the same scheme id would give other bytes for the same plan.
const ENCODING_REVISION: u32 = 1;

fn number(hash: &mut Hasher, number: u64) {
    hash.update(&number.to_le_bytes());
}

fn bytes(hash: &mut Hasher, bytes: &[u8]) {
    number(hash, bytes.len() as u64);
    hash.update(bytes);
}

/// Digests what the parts of a weight are made of; `identify` adds a source file.
pub(super) fn weight(
    hash: &mut Hasher,
    weight: &Weight,
    origin: &Origin,
    scheme: &dyn Scheme,
    identify: &mut dyn FnMut(&mut Hasher, FileId),
) {
    number(hash, u64::from(ENCODING_REVISION));
    bytes(hash, scheme.id().as_bytes());
    number(hash, weight.shape.len() as u64);
    weight.shape.iter().for_each(|dim| number(hash, *dim as u64));
    hash.update(&[origin.stored as u8, origin.float as u8, u8::from(origin.plus_one)]);
    number(hash, origin.pieces.len() as u64);
    for piece in &origin.pieces {
        identify(hash, piece.file);
        number(hash, piece.offset);
        for count in [piece.rows, piece.row_stride, piece.cols, piece.col_stride] {
            number(hash, count as u64);
        }
    }
    for delta in &origin.deltas {
        for factor in [&delta.up, &delta.down] {
            identify(hash, factor.file);
            number(hash, factor.offset);
            hash.update(&[factor.float as u8]);
        }
        for count in [delta.piece, delta.rows, delta.cols, delta.rank] {
            number(hash, count as u64);
        }
        number(hash, delta.start);
        number(hash, u64::from(delta.scale.to_bits()));
    }
}

/// Names the bytes of a weight under another scheme, for as long as its own key does.
pub(super) fn other(key: &[u8; 16], scheme: &dyn Scheme) -> [u8; 16] {
    let mut hash = Hasher::new();
    hash.update(key);
    bytes(&mut hash, scheme.id().as_bytes());
    let mut other = [0; 16];
    other.copy_from_slice(&hash.finalize().as_bytes()[..16]);
    other
}

impl Plan {
    /// Digest of everything that the bytes of a file of the view, and its tiles, are a function of: this
    /// version of the program included. `identify` says what a source file is.
    #[must_use]
    pub fn digest(&self, file: &File, identify: &dyn Fn(FileId) -> [u8; 32]) -> [u8; 32] {
        let mut hash = Hasher::new();
        let mut source = |hash: &mut Hasher, file| {
            hash.update(&identify(file));
        };
        bytes(&mut hash, env!("CARGO_PKG_VERSION").as_bytes());
        number(&mut hash, file.len);
        for extent in &file.extents {
            number(&mut hash, extent.start);
            match &extent.content {
                Content::Bytes(content) => {
                    hash.update(b"b");
                    bytes(&mut hash, content);
                }
                Content::Source { file, offset } => {
                    hash.update(b"s");
                    source(&mut hash, *file);
                    number(&mut hash, *offset);
                }
                Content::Part { weight: index, part } => {
                    let planned = &self.weights[*index as usize];
                    hash.update(b"p");
                    for of in self.sources_of(*index) {
                        weight(&mut hash, &of.weight, &of.origin, of.scheme.as_ref(), &mut source);
                    }
                    let axis = match planned.banding.axis {
                        Axis::Flat => 0,
                        Axis::Rows => 1,
                        Axis::Columns => 2,
                    };
                    let cut = [axis, planned.banding.granule as u64, planned.tile as u64, u64::from(*part)];
                    cut.into_iter().for_each(|n| number(&mut hash, n));
                }
            }
        }
        hash.finalize().into()
    }
}
