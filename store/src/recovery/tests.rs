//! Records of the catalog log that come back.

#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::{
    AccountId,
    catalog_log::{CatalogLog, FoundLog},
    format::CatalogRecord as _,
    io::IoEngine,
};

/// A kind of record takes a file and a line in the registry: the log keeps it, a new index is
/// filled with it, and a program without that line refuses the log.
#[test]
fn a_kind_that_only_tests_have_is_made_again_from_the_log() {
    use crate::{
        format::{
            Change, RecordId, Tags,
            catalog_log::Record,
            record::note::{KINDS, Note, OfNote},
        },
        meta::{MemoryMeta, Records as _},
    };
    let dir = tempfile::tempdir().unwrap();
    let store = StoreId::from_bytes([7; 16]);
    let note = |number: u8, text: &str| Note {
        id: RecordId::<OfNote>::from_low_bits([number; 9]),
        name: (number != 2).then(|| format!("n{number}")),
        tags: Tags::from([("text".to_owned(), text.to_owned())]),
        text: text.to_owned(),
    };
    let path = names::catalog_log(dir.path());
    let indexes: [Box<dyn Meta>; 2] = [
        Box::new(MemoryMeta::default()),
        Box::new(RocksMeta::create_with(&names::index(dir.path()), store, KINDS).unwrap()),
    ];
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.build().unwrap();
    runtime.block_on(async {
        let disk = io::choose(IoEngine::Blocking).unwrap();
        let mut log = CatalogLog::create(Arc::clone(&disk), path.clone(), store)
            .await
            .unwrap();
        for record in [
            Record::One(Change::put(&note(1, "old"))),
            Record::Several(vec![
                Change::put(&note(1, "new")),
                Change::put(&note(2, "without a name")),
                Change::put(&note(3, "gone")),
            ]),
            Record::One(Change::delete::<Note>(&note(3, "").id)),
        ] {
            log.append(&record).await.unwrap();
        }
        drop(log);

        for meta in indexes {
            let found = FoundLog::open_with(Arc::clone(&disk), path.clone(), store, KINDS);
            let applied = meta.catalog_sequence().unwrap();
            let checked = found.await.unwrap().check(applied, |_| {}).await;
            let (mut log, checked) = checked.unwrap();
            let mut report = RecoveryReport::default();
            replay_log(&*meta, &mut log, checked, &mut report)
                .await
                .unwrap();
            assert_eq!(report.replayed_records, 3);
            let all = meta.all::<Note>().unwrap();
            assert_eq!(all, [note(1, "new"), note(2, "without a name")]);
            assert_eq!(
                meta.get_named(AccountId::ADMINISTRATOR, "n1").unwrap(),
                Some(note(1, "new"))
            );
            assert_eq!(meta.totals().unwrap().others.of(Note::KIND), 2);
        }

        let found = FoundLog::open(disk, path, store).await.unwrap();
        let refused = found.check(0, |_| {}).await.unwrap_err();
        let refused = refused.to_string();
        assert!(
            refused.contains("kind of a catalog log record"),
            "{refused}"
        );
    });
}
