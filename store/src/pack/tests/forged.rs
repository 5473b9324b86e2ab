//! Payloads that end in what looks like a pack's footer.

use super::*;
use crate::{
    format::pack::{
        PACK_HEADER_BYTES, PackHeader, PackNonce, RECORD_HEADER_BYTES, TRAILER_BYTES, Trailer,
        encode_footer,
    },
    limits::PACK_BYTES_MAX,
};

const PACK: PackId = PackId {
    kind: PackKind::Chunks,
    number: 1,
};
const HEADER: u64 = PACK_HEADER_BYTES as u64;
/// Stored bytes of the first record: the payload of the second one then begins at 4 KiB, and ends
/// the file.
const FIRST_STORED: usize = 4096 - 2 * RECORD_HEADER_BYTES;

/// A chunk that ends with a trailer, for the end of a pack of `pack_bytes`: one that says that
/// records end at `footer_at`, which is at most 3.25 MiB before.
fn forged(pack_bytes: u64, footer_at: u64, nonce: Option<PackNonce>) -> EncodedRecord {
    // A footer of many records is as long as the bytes that it disowns.
    let records = (0..=u32::MAX)
        .find(|records| footer_at + Trailer::footer_bytes(*records) >= pack_bytes)
        .unwrap();
    assert_eq!(footer_at + Trailer::footer_bytes(records), pack_bytes);
    let mut trailer = encode_footer(PACK, nonce, footer_at, &[]).split_off(4096 - TRAILER_BYTES);
    trailer[32..36].copy_from_slice(&records.to_le_bytes());
    let crc32 = crc32fast::hash(&trailer[..60]);
    trailer[60..].copy_from_slice(&crc32.to_le_bytes());
    assert!(Trailer::decode(&trailer, pack_bytes).is_ok());
    let mut plain = plain(7, 4);
    let start = plain.len() - TRAILER_BYTES;
    plain[start..].copy_from_slice(&trailer);
    EncodedRecord::chunk(
        Name::of(RecordKind::Chunk, &plain),
        Codec::Raw,
        End::Settled,
        plain.len() as u32,
        &plain,
    )
}

/// A pack of a version that has these random bytes, of which the last record is forged. Its names,
/// in order.
fn pack_with(
    header_nonce: Option<PackNonce>,
    footer_at: u64,
    nonce: Option<PackNonce>,
) -> (Sim, Vec<Name>) {
    let sim = Sim::new();
    let header = PackHeader {
        pack: PACK,
        store: STORE,
        created_unix_seconds: 1,
        nonce: header_nonce,
    };
    let mut bytes = header.encode().to_vec();
    let mut names = Vec::new();
    let mut put = |bytes: &mut Vec<u8>, record: &EncodedRecord| {
        names.push(record.name());
        let at = bytes.len() as u64;
        bytes.extend_from_slice(&record.header().encode(at));
        bytes.extend_from_slice(record.payload_bytes());
        bytes.resize(at as usize + record.record_bytes() as usize, 0);
    };
    put(&mut bytes, &packed_chunk(1, FIRST_STORED));
    let pack_bytes = bytes.len() as u64 + RECORD_HEADER_BYTES as u64 + 4 * 4096;
    put(&mut bytes, &forged(pack_bytes, footer_at, nonce));
    assert_eq!(bytes.len() as u64, pack_bytes);
    sim.0.put(&Sim::path(PACK), &bytes).unwrap();
    (sim, names)
}

/// The place where the forged footer says that records end: at the first, and within the payload of
/// the second.
const PLACES: [u64; 3] = [HEADER, HEADER + 4096, HEADER + 2 * 4096];

#[test]
fn a_payload_does_not_seal_the_pack_that_it_is_in() {
    let own = [9; 12];
    for header in [Some(own), None] {
        for nonce in [None, Some([0; 12]), Some([1; 12])] {
            for footer_at in PLACES {
                let (sim, names) = pack_with(header, footer_at, nonce);
                let place = sim.place();
                let local = place.local(PACK_BYTES_MAX);
                let told = format!("{header:?}, {nonce:?}, footer at {footer_at}");
                for promised in [
                    None,
                    Some(0),
                    Some(HEADER + 4096),
                    Some(u64::from(u32::MAX)),
                ] {
                    let found = block_on(recover_tail(&*local, PACK, promised)).unwrap();
                    assert!(!found.sealed, "{told}");
                    let found: Vec<_> = found.records.iter().map(|it| it.name).collect();
                    assert_eq!(found, names, "{told}");
                }
                let found = block_on(recover_tail(&*local, PACK, None)).unwrap();
                assert!(found.damage.is_empty() && found.torn.is_none(), "{told}");
                // Any pack that continues it is sound in the end.
                let (writer, states) = block_on(PackWriter::resume(
                    Arc::clone(&local) as _,
                    PackKind::Chunks,
                    vec![found],
                ))
                .unwrap();
                let is_sealed = states[0].phase == PackPhase::Sealed;
                assert_eq!(is_sealed, header.is_none(), "{told}");
                drop(writer);
                let (records, damage, tail) = block_on(scan(&*local, PACK));
                assert_eq!((records.len(), damage), (2, Vec::new()), "{told}");
                let sealed = matches!(tail, Tail::Sealed { .. });
                assert_eq!(sealed, header.is_none(), "{told}");
            }
        }
    }
}

/// If a header is unreadable, its random bytes prove nothing: the records decide.
#[test]
fn a_pack_without_its_header_is_sealed_where_its_records_end() {
    let sim = Sim::new();
    let (local, writer) = sim.place().writer(16_384);
    block_on(async {
        drop(writer.append(chunks(0..4, 1)).await.unwrap());
        writer.flush().await.unwrap();
        let pack = local.list().unwrap()[0];
        assert!(matches!(scan(&*local, pack).await.2, Tail::Sealed { .. }));
        sim.0.flip(&Sim::path(pack), 50, 1).unwrap();
        let (records, damage, tail) = scan(&*local, pack).await;
        assert_eq!((records.len(), damage.len()), (2, 1));
        assert!(matches!(tail, Tail::Sealed { .. }));
    });
    let (sim, names) = pack_with(Some([9; 12]), HEADER, Some([3; 12]));
    sim.0.flip(&Sim::path(PACK), 50, 1).unwrap();
    let local = sim.place().local(PACK_BYTES_MAX);
    let (records, damage, _) = block_on(scan(&*local, PACK));
    assert_eq!((records.len(), damage.len()), (names.len(), 1));
}
