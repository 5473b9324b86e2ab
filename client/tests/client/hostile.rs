//! Daemons that answer what they must not, or not at all.

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
