//! `snapctl account token`.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use varve_client::{Client, CreatedToken, NewToken, Token, TokenScope};

use super::{scope_words, scopes};
use crate::{
    Options,
    age::parse_age,
    exit::Failure,
    output::{self, Output},
    token_file::NewSecretFile,
};

/// Commands of `account token`.
#[derive(Debug, Subcommand)]
pub(crate) enum Tokens {
    /// Make a token, and print it: this is the only time that it is shown
    Create(Create),
    /// List the tokens of an account, the oldest first, without their secrets
    #[command(visible_alias = "ls")]
    List {
        /// Id, name or alias [default: your own account]
        account: Option<String>,
    },
    /// Revoke a token; calls that began with it are completed
    #[command(visible_alias = "rm", alias = "delete")]
    Revoke {
        /// Its id
        #[arg(value_name = "TOKEN-ID")]
        token: String,
    },
}

/// Arguments of `account token create`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Standard output has nothing but the token. --output-file makes a file that only its owner can read, \
as --token-file needs it.")]
pub(crate) struct Create {
    /// Id, name or alias [default: your own account]
    account: Option<String>,
    /// A use that it allows; may be given more than once [default: everything that the account may]
    #[arg(long = "scope", value_enum, value_name = "SCOPE")]
    scopes: Vec<Scope>,
    /// The time until it expires, as in 12h or 90d [default: it does not expire]
    #[arg(long, value_name = "TIME", value_parser = parse_age)]
    expires: Option<Duration>,
    /// A note, to tell it from others
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true
    )]
    description: String,
    /// Write the token to this new file, and not to standard output
    #[arg(long, value_name = "FILE")]
    output_file: Option<PathBuf>,
}

/// The scopes of tokens.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Scope {
    /// See and read everything that the account may see
    Read,
    /// Change volumes
    Volumes,
    /// Change snapshots and images
    Images,
    /// Copy snapshots from and to other stores
    Copy,
}

impl From<Scope> for TokenScope {
    fn from(scope: Scope) -> Self {
        match scope {
            Scope::Read => Self::Read,
            Scope::Volumes => Self::Volumes,
            Scope::Images => Self::Images,
            Scope::Copy => Self::Copy,
        }
    }
}

/// A token as JSON.
#[derive(Debug, Serialize)]
struct TokenJson<'a> {
    id: &'a str,
    account: &'a str,
    /// Empty: everything that the account may.
    scopes: Vec<&'static str>,
    description: &'a str,
    created_at: Option<String>,
    expires_at: Option<String>,
    last_used_at: Option<String>,
}

impl<'a> From<&'a Token> for TokenJson<'a> {
    fn from(token: &'a Token) -> Self {
        Self {
            id: &token.id,
            account: &token.account,
            scopes: scope_words(&token.scopes),
            description: &token.description,
            created_at: output::rfc3339(token.created_at),
            expires_at: token.expires_at.and_then(output::rfc3339),
            last_used_at: token.last_used_at.and_then(output::rfc3339),
        }
    }
}

/// The output of `account token create` for programs.
#[derive(Serialize)]
struct CreatedJson<'a> {
    token: TokenJson<'a>,
    /// `null` if it was written to a file.
    secret: Option<&'a str>,
}

impl<'a> CreatedJson<'a> {
    fn new(token: &'a Token, secret: Option<&'a str>) -> Self {
        Self {
            token: TokenJson::from(token),
            secret,
        }
    }
}

/// The output of `account token list` for programs.
#[derive(Debug, Serialize)]
struct ListJson<'a> {
    tokens: Vec<TokenJson<'a>>,
}

impl Tokens {
    pub(crate) async fn run(self, options: &Options) -> Result<(), Failure> {
        match self {
            Self::Create(create) => create.run(options).await,
            Self::List { account } => {
                let client = options.connect().await?;
                list(&client.tokens(account.as_deref()).await?, options)
            }
            Self::Revoke { token } => {
                let client = options.connect().await?;
                let revoked = client.revoke_token(&token).await?;
                if options.output == Output::Json {
                    return output::json(&TokenJson::from(&revoked));
                }
                let of = &revoked.account;
                output::line(format_args!("revoked {} of account {of}", revoked.id))
            }
        }
    }
}

impl Create {
    async fn run(self, options: &Options) -> Result<(), Failure> {
        // First, so that no token is made for which there is no place.
        let file = self.output_file.map(NewSecretFile::create).transpose()?;
        let client = options.connect().await?;
        let new = NewToken {
            account: self.account,
            scopes: self.scopes.into_iter().map(TokenScope::from).collect(),
            description: self.description,
            lifetime: self.expires,
        };
        let created = client.create_token(new).await?;
        let is_in_file = file.is_some();
        if let Err(failure) = hand_over(&created, file, options) {
            return Err(take_back(&client, &created.token, failure, options).await);
        }
        if is_in_file && options.output == Output::Json {
            return output::json(&CreatedJson::new(&created.token, None));
        }
        let CreatedToken { token, .. } = &created;
        let until = match token.expires_at {
            Some(time) => format!("expires at {}", output::time(time)),
            None => "does not expire".to_owned(),
        };
        options.remark(format_args!(
            "token {} of account {} allows {} and {until}; it is not shown again",
            token.id,
            token.account,
            scopes(&token.scopes)
        ));
        Ok(())
    }
}

/// Writes the secret to the file, or else to standard output.
fn hand_over(
    created: &CreatedToken,
    file: Option<NewSecretFile>,
    options: &Options,
) -> Result<(), Failure> {
    if let Some(file) = file {
        return Ok(file.write(created.secret.expose())?);
    }
    let secret = created.secret.expose();
    match options.output {
        Output::Json => output::json(&CreatedJson::new(&created.token, Some(secret))),
        Output::Table | Output::Wide => output::line(secret),
    }
}

/// Revokes a token whose secret nobody has got.
async fn take_back(client: &Client, token: &Token, why: Failure, options: &Options) -> Failure {
    if let Err(error) = client.revoke_token(&token.id).await {
        options.remark(format_args!("token {} stays, unused: {error}", token.id));
    }
    why
}

fn list(tokens: &[Token], options: &Options) -> Result<(), Failure> {
    if options.output == Output::Json {
        return output::json(&ListJson {
            tokens: tokens.iter().map(TokenJson::from).collect(),
        });
    }
    const HEADINGS: [&str; 7] = [
        "ID",
        "+ACCOUNT",
        "SCOPES",
        "EXPIRES",
        "+CREATED",
        "+LAST USED",
        "DESCRIPTION",
    ];
    let mut table = output::table(&HEADINGS, options.output);
    for token in tokens {
        let or = |time: Option<_>, none: &str| time.map_or_else(|| none.to_owned(), output::time);
        table.add_row([
            token.id.clone(),
            token.account.clone(),
            scopes(&token.scopes),
            or(token.expires_at, "never"),
            output::time(token.created_at),
            or(token.last_used_at, "never"),
            token.description.clone(),
        ]);
    }
    table.write("tokens")
}
