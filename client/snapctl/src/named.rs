//! Images, snapshots and volumes as they are named on the command line.

use std::sync::{Mutex, PoisonError};

use varve_client::{Client, Error, ErrorKind, Result};
use varve_nbd::ExportName;

/// The kind of record that a name belongs to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Image,
    Snapshot,
    Volume,
}

impl Kind {
    /// The name or id in the name of an export of this kind; `None` if it is not one.
    fn in_export(self, given: &str) -> Option<&str> {
        match (self, ExportName::parse(given)?) {
            (Self::Image, ExportName::Image(key))
            | (Self::Snapshot, ExportName::Snapshot(key))
            | (Self::Volume, ExportName::Volume(key)) => Some(key),
            _ => None,
        }
    }

    /// Returns true if the daemon has such a record of this name or id.
    async fn has(self, client: &Client, name: &str) -> Result<bool> {
        let found = match self {
            Self::Image => client.image(name).await.map(drop),
            Self::Snapshot => client.snapshot(name).await.map(drop),
            Self::Volume => client.volume(name).await.map(drop),
        };
        match found {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// The names that a command was given, for advice when a record does not exist.
#[derive(Debug, Default)]
pub(crate) struct Named(Mutex<Vec<(Kind, String)>>);

impl Named {
    /// An image's name or id, without the prefix `image/` of export names.
    pub(crate) async fn image(&self, client: &Client, given: &str) -> Result<String> {
        self.name(Kind::Image, client, given).await
    }

    /// A snapshot's name or id, without the prefix `snapshot/` of export names.
    pub(crate) async fn snapshot(&self, client: &Client, given: &str) -> Result<String> {
        self.name(Kind::Snapshot, client, given).await
    }

    /// A volume's name or id, without the prefix `volume/` of export names.
    pub(crate) async fn volume(&self, client: &Client, given: &str) -> Result<String> {
        self.name(Kind::Volume, client, given).await
    }

    async fn name(&self, kind: Kind, client: &Client, given: &str) -> Result<String> {
        let name = match kind.in_export(given) {
            // The name may begin like that, too.
            Some(rest) if !kind.has(client, given).await? => rest,
            _ => given,
        };
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.push((kind, name.to_owned()));
        Ok(name.to_owned())
    }

    /// Advice if the name belongs to another kind: a volume where a snapshot was asked for, or the
    /// other way round.
    pub(crate) async fn advice(&self, client: &Client) -> Result<Option<String>, Error> {
        let all = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        for (wanted, name) in all {
            if wanted.has(client, &name).await? {
                continue;
            }
            let other = match wanted {
                Kind::Snapshot => Kind::Volume,
                Kind::Image | Kind::Volume => Kind::Snapshot,
            };
            let name = other.in_export(&name).unwrap_or(&name);
            if !other.has(client, name).await? {
                continue;
            }
            return Ok(Some(match other {
                Kind::Snapshot if wanted == Kind::Image => format!(
                    "there is a snapshot \"{name}\": register an image of it first (snapctl image register --name NAME --block-device /dev/sda1=snapshot:{name})"
                ),
                Kind::Image | Kind::Volume => format!(
                    "there is a volume \"{name}\": make a snapshot of it first (snapctl snapshot create {name} --name NAME)"
                ),
                Kind::Snapshot => format!(
                    "there is a snapshot \"{name}\": make a volume of it first (snapctl volume create NAME --from {name})"
                ),
            }));
        }
        Ok(None)
    }
}
