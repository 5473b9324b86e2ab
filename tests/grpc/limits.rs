//! Messages and numbers over the limits are refused, and the daemon continues.

use bytes::Bytes;
use tokio_stream::iter;
use tonic::{Code, Status};
use varve_content::SEGMENT_BYTES;
use varve_proto::v1::{
    BeginUploadRequest, ChunkerParameters, FindMissingRequest, GetSnapshotRequest,
    GetStatusRequest, Leaf, LeafEntry, ListSnapshotsRequest, PutChunksRequest, TagSnapshotRequest,
};
use varve_tests::{
    lab::Lab,
    random::Random,
    rpc::{Content, Rpc},
};

async fn assert_serving(rpc: &Rpc) {
    rpc.status
        .clone()
        .get_status(GetStatusRequest {})
        .await
        .unwrap();
}

fn is_refusal(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::OutOfRange | Code::ResourceExhausted | Code::InvalidArgument
    )
}

#[tokio::test]
async fn messages_over_the_limits_are_refused() {
    let lab = Lab::new();
    let rpc = Rpc::connect(&lab.varved).await;
    let request = BeginUploadRequest {
        name: "volume".to_owned(),
        size_bytes: 64 << 20,
        chunker: Some(ChunkerParameters {
            version: varve_content::chunker::CHUNKER_VERSION,
        }),
        tags: Default::default(),
        ..BeginUploadRequest::default()
    };
    let begun = rpc
        .content
        .clone()
        .begin_upload(request)
        .await
        .unwrap()
        .into_inner();
    assert!(
        begun.max_ids > 0 && begun.max_message_bytes >= 256 << 10,
        "{begun:?}"
    );

    let most = begun.max_ids as usize;
    for (ids, accepted) in [(most, true), (most + 1, false), (1 << 20, false)] {
        let request = FindMissingRequest {
            upload_id: begun.upload_id.clone(),
            ids: vec![7; 32 * ids].into(),
            segments: Vec::new(),
        };
        match rpc.content.clone().find_missing(request).await {
            Ok(found) => assert!(
                accepted && found.into_inner().missing.len() == ids,
                "{ids} ids"
            ),
            Err(status) => assert!(!accepted && is_refusal(&status), "{ids} ids: {status:?}"),
        }
    }
    let request = FindMissingRequest {
        upload_id: begun.upload_id.clone(),
        ids: vec![7; 33].into(),
        segments: Vec::new(),
    };
    assert_eq!(
        rpc.content
            .clone()
            .find_missing(request)
            .await
            .unwrap_err()
            .code(),
        Code::InvalidArgument
    );

    // One message of the greatest length, and a longer one.
    let mut volume = vec![0; SEGMENT_BYTES];
    Random::seeded(131).fill(&mut volume);
    let chunks = Content::of(&volume).chunks;
    let put = |chunks: Vec<_>| {
        let request = PutChunksRequest {
            upload_id: begun.upload_id.clone(),
            chunks,
        };
        let mut content = rpc.content.clone();
        async move { content.put_chunks(iter([request])).await }
    };
    let mut bytes = 0;
    let fitting = chunks.iter().take_while(|chunk| {
        bytes += chunk.payload.len();
        bytes <= begun.max_message_bytes as usize
    });
    put(fitting.cloned().collect()).await.unwrap();
    let status = put(chunks.clone()).await.unwrap_err();
    assert!(is_refusal(&status), "{status:?}");
    // Far longer: it must not even be received.
    let huge: Vec<_> = std::iter::repeat_n(chunks, 8).flatten().collect();
    put(huge).await.unwrap_err();
    assert_serving(&rpc).await;

    // Large numbers of small chunks, of leaves, of entries.
    let empty = varve_proto::v1::Chunk::default();
    put(vec![empty; 200_000]).await.unwrap_err();
    let entry = LeafEntry {
        start_block: 0,
        blocks: 1,
        chunk_id: Bytes::from_static(&[1; 32]),
    };
    let leaf = Leaf {
        segment: 0,
        entries: vec![entry; 100_000],
    };
    rpc.put_leaves(&begun.upload_id, &[leaf]).await.unwrap_err();
    let leaves = vec![
        Leaf {
            segment: 0,
            entries: Vec::new()
        };
        500_000
    ];
    rpc.put_leaves(&begun.upload_id, &leaves).await.unwrap_err();
    assert_serving(&rpc).await;
    assert!(
        lab.varved.peak_memory_bytes() < 512 << 20,
        "{}",
        lab.varved.peak_memory_bytes()
    );
}

#[tokio::test]
async fn small_requests_may_not_be_large() {
    let lab = Lab::new();
    let rpc = Rpc::connect(&lab.varved).await;
    let text = "x".repeat(8 << 20);
    let get = GetSnapshotRequest {
        snapshot: text.clone(),
    };
    let list = ListSnapshotsRequest {
        name_prefix: text.clone(),
        ..Default::default()
    };
    let token = ListSnapshotsRequest {
        page_token: text.clone(),
        ..Default::default()
    };
    let tag = TagSnapshotRequest {
        snapshot: "x".to_owned(),
        remove: vec![String::new(); 1 << 20],
        ..Default::default()
    };
    assert!(is_refusal(
        &rpc.snapshots.clone().get_snapshot(get).await.unwrap_err()
    ));
    assert!(is_refusal(
        &rpc.snapshots
            .clone()
            .list_snapshots(list)
            .await
            .unwrap_err()
    ));
    assert!(is_refusal(
        &rpc.snapshots
            .clone()
            .list_snapshots(token)
            .await
            .unwrap_err()
    ));
    rpc.snapshots.clone().tag_snapshot(tag).await.unwrap_err();
    let garbage = ListSnapshotsRequest {
        page_token: "no token".to_owned(),
        ..Default::default()
    };
    let status = rpc
        .snapshots
        .clone()
        .list_snapshots(garbage)
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert_serving(&rpc).await;
}

#[tokio::test]
async fn uploads_are_bounded_in_number() {
    let lab = Lab::new();
    let rpc = Rpc::connect(&lab.varved).await;
    let mut open = Vec::new();
    let status = loop {
        match rpc.begin(&format!("upload-{}", open.len()), 4096).await {
            Ok(upload) => open.push(upload),
            Err(status) => break status,
        }
        assert!(open.len() <= 10_000, "there is no bound");
    };
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(
        status.message().contains(&open.len().to_string()),
        "the limit is named: {status:?}"
    );
    let abort = varve_proto::v1::AbortUploadRequest {
        upload_id: open.pop().unwrap(),
    };
    rpc.content.clone().abort_upload(abort).await.unwrap();
    rpc.begin("one-more", 4096).await.unwrap();
}

/// Pages of any size list every snapshot once, also while new ones are made.
#[tokio::test]
async fn listings_come_in_pages() {
    let lab = Lab::new();
    let rpc = Rpc::connect(&lab.varved).await;
    let content = Content::of(&[1; 4096]);
    let mut names: Vec<String> = (0..23)
        .map(|number| format!("snapshot-{number:02}"))
        .collect();
    for name in &names {
        rpc.upload(name, &content).await.unwrap();
    }
    for page_size in [1, 7, 23, 24, 0, u32::MAX] {
        let mut seen = Vec::new();
        let mut token = String::new();
        loop {
            let request = ListSnapshotsRequest {
                page_size,
                page_token: token,
                ..Default::default()
            };
            let page = rpc
                .snapshots
                .clone()
                .list_snapshots(request)
                .await
                .unwrap()
                .into_inner();
            assert!(page_size == 0 || page.snapshots.len() <= page_size as usize);
            seen.extend(page.snapshots.into_iter().map(|snapshot| snapshot.name));
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
        }
        assert_eq!(seen, names, "in pages of {page_size}");
    }
    // The token keeps its place when records before and after it change.
    let request = ListSnapshotsRequest {
        page_size: 10,
        ..Default::default()
    };
    let first = rpc
        .snapshots
        .clone()
        .list_snapshots(request)
        .await
        .unwrap()
        .into_inner();
    rpc.upload("snapshot-00-late", &content).await.unwrap();
    rpc.upload("snapshot-99-late", &content).await.unwrap();
    names.push("snapshot-99-late".to_owned());
    let request = ListSnapshotsRequest {
        page_token: first.next_page_token.clone(),
        ..Default::default()
    };
    let rest = rpc
        .snapshots
        .clone()
        .list_snapshots(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        rest.snapshots
            .into_iter()
            .map(|snapshot| snapshot.name)
            .collect::<Vec<_>>(),
        names[10..]
    );
    // It is not valid with other filters.
    let request = ListSnapshotsRequest {
        page_token: first.next_page_token,
        name_prefix: "other".to_owned(),
        ..Default::default()
    };
    assert_eq!(
        rpc.snapshots
            .clone()
            .list_snapshots(request)
            .await
            .unwrap_err()
            .code(),
        Code::InvalidArgument
    );
}
