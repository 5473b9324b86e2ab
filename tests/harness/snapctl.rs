//! Runs of `snapctl` and their results.

use std::{
    ffi::{OsStr, OsString},
    path::Path,
    process::Command,
};

use serde_json::Value;

use crate::{
    process::{Finished, Running, run, run_given, start},
    programs,
};

/// Exit codes of `snapctl`, as its help lists them.
pub mod exit {
    /// Anything else.
    pub const FAILURE: i32 = 1;
    /// The command line, or a value in it, is wrong.
    pub const USAGE: i32 = 2;
    /// No such snapshot or volume.
    pub const NOT_FOUND: i32 = 3;
    /// The name is taken.
    pub const ALREADY_EXISTS: i32 = 4;
    /// No daemon at the endpoint, or the connection broke.
    pub const UNREACHABLE: i32 = 5;
    /// Damage was found.
    pub const DAMAGED: i32 = 6;
    /// A disk is full: the daemon's, or that of an export.
    pub const OUT_OF_SPACE: i32 = 7;
    /// The state of an object does not allow the command.
    pub const CONFLICT: i32 = 8;
    /// The user interrupted it.
    pub const INTERRUPTED: i32 = 130;
    /// The reader of the output is gone.
    pub const OUTPUT_CLOSED: i32 = 141;
}

/// `snapctl` with an endpoint.
#[derive(Debug, Clone)]
pub struct Snapctl {
    endpoint: String,
}

impl Snapctl {
    /// For the daemon at `endpoint`.
    #[must_use]
    pub fn new(endpoint: impl Into<String>) -> Self {
        Self {
            endpoint: endpoint.into(),
        }
    }

    /// The command, for tests that change it before it runs.
    #[must_use]
    pub fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(programs::snapctl());
        command
            .args(arguments)
            .env("VARVE_ENDPOINT", &self.endpoint)
            // Whoever runs the tests may have a profile of their own.
            .env("XDG_CONFIG_HOME", "/nonexistent");
        command
    }

    /// Runs it to its end.
    #[must_use]
    pub fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Finished {
        run(self.command(arguments))
    }

    /// Starts it without waiting.
    #[must_use]
    pub fn start<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Running {
        start(self.command(arguments))
    }

    /// Runs it with a file as its standard input.
    #[must_use]
    pub fn run_from<S: AsRef<OsStr>>(
        &self,
        input: &Path,
        arguments: impl IntoIterator<Item = S>,
    ) -> Finished {
        let mut command = self.command(arguments);
        command.stdin(crate::files::open(input));
        run_given(command)
    }

    /// Its JSON output; it must succeed.
    #[must_use]
    pub fn json<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Value {
        let arguments = with_json(arguments);
        parse(&self.run(arguments).success())
    }

    /// Imports a file, which must succeed. Returns the report.
    pub fn import(&self, file: &Path, name: &str) -> Imported {
        self.import_with(file, name, [])
    }

    /// The same, with more arguments.
    pub fn import_with<'a>(
        &self,
        file: &Path,
        name: &str,
        more: impl IntoIterator<Item = &'a str>,
    ) -> Imported {
        let mut arguments = import_arguments(file, name);
        arguments.extend(more.into_iter().map(OsString::from));
        Imported(self.json(arguments))
    }

    /// Imports from standard input, which must succeed.
    pub fn import_stdin(&self, input: &Path, name: &str) -> Imported {
        let arguments = with_json(import_arguments(Path::new("-"), name));
        Imported(parse(&self.run_from(input, arguments).success()))
    }

    /// Exports to a file, which must succeed.
    pub fn export(&self, snapshot: &str, file: &Path) {
        self.run([OsStr::new("export"), OsStr::new(snapshot), file.as_os_str()])
            .ok();
    }

    /// A snapshot, as `snapshot show` prints it.
    #[must_use]
    pub fn show(&self, snapshot: &str) -> Value {
        self.json(["snapshot", "show", snapshot])
    }

    /// Names of all snapshots, in the order of the listing.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let list = self.json(["snapshot", "list"]);
        let snapshots = list["snapshots"]
            .as_array()
            .unwrap_or_else(|| panic!("no list of snapshots in {list}"));
        snapshots
            .iter()
            .map(|snapshot| text(snapshot, "name"))
            .collect()
    }

    /// Verifies a snapshot, which must be sound.
    pub fn verify(&self, snapshot: &str) {
        self.run(["snapshot", "verify", snapshot]).ok();
    }

    /// Verifies a snapshot, which must be damaged. Returns the findings.
    #[must_use]
    pub fn verify_finds(&self, snapshot: &str) -> String {
        let finished = self.run(["snapshot", "verify", snapshot]);
        assert_eq!(
            finished.status.code(),
            Some(exit::DAMAGED),
            "{snapshot} should have been found damaged: {finished:?}"
        );
        finished.text()
    }

    /// Verifies every snapshot, and returns their names.
    pub fn verify_all(&self) -> Vec<String> {
        let names = self.names();
        for name in &names {
            self.verify(name);
        }
        names
    }
}

/// Arguments that import `file` as `name`.
#[must_use]
pub fn import_arguments(file: &Path, name: &str) -> Vec<OsString> {
    let [import, option, name] = ["import", "--name", name].map(OsString::from);
    vec![import, file.as_os_str().to_owned(), option, name]
}

fn with_json<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Vec<OsString> {
    let output = ["--output", "json"].map(OsString::from);
    output
        .into_iter()
        .chain(
            arguments
                .into_iter()
                .map(|argument| argument.as_ref().to_owned()),
        )
        .collect()
}

fn parse(finished: &Finished) -> Value {
    serde_json::from_slice(&finished.stdout)
        .unwrap_or_else(|error| panic!("not JSON: {error}: {finished:?}"))
}

/// A text field.
#[must_use]
pub fn text(value: &Value, field: &str) -> String {
    let text = value[field].as_str();
    text.unwrap_or_else(|| panic!("no text {field:?} in {value}"))
        .to_owned()
}

/// A whole number field.
#[must_use]
pub fn number(value: &Value, field: &str) -> u64 {
    value[field]
        .as_u64()
        .unwrap_or_else(|| panic!("no whole number {field:?} in {value}"))
}

/// The report of an import.
#[derive(Debug, Clone)]
pub struct Imported(pub Value);

impl Imported {
    /// The id of the snapshot.
    #[must_use]
    pub fn id(&self) -> String {
        text(&self.0["snapshot"], "id")
    }

    /// The root of its content.
    #[must_use]
    pub fn root(&self) -> String {
        text(&self.0, "root")
    }

    /// Plain bytes that the store did not have.
    #[must_use]
    pub fn new_bytes(&self) -> u64 {
        number(&self.0, "new_bytes")
    }

    /// Bytes that are not holes.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        number(&self.0, "data_bytes")
    }
}
