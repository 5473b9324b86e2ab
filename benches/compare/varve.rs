//! Varve as it is used: varved on a data directory, and snapctl over its unix socket.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::failure::{Failure, While};
use crate::process::{self, Finished, Service};

/// Where the two programs are.
#[derive(Debug)]
pub(crate) struct Programs {
    directory: PathBuf,
}

impl Programs {
    /// Beside this program, or where `VARVE_BIN_DIR` says.
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

    /// A running varved on a data directory, made if it is not there.
    pub(crate) fn serve(&self, data_dir: &Path) -> Result<Varved, Failure> {
        let (grpc, nbd) = (data_dir.join("grpc.sock"), data_dir.join("nbd.sock"));
        let log = data_dir.with_extension("log");
        let service = Service::start(
            self.varved().arg("--data-dir").arg(data_dir),
            &log,
            &[&grpc, &nbd],
        )?;
        Ok(Varved {
            snapctl: self.directory.join("snapctl"),
            grpc,
            nbd,
            service,
        })
    }
}

/// A varved that runs, with a snapctl for it.
#[derive(Debug)]
pub(crate) struct Varved {
    snapctl: PathBuf,
    grpc: PathBuf,
    nbd: PathBuf,
    service: Service,
}

impl Varved {
    pub(crate) fn import(&self, file: &Path, name: &str) -> Result<Finished, Failure> {
        self.snapctl([
            OsStr::new("import"),
            file.as_os_str(),
            OsStr::new("--name"),
            OsStr::new(name),
        ])
    }

    pub(crate) fn export(&self, name: &str, file: &Path) -> Result<Finished, Failure> {
        self.snapctl([OsStr::new("export"), OsStr::new(name), file.as_os_str()])
    }

    /// One field of `snapctl status`, as text.
    pub(crate) fn status(&self, field: &str) -> Result<String, Failure> {
        let output = self
            .snapctl(["status", "--output", "json"].map(OsStr::new))?
            .output;
        let status: Value =
            serde_json::from_str(&output).during(|| "read snapctl's status".to_owned())?;
        match &status[field] {
            Value::Null => Err(Failure::new(format!("snapctl's status has no {field}"))),
            Value::String(text) => Ok(text.clone()),
            other => Ok(other.to_string()),
        }
    }

    /// The export of a snapshot, for libnbd.
    pub(crate) fn uri(&self, name: &str) -> String {
        format!("nbd+unix:///snapshot/{name}?socket={}", self.nbd.display())
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

    fn snapctl<const N: usize>(&self, arguments: [&OsStr; N]) -> Result<Finished, Failure> {
        process::run(
            Command::new(&self.snapctl)
                .args(arguments)
                .env("VARVE_ENDPOINT", format!("unix:{}", self.grpc.display())),
        )
    }
}
