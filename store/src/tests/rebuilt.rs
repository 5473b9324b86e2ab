//! Rebuilds of stores that have lost something: the report names the loss, and is not whole.

use std::{fs, path::Path};

use super::{
    Random, assert_holds, block_on, random_image, repairs::closed, upload, volume_data::new_volume,
};
use crate::{
    NewVolume, Options, RebuildReport, Store,
    format::{PackKind, names},
    rebuild,
};

fn packs(dir: &Path, kind: PackKind) -> Vec<std::path::PathBuf> {
    let paths = fs::read_dir(names::packs(dir)).unwrap();
    paths
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            let pack = names::pack_of(path.file_name().unwrap());
            pack.is_some_and(|pack| pack.kind == kind)
        })
        .collect()
}

/// A store with two snapshots that share their leaves, another, and a volume over the first.
async fn store_with_content(options: &Options) {
    let (store, _) = Store::open(options.clone()).await.unwrap();
    let image = random_image(&mut Random::new(31), 5000);
    upload(&store, "a", &image).await.unwrap();
    upload(&store, "same", &image).await.unwrap();
    let other = random_image(&mut Random::new(32), 50);
    upload(&store, "other", &other).await.unwrap();
    let new = NewVolume {
        from: Some("a".into()),
        size_bytes: None,
        ..new_volume("v", 0)
    };
    store.create_volume(new).await.unwrap();
    closed(store).await;
}

fn lacking(report: &RebuildReport) -> Vec<String> {
    let found = report.incomplete.iter();
    found.map(|it| format!("{} {}", it.kind, it.name)).collect()
}

#[test]
fn a_rebuild_names_what_lost_its_chunks_or_its_nodes() {
    for kind in [PackKind::Chunks, PackKind::Nodes] {
        for keep in [None, Some(0), Some(1_000_001)] {
            let dir = tempfile::tempdir().unwrap();
            let options = Options::new(dir.path());
            let context = format!("{kind:?}, {keep:?}");
            block_on(async {
                store_with_content(&options).await;
                let whole = rebuild(options.clone()).await.unwrap();
                assert!(whole.is_whole(), "{whole}");
                let path = packs(dir.path(), kind).remove(0);
                let len = fs::metadata(&path).unwrap().len();
                match keep {
                    None => fs::remove_file(&path).unwrap(),
                    Some(keep) => {
                        let file = fs::File::options().write(true).open(&path).unwrap();
                        // The nodes are few.
                        file.set_len(keep.min(len - 4096 - 1)).unwrap();
                    }
                }
                let report = rebuild(options.clone()).await.unwrap();
                assert!(!report.is_whole(), "{context}");
                let said = report.to_string();
                let all = ["snapshot a", "snapshot other", "snapshot same", "volume v"];
                match (kind, keep) {
                    (PackKind::Nodes, Some(1_000_001)) => {
                        assert!(lacking(&report).contains(&all[1].to_owned()), "{said}");
                    }
                    _ => assert_eq!(lacking(&report), all, "{context}: {said}"),
                }
                assert_eq!(
                    report.torn_packs.len(),
                    usize::from(keep.is_some()),
                    "{said}"
                );
                for incomplete in &report.incomplete {
                    let of_kind = match kind {
                        PackKind::Chunks => incomplete.chunks,
                        PackKind::Nodes => incomplete.nodes,
                    };
                    assert_eq!(incomplete.chunks + incomplete.nodes, of_kind, "{said}");
                    assert!(of_kind > 0 && said.contains(&incomplete.example.to_string()));
                }
                if kind == PackKind::Chunks {
                    assert_eq!(report.incomplete[0].chunks, report.incomplete[3].chunks);
                }
            });
        }
    }
}

/// The index has everything that it has applied: the records that the log has lost come back.
#[test]
fn what_a_shortened_log_has_lost_comes_back_from_the_old_index() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options::new(dir.path());
    let image = random_image(&mut Random::new(33), 100);
    block_on(async {
        let (store, _) = Store::open(options.clone()).await.unwrap();
        upload(&store, "m", &image).await.unwrap();
        upload(&store, "gone", &image).await.unwrap();
        let log = names::catalog_log(dir.path());
        let short = fs::metadata(&log).unwrap().len();
        store.delete_snapshot(&"gone".into()).await.unwrap();
        let again = upload(&store, "gone", &image).await.unwrap();
        upload(&store, "v/1", &image).await.unwrap();
        let new = new_volume("e", 1 << 20);
        let volume = store.create_volume(new).await.unwrap();
        closed(store).await;
        let file = fs::File::options().write(true).open(&log).unwrap();
        file.set_len(short).unwrap();
        drop(file);
        let refused = Store::open(options.clone()).await.unwrap_err().to_string();
        assert!(
            refused.contains("up to record 2") && refused.contains("applied 6"),
            "{refused}"
        );

        let report = rebuild(options.clone()).await.unwrap();
        assert!(!report.is_whole());
        let found = report.short_log.as_ref().unwrap();
        assert_eq!((found.records, found.applied), (2, 6));
        let renamed = format!("restored-{}", again.id);
        let said = report.to_string();
        for wanted in [
            "snapshot \"v/1\" was restored",
            "volume \"e\" was restored",
            "snapshot \"gone\" is in the log and not in the old index",
            &renamed,
        ] {
            assert!(said.contains(wanted), "{wanted}: {said}");
        }
        assert_eq!((report.snapshots, report.volumes), (4, 1), "{said}");
        assert!(report.old_index.unwrap().is_dir());
        // The log has it all from now on.
        fs::remove_dir_all(names::index(dir.path())).unwrap();
        let whole = rebuild(options.clone()).await.unwrap();
        assert!(whole.is_whole(), "{whole}");
        let (store, _) = Store::open(options.clone()).await.unwrap();
        for name in ["m", "gone", "v/1", &renamed] {
            assert_holds(&store, name, &image).await;
        }
        assert_eq!(store.volume(&"e".into()).await.unwrap(), volume);
        closed(store).await;
    });
}

/// A record that nobody else has is lost, and the rebuild reports it.
#[test]
fn a_record_that_is_cut_off_the_log_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options::new(dir.path());
    let image = random_image(&mut Random::new(34), 100);
    block_on(async {
        let (store, _) = Store::open(options.clone()).await.unwrap();
        upload(&store, "a", &image).await.unwrap();
        upload(&store, "b", &image).await.unwrap();
        closed(store).await;
        let log = names::catalog_log(dir.path());
        let mut bytes = fs::read(&log).unwrap();
        let last = bytes.len() - 4096;
        bytes[last + 40] ^= 1;
        fs::write(&log, &bytes).unwrap();
        fs::remove_dir_all(names::index(dir.path())).unwrap();
        let report = rebuild(options.clone()).await.unwrap();
        assert!(!report.is_whole() && report.torn_log.is_some(), "{report}");
        assert_eq!((report.snapshots, report.short_log), (1, None));
    });
}
