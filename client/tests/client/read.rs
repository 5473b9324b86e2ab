//! Reads of ranges and changes of snapshots; uploads of changes.

use std::{
    fs::{self, File},
    ops::Range,
    os::unix::fs::FileExt,
    time::Duration,
};

use bytes::Bytes;
use futures::TryStreamExt;
use tokio::time::timeout;
use varve_client::{
    ChangeKind, Client, ContentExtent, Control, ErrorKind, FileSource, PatchSource,
};
use varve_content::{SEGMENT_BYTES, codec::Compression};
use varve_fake_daemon::{FakeDaemon, Manners};

const SEGMENT: u64 = SEGMENT_BYTES as u64;

fn noise(seed: u32, bytes: &mut [u8]) {
    let mut state = seed;
    for byte in bytes {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = state.to_le_bytes()[3] & 0x3f;
    }
}

/// Bytes with holes, content that repeats, and an odd end.
fn volume() -> Vec<u8> {
    let mut plain = vec![0; 5 * SEGMENT_BYTES + 5000];
    noise(1, &mut plain[..SEGMENT_BYTES + 100_000]);
    plain.copy_within(0..300_000, 200 * 4096 + 2 * SEGMENT_BYTES);
    plain.copy_within(0..300_000, 600 * 4096 + 2 * SEGMENT_BYTES);
    let end = plain.len();
    plain[end - 10..].fill(9);
    plain
}

/// The same with changes of all kinds: changed, removed and added data.
fn changed() -> Vec<u8> {
    let mut plain = volume();
    noise(2, &mut plain[500_000..501_000]);
    plain[1_000_000..1_300_000].fill(0);
    plain[2 * SEGMENT_BYTES..3 * SEGMENT_BYTES].fill(0);
    noise(3, &mut plain[4 * SEGMENT_BYTES + 77_777..][..90_000]);
    plain
}

async fn upload(daemon: &FakeDaemon, name: &str, plain: &[u8]) -> Client {
    let path = daemon.path("source.img");
    fs::write(&path, plain).unwrap();
    let client = daemon.client().await;
    let source = FileSource::open(&path).unwrap();
    client.upload(name).run(source).await.unwrap();
    client
}

/// Writes extents over some bytes.
pub(crate) fn apply(extents: &[ContentExtent], plain: &mut [u8]) {
    for extent in extents {
        let range = extent.offset_bytes as usize..extent.end_bytes() as usize;
        match &extent.data {
            Some(data) => plain[range].copy_from_slice(data),
            None => plain[range].fill(0),
        }
    }
}

#[tokio::test]
async fn a_snapshot_is_read_whole_and_in_ranges() {
    for compression in [Compression::Zstd, Compression::None] {
        let daemon = FakeDaemon::start(Manners {
            compression,
            ..Manners::default()
        });
        let plain = volume();
        let client = upload(&daemon, "v", &plain).await;
        let control = Control::new();
        let stream = client.read_snapshot("v").control(&control).run().await;
        let stream = stream.unwrap();
        assert_eq!(stream.snapshot().size_bytes, plain.len() as u64);
        let extents: Vec<_> = stream.try_collect().await.unwrap();
        let mut next = 0;
        for extent in &extents {
            assert_eq!(extent.offset_bytes, next);
            next = extent.end_bytes();
        }
        assert_eq!(next, plain.len() as u64);
        assert_eq!(control.progress.done_bytes(), next);
        assert_eq!(control.progress.total_bytes(), next);
        let mut read = vec![1; plain.len()];
        apply(&extents, &mut read);
        assert!(read == plain);
        let data: u64 = extents
            .iter()
            .filter(|extent| extent.data.is_some())
            .map(|extent| extent.len_bytes)
            .sum();
        assert!(data < 2 * SEGMENT + 1_000_000, "holes are data: {data}");

        let end = plain.len() as u64;
        for range in [
            0..512,
            0..0,
            end..end,
            end - 1..end,
            100_001..100_002,
            SEGMENT - 3..SEGMENT + 3,
            SEGMENT + 99_000..3 * SEGMENT + 1,
            3 * SEGMENT..4 * SEGMENT,
        ] {
            let read = client.read_snapshot("v").range(range.clone()).to_vec();
            let expected = &plain[range.start as usize..range.end as usize];
            assert!(read.await.unwrap() == expected, "{range:?}");
        }
        #[expect(clippy::reversed_empty_ranges, reason = "it is to be refused")]
        let wrong: [Range<u64>; 3] = [0..end + 1, end + 1..end + 1, 10..9];
        for range in wrong {
            let error = client.read_snapshot("v").range(range).to_vec().await;
            assert_eq!(error.unwrap_err().kind(), ErrorKind::Invalid);
        }
    }
}

#[tokio::test]
async fn a_small_range_fetches_little() {
    let daemon = FakeDaemon::start(Manners::default());
    let client = upload(&daemon, "v", &volume()).await;
    let range = SEGMENT / 2..SEGMENT / 2 + 100;
    client
        .read_snapshot("v")
        .range(range)
        .to_vec()
        .await
        .unwrap();
    let state = daemon.state();
    // The root, the node above the leaves, a leaf.
    assert_eq!((state.fetched_nodes, state.fetched_chunks), (3, 1));
}

#[tokio::test]
async fn what_has_changed_makes_the_old_content_the_new() {
    let daemon = FakeDaemon::start(Manners::default());
    let (old, new) = (volume(), changed());
    upload(&daemon, "old", &old).await;
    let mut larger = new.clone();
    larger.resize(new.len() + 3 * SEGMENT_BYTES, 7);
    let smaller = &new[..4 * SEGMENT_BYTES + 100_000];
    upload(&daemon, "larger", &larger).await;
    upload(&daemon, "smaller", smaller).await;
    let client = upload(&daemon, "new", &new).await;
    for (name, content) in [("new", &new[..]), ("larger", &larger), ("smaller", smaller)] {
        let changes = client.read_snapshot(name).since("old").run().await.unwrap();
        let changes: Vec<_> = changes.try_collect().await.unwrap();
        assert!(changes.is_sorted_by(|a, b| a.end_bytes() <= b.offset_bytes));
        let mut made = old.clone();
        made.resize(content.len(), 0);
        apply(&changes, &mut made);
        assert!(made == content, "{name}");
    }
    let changes = client.read_snapshot("new").since("old");
    let changes: Vec<_> = changes.run().await.unwrap().try_collect().await.unwrap();
    let read: u64 = changes
        .iter()
        .filter(|change| change.data.is_some())
        .map(|change| change.len_bytes)
        .sum();
    assert!(read < 1_500_000, "{read} bytes are read for 91000");
    assert!(changes.iter().any(|change| change.data.is_none()));
    // Only within a range.
    let range = 450_000..500_500;
    let within = client.read_snapshot("new").since("old").range(range);
    let within: Vec<_> = within.run().await.unwrap().try_collect().await.unwrap();
    let mut made = old.clone();
    apply(&within, &mut made);
    assert!(made[450_000..500_500] == new[450_000..500_500]);
    assert!(made[500_500..] == old[500_500..]);
    // A snapshot has no changes since itself.
    let same = client
        .read_snapshot("new")
        .since("new")
        .run()
        .await
        .unwrap();
    assert_eq!(same.try_collect::<Vec<_>>().await.unwrap(), []);
}

#[tokio::test]
async fn what_has_changed_since_nothing_is_all_data() {
    let daemon = FakeDaemon::start(Manners::default());
    let plain = volume();
    let client = upload(&daemon, "v", &plain).await;
    let extents = client.changes("v").run().await.unwrap();
    let extents: Vec<_> = extents.try_collect().await.unwrap();
    assert!(extents.iter().all(|it| it.kind == ChangeKind::Added));
    let mut rest = plain.clone();
    for extent in &extents {
        rest[extent.offset_bytes as usize..][..extent.len_bytes as usize].fill(0);
    }
    assert!(rest.iter().all(|byte| *byte == 0));
    let bytes: u64 = extents.iter().map(|extent| extent.len_bytes).sum();
    assert!(bytes < 2 * SEGMENT + 1_000_000, "{bytes}");
}

#[tokio::test]
async fn large_volumes_have_more_nodes() {
    let daemon = FakeDaemon::start(Manners::default());
    let size_bytes = 5 << 30;
    let path = daemon.path("large.img");
    let file = File::create(&path).unwrap();
    file.set_len(size_bytes).unwrap();
    // Below several nodes of level 1.
    let places = [0, 2 << 30, (3 << 30) + 12345, size_bytes - 3];
    for place in places {
        file.write_all_at(b"abc", place).unwrap();
    }
    let client = daemon.client().await;
    let source = FileSource::open(&path).unwrap();
    client.upload("large").run(source).await.unwrap();
    let stream = client.read_snapshot("large").run().await.unwrap();
    let extents: Vec<_> = stream.try_collect().await.unwrap();
    assert_eq!(extents.last().unwrap().end_bytes(), size_bytes);
    let data: Vec<_> = extents.iter().filter(|it| it.data.is_some()).collect();
    assert_eq!(data.len(), places.len());

    // A change below one of them.
    let mut patch = PatchSource::new(file.try_clone().unwrap(), "p", size_bytes);
    patch.zeros(2 << 30..(2 << 30) + 3).unwrap();
    let upload = client.upload("less").base("large").run(patch);
    upload.await.unwrap();
    let changes = client.read_snapshot("less").since("large").run();
    let changes: Vec<_> = changes.await.unwrap().try_collect().await.unwrap();
    let gone = ContentExtent {
        offset_bytes: 2 << 30,
        len_bytes: 4096,
        data: None,
    };
    assert_eq!(changes, [gone]);
}

#[tokio::test]
async fn what_is_not_what_its_id_says_is_refused() {
    let flipped = |bytes: &Bytes| {
        let mut bytes = bytes.to_vec();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        Bytes::from(bytes)
    };
    let spoil_chunk = |mut chunk: varve_proto::v1::Chunk| {
        let mut bytes = chunk.payload.to_vec();
        bytes[0] ^= 1;
        chunk.payload = bytes.into();
        chunk
    };
    let manners = Manners {
        compression: Compression::None,
        spoil_chunk,
        ..Manners::default()
    };
    let daemon = FakeDaemon::start(manners);
    let client = upload(&daemon, "v", &volume()).await;
    let error = client.read_snapshot("v").range(0..100).to_vec().await;
    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
    assert!(
        error.to_string().contains("read snapshot v: chunk "),
        "{error}"
    );
    // It ends a stream, too.
    let mut stream = client.read_snapshot("v").run().await.unwrap();
    assert!(stream.try_next().await.is_err());
    assert_eq!(stream.try_next().await.unwrap(), None);

    let manners = Manners {
        spoil_node: |mut node| {
            // Not the root, whose failure comes earlier.
            if !node.payload_bytes.is_empty() {
                let mut bytes = node.encoded.to_vec();
                *bytes.last_mut().unwrap() ^= 1;
                node.encoded = bytes.into();
            }
            node
        },
        ..Manners::default()
    };
    let daemon = FakeDaemon::start(manners);
    let client = upload(&daemon, "v", &volume()).await;
    let error = client.read_snapshot("v").range(0..100).to_vec().await;
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Damaged);
    // A root that the record does not name is not taken, either.
    if let Some((snapshot, _)) = daemon.state().snapshots.get_mut("v") {
        snapshot.root = flipped(&snapshot.root);
    }
    let error = client.read_snapshot("v").run().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_read_that_is_cancelled_ends() {
    let daemon = FakeDaemon::start(Manners::default());
    let client = upload(&daemon, "v", &volume()).await;
    let control = Control::new();
    let reading = client.read_snapshot("v").control(&control);
    let mut stream = reading.run().await.unwrap();
    assert!(stream.try_next().await.unwrap().is_some());
    control.cancel.cancel();
    let error = stream.try_next().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert_eq!(stream.try_next().await.unwrap(), None);
}

/// The readahead of a read must not fill the connection that all calls of a client share.
#[tokio::test]
async fn other_calls_are_answered_while_a_read_is_held() {
    let daemon = FakeDaemon::start(Manners::default());
    let mut plain = vec![0; 8 * SEGMENT_BYTES];
    noise(1, &mut plain);
    // The first extent comes long before the readahead around it.
    plain[4096..SEGMENT_BYTES].fill(0);
    let client = upload(&daemon, "v", &plain).await;
    let mut reads = Vec::new();
    for _ in 0..3 {
        let mut stream = client.read_snapshot("v").run().await.unwrap();
        assert!(stream.try_next().await.unwrap().is_some());
        reads.push(stream);
    }
    // The requested chunks arrive.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let other = client.read_snapshot("v").range(0..5000).to_vec();
    let other = timeout(Duration::from_secs(60), other).await;
    assert_eq!(other.unwrap().unwrap(), plain[..5000]);
    for stream in reads {
        let rest: Vec<_> = stream.try_collect().await.unwrap();
        assert_eq!(rest.last().unwrap().end_bytes(), plain.len() as u64);
    }
}

#[tokio::test]
async fn changes_on_a_base_come_to_the_root_of_all_the_bytes() {
    let daemon = FakeDaemon::start(Manners::default());
    let old = volume();
    let client = upload(&daemon, "old", &old).await;
    let end = old.len() as u64;
    // Sizes of the new volume: the same, within the last block, shorter and longer by much.
    for (number, size_bytes) in [
        end,
        end - 5,
        2 * SEGMENT + 8192,
        end + 2 * SEGMENT + 1,
        SEGMENT,
    ]
    .into_iter()
    .enumerate()
    {
        let mut new = old.clone();
        new.resize(size_bytes as usize, 0);
        let mut bytes = vec![0; 300_000];
        noise(40 + number as u32, &mut bytes);
        let file = tempfile(&bytes);
        let mut patch = PatchSource::new(file, "patch", size_bytes);
        // Within a block, over the edge of a segment where there is one, up to the end, and zeros.
        for (range, at) in [
            (5000..5001, Some(0)),
            (400_000..600_000, Some(100)),
            (SEGMENT - 5000..SEGMENT + 5000, Some(7)),
            (2_000_000..3_000_000, None),
            (size_bytes - 10..size_bytes, Some(3)),
        ] {
            if range.end > size_bytes {
                continue;
            }
            let place = range.start as usize..range.end as usize;
            match at {
                Some(at) => {
                    new[place.clone()].copy_from_slice(&bytes[at as usize..][..place.len()]);
                    patch.data(range, at).unwrap();
                }
                None => {
                    new[place].fill(0);
                    patch.zeros(range).unwrap();
                }
            }
        }
        let name = format!("new-{number}");
        let fetched_before = daemon.state().fetched_chunks;
        let report = client.upload(&name).base("old").run(patch).await.unwrap();
        assert!(daemon.state().fetched_chunks - fetched_before < 900);
        assert!(report.read_bytes <= 1_300_000, "{}", report.read_bytes);
        assert!(
            client.read_snapshot(&name).to_vec().await.unwrap() == new,
            "{name}"
        );
        // The root depends on the content alone.
        upload(&daemon, &format!("whole-{number}"), &new).await;
        let whole = client.snapshot(&format!("whole-{number}")).await.unwrap();
        assert_eq!(report.snapshot.root, whole.root, "{name}");
    }
    let nothing = PatchSource::new(tempfile(b""), "patch", end);
    let report = client
        .upload("same")
        .base("old")
        .run(nothing)
        .await
        .unwrap();
    assert_eq!(
        report.snapshot.root,
        client.snapshot("old").await.unwrap().root
    );
    assert_eq!((report.sent_chunks, report.read_bytes), (0, 0));

    let nothing = PatchSource::new(tempfile(b""), "patch", end);
    let error = client.upload("x").base("none").run(nothing).await;
    assert_eq!(error.unwrap_err().kind(), ErrorKind::NotFound);
    assert!(daemon.state().uploads.is_empty());
}

fn tempfile(bytes: &[u8]) -> File {
    let file = varve_client::scratch_file().unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file
}

/// Programs with several tasks run these calls in any of them.
#[tokio::test]
async fn long_calls_can_be_spawned() {
    fn is_send<T: Send>(call: T) {
        drop(call);
    }
    let daemon = FakeDaemon::start(Manners::default());
    let client = &upload(&daemon, "v", &[1; 5000]).await;
    let patch = || PatchSource::new(tempfile(b"x"), "patch", 5000);
    is_send(client.upload("a").base("v").run(patch()));
    is_send(client.read_snapshot("v").since("v").run());
    is_send(client.read_snapshot("v").run().await.unwrap());
    is_send(client.changes("v").run().await.unwrap());
    is_send(client.verify_snapshot("v").run());
    is_send(client.wait_for_snapshots(["v"]).run());
    is_send(client.wait_for_copies(["v"]).run());
    is_send(client.export_archive("v").run(Vec::new(), "x"));
    is_send(client.import_archive().run(&b"x"[..], "x"));
    is_send(varve_client::verify_archive().run(&b"x"[..], "x"));
}
