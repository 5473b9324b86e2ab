//! Conformance of catalogs: records without names, and records of kinds that do not exist yet.

use std::ops::ControlFlow;

use super::*;
use crate::format::{
    RecordId, Tags,
    record::{
        Entry,
        note::{Note, OfNote},
    },
};

fn without_name(number: u8) -> SnapshotRecord {
    SnapshotRecord {
        name: None,
        ..snapshot(number, "")
    }
}

fn labels<R: CatalogRecord>(records: &[R]) -> Vec<String> {
    let labels = records.iter().map(|record| record.label().into_owned());
    labels.collect()
}

pub(super) fn records_without_names_are_listed_by_their_ids(meta: &dyn Meta) {
    put_snapshots(meta, [without_name(2), snapshot(3, "a"), without_name(1)]);
    put_snapshots(meta, [snapshot(4, "z")]);
    let (one, two) = (snapshot_id(1).to_string(), snapshot_id(2).to_string());
    let all = list::<SnapshotRecord>(meta, None, "", 10).unwrap();
    assert_eq!(labels(&all), ["a", &one, &two, "z"]);
    let behind = list::<SnapshotRecord>(meta, Some(&one), "", 10).unwrap();
    assert_eq!(labels(&behind), [&two, "z"]);
    assert_eq!(
        meta.get::<SnapshotRecord>(&snapshot_id(1)).unwrap(),
        Some(without_name(1))
    );
    assert_eq!(meta.totals().unwrap().snapshots, 4);

    // It gets a name, and loses it again.
    put_snapshots(meta, [snapshot(1, "b")]);
    let all = list::<SnapshotRecord>(meta, None, "", 10).unwrap();
    assert_eq!(labels(&all), ["a", "b", &two, "z"]);
    put_snapshots(meta, [without_name(1)]);
    assert_eq!(
        meta.get_named::<SnapshotRecord>(AccountId::ADMINISTRATOR, "b")
            .unwrap(),
        None
    );
    let gone = [1, 2].map(|n| Change::delete::<SnapshotRecord>(&snapshot_id(n)));
    meta.apply(changes(meta, gone), false).unwrap();
    let all = list::<SnapshotRecord>(meta, None, "", 10).unwrap();
    assert_eq!(labels(&all), ["a", "z"]);
}

pub(super) fn a_prefix_passes_over_records_without_names(meta: &dyn Meta) {
    put_snapshots(meta, (1..=5).map(without_name));
    put_snapshots(meta, [snapshot(6, "snap"), snapshot(7, "snap-x")]);
    let found = list::<SnapshotRecord>(meta, None, "snap", 10).unwrap();
    assert_eq!(labels(&found), ["snap", "snap-x"]);
    let tags = BTreeMap::from([("tier".to_owned(), "gold".to_owned())]);
    let tagged = |record: SnapshotRecord| SnapshotRecord {
        tags: tags.clone(),
        ..record
    };
    put_snapshots(meta, [without_name(1), snapshot(7, "snap-x")].map(tagged));
    for (name_prefix, expected) in [("", 2), ("snap", 1)] {
        let filter = Filter {
            owner: None,
            name_prefix: name_prefix.to_owned(),
            tags: tags.clone(),
            ..Filter::default()
        };
        let page = meta.page::<SnapshotRecord>(&filter, &[], 100).unwrap();
        assert_eq!(page.records.len(), expected);
    }
}

pub(super) fn an_id_is_nobodys_name(meta: &dyn Meta) {
    put_snapshots(meta, [without_name(1)]);
    let id = snapshot_id(1).to_string();
    assert_eq!(
        meta.get_named::<SnapshotRecord>(AccountId::ADMINISTRATOR, &id)
            .unwrap(),
        None
    );
    assert_eq!(
        meta.get_named::<SnapshotRecord>(AccountId::ADMINISTRATOR, "")
            .unwrap(),
        None
    );
    let found = SnapshotRecord::find(meta, &SnapshotKey::from(&*id)).unwrap();
    assert_eq!(found, without_name(1));
    let error = SnapshotRecord::find(meta, &SnapshotKey::from("none")).unwrap_err();
    assert_eq!(error.to_string(), "snapshot \"none\" not found");
}

pub(super) fn completed_snapshots_are_found_by_their_roots(meta: &dyn Meta) {
    let with = |number, state| SnapshotRecord {
        state,
        ..snapshot(number, &number.to_string())
    };
    let pending = with(1, SnapshotState::Pending);
    let first = with(2, snapshot_state(7));
    let second = with(3, snapshot_state(7));
    put_snapshots(
        meta,
        [pending, first.clone(), second.clone(), snapshot(8, "8")],
    );
    assert_eq!(of_root(meta, 1), None);
    assert_eq!(of_root(meta, 7), Some(first));
    assert_eq!(of_root(meta, 8), Some(snapshot(8, "8")));
    // One is deleted, one gets another root, and one is completed.
    let gone = Change::delete::<SnapshotRecord>(&snapshot_id(2));
    meta.apply(changes(meta, [gone]), false).unwrap();
    assert_eq!(of_root(meta, 7), Some(second));
    let completed = with(1, snapshot_state(1));
    put_snapshots(meta, [with(3, snapshot_state(6)), completed.clone()]);
    assert_eq!(of_root(meta, 7), None);
    assert_eq!(of_root(meta, 1), Some(completed));
    // Volumes are not found so.
    put_volumes(meta, [volume(9, "9")]);
    let root = RootId::from_bytes([9; 32]);
    assert_eq!(meta.get_of_root::<VolumeRecord>(root, None).unwrap(), None);
}

/// An account of that number.
pub(super) fn account(number: u64) -> AccountId {
    AccountId::from_number(number).unwrap()
}

/// The same snapshot of another owner.
fn owned(owner: u64, record: SnapshotRecord) -> SnapshotRecord {
    SnapshotRecord {
        owner: account(owner),
        ..record
    }
}

pub(super) fn each_owner_has_names_of_its_own(meta: &dyn Meta) {
    const LAST: u64 = 999_999_999_999;
    let all = [
        snapshot(1, "b"),
        snapshot(2, "z"),
        owned(7, snapshot(3, "a")),
        owned(7, snapshot(4, "b")),
        owned(7, without_name(5)),
        owned(256, snapshot(6, "a")),
        owned(LAST, snapshot(7, "b")),
        owned(LAST, snapshot(8, "c")),
    ];
    put_snapshots(meta, all.clone());
    let named = |owner, name| {
        meta.get_named::<SnapshotRecord>(account(owner), name)
            .unwrap()
    };
    assert_eq!(named(0, "b"), Some(all[0].clone()));
    assert_eq!(named(7, "b"), Some(all[3].clone()));
    assert_eq!(named(LAST, "b"), Some(all[6].clone()));
    assert_eq!((named(0, "a"), named(8, "b")), (None, None));
    let listed = |owner: Option<u64>, name_prefix: &str, tags: Tags, steps| {
        let filter = Filter {
            owner: owner.map(account),
            name_prefix: name_prefix.to_owned(),
            tags,
            ..Filter::default()
        };
        let mut found = Vec::new();
        let mut next = Some(Vec::new());
        while let Some(from) = next {
            let page = meta.page::<SnapshotRecord>(&filter, &from, steps).unwrap();
            found.extend(page.records);
            next = page.next;
        }
        found
    };
    let tag = || Tags::from([("k".to_owned(), "v".to_owned())]);
    for steps in [1, 2, 100] {
        for tags in [Tags::new(), tag()] {
            let listed = |owner, prefix| listed(owner, prefix, tags.clone(), steps);
            assert_eq!(listed(None, ""), all, "{steps}");
            assert_eq!(listed(Some(0), ""), all[..2], "{steps}");
            assert_eq!(listed(Some(7), ""), all[2..5], "{steps}");
            assert_eq!(listed(Some(8), ""), [], "{steps}");
            assert_eq!(listed(Some(LAST), ""), all[6..], "{steps}");
            assert_eq!(listed(Some(7), "b"), all[3..4], "{steps}");
            let b = [&all[0], &all[3], &all[6]].map(Clone::clone);
            assert_eq!(listed(None, "b"), b, "{steps}");
            assert_eq!(listed(None, "c"), all[7..], "{steps}");
        }
    }

    // One goes to another owner, and its name is free.
    put_snapshots(meta, [owned(256, snapshot(4, "b"))]);
    assert_eq!(named(7, "b"), None);
    put_snapshots(meta, [owned(7, snapshot(9, "b"))]);
    let taken = changes(meta, [Change::put(&owned(256, snapshot(10, "b")))]);
    let error = meta.apply(taken, true).unwrap_err();
    assert!(matches!(error, Error::AlreadyExists { .. }), "{error}");
}

fn note(number: u8, name: &str, text: &str) -> Note {
    Note {
        id: RecordId::<OfNote>::from_low_bits([number; 9]),
        name: Some(name.to_owned()),
        tags: BTreeMap::from([("text".to_owned(), text.to_owned())]),
        text: text.to_owned(),
    }
}

pub(super) fn a_kind_that_only_tests_have_is_kept_like_all(meta: &dyn Meta) {
    let count = |meta: &dyn Meta| meta.totals().unwrap().others.of(Note::KIND);
    assert_eq!(count(meta), 0);
    put_snapshots(meta, [snapshot(1, "b")]);
    let put = [note(1, "b", "x"), note(2, "a", "y"), note(3, "c", "x")];
    let put: Vec<_> = put.iter().map(Change::put).collect();
    meta.apply(changes(meta, put), true).unwrap();
    assert_eq!(count(meta), 3);
    assert_eq!(meta.totals().unwrap().snapshots, 1);
    assert_eq!(
        meta.get_named(AccountId::ADMINISTRATOR, "b").unwrap(),
        Some(note(1, "b", "x"))
    );
    assert_eq!(
        meta.get(&note(2, "", "").id).unwrap(),
        Some(note(2, "a", "y"))
    );
    let all = list::<Note>(meta, None, "", 10).unwrap();
    assert_eq!(labels(&all), ["a", "b", "c"]);
    let filter = Filter {
        tags: note(9, "", "x").tags,
        ..Filter::default()
    };
    let tagged = meta.page::<Note>(&filter, &[], 100).unwrap();
    assert_eq!(tagged.records, [note(1, "b", "x"), note(3, "c", "x")]);

    let taken = changes(meta, [Change::put(&note(4, "a", ""))]);
    let error = meta.apply(taken, true).unwrap_err();
    assert!(error.to_string().contains("a note named \"a\""), "{error}");
    let gone = changes(meta, [Change::delete::<Note>(&note(1, "", "").id)]);
    meta.apply(gone, true).unwrap();
    assert_eq!(
        meta.get_named::<Note>(AccountId::ADMINISTRATOR, "b")
            .unwrap(),
        None
    );
    assert!(
        meta.get_named::<SnapshotRecord>(AccountId::ADMINISTRATOR, "b")
            .unwrap()
            .is_some()
    );
    assert_eq!(count(meta), 2);
}

/// The catalog sequence, and all records of all kinds.
fn everything(view: &dyn CatalogView) -> Result<(u64, Vec<Entry>)> {
    let mut all = Vec::new();
    for kind in KINDS.iter() {
        view.all_entries(kind, &mut |entry| {
            all.push(entry);
            ControlFlow::Continue(())
        })?;
    }
    Ok((view.catalog_sequence()?, all))
}

fn everything_in(meta: &dyn Meta) -> (u64, Vec<Entry>) {
    let mut found = None;
    let looked = meta.view_catalog(&mut |view| {
        found = Some(everything(view)?);
        Ok(())
    });
    looked.unwrap();
    found.unwrap()
}

/// Some records of three kinds, and a chunk.
fn put_something(meta: &dyn Meta) {
    let mut batch = changes(meta, [Change::put(&note(1, "n", "x"))]);
    batch.put(chunk(1), chunk_at(1, 0, 100));
    meta.apply(batch, true).unwrap();
    put_snapshots(meta, [snapshot(1, "a"), snapshot(2, "b")]);
    put_volumes(meta, [volume(1, "v")]);
}

pub(super) fn a_catalog_is_made_anew_from_a_checkpoint(meta: &dyn Meta) {
    put_something(meta);
    meta.apply(Batch::clearing_the_catalog(), true).unwrap();
    assert_eq!(everything_in(meta), (0, Vec::new()));
    let totals = meta.totals().unwrap();
    assert_eq!((totals.snapshots, totals.volumes), (0, 0));
    assert_eq!((totals.logical_bytes, totals.chunks), (0, 1));
    assert_eq!(totals.others.of(Note::KIND), 0);
    assert!(meta.lookup(&[chunk(1)]).unwrap()[0].is_some());
    for name in ["a", "b"] {
        assert_eq!(
            meta.get_named::<SnapshotRecord>(AccountId::ADMINISTRATOR, name)
                .unwrap(),
            None
        );
    }
    let filter = Filter {
        tags: BTreeMap::from([("k".to_owned(), "v".to_owned())]),
        ..Filter::default()
    };
    let tagged = || {
        let page = meta.page::<SnapshotRecord>(&filter, &[], 100).unwrap();
        page.records
    };
    assert_eq!(tagged(), []);

    let fill = |changes: Vec<Change>| meta.apply(Batch::of_checkpoint(changes), false).unwrap();
    fill(vec![
        Change::put(&snapshot(2, "a")),
        Change::put(&volume(3, "v")),
    ]);
    fill(vec![
        Change::put(&note(1, "n", "y")),
        // Of a volume that has no record.
        Change::delete::<VolumeRecord>(&volume_id(1)),
    ]);
    assert_eq!(meta.catalog_sequence().unwrap(), 0);
    let complete = Batch::completing_checkpoint(1000);
    meta.apply(complete, true).unwrap();
    assert_eq!(meta.catalog_sequence().unwrap(), 1000);
    assert_eq!(tagged(), [snapshot(2, "a")]);
    let totals = meta.totals().unwrap();
    assert_eq!((totals.snapshots, totals.volumes), (1, 1));
    assert_eq!(totals.others.of(Note::KIND), 1);
    assert_eq!(totals.logical_bytes, snapshot(2, "a").size_bytes.into());
    // The log goes on behind it.
    put_snapshots(meta, [snapshot(4, "b")]);
    assert_eq!(meta.catalog_sequence().unwrap(), 1001);
}

pub(super) fn a_checkpoint_goes_only_into_a_catalog_that_was_cleared(meta: &dyn Meta) {
    put_something(meta);
    let before = everything_in(meta);
    let fill = Batch::of_checkpoint(vec![Change::put(&snapshot(9, "z"))]);
    assert!(meta.apply(fill, true).is_err());
    assert!(meta.apply(Batch::completing_checkpoint(7), true).is_err());
    let mut both = Batch::clearing_the_catalog();
    both.catalog(1, Record::One(Change::put(&snapshot(9, "z"))));
    assert!(meta.apply(both, true).is_err());
    assert_eq!(everything_in(meta), before);
}

pub(super) fn a_view_of_the_catalog_stays_as_it_was(meta: &dyn Meta) {
    put_something(meta);
    let before = everything_in(meta);
    assert_eq!((before.0, before.1.len()), (4, 4));
    let looked = meta.view_catalog(&mut |view| {
        put_snapshots(meta, [snapshot(1, "renamed"), snapshot(3, "c")]);
        assert_eq!(everything(view)?, before);
        let mut seen = 0;
        view.all_entries(SnapshotRecord::KIND, &mut |_| {
            seen += 1;
            ControlFlow::Break(())
        })?;
        assert_eq!(seen, 1);
        Ok(())
    });
    looked.unwrap();
    assert_eq!(everything_in(meta).1.len(), 5);
}

pub(super) fn remotes_are_found_by_name(meta: &dyn Meta) {
    let remote = |name: &str, endpoint: &str| RemoteRecord {
        owner: AccountId::ADMINISTRATOR,
        name: name.to_owned(),
        endpoint: endpoint.to_owned(),
        allow_plaintext: false,
        tls_ca: String::new(),
        tls_cert: String::new(),
        tls_key: String::new(),
        token_file: String::new(),
        created_at_ns: 1,
    };
    let put = [("eu", "unix:/a"), ("us", "unix:/b"), ("eu", "unix:/c")];
    let put = put.map(|(name, endpoint)| Change::put(&remote(name, endpoint)));
    meta.apply(changes(meta, put), false).unwrap();
    let mut found = meta.all::<RemoteRecord>().unwrap();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    assert_eq!(found, [remote("eu", "unix:/c"), remote("us", "unix:/b")]);
    let gone = ["eu", "none"].map(|name| Change::delete::<RemoteRecord>(&name.to_owned()));
    meta.apply(changes(meta, gone), false).unwrap();
    assert_eq!(
        meta.all::<RemoteRecord>().unwrap(),
        [remote("us", "unix:/b")]
    );
}

pub(super) fn what_an_account_holds_is_counted(meta: &dyn Meta) {
    let held = |number| {
        let holdings = meta.holdings(account(number)).unwrap();
        (
            holdings.volumes,
            holdings.snapshots,
            holdings.attached_volumes,
        )
    };
    let disk = |owner, attached_at_ns| VolumeRecord {
        owner: account(owner),
        attached_at_ns,
        ..volume(1, "db")
    };
    assert_eq!(held(0), (0, 0, 0));
    put_snapshots(meta, [snapshot(1, "a"), owned(7, snapshot(2, "a"))]);
    put_volumes(meta, [disk(7, None), volume(2, "db")]);
    assert_eq!((held(0), held(7)), ((1, 1, 0), (1, 1, 0)));
    put_volumes(meta, [disk(7, Some(1))]);
    // The same once more changes nothing.
    put_volumes(meta, [disk(7, Some(2))]);
    assert_eq!(held(7), (1, 1, 1));
    // Both are given away: in one record, and with a change that is undone in the same record.
    let several = Record::Several(vec![
        Change::put(&disk(8, None)),
        Change::put(&owned(9, snapshot(2, "a"))),
        Change::put(&owned(8, snapshot(2, "b"))),
        Change::put(&owned(8, snapshot(3, "c"))),
        Change::delete::<SnapshotRecord>(&snapshot_id(3)),
    ]);
    meta.apply(records(meta, [several]), false).unwrap();
    assert_eq!((held(7), held(8)), ((0, 0, 0), (1, 1, 0)));
    assert_eq!((held(0), held(9)), ((1, 1, 0), (0, 0, 0)));
    // What is not there is nobody's.
    let gone = [2, 2, 9].map(|n| Change::delete::<SnapshotRecord>(&snapshot_id(n)));
    meta.apply(changes(meta, gone), false).unwrap();
    assert_eq!(held(8), (1, 0, 0));
    // A batch that is refused counts nothing.
    let taken = [
        Change::put(&owned(8, snapshot(5, "x"))),
        Change::put(&owned(8, snapshot(6, "x"))),
    ];
    assert!(meta.apply(changes(meta, taken), false).is_err());
    assert_eq!(held(8), (1, 0, 0));

    meta.apply(Batch::clearing_the_catalog(), false).unwrap();
    assert_eq!((held(0), held(8)), ((0, 0, 0), (0, 0, 0)));
    let fill = Batch::of_checkpoint(vec![Change::put(&disk(8, Some(1)))]);
    meta.apply(fill, false).unwrap();
    meta.apply(Batch::completing_checkpoint(9), false).unwrap();
    assert_eq!((held(0), held(8)), ((0, 0, 0), (1, 0, 1)));
}
