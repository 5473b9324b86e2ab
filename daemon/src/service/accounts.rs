//! Accounts, their tokens and their access keys.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use varve_store::{
    AccessKeyId, AccountId, AccountRecord, AccountState, BlockPublicAccess, Error as StoreError,
    Identity, Quota, Scopes, TokenId, TokenRecord, fill_random, now_ns,
};

use super::{
    Service,
    error::{Error, Result},
    request,
};
use crate::{
    auth::{
        AccessKey, Action, Caller, Changed, Directory, Principal, Resource, SecretAccessKey, done,
    },
    limits,
    net::tls,
};

/// An account to be made.
#[derive(Debug, Clone, Default)]
pub(crate) struct NewAccount {
    pub(crate) name: String,
    /// `None`: a random id.
    pub(crate) id: Option<AccountId>,
    pub(crate) alias: String,
    pub(crate) identities: Vec<Identity>,
}

/// Changes of an account. `None` and empty lists change nothing.
#[derive(Debug, Clone, Default)]
pub(crate) struct AccountChange {
    pub(crate) name: Option<String>,
    /// Empty: it has none from then on.
    pub(crate) alias: Option<String>,
    pub(crate) state: Option<AccountState>,
    pub(crate) add: Vec<Identity>,
    pub(crate) remove: Vec<Identity>,
    pub(crate) block_public_access: Option<BlockPublicAccess>,
    pub(crate) allows_public_images: Option<bool>,
    /// New limits; `None`: none from then on.
    pub(crate) quotas: BTreeMap<Quota, Option<u64>>,
}

/// An account that was changed, and what of it, for the audit log.
#[derive(Debug)]
struct UpdatedAccount {
    record: AccountRecord,
    what: String,
}

impl Changed for UpdatedAccount {
    fn ids(&self) -> Vec<String> {
        self.record.ids()
    }

    fn detail(&self) -> Option<String> {
        Some(self.what.clone())
    }
}

impl AccountChange {
    /// What it asks for, as the options of `snapctl account set` say it.
    fn words(&self) -> String {
        let mut words = Vec::new();
        words.extend(self.name.iter().map(|name| format!("name={name}")));
        words.extend(self.alias.iter().map(|alias| format!("alias={alias}")));
        words.extend(self.state.iter().map(|state| format!("state={state}")));
        words.extend(self.add.iter().map(|it| format!("add-identity={it}")));
        words.extend(self.remove.iter().map(|it| format!("remove-identity={it}")));
        let block = self.block_public_access.map(|block| match block {
            BlockPublicAccess::Off => "off",
            BlockPublicAccess::NewSharing => "new-sharing",
            BlockPublicAccess::AllSharing => "all-sharing",
        });
        words.extend(block.map(|block| format!("block-public-access={block}")));
        let images = self.allows_public_images;
        words.extend(
            images.map(|allows| format!("public-images={}", if allows { "on" } else { "off" })),
        );
        words.extend(self.quotas.iter().map(|(quota, limit)| {
            let name = quota.to_string().replace(' ', "-");
            match limit {
                Some(limit) => format!("quota {name}={limit}"),
                None => format!("quota {name}=none"),
            }
        }));
        words.join(", ")
    }

    /// Returns true if it gives the account nothing: no identity, no name, and no more rights.
    fn only_restricts(&self) -> bool {
        let has_names = self.name.is_some() || self.alias.is_some();
        let has_limits = self.block_public_access.is_some()
            || self.allows_public_images.is_some()
            || !self.quotas.is_empty();
        !has_names
            && !has_limits
            && self.add.is_empty()
            && self.state == Some(AccountState::Disabled)
    }
}

/// A token to be made.
#[derive(Debug, Clone)]
pub(crate) struct NewToken {
    /// Empty: the caller's own account.
    pub(crate) account: String,
    pub(crate) scopes: Scopes,
    pub(crate) description: String,
    /// `None`: it does not expire.
    pub(crate) lifetime: Option<Duration>,
}

/// An account, and what of its quotas it uses now.
#[derive(Debug, Clone)]
pub(crate) struct AccountUse {
    pub(crate) record: AccountRecord,
    pub(crate) used: BTreeMap<Quota, u64>,
}

/// A caller, as the daemon knows it.
#[derive(Debug, Clone)]
pub(crate) struct WhoAmI {
    pub(crate) principal: Option<Principal>,
    /// `None`: the caller is nobody.
    pub(crate) account: Option<AccountUse>,
    /// How the daemon knows the caller, or would know it: what nobody may ask to be added.
    pub(crate) identity: String,
}

impl Service {
    /// Makes an account.
    pub(crate) async fn create_account(
        &self,
        caller: &Caller,
        new: NewAccount,
    ) -> Result<AccountRecord> {
        let name = new.name.clone();
        let on = [Resource::Account(&name)];
        let (store, accounts) = (self.store().clone(), self.0.parts.accounts.clone());
        let change = async move {
            check_identities(accounts.directory(), &new.identities)?;
            let record = AccountRecord {
                id: match new.id {
                    Some(id) => id,
                    None => random_id()?,
                },
                name: new.name,
                alias: new.alias,
                state: AccountState::Active,
                created_at_ns: now_ns(),
                identities: BTreeSet::from_iter(new.identities),
                ..AccountRecord::administrator()
            };
            Ok(accounts.change(store.create_account(record)).await?)
        };
        let call = (caller, Action::CreateAccount);
        self.change(call, &on, change, |attempt, made: &AccountRecord| {
            done!(attempt, id = %made.id, name = made.name, "account created");
        })
        .await
    }

    /// The account of this id, name or alias.
    pub(crate) async fn account(&self, caller: &Caller, account: &str) -> Result<AccountUse> {
        let on = [Resource::Account(account)];
        self.pass(caller, Action::GetAccount, &on, async {
            let found = self.directory().find(account);
            let found = found.ok_or_else(|| request::not_found("account", account))?;
            self.account_use(&found).await
        })
        .await
    }

    async fn account_use(&self, account: &AccountRecord) -> Result<AccountUse> {
        let holdings = self.store().holdings(account.id).await?;
        let used = Quota::ALL.into_iter().filter_map(|quota| {
            let used = match quota {
                Quota::Uploads => Some(self.0.parts.uploads.of_account(account.id)),
                Quota::StoredBytes => self.store().stored_bytes(account.id),
                other => holdings.of(other),
            };
            Some((quota, used?))
        });
        Ok(AccountUse {
            record: account.clone(),
            used: used.collect(),
        })
    }

    /// All accounts, by id.
    pub(crate) async fn list_accounts(&self, caller: &Caller) -> Result<Vec<AccountRecord>> {
        self.pass(caller, Action::ListAccounts, &[], async {
            let all = self.directory().all().into_iter();
            Ok(all.map(|account| AccountRecord::clone(&account)).collect())
        })
        .await
    }

    /// Changes an account.
    pub(crate) async fn update_account(
        &self,
        caller: &Caller,
        account: &str,
        asked: AccountChange,
    ) -> Result<AccountRecord> {
        let on = [Resource::Account(account)];
        let (store, sight) = (self.store().clone(), self.sight(caller));
        let accounts = self.0.parts.accounts.clone();
        let uploads = Arc::clone(&self.0.parts.uploads);
        let account = account.to_owned();
        let action = match asked.only_restricts() {
            true => Action::RestrictAccount,
            false => Action::UpdateAccount,
        };
        let change = async move {
            let id = sight.known(&account)?;
            check_identities(accounts.directory(), &asked.add)?;
            if id == AccountId::ADMINISTRATOR
                && asked
                    .state
                    .is_some_and(|state| state != AccountState::Active)
            {
                let problem = "the account of the administrator is always active";
                return Err(Error::field("state", problem));
            }
            if let Some(both) = asked.add.iter().find(|it| asked.remove.contains(it)) {
                let problem = format!("{both} is to be added and removed");
                return Err(Error::field("remove_identities", problem));
            }
            if asked.quotas.get(&Quota::RequestsPerSecond) == Some(&Some(0)) {
                let problem = "the quota of requests per second is at least 1; an account that is \
                               disabled has none";
                return Err(Error::field("set_quotas", problem));
            }
            let what = asked.words();
            let update = move |record: &mut AccountRecord| {
                if let Some(name) = &asked.name {
                    record.name.clone_from(name);
                }
                if let Some(alias) = &asked.alias {
                    record.alias.clone_from(alias);
                }
                record.state = asked.state.unwrap_or(record.state);
                for identity in &asked.remove {
                    if !record.identities.remove(identity) {
                        return Err(StoreError::NotFound {
                            what: "identity",
                            name: identity.to_string(),
                        });
                    }
                }
                record.identities.extend(asked.add.iter().cloned());
                let block = asked.block_public_access;
                record.block_public_access = block.unwrap_or(record.block_public_access);
                let images = asked.allows_public_images;
                record.allows_public_images = images.unwrap_or(record.allows_public_images);
                for (quota, limit) in &asked.quotas {
                    match limit {
                        Some(limit) => record.quotas.insert(*quota, *limit),
                        None => record.quotas.remove(quota),
                    };
                }
                Ok(())
            };
            let record = accounts.change(store.update_account(id, update)).await?;
            if record.state == AccountState::Disabled {
                uploads.drop_of(id);
            }
            Ok(UpdatedAccount { record, what })
        };
        let call = (caller, action);
        let updated = self.change(call, &on, change, |attempt, updated: &UpdatedAccount| {
            let changed = &updated.record;
            done!(
                attempt,
                id = %changed.id,
                name = changed.name,
                state = %changed.state,
                identities = changed.identities.len(),
                quotas = changed.quotas.len(),
                "account changed"
            );
        });
        Ok(updated.await?.record)
    }

    /// Deletes an account that owns nothing, with its tokens and its access keys.
    pub(crate) async fn delete_account(
        &self,
        caller: &Caller,
        account: &str,
    ) -> Result<AccountRecord> {
        let on = [Resource::Account(account)];
        let (store, sight) = (self.store().clone(), self.sight(caller));
        let accounts = self.0.parts.accounts.clone();
        let uploads = Arc::clone(&self.0.parts.uploads);
        let account = account.to_owned();
        let change = async move {
            let id = sight.known(&account)?;
            let deleted = accounts.change(store.delete_account(id)).await?;
            // They would be those of the next account with this id.
            uploads.drop_of(id);
            Ok(deleted)
        };
        let call = (caller, Action::DeleteAccount);
        self.change(call, &on, change, |attempt, deleted: &AccountRecord| {
            done!(attempt, id = %deleted.id, name = deleted.name, "account deleted");
        })
        .await
    }

    /// Whom the caller acts for.
    pub(crate) async fn who_am_i(&self, caller: &Caller) -> Result<WhoAmI> {
        self.pass(caller, Action::WhoAmI, &[], async {
            let principal = self.directory().principal(caller);
            let account = match &principal {
                Some(principal) => Some(self.account_use(&principal.account).await?),
                None => None,
            };
            let identity = match &principal {
                Some(principal) => principal.identity.clone(),
                None => caller.identity(),
            };
            Ok(WhoAmI {
                principal,
                account,
                identity,
            })
        })
        .await
    }

    /// Makes a token. Returns it with its record.
    pub(crate) async fn create_token(
        &self,
        caller: &Caller,
        new: NewToken,
    ) -> Result<(TokenRecord, String)> {
        let name = new.account.clone();
        let on = [Resource::Account(&name)];
        let (accounts, sight) = (self.0.parts.accounts.clone(), self.sight(caller));
        let change = async move {
            let account = sight.one_account(&new.account)?;
            if new
                .lifetime
                .is_some_and(|it| it > limits::TOKEN_LIFETIME_MAX)
            {
                let problem = format!(
                    "it is more than {} seconds, which is ten years",
                    limits::TOKEN_LIFETIME_MAX.as_secs()
                );
                return Err(Error::field("lifetime_seconds", problem));
            }
            let lifetime = new.lifetime;
            let made = accounts.create_token(account, new.scopes, new.description, lifetime);
            let (record, token) = made.await?;
            Ok((record, token.reveal()))
        };
        let call = (caller, Action::CreateToken);
        self.change(
            call,
            &on,
            change,
            |attempt, (made, _): &(TokenRecord, _)| {
                done!(attempt, id = %made.id, account = %made.account, "token created");
            },
        )
        .await
    }

    /// The tokens of an account, the oldest first.
    pub(crate) async fn list_tokens(
        &self,
        caller: &Caller,
        account: &str,
    ) -> Result<Vec<TokenRecord>> {
        let on = [Resource::Account(account)];
        self.pass(caller, Action::ListTokens, &on, async {
            let account = self.sight(caller).one_account(account)?;
            Ok(self.directory().tokens_of(account))
        })
        .await
    }

    /// Revokes a token. Returns its last record.
    pub(crate) async fn revoke_token(&self, caller: &Caller, token: &str) -> Result<TokenRecord> {
        let on = [Resource::Token(token)];
        let (store, accounts) = (self.store().clone(), self.0.parts.accounts.clone());
        let (sight, text) = (self.sight(caller), token.to_owned());
        let change = async move {
            let no_token = || request::not_found("token", &text);
            let id: TokenId = text.parse().map_err(|_| no_token())?;
            let known = accounts.directory().token(id).ok_or_else(no_token)?;
            // The tokens of others do not exist for it.
            if !sight.sees(known.account) {
                return Err(no_token());
            }
            Ok(accounts.change(store.delete_token(id)).await?)
        };
        let call = (caller, Action::RevokeToken);
        self.change(call, &on, change, |attempt, revoked: &TokenRecord| {
            done!(attempt, id = %revoked.id, account = %revoked.account, "token revoked");
        })
        .await
    }

    /// Makes an access key. Returns it with its secret.
    pub(crate) async fn create_access_key(
        &self,
        caller: &Caller,
        account: &str,
    ) -> Result<(AccessKey, SecretAccessKey)> {
        let on = [Resource::Account(account)];
        let (accounts, sight) = (self.0.parts.accounts.clone(), self.sight(caller));
        let account = account.to_owned();
        let change = async move {
            let account = sight.one_account(&account)?;
            Ok(accounts.create_access_key(account).await?)
        };
        let call = (caller, Action::CreateAccessKey);
        self.change(call, &on, change, |attempt, (made, _): &(AccessKey, _)| {
            let AccessKey { record, .. } = made;
            done!(attempt, id = %record.id, account = %record.account, "access key created");
        })
        .await
    }

    /// The access keys of an account, the oldest first.
    pub(crate) async fn list_access_keys(
        &self,
        caller: &Caller,
        account: &str,
    ) -> Result<Vec<AccessKey>> {
        let on = [Resource::Account(account)];
        self.pass(caller, Action::ListAccessKeys, &on, async {
            let account = self.sight(caller).one_account(account)?;
            Ok(self.0.parts.accounts.access_keys_of(account).await?)
        })
        .await
    }

    /// Revokes an access key. Returns it as it was.
    pub(crate) async fn revoke_access_key(
        &self,
        caller: &Caller,
        access_key: &str,
    ) -> Result<AccessKey> {
        let id = access_key.parse::<AccessKeyId>();
        // A text of another form may be a secret: no log has it, and no error.
        let on = id.as_ref().ok().map(|_| Resource::AccessKey(access_key));
        let (store, accounts) = (self.store().clone(), self.0.parts.accounts.clone());
        let sight = self.sight(caller);
        let change = async move {
            let id = id.map_err(|error| Error::field("access_key", error.to_string()))?;
            let found = accounts.access_key(id).await?;
            // The access keys of others do not exist for it.
            let found = found.filter(|it| sight.sees(it.record.account));
            let found = found.ok_or_else(|| request::not_found("access key", &id.to_string()))?;
            store.delete_access_key(id).await?;
            Ok(found)
        };
        let call = (caller, Action::RevokeAccessKey);
        self.change(
            call,
            on.as_slice(),
            change,
            |attempt, revoked: &AccessKey| {
                let AccessKey { record, .. } = revoked;
                done!(attempt, id = %record.id, account = %record.account, "access key revoked");
            },
        )
        .await
    }
}

/// Checks that identities may be an account's: root and the daemon's user always are the
/// administrator, so another account would never see them. A subject that no certificate can have
/// would never be seen either.
fn check_identities(directory: &Directory, identities: &[Identity]) -> Result<()> {
    for identity in identities {
        let problem = match identity {
            taken if directory.is_administrators(taken) => {
                format!("{taken} is the administrator already")
            }
            Identity::Certificate(subject) => match tls::written_subject(subject) {
                Some(written) if written == *subject => continue,
                Some(written) => format!("that subject is written {written:?} here"),
                None => format!(
                    "{subject:?} is no subject of a certificate: write it without spaces around \
                     its parts, as `openssl x509 -noout -subject -nameopt RFC2253` does, as in \
                     cert:CN=backup,O=Example"
                ),
            },
            _ => continue,
        };
        return Err(Error::field("identities", problem));
    }
    Ok(())
}

/// A new id of an account: 12 digits, the first of which is not 0.
fn random_id() -> Result<AccountId> {
    const FIRST: u64 = 100_000_000_000;
    const COUNT: u64 = 900_000_000_000;
    let mut bytes = [0; 8];
    fill_random(&mut bytes)?;
    let number = FIRST + u64::from_le_bytes(bytes) % COUNT;
    AccountId::from_number(number)
        .ok_or_else(|| StoreError::Internal(format!("{number} is no id of an account")).into())
}
