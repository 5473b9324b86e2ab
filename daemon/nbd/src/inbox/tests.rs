#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

use std::future::poll_fn;

use super::*;
use crate::limits::PINNED_BYTES;

async fn fill(inbox: &mut Inbox, stream: &mut &[u8]) -> usize {
    poll_fn(|cx| inbox.poll_fill(stream, cx)).await.unwrap()
}

#[tokio::test]
async fn an_inbox_is_small_until_that_is_too_little() {
    let bytes: Vec<u8> = (0..200_000_u32).map(|at| (at % 251) as u8).collect();
    let (mut inbox, mut stream) = (Inbox::new(), bytes.as_slice());
    let mut slices = Vec::new();
    let mut counts = Vec::new();
    while !stream.is_empty() {
        counts.push(fill(&mut inbox, &mut stream).await);
        slices.push(inbox.take_slice(inbox.unread().len()).unwrap());
    }
    assert_eq!(
        counts[..3],
        [INBOX_BYTES, READ_AHEAD_BYTES, READ_AHEAD_BYTES]
    );
    assert_eq!(slices.concat(), bytes);

    assert!(inbox.allocated_bytes > INBOX_BYTES);
    inbox.rest();
    assert_eq!(inbox.allocated_bytes, 0);
    assert_eq!(
        fill(&mut inbox, &mut [7; 100_000].as_slice()).await,
        INBOX_BYTES
    );
}

#[tokio::test]
async fn one_write_at_a_time_needs_no_second_buffer() {
    let mut inbox = Inbox::new();
    let mut place = None;
    for _ in 0..10 {
        assert_eq!(fill(&mut inbox, &mut [7; 28 + 4096].as_slice()).await, 4124);
        // The same as the last time: the payload is not in use any more.
        assert_eq!(
            *place.get_or_insert(inbox.unread().as_ptr()),
            inbox.unread().as_ptr()
        );
        inbox.consume(28);
        assert_eq!(inbox.take_slice(4096).unwrap(), [7; 4096][..]);
        assert!(inbox.unread().is_empty());
    }
    assert_eq!(inbox.allocated_bytes, INBOX_BYTES);
}

#[tokio::test]
async fn slices_stay_what_they_are_while_more_is_read() {
    let (mut inbox, mut slices) = (Inbox::new(), Vec::new());
    for round in 0..100_u8 {
        let message = [round; 3000];
        fill(&mut inbox, &mut message.as_slice()).await;
        // Leaves a torn head behind.
        let count = inbox.unread().len() - 20;
        slices.push((round, inbox.take_slice(count).unwrap()));
    }
    for (round, slice) in slices {
        assert!(
            slice[20.min(slice.len())..]
                .iter()
                .all(|&byte| byte == round)
        );
        assert!(slice.len() <= PINNED_BYTES as usize);
    }
}

#[tokio::test]
async fn long_payloads_end_the_reading_ahead() {
    for (length, next) in [
        (DIRECT_READ_BYTES - 1, READ_AHEAD_BYTES),
        (DIRECT_READ_BYTES, INBOX_BYTES),
    ] {
        let (mut inbox, bytes) = (Inbox::new(), vec![7; 1 << 20]);
        let mut stream = bytes.as_slice();
        fill(&mut inbox, &mut stream).await;
        assert_eq!(inbox.take_slice(length), None);
        let start = inbox.take_start(length);
        assert_eq!((start.len(), inbox.unread().len()), (INBOX_BYTES, 0));
        assert!(start.capacity() >= length);
        assert_eq!(fill(&mut inbox, &mut stream).await, next);

        // Not even into a large buffer that is there already.
        let _ = inbox.take_start(READ_AHEAD_BYTES);
        assert_eq!(fill(&mut inbox, &mut stream).await, INBOX_BYTES);
    }
}
