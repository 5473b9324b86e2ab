//! Writing goes on after a restart.

use super::*;
use crate::{format::pack::PackHeader, limits};

const PACK_BYTES_MAX: u64 = 1 << 20;

fn write_some(place: &Place, known: &mut Known, numbers: std::ops::Range<u64>) {
    let local = place.local(PACK_BYTES_MAX);
    block_on(async {
        let writer = known.recover(&local).await.unwrap();
        let appended = writer.append(chunks(numbers, 5)).await.unwrap();
        let flushed = writer.close().await.unwrap();
        known.learn(flushed.settle(appended).unwrap(), flushed.packs());
        known.check(&local).await;
    });
}

#[test]
fn restarts_do_not_leave_a_swarm_of_packs() {
    for place in Place::all() {
        let mut known = Known::default();
        for restart in 0..40 {
            write_some(&place, &mut known, restart * 10..restart * 10 + 1);
        }
        let local = place.local(PACK_BYTES_MAX);
        assert_eq!(
            local.list().unwrap().len(),
            1 + 40 * 24576 / (PACK_BYTES_MAX / limits::PACK_CLOSED_PART) as usize
        );
        for pack in local.list().unwrap() {
            let (_, damage, tail) = block_on(scan(&*local, pack));
            assert_eq!(damage, []);
            // A large pack is not scanned again.
            let is_sealed = matches!(tail, Tail::Sealed { .. });
            let large = local.len_bytes(pack).blocking_wait().unwrap()
                >= PACK_BYTES_MAX / limits::PACK_CLOSED_PART;
            assert_eq!(is_sealed, large);
            assert_eq!(known.packs[&pack].phase == PackPhase::Sealed, is_sealed);
        }
    }
}

/// A tail of any length behind the last receipt: what is whole there is kept, the rest is cut off,
/// and padding ends the block.
#[test]
fn a_torn_tail_is_cut_off_wherever_it_is_torn() {
    let (pack, whole, ends, indexed_bytes) = {
        let sim = Sim::new();
        let (local, writer) = sim.place().writer(limits::PACK_BYTES_MAX);
        block_on(async {
            let _ = writer.append(chunks(0..2, 1)).await.unwrap();
            let flushed = writer.flush().await.unwrap();
            let records = vec![
                packed_chunk(5, 3000),
                packed_chunk(6, 1000),
                packed_chunk(7, 4000),
            ];
            let _ = writer.append(records).await.unwrap();
            writer.flush().await.unwrap();
            let pack = local.list().unwrap()[0];
            let (records, _, _) = scan(&*local, pack).await;
            let ends: Vec<_> = records
                .values()
                .map(|record| record.offset_bytes + record.header.payload.record_bytes())
                .collect();
            (
                pack,
                sim.0.contents(&Sim::path(pack)).unwrap(),
                ends,
                flushed.packs()[0].indexed_bytes,
            )
        })
    };
    for len in indexed_bytes as usize..=whole.len() {
        // Torn so that the bytes are gone, or so that others are there.
        for junk in [0, 300] {
            let sim = Sim::new();
            let mut bytes = whole[..len].to_vec();
            bytes.extend(std::iter::repeat_n(0xa5, junk));
            sim.0.put(&Sim::path(pack), &bytes).unwrap();
            let local = sim.place().local(limits::PACK_BYTES_MAX);
            let mut known = Known::default();
            let state = PackState {
                pack,
                indexed_bytes,
                phase: PackPhase::Open,
            };
            known.learn(Vec::new(), &[state]);
            block_on(async {
                let writer = known.recover(&local).await.unwrap();
                let expected = ends.iter().filter(|end| **end <= len as u64).count();
                assert_eq!(known.records.len(), expected, "torn at {len}");
                let appended = writer.append(chunks(10..11, 2)).await.unwrap();
                let flushed = writer.flush().await.unwrap();
                known.learn(flushed.settle(appended).unwrap(), flushed.packs());
                known.check(&local).await;
                let (records, damage, tail) = scan(&*local, pack).await;
                assert_eq!(
                    (records.len(), damage),
                    (expected + 1, vec![]),
                    "torn at {len}"
                );
                assert!(matches!(tail, Tail::Clean { .. }));
            });
            let now = sim.0.contents(&Sim::path(pack)).unwrap();
            assert_eq!(
                now[..indexed_bytes as usize],
                whole[..indexed_bytes as usize],
                "durable bytes stay"
            );
        }
    }
}

#[test]
fn a_pack_that_ends_before_what_was_promised_is_damaged_and_not_written_over() {
    let sim = Sim::new();
    let place = sim.place();
    let mut known = Known::default();
    write_some(&place, &mut known, 0..10);
    let local = place.local(PACK_BYTES_MAX);
    let pack = local.list().unwrap()[0];
    let indexed_bytes = known.packs[&pack].indexed_bytes;
    let cut = sim.0.contents(&Sim::path(pack)).unwrap()[..100_000].to_vec();
    sim.0.put(&Sim::path(pack), &cut).unwrap();
    block_on(async {
        let tail = recover_tail(&*local, pack, Some(indexed_bytes))
            .await
            .unwrap();
        let [damage] = tail.damage.as_slice() else {
            panic!("{:?}", tail.damage);
        };
        assert!(
            damage
                .to_string()
                .starts_with("damage in pack chunk-0000000000000001 at offset 8"),
            "{damage}"
        );
        assert_eq!(tail.end_bytes, indexed_bytes);
        let whole = tail.records.len();
        let (writer, states) =
            PackWriter::resume(Arc::clone(&local) as _, PackKind::Chunks, vec![tail])
                .await
                .unwrap();
        assert_eq!(
            states[0].phase,
            PackPhase::Open,
            "what it has lost is found again at each start"
        );
        let promised = states[0].indexed_bytes;
        let appended = writer.append(chunks(20..21, 1)).await.unwrap();
        let placed = writer.flush().await.unwrap().settle(appended).unwrap();
        assert_ne!(placed[0].location.pack, pack);
        let reader = PackReader::new(Arc::clone(&local) as _);
        let mut readable = 0;
        for record in known.records.values() {
            match reader
                .read_record(&record.location, record.name)
                .await
                .map_err(crate::Error::from)
            {
                Ok(_) => readable += 1,
                Err(crate::Error::Damaged(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(readable, whole);
        let again = super::recover_tail(&*local, pack, Some(promised))
            .await
            .unwrap();
        assert_eq!((again.records.len(), again.damage.len()), (whole, 1));
        let mut lost = LostPlaces::default();
        lost.add_recovered(&again);
        let lost = known.records.values().filter(|it| lost.hold(&it.location));
        assert_eq!(lost.count(), known.records.len() - whole);
    });
}

#[test]
fn packs_without_a_record_are_removed() {
    let sim = Sim::new();
    let place = sim.place();
    for (number, bytes) in [
        (1, vec![]),
        (2, vec![0; 4096]),
        (3, vec![0; 1000]),
        (4, vec![0; 9999]),
    ] {
        let kind = PackKind::Chunks;
        sim.0
            .put(&Sim::path(PackId { kind, number }), &bytes)
            .unwrap();
    }
    let local = place.local(PACK_BYTES_MAX);
    block_on(async {
        let writer = Known::default().recover(&local).await.unwrap();
        assert!(local.list().unwrap().is_empty());
        let appended = writer.append(chunks(0..1, 1)).await.unwrap();
        let placed = writer.flush().await.unwrap().settle(appended).unwrap();
        assert_eq!(placed[0].location.pack.number, 5, "numbers are used once");
    });
}

#[test]
fn of_several_packs_the_newest_is_gone_on_with() {
    let sim = Sim::new();
    let mut known = Known::default();
    write_some(&sim.place(), &mut known, 0..3);
    let first = sim
        .0
        .contents(&Sim::path(*known.packs.first_key_value().unwrap().0))
        .unwrap();
    let sim = Sim::new();
    for number in 1..=3 {
        let pack = PackId {
            kind: PackKind::Chunks,
            number,
        };
        let header = PackHeader {
            pack,
            store: STORE,
            created_unix_seconds: 1,
            nonce: Some([7; 12]),
        };
        let mut bytes = header.encode().to_vec();
        bytes.extend_from_slice(&first[bytes.len()..]);
        sim.0.put(&Sim::path(pack), &bytes).unwrap();
    }
    let local = sim.place().local(PACK_BYTES_MAX);
    block_on(async {
        let mut tails = Vec::new();
        for pack in local.list().unwrap() {
            tails.push(recover_tail(&*local, pack, None).await.unwrap());
        }
        let (writer, states) = PackWriter::resume(Arc::clone(&local) as _, PackKind::Chunks, tails)
            .await
            .unwrap();
        let sealed: Vec<_> = states
            .iter()
            .map(|state| (state.pack.number, state.phase == PackPhase::Sealed))
            .collect();
        assert_eq!(sealed, [(1, true), (2, true), (3, false)]);
        let appended = writer.append(chunks(50..51, 1)).await.unwrap();
        assert_eq!(
            writer.flush().await.unwrap().settle(appended).unwrap()[0]
                .location
                .pack
                .number,
            3
        );
    });
}

/// A loss of power while a footer is written leaves any of its sectors. In each case the pack
/// continues, and changed bytes are damage.
#[test]
fn a_torn_footer_is_cut_off_whichever_sectors_are_lost() {
    const SECTOR: usize = 512;
    let (pack, whole, end) = {
        let sim = Sim::new();
        let (local, writer) = sim.place().writer(limits::PACK_BYTES_MAX);
        block_on(async {
            // Their entries take some sectors, and not the whole footer.
            let _ = writer.append(chunks(0..50, 1)).await.unwrap();
            let flushed = writer.finish().await.unwrap();
            let pack = local.list().unwrap()[0];
            let end = flushed.packs().last().unwrap().indexed_bytes as usize;
            (pack, sim.0.contents(&Sim::path(pack)).unwrap(), end)
        })
    };
    let entries = 50 * crate::format::pack::FOOTER_ENTRY_BYTES;
    let scanned = |bytes: &[u8]| {
        let sim = Sim::new();
        sim.0.put(&Sim::path(pack), bytes).unwrap();
        let local = sim.place().local(limits::PACK_BYTES_MAX);
        let (records, damage, tail) = block_on(scan(&*local, pack));
        assert_eq!(records.len(), 50);
        (damage, tail)
    };
    for sector in 0..entries.div_ceil(SECTOR) {
        for count in 1..=entries.div_ceil(SECTOR) - sector {
            let mut bytes = whole.clone();
            let at = end + sector * SECTOR;
            bytes[at..at + count * SECTOR].fill(0);
            let (damage, tail) = scanned(&bytes);
            assert_eq!(damage, [], "{count} sectors from {sector} on");
            let is_cut = matches!(tail, Tail::Torn { at_bytes, .. } if at_bytes == end as u64);
            assert!(is_cut, "{tail:?}");
        }
    }
    // A byte that changed is no lost sector.
    for at in [end, end + SECTOR, end + entries - 1] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        let (damage, tail) = scanned(&bytes);
        assert_eq!(damage.len(), 1);
        assert!(matches!(tail, Tail::Sealed { .. }), "{tail:?}");
    }
    assert_eq!(scanned(&whole).0, []);
}
