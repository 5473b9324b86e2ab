//! Compression of a chunk's bytes for the disk and the wire: LZ4 (block format) and Zstandard
//! (RFC 8878).

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

/// The compression of one stored chunk. Its number is part of the formats on disk and on the wire.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
#[repr(u8)]
pub enum Codec {
    /// Plain bytes.
    Raw = 0,
    /// One LZ4 block without a length prefix.
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

/// The compression setting of a store for new chunks. [`Codec`] is the outcome for one chunk.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq, Hash)]
pub enum Compression {
    /// Stores chunks as they are.
    None,
    /// LZ4: faster, and less dense.
    Lz4,
    /// Zstandard at level 1.
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

/// The reason why a chunk could not be unpacked, or why a name or number is not a codec.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CodecError {
    /// The number of a codec that this version does not know.
    #[error("read a codec: {number} is none of 0 (raw), 1 (lz4), 2 (zstd)")]
    UnknownCodec {
        /// The number that was read.
        number: u8,
    },
    /// A name that is not a compression setting.
    #[error("read a compression setting: {name:?} is none of none, lz4, zstd")]
    UnknownCompression {
        /// The name that was read.
        name: String,
    },
    /// The caller expects more than [`MAX_CHUNK_BYTES`]. Nothing was allocated.
    #[error("unpack: {plain_bytes} bytes are more than the {MAX_CHUNK_BYTES} of the longest chunk")]
    TooLong {
        /// The expected plain length in bytes.
        plain_bytes: usize,
    },
    /// The plain bytes have another length than expected.
    #[error("unpack {codec:?}: {found} bytes instead of {expected}")]
    Length {
        /// The codec of the stored bytes.
        codec: Codec,
        /// The expected plain length in bytes.
        expected: usize,
        /// The plain length found, in bytes.
        found: usize,
    },
    /// The stored bytes are not valid for their codec, or unpack to more than expected.
    #[error("unpack {codec:?} to {expected} bytes: {reason}")]
    Malformed {
        /// The codec of the stored bytes.
        codec: Codec,
        /// The expected plain length in bytes.
        expected: usize,
        /// The message of the decompressor.
        reason: String,
    },
}

/// Compresses chunks. It reuses its context and buffer from one chunk to the next, so give each
/// thread its own.
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
    /// Creates an encoder for a compression setting.
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

    /// Compresses one chunk. Returns the plain bytes as [`Codec::Raw`] if compression saves less
    /// than an eighth of them, or fails.
    pub fn encode<'a>(&'a mut self, plain: &'a [u8]) -> (Codec, &'a [u8]) {
        // The longest result that still saves an eighth.
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
        // Either can fail only for lack of room, and plain bytes are valid after any error.
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

/// Decompresses chunks. It reuses its context from one chunk to the next, so give each thread its
/// own.
///
/// The result has the right length, but may have the wrong content: check it against its id.
#[derive(Default)]
pub struct Decoder {
    zstd: Decompressor<'static>,
}

impl Decoder {
    /// Creates a decoder for all codecs.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Decompresses `stored` into `out`. Empties `out` first; after success it holds exactly
    /// `plain_len` bytes, and after an error its content is undefined.
    ///
    /// Reserves no more than `plain_len` bytes, whatever length `stored` claims.
    ///
    /// # Errors
    ///
    /// * [`CodecError::TooLong`] if `plain_len` exceeds [`MAX_CHUNK_BYTES`].
    /// * [`CodecError::Malformed`] if `stored` is not valid for `codec`, or unpacks to more.
    /// * [`CodecError::Length`] if it unpacks to another length.
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
