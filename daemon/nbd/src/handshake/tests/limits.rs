//! Deadlines, and places.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use super::*;

#[tokio::test]
async fn a_client_that_stops_halfway_is_not_waited_for() {
    for start_of_option in [&b""[..], b"IHAVE", b"IHAVEOPT\0\0\0\x07\0\0\0\x10\0\0"] {
        let (mut client, outcome) = start_with(Duration::from_millis(30), 2);
        client.greet(3).await;
        client.send(start_of_option).await;
        assert!(matches!(
            error(outcome).await,
            HandshakeError::TimedOut { .. }
        ));
        assert!(client.is_closed().await);
    }
    let (_client, outcome) = start_with(Duration::from_millis(30), 2);
    assert!(matches!(
        error(outcome).await,
        HandshakeError::TimedOut { .. }
    ));
}

/// Exports that open slowly.
struct SlowExports(MemoryExports, Duration);

impl Exports for SlowExports {
    type Export = Arc<MemoryExport>;

    async fn list(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<crate::export::ExportInfo>, ExportError> {
        self.0.list(after, limit).await
    }

    async fn open(&self, name: &str) -> Result<Arc<MemoryExport>, ExportError> {
        tokio::time::sleep(self.1).await;
        self.0.open(name).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_is_not_blamed_for_an_export_that_takes_long_to_open() {
    let (client, server) = tokio::io::duplex(1 << 20);
    let export = Arc::new(MemoryExport::new("snapshot/a", &[1]));
    let exports = SlowExports(MemoryExports(vec![export]), Duration::from_mins(20));
    let limit = Duration::from_secs(10);
    let outcome = spawn(server, exports, limit, Security::Plain, 1);
    let mut client = Client(client);
    client.greet(3).await;
    client.haggle(7, &info_data("snapshot/a", &[])).await;
    assert_eq!(terms(outcome).await.0, "snapshot/a");
}

/// Asks about an export every second, until there is no answer. Returns the time until then.
async fn dawdle(client: &mut Client<DuplexStream>, outcome: &JoinHandle<Outcome>) -> u64 {
    let started = tokio::time::Instant::now();
    while !outcome.is_finished() {
        client.option(6, &info_data("snapshot/a", &[])).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    started.elapsed().as_secs()
}

#[tokio::test(start_paused = true)]
async fn a_handshake_has_one_deadline_however_many_steps_it_takes() {
    let (mut client, outcome) = start_with(Duration::from_secs(10), 2);
    client.greet(3).await;
    let lasted = dawdle(&mut client, &outcome).await;
    assert!((10..12).contains(&lasted), "{lasted} s");
    assert!(matches!(
        error(outcome).await,
        HandshakeError::TimedOut { .. }
    ));
}

#[tokio::test(start_paused = true)]
async fn a_listing_gives_time_to_ask_for_each_export_and_not_without_end() {
    for (count, wanted) in [(1000, 20), (10_000, 60)] {
        let (mut client, outcome) = start_with(Duration::from_secs(10), count);
        client.greet(3).await;
        client.haggle(3, b"").await;
        let lasted = dawdle(&mut client, &outcome).await;
        assert!((wanted..wanted + 2).contains(&lasted), "{lasted} s");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_has_the_store_asked_again_and_again_is_ended() {
    let (client, server) = tokio::io::duplex(1 << 20);
    let export = Arc::new(MemoryExport::new("snapshot/a", &[1]));
    let exports = SlowExports(MemoryExports(vec![export]), Duration::from_mins(1));
    let limit = Duration::from_secs(10);
    let outcome = spawn(server, exports, limit, Security::Plain, 1);
    let mut client = Client(client);
    client.greet(3).await;
    // Each asks about another export: the same one would not be opened again.
    for name in ["snapshot/a", "snapshot/b"].iter().cycle().take(20) {
        client.option(6, &info_data(name, &[])).await;
    }
    assert!(matches!(
        error(outcome).await,
        HandshakeError::TimedOut { .. }
    ));
}

#[tokio::test]
async fn who_finds_no_place_is_told_so_and_may_ask_again() {
    let places = Arc::new(Semaphore::new(1));
    let taken = Arc::clone(&places).try_acquire_owned().unwrap();
    let exports = || {
        let export = MemoryExport::new("snapshot/a", &[1]);
        MemoryExports(vec![Arc::new(export)])
    };
    let begin = |places: &Arc<Semaphore>| {
        let (client, server) = tokio::io::duplex(1 << 20);
        let limit = Duration::from_secs(60);
        let outcome = spawn_with(
            server,
            exports(),
            limit,
            Security::Plain,
            Arc::clone(places),
        );
        (Client(client), outcome)
    };
    let (mut client, outcome) = begin(&places);
    client.greet(3).await;
    let info = client.haggle(6, &info_data("snapshot/a", &[])).await;
    assert_eq!(
        info.last(),
        Some(&(1, Vec::new())),
        "looking takes no place"
    );
    let refused = client.haggle(7, &info_data("snapshot/a", &[])).await;
    let (code, why) = &refused[0];
    assert_eq!((refused.len(), *code), (1, POLICY));
    assert_eq!(text(why), "there is no place");
    // There is no such answer to EXPORT_NAME.
    let (mut other, other_outcome) = begin(&places);
    other.greet(3).await;
    other.option(1, b"snapshot/a").await;
    let refused = error(other_outcome).await;
    assert!(matches!(
        refused,
        HandshakeError::NoPlace(NoPlace(why)) if why == "there is no place"
    ));
    assert!(other.is_closed().await);

    drop(taken);
    client.haggle(7, &info_data("snapshot/a", &[])).await;
    let Ok(Negotiated::Export { place, .. }) = outcome.await.unwrap() else {
        panic!("no export was opened");
    };
    assert_eq!(places.available_permits(), 0);
    drop(place);
    assert_eq!(places.available_permits(), 1);
}
