//! Writes: torn payloads, order, bounds and endings.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::collections::HashSet;

use super::*;

async fn cookies(client: &mut Client<DuplexStream>, count: usize) -> HashSet<u64> {
    let mut cookies = HashSet::new();
    for _ in 0..count {
        let Received::Chunk {
            kind: 0, cookie, ..
        } = client.message().await
        else {
            panic!("not a success");
        };
        cookies.insert(cookie);
    }
    cookies
}

#[tokio::test(start_paused = true)]
async fn a_request_may_be_torn_anywhere() {
    let mut stream = write_bytes(FUA, 1, 10, b"first payload");
    stream.extend(write_bytes(0, 2, 8000, &[4; 300]));
    stream.extend(request_bytes(WRITE_ZEROES, 0, 3, 8100, 10));
    stream.extend(write_bytes(NO_HOLE, 4, 0, b"refused"));
    for at in 0..=stream.len() {
        let mut test = serve(writable(), structured());
        let (early, late) = stream.split_at(at);
        test.client.send(early).await;
        settle().await;
        let started = test.export.all_changes().len();
        let complete = [41, 41 + 328, 41 + 328 + 28]
            .iter()
            .filter(|&&end| end <= at);
        assert_eq!(started, complete.count(), "torn at {at}");
        test.client.send(late).await;
        for cookie in 1..=3 {
            assert_eq!(test.client.message().await, done(cookie), "torn at {at}");
        }
        assert_eq!(test.client.error().await.1, 4);
        assert_eq!(
            test.export.all_changes()[..2],
            [
                write(10, b"first payload", true),
                write(8000, &[4; 300], false)
            ]
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_payload_may_come_in_single_bytes() {
    let mut test = serve(writable(), structured());
    let payload: Vec<u8> = (0..=255).collect();
    for byte in write_bytes(0, 1, 4000, &payload) {
        test.client.send(&[byte]).await;
        settle().await;
    }
    assert_eq!(test.client.message().await, done(1));
    assert_eq!(test.export.all_changes(), [write(4000, &payload, false)]);
}

#[tokio::test(start_paused = true)]
async fn payloads_of_any_length_arrive_as_they_were_sent() {
    // Around the sizes at which they are read in another way.
    let lengths = [1, 4095, 4096, 8164, 8165, 8192, 32767, 32768, 65508, 65536];
    let export = MemoryExport::writable("volume/medium", &[0; 64]);
    let mut test = serve(export, structured());
    let mut wanted = Vec::new();
    let mut stream = Vec::new();
    for round in 0..4_u8 {
        for (i, &length) in lengths.iter().enumerate() {
            let payload: Vec<u8> = (0..length).map(|at| (at % 251) as u8 ^ round).collect();
            let at = wanted.len() as u64;
            stream.extend(write_bytes(0, at, i as u64 * 7, &payload));
            wanted.push(write(i as u64 * 7, &payload, false));
        }
    }
    test.client.send(&stream).await;
    assert_eq!(cookies(&mut test.client, wanted.len()).await.len(), 40);
    assert_eq!(test.export.all_changes(), wanted);
}

#[tokio::test(start_paused = true)]
async fn many_writes_are_in_flight_and_start_in_order() {
    let mut export = MemoryExport::writable("volume/medium", &[0; 256]);
    export.held_below = u64::MAX;
    let mut test = serve_with(export, structured(), Budget::new(), 8 << 20);
    let count = 2 * MAX_REQUESTS_IN_FLIGHT as u64;
    let payload = |cookie: u64| vec![u8::try_from(cookie % 250).unwrap() + 1; 4096];
    let requests = (0..count).map(|cookie| write_bytes(0, cookie, cookie * 4096, &payload(cookie)));
    test.client
        .send(&requests.collect::<Vec<_>>().concat())
        .await;
    until(|| test.export.all_changes().len() == MAX_REQUESTS_IN_FLIGHT).await;
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert_eq!(test.export.all_changes().len(), MAX_REQUESTS_IN_FLIGHT);
    test.export.let_go();
    let cookies = cookies(&mut test.client, 2 * MAX_REQUESTS_IN_FLIGHT).await;
    assert_eq!(cookies.len(), 2 * MAX_REQUESTS_IN_FLIGHT);
    let wanted: Vec<_> = (0..count)
        .map(|cookie| write(cookie * 4096, &payload(cookie), false))
        .collect();
    assert_eq!(test.export.all_changes(), wanted);
    assert_eq!(
        test.export.data()[..],
        (0..count).flat_map(payload).collect::<Vec<_>>()
    );
}

#[tokio::test(start_paused = true)]
async fn reads_overtake_writes_that_take_longer() {
    let mut export = writable();
    export.held_below = 4096;
    let mut test = serve(export, structured());
    test.client.send(&write_bytes(0, 1, 0, b"slow")).await;
    test.client.request(READ, 0, 2, 3 * 4096, 10).await;
    assert_eq!(content(test.client.message().await, 2).3, [2; 10]);
    test.client.request(DISCONNECT, 0, 0, 0, 0).await;
    test.export.let_go();
    assert_eq!(test.client.message().await, done(1));
    assert_eq!(test.outcome.await.unwrap().unwrap(), End::Disconnected);
    assert_eq!(test.export.data()[..4], *b"slow");
}

#[tokio::test(start_paused = true)]
async fn a_write_is_charged_before_its_payload_is_read() {
    let mut test = serve_with(writable(), structured(), Budget::new(), 1000);
    test.client.request(WRITE, 0, 1, 0, 10_000).await;
    let charged = ALL_BYTES - u64::from(charge_bytes(10_000));
    until(|| test.budget.available_bytes() == charged).await;
    test.client.send(&[6; 10_000]).await;
    assert_eq!(test.client.message().await, done(1));
    until(|| test.budget.available_bytes() == ALL_BYTES).await;
}

// On a clock of its own: the first writer must not count as stalled because the machine is busy.
#[tokio::test(start_paused = true)]
async fn a_write_waits_for_memory_without_its_payload_being_read() {
    let length = 1 << 20;
    let budget = small_budget(length);
    let big = || MemoryExport::writable("volume/medium", &[0; 256]);
    let mut first = serve_with(big(), structured(), Arc::clone(&budget), 64 << 10);
    first.client.request(WRITE, 0, 1, 0, length).await;
    until(|| budget.available_bytes() == 1000).await;
    let second = serve_with(big(), structured(), Arc::clone(&budget), 64 << 10);
    let (second_export, mut client) = (second.export, second.client);
    let payload = vec![9; length as usize];
    let sent = tokio::spawn(async move {
        client.send(&write_bytes(0, 2, 0, &payload)).await;
        client
    });
    // The pipe and the inbox do not hold it all.
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!sent.is_finished());
    first.client.send(&vec![8; length as usize]).await;
    assert_eq!(first.client.message().await, done(1));
    let mut client = sent.await.unwrap();
    assert_eq!(client.message().await, done(2));
    assert!(second_export.data().iter().all(|&byte| byte == 9));
}

#[tokio::test(start_paused = true)]
async fn a_writer_that_sends_no_payload_gives_way_to_one_that_waits_for_memory() {
    let length = 4 << 20;
    // None of it, part of it, and now and then a little more of it.
    for (at_once, trickle) in [(0, false), (100_000, false), (50, true)] {
        let budget = small_budget(length);
        let big = || MemoryExport::writable("volume/big", &[5; 1024]);
        let mut stuck = serve_with(big(), structured(), Arc::clone(&budget), 1 << 20);
        stuck.client.request(WRITE, 0, 1, 0, length).await;
        stuck.client.send(&vec![1; at_once]).await;
        until(|| budget.available_bytes() == 1000).await;
        // Nobody waits for the memory, so it may take its time.
        tokio::time::sleep(Duration::from_millis(120)).await;
        assert!(!stuck.outcome.is_finished());

        let mut waiting = serve_with(big(), structured(), Arc::clone(&budget), 8 << 20);
        let payload = vec![7; length as usize];
        waiting.client.send(&write_bytes(0, 2, 0, &payload)).await;
        while trickle && !stuck.outcome.is_finished() {
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stuck.client.0, &[1]).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(waiting.client.message().await, done(2));
        let error = stuck.outcome.await.unwrap().unwrap_err();
        assert!(
            matches!(error, TransmissionError::PayloadStalled { .. }),
            "{error}"
        );
        assert!(stuck.export.all_changes().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn memory_comes_back_when_a_payload_never_comes() {
    let budget = Budget::new();
    for stop in [true, false] {
        let mut test = serve_with(writable(), structured(), Arc::clone(&budget), 1 << 20);
        test.client.request(WRITE, 0, 1, 0, 10_000).await;
        test.client.send(&[0; 9999]).await;
        until(|| budget.available_bytes() < ALL_BYTES).await;
        let outcome = if stop {
            test.stop.cancel();
            test.outcome.await.unwrap()
        } else {
            drop(test.client);
            test.outcome.await.unwrap()
        };
        match outcome {
            Ok(end) => assert!(stop && end == End::Stopped),
            Err(error) => assert!(!stop && matches!(error, TransmissionError::TornRequest)),
        }
        assert_eq!(budget.available_bytes(), ALL_BYTES);
        assert!(test.export.all_changes().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_finishes_writes_that_run_and_drops_the_torn_one() {
    let mut export = writable();
    export.held_below = u64::MAX;
    let mut test = serve(export, structured());
    for cookie in 0..3 {
        let offset = cookie * 100;
        test.client
            .send(&write_bytes(0, cookie, offset, &[0x11; 50]))
            .await;
    }
    test.client.request(WRITE, 0, 3, 300, 1000).await;
    test.client.send(&[0x22; 999]).await;
    until(|| test.export.all_changes().len() == 3).await;
    settle().await;
    test.stop.cancel();
    settle().await;
    // Too late: it is not read any more.
    test.client.send(&[0x22]).await;
    test.export.let_go();
    assert_eq!(cookies(&mut test.client, 3).await, HashSet::from([0, 1, 2]));
    assert!(test.client.is_closed().await);
    assert_eq!(test.outcome.await.unwrap().unwrap(), End::Stopped);
    assert_eq!(test.export.all_changes().len(), 3);
    assert!(!test.export.data().contains(&0x22));
}

#[tokio::test(start_paused = true)]
async fn a_stop_answers_no_writes_that_wait_for_their_turn() {
    let mut export = writable();
    export.held_below = u64::MAX;
    let mut test = serve(export, structured());
    let last = MAX_REQUESTS_IN_FLIGHT as u64;
    let requests = (0..=last).map(|cookie| write_bytes(0, cookie, 0, &[9; 8]));
    let mut stream = requests.collect::<Vec<_>>().concat();
    stream.extend(request_bytes(FLUSH, 0, last + 1, 0, 0));
    stream.extend(&write_bytes(0, last + 2, 0, &[9; 8])[..30]);
    test.client.send(&stream).await;
    until(|| test.export.all_changes().len() == MAX_REQUESTS_IN_FLIGHT).await;
    test.stop.cancel();
    test.export.let_go();
    let answered = cookies(&mut test.client, MAX_REQUESTS_IN_FLIGHT).await;
    assert!(!answered.contains(&last) && !answered.contains(&(last + 1)));
    assert!(test.client.is_closed().await);
    assert_eq!(test.outcome.await.unwrap().unwrap(), End::Stopped);
    assert_eq!(test.export.all_changes().len(), MAX_REQUESTS_IN_FLIGHT);
}

#[tokio::test(start_paused = true)]
async fn a_writer_that_goes_away_at_any_byte_leaves_whole_writes_only() {
    let mut stream = write_bytes(0, 1, 0, &[0x11; 20]);
    stream.extend(write_bytes(0, 2, 100, &[0x22; 30]));
    for length in 0..=stream.len() {
        let mut test = serve(writable(), structured());
        test.client.send(&stream[..length]).await;
        drop(test.client);
        let _ = test.outcome.await.unwrap();
        let wanted = [write(0, &[0x11; 20], false), write(100, &[0x22; 30], false)];
        let count = usize::from(length >= 48) + usize::from(length >= 106);
        assert_eq!(test.export.all_changes(), wanted[..count], "{length}");
        assert_eq!(test.budget.available_bytes(), ALL_BYTES);
    }
}
