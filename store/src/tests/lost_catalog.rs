//! Journals of volumes whose records were lost: nothing removes them, and a rebuild makes the
//! volumes again.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use bytes::Bytes;

use super::{
    Random, block_on,
    machine::Machine,
    pending::{fill, pending},
    repairs::closed,
    seed, upload,
    volume_data::{BLOCK, contents, new_volume, options},
};
use crate::{
    Error, NewVolume, Options, RecoveryReport, Store, VolumeId, VolumeKey,
    format::{PackKind, names},
    rebuild,
};

/// A volume with two blocks flushed to its journal, in a store that was closed.
async fn with_journal(options: &Options, new: NewVolume) -> VolumeId {
    let (store, _) = Store::open(options.clone()).await.unwrap();
    let id = store.create_volume(new).await.unwrap().id;
    let volume = store.open_volume(&VolumeKey::Id(id)).await.unwrap();
    fill(&volume, 1, 7).await;
    fill(&volume, 3, 9).await;
    volume.flush().await.unwrap();
    drop(volume);
    closed(store).await;
    id
}

fn blocks_of(size_bytes: usize) -> Vec<u8> {
    let mut image = vec![0; size_bytes];
    image[BLOCK..2 * BLOCK].fill(7);
    image[3 * BLOCK..4 * BLOCK].fill(9);
    image
}

/// Flips a byte of the last record of the catalog log that has more than the end of a journal, and
/// loses the index, which has that record.
fn lose_last_record(dir: &Path) {
    damage_last_record(dir);
    lose_index(dir);
}

/// Flips a byte of the record of the catalog log before the last, which says where a journal ends
/// and goes. The bytes from that record on, as they are then.
fn damage_last_record(dir: &Path) -> Vec<u8> {
    let path = names::catalog_log(dir);
    let mut log = fs::read(&path).unwrap();
    let last = |log: &[u8]| {
        let is_record = |block: &[u8]| block.starts_with(b"VCAT");
        log.chunks(4096).rposition(is_record).unwrap() * 4096
    };
    log.truncate(last(&log));
    let start = last(&log);
    log[start + 40] ^= 1;
    fs::write(&path, &log).unwrap();
    log.split_off(start)
}

fn lose_index(dir: &Path) {
    fs::remove_dir_all(names::index(dir)).unwrap();
}

fn journal_files(dir: &Path, id: VolumeId) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(names::volume(dir, id))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| names::journal_number_of(path.file_name().unwrap()).is_some())
        .collect();
    files.sort();
    files
}

async fn opened(options: &Options) -> (Store, RecoveryReport) {
    Store::open(options.clone()).await.unwrap()
}

#[test]
fn a_volume_whose_record_is_damaged_is_made_again_with_its_journal() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(dir.path());
    block_on(async {
        let id = with_journal(&options, new_volume("v", 1 << 20)).await;
        let cut = damage_last_record(dir.path());
        let refused = Store::open(options.clone()).await.unwrap_err();
        assert!(matches!(refused, Error::Incompatible { .. }), "{refused}");
        lose_index(dir.path());
        let report = rebuild(options.clone()).await.unwrap();
        assert_eq!(report.volumes, 1, "{report}");
        assert_eq!(
            report.adopted_volumes,
            ["volume \"v\" was restored from its journal"]
        );
        assert_eq!(report.stranded_journals, []);
        assert_eq!(fs::read(report.cut_log.unwrap()).unwrap(), cut);
        let (store, found) = opened(&options).await;
        assert_eq!(found.stranded_journals, []);
        let volume = store.open_volume(&"v".into()).await.unwrap();
        assert_eq!(volume.record().id, id);
        assert!(contents(&volume).await == blocks_of(1 << 20));
        drop(volume);
        closed(store).await;
        // It is a volume like any other: the log alone is enough for it.
        let again = rebuild(options.clone()).await.unwrap();
        assert_eq!((again.volumes, again.adopted_volumes.len()), (1, 0));
        assert_eq!((again.cut_log, again.torn_log), (None, None));
    });
}

#[test]
fn a_log_that_is_lost_is_not_begun_anew_beside_journals() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(dir.path());
    block_on(async {
        let id = with_journal(&options, new_volume("v", 1 << 20)).await;
        let other = with_journal(&options, new_volume("w", 2 << 20)).await;
        fs::remove_file(names::catalog_log(dir.path())).unwrap();
        lose_index(dir.path());
        let refused = Store::open(options.clone()).await.unwrap_err().to_string();
        assert!(refused.contains("varved rebuild"), "{refused}");
        let report = rebuild(options.clone()).await.unwrap();
        assert_eq!((report.volumes, report.adopted_volumes.len()), (2, 2));
        let (store, _) = opened(&options).await;
        for (name, id, size) in [("v", id, 1 << 20), ("w", other, 2 << 20)] {
            let volume = store.open_volume(&name.into()).await.unwrap();
            assert_eq!(volume.record().id, id);
            assert!(contents(&volume).await == blocks_of(size));
        }
        closed(store).await;
    });
}

#[test]
fn a_journal_that_cannot_be_adopted_is_named_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(dir.path());
    block_on(async {
        let id = with_journal(&options, new_volume("v", 1 << 20)).await;
        // As an older version left it.
        let owner = names::journal_owner(dir.path(), id);
        let kept = fs::read(&owner).unwrap();
        fs::remove_file(&owner).unwrap();
        let files = journal_files(dir.path(), id);
        assert_eq!(files.len(), 1);
        lose_last_record(dir.path());
        let report = rebuild(options.clone()).await.unwrap();
        assert_eq!((report.volumes, report.adopted_volumes.len()), (0, 0));
        assert_eq!(
            report.stranded_journals[0].path,
            names::volume(dir.path(), id)
        );
        assert!(report.to_string().contains("older version"), "{report}");
        for _ in 0..2 {
            let (store, found) = opened(&options).await;
            assert_eq!(found.stranded_journals.len(), 1);
            assert!(
                found.to_string().contains("1 journals of unknown volumes"),
                "{found}"
            );
            assert!(
                !found.is_clean() && found.stranded_journals[0].to_string().contains("rebuild")
            );
            closed(store).await;
            assert_eq!(journal_files(dir.path(), id), files);
        }
        // Neither another store's journal nor another volume's is taken for its own.
        for at in [16, 42] {
            let mut foreign = kept.clone();
            for slot in foreign.chunks_mut(4096).filter(|slot| slot[0] != 0) {
                slot[at] ^= 1;
                let crc32 = crc32fast::hash(&slot[..4092]);
                slot[4092..].copy_from_slice(&crc32.to_le_bytes());
            }
            fs::write(&owner, foreign).unwrap();
            let report = rebuild(options.clone()).await.unwrap();
            assert_eq!(report.volumes, 0);
            assert!(report.to_string().contains("belongs"), "{report}");
        }
        // A volume that has the name meanwhile keeps it.
        fs::write(&owner, kept).unwrap();
        let (store, _) = opened(&options).await;
        let taken = store.create_volume(new_volume("v", 4096)).await.unwrap();
        closed(store).await;
        let report = rebuild(options.clone()).await.unwrap();
        assert_eq!((report.volumes, report.adopted_volumes.len()), (2, 1));
        let (store, _) = opened(&options).await;
        assert_eq!(store.volume(&"v".into()).await.unwrap(), taken);
        let volume = store
            .open_volume(&format!("adopted-{id}").as_str().into())
            .await
            .unwrap();
        assert!(contents(&volume).await == blocks_of(1 << 20));
        drop(volume);
        closed(store).await;
    });
}

#[test]
fn a_volume_is_not_made_again_without_its_base() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(dir.path());
    block_on(async {
        let (store, _) = opened(&options).await;
        let image = [5; 2 * BLOCK];
        let root = upload(&store, "s", &image).await.unwrap().root().unwrap();
        closed(store).await;
        let new = NewVolume {
            size_bytes: Some(1 << 20),
            from: Some("s".into()),
            ..new_volume("v", 0)
        };
        let id = with_journal(&options, new).await;
        lose_last_record(dir.path());
        let packs = names::packs(dir.path());
        let mut moved = Vec::new();
        for entry in fs::read_dir(&packs).unwrap() {
            let path = entry.unwrap().path();
            let pack = names::pack_of(path.file_name().unwrap()).unwrap();
            if pack.kind == PackKind::Nodes {
                fs::rename(&path, dir.path().join("moved")).unwrap();
                moved.push(path);
            }
        }
        assert_eq!(moved.len(), 1);
        let report = rebuild(options.clone()).await.unwrap();
        assert_eq!((report.volumes, report.adopted_volumes.len()), (0, 0));
        let said = report.stranded_journals[0].to_string();
        assert!(
            said.contains(&root.to_string()) && said.contains("\"v\"") && said.contains("no pack"),
            "{said}"
        );
        // With the pack it can be.
        fs::rename(dir.path().join("moved"), &moved[0]).unwrap();
        let report = rebuild(options.clone()).await.unwrap();
        assert_eq!((report.volumes, report.adopted_volumes.len()), (1, 1));
        let (store, _) = opened(&options).await;
        let volume = store.open_volume(&"v".into()).await.unwrap();
        assert_eq!(volume.record().id, id);
        let mut expected = blocks_of(1 << 20);
        expected[..BLOCK].fill(5);
        assert!(contents(&volume).await == expected);
        drop(volume);
        closed(store).await;
    });
}

/// The record that puts a volume on its new base is the last, and is lost: the journal does not
/// begin at the file that the log names.
#[test]
fn a_volume_goes_on_from_the_base_that_its_journal_begins_with() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(dir.path());
    block_on(async {
        with_journal(&options, new_volume("v", 1 << 20)).await;
        let (store, _) = opened(&options).await;
        let volume = store.open_volume(&"v".into()).await.unwrap();
        let promised = pending(&store, "v", "s").await.unwrap();
        store.completed_snapshot(promised.id).await.unwrap();
        fill(&volume, 5, 4).await;
        volume.flush().await.unwrap();
        drop(volume);
        closed(store).await;
        lose_last_record(dir.path());
        // A catalog that is older than the journal does not open it.
        let report = rebuild(options.clone()).await.unwrap();
        assert_eq!(report.volumes, 1, "{report}");
        assert!(report.adopted_volumes[0].contains("behind"), "{report}");
        let (store, _) = opened(&options).await;
        store.resume_snapshots().await.unwrap();
        let mut expected = blocks_of(1 << 20);
        super::assert_holds(&store, "s", &expected).await;
        expected[5 * BLOCK..6 * BLOCK].fill(4);
        let volume = store.open_volume(&"v".into()).await.unwrap();
        assert!(contents(&volume).await == expected);
        drop(volume);
        closed(store).await;
    });
}

/// The record by which the volume grew is the last, and is lost: what was written behind the old
/// end is in the journal, and flushed.
#[test]
fn a_volume_is_as_large_as_its_journal_says() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(dir.path());
    block_on(async {
        let id = with_journal(&options, new_volume("v", 1 << 20)).await;
        let (store, _) = opened(&options).await;
        store.attach_volume(&"v".into(), false).await.unwrap();
        let volume = store.open_volume(&"v".into()).await.unwrap();
        store.resize_volume(&"v".into(), 2 << 20).await.unwrap();
        fill(&volume, 400, 4).await;
        volume.flush().await.unwrap();
        drop(volume);
        closed(store).await;
        lose_last_record(dir.path());
        // A catalog that is older than the journal does not open it.
        let owner = names::journal_owner(dir.path(), id);
        let newer = fs::read(&owner).unwrap();
        fs::remove_file(&owner).unwrap();
        rebuild(options.clone()).await.unwrap();
        fs::write(&owner, newer).unwrap();
        let (store, _) = opened(&options).await;
        let refused = store
            .open_volume(&"v".into())
            .await
            .unwrap_err()
            .to_string();
        assert!(refused.contains("varved rebuild"), "{refused}");
        closed(store).await;

        let report = rebuild(options.clone()).await.unwrap();
        assert_eq!(report.volumes, 1, "{report}");
        assert_eq!(report.adopted_volumes.len(), 1, "{report}");
        let (store, _) = opened(&options).await;
        let volume = store.open_volume(&"v".into()).await.unwrap();
        let mut expected = blocks_of(2 << 20);
        expected[400 * BLOCK..401 * BLOCK].fill(4);
        assert!(contents(&volume).await == expected);
        assert_eq!(store.volume(&"v".into()).await.unwrap().attachments, 1);
        drop(volume);
        closed(store).await;
    });
}

/// The record of an attachment is the last, and is lost: its number is not given to another.
#[test]
fn an_attachment_that_was_lost_has_a_number_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(dir.path());
    block_on(async {
        with_journal(&options, new_volume("v", 1 << 20)).await;
        let (store, _) = opened(&options).await;
        let volume = store.open_volume(&"v".into()).await.unwrap();
        let attached = store.attach_volume(&"v".into(), false).await.unwrap();
        assert_eq!(attached.attachments, 1);
        drop(volume);
        closed(store).await;
        lose_last_record(dir.path());
        rebuild(options.clone()).await.unwrap();
        let (store, _) = opened(&options).await;
        let attached = store.attach_volume(&"v".into(), true).await.unwrap();
        assert_eq!(attached.attachments, 2);
        closed(store).await;
    });
}

#[test]
fn an_older_catalog_does_not_get_at_a_journal() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(dir.path());
    block_on(async {
        let id = with_journal(&options, new_volume("v", 1 << 20)).await;
        let log = names::catalog_log(dir.path());
        let older = fs::read(&log).unwrap();
        let (store, _) = opened(&options).await;
        let volume = store.open_volume(&"v".into()).await.unwrap();
        volume.snapshot("s", BTreeMap::new()).await.unwrap();
        fill(&volume, 5, 4).await;
        volume.flush().await.unwrap();
        drop(volume);
        closed(store).await;
        fs::write(&log, &older).unwrap();
        lose_index(dir.path());
        // Somebody restored the log from a backup, and made an index of it that knows no better.
        let owner = names::journal_owner(dir.path(), id);
        let newer = fs::read(&owner).unwrap();
        fs::remove_file(&owner).unwrap();
        rebuild(options.clone()).await.unwrap();
        fs::write(&owner, newer).unwrap();
        let (store, _) = opened(&options).await;
        let files = journal_files(dir.path(), id);
        let refused = store
            .open_volume(&"v".into())
            .await
            .unwrap_err()
            .to_string();
        assert!(refused.contains("varved rebuild"), "{refused}");
        assert_eq!(journal_files(dir.path(), id), files);
        closed(store).await;
        rebuild(options.clone()).await.unwrap();
        let (store, _) = opened(&options).await;
        let volume = store.open_volume(&"v".into()).await.unwrap();
        let mut expected = blocks_of(1 << 20);
        expected[5 * BLOCK..6 * BLOCK].fill(4);
        assert!(contents(&volume).await == expected);
        drop(volume);
        closed(store).await;
    });
}

/// A loss of power while a volume is made, written to and deleted leaves the volume, or nothing.
#[test]
fn no_loss_of_power_strands_a_journal() {
    let mut random = Random::new(seed());
    let work = async |machine: &Machine, flushed: &mut bool, deleting: &mut bool| {
        let (store, _) = machine.open().await?;
        store.create_volume(new_volume("v", 1 << 20)).await?;
        let volume = store.open_volume(&"v".into()).await?;
        fill(&volume, 1, 7).await;
        fill(&volume, 3, 9).await;
        volume.flush().await?;
        *flushed = true;
        store.attach_volume(&"v".into(), false).await?;
        store.detach_volume(&"v".into()).await?;
        *deleting = true;
        store.delete_volume(&"v".into()).await.map(drop)
    };
    let machine = Machine::new();
    let operations = block_on(async {
        work(&machine, &mut false, &mut false).await.unwrap();
        machine.disk.operations()
    });
    for last in 0..=operations {
        let machine = Machine::new();
        let (mut flushed, mut deleting) = (false, false);
        machine.disk.power_off_after(last);
        block_on(async {
            // The writes of `fill` fail, too, once the power is off.
            let worked = std::panic::AssertUnwindSafe(work(&machine, &mut flushed, &mut deleting));
            drop(futures::FutureExt::catch_unwind(worked).await);
        });
        let machine = machine.crash(&mut random);
        block_on(async {
            let (store, found) = machine.open().await.unwrap();
            assert_eq!(found.stranded_journals, [], "after {last} operations");
            match store.volume(&"v".into()).await {
                Ok(_) => {
                    let volume = store.open_volume(&"v".into()).await.unwrap();
                    let now = contents(&volume).await;
                    assert!(
                        !flushed || deleting || now == blocks_of(1 << 20),
                        "flushed blocks are gone after {last} operations"
                    );
                }
                Err(_) => {
                    assert!(!flushed || deleting, "after {last} operations");
                    let volumes = crate::io::Disk::list(&*machine.disk, Path::new("/data/volumes"));
                    assert_eq!(
                        volumes.unwrap_or_default().len(),
                        0,
                        "after {last} operations"
                    );
                }
            }
        });
    }
}

/// Whenever the power fails, flushed writes can be recovered without any catalog: the owner record
/// describes the files beside it correctly.
#[test]
fn journals_are_enough_at_any_moment() {
    let mut random = Random::new(seed());
    let mut expected = blocks_of(1 << 20);
    expected[5 * BLOCK..6 * BLOCK].fill(4);
    // The flushed part: nothing, the first two blocks, all.
    let work = async |machine: &Machine, flushed: &mut u8| {
        let (store, _) = machine.open().await?;
        store.create_volume(new_volume("v", 1 << 20)).await?;
        let volume = store.open_volume(&"v".into()).await?;
        for (block, byte) in [(1, 7), (3, 9)] {
            let bytes = Bytes::from(vec![byte; BLOCK]);
            volume.write((block * BLOCK) as u64, bytes).await?;
        }
        volume.flush().await?;
        *flushed = 1;
        volume.snapshot("s", BTreeMap::new()).await?;
        let bytes = Bytes::from(vec![4; BLOCK]);
        volume.write(5 * BLOCK as u64, bytes).await?;
        volume.flush().await?;
        *flushed = 2;
        volume.snapshot("t", BTreeMap::new()).await?;
        store.resize_volume(&"v".into(), 2 << 20).await.map(drop)
    };
    let machine = Machine::new();
    let operations = block_on(async {
        work(&machine, &mut 0).await.unwrap();
        machine.disk.operations()
    });
    for last in 0..=operations {
        let machine = Machine::new();
        let mut flushed = 0;
        machine.disk.power_off_after(last);
        drop(block_on(work(&machine, &mut flushed)));
        let mut machine = machine.crash(&mut random);
        block_on(async {
            let report = machine.lose_catalog().await;
            let (store, _) = machine.open().await.unwrap();
            if flushed == 0 && report.volumes == 0 {
                return;
            }
            assert_eq!(report.volumes, 1, "after {last} operations: {report}");
            assert_eq!(report.stranded_journals, [], "after {last} operations");
            let volume = store.open_volume(&"v".into()).await.unwrap();
            let now = contents(&volume).await;
            let ends = [0, 4 * BLOCK, 1 << 20];
            let sure = ends[usize::from(flushed)];
            assert!(
                now[..sure] == expected[..sure],
                "after {last} operations, {flushed} flushes"
            );
        });
    }
}
