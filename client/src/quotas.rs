//! Limits of an account.

use varve_proto::v1;

/// Whether an account may share snapshots with everybody.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash)]
#[non_exhaustive]
pub enum PublicAccessBlock {
    /// It may.
    Off,
    /// It shares nothing more. What is shared stays so.
    NewSharing,
    /// Nobody sees what it has shared with everybody, as long as this is set.
    AllSharing,
    /// A block that this version of the client does not know.
    Unknown,
}

impl PublicAccessBlock {
    /// The block as one lowercase word: stable, for programs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::NewSharing => "new_sharing",
            Self::AllSharing => "all_sharing",
            Self::Unknown => "unknown",
        }
    }

    pub(crate) fn from_proto(block: v1::PublicAccessBlock) -> Self {
        match block {
            v1::PublicAccessBlock::Off => Self::Off,
            v1::PublicAccessBlock::NewSharing => Self::NewSharing,
            v1::PublicAccessBlock::AllSharing => Self::AllSharing,
            v1::PublicAccessBlock::Unspecified => Self::Unknown,
        }
    }

    pub(crate) fn to_proto(self) -> v1::PublicAccessBlock {
        match self {
            Self::Off => v1::PublicAccessBlock::Off,
            Self::NewSharing => v1::PublicAccessBlock::NewSharing,
            Self::AllSharing => v1::PublicAccessBlock::AllSharing,
            Self::Unknown => v1::PublicAccessBlock::Unspecified,
        }
    }
}

/// Something of which an account may have a limited amount.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash)]
#[non_exhaustive]
pub enum Quota {
    /// Volumes that belong to it.
    Volumes,
    /// Snapshots that belong to it, also pending and failed ones.
    Snapshots,
    /// Volumes that belong to it and are attached.
    AttachedVolumes,
    /// Uploads of it that are under way.
    Uploads,
    /// Requests of it in a second.
    RequestsPerSecond,
    /// Plain bytes of the chunks that its snapshots and volumes have, each chunk counted once, and
    /// of its uploads under way.
    StoredBytes,
    /// Images that belong to it.
    Images,
    /// A quota that this version of the client does not know.
    Unknown,
}

impl Quota {
    /// The quota as one lowercase word: stable, for programs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Volumes => "volumes",
            Self::Snapshots => "snapshots",
            Self::AttachedVolumes => "attached_volumes",
            Self::Uploads => "uploads",
            Self::RequestsPerSecond => "requests_per_second",
            Self::StoredBytes => "stored_bytes",
            Self::Images => "images",
            Self::Unknown => "unknown",
        }
    }

    pub(crate) fn from_proto(quota: v1::Quota) -> Self {
        match quota {
            v1::Quota::Volumes => Self::Volumes,
            v1::Quota::Snapshots => Self::Snapshots,
            v1::Quota::AttachedVolumes => Self::AttachedVolumes,
            v1::Quota::Uploads => Self::Uploads,
            v1::Quota::RequestsPerSecond => Self::RequestsPerSecond,
            v1::Quota::StoredBytes => Self::StoredBytes,
            v1::Quota::Images => Self::Images,
            v1::Quota::Unspecified => Self::Unknown,
        }
    }

    pub(crate) fn to_proto(self) -> v1::Quota {
        match self {
            Self::Volumes => v1::Quota::Volumes,
            Self::Snapshots => v1::Quota::Snapshots,
            Self::AttachedVolumes => v1::Quota::AttachedVolumes,
            Self::Uploads => v1::Quota::Uploads,
            Self::RequestsPerSecond => v1::Quota::RequestsPerSecond,
            Self::StoredBytes => v1::Quota::StoredBytes,
            Self::Images => v1::Quota::Images,
            Self::Unknown => v1::Quota::Unspecified,
        }
    }
}

/// A quota of an account, and what of it is used.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct AccountQuota {
    /// The quota.
    pub quota: Quota,
    /// Its limit; `None`: there is none.
    pub limit: Option<u64>,
    /// What the account has now, where the daemon tells it: in
    /// [`Client::account`](crate::Client::account) and
    /// [`Client::who_am_i`](crate::Client::who_am_i).
    pub used: Option<u64>,
}

impl AccountQuota {
    pub(crate) fn from_proto(quota: &v1::AccountQuota) -> Self {
        Self {
            quota: Quota::from_proto(quota.quota()),
            limit: quota.limit,
            used: quota.used,
        }
    }
}
