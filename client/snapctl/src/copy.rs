//! `snapctl copy`.

use std::{collections::BTreeMap, time::Duration};

use clap::{Args, Subcommand};
use futures::TryStreamExt as _;
use serde::Serialize;
use varve_client::{Client, Copy, CopyEstimate, CopySource, CopyState, Error, ErrorKind, NewCopy};

use crate::{
    Options,
    exit::Failure,
    import::parse_tag,
    meter,
    output::{self, Output},
    signals,
    size::parse_rate,
};

/// Arguments of `copy`: a command, or, in the old syntax, the arguments of `create`.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    override_usage = "snapctl copy [OPTIONS] <COMMAND>",
    after_long_help = "\
The daemon at --endpoint pulls the snapshots from the daemon at --from. Only missing chunks are \
transferred. The daemon retries an \
interrupted copy by itself, even after a restart. It never fetches a chunk twice."
)]
pub(crate) struct Copies {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    new: Option<New>,
}

/// Leaves the old syntax for beginning a copy out of the help.
pub(crate) fn hide_old(command: clap::Command) -> clap::Command {
    command.mut_subcommand("copy", |copy| copy.mut_args(|argument| argument.hide(true)))
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Begin copies of snapshots from another store
    Create(New),
    /// Show how much a copy would transfer, and copy nothing
    Estimate(Source),
    /// List copies, newest first
    #[command(visible_alias = "ls")]
    List,
    /// Show a copy
    #[command(visible_alias = "get")]
    Show {
        /// Its id
        copy: String,
    },
    /// Cancel a copy; chunks that have arrived stay in the store
    Cancel {
        /// Its id
        copy: String,
    },
    /// Limit the rate of a copy
    Limit {
        /// Its id
        copy: String,
        /// Bytes per second, as in 100M; none for no limit
        #[arg(value_name = "BYTES", value_parser = parse_rate)]
        limit: u64,
    },
}

/// A snapshot of another store.
#[derive(Debug, Args)]
struct Source {
    /// Name or id of the snapshot in the other store
    snapshot: String,
    /// Endpoint of the other daemon, as seen from this one: https://HOST:PORT, unix:PATH or
    /// http://HOST:PORT; or the name of a remote
    #[arg(long, value_name = "ENDPOINT|REMOTE")]
    from: String,
    /// Allow plain HTTP over a network, where others can read the content
    #[arg(long)]
    allow_plaintext: bool,
}

/// A copy to be.
#[derive(Debug, Args)]
struct New {
    /// Names or ids of snapshots in the other store; chunks that they share are transferred once
    #[arg(required = true, value_name = "SNAPSHOT")]
    snapshots: Vec<String>,
    /// Endpoint of the other daemon, as seen from this one: https://HOST:PORT, unix:PATH or
    /// http://HOST:PORT; or the name of a remote
    #[arg(long, value_name = "ENDPOINT|REMOTE")]
    from: String,
    /// Allow plain HTTP over a network, where others can read the content
    #[arg(long)]
    allow_plaintext: bool,
    /// Name of the snapshot here, if there is only one [default: its name there]
    #[arg(long)]
    name: Option<String>,
    /// A tag in addition to those that it has there; may be given more than once
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = parse_tag)]
    tags: Vec<(String, String)>,
    /// Limit on the rate of each copy, in bytes per second, as in 100M
    #[arg(long, value_name = "BYTES", value_parser = parse_rate, default_value = "none")]
    limit: u64,
    /// Wait until the copies are completed
    #[arg(long)]
    wait: bool,
}

/// A copy as JSON.
#[derive(Debug, Serialize)]
struct CopyJson<'a> {
    id: &'a str,
    state: &'a str,
    endpoint: &'a str,
    snapshot: &'a str,
    name: &'a str,
    created_at: Option<String>,
    ended_at: Option<String>,
    root: Option<String>,
    size_bytes: u64,
    data_bytes: u64,
    done_data_bytes: u64,
    received_chunks: u64,
    received_bytes: u64,
    rate_bytes_per_second: u64,
    limit_bytes_per_second: u64,
    remaining_seconds: Option<u64>,
    last_error: Option<&'a str>,
    last_error_kind: Option<&'a str>,
    snapshot_id: Option<&'a str>,
    tags: &'a BTreeMap<String, String>,
    /// `null` from daemons without accounts.
    owner: Option<&'a str>,
}

impl<'a> From<&'a Copy> for CopyJson<'a> {
    fn from(copy: &'a Copy) -> Self {
        Self {
            id: &copy.id,
            state: copy.state.as_str(),
            endpoint: &copy.source.endpoint,
            snapshot: &copy.source.snapshot,
            name: &copy.name,
            created_at: output::rfc3339(copy.created_at),
            ended_at: copy.ended_at.and_then(output::rfc3339),
            root: copy.root.map(|root| root.to_string()),
            size_bytes: copy.size_bytes,
            data_bytes: copy.data_bytes,
            done_data_bytes: copy.done_data_bytes,
            received_chunks: copy.received_chunks,
            received_bytes: copy.received_bytes,
            rate_bytes_per_second: copy.rate_bytes_per_second,
            limit_bytes_per_second: copy.limit_bytes_per_second,
            remaining_seconds: copy.remaining().map(|left| left.as_secs()),
            last_error: copy.last_error.as_deref(),
            last_error_kind: copy.last_error_kind.map(ErrorKind::as_str),
            snapshot_id: copy.snapshot_id.as_deref(),
            tags: &copy.tags,
            owner: output::owner(&copy.owner),
        }
    }
}

/// The output of `copy list` for programs.
#[derive(Debug, Serialize)]
struct ListJson<'a> {
    copies: Vec<CopyJson<'a>>,
}

/// The output of `copy estimate` for programs.
#[derive(Debug, Serialize)]
struct EstimateJson {
    root: String,
    size_bytes: u64,
    data_bytes: u64,
    present_data_bytes: u64,
    missing_chunks: u64,
    missing_bytes: u64,
}

impl Copies {
    pub(crate) async fn run(self, options: &Options) -> Result<(), Failure> {
        let client = options.connect().await?;
        match (self.command, self.new) {
            (Some(Command::Estimate(source)), _) => {
                let estimate = client.estimate_copy(source.into()).await?;
                print_estimate(&estimate, options)
            }
            (Some(Command::List), _) => {
                let copies: Vec<_> = client.copies().try_collect().await?;
                list(&copies, options)
            }
            (Some(Command::Show { copy }), _) => show(&client.copy_status(&copy).await?, options),
            (Some(Command::Cancel { copy }), _) => show(&client.cancel_copy(&copy).await?, options),
            (Some(Command::Limit { copy, limit }), _) => {
                show(&client.limit_copy(&copy, limit).await?, options)
            }
            (Some(Command::Create(new)), _) | (None, Some(new)) => new.run(&client, options).await,
            (None, None) => Err(Failure::usage(
                "copy",
                "give a snapshot, and its store with --from",
            )),
        }
    }
}

impl New {
    async fn run(self, client: &Client, options: &Options) -> Result<(), Failure> {
        if self.name.is_some() && self.snapshots.len() > 1 {
            return Err(Failure::usage(
                "copy",
                "--name is for one snapshot; several keep the names that they have there",
            ));
        }
        let mut copies = Vec::with_capacity(self.snapshots.len());
        for snapshot in self.snapshots {
            let new = NewCopy {
                source: CopySource {
                    endpoint: self.from.clone(),
                    snapshot,
                    allow_plaintext: self.allow_plaintext,
                },
                name: self.name.clone().unwrap_or_default(),
                tags: BTreeMap::from_iter(self.tags.clone()),
                bytes_per_second: self.limit,
            };
            copies.push(client.copy(new).await?);
        }
        if self.wait {
            let control = signals::control();
            let ids: Vec<_> = copies.iter().map(|copy| copy.id.clone()).collect();
            let waiting = client
                .wait_for_copies(&ids)
                .on_change(|copy| tell(copy, options))
                .control(&control)
                .run();
            let ended =
                meter::watch("copy", options.quiet, &control.progress, Box::pin(waiting)).await;
            copies = match ended {
                Err(_) if control.cancel.is_cancelled() => return Err(goes_on(&ids).into()),
                ended => ended?,
            };
        }
        match &*copies {
            [one] => show(one, options),
            several => list(several, options),
        }
    }
}

/// The error for waiting that was interrupted.
fn goes_on(ids: &[String]) -> Error {
    let (what, ids) = (
        format!("wait for {}", ids.join(", ")),
        ids.join("` and `snapctl copy cancel "),
    );
    let why = format!("interrupted; the copy continues, and `snapctl copy cancel {ids}` ends it");
    Error::new(ErrorKind::Cancelled, what, why)
}

/// Remarks on why a copy waits, and that it continues.
fn tell(copy: &Copy, options: &Options) {
    let (id, snapshot) = (&copy.id, &copy.source.snapshot);
    match (copy.state, &copy.last_error) {
        (CopyState::Queued, _) => {
            options.remark(format_args!("{id} ({snapshot}) waits for its turn"));
        }
        (CopyState::Waiting, Some(why)) => {
            options.remark(format_args!("{id} ({snapshot}) will be retried: {why}"));
        }
        _ => {}
    }
}

impl From<Source> for CopySource {
    fn from(source: Source) -> Self {
        Self {
            endpoint: source.from,
            snapshot: source.snapshot,
            allow_plaintext: source.allow_plaintext,
        }
    }
}

fn list(copies: &[Copy], options: &Options) -> Result<(), Failure> {
    if options.output == Output::Json {
        return output::json(&ListJson {
            copies: copies.iter().map(CopyJson::from).collect(),
        });
    }
    let owner = output::owner_heading(copies.iter().map(|copy| &*copy.owner));
    let headings = [
        "ID",
        "SNAPSHOT",
        "+FROM",
        owner,
        "STATE",
        ">DONE",
        ">DATA",
        "+>RECEIVED",
        "+>RATE",
        "+BEGUN",
    ];
    let mut table = output::table(&headings, options.output);
    for copy in copies {
        table.add_row([
            copy.id.clone(),
            copy.source.snapshot.clone(),
            copy.source.endpoint.clone(),
            copy.owner.clone(),
            copy.state.as_str().to_owned(),
            output::size(copy.done_data_bytes),
            output::size(copy.data_bytes),
            output::size(copy.received_bytes),
            output::rate(copy.rate_bytes_per_second),
            output::time(copy.created_at),
        ]);
    }
    table.write("copies")
}

fn show(copy: &Copy, options: &Options) -> Result<(), Failure> {
    if options.output == Output::Json {
        return output::json(&CopyJson::from(copy));
    }
    let mut facts = vec![
        ("Copy", copy.id.clone()),
        ("State", copy.state.as_str().to_owned()),
        (
            "From",
            format!("{} at {}", copy.source.snapshot, copy.source.endpoint),
        ),
    ];
    if !copy.name.is_empty() {
        let id = copy.snapshot_id.as_ref();
        let id = id.map(|id| format!(" ({id})")).unwrap_or_default();
        facts.push(("Snapshot", format!("{}{id}", copy.name)));
    }
    if let Some(root) = copy.root {
        let equal = if copy.state == CopyState::Completed {
            ", here as there"
        } else {
            ""
        };
        facts.extend([
            ("Root", format!("{root}{equal}")),
            ("Size", output::size(copy.size_bytes)),
            (
                "Here",
                format!(
                    "{} of {}",
                    output::size(copy.done_data_bytes),
                    output::size(copy.data_bytes)
                ),
            ),
        ]);
    }
    facts.push((
        "Received",
        format!(
            "{} in {} chunks",
            output::size(copy.received_bytes),
            copy.received_chunks
        ),
    ));
    if copy.limit_bytes_per_second > 0 {
        facts.push(("Limit", output::rate(copy.limit_bytes_per_second)));
    }
    if copy.state == CopyState::Running {
        facts.push(("Rate", output::rate(copy.rate_bytes_per_second)));
    }
    if let Some(left) = copy.remaining() {
        facts.push(("Left", format!("{} s", left.as_secs())));
    }
    facts.extend(copy.last_error.iter().map(|why| ("Error", why.clone())));
    facts.extend(output::other_owner(&copy.owner).map(|id| ("Owner", id)));
    facts.push(("Begun", output::time(copy.created_at)));
    if let Some(ended) = copy.ended_at {
        let took = ended.duration_since(copy.created_at);
        let took = took.unwrap_or(Duration::ZERO).as_secs_f64();
        facts.push(("Time", format!("{took:.2} s")));
    }
    output::write(&output::facts(&facts))
}

fn print_estimate(estimate: &CopyEstimate, options: &Options) -> Result<(), Failure> {
    if options.output == Output::Json {
        return output::json(&EstimateJson {
            root: estimate.root.to_string(),
            size_bytes: estimate.size_bytes,
            data_bytes: estimate.data_bytes,
            present_data_bytes: estimate.present_data_bytes,
            missing_chunks: estimate.missing_chunks,
            missing_bytes: estimate.missing_bytes,
        });
    }
    let text = output::facts(&[
        ("Root", estimate.root.to_string()),
        ("Size", output::size(estimate.size_bytes)),
        ("Data", output::size(estimate.data_bytes)),
        ("Here", output::size(estimate.present_data_bytes)),
        (
            "To cross",
            format!(
                "{} in {} chunks",
                output::size(estimate.missing_bytes),
                estimate.missing_chunks
            ),
        ),
    ]);
    output::write(&text)
}
