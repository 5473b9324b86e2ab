//! The accounts and tokens of the store in memory, and whom a caller acts for.
//!
//! It has no secret: only keyed hashes of secrets, and their key. As long as the administrator is
//! the only account, and no token was ever made, everybody who may connect is the administrator.

use std::{
    collections::HashMap,
    hash::Hash,
    mem,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::RwLock;
use varve_store::{
    AccountId, AccountRecord, Identity, Scopes, SecretHash, TokenId, TokenRecord, VolumeId,
    VolumeRecord, now_ns,
};

use super::{
    Action, Attachment, Caller, Ticket,
    token::{BearerToken, HashKey},
};
use crate::net::peer::Peer;

/// Whom a caller acts for.
#[derive(Debug, Clone)]
pub(crate) struct Principal {
    pub(crate) account: Arc<AccountRecord>,
    /// How the caller is known: `uid:1000`, `cert:CN=backup`, the id of a token, `ticket`.
    pub(crate) identity: String,
    /// What its token may be used for.
    pub(crate) scopes: Scopes,
    /// The only operation that it may do: it has an attach ticket.
    pub(super) only: Option<Action>,
}

impl Principal {
    /// The id of the account.
    pub(crate) fn id(&self) -> AccountId {
        self.account.id
    }

    /// Returns true for the administrator.
    pub(crate) fn is_administrator(&self) -> bool {
        self.account.id == AccountId::ADMINISTRATOR
    }
}

/// Why a token is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenError {
    /// It has another form, its id is unknown, its secret is another, or it was revoked.
    #[error("the token is not valid")]
    Invalid,
    /// It has expired.
    #[error("the token has expired")]
    Expired,
    /// It would be sent where others can read it.
    #[error("tokens are taken over TLS, a unix socket or a loopback address only")]
    Plaintext,
}

/// Accounts and tokens in memory. Clones are handles to the same.
#[derive(Debug, Clone)]
pub(crate) struct Directory(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    table: RwLock<Table>,
    clock: Clock,
    /// The user that the daemon runs as: like root, it is the administrator.
    own_user: u32,
}

#[derive(Debug, Default)]
struct Table {
    accounts: HashMap<AccountId, Arc<AccountRecord>>,
    /// Ids by name and by alias.
    names: HashMap<String, AccountId>,
    identities: HashMap<Identity, AccountId>,
    tokens: HashMap<TokenId, Arc<Token>>,
    key: Option<HashKey>,
    /// The file of the key is there, and cannot be used.
    has_lost_key: bool,
    /// There is no account beside the administrator's, and nothing belongs to another.
    has_only_administrator: bool,
    /// It may lack a change of the store.
    is_stale: bool,
}

#[derive(Debug)]
struct Token {
    record: TokenRecord,
    /// Not used since the store was told, if `None`.
    used_at_ns: RwLock<Option<u64>>,
}

/// A clock that never goes back while the daemon runs, nor behind the youngest time in the store.
#[derive(Debug)]
struct Clock {
    started: Instant,
    started_ns: u64,
    /// The latest time that it has told.
    latest_ns: AtomicU64,
}

impl Clock {
    /// A clock that begins at `least_ns` or now, whichever is later.
    fn from(least_ns: u64) -> Self {
        Self {
            started: Instant::now(),
            started_ns: now_ns().max(least_ns),
            latest_ns: AtomicU64::new(least_ns),
        }
    }

    fn now_ns(&self) -> u64 {
        let elapsed = u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let now = now_ns().max(self.started_ns.saturating_add(elapsed));
        self.latest_ns.fetch_max(now, Ordering::Relaxed).max(now)
    }
}

impl Table {
    fn is_open_to_all(&self) -> bool {
        // A key shows that a token, an access key or a ticket was made once, even if a rebuild has
        // lost all of them and all accounts.
        let has_key = self.key.is_some() || self.has_lost_key;
        self.has_only_administrator && !has_key && !self.is_stale
    }

    fn identified(&self, identity: &Identity) -> Option<&AccountId> {
        let id = self.identities.get(identity);
        id.filter(|_| !self.is_stale)
    }
}

/// The keys that belong to one account only.
fn only<K: Eq + Hash>(all: HashMap<K, Vec<AccountId>>) -> HashMap<K, AccountId> {
    let all = all.into_iter();
    all.filter_map(|(key, ids)| match *ids {
        [id] => Some((key, id)),
        _ => None,
    })
    .collect()
}

impl Directory {
    /// A directory of nobody but the administrator, whose clock is never behind `least_ns`, in
    /// nanoseconds since 1970.
    pub(crate) fn new(least_ns: u64) -> Self {
        let mut table = Table {
            has_only_administrator: true,
            ..Table::default()
        };
        let administrator = AccountRecord::administrator();
        table
            .accounts
            .insert(administrator.id, Arc::new(administrator));
        Self(Arc::new(Inner {
            table: RwLock::new(table),
            clock: Clock::from(least_ns),
            own_user: rustix::process::geteuid().as_raw(),
        }))
    }

    /// Puts these in the place of all that it has. `is_owned`: something belongs to an account.
    pub(super) fn replace(
        &self,
        accounts: Vec<AccountRecord>,
        tokens: Vec<TokenRecord>,
        is_owned: bool,
    ) {
        let known = self.0.table.read().tokens.clone();
        let tokens = tokens.into_iter().map(|record| {
            let used = known.get(&record.id).and_then(|it| *it.used_at_ns.read());
            let used_at_ns = RwLock::new(used);
            (record.id, Arc::new(Token { record, used_at_ns }))
        });
        let mut fresh = Table {
            tokens: tokens.collect(),
            has_only_administrator: accounts.len() <= 1 && !is_owned,
            ..Table::default()
        };
        // A store that was mended after a loss may have a name or an identity twice: then it is
        // nobody's.
        let (mut names, mut identities) = (HashMap::new(), HashMap::new());
        for account in &accounts {
            let all = [&account.name, &account.alias].into_iter();
            for name in all.filter(|name| !name.is_empty()) {
                let ids: &mut Vec<_> = names.entry(name.clone()).or_default();
                ids.push(account.id);
            }
            for identity in &account.identities {
                let ids: &mut Vec<_> = identities.entry(identity.clone()).or_default();
                ids.push(account.id);
            }
        }
        fresh.names = only(names);
        fresh.identities = only(identities);
        let accounts = accounts.into_iter().map(|it| (it.id, Arc::new(it)));
        fresh.accounts = accounts.collect();
        let mut table = self.0.table.write();
        fresh.key = table.key.take();
        fresh.has_lost_key = table.has_lost_key;
        let before = mem::replace(&mut *table, fresh);
        drop(table);
        // Without the lock: it may be large.
        drop(before);
    }

    /// Knows nobody but root and the daemon's own user, until it is filled again: it may lack a
    /// change.
    pub(super) fn close(&self) {
        self.0.table.write().is_stale = true;
    }

    /// Returns true if it may lack a change.
    pub(super) fn is_stale(&self) -> bool {
        self.0.table.read().is_stale
    }

    /// Returns true if there are tokens.
    pub(super) fn has_tokens(&self) -> bool {
        !self.0.table.read().tokens.is_empty()
    }

    /// The key of the hashes of tokens; `None`: no token is valid.
    pub(super) fn key(&self) -> Option<HashKey> {
        self.0.table.read().key.clone()
    }

    pub(super) fn set_key(&self, key: HashKey) {
        self.0.table.write().key = Some(key);
    }

    /// There is a key that cannot be read: no token is valid, and tokens were made once.
    pub(super) fn set_unusable_key(&self) {
        self.0.table.write().has_lost_key = true;
    }

    /// The time in nanoseconds since 1970. It never goes back while the daemon runs.
    pub(super) fn now_ns(&self) -> u64 {
        self.0.clock.now_ns()
    }

    /// Returns true for an identity that is always the administrator's: root, and the daemon's
    /// user.
    pub(crate) fn is_administrators(&self, identity: &Identity) -> bool {
        matches!(identity, Identity::User(user) if self.is_administrators_user(*user))
    }

    fn is_administrators_user(&self, user: u32) -> bool {
        user == 0 || user == self.0.own_user
    }

    /// The account of this id, name or alias.
    pub(crate) fn find(&self, text: &str) -> Option<Arc<AccountRecord>> {
        let table = self.0.table.read();
        let id = match text.parse() {
            Ok(id) => id,
            Err(_) => *table.names.get(text)?,
        };
        table.accounts.get(&id).cloned()
    }

    /// The account of this id.
    pub(crate) fn get(&self, id: AccountId) -> Option<Arc<AccountRecord>> {
        self.0.table.read().accounts.get(&id).cloned()
    }

    /// All accounts, by id.
    pub(crate) fn all(&self) -> Vec<Arc<AccountRecord>> {
        let mut all: Vec<_> = self.0.table.read().accounts.values().cloned().collect();
        all.sort_unstable_by_key(|account| account.id);
        all
    }

    /// The tokens of an account, the oldest first.
    pub(crate) fn tokens_of(&self, account: AccountId) -> Vec<TokenRecord> {
        let table = self.0.table.read();
        let tokens = table.tokens.values();
        let mut tokens: Vec<_> = tokens
            .filter(|token| token.record.account == account)
            .map(|token| self.shown(token))
            .collect();
        tokens.sort_unstable_by_key(|token| (token.created_at_ns, token.id));
        tokens
    }

    /// The token of this id.
    pub(crate) fn token(&self, id: TokenId) -> Option<TokenRecord> {
        let token = self.0.table.read().tokens.get(&id).cloned();
        token.map(|token| self.shown(&token))
    }

    /// A token's record as it is now.
    fn shown(&self, token: &Token) -> TokenRecord {
        let mut record = token.record.clone();
        record.last_used_at_ns = token.used_at_ns.read().or(record.last_used_at_ns);
        record.is_expired |= self.has_expired(&token.record);
        record
    }

    fn has_expired(&self, token: &TokenRecord) -> bool {
        let now = self.0.clock.now_ns();
        token.is_expired || token.expires_at_ns.is_some_and(|at| at <= now)
    }

    /// Checks a token that came with a call. Returns its id.
    ///
    /// # Errors
    ///
    /// Why it is not taken: every wrong token takes the same way to the same answer.
    pub(crate) fn check_token(
        &self,
        peer: &Peer,
        is_tls: bool,
        text: &str,
    ) -> Result<TokenId, TokenError> {
        if !is_tls && peer.is_on_a_network() {
            return Err(TokenError::Plaintext);
        }
        let table = self.0.table.read();
        let unknown = SecretHash::from_bytes([0; 32]);
        let token = BearerToken::parse(text);
        let known = token.as_ref().and_then(|it| table.tokens.get(&it.id()));
        let hash = known.map_or(&unknown, |it| &it.record.hash);
        let key = table.key.as_ref();
        let is_right = token
            .as_ref()
            .zip(key)
            .is_some_and(|(token, key)| token.has_hash(key, hash));
        match known {
            Some(known) if is_right && self.has_expired(&known.record) => Err(TokenError::Expired),
            Some(known) if is_right => {
                *known.used_at_ns.write() = Some(self.0.clock.now_ns());
                Ok(known.record.id)
            }
            _ => Err(TokenError::Invalid),
        }
    }

    /// Whom a caller acts for; `None`: nobody that is known.
    pub(crate) fn principal(&self, caller: &Caller) -> Option<Principal> {
        if let Some(known) = caller.principal() {
            return known.clone();
        }
        let table = self.0.table.read();
        let of = |id: &AccountId, identity: String, scopes: Scopes| {
            let account = table.accounts.get(id)?;
            Some(Principal {
                account: Arc::clone(account),
                identity,
                scopes,
                only: None,
            })
        };
        if let Some(id) = caller.token() {
            let token = table.tokens.get(&id).filter(|_| !table.is_stale)?;
            if self.has_expired(&token.record) {
                return None;
            }
            return of(&token.record.account, id.to_string(), token.record.scopes);
        }
        if let Some(subject) = caller.certificate() {
            let identity = Identity::Certificate(subject.to_owned());
            if let Some(id) = table.identified(&identity) {
                return of(id, identity.to_string(), Scopes::ALL);
            }
        }
        let administrator = AccountId::ADMINISTRATOR;
        match *caller.peer() {
            Peer::Unix { user, .. } if self.is_administrators_user(user) => {
                return of(&administrator, format!("uid:{user}"), Scopes::ALL);
            }
            Peer::Unix { user, group, .. } => {
                for identity in [Identity::User(user), Identity::Group(group)] {
                    if let Some(id) = table.identified(&identity) {
                        return of(id, identity.to_string(), Scopes::ALL);
                    }
                }
            }
            // Not from a listener: the daemon itself made it.
            Peer::Given => return of(&administrator, "daemon".to_owned(), Scopes::ALL),
            Peer::UnknownUnix | Peer::Tcp(_) => {}
        }
        // Without accounts and tokens, everybody who may connect is the administrator.
        let identity = || match caller.identity() {
            none if none.is_empty() => "unknown".to_owned(),
            identity => identity,
        };
        table
            .is_open_to_all()
            .then(|| of(&administrator, identity(), Scopes::ALL))?
    }

    /// Returns true if everybody who may connect is the administrator.
    pub(crate) fn is_open_to_all(&self) -> bool {
        self.0.table.read().is_open_to_all()
    }

    /// Whom the bearer of a ticket acts for: the owner of the volume, to open its export. `None`:
    /// it is not the ticket of this attachment, or the attachment does not last.
    ///
    /// `record` is that of the volume, if there is one.
    pub(crate) fn bearer(
        &self,
        ticket: &str,
        (volume, number): (VolumeId, u64),
        record: Option<&VolumeRecord>,
    ) -> Option<Principal> {
        let since_ns = record.and_then(|record| record.attached_at_ns);
        let attachment = Attachment {
            volume,
            number,
            since_ns: since_ns.unwrap_or_default(),
        };
        let table = self.0.table.read();
        let key = table.key.as_ref().filter(|_| !table.is_stale)?;
        // Also if there is no such attachment: the answer takes as long.
        let is_right = Ticket::parse(ticket)?.is_of(key, attachment);
        let record = record.filter(|record| is_right && record.attachments == number)?;
        since_ns?;
        Some(Principal {
            account: Arc::clone(table.accounts.get(&record.owner)?),
            identity: "ticket".to_owned(),
            scopes: Scopes::VOLUMES,
            only: Some(Action::OpenVolumeExport),
        })
    }

    /// Tokens whose records are behind: whether they have expired, and when they were used, if that
    /// was written `every` ago or longer.
    pub(super) fn tokens_to_write(&self, every: Duration) -> Vec<(TokenId, (bool, Option<u64>))> {
        let table = self.0.table.read();
        let every = u64::try_from(every.as_nanos()).unwrap_or(u64::MAX);
        let tokens = table.tokens.values().filter_map(|token| {
            let record = &token.record;
            let used = *token.used_at_ns.read();
            let written = record.last_used_at_ns.unwrap_or_default();
            let is_late = used.is_some_and(|used| used.saturating_sub(written) >= every);
            let expired = self.has_expired(record);
            (is_late || expired != record.is_expired).then_some((record.id, (expired, used)))
        });
        tokens.collect()
    }
}
