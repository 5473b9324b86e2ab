//! `snapctl account access-key`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;
use varve_client::{AccessKey, Client, CreatedAccessKey};

use crate::{
    Options,
    exit::Failure,
    output::{self, Output},
    token_file::NewSecretFile,
};

/// Commands of `account access-key`.
#[derive(Debug, Subcommand)]
pub(crate) enum AccessKeys {
    /// Make an access key, and print it: this is the only time that its secret is shown
    Create(Create),
    /// List the access keys of an account, the oldest first, without their secrets
    #[command(visible_alias = "ls")]
    List {
        /// Id, name or alias [default: your own account]
        account: Option<String>,
    },
    /// Revoke an access key; calls that began with it are completed
    #[command(visible_alias = "rm", alias = "delete")]
    Revoke {
        /// Its id
        #[arg(value_name = "ACCESS-KEY-ID")]
        access_key: String,
    },
}

/// Arguments of `account access-key create`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
An account has two access keys at most: make the new one, change over to it, and revoke the old \
one. The output is a file of credentials as the AWS clients read it (AWS_SHARED_CREDENTIALS_FILE); \
--output-file makes one that only its owner can read.")]
pub(crate) struct Create {
    /// Id, name or alias [default: your own account]
    account: Option<String>,
    /// Write the access key to this new file, and not to standard output
    #[arg(long, value_name = "FILE")]
    output_file: Option<PathBuf>,
}

/// An access key as JSON.
#[derive(Debug, Serialize)]
struct AccessKeyJson<'a> {
    access_key_id: &'a str,
    account: &'a str,
    created_at: Option<String>,
    usable: bool,
}

impl<'a> From<&'a AccessKey> for AccessKeyJson<'a> {
    fn from(access_key: &'a AccessKey) -> Self {
        Self {
            access_key_id: &access_key.id,
            account: &access_key.account,
            created_at: output::rfc3339(access_key.created_at),
            usable: access_key.is_usable,
        }
    }
}

/// The output of `account access-key create` for programs.
#[derive(Serialize)]
struct CreatedJson<'a> {
    #[serde(flatten)]
    access_key: AccessKeyJson<'a>,
    /// `null` if it was written to a file.
    secret_access_key: Option<&'a str>,
}

impl<'a> CreatedJson<'a> {
    fn new(access_key: &'a AccessKey, secret_access_key: Option<&'a str>) -> Self {
        Self {
            access_key: AccessKeyJson::from(access_key),
            secret_access_key,
        }
    }
}

/// The output of `account access-key list` for programs.
#[derive(Debug, Serialize)]
struct ListJson<'a> {
    access_keys: Vec<AccessKeyJson<'a>>,
}

impl AccessKeys {
    pub(crate) async fn run(self, options: &Options) -> Result<(), Failure> {
        match self {
            Self::Create(create) => create.run(options).await,
            Self::List { account } => {
                let client = options.connect().await?;
                list(&client.access_keys(account.as_deref()).await?, options)
            }
            Self::Revoke { access_key } => {
                let client = options.connect().await?;
                let revoked = client.revoke_access_key(&access_key).await?;
                if options.output == Output::Json {
                    return output::json(&AccessKeyJson::from(&revoked));
                }
                let of = &revoked.account;
                output::line(format_args!("revoked {} of account {of}", revoked.id))
            }
        }
    }
}

impl Create {
    async fn run(self, options: &Options) -> Result<(), Failure> {
        // First, so that no access key is made for which there is no place.
        let file = self.output_file.map(NewSecretFile::create).transpose()?;
        let client = options.connect().await?;
        let created = client.create_access_key(self.account.as_deref()).await?;
        let access_key = &created.access_key;
        let is_in_file = file.is_some();
        if let Err(failure) = hand_over(&created, file, options) {
            return Err(take_back(&client, access_key, failure, options).await);
        }
        if is_in_file && options.output == Output::Json {
            return output::json(&CreatedJson::new(access_key, None));
        }
        let of = &access_key.account;
        options.remark(format_args!(
            "access key {} of account {of}; its secret is not shown again",
            access_key.id
        ));
        Ok(())
    }
}

/// Writes the access key to the file, or else to standard output.
fn hand_over(
    created: &CreatedAccessKey,
    file: Option<NewSecretFile>,
    options: &Options,
) -> Result<(), Failure> {
    let (id, secret) = (&created.access_key.id, created.secret.expose());
    let id = format!("aws_access_key_id = {id}");
    let lines = [
        "[default]",
        &id,
        &format!("aws_secret_access_key = {secret}"),
    ];
    match (file, options.output) {
        (Some(file), _) => file.write(&lines.join("\n"))?,
        (None, Output::Json) => {
            output::json(&CreatedJson::new(&created.access_key, Some(secret)))?;
        }
        (None, Output::Table | Output::Wide) => lines.iter().try_for_each(output::line)?,
    }
    Ok(())
}

/// Revokes an access key whose secret nobody has got.
async fn take_back(
    client: &Client,
    access_key: &AccessKey,
    why: Failure,
    options: &Options,
) -> Failure {
    let id = &access_key.id;
    if let Err(error) = client.revoke_access_key(id).await {
        options.remark(format_args!("access key {id} stays, unused: {error}"));
    }
    why
}

fn list(access_keys: &[AccessKey], options: &Options) -> Result<(), Failure> {
    if options.output == Output::Json {
        return output::json(&ListJson {
            access_keys: access_keys.iter().map(AccessKeyJson::from).collect(),
        });
    }
    let mut table = output::table(&["ID", "+ACCOUNT", "USABLE", "CREATED"], options.output);
    for access_key in access_keys {
        let usable = if access_key.is_usable { "yes" } else { "no" };
        table.add_row([
            access_key.id.clone(),
            access_key.account.clone(),
            usable.to_owned(),
            output::time(access_key.created_at),
        ]);
    }
    table.write("access keys")
}
