//! Damaged bytes on disk: reads of them fail and name them; everything else works.

use std::{collections::HashSet, path::PathBuf};

use varve_proto::v1::ReadSnapshotRequest;
use varve_store::format::{PackKind, pack::RecordKind};
use varve_tests::{
    data_dir::{self, Record},
    files, image,
    lab::Lab,
    nbd::Peer,
    random::Random,
    rpc::{Content, Rpc},
    snapctl::{exit, number, text},
};

const MIB: u64 = 1 << 20;
const EIO: u32 = 5;

/// Two snapshots with nothing in common, and a stopped daemon.
struct Scene {
    lab: Lab,
    damaged: PathBuf,
    sound: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let mut lab = Lab::new();
        let damaged = image::make_random(&lab.scratch, "damaged", 24 * MIB, 91);
        let sound = image::make_random(&lab.scratch, "sound", 24 * MIB, 92);
        lab.snapctl().import(&damaged, "damaged");
        lab.snapctl().import(&sound, "sound");
        lab.varved.stop();
        Self {
            lab,
            damaged,
            sound,
        }
    }

    /// A chunk of the first snapshot: its record, and its place in the volume.
    fn chunk(&self) -> (Record, u64) {
        let content = Content::of(&std::fs::read(&self.damaged).unwrap());
        let leaf = &content.leaves[1];
        let entry = &leaf.entries[leaf.entries.len() / 2];
        let offset = u64::from(leaf.segment) * 8 * MIB + u64::from(entry.start_block) * 4096;
        let records = data_dir::records(&self.lab.data_dir(), PackKind::Chunks);
        let record = records
            .into_iter()
            .find(|record| record.header.id == entry.chunk_id.as_ref());
        (record.expect("the chunk is in a pack"), offset)
    }

    /// Asserts that everything works that does not need the damaged bytes, also on the same
    /// connection.
    fn assert_rest_goes_on(&self, offset: u64) {
        self.lab.assert_content("sound", &self.sound);
        self.lab.snapctl().verify("sound");
        let mut peer = Peer::unix(&self.lab.varved.nbd_socket()).unwrap();
        assert_eq!(peer.open("snapshot/damaged").unwrap(), 24 * MIB);
        let failed = peer.read(offset, 4096).unwrap();
        assert_eq!((failed.error, failed.data_bytes), (EIO, 0));
        let other = peer.read(16 * MIB, 1 << 20).unwrap();
        assert_eq!((other.error, other.data_bytes), (0, 1 << 20));
        assert_eq!(
            peer.read(offset, 4096).unwrap().error,
            EIO,
            "damage is not forgotten"
        );
    }
}

#[test]
fn a_flipped_byte_in_a_chunk_fails_its_reads_and_no_others() {
    let mut scene = Scene::new();
    let (record, offset) = scene.chunk();
    record.flip();
    scene.lab.restart();
    let names_all = |said: &str| {
        for wanted in [
            record.pack.to_string(),
            record.offset_bytes.to_string(),
            record.id(),
            "damaged".to_owned(),
        ] {
            assert!(said.contains(&wanted), "{wanted:?} is not named: {said}");
        }
    };
    let out = scene.lab.scratch.join("out");
    let export = ["export", "damaged", out.to_str().unwrap()];
    names_all(&scene.lab.snapctl().run(export).fails(exit::DAMAGED));
    assert!(!out.exists(), "half an export is left");
    names_all(&scene.lab.snapctl().verify_finds("damaged"));

    let json = scene
        .lab
        .snapctl()
        .run(["--output", "json", "snapshot", "verify", "damaged"]);
    assert_eq!(json.status.code(), Some(exit::DAMAGED), "{json:?}");
    let verified: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    let violations = verified["violations"].as_array().unwrap();
    assert_eq!(violations.len(), 1, "{verified}");
    names_all(&text(&violations[0], "message"));
    assert_eq!(number(&violations[0], "offset_bytes"), offset);
    scene.assert_rest_goes_on(offset);
}

#[test]
fn a_flipped_byte_in_the_header_of_a_record_fails_its_reads_and_no_others() {
    let mut scene = Scene::new();
    let (record, offset) = scene.chunk();
    data_dir::flip_byte(&record.path, record.offset_bytes + 20);
    scene.lab.restart();
    let said = scene.lab.snapctl().verify_finds("damaged");
    assert!(
        said.contains(&record.pack.to_string()) && said.contains(&record.id()),
        "{said}"
    );
    scene.assert_rest_goes_on(offset);
}

#[test]
fn a_flipped_byte_in_a_tree_node_fails_what_needs_it() {
    for kind in [RecordKind::Leaf, RecordKind::Inner, RecordKind::Root] {
        let mut scene = Scene::new();
        let records = data_dir::records(&scene.lab.data_dir(), PackKind::Nodes);
        // The first snapshot's nodes were written first.
        let record = records
            .into_iter()
            .find(|record| record.header.payload.kind == kind)
            .unwrap();
        record.flip();
        scene.lab.restart();
        let verified = scene.lab.snapctl().run(["snapshot", "verify", "damaged"]);
        assert_eq!(verified.status.code(), Some(exit::DAMAGED), "{verified:?}");
        let exported = scene
            .lab
            .snapctl()
            .run(["export", "damaged", "-"])
            .fails(exit::DAMAGED);
        for said in [verified.text() + &verified.stderr, exported] {
            for wanted in [
                record.pack.to_string(),
                record.offset_bytes.to_string(),
                record.id(),
                "damaged".to_owned(),
            ] {
                assert!(
                    said.contains(&wanted),
                    "{kind:?}: {wanted:?} is not named: {said}"
                );
            }
        }
        scene.lab.assert_content("sound", &scene.sound);
        scene.lab.snapctl().verify("sound");
        assert_eq!(scene.lab.snapctl().names(), ["damaged", "sound"]);
    }
}

#[test]
fn several_damaged_places_are_all_reported_at_once() {
    let mut scene = Scene::new();
    let content = Content::of(&std::fs::read(&scene.damaged).unwrap());
    let of_snapshot: HashSet<_> = content
        .chunks
        .iter()
        .map(|chunk| chunk.id.to_vec())
        .collect();
    let mut random = Random::of_test("several_damaged_places");
    let mut records: Vec<_> = data_dir::records(&scene.lab.data_dir(), PackKind::Chunks)
        .into_iter()
        .filter(|record| of_snapshot.contains(record.header.id.as_slice()))
        .collect();
    let broken: Vec<_> = (0..7)
        .map(|_| records.swap_remove(random.index(records.len())))
        .collect();
    for record in &broken {
        record.flip();
    }
    scene.lab.restart();
    let said = scene.lab.snapctl().verify_finds("damaged");
    for record in &broken {
        assert!(
            said.contains(&record.id()),
            "{} is not named: {said}",
            record.id()
        );
    }
    scene.lab.snapctl().verify("sound");
}

#[test]
fn damage_that_comes_while_the_daemon_runs_is_found() {
    let mut scene = Scene::new();
    let (record, offset) = scene.chunk();
    scene.lab.restart();
    // The leaf is in memory, the chunk is not.
    let mut peer = Peer::unix(&scene.lab.varved.nbd_socket()).unwrap();
    peer.open("snapshot/damaged").unwrap();
    assert_eq!(peer.read(8 * MIB, 4096).unwrap().error, 0);
    record.flip();
    assert_eq!(peer.read(offset, 4096).unwrap().error, EIO);
    scene.assert_rest_goes_on(offset);
}

#[test]
fn a_pack_that_lost_its_end_fails_what_was_there() {
    let mut scene = Scene::new();
    let records = data_dir::records(&scene.lab.data_dir(), PackKind::Chunks);
    // The chunks of the last import are at the end.
    let last = records.last().unwrap();
    data_dir::truncate(&last.path, last.offset_bytes + 100);
    scene.lab.restart();
    let said = scene.lab.snapctl().verify_finds("sound");
    assert!(
        said.contains(&last.pack.to_string()) && said.contains(&last.id()),
        "{said}"
    );
    scene.lab.snapctl().verify("damaged");
    scene.lab.assert_content("damaged", &scene.damaged);
    // Writing works.
    let more = scene.lab.image("more", 12 * MIB, 93);
    scene.lab.snapctl().import(&more, "more");
    scene.lab.assert_content("more", &more);
    scene.lab.varved.stop();
    scene.lab.restart();
    scene.lab.assert_content("more", &more);
    scene.lab.snapctl().verify("damaged");
}

#[test]
fn a_pack_that_is_gone_fails_what_was_in_it() {
    let mut scene = Scene::new();
    for (_, path) in data_dir::packs(&scene.lab.data_dir(), PackKind::Chunks) {
        std::fs::remove_file(path).unwrap();
    }
    scene.lab.restart();
    for (name, file) in [("damaged", &scene.damaged), ("sound", &scene.sound)] {
        let said = scene.lab.snapctl().verify_finds(name);
        let content = Content::of(&std::fs::read(file).unwrap());
        for chunk in content.chunks {
            assert!(
                said.contains(&hex(&chunk.id)),
                "{} is not named: {said}",
                hex(&chunk.id)
            );
        }
    }
    let more = scene.lab.image("more", 12 * MIB, 94);
    scene.lab.snapctl().import(&more, "more");
    scene.lab.assert_content("more", &more);
}

#[tokio::test]
async fn a_range_that_is_damaged_is_no_data() {
    let mut scene = Scene::new();
    let (record, offset_bytes) = scene.chunk();
    record.flip();
    scene.lab.restart();
    let rpc = Rpc::connect(&scene.lab.varved).await;
    let read = async |offset_bytes| {
        let request = ReadSnapshotRequest {
            snapshot: "damaged".to_owned(),
            offset_bytes,
            length_bytes: 4096,
        };
        let mut parts = rpc
            .content
            .clone()
            .read_snapshot(request)
            .await?
            .into_inner();
        while parts.message().await?.is_some() {}
        Ok::<_, tonic::Status>(())
    };
    let status = read(offset_bytes).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::DataLoss, "{status:?}");
    assert!(
        status.message().contains(&record.id()) && status.message().contains("damaged"),
        "{status:?}"
    );
    read(0).await.unwrap();
}

#[test]
fn damage_found_at_the_start_is_named_in_the_log() {
    let mut scene = Scene::new();
    let (record, _) = scene.chunk();
    record.flip();
    scene.lab.restart();
    let log = scene.lab.varved.log();
    assert!(
        log.contains(&record.pack.to_string()) && log.contains(&record.offset_bytes.to_string()),
        "{log}"
    );
}

/// A power cut may leave this of writes that were never synced: nothing was promised for them.
#[test]
fn a_torn_end_that_nobody_was_promised_is_cut_off() {
    for torn in ["zeros", "garbage", "half a record", "a whole record"] {
        let mut scene = Scene::new();
        for kind in [PackKind::Chunks, PackKind::Nodes] {
            let (pack, path) = data_dir::packs(&scene.lab.data_dir(), kind).pop().unwrap();
            let records = data_dir::records(&scene.lab.data_dir(), kind);
            let record = records.iter().find(|record| record.pack == pack).unwrap();
            let end = end_of_records(&path);
            let bytes = match torn {
                "zeros" => vec![0; 8192],
                "garbage" => {
                    let mut bytes = vec![0; 10_000];
                    Random::seeded(95).fill(&mut bytes);
                    bytes
                }
                _ => {
                    let stored = record.header.payload.stored_bytes as usize;
                    let payload = files::read_range(&path, record.payload_offset_bytes(), stored);
                    let mut bytes = record.header.encode(end).to_vec();
                    bytes.extend_from_slice(&payload);
                    if torn == "half a record" {
                        bytes.truncate(bytes.len() - 9);
                    }
                    bytes
                }
            };
            data_dir::truncate(&path, end);
            files::write_range(&path, end, &bytes);
        }
        scene.lab.restart();
        assert_eq!(
            scene.lab.snapctl().verify_all(),
            ["damaged", "sound"],
            "{torn}"
        );
        scene.lab.assert_content("damaged", &scene.damaged);
        let more = scene.lab.image("more", 12 * MIB, 96);
        scene.lab.snapctl().import(&more, "more");
        scene.lab.varved.stop();
        scene.lab.restart();
        scene.lab.assert_content("more", &more);
        assert_eq!(
            scene.lab.snapctl().verify_all(),
            ["damaged", "more", "sound"],
            "{torn}"
        );
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The end of the records in an open pack.
fn end_of_records(path: &std::path::Path) -> u64 {
    use varve_store::format::pack::{Header, PACK_HEADER_BYTES};
    let bytes = std::fs::read(path).unwrap();
    let mut offset = PACK_HEADER_BYTES as u64;
    loop {
        let rest = bytes
            .get(usize::try_from(offset).unwrap()..)
            .unwrap_or_default();
        match Header::decode(rest, offset) {
            Ok(header) => offset += header.total_bytes(),
            Err(_) => return offset,
        }
    }
}
