//! The power fails after every operation in turn.

use super::*;

/// Enough bytes in a round for several writes, some packs that fill up, and sizes that end
/// anywhere.
const PACK_BYTES_MAX: u64 = 3 << 20;
const ROUNDS: u64 = 4;

fn records(round: u64) -> Vec<EncodedRecord> {
    let mut records = chunks(round * 100..round * 100 + 7, 64);
    records
        .extend((0..3).map(|n| packed_chunk(round * 100 + n, 777 + 1234 * (round + n) as usize)));
    records
}

/// Appends and flushes until it is done or something fails. Then the records of all receipts are
/// known.
async fn run(writer: &PackWriter, rounds: std::ops::Range<u64>, known: &mut Known) -> Result<()> {
    let mut before: Option<Appended> = None;
    for round in rounds {
        let mut appended = writer.append(records(round)).await?;
        if let Some(before) = before.take() {
            appended.join(before);
        }
        // More is appended while the flush waits for the disk, and fills packs.
        let more = chunks(round * 100 + 50..round * 100 + 50 + 9 * (round % 2), 64);
        let (flushed, meanwhile) = tokio::join!(writer.flush(), writer.append(more));
        before = Some(meanwhile?);
        let flushed = flushed?;
        known.learn(flushed.settle(appended)?, flushed.packs());
    }
    let flushed = writer.flush().await?;
    if let Some(before) = before {
        known.learn(flushed.settle(before)?, flushed.packs());
    }
    Ok(())
}

/// A run from an empty disk, with the power failing after some operations; and the records that it
/// was promised.
fn run_until(last: Option<u64>) -> (Sim, Known) {
    let sim = Sim::new();
    let mut known = Known::default();
    if let Some(last) = last {
        sim.0.power_off_after(sim.0.operations() + last);
    }
    let place = sim.place();
    let (_, writer) = place.writer(PACK_BYTES_MAX);
    let result = block_on(run(&writer, 0..ROUNDS, &mut known));
    assert!(result.is_ok() || last.is_some(), "{result:?}");
    (sim, known)
}

fn operations() -> u64 {
    let before = Sim::new().0.operations();
    run_until(None).0.0.operations() - before
}

/// Recovers, checks that nothing promised is missing and nothing that is found is wrong, and goes
/// on.
fn recover_and_go_on(sim: &Sim, known: &Known, context: &str) {
    let place = sim.place();
    let local = place.local(PACK_BYTES_MAX);
    let mut now = known.clone();
    block_on(async {
        let writer = now
            .recover(&local)
            .await
            .unwrap_or_else(|error| panic!("{context}: {error}"));
        for (name, record) in &known.records {
            assert!(
                now.records
                    .get(name)
                    .is_some_and(|found| found.location == record.location),
                "{context}"
            );
        }
        now.check(&local).await;
        run(&writer, 50..52, &mut now).await.unwrap();
        now.check(&local).await;
        // Nor is anything missing for a reader of the packs alone.
        let mut found = HashMap::new();
        let mut unsealed = 0;
        for pack in local.list().unwrap() {
            let tail = recover_tail(&*local, pack, None).await.unwrap();
            assert!(
                tail.damage.is_empty() && tail.torn.is_none(),
                "{context}: {tail:?}"
            );
            found.extend(
                tail.records
                    .iter()
                    .map(|record| (record.location, record.name)),
            );
            unsealed += usize::from(!tail.sealed);
        }
        assert!(
            now.records
                .values()
                .all(|record| found.get(&record.location) == Some(&record.name)),
            "{context}"
        );
        assert!(unsealed <= 1, "{context}: {unsealed} packs are not sealed");
    });
}

#[test]
fn what_a_receipt_was_given_for_survives_a_crash_after_every_operation() {
    let count = operations();
    assert!(count > 20, "{count} operations");
    for last in 0..=count {
        let (sim, known) = run_until(Some(last));
        for seed in 0..4 {
            let context = format!("crash after operation {last} of {count}, seed {seed}");
            recover_and_go_on(&Sim(sim.0.crash(seed)), &known, &context);
        }
    }
}

/// Recovery itself is cut short after each of its operations.
#[test]
fn recovery_can_be_interrupted_and_begun_again() {
    let count = operations();
    for last in (0..=count).step_by(4) {
        let (sim, known) = run_until(Some(last));
        for seed in 100..102 {
            for interrupted in 0..=100 {
                assert!(interrupted < 100, "recovery has no end");
                let crashed = Sim(sim.0.crash(seed));
                crashed.0.power_off_after(interrupted);
                let recovered = {
                    let local = crashed.place().local(PACK_BYTES_MAX);
                    block_on(known.clone().recover(&local)).is_ok()
                };
                let context =
                    format!("crash after {last}, seed {seed}, and after {interrupted} of recovery");
                recover_and_go_on(&Sim(crashed.0.crash(seed + 7)), &known, &context);
                if recovered {
                    break;
                }
            }
        }
    }
}

/// The process is killed: the disk goes on, and has everything that was written, synced or not.
#[test]
fn whole_records_behind_the_last_receipt_are_found_and_kept() {
    let sim = Sim::new();
    let place = sim.place();
    let mut known = Known::default();
    let pack_bytes_max = 8 << 20;
    let (_, writer) = place.writer(pack_bytes_max);
    let unflushed = chunks(1000..1100, 64);
    block_on(async {
        run(&writer, 0..1, &mut known).await.unwrap();
        // Made durable, and the receipt is lost.
        let _ = writer.append(records(1)).await.unwrap();
        drop(writer.flush().await.unwrap());
        // Written as far as the buffers make it necessary.
        let _ = writer.append(unflushed.clone()).await.unwrap();
        drop(writer);
        let promised = known.clone();
        let local = place.local(pack_bytes_max);
        known.recover(&local).await.unwrap();
        assert!(
            records(1)
                .iter()
                .all(|record| known.records.contains_key(&record.name()))
        );
        let found = unflushed
            .iter()
            .filter(|record| known.records.contains_key(&record.name()))
            .count();
        assert!((20..100).contains(&found), "{found} found");
        known.check(&local).await;
        // The records that recovery has found are indexed, so they are durable.
        for seed in 0..20 {
            let local = Sim(sim.0.crash(seed)).place().local(pack_bytes_max);
            let mut now = promised.clone();
            now.recover(&local).await.unwrap();
            now.check(&local).await;
            assert!(
                known
                    .records
                    .keys()
                    .all(|name| now.records.contains_key(name)),
                "seed {seed}"
            );
        }
    });
}
