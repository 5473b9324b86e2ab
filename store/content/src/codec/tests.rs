//! Tests of packing and unpacking.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use proptest::prelude::*;

use super::*;
use crate::block::BLOCK_BYTES;
use crate::samples::{Piece, Random, piece};

const ALL: [Compression; 3] = [Compression::None, Compression::Lz4, Compression::Zstd];

/// Bytes of which about one in `every` is random and the others repeat.
fn text(seed: u64, len: usize, every: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let noise = random.bytes(len);
    let words = b"a varve is a thin layer of sediment laid down once a year; ".iter();
    let mix = |(&word, noise)| {
        if random.below(every) == 0 {
            noise
        } else {
            word
        }
    };
    words.cycle().zip(noise).map(mix).collect()
}

fn pack(compression: Compression, plain: &[u8]) -> (Codec, Vec<u8>) {
    let mut encoder = Encoder::new(compression);
    let (codec, stored) = encoder.encode(plain);
    (codec, stored.to_vec())
}

fn unpack(codec: Codec, stored: &[u8], plain_len: usize) -> Result<Vec<u8>, CodecError> {
    let mut out = Vec::new();
    let result = Decoder::new().decode(codec, stored, plain_len, &mut out);
    assert!(out.capacity() <= plain_len.min(MAX_CHUNK_BYTES));
    result.map(|()| out)
}

#[test]
fn numbers_and_names_are_pinned() {
    // On disk and on the wire: a change makes every store unreadable.
    assert_eq!(
        [Codec::Raw as u8, Codec::Lz4 as u8, Codec::Zstd as u8],
        [0, 1, 2]
    );
    for codec in [Codec::Raw, Codec::Lz4, Codec::Zstd] {
        assert_eq!(Codec::try_from(codec as u8), Ok(codec));
    }
    assert_eq!(
        Codec::try_from(3),
        Err(CodecError::UnknownCodec { number: 3 })
    );
    assert_eq!(
        ALL.map(|compression| compression.to_string()),
        ["none", "lz4", "zstd"]
    );
    for compression in ALL {
        assert_eq!(compression.to_string().parse(), Ok(compression));
    }
    assert_eq!(Compression::default(), Compression::Zstd);
    let error = "gzip".parse::<Compression>().unwrap_err();
    assert_eq!(
        error.to_string(),
        r#"read a compression setting: "gzip" is none of none, lz4, zstd"#
    );
}

#[test]
fn packs_what_packs_and_keeps_the_rest_plain() {
    let text = text(1, 16 * BLOCK_BYTES, 50);
    assert_eq!(pack(Compression::None, &text), (Codec::Raw, text.clone()));
    assert_eq!(pack(Compression::Lz4, &text).0, Codec::Lz4);
    assert_eq!(pack(Compression::Zstd, &text).0, Codec::Zstd);
    let noise = Random::new(1).bytes(16 * BLOCK_BYTES);
    for compression in ALL {
        assert_eq!(pack(compression, &noise), (Codec::Raw, noise.clone()));
        assert_eq!(pack(compression, &[]), (Codec::Raw, vec![]));
    }
}

#[test]
fn packs_only_what_saves_an_eighth() {
    // From noise to text, so that some are just below the limit and some just above.
    let mut packed = [0; 2];
    for share in 1..60 {
        let text_bytes = usize::try_from(share).unwrap() * 150;
        let mut plain = Random::new(share).bytes(8 * BLOCK_BYTES - text_bytes);
        plain.extend(text(share, text_bytes, 50));
        for (count, compression) in packed.iter_mut().zip([Compression::Lz4, Compression::Zstd]) {
            let (codec, stored) = pack(compression, &plain);
            if codec == Codec::Raw {
                assert_eq!(stored, plain);
            } else {
                *count += 1;
                assert!(stored.len() * 8 <= plain.len() * 7);
            }
        }
    }
    assert!(
        packed.iter().all(|count| (1..59).contains(count)),
        "{packed:?}"
    );
}

#[test]
fn one_encoder_and_one_decoder_serve_many_chunks() {
    for compression in ALL {
        let mut encoder = Encoder::new(compression);
        let mut decoder = Decoder::new();
        let mut out = Vec::new();
        for blocks in [64, 1, 16, 3, 64, 2, 5] {
            let plain = text(blocks as u64, blocks * BLOCK_BYTES, 20);
            let (codec, stored) = encoder.encode(&plain);
            decoder
                .decode(codec, stored, plain.len(), &mut out)
                .unwrap();
            assert!(out == plain, "{compression} of {blocks} blocks");
        }
        assert!(out.capacity() <= MAX_CHUNK_BYTES);
    }
}

#[test]
fn another_length_is_an_error() {
    let plain = text(1, 4 * BLOCK_BYTES, 20);
    for compression in ALL {
        let (codec, stored) = pack(compression, &plain);
        for wrong in [0, 1, plain.len() - 1, plain.len() + 1, MAX_CHUNK_BYTES] {
            let error = unpack(codec, &stored, wrong).unwrap_err();
            let named = format!("unpack {codec:?}");
            assert!(error.to_string().starts_with(&named), "{error}");
        }
        // A buffer with room to spare does not let more through.
        let mut out = Vec::with_capacity(2 * plain.len());
        let error = Decoder::new().decode(codec, &stored, plain.len() - 1, &mut out);
        assert!(error.is_err());
    }
}

#[test]
fn a_bomb_allocates_nothing() {
    let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
    assert!(bomb.len() < BLOCK_BYTES);
    assert!(matches!(
        unpack(Codec::Zstd, &bomb, BLOCK_BYTES),
        Err(CodecError::Malformed {
            codec: Codec::Zstd,
            ..
        })
    ));
    for codec in [Codec::Raw, Codec::Lz4, Codec::Zstd] {
        let plain_bytes = usize::MAX;
        let error = unpack(codec, &bomb, plain_bytes).unwrap_err();
        assert_eq!(error, CodecError::TooLong { plain_bytes });
    }
}

/// A flipped or missing byte gives an error, or other bytes of the right length, which their id
/// reveals: never a panic, never more memory than the plain length.
#[test]
fn flipped_and_cut_off_bytes_are_survived() {
    let plain = text(3, BLOCK_BYTES, 30);
    for compression in [Compression::Lz4, Compression::Zstd] {
        let (codec, stored) = pack(compression, &plain);
        assert_ne!(codec, Codec::Raw);
        for at in 0..stored.len() {
            for flip in [0x01, 0x10, 0x80, 0xff] {
                let mut flipped = stored.clone();
                flipped[at] ^= flip;
                if let Ok(out) = unpack(codec, &flipped, plain.len()) {
                    assert_eq!(out.len(), plain.len());
                }
            }
            assert!(
                unpack(codec, &stored[..at], plain.len()).is_err(),
                "cut at {at}"
            );
        }
    }
}

proptest! {
    #[test]
    fn what_was_packed_unpacks(pieces in prop::collection::vec(piece(), 1..4), len in 1usize..=64) {
        let mut plain: Vec<u8> = pieces.iter().flat_map(Piece::bytes).collect();
        plain.resize(len * BLOCK_BYTES, 9);
        for compression in ALL {
            let (codec, stored) = pack(compression, &plain);
            prop_assert!(stored.len() <= plain.len());
            prop_assert!(unpack(codec, &stored, plain.len()).unwrap() == plain);
        }
    }

    #[test]
    fn any_bytes_are_survived(
        number in 0u8..3,
        stored in prop::collection::vec(any::<u8>(), 0..600),
        magic in any::<bool>(),
        plain_len in 0usize..2 * BLOCK_BYTES,
    ) {
        let codec = Codec::try_from(number).unwrap();
        // With the magic number in front, zstd looks at the rest.
        let magic: &[u8] = if magic { &[0x28, 0xb5, 0x2f, 0xfd] } else { &[] };
        let stored = [magic, &stored].concat();
        if let Ok(out) = unpack(codec, &stored, plain_len) {
            prop_assert_eq!(out.len(), plain_len);
        }
    }
}
