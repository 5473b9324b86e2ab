//! The sources of copies: other daemons, by their endpoints or by their names here.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use varve_client::{Endpoint, Tls};
use varve_store::{Error, RemoteRecord, Store};

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

/// The endpoint of a daemon, and the TLS settings for it.
#[derive(Debug)]
pub(super) struct Address {
    pub(super) endpoint: Endpoint,
    pub(super) tls: Tls,
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

    /// The address of a source. Reads the TLS files anew, because they may have been renewed.
    pub(super) async fn address(&self, source: &Source) -> Result<Address, CopyError> {
        if !is_name(&source.endpoint) {
            let endpoint = checked(&source.endpoint, source.allow_plaintext)?;
            return address(endpoint, (*self.tls).clone()).await;
        }
        let remote = self.named(&source.endpoint).await?;
        let endpoint = checked(&remote.endpoint, remote.allow_plaintext)?;
        address(endpoint, self.files(&remote)).await
    }

    /// Checks that the source's remote is still there, if the source names one.
    pub(super) async fn check(&self, source: &Source) -> Result<(), CopyError> {
        if is_name(&source.endpoint) {
            self.named(&source.endpoint).await?;
        }
        Ok(())
    }

    async fn named(&self, name: &str) -> Result<RemoteRecord, CopyError> {
        let remote = self.store.remote(name).await;
        remote.map_err(|error| match error {
            Error::NotFound { name, .. } => CopyError::NoRemote(name),
            other => other.into(),
        })
    }

    /// The TLS files of a remote; those that it lacks come from the configuration.
    fn files(&self, remote: &RemoteRecord) -> CopiesConfig {
        let file = |path: &String| (!path.is_empty()).then(|| PathBuf::from(path));
        CopiesConfig {
            ca: file(&remote.tls_ca).or_else(|| self.tls.ca.clone()),
            identity: file(&remote.tls_cert)
                .zip(file(&remote.tls_key))
                .or_else(|| self.tls.identity.clone()),
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
        for path in [&remote.tls_ca, &remote.tls_cert, &remote.tls_key] {
            if !path.is_empty() && !Path::new(path).is_absolute() {
                return invalid(&relative(path));
            }
        }
        let address = address(endpoint, self.files(&remote)).await?;
        address.tls.check(&address.endpoint)?;
        Ok(self.store.add_remote(remote).await?)
    }
}

/// The address of an endpoint, with the content of the files if it uses TLS.
async fn address(endpoint: Endpoint, files: CopiesConfig) -> Result<Address, CopyError> {
    let tls = if endpoint.has_tls() {
        let read = tokio::task::spawn_blocking(move || tls::client(&files));
        read.await.map_err(|_| Error::Closing)??
    } else {
        Tls::default()
    };
    Ok(Address { endpoint, tls })
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
