//! Invalid uploads: each is refused with its reason, and nothing of it becomes visible.

use tonic::Code;
use varve_content::chunker::MAX_CHUNK_BLOCKS;

use super::*;
use crate::limits;

const SIZE: u64 = 3 * SEGMENT_BYTES as u64 / 2;

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, text: &str) {
    let status = result.unwrap_err();
    assert_eq!(status.code(), code, "{status}");
    assert!(
        status.message().contains(text),
        "{status} does not say {text:?}"
    );
}

/// A chunk that the chunker would make if a hole follows, and its id.
fn small_chunk(seed: u64) -> (ChunkId, v1::Chunk) {
    let plain = noise(seed, BLOCK_BYTES);
    let id = ChunkId::of(&plain);
    (id, chunk(id, plain))
}

fn entry(start_block: u32, blocks: u32, chunk: ChunkId) -> LeafEntry {
    LeafEntry {
        start_block,
        blocks,
        chunk,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_that_are_not_what_they_are_said_to_be() {
    let daemon = Daemon::start().await;
    let upload = daemon.begin("bad", SIZE).await.unwrap();
    let (id, good) = small_chunk(1);
    let put = async |change: fn(&mut v1::Chunk)| {
        let mut chunk = good.clone();
        change(&mut chunk);
        daemon.put_chunks(&upload, vec![chunk]).await
    };

    let other = put(|chunk| chunk.payload = noise(2, BLOCK_BYTES).into()).await;
    refused(other, Code::InvalidArgument, &id.to_string());
    refused(
        put(|chunk| chunk.id.truncate(20)).await,
        Code::InvalidArgument,
        "chunks.id",
    );
    refused(
        put(|chunk| chunk.codec = 77).await,
        Code::InvalidArgument,
        "chunks.codec",
    );
    refused(
        put(|chunk| chunk.plain_bytes = 5000).await,
        Code::InvalidArgument,
        "plain length 5000",
    );
    refused(
        put(|chunk| chunk.plain_bytes = 8192).await,
        Code::InvalidArgument,
        &id.to_string(),
    );
    refused(
        put(|chunk| chunk.codec = v1::Codec::Zstd.into()).await,
        Code::InvalidArgument,
        &id.to_string(),
    );
    refused(
        put(|chunk| chunk.codec = v1::Codec::Lz4.into()).await,
        Code::InvalidArgument,
        &id.to_string(),
    );
    refused(
        put(|chunk| chunk.payload = Bytes::new()).await,
        Code::InvalidArgument,
        &id.to_string(),
    );
    refused(
        put(|chunk| chunk.payload = vec![0; 9000].into()).await,
        Code::InvalidArgument,
        &id.to_string(),
    );

    let zero = vec![0; BLOCK_BYTES];
    let zero = daemon
        .put_chunks(&upload, vec![chunk(ChunkId::of(&zero), zero)])
        .await;
    refused(zero, Code::InvalidArgument, "not cut as chunker version");
    // Some cut is inside: the chunker hardly ever makes a chunk of noise as long as this.
    let long = noise(3, MAX_CHUNK_BLOCKS as usize * BLOCK_BYTES);
    let long = daemon
        .put_chunks(&upload, vec![chunk(ChunkId::of(&long), long)])
        .await;
    refused(long, Code::InvalidArgument, "not cut as chunker version");

    // None of these errors ends the upload.
    assert_eq!(
        daemon.put_chunks(&upload, vec![good]).await.unwrap().chunks,
        1
    );
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leaves_that_cannot_be() {
    let daemon = Daemon::start().await;
    let upload = daemon.begin("bad", SIZE).await.unwrap();
    let (id, chunk) = small_chunk(1);
    daemon.put_chunks(&upload, vec![chunk]).await.unwrap();
    let put = async |segment, entries: &[LeafEntry]| {
        daemon
            .put_leaves(&upload, vec![leaf(segment, entries)])
            .await
    };

    let absent = ChunkId::of(b"absent");
    refused(
        put(0, &[entry(0, 1, absent)]).await,
        Code::InvalidArgument,
        &absent.to_string(),
    );
    refused(
        put(0, &[entry(0, 1, id), entry(0, 1, id)]).await,
        Code::InvalidArgument,
        "segment 0",
    );
    refused(put(0, &[]).await, Code::InvalidArgument, "segment 0");
    refused(
        put(0, &[entry(0, 2, id)]).await,
        Code::InvalidArgument,
        &id.to_string(),
    );
    // A hole must follow a chunk that ends only because of one.
    refused(
        put(0, &[entry(0, 1, id), entry(1, 1, id)]).await,
        Code::InvalidArgument,
        "followed by a hole",
    );
    refused(
        put(2, &[entry(0, 1, id)]).await,
        Code::InvalidArgument,
        "2 segments",
    );
    refused(
        put(u32::MAX, &[entry(0, 1, id)]).await,
        Code::InvalidArgument,
        "segments",
    );
    refused(
        put(1, &[entry(1024, 1, id)]).await,
        Code::InvalidArgument,
        "segment 1",
    );
    put(1, &[entry(1023, 1, id)]).await.unwrap();
    assert!(daemon.names().await.is_empty());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_that_differs_commits_nothing() {
    let daemon = Daemon::start().await;
    let volume = sparse_volume(1);
    let cut = Cut::of(&volume);
    let other = Cut::of(&sparse_volume(2)).root;
    let upload = daemon.begin("bad", volume.len() as u64).await.unwrap();
    daemon
        .put_chunks(&upload, cut.chunks.clone())
        .await
        .unwrap();
    daemon
        .put_leaves(&upload, cut.leaves.clone())
        .await
        .unwrap();
    refused(
        daemon.commit(&upload, other).await,
        Code::InvalidArgument,
        &other.to_string(),
    );
    refused(
        daemon.commit(&upload, cut.root).await,
        Code::NotFound,
        &upload,
    );

    let incomplete = daemon.begin("bad", volume.len() as u64).await.unwrap();
    daemon
        .put_leaves(&incomplete, cut.leaves[..1].to_vec())
        .await
        .unwrap();
    refused(
        daemon.commit(&incomplete, cut.root).await,
        Code::InvalidArgument,
        &cut.root.to_string(),
    );

    let twice = daemon.begin("bad", volume.len() as u64).await.unwrap();
    daemon.put_leaves(&twice, cut.leaves.clone()).await.unwrap();
    let again = daemon.put_leaves(&twice, cut.leaves[..1].to_vec()).await;
    let committed = daemon.commit(&twice, cut.root).await;
    assert!(again.is_err() || committed.is_err(), "a segment put twice");

    let mut request = v1::CommitUploadRequest {
        upload_id: daemon.begin("bad", 4096).await.unwrap(),
        root: Bytes::from_static(b"short"),
    };
    refused(
        daemon.content().commit_upload(request.clone()).await,
        Code::InvalidArgument,
        "root: 5 bytes",
    );
    request.upload_id = "up-0".to_owned();
    request.root = Bytes::copy_from_slice(cut.root.as_bytes());
    refused(
        daemon.content().commit_upload(request).await,
        Code::NotFound,
        "\"up-0\"",
    );
    assert!(daemon.names().await.is_empty());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_that_cannot_begin() {
    let daemon = Daemon::start().await;
    refused(daemon.begin("", SIZE).await, Code::InvalidArgument, "name");
    refused(
        daemon.begin("-x", SIZE).await,
        Code::InvalidArgument,
        "\"-x\"",
    );
    refused(
        daemon.begin("snap-0123456789abcdef0", SIZE).await,
        Code::InvalidArgument,
        "form of an id",
    );
    refused(daemon.begin("a", 0).await, Code::InvalidArgument, "0 bytes");
    assert!(daemon.begin("a", u64::MAX).await.is_err());
    let mut request = v1::BeginUploadRequest {
        name: "a".to_owned(),
        size_bytes: SIZE,
        ..v1::BeginUploadRequest::default()
    };
    refused(
        daemon.content().begin_upload(request.clone()).await,
        Code::InvalidArgument,
        "chunker",
    );
    request.chunker = Some(v1::ChunkerParameters { version: 99 });
    refused(
        daemon.content().begin_upload(request).await,
        Code::InvalidArgument,
        "99",
    );
    assert_eq!(
        daemon
            .status()
            .get_status(v1::GetStatusRequest {})
            .await
            .unwrap()
            .into_inner()
            .uploads,
        0
    );

    for number in 0..varve_store::limits::UPLOADS_MAX {
        daemon.begin(&format!("a{number}"), SIZE).await.unwrap();
    }
    refused(
        daemon.begin("one-more", SIZE).await,
        Code::Unavailable,
        "64 uploads",
    );
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_belongs_to_who_commits_first() {
    let daemon = Daemon::start().await;
    let volume = sparse_volume(1);
    let cut = Cut::of(&volume);
    let late = daemon.begin("web", volume.len() as u64).await.unwrap();
    let first = daemon.upload("web", &volume).await;
    refused(
        daemon.begin("web", SIZE).await,
        Code::AlreadyExists,
        &first.id,
    );
    daemon.put_leaves(&late, cut.leaves).await.unwrap();
    refused(
        daemon.commit(&late, cut.root).await,
        Code::AlreadyExists,
        "\"web\"",
    );
    assert_eq!(daemon.names().await, ["web"]);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_over_the_limits() {
    let daemon = Daemon::start().await;
    let upload = daemon.begin("big", SIZE).await.unwrap();
    let find = v1::FindMissingRequest {
        upload_id: upload.clone(),
        ids: vec![0; 32 * (limits::FIND_IDS_MAX as usize + 1)].into(),
        segments: Vec::new(),
    };
    refused(
        daemon.content().find_missing(find.clone()).await,
        Code::OutOfRange,
        "at most 8192",
    );
    let odd = v1::FindMissingRequest {
        ids: find.ids.slice(..33),
        ..find
    };
    refused(
        daemon.content().find_missing(odd).await,
        Code::InvalidArgument,
        "ids: 33",
    );

    let put = async |payload_bytes: usize| {
        let chunk = v1::Chunk {
            payload: vec![1; payload_bytes].into(),
            ..small_chunk(1).1
        };
        let message = v1::PutChunksRequest {
            upload_id: upload.clone(),
            chunks: vec![chunk],
        };
        daemon
            .content()
            .put_chunks(futures::stream::iter([message]))
            .await
    };
    refused(
        put(limits::UPLOAD_MESSAGE_BYTES as usize + 1).await,
        Code::OutOfRange,
        "bytes of payload",
    );
    refused(
        put(limits::MESSAGE_BYTES_MAX + 1).await,
        Code::OutOfRange,
        "too large",
    );
    let get = v1::GetSnapshotRequest {
        snapshot: "x".repeat(limits::SMALL_MESSAGE_BYTES_MAX + 1),
    };
    refused(
        daemon.snapshots().get_snapshot(get).await,
        Code::OutOfRange,
        "too large",
    );
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_name_no_upload_or_another() {
    let daemon = Daemon::start().await;
    let (_, chunk) = small_chunk(1);
    refused(
        daemon.put_chunks("up-0", vec![chunk.clone()]).await,
        Code::NotFound,
        "\"up-0\"",
    );
    let first = daemon.begin("a", SIZE).await.unwrap();
    let second = daemon.begin("b", SIZE).await.unwrap();
    let messages = [first, second].map(|upload_id| v1::PutChunksRequest {
        upload_id,
        chunks: vec![chunk.clone()],
    });
    let mixed = daemon
        .content()
        .put_chunks(futures::stream::iter(messages))
        .await;
    refused(mixed, Code::InvalidArgument, "upload_id");
    // A stream without messages is valid.
    assert_eq!(
        daemon.put_chunks("up-0", Vec::new()).await.unwrap().chunks,
        0
    );
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_long_streams_are_taken_side_by_side() {
    let daemon = Daemon::start().await;
    let volumes: Vec<_> = (0..20).map(|seed| noise(100 * seed, 2 << 20)).collect();
    let uploads = volumes.iter().enumerate().map(|(number, volume)| {
        let daemon = &daemon;
        async move { daemon.upload(&format!("v{number}"), volume).await }
    });
    let snapshots = futures::future::join_all(uploads).await;
    assert!(
        snapshots
            .iter()
            .all(|snapshot| snapshot.new_bytes == 2 << 20)
    );
    daemon.stop().await;
}
