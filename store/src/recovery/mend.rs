//! A rebuild writes a damaged catalog log anew, if another source has the lost part.
//!
//! | damaged | the log is made from | if |
//! | --- | --- | --- |
//! | the checkpoint | the log that it replaced, and the records behind the checkpoint | all of them can be read |
//! | anything | the old index, and the records that it has not applied | it has applied all records that cannot be read, and agrees with every other one behind the damage |
//!
//! # Why the index may be believed
//!
//! The order of records matters, so a log with a gap gives no catalog. But the index has one
//! catalog for each number: a record and its number are applied together. If the number is that of
//! the last record that cannot be read, or higher, the index has what all of them left behind. It
//! may still be the index of another past, from a copy. So each record behind the damage that it
//! has applied is compared: the last change of each id has to be what the index says of that id.
//!
//! The new log begins with the index's catalog as its checkpoint. It gets its name only when it is
//! complete and durable, and the damaged log keeps another. A crash before that leaves the damaged
//! log, and the next rebuild begins again.

use std::{
    collections::HashSet,
    fmt,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    Damage, Error, Result,
    catalog_log::{
        DamagedLog, Deletions, FoundLog, NewLog, Seen, abandon, begin_checkpoint, journals,
    },
    format::{Change, Kinds, StoreId, names},
    io::Disk,
    meta::{Catalog, Meta},
};

use super::files::sync_dir;

/// A catalog log that was written anew, because it was damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MendedLog {
    /// The damage.
    pub damage: Damage,
    /// Path of the source of the lost part: the old index, or an earlier log.
    pub source: PathBuf,
    /// Path of the damaged log.
    pub damaged_log: PathBuf,
}

impl fmt::Display for MendedLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: the catalog log was written anew, and nothing of it is lost: {} has what cannot be \
            read; the damaged log is kept in {}",
            self.damage,
            self.source.display(),
            self.damaged_log.display()
        )
    }
}

/// The reason why a source cannot stand in for the lost part of a log.
type Unfit = String;

/// Writes a damaged log anew.
///
/// # Errors
///
/// [`Error::Damaged`] with the reasons, if no source has the lost part; errors of IO.
pub(super) async fn mend(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    store: StoreId,
    mut damage: Damage,
    old: Option<&Arc<dyn Meta>>,
) -> Result<MendedLog> {
    let mender = Mender { disk, dir, store };
    let mended = mender.mend(old).await;
    if !matches!(mended, Ok(Ok(_))) {
        abandon(&**disk, dir);
    }
    match mended? {
        Ok((source, damaged_log)) => Ok(MendedLog {
            damage,
            source,
            damaged_log,
        }),
        Err(unfit) => {
            damage.problem = format!(
                "{}; the log cannot be written anew: {unfit}",
                damage.problem
            );
            Err(damage.into())
        }
    }
}

struct Mender<'a> {
    disk: &'a Arc<dyn Disk>,
    dir: &'a Path,
    store: StoreId,
}

impl Mender<'_> {
    /// Returns the source of the new log, and the path of the damaged one.
    async fn mend(
        &self,
        old: Option<&Arc<dyn Meta>>,
    ) -> Result<std::result::Result<(PathBuf, PathBuf), Unfit>> {
        let path = names::catalog_log(self.dir);
        let log = DamagedLog::open(self.disk, &path, self.store).await?;
        let by_log = match self.by_earlier_log(&log).await? {
            Ok(new) => {
                return self
                    .put_in_place(new, names::catalog_log_old(self.dir))
                    .await
                    .map(Ok);
            }
            Err(unfit) => unfit,
        };
        let Some(old) = old else {
            return Ok(Err(format!(
                "{by_log}; there is no old index that can be read"
            )));
        };
        Ok(match self.by_index(&log, old).await? {
            Ok(new) => Ok(self.put_in_place(new, names::index(self.dir)).await?),
            Err(by_index) => Err(format!("{by_log}; {by_index}")),
        })
    }

    /// The log that the last checkpoint replaced, and the records behind that checkpoint.
    async fn by_earlier_log(&self, log: &DamagedLog) -> Result<std::result::Result<NewLog, Unfit>> {
        let path = names::catalog_log_old(self.dir);
        let unfit = |why: &dyn fmt::Display| Ok(Err(format!("{}: {why}", path.display())));
        let Some(header) = log.header().filter(|header| header.generation() > 0) else {
            return unfit(&"it is not known to be the log before this one");
        };
        let found = FoundLog::open(Arc::clone(self.disk), path.clone(), self.store).await;
        let earlier = match found {
            Ok(earlier) => earlier,
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
                return unfit(&"there is none");
            }
            Err(error @ (Error::Damaged(_) | Error::Incompatible { .. })) => return unfit(&error),
            Err(error) => return Err(error),
        };
        let (expected, generation) = (header.generation() - 1, earlier.header().generation());
        if generation != expected {
            return unfit(&format_args!(
                "it is of generation {generation}, the log before this one is of {expected}"
            ));
        }
        let mut new = NewLog::create(self.disk, self.dir, *earlier.header())?;
        match new.copy_all(&mut earlier.reader()).await {
            Ok(()) => {}
            Err(error @ (Error::Damaged(_) | Error::Incompatible { .. })) => return unfit(&error),
            Err(error) => return Err(error),
        }
        let last = new.position().next_sequence - 1;
        if last < header.base_sequence() {
            return unfit(&format_args!(
                "it ends with record {last}, the checkpoint stands for all up to {}",
                header.base_sequence()
            ));
        }
        let lost = log.pass(|_| Ok(())).await?;
        if lost.last_sequence > last {
            return unfit(&format_args!(
                "it ends with record {last}, and record {} cannot be read, either",
                lost.last_sequence
            ));
        }
        if let Some(mut rest) = lost.rest {
            new.copy(&mut rest).await?;
        }
        Ok(Ok(new))
    }

    /// The old index's catalog, and the records that it has not applied.
    async fn by_index(
        &self,
        log: &DamagedLog,
        old: &Arc<dyn Meta>,
    ) -> Result<std::result::Result<NewLog, Unfit>> {
        let applied = old.catalog_sequence()?;
        let mut deletions = Deletions::of(journals(&**self.disk, self.dir)?);
        let mut differing = Differing::default();
        let lost = log
            .pass(|seen| {
                match seen {
                    // The unreadable part may be the cause of an earlier difference.
                    Seen::Damage => differing.0.clear(),
                    Seen::Change(sequence, change) => {
                        deletions.note(change);
                        if sequence <= applied {
                            differing.note(&**old, change)?;
                        }
                    }
                }
                Ok(())
            })
            .await?;
        if lost.last_sequence > applied {
            return Ok(Err(format!(
                "the old index has applied {applied} records, and record {} cannot be read",
                lost.last_sequence
            )));
        }
        if let Some(other) = differing.0.iter().next() {
            return Ok(Err(format!(
                "the old index differs from {} records behind the damage, one of them of id {:02x?}",
                differing.0.len(),
                other.1
            )));
        }
        let earlier = FoundLog::open(
            Arc::clone(self.disk),
            names::catalog_log_old(self.dir),
            self.store,
        );
        // Later than both, so that neither is taken for its predecessor.
        let earlier = earlier
            .await
            .map_or(0, |earlier| earlier.header().generation() + 1);
        let generation = log.header().map_or(0, |header| header.generation());
        let id = (self.store, Kinds::ALL, generation.max(earlier) + 1);
        let meta = Arc::clone(old);
        let mut begun = begin_checkpoint(self.disk, self.dir, id, meta, || Ok(())).await?;
        begun.missing.join(&deletions);
        let mut new = begun.finish().await?;
        if let Some(mut rest) = lost.rest {
            new.copy(&mut rest).await?;
        }
        Ok(Ok(new))
    }

    /// Gives the new log its name, and the damaged one another. Returns both.
    async fn put_in_place(&self, new: NewLog, source: PathBuf) -> Result<(PathBuf, PathBuf)> {
        new.sync().await?;
        let path = names::catalog_log(self.dir);
        let mut nth = 0;
        let damaged = loop {
            let damaged = names::catalog_log_damaged(self.dir, nth);
            match self.disk.link(&path, &damaged) {
                Ok(()) => break damaged,
                Err(error) if error.kind() == ErrorKind::AlreadyExists => nth += 1,
                Err(source) => return Err(Error::io("link", &damaged, source)),
            }
        };
        let renamed = self.disk.rename(new.path(), &path);
        renamed.map_err(|source| Error::io("rename to", &path, source))?;
        sync_dir(self.disk, self.dir).await?;
        Ok((source, damaged))
    }
}

/// Ids whose last change in the log is not what the index says.
#[derive(Debug, Default)]
struct Differing(HashSet<(u8, Vec<u8>)>);

impl Differing {
    fn note(&mut self, index: &(impl Catalog + ?Sized), change: &Change) -> Result<()> {
        let (kind, id, expected) = match change {
            Change::Put(entry) => {
                let keys = entry.keys().map_err(|error| Error::Index {
                    verb: "decode a record",
                    message: error.to_string(),
                })?;
                (entry.kind(), keys.id, Some(entry))
            }
            Change::Delete(gone) => (gone.kind(), gone.key().to_vec(), None),
        };
        let found = index.entry(kind, &id)?;
        let id = (kind.number, id);
        if found.as_ref() == expected {
            self.0.remove(&id);
        } else {
            self.0.insert(id);
        }
        Ok(())
    }
}
