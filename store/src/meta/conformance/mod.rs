//! Conformance of every [`Meta`]: one suite, run against each implementation.
//!
//! An implementation is a line in [`over_every_meta`].

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod catalog;
mod index;
mod model;

use std::collections::BTreeMap;

use varve_content::{RootId, codec::Codec};

use self::{catalog::*, index::*};
use super::*;
use crate::{
    Error,
    format::{
        Location, Name, PackId, PackKind, StoreId,
        catalog_log::Record,
        pack::{PACK_HEADER_BYTES, Payload, RecordKind},
        record::note::KINDS,
    },
};

pub(super) const STORE: StoreId = StoreId::from_bytes([7; 16]);

/// Runs each test against each implementation.
macro_rules! over_every_meta {
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
                let path = directory.path().join("index");
                super::$test(&super::RocksMeta::create_with(&path, super::STORE, super::KINDS).unwrap());
            })+
        }
    };
}

over_every_meta!(
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
    each_owner_has_names_of_its_own,
    a_record_is_put_unless_the_pack_that_has_it_is_there,
    a_row_moves_only_from_the_pack_that_it_points_into,
    a_row_is_removed_only_with_the_pack_that_it_points_into,
    of_two_changes_of_a_row_the_later_counts,
    a_view_stays_as_it_was,
    a_scan_gives_all_rows_in_order_until_it_breaks_off,
    numbers_of_packs_that_are_forgotten_are_known,
    the_last_collection_is_kept,
    records_without_names_are_listed_by_their_ids,
    a_prefix_passes_over_records_without_names,
    an_id_is_nobodys_name,
    completed_snapshots_are_found_by_their_roots,
    a_kind_that_only_tests_have_is_kept_like_all,
    a_catalog_is_made_anew_from_a_checkpoint,
    a_checkpoint_goes_only_into_a_catalog_that_was_cleared,
    a_view_of_the_catalog_stays_as_it_was,
    what_an_account_holds_is_counted,
);

pub(super) fn chunk(number: u64) -> Name {
    Name::of(RecordKind::Chunk, &number.to_le_bytes())
}

pub(super) fn leaf(number: u64) -> Name {
    Name::new(RecordKind::Leaf, *chunk(number).as_bytes())
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
        name: Some(name.to_owned()),
        owner: AccountId::ADMINISTRATOR,
        description: String::new(),
        size_bytes: 1000 + u64::from(number),
        state: snapshot_state(number),
        created_at_ns: 1,
        tags: BTreeMap::from([("k".to_owned(), "v".to_owned())]),
        origin: None,
        parent: None,
        sharing: Sharing::default(),
    }
}

/// Completed, with a root of that number.
pub(super) fn snapshot_state(root: u8) -> SnapshotState {
    SnapshotState::Completed(SnapshotContent {
        root: RootId::from_bytes([root; 32]),
        data_bytes: 500,
        new_bytes: 2,
        stored_bytes: 3,
    })
}

/// A snapshot that has all of the content with a root of that number.
pub(super) fn of_root(meta: &dyn Meta, root: u8) -> Option<SnapshotRecord> {
    meta.get_of_root(RootId::from_bytes([root; 32]), None)
        .unwrap()
}

pub(super) fn volume_id(number: u8) -> VolumeId {
    VolumeId::from_low_bits([number; 9])
}

pub(super) fn volume(number: u8, name: &str) -> VolumeRecord {
    VolumeRecord {
        id: volume_id(number),
        name: Some(name.to_owned()),
        owner: AccountId::ADMINISTRATOR,
        description: String::new(),
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
        batch.put(chunk(number), location);
    }
    batch
}

/// A batch of these records, behind those that were applied.
fn records(meta: &dyn Meta, records: impl IntoIterator<Item = Record>) -> Batch {
    let mut batch = Batch::default();
    for (sequence, record) in (meta.catalog_sequence().unwrap() + 1..).zip(records) {
        batch.catalog(sequence, record);
    }
    batch
}

/// The same of these changes, each in a record of its own.
fn changes(meta: &dyn Meta, changes: impl IntoIterator<Item = Change>) -> Batch {
    records(meta, changes.into_iter().map(Record::One))
}

/// Records with labels behind `after`, in the order of their labels.
fn list<R: CatalogRecord>(
    meta: &dyn Meta,
    after: Option<&str>,
    prefix: &str,
    limit: usize,
) -> Result<Vec<R>> {
    let filter = Filter {
        name_prefix: prefix.to_owned(),
        ..Filter::default()
    };
    let from = after.map(|after| behind(after.as_bytes()));
    let mut next = Some(from.unwrap_or_default());
    let mut found = Vec::new();
    // A page may be short: passing over an owner is a step.
    while let Some(from) = next.take()
        && found.len() < limit
    {
        let page = meta.page(&filter, &from, limit)?;
        found.extend(page.records);
        next = page.next;
    }
    found.truncate(limit);
    Ok(found)
}

fn put_snapshots(meta: &dyn Meta, snapshots: impl IntoIterator<Item = SnapshotRecord>) {
    let batch = changes(meta, snapshots.into_iter().map(|it| Change::put(&it)));
    meta.apply(batch, false).unwrap();
}

fn names(records: &[SnapshotRecord]) -> Vec<&str> {
    records
        .iter()
        .map(|record| record.name.as_deref().unwrap_or_default())
        .collect()
}

fn an_empty_store(meta: &dyn Meta) {
    assert_eq!(meta.totals().unwrap(), Totals::default());
    assert_eq!(meta.catalog_sequence().unwrap(), 0);
    assert_eq!(meta.lookup(&[]).unwrap(), []);
    assert_eq!(meta.lookup(&[chunk(1)]).unwrap(), [None]);
    assert_eq!(meta.lookup(&[leaf(1)]).unwrap(), [None]);
    assert_eq!(meta.pack_states().unwrap(), []);
    assert_eq!(list::<SnapshotRecord>(meta, None, "", 10).unwrap(), []);
    assert_eq!(meta.get::<SnapshotRecord>(&snapshot_id(1)).unwrap(), None);
    assert_eq!(
        meta.get_named::<SnapshotRecord>(AccountId::ADMINISTRATOR, "a")
            .unwrap(),
        None
    );
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
    let names: Vec<_> = asked.iter().map(|number| chunk(*number)).collect();
    let expected: Vec<_> = asked
        .iter()
        .map(|n| (*n < COUNT).then(|| chunk_at(1, 64 * n, 9)))
        .collect();
    assert_eq!(meta.lookup(&names).unwrap(), expected);
}

fn putting_again_counts_once(meta: &dyn Meta) {
    let mut batch = chunks([(1, chunk_at(1, 0, 5000))]);
    batch.put(leaf(1), location(RecordKind::Leaf, 2, 0, 100));
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
    batch.put(leaf(1), location(RecordKind::Leaf, 2, 0, 100));
    meta.apply(batch, false).unwrap();
    let mut batch = chunks([(1, chunk_at(3, 80, 4992))]);
    batch.put(leaf(1), location(RecordKind::Leaf, 4, 80, 104));
    meta.apply(batch, false).unwrap();
    assert_eq!(
        meta.lookup(&[chunk(1)]).unwrap(),
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
        meta.lookup(&[chunk(1)]).unwrap(),
        [Some(chunk_at(1, 99, 200))]
    );
    assert_eq!(meta.totals().unwrap().chunks, 1);
}

fn chunks_and_nodes_are_kept_apart(meta: &dyn Meta) {
    meta.apply(chunks([(1, chunk_at(1, 0, 100))]), false)
        .unwrap();
    assert_eq!(meta.lookup(&[leaf(1)]).unwrap(), [None]);
    let root = Name::new(RecordKind::Root, [9; 32]);
    let place = location(RecordKind::Root, 2, 0, 48);
    let mut batch = Batch::default();
    batch.put(root, place);
    meta.apply(batch, false).unwrap();
    // A root is no leaf, though who asks may say so.
    let other = Name::new(RecordKind::Leaf, [9; 32]);
    let found = meta.lookup(&[leaf(1), root, other]).unwrap();
    assert_eq!(found, [None, Some(place), None]);
}

fn pack_states_are_replaced(meta: &dyn Meta) {
    let state = |kind, number, indexed_bytes, sealed| PackState {
        pack: PackId { kind, number },
        indexed_bytes,
        phase: match sealed {
            true => PackPhase::Sealed,
            false => PackPhase::Open,
        },
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
        meta.get::<SnapshotRecord>(&snapshot_id(1)).unwrap(),
        Some(snapshot(1, "a"))
    );
    assert_eq!(
        meta.get_named::<SnapshotRecord>(AccountId::ADMINISTRATOR, "b")
            .unwrap(),
        Some(snapshot(2, "b"))
    );
    assert_eq!(
        meta.get_named::<SnapshotRecord>(AccountId::ADMINISTRATOR, "c")
            .unwrap(),
        None
    );
    assert_eq!(meta.catalog_sequence().unwrap(), 2);
    let totals = meta.totals().unwrap();
    assert_eq!((totals.snapshots, totals.logical_bytes), (2, 1001 + 1002));

    let batch = changes(meta, [Change::delete::<SnapshotRecord>(&snapshot_id(1))]);
    meta.apply(batch, true).unwrap();
    assert_eq!(meta.get::<SnapshotRecord>(&snapshot_id(1)).unwrap(), None);
    assert_eq!(
        meta.get_named::<SnapshotRecord>(AccountId::ADMINISTRATOR, "a")
            .unwrap(),
        None
    );
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
    let batch = changes(
        meta,
        (1..=4).map(|n| Change::delete::<SnapshotRecord>(&snapshot_id(n))),
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
        let found = list::<SnapshotRecord>(meta, after, prefix, limit).unwrap();
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
    assert_eq!(
        meta.get_named::<SnapshotRecord>(AccountId::ADMINISTRATOR, "old")
            .unwrap(),
        None
    );
    assert_eq!(
        meta.get_named::<SnapshotRecord>(AccountId::ADMINISTRATOR, "new")
            .unwrap(),
        Some(snapshot(1, "new"))
    );
    assert_eq!(
        names(&list::<SnapshotRecord>(meta, None, "", 10).unwrap()),
        ["new"]
    );
    assert_eq!(meta.totals().unwrap().snapshots, 1);
    put_snapshots(meta, [snapshot(2, "old")]);
    assert_eq!(
        names(&list::<SnapshotRecord>(meta, None, "", 10).unwrap()),
        ["new", "old"]
    );
}

fn a_name_is_free_again_after_a_delete_in_the_same_batch(meta: &dyn Meta) {
    let changes = [
        Change::put(&snapshot(1, "a")),
        Change::delete::<SnapshotRecord>(&snapshot_id(1)),
        Change::put(&snapshot(2, "a")),
        Change::put(&snapshot(2, "b")),
        Change::put(&snapshot(3, "a")),
    ];
    meta.apply(self::changes(meta, changes), false).unwrap();
    assert_eq!(
        list::<SnapshotRecord>(meta, None, "", 10).unwrap(),
        [snapshot(3, "a"), snapshot(2, "b")]
    );
    assert_eq!(meta.catalog_sequence().unwrap(), 5);
    assert_eq!(meta.totals().unwrap().snapshots, 2);
}

fn a_taken_name_refuses_the_whole_batch(meta: &dyn Meta) {
    put_snapshots(meta, [snapshot(1, "a")]);
    let before = meta.totals().unwrap();
    let changes = [
        Change::put(&snapshot(2, "b")),
        Change::put(&snapshot(3, "a")),
    ];
    let mut batch = self::changes(meta, changes);
    batch.put(chunk(1), chunk_at(1, 0, 100));
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
    assert_eq!(meta.lookup(&[chunk(1)]).unwrap(), [None]);
    assert_eq!(
        names(&list::<SnapshotRecord>(meta, None, "", 10).unwrap()),
        ["a"]
    );
    // The caller's mistake is not the disk's.
    assert!(meta.is_healthy());
    put_snapshots(meta, [snapshot(2, "b")]);
}

fn a_gap_in_the_catalog_refuses_the_whole_batch(meta: &dyn Meta) {
    put_snapshots(meta, [snapshot(1, "a")]);
    for sequence in [0, 1, 3, u64::MAX] {
        let mut batch = Batch::default();
        batch.put(chunk(1), chunk_at(1, 0, 100));
        let change = Change::put(&snapshot(2, "b"));
        batch.catalog(sequence, Record::One(change));
        let error = meta.apply(batch, false).unwrap_err();
        assert!(
            error.to_string().contains("does not follow record 1"),
            "{error}"
        );
    }
    assert_eq!(meta.catalog_sequence().unwrap(), 1);
    assert_eq!(meta.lookup(&[chunk(1)]).unwrap(), [None]);
    assert!(meta.is_healthy());
}

fn deleting_what_is_not_there_changes_nothing(meta: &dyn Meta) {
    put_snapshots(meta, [snapshot(1, "a")]);
    let before = meta.totals().unwrap();
    meta.apply(
        changes(meta, [Change::delete::<SnapshotRecord>(&snapshot_id(2))]),
        false,
    )
    .unwrap();
    assert_eq!(meta.totals().unwrap(), before);
    assert_eq!(meta.catalog_sequence().unwrap(), 2);
}

fn put_volumes(meta: &dyn Meta, volumes: impl IntoIterator<Item = VolumeRecord>) {
    let batch = changes(meta, volumes.into_iter().map(|it| Change::put(&it)));
    meta.apply(batch, false).unwrap();
}

fn volumes_are_kept_as_snapshots_are(meta: &dyn Meta) {
    put_volumes(meta, [volume(1, "b"), volume(2, "a/1"), volume(3, "a/2")]);
    assert_eq!(
        meta.get::<VolumeRecord>(&volume_id(2)).unwrap(),
        Some(volume(2, "a/1"))
    );
    assert_eq!(
        meta.get_named::<VolumeRecord>(AccountId::ADMINISTRATOR, "b")
            .unwrap(),
        Some(volume(1, "b"))
    );
    assert_eq!(
        list::<VolumeRecord>(meta, Some("a/1"), "a", 10).unwrap(),
        [volume(3, "a/2")]
    );
    assert_eq!(
        list::<VolumeRecord>(meta, None, "", 2).unwrap(),
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
    assert_eq!(
        meta.get::<VolumeRecord>(&volume_id(1)).unwrap(),
        Some(changed)
    );
    assert_eq!(
        meta.get_named::<VolumeRecord>(AccountId::ADMINISTRATOR, "b")
            .unwrap(),
        None
    );
    assert_eq!(meta.totals().unwrap().volumes, 3);
    let taken = changes(meta, [Change::put(&volume(4, "c"))]);
    match meta.apply(taken, false) {
        Err(Error::AlreadyExists { what, name, id }) => assert_eq!(
            (what, name.as_str(), id),
            ("volume", "c", volume_id(1).to_string())
        ),
        other => panic!("{other:?}"),
    }
    let gone = changes(
        meta,
        [1, 9].map(|n| Change::delete::<VolumeRecord>(&volume_id(n))),
    );
    meta.apply(gone, false).unwrap();
    assert_eq!(meta.get::<VolumeRecord>(&volume_id(1)).unwrap(), None);
    assert_eq!(
        meta.get_named::<VolumeRecord>(AccountId::ADMINISTRATOR, "c")
            .unwrap(),
        None
    );
    assert_eq!(meta.totals().unwrap().volumes, 2);
}

fn copies_are_kept_until_they_are_forgotten(meta: &dyn Meta) {
    let copy = |number: u8, received_bytes| CopyRecord {
        received_bytes,
        ..copy(number)
    };
    let put = |records_: Vec<CopyRecord>| {
        let batch = changes(meta, records_.into_iter().map(|it| Change::put(&it)));
        meta.apply(batch, false).unwrap();
    };
    put(vec![copy(1, 0), copy(2, 0)]);
    put(vec![copy(2, 7)]);
    let mut found = meta.all::<CopyRecord>().unwrap();
    found.sort_by_key(|record| record.id);
    assert_eq!(found, [copy(1, 0), copy(2, 7)]);
    let gone = changes(
        meta,
        [1, 9].map(|n| Change::delete::<CopyRecord>(&copy_id(n))),
    );
    meta.apply(gone, false).unwrap();
    assert_eq!(meta.all::<CopyRecord>().unwrap(), [copy(2, 7)]);
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
    assert_eq!(
        meta.get_named::<VolumeRecord>(AccountId::ADMINISTRATOR, "a")
            .unwrap(),
        Some(volume(1, "a"))
    );
    let gone = changes(meta, [Change::delete::<SnapshotRecord>(&snapshot_id(1))]);
    meta.apply(gone, false).unwrap();
    assert_eq!(
        meta.get_named::<SnapshotRecord>(AccountId::ADMINISTRATOR, "a")
            .unwrap(),
        None
    );
    assert_eq!(
        meta.get_named::<VolumeRecord>(AccountId::ADMINISTRATOR, "a")
            .unwrap(),
        Some(volume(1, "a"))
    );
    let totals = meta.totals().unwrap();
    assert_eq!((totals.snapshots, totals.volumes), (0, 1));
}
