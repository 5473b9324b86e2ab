//! Content for tests: made from seeds, so that a failure can be replayed and cut points be pinned.

use proptest::prelude::*;

use crate::block::BLOCK_BYTES;

/// The SplitMix64 generator: five lines that will never change, as the pinned cut points need.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}

/// A stretch of a volume.
#[derive(Clone, Debug)]
pub(crate) enum Piece {
    /// Zero blocks.
    Hole { blocks: usize },
    /// Random bytes, the last block filled up with zeros.
    File { seed: u64, bytes: usize },
    /// Equal blocks of one byte's value: all hash alike.
    Flat { byte: u8, blocks: usize },
    /// Blocks that are zero but for their last byte, or for their first one.
    NearlyZero { last: bool, blocks: usize },
}

impl Piece {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        match *self {
            Self::Hole { blocks } => vec![0; blocks * BLOCK_BYTES],
            Self::File { seed, bytes } => {
                let mut content = Random::new(seed).bytes(bytes);
                content.resize(bytes.next_multiple_of(BLOCK_BYTES), 0);
                content
            }
            Self::Flat { byte, blocks } => vec![byte; blocks * BLOCK_BYTES],
            Self::NearlyZero { last, blocks } => {
                let mut block = vec![0; BLOCK_BYTES];
                block[if last { BLOCK_BYTES - 1 } else { 0 }] = 1;
                block.repeat(blocks)
            }
        }
    }
}

/// Pieces as they follow each other, cut off or filled up with holes to a number of blocks.
pub(crate) fn lay_out(pieces: &[Piece], blocks: u32) -> Vec<u8> {
    let mut content: Vec<u8> = pieces.iter().flat_map(Piece::bytes).collect();
    content.resize(blocks as usize * BLOCK_BYTES, 0);
    content
}

/// The typical content of volumes: small and large files, holes, a few odd blocks.
pub(crate) fn piece() -> impl Strategy<Value = Piece> {
    prop_oneof![
        2 => (1usize..20).prop_map(|blocks| Piece::Hole { blocks }),
        3 => (any::<u64>(), 1usize..40_000).prop_map(|(seed, bytes)| Piece::File { seed, bytes }),
        2 => (any::<u64>(), 1usize..1_000_000)
            .prop_map(|(seed, bytes)| Piece::File { seed, bytes }),
        1 => (any::<u8>(), 1usize..150).prop_map(|(byte, blocks)| Piece::Flat { byte, blocks }),
        1 => (any::<bool>(), 1usize..10)
            .prop_map(|(last, blocks)| Piece::NearlyZero { last, blocks }),
    ]
}

/// A segment of up to `max_blocks`.
pub(crate) fn segment(max_blocks: u32) -> impl Strategy<Value = Vec<u8>> {
    (prop::collection::vec(piece(), 0..12), 1..=max_blocks)
        .prop_map(|(pieces, blocks)| lay_out(&pieces, blocks))
}
