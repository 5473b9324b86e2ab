//! One copy: its task, its progress, and its end.

use std::{collections::VecDeque, time::Duration};

use parking_lot::Mutex;
use tokio::{sync::Mutex as AsyncMutex, time::Instant};
use tokio_util::sync::CancellationToken;
use varve_client::ErrorKind;
use varve_content::tree::Root;
use varve_store::{AccountId, CopyId, CopyOutcome, CopyRecord, Error, SnapshotRecord, now_ns};

use super::{limiter::Limiter, remotes::Source, source::CopyError};
use crate::{
    error::Classified as _,
    limits::{COPY_FRUITLESS_MAX, COPY_RECORD_BYTES},
    resources::shares::Holder,
};

/// Seconds over which a rate is measured.
const RATE_SECONDS: u64 = 5;

/// Characters of an error that a record keeps.
const ERROR_CHARS_MAX: usize = 4096;

/// The state of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Waits for its turn.
    Queued,
    Running,
    /// Waits for the next try.
    Waiting,
    Completed,
    Failed,
    Cancelled,
}

impl State {
    pub(crate) fn has_ended(self) -> bool {
        !matches!(self, Self::Queued | Self::Running | Self::Waiting)
    }
}

/// The time at which a copy was begun, and its id. Copies are listed in this order.
pub(crate) type Begun = (u64, CopyId);

/// A copy at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Status {
    pub(crate) record: CopyRecord,
    pub(crate) state: State,
    pub(crate) rate_bytes_per_second: u64,
}

impl Status {
    /// The place of the copy in the order of copies.
    pub(crate) fn begun(&self) -> Begun {
        (self.record.created_at_ns, self.record.id)
    }
}

/// A copy.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) id: CopyId,
    pub(super) source: Source,
    pub(super) limiter: Limiter,
    pub(super) cancel: CancellationToken,
    /// Held while a record is written, so that no older record follows a newer one.
    pub(super) writing: AsyncMutex<()>,
    /// Cancelled when no more records will be written. Until then nobody is told that it has ended.
    pub(super) settled: CancellationToken,
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    record: CopyRecord,
    /// The state of the copy, unless it has ended.
    phase: State,
    /// Bytes that had arrived when the last record was written.
    recorded_bytes: u64,
    /// Data that the attempt has got beside what was there before.
    got_data_bytes: u64,
    /// The most of that of any attempt at its end.
    furthest_data_bytes: u64,
    /// Received bytes that are not known to be durable.
    unflushed_bytes: u64,
    rate: Rate,
}

impl Known {
    fn state(&self) -> State {
        match self.record.outcome {
            CopyOutcome::UnderWay => self.phase,
            CopyOutcome::Completed => State::Completed,
            CopyOutcome::Failed => State::Failed,
            CopyOutcome::Cancelled => State::Cancelled,
        }
    }

    fn end(&mut self, outcome: CopyOutcome) {
        self.record.outcome = outcome;
        self.record.ended_at_ns = Some(now_ns());
    }
}

/// Bytes received in the last seconds.
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
    /// A copy that continues from its record, or that has ended.
    pub(super) fn new(record: CopyRecord) -> Self {
        let settled = CancellationToken::new();
        if record.outcome != CopyOutcome::UnderWay {
            settled.cancel();
        }
        Self {
            id: record.id,
            source: Source {
                endpoint: record.endpoint.clone(),
                snapshot: record.snapshot.clone(),
                allow_plaintext: record.allow_plaintext,
            },
            limiter: Limiter::new(record.bytes_per_second),
            cancel: CancellationToken::new(),
            writing: AsyncMutex::default(),
            settled,
            known: Mutex::new(Known {
                phase: State::Queued,
                recorded_bytes: record.received_bytes,
                got_data_bytes: 0,
                furthest_data_bytes: 0,
                record,
                unflushed_bytes: 0,
                rate: Rate::default(),
            }),
        }
    }

    /// The identity under which the copy holds shared places: all copies of an account share what
    /// one of the administrator's gets.
    pub(super) fn holder(&self) -> Holder {
        let owner = self.known.lock().record.owner;
        if owner != AccountId::ADMINISTRATOR {
            return Holder::of_account(owner.number(), true);
        }
        let number = blake3::hash(self.id.as_bytes());
        let number = number.as_bytes().first_chunk().copied().unwrap_or_default();
        Holder::of_work(u64::from_le_bytes(number))
    }

    /// The account that it belongs to.
    pub(super) fn owner(&self) -> AccountId {
        self.known.lock().record.owner
    }

    pub(super) fn begun(&self) -> Begun {
        (self.known.lock().record.created_at_ns, self.id)
    }

    /// The current record, written or not.
    pub(super) fn record(&self) -> CopyRecord {
        self.known.lock().record.clone()
    }

    pub(super) fn state(&self) -> State {
        self.known.lock().state()
    }

    pub(super) fn status(&self) -> Status {
        let mut known = self.known.lock();
        let rate = known.rate.bytes_per_second();
        let mut record = known.record.clone();
        let mut state = known.state();
        // After a crash, a copy whose end is not recorded goes on. A caller that was told of the
        // end may have deleted the snapshot by then, and would get it again.
        if state.has_ended() && !self.settled.is_cancelled() {
            state = known.phase;
            record.outcome = CopyOutcome::UnderWay;
            (record.ended_at_ns, record.made) = (None, None);
        }
        // A base may have more data, until its leaves that are not wanted are taken off.
        record.done_data_bytes = record.done_data_bytes.min(record.data_bytes);
        Status {
            record,
            state,
            rate_bytes_per_second: if state == State::Running { rate } else { 0 },
        }
    }

    pub(super) fn limit(&self, bytes_per_second: u64) {
        self.limiter.set(bytes_per_second);
        self.known.lock().record.bytes_per_second = bytes_per_second;
    }

    /// Begins an attempt that has found the snapshot at the source.
    pub(super) fn found(&self, name: &str, root: &Root, data_bytes: u64) {
        let mut known = self.known.lock();
        known.got_data_bytes = 0;
        let record = &mut known.record;
        record.name = name.to_owned();
        record.root = Some(root.id());
        record.size_bytes = root.size_bytes;
        record.data_bytes = data_bytes;
        record.done_data_bytes = 0;
    }

    /// Counts chunks that arrived. Returns the bytes that arrived since the last flush.
    pub(super) fn received(&self, chunks: u64, bytes: u64) -> u64 {
        let mut known = self.known.lock();
        known.record.received_chunks += chunks;
        known.record.received_bytes += bytes;
        known.unflushed_bytes += bytes;
        known.rate.add(bytes);
        known.unflushed_bytes
    }

    pub(super) fn received_bytes(&self) -> u64 {
        self.known.lock().record.received_bytes
    }

    /// Returns true if the attempt that has ended brought what the next one need not fetch: for a
    /// copy of the administrator what has arrived since `received_bytes_before`, for one of another
    /// account, which begins anew, data beyond the point that all attempts before have reached. A
    /// source that lies gets no account any further.
    pub(super) fn got_further(&self, received_bytes_before: u64) -> bool {
        let mut known = self.known.lock();
        if known.record.owner == AccountId::ADMINISTRATOR {
            return known.record.received_bytes > received_bytes_before;
        }
        let further = known.got_data_bytes > known.furthest_data_bytes;
        known.furthest_data_bytes = known.furthest_data_bytes.max(known.got_data_bytes);
        further
    }

    /// A flush makes all received bytes durable.
    pub(super) fn flushed(&self) {
        self.known.lock().unflushed_bytes = 0;
    }

    /// Counts data of the snapshot as present here: this attempt has got it.
    pub(super) fn done(&self, data_bytes: u64) {
        let mut known = self.known.lock();
        known.record.done_data_bytes += data_bytes;
        known.got_data_bytes += data_bytes;
    }

    /// Counts data that was here before, and may be part of the snapshot.
    pub(super) fn based(&self, data_bytes: u64) {
        self.known.lock().record.done_data_bytes += data_bytes;
    }

    /// Takes off data that was here before but is not part of the snapshot.
    pub(super) fn undone(&self, data_bytes: u64) {
        let record = &mut self.known.lock().record;
        record.done_data_bytes = record.done_data_bytes.saturating_sub(data_bytes);
    }

    /// Counts all data of the snapshot as present: nothing was missing.
    pub(super) fn all_here(&self) {
        let record = &mut self.known.lock().record;
        record.done_data_bytes = record.data_bytes;
    }

    /// Converts an error of the store: invalid content is the fault of the source.
    pub(super) fn blame(&self, error: Error) -> CopyError {
        match error {
            Error::Invalid(_) | Error::NotCanonical { .. } | Error::Tree(_) => CopyError::Mismatch(
                format!("{} has sent what cannot be: {error}", self.source.endpoint),
            ),
            other => other.into(),
        }
    }

    /// The copy waits for its turn.
    pub(super) fn queue(&self) {
        self.known.lock().phase = State::Queued;
    }

    pub(super) fn run(&self) {
        self.known.lock().phase = State::Running;
    }

    /// The copy waits until it is tried again. Returns whether the cause is a new one.
    pub(super) fn wait(&self, cause: &CopyError) -> bool {
        let mut known = self.known.lock();
        let error = self.shortened(cause);
        let is_new = known.record.last_error != error;
        known.record.last_error = error;
        known.record.last_error_code = cause.kind().number();
        known.phase = State::Waiting;
        is_new
    }

    /// Returns true if enough has arrived since the last record to write another one.
    pub(super) fn is_worth_a_record(&self) -> bool {
        let known = self.known.lock();
        let since = known.record.received_bytes - known.recorded_bytes;
        since >= COPY_RECORD_BYTES
    }

    /// The record to write now.
    pub(super) fn to_record(&self) -> CopyRecord {
        let mut known = self.known.lock();
        known.recorded_bytes = known.record.received_bytes;
        known.record.clone()
    }

    pub(super) fn complete(&self, made: &SnapshotRecord) {
        let mut known = self.known.lock();
        known.record.made = Some(made.id);
        known.end(CopyOutcome::Completed);
    }

    pub(super) fn fail(&self, error: &CopyError, gave_up: bool) {
        let mut known = self.known.lock();
        let mut why = self.shortened(error);
        if gave_up {
            let hours = COPY_FRUITLESS_MAX.as_secs() / 3600;
            why = format!("the copy has got no further for {hours} hours: {why}");
        }
        known.record.last_error = why;
        known.record.last_error_code = error.kind().number();
        known.end(CopyOutcome::Failed);
    }

    pub(super) fn cancelled(&self) {
        self.known.lock().end(CopyOutcome::Cancelled);
    }

    /// The text of an error for the record, cut off because another daemon may send a text of any
    /// length. An error about damage does not name the damaged store, so the source is named here.
    fn shortened(&self, error: &CopyError) -> String {
        let is_damage = matches!(error, CopyError::Source(it) if it.kind() == ErrorKind::Damaged);
        let text = match is_damage {
            true => format!("the store at {}: {error}", self.source.endpoint),
            false => error.to_string(),
        };
        text.chars().take(ERROR_CHARS_MAX).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use varve_store::CatalogRecord as _;

    use super::*;

    fn begun() -> CopyRecord {
        CopyRecord::begun(
            CopyId::from_low_bits([7; 9]),
            "unix:/run/x".to_owned(),
            "web".to_owned(),
            3,
        )
    }

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

    #[test]
    fn tries_are_not_written_down_and_what_has_arrived_is_now_and_then() {
        let job = Job::new(begun());
        assert_eq!(job.state(), State::Queued);
        job.run();
        let away = CopyError::Refused("it is away".to_owned());
        assert!(job.wait(&away), "something new");
        for _ in 0..100 {
            assert!(!job.wait(&away) && !job.is_worth_a_record());
        }
        assert_eq!(job.status().record.last_error, "it is away");
        job.received(1, COPY_RECORD_BYTES - 1);
        assert!(!job.is_worth_a_record());
        job.received(1, 1);
        assert!(job.is_worth_a_record());
        assert_eq!(job.to_record().received_bytes, COPY_RECORD_BYTES);
        assert!(!job.is_worth_a_record());
        job.fail(&away, true);
        assert_eq!(
            job.record().last_error,
            "the copy has got no further for 24 hours: it is away"
        );
    }

    #[test]
    fn an_account_gets_further_by_data_and_the_administrator_by_bytes() {
        let job = Job::new(begun());
        job.received(1, 10);
        assert!(job.got_further(0) && !job.got_further(10));
        let job = Job::new(CopyRecord {
            owner: AccountId::from_number(7).unwrap(),
            ..begun()
        });
        let root = Root {
            size_bytes: 1 << 20,
            chunker_version: 1,
            top: None,
        };
        for (done, further) in [(0, false), (40, true), (40, false), (30, false), (41, true)] {
            job.found("web", &root, 100);
            job.received(1, 10);
            job.done(done);
            assert_eq!(job.got_further(0), further, "{done}");
        }
        // What a base has is no progress, and what it has beside the snapshot does not hide any.
        for (done, further) in [(41, false), (42, true)] {
            job.found("web", &root, 100);
            job.based(90);
            job.undone(70);
            job.done(done);
            assert_eq!(job.got_further(0), further, "{done}");
        }
    }

    #[test]
    fn damage_at_the_source_is_told_as_the_sources() {
        let job = Job::new(begun());
        let why = "chunk 00 in pack 1 is damaged";
        let damage = varve_client::Error::new(ErrorKind::Damaged, "fetch chunks", why);
        job.fail(&damage.into(), false);
        assert_eq!(
            job.record().last_error,
            format!("the store at unix:/run/x: fetch chunks: {why}")
        );
    }

    #[test]
    fn an_end_is_told_once_it_is_recorded() {
        let job = Job::new(begun());
        job.run();
        job.fail(&CopyError::Refused("no".to_owned()), false);
        let told = job.status();
        assert_eq!(told.state, State::Running);
        assert_eq!(told.record.outcome, CopyOutcome::UnderWay);
        assert_eq!(told.record.ended_at_ns, None);
        assert_eq!(job.to_record().outcome, CopyOutcome::Failed);
        job.settled.cancel();
        let told = job.status();
        assert_eq!(told.state, State::Failed);
        assert_eq!(told.record, job.record());
    }

    /// Every record of a copy must be readable, or the daemon could not start.
    #[test]
    fn records_can_be_read_in_every_state() {
        type End = fn(&Job, &CopyError);

        let slow = CopyRecord {
            bytes_per_second: 7,
            ..begun()
        };
        let long = CopyError::Refused("x".repeat(1 << 20));
        let ends: [(End, CopyOutcome); 4] = [
            (|_, _| {}, CopyOutcome::UnderWay),
            (|job, error| assert!(job.wait(error)), CopyOutcome::UnderWay),
            (|job, error| job.fail(error, true), CopyOutcome::Failed),
            (|job, _| job.cancelled(), CopyOutcome::Cancelled),
        ];
        for (end, outcome) in ends {
            let job = Job::new(slow.clone());
            end(&job, &long);
            let record = job.record();
            assert_eq!(record.outcome, outcome);
            assert!(record.encode().len() < 8 << 10, "errors are cut off");
            assert_eq!(CopyRecord::decode(&record.encode()), Ok(record.clone()));
            assert_eq!(Job::new(record.clone()).record(), record);
        }
    }
}
