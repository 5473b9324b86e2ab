//! Snapshots of one store are copied to the other, even while they are deleted there.

use std::{thread, time::Duration};

use serde_json::Value;
use varve_tests::{
    random::Random,
    snapctl::{exit, text},
};

use super::{
    store::Store,
    world::{World, count},
};

struct Copies<'a> {
    world: &'a World,
    there: &'a Store,
    here: &'a Store,
    name: String,
    random: Random,
    next: u64,
    kept: Vec<String>,
}

pub(super) fn actor<'a>(
    world: &'a World,
    there: &'a Store,
    here: &'a Store,
    (name, random): (String, Random),
) -> Box<dyn FnMut() + Send + 'a> {
    let mut copies = Copies {
        world,
        there,
        here,
        name,
        random,
        next: 0,
        kept: Vec::new(),
    };
    Box::new(move || copies.step())
}

impl Copies<'_> {
    fn step(&mut self) {
        let Some((source, content)) = self.there.model.any(&mut self.random) else {
            thread::sleep(Duration::from_millis(20));
            return;
        };
        let name = format!("{}-{}", self.name, self.next);
        self.next += 1;
        if self.copy(&source, &name) {
            let root = self.here.keep(&name, content.crc, true);
            assert_eq!(root, Some(content.root), "{name}, of {source}");
            self.kept.push(name);
            count(&self.world.counts.copies, 1);
        }
        if self.kept.len() > self.world.scale.kept {
            let index = self.random.index(self.kept.len());
            let gone = self.kept.swap_remove(index);
            if !self.here.delete_one(&gone, &self.world.counts) {
                self.kept.push(gone);
            }
        }
    }

    /// Returns true if the snapshot exists in the end.
    fn copy(&mut self, source: &str, name: &str) -> bool {
        let from = self.there.endpoint();
        // Replaces its tag at the source, by which other actors delete it there.
        let tag = format!("group={name}");
        let options = ["--from", &from, "--name", name, "--tag", &tag, "--wait"];
        let arguments = ["copy", "create", source].into_iter().chain(options);
        // An unreachable source has the same exit code as an unreachable daemon.
        let (here, there) = (self.here.up(), self.there.up());
        let finished = self.here.snapctl().run(arguments);
        if finished.status.success() {
            return true;
        }
        if finished.status.code() == Some(exit::NOT_FOUND) {
            assert!(!self.there.model.has(source), "{finished:?}");
            return false;
        }
        let is_cut_off = self.here.has_ended(here) || self.there.has_ended(there);
        assert!(is_cut_off, "{finished:?}");
        count(&self.world.counts.cut_off, 1);
        match self.ended(name) {
            None => false,
            Some(copy) if copy["state"] == "completed" => true,
            Some(copy) => {
                assert_eq!(copy["last_error_kind"], "not_found", "{copy}");
                assert!(!self.there.model.has(source), "{copy}");
                false
            }
        }
    }

    /// The copy with this name when it has ended, if it had begun: the daemon continues it.
    fn ended(&self, name: &str) -> Option<Value> {
        loop {
            let list = self.here.tell(["copy", "list"]);
            let mut copies = list["copies"].as_array().unwrap().iter();
            let copy = copies.find(|copy| text(copy, "name") == name)?;
            if matches!(&*text(copy, "state"), "completed" | "failed" | "cancelled") {
                return Some(copy.clone());
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}
