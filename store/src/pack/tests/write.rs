//! Writing and reading where nothing goes wrong.

use super::*;
use crate::{
    Error,
    format::{
        Location,
        pack::{PACK_RECORDS_MAX, Payload},
    },
    limits,
};

#[test]
fn what_is_appended_and_flushed_is_read() {
    for place in Place::all() {
        let (local, writer) = place.writer(limits::PACK_BYTES_MAX);
        let mut known = Known::default();
        block_on(async {
            for round in 0..6u64 {
                let mut records = chunks(round * 100..round * 100 + 20, 1 + 11 * round as usize);
                records.push(packed_chunk(round, 1 + round as usize * 1001));
                let expected: Vec<_> = records.iter().map(|record| record.name()).collect();
                let appended = writer.append(records).await.unwrap();
                assert_eq!(appended.len(), 21);
                let stored_bytes = appended.stored_bytes();
                let flushed = writer.flush().await.unwrap();
                assert_eq!(flushed.packs().len(), 1);
                let settled = flushed.settle(appended).unwrap();
                assert!(
                    settled.iter().map(|record| record.name).eq(expected),
                    "in order"
                );
                assert!(
                    stored_bytes
                        >= settled
                            .iter()
                            .map(|record| u64::from(record.location.payload.stored_bytes))
                            .sum()
                );
                known.learn(settled, flushed.packs());
            }
            known.check(&local).await;
            let again = writer.flush().await.unwrap();
            assert!(again.packs().is_empty(), "nothing to do");
            let nothing = writer.append(Vec::new()).await.unwrap();
            assert!(nothing.is_empty() && again.settle(nothing).unwrap().is_empty());
            writer.close().await.unwrap();

            let pack = local.list().unwrap()[0];
            let (records, damage, tail) = scan(&*local, pack).await;
            assert_eq!((records.len(), damage), (known.records.len(), vec![]));
            let end_bytes = local.len_bytes(pack).blocking_wait().unwrap();
            assert_eq!(tail, Tail::Clean { end_bytes });
            assert_eq!(known.packs[&pack].indexed_bytes, end_bytes);
        });
    }
}

#[test]
fn a_full_pack_is_sealed_and_the_next_begun() {
    for place in Place::all() {
        let (local, writer) = place.writer(1 << 20);
        let mut known = Known::default();
        block_on(async {
            for round in 0..4 {
                let appended = writer
                    .append(chunks(round * 100..round * 100 + 60, 13))
                    .await
                    .unwrap();
                let flushed = writer.flush().await.unwrap();
                known.learn(flushed.settle(appended).unwrap(), flushed.packs());
            }
            known.check(&local).await;
            let packs = local.list().unwrap();
            assert!(packs.len() > 10, "{} packs", packs.len());
            assert!(
                packs
                    .windows(2)
                    .all(|pair| pair[0].number + 1 == pair[1].number)
            );
            let mut scanned = 0;
            for (nth, pack) in packs.iter().enumerate() {
                let (records, damage, tail) = scan(&*local, *pack).await;
                assert_eq!(damage, []);
                let is_last = nth + 1 == packs.len();
                assert_eq!(matches!(tail, Tail::Sealed { .. }), !is_last, "{tail:?}");
                assert_eq!((known.packs[pack].phase == PackPhase::Sealed), !is_last);
                assert!(
                    local.len_bytes(*pack).blocking_wait().unwrap() <= (1 << 20) + 8192,
                    "records end before the bound"
                );
                scanned += records.len();
                for record in records.values() {
                    check_content(
                        record.header.name(),
                        record.header.payload.codec,
                        &record.payload,
                    );
                }
            }
            assert_eq!(scanned, known.records.len());
        });
    }
}

#[test]
fn a_pack_has_a_bounded_number_of_records() {
    let place = Sim::new().place();
    let (local, writer) = place.writer(limits::PACK_BYTES_MAX);
    block_on(async {
        let one = packed_chunk(1, 1);
        for _ in 0..9 {
            let _ = writer
                .append(vec![one.clone(); PACK_RECORDS_MAX as usize / 8])
                .await
                .unwrap();
        }
        writer.flush().await.unwrap();
        let packs = local.list().unwrap();
        let (records, damage, tail) = scan(&*local, packs[0]).await;
        assert_eq!((records.len(), damage), (PACK_RECORDS_MAX as usize, vec![]));
        assert!(matches!(tail, Tail::Sealed { .. }));
        assert_eq!(packs.len(), 2);
    });
}

/// Many tasks on several threads append and flush; each finds all of its records.
#[test]
fn appends_and_flushes_run_at_the_same_time() {
    for place in Place::all() {
        let (local, writer) = place.writer(8 << 20);
        let writer = Arc::new(writer);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(4)
            .build()
            .unwrap();
        let tasks: Vec<_> = (0..8u64)
            .map(|task| {
                let writer = Arc::clone(&writer);
                runtime.spawn(async move {
                    let mut known = Known::default();
                    let mut waiting: Option<Appended> = None;
                    for round in 0..10 {
                        let first = task * 1_000_000 + round * 1000;
                        let records = chunks(first..first + 7, 1 + ((task + round) % 64) as usize);
                        let appended = writer.append(records).await.unwrap();
                        match &mut waiting {
                            Some(all) => all.join(appended),
                            None => waiting = Some(appended),
                        }
                        if round % 3 == task % 3 {
                            let flushed = writer.flush().await.unwrap();
                            known.learn(flushed.settle(waiting.take().unwrap()).unwrap(), &[]);
                        }
                    }
                    known
                })
            })
            .collect();
        runtime.block_on(async {
            for task in tasks {
                task.await.unwrap().check(&local).await;
            }
            for pack in local.list().unwrap() {
                assert_eq!(scan(&*local, pack).await.1, []);
            }
        });
    }
}

/// More than all buffers hold, in one call, with nobody else to take completions in.
#[test]
fn an_append_waits_for_its_own_writes() {
    for place in Place::all() {
        let (local, writer) = place.writer(limits::PACK_BYTES_MAX);
        let one = chunk(1, 64);
        let count =
            2 * limits::PACK_BUFFERS * limits::PACK_BUFFER_BYTES / one.record_bytes() as usize;
        block_on(async {
            let appended = writer.append(vec![one; count]).await.unwrap();
            let flushed = writer.flush().await.unwrap();
            assert_eq!(flushed.settle(appended).unwrap().len(), count);
            let (records, damage, _) = scan(&*local, local.list().unwrap()[0]).await;
            assert_eq!((records.len(), damage), (count, vec![]));
        });
    }
}

#[test]
fn a_receipt_is_for_what_was_appended_before() {
    let place = Sim::new().place();
    let (_, writer) = place.writer(limits::PACK_BYTES_MAX);
    block_on(async {
        let first = writer.append(chunks(0..3, 1)).await.unwrap();
        let flushed = writer.flush().await.unwrap();
        let second = writer.append(chunks(3..6, 1)).await.unwrap();
        let lost = flushed.settle(second).unwrap_err();
        assert_eq!(lost.to_string(), "3 records were appended and not kept");
        assert!(matches!(Error::from(lost), Error::Dropped));
        assert_eq!(flushed.settle(first).unwrap().len(), 3);
    });
}

/// The futures of appends and flushes are dropped wherever they happen to wait.
#[test]
fn futures_may_be_dropped() {
    let place = Place::real(IoEngine::Auto);
    let (local, writer) = place.writer(2 << 20);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let mut known = Known::default();
    runtime.block_on(async {
        for round in 0..200u64 {
            let patience = std::time::Duration::from_micros(round * 13 % 1500);
            let work = async {
                let appended = writer
                    .append(chunks(round * 10..round * 10 + 9, 61))
                    .await
                    .unwrap();
                let flushed = writer.flush().await.unwrap();
                known.learn(flushed.settle(appended).unwrap(), flushed.packs());
            };
            let _ = tokio::time::timeout(patience, work).await;
        }
        let appended = writer.append(chunks(9000..9001, 3)).await.unwrap();
        let flushed = writer.close().await.unwrap();
        known.learn(flushed.settle(appended).unwrap(), flushed.packs());
        known.check(&local).await;
        for pack in local.list().unwrap() {
            assert_eq!(scan(&*local, pack).await.1, []);
        }
    });
}

#[test]
fn packs_of_both_kinds_share_their_numbers() {
    let place = Sim::new().place();
    let (local, chunk_writer) = place.writer(limits::PACK_BYTES_MAX);
    local.keep_numbers_above(41);
    block_on(async {
        let (node_writer, _) =
            PackWriter::resume(Arc::clone(&local) as _, PackKind::Nodes, Vec::new())
                .await
                .unwrap();
        let leaf = EncodedRecord::node(Name::of(RecordKind::Leaf, b"any bytes"), b"any bytes");
        let _ = node_writer.append(vec![leaf]).await.unwrap();
        let _ = chunk_writer.append(chunks(0..1, 1)).await.unwrap();
        node_writer.flush().await.unwrap();
        chunk_writer.flush().await.unwrap();
    });
    let names: Vec<_> = local
        .list()
        .unwrap()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(names, ["node-000000000000002a", "chunk-000000000000002b"]);
}

#[test]
fn neighbours_are_read_together() {
    let place = Place::real(IoEngine::Auto);
    let (local, writer) = place.writer(4 << 20);
    block_on(async {
        let appended = writer.append(chunks(0..300, 9)).await.unwrap();
        let flushed = writer.flush().await.unwrap();
        let mut records = flushed.settle(appended).unwrap();
        // Some are not wanted, some wanted twice, and none in order.
        records.retain(|record| record.name.as_bytes()[0] % 3 != 0);
        records.extend_from_within(..20);
        records.sort_by_key(|record| record.name);
        let locations: Vec<_> = records.iter().map(|record| record.location).collect();
        let spans = plan_spans(&locations);
        assert!(spans.len() < records.len() / 2, "{} spans", spans.len());
        let reader = PackReader::new(Arc::clone(&local) as _);
        let mut seen = vec![0; records.len()];
        for span in &spans {
            assert!(span.len_bytes <= limits::READ_SPAN_BYTES);
            let read = reader.read_span(span).await.unwrap();
            for at in &span.members {
                let record = read
                    .record(&records[*at].location, records[*at].name)
                    .unwrap();
                check_content(records[*at].name, Codec::Raw, record.payload());
                seen[*at] += 1;
            }
        }
        assert!(seen.iter().all(|count| *count == 1));
        let outside = reader
            .read_span(&spans[0])
            .await
            .unwrap()
            .record(&records[spans[1].members[0]].location, records[0].name);
        assert!(matches!(outside, Err(Error::Internal(_))));
    });
}

#[test]
fn spans_end_at_gaps_bounds_and_packs() {
    let location = |number, offset_bytes, stored_bytes| Location {
        pack: PackId {
            kind: PackKind::Chunks,
            number,
        },
        offset_bytes,
        payload: Payload {
            kind: RecordKind::Chunk,
            codec: Codec::Zstd,
            end_open: false,
            plain_bytes: 256 << 10,
            stored_bytes,
        },
    };
    let span = |number, offset_bytes, len_bytes, members: &[usize]| Span {
        pack: location(number, 0, 0).pack,
        offset_bytes,
        len_bytes,
        members: members.to_vec(),
    };
    let record = |bytes: u32| bytes - 64;
    let gap = limits::READ_GAP_BYTES;
    assert_eq!(plan_spans(&[]), []);
    // In order, up to the largest gap; a larger one; another pack; beyond all offsets.
    let far = u64::MAX - 7;
    let planned = plan_spans(&[
        location(1, 4096 + 1024 + gap, record(512)),
        location(1, 4096, record(1024)),
        location(1, 4096 + 1536 + 2 * gap + 8, record(512)),
        location(2, 4096, record(512)),
        location(1, far, record(512)),
    ]);
    let together = 1536 + gap as usize;
    let expected = [
        span(1, 4096, together, &[1, 0]),
        span(1, 4096 + 1536 + 2 * gap + 8, 512, &[2]),
        span(1, far, 512, &[4]),
        span(2, 4096, 512, &[3]),
    ];
    assert_eq!(planned, expected);
    // Five of 256 KiB do not fit into 1 MiB.
    let large = u64::from(256u32 << 10);
    let planned =
        plan_spans(&[0, 1, 2, 3, 4].map(|n| location(1, 4096 + n * large, record(256 << 10))));
    assert_eq!(
        planned,
        [
            span(1, 4096, 1 << 20, &[0, 1, 2, 3]),
            span(1, 4096 + 4 * large, 256 << 10, &[4])
        ]
    );
}
