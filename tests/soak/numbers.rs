//! A volume whose writer numbers its blocks.
//!
//! Each place of the volume gets higher numbers with time. So the possible content of each snapshot
//! is known: at each place at least the number acknowledged before the command began, and at most
//! the number sent before it ended. After a kill the same holds for the volume.

use std::{collections::HashMap, io, sync::Mutex, thread};

use varve_tests::{nbd::Peer, random::Random};

use super::{
    store::{CutOff, Store, until_done},
    world::{World, count},
};

const BLOCK_BYTES: u64 = 4096;
/// Writes under way.
const DEPTH: usize = 16;

/// A place: the number acknowledged last, and the one sent last.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    acknowledged: u64,
    sent: u64,
}

struct Disk<'a> {
    world: &'a World,
    store: &'a Store,
    name: String,
    random: Random,
    places: Mutex<Vec<Place>>,
    next_number: u64,
    /// False after the daemon ended.
    is_checked: bool,
    next: u64,
    kept: Vec<String>,
}

/// A block that does not compress and begins with its number and its place; zeros for 0.
fn block_of(number: u64, index: usize) -> Vec<u8> {
    let mut block = vec![0; 4096];
    if number > 0 {
        Random::seeded(number).fill(&mut block);
        block[..8].copy_from_slice(&number.to_le_bytes());
        block[8..16].copy_from_slice(&(index as u64).to_le_bytes());
    }
    block
}

pub(super) fn actor<'a>(
    world: &'a World,
    store: &'a Store,
    (name, random): (String, Random),
) -> Box<dyn FnMut() + Send + 'a> {
    let places = world.scale.disk_bytes / BLOCK_BYTES;
    let mut disk = Disk {
        world,
        store,
        name,
        random,
        places: Mutex::new(vec![Place::default(); usize::try_from(places).unwrap()]),
        next_number: 1,
        is_checked: true,
        next: 0,
        kept: Vec::new(),
    };
    let bytes = world.scale.disk_bytes.to_string();
    let mut is_made = false;
    Box::new(move || {
        if !is_made {
            let arguments = ["volume", "create", &disk.name, "--size", &bytes];
            store.make_volume(&disk.name, &arguments);
            is_made = true;
        }
        if disk.step().is_err() {
            disk.is_checked = false;
            count(&world.counts.cut_off, 1);
        }
    })
}

impl Disk<'_> {
    fn step(&mut self) -> Result<(), CutOff> {
        if !self.is_checked {
            self.check_after_end()?;
            self.is_checked = true;
        }
        let name = format!("{}-{}", self.name, self.next);
        self.next += 1;
        let (before, was_written, is_certain) = self.write_and_snapshot(&name);
        let after = self.places.lock().unwrap().clone();
        let export = format!("snapshot/{name}");
        if self.store.completed(&name).is_some() {
            let content = until_done(|| self.store.read(&export, self.world.scale.disk_bytes));
            let content = content.unwrap_or_else(|| panic!("{name} was there, and is gone"));
            check(&name, &content, &before, &after);
            let crc = crc32fast::hash(&content);
            self.store.keep(&name, crc, is_certain);
            count(&self.world.counts.snapshots, 1);
            if self.random.one_in(4) {
                self.clone_is_the_same(&export, &content);
            }
            if self.random.one_in(8) {
                self.clone_volume();
            }
            self.kept.push(name);
        } else {
            assert!(!is_certain, "{name} was acknowledged, and is gone");
        }
        if self.kept.len() > self.world.scale.kept {
            let index = self.random.index(self.kept.len());
            let gone = self.kept.swap_remove(index);
            if !self.store.delete_one(&gone, &self.world.counts) {
                self.kept.push(gone);
            }
        }
        was_written
    }

    /// Writes, and takes a snapshot meanwhile. Returns the places before the snapshot, whether all
    /// was written, and whether the snapshot was acknowledged.
    fn write_and_snapshot(&mut self, name: &str) -> (Vec<Place>, Result<(), CutOff>, bool) {
        let blocks = self.random.within(64..2000);
        let mut random = Random::seeded(self.random.next_u64());
        let waits = self.random.one_in(2);
        let written_first = self.random.within(0..blocks);
        let mut numbers = self.next_number;
        self.next_number += blocks;
        // Write some blocks first: the snapshot must have them.
        let first = self.write(written_first, &mut numbers, &mut random);
        let before = self.places.lock().unwrap().clone();
        let (disk, counts) = (&*self, &self.world.counts);
        let (written, is_certain) = thread::scope(|scope| {
            let rest = blocks - written_first;
            let writer = scope.spawn(move || disk.write(rest, &mut numbers, &mut random));
            let is_certain = disk.store.snapshot(&disk.name, name, waits, counts);
            (writer.join().unwrap(), is_certain)
        });
        (before, first.and(written), is_certain)
    }

    /// Writes blocks to random places, many at a time.
    fn write(&self, blocks: u64, next_number: &mut u64, random: &mut Random) -> Result<(), CutOff> {
        let epoch = self.store.up();
        let export = format!("volume/{}", self.name);
        let peer = self.store.peer(&export)?;
        let mut peer = peer.unwrap_or_else(|| panic!("{export} is not served"));
        let written = self.write_to(&mut peer, blocks, next_number, random);
        match written {
            Ok(0) => {
                count(&self.world.counts.written_blocks, blocks);
                Ok(())
            }
            _ if self.store.has_ended(epoch) => Err(CutOff),
            failed => panic!("a daemon that runs does not write to {export}: {failed:?}"),
        }
    }

    /// Returns the error of a reply; 0: none.
    fn write_to(
        &self,
        peer: &mut Peer,
        blocks: u64,
        next_number: &mut u64,
        random: &mut Random,
    ) -> io::Result<u32> {
        let end = *next_number + blocks;
        let mut under_way = HashMap::new();
        while *next_number < end || !under_way.is_empty() {
            while *next_number < end && under_way.len() < DEPTH {
                let index = random.index(self.places.lock().unwrap().len());
                if under_way.values().any(|it| *it == index) {
                    continue;
                }
                let number = *next_number;
                *next_number += 1;
                self.places.lock().unwrap()[index].sent = number;
                under_way.insert(number, index);
                peer.send_write(number, index as u64 * BLOCK_BYTES, &block_of(number, index))?;
            }
            let (number, reply) = peer.receive_any_reply()?;
            if reply.error != 0 {
                return Ok(reply.error);
            }
            let index = under_way.remove(&number);
            let index = index.unwrap_or_else(|| panic!("a reply to {number}, which was not sent"));
            self.places.lock().unwrap()[index].acknowledged = number;
        }
        match random.one_in(2) {
            true => peer.flush(),
            false => Ok(0),
        }
    }

    /// Checks the volume after the end of a daemon, and continues from its content.
    fn check_after_end(&mut self) -> Result<(), CutOff> {
        let export = format!("volume/{}", self.name);
        let content = self.store.read(&export, self.world.scale.disk_bytes)?;
        let content = content.unwrap_or_else(|| panic!("{export} is not served"));
        let mut places = self.places.lock().unwrap();
        check(&self.name, &content, &places, &places);
        for (place, block) in places.iter_mut().zip(content.chunks(4096)) {
            let number = number_of(block);
            *place = Place {
                acknowledged: number,
                sent: number,
            };
        }
        Ok(())
    }

    /// Clones the volume itself, while nobody writes to it.
    fn clone_volume(&self) {
        let export = format!("volume/{}", self.name);
        let bytes = self.world.scale.disk_bytes;
        let content = until_done(|| self.store.read(&export, bytes));
        let content = content.unwrap_or_else(|| panic!("{export} is not served"));
        self.clone_is_the_same(&export, &content);
    }

    fn clone_is_the_same(&self, source: &str, content: &[u8]) {
        let name = format!("{}-clone", self.name);
        let arguments = ["volume", "clone", source, "--name", &name];
        self.store.make_volume(&name, &arguments);
        let export = format!("volume/{name}");
        let found = until_done(|| self.store.read(&export, content.len() as u64));
        assert!(
            found.as_deref() == Some(content),
            "the clone of {source} differs from it"
        );
        self.store.delete_volume(&name);
        count(&self.world.counts.clones, 1);
    }
}

fn number_of(block: &[u8]) -> u64 {
    u64::from_le_bytes(block[..8].try_into().unwrap())
}

/// Asserts that each place has at least the number acknowledged before, and at most the number sent
/// until after.
fn check(what: &str, content: &[u8], before: &[Place], after: &[Place]) {
    assert_eq!(content.len(), before.len() * 4096, "{what}");
    for (index, block) in content.chunks(4096).enumerate() {
        let number = number_of(block);
        assert!(
            block == block_of(number, index),
            "{what}: block {index} is not what was written as {number}"
        );
        let (least, most) = (before[index].acknowledged, after[index].sent);
        assert!(
            (least..=most).contains(&number),
            "{what}: block {index} is {number}, from {least} to {most} was written"
        );
    }
}
