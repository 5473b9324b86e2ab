//! Order, bounds and endings.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::collections::HashSet;

use super::*;

#[tokio::test(start_paused = true)]
async fn a_payload_that_nobody_would_send_ends_the_connection() {
    let mut test = serve(small(), structured());
    test.client
        .request(WRITE, 0, 5, 0, MAX_REQUEST_BYTES + 1)
        .await;
    let error = test.outcome.await.unwrap().unwrap_err();
    assert!(matches!(error, TransmissionError::PayloadTooLong { .. }));
}

#[tokio::test(start_paused = true)]
async fn replies_overtake_those_that_take_longer() {
    let mut export = small();
    export.held_below = 4096;
    let mut test = serve(export, structured());
    test.client.request(READ, 0, 1, 0, 10).await;
    test.client.request(READ, 0, 2, 5, 10).await;
    test.client.request(READ, 0, 3, 3 * 4096, 10).await;
    test.client.request(DISCONNECT, 0, 0, 0, 0).await;
    assert_eq!(content(test.client.message().await, 3).3, [2; 10]);
    test.export.let_go();
    // A disconnect waits for what was asked before it.
    let mut cookies = HashSet::new();
    for _ in 0..2 {
        let Received::Chunk { cookie, .. } = test.client.message().await else {
            panic!("not a chunk");
        };
        cookies.insert(cookie);
    }
    assert_eq!(cookies, HashSet::from([1, 2]));
    assert!(test.client.is_closed().await);
    assert_eq!(test.outcome.await.unwrap().unwrap(), End::Disconnected);
}

#[tokio::test(start_paused = true)]
async fn no_more_requests_are_accepted_than_the_limit() {
    let mut export = small();
    export.held_below = u64::MAX;
    let mut test = serve(export, structured());
    for cookie in 0..1000 {
        test.client.request(READ, 0, cookie, 0, 16).await;
    }
    until(|| test.export.started() == MAX_REQUESTS_IN_FLIGHT).await;
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert_eq!(test.export.started(), MAX_REQUESTS_IN_FLIGHT);
    test.export.let_go();
    let mut cookies = HashSet::new();
    for _ in 0..1000 {
        let Received::Chunk { cookie, .. } = test.client.message().await else {
            panic!("not a chunk");
        };
        cookies.insert(cookie);
    }
    assert_eq!(cookies.len(), 1000);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_no_replies_is_not_worked_for() {
    let export = MemoryExport::new("snapshot/full", &[5; 256]);
    let test = serve_with(export, structured(), Budget::new(), 64 << 10);
    let Fixture {
        client,
        export,
        outcome,
        ..
    } = test;
    let (mut from_server, mut to_server) = tokio::io::split(client.0);
    let requests = request_bytes(READ, 0, 1, 0, 1 << 20).repeat(100);
    tokio::io::AsyncWriteExt::write_all(&mut to_server, &requests)
        .await
        .unwrap();
    let worked_ahead = MAX_QUEUED_BYTES / (1 << 20) + 1;
    until(|| export.started() >= worked_ahead).await;
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert_eq!(
        export.started(),
        worked_ahead,
        "4 MiB are ready, and one is on the way"
    );
    // Nobody waits for the memory, so it may take its time.
    tokio::time::sleep(Duration::from_millis(150)).await;
    let mut all = vec![0; 100 * ((1 << 20) + 28)];
    tokio::io::AsyncReadExt::read_exact(&mut from_server, &mut all)
        .await
        .unwrap();
    assert_eq!(export.started(), 100);
    drop((from_server, to_server));
    assert!(outcome.await.unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_stalled_client_gives_way_to_one_that_waits_for_memory() {
    // Room for one request of this size, not for two.
    let length = 4 << 20;
    let budget = small_budget(length);
    let export = || MemoryExport::new("snapshot/full", &[5; 1024]);
    let mut stalled = serve_with(export(), structured(), Arc::clone(&budget), 1000);
    stalled.client.request(READ, 0, 0, 0, length).await;
    until(|| stalled.export.started() == 1).await;
    let mut waiting = serve_with(export(), structured(), Arc::clone(&budget), 64 << 20);
    for cookie in 0..2 {
        waiting.client.request(READ, 0, cookie, 0, length).await;
    }
    for cookie in 0..2 {
        let (done, ..) = content(waiting.client.message().await, cookie);
        assert!(done);
    }
    let error = stalled.outcome.await.unwrap().unwrap_err();
    assert!(matches!(error, TransmissionError::Stalled { .. }));
}

#[tokio::test(start_paused = true)]
async fn memory_comes_back_however_a_connection_ends() {
    let budget = Budget::new();
    for disconnect in [true, false] {
        let mut export = small();
        export.held_below = 1;
        let mut test = serve_with(export, structured(), Arc::clone(&budget), 1 << 20);
        test.client.request(READ, 0, 1, 0, 10).await;
        test.client.request(READ, 0, 2, 1, 10).await;
        test.client.message().await;
        assert!(test.budget.available_bytes() < ALL_BYTES);
        if disconnect {
            test.client.request(DISCONNECT, 0, 0, 0, 0).await;
            test.export.let_go();
        } else {
            test.client
                .send(b"no request at all, but long enough for one")
                .await;
        }
        let _ = test.outcome.await.unwrap();
        assert_eq!(budget.available_bytes(), ALL_BYTES);
    }
}

#[tokio::test(start_paused = true)]
async fn garbage_ends_the_connection() {
    let mut test = serve(small(), structured());
    test.client.send(&[0x55; 28]).await;
    let error = test.outcome.await.unwrap().unwrap_err();
    assert!(matches!(
        error,
        TransmissionError::Wire(WireError::Magic { .. })
    ));
    assert!(test.client.is_closed().await);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_goes_away_at_any_byte_is_noticed() {
    let mut whole = request_bytes(READ, 0, 1, 0, 1);
    whole.extend_from_slice(&request_bytes(WRITE, 0, 2, 0, 10));
    whole.extend_from_slice(&[0; 10]);
    for length in 0..=whole.len() {
        let mut test = serve(small(), structured());
        test.client.send(&whole[..length]).await;
        drop(test.client);
        let whole_requests =
            [0, request_bytes(READ, 0, 0, 0, 0).len(), whole.len()].contains(&length);
        match test.outcome.await.unwrap() {
            Ok(end) => assert!(end == End::Closed && whole_requests, "{length}"),
            Err(TransmissionError::TornRequest) => assert!(!whole_requests, "{length}"),
            // It went away before it took its replies.
            Err(error) => assert!(
                matches!(error, TransmissionError::Io(_)),
                "{length}: {error}"
            ),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_finishes_what_runs_and_answers_nothing_else() {
    let mut export = small();
    export.held_below = u64::MAX;
    let mut test = serve(export, structured());
    let last = MAX_REQUESTS_IN_FLIGHT as u64;
    let requests = (0..=last).map(|cookie| request_bytes(READ, 0, cookie, 0, 16));
    // At once, so that the last one waits in the inbox and not in the socket.
    test.client
        .send(&requests.collect::<Vec<_>>().concat())
        .await;
    until(|| test.export.started() == MAX_REQUESTS_IN_FLIGHT).await;
    test.stop.cancel();
    test.export.let_go();
    for _ in 0..MAX_REQUESTS_IN_FLIGHT {
        let message = test.client.message().await;
        let Received::Chunk {
            kind: OFFSET_DATA,
            cookie,
            ..
        } = message
        else {
            panic!("{message:?} is no data");
        };
        assert_ne!(cookie, last, "whoever sent it sends it again elsewhere");
    }
    assert!(test.client.is_closed().await);
    assert_eq!(test.outcome.await.unwrap().unwrap(), End::Stopped);
}

#[tokio::test(start_paused = true)]
async fn a_stop_does_not_wait_for_ever() {
    let mut export = small();
    export.held_below = u64::MAX;
    let mut test = serve(export, structured());
    test.client.request(READ, 0, 1, 0, 16).await;
    until(|| test.export.started() == 1).await;
    test.stop.cancel();
    assert_eq!(test.outcome.await.unwrap().unwrap(), End::Stopped);
}

/// Clients that hold as much as they can, and take their large replies a little at a time.
async fn trickling(budget: &Arc<Budget>, clients: usize) -> Vec<Fixture> {
    let length = 31 << 20;
    let mut all = Vec::new();
    for _ in 0..clients {
        let export = MemoryExport::new("snapshot/full", &[5; 8192]);
        let mut test = serve_remote(export, Arc::clone(budget), 16 << 10);
        for cookie in 0..3 {
            test.client.request(READ, 0, cookie, 0, length).await;
        }
        settle().await;
        all.push(test);
    }
    all
}

#[tokio::test(start_paused = true)]
async fn clients_that_take_large_replies_slowly_hold_up_nobody_with_ordinary_ones() {
    let budget = Budget::new();
    let slow = trickling(&budget, 20).await;
    let mut remote = serve_remote(
        MemoryExport::new("snapshot/full", &[5; 1024]),
        Arc::clone(&budget),
        2 << 20,
    );
    let started = tokio::time::Instant::now();
    for (cookie, length) in [(0, 1), (1, 4096), (2, 256 << 10), (3, 1 << 20)] {
        remote.client.request(READ, 0, cookie, 0, length).await;
        assert!(content(remote.client.message().await, cookie).0);
    }
    // A large one of the unix socket does not wait for TCP either.
    let export = MemoryExport::new("snapshot/full", &[5; 8192]);
    let mut local = serve_with(export, structured(), Arc::clone(&budget), 64 << 20);
    local.client.request(READ, 0, 0, 0, 32 << 20).await;
    assert!(content(local.client.message().await, 0).0);
    assert_eq!(started.elapsed(), Duration::ZERO, "nobody has waited");
    assert!(slow.iter().all(|client| !client.outcome.is_finished()));
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_what_slow_clients_hold_gets_it_and_they_are_ended() {
    let budget = Budget::new();
    let mut slow = trickling(&budget, 3).await;
    let export = MemoryExport::new("snapshot/full", &[5; 8192]);
    let mut waiting = serve_remote(export, Arc::clone(&budget), 64 << 20);
    waiting.client.request(READ, 0, 0, 0, 32 << 20).await;
    // They take a little now and then.
    let trickle = async {
        loop {
            for test in &mut slow {
                let mut some = [0; 1000];
                let _ = tokio::io::AsyncReadExt::read(&mut test.client.0, &mut some).await;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let served = async { content(waiting.client.message().await, 0).0 };
    let served = tokio::select! {
        served = served => served,
        () = trickle => unreachable!("it goes on for ever"),
    };
    assert!(served);
    // Ending one of them was enough.
    let ended = slow.iter().position(|test| test.outcome.is_finished());
    let ended = slow.remove(ended.expect("one has ended"));
    let error = ended.outcome.await.unwrap().unwrap_err();
    let TransmissionError::Stalled { held_bytes } = error else {
        panic!("{error}");
    };
    assert!((30 << 20..=64 << 20).contains(&held_bytes), "{held_bytes}");
}

#[tokio::test(start_paused = true)]
async fn a_small_request_is_served_though_others_hold_everything() {
    let budget = small_budget(1 << 20);
    let big = || MemoryExport::writable("volume/full", &[5; 1024]);
    let mut holds = serve_with(big(), structured(), Arc::clone(&budget), 1000);
    holds.client.request(READ, 0, 0, 0, 1 << 20).await;
    settle().await;
    assert_eq!(budget.available_bytes(), 1000);
    let mut small = serve_with(big(), structured(), Arc::clone(&budget), 1 << 20);
    let started = tokio::time::Instant::now();
    for cookie in 0..100 {
        small.client.request(READ, 0, cookie, 1 << 20, 4096).await;
        assert_eq!(content(small.client.message().await, cookie).3, [5; 4096]);
        small
            .client
            .send(&write_bytes(0, cookie, 0, &[6; 16 << 10]))
            .await;
        assert_eq!(small.client.message().await, done(cookie));
        small.client.request(FLUSH, 0, cookie, 0, 0).await;
        assert_eq!(small.client.message().await, done(cookie));
    }
    assert_eq!(started.elapsed(), Duration::ZERO, "nothing has waited");
    // A client that holds little may continue like that: it blocks nobody.
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(!holds.outcome.is_finished());
}

#[tokio::test(start_paused = true)]
async fn memory_comes_back_as_a_reply_is_taken() {
    let budget = Budget::new();
    // Runs of 64 KiB.
    let blocks = [[5; 16], [0; 16]].concat().repeat(8);
    let export = MemoryExport::new("snapshot/half", &blocks);
    let mut test = serve_with(export, structured(), Arc::clone(&budget), 4096);
    test.client.request(READ, 0, 0, 0, 1 << 20).await;
    settle().await;
    let held = || ALL_BYTES - budget.available_bytes();
    assert_eq!(
        held(),
        u64::from(charge_bytes(512 << 10)),
        "holes hold nothing"
    );
    for taken in 1..8 {
        for kind in [OFFSET_DATA, OFFSET_HOLE] {
            assert_eq!(content(test.client.message().await, 0).1, kind);
        }
        settle().await;
        let left = (8 - taken) * (64 << 10);
        let expected = match left as usize <= DETACHED_BYTES_MAX {
            // It is copied, and pins nothing.
            true => left,
            false => charge_bytes(left),
        };
        assert_eq!(held(), u64::from(expected));
    }
    test.client.message().await;
    test.client.message().await;
    settle().await;
    assert_eq!(held(), 0);
}

/// Of untaken short replies, each keeps only itself alive, not the chunk that it is a slice of.
#[tokio::test(start_paused = true)]
async fn short_replies_that_wait_hold_no_more_than_themselves() {
    let budget = Budget::new();
    let export = MemoryExport::new("snapshot/full", &[5; 256]);
    let mut test = serve_with(export, structured(), Arc::clone(&budget), 64);
    for cookie in 0..100 {
        test.client.request(READ, 0, cookie, 0, 1000).await;
    }
    settle().await;
    assert_eq!(ALL_BYTES - budget.available_bytes(), 100 * 1000);
    for _ in 0..100 {
        test.client.message().await;
    }
    settle().await;
    assert_eq!(budget.available_bytes(), ALL_BYTES);
}

#[tokio::test(start_paused = true)]
async fn zeroes_on_their_way_hold_no_memory() {
    let budget = Budget::new();
    let export = MemoryExport::new("snapshot/empty", &[0; 1024]);
    // With simple replies zeroes are sent.
    let test = serve_with(export, Terms::default(), Arc::clone(&budget), 1000);
    let mut client = test.client;
    client.request(READ, 0, 0, 0, 4 << 20).await;
    settle().await;
    assert_eq!(budget.available_bytes(), ALL_BYTES);
    assert_eq!(
        client.message().await,
        Received::Simple {
            error: 0,
            cookie: 0
        }
    );
    assert!(client.receive(4 << 20).await.iter().all(|&byte| byte == 0));
}
