//! Pending snapshots on disks that are full or lose their power: their promised content is there in
//! the end, and so is the volume.

use std::{collections::BTreeMap, path::Path, time::Duration};

use bytes::Bytes;

use super::{
    Random, assert_holds, block_on,
    machine::Machine,
    pending::{clone_of, fill, hold_checkpoints, of, pending},
    seed, upload,
    volume_data::{BLOCK, Change, contents, new_volume},
};
use crate::{
    CloneSource, Error, Result, SnapshotId, SnapshotState, Store, format::names, io::Disk as _,
    limits,
};

/// Waits for background work of the store.
async fn settle() {
    for _ in 0..2000 {
        tokio::task::yield_now().await;
    }
}

/// The reason why a pending snapshot is not completed, once a try has failed.
async fn waits_for(store: &Store, snapshot: SnapshotId) -> String {
    loop {
        let progress = store.snapshot_progress(snapshot).unwrap();
        if let Some(reason) = progress.waits_for {
            return reason;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn a_snapshot_waits_for_room_on_the_disk_and_its_volume_goes_on() {
    let mut machine = Machine::new();
    let mut model = vec![0; 4 << 20];
    let short = Some(limits::FREE_BYTES_MIN - 1);
    let promised = block_on(async {
        let (store, _) = machine.open().await.unwrap();
        store.create_volume(new_volume("v", 4 << 20)).await.unwrap();
        let volume = store.open_volume(&"v".into()).await.unwrap();
        let change = Change::Write(
            4096,
            (0..1_000_000u32)
                .map(|n| n.wrapping_mul(7919) as u8)
                .collect(),
        );
        change.make(&volume).await.unwrap();
        change.apply(&mut model);
        let promised = model.clone();
        // Room for the journal and the catalog, and less than chunks have to leave free.
        machine.disk.set_capacity(short);
        let made = pending(&store, "v", "s").await.unwrap();
        let said = waits_for(&store, made.id).await;
        assert!(said.contains("no space left"), "{said}");
        let behind = pending(&store, "v", "t").await.unwrap();
        let said = waits_for(&store, behind.id).await;
        assert!(said.contains("earlier snapshot"), "{said}");
        // The guest continues, and a request for its content now fails with the reason.
        fill(&volume, 0, 9).await;
        model[..BLOCK].fill(9);
        assert!(contents(&volume).await == model);
        let refused = store
            .clone_volume(clone_of(CloneSource::Volume("v".into()), "c"))
            .await
            .unwrap_err();
        assert!(matches!(refused, Error::Limit(_)), "{refused}");
        assert!(refused.to_string().contains("no space left"), "{refused}");
        assert_eq!(store.volume(&"v".into()).await.unwrap().pending.len(), 2);
        for name in ["s", "t"] {
            let shown = store.snapshot(&name.into()).await.unwrap();
            assert_eq!(shown.state, SnapshotState::Pending, "{shown:?}");
        }
        volume.flush().await.unwrap();
        promised
    });
    machine = machine.crash(&mut Random::new(1));
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        machine.disk.set_capacity(short);
        store.resume_snapshots().await.unwrap();
        let made = store.snapshot(&"s".into()).await.unwrap();
        let said = waits_for(&store, made.id).await;
        assert!(said.contains("no space left"), "{said}");
        // One that waits can be cancelled, and the other one goes on by itself when there is room.
        store.delete_snapshot(&"t".into()).await.unwrap();
        machine.disk.set_capacity(None);
        store.completed_snapshot(made.id).await.unwrap();
        assert_holds(&store, "s", &promised).await;
        let volume = store.open_volume(&"v".into()).await.unwrap();
        assert!(contents(&volume).await == model);
        volume.snapshot("t", BTreeMap::new()).await.unwrap();
        assert_holds(&store, "t", &model).await;
        assert_eq!(volume.journal_bytes(), 0);
        store.close().await.unwrap();
    });
}

/// One that waits is cancelled at once, without another try.
#[test]
fn a_snapshot_that_waits_is_cancelled_by_deleting_it() {
    let machine = Machine::new();
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        store
            .create_volume(new_volume("v", 64 << 10))
            .await
            .unwrap();
        let volume = store.open_volume(&"v".into()).await.unwrap();
        fill(&volume, 0, 1).await;
        let held = hold_checkpoints(&store).await;
        let made = pending(&store, "v", "s").await.unwrap();
        machine.disk.set_capacity(Some(0));
        drop(held);
        let said = waits_for(&store, made.id).await;
        assert!(said.contains("no space left"), "{said}");
        machine.disk.set_capacity(None);
        store.delete_snapshot(&"s".into()).await.unwrap();
        fill(&volume, 1, 2).await;
        volume.snapshot("t", BTreeMap::new()).await.unwrap();
        assert_eq!(store.volume(&"v".into()).await.unwrap().pending, []);
        let mut image = vec![0; 64 << 10];
        image[..BLOCK].fill(1);
        image[BLOCK..2 * BLOCK].fill(2);
        assert_holds(&store, "t", &image).await;
        store.close().await.unwrap();
    });
}

/// A snapshot that can never be completed fails, with the reason.
#[test]
fn a_snapshot_over_a_damaged_base_fails() {
    let machine = Machine::new();
    let image = vec![3; 20 * BLOCK];
    let cut = super::cut(&image);
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        upload(&store, "base", &image).await.unwrap();
        store.close().await.unwrap();
    });
    let leaf = cut.leaves[0].1.encode();
    let packs = names::packs(Path::new("/data"));
    let flipped = machine.disk.list(&packs).unwrap().iter().any(|name| {
        let path = packs.join(name);
        let bytes = machine.disk.contents(&path).unwrap();
        let Some(at) = bytes.windows(leaf.len()).position(|part| part == leaf) else {
            return false;
        };
        machine.disk.flip(&path, at as u64 + 9, 1).unwrap();
        true
    });
    assert!(flipped, "the leaf is in no pack");
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        let mut new = new_volume("v", image.len());
        new.from = Some("base".into());
        store.create_volume(new).await.unwrap();
        let volume = store.open_volume(&"v".into()).await.unwrap();
        fill(&volume, 1, 4).await;
        let made = pending(&store, "v", "s").await.unwrap();
        let failed = store.completed_snapshot(made.id).await.unwrap_err();
        let said = failed.to_string();
        assert!(said.contains("\"s\" is failed: damage"), "{said}");
        let shown = store.snapshot(&"s".into()).await.unwrap();
        assert!(
            matches!(shown.state, SnapshotState::Failed { .. }),
            "{shown:?}"
        );
        assert_eq!(store.volume(&"v".into()).await.unwrap().pending, []);
        store.close().await.unwrap();
    });
}

/// A disk that is full for a moment is no reason to refuse a guest's writes.
#[test]
fn a_journal_is_emptied_at_the_second_try() {
    let mut machine = Machine::new();
    machine.journal_bytes_max = limits::JOURNAL_BYTES_LEAST;
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        let size = 2 * limits::JOURNAL_BYTES_LEAST as usize;
        store.create_volume(new_volume("v", size)).await.unwrap();
        let volume = store.open_volume(&"v".into()).await.unwrap();
        let held = hold_checkpoints(&store).await;
        let mut writes = Box::pin(async {
            for start in (0..size).step_by(1 << 20) {
                let bytes = Bytes::from(vec![(start >> 20) as u8 + 1; 1 << 20]);
                volume.write(start as u64, bytes).await?;
            }
            Ok::<_, Error>(())
        });
        // Until there is no more room, and the writer waits for some.
        let last_file = limits::JOURNAL_BYTES_LEAST - limits::JOURNAL_FILE_BYTES_MIN;
        while volume.journal_bytes() <= last_file {
            assert!(futures::poll!(&mut writes).is_pending());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        for _ in 0..100 {
            assert!(futures::poll!(&mut writes).is_pending());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        machine.disk.set_capacity(Some(0));
        drop(held);
        let lift = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            machine.disk.set_capacity(None);
        };
        let (written, ()) = futures::join!(writes, lift);
        written.unwrap();
        store.close().await.unwrap();
    });
}

/// The possible content after a loss of power.
#[derive(Default)]
struct Promised {
    states: Vec<Vec<u8>>,
    flushed: usize,
    /// Acknowledged, pending or not.
    there: BTreeMap<String, Vec<u8>>,
    /// Asked for, or being deleted.
    perhaps: BTreeMap<String, Vec<u8>>,
    clones: BTreeMap<String, Vec<u8>>,
}

async fn work(
    store: &Store,
    random: &mut Random,
    promised: &mut Promised,
    size: usize,
) -> Result<()> {
    let mut model = vec![0; size];
    promised.states.push(model.clone());
    store.create_volume(new_volume("v", size)).await?;
    store.create_volume(new_volume("w", BLOCK)).await?;
    let volume = store.open_volume(&"v".into()).await?;
    for step in 0..28 {
        let longest = if step % 5 == 0 { 100_000 } else { 9000 };
        let change = Change::random(random, model.len(), longest);
        change.apply(&mut model);
        promised.states.push(model.clone());
        change.make(&volume).await?;
        let name = format!("s{step}");
        match step % 7 {
            2 | 3 => {
                promised.perhaps.insert(name.clone(), model.clone());
                pending(store, "v", &name).await?;
                promised.perhaps.remove(&name);
                promised.there.insert(name, model.clone());
                promised.flushed = promised.states.len() - 1;
            }
            4 => {
                let both = [format!("{name}-v"), format!("{name}-w")];
                let zeros = vec![0; BLOCK];
                let images = [model.clone(), zeros];
                let all = both.into_iter().zip(images);
                promised.perhaps.extend(all.clone());
                store.snapshot_volumes(of(&["v", "w"], &name)).await?;
                promised.perhaps.retain(|it, _| !it.starts_with(&name));
                promised.there.extend(all);
                promised.flushed = promised.states.len() - 1;
            }
            5 if step == 5 || step == 19 => {
                let last = promised.there.pop_last().unwrap();
                promised.perhaps.extend([last.clone()]);
                store.delete_snapshot(&last.0.as_str().into()).await?;
                promised.perhaps.remove(&last.0);
            }
            5 => {
                store
                    .clone_volume(clone_of(CloneSource::Volume("v".into()), &name))
                    .await?;
                promised.clones.insert(name, model.clone());
            }
            6 => settle().await,
            _ => {}
        }
        if step == 16 {
            model.resize(size + 5 * 512, 0);
            promised.states.push(model.clone());
            store.resize_volume(&"v".into(), model.len() as u64).await?;
            promised.flushed = promised.states.len() - 1;
            volume.flush().await?;
        }
    }
    Ok(())
}

async fn check(store: &Store, promised: &Promised) {
    for (name, image) in &promised.there {
        assert_holds(store, name, image).await;
    }
    for (name, image) in &promised.perhaps {
        match store.snapshot(&name.as_str().into()).await {
            Ok(record) => {
                store.completed_snapshot(record.id).await.unwrap();
                assert_holds(store, name, image).await;
            }
            Err(Error::NotFound { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    // Both, or none.
    let perhaps: Vec<_> = promised.perhaps.keys().collect();
    if let [one, other] = &perhaps[..] {
        let (one, other) = (
            store.snapshot(&one.as_str().into()).await,
            store.snapshot(&other.as_str().into()).await,
        );
        assert_eq!(one.is_ok(), other.is_ok());
    }
    for (name, image) in &promised.clones {
        let clone = store.open_volume(&name.as_str().into()).await.unwrap();
        assert!(contents(&clone).await == *image, "{name}");
    }
    match store.open_volume(&"v".into()).await {
        Ok(volume) => {
            let found = contents(&volume).await;
            assert!(promised.states[promised.flushed..].contains(&found));
        }
        Err(Error::NotFound { .. }) => assert_eq!(promised.flushed, 0),
        Err(error) => panic!("{error}"),
    }
}

fn cut_after(operations: u64, seed: u64) -> bool {
    let size = 120 * BLOCK + 512;
    let mut random = Random::new(seed);
    let mut promised = Promised::default();
    let machine = Machine::new();
    machine.disk.power_off_after(operations);
    let finished = block_on(async {
        let (store, _) = machine.open().await?;
        work(&store, &mut random, &mut promised, size).await
    });
    let cut = finished.is_err();
    let mut random = Random::new(seed ^ operations);
    let mut machine = machine.crash(&mut random);
    // The second time power fails while the snapshots go on.
    let again = 1 + random.below(40) as u64;
    for round in 0..3 {
        if round == 0 {
            machine.disk.power_off_after(again);
        }
        let went_on: Result<()> = block_on(async {
            let (store, _) = machine.open().await?;
            store.resume_snapshots().await?;
            for name in promised.there.keys() {
                let id = store.snapshot(&name.as_str().into()).await?.id;
                store.completed_snapshot(id).await?;
            }
            if round > 0 {
                check(&store, &promised).await;
            }
            Ok(())
        });
        if round > 0 {
            went_on.unwrap_or_else(|error| panic!("after {operations} operations: {error}"));
        }
        machine = machine.crash(&mut random);
    }
    cut
}

#[test]
fn a_power_cut_at_every_operation_leaves_what_was_promised() {
    let seed = seed();
    let mut operations = 1;
    while cut_after(operations, seed) {
        operations += 1;
    }
    assert!(operations > 60, "{operations} operations");
}

/// A volume with few writes takes little space, and on a nearly full disk the size of a file must
/// not fail the guest's writes.
#[test]
fn a_journal_file_is_short_at_first_and_where_there_is_no_room_for_a_long_one() {
    let mut machine = Machine::new();
    machine.journal_bytes_max = limits::JOURNAL_BYTES_MAX;
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        store.create_volume(new_volume("v", 8 << 20)).await.unwrap();
        let volume = store.open_volume(&"v".into()).await.unwrap();
        volume.write(0, Bytes::from(vec![1; BLOCK])).await.unwrap();
        let least = limits::JOURNAL_FILE_BYTES_MIN;
        assert_eq!(volume.journal_bytes(), least);
        // Each file is as long as all before it.
        let mut steps = Vec::new();
        while volume.journal_bytes() < limits::JOURNAL_FILE_BYTES_MAX {
            let bytes = Bytes::from(vec![1; 1 << 20]);
            volume.write(0, bytes).await.unwrap();
            if steps.last() != Some(&volume.journal_bytes()) {
                steps.push(volume.journal_bytes());
            }
        }
        assert_eq!(steps, [1, 2, 4, 8, 16].map(|files| files * least));
        // No other file as long as that fits; a quarter of it does, with the space that must stay
        // free for all of them.
        let left = limits::FREE_BYTES_MIN + (4 << 20);
        let used = limits::JOURNAL_FILE_BYTES_MAX;
        let (journal, file) = (used * 5 / 4, used / 4);
        let capacity = used + left + journal + journal / 16 + file + (1 << 20);
        machine.disk.set_capacity(Some(capacity));
        for place in 0..34u64 {
            let bytes = Bytes::from(vec![place as u8 + 2; 1 << 20]);
            volume.write((place % 6) << 20, bytes).await.unwrap();
        }
        for place in 0..6u64 {
            let bytes = Bytes::from(vec![place as u8 + 2; 1 << 20]);
            volume.write(place << 20, bytes).await.unwrap();
        }
        let taken = volume.journal_bytes();
        assert_eq!(taken, used + used / 4);
        volume.flush().await.unwrap();
    });
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        let volume = store.open_volume(&"v".into()).await.unwrap();
        for place in 0..6usize {
            let start = place << 20;
            assert!(
                contents(&volume).await[start..start + (1 << 20)] == vec![place as u8 + 2; 1 << 20]
            );
        }
    });
}
