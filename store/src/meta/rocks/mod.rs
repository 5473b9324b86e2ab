//! Index and catalog in RocksDB.
//!
//! One database with a column family for each kind of entry ([`keys`]). A batch is one RocksDB
//! write batch, which its write-ahead log makes atomic over all families. Bounded memory: see
//! [`options`].
//!
//! # When a write fails
//!
//! RocksDB fails a write when its log cannot be written or synced, and when a flush in the
//! background failed. From then on it fails all writes, even if the missing resource (space,
//! descriptors) is there again: its C interface has no `Resume`, and for descriptors there would be
//! none in C++ either. Reads go on, and all acknowledged data is there when it is opened again. The
//! failed batch may be in the log and come back then, its totals included; a batch written
//! meanwhile, should RocksDB take one, would have been counted without it.
//!
//! So after such a failure the next batch first [opens the database again](recover), if that can
//! succeed, and looks at totals and catalog sequence: they show whether the failed batch is in it.
//! If they show neither state, and after a failed sync, nothing is written any more until a
//! restart.

mod apply;
mod catalog;
mod options;
mod recover;
mod view;

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::{OnceLock, atomic::AtomicBool},
    thread,
};

use parking_lot::{MappedRwLockReadGuard, Mutex, RwLock, RwLockReadGuard};
use rocksdb::{ColumnFamily, DB, ErrorKind, IteratorMode, Options};
use rustix::{fs::Mode, io::Errno};

use self::recover::Applying;
use super::{Index, IndexView, PackState, Totals, catalog::REMEDY};
use crate::{
    Error, Result,
    format::{FormatError, Kinds, LastRun, Location, Name, PackId, PackKind, StoreId, keys},
    limits,
};

/// Keys looked up in one call. This bounds the values that RocksDB keeps pinned meanwhile.
const LOOKUP_KEYS: usize = 4096;

/// Index and catalog in a directory of their own.
pub struct RocksMeta {
    path: PathBuf,
    store: StoreId,
    kinds: Kinds,
    /// `None` only if it could not be opened again.
    database: RwLock<Option<Database>>,
    /// One batch at a time: each reads what it replaces, to keep the totals exact.
    applying: Mutex<Applying>,
    known: RwLock<Known>,
    /// The reason why nothing is written any more.
    failed: OnceLock<String>,
    /// Set while somebody waits to open the database again: long looks at it end then.
    reopening: AtomicBool,
}

/// The database, open.
struct Database {
    db: DB,
    path: PathBuf,
    kinds: Kinds,
}

/// A database that stays open as long as this is held.
type Held<'a> = MappedRwLockReadGuard<'a, Database>;

/// Facts about the database that are also kept in memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Known {
    totals: Totals,
    catalog_sequence: u64,
    last_pack_number: u64,
}

impl fmt::Debug for RocksMeta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RocksMeta")
            .field("path", &self.path)
            .field("known", &*self.known.read())
            .field("failed", &self.failed.get())
            .finish_non_exhaustive()
    }
}

impl RocksMeta {
    /// Makes an empty index for `store` in `path`, which holds none yet (see
    /// [`destroy`](Self::destroy)).
    ///
    /// # Errors
    ///
    /// [`Error::Incompatible`] when there is one.
    pub fn create(path: &Path, store: StoreId) -> Result<Self> {
        Self::create_with(path, store, Kinds::ALL)
    }

    /// The same for these kinds of records.
    pub(crate) fn create_with(path: &Path, store: StoreId, kinds: Kinds) -> Result<Self> {
        let mut options = options::database();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        options.set_error_if_exists(true);
        let database = Database::with_options(path, &options, kinds)?;
        // Written last: an index without it was not completed.
        database.begin(store)?;
        Ok(Self::new(database, store))
    }

    /// Opens the index of `store` in `path`.
    ///
    /// # Errors
    ///
    /// [`Error::Incompatible`] when there is none, when it is another store's, or of another
    /// version: all to be remedied by a rebuild.
    pub fn open(path: &Path, store: StoreId) -> Result<Self> {
        Self::open_with(path, store, Kinds::ALL)
    }

    /// The same for these kinds of records.
    pub(crate) fn open_with(path: &Path, store: StoreId, kinds: Kinds) -> Result<Self> {
        let (database, known) = Database::open(path, store, kinds)?;
        let meta = Self::new(database, store);
        *meta.known.write() = known;
        Ok(meta)
    }

    /// Removes the index in `path`, if there is one, so that it can be [made](Self::create) again.
    ///
    /// # Errors
    ///
    /// When RocksDB cannot.
    pub fn destroy(path: &Path) -> Result<()> {
        DB::destroy(&Options::default(), path)
            .map_err(|error| failed_at(path, "remove the index in", error))
    }

    fn new(database: Database, store: StoreId) -> Self {
        Self {
            path: database.path.clone(),
            store,
            kinds: database.kinds,
            database: RwLock::new(Some(database)),
            applying: Mutex::default(),
            known: RwLock::default(),
            failed: OnceLock::new(),
            reopening: AtomicBool::new(false),
        }
    }

    /// Reads, and tries again for a while on a shortage of the system. This holds up one of the
    /// store's threads.
    fn reading<T>(&self, read: impl Fn(&Database) -> Result<T>) -> Result<T> {
        for pause in limits::INDEX_READ_PAUSES {
            match self.database().and_then(|database| read(&database)) {
                Err(Error::Shortage { .. }) => thread::sleep(pause),
                done => return done,
            }
        }
        read(&*self.database()?)
    }

    fn database(&self) -> Result<Held<'_>> {
        if let Ok(held) = RwLockReadGuard::try_map(self.database.read(), Option::as_ref) {
            return Ok(held);
        }
        self.open_if_closed()?;
        RwLockReadGuard::try_map(self.database.read(), Option::as_ref).map_err(|_| {
            Error::Shortage {
                verb: "open the index in",
                path: self.path.clone(),
                source: io::Error::other("it could not be opened again yet"),
            }
        })
    }
}

impl Database {
    fn open(path: &Path, store: StoreId, kinds: Kinds) -> Result<(Self, Known)> {
        let mut options = options::database();
        // An index of an earlier version lacks the families of kinds that the version did not know.
        options.create_missing_column_families(true);
        let database = Self::with_options(path, &options, kinds)?;
        let identity = match database.get(keys::META, keys::IDENTITY)? {
            Some(value) => {
                keys::Identity::decode(&value).map_err(|error| database.incompatible(error))?
            }
            None => return Err(database.incompatible("the index was not made to its end")),
        };
        if identity.store != store {
            return Err(database.incompatible(format_args!(
                "it is the index of store {}, not of {store}",
                identity.store
            )));
        }
        database.fill_families()?;
        database.count_holdings()?;
        let known = Known {
            totals: match database.get(keys::META, keys::TOTALS)? {
                Some(value) => Totals::decode(&value).map_err(undecodable)?,
                None => Totals::default(),
            },
            catalog_sequence: match database.get(keys::META, keys::CATALOG_SEQUENCE)? {
                Some(value) => keys::decode_sequence(&value).map_err(undecodable)?,
                None => 0,
            },
            last_pack_number: database.last_pack_number()?,
        };
        Ok((database, known))
    }

    fn with_options(path: &Path, database: &Options, kinds: Kinds) -> Result<Self> {
        let db = DB::open_cf_descriptors(database, path, options::column_families(kinds)).map_err(
            |error| match error.kind() {
                // RocksDB's way to say that there is no database, or not the expected one.
                ErrorKind::InvalidArgument => incompatible(path, error),
                _ => failed_at(path, "open", error),
            },
        )?;
        // RocksDB makes files that everybody may read, and names and hashes of tokens are in them.
        let only_ours = rustix::fs::chmod(path, Mode::RWXU);
        only_ours.map_err(|source| Error::Io {
            verb: "set the permissions of",
            path: path.to_owned(),
            source: source.into(),
        })?;
        Ok(Self {
            db,
            path: path.to_owned(),
            kinds,
        })
    }

    fn incompatible(&self, why: impl fmt::Display) -> Error {
        incompatible(&self.path, why)
    }

    fn family(&self, name: &'static str) -> Result<&ColumnFamily> {
        self.db.cf_handle(name).ok_or_else(|| Error::Index {
            verb: "find a column family",
            message: format!("there is no {name:?}; {REMEDY}"),
        })
    }

    fn get(&self, family: &'static str, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.db
            .get_cf(self.family(family)?, key)
            .map_err(unreadable)
    }

    fn pack_state(&self, pack: PackId) -> Result<Option<PackState>> {
        let key = PackState::key_of(pack);
        let Some(value) = self.get(keys::PACKS, &key)? else {
            return Ok(None);
        };
        let state = PackState::decode(&key, &value).map_err(undecodable)?;
        Ok((state.pack == pack).then_some(state))
    }

    /// The highest number that a pack ever had: by the states, or by the number stored when one of
    /// them was forgotten. A version that does not know that number may have added packs since.
    fn last_pack_number(&self) -> Result<u64> {
        let kept = match self.get(keys::META, keys::LAST_PACK_NUMBER)? {
            Some(value) => keys::decode_sequence(&value).map_err(undecodable)?,
            None => 0,
        };
        let packs = self.family(keys::PACKS)?;
        let Some(last) = self.db.iterator_cf(packs, IteratorMode::End).next() else {
            return Ok(kept);
        };
        let (key, value) = last.map_err(unreadable)?;
        let last = PackState::decode(&key, &value).map_err(undecodable)?;
        Ok(last.pack.number.max(kept))
    }

    /// The rows under the bytes of `names`, in their order. Rows of nodes may be of other kinds.
    fn rows<'a>(
        &self,
        names: impl ExactSizeIterator<Item = &'a Name> + Clone,
    ) -> Result<Vec<Option<Location>>> {
        let mut rows = vec![None; names.len()];
        for kind in [PackKind::Chunks, PackKind::Nodes] {
            let family = self.family(keys::rows(kind))?;
            let mut sorted: Vec<(usize, &[u8; 32])> = (names.clone().enumerate())
                .filter(|(_, name)| name.kind().pack_kind() == kind)
                .map(|(position, name)| (position, name.as_bytes()))
                .collect();
            sorted.sort_unstable_by_key(|(_, key)| *key);
            for some in sorted.chunks(LOOKUP_KEYS) {
                let values = self.db.batched_multi_get_cf(
                    family,
                    some.iter().map(|(_, key)| key.as_slice()),
                    true,
                );
                for ((position, _), value) in some.iter().zip(values) {
                    if let (Some(row), Some(value)) =
                        (rows.get_mut(*position), value.map_err(unreadable)?)
                    {
                        *row = Some(Location::decode(&value).map_err(undecodable)?);
                    }
                }
            }
        }
        Ok(rows)
    }
}

impl Index for RocksMeta {
    fn lookup(&self, names: &[Name]) -> Result<Vec<Option<Location>>> {
        let mut rows = self.reading(|database| database.rows(names.iter()))?;
        for (name, row) in names.iter().zip(&mut rows) {
            // A leaf is no inner node, even if the caller asks for it as one.
            *row = row.filter(|row| row.payload.kind == name.kind());
        }
        Ok(rows)
    }

    fn pack_state(&self, pack: PackId) -> Result<Option<PackState>> {
        self.reading(|database| database.pack_state(pack))
    }

    fn pack_states(&self) -> Result<Vec<PackState>> {
        self.reading(|database| {
            let packs = database.family(keys::PACKS)?;
            view::decoded_states(database.db.iterator_cf(packs, IteratorMode::Start))
        })
    }

    fn last_pack_number(&self) -> Result<u64> {
        Ok(self.known.read().last_pack_number)
    }

    fn last_run(&self) -> Result<Option<LastRun>> {
        self.reading(|database| match database.get(keys::META, keys::LAST_RUN)? {
            Some(value) => LastRun::decode(&value).map(Some).map_err(undecodable),
            None => Ok(None),
        })
    }

    fn view(&self, look: &mut dyn FnMut(&dyn IndexView) -> Result<()>) -> Result<()> {
        self.look(look)
    }
}

fn incompatible(path: &Path, why: impl fmt::Display) -> Error {
    Error::Incompatible {
        path: path.to_owned(),
        why: format!("{why}; {REMEDY}"),
    }
}

fn undecodable(error: FormatError) -> Error {
    Error::Index {
        verb: "decode what it holds",
        message: format!("{error}; {REMEDY}"),
    }
}

fn unreadable(error: rocksdb::Error) -> Error {
    if let Some(short) = shortage(&error) {
        return Error::Shortage {
            verb: "read the index",
            path: PathBuf::new(),
            source: short,
        };
    }
    Error::Index {
        verb: "read",
        message: match error.kind() {
            ErrorKind::Corruption => format!("{error}; {REMEDY}"),
            _ => error.into_string(),
        },
    }
}

/// The error that the caller gets for a failed write.
fn failed_at(path: &Path, verb: &'static str, error: rocksdb::Error) -> Error {
    if is_disk_full(&error) {
        return Error::Full {
            verb,
            path: path.to_owned(),
        };
    }
    if let Some(source) = shortage(&error) {
        return Error::Shortage {
            verb,
            path: path.to_owned(),
            source,
        };
    }
    let message = match error.kind() {
        ErrorKind::Corruption => format!("{}: {error}; {REMEDY}", path.display()),
        _ => format!("{}: {error}", path.display()),
    };
    Error::Index { verb, message }
}

/// RocksDB has a code for this, but its C interface passes only the text.
fn is_disk_full(error: &rocksdb::Error) -> bool {
    error.kind() == ErrorKind::IOError && error.as_ref().contains("No space left on device")
}

/// The resource that the system was short of. RocksDB ends its message with the C library's text
/// for the error number.
fn shortage(error: &rocksdb::Error) -> Option<io::Error> {
    let texts = [
        (Errno::MFILE, "Too many open files"),
        (Errno::NFILE, "Too many open files in system"),
        (Errno::NOMEM, "Cannot allocate memory"),
        (Errno::AGAIN, "Resource temporarily unavailable"),
        (Errno::INTR, "Interrupted system call"),
    ];
    if error.kind() != ErrorKind::IOError {
        return None;
    }
    let message = error.as_ref();
    let (errno, _) = texts.iter().find(|(_, text)| message.ends_with(text))?;
    Some(io::Error::new(
        io::Error::from(*errno).kind(),
        message.to_owned(),
    ))
}

#[cfg(test)]
mod tests;
