//! Everything at one time, on two stores whose daemons are killed again and again.
//!
//! Everything that a daemon has acknowledged is there after its end, unchanged. At the end all
//! content is read and verified, the sums of the stores agree, indexes are made anew, and with
//! everything deleted next to nothing is left.
//!
//! - `world`: the stores, and the lives of their daemons. `store`: questions to a daemon.
//! - `model`: the snapshots that a store has, with the sums of their content.
//! - `imports`, `copies`: snapshots from files, and from the other store.
//! - `fio`: volumes under `fio --verify`. `numbers`: volumes whose writer numbers its blocks, so
//!   that the content of each snapshot is known.
//! - `collections`: garbage collections, and looks at the space. `reads`: snapshots are read.
//! - `ending`: the checks at the end.
//!
//! [`MINUTES`] sets the duration. Without it, the test is short: it ends after some daemons were
//! killed.

mod collections;
mod copies;
mod ending;
mod fio;
mod imports;
mod model;
mod numbers;
mod reads;
mod store;
mod world;

use std::{
    env, thread,
    time::{Duration, Instant},
};

use varve_tests::random::Random;

use self::world::{Life, Scale, World};

const MIB: u64 = 1 << 20;

/// The variable that sets the duration.
const MINUTES: &str = "VARVE_SOAK_MINUTES";

/// The end of the test.
#[derive(Debug, Clone, Copy)]
enum Until {
    /// After this many ends of daemons.
    Ends(u64),
    /// At this time.
    Time(Instant),
}

impl Until {
    fn has_come(self, ends: u64) -> bool {
        match self {
            Self::Ends(most) => ends >= most,
            Self::Time(end) => Instant::now() >= end,
        }
    }
}

/// Duration and sizes.
fn scale() -> (Until, Scale) {
    let Some(minutes) = env::var_os(MINUTES) else {
        let scale = Scale {
            image_bytes: 6 * MIB,
            disk_bytes: 4 * MIB,
            kept: 4,
            life_ms: 150..600,
        };
        return (Until::Ends(4), scale);
    };
    let minutes = minutes.to_str().and_then(|it| it.parse().ok());
    let minutes = minutes.unwrap_or_else(|| panic!("{MINUTES} is not a number of minutes"));
    let scale = Scale {
        image_bytes: 48 * MIB,
        disk_bytes: 32 * MIB,
        kept: 8,
        life_ms: 1000..20_000,
    };
    (
        Until::Time(Instant::now() + Duration::from_mins(minutes)),
        scale,
    )
}

#[test]
fn whatever_runs_beside_whatever_what_was_acknowledged_is_there() {
    let mut random = Random::of_test("soak");
    let (until, scale) = scale();
    let world = World::new(scale);
    let mut lives = [0, 1].map(|index| Life::begin(&world.stores[index], &mut random));
    thread::scope(|scope| {
        let world = &world;
        // If this thread fails, ends the others, too.
        let _failing = world.failing();
        let mut actors: Vec<Box<dyn FnMut() + Send>> = Vec::new();
        for (store, other) in [(0, 1), (1, 0)] {
            let mut own = |what: &str| {
                let name = format!("{what}-{}", ["a", "b"][store]);
                (name, Random::seeded(random.next_u64()))
            };
            let [there, store] = [other, store].map(|index| &world.stores[index]);
            for what in ["import-a", "import-b"] {
                actors.push(imports::actor(world, store, own(what)));
            }
            actors.push(copies::actor(world, there, store, own("copy")));
            actors.push(fio::actor(world, store, own("fio")));
            actors.push(numbers::actor(world, store, own("numbers")));
            actors.push(collections::actor(world, store, own("gc")));
            actors.push(reads::actor(world, store, own("read")));
        }
        for mut actor in actors {
            scope.spawn(move || {
                let _failing = world.failing();
                while !world.is_over() {
                    actor();
                }
            });
        }
        while !until.has_come(world.counts.ends()) && !world.is_over() {
            world.end_lives(&mut lives, &mut random);
        }
        world.end();
    });
    for (life, store) in lives.iter_mut().zip(&world.stores) {
        ending::check(&world, store, life);
    }
    println!("soak: {}", world.counts);
}
