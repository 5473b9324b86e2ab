//! `snapctl image list`.

use clap::Args;
use futures::{StreamExt, TryStreamExt};
use serde::Serialize;
use varve_client::{Client, Image, ImageFilter, Sharing};

use super::shown::{ImageJson, state};
use crate::{
    Options,
    exit::Failure,
    listing::at_most,
    output::{self, Output},
};

/// Arguments of `image list`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
A search by name alone finds whatever others have named so: add --owner.

    snapctl image list --owner self --filter 'name=web-*' --filter tag:os=debian")]
pub(crate) struct List {
    /// List only those of this account: self, or an id; may be given more than once
    #[arg(long = "owner", value_name = "ACCOUNT")]
    owners: Vec<String>,
    /// List only those that are shared with your account (self), with everybody (all), or your own
    /// that are shared with this account
    #[arg(
        long,
        value_name = "ACCOUNT",
        default_value = "",
        hide_default_value = true
    )]
    executable_by: String,
    /// List only those that match, by the names of Amazon's DescribeImages, as in name=web-* or
    /// tag:os=debian,ubuntu; given more than once, all of them have to match
    #[arg(long = "filter", value_name = "NAME=VALUE[,VALUE]", value_parser = parse_filter)]
    filters: Vec<(String, Vec<String>)>,
    /// List also others' images that are deprecated
    #[arg(long)]
    include_deprecated: bool,
    /// List also your own images that are disabled
    #[arg(long)]
    include_disabled: bool,
    /// List at most this many
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
}

/// Reads a filter: the name up to the last equals sign before the values, as `tag:a=b,c`. A comma
/// behind a backslash is part of a value.
fn parse_filter(text: &str) -> Result<(String, Vec<String>), String> {
    let (name, rest) = text.split_once('=').ok_or("write NAME=VALUE")?;
    let mut values = vec![String::new()];
    let mut chars = rest.chars();
    while let Some(char) = chars.next() {
        let value = match char {
            ',' => {
                values.push(String::new());
                continue;
            }
            other => other,
        };
        if let Some(last) = values.last_mut() {
            match (value, chars.clone().next()) {
                ('\\', Some(',')) => {
                    chars.next();
                    last.push(',');
                }
                _ => last.push(value),
            }
        }
    }
    Ok((name.to_owned(), values))
}

/// The output of `image list` for programs.
#[derive(Debug, Serialize)]
struct ListJson<'a> {
    images: Vec<ImageJson<'a>>,
}

impl List {
    pub(super) async fn run(self, client: &Client, options: &Options) -> Result<(), Failure> {
        let limit = at_most(self.limit);
        let filter = ImageFilter {
            owners: self.owners,
            executable_by: self.executable_by,
            filters: self.filters,
            include_deprecated: self.include_deprecated,
            include_disabled: self.include_disabled,
        };
        let images: Vec<_> = client.images(filter).take(limit).try_collect().await?;
        if options.output == Output::Json {
            return output::json(&ListJson {
                images: images.iter().map(ImageJson::from).collect(),
            });
        }
        let owner = output::owner_heading(images.iter().map(|image| &*image.owner));
        let headings = [
            "NAME", "ID", owner, "STATE", "ARCH", ">SIZE", "SHARED", "+CREATED", "+TAGS",
        ];
        let mut table = output::table(&headings, options.output);
        for image in &images {
            table.add_row([
                image.name.clone(),
                image.id.clone(),
                image.owner.clone(),
                state(image),
                image.architecture.as_str().to_owned(),
                root_size(image),
                shared(&image.sharing),
                output::time(image.created_at),
                output::tags(&image.tags),
            ]);
        }
        table.write("images")
    }
}

/// The size of the volume that a machine boots from.
fn root_size(image: &Image) -> String {
    let mut devices = image.devices.iter();
    let root = devices.find(|device| device.name == image.root_device);
    let size = root.and_then(|root| root.size_bytes);
    size.map_or_else(|| "-".to_owned(), output::size)
}

/// With how many it is shared.
fn shared(sharing: &Sharing) -> String {
    match (sharing.everybody, sharing.accounts.len()) {
        (true, _) => "everybody".to_owned(),
        (false, 0) => "-".to_owned(),
        (false, 1) => "1 account".to_owned(),
        (false, count) => format!("{count} accounts"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn filters_are_read() {
        for (text, name, values) in [
            ("name=web", "name", vec!["web"]),
            ("tag:os=a,b", "tag:os", vec!["a", "b"]),
            (r"name=a\,b,c\*", "name", vec!["a,b", r"c\*"]),
            ("name=", "name", vec![""]),
            ("tag:x=a=b", "tag:x", vec!["a=b"]),
        ] {
            let (found, of) = parse_filter(text).unwrap();
            assert_eq!(
                (&*found, of),
                (name, values.iter().map(ToString::to_string).collect())
            );
        }
        parse_filter("name").unwrap_err();
    }
}
