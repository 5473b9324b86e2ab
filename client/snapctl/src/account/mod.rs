//! `snapctl account` and `snapctl whoami`.

mod access_key;
mod quota;
mod token;

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use serde::Serialize;
use varve_client::{
    Account, AccountState, AccountUpdate, Client, Image, NewAccount, PublicAccessBlock, Snapshot,
    TokenScope, Volume,
};
use varve_nbd::ExportName;

use self::quota::{Block, Limit, QuotaJson, parse_limit};
use crate::{
    Options,
    exit::Failure,
    image::ImageJson,
    output::{self, Output, SnapshotJson, VolumeJson},
};

/// Commands of `account`. An account is given by its id, its name or its alias.
#[derive(Debug, Subcommand)]
pub(crate) enum Accounts {
    /// Make an account; from the first one on, the daemon refuses callers whom it does not know
    Create(Create),
    /// List the accounts, by id
    #[command(visible_alias = "ls")]
    List,
    /// Show an account
    #[command(visible_alias = "get")]
    Show {
        /// Id, name or alias
        account: String,
    },
    /// Change the name, alias, state, identities or limits of an account
    Set(Set),
    /// Refuse all calls of an account; what it owns stays
    Disable {
        /// Id, name or alias
        account: String,
    },
    /// Let an account that is disabled or read-only do everything again
    Enable {
        /// Id, name or alias
        account: String,
    },
    /// Delete an account that owns nothing, with its tokens and access keys
    #[command(visible_alias = "rm")]
    Delete {
        /// Id, name or alias
        account: String,
    },
    /// Give images, snapshots and volumes to an account, one by one
    Give(Give),
    /// Create, list and revoke tokens, which act for an account
    #[command(subcommand)]
    Token(token::Tokens),
    /// Create, list and revoke access keys, which sign requests for an account
    #[command(subcommand)]
    AccessKey(access_key::AccessKeys),
}

/// Arguments of `account create`.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Name of the account, without slashes and colons
    name: String,
    /// Its id, 12 digits [default: a random one]
    #[arg(long)]
    id: Option<String>,
    /// A second name
    #[arg(long)]
    alias: Option<String>,
    /// A caller who acts for it without a token: uid:NUMBER, gid:NUMBER, or cert:SUBJECT for a TLS
    /// client certificate, as in cert:CN=backup,O=Example; may be given more than once
    #[arg(long = "identity", value_name = "IDENTITY")]
    identities: Vec<String>,
}

/// Arguments of `account set`.
#[derive(Debug, Args)]
pub(crate) struct Set {
    /// Id, name or alias
    account: String,
    #[command(flatten)]
    change: Change,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct Change {
    /// The new name
    #[arg(long)]
    name: Option<String>,
    /// The new alias; an empty one removes it
    #[arg(long)]
    alias: Option<String>,
    /// Let it see and read, and change nothing
    #[arg(long, conflicts_with = "active")]
    read_only: bool,
    /// Let it do everything again
    #[arg(long)]
    active: bool,
    /// A caller who acts for it from now on, as in uid:1000; may be given more than once
    #[arg(long = "add-identity", value_name = "IDENTITY")]
    add_identities: Vec<String>,
    /// A caller who acts for it no longer; may be given more than once
    #[arg(long = "remove-identity", value_name = "IDENTITY")]
    remove_identities: Vec<String>,
    /// A limit from now on, or `none`: of volumes, snapshots, attached-volumes, uploads,
    /// requests-per-second, stored-bytes or images, as in stored-bytes=500G; may be given more than
    /// once
    #[arg(long = "quota", value_name = "QUOTA=LIMIT", value_parser = parse_limit)]
    quotas: Vec<Limit>,
    /// Whether it may share snapshots with everybody
    #[arg(long, value_enum, value_name = "WHAT")]
    block_public_access: Option<Block>,
    /// Whether it may share images with everybody
    #[arg(long, value_name = "true|false")]
    public_images: Option<bool>,
}

/// Arguments of `account give`.
#[derive(Debug, Args)]
pub(crate) struct Give {
    /// Id, name or alias of the account that they belong to from then on
    account: String,
    /// What to give: image/NAME, snapshot/NAME or volume/NAME, or with an id in place of the name.
    /// The name of another account's is not known: give its id
    #[arg(required = true, value_name = "IMAGE|SNAPSHOT|VOLUME")]
    gifts: Vec<String>,
}

/// An account as JSON.
#[derive(Debug, Serialize)]
struct AccountJson<'a> {
    id: &'a str,
    name: &'a str,
    alias: Option<&'a str>,
    state: &'a str,
    created_at: Option<String>,
    identities: &'a [String],
    public_access_block: &'a str,
    public_images: bool,
    /// By their names: those that have a limit or say what is used.
    quotas: BTreeMap<&'a str, QuotaJson>,
}

impl<'a> From<&'a Account> for AccountJson<'a> {
    fn from(account: &'a Account) -> Self {
        Self {
            id: &account.id,
            name: &account.name,
            alias: account.alias.as_deref(),
            state: account.state.as_str(),
            created_at: account.created_at.and_then(output::rfc3339),
            identities: &account.identities,
            public_access_block: account.public_access_block.as_str(),
            public_images: account.public_images,
            quotas: quota::in_json(&account.quotas),
        }
    }
}

/// The output of `account list` for programs.
#[derive(Debug, Serialize)]
struct ListJson<'a> {
    accounts: Vec<AccountJson<'a>>,
}

/// The output of `account give` for programs.
#[derive(Debug, Serialize)]
struct GivenJson<'a> {
    images: Vec<ImageJson<'a>>,
    snapshots: Vec<SnapshotJson<'a>>,
    volumes: Vec<VolumeJson<'a>>,
}

/// The output of `whoami` for programs.
#[derive(Debug, Serialize)]
struct WhoAmIJson<'a> {
    /// `null` if the daemon does not know the caller.
    account: Option<AccountJson<'a>>,
    identity: &'a str,
    is_administrator: bool,
    /// Empty: everything that the account may.
    scopes: Vec<&'static str>,
}

impl Accounts {
    pub(crate) async fn run(self, options: &Options) -> Result<(), Failure> {
        match self {
            // These check their arguments before they connect.
            Self::Give(give) => give.run(options).await,
            Self::Token(tokens) => tokens.run(options).await,
            Self::AccessKey(keys) => keys.run(options).await,
            Self::Create(create) => {
                let client = options.connect().await?;
                show(&client.create_account(create.into()).await?, options)
            }
            Self::List => list(&options.connect().await?.accounts().await?, options),
            Self::Show { account } => {
                let client = options.connect().await?;
                show(&client.account(&account).await?, options)
            }
            Self::Set(Set { account, change }) => {
                let client = options.connect().await?;
                let has_quotas = !change.quotas.is_empty();
                let updated = client.update_account(&account, change.into()).await?;
                show(&updated, options)?;
                if has_quotas {
                    quota::remark_on_use(&client.account(&updated.id).await?, options);
                }
                Ok(())
            }
            Self::Disable { account } => {
                set_state(&account, AccountState::Disabled, "disabled", options).await
            }
            Self::Enable { account } => {
                set_state(&account, AccountState::Active, "enabled", options).await
            }
            Self::Delete { account } => {
                let client = options.connect().await?;
                done("deleted", &client.delete_account(&account).await?, options)
            }
        }
    }
}

impl From<Create> for NewAccount {
    fn from(create: Create) -> Self {
        Self {
            name: create.name,
            id: create.id,
            alias: create.alias,
            identities: create.identities,
        }
    }
}

impl From<Change> for AccountUpdate {
    fn from(change: Change) -> Self {
        let state = match (change.read_only, change.active) {
            (true, _) => Some(AccountState::ReadOnly),
            (false, true) => Some(AccountState::Active),
            (false, false) => None,
        };
        Self {
            name: change.name,
            alias: change.alias,
            state,
            add_identities: change.add_identities,
            remove_identities: change.remove_identities,
            public_access_block: change.block_public_access.map(PublicAccessBlock::from),
            public_images: change.public_images,
            quotas: change.quotas.into_iter().map(Limit::into).collect(),
        }
    }
}

async fn set_state(
    account: &str,
    state: AccountState,
    what: &str,
    options: &Options,
) -> Result<(), Failure> {
    let update = AccountUpdate {
        state: Some(state),
        ..AccountUpdate::default()
    };
    let client = options.connect().await?;
    let updated = client.update_account(account, update).await?;
    done(what, &updated, options)
}

/// An image, a snapshot or a volume that was given away.
enum Given {
    Image(Image),
    Snapshot(Snapshot),
    Volume(Volume),
}

impl Give {
    /// Stops at the first one that cannot be given.
    async fn run(self, options: &Options) -> Result<(), Failure> {
        let mut gifts = Vec::with_capacity(self.gifts.len());
        for gift in &self.gifts {
            gifts.push(ExportName::parse(gift).ok_or_else(|| {
                let what = format!("give {gift}");
                Failure::usage(what, "write image/NAME, snapshot/NAME or volume/NAME")
            })?);
        }
        let client = options.connect().await?;
        let account = client.account(&self.account).await?;
        let mut all = Vec::with_capacity(gifts.len());
        for gift in gifts {
            let given = give(&client, &gift, &account).await?;
            if options.output != Output::Json {
                let (noun, name, id) = match &given {
                    Given::Image(image) => ("image", &image.name, &image.id),
                    Given::Snapshot(snapshot) => ("snapshot", &snapshot.name, &snapshot.id),
                    Given::Volume(volume) => ("volume", &volume.name, &volume.id),
                };
                let to = format!("{} ({})", account.name, account.id);
                output::line(format_args!("gave {noun} {name} ({id}) to {to}"))?;
            }
            all.push(given);
        }
        if options.output != Output::Json {
            return Ok(());
        }
        let snapshots = all.iter().filter_map(|given| match given {
            Given::Snapshot(snapshot) => Some(SnapshotJson::from(snapshot)),
            Given::Image(_) | Given::Volume(_) => None,
        });
        let images = all.iter().filter_map(|given| match given {
            Given::Image(image) => Some(ImageJson::from(image)),
            Given::Snapshot(_) | Given::Volume(_) => None,
        });
        let volumes = all.iter().filter_map(|given| match given {
            Given::Volume(volume) => Some(VolumeJson::from(volume)),
            Given::Image(_) | Given::Snapshot(_) => None,
        });
        output::json(&GivenJson {
            images: images.collect(),
            snapshots: snapshots.collect(),
            volumes: volumes.collect(),
        })
    }
}

async fn give(client: &Client, gift: &ExportName<'_>, to: &Account) -> Result<Given, Failure> {
    Ok(match gift {
        ExportName::Image(key) => Given::Image(client.give_image(key, &to.id).await?),
        ExportName::Snapshot(key) => Given::Snapshot(client.give_snapshot(key, &to.id).await?),
        ExportName::Volume(key) => Given::Volume(client.give_volume(key, &to.id).await?),
    })
}

fn show(account: &Account, options: &Options) -> Result<(), Failure> {
    if options.output == Output::Json {
        return output::json(&AccountJson::from(account));
    }
    let mut facts = vec![("Name", account.name.clone()), ("Id", account.id.clone())];
    facts.extend(account.alias.iter().map(|alias| ("Alias", alias.clone())));
    facts.push(("State", account.state.as_str().to_owned()));
    let created = account.created_at.iter();
    facts.extend(created.map(|time| ("Created", output::time(*time))));
    let identities = account.identities.iter();
    facts.extend(identities.map(|identity| ("Identity", identity.clone())));
    facts.extend(quota::facts(account));
    output::write(&output::facts(&facts))
}

fn list(accounts: &[Account], options: &Options) -> Result<(), Failure> {
    if options.output == Output::Json {
        return output::json(&ListJson {
            accounts: accounts.iter().map(AccountJson::from).collect(),
        });
    }
    const HEADINGS: [&str; 6] = ["NAME", "ID", "STATE", "ALIAS", "+CREATED", "+IDENTITIES"];
    let mut table = output::table(&HEADINGS, options.output);
    for account in accounts {
        table.add_row([
            account.name.clone(),
            account.id.clone(),
            account.state.as_str().to_owned(),
            account.alias.clone().unwrap_or_default(),
            account.created_at.map(output::time).unwrap_or_default(),
            // A subject may have commas and spaces.
            account.identities.join("; "),
        ]);
    }
    table.write("accounts")
}

fn done(what: &str, account: &Account, options: &Options) -> Result<(), Failure> {
    match options.output {
        Output::Json => output::json(&AccountJson::from(account)),
        Output::Table | Output::Wide => {
            output::line(format_args!("{what} {} ({})", account.name, account.id))
        }
    }
}

/// The scopes of a token, for people.
fn scopes(scopes: &[TokenScope]) -> String {
    if scopes.is_empty() {
        return "all".to_owned();
    }
    let words: Vec<_> = scopes.iter().map(|scope| scope.as_str()).collect();
    words.join(" ")
}

/// The scopes of a token, for programs.
fn scope_words(scopes: &[TokenScope]) -> Vec<&'static str> {
    scopes.iter().map(|scope| scope.as_str()).collect()
}

/// `snapctl whoami`.
pub(crate) async fn whoami(options: &Options) -> Result<(), Failure> {
    let client = options.connect().await?;
    let me = client.who_am_i().await?;
    if options.output == Output::Json {
        return output::json(&WhoAmIJson {
            account: me.account.as_ref().map(AccountJson::from),
            identity: &me.identity,
            is_administrator: me.is_administrator,
            scopes: scope_words(&me.scopes),
        });
    }
    let account = match &me.account {
        Some(account) => format!("{} ({})", account.name, account.id),
        None => "none: the daemon does not know you".to_owned(),
    };
    let mut facts = vec![("Account", account)];
    let state = me.account.iter();
    facts.extend(state.map(|account| ("State", account.state.as_str().to_owned())));
    facts.push(("Identity", me.identity));
    facts.extend(me.account.iter().flat_map(quota::facts));
    if me.account.is_some() {
        let is_administrator = if me.is_administrator { "yes" } else { "no" };
        facts.push(("Administrator", is_administrator.to_owned()));
        facts.push(("Scopes", scopes(&me.scopes)));
    }
    output::write(&output::facts(&facts))
}
