//! Pending snapshots on disks that are full or lose their power: what was promised is there in the end, and the volume whatever becomes of it.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{
    Random, assert_holds, block_on,
    crash::Machine,
    pending::{clone_of, fill, of, pending},
    seed,
    volume_data::{BLOCK, Change, contents, new_volume},
};
use crate::{Error, Result, SnapshotState, Store, limits};

/// Waits for what the store does by itself.
async fn settle() {
    for _ in 0..2000 {
        tokio::task::yield_now().await;
    }
}

#[test]
fn a_full_disk_fails_a_snapshot_and_leaves_its_volume() {
    let mut machine = Machine::new();
    let mut model = vec![0; 4 << 20];
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        store.create_volume(new_volume("v", 4 << 20)).await.unwrap();
        let volume = store.open_volume("v").await.unwrap();
        let change = Change::Write(
            4096,
            (0..1_000_000u32)
                .map(|n| n.wrapping_mul(7919) as u8)
                .collect(),
        );
        change.make(&volume).await.unwrap();
        change.apply(&mut model);
        // Room for the journal and the catalog, and less than chunks have to leave free.
        machine.disk.set_capacity(Some(limits::FREE_BYTES_MIN - 1));
        let made = pending(&store, "v", "s").await.unwrap();
        let behind = pending(&store, "v", "t").await.unwrap();
        let failed = store.completed_snapshot(made.id).await.unwrap_err();
        let said = failed.to_string();
        assert!(said.contains("\"s\" is failed: no space left"), "{said}");
        assert!(store.completed_snapshot(behind.id).await.is_err());
        // The guest goes on.
        fill(&volume, 0, 9).await;
        model[..BLOCK].fill(9);
        assert!(contents(&volume).await == model);
        assert_eq!(store.volume("v").await.unwrap().pending, []);
        let refused = store.open_snapshot("s").await.unwrap_err();
        assert!(
            matches!(
                refused,
                Error::NotCompleted {
                    state: "failed",
                    ..
                }
            ),
            "{refused}"
        );
    });
    machine = machine.crash(&mut Random::new(1));
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        store.resume_snapshots().await.unwrap();
        let shown = store.snapshot("s").await.unwrap();
        assert!(
            matches!(shown.state, SnapshotState::Failed { .. }),
            "{shown:?}"
        );
        let volume = store.open_volume("v").await.unwrap();
        machine.disk.set_capacity(None);
        store.delete_snapshot("s").await.unwrap();
        // All that was written is in the next, and nothing is left of the journal.
        volume.flush().await.unwrap();
        let now = contents(&volume).await;
        volume.snapshot("s", BTreeMap::new()).await.unwrap();
        assert_holds(&store, "s", &now).await;
        assert!(now[BLOCK..] == model[BLOCK..]);
        assert_eq!(volume.journal_bytes(), 0);
        store.delete_snapshot("t").await.unwrap();
        store.delete_volume("v").await.unwrap();
    });
}

/// When not even the failure can be written down it is told all the same, and what comes later does not overtake it.
#[test]
fn a_disk_without_any_room_fails_a_snapshot_too() {
    let machine = Machine::new();
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        store
            .create_volume(new_volume("v", 64 << 10))
            .await
            .unwrap();
        let volume = store.open_volume("v").await.unwrap();
        fill(&volume, 0, 1).await;
        let turn = store.shared().fold_turn.acquire().await.unwrap();
        let made = pending(&store, "v", "s").await.unwrap();
        machine.disk.set_capacity(Some(0));
        drop(turn);
        let failed = store.completed_snapshot(made.id).await.unwrap_err();
        assert!(failed.to_string().contains("no space left"), "{failed}");
        let shown = store.snapshot("s").await.unwrap();
        assert!(
            matches!(shown.state, SnapshotState::Failed { .. }),
            "{shown:?}"
        );
        assert_eq!(store.volume("v").await.unwrap().pending.len(), 1);
        machine.disk.set_capacity(None);
        fill(&volume, 1, 2).await;
        volume.snapshot("t", BTreeMap::new()).await.unwrap();
        assert_eq!(store.volume("v").await.unwrap().pending, []);
        let mut image = vec![0; 64 << 10];
        image[..BLOCK].fill(1);
        image[BLOCK..2 * BLOCK].fill(2);
        assert_holds(&store, "t", &image).await;
        let shown = store.snapshot("s").await.unwrap();
        assert!(
            matches!(shown.state, SnapshotState::Failed { .. }),
            "{shown:?}"
        );
        store.delete_snapshot("s").await.unwrap();
    });
}

/// What a loss of power may leave.
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
    let volume = store.open_volume("v").await?;
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
                store.delete_snapshot(&last.0).await?;
                promised.perhaps.remove(&last.0);
            }
            5 => {
                store.clone_volume(clone_of("v", &name)).await?;
                promised.clones.insert(name, model.clone());
            }
            6 => settle().await,
            _ => {}
        }
        if step == 16 {
            model.resize(size + 5 * 512, 0);
            promised.states.push(model.clone());
            store.resize_volume("v", model.len() as u64).await?;
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
        match store.snapshot(name).await {
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
        let (one, other) = (store.snapshot(one).await, store.snapshot(other).await);
        assert_eq!(one.is_ok(), other.is_ok());
    }
    for (name, image) in &promised.clones {
        let clone = store.open_volume(name).await.unwrap();
        assert!(contents(&clone).await == *image, "{name}");
    }
    match store.open_volume("v").await {
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
                let id = store.snapshot(name).await?.id;
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

/// A volume of which little was written takes little, and on a disk that is nearly full the size of a file must not be what fails the
/// guest.
#[test]
fn a_journal_file_is_short_at_first_and_where_there_is_no_room_for_a_long_one() {
    let mut machine = Machine::new();
    machine.journal_bytes_max = limits::JOURNAL_BYTES_MAX;
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        store.create_volume(new_volume("v", 8 << 20)).await.unwrap();
        let volume = store.open_volume("v").await.unwrap();
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
        // No other as long as that; a quarter of it there is room for, with what has to stay free for all of them.
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
        let volume = store.open_volume("v").await.unwrap();
        for place in 0..6usize {
            let start = place << 20;
            assert!(
                contents(&volume).await[start..start + (1 << 20)] == vec![place as u8 + 2; 1 << 20]
            );
        }
    });
}
