//! Messages of chunks on the wire, without a copy of the chunks.
//!
//! The generated client encodes a message into a buffer of its own, and that copy, with the fresh
//! memory for it, costs about as much as handing the bytes to the system. So the body of
//! `PutChunks` is put together here: a few bytes before each payload, and the payload as the slice
//! it is.

use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{BufMut, Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len},
};
use tokio::sync::OwnedSemaphorePermit;
use varve_proto::v1;

/// Numbers of fields in the protocol; the tests compare with the generated code.
const REQUEST_CHUNKS: u32 = 2;
const CHUNK_PAYLOAD: u32 = 4;

/// A gRPC message is preceded by a byte that says it is not compressed, and its length.
const GRPC_HEADER_BYTES: usize = 5;

/// The body of a `PutChunks` call. It holds on to its turn until the last bytes are taken.
#[derive(Debug)]
pub(crate) struct ChunksBody {
    pieces: VecDeque<Bytes>,
    turn: Option<OwnedSemaphorePermit>,
}

impl ChunksBody {
    /// Puts `chunks` into messages of at most `payload_max` payload bytes, or of one chunk.
    pub(crate) fn new(
        upload_id: &str,
        chunks: Vec<v1::Chunk>,
        payload_max: usize,
        turn: OwnedSemaphorePermit,
    ) -> Self {
        let mut pieces = VecDeque::with_capacity(2 * chunks.len());
        let mut message = Vec::new();
        let mut payload_bytes = 0;
        for chunk in chunks {
            if !message.is_empty() && payload_bytes + chunk.payload.len() > payload_max {
                encode(upload_id, &mut message, &mut pieces);
                payload_bytes = 0;
            }
            payload_bytes += chunk.payload.len();
            message.push(chunk);
        }
        encode(upload_id, &mut message, &mut pieces);
        Self {
            pieces,
            turn: Some(turn),
        }
    }
}

/// Encodes one message, and empties it.
fn encode(upload_id: &str, chunks: &mut Vec<v1::Chunk>, pieces: &mut VecDeque<Bytes>) {
    let request = v1::PutChunksRequest {
        upload_id: upload_id.to_owned(),
        chunks: Vec::new(),
    };
    // The payload is the chunk's last field, so the bytes before it are those of a chunk without
    // it.
    let chunks = chunks.drain(..).map(|mut chunk| {
        let payload = std::mem::take(&mut chunk.payload);
        let payload_len =
            key_len(CHUNK_PAYLOAD) + encoded_len_varint(payload.len() as u64) + payload.len();
        let chunk_len = chunk.encoded_len() + payload_len;
        (chunk, payload, chunk_len)
    });
    let chunks: Vec<_> = chunks.collect();
    let chunks_len: usize = chunks
        .iter()
        .map(|(_, _, len)| key_len(REQUEST_CHUNKS) + encoded_len_varint(*len as u64) + len)
        .sum();
    let message_len = request.encoded_len() + chunks_len;

    let mut head =
        BytesMut::with_capacity(GRPC_HEADER_BYTES + request.encoded_len() + 64 * chunks.len());
    head.put_u8(0);
    head.put_u32(u32::try_from(message_len).unwrap_or(u32::MAX));
    request.encode_raw(&mut head);
    for (chunk, payload, chunk_len) in chunks {
        encode_key(REQUEST_CHUNKS, WireType::LengthDelimited, &mut head);
        encode_varint(chunk_len as u64, &mut head);
        chunk.encode_raw(&mut head);
        encode_key(CHUNK_PAYLOAD, WireType::LengthDelimited, &mut head);
        encode_varint(payload.len() as u64, &mut head);
        pieces.push_back(head.split().freeze());
        pieces.push_back(payload);
    }
}

impl Body for ChunksBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = self.pieces.pop_front();
        if self.pieces.is_empty() {
            self.turn = None;
        }
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.pieces.iter().map(|piece| piece.len() as u64).sum())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

    use std::sync::Arc;

    use bytes::Buf;
    use tokio::sync::Semaphore;

    use super::*;

    fn chunk(number: u8, payload_len: usize) -> v1::Chunk {
        v1::Chunk {
            id: Bytes::from(vec![number; 32]),
            codec: i32::from(number % 3),
            plain_bytes: 4096 * u32::from(number),
            payload: Bytes::from(vec![number; payload_len]),
        }
    }

    /// The messages in a body, as any gRPC server reads them.
    fn decode(body: ChunksBody) -> Vec<v1::PutChunksRequest> {
        let mut bytes = BytesMut::new();
        body.pieces.iter().for_each(|piece| bytes.put_slice(piece));
        assert_eq!(body.size_hint().exact(), Some(bytes.len() as u64));
        let mut messages = Vec::new();
        while bytes.has_remaining() {
            assert_eq!(bytes.get_u8(), 0);
            let len = bytes.get_u32() as usize;
            messages.push(v1::PutChunksRequest::decode(bytes.split_to(len)).unwrap());
        }
        messages
    }

    #[test]
    fn messages_are_what_the_generated_code_reads() {
        let turns = Arc::new(Semaphore::new(1));
        let lengths = [1, 100, 127, 128, 4096, 16_383, 16_384, 262_144, 0];
        let chunks: Vec<_> = (0..)
            .zip(lengths)
            .map(|(number, len)| chunk(number, len))
            .collect();
        for payload_max in [1, 200, 20_000, 1 << 20] {
            let turn = Arc::clone(&turns).try_acquire_owned().unwrap();
            let messages = decode(ChunksBody::new(
                "upload-7",
                chunks.clone(),
                payload_max,
                turn,
            ));
            for message in &messages {
                assert_eq!(message.upload_id, "upload-7");
                let payload_bytes: usize =
                    message.chunks.iter().map(|chunk| chunk.payload.len()).sum();
                assert!(payload_bytes <= payload_max || message.chunks.len() == 1);
            }
            let received: Vec<_> = messages
                .into_iter()
                .flat_map(|message| message.chunks)
                .collect();
            assert_eq!(received, chunks);
        }
    }

    #[test]
    fn the_turn_ends_when_the_last_piece_is_taken() {
        let turns = Arc::new(Semaphore::new(1));
        let turn = Arc::clone(&turns).try_acquire_owned().unwrap();
        let mut body = ChunksBody::new("u", vec![chunk(1, 10)], 100, turn);
        let mut context = Context::from_waker(std::task::Waker::noop());
        assert!(Pin::new(&mut body).poll_frame(&mut context).is_ready());
        assert_eq!(turns.available_permits(), 0);
        assert!(Pin::new(&mut body).poll_frame(&mut context).is_ready());
        assert_eq!(turns.available_permits(), 1);
        assert!(body.is_end_stream());
    }
}
