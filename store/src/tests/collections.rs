//! Collections beside everything else: no matter what is stored, read, cloned and deleted
//! meanwhile, everything that a record names is whole at any time.
//!
//! `between_steps.rs` and `sweeps.rs` have a scene for each rule that this rests on.

use std::{
    array::from_fn,
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{
    Random, assert_holds, block_on, cut,
    machine::Machine,
    new_snapshot,
    pending::{clone_of, completed},
    scribble, seed, send, upload,
    volume_data::{BLOCK, contents, new_volume},
};
use crate::{
    CloneSource, Error, GcReport, GcSettings, Options, Store, format::PackKind, gc::roots,
};

/// A store, with the model of its content.
struct World {
    store: Store,
    /// Completed snapshots.
    snapshots: RefCell<BTreeMap<String, Vec<u8>>>,
    made: Cell<usize>,
    over: Cell<bool>,
}

impl World {
    fn name(&self, what: &str) -> String {
        self.made.set(self.made.get() + 1);
        format!("{what}{}", self.made.get())
    }

    fn any(&self, random: &mut Random) -> Option<(String, Vec<u8>)> {
        let snapshots = self.snapshots.borrow();
        let at = random.below(snapshots.len().max(1));
        let (name, image) = snapshots.iter().nth(at)?;
        Some((name.clone(), image.clone()))
    }

    /// Deletes a snapshot, if it is still there.
    async fn delete(&self, name: &str) {
        if self.snapshots.borrow_mut().remove(name).is_some() {
            self.store.delete_snapshot(&name.into()).await.unwrap();
        }
    }
}

/// Lets others run, for shorter or longer.
async fn pause(random: &mut Random) {
    match random.below(4) {
        0 => {}
        1 => tokio::task::yield_now().await,
        2 => {
            for _ in 0..random.below(30) {
                tokio::task::yield_now().await;
            }
        }
        _ => tokio::time::sleep(std::time::Duration::from_millis(random.below(8) as u64)).await,
    }
}

/// Bytes that do not compress: packs fill up.
fn noise(random: &mut Random, blocks: usize) -> Vec<u8> {
    let words = (0..blocks * BLOCK / 8).flat_map(|_| random.next().to_le_bytes());
    words.collect()
}

/// Stores old, present or new content, with pauses.
async fn uploads(world: Rc<World>, mut random: Random, contents: Rc<Vec<Vec<u8>>>) {
    while !world.over.get() {
        let mut image = contents[random.below(contents.len())].clone();
        if random.below(2) == 0 {
            scribble(&mut random, &mut image, 2);
        }
        let name = world.name("s");
        let cut = cut(&image);
        let ingest = world
            .store
            .begin_ingest(new_snapshot(&name, image.len()))
            .await
            .unwrap();
        // Learns which chunks are there, and uses them much later.
        let ids: Vec<_> = cut.chunks.keys().copied().collect();
        let before = ingest.missing(&ids, &[]).await.unwrap();
        pause(&mut random).await;
        pause(&mut random).await;
        let after = ingest.missing(&ids, &[]).await.unwrap();
        let is_forgotten = |at: &u32| before.binary_search(at).is_err();
        assert!(
            !after.iter().any(is_forgotten),
            "what was there is missing to the same ingest"
        );
        send(&ingest, &cut).await.unwrap();
        pause(&mut random).await;
        if random.below(6) == 0 {
            continue;
        }
        ingest.commit(cut.root).await.unwrap();
        drop(ingest);
        // Before others know of it, and delete it.
        if random.below(3) == 0 {
            assert_holds(&world.store, &name, &image).await;
        }
        world.snapshots.borrow_mut().insert(name, image);
        pause(&mut random).await;
    }
}

async fn deletes(world: Rc<World>, mut random: Random) {
    while !world.over.get() {
        let many = world.snapshots.borrow().len();
        if (many > 3 || random.below(5) == 0)
            && let Some((name, _)) = world.any(&mut random)
        {
            world.delete(&name).await;
        }
        pause(&mut random).await;
    }
}

/// Reads content slowly that may be deleted meanwhile.
async fn reads(world: Rc<World>, mut random: Random) {
    while !world.over.get() {
        pause(&mut random).await;
        let Some((name, image)) = world.any(&mut random) else {
            continue;
        };
        let reader = match world.store.open_snapshot(&name.as_str().into()).await {
            Ok(reader) => reader,
            Err(Error::NotFound { .. }) => continue,
            Err(error) => panic!("{error}"),
        };
        if random.below(2) == 0 {
            world.delete(&name).await;
        }
        for part in 0..4 {
            pause(&mut random).await;
            let (start, end) = (image.len() * part / 4, image.len() * (part + 1) / 4);
            let mut found = Vec::new();
            for piece in reader.read(start as u64, end - start).await.unwrap() {
                piece.append_to(&mut found);
            }
            assert!(found == image[start..end], "{name}");
        }
        let segments = &mut reader.segments();
        while let Some(segment) = segments.next().await.unwrap() {
            pause(&mut random).await;
            reader.chunks(&segment).await.unwrap();
            reader.stored_chunks(&segment).await.unwrap();
        }
    }
}

/// Volumes on snapshots that are deleted at once; their snapshots, and clones of them.
async fn volumes(world: Rc<World>, mut random: Random) {
    let store = &world.store;
    while !world.over.get() {
        pause(&mut random).await;
        let Some((base, mut model)) = world.any(&mut random) else {
            continue;
        };
        let name = world.name("v");
        let mut new = new_volume(&name, model.len());
        new.from = Some(base.as_str().into());
        match store.create_volume(new).await {
            Ok(_) => {}
            Err(Error::NotFound { .. }) => continue,
            Err(error) => panic!("{error}"),
        }
        world.delete(&base).await;
        pause(&mut random).await;
        let volume = store.open_volume(&name.as_str().into()).await.unwrap();
        for _ in 0..1 + random.below(3) {
            let block = random.below(model.len() / BLOCK);
            let bytes = noise(&mut random, 1);
            model[block * BLOCK..][..BLOCK].copy_from_slice(&bytes);
            let at = (block * BLOCK) as u64;
            volume.write(at, bytes.into()).await.unwrap();
            pause(&mut random).await;
            if random.below(2) == 0 {
                let made = world.name("vs");
                volume.snapshot(&made, BTreeMap::new()).await.unwrap();
                completed(store, &made).await;
                world.snapshots.borrow_mut().insert(made, model.clone());
            }
        }
        let cloned = world.name("c");
        let clone = clone_of(CloneSource::Volume(name.as_str().into()), &cloned);
        store.clone_volume(clone).await.unwrap();
        assert!(contents(&volume).await == model, "{name}");
        drop(volume);
        store.delete_volume(&name.as_str().into()).await.unwrap();
        pause(&mut random).await;
        let volume = store.open_volume(&cloned.as_str().into()).await.unwrap();
        assert!(contents(&volume).await == model, "{cloned}");
        drop(volume);
        store.delete_volume(&cloned.as_str().into()).await.unwrap();
    }
}

pub(super) fn eager() -> GcSettings {
    GcSettings {
        rewrite_dead_percent: 1,
        merge_below_bytes: 64 << 10,
        ..GcSettings::default()
    }
}

async fn collects(world: Rc<World>, mut random: Random, runs: usize) -> GcReport {
    let mut all = GcReport::default();
    for _ in 0..runs {
        let run = world.store.gc_run(eager());
        if random.below(4) == 0 {
            let (stopped, ()) = tokio::join!(run, async {
                pause(&mut random).await;
                world.store.gc_stop();
            });
            stopped.unwrap();
        } else {
            let report = run.await.unwrap();
            assert_eq!(report.damage, [""; 0]);
            all.packs_removed += report.packs_removed;
            all.copied_bytes += report.copied_bytes;
            all.removed_bytes += report.removed_bytes;
        }
        pause(&mut random).await;
    }
    world.over.set(true);
    all
}

#[test]
fn whatever_runs_beside_collections_everything_that_is_named_is_whole() {
    let mut random = Random::new(seed());
    for _ in 0..3 {
        let mut machine = Machine::new();
        machine.pack_bytes_max = 96 << 10;
        let snapshots = block_on(async {
            let (store, _) = machine.open().await.unwrap();
            let world = Rc::new(World {
                store,
                snapshots: RefCell::default(),
                made: Cell::new(0),
                over: Cell::new(false),
            });
            let contents = (0..5).map(|_| {
                let blocks = 20 + random.below(150);
                noise(&mut random, blocks)
            });
            let contents = Rc::new(contents.collect::<Vec<_>>());
            let mut of_actor = || Random::new(random.next());
            let (report, ..) = tokio::join!(
                collects(Rc::clone(&world), of_actor(), 25),
                uploads(Rc::clone(&world), of_actor(), Rc::clone(&contents)),
                uploads(Rc::clone(&world), of_actor(), Rc::clone(&contents)),
                uploads(Rc::clone(&world), of_actor(), contents),
                deletes(Rc::clone(&world), of_actor()),
                deletes(Rc::clone(&world), of_actor()),
                reads(Rc::clone(&world), of_actor()),
                volumes(Rc::clone(&world), of_actor()),
            );
            assert!(
                report.packs_removed > 10 && report.copied_bytes > 0,
                "{report:?}"
            );
            settled(&world).await;
            world.store.close().await.unwrap();
            world.snapshots.take()
        });
        let machine = machine.crash(&mut random);
        block_on(async {
            let (store, report) = machine.open().await.unwrap();
            assert_eq!(report.damage, []);
            for (name, image) in &snapshots {
                assert_holds(&store, name, image).await;
            }
        });
    }
}

/// With nothing beside it, a collection leaves no dead records in sealed packs.
async fn settled(world: &World) {
    let store = &world.store;
    let mut copies = world.snapshots.take();
    for (name, image) in &copies {
        assert_holds(store, name, image).await;
    }
    let report = store.gc_run(eager()).await.unwrap();
    assert_eq!((report.packs_held, report.packs_damaged), (0, 0));
    for (name, image) in &copies {
        assert_holds(store, name, image).await;
    }
    let engine = store.engine();
    assert!(engine.reliance.condemned().is_empty());
    // Every row points to a record that is there, and either a root reaches its name, or its pack
    // is not sealed.
    let roots = roots::collect(engine).await.unwrap();
    let needed = super::space::reach_all(engine, roots.iter().map(|it| it.root)).await;
    let rows = super::space::rows(engine);
    for name in &needed {
        assert!(rows.contains_key(name), "{name} has no row");
    }
    let chunks = rows
        .iter()
        .filter(|(name, _)| name.kind().pack_kind() == PackKind::Chunks);
    for (name, place) in chunks {
        let record = engine.packs.read_record(place, *name).await;
        record.unwrap_or_else(|error| panic!("{name} at {place:?}: {error}"));
    }
    // Deleted as a whole, it takes next to nothing.
    let names: Vec<_> = copies.keys().cloned().collect();
    let before = store.status().await.unwrap();
    for name in &names[names.len() / 2..] {
        store.delete_snapshot(&name.as_str().into()).await.unwrap();
        copies.remove(name);
    }
    store.gc_run(eager()).await.unwrap();
    let after = store.status().await.unwrap();
    assert!(after.stored_bytes <= before.stored_bytes);
    for (name, image) in &copies {
        assert_holds(store, name, image).await;
    }
    *world.snapshots.borrow_mut() = copies;
}

/// On a real disk, readers on other threads continue while packs are rewritten of which half is
/// garbage.
#[test]
fn readers_notice_nothing_while_packs_are_rewritten() {
    const IMAGES: usize = 4;
    const READERS: usize = 6;
    let dir = tempfile::tempdir().unwrap();
    let mut options = Options::new(dir.path());
    options.pack_bytes_max = 512 << 10;
    // Nearly all reads go to packs.
    options.chunk_cache_bytes = 1 << 20;
    options.packs_open_max = 4;
    let mut random = Random::new(seed());
    let images: [Vec<u8>; IMAGES] = from_fn(|_| noise(&mut random, 500));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (store, _) = Store::open(options).await.unwrap();
        for (number, image) in images.iter().enumerate() {
            let garbage = noise(&mut random, 500);
            let pieces = |bytes: &[u8]| bytes.chunks(50 * BLOCK).map(<[u8]>::to_vec).collect();
            let (kept, garbage): (Vec<_>, Vec<_>) = (pieces(image), pieces(&garbage));
            let both = kept.iter().zip(&garbage);
            let both = both.flat_map(|(kept, garbage)| [&**kept, garbage].concat());
            let both: Vec<_> = both.collect();
            upload(&store, &format!("both{number}"), &both)
                .await
                .unwrap();
            upload(&store, &format!("s{number}"), image).await.unwrap();
        }
        let sealed = store.engine().meta.pack_states().unwrap().len();
        let (store, images) = (Arc::new(store), Arc::new(images));
        let over = Arc::new(AtomicBool::new(false));
        let mut readers = Vec::new();
        for _ in 0..READERS {
            let (store, images, over) = (store.clone(), images.clone(), over.clone());
            let mut random = Random::new(random.next());
            readers.push(tokio::spawn(async move {
                let mut reads = 0;
                while reads == 0 || !over.load(Ordering::Relaxed) {
                    let number = random.below(IMAGES);
                    let name = format!("s{number}");
                    let reader = store.open_snapshot(&name.as_str().into()).await.unwrap();
                    // Its leaves are looked up once, and its chunks whenever they are read.
                    for _ in 0..20 {
                        let start = random.below(images[number].len() - 1);
                        let len = 1 + random.below((images[number].len() - start).min(1 << 20));
                        let mut found = Vec::new();
                        for piece in reader.read(start as u64, len).await.unwrap() {
                            piece.append_to(&mut found);
                        }
                        assert!(found == images[number][start..start + len], "{name}");
                        reads += 1;
                    }
                }
                reads
            }));
        }
        let mut removed = 0;
        for number in 0..IMAGES {
            let name = format!("both{number}");
            store.delete_snapshot(&name.as_str().into()).await.unwrap();
            let report = store.gc_run(eager()).await.unwrap();
            assert!(report.copied_bytes > 0, "{report:?}");
            removed += usize::try_from(report.packs_removed).unwrap();
        }
        over.store(true, Ordering::Relaxed);
        for reader in readers {
            assert!(reader.await.unwrap() > 0);
        }
        assert!(2 * removed > sealed, "{removed} of {sealed} packs");
        for (number, image) in images.iter().enumerate() {
            assert_holds(&store, &format!("s{number}"), image).await;
        }
        store.close().await.unwrap();
    });
}
