//! Accounts, tokens and access keys, and who may call.

use std::collections::BTreeMap;

use tonic::{Request, Response, Status, metadata::MetadataMap};
use varve_client::ADMINISTRATOR;
use varve_proto::v1::{self, account_service_server::AccountService};

use super::{Service, State};

const TIME: prost_types::Timestamp = prost_types::Timestamp {
    seconds: 1_700_000_000,
    nanos: 0,
};

/// Accounts and tokens.
#[derive(Debug, Default)]
pub struct Accounts {
    /// By id, without the administrator.
    pub accounts: BTreeMap<String, v1::Account>,
    /// By id.
    pub tokens: BTreeMap<String, v1::Token>,
    /// By id.
    pub access_keys: BTreeMap<String, v1::AccessKey>,
    /// The secrets of tokens, and the ids of the tokens.
    pub secrets: BTreeMap<String, String>,
    /// True if callers without a token are refused.
    pub needs_token: bool,
    /// Refuses all calls but WhoAmI with this error.
    pub refusal: Option<Status>,
    /// The header `authorization` of every call.
    pub authorizations: Vec<Option<String>>,
    /// The lines of the audit log.
    pub audit: Vec<v1::AuditEvent>,
    /// The last request for a token.
    pub asked_token: Option<v1::CreateTokenRequest>,
    /// The secret of the next token or access key, in place of a good one.
    pub next_secret: Option<String>,
}

fn administrator() -> v1::Account {
    v1::Account {
        id: ADMINISTRATOR.to_owned(),
        name: "admin".to_owned(),
        state: v1::AccountState::Active.into(),
        public_access_block: v1::PublicAccessBlock::Off.into(),
        ..v1::Account::default()
    }
}

fn bearer(metadata: &MetadataMap) -> Option<&str> {
    let header = metadata.get("authorization")?.to_str().ok()?;
    header.strip_prefix("Bearer ")
}

impl Accounts {
    /// Notes the token of a call.
    fn note(&mut self, metadata: &MetadataMap) {
        let header = metadata.get("authorization");
        let header = header.map(|header| header.to_str().unwrap().to_owned());
        self.authorizations.push(header);
    }

    /// Checks a call, as its metadata has it.
    pub(crate) fn admit(&mut self, metadata: &MetadataMap) -> Result<(), Status> {
        self.note(metadata);
        if let Some(refusal) = &self.refusal {
            return Err(refusal.clone());
        }
        match bearer(metadata) {
            Some(secret) if !self.secrets.contains_key(secret) => {
                Err(Status::unauthenticated("the token is not valid"))
            }
            None if self.needs_token => Err(Status::unauthenticated("uid:1000 has no account")),
            _ => Ok(()),
        }
    }

    /// The account with this id, name or alias.
    fn find(&self, key: &str) -> Result<v1::Account, Status> {
        if [ADMINISTRATOR, "admin"].contains(&key) {
            return Ok(administrator());
        }
        let mut all = self.accounts.values();
        let found = all.find(|it| it.id == key || it.name == key || it.alias == key);
        let found = found.cloned();
        found.ok_or_else(|| Status::not_found(format!("account {key:?} does not exist")))
    }

    /// The id of the account, or of the caller's for an empty key.
    fn id(&self, key: &str) -> Result<String, Status> {
        match key {
            "" => Ok(ADMINISTRATOR.to_owned()),
            key => Ok(self.find(key)?.id),
        }
    }
}

impl State {
    /// The id of the account that a gift goes to.
    pub(crate) fn receiver(&self, key: &str) -> Result<String, Status> {
        Ok(self.accounts.find(key)?.id)
    }

    /// Returns true if a list for this owner has a record of that owner.
    pub(crate) fn lists(&self, asked: &str, owner: &str) -> Result<bool, Status> {
        Ok(match asked {
            "" | "all" => true,
            // Snapshots of tests may have no owner.
            "self" => owner.is_empty() || owner == ADMINISTRATOR,
            key => owner == self.accounts.find(key)?.id,
        })
    }
}

impl Service {
    fn accounts<T, U>(
        &self,
        request: Request<T>,
        work: impl FnOnce(&mut Accounts, T) -> Result<U, Status>,
    ) -> Result<Response<U>, Status> {
        let mut state = self.state();
        state.accounts.admit(request.metadata())?;
        work(&mut state.accounts, request.into_inner()).map(Response::new)
    }
}

#[tonic::async_trait]
impl AccountService for Service {
    async fn create_account(
        &self,
        request: Request<v1::CreateAccountRequest>,
    ) -> Result<Response<v1::Account>, Status> {
        self.accounts(request, |accounts, request| {
            if accounts.find(&request.name).is_ok() {
                let why = format!("account {:?} exists already", request.name);
                return Err(Status::already_exists(why));
            }
            if request.name.contains('/') {
                return Err(Status::invalid_argument(
                    "a name of an account has no slash",
                ));
            }
            let id = match request.id {
                id if id.is_empty() => format!("{:012}", accounts.accounts.len() + 1),
                id => id,
            };
            let account = v1::Account {
                id: id.clone(),
                name: request.name,
                alias: request.alias,
                state: v1::AccountState::Active.into(),
                created_at: Some(TIME),
                identities: request.identities,
                public_access_block: v1::PublicAccessBlock::Off.into(),
                public_images: false,
                quotas: Vec::new(),
            };
            accounts.accounts.insert(id, account.clone());
            Ok(account)
        })
    }

    async fn get_account(
        &self,
        request: Request<v1::GetAccountRequest>,
    ) -> Result<Response<v1::Account>, Status> {
        self.accounts(request, |accounts, request| accounts.find(&request.account))
    }

    async fn list_accounts(
        &self,
        request: Request<v1::ListAccountsRequest>,
    ) -> Result<Response<v1::ListAccountsResponse>, Status> {
        self.accounts(request, |accounts, _| {
            let others = accounts.accounts.values().cloned();
            Ok(v1::ListAccountsResponse {
                accounts: std::iter::once(administrator()).chain(others).collect(),
            })
        })
    }

    async fn update_account(
        &self,
        request: Request<v1::UpdateAccountRequest>,
    ) -> Result<Response<v1::Account>, Status> {
        self.accounts(request, |accounts, request| {
            let mut account = accounts.find(&request.account)?;
            let state = request.state();
            account.name = request.name.unwrap_or(account.name);
            account.alias = request.alias.unwrap_or(account.alias);
            if state != v1::AccountState::Unspecified {
                account.set_state(state);
            }
            let removed = |it: &String| request.remove_identities.contains(it);
            account.identities.retain(|it| !removed(it));
            account.identities.extend(request.add_identities);
            account.public_images = request.public_images.unwrap_or(account.public_images);
            if request.public_access_block != 0 {
                account.public_access_block = request.public_access_block;
            }
            for change in request.set_quotas {
                account.quotas.retain(|it| it.quota != change.quota);
                account
                    .quotas
                    .extend(change.limit.map(|limit| v1::AccountQuota {
                        quota: change.quota,
                        limit: Some(limit),
                        used: Some(3),
                    }));
            }
            let id = account.id.clone();
            accounts.accounts.insert(id, account.clone());
            Ok(account)
        })
    }

    async fn delete_account(
        &self,
        request: Request<v1::DeleteAccountRequest>,
    ) -> Result<Response<v1::DeleteAccountResponse>, Status> {
        self.accounts(request, |accounts, request| {
            let account = accounts.find(&request.account)?;
            accounts.accounts.remove(&account.id);
            accounts
                .tokens
                .retain(|_, token| token.account != account.id);
            accounts
                .access_keys
                .retain(|_, key| key.account != account.id);
            Ok(v1::DeleteAccountResponse {
                deleted: Some(account),
            })
        })
    }

    async fn who_am_i(
        &self,
        request: Request<v1::WhoAmIRequest>,
    ) -> Result<Response<v1::WhoAmIResponse>, Status> {
        let accounts = &mut self.state().accounts;
        accounts.note(request.metadata());
        let id = bearer(request.metadata()).and_then(|secret| accounts.secrets.get(secret));
        let token = id.and_then(|id| accounts.tokens.get(id));
        Ok(Response::new(match token {
            Some(token) => v1::WhoAmIResponse {
                account: Some(accounts.find(&token.account)?),
                identity: token.id.clone(),
                is_administrator: token.account == ADMINISTRATOR,
                scopes: token.scopes.clone(),
            },
            None if accounts.needs_token => v1::WhoAmIResponse {
                identity: "uid:1000".to_owned(),
                ..v1::WhoAmIResponse::default()
            },
            None => v1::WhoAmIResponse {
                account: Some(administrator()),
                identity: "uid:0".to_owned(),
                is_administrator: true,
                scopes: Vec::new(),
            },
        }))
    }

    async fn create_token(
        &self,
        request: Request<v1::CreateTokenRequest>,
    ) -> Result<Response<v1::CreateTokenResponse>, Status> {
        self.accounts(request, |accounts, request| {
            accounts.asked_token = Some(request.clone());
            let id = format!("tok-{:017x}", accounts.tokens.len() + 1);
            let expires_at = prost_types::Timestamp {
                seconds: TIME.seconds + request.lifetime_seconds.cast_signed(),
                nanos: 0,
            };
            let token = v1::Token {
                id: id.clone(),
                account: accounts.id(&request.account)?,
                scopes: request.scopes,
                description: request.description,
                created_at: Some(TIME),
                expires_at: (request.lifetime_seconds > 0).then_some(expires_at),
                last_used_at: None,
            };
            let secret = accounts.next_secret.take();
            // As long as a real one.
            let secret = secret.unwrap_or_else(|| format!("varve_{}{:0>52}", &id[4..], "5ec2e7"));
            accounts.tokens.insert(id.clone(), token.clone());
            accounts.secrets.insert(secret.clone(), id);
            Ok(v1::CreateTokenResponse {
                token: Some(token),
                secret,
            })
        })
    }

    async fn list_tokens(
        &self,
        request: Request<v1::ListTokensRequest>,
    ) -> Result<Response<v1::ListTokensResponse>, Status> {
        self.accounts(request, |accounts, request| {
            let id = accounts.id(&request.account)?;
            let tokens = accounts.tokens.values();
            let tokens = tokens.filter(|token| token.account == id).cloned();
            Ok(v1::ListTokensResponse {
                tokens: tokens.collect(),
            })
        })
    }

    async fn revoke_token(
        &self,
        request: Request<v1::RevokeTokenRequest>,
    ) -> Result<Response<v1::RevokeTokenResponse>, Status> {
        self.accounts(request, |accounts, request| {
            let revoked = accounts.tokens.remove(&request.token);
            let none = || Status::not_found(format!("token {:?} does not exist", request.token));
            let revoked = revoked.ok_or_else(none)?;
            accounts.secrets.retain(|_, id| *id != revoked.id);
            Ok(v1::RevokeTokenResponse {
                revoked: Some(revoked),
            })
        })
    }

    async fn create_access_key(
        &self,
        request: Request<v1::CreateAccessKeyRequest>,
    ) -> Result<Response<v1::CreateAccessKeyResponse>, Status> {
        self.accounts(request, |accounts, request| {
            let account = accounts.id(&request.account)?;
            let own = accounts.access_keys.values();
            if own.filter(|key| key.account == account).count() >= 2 {
                let why = "there are 2 access keys of an account at most";
                return Err(Status::failed_precondition(why));
            }
            let mut ids = ('A'..='Z').map(|letter| format!("AKIA{letter:2>16}"));
            let access_key = v1::AccessKey {
                id: ids
                    .find(|id| !accounts.access_keys.contains_key(id))
                    .unwrap(),
                account,
                created_at: Some(TIME),
                is_usable: true,
            };
            let id = access_key.id.clone();
            accounts.access_keys.insert(id, access_key.clone());
            let secret = accounts.next_secret.take();
            Ok(v1::CreateAccessKeyResponse {
                access_key: Some(access_key),
                secret: secret.unwrap_or_else(|| format!("{:/>40}", "5ec2e7")),
            })
        })
    }

    async fn list_access_keys(
        &self,
        request: Request<v1::ListAccessKeysRequest>,
    ) -> Result<Response<v1::ListAccessKeysResponse>, Status> {
        self.accounts(request, |accounts, request| {
            let id = accounts.id(&request.account)?;
            let keys = accounts.access_keys.values();
            let keys = keys.filter(|key| key.account == id).cloned();
            Ok(v1::ListAccessKeysResponse {
                access_keys: keys.collect(),
            })
        })
    }

    async fn revoke_access_key(
        &self,
        request: Request<v1::RevokeAccessKeyRequest>,
    ) -> Result<Response<v1::RevokeAccessKeyResponse>, Status> {
        self.accounts(request, |accounts, request| {
            let id = request.access_key;
            let none = || Status::not_found(format!("access key {id:?} does not exist"));
            let revoked = accounts.access_keys.remove(&id).ok_or_else(none)?;
            Ok(v1::RevokeAccessKeyResponse {
                revoked: Some(revoked),
            })
        })
    }

    async fn read_audit(
        &self,
        request: Request<v1::ReadAuditRequest>,
    ) -> Result<Response<v1::ReadAuditResponse>, Status> {
        self.accounts(request, |accounts, request| {
            let is_wanted = |event: &&v1::AuditEvent| {
                event.number > request.after
                    && (request.action.is_empty() || request.action == event.action)
            };
            let found = accounts.audit.iter().filter(is_wanted).cloned();
            let mut events: Vec<_> = found.collect();
            // Short pages, so that clients have to ask for several.
            let has_more = events.len() > 2;
            events.truncate(2);
            let last = events.last().map(|event| event.number);
            Ok(v1::ReadAuditResponse {
                next_after: last.unwrap_or(request.after),
                events,
                has_more,
                damaged_lines: 0,
            })
        })
    }
}
