//! Flipped bits in journals, where a witness proves the original.

use std::path::Path;

use super::{World, block_on, contents, model::is_mix};
use crate::{
    Error,
    format::names,
    io::Disk as _,
    tests::{machine::Machine, volume_data::BLOCK},
};

impl World {
    /// One bit of a volume's journal changes, on a copy of the disk: the content that a witness
    /// proves is there, or the volume is refused.
    pub(super) fn damage(&mut self, machine: &Machine) {
        let Some(name) = self.any() else { return };
        let model = &self.volumes[&name];
        if model.may_be_older || !model.is_witnessed {
            return;
        }
        let machine = machine.copy();
        block_on(async {
            let (store, _) = machine.open().await.unwrap();
            let record = store.volume(&name.as_str().into()).await.unwrap();
            let dir = names::volume(Path::new("/data"), record.id);
            let files = machine.disk.list(&dir).unwrap_or_default();
            let files = files.into_iter().map(|file| dir.join(file));
            let files: Vec<_> = files
                .map(|path| (machine.disk.contents(&path).unwrap(), path))
                .collect();
            // Most of a file was never written.
            let places = files.iter().flat_map(|(bytes, path)| {
                let blocks = bytes.chunks(BLOCK).enumerate();
                let written = blocks.filter(|(_, block)| block.iter().any(|byte| *byte != 0));
                written.map(move |(at, _)| (path, at * BLOCK))
            });
            let places: Vec<_> = places.collect();
            if places.is_empty() {
                return;
            }
            let (path, block) = places[self.random.below(places.len())];
            // Beginnings of descriptors are the sensitive places.
            let bytes = [40, BLOCK][self.random.below(2)];
            let offset = block + self.random.below(bytes);
            self.log(format!(
                "{name}: a bit of {} changes at {offset}",
                path.display()
            ));
            let mut bytes = machine.disk.contents(path).unwrap();
            bytes[offset] ^= 1 << self.random.below(8);
            machine.disk.put(path, &bytes).unwrap();
            let volume = match store.open_volume(&name.as_str().into()).await {
                Ok(volume) => volume,
                Err(Error::Damaged(_) | Error::Incompatible { .. }) => return,
                Err(error) => panic!("{error}"),
            };
            let model = &self.volumes[&name];
            model.find(&name, 0, &contents(&volume).await.unwrap());
            for (snapshot, content) in &self.snapshots {
                let record = store.snapshot(&snapshot.as_str().into()).await.unwrap();
                if record
                    .origin
                    .as_ref()
                    .is_some_and(|origin| origin.name == name)
                {
                    store.completed_snapshot(record.id).await.unwrap();
                    let len = content.before.len();
                    let found = crate::tests::read(&store, snapshot, 0, len).await.unwrap();
                    assert!(
                        is_mix(&content.before, &content.after, &found),
                        "{snapshot}"
                    );
                }
            }
        });
    }
}
