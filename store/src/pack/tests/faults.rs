//! Writes and syncs fail, the disk is full.

use std::io::ErrorKind;

use super::*;
use crate::Error;

const PACK_BYTES_MAX: u64 = 3 << 20;

/// Rounds of about 2 MiB, until one fails.
async fn run(writer: &PackWriter, known: &mut Known) -> Result<()> {
    for round in 0..5 {
        let appended = writer
            .append(chunks(round * 100..round * 100 + 8, 64))
            .await?;
        let flushed = writer.flush().await?;
        known.learn(flushed.settle(appended)?, flushed.packs());
    }
    Ok(())
}

fn recover(sim: &Sim, known: &Known) -> Known {
    let local = sim.place().local(PACK_BYTES_MAX);
    let mut now = known.clone();
    block_on(async {
        now.recover(&local).await.unwrap();
        now.check(&local).await;
    });
    now
}

/// One write or sync fails: from then on nothing is written, reads continue, and all promised
/// records are there after a crash.
fn fails_once(break_it: impl Fn(&SimDisk, u64)) -> u64 {
    for nth in 1.. {
        let sim = Sim::new();
        let place = sim.place();
        let (local, writer) = place.writer(PACK_BYTES_MAX);
        break_it(&sim.0, nth);
        let mut known = Known::default();
        let result = block_on(run(&writer, &mut known));
        let Err(first) = result else {
            return nth;
        };
        let Error::Poisoned { reason } = &first else {
            panic!("fault {nth}: {first}");
        };
        assert!(reason.contains("chunk-000"), "names the pack: {reason}");
        let operations = sim.0.operations();
        block_on(async {
            for again in [
                writer.append(chunks(900..901, 1)).await.err(),
                writer.flush().await.err(),
            ] {
                assert_eq!(
                    again.unwrap().to_string(),
                    first.to_string(),
                    "the first reason stays"
                );
            }
            known.check(&local).await;
        });
        assert_eq!(sim.0.operations(), operations, "nothing is written after");
        for seed in 0..4 {
            recover(&Sim(sim.0.crash(seed)), &known);
        }
    }
    unreachable!()
}

#[test]
fn a_failed_write_stops_all_writing() {
    assert!(fails_once(|disk, nth| disk.fail_write(nth, ErrorKind::Other)) > 10);
}

#[test]
fn a_failed_sync_stops_all_writing() {
    assert!(fails_once(SimDisk::fail_sync) > 5);
}

/// A sync that says the disk is full is a failed sync as well.
#[test]
fn only_writes_find_the_disk_full() {
    let (mut cut, mut removed) = (0, 0);
    for nth in 1..15 {
        let sim = Sim::new();
        let (_, writer) = sim.place().writer(PACK_BYTES_MAX);
        sim.0.fail_write(nth, ErrorKind::StorageFull);
        // Cutting it back or removing it waits for the end of a shortage.
        let errno = SHORTAGES[nth as usize % SHORTAGES.len()];
        sim.0.refuse(Call::SetLen, 2, errno);
        sim.0.refuse(Call::Remove, 2, errno);
        let mut known = Known::default();
        match block_on(run(&writer, &mut known)) {
            // A footer that did not fit was written later.
            Ok(()) => {}
            Err(error) if error.is_full() => {}
            Err(error) => panic!("{error}"),
        }
        block_on(run(&writer, &mut known)).unwrap();
        recover(&Sim(sim.0.crash(nth)), &known);
        cut += u32::from(sim.0.still_refused(Call::SetLen) == 0);
        removed += u32::from(sim.0.still_refused(Call::Remove) == 0);
    }
    assert!(cut > 0 && removed > 0, "{cut} {removed}");
}

#[test]
fn a_full_disk_loses_what_was_not_durable_and_nothing_else() {
    for capacity_bytes in (0..6 << 20).step_by(300_000) {
        let sim = Sim::new();
        let place = sim.place();
        let (local, writer) = place.writer(PACK_BYTES_MAX);
        sim.0.set_capacity(Some(capacity_bytes));
        let mut known = Known::default();
        block_on(async {
            let early = writer.append(chunks(500..501, 1)).await;
            let error = run(&writer, &mut known).await.unwrap_err();
            assert!(error.is_full(), "{capacity_bytes}: {error}");
            // Full again and again: the losses do not add up.
            for _ in 0..3 {
                let result = run(&writer, &mut Known::default()).await;
                assert!(
                    result.as_ref().is_err_and(Error::is_full),
                    "{capacity_bytes}: {result:?}"
                );
            }
            known.check(&local).await;
            assert!(local.list().unwrap().len() <= 1 + known.packs.len());

            sim.0.set_capacity(None);
            if let Ok(early) = early {
                let flushed = writer.flush().await.unwrap();
                assert!(flushed.settle(early).is_err(), "its receipt never came");
            }
            // None of the lost bytes is left behind later data, however short that is.
            let appended = writer.append(chunks(600..601, 1)).await.unwrap();
            let flushed = writer.flush().await.unwrap();
            known.learn(flushed.settle(appended).unwrap(), flushed.packs());
            check_packs(&local).await;
            run(&writer, &mut known).await.unwrap();
            known.check(&local).await;
            check_packs(&local).await;
        });
        for seed in 0..4 {
            recover(&Sim(sim.0.crash(seed)), &known);
        }
    }
}

async fn check_packs(local: &Arc<LocalPacks>) {
    for pack in local.list().unwrap() {
        let (_, damage, tail) = scan(&**local, pack).await;
        assert_eq!(damage, []);
        assert!(!matches!(tail, Tail::Torn { .. }), "{tail:?}");
    }
}

/// The power fails while a writer goes back after a full disk.
#[test]
fn what_is_durable_survives_a_full_disk_and_a_crash() {
    for capacity_bytes in [1 << 20, 3 << 20, 5 << 20] {
        for last in 0.. {
            let sim = Sim::new();
            let place = sim.place();
            let (_, writer) = place.writer(PACK_BYTES_MAX);
            sim.0.set_capacity(Some(capacity_bytes));
            let before = sim.0.operations();
            sim.0.power_off_after(before + last);
            let mut known = Known::default();
            assert!(block_on(run(&writer, &mut known)).is_err());
            for seed in 0..4 {
                recover(&Sim(sim.0.crash(seed)), &known);
            }
            if sim.0.operations() <= before + last {
                break;
            }
        }
    }
}

/// A directory that is full, or a limit on open files: nothing is lost, the next call may succeed.
#[test]
fn a_pack_that_cannot_be_made_is_an_error() {
    let sim = Sim::new();
    let place = sim.place();
    let (local, writer) = place.writer(PACK_BYTES_MAX);
    let in_the_way = PackId {
        kind: PackKind::Chunks,
        number: 1,
    };
    sim.0.put(&Sim::path(in_the_way), b"not expected").unwrap();
    block_on(async {
        let error = writer.append(chunks(0..1, 1)).await.unwrap_err();
        assert!(matches!(error, Error::Io { verb: "create", .. }), "{error}");
        let appended = writer.append(chunks(0..1, 1)).await.unwrap();
        let flushed = writer.flush().await.unwrap();
        assert_eq!(flushed.settle(appended).unwrap()[0].location.pack.number, 2);
        assert_eq!(local.list().unwrap().len(), 2);
    });
}

/// Errors of the system that go away.
const SHORTAGES: [i32; 5] = [
    // EMFILE, ENFILE, ENOMEM, EAGAIN, EINTR
    24, 23, 12, 11, 4,
];

#[test]
fn what_the_system_is_short_of_is_waited_for_and_nothing_is_lost() {
    for errno in SHORTAGES {
        for call in [Call::Create, Call::SyncDir] {
            let sim = Sim::new();
            let place = sim.place();
            let (local, writer) = place.writer(PACK_BYTES_MAX);
            let mut known = Known::default();
            block_on(async {
                // The first pack, and one that follows a full one.
                for round in 0..5 {
                    sim.0.refuse(call, 2, errno);
                    let numbers = round * 100..round * 100 + 40;
                    let appended = writer.append(chunks(numbers, 64)).await.unwrap();
                    let flushed = writer.flush().await.unwrap();
                    known.learn(flushed.settle(appended).unwrap(), flushed.packs());
                    assert_eq!(sim.0.still_refused(call), 0, "{call:?} was tried again");
                }
                known.check(&local).await;
            });
            recover(&Sim(sim.0.crash(7)), &known);
        }
    }
}

#[test]
fn waiting_for_the_system_ends_when_the_store_closes_and_loses_nothing() {
    for call in [Call::Create, Call::SyncDir] {
        let sim = Sim::new();
        let place = sim.place();
        let (_, writer) = place.writer(PACK_BYTES_MAX);
        sim.0.refuse(call, u64::MAX, SHORTAGES[0]);
        sim.0.patience().end();
        block_on(async {
            let refused = async {
                let appended = writer.append(chunks(0..8, 64)).await?;
                let flushed = writer.flush().await?;
                Ok::<_, Error>((appended, flushed))
            };
            let error = refused.await.unwrap_err();
            assert!(matches!(error, Error::Shortage { .. }), "{call:?}: {error}");
            assert!(error.to_string().contains("/packs"), "{error}");
            sim.0.refuse(call, 0, 0);
            let mut known = Known::default();
            run(&writer, &mut known).await.unwrap();
        });
    }
}

#[test]
fn a_pack_that_cannot_be_made_fails_whoever_needs_it_and_nobody_else() {
    // EIO, EACCES, EROFS
    for errno in [5, 13, 30] {
        let sim = Sim::new();
        let place = sim.place();
        let (local, writer) = place.writer(PACK_BYTES_MAX);
        let mut known = Known::default();
        block_on(async {
            let before = writer.append(chunks(900..901, 64)).await.unwrap();
            sim.0.refuse(Call::Create, 1, errno);
            let error = writer.append(chunks(0..60, 64)).await.unwrap_err();
            assert!(matches!(error, Error::Io { .. }), "{error}");
            let flushed = writer.flush().await.unwrap();
            known.learn(flushed.settle(before).unwrap(), flushed.packs());
            run(&writer, &mut known).await.unwrap();
            known.check(&local).await;
        });
        recover(&Sim(sim.0.crash(3)), &known);
    }
}

#[test]
fn a_read_waits_for_a_descriptor() {
    for errno in SHORTAGES {
        let sim = Sim::new();
        let place = sim.place();
        let (local, writer) = place.writer(PACK_BYTES_MAX);
        let mut known = Known::default();
        block_on(async {
            run(&writer, &mut known).await.unwrap();
            sim.0.refuse(Call::Open, 3, errno);
            known.check(&local).await;
            assert_eq!(sim.0.still_refused(Call::Open), 0);
            // A verification opens files of its own.
            let pack = *local.list().unwrap().last().unwrap();
            sim.0.refuse(Call::Open, 3, errno);
            local.read_past_cache(pack, 0, 4096).await.unwrap();
            assert_eq!(sim.0.still_refused(Call::Open), 0);
        });
    }
}
