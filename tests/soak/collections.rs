//! Collections, again and again, and looks at the space.

use varve_tests::{
    random::Random,
    snapctl::{exit, number},
};

use super::{
    store::{CutOff, Store},
    world::{Counts, World, count},
};

pub(super) fn actor<'a>(
    world: &'a World,
    store: &'a Store,
    (_, mut random): (String, Random),
) -> Box<dyn FnMut() + Send + 'a> {
    Box::new(move || {
        let done = match random.within(0..8) {
            0 => look(store, &["du"]),
            1 => look(store, &["gc", "plan", "--dead", "1"]),
            2 => estimate(store, &mut random),
            3 => stop(store, &world.counts, &mut random),
            _ => run(store, &world.counts, &mut random),
        };
        if done.is_err() {
            count(&world.counts.cut_off, 1);
        }
    })
}

fn arguments(random: &mut Random) -> [&'static str; 8] {
    let dead = ["1", "10", "40"][random.index(3)];
    let rate = ["none", "400M", "60M"][random.index(3)];
    [
        "--output", "json", "gc", "run", "--dead", dead, "--rate", rate,
    ]
}

fn run(store: &Store, counts: &Counts, random: &mut Random) -> Result<(), CutOff> {
    let finished = store.ask(arguments(random))?;
    // The daemon collects by itself, too.
    if finished.status.code() == Some(exit::CONFLICT) {
        return Ok(());
    }
    let finished = finished.success();
    let report = serde_json::from_slice(&finished.stdout).unwrap();
    count(&counts.collections, 1);
    count(&counts.removed_packs, number(&report, "packs_removed"));
    let returned = number(&report, "returned_bytes");
    count(&counts.returned_bytes, returned);
    Ok(())
}

/// Begins a collection, and stops it.
fn stop(store: &Store, counts: &Counts, random: &mut Random) -> Result<(), CutOff> {
    let epoch = store.up();
    let running = store.snapctl().start(arguments(random));
    store.ask(["gc", "stop"])?.ok();
    let finished = store.judged(epoch, running.wait())?;
    if finished.status.code() != Some(exit::CONFLICT) {
        finished.ok();
        count(&counts.collections, 1);
    }
    Ok(())
}

fn estimate(store: &Store, random: &mut Random) -> Result<(), CutOff> {
    let Some((name, _)) = store.model.any(random) else {
        return Ok(());
    };
    look(store, &["snapshot", "delete", "--dry-run", &name])
}

/// A record may be deleted during a question, and a collection ends long ones.
fn look(store: &Store, arguments: &[&str]) -> Result<(), CutOff> {
    let finished = store.ask(arguments)?;
    if ![Some(exit::NOT_FOUND), Some(exit::CONFLICT)].contains(&finished.status.code()) {
        finished.ok();
    }
    Ok(())
}
