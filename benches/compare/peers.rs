//! The programs Varve is compared with, each called as its own documentation tells.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::Failure;
use crate::process::{self, Finished, Service};

/// A restic repository of its own, version 2, with compression `auto`.
///
/// restic makes its files durable before it reports success.
#[derive(Debug)]
pub(crate) struct Restic {
    repository: PathBuf,
}

impl Restic {
    pub(crate) fn create(directory: &Path) -> Result<Self, Failure> {
        let restic = Self {
            repository: directory.join("restic"),
        };
        process::run(restic.command().args(["init", "--repository-version", "2"]))?;
        Ok(restic)
    }

    pub(crate) fn backup(&self, file: &Path) -> Result<Finished, Failure> {
        process::run(
            self.command()
                .args(["backup", "--compression", "auto"])
                .arg(file),
        )
    }

    /// Reads the file again although neither its time stamp nor its size has changed.
    pub(crate) fn backup_rereading(&self, file: &Path) -> Result<Finished, Failure> {
        process::run(
            self.command()
                .args(["backup", "--force", "--compression", "auto"])
                .arg(file),
        )
    }

    fn command(&self) -> Command {
        let mut command = Command::new("restic");
        command
            .env("RESTIC_REPOSITORY", &self.repository)
            .env("RESTIC_PASSWORD", "not a secret")
            .env("RESTIC_CACHE_DIR", self.repository.with_extension("cache"));
        command
    }
}

/// To a compressed qcow2, with four workers and writes out of order. qemu-img leaves making it durable to the kernel.
pub(crate) fn qemu_img_compress(image: &Path, qcow2: &Path) -> Result<Finished, Failure> {
    process::run(
        Command::new("qemu-img")
            .args([
                "convert",
                "-c",
                "-f",
                "raw",
                "-O",
                "qcow2",
                "-o",
                "compression_type=zstd",
                "-m",
                "4",
                "-W",
            ])
            .args([image, qcow2]),
    )
}

/// From a qcow2 to a sparse raw file. qemu-img leaves making it durable to the kernel.
pub(crate) fn qemu_img_expand(qcow2: &Path, raw: &Path) -> Result<Finished, Failure> {
    process::run(
        Command::new("qemu-img")
            .args(["convert", "-f", "qcow2", "-O", "raw"])
            .args([qcow2, raw]),
    )
}

/// Puts an image into a casync store, with casync's own chunk sizes and compression.
pub(crate) fn casync_make(store: &Path, index: &Path, image: &Path) -> Result<Finished, Failure> {
    process::run(
        Command::new("casync")
            .arg("make")
            .arg(format!("--store={}", store.display()))
            .args([index, image]),
    )
}

/// Hashes a file on one thread.
pub(crate) fn b3sum(file: &Path) -> Result<Finished, Failure> {
    process::run(Command::new("b3sum").args(["--num-threads", "1"]).arg(file))
}

/// An NBD server of another make, on a socket in a directory.
#[derive(Debug)]
pub(crate) struct NbdServer {
    service: Service,
    socket: PathBuf,
}

impl NbdServer {
    /// nbdkit, serving a raw file.
    pub(crate) fn nbdkit(directory: &Path, image: &Path) -> Result<Self, Failure> {
        let socket = directory.join("nbdkit.sock");
        let mut command = Command::new("nbdkit");
        command
            .args(["--foreground", "--readonly", "--unix"])
            .arg(&socket)
            .arg("file")
            .arg(image);
        Self::start(&mut command, socket)
    }

    /// qemu-nbd, serving a qcow2.
    pub(crate) fn qemu_nbd(directory: &Path, qcow2: &Path) -> Result<Self, Failure> {
        let socket = directory.join("qemu-nbd.sock");
        let mut command = Command::new("qemu-nbd");
        command.args([
            "--read-only",
            "--persistent",
            "--shared=8",
            "--format=qcow2",
            "--socket",
        ]);
        command.arg(&socket).arg(qcow2);
        Self::start(&mut command, socket)
    }

    fn start(command: &mut Command, socket: PathBuf) -> Result<Self, Failure> {
        let service = Service::start(command, &socket.with_extension("log"), &[&socket])?;
        Ok(Self { service, socket })
    }

    pub(crate) fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
    }

    pub(crate) fn stop(self) -> Result<(), Failure> {
        self.service.stop()
    }
}
