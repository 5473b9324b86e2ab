//! Daemons with invalid answers, or with none.

use std::{os::unix::fs::FileExt, time::Duration};

use bytes::Bytes;
use futures::TryStreamExt;
use tokio::{runtime::Handle, time::timeout};
use varve_client::{Client, Control, Error, ErrorKind, FileSource, PatchSource};
use varve_content::{
    BLOCK_BYTES, SEGMENT_BYTES,
    chunk_id::ChunkId,
    codec::Compression,
    tree::{Leaf, LeafEntry},
};
use varve_fake_daemon::{FakeDaemon, Manners};
use varve_proto::v1;

const LONG: Duration = Duration::from_secs(120);

/// A daemon with a snapshot of noise, called v.
async fn daemon(manners: Manners) -> (FakeDaemon, Client) {
    let daemon = FakeDaemon::start(manners);
    let path = daemon.path("v.img");
    let bytes: Vec<_> = (0..2_000_000u32)
        .map(|at| (at.wrapping_mul(0x9e37_79b1) >> 24) as u8)
        .collect();
    std::fs::write(&path, bytes).unwrap();
    let client = daemon.client().await;
    let source = FileSource::open(&path).unwrap();
    client.upload("v").run(source).await.unwrap();
    (daemon, client)
}

/// A change of a byte.
fn patch(size_bytes: u64) -> PatchSource {
    let file = varve_client::scratch_file().unwrap();
    file.write_all_at(b"x", 0).unwrap();
    let mut patch = PatchSource::new(file, "patch", size_bytes);
    patch.data(5..6, 0).unwrap();
    patch
}

/// The errors of all calls that fetch the chunks of a snapshot.
async fn errors(client: &Client, snapshot: &str) -> Vec<Error> {
    let size_bytes = client.snapshot(snapshot).await.unwrap().size_bytes;
    let stream = client.read_snapshot(snapshot).run().await.unwrap();
    let read = stream.try_collect::<Vec<_>>().await;
    let upload = client.upload("other").base(snapshot).run(patch(size_bytes));
    let archive = client.export_archive(snapshot).run(std::io::sink(), "x");
    vec![
        read.unwrap_err(),
        upload.await.unwrap_err(),
        archive.await.unwrap_err(),
    ]
}

/// A leaf with this chunk at these places.
fn leaf(chunk: ChunkId, places: &[(u32, u32)]) -> Leaf {
    let entries = places.iter().map(|&(start_block, blocks)| LeafEntry {
        start_block,
        blocks,
        chunk,
    });
    Leaf::new(entries.collect()).unwrap()
}

/// The hash of a leaf proves its entries, and that of a chunk its bytes; only both together prove
/// how long the chunk is.
#[tokio::test]
async fn a_chunk_that_is_shorter_than_its_leaf_says_is_damage() {
    let daemon = FakeDaemon::start(Manners::default());
    let client = daemon.client().await;
    let plain = Bytes::from(vec![7; BLOCK_BYTES]);
    let chunk = ChunkId::of(&plain);
    daemon.state().chunks.insert(chunk, plain);
    let segment = SEGMENT_BYTES as u64;
    let (right, wrong) = ([(0, 1)], [(0, 1), (1, 64)]);
    daemon.plant("leaf", segment, &[(0, leaf(chunk, &wrong))]);
    let leaves = [(0, leaf(chunk, &right)), (1, leaf(chunk, &wrong[1..]))];
    daemon.plant("leaves", 2 * segment, &leaves);
    for error in errors(&client, "leaf").await {
        assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
    }
    let read = client.read_snapshot("leaf").range(0..10).to_vec();
    assert_eq!(read.await.unwrap(), [7; 10]);
    for (name, first) in [("leaf", 0), ("leaves", segment)] {
        let start = first + 10 * BLOCK_BYTES as u64;
        for range in [0..start, start..start + 10] {
            let read = client.read_snapshot(name).range(range.clone()).to_vec();
            let error = read.await.unwrap_err();
            assert_eq!(
                error.kind(),
                ErrorKind::Damaged,
                "{name} {range:?}: {error}"
            );
        }
    }
}

#[tokio::test]
async fn a_leaf_that_ends_behind_its_volume_is_damage() {
    let daemon = FakeDaemon::start(Manners::default());
    let client = daemon.client().await;
    let plain = Bytes::from(vec![7; BLOCK_BYTES]);
    let chunk = ChunkId::of(&plain);
    daemon.state().chunks.insert(chunk, plain);
    let segment = SEGMENT_BYTES as u64;
    let past = [(0, 1), (2, 1)];
    daemon.plant("v", segment + 4097, &[(1, leaf(chunk, &past))]);
    // The first one changes the other segment.
    for error in errors(&client, "v").await {
        assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
    }
    let size_bytes = segment + 4097;
    let mut last = PatchSource::new(varve_client::scratch_file().unwrap(), "patch", size_bytes);
    last.zeros(size_bytes - 1..size_bytes).unwrap();
    let error = client.upload("other").base("v").run(last).await;
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Damaged);
    let changes = client.changes("v").run().await.unwrap();
    let error = changes.try_collect::<Vec<_>>().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
}

#[tokio::test]
async fn answers_of_other_chunks_are_refused() {
    type Spoil = fn(Vec<v1::FetchChunksResponse>) -> Vec<v1::FetchChunksResponse>;
    let cases: [(&str, ErrorKind, Spoil); 7] = [
        ("ended with", ErrorKind::Internal, |_| Vec::new()),
        ("ended with", ErrorKind::Internal, |mut answers| {
            answers.pop();
            answers
        }),
        ("without chunks", ErrorKind::Internal, |mut answers| {
            answers.insert(1, v1::FetchChunksResponse::default());
            answers
        }),
        ("more chunks", ErrorKind::Damaged, |mut answers| {
            let last = answers.last_mut().unwrap();
            last.chunks.push(last.chunks[0].clone());
            answers
        }),
        ("another chunk", ErrorKind::Damaged, |mut answers| {
            answers.reverse();
            answers
        }),
        ("unknown codec", ErrorKind::Internal, |mut answers| {
            answers[0].chunks[0].codec = -1;
            answers
        }),
        // Which would take all memory.
        ("more bytes", ErrorKind::Damaged, |mut answers| {
            for chunk in answers.iter_mut().flat_map(|answer| &mut answer.chunks) {
                chunk.payload = vec![1; 300_000].into();
            }
            answers
        }),
    ];
    for (says, kind, spoil_chunks) in cases {
        let manners = Manners {
            compression: Compression::None,
            spoil_chunks,
            ..Manners::default()
        };
        let (_daemon, client) = daemon(manners).await;
        for error in errors(&client, "v").await {
            assert!(error.why().contains(says), "{says}: {error}");
            assert_eq!(error.kind(), kind, "{error}");
        }
    }
}

#[tokio::test]
async fn an_empty_range_has_no_extents() {
    let (_daemon, client) = daemon(Manners::default()).await;
    for at in [0, 5, 4096, 1_000_000, 2_000_000] {
        for since in [false, true] {
            let mut read = client.read_snapshot("v").range(at..at);
            if since {
                read = read.since("v");
            }
            let extents: Vec<_> = read.run().await.unwrap().try_collect().await.unwrap();
            assert_eq!(extents, [], "{at}");
        }
    }
}

#[tokio::test]
async fn a_daemon_that_is_busy_is_asked_again() {
    let (daemon, client) = daemon(Manners::default()).await;
    daemon.state().busy = 2;
    client.read_snapshot("v").to_vec().await.unwrap();
    daemon.state().busy = 2;
    let upload = client.upload("other").base("v").run(patch(2_000_000));
    upload.await.unwrap();
    daemon.state().busy = 2;
    let archive = client.export_archive("v").run(std::io::sink(), "x");
    archive.await.unwrap();
    assert_eq!(daemon.state().busy, 0);
}

/// Cancels a call that is under way.
async fn cancelled<T>(control: &Control, call: impl Future<Output = Result<T, Error>>) -> Error {
    let cancelling = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        control.cancel.cancel();
    };
    let call = timeout(Duration::from_secs(20), Box::pin(call));
    let (outcome, ()) = tokio::join!(call, cancelling);
    match outcome {
        Ok(Ok(_)) => panic!("it succeeded"),
        Ok(Err(error)) => error,
        Err(_) => panic!("it goes on"),
    }
}

#[tokio::test]
async fn calls_that_are_not_answered_can_be_cancelled() {
    let slow: [&[_]; 3] = [
        &[("GetSnapshot", LONG)],
        &[("FetchNodes", LONG)],
        &[("DiffSnapshots", LONG)],
    ];
    for slow in slow {
        let (_daemon, client) = daemon(Manners {
            slow,
            ..Manners::default()
        })
        .await;
        let call = slow[0].0;
        let new = Control::new;
        let mut outcomes = Vec::new();
        if call == "DiffSnapshots" {
            let control = new();
            let changes = client.changes("v").since("v").control(&control);
            outcomes.push(cancelled(&control, changes.run()).await);
        } else {
            let control = new();
            let read = client.read_snapshot("v").control(&control);
            outcomes.push(cancelled(&control, read.run()).await);
            let control = new();
            let changes = client.changes("v").control(&control);
            outcomes.push(cancelled(&control, changes.run()).await);
            let control = new();
            let upload = client.upload("other").base("v").control(&control);
            outcomes.push(cancelled(&control, upload.run(patch(2_000_000))).await);
            let control = new();
            let archive = client.export_archive("v").control(&control);
            outcomes.push(cancelled(&control, archive.run(std::io::sink(), "x")).await);
        }
        for error in outcomes {
            assert_eq!(error.kind(), ErrorKind::Cancelled, "{call}: {error}");
        }
    }
}

/// Otherwise it would keep a place among the daemon's uploads until it expires.
#[tokio::test]
async fn an_upload_that_is_cancelled_as_it_begins_is_aborted() {
    const SLOW: &[(&str, Duration)] = &[("BeginUpload", Duration::from_millis(300))];
    let (daemon, client) = daemon(Manners {
        slow: SLOW,
        ..Manners::default()
    })
    .await;
    let path = daemon.path("v.archive");
    let file = std::fs::File::create_new(&path).unwrap();
    client.export_archive("v").run(file, "x").await.unwrap();

    let control = Control::new();
    let upload = client.upload("other").control(&control);
    let error = cancelled(&control, upload.run(patch(2_000_000))).await;
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
    assert_eq!(daemon.state().uploads.len(), 0);

    let control = Control::new();
    let import = client.import_archive().name("other").control(&control);
    let file = std::fs::File::open(&path).unwrap();
    let error = cancelled(&control, import.run(file, "x")).await;
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
    assert_eq!(daemon.state().uploads.len(), 0);
}

#[tokio::test]
async fn a_read_that_has_ended_leaves_nothing_behind() {
    let (daemon, client) = daemon(Manners {
        slow: &[("FetchChunks", LONG)],
        ..Manners::default()
    })
    .await;
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    let control = Control::new();
    let read = client.read_snapshot("v").control(&control);
    let mut stream = read.run().await.unwrap();
    let error = cancelled(&control, stream.try_next()).await;
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(tasks(), before, "while the stream is held");
    for _ in 0..2 {
        assert_eq!(stream.try_next().await.unwrap(), None);
    }

    let control = Control::new();
    let upload = client.upload("other").base("v").control(&control);
    let error = cancelled(&control, upload.run(patch(2_000_000))).await;
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
    let control = Control::new();
    let archive = client.export_archive("v").control(&control);
    let error = cancelled(&control, archive.run(std::io::sink(), "x")).await;
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
    // And what is dropped.
    let mut stream = client.read_snapshot("v").run().await.unwrap();
    let within = timeout(Duration::from_millis(100), stream.try_next()).await;
    assert!(within.is_err() && tasks() > before);
    drop(stream);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(tasks(), before);
    assert_eq!(daemon.state().uploads.len(), 0);
}

#[tokio::test]
async fn differences_that_cannot_be_are_refused() {
    fn extent(offset_bytes: u64, length_bytes: u64) -> Vec<v1::DiffExtent> {
        vec![v1::DiffExtent {
            offset_bytes,
            length_bytes,
            kind: v1::DiffKind::Changed.into(),
        }]
    }
    fn answers(extents: &[(u64, u64)]) -> Vec<v1::DiffSnapshotsResponse> {
        let extents = extents.iter().map(|(offset, len)| extent(*offset, *len));
        let answers = extents.map(|extents| v1::DiffSnapshotsResponse { extents });
        answers.collect()
    }
    let wrong: [fn() -> Vec<v1::DiffSnapshotsResponse>; 4] = [
        || answers(&[(4096, 0)]),
        || answers(&[(4096, 4096), (4096, 4096)]),
        || answers(&[(8192, 4096), (0, 4096)]),
        || answers(&[(u64::MAX, 4096)]),
    ];
    for differences in wrong {
        let (_daemon, client) = daemon(Manners {
            differences,
            ..Manners::default()
        })
        .await;
        let changes = client.changes("v").since("v").run().await.unwrap();
        let error = changes.try_collect::<Vec<_>>().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal, "{error}");
    }
}

#[tokio::test]
async fn progress_beyond_all_numbers_is_no_end() {
    let (daemon, client) = daemon(Manners::default()).await;
    {
        let mut state = daemon.state();
        let mut pending = state.snapshots["v"].0.clone();
        pending.state = v1::SnapshotState::Pending.into();
        pending.root = Bytes::new();
        pending.progress = Some(v1::SnapshotProgress {
            done_bytes: u64::MAX,
            total_bytes: u64::MAX,
        });
        state.snapshot_course = vec![pending.clone(), pending];
    }
    let control = Control::new();
    let waiting = client.wait_for_snapshots(["v", "v"]).control(&control);
    assert_eq!(waiting.run().await.unwrap().len(), 2);
    assert_eq!(control.progress.done_bytes(), u64::MAX);
}

#[tokio::test]
async fn a_daemon_that_goes_away_ends_a_read() {
    let (daemon, client) = daemon(Manners {
        slow: &[("FetchChunks", LONG)],
        ..Manners::default()
    })
    .await;
    let mut stream = client.read_snapshot("v").run().await.unwrap();
    let going = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        drop(daemon);
    };
    let reading = timeout(Duration::from_secs(30), stream.try_next());
    let error = tokio::join!(reading, going).0.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    assert_eq!(error.what(), "read snapshot v");
}
