//! Other daemons that have names here.

use tracing::info;
use varve_store::RemoteRecord;

use super::{Service, error::Result, request};
use crate::auth::{Action, Caller, Resource};

impl Service {
    /// Gives another daemon a name. Gives the record with what it was given.
    pub(crate) async fn add_remote(
        &self,
        caller: &Caller,
        remote: RemoteRecord,
    ) -> Result<RemoteRecord> {
        let name = remote.name.clone();
        let on = [Resource::Remote(&name)];
        self.pass(caller, Action::AddRemote, &on, async {
            for (field, text) in [
                ("remote.endpoint", &remote.endpoint),
                ("remote.tls_ca", &remote.tls_ca),
                ("remote.tls_cert", &remote.tls_cert),
                ("remote.tls_key", &remote.tls_key),
            ] {
                request::remote_text(field, text)?;
            }
            let added = self.0.parts.copies.add_remote(remote).await?;
            info!(name = added.name, endpoint = added.endpoint, "remote added");
            Ok(added)
        })
        .await
    }

    /// All of them.
    pub(crate) async fn list_remotes(&self, caller: &Caller) -> Result<Vec<RemoteRecord>> {
        self.pass(caller, Action::ListRemotes, &[], async {
            Ok(self.0.parts.copies.remotes().await?)
        })
        .await
    }

    /// Forgets a daemon that no copy comes from.
    pub(crate) async fn remove_remote(&self, caller: &Caller, name: &str) -> Result<()> {
        let on = [Resource::Remote(name)];
        self.pass(caller, Action::RemoveRemote, &on, async {
            self.0.parts.copies.remove_remote(name.to_owned()).await?;
            info!(name, "remote removed");
            Ok(())
        })
        .await
    }
}
