#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::{format::PackKind, gc::tally::Sum};

const MIB: u64 = 1 << 20;

fn tally(kind: PackKind, number: u64, live: (u64, u64), dead_bytes: u64) -> PackTally {
    let sum = |(records, bytes)| Sum { records, bytes };
    PackTally {
        pack: PackId { kind, number },
        sealed: true,
        live: sum(live),
        dead: sum((1, dead_bytes)),
        // Header and footer.
        file_bytes: live.1 + dead_bytes + 8192,
    }
}

fn chunks(number: u64, live_bytes: u64, dead_bytes: u64) -> PackTally {
    let records = live_bytes.div_ceil(MIB);
    tally(PackKind::Chunks, number, (records, live_bytes), dead_bytes)
}

fn planned(tallies: &[PackTally], free_bytes: u64) -> Vec<GcAction> {
    let steps = plan(tallies, free_bytes, &GcSettings::default(), |_| true);
    steps.into_iter().map(|step| step.action).collect()
}

const fn pack(number: u64) -> PackId {
    PackId {
        kind: PackKind::Chunks,
        number,
    }
}

#[test]
fn packs_without_anything_needed_go_first_and_the_best_return_comes_next() {
    let tallies = [
        chunks(1, 100 * MIB, 156 * MIB),
        chunks(2, 200 * MIB, 56 * MIB),
        chunks(3, 10 * MIB, 246 * MIB),
        chunks(4, 0, 256 * MIB),
    ];
    assert_eq!(
        planned(&tallies, u64::MAX),
        [
            GcAction::Drop(pack(4)),
            GcAction::Rewrite(pack(3)),
            GcAction::Rewrite(pack(1)),
        ]
    );
    // The space that a drop gives back is there for the copies.
    assert_eq!(
        planned(&tallies, 0),
        [
            GcAction::Drop(pack(4)),
            GcAction::Rewrite(pack(3)),
            GcAction::Rewrite(pack(1)),
        ]
    );
    // Without it, only the copies that fit are done.
    let scarce = 10 * MIB + GROUP_BYTES + 2 * FREE_BYTES_MIN;
    assert_eq!(
        planned(&tallies[..3], scarce),
        [GcAction::Rewrite(pack(3)), GcAction::Rewrite(pack(1)),]
    );
    assert_eq!(planned(&tallies[..2], scarce), []);
    assert_eq!(planned(&tallies[..3], scarce - 1), []);
}

#[test]
fn neighbours_are_rewritten_together() {
    let tallies = [
        chunks(1, 60 * MIB, 196 * MIB),
        chunks(2, 90 * MIB, 166 * MIB),
        chunks(5, 250 * MIB, 0),
        chunks(6, 61 * MIB, 195 * MIB),
    ];
    // The last is better than the second. It is no neighbour of the first two, which rank by their
    // joint return for each byte copied.
    assert_eq!(
        planned(&tallies, u64::MAX),
        [
            GcAction::Rewrite(pack(6)),
            GcAction::Rewrite(pack(1)),
            GcAction::Rewrite(pack(2)),
        ]
    );
}

#[test]
fn the_threshold_is_a_part_of_what_the_records_take() {
    for (live, dead, is_rewritten) in [
        (60 * MIB, 40 * MIB, true),
        (60 * MIB + 1, 40 * MIB - 1, false),
        // Nearly all of it is dead, and there is nothing to gain.
        (1024, RETURN_BYTES_MIN - 1, false),
        (1024, RETURN_BYTES_MIN, true),
    ] {
        let steps = planned(&[chunks(1, live, dead)], u64::MAX);
        assert_eq!(steps.len() == 1, is_rewritten, "{live} {dead}");
    }
}

#[test]
fn small_packs_of_a_kind_are_merged() {
    let nodes = |number| tally(PackKind::Nodes, number, (3, MIB), 0);
    let tallies = [
        chunks(1, MIB, 0),
        chunks(3, 2 * MIB, 0),
        chunks(4, 33 * MIB, 0),
        nodes(2),
    ];
    assert_eq!(
        planned(&tallies, u64::MAX),
        [GcAction::Merge(vec![pack(1), pack(3)])]
    );
    let many: Vec<_> = (1..=20).map(|number| chunks(number, 30 * MIB, 0)).collect();
    let steps = planned(&many, u64::MAX);
    let sizes: Vec<_> = steps.iter().map(|step| step.packs().count()).collect();
    assert_eq!(sizes, [8, 8, 4]);
}

fn any_tally(number: u64) -> impl Strategy<Value = PackTally> {
    let bytes = prop_oneof![Just(0), 1..2 * MIB, MIB..300 * MIB];
    (any::<bool>(), bytes.clone(), bytes, any::<bool>()).prop_map(
        move |(is_chunks, live, dead, sealed)| {
            let kind = match is_chunks {
                true => PackKind::Chunks,
                false => PackKind::Nodes,
            };
            let records = live.div_ceil(MIB);
            PackTally {
                sealed,
                ..tally(kind, number, (records, live), dead)
            }
        },
    )
}

fn any_tallies() -> impl Strategy<Value = Vec<PackTally>> {
    (0..30u64).prop_flat_map(|count| (1..=count).map(any_tally).collect::<Vec<_>>())
}

proptest! {
    #[test]
    fn plans_keep_the_rules(
        tallies in any_tallies(),
        free_bytes in prop_oneof![0..1024 * MIB, Just(u64::MAX)],
        rewrite_dead_percent in 0..=100u8,
    ) {
        let settings = GcSettings { rewrite_dead_percent, ..GcSettings::default() };
        let steps = plan(&tallies, free_bytes, &settings, |it| it.sealed);
        let of = |pack: PackId| tallies.iter().find(|it| it.pack == pack).unwrap();
        let (mut seen, mut has_copied) = (BTreeSet::new(), false);
        let mut free_bytes = free_bytes;
        for step in &steps {
            let packs: Vec<_> = step.action.packs().map(of).collect();
            // Every pack is in one step, and only candidates are in any.
            for tally in &packs {
                prop_assert!(seen.insert(tally.pack) && tally.sealed);
            }
            prop_assert_eq!(step.copied_bytes, packs.iter().map(|it| it.live.bytes).sum::<u64>());
            prop_assert_eq!(step.returned_bytes, packs.iter().map(|it| it.file_bytes).sum::<u64>());
            prop_assert!(step.returned_bytes > step.copied_bytes);
            match &step.action {
                GcAction::Drop(_) => {
                    prop_assert!(!has_copied, "drops come first");
                    prop_assert_eq!(packs[0].live.records, 0);
                }
                GcAction::Rewrite(_) => {
                    let (live, dead) = (packs[0].live.bytes, packs[0].dead.bytes);
                    prop_assert!(live > 0);
                    prop_assert!(dead * 100 >= (live + dead) * u64::from(rewrite_dead_percent));
                }
                GcAction::Merge(_) => {
                    prop_assert!(packs.len() > 1);
                    prop_assert!(packs.iter().all(|it| it.pack.kind == packs[0].pack.kind));
                    prop_assert!(step.copied_bytes <= PACK_BYTES_MAX.max(packs[0].live.bytes));
                    let is_small = |it: &&PackTally| it.file_bytes < settings.merge_below_bytes;
                    prop_assert!(packs.iter().all(is_small));
                }
            }
            if step.copied_bytes > 0 {
                has_copied = true;
                prop_assert!(step.copied_bytes + 2 * FREE_BYTES_MIN <= free_bytes);
            }
            free_bytes = free_bytes.saturating_add(step.returned_bytes).saturating_sub(step.copied_bytes);
        }
        // No fully dead pack is left that could go without a copy.
        let dropped = |it: &&PackTally| it.sealed && it.live.records == 0;
        prop_assert!(tallies.iter().filter(dropped).all(|it| seen.contains(&it.pack)));
    }
}
