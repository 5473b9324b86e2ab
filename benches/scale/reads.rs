//! Random reads of 4 KiB, each of a chunk of its own, straight from the store.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use varve_content::BLOCK_BYTES;
use varve_store::{Options, SnapshotKey, Store};
use varve_tests::random::Random;

use crate::{
    Failure,
    content::{self, LEAF_CHUNKS, WHOLE},
    report,
};

/// Reads for a while, with this many reads under way at one time.
pub(crate) fn random(dir: &Path, seconds: u64, depth: usize) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (store, _) = Store::open(Options::new(dir)).await?;
        let reader = store.open_snapshot(&SnapshotKey::from(WHOLE)).await?;
        let segments = reader.record().size_bytes / varve_content::SEGMENT_BYTES as u64;
        let chunks = segments * LEAF_CHUNKS;
        let processor_before = processor_time()?;
        let end = Instant::now() + Duration::from_secs(seconds);
        let done = Arc::new(AtomicU64::new(0));
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..depth as u64 {
            let (reader, done) = (reader.clone(), Arc::clone(&done));
            tasks.spawn(async move {
                let mut random = Random::seeded(number);
                while Instant::now() < end {
                    let offset_bytes = content::offset_bytes(random.within(0..chunks));
                    reader.read(offset_bytes, BLOCK_BYTES).await?;
                    done.fetch_add(1, Ordering::Relaxed);
                }
                Ok::<_, varve_store::Error>(())
            });
        }
        for result in tasks.join_all().await {
            result?;
        }
        let reads = done.load(Ordering::Relaxed);
        let processor = processor_time()?.saturating_sub(processor_before);
        let each_us = processor.as_micros() / u128::from(reads.max(1));
        report::line("random reads a second", reads / seconds.max(1));
        report::line("processor time of a read", format_args!("{each_us} µs"));
        store.close().await?;
        Ok(())
    })
}

/// Processor time of this process, in user space and in the kernel. On a busy machine, it says more
/// than the number of reads.
fn processor_time() -> Result<Duration, Failure> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    // After the name, which may have spaces: the twelfth and the thirteenth field, in ticks.
    let (_, fields) = stat.rsplit_once(')').ok_or("no name in /proc/self/stat")?;
    let ticks = fields.split_whitespace().skip(11).take(2);
    let ticks: Vec<u64> = ticks.map(str::parse).collect::<Result<_, _>>()?;
    let ms = 1000 * ticks.iter().sum::<u64>() / rustix::param::clock_ticks_per_second();
    Ok(Duration::from_millis(ms))
}
