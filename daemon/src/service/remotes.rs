//! Other daemons that have names here.

use varve_store::RemoteRecord;

use super::{Service, error::Result, request};
use crate::auth::{Action, Caller, Resource, done};

impl Service {
    /// Gives another daemon a name. Returns the new record.
    pub(crate) async fn add_remote(
        &self,
        caller: &Caller,
        remote: RemoteRecord,
    ) -> Result<RemoteRecord> {
        let name = remote.name.clone();
        let on = [Resource::Remote(&name)];
        let copies = self.0.parts.copies.clone();
        let change = async move {
            for (field, text) in [
                ("remote.endpoint", &remote.endpoint),
                ("remote.tls_ca", &remote.tls_ca),
                ("remote.tls_cert", &remote.tls_cert),
                ("remote.tls_key", &remote.tls_key),
            ] {
                request::remote_text(field, text)?;
            }
            Ok(copies.add_remote(remote).await?)
        };
        let call = (caller, Action::AddRemote);
        self.change(call, &on, change, |attempt, added: &RemoteRecord| {
            done!(
                attempt,
                name = added.name,
                endpoint = added.endpoint,
                "remote added"
            );
        })
        .await
    }

    /// Lists all remotes.
    pub(crate) async fn list_remotes(&self, caller: &Caller) -> Result<Vec<RemoteRecord>> {
        self.pass(caller, Action::ListRemotes, &[], async {
            Ok(self.0.parts.copies.remotes().await?)
        })
        .await
    }

    /// Removes a remote that no copy under way comes from.
    pub(crate) async fn remove_remote(&self, caller: &Caller, name: &str) -> Result<()> {
        let on = [Resource::Remote(name)];
        let (copies, name) = (self.0.parts.copies.clone(), name.to_owned());
        let change = async move {
            copies.remove_remote(name.clone()).await?;
            Ok(name)
        };
        let call = (caller, Action::RemoveRemote);
        let removed = self.change(call, &on, change, |attempt, name: &String| {
            done!(attempt, name, "remote removed");
        });
        removed.await.map(drop)
    }
}
