//! Time and memory of ranks and counts for ten million names in RocksDB. Run it alone, and
//! optimised: it takes minutes, and prints what it measures.

use std::time::Instant;

use varve_content::codec::Codec;

use super::*;
use crate::{
    format::pack::{Payload, RecordKind},
    gc::{mark::mark, survey::names_of_a_pass, tally::Tallies},
    meta::{Batch, PackPhase, PackState},
};

const NAMES: u64 = 10_000_000;
const NODES: u64 = 60_000;
const RECORDS_OF_A_PACK: u64 = 18_000;

/// A line of what the kernel tells of this process, in KiB.
fn status_kib(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// The row with that number.
fn row(random: &mut Random, number: u64) -> (Name, Location) {
    let mut bytes = [0; 32];
    for word in bytes.chunks_mut(8) {
        word.copy_from_slice(&random.next().to_le_bytes());
    }
    let kind = match number < NODES {
        true => RecordKind::Leaf,
        false => RecordKind::Chunk,
    };
    let place = Location {
        pack: PackId {
            kind: kind.pack_kind(),
            number: 1 + number / RECORDS_OF_A_PACK * 2 + u64::from(kind == RecordKind::Chunk),
        },
        offset_bytes: 4096 + number % RECORDS_OF_A_PACK * 14_400,
        payload: Payload {
            kind,
            codec: Codec::Raw,
            end_open: false,
            plain_bytes: 12_288,
            stored_bytes: 12_288,
        },
    };
    (Name::new(kind, bytes), place)
}

#[test]
#[ignore = "a measurement"]
fn ten_million_names_in_rocksdb() {
    let directory = tempfile::tempdir_in(std::env::current_exe().unwrap().parent().unwrap());
    let directory = directory.unwrap();
    block_on(async {
        let (store, _) = Store::open(Options::new(directory.path())).await.unwrap();
        let engine = store.engine();
        let mut random = Random::new(1);
        let begun_at = Instant::now();
        for first in (0..NAMES).step_by(20_000) {
            let mut batch = Batch::default();
            let mut packs = BTreeSet::new();
            for number in first..first + 20_000 {
                let (name, place) = row(&mut random, number);
                packs.insert(place.pack);
                batch.put(name, place);
            }
            let state = |pack| PackState {
                pack,
                indexed_bytes: 256 << 20,
                phase: PackPhase::Sealed,
            };
            batch.packs(&packs.into_iter().map(state).collect::<Vec<_>>());
            engine.meta.apply(batch, false).unwrap();
        }
        println!("{NAMES} rows written in {:?}", begun_at.elapsed());
        for _ in 0..2 {
            let before = status_kib("RssAnon");
            let begun_at = Instant::now();
            let ranks = Ranks::build(engine, [0; 32], names_of_a_pass())
                .await
                .unwrap();
            let took = begun_at.elapsed();
            let after = status_kib("RssAnon");
            assert_eq!(ranks.len() as u64, NAMES);
            println!("ranks: {took:?}, memory {before} -> {after} KiB");
            let begun_at = Instant::now();
            let live = mark(engine, &ranks, &unpaced(), &[]).await.unwrap();
            let tallies = Tallies::default()
                .count(engine, Arc::new(live))
                .await
                .unwrap();
            println!("count of all rows: {:?}", begun_at.elapsed());
            let packs = tallies.finish(engine).await.unwrap();
            let dead: u64 = packs.iter().map(|it| it.dead.records).sum();
            assert_eq!(dead, NAMES);
        }
    });
}
