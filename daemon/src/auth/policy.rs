//! What a caller may do: the one table of operations, and the one function that decides.
//!
//! Everything that the table does not allow is denied. The table knows no names and ids: an
//! operation that it allows sees only what belongs to the caller's account, see
//! [`Sight`](crate::service::Sight).

use varve_store::{AccountState, Scopes};

use super::{Action, Principal};
use crate::error::{Classified, ErrorKind};

/// Who may do an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Right {
    /// Everybody, known or not.
    Anybody,
    /// Accounts, for what they see: nothing changes.
    Read,
    /// The same, but a token needs this scope.
    ReadWith(Scopes),
    /// Accounts, for what belongs to them: something changes that a token needs this scope for.
    Change(Scopes),
    /// The administrator, with a token that has this scope, if it is with a token.
    Administrator(Scopes),
}

/// Who may do an operation.
pub(crate) const fn right(action: Action) -> Right {
    match action {
        Action::WhoAmI => Right::Anybody,

        Action::ListSnapshots
        | Action::GetSnapshot
        | Action::DiffSnapshots
        | Action::VerifySnapshot
        | Action::Download
        | Action::ReadSnapshot
        | Action::GetVolume
        | Action::ListVolumes
        | Action::ListTokens
        | Action::ListAccessKeys
        | Action::GetImage
        | Action::ListImages
        | Action::ListExports
        | Action::OpenSnapshotExport
        | Action::OpenImageExport
        | Action::CompareExport => Right::Read,

        Action::CreateSnapshots
        | Action::DeleteSnapshot
        | Action::DeleteSnapshots
        | Action::TagSnapshot
        | Action::BeginUpload
        | Action::FindMissing
        | Action::PutChunks
        | Action::PutLeaves
        | Action::CommitUpload
        | Action::AbortUpload
        | Action::ShareSnapshot
        | Action::UnshareSnapshot
        | Action::RegisterImage
        | Action::UpdateImage
        | Action::TagImage
        | Action::ShareImage
        | Action::UnshareImage
        | Action::DeregisterImage => Right::Change(Scopes::IMAGES),

        Action::CreateVolume
        | Action::CloneVolume
        | Action::ResizeVolume
        | Action::TagVolume
        | Action::DeleteVolume
        | Action::AttachVolume
        | Action::DetachVolume
        | Action::OpenVolumeExport => Right::Change(Scopes::VOLUMES),

        Action::CreateToken
        | Action::RevokeToken
        | Action::CreateAccessKey
        | Action::RevokeAccessKey => Right::Change(Scopes::ALL),

        Action::CreateCopy | Action::CancelCopy | Action::LimitCopy => {
            Right::Change(Scopes::COPY)
        }

        // Knowing the id of a chunk or a node is no right to its bytes: requests name snapshots.
        Action::HoldSnapshot
        | Action::FetchNodes
        | Action::FetchChunks
        | Action::GetCopy
        | Action::ListCopies
        | Action::EstimateCopy
        | Action::ListRemotes => Right::ReadWith(Scopes::COPY),

        // They tell of the content of all accounts.
        Action::GetStatus
        | Action::GetGcStatus
        | Action::PlanGc
        | Action::EstimateDelete
        | Action::GetUsage
        | Action::GetAccount
        | Action::ListAccounts
        | Action::ReadAudit => Right::Administrator(Scopes::READ),

        Action::RunGc
        | Action::StopGc
        // The daemon acts for nobody: endpoints and files in requests are the administrator's.
        | Action::AddRemote
        | Action::RemoveRemote
        | Action::GiveSnapshot
        | Action::GiveVolume
        | Action::GiveImage
        | Action::CreateAccount
        | Action::UpdateAccount
        | Action::RestrictAccount
        | Action::DeleteAccount => Right::Administrator(Scopes::ALL),
    }
}

/// Returns true if an operation changes something that the audit log tells of.
pub(crate) const fn is_change(action: Action) -> bool {
    match action {
        // The end of an upload tells of its parts.
        Action::BeginUpload | Action::FindMissing | Action::PutChunks | Action::PutLeaves => false,
        _ => match right(action) {
            Right::Anybody | Right::Read | Right::ReadWith(_) => false,
            // Whoever opens a volume may write to it.
            Right::Change(_) => true,
            Right::Administrator(scope) => !Scopes::READ.allow(scope),
        },
    }
}

/// Why an operation is denied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Denied {
    /// The caller is nobody that the daemon knows.
    #[error("the daemon takes only callers whom it knows, and this one acts for no account")]
    Nobody,
    /// The account is disabled.
    #[error("account {account} is disabled")]
    Disabled {
        /// Its name.
        account: String,
    },
    /// The account changes nothing.
    #[error("account {account} is read-only")]
    ReadOnly {
        /// Its name.
        account: String,
    },
    /// The operation is the administrator's.
    #[error("{action} is for the administrator, and not for account {account}")]
    Administrator {
        /// The operation.
        action: &'static str,
        /// The name of the account.
        account: String,
    },
    /// Something in the request is the administrator's to say.
    #[error("{what}")]
    Given {
        /// In words.
        what: &'static str,
    },
    /// An attach ticket is for one operation.
    #[error("an attach ticket does not allow {action}")]
    Ticket {
        /// The operation.
        action: &'static str,
    },
    /// The token has not the scope.
    #[error("the scopes of the token do not allow {action}")]
    Scope {
        /// The operation.
        action: &'static str,
    },
}

/// Returns true if an operation takes rights or things away, or lets a guest go on. It goes on
/// while the audit log cannot be written, whatever the setting: otherwise a full disk could not be
/// made empty, nor a stolen token useless.
pub(crate) const fn is_relief(action: Action) -> bool {
    matches!(
        action,
        Action::DeleteSnapshot
            | Action::DeleteSnapshots
            | Action::UnshareSnapshot
            | Action::UnshareImage
            | Action::DeregisterImage
            | Action::DetachVolume
            | Action::OpenVolumeExport
            | Action::DeleteVolume
            | Action::AbortUpload
            | Action::CancelCopy
            | Action::RunGc
            | Action::RestrictAccount
            | Action::DeleteAccount
            | Action::RevokeToken
            | Action::RevokeAccessKey
    )
}

/// Returns true if an operation counts as a request of its account. An account that makes too many
/// can still take away and give up, its guests keep their disks, and streams of chunks go on, which
/// a client cannot send twice.
pub(super) const fn counts(action: Action) -> bool {
    let is_free = matches!(
        action,
        Action::WhoAmI | Action::PutChunks | Action::CompareExport
    );
    !is_relief(action) && !is_free
}

/// Decides whether a caller may do an operation, apart from what it does it to.
///
/// # Errors
///
/// Why not.
pub(crate) fn permit(principal: Option<&Principal>, action: Action) -> Result<(), Denied> {
    let right = right(action);
    if right == Right::Anybody {
        return Ok(());
    }
    let Some(principal) = principal else {
        return Err(Denied::Nobody);
    };
    let account = || principal.account.name.clone();
    let is_other = principal.only.is_some_and(|only| only != action);
    let action = action.name();
    if is_other {
        return Err(Denied::Ticket { action });
    }
    match principal.account.state {
        AccountState::Disabled => return Err(Denied::Disabled { account: account() }),
        AccountState::ReadOnly if !matches!(right, Right::Read | Right::ReadWith(_)) => {
            return Err(Denied::ReadOnly { account: account() });
        }
        AccountState::ReadOnly | AccountState::Active => {}
    }
    let scope = match right {
        Right::Anybody | Right::Read => Scopes::READ,
        Right::ReadWith(scope) | Right::Change(scope) => scope,
        Right::Administrator(scope) if principal.is_administrator() => scope,
        Right::Administrator(_) => {
            return Err(Denied::Administrator {
                action,
                account: account(),
            });
        }
    };
    match principal.scopes.allow(scope) {
        true => Ok(()),
        false => Err(Denied::Scope { action }),
    }
}

impl Classified for Denied {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Nobody => ErrorKind::Unauthenticated,
            Self::Disabled { .. }
            | Self::ReadOnly { .. }
            | Self::Administrator { .. }
            | Self::Given { .. }
            | Self::Ticket { .. }
            | Self::Scope { .. } => ErrorKind::PermissionDenied,
        }
    }
}
