//! `snapctl remote`.

use std::{
    fs, io,
    path::{self, Path, PathBuf},
};

use clap::{Args, Subcommand};
use serde::Serialize;
use varve_client::{Client, Endpoint, Error, ErrorKind, Remote, TokenSecret};

use crate::{
    Options, authorities,
    exit::Failure,
    output::{self, Output},
};

/// Commands of `remote`.
#[derive(Debug, Subcommand)]
pub(crate) enum Remotes {
    /// Give another daemon a name, for `copy create --from`
    #[command(alias = "add")]
    Create(Create),
    /// List the remotes
    #[command(visible_alias = "ls")]
    List,
    /// Show a remote
    #[command(visible_alias = "get")]
    Show {
        /// The name
        name: String,
    },
    /// Delete a remote
    #[command(visible_alias = "rm", alias = "remove")]
    Delete {
        /// The name
        name: String,
        /// The account that it belongs to: name, alias or id [default: the administrator's]
        #[arg(long)]
        account: Option<String>,
    },
}

#[derive(Debug, Args)]
#[command(after_long_help = "\
The daemon that copies reads the files at each connect, so they may be renewed. They are files of \
its machine; a relative path is \
relative to the directory in which snapctl runs.")]
pub(crate) struct Create {
    /// Name of the remote: letters, digits and . _ - / + @
    name: String,
    /// Its endpoint, as seen from the daemon that copies: https://HOST:PORT, unix:PATH or
    /// http://HOST:PORT
    remote_endpoint: String,
    /// CA certificates to verify it with (PEM) [default: the daemon's copies.tls_ca]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Client certificate (PEM); needs --key [default: the daemon's copies.tls_cert]
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// Private key of the client certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// File with the token to show it; only the daemon's user may have access to it
    #[arg(long, value_name = "FILE")]
    remote_token_file: Option<PathBuf>,
    /// Account whose copies come from it: name, alias or id [default: the administrator's]
    #[arg(long)]
    account: Option<String>,
    /// Allow plain HTTP over a network, where others can read the content
    #[arg(long)]
    allow_plaintext: bool,
}

/// A remote as JSON.
#[derive(Debug, Serialize)]
struct RemoteJson<'a> {
    name: &'a str,
    endpoint: &'a str,
    allow_plaintext: bool,
    tls_ca: Option<String>,
    tls_cert: Option<String>,
    tls_key: Option<String>,
    token_file: Option<String>,
    /// `null` from daemons without accounts.
    owner: Option<&'a str>,
    created_at: Option<String>,
}

impl<'a> From<&'a Remote> for RemoteJson<'a> {
    fn from(remote: &'a Remote) -> Self {
        let text = |path: &PathBuf| path.display().to_string();
        let identity = remote.tls_identity.as_ref();
        Self {
            name: &remote.name,
            endpoint: &remote.endpoint,
            allow_plaintext: remote.allow_plaintext,
            tls_ca: remote.tls_ca.as_ref().map(text),
            tls_cert: identity.map(|(cert, _)| text(cert)),
            tls_key: identity.map(|(_, key)| text(key)),
            token_file: remote.token_file.as_ref().map(text),
            owner: output::owner(&remote.owner),
            created_at: remote.created_at.and_then(output::rfc3339),
        }
    }
}

/// The output of `remote list` for programs.
#[derive(Debug, Serialize)]
struct ListJson<'a> {
    remotes: Vec<RemoteJson<'a>>,
}

/// The output of `remote delete` for programs.
#[derive(Debug, Serialize)]
struct RemovedJson<'a> {
    name: &'a str,
}

impl Remotes {
    pub(crate) async fn run(self, options: &Options) -> Result<(), Failure> {
        let client = options.connect().await?;
        match self {
            Self::Create(create) => create.run(&client, options).await,
            Self::List => list(&client.remotes().await?, options),
            Self::Show { name } => {
                let remotes = client.remotes().await?;
                let remote = remotes.iter().find(|remote| remote.name == name);
                let remote = remote.ok_or_else(|| {
                    let what = format!("show remote {name}");
                    let why =
                        format!("remote {name:?} not found; `snapctl remote list` lists them");
                    Error::new(ErrorKind::NotFound, what, why)
                })?;
                show(remote, options)
            }
            Self::Delete { name, account } => {
                let account = account.unwrap_or_default();
                client.remove_remote(&name, &account).await?;
                if options.output == Output::Json {
                    return output::json(&RemovedJson { name: &name });
                }
                options.remark(format_args!("deleted remote {name}"));
                Ok(())
            }
        }
    }
}

impl Create {
    async fn run(self, client: &Client, options: &Options) -> Result<(), Failure> {
        let absolute = |path: PathBuf| {
            let absolute = path::absolute(&path);
            absolute.map_err(|error| Error::file(format!("find {}", path.display()), error))
        };
        // The path of an error would show it.
        if let Some(file) = &self.remote_token_file
            && TokenSecret::is_like(&file.to_string_lossy())
            && !file.exists()
        {
            let why = "this is a token; --remote-token-file takes the file that has it";
            return Err(Error::new(ErrorKind::Invalid, "read a token", why).into());
        }
        // The files are on the daemon's machine, so snapctl can check for them only if that is this
        // machine.
        if options.endpoint()?.as_ref().is_none_or(Endpoint::is_unix) {
            let files = [
                self.ca.as_deref(),
                self.cert.as_deref(),
                self.key.as_deref(),
                self.remote_token_file.as_deref(),
            ];
            for file in files.into_iter().flatten() {
                check_there(file)?;
            }
            if let Some(ca) = &self.ca {
                check_authorities(ca)?;
            }
        }
        let identity = match self.cert.zip(self.key) {
            Some((cert, key)) => Some((absolute(cert)?, absolute(key)?)),
            None => None,
        };
        let remote = Remote {
            name: self.name,
            endpoint: self.remote_endpoint,
            allow_plaintext: self.allow_plaintext,
            tls_ca: self.ca.map(absolute).transpose()?,
            tls_identity: identity,
            token_file: self.remote_token_file.map(absolute).transpose()?,
            owner: self.account.unwrap_or_default(),
            created_at: None,
        };
        let added = client.add_remote(remote).await?;
        show(&added, options)
    }
}

fn check_there(file: &Path) -> Result<(), Error> {
    match fs::metadata(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(Error::file(format!("read {}", file.display()), error))
        }
        // The daemon may be able to read a file that snapctl cannot read.
        _ => Ok(()),
    }
}

/// Checks that the file has a certificate, if it can be read here.
fn check_authorities(file: &Path) -> Result<(), Error> {
    match authorities::read(file) {
        Err(error) if error.kind() == ErrorKind::Invalid => Err(error),
        _ => Ok(()),
    }
}

fn show(remote: &Remote, options: &Options) -> Result<(), Failure> {
    if options.output == Output::Json {
        return output::json(&RemoteJson::from(remote));
    }
    let path = |path: &PathBuf| path.display().to_string();
    let mut facts = vec![
        ("Name", remote.name.clone()),
        ("Endpoint", remote.endpoint.clone()),
    ];
    let authorities = remote.tls_ca.iter();
    facts.extend(authorities.map(|file| ("Authorities", path(file))));
    if let Some((cert, key)) = &remote.tls_identity {
        facts.extend([("Certificate", path(cert)), ("Key", path(key))]);
    }
    let token = remote.token_file.iter();
    facts.extend(token.map(|file| ("Token file", path(file))));
    let owner = output::other_owner(&remote.owner);
    facts.extend(owner.map(|owner| ("Owner", owner)));
    if remote.allow_plaintext {
        facts.push(("Plaintext", "allowed".to_owned()));
    }
    let added = remote.created_at.iter();
    facts.extend(added.map(|time| ("Created", output::time(*time))));
    output::write(&output::facts(&facts))
}

fn list(remotes: &[Remote], options: &Options) -> Result<(), Failure> {
    if options.output == Output::Json {
        return output::json(&ListJson {
            remotes: remotes.iter().map(RemoteJson::from).collect(),
        });
    }
    let owner = output::owner_heading(remotes.iter().map(|remote| &*remote.owner));
    let mut table = output::table(
        &[
            "NAME",
            "ENDPOINT",
            owner,
            "+AUTHORITIES",
            "+CERTIFICATE",
            "+ADDED",
        ],
        options.output,
    );
    for remote in remotes {
        let path =
            |path: Option<&PathBuf>| path.map_or_else(String::new, |it| it.display().to_string());
        let cert = remote.tls_identity.as_ref().map(|(cert, _)| cert);
        table.add_row([
            remote.name.clone(),
            remote.endpoint.clone(),
            remote.owner.clone(),
            path(remote.tls_ca.as_ref()),
            path(cert),
            remote.created_at.map(output::time).unwrap_or_default(),
        ]);
    }
    table.write("remotes")
}
