//! A volume under `fio --verify`, also after its daemon was killed, and its snapshots and clones.
//!
//! fio puts a checksum into each block. So any state of the volume that it has filled once can be
//! verified: old blocks and new ones, but no others.

use std::ops::Range;

use varve_tests::{
    process::{Running, command, start},
    programs::tool,
    random::Random,
};

use super::{
    MIB,
    store::{CutOff, Store, until_done},
    world::{World, count},
};

struct Disk<'a> {
    world: &'a World,
    store: &'a Store,
    name: String,
    random: Random,
    is_filled: bool,
    next: u64,
    kept: Vec<String>,
}

pub(super) fn actor<'a>(
    world: &'a World,
    store: &'a Store,
    (name, random): (String, Random),
) -> Box<dyn FnMut() + Send + 'a> {
    let mut disk = Disk {
        world,
        store,
        name,
        random,
        is_filled: false,
        next: 0,
        kept: Vec::new(),
    };
    Box::new(move || {
        if disk.step().is_err() {
            count(&world.counts.cut_off, 1);
        }
    })
}

impl Disk<'_> {
    fn step(&mut self) -> Result<(), CutOff> {
        let volume = format!("volume/{}", self.name);
        let all = 0..self.world.scale.disk_bytes;
        if !self.is_filled {
            let bytes = all.end.to_string();
            let arguments = ["volume", "create", &self.name, "--size", &bytes];
            self.store.make_volume(&self.name, &arguments);
            self.write(&volume, all, |_| ()).0?;
            self.is_filled = true;
            return Ok(());
        }
        let part = self.part();
        match self.random.within(0..4) {
            0 => self.verify(&volume),
            1 => self.write(&volume, part, |_| ()).0,
            _ => {
                let name = format!("{}-{}", self.name, self.next);
                self.next += 1;
                let snapshot = |disk: &mut Self| {
                    let waits = disk.random.one_in(2);
                    let counts = &disk.world.counts;
                    disk.store.snapshot(&disk.name, &name, waits, counts)
                };
                let (written, is_certain) = self.write(&volume, part, snapshot);
                self.take_over(name, is_certain);
                written
            }
        }
    }

    /// Some of the volume.
    fn part(&mut self) -> Range<u64> {
        let parts = self.world.scale.disk_bytes / MIB;
        let start = self.random.within(0..parts);
        let end = self.random.within(start..parts) + 1;
        start * MIB..end * MIB
    }

    /// Writes each block of a range once, in any order, while something else is done, and reads
    /// them again.
    fn write<T>(
        &mut self,
        export: &str,
        range: Range<u64>,
        meanwhile: impl FnOnce(&mut Self) -> T,
    ) -> (Result<(), CutOff>, T) {
        let epoch = self.store.up();
        let running = self.start(export, "randwrite", range);
        let done = meanwhile(self);
        (self.ended(epoch, running), done)
    }

    /// Reads all blocks of an export and checks them.
    fn verify(&mut self, export: &str) -> Result<(), CutOff> {
        let epoch = self.store.up();
        let running = self.start(export, "read", 0..self.world.scale.disk_bytes);
        self.ended(epoch, running)
    }

    fn start(&mut self, export: &str, does: &str, range: Range<u64>) -> Running {
        let arguments = [
            format!("--name={}", self.name),
            "--ioengine=nbd".to_owned(),
            format!("--uri={}", self.store.uri(export)),
            format!("--rw={does}"),
            "--bsrange=4k-64k".to_owned(),
            "--iodepth=8".to_owned(),
            format!("--offset={}", range.start),
            format!("--size={}", range.end - range.start),
            format!("--randseed={}", self.random.within(1..1 << 32)),
            "--verify=crc32c".to_owned(),
            "--verify_interval=4096".to_owned(),
            "--verify_fatal=1".to_owned(),
            "--verify_state_save=0".to_owned(),
        ];
        start(command(tool("fio"), arguments))
    }

    fn ended(&self, epoch: u64, running: Running) -> Result<(), CutOff> {
        let finished = running.wait();
        if finished.stderr.contains("verify failed") {
            panic!("wrong bytes: {finished:?}");
        }
        if !finished.status.success() {
            assert!(self.store.has_ended(epoch), "{finished:?}");
            return Err(CutOff);
        }
        count(&self.world.counts.fio_runs, 1);
        Ok(())
    }

    /// Checks a snapshot that was taken while fio wrote, and clones it now and then.
    fn take_over(&mut self, name: String, is_certain: bool) {
        let (store, counts) = (self.store, &self.world.counts);
        if store.completed(&name).is_none() {
            assert!(!is_certain, "{name} was acknowledged, and is gone");
            return;
        }
        let export = format!("snapshot/{name}");
        until_done(|| self.verify(&export));
        let crc = store.crc(&name, &self.world.scratch.join(&self.name));
        store.keep(&name, crc, is_certain);
        count(&counts.snapshots, 1);
        if self.random.one_in(3) {
            self.clone(&export);
        }
        self.kept.push(name);
        if self.kept.len() > self.world.scale.kept {
            let index = self.random.index(self.kept.len());
            let gone = self.kept.swap_remove(index);
            if !store.delete_one(&gone, counts) {
                self.kept.push(gone);
            }
        }
    }

    /// Writes to a clone.
    fn clone(&mut self, source: &str) {
        let name = format!("{}-clone", self.name);
        let arguments = ["volume", "clone", source, "--name", &name];
        self.store.make_volume(&name, &arguments);
        let export = format!("volume/{name}");
        until_done(|| self.verify(&export));
        let part = self.part();
        until_done(|| self.write(&export, part.clone(), |_| ()).0);
        self.store.delete_volume(&name);
        count(&self.world.counts.clones, 1);
    }
}
