//! Decoding chunks, checking them, and writing them to a sink: the work that keeps the cores busy.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    receive::{PlacedChunk, Work},
    sink::Sink,
};
use crate::{
    error::{Error, ErrorKind, Result},
    unpack::Unpacker,
};

/// Writes chunks to a sink. Several threads share it.
pub(crate) struct ChunkWriter {
    pub(crate) sink: Arc<dyn Sink>,
    /// Verb and object, for errors.
    pub(crate) what: String,
    pub(crate) size_bytes: u64,
    /// Idle decoders. There are as many in all as threads have worked at once.
    unpackers: Mutex<Vec<Unpacker>>,
}

impl ChunkWriter {
    pub(crate) fn new(sink: Arc<dyn Sink>, what: String, size_bytes: u64) -> Self {
        Self {
            sink,
            what,
            size_bytes,
            unpackers: Mutex::default(),
        }
    }

    /// Writes chunks and holes. Returns the bytes of data that were written. The caller reports
    /// settled bytes to the sink.
    pub(crate) fn write(&self, work: &Work) -> Result<u64> {
        let mut unpacker = self
            .unpackers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop()
            .unwrap_or_default();
        let mut data_bytes = 0;
        for hole in &work.holes {
            self.sink
                .zero(hole.clone())
                .map_err(|error| self.failed(hole.start, error))?;
        }
        for chunk in &work.chunks {
            data_bytes += self.write_chunk(chunk, &mut unpacker)?;
        }
        self.unpackers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(unpacker);
        Ok(data_bytes)
    }

    fn write_chunk(&self, chunk: &PlacedChunk, unpacker: &mut Unpacker) -> Result<u64> {
        let first = chunk.offsets.first().copied().unwrap_or_default();
        let plain = unpacker
            .unpack(chunk.id, chunk.codec, chunk.plain_len, &chunk.payload)
            .map_err(|why| {
                let why = format!("chunk {} at offset {first}: {why}", chunk.id);
                Error::new(ErrorKind::Damaged, &self.what, why)
            })?;
        for &offset in &chunk.offsets {
            // The volume may end within its last block.
            let len = usize::try_from(self.size_bytes - offset)
                .map_or(plain.len(), |rest| rest.min(plain.len()));
            self.sink
                .write_at(offset, &plain[..len])
                .map_err(|error| self.failed(offset, error))?;
        }
        Ok((plain.len() * chunk.offsets.len()) as u64)
    }

    pub(crate) fn failed(&self, offset_bytes: u64, error: io::Error) -> Error {
        Error::file(
            format!("write {} at offset {offset_bytes}", self.sink.name()),
            error,
        )
    }
}
