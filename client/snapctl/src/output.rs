//! Tables for people and JSON for programs.
//!
//! The JSON is an interface: fields are named as in the protocol and stay; sizes are bytes, times
//! are RFC 3339 in UTC, ids are hexadecimal. New fields may come.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    time::{Duration, SystemTime},
};

use clap::ValueEnum;
use comfy_table::{CellAlignment, Table, TableStyle};
use jiff::Timestamp;
use serde::Serialize;
use varve_client::{ADMINISTRATOR, Snapshot, SnapshotState, Volume, VolumeStatus};
use varve_content::printable::{printable, printable_json};

use crate::exit::Failure;

/// The formats of results.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Table,
    /// For people, with all columns.
    Wide,
    /// For programs.
    Json,
}

/// A snapshot as JSON.
#[derive(Debug, Serialize)]
pub(crate) struct SnapshotJson<'a> {
    id: &'a str,
    name: &'a str,
    state: &'a str,
    size_bytes: u64,
    data_bytes: u64,
    /// `null` unless it is completed.
    root: Option<String>,
    created_at: Option<String>,
    tags: &'a BTreeMap<String, String>,
    new_bytes: u64,
    stored_bytes: u64,
    volume_id: Option<&'a str>,
    volume_name: Option<&'a str>,
    parent: Option<&'a str>,
    /// `null` unless it is pending.
    progress: Option<ProgressJson>,
    /// `null` unless it has failed.
    failure: Option<&'a str>,
    /// `null` from daemons without accounts, and in archives.
    owner: Option<&'a str>,
    /// Empty for callers who are not the owner, nor the administrator.
    shared_accounts: &'a [String],
    shared_with_everybody: bool,
}

/// Progress of a pending snapshot, as JSON.
#[derive(Debug, Serialize)]
struct ProgressJson {
    done_bytes: u64,
    total_bytes: u64,
}

impl<'a> From<&'a Snapshot> for SnapshotJson<'a> {
    fn from(snapshot: &'a Snapshot) -> Self {
        Self {
            id: &snapshot.id,
            name: &snapshot.name,
            state: snapshot.state.as_str(),
            size_bytes: snapshot.size_bytes,
            data_bytes: snapshot.data_bytes,
            root: snapshot.root.as_ref().map(ToString::to_string),
            created_at: rfc3339(snapshot.created_at),
            tags: &snapshot.tags,
            new_bytes: snapshot.new_bytes,
            stored_bytes: snapshot.stored_bytes,
            volume_id: snapshot.volume.as_ref().map(|volume| &*volume.id),
            volume_name: snapshot.volume.as_ref().map(|volume| &*volume.name),
            parent: snapshot.parent.as_deref(),
            progress: snapshot.progress.map(|progress| ProgressJson {
                done_bytes: progress.done_bytes,
                total_bytes: progress.total_bytes,
            }),
            failure: snapshot.failure.as_deref(),
            owner: owner(&snapshot.owner),
            shared_accounts: &snapshot.sharing.accounts,
            shared_with_everybody: snapshot.sharing.everybody,
        }
    }
}

/// A volume as JSON.
#[derive(Debug, Serialize)]
pub(crate) struct VolumeJson<'a> {
    id: &'a str,
    name: &'a str,
    size_bytes: u64,
    base: Option<String>,
    parent: Option<&'a str>,
    created_at: Option<String>,
    tags: &'a BTreeMap<String, String>,
    attached_at: Option<String>,
    attachments: u64,
    /// `null` from daemons without accounts.
    owner: Option<&'a str>,
    /// Only where a single volume is shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<VolumeStatusJson<'a>>,
}

/// A volume's journal and pending snapshots, as JSON.
#[derive(Debug, Serialize)]
struct VolumeStatusJson<'a> {
    journal_bytes: u64,
    journal_bytes_max: u64,
    map_bytes: u64,
    /// `null` while it is not open.
    found: Option<JournalFoundJson<'a>>,
    pending: Vec<SnapshotJson<'a>>,
}

/// The content found in a journal, as JSON.
#[derive(Debug, Serialize)]
struct JournalFoundJson<'a> {
    batches: u64,
    blocks: u64,
    files: u64,
    torn: Option<&'a str>,
}

impl<'a> From<&'a VolumeStatus> for VolumeStatusJson<'a> {
    fn from(status: &'a VolumeStatus) -> Self {
        Self {
            journal_bytes: status.journal_bytes,
            journal_bytes_max: status.journal_bytes_max,
            map_bytes: status.map_bytes,
            found: status.found.as_ref().map(|found| JournalFoundJson {
                batches: found.batches,
                blocks: found.blocks,
                files: found.files,
                torn: found.torn.as_deref(),
            }),
            pending: status.pending.iter().map(SnapshotJson::from).collect(),
        }
    }
}

impl<'a> From<&'a Volume> for VolumeJson<'a> {
    fn from(volume: &'a Volume) -> Self {
        Self {
            id: &volume.id,
            name: &volume.name,
            size_bytes: volume.size_bytes,
            base: volume.base.as_ref().map(ToString::to_string),
            parent: volume.parent.as_deref(),
            created_at: rfc3339(volume.created_at),
            tags: &volume.tags,
            attached_at: volume.attached_at.and_then(rfc3339),
            attachments: volume.attachments,
            owner: owner(&volume.owner),
            status: volume.status.as_ref().map(VolumeStatusJson::from),
        }
    }
}

/// Writes bytes to standard output as they are.
pub(crate) fn bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(bytes)
        .and_then(|()| stdout.flush())
        .map_err(Failure::output)
}

/// Writes lines to standard output. Names, tags and reasons in them come from others, so only
/// printable characters of them reach the terminal.
pub(crate) fn write(lines: &str) -> Result<(), Failure> {
    let mut text = String::with_capacity(lines.len());
    for line in lines.split_inclusive('\n') {
        let (line, end) = match line.strip_suffix('\n') {
            Some(line) => (line, "\n"),
            None => (line, ""),
        };
        text.push_str(&printable(line).to_string());
        text.push_str(end);
    }
    bytes(text.as_bytes())
}

/// Writes a line to standard output.
pub(crate) fn line(text: impl std::fmt::Display) -> Result<(), Failure> {
    bytes(format!("{}\n", printable(&text.to_string())).as_bytes())
}

/// Prints a remark for people on standard error. The work continues if that fails.
pub(crate) fn tell(text: impl std::fmt::Display) {
    let _ = writeln!(io::stderr(), "{}", printable(&text.to_string()));
}

/// Asks the user a question on standard error. The answer comes on the same line.
pub(crate) fn ask(text: impl std::fmt::Display) {
    let _ = write!(io::stderr(), "{}", printable(&text.to_string()));
}

/// Writes one JSON value.
pub(crate) fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::local("write JSON to standard output", error.to_string()))?;
    json_text(&format!("{text}\n"))
}

/// Writes a part of a JSON text to standard output.
pub(crate) fn json_text(text: &str) -> Result<(), Failure> {
    bytes(printable_json(text).as_bytes())
}

/// Rows for people.
#[derive(Debug)]
pub(crate) struct Rows {
    table: Table,
    /// The columns that are shown.
    shown: Vec<bool>,
    is_empty: bool,
}

impl Rows {
    pub(crate) fn add_row<const N: usize>(&mut self, cells: [String; N]) {
        self.is_empty = false;
        let cells = cells.into_iter().zip(&self.shown);
        let cells = cells.filter(|(_, shown)| **shown);
        let cells: Vec<_> = cells
            .map(|(cell, _)| printable(&cell).to_string())
            .collect();
        self.table.add_row(cells);
    }

    /// Writes the rows; without rows, a line that there are no `things`.
    pub(crate) fn write(&self, things: &str) -> Result<(), Failure> {
        if self.is_empty {
            return line(format_args!("no {things}"));
        }
        write(&format!("{}\n", self.table.trim_fmt()))
    }
}

/// A table without lines, with these headings. Headings of numbers, which are aligned to the right,
/// begin with `>`; a `+` in front of that marks a column of `--output wide`, and a `-` one that is
/// hidden. The other columns fit a terminal of 80 columns.
pub(crate) fn table(headings: &[&str], output: Output) -> Rows {
    let is_shown = |heading: &&str| match heading.chars().next() {
        Some('-') => false,
        Some('+') => output == Output::Wide,
        _ => true,
    };
    let shown = headings.iter().map(is_shown).collect();
    let headings: Vec<_> = headings
        .iter()
        .filter(|heading| is_shown(heading))
        .map(|heading| heading.trim_start_matches('+'))
        .collect();
    let mut table = Table::new();
    table.load_style(TableStyle::new());
    table.set_header(
        headings
            .iter()
            .map(|heading| heading.trim_start_matches('>'))
            .collect::<Vec<_>>(),
    );
    for (index, heading) in headings.iter().enumerate() {
        if let Some(column) = table.column_mut(index) {
            column.set_padding((0, 2));
            if heading.starts_with('>') {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    Rows {
        table,
        shown,
        is_empty: true,
    }
}

/// Names and values below each other.
pub(crate) fn facts(facts: &[(&str, String)]) -> String {
    let width = facts
        .iter()
        .map(|(name, _)| name.len())
        .max()
        .unwrap_or_default();
    facts
        .iter()
        .map(|(name, value)| format!("{name:width$}  {}\n", printable(value)))
        .collect()
}

/// A size for people.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // A value that would be shown as 1024.0 of one unit is shown as 1.0 of the next.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// The rate in bytes a second.
pub(crate) fn per_second(bytes: u64, elapsed: Duration) -> u64 {
    let per_second = u128::from(bytes) * 1_000_000_000 / elapsed.as_nanos().max(1);
    u64::try_from(per_second).unwrap_or(u64::MAX)
}

/// A rate for people, in the units of sizes.
pub(crate) fn rate(bytes_per_second: u64) -> String {
    format!("{}/s", size(bytes_per_second))
}

/// A time for programs.
pub(crate) fn rfc3339(time: SystemTime) -> Option<String> {
    Timestamp::try_from(time).ok().map(|time| time.to_string())
}

/// A time for people, in UTC.
pub(crate) fn time(time: SystemTime) -> String {
    let whole = Timestamp::try_from(time).and_then(|time| Timestamp::from_second(time.as_second()));
    whole.map_or_else(|_| "?".to_owned(), |time| time.to_string())
}

/// The owner of a record for programs; `None` if the daemon has told none.
pub(crate) fn owner(id: &str) -> Option<&str> {
    (!id.is_empty()).then_some(id)
}

/// The owner of a record for people; `None` if it is the administrator.
pub(crate) fn other_owner(id: &str) -> Option<String> {
    owner(id)
        .filter(|id| *id != ADMINISTRATOR)
        .map(str::to_owned)
}

/// The heading of a column of owners, which is hidden if everything is the administrator's.
pub(crate) fn owner_heading<'a>(mut owners: impl Iterator<Item = &'a str>) -> &'static str {
    match owners.any(|id| other_owner(id).is_some()) {
        true => "OWNER",
        false => "-OWNER",
    }
}

/// A snapshot's root for people.
pub(crate) fn root(snapshot: &Snapshot) -> String {
    let root = snapshot.root.as_ref().map(ToString::to_string);
    root.unwrap_or_else(|| "-".to_owned())
}

/// A snapshot's state for people, with its progress.
pub(crate) fn state(snapshot: &Snapshot) -> String {
    let state = snapshot.state.as_str();
    match snapshot.progress {
        Some(progress) if snapshot.state == SnapshotState::Pending && progress.total_bytes > 0 => {
            let percent = u128::from(progress.done_bytes) * 100 / u128::from(progress.total_bytes);
            format!("{state} {percent}%")
        }
        _ => state.to_owned(),
    }
}

/// Tags for people.
pub(crate) fn tags(tags: &BTreeMap<String, String>) -> String {
    tags.iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_rates_are_short() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (4 << 30, "4.0 GiB"),
            (u64::MAX, "16.0 EiB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(
            per_second(3_000_000, Duration::from_millis(1500)),
            2_000_000
        );
        assert_eq!(per_second(5, Duration::ZERO), 5_000_000_000);
        assert_eq!(rate(512 << 20), "512.0 MiB/s");
    }
}
