//! Requests that change an export: their answers, and the calls of the export.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use super::*;
use crate::export::ExportError;

#[tokio::test(start_paused = true)]
async fn what_was_written_is_read() {
    for terms in [structured(), Terms::default()] {
        let is_structured = terms.framing == Framing::Structured;
        let mut test = serve(writable(), terms);
        // Not aligned, over two blocks, into a hole; then once more over part of it.
        test.client.send(&write_bytes(0, 1, 8000, &[7; 5000])).await;
        let first = test.client.message().await;
        test.client.send(&write_bytes(FUA, 2, 8192, &[8])).await;
        let second = test.client.message().await;
        test.client.request(READ, 0, 3, 7999, 200).await;
        let mut wanted = vec![7; 200];
        wanted[0] = 0;
        wanted[193] = 8;
        if is_structured {
            assert_eq!((first, second), (done(1), done(2)));
            assert_eq!(content(test.client.message().await, 3).3, wanted);
        } else {
            let success = |cookie| Received::Simple { error: 0, cookie };
            assert_eq!((first, second), (success(1), success(2)));
            assert_eq!(test.client.message().await, success(3));
            assert_eq!(test.client.receive(200).await, wanted);
        }
        test.client.request(DISCONNECT, 0, 0, 0, 0).await;
        assert_eq!(test.outcome.await.unwrap().unwrap(), End::Disconnected);
    }
}

#[tokio::test(start_paused = true)]
async fn every_change_reaches_the_export_with_its_flags() {
    let mut test = serve(writable(), structured());
    for flags in [0, FUA] {
        let durable = flags == FUA;
        test.client.send(&write_bytes(flags, 9, 100, b"abc")).await;
        assert_eq!(test.client.message().await, done(9));
        assert_eq!(
            test.export.all_changes().pop().unwrap(),
            write(100, b"abc", durable)
        );
        for zeroes in [0, NO_HOLE, FAST_ZERO, NO_HOLE | FAST_ZERO] {
            let flags = flags | zeroes;
            test.client.request(WRITE_ZEROES, flags, 9, 5, 8000).await;
            assert_eq!(test.client.message().await, done(9));
            let wanted = Change::WriteZeroes {
                offset: 5,
                length_bytes: 8000,
                may_punch_hole: zeroes & NO_HOLE == 0,
                durable,
            };
            assert_eq!(test.export.all_changes().pop().unwrap(), wanted);
        }
        test.client.request(TRIM, flags, 9, 4096, 4096).await;
        assert_eq!(test.client.message().await, done(9));
        let wanted = Change::Trim {
            offset: 4096,
            length_bytes: 4096,
            durable,
        };
        assert_eq!(test.export.all_changes().pop().unwrap(), wanted);
        test.client.request(FLUSH, flags, 9, 0, 0).await;
        assert_eq!(test.client.message().await, done(9));
        assert_eq!(test.export.all_changes().pop().unwrap(), Change::Flush);
    }
    assert_eq!(test.export.all_changes().len(), 14);
}

#[tokio::test(start_paused = true)]
async fn fua_belongs_to_any_command_once_it_was_announced() {
    let mut test = serve(writable(), structured());
    test.client.request(READ, FUA | DF, 1, 0, 10).await;
    assert_eq!(content(test.client.message().await, 1).3, [1; 10]);
    test.client.request(CACHE, FUA, 2, 0, 10).await;
    assert_eq!(test.client.message().await, done(2));
    test.client
        .request(BLOCK_STATUS, FUA | REQ_ONE, 3, 0, 5000)
        .await;
    assert_eq!(extents(test.client.message().await), [(4096, 0)]);
    assert!(test.export.all_changes().is_empty());
}

#[tokio::test(start_paused = true)]
async fn changes_that_cannot_be_right_are_told_so_and_the_connection_goes_on() {
    let mut test = serve(writable(), structured());
    let size = 6 * 4096;
    for (command, flags, offset, length, error) in [
        // Out of range.
        (WRITE, 0, size, 1, ENOSPC),
        (WRITE, FUA, size - 1, 2, ENOSPC),
        (WRITE, 0, u64::MAX, 2, ENOSPC),
        (WRITE, 0, 0, 6 * 4096 + 1, ENOSPC),
        (WRITE, 0, size + 1, 0, ENOSPC),
        (WRITE_ZEROES, 0, size - 1, 2, ENOSPC),
        (WRITE_ZEROES, 0, 0, u32::MAX, ENOSPC),
        (WRITE_ZEROES, 0, u64::MAX, u32::MAX, ENOSPC),
        (TRIM, 0, size, 1, EINVAL),
        (TRIM, 0, 0, u32::MAX, EINVAL),
        (TRIM, 0, u64::MAX, 1, EINVAL),
        // Flags that do not belong there.
        (WRITE, NO_HOLE, 0, 1, EINVAL),
        (WRITE, DF, 0, 100, EINVAL),
        (WRITE, 0x8000, 0, 1, EINVAL),
        (WRITE, FAST_ZERO, 0, 1, EINVAL),
        (TRIM, FAST_ZERO, 0, 1, EINVAL),
        (WRITE_ZEROES, FUA | NO_HOLE | REQ_ONE, 0, 1, EINVAL),
        (TRIM, NO_HOLE, 0, 1, EINVAL),
        (FLUSH, DF, 0, 0, EINVAL),
        (READ, NO_HOLE, 0, 1, EINVAL),
        // A flush is of everything.
        (FLUSH, 0, 0, 1, EINVAL),
        (FLUSH, 0, 1, 0, EINVAL),
        (8, FUA, 0, 0, EINVAL),
    ] {
        test.client
            .request(command, flags, 77, offset, length)
            .await;
        if command == WRITE {
            test.client.send(&vec![0x25; length as usize]).await;
        }
        let (kind, cookie, code, message) = test.client.error().await;
        let what = format!("command {command} flags {flags} at {offset}+{length}: {message}");
        assert_eq!((kind, cookie, code), (ERROR, 77, error), "{what}");
    }
    assert!(test.export.all_changes().is_empty());
    test.client.send(&write_bytes(0, 78, 0, &[5])).await;
    assert_eq!(test.client.message().await, done(78));
}

#[tokio::test(start_paused = true)]
async fn what_the_export_says_becomes_the_protocols_error() {
    type Case = (fn() -> ExportError, u32, &'static str);
    let refusals: [Case; 5] = [
        (
            || ExportError::NoSpace {
                message: "the disk is full".to_owned(),
            },
            ENOSPC,
            "the disk is full",
        ),
        (|| ExportError::ReadOnly, EPERM, "read-only"),
        (
            || ExportError::Detached {
                message: "the volume was detached".to_owned(),
            },
            ESHUTDOWN,
            "the volume was detached",
        ),
        (
            || ExportError::Unavailable {
                message: "the disk failed".to_owned(),
            },
            EIO,
            "the disk failed",
        ),
        (|| ExportError::Stopping, ESHUTDOWN, "shutting down"),
    ];
    for (refuse, wanted_code, wanted_message) in refusals {
        let mut export = writable();
        export.refuse = Some(refuse);
        let mut test = serve(export, structured());
        for command in [WRITE, WRITE_ZEROES, TRIM, FLUSH] {
            let length = u32::from(command != FLUSH);
            test.client.request(command, 0, 4, 0, length).await;
            if command == WRITE {
                test.client.send(&[1]).await;
            }
            let (kind, cookie, code, message) = test.client.error().await;
            assert_eq!((kind, cookie, code), (ERROR, 4, wanted_code));
            assert!(message.contains(wanted_message), "{message}");
        }
        test.client.request(READ, 0, 5, 0, 1).await;
        assert_eq!(content(test.client.message().await, 5).3, [1]);
    }
}

#[tokio::test(start_paused = true)]
async fn empty_changes_are_done_at_once() {
    let mut test = serve(writable(), structured());
    for command in [WRITE, WRITE_ZEROES, TRIM] {
        for (flags, offset) in [(0, 0), (FUA, 6 * 4096)] {
            test.client.request(command, flags, 9, offset, 0).await;
            assert_eq!(test.client.message().await, done(9));
        }
    }
    assert!(test.export.all_changes().is_empty());
}

#[tokio::test(start_paused = true)]
async fn only_payloads_are_limited_in_length() {
    let export = MemoryExport::writable("volume/big", &vec![1; 9000]);
    let mut test = serve(export, structured());
    let too_long = MAX_REQUEST_BYTES + 1;
    for command in [WRITE_ZEROES, TRIM] {
        test.client.request(command, 0, 1, 0, too_long).await;
        assert_eq!(test.client.message().await, done(1));
    }
    let payload = vec![3; MAX_REQUEST_BYTES as usize];
    test.client.send(&write_bytes(0, 2, 1000, &payload)).await;
    assert_eq!(test.client.message().await, done(2));
    let data = test.export.data();
    assert_eq!(data[1000..][..payload.len()], payload);
    assert_eq!((data[999], data[1000 + payload.len()]), (0, 1));

    test.client.request(WRITE, 0, 3, 0, too_long).await;
    let error = test.outcome.await.unwrap().unwrap_err();
    assert!(matches!(error, TransmissionError::PayloadTooLong { .. }));
}
