//! Crashes at random, against a model of what was promised.
//!
//! One process after the other works on a simulated disk: writes, flushes, snapshots, clones and
//! other operations of a store. Each ends in another way: closed, killed, by a loss of power; at
//! rest, at any operation of the disk, or during the recovery from the end before. Invariants then,
//! for each volume:
//!
//! - flushed data is there, and the promised content of snapshots;
//! - after a kill all acknowledged changes are there;
//! - after a loss of power the volume is as it was at some moment since the last flush: a beginning
//!   of the acknowledged changes, and of changes that were under way together any blocks;
//! - the content found when it was opened is there from then on;
//! - a snapshot holds the content of its instant, and of several of one instant all are there or
//!   none;
//! - if one bit of a journal has changed, all promised content is there all the same, or the volume
//!   is refused: in front of a pending snapshot's cut, and of a flush behind which something was
//!   written.
//!
//! A failure prints its seed and its operations: `VARVE_SEED` repeats it, and `VARVE_CRASH_ROUNDS`
//! is the number of seeds to try from there on.

mod damage;
mod model;

use std::{
    collections::{BTreeMap, BTreeSet},
    mem, slice, thread,
};

use futures::future::join_all;

use self::model::{Content, Model, is_mix};
use super::{
    Random, assert_holds, block_on,
    machine::Machine,
    pending::{clone_of, of},
    seed,
    volume_data::{BLOCK, Change, new_volume},
};
use crate::{CloneSource, Error, Result, Store, Volume, limits};

/// Seeds of a run of the suite.
const ROUNDS: u64 = 40;
const VOLUMES_MAX: usize = 4;
const SNAPSHOTS_MAX: usize = 12;

/// The operations so far, printed if the test fails.
#[derive(Default)]
struct Log(Vec<String>);

impl Drop for Log {
    fn drop(&mut self) {
        if thread::panicking() {
            println!("{}", self.0.join("\n"));
        }
    }
}

struct World {
    random: Random,
    log: Log,
    names: u64,
    /// Bytes of a change, at most.
    longest: usize,
    volumes: BTreeMap<String, Model>,
    snapshots: BTreeMap<String, Content>,
    /// Begun, or being deleted: there or not.
    volumes_perhaps: BTreeMap<String, Model>,
    /// The same; each of these together.
    snapshots_perhaps: Vec<BTreeMap<String, Content>>,
    /// Volumes that this process has opened.
    opened: BTreeSet<String>,
    /// A sync was made to fail.
    sync_failed: bool,
    /// The power fails here and now, whatever comes next.
    is_over: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let longest = [2, 9, 9, 300][random.below(4)] * BLOCK;
        Self {
            random,
            log: Log::default(),
            names: 0,
            longest,
            volumes: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            volumes_perhaps: BTreeMap::new(),
            snapshots_perhaps: Vec::new(),
            opened: BTreeSet::new(),
            sync_failed: false,
            is_over: false,
        }
    }

    fn log(&mut self, what: impl Into<String>) {
        self.log.0.push(what.into());
    }

    fn name(&mut self, what: &str) -> String {
        self.names += 1;
        format!("{what}{}", self.names)
    }

    /// One of the volumes.
    fn any(&mut self) -> Option<String> {
        let names: Vec<_> = self.volumes.keys().cloned().collect();
        let count = names.len().max(1);
        names.into_iter().nth(self.random.below(count))
    }

    /// Finds out which of the changes under way are there.
    async fn look(&mut self, store: &Store) -> Result<()> {
        for name in self.volumes_perhaps.keys().cloned().collect::<Vec<_>>() {
            let is_there = exists(store.volume(&name.as_str().into()).await)?;
            let model = self.volumes_perhaps.remove(&name);
            if is_there {
                self.volumes.extend(model.map(|model| (name, model)));
            }
        }
        while let Some(group) = self.snapshots_perhaps.last().cloned() {
            let mut there = Vec::new();
            for name in group.keys() {
                there.push(exists(store.snapshot(&name.as_str().into()).await)?);
            }
            assert!(
                there.iter().all(|it| *it == there[0]),
                "of one instant, some: {:?}",
                group.keys()
            );
            if there[0] {
                self.snapshots.extend(group);
            }
            self.snapshots_perhaps.pop();
        }
        Ok(())
    }

    /// Opens a volume, and compares it.
    async fn open(&mut self, store: &Store, name: &str) -> Result<Volume> {
        let volume = store.open_volume(&name.into()).await?;
        let found = contents(&volume).await?;
        if let Some(model) = self.volumes.get_mut(name) {
            model.accept(name, found);
        }
        self.opened.insert(name.to_owned());
        Ok(volume)
    }

    fn change(&mut self, name: &str) -> Change {
        let size = self.volumes[name].now().len();
        let longest = 1 + self.random.below(self.longest);
        Change::random(&mut self.random, size, longest)
    }

    /// Changes that do not touch each other, in no order.
    fn apart(&mut self, name: &str) -> Vec<Change> {
        let blocks = self.volumes[name].now().len() / BLOCK;
        let parts = 2 + self.random.below(4);
        let each = blocks / parts;
        let one = |part: usize| {
            let start = part * each + self.random.below(each);
            let most = (part + 1) * each - start;
            let len = 1 + self.random.below(most.min(1 + self.longest / BLOCK));
            let byte = self.random.next() as u8;
            match self.random.below(4) {
                0 => Change::Trim(start * BLOCK, len * BLOCK),
                _ => Change::Write(start * BLOCK, vec![byte; len * BLOCK]),
            }
        };
        (0..parts).map(one).collect()
    }

    /// Makes changes at once, and records their outcomes.
    async fn make(&mut self, name: &str, volume: &Volume, changes: Vec<Change>) -> Result<()> {
        let outcomes = join_all(changes.iter().map(|change| change.make(volume))).await;
        let model = self.volumes.get_mut(name).unwrap();
        let mut acknowledged = model.now().clone();
        let mut all = acknowledged.clone();
        let mut failed = Ok(());
        for (change, outcome) in changes.iter().zip(outcomes) {
            change.apply(&mut all);
            match outcome {
                Ok(()) => change.apply(&mut acknowledged),
                Err(error) => failed = Err(error),
            }
        }
        model.made(acknowledged);
        match failed {
            Ok(()) => Ok(()),
            // A write that was refused for lack of space is there in part, and stays so.
            Err(error) if error.is_full() => {
                model.perhaps = Some(all);
                let found = contents(volume).await?;
                let all = model.perhaps.as_ref().unwrap();
                assert!(is_mix(model.now(), all, &found), "{name}: refused");
                model.made(found);
                model.perhaps = None;
                Ok(())
            }
            Err(error) => {
                model.perhaps = Some(all);
                Err(error)
            }
        }
    }

    /// Snapshots of one instant, perhaps beside changes of the first of the volumes.
    async fn snapshot(
        &mut self,
        store: &Store,
        names: &[String],
        beside: Option<&Volume>,
    ) -> Result<()> {
        let name = self.name("s");
        self.log(format!(
            "snapshot {name} of {names:?}, beside changes: {}",
            beside.is_some()
        ));
        let changes = match beside {
            Some(_) => self.apart(&names[0]),
            None => Vec::new(),
        };
        let mut group: BTreeMap<_, _> = names
            .iter()
            .map(|volume| {
                let name = match names.len() {
                    1 => name.clone(),
                    _ => format!("{name}-{volume}"),
                };
                (name, Content::of(&self.volumes[volume]))
            })
            .collect();
        let first = &names[0];
        let own = group.keys().next().unwrap().clone();
        for change in &changes {
            change.apply(&mut group.get_mut(&own).unwrap().after);
        }
        self.snapshots_perhaps.push(group);
        // Any of the changes may be in the snapshot.
        let before = self.volumes[first].now().clone();
        let volumes: Vec<_> = names.iter().map(String::as_str).collect();
        let new = of(&volumes, &name);
        let (made, changed) = match beside {
            Some(volume) => {
                let changing = self.make(first, volume, changes);
                let (made, changed) = tokio::join!(store.snapshot_volumes(new), changing);
                (made, changed)
            }
            None => (store.snapshot_volumes(new).await, Ok(())),
        };
        match made {
            Ok(_) => {
                let group = self.snapshots_perhaps.pop().unwrap();
                self.snapshots.extend(group);
                for name in names {
                    let model = self.volumes.get_mut(name).unwrap();
                    let at = model.states.iter().rposition(|state| *state == before);
                    match at.filter(|_| name == first) {
                        Some(at) => model.durable = model.durable.max(at),
                        None => model.flushed(),
                    }
                }
            }
            // As many as may be are pending.
            Err(Error::Limit(_)) => drop(self.snapshots_perhaps.pop()),
            Err(error) => return Err(error),
        }
        changed
    }

    async fn clone(&mut self, store: &Store, source: &str) -> Result<()> {
        let name = self.name("c");
        self.log(format!("clone {name} of {source}"));
        let model = Model::new(self.volumes[source].now().clone());
        self.volumes_perhaps.insert(name.clone(), model);
        let source = CloneSource::Volume(source.into());
        store.clone_volume(clone_of(source, &name)).await?;
        let model = self.volumes_perhaps.remove(&name).unwrap();
        self.volumes.insert(name, model);
        Ok(())
    }

    /// The work of one process, until it has done enough or cannot continue. `open` are the volumes
    /// that it holds open.
    async fn work(
        &mut self,
        machine: &Machine,
        store: &Store,
        open: &mut BTreeMap<String, Volume>,
        steps: usize,
    ) -> Result<()> {
        let mut held = match self.random.below(2) {
            0 => {
                let all = u32::try_from(limits::CHECKPOINTS_MAX).unwrap();
                store
                    .volumes()
                    .checkpoint_permits
                    .try_acquire_many(all)
                    .ok()
            }
            _ => None,
        };
        self.log(format!("snapshots are held up: {}", held.is_some()));
        self.opened.clear();
        self.look(store).await?;
        let mut may_reopen = true;
        for _ in 0..steps {
            let Some(name) = self.any().filter(|_| self.volumes.len() > 1) else {
                let name = self.name("v");
                let sectors = 8 * (20 + self.longest / BLOCK * 4) + self.random.below(3);
                self.log(format!("create {name} of {sectors} sectors"));
                let model = Model::new(vec![0; sectors * 512]);
                self.volumes_perhaps.insert(name.clone(), model);
                store
                    .create_volume(new_volume(&name, sectors * 512))
                    .await?;
                let model = self.volumes_perhaps.remove(&name).unwrap();
                self.volumes.insert(name, model);
                continue;
            };
            if !open.contains_key(&name) {
                self.log(format!("open {name}"));
                open.insert(name.clone(), self.open(store, &name).await?);
            }
            let volume = open[&name].clone();
            match self.random.below(30) {
                0..=7 => {
                    let change = self.change(&name);
                    self.log(format!("{name}: {}", told(&change)));
                    self.make(&name, &volume, vec![change]).await?;
                }
                8 | 9 => {
                    let changes = self.apart(&name);
                    let all: Vec<_> = changes.iter().map(told).collect();
                    self.log(format!("{name}: at once {}", all.join(", ")));
                    self.make(&name, &volume, changes).await?;
                }
                10 | 11 => {
                    self.log(format!("{name}: flush"));
                    volume.flush().await?;
                    self.volumes.get_mut(&name).unwrap().flushed();
                }
                // As with FUA.
                12 => {
                    let change = self.change(&name);
                    self.log(format!("{name}: {}, flushed", told(&change)));
                    self.make(&name, &volume, vec![change]).await?;
                    volume.flush().await?;
                    self.volumes.get_mut(&name).unwrap().flushed();
                }
                13..=15 if self.snapshots.len() < SNAPSHOTS_MAX => {
                    self.snapshot(store, slice::from_ref(&name), None).await?;
                    // A journal file with little in it, or nothing, behind the promised part.
                    if held.is_some() && self.random.below(3) == 0 {
                        let start = self.random.below(self.volumes[&name].now().len() / BLOCK);
                        let change = Change::Write(start * BLOCK, vec![1; BLOCK]);
                        self.log(format!("{name}: {}, and the power fails", told(&change)));
                        self.make(&name, &volume, vec![change]).await?;
                        self.is_over = true;
                        return Ok(());
                    }
                }
                16 if self.snapshots.len() < SNAPSHOTS_MAX => {
                    self.snapshot(store, &[name], Some(&volume)).await?;
                }
                17 if self.snapshots.len() < SNAPSHOTS_MAX => {
                    let names: Vec<_> = self.volumes.keys().take(2).cloned().collect();
                    for name in &names {
                        if !open.contains_key(name) {
                            open.insert(name.clone(), self.open(store, name).await?);
                        }
                    }
                    self.snapshot(store, &names, None).await?;
                }
                18 | 19 => {
                    self.log("for a while nothing is held up");
                    held = None;
                    for _ in 0..self.random.below(200) {
                        tokio::task::yield_now().await;
                    }
                }
                20 => {
                    self.log("all snapshots are waited for");
                    held = None;
                    for name in self.snapshots.keys() {
                        let id = store.snapshot(&name.as_str().into()).await?.id;
                        // The snapshots of volumes that are not open have not begun.
                        if store.snapshot_progress(id).is_some() {
                            store.completed_snapshot(id).await?;
                        }
                    }
                }
                21 if self.volumes.len() < VOLUMES_MAX => {
                    held = None;
                    self.clone(store, &name).await?;
                }
                22 => {
                    let model = self.volumes.get_mut(&name).unwrap();
                    let mut larger = model.now().clone();
                    larger.resize(larger.len() + 512 * (1 + self.random.below(12)), 0);
                    let len = larger.len() as u64;
                    model.perhaps = Some(larger.clone());
                    self.log(format!("{name}: grows to {len}"));
                    store.resize_volume(&name.as_str().into(), len).await?;
                    let model = self.volumes.get_mut(&name).unwrap();
                    model.perhaps = None;
                    // The snapshot is in the catalog, and leaves nothing in the journal.
                    model.states.push(larger);
                }
                23 => {
                    let mut group = BTreeMap::new();
                    for _ in 0..1 + self.random.below(3) {
                        group.extend(self.snapshots.pop_last());
                    }
                    if group.is_empty() {
                        continue;
                    }
                    let keys: Vec<_> = group.keys().map(|name| name.as_str().into()).collect();
                    self.log(format!("delete {keys:?}"));
                    may_reopen = false;
                    self.snapshots_perhaps.push(group);
                    for outcome in store.delete_snapshots(keys).await? {
                        outcome?;
                    }
                    self.snapshots_perhaps.pop();
                }
                // A cancelled snapshot may keep its volume open for a while. Once it is closed, it
                // takes nothing any more.
                24 if may_reopen => {
                    self.log(format!("{name}: closed and opened"));
                    held = None;
                    volume.close().await?;
                    self.volumes.get_mut(&name).unwrap().flushed();
                    open.remove(&name);
                    drop(volume);
                    for name in self.snapshots.keys() {
                        let id = store.snapshot(&name.as_str().into()).await?.id;
                        if store.snapshot_progress(id).is_some() {
                            store.completed_snapshot(id).await?;
                        }
                    }
                    for _ in 0..50 {
                        tokio::task::yield_now().await;
                    }
                }
                25 if held.is_some() => {
                    let nth = 1 + self.random.below(3) as u64;
                    self.log(format!("the disk is full at write {nth} from here"));
                    machine
                        .disk
                        .fail_write(nth, std::io::ErrorKind::StorageFull);
                    let changes = self.apart(&name);
                    self.make(&name, &volume, changes).await?;
                    machine
                        .disk
                        .fail_write(u64::MAX / 2, std::io::ErrorKind::StorageFull);
                }
                26 if self.volumes.len() > 2 => {
                    self.log(format!("delete {name}"));
                    let model = self.volumes.remove(&name).unwrap();
                    self.volumes_perhaps.insert(name.clone(), model);
                    let deleted = store.delete_volume(&name.as_str().into()).await;
                    match deleted {
                        Ok(_) => {
                            open.remove(&name);
                            self.volumes_perhaps.remove(&name);
                        }
                        Err(Error::HasPending { .. }) => {
                            let model = self.volumes_perhaps.remove(&name);
                            self.volumes.extend(model.map(|model| (name, model)));
                        }
                        Err(error) => return Err(error),
                    }
                }
                27 if self.random.below(6) == 0 => {
                    self.log("the next sync fails");
                    machine.disk.fail_sync(1);
                    self.sync_failed = true;
                    volume.flush().await?;
                    self.volumes.get_mut(&name).unwrap().flushed();
                }
                28 => {
                    self.log("the catalog log gets a checkpoint");
                    store.engine().checkpoint_log(0, 1).await?;
                }
                _ => {
                    let found = contents(&volume).await?;
                    assert!(
                        found == *self.volumes[&name].now(),
                        "{name} while it is open"
                    );
                }
            }
        }
        drop(held);
        Ok(())
    }

    /// One process, from its start to its end, and the state that the next one finds.
    fn process(&mut self, machine: Machine) -> Machine {
        // Some die before they do much, or recover from the one before.
        let limit = [5, 30, 120, 400][self.random.below(4)];
        let power_off_after = match self.random.below(4) {
            0 => None,
            _ => Some(1 + self.random.below(limit) as u64),
        };
        let closes = self.random.below(3) == 0;
        let is_cut = self.random.below(2) == 0;
        let steps = 2 + self.random.below(24);
        self.log(format!(
            "- a process of {steps} steps, {power_off_after:?} operations, closes: {closes}"
        ));
        if let Some(operations) = power_off_after {
            machine.disk.power_off_after(operations);
        }
        let ended = block_on(async {
            let (store, report) = machine.open().await?;
            assert_eq!(report.damage, []);
            let mut open = BTreeMap::new();
            self.work(&machine, &store, &mut open, steps).await?;
            if closes && !self.is_over {
                store.close().await?;
            }
            Ok::<_, Error>(())
        });
        let is_off = power_off_after.is_some_and(|last| machine.disk.operations() > last);
        match ended {
            Ok(()) if closes && !self.is_over => {
                for name in &self.opened {
                    if let Some(model) = self.volumes.get_mut(name) {
                        model.flushed();
                    }
                }
            }
            Ok(()) => {}
            Err(error) => {
                self.log(format!("it ends with {error}"));
                assert!(is_off || self.sync_failed, "{error}");
            }
        }
        let is_cut = is_cut | mem::take(&mut self.is_over);
        self.log(format!("the power fails: {is_cut}"));
        let all = self
            .volumes
            .values_mut()
            .chain(self.volumes_perhaps.values_mut());
        for model in all {
            model.may_be_older |= is_cut || self.sync_failed;
        }
        self.sync_failed = false;
        if is_cut {
            machine.crash(&mut self.random)
        } else {
            machine.kill(self.random.next())
        }
    }

    /// Checks that everything is there, however long it takes.
    fn check(&mut self, machine: &Machine) {
        self.log("- all is looked at");
        block_on(async {
            let (store, report) = machine.open().await.unwrap();
            assert_eq!(report.damage, []);
            self.look(&store).await.unwrap();
            let mut open = Vec::new();
            for name in self.volumes.keys().cloned().collect::<Vec<_>>() {
                open.push(self.open(&store, &name).await.unwrap());
            }
            store.resume_snapshots().await.unwrap();
            for (name, content) in &mut self.snapshots {
                let id = store.snapshot(&name.as_str().into()).await.unwrap().id;
                store.completed_snapshot(id).await.unwrap();
                let found = super::read(&store, name, 0, content.before.len())
                    .await
                    .unwrap();
                assert!(
                    is_mix(&content.before, &content.after, &found),
                    "snapshot {name}"
                );
                assert_holds(&store, name, &found).await;
                *content = Content {
                    before: found.clone(),
                    after: found,
                };
            }
            store.close().await.unwrap();
        });
    }
}

fn exists<R>(found: Result<R>) -> Result<bool> {
    match found {
        Ok(_) => Ok(true),
        Err(Error::NotFound { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

fn told(change: &Change) -> String {
    let blocks = |start: &usize, len: usize| {
        let end = start + len;
        format!(
            "{}+{}..{}+{}",
            start / BLOCK,
            start % BLOCK,
            end / BLOCK,
            end % BLOCK
        )
    };
    match change {
        Change::Write(start, bytes) => format!("write {}", blocks(start, bytes.len())),
        Change::Zeroes(start, len) => format!("zeroes {}", blocks(start, *len)),
        Change::Trim(start, len) => format!("trim {}", blocks(start, *len)),
    }
}

/// All of a volume, as long as the disk can be read.
async fn contents(volume: &Volume) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for piece in volume.read(0, volume.size_bytes() as usize).await? {
        piece.append_to(&mut bytes);
    }
    Ok(bytes)
}

fn round(seed: u64) {
    let mut world = World::new(seed);
    world.log(format!("VARVE_SEED={seed} VARVE_CRASH_ROUNDS=1"));
    let mut machine = Machine::new();
    for _ in 0..3 + world.random.below(6) {
        machine = world.process(machine);
        if world.random.below(3) == 0 {
            world.damage(&machine);
        }
        if world.random.below(4) == 0 {
            world.check(&machine);
        }
    }
    world.check(&machine);
    // The state that was found is durable.
    machine = machine.crash(&mut world.random);
    for model in world.volumes.values_mut() {
        model.may_be_older = true;
    }
    world.check(&machine);
}

#[test]
fn whatever_crashes_what_was_promised_is_there() {
    let rounds = std::env::var("VARVE_CRASH_ROUNDS");
    // The suite does the same each time; a request for more rounds gets other seeds.
    let (seed, rounds) = match &rounds {
        Ok(rounds) => (seed(), rounds.parse().unwrap()),
        Err(_) => (1, ROUNDS),
    };
    for number in 0..rounds {
        round(seed.wrapping_add(number));
    }
}
