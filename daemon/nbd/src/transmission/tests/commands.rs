//! The answer to each request.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use super::*;

#[tokio::test(start_paused = true)]
async fn simple_replies_carry_all_bytes() {
    let mut test = serve(sparse(), Terms::default());
    test.client.request(READ, 0, 11, 1, 3 * 65536 - 2).await;
    assert_eq!(
        test.client.message().await,
        Received::Simple {
            error: 0,
            cookie: 11
        }
    );
    let data = test.client.receive(3 * 65536 - 2).await;
    assert_eq!(data, test.export.data()[1..3 * 65536 - 1]);
    for (command, flags, error) in [
        (READ, DF, EINVAL),
        (BLOCK_STATUS, 0, EINVAL),
        (TRIM, 0, EPERM),
    ] {
        test.client.request(command, flags, 12, 0, 1).await;
        assert_eq!(
            test.client.message().await,
            Received::Simple { error, cookie: 12 }
        );
    }
    test.client.request(CACHE, 0, 13, 0, 100).await;
    assert_eq!(
        test.client.message().await,
        Received::Simple {
            error: 0,
            cookie: 13
        }
    );
    test.client.request(DISCONNECT, 0, 0, 0, 0).await;
    assert_eq!(test.outcome.await.unwrap().unwrap(), End::Disconnected);
}

#[tokio::test(start_paused = true)]
async fn structured_replies_tell_holes_that_are_worth_it() {
    let mut test = serve(sparse(), structured());
    test.client
        .request(READ, 0, 1, 4096, 3 * 65536 - 8192)
        .await;
    let chunk = content(test.client.message().await, 1);
    assert_eq!(chunk, (false, OFFSET_DATA, 4096, vec![7; 65536 - 4096]));
    let chunk = content(test.client.message().await, 1);
    assert_eq!(chunk, (false, OFFSET_HOLE, 65536, vec![0, 1, 0, 0]));
    let chunk = content(test.client.message().await, 1);
    assert_eq!(chunk, (true, OFFSET_DATA, 131_072, vec![9; 65536 - 4096]));
    // A read that is nothing but hole, however short.
    test.client.request(READ, 0, 2, 65536, 1).await;
    let chunk = content(test.client.message().await, 2);
    assert_eq!(chunk, (true, OFFSET_HOLE, 65536, vec![0, 0, 0, 1]));
    // The same, but it must be data.
    test.client.request(READ, DF, 3, 65536, 2).await;
    let chunk = content(test.client.message().await, 3);
    assert_eq!(chunk, (true, OFFSET_DATA, 65536, vec![0, 0]));
}

#[tokio::test(start_paused = true)]
async fn short_holes_and_unfragmented_reads_are_one_chunk() {
    let mut test = serve(small(), structured());
    test.client.request(READ, 0, 1, 0, 6 * 4096).await;
    let chunk = content(test.client.message().await, 1);
    assert_eq!(chunk, (true, OFFSET_DATA, 0, test.export.data().to_vec()));

    let mut test = serve(sparse(), structured());
    test.client.request(READ, DF, 1, 0, 3 * 65536).await;
    let chunk = content(test.client.message().await, 1);
    assert_eq!(chunk, (true, OFFSET_DATA, 0, test.export.data().to_vec()));
}

#[tokio::test(start_paused = true)]
async fn empty_requests_are_done_at_once() {
    let mut test = serve(small(), structured());
    for (command, offset) in [(READ, 0), (READ, 6 * 4096), (CACHE, 5)] {
        test.client.request(command, 0, 9, offset, 0).await;
        assert_eq!(test.client.message().await, done(9));
    }
    assert_eq!(test.export.started(), 0);
}

#[tokio::test(start_paused = true)]
async fn cache_prefetches() {
    let mut test = serve(small(), structured());
    test.client.request(CACHE, 0, 9, 4096, 8192).await;
    assert_eq!(test.client.message().await, done(9));
    assert_eq!(
        test.export
            .prefetched
            .load(std::sync::atomic::Ordering::SeqCst),
        8192
    );
}

#[tokio::test(start_paused = true)]
async fn requests_that_cannot_be_right_are_told_so_and_the_connection_goes_on() {
    let mut test = serve(small(), structured());
    let size = 6 * 4096;
    for (command, flags, offset, length, error) in [
        // Out of range.
        (READ, 0, size, 1, EINVAL),
        (READ, 0, size - 1, 2, EINVAL),
        (READ, 0, u64::MAX, 2, EINVAL),
        (CACHE, 0, size, 1, EINVAL),
        (BLOCK_STATUS, 0, size - 1, 2, EINVAL),
        (BLOCK_STATUS, 0, 0, 0, EINVAL),
        // Flags that do not belong there.
        (READ, FUA, 0, 1, EINVAL),
        (READ, REQ_ONE, 0, 1, EINVAL),
        (READ, 0x8000, 0, 1, EINVAL),
        (CACHE, DF, 0, 1, EINVAL),
        (BLOCK_STATUS, DF, 0, 1, EINVAL),
        // Commands that are unknown, or not for a read-only export.
        (8, 0, 0, 1, EINVAL),
        (0xffff, 0xffff, u64::MAX, u32::MAX, EINVAL),
        (FLUSH, 0, 0, 0, EINVAL),
        (TRIM, 0, 0, 4096, EPERM),
        (WRITE_ZEROES, 0, 0, 4096, EPERM),
        (WRITE_ZEROES, FUA, 0, u32::MAX, EPERM),
    ] {
        test.client
            .request(command, flags, 77, offset, length)
            .await;
        let (kind, cookie, code, message) = test.client.error().await;
        let what = format!("command {command} flags {flags} at {offset}+{length}: {message}");
        assert_eq!((kind, cookie, code), (ERROR, 77, error), "{what}");
        assert!(!message.is_empty());
    }
    test.client.request(READ, 0, 78, 0, 1).await;
    assert_eq!(content(test.client.message().await, 78).3, [1]);
}

#[tokio::test(start_paused = true)]
async fn reads_over_the_maximum_are_refused() {
    let export = MemoryExport::new("snapshot/big", &vec![0; 9000]);
    let mut test = serve(export, structured());
    let too_long = MAX_REQUEST_BYTES + 1;
    for (command, flags, error) in [(READ, 0, EINVAL), (READ, DF, EOVERFLOW), (CACHE, 0, EINVAL)] {
        test.client.request(command, flags, 1, 0, too_long).await;
        assert_eq!(test.client.error().await.2, error);
    }
    test.client.request(READ, 0, 2, 0, MAX_REQUEST_BYTES).await;
    let (done, kind, ..) = content(test.client.message().await, 2);
    assert!(done && kind == OFFSET_HOLE);
    test.client.request(BLOCK_STATUS, 0, 3, 0, too_long).await;
    assert_eq!(extents(test.client.message().await), [(too_long, 3)]);
}

#[tokio::test(start_paused = true)]
async fn writes_are_refused_with_their_payload_read_past() {
    let mut test = serve(small(), structured());
    // Longer than any buffer on the way, and full of what looks like requests.
    let payload = request_bytes(READ, 0, 666, 0, 1).repeat(10_000);
    let length = u32::try_from(payload.len()).unwrap();
    test.client.request(WRITE, FUA, 5, 0, length).await;
    test.client.send(&payload).await;
    test.client.request(READ, 0, 6, 0, 1).await;
    let (kind, cookie, error, message) = test.client.error().await;
    assert_eq!((kind, cookie, error), (ERROR, 5, EPERM));
    assert!(message.contains("read-only"));
    assert_eq!(content(test.client.message().await, 6).3, [1]);
    test.client.request(WRITE, 0, 7, 0, 0).await;
    assert_eq!(test.client.error().await.2, EPERM);
}

#[tokio::test(start_paused = true)]
async fn block_status_merges_and_limits() {
    let mut test = serve(small(), structured());
    for (flags, offset, length, wanted) in [
        (
            0,
            0,
            6 * 4096,
            &[(4096, 0), (8192, 3), (8192, 0), (4096, 3)][..],
        ),
        (0, 100, 5000, &[(3996, 0), (1004, 3)]),
        (REQ_ONE, 0, 6 * 4096, &[(4096, 0)]),
        (REQ_ONE, 4096, 100, &[(100, 3)]),
    ] {
        test.client
            .request(BLOCK_STATUS, flags, 1, offset, length)
            .await;
        assert_eq!(extents(test.client.message().await), wanted);
    }
}

#[tokio::test(start_paused = true)]
async fn block_status_goes_on_over_windows_and_stops_at_the_limit() {
    use crate::limits::{EXTENT_WINDOW_BYTES, MAX_EXTENTS};
    let window_blocks = usize::try_from(EXTENT_WINDOW_BYTES).unwrap() / 4096;
    let hole = MemoryExport::new("snapshot/hole", &vec![0; 2 * window_blocks + 1]);
    let length = u32::try_from(hole.info.size_bytes).unwrap();
    let mut test = serve(hole, structured());
    test.client.request(BLOCK_STATUS, 0, 1, 0, length).await;
    assert_eq!(extents(test.client.message().await), [(length, 3)]);

    let striped = MemoryExport::new("snapshot/striped", &[1, 0].repeat(MAX_EXTENTS as usize));
    let length = u32::try_from(striped.info.size_bytes).unwrap();
    let mut test = serve(striped, structured());
    test.client.request(BLOCK_STATUS, 0, 1, 0, length).await;
    let extents = extents(test.client.message().await);
    assert_eq!(extents.len(), MAX_EXTENTS as usize);
    assert!(extents.iter().all(|&(length, _)| length == 4096));
}

#[tokio::test(start_paused = true)]
async fn block_status_tells_what_changed_since_a_snapshot_beside_what_is_there() {
    let mut export = small();
    let mut before = export.data().to_vec();
    before[4096 + 5] = 9;
    before[4 * 4096..].fill(7);
    export.ancestors.insert("monday".to_owned(), before);
    let mut export = Arc::new(export);
    assert_eq!(
        export.choose_references(&["none", "monday"]).await.unwrap(),
        [false, true]
    );
    let terms = Terms {
        framing: Framing::Structured,
        contexts: vec![
            MetaContext::BaseAllocation,
            MetaContext::DirtySince {
                reference: 0,
                snapshot: "monday".to_owned(),
            },
        ],
    };
    let mut test = serve(Arc::into_inner(export).unwrap(), terms);
    test.client.request(BLOCK_STATUS, 0, 1, 0, 6 * 4096).await;
    let allocation = test.client.message().await;
    assert!(matches!(allocation, Received::Chunk { done: false, .. }));
    let Received::Chunk {
        done: true,
        payload,
        ..
    } = test.client.message().await
    else {
        panic!("not the last chunk");
    };
    let words: Vec<_> = payload
        .chunks(4)
        .map(|word| u32::from_be_bytes(word.try_into().unwrap()))
        .collect();
    assert_eq!(words, [2, 4096, 0, 4096, 1, 2 * 4096, 0, 2 * 4096, 1]);
}

#[tokio::test(start_paused = true)]
async fn block_status_needs_a_context() {
    let terms = Terms {
        framing: Framing::Structured,
        contexts: Vec::new(),
    };
    let mut test = serve(small(), terms);
    test.client.request(BLOCK_STATUS, 0, 1, 0, 4096).await;
    assert_eq!(test.client.error().await.2, EINVAL);
}

#[tokio::test(start_paused = true)]
async fn damage_is_an_error_with_offset_and_message_and_other_ranges_go_on() {
    let mut export = small();
    export.damaged_at = Some(3 * 4096);
    let mut test = serve(export, structured());
    test.client.request(READ, 0, 1, 0, 6 * 4096).await;
    let Received::Chunk { payload, .. } = test.client.message().await else {
        panic!("not a chunk");
    };
    assert_eq!(payload[payload.len() - 8..], (3 * 4096_u64).to_be_bytes());
    test.client.request(READ, 0, 2, 2 * 4096, 2 * 4096).await;
    let (kind, cookie, error, message) = test.client.error().await;
    assert_eq!((kind, cookie, error), (ERROR_OFFSET, 2, EIO));
    assert_eq!(message, "chunk c0ffee is damaged");
    test.client.request(READ, 0, 3, 0, 4096).await;
    assert_eq!(content(test.client.message().await, 3).3, [1; 4096]);

    let mut export = small();
    export.damaged_at = Some(0);
    let mut test = serve(export, Terms::default());
    test.client.request(READ, 0, 1, 0, 1).await;
    let error = Received::Simple {
        error: EIO,
        cookie: 1,
    };
    assert_eq!(test.client.message().await, error);
}
