//! Images, which machines boot from: register, list, show, change, share, deregister.

use std::{collections::BTreeMap, time::SystemTime};

use futures::Stream;
use varve_proto::v1::{self, image_device::Source};

use crate::{
    connect::Client,
    convert::{system_time, timestamp},
    error::{Error, ErrorKind, Result},
    limits::LIST_PAGE,
    pages, retry,
    snapshots::{Sharing, Snapshot, SnapshotDeletion},
};

/// What a machine boots from: snapshots, and what a machine that boots them looks like.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Image {
    /// `ami-` and 17 hexadecimal digits, or 8 to 16 if it was registered with such an id.
    pub id: String,
    /// Unique among the images of its owner.
    pub name: String,
    /// A description by the user; empty: none.
    pub description: String,
    /// Id of the account that it belongs to, 12 decimal digits.
    pub owner: String,
    /// Whether it can be used.
    pub state: ImageState,
    /// Why it has failed; empty unless it has.
    pub state_reason: String,
    /// The processor that it is for.
    pub architecture: Architecture,
    /// What runs on it.
    pub platform: Platform,
    /// The firmware that it boots with; `None`: not said.
    pub boot_mode: Option<BootMode>,
    /// The name of the device that it boots from.
    pub root_device: String,
    /// The disks of a machine that boots it.
    pub devices: Vec<ImageDevice>,
    /// When it was registered.
    pub created_at: SystemTime,
    /// From when on it is deprecated; `None`: never.
    pub deprecated_at: Option<SystemTime>,
    /// Whether it can be deregistered.
    pub protection: Protection,
    /// The end of [`Protection::Cooldown`].
    pub protected_until: Option<SystemTime>,
    /// Keys and values. Only its owner and the administrator see them.
    pub tags: BTreeMap<String, String>,
    /// Whom it is shared with. Only its owner and the administrator see the accounts.
    pub sharing: Sharing,
}

/// The states of an image.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash)]
#[non_exhaustive]
pub enum ImageState {
    /// It can be used.
    Available,
    /// A snapshot of it is pending.
    Pending,
    /// A snapshot of it has failed.
    Failed,
    /// Its owner has disabled it.
    Disabled,
    /// A state that this version of the client does not know.
    Unknown,
}

impl ImageState {
    /// The state as one lowercase word: stable, for programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Available => "available",
            Self::Pending => "pending",
            Self::Failed => "failed",
            Self::Disabled => "disabled",
            Self::Unknown => "unknown",
        }
    }
}

/// The processor that an image is for.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Hash)]
#[non_exhaustive]
pub enum Architecture {
    /// 64-bit x86.
    #[default]
    X86_64,
    /// 64-bit ARM.
    Arm64,
    /// 32-bit x86.
    I386,
    /// One that this version of the client does not know.
    Unknown,
}

impl Architecture {
    /// As Amazon and `uname` call it: stable, for programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Arm64 => "arm64",
            Self::I386 => "i386",
            Self::Unknown => "unknown",
        }
    }
}

/// What runs on an image.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Hash)]
#[non_exhaustive]
pub enum Platform {
    /// Linux, or another Unix.
    #[default]
    Linux,
    /// Windows.
    Windows,
    /// One that this version of the client does not know.
    Unknown,
}

impl Platform {
    /// As one lowercase word: stable, for programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Linux => "linux",
            Self::Windows => "windows",
            Self::Unknown => "unknown",
        }
    }
}

/// The firmware that an image boots with.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash)]
#[non_exhaustive]
pub enum BootMode {
    /// BIOS.
    Bios,
    /// UEFI.
    Uefi,
    /// UEFI where there is one, else BIOS.
    UefiPreferred,
    /// One that this version of the client does not know.
    Unknown,
}

impl BootMode {
    /// As a word: stable, for programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bios => "bios",
            Self::Uefi => "uefi",
            Self::UefiPreferred => "uefi-preferred",
            Self::Unknown => "unknown",
        }
    }
}

/// Whether an image can be deregistered.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash)]
#[non_exhaustive]
pub enum Protection {
    /// It can.
    Off,
    /// It cannot.
    On,
    /// It cannot, and not for 24 hours after its protection is ended.
    WithCooldown,
    /// It can after [`Image::protected_until`].
    Cooldown,
    /// One that this version of the client does not know.
    Unknown,
}

impl Protection {
    /// As a word: stable, for programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::On => "on",
            Self::WithCooldown => "with-cooldown",
            Self::Cooldown => "cooldown",
            Self::Unknown => "unknown",
        }
    }
}

/// A disk of a machine that boots an image.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ImageDevice {
    /// Its name, as `/dev/sda1`.
    pub name: String,
    /// Its first content.
    pub source: DeviceSource,
    /// Size of its volume, in bytes. For a new image, `None` stands for that of the snapshot; an
    /// ephemeral device has none.
    pub size_bytes: Option<u64>,
    /// Whether its volume is deleted with the instance. For a new image, `None` means: yes for the
    /// root device, no for others.
    pub delete_on_termination: Option<bool>,
}

/// The first content of a device.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum DeviceSource {
    /// A snapshot, by its id; for a new image also by its name.
    Snapshot(String),
    /// Zeros.
    Empty,
    /// A scratch volume with this number, which is in no snapshot.
    Ephemeral(u32),
    /// One that this version of the client does not know.
    Unknown,
}

/// The settings of a new image.
#[derive(Clone, Debug, Default)]
pub struct NewImage {
    /// Its name: 3 to 128 letters, digits, spaces and `( ) [ ] . / - ' @ _`.
    pub name: String,
    /// Its description; empty: none.
    pub description: String,
    /// The processor that it is for.
    pub architecture: Architecture,
    /// What runs on it.
    pub platform: Platform,
    /// The firmware that it boots with; `None`: not said.
    pub boot_mode: Option<BootMode>,
    /// The name of the device that it boots from, which has a snapshot.
    pub root_device: String,
    /// Its devices, at most 27, the one that it boots from among them.
    pub devices: Vec<ImageDevice>,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// An id from elsewhere, which only the administrator gives. `None`: a random one.
    pub id: Option<String>,
}

/// A filter for lists of images. The default lists all that the caller sees.
#[derive(Clone, Debug, Default)]
pub struct ImageFilter {
    /// Only images of these accounts: ids, or `self`.
    pub owners: Vec<String>,
    /// Only images that are shared with the caller's account (`self`), with everybody (`all`), or
    /// the caller's own that are shared with the account of an id. Empty: all.
    pub executable_by: String,
    /// Only images that pass all of these: the name of a filter, and values of which one has to
    /// match. `docs/images.md` lists the names.
    pub filters: Vec<(String, Vec<String>)>,
    /// Also others' images that are deprecated.
    pub include_deprecated: bool,
    /// Also the caller's own images that are disabled.
    pub include_disabled: bool,
}

/// A change of an image. The default changes nothing.
#[derive(Clone, Debug, Default)]
pub struct ImageUpdate {
    /// The new description.
    pub description: Option<String>,
    /// The new time of deprecation; `Some(None)`: never.
    pub deprecated_at: Option<Option<SystemTime>>,
    /// Whether nobody can use it from now on.
    pub disabled: Option<bool>,
    /// The new protection: [`Off`](Protection::Off) begins the cooldown of one that has such.
    pub protection: Option<Protection>,
}

/// An image that is gone, and what became of its snapshots.
#[derive(Debug)]
#[non_exhaustive]
pub struct DeregisteredImage {
    /// The image as it was.
    pub image: Image,
    /// Outcomes for its snapshots by their ids, if they were to be deleted.
    pub snapshots: Vec<SnapshotDeletion>,
}

impl Client {
    /// Registers an image of snapshots. They may be pending: then it is, too.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::AlreadyExists`] for a name that another image of the account has,
    /// [`ErrorKind::NotFound`] without a snapshot, [`ErrorKind::Invalid`] for devices that cannot
    /// be; those of the connection. The call is not repeated, so after a lost connection the image
    /// may exist.
    pub async fn register_image(&self, new: NewImage) -> Result<Image> {
        let what = format!("register image {}", new.name);
        let devices = new.devices.into_iter().map(|device| device.to_proto(&what));
        let request = v1::RegisterImageRequest {
            devices: devices.collect::<Result<_>>()?,
            architecture: match new.architecture {
                Architecture::X86_64 => v1::ImageArchitecture::X8664,
                Architecture::Arm64 => v1::ImageArchitecture::Arm64,
                Architecture::I386 => v1::ImageArchitecture::I386,
                Architecture::Unknown => v1::ImageArchitecture::Unspecified,
            }
            .into(),
            platform: match new.platform {
                Platform::Linux => v1::ImagePlatform::Linux,
                Platform::Windows => v1::ImagePlatform::Windows,
                Platform::Unknown => v1::ImagePlatform::Unspecified,
            }
            .into(),
            boot_mode: match new.boot_mode {
                Some(BootMode::Bios) => v1::ImageBootMode::Bios,
                Some(BootMode::Uefi) => v1::ImageBootMode::Uefi,
                Some(BootMode::UefiPreferred) => v1::ImageBootMode::UefiPreferred,
                Some(BootMode::Unknown) | None => v1::ImageBootMode::Unspecified,
            }
            .into(),
            name: new.name,
            description: new.description,
            root_device: new.root_device,
            tags: new.tags,
            id: new.id.unwrap_or_default(),
        };
        let made = retry::while_busy(|| {
            let (mut service, request) = (self.image_service(), request.clone());
            async move { service.register_image(request).await }
        });
        let made = made.await.map_err(|status| Error::rpc(&what, status))?;
        Image::from_proto(&what, Some(made.into_inner()))
    }

    /// Finds the image with this name or id.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if there is no such image; those of the connection.
    pub async fn image(&self, image: &str) -> Result<Image> {
        let what = format!("get image {image}");
        let request = v1::GetImageRequest {
            image: image.to_owned(),
        };
        let found = retry::idempotent(|| {
            let (mut service, request) = (self.image_service(), request.clone());
            async move { service.get_image(request).await }
        });
        let found = found.await.map_err(|status| Error::rpc(&what, status))?;
        Image::from_proto(&what, Some(found.into_inner()))
    }

    /// Lists the images that pass `filter`, by owner, then by name. Pages are fetched on demand.
    ///
    /// The stream ends with its first error: [`ErrorKind::Invalid`] for a filter that does not
    /// exist; those of the connection.
    pub fn images(&self, filter: ImageFilter) -> impl Stream<Item = Result<Image>> + Send + use<> {
        const WHAT: &str = "list images";
        let client = self.clone();
        let filters: Vec<_> = filter
            .filters
            .into_iter()
            .map(|(name, values)| v1::ImageFilter { name, values })
            .collect();
        pages::listed(WHAT, move |page_token| {
            let client = client.clone();
            let request = v1::ListImagesRequest {
                page_size: LIST_PAGE,
                page_token,
                owners: filter.owners.clone(),
                executable_by: filter.executable_by.clone(),
                filters: filters.clone(),
                include_deprecated: filter.include_deprecated,
                include_disabled: filter.include_disabled,
            };
            async move {
                let page = retry::idempotent(|| {
                    let (mut service, request) = (client.image_service(), request.clone());
                    async move { service.list_images(request).await }
                });
                let page = page.await.map_err(|status| Error::rpc(WHAT, status))?;
                let page = page.into_inner();
                let images = page.images.into_iter();
                let images = images.map(|image| Image::from_proto(WHAT, Some(image)));
                Ok((images.collect::<Result<_>>()?, page.next_page_token))
            }
        })
    }

    /// Changes an image, and returns it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if there is no such image, [`ErrorKind::Invalid`] for a time or a
    /// description that cannot be; those of the connection.
    pub async fn update_image(&self, image: &str, update: ImageUpdate) -> Result<Image> {
        let what = format!("change image {image}");
        let protection = match update.protection {
            None => v1::ImageProtection::Unspecified,
            Some(Protection::Off) => v1::ImageProtection::Off,
            Some(Protection::On) => v1::ImageProtection::On,
            Some(Protection::WithCooldown) => v1::ImageProtection::WithCooldown,
            Some(Protection::Cooldown | Protection::Unknown) => {
                let why = "that protection cannot be set";
                return Err(Error::new(ErrorKind::Invalid, what, why));
            }
        };
        let deprecated_at = update.deprecated_at;
        let request = v1::UpdateImageRequest {
            image: image.to_owned(),
            description: update.description,
            deprecated_at: deprecated_at.flatten().map(timestamp),
            never_deprecated: deprecated_at == Some(None),
            disabled: update.disabled,
            protection: protection.into(),
        };
        let updated = retry::idempotent(|| {
            let (mut service, request) = (self.image_service(), request.clone());
            async move { service.update_image(request).await }
        });
        let updated = updated.await.map_err(|status| Error::rpc(&what, status))?;
        Image::from_proto(&what, Some(updated.into_inner()))
    }

    /// Sets tags of an image, and removes those with the keys in `remove`, in one step. Returns
    /// the updated image.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if there is no such image, [`ErrorKind::Invalid`] for invalid tags;
    /// those of the connection.
    pub async fn tag_image(
        &self,
        image: &str,
        set: BTreeMap<String, String>,
        remove: Vec<String>,
    ) -> Result<Image> {
        let what = format!("tag image {image}");
        let request = v1::TagImageRequest {
            image: image.to_owned(),
            set,
            remove,
        };
        let tagged = retry::idempotent(|| {
            let (mut service, request) = (self.image_service(), request.clone());
            async move { service.tag_image(request).await }
        });
        let tagged = tagged.await.map_err(|status| Error::rpc(&what, status))?;
        Image::from_proto(&what, Some(tagged.into_inner()))
    }

    /// Shares an image, and returns it: others may see it, by its id, and launch it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if there is no such image, [`ErrorKind::Conflict`] for one that is
    /// not available, and for everybody unless the owner's account allows that; those of the
    /// connection.
    pub async fn share_image(&self, image: &str, with: Sharing) -> Result<Image> {
        let what = format!("share image {image}");
        let request = v1::ShareImageRequest {
            image: image.to_owned(),
            accounts: with.accounts,
            everybody: with.everybody,
        };
        let shared = retry::idempotent(|| {
            let (mut service, request) = (self.image_service(), request.clone());
            async move { service.share_image(request).await }
        });
        let shared = shared.await.map_err(|status| Error::rpc(&what, status))?;
        Image::from_proto(&what, Some(shared.into_inner()))
    }

    /// Ends the sharing of an image with these, and returns it. What they made of it stays.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if there is no such image; those of the connection.
    pub async fn unshare_image(&self, image: &str, with: Sharing) -> Result<Image> {
        let what = format!("end the sharing of image {image}");
        let request = v1::UnshareImageRequest {
            image: image.to_owned(),
            accounts: with.accounts,
            everybody: with.everybody,
        };
        let unshared = retry::idempotent(|| {
            let (mut service, request) = (self.image_service(), request.clone());
            async move { service.unshare_image(request).await }
        });
        let unshared = unshared.await.map_err(|status| Error::rpc(&what, status))?;
        Image::from_proto(&what, Some(unshared.into_inner()))
    }

    /// Deregisters an image: nobody can use it any more. What was made from it stays. With
    /// `delete_snapshots`, those of its snapshots are deleted that belong to its owner and that no
    /// other image needs.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if there is no such image, [`ErrorKind::Conflict`] while it is
    /// protected; those of the connection.
    pub async fn deregister_image(
        &self,
        image: &str,
        delete_snapshots: bool,
    ) -> Result<DeregisteredImage> {
        let what = format!("deregister image {image}");
        let request = v1::DeregisterImageRequest {
            image: image.to_owned(),
            delete_snapshots,
        };
        let gone = retry::while_busy(|| {
            let (mut service, request) = (self.image_service(), request.clone());
            async move { service.deregister_image(request).await }
        });
        let gone = gone.await.map_err(|status| Error::rpc(&what, status))?;
        let gone = gone.into_inner();
        let snapshots = gone.snapshots.into_iter().map(|deletion| {
            let outcome = deletion.outcome.unwrap_or_default();
            SnapshotDeletion {
                outcome: Snapshot::deleted(&deletion.snapshot, outcome),
                snapshot: deletion.snapshot,
            }
        });
        Ok(DeregisteredImage {
            snapshots: snapshots.collect(),
            image: Image::from_proto(&what, gone.deregistered)?,
        })
    }

    /// Gives an image to another account, and returns it. Its snapshots stay where they are. Only
    /// the administrator may.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if there is no such image or account,
    /// [`ErrorKind::AlreadyExists`] if the account has an image of that name; those of the
    /// connection.
    pub async fn give_image(&self, image: &str, account: &str) -> Result<Image> {
        let what = format!("give image {image} to account {account}");
        let request = v1::GiveImageRequest {
            image: image.to_owned(),
            account: account.to_owned(),
        };
        let given = retry::while_busy(|| {
            let (mut service, request) = (self.image_service(), request.clone());
            async move { service.give_image(request).await }
        });
        let given = given.await.map_err(|status| Error::rpc(&what, status))?;
        Image::from_proto(&what, Some(given.into_inner()))
    }
}

impl ImageDevice {
    fn to_proto(&self, what: &str) -> Result<v1::ImageDevice> {
        let source = match &self.source {
            DeviceSource::Snapshot(key) => Source::Snapshot(key.clone()),
            DeviceSource::Empty => Source::Empty(true),
            DeviceSource::Ephemeral(number) => Source::Ephemeral(*number),
            DeviceSource::Unknown => {
                let why = format!("the source of device {} is not known", self.name);
                return Err(Error::new(ErrorKind::Invalid, what, why));
            }
        };
        Ok(v1::ImageDevice {
            name: self.name.clone(),
            source: Some(source),
            size_bytes: self.size_bytes.unwrap_or_default(),
            delete_on_termination: self.delete_on_termination,
        })
    }

    fn from_proto(device: v1::ImageDevice) -> Self {
        let source = match device.source {
            Some(Source::Snapshot(id)) => DeviceSource::Snapshot(id),
            Some(Source::Empty(_)) => DeviceSource::Empty,
            Some(Source::Ephemeral(number)) => DeviceSource::Ephemeral(number),
            None => DeviceSource::Unknown,
        };
        Self {
            name: device.name,
            size_bytes: (device.size_bytes != 0).then_some(device.size_bytes),
            delete_on_termination: device.delete_on_termination,
            source,
        }
    }
}

impl Image {
    fn from_proto(what: &str, image: Option<v1::Image>) -> Result<Self> {
        let Some(image) = image else {
            return Err(Error::protocol(what, "an answer without its image"));
        };
        let state = match image.state() {
            v1::ImageState::Available => ImageState::Available,
            v1::ImageState::Pending => ImageState::Pending,
            v1::ImageState::Failed => ImageState::Failed,
            v1::ImageState::Disabled => ImageState::Disabled,
            v1::ImageState::Unspecified => ImageState::Unknown,
        };
        let architecture = match image.architecture() {
            v1::ImageArchitecture::X8664 => Architecture::X86_64,
            v1::ImageArchitecture::Arm64 => Architecture::Arm64,
            v1::ImageArchitecture::I386 => Architecture::I386,
            v1::ImageArchitecture::Unspecified => Architecture::Unknown,
        };
        let platform = match image.platform() {
            v1::ImagePlatform::Linux => Platform::Linux,
            v1::ImagePlatform::Windows => Platform::Windows,
            v1::ImagePlatform::Unspecified => Platform::Unknown,
        };
        let boot_mode = match image.boot_mode() {
            v1::ImageBootMode::Unspecified if image.boot_mode == 0 => None,
            v1::ImageBootMode::Unspecified => Some(BootMode::Unknown),
            v1::ImageBootMode::Bios => Some(BootMode::Bios),
            v1::ImageBootMode::Uefi => Some(BootMode::Uefi),
            v1::ImageBootMode::UefiPreferred => Some(BootMode::UefiPreferred),
        };
        let protection = match image.protection() {
            v1::ImageProtection::Off => Protection::Off,
            v1::ImageProtection::On => Protection::On,
            v1::ImageProtection::WithCooldown => Protection::WithCooldown,
            v1::ImageProtection::Cooldown => Protection::Cooldown,
            v1::ImageProtection::Unspecified => Protection::Unknown,
        };
        let time = |time| {
            let wrong = || Error::protocol(what, format!("image {} has an invalid time", image.id));
            system_time(time).ok_or_else(wrong)
        };
        let no_time = || Error::protocol(what, format!("image {} has no time", image.id));
        Ok(Self {
            state,
            architecture,
            platform,
            boot_mode,
            protection,
            created_at: time(image.created_at.ok_or_else(no_time)?)?,
            deprecated_at: image.deprecated_at.map(time).transpose()?,
            protected_until: image.protected_until.map(time).transpose()?,
            devices: image
                .devices
                .into_iter()
                .map(ImageDevice::from_proto)
                .collect(),
            id: image.id,
            name: image.name,
            description: image.description,
            owner: image.owner,
            state_reason: image.state_reason,
            root_device: image.root_device,
            tags: image.tags,
            sharing: Sharing {
                accounts: image.shared_accounts,
                everybody: image.shared_with_everybody,
            },
        })
    }
}
