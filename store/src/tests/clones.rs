//! Volumes that grow, that are cloned and that are deleted.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{
    Random, assert_holds, block_on,
    machine::Machine,
    pending::{clone_of, fill, pending},
    upload,
    volume_data::{BLOCK, Change, contents, new_volume, options},
};
use crate::{CloneSource, Error, NewClone, Store};

/// The name of a snapshot or volume as a user gives it, without its kind.
fn either(key: &str) -> CloneSource {
    CloneSource::Either {
        snapshot: key.into(),
        volume: key.into(),
    }
}

#[test]
fn a_volume_grows_and_never_shrinks() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (store, _) = Store::open(options(dir.path())).await.unwrap();
        // Ends in the middle of a block, and that block is full.
        let base = upload(&store, "base", &[5; 3 * BLOCK + 1000])
            .await
            .unwrap();
        let mut new = new_volume("v", 3 * BLOCK + 1024);
        new.from = Some("base".into());
        store.create_volume(new).await.unwrap();
        let volume = store.open_volume(&"v".into()).await.unwrap();
        let mut model = vec![5; 3 * BLOCK + 1000];
        model.resize(3 * BLOCK + 1024, 0);
        let write = Change::Write(3 * BLOCK + 512, vec![6; 512]);
        write.make(&volume).await.unwrap();
        write.apply(&mut model);
        let first = pending(&store, "v", "first").await.unwrap();
        for size in [3 * BLOCK + 1536, 5 * BLOCK, 3000 * BLOCK + 512] {
            let past = volume
                .write(model.len() as u64, Bytes::from_static(&[1]))
                .await;
            assert!(matches!(past, Err(Error::Invalid(_))), "{past:?}");
            let before = pending(&store, "v", &format!("at-{}", model.len()))
                .await
                .unwrap();
            let grown = store.resize_volume(&"v".into(), size as u64).await.unwrap();
            assert_eq!(grown.size_bytes, size as u64);
            let image = model.clone();
            model.resize(size, 0);
            assert_eq!(volume.size_bytes(), size as u64);
            assert!(contents(&volume).await == model);
            let write = Change::Write(size - 700, vec![7; 700]);
            write.make(&volume).await.unwrap();
            write.apply(&mut model);
            // Its size is also that of its instant.
            let before = store.completed_snapshot(before.id).await.unwrap();
            assert_eq!(before.size_bytes, image.len() as u64);
            assert_holds(&store, &before.label(), &image).await;
        }
        let refused = store.resize_volume(&"v".into(), 4096).await.unwrap_err();
        assert!(refused.to_string().contains("only grow"), "{refused}");
        for (size, why) in [
            (3001 * BLOCK as u64 + 1, "multiple of 512"),
            (u64::MAX - 511, "at most"),
        ] {
            let refused = store.resize_volume(&"v".into(), size).await.unwrap_err();
            assert!(refused.to_string().contains(why), "{refused}");
        }
        volume.snapshot("end", BTreeMap::new()).await.unwrap();
        assert_holds(&store, "end", &model).await;
        assert_eq!(store.snapshot(&"first".into()).await.unwrap().id, first.id);
        assert_eq!(first.parent, Some(base.id));
    });
    // A closed volume grows, too.
    block_on(async {
        let (store, _) = Store::open(options(dir.path())).await.unwrap();
        store.resize_volume(&"v".into(), 1 << 30).await.unwrap();
        let volume = store.open_volume(&"v".into()).await.unwrap();
        assert_eq!(volume.size_bytes(), 1 << 30);
    });
}

#[test]
fn what_a_client_sent_behind_the_end_of_a_snapshot_is_nobodys() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (store, _) = Store::open(options(dir.path())).await.unwrap();
        // The last block is sent whole, and is not zero behind the end of the volume.
        let cut = super::cut(&[3; 2 * BLOCK]);
        let size = BLOCK + 512;
        let ingest = store
            .begin_ingest(super::new_snapshot("odd", size))
            .await
            .unwrap();
        super::send(&ingest, &cut).await.unwrap();
        let mut tree = varve_content::tree::TreeBuilder::new(size as u64).unwrap();
        for (segment, leaf) in &cut.leaves {
            tree.push(*segment, leaf.id()).unwrap();
        }
        ingest.commit(tree.finish().0.id()).await.unwrap();
        let mut new = new_volume("v", 3 * BLOCK);
        new.from = Some("odd".into());
        store.create_volume(new).await.unwrap();
        let mut image = vec![3; size];
        image.resize(3 * BLOCK, 0);
        let volume = store.open_volume(&"v".into()).await.unwrap();
        assert!(contents(&volume).await == image);
        volume.snapshot("s", BTreeMap::new()).await.unwrap();
        assert_holds(&store, "s", &image).await;
    });
}

#[test]
fn clones_are_volumes_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (store, _) = Store::open(options(dir.path())).await.unwrap();
        store
            .create_volume(new_volume("v", 64 * BLOCK))
            .await
            .unwrap();
        // Of nothing at all.
        let clone = store
            .clone_volume(clone_of(either("v"), "empty"))
            .await
            .unwrap();
        assert_eq!((clone.base, clone.size_bytes), (None, 64 * BLOCK as u64));
        let volume = store.open_volume(&"v".into()).await.unwrap();
        fill(&volume, 3, 3).await;
        let mut larger = clone_of(CloneSource::Volume("v".into()), "dirty");
        larger.size_bytes = Some(100 * BLOCK as u64);
        store.clone_volume(larger).await.unwrap();
        let dirty = store.open_volume(&"dirty".into()).await.unwrap();
        let mut model = vec![0; 100 * BLOCK];
        model[3 * BLOCK..4 * BLOCK].fill(3);
        assert!(contents(&dirty).await == model);
        fill(&volume, 3, 4).await;
        fill(&dirty, 50, 5).await;
        model[50 * BLOCK..51 * BLOCK].fill(5);
        assert!(contents(&dirty).await == model);
        // With nothing in its journal.
        let snapshot = volume.snapshot("v", BTreeMap::new()).await.unwrap();
        let by_id = store
            .clone_volume(clone_of(either(&snapshot.id.to_string()), "by-id"))
            .await;
        assert_eq!(by_id.unwrap().parent, Some(snapshot.id));
        let clone = store
            .clone_volume(clone_of(CloneSource::Volume("v".into()), "clean"))
            .await
            .unwrap();
        assert_eq!(
            (clone.base, clone.parent),
            (snapshot.root(), Some(snapshot.id))
        );
        assert_eq!(clone.journal_from, 1);
        for (new, why) in [
            (clone_of(either("v"), "x"), "write snapshot/v or volume/v"),
            (
                clone_of(either("nothing"), "x"),
                "snapshot or volume \"nothing\" not found",
            ),
            (
                clone_of(CloneSource::Volume("v".into()), "dirty"),
                "already exists",
            ),
            (clone_of(either("dirty"), "a b"), "not allowed"),
            (
                NewClone {
                    size_bytes: Some(512),
                    ..clone_of(either("dirty"), "x")
                },
                "are too few for volume \"dirty\"",
            ),
        ] {
            let refused = store.clone_volume(new).await.unwrap_err();
            assert!(refused.to_string().contains(why), "{refused}");
        }
    });
}

#[test]
fn the_journal_of_a_deleted_volume_is_removed_at_the_start() {
    let mut machine = Machine::new();
    let (kept, gone) = block_on(async {
        let (store, _) = machine.open().await.unwrap();
        let mut ids = Vec::new();
        for name in ["kept", "gone"] {
            let record = store
                .create_volume(new_volume(name, 8 * BLOCK))
                .await
                .unwrap();
            ids.push(record.id);
            let volume = store.open_volume(&name.into()).await.unwrap();
            fill(&volume, 0, 1).await;
            volume.flush().await.unwrap();
        }
        (ids[0], ids[1])
    });
    let dir = std::path::Path::new("/data");
    let exists = |machine: &Machine, id| {
        use crate::io::Disk as _;
        machine
            .disk
            .list(&crate::format::names::volume(dir, id))
            .is_ok()
    };
    // As if the process had died between the record and the files.
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        store
            .engine()
            .commit
            .delete(gone, |_: &crate::VolumeRecord| Ok(()))
            .await
            .unwrap();
        store.close().await.unwrap();
    });
    assert!(exists(&machine, gone));
    machine = machine.crash(&mut Random::new(3));
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        assert!(!exists(&machine, gone) && exists(&machine, kept));
        let volume = store.open_volume(&"kept".into()).await.unwrap();
        assert!(contents(&volume).await[..BLOCK] == [1; BLOCK]);
        drop(volume);
        store.delete_volume(&"kept".into()).await.unwrap();
        assert!(!exists(&machine, kept));
        // Nothing of it is synced any more.
        store.close().await.unwrap();
    });
}
