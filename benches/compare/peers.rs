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

    /// Where it is.
    pub(crate) fn repository(&self) -> &Path {
        &self.repository
    }

    /// Copies all snapshots of another repository that has the same password.
    pub(crate) fn copy_from(&self, repository: &str) -> Result<Finished, Failure> {
        process::run(
            self.command()
                .args(["copy", "--from-repo", repository])
                .env("RESTIC_FROM_PASSWORD", "not a secret"),
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
    /// nbdkit, serving a raw file that is not written to.
    pub(crate) fn nbdkit_read_only(directory: &Path, image: &Path) -> Result<Self, Failure> {
        Self::nbdkit(directory, "nbdkit", |nbdkit| {
            nbdkit.args(["--readonly", "file"]).arg(image)
        })
    }

    /// nbdkit, serving a raw file through the page cache.
    pub(crate) fn nbdkit_file(directory: &Path, disk: &Path) -> Result<Self, Failure> {
        Self::nbdkit(directory, "nbdkit", |nbdkit| nbdkit.arg("file").arg(disk))
    }

    /// nbdkit, serving a disk that keeps nothing: what the protocol alone costs.
    pub(crate) fn nbdkit_null(directory: &Path, size_bytes: u64) -> Result<Self, Failure> {
        Self::nbdkit(directory, "nbdkit-null", |nbdkit| {
            nbdkit.args(["null", &format!("size={size_bytes}")])
        })
    }

    fn nbdkit(
        directory: &Path,
        name: &str,
        serving: impl FnOnce(&mut Command) -> &mut Command,
    ) -> Result<Self, Failure> {
        let socket = directory.join(format!("{name}.sock"));
        let mut command = Command::new("nbdkit");
        command.args(["--foreground", "--unix"]).arg(&socket);
        Self::start(serving(&mut command), socket)
    }

    /// qemu-nbd, serving a qcow2 that is not written to.
    pub(crate) fn qemu_nbd_qcow2(directory: &Path, qcow2: &Path) -> Result<Self, Failure> {
        Self::qemu_nbd(directory, qcow2, &["--read-only", "--format=qcow2"])
    }

    /// qemu-nbd, serving a raw file past the page cache, as hypervisors are commonly set up.
    pub(crate) fn qemu_nbd_raw(directory: &Path, disk: &Path) -> Result<Self, Failure> {
        let options = ["--format=raw", "--cache=none", "--aio=io_uring"];
        Self::qemu_nbd(directory, disk, &options)
    }

    fn qemu_nbd(directory: &Path, image: &Path, options: &[&str]) -> Result<Self, Failure> {
        let socket = directory.join("qemu-nbd.sock");
        let mut command = Command::new("qemu-nbd");
        command
            .args(["--persistent", "--shared=8", "--socket"])
            .arg(&socket)
            .args(options)
            .arg(image);
        Self::start(&mut command, socket)
    }

    fn start(command: &mut Command, socket: PathBuf) -> Result<Self, Failure> {
        let service = Service::start(command, &socket.with_extension("log"), &[&socket])?;
        Ok(Self { service, socket })
    }

    pub(crate) fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
    }

    /// Its export, for QEMU's `-drive`.
    pub(crate) fn drive(&self) -> String {
        format!(
            "format=raw,file.driver=nbd,file.server.type=unix,file.server.path={}",
            self.socket.display()
        )
    }

    pub(crate) fn stop(self) -> Result<(), Failure> {
        self.service.stop()
    }
}
