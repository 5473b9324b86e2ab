//! The checks at the end: all content, all sums, a new index, and an empty store.

use std::{fs::File, os::unix::fs::FileExt as _, path::Path};

use varve_store::format::{
    PackKind,
    pack::{PACK_HEADER_BYTES, TRAILER_BYTES, Trailer},
};
use varve_tests::{
    data_dir::packs,
    process::{command, run},
    programs::varved,
    snapctl::{number, text},
};

use super::{
    MIB,
    store::Store,
    world::{Life, World},
};

/// Fewer dead bytes than this are not worth a rewrite.
const RETURN_BYTES_MIN: u64 = 64 << 10;
/// The most collections in a row that find something: copies of one may be merged by the next.
const COLLECTIONS_MAX: u32 = 8;

/// Checks a store, then deletes everything in it.
pub(super) fn check(world: &World, store: &Store, life: &mut Life) {
    life.end(store, false);
    *life = Life::quiet(store);
    check_content(world, store);
    for volume in volumes(store) {
        store.delete_volume(&volume);
    }
    collect(store);
    check_content(world, store);
    check_sums(store);

    life.end(store, false);
    let data_dir = [store.data_dir.as_os_str()];
    let arguments = ["rebuild".as_ref(), "--data-dir".as_ref()];
    run(command(varved(), arguments.into_iter().chain(data_dir))).ok();
    *life = Life::quiet(store);
    check_content(world, store);
    // Rows of dead records have come back.
    collect(store);
    check_content(world, store);
    check_sums(store);

    let names: Vec<_> = store.model.all().into_keys().collect();
    let by: Vec<_> = names.iter().map(String::as_str).collect();
    store.delete(&names, &by, &world.counts);
    assert!(store.roots().is_empty());
    collect(store);
    let files = Files::of(&store.data_dir);
    assert!(files.bytes() < MIB, "with everything deleted: {files:?}");
    life.end(store, false);
}

fn volumes(store: &Store) -> Vec<String> {
    let list = store.tell(["volume", "list"]);
    let volumes = list["volumes"].as_array().unwrap().iter();
    volumes.map(|volume| text(volume, "name")).collect()
}

/// All snapshots are there, no others, and each has its bytes.
fn check_content(world: &World, store: &Store) {
    let (kept, found) = (store.model.all(), store.roots());
    let names: Vec<_> = kept.keys().collect();
    assert_eq!(found.keys().collect::<Vec<_>>(), names);
    for (name, content) in &kept {
        assert_eq!(found[name], content.root, "{name}");
        let crc = store.crc(name, &world.scratch.join("exported"));
        assert_eq!(crc, content.crc, "the content of {name}: {content:?}");
        store.snapctl().verify(name);
    }
}

/// Collects until nothing is left to collect.
fn collect(store: &Store) {
    let mut reports = Vec::new();
    for _ in 0..COLLECTIONS_MAX {
        let report = store.tell(["gc", "run", "--dead", "1", "--rate", "none"]);
        assert_eq!(number(&report, "packs_held"), 0, "{report}");
        let removed = number(&report, "packs_removed");
        reports.push(report);
        if removed == 0 {
            return;
        }
    }
    panic!("each collection finds something: {reports:#?}");
}

/// Lengths of the packs of a store.
#[derive(Debug, Default)]
struct Files {
    sealed: Vec<u64>,
    open: Vec<u64>,
    /// Headers and footers of those that are sealed.
    frames_bytes: u64,
}

impl Files {
    fn of(data_dir: &Path) -> Self {
        let mut files = Self::default();
        let kinds = [PackKind::Chunks, PackKind::Nodes];
        for (_, path) in kinds.into_iter().flat_map(|kind| packs(data_dir, kind)) {
            let file = File::open(path).unwrap();
            let bytes = file.metadata().unwrap().len();
            let mut last = [0; TRAILER_BYTES];
            let start = bytes.saturating_sub(last.len() as u64);
            match file
                .read_exact_at(&mut last, start)
                .map(|()| Trailer::decode(&last, bytes))
            {
                Ok(Ok(trailer)) => {
                    files.sealed.push(bytes);
                    files.frames_bytes += PACK_HEADER_BYTES as u64;
                    files.frames_bytes += Trailer::footer_bytes(trailer.records);
                }
                _ => files.open.push(bytes),
            }
        }
        files
    }

    fn bytes(&self) -> u64 {
        self.sealed.iter().chain(&self.open).sum()
    }
}

/// Without volumes and work under way, all numbers about space agree with each other and with the
/// files.
fn check_sums(store: &Store) {
    let status = store.tell(["status"]);
    let plan = store.tell(["gc", "plan", "--dead", "1"]);
    let usage = &plan["usage"];
    let du = store.tell(["du"]);
    let names = store.model.all();
    let all = ["snapshot", "delete", "--dry-run"].into_iter();
    let estimate = store.tell(all.chain(names.keys().map(String::as_str)));
    let files = Files::of(&store.data_dir);
    let told = format!("{status:#}\n{usage:#}\n{du:#}\n{estimate:#}\n{files:?}");

    let [live, dead] = ["live_bytes", "dead_bytes"].map(|it| number(usage, it));
    let open: u64 = files.open.iter().sum();
    assert_eq!(number(usage, "file_bytes"), files.bytes(), "{told}");
    let packs = files.sealed.len() + files.open.len();
    assert_eq!(number(&status, "packs"), packs as u64, "{told}");
    // Sealed packs are known to the byte; open ones, up to where they are indexed.
    let accounted = files.frames_bytes + live + dead;
    assert!(accounted <= files.bytes(), "{told}");
    assert!(files.bytes() - accounted <= open, "{told}");
    let stored = number(&status, "stored_bytes");
    assert!((live..=live + dead).contains(&stored), "{told}");
    // The dead bytes left in each pack are not worth a rewrite.
    let packs = files.sealed.iter().chain(&files.open);
    let left: u64 = packs.map(|it| (it / 100).max(RETURN_BYTES_MIN)).sum();
    assert!(
        dead <= left,
        "{dead} bytes are dead, at most {left}: {told}"
    );
    assert_eq!(number(&status, "dead_bytes"), dead, "{told}");

    assert_eq!(number(&estimate, "dead_bytes"), live, "of all: {told}");
    let snapshots = du["snapshots"].as_array().unwrap();
    assert_eq!(snapshots.len(), names.len(), "{told}");
    let exclusive = snapshots.iter().map(|it| number(it, "exclusive_bytes"));
    assert!(exclusive.sum::<u64>() <= live, "{told}");
    for row in snapshots {
        let all = number(row, "exclusive_bytes") + number(row, "shared_bytes");
        assert!(all <= live, "{row}: {told}");
    }
}
