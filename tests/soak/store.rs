//! A store, and questions to its daemon.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use serde_json::Value;
use varve_tests::{
    files,
    nbd::Peer,
    process::{Finished, wait_for},
    snapctl::{Snapctl, exit, number, text},
};

use super::{
    MIB,
    model::{Content, Model},
    world::{Counts, count},
};

/// A store.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) data_dir: PathBuf,
    pub(super) model: Model,
    /// Odd while no daemon serves it.
    epoch: AtomicU64,
    has_failed: Arc<AtomicBool>,
}

/// The daemon ended meanwhile, so the outcome is unknown.
#[derive(Debug, Clone, Copy)]
pub(super) struct CutOff;

/// Repeats `work` until no daemon ends meanwhile.
pub(super) fn until_done<T>(mut work: impl FnMut() -> Result<T, CutOff>) -> T {
    loop {
        if let Ok(done) = work() {
            return done;
        }
    }
}

impl Store {
    /// An empty store that no daemon serves yet.
    pub(super) fn new(data_dir: PathBuf, has_failed: &Arc<AtomicBool>) -> Self {
        Self {
            data_dir,
            epoch: AtomicU64::new(1),
            model: Model::default(),
            has_failed: Arc::clone(has_failed),
        }
    }

    /// Notes that a daemon serves it.
    pub(super) fn is_served(&self) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
    }

    /// Notes that its daemon is about to end.
    pub(super) fn is_left(&self) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
    }

    /// Returns true if a daemon serves it.
    pub(super) fn is_up(&self) -> bool {
        self.epoch.load(Ordering::SeqCst).is_multiple_of(2)
    }

    /// Waits until a daemon serves it. Returns the number of its life.
    pub(super) fn up(&self) -> u64 {
        wait_for("a daemon", || {
            let failed = self.has_failed.load(Ordering::Relaxed);
            assert!(!failed, "another thread has failed");
            let epoch = self.epoch.load(Ordering::SeqCst);
            epoch.is_multiple_of(2).then_some(epoch)
        })
    }

    /// Returns true if a daemon has ended since this life.
    pub(super) fn has_ended(&self, epoch: u64) -> bool {
        self.epoch.load(Ordering::SeqCst) != epoch
    }

    /// Its endpoint, which is the same for all daemons.
    pub(super) fn endpoint(&self) -> String {
        format!("unix:{}", self.data_dir.join("grpc.sock").display())
    }

    pub(super) fn snapctl(&self) -> Snapctl {
        Snapctl::new(self.endpoint())
    }

    /// The URI of an export.
    pub(super) fn uri(&self, export: &str) -> String {
        let socket = self.data_dir.join("nbd.sock");
        format!("nbd+unix:///{export}?socket={}", socket.display())
    }

    /// Asks its daemon by `snapctl`. Any answer is returned, unless the daemon was away.
    pub(super) fn ask<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<Finished, CutOff> {
        let epoch = self.up();
        let finished = self.snapctl().run(arguments);
        self.judged(epoch, finished)
    }

    /// The outcome of a command that began in this life, unless its daemon ended meanwhile.
    pub(super) fn judged(&self, epoch: u64, finished: Finished) -> Result<Finished, CutOff> {
        let code = finished.status.code();
        // A daemon that stops may say so.
        let is_away = code == Some(exit::UNREACHABLE) || code == Some(exit::FAILURE);
        match is_away && self.has_ended(epoch) {
            true => Err(CutOff),
            false if code == Some(exit::UNREACHABLE) => {
                panic!("a daemon that runs is not reachable: {finished:?}")
            }
            false => Ok(finished),
        }
    }

    /// Changes something by `snapctl`, which must succeed unless the daemon ends meanwhile.
    pub(super) fn change<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<(), CutOff> {
        let epoch = self.up();
        let finished = self.snapctl().run(arguments);
        // A command that is repeated after the end of a daemon may find its own work.
        let is_damage = finished.status.code() == Some(exit::DAMAGED);
        if !finished.status.success() && !is_damage && self.has_ended(epoch) {
            return Err(CutOff);
        }
        finished.ok();
        Ok(())
    }

    /// Repeats a query until there is an answer, which must be JSON. Only for queries that change
    /// nothing.
    pub(super) fn tell<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Value {
        let arguments = with_json(arguments);
        loop {
            if let Ok(finished) = self.ask(&arguments) {
                return parse(&finished.success());
            }
        }
    }

    /// A snapshot or a volume, if it exists.
    pub(super) fn find(&self, kind: &str, name: &str) -> Option<Value> {
        let arguments = with_json([kind, "show", name]);
        loop {
            match self.ask(&arguments) {
                Err(CutOff) => {}
                Ok(finished) if finished.status.code() == Some(exit::NOT_FOUND) => return None,
                Ok(finished) => return Some(parse(&finished.success())),
            }
        }
    }

    /// Waits until a snapshot is completed. `None` if it does not exist.
    pub(super) fn completed(&self, name: &str) -> Option<Value> {
        wait_for("a snapshot to be completed", || {
            let Some(shown) = self.find("snapshot", name) else {
                return Some(None);
            };
            match text(&shown, "state").as_str() {
                "completed" => Some(Some(shown)),
                "pending" => None,
                _ => panic!("{shown}"),
            }
        })
    }

    /// Deletes snapshots that the model has, by their names or by a tag that they alone have.
    pub(super) fn delete(&self, names: &[String], by: &[&str], counts: &Counts) {
        for name in names {
            self.model.is_leaving(name);
        }
        let deletion = ["snapshot", "delete", "--yes"].into_iter();
        let done = self.change(deletion.chain(by.iter().copied()));
        if done.is_ok() {
            names.iter().for_each(|name| self.model.is_gone(name));
        } else {
            count(&counts.cut_off, 1);
            for name in names {
                match self.find("snapshot", name) {
                    Some(_) => self.model.stays(name),
                    None => self.model.is_gone(name),
                }
            }
        }
        count(&counts.deletions, names.len() as u64);
    }

    /// Deletes a snapshot that the model has. Returns false if it still exists.
    pub(super) fn delete_one(&self, name: &str, counts: &Counts) -> bool {
        self.delete(&[name.to_owned()], &[name], counts);
        !self.model.has(name)
    }

    /// Makes a volume and attaches it, if it does not exist.
    pub(super) fn make_volume(&self, name: &str, arguments: &[&str]) {
        while self.find("volume", name).is_none() {
            // If the command was cut off, the next query finds its outcome.
            let _ = self.change(arguments);
        }
        until_done(|| self.change(["volume", "attach", "--force", name]));
    }

    /// Detaches and deletes a volume, if it exists.
    pub(super) fn delete_volume(&self, name: &str) {
        while self.find("volume", name).is_some() {
            // It may be detached already.
            if self.ask(["volume", "detach", name]).is_ok() {
                let _ = self.change(["volume", "delete", name]);
            }
        }
    }

    /// Connects to an export. `None` if there is no such export.
    pub(super) fn peer(&self, export: &str) -> Result<Option<Peer>, CutOff> {
        let epoch = self.up();
        let connect = || -> io::Result<Peer> {
            let mut peer = Peer::unix(&self.data_dir.join("nbd.sock"))?;
            peer.open(export)?;
            Ok(peer)
        };
        match connect() {
            Ok(peer) => Ok(Some(peer)),
            Err(_) if self.has_ended(epoch) => Err(CutOff),
            Err(error) if error.to_string().contains("GO was answered") => Ok(None),
            Err(error) => panic!("{export}: a daemon that runs does not serve it: {error}"),
        }
    }

    /// Reads a range of an export in pieces.
    pub(super) fn read(&self, export: &str, bytes: u64) -> Result<Option<Vec<u8>>, CutOff> {
        const PIECE_BYTES: u64 = MIB;
        let epoch = self.up();
        let Some(mut peer) = self.peer(export)? else {
            return Ok(None);
        };
        let mut all = Vec::new();
        while (all.len() as u64) < bytes {
            let offset = all.len() as u64;
            let len = u32::try_from(PIECE_BYTES.min(bytes - offset)).unwrap();
            match peer.read_bytes(offset, len) {
                Ok(Ok(piece)) => all.extend_from_slice(&piece),
                _ if self.has_ended(epoch) => return Err(CutOff),
                failed => panic!("{export} at {offset}: {failed:?}"),
            }
        }
        Ok(Some(all))
    }

    /// Exports a snapshot to a file. Returns the CRC of its bytes; `None` if there is no such
    /// snapshot.
    pub(super) fn export(&self, name: &str, file: &Path) -> Result<Option<u32>, CutOff> {
        let _ = fs::remove_file(file);
        let arguments = ["export".as_ref(), name.as_ref(), file.as_os_str()];
        let finished = self.ask(arguments)?;
        if finished.status.code() == Some(exit::NOT_FOUND) {
            return Ok(None);
        }
        finished.ok();
        let crc = crc_of(file);
        fs::remove_file(file).unwrap();
        Ok(Some(crc))
    }

    /// The CRC of an existing snapshot.
    pub(super) fn crc(&self, name: &str, file: &Path) -> u32 {
        let crc = until_done(|| self.export(name, file));
        crc.unwrap_or_else(|| panic!("{name} was there, and is gone"))
    }

    /// Checks that all snapshots that must exist do, with their content.
    pub(super) fn check_names(&self) {
        let before = self.model.all();
        let found = self.roots();
        for (name, content) in before {
            if self.model.has(&name) {
                let root = found.get(&name);
                assert_eq!(
                    root,
                    Some(&content.root),
                    "{name} in {}: it was acknowledged",
                    self.data_dir.display()
                );
            }
        }
    }

    /// The roots of all completed snapshots.
    pub(super) fn roots(&self) -> BTreeMap<String, String> {
        let list = self.tell(["snapshot", "list"]);
        let snapshots = list["snapshots"].as_array().unwrap().iter();
        let completed = snapshots.filter(|it| it["state"] == "completed");
        completed
            .map(|it| (text(it, "name"), text(it, "root")))
            .collect()
    }

    /// Takes a snapshot of a volume. Returns false if the outcome is unknown.
    pub(super) fn snapshot(&self, volume: &str, name: &str, waits: bool, counts: &Counts) -> bool {
        let arguments = ["snapshot", "create", volume, "--name", name];
        let wait = waits.then_some("--wait");
        let made = self.change(arguments.into_iter().chain(wait));
        if made.is_err() {
            count(&counts.cut_off, 1);
        }
        made.is_ok()
    }

    /// Adds a snapshot to the model that was made, or, unless `is_certain`, may have been made.
    /// Returns its root if it exists.
    pub(super) fn keep(&self, name: &str, crc: u32, is_certain: bool) -> Option<String> {
        let Some(shown) = self.completed(name) else {
            assert!(!is_certain, "{name} was acknowledged, and is gone");
            return None;
        };
        let root = text(&shown, "root");
        let content = Content {
            root: root.clone(),
            bytes: number(&shown, "size_bytes"),
            crc,
        };
        self.model.keep(name, content);
        Some(root)
    }
}

fn with_json<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Vec<OsString> {
    let arguments = arguments.into_iter().map(|it| it.as_ref().to_owned());
    let output = ["--output", "json"].map(OsString::from);
    output.into_iter().chain(arguments).collect()
}

fn parse(finished: &Finished) -> Value {
    serde_json::from_slice(&finished.stdout)
        .unwrap_or_else(|error| panic!("not JSON: {error}: {finished:?}"))
}

/// The CRC-32 of a file.
pub(super) fn crc_of(path: &Path) -> u32 {
    let mut file = files::open(path);
    let mut crc = crc32fast::Hasher::new();
    let mut piece = vec![0; 1 << 20];
    loop {
        match file.read(&mut piece).expect("read a file") {
            0 => return crc.finalize(),
            bytes => crc.update(&piece[..bytes]),
        }
    }
}
