//! Packs that a sweep cannot empty or remove stay, and the run tells of them.

use std::collections::HashSet;

use super::{
    assert_holds, block_on,
    collections::eager,
    machine::pack_path,
    sweeps::{EACCES, has_file, image, machine, reached, sealed, sweep},
    upload,
};
use crate::{
    GcSettings, Store,
    format::{PackId, PackKind},
    io::sim::Call,
};

/// The first sealed pack of chunks.
fn chunk_pack(store: &Store) -> PackId {
    let mut packs = sealed(store).into_iter();
    packs.find(|it| it.kind == PackKind::Chunks).unwrap()
}

#[test]
fn a_live_record_that_is_damaged_keeps_its_pack() {
    let machine = machine();
    let content = image(8, 120);
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        upload(&store, "s", &content).await.unwrap();
        let live = reached(&store, &["s"]).await;
        let pack = chunk_pack(&store);
        let path = pack_path(pack);
        machine.disk.flip(&path, 20_000, 4).unwrap();
        let (swept, _) = sweep(&store, &[pack], &live).await.unwrap();
        assert_eq!((swept.packs, swept.kept.len()), (0, 1));
        assert!(has_file(&machine, pack));
        machine.disk.flip(&path, 20_000, 4).unwrap();
    });
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        assert_holds(&store, "s", &content).await;
        // A dead one does not.
        let live = reached(&store, &["s"]).await;
        let pack = sealed(&store)[0];
        machine.disk.flip(&pack_path(pack), 20_000, 4).unwrap();
        store.delete_snapshot(&"s".into()).await.unwrap();
        drop(live);
        let (swept, _) = sweep(&store, &[pack], &HashSet::new()).await.unwrap();
        assert_eq!((swept.packs, &*swept.kept), (1, &[][..]));
    });
}

#[test]
fn a_live_record_that_cannot_be_read_keeps_its_pack() {
    let machine = machine();
    let content = image(17, 120);
    block_on(async {
        let store = machine.open_undamaged().await;
        upload(&store, "s", &content).await.unwrap();
        let live = reached(&store, &["s"]).await;
        let packs = sealed(&store);
        let pack = chunk_pack(&store);
        machine.disk.fail_reads(&pack_path(pack)).unwrap();
        let (swept, _) = sweep(&store, &packs, &live).await.unwrap();
        let found = (swept.packs as usize, swept.kept.len());
        assert_eq!(found, (packs.len() - 1, 1));
        assert!(has_file(&machine, pack));
    });
}

/// The index lists the content of the pack.
#[test]
fn a_pack_with_a_damaged_footer_is_emptied_as_others_are() {
    for has_live in [true, false] {
        let machine = machine();
        let content = image(18, 120);
        let pack = block_on(async {
            let store = machine.open_undamaged().await;
            upload(&store, "s", &content).await.unwrap();
            store.close().await.unwrap();
            chunk_pack(&store)
        });
        let path = pack_path(pack);
        let len_bytes = machine.disk.contents(&path).unwrap().len() as u64;
        machine.disk.flip(&path, len_bytes - 20, 4).unwrap();
        block_on(async {
            let store = machine.open_undamaged().await;
            let live = match has_live {
                true => reached(&store, &["s"]).await,
                false => HashSet::new(),
            };
            if !has_live {
                store.delete_snapshot(&"s".into()).await.unwrap();
            }
            let (swept, _) = sweep(&store, &[pack], &live).await.unwrap();
            assert_eq!((swept.packs, &*swept.kept), (1, &[][..]));
            assert_eq!(swept.copied_bytes > 0, has_live);
            assert!(!has_file(&machine, pack));
            store.close().await.unwrap();
        });
        block_on(async {
            let store = machine.open_undamaged().await;
            match has_live {
                true => assert_holds(&store, "s", &content).await,
                false => {
                    upload(&store, "again", &content).await.unwrap();
                    assert_holds(&store, "again", &content).await;
                }
            }
        });
    }
}

/// Files of two packs that were swapped: each has the records that the other needs.
#[test]
fn a_file_that_is_another_pack_stays() {
    let machine = machine();
    let contents = [image(20, 60), image(21, 60)];
    block_on(async {
        let store = machine.open_undamaged().await;
        let mut packs = Vec::new();
        for (name, content) in ["a", "b"].iter().zip(&contents) {
            upload(&store, name, content).await.unwrap();
            let mut known = sealed(&store).into_iter();
            packs.push(known.rfind(|it| it.kind == PackKind::Chunks).unwrap());
        }
        let swap = || {
            let files = [&packs[0], &packs[1]].map(|pack| {
                let path = pack_path(*pack);
                (machine.disk.contents(&path).unwrap(), path)
            });
            machine.disk.put(&files[0].1, &files[1].0).unwrap();
            machine.disk.put(&files[1].1, &files[0].0).unwrap();
        };
        swap();
        store.delete_snapshot(&"b".into()).await.unwrap();
        let (swept, _) = sweep(&store, &packs[1..], &HashSet::new()).await.unwrap();
        assert_eq!((swept.packs, swept.kept.len()), (0, 1));
        assert!(swept.kept[0].to_string().contains("is not emptied"));
        swap();
        assert_holds(&store, "a", &contents[0]).await;
        let (swept, _) = sweep(&store, &packs[1..], &HashSet::new()).await.unwrap();
        assert_eq!((swept.packs, &*swept.kept), (1, &[][..]));
        assert_holds(&store, "a", &contents[0]).await;
    });
}

/// Nobody else looks for it before it is read.
#[test]
fn a_collection_tells_of_a_pack_whose_file_is_gone() {
    let machine = machine();
    let content = image(19, 120);
    block_on(async {
        let store = machine.open_undamaged().await;
        upload(&store, "s", &content).await.unwrap();
        let pack = chunk_pack(&store);
        let files = std::sync::Arc::clone(store.engine().packs.store());
        files.delete(pack).await.unwrap();
        let report = store.gc_run(GcSettings::default()).await.unwrap();
        assert_eq!(report.packs_damaged, 1, "{report:?}");
        let told = &report.damage[0];
        assert!(told.contains(&format!("pack {pack}")), "{told}");
        assert!(told.contains("the file is gone or empty"), "{told}");
    });
}

#[test]
fn an_emptied_pack_that_cannot_be_removed_is_told_of_by_each_run_until_it_goes() {
    let machine = machine();
    block_on(async {
        let store = machine.open_undamaged().await;
        upload(&store, "s", &image(23, 120)).await.unwrap();
        store.delete_snapshot(&"s".into()).await.unwrap();
        machine.disk.refuse(Call::Remove, 1000, EACCES);
        let mut stay = 0;
        for _ in 0..2 {
            let report = store.gc_run(eager()).await.unwrap();
            assert!(
                report.packs_removed == 0 && report.packs_damaged > 0,
                "{report:?}"
            );
            let told = &report.damage[0];
            assert!(told.contains("cannot be removed"), "{told}");
            stay = report.packs_damaged;
        }
        machine.disk.refuse(Call::Remove, 0, EACCES);
        let report = store.gc_run(eager()).await.unwrap();
        assert_eq!((report.packs_removed, report.packs_damaged), (stay, 0));
    });
}

#[test]
fn packs_that_are_not_rewritten_for_lack_of_space_are_told_of() {
    let mut machine = machine();
    machine.pack_bytes_max = 1 << 20;
    let (kept, deleted) = (image(24, 300), image(25, 300));
    block_on(async {
        let store = machine.open_undamaged().await;
        // The end of one is in a pack with the beginning of the other.
        upload(&store, "kept", &kept).await.unwrap();
        upload(&store, "deleted", &deleted).await.unwrap();
        store.delete_snapshot(&"deleted".into()).await.unwrap();
        machine.disk.set_capacity(Some(20 << 20));
        let report = store.gc_run(eager()).await.unwrap();
        assert!(report.packs_held > 0, "{report:?}");
        assert!(
            report.held_by[0].contains("too little free space"),
            "{report:?}"
        );
        machine.disk.set_capacity(None);
        let report = store.gc_run(eager()).await.unwrap();
        assert_eq!(report.packs_held, 0);
        assert!(report.packs_removed > 0, "{report:?}");
        assert_holds(&store, "kept", &kept).await;
    });
}

/// The records around the damaged one move once, and are not copied again by each run.
#[test]
fn what_is_sound_in_a_pack_with_damage_is_copied_once() {
    let mut machine = machine();
    machine.pack_bytes_max = 1 << 20;
    let content = image(22, 300);
    block_on(async {
        let store = machine.open_undamaged().await;
        upload(&store, "s", &content).await.unwrap();
        let live = reached(&store, &["s"]).await;
        let pack = chunk_pack(&store);
        machine.disk.flip(&pack_path(pack), 500_000, 4).unwrap();
        let (swept, _) = sweep(&store, &[pack], &live).await.unwrap();
        assert_eq!((swept.packs, swept.kept.len()), (0, 1));
        let copied = swept.copied_bytes;
        assert!(copied > 3 << 18, "{copied} bytes of a pack of 1 MiB");
        let (swept, _) = sweep(&store, &[pack], &live).await.unwrap();
        let found = (swept.packs, swept.kept.len(), swept.copied_bytes);
        assert_eq!(found, (0, 1, 0));
        machine.disk.flip(&pack_path(pack), 500_000, 4).unwrap();
        store.close().await.unwrap();
    });
    block_on(async {
        let store = machine.open_undamaged().await;
        assert_holds(&store, "s", &content).await;
        let live = reached(&store, &["s"]).await;
        let pack = chunk_pack(&store);
        let (swept, _) = sweep(&store, &[pack], &live).await.unwrap();
        assert_eq!((swept.packs, &*swept.kept), (1, &[][..]));
        assert_holds(&store, "s", &content).await;
    });
}

/// The run goes on with other packs, and so does the next one.
#[test]
fn a_pack_that_the_disk_does_not_give_stays_and_others_go() {
    let machine = machine();
    let contents = [image(15, 120), image(16, 120)];
    block_on(async {
        let store = machine.open_undamaged().await;
        for (name, content) in ["a", "b"].iter().zip(&contents) {
            upload(&store, name, content).await.unwrap();
            store.delete_snapshot(&(*name).into()).await.unwrap();
        }
        let packs = sealed(&store);
        let bad = chunk_pack(&store);
        machine.disk.fail_reads(&pack_path(bad)).unwrap();
        let report = store.gc_run(GcSettings::default()).await.unwrap();
        assert!(report.packs_removed as usize >= packs.len() - 1);
        assert_eq!(report.packs_damaged, 1, "{report:?}");
        assert!(has_file(&machine, bad));
        upload(&store, "c", &contents[0]).await.unwrap();
        assert_holds(&store, "c", &contents[0]).await;
        let report = store.gc_run(GcSettings::default()).await.unwrap();
        assert_eq!(report.packs_damaged, 1, "{report:?}");
    });
}
