//! Uploads that break the rules are refused with a reason and leave nothing visible; valid ones
//! beside them continue.

use bytes::Bytes;
use tonic::{Code, Status};
use varve_content::{
    RootId, SEGMENT_BYTES,
    chunker::{CHUNKER_VERSION, MAX_CHUNK_BLOCKS},
};
use varve_proto::v1::{
    BeginUploadRequest, Chunk, ChunkerParameters, Codec, FindMissingRequest, Leaf, LeafEntry,
    ListSnapshotsRequest,
};
use varve_tests::{
    lab::Lab,
    random::Random,
    rpc::{Content, Rpc, chunk},
};

const BLOCK: usize = 4096;

/// Asserts that a call was refused with this code, and that the reason names the thing.
#[track_caller]
fn assert_refused<T: std::fmt::Debug>(outcome: Result<T, Status>, code: Code, named: &str) {
    let status = outcome.expect_err("this should have been refused");
    assert_eq!(status.code(), code, "{status:?}");
    assert!(
        status.message().contains(named),
        "{named:?} is not named: {status:?}"
    );
}

/// A volume of two segments that does not compress.
fn volume() -> Vec<u8> {
    let mut bytes = vec![0; SEGMENT_BYTES + 100 * BLOCK];
    Random::seeded(121).fill(&mut bytes);
    // A hole at the start of the second segment.
    bytes[SEGMENT_BYTES..SEGMENT_BYTES + 10 * BLOCK].fill(0);
    bytes
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn names(rpc: &Rpc) -> Vec<String> {
    let list = rpc
        .snapshots
        .clone()
        .list_snapshots(ListSnapshotsRequest::default())
        .await
        .unwrap()
        .into_inner();
    list.snapshots
        .into_iter()
        .map(|snapshot| snapshot.name)
        .collect()
}

/// A daemon, its services, an upload that has begun, and its content.
struct Scene {
    lab: Lab,
    rpc: Rpc,
    content: Content,
    upload: String,
}

impl Scene {
    async fn new() -> Self {
        let lab = Lab::new();
        let rpc = Rpc::connect(&lab.varved).await;
        let content = Content::of(&volume());
        let upload = rpc.begin("volume", content.size_bytes).await.unwrap();
        Self {
            lab,
            rpc,
            content,
            upload,
        }
    }

    async fn put(&self, chunk: Chunk) -> Result<(), Status> {
        self.rpc.put_chunks(&self.upload, &[chunk]).await.map(drop)
    }

    async fn put_entries(&self, segment: u32, entries: Vec<LeafEntry>) -> Result<(), Status> {
        self.rpc
            .put_leaves(&self.upload, &[Leaf { segment, entries }])
            .await
    }

    /// Asserts that nothing is visible, and that the same upload, done right, still succeeds: the
    /// refusal did no harm.
    async fn finish(self) {
        assert!(names(&self.rpc).await.is_empty());
        let snapshot = self.rpc.upload("done-right", &self.content).await.unwrap();
        assert_eq!(snapshot.root, self.content.root.as_bytes().as_slice());
        assert_eq!(names(&self.rpc).await, ["done-right"]);
        let file = self.lab.scratch.file("volume", volume());
        self.lab.assert_content("done-right", &file);
    }
}

#[tokio::test]
async fn an_upload_by_the_rules_succeeds() {
    let scene = Scene::new().await;
    let put = scene
        .rpc
        .put_chunks(&scene.upload, &scene.content.chunks)
        .await
        .unwrap();
    assert_eq!(put.chunks, scene.content.chunks.len() as u64);
    assert_eq!(put.new_bytes, volume().len() as u64 - 10 * BLOCK as u64);
    scene
        .rpc
        .put_leaves(&scene.upload, &scene.content.leaves)
        .await
        .unwrap();
    assert!(
        names(&scene.rpc).await.is_empty(),
        "nothing is visible before the commit"
    );
    let snapshot = scene
        .rpc
        .commit(&scene.upload, scene.content.root)
        .await
        .unwrap();
    assert_eq!(
        (snapshot.name.as_str(), snapshot.size_bytes),
        ("volume", scene.content.size_bytes)
    );
    assert_eq!(snapshot.new_bytes, put.new_bytes);
    let file = scene.lab.scratch.file("volume", volume());
    scene.lab.assert_content("volume", &file);
    scene.lab.snapctl().verify("volume");
}

#[tokio::test]
async fn a_chunk_whose_bytes_do_not_match_its_id_is_refused() {
    let scene = Scene::new().await;
    let good = scene.content.chunks[3].clone();
    let mut flipped = good.payload.to_vec();
    flipped[1000] ^= 1;
    let wrong = Chunk {
        payload: flipped.into(),
        ..good.clone()
    };
    assert_refused(
        scene.put(wrong).await,
        Code::InvalidArgument,
        &hex(&good.id),
    );
    let other = Chunk {
        id: scene.content.chunks[4].id.clone(),
        ..good.clone()
    };
    assert_refused(
        scene.put(other).await,
        Code::InvalidArgument,
        &hex(&scene.content.chunks[4].id),
    );
    // Also when the store already has the chunk.
    scene.put(good.clone()).await.unwrap();
    let mut flipped = good.payload.to_vec();
    flipped[0] ^= 1;
    let wrong = Chunk {
        payload: flipped.into(),
        ..good.clone()
    };
    assert_refused(
        scene.put(wrong).await,
        Code::InvalidArgument,
        &hex(&good.id),
    );
    scene.finish().await;
}

#[tokio::test]
async fn a_chunk_with_fields_that_cannot_be_is_refused() {
    let scene = Scene::new().await;
    let good = scene.content.chunks[0].clone();
    let cases = [
        Chunk {
            id: Bytes::new(),
            ..good.clone()
        },
        Chunk {
            id: good.id.slice(..31),
            ..good.clone()
        },
        Chunk {
            id: [good.id.as_ref(), &[0]].concat().into(),
            ..good.clone()
        },
        Chunk {
            codec: 77,
            ..good.clone()
        },
        Chunk {
            plain_bytes: 0,
            ..good.clone()
        },
        Chunk {
            plain_bytes: good.plain_bytes + 1,
            ..good.clone()
        },
        Chunk {
            plain_bytes: good.plain_bytes + 4096,
            ..good.clone()
        },
        Chunk {
            plain_bytes: u32::MAX,
            ..good.clone()
        },
        Chunk {
            plain_bytes: 1 << 20,
            ..good.clone()
        },
        Chunk {
            payload: Bytes::new(),
            ..good.clone()
        },
        Chunk {
            payload: good.payload.slice(1..),
            ..good.clone()
        },
        Chunk {
            codec: Codec::Zstd.into(),
            ..good.clone()
        },
        Chunk {
            codec: Codec::Lz4.into(),
            ..good.clone()
        },
        Chunk {
            codec: Codec::Zstd.into(),
            payload: zstd_bomb(),
            ..good.clone()
        },
        Chunk {
            codec: Codec::Zstd.into(),
            payload: Bytes::new(),
            ..good.clone()
        },
    ];
    for case in cases {
        let shown = format!(
            "{:?}",
            (
                &case.id.len(),
                case.codec,
                case.plain_bytes,
                case.payload.len()
            )
        );
        let status = scene.put(case).await.expect_err(&shown);
        assert_eq!(status.code(), Code::InvalidArgument, "{shown}: {status:?}");
    }
    scene.finish().await;
}

/// A frame of a few bytes that claims 3 GiB: one block of zeros, run-length encoded.
fn zstd_bomb() -> Bytes {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0b1010_0000];
    frame.extend_from_slice(&(3u32 << 30).to_le_bytes());
    // Blocks of 128 KiB of one repeated byte, with the last one marked.
    for number in 0..64 {
        let header = (u32::from(number == 63)) | 1 << 1 | (128 << 10) << 3;
        frame.extend_from_slice(&header.to_le_bytes()[..3]);
        frame.push(0xaa);
    }
    frame.into()
}

#[tokio::test]
async fn a_chunk_that_is_cut_otherwise_is_refused() {
    let scene = Scene::new().await;
    let first = &scene.content.chunks[0];
    let second = &scene.content.chunks[1];
    let joined = chunk(&[first.payload.as_ref(), &second.payload].concat());
    let mut with_zeros = first.payload.to_vec();
    with_zeros[BLOCK..2 * BLOCK].fill(0);
    let with_zeros = chunk(&with_zeros);
    let all_zero = chunk(&vec![0; 4 * BLOCK]);
    let mut long = vec![0; (MAX_CHUNK_BLOCKS as usize + 1) * BLOCK];
    Random::seeded(122).fill(&mut long);
    for case in [joined, with_zeros, all_zero, chunk(&long)] {
        assert_refused(
            scene.put(case.clone()).await,
            Code::InvalidArgument,
            &hex(&case.id),
        );
    }
    scene.finish().await;
}

#[tokio::test]
async fn a_leaf_that_names_absent_chunks_is_refused() {
    let scene = Scene::new().await;
    let leaf = &scene.content.leaves[0];
    let absent = hex(&leaf.entries[5].chunk_id);
    let some: Vec<_> = scene
        .content
        .chunks
        .iter()
        .filter(|chunk| hex(&chunk.id) != absent)
        .cloned()
        .collect();
    scene.rpc.put_chunks(&scene.upload, &some).await.unwrap();
    assert_refused(
        scene.put_entries(0, leaf.entries.clone()).await,
        Code::InvalidArgument,
        &absent,
    );
    scene.finish().await;
}

#[tokio::test]
async fn a_leaf_whose_entries_cannot_be_is_refused() {
    let scene = Scene::new().await;
    scene
        .rpc
        .put_chunks(&scene.upload, &scene.content.chunks)
        .await
        .unwrap();
    let good = scene.content.leaves[0].entries.clone();
    let mut cases: Vec<(&str, u32, Vec<LeafEntry>)> = Vec::new();
    let mut changed = |what, segment, change: &dyn Fn(&mut Vec<LeafEntry>)| {
        let mut entries = good.clone();
        change(&mut entries);
        cases.push((what, segment, entries));
    };
    changed("overlaps", 0, &|entries| entries[1].start_block -= 1);
    changed("the same place twice", 0, &|entries| {
        entries.insert(1, entries[0].clone())
    });
    changed("not sorted", 0, &|entries| entries.swap(0, 1));
    changed("no blocks", 0, &|entries| entries[0].blocks = 0);
    changed("too many blocks", 0, &|entries| {
        entries[0].blocks = MAX_CHUNK_BLOCKS + 1
    });
    changed("another length than its chunk", 0, &|entries| {
        entries[0].blocks -= 1
    });
    changed("beyond the segment", 0, &|entries| {
        entries.last_mut().unwrap().start_block += 1
    });
    changed("far beyond the segment", 0, &|entries| {
        entries.last_mut().unwrap().start_block = u32::MAX
    });
    changed("an id of another length", 0, &|entries| {
        entries[0].chunk_id = Bytes::from_static(b"short")
    });
    changed("empty", 0, &|entries| entries.clear());
    changed("a segment beyond the end", 2, &|_| {});
    changed("a segment far beyond the end", u32::MAX, &|_| {});
    // The volume has 100 blocks in its second segment.
    changed("beyond the size", 1, &|_| {});
    for (what, segment, entries) in cases {
        let status = scene.put_entries(segment, entries).await.expect_err(what);
        assert_eq!(status.code(), Code::InvalidArgument, "{what}: {status:?}");
        assert!(!status.message().is_empty(), "{what}");
    }
    scene.finish().await;
}

/// Two chunks of one extent of data, the first of which ends where only a hole could end it.
#[tokio::test]
async fn a_leaf_that_the_chunker_would_not_make_is_refused() {
    let scene = Scene::new().await;
    let mut bytes = vec![0; 3 * BLOCK];
    Random::seeded(123).fill(&mut bytes);
    // Shorter than the minimum, so only a hole or the edge may follow.
    let pieces = [chunk(&bytes[..BLOCK]), chunk(&bytes[BLOCK..])];
    scene.rpc.put_chunks(&scene.upload, &pieces).await.unwrap();
    let entry = |start_block, blocks, chunk: &Chunk| LeafEntry {
        start_block,
        blocks,
        chunk_id: chunk.id.clone(),
    };
    let joined = vec![entry(10, 1, &pieces[0]), entry(11, 2, &pieces[1])];
    assert_refused(
        scene.put_entries(0, joined).await,
        Code::InvalidArgument,
        &hex(&pieces[0].id),
    );
    let apart = vec![entry(10, 1, &pieces[0]), entry(12, 2, &pieces[1])];
    scene.put_entries(0, apart).await.unwrap();
    scene.finish().await;
}

#[tokio::test]
async fn a_root_that_is_not_the_contents_is_refused() {
    let scene = Scene::new().await;
    scene
        .rpc
        .put_chunks(&scene.upload, &scene.content.chunks)
        .await
        .unwrap();
    scene
        .rpc
        .put_leaves(&scene.upload, &scene.content.leaves)
        .await
        .unwrap();
    let mut wrong = *scene.content.root.as_bytes();
    wrong[0] ^= 1;
    let outcome = scene
        .rpc
        .commit(&scene.upload, RootId::from_bytes(wrong))
        .await;
    assert_refused(
        outcome,
        Code::InvalidArgument,
        &scene.content.root.to_string(),
    );
    scene.finish().await;
}

#[tokio::test]
async fn a_leaf_that_is_missing_or_twice_is_refused_at_the_commit() {
    let scene = Scene::new().await;
    scene
        .rpc
        .put_chunks(&scene.upload, &scene.content.chunks)
        .await
        .unwrap();
    scene
        .rpc
        .put_leaves(&scene.upload, &scene.content.leaves[..1])
        .await
        .unwrap();
    assert_refused(
        scene.rpc.commit(&scene.upload, scene.content.root).await,
        Code::InvalidArgument,
        "root",
    );

    let upload = scene
        .rpc
        .begin("twice", scene.content.size_bytes)
        .await
        .unwrap();
    scene
        .rpc
        .put_leaves(&upload, &scene.content.leaves)
        .await
        .unwrap();
    let twice = match scene
        .rpc
        .put_leaves(&upload, &scene.content.leaves[..1])
        .await
    {
        Ok(()) => scene
            .rpc
            .commit(&upload, scene.content.root)
            .await
            .map(drop),
        refused => refused,
    };
    assert_refused(twice, Code::InvalidArgument, "segment 0");
    scene.finish().await;
}

#[tokio::test]
async fn an_upload_that_is_not_known_is_refused() {
    let scene = Scene::new().await;
    let request = FindMissingRequest {
        upload_id: "unknown".to_owned(),
        ids: Bytes::new(),
        segments: Vec::new(),
    };
    assert_refused(
        scene.rpc.content.clone().find_missing(request).await,
        Code::NotFound,
        "unknown",
    );
    for upload in ["unknown", "", &"x".repeat(100_000)] {
        let short = &upload[..upload.len().min(20)];
        assert_refused(
            scene
                .rpc
                .put_chunks(upload, &scene.content.chunks[..1])
                .await,
            Code::NotFound,
            short,
        );
        assert_refused(
            scene
                .rpc
                .put_leaves(upload, &scene.content.leaves[..1])
                .await,
            Code::NotFound,
            short,
        );
        assert_refused(
            scene.rpc.commit(upload, scene.content.root).await,
            Code::NotFound,
            short,
        );
    }
    scene.finish().await;
}

#[tokio::test]
async fn an_upload_ends_once() {
    let scene = Scene::new().await;
    let (rpc, content) = (&scene.rpc, &scene.content);
    rpc.put_chunks(&scene.upload, &content.chunks)
        .await
        .unwrap();
    rpc.put_leaves(&scene.upload, &content.leaves)
        .await
        .unwrap();
    rpc.commit(&scene.upload, content.root).await.unwrap();
    let again = rpc.commit(&scene.upload, content.root).await.unwrap_err();
    assert!(
        matches!(again.code(), Code::NotFound | Code::InvalidArgument),
        "{again:?}"
    );
    assert_eq!(names(rpc).await, ["volume"]);

    let aborted = rpc.begin("aborted", content.size_bytes).await.unwrap();
    let abort = varve_proto::v1::AbortUploadRequest {
        upload_id: aborted.clone(),
    };
    rpc.content
        .clone()
        .abort_upload(abort.clone())
        .await
        .unwrap();
    assert_refused(
        rpc.put_leaves(&aborted, &content.leaves).await,
        Code::NotFound,
        &aborted,
    );
    assert_refused(
        rpc.content.clone().abort_upload(abort).await,
        Code::NotFound,
        &aborted,
    );
    assert_eq!(names(rpc).await, ["volume"]);
}

/// Of two uploads that commit the same name, the second is refused, though the name was free when
/// it began.
#[tokio::test]
async fn a_name_is_given_once() {
    let scene = Scene::new().await;
    let other = scene
        .rpc
        .begin("volume", scene.content.size_bytes)
        .await
        .unwrap();
    for upload in [&scene.upload, &other] {
        scene
            .rpc
            .put_chunks(upload, &scene.content.chunks)
            .await
            .unwrap();
        scene
            .rpc
            .put_leaves(upload, &scene.content.leaves)
            .await
            .unwrap();
    }
    scene.rpc.commit(&other, scene.content.root).await.unwrap();
    assert_refused(
        scene.rpc.commit(&scene.upload, scene.content.root).await,
        Code::AlreadyExists,
        "volume",
    );
    assert_refused(
        scene.rpc.begin("volume", 4096).await,
        Code::AlreadyExists,
        "volume",
    );
    assert_eq!(names(&scene.rpc).await, ["volume"]);
}

#[tokio::test]
async fn an_upload_that_cannot_become_a_snapshot_is_refused_at_once() {
    let scene = Scene::new().await;
    for size_bytes in [0, (16 << 40) + 1, u64::MAX] {
        let status = scene.rpc.begin("size", size_bytes).await.unwrap_err();
        assert!(
            matches!(
                status.code(),
                Code::InvalidArgument | Code::ResourceExhausted
            ),
            "{size_bytes}: {status:?}"
        );
    }
    for name in [
        "",
        " ",
        "a\0b",
        "snap-0123456789abcdef0",
        "-x",
        &"n".repeat(129),
    ] {
        assert_refused(
            scene.rpc.begin(name, 4096).await,
            Code::InvalidArgument,
            "name",
        );
    }
    for chunker in [
        None,
        Some(ChunkerParameters {
            version: CHUNKER_VERSION + 1,
        }),
    ] {
        let request = BeginUploadRequest {
            name: "chunker".to_owned(),
            size_bytes: 4096,
            chunker,
            tags: Default::default(),
            ..BeginUploadRequest::default()
        };
        assert_refused(
            scene.rpc.content.clone().begin_upload(request).await,
            Code::InvalidArgument,
            "chunker",
        );
    }
    let many = (0..51)
        .map(|number| (format!("key-{number}"), "value".to_owned()))
        .collect();
    for tags in [
        many,
        [("k".repeat(128), String::new())].into(),
        [("k".to_owned(), "v".repeat(256))].into(),
        [(String::new(), "v".to_owned())].into(),
    ] {
        let request = BeginUploadRequest {
            name: "tags".to_owned(),
            size_bytes: 4096,
            chunker: Some(ChunkerParameters {
                version: CHUNKER_VERSION,
            }),
            tags,
            ..BeginUploadRequest::default()
        };
        assert_refused(
            scene.rpc.content.clone().begin_upload(request).await,
            Code::InvalidArgument,
            "tag",
        );
    }
    scene.finish().await;
}

/// An idle upload gives its slot back.
#[tokio::test]
async fn an_upload_that_is_left_alone_is_dropped() {
    let lab = Lab::with(|options| options.env("VARVE_UPLOAD_IDLE_SECONDS", "1"));
    let rpc = Rpc::connect(&lab.varved).await;
    let content = Content::of(&volume());
    let upload = rpc.begin("left", content.size_bytes).await.unwrap();
    rpc.wait_for_status("the upload to be dropped", |status| status.uploads == 0)
        .await;
    assert_refused(
        rpc.commit(&upload, content.root).await,
        Code::NotFound,
        &upload,
    );
    rpc.upload("left", &content).await.unwrap();
}
