//! Random snapshots, volumes, clones and deletions; every count is compared with a count by brute
//! force.

use std::collections::BTreeMap;

use super::*;
use crate::{
    NewClone,
    format::{SnapshotRecord, VolumeRecord},
    gc::{
        GcSettings,
        account::{self, names_of_an_estimate, names_of_usage},
        roots::{Owner, OwnerId, RootOwner},
        survey::{names_of_a_pass, survey},
    },
    meta::Records as _,
    tests::{pending::clone_of, volume_data::new_volume},
};

/// The records that each root reaches.
type Trees = BTreeMap<RootId, BTreeSet<Name>>;

/// The records that any of these roots reaches.
fn all_of<'a>(trees: &Trees, roots: impl IntoIterator<Item = &'a RootOwner>) -> BTreeSet<Name> {
    let reached = roots.into_iter().flat_map(|it| &trees[&it.root]);
    reached.copied().collect()
}

struct World {
    random: Random,
    images: BTreeMap<String, Vec<u8>>,
    volumes: Vec<String>,
    made: usize,
}

impl World {
    fn any(&mut self) -> Option<String> {
        let names: Vec<_> = self.images.keys().cloned().collect();
        (!names.is_empty()).then(|| names[self.random.below(names.len())].clone())
    }

    fn name(&mut self) -> String {
        self.made += 1;
        format!("s{:03}", self.made)
    }

    async fn step(&mut self, store: &Store) {
        match (self.random.below(9), self.any()) {
            (0 | 1, _) | (_, None) => {
                let blocks = 1 + self.random.below(1000);
                let image = random_image(&mut self.random, blocks);
                let name = self.name();
                upload(store, &name, &image).await.unwrap();
                self.images.insert(name, image);
            }
            (2..=4, Some(base)) => {
                let mut image = self.images[&base].clone();
                scribble(&mut self.random, &mut image, 2);
                let name = self.name();
                upload(store, &name, &image).await.unwrap();
                self.images.insert(name, image);
            }
            (5, Some(base)) => {
                let name = self.name();
                let mut new = new_volume(&name, self.images[&base].len());
                new.from = Some(base.as_str().into());
                store.create_volume(new).await.unwrap();
                self.volumes.push(name);
            }
            (6, Some(_)) if !self.volumes.is_empty() => {
                let volume = self.volumes[self.random.below(self.volumes.len())].clone();
                self.snapshot_or_clone(store, &volume).await;
            }
            (7, Some(_)) if !self.volumes.is_empty() => {
                let at = self.random.below(self.volumes.len());
                let volume = self.volumes.swap_remove(at);
                store.delete_volume(&volume.as_str().into()).await.unwrap();
            }
            (_, Some(gone)) => {
                store.delete_snapshot(&gone.as_str().into()).await.unwrap();
                self.images.remove(&gone);
            }
        }
    }

    /// Writes to a volume, and makes a snapshot or a clone of it.
    async fn snapshot_or_clone(&mut self, store: &Store, name: &str) {
        let volume = store.open_volume(&name.into()).await.unwrap();
        let blocks = usize::try_from(volume.size_bytes() / 4096).unwrap();
        let block = self.random.below(blocks) as u64;
        let bytes = vec![self.random.next() as u8 | 1; 4096];
        volume.write(block * 4096, bytes.into()).await.unwrap();
        let made = self.name();
        if self.random.below(2) == 0 {
            volume.snapshot(&made, BTreeMap::new()).await.unwrap();
            let image = crate::tests::volume_data::contents(&volume).await;
            self.images.insert(made, image);
        } else {
            let clone: NewClone = clone_of(crate::CloneSource::Volume(name.into()), &made);
            store.clone_volume(clone).await.unwrap();
            self.volumes.push(made);
        }
    }

    /// Compares all counts with those by brute force.
    async fn check(&mut self, store: &Store) {
        let engine = store.engine();
        let rows = rows(engine);
        let roots = roots::of_records(engine, None).await.unwrap();
        self.check_roots(engine, &roots);
        let mut trees = Trees::new();
        for root in &roots {
            trees.insert(root.root, reach(engine, root.root).await);
        }
        let needed = all_of(&trees, &roots);
        let nodes = rows
            .keys()
            .filter(|name| name.kind().pack_kind() == PackKind::Nodes)
            .count() as u64;
        // In one pass, and in several.
        for names_max in [names_of_a_pass(), 2 * nodes.max(2)] {
            let surveyed = survey(engine, &unpaced(), &roots, names_max).await.unwrap();
            assert_eq!(surveyed.passes == 1, surveyed.live.is_some());
            if let Some(live) = &surveyed.live {
                for (name, place) in &rows {
                    assert_eq!(live.needs(name, place), needed.contains(name), "{name}");
                }
            }
            for tally in &surveyed.packs {
                let path = pack_path(tally.pack);
                let of_it = || rows.iter().filter(|(_, place)| place.pack == tally.pack);
                let live = || of_it().filter(|(name, _)| needed.contains(name));
                let dead = of_it().filter(|(name, _)| !needed.contains(name));
                assert_eq!(tally.live.records, live().count() as u64);
                assert_eq!(
                    tally.live.bytes,
                    bytes_of(&rows, live().map(|(name, _)| name))
                );
                assert_eq!(tally.dead.records, dead.count() as u64);
                let file = engine.disk.open(&path, crate::io::OpenMode::Read).unwrap();
                assert_eq!(tally.file_bytes, engine.disk.len(&file).unwrap());
                assert!(tally.live.bytes + tally.dead.bytes < tally.file_bytes);
            }
            let counted: u64 = surveyed.packs.iter().map(|it| it.live.records).sum();
            assert_eq!(counted, needed.len() as u64);
        }
        for names_max in [names_of_an_estimate(), 2 * nodes.max(2)] {
            self.check_estimate(engine, &roots, (&rows, &trees), names_max)
                .await;
        }
        for names_max in [names_of_usage(), 2 * nodes.max(2)] {
            self.check_usage(engine, &roots, (&rows, &trees), names_max)
                .await;
        }
    }

    /// The roots are those of the snapshots and volumes.
    fn check_roots(&self, engine: &Engine, roots: &[RootOwner]) {
        let mut found: Vec<_> = roots
            .iter()
            .map(|it| (it.owner.record().cloned().unwrap(), it.root))
            .collect();
        let mut expected = Vec::new();
        for record in engine.meta.all::<SnapshotRecord>().unwrap() {
            let root = record.root();
            expected.extend(root.map(|root| (OwnerId::of::<SnapshotRecord>(&record.id), root)));
        }
        for record in engine.meta.all::<VolumeRecord>().unwrap() {
            let root = record.base;
            expected.extend(root.map(|root| (OwnerId::of::<VolumeRecord>(&record.id), root)));
        }
        found.sort_unstable_by_key(|(id, _)| format!("{id:?}"));
        expected.sort_unstable_by_key(|(id, _)| format!("{id:?}"));
        assert_eq!(found, expected);
    }

    async fn check_estimate(
        &mut self,
        engine: &Arc<Engine>,
        roots: &[RootOwner],
        (rows, trees): (&BTreeMap<Name, Location>, &Trees),
        names_max: u64,
    ) {
        let (gone, kept): (Vec<_>, Vec<_>) = roots
            .iter()
            .cloned()
            .partition(|_| self.random.below(3) == 0);
        let settings = GcSettings::default();
        let pace = unpaced();
        let estimate =
            account::estimate_delete(engine, &pace, (&kept, &gone), &settings, names_max);
        let estimate = estimate.await.unwrap();
        let (only, others) = (all_of(trees, &gone), all_of(trees, &kept));
        assert_eq!(
            estimate.dead_bytes,
            bytes_of(rows, only.difference(&others))
        );
    }

    async fn check_usage(
        &mut self,
        engine: &Arc<Engine>,
        roots: &[RootOwner],
        (rows, trees): (&BTreeMap<Name, Location>, &Trees),
        names_max: u64,
    ) {
        let asked: Vec<_> = roots.iter().filter(|_| self.random.below(4) > 0).collect();
        let ids: Vec<_> = asked
            .iter()
            .map(|it| it.owner.record().cloned().unwrap())
            .collect();
        for with_shared in [false, true] {
            let pace = unpaced();
            let usage = account::usage(engine, &pace, roots, &ids, with_shared, names_max);
            let usage = usage.await.unwrap();
            assert_eq!(usage.len(), asked.len());
            for (asked, usage) in asked.iter().zip(&usage) {
                let own = &trees[&asked.root];
                let others = roots.iter().filter(|it| it.owner != asked.owner);
                let others = all_of(trees, others);
                let exclusive = bytes_of(rows, own.difference(&others));
                assert_eq!(usage.exclusive_bytes, exclusive, "{}", asked.owner);
                let shared = bytes_of(rows, own.intersection(&others));
                assert_eq!(usage.shared_bytes, with_shared.then_some(shared));
            }
        }
    }
}

#[test]
fn all_counts_are_those_by_brute_force() {
    let mut random = Random::new(seed());
    for _ in 0..2 {
        let machine = machine();
        let mut world = World {
            random: Random::new(random.next()),
            images: BTreeMap::new(),
            volumes: Vec::new(),
            made: 0,
        };
        for _ in 0..3 {
            block_on(async {
                let store = machine.open_undamaged().await;
                for _ in 0..6 {
                    world.step(&store).await;
                }
                world.check(&store).await;
                store.close().await.unwrap();
            });
        }
    }
}

#[test]
fn owners_are_named_in_words() {
    let machine = machine();
    block_on(async {
        let store = machine.open_undamaged().await;
        let image = random_image(&mut Random::new(1), 10);
        upload(&store, "web", &image).await.unwrap();
        let mut new = new_volume("db", image.len());
        new.from = Some("web".into());
        store.create_volume(new).await.unwrap();
        let reader = store.open_snapshot(&"web".into()).await.unwrap();
        let roots = roots::collect(store.engine()).await.unwrap();
        let owners: Vec<_> = roots.iter().map(|it| it.owner.to_string()).collect();
        assert_eq!(
            owners,
            [
                "snapshot \"web\"",
                "volume \"db\"",
                "a reader, or work under way"
            ]
        );
        assert!(matches!(roots[2].owner, Owner::Pin));
        drop(reader);
        assert_eq!(roots::collect(store.engine()).await.unwrap().len(), 2);
    });
}
