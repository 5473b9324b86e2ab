//! The audit log: what changed, by the outcome of each change, and pages of the log for readers.

use tokio::task::spawn_blocking;
use varve_store::{
    AccountId, AccountRecord, GcStatus, RemoteRecord, SnapshotRecord, TokenRecord, VolumeRecord,
};

use super::{
    Service,
    copies::CopyStatus,
    error::{Error, Result},
};
pub(crate) use crate::auth::audit::{Entry as AuditEntry, Page as AuditPage, Query as AuditQuery};
use crate::auth::{AccessKey, Action, Caller, Changed, SecretAccessKey, Ticket, audit};

macro_rules! changed {
    ($($outcome:ty => |$it:ident| $ids:expr;)*) => {
        $(impl Changed for $outcome {
            fn ids(&self) -> Vec<String> {
                let $it = self;
                $ids
            }
        })*
    };
}

changed! {
    SnapshotRecord => |it| vec![it.id.to_string()];
    Vec<SnapshotRecord> => |it| it.iter().map(|it| it.id.to_string()).collect();
    Vec<varve_store::Result<SnapshotRecord>> => |it| {
        it.iter().flatten().map(|it| it.id.to_string()).collect()
    };
    VolumeRecord => |it| vec![it.id.to_string()];
    // A volume that was attached, and its ticket.
    (VolumeRecord, Option<Ticket>) => |it| vec![it.0.id.to_string()];
    CopyStatus => |it| vec![it.record.id.to_string()];
    (CopyStatus, bool) => |it| vec![it.0.record.id.to_string()];
    RemoteRecord => |it| vec![it.name.clone()];
    AccountRecord => |it| vec![it.id.to_string()];
    TokenRecord => |it| vec![it.id.to_string()];
    // A token with its secret, which is nobody's business.
    (TokenRecord, String) => |it| vec![it.0.id.to_string()];
    AccessKey => |it| vec![it.record.id.to_string()];
    (AccessKey, SecretAccessKey) => |it| it.0.ids();
    // An aborted upload, and the name that its snapshot would have had.
    (String, String) => |it| vec![it.0.clone()];
    // The name of a remote.
    String => |it| vec![it.clone()];
    GcStatus => |_it| Vec::new();
}

impl Service {
    /// A page of the audit log, in the order of its lines.
    /// `account` is empty for the events of all.
    pub(crate) async fn read_audit(
        &self,
        caller: &Caller,
        account: &str,
        mut query: AuditQuery,
    ) -> Result<AuditPage> {
        let sight = self.sight(caller);
        self.pass(caller, Action::ReadAudit, &[], async {
            let is_known =
                |action: &str| Action::is_name(action) || audit::EVENTS.contains(&action);
            if let Some(action) = query.action.as_deref().filter(|it| !is_known(it)) {
                let problem = format!(
                    "there is no action {action:?}; actions are named as the calls, such as \
                     CreateSnapshot"
                );
                return Err(Error::field("action", problem));
            }
            query.account = match account {
                "" => None,
                // Deleted accounts are found by their ids.
                other => match other.parse::<AccountId>() {
                    Ok(id) => Some(id.to_string()),
                    Err(_) => Some(sight.known(other)?.to_string()),
                },
            };
            let dir = self.0.parts.facts.data_dir.clone();
            let read = spawn_blocking(move || audit::read(&dir, &query)).await;
            Ok(read.map_err(|_| Error::CutShort)??)
        })
        .await
    }
}
