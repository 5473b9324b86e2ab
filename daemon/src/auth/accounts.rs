//! Changes of accounts, tokens and access keys: in the store, and then in the directory.
//!
//! Invariant: the directory is filled anew after each change, before the change is answered, so the
//! next operation sees it.

use std::{collections::HashMap, path::PathBuf, sync::Arc, time::Duration};

use tokio::{sync::Mutex, task::spawn_blocking, time};
use tracing::{error, warn};
use varve_store::{AccessKeyId, AccessKeyRecord, AccountId, Scopes, Store, TokenRecord, now_ns};

use super::{
    Directory, TicketError,
    access_key::{SealError, Sealer, SecretAccessKey},
    key::{self, KeyError},
    token::{BearerToken, HashKey},
};

/// How often the last use of a token is written to the store.
const LAST_USE_EVERY: Duration = Duration::from_secs(3600);
/// Tokens that one change of the catalog updates.
const TOKENS_A_CHANGE: usize = 256;
/// How often expired tokens are looked for.
const EXPIRY_EVERY: Duration = Duration::from_secs(60);

/// All accounts. Clones are handles to the same.
#[derive(Debug, Clone)]
pub(crate) struct Accounts(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    directory: Directory,
    key_file: PathBuf,
    /// Held while the store and then the directory change.
    changing: Mutex<()>,
}

/// An access key, without its secret.
#[derive(Debug, Clone)]
pub(crate) struct AccessKey {
    pub(crate) record: AccessKeyRecord,
    /// False if its secret cannot be opened.
    pub(crate) is_usable: bool,
}

/// Why a token, an access key or a ticket cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CredentialError {
    #[error(transparent)]
    Ticket(#[from] TicketError),
    #[error(transparent)]
    Store(#[from] varve_store::Error),
    #[error(transparent)]
    Key(#[from] KeyError),
    /// What the store has of it does not open.
    #[error("access key {id} cannot be used, revoke it: {source}")]
    Seal { id: AccessKeyId, source: SealError },
}

impl Accounts {
    /// The accounts of a store, whose key is in this file.
    ///
    /// # Errors
    ///
    /// Errors of reading the catalog. A key that cannot be read is logged: no token is valid then.
    pub(crate) async fn load(store: Store, key_file: PathBuf) -> Result<Self, varve_store::Error> {
        let tokens = store.tokens().await?;
        let times = tokens.iter().flat_map(|token| {
            let used = token.last_used_at_ns.unwrap_or_default();
            [token.created_at_ns, used]
        });
        let accounts = Self(Arc::new(Inner {
            directory: Directory::new(times.max().unwrap_or_default()),
            store,
            key_file,
            changing: Mutex::new(()),
        }));
        let access_keys = accounts.0.store.access_keys().await?;
        match accounts.read_key().await {
            // Without the key, tokens would be no sign any more that the store is not open to all.
            Ok(None) if !tokens.is_empty() || !access_keys.is_empty() => {
                let file = accounts.0.key_file.display();
                error!(
                    "no token, ticket or access key is valid, and only known callers are let in: \
                     {file}, with their key, is missing"
                );
                accounts.0.directory.set_unusable_key();
            }
            Ok(Some(key)) => accounts.0.directory.set_key(key),
            Ok(None) => {}
            Err(error) => {
                error!(
                    "no token, ticket or access key is valid, and only known callers are let in: \
                     {error}"
                );
                accounts.0.directory.set_unusable_key();
            }
        }
        accounts.tell_of_broken_seals(&access_keys);
        accounts.reload().await?;
        Ok(accounts)
    }

    /// Logs once for a start that secrets of access keys cannot be opened. Lists show which.
    fn tell_of_broken_seals(&self, keys: &[AccessKeyRecord]) {
        let sealer = self.sealer();
        let broken = |key: &AccessKeyRecord| Some((key.id, open(sealer.as_ref(), key).err()?));
        let broken: Vec<_> = keys.iter().filter_map(broken).collect();
        if let Some((first, error)) = broken.first() {
            let count = broken.len();
            let remedy = "put auth.key back, or revoke them";
            error!(%error, %first, count, "access keys cannot be used: {remedy}");
        }
    }

    /// The accounts in memory.
    pub(crate) fn directory(&self) -> &Directory {
        &self.0.directory
    }

    async fn read_key(&self) -> Result<Option<HashKey>, KeyError> {
        let file = self.0.key_file.clone();
        // It does not panic, and the runtime waits for it.
        spawn_blocking(move || key::read(&file))
            .await
            .unwrap_or(Ok(None))
    }

    /// Reads all accounts and tokens anew.
    async fn reload(&self) -> Result<(), varve_store::Error> {
        let store = &self.0.store;
        let accounts = store.accounts().await?;
        let tokens = store.tokens().await?;
        let is_owned = store.has_owned().await?;
        self.0.directory.replace(accounts, tokens, is_owned);
        Ok(())
    }

    /// The same after a change. If it fails, only root and the daemon's user are known until it
    /// succeeds.
    async fn refill(&self) {
        if let Err(error) = self.reload().await {
            self.0.directory.close();
            error!(%error, "accounts cannot be read: only root is let in until they can");
        }
    }

    /// Changes the store, and then the directory.
    pub(crate) async fn change<T>(
        &self,
        change: impl Future<Output = Result<T, varve_store::Error>>,
    ) -> Result<T, varve_store::Error> {
        let _changing = self.0.changing.lock().await;
        let changed = change.await;
        // Also after a failure: it may have changed something.
        self.refill().await;
        changed
    }

    /// Makes a token for an account. Returns it with its record.
    ///
    /// # Errors
    ///
    /// The key cannot be made; errors of the store.
    pub(crate) async fn create_token(
        &self,
        account: AccountId,
        scopes: Scopes,
        description: String,
        lifetime: Option<Duration>,
    ) -> Result<(TokenRecord, BearerToken), CredentialError> {
        let _changing = self.0.changing.lock().await;
        let key = self.key().await?;
        let token = BearerToken::random()?;
        let now = self.0.directory.now_ns();
        let lifetime = lifetime.map(|it| u64::try_from(it.as_nanos()).unwrap_or(u64::MAX));
        let record = TokenRecord {
            id: token.id(),
            account,
            scopes,
            hash: token.hash(&key),
            description,
            created_at_ns: now,
            expires_at_ns: lifetime.map(|lifetime| now.saturating_add(lifetime)),
            last_used_at_ns: None,
            is_expired: false,
        };
        let made = self.0.store.create_token(record).await;
        self.refill().await;
        Ok((made?, token))
    }

    /// Makes an access key for an account. Returns it with its secret, as the store has it.
    ///
    /// # Errors
    ///
    /// The key of the seals cannot be made; errors of the store.
    pub(crate) async fn create_access_key(
        &self,
        account: AccountId,
    ) -> Result<(AccessKey, SecretAccessKey), CredentialError> {
        let _changing = self.0.changing.lock().await;
        let key = self.key().await?;
        let sealer = Sealer::new(&key);
        let mut random = [0; 16];
        varve_store::fill_random(&mut random)?;
        let id = AccessKeyId::from_low_bits(random);
        let made = AccessKeyRecord {
            id,
            account,
            created_at_ns: now_ns(),
            secret: sealer.seal(id, account, &SecretAccessKey::random()?)?,
        };
        self.0.store.create_access_key(made).await?;
        // Nobody gets a secret that signs nothing later.
        let record = self.0.store.access_key(id).await?;
        let record = record.ok_or(varve_store::Error::NotFound {
            what: "access key",
            name: id.to_string(),
        })?;
        let opened = sealer.open(&record);
        let secret = opened.map_err(|source| CredentialError::Seal { id, source })?;
        let is_usable = true;
        Ok((AccessKey { record, is_usable }, secret))
    }

    /// The access keys of an account, the oldest first.
    ///
    /// # Errors
    ///
    /// Errors of reading the catalog.
    pub(crate) async fn access_keys_of(
        &self,
        account: AccountId,
    ) -> Result<Vec<AccessKey>, varve_store::Error> {
        let mut keys = self.0.store.access_keys().await?;
        keys.retain(|key| key.account == account);
        keys.sort_unstable_by_key(|key| (key.created_at_ns, key.id));
        Ok(keys.into_iter().map(|key| self.shown(key)).collect())
    }

    /// The access key of that id.
    ///
    /// # Errors
    ///
    /// Errors of reading the catalog.
    pub(crate) async fn access_key(
        &self,
        id: AccessKeyId,
    ) -> Result<Option<AccessKey>, varve_store::Error> {
        let found = self.0.store.access_key(id).await?;
        Ok(found.map(|record| self.shown(record)))
    }

    fn shown(&self, record: AccessKeyRecord) -> AccessKey {
        let is_usable = open(self.sealer().as_ref(), &record).is_ok();
        AccessKey { record, is_usable }
    }

    fn sealer(&self) -> Option<Sealer> {
        self.0.directory.key().as_ref().map(Sealer::new)
    }

    /// The key of tickets, made if it is not there.
    ///
    /// # Errors
    ///
    /// There are no accounts: with the key, the daemon would know only root and its own user. The
    /// key cannot be made.
    pub(crate) async fn ticket_key(&self) -> Result<HashKey, CredentialError> {
        let _changing = self.0.changing.lock().await;
        if self.0.directory.is_open_to_all() {
            return Err(TicketError::NoAccounts.into());
        }
        self.key().await
    }

    /// The key, made if it is not there.
    async fn key(&self) -> Result<HashKey, CredentialError> {
        if let Some(key) = self.0.directory.key() {
            return Ok(key);
        }
        let is_in_use =
            self.0.directory.has_tokens() || !self.0.store.access_keys().await?.is_empty();
        let key = match self.read_key().await? {
            Some(key) => key,
            // Another key would make them invalid for ever.
            None if is_in_use => {
                let path = self.0.key_file.clone();
                return Err(KeyError::Missing { path }.into());
            }
            None => {
                let file = self.0.key_file.clone();
                let made = spawn_blocking(move || key::create(&file)).await;
                made.map_err(|_| varve_store::Error::Closing)??
            }
        };
        self.0.directory.set_key(key.clone());
        Ok(key)
    }

    /// Writes to the store which tokens have expired, and when tokens were used last. Does not end.
    pub(crate) async fn keep_tokens(&self) {
        loop {
            time::sleep(EXPIRY_EVERY).await;
            if self.0.directory.is_stale() {
                let _changing = self.0.changing.lock().await;
                self.refill().await;
            }
            let due = self.0.directory.tokens_to_write(LAST_USE_EVERY);
            // In groups, so that nobody waits long to revoke one.
            for group in due.chunks(TOKENS_A_CHANGE) {
                let group: HashMap<_, _> = group.iter().copied().collect();
                let ids = group.keys().copied().collect();
                let write = self.0.store.update_tokens(ids, move |mut record| {
                    if let Some((expired, used_at_ns)) = group.get(&record.id) {
                        record.is_expired |= expired;
                        record.last_used_at_ns = record.last_used_at_ns.max(*used_at_ns);
                    }
                    record
                });
                if let Err(error) = self.change(write).await {
                    warn!(%error, "tokens cannot be updated");
                    break;
                }
            }
        }
    }
}

fn open(sealer: Option<&Sealer>, record: &AccessKeyRecord) -> Result<SecretAccessKey, SealError> {
    sealer.ok_or(SealError::NoKey)?.open(record)
}
