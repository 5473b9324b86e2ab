//! Collecting garbage, and the usage of space.

use varve_client::{Control, ErrorKind, GcAction, GcOptions, GcPhase};
use varve_fake_daemon::{FakeDaemon, Manners};

#[tokio::test]
async fn a_collection_tells_its_progress_and_reports() {
    let daemon = FakeDaemon::start(Manners::default());
    let client = daemon.client().await;
    let options = GcOptions {
        rewrite_dead_percent: Some(10),
        bytes_per_second: Some(0),
    };
    let mut seen = Vec::new();
    let run = client.run_gc(options);
    let report = run.on_progress(|it| seen.push(*it)).run().await.unwrap();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].phase, GcPhase::Sweeping);
    assert_eq!(report.returned_bytes(), 600 << 20);
    assert_eq!(report.held_by, ["snapshot nightly"]);
    let asked = daemon.state().gc_options.unwrap();
    assert_eq!(asked.rewrite_dead_percent, Some(10));
    assert_eq!(
        asked.bytes_per_second,
        Some(0),
        "no limit, and not the default"
    );
    client.run_gc(GcOptions::default()).run().await.unwrap();
    assert_eq!(daemon.state().gc_options, Some(Default::default()));

    let status = client.gc_status().await.unwrap();
    assert_eq!(status.running, None);
    assert_eq!(status.last.unwrap().outcome, Ok(report));
    assert!(client.stop_gc().await.unwrap().running.is_some());
}

#[tokio::test]
async fn waiting_for_a_collection_is_cancelled() {
    let daemon = FakeDaemon::start(Manners {
        slow: &[("RunGc", std::time::Duration::MAX)],
        ..Manners::default()
    });
    let client = daemon.client().await;
    let control = Control::new();
    control.cancel.cancel();
    let run = client.run_gc(GcOptions::default()).control(&control);
    let cancelled = run.run().await.unwrap_err();
    assert_eq!(cancelled.kind(), ErrorKind::Cancelled);
    assert!(cancelled.why().contains("goes on"), "{cancelled}");
}

#[tokio::test]
async fn what_things_take_is_asked_for() {
    let daemon = FakeDaemon::start(Manners::default());
    let client = daemon.client().await;
    let plan = client.plan_gc(GcOptions::default()).await.unwrap();
    assert_eq!(plan.steps[0].action, GcAction::Drop);
    assert_eq!(plan.returned_bytes(), 256 << 20);
    let usages = client.usage(vec!["a".to_owned()], Vec::new(), true);
    let usages = usages.await.unwrap();
    assert_eq!((usages.snapshots.len(), usages.volumes.len()), (1, 0));
    assert_eq!(usages.snapshots[0].shared_bytes, 2 << 20);
    let missing = client.estimate_delete(vec!["none".to_owned()]).await;
    assert_eq!(missing.unwrap_err().kind(), ErrorKind::NotFound);
}
