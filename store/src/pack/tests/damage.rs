//! Bytes that are not as they were written.

use proptest::prelude::*;

use super::*;
use crate::{Error, format::pack::PACK_HEADER_BYTES, limits};

/// A pack with records of several sizes and two flushes, sealed or not, and its content.
fn pack(sealed: bool) -> (Sim, PackId, Known) {
    let sim = Sim::new();
    let (local, writer) = sim.place().writer(40_000);
    let mut known = Known::default();
    block_on(async {
        for (numbers, len) in [(0..4, 1500), (4..6, 4096)] {
            let records = numbers
                .map(|number| packed_chunk(number, len + number as usize))
                .collect();
            let appended = writer.append(records).await.unwrap();
            let flushed = writer.flush().await.unwrap();
            known.learn(flushed.settle(appended).unwrap(), flushed.packs());
        }
        if sealed {
            let _ = writer.append(chunks(7..8, 8)).await.unwrap();
            writer.flush().await.unwrap();
        }
        let pack = local.list().unwrap()[0];
        let (records, damage, tail) = scan(&*local, pack).await;
        assert_eq!((records.len(), damage), (6, vec![]));
        assert_eq!(matches!(tail, Tail::Sealed { .. }), sealed);
        (sim, pack, known)
    })
}

/// Each byte of a pack in turn: a scan reports the place, or the record that it is in; readers
/// return the other records and never a changed one.
#[test]
fn a_flipped_byte_is_found_wherever_it_is() {
    for sealed in [false, true] {
        let (sim, pack, known) = pack(sealed);
        let local = sim.place().local(limits::PACK_BYTES_MAX);
        let reader = PackReader::new(Arc::clone(&local) as _);
        let len = sim.0.contents(&Sim::path(pack)).unwrap().len() as u64;
        for offset_bytes in 0..len {
            // One bit, another for each byte.
            let bits = 1 << (offset_bytes % 8);
            sim.0.flip(&Sim::path(pack), offset_bytes, bits).unwrap();
            block_on(async {
                let (records, damage, tail) = scan(&*local, pack).await;
                let named = match (damage.as_slice(), &tail) {
                    ([(at, _)], Tail::Sealed { .. } | Tail::Clean { .. }) => *at,
                    ([], Tail::Torn { at_bytes, .. }) => *at_bytes,
                    other => panic!("byte {offset_bytes}: {other:?}"),
                };
                assert!(
                    named <= offset_bytes,
                    "byte {offset_bytes}: damage at {named}"
                );
                let mut broken = 0;
                for record in known.records.values() {
                    let start = record.location.offset_bytes;
                    let hit = (start..start + record.location.payload.record_bytes())
                        .contains(&offset_bytes);
                    match reader
                        .read_record(&record.location, record.name)
                        .await
                        .map_err(Error::from)
                    {
                        Ok(_) => assert!(
                            !hit,
                            "byte {offset_bytes} is in a record that was given out"
                        ),
                        Err(Error::Damaged(damage)) => {
                            assert!(hit);
                            let text = damage.to_string();
                            assert!(
                                text.contains(&format!("in pack {pack} at offset {start}: chunk ")),
                                "{text}"
                            );
                            assert_eq!(named, start, "the scan names it as well");
                            broken += 1;
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
                if broken == 1 {
                    assert_eq!(
                        records.len(),
                        known.records.len() - 1,
                        "byte {offset_bytes}: the others are found"
                    );
                } else if !sealed || offset_bytes < len - 4096 {
                    assert_eq!(records.len(), known.records.len(), "byte {offset_bytes}");
                }
            });
            sim.0.flip(&Sim::path(pack), offset_bytes, bits).unwrap();
        }
    }
}

#[test]
fn what_is_not_where_the_index_says_is_damage() {
    let (sim, pack, known) = pack(true);
    let local = sim.place().local(limits::PACK_BYTES_MAX);
    let reader = PackReader::new(Arc::clone(&local) as _);
    let mut records: Vec<_> = known.records.values().copied().collect();
    records.sort_by_key(|record| record.location.offset_bytes);
    let (first, second) = (records[0], records[1]);
    let problem = |location, name| {
        let reader = &reader;
        block_on(async move {
            match reader
                .read_record(&location, name)
                .await
                .map_err(Error::from)
            {
                Err(Error::Damaged(damage)) => damage.to_string(),
                other => panic!("{other:?}"),
            }
        })
    };
    let mut location = first.location;
    location.payload.plain_bytes -= 4096;
    assert!(problem(location, first.name).contains("record header is wrong"));
    assert!(problem(first.location, second.name).contains("id of a record is wrong"));
    location = first.location;
    location.offset_bytes += 8;
    assert!(problem(location, first.name).contains("expected VREC"));
    location.offset_bytes = 1 << 40;
    assert!(problem(location, first.name).contains("the pack ends before"));
    location.pack.number = 77;
    assert!(problem(location, first.name).contains("pack chunk-000000000000004d"));
    assert!(problem(location, first.name).contains("the pack is gone"));
    assert_eq!(pack.number, 1);
}

/// Damage to several records, headers among them: the ones between are found.
#[test]
fn a_scan_goes_on_behind_damage() {
    for sealed in [false, true] {
        let (sim, pack, known) = pack(sealed);
        let local = sim.place().local(limits::PACK_BYTES_MAX);
        let mut starts: Vec<_> = known
            .records
            .values()
            .map(|record| record.location.offset_bytes)
            .collect();
        starts.sort_unstable();
        let path = Sim::path(pack);
        sim.0.flip(&path, 8, 1).unwrap();
        sim.0.flip(&path, starts[1], 1).unwrap();
        sim.0.flip(&path, starts[2] + 100, 1).unwrap();
        sim.0.flip(&path, starts[4] + 20, 1).unwrap();
        let (records, damage, tail) = block_on(scan(&*local, pack));
        assert!(
            records.keys().eq([&starts[0], &starts[3], &starts[5]]),
            "{records:?}"
        );
        assert!(
            damage
                .iter()
                .map(|(at, _)| at)
                .eq([&0, &starts[1], &starts[2], &starts[4]]),
            "{damage:?}"
        );
        assert_eq!(matches!(tail, Tail::Sealed { .. }), sealed);
    }
}

/// A payload that holds a pack's bytes, at the very offset they would be found at, is not taken for
/// a pack where there is a footer.
#[test]
fn a_footer_is_not_deceived_by_payloads() {
    let header_bytes = 64;
    let at = PACK_HEADER_BYTES as u64 + header_bytes + 512;
    let inner = {
        let inner = chunk(99, 1);
        let mut bytes = inner.header().encode(at).to_vec();
        bytes.extend_from_slice(inner.payload_bytes());
        bytes
    };
    let mut plain = plain(1, 4);
    plain[512..512 + inner.len()].copy_from_slice(&inner);
    let outer = EncodedRecord::chunk(
        Name::of(RecordKind::Chunk, &plain),
        Codec::Raw,
        End::Settled,
        plain.len() as u32,
        &plain,
    );
    let sim = Sim::new();
    let (local, writer) = sim.place().writer(16_384);
    block_on(async {
        let _ = writer.append(vec![outer, chunk(2, 4)]).await.unwrap();
        writer.flush().await.unwrap();
        let pack = local.list().unwrap()[0];
        sim.0
            .flip(&Sim::path(pack), PACK_HEADER_BYTES as u64, 1)
            .unwrap();
        let (records, damage, _) = scan(&*local, pack).await;
        assert_eq!((records.len(), damage.len()), (0, 1));
    });
}

/// With any index of a pack, a flipped byte is no tear: nothing is cut off, and the other records
/// are found.
#[test]
fn a_flipped_byte_is_never_cut_off() {
    let (sim, pack, known) = pack(false);
    let path = Sim::path(pack);
    let whole = sim.0.contents(&path).unwrap();
    let places = known.records.values().map(|record| {
        let location = record.location;
        let end = location.offset_bytes + location.payload.record_bytes();
        location.offset_bytes..end
    });
    let places: Vec<_> = places.collect();
    for promised in [None, Some(0), Some(whole.len() as u64)] {
        let starts = places.iter().flat_map(|place| {
            let start = place.start;
            [start + 1, start + 40, start + 70]
        });
        for offset_bytes in starts.chain([9, 30]) {
            sim.0.put(&path, &whole).unwrap();
            sim.0.flip(&path, offset_bytes, 1).unwrap();
            let flipped = sim.0.contents(&path).unwrap();
            let local = sim.place().local(limits::PACK_BYTES_MAX);
            block_on(async {
                let context = format!("byte {offset_bytes}, promised {promised:?}");
                let found = recover_tail(&*local, pack, promised).await.unwrap();
                assert_eq!((found.damage.len(), &found.torn), (1, &None), "{context}");
                let hit = |place: &&std::ops::Range<u64>| place.contains(&offset_bytes);
                let lost = places.iter().filter(hit).count();
                assert_eq!(found.records.len() + lost, places.len(), "{context}");
                let stage = Arc::clone(&local) as _;
                PackWriter::resume(stage, PackKind::Chunks, vec![found])
                    .await
                    .unwrap();
                let now = sim.0.contents(&path).unwrap();
                assert_eq!(now, flipped, "{context}");
            });
        }
    }
}

/// A header that is intact and names another pack, another store or a later version, and bytes that
/// are no pack at all.
#[test]
fn a_file_that_is_not_of_its_pack_is_left_alone() {
    let (sim, pack, _) = pack(false);
    let whole = sim.0.contents(&Sim::path(pack)).unwrap();
    let renamed = PackId {
        kind: PackKind::Chunks,
        number: 9,
    };
    let path = Sim::path(renamed);
    let with_header = |edit: &dyn Fn(&mut [u8])| {
        let mut bytes = whole.clone();
        bytes[16..24].copy_from_slice(&9u64.to_le_bytes());
        edit(&mut bytes);
        let crc32 = crc32fast::hash(&bytes[..60]);
        bytes[60..64].copy_from_slice(&crc32.to_le_bytes());
        bytes
    };
    let (theirs, later) = (
        with_header(&|bytes| bytes[24] ^= 1),
        with_header(&|bytes| bytes[8] = 3),
    );
    let names_other = "expected chunk-0000000000000009, found chunk-0000000000000001";
    for (bytes, named, wanted) in [
        (whole.clone(), 1, names_other),
        (whole[..6000].to_vec(), 1, names_other),
        (theirs, 0, "expected"),
        (later, 0, "version"),
        (b"not a pack".to_vec(), 0, "pack header"),
        (vec![7; 9000], 0, "pack header"),
    ] {
        sim.0.put(&path, &bytes).unwrap();
        let local = sim.place().local(limits::PACK_BYTES_MAX);
        for promised in [None, Some(0)] {
            let found = block_on(recover_tail(&*local, renamed, promised)).unwrap();
            let said = &found.damage[0].to_string();
            assert!(found.is_foreign && found.torn.is_none(), "{found:?}");
            assert_eq!(found.records, []);
            assert!(
                said.contains(wanted) && said.contains("the file stays"),
                "{said}"
            );
            assert_eq!(found.names_number, named, "{said}");
        }
    }
    let ours = with_header(&|_| {});
    sim.0.put(&path, &ours).unwrap();
    let local = sim.place().local(limits::PACK_BYTES_MAX);
    let found = block_on(recover_tail(&*local, renamed, Some(0))).unwrap();
    assert_eq!((found.records.len(), found.damage), (6, vec![]));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// For any bytes of a pack, a scan ends, does not panic, and yields nothing that was not there.
    #[test]
    fn a_scan_takes_any_bytes(
        sealed: bool,
        edits in prop::collection::vec((0.0..1.0f64, prop::collection::vec(any::<u8>(), 1..100)), 0..20),
        cut in prop::option::of(0.0..1.0f64),
        promised in prop::option::of(0u64..50_000),
    ) {
        let (sim, pack, known) = pack(sealed);
        let mut bytes = sim.0.contents(&Sim::path(pack)).unwrap();
        for (at, edit) in edits {
            let start = (at * bytes.len() as f64) as usize;
            let end = (start + edit.len()).min(bytes.len());
            bytes[start..end].copy_from_slice(&edit[..end - start]);
        }
        if let Some(cut) = cut {
            bytes.truncate((cut * bytes.len() as f64) as usize);
        }
        sim.0.put(&Sim::path(pack), &bytes).unwrap();
        let local = sim.place().local(limits::PACK_BYTES_MAX);
        let mut found = block_on(recover_tail(&*local, pack, promised)).unwrap();
        for record in &found.records {
            prop_assert_eq!(known.records.get(&record.name), Some(record));
        }
        if !found.sealed {
            found.damage.clear();
            block_on(PackWriter::resume(Arc::clone(&local) as _, PackKind::Chunks, vec![found])).unwrap();
        }
    }

    #[test]
    fn a_scan_takes_bytes_of_no_pack(bytes in prop::collection::vec(any::<u8>(), 0..20_000)) {
        let sim = Sim::new();
        let pack = PackId { kind: PackKind::Nodes, number: 9 };
        sim.0.put(&Sim::path(pack), &bytes).unwrap();
        let local = sim.place().local(limits::PACK_BYTES_MAX);
        let (records, damage, tail) = block_on(scan(&*local, pack));
        prop_assert!(records.is_empty());
        let torn_at_0 = matches!(tail, Tail::Torn { at_bytes: 0, .. });
        prop_assert!(torn_at_0 || damage.first().is_some_and(|(at, _)| *at == 0));
        let found = block_on(recover_tail(&*local, pack, Some(0))).unwrap();
        prop_assert_eq!(found.is_foreign, !torn_at_0 && !bytes.is_empty());
    }
}
