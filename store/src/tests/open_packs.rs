//! Packs that records are still added to: a collection seals those that are mostly dead, and takes
//! them too.

use std::num::NonZeroU64;

use super::{
    Random, assert_holds, block_on, cut, machine::Machine, new_snapshot, seed, send, upload,
};
use crate::{
    Error, GcSettings, Store,
    format::{PackKind, PackPhase},
};

const MIB: usize = 1 << 20;

/// Bytes that do not compress.
fn noise(random: &mut Random, bytes: usize) -> Vec<u8> {
    let words = (0..bytes / 8).flat_map(|_| random.next().to_le_bytes());
    words.collect()
}

/// The bytes of all files of packs.
async fn pack_bytes(store: &Store) -> u64 {
    let plan = store.gc_plan(&GcSettings::default()).await.unwrap();
    plan.usage.file_bytes
}

fn phases(store: &Store, kind: PackKind) -> Vec<PackPhase> {
    let states = store.engine().meta.pack_states().unwrap();
    let of_kind = states.iter().filter(|state| state.pack.kind == kind);
    of_kind.map(|state| state.phase).collect()
}

#[test]
fn a_pack_that_an_upload_holds_open_is_told_of() {
    let mut random = Random::new(seed());
    let machine = Machine::new();
    let image = noise(&mut random, 3 * MIB);
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        upload(&store, "gone", &image).await.unwrap();
        store.delete_snapshot(&"gone".into()).await.unwrap();
        let other = store
            .begin_ingest(new_snapshot("other", 4096))
            .await
            .unwrap();
        let settings = GcSettings::default();
        let report = store.gc_run(settings).await.unwrap();
        assert_eq!(report.packs_removed, 0);
        assert!(report.packs_held > 0, "{report:?}");
        assert_eq!(report.held_by, ["other"]);
        drop(other);
        let report = store.gc_run(settings).await.unwrap();
        assert!(report.packs_removed > 0, "{report:?}");
        assert_eq!((report.packs_held, &*report.held_by), (0, &[][..]));
    });
}

#[test]
fn a_store_of_which_everything_was_deleted_is_nearly_empty() {
    let mut random = Random::new(seed());
    let mut machine = Machine::new();
    let images: Vec<_> = (0..3).map(|_| noise(&mut random, 3 * MIB)).collect();
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        for (number, image) in images.iter().enumerate() {
            upload(&store, &format!("s{number}"), image).await.unwrap();
        }
        assert_eq!(phases(&store, PackKind::Chunks), [PackPhase::Open]);
        let settings = GcSettings::default();
        // All of it is needed.
        let report = store.gc_run(settings).await.unwrap();
        assert_eq!(
            (report.packs_removed, report.dead_bytes / MIB as u64),
            (0, 0)
        );
        assert_eq!(phases(&store, PackKind::Chunks), [PackPhase::Open]);
        let keys = ["s0".into(), "s1".into(), "s2".into()];
        let estimate = store.estimate_delete(&keys, &settings).await.unwrap();
        assert!(estimate.returned_bytes >= 9 * MIB as u64, "{estimate:?}");
        for key in &keys {
            store.delete_snapshot(key).await.unwrap();
        }
        let before = pack_bytes(&store).await;
        let plan = store.gc_plan(&settings).await.unwrap();
        let planned: u64 = plan.steps.iter().map(|step| step.returned_bytes).sum();
        assert!(planned >= estimate.returned_bytes);
        let report = store.gc_run(settings).await.unwrap();
        let after = pack_bytes(&store).await;
        // The footers that the packs got were not there before.
        assert!(report.copied_bytes > 0);
        assert_eq!(
            report.removed_bytes - report.copied_bytes,
            before - after,
            "{report:?}"
        );
        assert!(after < MIB as u64, "{after} bytes are left");
        // Later records go into new packs.
        upload(&store, "s1", &images[1]).await.unwrap();
        assert_holds(&store, "s1", &images[1]).await;
        store.close().await.unwrap();
    });
    machine = machine.crash(&mut random);
    block_on(async {
        let (store, report) = machine.open().await.unwrap();
        assert_eq!(report.damage, []);
        assert_holds(&store, "s1", &images[1]).await;
    });
}

/// Records of an upload that was given up are flushed with the seal, by an earlier flush than the
/// one that reports the pack as sealed.
#[test]
fn an_open_pack_goes_with_what_an_upload_has_left_in_it() {
    let mut random = Random::new(seed());
    let machine = Machine::new();
    let (gone, given_up) = (noise(&mut random, 3 * MIB), noise(&mut random, MIB));
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        upload(&store, "gone", &gone).await.unwrap();
        let cut = cut(&given_up);
        let ingest = store.begin_ingest(new_snapshot("s", given_up.len())).await;
        let ingest = ingest.unwrap();
        send(&ingest, &cut).await.unwrap();
        drop(ingest);
        store.delete_snapshot(&"gone".into()).await.unwrap();
        let report = store.gc_run(GcSettings::default()).await.unwrap();
        assert!(report.removed_bytes >= 4 * MIB as u64, "{report:?}");
        // Its records have rows by then, and are not known to be garbage yet.
        assert!(pack_bytes(&store).await < 2 * MIB as u64);
    });
}

#[test]
fn the_packs_of_an_upload_under_way_stay_open() {
    let mut random = Random::new(seed());
    let machine = Machine::new();
    let (gone, kept) = (noise(&mut random, 3 * MIB), noise(&mut random, MIB));
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        upload(&store, "gone", &gone).await.unwrap();
        let cut = cut(&kept);
        let ingest = store.begin_ingest(new_snapshot("kept", kept.len())).await;
        let ingest = ingest.unwrap();
        send(&ingest, &cut).await.unwrap();
        store.delete_snapshot(&"gone".into()).await.unwrap();
        let report = store.gc_run(GcSettings::default()).await.unwrap();
        assert_eq!(report.packs_removed, 0);
        assert_eq!(phases(&store, PackKind::Chunks), [PackPhase::Open]);
        ingest.commit(cut.root).await.unwrap();
        drop(ingest);
        let report = store.gc_run(GcSettings::default()).await.unwrap();
        assert!(report.packs_removed > 0 && report.copied_bytes >= MIB as u64);
        assert_holds(&store, "kept", &kept).await;
        assert!(pack_bytes(&store).await < 2 * MIB as u64);
    });
}

#[test]
fn the_last_collection_is_known_after_a_restart() {
    let mut random = Random::new(seed());
    let machine = Machine::new();
    let image = noise(&mut random, MIB);
    let before = block_on(async {
        let (store, _) = machine.open().await.unwrap();
        assert_eq!(store.gc_status().last, None);
        upload(&store, "s", &image).await.unwrap();
        store.delete_snapshot(&"s".into()).await.unwrap();
        let report = store.gc_run(GcSettings::default()).await.unwrap();
        assert!(report.packs_removed > 0);
        let last = store.gc_status().last.unwrap();
        assert_eq!(last.outcome, Ok(report));
        store.close().await.unwrap();
        last
    });
    let machine = machine.crash(&mut random);
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        assert_eq!(store.gc_status().last, Some(before));
    });
}

/// A daemon ends the collection before it closes the store.
#[test]
fn a_collection_that_ends_with_the_store_does_not_count_after_the_restart() {
    let mut random = Random::new(seed());
    let machine = Machine::new();
    let image = noise(&mut random, 20 * MIB);
    let before = block_on(async {
        let (store, _) = machine.open().await.unwrap();
        upload(&store, "s", &image).await.unwrap();
        store.gc_run(GcSettings::default()).await.unwrap();
        let before = store.gc_status().last.unwrap();
        let slow = GcSettings {
            bytes_per_second: NonZeroU64::new(1),
            ..GcSettings::default()
        };
        let (report, ()) = tokio::join!(store.gc_run(slow), async {
            while store.gc_status().running.is_none() {
                tokio::task::yield_now().await;
            }
            store.gc_end();
        });
        assert!(report.unwrap().stopped);
        let refused = store.gc_run(GcSettings::default()).await;
        assert!(matches!(refused, Err(Error::Closing)), "{refused:?}");
        store.close().await.unwrap();
        before
    });
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        assert_eq!(store.gc_status().last, Some(before));
    });
}

/// Survivors are in a pack with a higher number than the open one.
#[test]
fn survivors_are_collected_though_an_older_pack_is_open() {
    const KIB: usize = 1 << 10;
    let mut random = Random::new(seed());
    let mut machine = Machine::new();
    machine.pack_bytes_max = MIB as u64;
    let sizes = [("one", 600 * KIB), ("two", 300 * KIB), ("three", 700 * KIB)];
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        let mut kept = Vec::new();
        for (name, bytes) in sizes {
            kept = noise(&mut random, bytes);
            upload(&store, name, &kept).await.unwrap();
        }
        assert_eq!(
            phases(&store, PackKind::Chunks),
            [PackPhase::Sealed, PackPhase::Open]
        );
        // The first pack goes, and then that of its survivors.
        for name in ["one", "two"] {
            store.delete_snapshot(&name.into()).await.unwrap();
            let report = store.gc_run(GcSettings::default()).await.unwrap();
            assert_eq!(report.packs_removed, 1, "{name}: {report:?}");
        }
        assert!(phases(&store, PackKind::Chunks).contains(&PackPhase::Open));
        assert!(pack_bytes(&store).await < MIB as u64);
        assert_holds(&store, "three", &kept).await;
    });
}
