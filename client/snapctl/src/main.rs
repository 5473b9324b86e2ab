//! `snapctl`: the command line of Varve.
//!
//! Results go to standard output; errors, progress and remarks to standard error. Exit codes: see
//! `exit`.

// Output goes through functions that can fail and escape: `println` panics if it cannot write.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod advice;
mod age;
mod archive;
mod authorities;
mod copy;
mod device;
mod du;
mod exit;
mod export;
mod gc;
mod image;
mod import;
mod intake;
mod listing;
mod meter;
mod named;
mod output;
mod qemu;
mod remote;
mod signals;
mod silence;
mod size;
mod snapshot;
mod status;
mod volume;

use std::{
    collections::HashSet, env, ffi::OsString, fs, path::PathBuf, process::ExitCode, time::Duration,
};

use clap::{
    ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, error::ErrorKind as Usage,
};
use clap_complete::Shell;
use varve_client::{Client, Endpoint, Error, ErrorKind, Result as ClientResult, Tls};

use self::{advice::Asked, exit::Failure, named::Named, output::Output, silence::Silence};

/// Time that threads get after a command has failed: they may have files to remove.
const THREADS_TIME: Duration = Duration::from_secs(1);

/// Time limit for finding advice.
const ADVICE_TIME: Duration = Duration::from_secs(2);

/// Manage snapshots and volumes of a Varve store
#[derive(Debug, Parser)]
#[command(name = "snapctl", version, max_term_width = 100, after_long_help = exit::HELP)]
struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
struct Options {
    /// Endpoint of the daemon: unix:PATH, http://HOST:PORT or https://HOST:PORT [default:
    /// unix:/run/varve/grpc.sock]
    #[arg(long, env = "VARVE_ENDPOINT", global = true, value_name = "ENDPOINT")]
    endpoint: Option<String>,
    /// CA certificates to verify the daemon with (PEM), for https [default: the system's]
    #[arg(
        long,
        env = "VARVE_TLS_CA",
        global = true,
        hide_short_help = true,
        value_name = "FILE"
    )]
    tls_ca: Option<PathBuf>,
    /// Client certificate (PEM), for https; needs --tls-key
    #[arg(
        long,
        env = "VARVE_TLS_CERT",
        global = true,
        hide_short_help = true,
        value_name = "FILE"
    )]
    tls_cert: Option<PathBuf>,
    /// Private key of the client certificate (PEM)
    #[arg(
        long,
        env = "VARVE_TLS_KEY",
        global = true,
        hide_short_help = true,
        value_name = "FILE"
    )]
    tls_key: Option<PathBuf>,
    /// Output format: tables for people, JSON for programs
    #[arg(long, short, global = true, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Give up when the daemon shows no progress for this long [default: never]
    #[arg(long, global = true, hide_short_help = true, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    timeout: Option<u64>,
    /// Print neither progress nor remarks (JSON output never has them)
    #[arg(long, short, global = true)]
    quiet: bool,
    #[arg(skip)]
    silence: Silence,
    #[arg(skip)]
    named: Named,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a snapshot of a disk image or block device
    Import(import::Import),
    /// Write a snapshot's content to a file or block device
    Export(export::Export),
    /// Show and verify archives, without a daemon
    #[command(subcommand)]
    Archive(archive::Archive),
    /// Create, list, show, delete, tag, compare and verify snapshots
    #[command(subcommand)]
    Snapshot(snapshot::Snapshot),
    /// Create, list, show, tag, attach, detach and delete volumes
    #[command(subcommand)]
    Volume(volume::Volume),
    /// Copy snapshots from other stores
    Copy(Box<copy::Copies>),
    /// Name other daemons as sources of copies
    #[command(subcommand)]
    Remote(remote::Remotes),
    /// Map exports to block devices of this machine
    #[command(subcommand)]
    Device(device::Devices),
    // As these were called before they had a noun.
    /// The same as device map
    #[command(hide = true)]
    Map(device::Map),
    /// The same as device unmap
    #[command(hide = true)]
    Unmap(device::Unmap),
    /// The same as device list
    #[command(hide = true)]
    Mapped,
    /// Give back the space of deleted snapshots and volumes
    #[command(subcommand)]
    Gc(gc::Gc),
    /// Show the space that snapshots and volumes take
    Du(du::Du),
    /// Show the state of the daemon and its store
    Status,
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
}

impl Options {
    /// The daemon's endpoint, as given. A wrong one fails only commands that use it.
    fn endpoint(&self) -> Result<Option<Endpoint>, Failure> {
        let given = self.endpoint.as_ref();
        let endpoint = given.map(|text| text.parse()).transpose();
        Ok(endpoint?)
    }

    async fn connect(&self) -> Result<Client, Failure> {
        let given = self.endpoint()?;
        let endpoint = given.clone().unwrap_or_default();
        let tls = match &given {
            Some(_) => self.tls()?,
            None => Tls::default(),
        };
        let connecting = Client::connect_with(&endpoint, &tls);
        let connected = match self.timeout {
            None => connecting.await,
            Some(seconds) => {
                let limit = Duration::from_secs(seconds);
                let connected = tokio::time::timeout(limit, connecting).await;
                connected.unwrap_or_else(|_| Err(silence::gave_up(&endpoint, limit)))
            }
        };
        let client = connected.map_err(|error| match given {
            // Other errors mean that a daemon listens there, or that this user may not connect.
            None if error.why().ends_with("is varved running there?") => {
                let why = format!(
                    "{} When it starts, it prints a line `export VARVE_ENDPOINT=...`: use that \
                     line, or --endpoint",
                    error.why()
                );
                Error::new(error.kind(), error.what(), why)
            }
            _ => error,
        })?;
        self.silence.listen_to(&client);
        Ok(client)
    }

    fn tls(&self) -> Result<Tls, Failure> {
        let read = |path: &PathBuf| {
            let content = fs::read(path);
            content.map_err(|error| Error::file(format!("read {}", path.display()), error))
        };
        let mut tls = Tls::default();
        if let Some(authorities) = &self.tls_ca {
            tls = tls.trusting(authorities::read(authorities)?);
        }
        match (&self.tls_cert, &self.tls_key) {
            (Some(cert), Some(key)) => Ok(tls.showing(read(cert)?, read(key)?)),
            (None, None) => Ok(tls),
            _ => Err(Failure::usage(
                "connect",
                "--tls-cert and --tls-key need each other",
            )),
        }
    }

    /// Advice if the name belongs to the other kind: to a volume instead of a snapshot, or the
    /// reverse. `None` if the daemon takes too long to tell.
    async fn other(&self) -> Option<String> {
        let asking = async {
            let client = self.connect().await?;
            Ok::<_, Failure>(self.named.advice(&client).await?)
        };
        let asked = tokio::time::timeout(ADVICE_TIME, asking).await;
        asked.ok()?.ok()?
    }

    /// The connection settings, for advice.
    fn asked(&self) -> Asked<'_> {
        Asked {
            endpoint: self.endpoint.as_deref().unwrap_or_default(),
            tls_ca: self.tls_ca.as_deref(),
            has_cert: self.tls_cert.is_some(),
        }
    }

    /// A line for people, on standard error.
    fn remark(&self, line: impl std::fmt::Display) {
        if !self.quiet {
            output::tell(format_args!("snapctl: {line}"));
        }
    }
}

/// The grammar.
fn command() -> clap::Command {
    copy::hide_old(Cli::command())
}

/// Reads the command line. A mistake in it ends the program.
fn command_line() -> Cli {
    let mut command = self::command();
    let matches = match command.try_get_matches_from_mut(env::args_os()) {
        Ok(matches) => matches,
        Err(error) => wrong_usage(&error),
    };
    if let Some(key) = doubled_tag(&matches) {
        let why = format!("the tag {key} is given more than once");
        wrong_usage(&command.error(Usage::ArgumentConflict, why));
    }
    let cli = Cli::from_arg_matches(&matches);
    cli.unwrap_or_else(|error| wrong_usage(&error.format(&mut command)))
}

/// Prints the mistake in the command line, or the help that was asked for.
fn wrong_usage(error: &clap::Error) -> ! {
    let arguments: Vec<_> = env::args_os().collect();
    let is_json = |text: &OsString| text == "--output=json" || text == "-ojson";
    let wants_json = arguments.iter().any(is_json)
        || arguments
            .windows(2)
            .any(|pair| (pair[0] == "--output" || pair[0] == "-o") && pair[1] == "json");
    if error.use_stderr() && wants_json {
        let text = error.to_string();
        let why = text.trim().trim_start_matches("error: ");
        exit::tell_json(ErrorKind::Invalid, why);
        std::process::exit(error.exit_code());
    }
    error.exit()
}

/// The key of a tag that any command got twice: one of the two values would be lost.
fn doubled_tag(matches: &ArgMatches) -> Option<String> {
    let mut keys = HashSet::new();
    let tags = matches.try_get_many::<(String, String)>("tags");
    let tags = tags.ok().flatten().into_iter().flatten();
    for (key, _) in tags {
        if !keys.insert(key) {
            return Some(key.clone());
        }
    }
    let (_, inner) = matches.subcommand()?;
    doubled_tag(inner)
}

fn main() -> ExitCode {
    let mut cli = command_line();
    init_log();
    let output = cli.options.output;
    // Programs expect one error or nothing on standard error.
    cli.options.quiet |= output == Output::Json;
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return exit::report(&Failure::local("start", error.to_string()), output),
    };
    let done = runtime.block_on(run(cli));
    match done {
        Ok(()) => {
            // Waits for threads that still work.
            drop(runtime);
            ExitCode::SUCCESS
        }
        Err(failure) => {
            // A thread may wait for ever, for the reader of a pipe for example.
            runtime.shutdown_timeout(THREADS_TIME);
            exit::report(&failure, output)
        }
    }
}

/// Runs the command until it ends, a signal arrives, or the daemon is silent for too long. In the
/// latter two cases it drops the command's future.
async fn run(cli: Cli) -> Result<(), Failure> {
    let Cli { options, command } = cli;
    let signals = signals::listen();
    let mut command = Box::pin(dispatch(&options, command));
    let done = tokio::select! {
        biased;
        done = &mut command => done,
        () = signals => Err(Failure::Interrupted),
        failure = options.silence.watch(&options) => Err(failure),
    };
    let Err(failure) = done else {
        return Ok(());
    };
    let advice = match &failure {
        Failure::Client(error) if error.kind() == ErrorKind::NotFound => options.other().await,
        Failure::Client(error) => advice::advice(error, options.asked()),
        _ => None,
    };
    Err(failure.with_advice(advice))
}

async fn dispatch(options: &Options, command: Command) -> Result<(), Failure> {
    match command {
        Command::Import(import) => import.run(options).await,
        Command::Export(export) => export.run(options).await,
        Command::Archive(archive) => archive.run(options).await,
        Command::Snapshot(snapshot) => snapshot.run(options).await,
        Command::Volume(volume) => volume.run(options).await,
        Command::Copy(copies) => copies.run(options).await,
        Command::Remote(remotes) => remotes.run(options).await,
        Command::Device(devices) => devices.run(options).await,
        Command::Map(map) => device::Devices::Map(map).run(options).await,
        Command::Unmap(unmap) => device::Devices::Unmap(unmap).run(options).await,
        Command::Mapped => device::Devices::List.run(options).await,
        Command::Gc(gc) => gc.run(options).await,
        Command::Du(du) => du.run(options).await,
        Command::Status => status::run(options).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut self::command(), "snapctl", &mut script);
            output::bytes(&script)
        }
    }
}

/// Runs `work` on a thread that may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> ClientResult<T> + Send + 'static,
) -> ClientResult<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| {
        let why = format!("a thread broke: {error}");
        Error::new(ErrorKind::Internal, "read and write files", why)
    })?
}

/// Logs the library's actions on standard error if `VARVE_LOG` is set, for example to `debug`.
fn init_log() {
    if let Ok(filter) = tracing_subscriber::EnvFilter::try_from_env("VARVE_LOG") {
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            // It would be printed to standard error, and panic where that cannot be.
            .log_internal_errors(false)
            .init();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        command().debug_assert();
    }
}
