//! `varved`: arguments, signals, exit codes. Everything else is in the library.

use std::{fmt::Display, process::ExitCode};

use clap::Parser;
use rustix::{fs::Mode, process::umask};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info};
use varve_daemon::{
    config::{Arguments, Config},
    descriptors,
    server::{self, Server},
    sockets::Inherited,
    telemetry,
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
    if let Err(error) = telemetry::start(&config.log) {
        return complain(error, USAGE);
    }
    // The only provider that is linked. It fails when one was installed before, which does as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
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
    runtime.block_on(async {
        match cli.command {
            None => match inherited.take() {
                Ok(inherited) => serve(&config, inherited).await,
                Err(error) => complain(error, USAGE),
            },
            Some(Command::Rebuild) => rebuild(&config).await,
        }
    })
}

/// Says why nothing was done. Not in the log, which may go elsewhere or be filtered.
fn complain(error: impl Display, code: u8) -> ExitCode {
    eprintln!("varved: {error}");
    ExitCode::from(code)
}

async fn serve(config: &Config, inherited: Inherited) -> ExitCode {
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => return complain(format_args!("cannot listen for signals: {error}"), FAILURE),
    };
    let started = tokio::select! {
        started = Server::start_with(config, inherited) => started,
        name = signals.next() => {
            info!(signal = name, "stopped before the start was over");
            return ExitCode::SUCCESS;
        }
    };
    let mut server = match started {
        Ok(server) => server,
        Err(error) => return complain(error, FAILURE),
    };
    let asked = tokio::select! {
        name = signals.next() => {
            info!(signal = name, "asked to stop");
            true
        }
        () = server.failed() => false,
    };
    tokio::select! {
        closed = server.stop() => match closed {
            Ok(()) if asked => ExitCode::SUCCESS,
            Ok(()) | Err(_) => ExitCode::from(FAILURE),
        },
        name = signals.next() => {
            error!(signal = name, "asked again: ending at once");
            // Not by returning, which would wait for the store's threads.
            std::process::exit(FAILURE.into());
        }
    }
}

async fn rebuild(config: &Config) -> ExitCode {
    match varve_store::rebuild(server::store_options(config)).await {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(error) => complain(error, FAILURE),
    }
}

/// The signals that ask a daemon to end.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
