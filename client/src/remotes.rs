//! Remotes, which are names for other daemons: add, list, remove.

use std::{path::PathBuf, time::SystemTime};

use varve_proto::v1;

use crate::{
    connect::Client,
    convert::system_time,
    error::{Error, Result},
    retry,
};

/// A remote: another daemon that has a name at the daemon of a client.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Remote {
    /// Its name, without colons.
    pub name: String,
    /// Its endpoint, as seen from the daemon that copies: `unix:PATH`, `http://HOST:PORT` or
    /// `https://HOST:PORT`.
    pub endpoint: String,
    /// True if plain HTTP is allowed even to another machine.
    pub allow_plaintext: bool,
    /// File on the daemon's machine with the authorities (PEM) to verify it with. `None`: the
    /// daemon's own setting.
    pub tls_ca: Option<PathBuf>,
    /// Files on the daemon's machine with the client certificate and its private key (PEM). `None`:
    /// the daemon's own setting.
    pub tls_identity: Option<(PathBuf, PathBuf)>,
    /// File on the daemon's machine with the token to show: the copies then act for its account.
    /// Only the daemon's user may have access to it.
    pub token_file: Option<PathBuf>,
    /// The account that it belongs to: its id, 12 decimal digits; for a new one also its name or
    /// alias. Empty: the administrator's. Names are unique per account.
    pub owner: String,
    /// When it was added; `None` for a new one.
    pub created_at: Option<SystemTime>,
}

impl Remote {
    fn from_proto(remote: v1::Remote) -> Self {
        let file = |path: String| (!path.is_empty()).then(|| PathBuf::from(path));
        Self {
            name: remote.name,
            endpoint: remote.endpoint,
            allow_plaintext: remote.allow_plaintext,
            tls_ca: file(remote.tls_ca),
            tls_identity: file(remote.tls_cert).zip(file(remote.tls_key)),
            token_file: file(remote.token_file),
            owner: remote.owner,
            created_at: remote.created_at.and_then(system_time),
        }
    }
}

impl Client {
    /// Gives another daemon a name.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::AlreadyExists`](crate::ErrorKind::AlreadyExists) if the name is taken,
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) for an invalid name, endpoint or path;
    /// errors of the connection.
    pub async fn add_remote(&self, remote: Remote) -> Result<Remote> {
        let what = format!("create remote {}", remote.name);
        let text = |path: PathBuf| {
            path.into_os_string().into_string().map_err(|path| {
                let why = format!("{} is not UTF-8", path.display());
                Error::new(crate::ErrorKind::Invalid, &what, why)
            })
        };
        let (cert, key) = remote.tls_identity.unzip();
        let request = v1::AddRemoteRequest {
            remote: Some(v1::Remote {
                name: remote.name,
                endpoint: remote.endpoint,
                allow_plaintext: remote.allow_plaintext,
                tls_ca: remote.tls_ca.map(text).transpose()?.unwrap_or_default(),
                tls_cert: cert.map(text).transpose()?.unwrap_or_default(),
                tls_key: key.map(text).transpose()?.unwrap_or_default(),
                created_at: None,
                token_file: remote.token_file.map(text).transpose()?.unwrap_or_default(),
                owner: String::new(),
            }),
            account: remote.owner,
        };
        let added = retry::while_busy(|| {
            let (mut service, request) = (self.remote_service(), request.clone());
            async move { service.add_remote(request).await }
        })
        .await;
        let added = added.map_err(|status| Error::rpc(&what, status))?;
        Ok(Remote::from_proto(added.into_inner()))
    }

    /// Lists the remotes by name.
    ///
    /// # Errors
    ///
    /// Only errors of the connection.
    pub async fn remotes(&self) -> Result<Vec<Remote>> {
        let answer = retry::idempotent(|| {
            let mut service = self.remote_service();
            async move { service.list_remotes(v1::ListRemotesRequest {}).await }
        });
        let remotes = answer
            .await
            .map_err(|status| Error::rpc("list remotes", status))?;
        let remotes = remotes.into_inner().remotes.into_iter();
        Ok(remotes.map(Remote::from_proto).collect())
    }

    /// Removes a remote of an account: its id, name or alias; empty: the administrator's.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) if there is no such remote; errors of
    /// the connection.
    pub async fn remove_remote(&self, name: &str, account: &str) -> Result<()> {
        let request = v1::RemoveRemoteRequest {
            name: name.to_owned(),
            account: account.to_owned(),
        };
        let removed = retry::while_busy(|| {
            let (mut service, request) = (self.remote_service(), request.clone());
            async move { service.remove_remote(request).await }
        })
        .await;
        removed.map_err(|status| Error::rpc(format!("delete remote {name}"), status))?;
        Ok(())
    }
}
