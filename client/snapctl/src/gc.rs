//! `snapctl gc`.

use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use serde::Serialize;
use varve_client::{
    Client, Error, ErrorKind, GcEnded, GcOptions, GcPhase, GcPlan, GcProgress, GcReport, GcRunning,
    GcStatus,
};

use crate::{
    Options,
    exit::Failure,
    output::{self, Output},
    signals,
    size::parse_rate,
};

/// The time between two remarks about progress.
const REMARK_PERIOD: Duration = Duration::from_secs(5);

/// Dead bytes that are worth a remark if a collection removes none of them.
const KEPT_BYTES_MIN: u64 = 1 << 20;

/// Commands of `gc`.
#[derive(Debug, Subcommand)]
#[command(after_long_help = "\
The chunks and tree nodes of a deleted snapshot stay in their packs until a collection removes \
packs without anything live, and rewrites packs of which enough is dead. The daemon runs one each \
day unless its settings say otherwise ([gc] in docs/varved.toml). It needs no pause: volumes, \
imports and copies go on meanwhile.")]
pub(crate) enum Gc {
    /// Collect garbage now, and wait for the end
    #[command(after_long_help = "\
The collection goes on in the daemon if snapctl is interrupted; `snapctl gc stop` ends it. The \
exit code is 6 if packs stay because live data in them is damaged, or if packs are gone.")]
    Run(Run),
    /// Show what a collection would do now
    Plan(Plan),
    /// Show the collection that is running, and the last one
    Status,
    /// End the collection that is running, after the pack at hand; the next one goes on from there
    Stop,
}

/// Arguments of `gc run`.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// Show what a collection would do, and collect nothing: the same as gc plan
    #[arg(long)]
    dry_run: bool,
    /// Bytes read and written in a second, at most, as in 100M; none for no limit [default: the
    /// daemon's gc.bytes_per_second]
    #[arg(long, value_name = "BYTES", value_parser = parse_rate, conflicts_with = "dry_run")]
    rate: Option<u64>,
    #[command(flatten)]
    plan: Plan,
}

/// Which packs a collection rewrites.
#[derive(Debug, Args)]
pub(crate) struct Plan {
    /// Rewrite packs of which at least this part is dead, in percent [default: the daemon's
    /// gc.rewrite_dead]
    #[arg(long, value_name = "PERCENT", value_parser = parse_percent)]
    dead: Option<u32>,
}

/// Parses a percentage, with or without its sign.
fn parse_percent(text: &str) -> Result<u32, String> {
    let number = text.strip_suffix('%').unwrap_or(text);
    match number.parse() {
        Ok(percent @ 1..=100) => Ok(percent),
        _ => Err("a percentage is from 1 to 100".to_owned()),
    }
}

/// A report as JSON.
#[derive(Debug, Serialize)]
struct ReportJson<'a> {
    packs_removed: u64,
    removed_bytes: u64,
    copied_bytes: u64,
    /// Bytes by which the store has become shorter.
    returned_bytes: u64,
    dead_bytes: u64,
    live_bytes: u64,
    packs_held: u64,
    held_by: &'a [String],
    packs_damaged: u64,
    damage: &'a [String],
    stopped: bool,
}

impl<'a> From<&'a GcReport> for ReportJson<'a> {
    fn from(report: &'a GcReport) -> Self {
        Self {
            packs_removed: report.packs_removed,
            removed_bytes: report.removed_bytes,
            copied_bytes: report.copied_bytes,
            returned_bytes: report.returned_bytes(),
            dead_bytes: report.dead_bytes,
            live_bytes: report.live_bytes,
            packs_held: report.packs_held,
            held_by: &report.held_by,
            packs_damaged: report.packs_damaged,
            damage: &report.damage,
            stopped: report.stopped,
        }
    }
}

/// The progress of a collection as JSON.
#[derive(Debug, Serialize)]
struct RunningJson {
    started_at: Option<String>,
    phase: &'static str,
    packs_planned: u64,
    packs_removed: u64,
    removed_bytes: u64,
    copied_bytes: u64,
}

impl From<&GcRunning> for RunningJson {
    fn from(running: &GcRunning) -> Self {
        let progress = running.progress;
        Self {
            started_at: running.started_at.and_then(output::rfc3339),
            phase: progress.phase.as_str(),
            packs_planned: progress.packs_planned,
            packs_removed: progress.packs_removed,
            removed_bytes: progress.removed_bytes,
            copied_bytes: progress.copied_bytes,
        }
    }
}

/// A collection that has ended, as JSON.
#[derive(Debug, Serialize)]
struct EndedJson<'a> {
    started_at: Option<String>,
    ended_at: Option<String>,
    /// `null` if it failed.
    report: Option<ReportJson<'a>>,
    /// `null` unless it failed.
    error: Option<&'a str>,
}

impl<'a> From<&'a GcEnded> for EndedJson<'a> {
    fn from(ended: &'a GcEnded) -> Self {
        Self {
            started_at: ended.started_at.and_then(output::rfc3339),
            ended_at: ended.ended_at.and_then(output::rfc3339),
            report: ended.outcome.as_ref().ok().map(ReportJson::from),
            error: ended.outcome.as_ref().err().map(String::as_str),
        }
    }
}

/// The status of garbage collection as JSON.
#[derive(Debug, Serialize)]
pub(crate) struct StatusJson<'a> {
    /// `null` if none is running.
    running: Option<RunningJson>,
    /// `null` if none has ended.
    last: Option<EndedJson<'a>>,
}

impl<'a> From<&'a GcStatus> for StatusJson<'a> {
    fn from(status: &'a GcStatus) -> Self {
        Self {
            running: status.running.as_ref().map(RunningJson::from),
            last: status.last.as_ref().map(EndedJson::from),
        }
    }
}

/// A plan as JSON.
#[derive(Debug, Serialize)]
struct PlanJson<'a> {
    packs_dropped: u64,
    packs_rewritten: u64,
    packs_merged: u64,
    copied_bytes: u64,
    removed_bytes: u64,
    /// Bytes by which the store would become shorter.
    returned_bytes: u64,
    usage: UsageJson,
    steps: Vec<StepJson<'a>>,
}

/// The usage of the store, as JSON.
#[derive(Debug, Serialize)]
struct UsageJson {
    logical_bytes: u64,
    data_bytes: u64,
    unique_bytes: u64,
    live_bytes: u64,
    dead_bytes: u64,
    file_bytes: u64,
    free_bytes: u64,
}

/// A step of a plan as JSON.
#[derive(Debug, Serialize)]
struct StepJson<'a> {
    action: &'static str,
    packs: &'a [String],
    copied_bytes: u64,
    removed_bytes: u64,
}

impl<'a> From<&'a GcPlan> for PlanJson<'a> {
    fn from(plan: &'a GcPlan) -> Self {
        let usage = plan.usage;
        let steps = plan.steps.iter().map(|step| StepJson {
            action: step.action.as_str(),
            packs: &step.packs,
            copied_bytes: step.copied_bytes,
            removed_bytes: step.removed_bytes,
        });
        Self {
            packs_dropped: plan.packs_dropped,
            packs_rewritten: plan.packs_rewritten,
            packs_merged: plan.packs_merged,
            copied_bytes: plan.copied_bytes,
            removed_bytes: plan.removed_bytes,
            returned_bytes: plan.returned_bytes(),
            usage: UsageJson {
                logical_bytes: usage.logical_bytes,
                data_bytes: usage.data_bytes,
                unique_bytes: usage.unique_bytes,
                live_bytes: usage.live_bytes,
                dead_bytes: usage.dead_bytes,
                file_bytes: usage.file_bytes,
                free_bytes: usage.free_bytes,
            },
            steps: steps.collect(),
        }
    }
}

impl Gc {
    pub(crate) async fn run(self, options: &Options) -> Result<(), Failure> {
        let client = options.connect().await?;
        match self {
            Self::Run(Run {
                dry_run: true,
                plan: Plan { dead },
                ..
            })
            | Self::Plan(Plan { dead }) => {
                let how = GcOptions {
                    rewrite_dead_percent: dead,
                    bytes_per_second: None,
                };
                show_plan(&client.plan_gc(how).await?, options)
            }
            Self::Run(Run { rate, plan, .. }) => {
                let how = GcOptions {
                    rewrite_dead_percent: plan.dead,
                    bytes_per_second: rate,
                };
                run(&client, how, options).await
            }
            Self::Status => show_status(&client.gc_status().await?, options),
            Self::Stop => {
                let status = client.stop_gc().await?;
                if options.output == Output::Json {
                    return output::json(&StatusJson::from(&status));
                }
                output::line(match status.running {
                    Some(_) => "the collection ends after the pack at hand",
                    None => "no collection is running",
                })
            }
        }
    }
}

async fn run(client: &Client, how: GcOptions, options: &Options) -> Result<(), Failure> {
    let control = signals::control();
    let mut remarked = Instant::now();
    let running = client
        .run_gc(how)
        .on_progress(|progress| {
            if remarked.elapsed() >= REMARK_PERIOD {
                remarked = Instant::now();
                options.remark(progress_text(progress));
            }
        })
        .control(&control);
    let report = match running.run().await {
        Err(error) if error.kind() == ErrorKind::Cancelled => {
            let why = "interrupted; the collection continues, and `snapctl gc stop` ends it";
            return Err(Error::new(ErrorKind::Cancelled, error.what(), why).into());
        }
        ended => ended?,
    };
    match options.output {
        Output::Json => output::json(&ReportJson::from(&report))?,
        Output::Table | Output::Wide => output::write(&output::facts(&report_facts(&report)))?,
    }
    match report.packs_damaged {
        0 => Ok(()),
        _ => Err(Failure::Violations),
    }
}

fn progress_text(progress: &GcProgress) -> String {
    match progress.phase {
        GcPhase::Sweeping => format!(
            "{} of {} packs removed with {}, {} copied",
            progress.packs_removed,
            progress.packs_planned,
            output::size(progress.removed_bytes),
            output::size(progress.copied_bytes)
        ),
        _ => "finding out what is live".to_owned(),
    }
}

fn report_facts(report: &GcReport) -> Vec<(&'static str, String)> {
    let (removed, copied) = (report.removed_bytes, report.copied_bytes);
    let mut facts = vec![(
        "Returned",
        format!(
            "{}: {} packs of {} removed, {} copied",
            output::size(report.returned_bytes()),
            report.packs_removed,
            output::size(removed),
            output::size(copied)
        ),
    )];
    // A collection that is stopped early has counted nothing.
    if !report.stopped || report.live_bytes + report.dead_bytes > 0 {
        let (live, dead) = (report.live_bytes, report.dead_bytes);
        let found = format!("{} live, {} dead", output::size(live), output::size(dead));
        facts.push(("Found", found));
    }
    // Without a hint, the collection would seem to have no effect.
    let is_kept = report.packs_removed + report.packs_held + report.packs_damaged == 0;
    if is_kept && report.dead_bytes >= KEPT_BYTES_MIN && !report.stopped {
        let why = "too little of any pack is dead (see --dead), or the disk is too full to rewrite";
        facts.push(("Kept", why.to_owned()));
    }
    if report.packs_held > 0 {
        let by = report.held_by.join(", ");
        facts.push(("Held", format!("{} packs, by {by}", report.packs_held)));
    }
    if report.packs_damaged > 0 {
        let packs = format!("{} packs with live data", report.packs_damaged);
        facts.push(("DAMAGED", packs));
        facts.extend(report.damage.iter().map(|it| ("Damage", it.clone())));
    }
    if report.stopped {
        let how = "before its end; the next collection goes on from there";
        facts.push(("Stopped", how.to_owned()));
    }
    facts
}

fn show_status(status: &GcStatus, options: &Options) -> Result<(), Failure> {
    if options.output == Output::Json {
        return output::json(&StatusJson::from(status));
    }
    let mut facts = vec![("Running", running_text(status.running.as_ref()))];
    match &status.last {
        None => facts.push(("Last", "none yet".to_owned())),
        Some(last) => {
            facts.push(("Last", ended_text(last)));
            facts.extend(last.outcome.iter().flat_map(report_facts));
        }
    }
    output::write(&output::facts(&facts))
}

fn running_text(running: Option<&GcRunning>) -> String {
    running.map_or_else(
        || "no".to_owned(),
        |running| {
            let since = running.started_at.map_or("?".to_owned(), output::time);
            format!("since {since}: {}", progress_text(&running.progress))
        },
    )
}

fn ended_text(ended: &GcEnded) -> String {
    let at = ended.ended_at.map_or("?".to_owned(), output::time);
    match &ended.outcome {
        Ok(report) if report.stopped => format!("stopped at {at}"),
        Ok(_) => format!("ended at {at}"),
        Err(error) => format!("failed at {at}: {error}"),
    }
}

/// The last collection, and the one that is running, in a line for `status`.
pub(crate) fn line(status: &GcStatus) -> String {
    if status.running.is_some() {
        return format!("running {}", running_text(status.running.as_ref()));
    }
    match &status.last {
        None => "never run".to_owned(),
        Some(last) => {
            let mut text = ended_text(last);
            if let Ok(report) = &last.outcome {
                let returned = output::size(report.returned_bytes());
                text.push_str(&format!(", {returned} returned"));
                if report.packs_damaged > 0 {
                    let packs = report.packs_damaged;
                    text.push_str(&format!(", DAMAGED: {packs} packs (see snapctl gc status)"));
                }
            }
            text
        }
    }
}

fn show_plan(plan: &GcPlan, options: &Options) -> Result<(), Failure> {
    if options.output == Output::Json {
        return output::json(&PlanJson::from(plan));
    }
    let usage = plan.usage;
    let facts = [
        (
            "Return",
            format!(
                "{}: {} of files removed, {} copied",
                output::size(plan.returned_bytes()),
                output::size(plan.removed_bytes),
                output::size(plan.copied_bytes)
            ),
        ),
        (
            "Packs",
            format!(
                "{} dropped, {} rewritten, {} merged",
                plan.packs_dropped, plan.packs_rewritten, plan.packs_merged
            ),
        ),
        (
            "Live",
            format!(
                "{} stored for {} of unique data",
                output::size(usage.live_bytes),
                output::size(usage.unique_bytes)
            ),
        ),
        ("Dead", output::size(usage.dead_bytes)),
        ("Files", output::size(usage.file_bytes)),
        ("Free", output::size(usage.free_bytes)),
    ];
    output::write(&output::facts(&facts))?;
    if options.output == Output::Table || plan.steps.is_empty() {
        return Ok(());
    }
    let mut table = output::table(&["ACTION", "PACKS", ">COPIED", ">REMOVED"], options.output);
    for step in &plan.steps {
        table.add_row([
            step.action.as_str().to_owned(),
            step.packs.join(" "),
            output::size(step.copied_bytes),
            output::size(step.removed_bytes),
        ]);
    }
    output::write("\n")?;
    table.write("steps")
}
