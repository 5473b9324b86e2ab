//! Other daemons that have names here.

use varve_store::RemoteRecord;

use super::{Service, error::Result, request};
use crate::auth::{Action, Caller, Resource, done};

impl Service {
    /// Gives another daemon a name, among those of an account. Returns the new record.
    pub(crate) async fn add_remote(
        &self,
        caller: &Caller,
        remote: RemoteRecord,
        account: &str,
    ) -> Result<RemoteRecord> {
        let name = remote.name.clone();
        let on = of_account(&name, account);
        let (copies, sight) = (self.0.parts.copies.clone(), self.sight(caller));
        let account = account.to_owned();
        let change = async move {
            let remote = RemoteRecord {
                owner: sight.one_account(&account)?,
                ..remote
            };
            for (field, text) in [
                ("remote.endpoint", &remote.endpoint),
                ("remote.tls_ca", &remote.tls_ca),
                ("remote.tls_cert", &remote.tls_cert),
                ("remote.tls_key", &remote.tls_key),
                ("remote.token_file", &remote.token_file),
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
                owner = %added.owner,
                "remote added"
            );
        })
        .await
    }

    /// Lists the remotes that a caller sees. The paths of files are the administrator's.
    pub(crate) async fn list_remotes(&self, caller: &Caller) -> Result<Vec<RemoteRecord>> {
        let sight = self.sight(caller);
        self.pass(caller, Action::ListRemotes, &[], async {
            let mut remotes = self.0.parts.copies.remotes().await?;
            remotes.retain(|remote| sight.sees(remote.owner));
            if !sight.sees_others() {
                for remote in &mut remotes {
                    let RemoteRecord {
                        tls_ca,
                        tls_cert,
                        tls_key,
                        token_file,
                        ..
                    } = remote;
                    for path in [tls_ca, tls_cert, tls_key, token_file] {
                        path.clear();
                    }
                }
            }
            Ok(remotes)
        })
        .await
    }

    /// Removes a remote that no copy under way comes from.
    pub(crate) async fn remove_remote(
        &self,
        caller: &Caller,
        name: &str,
        account: &str,
    ) -> Result<()> {
        let on = of_account(name, account);
        let (copies, sight) = (self.0.parts.copies.clone(), self.sight(caller));
        let (name, account) = (name.to_owned(), account.to_owned());
        let change = async move {
            let owner = sight.one_account(&account)?;
            copies.remove_remote(owner, name.clone()).await?;
            Ok(name)
        };
        let call = (caller, Action::RemoveRemote);
        let removed = self.change(call, &on, change, |attempt, name: &String| {
            done!(attempt, name, "remote removed");
        });
        removed.await.map(drop)
    }
}

/// A remote, and the account that it belongs to, if the caller names one.
fn of_account<'a>(name: &'a str, account: &'a str) -> Vec<Resource<'a>> {
    let account = (!account.is_empty()).then_some(Resource::Account(account));
    [Resource::Remote(name)]
        .into_iter()
        .chain(account)
        .collect()
}
