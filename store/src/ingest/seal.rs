//! Chunks that arrived, made into records.

use std::collections::HashSet;

use varve_content::{ChunkId, chunker, codec::Codec};

use super::IncomingChunk;
use crate::{Error, Result, engine::Scratch, format::Name, pack::EncodedRecord};

/// Chunks that are new, as they go into packs.
pub(super) struct SealedChunks {
    pub(super) records: Vec<EncodedRecord>,
    /// Their plain bytes.
    pub(super) new_bytes: u64,
}

/// What becomes of chunks that arrived.
#[derive(Clone, Copy)]
pub(super) struct Kept<'a> {
    /// The chunks that the store has.
    pub(super) known: &'a [bool],
    /// Those are written again.
    pub(super) writes_known: bool,
    /// They stay packed as they came.
    pub(super) keeps_packed: bool,
}

/// Checks chunks against their ids and the chunker, and packs those that the store does not know.
///
/// # Errors
///
/// [`Error::Invalid`] and [`Error::NotCanonical`], of the first wrong chunk.
pub(super) fn seal_all(
    scratch: &mut Scratch,
    chunks: &[IncomingChunk],
    kept: Kept<'_>,
) -> Result<SealedChunks> {
    let mut sealed = SealedChunks {
        records: Vec::with_capacity(chunks.len()),
        new_bytes: 0,
    };
    let mut seen = HashSet::with_capacity(chunks.len());
    let mut plain_buffer = Vec::new();
    for (chunk, known) in chunks.iter().zip(kept.known) {
        let plain: &[u8] = if chunk.codec == Codec::Raw {
            &chunk.payload
        } else {
            scratch
                .decoder
                .decode(
                    chunk.codec,
                    &chunk.payload,
                    chunk.plain_bytes as usize,
                    &mut plain_buffer,
                )
                .map_err(|error| Error::Invalid(format!("chunk {}: {error}", chunk.id)))?;
            &plain_buffer
        };
        if plain.len() != chunk.plain_bytes as usize {
            return Err(Error::Invalid(format!(
                "chunk {}: {} bytes arrived, {} were announced",
                chunk.id,
                plain.len(),
                chunk.plain_bytes
            )));
        }
        let found = ChunkId::of(plain);
        if found != chunk.id {
            return Err(Error::Invalid(format!(
                "chunk {}: the bytes that arrived have id {found}",
                chunk.id
            )));
        }
        let end = chunker::check_canonical(plain).map_err(|source| Error::NotCanonical {
            id: chunk.id,
            source,
        })?;
        if (*known && !kept.writes_known) || !seen.insert(chunk.id) {
            continue;
        }
        let (codec, packed) = if kept.keeps_packed {
            (chunk.codec, &*chunk.payload)
        } else {
            scratch.encoder.encode(plain)
        };
        sealed.records.push(EncodedRecord::chunk(
            Name::chunk(chunk.id),
            codec,
            end,
            chunk.plain_bytes,
            packed,
        ));
        if !known {
            sealed.new_bytes += plain.len() as u64;
        }
    }
    Ok(sealed)
}
