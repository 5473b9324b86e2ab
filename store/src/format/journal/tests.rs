#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

use proptest::prelude::*;

use super::*;
use crate::format::tests::{STORE, assert_bytes, assert_every_byte_counts, hex};

fn header() -> FileHeader {
    FileHeader {
        store: STORE,
        volume: "vol-0123456789abcdef0".parse().unwrap(),
        number: 0xa1,
        first_sequence: 0xa1_0000_0000,
        previous_sequence: 0xa0_0000_0007,
        nonce: [0x5e; 16],
    }
}

fn descriptor() -> Descriptor {
    Descriptor {
        file_number: 0xa1,
        sequence: 9,
        synced_sequence: 8,
        nonce: [0x5e; 16],
        entries: vec![
            Entry {
                start_block: 0x1000,
                blocks: 2,
                zeros: false,
            },
            Entry {
                start_block: 7,
                blocks: 0x8000_0000,
                zeros: true,
            },
            Entry {
                start_block: u32::MAX,
                blocks: 1,
                zeros: false,
            },
        ],
        data_crcs: vec![1, 2, 0xdead_beef],
    }
}

#[test]
fn the_file_header_is_pinned() {
    let bytes = header().encode();
    assert_bytes(
        &bytes[..124],
        &[
            &hex(b"VARVJRNL"),
            "02000000",
            "00000000",
            "00112233445566778899aabbccddeeff",
            "00123456789abcdef0",
            &"00".repeat(7),
            "a100000000000000",
            "00000000a1000000",
            &"5e".repeat(16),
            "07000000a0000000",
            &"00".repeat(36),
        ],
    );
    assert_eq!(
        bytes[124..128],
        crc32fast::hash(&bytes[..124]).to_le_bytes()
    );
    assert_eq!(bytes[128..], [0; JOURNAL_BLOCK_BYTES - 128]);
    assert_eq!(FileHeader::decode(&bytes), Ok(header()));
    assert_every_byte_counts(&bytes, FileHeader::decode);
}

#[test]
fn a_file_header_of_version_1_is_read() {
    let mut bytes = header().encode();
    bytes[8] = 1;
    bytes[56..64].copy_from_slice(&7u64.to_le_bytes());
    bytes[80..88].fill(0);
    let crc = crc32fast::hash(&bytes[..124]);
    bytes[124..128].copy_from_slice(&crc.to_le_bytes());
    let version_1 = FileHeader {
        first_sequence: 7,
        previous_sequence: 6,
        ..header()
    };
    assert_eq!(FileHeader::decode(&bytes), Ok(version_1));
}

#[test]
fn file_headers_whose_numbers_do_not_agree_are_refused() {
    let wrong = |change: fn(&mut FileHeader)| {
        let mut header = header();
        change(&mut header);
        FileHeader::decode(&header.encode()).unwrap_err()
    };
    wrong(|header| header.first_sequence += 1);
    wrong(|header| header.previous_sequence = header.first_sequence);
    wrong(|header| header.number = 1 << 32);
}

#[test]
fn the_descriptor_is_pinned() {
    let bytes = descriptor().encode();
    assert_bytes(
        &bytes[..96],
        &[
            &hex(b"VJBT"),
            "0300",
            "0300",
            "a100000000000000",
            "0900000000000000",
            "0800000000000000",
            &"5e".repeat(16),
            "001000000200000001000000",
            "070000000000008002000000",
            "ffffffff0100000001000000",
            "01000000",
            "02000000",
            "efbeadde",
        ],
    );
    assert!(bytes[96..4092].iter().all(|byte| *byte == 0));
    assert_eq!(bytes[4092..], crc32fast::hash(&bytes[..4092]).to_le_bytes());
    assert_eq!(Descriptor::decode(&bytes), Ok(descriptor()));
    assert_every_byte_counts(&bytes, Descriptor::decode);
}

/// A descriptor with fields that no writer writes, under a checksum that is right.
fn resealed(change: impl FnOnce(&mut [u8])) -> Result<Descriptor, FormatError> {
    let mut bytes = descriptor().encode();
    change(&mut bytes);
    put_crc32(&mut bytes);
    Descriptor::decode(&bytes)
}

#[test]
fn what_cannot_have_been_written_is_refused() {
    assert_eq!(resealed(|_| {}), Ok(descriptor()));
    // More entries, more data, fewer data than the entries say.
    resealed(|bytes| bytes[4] = 4).unwrap_err();
    resealed(|bytes| bytes[6..8].copy_from_slice(&513u16.to_le_bytes())).unwrap_err();
    resealed(|bytes| bytes[4..6].copy_from_slice(&u16::MAX.to_le_bytes())).unwrap_err();
    resealed(|bytes| bytes[6] = 2).unwrap_err();
    // Durable before it was written.
    resealed(|bytes| bytes[24] = 9).unwrap_err();
    // No blocks; blocks behind the largest volume; a kind that is not known.
    resealed(|bytes| bytes[64..68].fill(0)).unwrap_err();
    resealed(|bytes| bytes[63..64].fill(0xff)).unwrap_err();
    assert!(resealed(|bytes| bytes[56] = 3).unwrap_err().is_unknown());
}

#[test]
fn as_much_fits_as_is_said() {
    let entry = Entry {
        start_block: 0,
        blocks: 1,
        zeros: false,
    };
    let most = (1..).take_while(|n| Descriptor::fits(*n, *n)).count();
    assert!(most >= 250, "{most} writes of one block");
    let full = Descriptor {
        entries: vec![entry; most],
        data_crcs: vec![7; most],
        ..descriptor()
    };
    assert_eq!(Descriptor::decode(&full.encode()), Ok(full));
    assert!(Descriptor::fits(1, BATCH_BLOCKS_MAX as usize));
    assert!(!Descriptor::fits(1, BATCH_BLOCKS_MAX as usize + 1));
}

proptest! {
    #[test]
    fn decoders_take_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..5000)) {
        let _ = FileHeader::decode(&bytes);
        let _ = Descriptor::decode(&bytes);
    }

    #[test]
    fn decoders_take_any_bytes_under_a_checksum(
        bytes in prop::collection::vec(any::<u8>(), JOURNAL_BLOCK_BYTES),
        counts in (0u16..300, 0u16..600),
    ) {
        let mut bytes = bytes;
        bytes[..4].copy_from_slice(&BATCH_MAGIC);
        bytes[4..6].copy_from_slice(&counts.0.to_le_bytes());
        bytes[6..8].copy_from_slice(&counts.1.to_le_bytes());
        put_crc32(&mut bytes);
        if let Ok(descriptor) = Descriptor::decode(&bytes) {
            prop_assert_eq!(&descriptor.encode()[..], &bytes[..]);
        }
    }
}
