//! The same with extended headers.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use super::*;

const NONE: u16 = 0;
const STATUS_EXT: u16 = 6;

fn extended() -> Terms {
    Terms {
        framing: Framing::Extended,
        ..structured()
    }
}

/// With a context more: what changed since a snapshot when all was as in the first export.
fn with_changes(export: &mut MemoryExport, before: Vec<u8>) -> Terms {
    export.ancestors.insert("before".to_owned(), before);
    export.choose("before");
    let mut terms = extended();
    terms.contexts.push(MetaContext::DirtySince {
        reference: 0,
        snapshot: "before".to_owned(),
    });
    terms
}

impl Fixture {
    async fn ask(&mut self, command: u16, flags: u16, cookie: u64, offset: u64, length: u64) {
        let request = extended_request_bytes(command, flags, cookie, offset, length);
        self.client.send(&request).await;
    }

    /// The next message, of a reply that has no more: its kind and payload.
    async fn answer(&mut self, wanted_cookie: u64, wanted_offset: u64) -> (u16, Vec<u8>) {
        match self.client.message().await {
            Received::Extended {
                done: true,
                kind,
                cookie,
                offset,
                payload,
            } => {
                assert_eq!((cookie, offset), (wanted_cookie, wanted_offset));
                (kind, payload)
            }
            other => panic!("{other:?} is not the end of an extended reply"),
        }
    }

    async fn refusal(&mut self, cookie: u64, offset: u64) -> u32 {
        let (kind, payload) = self.answer(cookie, offset).await;
        assert_eq!(kind, ERROR);
        payload.as_slice().get_u32()
    }
}

/// A context's id and its extents.
fn extents(payload: &[u8]) -> (u32, Vec<(u64, u64)>) {
    let mut payload = payload;
    let (id, count) = (payload.get_u32(), payload.get_u32());
    let extents = (0..count).map(|_| (payload.get_u64(), payload.get_u64()));
    let extents = extents.collect();
    assert!(payload.is_empty(), "the count is that of the extents");
    (id, extents)
}

#[tokio::test(start_paused = true)]
async fn everything_is_answered_in_extended_messages() {
    let mut test = serve(writable(), extended());
    let data = vec![7; 5000];
    test.ask(WRITE, PAYLOAD_LEN, 1, 100, 5000).await;
    test.client.send(&data).await;
    assert_eq!(test.answer(1, 100).await, (NONE, vec![]));
    assert_eq!(test.export.data()[100..5100], data);

    test.ask(READ, DF, 2, 98, 6).await;
    let (kind, payload) = test.answer(2, 98).await;
    assert_eq!(kind, OFFSET_DATA);
    assert_eq!(payload[..8], 98_u64.to_be_bytes());
    assert_eq!(payload[8..], test.export.data()[98..104]);

    test.ask(WRITE_ZEROES, FUA, 3, 4096, 4096).await;
    assert_eq!(test.answer(3, 4096).await, (NONE, vec![]));
    test.ask(READ, 0, 4, 4096, 4096).await;
    let (kind, payload) = test.answer(4, 4096).await;
    assert_eq!(kind, OFFSET_HOLE);
    assert_eq!(payload[..8], 4096_u64.to_be_bytes());

    for (command, flags) in [(TRIM, 0), (CACHE, 0)] {
        test.ask(command, flags, 5, 8192, 4096).await;
        assert_eq!(test.answer(5, 8192).await, (NONE, vec![]));
    }
    test.ask(FLUSH, 0, 6, 0, 0).await;
    assert_eq!(test.answer(6, 0).await, (NONE, vec![]));
    test.ask(99, 0, 7, 12, 0).await;
    assert_eq!(test.refusal(7, 12).await, EINVAL);
    test.ask(READ, 0, 8, u64::MAX, u64::MAX).await;
    assert_eq!(test.refusal(8, u64::MAX).await, EINVAL);

    test.ask(DISCONNECT, 0, 9, 0, 0).await;
    assert_eq!(test.outcome.await.unwrap().unwrap(), End::Disconnected);
}

/// As QEMU sends it, though the protocol wants the flag.
#[tokio::test(start_paused = true)]
async fn a_write_has_a_payload_whatever_its_flags() {
    let mut test = serve(writable(), extended());
    test.ask(WRITE, 0, 1, 4096, 4096).await;
    test.client.send(&[7; 4096]).await;
    assert_eq!(test.answer(1, 4096).await, (NONE, vec![]));
    assert_eq!(test.export.data()[4096..8192], [7; 4096]);
}

#[tokio::test(start_paused = true)]
async fn lengths_beyond_32_bits_are_not_cut() {
    let mut test = serve(writable(), extended());
    let size = test.export.info.size_bytes;
    let wrapped = (1 << 32) + 4096;
    for (command, error) in [
        (TRIM, EINVAL),
        (WRITE_ZEROES, ENOSPC),
        (READ, EINVAL),
        (CACHE, EINVAL),
        (BLOCK_STATUS, EINVAL),
    ] {
        for length in [wrapped, size + 1, u64::MAX] {
            test.ask(command, 0, 1, 0, length).await;
            assert_eq!(test.refusal(1, 0).await, error, "{command} of {length}");
        }
    }
    assert!(test.export.all_changes().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_status_can_be_asked_for_of_some_contexts() {
    let mut export = MemoryExport::new("snapshot/a", &[1, 0, 2, 2]);
    let before = MemoryExport::new("snapshot/b", &[1, 0, 2, 3]).data();
    let terms = with_changes(&mut export, before.to_vec());
    let [allocation, dirty] = &terms.contexts[..] else {
        panic!("there are two")
    };
    let (allocation, dirty) = (allocation.id(), dirty.id());
    let mut test = serve(export, terms);

    test.ask(BLOCK_STATUS, 0, 1, 0, 16384).await;
    let Received::Extended {
        done: false,
        kind: STATUS_EXT,
        payload,
        ..
    } = test.client.message().await
    else {
        panic!("the first of two contexts")
    };
    let holes = vec![(4096, 0), (4096, 3), (8192, 0)];
    assert_eq!(extents(&payload), (allocation, holes.clone()));
    let (kind, payload) = test.answer(1, 0).await;
    assert_eq!(kind, STATUS_EXT);
    let changes = vec![(12288, 0), (4096, 1)];
    assert_eq!(extents(&payload), (dirty, changes.clone()));

    let query = |length: u64, contexts: &[u32]| {
        let mut payload = length.to_be_bytes().to_vec();
        contexts
            .iter()
            .for_each(|id| payload.extend_from_slice(&id.to_be_bytes()));
        payload
    };
    for (id, extents_of) in [(allocation, &holes), (dirty, &changes)] {
        let payload = query(16384, &[id]);
        test.ask(BLOCK_STATUS, PAYLOAD_LEN, 2, 0, 12).await;
        test.client.send(&payload).await;
        let (kind, payload) = test.answer(2, 0).await;
        assert_eq!(kind, STATUS_EXT);
        assert_eq!(extents(&payload), (id, extents_of.clone()));
    }
    test.ask(BLOCK_STATUS, PAYLOAD_LEN | REQ_ONE, 3, 4096, 12)
        .await;
    test.client.send(&query(8192, &[allocation])).await;
    let (_, payload) = test.answer(3, 4096).await;
    assert_eq!(extents(&payload).1, [(4096, 3)]);

    // A wrong request is refused and skipped: the connection continues.
    for payload in [
        query(16385, &[dirty]),
        query(0, &[dirty]),
        query(u64::MAX, &[dirty]),
        query(4096, &[dirty, dirty]),
        query(4096, &[99]),
        query(4096, &[allocation, dirty, 99]),
        query(4096, &[1; 3000]),
        vec![0; 7],
        vec![0; 9],
        vec![],
    ] {
        let length = payload.len() as u64;
        test.ask(BLOCK_STATUS, PAYLOAD_LEN, 4, 0, length).await;
        test.client.send(&payload).await;
        assert_eq!(test.refusal(4, 0).await, EINVAL, "{payload:02x?}");
    }
    test.ask(BLOCK_STATUS, 0, 5, 0, 4096).await;
    assert!(matches!(
        test.client.message().await,
        Received::Extended { cookie: 5, .. }
    ));
}

#[tokio::test(start_paused = true)]
async fn payloads_that_nobody_asked_for_are_passed_over() {
    let mut test = serve(writable(), extended());
    for command in [READ, FLUSH, TRIM, CACHE, WRITE_ZEROES, 99] {
        test.ask(command, PAYLOAD_LEN, 1, 0, 70_000).await;
        test.client.send(&vec![0x55; 70_000]).await;
        assert_eq!(test.refusal(1, 0).await, EINVAL, "{command}");
    }
    assert!(test.export.all_changes().is_empty());
    test.ask(READ, 0, 2, 0, 1).await;
    assert_eq!(test.answer(2, 0).await.0, OFFSET_DATA);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_told_from_requests_ends_the_connection() {
    let mut test = serve(writable(), extended());
    let much = u64::from(MAX_REQUEST_BYTES) + 1;
    test.ask(WRITE, PAYLOAD_LEN, 1, 0, much).await;
    let ended = test.outcome.await.unwrap();
    assert!(matches!(
        ended,
        Err(TransmissionError::PayloadTooLong { length_bytes }) if length_bytes == much
    ));

    let mut test = serve(writable(), extended());
    test.client.request(READ, 0, 1, 0, 1).await;
    test.client.send(&[0; 4]).await;
    let ended = test.outcome.await.unwrap();
    assert!(matches!(ended, Err(TransmissionError::Wire(_))));
}
