//! A collection on a large store: its time and memory, and its effect on other calls.

use std::{
    convert::Infallible,
    time::{Duration, Instant},
};

use tokio::time::sleep;
use varve_proto::v1::{
    GcOptions, GcPhase, GcReport, PlanGcRequest, RunGcRequest, run_gc_response::State,
};
use varve_tests::{daemon::Varved, rpc::Rpc};

use crate::{
    Failure,
    measure::{memory_bytes, one_status, page},
    report,
};

/// Pause between looks at the daemon's memory.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(20);
/// Pause between calls: they take time from the collection.
const ASK_INTERVAL: Duration = Duration::from_millis(100);

/// As fast as possible: otherwise a collection keeps to the rate of the settings.
const OPTIONS: GcOptions = GcOptions {
    rewrite_dead_percent: None,
    bytes_per_second: Some(0),
};

/// Measures a plan: it marks all needed content and counts all rows, and changes nothing.
pub(crate) async fn plan(rpc: &Rpc, varved: &Varved) -> Result<(), Failure> {
    let (mut gc, begun) = (rpc.gc.clone(), Instant::now());
    let request = PlanGcRequest {
        options: Some(OPTIONS),
    };
    let plan = observed("plan of a collection", rpc, varved, gc.plan_gc(request));
    let plan = plan.await??.into_inner();
    report::seconds("plan of a collection: all of it", begun.elapsed());
    report::line("plan of a collection: packs dropped", plan.packs_dropped);
    report::line(
        "plan of a collection: packs rewritten",
        plan.packs_rewritten,
    );
    report::line("plan of a collection: packs merged", plan.packs_merged);
    Ok(())
}

/// Runs a collection.
pub(crate) async fn run(rpc: &Rpc, varved: &Varved) -> Result<(), Failure> {
    let (mut gc, begun) = (rpc.gc.clone(), Instant::now());
    let collected = async {
        let request = RunGcRequest {
            options: Some(OPTIONS),
        };
        let mut states = gc.run_gc(request).await?.into_inner();
        let mut marked = None;
        while let Some(message) = states.message().await? {
            match message.state {
                Some(State::Report(report)) => return Ok((marked, report)),
                Some(State::Progress(it)) if it.phase() == GcPhase::Sweeping => {
                    marked.get_or_insert_with(|| begun.elapsed());
                }
                _ => {}
            }
        }
        Err::<_, Failure>("a collection ended without a report".into())
    };
    let (marked, report) = observed("collection", rpc, varved, collected).await??;
    if let Some(marked) = marked {
        report::seconds("collection: marks, to a progress interval", marked);
    }
    report::seconds("collection: all of it", begun.elapsed());
    let GcReport {
        packs_removed,
        removed_bytes,
        copied_bytes,
        dead_bytes,
        live_bytes,
        ..
    } = report;
    report::line("collection: packs removed", packs_removed);
    report::mebibytes("collection: removed", removed_bytes);
    report::mebibytes("collection: copied", copied_bytes);
    report::mebibytes("collection: dead before", dead_bytes);
    report::mebibytes("collection: live before", live_bytes);
    Ok(())
}

/// Does `work`, and reports its memory and the waits of other callers meanwhile.
async fn observed<T>(
    what: &str,
    rpc: &Rpc,
    varved: &Varved,
    work: impl Future<Output = T>,
) -> Result<T, Failure> {
    let before_bytes = memory_bytes(varved, "RssAnon:")?;
    let mut most_bytes = before_bytes;
    let (mut statuses, mut lists) = (Vec::new(), Vec::new());
    let done = tokio::select! {
        done = work => done,
        Err(failure) = watch_memory(varved, &mut most_bytes) => return Err(failure),
        Err(failure) = ask(rpc, &mut statuses, &mut lists) => return Err(failure),
    };
    let more_bytes = most_bytes - before_bytes;
    report::mebibytes(&format!("{what}: anonymous memory before"), before_bytes);
    report::mebibytes(&format!("{what}: and at most, beyond that"), more_bytes);
    report::milliseconds(&format!("{what}: status meanwhile"), statuses);
    report::milliseconds(&format!("{what}: list with a tag, a page"), lists);
    Ok(done)
}

/// Looks at the daemon's memory until it is dropped.
async fn watch_memory(varved: &Varved, most_bytes: &mut u64) -> Result<Infallible, Failure> {
    loop {
        *most_bytes = memory_bytes(varved, "RssAnon:")?.max(*most_bytes);
        sleep(SAMPLE_INTERVAL).await;
    }
}

/// Requests the status and lists until it is dropped, and records the time of each call.
async fn ask(
    rpc: &Rpc,
    statuses: &mut Vec<Duration>,
    lists: &mut Vec<Duration>,
) -> Result<Infallible, Failure> {
    loop {
        statuses.push(one_status(rpc).await?);
        lists.push(page(rpc, &[("keep", "yes")], String::new()).await?.0);
        sleep(ASK_INTERVAL).await;
    }
}
