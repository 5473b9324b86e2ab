//! Images as records: register, find, list, change, share, deregister.
//!
//! An image has no content of its own: it names snapshots, and says what a machine that boots them
//! looks like. A snapshot that an image needs is not deleted. So the state of an image is the state
//! of its snapshots, and nobody can see one change without the other.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use super::Store;
use crate::{
    Error, Result,
    engine::{ListQuery, Priority},
    format::{CatalogRecord as _, Change, keys::Holdings, volume::SECTOR_BYTES},
    limits,
    meta::{
        self, AccountId, Architecture, BlockDevice, BootMode, DeviceSource, ImageId, ImageKey,
        ImageRecord, Key, Lookup as _, Meta, Platform, Protection, Sharing, SnapshotId,
        SnapshotKey, SnapshotRecord, SnapshotState,
    },
    read::SnapshotReader,
    volume::check_size,
};

/// An image to be registered.
#[derive(Debug, Clone, Default)]
pub struct NewImage {
    /// Its id; `None`: a random one.
    pub id: Option<ImageId>,
    /// The account that it will belong to.
    pub owner: AccountId,
    /// Its name.
    pub name: String,
    /// Its description; empty: none.
    pub description: String,
    /// The processor that it is for.
    pub architecture: Architecture,
    /// What runs on it.
    pub platform: Platform,
    /// The firmware that it boots with; `None`: not said.
    pub boot_mode: Option<BootMode>,
    /// The name of the device that it boots from.
    pub root_device: String,
    /// Its devices, the one that it boots from among them.
    pub devices: Vec<NewDevice>,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

/// A device of an image to be registered.
#[derive(Debug, Clone)]
pub struct NewDevice {
    /// Its name.
    pub name: String,
    /// Its first content.
    pub source: NewSource,
    /// Size of its volume, a multiple of 512 bytes. `None`: that of the snapshot.
    pub size_bytes: Option<u64>,
    /// Whether its volume is deleted with the instance. `None`: yes for the root, else no.
    pub delete_on_termination: Option<bool>,
}

/// The first content of a device of an image to be registered.
#[derive(Debug, Clone)]
pub enum NewSource {
    /// A snapshot, which may be pending.
    Snapshot(SnapshotKey),
    /// Zeros.
    Empty,
    /// A scratch volume with this number.
    Ephemeral(u32),
}

/// An image, and what its snapshots make of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its record.
    pub record: ImageRecord,
    /// Whether it can be used.
    pub state: ImageState,
}

/// Whether an image can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageState {
    /// It can.
    Available,
    /// A snapshot of it is pending.
    Pending,
    /// A snapshot of it has failed.
    Failed {
        /// Why.
        reason: String,
    },
    /// Its owner has disabled it.
    Disabled,
}

impl fmt::Display for ImageState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Available => "available",
            Self::Pending => "pending",
            Self::Failed { .. } => "failed",
            Self::Disabled => "disabled",
        })
    }
}

/// A change of an image. `None` changes nothing.
#[derive(Debug, Clone, Default)]
pub struct ImageChange {
    /// Its description.
    pub description: Option<String>,
    /// Its time of deprecation, in nanoseconds since 1970; `Some(None)`: none.
    pub deprecated_at_ns: Option<Option<u64>>,
    /// Whether nobody may use it. A disabled image is shared with nobody, also not once it is
    /// enabled again.
    pub is_disabled: Option<bool>,
    /// Its protection: [`Protection::Off`] begins the cooldown of one that has such.
    pub protection: Option<Protection>,
}

/// An image that is gone, and what became of its snapshots.
#[derive(Debug)]
pub struct Deregistered {
    /// As it was.
    pub image: Image,
    /// Its snapshots, ascending: the last record of each that was deleted, or why it stays.
    pub snapshots: Vec<(SnapshotId, Result<SnapshotRecord>)>,
}

impl Store {
    /// Registers an image. Its snapshots may be pending: then it is, too.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for what cannot be: a name, a description, tags, devices;
    /// [`Error::AlreadyExists`] for a name or an id that another image has;
    /// [`Error::NotFound`] without the owner or a snapshot;
    /// [`Error::NotCompleted`] for a snapshot that has failed;
    /// [`Error::Quota`] and [`Error::TooMany`] when there are as many images as may be.
    pub async fn register_image(&self, new: NewImage) -> Result<Image> {
        check_new(&new)?;
        let id = match new.id {
            Some(id) => id,
            None => ImageId::random()?,
        };
        let register = move |meta: &dyn Meta| {
            let image = Image::of(meta, into_record(meta, new.clone(), id)?)?;
            Ok((vec![Change::put(&image.record)], image))
        };
        self.engine.commit.change((), register).await
    }

    /// The image of that name or id.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`].
    pub async fn image(&self, key: &ImageKey) -> Result<Image> {
        let key = key.clone();
        let find = move |meta: &dyn Meta| Image::of(meta, ImageRecord::find(meta, &key)?);
        self.engine.meta(Priority::Read, find).await
    }

    /// Lists images by owner and name, ascending by bytes: those that are shown.
    ///
    /// # Errors
    ///
    /// Errors of reading the catalog.
    pub async fn list_images(
        &self,
        query: ListQuery,
        is_shown: impl Fn(&ImageRecord) -> bool,
    ) -> Result<Vec<Image>> {
        let records = self.engine.list_shown(query, is_shown).await?;
        let mut images = Vec::with_capacity(records.len());
        let mut left = records.into_iter();
        loop {
            let some: Vec<ImageRecord> = left.by_ref().take(limits::LIST_SLICE_RECORDS).collect();
            if some.is_empty() {
                return Ok(images);
            }
            let look = move |meta: &dyn Meta| {
                let images = some.into_iter().map(|record| Image::of(meta, record));
                images.collect::<Result<Vec<_>>>()
            };
            images.extend(self.engine.meta(Priority::Manage, look).await?);
        }
    }

    /// Changes an image.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::Invalid`] for a description or a time that cannot be;
    /// [`Error::ImageUnavailable`] for one that is pending or has failed and is to be disabled.
    pub async fn update_image(&self, key: &ImageKey, change: ImageChange) -> Result<Image> {
        let (key, now_ns) = (key.clone(), meta::now_ns());
        let update = move |meta: &dyn Meta| {
            let before = ImageRecord::find(meta, &key)?;
            let record = changed(meta, before.clone(), &change, now_ns)?;
            let changes = (record != before).then(|| Change::put(&record));
            Ok((changes.into_iter().collect(), Image::of(meta, record)?))
        };
        self.engine.commit.change((), update).await
    }

    /// Sets and removes tags of an image, in one step. A tag that is both set and removed is set.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], and [`Error::Invalid`] for tags that cannot be.
    pub async fn tag_image(
        &self,
        key: &ImageKey,
        set: BTreeMap<String, String>,
        remove: Vec<String>,
    ) -> Result<Image> {
        let tagged = self.engine.tag(key.clone(), set, remove).await?;
        self.as_it_is(tagged).await
    }

    /// Shares an image with accounts, or with everybody: they may see it by its id, and launch it.
    /// The accounts need not exist. One that is shared with everybody is deprecated after
    /// [`PUBLIC_DEPRECATION_MAX`](limits::PUBLIC_DEPRECATION_MAX) at the latest.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::ImageUnavailable`] for one that is not available;
    /// [`Error::PublicAccessBlocked`] for everybody unless the owner allows that;
    /// [`Error::TooMany`] for more than [`SHARED_ACCOUNTS_MAX`](limits::SHARED_ACCOUNTS_MAX)
    /// accounts.
    pub async fn share_image(&self, key: &ImageKey, with: Sharing) -> Result<Image> {
        let check = |meta: &dyn Meta, record: &mut ImageRecord| {
            available(meta, record)?;
            if record.sharing.everybody {
                let latest = public_deprecation(record);
                let at = record.deprecated_at_ns.unwrap_or(latest);
                record.deprecated_at_ns = Some(at.min(latest));
            }
            Ok(())
        };
        let shared = self.share(key, with, check).await?;
        self.as_it_is(shared).await
    }

    /// Ends what [`share_image`](Self::share_image) began. What accounts made of the image
    /// meanwhile stays, and so does what they have open.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`].
    pub async fn unshare_image(&self, key: &ImageKey, with: Sharing) -> Result<Image> {
        let unshared = self.unshare(key, with).await?;
        self.as_it_is(unshared).await
    }

    /// Gives an image to another account. Its snapshots stay where they are.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] without the image or the account; [`Error::AlreadyExists`] if the
    /// account has an image of that name; [`Error::Quota`] if it may have no more.
    pub async fn give_image(&self, key: &ImageKey, to: AccountId) -> Result<Image> {
        let id = self.engine.find(key.clone()).await?.id;
        let given = self.give::<ImageRecord>(id, to).await?;
        self.as_it_is(given).await
    }

    /// The image with a record that was changed just now. It is the answer to that change, also if
    /// the image has gone meanwhile.
    async fn as_it_is(&self, record: ImageRecord) -> Result<Image> {
        let look = move |meta: &dyn Meta| Image::of(meta, record);
        self.engine.meta(Priority::Read, look).await
    }

    /// Deregisters an image: nobody can use it any more. What was made from it stays. Its snapshots
    /// stay, or in the same change of the catalog those are deleted that belong to its owner and
    /// that no other image needs.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::Protected`].
    pub async fn deregister_image(
        &self,
        key: &ImageKey,
        with_snapshots: bool,
    ) -> Result<Deregistered> {
        let (key, now_ns) = (key.clone(), meta::now_ns());
        let plan = move |meta: &dyn Meta| {
            let record = ImageRecord::find(meta, &key)?;
            check_protection(&record, now_ns)?;
            let state = state_of(meta, &record)?;
            Ok((record, state))
        };
        let deleted = self.volumes.delete_image(plan, with_snapshots).await?;
        let (record, state, snapshots) = deleted;
        Ok(Deregistered {
            image: Image { record, state },
            snapshots,
        })
    }

    /// Opens a device of an image for reading: the one that it boots from unless another is named.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] without the image, or a device of that name with a snapshot;
    /// [`Error::ImageUnavailable`]; errors of opening the snapshot.
    pub async fn open_image(
        &self,
        key: &ImageKey,
        device: Option<&str>,
    ) -> Result<(ImageRecord, SnapshotReader)> {
        let (key, device) = (key.clone(), device.map(str::to_owned));
        let find = move |meta: &dyn Meta| {
            let record = ImageRecord::find(meta, &key)?;
            let name = device.as_ref().unwrap_or(&record.root_device);
            let snapshot = record.device(name).and_then(|it| it.source.snapshot());
            let Some(snapshot) = snapshot else {
                return Err(Error::NotFound {
                    what: "device with a snapshot",
                    name: name.clone(),
                });
            };
            available(meta, &record)?;
            let snapshot = SnapshotRecord::find(meta, &Key::Id(snapshot))?;
            Ok((record, snapshot))
        };
        let (record, snapshot) = self.engine.meta(Priority::Read, find).await?;
        let reader = SnapshotReader::open(self.engine.clone(), snapshot).await?;
        Ok((record, reader))
    }
}

impl Image {
    /// The image of a record, with what its snapshots make of it.
    fn of(meta: &dyn Meta, record: ImageRecord) -> Result<Self> {
        let state = state_of(meta, &record)?;
        Ok(Self { record, state })
    }
}

/// What the snapshots of an image make of it.
fn state_of(meta: &dyn Meta, record: &ImageRecord) -> Result<ImageState> {
    if record.is_disabled {
        return Ok(ImageState::Disabled);
    }
    let mut state = ImageState::Available;
    for id in record.snapshots() {
        let failed = |reason| ImageState::Failed { reason };
        match SnapshotRecord::by_id(meta, id)?.map(|it| it.state) {
            Some(SnapshotState::Completed(_)) => {}
            Some(SnapshotState::Pending) => state = ImageState::Pending,
            Some(SnapshotState::Failed { reason }) => {
                return Ok(failed(format!("snapshot {id} has failed: {reason}")));
            }
            None => return Ok(failed(format!("snapshot {id} is lost"))),
        }
    }
    Ok(state)
}

/// Checks that an image is available.
fn available(meta: &dyn Meta, record: &ImageRecord) -> Result<()> {
    let (state, why) = match state_of(meta, record)? {
        ImageState::Available => return Ok(()),
        ImageState::Pending => (
            "pending",
            "its snapshots are on their way into the store".into(),
        ),
        ImageState::Failed { reason } => ("failed", reason),
        ImageState::Disabled => ("disabled", "its owner can enable it".into()),
    };
    Err(Error::ImageUnavailable {
        name: record.name.clone(),
        state,
        why,
    })
}

/// Checks a new image, without the catalog.
fn check_new(new: &NewImage) -> Result<()> {
    meta::check_image_name(&new.name)?;
    meta::check_text(
        "image",
        "description",
        &new.description,
        limits::DESCRIPTION_CHARS_MAX,
    )?;
    meta::check_tags("image", &new.tags)?;
    if new.devices.len() > limits::IMAGE_DEVICES_MAX {
        return Err(Error::TooMany {
            what: "devices of an image",
            most: limits::IMAGE_DEVICES_MAX as u64,
        });
    }
    let invalid = |why: String| Err(Error::Invalid(format!("image {:?}: {why}", new.name)));
    let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    for device in &new.devices {
        meta::check_device_name(&device.name)?;
        if !names.insert(&device.name) {
            return invalid(format!("two devices are named {}", device.name));
        }
        if let NewSource::Ephemeral(number) = device.source {
            if number >= limits::EPHEMERAL_DEVICES_MAX {
                let last = limits::EPHEMERAL_DEVICES_MAX - 1;
                return invalid(format!(
                    "ephemeral{number}: the last one is ephemeral{last}"
                ));
            }
            if !numbers.insert(number) {
                return invalid(format!("ephemeral{number} is there twice"));
            }
        }
    }
    let root = new.devices.iter().find(|it| it.name == new.root_device);
    match root.map(|root| &root.source) {
        Some(NewSource::Snapshot(_)) => Ok(()),
        Some(NewSource::Empty | NewSource::Ephemeral(_)) => invalid(format!(
            "its root device {} has no snapshot to boot from",
            new.root_device
        )),
        None => invalid(format!(
            "its root device {:?} is not among its devices",
            new.root_device
        )),
    }
}

/// The record of a new image.
fn into_record(meta: &dyn Meta, new: NewImage, id: ImageId) -> Result<ImageRecord> {
    meta::check_owner(meta, new.owner)?;
    if meta.totals()?.others.of(ImageRecord::KIND) >= limits::IMAGES_MAX {
        return Err(Error::TooMany {
            what: "images",
            most: limits::IMAGES_MAX,
        });
    }
    let more = Holdings {
        images: 1,
        ..Holdings::default()
    };
    meta::check_room(meta, new.owner, more)?;
    let mut devices = Vec::with_capacity(new.devices.len());
    for device in new.devices {
        let is_root = device.name == new.root_device;
        devices.push(BlockDevice {
            source: source_of(meta, &device)?,
            delete_on_termination: device.delete_on_termination.unwrap_or(is_root),
            name: device.name,
        });
    }
    let record = ImageRecord {
        id,
        name: new.name,
        owner: new.owner,
        description: new.description,
        created_at_ns: meta::now_ns(),
        architecture: new.architecture,
        platform: new.platform,
        boot_mode: new.boot_mode,
        root_device: new.root_device,
        devices,
        is_disabled: false,
        deprecated_at_ns: None,
        protection: Protection::Off,
        tags: new.tags,
        sharing: Sharing::default(),
    };
    if let Some(same) = ImageRecord::by_id(meta, id)? {
        return Err(Error::AlreadyExists {
            what: ImageRecord::KIND.what,
            name: same.id.to_string(),
            id: same.id.to_string(),
        });
    }
    match record.taken_by(meta)? {
        Some(taken) => Err(taken.name_taken_error()),
        None => Ok(record),
    }
}

/// The first content of a new device, with the size of its volume.
fn source_of(meta: &dyn Meta, device: &NewDevice) -> Result<DeviceSource> {
    let invalid = |why: String| Error::Invalid(format!("device {}: {why}", device.name));
    let check = |size_bytes| {
        check_size(format_args!("device {}", device.name), size_bytes)?;
        Ok::<_, Error>(size_bytes)
    };
    match (&device.source, device.size_bytes) {
        (NewSource::Snapshot(key), size_bytes) => {
            let snapshot = SnapshotRecord::find(meta, key)?;
            if matches!(snapshot.state, SnapshotState::Failed { .. }) {
                snapshot.completed()?;
            }
            let least = snapshot.size_bytes.next_multiple_of(SECTOR_BYTES);
            let size_bytes = check(size_bytes.unwrap_or(least))?;
            if size_bytes < least {
                return Err(invalid(format!(
                    "{size_bytes} bytes are too few for snapshot {:?}, which has {}",
                    snapshot.label(),
                    snapshot.size_bytes
                )));
            }
            let id = snapshot.id;
            Ok(DeviceSource::Snapshot { id, size_bytes })
        }
        (NewSource::Empty, Some(size_bytes)) => Ok(DeviceSource::Empty {
            size_bytes: check(size_bytes)?,
        }),
        (NewSource::Empty, None) => Err(invalid("a size is needed without a snapshot".to_owned())),
        (NewSource::Ephemeral(number), None) => Ok(DeviceSource::Ephemeral { number: *number }),
        (NewSource::Ephemeral(_), Some(_)) => {
            let why = "the size of an ephemeral device is said at launch";
            Err(invalid(why.to_owned()))
        }
    }
}

/// An image after a change.
fn changed(
    meta: &dyn Meta,
    mut record: ImageRecord,
    change: &ImageChange,
    now_ns: u64,
) -> Result<ImageRecord> {
    if let Some(description) = &change.description {
        meta::check_text(
            "image",
            "description",
            description,
            limits::DESCRIPTION_CHARS_MAX,
        )?;
        record.description.clone_from(description);
    }
    if let Some(at_ns) = change.deprecated_at_ns {
        record.deprecated_at_ns = deprecation(&record, at_ns, now_ns)?;
    }
    match change.is_disabled {
        Some(true) if !record.is_disabled => {
            available(meta, &record)?;
            record.is_disabled = true;
            record.sharing = Sharing::default();
        }
        Some(is_disabled) => record.is_disabled = is_disabled,
        None => {}
    }
    if let Some(protection) = change.protection {
        record.protection = match (record.protection, protection) {
            (Protection::WithCooldown, Protection::Off) => Protection::Cooldown {
                until_ns: after(now_ns, limits::PROTECTION_COOLDOWN),
            },
            (before @ Protection::Cooldown { .. }, Protection::Off) => before,
            // Otherwise this would be the way around the cooldown.
            (Protection::WithCooldown | Protection::Cooldown { .. }, Protection::On) => {
                Protection::WithCooldown
            }
            (_, wanted) => wanted,
        };
    }
    Ok(record)
}

/// Checks a time of deprecation, and rounds it to the nearest minute.
fn deprecation(record: &ImageRecord, at_ns: Option<u64>, now_ns: u64) -> Result<Option<u64>> {
    const MINUTE_NS: u64 = 60_000_000_000;
    let invalid = |why| Err(Error::Invalid(format!("image {:?}: {why}", record.name)));
    let Some(at_ns) = at_ns else {
        return match record.sharing.everybody {
            true => invalid("an image that is shared with everybody has a time of deprecation"),
            false => Ok(None),
        };
    };
    let minutes = at_ns.saturating_add(MINUTE_NS / 2) / MINUTE_NS;
    let at_ns = minutes.saturating_mul(MINUTE_NS);
    if at_ns.saturating_add(MINUTE_NS) <= now_ns {
        return invalid("its time of deprecation is in the past");
    }
    if at_ns > after(now_ns, limits::DEPRECATION_MAX) {
        return invalid("its time of deprecation is more than 10 years ahead");
    }
    if record.sharing.everybody && at_ns > public_deprecation(record) {
        return invalid(
            "it is shared with everybody, and then deprecated 2 years after it was registered at \
             the latest",
        );
    }
    Ok(Some(at_ns))
}

/// When an image that is shared with everybody is deprecated at the latest.
fn public_deprecation(record: &ImageRecord) -> u64 {
    after(record.created_at_ns, limits::PUBLIC_DEPRECATION_MAX)
}

fn after(instant_ns: u64, time: std::time::Duration) -> u64 {
    let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    instant_ns.saturating_add(time)
}

/// Checks that an image may be deregistered.
fn check_protection(record: &ImageRecord, now_ns: u64) -> Result<()> {
    let why = match record.protection {
        Protection::Off => return Ok(()),
        Protection::Cooldown { until_ns } if until_ns <= now_ns => return Ok(()),
        Protection::On | Protection::WithCooldown => "end its protection first".to_owned(),
        Protection::Cooldown { until_ns } => {
            let minutes = (until_ns - now_ns).div_ceil(60_000_000_000);
            format!(
                "its protection ended with a cooldown, which has {} h {} min left",
                minutes / 60,
                minutes % 60
            )
        }
    };
    Err(Error::Protected {
        name: record.name.clone(),
        why,
    })
}
