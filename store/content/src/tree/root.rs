//! The root record: 48 bytes that identify a volume's content.

#![warn(clippy::indexing_slicing)]

use super::{NodeId, RootId, TreeError, height};
use crate::block::MAX_VOLUME_BYTES;

const WHAT: &str = "root record";
const TAG: u8 = b'R';
const VERSION: u8 = 1;

/// Bytes in the encoding of a root record.
pub const ROOT_BYTES: usize = 48;

/// A volume's size and content.
///
/// Encoding, integers little-endian:
///
/// ```text
/// 0    1   b'R'
/// 1    1   version 1
/// 2    1   1 with a top node, 0 if the volume is all hole
/// 3    1   0
/// 4    4   chunker version
/// 8    8   size in bytes, at most 64 TiB
/// 16   32  id of the top node, an inner node of level height(size); zeros without one
/// ```
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct Root {
    /// Size of the volume in bytes, at most [`MAX_VOLUME_BYTES`].
    pub size_bytes: u64,
    /// [`CHUNKER_VERSION`](crate::chunker::CHUNKER_VERSION) of the chunker that cut it. Decoding
    /// accepts any version; the store decides which versions it supports.
    pub chunker_version: u32,
    /// Top inner node, of level [`height`]`(size_bytes)`; `None` if all is hole.
    pub top: Option<NodeId>,
}

impl Root {
    /// Levels of inner nodes under this root.
    #[must_use]
    pub fn height(&self) -> u8 {
        height(self.size_bytes)
    }

    /// Returns the encoding of this record. There is only one.
    #[must_use]
    pub fn encode(&self) -> [u8; ROOT_BYTES] {
        let mut fields = Fields([0; ROOT_BYTES]);
        fields.put(0, [TAG, VERSION, u8::from(self.top.is_some())]);
        fields.put(4, self.chunker_version.to_le_bytes());
        fields.put(8, self.size_bytes.to_le_bytes());
        if let Some(top) = self.top {
            fields.put(16, *top.as_bytes());
        }
        fields.0
    }

    /// Decodes a root record.
    ///
    /// # Errors
    ///
    /// [`TreeError::Length`], [`TreeError::Tag`] or [`TreeError::Field`] if these bytes are not the
    /// [encoding](Self::encode) of any root record.
    pub fn decode(encoded: &[u8]) -> Result<Self, TreeError> {
        let bytes: [u8; ROOT_BYTES] = encoded.try_into().map_err(|_| TreeError::Length {
            what: WHAT,
            expected: ROOT_BYTES,
            found: encoded.len(),
        })?;
        let fields = Fields(bytes);
        let [tag, version, has_top, reserved] = fields.get(0);
        if (tag, version) != (TAG, VERSION) {
            return Err(TreeError::Tag {
                what: WHAT,
                tag,
                version,
                expected: TAG,
            });
        }
        let bad = |field, value| TreeError::Field {
            what: WHAT,
            field,
            value,
        };
        if reserved != 0 {
            return Err(bad("the reserved byte", reserved.into()));
        }
        let size_bytes = u64::from_le_bytes(fields.get(8));
        if size_bytes > MAX_VOLUME_BYTES {
            return Err(bad("the size in bytes", size_bytes));
        }
        let top: [u8; NodeId::BYTES] = fields.get(16);
        let top = match has_top {
            0 if top == [0; NodeId::BYTES] => None,
            1 if size_bytes > 0 => Some(NodeId::from_bytes(top)),
            _ => return Err(bad("the number of top nodes", has_top.into())),
        };
        Ok(Self {
            size_bytes,
            chunker_version: u32::from_le_bytes(fields.get(4)),
            top,
        })
    }

    /// Computes the id of this record, which stands for the volume's content and size.
    #[must_use]
    pub fn id(&self) -> RootId {
        RootId::of(&self.encode())
    }
}

/// The record's bytes, with fields at offsets that are constants and lie inside it.
struct Fields([u8; ROOT_BYTES]);

impl Fields {
    #[expect(
        clippy::indexing_slicing,
        reason = "offsets are constants of this file"
    )]
    fn put<const N: usize>(&mut self, offset: usize, field: [u8; N]) {
        self.0[offset..offset + N].copy_from_slice(&field);
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "offsets are constants of this file"
    )]
    fn get<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut field = [0; N];
        field.copy_from_slice(&self.0[offset..offset + N]);
        field
    }
}
