//! One copy: what it is to do, how far it has come, and what became of it.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{Mutex as AsyncMutex, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use varve_content::{RootId, tree::Root};
use varve_store::{CopyId, CopyOutcome, CopyRecord, Error, SnapshotId, SnapshotRecord};

use super::{
    limiter::Limiter,
    source::{CopyError, SourceAddress},
};

/// Seconds over which a rate is told.
const RATE_SECONDS: u64 = 5;

/// Characters of an error that are kept.
const ERROR_CHARS_MAX: usize = 4096;

/// What a copy is to do.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) source: SourceAddress,
    /// Empty: as at the source.
    pub(crate) name: String,
    /// Beside those of the source.
    pub(crate) tags: BTreeMap<String, String>,
    /// 0: no limit.
    pub(crate) bytes_per_second: u64,
}

/// What becomes of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Running,
    /// Until it is tried again.
    Waiting,
    Completed,
    Failed,
    Cancelled,
}

impl State {
    pub(crate) fn has_ended(self) -> bool {
        !matches!(self, Self::Running | Self::Waiting)
    }
}

/// All there is to know about a copy at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Status {
    pub(crate) id: CopyId,
    pub(crate) request: Request,
    pub(crate) name: String,
    pub(crate) state: State,
    pub(crate) created_at_ns: u64,
    pub(crate) ended_at_ns: Option<u64>,
    pub(crate) root: Option<RootId>,
    pub(crate) size_bytes: u64,
    pub(crate) data_bytes: u64,
    pub(crate) done_data_bytes: u64,
    pub(crate) received_chunks: u64,
    pub(crate) received_bytes: u64,
    pub(crate) rate_bytes_per_second: u64,
    pub(crate) limit_bytes_per_second: u64,
    pub(crate) last_error: String,
    pub(crate) snapshot: Option<SnapshotId>,
}

/// A copy.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) id: CopyId,
    pub(super) request: Request,
    pub(super) created_at_ns: u64,
    pub(super) limiter: Limiter,
    pub(super) cancel: CancellationToken,
    /// Held while what is known is written down, so that nothing older comes after something newer.
    pub(super) writing: AsyncMutex<()>,
    /// That nothing more will be written down.
    pub(super) settled: CancellationToken,
    state: watch::Sender<State>,
    found: Mutex<Found>,
}

#[derive(Debug, Default)]
struct Found {
    name: String,
    ended_at_ns: Option<u64>,
    root: Option<RootId>,
    size_bytes: u64,
    data_bytes: u64,
    done_data_bytes: u64,
    received_chunks: u64,
    received_bytes: u64,
    /// Of these, what is not known to be durable.
    unflushed_bytes: u64,
    rate: Rate,
    last_error: String,
    snapshot: Option<SnapshotId>,
}

/// Bytes of the last seconds.
#[derive(Debug, Default)]
struct Rate {
    since: Option<Instant>,
    /// Second, counted from the beginning, and its bytes.
    seconds: VecDeque<(u64, u64)>,
}

impl Rate {
    fn add(&mut self, bytes: u64) {
        let now = self
            .since
            .get_or_insert_with(Instant::now)
            .elapsed()
            .as_secs();
        match self.seconds.back_mut() {
            Some((second, sum)) if *second == now => *sum += bytes,
            _ => self.seconds.push_back((now, bytes)),
        }
        self.forget(now);
    }

    fn forget(&mut self, now: u64) {
        while let Some((second, _)) = self.seconds.front()
            && second + RATE_SECONDS < now
        {
            self.seconds.pop_front();
        }
    }

    fn bytes_per_second(&mut self) -> u64 {
        let Some(since) = self.since else {
            return 0;
        };
        let elapsed = since.elapsed();
        self.forget(elapsed.as_secs());
        let window = elapsed
            .min(Duration::from_secs(RATE_SECONDS))
            .as_millis()
            .max(1);
        let bytes: u64 = self.seconds.iter().map(|(_, bytes)| bytes).sum();
        u64::try_from(u128::from(bytes) * 1000 / window).unwrap_or(u64::MAX)
    }
}

impl Job {
    pub(super) fn new(id: CopyId, request: Request, created_at_ns: u64) -> Self {
        Self {
            id,
            created_at_ns,
            limiter: Limiter::new(request.bytes_per_second),
            cancel: CancellationToken::new(),
            writing: AsyncMutex::default(),
            settled: CancellationToken::new(),
            state: watch::Sender::new(State::Running),
            found: Mutex::new(Found {
                name: request.name.clone(),
                ..Found::default()
            }),
            request,
        }
    }

    /// One that was written down. How many were before this one is not told.
    pub(super) fn from_record(record: CopyRecord) -> Result<Self, varve_client::Error> {
        let state = match record.outcome {
            CopyOutcome::UnderWay => State::Running,
            CopyOutcome::Completed => State::Completed,
            CopyOutcome::Failed => State::Failed,
            CopyOutcome::Cancelled => State::Cancelled,
        };
        let request = Request {
            source: SourceAddress {
                endpoint: record.endpoint.parse()?,
                snapshot: record.snapshot,
                allow_plaintext: record.allow_plaintext,
            },
            name: record.name.clone(),
            tags: record.tags,
            bytes_per_second: record.bytes_per_second,
        };
        Ok(Self {
            id: record.id,
            created_at_ns: record.created_at_ns,
            limiter: Limiter::new(record.bytes_per_second),
            cancel: CancellationToken::new(),
            writing: AsyncMutex::default(),
            settled: {
                let settled = CancellationToken::new();
                if state.has_ended() {
                    settled.cancel();
                }
                settled
            },
            state: watch::Sender::new(state),
            found: Mutex::new(Found {
                name: record.name,
                ended_at_ns: record.ended_at_ns,
                root: record.root,
                size_bytes: record.size_bytes,
                data_bytes: record.data_bytes,
                done_data_bytes: record.done_data_bytes,
                received_chunks: record.received_chunks,
                received_bytes: record.received_bytes,
                last_error: record.last_error,
                snapshot: record.made,
                ..Found::default()
            }),
            request,
        })
    }

    /// What is written down of it.
    pub(super) fn record(&self) -> CopyRecord {
        let (id, request) = (self.id, self.request.clone());
        let found = self.found.lock();
        // Under the lock: it changes together with what is found.
        let state = self.state();
        CopyRecord {
            id,
            endpoint: request.source.endpoint.to_string(),
            allow_plaintext: request.source.allow_plaintext,
            snapshot: request.source.snapshot,
            name: found.name.clone(),
            tags: request.tags,
            bytes_per_second: self.limiter.limit(),
            created_at_ns: self.created_at_ns,
            outcome: match state {
                State::Running | State::Waiting => CopyOutcome::UnderWay,
                State::Completed => CopyOutcome::Completed,
                State::Failed => CopyOutcome::Failed,
                State::Cancelled => CopyOutcome::Cancelled,
            },
            ended_at_ns: found.ended_at_ns,
            root: found.root,
            made: found.snapshot,
            size_bytes: found.size_bytes,
            data_bytes: found.data_bytes,
            done_data_bytes: found.done_data_bytes,
            received_chunks: found.received_chunks,
            received_bytes: found.received_bytes,
            last_error: found.last_error.clone(),
        }
    }

    pub(super) fn state(&self) -> State {
        *self.state.borrow()
    }

    pub(super) fn status(&self) -> Status {
        let mut found = self.found.lock();
        let state = self.state();
        let rate = found.rate.bytes_per_second();
        Status {
            id: self.id,
            request: self.request.clone(),
            name: found.name.clone(),
            state,
            created_at_ns: self.created_at_ns,
            ended_at_ns: found.ended_at_ns,
            root: found.root,
            size_bytes: found.size_bytes,
            data_bytes: found.data_bytes,
            done_data_bytes: found.done_data_bytes,
            received_chunks: found.received_chunks,
            received_bytes: found.received_bytes,
            rate_bytes_per_second: if state == State::Running { rate } else { 0 },
            limit_bytes_per_second: self.limiter.limit(),
            last_error: found.last_error.clone(),
            snapshot: found.snapshot,
        }
    }

    /// A try has found the snapshot at the source, and begins.
    pub(super) fn found(&self, name: &str, root: &Root, data_bytes: u64) {
        let mut found = self.found.lock();
        found.name = name.to_owned();
        found.root = Some(root.id());
        found.size_bytes = root.size_bytes;
        found.data_bytes = data_bytes;
        found.done_data_bytes = 0;
    }

    /// Takes note of chunks that arrived. How many bytes arrived since the last flush.
    pub(super) fn received(&self, chunks: u64, bytes: u64) -> u64 {
        let mut found = self.found.lock();
        found.received_chunks += chunks;
        found.received_bytes += bytes;
        found.unflushed_bytes += bytes;
        found.rate.add(bytes);
        found.unflushed_bytes
    }

    pub(super) fn received_bytes(&self) -> u64 {
        self.found.lock().received_bytes
    }

    /// What arrived is being made durable.
    pub(super) fn flushed(&self) {
        self.found.lock().unflushed_bytes = 0;
    }

    /// So much of the snapshot is here.
    pub(super) fn done(&self, data_bytes: u64) {
        self.found.lock().done_data_bytes += data_bytes;
    }

    /// All of it was here before.
    pub(super) fn all_here(&self) {
        let mut found = self.found.lock();
        found.done_data_bytes = found.data_bytes;
    }

    /// What the store says to what the source has sent.
    pub(super) fn blame(&self, error: Error) -> CopyError {
        match error {
            Error::Invalid(_) | Error::NotCanonical { .. } | Error::Tree(_) => {
                CopyError::Refused(format!(
                    "{} has sent what cannot be: {error}",
                    self.request.source.endpoint
                ))
            }
            other => other.into(),
        }
    }

    pub(super) fn run(&self) {
        self.state.send_replace(State::Running);
    }

    pub(super) fn wait(&self, error: &CopyError) {
        self.found.lock().last_error = shortened(error);
        self.state.send_replace(State::Waiting);
    }

    pub(super) fn complete(&self, record: &SnapshotRecord, now_ns: u64) {
        let mut found = self.found.lock();
        found.snapshot = Some(record.id);
        found.ended_at_ns = Some(now_ns);
        self.state.send_replace(State::Completed);
    }

    pub(super) fn fail(&self, error: &CopyError, now_ns: u64) {
        let mut found = self.found.lock();
        found.last_error = shortened(error);
        found.ended_at_ns = Some(now_ns);
        self.state.send_replace(State::Failed);
    }

    pub(super) fn cancelled(&self, now_ns: u64) {
        let mut found = self.found.lock();
        found.ended_at_ns = Some(now_ns);
        self.state.send_replace(State::Cancelled);
    }
}

/// An error as it is kept: what another daemon has said may be of any length.
fn shortened(error: &CopyError) -> String {
    error.to_string().chars().take(ERROR_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn rates_are_of_the_last_seconds() {
        let mut rate = Rate::default();
        assert_eq!(rate.bytes_per_second(), 0);
        rate.add(0);
        for _ in 0..20 {
            tokio::time::advance(Duration::from_millis(500)).await;
            rate.add(500);
        }
        let steady = rate.bytes_per_second();
        assert!((900..1300).contains(&steady), "{steady}");
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(rate.bytes_per_second(), 0);
    }

    /// Whatever is written down of a copy can be read again, or the daemon could not start.
    #[test]
    fn records_can_be_read_in_every_state() {
        type End = fn(&Job, &CopyError);

        let request = || Request {
            source: SourceAddress {
                endpoint: varve_client::Endpoint::unix("/run/x"),
                snapshot: "web".to_owned(),
                allow_plaintext: false,
            },
            name: String::new(),
            tags: BTreeMap::new(),
            bytes_per_second: 7,
        };
        let long = CopyError::Refused("x".repeat(1 << 20));
        let ends: [(End, CopyOutcome); 4] = [
            (|_, _| {}, CopyOutcome::UnderWay),
            (|job, error| job.wait(error), CopyOutcome::UnderWay),
            (|job, error| job.fail(error, 9), CopyOutcome::Failed),
            (|job, _| job.cancelled(9), CopyOutcome::Cancelled),
        ];
        for (end, outcome) in ends {
            let job = Job::new(CopyId::from_low_bits([7; 9]), request(), 3);
            end(&job, &long);
            let record = job.record();
            assert_eq!(record.outcome, outcome);
            assert!(record.encode().len() < 8 << 10, "errors are cut off");
            assert_eq!(CopyRecord::decode(&record.encode()), Ok(record.clone()));
            assert!(Job::from_record(record.clone()).is_ok_and(|job| job.record() == record));
        }
    }
}
