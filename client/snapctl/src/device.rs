//! `snapctl device`: exports as block devices of this machine.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Subcommand};
use sd_notify::NotifyState;
use serde::Serialize;
use varve_client::{Endpoint, Error, ErrorKind};
use varve_device::{
    Ended, ErrorKind as DeviceErrorKind, Event, MapOptions, Mapped, Mapping, NbdAddress, mapped,
    unmap,
};
use varve_nbd::{ExportName, split_ticket, without_tickets};

use crate::{
    Options,
    exit::Failure,
    output::{self, Output},
    signals::interrupted_within,
    token_file,
};

/// Time limit for detaching a device: the kernel first writes out its cache.
const DETACH_TIME: Duration = Duration::from_secs(600);

/// Commands of `device`.
#[derive(Debug, Subcommand)]
pub(crate) enum Devices {
    /// Map an export to a block device of this machine, and keep it connected
    Map(Map),
    /// Unmap a block device
    Unmap(Unmap),
    /// List the block devices of exports
    #[command(visible_alias = "ls")]
    List,
}

impl Devices {
    pub(crate) async fn run(self, options: &Options) -> Result<(), Failure> {
        match self {
            Self::Map(map) => map.run(options).await,
            Self::Unmap(unmap) => unmap.run(options).await,
            Self::List => list(options),
        }
    }
}

#[derive(Debug, Args)]
#[command(after_long_help = "\
The command prints the device and keeps running: when the daemon restarts, it reconnects the \
device, and requests wait meanwhile. \
It ends when the device is unmapped. When interrupted, it unmaps a device that is not in use. A \
device in use stays mapped; \
run `snapctl device map` for the same export again to keep it connected.

The systemd unit varve-map@.service does the same for exports that should be mapped at boot.")]
pub(crate) struct Map {
    /// volume/NAME, snapshot/NAME or image/NAME; attach a volume first (`snapctl volume attach`)
    #[arg(
        required_unless_present = "ticket_file",
        conflicts_with = "ticket_file"
    )]
    export: Option<String>,
    /// File with the secret name of an export, as `snapctl volume attach --ticket` writes it
    #[arg(long, value_name = "FILE", requires = "nbd")]
    ticket_file: Option<PathBuf>,
    /// Device to use, /dev/nbdN [default: a free one]
    #[arg(long, value_name = "DEVICE", value_parser = parse_device)]
    device: Option<u32>,
    /// Number of connections to the daemon
    #[arg(long, value_name = "COUNT", default_value_t = MapOptions::default().connections)]
    connections: u32,
    /// Sector size in bytes: 512 to 4096. A partition table needs the sector size that it was made
    /// with
    #[arg(long, value_name = "BYTES", default_value_t = MapOptions::default().block_size_bytes)]
    block_size: u32,
    /// Seconds until an unanswered request is sent again (after the daemon was killed, for example)
    #[arg(long, value_name = "SECONDS", default_value_t = MapOptions::default().timeout.as_secs())]
    request_timeout: u64,
    /// Seconds that requests wait for a lost daemon before they fail
    #[arg(long, value_name = "SECONDS", default_value_t = MapOptions::default().dead_timeout.as_secs())]
    dead_timeout: u64,
    /// Map a writable export read-only
    #[arg(long)]
    read_only: bool,
    /// NBD address of the daemon: nbd+unix:///?socket=PATH or nbd://HOST:PORT [default: as the
    /// daemon reports it]
    #[arg(long, value_name = "URI")]
    nbd: Option<NbdAddress>,
}

#[derive(Debug, Args)]
pub(crate) struct Unmap {
    /// /dev/nbdN, or the name of its export
    device: String,
    /// Unmap a device in use; its users get I/O errors
    #[arg(long)]
    force: bool,
}

/// A device as JSON.
#[derive(Debug, Serialize)]
struct MappedJson<'a> {
    device: &'a Path,
    export: &'a str,
    opened: &'a str,
    address: &'a str,
    connections: u32,
    size_bytes: u64,
    read_only: bool,
    process: Option<u32>,
}

impl<'a> From<&'a Mapped> for MappedJson<'a> {
    fn from(device: &'a Mapped) -> Self {
        Self {
            device: &device.path,
            export: &device.export,
            opened: &device.opened,
            address: &device.address,
            connections: device.connections,
            size_bytes: device.size_bytes,
            read_only: device.read_only,
            process: device.process,
        }
    }
}

/// The output of `device list` for programs.
#[derive(Debug, Serialize)]
struct ListJson<'a> {
    devices: Vec<MappedJson<'a>>,
}

/// A detached device as JSON.
#[derive(Debug, Serialize)]
struct UnmappedJson<'a> {
    device: &'a Path,
    /// True if the device is no longer in use.
    is_gone: bool,
}

fn parse_device(text: &str) -> Result<u32, String> {
    let name = text.strip_prefix("/dev/").unwrap_or(text);
    let index = name
        .strip_prefix("nbd")
        .and_then(|index| index.parse().ok());
    index.ok_or_else(|| "write /dev/nbdN, with a number for N".to_owned())
}

impl Map {
    pub(crate) async fn run(self, options: &Options) -> Result<(), Failure> {
        let interrupted = interrupted_within(DETACH_TIME);
        let export = self.export()?;
        let (address, opened) = self.find(&export, options).await?;
        let again = match &self.ticket_file {
            Some(file) => format!("--ticket-file {}", file.display()),
            None => export.clone(),
        };
        let settings = MapOptions {
            connections: self.connections,
            block_size_bytes: self.block_size,
            timeout: Duration::from_secs(self.request_timeout),
            dead_timeout: Duration::from_secs(self.dead_timeout),
            read_only: self.read_only,
            index: self.device,
        };
        let attaching = Mapping::attach(&address, &export, opened.as_deref(), &settings);
        let mut mapping = tokio::select! {
            // Opening a volume may take minutes, if its journal is long.
            mapping = attaching => mapping?,
            () = interrupted.cancelled() => {
                let what = format!("map {}", without_tickets(&export));
                return Err(Error::new(ErrorKind::Cancelled, what, "interrupted").into());
            }
        };
        let device = mapping.device().path.display().to_string();
        if mapping.was_taken_over() {
            options.remark(format_args!(
                "{device} was attached already; keeping it connected"
            ));
        }
        match options.output {
            Output::Json => output::json(&MappedJson::from(mapping.device()))?,
            Output::Table | Output::Wide => output::line(&device)?,
        }
        ready();
        let tell = |event| match event {
            Event::Lost => options.remark(format_args!("{device}: lost a connection")),
            Event::NotYet(error) => {
                options.remark(format_args!("{device}: {error}; trying again"));
            }
            Event::Restored(after) => options.remark(format_args!(
                "{device}: reconnected after {:.1} s",
                after.as_secs_f64()
            )),
        };
        match mapping.stay(interrupted.cancelled(), tell).await? {
            Ended::Detached => {
                options.remark(format_args!("{device} was detached"));
                Ok(())
            }
            Ended::Interrupted if mapping.is_cut_off() => {
                options.remark(format_args!(
                    "{device} has no connection and stays attached; reconnect it with `snapctl \
                     device map {again}`"
                ));
                Ok(())
            }
            Ended::Interrupted => match mapping.detach().await {
                Ok(()) => {
                    options.remark(format_args!("detached {device}"));
                    Ok(())
                }
                Err(error) if error.kind() == DeviceErrorKind::Conflict => {
                    options.remark(format_args!(
                        "{error}; it stays attached: reconnect it with `snapctl device map {again}`"
                    ));
                    Ok(())
                }
                Err(error) => Err(error.into()),
            },
        }
    }

    /// The export as it was given: its name may have a ticket.
    fn export(&self) -> Result<String, Failure> {
        if let Some(file) = &self.ticket_file {
            return Ok(token_file::read_ticketed_export(file)?);
        }
        // Clap ensures that one of the two is given.
        let export = self.export.clone().unwrap_or_default();
        if split_ticket(&export).is_some() {
            let what = format!("map {}", without_tickets(&export));
            let why = "all users can see a ticket on the command line: put the name of the export \
                       in a file, and give --ticket-file";
            return Err(Failure::usage(what, why));
        }
        Ok(export)
    }

    /// The address of the export, and its name with an id: another volume may take the name while
    /// this one is mapped.
    async fn find(
        &self,
        export: &str,
        options: &Options,
    ) -> Result<(NbdAddress, Option<String>), Failure> {
        let what = || format!("map {}", without_tickets(export));
        let wrong = |why: &str| Error::new(ErrorKind::Invalid, what(), why);
        if !export.contains('/') {
            return Err(wrong("an export is volume/NAME, snapshot/NAME or image/NAME").into());
        }
        let export = ExportName::parse(export);
        if let Some(address) = &self.nbd {
            if matches!(export, Some(ExportName::Volume(key)) if !key.starts_with("vol-")) {
                let why = "with --nbd, give the id of the volume, volume/vol-...: another volume \
                           may take its name while it is mapped";
                return Err(wrong(why).into());
            }
            return Ok((address.clone(), None));
        }
        let client = options.connect().await?;
        let opened = match export {
            Some(ExportName::Volume(key)) => {
                let volume = client.volume(key).await?;
                // The number limits the mapping to this attachment: after it, the volume may belong
                // to another user.
                let attachment = format!("{}@{}", volume.id, volume.attachments);
                ExportName::Volume(&attachment).to_string()
            }
            Some(ExportName::Image(key)) => {
                // A device of an image is named behind its id.
                let (image, device) = match key.split_once('/') {
                    Some((id, _)) if id.starts_with("ami-") => (id, key.get(id.len()..)),
                    _ => (key, None),
                };
                let id = client.image(image).await?.id;
                ExportName::Image(&format!("{id}{}", device.unwrap_or_default())).to_string()
            }
            Some(ExportName::Snapshot(key)) => {
                ExportName::Snapshot(&client.snapshot(key).await?.id).to_string()
            }
            None => {
                return Err(wrong("an export is volume/NAME, snapshot/NAME or image/NAME").into());
            }
        };
        // A path is one of this machine, and so has to be the daemon.
        let is_here = options.endpoint()?.as_ref().is_none_or(Endpoint::is_unix);
        let uris = client.status().await?.nbd_uris;
        let usable = |address: &NbdAddress| match address {
            NbdAddress::Unix(_) => is_here,
            NbdAddress::Tcp(host) => !host.starts_with("0.0.0.0:") && !host.starts_with("[::]:"),
        };
        let mut addresses = uris.iter().filter_map(|uri| uri.parse().ok());
        let Some(address) = addresses.find(usable) else {
            let why = format!(
                "the kernel cannot use any of the daemon's NBD addresses ({}); give one with --nbd",
                uris.join(", ")
            );
            return Err(wrong(&why).into());
        };
        Ok((address, Some(opened)))
    }
}

/// Tells the service manager, if there is one, that the device is ready.
fn ready() {
    // Without a service manager, or one that listens, there is nothing to do.
    let _ = sd_notify::notify(&[NotifyState::Ready]);
}

impl Unmap {
    pub(crate) async fn run(self, options: &Options) -> Result<(), Failure> {
        let unmapped = unmap(&self.device, self.force).await?;
        if options.output == Output::Json {
            return output::json(&UnmappedJson {
                device: &unmapped.path,
                is_gone: unmapped.is_gone,
            });
        }
        let device = unmapped.path.display();
        if unmapped.is_gone {
            options.remark(format_args!("detached {device}"));
        } else {
            options.remark(format_args!(
                "detached {device}; it is still in use: its users get I/O errors, and it \
                 disappears when they close it"
            ));
        }
        Ok(())
    }
}

/// `snapctl device list`.
pub(crate) fn list(options: &Options) -> Result<(), Failure> {
    let devices = mapped()?;
    if options.output == Output::Json {
        return output::json(&ListJson {
            devices: devices.iter().map(MappedJson::from).collect(),
        });
    }
    let mut table = output::table(
        &["DEVICE", "EXPORT", ">SIZE", "ACCESS", "KEPT BY"],
        options.output,
    );
    for device in &devices {
        let access = if device.read_only {
            "read-only"
        } else {
            "writable"
        };
        let keeper = device.process.map_or_else(
            || "nobody".to_owned(),
            |process| format!("process {process}"),
        );
        table.add_row([
            device.path.display().to_string(),
            device.export.clone(),
            output::size(device.size_bytes),
            access.to_owned(),
            keeper,
        ]);
    }
    table.write("devices")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_as_people_do() {
        assert_eq!(parse_device("/dev/nbd12"), Ok(12));
        assert_eq!(parse_device("nbd0"), Ok(0));
        for wrong in ["/dev/sda", "nbd", "nbd-1", "0", ""] {
            assert!(parse_device(wrong).is_err(), "{wrong}");
        }
    }
}
