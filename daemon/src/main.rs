//! `varved`: arguments, signals, exit codes. Everything else is in the library.

// Output goes through functions that can fail and escape: `println` panics if it cannot write.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

use std::{
    ffi::OsString,
    fmt::Display,
    io::{Write as _, stderr, stdout},
    process::ExitCode,
};

use clap::Parser;
use rustix::{fs::Mode, process::umask};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info, warn};
use varve_daemon::{
    config::{self, Arguments, Config},
    limits,
    net::sockets::Inherited,
    resources::{core_dumps, descriptors},
    server::{self, Addresses, Prepared, Server},
    telemetry::{self, Telemetry},
};

/// Serve a Varve store over gRPC and NBD
#[derive(Debug, Parser)]
#[command(
    name = "varved",
    version,
    about,
    after_help = "docs/varved.toml describes all settings; each can be set in the file or by an \
                  environment variable."
)]
struct Cli {
    #[command(flatten)]
    arguments: Arguments,
    /// Check all settings and the files that they name, then exit; opens and creates nothing
    #[arg(long)]
    check_config: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Rebuild index and catalog from the packs and the catalog log, then exit
    ///
    /// Stop the daemon first, and leave the old index in its place: the rebuild takes from it the
    /// records that the catalog log has lost. The exit code is 0 if nothing is damaged, and 6 if
    /// something is: the rebuild lists damage, ends that it cut off, and snapshots and volumes that
    /// lack content, and the new index has everything else. 1 and 2 mean that the rebuild failed.
    Rebuild,
}

/// The operation failed.
const FAILURE: u8 = 1;
/// The command line or a setting is wrong. Clap uses the same code.
const USAGE: u8 = 2;
/// Damage was found. `snapctl` uses the same code.
const DAMAGED: u8 = 6;

fn main() -> ExitCode {
    // Before there are threads: it changes the environment.
    let inherited = Inherited::find();
    let cli = Cli::parse();
    if cli.check_config && cli.command.is_some() {
        return complain("--check-config cannot be used with a command", USAGE);
    }
    let config = match Config::load(&cli.arguments) {
        Ok(config) => config,
        Err(error) => return complain(error, USAGE),
    };
    // Before it reads any key.
    if !config.core_dumps
        && let Err(error) = core_dumps::forbid()
    {
        let what = "cannot forbid core dumps (the setting core_dumps permits them)";
        return complain(format_args!("{what}: {error}"), FAILURE);
    }
    // The only linked provider. If one was installed before, the call fails, and that one serves.
    let _ = rustls::crypto::ring::default_provider().install_default();
    if cli.check_config {
        return match Prepared::new(&config) {
            Ok(_) => {
                let unknown = config::unknown_variables(variables());
                for caution in unknown.iter().chain(&config.open_addresses()) {
                    let _ = writeln!(stderr(), "varved: warning: {caution}");
                }
                say("the configuration can be used");
                ExitCode::SUCCESS
            }
            Err(error) => complain(error, USAGE),
        };
    }
    let telemetry = match telemetry::start(&config.log) {
        Ok(telemetry) => telemetry,
        Err(error) => return complain(error, FAILURE),
    };
    for unknown in config::unknown_variables(variables()) {
        warn!("{unknown}");
    }
    if config.core_dumps {
        warn!("core dumps are permitted: they have keys, tokens and the data of guests");
    }
    descriptors::raise_limit();
    // Other users must not read the data of guests. The sockets have their own permissions.
    umask(Mode::RWXG | Mode::RWXO);
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return complain(format_args!("cannot start threads: {error}"), FAILURE),
    };
    let code = runtime.block_on(async {
        match cli.command {
            None => match inherited.take() {
                Ok(inherited) => serve(&cli.arguments, &config, inherited, &telemetry).await,
                Err(error) => complain(error, USAGE),
            },
            Some(Command::Rebuild) => rebuild(&config).await,
        }
    });
    // The store is closed. The process does not wait for threads that read settings from a hanging
    // file system, or write to a full pipe.
    runtime.shutdown_timeout(limits::RUNTIME_STOP_GRACE);
    code
}

/// Prints the reason why the daemon did nothing. It does not log it: the log may go elsewhere or be
/// filtered.
fn complain(error: impl Display, code: u8) -> ExitCode {
    // If the message cannot be written, only the exit code is left.
    let _ = writeln!(stderr(), "varved: {error}");
    ExitCode::from(code)
}

/// Prints a text for the person at the terminal, in one piece. The daemon continues if nobody reads
/// it.
fn say(lines: impl Display) {
    let _ = stdout().write_all(format!("{lines}\n").as_bytes());
}

/// Shell lines that tell `snapctl` and NBD clients the endpoints of this daemon, the line for
/// `snapctl` first.
fn export_lines(addresses: &Addresses) -> String {
    let endpoint = format!("unix:{}", addresses.grpc_unix.display());
    let mut lines = export_line("VARVE_ENDPOINT", &endpoint);
    if !addresses.nbd_unix.as_os_str().is_empty() {
        let socket = addresses.nbd_unix.display().to_string();
        lines += &format!("\n{}", export_line("VARVE_NBD", &socket));
    }
    lines
}

/// An `export` line for a shell.
fn export_line(name: &str, value: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/:._-+@%,=".contains(c);
    if value.chars().all(is_plain) {
        format!("export {name}={value}")
    } else {
        format!("export {name}='{}'", value.replace('\'', "'\\''"))
    }
}

/// Applies the settings that can change while the daemon runs: the levels of the log, and the TLS
/// files.
async fn reload(arguments: &Arguments, server: &Server, telemetry: &Telemetry) {
    info!("reading settings again: log levels and TLS files");
    let arguments = arguments.clone();
    let loading = tokio::task::spawn_blocking(move || Config::load(&arguments));
    let filter = match loading.await {
        Ok(Ok(config)) => telemetry.set_filter(&config.log.filter),
        Ok(Err(error)) => Err(error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    if let Err(error) = filter {
        error!(error, "the log levels stay as they were");
    }
    server.reload().await;
}

/// The names of this process's environment variables.
fn variables() -> impl Iterator<Item = OsString> {
    std::env::vars_os().map(|(name, _)| name)
}

async fn serve(
    arguments: &Arguments,
    config: &Config,
    inherited: Inherited,
    telemetry: &Telemetry,
) -> ExitCode {
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => return complain(format_args!("cannot listen for signals: {error}"), FAILURE),
    };
    let started = tokio::select! {
        started = Server::start_with(config, inherited) => started,
        name = signals.end() => {
            info!(signal = name, "stopped before the start was over");
            telemetry.flush();
            // As below.
            std::process::exit(0);
        }
    };
    let mut server = match started {
        Ok(server) => server,
        Err(error) => {
            let code = if error.is_of_settings() {
                USAGE
            } else {
                FAILURE
            };
            return complain(error, code);
        }
    };
    let lines = export_lines(server.addresses());
    // The parent process may not read the pipe, and the pipe may be full.
    drop(tokio::task::spawn_blocking(move || say(lines)));
    let asked = loop {
        tokio::select! {
            asked = signals.next() => match asked {
                Asked::End(name) => {
                    info!(signal = name, "asked to stop");
                    break true;
                }
                // Reading from a file system that hangs may take for ever.
                Asked::Reload => tokio::select! {
                    () = reload(arguments, &server, telemetry) => {}
                    name = signals.end() => {
                        info!(signal = name, "asked to stop");
                        break true;
                    }
                },
            },
            () = server.failed() => break false,
        }
    };
    tokio::select! {
        closed = server.stop() => match closed {
            Ok(()) if asked => ExitCode::SUCCESS,
            Ok(()) | Err(_) => ExitCode::from(FAILURE),
        },
        name = signals.end() => {
            error!(signal = name, "asked again: ending at once");
            telemetry.flush();
            // Do not return: that would wait for the store's threads.
            std::process::exit(FAILURE.into());
        }
    }
}

async fn rebuild(config: &Config) -> ExitCode {
    match varve_store::rebuild(server::store_options(config)).await {
        Ok(report) => {
            say(&report);
            if report.is_whole() {
                ExitCode::SUCCESS
            } else {
                ExitCode::from(DAMAGED)
            }
        }
        Err(error) => complain(error, FAILURE),
    }
}

/// The request of a signal.
enum Asked {
    /// Stop the daemon; with the name of the signal.
    End(&'static str),
    /// Read the settings again.
    Reload,
}

/// The signals that a daemon handles.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// A closing terminal sends it too: the daemon continues then.
    hangup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::End("SIGTERM"),
            _ = self.interrupt.recv() => Asked::End("SIGINT"),
            _ = self.hangup.recv() => Asked::Reload,
        }
    }

    /// The next signal that asks the daemon to stop.
    async fn end(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
