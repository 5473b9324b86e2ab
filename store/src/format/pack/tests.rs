#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

use proptest::prelude::*;
use varve_content::codec::Codec;

use super::*;
use crate::format::{
    FormatError,
    tests::{CHANGED, STORE, assert_bytes, assert_every_byte_counts, hex},
};

const OFFSET: u64 = 0x0012_3458;
const ID: [u8; 32] = [0xc7; 32];
const NONCE: PackNonce = [0x5e; 12];

fn pack_id() -> PackId {
    PackId {
        kind: PackKind::Chunks,
        number: 0xa1,
    }
}

fn header() -> PackHeader {
    PackHeader {
        pack: pack_id(),
        store: STORE,
        created_unix_seconds: 1_735_689_600,
        nonce: Some(NONCE),
    }
}

fn payload(kind: RecordKind, codec: Codec, plain_bytes: u32, stored_bytes: u32) -> Payload {
    Payload {
        kind,
        codec,
        end_open: false,
        plain_bytes,
        stored_bytes,
    }
}

/// A record with a payload of five bytes, and the zeros behind it, as it stands at [`OFFSET`].
pub(in crate::format) fn record() -> Vec<u8> {
    let payload = Payload {
        end_open: true,
        ..payload(RecordKind::Chunk, Codec::Zstd, 8192, 5)
    };
    let mut bytes = RecordHeader::new(payload, ID, b"hello")
        .encode(OFFSET)
        .to_vec();
    bytes.extend_from_slice(b"hello\0\0\0");
    bytes
}

fn decode_record(bytes: &[u8]) -> Result<Header, FormatError> {
    let header = Header::decode(bytes, OFFSET)?;
    header.check_body(&bytes[RECORD_HEADER_BYTES..])?;
    Ok(header)
}

const FOOTER_AT: u64 = 12288;

fn entries() -> Vec<FooterEntry> {
    vec![
        FooterEntry {
            id: [1; 32],
            offset_bytes: 4096,
            payload: payload(RecordKind::Chunk, Codec::Raw, 4096, 4096),
        },
        FooterEntry {
            id: [2; 32],
            offset_bytes: 4096 + 64 + 4096,
            payload: payload(RecordKind::Chunk, Codec::Lz4, 8192, 3001),
        },
    ]
}

/// A footer of two records, and where its trailer begins.
pub(in crate::format) fn footer() -> (Vec<u8>, usize) {
    footer_of(Some(NONCE))
}

fn footer_of(nonce: Option<PackNonce>) -> (Vec<u8>, usize) {
    let bytes = encode_footer(pack_id(), nonce, FOOTER_AT, &entries());
    let trailer_at = bytes.len() - TRAILER_BYTES;
    (bytes, trailer_at)
}

fn decode_all_of_footer(bytes: &[u8]) -> Result<Vec<FooterEntry>, FormatError> {
    let trailer = Trailer::decode(bytes, FOOTER_AT + 4096)?;
    decode_footer(bytes, &trailer)
}

#[test]
fn pack_header_is_pinned() {
    for (nonce, version, crc32) in [
        (Some(NONCE), "02000000", "edecda1d"),
        (None, "01000000", "e4a7ba22"),
    ] {
        let header = PackHeader { nonce, ..header() };
        let bytes = header.encode();
        assert_bytes(
            &bytes[..64],
            &[
                &hex(b"VARVPACK"),
                version,
                "01000000",
                "a100000000000000",
                "00112233445566778899aabbccddeeff",
                "8085746700000000",
                &hex(&nonce.unwrap_or_default()),
                crc32,
            ],
        );
        assert_eq!(bytes[64..], [0; PACK_HEADER_BYTES - 64], "{CHANGED}");
        assert_eq!(PackHeader::decode(&bytes), Ok(header));
        assert_every_byte_counts(&bytes, PackHeader::decode);
    }
}

#[test]
fn record_is_pinned() {
    let bytes = record();
    assert_bytes(
        &bytes,
        &[
            &hex(b"VREC"),
            "01020100",
            "00200000",
            "05000000",
            &hex(&ID),
            "86a61036",
            "5834120000000000",
            "17954e8c",
            "68656c6c6f000000",
        ],
    );
    let Header::Record(header) = decode_record(&bytes).unwrap() else {
        panic!("not a record");
    };
    assert_eq!(header.id, ID);
    assert!(header.payload.end_open);
    assert_eq!(header.payload.record_bytes(), bytes.len() as u64);
    assert_every_byte_counts(&bytes, decode_record);
}

#[test]
fn padding_is_pinned() {
    let offset_bytes = 8192 + 512;
    let bytes = encode_padding(offset_bytes);
    assert_bytes(
        &bytes,
        &[
            &hex(b"VREC"),
            "f0000000",
            "00000000",
            "c00d0000",
            &"00".repeat(36),
            "0022000000000000",
            "582f01c8",
        ],
    );
    assert_eq!(
        Header::decode(&bytes, offset_bytes),
        Ok(Header::Padding { zero_bytes: 3520 })
    );
    assert_every_byte_counts(&bytes, |bytes| Header::decode(bytes, offset_bytes));
    let header = Header::decode(&bytes, offset_bytes).unwrap();
    assert_every_byte_counts(&[0; 3520], |body| header.check_body(body));
}

#[test]
fn footer_and_trailer_are_pinned() {
    let (bytes, trailer_at) = footer();
    assert_eq!(bytes.len(), 4096);
    assert_bytes(
        &bytes[..2 * FOOTER_ENTRY_BYTES],
        &[
            &"01".repeat(32),
            "0010000000000000",
            "01000000",
            "00100000",
            "00100000",
            &"02".repeat(32),
            "4020000000000000",
            "01010000",
            "00200000",
            "b90b0000",
        ],
    );
    for (nonce, version, crc32) in [
        (Some(NONCE), "02000000", "acd9b985"),
        (None, "01000000", "ce522fc9"),
    ] {
        let (bytes, _) = footer_of(nonce);
        assert_bytes(
            &bytes[trailer_at..],
            &[
                &hex(b"VARVSEAL"),
                version,
                "01000000",
                "a100000000000000",
                "0030000000000000",
                "02000000",
                "06f053be",
                &hex(&nonce.unwrap_or_default()),
                &"00".repeat(8),
                crc32,
            ],
        );
        assert_eq!(
            Trailer::decode(&bytes, FOOTER_AT + 4096).unwrap().nonce,
            nonce
        );
        assert_eq!(decode_all_of_footer(&bytes), Ok(entries()));
        assert_every_byte_counts(&bytes, decode_all_of_footer);
    }
}

#[test]
fn an_empty_pack_can_be_sealed() {
    let bytes = encode_footer(pack_id(), Some(NONCE), 4096, &[]);
    let trailer = Trailer::decode(&bytes, 8192).unwrap();
    assert_eq!(decode_footer(&bytes, &trailer), Ok(Vec::new()));
}

#[test]
fn a_trailer_of_a_pack_of_another_length_is_refused() {
    let (bytes, _) = footer();
    for pack_bytes in [0, 4096, FOOTER_AT + 4095, FOOTER_AT + 8192, u64::MAX] {
        let error = Trailer::decode(&bytes, pack_bytes).unwrap_err();
        assert!(
            error.to_string().contains("offset of a pack's footer"),
            "{error}"
        );
    }
}

/// Entries are checked among themselves: a checksum does not make them true.
#[test]
fn footers_that_contradict_themselves_are_refused() {
    let refused = |change: fn(&mut Vec<FooterEntry>)| {
        let mut entries = entries();
        change(&mut entries);
        decode_all_of_footer(&encode_footer(pack_id(), Some(NONCE), FOOTER_AT, &entries))
            .unwrap_err()
            .to_string()
    };
    assert!(refused(|entries| entries.swap(0, 1)).contains("offset in a pack footer"));
    assert!(refused(|entries| entries[1].offset_bytes -= 8).contains("offset in a pack footer"));
    assert!(refused(|entries| entries[1].offset_bytes += 4).contains("offset in a pack footer"));
    assert!(refused(|entries| entries[0].offset_bytes = 0).contains("offset in a pack footer"));
    assert!(
        refused(|entries| entries[1].offset_bytes = FOOTER_AT - 8)
            .contains("offset in a pack footer")
    );
    assert!(
        refused(|entries| entries[1].payload.kind = RecordKind::Leaf).contains("kind of a record")
    );
    assert!(refused(|entries| entries[1].payload.stored_bytes = 8193).contains("stored length"));
}

#[test]
fn a_record_at_another_place_is_refused() {
    let error = Header::decode(&record(), OFFSET + 8).unwrap_err();
    assert_eq!(
        error.to_string(),
        "offset in a record header is wrong: expected 1193056, found 1193048"
    );
}

/// Headers with a right checksum that nobody writes, or only a later version.
#[test]
fn headers_that_cannot_be_are_refused() {
    let with = |at: usize, value: u8| {
        let mut bytes = record();
        bytes[at] = value;
        crate::format::fields::put_crc32(&mut bytes[..RECORD_HEADER_BYTES]);
        Header::decode(&bytes, OFFSET).unwrap_err()
    };
    assert!(with(4, 9).is_unknown(), "kind");
    assert!(with(5, 3).is_unknown(), "codec");
    assert!(with(6, 2).is_unknown(), "flags");
    assert!(with(7, 1).to_string().contains("reserved"));
    assert!(with(4, 2).to_string().contains("flags of a tree node"));
    assert!(
        with(5, 0)
            .to_string()
            .contains("stored length of a raw record")
    );
    assert!(with(8, 1).to_string().contains("a multiple of 4096"));
    assert!(with(9, 0).to_string().contains("plain length"));
    assert!(with(11, 1).to_string().contains("1 to 262144"));
    assert!(with(12, 0).to_string().contains("stored length"));
    assert!(with(14, 1).to_string().contains("1 to its plain length"));

    let mut bytes = header().encode();
    bytes[8] = 3;
    crate::format::fields::put_crc32(&mut bytes[..64]);
    assert!(PackHeader::decode(&bytes).unwrap_err().is_unknown());
    bytes[8] = 2;
    bytes[12] = 3;
    crate::format::fields::put_crc32(&mut bytes[..64]);
    assert!(PackHeader::decode(&bytes).unwrap_err().is_unknown());
}

proptest! {
    #[test]
    fn records_read_back(
        kind in prop::sample::select(vec![RecordKind::Chunk, RecordKind::Leaf, RecordKind::Inner, RecordKind::Root]),
        codec in prop::sample::select(vec![Codec::Raw, Codec::Lz4, Codec::Zstd]),
        blocks in 1u32..=64,
        saved: prop::sample::Index,
        end_open: bool,
        id: [u8; 32],
        offset_units in 512u64..1 << 40,
    ) {
        let plain_bytes = blocks * 4096;
        let stored_bytes = if codec == Codec::Raw { plain_bytes } else { 1 + saved.index(plain_bytes as usize) as u32 };
        let end_open = end_open && kind == RecordKind::Chunk;
        let payload = Payload { kind, codec, end_open, plain_bytes, stored_bytes };
        let stored = vec![0xee; stored_bytes as usize];
        let header = RecordHeader::new(payload, id, &stored);
        let offset_bytes = offset_units * RECORD_ALIGN;
        let bytes = header.encode(offset_bytes);
        prop_assert_eq!(Header::decode(&bytes, offset_bytes), Ok(Header::Record(header)));
        let mut body = stored;
        body.resize(payload.record_bytes() as usize - RECORD_HEADER_BYTES, 0);
        prop_assert_eq!(Header::Record(header).check_body(&body), Ok(()));
        let location = Location {
            pack: PackId { kind: kind.pack_kind(), number: offset_units },
            offset_bytes,
            payload,
        };
        prop_assert_eq!(Location::decode(&location.encode()), Ok(location));
    }

    /// Padding always has room for its header and always ends at a multiple of 4 KiB, less than two
    /// blocks on.
    #[test]
    fn padding_reaches_the_next_boundary(offset_units in 512u64..1 << 40) {
        let offset_bytes = offset_units * RECORD_ALIGN;
        let padding = padding_bytes(offset_bytes);
        prop_assert_eq!((offset_bytes + u64::from(padding)) % PACK_ALIGN, 0);
        if offset_bytes.is_multiple_of(PACK_ALIGN) {
            prop_assert_eq!(padding, 0);
        } else {
            prop_assert!((RECORD_HEADER_BYTES as u32..4096 + RECORD_HEADER_BYTES as u32).contains(&padding));
            let header = Header::decode(&encode_padding(offset_bytes), offset_bytes).unwrap();
            prop_assert_eq!(header.total_bytes(), u64::from(padding));
        }
    }
}
