//! Access keys, which sign requests for an account.

use super::{Store, accounts};
use crate::{
    Error, Result,
    engine::Priority,
    format::Change,
    limits,
    meta::{AccessKeyId, AccessKeyRecord, Meta, Records as _},
};

impl Store {
    /// Makes an access key for an account.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] without the account; [`Error::AlreadyExists`] if the id is taken;
    /// [`Error::TooMany`] when the account has as many access keys as may be.
    pub async fn create_access_key(&self, record: AccessKeyRecord) -> Result<AccessKeyRecord> {
        let create = move |meta: &dyn Meta| {
            accounts::found(meta, record.account)?;
            let others = meta.all::<AccessKeyRecord>()?;
            if others.iter().any(|it| it.id == record.id) {
                return Err(Error::AlreadyExists {
                    what: "access key",
                    name: record.id.to_string(),
                    id: record.id.to_string(),
                });
            }
            let own = others.iter().filter(|it| it.account == record.account);
            if own.count() >= limits::ACCOUNT_ACCESS_KEYS_MAX {
                return Err(Error::TooMany {
                    what: "access keys of an account",
                    most: limits::ACCOUNT_ACCESS_KEYS_MAX as u64,
                });
            }
            Ok((vec![Change::put(&record)], record.clone()))
        };
        self.engine.commit.change((), create).await
    }

    /// All access keys, by id.
    ///
    /// # Errors
    ///
    /// Errors of reading the catalog.
    pub async fn access_keys(&self) -> Result<Vec<AccessKeyRecord>> {
        self.engine.list_all().await
    }

    /// The access key of this id, if there is one.
    ///
    /// # Errors
    ///
    /// Errors of reading the catalog.
    pub async fn access_key(&self, id: AccessKeyId) -> Result<Option<AccessKeyRecord>> {
        let get = move |meta: &dyn Meta| meta.get(&id);
        self.engine.meta(Priority::Manage, get).await
    }

    /// Deletes an access key.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; those of changing the catalog.
    pub async fn delete_access_key(&self, id: AccessKeyId) -> Result<AccessKeyRecord> {
        self.engine.commit.delete(id, |_| Ok(())).await
    }
}
