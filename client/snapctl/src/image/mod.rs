//! `snapctl image`.

mod list;
mod register;
mod shown;

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use clap::{Args, Subcommand};
use jiff::{Timestamp, civil::Date, tz::TimeZone};
use serde::Serialize;
use varve_client::{
    Client, DeregisteredImage, DeviceSource, ImageUpdate, Protection, SnapshotDeletion,
};

pub(crate) use self::shown::ImageJson;
use self::{list::List, register::Register, shown::show};

use crate::{
    Options,
    age::parse_age,
    exit::Failure,
    import::parse_tag,
    output::{self, Output, SnapshotJson},
    sharing,
};

/// Commands of `image`. An image is given by its id, or by its name if it is your own.
#[derive(Debug, Subcommand)]
pub(crate) enum Images {
    /// Register an image of snapshots: what a machine boots from
    Register(Box<Register>),
    /// List images, by owner, then by name
    #[command(visible_alias = "ls")]
    List(List),
    /// Show an image
    #[command(visible_alias = "get")]
    Show {
        /// Name or id
        image: String,
    },
    /// Change the description of an image
    Set {
        /// Name or id
        image: String,
        /// The new description; an empty one removes it
        #[arg(long)]
        description: String,
    },
    /// Set and remove tags of an image
    Tag(Tag),
    /// Let other accounts see and launch an image
    Share(Share),
    /// End the sharing of an image; what others made of it stays
    Unshare(Share),
    /// Say from when on an image is deprecated: others do not find it in lists then
    Deprecate(Deprecate),
    /// Let nobody use an image, and end its sharing
    Disable {
        /// Name or id
        image: String,
    },
    /// Let an image that is disabled be used again; it is shared with nobody
    Enable {
        /// Name or id
        image: String,
    },
    /// Keep an image from being deregistered
    Protect {
        /// Name or id
        image: String,
        /// Keep it from that for 24 hours more when its protection is ended
        #[arg(long)]
        with_cooldown: bool,
    },
    /// End the protection of an image, or begin its cooldown
    Unprotect {
        /// Name or id
        image: String,
    },
    /// Deregister an image: nobody can use it any more; what was made from it stays
    #[command(visible_aliases = ["delete", "rm"])]
    Deregister {
        /// Name or id
        image: String,
        /// Delete its snapshots, too, but for those of others and those that other images need
        #[arg(long)]
        delete_snapshots: bool,
    },
}

/// Arguments of `image tag`.
#[derive(Debug, Args)]
pub(crate) struct Tag {
    /// Name or id
    image: String,
    /// Tags to set
    #[arg(value_name = "KEY=VALUE", value_parser = parse_tag, required_unless_present = "remove")]
    tags: Vec<(String, String)>,
    /// A tag to remove; may be given more than once
    #[arg(long, value_name = "KEY")]
    remove: Vec<String>,
}

/// Arguments of `image share` and `image unshare`.
#[derive(Debug, Args)]
pub(crate) struct Share {
    /// Name or id
    image: String,
    /// Ids of accounts, for the administrator also their names; `all`: all accounts
    #[arg(required = true, value_name = "ACCOUNT")]
    accounts: Vec<String>,
}

/// Arguments of `image deprecate`.
#[derive(Debug, Args)]
pub(crate) struct Deprecate {
    /// Name or id
    image: String,
    #[command(flatten)]
    when: When,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct When {
    /// From this time on: 2027-01-31, or 2027-01-31T12:00:00Z
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    at: Option<SystemTime>,
    /// From so long on, as in 90d
    #[arg(long, value_name = "AGE", value_parser = parse_age)]
    after: Option<Duration>,
    /// It is not deprecated any more
    #[arg(long)]
    never: bool,
}

/// Reads a day, at its begin in UTC, or an instant.
fn parse_time(text: &str) -> Result<SystemTime, String> {
    const HOW: &str = "write a day, as in 2027-01-31, or a time, as in 2027-01-31T12:00:00Z";
    let day = text.parse::<Date>().ok();
    let day = day.filter(|_| !text.contains('T'));
    let day = day.and_then(|day| day.to_zoned(TimeZone::UTC).ok());
    let time = match day {
        Some(day) => day.timestamp(),
        None => text.parse::<Timestamp>().map_err(|_| HOW)?,
    };
    Ok(time.into())
}

/// The output of `image deregister` for programs.
#[derive(Debug, Serialize)]
struct DeregisteredJson<'a> {
    image: ImageJson<'a>,
    deleted_snapshots: Vec<SnapshotJson<'a>>,
    kept_snapshots: Vec<KeptJson<'a>>,
}

/// A snapshot that stays, and why.
#[derive(Debug, Serialize)]
struct KeptJson<'a> {
    id: &'a str,
    message: String,
}

impl Images {
    pub(crate) async fn run(self, options: &Options) -> Result<(), Failure> {
        let client = options.connect().await?;
        match self {
            Self::Register(register) => register.run(&client, options).await,
            Self::List(list) => list.run(&client, options).await,
            Self::Show { image } => {
                let image = options.named.image(&client, &image).await?;
                show(&client.image(&image).await?, options)
            }
            Self::Set { image, description } => {
                let update = ImageUpdate {
                    description: Some(description),
                    ..ImageUpdate::default()
                };
                change(&client, &image, update, options).await
            }
            Self::Tag(Tag {
                image,
                tags,
                remove,
            }) => {
                let image = options.named.image(&client, &image).await?;
                let tags = BTreeMap::from_iter(tags);
                show(&client.tag_image(&image, tags, remove).await?, options)
            }
            Self::Share(Share { image, accounts }) => {
                let image = options.named.image(&client, &image).await?;
                let with = sharing::with(accounts);
                show(&client.share_image(&image, with).await?, options)
            }
            Self::Unshare(Share { image, accounts }) => {
                let image = options.named.image(&client, &image).await?;
                let with = sharing::with(accounts);
                show(&client.unshare_image(&image, with).await?, options)
            }
            Self::Deprecate(Deprecate { image, when }) => {
                let at = match (when.at, when.after) {
                    (None, Some(after)) => {
                        let at = SystemTime::now().checked_add(after);
                        let too_far = || {
                            let what = format!("change image {image}");
                            Failure::usage(what, "that is too far ahead")
                        };
                        Some(at.ok_or_else(too_far)?)
                    }
                    (at, _) => at,
                };
                let update = ImageUpdate {
                    deprecated_at: Some(at),
                    ..ImageUpdate::default()
                };
                change(&client, &image, update, options).await
            }
            Self::Disable { image } => set_disabled(&client, &image, true, options).await,
            Self::Enable { image } => set_disabled(&client, &image, false, options).await,
            Self::Protect {
                image,
                with_cooldown,
            } => {
                let protection = match with_cooldown {
                    true => Protection::WithCooldown,
                    false => Protection::On,
                };
                protect(&client, &image, protection, options).await
            }
            Self::Unprotect { image } => protect(&client, &image, Protection::Off, options).await,
            Self::Deregister {
                image,
                delete_snapshots,
            } => {
                let image = options.named.image(&client, &image).await?;
                let gone = client.deregister_image(&image, delete_snapshots).await?;
                deregistered(&gone, delete_snapshots, options)
            }
        }
    }
}

async fn change(
    client: &Client,
    image: &str,
    update: ImageUpdate,
    options: &Options,
) -> Result<(), Failure> {
    let image = options.named.image(client, image).await?;
    show(&client.update_image(&image, update).await?, options)
}

async fn set_disabled(
    client: &Client,
    image: &str,
    disabled: bool,
    options: &Options,
) -> Result<(), Failure> {
    let update = ImageUpdate {
        disabled: Some(disabled),
        ..ImageUpdate::default()
    };
    change(client, image, update, options).await
}

async fn protect(
    client: &Client,
    image: &str,
    protection: Protection,
    options: &Options,
) -> Result<(), Failure> {
    let update = ImageUpdate {
        protection: Some(protection),
        ..ImageUpdate::default()
    };
    change(client, image, update, options).await
}

fn deregistered(
    gone: &DeregisteredImage,
    with_snapshots: bool,
    options: &Options,
) -> Result<(), Failure> {
    let image = &gone.image;
    let deleted = gone
        .snapshots
        .iter()
        .filter_map(|it| it.outcome.as_ref().ok());
    let kept = gone.snapshots.iter().filter_map(|it| match it {
        SnapshotDeletion {
            snapshot,
            outcome: Err(error),
            ..
        } => Some((&**snapshot, error.to_string())),
        _ => None,
    });
    if options.output == Output::Json {
        return output::json(&DeregisteredJson {
            image: ImageJson::from(image),
            deleted_snapshots: deleted.map(SnapshotJson::from).collect(),
            kept_snapshots: kept.map(|(id, message)| KeptJson { id, message }).collect(),
        });
    }
    output::line(format_args!("deregistered {} ({})", image.name, image.id))?;
    for snapshot in deleted {
        let (name, id) = (&snapshot.name, &snapshot.id);
        output::line(format_args!("deleted snapshot {name} ({id})"))?;
    }
    for (id, message) in kept {
        output::line(format_args!("kept snapshot {id}: {message}"))?;
    }
    if !with_snapshots {
        let ids = image
            .devices
            .iter()
            .filter_map(|device| match &device.source {
                DeviceSource::Snapshot(id) => Some(&**id),
                _ => None,
            });
        let ids: Vec<_> = ids.collect();
        options.remark(format_args!("its snapshots stay: {}", ids.join(", ")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn times_are_days_or_instants() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(parse_time("1970-01-02").unwrap(), at(86_400));
        assert_eq!(parse_time("1970-01-01T00:01:00Z").unwrap(), at(60));
        assert_eq!(parse_time("1970-01-01T01:00:00+01:00").unwrap(), at(0));
        for bad in ["", "tomorrow", "1970-01-01T00:01:00", "1970-13-01"] {
            parse_time(bad).unwrap_err();
        }
    }
}
