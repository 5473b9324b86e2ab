//! `snapctl volume`.

use std::{collections::BTreeMap, path::PathBuf};

use clap::{Args, Subcommand};
use futures::{StreamExt, TryStreamExt};
use serde::Serialize;
use varve_client::{Attachment, Client, NewClone, NewVolume, VolumeFilter, VolumeStatus};
use varve_device::NbdAddress;
use varve_nbd::{ExportName, ServerUri};

use crate::{
    Options,
    exit::Failure,
    import::parse_tag,
    listing::Listing,
    output::{self, Output, VolumeJson},
    size::parse_size,
    token_file::NewSecretFile,
};

/// Arguments of `volume`. A volume is given by its name or its id, with or without the prefix
/// `volume/`.
#[derive(Debug, Subcommand)]
pub(crate) enum Volume {
    /// Make a volume, of zeros or with the content of a snapshot
    Create(Create),
    /// List volumes, by owner, then by name
    #[command(visible_alias = "ls")]
    List(Listing),
    /// Show a volume
    #[command(visible_alias = "get")]
    Show {
        /// Name or id
        volume: String,
    },
    /// Make a volume with the content of a snapshot, or with the current content of a volume
    ///
    /// Cloning a snapshot takes no time. Cloning a volume first checkpoints the data that was
    /// written to it since its last snapshot, if there is any.
    Clone(Clone),
    /// Grow a volume, attached or not; NBD clients see the new size when they reconnect
    Resize {
        /// Name or id
        volume: String,
        /// New size, as in 512M or 10G, or in bytes; not less than the current size
        #[arg(value_parser = parse_size)]
        size: u64,
    },
    /// Attach a volume, and print the addresses of its export
    Attach(Attach),
    /// Detach a volume
    Detach {
        /// Name or id
        volume: String,
    },
    /// Delete volumes that are not attached, one by one
    #[command(visible_alias = "rm")]
    Delete {
        /// Names or ids
        #[arg(required = true, value_name = "VOLUME")]
        volumes: Vec<String>,
    },
    /// Set and remove tags of a volume
    Tag(Tag),
}

/// Arguments of `volume create`.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Name of the volume
    #[arg(required_unless_present = "name_option")]
    name: Option<String>,
    /// Name of the volume, as an option
    #[arg(
        id = "name_option",
        long = "name",
        value_name = "NAME",
        conflicts_with = "name"
    )]
    name_option: Option<String>,
    /// Size, as in 512M or 10G, or in bytes [default: that of the snapshot]
    #[arg(long, value_parser = parse_size)]
    size: Option<u64>,
    /// Name or id of the snapshot with the volume's first content [default: zeros]
    #[arg(long, value_name = "SNAPSHOT")]
    from: Option<String>,
    /// A tag for the volume; may be given more than once
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = parse_tag)]
    tags: Vec<(String, String)>,
}

/// Arguments of `volume clone`.
#[derive(Debug, Args)]
pub(crate) struct Clone {
    /// A snapshot or a volume: an id, or a name, with the prefix snapshot/ or volume/ if both exist
    source: String,
    /// Name of the new volume
    #[arg(long)]
    name: String,
    /// Size, as in 512M or 10G, or in bytes [default: that of the source]
    #[arg(long, value_parser = parse_size)]
    size: Option<u64>,
    /// A tag for the new volume; may be given more than once
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = parse_tag)]
    tags: Vec<(String, String)>,
}

/// Arguments of `volume attach`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
A ticket is for the host of a guest, which needs no account then: it opens this export and nothing \
else. Detaching the volume, or attaching it again with --force, ends it.")]
pub(crate) struct Attach {
    /// Name or id
    volume: String,
    /// Take over a volume that is attached already, and disconnect its clients
    #[arg(long)]
    force: bool,
    /// Print a name of the export and addresses that are secrets: whoever has one reads and writes
    /// the volume, until it is detached
    #[arg(long)]
    ticket: bool,
    /// Write the secret name to this new file, for `snapctl device map --ticket-file`, and print
    /// the addresses of the daemon
    #[arg(long, value_name = "FILE", requires = "ticket")]
    output_file: Option<PathBuf>,
}

/// Arguments of `volume tag`.
#[derive(Debug, Args)]
pub(crate) struct Tag {
    /// Name or id
    volume: String,
    /// Tags to set
    #[arg(value_name = "KEY=VALUE", value_parser = parse_tag, required_unless_present = "remove")]
    tags: Vec<(String, String)>,
    /// A tag to remove; may be given more than once
    #[arg(long, value_name = "KEY")]
    remove: Vec<String>,
}

/// The output of `volume list` for programs.
#[derive(Debug, Serialize)]
struct ListJson<'a> {
    volumes: Vec<VolumeJson<'a>>,
}

/// The output of `volume attach` for programs.
#[derive(Serialize)]
struct AttachJson<'a> {
    volume: VolumeJson<'a>,
    /// `null` if it was written to a file.
    export: Option<&'a str>,
    nbd_uris: &'a [String],
}

impl Volume {
    pub(crate) async fn run(self, options: &Options) -> Result<(), Failure> {
        if let Self::Create(create) = &self {
            create.check()?;
        }
        let client = options.connect().await?;
        match self {
            Self::Create(mut create) => {
                if let Some(from) = &create.from {
                    create.from = Some(options.named.snapshot(&client, from).await?);
                }
                show(&client.create_volume(create.into()).await?, options)
            }
            Self::Clone(clone) => show(&client.clone_volume(clone.into()).await?, options),
            Self::Resize { volume, size } => {
                let volume = options.named.volume(&client, &volume).await?;
                show(&client.resize_volume(&volume, size).await?, options)
            }
            Self::List(listing) => list(listing, &client, options).await,
            Self::Show { volume } => {
                let volume = options.named.volume(&client, &volume).await?;
                show(&client.volume(&volume).await?, options)
            }
            Self::Attach(attach) => attach.run(&client, options).await,
            Self::Detach { volume } => {
                let volume = options.named.volume(&client, &volume).await?;
                let detached = client.detach_volume(&volume).await?;
                done("detached", &detached, options)
            }
            Self::Delete { volumes } => delete(&volumes, &client, options).await,
            Self::Tag(Tag {
                volume,
                tags,
                remove,
            }) => {
                let volume = options.named.volume(&client, &volume).await?;
                let tags = BTreeMap::from_iter(tags);
                show(&client.tag_volume(&volume, tags, remove).await?, options)
            }
        }
    }
}

impl Attach {
    async fn run(self, client: &Client, options: &Options) -> Result<(), Failure> {
        // First, so that no ticket is made for which there is no place.
        let file = self.output_file.map(NewSecretFile::create).transpose()?;
        let volume = options.named.volume(client, &self.volume).await?;
        if !self.ticket {
            let attached = client.attach_volume(&volume, self.force).await?;
            return match options.output {
                Output::Json => attached_json(&attached, Some(&attached.export)),
                Output::Table | Output::Wide => output::write(&how_to_use(&attached)),
            };
        }
        let mut attached = client
            .attach_volume_with_ticket(&volume, self.force)
            .await?;
        let mut export = Some(attached.export.clone());
        if let Some(file) = file {
            if let Err(error) = file.write(&attached.export) {
                options.remark("the volume is attached, and nobody has its ticket");
                return Err(error.into());
            }
            export = None;
            let uris = attached.nbd_uris.iter();
            let servers = uris.filter_map(|uri| ServerUri::of_export(uri).ok());
            attached.nbd_uris = servers.map(|server| server.to_string()).collect();
        }
        if options.output == Output::Json {
            attached_json(&attached, export.as_deref())?;
        } else {
            let volume = &attached.volume;
            let mut facts = vec![("Volume", format!("{} ({})", volume.name, volume.id))];
            facts.extend(export.map(|export| ("Export", export)));
            facts.extend(attached.nbd_uris.iter().map(|uri| ("NBD", uri.clone())));
            output::write(&output::facts(&facts))?;
        }
        options.remark(
            "the name of the export is a secret: whoever has it uses the volume until it is \
             detached; it is not shown again",
        );
        Ok(())
    }
}

fn attached_json(attached: &Attachment, export: Option<&str>) -> Result<(), Failure> {
    output::json(&AttachJson {
        volume: VolumeJson::from(&attached.volume),
        export,
        nbd_uris: &attached.nbd_uris,
    })
}

impl Create {
    fn check(&self) -> Result<(), Failure> {
        if self.size.is_some() || self.from.is_some() {
            return Ok(());
        }
        let name = self.name.as_ref().or(self.name_option.as_ref());
        let what = format!("create volume {}", name.map_or("", String::as_str));
        Err(Failure::usage(what, "give --size, or --from SNAPSHOT"))
    }
}

impl From<Create> for NewVolume {
    fn from(create: Create) -> Self {
        Self {
            // Clap ensures that one of the two is given.
            name: create.name.or(create.name_option).unwrap_or_default(),
            size_bytes: create.size,
            from_snapshot: create.from,
            tags: BTreeMap::from_iter(create.tags),
        }
    }
}

impl From<Clone> for NewClone {
    fn from(clone: Clone) -> Self {
        Self {
            source: clone.source,
            name: clone.name,
            size_bytes: clone.size,
            tags: BTreeMap::from_iter(clone.tags),
        }
    }
}

/// Stops at the first volume that cannot be deleted.
async fn delete(names: &[String], client: &Client, options: &Options) -> Result<(), Failure> {
    let mut all = Vec::with_capacity(names.len());
    for name in names {
        let name = options.named.volume(client, name).await?;
        let deleted = client.delete_volume(&name).await?;
        if options.output != Output::Json {
            done("deleted", &deleted, options)?;
        }
        all.push(deleted);
    }
    match (&*all, options.output) {
        ([one], Output::Json) => done("deleted", one, options),
        (several, Output::Json) => output::json(&ListJson {
            volumes: several.iter().map(VolumeJson::from).collect(),
        }),
        _ => Ok(()),
    }
}

async fn list(listing: Listing, client: &Client, options: &Options) -> Result<(), Failure> {
    let (limit, tags) = (listing.limit(), listing.tags());
    let filter = VolumeFilter {
        name_prefix: listing.name_prefix,
        tags,
        owner: listing.owner,
    };
    let volumes: Vec<_> = client.volumes(filter).take(limit).try_collect().await?;
    if options.output == Output::Json {
        return output::json(&ListJson {
            volumes: volumes.iter().map(VolumeJson::from).collect(),
        });
    }
    let owner = output::owner_heading(volumes.iter().map(|volume| &*volume.owner));
    let headings = [
        "NAME", "ID", owner, ">SIZE", "ATTACHED", "+CREATED", "+TAGS",
    ];
    let mut table = output::table(&headings, options.output);
    for volume in &volumes {
        table.add_row([
            volume.name.clone(),
            volume.id.clone(),
            volume.owner.clone(),
            output::size(volume.size_bytes),
            volume
                .attached_at
                .map_or_else(|| "-".to_owned(), output::time),
            output::time(volume.created_at),
            output::tags(&volume.tags),
        ]);
    }
    table.write("volumes")
}

fn show(volume: &varve_client::Volume, options: &Options) -> Result<(), Failure> {
    if options.output == Output::Json {
        return output::json(&VolumeJson::from(volume));
    }
    let attached = match volume.attached_at {
        Some(since) => format!("since {}", output::time(since)),
        None => "no".to_owned(),
    };
    let base = volume.base.as_ref().map(ToString::to_string);
    let mut facts = vec![
        ("Name", volume.name.clone()),
        ("Id", volume.id.clone()),
        ("Size", output::size(volume.size_bytes)),
        ("Base", base.unwrap_or_else(|| "-".to_owned())),
        (
            "Parent",
            volume.parent.clone().unwrap_or_else(|| "-".to_owned()),
        ),
        ("Attached", attached),
        ("Attachments", volume.attachments.to_string()),
        ("Created", output::time(volume.created_at)),
    ];
    facts.extend(output::other_owner(&volume.owner).map(|id| ("Owner", id)));
    if let Some(status) = &volume.status {
        facts.extend(status_facts(status));
    }
    let tags = volume.tags.iter();
    facts.extend(tags.map(|(key, value)| ("Tag", format!("{key}={value}"))));
    output::write(&output::facts(&facts))
}

fn status_facts(status: &VolumeStatus) -> Vec<(&'static str, String)> {
    let (bytes, most) = (status.journal_bytes, status.journal_bytes_max);
    let journal = format!("{} of {}", output::size(bytes), output::size(most));
    let mut facts = vec![("Journal", journal)];
    if let Some(found) = &status.found {
        facts.push(("Map", output::size(status.map_bytes)));
        let at_open = format!(
            "{} batches, {} blocks in {} files",
            found.batches, found.blocks, found.files
        );
        facts.push(("Found", at_open));
        facts.extend(found.torn.iter().map(|torn| ("Cut off", torn.clone())));
    }
    let pending = status.pending.iter();
    facts.extend(pending.map(|snapshot| {
        let state = output::state(snapshot);
        (
            "Pending",
            format!("{} ({}) {state}", snapshot.name, snapshot.id),
        )
    }));
    facts
}

fn done(what: &str, volume: &varve_client::Volume, options: &Options) -> Result<(), Failure> {
    match options.output {
        Output::Json => output::json(&VolumeJson::from(volume)),
        Output::Table | Output::Wide => {
            output::line(format_args!("{what} {} ({})", volume.name, volume.id))
        }
    }
}

/// The addresses of a volume's export, and command lines that use them.
fn how_to_use(attached: &Attachment) -> String {
    let volume = &attached.volume;
    let mut facts = vec![("Volume", format!("{} ({})", volume.name, volume.id))];
    facts.extend(attached.nbd_uris.iter().map(|uri| ("NBD", uri.clone())));
    let mut text = output::facts(&facts);
    text.push('\n');
    text.push_str(&format!(
        "snapctl device map {}\n",
        quoted(&ExportName::Volume(&volume.name).to_string())
    ));
    if let Some(server) = attached.nbd_uris.iter().find_map(|uri| qemu_server(uri)) {
        // The guest waits while the daemon restarts, and its discards free space.
        let drive = format!(
            "if=virtio,format=raw,discard=unmap,file.driver=nbd,{server},file.export=volume/{},file.reconnect-delay=600",
            volume.name
        );
        text.push_str(&format!("qemu-system-x86_64 -drive {}\n", quoted(&drive)));
    }
    text
}

/// The server of an NBD URI in the syntax of QEMU's options. `None` if they cannot express it.
fn qemu_server(uri: &str) -> Option<String> {
    // A comma would begin the next option.
    let value = |text: &str| text.replace(',', ",,");
    match NbdAddress::of_export(uri).ok()? {
        NbdAddress::Unix(path) => {
            let path = value(path.to_str()?);
            Some(format!("file.server.type=unix,file.server.path={path}"))
        }
        NbdAddress::Tcp(address) => {
            let (host, port) = address.rsplit_once(':')?;
            let host = value(host.trim_start_matches('[').trim_end_matches(']'));
            Some(format!(
                "file.server.type=inet,file.server.host={host},file.server.port={port}"
            ))
        }
    }
}

/// Quotes a word of a command line for a shell.
fn quoted(word: &str) -> String {
    let plain = |char: char| char.is_ascii_alphanumeric() || "._-/:+@%=,".contains(char);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_told_to_qemu() {
        for (uri, server) in [
            (
                "nbd+unix:///volume/db?socket=/run/varve/nbd.sock",
                Some("type=unix,file.server.path=/run/varve/nbd.sock"),
            ),
            (
                "nbd+unix:///volume/db?socket=/a%20dir/it%27s,1",
                Some("type=unix,file.server.path=/a dir/it's,,1"),
            ),
            (
                "nbd://[::1]:10809/volume/db",
                Some("type=inet,file.server.host=::1,file.server.port=10809"),
            ),
            (
                "nbd://127.0.0.1:10809/volume/web/db",
                Some("type=inet,file.server.host=127.0.0.1,file.server.port=10809"),
            ),
            ("nbd+unix:///volume/db", None),
            ("nbd+unix:///volume/db?socket=/%ff", None),
            ("http://example.com/", None),
        ] {
            let server = server.map(|server| format!("file.server.{server}"));
            assert_eq!(qemu_server(uri), server, "{uri}");
        }
        assert_eq!(quoted("a b'c"), "'a b'\\''c'");
    }
}
