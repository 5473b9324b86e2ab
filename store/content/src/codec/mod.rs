//! Packing a chunk's bytes for the disk and the wire.

use std::fmt;
use std::str::FromStr;

use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};
use zstd::bulk::{Compressor, Decompressor};

use crate::chunker::MAX_CHUNK_BYTES;

/// The level of Zstandard. Import pays for compression above all. Measured on the 4 to 256 KiB
/// chunks of a Debian image, in time and stored bytes against level 1: level 2 takes 14 % more time
/// for 1.5 % less space, level 3 a third more for 3.4 % less; level -1 takes 6 % less for 11 %
/// more. Other hash tables and match lengths gain nothing without giving up as much. Nor does a
/// test for data that does not compress: it takes 2 % of the time now.
const ZSTD_LEVEL: i32 = 1;

/// How stored bytes are packed. The number is what stands on disk and on the wire.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
#[repr(u8)]
pub enum Codec {
    /// Plain bytes.
    Raw = 0,
    /// One LZ4 block, without a length in front.
    Lz4 = 1,
    /// One Zstandard frame.
    Zstd = 2,
}

impl TryFrom<u8> for Codec {
    type Error = CodecError;

    fn try_from(number: u8) -> Result<Self, CodecError> {
        match number {
            0 => Ok(Self::Raw),
            1 => Ok(Self::Lz4),
            2 => Ok(Self::Zstd),
            _ => Err(CodecError::UnknownCodec { number }),
        }
    }
}

/// What a store does with new chunks: a setting, where [`Codec`] is what one chunk got.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq, Hash)]
pub enum Compression {
    None,
    Lz4,
    #[default]
    Zstd,
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        })
    }
}

impl FromStr for Compression {
    type Err = CodecError;

    fn from_str(name: &str) -> Result<Self, CodecError> {
        match name {
            "none" => Ok(Self::None),
            "lz4" => Ok(Self::Lz4),
            "zstd" => Ok(Self::Zstd),
            _ => Err(CodecError::UnknownCompression { name: name.into() }),
        }
    }
}

/// Why bytes could not be unpacked, or a name or number means no codec.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CodecError {
    #[error("read a codec: {number} is none of 0 (raw), 1 (lz4), 2 (zstd)")]
    UnknownCodec { number: u8 },
    #[error("read a compression setting: {name:?} is none of none, lz4, zstd")]
    UnknownCompression { name: String },
    /// The caller expects more than the longest chunk. Nothing has been allocated.
    #[error("unpack: {plain_bytes} bytes are more than the {MAX_CHUNK_BYTES} of the longest chunk")]
    TooLong { plain_bytes: usize },
    /// Unpacked to another length than expected, as far as that is known.
    #[error("unpack {codec:?}: {found} bytes instead of {expected}")]
    Length {
        codec: Codec,
        expected: usize,
        found: usize,
    },
    /// No such stream, or one that unpacks to more than expected.
    #[error("unpack {codec:?} to {expected} bytes: {reason}")]
    Malformed {
        codec: Codec,
        expected: usize,
        reason: String,
    },
}

/// Packs chunks. Keeps its context and buffer from one chunk to the next, so give each thread one.
pub struct Encoder {
    packer: Packer,
    /// Initialised once and as long as the longest output so far, so that packing does not zero it.
    packed: Vec<u8>,
}

enum Packer {
    None,
    Lz4(CompressTable),
    Zstd(Compressor<'static>),
}

impl Encoder {
    #[must_use]
    pub fn new(compression: Compression) -> Self {
        let packer = match compression {
            Compression::None => Packer::None,
            Compression::Lz4 => Packer::Lz4(CompressTable::large()),
            Compression::Zstd => Packer::Zstd(zstd_compressor()),
        };
        Self {
            packer,
            packed: Vec::new(),
        }
    }

    /// Packs one chunk. Gives the plain bytes back as [`Codec::Raw`] where packing saves less
    /// than an eighth of them.
    pub fn encode<'a>(&'a mut self, plain: &'a [u8]) -> (Codec, &'a [u8]) {
        // The most that saves an eighth.
        let limit = plain.len() - plain.len().div_ceil(8);
        let (codec, packed_len) = match &mut self.packer {
            Packer::None => return (Codec::Raw, plain),
            Packer::Lz4(table) => {
                grow(&mut self.packed, get_maximum_output_size(plain.len()));
                let packed = compress_into_with_table(plain, &mut self.packed, table);
                (Codec::Lz4, packed.ok())
            }
            Packer::Zstd(compressor) => {
                // Room for the worst case although only `limit` is kept: less room saves no time,
                // and makes zstd give up on some chunks that would just have fitted.
                grow(
                    &mut self.packed,
                    zstd::zstd_safe::compress_bound(plain.len()),
                );
                let packed = compressor.compress_to_buffer(plain, self.packed.as_mut_slice());
                (Codec::Zstd, packed.ok())
            }
        };
        // The only error either has is a lack of room, and plain bytes are right after any.
        match packed_len {
            Some(len) if len <= limit => (codec, &self.packed[..len]),
            _ => (Codec::Raw, plain),
        }
    }
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let compression = match self.packer {
            Packer::None => Compression::None,
            Packer::Lz4(_) => Compression::Lz4,
            Packer::Zstd(_) => Compression::Zstd,
        };
        f.debug_struct("Encoder")
            .field("compression", &compression)
            .finish_non_exhaustive()
    }
}

fn zstd_compressor() -> Compressor<'static> {
    #[expect(clippy::expect_used, reason = "the level is a constant that zstd has")]
    Compressor::new(ZSTD_LEVEL).expect("zstd takes its own level 1")
}

fn grow(buffer: &mut Vec<u8>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
}

/// Unpacks chunks. Keeps its context from one chunk to the next, so give each thread one.
///
/// What it gives has the right length and nothing more is known about it: check it against its id.
#[derive(Default)]
pub struct Decoder {
    zstd: Decompressor<'static>,
}

impl Decoder {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Unpacks `stored` into `out`, which is emptied first and holds exactly `plain_len` bytes
    /// after success. After an error its content means nothing.
    ///
    /// Reserves no more than `plain_len` bytes, whatever `stored` says about itself.
    ///
    /// # Errors
    ///
    /// [`CodecError`] if `plain_len` exceeds [`MAX_CHUNK_BYTES`], or `stored` does not unpack to
    /// exactly that length.
    pub fn decode(
        &mut self,
        codec: Codec,
        stored: &[u8],
        plain_len: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), CodecError> {
        out.clear();
        if plain_len > MAX_CHUNK_BYTES {
            return Err(CodecError::TooLong {
                plain_bytes: plain_len,
            });
        }
        out.reserve_exact(plain_len);
        let malformed = |reason: String| CodecError::Malformed {
            codec,
            expected: plain_len,
            reason,
        };
        let found = match codec {
            Codec::Raw => {
                if stored.len() == plain_len {
                    out.extend_from_slice(stored);
                }
                stored.len()
            }
            Codec::Lz4 => {
                out.resize(plain_len, 0);
                lz4_flex::block::decompress_into(stored, out)
                    .map_err(|error| malformed(error.to_string()))?
            }
            Codec::Zstd => self
                .zstd
                .decompress_to_buffer(stored, out)
                .map_err(|error| malformed(error.to_string()))?,
        };
        if found != plain_len {
            return Err(CodecError::Length {
                codec,
                expected: plain_len,
                found,
            });
        }
        Ok(())
    }
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoder").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
