//! Two stores, and the lives of their daemons.

use std::{
    fmt,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use varve_tests::{
    daemon::{Options, Varved},
    random::Random,
    scratch::Scratch,
};

use super::{MIB, store::Store};

/// Sizes and counts.
#[derive(Debug)]
pub(super) struct Scale {
    /// Length of each imported image.
    pub(super) image_bytes: u64,
    /// Size of each volume.
    pub(super) disk_bytes: u64,
    /// Snapshots that each actor keeps.
    pub(super) kept: usize,
    /// Milliseconds between the ends of daemons.
    pub(super) life_ms: Range<u64>,
}

/// Counts of all work.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) imports: AtomicU64,
    pub(super) imported_bytes: AtomicU64,
    pub(super) snapshots: AtomicU64,
    pub(super) clones: AtomicU64,
    pub(super) copies: AtomicU64,
    pub(super) deletions: AtomicU64,
    pub(super) reads: AtomicU64,
    pub(super) read_bytes: AtomicU64,
    pub(super) written_blocks: AtomicU64,
    pub(super) fio_runs: AtomicU64,
    pub(super) collections: AtomicU64,
    pub(super) removed_packs: AtomicU64,
    pub(super) returned_bytes: AtomicU64,
    pub(super) kills: AtomicU64,
    pub(super) stops: AtomicU64,
    pub(super) cut_off: AtomicU64,
}

/// Adds to a count.
pub(super) fn count(count: &AtomicU64, more: u64) {
    count.fetch_add(more, Ordering::Relaxed);
}

impl Counts {
    /// Ends of daemons.
    pub(super) fn ends(&self) -> u64 {
        [&self.kills, &self.stops]
            .map(|it| it.load(Ordering::Relaxed))
            .iter()
            .sum()
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |count: &AtomicU64| count.load(Ordering::Relaxed) / MIB;
        let number = |count: &AtomicU64| count.load(Ordering::Relaxed);
        write!(
            f,
            "{} imports of {} MiB, {} snapshots of volumes, {} clones, {} copies, {} deletions; \
             {} reads of {} MiB; {} runs of fio, {} numbered blocks; {} collections that removed \
             {} packs and returned {} MiB; {} kills, {} stops, {} commands cut off",
            number(&self.imports),
            mib(&self.imported_bytes),
            number(&self.snapshots),
            number(&self.clones),
            number(&self.copies),
            number(&self.deletions),
            number(&self.reads),
            mib(&self.read_bytes),
            number(&self.fio_runs),
            number(&self.written_blocks),
            number(&self.collections),
            number(&self.removed_packs),
            mib(&self.returned_bytes),
            number(&self.kills),
            number(&self.stops),
            number(&self.cut_off),
        )
    }
}

/// The stores, and what all actors share.
#[derive(Debug)]
pub(super) struct World {
    pub(super) stores: [Store; 2],
    pub(super) scale: Scale,
    pub(super) counts: Counts,
    /// Parent of the data directories, and a place for files.
    pub(super) scratch: Scratch,
    is_over: AtomicBool,
    has_failed: Arc<AtomicBool>,
}

impl World {
    pub(super) fn new(scale: Scale) -> Self {
        let scratch = Scratch::new();
        let has_failed = Arc::<AtomicBool>::default();
        let stores = ["a", "b"].map(|name| Store::new(scratch.join(name), &has_failed));
        Self {
            stores,
            scale,
            counts: Counts::default(),
            scratch,
            is_over: AtomicBool::new(false),
            has_failed,
        }
    }

    /// Returns true if no actor may begin anything.
    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed) || self.has_failed.load(Ordering::Relaxed)
    }

    /// Asks the actors to end.
    pub(super) fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    /// Ends everything if the thread that holds this fails.
    pub(super) fn failing(&self) -> Failing<'_> {
        Failing(&self.has_failed)
    }

    /// Waits, ends the life of one daemon or of both, begins the next life, and checks for
    /// everything acknowledged.
    pub(super) fn end_lives(&self, lives: &mut [Life; 2], random: &mut Random) {
        self.sleep(random.within(self.scale.life_ms.clone()));
        let both = random.one_in(5);
        let kills = !random.one_in(6);
        let first = random.index(2);
        for (index, life) in lives.iter_mut().enumerate() {
            if both || index == first {
                life.end(&self.stores[index], kills);
                let ends = match kills {
                    true => &self.counts.kills,
                    false => &self.counts.stops,
                };
                count(ends, 1);
            }
        }
        for (life, store) in lives.iter_mut().zip(&self.stores) {
            if !store.is_up() {
                *life = Life::begin(store, random);
            }
        }
        for store in &self.stores {
            store.check_names();
        }
    }

    /// Waits, unless the test ends before.
    fn sleep(&self, ms: u64) {
        for _ in 0..ms.div_ceil(20) {
            if self.is_over() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Reports a failure.
pub(super) struct Failing<'a>(&'a AtomicBool);

impl Drop for Failing<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

/// The life of a daemon.
#[derive(Debug)]
pub(super) struct Life(Varved);

impl Life {
    /// Starts a daemon, with some settings that differ from life to life.
    pub(super) fn begin(store: &Store, random: &mut Random) -> Self {
        let every = ["1s", "3s", "off"][random.index(3)];
        let dead = ["1", "20", "40"][random.index(3)];
        let codec = ["zstd", "lz4", "none"][random.index(3)];
        let options = Options::new(&store.data_dir)
            .env("VARVE_GC_EVERY", every)
            .env("VARVE_GC_REWRITE_DEAD", dead)
            .env("VARVE_COMPRESSION", codec)
            // Volumes are checkpointed often.
            .env("VARVE_JOURNAL_BYTES_MAX", (16 * MIB).to_string());
        let life = Self(options.start());
        store.is_served();
        life
    }

    /// Starts a daemon that collects only when it is asked to.
    pub(super) fn quiet(store: &Store) -> Self {
        let options = Options::new(&store.data_dir).env("VARVE_GC_EVERY", "off");
        let life = Self(options.start());
        store.is_served();
        life
    }

    /// Kills it, or asks it to stop.
    pub(super) fn end(&mut self, store: &Store, kills: bool) {
        store.is_left();
        match kills {
            true => self.0.kill(),
            false => self.0.stop(),
        }
        let log = self.0.log();
        let bad = ["panicked", "poisoned", " ERROR "];
        let line = log
            .lines()
            .find(|line| bad.iter().any(|bad| line.contains(bad)));
        assert!(line.is_none(), "{line:?}");
    }
}
