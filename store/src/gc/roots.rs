//! The roots of all content, and their owners.
//!
//! The catalog is read as it is at one moment, and the pins are watched from before that moment
//! until after it. A root whose record is gone at that moment, and which is still in use, was
//! pinned before the deletion ([`Pins`](crate::engine::Pins) says why). That pin is seen, also if
//! it is dropped before the catalog is read to its end, in favour of a record that was made
//! meanwhile. The claim in [`run`](super::run()) covers a root that is new in a record made later:
//! it hangs on content that no collection touches. If the catalog were read page by page, a root
//! could move from a record on an unread page to a record on a page that was already read.

use std::{fmt, ops::ControlFlow, sync::Arc};

use varve_content::RootId;

use crate::{
    Error, Result,
    engine::{Engine, needed_by},
    format::{AccountId, CatalogRecord, Kind, Kinds, SnapshotRecord, record::RecordKey as _},
    io::{MayBeShortage as _, offload},
    meta::Meta,
};

/// A root and its owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RootOwner {
    pub(crate) root: RootId,
    pub(crate) owner: Owner,
}

/// The owner of a root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Owner {
    /// A record of the catalog.
    Record {
        kind: &'static Kind,
        id: OwnerId,
        /// Its name, or its id if it has no name.
        label: Box<str>,
    },
    /// A reader, or work under way. It ends by itself, so its identity does not matter.
    Pin,
}

/// The identity of a catalog record.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct OwnerId {
    /// The number of its kind.
    kind: u8,
    /// Its id as a key of the catalog.
    key: Box<[u8]>,
}

impl OwnerId {
    pub(crate) fn of<R: CatalogRecord>(id: &R::Id) -> Self {
        Self {
            kind: R::KIND.number,
            key: id.as_key().into(),
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Record { kind, label, .. } => write!(f, "{} {label:?}", kind.what),
            Self::Pin => f.write_str("a reader, or work under way"),
        }
    }
}

impl Owner {
    /// The record, unless the owner is a pin.
    pub(crate) const fn record(&self) -> Option<&OwnerId> {
        match self {
            Self::Record { id, .. } => Some(id),
            Self::Pin => None,
        }
    }

    /// Names the owner in an error of damage.
    pub(super) fn named(&self, error: Error) -> Error {
        match (self, error) {
            (Self::Record { kind, label, .. }, error) if *kind == SnapshotRecord::KIND => {
                needed_by(error, label)
            }
            (owner, Error::Damaged(mut damage)) => {
                damage.problem = format!("{}; needed by {owner}", damage.problem);
                Error::Damaged(damage)
            }
            (_, error) => error,
        }
    }
}

/// Returns all roots: those of the catalog, by their owners, then those that are pinned.
///
/// # Errors
///
/// Errors of reading the catalog.
pub(crate) async fn collect(engine: &Arc<Engine>) -> Result<Vec<RootOwner>> {
    let pins = engine.pins.look();
    let mut roots = of_records(engine, None).await?;
    let pinned = pins.roots().into_iter();
    roots.extend(pinned.map(|root| RootOwner {
        root,
        owner: Owner::Pin,
    }));
    Ok(roots)
}

/// Returns true if a pin among these roots is gone by now.
///
/// [`pin_named`](Engine::pin_named) pins the root that a record named when it was read. If the
/// record names another by then, and the content was collected, that pin is on nothing: it is given
/// back after one look-up. A walk that finds nothing below a root is right to fail, unless the root
/// was pinned so.
pub(crate) fn have_gone(engine: &Engine, roots: &[RootOwner]) -> bool {
    let mut pinned = roots.iter().filter(|it| it.owner == Owner::Pin);
    pinned.any(|it| engine.pins.count(it.root) == 0)
}

/// The roots of all records of all kinds, of this account if one is given. Each kind lists the
/// roots that its records name, so a new kind cannot be forgotten. Takes some 100 bytes for each
/// root.
///
/// # Errors
///
/// Errors of reading the catalog.
pub(crate) async fn of_records(
    engine: &Arc<Engine>,
    only: Option<AccountId>,
) -> Result<Vec<RootOwner>> {
    let mut tries = engine.disk.patience().tries();
    loop {
        let meta = Arc::clone(&engine.meta);
        match offload(move || roots_now(&*meta, only)).await? {
            Err(error) if error.is_shortage() && tries.again(&error).await => {}
            roots => return roots,
        }
    }
}

/// The roots of all records, at one moment.
fn roots_now(meta: &dyn Meta, only: Option<AccountId>) -> Result<Vec<RootOwner>> {
    let mut roots = Vec::new();
    meta.view_catalog(&mut |view| {
        for kind in Kinds::ALL.iter() {
            let mut undecodable = None;
            view.all_entries(kind, &mut |entry| match entry.keys() {
                Ok(keys) if only.is_some_and(|only| only != keys.owner) => {
                    ControlFlow::Continue(())
                }
                Ok(keys) => {
                    roots.extend(keys.roots.iter().map(|root| RootOwner {
                        root: *root,
                        owner: Owner::Record {
                            kind,
                            id: OwnerId {
                                kind: kind.number,
                                key: keys.id.clone().into(),
                            },
                            label: keys.label().into(),
                        },
                    }));
                    ControlFlow::Continue(())
                }
                Err(error) => {
                    undecodable = Some(error);
                    ControlFlow::Break(())
                }
            })?;
            if let Some(error) = undecodable {
                return Err(Error::Index {
                    verb: "decode a record",
                    message: error.to_string(),
                });
            }
        }
        Ok(())
    })?;
    Ok(roots)
}
