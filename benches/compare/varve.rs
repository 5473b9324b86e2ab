//! Varve as it is used: varved on a data directory, and snapctl over its unix socket.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use varve_tests::daemon::free_address;

use crate::failure::{Failure, While};
use crate::process::{self, Address, Finished, Over, Service};

/// The paths of the two programs.
#[derive(Debug)]
pub(crate) struct Programs {
    directory: PathBuf,
}

impl Programs {
    /// Takes the programs beside this one, or from `VARVE_BIN_DIR`.
    pub(crate) fn find() -> Result<Self, Failure> {
        let directory = match std::env::var_os("VARVE_BIN_DIR") {
            Some(directory) => PathBuf::from(directory),
            None => {
                let this = std::env::current_exe().during(|| "find this program".to_owned())?;
                this.parent().map(Path::to_owned).unwrap_or_default()
            }
        };
        for name in ["varved", "snapctl"] {
            if !directory.join(name).is_file() {
                return Err(Failure::new(format!(
                    "{name} is not in {}; build it by: make build",
                    directory.display()
                )));
            }
        }
        Ok(Self { directory })
    }

    pub(crate) fn varved(&self) -> Command {
        Command::new(self.directory.join("varved"))
    }

    /// Starts varved on a data directory, which is made if it does not exist.
    pub(crate) fn serve(&self, data_dir: &Path) -> Result<Varved, Failure> {
        self.serve_with(data_dir, |varved| varved)
    }

    /// The same, listening on TCP, too.
    pub(crate) fn serve_on_tcp(
        &self,
        data_dir: &Path,
        address: SocketAddr,
    ) -> Result<Varved, Failure> {
        self.serve_with(data_dir, |varved| {
            varved.env("VARVE_GRPC_TCP", address.to_string())
        })
    }

    fn serve_with(
        &self,
        data_dir: &Path,
        change: impl FnOnce(&mut Command) -> &mut Command,
    ) -> Result<Varved, Failure> {
        let (grpc, nbd) = (data_dir.join("grpc.sock"), data_dir.join("nbd.sock"));
        let log = data_dir.with_extension("log");
        let nbd_tcp = free_address();
        let mut command = self.varved();
        command.arg("--data-dir").arg(data_dir);
        command.arg("--nbd-tcp").arg(nbd_tcp.to_string());
        command.arg("--grpc-unix").arg(&grpc);
        command.arg("--nbd-unix").arg(&nbd);
        let service = Service::start(
            change(&mut command),
            &log,
            &[Address::Unix(grpc.clone()), Address::Unix(nbd.clone())],
        )?;
        Ok(Varved {
            snapctl: self.directory.join("snapctl"),
            grpc,
            nbd,
            nbd_tcp,
            service,
        })
    }
}

/// A running varved, with a snapctl for it.
#[derive(Debug)]
pub(crate) struct Varved {
    snapctl: PathBuf,
    grpc: PathBuf,
    nbd: PathBuf,
    nbd_tcp: SocketAddr,
    service: Service,
}

impl Varved {
    /// The gRPC endpoint, on this machine.
    pub(crate) fn endpoint(&self) -> String {
        format!("unix:{}", self.grpc.display())
    }

    pub(crate) fn import(&self, file: &Path, name: &str) -> Result<Finished, Failure> {
        self.snapctl(&[
            OsStr::new("import"),
            file.as_os_str(),
            OsStr::new("--name"),
            OsStr::new(name),
        ])
    }

    pub(crate) fn export(&self, name: &str, file: &Path) -> Result<Finished, Failure> {
        self.snapctl(&[OsStr::new("export"), OsStr::new(name), file.as_os_str()])
    }

    /// One field of `snapctl status`, as text.
    pub(crate) fn status(&self, field: &str) -> Result<String, Failure> {
        let status = self.json(&["status"])?;
        match &status[field] {
            Value::Null => Err(Failure::new(format!("snapctl's status has no {field}"))),
            Value::String(text) => Ok(text.clone()),
            other => Ok(other.to_string()),
        }
    }

    /// One number of `snapctl snapshot show`.
    pub(crate) fn of_snapshot(&self, name: &str, field: &str) -> Result<u64, Failure> {
        self.json(&["snapshot", "show", name])?[field]
            .as_u64()
            .ok_or_else(|| Failure::new(format!("snapctl's snapshot has no number {field}")))
    }

    /// Makes a volume, empty or from a snapshot, and attaches it.
    pub(crate) fn make_volume(&self, name: &str, of: Content<'_>) -> Result<Volume, Failure> {
        self.create_volume(name, of)?;
        self.ctl(&["volume", "attach", name])?;
        Ok(Volume {
            name: name.to_owned(),
            nbd: self.nbd.clone(),
            nbd_tcp: self.nbd_tcp,
        })
    }

    /// Makes a volume that is not attached.
    pub(crate) fn create_volume(&self, name: &str, of: Content<'_>) -> Result<Finished, Failure> {
        let size;
        let content = match of {
            Content::Zeros { bytes } => {
                size = bytes.to_string();
                ["--size", &size]
            }
            Content::Snapshot(snapshot) => ["--from", snapshot],
        };
        self.ctl(&[&["volume", "create", name][..], &content].concat())
    }

    /// Takes a snapshot, and waits until it is complete.
    pub(crate) fn snapshot(&self, volume: &Volume, name: &str) -> Result<Finished, Failure> {
        self.ctl(&["snapshot", "create", &volume.name, "--name", name, "--wait"])
    }

    /// Runs snapctl.
    pub(crate) fn ctl(&self, arguments: &[&str]) -> Result<Finished, Failure> {
        let arguments: Vec<&OsStr> = arguments.iter().map(OsStr::new).collect();
        self.snapctl(&arguments)
    }

    /// The answer of snapctl as JSON.
    pub(crate) fn json(&self, arguments: &[&str]) -> Result<Value, Failure> {
        let output = self
            .ctl(&[arguments, &["--output", "json"]].concat())?
            .output;
        serde_json::from_str(&output).during(|| "read snapctl's answer".to_owned())
    }

    /// The export of a snapshot, for libnbd.
    pub(crate) fn uri(&self, name: &str) -> String {
        self.uri_over(Over::Unix, name)
    }

    pub(crate) fn uri_over(&self, over: Over, name: &str) -> String {
        uri_over(over, &self.nbd, self.nbd_tcp, &format!("snapshot/{name}"))
    }

    /// Processor time of varved so far.
    pub(crate) fn cpu_seconds(&self) -> Result<f64, Failure> {
        self.service.cpu_seconds()
    }

    /// The export of a snapshot, for QEMU's `-drive`.
    pub(crate) fn drive(&self, name: &str) -> String {
        format!(
            "format=raw,file.driver=nbd,file.server.type=unix,file.server.path={},file.export=snapshot/{name}",
            self.nbd.display()
        )
    }

    pub(crate) fn peak_bytes(&self) -> Result<u64, Failure> {
        self.service.peak_bytes()
    }

    pub(crate) fn stop(self) -> Result<(), Failure> {
        self.service.stop()
    }

    /// Bytes that varved has read from the disk so far.
    pub(crate) fn read_bytes(&self) -> Result<u64, Failure> {
        self.service.read_bytes()
    }

    fn snapctl(&self, arguments: &[&OsStr]) -> Result<Finished, Failure> {
        process::run(
            Command::new(&self.snapctl)
                .args(arguments)
                .env("VARVE_ENDPOINT", self.endpoint()),
        )
    }
}

/// The content of a new volume.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Content<'a> {
    Zeros { bytes: u64 },
    Snapshot(&'a str),
}

/// An attached volume.
#[derive(Debug)]
pub(crate) struct Volume {
    name: String,
    nbd: PathBuf,
    nbd_tcp: SocketAddr,
}

fn uri_over(over: Over, unix: &Path, tcp: SocketAddr, export: &str) -> String {
    match over {
        Over::Unix => Address::Unix(unix.to_owned()).uri(export),
        Over::Tcp => Address::Tcp(tcp).uri(export),
    }
}

impl Volume {
    /// Its export, for libnbd.
    pub(crate) fn uri(&self) -> String {
        self.uri_over(Over::Unix)
    }

    pub(crate) fn uri_over(&self, over: Over) -> String {
        uri_over(
            over,
            &self.nbd,
            self.nbd_tcp,
            &format!("volume/{}", self.name),
        )
    }

    /// Its export, for QEMU's `-drive`.
    pub(crate) fn drive(&self) -> String {
        format!(
            "format=raw,file.driver=nbd,file.server.type=unix,file.server.path={},file.export=volume/{}",
            self.nbd.display(),
            self.name
        )
    }
}
