//! Virtual machines that run a script: Debian's kernel and programs, without its services.
//!
//! `scripts/boot-guest` starts QEMU, with KVM where that works.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    process::{Running, command, run, start, wait_for},
    programs::{repository, tool},
    scratch::Scratch,
};

/// Without KVM, on a machine that is busy with other tests, a boot takes minutes.
pub const BOOT_LIMIT: Duration = Duration::from_secs(1800);

/// An image from `scripts/make-image`.
#[must_use]
pub fn image(name: &str) -> PathBuf {
    let script = command(repository().join("scripts/make-image"), ["--dir"]);
    let directory = PathBuf::from(run(script).success().text().trim_end());
    let image = directory.join(format!("{name}.img"));
    assert!(
        image.is_file(),
        "{} is not there. It is made by: scripts/make-image {name}",
        image.display()
    );
    image
}

/// Options for the start of a guest.
#[derive(Debug, Clone)]
pub struct Machine {
    root: String,
    keep: bool,
    systemd: bool,
    qemu: Vec<String>,
}

impl Machine {
    /// A guest on the base image; its writes are lost.
    #[must_use]
    pub fn new() -> Self {
        Self {
            root: raw_file(&image("base")),
            keep: false,
            systemd: false,
            qemu: Vec::new(),
        }
    }

    /// A guest on this drive, in QEMU's words; its writes stay there.
    #[must_use]
    pub fn on(root: &str) -> Self {
        Self {
            root: root.to_owned(),
            keep: true,
            systemd: false,
            qemu: Vec::new(),
        }
    }

    /// With systemd, which boots it and runs the script.
    #[must_use]
    pub fn systemd(mut self) -> Self {
        self.systemd = true;
        self
    }

    /// Adds a drive: the first one is `/dev/vdc`.
    #[must_use]
    pub fn drive(self, drive: &str) -> Self {
        let drive = format!("if=virtio,{drive}");
        self.argument("-drive").argument(&drive)
    }

    /// Adds an argument of QEMU.
    #[must_use]
    pub fn argument(mut self, argument: &str) -> Self {
        self.qemu.push(argument.to_owned());
        self
    }

    /// Starts it. It runs a shell script, and is switched off when that ends.
    #[must_use]
    pub fn start(&self, script: &str) -> Guest {
        let scratch = Scratch::new();
        let script = scratch.file("script", script);
        let mut command = command(repository().join("scripts/boot-guest"), ["--run"]);
        command.arg(&script);
        if self.keep {
            command.arg("--keep");
        }
        if self.systemd {
            command.arg("--systemd");
        }
        command.arg(&self.root).args(&self.qemu);
        Guest {
            qemu: start(command),
            _script: scratch,
        }
    }

    /// Runs a script to its end, which must succeed. Returns the console output.
    pub fn run(&self, script: &str) -> String {
        self.start(script).finish()
    }
}

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}

/// Makes a raw file with an ext4 file system of this size (`2G`) and the files of a directory.
pub fn make_disk(path: &Path, tree: &Path, size: &str) {
    let mut mkfs = command(tool("mkfs.ext4"), ["-q", "-F", "-d"]);
    mkfs.arg(tree).arg(path).arg(size);
    run(mkfs).ok();
}

/// A drive on a raw file.
#[must_use]
pub fn raw_file(path: &Path) -> String {
    format!("format=raw,file={}", path.display())
}

/// A drive on an NBD export.
#[must_use]
pub fn export(uri: &str) -> String {
    format!("format=raw,file={uri}")
}

/// A drive on an NBD export at a unix socket. Its requests wait this many seconds for a server that
/// went away.
#[must_use]
pub fn patient_export(socket: &Path, export: &str, seconds: u32) -> String {
    format!(
        "format=raw,file.driver=nbd,file.server.type=unix,file.server.path={},file.export={export},file.reconnect-delay={seconds}",
        socket.display()
    )
}

/// A running guest. Killed on drop.
#[derive(Debug)]
pub struct Guest {
    qemu: Running,
    _script: Scratch,
}

impl Guest {
    /// Its console output so far.
    #[must_use]
    pub fn console(&self) -> String {
        self.qemu.stdout().replace('\r', "")
    }

    /// Waits until `find` finds something in the console output.
    pub fn wait_for<T>(&mut self, what: &str, find: impl Fn(&str) -> Option<T>) -> T {
        wait_for(what, || {
            let said = self.console();
            if let Some(found) = find(&said) {
                return Some(found);
            }
            if let Some(status) = self.qemu.ended() {
                let errors = self.qemu.stderr();
                panic!("the guest ended ({status}) before {what}: {said}\n{errors}");
            }
            None
        })
    }

    /// Waits until its script has ended with success. Returns the console output.
    pub fn finish(self) -> String {
        let said = self.qemu.wait_within(BOOT_LIMIT).success();
        let console = said.text().replace('\r', "");
        assert!(
            console.contains("script ended with 0"),
            "{console}\n{}",
            said.stderr
        );
        console
    }

    /// Kills it, like a power cut.
    pub fn kill(&mut self) {
        self.qemu.kill();
    }
}
