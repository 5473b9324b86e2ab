//! Everything that peers can make the daemon hold, at one time: the bound is on the sum, not on
//! each part.

use bytes::Bytes;
use prost::Message as _;
use varve_proto::v1::{DownloadRequest, ListVolumesRequest};
use varve_tests::{
    image,
    nbd::{Peer, request, request_bytes},
    process::allow_open_files,
};

use super::attacks::{
    CACHE, DAEMON_MAX, DOWNLOAD, Enemy, LIST_VOLUMES, MIB, PUT_CHUNKS, PUT_LEAVES, STREAMS,
    assert_others_are_served, assert_within, framed, lab, make_volumes_with_long_tags,
};

/// Connections with only a request on its way.
const CONNECTIONS: u64 = 600;

#[tokio::test(flavor = "multi_thread")]
async fn all_attacks_at_one_time_take_what_is_promised_and_no_more() {
    allow_open_files();
    let lab = lab();
    let file = image::make_random(&lab.scratch, "image", 192 * MIB, 951);
    lab.snapctl().import(&file, "image");
    make_volumes_with_long_tags(&lab).await;
    let address = lab.varved.grpc_address();
    let mut enemies = Vec::new();

    // Requests that lack their last byte.
    let cut = Bytes::from(framed(&vec![0; (4 << 20) - 16])).slice(..(4 << 20) - 20);
    for number in 0..12 {
        let mut enemy = Enemy::connect(address, 65_535).await;
        for _ in 0..STREAMS {
            let method = [PUT_LEAVES, PUT_CHUNKS][number % 2];
            enemy.send(method, cut.clone(), false).await;
        }
        enemies.push(enemy);
    }
    // Answers and exports that are not read.
    let download = DownloadRequest {
        snapshot: "image".to_owned(),
        plain: true,
    };
    for (method, message, count) in [
        (
            LIST_VOLUMES,
            ListVolumesRequest::default().encode_to_vec(),
            STREAMS,
        ),
        (DOWNLOAD, download.encode_to_vec(), 20),
    ] {
        let ask = Bytes::from(framed(&message));
        for window in [0, 65_535] {
            let mut enemy = Enemy::connect(address, window).await;
            for _ in 0..count {
                enemy.send(method, ask.clone(), true).await;
            }
            enemies.push(enemy);
        }
    }
    // Guests that request as much as they may, and read nothing.
    let mut hostile = Vec::new();
    for number in 0..60 {
        let mut peer = match number % 2 {
            0 => Peer::tcp(lab.varved.nbd_address()).unwrap(),
            _ => Peer::unix(&lab.varved.nbd_socket()).unwrap(),
        };
        peer.open("snapshot/image").unwrap();
        let requests: Vec<_> = (0..3)
            .flat_map(|cookie| {
                let offset = (number * 7 + cookie * 31) % 160 * MIB;
                request_bytes(request::READ, cookie, offset, 31 << 20)
            })
            .collect();
        peer.send(&requests).unwrap();
        hostile.push(peer);
    }
    assert_others_are_served(&lab, "beside-all", 952).await;
    assert_within(&lab, "all attacks", DAEMON_MAX + CACHE);

    // Many connections, each with as many bytes in flight as HTTP/2 allows at first.
    for _ in 0..CONNECTIONS {
        let mut enemy = Enemy::connect(address, 65_535).await;
        for _ in 0..2 {
            enemy.send(PUT_LEAVES, cut.slice(..256 << 10), false).await;
        }
        enemies.push(enemy);
    }
    assert_others_are_served(&lab, "beside-connections", 953).await;
    assert_within(
        &lab,
        "all attacks, and many connections",
        DAEMON_MAX + CACHE,
    );
    drop((enemies, hostile));
    assert_others_are_served(&lab, "after-all", 954).await;
}
