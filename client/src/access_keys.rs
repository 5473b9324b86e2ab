//! Access keys, which sign requests for an account.

use std::time::SystemTime;

use varve_proto::v1;

use crate::{
    connect::Client,
    convert::system_time,
    credentials::SecretAccessKey,
    error::{Error, ErrorKind, Result},
    retry,
};

/// The beginning of every id.
const PREFIX: &str = "AKIA";
/// The characters behind the prefix.
const ID_CHARS: usize = 16;

/// An access key, without its secret.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct AccessKey {
    /// `AKIA` and 16 characters of `A-Z2-7`.
    pub id: String,
    /// Id of its account, 12 decimal digits.
    pub account: String,
    /// When it was made.
    pub created_at: SystemTime,
    /// False if the daemon cannot open its secret, so that it signs nothing.
    pub is_usable: bool,
}

/// A new access key with its secret, which the daemon shows only once.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CreatedAccessKey {
    /// The access key.
    pub access_key: AccessKey,
    /// Its secret.
    pub secret: SecretAccessKey,
}

impl Client {
    /// Makes an access key for the account with this id, name or alias. `None`: for the caller's
    /// own account. The answer is the only place where its secret is ever shown.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if there is no such account, or if it is the account of another,
    /// [`ErrorKind::Denied`] for a token with scopes, [`ErrorKind::Conflict`] when the account has
    /// two access keys; errors of the connection. The call is not repeated, so after a lost
    /// connection the access key may exist; nobody has its secret.
    pub async fn create_access_key(&self, account: Option<&str>) -> Result<CreatedAccessKey> {
        let what = match account {
            Some(account) => format!("create an access key for account {account}"),
            None => "create an access key".to_owned(),
        };
        let request = v1::CreateAccessKeyRequest {
            account: account.unwrap_or_default().to_owned(),
        };
        let created = retry::while_busy(|| {
            let (mut service, request) = (self.account_service(), request.clone());
            async move { service.create_access_key(request).await }
        })
        .await;
        let created = created
            .map_err(|status| Error::rpc(&what, status))?
            .into_inner();
        let secret = SecretAccessKey::new(created.secret);
        let no_secret = || Error::protocol(&what, "an access key without a secret");
        Ok(CreatedAccessKey {
            access_key: AccessKey::from_proto(&what, created.access_key)?,
            secret: secret.ok_or_else(no_secret)?,
        })
    }

    /// Lists the access keys of the account with this id, name or alias, the oldest first. `None`:
    /// of the caller's own account.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if there is no such account, or if it is the account of another;
    /// errors of the connection.
    pub async fn access_keys(&self, account: Option<&str>) -> Result<Vec<AccessKey>> {
        let what = match account {
            Some(account) => format!("list the access keys of account {account}"),
            None => "list access keys".to_owned(),
        };
        let request = v1::ListAccessKeysRequest {
            account: account.unwrap_or_default().to_owned(),
        };
        let answer = retry::idempotent(|| {
            let (mut service, request) = (self.account_service(), request.clone());
            async move { service.list_access_keys(request).await }
        });
        let answer = answer.await.map_err(|status| Error::rpc(&what, status))?;
        let keys = answer.into_inner().access_keys.into_iter();
        keys.map(|key| AccessKey::from_proto(&what, Some(key)))
            .collect()
    }

    /// Revokes the access key with this id, and returns it. Calls that began with it are completed.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if there is no such access key, [`ErrorKind::Invalid`] for a text
    /// that is no id, such as a secret; the error does not repeat it. Errors of the connection.
    pub async fn revoke_access_key(&self, id: &str) -> Result<AccessKey> {
        if !is_id(id) {
            let why = "give its id, AKIA..., and not its secret";
            return Err(Error::new(ErrorKind::Invalid, "revoke an access key", why));
        }
        let what = format!("revoke access key {id}");
        let request = v1::RevokeAccessKeyRequest {
            access_key: id.to_owned(),
        };
        let revoked = retry::while_busy(|| {
            let (mut service, request) = (self.account_service(), request.clone());
            async move { service.revoke_access_key(request).await }
        })
        .await;
        let revoked = revoked.map_err(|status| Error::rpc(&what, status))?;
        AccessKey::from_proto(&what, revoked.into_inner().revoked)
    }
}

/// Returns true for a text of the form of an id.
fn is_id(text: &str) -> bool {
    let rest = text.strip_prefix(PREFIX).unwrap_or_default();
    let is_allowed = |byte| matches!(byte, b'A'..=b'Z' | b'2'..=b'7');
    rest.len() == ID_CHARS && rest.bytes().all(is_allowed)
}

impl AccessKey {
    /// Ids go into files that other programs read, so only ids are taken for one.
    fn from_proto(what: &str, access_key: Option<v1::AccessKey>) -> Result<Self> {
        let protocol = |why| Error::protocol(what, why);
        let Some(access_key) = access_key.filter(|it| is_id(&it.id)) else {
            return Err(protocol("an answer without its access key"));
        };
        let created_at = access_key.created_at.and_then(system_time);
        Ok(Self {
            created_at: created_at.ok_or_else(|| protocol("an access key without a time"))?,
            id: access_key.id,
            account: access_key.account,
            is_usable: access_key.is_usable,
        })
    }
}
