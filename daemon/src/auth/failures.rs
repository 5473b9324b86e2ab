//! Slows down who shows wrong tokens or tickets: each one of a source delays its answer longer.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::net::peer::PeerKey;

/// Sources that are remembered. With more, the one that failed longest ago is forgotten.
const SOURCES_MAX: usize = 4096;
/// The delay after the first wrong token. It doubles with each further one.
const DELAY_FIRST: Duration = Duration::from_millis(50);
/// The longest delay.
const DELAY_MAX: Duration = Duration::from_secs(5);
/// A source that has shown no wrong token for this long begins anew.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(15 * 60);

/// Wrong tokens or tickets by source: a host, a network of 64 bits, or a user of this machine.
#[derive(Debug, Default)]
pub(crate) struct Failures(Mutex<HashMap<PeerKey, Failed>>);

#[derive(Debug, Clone, Copy)]
struct Failed {
    times: u32,
    last: Instant,
}

impl Failures {
    /// Counts a wrong token. Returns how long its answer has to wait.
    pub(crate) fn count(&self, source: PeerKey) -> Duration {
        self.count_at(source, Instant::now())
    }

    fn count_at(&self, source: PeerKey, now: Instant) -> Duration {
        let mut sources = self.0.lock();
        if sources.len() >= SOURCES_MAX && !sources.contains_key(&source) {
            let oldest = sources.iter().min_by_key(|(_, failed)| failed.last);
            if let Some(oldest) = oldest.map(|(source, _)| *source) {
                sources.remove(&oldest);
            }
        }
        let failed = sources.entry(source).or_insert(Failed {
            times: 0,
            last: now,
        });
        if now.saturating_duration_since(failed.last) >= FORGOTTEN_AFTER {
            failed.times = 0;
        }
        let delay = DELAY_FIRST.saturating_mul(1_u32.checked_shl(failed.times).unwrap_or(u32::MAX));
        failed.times = failed.times.saturating_add(1);
        failed.last = now;
        delay.min(DELAY_MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    fn host(number: u32) -> PeerKey {
        PeerKey::Remote(IpAddr::V4(Ipv4Addr::from_bits(number)))
    }

    #[test]
    fn delays_double_for_the_source_that_fails() {
        let (failures, now) = (Failures::default(), Instant::now());
        let delays: Vec<_> = (0..9).map(|_| failures.count_at(host(1), now)).collect();
        let expected = [50, 100, 200, 400, 800, 1600, 3200, 5000, 5000];
        assert_eq!(delays, expected.map(Duration::from_millis));
        assert_eq!(failures.count_at(host(2), now), DELAY_FIRST);
        for _ in 0..100 {
            failures.count_at(host(1), now);
        }
        assert_eq!(failures.count_at(host(1), now), DELAY_MAX);
        let later = now + FORGOTTEN_AFTER;
        assert_eq!(failures.count_at(host(1), later), DELAY_FIRST);
    }

    #[test]
    fn sources_are_bounded_and_the_oldest_is_forgotten() {
        let (failures, now) = (Failures::default(), Instant::now());
        let most = u32::try_from(SOURCES_MAX).unwrap_or(u32::MAX);
        for number in 0..=most {
            failures.count_at(host(number), now + Duration::from_millis(number.into()));
        }
        assert_eq!(failures.0.lock().len(), SOURCES_MAX);
        assert!(!failures.0.lock().contains_key(&host(0)));
        assert!(failures.0.lock().contains_key(&host(1)));
    }
}
