//! The space reports that users get.

use super::*;
use crate::{
    Error,
    gc::{
        GcAction, GcSettings,
        mark::mark,
        survey::{names_of_a_pass, survey},
        tally::NeededPlaces,
    },
    tests::volume_data::new_volume,
};

/// Sealed packs, of which one snapshot has most.
async fn two_snapshots(store: &Store) -> [Vec<u8>; 2] {
    let mut random = Random::new(21);
    let images = [
        random_image(&mut random, 5000),
        random_image(&mut random, 5000),
    ];
    for (name, image) in ["a", "b"].into_iter().zip(&images) {
        upload(store, name, image).await.unwrap();
    }
    images
}

#[test]
fn a_plan_drops_the_packs_of_deleted_snapshots_as_the_estimate_said() {
    let machine = machine();
    block_on(async {
        let store = machine.open_undamaged().await;
        two_snapshots(&store).await;
        let settings = GcSettings::default();
        let before = store.gc_plan(&settings).await.unwrap();
        assert_eq!(before.passes, 1);
        let dropped = before
            .steps
            .iter()
            .filter(|it| matches!(it.action, GcAction::Drop(_)));
        assert_eq!(dropped.count(), 0);
        let estimate = store
            .estimate_delete(&["a".into()], &settings)
            .await
            .unwrap();
        let record = store.delete_snapshot(&"a".into()).await.unwrap();
        let after = store.gc_plan(&settings).await.unwrap();
        assert_eq!(
            before.usage.live_bytes - after.usage.live_bytes,
            estimate.dead_bytes
        );
        let net = |plan: &crate::GcPlan| {
            let of = |of: fn(&crate::GcStep) -> u64| plan.steps.iter().map(of).sum::<u64>();
            of(|step| step.returned_bytes) - of(|step| step.copied_bytes)
        };
        assert!(estimate.returned_bytes > 0);
        assert_eq!(net(&after) - net(&before), estimate.returned_bytes);
        assert!(
            after
                .steps
                .iter()
                .any(|it| matches!(it.action, GcAction::Drop(_)))
        );
        assert_eq!(before.usage.file_bytes, after.usage.file_bytes);
        let content = record.content().unwrap();
        let data_bytes = before.usage.data_bytes - after.usage.data_bytes;
        assert_eq!(data_bytes, content.data_bytes);
        let logical_bytes = before.usage.logical_bytes - after.usage.logical_bytes;
        assert_eq!(logical_bytes, record.size_bytes);
        assert!(after.usage.unique_bytes < before.usage.unique_bytes);
    });
}

#[test]
fn content_that_a_volume_needs_is_not_given_back() {
    let machine = machine();
    block_on(async {
        let store = machine.open_undamaged().await;
        let images = two_snapshots(&store).await;
        let mut new = new_volume("v", images[0].len());
        new.from = Some("a".into());
        store.create_volume(new).await.unwrap();
        let settings = GcSettings::default();
        let estimate = store
            .estimate_delete(&["a".into()], &settings)
            .await
            .unwrap();
        assert_eq!((estimate.dead_bytes, estimate.returned_bytes), (0, 0));
        let usage = store
            .usage(&["a".into(), "b".into()], &["v".into()], true, &settings)
            .await
            .unwrap();
        assert_eq!(usage.len(), 3);
        assert_eq!(usage[0], usage[2]);
        assert_eq!(usage[0].exclusive_bytes, 0);
        assert!(usage[0].shared_bytes > Some(1 << 20));
        assert!(usage[1].exclusive_bytes > 1 << 20);
        let twice = [("b".into()), ("b".into())];
        let usage_twice = store.usage(&twice, &[], false, &settings).await.unwrap();
        assert_eq!(usage_twice[0], usage_twice[1]);
        assert_eq!(usage_twice[0].exclusive_bytes, usage[1].exclusive_bytes);
        assert_eq!(usage_twice[0].shared_bytes, None);
        let missing = store.estimate_delete(&["x".into()], &settings).await;
        assert!(matches!(missing, Err(Error::NotFound { .. })));
    });
}

/// A reader keeps the content of a deleted snapshot.
#[test]
fn pinned_content_is_needed() {
    let machine = machine();
    block_on(async {
        let store = machine.open_undamaged().await;
        two_snapshots(&store).await;
        let settings = GcSettings::default();
        let reader = store.open_snapshot(&"a".into()).await.unwrap();
        let before = store.gc_plan(&settings).await.unwrap();
        store.delete_snapshot(&"a".into()).await.unwrap();
        let while_read = store.gc_plan(&settings).await.unwrap();
        assert_eq!(while_read.usage.live_bytes, before.usage.live_bytes);
        drop(reader);
        let after = store.gc_plan(&settings).await.unwrap();
        assert!(after.usage.live_bytes < before.usage.live_bytes);
    });
}

/// The places kept of the marks of slices give the same answers as the marks of one pass.
#[test]
fn needed_places_of_slices_are_those_of_one_pass() {
    let machine = machine();
    block_on(async {
        let store = machine.open_undamaged().await;
        let engine = store.engine();
        two_snapshots(&store).await;
        store.delete_snapshot(&"a".into()).await.unwrap();
        let roots = roots::collect(engine).await.unwrap();
        let whole = survey(engine, &unpaced(), &roots, names_of_a_pass())
            .await
            .unwrap();
        let live = whole.live.unwrap();
        let packs: BTreeSet<_> = whole.packs.iter().map(|it| it.pack).step_by(2).collect();
        let packs = Arc::new(packs);
        let mut places = NeededPlaces::default();
        let (mut from, mut slices) = (Some([0; 32]), 0);
        while let Some(start) = from {
            let ranks = Ranks::build(engine, start, 30).await.unwrap();
            let live = mark(engine, &ranks, &unpaced(), &roots).await.unwrap();
            let added = places.add(engine, Arc::new(live), Arc::clone(&packs));
            places = added.await.unwrap();
            from = ranks.until();
            slices += 1;
        }
        assert!(slices > 1);
        for (name, place) in rows(engine) {
            let is_needed = packs.contains(&place.pack) && live.needs(&name, &place);
            assert_eq!(places.contains(&place), is_needed);
        }
    });
}

#[test]
fn a_collection_does_not_wait_for_what_takes_long() {
    let machine = machine();
    block_on(async {
        let store = machine.open_undamaged().await;
        let endless = async {
            let _stocktaking = store.engine().take_stock().await;
            std::future::pending::<crate::Result<()>>().await
        };
        let run = store.gc_run(GcSettings::default());
        let (ended, collected) = tokio::join!(store.estimate(endless), run);
        assert!(matches!(ended, Err(Error::Collecting)));
        collected.unwrap();
        // Nor is it a reason to end a later one.
        store.gc_plan(&GcSettings::default()).await.unwrap();
    });
}
