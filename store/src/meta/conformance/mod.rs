//! What holds for every [`Meta`], asked of both.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod model;

use std::collections::BTreeMap;

use varve_content::codec::Codec;

use super::*;
use crate::{
    Error,
    format::{
        PackKind, StoreId,
        catalog_log::Record,
        pack::{PACK_HEADER_BYTES, Payload},
    },
};

pub(super) const STORE: StoreId = StoreId::from_bytes([7; 16]);

/// Runs each test over the model and over RocksDB.
macro_rules! over_both {
    ($($test:ident),+ $(,)?) => {
        mod memory {
            $(#[test]
            fn $test() {
                super::$test(&super::MemoryMeta::default());
            })+
        }

        mod rocks {
            $(#[test]
            fn $test() {
                let directory = tempfile::tempdir().unwrap();
                super::$test(&super::RocksMeta::create(&directory.path().join("index"), super::STORE).unwrap());
            })+
        }
    };
}

over_both!(
    an_empty_store,
    lookups_answer_in_the_order_asked,
    putting_again_counts_once,
    a_record_that_moves_counts_where_it_is,
    the_last_put_of_a_batch_counts,
    chunks_and_nodes_are_kept_apart,
    pack_states_are_replaced,
    snapshots_are_found_by_id_and_name,
    sizes_of_snapshots_add_up_beyond_64_bits,
    snapshots_are_listed_by_name,
    a_snapshot_may_change_its_name,
    a_name_is_free_again_after_a_delete_in_the_same_batch,
    a_taken_name_refuses_the_whole_batch,
    a_gap_in_the_catalog_refuses_the_whole_batch,
    deleting_what_is_not_there_changes_nothing,
    volumes_are_kept_as_snapshots_are,
    volumes_and_snapshots_share_no_names,
    copies_are_kept_until_they_are_forgotten,
    remotes_are_found_by_name,
);

pub(super) fn chunk_id(number: u64) -> ChunkId {
    ChunkId::of(&number.to_le_bytes())
}

pub(super) fn leaf_key(number: u64) -> NodeKey {
    NodeKey::Leaf(NodeId::from_bytes(*chunk_id(number).as_bytes()))
}

pub(super) fn location(
    kind: RecordKind,
    pack: u64,
    offset_units: u64,
    stored_bytes: u32,
) -> Location {
    Location {
        pack: PackId {
            kind: kind.pack_kind(),
            number: pack,
        },
        offset_bytes: PACK_HEADER_BYTES as u64 + 8 * offset_units,
        payload: Payload {
            kind,
            codec: Codec::Zstd,
            end_open: false,
            plain_bytes: 4096 * (1 + stored_bytes / 4096),
            stored_bytes,
        },
    }
}

pub(super) fn chunk_at(pack: u64, offset_units: u64, stored_bytes: u32) -> Location {
    location(RecordKind::Chunk, pack, offset_units, stored_bytes)
}

pub(super) fn snapshot_id(number: u8) -> SnapshotId {
    SnapshotId::from_low_bits([number; 9])
}

pub(super) fn snapshot(number: u8, name: &str) -> SnapshotRecord {
    SnapshotRecord {
        id: snapshot_id(number),
        name: name.to_owned(),
        size_bytes: 1000 + u64::from(number),
        state: SnapshotState::Completed(SnapshotContent {
            root: RootId::from_bytes([number; 32]),
            data_bytes: 500,
            new_bytes: 2,
            stored_bytes: 3,
        }),
        created_at_ns: 1,
        tags: BTreeMap::from([("k".to_owned(), "v".to_owned())]),
        origin: None,
        parent: None,
    }
}

pub(super) fn volume_id(number: u8) -> VolumeId {
    VolumeId::from_low_bits([number; 9])
}

pub(super) fn volume(number: u8, name: &str) -> VolumeRecord {
    VolumeRecord {
        id: volume_id(number),
        name: name.to_owned(),
        size_bytes: 512 * (1 + u64::from(number)),
        base: Some(RootId::from_bytes([number; 32])),
        parent: Some(snapshot_id(number)),
        created_at_ns: 1,
        tags: BTreeMap::from([("k".to_owned(), "v".to_owned())]),
        attached_at_ns: None,
        attachments: number.into(),
        journal_from: 1,
        pending: Vec::new(),
        promised_sequence: 0,
    }
}

fn chunks(entries: impl IntoIterator<Item = (u64, Location)>) -> Batch {
    let mut batch = Batch::default();
    for (number, location) in entries {
        batch.put_chunk(chunk_id(number), location);
    }
    batch
}

/// A batch of these records, behind those that were applied.
pub(super) fn records(meta: &dyn Meta, records: impl IntoIterator<Item = Record>) -> Batch {
    let mut batch = Batch::default();
    for (sequence, record) in (meta.catalog_sequence().unwrap() + 1..).zip(records) {
        batch.catalog(sequence, record);
    }
    batch
}

fn put_snapshots(meta: &dyn Meta, snapshots: impl IntoIterator<Item = SnapshotRecord>) {
    let batch = records(meta, snapshots.into_iter().map(Record::PutSnapshot));
    meta.apply(batch, false).unwrap();
}

fn names(records: &[SnapshotRecord]) -> Vec<&str> {
    records.iter().map(|record| record.name.as_str()).collect()
}

fn an_empty_store(meta: &dyn Meta) {
    assert_eq!(meta.totals().unwrap(), Totals::default());
    assert_eq!(meta.catalog_sequence().unwrap(), 0);
    assert_eq!(meta.chunks(&[]).unwrap(), []);
    assert_eq!(meta.chunks(&[chunk_id(1)]).unwrap(), [None]);
    assert_eq!(meta.nodes(&[leaf_key(1)]).unwrap(), [None]);
    assert_eq!(meta.pack_states().unwrap(), []);
    assert_eq!(meta.snapshots(None, "", 10).unwrap(), []);
    assert_eq!(meta.snapshot(snapshot_id(1)).unwrap(), None);
    assert_eq!(meta.snapshot_by_name("a").unwrap(), None);
    meta.apply(Batch::default(), true).unwrap();
    assert_eq!(meta.totals().unwrap(), Totals::default());
    assert!(meta.is_healthy());
}

fn lookups_answer_in_the_order_asked(meta: &dyn Meta) {
    const COUNT: u64 = 10_000;
    meta.apply(
        chunks((0..COUNT).map(|n| (n, chunk_at(1, 64 * n, 9)))),
        false,
    )
    .unwrap();
    // Every third is absent, and some are asked for twice.
    let asked: Vec<u64> = (0..COUNT + COUNT / 2)
        .rev()
        .chain([5, 5, COUNT + 5, 5])
        .collect();
    let ids: Vec<_> = asked.iter().map(|number| chunk_id(*number)).collect();
    let expected: Vec<_> = asked
        .iter()
        .map(|n| (*n < COUNT).then(|| chunk_at(1, 64 * n, 9)))
        .collect();
    assert_eq!(meta.chunks(&ids).unwrap(), expected);
}

fn putting_again_counts_once(meta: &dyn Meta) {
    let mut batch = chunks([(1, chunk_at(1, 0, 5000))]);
    batch.put_node(leaf_key(1), location(RecordKind::Leaf, 2, 0, 100));
    for _ in 0..3 {
        meta.apply(batch.clone(), false).unwrap();
    }
    let totals = Totals {
        chunks: 1,
        chunk_bytes: 8192,
        nodes: 1,
        // Headers and the zeros behind payloads count.
        stored_bytes: 5064 + 168,
        ..Totals::default()
    };
    assert_eq!(meta.totals().unwrap(), totals);
}

fn a_record_that_moves_counts_where_it_is(meta: &dyn Meta) {
    let mut batch = chunks([(1, chunk_at(1, 0, 5000))]);
    batch.put_node(leaf_key(1), location(RecordKind::Leaf, 2, 0, 100));
    meta.apply(batch, false).unwrap();
    let mut batch = chunks([(1, chunk_at(3, 80, 4992))]);
    batch.put_node(leaf_key(1), location(RecordKind::Leaf, 4, 80, 104));
    meta.apply(batch, false).unwrap();
    assert_eq!(
        meta.chunks(&[chunk_id(1)]).unwrap(),
        [Some(chunk_at(3, 80, 4992))]
    );
    let totals = meta.totals().unwrap();
    assert_eq!(
        (totals.chunks, totals.nodes, totals.stored_bytes),
        (1, 1, 5056 + 168)
    );
}

fn the_last_put_of_a_batch_counts(meta: &dyn Meta) {
    meta.apply(
        chunks([(1, chunk_at(1, 0, 100)), (1, chunk_at(1, 99, 200))]),
        false,
    )
    .unwrap();
    assert_eq!(
        meta.chunks(&[chunk_id(1)]).unwrap(),
        [Some(chunk_at(1, 99, 200))]
    );
    assert_eq!(meta.totals().unwrap().chunks, 1);
}

fn chunks_and_nodes_are_kept_apart(meta: &dyn Meta) {
    meta.apply(chunks([(1, chunk_at(1, 0, 100))]), false)
        .unwrap();
    assert_eq!(meta.nodes(&[leaf_key(1)]).unwrap(), [None]);
    let root = NodeKey::Root(RootId::from_bytes([9; 32]));
    let place = location(RecordKind::Root, 2, 0, 48);
    let mut batch = Batch::default();
    batch.put_node(root, place);
    meta.apply(batch, false).unwrap();
    assert_eq!(
        meta.nodes(&[leaf_key(1), root]).unwrap(),
        [None, Some(place)]
    );
}

fn pack_states_are_replaced(meta: &dyn Meta) {
    let state = |kind, number, indexed_bytes, sealed| PackState {
        pack: PackId { kind, number },
        indexed_bytes,
        sealed,
    };
    let first = [
        state(PackKind::Nodes, 1, 4096, false),
        state(PackKind::Chunks, 256, 8192, false),
    ];
    let second = [
        state(PackKind::Chunks, 2, 4096, false),
        state(PackKind::Chunks, 256, 65536, true),
    ];
    for states in [&first, &second] {
        let mut batch = Batch::default();
        batch.packs(states);
        meta.apply(batch, false).unwrap();
    }
    assert_eq!(
        meta.pack_states().unwrap(),
        [first[0], second[0], second[1]]
    );
    assert_eq!(meta.pack_state(second[1].pack).unwrap(), Some(second[1]));
    let other = PackId {
        kind: PackKind::Nodes,
        number: 2,
    };
    assert_eq!(meta.pack_state(other).unwrap(), None);
    assert_eq!(meta.totals().unwrap().packs, 3);
}

fn snapshots_are_found_by_id_and_name(meta: &dyn Meta) {
    put_snapshots(meta, [snapshot(1, "a"), snapshot(2, "b")]);
    assert_eq!(
        meta.snapshot(snapshot_id(1)).unwrap(),
        Some(snapshot(1, "a"))
    );
    assert_eq!(meta.snapshot_by_name("b").unwrap(), Some(snapshot(2, "b")));
    assert_eq!(meta.snapshot_by_name("c").unwrap(), None);
    assert_eq!(meta.catalog_sequence().unwrap(), 2);
    let totals = meta.totals().unwrap();
    assert_eq!((totals.snapshots, totals.logical_bytes), (2, 1001 + 1002));

    let batch = records(meta, [Record::DeleteSnapshot(snapshot_id(1))]);
    meta.apply(batch, true).unwrap();
    assert_eq!(meta.snapshot(snapshot_id(1)).unwrap(), None);
    assert_eq!(meta.snapshot_by_name("a").unwrap(), None);
    let totals = meta.totals().unwrap();
    assert_eq!((totals.snapshots, totals.logical_bytes), (1, 1002));
}

fn sizes_of_snapshots_add_up_beyond_64_bits(meta: &dyn Meta) {
    let large = |number: u8| SnapshotRecord {
        size_bytes: u64::MAX - 1,
        ..snapshot(number, &format!("s{number}"))
    };
    put_snapshots(meta, (1..=5).map(large));
    let sum = |count: u128| count * u128::from(u64::MAX - 1);
    assert_eq!(meta.totals().unwrap().logical_bytes, sum(5));
    let batch = records(
        meta,
        (1..=4).map(|n| Record::DeleteSnapshot(snapshot_id(n))),
    );
    meta.apply(batch, true).unwrap();
    assert_eq!(meta.totals().unwrap().logical_bytes, sum(1));
}

fn snapshots_are_listed_by_name(meta: &dyn Meta) {
    let all = ["B", "a", "a/1", "a/10", "a/2", "a0", "b"];
    put_snapshots(
        meta,
        (1..)
            .zip(all.iter().rev())
            .map(|(number, name)| snapshot(number, name)),
    );
    let list = |after, prefix, limit| {
        let found = meta.snapshots(after, prefix, limit).unwrap();
        names(&found).join(" ")
    };
    assert_eq!(list(None, "", 100), "B a a/1 a/10 a/2 a0 b");
    assert_eq!(list(None, "", 2), "B a");
    assert_eq!(list(None, "", 0), "");
    assert_eq!(list(Some(""), "", 1), "B");
    assert_eq!(list(Some("a"), "", 2), "a/1 a/10");
    assert_eq!(
        list(Some("a/"), "", 2),
        "a/1 a/10",
        "after a name that is not there"
    );
    assert_eq!(list(Some("b"), "", 2), "");
    assert_eq!(list(None, "a/", 100), "a/1 a/10 a/2");
    assert_eq!(list(Some("a/1"), "a/", 100), "a/10 a/2");
    assert_eq!(
        list(Some("A"), "a/", 1),
        "a/1",
        "after a name before the prefix"
    );
    assert_eq!(
        list(Some("a0"), "a/", 100),
        "",
        "after a name behind the prefix"
    );
    assert_eq!(list(None, "c", 100), "");
}

fn a_snapshot_may_change_its_name(meta: &dyn Meta) {
    put_snapshots(meta, [snapshot(1, "old")]);
    put_snapshots(meta, [snapshot(1, "new")]);
    assert_eq!(meta.snapshot_by_name("old").unwrap(), None);
    assert_eq!(
        meta.snapshot_by_name("new").unwrap(),
        Some(snapshot(1, "new"))
    );
    assert_eq!(names(&meta.snapshots(None, "", 10).unwrap()), ["new"]);
    assert_eq!(meta.totals().unwrap().snapshots, 1);
    put_snapshots(meta, [snapshot(2, "old")]);
    assert_eq!(
        names(&meta.snapshots(None, "", 10).unwrap()),
        ["new", "old"]
    );
}

fn a_name_is_free_again_after_a_delete_in_the_same_batch(meta: &dyn Meta) {
    let changes = [
        Record::PutSnapshot(snapshot(1, "a")),
        Record::DeleteSnapshot(snapshot_id(1)),
        Record::PutSnapshot(snapshot(2, "a")),
        Record::PutSnapshot(snapshot(2, "b")),
        Record::PutSnapshot(snapshot(3, "a")),
    ];
    meta.apply(records(meta, changes), false).unwrap();
    assert_eq!(
        meta.snapshots(None, "", 10).unwrap(),
        [snapshot(3, "a"), snapshot(2, "b")]
    );
    assert_eq!(meta.catalog_sequence().unwrap(), 5);
    assert_eq!(meta.totals().unwrap().snapshots, 2);
}

fn a_taken_name_refuses_the_whole_batch(meta: &dyn Meta) {
    put_snapshots(meta, [snapshot(1, "a")]);
    let before = meta.totals().unwrap();
    let changes = [
        Record::PutSnapshot(snapshot(2, "b")),
        Record::PutSnapshot(snapshot(3, "a")),
    ];
    let mut batch = records(meta, changes);
    batch.put_chunk(chunk_id(1), chunk_at(1, 0, 100));
    match meta.apply(batch, false) {
        Err(Error::AlreadyExists { what, name, id }) => {
            assert_eq!(
                (what, name.as_str(), id),
                ("snapshot", "a", snapshot_id(1).to_string())
            );
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(meta.totals().unwrap(), before);
    assert_eq!(meta.chunks(&[chunk_id(1)]).unwrap(), [None]);
    assert_eq!(names(&meta.snapshots(None, "", 10).unwrap()), ["a"]);
    // The caller's mistake is not the disk's.
    assert!(meta.is_healthy());
    put_snapshots(meta, [snapshot(2, "b")]);
}

fn a_gap_in_the_catalog_refuses_the_whole_batch(meta: &dyn Meta) {
    put_snapshots(meta, [snapshot(1, "a")]);
    for sequence in [0, 1, 3, u64::MAX] {
        let mut batch = Batch::default();
        batch.put_chunk(chunk_id(1), chunk_at(1, 0, 100));
        batch.catalog(sequence, Record::PutSnapshot(snapshot(2, "b")));
        let error = meta.apply(batch, false).unwrap_err();
        assert!(
            error.to_string().contains("does not follow record 1"),
            "{error}"
        );
    }
    assert_eq!(meta.catalog_sequence().unwrap(), 1);
    assert_eq!(meta.chunks(&[chunk_id(1)]).unwrap(), [None]);
    assert!(meta.is_healthy());
}

fn deleting_what_is_not_there_changes_nothing(meta: &dyn Meta) {
    put_snapshots(meta, [snapshot(1, "a")]);
    let before = meta.totals().unwrap();
    meta.apply(
        records(meta, [Record::DeleteSnapshot(snapshot_id(2))]),
        false,
    )
    .unwrap();
    assert_eq!(meta.totals().unwrap(), before);
    assert_eq!(meta.catalog_sequence().unwrap(), 2);
}

fn put_volumes(meta: &dyn Meta, volumes: impl IntoIterator<Item = VolumeRecord>) {
    let batch = records(meta, volumes.into_iter().map(Record::PutVolume));
    meta.apply(batch, false).unwrap();
}

fn volumes_are_kept_as_snapshots_are(meta: &dyn Meta) {
    put_volumes(meta, [volume(1, "b"), volume(2, "a/1"), volume(3, "a/2")]);
    assert_eq!(meta.volume(volume_id(2)).unwrap(), Some(volume(2, "a/1")));
    assert_eq!(meta.volume_by_name("b").unwrap(), Some(volume(1, "b")));
    assert_eq!(
        meta.volumes(Some("a/1"), "a", 10).unwrap(),
        [volume(3, "a/2")]
    );
    assert_eq!(
        meta.volumes(None, "", 2).unwrap(),
        [volume(2, "a/1"), volume(3, "a/2")]
    );
    // Changed, and under another name.
    let changed = VolumeRecord {
        attached_at_ns: Some(7),
        base: None,
        parent: None,
        ..volume(1, "c")
    };
    put_volumes(meta, [changed.clone()]);
    assert_eq!(meta.volume(volume_id(1)).unwrap(), Some(changed));
    assert_eq!(meta.volume_by_name("b").unwrap(), None);
    assert_eq!(meta.totals().unwrap().volumes, 3);
    let taken = records(meta, [Record::PutVolume(volume(4, "c"))]);
    match meta.apply(taken, false) {
        Err(Error::AlreadyExists { what, name, id }) => assert_eq!(
            (what, name.as_str(), id),
            ("volume", "c", volume_id(1).to_string())
        ),
        other => panic!("{other:?}"),
    }
    let gone = records(meta, [1, 9].map(|n| Record::DeleteVolume(volume_id(n))));
    meta.apply(gone, false).unwrap();
    assert_eq!(meta.volume(volume_id(1)).unwrap(), None);
    assert_eq!(meta.volume_by_name("c").unwrap(), None);
    assert_eq!(meta.totals().unwrap().volumes, 2);
}

fn copies_are_kept_until_they_are_forgotten(meta: &dyn Meta) {
    let copy = |number: u8, received_bytes| CopyRecord {
        received_bytes,
        ..copy(number)
    };
    let put = |records_: Vec<CopyRecord>| {
        let batch = records(meta, records_.into_iter().map(Record::PutCopy));
        meta.apply(batch, false).unwrap();
    };
    put(vec![copy(1, 0), copy(2, 0)]);
    put(vec![copy(2, 7)]);
    let mut found = meta.copies().unwrap();
    found.sort_by_key(|record| record.id);
    assert_eq!(found, [copy(1, 0), copy(2, 7)]);
    let gone = records(meta, [1, 9].map(|n| Record::DeleteCopy(copy_id(n))));
    meta.apply(gone, false).unwrap();
    assert_eq!(meta.copies().unwrap(), [copy(2, 7)]);
}

fn remotes_are_found_by_name(meta: &dyn Meta) {
    let remote = |name: &str, endpoint: &str| RemoteRecord {
        name: name.to_owned(),
        endpoint: endpoint.to_owned(),
        allow_plaintext: false,
        tls_ca: String::new(),
        tls_cert: String::new(),
        tls_key: String::new(),
        created_at_ns: 1,
    };
    let put = [("eu", "unix:/a"), ("us", "unix:/b"), ("eu", "unix:/c")];
    let put = put.map(|(name, endpoint)| Record::PutRemote(remote(name, endpoint)));
    meta.apply(records(meta, put), false).unwrap();
    let mut found = meta.remotes().unwrap();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    assert_eq!(found, [remote("eu", "unix:/c"), remote("us", "unix:/b")]);
    let gone = ["eu", "none"].map(|name| Record::DeleteRemote(name.to_owned()));
    meta.apply(records(meta, gone), false).unwrap();
    assert_eq!(meta.remotes().unwrap(), [remote("us", "unix:/b")]);
}

fn copy_id(number: u8) -> CopyId {
    CopyId::from_low_bits([number; 9])
}

fn copy(number: u8) -> CopyRecord {
    CopyRecord::begun(
        copy_id(number),
        "unix:/run/x".to_owned(),
        "web".to_owned(),
        number.into(),
    )
}

fn volumes_and_snapshots_share_no_names(meta: &dyn Meta) {
    put_snapshots(meta, [snapshot(1, "a")]);
    put_volumes(meta, [volume(1, "a")]);
    assert_eq!(meta.volume_by_name("a").unwrap(), Some(volume(1, "a")));
    let gone = records(meta, [Record::DeleteSnapshot(snapshot_id(1))]);
    meta.apply(gone, false).unwrap();
    assert_eq!(meta.snapshot_by_name("a").unwrap(), None);
    assert_eq!(meta.volume_by_name("a").unwrap(), Some(volume(1, "a")));
    let totals = meta.totals().unwrap();
    assert_eq!((totals.snapshots, totals.volumes), (0, 1));
}
