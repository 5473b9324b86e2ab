//! Conversions that several messages need: ids, times, codecs, leaves.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use prost_types::Timestamp;
use varve_content::{
    chunk_id::ChunkId,
    codec::Codec,
    tree::{Leaf, LeafEntry, RootId},
};
use varve_proto::v1;

use crate::error::{Error, Result};

/// The root of some content; `None` for none. `whose` is named in the error.
pub(crate) fn root(what: &str, whose: &str, bytes: &[u8]) -> Result<Option<RootId>> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let root = RootId::try_from(bytes);
    root.map(Some)
        .map_err(|error| Error::protocol(what, format!("{whose}: {error}")))
}

/// `None` for a codec that this version of the client does not know.
pub(crate) fn codec(chunk: &v1::Chunk) -> Option<Codec> {
    match v1::Codec::try_from(chunk.codec) {
        Ok(v1::Codec::Raw) => Some(Codec::Raw),
        Ok(v1::Codec::Lz4) => Some(Codec::Lz4),
        Ok(v1::Codec::Zstd) => Some(Codec::Zstd),
        Err(_) => None,
    }
}

/// Decodes a leaf. The error is a description of the mistake.
pub(crate) fn leaf(entries: Vec<v1::LeafEntry>) -> Result<Leaf, String> {
    let entries = entries.into_iter().map(|entry| {
        let chunk = ChunkId::try_from(&entry.chunk_id[..]);
        Ok(LeafEntry {
            start_block: entry.start_block,
            blocks: entry.blocks,
            chunk: chunk.map_err(|error| error.to_string())?,
        })
    });
    Leaf::new(entries.collect::<Result<_, String>>()?).map_err(|error| error.to_string())
}

/// Encodes a chunk.
pub(crate) fn chunk_message(
    id: ChunkId,
    codec: Codec,
    plain_len: usize,
    payload: Bytes,
) -> v1::Chunk {
    let codec = match codec {
        Codec::Raw => v1::Codec::Raw,
        Codec::Lz4 => v1::Codec::Lz4,
        Codec::Zstd => v1::Codec::Zstd,
    };
    v1::Chunk {
        id: Bytes::copy_from_slice(id.as_bytes()),
        codec: codec.into(),
        plain_bytes: u32::try_from(plain_len).unwrap_or(u32::MAX),
        payload,
    }
}

/// Encodes a time. Times before 1970 become 1970.
pub(crate) fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    let since = since.unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: since.subsec_nanos().cast_signed(),
    }
}

/// Decodes a time. `None` for times before 1970, and for invalid ones.
pub(crate) fn system_time(time: Timestamp) -> Option<SystemTime> {
    let seconds = u64::try_from(time.seconds).ok()?;
    let nanos = u32::try_from(time.nanos)
        .ok()
        .filter(|nanos| *nanos < 1_000_000_000)?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanos))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_root_has_its_length() {
        assert_eq!(root("show", "a copy", &[]).unwrap(), None);
        assert!(root("show", "a copy", &[1; 32]).unwrap().is_some());
        let error = root("show", "a copy", &[1; 31]).unwrap_err().to_string();
        assert!(error.contains("a copy"), "{error}");
    }
}
