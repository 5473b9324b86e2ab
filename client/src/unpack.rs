//! Chunks unpacked, and checked against their ids.

use varve_content::{
    chunk_id::ChunkId,
    codec::{Codec, Decoder},
};
use varve_proto::v1;

use crate::convert;

/// A decoder and its buffer, for reuse.
#[derive(Default)]
pub(crate) struct Unpacker {
    decoder: Decoder,
    plain: Vec<u8>,
}

impl Unpacker {
    /// Decodes a received chunk, and checks it against the requested id. The error is a description
    /// of the mistake.
    pub(crate) fn unpack_message<'a>(
        &'a mut self,
        id: ChunkId,
        chunk: &'a v1::Chunk,
    ) -> Result<&'a [u8], String> {
        let codec = convert::codec(chunk);
        let codec = codec.ok_or_else(|| format!("it is in unknown codec {}", chunk.codec))?;
        self.unpack(id, codec, chunk.plain_bytes as usize, &chunk.payload)
    }

    /// Unpacks a chunk, and checks it against its id. The error is a description of the mistake.
    pub(crate) fn unpack<'a>(
        &'a mut self,
        id: ChunkId,
        codec: Codec,
        plain_len: usize,
        payload: &'a [u8],
    ) -> Result<&'a [u8], String> {
        let plain = if codec == Codec::Raw {
            payload
        } else {
            self.decoder
                .decode(codec, payload, plain_len, &mut self.plain)
                .map_err(|error| error.to_string())?;
            &self.plain[..]
        };
        if plain.len() != plain_len {
            return Err(format!(
                "it has {} bytes instead of {plain_len}",
                plain.len()
            ));
        }
        let found = ChunkId::of(plain);
        if found != id {
            return Err(format!("its bytes have the id {found}"));
        }
        Ok(plain)
    }
}
