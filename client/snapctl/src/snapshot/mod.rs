//! `snapctl snapshot`.

mod delete;

use std::{collections::BTreeMap, fmt::Write as _};

use clap::{Args, Subcommand};
use futures::{StreamExt, TryStreamExt};
use serde::Serialize;
use serde_json::json;
use varve_client::{
    ChangeKind, ChangedExtent, Client, Control, SnapshotFilter, VerifyReport, Violation,
};

use self::delete::Delete;
use crate::{
    Options,
    exit::Failure,
    import::parse_tag,
    listing::Listing,
    meter,
    output::{self, Output, SnapshotJson},
    sharing,
};

/// Arguments of `snapshot`. A snapshot is given by its name or its id, with or without the prefix
/// `snapshot/`.
#[derive(Debug, Subcommand)]
pub(crate) enum Snapshot {
    /// Make a snapshot of a volume, or of several volumes at one instant, in use or not
    Create(Create),
    /// List snapshots, by owner, then by name
    #[command(visible_alias = "ls")]
    List(Listing),
    /// Show a snapshot
    #[command(visible_alias = "get")]
    Show {
        /// Name or id
        snapshot: String,
    },
    /// Delete snapshots that are named, or all that match filters; this cancels pending snapshots
    #[command(visible_alias = "rm")]
    Delete(Delete),
    /// Set and remove tags of a snapshot
    Tag(Tag),
    /// Let other accounts read a snapshot, and make volumes from it
    Share(Share),
    /// End the sharing of a snapshot; what others made of it stays
    Unshare(Share),
    /// Show where two snapshots differ, related or not
    Diff(Diff),
    /// Read and check all data of a snapshot
    Verify {
        /// Name or id
        snapshot: String,
    },
}

/// The output of `snapshot list` for programs.
#[derive(Debug, Serialize)]
struct ListJson<'a> {
    snapshots: Vec<SnapshotJson<'a>>,
}

/// Arguments of `snapshot create`.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Names or ids of volumes; the snapshots have one instant in common
    #[arg(required = true, value_name = "VOLUME")]
    volumes: Vec<String>,
    /// Name of the snapshot; with several volumes, the snapshots are named NAME-VOLUME
    #[arg(long)]
    name: String,
    /// A tag for the snapshots; may be given more than once
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = parse_tag)]
    tags: Vec<(String, String)>,
    /// Wait until the snapshot is completed; until then its content is durable in the journal and
    /// on its way into the store
    #[arg(long)]
    wait: bool,
}

/// Arguments of `snapshot tag`.
#[derive(Debug, Args)]
pub(crate) struct Tag {
    /// Name or id
    snapshot: String,
    /// Tags to set
    #[arg(value_name = "KEY=VALUE", value_parser = parse_tag, required_unless_present = "remove")]
    tags: Vec<(String, String)>,
    /// A tag to remove; may be given more than once
    #[arg(long, value_name = "KEY")]
    remove: Vec<String>,
}

/// Arguments of `snapshot share` and `snapshot unshare`.
#[derive(Debug, Args)]
pub(crate) struct Share {
    /// Name or id
    snapshot: String,
    /// Ids of accounts, for the administrator also their names; `all`: all accounts
    #[arg(required = true, value_name = "ACCOUNT")]
    accounts: Vec<String>,
}

/// Arguments of `snapshot diff`.
#[derive(Debug, Args)]
pub(crate) struct Diff {
    /// Name or id of the older snapshot
    base: String,
    /// Name or id of the newer snapshot
    target: String,
    /// Show only the amount that differs
    #[arg(long)]
    summary: bool,
}

impl Snapshot {
    pub(crate) async fn run(self, options: &Options) -> Result<(), Failure> {
        if let Self::Delete(delete) = &self {
            delete.check(options)?;
        }
        let client = options.connect().await?;
        match self {
            Self::Create(create) => create.run(&client, options).await,
            Self::List(listing) => list(listing, &client, options).await,
            Self::Show { snapshot } => {
                let snapshot = options.named.snapshot(&client, &snapshot).await?;
                show(&client.snapshot(&snapshot).await?, options)
            }
            Self::Delete(delete) => delete.run(&client, options).await,
            Self::Tag(Tag {
                snapshot,
                tags,
                remove,
            }) => {
                let snapshot = options.named.snapshot(&client, &snapshot).await?;
                let tagged = client
                    .tag_snapshot(&snapshot, BTreeMap::from_iter(tags), remove)
                    .await?;
                show(&tagged, options)
            }
            Self::Share(Share { snapshot, accounts }) => {
                let snapshot = options.named.snapshot(&client, &snapshot).await?;
                let with = sharing::with(accounts);
                show(&client.share_snapshot(&snapshot, with).await?, options)
            }
            Self::Unshare(Share { snapshot, accounts }) => {
                let snapshot = options.named.snapshot(&client, &snapshot).await?;
                let with = sharing::with(accounts);
                show(&client.unshare_snapshot(&snapshot, with).await?, options)
            }
            Self::Diff(diff) => diff.run(&client, options).await,
            Self::Verify { snapshot } => verify(&client, &snapshot, options).await,
        }
    }
}

impl Create {
    async fn run(self, client: &Client, options: &Options) -> Result<(), Failure> {
        let tags = BTreeMap::from_iter(self.tags);
        let mut volumes = Vec::with_capacity(self.volumes.len());
        for volume in &self.volumes {
            volumes.push(options.named.volume(client, volume).await?);
        }
        let mut snapshots = client.create_snapshots(&volumes, &self.name, tags).await?;
        if self.wait {
            let control = Control::new();
            let ids = snapshots.iter().map(|it| it.id.clone());
            let waiting = client
                .wait_for_snapshots(ids)
                .on_retry(|snapshot| {
                    if let Some(why) = &snapshot.failure {
                        let (id, name) = (&snapshot.id, &snapshot.name);
                        options.remark(format_args!("{id} ({name}) will be retried: {why}"));
                    }
                })
                .control(&control)
                .run();
            snapshots = meter::watch(
                "snapshot",
                options.quiet,
                &control.progress,
                Box::pin(waiting),
            )
            .await?;
        }
        match (&*snapshots, options.output) {
            ([one], _) => show(one, options),
            (several, Output::Json) => output::json(&ListJson {
                snapshots: several.iter().map(SnapshotJson::from).collect(),
            }),
            (several, output) => table(several, output),
        }
    }
}

async fn list(listing: Listing, client: &Client, options: &Options) -> Result<(), Failure> {
    let (limit, tags) = (listing.limit(), listing.tags());
    let filter = SnapshotFilter {
        name_prefix: listing.name_prefix,
        tags,
        owner: listing.owner,
    };
    let snapshots: Vec<_> = client.snapshots(filter).take(limit).try_collect().await?;
    if options.output == Output::Json {
        return output::json(&ListJson {
            snapshots: snapshots.iter().map(SnapshotJson::from).collect(),
        });
    }
    table(&snapshots, options.output)
}

fn table(snapshots: &[varve_client::Snapshot], output: Output) -> Result<(), Failure> {
    let owner = output::owner_heading(snapshots.iter().map(|snapshot| &*snapshot.owner));
    let headings = [
        "NAME", "ID", owner, "STATE", ">SIZE", ">DATA", "+>NEW", "+CREATED", "+TAGS",
    ];
    let mut table = output::table(&headings, output);
    for snapshot in snapshots {
        table.add_row([
            snapshot.name.clone(),
            snapshot.id.clone(),
            snapshot.owner.clone(),
            output::state(snapshot),
            output::size(snapshot.size_bytes),
            output::size(snapshot.data_bytes),
            output::size(snapshot.new_bytes),
            output::time(snapshot.created_at),
            output::tags(&snapshot.tags),
        ]);
    }
    table.write("snapshots")
}

fn show(snapshot: &varve_client::Snapshot, options: &Options) -> Result<(), Failure> {
    if options.output == Output::Json {
        return output::json(&SnapshotJson::from(snapshot));
    }
    let mut facts = vec![
        ("Name", snapshot.name.clone()),
        ("Id", snapshot.id.clone()),
        ("State", output::state(snapshot)),
    ];
    facts.extend(snapshot.failure.iter().map(|why| ("Why", why.clone())));
    facts.extend([
        ("Size", output::size(snapshot.size_bytes)),
        ("Data", output::size(snapshot.data_bytes)),
        ("New", output::size(snapshot.new_bytes)),
        ("Stored", output::size(snapshot.stored_bytes)),
        ("Root", output::root(snapshot)),
        ("Created", output::time(snapshot.created_at)),
    ]);
    let volume = snapshot.volume.iter();
    facts.extend(volume.map(|volume| ("Volume", format!("{} ({})", volume.name, volume.id))));
    facts.extend(snapshot.parent.iter().map(|id| ("Parent", id.clone())));
    facts.extend(output::other_owner(&snapshot.owner).map(|id| ("Owner", id)));
    facts.extend(sharing::facts(&snapshot.sharing));
    let tags = snapshot.tags.iter();
    facts.extend(tags.map(|(key, value)| ("Tag", format!("{key}={value}"))));
    output::write(&output::facts(&facts))
}

/// Sums of the extents that differ.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
struct Totals {
    changed_bytes: u64,
    added_bytes: u64,
    removed_bytes: u64,
}

impl Totals {
    fn add(&mut self, extent: &ChangedExtent) {
        let total = match extent.kind {
            ChangeKind::Changed => &mut self.changed_bytes,
            ChangeKind::Added => &mut self.added_bytes,
            ChangeKind::Removed => &mut self.removed_bytes,
        };
        *total = total.saturating_add(extent.len_bytes);
    }
}

impl Diff {
    /// Written as they come: there may be millions.
    async fn run(self, client: &Client, options: &Options) -> Result<(), Failure> {
        let json = options.output == Output::Json;
        let base = options.named.snapshot(client, &self.base).await?;
        let target = options.named.snapshot(client, &self.target).await?;
        let extents = client.changes(&target).since(&base).run().await?;
        let mut extents = extents.ready_chunks(1000);
        let mut totals = Totals::default();
        let mut first = true;
        if json {
            output::json_text(&format!(
                "{{\"base\":{},\"target\":{}",
                json!(self.base),
                json!(self.target)
            ))?;
            if !self.summary {
                output::json_text(",\"extents\":[")?;
            }
        } else if !self.summary {
            output::line(format_args!("{:>16} {:>16}  KIND", "OFFSET", "LENGTH"))?;
        }
        while let Some(chunk) = extents.next().await {
            let mut text = String::new();
            for extent in chunk {
                let extent = extent?;
                totals.add(&extent);
                if self.summary {
                    continue;
                }
                let ChangedExtent {
                    offset_bytes,
                    len_bytes,
                    kind,
                } = extent;
                let kind = kind.as_str();
                let written = if json {
                    let comma = if first { "\n" } else { ",\n" };
                    first = false;
                    write!(
                        text,
                        "{comma}{{\"offset_bytes\":{offset_bytes},\"length_bytes\":{len_bytes},\"kind\":\"{kind}\"}}"
                    )
                } else {
                    writeln!(text, "{offset_bytes:>16} {len_bytes:>16}  {kind}")
                };
                written.map_err(|error| {
                    Failure::local("write to standard output", error.to_string())
                })?;
            }
            output::write(&text)?;
        }
        if json {
            let end = if self.summary { "" } else { "]" };
            let Totals {
                changed_bytes,
                added_bytes,
                removed_bytes,
            } = totals;
            return output::line(format_args!(
                "{end},\"changed_bytes\":{changed_bytes},\"added_bytes\":{added_bytes},\"removed_bytes\":{removed_bytes}}}"
            ));
        }
        if !self.summary {
            output::line("")?;
        }
        output::write(&output::facts(&[
            ("Changed", output::size(totals.changed_bytes)),
            ("Added", output::size(totals.added_bytes)),
            ("Removed", output::size(totals.removed_bytes)),
        ]))
    }
}

/// Limits on the violations that `snapshot verify` lists: their number and the bytes of their
/// messages. Further ones are only counted. A lost pack is a violation for each of its chunks,
/// which may be millions.
const VIOLATIONS_LISTED: (usize, usize) = (1000, 1 << 20);

/// The violations that `snapshot verify` lists.
#[derive(Debug, Default)]
struct Findings {
    violations: Vec<Violation>,
    /// Bytes of their messages.
    bytes: usize,
}

impl Findings {
    fn add(&mut self, violation: Violation) {
        self.bytes = self.bytes.saturating_add(violation.message.len());
        let (most, most_bytes) = VIOLATIONS_LISTED;
        if self.violations.len() < most && self.bytes <= most_bytes {
            self.violations.push(violation);
        }
    }
}

/// The output of `snapshot verify` for programs.
#[derive(Debug, Serialize)]
struct VerifyJson<'a> {
    /// The name or id as given.
    snapshot: &'a str,
    ok: bool,
    checked: u64,
    checked_bytes: u64,
    /// Number of all violations; the first ones are listed.
    violation_count: u64,
    violations: Vec<ViolationJson<'a>>,
}

#[derive(Debug, Serialize)]
struct ViolationJson<'a> {
    message: &'a str,
    offset_bytes: u64,
}

impl<'a> From<&'a Violation> for ViolationJson<'a> {
    fn from(violation: &'a Violation) -> Self {
        Self {
            message: &violation.message,
            offset_bytes: violation.offset_bytes,
        }
    }
}

async fn verify(client: &Client, snapshot: &str, options: &Options) -> Result<(), Failure> {
    let control = Control::new();
    let name = options.named.snapshot(client, snapshot).await?;
    let mut findings = Findings::default();
    let checking = client
        .verify_snapshot(&name)
        .on_violation(|violation| findings.add(violation))
        .control(&control)
        .run();
    let report = meter::watch("verify", options.quiet, &control.progress, checking).await?;
    let violations = findings.violations;
    let VerifyReport {
        checked,
        checked_bytes,
        violations: count,
        ..
    } = report;
    if options.output == Output::Json {
        output::json(&VerifyJson {
            snapshot,
            ok: count == 0,
            checked,
            checked_bytes,
            violation_count: count,
            violations: violations.iter().map(ViolationJson::from).collect(),
        })?;
    } else {
        for violation in &violations {
            output::line(format_args!(
                "at offset {}: {}",
                violation.offset_bytes, violation.message
            ))?;
        }
        let unlisted = count - violations.len() as u64;
        if unlisted > 0 {
            output::line(format_args!("and {unlisted} more"))?;
        }
        let verdict = match count {
            0 => "sound".to_owned(),
            1 => "1 violation".to_owned(),
            count => format!("{count} violations"),
        };
        let checked_bytes = output::size(checked_bytes);
        output::line(format_args!(
            "{snapshot}: {verdict}; {checked} chunks and nodes checked, {checked_bytes}"
        ))?;
    }
    if count == 0 {
        Ok(())
    } else {
        Err(Failure::Violations)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(findings: &mut Findings, count: usize, message: &str) {
        for _ in 0..count {
            findings.add(Violation {
                message: message.to_owned(),
                offset_bytes: 4096,
            });
        }
    }

    #[test]
    fn the_first_violations_are_kept() {
        let mut findings = Findings::default();
        add(&mut findings, 100_000, "chunk 1 is damaged");
        assert_eq!(findings.violations.len(), VIOLATIONS_LISTED.0);

        let mut long = Findings::default();
        add(&mut long, 3, &"x".repeat(VIOLATIONS_LISTED.1 / 2));
        assert_eq!(long.violations.len(), 2);
    }
}
