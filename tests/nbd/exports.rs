//! The list of exports, while snapshots come and go.

use varve_tests::{
    image,
    lab::Lab,
    nbd::{Peer, go_data, option, option_reply},
    rpc::{Content, Rpc},
};

const MIB: u64 = 1 << 20;

#[test]
fn a_deleted_snapshot_is_refused_and_open_connections_are_not_harmed() {
    let lab = Lab::new();
    let file = image::make_random(&lab.scratch, "image", 12 * MIB, 181);
    lab.snapctl().import(&file, "image");
    let mut open = Peer::unix(&lab.varved.nbd_socket()).unwrap();
    open.open("snapshot/image").unwrap();
    assert_eq!(open.read(0, 4096).unwrap().error, 0);
    lab.snapctl().run(["snapshot", "delete", "image"]).ok();

    // An open export keeps its content in the store, so its client can continue.
    let reply = open.read(9 * MIB, 1 << 20).unwrap();
    assert_eq!((reply.error, reply.data_bytes), (0, MIB));

    let mut late = Peer::unix(&lab.varved.nbd_socket()).unwrap();
    late.greet().unwrap();
    assert_eq!(
        late.ask_outcome(option::GO, &go_data("snapshot/image"))
            .unwrap(),
        option_reply::ERR_UNKNOWN
    );
    // The refusal has not ended the handshake, and the name can come back.
    lab.snapctl().import(&file, "image");
    assert_eq!(
        late.ask_outcome(option::GO, &go_data("snapshot/image"))
            .unwrap(),
        option_reply::ACK
    );
}

#[test]
fn an_unknown_export_ends_the_old_handshake() {
    let lab = Lab::new();
    let mut peer = Peer::unix(&lab.varved.nbd_socket()).unwrap();
    peer.greet().unwrap();
    peer.send_option(option::EXPORT_NAME, b"snapshot/absent")
        .unwrap();
    peer.receive_until_closed();
}

#[tokio::test]
async fn a_listing_of_many_exports_is_whole() {
    let lab = Lab::new();
    let rpc = Rpc::connect(&lab.varved).await;
    let content = Content::of(&[1; 4096]);
    let mut names: Vec<String> = (0..700)
        .map(|number| format!("snapshot-{number:03}"))
        .collect();
    for name in &names {
        rpc.upload(name, &content).await.unwrap();
    }
    let mut peer = Peer::unix(&lab.varved.nbd_socket()).unwrap();
    peer.greet().unwrap();
    let replies = peer.ask(option::LIST, &[]).unwrap();
    let (last, listed) = replies.split_last().unwrap();
    assert_eq!(last.0, option_reply::ACK);
    let listed = listed.iter().map(|(kind, data)| {
        assert_eq!(*kind, option_reply::SERVER);
        let len = u32::from_be_bytes(data[..4].try_into().unwrap()) as usize;
        String::from_utf8(data[4..4 + len].to_vec()).unwrap()
    });
    let listed: Vec<_> = listed.collect();
    names
        .iter_mut()
        .for_each(|name| name.insert_str(0, "snapshot/"));
    assert_eq!(listed, names);
}

/// A snapshot can be exported by its id, as everywhere else.
#[test]
fn an_export_is_found_by_the_id_of_its_snapshot() {
    let lab = Lab::new();
    let file = lab.image("image", 2 * MIB, 182);
    let id = lab.snapctl().import(&file, "image").id();
    let mut peer = Peer::unix(&lab.varved.nbd_socket()).unwrap();
    assert_eq!(peer.open(&format!("snapshot/{id}")).unwrap(), 2 * MIB);
}

/// A snapshot of any size has that size as an export.
#[test]
fn sizes_are_exact() {
    let lab = Lab::new();
    for size_bytes in [1, 511, 4097, 8 * MIB + 1] {
        let name = format!("size-{size_bytes}");
        let file = image::make_random(&lab.scratch, &name, size_bytes, size_bytes);
        lab.snapctl().import(&file, &name);
        let mut peer = Peer::unix(&lab.varved.nbd_socket()).unwrap();
        assert_eq!(peer.open(&format!("snapshot/{name}")).unwrap(), size_bytes);
        let len = u32::try_from(size_bytes).unwrap();
        assert_eq!(peer.read(0, len).unwrap().data_bytes, size_bytes);
        assert_ne!(peer.read(0, len + 1).unwrap().error, 0);
        assert_ne!(peer.read(size_bytes, 1).unwrap().error, 0);
    }
}
