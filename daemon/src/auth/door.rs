//! The door: each operation of each face passes through it, with its caller, its kind and its
//! target.
//!
//! Invariants: an [`Attempt`] is the only way to an operation, and it begins before anything is
//! looked up or changed, unless the policy denies it. The code that does the work logs it once,
//! with the outcome. An attempt that is dropped before it has an outcome is logged as well, so
//! every operation has a line. Changes and refusals have a line in the audit log, too.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Instant,
};

use tracing::{debug, warn};
use varve_store::AccountId;

use super::{
    Caller, Directory, Principal, Rates, TokenError, TooFast,
    audit::{self, Audit, AuditError, Event, OK},
    policy::{Denied, counts, is_change, is_relief, permit},
    resource::{Listed, Resource, without_secrets},
};
use crate::error::{Classified, ErrorKind};

macro_rules! actions {
    ($($name:ident,)*) => {
        /// An operation that a caller requests.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Action {
            $($name,)*
        }

        impl Action {
            /// The name in the log.
            pub(crate) const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }

            /// Returns true for the name of an operation.
            pub(crate) fn is_name(name: &str) -> bool {
                [$(stringify!($name)),*].contains(&name)
            }
        }
    };
}

actions! {
    ListSnapshots,
    GetSnapshot,
    CreateSnapshots,
    DeleteSnapshot,
    DeleteSnapshots,
    TagSnapshot,
    DiffSnapshots,
    VerifySnapshot,
    Download,
    ReadSnapshot,
    CreateVolume,
    CloneVolume,
    ResizeVolume,
    GetVolume,
    ListVolumes,
    TagVolume,
    DeleteVolume,
    AttachVolume,
    DetachVolume,
    RegisterImage,
    GetImage,
    ListImages,
    UpdateImage,
    TagImage,
    ShareImage,
    UnshareImage,
    DeregisterImage,
    GiveImage,
    OpenImageExport,
    BeginUpload,
    FindMissing,
    PutChunks,
    PutLeaves,
    CommitUpload,
    AbortUpload,
    HoldSnapshot,
    FetchNodes,
    FetchChunks,
    CreateCopy,
    GetCopy,
    ListCopies,
    CancelCopy,
    LimitCopy,
    EstimateCopy,
    AddRemote,
    ListRemotes,
    RemoveRemote,
    GetStatus,
    RunGc,
    GetGcStatus,
    StopGc,
    PlanGc,
    EstimateDelete,
    GetUsage,
    ListExports,
    OpenSnapshotExport,
    OpenVolumeExport,
    CompareExport,
    GiveSnapshot,
    ShareSnapshot,
    UnshareSnapshot,
    GiveVolume,
    CreateAccount,
    GetAccount,
    ListAccounts,
    UpdateAccount,
    RestrictAccount,
    DeleteAccount,
    WhoAmI,
    CreateToken,
    ListTokens,
    RevokeToken,
    CreateAccessKey,
    ListAccessKeys,
    RevokeAccessKey,
    ReadAudit,
}

/// Logs a change, or another outcome that operators see, in one line: the attempt, then these
/// fields and words.
macro_rules! done {
    ($attempt:expr, $($outcome:tt)+) => {
        tracing::info!(
            call = $attempt.name(),
            caller = %$attempt.caller(),
            on = $attempt.target(),
            seconds = $attempt.seconds(),
            $($outcome)+
        )
    };
}
pub(crate) use done;

/// What the door asks and tells: the accounts, and the audit log.
#[derive(Debug, Clone)]
pub(crate) struct Door {
    pub(crate) directory: Directory,
    /// `None`: nothing is told.
    pub(crate) audit: Option<Arc<Audit>>,
    pub(crate) rates: Arc<Rates>,
}

impl Door {
    /// The door of a daemon without accounts.
    #[cfg(test)]
    pub(crate) fn alone() -> Self {
        Self {
            directory: Directory::new(0),
            audit: None,
            rates: Arc::new(Rates::new()),
        }
    }

    /// Tells of a token that is not taken: the call that it came with is not even looked at.
    pub(crate) fn refuse_token(&self, caller: &Caller, error: &TokenError) {
        let Some(audit) = &self.audit else {
            return;
        };
        audit.refuse(&Event {
            from: &caller.peer().to_string(),
            face: &caller.face().to_string(),
            action: audit::SHOW_TOKEN,
            result: ErrorKind::Unauthenticated.name(),
            message: Some(&error.to_string()),
            ..Event::default()
        });
    }
}

/// Why an operation does not begin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Closed {
    /// The policy denies it.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// Changes wait until the audit log can be written.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// The account makes more requests than its quota allows.
    #[error(transparent)]
    TooFast(#[from] TooFast),
}

impl Classified for Closed {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Denied(denied) => denied.kind(),
            Self::Audit(_) => ErrorKind::Unavailable,
            Self::TooFast(error) => error.kind(),
        }
    }

    fn is_alarming(&self) -> bool {
        match self {
            Self::TooFast(error) => error.is_alarming(),
            other => other.kind().is_alarming(),
        }
    }
}

/// The outcome of a change, for the audit log.
pub(crate) trait Changed {
    /// The ids of what was made, changed or deleted.
    fn ids(&self) -> Vec<String>;

    /// What was changed of it, where the operation alone does not tell.
    fn detail(&self) -> Option<String> {
        None
    }
}

/// The number of the next request.
static NEXT_REQUEST: AtomicU64 = AtomicU64::new(1);

/// An operation under way, for the logs. It moves with the work: if a task does the work, the task
/// has it.
#[derive(Debug)]
pub(crate) struct Attempt {
    caller: Caller,
    action: Action,
    on: String,
    started: Instant,
    state: State,
    /// The number of the request, unique in this process.
    request: u64,
    /// The account of the caller, and how it is known.
    who: Option<(AccountId, String)>,
    audit: Option<Arc<Audit>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Dropped if the caller goes away.
    OfCall,
    /// Dropped only if the daemon stops first or has a defect.
    OfTask,
    /// Logged.
    Ended,
}

impl Attempt {
    /// Begins an operation, if the policy permits it.
    ///
    /// `on` has everything that the operation reads, changes or makes, as far as the caller named
    /// it. An empty `on` means the store as a whole.
    ///
    /// # Errors
    ///
    /// Why it does not begin.
    pub(crate) fn begin(
        door: &Door,
        caller: &Caller,
        action: Action,
        on: &[Resource<'_>],
    ) -> Result<Self, Closed> {
        let principal = door.directory.principal(caller);
        let mut attempt = Self::new(caller, action, on);
        attempt.who = principal.as_ref().map(|it| (it.id(), it.identity.clone()));
        attempt.audit.clone_from(&door.audit);
        match attempt.permit(door, principal.as_ref()) {
            Ok(()) => Ok(attempt),
            Err(closed) => {
                attempt.fail(&closed);
                Err(closed)
            }
        }
    }

    /// Refuses an operation whose caller shows a secret for it that is not taken.
    pub(crate) fn refuse(
        door: &Door,
        caller: &Caller,
        action: Action,
        on: &[Resource<'_>],
        error: &impl Classified,
    ) {
        let mut attempt = Self::new(caller, action, on);
        attempt.audit.clone_from(&door.audit);
        attempt.fail(error);
    }

    fn permit(&self, door: &Door, principal: Option<&Principal>) -> Result<(), Closed> {
        permit(principal, self.action)?;
        if let Some(principal) = principal.filter(|_| counts(self.action)) {
            door.rates.count(&principal.account)?;
        }
        let must_be_told = is_change(self.action) && !is_relief(self.action);
        if let (Some(audit), true) = (&self.audit, must_be_told) {
            audit.admit()?;
        }
        Ok(())
    }

    fn new(caller: &Caller, action: Action, on: &[Resource<'_>]) -> Self {
        Self {
            caller: caller.clone(),
            action,
            on: Listed(on).to_string(),
            started: Instant::now(),
            state: State::OfCall,
            request: NEXT_REQUEST.fetch_add(1, Ordering::Relaxed),
            who: None,
            audit: None,
        }
    }

    /// Sets the resources of a stream of requests, which only its first message names.
    pub(crate) fn is_on(&mut self, on: &[Resource<'_>]) {
        self.on = Listed(on).to_string();
    }

    /// A part of an operation on many resources: the one on these. It has a line of its own.
    pub(crate) fn part(&self, on: &[Resource<'_>]) -> Self {
        Self {
            caller: self.caller.clone(),
            action: self.action,
            on: Listed(on).to_string(),
            started: self.started,
            state: State::Ended,
            request: self.request,
            who: self.who.clone(),
            // The whole has one line there.
            audit: None,
        }
    }

    /// From now on a task does the work, even if the caller goes away.
    #[must_use]
    pub(crate) fn of_task(mut self) -> Self {
        self.state = State::OfTask;
        self
    }

    /// The name of the operation in the log.
    pub(crate) const fn name(&self) -> &'static str {
        self.action.name()
    }

    pub(crate) const fn caller(&self) -> &Caller {
        &self.caller
    }

    /// Its resources, as the caller named them.
    pub(crate) fn target(&self) -> &str {
        &self.on
    }

    pub(crate) fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// Does the work. `tell` logs its success: by [`done`] or [`served`](Self::served).
    pub(crate) async fn carry_out<T, E: Classified>(
        self,
        work: impl Future<Output = Result<T, E>>,
        tell: impl FnOnce(&Self, &T),
    ) -> Result<T, E> {
        self.carry(work, tell, |_| (Vec::new(), None)).await
    }

    /// Does the work of a change, and tells the audit log what has changed.
    pub(crate) async fn carry_out_change<T: Changed, E: Classified>(
        self,
        work: impl Future<Output = Result<T, E>>,
        tell: impl FnOnce(&Self, &T),
    ) -> Result<T, E> {
        self.carry(work, tell, |done| (done.ids(), done.detail()))
            .await
    }

    async fn carry<T, E: Classified>(
        mut self,
        work: impl Future<Output = Result<T, E>>,
        tell: impl FnOnce(&Self, &T),
        changed: impl FnOnce(&T) -> (Vec<String>, Option<String>),
    ) -> Result<T, E> {
        let outcome = work.await;
        match &outcome {
            Ok(done) => {
                self.state = State::Ended;
                tell(&self, done);
                let (changed, detail) = changed(done);
                // The caller knows of the change only when the line is there.
                if let Some(audit) = self.audit_of_change() {
                    self.told(&changed, OK, detail.as_deref(), |event| audit.record(event))
                        .await;
                }
            }
            Err(error) => self.fail(error),
        }
        outcome
    }

    /// Ends it with an error.
    pub(crate) fn fail(mut self, error: &impl Classified) {
        self.state = State::Ended;
        // An error may repeat a text of the caller.
        let (kind, text) = (error.kind(), error.to_string());
        let text = without_secrets(&text);
        self.failed(kind, error.is_alarming(), &text);
        // A quota or a limit refuses uploads before they change anything.
        let is_refusal = [
            ErrorKind::PermissionDenied,
            ErrorKind::Unauthenticated,
            ErrorKind::ResourceExhausted,
        ]
        .contains(&kind);
        let audit = self.audit.as_ref();
        if let Some(audit) = audit.filter(|_| is_refusal || is_change(self.action)) {
            self.told(&[], kind.name(), Some(&text), |event| audit.refuse(event));
        }
    }

    fn audit_of_change(&self) -> Option<&Audit> {
        self.audit.as_deref().filter(|_| is_change(self.action))
    }

    /// Makes the event of the outcome, for the audit log.
    fn told<T>(
        &self,
        changed: &[String],
        result: &str,
        message: Option<&str>,
        tell: impl FnOnce(&Event<'_>) -> T,
    ) -> T {
        let account = self.who.as_ref().map(|(account, _)| account.to_string());
        let identity = self.who.as_ref().map(|(_, identity)| &**identity);
        let request = format!("{}-{}", process_token(), self.request);
        tell(&Event {
            account: account.as_deref(),
            identity: identity.unwrap_or_default(),
            from: &self.caller.peer().to_string(),
            face: &self.caller.face().to_string(),
            action: self.name(),
            resources: self.target(),
            result,
            message,
            request: Some(&request),
            changed,
        })
    }

    /// Logs an end without an outcome: what has changed is not known.
    fn cut_off(&self, kind: ErrorKind, error: &str) {
        self.failed(kind, kind.is_alarming(), error);
        if let Some(audit) = self.audit_of_change() {
            self.told(&[], kind.name(), Some(error), |event| {
                audit.try_record(event)
            });
        }
    }

    /// Logs a success at the level `debug`.
    pub(crate) fn served(&self) {
        let (call, caller, on) = (self.name(), &self.caller, self.target());
        debug!(call, %caller, on, seconds = self.seconds(), "call served");
    }

    /// Logs at `warn` if an operator should see it, at `debug` if the caller is at fault.
    fn failed(&self, code: ErrorKind, is_alarming: bool, error: &str) {
        let (call, caller, on) = (self.name(), &self.caller, self.target());
        let seconds = self.seconds();
        if is_alarming {
            warn!(call, ?code, error, %caller, on, seconds, "call failed");
        } else {
            debug!(call, ?code, error, %caller, on, seconds, "call refused");
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let panicked = thread::panicking();
        match self.state {
            State::Ended => {}
            _ if panicked => self.cut_off(ErrorKind::Internal, "it failed by a bug"),
            State::OfTask => {
                let error = "the daemon stopped before it was done";
                self.cut_off(ErrorKind::Unavailable, error);
            }
            State::OfCall => {
                let (call, caller, on) = (self.name(), &self.caller, self.target());
                let seconds = self.seconds();
                debug!(call, %caller, on, seconds, "the caller has gone, or waits no longer");
            }
        }
    }
}

/// A part of request ids that differs between processes: the time when this one drew it.
fn process_token() -> u64 {
    static TOKEN: OnceLock<u64> = OnceLock::new();
    *TOKEN.get_or_init(|| varve_store::now_ns() / 1_000_000_000)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

    use std::time::Duration;

    use futures::poll;
    use tokio::sync::oneshot;
    use varve_store::Error;

    use super::*;
    use crate::{auth::Face, limits, net::peer::Peer, tasks::Tasks, telemetry::capture::Captured};

    fn caller() -> Caller {
        Caller::new(Face::Grpc, Peer::Given)
    }

    fn attempt() -> Attempt {
        Attempt::new(&caller(), Action::DeleteVolume, &[Resource::Volume("db")])
    }

    #[test]
    fn resources_are_shown_and_long_keys_are_cut() {
        let long = "ü".repeat(limits::QUOTED_CHARS_MAX + 1);
        let on = [Resource::Snapshot("web"), Resource::Volume(&long)];
        let shown = Listed(&on).to_string();
        let cut = "ü".repeat(limits::QUOTED_CHARS_MAX);
        assert_eq!(shown, format!("snapshot web, volume {cut}..."));
        let secret = Resource::Volume("volume/vol-1@7:varve_ticket_0123");
        assert_eq!(secret.to_string(), "volume volume/vol-1@7:varve_ticket_...");
        assert_eq!(Listed(&[]).to_string(), "");
    }

    /// A key forges neither resources nor fields of the log line.
    #[tokio::test]
    async fn keys_forge_nothing() {
        let log = Captured::new();
        let on = [Resource::Snapshot("x, volume y\" caller=me seconds=0")];
        assert_eq!(
            Listed(&on).to_string(),
            r#"snapshot "x, volume y\" caller=me seconds=0""#
        );
        let outcome = Ok::<_, Error>(());
        let attempt = Attempt::new(&caller(), Action::GetSnapshot, &on);
        let served = attempt.carry_out(async { outcome }, |attempt, ()| attempt.served());
        served.await.unwrap();
        let line = log.line("call served");
        // Outside of quotes.
        let mut plain = String::new();
        let mut chars = line.chars();
        let mut is_quoted = false;
        while let Some(char) = chars.next() {
            match char {
                '\\' => drop(chars.next()),
                '"' => is_quoted = !is_quoted,
                _ if !is_quoted => plain.push(char),
                _ => {}
            }
        }
        assert_eq!(plain.matches("caller=").count(), 1, "{line}");
        assert_eq!(plain.matches("seconds=").count(), 1, "{line}");
    }

    #[tokio::test]
    async fn an_attempt_that_is_dropped_says_that_its_caller_has_gone() {
        let log = Captured::new();
        let caller = caller();
        let on = [Resource::Snapshot("web")];
        let endless = std::future::pending::<Result<(), Error>>();
        let attempt = Attempt::new(&caller, Action::GetSnapshot, &on);
        let mut call = Box::pin(attempt.carry_out(endless, |attempt, ()| attempt.served()));
        assert!(poll!(&mut call).is_pending());
        assert_eq!(log.lines(), Vec::<String>::new());
        drop(call);
        let line = log.line("the caller has gone");
        assert!(line.contains(r#"call="GetSnapshot""#), "{line}");
        assert!(line.contains(r#"on="snapshot web""#), "{line}");
        assert_eq!(log.lines().len(), 1, "{:?}", log.lines());
    }

    #[tokio::test]
    async fn an_outcome_is_logged_once() {
        let log = Captured::new();
        let done = async { Ok::<_, Error>(7) };
        let tell = |attempt: &Attempt, number: &i32| done!(attempt, number, "volume deleted");
        assert_eq!(attempt().carry_out(done, tell).await.unwrap(), 7);
        let line = log.line("volume deleted");
        assert!(line.contains("INFO") && line.contains("number=7"), "{line}");
        let refused = async { Err::<(), _>(Error::InUse("/in use".into())) };
        let tell = |_: &Attempt, (): &()| panic!("it has failed");
        attempt().carry_out(refused, tell).await.unwrap_err();
        let line = log.line("call refused");
        assert!(line.contains("DEBUG") && line.contains("in use"), "{line}");
        assert_eq!(log.lines().len(), 2, "{:?}", log.lines());
    }

    #[tokio::test]
    async fn a_task_that_ends_early_says_why() {
        let log = Captured::new();
        let tasks = Tasks::new();
        let tell = |_: &Attempt, (): &()| panic!("it has no outcome");
        let broken = async { panic!("on purpose") };
        let broken = attempt().of_task().carry_out::<(), Error>(broken, tell);
        tasks.spawn("broken", broken).await.unwrap_err();
        let line = log.line("call failed");
        assert!(line.contains("by a bug"), "{line}");

        let (begun, seen) = oneshot::channel();
        let endless = async move {
            begun.send(()).unwrap();
            std::future::pending().await
        };
        let endless = attempt().of_task().carry_out::<(), Error>(endless, tell);
        drop(tasks.spawn("endless", endless));
        seen.await.unwrap();
        tasks.stop(Duration::from_millis(1)).await;
        let line = log.line("stopped before it was done");
        assert!(line.contains("WARN"), "{line}");
    }
}
