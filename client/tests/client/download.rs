//! Snapshots to files and pipes.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt},
    path::Path,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use varve_content::{block::SEGMENT_BYTES, codec::Compression};
use varve_proto::v1::{DownloadResponse, download_response::Part};

use varve_client::{
    Control, Error, ErrorKind, Existing, FileSink, FileSource, NewFile, StreamSink, scratch_file,
};
use varve_fake_daemon::{FakeDaemon, Manners};

/// Bytes with all lengths of chunks, repeated content, holes and an odd end.
fn volume() -> Vec<u8> {
    let mut plain = vec![0; 5 * SEGMENT_BYTES + 5000];
    let mut state = 1u32;
    for byte in &mut plain[..SEGMENT_BYTES + 100_000] {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = state.to_le_bytes()[3] & 0x3f;
    }
    plain.copy_within(0..300_000, 200 * 4096 + 2 * SEGMENT_BYTES);
    plain.copy_within(0..300_000, 600 * 4096 + 2 * SEGMENT_BYTES);
    let end = plain.len();
    plain[end - 10..].fill(9);
    plain
}

async fn daemon_with_volume(manners: Manners) -> (FakeDaemon, Vec<u8>) {
    let daemon = FakeDaemon::start(manners);
    let plain = volume();
    let path = daemon.path("source.img");
    fs::write(&path, &plain).unwrap();
    daemon
        .client()
        .await
        .upload("v")
        .run(FileSource::open(&path).unwrap())
        .await
        .unwrap();
    fs::remove_file(path).unwrap();
    (daemon, plain)
}

fn files_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_file_gets_the_bytes_back_sparse_and_with_ordinary_permissions() {
    for compression in [Compression::Zstd, Compression::None, Compression::Lz4] {
        let (daemon, plain) = daemon_with_volume(Manners {
            compression,
            ..Manners::default()
        })
        .await;
        let path = daemon.path("out.img");
        let sink = FileSink::create(&path, Existing::Keep).unwrap();
        let control = Control::new();
        let report = daemon
            .client()
            .await
            .download("v")
            .control(&control)
            .run(sink)
            .await
            .unwrap();
        assert!(fs::read(&path).unwrap() == plain);
        assert_eq!(report.data_bytes, report.snapshot.data_bytes);
        let progress = &control.progress;
        assert_eq!(progress.done_bytes(), progress.total_bytes());
        let metadata = fs::metadata(&path).unwrap();
        assert!(
            metadata.blocks() * 512 < plain.len() as u64 / 2,
            "holes were written"
        );
        let beside = daemon.path("other");
        File::create(&beside).unwrap();
        assert_eq!(
            metadata.permissions().mode(),
            fs::metadata(beside).unwrap().permissions().mode()
        );
    }
}

#[tokio::test]
async fn a_pipe_gets_the_bytes_in_order() {
    let (daemon, plain) = daemon_with_volume(Manners::default()).await;
    let out = SharedVec::default();
    daemon
        .client()
        .await
        .download("v")
        .run(StreamSink::new(out.clone(), "-"))
        .await
        .unwrap();
    assert!(*out.0.lock().unwrap() == plain);
}

#[tokio::test]
async fn a_file_that_exists_is_kept_unless_it_is_to_be_replaced() {
    let (daemon, plain) = daemon_with_volume(Manners::default()).await;
    let client = daemon.client().await;
    let path = daemon.path("out.img");
    fs::write(&path, "mine").unwrap();
    let error = FileSink::create(&path, Existing::Keep).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);

    let sink = FileSink::create(&path, Existing::Replace).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"mine");
    client.download("v").run(sink).await.unwrap();
    assert!(fs::read(&path).unwrap() == plain);

    // A file that another program makes meanwhile is kept, too.
    let other = daemon.path("other.img");
    let sink = FileSink::create(&other, Existing::Keep).unwrap();
    fs::write(&other, "theirs").unwrap();
    let error = client.download("v").run(sink).await.unwrap_err();
    assert!(error.to_string().contains("File exists"), "{error}");
    assert_eq!(fs::read(&other).unwrap(), b"theirs");
    assert_eq!(
        files_in(daemon.path("").as_path()),
        ["grpc.sock", "other.img", "out.img"]
    );
}

#[tokio::test]
async fn a_new_file_is_published_or_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    let new = NewFile::create(&path, Existing::Keep).unwrap();
    new.file().write_all(b"x").unwrap();
    drop(new);
    assert!(files_in(dir.path()).is_empty());
    let new = NewFile::create(&path, Existing::Keep).unwrap();
    new.file().write_all(b"x").unwrap();
    new.publish().unwrap();
    assert_eq!(files_in(dir.path()), ["a"]);
    let error = NewFile::create(dir.path().join("none/a"), Existing::Keep).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("none/a: No such file or directory"),
        "{error}"
    );
}

/// Downloads from a daemon that spoils the answer, and checks that nothing is left behind.
async fn refusal(spoil: fn(Vec<DownloadResponse>) -> Vec<DownloadResponse>) -> Error {
    let (daemon, _) = daemon_with_volume(Manners {
        spoil,
        ..Manners::default()
    })
    .await;
    let path = daemon.path("out.img");
    let sink = FileSink::create(&path, Existing::Keep).unwrap();
    let error = daemon
        .client()
        .await
        .download("v")
        .run(sink)
        .await
        .unwrap_err();
    // Threads that were at work may hold the file a moment longer.
    for _ in 0..100 {
        if files_in(daemon.path("").as_path()) == ["grpc.sock"] {
            return error;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("left behind: {:?}", files_in(daemon.path("").as_path()));
}

/// Changes the last batch of chunks.
fn change_chunks(
    mut parts: Vec<DownloadResponse>,
    change: fn(&mut Vec<varve_proto::v1::Chunk>),
) -> Vec<DownloadResponse> {
    let batch = parts
        .iter_mut()
        .rev()
        .find_map(|message| match &mut message.part {
            Some(Part::Chunks(batch)) => Some(batch),
            _ => None,
        });
    change(&mut batch.unwrap().chunks);
    parts
}

#[tokio::test]
async fn a_flipped_byte_is_refused() {
    let error = refusal(|parts| {
        change_chunks(parts, |chunks| {
            let last = chunks.last_mut().unwrap();
            let mut payload = last.payload.to_vec();
            *payload.last_mut().unwrap() ^= 1;
            last.payload = Bytes::from(payload);
        })
    })
    .await;
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert!(
        error.to_string().contains("chunk ") && error.to_string().contains("offset"),
        "{error}"
    );
}

#[tokio::test]
async fn another_root_is_refused() {
    let error = refusal(|mut parts| {
        let Some(Part::Snapshot(snapshot)) = &mut parts[0].part else {
            panic!("the snapshot is first")
        };
        snapshot.root = Bytes::from_static(&[7; 32]);
        parts
    })
    .await;
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert!(error.to_string().contains("has root"), "{error}");
}

#[tokio::test]
async fn a_segment_left_out_is_refused() {
    let error = refusal(|mut parts| {
        let last_leaf = parts
            .iter()
            .rposition(|message| matches!(message.part, Some(Part::Leaf(_))))
            .unwrap();
        parts.truncate(last_leaf);
        parts
    })
    .await;
    assert_eq!(error.kind(), ErrorKind::Damaged);
}

#[tokio::test]
async fn chunks_out_of_place_are_refused() {
    let missing = refusal(|parts| change_chunks(parts, |chunks| drop(chunks.pop()))).await;
    let surplus =
        refusal(|parts| change_chunks(parts, |chunks| chunks.push(chunks[0].clone()))).await;
    let codec = refusal(|parts| change_chunks(parts, |chunks| chunks[0].codec = 99)).await;
    let length =
        refusal(|parts| change_chunks(parts, |chunks| chunks[0].plain_bytes += 4096)).await;
    let empty = refusal(|_| Vec::new()).await;
    let twice = refusal(|mut parts| {
        parts.push(parts[0].clone());
        parts
    })
    .await;
    for error in [missing, surplus, codec, length, empty, twice] {
        assert_eq!(error.kind(), ErrorKind::Internal);
        assert!(
            error.to_string().contains("the daemon broke the protocol"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_snapshot_that_is_not_there_leaves_no_file() {
    let daemon = FakeDaemon::start(Manners::default());
    let path = daemon.path("out.img");
    let sink = FileSink::create(&path, Existing::Keep).unwrap();
    let error = daemon
        .client()
        .await
        .download("none")
        .run(sink)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(files_in(daemon.path("").as_path()), ["grpc.sock"]);
}

#[tokio::test]
async fn a_scratch_file_is_written_and_kept_by_its_owner() {
    let (daemon, plain) = daemon_with_volume(Manners::default()).await;
    let file = scratch_file().unwrap();
    let sink = FileSink::scratch(&file, "scratch").unwrap();
    daemon.client().await.download("v").run(sink).await.unwrap();
    let mut read = vec![0; plain.len()];
    file.read_exact_at(&mut read, 0).unwrap();
    assert!(read == plain);
}

#[derive(Clone, Debug, Default)]
struct SharedVec(Arc<Mutex<Vec<u8>>>);

impl Write for SharedVec {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
