//! Images: what a machine boots from, as records.

mod filter;

use std::collections::BTreeMap;

use varve_store::{
    AccountId, Architecture, BootMode, Deregistered, Image, ImageChange, ImageId, ImageKey,
    ImageRecord, ListPlace, ListQuery, NewDevice, NewImage, NewSource, Platform, SnapshotId,
    SnapshotReader, SnapshotRecord, now_ns,
};

pub(crate) use self::filter::Filter;
use super::{
    Grantees, Service, Snapshot, TagChange,
    error::{Error, Result},
    page_token::{self, Filters},
    pages::{self, Page},
    request,
    sight::{ListScope, Sight},
};
use crate::{
    auth::{Action, Attempt, Caller, Changed, Denied, Resource, done},
    limits,
};

/// An image to be registered.
#[derive(Debug, Clone, Default)]
pub(crate) struct ImageRequest {
    /// From elsewhere; `None`: a random one.
    pub(crate) id: Option<ImageId>,
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) architecture: Architecture,
    pub(crate) platform: Platform,
    pub(crate) boot_mode: Option<BootMode>,
    pub(crate) root_device: String,
    pub(crate) devices: Vec<DeviceRequest>,
    pub(crate) tags: BTreeMap<String, String>,
}

/// A device of an image to be registered.
#[derive(Debug, Clone)]
pub(crate) struct DeviceRequest {
    pub(crate) name: String,
    pub(crate) source: DeviceContent,
    pub(crate) size_bytes: Option<u64>,
    pub(crate) delete_on_termination: Option<bool>,
}

/// The first content of a device.
#[derive(Debug, Clone)]
pub(crate) enum DeviceContent {
    /// A snapshot, by name or id.
    Snapshot(String),
    Empty,
    Ephemeral(u32),
}

/// A request for one page of a listing of images.
#[derive(Debug, Clone, Default)]
pub(crate) struct ImageListRequest {
    /// Accounts, or `self`; empty: all that the caller sees.
    pub(crate) owners: Vec<String>,
    /// `self`, `all` or an account; empty: whomever it is shared with.
    pub(crate) executable_by: String,
    pub(crate) filters: Vec<Filter>,
    pub(crate) include_deprecated: bool,
    pub(crate) include_disabled: bool,
    pub(crate) page_size: u32,
    pub(crate) page_token: String,
}

/// An image that is gone, and what became of its snapshots.
#[derive(Debug)]
pub(crate) struct DeregisteredImage {
    pub(crate) image: Image,
    pub(crate) snapshots: Vec<(SnapshotId, Result<Snapshot>)>,
}

impl Changed for Image {
    fn ids(&self) -> Vec<String> {
        vec![self.record.id.to_string()]
    }
}

/// A changed image, and what of it.
struct Updated(Image, String);

impl Changed for Updated {
    fn ids(&self) -> Vec<String> {
        self.0.ids()
    }

    fn detail(&self) -> Option<String> {
        Some(self.1.clone())
    }
}

impl Changed for Deregistered {
    fn ids(&self) -> Vec<String> {
        let deleted = self.snapshots.iter().filter(|(_, outcome)| outcome.is_ok());
        let deleted = deleted.map(|(id, _)| id.to_string());
        std::iter::once(self.image.record.id.to_string())
            .chain(deleted)
            .collect()
    }
}

/// Those with whom images of a listing are shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Executable {
    /// Whomever.
    Any,
    /// With the caller's account, by its id.
    Me(AccountId),
    /// With everybody.
    All,
    /// Images of the caller with this account.
    By(AccountId),
}

impl Service {
    /// Registers an image of snapshots.
    pub(crate) async fn register_image(&self, caller: &Caller, new: ImageRequest) -> Result<Image> {
        let (name, devices) = (new.name.clone(), new.devices.clone());
        let mut on = vec![Resource::Image(&name)];
        on.extend(devices.iter().filter_map(|device| match &device.source {
            DeviceContent::Snapshot(key) => Some(Resource::Snapshot(key)),
            DeviceContent::Empty | DeviceContent::Ephemeral(_) => None,
        }));
        let seen = self.sight(caller);
        let (store, sight) = (self.store().clone(), seen.clone());
        let change = async move {
            if new.id.is_some() && !sight.sees_others() {
                let problem = "only the administrator registers images with ids from elsewhere";
                return Err(Error::Denied(Denied::Given { what: problem }));
            }
            let devices = new.devices.into_iter().map(|device| {
                Ok(NewDevice {
                    source: match device.source {
                        DeviceContent::Snapshot(key) => {
                            // Of the caller's own: an image keeps its snapshots from being
                            // deleted, and gives their content to others.
                            NewSource::Snapshot(sight.snapshot("devices", &key)?)
                        }
                        DeviceContent::Empty => NewSource::Empty,
                        DeviceContent::Ephemeral(number) => NewSource::Ephemeral(number),
                    },
                    name: device.name,
                    size_bytes: device.size_bytes,
                    delete_on_termination: device.delete_on_termination,
                })
            });
            let new = NewImage {
                id: new.id,
                owner: sight.account()?,
                devices: devices.collect::<Result<_>>()?,
                name: new.name,
                description: new.description,
                architecture: new.architecture,
                platform: new.platform,
                boot_mode: new.boot_mode,
                root_device: new.root_device,
                tags: new.tags,
            };
            Ok(store.register_image(new).await?)
        };
        let call = (caller, Action::RegisterImage);
        let made = self.change(call, &on, change, |attempt, made: &Image| {
            let (record, state) = (&made.record, &made.state);
            let devices = record.devices.len();
            done!(attempt, id = %record.id, name = record.name, devices, %state, "image registered");
        });
        Ok(shown(&seen, made.await?))
    }

    /// The image with this name or id.
    pub(crate) async fn image(&self, caller: &Caller, key: &str) -> Result<Image> {
        let on = [Resource::Image(key)];
        let sight = self.sight(caller);
        self.pass(caller, Action::GetImage, &on, async {
            let key = sight.readable_image("image", key)?;
            Ok(shown(&sight, self.store().image(&key).await?))
        })
        .await
    }

    /// Lists images by owner and name.
    pub(crate) async fn list_images(
        &self,
        caller: &Caller,
        request: &ImageListRequest,
    ) -> Result<Page<Image>> {
        let sight = self.sight(caller);
        self.pass(caller, Action::ListImages, &[], async {
            Box::pin(self.page_of_images(&sight, request)).await
        })
        .await
    }

    async fn page_of_images(
        &self,
        sight: &Sight,
        request: &ImageListRequest,
    ) -> Result<Page<Image>> {
        let account = sight.account()?;
        let owners = owners(sight, &request.owners)?;
        let executable = executable(sight, &request.executable_by)?;
        let filters = filter::Filters::new(&request.filters)?;
        let scope = ListScope {
            owner: match (&*owners, executable) {
                (_, Executable::By(_)) => Some(account),
                ([one], _) => Some(*one),
                _ => None,
            },
            reader: (!sight.sees_others()).then_some(account),
        };
        let tokens = Filters {
            listing: page_token::IMAGES,
            scope,
            name_prefix: "",
            tags: &request.fingerprint(),
        }
        .tokens();
        let after = tokens.decode(&request.page_token)?;
        let after = after.map(|place| ListPlace::parse(&place).ok_or_else(page_token::invalid));
        let limit = pages::limit(request.page_size);
        let mut query = ListQuery {
            owner: scope.owner,
            reader: scope.reader,
            tags: filters.exact_tags(),
            after: after.transpose()?,
            // One more shows whether there is another page.
            limit: limit + 1,
            ..ListQuery::default()
        };
        let now_ns = now_ns();
        let is_listed = |record: &ImageRecord| {
            let is_own = sight.sees(record.owner);
            (owners.is_empty() || owners.contains(&record.owner))
                && executable.is_so(record)
                && (is_own || request.include_deprecated || !record.is_deprecated(now_ns))
                && (request.include_disabled || !record.is_disabled)
                && filters.pass_record(record, is_own, self.directory())
        };
        let mut found = Vec::new();
        // What the snapshots make of an image is known once it is found.
        while found.len() <= limit {
            let some = self.store().list_images(query.clone(), is_listed).await?;
            let is_end = some.len() < query.limit;
            query.after = some.last().map(|last| ListPlace::of(&last.record));
            found.extend(some.into_iter().filter(|image| filters.pass_state(image)));
            if is_end {
                break;
            }
        }
        Ok(Page::of(found, limit, tokens).map(|image| shown(sight, image)))
    }

    /// Changes an image.
    pub(crate) async fn update_image(
        &self,
        caller: &Caller,
        key: &str,
        asked: ImageChange,
    ) -> Result<Image> {
        let on = [Resource::Image(key)];
        let seen = self.sight(caller);
        let (store, sight, key) = (self.store().clone(), seen.clone(), key.to_owned());
        let change = async move {
            let key = sight.image("image", &key)?;
            let what = words(&asked);
            Ok(Updated(store.update_image(&key, asked).await?, what))
        };
        let call = (caller, Action::UpdateImage);
        let updated = self.change(call, &on, change, |attempt, Updated(image, what)| {
            let record = &image.record;
            done!(attempt, id = %record.id, name = record.name, what, "image changed");
        });
        Ok(shown(&seen, updated.await?.0))
    }

    /// Changes an image's tags.
    pub(crate) async fn tag_image(
        &self,
        caller: &Caller,
        key: &str,
        TagChange { set, remove }: TagChange,
    ) -> Result<Image> {
        let on = [Resource::Image(key)];
        let seen = self.sight(caller);
        let (store, sight, key) = (self.store().clone(), seen.clone(), key.to_owned());
        let change = async move {
            let key = sight.image("image", &key)?;
            Ok(store.tag_image(&key, set, remove).await?)
        };
        let call = (caller, Action::TagImage);
        let tagged = self.change(call, &on, change, |attempt, tagged: &Image| {
            let record = &tagged.record;
            let tags = record.tags.len();
            done!(attempt, id = %record.id, name = record.name, tags, "image tagged");
        });
        Ok(shown(&seen, tagged.await?))
    }

    /// Shares an image with others, or ends that.
    pub(crate) async fn share_image(
        &self,
        caller: &Caller,
        key: &str,
        with: Grantees,
        ends: bool,
    ) -> Result<Image> {
        let mut on = vec![Resource::Image(key)];
        on.extend(with.as_resources());
        let seen = self.sight(caller);
        let (store, sight) = (self.store().clone(), seen.clone());
        let (key, wanted) = (key.to_owned(), with.clone());
        let change = async move {
            let with = sight.grantees(&wanted)?;
            let key = sight.image("image", &key)?;
            Ok(match ends {
                true => store.unshare_image(&key, with).await?,
                false => store.share_image(&key, with).await?,
            })
        };
        let (action, message) = match ends {
            true => (Action::UnshareImage, "sharing of an image ended"),
            false => (Action::ShareImage, "image shared"),
        };
        let changed = self.change((caller, action), &on, change, move |attempt, it: &Image| {
            let record = &it.record;
            done!(
                attempt,
                id = %record.id,
                name = record.name,
                accounts = record.sharing.accounts.len(),
                everybody = record.sharing.everybody,
                "{message}"
            );
        });
        Ok(shown(&seen, changed.await?))
    }

    /// Gives an image to another account.
    pub(crate) async fn give_image(
        &self,
        caller: &Caller,
        key: &str,
        account: &str,
    ) -> Result<Image> {
        let on = [Resource::Image(key), Resource::Account(account)];
        let seen = self.sight(caller);
        let (store, sight) = (self.store().clone(), seen.clone());
        let (key, account) = (key.to_owned(), account.to_owned());
        let change = async move {
            let to = sight.known(&account)?;
            let key = sight.image("image", &key)?;
            Ok(store.give_image(&key, to).await?)
        };
        let call = (caller, Action::GiveImage);
        let given = self.change(call, &on, change, |attempt, given: &Image| {
            let (id, owner) = (given.record.id, given.record.owner);
            done!(attempt, %id, name = given.record.name, %owner, "image given");
        });
        Ok(shown(&seen, given.await?))
    }

    /// Deregisters an image, and deletes its snapshots if that is asked for.
    pub(crate) async fn deregister_image(
        &self,
        caller: &Caller,
        key: &str,
        with_snapshots: bool,
    ) -> Result<DeregisteredImage> {
        let on = [Resource::Image(key)];
        let seen = self.sight(caller);
        let (store, sight, key) = (self.store().clone(), seen.clone(), key.to_owned());
        let change = async move {
            let key = sight.image("image", &key)?;
            Ok(store.deregister_image(&key, with_snapshots).await?)
        };
        let call = (caller, Action::DeregisterImage);
        let gone = self.change(call, &on, change, tell_deregistered).await?;
        let deletions = gone.snapshots.into_iter().map(|(id, outcome)| {
            let deleted = outcome.map(|record| self.described(&seen, record));
            (id, deleted.map_err(Error::from))
        });
        Ok(DeregisteredImage {
            snapshots: deletions.collect(),
            image: shown(&seen, gone.image),
        })
    }

    /// Opens a device of an image to be read as a device.
    pub(crate) async fn open_image_export(
        &self,
        caller: &Caller,
        name: &str,
    ) -> Result<(ImageRecord, SnapshotReader)> {
        let on = [Resource::Image(name)];
        let caller = &self.resolved(caller);
        let sight = self.sight(caller);
        self.pass(caller, Action::OpenImageExport, &on, async {
            let (key, device) = split_device(name);
            let key = sight.readable_image("export", key)?;
            Ok(self.store().open_image(&key, device).await?)
        })
        .await
    }

    /// Images of the caller's account that can be opened, and whose names sort after a name: those
    /// in the first page of `limit` records that has any.
    pub(crate) async fn exported_images(
        &self,
        caller: &Caller,
        after_name: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Image>> {
        let caller = &self.resolved(caller);
        let sight = self.sight(caller);
        self.pass(caller, Action::ListExports, &[], async {
            let page = |query| self.store().list_images(query, |_| true);
            let is_exported = |it: &Image| it.state == varve_store::ImageState::Available;
            let name = |it: &Image| it.record.name.clone();
            let account = sight.account()?;
            super::exports::first_page(account, after_name, limit, page, is_exported, name).await
        })
        .await
    }
}

impl Sight {
    /// The key of the image with this name or id. For an account it is the key of nothing if the
    /// image belongs to another.
    fn image(&self, field: &'static str, text: &str) -> Result<ImageKey> {
        request::check_key("image", field, text)?;
        let owner = self.account()?;
        Ok(match ImageKey::of(owner, text) {
            ImageKey::Id(id) if !self.sees_others() => ImageKey::Owned { owner, id },
            key => key,
        })
    }

    /// The key of the image with this name or id, for reading only: it may belong to another
    /// account that shares it with the caller's.
    fn readable_image(&self, field: &'static str, text: &str) -> Result<ImageKey> {
        Ok(match self.image(field, text)? {
            ImageKey::Owned { owner, id } => ImageKey::Readable { reader: owner, id },
            key => key,
        })
    }
}

impl ImageListRequest {
    /// What a page token belongs to, beside the accounts.
    fn fingerprint(&self) -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        for (number, filter) in self.filters.iter().enumerate() {
            all.insert(format!("filter {number}"), filter.name.clone());
            for (place, value) in filter.values.iter().enumerate() {
                all.insert(format!("value {number} {place}"), value.clone());
            }
        }
        all.insert("owners".to_owned(), self.owners.join(","));
        all.insert("executable by".to_owned(), self.executable_by.clone());
        let included = (self.include_deprecated, self.include_disabled);
        all.insert("included".to_owned(), format!("{included:?}"));
        all
    }
}

impl Executable {
    fn is_so(self, record: &ImageRecord) -> bool {
        match self {
            Self::Any => true,
            Self::Me(account) | Self::By(account) => record.sharing.accounts.contains(&account),
            Self::All => record.sharing.everybody,
        }
    }
}

/// The accounts that a listing is limited to.
fn owners(sight: &Sight, asked: &[String]) -> Result<Vec<AccountId>> {
    request::at_most("owners", "accounts", asked.len(), limits::LIST_OWNERS_MAX)?;
    let owners = asked.iter().map(|text| match text.parse() {
        // Every id is one of an account, as far as the caller can tell.
        Ok(owner) => Ok(owner),
        Err(_) => sight.one_account(text),
    });
    owners.collect()
}

fn executable(sight: &Sight, asked: &str) -> Result<Executable> {
    Ok(match asked {
        "" => Executable::Any,
        "self" => Executable::Me(sight.account()?),
        "all" => Executable::All,
        one => match one.parse() {
            Ok(account) => Executable::By(account),
            Err(_) if sight.sees_others() => Executable::By(sight.known(one)?),
            Err(_) => {
                let problem = "it is `self`, `all`, or the id of an account, 12 digits";
                return Err(Error::field("executable_by", problem));
            }
        },
    })
}

/// An image as a caller sees it: its tags, and whom it is shared with, are its owner's business.
fn shown(sight: &Sight, mut image: Image) -> Image {
    if !sight.sees(image.record.owner) {
        image.record.tags.clear();
        image.record.sharing.accounts.clear();
    }
    image
}

/// The name or id of an image, and the device that is named behind an id: a name may have slashes.
fn split_device(name: &str) -> (&str, Option<&str>) {
    match name.split_once('/') {
        Some((id, device)) if id.parse::<ImageId>().is_ok() => (id, Some(device)),
        _ => (name, None),
    }
}

/// What a change asks for, for the logs.
fn words(change: &ImageChange) -> String {
    let mut words = Vec::new();
    if change.description.is_some() {
        words.push("description".to_owned());
    }
    match change.deprecated_at_ns {
        Some(Some(at_ns)) => words.push(format!("deprecated at {} s", at_ns / 1_000_000_000)),
        Some(None) => words.push("never deprecated".to_owned()),
        None => {}
    }
    match change.is_disabled {
        Some(true) => words.push("disabled".to_owned()),
        Some(false) => words.push("enabled".to_owned()),
        None => {}
    }
    if let Some(protection) = change.protection {
        words.push(format!("protection {protection:?}").to_lowercase());
    }
    words.join(", ")
}

fn tell_deregistered(attempt: &Attempt, gone: &Deregistered) {
    let record = &gone.image.record;
    let deleted = gone.snapshots.iter().filter(|(_, outcome)| outcome.is_ok());
    let deleted = deleted.count();
    done!(attempt, id = %record.id, name = record.name, deleted, "image deregistered");
    for (id, outcome) in &gone.snapshots {
        let part: Option<&SnapshotRecord> = outcome.as_ref().ok();
        if let Some(snapshot) = part {
            done!(attempt, %id, name = snapshot.name, "snapshot of an image deleted");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_follows_an_id_and_never_a_name() {
        for (name, split) in [
            ("web", ("web", None)),
            ("web/12", ("web/12", None)),
            ("ami-12345678", ("ami-12345678", None)),
            ("ami-12345678/sdb", ("ami-12345678", Some("sdb"))),
            ("ami-12345678//dev/sdb", ("ami-12345678", Some("/dev/sdb"))),
            ("ami-1234567/sdb", ("ami-1234567/sdb", None)),
        ] {
            assert_eq!(split_device(name), split);
        }
    }
}
