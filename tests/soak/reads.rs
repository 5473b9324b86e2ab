//! Reads whole snapshots, while they may be deleted.

use std::{thread, time::Duration};

use varve_tests::{random::Random, snapctl::exit};

use super::{
    store::{CutOff, Store},
    world::{World, count},
};

pub(super) fn actor<'a>(
    world: &'a World,
    store: &'a Store,
    (name, mut random): (String, Random),
) -> Box<dyn FnMut() + Send + 'a> {
    let file = world.scratch.join(name);
    Box::new(move || {
        let Some((name, content)) = store.model.any(&mut random) else {
            thread::sleep(Duration::from_millis(20));
            return;
        };
        let crc = match random.within(0..3) {
            0 => store.export(&name, &file),
            1 => {
                let export = format!("snapshot/{name}");
                let read = store.read(&export, content.bytes);
                read.map(|it| it.map(|content| crc32fast::hash(&content)))
            }
            _ => verify(store, &name).map(|is_there| is_there.then_some(content.crc)),
        };
        match crc {
            Ok(Some(crc)) => {
                assert_eq!(crc, content.crc, "the content of {name}: {content:?}");
                count(&world.counts.reads, 1);
                count(&world.counts.read_bytes, content.bytes);
            }
            Ok(None) => assert!(!store.model.has(&name), "{name} is not found"),
            Err(CutOff) => count(&world.counts.cut_off, 1),
        }
    })
}

/// Verifies it. Returns true if it exists.
fn verify(store: &Store, name: &str) -> Result<bool, CutOff> {
    let finished = store.ask(["snapshot", "verify", name])?;
    if finished.status.code() == Some(exit::NOT_FOUND) {
        return Ok(false);
    }
    finished.ok();
    Ok(true)
}
