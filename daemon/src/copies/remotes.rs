//! The sources of copies: other daemons, by their endpoints or by their names here.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use tracing::warn;
use varve_client::{Connector, Endpoint, Tls, TokenSecret};
use varve_store::{AccountId, Error, RemoteRecord, Store};

use super::source::CopyError;
use crate::{config::CopiesConfig, net::tls};

/// A snapshot of another daemon, as a request names it.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    /// The other daemon's endpoint, or the name of a remote.
    pub(crate) endpoint: String,
    /// Name or id of the snapshot there.
    pub(crate) snapshot: String,
    /// Allows plain HTTP to an address that is not loopback.
    pub(crate) allow_plaintext: bool,
}

/// The endpoint of a daemon, the TLS settings for it, and the token to show it.
#[derive(Debug)]
pub(super) struct Address {
    endpoint: Endpoint,
    tls: Tls,
    token: Option<TokenSecret>,
}

impl Address {
    /// The settings of a connection.
    pub(super) fn connector(&self) -> Connector {
        let connector = Connector::new(self.endpoint.clone()).tls(self.tls.clone());
        match &self.token {
            Some(token) => connector.token(token.clone()),
            None => connector,
        }
    }
}

/// The daemons that have names here.
#[derive(Debug, Clone)]
pub(super) struct Remotes {
    store: Store,
    /// Files for remotes that have none of their own.
    tls: Arc<CopiesConfig>,
}

impl Remotes {
    pub(super) fn new(store: Store, tls: CopiesConfig) -> Self {
        Self {
            store,
            tls: Arc::new(tls),
        }
    }

    /// The address of a source of an account. Reads its files anew, because they may have been
    /// renewed.
    pub(super) async fn address(
        &self,
        owner: AccountId,
        source: &Source,
    ) -> Result<Address, CopyError> {
        if !is_name(&source.endpoint) {
            // The daemon reaches endpoints that an account may not reach.
            if owner != AccountId::ADMINISTRATOR {
                let why = "source.endpoint: an account copies from remotes that belong to it, and \
                           endpoints are the administrator's";
                return Err(CopyError::Store(Error::Invalid(why.to_owned())));
            }
            let endpoint = checked(&source.endpoint, source.allow_plaintext)?;
            return address(endpoint, (*self.tls).clone(), None).await;
        }
        let remote = self.named(owner, &source.endpoint).await?;
        let endpoint = checked(&remote.endpoint, remote.allow_plaintext)?;
        let address = address(endpoint, self.files(&remote), token_file(&remote)).await;
        address.map_err(|error| match error {
            // The files are the administrator's.
            CopyError::Tls(_) | CopyError::Token(_) if owner != AccountId::ADMINISTRATOR => {
                let name = remote.name;
                warn!(%owner, name, %error, "the files of an account's remote cannot be used");
                CopyError::Files(name)
            }
            error => error,
        })
    }

    /// Checks that the source's remote is still there, if the source names one.
    pub(super) async fn check(&self, owner: AccountId, source: &Source) -> Result<(), CopyError> {
        if is_name(&source.endpoint) {
            self.named(owner, &source.endpoint).await?;
        }
        Ok(())
    }

    async fn named(&self, owner: AccountId, name: &str) -> Result<RemoteRecord, CopyError> {
        let remote = self.store.remote(owner, name).await;
        remote.map_err(|error| match error {
            Error::NotFound { name, .. } => CopyError::NoRemote(name),
            other => other.into(),
        })
    }

    /// The TLS files of a remote; those that it lacks come from the configuration. The daemon's own
    /// certificate is for the administrator's remotes only: it may have more rights at the source
    /// than an account shall.
    fn files(&self, remote: &RemoteRecord) -> CopiesConfig {
        let file = |path: &String| (!path.is_empty()).then(|| PathBuf::from(path));
        let own = (remote.owner == AccountId::ADMINISTRATOR).then_some(&*self.tls);
        CopiesConfig {
            ca: file(&remote.tls_ca).or_else(|| self.tls.ca.clone()),
            identity: file(&remote.tls_cert)
                .zip(file(&remote.tls_key))
                .or_else(|| own.and_then(|tls| tls.identity.clone())),
        }
    }

    /// Adds a remote, after checking that its record can be used for a connection.
    pub(super) async fn add(&self, remote: RemoteRecord) -> Result<(), CopyError> {
        let invalid = |why: &str| Err(CopyError::Store(Error::Invalid(why.to_owned())));
        // A colon distinguishes an endpoint from a name.
        if !is_name(&remote.name) {
            return invalid("the name of a remote has no colon");
        }
        let endpoint = checked(&remote.endpoint, remote.allow_plaintext)?;
        if remote.tls_cert.is_empty() != remote.tls_key.is_empty() {
            return invalid("a certificate and its private key have no use without each other");
        }
        // An error about the path would show it.
        if TokenSecret::is_like(&remote.token_file) {
            return invalid("this is a token: name the file that has it");
        }
        for path in [
            &remote.tls_ca,
            &remote.tls_cert,
            &remote.tls_key,
            &remote.token_file,
        ] {
            if !path.is_empty() && !Path::new(path).is_absolute() {
                return invalid(&relative(path));
            }
        }
        if endpoint.is_exposed() && !remote.token_file.is_empty() {
            return invalid(&format!(
                "{endpoint} is plain HTTP to another machine: others can read a token on its way; \
                 use https"
            ));
        }
        let address = address(endpoint, self.files(&remote), token_file(&remote)).await?;
        address.tls.check(&address.endpoint)?;
        Ok(self.store.add_remote(remote).await?)
    }
}

fn token_file(remote: &RemoteRecord) -> Option<PathBuf> {
    (!remote.token_file.is_empty()).then(|| PathBuf::from(&remote.token_file))
}

/// The address of an endpoint, with the token, and the content of the other files if it uses TLS.
async fn address(
    endpoint: Endpoint,
    files: CopiesConfig,
    token: Option<PathBuf>,
) -> Result<Address, CopyError> {
    let has_tls = endpoint.has_tls();
    let read = tokio::task::spawn_blocking(move || {
        let token = token.map(|file| TokenSecret::from_file(&file)).transpose();
        let token = token.map_err(CopyError::Token)?;
        let tls = match has_tls {
            true => tls::client(&files)?,
            false => Tls::default(),
        };
        Ok::<_, CopyError>((token, tls))
    });
    let (token, tls) = read.await.map_err(|_| Error::Closing)??;
    Ok(Address {
        endpoint,
        tls,
        token,
    })
}

/// Returns true for the name of a remote, and false for an endpoint.
fn is_name(text: &str) -> bool {
    !text.contains(':')
}

/// The error text for a relative path.
fn relative(path: &str) -> String {
    format!(
        "{path:?} is a relative path, and the daemon has a directory of its own: write an absolute \
         one"
    )
}

/// Parses an endpoint. Refuses plain HTTP over a network unless it is allowed.
fn checked(text: &str, allow_plaintext: bool) -> Result<Endpoint, CopyError> {
    let invalid = |why: String| CopyError::Store(Error::Invalid(format!("endpoint: {why}")));
    let endpoint: Endpoint = text
        .parse()
        .map_err(|error: varve_client::Error| invalid(error.why().to_owned()))?;
    if let Some(path) = text.strip_prefix("unix:")
        && !Path::new(path).is_absolute()
    {
        return Err(invalid(relative(path)));
    }
    if endpoint.is_exposed() && !allow_plaintext {
        return Err(invalid(format!(
            "{endpoint} is plain HTTP to another machine: others can read the content on its way; \
             use https, unless that is acceptable"
        )));
    }
    Ok(endpoint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plaintext_over_a_network_has_to_be_allowed() {
        for (endpoint, allow, taken) in [
            ("unix:/run/x.sock", false, true),
            ("http://127.0.0.1:7433", false, true),
            ("https://eu.example.com:7433", false, true),
            ("http://eu.example.com:7433", false, false),
            ("http://eu.example.com:7433", true, true),
        ] {
            let outcome = checked(endpoint, allow);
            assert_eq!(outcome.is_ok(), taken, "{endpoint}");
            if let Err(refused) = outcome {
                assert!(refused.to_string().contains("plain HTTP"), "{refused}");
            }
        }
        assert!(checked("ftp://x", true).is_err());
    }

    #[test]
    fn sockets_have_absolute_paths() {
        for (endpoint, taken) in [
            ("unix:/run/x.sock", true),
            ("unix:///run/x.sock", true),
            ("unix:x.sock", false),
            ("unix:./x.sock", false),
            ("unix:../run/x.sock", false),
        ] {
            let outcome = checked(endpoint, false);
            assert_eq!(outcome.is_ok(), taken, "{endpoint}");
            if let Err(refused) = outcome {
                assert!(refused.to_string().contains("relative path"), "{refused}");
            }
        }
    }

    #[test]
    fn names_are_told_from_endpoints() {
        for name in ["eu", "eu-west/1", "eu.example.com"] {
            assert!(is_name(name), "{name}");
        }
        for endpoint in ["unix:/x", "https://[::1]:7433", "eu.example.com:7433"] {
            assert!(!is_name(endpoint), "{endpoint}");
        }
    }
}
