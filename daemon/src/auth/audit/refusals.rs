//! Equal refusals become one line with a count.
//!
//! Invariant: memory and lines are bounded, whatever a stranger sends and however often. No refusal
//! goes uncounted.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use jiff::Timestamp;

use super::{
    event::{Body, Event, OTHERS, Waiting, escape},
    limits::{
        ACCOUNT_BYTES_MAX, FROM_BYTES_MAX, IDENTITY_BYTES_MAX, REFUSAL_WINDOW, REFUSALS_MAX,
        REFUSALS_PER_SECOND, WORD_BYTES_MAX,
    },
};

/// The refusals of the present window.
#[derive(Debug)]
pub(super) struct Refusals {
    seen: HashMap<String, Seen>,
    others: Option<Times>,
    since: Option<Instant>,
    /// New refusals that may still have a line of their own: of strangers, and of callers with an
    /// account. Strangers take no lines from the others.
    left: [u64; 2],
    /// The time of the last addition to `left`.
    refilled: Instant,
}

#[derive(Debug)]
struct Seen {
    times: Times,
    body: Body,
}

#[derive(Debug)]
struct Times {
    first: Timestamp,
    last: Timestamp,
    count: u64,
}

impl Times {
    fn new(time: Timestamp) -> Self {
        Self {
            first: time,
            last: time,
            count: 1,
        }
    }

    fn add(&mut self, time: Timestamp) {
        self.last = time;
        self.count += 1;
    }

    fn waiting(self, body: Body) -> Waiting {
        Waiting {
            time: self.first,
            last: (self.count > 1).then_some(self.last),
            count: self.count,
            body,
            ticket: 0,
        }
    }
}

impl Refusals {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            seen: HashMap::new(),
            others: None,
            since: None,
            left: [REFUSALS_MAX as u64; 2],
            refilled: now,
        }
    }

    /// Counts a refusal. Returns true if it is the first of a window.
    pub(super) fn add(&mut self, event: &Event<'_>, time: Timestamp, now: Instant) -> bool {
        let is_first = self.since.is_none();
        self.since.get_or_insert(now);
        let key = key(event);
        if let Some(seen) = self.seen.get_mut(&key) {
            seen.times.add(time);
            return is_first;
        }
        self.refill(now);
        // The table is as long as the window is while nothing can be written.
        let left = &mut self.left[usize::from(event.account.is_some())];
        if *left == 0 || self.seen.len() >= 2 * REFUSALS_MAX {
            match &mut self.others {
                Some(others) => others.add(time),
                None => self.others = Some(Times::new(time)),
            }
            return is_first;
        }
        *left -= 1;
        let body = Body::of_refusal(event);
        let times = Times::new(time);
        self.seen.insert(key, Seen { times, body });
        is_first
    }

    fn refill(&mut self, now: Instant) {
        let seconds = now.saturating_duration_since(self.refilled).as_secs();
        self.refilled += Duration::from_secs(seconds);
        let more = seconds.saturating_mul(REFUSALS_PER_SECOND);
        for left in &mut self.left {
            *left = left.saturating_add(more).min(REFUSALS_MAX as u64);
        }
    }

    /// The time at which the window ends. `None` if there are no refusals.
    pub(super) fn due(&self) -> Option<Instant> {
        self.since.map(|since| since + REFUSAL_WINDOW)
    }

    /// Ends the window. Returns its lines in the order of time.
    pub(super) fn take(&mut self) -> Vec<Waiting> {
        self.since = None;
        let seen = std::mem::take(&mut self.seen).into_values();
        let mut lines: Vec<_> = seen.map(|seen| seen.times.waiting(seen.body)).collect();
        lines.extend(self.others.take().map(|others| {
            let message = "refusals of many kinds: too many to have a line each";
            others.waiting(Body::of_log(OTHERS, message))
        }));
        lines.sort_by_key(|line| line.time);
        lines
    }
}

/// What equal refusals have in common. Escaped texts have no line feed, so parts cannot run into
/// each other.
fn key(event: &Event<'_>) -> String {
    let mut key = String::with_capacity(128);
    for (text, most) in [
        (event.account.unwrap_or_default(), ACCOUNT_BYTES_MAX),
        (event.identity, IDENTITY_BYTES_MAX),
        (host(event.from), FROM_BYTES_MAX),
        (event.action, WORD_BYTES_MAX),
        (event.result, WORD_BYTES_MAX),
    ] {
        escape(text, most, &mut key);
        key.push('\n');
    }
    key
}

/// A peer without its port or process: each connection has another one.
fn host(from: &str) -> &str {
    if let Some(address) = from.strip_prefix("tcp:") {
        return address.rsplit_once(':').map_or(address, |(host, _)| host);
    }
    match from.strip_prefix("unix:pid=") {
        Some(rest) => rest.split_once(',').map_or(rest, |(_, user)| user),
        None => from,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn refusal<'a>(identity: &'a str, from: &'a str) -> Event<'a> {
        Event {
            identity,
            from,
            action: "DeleteVolume",
            result: "PermissionDenied",
            ..Event::default()
        }
    }

    fn add(refusals: &mut Refusals, identity: &str, from: &str, now: Instant) -> bool {
        refusals.add(&refusal(identity, from), Timestamp::now(), now)
    }

    #[test]
    fn equal_refusals_are_one_line_whatever_their_port_and_process() {
        let now = Instant::now();
        let mut refusals = Refusals::new(now);
        assert_eq!(refusals.due(), None);
        assert!(add(&mut refusals, "token:a", "tcp:192.0.2.1:1", now));
        for port in 2..=100 {
            let from = format!("tcp:192.0.2.1:{port}");
            assert!(!add(&mut refusals, "token:a", &from, now));
        }
        add(&mut refusals, "token:a", "tcp:192.0.2.2:1", now);
        add(&mut refusals, "uid:7", "unix:pid=1,uid=7", now);
        add(&mut refusals, "uid:7", "unix:pid=2,uid=7", now);
        assert_eq!(refusals.due(), Some(now + REFUSAL_WINDOW));
        let lines = refusals.take();
        let counts: Vec<_> = lines.iter().map(|line| line.count).collect();
        assert_eq!(counts, [100, 1, 2]);
        assert!(lines[0].last.is_some() && lines[1].last.is_none());
        assert_eq!(refusals.due(), None);
    }

    #[test]
    fn different_refusals_are_bounded_in_memory_and_in_the_long_run() {
        let start = Instant::now();
        let mut refusals = Refusals::new(start);
        let mut lines = 0;
        let mut counted = 0;
        for second in 0..20 {
            for number in 0..2000 {
                let now = start + Duration::from_secs(second);
                add(&mut refusals, &format!("{second}-{number}"), "", now);
            }
            let taken = refusals.take();
            assert!(taken.len() <= REFUSALS_MAX + 1);
            lines += taken.len();
            counted += taken.iter().map(|line| line.count).sum::<u64>();
        }
        assert_eq!(counted, 40_000);
        // One line of others for each window.
        assert_eq!(lines, REFUSALS_MAX + 19 * 4 + 20);
    }
}
