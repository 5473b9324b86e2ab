//! Remotes: other daemons that have names.

use super::Store;
use crate::{
    Error, RemoteRecord, Result,
    engine::Priority,
    format::catalog_log::Record,
    limits,
    meta::{self, Meta},
};

impl Store {
    /// Gives another daemon a name.
    ///
    /// # Errors
    ///
    /// [`Error::AlreadyExists`] if a remote has that name; [`Error::Invalid`], with what a name may
    /// be.
    pub async fn add_remote(&self, record: RemoteRecord) -> Result<()> {
        meta::check_name("remote", &record.name)?;
        let add = move |meta: &dyn Meta| {
            let remotes = meta.remotes()?;
            if let Some(other) = remotes.iter().find(|other| other.name == record.name) {
                return Err(Error::AlreadyExists {
                    what: "remote",
                    name: record.name,
                    id: other.endpoint.clone(),
                });
            }
            if remotes.len() >= limits::REMOTES_MAX {
                return Err(Error::TooMany {
                    what: "remotes",
                    most: limits::REMOTES_MAX as u64,
                });
            }
            Ok((vec![Record::PutRemote(record)], ()))
        };
        self.engine.commit.change(add).await
    }

    /// Forgets a remote.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`].
    pub async fn remove_remote(&self, name: String) -> Result<()> {
        let remove = move |meta: &dyn Meta| {
            named(meta.remotes()?, &name)?;
            Ok((vec![Record::DeleteRemote(name)], ()))
        };
        self.engine.commit.change(remove).await
    }

    /// All remotes, by name.
    pub async fn remotes(&self) -> Result<Vec<RemoteRecord>> {
        let remotes = self.engine.meta(Priority::Manage, |meta| meta.remotes());
        let mut remotes = remotes.await?;
        remotes.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(remotes)
    }

    /// The remote of that name.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`].
    pub async fn remote(&self, name: &str) -> Result<RemoteRecord> {
        named(self.remotes().await?, name)
    }
}

fn named(remotes: Vec<RemoteRecord>, name: &str) -> Result<RemoteRecord> {
    let mut remotes = remotes.into_iter();
    remotes
        .find(|remote| remote.name == name)
        .ok_or_else(|| Error::NotFound {
            what: "remote",
            // One that is longer is nobody's.
            name: name.chars().take(limits::NAME_CHARS_MAX).collect(),
        })
}
