//! `snapctl`: the command line of Varve.
//!
//! Results go to standard output; errors, progress and remarks to standard error. Exit codes: see
//! `exit`.

// Output goes through functions that can fail and escape: `println` panics if it cannot write.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod account;
mod advice;
mod age;
mod archive;
mod audit;
mod authorities;
mod copy;
mod device;
mod disk_format;
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
mod profile;
mod qemu;
mod remote;
mod sharing;
mod signals;
mod silence;
mod size;
mod snapshot;
mod status;
mod token_file;
mod volume;

use std::{
    collections::HashSet,
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::OnceLock,
    time::Duration,
};

use clap::{
    ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, error::ErrorKind as Usage,
};
use clap_complete::Shell;
use varve_client::{
    Client, Connector, Endpoint, Error, ErrorKind, Result as ClientResult, Tls, TokenSecret,
};

use self::{
    advice::Asked, exit::Failure, named::Named, output::Output, profile::Profile, silence::Silence,
};

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
    /// File with the token to act by; only its owner may have access to it
    #[arg(long, env = "VARVE_TOKEN_FILE", global = true, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Profile of ~/.config/varve/config.toml with values for options of the connection that are
    /// not given [default: the profile called default, if there is one]
    #[arg(long, env = "VARVE_PROFILE", global = true, value_name = "NAME")]
    profile: Option<String>,
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
    /// The profile, once a command has needed it.
    #[arg(skip)]
    loaded_profile: OnceLock<Profile>,
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
    /// Register, list, show, share, change and deregister images, which machines boot from
    #[command(subcommand)]
    Image(image::Images),
    /// Create, list, show, tag, attach, detach and delete volumes
    #[command(subcommand)]
    Volume(volume::Volume),
    /// Copy snapshots from other stores
    Copy(Box<copy::Copies>),
    /// Name other daemons as sources of copies
    #[command(subcommand)]
    Remote(remote::Remotes),
    /// Create, change and delete accounts and their tokens, and give them snapshots and volumes
    #[command(subcommand)]
    Account(account::Accounts),
    /// Show the account that you act for
    Whoami,
    /// Show what was changed and refused, by whom and when
    Audit(audit::Audit),
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
    /// The profile, for values that neither an option nor a variable of the environment has. A
    /// wrong one fails only commands that connect.
    fn profile(&self) -> Result<&Profile, Failure> {
        if let Some(loaded) = self.loaded_profile.get() {
            return Ok(loaded);
        }
        // An empty variable names none.
        let name = self.profile.as_deref().filter(|name| !name.is_empty());
        let loaded = Profile::load(name)?;
        Ok(self.loaded_profile.get_or_init(|| loaded))
    }

    /// The daemon's endpoint, as given. A wrong one fails only commands that use it.
    fn endpoint(&self) -> Result<Option<Endpoint>, Failure> {
        let given = self.endpoint.as_ref();
        let given = match given {
            Some(given) => Some(given),
            None => self.profile()?.endpoint.as_ref(),
        };
        let endpoint = given.map(|text| text.parse()).transpose();
        Ok(endpoint?)
    }

    /// The file with the token for an endpoint. The token of a profile does not go to another
    /// endpoint than that of the profile: it is a secret between the user and that daemon.
    fn token_file(&self, endpoint: &Endpoint) -> Result<Option<&Path>, Failure> {
        if self.token_file.is_some() {
            return Ok(self.token_file.as_deref());
        }
        let profile = self.profile()?;
        let its_own = profile
            .endpoint
            .as_ref()
            .map(|text| text.parse::<Endpoint>());
        let is_its_own = match its_own {
            Some(its_own) => its_own.is_ok_and(|its_own| its_own == *endpoint),
            None => true,
        };
        Ok(profile.token_file.as_deref().filter(|_| is_its_own))
    }

    fn token(&self, endpoint: &Endpoint) -> Result<Option<TokenSecret>, Failure> {
        let file = self.token_file(endpoint)?;
        Ok(file.map(TokenSecret::from_file).transpose()?)
    }

    /// Refuses a variable that names another daemon than the profile of the command: it may be a
    /// leftover of another session, and the command would be for the wrong daemon. If the profile
    /// comes from a variable, too, the endpoint wins as always.
    fn check_variable(&self) -> Result<(), Failure> {
        let (Some(name), Some(endpoint)) = (&self.profile, &self.endpoint) else {
            return Ok(());
        };
        let is = |variable: &str, value: &String| env::var(variable).as_ref() == Ok(value);
        let its = self.profile()?.endpoint.as_ref();
        if its.is_none_or(|its| its == endpoint) || !is("VARVE_ENDPOINT", endpoint) {
            return Ok(());
        }
        if is("VARVE_PROFILE", name) {
            self.remark(format_args!(
                "VARVE_ENDPOINT wins over the endpoint of the profile {name}: using {endpoint}"
            ));
            return Ok(());
        }
        Err(Failure::usage(
            format!("profile {name}"),
            format!(
                "VARVE_ENDPOINT names another daemon, {endpoint}: unset it, or write --endpoint \
                 for the one that is meant"
            ),
        ))
    }

    async fn connect(&self) -> Result<Client, Failure> {
        self.check_variable()?;
        let given = self.endpoint()?;
        let endpoint = given.clone().unwrap_or_default();
        let tls = match &given {
            Some(_) => self.tls()?,
            None => Tls::default(),
        };
        let mut connector = Connector::new(endpoint.clone()).tls(tls);
        if let Some(token) = self.token(&endpoint)? {
            connector = connector.token(token);
        }
        let connecting = connector.connect();
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
        let profile = self.profile()?;
        let mut tls = Tls::default();
        if let Some(authorities) = self.tls_ca.as_ref().or(profile.tls_ca.as_ref()) {
            tls = tls.trusting(authorities::read(authorities)?);
        }
        let pair = match (&self.tls_cert, &self.tls_key) {
            (None, None) => (&profile.tls_cert, &profile.tls_key),
            // A certificate and the key of another one do not fit.
            given => given,
        };
        match pair {
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
        let profile = self.loaded_profile.get();
        let endpoint = self.endpoint.as_ref();
        let endpoint = endpoint.or_else(|| profile?.endpoint.as_ref());
        let endpoint = endpoint.map(String::as_str).unwrap_or_default();
        let tls_ca = self.tls_ca.as_deref();
        let parsed = match endpoint {
            "" => Some(Endpoint::default()),
            text => text.parse().ok(),
        };
        let token_file = parsed.and_then(|parsed| self.token_file(&parsed).ok().flatten());
        let has_other_token = profile.is_some_and(|profile| profile.token_file.is_some());
        Asked {
            endpoint,
            tls_ca: tls_ca.or_else(|| profile?.tls_ca.as_deref()),
            has_cert: self.tls_cert.is_some()
                || profile.is_some_and(|profile| profile.tls_cert.is_some()),
            token_file,
            withholds_token: token_file.is_none() && has_other_token,
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
        Command::Image(images) => images.run(options).await,
        Command::Volume(volume) => volume.run(options).await,
        Command::Copy(copies) => copies.run(options).await,
        Command::Remote(remotes) => remotes.run(options).await,
        Command::Account(accounts) => accounts.run(options).await,
        Command::Whoami => account::whoami(options).await,
        Command::Audit(audit) => audit.run(options).await,
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
