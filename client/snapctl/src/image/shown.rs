//! Images in the output.

use std::{collections::BTreeMap, time::SystemTime};

use serde::Serialize;
use varve_client::{BootMode, DeviceSource, Image, ImageDevice, Platform, Protection};

use crate::{
    Options,
    exit::Failure,
    output::{self, Output},
    sharing,
};

/// An image as JSON.
#[derive(Debug, Serialize)]
pub(crate) struct ImageJson<'a> {
    id: &'a str,
    name: &'a str,
    description: &'a str,
    owner: &'a str,
    state: &'a str,
    /// `null` unless it has failed.
    state_reason: Option<&'a str>,
    architecture: &'a str,
    platform: &'a str,
    /// `null`: not said.
    boot_mode: Option<&'a str>,
    root_device: &'a str,
    devices: Vec<DeviceJson<'a>>,
    created_at: Option<String>,
    deprecated_at: Option<String>,
    protection: &'a str,
    protected_until: Option<String>,
    tags: &'a BTreeMap<String, String>,
    shared_accounts: &'a [String],
    shared_with_everybody: bool,
}

/// A device of an image, as JSON.
#[derive(Debug, Serialize)]
struct DeviceJson<'a> {
    name: &'a str,
    /// "snapshot", "empty" or "ephemeral".
    source: &'static str,
    snapshot: Option<&'a str>,
    ephemeral: Option<u32>,
    size_bytes: Option<u64>,
    delete_on_termination: Option<bool>,
}

impl<'a> From<&'a ImageDevice> for DeviceJson<'a> {
    fn from(device: &'a ImageDevice) -> Self {
        let (source, snapshot, ephemeral) = match &device.source {
            DeviceSource::Snapshot(id) => ("snapshot", Some(&**id), None),
            DeviceSource::Empty => ("empty", None, None),
            DeviceSource::Ephemeral(number) => ("ephemeral", None, Some(*number)),
            _ => ("unknown", None, None),
        };
        Self {
            name: &device.name,
            source,
            snapshot,
            ephemeral,
            size_bytes: device.size_bytes,
            delete_on_termination: device.delete_on_termination,
        }
    }
}

impl<'a> From<&'a Image> for ImageJson<'a> {
    fn from(image: &'a Image) -> Self {
        let reason = &*image.state_reason;
        Self {
            id: &image.id,
            name: &image.name,
            description: &image.description,
            owner: &image.owner,
            state: image.state.as_str(),
            state_reason: (!reason.is_empty()).then_some(reason),
            architecture: image.architecture.as_str(),
            platform: image.platform.as_str(),
            boot_mode: image.boot_mode.map(BootMode::as_str),
            root_device: &image.root_device,
            devices: image.devices.iter().map(DeviceJson::from).collect(),
            created_at: output::rfc3339(image.created_at),
            deprecated_at: image.deprecated_at.and_then(output::rfc3339),
            protection: image.protection.as_str(),
            protected_until: image.protected_until.and_then(output::rfc3339),
            tags: &image.tags,
            shared_accounts: &image.sharing.accounts,
            shared_with_everybody: image.sharing.everybody,
        }
    }
}

/// The state for people, with what limits its use.
pub(super) fn state(image: &Image) -> String {
    let state = image.state.as_str();
    match image.deprecated_at {
        Some(at) if at <= SystemTime::now() => format!("{state}, deprecated"),
        _ => state.to_owned(),
    }
}

pub(super) fn show(image: &Image, options: &Options) -> Result<(), Failure> {
    if options.output == Output::Json {
        return output::json(&ImageJson::from(image));
    }
    output::write(&output::facts(&facts(image)))
}

fn facts(image: &Image) -> Vec<(&'static str, String)> {
    let mut facts = vec![
        ("Name", image.name.clone()),
        ("Id", image.id.clone()),
        ("State", state(image)),
    ];
    let mut add = |name, text: &str| {
        if !text.is_empty() {
            facts.push((name, text.to_owned()));
        }
    };
    add("Why", &image.state_reason);
    add("Description", &image.description);
    facts.push(("Architecture", image.architecture.as_str().to_owned()));
    if image.platform != Platform::Linux {
        facts.push(("Platform", image.platform.as_str().to_owned()));
    }
    let boot_mode = image.boot_mode.iter();
    facts.extend(boot_mode.map(|mode| ("Boot mode", mode.as_str().to_owned())));
    facts.extend(image.devices.iter().map(|it| ("Device", device(image, it))));
    facts.push(("Created", output::time(image.created_at)));
    let deprecated = image.deprecated_at.iter();
    facts.extend(deprecated.map(|time| ("Deprecated", output::time(*time))));
    match (image.protection, image.protected_until) {
        (Protection::Off, _) => {}
        (Protection::Cooldown, Some(until)) => {
            facts.push(("Protected", format!("until {}", output::time(until))));
        }
        (protection, _) => facts.push(("Protected", protection.as_str().to_owned())),
    }
    facts.extend(output::other_owner(&image.owner).map(|id| ("Owner", id)));
    facts.extend(sharing::facts(&image.sharing));
    let tags = image.tags.iter();
    facts.extend(tags.map(|(key, value)| ("Tag", format!("{key}={value}"))));
    facts
}

/// A device for people.
fn device(image: &Image, device: &ImageDevice) -> String {
    let source = match &device.source {
        DeviceSource::Snapshot(id) => id.clone(),
        DeviceSource::Empty => "empty".to_owned(),
        DeviceSource::Ephemeral(number) => format!("ephemeral{number}"),
        _ => "unknown".to_owned(),
    };
    let mut text = format!("{} {source}", device.name);
    if let Some(size_bytes) = device.size_bytes {
        text.push_str(&format!(", {}", output::size(size_bytes)));
    }
    if device.name == image.root_device {
        text.push_str(", root");
    }
    if device.delete_on_termination == Some(true) {
        text.push_str(", deleted with the instance");
    }
    text
}
