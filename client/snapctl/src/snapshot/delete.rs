//! `snapctl snapshot delete`.
//!
//! Filters select snapshots from the list of the daemon. The command then deletes these by their
//! ids: no snapshot that matches only later, and none that has taken over a name.
//!
//! Memory is proportional to the names on the command line, and takes some 50 bytes for each
//! snapshot that filters select.

use std::{
    collections::{BTreeMap, HashSet},
    io::{self, BufRead as _, IsTerminal as _},
    time::{Duration, SystemTime},
};

use clap::Args;
use futures::TryStreamExt as _;
use serde_json::json;
use varve_client::{
    Client, DeleteEstimate, Error, ErrorKind, Snapshot, SnapshotDeletion, SnapshotFilter,
    USAGE_RECORDS_MAX,
};

use crate::{
    Options,
    age::parse_age,
    blocking,
    exit::Failure,
    import::parse_tag,
    output::{self, Output, SnapshotJson},
};

/// The operation, in errors.
const WHAT: &str = "delete snapshots";
/// Snapshots that the question lists before they are deleted.
const SHOWN: usize = 10;
/// The output for programs, up to the first snapshot.
const JSON_BEGIN: &str = "{\"snapshots\":[\n";

/// Arguments of `snapshot delete`.
#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// Names or ids; with --older-than or --tag, only those of them that match are deleted, and
    /// without names all of your own account that match
    #[arg(value_name = "SNAPSHOT", required_unless_present_any = ["older_than", "tags"])]
    snapshots: Vec<String>,
    /// Delete only snapshots that are older than this, by the clock of this machine: a number of
    /// seconds, minutes, hours, days or weeks, as in 90s, 30m, 12h, 30d, 2w
    #[arg(long, value_name = "AGE", value_parser = parse_age)]
    older_than: Option<Duration>,
    /// Delete only snapshots with this tag; given more than once, those with all of the tags
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = parse_tag)]
    tags: Vec<(String, String)>,
    /// List the snapshots that would be deleted and the bytes that their deletion would give back,
    /// and delete none
    #[arg(long)]
    dry_run: bool,
    /// Do not ask. Without names and without a terminal, snapshots are deleted only with --yes
    #[arg(long, short)]
    yes: bool,
}

impl Delete {
    /// Refuses filters alone without a terminal for the question.
    pub(super) fn check(&self, options: &Options) -> Result<(), Failure> {
        let can_ask = options.output != Output::Json && io::stdin().is_terminal();
        if self.asks() && !can_ask {
            return Err(Failure::usage(
                WHAT,
                "without names, all snapshots that match are deleted: see them with --dry-run, \
                 then use --yes",
            ));
        }
        Ok(())
    }

    fn asks(&self) -> bool {
        self.snapshots.is_empty() && !self.dry_run && !self.yes
    }

    fn has_filters(&self) -> bool {
        self.older_than.is_some() || !self.tags.is_empty()
    }

    pub(super) async fn run(self, client: &Client, options: &Options) -> Result<(), Failure> {
        let mut report = Report::new(&self, options.output);
        let keys = self.select(client, options, &mut report).await?;
        let wanted = keys.len();
        if self.dry_run {
            let estimate = estimate(client, options, keys).await;
            report.estimate = *estimate.as_ref().unwrap_or(&None);
            report.end()?;
            return estimate.and_then(|_| report.outcome());
        }
        if self.asks() && wanted > 0 && !blocking(move || Ok(is_confirmed(wanted))).await? {
            let why = "not confirmed, so no snapshot is deleted";
            return Err(Error::new(ErrorKind::Cancelled, WHAT, why).into());
        }
        let by_id = self.snapshots.is_empty() || self.has_filters();
        let mut deleted = HashSet::new();
        let mut deletions = Box::pin(client.delete_snapshots(keys));
        loop {
            match deletions.try_next().await {
                Ok(Some(SnapshotDeletion {
                    snapshot, outcome, ..
                })) => match outcome {
                    Ok(gone) => {
                        report.done(&gone)?;
                        if !by_id {
                            deleted.extend([gone.name, gone.id]);
                        }
                    }
                    Err(error) if by_id && error.kind() == ErrorKind::NotFound => {
                        options.remark(format_args!("{snapshot} was deleted meanwhile"));
                    }
                    // A snapshot may be named by its name and by its id.
                    Err(error)
                        if error.kind() == ErrorKind::NotFound && deleted.contains(&snapshot) => {}
                    Err(error) => report.failed(snapshot, error),
                },
                Ok(None) => break,
                Err(error) => {
                    let before = format!("{} of {wanted} snapshots are deleted", report.count);
                    report.end()?;
                    report.tell_failures();
                    return Err(Failure::from(error).with_advice(Some(before)));
                }
            }
        }
        report.end()?;
        report.outcome()
    }

    /// The names or ids of the snapshots that are to be deleted. A dry run reports the snapshots
    /// instead.
    async fn select(
        &self,
        client: &Client,
        options: &Options,
        report: &mut Report,
    ) -> Result<Vec<String>, Failure> {
        let mut keys = Vec::new();
        let mut take = |snapshot: Snapshot| -> Result<(), Failure> {
            if self.dry_run {
                report.done(&snapshot)?;
            }
            if self.asks() && keys.len() < SHOWN {
                let created = output::time(snapshot.created_at);
                let (name, id) = (&snapshot.name, &snapshot.id);
                output::tell(format_args!("{name} ({id}), created {created}"));
            }
            keys.push(snapshot.id);
            Ok(())
        };
        let matching = Matching::new(self);
        if self.snapshots.is_empty() {
            let filter = SnapshotFilter {
                tags: matching.tags.clone(),
                // The administrator sees the snapshots of all accounts, and cleans up only its own.
                owner: "self".to_owned(),
                ..SnapshotFilter::default()
            };
            let mut listed = Box::pin(client.snapshots(filter));
            while let Some(snapshot) = listed.try_next().await? {
                if matching.has(&snapshot) {
                    take(snapshot)?;
                }
            }
            return Ok(keys);
        }
        let mut named = Vec::with_capacity(self.snapshots.len());
        let mut seen = HashSet::new();
        for given in &self.snapshots {
            let name = options.named.snapshot(client, given).await?;
            if seen.insert(name.clone()) {
                named.push(name);
            }
        }
        if !self.dry_run && !self.has_filters() {
            return Ok(named);
        }
        let mut missing = Vec::new();
        for name in named {
            match client.snapshot(&name).await {
                // A snapshot may be named by its name and by its id.
                Ok(snapshot) if name != snapshot.id && seen.contains(&snapshot.id) => {}
                Ok(snapshot) if matching.has(&snapshot) => take(snapshot)?,
                Ok(_) => options.remark(format_args!("{name} does not match")),
                Err(error) if error.kind() == ErrorKind::NotFound => missing.push((name, error)),
                Err(error) => return Err(error.into()),
            }
        }
        report.failures = missing;
        Ok(keys)
    }
}

/// The snapshots that pass all filters.
struct Matching {
    created_before: Option<SystemTime>,
    tags: BTreeMap<String, String>,
}

impl Matching {
    fn new(delete: &Delete) -> Self {
        let before = |age| {
            let now = SystemTime::now();
            // No snapshot is from before 1970.
            now.checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH)
        };
        Self {
            created_before: delete.older_than.map(before),
            tags: delete.tags.iter().cloned().collect(),
        }
    }

    fn has(&self, snapshot: &Snapshot) -> bool {
        let mut tags = self.tags.iter();
        let is_old = |before| snapshot.created_at < before;
        self.created_before.is_none_or(is_old)
            && tags.all(|(key, value)| snapshot.tags.get(key) == Some(value))
    }
}

/// The space that the deletion of all these snapshots would give back. `None` without snapshots,
/// and for more than one call can count.
async fn estimate(
    client: &Client,
    options: &Options,
    ids: Vec<String>,
) -> Result<Option<DeleteEstimate>, Failure> {
    match ids.len() {
        0 => Ok(None),
        1..=USAGE_RECORDS_MAX => Ok(Some(client.estimate_delete(ids).await?)),
        more => {
            options.remark(format_args!(
                "{more} snapshots are too many to tell what their deletion gives back: at most \
                 {USAGE_RECORDS_MAX}"
            ));
            Ok(None)
        }
    }
}

/// Asks on the terminal whether to delete `count` snapshots.
fn is_confirmed(count: usize) -> bool {
    let unseen = count.saturating_sub(SHOWN);
    if unseen > 0 {
        output::tell(format_args!("and {unseen} more (--dry-run lists all)"));
    }
    let snapshots = if count == 1 { "snapshot" } else { "snapshots" };
    output::ask(format_args!("Delete {count} {snapshots}? [y/N] "));
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    let answer = answer.trim();
    read.is_ok() && (answer.eq_ignore_ascii_case("y") || answer.eq_ignore_ascii_case("yes"))
}

/// The outcome of the deletions. Deleted snapshots are written as they come.
struct Report {
    output: Output,
    verb: &'static str,
    /// True if one snapshot is named: the JSON is that of the snapshot.
    is_one: bool,
    /// Number of written snapshots.
    count: u64,
    /// Names or ids of the snapshots that were not deleted, and the reasons.
    failures: Vec<(String, Error)>,
    /// The estimate of a dry run.
    estimate: Option<DeleteEstimate>,
}

impl Report {
    fn new(delete: &Delete, output: Output) -> Self {
        Self {
            output,
            verb: match delete.dry_run {
                true => "would delete",
                false => "deleted",
            },
            // A dry run also reports an estimate for all snapshots.
            is_one: delete.snapshots.len() == 1 && !delete.has_filters() && !delete.dry_run,
            count: 0,
            failures: Vec::new(),
            estimate: None,
        }
    }

    /// Writes a snapshot.
    fn done(&mut self, snapshot: &Snapshot) -> Result<(), Failure> {
        self.count += 1;
        let Snapshot { name, id, .. } = snapshot;
        match self.output {
            Output::Table | Output::Wide => {
                output::line(format_args!("{} {name} ({id})", self.verb))
            }
            Output::Json if self.is_one => output::json(&SnapshotJson::from(snapshot)),
            Output::Json => {
                let before = if self.count == 1 { JSON_BEGIN } else { ",\n" };
                let snapshot = json!(SnapshotJson::from(snapshot));
                output::json_text(&format!("{before}{snapshot}"))
            }
        }
    }

    fn failed(&mut self, key: String, error: Error) {
        self.failures.push((key, error));
    }

    /// Writes the end.
    fn end(&self) -> Result<(), Failure> {
        if self.output != Output::Json && self.count == 0 && self.failures.is_empty() {
            return output::line("no snapshots");
        }
        if self.output != Output::Json {
            return match self.estimate {
                Some(estimate) => output::line(format_args!(
                    "{} would become dead, and the next collection would return {}",
                    output::size(estimate.dead_bytes),
                    output::size(estimate.returned_bytes)
                )),
                None => Ok(()),
            };
        }
        if self.is_one {
            return Ok(());
        }
        let begin = if self.count == 0 { JSON_BEGIN } else { "" };
        let failures = self.failures.iter().map(|(key, error)| {
            let (kind, message) = (error.kind().as_str(), error.why());
            json!({ "snapshot": key, "kind": kind, "message": message })
        });
        let failures: Vec<_> = failures.collect();
        let estimate = self.estimate.map_or_else(String::new, |it| {
            let (dead, returned) = (it.dead_bytes, it.returned_bytes);
            format!(",\"dead_bytes\":{dead},\"returned_bytes\":{returned}")
        });
        let failures = json!(failures);
        output::json_text(&format!(
            "{begin}],\"not_deleted\":{failures}{estimate}}}\n"
        ))
    }

    /// The failure of the command, if a snapshot was not deleted.
    fn outcome(self) -> Result<(), Failure> {
        if let [(_, first), _, ..] = &*self.failures {
            self.tell_failures();
            let why = format!("{} snapshots are not deleted", self.failures.len());
            return Err(Error::new(first.kind(), WHAT, why).into());
        }
        match self.failures.into_iter().next() {
            Some((_, only)) => Err(only.into()),
            None => Ok(()),
        }
    }

    /// Tells people the reasons why snapshots were not deleted. Programs have them in the output.
    fn tell_failures(&self) {
        if self.output != Output::Json {
            for (_, error) in &self.failures {
                output::tell(format_args!("snapctl: {error}"));
            }
        }
    }
}
