//! Attaching, staying, taking over, detaching.

use std::{
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    pin::{Pin, pin},
    time::{Duration, Instant},
};

use varve_nbd::{
    split_ticket,
    wire::{ExportDetails, TransmissionFlags},
};

use super::{
    MapOptions, NbdAddress,
    handshake::{self, Connection, Dialled},
    netlink::{Announced, Events, Kernel, NewDevice},
    sysfs::{self, Backend, Claimed, Keeping, Mapped, mapped},
};
use crate::error::{Error, ErrorKind, Result};

/// Interval between checks that a device is still attached.
const LOOK: Duration = Duration::from_millis(200);
/// Pause before another attempt to reach a daemon that does not answer: the first one, and the
/// longest.
const RETRY: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_millis(250);
/// Time limit for udev to create the device's file, and for the kernel to release a device.
const SETTLE: Duration = Duration::from_secs(3);
/// Time limit for writing out the cache of a device that is detached by force.
const SYNC_BY_FORCE: Duration = Duration::from_secs(2);
/// The most connections of a device: the kernel has a queue for each of them.
const CONNECTIONS_MAX: u32 = 64;

/// An export that is mapped to a device.
#[derive(Debug)]
pub struct Mapping {
    device: Mapped,
    backend: String,
    address: NbdAddress,
    /// How its connections open the export.
    dialled: Dialled,
    taken_over: bool,
    kernel: Kernel,
    events: Events,
    /// Connections that the kernel has lost and that were not replaced yet.
    dead: u32,
    /// The time at which the first of them was lost, if this process saw it.
    lost_at: Option<Instant>,
    _keeping: Keeping,
}

/// An event of a mapping while a process keeps it connected.
#[derive(Debug)]
pub enum Event {
    /// A connection was lost. Requests wait.
    Lost,
    /// A new connection failed; it is retried.
    NotYet(Error),
    /// All connections work again. The time since the first one was lost.
    Restored(Duration),
}

/// The reason why staying ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ended {
    /// The device was detached.
    Detached,
    /// The caller ended it. The device is still attached.
    Interrupted,
}

/// The name of an export without its ticket.
fn shown(name: &str) -> &str {
    split_ticket(name).map_or(name, |(name, _)| name)
}

fn not_root(what: &str, error: io::Error) -> Error {
    if error.kind() == io::ErrorKind::PermissionDenied {
        return Error::new(ErrorKind::Denied, what, "only root may do that");
    }
    Error::file(what, error)
}

fn open_kernel(what: &str) -> Result<Kernel> {
    let kernel = Kernel::open().map_err(|error| not_root(what, error))?;
    kernel.ok_or_else(|| {
        let loaded = Path::new("/sys/module/nbd").exists() || Path::new("/sys/block/nbd0").exists();
        let why = if loaded {
            "the kernel's NBD client is too old: Linux 5.14 or later is needed"
        } else {
            "the kernel has no NBD client now: load it with `modprobe nbd`"
        };
        Error::new(ErrorKind::Unavailable, what, why)
    })
}

impl Mapping {
    /// Attaches an export as a device. `opened` is the same export by its id, if that is known.
    ///
    /// A name may have an attach ticket. Only the daemon gets it: everybody can read the names that
    /// the kernel keeps.
    ///
    /// If the export is attached already and no process keeps it connected, this process takes it
    /// over.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`] if the kernel has no NBD client, or one that is too old;
    /// [`ErrorKind::Conflict`] if the device is taken, or if another process keeps the export
    /// connected; [`ErrorKind::Denied`] if this process is not root; errors of the daemon.
    pub async fn attach(
        address: &NbdAddress,
        export: &str,
        opened: Option<&str>,
        options: &MapOptions,
    ) -> Result<Self> {
        let opened = opened.unwrap_or(export);
        let dialled = Dialled(opened.to_owned());
        let [export, opened] = [export, opened].map(shown);
        let what = format!("map {export}");
        check(options, &what)?;
        let kernel = open_kernel(&what)?;
        if let Some(device) = mapped()?.into_iter().find(|it| it.is(opened, address)) {
            return Self::take_over(kernel, device, (address, dialled), options, &what).await;
        }
        let to = (address, dialled);
        Self::attach_new(kernel, to, (export, opened), options, &what).await
    }

    async fn take_over(
        kernel: Kernel,
        device: Mapped,
        (address, dialled): (&NbdAddress, Dialled),
        options: &MapOptions,
        what: &str,
    ) -> Result<Self> {
        let other = (options.read_only && !device.read_only)
            || options.index.is_some_and(|index| index != device.index);
        if other {
            let access = if device.read_only {
                "read-only"
            } else {
                "writable"
            };
            let why = format!("it is {} already, {access}", device.path.display());
            return Err(Error::new(ErrorKind::Conflict, what, why));
        }
        let Some(keeping) = Keeping::begin(device.index).await? else {
            let keeper = device.process.map_or_else(
                || "another process".to_owned(),
                |process| format!("process {process}"),
            );
            let why = format!(
                "it is {} already, and {keeper} keeps it connected",
                device.path.display()
            );
            return Err(Error::new(ErrorKind::Conflict, what, why));
        };
        let backend = Backend::new(&device.export, &device.opened, address, device.connections);
        let events = kernel.events().map_err(|error| not_root(what, error))?;
        Ok(Self {
            backend: backend.encode()?,
            address: address.clone(),
            dialled,
            taken_over: true,
            kernel,
            events,
            // Any connection may have been lost while no process watched.
            dead: device.connections,
            lost_at: None,
            device,
            _keeping: keeping,
        })
    }

    async fn attach_new(
        mut kernel: Kernel,
        (address, dialled): (&NbdAddress, Dialled),
        (export, opened): (&str, &str),
        options: &MapOptions,
        what: &str,
    ) -> Result<Self> {
        let first = handshake::connect(address, &dialled).await?;
        let ExportDetails {
            size_bytes,
            mut flags,
        } = first.export;
        if options.read_only {
            flags = flags.with(TransmissionFlags::READ_ONLY);
        }
        let connections = if first.can_multi_conn() {
            options.connections
        } else {
            1
        };
        let mut sockets = vec![first.socket];
        for _ in 1..connections {
            sockets.push(handshake::connect(address, &dialled).await?.socket);
        }
        let backend = Backend::new(export, opened, address, connections).encode()?;
        // Subscribe first, so that no loss goes unnoticed.
        let events = kernel.events().map_err(|error| not_root(what, error))?;
        // From here on no other process attaches a device, so nothing is attached twice.
        let _alone = sysfs::attach_alone().await?;
        if let Some(other) = mapped()?.into_iter().find(|it| it.is(opened, address)) {
            let why = format!("it has become {} meanwhile", other.path.display());
            return Err(Error::new(ErrorKind::Conflict, what, why));
        }
        let new = NewDevice {
            index: options.index,
            size_bytes,
            block_size_bytes: options.block_size_bytes,
            timeout: options.timeout,
            dead_timeout: options.dead_timeout,
            flags: flags.0,
            backend: backend.clone(),
        };
        let fds: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
        let index = kernel.connect(&new, &fds).map_err(|error| {
            let device = options.index.map_or_else(
                || "a device".to_owned(),
                |it| sysfs::device(it).display().to_string(),
            );
            match (error.kind(), options.index) {
                (io::ErrorKind::ResourceBusy, Some(_)) => {
                    Error::new(ErrorKind::Conflict, what, format!("{device} is in use"))
                }
                (io::ErrorKind::ResourceBusy, None) => {
                    Error::new(ErrorKind::Conflict, what, "no NBD device is free")
                }
                _ => not_root(&format!("{what} as {device}"), error),
            }
        })?;
        let detach = |kernel: &mut Kernel, error| {
            // Nobody needs the device, and the first error is the one to report.
            let _ = kernel.disconnect(index);
            Err(error)
        };
        if !sysfs::keeps_backends(index) {
            let why = "the kernel is too old: Linux 5.14 or newer keeps the identity of a device, \
                       without which devices could be mixed up";
            return detach(&mut kernel, Error::new(ErrorKind::Unavailable, what, why));
        }
        let keeping = match Keeping::begin(index).await {
            Ok(Some(keeping)) => keeping,
            Ok(None) => {
                let why = format!(
                    "another process keeps {} connected",
                    sysfs::device(index).display()
                );
                return detach(&mut kernel, Error::new(ErrorKind::Conflict, what, why));
            }
            Err(error) => return detach(&mut kernel, error),
        };
        let there = settled(|| sysfs::read(index).filter(|it| it.path.exists())).await;
        let Some(device) = there else {
            let why = format!(
                "{} does not appear; is udev running?",
                sysfs::device(index).display()
            );
            return detach(&mut kernel, Error::new(ErrorKind::Unavailable, what, why));
        };
        Ok(Self {
            device,
            backend,
            address: address.clone(),
            dialled,
            taken_over: false,
            kernel,
            events,
            dead: 0,
            lost_at: None,
            _keeping: keeping,
        })
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &Mapped {
        &self.device
    }

    /// Returns true if the export was attached before, and this process only keeps it connected.
    #[must_use]
    pub fn was_taken_over(&self) -> bool {
        self.taken_over
    }

    /// Replaces lost connections of the kernel until the device is detached or `until` completes.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::File`] if the kernel's interface fails.
    pub async fn stay(
        &mut self,
        until: impl Future<Output = ()>,
        mut tell: impl FnMut(Event),
    ) -> Result<Ended> {
        let what = format!("look after {}", self.device.path.display());
        let failed = |error| not_root(&what, error);
        let index = self.device.index;
        let mut until = pin!(until);
        let mut look = tokio::time::interval(LOOK);
        let mut pause = Duration::ZERO;
        let mut told = String::new();
        let mut attempt: Option<Attempt> = None;
        loop {
            if self.dead > 0 && attempt.is_none() {
                attempt = Some(self.attempt_after(pause));
            }
            tokio::select! {
                () = &mut until => return Ok(Ended::Interrupted),
                _ = look.tick() => {
                    if !self.is_there() {
                        return Ok(Ended::Detached);
                    }
                }
                announced = self.events.next() => {
                    match announced.map_err(failed)? {
                        Announced::LinkDead(dead) if dead == index => {
                            self.dead = self.device.connections.min(self.dead + 1);
                        }
                        Announced::LinkDead(_) => continue,
                        Announced::Lost => self.dead = self.device.connections,
                    }
                    // The last announcement of a device that is being detached.
                    if !self.is_there() {
                        return Ok(Ended::Detached);
                    }
                    if self.lost_at.is_none() {
                        self.lost_at = Some(Instant::now());
                        tell(Event::Lost);
                    }
                }
                connection = made(&mut attempt) => {
                    attempt = None;
                    match connection.and_then(|connection| self.replace(connection)) {
                        Ok(()) => {
                            pause = Duration::ZERO;
                            told.clear();
                            self.dead -= 1;
                            if self.dead == 0 && let Some(at) = self.lost_at.take() {
                                tell(Event::Restored(at.elapsed()));
                            }
                        }
                        Err(error) => {
                            if !self.is_there() {
                                return Ok(Ended::Detached);
                            }
                            // Report an error once, until it changes.
                            if told != error.to_string() {
                                told = error.to_string();
                                tell(Event::NotYet(error));
                            }
                            pause = (pause * 2).clamp(RETRY, RETRY_MAX);
                        }
                    }
                }
            }
        }
    }

    /// A new connection, after a pause.
    fn attempt_after(&self, pause: Duration) -> Attempt {
        let (address, dialled) = (self.address.clone(), self.dialled.clone());
        Box::pin(async move {
            tokio::time::sleep(pause).await;
            handshake::connect(&address, &dialled).await
        })
    }

    /// Returns true if the device still has this mapping: it may have another one by now.
    fn is_there(&self) -> bool {
        sysfs::has_backend(self.device.index, &self.backend)
    }

    /// Returns true if a connection is currently lost.
    #[must_use]
    pub fn is_cut_off(&self) -> bool {
        self.lost_at.is_some()
    }

    /// Hands the kernel a connection in place of one that is dead.
    fn replace(&mut self, connection: Connection) -> Result<()> {
        let what = format!("reconnect {}", self.device.path.display());
        if connection.export.size_bytes / 512 * 512 < self.device.size_bytes {
            let why = format!(
                "{} has {} bytes now, fewer than its former {}",
                self.device.export, connection.export.size_bytes, self.device.size_bytes
            );
            return Err(Error::new(ErrorKind::Conflict, what, why));
        }
        if connection.is_read_only() && !self.device.read_only {
            let why = format!("{} cannot be written to any more", self.device.export);
            return Err(Error::new(ErrorKind::Conflict, what, why));
        }
        let socket = connection.socket.as_fd();
        let taken = self
            .kernel
            .reconnect(self.device.index, &self.backend, socket);
        taken.map_err(|error| not_root(&what, error))
    }

    /// Detaches the device, if it is not in use. All writes to it are durable then.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Conflict`] if it is in use: it stays attached.
    pub async fn detach(&mut self) -> Result<()> {
        detach(&mut self.kernel, &self.device, false)
            .await
            .map(drop)
    }
}

type Attempt = Pin<Box<dyn Future<Output = Result<Connection>> + Send>>;

/// Waits for the result of an attempt; forever if there is none.
async fn made(attempt: &mut Option<Attempt>) -> Result<Connection> {
    match attempt {
        Some(attempt) => attempt.await,
        None => std::future::pending().await,
    }
}

fn check(options: &MapOptions, what: &str) -> Result<()> {
    let wrong = |why: String| Err(Error::new(ErrorKind::Invalid, what, why));
    let block_size = options.block_size_bytes;
    if !block_size.is_power_of_two() || !(512..=4096).contains(&block_size) {
        return wrong(format!(
            "the block size {block_size} is not a power of two from 512 to 4096"
        ));
    }
    if !(1..=CONNECTIONS_MAX).contains(&options.connections) {
        return wrong(format!(
            "there are 1 to {CONNECTIONS_MAX} connections, and not {}",
            options.connections
        ));
    }
    Ok(())
}

/// Waits until `look` finds something, up to [`SETTLE`].
async fn settled<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + SETTLE;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() > end {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Detaches a device, given as `/dev/nbdN` or by its export.
///
/// All writes to it are durable then. A device in use, a mounted one for example, is detached only
/// with `force`: its users get errors.
///
/// # Errors
///
/// [`ErrorKind::NotFound`] if there is no such device, or it has no export; [`ErrorKind::Conflict`]
/// if it is in use, or if an export is attached more than once.
pub async fn unmap(which: &str, force: bool) -> Result<Unmapped> {
    let what = format!("unmap {which}");
    let mut kernel = open_kernel(&what)?;
    let matches = |it: &Mapped| {
        it.path == Path::new(which)
            || it.path.file_name().is_some_and(|name| name == which)
            || it.export == which
            || it.opened == which
    };
    let mut found = mapped()?.into_iter().filter(matches);
    let Some(device) = found.next() else {
        let why = "it is not attached to a device; `snapctl device list` lists the attached \
                   exports";
        return Err(Error::new(ErrorKind::NotFound, what, why));
    };
    if let Some(other) = found.next() {
        let (one, other) = (device.path.display(), other.path.display());
        let why = format!("it is attached to {one} and to {other}: name the device");
        return Err(Error::new(ErrorKind::Conflict, what, why));
    }
    let is_gone = detach(&mut kernel, &device, force).await?;
    if is_gone && device.process.is_some() {
        // The process that kept the device connected notices. The number may be used again at once.
        let _ = settled(|| sysfs::keeper(device.index).is_none().then_some(())).await;
    }
    Ok(Unmapped {
        path: device.path,
        is_gone,
    })
}

/// A device that was detached.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Unmapped {
    /// `/dev/nbdN`.
    pub path: PathBuf,
    /// True if the device is free. A device that was detached by force while in use returns errors,
    /// and disappears when its last user closes it.
    pub is_gone: bool,
}

/// Detaches a device. Returns true if it is gone: a device in use stays until its last user closes
/// it.
async fn detach(kernel: &mut Kernel, device: &Mapped, force: bool) -> Result<bool> {
    let what = format!("detach {}", device.path.display());
    let claimed = sysfs::claim(device.index)
        .await
        .map_err(|error| not_root(&what, error))?;
    let file = match claimed {
        Claimed::Alone(file) => Some(file),
        Claimed::Used(by) if !force => {
            let why = format!("it is in use: {by}");
            return Err(Error::new(ErrorKind::Conflict, what, why));
        }
        Claimed::Used(_) => None,
    };
    // Close the file before the detach, whether or not the sync succeeds: it would keep the device.
    if let Some(file) = file.filter(|_| !device.read_only)
        && let Err(error) = sync(file, force).await
        && !force
    {
        return Err(Error::file(what, error));
    }
    kernel
        .disconnect(device.index)
        .map_err(|error| not_root(&what, error))?;
    let gone = settled(|| (!sysfs::is_attached(device.index)).then_some(())).await;
    Ok(gone.is_some())
}

/// Syncs a device. With `force` it waits only for a short time: without a daemon it would wait for
/// ever.
async fn sync(file: std::fs::File, force: bool) -> io::Result<()> {
    let (told, outcome) = tokio::sync::oneshot::channel();
    // Not on a thread of the runtime, because the end of the program waits for those. The kernel
    // releases this thread when the device is detached.
    std::thread::spawn(move || told.send(file.sync_all()));
    let limit = if force { SYNC_BY_FORCE } else { Duration::MAX };
    match tokio::time::timeout(limit, outcome).await {
        Ok(Ok(synced)) => synced,
        Ok(Err(_)) | Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}
