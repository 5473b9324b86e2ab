//! Accounts, which own volumes, snapshots and copies, and the tokens that act for them.

use std::time::{Duration, SystemTime};

use prost_types::Timestamp;
use varve_proto::v1;

use crate::{
    connect::Client,
    convert::system_time,
    credentials::TokenSecret,
    error::{Error, ErrorKind, Result},
    quotas::{AccountQuota, PublicAccessBlock, Quota},
    retry,
};

/// Id of the administrator's account, whose name is `admin`.
pub const ADMINISTRATOR: &str = "000000000000";

/// The states of an account.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash)]
#[non_exhaustive]
pub enum AccountState {
    /// It sees and changes what belongs to it.
    Active,
    /// It sees and reads, and changes nothing.
    ReadOnly,
    /// All its calls are refused. What it owns stays, and volumes that are in use stay in use.
    Disabled,
    /// A state that this version of the client does not know.
    Unknown,
}

impl AccountState {
    /// The state as one lowercase word: stable, for programs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::ReadOnly => "read_only",
            Self::Disabled => "disabled",
            Self::Unknown => "unknown",
        }
    }

    fn from_proto(state: v1::AccountState) -> Self {
        match state {
            v1::AccountState::Active => Self::Active,
            v1::AccountState::ReadOnly => Self::ReadOnly,
            v1::AccountState::Disabled => Self::Disabled,
            v1::AccountState::Unspecified => Self::Unknown,
        }
    }

    fn to_proto(self) -> v1::AccountState {
        match self {
            Self::Active => v1::AccountState::Active,
            Self::ReadOnly => v1::AccountState::ReadOnly,
            Self::Disabled => v1::AccountState::Disabled,
            Self::Unknown => v1::AccountState::Unspecified,
        }
    }
}

/// An account. Volumes, snapshots and copies belong to one.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Account {
    /// 12 decimal digits.
    pub id: String,
    /// Unique among the names and aliases of all accounts.
    pub name: String,
    /// A second name.
    pub alias: Option<String>,
    /// Its state.
    pub state: AccountState,
    /// When it was made; `None` for the administrator.
    pub created_at: Option<SystemTime>,
    /// Callers who act for it without a token: `uid:NUMBER`, `gid:NUMBER` (the primary group of the
    /// caller's process) or `cert:SUBJECT`, where the subject is written as RFC 4514 has it.
    pub identities: Vec<String>,
    /// Whether it may share snapshots with everybody.
    pub public_access_block: PublicAccessBlock,
    /// Whether it may share images with everybody.
    pub public_images: bool,
    /// Quotas that have a limit or say what is used.
    pub quotas: Vec<AccountQuota>,
}

/// The settings of a new account.
#[derive(Clone, Debug, Default)]
pub struct NewAccount {
    /// Its name.
    pub name: String,
    /// Its id, 12 decimal digits. `None`: a random one.
    pub id: Option<String>,
    /// Its second name.
    pub alias: Option<String>,
    /// Its identities, at most 64; see [`Account::identities`].
    pub identities: Vec<String>,
}

/// A change of an account. The default changes nothing.
#[derive(Clone, Debug, Default)]
pub struct AccountUpdate {
    /// The new name.
    pub name: Option<String>,
    /// The new alias; an empty one removes it.
    pub alias: Option<String>,
    /// The new state.
    pub state: Option<AccountState>,
    /// Identities to add. Present ones are no error.
    pub add_identities: Vec<String>,
    /// Identities to remove. An absent one is an error, and so is one that is also to be added.
    pub remove_identities: Vec<String>,
    /// Whether it may share snapshots with everybody from now on.
    pub public_access_block: Option<PublicAccessBlock>,
    /// Whether it may share images with everybody from now on.
    pub public_images: Option<bool>,
    /// New limits; `None`: none from now on. The last one of several for the same quota counts.
    pub quotas: Vec<(Quota, Option<u64>)>,
}

/// The caller, as the daemon sees it.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct WhoAmI {
    /// The account that the caller acts for. `None` if the daemon does not know the caller.
    pub account: Option<Account>,
    /// How the daemon knows the caller: `uid:1000`, `cert:CN=backup` or the id of a token, for
    /// example.
    pub identity: String,
    /// True for the administrator.
    pub is_administrator: bool,
    /// The scopes of the caller's token. Empty: everything that the account may.
    pub scopes: Vec<TokenScope>,
}

/// The uses that a token allows.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash)]
#[non_exhaustive]
pub enum TokenScope {
    /// Seeing and reading everything that the account may see.
    Read,
    /// Changing volumes: create, clone, grow, tag, attach, detach, delete.
    Volumes,
    /// Changing snapshots and images: take, upload, tag, delete.
    Images,
    /// Copying snapshots: being read by another store, and copying from named remotes.
    Copy,
    /// A scope that this version of the client does not know.
    Unknown,
}

impl TokenScope {
    /// The scope as one lowercase word: stable, for programs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Volumes => "volumes",
            Self::Images => "images",
            Self::Copy => "copy",
            Self::Unknown => "unknown",
        }
    }

    /// Keeps unknown scopes: a list without them might mean everything.
    fn all_from_proto(scopes: &[i32]) -> Vec<Self> {
        let scopes = scopes
            .iter()
            .map(|scope| match v1::TokenScope::try_from(*scope) {
                Ok(v1::TokenScope::Read) => Self::Read,
                Ok(v1::TokenScope::Volumes) => Self::Volumes,
                Ok(v1::TokenScope::Images) => Self::Images,
                Ok(v1::TokenScope::Copy) => Self::Copy,
                Ok(v1::TokenScope::Unspecified) | Err(_) => Self::Unknown,
            });
        scopes.collect()
    }

    fn to_proto(self) -> Option<v1::TokenScope> {
        match self {
            Self::Read => Some(v1::TokenScope::Read),
            Self::Volumes => Some(v1::TokenScope::Volumes),
            Self::Images => Some(v1::TokenScope::Images),
            Self::Copy => Some(v1::TokenScope::Copy),
            Self::Unknown => None,
        }
    }
}

/// A token, without its secret.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Token {
    /// `tok-` and 17 hexadecimal digits.
    pub id: String,
    /// Id of its account, 12 decimal digits.
    pub account: String,
    /// The uses that it allows. Empty: everything that the account may. A scope other than
    /// [`TokenScope::Read`] includes the reads that it needs.
    pub scopes: Vec<TokenScope>,
    /// A note of the user.
    pub description: String,
    /// When it was made.
    pub created_at: SystemTime,
    /// When it expires; `None`: never.
    pub expires_at: Option<SystemTime>,
    /// When it was last used, to the minute; `None`: never.
    pub last_used_at: Option<SystemTime>,
}

/// The settings of a new token.
#[derive(Clone, Debug, Default)]
pub struct NewToken {
    /// Id, name or alias of its account. `None`: the caller's own.
    pub account: Option<String>,
    /// The uses that it allows. Empty: everything that the account may.
    pub scopes: Vec<TokenScope>,
    /// A note, at most 255 printable characters.
    pub description: String,
    /// The time until it expires, in whole seconds, at most ten years. `None`: it does not expire.
    pub lifetime: Option<Duration>,
}

/// A new token with its secret, which the daemon shows only once.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CreatedToken {
    /// The token.
    pub token: Token,
    /// Its secret.
    pub secret: TokenSecret,
}

impl Client {
    /// Makes an account. Only the administrator may do this.
    ///
    /// From the first account on, the daemon refuses the calls of everybody whom it does not know.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::AlreadyExists`] if another account has the id, the name, the alias or an
    /// identity, [`ErrorKind::Invalid`] for an invalid one, [`ErrorKind::Conflict`] when there are
    /// 1000 accounts; errors of the connection.
    pub async fn create_account(&self, new: NewAccount) -> Result<Account> {
        let what = format!("create account {}", new.name);
        let request = v1::CreateAccountRequest {
            name: new.name,
            id: new.id.unwrap_or_default(),
            alias: new.alias.unwrap_or_default(),
            identities: new.identities,
        };
        // Not tried again: it may have been made by the call whose answer was lost.
        let created = retry::while_busy(|| {
            let (mut service, request) = (self.account_service(), request.clone());
            async move { service.create_account(request).await }
        })
        .await;
        let created = created.map_err(|status| Error::rpc(&what, status))?;
        Account::from_proto(&what, Some(created.into_inner()))
    }

    /// Finds the account with this id, name or alias. Only the administrator may do this.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if there is no such account; errors of the connection.
    pub async fn account(&self, account: &str) -> Result<Account> {
        let what = format!("get account {account}");
        let request = v1::GetAccountRequest {
            account: account.to_owned(),
        };
        let found = retry::idempotent(|| {
            let (mut service, request) = (self.account_service(), request.clone());
            async move { service.get_account(request).await }
        })
        .await
        .map_err(|status| Error::rpc(&what, status))?;
        Account::from_proto(&what, Some(found.into_inner()))
    }

    /// Lists all accounts by id, the administrator first. Only the administrator may do this.
    ///
    /// # Errors
    ///
    /// Only errors of the connection.
    pub async fn accounts(&self) -> Result<Vec<Account>> {
        const WHAT: &str = "list accounts";
        let answer = retry::idempotent(|| {
            let mut service = self.account_service();
            async move { service.list_accounts(v1::ListAccountsRequest {}).await }
        });
        let answer = answer.await.map_err(|status| Error::rpc(WHAT, status))?;
        let accounts = answer.into_inner().accounts.into_iter();
        accounts
            .map(|account| Account::from_proto(WHAT, Some(account)))
            .collect()
    }

    /// Changes the account with this id, name or alias, and returns it. Only the administrator may
    /// do this.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if there is no such account, [`ErrorKind::AlreadyExists`] if another
    /// account has the name, the alias or an identity, [`ErrorKind::Invalid`] for an invalid one,
    /// and for another state of the administrator than active; errors of the connection.
    pub async fn update_account(&self, account: &str, update: AccountUpdate) -> Result<Account> {
        let what = format!("change account {account}");
        if update.state == Some(AccountState::Unknown) {
            let why = "an account cannot be set to an unknown state";
            return Err(Error::new(ErrorKind::Invalid, what, why));
        }
        if update.public_access_block == Some(PublicAccessBlock::Unknown) {
            let why = "an account cannot be set to an unknown block of public access";
            return Err(Error::new(ErrorKind::Invalid, what, why));
        }
        let block = update.public_access_block;
        let block = block.map_or(
            v1::PublicAccessBlock::Unspecified,
            PublicAccessBlock::to_proto,
        );
        let quotas = update.quotas.into_iter();
        let as_it_is = v1::AccountState::Unspecified;
        let state = update.state.map_or(as_it_is, AccountState::to_proto);
        let request = v1::UpdateAccountRequest {
            account: account.to_owned(),
            name: update.name,
            alias: update.alias,
            state: state.into(),
            add_identities: update.add_identities,
            remove_identities: update.remove_identities,
            public_access_block: block.into(),
            public_images: update.public_images,
            set_quotas: quotas
                .map(|(quota, limit)| v1::QuotaChange {
                    quota: quota.to_proto().into(),
                    limit,
                })
                .collect(),
        };
        // Not tried again: after a new name it would not be found by the old one.
        let updated = retry::while_busy(|| {
            let (mut service, request) = (self.account_service(), request.clone());
            async move { service.update_account(request).await }
        })
        .await;
        let updated = updated.map_err(|status| Error::rpc(&what, status))?;
        Account::from_proto(&what, Some(updated.into_inner()))
    }

    /// Deletes the account with this id, name or alias, which owns nothing, with its tokens and its
    /// access keys. Returns it. Only the administrator may do this.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if there is no such account, [`ErrorKind::Conflict`] while it owns a
    /// volume, a snapshot or a copy that is under way; errors of the connection.
    pub async fn delete_account(&self, account: &str) -> Result<Account> {
        let what = format!("delete account {account}");
        let request = v1::DeleteAccountRequest {
            account: account.to_owned(),
        };
        let deleted = retry::while_busy(|| {
            let (mut service, request) = (self.account_service(), request.clone());
            async move { service.delete_account(request).await }
        })
        .await;
        let deleted = deleted.map_err(|status| Error::rpc(&what, status))?;
        Account::from_proto(&what, deleted.into_inner().deleted)
    }

    /// Returns the caller as the daemon sees it. Everybody may call it.
    ///
    /// # Errors
    ///
    /// Only errors of the connection.
    pub async fn who_am_i(&self) -> Result<WhoAmI> {
        const WHAT: &str = "ask who I am";
        let answer = retry::idempotent(|| {
            let mut service = self.account_service();
            async move { service.who_am_i(v1::WhoAmIRequest {}).await }
        });
        let answer = answer.await.map_err(|status| Error::rpc(WHAT, status))?;
        let answer = answer.into_inner();
        let scopes = TokenScope::all_from_proto(&answer.scopes);
        let account = answer.account;
        Ok(WhoAmI {
            account: account
                .map(|account| Account::from_proto(WHAT, Some(account)))
                .transpose()?,
            identity: answer.identity,
            is_administrator: answer.is_administrator,
            scopes,
        })
    }

    /// Makes a token for an account. The answer is the only place where its secret is ever shown.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if there is no such account, [`ErrorKind::Denied`] for the account
    /// of another, and for scopes that the caller's own token does not have, [`ErrorKind::Invalid`]
    /// for an invalid description, a lifetime of more than ten years, or of less than 1 s,
    /// [`ErrorKind::Conflict`] when the account has 100 tokens; errors of the connection. The call
    /// is not repeated, so after a lost connection the token may exist; nobody has its secret.
    pub async fn create_token(&self, new: NewToken) -> Result<CreatedToken> {
        let what = match &new.account {
            Some(account) => format!("create a token for account {account}"),
            None => "create a token".to_owned(),
        };
        let refuse = |why: &str| Error::new(ErrorKind::Invalid, &what, why);
        let lifetime_seconds = match new.lifetime.map(|lifetime| lifetime.as_secs()) {
            // The protocol takes 0 for no end.
            Some(0) => return Err(refuse("a token is valid for at least 1 s")),
            seconds => seconds.unwrap_or_default(),
        };
        let scopes = new.scopes.into_iter().map(TokenScope::to_proto);
        // Without the unknown scope it might be a token for everything.
        let scopes: Option<Vec<_>> = scopes.map(|scope| Some(scope?.into())).collect();
        let request = v1::CreateTokenRequest {
            account: new.account.unwrap_or_default(),
            scopes: scopes.ok_or_else(|| refuse("a token cannot have an unknown scope"))?,
            description: new.description,
            lifetime_seconds,
        };
        let created = retry::while_busy(|| {
            let (mut service, request) = (self.account_service(), request.clone());
            async move { service.create_token(request).await }
        })
        .await;
        let created = created
            .map_err(|status| Error::rpc(&what, status))?
            .into_inner();
        let secret = TokenSecret::new(created.secret);
        Ok(CreatedToken {
            token: Token::from_proto(&what, created.token)?,
            secret: secret.map_err(|_| Error::protocol(&what, "a token without a secret"))?,
        })
    }

    /// Lists the tokens of the account with this id, name or alias, the oldest first. `None`: of
    /// the caller's own account.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if there is no such account, [`ErrorKind::Denied`] for the account
    /// of another; errors of the connection.
    pub async fn tokens(&self, account: Option<&str>) -> Result<Vec<Token>> {
        let what = match account {
            Some(account) => format!("list the tokens of account {account}"),
            None => "list tokens".to_owned(),
        };
        let request = v1::ListTokensRequest {
            account: account.unwrap_or_default().to_owned(),
        };
        let answer = retry::idempotent(|| {
            let (mut service, request) = (self.account_service(), request.clone());
            async move { service.list_tokens(request).await }
        });
        let answer = answer.await.map_err(|status| Error::rpc(&what, status))?;
        let tokens = answer.into_inner().tokens.into_iter();
        tokens
            .map(|token| Token::from_proto(&what, Some(token)))
            .collect()
    }

    /// Revokes the token with this id, and returns it. Calls that began with it are completed.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if there is no such token, [`ErrorKind::Invalid`] if a secret is
    /// given in place of an id; the error does not repeat it. Errors of the connection.
    pub async fn revoke_token(&self, token: &str) -> Result<Token> {
        if TokenSecret::is_like(token) {
            let why = "give the token's id, tok-..., and not its secret";
            return Err(Error::new(ErrorKind::Invalid, "revoke a token", why));
        }
        let what = format!("revoke token {token}");
        let request = v1::RevokeTokenRequest {
            token: token.to_owned(),
        };
        let revoked = retry::while_busy(|| {
            let (mut service, request) = (self.account_service(), request.clone());
            async move { service.revoke_token(request).await }
        })
        .await;
        let revoked = revoked.map_err(|status| Error::rpc(&what, status))?;
        Token::from_proto(&what, revoked.into_inner().revoked)
    }
}

impl Account {
    fn from_proto(what: &str, account: Option<v1::Account>) -> Result<Self> {
        let Some(account) = account else {
            return Err(Error::protocol(what, "an answer without its account"));
        };
        let state = AccountState::from_proto(account.state());
        let created_at = optional_time(what, &account.id, account.created_at)?;
        let public_access_block = PublicAccessBlock::from_proto(account.public_access_block());
        let quotas = account.quotas.iter().map(AccountQuota::from_proto);
        Ok(Self {
            state,
            created_at,
            public_access_block,
            public_images: account.public_images,
            quotas: quotas.collect(),
            id: account.id,
            name: account.name,
            alias: (!account.alias.is_empty()).then_some(account.alias),
            identities: account.identities,
        })
    }
}

impl Token {
    fn from_proto(what: &str, token: Option<v1::Token>) -> Result<Self> {
        let Some(token) = token else {
            return Err(Error::protocol(what, "an answer without its token"));
        };
        let scopes = TokenScope::all_from_proto(&token.scopes);
        let time = |time| optional_time(what, &token.id, time);
        let created_at = time(token.created_at)?;
        let no_time = || Error::protocol(what, format!("token {} has no time", token.id));
        Ok(Self {
            scopes,
            created_at: created_at.ok_or_else(no_time)?,
            // An end that cannot be read must not be taken for none.
            expires_at: time(token.expires_at)?,
            last_used_at: time(token.last_used_at)?,
            id: token.id,
            account: token.account,
            description: token.description,
        })
    }
}

/// A time that may be missing, but not invalid.
fn optional_time(what: &str, whose: &str, time: Option<Timestamp>) -> Result<Option<SystemTime>> {
    let read = |time| {
        system_time(time)
            .ok_or_else(|| Error::protocol(what, format!("{whose} has an invalid time")))
    };
    time.map(read).transpose()
}
