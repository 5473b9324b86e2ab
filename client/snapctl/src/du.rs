//! `snapctl du`.

use clap::Args;
use futures::TryStreamExt as _;
use serde::Serialize;
use varve_client::{
    Client, Error, ErrorKind, Snapshot, SnapshotFilter, USAGE_RECORDS_MAX, Usage, Usages, Volume,
    VolumeFilter,
};

use crate::{
    Options,
    exit::Failure,
    output::{self, Output},
};

/// The most attempts to list all snapshots and volumes, if some are deleted meanwhile.
const LISTS_MAX: u32 = 5;

/// Arguments of `du`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Exclusive bytes are those that nothing else needs: the deletion of that snapshot or volume alone \
makes them dead, and a collection then gives them back. Several snapshots may share bytes that no \
other needs; `snapctl snapshot delete --dry-run` counts a set together. Of a volume, its base \
counts: its journal is shown by `snapctl volume show`.\n\n\
The daemon looks at the content of all snapshots and volumes, which takes minutes in a large \
store.")]
pub(crate) struct Du {
    /// Names or ids of snapshots and volumes; snapshot/NAME or volume/NAME if both have the name
    /// [default: all of them]
    #[arg(value_name = "SNAPSHOT|VOLUME")]
    names: Vec<String>,
    /// Leave out shared bytes, which is faster
    #[arg(long)]
    exclusive: bool,
}

/// The output of `du` for programs.
#[derive(Debug, Serialize)]
struct DuJson<'a> {
    snapshots: Vec<RowJson<'a>>,
    volumes: Vec<RowJson<'a>>,
}

/// A snapshot or volume and its usage, as JSON.
#[derive(Debug, Serialize)]
struct RowJson<'a> {
    id: &'a str,
    name: &'a str,
    size_bytes: u64,
    exclusive_bytes: u64,
    /// `null` if shared bytes were left out.
    shared_bytes: Option<u64>,
}

impl<'a> RowJson<'a> {
    fn new(record: &'a Record, usage: &Usage, with_shared: bool) -> Self {
        Self {
            id: &record.id,
            name: &record.name,
            size_bytes: record.size_bytes,
            exclusive_bytes: usage.exclusive_bytes,
            shared_bytes: with_shared.then_some(usage.shared_bytes),
        }
    }
}

/// A snapshot or volume.
struct Record {
    id: String,
    name: String,
    size_bytes: u64,
}

impl From<Snapshot> for Record {
    fn from(snapshot: Snapshot) -> Self {
        Self {
            id: snapshot.id,
            name: snapshot.name,
            size_bytes: snapshot.size_bytes,
        }
    }
}

impl From<Volume> for Record {
    fn from(volume: Volume) -> Self {
        Self {
            id: volume.id,
            name: volume.name,
            size_bytes: volume.size_bytes,
        }
    }
}

impl Du {
    pub(crate) async fn run(self, options: &Options) -> Result<(), Failure> {
        let client = options.connect().await?;
        let with_shared = !self.exclusive;
        let (snapshots, volumes, usages) = match self.names.is_empty() {
            true => count_all(&client, with_shared).await?,
            false => {
                let (snapshots, volumes) = self.named(&client, options).await?;
                let usages = count(&client, &snapshots, &volumes, with_shared).await?;
                (snapshots, volumes, usages)
            }
        };
        let snapshots = snapshots.iter().zip(&usages.snapshots);
        let volumes = volumes.iter().zip(&usages.volumes);
        if options.output == Output::Json {
            let row = |(record, usage)| RowJson::new(record, usage, with_shared);
            return output::json(&DuJson {
                snapshots: snapshots.map(row).collect(),
                volumes: volumes.map(row).collect(),
            });
        }
        const HEADINGS: [&str; 6] = ["NAME", "+ID", "KIND", ">SIZE", ">EXCLUSIVE", ">SHARED"];
        let mut table = output::table(&HEADINGS, options.output);
        let snapshots = snapshots.map(|row| (row, "snapshot"));
        let volumes = volumes.map(|row| (row, "volume"));
        for ((record, usage), kind) in snapshots.chain(volumes) {
            let shared = with_shared.then(|| output::size(usage.shared_bytes));
            table.add_row([
                record.name.clone(),
                record.id.clone(),
                kind.to_owned(),
                output::size(record.size_bytes),
                output::size(usage.exclusive_bytes),
                shared.unwrap_or_else(|| "-".to_owned()),
            ]);
        }
        table.write("snapshots and no volumes")
    }

    /// The snapshots and volumes of the command line. A name of a snapshot and of a volume selects
    /// both.
    async fn named(
        &self,
        client: &Client,
        options: &Options,
    ) -> Result<(Vec<Record>, Vec<Record>), Failure> {
        let (mut snapshots, mut volumes) = (Vec::new(), Vec::new());
        for given in &self.names {
            let name = options.named.snapshot(client, given).await?;
            let snapshot = found(client.snapshot(&name).await)?;
            let name = options.named.volume(client, given).await?;
            let volume = found(client.volume(&name).await)?;
            if snapshot.is_none() && volume.is_none() {
                let what = format!("show what {given} takes");
                let why = "there is no snapshot or volume of that name or id";
                return Err(Error::new(ErrorKind::NotFound, what, why).into());
            }
            snapshots.extend(snapshot.map(Record::from));
            volumes.extend(volume.map(Record::from));
        }
        Ok((snapshots, volumes))
    }
}

/// The usage of these snapshots and volumes.
async fn count(
    client: &Client,
    snapshots: &[Record],
    volumes: &[Record],
    with_shared: bool,
) -> Result<Usages, Failure> {
    if snapshots.len() + volumes.len() > USAGE_RECORDS_MAX {
        let why = format!(
            "{} snapshots and volumes, at most {USAGE_RECORDS_MAX} are counted at one time",
            snapshots.len() + volumes.len()
        );
        return Err(Failure::usage("show what is taken", why));
    }
    let ids = |records: &[Record]| records.iter().map(|it| it.id.clone()).collect();
    Ok(client
        .usage(ids(snapshots), ids(volumes), with_shared)
        .await?)
}

/// The usage of all snapshots and volumes. Lists them again if one was deleted meanwhile.
async fn count_all(
    client: &Client,
    with_shared: bool,
) -> Result<(Vec<Record>, Vec<Record>, Usages), Failure> {
    let mut tries = 0;
    loop {
        let (snapshots, volumes) = all(client).await?;
        tries += 1;
        match count(client, &snapshots, &volumes, with_shared).await {
            Err(Failure::Client(error))
                if error.kind() == ErrorKind::NotFound && tries < LISTS_MAX => {}
            usages => return Ok((snapshots, volumes, usages?)),
        }
    }
}

/// All snapshots and volumes.
async fn all(client: &Client) -> Result<(Vec<Record>, Vec<Record>), Failure> {
    let snapshots = client.snapshots(SnapshotFilter::default());
    let snapshots = snapshots.map_ok(Record::from).try_collect().await?;
    let volumes = client.volumes(VolumeFilter::default());
    Ok((snapshots, volumes.map_ok(Record::from).try_collect().await?))
}

/// `None` if the record does not exist.
fn found<T>(answer: Result<T, Error>) -> Result<Option<T>, Failure> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}
