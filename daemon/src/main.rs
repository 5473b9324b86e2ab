//! `varved`: arguments, signals, exit codes. Everything else is in the library.

// What is said goes through what can fail and escapes: `println` panics where nobody can be told.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

use std::{
    fmt::Display,
    io::{Write as _, stderr, stdout},
    path::Path,
    process::ExitCode,
};

use clap::Parser;
use rustix::{fs::Mode, process::umask};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info};
use varve_daemon::{
    config::{Arguments, Config},
    descriptors, limits,
    server::{self, Prepared, Server},
    sockets::Inherited,
    telemetry::{self, Telemetry},
};

/// Serves a Varve store over gRPC and NBD.
#[derive(Debug, Parser)]
#[command(
    name = "varved",
    version,
    about,
    args_conflicts_with_subcommands = false
)]
struct Cli {
    #[command(flatten)]
    arguments: Arguments,
    /// Check all settings and the files that they name, and end; nothing is made or opened
    #[arg(long, conflicts_with = "command")]
    check_config: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Makes index and catalog again, from the packs and the catalog log, and ends
    Rebuild,
}

/// What did not work.
const FAILURE: u8 = 1;
/// What cannot be meant; clap uses the same.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    // Before there are threads: it changes the environment.
    let inherited = Inherited::find();
    let cli = Cli::parse();
    let config = match Config::load(&cli.arguments) {
        Ok(config) => config,
        Err(error) => return complain(error, USAGE),
    };
    // The only provider that is linked. It fails when one was installed before, which does as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    if cli.check_config {
        return match Prepared::new(&config) {
            Ok(_) => {
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
    descriptors::raise_limit();
    // What guests have written is nobody else's to read. The sockets have their own permissions.
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
    // The store is closed. Whoever still reads a file of settings, from a file system that hangs, is not waited for.
    runtime.shutdown_timeout(limits::RUNTIME_STOP_GRACE);
    code
}

/// Says why nothing was done. Not in the log, which may go elsewhere or be filtered.
fn complain(error: impl Display, code: u8) -> ExitCode {
    // Where nobody can be told, the code has to do.
    let _ = writeln!(stderr(), "varved: {error}");
    ExitCode::from(code)
}

/// Tells whoever has started this. If nobody listens it goes on.
fn say(line: impl Display) {
    let _ = writeln!(stdout(), "{line}");
}

/// What to put into a shell so that `snapctl` finds this daemon.
fn export_line(socket: &Path) -> String {
    let endpoint = format!("unix:{}", socket.display());
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/:._-+@%,=".contains(c);
    if endpoint.chars().all(is_plain) {
        format!("export VARVE_ENDPOINT={endpoint}")
    } else {
        format!(
            "export VARVE_ENDPOINT='{}'",
            endpoint.replace('\'', "'\\''")
        )
    }
}

/// Takes over what can be changed while the daemon runs: the levels of the log, and files of TLS.
async fn reload(arguments: &Arguments, server: &Server, telemetry: &Telemetry) {
    info!("asked to read settings again: levels of the log and files of TLS");
    let arguments = arguments.clone();
    let loading = tokio::task::spawn_blocking(move || Config::load(&arguments));
    let filter = match loading.await {
        Ok(Ok(config)) => telemetry.set_filter(&config.log.filter),
        Ok(Err(error)) => Err(error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    if let Err(error) = filter {
        error!(error, "the levels of the log stay as they were");
    }
    server.reload().await;
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
            return ExitCode::SUCCESS;
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
    say(export_line(&server.addresses().grpc_unix));
    let asked = loop {
        tokio::select! {
            asked = signals.next() => match asked {
                Asked::End(name) => {
                    info!(signal = name, "asked to stop");
                    break true;
                }
                // From a file system that hangs it may take for ever.
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
            // Not by returning, which would wait for the store's threads.
            std::process::exit(FAILURE.into());
        }
    }
}

async fn rebuild(config: &Config) -> ExitCode {
    match varve_store::rebuild(server::store_options(config)).await {
        Ok(report) => {
            say(report);
            ExitCode::SUCCESS
        }
        Err(error) => complain(error, FAILURE),
    }
}

/// What a signal asks for.
enum Asked {
    /// The end; the name of the signal.
    End(&'static str),
    /// That settings are read again.
    Reload,
}

/// The signals that a daemon is asked by.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// A terminal that goes away sends it too: the daemon goes on then.
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

    /// The next one that asks for the end.
    async fn end(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
