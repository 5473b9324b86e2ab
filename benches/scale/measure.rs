//! Starts, memory, lists and status of `varved` on a large store.

use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
    time::{Duration, Instant},
};

use varve_content::BLOCK_BYTES;
use varve_proto::v1::{
    DeleteSnapshotsRequest, GetStatusRequest, ListSnapshotsRequest, ListSnapshotsResponse,
};
use varve_tests::{
    daemon::{Options, Varved},
    random::Random,
    rpc::Rpc,
};

use crate::{Failure, collection, report};

/// Snapshots in one page.
const PAGE: u32 = 1000;
/// Calls for the status.
const STATUS_CALLS: usize = 100;
/// New data before the daemon is killed: most of a pack is not sealed then, and is read at the next
/// start.
const UPLOAD_BYTES: usize = 192 << 20;

/// The daemon's cache of reads, for which its memory is promised: the default depends on the
/// machine's memory.
const CACHE_BYTES: u64 = 128 << 20;

/// Measures the daemon on a store.
pub(crate) fn measure(dir: &Path, delete: bool) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    // The first start may have something to recover.
    started(dir).0.stop();
    let (mut varved, took) = started(dir);
    report::seconds("start after a clean stop", took);
    report::mebibytes("memory after the start", resident_bytes(&varved)?);
    let rpc = runtime.block_on(Rpc::connect(&varved));
    runtime.block_on(async {
        status(&rpc).await?;
        for (what, tags) in [
            ("list, no filter", &[][..]),
            ("list with a tag that half of them have", &[("keep", "no")]),
            ("list with a tag that 100 have", &[("host", "host-0042")]),
            (
                "list with two tags",
                &[("keep", "no"), ("class", "class-3")],
            ),
        ] {
            report::milliseconds(&format!("{what}, a page"), pages(&rpc, tags).await?.0);
        }
        Ok::<_, Failure>(())
    })?;
    report::mebibytes("memory after lists", resident_bytes(&varved)?);
    upload(dir, &varved)?;
    varved.kill();
    let (mut varved, took) = started(dir);
    report::seconds("start after SIGKILL", took);
    report::mebibytes("memory after that start", resident_bytes(&varved)?);
    let rpc = runtime.block_on(Rpc::connect(&varved));
    runtime.block_on(collection::plan(&rpc, &varved))?;
    if delete {
        runtime.block_on(deletions(&rpc))?;
        report::mebibytes("memory after deletions", resident_bytes(&varved)?);
        runtime.block_on(collection::run(&rpc, &varved))?;
        report::mebibytes("memory after the collection", resident_bytes(&varved)?);
    }
    report::mebibytes("most memory", varved.peak_memory_bytes());
    varved.stop();
    Ok(())
}

fn started(dir: &Path) -> (Varved, Duration) {
    let options = Options::new(dir)
        .env("VARVE_CHUNK_CACHE_BYTES", CACHE_BYTES.to_string())
        // A plan reads at the rate of the daemon.
        .env("VARVE_GC_BYTES_PER_SECOND", "0");
    let begun = Instant::now();
    let varved = options.start();
    (varved, begun.elapsed())
}

fn resident_bytes(varved: &Varved) -> Result<u64, Failure> {
    memory_bytes(varved, "VmRSS:")
}

/// Reads a field of the daemon's memory from the kernel.
pub(crate) fn memory_bytes(varved: &Varved, field: &str) -> Result<u64, Failure> {
    let status = fs::read_to_string(format!("/proc/{}/status", varved.id()))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kib = kib.ok_or_else(|| format!("no {field} in its status"))?;
    Ok(kib.trim().parse::<u64>()? << 10)
}

async fn status(rpc: &Rpc) -> Result<(), Failure> {
    let mut all = Vec::with_capacity(STATUS_CALLS);
    for _ in 0..STATUS_CALLS {
        all.push(one_status(rpc).await?);
    }
    report::milliseconds("status", all);
    Ok(())
}

/// Requests the status once. Returns the time that it took.
pub(crate) async fn one_status(rpc: &Rpc) -> Result<Duration, Failure> {
    let begun = Instant::now();
    rpc.status.clone().get_status(GetStatusRequest {}).await?;
    Ok(begun.elapsed())
}

/// Lists all pages. Returns the time of each, and the ids.
async fn pages(rpc: &Rpc, tags: &[(&str, &str)]) -> Result<(Vec<Duration>, Vec<String>), Failure> {
    let (mut all, mut ids, mut token) = (Vec::new(), Vec::new(), String::new());
    loop {
        let (took, page) = page(rpc, tags, token).await?;
        all.push(took);
        ids.extend(page.snapshots.into_iter().map(|snapshot| snapshot.id));
        token = page.next_page_token;
        if token.is_empty() {
            return Ok((all, ids));
        }
    }
}

/// Lists one page. Returns the time that it took, and the page.
pub(crate) async fn page(
    rpc: &Rpc,
    tags: &[(&str, &str)],
    page_token: String,
) -> Result<(Duration, ListSnapshotsResponse), Failure> {
    let tags = tags.iter();
    let tags = tags.map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    let request = ListSnapshotsRequest {
        page_size: PAGE,
        page_token,
        tags: tags.collect(),
        ..ListSnapshotsRequest::default()
    };
    let begun = Instant::now();
    let page = rpc.snapshots.clone().list_snapshots(request).await?;
    Ok((begun.elapsed(), page.into_inner()))
}

/// Imports an image that shares no chunk with the store.
fn upload(dir: &Path, varved: &Varved) -> Result<(), Failure> {
    let path = dir.with_extension("image");
    let seed = u64::from(varved.id());
    report::line("seed of the image that is uploaded", seed);
    let mut random = Random::seeded(seed);
    let mut image = File::create(&path)?;
    let mut block = [0; BLOCK_BYTES];
    for _ in 0..UPLOAD_BYTES / BLOCK_BYTES {
        random.fill(&mut block);
        image.write_all(&block)?;
    }
    drop(image);
    let name = format!("uploaded-{seed}");
    let imported = varved.snapctl().import(&path, &name);
    fs::remove_file(&path)?;
    report::mebibytes("uploaded before SIGKILL", imported.new_bytes());
    Ok(())
}

/// Deletes half of the snapshots.
async fn deletions(rpc: &Rpc) -> Result<(), Failure> {
    let (_, ids) = pages(rpc, &[("keep", "no")]).await?;
    let begun = Instant::now();
    let (mut all, mut rest) = (Vec::new(), &*ids);
    while !rest.is_empty() {
        let (some, _) = rest.split_at(rest.len().min(PAGE as usize));
        let request = DeleteSnapshotsRequest {
            snapshots: some.to_vec(),
        };
        let begun = Instant::now();
        let answer = rpc.snapshots.clone().delete_snapshots(request).await?;
        all.push(begun.elapsed());
        let outcomes = answer.into_inner().outcomes.len();
        rest = rest.get(outcomes..).ok_or("more outcomes than snapshots")?;
    }
    report::milliseconds("deletion of 1000 snapshots", all);
    report::seconds(
        &format!("deletion of {} snapshots", ids.len()),
        begun.elapsed(),
    );
    Ok(())
}
