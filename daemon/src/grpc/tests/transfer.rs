//! Content goes in, and the same content comes out.

use futures::StreamExt;
use tonic::Code;
use varve_content::codec::{Codec, Decoder};
use varve_proto::v1::{
    download_response::Part, read_snapshot_response::Content,
    replication_service_client::ReplicationServiceClient,
};

use super::*;
use crate::limits;

/// Reassembles a volume from a download and checks every chunk. Returns it with its snapshot.
async fn download(daemon: &Daemon, snapshot: &str, plain: bool) -> (v1::Snapshot, Vec<u8>) {
    let request = v1::DownloadRequest {
        snapshot: snapshot.to_owned(),
        plain,
    };
    let mut messages = daemon
        .content()
        .download(request)
        .await
        .unwrap()
        .into_inner();
    let Some(Part::Snapshot(snapshot)) = messages.message().await.unwrap().unwrap().part else {
        panic!("the snapshot comes first");
    };
    let mut volume = vec![0; usize::try_from(snapshot.size_bytes).unwrap()];
    let mut tree = TreeBuilder::new(snapshot.size_bytes).unwrap();
    let mut decoder = Decoder::new();
    let mut leaf: Option<(usize, Leaf, std::collections::HashSet<ChunkId>)> = None;
    while let Some(message) = messages.message().await.unwrap() {
        match message.part.unwrap() {
            Part::Snapshot(_) => panic!("the snapshot comes once"),
            Part::Leaf(next) => {
                assert!(
                    leaf.as_ref().is_none_or(|(_, _, open)| open.is_empty()),
                    "chunks are missing"
                );
                let (segment, next) = crate::grpc::convert::incoming_leaf(&next).unwrap();
                tree.push(segment, next.id()).unwrap();
                let open = next.entries().iter().map(|entry| entry.chunk).collect();
                leaf = Some((segment as usize * SEGMENT_BYTES, next, open));
            }
            Part::Chunks(batch) => {
                let (start, leaf, open) = leaf.as_mut().unwrap();
                for chunk in batch.chunks {
                    let id = ChunkId::try_from(&chunk.id[..]).unwrap();
                    assert!(open.remove(&id), "each chunk once");
                    let codec = Codec::try_from(u8::try_from(chunk.codec).unwrap()).unwrap();
                    assert!(!plain || codec == Codec::Raw);
                    let mut bytes = Vec::new();
                    decoder
                        .decode(
                            codec,
                            &chunk.payload,
                            chunk.plain_bytes as usize,
                            &mut bytes,
                        )
                        .unwrap();
                    assert_eq!(ChunkId::of(&bytes), id);
                    for entry in leaf.entries().iter().filter(|entry| entry.chunk == id) {
                        let at = *start + entry.start_block as usize * BLOCK_BYTES;
                        volume[at..at + bytes.len()].copy_from_slice(&bytes);
                    }
                }
            }
        }
    }
    assert!(
        leaf.is_none_or(|(_, _, open)| open.is_empty()),
        "chunks are missing"
    );
    assert_eq!(tree.finish().0.id().as_bytes(), &snapshot.root[..]);
    (snapshot, volume)
}

async fn read(daemon: &Daemon, snapshot: &str, offset: usize, length: usize) -> (Vec<u8>, usize) {
    let request = v1::ReadSnapshotRequest {
        snapshot: snapshot.to_owned(),
        offset_bytes: offset as u64,
        length_bytes: length as u64,
    };
    let mut messages = daemon
        .content()
        .read_snapshot(request)
        .await
        .unwrap()
        .into_inner();
    let mut bytes = Vec::new();
    let mut holes = 0;
    while let Some(message) = messages.message().await.unwrap() {
        assert_eq!(message.offset_bytes, (offset + bytes.len()) as u64);
        match message.content.unwrap() {
            Content::Data(data) => bytes.extend_from_slice(&data),
            Content::HoleBytes(hole) => {
                holes += 1;
                bytes.resize(bytes.len() + usize::try_from(hole).unwrap(), 0);
            }
        }
    }
    (bytes, holes)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_in_comes_out() {
    let daemon = Daemon::start().await;
    let volume = sparse_volume(1);
    let snapshot = daemon.upload("web", &volume).await;
    assert_eq!(snapshot.size_bytes, volume.len() as u64);
    assert_eq!(
        snapshot.data_bytes,
        (SEGMENT_BYTES + 36 * BLOCK_BYTES) as u64
    );
    assert_eq!(snapshot.new_bytes, snapshot.data_bytes);
    assert_eq!(snapshot.state, i32::from(v1::SnapshotState::Completed));
    assert!(
        snapshot.id.starts_with("snap-") && snapshot.id.len() == 22,
        "{}",
        snapshot.id
    );
    assert_eq!(&snapshot.root[..], Cut::of(&volume).root.as_bytes());

    for (key, plain) in [("web", false), ("web", true), (snapshot.id.as_str(), false)] {
        let (told, bytes) = download(&daemon, key, plain).await;
        assert_eq!(told, snapshot);
        assert!(bytes == volume, "download of {key}, plain: {plain}");
    }

    // Another upload of the same content misses nothing.
    let cut = Cut::of(&volume);
    let again = daemon.begin("web-2", volume.len() as u64).await.unwrap();
    assert!(daemon.find_missing(&again, &cut.chunks).await.is_empty());
    daemon.put_leaves(&again, cut.leaves).await.unwrap();
    let second = daemon.commit(&again, cut.root).await.unwrap();
    assert_eq!((second.new_bytes, &second.root), (0, &snapshot.root));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_are_read_with_holes_as_holes() {
    let daemon = Daemon::start().await;
    let volume = sparse_volume(2);
    daemon.upload("web", &volume).await;
    let (bytes, holes) = read(&daemon, "web", 0, 0).await;
    assert!(bytes == volume);
    assert_eq!(holes, 2, "each hole is one message, over segments too");
    for (offset, length) in [
        (1, 1),
        (4095, 4098),
        (SEGMENT_BYTES / 2 - 7, 3 << 20),
        (volume.len() - 5, 5),
    ] {
        let (bytes, _) = read(&daemon, "web", offset, length).await;
        assert!(
            bytes == volume[offset..offset + length],
            "{length} bytes at {offset}"
        );
    }
    let past = v1::ReadSnapshotRequest {
        snapshot: "web".to_owned(),
        offset_bytes: volume.len() as u64,
        length_bytes: 1,
    };
    let status = daemon.content().read_snapshot(past).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("length_bytes"), "{status}");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_of_holes_needs_no_chunks() {
    let daemon = Daemon::start().await;
    let size = 1 << 40;
    let upload = daemon.begin("empty", size).await.unwrap();
    let root = TreeBuilder::new(size).unwrap().finish().0.id();
    let snapshot = daemon.commit(&upload, root).await.unwrap();
    assert_eq!((snapshot.data_bytes, snapshot.new_bytes), (0, 0));
    let request = v1::ReadSnapshotRequest {
        snapshot: "empty".to_owned(),
        ..v1::ReadSnapshotRequest::default()
    };
    let messages: Vec<_> = daemon
        .content()
        .read_snapshot(request)
        .await
        .unwrap()
        .into_inner()
        .collect()
        .await;
    assert!(
        matches!(&messages[..], [Ok(only)] if only.content == Some(Content::HoleBytes(size))),
        "{messages:?}"
    );
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_exist_is_not_found_at_once() {
    let daemon = Daemon::start().await;
    let download = v1::DownloadRequest {
        snapshot: "absent".to_owned(),
        plain: false,
    };
    let status = daemon.content().download(download).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert!(status.message().contains("\"absent\""), "{status}");
    let read = v1::ReadSnapshotRequest {
        snapshot: "snap-00000000000000000".to_owned(),
        ..v1::ReadSnapshotRequest::default()
    };
    assert_eq!(
        daemon
            .content()
            .read_snapshot(read)
            .await
            .unwrap_err()
            .code(),
        Code::NotFound
    );
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_that_arrived_stay_when_an_upload_is_aborted() {
    let daemon = Daemon::start().await;
    let volume = sparse_volume(3);
    let cut = Cut::of(&volume);
    let upload_id = daemon.begin("web", volume.len() as u64).await.unwrap();
    daemon
        .put_chunks(&upload_id, cut.chunks.clone())
        .await
        .unwrap();
    let abort = v1::AbortUploadRequest {
        upload_id: upload_id.clone(),
    };
    daemon.content().abort_upload(abort.clone()).await.unwrap();
    assert_eq!(
        daemon
            .content()
            .abort_upload(abort)
            .await
            .unwrap_err()
            .code(),
        Code::NotFound
    );
    assert!(daemon.names().await.is_empty());
    assert_eq!(
        daemon
            .put_leaves(&upload_id, cut.leaves)
            .await
            .unwrap_err()
            .code(),
        Code::NotFound
    );

    let again = daemon.begin("web", volume.len() as u64).await.unwrap();
    assert!(daemon.find_missing(&again, &cut.chunks).await.is_empty());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_what_was_committed_and_drops_open_uploads() {
    let daemon = Daemon::start().await;
    let volume = sparse_volume(4);
    let snapshot = daemon.upload("web", &volume).await;
    let open = daemon.begin("half", volume.len() as u64).await.unwrap();
    assert_eq!(
        daemon
            .status()
            .get_status(v1::GetStatusRequest {})
            .await
            .unwrap()
            .into_inner()
            .uploads,
        1
    );
    let socket = daemon.dir.path().join("grpc.sock");
    let dir = daemon.stop().await;
    assert!(!socket.exists(), "sockets go with the daemon");

    let daemon = Daemon::start_in(dir).await;
    assert_eq!(download(&daemon, "web", false).await, (snapshot, volume));
    assert_eq!(daemon.names().await, ["web"]);
    assert_eq!(
        daemon
            .put_leaves(&open, Vec::new())
            .await
            .unwrap_err()
            .code(),
        Code::NotFound
    );
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_outlives_its_snapshot_and_ends_with_the_daemon() {
    let daemon = Daemon::start().await;
    let made = daemon.upload("web", &noise(5, 1 << 20)).await;
    let holding = || async {
        let request = v1::HoldRequest {
            snapshot: "web".to_owned(),
        };
        let mut service = ReplicationServiceClient::new(daemon.channel.clone());
        let mut messages = service.hold(request).await?.into_inner();
        let first = messages.message().await?.unwrap();
        Ok::<_, Status>((first.snapshot.unwrap(), messages))
    };
    let mut held = Vec::new();
    for _ in 0..limits::HOLDS_OF_CONNECTION_MAX {
        held.push(holding().await.unwrap());
    }
    let refused = holding().await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    let (snapshot, mut messages) = held.pop().unwrap();
    assert_eq!(snapshot, made);
    drop(held);

    let request = v1::DeleteSnapshotRequest {
        snapshot: "web".to_owned(),
    };
    daemon.snapshots().delete_snapshot(request).await.unwrap();
    // A returned place is free a moment later.
    let gone = loop {
        match holding().await.unwrap_err() {
            busy if busy.code() == Code::ResourceExhausted => tokio::task::yield_now().await,
            gone => break gone,
        }
    };
    assert_eq!(gone.code(), Code::NotFound, "{gone}");
    daemon.stop().await;
    let ended = messages.message().await.unwrap_err();
    assert_eq!(ended.code(), Code::Unavailable, "{ended}");
}
