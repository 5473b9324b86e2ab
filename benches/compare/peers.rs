//! The programs beside which Varve is measured, each called as its own documentation says.

use std::path::{Path, PathBuf};
use std::process::Command;

use varve_tests::daemon::free_address;

use crate::failure::Failure;
use crate::process::{self, Address, Finished, Over, Service};

/// A new restic repository, version 2, with compression `auto`.
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

    /// Its directory.
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

    /// Forgets all but the last backups of each file, and removes unneeded data, with restic's own
    /// limit of unused data that may be left.
    pub(crate) fn forget(&self, kept: u32) -> Result<Finished, Failure> {
        let kept = kept.to_string();
        process::run(
            self.command()
                .args(["forget", "--prune", "--group-by", "paths"])
                .args(["--keep-last", &kept]),
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

/// A new borg repository without encryption, with borg's own compression and chunk sizes.
#[derive(Debug)]
pub(crate) struct Borg {
    directory: PathBuf,
}

impl Borg {
    pub(crate) fn create(directory: &Path) -> Result<Self, Failure> {
        let borg = Self {
            directory: directory.to_owned(),
        };
        process::run(borg.command("init").args(["--encryption", "none"]))?;
        Ok(borg)
    }

    pub(crate) fn backup(&self, file: &Path, name: &str) -> Result<Finished, Failure> {
        process::run(self.command("create").arg(format!("::{name}")).arg(file))
    }

    /// Deletes the archives whose names match. Their space stays taken.
    pub(crate) fn delete(&self, names: &str) -> Result<Finished, Failure> {
        process::run(self.command("delete").args(["--glob-archives", names]))
    }

    /// Removes unneeded data, with borg's own limit of unused data that may be left.
    pub(crate) fn compact(&self) -> Result<Finished, Failure> {
        process::run(&mut self.command("compact"))
    }

    /// Its directory.
    pub(crate) fn repository(&self) -> PathBuf {
        self.directory.join("repository")
    }

    fn command(&self, command: &str) -> Command {
        let mut borg = Command::new("borg");
        borg.arg(command)
            .env("BORG_REPO", self.repository())
            .env("BORG_BASE_DIR", self.directory.join("base"))
            // This program has made it on purpose.
            .env("BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK", "yes");
        borg
    }
}

/// Converts to a compressed qcow2, with four workers and writes out of order. qemu-img leaves it to
/// the kernel when the file becomes durable.
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

/// Converts a qcow2 to a sparse raw file. qemu-img leaves it to the kernel when the file becomes
/// durable.
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
    address: Address,
}

impl NbdServer {
    /// nbdkit, serving a raw file read-only.
    pub(crate) fn nbdkit_read_only(
        over: Over,
        directory: &Path,
        image: &Path,
    ) -> Result<Self, Failure> {
        Self::nbdkit(over, directory, "nbdkit", |nbdkit| {
            nbdkit.args(["--readonly", "file"]).arg(image)
        })
    }

    /// nbdkit, serving a raw file through the page cache.
    pub(crate) fn nbdkit_file(over: Over, directory: &Path, disk: &Path) -> Result<Self, Failure> {
        Self::nbdkit(over, directory, "nbdkit", |nbdkit| {
            nbdkit.arg("file").arg(disk)
        })
    }

    /// nbdkit, serving a disk that keeps nothing: the cost of the protocol alone.
    pub(crate) fn nbdkit_null(
        over: Over,
        directory: &Path,
        size_bytes: u64,
    ) -> Result<Self, Failure> {
        Self::nbdkit(over, directory, "nbdkit-null", |nbdkit| {
            nbdkit.args(["null", &format!("size={size_bytes}")])
        })
    }

    fn nbdkit(
        over: Over,
        directory: &Path,
        name: &str,
        serving: impl FnOnce(&mut Command) -> &mut Command,
    ) -> Result<Self, Failure> {
        let mut command = Command::new("nbdkit");
        command.arg("--foreground");
        let address = match over {
            Over::Unix => {
                let socket = directory.join(format!("{name}.sock"));
                command.arg("--unix").arg(&socket);
                Address::Unix(socket)
            }
            Over::Tcp => {
                let address = free_address();
                let (ip, port) = (address.ip().to_string(), address.port().to_string());
                command.args(["--ipaddr", &ip, "--port", &port]);
                Address::Tcp(address)
            }
        };
        let log = directory.join(format!("{name}.log"));
        Self::start(serving(&mut command), &log, address)
    }

    /// qemu-nbd, serving a qcow2 read-only.
    pub(crate) fn qemu_nbd_qcow2(directory: &Path, qcow2: &Path) -> Result<Self, Failure> {
        let options = ["--read-only", "--format=qcow2"];
        Self::qemu_nbd(Over::Unix, directory, qcow2, &options)
    }

    /// qemu-nbd, serving a raw file past the page cache, as hypervisors are commonly set up.
    pub(crate) fn qemu_nbd_raw(over: Over, directory: &Path, disk: &Path) -> Result<Self, Failure> {
        let options = ["--format=raw", "--cache=none", "--aio=io_uring"];
        Self::qemu_nbd(over, directory, disk, &options)
    }

    fn qemu_nbd(
        over: Over,
        directory: &Path,
        image: &Path,
        options: &[&str],
    ) -> Result<Self, Failure> {
        let mut command = Command::new("qemu-nbd");
        command.args(["--persistent", "--shared=8"]);
        let address = match over {
            Over::Unix => {
                let socket = directory.join("qemu-nbd.sock");
                command.arg("--socket").arg(&socket);
                Address::Unix(socket)
            }
            Over::Tcp => {
                let address = free_address();
                let (ip, port) = (address.ip().to_string(), address.port().to_string());
                command.args(["--bind", &ip, "--port", &port]);
                Address::Tcp(address)
            }
        };
        command.args(options).arg(image);
        Self::start(&mut command, &directory.join("qemu-nbd.log"), address)
    }

    fn start(command: &mut Command, log: &Path, address: Address) -> Result<Self, Failure> {
        let service = Service::start(command, log, std::slice::from_ref(&address))?;
        Ok(Self { service, address })
    }

    pub(crate) fn uri(&self) -> String {
        self.address.uri("")
    }

    /// Processor time so far.
    pub(crate) fn cpu_seconds(&self) -> Result<f64, Failure> {
        self.service.cpu_seconds()
    }

    /// Its export, for QEMU's `-drive`.
    pub(crate) fn drive(&self) -> String {
        match &self.address {
            Address::Unix(path) => format!(
                "format=raw,file.driver=nbd,file.server.type=unix,file.server.path={}",
                path.display()
            ),
            Address::Tcp(address) => format!("format=raw,file={}", Address::Tcp(*address).uri("")),
        }
    }

    pub(crate) fn stop(self) -> Result<(), Failure> {
        self.service.stop()
    }
}
