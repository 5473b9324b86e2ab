//! Images are imported, changed and imported again, and deleted in sets.

use std::path::{Path, PathBuf};

use varve_tests::{files, image, random::Random, snapctl::import_arguments};

use super::{
    store::{Store, crc_of},
    world::{World, count},
};

/// All importers import images with these seeds, again and again: content that a collection has
/// taken is needed again.
const SEEDS: u64 = 5;

/// The snapshots of one importer. Each group of snapshots with one number has a tag of its own.
struct Imports<'a> {
    world: &'a World,
    store: &'a Store,
    name: String,
    random: Random,
    file: Option<PathBuf>,
    next: u64,
    kept: Vec<(String, u64)>,
}

pub(super) fn actor<'a>(
    world: &'a World,
    store: &'a Store,
    (name, random): (String, Random),
) -> Box<dyn FnMut() + Send + 'a> {
    let mut imports = Imports {
        world,
        store,
        name,
        random,
        file: None,
        next: 0,
        kept: Vec::new(),
    };
    Box::new(move || imports.step())
}

impl Imports<'_> {
    fn step(&mut self) {
        let file = self.next_image();
        self.import(&file);
        self.file = Some(file);
        if self.kept.len() > self.world.scale.kept {
            self.delete_some();
        }
    }

    /// One of the common images, or the last image with some changes.
    fn next_image(&mut self) -> PathBuf {
        match self.file.take() {
            Some(file) if !self.random.one_in(4) => {
                let places = self.random.within(1..40);
                let places = u32::try_from(places).unwrap();
                image::change(&file, places, &mut self.random);
                file
            }
            _ => {
                let seed = self.random.within(0..SEEDS);
                let bytes = self.world.scale.image_bytes;
                image::make(&self.world.scratch, &self.name, bytes, seed)
            }
        }
    }

    fn import(&mut self, file: &Path) {
        let (number, counts) = (self.next, &self.world.counts);
        self.next += 1;
        let name = format!("{}-{number}", self.name);
        let group = number / 3;
        let mut arguments = import_arguments(file, &name);
        arguments.extend(["--tag".into(), self.tag(group).into()]);
        let imported = self.store.change(arguments);
        if imported.is_err() {
            count(&counts.cut_off, 1);
        }
        let there = self.store.keep(&name, crc_of(file), imported.is_ok());
        if there.is_some() {
            self.kept.push((name, group));
            count(&counts.imports, 1);
            count(&counts.imported_bytes, files::len(file));
        }
    }

    fn tag(&self, group: u64) -> String {
        format!("group={}-{group}", self.name)
    }

    /// Deletes a random set, or the snapshots with a tag.
    fn delete_some(&mut self) {
        let one = self.random.index(self.kept.len());
        let group = self.kept[one].1;
        let by_tag = self.random.one_in(2);
        let is_chosen = |it: &(String, u64)| match by_tag {
            true => it.1 == group,
            false => self.random.one_in(2),
        };
        let (gone, kept): (Vec<_>, Vec<_>) = self.kept.drain(..).partition(is_chosen);
        self.kept = kept;
        let names: Vec<_> = gone.iter().map(|it| it.0.clone()).collect();
        if names.is_empty() {
            return;
        }
        let tag = self.tag(group);
        let by = match by_tag {
            true => vec!["--tag", &tag],
            false => names.iter().map(String::as_str).collect(),
        };
        self.store.delete(&names, &by, &self.world.counts);
        let is_there = |it: &(String, u64)| self.store.model.has(&it.0);
        self.kept.extend(gone.into_iter().filter(is_there));
    }
}
